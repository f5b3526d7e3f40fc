//! A key gets a new secret: the key itself, its limits and what it has spent go on under another hash. With
//! a grace period the old secret stands for the new key until then, so that both spend from one account;
//! see the filter `auth`. Without one the old secret is dead at once.

use super::ask::hash_of;
use super::audit::Entry;
use super::error::{Result, Stopped, forbidden, wrong_value};
use super::fields::{Field, Fields, Kind};
use super::issue::new_secret;
use super::keys::{PLAIN, alter, lend, no_such_key, refused, rotated, told, touch};
use super::rights::{Actor, Role};
use super::routes::{Route, Who};
use super::shapes::{self, iso};
use super::{Desk, duration, settle, terms};
use crate::store::{Balance, Change};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::routing::on;
use filters::contract::Refusal;
use filters::model::account::{Account, Kind as Holder};
use filters::model::key::{Key, KeyHash, key_name};
use filters::model::limits::Limits;
use serde_json::{Value, json};
use std::sync::Arc;

pub const ROUTES: &[Route] = &[
    Route {
        group: "keys",
        who: Who::Holder,
        summary: "Give a key a new secret; without a key, the one that asks",
        body: &[WHICH, NEW, PLAIN, terms::TERMS],
        answer: "KeyMade",
        ..Route::post(&["/key/regenerate"], |m| on(m, regenerate))
    },
    Route {
        group: "keys",
        who: Who::Holder,
        summary: "Give a key a new secret",
        body: &[NEW, PLAIN, terms::TERMS],
        answer: "KeyMade",
        ..Route::post(&["/key/{key}/regenerate"], |m| on(m, regenerate_named))
    },
];

const WHICH: &[Field] = &[Field::new("key", Kind::Key, "The key (sk-...) or its hash")];
const NEW: &[Field] = &[
    Field::new(
        "grace_period",
        Kind::Period,
        "How long the old secret works beside the new one; none = not at all",
    ),
    Field::new(
        "new_key",
        Kind::Text,
        "A secret of one's own: sk- and 16 characters or more",
    ),
];

/// The longest grace: half a year.
const LONGEST_GRACE: &str = "183d";

/// Fields that are about the rotation and not about the key.
const OWN_FIELDS: [&str; 3] = ["key", "new_key", "grace_period"];

async fn regenerate(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let fields = read(body).await?;
    let hash = match fields.text("key")? {
        Some(text) => hash_of(text).ok_or_else(no_such_key)?,
        None => super::rights::own_hash(&actor)?,
    };
    rotate(desk, actor, hash, fields).await
}

async fn regenerate_named(
    actor: Actor,
    State(desk): State<Arc<Desk>>,
    Path(key): Path<String>,
    body: Body,
) -> Result<Json<Value>> {
    let fields = read(body).await?;
    let hash = hash_of(&key).ok_or_else(no_such_key)?;
    if let Some(other) = fields.text("key")?
        && hash_of(other) != Some(hash)
    {
        return Err(wrong_value("key", "The path and the body name two keys. Name one.").into());
    }
    rotate(desk, actor, hash, fields).await
}

/// A body may be left out altogether.
async fn read(body: Body) -> Result<Fields> {
    Fields::read_or_none(body).await
}

async fn rotate(desk: Arc<Desk>, actor: Actor, hash: KeyHash, fields: Fields) -> Result<Json<Value>> {
    if (desk.is_master)(&hash) {
        let message = "The master key is set in the config or in LITELLM_MASTER_KEY, and changed there.";
        return Err(wrong_value("key", message).into());
    }
    let secret = new_secret(&desk, &actor, fields.text("new_key")?)?;
    settle(move || {
        let (desk, actor, fields, secret) =
            (Arc::clone(&desk), actor.clone(), fields.clone(), secret.clone());
        async move { once(&desk, &actor, &hash, &fields, &secret).await.map(Json) }
    })
    .await
}

async fn once(desk: &Desk, actor: &Actor, hash: &KeyHash, fields: &Fields, secret: &str) -> Result<Value> {
    let old = desk.store.key_by_hash(hash).await?.ok_or_else(no_such_key)?;
    let mut fields = fields.clone();
    fields.lift(&old.metadata);
    may_rotate(desk, actor, &old, &fields).await?;
    if old.text("rotated_to").is_some() {
        return Err(rotated());
    }
    let now = desk.clock.now_micros();
    let until = grace(&fields, now)?;
    let mut new = old.clone();
    (desk.policy)().cut(&mut fields, now, false)?;
    alter(&fields, &mut new, now)?;
    new.hash = KeyHash::of(secret);
    new.key_name = key_name(secret);
    let own = actor.caller.key_hash() == Some(old.hash) || actor.is_user(new.user_id.as_deref());
    if !own || new.user_id != old.user_id {
        lend(&mut new, actor);
    }
    touch(&mut new, &old, actor, now);
    let count = old
        .extra
        .get("rotation_count")
        .and_then(Value::as_u64)
        .unwrap_or(0);
    new.extra
        .insert("rotation_count".into(), json!(count.saturating_add(1)));
    new.extra.insert("last_rotation_at".into(), json!(iso(now)));

    let carried = carried(desk, &old, &new, now).await?;
    let kept = superseded(&old, &new, until.unwrap_or(now), now);
    write(desk, actor, (&old, &kept, until.is_some()), &mut new, &carried).await?;
    let mut answer = shapes::generated(&new, secret, desk.key_row(&new).await);
    if let Value::Object(answer) = &mut answer {
        answer.insert("grace_period_until".into(), json!(until.map(iso)));
    }
    Ok(answer)
}

/// A key may always rotate itself and nothing but that; whoever may change a key may also say what else
/// changes with it.
async fn may_rotate(desk: &Desk, actor: &Actor, old: &Key, fields: &Fields) -> Result<()> {
    let changes = fields
        .names_given()
        .find(|name| !OWN_FIELDS.contains(name) && is_field(name));
    let itself = actor.caller.key_hash() == Some(old.hash);
    if itself && changes.is_none() {
        return Ok(());
    }
    if itself
        && actor.role == Role::Holder
        && let Some(name) = changes
    {
        let message = format!("A key may rotate itself, and not change its '{name}' with that.");
        return Err(Refusal::new(403, "auth_error", message).param(name).into());
    }
    if actor.user_id().is_none() && !actor.is_admin() {
        return Err(others());
    }
    desk.may_change(actor, old).await?;
    // Whoever gets the secret gets what the key may do on the whole gateway.
    let permissions = old.extra.get("permissions").and_then(Value::as_object);
    if permissions.is_some_and(|p| !p.is_empty()) && !actor.is_admin() && !actor.owns_key(old) {
        return Err(actor.not_admin());
    }
    desk.bound_change(actor, fields, old).await
}

/// Whether a name is a field that a key has, or that somebody might think it has.
fn is_field(name: &str) -> bool {
    PLAIN.iter().chain(terms::TERMS).any(|f| f.name == name)
        || ["user_role", "spend", "temp_budget_increase", "temp_budget_expiry"].contains(&name)
}

fn others() -> Stopped {
    forbidden("You are not allowed to rotate this key: a key without a user may only rotate itself.").into()
}

/// When the old secret ends, if it is to work a while longer.
fn grace(fields: &Fields, now: i64) -> Result<Option<i64>> {
    let Some(text) = fields.text("grace_period")?.filter(|t| !t.is_empty()) else {
        return Ok(None);
    };
    let wrong = |e: duration::DurationError| wrong_value("grace_period", format!("'grace_period' {e}."));
    let until = duration::after(now, text).map_err(wrong)?;
    if until > duration::after(now, LONGEST_GRACE).map_err(wrong)? {
        let message = format!("'grace_period' may be {LONGEST_GRACE} at most.");
        return Err(wrong_value("grace_period", message).into());
    }
    Ok((until > now).then_some(until))
}

/// The old row for as long as its grace lasts: it holds no alias and leads to the new key.
fn superseded(old: &Key, new: &Key, until: i64, now: i64) -> Key {
    let mut key = old.clone();
    key.key_alias = None;
    key.extra.insert("rotated_to".into(), json!(new.hash));
    key.extra.insert("rotated_until_micros".into(), json!(until));
    key.updated_at_micros = now.max(old.updated_at_micros.saturating_add(1));
    key
}

/// An account of the new key, and what it opens with.
struct Carried {
    account: Account,
    nanos: i64,
    /// The budget period it goes on in.
    period: Option<(i64, i64)>,
}

/// What the old key's accounts hold, for the new key's: the key itself, and each model with a budget of its
/// own. A budget that resets goes on in its period with what was spent in that.
async fn carried(desk: &Desk, old: &Key, new: &Key, now: i64) -> Result<Vec<Carried>> {
    let models: Vec<String> = Limits::of(&old.extra).models.into_keys().collect();
    let of = |hash: &KeyHash| {
        let models = models
            .iter()
            .map(|m| Account::of_model(Holder::Key, hash.hex(), m));
        std::iter::once(Account::new(Holder::Key, hash.hex()))
            .chain(models)
            .collect::<Vec<_>>()
    };
    let accounts = of(&old.hash);
    // The spool is asked first: a row that lands in between counts twice, and never not at all.
    let on_the_way = (desk.unlanded)(&accounts.iter().collect::<Vec<_>>());
    let balances = desk.store.balances(&accounts).await?;
    let both = balances.into_iter().zip(on_the_way);
    let carried = of(&new.hash)
        .into_iter()
        .zip(both)
        .map(|(account, (balance, on_the_way))| {
            let Balance {
                total_nanos,
                period_nanos,
                period_started_micros,
                period_ends_micros,
            } = balance;
            let (spent, period) = match (period_started_micros, period_ends_micros) {
                (Some(start), Some(end)) if end > now => (period_nanos, Some((start, end))),
                (Some(_), Some(_)) => (0, None),
                _ => (total_nanos, None),
            };
            Carried {
                account,
                nanos: spent.saturating_add(on_the_way).max(0),
                period,
            }
        });
    Ok(carried.collect())
}

/// Writes both rows and opens the accounts, in one transaction. Where a budget's period goes on, the account
/// must be in it before it is opened: the new key is then there before, blocked, without an alias, and known
/// to nobody.
async fn write(
    desk: &Desk,
    actor: &Actor,
    (old, kept, lives): (&Key, &Key, bool),
    new: &mut Key,
    carried: &[Carried],
) -> Result<()> {
    let now = desk.clock.now_micros();
    let staged = carried.iter().any(|c| c.period.is_some());
    let mut read_at = None;
    new.spend_nanos = 0;
    if staged {
        let mut first = new.clone();
        first.key_alias = None;
        first.blocked = true;
        desk.write(actor, &[Change::InsertKey(&first)], Vec::new())
            .await
            .map_err(|e| refused(e, new))?;
        for c in carried {
            if let Some((start, end)) = c.period {
                desk.store.begin_period(&c.account, start, Some(end)).await?;
            }
        }
        read_at = Some(first.updated_at_micros);
        new.updated_at_micros = first.updated_at_micros.saturating_add(1);
    }
    let gone = [old.hash];
    // Also where it is deleted: nobody must have changed it since it was read.
    let mut changes = vec![Change::UpdateKey {
        key: kept,
        read_at_micros: old.updated_at_micros,
    }];
    if !lives {
        changes.push(Change::DeleteKeys(&gone));
    }
    changes.push(match read_at {
        Some(read_at_micros) => Change::UpdateKey {
            key: new,
            read_at_micros,
        },
        None => Change::InsertKey(new),
    });
    changes.extend(carried.iter().filter(|c| c.nanos > 0).map(|c| Change::Open {
        account: &c.account,
        nanos: c.nanos,
    }));
    let after = told(new, now);
    let entry = Entry::changed(
        "rotated",
        "key",
        old.hash.hex(),
        told(old, now),
        with_token(after, &new.hash),
    );
    let done = desk.write(actor, &changes, vec![entry]).await;
    if done.is_err() && staged {
        // Nobody knows its secret; it is only in the way of the next try.
        desk.store.change(&[Change::DeleteKeys(&[new.hash])], &[]).await?;
    }
    done.map_err(|e| refused(e, new))?;
    new.spend_nanos = carried.first().map_or(0, |c| c.nanos);
    Ok(())
}

/// So that the audit row tells which key took the old one's place.
fn with_token(mut row: Value, hash: &KeyHash) -> Value {
    if let Value::Object(row) = &mut row {
        row.insert("token".into(), json!(hash));
    }
    row
}
