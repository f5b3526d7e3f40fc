//! How teams are shown: one, a list, those of a user; and who sees them.

use super::TEAM;
use crate::admin::ask::Params;
use crate::admin::error::{Result, forbidden, missing};
use crate::admin::fields::{Field, Kind};
use crate::admin::objects::{self, paged};
use crate::admin::rights::{Actor, role_among};
use crate::admin::{Desk, members};
use crate::store::{Doc, DocFilter, KeyFilter, MAX_ROWS, Page, Table};
use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Teams of a list that has no pages.
const MOST_LISTED: u32 = 1_000;
/// Keys that a team's answer shows.
const MOST_KEYS: u32 = 1_000;

const ORDERS: [&str; 5] = [
    "team_alias",
    "team_id",
    "organization_id",
    "created_at",
    "updated_at",
];

pub(super) const LISTED: &[Field] = &[
    Field::new("user_id", Kind::Text, "Teams of this member"),
    Field::new("organization_id", Kind::Text, "Teams of this organization"),
    Field::new("team_id", Kind::Text, "This team"),
    Field::new("team_alias", Kind::Text, "A part of the alias"),
    Field::new(
        "sort_by",
        Kind::Text,
        "team_alias, team_id, organization_id, created_at",
    ),
    Field::new("sort_order", Kind::OneOf(&["asc", "desc"]), "asc unless desc"),
];

/// A team as answers show it.
pub async fn row(desk: &Desk, team: &Doc) -> Result<Map<String, Value>> {
    let rows = rows(desk, std::slice::from_ref(team)).await?;
    Ok(rows.into_iter().next().unwrap_or_default())
}

async fn rows(desk: &Desk, teams: &[Doc]) -> Result<Vec<Map<String, Value>>> {
    let mut rows = desk.rows(&TEAM, teams).await?;
    for (row, team) in rows.iter_mut().zip(teams) {
        let entries = members::list(&team.fields);
        let with_role = |role: &str| -> Vec<Value> {
            entries
                .iter()
                .filter(|m| m.get("role").and_then(Value::as_str).unwrap_or("user") == role)
                .filter_map(|m| m.get("user_id").filter(|id| id.is_string()).cloned())
                .collect()
        };
        let aliases = row.get("model_aliases").cloned().unwrap_or_default();
        row.extend([
            ("admins".to_string(), with_role("admin").into()),
            ("members".into(), with_role("user").into()),
            ("members_count".into(), entries.len().into()),
            (
                "members_with_roles".into(),
                entries.iter().map(members::shown).collect(),
            ),
            ("litellm_model_table".into(), json!({"model_aliases": aliases})),
            ("model_id".into(), Value::Null),
            ("object_permission_id".into(), Value::Null),
        ]);
    }
    Ok(rows)
}

/// Whoever may see a team: those who see all, lead it, belong to it, or ask with one of its keys.
async fn sees(desk: &Desk, actor: &Actor, team: &Doc) -> Result<bool> {
    let member = actor
        .user_id()
        .is_some_and(|u| role_among(&team.fields, u).is_some());
    let key_of = actor
        .holder()
        .is_some_and(|k| k.team_id.as_deref() == Some(team.id.as_str()));
    Ok(actor.sees_all() || member || key_of || desk.leads(actor, team).await?)
}

pub(super) async fn seen(desk: &Desk, actor: &Actor, params: &Params) -> Result<Doc> {
    let own = actor.holder().and_then(|k| k.team_id.clone());
    let Some(id) = params.owned("team_id")?.or(own) else {
        return Err(missing("team_id", "The parameter 'team_id' is required.").into());
    };
    let team = TEAM.find(desk, &id).await?;
    if sees(desk, actor, &team).await? {
        return Ok(team);
    }
    let id: String = id.chars().take(200).collect();
    Err(forbidden(format!(
        "key not allowed to access this team's info. team_id={id}"
    ))
    .into())
}

/// `GET /team/info`. Members see their own keys and membership, those who lead it see all.
pub(super) async fn info(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let team = seen(&desk, &actor, &params).await?;
    let all = actor.sees_all() || desk.leads(&actor, &team).await?;
    let own = actor.user_id();
    let keys = match (all, own) {
        (true, _) => keys_of(&desk, &team.id, None).await?,
        (false, Some(user)) => keys_of(&desk, &team.id, Some(user)).await?,
        (false, None) => Vec::new(),
    };
    let entries: Vec<Value> = members::list(&team.fields)
        .iter()
        .filter(|m| all || m.get("user_id").and_then(Value::as_str) == own)
        .cloned()
        .collect();
    let memberships = desk.memberships(&team.id, &entries).await?;
    let row = row(&desk, &team).await?;
    Ok(Json(json!({
        "team_id": team.id,
        "team_info": row,
        "keys": keys,
        "team_memberships": memberships,
    })))
}

async fn keys_of(desk: &Desk, team_id: &str, user_id: Option<&str>) -> Result<Vec<Value>> {
    let filter = KeyFilter {
        team_id: Some(team_id.into()),
        user_id: user_id.map(Into::into),
        ..KeyFilter::default()
    };
    let page = Page {
        limit: MOST_KEYS,
        offset: 0,
    };
    let found = desk.store.list_keys(&filter, page).await?;
    desk.keys_with_token(&found.keys).await
}

/// The teams that a list shows, as far as its caller may see them.
fn listed(actor: &Actor, params: &Params) -> Result<DocFilter> {
    let mut filter = DocFilter {
        sort: objects::sorted(params, &ORDERS)?
            .map(|(column, order)| (if column == "team_id" { "id" } else { column }, order)),
        member: params.owned("user_id")?,
        ids: params.owned("team_id")?.map(|id| vec![id]),
        search: params.owned("team_alias")?.map(|text| (text, vec!["team_alias"])),
        ..DocFilter::default()
    };
    if let Some(id) = params.owned("organization_id")? {
        filter.equal.push(("organization_id", id));
    }
    if actor.sees_all() {
        return Ok(filter);
    }
    match (actor.user_id(), &filter.member) {
        (Some(own), None) => filter.member = Some(own.into()),
        (Some(own), Some(asked)) if own == asked => {}
        (None, None) => {
            let own = actor.holder().and_then(|k| k.team_id.clone());
            let asked = filter.ids.take();
            filter.ids = Some(
                own.filter(|o| asked.is_none_or(|a| a.contains(o)))
                    .into_iter()
                    .collect(),
            );
        }
        _ => {
            let message = "Only admin users can query all teams/other teams. Leave 'user_id' out.";
            return Err(forbidden(message).into());
        }
    }
    Ok(filter)
}

/// An admin of an organization sees its teams, when it asks for that organization.
async fn asked(desk: &Desk, actor: &Actor, params: &Params) -> Result<DocFilter> {
    let mut filter = listed(actor, params)?;
    if let Some(id) = params.text("organization_id")?
        && params.text("user_id")?.is_none()
        && !actor.sees_all()
        && desk.leads_organization(actor, id).await?
    {
        filter.member = None;
        filter.ids = params.owned("team_id")?.map(|id| vec![id]);
    }
    Ok(filter)
}

/// `GET /team/list`: an array, with each team's keys where the caller leads it.
pub(super) async fn list(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let slice = params.page(
        &["page_size", "size"],
        u64::from(MOST_LISTED),
        u64::from(MOST_LISTED),
    )?;
    let mut filter = asked(&desk, &actor, &params).await?;
    filter.page = Page {
        limit: slice.size as u32,
        offset: slice.offset,
    };
    let teams = desk.store.documents(Table::Team, &filter).await?.docs;
    let mut keys: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let own = actor.user_id();
    let of_teams = KeyFilter {
        team_ids: Some(teams.iter().map(|t| t.id.clone()).collect()),
        user_id: own.filter(|_| !actor.sees_all()).map(Into::into),
        ..KeyFilter::default()
    };
    if actor.sees_all() || own.is_some() {
        let page = Page {
            limit: MAX_ROWS,
            offset: 0,
        };
        let found = desk.store.list_keys(&of_teams, page).await?.keys;
        for (key, row) in found.iter().zip(desk.keys_with_token(&found).await?) {
            let team = key.team_id.clone().unwrap_or_default();
            keys.entry(team).or_default().push(row);
        }
    }
    let mut shown = Vec::with_capacity(teams.len());
    for (team, mut row) in teams.iter().zip(rows(&desk, &teams).await?) {
        let keys = keys.remove(&team.id).unwrap_or_default();
        let asked = filter.member.as_deref();
        let entries: Vec<Value> = members::list(&team.fields)
            .iter()
            .filter(|m| asked.is_some() && m.get("user_id").and_then(Value::as_str) == asked)
            .cloned()
            .collect();
        let memberships = match entries.is_empty() {
            true => Vec::new(),
            false => desk.memberships(&team.id, &entries).await?,
        };
        row.insert("keys_count".into(), keys.len().into());
        row.insert("keys".into(), keys.into());
        row.insert("team_memberships".into(), memberships.into());
        shown.push(Value::Object(row));
    }
    Ok(Json(shown.into()))
}

/// `GET /v2/team/list`.
pub(super) async fn pages(
    actor: Actor,
    State(desk): State<Arc<Desk>>,
    params: Params,
) -> Result<Json<Value>> {
    let slice = params.page(&["page_size", "size"], 10, 100)?;
    let mut filter = asked(&desk, &actor, &params).await?;
    filter.page = Page {
        limit: slice.size as u32,
        offset: slice.offset,
    };
    let found = desk.store.documents(Table::Team, &filter).await?;
    let rows = rows(&desk, &found.docs).await?;
    let rows = rows.into_iter().map(Value::Object).collect();
    Ok(Json(paged("teams", rows, found.total, slice)))
}

pub async fn all_of_user(desk: &Desk, user_id: &str) -> Result<Vec<Doc>> {
    let filter = DocFilter {
        member: Some(user_id.into()),
        page: Page {
            limit: MOST_LISTED,
            offset: 0,
        },
        ..DocFilter::default()
    };
    Ok(desk.store.documents(Table::Team, &filter).await?.docs)
}

/// The teams of a user, as `/user/info` shows them.
pub async fn of_user(desk: &Desk, user_id: &str) -> Result<Vec<Value>> {
    let teams = all_of_user(desk, user_id).await?;
    Ok(rows(desk, &teams).await?.into_iter().map(Value::Object).collect())
}
