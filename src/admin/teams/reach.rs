//! How far somebody's rights over a team reach, and what a team may be given.

use super::TEAM;
use crate::admin::Desk;
use crate::admin::error::{Result, Stopped, forbidden, wrong_value};
use crate::admin::fields::Fields;
use crate::admin::objects::{self, Task, above, stored, text};
use crate::admin::organizations::ORGANIZATION;
use crate::admin::rights::Actor;
use crate::store::{Doc, Table};
use filters::model::limits::Limits;
use filters::model::money::Nanos;
use serde_json::Value;

/// What an admin of the team alone may change; and of the limits, downwards.
const OWN: [&str; 12] = [
    "team_id",
    "team_alias",
    "metadata",
    "models",
    "team_member_budget",
    "team_member_budget_duration",
    "team_member_rpm_limit",
    "team_member_tpm_limit",
    "team_member_key_duration",
    "team_member_permissions",
    "default_team_member_models",
    "prompts",
];

/// 403 for somebody who does not lead the team.
pub fn not_led(actor: &Actor, team_id: &str) -> Stopped {
    let id: String = team_id.chars().take(200).collect();
    forbidden(format!(
        "Call not allowed. User not proxy admin OR team admin. route={}, team_id={id}",
        actor.path
    ))
    .into()
}

/// How far somebody's rights over a team reach.
#[derive(PartialEq)]
pub(super) enum Reach {
    /// Admins of the gateway, and of the organization within what that has.
    Whole,
    /// An admin of the team itself.
    Team,
}

pub(super) async fn reach(desk: &Desk, actor: &Actor, team: &Doc) -> Result<Reach> {
    if actor.is_admin() {
        return Ok(Reach::Whole);
    }
    if let Some(id) = text(&team.fields, "organization_id")
        && desk.leads_organization(actor, id).await?
    {
        return Ok(Reach::Whole);
    }
    if desk.leads(actor, team).await? {
        return Ok(Reach::Team);
    }
    Err(not_led(actor, &team.id))
}

/// The team that a call changes, for those whose rights reach as far.
pub(super) async fn wholly(task: &Task) -> Result<Doc> {
    let id = objects::id(&task.fields, "team_id")?;
    let team = TEAM.find(&task.desk, &id).await?;
    match reach(&task.desk, &task.actor, &team).await? {
        Reach::Whole => Ok(team),
        Reach::Team => Err(task.actor.not_admin()),
    }
}

/// A team stays within its organization: LiteLLM refuses more.
pub(super) async fn within_organization(task: &Task, team: &Doc) -> Result<()> {
    let Some(id) = text(&team.fields, "organization_id") else {
        return Ok(());
    };
    let organization = ORGANIZATION.find(&task.desk, id).await?;
    if !task.desk.leads_organization(&task.actor, id).await? {
        return Err(above(
            "organization_id",
            "Only a proxy admin or an admin of the organization may give it teams.",
        ));
    }
    let named = match text(&organization.fields, "budget_id") {
        Some(id) => task.desk.store.document(Table::Budget, id).await?,
        None => None,
    };
    let all = Limits::of(&objects::effective(&organization.fields, named.as_ref()));
    let own = Limits::of(&team.fields);
    if let (Some(most), Some(own)) = (all.budget.nanos, own.budget.nanos)
        && own > most
    {
        let message = format!(
            "Team max_budget ({}) exceeds the organization's max_budget ({}).",
            Nanos(own),
            Nanos(most)
        );
        return Err(wrong_value("max_budget", message).into());
    }
    for (name, most, own) in [("tpm_limit", all.tpm, own.tpm), ("rpm_limit", all.rpm, own.rpm)] {
        if let (Some(most), Some(own)) = (most, own)
            && own > most
        {
            let message = format!("Team {name} ({own}) exceeds the organization's {name} ({most}).");
            return Err(wrong_value(name, message).into());
        }
    }
    let allowed = filters::model::party::texts(&organization.fields, "models");
    let open = |m: &String| m == "*" || m == "all-proxy-models";
    if !allowed.is_empty() && !allowed.iter().any(open) {
        let models = filters::model::party::texts(&team.fields, "models");
        let beyond = models
            .iter()
            .find(|m| !allowed.contains(m) && *m != "no-default-models");
        if let Some(model) = beyond {
            let model: String = model.chars().take(200).collect();
            let message = format!("The model '{model}' is none of the organization's models.");
            return Err(wrong_value("models", message).into());
        }
    }
    Ok(())
}

/// A team's turns in the queue are taken from everybody's: an organization's admin gives none.
pub(super) fn same_weight(task: &Task, before: Option<&Doc>, after: &Doc) -> Result<()> {
    let weight = |doc: &Doc| stored(doc, "queue_weight");
    if task.actor.is_admin() || before.map(weight).unwrap_or_default() == weight(after) {
        return Ok(());
    }
    Err(above(
        "queue_weight",
        "Only a proxy admin may say how much a team's turns in the queue weigh.",
    ))
}

/// What a team's own admin may not do: give the team more than it has.
pub(super) fn no_more_than_before(given: &Fields, before: &Doc, after: &Doc) -> Result<()> {
    for name in given.names_given() {
        let (old, new) = (stored(before, name), stored(after, name));
        let known = TEAM.fields.iter().flat_map(|g| g.iter()).any(|f| f.name == name);
        if old == new && (known || name == "team_id") {
            continue;
        }
        let fits = match name {
            "max_budget" | "soft_budget" | "tpm_limit" | "rpm_limit" | "max_parallel_requests" => {
                match (old.as_f64(), new.as_f64()) {
                    (Some(old), Some(new)) => new <= old,
                    (None, new) => new.is_some(),
                    (Some(_), None) => false,
                }
            }
            "models" => narrower(&old, &new),
            name => !known || OWN.contains(&name),
        };
        if !fits {
            let message =
                format!("An admin of the team may not raise or change its '{name}'. Ask a proxy admin.");
            return Err(above(name, message));
        }
    }
    Ok(())
}

/// A list of models that allows nothing which the old one does not; none at all = all.
fn narrower(old: &Value, new: &Value) -> bool {
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let (old, new) = (list(old), list(new));
    old.is_empty() || (!new.is_empty() && new.iter().all(|m| old.contains(m)))
}
