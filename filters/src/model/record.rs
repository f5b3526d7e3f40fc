//! One row of the ledger: what a client call was, what it used, what it cost.

use super::call::Endpoint;
use super::key::KeyHash;
use serde::{Deserialize, Serialize};

/// Longest name of anybody in a row, bytes.
pub const LONGEST_NAME: usize = 512;
/// Longest tag, bytes.
pub const LONGEST_TAG: usize = 256;

/// How a call ended, as the ledger counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Success,
    /// Refused by us or failed upstream: nothing was answered.
    Failure,
    /// The client left before the end; what was produced is billed.
    Aborted,
    /// The upstream broke off mid-answer; what was produced is billed.
    Cut,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Success => "success",
            Status::Failure => "failure",
            Status::Aborted => "aborted",
            Status::Cut => "cut",
        }
    }
}

/// One upstream attempt, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    pub deployment_id: String,
    /// HTTP status, or 0 when no answer came.
    pub status: u16,
    /// Why it was given up, for people: never an address, never a key.
    pub error: Option<String>,
    pub duration_micros: i64,
}

/// One client call. Times are microseconds since 1970, UTC; money is nano-dollars.
///
/// Earlier versions left it in the spool as JSON, which is still read: every field added later needs
/// `#[serde(default)]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Our own id, unique: what makes a second insert harmless.
    pub request_id: String,
    pub endpoint: Endpoint,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_hash: Option<KeyHash>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_alias: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization_id: Option<String>,
    /// The `user` field of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_user: Option<String>,
    /// As the client named it.
    pub requested_model: String,
    /// The configured name it was routed by.
    pub model_group: String,
    /// As the upstream was asked for it.
    pub model: String,
    pub deployment_id: String,
    pub provider: String,
    #[serde(default, skip_serializing_if = "is_false")]
    pub stream: bool,
    pub status: Status,
    /// Status the client saw (499 = it left before one).
    pub http_status: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cached_tokens: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cache_creation_tokens: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reasoning_tokens: u64,
    /// Characters spoken, milliseconds heard, images made: what else a price can count.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub characters: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub audio_millis: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub images: u64,
    pub spend_nanos: i64,
    /// False = no price is known for the model; `spend_nanos` is then 0 and means nothing.
    pub priced: bool,
    /// Usage was counted here, not told by the upstream.
    #[serde(default, skip_serializing_if = "is_false")]
    pub estimated: bool,
    /// The upstream's numbers were absurd and were cut to bounds.
    #[serde(default, skip_serializing_if = "is_false")]
    pub clamped: bool,
    pub started_micros: i64,
    /// The first word of a stream, the first byte of any other answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_micros: Option<i64>,
    pub ended_micros: i64,
    pub attempts: Vec<Attempt>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The client's `metadata` object, bounded, as JSON text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
    pub client_ip: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

impl Record {
    pub fn total_tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }

    /// Makes every text safe to store anywhere: no NUL (Postgres refuses it), no overlong value.
    /// Done before the spool, so that one poisonous value cannot stop its neighbours' rows.
    pub fn clean(&mut self) {
        for text in [
            &mut self.requested_model,
            &mut self.model_group,
            &mut self.model,
            &mut self.deployment_id,
        ] {
            clean(text, LONGEST_NAME);
        }
        for text in [
            &mut self.key_alias,
            &mut self.user_id,
            &mut self.team_id,
            &mut self.organization_id,
            &mut self.end_user,
        ]
        .into_iter()
        .flatten()
        {
            clean(text, LONGEST_NAME);
        }
        for text in [&mut self.error, &mut self.user_agent].into_iter().flatten() {
            clean(text, 2048);
        }
        self.tags.truncate(64);
        for t in &mut self.tags {
            clean(t, LONGEST_TAG);
        }
        // Cut metadata would no longer be JSON, and an escaped NUL is as poisonous to jsonb as a raw one.
        if self
            .metadata
            .as_ref()
            .is_some_and(|m| m.len() > 16 * 1024 || m.contains('\0') || m.contains("\\u0000"))
        {
            self.metadata = None;
        }
    }
}

// Most rows say nothing in most fields, and what is not written need not be read.
fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn is_false(b: &bool) -> bool {
    !*b
}

/// Without NUL, which Postgres does not take, and no longer than `max` bytes. Names that callers make up are
/// cleaned where they come in, so that they are limited under the name that the ledger adds them up by.
pub fn clean(text: &mut String, max: usize) {
    if text.contains('\0') {
        *text = text.replace('\0', "\u{fffd}");
    }
    if text.len() > max {
        let mut cut = max;
        while !text.is_char_boundary(cut) {
            cut -= 1;
        }
        text.truncate(cut);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_keeps_characters_whole() {
        let mut t = "é".repeat(300);
        clean(&mut t, 511);
        assert_eq!(t.len(), 510);
        let mut t = "a\0b".to_string();
        clean(&mut t, 10);
        assert_eq!(t, "a\u{fffd}b");
    }

    #[test]
    fn no_text_of_a_caller_keeps_a_nul() {
        let bad = || Some("a\0b".to_string());
        let mut r = Record {
            key_alias: bad(),
            user_id: bad(),
            team_id: bad(),
            organization_id: bad(),
            end_user: bad(),
            error: bad(),
            user_agent: bad(),
            metadata: bad(),
            requested_model: "a\0b".into(),
            tags: vec!["a\0b".into()],
            ..crate::testkit::record("r")
        };
        r.clean();
        assert!(!serde_json::to_string(&r).unwrap().contains("\\u0000"));
    }
}
