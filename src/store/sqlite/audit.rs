//! Who changed what, in SQLite.

use super::{Cells, filtered, from_sqlite};
use crate::store::filter::{self, AUDIT_ORDER, Dialect};
use crate::store::plan::Line;
use crate::store::rows::{self, AUDIT_COLUMNS};
use crate::store::{Audit, AuditFilter, Result};
use rusqlite::{Connection, Row, Transaction, params};

pub fn insert(t: &Transaction<'_>, line: &Line) -> Result<()> {
    let sql = format!("INSERT INTO tk_audit ({AUDIT_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)");
    t.prepare_cached(&sql)
        .and_then(|mut statement| {
            statement.execute(params![
                line.id,
                line.at_micros,
                line.changed_by,
                line.changed_by_key.map(|hash| hash.0),
                line.action,
                line.table_name,
                line.object_id,
                line.before,
                line.after,
            ])
        })
        .map_err(from_sqlite)
        .map(drop)
}

pub fn list(c: &Connection, filter: &AuditFilter) -> Result<Vec<Audit>> {
    let clause = filter::audit(filter, Dialect::Sqlite)?.page(AUDIT_ORDER, filter.page);
    let sql = format!("SELECT {AUDIT_COLUMNS} FROM tk_audit{}", clause.sql);
    filtered(c, &sql, &clause.args, audit)
}

fn audit(row: &Row<'_>) -> Result<Audit> {
    let mut c = Cells::of(row);
    Ok(Audit {
        id: c.next()?,
        at_micros: c.next()?,
        changed_by: c.next()?,
        changed_by_key: c
            .next::<Option<Vec<u8>>>()?
            .map(|bytes| rows::hash(&bytes))
            .transpose()?,
        action: c.next()?,
        table_name: c.next()?,
        object_id: c.next()?,
        before: rows::maybe_json(c.next()?)?,
        after: rows::maybe_json(c.next()?)?,
    })
}
