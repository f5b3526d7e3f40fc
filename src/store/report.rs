//! What the spend reports ask of a store: usage of whole days, added up by whatever is asked for.

use super::Page;
use filters::model::key::KeyHash;
use jiff::civil::Date;

/// What calls come to. Calls the client left are neither successes nor failures. Money is nano-dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub requests: i64,
    pub successes: i64,
    /// Failed and broken off calls.
    pub failures: i64,
    pub prompt_tokens: i64,
    pub completion_tokens: i64,
    /// Prompt tokens read from the provider's cache.
    pub cached_tokens: i64,
    /// Prompt tokens written to the provider's cache.
    pub cache_creation_tokens: i64,
    pub spend_nanos: i64,
    /// Calls that were answered and have no price: they count with nothing in the spend.
    pub unpriced: i64,
}

impl Usage {
    pub fn add(&mut self, other: &Usage) {
        let sum = |a: &mut i64, b: i64| *a = a.saturating_add(b);
        sum(&mut self.requests, other.requests);
        sum(&mut self.successes, other.successes);
        sum(&mut self.failures, other.failures);
        sum(&mut self.prompt_tokens, other.prompt_tokens);
        sum(&mut self.completion_tokens, other.completion_tokens);
        sum(&mut self.cached_tokens, other.cached_tokens);
        sum(&mut self.cache_creation_tokens, other.cache_creation_tokens);
        sum(&mut self.spend_nanos, other.spend_nanos);
        sum(&mut self.unpriced, other.unpriced);
    }
}

/// What usage can be added up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    Day,
    Key,
    ModelGroup,
    User,
    Team,
    Organization,
    Provider,
    /// With [`Group::Day`] and [`Group::ModelGroup`] only.
    EndUser,
    /// With [`Group::Day`] and [`Group::ModelGroup`] only. A call with three tags counts to each.
    Tag,
}

/// In which order groups come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UsageOrder {
    /// Newest day first where it is asked for by day, then by name.
    #[default]
    Groups,
    /// What cost most first.
    Spend,
}

/// Whose usage, of which days, added up by what. Absent filters do not narrow; an empty list of them
/// matches nothing, and nobody's calls have the empty id.
///
/// End users and tags are kept by day and model group only: asking for them (as a group or a filter)
/// together with keys, users, teams, organizations or providers is
/// [`StoreError::Invalid`](super::StoreError::Invalid), and so is asking for both at once.
#[derive(Clone, Debug, Default)]
pub struct UsageFilter {
    /// Each at most once. Empty = one row for all.
    pub by: Vec<Group>,
    /// First day, UTC, inclusive.
    pub start: Option<Date>,
    /// Last day, UTC, inclusive.
    pub end: Option<Date>,
    pub key_hashes: Option<Vec<KeyHash>>,
    pub model_groups: Option<Vec<String>>,
    pub user_ids: Option<Vec<String>>,
    pub team_ids: Option<Vec<String>>,
    pub organization_ids: Option<Vec<String>>,
    pub providers: Option<Vec<String>>,
    pub end_users: Option<Vec<String>>,
    pub tags: Option<Vec<String>>,
    pub order: UsageOrder,
    pub page: Page,
}

/// One group. What was not grouped by is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UsageRow {
    pub day: Option<Date>,
    /// Absent as well for calls without a key.
    pub key_hash: Option<KeyHash>,
    pub model_group: Option<String>,
    /// Empty = nobody's; the same for all that follow.
    pub user_id: Option<String>,
    pub team_id: Option<String>,
    pub organization_id: Option<String>,
    pub provider: Option<String>,
    pub end_user: Option<String>,
    pub tag: Option<String>,
    pub usage: Usage,
}
