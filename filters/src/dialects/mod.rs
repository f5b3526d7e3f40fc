//! Canonical (OpenAI) <-> provider, pure, hub and spoke.
