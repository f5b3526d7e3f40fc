//! What people were told of in Postgres: one replica says so first, by the database's clock.

use super::{Cells, PostgresStore};
use crate::store::Result;
use std::time::Duration;

/// Names whose time is over are taken away here, a few at a time, and never those that somebody else is at.
const CLAIM: &str = "WITH over AS (
    DELETE FROM tk_told WHERE name IN (
        SELECT name FROM tk_told WHERE until <= now() AND name <> $1 LIMIT 100 FOR UPDATE SKIP LOCKED)
)
INSERT INTO tk_told AS t (name, until) VALUES ($1, now() + $2::bigint * interval '1 microsecond')
ON CONFLICT (name) DO UPDATE SET until = EXCLUDED.until WHERE t.until <= now()
RETURNING true";

impl PostgresStore {
    pub(super) async fn pg_is_first(&self, name: &str, window: Duration) -> Result<bool> {
        let micros = i64::try_from(window.as_micros()).unwrap_or(i64::MAX);
        let rows = self.query(CLAIM, &[&name, &micros]).await?;
        rows.first().map_or(Ok(false), |row| Cells::of(row).next())
    }
}
