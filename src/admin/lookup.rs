//! Virtual keys shown: one, or a list. A virtual key sees itself and its user's other keys.

use super::Desk;
use super::ask::{Asking, Master, Params};
use super::error::{Result, forbidden, not_found};
use super::shapes::{self, DEFAULT_USER};
use crate::store::{KeyFilter, KeyPage, Page};
use axum::Json;
use axum::extract::State;
use filters::contract::Fault;
use filters::model::key::{Caller, Key, KeyHash};
use filters::model::money::Nanos;
use serde_json::{Value, json};
use std::sync::Arc;

/// `GET /key/info`: the caller's own key, or `?key=` as `sk-…` or hash.
pub async fn info(
    Asking(caller): Asking,
    State(desk): State<Arc<Desk>>,
    params: Params,
) -> Result<Json<Value>> {
    let asked = params.key("key")?;
    let own = caller.key_hash();
    let hash = asked
        .or(own)
        .ok_or_else(|| Fault::internal("a caller without a key asked for its key"))?;
    if let Caller::Master { hash: master } = &caller
        && hash == *master
    {
        return Ok(Json(master_info(&desk, hash).await?));
    }
    // From the store and not from the caller: spend has moved since it was let in.
    let found = desk.store.key_by_hash(&hash).await?;
    let key = found.ok_or_else(|| not_found("key", "Key not found in database"))?;
    if !sees(&caller, &key) {
        return Err(forbidden(
            "You are not allowed to access this key's info. Ask for your own, without 'key', or use the master key.",
        )
        .into());
    }
    Ok(Json(shapes::key_info(&key)))
}

/// A virtual key sees itself and the keys of its own user.
fn sees(caller: &Caller, key: &Key) -> bool {
    match caller {
        Caller::Master { .. } => true,
        Caller::Key(own) => own.hash == key.hash || (own.user_id.is_some() && own.user_id == key.user_id),
        Caller::Anonymous => false,
    }
}

/// The master key is no row of the store: it may do everything and has no budget. Its spend is that of
/// the user whom LiteLLM books it to.
async fn master_info(desk: &Desk, hash: KeyHash) -> Result<Value> {
    let spend = super::users::spend(desk, DEFAULT_USER).await?;
    let mut body = json!({
        "key_name": "sk-...",
        "key_alias": null,
        "user_id": DEFAULT_USER,
        "user_role": "proxy_admin",
        "team_id": null,
        "models": [],
        "aliases": {},
        "metadata": {},
        "spend": Nanos(spend),
        "max_budget": null,
        "expires": null,
        "blocked": false,
    });
    let info = body.clone();
    if let Value::Object(body) = &mut body {
        body.insert("info".into(), info);
        body.insert("key".into(), json!(hash));
    }
    Ok(body)
}

/// `GET /key/list`: hashes, or rows with `return_full_object=true`, newest first.
pub async fn list(_: Master, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let slice = params.page(&["size", "page_size"], 10, 100)?;
    let full = params.flag("return_full_object")?.unwrap_or(false);
    let filter = KeyFilter {
        user_id: params.owned("user_id")?,
        team_id: params.owned("team_id")?,
        key_alias: params.owned("key_alias")?,
        ..KeyFilter::default()
    };
    let found = match params.key("key_hash")? {
        Some(hash) => one(&desk, &hash, &filter).await?,
        None => {
            let page = Page {
                limit: slice.size as u32,
                offset: slice.offset,
            };
            desk.store.list_keys(&filter, page).await?
        }
    };
    let keys: Vec<Value> = found
        .keys
        .iter()
        .map(|k| {
            if full {
                shapes::key_with_token(k)
            } else {
                json!(k.hash)
            }
        })
        .collect();
    Ok(Json(json!({
        "keys": keys,
        "total_count": found.total,
        "current_page": slice.page,
        "total_pages": found.total.div_ceil(slice.size),
    })))
}

async fn one(desk: &Desk, hash: &KeyHash, filter: &KeyFilter) -> Result<KeyPage> {
    let fits = |asked: &Option<String>, has: &Option<String>| asked.is_none() || asked == has;
    let key = desk.store.key_by_hash(hash).await?.filter(|k| {
        fits(&filter.user_id, &k.user_id)
            && fits(&filter.team_id, &k.team_id)
            && fits(&filter.key_alias, &k.key_alias)
    });
    Ok(KeyPage {
        total: u64::from(key.is_some()),
        keys: key.into_iter().collect(),
    })
}
