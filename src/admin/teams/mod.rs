//! Teams: made, changed, blocked, deleted. How they are shown stands in `show`, how far whose rights reach in
//! `reach`, their models and permissions in `allowed`, who is told of their calls in `logging`, their members in
//! [`members`](super::members).

mod allowed;
pub mod logging;
mod reach;
mod show;

pub use reach::not_led;
pub use show::{all_of_user, of_user, row};

use super::audit::Entry;
use super::error::Result;
use super::fields::{Field, Kind};
use super::members::{self, OF_TEAM, Wanted};
use super::objects::{self, LIMITS, NAMED_BUDGET, Sort, Task, above, text};
use super::rights::Actor;
use super::routes::{Route, Who};
use super::{Desk, shapes, users};
use crate::store::{Change, Doc, KeyFilter, Table};
use allowed::{add_models, check_permissions, delete_models, permissions, set_permissions};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing::on;
use reach::{Reach, no_more_than_before, reach, same_weight, wholly, within_organization};
use serde_json::{Map, Value, json};
use show::{LISTED, info, list, pages};
use std::sync::Arc;

/// Teams that one call deletes.
const MOST_NAMED: usize = 500;

const ROLES: &[&str] = &["admin", "user"];

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
    Field::new("tags", Kind::Texts, "Calls of its keys are counted under these"),
    Field::new(
        "enforced_params",
        Kind::Texts,
        "Fields that a call's body must hold, as user or metadata.generation_name",
    ),
    Field::new("guardrails", Kind::Texts, "Kept"),
    Field::new("policies", Kind::Texts, "Kept"),
    Field::new("prompts", Kind::Texts, "Kept"),
    Field::new("object_permission", Kind::Settings, "Kept"),
    Field::new("router_settings", Kind::Settings, "Kept"),
    Field::new("allowed_passthrough_routes", Kind::Texts, "Kept"),
    Field::new("access_group_ids", Kind::Texts, "Kept"),
    Field::new("tpd_limit", Kind::Count, "Kept"),
    Field::new(
        "queue_weight",
        Kind::Weight,
        "Turns that it gets in the queue for each of the others'; 1 unless said",
    ),
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
    Field::new(
        "team_member_key_duration",
        Kind::Period,
        "How long keys live that members make, or that are made for them, unless less is said",
    ),
    Field::new(
        "team_member_permissions",
        Kind::Texts,
        "Calls that members may make for the team's keys, as /key/generate",
    ),
    Field::new("default_team_member_models", Kind::Texts, "Kept"),
];

const MADE: &[Field] = &[
    Field::new("team_id", Kind::Id, "Its id; none = a new one"),
    Field::new(
        "members_with_roles",
        Kind::Objects,
        "Members: user_id or user_email, and a role",
    ),
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

/// `POST /team/new`. Whoever makes it becomes its first admin, as in LiteLLM.
async fn new(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_new).await.map(Json)
}

async fn try_new(task: Arc<Task>) -> Result<Value> {
    let mut fields = task.fields.clone();
    fields.lift(&Map::new());
    let fields = &fields;
    let mut team = task.blank(objects::id_or_new(fields, "team_id")?);
    objects::keep(TEAM.fields, fields, &mut team.fields, task.now)?;
    check_permissions(fields)?;
    if !task.actor.is_admin() && text(&team.fields, "organization_id").is_none() {
        return Err(task.actor.not_admin());
    }
    task.check_budget().await?;
    same_weight(&task, None, &team)?;
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
    let mut fields = task.fields.clone();
    let metadata = team.fields.get("metadata").and_then(Value::as_object);
    fields.lift(metadata.unwrap_or(&Map::new()));
    objects::keep(TEAM.fields, &fields, &mut team.fields, task.now)?;
    check_permissions(&fields)?;
    if reach == Reach::Team {
        no_more_than_before(&fields, &before, &team)?;
    } else {
        task.check_budget().await?;
        same_weight(&task, Some(&before), &team)?;
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
