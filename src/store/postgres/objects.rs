//! Objects with LiteLLM's fields in Postgres.

use super::change::Statement;
use super::{Cells, PostgresStore, time};
use crate::store::filter::{self, Dialect};
use crate::store::plan::{called, plain};
use crate::store::rows::{self, DOC_COLUMNS};
use crate::store::{Doc, DocFilter, DocPage, Result, StoreError, Table, Taken};
use tokio_postgres::Row;

/// A new object. `fields` is JSON.
pub fn insert(
    table: Table,
    id: &str,
    fields: String,
    created_at_micros: i64,
    updated_at_micros: i64,
) -> Statement {
    let mut s = Statement::new(format!(
        "INSERT INTO {} ({DOC_COLUMNS}) VALUES ($1, $2::text::jsonb, 1, $3, $4) ON CONFLICT DO NOTHING",
        table.sql()
    ));
    s.bind(id.to_string());
    s.bind(fields);
    s.bind(time(created_at_micros));
    s.bind(time(updated_at_micros));
    s.or_else(StoreError::Conflict { what: Taken::Id })
}

/// Overwrites that very version.
pub fn update(table: Table, id: &str, fields: String, version: i64, updated_at_micros: i64) -> Statement {
    let mut s = Statement::new(format!(
        "UPDATE {} SET fields = $3::text::jsonb, version = version + 1, updated_at = $4 \
         WHERE id = $1 AND version = $2",
        table.sql()
    ));
    s.bind(id.to_string());
    s.bind(version);
    s.bind(fields);
    s.bind(time(updated_at_micros));
    s.or_else(StoreError::Stale(called(table, id)))
}

pub fn delete(table: Table, ids: Vec<String>) -> Statement {
    let mut s = Statement::new(format!("DELETE FROM {} WHERE id = ANY($1)", table.sql()));
    s.bind(ids);
    s
}

impl PostgresStore {
    pub(super) async fn pg_document(&self, table: Table, id: &str) -> Result<Option<Doc>> {
        if plain("id", id).is_err() {
            // What cannot be stored is not there.
            return Ok(None);
        }
        let sql = format!("SELECT {DOC_COLUMNS} FROM {} WHERE id = $1", table.sql());
        let rows = self.query(&sql, &[&id]).await?;
        rows.first().map(doc).transpose()
    }

    pub(super) async fn pg_documents(&self, table: Table, filter: &DocFilter) -> Result<DocPage> {
        let table = table.sql();
        let clause = filter::documents(filter, Dialect::Postgres)?;
        let sql = format!("SELECT count(*) FROM {table}{}", clause.sql);
        let counted = self.query_filtered(&sql, &clause.args).await?;
        let total: i64 = counted.first().map_or(Ok(0), |row| Cells::of(row).next())?;
        let order = filter::documents_order(filter, Dialect::Postgres)?;
        let clause = clause.page(&order, filter.page);
        let sql = format!("SELECT {DOC_COLUMNS} FROM {table}{}", clause.sql);
        let found = self.query_filtered(&sql, &clause.args).await?;
        Ok(DocPage {
            docs: found.iter().map(doc).collect::<Result<_>>()?,
            total: rows::uncount(total),
        })
    }
}

fn doc(row: &Row) -> Result<Doc> {
    let mut c = Cells::of(row);
    Ok(Doc {
        id: c.next()?,
        fields: c.json()?,
        version: c.next()?,
        created_at_micros: c.micros()?,
        updated_at_micros: c.micros()?,
    })
}
