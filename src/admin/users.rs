//! Users: made, changed, shown, deleted. A user's teams are those that list it as a member; nothing about
//! them is kept with the user.
//!
//! Passwords are neither taken nor kept: nobody logs in here with one.

use super::ask::{Params, Slice};
use super::audit::Entry;
use super::error::{Result, forbidden, missing, not_found, wrong_type, wrong_value};
use super::fields::{Field, Fields, Kind};
use super::members::{self, told};
use super::objects::{self, LIMITS, NAMED_BUDGET, Sort, Task, above, conflict, paged, text};
use super::organizations::{self, ORGANIZATION};
use super::rights::{Actor, Role};
use super::routes::{Route, Who};
use super::shapes::{self, DEFAULT_USER};
use super::teams::{self, TEAM};
use super::{Desk, issue};
use crate::store::{Change, Doc, DocFilter, KeyFilter, Page, Table};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing::on;
use filters::model::account::{Account, Kind as Subject};
use filters::model::money::Nanos;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Keys of one answer, unless `size` says otherwise.
const KEYS: u64 = 100;
const MOST_KEYS: u64 = 500;
/// Users that one call deletes; teams that one call names.
const MOST_NAMED: usize = 500;
/// Teams that are changed in one transaction when a member goes.
const TEAMS_AT_ONCE: u32 = 20;
/// Rounds of that.
const ROUNDS: usize = 1_000;

/// LiteLLM's roles.
pub const ROLES: &[&str] = &[
    "proxy_admin",
    "proxy_admin_viewer",
    "org_admin",
    "internal_user",
    "internal_user_viewer",
    "team",
    "customer",
];

/// Roles that an organization's admin may give.
const LOWER_ROLES: &[&str] = &["internal_user", "internal_user_viewer"];

pub const USER: Sort = Sort {
    table: Table::User,
    id: "user_id",
    fields: &[PLAIN, LIMITS, NAMED_BUDGET],
};

const PLAIN: &[Field] = &[
    Field::new("user_alias", Kind::Id, "What people call it"),
    Field::new("user_email", Kind::Id, "Its address; each user another one"),
    Field::new(
        "user_role",
        Kind::OneOf(ROLES),
        "What it may do on the whole gateway",
    ),
    Field::new("models", Kind::List, "Models its keys may call; none = all"),
    Field::new("metadata", Kind::Object, "Whatever one likes"),
    Field::new("organization_id", Kind::Id, "Kept"),
    Field::new("sso_user_id", Kind::Id, "Kept"),
    Field::new("allowed_cache_controls", Kind::List, "Kept"),
    Field::new("object_permission", Kind::Settings, "Kept"),
    Field::new("policies", Kind::Texts, "Kept"),
];

const OWN_ID: &[Field] = &[Field::new("user_id", Kind::Id, "Its id; none = a new one")];

/// What is done besides when a user is made.
const JOINS: &[Field] = &[
    Field::new("teams", Kind::List, "Teams it becomes a member of"),
    Field::new(
        "organizations",
        Kind::Texts,
        "Organizations it becomes a member of",
    ),
    Field::new(
        "auto_create_key",
        Kind::Flag,
        "Whether it gets a key; true unless false",
    ),
    Field::new(
        "send_invite_email",
        Kind::Flag,
        "Taken for LiteLLM's scripts; nothing is sent",
    ),
];

/// Fields of the key that a new user gets.
const OF_KEY: &[Field] = &[
    Field::new("key_alias", Kind::Id, "The key's alias"),
    Field::new("team_id", Kind::Id, "The team that the key is used for"),
    Field::new(
        "duration",
        Kind::Period,
        "How long the key lives; none = for ever",
    ),
    Field::new("aliases", Kind::Names, "The key's own names for models"),
    Field::new("permissions", Kind::Object, "What the key may do besides"),
    Field::new("config", Kind::Object, "Kept"),
    Field::new("blocked", Kind::Flag, "Whether the key is refused"),
    Field::new("guardrails", Kind::Texts, "Kept"),
    Field::new("tags", Kind::Texts, "The key's calls are counted under these"),
    Field::new(
        "key_type",
        Kind::Text,
        "llm_api, management, read_only or default",
    ),
    Field::new("allowed_routes", Kind::List, "Paths that the key may call"),
];

pub const ROUTES: &[Route] = &[
    Route {
        group: "users",
        who: Who::Manager,
        summary: "Make a user, and a key for it",
        body: &[OWN_ID, PLAIN, LIMITS, NAMED_BUDGET, JOINS, OF_KEY],
        answer: "UserMade",
        ..Route::post(&["/user/new"], |m| on(m, new))
    },
    Route {
        group: "users",
        who: Who::Reader,
        summary: "A user with its keys and teams; without one, the user who asks",
        query: &[
            Field::new("user_id", Kind::Text, "Whom"),
            Field::new("page", Kind::Count, "Page of its keys, from 1"),
            Field::new("size", Kind::Count, "Keys of a page"),
        ],
        answer: "UserInfo",
        ..Route::get(&["/user/info"], |m| on(m, info))
    },
    Route {
        group: "users",
        who: Who::Holder,
        summary: "Change a user; one's own alias and metadata without being an admin",
        body: &[OWN_ID, PLAIN, LIMITS, NAMED_BUDGET],
        answer: "UserUpdated",
        ..Route::post(&["/user/update"], |m| on(m, update))
    },
    Route {
        group: "users",
        who: Who::Overseer,
        summary: "Users, newest first",
        query: &[
            Field::new("role", Kind::OneOf(ROLES), "Users of this role"),
            Field::new("user_ids", Kind::Text, "These, with commas between"),
            Field::new("sso_user_ids", Kind::Text, "The one of this sign-on id"),
            Field::new("user_email", Kind::Text, "A part of the address"),
            Field::new("search", Kind::Text, "A part of id, address or alias"),
            Field::new("team", Kind::Text, "Members of this team"),
            Field::new(
                "sort_by",
                Kind::Text,
                "user_id, user_email, user_alias, user_role, created_at",
            ),
            Field::new("sort_order", Kind::OneOf(&["asc", "desc"]), "asc unless desc"),
            Field::new("page", Kind::Count, "From 1"),
            Field::new("page_size", Kind::Count, "Users of a page, at most 100"),
        ],
        answer: "UserList",
        ..Route::get(&["/user/list", "/user/get_users"], |m| on(m, list))
    },
    Route {
        group: "users",
        who: Who::Admin,
        summary: "Delete users, with their keys and memberships",
        body: &[&[Field::required("user_ids", Kind::Texts, "Whom")]],
        answer: "Count",
        ..Route::post(&["/user/delete"], |m| on(m, delete))
    },
];

/// The line about a user that was made.
pub fn created(user: &Doc) -> Entry {
    Entry::created("user", user.id.as_str(), Value::Object(user.fields.clone()))
}

/// The user of an address.
pub async fn by_email(desk: &Desk, email: &str) -> Result<Option<Doc>> {
    let filter = DocFilter {
        equal: vec![("user_email", email.into())],
        page: Page { limit: 2, offset: 0 },
        ..DocFilter::default()
    };
    let mut found = desk.store.documents(Table::User, &filter).await?.docs;
    if found.len() > 1 {
        let message = "More than one user has this address. Name the user by its 'user_id'.";
        return Err(wrong_value("user_email", message).into());
    }
    Ok(found.pop())
}

fn no_password(fields: &Fields) -> Result<()> {
    if fields.value("password").is_some() {
        let message = "Users have no passwords here: they use their keys. Leave 'password' out.";
        return Err(wrong_value("password", message).into());
    }
    Ok(())
}

/// `POST /user/new`.
async fn new(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
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
    super::settle(move || {
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

/// `POST /user/update`: what is named changes, null unsets, the rest stays.
async fn update(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_update).await.map(Json)
}

async fn try_update(task: Arc<Task>) -> Result<Value> {
    no_password(&task.fields)?;
    let named = task.fields.id("user_id")?;
    if !task.actor.is_admin() {
        own_fields_only(&task, named.as_deref())?;
    }
    let mut user = match (&named, task.fields.id("user_email")?) {
        (Some(id), _) => USER.find(&task.desk, id).await?,
        (None, Some(email)) => by_email(&task.desk, &email)
            .await?
            .ok_or_else(|| USER.none(&email))?,
        (None, None) => {
            return Err(missing("user_id", "Either user_id or user_email must be given.").into());
        }
    };
    let before = user.fields.clone();
    task.keep(USER.fields, &mut user)?;
    task.check_budget().await?;
    if let Some(email) = text(&user.fields, "user_email")
        && text(&before, "user_email") != Some(email)
        && by_email(&task.desk, email).await?.is_some()
    {
        return Err(conflict(
            "user_email",
            format!("User with email {email} already exists"),
        ));
    }
    task.touch(&mut user);
    let change = Change::Put {
        table: Table::User,
        doc: &user,
    };
    let told = Entry::updated(
        "user",
        user.id.as_str(),
        Value::Object(before),
        Value::Object(user.fields.clone()),
    );
    task.desk.write(&task.actor, &[change], vec![told]).await?;
    let row = task.desk.row(&USER, &user).await?;
    Ok(json!({"user_id": user.id, "data": row}))
}

/// What somebody may change of its own user.
const OWN: [&str; 3] = ["user_id", "user_alias", "metadata"];

fn own_fields_only(task: &Task, named: Option<&str>) -> Result<()> {
    if named.is_none() || !task.actor.is_user(named) {
        return Err(task.actor.not_admin());
    }
    match task.fields.names_given().find(|name| !OWN.contains(name)) {
        Some(name) => {
            let name: String = name.chars().take(100).collect();
            let message = format!("Only a proxy admin may change '{name}' of a user.");
            Err(above(&name, message))
        }
        None => Ok(()),
    }
}

/// `GET /user/info`: the caller's own user, or `?user_id=`. An admin without a `user_id` gets everybody's
/// keys, page by page, and no `user_info`.
async fn info(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
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
pub(super) async fn spend(desk: &Desk, id: &str) -> Result<i64> {
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
    let hash = super::rights::own_hash(actor)?;
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

/// `GET /user/list`.
async fn list(_: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
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
        let entries = members::list(&team.fields).iter();
        let members = entries.filter_map(|m| Some(m.get("user_id")?.as_str()?.to_string()));
        // Both, where both are asked for.
        filter.ids = Some(match filter.ids.take() {
            Some(ids) => members.filter(|m| ids.contains(m)).collect(),
            None => members.collect(),
        });
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
        row.insert("teams".into(), teams::ids_of_user(&desk, &doc.id).await?.into());
        rows.push(Value::Object(row));
    }
    Ok(Json(paged("users", rows, found.total, slice)))
}

/// `POST /user/delete`: how many went, with their keys and memberships. What they spent stays told.
async fn delete(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_delete).await.map(Json)
}

async fn try_delete(task: Arc<Task>) -> Result<Value> {
    let ids = objects::ids(&task.fields, "user_ids", MOST_NAMED)?;
    // All are looked for first: a slip of the pen deletes nobody.
    let there = task.desk.by_ids(Table::User, ids.clone()).await?;
    if let Some(id) = ids.iter().find(|id| !there.iter().any(|d| d.id == **id)) {
        return Err(USER.none(id));
    }
    let own = task.actor.holder().and_then(|k| k.user_id.as_deref());
    if own.is_some_and(|own| ids.iter().any(|id| id == own)) {
        return Err(wrong_value("user_ids", "You would delete yourself, and the key you ask with.").into());
    }
    for id in &ids {
        // Begun again for each, so that a crossing change of one team does not start all anew.
        let (desk, actor, id) = (Arc::clone(&task.desk), task.actor.clone(), id.clone());
        super::settle(move || {
            let (desk, actor, id) = (Arc::clone(&desk), actor.clone(), id.clone());
            async move { remove(&desk, &actor, &id).await }
        })
        .await?;
    }
    Ok(ids.len().into())
}

/// Memberships, keys, the user, and keys once more: one that is made meanwhile must not outlive its user.
/// Each step can be begun again; the user goes last, so that a call that broke off can be repeated.
async fn remove(desk: &Desk, actor: &Actor, id: &str) -> Result<()> {
    leave_teams(desk, actor, id).await?;
    organizations::leave_all(desk, actor, id).await?;
    let keys = KeyFilter {
        user_id: Some(id.into()),
        ..KeyFilter::default()
    };
    desk.drop_keys(actor, &keys).await?;
    if let Some(user) = desk.store.document(Table::User, id).await? {
        let told = Entry::deleted("user", id, Value::Object(user.fields));
        let ids = [id.to_string()];
        let change = Change::Delete {
            table: Table::User,
            ids: &ids,
        };
        desk.write(actor, &[change], vec![told]).await?;
    }
    desk.drop_keys(actor, &keys).await
}

async fn leave_teams(desk: &Desk, actor: &Actor, id: &str) -> Result<()> {
    let filter = DocFilter {
        member: Some(id.into()),
        page: Page {
            limit: TEAMS_AT_ONCE,
            offset: 0,
        },
        ..DocFilter::default()
    };
    for _ in 0..ROUNDS {
        let mut teams = desk.store.documents(Table::Team, &filter).await?.docs;
        if teams.is_empty() {
            return Ok(());
        }
        let mut entries = Vec::new();
        for team in &mut teams {
            let mut gone = Vec::new();
            while let Some(at) = members::place(members::list(&team.fields), Some(id), None) {
                match members::take(team, "members_with_roles", at) {
                    Some(entry) => gone.push(entry),
                    None => break,
                }
            }
            team.updated_at_micros = desk.clock.now_micros();
            entries.push(told(&team.id, gone, Vec::new()));
        }
        let put = |doc| Change::Put {
            table: Table::Team,
            doc,
        };
        let changes: Vec<Change<'_>> = teams.iter().map(put).collect();
        desk.write(actor, &changes, entries).await?;
    }
    Err(wrong_value(
        "user_ids",
        "This user is in too many teams to be deleted at once. Ask again.",
    )
    .into())
}
