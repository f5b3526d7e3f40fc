//! The store in an SQLite file: one thread that writes, a few connections that read.
//!
//! SQLite has one writer at a time whatever one does; giving it a thread of its own keeps its disk
//! waits out of the async runtime and makes a batch one transaction without lock fights.

mod accounts;
mod audit;
mod change;
mod digest;
mod import;
mod keys;
mod ledger;
mod lists;
mod objects;
mod reports;
mod retention;
mod told;

use super::filter::Arg;
use super::period::Period;
use super::plan::Plan;
use super::{
    Audit, AuditFilter, Balance, Change, DailyFilter, DailyRow, DeadLetter, Difference, Doc, DocFilter,
    DocPage, Extent, KeyFilter, KeyPage, MAX_ROWS, NEWS, News, Page, Result, SpendFilter, Store, StoreError,
    Table, Taken, UsageFilter, UsageRow,
};
use async_trait::async_trait;
use filters::model::account::{Account, Kind};
use filters::model::key::{Key, KeyHash};
use filters::model::record::Record;
use jiff::civil::Date;
use parking_lot::Mutex;
use rusqlite::types::{FromSql, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, ffi};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};

mod migrations {
    refinery::embed_migrations!("migrations/sqlite");
}

/// How many migrations this build knows.
pub(super) fn known_migrations() -> usize {
    migrations::migrations::runner().get_migrations().len()
}

/// How long a lock of another process on the file is waited for.
const BUSY: Duration = Duration::from_secs(4);
/// How long a call may take, its wait for the writer included.
const LIMIT: Duration = Duration::from_secs(10);
const READERS: usize = 3;
/// Jobs that may wait for the writer thread.
const QUEUE: usize = 1024;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// See the module.
pub struct SqliteStore {
    /// Closed, and the thread ended, when the store is dropped.
    writer: mpsc::Sender<Job>,
    readers: Arc<Readers>,
    /// There is no other replica: what is told here is what is heard.
    news: broadcast::Sender<News>,
}

impl SqliteStore {
    /// Opens or makes the file (0600) and its tables. Blocks on the disk.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        create(path).map_err(|e| StoreError::unavailable(format!("{}: {e}", path.display())))?;
        let mut connection = connect(path)?;
        migrate(path, &mut connection)?;
        let (writer, mut jobs) = mpsc::channel::<Job>(QUEUE);
        std::thread::Builder::new()
            .name("sqlite".into())
            .spawn(move || {
                while let Some(job) = jobs.blocking_recv() {
                    job(&mut connection);
                }
                // What the planner learned from the queries goes into the file.
                let _ = connection.execute_batch("PRAGMA optimize");
            })
            .map_err(StoreError::other)?;
        Ok(Arc::new(Self {
            writer,
            readers: Arc::new(Readers {
                path: path.to_path_buf(),
                idle: Mutex::new(Vec::new()),
                free: Semaphore::new(READERS),
            }),
            news: broadcast::channel(NEWS).0,
        }))
    }

    /// Runs a job on the writer thread.
    async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (tell, answer) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // The caller may have given up; the job is done all the same.
            let _ = tell.send(job(connection));
        });
        let work = async {
            self.writer.send(job).await.map_err(|_| closed())?;
            answer.await.map_err(|_| closed())?
        };
        within(LIMIT, work).await
    }

    /// Runs a job on a reading connection, off the async runtime.
    async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.read_within(LIMIT, job).await
    }

    async fn read_within<T: Send + 'static>(
        &self,
        limit: Duration,
        job: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let readers = self.readers.clone();
        let work = async move {
            // Taken before the blocking thread, so that a rush of reads waits here and not on threads.
            let _free = readers.free.acquire().await.map_err(|_| closed())?;
            let mine = readers.clone();
            let done = tokio::task::spawn_blocking(move || mine.run(job)).await;
            done.map_err(StoreError::other)?
        };
        within(limit, work).await
    }
}

fn closed() -> StoreError {
    StoreError::unavailable("the SQLite writer has ended")
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(answer) => answer,
        Err(_) => Err(StoreError::unavailable("SQLite did not answer in time")),
    }
}

struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    free: Semaphore,
}

impl Readers {
    fn run<T>(&self, job: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let idle = self.idle.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => {
                let connection = connect(&self.path)?;
                connection
                    .pragma_update(None, "query_only", true)
                    .map_err(from_sqlite)?;
                connection
            }
        };
        let answer = job(&connection);
        // A connection after a fault of the disk is not kept.
        if !matches!(answer, Err(StoreError::Unavailable(_) | StoreError::Other(_))) {
            let mut idle = self.idle.lock();
            if idle.len() < READERS {
                idle.push(connection);
            }
        }
        answer
    }
}

fn create(path: &Path) -> std::io::Result<()> {
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    // SQLite gives its -wal and -shm files the mode of this one.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    Ok(())
}

fn connect(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(from_sqlite)?;
    connection.busy_timeout(BUSY).map_err(from_sqlite)?;
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; \
             PRAGMA trusted_schema = OFF; PRAGMA cache_size = -2000;",
        )
        .map_err(from_sqlite)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// Under a file lock, because two processes that start at once would both make the first table.
fn migrate(path: &Path, connection: &mut Connection) -> Result<()> {
    let mut name = path.as_os_str().to_os_string();
    name.push(".lock");
    let lock: File = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(PathBuf::from(name))
        .map_err(StoreError::other)?;
    lock.lock().map_err(StoreError::other)?;
    let mut runner = migrations::migrations::runner()
        // A newer binary may have been here already; its tables still serve us.
        .set_abort_missing(false);
    runner.set_migration_table_name("tk_migrations");
    runner
        .run(connection)
        .map_err(|e| StoreError::other(format!("migration: {e}")))?;
    Ok(())
}

/// Sorts SQLite's errors by what the caller must do.
fn from_sqlite(e: rusqlite::Error) -> StoreError {
    use rusqlite::Error;
    let text = e.to_string();
    let Error::SqliteFailure(failure, message) = &e else {
        return match e {
            Error::ToSqlConversionFailure(_) | Error::IntegralValueOutOfRange(..) => {
                StoreError::Invalid(text)
            }
            _ => StoreError::Other(text),
        };
    };
    if matches!(
        failure.extended_code,
        ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY
    ) {
        let names = |column: &str| message.as_deref().is_some_and(|m| m.contains(column));
        let what = if names("tk_keys.key_alias") {
            Taken::KeyAlias
        } else if names("tk_keys.hash") {
            Taken::Key
        } else {
            Taken::Id
        };
        return StoreError::Conflict { what };
    }
    match failure.code {
        ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig => {
            StoreError::Invalid(text)
        }
        ErrorCode::DatabaseBusy
        | ErrorCode::DatabaseLocked
        | ErrorCode::DiskFull
        | ErrorCode::ReadOnly
        | ErrorCode::SystemIoFailure
        | ErrorCode::CannotOpen
        | ErrorCode::PermissionDenied
        | ErrorCode::OutOfMemory
        | ErrorCode::OperationInterrupted => StoreError::Unavailable(text),
        _ => StoreError::Other(text),
    }
}

impl ToSql for Arg<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match *self {
            Arg::Text(t) => ValueRef::Text(t.as_bytes()),
            Arg::Bytes(b) => ValueRef::Blob(b),
            Arg::Int(n) | Arg::Time(n) => ValueRef::Integer(n),
            Arg::Bool(b) => ValueRef::Integer(i64::from(b)),
            Arg::Texts(list) => return json_list(list),
            Arg::Hashes(list) => return json_list(list),
            Arg::Day(d) => ValueRef::Integer(i64::from(d)),
        }))
    }
}

/// SQLite binds no lists; `json_each` reads this one.
fn json_list<T: serde::Serialize>(list: &[T]) -> rusqlite::Result<ToSqlOutput<'static>> {
    let text = serde_json::to_string(list).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
    Ok(ToSqlOutput::Owned(text.into()))
}

/// Reads a row's columns from left to right.
struct Cells<'a> {
    row: &'a Row<'a>,
    at: usize,
}

impl<'a> Cells<'a> {
    fn of(row: &'a Row<'a>) -> Self {
        Self { row, at: 0 }
    }

    /// From a column on.
    fn from(row: &'a Row<'a>, at: usize) -> Self {
        Self { row, at }
    }

    fn next<T: FromSql>(&mut self) -> Result<T> {
        let value = self.row.get(self.at).map_err(from_sqlite);
        self.at += 1;
        value
    }

    fn json<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        super::rows::from_json(&self.next::<String>()?)
    }
}

/// Runs a query and turns every row into a value.
fn all<T>(
    c: &Connection,
    sql: &str,
    args: &[&dyn ToSql],
    mut value: impl FnMut(&Row<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let mut statement = c.prepare_cached(sql).map_err(from_sqlite)?;
    let mut rows = statement.query(args).map_err(from_sqlite)?;
    let mut out = Vec::new();
    while let Some(row) = rows.next().map_err(from_sqlite)? {
        out.push(value(row)?);
    }
    Ok(out)
}

fn filtered<T>(
    c: &Connection,
    sql: &str,
    args: &[Arg<'_>],
    value: impl FnMut(&Row<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let args: Vec<&dyn ToSql> = args.iter().map(|a| a as &dyn ToSql).collect();
    all(c, sql, &args, value)
}

fn number(c: &Connection, sql: &str, args: &[&dyn ToSql]) -> Result<Option<i64>> {
    let mut statement = c.prepare_cached(sql).map_err(from_sqlite)?;
    statement
        .query_row(args, |row| row.get(0))
        .optional()
        .map_err(from_sqlite)
}

#[async_trait]
impl Store for SqliteStore {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    async fn health(&self) -> Result<()> {
        self.read_within(Duration::from_secs(1), |c| {
            number(c, "SELECT 1 FROM tk_migrations LIMIT 1", &[]).map(drop)
        })
        .await
    }

    async fn ready(&self) {}

    async fn key_by_hash(&self, hash: &KeyHash) -> Result<Option<Key>> {
        let hash = *hash;
        self.read(move |c| keys::by_hash(c, &hash)).await
    }

    async fn change(&self, changes: &[Change<'_>], audit: &[Audit]) -> Result<()> {
        let plan = Plan::of(changes, audit)?;
        let news = self.news.clone();
        self.write(move |c| {
            change::carry_out(c, &plan)?;
            // Told from here, because the caller may have given up. No listener is no error.
            for item in plan.news {
                let _ = news.send(item);
            }
            Ok(())
        })
        .await
    }

    fn news(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }

    async fn document(&self, table: Table, id: &str) -> Result<Option<Doc>> {
        let id = id.to_string();
        self.read(move |c| objects::one(c, table, &id)).await
    }

    async fn documents(&self, table: Table, filter: &DocFilter) -> Result<DocPage> {
        let filter = filter.clone();
        self.read(move |c| objects::list(c, table, &filter)).await
    }

    async fn audit(&self, filter: &AuditFilter) -> Result<Vec<Audit>> {
        let filter = filter.clone();
        self.read(move |c| audit::list(c, &filter)).await
    }

    async fn keys_by_alias(&self, aliases: &[String]) -> Result<Vec<Key>> {
        let aliases = aliases.to_vec();
        self.read(move |c| keys::by_alias(c, &aliases)).await
    }

    async fn list_keys(&self, filter: &KeyFilter, page: Page) -> Result<KeyPage> {
        let filter = filter.clone();
        self.read(move |c| keys::list(c, &filter, page)).await
    }

    async fn spend_of_key(&self, hash: &KeyHash) -> Result<Option<i64>> {
        let hash = *hash;
        let sql = "SELECT coalesce((SELECT spend_nanos FROM tk_accounts
             WHERE kind = 'key' AND id = lower(hex(hash)) AND model = ''), 0) FROM tk_keys WHERE hash = ?1";
        self.read(move |c| number(c, sql, &[&hash.0])).await
    }

    async fn spend_of_team(&self, team_id: &str) -> Result<i64> {
        let team = Account::new(Kind::Team, team_id);
        let balances = self.balances(&[team]).await?;
        Ok(balances.first().map_or(0, |b| b.total_nanos))
    }

    async fn balances(&self, accounts: &[Account]) -> Result<Vec<Balance>> {
        if accounts.len() > MAX_ROWS as usize {
            return Err(StoreError::invalid(format!(
                "at most {MAX_ROWS} accounts at once"
            )));
        }
        let accounts = accounts.to_vec();
        self.read(move |c| accounts::balances(c, &accounts)).await
    }

    async fn begin_period(
        &self,
        account: &Account,
        started_micros: i64,
        ends_micros: Option<i64>,
    ) -> Result<()> {
        let period = Period::new(started_micros, ends_micros)?;
        let account = account.clone();
        self.write(move |c| accounts::begin_period(c, &account, period))
            .await
    }

    async fn openings(&self, accounts: &[Account]) -> Result<Vec<Option<i64>>> {
        let accounts = accounts.to_vec();
        self.read(move |c| import::openings(c, &accounts)).await
    }

    async fn is_first(&self, name: &str, window: Duration) -> Result<bool> {
        let name = name.to_string();
        self.write(move |c| told::is_first(c, &name, window)).await
    }

    async fn import_daily(&self, days: &[DailyRow], dry_run: bool) -> Result<(u64, u64)> {
        let days = days.to_vec();
        self.write(move |c| import::daily(c, &days, dry_run)).await
    }

    async fn import_records(&self, records: &[Record], dry_run: bool) -> Result<u64> {
        let records = records.to_vec();
        self.write(move |c| import::records(c, &records, dry_run)).await
    }

    async fn append(&self, records: &[Record]) -> Result<()> {
        let records = records.to_vec();
        self.write(move |c| ledger::append(c, &records)).await
    }

    async fn dead_letter(&self, record: &Record, reason: &str) -> Result<()> {
        let (record, reason) = (record.clone(), reason.to_string());
        self.write(move |c| ledger::dead_letter(c, &record, &reason))
            .await
    }

    async fn dead_letters(&self, page: Page) -> Result<Vec<DeadLetter>> {
        self.read(move |c| ledger::dead_letters(c, page)).await
    }

    async fn spend_logs(&self, filter: &SpendFilter) -> Result<Vec<Record>> {
        let filter = filter.clone();
        self.read(move |c| lists::spend_logs(c, &filter)).await
    }

    async fn count_records(&self, filter: &SpendFilter) -> Result<u64> {
        let filter = filter.clone();
        self.read(move |c| lists::count_records(c, &filter)).await
    }

    async fn count_up_to(&self, filter: &SpendFilter, most: u64) -> Result<u64> {
        let filter = filter.clone();
        self.read(move |c| lists::count_up_to(c, &filter, most)).await
    }

    async fn extent(&self) -> Result<Extent> {
        self.read(lists::extent).await
    }

    async fn calls_of_days(&self, first: Date, last: Date) -> Result<u64> {
        self.read(move |c| lists::calls_of_days(c, first, last)).await
    }

    async fn digest_day(&self) -> Result<bool> {
        self.write(digest::digest_day).await
    }

    async fn daily(&self, filter: &DailyFilter) -> Result<Vec<DailyRow>> {
        let filter = filter.clone();
        self.read(move |c| ledger::daily(c, &filter)).await
    }

    async fn usage(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>> {
        let filter = filter.clone();
        self.read(move |c| reports::usage(c, &filter)).await
    }

    async fn drop_rows_before(&self, day: Date) -> Result<u64> {
        let mut dropped = 0;
        loop {
            match self.write(move |c| retention::drop_some(c, day)).await? {
                0 => return Ok(dropped),
                some => dropped += some,
            }
        }
    }

    async fn rows_from(&self) -> Result<Option<Date>> {
        self.read(retention::rows_from).await
    }

    async fn differences(&self, max: u32, limit: Duration) -> Result<Vec<Difference>> {
        self.read_within(limit, move |c| reports::differences(c, max))
            .await
    }
}
