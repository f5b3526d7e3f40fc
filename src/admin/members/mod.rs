//! Members of teams: added, changed, removed. They stand in the team's own row, each with a role and with
//! limits within the team, so that two changes of one team can never undo each other; see `roster`.

mod roster;

pub use roster::{Wanted, enlist, follow_defaults, join, list, place, shown, take};

use super::Desk;
use super::audit::Entry;
use super::error::{Result, missing, not_found, wrong_value};
use super::fields::{Field, Fields, Kind};
use super::objects::{self, Task, text};
use super::rights::Actor;
use super::routes::{Route, Who};
use super::teams::{self, TEAM};
use super::users::{self, USER};
use crate::store::{Change, Doc, DocFilter, Page, Table};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing::on;
use roster::limits;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Members of one team or organization.
pub const MOST: usize = 10_000;
/// Members that one call names.
const MOST_NAMED: usize = 500;

const ROLES: &[&str] = &["admin", "user"];

pub const ROUTES: &[Route] = &[
    Route {
        group: "teams",
        who: Who::Manager,
        summary: "Add members to a team",
        body: &[OF_TEAM, MEMBER, WITHIN],
        answer: "TeamWithMembers",
        ..Route::post(&["/team/member_add"], |m| on(m, add))
    },
    Route {
        group: "teams",
        who: Who::Manager,
        summary: "Add many members to a team, each told apart",
        body: &[
            OF_TEAM,
            &[
                Field::new(
                    "members",
                    Kind::Objects,
                    "Each with user_id or user_email, and a role",
                ),
                Field::new("all_users", Kind::Flag, "Everybody in place of a list"),
            ],
            WITHIN,
        ],
        answer: "BulkMembers",
        ..Route::post(&["/team/bulk_member_add"], |m| on(m, add_many))
    },
    Route {
        group: "teams",
        who: Who::Manager,
        summary: "Change a member's role and limits within its team",
        body: &[OF_TEAM, ONE, &[ROLE], WITHIN],
        answer: "Member",
        ..Route::post(&["/team/member_update"], |m| on(m, update))
    },
    Route {
        group: "teams",
        who: Who::Manager,
        summary: "Take a member out of a team, with its keys for that team",
        body: &[OF_TEAM, ONE],
        answer: "Team",
        ..Route::post(&["/team/member_delete"], |m| on(m, delete))
    },
];

pub const OF_TEAM: &[Field] = &[Field::required("team_id", Kind::Id, "Which team")];
const MEMBER: &[Field] = &[Field::required(
    "member",
    Kind::Object,
    "user_id or user_email, and a role; or a list of these",
)];
const ONE: &[Field] = &[
    Field::new("user_id", Kind::Id, "Which member"),
    Field::new("user_email", Kind::Id, "The same, by its address"),
];
const ROLE: Field = Field::new("role", Kind::OneOf(ROLES), "admin or user");

/// A member's limits within its team.
const WITHIN: &[Field] = &[
    Field::new(
        "max_budget_in_team",
        Kind::Money,
        "Dollars the member may spend in this team",
    ),
    Field::new("budget_duration", Kind::Period, "When that starts anew"),
    Field::new("tpm_limit", Kind::Count, "Tokens per minute"),
    Field::new("rpm_limit", Kind::Count, "Requests per minute"),
    Field::new("max_parallel_requests", Kind::Count, "Calls at once"),
];

/// Puts changed teams and new users down, with a line for each.
async fn save(task: &Task, team: &Doc, new: &[Doc], told: Entry) -> Result<()> {
    let mut changes = vec![Change::Put {
        table: Table::Team,
        doc: team,
    }];
    let mut entries = vec![told];
    for user in new {
        changes.push(Change::Put {
            table: Table::User,
            doc: user,
        });
        entries.push(users::created(user));
    }
    // A user that somebody else made meanwhile is found when all this is begun again.
    let written = task.desk.write(&task.actor, &changes, entries).await;
    written.map_err(|e| match e {
        crate::store::StoreError::Conflict { .. } => crate::store::StoreError::Stale(team.id.clone()).into(),
        e => e.into(),
    })
}

/// What is told of a change of members: those it is about, not all there are.
pub fn told(team_id: &str, before: Vec<Value>, after: Vec<Value>) -> Entry {
    let members = |list: Vec<Value>| json!({"members_with_roles": list});
    Entry::updated("team", team_id, members(before), members(after))
}

/// The team that a call is about, if its caller leads it.
async fn led(task: &Task) -> Result<Doc> {
    let id = objects::id(&task.fields, "team_id")?;
    let team = TEAM.find(&task.desk, &id).await?;
    if task.desk.leads(&task.actor, &team).await? {
        return Ok(team);
    }
    Err(teams::not_led(&task.actor, &id))
}

/// `POST /team/member_add`.
pub async fn add(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_add).await.map(Json)
}

async fn try_add(task: Arc<Task>) -> Result<Value> {
    let mut team = led(&task).await?;
    let wanted = Wanted::list(&task.fields, "member", ROLES, "user")?;
    if wanted.is_empty() {
        return Err(missing("member", "The field 'member' is required.").into());
    }
    let limits = limits(&task.fields, Map::new(), task.now)?;
    let users = task.users_for(&wanted).await?;
    let roles: Vec<&str> = wanted.iter().map(|w| w.role.as_str()).collect();
    let (added, twice) = join(&mut team, &users.known, &roles, &limits, task.now)?;
    if let Some(user) = twice.first() {
        return Err(conflict_in_team(user));
    }
    task.touch(&mut team);
    save(
        &task,
        &team,
        &users.new,
        told(&team.id, Vec::new(), added.clone()),
    )
    .await?;
    let mut row = teams::row(&task.desk, &team).await?;
    row.insert("updated_users".into(), updated_users(&task, &added).await?.into());
    row.insert(
        "updated_team_memberships".into(),
        task.desk.memberships(&team.id, &added).await?.into(),
    );
    Ok(Value::Object(row))
}

fn conflict_in_team(user: &str) -> super::Stopped {
    let user: String = user.chars().take(200).collect();
    filters::contract::Refusal::new(
        400,
        "team_member_already_in_team",
        format!("User with user_id={user} already in team. Use /team/member_update to change it."),
    )
    .param("user_id")
    .into()
}

/// The rows of members' users.
async fn updated_users(task: &Task, added: &[Value]) -> Result<Vec<Value>> {
    let ids = added
        .iter()
        .filter_map(|m| Some(m.get("user_id")?.as_str()?.to_string()));
    let docs = task.desk.by_ids(Table::User, ids.collect()).await?;
    let rows = task.desk.rows(&USER, &docs).await?;
    Ok(rows.into_iter().map(Value::Object).collect())
}

/// `POST /team/bulk_member_add`: those who can be added are, the others are told apart.
pub async fn add_many(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_add_many).await.map(Json)
}

async fn try_add_many(task: Arc<Task>) -> Result<Value> {
    let mut team = led(&task).await?;
    let wanted = if task.fields.flag("all_users")?.unwrap_or(false) {
        // Whoever sees all users may name them all at once.
        if !task.actor.is_admin() {
            return Err(objects::above(
                "all_users",
                "Only a proxy admin may add all users.",
            ));
        }
        everybody(&task.desk).await?
    } else {
        Wanted::list(&task.fields, "members", ROLES, "user")?
    };
    if wanted.is_empty() {
        return Err(missing("members", "Name 'members', or set 'all_users'.").into());
    }
    let limits = limits(&task.fields, Map::new(), task.now)?;
    let users = task.users_for(&wanted).await?;
    let roles: Vec<&str> = wanted.iter().map(|w| w.role.as_str()).collect();
    let (added, twice) = join(&mut team, &users.known, &roles, &limits, task.now)?;
    if !added.is_empty() {
        task.touch(&mut team);
        save(
            &task,
            &team,
            &users.new,
            told(&team.id, Vec::new(), added.clone()),
        )
        .await?;
    }
    let memberships = task.desk.memberships(&team.id, &added).await?;
    let good = added.iter().zip(memberships).map(|(member, membership)| {
        json!({
            "user_id": member.get("user_id"),
            "user_email": member.get("user_email"),
            "success": true,
            "error": null,
            "updated_team_membership": membership,
        })
    });
    let bad = twice.iter().map(|id| {
        json!({
            "user_id": id,
            "user_email": null,
            "success": false,
            "error": format!("User with user_id={id} already in team."),
            "updated_team_membership": null,
        })
    });
    let results: Vec<Value> = good.chain(bad).collect();
    Ok(json!({
        "team_id": team.id,
        "total_requested": wanted.len(),
        "successful_additions": added.len(),
        "failed_additions": twice.len(),
        "results": results,
        "updated_team": teams::row(&task.desk, &team).await?,
    }))
}

async fn everybody(desk: &Desk) -> Result<Vec<Wanted>> {
    let filter = DocFilter {
        page: Page {
            limit: MOST as u32,
            offset: 0,
        },
        ..DocFilter::default()
    };
    let found = desk.store.documents(Table::User, &filter).await?;
    if found.total > MOST as u64 {
        return Err(wrong_value("all_users", format!("A team has at most {MOST} members.")).into());
    }
    let wanted = found.docs.into_iter().map(|user| Wanted {
        user_email: text(&user.fields, "user_email").map(Into::into),
        user_id: Some(user.id),
        role: "user".into(),
    });
    Ok(wanted.collect())
}

/// The member that a call names, as its place in the team.
fn named(given: &Fields, entries: &[Value]) -> Result<usize> {
    let (user_id, email) = (given.id("user_id")?, given.id("user_email")?);
    if user_id.is_none() && email.is_none() {
        return Err(missing("user_id", "Either user_id or user_email must be given.").into());
    }
    place(entries, user_id.as_deref(), email.as_deref()).ok_or_else(|| {
        let name: String = user_id.or(email).unwrap_or_default().chars().take(200).collect();
        not_found("user_id", format!("User not found in team. Passed in {name}.")).into()
    })
}

/// `POST /team/member_update`: what is named changes, null unsets.
pub async fn update(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_update).await.map(Json)
}

async fn try_update(task: Arc<Task>) -> Result<Value> {
    let mut team = led(&task).await?;
    let at = named(&task.fields, list(&team.fields))?;
    let Some(Value::Object(before)) = take(&mut team, "members_with_roles", at) else {
        return Err(wrong_value("user_id", "This member cannot be read.").into());
    };
    let mut after = limits(&task.fields, before.clone(), task.now)?;
    if let Some(role) = task.fields.value("role") {
        after.insert("role".into(), ROLE.kind.read("role", role)?);
    }
    if let Some(Value::Array(entries)) = team.fields.get_mut("members_with_roles") {
        entries.insert(at.min(entries.len()), Value::Object(after.clone()));
    }
    task.touch(&mut team);
    let told = told(
        &team.id,
        vec![Value::Object(before)],
        vec![Value::Object(after.clone())],
    );
    save(&task, &team, &[], told).await?;
    let field = |name: &str| after.get(name).cloned().unwrap_or_default();
    Ok(json!({
        "team_id": team.id,
        "user_id": field("user_id"),
        "user_email": field("user_email"),
        "role": field("role"),
        "max_budget_in_team": field("max_budget"),
        "budget_duration": field("budget_duration"),
        "tpm_limit": field("tpm_limit"),
        "rpm_limit": field("rpm_limit"),
        "max_parallel_requests": field("max_parallel_requests"),
    }))
}

/// `POST /team/member_delete`. The member's keys for this team go with it, before and after: a key that is
/// made in between would outlive its reason.
pub async fn delete(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_delete).await.map(Json)
}

async fn try_delete(task: Arc<Task>) -> Result<Value> {
    let mut team = led(&task).await?;
    let at = named(&task.fields, list(&team.fields))?;
    let Some(gone) = take(&mut team, "members_with_roles", at) else {
        return Err(wrong_value("user_id", "This member cannot be read.").into());
    };
    let keys = gone
        .get("user_id")
        .and_then(Value::as_str)
        .map(|user| crate::store::KeyFilter {
            user_id: Some(user.into()),
            team_id: Some(team.id.clone()),
            ..Default::default()
        });
    if let Some(keys) = &keys {
        task.desk.drop_keys(&task.actor, keys).await?;
    }
    task.touch(&mut team);
    let told = told(&team.id, vec![gone], Vec::new());
    save(&task, &team, &[], told).await?;
    if let Some(keys) = &keys {
        task.desk.drop_keys(&task.actor, keys).await?;
    }
    teams::row(&task.desk, &team).await.map(Value::Object)
}
