//! How a user is made: by whom, into which teams and organizations, and with which key.

use super::gone::remove;
use super::{LOWER_ROLES, MOST_NAMED, OF_KEY, USER, by_email, created, no_password};
use crate::admin::error::{Result, wrong_type, wrong_value};
use crate::admin::fields::{Field, Fields};
use crate::admin::members::{self, told};
use crate::admin::objects::{self, Task, above, conflict, text};
use crate::admin::organizations::{self, ORGANIZATION};
use crate::admin::rights::{Actor, Role};
use crate::admin::shapes::DEFAULT_USER;
use crate::admin::teams::TEAM;
use crate::admin::{Desk, issue};
use crate::store::{Change, Doc, DocFilter, KeyFilter, Page, Table};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use serde_json::{Map, Value};
use std::sync::Arc;

/// `POST /user/new`.
pub(super) async fn new(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let (user, teams, fields) = objects::run(actor.clone(), Arc::clone(&desk), body, try_new).await?;
    let row = desk.row(&USER, &user).await?;
    let mut answer = match fields.flag("auto_create_key")? {
        Some(false) => Map::new(),
        _ => {
            let made = first_key(&actor, &desk, &user, &fields).await;
            match made {
                Ok(Json(Value::Object(key))) => key,
                Ok(_) => Map::new(),
                // All or nothing: without its key the user is not there either.
                Err(stopped) => {
                    if let Err(e) = undo(actor, desk, user).await {
                        log::warn!("event=user_left_over cause={:?}", e.0.shown());
                    }
                    return Err(stopped);
                }
            }
        }
    };
    // The key's own hash is told nowhere in this answer, as in LiteLLM.
    answer.extend(row);
    for name in ["token", "token_id"] {
        answer.insert(name.into(), Value::Null);
    }
    answer.entry("key").or_insert(Value::Null);
    answer.insert("teams".into(), teams.into());
    Ok(Json(Value::Object(answer)))
}

/// The key that a new user gets, made as `/key/generate` makes it. The user's limits are the user's: its
/// key has none of its own.
async fn first_key(actor: &Actor, desk: &Arc<Desk>, user: &Doc, fields: &Fields) -> Result<Json<Value>> {
    let mut key = Map::new();
    key.insert("user_id".into(), user.id.as_str().into());
    for Field { name, .. } in OF_KEY {
        if let Some(value) = fields.value(name) {
            key.insert((*name).into(), value.clone());
        }
    }
    // What an organization's admin makes stays within the organization. A team's key is within its team's.
    if !actor.is_admin()
        && !key.contains_key("team_id")
        && let Some(organization) = fields.texts("organizations")?.into_iter().next()
    {
        key.insert("organization_id".into(), organization.into());
    }
    // Whoever may make the user may make this one key of it.
    let maker = match actor.is_admin() {
        true => actor.clone(),
        false => Actor {
            role: Role::Admin,
            changed_by: None,
            ..actor.clone()
        },
    };
    issue::make(Arc::clone(desk), maker, Fields::of(key)).await
}

async fn undo(actor: Actor, desk: Arc<Desk>, user: Doc) -> Result<()> {
    crate::admin::settle(move || {
        let (actor, desk, id) = (actor.clone(), Arc::clone(&desk), user.id.clone());
        async move { remove(&desk, &actor, &id).await }
    })
    .await
}

async fn try_new(task: Arc<Task>) -> Result<(Doc, Vec<Value>, Fields)> {
    let fields = &task.fields;
    no_password(fields)?;
    // Before anything is written, what is looked at after it.
    fields.flag("send_invite_email")?;
    fields.flag("auto_create_key")?;
    let joins = Joins::read(fields)?;
    let mut user = task.blank(objects::id_or_new(fields, "user_id")?);
    task.keep(USER.fields, &mut user)?;
    may_make(&task, &joins).await?;
    task.check_budget().await?;
    if task.desk.store.document(Table::User, &user.id).await?.is_some() {
        return Err(USER.exists(&user.id));
    }
    if let Some(email) = text(&user.fields, "user_email")
        && by_email(&task.desk, email).await?.is_some()
    {
        return Err(conflict(
            "user_email",
            format!("User with email {email} already exists"),
        ));
    }
    let mut teams = Vec::new();
    let mut entries = vec![created(&user)];
    for (id, role, budget) in &joins.teams {
        let mut team = TEAM.find(&task.desk, id).await?;
        let added = members::enlist(&mut team, &user, role, budget.as_ref(), task.now)?;
        task.touch(&mut team);
        entries.push(told(id, Vec::new(), added));
        teams.push(team);
    }
    let mut organizations = Vec::new();
    for id in &joins.organizations {
        let mut organization = ORGANIZATION.find(&task.desk, id).await?;
        let added = organizations::enlist(&mut organization, &user)?;
        task.touch(&mut organization);
        entries.push(organizations::told(id, Vec::new(), vec![added]));
        organizations.push(organization);
    }
    let mut changes = vec![Change::Put {
        table: Table::User,
        doc: &user,
    }];
    changes.extend(teams.iter().map(|doc| Change::Put {
        table: Table::Team,
        doc,
    }));
    changes.extend(organizations.iter().map(|doc| Change::Put {
        table: Table::Organization,
        doc,
    }));
    let written = task.desk.write(&task.actor, &changes, entries).await;
    written.map_err(|e| USER.refused(e, &user.id))?;
    let teams = joins.teams.iter().map(|(id, ..)| id.as_str().into()).collect();
    Ok((user, teams, fields.clone()))
}

/// Where a new user goes.
struct Joins {
    /// Team, role there, budget there.
    teams: Vec<(String, String, Option<Value>)>,
    organizations: Vec<String>,
}

impl Joins {
    fn read(fields: &Fields) -> Result<Self> {
        let entries = match fields.value("teams") {
            None => &[][..],
            Some(Value::Array(list)) if list.len() <= MOST_NAMED => list,
            Some(_) => return Err(wrong_type("teams", "a list of at most 500 team ids").into()),
        };
        let team = |entry: &Value| match entry {
            Value::String(id) => Ok((id.clone(), "user".to_string(), None)),
            Value::Object(entry) => {
                let entry = Fields::of(entry.clone());
                let role = entry.text("user_role")?.unwrap_or("user").to_string();
                let budget = entry.value("max_budget_in_team").cloned();
                Ok((entry.required("team_id")?.to_string(), role, budget))
            }
            _ => Err(wrong_type("teams", "a list of team ids").into()),
        };
        let organizations = fields.texts("organizations")?;
        if organizations.len() > MOST_NAMED {
            return Err(wrong_value("organizations", "Too many organizations for one call.").into());
        }
        Ok(Self {
            teams: entries.iter().map(team).collect::<Result<_>>()?,
            organizations,
        })
    }
}

/// An admin; or an organization's admin, for its organization and with a low role.
async fn may_make(task: &Task, joins: &Joins) -> Result<()> {
    let (desk, actor, fields) = (&task.desk, &task.actor, &task.fields);
    if actor.is_admin() {
        return Ok(());
    }
    if joins.organizations.is_empty() {
        return Err(actor.not_admin());
    }
    for id in &joins.organizations {
        if !desk.leads_organization(actor, id).await? {
            return Err(above(
                "organizations",
                "Only an admin of an organization may add users to it.",
            ));
        }
    }
    for (id, ..) in &joins.teams {
        if !desk.leads_team(actor, id).await? {
            return Err(above("teams", "Only an admin of a team may add users to it."));
        }
    }
    if let Some(id) = fields.id("team_id")?
        && !desk.leads_team(actor, &id).await?
    {
        return Err(above("team_id", "Only an admin of a team may make keys for it."));
    }
    // An id that keys or teams know already is somebody's, even where nobody has made the user: whoever gets a key
    // of it would own theirs.
    if let Some(id) = fields.id("user_id")? {
        let one = Page { limit: 1, offset: 0 };
        let keys = KeyFilter {
            user_id: Some(id.clone()),
            ..KeyFilter::default()
        };
        let teams = DocFilter {
            member: Some(id.clone()),
            page: one,
            ..DocFilter::default()
        };
        if id == DEFAULT_USER
            || desk.store.list_keys(&keys, one).await?.total > 0
            || desk.store.documents(Table::Team, &teams).await?.total > 0
        {
            return Err(USER.exists(&id));
        }
    }
    if let Some(role) = fields.text("user_role")?
        && !LOWER_ROLES.contains(&role)
    {
        let message = format!(
            "An organization's admin may give the roles {}.",
            LOWER_ROLES.join(", ")
        );
        return Err(above("user_role", message));
    }
    let closed = [
        "permissions",
        "allowed_routes",
        "key_type",
        "budget_id",
        "organization_id",
        "object_permission",
    ];
    match closed.into_iter().find(|name| fields.value(name).is_some()) {
        Some(name) => Err(above(name, format!("Only a proxy admin may set '{name}'."))),
        None => Ok(()),
    }
}
