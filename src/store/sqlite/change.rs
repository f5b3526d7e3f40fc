//! Changes of keys and objects in SQLite: one transaction, all or nothing.

use super::keys::begin;
use super::{audit, from_sqlite, keys, objects};
use crate::store::Result;
use crate::store::plan::{Plan, Step};
use filters::model::account::Account;
use rusqlite::{Connection, Transaction, params};

/// The rows that came since stay counted: only what was before this ledger is replaced.
const OPEN: &str = "INSERT INTO tk_accounts (kind, id, model, spend_nanos, opening_nanos)
VALUES (?1, ?2, ?3, ?4, ?4)
ON CONFLICT (kind, id, model) DO UPDATE SET
    spend_nanos = spend_nanos - opening_nanos + excluded.opening_nanos, opening_nanos = excluded.opening_nanos";

/// Carries the plan out.
pub fn carry_out(c: &mut Connection, plan: &Plan) -> Result<()> {
    let t = begin(c)?;
    for step in &plan.steps {
        match step {
            Step::InsertKey(key) => keys::insert(&t, key)?,
            Step::UpdateKey { key, read_at_micros } => keys::update(&t, key, *read_at_micros)?,
            Step::DeleteKeys(hashes) => keys::delete(&t, hashes)?,
            Step::Put {
                table,
                id,
                fields,
                version,
                created_at_micros,
                updated_at_micros,
            } => {
                if *version == 0 {
                    objects::insert(&t, *table, id, fields, *created_at_micros, *updated_at_micros)?;
                } else {
                    objects::update(&t, *table, id, fields, *version, *updated_at_micros)?;
                }
            }
            Step::Delete { table, ids } => objects::delete(&t, *table, ids)?,
            Step::Open { account, nanos } => open(&t, account, *nanos)?,
        }
    }
    for line in &plan.audit {
        audit::insert(&t, line)?;
    }
    t.commit().map_err(from_sqlite)
}

fn open(t: &Transaction<'_>, account: &Account, nanos: i64) -> Result<()> {
    t.prepare_cached(OPEN)
        .and_then(|mut s| s.execute(params![account.kind.as_str(), account.id, account.model, nanos]))
        .map_err(from_sqlite)
        .map(drop)
}
