//! Whose calls an answer about spend is made of: what was asked for, and never more than the caller may
//! see. Which days: [`days`](super::days).

use super::Desk;
use super::ask::Params;
use super::error::{Result, Stopped, forbidden};
use super::fields::{Field, Kind};
use super::rights::{Actor, Role, may_see_spend, members_may, own_hash, role_among};
use crate::store::{Table, UsageFilter};
use filters::model::key::KeyHash;

/// The parameters that [`Desk::scope`] reads.
pub const WHOSE: [Field; 4] = [
    Field::new("api_key", Kind::Key, "Calls with this key (sk-... or hash)"),
    Field::new("user_id", Kind::Text, "Calls of this user"),
    Field::new("team_id", Kind::Text, "Calls of this team"),
    Field::new("organization_id", Kind::Text, "Calls of this organization"),
];

/// Absent does not narrow.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    pub key_hash: Option<KeyHash>,
    pub user_id: Option<String>,
    pub team_id: Option<String>,
    pub organization_id: Option<String>,
}

impl Scope {
    /// The same of daily sums.
    pub fn usage(&self) -> UsageFilter {
        let one = |id: &Option<String>| id.clone().map(|id| vec![id]);
        UsageFilter {
            key_hashes: self.key_hash.map(|h| vec![h]),
            user_ids: one(&self.user_id),
            team_ids: one(&self.team_id),
            organization_ids: one(&self.organization_id),
            ..UsageFilter::default()
        }
    }
}

impl Actor {
    /// Sees what everybody spent.
    pub fn sees_spend(&self) -> bool {
        self.sees_all() || may_see_spend(self)
    }
}

impl Desk {
    /// Reads `api_key`, `user_id`, `team_id` and `organization_id`. Who asks for others' spend is refused; who
    /// asks for nothing gets what is its own.
    pub async fn scope(&self, actor: &Actor, params: &Params) -> Result<Scope> {
        let asked = Scope {
            key_hash: params.key("api_key")?,
            user_id: params.owned("user_id")?,
            team_id: params.owned("team_id")?,
            organization_id: params.owned("organization_id")?,
        };
        if actor.sees_spend() {
            return Ok(asked);
        }
        self.narrowed(actor, asked).await
    }

    async fn narrowed(&self, actor: &Actor, mut asked: Scope) -> Result<Scope> {
        // Within what belongs to a team or an organization, all else only narrows.
        if let Some(team) = &asked.team_id
            && self.sees_team_spend(actor, team).await?
        {
            return Ok(asked);
        }
        if let Some(organization) = &asked.organization_id
            && self.leads_organization(actor, organization).await?
        {
            return Ok(asked);
        }
        if asked.user_id.is_some() && !actor.is_user(asked.user_id.as_deref()) {
            return Err(others());
        }
        match asked.key_hash {
            Some(hash) if actor.caller.key_hash() == Some(hash) => {}
            Some(hash) => {
                let Some(key) = self.store.key_by_hash(&hash).await? else {
                    return Err(others());
                };
                if actor.is_user(key.user_id.as_deref()) {
                    // Only what was spent as that user: the key may have been another's before.
                    asked.user_id = key.user_id;
                } else if let Some(team) = key.team_id
                    && asked.team_id.as_ref().is_none_or(|t| *t == team)
                    && self.sees_team_spend(actor, &team).await?
                {
                    asked.team_id = Some(team);
                } else {
                    return Err(others());
                }
            }
            None if asked.user_id.is_some() => {}
            None if asked.team_id.is_some() || asked.organization_id.is_some() => return Err(others()),
            None => match (actor.role, actor.user_id()) {
                (Role::User | Role::UserViewer | Role::OrganizationAdmin, Some(user)) => {
                    asked.user_id = Some(user.to_string());
                }
                _ => asked.key_hash = Some(own_hash(actor)?),
            },
        }
        Ok(asked)
    }

    /// Whoever leads the team, and its members where the team lets them make this call.
    pub async fn sees_team_spend(&self, actor: &Actor, team_id: &str) -> Result<bool> {
        if actor.sees_spend() {
            return Ok(true);
        }
        let Some(user) = actor.user_id() else {
            return Ok(false);
        };
        let Some(team) = self.store.document(Table::Team, team_id).await? else {
            return Ok(false);
        };
        let member = role_among(&team.fields, user).is_some();
        Ok((member && members_may(&team.fields, &actor.path)) || self.leads(actor, &team).await?)
    }
}

/// LiteLLM's sentence, and what to do.
pub fn others() -> Stopped {
    forbidden(
        "Non-admin users can only view their own spend data. Leave out 'api_key', 'user_id' and 'team_id', or \
         use the key of an admin.",
    )
    .into()
}
