//! Taking over what another gateway has: LiteLLM's database, Traefik's labels.

pub mod litellm;
mod report;
pub mod traefik;

pub use report::{Line, Note, Report};
