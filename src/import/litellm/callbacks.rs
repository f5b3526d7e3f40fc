//! Secrets of callbacks, Langfuse's keys, within the `metadata` of keys and teams: opened where LiteLLM sealed
//! them, and kept here as the API keeps them, see [`admin::callbacks`](crate::admin::callbacks).

use super::row::Row;
use super::{Salts, Vault};
use crate::admin::callbacks::{each, each_secret};
use serde_json::{Map, Value};

/// What LiteLLM's newer releases write before a value that they sealed.
const SEALED: &str = "litellm_enc::";

/// Makes plain what LiteLLM sealed. What cannot be opened, or could not be sealed here, is left out, and said.
pub fn open(metadata: &mut Map<String, Value>, salts: &Salts, vault: &Vault, row: &mut Row) {
    each(metadata, |vars| {
        vars.retain(|_, value| {
            let Some(sealed) = value.as_str().and_then(|text| text.strip_prefix(SEALED)) else {
                return true;
            };
            match salts.open(sealed) {
                Ok(text) => *value = text.expose().into(),
                Err(_) => {
                    let what = "a secret of a callback cannot be decrypted with this LITELLM_SALT_KEY or master key, \
                                left out";
                    row.flaw("metadata", what);
                    return false;
                }
            }
            true
        });
    });
    let mut homeless = false;
    each_secret(metadata, |value| {
        let text = value.as_str().unwrap_or_default();
        if !text.is_empty() && (vault.close)(text).is_err() {
            *value = Value::Null;
            homeless = true;
        }
    });
    if homeless {
        let what = "there is neither a salt key nor a master key to keep secrets of callbacks with, left out";
        row.flaw("metadata", what);
    }
}

impl Vault {
    /// A `metadata` as it is stored.
    pub fn close_callbacks(&self, metadata: &mut Map<String, Value>) {
        each_secret(metadata, |value| {
            if let Some(text) = value.as_str().filter(|t| !t.is_empty()) {
                // Whether that can be was seen when the row was read.
                *value = (self.close)(text).map_or(Value::Null, Value::String);
            }
        });
    }

    /// Whether a stored `metadata` says the same as a plain one, with every secret sealed.
    pub fn same_callbacks(&self, stored: &Map<String, Value>, plain: &Map<String, Value>) -> bool {
        let mut opened = stored.clone();
        let mut bare = false;
        each_secret(&mut opened, |value| {
            if let Some(text) = value.as_str().filter(|t| !t.is_empty()) {
                match (self.open)(text) {
                    Ok(Some(text)) => *value = text.expose().into(),
                    Ok(None) | Err(_) => bare = true,
                }
            }
        });
        !bare && opened == *plain
    }
}
