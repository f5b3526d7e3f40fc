//! Who changed what, in Postgres.

use super::change::Statement;
use super::{Cells, PostgresStore, time};
use crate::store::filter::{self, AUDIT_ORDER, Dialect};
use crate::store::plan::Line;
use crate::store::rows::{self, AUDIT_COLUMNS};
use crate::store::{Audit, AuditFilter, Result};
use tokio_postgres::Row;

pub fn insert(line: Line) -> Statement {
    let mut s = Statement::new(format!(
        "INSERT INTO tk_audit ({AUDIT_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
    ));
    s.bind(line.id);
    s.bind(time(line.at_micros));
    s.bind(line.changed_by);
    s.bind(line.changed_by_key.map(|hash| hash.0.to_vec()));
    s.bind(line.action);
    s.bind(line.table_name);
    s.bind(line.object_id);
    s.bind(line.before);
    s.bind(line.after);
    s
}

impl PostgresStore {
    pub(super) async fn pg_audit(&self, filter: &AuditFilter) -> Result<Vec<Audit>> {
        let clause = filter::audit(filter, Dialect::Postgres)?.page(AUDIT_ORDER, filter.page);
        let sql = format!("SELECT {AUDIT_COLUMNS} FROM tk_audit{}", clause.sql);
        let found = self.query_filtered(&sql, &clause.args).await?;
        found.iter().map(audit).collect()
    }
}

fn audit(row: &Row) -> Result<Audit> {
    let mut c = Cells::of(row);
    Ok(Audit {
        id: c.next()?,
        at_micros: c.micros()?,
        changed_by: c.next()?,
        changed_by_key: c.next::<Option<&[u8]>>()?.map(rows::hash).transpose()?,
        action: c.next()?,
        table_name: c.next()?,
        object_id: c.next()?,
        before: rows::maybe_json(c.next()?)?,
        after: rows::maybe_json(c.next()?)?,
    })
}
