//! How users are shown: one with its keys and teams, or a list.

use super::{ROLES, USER};
use crate::admin::ask::{Params, Slice};
use crate::admin::error::{Result, forbidden, not_found, wrong_value};
use crate::admin::objects::{self, paged};
use crate::admin::rights::{self, Actor};
use crate::admin::shapes::{self, DEFAULT_USER};
use crate::admin::teams::{self, TEAM};
use crate::admin::{Desk, members, organizations};
use crate::store::{Doc, DocFilter, KeyFilter, Page, Table};
use axum::Json;
use axum::extract::State;
use filters::model::account::{Account, Kind as Subject};
use filters::model::money::Nanos;
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::sync::Arc;

/// Keys of one answer, unless `size` says otherwise.
const KEYS: u64 = 100;
const MOST_KEYS: u64 = 500;

/// `GET /user/info`: the caller's own user, or `?user_id=`. An admin without a `user_id` gets everybody's
/// keys, page by page, and no `user_info`.
pub(super) async fn info(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let asked = params.text("user_id")?;
    let slice = params.page(&["size", "page_size"], KEYS, MOST_KEYS)?;
    let body = match (asked, actor.user_id()) {
        (None, _) if actor.sees_all() => everybody(&desk, slice).await?,
        (Some(id), _) if actor.sees_all() => user(&desk, id, slice).await?,
        (asked, Some(own)) if asked.is_none_or(|id| id == own) => user(&desk, own, slice).await?,
        (None, None) => nobody(&actor, &desk).await?,
        _ => {
            return Err(forbidden(
                "You are not allowed to access this user's info. Ask for your own, without 'user_id', or use \
                 the master key.",
            )
            .into());
        }
    };
    Ok(Json(shapes::plain(body)))
}

/// A user is known by its row, or by its keys: a key may name a user that nobody has added.
async fn user(desk: &Desk, id: &str, slice: Slice) -> Result<Value> {
    let found = desk.store.document(Table::User, id).await?;
    let (keys, total) = keys_of(desk, Some(id), slice).await?;
    if found.is_none() && total == 0 {
        return Err(USER.none(id));
    }
    let known = found.is_some();
    let doc = found.unwrap_or_else(|| Doc {
        id: id.into(),
        fields: Map::new(),
        version: 0,
        created_at_micros: 0,
        updated_at_micros: 0,
    });
    let mut row = desk.row(&USER, &doc).await?;
    if !known {
        row.insert("created_at".into(), Value::Null);
        row.insert("updated_at".into(), Value::Null);
    }
    let teams = teams::of_user(desk, id).await?;
    let ids: Vec<Value> = teams.iter().filter_map(|t| t.get("team_id").cloned()).collect();
    row.insert("teams".into(), ids.into());
    let (spend, max_budget, models) = (
        row.get("spend").cloned(),
        row.get("max_budget").cloned(),
        row.get("models").cloned(),
    );
    Ok(json!({
        "user_id": id,
        "user_info": row,
        "keys": keys,
        "teams": teams,
        "total_count": total,
        "spend": spend,
        "max_budget": max_budget,
        "models": models,
    }))
}

/// Nano-dollars a user has spent in all.
pub async fn spend(desk: &Desk, id: &str) -> Result<i64> {
    let balances = desk.spent(&[Account::new(Subject::User, id)]).await?;
    Ok(balances.first().map_or(0, |b| b.total_nanos))
}

async fn everybody(desk: &Desk, slice: Slice) -> Result<Value> {
    let (keys, total) = keys_of(desk, None, slice).await?;
    Ok(json!({
        "user_id": DEFAULT_USER,
        "user_info": null,
        "keys": keys,
        "teams": [],
        "total_count": total,
        "spend": Nanos(spend(desk, DEFAULT_USER).await?),
        "max_budget": null,
        "models": (desk.catalog)().names(),
    }))
}

/// A key without a user stands for itself.
async fn nobody(actor: &Actor, desk: &Desk) -> Result<Value> {
    let hash = rights::own_hash(actor)?;
    // From the store and not from the caller: spend has moved since it was let in.
    let found = desk.store.key_by_hash(&hash).await?;
    let key = found.ok_or_else(|| not_found("key", "Key not found in database"))?;
    Ok(json!({
        "user_id": null,
        "user_info": null,
        "keys": desk.keys_with_token(std::slice::from_ref(&key)).await?,
        "teams": [],
        "total_count": 1,
        "spend": Nanos(key.spend_nanos),
        "max_budget": key.max_budget_nanos.map(Nanos),
        "models": key.models,
    }))
}

async fn keys_of(desk: &Desk, user_id: Option<&str>, slice: Slice) -> Result<(Vec<Value>, u64)> {
    let filter = KeyFilter {
        user_id: user_id.map(str::to_string),
        ..KeyFilter::default()
    };
    let page = Page {
        limit: slice.size as u32,
        offset: slice.offset,
    };
    let found = desk.store.list_keys(&filter, page).await?;
    Ok((desk.keys_with_token(&found.keys).await?, found.total))
}

/// `GET /user/list`. Who is admin of organizations sees those who belong to one of them, and of their teams those that
/// do.
pub(super) async fn list(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let led = match actor.sees_all() {
        true => None,
        false => match organizations::led_by(&desk, &actor).await? {
            led if led.is_empty() => return Err(actor.not_admin()),
            led => Some(led),
        },
    };
    let is_theirs = |team: &Doc| {
        let organization = objects::text(&team.fields, "organization_id");
        led.as_ref()
            .is_none_or(|led| led.iter().any(|o| Some(o.id.as_str()) == organization))
    };
    let slice = params.page(&["page_size", "size"], 25, 100)?;
    let mut filter = DocFilter {
        sort: objects::sorted(
            &params,
            &[
                "user_id",
                "user_email",
                "user_alias",
                "user_role",
                "created_at",
                "updated_at",
            ],
        )?
        .map(|(column, order)| (if column == "user_id" { "id" } else { column }, order)),
        page: Page {
            limit: slice.size as u32,
            offset: slice.offset,
        },
        ..DocFilter::default()
    };
    if let Some(role) = params.text("role")? {
        if !ROLES.contains(&role) {
            return Err(wrong_value("role", format!("'role' must be one of {}.", ROLES.join(", "))).into());
        }
        filter.equal.push(("user_role", role.into()));
    }
    if let Some(ids) = params.text("user_ids")? {
        filter.ids = Some(ids.split(',').map(|id| id.trim().to_string()).collect());
    }
    if let Some(id) = params.owned("sso_user_ids")? {
        filter.equal.push(("sso_user_id", id));
    }
    let search = (params.owned("search")?, params.owned("user_email")?);
    filter.search = match search {
        (Some(text), _) => Some((text, vec!["user_email", "user_alias"])),
        (None, Some(email)) => Some((email, vec!["user_email"])),
        (None, None) => None,
    };
    if let Some(id) = params.text("team")? {
        let team = TEAM.find(&desk, id).await?;
        if !is_theirs(&team) {
            return Err(TEAM.none(id));
        }
        narrow(&mut filter, members_of(&team));
    }
    if let Some(led) = &led {
        narrow(&mut filter, led.iter().flat_map(members_of).collect());
    }
    let found = desk.store.documents(Table::User, &filter).await?;
    let mut rows = Vec::with_capacity(found.docs.len());
    for (doc, mut row) in found.docs.iter().zip(desk.rows(&USER, &found.docs).await?) {
        let of_user = KeyFilter {
            user_id: Some(doc.id.clone()),
            ..KeyFilter::default()
        };
        let count = desk
            .store
            .list_keys(&of_user, Page { limit: 1, offset: 0 })
            .await?;
        row.insert("key_count".into(), count.total.into());
        let teams = teams::all_of_user(&desk, &doc.id).await?;
        let teams = teams.into_iter().filter(is_theirs).map(|t| Value::from(t.id));
        row.insert("teams".into(), teams.collect());
        rows.push(Value::Object(row));
    }
    Ok(Json(paged("users", rows, found.total, slice)))
}

fn members_of(doc: &Doc) -> HashSet<String> {
    let entries = members::list(&doc.fields).iter();
    let id = |m: &Value| Some(m.get("user_id")?.as_str()?.to_string());
    entries.filter_map(id).collect()
}

/// Those of these alone, where others are asked for too.
fn narrow(filter: &mut DocFilter, to: HashSet<String>) {
    filter.ids = Some(match filter.ids.take() {
        Some(ids) => ids.into_iter().filter(|id| to.contains(id)).collect(),
        None => to.into_iter().collect(),
    });
}
