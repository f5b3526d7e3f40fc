//! Virtual keys: changed, blocked, deleted; their fields. How they are made is in [`issue`], what others
//! than admins may write in [`bounds`].
//!
//! [`issue`]: super::issue
//! [`bounds`]: super::bounds

use super::ask::hash_of;
use super::audit::Entry;
use super::error::{Result, Stopped, missing, not_found, taken, wrong_value};
use super::fields::{Field, Fields, Kind};
use super::rights::Actor;
use super::routes::{Route, Who};
use super::shapes;
use super::{Desk, callbacks, duration, settle, terms};
use crate::store::{Change, KeyFilter, MAX_ROWS, Page, StoreError, Table, Taken};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing::on;
use filters::contract::Refusal;
use filters::model::key::{Key, KeyHash};
use filters::model::money::Nanos;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;

pub const ROUTES: &[Route] = &[
    Route {
        group: "keys",
        who: Who::Maker,
        summary: "Change a virtual key",
        body: &[NAMED, PLAIN, terms::TERMS, RAISED],
        answer: "Key",
        ..Route::post(&["/key/update"], |m| on(m, update))
    },
    Route {
        group: "keys",
        who: Who::Admin,
        summary: "Change several keys",
        body: &[&[Field::required(
            "keys",
            Kind::Objects,
            "What /key/update takes, once per key",
        )]],
        answer: "KeysUpdated",
        ..Route::post(&["/key/bulk_update"], |m| on(m, update_many))
    },
    Route {
        group: "keys",
        who: Who::Maker,
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
        who: Who::Maker,
        summary: "Refuse a key until it is unblocked",
        body: &[NAMED],
        answer: "Key",
        ..Route::post(&["/key/block"], |m| on(m, block))
    },
    Route {
        group: "keys",
        who: Who::Maker,
        summary: "Take a blocked key again",
        body: &[NAMED],
        answer: "Key",
        ..Route::post(&["/key/unblock"], |m| on(m, unblock))
    },
];

pub const NAMED: &[Field] = &[Field::required("key", Kind::Key, "The key (sk-...) or its hash")];

/// A budget that is raised for a while; both or none.
const RAISED: &[Field] = &[
    Field::new(
        "temp_budget_increase",
        Kind::Money,
        "Dollars that it may spend besides, for a while",
    ),
    Field::new(
        "temp_budget_expiry",
        Kind::Text,
        "How long from now on, or until when",
    ),
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

/// Most keys and aliases that one call deletes.
const MOST_DELETED: usize = 1000;
/// Most keys that one call changes.
const MOST_UPDATED: usize = 500;

pub fn no_such_key() -> Stopped {
    not_found(
        "key",
        "Key not found. It was never issued here, or it was deleted.",
    )
    .into()
}

/// What the store says of a write, in terms of the key.
pub fn refused(e: StoreError, key: &Key) -> Stopped {
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

/// What an audit row tells of a key.
pub fn told(key: &Key, now_micros: i64) -> Value {
    Value::Object(shapes::key_row(key, now_micros))
}

/// Who made or changed something, as rows show it.
pub fn author(actor: &Actor) -> Option<String> {
    actor.user_id().map(str::to_string)
}

pub fn expiry(now_micros: i64, text: &str) -> Result<i64> {
    duration::after(now_micros, text)
        .map_err(|e| wrong_value("duration", format!("Invalid duration format: 'duration' {e}.")).into())
}

/// Takes over what the body says; null unsets.
pub fn apply(fields: &Fields, key: &mut Key, now_micros: i64) -> Result<()> {
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
        let mut metadata = fields.object("metadata")?;
        callbacks::check(&metadata)?;
        callbacks::restore(&mut metadata, &key.metadata);
        key.metadata = metadata;
        // Shown among the metadata, as LiteLLM does, and not set there.
        RAISED.iter().for_each(|f| drop(key.metadata.remove(f.name)));
    }
    if fields.has("blocked") {
        key.blocked = fields.flag("blocked")?.unwrap_or(false);
    }
    terms::keep(fields, key, now_micros)
}

/// Notes that somebody who is neither the key's user nor an admin knows its secret, or gave it its user.
/// Nothing takes the note away: a secret is known for good.
pub fn lend(key: &mut Key, actor: &Actor) {
    if key.user_id.is_some() && !actor.is_admin() {
        let by = actor.user_id().unwrap_or("unknown");
        key.extra.insert("lent_by".into(), by.into());
    }
}

impl Desk {
    /// Refuses names of what is not there, where a key would be without the limits that it seems to have.
    pub async fn check_names(&self, key: &Key, before: Option<&Key>) -> Result<()> {
        let budget = key.text("budget_id");
        if let Some(id) = budget
            && before.and_then(|k| k.text("budget_id")) != budget
            && self.store.document(Table::Budget, id).await?.is_none()
        {
            return Err(wrong_value(
                "budget_id",
                "There is no budget of this id. Make it with /budget/new.",
            )
            .into());
        }
        let organization = key.text("organization_id");
        if let Some(id) = organization
            && before.and_then(|k| k.text("organization_id")) != organization
            && self.store.document(Table::Organization, id).await?.is_none()
        {
            let message = "There is no organization of this id. Make it with /organization/new.";
            return Err(wrong_value("organization_id", message).into());
        }
        Ok(())
    }
}

/// `POST /key/update`: what is named changes, null unsets, the rest stays. `duration` counts from now;
/// `"-1"` is never, and null leaves the expiry alone, as in LiteLLM: a form's empty field must not make
/// a key live for ever.
async fn update(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let fields = Fields::read(body).await?;
    update_one(desk, actor, fields).await.map(Json)
}

async fn update_one(desk: Arc<Desk>, actor: Actor, fields: Fields) -> Result<Value> {
    let hash = hash_of(fields.required("key")?).ok_or_else(no_such_key)?;
    if fields.has("spend") && actor.is_admin() {
        let message =
            "Spend is the sum of the ledger and cannot be set. Raise 'max_budget', or make a new key.";
        return Err(wrong_value("spend", message).into());
    }
    change(desk, actor, hash, "updated", move |desk, actor, key, now| {
        let mut fields = fields.clone();
        Box::pin(async move {
            fields.lift(&key.metadata);
            desk.bound_change(actor, &fields, key).await?;
            let before = key.clone();
            (desk.policy)().cut(&mut fields, now, false)?;
            alter(&fields, key, now)?;
            desk.check_names(key, Some(&before)).await
        })
    })
    .await
}

/// Everything that an update may change.
pub fn alter(fields: &Fields, key: &mut Key, now: i64) -> Result<()> {
    apply(fields, key, now)?;
    match fields.text("duration")? {
        None => {}
        Some("-1") => key.expires_micros = None,
        Some(text) => key.expires_micros = Some(expiry(now, text)?),
    }
    raise(fields, key, now)
}

/// A budget that is raised for a while; see [`KeyCache`](crate::shared::keys::KeyCache).
fn raise(fields: &Fields, key: &mut Key, now: i64) -> Result<()> {
    let (more, until) = (
        fields.amount("temp_budget_increase")?,
        fields.text("temp_budget_expiry")?,
    );
    match (more, until) {
        (None, None) => {
            if RAISED.iter().any(|f| fields.has(f.name)) {
                key.extra.remove("temp_budget_nanos");
                key.extra.remove("temp_budget_until_micros");
            }
            Ok(())
        }
        (Some(Nanos(more)), Some(until)) => {
            let wrong = |e| {
                wrong_value(
                    "temp_budget_expiry",
                    format!("'temp_budget_expiry' {e}, or a moment."),
                )
            };
            let until = match duration::after(now, until) {
                Ok(at) => at,
                Err(e) => until.parse::<Timestamp>().map_err(|_| wrong(e))?.as_microsecond(),
            };
            key.extra.insert("temp_budget_nanos".into(), json!(more));
            key.extra.insert("temp_budget_until_micros".into(), json!(until));
            Ok(())
        }
        (None, _) => {
            let message = "Give 'temp_budget_increase' with 'temp_budget_expiry'.";
            Err(missing("temp_budget_increase", message).into())
        }
        (_, None) => {
            let message = "Give 'temp_budget_expiry' with 'temp_budget_increase'.";
            Err(missing("temp_budget_expiry", message).into())
        }
    }
}

/// `POST /key/bulk_update`: each on its own; what failed is listed.
async fn update_many(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let fields = Fields::read(body).await?;
    let Some(Value::Array(list)) = fields.value("keys") else {
        return Err(missing(
            "keys",
            "Name what to change: 'keys', a list of objects with a 'key' each.",
        )
        .into());
    };
    if list.is_empty() || list.len() > MOST_UPDATED {
        let message = format!("'keys' must have 1 to {MOST_UPDATED} entries.");
        return Err(wrong_value("keys", message).into());
    }
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for entry in list {
        let Value::Object(map) = entry else {
            return Err(super::error::wrong_type("keys", "a list of objects").into());
        };
        let name = map.get("key").and_then(Value::as_str).map(shown_key);
        match update_one(Arc::clone(&desk), actor.clone(), Fields::of(map.clone())).await {
            Ok(row) => done.push(json!({"key": row["key"], "key_info": row})),
            Err(e) if e.0.status() >= 500 => return Err(e),
            Err(e) => failed.push(json!({"key": name, "key_info": null, "failed_reason": e.0.shown()})),
        }
    }
    Ok(Json(json!({
        "total_requested": list.len(),
        "successful_updates": done,
        "failed_updates": failed,
    })))
}

/// A key as an answer may repeat it: its hash.
fn shown_key(text: &str) -> String {
    hash_of(text).map_or_else(|| text.chars().take(96).collect(), |hash| hash.hex())
}

/// `POST /key/block`: refused from now on, and kept.
async fn block(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    set_blocked(desk, actor, body, true).await
}

/// `POST /key/unblock`.
async fn unblock(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    set_blocked(desk, actor, body, false).await
}

/// An owner may stop a key; only whoever leads its team, and an admin, may let it go on: it may be them
/// who stopped it. And members, where the team says so.
async fn set_blocked(desk: Arc<Desk>, actor: Actor, body: Body, blocked: bool) -> Result<Json<Value>> {
    let fields = Fields::read(body).await?;
    let hash = hash_of(fields.required("key")?).ok_or_else(no_such_key)?;
    let action = if blocked { "blocked" } else { "unblocked" };
    change(desk, actor, hash, action, move |desk, actor, key, _| {
        Box::pin(async move {
            if !desk.may_change(actor, key).await? && !blocked {
                let shared = match &key.team_id {
                    Some(team) => desk.shares_keys(actor, team).await?,
                    None => false,
                };
                if !shared {
                    return Err(actor.not_admin());
                }
            }
            key.blocked = blocked;
            Ok(())
        })
    })
    .await
    .map(Json)
}

type Altered<'a> = std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// Reads a key, changes it and writes it back, again if somebody else was quicker.
async fn change<F>(
    desk: Arc<Desk>,
    actor: Actor,
    hash: KeyHash,
    action: &'static str,
    alter: F,
) -> Result<Value>
where
    F: for<'a> Fn(&'a Desk, &'a Actor, &'a mut Key, i64) -> Altered<'a> + Send + Sync + 'static,
{
    let alter = Arc::new(alter);
    settle(move || {
        let (desk, actor, alter) = (Arc::clone(&desk), actor.clone(), Arc::clone(&alter));
        async move {
            let before = desk.store.key_by_hash(&hash).await?.ok_or_else(no_such_key)?;
            if before.text("rotated_to").is_some() {
                return Err(rotated());
            }
            let now = desk.clock.now_micros();
            let mut key = before.clone();
            alter(&desk, &actor, &mut key, now).await?;
            if key.user_id != before.user_id {
                lend(&mut key, &actor);
            }
            touch(&mut key, &before, &actor, now);
            let change = Change::UpdateKey {
                key: &key,
                read_at_micros: before.updated_at_micros,
            };
            let entry = Entry::changed(action, "key", hash.hex(), told(&before, now), told(&key, now));
            desk.write(&actor, &[change], vec![entry])
                .await
                .map_err(|e| refused(e, &key))?;
            let mut row = desk.key_row(&key).await;
            row.insert("token".into(), json!(key.hash));
            row.insert("key".into(), json!(key.hash));
            Ok(Value::Object(row))
        }
    })
    .await
}

/// Notes when and by whom a key was changed. The time is also the key's version: it never stands still.
pub fn touch(key: &mut Key, before: &Key, actor: &Actor, now: i64) {
    key.updated_at_micros = now.max(before.updated_at_micros.saturating_add(1));
    if let Some(by) = author(actor) {
        key.extra.insert("updated_by".into(), by.into());
    }
}

/// What was rotated stays as it is until its grace is over.
pub fn rotated() -> Stopped {
    Refusal::new(
        409,
        "bad_request_error",
        "This key was rotated. Change the one that took its place, or delete this one to end its grace now.",
    )
    .param("key")
    .into()
}

/// `POST /key/delete`: keys as `sk-…`, as hashes, by alias. Those that were not there are listed apart.
async fn delete(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
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
    settle(move || {
        let (desk, actor, keys, aliases) = (Arc::clone(&desk), actor.clone(), keys.clone(), aliases.clone());
        async move { delete_named(&desk, &actor, keys, aliases).await.map(Json) }
    })
    .await
}

async fn delete_named(desk: &Desk, actor: &Actor, keys: Vec<String>, aliases: Vec<String>) -> Result<Value> {
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
    let found = desk.keys_of(&hashes).await?;
    if found.is_empty() {
        return Err(not_found(
            "keys",
            "No keys found: none of them was issued here, or they are deleted.",
        )
        .into());
    }
    for key in &found {
        desk.may_change(actor, key).await?;
    }
    let now = desk.clock.now_micros();
    let gone: Vec<KeyHash> = found.iter().map(|k| k.hash).collect();
    let entries = found
        .iter()
        .map(|k| Entry::deleted("key", k.hash.hex(), told(k, now)))
        .collect();
    desk.write(actor, &[Change::DeleteKeys(&gone)], entries).await?;
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

impl Desk {
    /// Those of these keys that are there.
    pub async fn keys_of(&self, hashes: &[KeyHash]) -> Result<Vec<Key>> {
        let filter = KeyFilter {
            hashes: Some(hashes.to_vec()),
            ..KeyFilter::default()
        };
        let page = Page {
            limit: MAX_ROWS,
            offset: 0,
        };
        Ok(self.store.list_keys(&filter, page).await?.keys)
    }
}
