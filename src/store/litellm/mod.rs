//! LiteLLM's database, to be imported from: one connection, one view of the data, row by row through cursors.
//!
//! It only ever reads, the server holds it to that, and no value becomes part of a statement. Which columns
//! there are is asked first: releases differ, and what a role may not read counts as absent. What a row means
//! is for `import` to say.

mod tables;

pub use tables::{Beside, DAYS, KEYS, ROTATED, Table};

use crate::store::Settings;
use crate::store::postgres::connect::{Target, describe};
use filters::model::secret::Secret;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

/// For one answer. Sums over a large table take their time.
const PATIENCE: Duration = Duration::from_secs(600);
/// Rows of one page.
pub const PAGE: usize = 250;
/// Largest row, in bytes of JSON. A larger one is reported and left.
const MAX_ROW: usize = 4 << 20;
/// Rows of a table nobody reads are counted up to here.
const MAX_COUNT: i64 = 100_000;

/// Why LiteLLM's database cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    #[error("LiteLLM's database: {0}")]
    Failed(String),
    /// The schema that was looked at.
    #[error(
        "there are no tables of LiteLLM's in schema \"{0}\" of that database; `?schema=NAME` at the end of the \
         address names another"
    )]
    NotLitellm(String),
}

type Result<T> = std::result::Result<T, ReadError>;

/// LiteLLM's database.
pub struct Source {
    client: Client,
    connection: JoinHandle<()>,
    columns: BTreeMap<String, BTreeSet<String>>,
    cursors: AtomicU32,
}

/// One row on its way: its JSON, unless it is too large, and what to call it in a report.
pub struct Raw {
    pub json: Option<String>,
    pub label: String,
}

/// Rows that are being read. Ends with the transaction.
pub struct Cursor(u32);

impl Source {
    /// Connects, and begins the one view of the data that everything is read from.
    pub async fn connect(url: &Secret) -> Result<Self> {
        let target =
            Target::parse(url, &Settings::default()).map_err(|e| ReadError::Failed(e.to_string()))?;
        let connected = tokio::time::timeout(
            target.settings.connect_timeout,
            target.config.connect(target.tls.clone()),
        );
        let (client, connection) = connected
            .await
            .map_err(|_| ReadError::Failed("LiteLLM's database does not answer".into()))?
            .map_err(source)?;
        let mut source = Self {
            client,
            connection: tokio::spawn(async move {
                // What ends the connection also ends the calls on it, and they report it.
                let _ = connection.await;
            }),
            columns: BTreeMap::new(),
            cursors: AtomicU32::new(0),
        };
        // The greeting chooses the schema; its patience is for small calls.
        source.run(&target.greeting).await?;
        source
            .run(&format!(
                "SET statement_timeout = {}; SET idle_in_transaction_session_timeout = '30min'; \
                 SET lock_timeout = '10s'; SET default_transaction_read_only = on; \
                 BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
                PATIENCE.as_millis()
            ))
            .await?;
        source.look_around().await?;
        Ok(source)
    }

    async fn look_around(&mut self) -> Result<()> {
        let sql = "SELECT table_name::text, column_name::text FROM information_schema.columns \
             WHERE table_schema = current_schema() \
             AND table_name LIKE 'LiteLLM\\_%'";
        for row in self.query(sql, &[]).await? {
            let (table, column) = (row.try_get(0).map_err(source)?, row.try_get(1).map_err(source)?);
            self.columns.entry(table).or_default().insert(column);
        }
        if self.has(KEYS, "token") {
            return Ok(());
        }
        let schema = self
            .query("SELECT coalesce(current_schema()::text, '')", &[])
            .await?;
        let schema: String = match schema.first() {
            Some(row) => row.try_get(0).map_err(source)?,
            None => String::new(),
        };
        Err(ReadError::NotLitellm(schema))
    }

    pub fn has(&self, table: &str, column: &str) -> bool {
        self.columns.get(table).is_some_and(|c| c.contains(column))
    }

    /// Those of these columns that the table has.
    fn present<'a>(&self, table: &str, wanted: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
        wanted.into_iter().filter(|c| self.has(table, c)).collect()
    }

    /// LiteLLM's tables in this database that are none of these (views included), in order.
    pub fn others<'a>(&'a self, known: &'a [&str]) -> impl Iterator<Item = &'a str> {
        let names = self.columns.keys().map(String::as_str);
        names.filter(move |name| !known.contains(name))
    }

    /// How many rows a table has, and whether that is all of them. 0 for what is no table.
    pub async fn count(&self, table: &str) -> Result<(u64, bool)> {
        let sql = "SELECT c.relkind::text FROM pg_class c WHERE c.oid = to_regclass($1)";
        let kind = self.query(sql, &[&quoted(table)]).await?;
        match kind.first().map(|row| row.try_get::<_, String>(0)) {
            Some(Ok(kind)) if kind == "r" || kind == "p" => {}
            _ => return Ok((0, true)),
        }
        let sql = format!(
            "SELECT count(*) FROM (SELECT 1 FROM {} LIMIT {MAX_COUNT}) t",
            quoted(table)
        );
        let n = self.number(&sql).await?;
        Ok((n, n < MAX_COUNT as u64))
    }

    /// The one number a statement answers with.
    async fn number(&self, sql: &str) -> Result<u64> {
        let rows = self.query(sql, &[]).await?;
        let n: i64 = match rows.first() {
            Some(row) => row.try_get(0).map_err(source)?,
            None => 0,
        };
        Ok(u64::try_from(n).unwrap_or(0))
    }

    /// Begins to read what `select` finds, each row as JSON. `label` is an expression over its columns.
    async fn declare(&self, select: &str, label: &str) -> Result<Cursor> {
        let n = self.cursors.fetch_add(1, Ordering::Relaxed);
        self.run(&format!(
            "DECLARE import_{n} NO SCROLL CURSOR FOR {}",
            as_json(select, label)
        ))
        .await?;
        Ok(Cursor(n))
    }

    /// The next rows, at most [`PAGE`]; none at the end.
    pub async fn next(&self, cursor: &Cursor) -> Result<Vec<Raw>> {
        let rows = self
            .query(&format!("FETCH {PAGE} FROM import_{}", cursor.0), &[])
            .await?;
        if rows.is_empty() {
            self.run(&format!("CLOSE import_{}", cursor.0)).await?;
        }
        rows.iter().map(raw).collect()
    }

    /// All rows that `select` finds for these values of `$1`.
    async fn all(&self, select: &str, label: &str, ids: &[String]) -> Result<Vec<Raw>> {
        let rows = self.query(&as_json(select, label), &[&ids]).await?;
        rows.iter().map(raw).collect()
    }

    async fn run(&self, sql: &str) -> Result<()> {
        let work = self.client.batch_execute(sql);
        match tokio::time::timeout(PATIENCE, work).await {
            Ok(done) => done.map_err(source),
            Err(_) => Err(slow()),
        }
    }

    async fn query(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<tokio_postgres::Row>> {
        match tokio::time::timeout(PATIENCE, self.client.query(sql, params)).await {
            Ok(rows) => rows.map_err(source),
            Err(_) => Err(slow()),
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn as_json(select: &str, label: &str) -> String {
    format!(
        "SELECT CASE WHEN octet_length(j) <= {MAX_ROW} THEN j END, label FROM \
         (SELECT to_json(r)::text AS j, {label} AS label FROM ({select}) r) x"
    )
}

fn raw(row: &tokio_postgres::Row) -> Result<Raw> {
    let label: Option<String> = row.try_get(1).map_err(source)?;
    Ok(Raw {
        json: row.try_get(0).map_err(source)?,
        label: label.unwrap_or_default(),
    })
}

/// A column list for SELECT, each from `t`.
fn listed(columns: &[&str]) -> String {
    let columns: Vec<String> = columns.iter().map(|c| format!("t.{}", quoted(c))).collect();
    columns.join(", ")
}

/// An identifier in quotes.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn source(e: tokio_postgres::Error) -> ReadError {
    ReadError::Failed(describe(&e))
}

fn slow() -> ReadError {
    ReadError::Failed("LiteLLM's database does not answer in time".into())
}
