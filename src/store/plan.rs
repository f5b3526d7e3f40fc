//! A change before it is carried out: checked and bounded in the same way for both stores, and owned, so
//! that it can go to another thread.

use super::table::{Audit, Change, Doc, News, Table};
use super::{MAX_ROWS, Result, StoreError};
use filters::model::account::Account;
use filters::model::key::{Key, KeyHash};
use serde_json::{Map, Value, json};

/// Most bytes of one object's or key's fields, as JSON.
pub const MAX_FIELDS: usize = 1 << 20;
/// Most bytes of all that one transaction writes.
const MAX_WRITTEN: usize = 64 << 20;
/// Most bytes of an id, of an alias, and of a field that is looked up by: an index takes no more.
pub const MAX_ID: usize = 1_000;
/// How deep lists and objects may stand in each other: what is deeper could be written, not read.
const MAX_DEPTH: u32 = 64;
/// Most bytes of an audit row's `before`, and of its `after`.
const MAX_AUDIT: usize = 32 << 10;
/// More news than these is everything.
const MAX_NEWS: usize = 100;

/// One step of a transaction.
pub enum Step {
    InsertKey(Box<Key>),
    UpdateKey {
        key: Box<Key>,
        read_at_micros: i64,
    },
    DeleteKeys(Vec<KeyHash>),
    /// `version` 0 is a new object. `fields` is JSON.
    Put {
        table: Table,
        id: String,
        fields: String,
        version: i64,
        created_at_micros: i64,
        updated_at_micros: i64,
    },
    Delete {
        table: Table,
        ids: Vec<String>,
    },
    Open {
        account: Account,
        nanos: i64,
    },
}

/// An audit row as it is written: no NUL, nothing overlong.
pub struct Line {
    pub id: String,
    pub at_micros: i64,
    pub changed_by: String,
    pub changed_by_key: Option<KeyHash>,
    pub action: String,
    pub table_name: String,
    pub object_id: String,
    pub before: Option<String>,
    pub after: Option<String>,
}

/// All of one transaction.
pub struct Plan {
    pub steps: Vec<Step>,
    pub audit: Vec<Line>,
    /// What to tell once it is committed.
    pub news: Vec<News>,
}

impl Plan {
    pub fn of(changes: &[Change<'_>], audit: &[Audit]) -> Result<Self> {
        let most = MAX_ROWS as usize;
        let named = changes.iter().map(|change| match change {
            Change::DeleteKeys(hashes) => hashes.len(),
            Change::Delete { ids, .. } => ids.len(),
            _ => 1,
        });
        if named.sum::<usize>() > most || changes.len() > most || audit.len() > most {
            return Err(StoreError::invalid(format!(
                "one transaction changes at most {most} rows"
            )));
        }
        let mut plan = Plan {
            steps: Vec::with_capacity(changes.len()),
            audit: audit.iter().map(line).collect::<Result<_>>()?,
            news: Vec::new(),
        };
        let mut written = 0;
        for change in changes {
            let (step, bytes) = step(change)?;
            written += bytes;
            if written > MAX_WRITTEN {
                return Err(StoreError::invalid(format!(
                    "one transaction writes at most {MAX_WRITTEN} bytes"
                )));
            }
            plan.steps.push(step);
            plan.tell(change);
        }
        Ok(plan)
    }

    fn tell(&mut self, change: &Change<'_>) {
        if self.news == [News::Everything] {
            return;
        }
        match change {
            Change::InsertKey(key) | Change::UpdateKey { key, .. } => self.news.push(News::Key(key.hash)),
            Change::DeleteKeys(hashes) => self.news.extend(hashes.iter().copied().map(News::Key)),
            Change::Put { table, doc } => self.news.push(News::Doc(*table, doc.id.clone())),
            Change::Delete { table, ids } => {
                let gone = ids.iter().map(|id| News::Doc(*table, id.clone()));
                self.news.extend(gone);
            }
            // What an account spent is read with each balance, and not remembered with an object.
            Change::Open { .. } => {}
        }
        if self.news.len() > MAX_NEWS {
            self.news = vec![News::Everything];
        }
    }
}

/// What is to be done, and about how many bytes that writes.
fn step(change: &Change<'_>) -> Result<(Step, usize)> {
    Ok(match change {
        Change::InsertKey(key) => {
            let bytes = judge_key(key)?;
            (Step::InsertKey(Box::new((*key).clone())), bytes)
        }
        Change::UpdateKey { key, read_at_micros } => {
            let bytes = judge_key(key)?;
            let key = Box::new((*key).clone());
            let read_at_micros = *read_at_micros;
            (Step::UpdateKey { key, read_at_micros }, bytes)
        }
        Change::DeleteKeys(hashes) => (Step::DeleteKeys(hashes.to_vec()), 0),
        Change::Put { table, doc } => {
            let fields = judge_doc(*table, doc)?;
            let bytes = fields.len();
            let put = Step::Put {
                table: *table,
                id: doc.id.clone(),
                fields,
                version: doc.version,
                created_at_micros: doc.created_at_micros,
                updated_at_micros: doc.updated_at_micros,
            };
            (put, bytes)
        }
        Change::Delete { table, ids } => {
            for id in *ids {
                plain("id", id)?;
            }
            let ids = ids.to_vec();
            (Step::Delete { table: *table, ids }, 0)
        }
        Change::Open { account, nanos } => {
            plain("account id", &account.id)?;
            plain("account model", &account.model)?;
            // A member's id holds two.
            if account.id.len() > 2 * MAX_ID + 1 || account.model.len() > MAX_ID {
                return Err(StoreError::invalid("the account's name is too long"));
            }
            if *nanos < 0 {
                return Err(StoreError::invalid("an opening is no debt: it is 0 or more"));
            }
            let account = (*account).clone();
            (
                Step::Open {
                    account,
                    nanos: *nanos,
                },
                0,
            )
        }
    })
}

/// Text that both databases keep: Postgres has no NUL.
pub fn plain(what: &str, text: &str) -> Result<()> {
    if text.contains('\0') {
        return Err(StoreError::invalid(format!("{what} holds a NUL character")));
    }
    Ok(())
}

/// Something that is looked up by.
fn name(what: &str, text: &str) -> Result<()> {
    plain(what, text)?;
    if text.len() > MAX_ID {
        return Err(StoreError::invalid(format!(
            "{what} is longer than {MAX_ID} bytes"
        )));
    }
    Ok(())
}

fn judge_key(key: &Key) -> Result<usize> {
    name("key_name", &key.key_name)?;
    for (what, text) in [
        ("key_alias", &key.key_alias),
        ("user_id", &key.user_id),
        ("team_id", &key.team_id),
        ("created_by", &key.created_by),
    ] {
        if let Some(text) = text {
            name(what, text)?;
        }
    }
    if let Some(id) = key.text("organization_id") {
        name("organization_id", id)?;
    }
    for model in &key.models {
        plain("models", model)?;
    }
    for (alias, model) in &key.aliases {
        plain("aliases", alias)?;
        plain("aliases", model)?;
    }
    let mut bytes: usize = key.models.iter().map(|m| m.len() + 4).sum();
    bytes += key
        .aliases
        .iter()
        .map(|(a, m)| a.len() + m.len() + 8)
        .sum::<usize>();
    bytes += judge_fields("metadata", &key.metadata)?.len();
    bytes += judge_fields("key", &key.extra)?.len();
    if bytes > MAX_FIELDS {
        return Err(too_large("the key"));
    }
    Ok(bytes)
}

/// Fields that have an index of their own.
fn indexed(table: Table) -> &'static [&'static str] {
    match table {
        Table::User => &["user_email", "organization_id"],
        Table::Team => &["team_alias", "organization_id"],
        Table::Organization => &["organization_alias"],
        Table::Model => &["model_name"],
        Table::EndUser | Table::Budget | Table::Tag => &[],
    }
}

fn judge_doc(table: Table, doc: &Doc) -> Result<String> {
    let what = table.as_str();
    if doc.id.is_empty() {
        return Err(StoreError::invalid(format!("the id of a {what} is empty")));
    }
    name(&format!("the id of a {what}"), &doc.id)?;
    if doc.version < 0 {
        return Err(StoreError::invalid("a version is 0 or more"));
    }
    for field in indexed(table) {
        match doc.fields.get(*field) {
            Some(Value::String(text)) => name(field, text)?,
            Some(Value::Array(_) | Value::Object(_)) => {
                return Err(StoreError::invalid(format!("{field} is a text")));
            }
            _ => {}
        }
    }
    judge_fields(what, &doc.fields)
}

fn too_large(what: &str) -> StoreError {
    StoreError::invalid(format!("{what} is larger than {MAX_FIELDS} bytes"))
}

/// As JSON, if it can be kept.
fn judge_fields(what: &str, fields: &Map<String, Value>) -> Result<String> {
    for (field, value) in fields {
        plain("a field's name", field)?;
        judge_value(field, value, MAX_DEPTH)?;
    }
    let text = serde_json::to_string(fields).map_err(StoreError::invalid)?;
    if text.len() > MAX_FIELDS {
        return Err(too_large(what));
    }
    Ok(text)
}

fn judge_value(field: &str, value: &Value, depth: u32) -> Result<()> {
    let deeper = || {
        depth
            .checked_sub(1)
            .ok_or_else(|| StoreError::invalid(format!("{field} is nested more than {MAX_DEPTH} deep")))
    };
    match value {
        Value::String(text) => plain(field, text),
        Value::Array(items) => {
            let depth = deeper()?;
            items.iter().try_for_each(|item| judge_value(field, item, depth))
        }
        Value::Object(entries) => {
            let depth = deeper()?;
            entries.iter().try_for_each(|(name, item)| {
                plain(field, name)?;
                judge_value(field, item, depth)
            })
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

fn line(audit: &Audit) -> Result<Line> {
    let json = |value: &Option<Value>| value.as_ref().map(bounded).transpose();
    Ok(Line {
        id: cleaned(&audit.id),
        at_micros: audit.at_micros,
        changed_by: cleaned(&audit.changed_by),
        changed_by_key: audit.changed_by_key,
        action: cleaned(&audit.action),
        table_name: cleaned(&audit.table_name),
        object_id: cleaned(&audit.object_id),
        before: json(&audit.before)?,
        after: json(&audit.after)?,
    })
}

/// An audit row is written whatever is in it.
fn cleaned(text: &str) -> String {
    head(text, MAX_ID).replace('\0', "\u{fffd}")
}

/// The start of a text, at most so many bytes.
fn head(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at));
    text.get(..end.unwrap_or(0)).unwrap_or("")
}

fn bounded(value: &Value) -> Result<String> {
    let text = serde_json::to_string(value).map_err(StoreError::invalid)?;
    if text.len() <= MAX_AUDIT {
        return Ok(text);
    }
    // As a JSON text its quotes and backslashes count twice.
    let start = head(&text, MAX_AUDIT / 2 - 100);
    let cut = json!({"cut": true, "bytes": text.len(), "start": start});
    serde_json::to_string(&cut).map_err(StoreError::invalid)
}

/// A name for a message: bounded, whatever the id is.
pub fn called(table: Table, id: &str) -> String {
    format!("{} {}", table.as_str(), head(id, 200))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audit(after: Value) -> Audit {
        Audit {
            id: "1".into(),
            at_micros: 0,
            changed_by: "a\0b".into(),
            changed_by_key: None,
            action: "updated".into(),
            table_name: "user".into(),
            object_id: "é".repeat(2_000),
            before: None,
            after: Some(after),
        }
    }

    #[test]
    fn audit_rows_are_cut_and_stay_json() {
        let plan = Plan::of(&[], &[audit(json!({"x": "\"\\".repeat(100_000)}))]).unwrap();
        let line = plan.audit.first().unwrap();
        let after = line.after.as_deref().unwrap();
        assert!(after.len() <= MAX_AUDIT, "{}", after.len());
        let after: Value = serde_json::from_str(after).unwrap();
        assert_eq!((&after["cut"], &after["bytes"]), (&json!(true), &json!(400_008)));
        assert_eq!(line.changed_by, "a\u{fffd}b");
        assert_eq!(line.object_id.len(), MAX_ID);
    }

    #[test]
    fn much_news_is_everything() {
        let hashes: Vec<KeyHash> = (0..101).map(|n| KeyHash::of(&format!("k{n}"))).collect();
        let news = |n: usize| {
            let changes = [Change::DeleteKeys(hashes.get(..n).unwrap())];
            Plan::of(&changes, &[]).unwrap().news
        };
        assert_eq!(news(100).len(), 100);
        assert_eq!(news(101), [News::Everything]);
    }

    #[test]
    fn depth_is_bounded() {
        let mut value = json!(1);
        for _ in 0..MAX_DEPTH {
            value = json!([value]);
        }
        let mut doc = Doc {
            id: "a".into(),
            fields: [("x".to_string(), value.clone())].into_iter().collect(),
            version: 0,
            created_at_micros: 0,
            updated_at_micros: 0,
        };
        assert!(judge_doc(Table::User, &doc).is_ok());
        doc.fields.insert("x".into(), json!([value]));
        let refused = judge_doc(Table::User, &doc).unwrap_err();
        assert!(refused.to_string().contains("x is nested"), "{refused}");
    }
}
