//! What a store can refuse, sorted by what the caller must do about it.
//!
//! No text in here holds the address or the password of the database: errors travel to logs.

use thiserror::Error;

/// A store's refusal.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StoreError {
    /// Down, read only, full, too slow, not migrated yet: the same call may work later.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// Something of that name is there already.
    #[error("this {what} is taken already")]
    Conflict { what: Taken },
    /// Somebody else changed it since it was read: read it again.
    #[error("{0} was changed meanwhile")]
    Stale(String),
    /// This value can never be stored: trying again is of no use.
    #[error("the store refuses the value: {0}")]
    Invalid(String),
    /// A defect of ours or of the database.
    #[error("the store failed: {0}")]
    Other(String),
}

/// What a new row collided with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Key,
    KeyAlias,
    /// An object of that id.
    Id,
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Taken::Key => "key",
            Taken::KeyAlias => "key alias",
            Taken::Id => "id",
        })
    }
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, StoreError::Unavailable(_))
    }

    pub(crate) fn unavailable(why: impl Into<String>) -> Self {
        StoreError::Unavailable(why.into())
    }

    pub(crate) fn other(why: impl std::fmt::Display) -> Self {
        StoreError::Other(why.to_string())
    }

    pub(crate) fn invalid(why: impl std::fmt::Display) -> Self {
        StoreError::Invalid(why.to_string())
    }
}
