//! A LiteLLM database into our store: keys, users, teams, memberships, organizations, end users, budgets,
//! tags, models, sums per day, and on request the spend log.
//!
//! Reads LiteLLM's tables as they are at one moment and changes nothing there, so LiteLLM may go on
//! meanwhile; a second run takes what came since. Holds one page of rows at a time.

mod callbacks;
mod daily;
mod keys;
mod limits;
mod logs;
mod models;
mod owners;
mod row;
mod secrets;
mod vault;
mod write;

pub use secrets::{Closed, Salts};
pub use vault::{Close, Open, Vault};

use super::Report;
use crate::store::litellm::{Cursor, DAYS, KEYS, ROTATED, ReadError, Source, Table};
use crate::store::{Audit, Store, StoreError};
use filters::model::secret::Secret;
use owners::Spec;
use row::Row;
use serde_json::Value;
use std::collections::HashSet;
use std::sync::Arc;
use write::{Sink, WantedKey};

/// Why an import ended before its end. What was written until then stays, and another run goes on.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    Source(#[from] ReadError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Answers for one model.
pub type Usable = Arc<dyn Fn(&Value) -> Result<(), String> + Send + Sync>;

/// What to take, and how.
pub struct Order {
    /// LiteLLM's database.
    pub source: Secret,
    pub spend_logs: bool,
    /// What LiteLLM may have encrypted with.
    pub salts: Salts,
    /// How provider secrets are kept here.
    pub vault: Vault,
    /// Says why a model, as it would be in a config, cannot be used here.
    pub usable: Usable,
    /// Microseconds since 1970.
    pub now_micros: i64,
}

/// Tables that are read, in whole or in part.
const KNOWN: [&str; 18] = [
    KEYS,
    ROTATED,
    "LiteLLM_BudgetTable",
    "LiteLLM_OrganizationTable",
    "LiteLLM_OrganizationMembership",
    "LiteLLM_UserTable",
    "LiteLLM_TeamTable",
    "LiteLLM_TeamMembership",
    "LiteLLM_ModelTable",
    "LiteLLM_ObjectPermissionTable",
    "LiteLLM_EndUserTable",
    "LiteLLM_TagTable",
    models::TABLE,
    models::CREDENTIALS,
    DAYS,
    logs::TABLE,
    "LiteLLM_Config",
    "LiteLLM_VerificationTokenView",
];

/// Why other tables are left, by the start of their names.
const LEFT: [(&str, &str); 12] = [
    (
        "LiteLLM_Daily",
        "the same money, cut another way: sums by key, user and team are taken",
    ),
    ("LiteLLM_Audit", "changes made there; this gateway keeps its own"),
    (
        "LiteLLM_Error",
        "errors of calls; --spend-logs takes the calls that failed",
    ),
    ("LiteLLM_Deleted", "what was deleted there stays deleted"),
    ("LiteLLM_MCP", "MCP servers are not run here"),
    ("LiteLLM_Agent", "agents are not run here"),
    ("LiteLLM_Guardrail", "guardrails are filters here"),
    ("LiteLLM_Prompt", "prompts are not kept here"),
    (
        "LiteLLM_SearchTools",
        "search goes through pass_through_endpoints",
    ),
    (
        "LiteLLM_Managed",
        "files, batches and vector stores go through pass_through_endpoints",
    ),
    ("LiteLLM_InvitationLink", "invite anew"),
    ("LiteLLM_SSOConfig", "single sign-on is not there"),
];

/// Takes over. Without a store (it does not exist yet) only a dry run is possible, in which everything
/// counts as new.
pub async fn run(order: &Order, store: Option<Arc<dyn Store>>, dry_run: bool) -> Result<Report, ImportError> {
    let source = Source::connect(&order.source).await?;
    let mut run = Run {
        order,
        source,
        sink: Sink::new(store.clone(), dry_run, order.vault.clone()),
        report: Report::new(dry_run),
        admins: HashSet::new(),
    };
    // Owners before what they own, so that nothing here points into the void for long.
    run.objects(&owners::BUDGETS).await?;
    run.objects(&owners::ORGANIZATIONS).await?;
    run.objects(&owners::USERS).await?;
    run.objects(&owners::TEAMS).await?;
    run.objects(&owners::END_USERS).await?;
    run.objects(&owners::TAGS).await?;
    run.keys().await?;
    run.rotated().await?;
    run.models().await?;
    run.days().await?;
    if order.spend_logs {
        run.logs().await?;
    }
    run.rest().await?;
    let report = run.report;
    let wrote = report.lines().iter().any(|(_, l)| l.new + l.changed > 0);
    if let Some(store) = store.filter(|_| wrote && !dry_run) {
        store.change(&[], &[audit(&report, order.now_micros)]).await?;
    }
    Ok(report)
}

fn audit(report: &Report, now_micros: i64) -> Audit {
    Audit {
        id: uuid::Uuid::now_v7().to_string(),
        at_micros: now_micros,
        // Whoever may write to the store is master here.
        changed_by: "default_user_id".into(),
        changed_by_key: None,
        action: "imported".into(),
        table_name: "litellm".into(),
        object_id: "litellm".into(),
        before: None,
        after: Some(report.to_json()["taken"].clone()),
    }
}

struct Run<'a> {
    order: &'a Order,
    source: Source,
    sink: Sink,
    report: Report,
    /// Ids of the users who are proxy admins.
    admins: HashSet<String>,
}

impl Run<'_> {
    /// Reads a page of a cursor; rows that cannot be read are reported. `None` = that was all.
    async fn page(&mut self, what: &'static str, cursor: &Cursor) -> Result<Option<Vec<Row>>, ImportError> {
        let raw = self.source.next(cursor).await?;
        if raw.is_empty() {
            return Ok(None);
        }
        self.report.line(what).read += raw.len() as u64;
        let mut rows = Vec::with_capacity(raw.len());
        for raw in raw {
            match Row::new(raw) {
                Ok(row) => rows.push(row),
                Err((label, why)) => self.report.leave(what, &label, why),
            }
        }
        Ok(Some(rows))
    }

    fn flaws(&mut self, what: &'static str, row: &mut Row) {
        for flaw in row.flaws.drain(..) {
            let text = format!("{}: {}", flaw.field, flaw.what);
            self.report.note(what, &row.label, text);
        }
    }

    async fn objects(&mut self, spec: &'static Spec) -> Result<(), ImportError> {
        let Some(cursor) = self.source.open(&owners::table(spec)).await? else {
            return Ok(());
        };
        let now = self.order.now_micros;
        self.report.line(spec.what);
        while let Some(rows) = self.page(spec.what, &cursor).await? {
            let mut memberships = self.memberships(spec, &rows).await?;
            let mut page = Vec::with_capacity(rows.len());
            for mut row in rows {
                match owners::wanted(spec, &mut row, now) {
                    Ok(mut wanted) => {
                        if let Some(Value::Object(metadata)) = wanted.fields.get_mut("metadata") {
                            callbacks::open(metadata, &self.order.salts, &self.order.vault, &mut row);
                        }
                        let own = memberships.remove(&wanted.id).unwrap_or_default();
                        let (all, found) = (own.len() as u64, self.members(spec, &mut wanted, &mut row, own));
                        if all > 0 {
                            let line = self.report.line("memberships");
                            line.read += all;
                            line.left += all.saturating_sub(found);
                        }
                        self.flaws(spec.what, &mut row);
                        let role = wanted.fields.get("user_role").and_then(Value::as_str);
                        if wanted.table == crate::store::Table::User && role == Some("proxy_admin") {
                            self.admins.insert(wanted.id.clone());
                        }
                        page.push(wanted);
                    }
                    Err(why) => {
                        self.flaws(spec.what, &mut row);
                        self.report.leave(spec.what, &row.label, why);
                    }
                }
            }
            self.sink.objects(spec.what, page, &mut self.report).await?;
        }
        Ok(())
    }

    async fn memberships(&self, spec: &Spec, rows: &[Row]) -> Result<owners::Memberships, ImportError> {
        let name = match spec.what {
            "teams" => "LiteLLM_TeamMembership",
            "organizations" => "LiteLLM_OrganizationMembership",
            _ => return Ok(owners::Memberships::new()),
        };
        let ids: Vec<String> = rows.iter().filter_map(|r| r.text(spec.id)).collect();
        Ok(owners::memberships(&self.source, name, spec.id, &ids).await?)
    }

    fn members(&self, spec: &Spec, wanted: &mut write::Wanted, row: &mut Row, own: Vec<Row>) -> u64 {
        match spec.what {
            "teams" => owners::team_members(wanted, row, own, self.order.now_micros),
            "organizations" => owners::organization_members(wanted, row, own, self.order.now_micros),
            _ => 0,
        }
    }

    async fn keys(&mut self) -> Result<(), ImportError> {
        self.sink.look_back().await?;
        let twins = keys::twins(&self.source).await?;
        let Some(cursor) = self.source.open(&keys::table()).await? else {
            return Ok(());
        };
        let mut sessions = 0_u64;
        self.report.line("keys");
        while let Some(rows) = self.page("keys", &cursor).await? {
            let mut page = Vec::with_capacity(rows.len());
            for mut row in rows {
                let mut taken = keys::key(&mut row, &twins, self.order.now_micros);
                keys::lent(&mut taken, &self.admins, &mut row);
                if let keys::Taken::Key { key, .. } = &mut taken {
                    callbacks::open(&mut key.metadata, &self.order.salts, &self.order.vault, &mut row);
                }
                let looser = owners::is_looser(&row);
                self.flaws("keys", &mut row);
                match taken {
                    keys::Taken::Dashboard => {
                        sessions += 1;
                        self.report.line("keys").left += 1;
                    }
                    keys::Taken::Left(why) => self.report.leave("keys", &row.label, why),
                    keys::Taken::Key { .. } if looser => {
                        let why = "a field that restricts it cannot be read";
                        self.report.leave("keys", &row.label, why);
                    }
                    keys::Taken::Key { key, by_model } => page.push(WantedKey {
                        key: *key,
                        by_model,
                        label: row.label,
                    }),
                }
            }
            self.sink.keys(page, &mut self.report).await?;
        }
        if sessions > 0 {
            let why = "sessions of LiteLLM's dashboard, good for nothing here";
            self.report
                .not_taken("keys of team litellm-dashboard", sessions.to_string(), why);
        }
        Ok(())
    }

    /// Secrets within the grace of a rotation: each leads to the key that took its place.
    async fn rotated(&mut self) -> Result<(), ImportError> {
        let Some(cursor) = self.source.open(&keys::rotated_table()).await? else {
            return Ok(());
        };
        let mut over = 0_u64;
        while let Some(rows) = self.page("keys", &cursor).await? {
            let mut page = Vec::with_capacity(rows.len());
            for mut row in rows {
                let made = keys::rotated(&mut row, self.order.now_micros);
                self.flaws("keys", &mut row);
                match made {
                    Ok(Some(key)) => page.push(WantedKey {
                        key,
                        by_model: Vec::new(),
                        label: row.label,
                    }),
                    Ok(None) => {
                        over += 1;
                        self.report.line("keys").left += 1;
                    }
                    Err(why) => self.report.leave("keys", &row.label, why),
                }
            }
            self.sink.keys(page, &mut self.report).await?;
        }
        if over > 0 {
            let why = "rotated keys whose grace is over, or whose successor is gone";
            self.report.not_taken(ROTATED, over.to_string(), why);
        }
        Ok(())
    }

    async fn models(&mut self) -> Result<(), ImportError> {
        let Some(cursor) = self.source.open(&models::table()).await? else {
            return Ok(());
        };
        let credentials = models::credentials(&self.source, &self.order.salts).await?;
        self.report.line("models");
        while let Some(rows) = self.page("models", &cursor).await? {
            let mut page = Vec::with_capacity(rows.len());
            for mut row in rows {
                let made = models::wanted(&mut row, &self.order.salts, &credentials);
                self.flaws("models", &mut row);
                match made {
                    Ok(wanted) => {
                        if let Err(why) = (self.order.usable)(&Value::Object(wanted.fields.clone())) {
                            let text = format!("taken, and not used: {why}");
                            self.report.note("models", &row.label, text);
                        }
                        page.push(wanted);
                    }
                    Err(why) => self.report.leave("models", &row.label, why),
                }
            }
            self.sink.objects("models", page, &mut self.report).await?;
        }
        let unused = credentials.len();
        if unused > 0 {
            let why = "their values are in the models that name them";
            self.report
                .not_taken(models::CREDENTIALS, unused.to_string(), why);
        }
        Ok(())
    }

    async fn days(&mut self) -> Result<(), ImportError> {
        let Some(cursor) = self.source.days().await? else {
            return Ok(());
        };
        self.report.line("daily sums");
        while let Some(rows) = self.page("daily sums", &cursor).await? {
            let mut page = Vec::with_capacity(rows.len());
            for mut row in rows {
                let made = daily::sum(&mut row);
                self.flaws("daily sums", &mut row);
                match made {
                    Ok(sum) => page.push(sum),
                    Err(why) => self.report.leave("daily sums", &row.label, why),
                }
            }
            self.sink.days(&page, &mut self.report).await?;
        }
        Ok(())
    }

    async fn logs(&mut self) -> Result<(), ImportError> {
        let Some(cursor) = self.source.open(&logs::table()).await? else {
            return Ok(());
        };
        self.report.line("spend logs");
        while let Some(rows) = self.page("spend logs", &cursor).await? {
            let mut page = Vec::with_capacity(rows.len());
            for mut row in rows {
                let made = logs::record(&mut row);
                self.flaws("spend logs", &mut row);
                match made {
                    Ok(record) => page.push(record),
                    Err(why) => self.report.leave("spend logs", &row.label, why),
                }
            }
            self.sink.records(&page, &mut self.report).await?;
        }
        Ok(())
    }

    /// Says what is not taken at all.
    async fn rest(&mut self) -> Result<(), ImportError> {
        let passwords = self.source.passwords().await?;
        if passwords > 0 {
            let why = "passwords of LiteLLM's dashboard; nobody signs in with one here";
            self.report
                .not_taken("passwords of users", passwords.to_string(), why);
        }
        let orphans = self.source.orphans().await?;
        if orphans > 0 {
            self.report
                .not_taken("memberships", orphans.to_string(), "their team is gone");
        }
        let settings = Table {
            name: "LiteLLM_Config",
            id: "param_name",
            columns: vec!["param_name"],
            beside: &[],
            label: &["param_name"],
        };
        if let Some(cursor) = self.source.open(&settings).await? {
            loop {
                let rows = self.source.next(&cursor).await?;
                if rows.is_empty() {
                    break;
                }
                for row in rows {
                    let why = "settings kept in the database: write them into the config file";
                    self.report
                        .not_taken(format!("LiteLLM_Config {}", row.label), "1", why);
                }
            }
        }
        if !self.order.spend_logs && self.source.has(logs::TABLE, "request_id") {
            let (n, all) = self.source.count(logs::TABLE).await?;
            if n > 0 {
                let why = "single calls; --spend-logs takes them too";
                self.report.not_taken(logs::TABLE, counted(n, all), why);
            }
        }
        let others: Vec<String> = self.source.others(&KNOWN).map(str::to_string).collect();
        for table in others {
            let (n, all) = self.source.count(&table).await?;
            if n > 0 {
                let known = LEFT.iter().find(|(start, _)| table.starts_with(start));
                let why = known.map_or("nothing here corresponds to it", |(_, why)| *why);
                self.report.not_taken(table, counted(n, all), why);
            }
        }
        Ok(())
    }
}

fn counted(n: u64, all: bool) -> String {
    if all {
        n.to_string()
    } else {
        format!("{n} or more")
    }
}
