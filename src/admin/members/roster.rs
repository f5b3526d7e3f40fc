//! The list of members itself, in a team's or an organization's row: who is in it, with which role and limits.
//! Nothing in here asks whether somebody may change it, nor writes it.

use super::{MOST, MOST_NAMED, ROLES, WITHIN};
use crate::admin::Desk;
use crate::admin::error::{Result, missing, wrong_type, wrong_value};
use crate::admin::fields::{Fields, Kind};
use crate::admin::objects::{self, Task, conflict, stored, text};
use crate::admin::users;
use crate::store::{Doc, Table};
use filters::model::account::{self, Account, Kind as Subject};
use filters::model::money::Nanos;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

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
pub(super) fn limits(given: &Fields, into: Map<String, Value>, now: i64) -> Result<Map<String, Value>> {
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
