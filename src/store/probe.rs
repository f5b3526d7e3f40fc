//! Whether there is a store at an address, and how it is, without making one.

use super::postgres::connect::{Target, describe};
use super::{Address, Result, Settings, StoreError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// True once a gateway has made its tables there. Changes nothing; a server that does not answer is
/// [`StoreError::Unavailable`].
pub async fn exists(address: &Address, settings: &Settings) -> Result<bool> {
    let url = match address {
        Address::Sqlite(path) => return Ok(path.is_file()),
        Address::Postgres(url) => url,
    };
    let target = Target::parse(url, settings)?;
    let unavailable = |e: tokio_postgres::Error| StoreError::Unavailable(describe(&e));
    let asked = tokio::time::timeout(target.settings.connect_timeout * 2, async {
        let (client, connection) = target
            .config
            .connect(target.tls.clone())
            .await
            .map_err(unavailable)?;
        let work = async {
            client
                .batch_execute(&target.greeting)
                .await
                .map_err(unavailable)?;
            let sql = "SELECT to_regclass('tk_migrations') IS NOT NULL";
            let row = client.query_one(sql, &[]).await.map_err(unavailable)?;
            row.try_get(0).map_err(unavailable)
        };
        tokio::select! {
            answer = work => answer,
            _ = connection => Err(StoreError::unavailable("the connection was lost")),
        }
    });
    match asked.await {
        Ok(answer) => answer,
        Err(_) => Err(StoreError::unavailable("Postgres did not answer in time")),
    }
}

/// What there is to know of a store without using it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// `PostgreSQL 15.1`, `SQLite 3.50`.
    pub version: String,
    /// Migrations that were carried out there, and those this build knows.
    pub applied: usize,
    pub known: usize,
    /// For one question on a connection that stands.
    pub took: Duration,
    /// The store's clock minus ours, microseconds.
    pub ahead_micros: i64,
}

/// Looks at a store and changes nothing; None: it is a file that is not there yet.
pub async fn facts(address: &Address, settings: &Settings) -> Result<Option<Facts>> {
    match address {
        Address::Sqlite(path) if !path.exists() => Ok(None),
        Address::Sqlite(path) => {
            let path = path.clone();
            let looked = tokio::task::spawn_blocking(move || file_facts(&path));
            looked.await.map_err(StoreError::other)?.map(Some)
        }
        Address::Postgres(url) => server_facts(&Target::parse(url, settings)?).await.map(Some),
    }
}

fn file_facts(path: &std::path::Path) -> Result<Facts> {
    let failed = |e: rusqlite::Error| StoreError::Unavailable(format!("{}: {e}", path.display()));
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = rusqlite::Connection::open_with_flags(path, flags).map_err(failed)?;
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let begun = Instant::now();
    let tables = count("SELECT count(*) FROM sqlite_master WHERE name = 'tk_migrations'").map_err(failed)?;
    let applied = match tables {
        0 => 0,
        _ => count("SELECT count(*) FROM tk_migrations").map_err(failed)?,
    };
    Ok(Facts {
        version: format!("SQLite {}", rusqlite::version()),
        applied: usize::try_from(applied).unwrap_or(0),
        known: super::sqlite::known_migrations(),
        took: begun.elapsed(),
        ahead_micros: 0,
    })
}

async fn server_facts(target: &Target) -> Result<Facts> {
    let unavailable = |e: tokio_postgres::Error| StoreError::Unavailable(describe(&e));
    let asked = tokio::time::timeout(target.settings.connect_timeout * 2, async {
        let connecting = target.config.connect(target.tls.clone());
        let (client, connection) = connecting.await.map_err(unavailable)?;
        let work = async {
            client
                .batch_execute(&target.greeting)
                .await
                .map_err(unavailable)?;
            let begun = Instant::now();
            let sql = "SELECT current_setting('server_version'), \
                       (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, \
                       to_regclass('tk_migrations') IS NOT NULL";
            let row = client.query_one(sql, &[]).await.map_err(unavailable)?;
            let took = begun.elapsed();
            let ours = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let ours = i64::try_from((ours - took / 2).as_micros()).unwrap_or(i64::MAX);
            let version: String = row.try_get(0).map_err(unavailable)?;
            let theirs: i64 = row.try_get(1).map_err(unavailable)?;
            let has_tables: bool = row.try_get(2).map_err(unavailable)?;
            let applied: i64 = match has_tables {
                true => {
                    let sql = "SELECT count(*) FROM tk_migrations";
                    let row = client.query_one(sql, &[]).await.map_err(unavailable)?;
                    row.try_get(0).map_err(unavailable)?
                }
                false => 0,
            };
            Ok(Facts {
                version: format!("PostgreSQL {version}"),
                applied: usize::try_from(applied).unwrap_or(0),
                known: super::postgres::known_migrations(),
                took,
                ahead_micros: theirs.saturating_sub(ours),
            })
        };
        tokio::select! {
            answer = work => answer,
            _ = connection => Err(StoreError::unavailable("the connection was lost")),
        }
    });
    match asked.await {
        Ok(answer) => answer,
        Err(_) => Err(StoreError::unavailable("Postgres did not answer in time")),
    }
}
