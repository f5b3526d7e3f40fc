//! Users: their fields, and how they change. How one is made stands in `made`, how they are shown in `show`, how
//! they go in `gone`. A user's teams are those that list it as a member; nothing about them is kept with the user.
//!
//! Passwords are neither taken nor kept: nobody logs in here with one.

mod gone;
mod made;
mod show;

pub use show::spend;

use super::Desk;
use super::audit::Entry;
use super::error::{Result, missing, wrong_value};
use super::fields::{Field, Fields, Kind};
use super::objects::{self, LIMITS, NAMED_BUDGET, Sort, Task, above, conflict, text};
use super::rights::Actor;
use super::routes::{Route, Who};
use crate::store::{Change, Doc, DocFilter, Page, Table};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing::on;
use gone::delete;
use made::new;
use serde_json::{Value, json};
use show::{info, list};
use std::sync::Arc;

/// Users that one call deletes; teams that one call names.
const MOST_NAMED: usize = 500;

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
        who: Who::Governor,
        summary: "Users, newest first; who is admin of an organization sees its users",
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
