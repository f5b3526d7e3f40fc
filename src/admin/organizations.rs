//! Organizations: above teams, with limits, models and admins of their own.

use super::Desk;
use super::ask::Params;
use super::audit::Entry;
use super::error::{Result, forbidden, missing, not_found, wrong_value};
use super::fields::{Field, Kind};
use super::members::{self, MOST, Wanted};
use super::objects::{self, LIMITS, NAMED_BUDGET, Sort, Task, above, text};
use super::rights::{Actor, role_among};
use super::routes::{Route, Verb, Who};
use super::users;
use crate::store::{Change, Doc, DocFilter, KeyFilter, Page, StoreError, Table};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing::on;
use filters::model::account::{self, Account, Kind as Subject};
use filters::model::money::Nanos;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Organizations of a list.
const MOST_LISTED: u32 = 1_000;
/// Organizations that one call names.
const MOST_NAMED: usize = 100;
/// Teams that one organization's answer shows.
const MOST_TEAMS: u32 = 1_000;

const ROLES: &[&str] = &["org_admin", "internal_user", "internal_user_viewer"];

pub const ORGANIZATION: Sort = Sort {
    table: Table::Organization,
    id: "organization_id",
    fields: &[PLAIN, LIMITS, NAMED_BUDGET],
};

const PLAIN: &[Field] = &[
    Field::new("organization_alias", Kind::Id, "What people call it"),
    Field::new("models", Kind::List, "Models that its teams may call; none = all"),
    Field::new("metadata", Kind::Object, "Whatever one likes"),
    Field::new(
        "blocked",
        Kind::Flag,
        "Its keys are refused until it is unblocked",
    ),
    Field::new("tags", Kind::Texts, "Kept"),
    Field::new("object_permission", Kind::Settings, "Kept"),
];

const NAMED: &[Field] = &[Field::required("organization_id", Kind::Id, "Which organization")];
const MEMBER: &[Field] = &[Field::required(
    "member",
    Kind::Object,
    "user_id or user_email, and a role; or a list of these",
)];
const ONE: &[Field] = &[
    Field::new("user_id", Kind::Id, "Which member"),
    Field::new("user_email", Kind::Id, "The same, by its address"),
];
const ROLE: Field = Field::new(
    "role",
    Kind::OneOf(ROLES),
    "org_admin, internal_user or internal_user_viewer",
);
const WITHIN: &[Field] = &[Field::new(
    "max_budget_in_organization",
    Kind::Money,
    "Dollars that the member may spend in this organization",
)];
const LISTED: &[Field] = &[
    Field::new("org_id", Kind::Text, "This organization"),
    Field::new("org_alias", Kind::Text, "A part of the alias"),
];

pub const ROUTES: &[Route] = &[
    Route {
        group: "organizations",
        who: Who::Admin,
        summary: "Make an organization",
        body: &[
            &[Field::new(
                "organization_id",
                Kind::Id,
                "Its id; none = a new one",
            )],
            PLAIN,
            LIMITS,
            NAMED_BUDGET,
        ],
        answer: "Organization",
        ..Route::post(&["/organization/new"], |m| on(m, new))
    },
    Route {
        group: "organizations",
        who: Who::Reader,
        summary: "An organization with its members and teams",
        query: NAMED,
        answer: "Organization",
        ..Route::get(&["/organization/info"], |m| on(m, info))
    },
    Route {
        group: "organizations",
        who: Who::Reader,
        summary: "Organizations: all, or those that the caller belongs to",
        query: LISTED,
        answer: "Organizations",
        ..Route::get(&["/organization/list"], |m| on(m, list))
    },
    Route {
        group: "organizations",
        who: Who::Manager,
        summary: "Change an organization; its own admins its alias and metadata",
        body: &[NAMED, PLAIN, LIMITS, NAMED_BUDGET],
        answer: "Organization",
        ..Route::new(Verb::Patch, &["/organization/update"], |m| on(m, update))
    },
    Route {
        group: "organizations",
        who: Who::Manager,
        summary: "Change an organization, for clients without PATCH",
        body: &[NAMED, PLAIN, LIMITS, NAMED_BUDGET],
        answer: "Organization",
        ..Route::post(&["/organization/update"], |m| on(m, update))
    },
    Route {
        group: "organizations",
        who: Who::Admin,
        summary: "Delete organizations that have no teams and no keys any more",
        body: DELETED,
        answer: "Organizations",
        ..Route::new(Verb::Delete, &["/organization/delete"], |m| on(m, delete))
    },
    Route {
        group: "organizations",
        who: Who::Admin,
        summary: "Delete organizations, for clients without DELETE",
        body: DELETED,
        answer: "Organizations",
        ..Route::post(&["/organization/delete"], |m| on(m, delete))
    },
    Route {
        group: "organizations",
        who: Who::Manager,
        summary: "Add members to an organization",
        body: &[NAMED, MEMBER, WITHIN],
        answer: "OrganizationMembers",
        ..Route::post(&["/organization/member_add"], |m| on(m, add))
    },
    Route {
        group: "organizations",
        who: Who::Manager,
        summary: "Change a member's role in its organization",
        body: &[NAMED, ONE, &[ROLE], WITHIN],
        answer: "OrganizationMember",
        ..Route::new(Verb::Patch, &["/organization/member_update"], |m| {
            on(m, update_member)
        })
    },
    Route {
        group: "organizations",
        who: Who::Manager,
        summary: "Change a member's role, for clients without PATCH",
        body: &[NAMED, ONE, &[ROLE], WITHIN],
        answer: "OrganizationMember",
        ..Route::post(&["/organization/member_update"], |m| on(m, update_member))
    },
    Route {
        group: "organizations",
        who: Who::Manager,
        summary: "Take a member out of an organization",
        body: &[NAMED, ONE],
        answer: "OrganizationMember",
        ..Route::new(Verb::Delete, &["/organization/member_delete"], |m| {
            on(m, delete_member)
        })
    },
    Route {
        group: "organizations",
        who: Who::Manager,
        summary: "Take a member out of an organization, for clients without DELETE",
        body: &[NAMED, ONE],
        answer: "OrganizationMember",
        ..Route::post(&["/organization/member_delete"], |m| on(m, delete_member))
    },
];

const DELETED: &[&[Field]] = &[&[Field::required("organization_ids", Kind::Texts, "Which")]];

fn shown_member(id: &str, entry: &Value) -> Value {
    let field = |name: &str| entry.get(name).cloned().unwrap_or_default();
    json!({
        "user_id": field("user_id"),
        "user_email": field("user_email"),
        "organization_id": id,
        "user_role": entry.get("user_role").or_else(|| entry.get("role")),
        "max_budget_in_organization": field("max_budget"),
        "budget_id": null,
    })
}

/// The same, with what each has spent in the organization.
async fn with_spend(desk: &Desk, doc: &Doc) -> Result<Value> {
    let entries = members::list(&doc.fields);
    let id = |entry: &Value| entry.get("user_id").and_then(Value::as_str).map(str::to_string);
    let named = entries.iter().filter_map(id);
    let accounts: Vec<Account> = named
        .map(|user| Account::new(Subject::OrganizationMember, account::member(&doc.id, &user)))
        .collect();
    let mut spent = desk.spent(&accounts).await?.into_iter();
    let rows = entries.iter().map(|entry| {
        let mut row = shown_member(&doc.id, entry);
        let balance = id(entry).and_then(|_| spent.next()).unwrap_or_default();
        if let Value::Object(row) = &mut row {
            row.insert("spend".into(), json!(Nanos(balance.period_nanos)));
        }
        row
    });
    Ok(rows.collect())
}

async fn rows(desk: &Desk, docs: &[Doc]) -> Result<Vec<Value>> {
    let mut rows = desk.rows(&ORGANIZATION, docs).await?;
    for (row, doc) in rows.iter_mut().zip(docs) {
        let entries = members::list(&doc.fields).iter();
        row.insert(
            "members".into(),
            entries.map(|m| shown_member(&doc.id, m)).collect(),
        );
        row.insert("object_permission_id".into(), Value::Null);
    }
    Ok(rows.into_iter().map(Value::Object).collect())
}

async fn row(desk: &Desk, doc: &Doc) -> Result<Value> {
    let rows = rows(desk, std::slice::from_ref(doc)).await?;
    Ok(rows.into_iter().next().unwrap_or_default())
}

/// What is told of a change of members: those it is about, not all there are.
pub fn told(id: &str, before: Vec<Value>, after: Vec<Value>) -> Entry {
    let members = |list: Vec<Value>| json!({"members": list});
    Entry::updated("organization", id, members(before), members(after))
}

async fn new(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_new).await.map(Json)
}

async fn try_new(task: Arc<Task>) -> Result<Value> {
    let mut doc = task.blank(objects::id_or_new(&task.fields, "organization_id")?);
    task.keep(ORGANIZATION.fields, &mut doc)?;
    if text(&doc.fields, "organization_alias").is_none() {
        return Err(missing(
            "organization_alias",
            "The field 'organization_alias' is required.",
        )
        .into());
    }
    task.check_budget().await?;
    let change = Change::Put {
        table: Table::Organization,
        doc: &doc,
    };
    let told = Entry::created("organization", doc.id.as_str(), Value::Object(doc.fields.clone()));
    let written = task.desk.write(&task.actor, &[change], vec![told]).await;
    written.map_err(|e| ORGANIZATION.refused(e, &doc.id))?;
    row(&task.desk, &doc).await
}

fn belongs(actor: &Actor, doc: &Doc) -> bool {
    actor
        .user_id()
        .is_some_and(|u| role_among(&doc.fields, u).is_some())
}

async fn info(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let Some(id) = params.text("organization_id")? else {
        return Err(missing("organization_id", "The parameter 'organization_id' is required.").into());
    };
    let doc = ORGANIZATION.find(&desk, id).await?;
    if !actor.sees_all() && !belongs(&actor, &doc) {
        return Err(forbidden("You are not allowed to access this organization's info.").into());
    }
    let mut row = row(&desk, &doc).await?;
    let filter = DocFilter {
        equal: vec![("organization_id", doc.id.clone())],
        page: Page {
            limit: MOST_TEAMS,
            offset: 0,
        },
        ..DocFilter::default()
    };
    let teams = desk.store.documents(Table::Team, &filter).await?.docs;
    let leads = actor.sees_all() || desk.leads_organization(&actor, &doc.id).await?;
    let seen = |t: &&Doc| leads || belongs(&actor, t);
    let teams = teams.iter().filter(seen).map(|t| {
        json!({
            "team_id": t.id,
            "team_alias": objects::stored(t, "team_alias"),
            "organization_id": doc.id,
            "members_count": members::list(&t.fields).len(),
        })
    });
    let teams: Vec<Value> = teams.collect();
    if let Value::Object(row) = &mut row {
        row.insert("teams".into(), teams.into());
        row.insert("members".into(), with_spend(&desk, &doc).await?);
    }
    Ok(Json(row))
}

/// Those that somebody is an admin of.
pub async fn led_by(desk: &Desk, actor: &Actor) -> Result<Vec<Doc>> {
    let Some(user) = actor.user_id().filter(|_| !actor.only_looks()) else {
        return Ok(Vec::new());
    };
    let mut docs = of_user(desk, user).await?;
    docs.retain(|d| matches!(role_among(&d.fields, user), Some("org_admin" | "admin")));
    Ok(docs)
}

/// Those that somebody belongs to, page by page.
async fn of_user(desk: &Desk, user_id: &str) -> Result<Vec<Doc>> {
    let mut mine = Vec::new();
    let mut offset = 0;
    loop {
        let filter = DocFilter {
            among: vec![("members", "user_id", user_id.into())],
            sort: Some(("id", crate::store::Order::Rising)),
            page: Page {
                limit: MOST_LISTED,
                offset,
            },
            ..DocFilter::default()
        };
        let found = desk.store.documents(Table::Organization, &filter).await?;
        let read = found.docs.len() as u64;
        mine.extend(
            found
                .docs
                .into_iter()
                .filter(|d| role_among(&d.fields, user_id).is_some()),
        );
        offset += read;
        if read == 0 || offset >= found.total {
            return Ok(mine);
        }
    }
}

async fn list(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let slice = params.page(
        &["page_size", "size"],
        u64::from(MOST_LISTED),
        u64::from(MOST_LISTED),
    )?;
    let (id, alias) = (params.owned("org_id")?, params.owned("org_alias")?);
    let docs = match (actor.sees_all(), actor.user_id()) {
        (true, _) => {
            let filter = DocFilter {
                ids: id.map(|id| vec![id]),
                search: alias.map(|text| (text, vec!["organization_alias"])),
                page: Page {
                    limit: slice.size as u32,
                    offset: slice.offset,
                },
                ..DocFilter::default()
            };
            desk.store.documents(Table::Organization, &filter).await?.docs
        }
        (false, Some(user)) => {
            let fits = |d: &Doc| {
                let called = text(&d.fields, "organization_alias").unwrap_or_default();
                id.as_ref().is_none_or(|id| *id == d.id)
                    && alias
                        .as_ref()
                        .is_none_or(|a| called.to_lowercase().contains(&a.to_lowercase()))
            };
            of_user(&desk, user).await?.into_iter().filter(fits).collect()
        }
        (false, None) => Vec::new(),
    };
    Ok(Json(rows(&desk, &docs).await?.into()))
}

/// What an organization's own admin may change of it.
const OWN: [&str; 3] = ["organization_id", "organization_alias", "metadata"];

/// The organization that a call is about, if its caller leads it.
async fn led(task: &Task) -> Result<Doc> {
    let id = objects::id(&task.fields, "organization_id")?;
    let doc = ORGANIZATION.find(&task.desk, &id).await?;
    if task.desk.leads_organization(&task.actor, &id).await? {
        return Ok(doc);
    }
    Err(forbidden(format!(
        "Call not allowed. User not proxy admin OR org admin. route={}",
        task.actor.path
    ))
    .into())
}

async fn save(task: &Task, doc: &Doc, told: Entry, new: &[Doc]) -> Result<()> {
    let mut changes = vec![Change::Put {
        table: Table::Organization,
        doc,
    }];
    let mut entries = vec![told];
    for user in new {
        changes.push(Change::Put {
            table: Table::User,
            doc: user,
        });
        entries.push(users::created(user));
    }
    let written = task.desk.write(&task.actor, &changes, entries).await;
    // A user that somebody else made meanwhile is found when all this is begun again.
    written.map_err(|e| match e {
        StoreError::Conflict { .. } => StoreError::Stale(doc.id.clone()).into(),
        e => e.into(),
    })
}

async fn update(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_update).await.map(Json)
}

async fn try_update(task: Arc<Task>) -> Result<Value> {
    let mut doc = led(&task).await?;
    if !task.actor.is_admin()
        && let Some(name) = task.fields.names_given().find(|n| !OWN.contains(n))
    {
        let name: String = name.chars().take(100).collect();
        let message = format!("Only a proxy admin may change '{name}' of an organization.");
        return Err(above(&name, message));
    }
    let before = doc.clone();
    task.keep(ORGANIZATION.fields, &mut doc)?;
    task.check_budget().await?;
    task.touch(&mut doc);
    let told = Entry::updated(
        "organization",
        doc.id.as_str(),
        Value::Object(before.fields),
        Value::Object(doc.fields.clone()),
    );
    save(&task, &doc, told, &[]).await?;
    row(&task.desk, &doc).await
}

async fn delete(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_delete).await.map(Json)
}

/// An organization with teams or keys stays: they would lose its limits with it.
async fn try_delete(task: Arc<Task>) -> Result<Value> {
    let ids = objects::ids(&task.fields, "organization_ids", MOST_NAMED)?;
    let mut docs = Vec::with_capacity(ids.len());
    let one = Page { limit: 1, offset: 0 };
    for id in &ids {
        docs.push(ORGANIZATION.find(&task.desk, id).await?);
        let of_it = DocFilter {
            equal: vec![("organization_id", id.clone())],
            page: one,
            ..DocFilter::default()
        };
        let teams = task.desk.store.documents(Table::Team, &of_it).await?.total;
        let keys = KeyFilter {
            organization_id: Some(id.clone()),
            ..KeyFilter::default()
        };
        let keys = task.desk.store.list_keys(&keys, one).await?.total;
        if teams + keys > 0 {
            let message = format!(
                "The organization {id} still has {teams} teams and {keys} keys. Delete them first, or move \
                 them to another."
            );
            return Err(wrong_value("organization_ids", message).into());
        }
    }
    let rows = rows(&task.desk, &docs).await?;
    let told = |d: &Doc| Entry::deleted("organization", d.id.as_str(), Value::Object(d.fields.clone()));
    let change = Change::Delete {
        table: Table::Organization,
        ids: &ids,
    };
    let entries = docs.iter().map(told).collect();
    task.desk.write(&task.actor, &[change], entries).await?;
    Ok(rows.into())
}

/// Puts a member's entry in; its limits are kept under the names that all limits have.
fn put(doc: &mut Doc, entry: Value) -> Result<()> {
    let id = doc.id.clone();
    let list = doc.fields.entry("members").or_insert_with(|| json!([]));
    match list {
        Value::Array(entries) if entries.len() < MOST => {
            entries.push(entry);
            Ok(())
        }
        _ => Err(wrong_value(
            "organization_id",
            format!("The organization {id} cannot take more than {MOST} members."),
        )
        .into()),
    }
}

fn entry(user_id: &str, email: Option<&str>, role: &str, budget: Option<Value>) -> Value {
    let mut entry = Map::new();
    entry.insert("user_id".into(), user_id.into());
    if let Some(email) = email {
        entry.insert("user_email".into(), email.into());
    }
    entry.insert("user_role".into(), role.into());
    if let Some(budget) = budget {
        entry.insert("max_budget".into(), budget);
    }
    Value::Object(entry)
}

/// Adds one user, as `/user/new` does it for the organizations it names.
pub fn enlist(doc: &mut Doc, user: &Doc) -> Result<Value> {
    let email = text(&user.fields, "user_email");
    let entry = entry(&user.id, email, "internal_user", None);
    put(doc, entry.clone())?;
    Ok(entry)
}

fn budget(task: &Task) -> Result<Option<Value>> {
    let name = "max_budget_in_organization";
    let value = task.fields.value(name);
    value.map(|v| Kind::Money.read(name, v)).transpose()
}

async fn add(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_add).await.map(Json)
}

async fn try_add(task: Arc<Task>) -> Result<Value> {
    let mut doc = led(&task).await?;
    let wanted = Wanted::list(&task.fields, "member", ROLES, "internal_user")?;
    if wanted.is_empty() {
        return Err(missing("member", "The field 'member' is required.").into());
    }
    let budget = budget(&task)?;
    let users = task.users_for(&wanted).await?;
    let mut added = Vec::new();
    for ((id, email), wanted) in users.known.iter().zip(&wanted) {
        if role_among(&doc.fields, id).is_some() {
            let id: String = id.chars().take(200).collect();
            let message = format!("User with user_id={id} already in organization.");
            return Err(wrong_value("user_id", message).into());
        }
        let entry = entry(id, email.as_deref(), &wanted.role, budget.clone());
        put(&mut doc, entry.clone())?;
        added.push(entry);
    }
    task.touch(&mut doc);
    save(&task, &doc, told(&doc.id, Vec::new(), added.clone()), &users.new).await?;
    let ids = users.known.iter().map(|(id, _)| id.clone()).collect();
    let docs = task.desk.by_ids(Table::User, ids).await?;
    let rows = task.desk.rows(&users::USER, &docs).await?;
    let memberships: Vec<Value> = added.iter().map(|m| shown_member(&doc.id, m)).collect();
    Ok(json!({
        "organization_id": doc.id,
        "updated_users": rows,
        "updated_organization_memberships": memberships,
    }))
}

/// Takes out the member that a call names.
fn taken(task: &Task, doc: &mut Doc) -> Result<Value> {
    let (user_id, email) = (task.fields.id("user_id")?, task.fields.id("user_email")?);
    if user_id.is_none() && email.is_none() {
        return Err(missing("user_id", "Either user_id or user_email must be given.").into());
    }
    let entries = members::list(&doc.fields);
    members::place(entries, user_id.as_deref(), email.as_deref())
        .and_then(|at| members::take(doc, "members", at))
        .ok_or_else(|| {
            let name: String = user_id.or(email).unwrap_or_default().chars().take(200).collect();
            not_found("user_id", format!("User {name} not found in organization.")).into()
        })
}

async fn update_member(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_update_member).await.map(Json)
}

async fn try_update_member(task: Arc<Task>) -> Result<Value> {
    let mut doc = led(&task).await?;
    let before = taken(&task, &mut doc)?;
    let mut after = before.clone();
    if let Value::Object(entry) = &mut after {
        let name = if task.fields.value("user_role").is_some() {
            "user_role"
        } else {
            "role"
        };
        if let Some(role) = task.fields.value(name) {
            entry.insert("user_role".into(), ROLE.kind.read(name, role)?);
            entry.remove("role");
        }
        if task.fields.has("max_budget_in_organization") {
            match budget(&task)? {
                Some(budget) => entry.insert("max_budget".into(), budget),
                None => {
                    // Nor does a budget that it was taken over with stand in for it.
                    entry.remove("budget_id");
                    entry.remove("max_budget")
                }
            };
        }
    }
    put(&mut doc, after.clone())?;
    task.touch(&mut doc);
    save(&task, &doc, told(&doc.id, vec![before], vec![after.clone()]), &[]).await?;
    Ok(shown_member(&doc.id, &after))
}

async fn delete_member(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_delete_member).await.map(Json)
}

async fn try_delete_member(task: Arc<Task>) -> Result<Value> {
    let mut doc = led(&task).await?;
    let gone = taken(&task, &mut doc)?;
    task.touch(&mut doc);
    save(&task, &doc, told(&doc.id, vec![gone.clone()], Vec::new()), &[]).await?;
    Ok(shown_member(&doc.id, &gone))
}

/// Takes a user who is going out of all organizations.
pub async fn leave_all(desk: &Desk, actor: &Actor, user_id: &str) -> Result<()> {
    for mut doc in of_user(desk, user_id).await? {
        let mut gone = Vec::new();
        while let Some(at) = members::place(members::list(&doc.fields), Some(user_id), None) {
            match members::take(&mut doc, "members", at) {
                Some(entry) => gone.push(entry),
                None => break,
            }
        }
        doc.updated_at_micros = desk.clock.now_micros();
        let change = Change::Put {
            table: Table::Organization,
            doc: &doc,
        };
        desk.write(actor, &[change], vec![told(&doc.id, gone, Vec::new())])
            .await?;
    }
    Ok(())
}
