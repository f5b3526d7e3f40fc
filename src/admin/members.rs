//! Members of teams: added, changed, removed. They stand in the team's own row, each with a role and with
//! limits within the team, so that two changes of one team can never undo each other.

use super::Desk;
use super::audit::Entry;
use super::error::{Result, missing, not_found, wrong_type, wrong_value};
use super::fields::{Field, Fields, Kind};
use super::objects::{self, Task, conflict, stored, text};
use super::rights::Actor;
use super::routes::{Route, Who};
use super::teams::{self, TEAM};
use super::users::{self, USER};
use crate::store::{Change, Doc, DocFilter, Page, Table};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing::on;
use filters::model::account::{self, Account, Kind as Subject};
use filters::model::money::Nanos;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
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

/// What a team says of members that say nothing themselves, and the name in the member's entry.
pub const DEFAULTS: [(&str, &str); 4] = [
    ("team_member_budget", "max_budget"),
    ("team_member_budget_duration", "budget_duration"),
    ("team_member_rpm_limit", "rpm_limit"),
    ("team_member_tpm_limit", "tpm_limit"),
];

/// Somebody who is to become a member.
pub struct Wanted {
    pub user_id: Option<String>,
    pub user_email: Option<String>,
    pub role: String,
}

impl Wanted {
    /// An entry of a list, under LiteLLM's names.
    pub fn read(field: &str, entry: &Value, roles: &[&str], usual: &str) -> Result<Self> {
        let Value::Object(entry) = entry else {
            return Err(wrong_type(field, "an object with user_id or user_email, and a role").into());
        };
        let entry = Fields::of(entry.clone());
        let (user_id, user_email) = (entry.id("user_id")?, entry.id("user_email")?);
        if user_id.is_none() && user_email.is_none() {
            let message = format!("Either user_id or user_email must be given for each of '{field}'.");
            return Err(missing(field, message).into());
        }
        let name = if entry.value("user_role").is_some() {
            "user_role"
        } else {
            "role"
        };
        let role = entry.text(name)?.unwrap_or(usual);
        if !roles.contains(&role) {
            return Err(wrong_type(name, &format!("one of {}", roles.join(", "))).into());
        }
        Ok(Self {
            user_id,
            user_email,
            role: role.into(),
        })
    }

    /// One entry, or a list of them.
    pub fn list(given: &Fields, name: &str, roles: &[&str], usual: &str) -> Result<Vec<Self>> {
        let entries: &[Value] = match given.value(name) {
            None => &[],
            Some(Value::Array(list)) => list,
            Some(one) => std::slice::from_ref(one),
        };
        if entries.len() > MOST_NAMED {
            let message = format!("At most {MOST_NAMED} members go into one call.");
            return Err(wrong_value(name, message).into());
        }
        entries
            .iter()
            .map(|e| Self::read(name, e, roles, usual))
            .collect()
    }
}

/// The members of a team or an organization.
pub fn list(fields: &Map<String, Value>) -> &[Value] {
    ["members_with_roles", "members"]
        .iter()
        .find_map(|name| fields.get(*name)?.as_array())
        .map_or(&[], Vec::as_slice)
}

/// Where a member stands in the list: by its id, else by its address.
pub fn place(list: &[Value], user_id: Option<&str>, email: Option<&str>) -> Option<usize> {
    let says = |entry: &Value, name: &str, want: Option<&str>| {
        want.is_some() && entry.get(name).and_then(Value::as_str) == want
    };
    list.iter()
        .position(|e| says(e, "user_id", user_id))
        .or_else(|| match user_id {
            None => list.iter().position(|e| says(e, "user_email", email)),
            Some(_) => None,
        })
}

/// Takes the member's entry out.
pub fn take(doc: &mut Doc, list: &str, at: usize) -> Option<Value> {
    match doc.fields.get_mut(list) {
        Some(Value::Array(entries)) if at < entries.len() => Some(entries.remove(at)),
        _ => None,
    }
}

/// The users behind those who are wanted: each id with its address, and rows for users that are new.
pub struct Users {
    pub known: Vec<(String, Option<String>)>,
    pub new: Vec<Doc>,
}

impl Task {
    /// Finds or makes the users. Somebody who is new has no role of its own: nothing but what its teams
    /// allow.
    pub async fn users_for(&self, wanted: &[Wanted]) -> Result<Users> {
        let ids: BTreeSet<String> = wanted.iter().filter_map(|w| w.user_id.clone()).collect();
        let there = self.desk.by_ids(Table::User, ids.into_iter().collect()).await?;
        let mut users = Users {
            known: Vec::with_capacity(wanted.len()),
            new: Vec::new(),
        };
        for w in wanted {
            let found = match (&w.user_id, &w.user_email) {
                (Some(id), _) => there.iter().find(|d| d.id == *id).cloned(),
                (None, Some(email)) => users::by_email(&self.desk, email).await?,
                (None, None) => None,
            };
            let made = |d: &&Doc| match &w.user_id {
                Some(id) => d.id == *id,
                None => text(&d.fields, "user_email") == w.user_email.as_deref(),
            };
            let user = match (found, users.new.iter().find(made)) {
                (Some(user), _) => user,
                (None, Some(user)) => user.clone(),
                (None, None) => {
                    let id = w
                        .user_id
                        .clone()
                        .unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
                    let mut user = self.blank(id);
                    if let Some(email) = &w.user_email {
                        // An address leads to one user: nobody takes another's by making a user of it.
                        let taken = |d: &Doc| text(&d.fields, "user_email") == Some(email);
                        if w.user_id.is_some()
                            && (users.new.iter().any(taken)
                                || users::by_email(&self.desk, email).await?.is_some())
                        {
                            return Err(conflict(
                                "user_email",
                                format!("User with email {email} already exists under another user_id."),
                            ));
                        }
                        user.fields.insert("user_email".into(), email.as_str().into());
                    }
                    users.new.push(user.clone());
                    user
                }
            };
            let email = text(&user.fields, "user_email").or(w.user_email.as_deref());
            users.known.push((user.id.clone(), email.map(Into::into)));
        }
        Ok(users)
    }
}

/// The entry of a new member: what is said of it, else what the team says of its members.
fn entry(
    team: &Map<String, Value>,
    user: &(String, Option<String>),
    role: &str,
    limits: &Map<String, Value>,
    now: i64,
) -> Value {
    let mut entry = Map::new();
    entry.insert("user_id".into(), user.0.as_str().into());
    if let Some(email) = &user.1 {
        entry.insert("user_email".into(), email.as_str().into());
    }
    entry.insert("role".into(), role.into());
    for (default, name) in DEFAULTS {
        let value = team.get(default).filter(|v| !v.is_null());
        if let Some(value) = value.filter(|_| !limits.contains_key(name)) {
            entry.insert(name.into(), value.clone());
        }
    }
    entry.extend(limits.clone());
    if entry.contains_key("budget_duration") {
        entry.insert("budget_since_micros".into(), now.into());
    }
    Value::Object(entry)
}

/// The limits that a body gives to members, under the names that are kept.
fn limits(given: &Fields, into: Map<String, Value>, now: i64) -> Result<Map<String, Value>> {
    let mut within = into;
    if let Some(budget) = within.remove("max_budget") {
        within.insert("max_budget_in_team".into(), budget);
    }
    objects::keep(&[WITHIN], given, &mut within, now)?;
    if let Some(budget) = within.remove("max_budget_in_team") {
        within.insert("max_budget".into(), budget);
    }
    Ok(within)
}

/// Puts members into a team that is written afterwards. Those who are in already are returned apart.
pub fn join(
    team: &mut Doc,
    users: &[(String, Option<String>)],
    roles: &[&str],
    limits: &Map<String, Value>,
    now: i64,
) -> Result<(Vec<Value>, Vec<String>)> {
    let fields = team.fields.clone();
    let list = team
        .fields
        .entry("members_with_roles")
        .or_insert_with(|| json!([]));
    let Value::Array(list) = list else {
        return Err(wrong_value("team_id", "The members of this team cannot be read.").into());
    };
    let mut there: BTreeSet<String> = list
        .iter()
        .filter_map(|m| m.get("user_id")?.as_str().map(Into::into))
        .collect();
    let (mut added, mut twice) = (Vec::new(), Vec::new());
    for (user, role) in users.iter().zip(roles) {
        if !there.insert(user.0.clone()) {
            twice.push(user.0.clone());
            continue;
        }
        let entry = entry(&fields, user, role, limits, now);
        // An address that was in without an id is this user now.
        list.retain(|m| {
            let named = m.get("user_id").is_some_and(Value::is_string);
            named || user.1.is_none() || m.get("user_email").and_then(Value::as_str) != user.1.as_deref()
        });
        list.push(entry.clone());
        added.push(entry);
    }
    if list.len() > MOST {
        return Err(wrong_value("member", format!("A team has at most {MOST} members.")).into());
    }
    Ok((added, twice))
}

/// Members as `members_with_roles` shows them.
pub fn shown(entry: &Value) -> Value {
    let field = |name: &str| entry.get(name).cloned().unwrap_or_default();
    json!({
        "user_id": field("user_id"),
        "user_email": field("user_email"),
        "role": field("role"),
        "max_budget": field("max_budget"),
        "budget_duration": field("budget_duration"),
        "tpm_limit": field("tpm_limit"),
        "rpm_limit": field("rpm_limit"),
    })
}

impl Desk {
    /// LiteLLM's memberships: what each member spent in the team, and its limits there.
    pub async fn memberships(&self, team_id: &str, entries: &[Value]) -> Result<Vec<Value>> {
        let named: Vec<(&str, &Map<String, Value>)> = entries
            .iter()
            .filter_map(|e| Some((e.get("user_id")?.as_str()?, e.as_object()?)))
            .collect();
        let accounts: Vec<Account> = named
            .iter()
            .map(|(user, _)| Account::new(Subject::Member, account::member(team_id, user)))
            .collect();
        let spent = self.spent(&accounts).await?;
        let rows = named.iter().enumerate().map(|(i, (user, entry))| {
            json!({
                "user_id": user,
                "team_id": team_id,
                "role": entry.get("role"),
                "budget_id": null,
                "spend": Nanos(spent.get(i).map_or(0, |b| b.period_nanos)),
                "total_spend": Nanos(spent.get(i).map_or(0, |b| b.total_nanos)),
                "litellm_budget_table": objects::budget_table(self, entry, None),
            })
        });
        Ok(rows.collect())
    }
}

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

/// Members whose limits were the team's defaults have the new ones.
pub fn follow_defaults(before: &Map<String, Value>, team: &mut Doc, now: i64) {
    let after = team.fields.clone();
    let Some(Value::Array(entries)) = team.fields.get_mut("members_with_roles") else {
        return;
    };
    let set = |v: Option<&Value>| v.filter(|v| !v.is_null()).cloned();
    for (default, name) in DEFAULTS {
        let (old, new) = (set(before.get(default)), set(after.get(default)));
        if old == new {
            continue;
        }
        for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
            if set(entry.get(name)) != old {
                continue;
            }
            match &new {
                Some(value) => entry.insert(name.into(), value.clone()),
                None => entry.remove(name),
            };
            if name == "budget_duration" {
                entry.insert("budget_since_micros".into(), now.into());
            }
        }
    }
}

/// Adds one user to one team, as `/user/new` does it for the teams it names.
pub fn enlist(
    team: &mut Doc,
    user: &Doc,
    role: &str,
    budget: Option<&Value>,
    now: i64,
) -> Result<Vec<Value>> {
    let email = text(&user.fields, "user_email").map(Into::into);
    let mut limits = Map::new();
    if let Some(budget) = budget {
        limits.insert(
            "max_budget".into(),
            Kind::Money.read("max_budget_in_team", budget)?,
        );
    }
    if !ROLES.contains(&role) {
        return Err(wrong_type("user_role", &format!("one of {}", ROLES.join(", "))).into());
    }
    let (added, twice) = join(team, &[(user.id.clone(), email)], &[role], &limits, now)?;
    match twice.first() {
        Some(_) => Err(conflict(
            "teams",
            format!("The team {} is named twice.", stored(team, "team_alias")),
        )),
        None => Ok(added),
    }
}
