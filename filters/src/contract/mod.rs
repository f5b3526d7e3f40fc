//! What a filter is and what it may see: the contract between the host and every filter.

pub mod call;
pub mod chain;
pub mod cx;
pub mod error;
pub mod fields;
pub mod filter;
pub mod ports;
mod prompt;
pub mod registry;
pub mod upstream;
pub mod verdict;

pub use call::{Call, Scanned};
pub use chain::Chain;
pub use cx::Cx;
pub use error::{Fault, Refusal, Stop};
pub use fields::Fields;
pub use filter::{Filter, Needs};
pub use registry::Registry;
pub use upstream::Upstream;
pub use verdict::{Answer, Outcome, Verdict};

/// What every hook returns: go on, or stop with a refusal or a fault.
pub type Result<T, E = Stop> = std::result::Result<T, E>;
