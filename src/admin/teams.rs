//! Teams: made, changed, shown, blocked, deleted. Their members stand in [`members`](super::members).

use super::ask::Params;
use super::audit::Entry;
use super::error::{Result, Stopped, forbidden, missing, wrong_type, wrong_value};
use super::fields::{Field, Fields, Kind};
use super::members::{self, OF_TEAM, Wanted};
use super::objects::{self, LIMITS, NAMED_BUDGET, Sort, Task, above, paged, stored, text};
use super::organizations::ORGANIZATION;
use super::rights::{Actor, role_among};
use super::routes::{Route, Who};
use super::{Desk, shapes, users};
use crate::store::{Change, Doc, DocFilter, KeyFilter, MAX_ROWS, Page, Table};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing::on;
use filters::model::limits::Limits;
use filters::model::money::Nanos;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Teams of a list that has no pages.
const MOST_LISTED: u32 = 1_000;
/// Keys that a team's answer shows.
const MOST_KEYS: u32 = 1_000;
/// Teams that one call deletes.
const MOST_NAMED: usize = 500;

const ROLES: &[&str] = &["admin", "user"];

/// What a team's members may be allowed to do with the team's keys.
const PERMISSIONS: [&str; 10] = [
    "/key/generate",
    "/key/service-account/generate",
    "/key/update",
    "/key/delete",
    "/key/info",
    "/key/list",
    "/key/health",
    "/key/regenerate",
    "/key/block",
    "/key/unblock",
];

pub const TEAM: Sort = Sort {
    table: Table::Team,
    id: "team_id",
    fields: &[PLAIN, LIMITS, NAMED_BUDGET, OF_MEMBERS],
};

const PLAIN: &[Field] = &[
    Field::new("team_alias", Kind::Id, "What people call it"),
    Field::new("organization_id", Kind::Id, "The organization it belongs to"),
    Field::new(
        "models",
        Kind::List,
        "Models that the team's keys may call; none = all",
    ),
    Field::new("metadata", Kind::Object, "Whatever one likes"),
    Field::new(
        "blocked",
        Kind::Flag,
        "Its keys are refused until it is unblocked",
    ),
    Field::new("model_aliases", Kind::Names, "The team's own names for models"),
    Field::new("tags", Kind::Texts, "Kept"),
    Field::new("guardrails", Kind::Texts, "Kept"),
    Field::new("policies", Kind::Texts, "Kept"),
    Field::new("prompts", Kind::Texts, "Kept"),
    Field::new("object_permission", Kind::Settings, "Kept"),
    Field::new("router_settings", Kind::Settings, "Kept"),
    Field::new("allowed_passthrough_routes", Kind::Texts, "Kept"),
    Field::new("access_group_ids", Kind::Texts, "Kept"),
    Field::new("tpd_limit", Kind::Count, "Kept"),
];

const OF_MEMBERS: &[Field] = &[
    Field::new(
        "team_member_budget",
        Kind::Money,
        "Dollars that each member may spend in this team, unless it has an own budget here",
    ),
    Field::new(
        "team_member_budget_duration",
        Kind::Period,
        "When that starts anew",
    ),
    Field::new(
        "team_member_rpm_limit",
        Kind::Count,
        "Requests per minute of each member",
    ),
    Field::new(
        "team_member_tpm_limit",
        Kind::Count,
        "Tokens per minute of each member",
    ),
    Field::new("team_member_key_duration", Kind::Period, "Kept"),
    Field::new(
        "team_member_permissions",
        Kind::Texts,
        "Calls that members may make for the team's keys, as /key/generate",
    ),
    Field::new("default_team_member_models", Kind::Texts, "Kept"),
];

/// What an admin of the team alone may change; and of the limits, downwards.
const OWN: [&str; 12] = [
    "team_id",
    "team_alias",
    "metadata",
    "models",
    "team_member_budget",
    "team_member_budget_duration",
    "team_member_rpm_limit",
    "team_member_tpm_limit",
    "team_member_key_duration",
    "team_member_permissions",
    "default_team_member_models",
    "prompts",
];

const MADE: &[Field] = &[
    Field::new("team_id", Kind::Id, "Its id; none = a new one"),
    Field::new(
        "members_with_roles",
        Kind::Objects,
        "Members: user_id or user_email, and a role",
    ),
];

const ORDERS: [&str; 5] = [
    "team_alias",
    "team_id",
    "organization_id",
    "created_at",
    "updated_at",
];

const LISTED: &[Field] = &[
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

pub const ROUTES: &[Route] = &[
    Route {
        group: "teams",
        who: Who::Manager,
        summary: "Make a team",
        body: &[MADE, PLAIN, LIMITS, NAMED_BUDGET, OF_MEMBERS],
        answer: "Team",
        ..Route::post(&["/team/new"], |m| on(m, new))
    },
    Route {
        group: "teams",
        who: Who::Reader,
        summary: "A team with its keys and what its members spent",
        query: OF_TEAM,
        answer: "TeamInfo",
        ..Route::get(&["/team/info"], |m| on(m, info))
    },
    Route {
        group: "teams",
        who: Who::Manager,
        summary: "Change a team; its own admins not beyond what it has",
        body: &[OF_TEAM, PLAIN, LIMITS, NAMED_BUDGET, OF_MEMBERS],
        answer: "TeamUpdated",
        ..Route::post(&["/team/update"], |m| on(m, update))
    },
    Route {
        group: "teams",
        who: Who::Reader,
        summary: "Teams: all, or those that the caller belongs to",
        query: LISTED,
        answer: "TeamRows",
        ..Route::get(&["/team/list"], |m| on(m, list))
    },
    Route {
        group: "teams",
        who: Who::Reader,
        summary: "Teams, page by page",
        query: LISTED,
        answer: "TeamList",
        ..Route::get(&["/v2/team/list"], |m| on(m, pages))
    },
    Route {
        group: "teams",
        who: Who::Manager,
        summary: "Delete teams, with their keys",
        body: &[&[Field::required("team_ids", Kind::Texts, "Which")]],
        answer: "TeamsDeleted",
        ..Route::post(&["/team/delete"], |m| on(m, delete))
    },
    Route {
        group: "teams",
        who: Who::Manager,
        summary: "Refuse a team's keys until it is unblocked",
        body: &[OF_TEAM],
        answer: "Team",
        ..Route::post(&["/team/block"], |m| on(m, block))
    },
    Route {
        group: "teams",
        who: Who::Manager,
        summary: "Take a blocked team's keys again",
        body: &[OF_TEAM],
        answer: "Team",
        ..Route::post(&["/team/unblock"], |m| on(m, unblock))
    },
    Route {
        group: "teams",
        who: Who::Manager,
        summary: "Let a team's keys call more models",
        body: &[OF_TEAM, MODELS],
        answer: "Team",
        ..Route::post(&["/team/model/add"], |m| on(m, add_models))
    },
    Route {
        group: "teams",
        who: Who::Manager,
        summary: "Let a team's keys call some models no more",
        body: &[OF_TEAM, MODELS],
        answer: "Team",
        ..Route::post(&["/team/model/delete"], |m| on(m, delete_models))
    },
    Route {
        group: "teams",
        who: Who::Reader,
        summary: "What a team's members may do with its keys",
        query: OF_TEAM,
        answer: "TeamPermissions",
        ..Route::get(&["/team/permissions_list"], |m| on(m, permissions))
    },
    Route {
        group: "teams",
        who: Who::Manager,
        summary: "Say what a team's members may do with its keys",
        body: &[
            OF_TEAM,
            &[Field::required(
                "team_member_permissions",
                Kind::Texts,
                "Calls, as /key/generate",
            )],
        ],
        answer: "Team",
        ..Route::post(&["/team/permissions_update"], |m| on(m, set_permissions))
    },
];

const MODELS: &[Field] = &[Field::required("models", Kind::Texts, "Names of models")];

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

/// 403 for somebody who does not lead the team.
pub fn not_led(actor: &Actor, team_id: &str) -> Stopped {
    let id: String = team_id.chars().take(200).collect();
    forbidden(format!(
        "Call not allowed. User not proxy admin OR team admin. route={}, team_id={id}",
        actor.path
    ))
    .into()
}

/// How far somebody's rights over a team reach.
#[derive(PartialEq)]
enum Reach {
    /// Admins of the gateway, and of the organization within what that has.
    Whole,
    /// An admin of the team itself.
    Team,
}

async fn reach(desk: &Desk, actor: &Actor, team: &Doc) -> Result<Reach> {
    if actor.is_admin() {
        return Ok(Reach::Whole);
    }
    if let Some(id) = text(&team.fields, "organization_id")
        && desk.leads_organization(actor, id).await?
    {
        return Ok(Reach::Whole);
    }
    if desk.leads(actor, team).await? {
        return Ok(Reach::Team);
    }
    Err(not_led(actor, &team.id))
}

/// The team that a call changes, for those whose rights reach as far.
async fn wholly(task: &Task) -> Result<Doc> {
    let id = objects::id(&task.fields, "team_id")?;
    let team = TEAM.find(&task.desk, &id).await?;
    match reach(&task.desk, &task.actor, &team).await? {
        Reach::Whole => Ok(team),
        Reach::Team => Err(task.actor.not_admin()),
    }
}

/// A team stays within its organization: LiteLLM refuses more.
async fn within_organization(task: &Task, team: &Doc) -> Result<()> {
    let Some(id) = text(&team.fields, "organization_id") else {
        return Ok(());
    };
    let organization = ORGANIZATION.find(&task.desk, id).await?;
    if !task.desk.leads_organization(&task.actor, id).await? {
        return Err(above(
            "organization_id",
            "Only a proxy admin or an admin of the organization may give it teams.",
        ));
    }
    let named = match text(&organization.fields, "budget_id") {
        Some(id) => task.desk.store.document(Table::Budget, id).await?,
        None => None,
    };
    let all = Limits::of(&objects::effective(&organization.fields, named.as_ref()));
    let own = Limits::of(&team.fields);
    if let (Some(most), Some(own)) = (all.budget.nanos, own.budget.nanos)
        && own > most
    {
        let message = format!(
            "Team max_budget ({}) exceeds the organization's max_budget ({}).",
            Nanos(own),
            Nanos(most)
        );
        return Err(wrong_value("max_budget", message).into());
    }
    for (name, most, own) in [("tpm_limit", all.tpm, own.tpm), ("rpm_limit", all.rpm, own.rpm)] {
        if let (Some(most), Some(own)) = (most, own)
            && own > most
        {
            let message = format!("Team {name} ({own}) exceeds the organization's {name} ({most}).");
            return Err(wrong_value(name, message).into());
        }
    }
    let allowed = filters::model::party::texts(&organization.fields, "models");
    let open = |m: &String| m == "*" || m == "all-proxy-models";
    if !allowed.is_empty() && !allowed.iter().any(open) {
        let models = filters::model::party::texts(&team.fields, "models");
        let beyond = models
            .iter()
            .find(|m| !allowed.contains(m) && *m != "no-default-models");
        if let Some(model) = beyond {
            let model: String = model.chars().take(200).collect();
            let message = format!("The model '{model}' is none of the organization's models.");
            return Err(wrong_value("models", message).into());
        }
    }
    Ok(())
}

fn check_permissions(fields: &Fields) -> Result<()> {
    let list = fields.texts("team_member_permissions")?;
    match list.iter().find(|p| !PERMISSIONS.contains(&p.as_str())) {
        Some(_) => {
            let message = format!("'team_member_permissions' may hold {}.", PERMISSIONS.join(", "));
            Err(wrong_value("team_member_permissions", message).into())
        }
        None => Ok(()),
    }
}

/// `POST /team/new`. Whoever makes it becomes its first admin, as in LiteLLM.
async fn new(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_new).await.map(Json)
}

async fn try_new(task: Arc<Task>) -> Result<Value> {
    let fields = &task.fields;
    let mut team = task.blank(objects::id_or_new(fields, "team_id")?);
    task.keep(TEAM.fields, &mut team)?;
    check_permissions(fields)?;
    if !task.actor.is_admin() && text(&team.fields, "organization_id").is_none() {
        return Err(task.actor.not_admin());
    }
    task.check_budget().await?;
    within_organization(&task, &team).await?;
    if task.desk.store.document(Table::Team, &team.id).await?.is_some() {
        return Err(TEAM.exists(&team.id));
    }
    let mut wanted = Wanted::list(fields, "members_with_roles", ROLES, "user")?;
    let own = task.actor.user_id();
    if own.is_some() && !wanted.iter().any(|w| w.user_id.as_deref() == own) {
        wanted.push(Wanted {
            user_id: own.map(Into::into),
            user_email: None,
            role: "admin".into(),
        });
    }
    let mut users = task.users_for(&wanted).await?;
    // The master key is no user.
    users.new.retain(|u| u.id != shapes::DEFAULT_USER);
    let roles: Vec<&str> = wanted.iter().map(|w| w.role.as_str()).collect();
    members::join(&mut team, &users.known, &roles, &Map::new(), task.now)?;
    let told = Entry::created("team", team.id.as_str(), Value::Object(team.fields.clone()));
    let mut changes = vec![Change::Put {
        table: Table::Team,
        doc: &team,
    }];
    let mut entries = vec![told];
    for user in &users.new {
        changes.push(Change::Put {
            table: Table::User,
            doc: user,
        });
        entries.push(users::created(user));
    }
    let written = task.desk.write(&task.actor, &changes, entries).await;
    written.map_err(|e| TEAM.refused(e, &team.id))?;
    row(&task.desk, &team).await.map(Value::Object)
}

/// `POST /team/update`: what is named changes, null unsets, the rest stays.
async fn update(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_update).await.map(Json)
}

async fn try_update(task: Arc<Task>) -> Result<Value> {
    let id = objects::id(&task.fields, "team_id")?;
    let mut team = TEAM.find(&task.desk, &id).await?;
    let before = team.clone();
    let reach = reach(&task.desk, &task.actor, &team).await?;
    task.keep(TEAM.fields, &mut team)?;
    check_permissions(&task.fields)?;
    if reach == Reach::Team {
        no_more_than_before(&task.fields, &before, &team)?;
    } else {
        task.check_budget().await?;
        if task.actor.is_admin() || text(&team.fields, "organization_id").is_some() {
            within_organization(&task, &team).await?;
        } else {
            return Err(above(
                "organization_id",
                "Only a proxy admin may take a team out of its organization.",
            ));
        }
    }
    members::follow_defaults(&before.fields, &mut team, task.now);
    task.touch(&mut team);
    save(&task, "updated", &before, &team).await?;
    let row = row(&task.desk, &team).await?;
    Ok(json!({"team_id": team.id, "data": row}))
}

async fn save(task: &Task, action: &'static str, before: &Doc, after: &Doc) -> Result<()> {
    let change = Change::Put {
        table: Table::Team,
        doc: after,
    };
    let told = Entry::changed(
        action,
        "team",
        after.id.as_str(),
        Value::Object(before.fields.clone()),
        Value::Object(after.fields.clone()),
    );
    Ok(task.desk.write(&task.actor, &[change], vec![told]).await?)
}

/// What a team's own admin may not do: give the team more than it has.
fn no_more_than_before(given: &Fields, before: &Doc, after: &Doc) -> Result<()> {
    for name in given.names_given() {
        let (old, new) = (stored(before, name), stored(after, name));
        let known = TEAM.fields.iter().flat_map(|g| g.iter()).any(|f| f.name == name);
        if old == new && (known || name == "team_id") {
            continue;
        }
        let fits = match name {
            "max_budget" | "soft_budget" | "tpm_limit" | "rpm_limit" | "max_parallel_requests" => {
                match (old.as_f64(), new.as_f64()) {
                    (Some(old), Some(new)) => new <= old,
                    (None, new) => new.is_some(),
                    (Some(_), None) => false,
                }
            }
            "models" => narrower(&old, &new),
            name => !known || OWN.contains(&name),
        };
        if !fits {
            let message =
                format!("An admin of the team may not raise or change its '{name}'. Ask a proxy admin.");
            return Err(above(name, message));
        }
    }
    Ok(())
}

/// A list of models that allows nothing which the old one does not; none at all = all.
fn narrower(old: &Value, new: &Value) -> bool {
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let (old, new) = (list(old), list(new));
    old.is_empty() || (!new.is_empty() && new.iter().all(|m| old.contains(m)))
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

async fn seen(desk: &Desk, actor: &Actor, params: &Params) -> Result<Doc> {
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
async fn info(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
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
    let now = desk.clock.now_micros();
    let shown = |k| shapes::key_with_token(k, now);
    Ok(found.keys.iter().map(shown).collect())
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
async fn list(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
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
        let now = desk.clock.now_micros();
        for key in &desk.store.list_keys(&of_teams, page).await?.keys {
            let team = key.team_id.clone().unwrap_or_default();
            keys.entry(team)
                .or_default()
                .push(shapes::key_with_token(key, now));
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
async fn pages(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
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

async fn teams_of(desk: &Desk, user_id: &str) -> Result<Vec<Doc>> {
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
    let teams = teams_of(desk, user_id).await?;
    Ok(rows(desk, &teams).await?.into_iter().map(Value::Object).collect())
}

pub async fn ids_of_user(desk: &Desk, user_id: &str) -> Result<Vec<Value>> {
    let teams = teams_of(desk, user_id).await?;
    Ok(teams.into_iter().map(|t| t.id.into()).collect())
}

/// `POST /team/delete`: teams and their keys; what they spent stays told.
async fn delete(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_delete).await.map(Json)
}

async fn try_delete(task: Arc<Task>) -> Result<Value> {
    let ids = objects::ids(&task.fields, "team_ids", MOST_NAMED)?;
    // All are looked for first: a slip of the pen deletes nothing.
    let mut teams = Vec::with_capacity(ids.len());
    for id in &ids {
        let team = TEAM.find(&task.desk, id).await?;
        if reach(&task.desk, &task.actor, &team).await? != Reach::Whole {
            return Err(task.actor.not_admin());
        }
        teams.push(team);
    }
    for team in &teams {
        // Keys first, so that a call that broke off can be repeated; and once more, for those that were
        // made meanwhile.
        let keys = KeyFilter {
            team_id: Some(team.id.clone()),
            ..KeyFilter::default()
        };
        task.desk.drop_keys(&task.actor, &keys).await?;
        let ids = [team.id.clone()];
        let change = Change::Delete {
            table: Table::Team,
            ids: &ids,
        };
        let told = Entry::deleted("team", team.id.as_str(), Value::Object(team.fields.clone()));
        task.desk.write(&task.actor, &[change], vec![told]).await?;
        task.desk.drop_keys(&task.actor, &keys).await?;
    }
    Ok(json!({"deleted_teams": ids}))
}

async fn block(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, |task| set_blocked(task, true))
        .await
        .map(Json)
}

async fn unblock(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, |task| set_blocked(task, false))
        .await
        .map(Json)
}

async fn set_blocked(task: Arc<Task>, blocked: bool) -> Result<Value> {
    let mut team = wholly(&task).await?;
    let before = team.clone();
    team.fields.insert("blocked".into(), blocked.into());
    task.touch(&mut team);
    let action = if blocked { "blocked" } else { "unblocked" };
    save(&task, action, &before, &team).await?;
    row(&task.desk, &team).await.map(Value::Object)
}

async fn add_models(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, |task| change_models(task, true))
        .await
        .map(Json)
}

async fn delete_models(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, |task| change_models(task, false))
        .await
        .map(Json)
}

async fn change_models(task: Arc<Task>, add: bool) -> Result<Value> {
    let named = task.fields.texts("models")?;
    if named.is_empty() {
        return Err(missing("models", "The field 'models' is required.").into());
    }
    let mut team = wholly(&task).await?;
    let before = team.clone();
    let mut models = filters::model::party::texts(&team.fields, "models");
    if add {
        // A list that is empty allows all: to name one would take the others away.
        if models.is_empty() {
            let message = "This team may call all models. Set its 'models' with /team/update instead.";
            return Err(wrong_value("models", message).into());
        }
        models.retain(|m| m != NO_MODELS);
        for model in named {
            if !models.contains(&model) {
                models.push(model);
            }
        }
    } else {
        let none = models.is_empty();
        models.retain(|m| !named.contains(m));
        // And one that became empty would allow all.
        if models.is_empty() && !none {
            models.push(NO_MODELS.into());
        }
    }
    team.fields.insert("models".into(), json!(models));
    if models.len() > 10_000 {
        return Err(wrong_type("models", "a list of at most 10000 models").into());
    }
    within_organization(&task, &team).await?;
    task.touch(&mut team);
    save(&task, "updated", &before, &team).await?;
    row(&task.desk, &team).await.map(Value::Object)
}

/// LiteLLM's word for a list that allows no model.
const NO_MODELS: &str = "no-default-models";

/// `GET /team/permissions_list`.
async fn permissions(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let team = seen(&desk, &actor, &params).await?;
    let own = filters::model::party::texts(&team.fields, "team_member_permissions");
    Ok(Json(json!({
        "team_id": team.id,
        "team_member_permissions": own,
        "all_available_permissions": PERMISSIONS,
    })))
}

/// `POST /team/permissions_update`.
async fn set_permissions(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_set_permissions)
        .await
        .map(Json)
}

async fn try_set_permissions(task: Arc<Task>) -> Result<Value> {
    if !task.fields.has("team_member_permissions") {
        let message = "The field 'team_member_permissions' is required.";
        return Err(missing("team_member_permissions", message).into());
    }
    check_permissions(&task.fields)?;
    let id = objects::id(&task.fields, "team_id")?;
    let mut team = TEAM.find(&task.desk, &id).await?;
    reach(&task.desk, &task.actor, &team).await?;
    let before = team.clone();
    let list = task.fields.texts("team_member_permissions")?;
    team.fields.insert("team_member_permissions".into(), json!(list));
    task.touch(&mut team);
    save(&task, "updated", &before, &team).await?;
    row(&task.desk, &team).await.map(Value::Object)
}
