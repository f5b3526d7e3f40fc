//! Taking over what another gateway has in its database. So far: LiteLLM.

pub mod litellm;
mod report;

pub use report::{Line, Note, Report};
