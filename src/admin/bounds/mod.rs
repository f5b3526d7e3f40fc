//! What somebody who is no admin may write on a key. Nobody writes a field above their own rights: most
//! fields are an admin's alone, limits and models stay within what the team or the user has, and where
//! those have none, within what the key in hand has.

mod within;

use super::Desk;
use super::error::{Result, Stopped, wrong_value};
use super::fields::Fields;
use super::objects::effective;
use super::rights::{Actor, Role, members_may, role_among};
use super::{keys, objects, terms};
use crate::store::{Doc, Table};
use filters::contract::Refusal;
use filters::model::key::{Holder, Key};
use filters::model::limits::Limits;
use filters::model::party::texts;
use serde_json::{Map, Value, json};
use within::Bounds;

/// Fields that are not an admin's alone. All others may be repeated as they are and not changed.
const OPEN: &[&str] = &[
    "key_alias",
    "duration",
    "user_id",
    "team_id",
    "organization_id",
    "models",
    "aliases",
    "max_budget",
    "soft_budget",
    "budget_duration",
    "tpm_limit",
    "rpm_limit",
    "max_parallel_requests",
    "model_max_budget",
    "model_rpm_limit",
    "model_tpm_limit",
    "model_max_parallel_requests",
    "metadata",
    "tags",
    "key_type",
    "send_invite_email",
    "auto_rotate",
    "rotation_interval",
];

/// Fields of other objects, and of rows, that a key has no place for: asked for by somebody who tries.
const FOREIGN: &[&str] = &[
    "user_role",
    "spend",
    "token",
    "created_by",
    "updated_by",
    "rotated_to",
];

/// Limits of single models.
const OF_MODELS: [&str; 4] = [
    "model_max_budget",
    "model_rpm_limit",
    "model_tpm_limit",
    "model_max_parallel_requests",
];

/// The call that makes keys of nobody.
const SERVICE_ACCOUNT: &str = "/key/service-account/generate";

/// 403 that names the field.
fn above(field: &str, message: impl Into<String>) -> Stopped {
    Refusal::new(403, "auth_error", message).param(field).into()
}

impl Desk {
    /// Judges the fields of a new key, and fills in what follows from who asks.
    pub async fn bound_new(&self, actor: &Actor, fields: &mut Fields) -> Result<()> {
        if actor.is_admin() {
            return Ok(());
        }
        let Some(own) = actor.holder() else {
            return Err(actor.not_admin());
        };
        small(fields)?;
        let team = match fields.id("team_id")? {
            Some(id) => Some(self.team_to_make_for(actor, &id, fields).await?),
            None => {
                self.personal(actor, fields)?;
                None
            }
        };
        // Without what was given to it for a while only.
        let in_hand = self.store.key_by_hash(&own.hash).await?;
        let in_hand = self.with_budget(in_hand.as_ref().unwrap_or(&own.key)).await?;
        let blank = blank(own, team.is_none());
        closed(fields, &blank)?;
        self.organization(actor, fields, &blank, team.as_ref()).await?;
        routes(own, fields)?;
        if team.is_none() {
            inherit(own, &in_hand, fields)?;
        }
        let user = match &team {
            None => self.own_user(actor).await?,
            Some(_) => None,
        };
        let bounds = Bounds {
            party: team.as_ref().or(user.as_ref()).map(|d| &d.fields),
            key: Some(&in_hand).filter(|_| team.is_none()),
            both: false,
        };
        bounds.numbers(fields, true)?;
        let catalog = (self.catalog)();
        bounds.models(fields, catalog.as_ref(), team.is_some(), true)
    }

    /// Judges the changes of a key that there is.
    pub async fn bound_change(&self, actor: &Actor, fields: &Fields, key: &Key) -> Result<()> {
        if actor.is_admin() {
            return Ok(());
        }
        let leads = self.may_change(actor, key).await?;
        small(fields)?;
        closed(fields, key)?;
        routes_stay(fields, key)?;
        if fields.has("user_id") && fields.id("user_id")? != key.user_id {
            let user = fields.id("user_id")?;
            let team = key.team_id.as_deref().filter(|_| leads);
            self.one_of_team(team, user.as_deref()).await?;
        }
        let next = fields.id("team_id")?;
        if fields.has("team_id") && next != key.team_id {
            let into = match &next {
                Some(id) => leads && self.leads_team(actor, id).await?,
                None => false,
            };
            if !into {
                return Err(above(
                    "team_id",
                    "Only an admin of both teams may move a key from one to the other.",
                ));
            }
        }
        let team_id = next.as_deref().or(key.team_id.as_deref());
        let party = match team_id {
            Some(id) => self.store.document(Table::Team, id).await?,
            None => self.own_user(actor).await?,
        };
        self.organization(actor, fields, key, party.as_ref().filter(|_| team_id.is_some()))
            .await?;
        let limited = self.with_budget(key).await?;
        let bounds = Bounds {
            party: party.as_ref().map(|d| &d.fields),
            key: Some(&limited).filter(|_| !leads),
            // Its limits were set by who leads the team.
            both: team_id.is_some(),
        };
        if !leads {
            kept(fields, &limited)?;
            self.no_longer(actor, fields, key)?;
        }
        let mut fields = fields.clone();
        bounds.numbers(&mut fields, false)?;
        let catalog = (self.catalog)();
        bounds.models(&mut fields, catalog.as_ref(), team_id.is_some(), false)?;
        // A personal key reaches no further than the key that changes it.
        match actor.holder().filter(|_| team_id.is_none()) {
            Some(own) => Bounds {
                party: None,
                key: Some(&own.key),
                both: false,
            }
            .models(&mut fields, catalog.as_ref(), false, false),
            None => Ok(()),
        }
    }

    /// Who does not lead the team, or did not make the key, lets it end no later than was said: where one may
    /// make no keys, an old one must not become a new one.
    fn no_longer(&self, actor: &Actor, fields: &Fields, key: &Key) -> Result<()> {
        let own = key.team_id.is_none() && actor.is_user(key.created_by.as_deref());
        let (Some(text), Some(end)) = (fields.text("duration")?, key.expires_micros) else {
            return Ok(());
        };
        if own || (text != "-1" && keys::expiry(self.clock.now_micros(), text)? <= end) {
            return Ok(());
        }
        Err(above(
            "duration",
            "Whoever made this key said when it ends, and only they or an admin may put that off.",
        ))
    }

    /// Whether somebody may change this key, and if so, whether as one who leads its team.
    pub async fn may_change(&self, actor: &Actor, key: &Key) -> Result<bool> {
        if let Some(team) = &key.team_id
            && self.leads_team(actor, team).await?
        {
            return Ok(true);
        }
        if actor.is_admin() {
            return Ok(true);
        }
        // As its owner might.
        if let Some(team) = &key.team_id
            && self.shares_keys(actor, team).await?
        {
            return Ok(false);
        }
        let maker = matches!(actor.role, Role::User | Role::OrganizationAdmin);
        if maker && actor.owns_key(key) {
            return Ok(false);
        }
        if actor.owns_key(key) || !maker {
            return Err(actor.not_admin());
        }
        Err(above(
            "key",
            "You are not allowed to change this key: it is neither yours nor of a team that you are an admin of.",
        ))
    }

    /// The team that a new key is for: one that the actor leads, or whose members may make keys.
    async fn team_to_make_for(&self, actor: &Actor, id: &str, fields: &mut Fields) -> Result<Doc> {
        let refused = || match actor.role {
            Role::Holder => actor.not_admin(),
            _ => above(
                "team_id",
                "You are not allowed to make keys for this team: only its admins are.",
            ),
        };
        let team = self.store.document(Table::Team, id).await?.ok_or_else(refused)?;
        let user_id = fields.id("user_id")?;
        if self.leads(actor, &team).await? {
            member_key_ends(fields, &team, false, self.clock.now_micros())?;
            if user_id.is_some() && !actor.is_user(user_id.as_deref()) {
                self.one_of_team(Some(id), user_id.as_deref()).await?;
            }
            return Ok(team);
        }
        let own = actor.user_id().ok_or_else(refused)?;
        if role_among(&team.fields, own).is_none() || !members_may(&team.fields, &actor.path) {
            return Err(refused());
        }
        match user_id {
            Some(user) if user == own => {}
            // A service account is for whoever leads the team, and for whom the team lets make one.
            None if fields.has("user_id") && actor.path == SERVICE_ACCOUNT => {}
            None if fields.has("user_id") => return Err(refused()),
            None => fields.set("user_id", json!(own)),
            Some(_) => return Err(others_key()),
        }
        member_key_ends(fields, &team, true, self.clock.now_micros())?;
        Ok(team)
    }

    /// Only members of a team have its keys.
    async fn one_of_team(&self, team: Option<&str>, user: Option<&str>) -> Result<()> {
        let Some(id) = team else {
            return Err(others_key());
        };
        let found = self.store.document(Table::Team, id).await?;
        let member = match (found, user) {
            (Some(team), Some(user)) => role_among(&team.fields, user).is_some(),
            (Some(_), None) => true,
            (None, _) => false,
        };
        if member { Ok(()) } else { Err(others_key()) }
    }

    /// A key of the actor's own.
    fn personal(&self, actor: &Actor, fields: &mut Fields) -> Result<()> {
        let Some(own) = actor
            .user_id()
            .filter(|_| matches!(actor.role, Role::User | Role::OrganizationAdmin))
        else {
            return Err(actor.not_admin());
        };
        match fields.id("user_id")? {
            Some(user) if user != own => Err(others_key()),
            _ => {
                fields.set("user_id", json!(own));
                Ok(())
            }
        }
    }

    /// A key's organization is its team's, the one it had, or one that the actor leads.
    async fn organization(
        &self,
        actor: &Actor,
        fields: &Fields,
        key: &Key,
        team: Option<&Doc>,
    ) -> Result<()> {
        let given = fields.id("organization_id")?;
        if !fields.has("organization_id") || given.as_deref() == key.text("organization_id") {
            return Ok(());
        }
        let of_team = team
            .and_then(|t| t.fields.get("organization_id"))
            .and_then(Value::as_str);
        let fits = match (given.as_deref(), of_team.filter(|id| !id.is_empty())) {
            // Another one would take the call from what the team's may spend.
            (Some(id), Some(of_team)) => id == of_team,
            (Some(id), None) => self.leads_organization(actor, id).await?,
            (None, _) => false,
        };
        if fits {
            return Ok(());
        }
        Err(above(
            "organization_id",
            "Only a proxy admin, or an admin of the organization, may set 'organization_id'.",
        ))
    }

    /// The key with the limits that it has by the budget it names: they are its own as well.
    async fn with_budget(&self, key: &Key) -> Result<Key> {
        let mut key = key.clone();
        let Some(id) = key.text("budget_id") else {
            return Ok(key);
        };
        let budget = self.store.document(Table::Budget, id).await?;
        let limits = effective(&key.extra, budget.as_ref());
        key.max_budget_nanos = key.max_budget_nanos.or(Limits::of(&limits).budget.nanos);
        key.extra.extend(limits);
        Ok(key)
    }

    /// From the store: the key in hand may remember an older one.
    async fn own_user(&self, actor: &Actor) -> Result<Option<Doc>> {
        match actor.user_id() {
            Some(id) => Ok(self.store.document(Table::User, id).await?),
            None => Ok(None),
        }
    }
}

/// Most bytes of what somebody who is no admin writes on a key: lists read many of them at once.
const MOST_WRITTEN: usize = 16 << 10;

fn small(fields: &Fields) -> Result<()> {
    if fields.size() <= MOST_WRITTEN {
        return Ok(());
    }
    let message = format!("What a key holds may be {MOST_WRITTEN} bytes at most. Shorten 'metadata'.");
    Err(wrong_value("metadata", message).into())
}

fn others_key() -> Stopped {
    above(
        "user_id",
        "You can only make and change keys for yourself, or as an admin of a team for its members.",
    )
}

/// What the team says of how long its members' keys live goes for a key that says nothing; a member may say less.
fn member_key_ends(fields: &mut Fields, team: &Doc, by_member: bool, now: i64) -> Result<()> {
    let Some(most) = objects::text(&team.fields, "team_member_key_duration") else {
        return Ok(());
    };
    match fields.text("duration")? {
        None if by_member || fields.value("user_id").is_some() => fields.set("duration", json!(most)),
        Some(given) if by_member && keys::expiry(now, given)? > keys::expiry(now, most)? => {
            let message = format!("Keys of this team's members live {most} at most.");
            return Err(above("duration", message));
        }
        _ => {}
    }
    Ok(())
}

/// A key with nothing set; a personal one is of the same organization.
fn blank(own: &Holder, personal: bool) -> Key {
    let mut key = own.key.clone();
    key.extra = Map::new();
    if let Some(organization) = own.organization_id().filter(|_| personal) {
        key.extra.insert("organization_id".into(), organization.into());
    }
    key.blocked = false;
    key
}

/// Refuses what is an admin's alone, unless it is what is there anyway: a form sends all its fields.
fn closed(fields: &Fields, key: &Key) -> Result<()> {
    let shown = terms::shown(key);
    let known = keys::PLAIN.iter().chain(terms::TERMS).map(|f| f.name);
    let also = ["temp_budget_increase", "temp_budget_expiry"];
    for name in known.chain(FOREIGN.iter().copied()).chain(also) {
        if OPEN.contains(&name) || !fields.has(name) {
            continue;
        }
        let now = match name {
            "blocked" => Some(Value::Bool(key.blocked)),
            _ => shown.get(name).cloned(),
        };
        let given = fields.value(name).cloned();
        let empty = given
            .as_ref()
            .is_none_or(|v| *v == json!([]) || *v == json!({}) || *v == json!(false));
        let unset = now
            .as_ref()
            .is_none_or(|v| v.is_null() || *v == json!([]) || *v == json!({}) || *v == json!(false));
        if now == given || (empty && unset) {
            continue;
        }
        return Err(above(
            name,
            format!("Only a proxy admin may set '{name}' of a key. Leave it out, or ask an admin."),
        ));
    }
    Ok(())
}

/// What an owner leaves as whoever leads the team, or an admin, has set it.
fn kept(fields: &Fields, key: &Key) -> Result<()> {
    for name in OF_MODELS {
        let now = key
            .extra
            .get(name)
            .filter(|v| v.as_object().is_some_and(|o| !o.is_empty()));
        if fields.has(name) && now.is_some() && fields.value(name) != now {
            return Err(above(
                name,
                format!("'{name}' of this key is set already, and only an admin may change it."),
            ));
        }
    }
    let (tags, own) = (fields.texts("tags")?, texts(&key.extra, "tags"));
    if fields.has("tags") && !tags.starts_with(&own) {
        return Err(above(
            "tags",
            "Tags of a key can be added to, behind those that are there; only an admin may change these.",
        ));
    }
    if fields.has("key_type") && fields.value("key_type") != key.extra.get("key_type") {
        return Err(above(
            "key_type",
            "Only a proxy admin may change 'key_type' of a key.",
        ));
    }
    Ok(())
}

/// A personal key stays where the key that makes it is: in its organization, under its tags, within its budgets of
/// single models, and its calls hold what that one's must.
fn inherit(own: &Holder, in_hand: &Key, fields: &mut Fields) -> Result<()> {
    if let Some(organization) = own.organization_id()
        && !fields.has("organization_id")
    {
        fields.set("organization_id", json!(organization));
    }
    for name in OF_MODELS {
        let limits = in_hand.extra.get(name);
        let Some(limits) = limits.filter(|v| v.as_object().is_some_and(|o| !o.is_empty())) else {
            continue;
        };
        match fields.value(name) {
            Some(given) if given != limits => {
                return Err(above(
                    name,
                    format!("'{name}' of your own key goes for the keys that it makes too. Leave it out."),
                ));
            }
            _ => fields.set(name, limits.clone()),
        }
    }
    let enforced = in_hand.extra.get("enforced_params");
    if let Some(enforced) = enforced.filter(|v| v.as_array().is_some_and(|a| !a.is_empty())) {
        fields.set("enforced_params", enforced.clone());
    }
    // The first ones count for certain.
    let mut tags = texts(&in_hand.extra, "tags");
    if !tags.is_empty() {
        let given = fields.texts("tags")?;
        let more: Vec<String> = given.into_iter().filter(|t| !tags.contains(t)).collect();
        tags.extend(more);
        fields.set("tags", json!(tags));
    }
    Ok(())
}

/// `key_type` sets the routes of a key, and those that an admin has set stay.
fn routes_stay(fields: &Fields, key: &Key) -> Result<()> {
    let now = texts(&key.extra, "allowed_routes");
    let Some(routes) = fields.text("key_type")?.and_then(terms::routes_of) else {
        return Ok(());
    };
    // Routes that are given beside it are the same ones: that was judged.
    if now.is_empty() || fields.has("allowed_routes") || routes.iter().eq(now.iter()) {
        return Ok(());
    }
    Err(above(
        "key_type",
        "This key is confined to some routes, and only a proxy admin may change that. Leave 'key_type' out.",
    ))
}

/// A key that is confined to some routes makes keys that are confined to the same.
fn routes(own: &Holder, fields: &mut Fields) -> Result<()> {
    let confined = own
        .extra
        .get("allowed_routes")
        .filter(|r| r.as_array().is_some_and(|a| !a.is_empty()));
    let Some(confined) = confined else {
        return Ok(());
    };
    if fields.value("key_type").is_some() {
        return Err(above(
            "key_type",
            "Your own key is confined to some routes, and so are the keys that it makes. Leave 'key_type' out.",
        ));
    }
    fields.set("allowed_routes", confined.clone());
    Ok(())
}
