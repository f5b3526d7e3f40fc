//! Budgets: limits under a name, which others refer to by `budget_id`.

use super::Desk;
use super::ask::Params;
use super::audit::Entry;
use super::error::{Result, missing, wrong_value};
use super::fields::{Field, Fields, Kind};
use super::objects::{self, LIMITS, Sort, Task, stored};
use super::rights::Actor;
use super::routes::{Route, Who};
use crate::store::{Change, Doc, DocFilter, KeyFilter, MAX_ROWS, Page, Table};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing::on;
use serde_json::{Value, json};
use std::sync::Arc;

/// Budgets that one call names.
const MOST_NAMED: usize = 1_000;

pub const BUDGET: Sort = Sort {
    table: Table::Budget,
    id: "budget_id",
    fields: &[LIMITS],
};

const NAMED: &[Field] = &[Field::required("budget_id", Kind::Id, "Which budget")];

pub const ROUTES: &[Route] = &[
    Route {
        group: "budgets",
        summary: "Make a budget that others can name",
        body: &[
            &[Field::new("budget_id", Kind::Id, "Its id; none = a new one")],
            LIMITS,
        ],
        answer: "Budget",
        ..Route::post(&["/budget/new"], |m| on(m, new))
    },
    Route {
        group: "budgets",
        who: Who::Reader,
        summary: "Budgets by their ids",
        body: &[&[Field::required("budgets", Kind::Texts, "Which")]],
        answer: "Budgets",
        ..Route::post(&["/budget/info"], |m| on(m, info))
    },
    Route {
        group: "budgets",
        who: Who::Overseer,
        summary: "All budgets, newest first",
        query: objects::PAGED,
        answer: "Budgets",
        ..Route::get(&["/budget/list"], |m| on(m, list))
    },
    Route {
        group: "budgets",
        who: Who::Overseer,
        summary: "A budget's fields, each with its meaning",
        query: NAMED,
        answer: "BudgetSettings",
        ..Route::get(&["/budget/settings"], |m| on(m, settings))
    },
    Route {
        group: "budgets",
        summary: "Change a budget, for all who name it",
        body: &[NAMED, LIMITS],
        answer: "Budget",
        ..Route::post(&["/budget/update"], |m| on(m, update))
    },
    Route {
        group: "budgets",
        summary: "Delete a budget that nobody names any more",
        body: &[&[Field::required("id", Kind::Id, "Which budget")]],
        answer: "Budget",
        ..Route::post(&["/budget/delete"], |m| on(m, delete))
    },
];

async fn rows(desk: &Desk, docs: &[Doc]) -> Result<Vec<Value>> {
    let rows = desk.rows(&BUDGET, docs).await?;
    Ok(rows.into_iter().map(Value::Object).collect())
}

async fn row(desk: &Desk, doc: &Doc) -> Result<Value> {
    Ok(Value::Object(desk.row(&BUDGET, doc).await?))
}

async fn new(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_new).await.map(Json)
}

async fn try_new(task: Arc<Task>) -> Result<Value> {
    let mut doc = task.blank(objects::id_or_new(&task.fields, "budget_id")?);
    task.keep(BUDGET.fields, &mut doc)?;
    let change = Change::Put {
        table: Table::Budget,
        doc: &doc,
    };
    let told = Entry::created("budget", doc.id.as_str(), Value::Object(doc.fields.clone()));
    let written = task.desk.write(&task.actor, &[change], vec![told]).await;
    written.map_err(|e| BUDGET.refused(e, &doc.id))?;
    row(&task.desk, &doc).await
}

/// Who is no overseer sees the budget that its own key, user or team names.
async fn info(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let fields = Fields::read(body).await?;
    let ids = objects::ids(&fields, "budgets", MOST_NAMED)?;
    if !actor.sees_all() {
        let own = actor.holder().map(|h| {
            let parties = h.parties().filter_map(|p| p.text("budget_id"));
            parties.chain(h.text("budget_id")).collect::<Vec<_>>()
        });
        let own = own.unwrap_or_default();
        if !ids.iter().all(|id| own.contains(&id.as_str())) {
            return Err(actor.not_admin());
        }
    }
    let docs = desk.by_ids(Table::Budget, ids).await?;
    Ok(Json(rows(&desk, &docs).await?.into()))
}

async fn list(_: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let most = u64::from(MAX_ROWS);
    let slice = params.page(&["page_size", "size"], most, most)?;
    let filter = DocFilter {
        page: Page {
            limit: slice.size as u32,
            offset: slice.offset,
        },
        ..DocFilter::default()
    };
    let docs = desk.store.documents(Table::Budget, &filter).await?.docs;
    Ok(Json(rows(&desk, &docs).await?.into()))
}

/// `GET /budget/settings`: what LiteLLM's page for budgets is made of.
async fn settings(_: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let Some(id) = params.text("budget_id")? else {
        return Err(missing("budget_id", "The parameter 'budget_id' is required.").into());
    };
    let doc = BUDGET.find(&desk, id).await?;
    let fields = LIMITS.iter().map(|f| {
        let kind = match f.kind {
            Kind::Money => "Float",
            Kind::Count => "Integer",
            Kind::Period => "String",
            _ => "Object",
        };
        let value = stored(&doc, f.name);
        json!({
            "field_name": f.name,
            "field_type": kind,
            "field_description": f.note,
            "stored_in_db": !value.is_null(),
            "field_value": value,
            "field_default_value": null,
        })
    });
    Ok(Json(fields.collect::<Vec<_>>().into()))
}

async fn update(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_update).await.map(Json)
}

async fn try_update(task: Arc<Task>) -> Result<Value> {
    let id = objects::id(&task.fields, "budget_id")?;
    let mut doc = BUDGET.find(&task.desk, &id).await?;
    let before = Value::Object(doc.fields.clone());
    task.keep(BUDGET.fields, &mut doc)?;
    task.touch(&mut doc);
    let change = Change::Put {
        table: Table::Budget,
        doc: &doc,
    };
    let told = Entry::updated("budget", id, before, Value::Object(doc.fields.clone()));
    task.desk.write(&task.actor, &[change], vec![told]).await?;
    row(&task.desk, &doc).await
}

async fn delete(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_delete).await.map(Json)
}

/// Who names a budget that is gone would have no limits any more, so it stays as long as it is named.
async fn try_delete(task: Arc<Task>) -> Result<Value> {
    let name = if task.fields.has("id") { "id" } else { "budget_id" };
    let id = objects::id(&task.fields, name)?;
    let doc = BUDGET.find(&task.desk, &id).await?;
    let named_by = |how_many: u64, what: &str, first: &str| {
        let message = format!(
            "The budget {id} is named by {how_many} of kind {what}, as {first}. Give them other limits first."
        );
        wrong_value(name, message)
    };
    let one = Page { limit: 1, offset: 0 };
    let keys = KeyFilter {
        budget_id: Some(id.clone()),
        ..KeyFilter::default()
    };
    let keys = task.desk.store.list_keys(&keys, one).await?;
    if let Some(first) = keys.keys.first() {
        return Err(named_by(keys.total, "key", &first.hash.hex()).into());
    }
    let itself = DocFilter {
        equal: vec![("budget_id", id.clone())],
        page: one,
        ..DocFilter::default()
    };
    let in_team = DocFilter {
        among: vec![("members_with_roles", "budget_id", id.clone())],
        page: one,
        ..DocFilter::default()
    };
    for (table, what, filter) in [
        (Table::User, "user", &itself),
        (Table::Team, "team", &itself),
        (Table::Team, "team with such members", &in_team),
        (Table::Organization, "organization", &itself),
        (Table::EndUser, "customer", &itself),
        (Table::Tag, "tag", &itself),
    ] {
        let found = task.desk.store.documents(table, filter).await?;
        if let Some(first) = found.docs.first() {
            return Err(named_by(found.total, what, &first.id).into());
        }
    }
    let row = row(&task.desk, &doc).await?;
    let ids = [id];
    let change = Change::Delete {
        table: Table::Budget,
        ids: &ids,
    };
    let told = Entry::deleted("budget", doc.id.as_str(), Value::Object(doc.fields.clone()));
    task.desk.write(&task.actor, &[change], vec![told]).await?;
    Ok(row)
}
