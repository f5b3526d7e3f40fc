//! The store in Postgres: a pool of connections, each call bounded here and on the server.

mod accounts;
mod audit;
mod change;
pub(super) mod connect;
mod digest;
mod import;
mod keys;
mod ledger;
mod lists;
mod news;
mod objects;
mod reports;
mod retention;
mod told;

use super::filter::Arg;
use super::{
    Audit, AuditFilter, Balance, Change, DailyFilter, DailyRow, DeadLetter, Difference, Doc, DocFilter,
    DocPage, Extent, KeyFilter, KeyPage, NEWS, News, Page, Result, Settings, SpendFilter, Store, StoreError,
    Table, UsageFilter, UsageRow,
};
use async_trait::async_trait;
use connect::{Target, describe, from_pool, from_statement};
use deadpool_postgres::{ClientWrapper, Object, Pool};
use filters::model::account::Account;
use filters::model::key::{Key, KeyHash};
use filters::model::record::Record;
use filters::model::secret::Secret;
use jiff::civil::Date;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::JoinHandle;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Json, ToSql};

mod migrations {
    refinery::embed_migrations!("migrations/postgres");
}

/// How many migrations this build knows.
pub(super) fn known_migrations() -> usize {
    migrations::migrations::runner().get_migrations().len()
}

/// Replicas that start at once queue up on this advisory lock: `tollkeep` in ASCII.
const MIGRATION_LOCK: i64 = 0x746f_6c6c_6b65_6570;
/// How long one attempt to connect and migrate may take, waiting for another replica included.
const MIGRATION_LIMIT: Duration = Duration::from_secs(60);

/// Statements at a time that may look at many days of the ledger.
const WALKS: usize = 2;

/// See the module.
pub struct PostgresStore {
    pool: Pool,
    ready: watch::Receiver<bool>,
    limit: Duration,
    /// Days since 1970 that are known to have their partition of the ledger.
    days: Mutex<BTreeSet<i32>>,
    /// For statements that may look at many days of the ledger.
    walks: Semaphore,
    /// Makes the tables, then ends.
    migrator: JoinHandle<()>,
    news: broadcast::Sender<News>,
    /// Hears what replicas tell each other.
    listener: JoinHandle<()>,
}

impl PostgresStore {
    /// Fails on a bad address only; a server that is down is waited for in the background.
    pub fn open(url: &Secret, settings: &Settings) -> Result<Arc<Self>> {
        let target = Target::parse(url, settings)?;
        let pool = target.pool()?;
        let (tell, ready) = watch::channel(false);
        // The server's own limit comes first where it still answers.
        let limit = target.settings.statement_timeout + Duration::from_millis(500);
        let news = broadcast::channel(NEWS).0;
        let listener = tokio::spawn(news::listen(target.clone(), news.clone()));
        let migrator = tokio::spawn(migrate_until_done(target, tell));
        Ok(Arc::new(Self {
            pool,
            ready,
            limit,
            days: Mutex::default(),
            walks: Semaphore::new(WALKS),
            migrator,
            news,
            listener,
        }))
    }

    /// A connection whose tables are there.
    async fn lease(&self) -> Result<Lease> {
        if !*self.ready.borrow() {
            return Err(StoreError::unavailable("Postgres was not reached yet"));
        }
        let object = self.pool.get();
        let object = within(self.limit, async { object.await.map_err(from_pool) }).await?;
        Ok(Lease(Some(object)))
    }

    async fn query(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        let lease = self.lease().await?;
        let work = async {
            let statement = lease.prepare_cached(sql).await?;
            lease.query(&statement, params).await
        };
        let answer = within(self.limit, async { Ok(work.await) }).await?;
        lease.finish(answer.map_err(from_statement))
    }

    async fn query_filtered(&self, sql: &str, args: &[Arg<'_>]) -> Result<Vec<Row>> {
        let args: Vec<Box<dyn ToSql + Sync + Send + '_>> = args.iter().map(|a| boxed(*a)).collect();
        let params: Vec<&(dyn ToSql + Sync)> = args.iter().map(|a| &**a as &(dyn ToSql + Sync)).collect();
        self.query(sql, &params).await
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.migrator.abort();
        self.listener.abort();
    }
}

fn boxed<'a>(arg: Arg<'a>) -> Box<dyn ToSql + Sync + Send + 'a> {
    match arg {
        Arg::Text(t) => Box::new(t),
        Arg::Bytes(b) => Box::new(b),
        Arg::Int(n) => Box::new(n),
        Arg::Bool(b) => Box::new(b),
        Arg::Texts(list) => Box::new(list),
        Arg::Hashes(list) => Box::new(list.iter().map(|h| h.0.as_slice()).collect::<Vec<_>>()),
        Arg::Day(d) => Box::new(d),
        Arg::Time(t) => Box::new(time(t)),
    }
}

/// A pooled connection that goes back to the pool only through [`Lease::finish`]. A call that was
/// given up, or failed in a way that says nothing about its state, closes it.
struct Lease(Option<Object>);

impl Lease {
    fn finish<T>(mut self, answer: Result<T>) -> Result<T> {
        if matches!(
            answer,
            Ok(_) | Err(StoreError::Conflict { .. } | StoreError::Stale(_) | StoreError::Invalid(_))
        ) {
            drop(self.0.take());
        }
        answer
    }
}

impl std::ops::Deref for Lease {
    type Target = ClientWrapper;

    fn deref(&self) -> &ClientWrapper {
        // Emptied by `finish` and `drop` only, and both consume the lease.
        self.0
            .as_ref()
            .expect("a lease holds its connection until it ends")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(Object::take(object));
        }
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(answer) => answer,
        Err(_) => Err(StoreError::unavailable("Postgres did not answer in time")),
    }
}

async fn migrate_until_done(target: Target, tell: watch::Sender<bool>) {
    let mut pause = Duration::from_millis(100);
    let mut said = String::new();
    loop {
        let answer = within(MIGRATION_LIMIT, migrate(&target)).await;
        let Err(e) = answer else { break };
        let text = e.to_string();
        if text != said {
            log::warn!(
                "store=postgres at={} retrying in the background: {text}",
                target.place()
            );
            said = text;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
    if !said.is_empty() {
        log::info!("store=postgres reached");
    }
    tell.send_replace(true);
}

async fn migrate(target: &Target) -> Result<()> {
    let connected = target.config.connect(target.tls.clone());
    let limit = target.settings.connect_timeout;
    let (mut client, connection) = within(limit, async {
        connected.await.map_err(|e| StoreError::Unavailable(describe(&e)))
    })
    .await?;
    let connection = AbortOnDrop(tokio::spawn(async move {
        // What ends the connection also ends the calls on it, and they report it.
        let _ = connection.await;
    }));
    client
        .batch_execute(&target.greeting)
        .await
        .map_err(from_statement)?;
    client
        .batch_execute("SET statement_timeout = 0; SET client_min_messages = warning")
        .await
        .map_err(from_statement)?;
    client
        .query_one("SELECT pg_advisory_lock($1)", &[&MIGRATION_LOCK])
        .await
        .map_err(from_statement)?;
    let mut runner = migrations::migrations::runner()
        // A newer replica may have been here already; its tables still serve us.
        .set_abort_missing(false);
    runner.set_migration_table_name("tk_migrations");
    runner
        .run_async(&mut client)
        .await
        .map_err(|e| StoreError::other(format!("migration: {e}")))?;
    // The lock ends with the connection.
    drop(client);
    drop(connection);
    Ok(())
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Microseconds since 1970 as Postgres' timestamptz.
fn time(micros: i64) -> SystemTime {
    let distance = Duration::from_micros(micros.unsigned_abs());
    let moved = if micros >= 0 {
        UNIX_EPOCH.checked_add(distance)
    } else {
        UNIX_EPOCH.checked_sub(distance)
    };
    moved.unwrap_or(UNIX_EPOCH)
}

fn micros(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |m| -m),
    }
}

/// Reads a row's columns from left to right.
struct Cells<'a> {
    row: &'a Row,
    at: usize,
}

impl<'a> Cells<'a> {
    fn of(row: &'a Row) -> Self {
        Self { row, at: 0 }
    }

    fn next<T: FromSql<'a>>(&mut self) -> Result<T> {
        let value = self
            .row
            .try_get(self.at)
            .map_err(|e| StoreError::other(describe(&e)));
        self.at += 1;
        value
    }

    fn skip(&mut self, columns: usize) {
        self.at += columns;
    }

    fn json<T: serde::de::DeserializeOwned + 'a>(&mut self) -> Result<T> {
        self.next::<Json<T>>().map(|json| json.0)
    }

    fn micros(&mut self) -> Result<i64> {
        self.next().map(micros)
    }

    fn maybe_micros(&mut self) -> Result<Option<i64>> {
        Ok(self.next::<Option<SystemTime>>()?.map(micros))
    }
}

#[async_trait]
impl Store for PostgresStore {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    async fn health(&self) -> Result<()> {
        within(Duration::from_secs(1), async {
            let lease = self.lease().await?;
            let answer = lease.simple_query("").await.map(drop).map_err(from_statement);
            lease.finish(answer)
        })
        .await
    }

    async fn ready(&self) {
        // The sender goes only after it has said true, or with the store itself.
        let _ = self.ready.clone().wait_for(|ready| *ready).await;
    }

    async fn key_by_hash(&self, hash: &KeyHash) -> Result<Option<Key>> {
        self.pg_key_by_hash(hash).await
    }

    async fn change(&self, changes: &[Change<'_>], audit: &[Audit]) -> Result<()> {
        self.pg_change(changes, audit).await
    }

    fn news(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }

    async fn document(&self, table: Table, id: &str) -> Result<Option<Doc>> {
        self.pg_document(table, id).await
    }

    async fn documents(&self, table: Table, filter: &DocFilter) -> Result<DocPage> {
        self.pg_documents(table, filter).await
    }

    async fn audit(&self, filter: &AuditFilter) -> Result<Vec<Audit>> {
        self.pg_audit(filter).await
    }

    async fn keys_by_alias(&self, aliases: &[String]) -> Result<Vec<Key>> {
        self.pg_keys_by_alias(aliases).await
    }

    async fn list_keys(&self, filter: &KeyFilter, page: Page) -> Result<KeyPage> {
        self.pg_list_keys(filter, page).await
    }

    async fn spend_of_key(&self, hash: &KeyHash) -> Result<Option<i64>> {
        let sql = "SELECT coalesce((SELECT spend_nanos FROM tk_accounts \
             WHERE kind = 'key' AND id = encode(hash, 'hex') AND model = ''), 0) FROM tk_keys WHERE hash = $1";
        let rows = self.query(sql, &[&hash.0.as_slice()]).await?;
        rows.first().map(|row| Cells::of(row).next()).transpose()
    }

    async fn spend_of_team(&self, team_id: &str) -> Result<i64> {
        let team = Account::new(filters::model::account::Kind::Team, team_id);
        let balances = self.pg_balances(&[team]).await?;
        Ok(balances.first().map_or(0, |b| b.total_nanos))
    }

    async fn balances(&self, accounts: &[Account]) -> Result<Vec<Balance>> {
        self.pg_balances(accounts).await
    }

    async fn begin_period(
        &self,
        account: &Account,
        started_micros: i64,
        ends_micros: Option<i64>,
    ) -> Result<()> {
        self.pg_begin_period(account, started_micros, ends_micros).await
    }

    async fn openings(&self, accounts: &[Account]) -> Result<Vec<Option<i64>>> {
        self.pg_openings(accounts).await
    }

    async fn is_first(&self, name: &str, window: Duration) -> Result<bool> {
        self.pg_is_first(name, window).await
    }

    async fn import_daily(&self, days: &[DailyRow], dry_run: bool) -> Result<(u64, u64)> {
        self.pg_import_daily(days, dry_run).await
    }

    async fn import_records(&self, records: &[Record], dry_run: bool) -> Result<u64> {
        self.pg_import_records(records, dry_run).await
    }

    async fn append(&self, records: &[Record]) -> Result<()> {
        self.pg_append(records).await
    }

    async fn dead_letter(&self, record: &Record, reason: &str) -> Result<()> {
        self.pg_dead_letter(record, reason).await
    }

    async fn dead_letters(&self, page: Page) -> Result<Vec<DeadLetter>> {
        self.pg_dead_letters(page).await
    }

    async fn spend_logs(&self, filter: &SpendFilter) -> Result<Vec<Record>> {
        self.pg_spend_logs(filter).await
    }

    async fn count_up_to(&self, filter: &SpendFilter, most: u64) -> Result<u64> {
        self.pg_count_up_to(filter, most).await
    }

    async fn extent(&self) -> Result<Extent> {
        self.pg_extent().await
    }

    async fn calls_of_days(&self, first: Date, last: Date) -> Result<u64> {
        self.pg_calls_of_days(first, last).await
    }

    async fn digest_day(&self) -> Result<bool> {
        self.pg_digest_day().await
    }

    async fn count_records(&self, filter: &SpendFilter) -> Result<u64> {
        self.pg_count_records(filter).await
    }

    async fn daily(&self, filter: &DailyFilter) -> Result<Vec<DailyRow>> {
        self.pg_daily(filter).await
    }

    async fn usage(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>> {
        self.pg_usage(filter).await
    }

    async fn drop_rows_before(&self, day: Date) -> Result<u64> {
        self.pg_drop_rows_before(day).await
    }

    async fn rows_from(&self) -> Result<Option<Date>> {
        self.pg_rows_from().await
    }

    async fn differences(&self, max: u32, limit: Duration) -> Result<Vec<Difference>> {
        self.pg_differences(max, limit).await
    }
}
