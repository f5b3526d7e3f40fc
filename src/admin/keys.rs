//! Virtual keys: made, changed, blocked, deleted.

use super::ask::hash_of;
use super::error::{Result, missing, not_found, taken, wrong_value};
use super::fields::{Field, Fields, Kind};
use super::rights::Actor;
use super::routes::{Route, Who};
use super::shapes::{self, DEFAULT_USER};
use super::{Desk, duration, terms};
use crate::store::{StoreError, Taken};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing::on;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use filters::contract::Fault;
use filters::model::key::{Key, KeyHash, key_name};
use filters::model::money::Nanos;
use rand::TryRng;
use rand::rngs::SysRng;
use serde_json::{Value, json};
use std::sync::Arc;

pub const ROUTES: &[Route] = &[
    Route {
        group: "keys",
        who: Who::Admin,
        summary: "Make a virtual key",
        body: &[MADE, PLAIN, terms::TERMS],
        answer: "KeyMade",
        ..Route::post(&["/key/generate"], |m| on(m, generate))
    },
    Route {
        group: "keys",
        who: Who::Admin,
        summary: "Change a virtual key",
        body: &[NAMED, PLAIN, terms::TERMS],
        answer: "Key",
        ..Route::post(&["/key/update"], |m| on(m, update))
    },
    Route {
        group: "keys",
        who: Who::Admin,
        summary: "Delete virtual keys",
        body: &[&[
            Field::new("keys", Kind::Texts, "Keys (sk-...) or their hashes"),
            Field::new("key_aliases", Kind::Texts, "Aliases of keys"),
        ]],
        answer: "KeysDeleted",
        ..Route::post(&["/key/delete"], |m| on(m, delete))
    },
    Route {
        group: "keys",
        who: Who::Admin,
        summary: "Refuse a key until it is unblocked",
        body: &[NAMED],
        answer: "Key",
        ..Route::post(&["/key/block"], |m| on(m, block))
    },
    Route {
        group: "keys",
        who: Who::Admin,
        summary: "Take a blocked key again",
        body: &[NAMED],
        answer: "Key",
        ..Route::post(&["/key/unblock"], |m| on(m, unblock))
    },
];

pub const NAMED: &[Field] = &[Field::required("key", Kind::Key, "The key (sk-...) or its hash")];

const MADE: &[Field] = &[
    Field::new(
        "key",
        Kind::Text,
        "A key of one's own: sk- and 16 characters or more",
    ),
    Field::new("spend", Kind::Money, "Dollars it has spent already"),
];

/// Fields that a key has a place of its own for; see [`terms`] for the others.
pub const PLAIN: &[Field] = &[
    Field::new("key_alias", Kind::Id, "A name of its own; each key another one"),
    Field::new(
        "duration",
        Kind::Period,
        "How long it lives from now on; none = for ever",
    ),
    Field::new("user_id", Kind::Id, "Whose key it is"),
    Field::new("team_id", Kind::Id, "The team that it is used for"),
    Field::new("models", Kind::List, "Models it may call; none = all"),
    Field::new("aliases", Kind::Names, "Its own names for models"),
    Field::new(
        "max_budget",
        Kind::Money,
        "Dollars it may spend, in all or per budget_duration",
    ),
    Field::new("metadata", Kind::Object, "Whatever one likes"),
    Field::new("blocked", Kind::Flag, "Refused until unblocked"),
    Field::new(
        "send_invite_email",
        Kind::Flag,
        "Kept for LiteLLM's scripts; nothing is sent",
    ),
];

/// Random bytes of a made key.
const KEY_BYTES: usize = 16;
/// A key of one's own choice: shorter ones can be guessed, longer ones are no header.
const OWN_KEY_CHARS: std::ops::RangeInclusive<usize> = 16..=1024;
/// Most keys and aliases that one call deletes.
const MOST_DELETED: usize = 1000;

/// Runs a change to its end even when the client leaves meanwhile: a write that was begun is done by
/// the store in any case, and then the key must be forgotten too.
async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(change).await {
        Ok(done) => done,
        Err(e) => Err(Fault::internal(e).into()),
    }
}

impl Desk {
    /// Every instance of a key that others remember is old now. Called whatever the store answered:
    /// a write that was given up may still be done.
    fn changed(&self, hash: &KeyHash) {
        self.keys.forget(hash);
    }

    async fn save(&self, key: &Key) -> Result<()> {
        let saved = self.store.update_key(key).await;
        self.changed(&key.hash);
        match saved {
            Ok(true) => Ok(()),
            Ok(false) => Err(no_such_key()),
            Err(e) => Err(refused(e, key)),
        }
    }
}

fn no_such_key() -> super::Stopped {
    not_found(
        "key",
        "Key not found. It was never issued here, or it was deleted.",
    )
    .into()
}

fn refused(e: StoreError, key: &Key) -> super::Stopped {
    match (&e, &key.key_alias) {
        (
            StoreError::Conflict {
                what: Taken::KeyAlias,
            },
            Some(alias),
        ) => taken(
            "key_alias",
            format!(
                "Key with alias '{alias}' already exists. Unique key aliases across all keys are required."
            ),
        )
        .into(),
        _ => e.into(),
    }
}

/// `POST /key/generate`.
pub async fn generate(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let fields = Fields::read(body).await?;
    let secret = match fields.text("key")? {
        Some(own) => own_key(own)?.to_string(),
        None => new_key()?,
    };
    let hash = KeyHash::of(&secret);
    if Some(hash) == actor.caller.key_hash() {
        return Err(taken("key", "This is the master key. Choose another one.").into());
    }
    let now = desk.clock.now_micros();
    let mut key = Key {
        hash,
        key_name: key_name(&secret),
        key_alias: None,
        user_id: None,
        team_id: None,
        models: Vec::new(),
        aliases: Default::default(),
        spend_nanos: fields.amount("spend")?.unwrap_or_default().0,
        max_budget_nanos: None,
        expires_micros: None,
        blocked: false,
        metadata: Default::default(),
        extra: Default::default(),
        created_at_micros: now,
        created_by: Some(DEFAULT_USER.into()),
        updated_at_micros: now,
    };
    apply(&fields, &mut key)?;
    if let Some(text) = fields.text("duration")? {
        key.expires_micros = Some(expiry(now, text)?);
    }
    to_the_end(async move {
        let inserted = desk.store.insert_key(&key).await;
        // Also when it is new: that nobody has this key may be remembered.
        desk.changed(&hash);
        inserted.map_err(|e| refused(e, &key))?;
        log::info!("event=key_made key={} hash={}", key.key_name, key.hash);
        Ok(Json(shapes::generated(&key, &secret)))
    })
    .await
}

fn own_key(text: &str) -> Result<&str> {
    let fits = text.starts_with("sk-")
        && OWN_KEY_CHARS.contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic());
    if fits {
        return Ok(text);
    }
    Err(wrong_value(
        "key",
        format!(
            "A key of your own must start with 'sk-' and have {} to {} printable ASCII characters: a short one \
             can be guessed. Leave `key` out to have one made.",
            OWN_KEY_CHARS.start(),
            OWN_KEY_CHARS.end()
        ),
    )
    .into())
}

fn new_key() -> Result<String> {
    let mut bytes = [0u8; KEY_BYTES];
    SysRng.try_fill_bytes(&mut bytes).map_err(Fault::internal)?;
    Ok(format!("sk-{}", URL_SAFE_NO_PAD.encode(bytes)))
}

fn expiry(now_micros: i64, text: &str) -> Result<i64> {
    duration::after(now_micros, text)
        .map_err(|e| wrong_value("duration", format!("Invalid duration format: 'duration' {e}.")).into())
}

/// Takes over what the body says; null unsets.
fn apply(fields: &Fields, key: &mut Key) -> Result<()> {
    if fields.has("key_alias") {
        key.key_alias = fields.id("key_alias")?;
    }
    if fields.has("user_id") {
        key.user_id = fields.id("user_id")?;
    }
    if fields.has("team_id") {
        key.team_id = fields.id("team_id")?;
    }
    if fields.has("models") {
        key.models = fields.texts("models")?;
    }
    if fields.has("aliases") {
        key.aliases = fields.names("aliases")?;
    }
    if fields.has("max_budget") {
        key.max_budget_nanos = fields.amount("max_budget")?.map(|Nanos(n)| n);
    }
    if fields.has("metadata") {
        key.metadata = fields.object("metadata")?;
    }
    if fields.has("blocked") {
        key.blocked = fields.flag("blocked")?.unwrap_or(false);
    }
    terms::keep(fields, key)
}

/// `POST /key/update`: what is named changes, null unsets, the rest stays. `duration` counts from now;
/// `"-1"` is never, and null leaves the expiry alone, as in LiteLLM: a form's empty field must not make
/// a key live for ever.
pub async fn update(_: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let fields = Fields::read(body).await?;
    let hash = hash_of(fields.required("key")?).ok_or_else(no_such_key)?;
    if fields.has("spend") {
        let message =
            "Spend is the sum of the ledger and cannot be set. Raise 'max_budget', or make a new key.";
        return Err(wrong_value("spend", message).into());
    }
    change(desk, hash, move |key, now| {
        apply(&fields, key)?;
        match fields.text("duration")? {
            None => {}
            Some("-1") => key.expires_micros = None,
            Some(text) => key.expires_micros = Some(expiry(now, text)?),
        }
        Ok(())
    })
    .await
}

/// `POST /key/block`: refused from now on, and kept.
pub async fn block(_: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    set_blocked(desk, body, true).await
}

/// `POST /key/unblock`.
pub async fn unblock(_: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    set_blocked(desk, body, false).await
}

async fn set_blocked(desk: Arc<Desk>, body: Body, blocked: bool) -> Result<Json<Value>> {
    let fields = Fields::read(body).await?;
    let hash = hash_of(fields.required("key")?).ok_or_else(no_such_key)?;
    change(desk, hash, move |key, _| {
        key.blocked = blocked;
        Ok(())
    })
    .await
}

/// Reads a key, changes it and writes it back, one change at a time.
async fn change(
    desk: Arc<Desk>,
    hash: KeyHash,
    apply: impl FnOnce(&mut Key, i64) -> Result<()> + Send + 'static,
) -> Result<Json<Value>> {
    to_the_end(async move {
        let _changing = desk.changing.lock().await;
        let mut key = desk.store.key_by_hash(&hash).await?.ok_or_else(no_such_key)?;
        let now = desk.clock.now_micros();
        apply(&mut key, now)?;
        key.updated_at_micros = now;
        desk.save(&key).await?;
        log::info!(
            "event=key_changed key={} hash={} blocked={}",
            key.key_name,
            key.hash,
            key.blocked
        );
        Ok(Json(row_of_change(&key)))
    })
    .await
}

fn row_of_change(key: &Key) -> Value {
    let mut row = shapes::key_with_token(key);
    if let Value::Object(row) = &mut row {
        row.insert("key".into(), json!(key.hash));
    }
    row
}

/// `POST /key/delete`: keys as `sk-…`, as hashes, by alias. Those that were not there are listed apart.
pub async fn delete(_: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let fields = Fields::read(body).await?;
    let (keys, aliases) = (fields.texts("keys")?, fields.texts("key_aliases")?);
    if keys.is_empty() && aliases.is_empty() {
        let message = "Name what to delete: 'keys' (sk-... or hashes) or 'key_aliases', as lists.";
        return Err(missing("keys", message).into());
    }
    if keys.len() + aliases.len() > MOST_DELETED {
        let message = format!("At most {MOST_DELETED} keys are deleted in one call.");
        return Err(wrong_value("keys", message).into());
    }
    to_the_end(async move { delete_named(&desk, keys, aliases).await.map(Json) }).await
}

async fn delete_named(desk: &Desk, keys: Vec<String>, aliases: Vec<String>) -> Result<Value> {
    let _changing = desk.changing.lock().await;
    let by_alias = if aliases.is_empty() {
        Vec::new()
    } else {
        desk.store.keys_by_alias(&aliases).await?
    };
    let hash_of_alias = |alias: &String| {
        by_alias
            .iter()
            .find(|k| k.key_alias.as_ref() == Some(alias))
            .map(|k| k.hash)
    };
    let named: Vec<(&String, Option<KeyHash>)> = keys
        .iter()
        .map(|text| (text, hash_of(text)))
        .chain(aliases.iter().map(|alias| (alias, hash_of_alias(alias))))
        .collect();
    let mut hashes: Vec<KeyHash> = named.iter().filter_map(|(_, hash)| *hash).collect();
    hashes.sort_unstable();
    hashes.dedup();
    let deleted = desk.store.delete_keys(&hashes).await;
    hashes.iter().for_each(|hash| desk.changed(hash));
    let gone = deleted?;
    if gone.is_empty() {
        return Err(not_found(
            "keys",
            "No keys found: none of them was issued here, or they are deleted.",
        )
        .into());
    }
    for hash in &gone {
        log::info!("event=key_deleted hash={hash}");
    }
    let (there, not_there): (Vec<_>, Vec<_>) = named
        .into_iter()
        .partition(|(_, hash)| hash.is_some_and(|h| gone.contains(&h)));
    let given = |list: Vec<(&String, Option<KeyHash>)>| -> Vec<String> {
        list.into_iter().map(|(text, _)| text.clone()).collect()
    };
    let mut body = json!({"deleted_keys": given(there)});
    if !not_there.is_empty()
        && let Value::Object(body) = &mut body
    {
        body.insert("not_found".into(), json!(given(not_there)));
    }
    Ok(body)
}
