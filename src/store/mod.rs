//! Where keys, users and the ledger live: Postgres, or an embedded SQLite file.
//!
//! The only floor that writes SQL. Both stores hold the same tables (`migrations/`) and pass the
//! same suite of tests. No call here waits without a bound.

mod ask;
mod digest;
pub mod error;
mod filter;
pub mod lists;
pub mod litellm;
pub mod period;
mod plan;
pub mod postgres;
pub mod probe;
pub mod report;
pub(crate) mod rows;
pub mod seal;
pub mod sqlite;
mod sums;
pub mod table;

pub use error::{StoreError, Taken};
pub use report::{Group, Usage, UsageFilter, UsageOrder, UsageRow};
pub use table::{Audit, AuditFilter, Balance, Change, Doc, DocFilter, DocPage, News, Order, Table};

use async_trait::async_trait;
use filters::model::account::Account;
use filters::model::key::{Key, KeyHash};
use filters::model::record::{Record, Status};
use filters::model::secret::Secret;
use jiff::civil::Date;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub type Result<T> = std::result::Result<T, StoreError>;

/// The most rows one read returns, whatever was asked for.
pub const MAX_ROWS: u32 = 10_000;

/// News that a slow listener may be behind; more is [`News::Everything`].
const NEWS: usize = 1_024;

/// Which keys; an absent field does not narrow. Newest first, unless sorted.
#[derive(Clone, Debug, Default)]
pub struct KeyFilter {
    pub user_id: Option<String>,
    pub team_id: Option<String>,
    /// Of one of these teams; an empty list matches nothing.
    pub team_ids: Option<Vec<String>>,
    pub organization_id: Option<String>,
    pub key_alias: Option<String>,
    pub created_by: Option<String>,
    /// Those that name this budget.
    pub budget_id: Option<String>,
    /// One of these; an empty list matches nothing.
    pub hashes: Option<Vec<KeyHash>>,
    /// This text, whatever its case, within the alias or the name (`sk-...` and four characters).
    pub search: Option<String>,
    pub blocked: Option<bool>,
    /// Whether the expiry has passed, by the database's clock.
    pub expired: Option<bool>,
    /// Those that expire before this moment, microseconds since 1970.
    pub expires_before_micros: Option<i64>,
    pub sort: KeySort,
    pub order: Order,
}

/// What keys are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeySort {
    #[default]
    Created,
    /// Spend of the current period.
    Spend,
    /// Keys without an alias come last, whichever the order.
    Alias,
}

/// A slice of a list. `limit` is cut to [`MAX_ROWS`].
#[derive(Clone, Copy, Debug)]
pub struct Page {
    pub limit: u32,
    pub offset: u64,
}

impl Default for Page {
    fn default() -> Self {
        Self {
            limit: 100,
            offset: 0,
        }
    }
}

/// Keys, newest first, and how many there are in all.
#[derive(Clone, Debug, Default)]
pub struct KeyPage {
    pub keys: Vec<Key>,
    pub total: u64,
}

/// In which order ledger rows come; request ids decide between equals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpendOrder {
    /// Latest start first.
    #[default]
    Newest,
    Oldest,
    /// Highest spend first.
    Dearest,
    Cheapest,
}

/// Which ledger rows; an absent field does not narrow.
#[derive(Clone, Debug, Default)]
pub struct SpendFilter {
    pub key_hash: Option<KeyHash>,
    pub user_id: Option<String>,
    pub team_id: Option<String>,
    pub organization_id: Option<String>,
    pub end_user: Option<String>,
    pub model_group: Option<String>,
    /// As it was routed by, or as the upstream calls it.
    pub model: Option<String>,
    /// What the key was called at the time.
    pub key_alias: Option<String>,
    /// One of the row's tags.
    pub tag: Option<String>,
    pub status: Option<Status>,
    /// Whether the call went well: false = failed, left by its client, or broken off.
    pub success: Option<bool>,
    /// The lowest and the highest status that was answered.
    pub http_status: Option<(u16, u16)>,
    pub request_id: Option<String>,
    /// This text anywhere within the request id, its case included.
    pub request_id_part: Option<String>,
    /// Spend at least this, nano-dollars.
    pub min_spend_nanos: Option<i64>,
    /// Spend at most this, nano-dollars.
    pub max_spend_nanos: Option<i64>,
    /// Started at or after, microseconds since 1970.
    pub start_micros: Option<i64>,
    /// Started before, microseconds since 1970.
    pub end_micros: Option<i64>,
    /// Ended later than this, microseconds since 1970. There is no index of ends: bound the starts too.
    pub ended_after_micros: Option<i64>,
    /// Continue after this row: `(started_micros, request_id)` of the last one seen, or
    /// `(spend_nanos, request_id)` where the order is by spend.
    pub after: Option<(i64, String)>,
    pub order: SpendOrder,
    pub page: Page,
}

/// From when to when there are rows, days of UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// The first day whose rows are kept; absent = there is none.
    pub first: Option<Date>,
    pub last: Option<Date>,
    /// Some of them came from another gateway, which the sums of our days do not count.
    pub imported: bool,
}

/// Which daily sums; an absent field does not narrow. Newest day first.
#[derive(Clone, Debug, Default)]
pub struct DailyFilter {
    /// First day, UTC, inclusive.
    pub start: Option<Date>,
    /// Last day, UTC, inclusive.
    pub end: Option<Date>,
    pub key_hash: Option<KeyHash>,
    pub user_id: Option<String>,
    pub team_id: Option<String>,
    pub page: Page,
}

/// What one key, user and team did with one model group of one provider on one day (UTC).
#[derive(Clone, Debug, PartialEq)]
pub struct DailyRow {
    pub day: Date,
    pub key_hash: Option<KeyHash>,
    pub model_group: String,
    /// Empty = nobody's.
    pub user_id: String,
    /// Empty = nobody's.
    pub team_id: String,
    /// Empty = nobody's.
    pub organization_id: String,
    pub provider: String,
    pub requests: i64,
    pub successes: i64,
    /// Failed and broken off calls. Calls the client left count as requests only.
    pub failures: i64,
    pub prompt_tokens: i64,
    pub completion_tokens: i64,
    pub cached_tokens: i64,
    pub cache_creation_tokens: i64,
    pub spend_nanos: i64,
}

impl DailyRow {
    /// What there is one row of: day, key, model group, user, team, organization, provider.
    pub fn key(&self) -> (Date, Option<KeyHash>, &str, &str, &str, &str, &str) {
        (
            self.day,
            self.key_hash,
            &self.model_group,
            &self.user_id,
            &self.team_id,
            &self.organization_id,
            &self.provider,
        )
    }
}

/// A row the ledger could not take.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    pub request_id: String,
    pub reason: String,
    /// The record as JSON.
    pub record: String,
}

/// Calls, tokens (prompt and completion) and nano-dollars, added up. An account keeps only what it spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    pub requests: i64,
    pub tokens: i64,
    pub spend_nanos: i64,
}

/// A kept sum that does not agree with the ledger's rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// What was summed: `day 2026-11-20 key 88dc… model small …`, `day 2026-11-20 tag batch model small`,
    /// `key 88dc…`, `user alice model small`.
    pub what: String,
    pub kept: Sums,
    /// The same, added up over the rows.
    pub rows: Sums,
}

/// The database behind the gateway. Every call is bounded in time and answers
/// [`StoreError::Unavailable`] rather than wait for a database that is gone.
#[async_trait]
pub trait Store: Send + Sync {
    /// `postgres` or `sqlite`.
    fn kind(&self) -> &'static str;

    /// Whether the store answers now; at most one second.
    async fn health(&self) -> Result<()>;

    /// Returns once the store could be reached and its tables are there. Has no bound of its own.
    async fn ready(&self);

    async fn key_by_hash(&self, hash: &KeyHash) -> Result<Option<Key>>;

    /// Carries out all changes, and keeps the audit rows, in one transaction: all or nothing. What
    /// depends on a version that is no longer current is [`StoreError::Stale`]. Other replicas hear of it
    /// through [`Store::news`] once it is committed.
    async fn change(&self, changes: &[Change<'_>], audit: &[Audit]) -> Result<()>;

    /// What other replicas, and this one, changed from now on. Lagging behind counts as
    /// [`News::Everything`]. Whoever listens forgets what it knew before it began to.
    fn news(&self) -> tokio::sync::broadcast::Receiver<News>;

    async fn document(&self, table: Table, id: &str) -> Result<Option<Doc>>;

    async fn documents(&self, table: Table, filter: &DocFilter) -> Result<DocPage>;

    /// Newest first.
    async fn audit(&self, filter: &AuditFilter) -> Result<Vec<Audit>>;

    /// What the accounts have spent, in the order asked for; an unknown account has spent nothing.
    /// At most [`MAX_ROWS`] at once.
    async fn balances(&self, accounts: &[Account]) -> Result<Vec<Balance>>;

    /// The account's budget period is this one now: `started <= now < ends`, microseconds since 1970;
    /// `ends` = None: it never resets. Does nothing if the account is in that period already. What ended
    /// before `started` counts to the past, when it lands earlier or later; what ended at or after
    /// `started` counts to the new period even if it landed before this call (as far as its row is still
    /// kept). Times are rounded down to whole seconds. The rules stand in [`period`].
    async fn begin_period(
        &self,
        account: &Account,
        started_micros: i64,
        ends_micros: Option<i64>,
    ) -> Result<()>;

    /// What was said last of each account's opening, in the order asked for; `None` = there is no account.
    async fn openings(&self, accounts: &[Account]) -> Result<Vec<Option<i64>>>;

    /// Whether nobody has claimed `name` within its window, by the database's clock; then it is claimed for
    /// `window` from now. Of several that ask at once, one hears true.
    async fn is_first(&self, name: &str, window: Duration) -> Result<bool>;

    /// Sets sums that another gateway made of its own rows; readers see them added to ours. Returns how many
    /// are new, and how many were there with other numbers. A dry run only counts.
    async fn import_daily(&self, days: &[DailyRow], dry_run: bool) -> Result<(u64, u64)>;

    /// Keeps rows of another gateway's ledger beside ours; they add to no sum. One whose id is there already
    /// changes nothing. Returns how many are new. A dry run only counts.
    async fn import_records(&self, records: &[Record], dry_run: bool) -> Result<u64>;

    /// [`Change::InsertKey`] alone, and without an audit row.
    async fn insert_key(&self, key: &Key) -> Result<()> {
        self.change(&[Change::InsertKey(key)], &[]).await
    }

    /// [`Change::UpdateKey`] alone, whatever the key was before, and without an audit row; false = there is
    /// no such key.
    async fn update_key(&self, key: &Key) -> Result<bool> {
        let mut tries = 0;
        loop {
            let Some(now) = self.key_by_hash(&key.hash).await? else {
                return Ok(false);
            };
            let read_at_micros = now.updated_at_micros;
            let change = Change::UpdateKey { key, read_at_micros };
            match self.change(&[change], &[]).await {
                Err(StoreError::Stale(_)) if tries < 10 => tries += 1,
                done => return done.map(|()| true),
            }
        }
    }

    /// [`Change::DeleteKeys`] alone, and without an audit row; returns those that were there.
    async fn delete_keys(&self, hashes: &[KeyHash]) -> Result<Vec<KeyHash>> {
        let filter = KeyFilter {
            hashes: Some(hashes.to_vec()),
            ..KeyFilter::default()
        };
        let page = Page {
            limit: MAX_ROWS,
            offset: 0,
        };
        let found = self.list_keys(&filter, page).await?;
        let there: Vec<KeyHash> = found.keys.iter().map(|key| key.hash).collect();
        if !there.is_empty() {
            self.change(&[Change::DeleteKeys(&there)], &[]).await?;
        }
        Ok(there)
    }

    async fn keys_by_alias(&self, aliases: &[String]) -> Result<Vec<Key>>;

    async fn list_keys(&self, filter: &KeyFilter, page: Page) -> Result<KeyPage>;

    /// Nano-dollars the key has spent as far as rows have landed; `None` = no such key.
    async fn spend_of_key(&self, hash: &KeyHash) -> Result<Option<i64>>;

    async fn keys_of_user(&self, user_id: &str) -> Result<Vec<Key>> {
        let filter = KeyFilter {
            user_id: Some(user_id.to_string()),
            ..KeyFilter::default()
        };
        let page = Page {
            limit: MAX_ROWS,
            offset: 0,
        };
        Ok(self.list_keys(&filter, page).await?.keys)
    }

    /// Nano-dollars the team's rows sum up to; 0 for an unknown team.
    async fn spend_of_team(&self, team_id: &str) -> Result<i64>;

    /// Writes rows and everything that is summed from them, all or nothing. A row whose
    /// `request_id` is there already changes nothing, so repeating a batch is harmless.
    async fn append(&self, records: &[Record]) -> Result<()>;

    /// Keeps a row that [`Store::append`] can never take.
    async fn dead_letter(&self, record: &Record, reason: &str) -> Result<()>;

    /// Newest first.
    async fn dead_letters(&self, page: Page) -> Result<Vec<DeadLetter>>;

    async fn spend_logs(&self, filter: &SpendFilter) -> Result<Vec<Record>>;

    /// How many rows a filter matches, whatever its page.
    async fn count_records(&self, filter: &SpendFilter) -> Result<u64>;

    /// The same, but no more than `most` are counted.
    async fn count_up_to(&self, filter: &SpendFilter, most: u64) -> Result<u64>;

    async fn extent(&self) -> Result<Extent>;

    /// How many calls began on the days from `first` to `last` (UTC), those of another gateway not counted.
    async fn calls_of_days(&self, first: Date, last: Date) -> Result<u64>;

    /// Looks through one day that is over, so that lists, counts and pages far back know what it holds; false =
    /// there is none left to look through, or another replica is at it. Until then they look themselves.
    async fn digest_day(&self) -> Result<bool>;

    async fn daily(&self, filter: &DailyFilter) -> Result<Vec<DailyRow>>;

    /// Usage of whole days, added up: see [`UsageFilter`].
    async fn usage(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>>;

    /// Deletes the rows of all days (UTC) before `day`; how many there were. Daily sums and accounts stay as
    /// they are. Works in steps: stopped half-way, it leaves books that are in order.
    async fn drop_rows_before(&self, day: Date) -> Result<u64>;

    /// The first day whose rows are all there; `None` = none was ever dropped.
    async fn rows_from(&self) -> Result<Option<Date>>;

    /// Compares every kept sum (accounts, and days from [`Store::rows_from`] on) with the rows, in both
    /// directions, within one view of the data. Reads the whole ledger: bounded by `limit`, at most `max` differences are returned.
    async fn differences(&self, max: u32, limit: Duration) -> Result<Vec<Difference>>;
}

/// Where the store is.
#[derive(Clone, Debug)]
pub enum Address {
    Postgres(Secret),
    Sqlite(PathBuf),
}

impl Address {
    /// `postgres://…` and `postgresql://…` are Postgres; `sqlite:path` and anything else is a file.
    pub fn parse(text: &str) -> Result<Self> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Ok(Address::Postgres(Secret::new(text)));
        }
        let path = text
            .strip_prefix("sqlite://")
            .or_else(|| text.strip_prefix("sqlite:"))
            .unwrap_or(text);
        if path.is_empty() || path.contains("://") {
            // The text may hold a password, so it is not repeated.
            return Err(StoreError::invalid(
                "a store is a postgres:// address or the path of an SQLite file",
            ));
        }
        Ok(Address::Sqlite(PathBuf::from(path)))
    }
}

/// Opens a store. A Postgres that is down is no error: it is reached, and its tables are made, behind
/// the scenes, and until then calls answer [`StoreError::Unavailable`]. Needs a Tokio runtime.
pub async fn open(address: &Address, settings: &Settings) -> Result<Arc<dyn Store>> {
    match address {
        Address::Postgres(url) => Ok(postgres::PostgresStore::open(url, settings)?),
        Address::Sqlite(path) => {
            let path = path.clone();
            let opened = tokio::task::spawn_blocking(move || sqlite::SqliteStore::open(&path));
            let store = opened.await.map_err(StoreError::other)??;
            Ok(store)
        }
    }
}

/// Bounds of a store. The defaults suit a gateway.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Most connections to Postgres, unless its address says `connection_limit`.
    pub pool_size: usize,
    /// For a TCP and TLS connection to stand.
    pub connect_timeout: Duration,
    /// For a free connection of the pool.
    pub wait_timeout: Duration,
    /// For one call, on the server and here.
    pub statement_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pool_size: 10,
            connect_timeout: Duration::from_secs(3),
            wait_timeout: Duration::from_secs(3),
            statement_timeout: Duration::from_secs(5),
        }
    }
}
