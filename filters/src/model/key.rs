//! Virtual keys and who is calling.

use super::limits::Limits;
use super::party::{self, Party};
use super::secret::Secret;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// SHA-256 of the whole key text including `sk-`, as LiteLLM stores it: issued keys survive a move.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash(pub [u8; 32]);

impl KeyHash {
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    /// Lowercase hexadecimal, 64 characters.
    pub fn hex(&self) -> String {
        self.hex_in(&mut [0; 64]).to_string()
    }

    /// The same, written where the caller has room for it.
    pub fn hex_in<'t>(&self, text: &'t mut [u8; 64]) -> &'t str {
        let digit = |n: u8| n + if n < 10 { b'0' } else { b'a' - 10 };
        for (pair, b) in text.chunks_exact_mut(2).zip(self.0) {
            pair.copy_from_slice(&[digit(b >> 4), digit(b & 15)]);
        }
        // Nothing in it is not a digit.
        std::str::from_utf8(text).unwrap_or_default()
    }

    pub fn from_hex(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        if text.len() != 64 {
            return None;
        }
        let mut out = [0u8; 32];
        for (slot, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
            let [hi, lo] = [pair.first()?, pair.get(1)?].map(|c| char::from(*c).to_digit(16));
            *slot = ((hi? << 4) | lo?) as u8;
        }
        Some(Self(out))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

impl Serialize for KeyHash {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.hex())
    }
}

impl<'de> Deserialize<'de> for KeyHash {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::from_hex(&text).ok_or_else(|| serde::de::Error::custom("a key hash is 64 hexadecimal digits"))
    }
}

/// A virtual key as the store keeps it. Times are microseconds since 1970, UTC; money is nano-dollars.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Key {
    pub hash: KeyHash,
    /// `sk-...` and the last four characters.
    pub key_name: String,
    pub key_alias: Option<String>,
    pub user_id: Option<String>,
    pub team_id: Option<String>,
    /// Names this key may call; empty = all.
    pub models: Vec<String>,
    /// Client's name -> model name.
    pub aliases: BTreeMap<String, String>,
    /// Spent so far, as the store knows it.
    pub spend_nanos: i64,
    pub max_budget_nanos: Option<i64>,
    pub expires_micros: Option<i64>,
    pub blocked: bool,
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// All other fields, under LiteLLM's names (`tpm_limit`, `budget_duration`, `organization_id`, …).
    pub extra: serde_json::Map<String, serde_json::Value>,
    pub created_at_micros: i64,
    pub created_by: Option<String>,
    pub updated_at_micros: i64,
}

impl Key {
    /// A text among the further fields; empty is absent.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.extra
            .get(name)
            .and_then(serde_json::Value::as_str)
            .filter(|t| !t.is_empty())
    }

    /// Who made it for its user, where that was neither the user nor an admin. Such a key calls models as
    /// its user and has none of the user's rights besides: somebody else knows its secret.
    pub fn lent_by(&self) -> Option<&str> {
        self.text("lent_by")
    }
}

/// A key and everybody it belongs to, as a request sees them: one reading of the store, never changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Holder {
    pub key: Key,
    pub limits: Limits,
    pub user: Option<Arc<Party>>,
    pub team: Option<Arc<Party>>,
    /// The key's user within the key's team.
    pub member: Option<Arc<Party>>,
    pub organization: Option<Arc<Party>>,
    /// The key's user within that organization.
    pub organization_member: Option<Arc<Party>>,
    /// The key's own tags: its calls are counted under them, whatever tags the caller adds.
    pub tags: Vec<String>,
    /// What of the key's further fields each of its calls asks for, looked up once.
    known: Known,
    /// Whoever asks came with a secret that was rotated and whose grace lasts.
    pub by_old_secret: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct Known {
    allowed_routes: Vec<String>,
    rotated_to: Option<KeyHash>,
    organization_id: Option<String>,
}

impl Holder {
    /// A key that belongs to nobody whose limits would count.
    pub fn alone(key: Key) -> Self {
        let mut limits = Limits::of(&key.extra);
        limits.budget.nanos = key.max_budget_nanos;
        let tags = party::texts(&key.extra, "tags");
        let known = Known {
            allowed_routes: party::texts(&key.extra, "allowed_routes"),
            rotated_to: key.text("rotated_to").and_then(KeyHash::from_hex),
            organization_id: key.text("organization_id").map(Into::into),
        };
        Self {
            key,
            limits,
            user: None,
            team: None,
            member: None,
            organization: None,
            organization_member: None,
            tags,
            known,
            by_old_secret: false,
        }
    }

    /// The key's own organization, else its team's.
    pub fn organization_id(&self) -> Option<&str> {
        let own = self.known.organization_id.as_deref();
        own.or_else(|| self.team.as_ref()?.text("organization_id"))
    }

    /// The paths and groups of paths that the key may call; none at all = every one.
    pub fn allowed_routes(&self) -> &[String] {
        &self.known.allowed_routes
    }

    /// Fields that a call's body must hold, dots between the names of nested ones: the key's and its team's.
    pub fn enforced_params(&self) -> impl Iterator<Item = &str> {
        const NAME: &str = "enforced_params";
        let team = self.team.as_deref().and_then(|t| t.fields.get(NAME));
        [self.key.extra.get(NAME), team]
            .into_iter()
            .flatten()
            .filter_map(serde_json::Value::as_array)
            .flatten()
            .filter_map(serde_json::Value::as_str)
    }

    /// The key that took this one's place.
    pub fn rotated_to(&self) -> Option<&KeyHash> {
        self.known.rotated_to.as_ref()
    }

    /// Everybody whose limits count beside the key's, the widest first.
    pub fn parties(&self) -> impl Iterator<Item = &Arc<Party>> {
        [
            &self.organization,
            &self.organization_member,
            &self.team,
            &self.member,
            &self.user,
        ]
        .into_iter()
        .flatten()
    }
}

impl std::ops::Deref for Holder {
    type Target = Key;

    fn deref(&self) -> &Key {
        &self.key
    }
}

impl From<Key> for Holder {
    fn from(key: Key) -> Self {
        Self::alone(key)
    }
}

/// Who is calling, once `auth` has decided.
#[derive(Clone, Debug)]
pub enum Caller {
    /// The holder of the master key: may do everything.
    Master { hash: KeyHash },
    /// A virtual key.
    Key(Arc<Holder>),
    /// Nobody in particular: a keyless pass-through from an internal network.
    Anonymous,
}

impl Caller {
    /// The master key, or a key whose user is a proxy admin.
    pub fn is_admin(&self) -> bool {
        match self {
            Caller::Master { .. } => true,
            Caller::Key(k) => {
                let role = k.user.as_ref().and_then(|u| u.text("user_role"));
                k.lent_by().is_none() && role == Some("proxy_admin")
            }
            Caller::Anonymous => false,
        }
    }

    pub fn key(&self) -> Option<&Holder> {
        match self {
            Caller::Key(k) => Some(k),
            _ => None,
        }
    }

    pub fn key_hash(&self) -> Option<KeyHash> {
        match self {
            Caller::Master { hash } => Some(*hash),
            Caller::Key(k) => Some(k.hash),
            Caller::Anonymous => None,
        }
    }

    /// LiteLLM's user id of the caller: `default_user_id` for the master key.
    pub fn user_id(&self) -> Option<&str> {
        match self {
            Caller::Master { .. } => Some("default_user_id"),
            Caller::Key(k) => k.user_id.as_deref(),
            Caller::Anonymous => None,
        }
    }
}

/// The master key: compared by hash and in constant time.
#[derive(Clone)]
pub struct MasterKey {
    pub hash: KeyHash,
    pub secret: Secret,
}

impl MasterKey {
    pub fn new(secret: Secret) -> Self {
        Self {
            hash: KeyHash::of(secret.expose()),
            secret,
        }
    }

    /// Both sides are hashes, so neither length nor content shows in the time this takes.
    pub fn is(&self, presented: &KeyHash) -> bool {
        use subtle::ConstantTimeEq;
        self.hash.0.ct_eq(&presented.0).into()
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(***)")
    }
}

/// `sk-...` and the last four characters of a key: enough to recognise, too little to use.
pub fn key_name(key: &str) -> String {
    let tail: String = key
        .chars()
        .rev()
        .take(4)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .collect();
    format!("sk-...{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_as_litellm_does() {
        let h = KeyHash::of("sk-1234");
        assert_eq!(
            h.hex(),
            "88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b"
        );
        assert_eq!(KeyHash::from_hex(&h.hex()), Some(h));
        assert_eq!(KeyHash::from_hex("zz"), None);
        assert_eq!(KeyHash::from_hex(&"é".repeat(32)), None);
    }

    #[test]
    fn names_show_the_last_four() {
        assert_eq!(key_name("sk-abcdefgh"), "sk-...efgh");
        assert_eq!(key_name("x"), "sk-...x");
    }

    #[test]
    fn the_master_key_is_itself_only() {
        let m = MasterKey::new(Secret::new("sk-master"));
        assert!(m.is(&KeyHash::of("sk-master")));
        assert!(!m.is(&KeyHash::of("sk-maste")));
        assert_eq!(format!("{m:?}"), "MasterKey(***)");
    }
}
