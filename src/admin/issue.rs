//! Virtual keys are made: by whom, from what, and with which secret. What the config says of new keys is in
//! [`policy`], what others than admins may write in [`bounds`].
//!
//! [`policy`]: super::policy
//! [`bounds`]: super::bounds

use super::audit::Entry;
use super::error::{Result, forbidden, not_found, taken, wrong_value};
use super::fields::{Field, Fields, Kind};
use super::keys::{PLAIN, apply, author, expiry, lend, refused, told};
use super::rights::{Actor, role_among};
use super::routes::{Route, Who};
use super::{Desk, settle, shapes, terms};
use crate::store::{Change, Table};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing::on;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use filters::contract::Fault;
use filters::model::key::{Key, KeyHash, key_name};
use rand::TryRng;
use rand::rngs::SysRng;
use serde_json::{Map, Value};
use std::sync::Arc;

pub const ROUTES: &[Route] = &[
    Route {
        group: "keys",
        who: Who::Maker,
        summary: "Make a virtual key",
        body: &[MADE, PLAIN, terms::TERMS],
        answer: "KeyMade",
        ..Route::post(&["/key/generate"], |m| on(m, generate))
    },
    Route {
        group: "keys",
        who: Who::Maker,
        summary: "Make a key of a team that is nobody's own",
        body: &[MADE, PLAIN, terms::TERMS],
        answer: "KeyMade",
        ..Route::post(&["/key/service-account/generate"], |m| on(m, service_account))
    },
];

const MADE: &[Field] = &[
    Field::new(
        "key",
        Kind::Text,
        "A key of one's own: sk- and 16 characters or more",
    ),
    Field::new("spend", Kind::Money, "Dollars it has spent already"),
];

/// Random bytes of a made key.
const KEY_BYTES: usize = 16;
/// A key of one's own choice: shorter ones can be guessed, longer ones are no header.
const OWN_KEY_CHARS: std::ops::RangeInclusive<usize> = 16..=1024;
/// `POST /key/generate`.
async fn generate(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let fields = Fields::read(body).await?;
    make(desk, actor, fields).await
}

/// `POST /key/service-account/generate`: for what is no person, so that it outlives whoever made it.
async fn service_account(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let mut fields = Fields::read(body).await?;
    let Some(team) = fields.id("team_id")? else {
        let message =
            "team_id is required for service account keys. Please specify `team_id` in the request body.";
        return Err(wrong_value("team_id", message).into());
    };
    if fields.id("user_id")?.is_some() {
        let message = "A service account has no user. Leave 'user_id' out, or use /key/generate.";
        return Err(wrong_value("user_id", message).into());
    }
    if desk.store.document(Table::Team, &team).await?.is_none() {
        return Err(not_found("team_id", "There is no such team.").into());
    }
    fields.set("user_id", Value::Null);
    make(desk, actor, fields).await
}

/// A new key, as `/key/generate` and `/user/new` make it.
pub async fn make(desk: Arc<Desk>, actor: Actor, fields: Fields) -> Result<Json<Value>> {
    settle(move || {
        let (desk, actor, fields) = (Arc::clone(&desk), actor.clone(), fields.clone());
        async move { insert(&desk, &actor, fields).await.map(Json) }
    })
    .await
}

async fn insert(desk: &Desk, actor: &Actor, mut fields: Fields) -> Result<Value> {
    let now = desk.clock.now_micros();
    fields.lift(&Map::new());
    desk.bound_new(actor, &mut fields).await?;
    let secret = new_secret(desk, actor, fields.text("key")?)?;
    let secret = secret.as_str();
    let policy = (desk.policy)();
    policy.check_maker(actor, desk.role_in(actor, &fields).await?.as_deref(), &fields)?;
    policy.fill(&mut fields);
    policy.cut(&mut fields, now, true)?;
    let mut key = Key {
        hash: KeyHash::of(secret),
        key_name: key_name(secret),
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
        created_by: author(actor),
        updated_at_micros: now,
    };
    apply(&fields, &mut key, now)?;
    if let Some(text) = fields.text("duration")? {
        key.expires_micros = Some(expiry(now, text)?);
    }
    if !actor.is_user(key.user_id.as_deref()) {
        lend(&mut key, actor);
    }
    desk.check_names(&key, None).await?;
    let entry = Entry::created("key", key.hash.hex(), told(&key, now));
    desk.write(actor, &[Change::InsertKey(&key)], vec![entry])
        .await
        .map_err(|e| refused(e, &key))?;
    still_there(desk, actor, &key).await?;
    Ok(shapes::generated(&key, secret, desk.key_row(&key).await))
}

/// A team or a user that was deleted meanwhile has taken its keys with it, and not this one: it goes too. Whoever
/// deletes takes the row first and then the keys, so one of both sees the other.
async fn still_there(desk: &Desk, actor: &Actor, key: &Key) -> Result<()> {
    if actor.is_admin() {
        return Ok(());
    }
    let own_user = key.user_id.as_ref().filter(|u| actor.is_user(Some(u)));
    for (table, id, field) in [
        (Table::Team, key.team_id.as_ref(), "team_id"),
        (Table::User, own_user.filter(|_| key.team_id.is_none()), "user_id"),
    ] {
        let Some(id) = id else { continue };
        if desk.store.document(table, id).await?.is_none() {
            let entry = Entry::deleted("key", key.hash.hex(), told(key, desk.clock.now_micros()));
            desk.write(actor, &[Change::DeleteKeys(&[key.hash])], vec![entry])
                .await?;
            let message = format!("The {} of this key was deleted just now.", table.as_str());
            return Err(not_found(field, message).into());
        }
    }
    Ok(())
}

/// A secret for a new key: the one that is asked for, or a drawn one.
pub fn new_secret(desk: &Desk, actor: &Actor, own: Option<&str>) -> Result<String> {
    if actor.holder().is_some_and(|k| k.by_old_secret) {
        let message = "This secret was rotated and works for calls until its grace is over. Use the new one to \
                       make or rotate keys.";
        return Err(forbidden(message).into());
    }
    let secret = match own {
        Some(own) => own_key(own)?.to_string(),
        None => drawn()?,
    };
    let hash = KeyHash::of(&secret);
    let master = actor.caller.key_hash() == Some(hash) || (desk.is_master)(&hash);
    if master && actor.is_admin() {
        return Err(taken("key", "This is the master key. Choose another one.").into());
    }
    if master {
        // The words for a key that exists: nobody else learns from here what the master key is.
        return Err(taken(
            "key",
            "This key is in use already. Leave `key` out to have a new one made.",
        )
        .into());
    }
    Ok(secret)
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

fn drawn() -> Result<String> {
    let mut bytes = [0u8; KEY_BYTES];
    SysRng.try_fill_bytes(&mut bytes).map_err(Fault::internal)?;
    Ok(format!("sk-{}", URL_SAFE_NO_PAD.encode(bytes)))
}

impl Desk {
    /// The actor's role in the team that a key is for.
    async fn role_in(&self, actor: &Actor, fields: &Fields) -> Result<Option<String>> {
        let (Some(team), Some(user)) = (fields.id("team_id")?, actor.user_id()) else {
            return Ok(None);
        };
        let team = self.store.document(Table::Team, &team).await?;
        Ok(team.and_then(|t| role_among(&t.fields, user).map(str::to_string)))
    }
}
