//! Who may do what: one function judges a call by its row's [`Who`], and small functions answer for
//! single objects. Which fields somebody may write stands with the object, see [`bounds`](super::bounds)
//! for keys.

use super::Desk;
use super::error::{Result, Stopped, forbidden};
use super::routes::{Route, Who};
use crate::store::{Doc, Table};
use axum::extract::{FromRequestParts, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use filters::contract::{Fault, Refusal};
use filters::model::key::{Caller, Holder, Key, KeyHash};
use http::request::Parts;
use serde_json::{Map, Value};
use std::sync::Arc;

/// The longest name that `litellm-changed-by` may give, in bytes.
const MAX_CHANGED_BY: usize = 256;

/// What somebody is to the whole gateway. To be an admin of a team is nothing in here: it depends on the
/// team, see [`Desk::leads_team`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Master,
    Admin,
    /// Sees everything, changes nothing.
    Viewer,
    OrganizationAdmin,
    /// Makes and changes keys of its own.
    User,
    /// Sees what is its own, changes nothing.
    UserViewer,
    /// A key whose user has none of these roles, or that has no user.
    Holder,
    /// No key at all.
    Nobody,
}

impl Role {
    pub fn of(caller: &Caller) -> Self {
        let key = match caller {
            Caller::Master { .. } => return Role::Master,
            Caller::Anonymous => return Role::Nobody,
            // Whoever lent it knows its secret, and has not the rights of its user.
            Caller::Key(key) if key.lent_by().is_some() => return Role::Holder,
            Caller::Key(key) => key,
        };
        match key.user.as_ref().and_then(|u| u.text("user_role")) {
            Some("proxy_admin") => Role::Admin,
            Some("proxy_admin_viewer") => Role::Viewer,
            Some("org_admin") => Role::OrganizationAdmin,
            Some("internal_user") => Role::User,
            Some("internal_user_viewer") => Role::UserViewer,
            _ => Role::Holder,
        }
    }

    /// LiteLLM's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Master | Role::Admin => "proxy_admin",
            Role::Viewer => "proxy_admin_viewer",
            Role::OrganizationAdmin => "org_admin",
            Role::User => "internal_user",
            Role::UserViewer => "internal_user_viewer",
            Role::Holder | Role::Nobody => "unknown",
        }
    }
}

/// May see everything.
pub fn sees_all(caller: &Caller) -> bool {
    matches!(Role::of(caller), Role::Master | Role::Admin | Role::Viewer)
}

/// Who asks, as a handler sees it.
#[derive(Clone, Debug)]
pub struct Actor {
    pub caller: Caller,
    pub role: Role,
    /// The path that is asked for, as it was judged.
    pub path: String,
    /// On whose behalf an admin says it acts (`litellm-changed-by`).
    pub changed_by: Option<String>,
}

impl Actor {
    fn of(request: &Request) -> Result<Self> {
        let caller = request.extensions().get::<Caller>();
        let caller =
            caller.ok_or_else(|| Fault::internal("the management API was called without a caller"))?;
        let told = request.headers().get("litellm-changed-by");
        let told = told.and_then(|v| v.to_str().ok()).map(str::trim);
        Ok(Self {
            role: Role::of(caller),
            caller: caller.clone(),
            path: request.uri().path().to_string(),
            changed_by: told
                .filter(|t| !t.is_empty() && t.len() <= MAX_CHANGED_BY)
                .map(Into::into),
        })
    }

    /// May change everything.
    pub fn is_admin(&self) -> bool {
        matches!(self.role, Role::Master | Role::Admin)
    }

    /// May see everything.
    pub fn sees_all(&self) -> bool {
        self.is_admin() || self.role == Role::Viewer
    }

    /// May change nothing.
    pub fn only_looks(&self) -> bool {
        matches!(self.role, Role::Viewer | Role::UserViewer | Role::Nobody)
    }

    /// The virtual key that asks; None for the master key.
    pub fn holder(&self) -> Option<&Holder> {
        self.caller.key()
    }

    /// LiteLLM's `default_user_id` for the master key; empty is none. A key that was lent acts for nobody.
    pub fn user_id(&self) -> Option<&str> {
        if self.holder().is_some_and(|k| k.lent_by().is_some()) {
            return None;
        }
        self.caller.user_id().filter(|u| !u.is_empty())
    }

    /// Whether `user_id` is the actor's own user.
    pub fn is_user(&self, user_id: Option<&str>) -> bool {
        user_id.is_some() && self.user_id() == user_id
    }

    /// The key itself, or one of the same user.
    pub fn owns_key(&self, key: &Key) -> bool {
        self.caller.key_hash() == Some(key.hash) || self.is_user(key.user_id.as_deref())
    }

    /// 401 in LiteLLM's words, for what is an admin's alone. Scripts look for this sentence.
    pub fn not_admin(&self) -> Stopped {
        Refusal::unauthorized(format!(
            "Authentication Error, Only proxy admin can be used to generate, delete, update info for new \
             keys/users/teams. Route={}. Your role={}. Your user_id={}",
            self.path,
            self.role.as_str(),
            self.user_id().map_or_else(|| "unknown".into(), masked),
        ))
        .into()
    }

    /// 403 for somebody whose role never changes anything.
    fn looks_only(&self) -> Stopped {
        forbidden(format!(
            "user not allowed to access this route, role={}. Trying to access: {}",
            self.role.as_str(),
            self.path
        ))
        .into()
    }
}

impl FromRequestParts<Arc<Desk>> for Actor {
    type Rejection = Stopped;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Desk>) -> Result<Self> {
        let actor = parts.extensions.get::<Actor>().cloned();
        actor.ok_or_else(|| Fault::internal("a call of the management API was not judged").into())
    }
}

/// Half of an id, so that an error in somebody's log does not tell it.
fn masked(id: &str) -> String {
    let shown = id.chars().count().min(8) / 2;
    let head: String = id.chars().take(shown).collect();
    format!("{head}****")
}

/// Lets a call through to its handler, or refuses it.
pub(super) async fn judge(route: &'static Route, mut request: Request, next: Next) -> Response {
    let judged = Actor::of(&request).and_then(|actor| admit(route.who, &actor).map(|()| actor));
    match judged {
        Ok(actor) => {
            request.extensions_mut().insert(actor);
            next.run(request).await
        }
        Err(stopped) => stopped.into_response(),
    }
}

/// Whether somebody may make a call of this kind at all.
fn admit(who: Who, actor: &Actor) -> Result<()> {
    if who == Who::Open || actor.role == Role::Master {
        return Ok(());
    }
    if actor.role == Role::Nobody {
        return Err(Refusal::unauthorized(
            "Authentication Error, No api key passed in. Send it as `Authorization: Bearer sk-...`.",
        )
        .into());
    }
    let allowed = match who {
        Who::Open | Who::Reader => true,
        Who::Accountant => actor.sees_all() || may_see_spend(actor),
        Who::Overseer => actor.sees_all(),
        // Of which organizations is found out by the call.
        Who::Governor => actor.sees_all() || actor.user_id().is_some(),
        Who::Master => {
            return Err(Refusal::unauthorized(format!(
                "Authentication Error, Tried to access route={}, which is only for MASTER KEY",
                actor.path
            ))
            .into());
        }
        _ if actor.only_looks() => return Err(actor.looks_only()),
        Who::Holder => true,
        // A role in a team is found out when the team is known; without a user there is none.
        Who::Maker | Who::Manager => actor.is_admin() || actor.user_id().is_some(),
        Who::Admin => actor.is_admin(),
    };
    if allowed { Ok(()) } else { Err(actor.not_admin()) }
}

/// LiteLLM's `permissions: {"get_spend_routes": true}` on a key.
pub fn may_see_spend(actor: &Actor) -> bool {
    let permissions = actor.holder().and_then(|k| k.extra.get("permissions"));
    permissions.and_then(|p| p.get("get_spend_routes")) == Some(&Value::Bool(true))
}

/// A user's role among the members of a team or an organization.
pub fn role_among<'a>(fields: &'a Map<String, Value>, user_id: &str) -> Option<&'a str> {
    ["members_with_roles", "members"]
        .iter()
        .filter_map(|name| fields.get(*name)?.as_array())
        .flatten()
        .find(|m| m.get("user_id").and_then(Value::as_str) == Some(user_id))
        .map(|m| {
            let role = m.get("role").or_else(|| m.get("user_role"));
            role.and_then(Value::as_str).unwrap_or("user")
        })
}

/// Whether a team's members may make this call for it (`team_member_permissions`).
pub fn members_may(fields: &Map<String, Value>, path: &str) -> bool {
    let name = permission(path);
    let list = fields.get("team_member_permissions").and_then(Value::as_array);
    list.is_some_and(|l| l.iter().filter_map(Value::as_str).any(|p| permission(p) == name))
}

/// The name that a call's permission has: some have several paths.
fn permission(path: &str) -> &str {
    match path {
        "/v2/key/info" => "/key/info",
        path if path.starts_with("/key/") && path.ends_with("/regenerate") => "/key/regenerate",
        path => path,
    }
}

impl Desk {
    /// An admin, an admin of this team, or of the organization that it belongs to. False for a team
    /// that does not exist.
    pub async fn leads_team(&self, actor: &Actor, team_id: &str) -> Result<bool> {
        if actor.is_admin() {
            return Ok(true);
        }
        if actor.only_looks() || actor.user_id().is_none() {
            return Ok(false);
        }
        match self.store.document(Table::Team, team_id).await? {
            Some(team) => self.leads(actor, &team).await,
            None => Ok(false),
        }
    }

    /// The same, of a team that was read already.
    pub async fn leads(&self, actor: &Actor, team: &Doc) -> Result<bool> {
        if actor.is_admin() {
            return Ok(true);
        }
        let Some(user) = actor.user_id().filter(|_| !actor.only_looks()) else {
            return Ok(false);
        };
        if role_among(&team.fields, user) == Some("admin") {
            return Ok(true);
        }
        match team.fields.get("organization_id").and_then(Value::as_str) {
            Some(id) if !id.is_empty() => self.leads_organization(actor, id).await,
            _ => Ok(false),
        }
    }

    pub async fn leads_organization(&self, actor: &Actor, id: &str) -> Result<bool> {
        if actor.is_admin() {
            return Ok(true);
        }
        let Some(user) = actor.user_id().filter(|_| !actor.only_looks()) else {
            return Ok(false);
        };
        let found = self.store.document(Table::Organization, id).await?;
        Ok(found.is_some_and(|o| matches!(role_among(&o.fields, user), Some("org_admin" | "admin"))))
    }

    /// Whether somebody belongs to a team, whatever the role.
    pub async fn is_member(&self, actor: &Actor, team_id: &str) -> Result<bool> {
        let Some(user) = actor.user_id() else {
            return Ok(false);
        };
        let found = self.store.document(Table::Team, team_id).await?;
        Ok(found.is_some_and(|t| role_among(&t.fields, user).is_some()))
    }

    /// Whether somebody belongs to a team that lets its members make this call for any of its keys.
    pub async fn shares_keys(&self, actor: &Actor, team_id: &str) -> Result<bool> {
        let Some(user) = actor.user_id() else {
            return Ok(false);
        };
        let found = self.store.document(Table::Team, team_id).await?;
        let lets = |t: Doc| role_among(&t.fields, user).is_some() && members_may(&t.fields, &actor.path);
        Ok(found.is_some_and(lets))
    }

    /// Sees a key: its own, its user's, and that of a team it leads or that shares its keys.
    pub async fn sees_key(&self, actor: &Actor, key: &Key) -> Result<bool> {
        if actor.sees_all() || actor.owns_key(key) {
            return Ok(true);
        }
        match &key.team_id {
            Some(team) => Ok(self.leads_team(actor, team).await? || self.shares_keys(actor, team).await?),
            None => Ok(false),
        }
    }
}

/// The hash of the key that somebody asks with.
pub fn own_hash(actor: &Actor) -> Result<KeyHash> {
    let hash = actor.caller.key_hash();
    hash.ok_or_else(|| Fault::internal("a caller without a key was let in").into())
}
