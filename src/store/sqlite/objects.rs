//! Objects with LiteLLM's fields in SQLite.

use super::{Cells, all, filtered, from_sqlite};
use crate::store::filter::{self, Dialect};
use crate::store::plan::called;
use crate::store::rows::{self, DOC_COLUMNS};
use crate::store::{Doc, DocFilter, DocPage, Result, StoreError, Table, Taken};
use rusqlite::{Connection, Row, Transaction, params};

pub fn one(c: &Connection, table: Table, id: &str) -> Result<Option<Doc>> {
    let sql = format!("SELECT {DOC_COLUMNS} FROM {} WHERE id = ?1", table.sql());
    Ok(all(c, &sql, &[&id], doc)?.pop())
}

pub fn list(c: &Connection, table: Table, filter: &DocFilter) -> Result<DocPage> {
    let table = table.sql();
    let clause = filter::documents(filter, Dialect::Sqlite)?;
    let sql = format!("SELECT count(*) FROM {table}{}", clause.sql);
    let counted = filtered(c, &sql, &clause.args, |row| Cells::of(row).next::<i64>())?;
    let order = filter::documents_order(filter, Dialect::Sqlite)?;
    let clause = clause.page(&order, filter.page);
    let sql = format!("SELECT {DOC_COLUMNS} FROM {table}{}", clause.sql);
    Ok(DocPage {
        docs: filtered(c, &sql, &clause.args, doc)?,
        total: rows::uncount(counted.first().copied().unwrap_or(0)),
    })
}

/// A new object.
pub fn insert(
    t: &Transaction<'_>,
    table: Table,
    id: &str,
    fields: &str,
    created_at_micros: i64,
    updated_at_micros: i64,
) -> Result<()> {
    let sql = format!(
        "INSERT INTO {} ({DOC_COLUMNS}) VALUES (?1, ?2, 1, ?3, ?4) ON CONFLICT DO NOTHING",
        table.sql()
    );
    let made = t
        .prepare_cached(&sql)
        .and_then(|mut s| s.execute(params![id, fields, created_at_micros, updated_at_micros]))
        .map_err(from_sqlite)?;
    if made == 0 {
        return Err(StoreError::Conflict { what: Taken::Id });
    }
    Ok(())
}

/// Overwrites that very version.
pub fn update(
    t: &Transaction<'_>,
    table: Table,
    id: &str,
    fields: &str,
    version: i64,
    updated_at_micros: i64,
) -> Result<()> {
    let sql = format!(
        "UPDATE {} SET fields = ?3, version = version + 1, updated_at = ?4 WHERE id = ?1 AND version = ?2",
        table.sql()
    );
    let changed = t
        .prepare_cached(&sql)
        .and_then(|mut s| s.execute(params![id, version, fields, updated_at_micros]))
        .map_err(from_sqlite)?;
    if changed == 0 {
        return Err(StoreError::Stale(called(table, id)));
    }
    Ok(())
}

pub fn delete(t: &Transaction<'_>, table: Table, ids: &[String]) -> Result<()> {
    let sql = format!("DELETE FROM {} WHERE id = ?1", table.sql());
    let mut statement = t.prepare_cached(&sql).map_err(from_sqlite)?;
    for id in ids {
        statement.execute([id]).map_err(from_sqlite)?;
    }
    Ok(())
}

fn doc(row: &Row<'_>) -> Result<Doc> {
    let mut c = Cells::of(row);
    Ok(Doc {
        id: c.next()?,
        fields: c.json()?,
        version: c.next()?,
        created_at_micros: c.next()?,
        updated_at_micros: c.next()?,
    })
}
