//! What people were told of in SQLite.

use super::from_sqlite;
use crate::store::{Result, rows};
use rusqlite::{Connection, params};
use std::time::Duration;

const CLAIM: &str = "INSERT INTO tk_told (name, until) VALUES (?1, ?3)
ON CONFLICT (name) DO UPDATE SET until = excluded.until WHERE until <= ?2";

pub fn is_first(c: &Connection, name: &str, window: Duration) -> Result<bool> {
    let now = rows::now();
    let until = now.saturating_add(i64::try_from(window.as_micros()).unwrap_or(i64::MAX));
    let work = || {
        c.execute("DELETE FROM tk_told WHERE until <= ?1", params![now])?;
        c.execute(CLAIM, params![name, now, until])
    };
    Ok(work().map_err(from_sqlite)? > 0)
}
