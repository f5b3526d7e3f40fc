//! Which key is meant: by alias, by hash or the start of one, or as `sk-…` on stdin. Never as `sk-…` on
//! the command line, where every process of the machine could read it.

use super::from_stdin;
use crate::cli::client::{Failure, Gateway};
use crate::cli::show::{clean, say};
use filters::model::key::KeyHash;
use serde_json::Value;

/// Keys of one page, the most that the API gives.
const SIZE: usize = 100;
/// Most pages that are read.
const MOST_PAGES: usize = 200;
/// Fewest digits of a hash that name a key.
const LEAST_DIGITS: usize = 6;
/// Digits of a whole hash.
const HASH_DIGITS: usize = 64;

/// Whose keys.
#[derive(Default)]
pub struct Filter {
    pub user: Option<String>,
    pub team: Option<String>,
}

/// All keys, page by page. Says so when there are more than are read.
pub async fn all(gateway: &Gateway, filter: &Filter) -> Result<Vec<Value>, Failure> {
    let mut query = Vec::new();
    query.extend(filter.user.as_deref().map(|id| ("user_id", id)));
    query.extend(filter.team.as_deref().map(|id| ("team_id", id)));
    let mut keys: Vec<Value> = Vec::new();
    for page in 1..=MOST_PAGES {
        let (page, total) = read(gateway, &query, page).await?;
        let last = page.len() < SIZE;
        // A key that is made meanwhile moves the others on by one.
        for key in page {
            if !keys
                .iter()
                .rev()
                .take(SIZE)
                .any(|k| k.get("token") == key.get("token"))
            {
                keys.push(key);
            }
        }
        if last || keys.len() as u64 >= total {
            return Ok(keys);
        }
    }
    say(format_args!(
        "only the newest {} keys are shown; narrow the list with --user or --team",
        keys.len()
    ));
    Ok(keys)
}

async fn read(gateway: &Gateway, query: &[(&str, &str)], page: usize) -> Result<(Vec<Value>, u64), Failure> {
    let (page, size) = (page.to_string(), SIZE.to_string());
    let mut query = query.to_vec();
    query.extend([
        ("return_full_object", "true"),
        ("page", page.as_str()),
        ("size", size.as_str()),
    ]);
    let answer = gateway.get("/key/list", &query).await?.json;
    let total = answer.get("total_count").and_then(Value::as_u64).unwrap_or(0);
    match answer.get("keys").and_then(Value::as_array) {
        Some(keys) => Ok((keys.clone(), total)),
        None => Err(Failure::failed("the gateway's list of keys cannot be understood")),
    }
}

/// The row of the key that is meant.
pub async fn find(gateway: &Gateway, name: &str) -> Result<Value, Failure> {
    if name == "-" {
        let hash = KeyHash::of(&from_stdin()?).hex();
        let (found, _) = read(gateway, &[("key_hash", &hash)], 1).await?;
        return found
            .into_iter()
            .next()
            .ok_or_else(|| Failure::failed("the key that came on stdin is not known to the gateway"));
    }
    if name.starts_with("sk-") {
        return Err(Failure::usage(
            "a key does not belong on a command line, where others can read it: name it by its alias, or give - and \
             the key on stdin",
        ));
    }
    let (mut found, _) = read(gateway, &[("key_alias", name)], 1).await?;
    found.retain(|row| row.get("key_alias").and_then(Value::as_str) == Some(name));
    let digits = name.to_ascii_lowercase();
    let is_hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
    if is_hex && digits.len() == HASH_DIGITS {
        found.extend(read(gateway, &[("key_hash", &digits)], 1).await?.0);
    } else if found.is_empty() && is_hex && (LEAST_DIGITS..HASH_DIGITS).contains(&digits.len()) {
        let keys = all(gateway, &Filter::default()).await?;
        found.extend(
            keys.into_iter()
                .filter(|row| hash(row).is_ok_and(|h| h.starts_with(&digits))),
        );
    }
    found.dedup();
    let shown = clean(name);
    match (found.pop(), found.len()) {
        (Some(row), 0) => Ok(row),
        (Some(_), more) => Err(Failure::failed(format!(
            "{} keys are meant by {shown}; give more of the hash (tollkeeper key list --json)",
            more + 1
        ))),
        (None, _) => Err(Failure::failed(format!(
            "no key is named \"{shown}\", and no hash starts with it; see `tollkeeper key list`"
        ))),
    }
}

/// A row's hash.
pub fn hash(row: &Value) -> Result<&str, Failure> {
    row.get("token")
        .and_then(Value::as_str)
        .ok_or_else(|| Failure::failed("the gateway's row of this key holds no hash"))
}
