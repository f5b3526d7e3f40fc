//! Whose spend a call adds to. Every record is charged to all the accounts that follow from its fields,
//! whether anybody limits them or not, so that a limit set later knows what was spent before.

use super::key::KeyHash;
use super::record::Record;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;

/// What kind of subject an account is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// All calls together.
    Gateway,
    Organization,
    Team,
    /// One user within one team.
    Member,
    /// One user within one organization.
    OrganizationMember,
    User,
    Key,
    /// Who the caller's own `user` field names: LiteLLM's customer.
    EndUser,
    Tag,
}

impl Kind {
    pub const ALL: [Kind; 9] = [
        Kind::Gateway,
        Kind::Organization,
        Kind::Team,
        Kind::Member,
        Kind::OrganizationMember,
        Kind::User,
        Kind::Key,
        Kind::EndUser,
        Kind::Tag,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Gateway => "gateway",
            Kind::Organization => "organization",
            Kind::Team => "team",
            Kind::Member => "member",
            Kind::OrganizationMember => "organization_member",
            Kind::User => "user",
            Kind::Key => "key",
            Kind::EndUser => "end_user",
            Kind::Tag => "tag",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.as_str() == text)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One account: a subject, and for what it may spend on a single model, that model's group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Account {
    pub kind: Kind,
    /// The subject's id: a key's hash in hexadecimal, [`member`] for members, empty for the gateway.
    pub id: String,
    /// The configured name that was routed by; empty = all models together.
    pub model: String,
}

impl Account {
    pub fn new(kind: Kind, id: impl Into<String>) -> Self {
        Self {
            kind,
            id: id.into(),
            model: String::new(),
        }
    }

    pub fn of_model(kind: Kind, id: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            kind,
            id: id.into(),
            model: model.into(),
        }
    }
}

/// A member's id, of a team or an organization: both ids are one line each, so a tab keeps them apart.
pub fn member(of: &str, user_id: &str) -> String {
    format!("{of}\t{user_id}")
}

/// The fields of a record that say who is charged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Charge<'a> {
    pub key_hash: Option<&'a KeyHash>,
    pub user_id: Option<&'a str>,
    pub team_id: Option<&'a str>,
    pub organization_id: Option<&'a str>,
    pub end_user: Option<&'a str>,
    pub model_group: &'a str,
    pub tags: &'a [String],
}

impl<'a> Charge<'a> {
    pub fn of(record: &'a Record) -> Self {
        Self {
            key_hash: record.key_hash.as_ref(),
            user_id: given(&record.user_id),
            team_id: given(&record.team_id),
            organization_id: given(&record.organization_id),
            end_user: given(&record.end_user),
            model_group: &record.model_group,
            tags: &record.tags,
        }
    }

    /// The subjects of these kinds that are charged, each once.
    pub fn subjects(&self, of: impl Fn(Kind) -> bool) -> Vec<(Kind, Cow<'a, str>)> {
        let mut subjects = Vec::with_capacity(8);
        self.walk(of, |kind, id| {
            subjects.push((
                kind,
                match id {
                    Id::Text(text) => Cow::Borrowed(text),
                    Id::Member(of, user) => Cow::Owned(member(of, user)),
                    Id::Key(hash) => Cow::Owned(hash.hex()),
                },
            ));
        });
        subjects
    }

    /// Tells the same, without keeping anything.
    pub fn each(&self, of: impl Fn(Kind) -> bool, mut tell: impl FnMut(Kind, &str)) {
        self.walk(of, |kind, id| match id {
            Id::Text(text) => tell(kind, text),
            Id::Member(of, user) => tell(kind, &member(of, user)),
            Id::Key(hash) => tell(kind, hash.hex_in(&mut [0; 64])),
        });
    }

    fn walk(&self, of: impl Fn(Kind) -> bool, mut tell: impl FnMut(Kind, Id<'a>)) {
        if of(Kind::Gateway) {
            tell(Kind::Gateway, Id::Text(""));
        }
        for (kind, id) in [
            (Kind::Organization, self.organization_id),
            (Kind::Team, self.team_id),
            (Kind::User, self.user_id),
            (Kind::EndUser, self.end_user),
        ] {
            if let Some(id) = id.filter(|_| of(kind)) {
                tell(kind, Id::Text(id));
            }
        }
        for (kind, whole) in [
            (Kind::Member, self.team_id),
            (Kind::OrganizationMember, self.organization_id),
        ] {
            if let (Some(whole), Some(user), true) = (whole, self.user_id, of(kind)) {
                tell(kind, Id::Member(whole, user));
            }
        }
        if let Some(hash) = self.key_hash.filter(|_| of(Kind::Key)) {
            tell(Kind::Key, Id::Key(hash));
        }
        if of(Kind::Tag) {
            for (i, tag) in self.tags.iter().enumerate() {
                if !tag.is_empty() && !self.tags.iter().take(i).any(|t| t == tag) {
                    tell(Kind::Tag, Id::Text(tag));
                }
            }
        }
    }
}

/// A subject's id before it is put together.
enum Id<'a> {
    Text(&'a str),
    /// Of a team or an organization, and a user.
    Member(&'a str, &'a str),
    Key(&'a KeyHash),
}

/// The subjects that a record is charged to, each once. Each is charged twice over: in all, and for the
/// record's model group if it has one.
pub fn charged(record: &Record) -> Vec<(Kind, Cow<'_, str>)> {
    Charge::of(record).subjects(|_| true)
}

fn given(id: &Option<String>) -> Option<&str> {
    id.as_deref().filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.as_str()), Some(kind));
        }
        assert_eq!(Kind::parse("nobody"), None);
    }
}
