//! What users, teams, organizations, customers, budgets and tags have in common: fields that are checked
//! and kept under LiteLLM's names, rows that show them with what was spent, and changes that are begun
//! again when somebody else was quicker.
//!
//! Which fields an object has, who may change them and what else must happen stands with the object.

use super::error::{Result, Stopped, missing, not_found, wrong_value};
use super::fields::{self, Field, Fields, Kind};
use super::rights::Actor;
use super::shapes::iso;
use super::{Desk, callbacks, duration, terms};
use crate::shared::period;
use crate::store::{Balance, Doc, DocFilter, Page, StoreError, Table, Taken};
use axum::body::Body;
use filters::contract::Refusal;
use filters::model::account::Account;
use filters::model::limits::Limits;
use filters::model::money::Nanos;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What anybody may be limited to. Read by [`Limits::of`] under exactly these names.
pub const LIMITS: &[Field] = &[
    Field::new(
        "max_budget",
        Kind::Money,
        "Dollars that may be spent, in all or per budget_duration",
    ),
    Field::new(
        "soft_budget",
        Kind::Money,
        "Dollars after which a warning is given",
    ),
    Field::new(
        "budget_duration",
        Kind::Period,
        "When the budget starts anew: 30d, 1mo, …",
    ),
    Field::new("tpm_limit", Kind::Count, "Tokens per minute"),
    Field::new("rpm_limit", Kind::Count, "Requests per minute"),
    Field::new("max_parallel_requests", Kind::Count, "Calls at once"),
    Field::new("model_max_budget", Kind::ModelBudgets, "Budgets of single models"),
    Field::new(
        "model_rpm_limit",
        Kind::ModelCounts,
        "Requests per minute of single models",
    ),
    Field::new(
        "model_tpm_limit",
        Kind::ModelCounts,
        "Tokens per minute of single models",
    ),
    Field::new(
        "model_max_parallel_requests",
        Kind::ModelCounts,
        "Calls at once of single models",
    ),
];

/// Limits kept under a name in place of one's own.
pub const NAMED_BUDGET: &[Field] = &[Field::new(
    "budget_id",
    Kind::Id,
    "A budget whose limits count where there are none of its own",
)];

/// The page of a list.
pub const PAGED: &[Field] = &[
    Field::new("page", Kind::Count, "From 1"),
    Field::new("page_size", Kind::Count, "Rows of a page"),
];

/// A longer answer is refused: nobody can read it, and somebody must hold it.
const MOST_MEMBERS_SHOWN: usize = 200_000;
/// Accounts that are asked for at once.
const ACCOUNTS: usize = 1_000;

/// A kind of object: where it is kept, what its id is called, which fields it keeps and shows.
pub struct Sort {
    pub table: Table,
    pub id: &'static str,
    pub fields: &'static [&'static [Field]],
}

impl Sort {
    /// One by its id, or a refusal that says in LiteLLM's words that there is none.
    pub async fn find(&self, desk: &Desk, id: &str) -> Result<Doc> {
        let found = desk.store.document(self.table, id).await?;
        found.ok_or_else(|| self.none(id))
    }

    pub fn none(&self, id: &str) -> Stopped {
        let id: String = id.chars().take(200).collect();
        let message = match self.table {
            Table::User => format!("User {id} not found"),
            Table::Team => format!("Team not found, passed team id: {id}."),
            Table::Organization => format!("Organization not found, passed organization_id={id}"),
            Table::EndUser => format!("End User Id={id} does not exist in db"),
            Table::Budget => format!("Budget not found, passed budget_id={id}"),
            Table::Tag => format!("Tag {id} not found"),
            Table::Model => format!("Model not found, passed model_id={id}"),
        };
        not_found(self.id, message).into()
    }

    /// 409 in LiteLLM's words.
    pub fn exists(&self, id: &str) -> Stopped {
        let id: String = id.chars().take(200).collect();
        let message = match self.table {
            Table::User => format!("User with id {id} already exists"),
            Table::Team => {
                format!("Team id = {id} already exists. Please use a different team id.")
            }
            Table::Organization => format!("Organization id = {id} already exists. Use a different one."),
            Table::EndUser => {
                format!("Customer already exists, passed user_id={id}. Please pass a new user_id.")
            }
            Table::Budget => format!("Budget {id} already exists. Use /budget/update to change it."),
            Table::Tag => format!("Tag {id} already exists"),
            Table::Model => format!("Model {id} already exists"),
        };
        conflict(self.id, message)
    }

    /// A write that put in something new: its id may be taken.
    pub fn refused(&self, e: StoreError, id: &str) -> Stopped {
        match e {
            StoreError::Conflict { what: Taken::Id } => self.exists(id),
            e => e.into(),
        }
    }
}

/// 409: something of that name is there.
pub fn conflict(field: &str, message: impl Into<String>) -> Stopped {
    Refusal::new(409, "bad_request_error", message)
        .param(field)
        .into()
}

/// 403 that names the field which is above somebody's rights.
pub fn above(field: &str, message: impl Into<String>) -> Stopped {
    Refusal::new(403, "auth_error", message).param(field).into()
}

/// One call that changes something.
pub struct Task {
    pub desk: Arc<Desk>,
    pub actor: Actor,
    pub fields: Fields,
    /// When it was begun, microseconds since 1970.
    pub now: i64,
}

/// Reads the body and makes the attempt, again and again while somebody else's change comes first.
pub async fn run<T, Fut>(
    actor: Actor,
    desk: Arc<Desk>,
    body: Body,
    attempt: impl Fn(Arc<Task>) -> Fut + Send + 'static,
) -> Result<T>
where
    T: Send + 'static,
    Fut: Future<Output = Result<T>> + Send,
{
    run_on(actor, desk, Fields::read(body).await?, attempt).await
}

/// The same for fields that were read already.
pub async fn run_on<T, Fut>(
    actor: Actor,
    desk: Arc<Desk>,
    fields: Fields,
    attempt: impl Fn(Arc<Task>) -> Fut + Send + 'static,
) -> Result<T>
where
    T: Send + 'static,
    Fut: Future<Output = Result<T>> + Send,
{
    if !actor.is_admin() {
        small(&fields)?;
    }
    let task = Arc::new(Task {
        now: desk.clock.now_micros(),
        desk,
        actor,
        fields,
    });
    super::settle(move || attempt(Arc::clone(&task))).await
}

/// Most bytes of what somebody who is no admin writes on an object besides lists of names: each key of a user
/// or a team has them in memory.
const MOST_WRITTEN: usize = 16 << 10;
/// Most bytes of all that such a call says.
const MOST_SAID: usize = 128 << 10;
/// Lists of names: of members, models, objects.
const NAMES: [&str; 9] = [
    "member",
    "members",
    "members_with_roles",
    "models",
    "teams",
    "organizations",
    "user_ids",
    "team_ids",
    "organization_ids",
];

fn small(fields: &Fields) -> Result<()> {
    let written = fields.size_without(&NAMES);
    for (bytes, most) in [(written, MOST_WRITTEN), (fields.size(), MOST_SAID)] {
        if bytes > most {
            let message =
                format!("This is {bytes} bytes, and {most} may be written at most. Shorten 'metadata'.");
            return Err(wrong_value("metadata", message).into());
        }
    }
    Ok(())
}

impl Task {
    /// A new object, not stored yet.
    pub fn blank(&self, id: impl Into<String>) -> Doc {
        let mut doc = Doc {
            id: id.into(),
            fields: Map::new(),
            version: 0,
            created_at_micros: self.now,
            updated_at_micros: self.now,
        };
        doc.fields.insert("created_by".into(), doer(&self.actor));
        self.touch(&mut doc);
        doc
    }

    /// Somebody changes it now.
    pub fn touch(&self, doc: &mut Doc) {
        doc.updated_at_micros = self.now;
        doc.fields.insert("updated_by".into(), doer(&self.actor));
    }

    /// Takes over what the body says of these fields; null unsets.
    pub fn keep(&self, groups: &[&[Field]], doc: &mut Doc) -> Result<()> {
        keep(groups, &self.fields, &mut doc.fields, self.now)
    }

    /// A `budget_id` that is given names a budget that there is.
    pub async fn check_budget(&self) -> Result<()> {
        if let Some(id) = self.fields.id("budget_id")? {
            super::budgets::BUDGET.find(&self.desk, &id).await?;
        }
        Ok(())
    }
}

/// Who does it, as rows tell: LiteLLM's `default_user_id` for the master key.
pub fn doer(actor: &Actor) -> Value {
    actor.user_id().map_or(Value::Null, Into::into)
}

/// Takes over what a body says of these fields, each checked; null unsets.
pub fn keep(groups: &[&[Field]], given: &Fields, kept: &mut Map<String, Value>, now: i64) -> Result<()> {
    let before = kept.get("budget_duration").cloned();
    for Field { name, kind, .. } in groups.iter().flat_map(|g| g.iter()) {
        match given.value(name) {
            Some(Value::String(text)) if text.is_empty() && *kind == Kind::Id => {
                kept.remove(*name);
            }
            Some(value) => {
                let mut value = kind.read(name, value)?;
                if let ("metadata", Value::Object(new)) = (*name, &value) {
                    callbacks::check(new)?;
                }
                if let (Value::Object(new), Some(Value::Object(old))) = (&mut value, kept.get(*name)) {
                    callbacks::restore(new, old);
                }
                check_periods(name, &value, now)?;
                kept.insert((*name).into(), value);
            }
            None if given.has(name) => {
                kept.remove(*name);
            }
            None => {}
        }
    }
    since(kept, before.as_ref(), now);
    Ok(())
}

/// A period that rolls on begins with the moment it was set.
fn since(kept: &mut Map<String, Value>, before: Option<&Value>, now: i64) {
    let periodic = kept.contains_key("budget_duration") || kept.contains_key("model_max_budget");
    if !periodic {
        kept.remove("budget_since_micros");
    } else if kept.get("budget_duration") != before || !kept.contains_key("budget_since_micros") {
        kept.insert("budget_since_micros".into(), now.into());
    }
}

/// A period whose end no calendar has is a slip of the pen.
fn check_periods(name: &str, value: &Value, now: i64) -> Result<()> {
    let check = |text: &str| {
        duration::after(now, text)
            .map(drop)
            .map_err(|e| Stopped::from(wrong_value(name, format!("'{name}' {e}."))))
    };
    match (name, value) {
        (name, Value::String(text)) if name.ends_with("_duration") => check(text),
        ("model_max_budget", Value::Object(models)) => models
            .values()
            .filter_map(|m| {
                m.get("time_period")
                    .or_else(|| m.get("budget_duration"))?
                    .as_str()
            })
            .try_for_each(check),
        _ => Ok(()),
    }
}

/// The fields as an answer shows them. What else is kept stays inside: nobody vouched for it, it may
/// be the hash of a password.
pub fn shown(groups: &[&[Field]], kept: &Map<String, Value>) -> Map<String, Value> {
    let fields = groups.iter().flat_map(|g| g.iter());
    fields
        .map(|Field { name, kind, .. }| {
            let mut value = kept.get(*name).filter(|v| !v.is_null()).cloned();
            if let ("metadata", Some(Value::Object(metadata))) = (*name, &mut value) {
                callbacks::hide(metadata);
            }
            ((*name).to_string(), value.unwrap_or_else(|| kind.unset()))
        })
        .collect()
}

/// What limits somebody: its own fields, and where it has none, those of the budget it names.
pub fn effective(own: &Map<String, Value>, named: Option<&Doc>) -> Map<String, Value> {
    let mut all: Map<String, Value> = Map::new();
    let names = LIMITS.iter().map(|f| f.name).chain(["budget_since_micros"]);
    for name in names {
        let value = own.get(name).filter(|v| !is_unset(v));
        let value = value.or_else(|| named?.fields.get(name).filter(|v| !v.is_null()));
        if let Some(value) = value {
            all.insert(name.into(), value.clone());
        }
    }
    all
}

/// Says nothing: a form's empty list of models stands for none of its own.
fn is_unset(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(Map::is_empty)
}

impl Desk {
    /// When the budget starts anew, as it is shown.
    pub fn reset_at(&self, limits: &Map<String, Value>) -> Value {
        let allowance = Limits::of(limits).budget;
        let end = period::of(&allowance, self.clock.now_micros(), &period::serving()).end;
        end.map_or(Value::Null, |micros| iso(micros).into())
    }
}

/// LiteLLM's `litellm_budget_table`: null without a limit.
pub fn budget_table(desk: &Desk, own: &Map<String, Value>, named: Option<&Doc>) -> Value {
    let limits = effective(own, named);
    if limits.is_empty() && named.is_none() {
        return Value::Null;
    }
    let mut table = shown(&[LIMITS], &limits);
    table.insert(
        "budget_id".into(),
        own.get("budget_id").cloned().unwrap_or_default(),
    );
    table.insert("budget_reset_at".into(), desk.reset_at(&limits));
    Value::Object(table)
}

impl Desk {
    /// What accounts have spent, in the order asked for.
    pub async fn spent(&self, accounts: &[Account]) -> Result<Vec<Balance>> {
        let mut balances = Vec::with_capacity(accounts.len());
        for part in accounts.chunks(ACCOUNTS) {
            balances.extend(self.store.balances(part).await?);
        }
        Ok(balances)
    }

    /// Budgets by their ids.
    pub async fn budgets<'a>(&self, ids: impl Iterator<Item = &'a str>) -> Result<BTreeMap<String, Doc>> {
        let ids: BTreeSet<&str> = ids.collect();
        if ids.is_empty() {
            return Ok(BTreeMap::new());
        }
        let found = self
            .by_ids(Table::Budget, ids.into_iter().map(Into::into).collect())
            .await?;
        Ok(found.into_iter().map(|d| (d.id.clone(), d)).collect())
    }

    /// Those of these objects that are there, in no order.
    pub async fn by_ids(&self, table: Table, ids: Vec<String>) -> Result<Vec<Doc>> {
        let mut docs = Vec::new();
        for part in ids.chunks(ACCOUNTS) {
            let filter = DocFilter {
                ids: Some(part.to_vec()),
                page: Page {
                    limit: ACCOUNTS as u32,
                    offset: 0,
                },
                ..DocFilter::default()
            };
            docs.extend(self.store.documents(table, &filter).await?.docs);
        }
        Ok(docs)
    }

    /// Objects as answers show them.
    pub async fn rows(&self, sort: &Sort, docs: &[Doc]) -> Result<Vec<Map<String, Value>>> {
        let members: usize = docs.iter().map(|d| super::members::list(&d.fields).len()).sum();
        if members > MOST_MEMBERS_SHOWN {
            let message =
                format!("These have {members} members together, too many for one answer. Ask for fewer.");
            return Err(wrong_value("page_size", message).into());
        }
        let balances = match sort.table.kind() {
            Some(kind) => {
                let accounts: Vec<Account> = docs.iter().map(|d| Account::new(kind, d.id.as_str())).collect();
                self.spent(&accounts).await?
            }
            None => Vec::new(),
        };
        let named = docs.iter().filter_map(|d| text(&d.fields, "budget_id"));
        let budgets = self.budgets(named).await?;
        let row = |(i, doc): (usize, &Doc)| {
            let named = text(&doc.fields, "budget_id").and_then(|id| budgets.get(id));
            let mut row = shown(sort.fields, &doc.fields);
            terms::tell_not_enforced(&mut row);
            let limits = effective(&doc.fields, named);
            row.extend([
                (sort.id.to_string(), doc.id.as_str().into()),
                ("created_at".into(), iso(doc.created_at_micros).into()),
                ("updated_at".into(), iso(doc.updated_at_micros).into()),
                ("created_by".into(), stored(doc, "created_by")),
                ("updated_by".into(), stored(doc, "updated_by")),
                ("budget_reset_at".into(), self.reset_at(&limits)),
            ]);
            if sort.table.kind().is_some() {
                let spent = balances.get(i).map_or(0, |b| b.period_nanos);
                let total = balances.get(i).map_or(0, |b| b.total_nanos);
                row.extend([
                    ("spend".to_string(), json!(Nanos(spent))),
                    ("total_spend".into(), json!(Nanos(total))),
                    ("model_spend".into(), json!({})),
                    (
                        "litellm_budget_table".into(),
                        budget_table(self, &doc.fields, named),
                    ),
                ]);
            }
            row
        };
        Ok(docs.iter().enumerate().map(row).collect())
    }

    pub async fn row(&self, sort: &Sort, doc: &Doc) -> Result<Map<String, Value>> {
        let rows = self.rows(sort, std::slice::from_ref(doc)).await?;
        Ok(rows.into_iter().next().unwrap_or_default())
    }
}

/// A field as it is kept.
pub fn stored(doc: &Doc, name: &str) -> Value {
    doc.fields.get(name).cloned().unwrap_or_default()
}

/// A text that is kept; empty is none.
pub fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    fields.get(name).and_then(Value::as_str).filter(|t| !t.is_empty())
}

/// An id of one's own choice, or a new one.
pub fn id_or_new(fields: &Fields, name: &str) -> Result<String> {
    let own = fields.id(name)?;
    Ok(own.unwrap_or_else(|| uuid::Uuid::new_v4().to_string()))
}

/// An id that must be there.
pub fn id(fields: &Fields, name: &str) -> Result<String> {
    let text = fields.required(name)?;
    fields::check_line(name, text)?;
    Ok(text.to_string())
}

/// Ids that must be there, each once. One alone may stand there as a text.
pub fn ids(given: &Fields, name: &str, most: usize) -> Result<Vec<String>> {
    let list = match given.value(name) {
        Some(Value::String(one)) => vec![one.clone()],
        _ => given.texts(name)?,
    };
    if list.is_empty() {
        return Err(missing(name, format!("The field '{name}' is required: a list of ids.")).into());
    }
    if list.len() > most {
        return Err(wrong_value(name, format!("At most {most} of '{name}' go into one call.")).into());
    }
    let mut once = BTreeSet::new();
    for id in &list {
        fields::check_line(name, id)?;
    }
    Ok(list.into_iter().filter(|id| once.insert(id.clone())).collect())
}

/// A list with its page, in LiteLLM's shape.
pub fn paged(name: &str, rows: Vec<Value>, total: u64, slice: super::ask::Slice) -> Value {
    let mut body = json!({
        "total": total,
        "total_count": total,
        "page": slice.page,
        "page_size": slice.size,
        "total_pages": total.div_ceil(slice.size.max(1)),
    });
    if let Value::Object(body) = &mut body {
        body.insert(name.into(), rows.into());
    }
    body
}

/// The order that a list is asked for in: by one of these columns.
pub fn sorted(
    params: &super::ask::Params,
    columns: &[&'static str],
) -> Result<Option<(&'static str, crate::store::Order)>> {
    use crate::store::Order;
    let order = match params.text("sort_order")? {
        None | Some("asc") => Order::Rising,
        Some("desc") => Order::Falling,
        Some(_) => return Err(wrong_value("sort_order", "'sort_order' must be asc or desc.").into()),
    };
    match params.text("sort_by")? {
        None => Ok(None),
        Some(asked) => match columns.iter().find(|c| **c == asked) {
            Some(column) => Ok(Some((column, order))),
            None => {
                let message = format!("'sort_by' must be one of {}.", columns.join(", "));
                Err(wrong_value("sort_by", message).into())
            }
        },
    }
}
