//! Changes of keys and objects in Postgres: one transaction, all or nothing, and its news with it.

use super::news::CHANNEL;
use super::{Lease, PostgresStore, audit, from_statement, keys, ledger, objects, within};
use crate::store::plan::{Plan, Step};
use crate::store::{Audit, Change, Result, StoreError};
use std::borrow::Cow;
use std::collections::HashMap;
use tokio_postgres::types::ToSql;

/// The rows that came since stay counted: only what was before this ledger is replaced.
const OPEN: &str = "INSERT INTO tk_accounts AS a (kind, id, model, spend_nanos, opening_nanos)
VALUES ($1, $2, $3, $4, $4)
ON CONFLICT (kind, id, model) DO UPDATE SET
    spend_nanos = a.spend_nanos - a.opening_nanos + EXCLUDED.opening_nanos,
    opening_nanos = EXCLUDED.opening_nanos";

/// Statements on their way at once: the server works through them in order while more are sent.
const ABREAST: usize = 24;
/// Statements that one call's time is meant for; longer transactions get more of it.
const PER_LIMIT: u32 = 1_000;

/// A statement with its values, ready to be sent.
pub struct Statement {
    sql: Cow<'static, str>,
    params: Vec<Box<dyn ToSql + Sync + Send>>,
    /// What it means if it changed no row.
    or_else: Option<StoreError>,
}

impl Statement {
    pub fn new(sql: impl Into<Cow<'static, str>>) -> Self {
        Self {
            sql: sql.into(),
            params: Vec::new(),
            or_else: None,
        }
    }

    pub fn bind(&mut self, value: impl ToSql + Sync + Send + 'static) {
        self.params.push(Box::new(value));
    }

    pub fn or_else(mut self, error: StoreError) -> Self {
        self.or_else = Some(error);
        self
    }
}

impl PostgresStore {
    pub(super) async fn pg_change(&self, changes: &[Change<'_>], audit: &[Audit]) -> Result<()> {
        let plan = Plan::of(changes, audit)?;
        // The ledger's writer adds to accounts in an order of its own: without its lock, the two would
        // stop each other.
        let accounts = plan
            .steps
            .iter()
            .any(|step| matches!(step, Step::InsertKey(_) | Step::Open { .. }));
        let begin = if accounts { ledger::BEGIN } else { "BEGIN" };
        let statements = statements(plan)?;
        let lease = self.lease().await?;
        let times = 1 + u32::try_from(statements.len()).unwrap_or(u32::MAX) / PER_LIMIT;
        let work = async {
            lease.batch_execute(begin).await.map_err(from_statement)?;
            let done = run(&lease, &statements).await;
            // The connection is idle afterwards, whatever the answer was.
            let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
            let ended = lease.batch_execute(end).await.map_err(from_statement);
            done.and(ended)
        };
        let answer = within(self.limit.saturating_mul(times), work).await;
        lease.finish(answer)
    }
}

async fn run(lease: &Lease, statements: &[Statement]) -> Result<()> {
    let mut prepared = HashMap::new();
    for statement in statements {
        if !prepared.contains_key(&*statement.sql) {
            let ready = lease
                .prepare_cached(&statement.sql)
                .await
                .map_err(from_statement)?;
            prepared.insert(&*statement.sql, ready);
        }
    }
    for some in statements.chunks(ABREAST) {
        let sent = some.iter().filter_map(|statement| {
            let ready = prepared.get(&*statement.sql)?;
            Some(async move {
                let params = statement.params.iter().map(|p| &**p as &(dyn ToSql + Sync));
                let params: Vec<_> = params.collect();
                lease.execute(ready, &params).await
            })
        });
        // Polled, and so sent, in this order. After the first refusal the server refuses the rest.
        let answers = futures::future::join_all(sent).await;
        for (answer, statement) in answers.into_iter().zip(some) {
            let rows = answer.map_err(from_statement)?;
            match &statement.or_else {
                Some(error) if rows == 0 => return Err(error.clone()),
                _ => {}
            }
        }
    }
    Ok(())
}

fn statements(plan: Plan) -> Result<Vec<Statement>> {
    let mut out = Vec::with_capacity(plan.steps.len() + plan.audit.len() + plan.news.len());
    for step in plan.steps {
        out.push(match step {
            Step::InsertKey(key) => keys::insert(&key)?,
            Step::UpdateKey { key, read_at_micros } => keys::update(&key, read_at_micros)?,
            Step::DeleteKeys(hashes) => keys::delete(&hashes),
            Step::Put {
                table,
                id,
                fields,
                version: 0,
                created_at_micros,
                updated_at_micros,
            } => objects::insert(table, &id, fields, created_at_micros, updated_at_micros),
            Step::Put {
                table,
                id,
                fields,
                version,
                updated_at_micros,
                ..
            } => objects::update(table, &id, fields, version, updated_at_micros),
            Step::Delete { table, ids } => objects::delete(table, ids),
            Step::Open { account, nanos } => {
                let mut s = Statement::new(OPEN);
                s.bind(account.kind.as_str());
                s.bind(account.id);
                s.bind(account.model);
                s.bind(nanos);
                s
            }
        });
    }
    out.extend(plan.audit.into_iter().map(audit::insert));
    for item in plan.news {
        let mut s = Statement::new("SELECT pg_notify($1, $2)");
        s.bind(CHANNEL);
        s.bind(item.to_text());
        out.push(s);
    }
    Ok(out)
}
