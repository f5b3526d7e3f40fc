//! Into our store, page by page: what is new, what is changed, what is as it was. In a dry run everything
//! is compared and nothing is written.
//!
//! The later change wins: what was changed here after LiteLLM's own last change stays as it is.

use super::{ImportError, Vault};
use crate::import::Report;
use crate::store::{
    AuditFilter, Change, DailyRow, Doc, DocFilter, KeyFilter, MAX_ROWS, Page, Store, StoreError, Table, Taken,
};
use filters::model::account::{Account, Kind};
use filters::model::key::{Key, KeyHash};
use filters::model::record::Record;
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// An object as it should be here.
pub struct Wanted {
    pub table: Table,
    pub id: String,
    pub fields: Map<String, Value>,
    pub created_at_micros: i64,
    pub updated_at_micros: i64,
    /// What its accounts had spent, nano-dollars.
    pub openings: Vec<(Account, i64)>,
}

/// A key as it should be here, and what was spent on single models.
pub struct WantedKey {
    pub key: Key,
    pub by_model: Vec<(String, i64)>,
    /// What to call it in a report.
    pub label: String,
}

/// Where it all goes.
pub struct Sink {
    /// None only in a dry run: our store does not exist yet.
    store: Option<Arc<dyn Store>>,
    dry_run: bool,
    /// Turns provider secrets into what is stored, and back.
    vault: Vault,
    /// Keys that were deleted or rotated here, by the audit: a second import must not bring them back.
    gone: HashSet<String>,
}

/// What takes a key's secret away, as audit rows call it.
const ENDS: [&str; 2] = ["deleted", "rotated"];

/// What becomes of one object.
enum Verdict {
    New,
    Changed,
    Unchanged,
    Kept,
}

/// One object's changes, which are made together or not at all.
struct Step {
    label: String,
    verdict: Verdict,
    changes: Vec<Owned>,
}

enum Owned {
    InsertKey(Key),
    UpdateKey(Key, i64),
    Put(Table, Doc),
    Open(Account, i64),
}

impl Owned {
    fn change(&self) -> Change<'_> {
        match self {
            Owned::InsertKey(key) => Change::InsertKey(key),
            Owned::UpdateKey(key, read_at_micros) => Change::UpdateKey {
                key,
                read_at_micros: *read_at_micros,
            },
            Owned::Put(table, doc) => Change::Put { table: *table, doc },
            Owned::Open(account, nanos) => Change::Open {
                account,
                nanos: *nanos,
            },
        }
    }
}

impl Sink {
    pub fn new(store: Option<Arc<dyn Store>>, dry_run: bool, vault: Vault) -> Self {
        Self {
            store,
            dry_run,
            vault,
            gone: HashSet::new(),
        }
    }

    /// Reads which keys were deleted or rotated here.
    pub async fn look_back(&mut self) -> Result<(), ImportError> {
        let Some(store) = &self.store else {
            return Ok(());
        };
        for action in ENDS {
            let mut filter = AuditFilter {
                action: Some(action.into()),
                table_name: Some("key".into()),
                page: Page {
                    limit: MAX_ROWS,
                    offset: 0,
                },
                ..AuditFilter::default()
            };
            loop {
                let rows = store.audit(&filter).await?;
                let read = rows.len() as u64;
                self.gone.extend(rows.into_iter().map(|row| row.object_id));
                if read < u64::from(MAX_ROWS) {
                    break;
                }
                filter.page.offset += read;
            }
        }
        Ok(())
    }

    /// Brings one page of keys in.
    pub async fn keys(&self, page: Vec<WantedKey>, report: &mut Report) -> Result<(), ImportError> {
        let mut there: HashMap<KeyHash, Key> = HashMap::new();
        let mut holders: HashMap<String, KeyHash> = HashMap::new();
        let accounts: Vec<Account> = page.iter().flat_map(accounts_of).collect();
        let mut opened = vec![None; accounts.len()];
        if let Some(store) = &self.store {
            let hashes: Vec<KeyHash> = page.iter().map(|w| w.key.hash).collect();
            let filter = KeyFilter {
                hashes: Some(hashes),
                ..KeyFilter::default()
            };
            let all = Page {
                limit: page.len() as u32,
                offset: 0,
            };
            for key in store.list_keys(&filter, all).await?.keys {
                there.insert(key.hash, key);
            }
            let aliases: Vec<String> = page.iter().filter_map(|w| w.key.key_alias.clone()).collect();
            for key in store.keys_by_alias(&aliases).await? {
                if let Some(alias) = key.key_alias {
                    holders.insert(alias, key.hash);
                }
            }
            opened.clear();
            for accounts in accounts.chunks(MAX_ACCOUNTS) {
                opened.extend(store.openings(accounts).await?);
            }
        }
        let mut opened = opened.into_iter();
        let mut steps = Vec::with_capacity(page.len());
        for wanted in page {
            let WantedKey {
                mut key,
                by_model,
                label,
            } = wanted;
            if let Some(alias) = &key.key_alias {
                match holders.get(alias) {
                    Some(other) if *other != key.hash => {
                        report.note("keys", &label, "key_alias: another key here has it, left out");
                        key.key_alias = None;
                    }
                    _ => {
                        holders.insert(alias.clone(), key.hash);
                    }
                }
            }
            let hex = key.hash.hex();
            if self.gone.contains(&hex) && !there.contains_key(&key.hash) {
                // Its accounts were asked for all the same.
                opened.nth(by_model.len());
                report.leave("keys", &label, "it was deleted or rotated here");
                continue;
            }
            let mut changes = Vec::new();
            // A new key brings its account along; one that was there before is said to be as it should.
            let whole = opened.next().flatten();
            let is_new = !there.contains_key(&key.hash);
            if (!is_new || whole.is_some()) && whole.unwrap_or(0) != key.spend_nanos {
                changes.push(Owned::Open(Account::new(Kind::Key, hex.clone()), key.spend_nanos));
            }
            for (model, nanos) in by_model {
                if opened.next().flatten().unwrap_or(0) != nanos {
                    changes.push(Owned::Open(
                        Account::of_model(Kind::Key, hex.clone(), model),
                        nanos,
                    ));
                }
            }
            let verdict = match there.remove(&key.hash) {
                None => {
                    self.vault.close_callbacks(&mut key.metadata);
                    changes.insert(0, Owned::InsertKey(key));
                    Verdict::New
                }
                Some(old) if same(&old, &key) && self.vault.same_callbacks(&old.metadata, &key.metadata) => {
                    changed_if(&changes)
                }
                Some(old) if is_later(old.updated_at_micros, key.updated_at_micros) => Verdict::Kept,
                Some(old) => {
                    self.vault.close_callbacks(&mut key.metadata);
                    changes.push(Owned::UpdateKey(key, old.updated_at_micros));
                    Verdict::Changed
                }
            };
            steps.push(Step {
                label,
                verdict,
                changes,
            });
        }
        self.carry_out("keys", steps, report).await
    }

    /// Brings one page of objects of one table in.
    pub async fn objects(
        &self,
        what: &'static str,
        page: Vec<Wanted>,
        report: &mut Report,
    ) -> Result<(), ImportError> {
        let Some(table) = page.first().map(|w| w.table) else {
            return Ok(());
        };
        let mut there: HashMap<String, Doc> = HashMap::new();
        let accounts: Vec<Account> = page
            .iter()
            .flat_map(|w| w.openings.iter().map(|(account, _)| account.clone()))
            .collect();
        let mut opened = vec![None; accounts.len()];
        if let Some(store) = &self.store {
            let filter = DocFilter {
                ids: Some(page.iter().map(|w| w.id.clone()).collect()),
                page: Page {
                    limit: page.len() as u32,
                    offset: 0,
                },
                ..DocFilter::default()
            };
            for doc in store.documents(table, &filter).await?.docs {
                there.insert(doc.id.clone(), doc);
            }
            opened.clear();
            for accounts in accounts.chunks(MAX_ACCOUNTS) {
                opened.extend(store.openings(accounts).await?);
            }
        }
        let mut opened = opened.into_iter();
        let mut steps = Vec::with_capacity(page.len());
        for wanted in page {
            let mut changes = Vec::new();
            for (account, nanos) in wanted.openings {
                if opened.next().flatten().unwrap_or(0) != nanos {
                    changes.push(Owned::Open(account, nanos));
                }
            }
            let old = there.remove(&wanted.id);
            let is_same = old
                .as_ref()
                .is_some_and(|old| self.vault.same(table, &old.fields, &wanted.fields));
            let label = wanted.id.clone();
            let verdict = match &old {
                Some(_) if is_same => changed_if(&changes),
                // An empty one was made by the first call in its name, not by anybody's hand.
                Some(old)
                    if is_later(old.updated_at_micros, wanted.updated_at_micros)
                        && !old.fields.is_empty() =>
                {
                    Verdict::Kept
                }
                _ => {
                    let fields = match self.vault.close(table, wanted.fields) {
                        Ok(fields) => fields,
                        Err(why) => {
                            report.leave(what, &label, why);
                            continue;
                        }
                    };
                    let doc = Doc {
                        id: wanted.id,
                        fields,
                        version: old.as_ref().map_or(0, |old| old.version),
                        created_at_micros: old
                            .as_ref()
                            .map_or(wanted.created_at_micros, |o| o.created_at_micros),
                        updated_at_micros: wanted.updated_at_micros,
                    };
                    changes.insert(0, Owned::Put(table, doc));
                    if old.is_some() {
                        Verdict::Changed
                    } else {
                        Verdict::New
                    }
                }
            };
            steps.push(Step {
                label,
                verdict,
                changes,
            });
        }
        self.carry_out(what, steps, report).await
    }

    /// Sets sums of days.
    pub async fn days(&self, page: &[DailyRow], report: &mut Report) -> Result<(), ImportError> {
        let (new, changed) = match &self.store {
            Some(store) => store.import_daily(page, self.dry_run).await?,
            None => (page.len() as u64, 0),
        };
        let line = report.line("daily sums");
        line.new += new;
        line.changed += changed;
        line.unchanged += (page.len() as u64).saturating_sub(new + changed);
        Ok(())
    }

    /// Adds rows to the ledger. One that the store refuses does not stop its neighbours.
    pub async fn records(&self, page: &[Record], report: &mut Report) -> Result<(), ImportError> {
        let Some(store) = &self.store else {
            report.line("spend logs").new += page.len() as u64;
            return Ok(());
        };
        let mut todo = vec![page];
        while let Some(rows) = todo.pop() {
            match store.import_records(rows, self.dry_run).await {
                Ok(new) => {
                    let line = report.line("spend logs");
                    line.new += new;
                    line.unchanged += (rows.len() as u64).saturating_sub(new);
                }
                Err(e @ (StoreError::Unavailable(_) | StoreError::Other(_))) => return Err(e.into()),
                Err(e) => match rows {
                    [row] => report.leave("spend logs", &row.request_id, e.to_string()),
                    rows => {
                        let (left, right) = rows.split_at(rows.len() / 2);
                        todo.extend([right, left]);
                    }
                },
            }
        }
        Ok(())
    }

    /// Makes the changes of a page together, and where that fails, one object at a time.
    async fn carry_out(
        &self,
        what: &'static str,
        mut steps: Vec<Step>,
        report: &mut Report,
    ) -> Result<(), ImportError> {
        if let Some(store) = self.store.as_ref().filter(|_| !self.dry_run) {
            let all: Vec<Change<'_>> = steps.iter().flat_map(|s| &s.changes).map(Owned::change).collect();
            let done = if all.is_empty() {
                Ok(())
            } else {
                store.change(&all, &[]).await
            };
            match done {
                Ok(()) => {}
                Err(e @ StoreError::Unavailable(_)) => return Err(e.into()),
                Err(_) => {
                    let mut whole = Vec::with_capacity(steps.len());
                    for step in steps {
                        if let Some(step) = self.alone(store, what, step, report).await? {
                            whole.push(step);
                        }
                    }
                    steps = whole;
                }
            }
        }
        let line = report.line(what);
        for step in steps {
            match step.verdict {
                Verdict::New => line.new += 1,
                Verdict::Changed => line.changed += 1,
                Verdict::Unchanged => line.unchanged += 1,
                Verdict::Kept => line.kept += 1,
            }
        }
        Ok(())
    }

    /// Makes one object's changes; `None` = it was left.
    async fn alone(
        &self,
        store: &Arc<dyn Store>,
        what: &'static str,
        mut step: Step,
        report: &mut Report,
    ) -> Result<Option<Step>, ImportError> {
        for _ in 0..2 {
            let changes: Vec<Change<'_>> = step.changes.iter().map(Owned::change).collect();
            if changes.is_empty() {
                return Ok(Some(step));
            }
            match store.change(&changes, &[]).await {
                Ok(()) => return Ok(Some(step)),
                Err(e @ StoreError::Unavailable(_)) => return Err(e.into()),
                // Somebody took it just now; the key works without.
                Err(StoreError::Conflict {
                    what: Taken::KeyAlias,
                }) => {
                    report.note(what, &step.label, "key_alias: another key here has it, left out");
                    for change in &mut step.changes {
                        if let Owned::InsertKey(key) | Owned::UpdateKey(key, _) = change {
                            key.key_alias = None;
                        }
                    }
                }
                Err(e) => {
                    report.leave(what, &step.label, e.to_string());
                    return Ok(None);
                }
            }
        }
        report.leave(what, &step.label, "its alias is another key's");
        Ok(None)
    }
}

/// Accounts asked about in one call.
const MAX_ACCOUNTS: usize = 500;

fn accounts_of(wanted: &WantedKey) -> Vec<Account> {
    let hex = wanted.key.hash.hex();
    let mut accounts = vec![Account::new(Kind::Key, hex.clone())];
    for (model, _) in &wanted.by_model {
        accounts.push(Account::of_model(Kind::Key, hex.clone(), model.clone()));
    }
    accounts
}

/// Whether a change here came after LiteLLM's. The store moves times on by a little of its own accord.
fn is_later(here: i64, there: i64) -> bool {
    here > there.saturating_add(1_000_000)
}

fn changed_if(changes: &[Owned]) -> Verdict {
    if changes.is_empty() {
        Verdict::Unchanged
    } else {
        Verdict::Changed
    }
}

/// Whether a key is as it should be. Spend and what is sealed in it are other matters, and creation stays.
fn same(old: &Key, new: &Key) -> bool {
    let Key {
        hash: _,
        key_name,
        key_alias,
        user_id,
        team_id,
        models,
        aliases,
        spend_nanos: _,
        max_budget_nanos,
        expires_micros,
        blocked,
        metadata: _,
        extra,
        created_at_micros: _,
        created_by: _,
        updated_at_micros: _,
    } = new;
    (&old.key_name, &old.key_alias, &old.user_id, &old.team_id) == (key_name, key_alias, user_id, team_id)
        && (&old.models, &old.aliases, &old.max_budget_nanos) == (models, aliases, max_budget_nanos)
        && (&old.expires_micros, &old.blocked) == (expires_micros, blocked)
        && old.extra == *extra
}
