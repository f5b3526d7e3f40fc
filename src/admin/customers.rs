//! Customers: the end users whom callers name in `user`, with limits of their own.

use super::Desk;
use super::ask::Params;
use super::audit::Entry;
use super::error::{Result, missing};
use super::fields::{Field, Kind};
use super::objects::{self, LIMITS, NAMED_BUDGET, PAGED, Sort, Task};
use super::rights::Actor;
use super::routes::{Route, Who};
use crate::store::{Change, Doc, DocFilter, MAX_ROWS, Page, Table};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing::on;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Customers that one call names.
const MOST_NAMED: usize = 1_000;

pub const CUSTOMER: Sort = Sort {
    table: Table::EndUser,
    id: "user_id",
    fields: &[PLAIN, LIMITS, NAMED_BUDGET],
};

const PLAIN: &[Field] = &[
    Field::new("alias", Kind::Id, "What people call it"),
    Field::new(
        "blocked",
        Kind::Flag,
        "Its calls are refused until it is unblocked",
    ),
    Field::new("allowed_model_region", Kind::OneOf(&["eu", "us"]), "Kept"),
    Field::new("default_model", Kind::Id, "Kept"),
    Field::new("metadata", Kind::Object, "Whatever one likes"),
    Field::new("object_permission", Kind::Settings, "Kept"),
];

const NAMED: &[Field] = &[Field::required("user_id", Kind::Id, "Which customer")];
const MANY: &[Field] = &[Field::required("user_ids", Kind::Texts, "Which customers")];

pub const ROUTES: &[Route] = &[
    Route {
        group: "customers",
        summary: "Make a customer known before its first call",
        body: &[NAMED, PLAIN, LIMITS, NAMED_BUDGET],
        answer: "Customer",
        ..Route::post(&["/customer/new", "/end_user/new"], |m| on(m, new))
    },
    Route {
        group: "customers",
        who: Who::Overseer,
        summary: "A customer and what it spent",
        query: &[Field::required("end_user_id", Kind::Text, "Which customer")],
        answer: "Customer",
        ..Route::get(&["/customer/info", "/end_user/info"], |m| on(m, info))
    },
    Route {
        group: "customers",
        who: Who::Overseer,
        summary: "Customers that were made or blocked here, newest first",
        query: PAGED,
        answer: "Customers",
        ..Route::get(&["/customer/list", "/end_user/list"], |m| on(m, list))
    },
    Route {
        group: "customers",
        summary: "Change a customer",
        body: &[NAMED, PLAIN, LIMITS, NAMED_BUDGET],
        answer: "Customer",
        ..Route::post(&["/customer/update", "/end_user/update"], |m| on(m, update))
    },
    Route {
        group: "customers",
        summary: "Forget customers and their limits",
        body: &[MANY],
        answer: "CustomersDeleted",
        ..Route::post(&["/customer/delete", "/end_user/delete"], |m| on(m, delete))
    },
    Route {
        group: "customers",
        summary: "Refuse the calls of customers, known or not, until they are unblocked",
        body: &[MANY],
        answer: "CustomersBlocked",
        ..Route::post(&["/customer/block", "/end_user/block"], |m| on(m, block))
    },
    Route {
        group: "customers",
        summary: "Take the calls of blocked customers again",
        body: &[MANY],
        answer: "CustomersBlocked",
        ..Route::post(&["/customer/unblock", "/end_user/unblock"], |m| on(m, unblock))
    },
];

fn dressed(mut row: Map<String, Value>) -> Value {
    row.insert("object_permission_id".into(), Value::Null);
    Value::Object(row)
}

async fn row(desk: &Desk, doc: &Doc) -> Result<Value> {
    desk.row(&CUSTOMER, doc).await.map(dressed)
}

async fn rows(desk: &Desk, docs: &[Doc]) -> Result<Vec<Value>> {
    let rows = desk.rows(&CUSTOMER, docs).await?;
    Ok(rows.into_iter().map(dressed).collect())
}

async fn new(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_new).await.map(Json)
}

async fn try_new(task: Arc<Task>) -> Result<Value> {
    let mut doc = task.blank(objects::id(&task.fields, "user_id")?);
    task.keep(CUSTOMER.fields, &mut doc)?;
    task.check_budget().await?;
    let change = Change::Put {
        table: Table::EndUser,
        doc: &doc,
    };
    let told = Entry::created("customer", doc.id.as_str(), Value::Object(doc.fields.clone()));
    let written = task.desk.write(&task.actor, &[change], vec![told]).await;
    written.map_err(|e| CUSTOMER.refused(e, &doc.id))?;
    row(&task.desk, &doc).await
}

async fn info(_: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let Some(id) = params.text("end_user_id")? else {
        return Err(missing("end_user_id", "The parameter 'end_user_id' is required.").into());
    };
    let doc = CUSTOMER.find(&desk, id).await?;
    row(&desk, &doc).await.map(Json)
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
    let docs = desk.store.documents(Table::EndUser, &filter).await?.docs;
    Ok(Json(rows(&desk, &docs).await?.into()))
}

async fn update(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_update).await.map(Json)
}

async fn try_update(task: Arc<Task>) -> Result<Value> {
    let id = objects::id(&task.fields, "user_id")?;
    let mut doc = CUSTOMER.find(&task.desk, &id).await?;
    let before = Value::Object(doc.fields.clone());
    task.keep(CUSTOMER.fields, &mut doc)?;
    task.check_budget().await?;
    task.touch(&mut doc);
    let change = Change::Put {
        table: Table::EndUser,
        doc: &doc,
    };
    let told = Entry::updated("customer", id, before, Value::Object(doc.fields.clone()));
    task.desk.write(&task.actor, &[change], vec![told]).await?;
    row(&task.desk, &doc).await
}

async fn delete(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_delete).await.map(Json)
}

async fn try_delete(task: Arc<Task>) -> Result<Value> {
    let ids = objects::ids(&task.fields, "user_ids", MOST_NAMED)?;
    // All are looked for first: a slip of the pen deletes nobody.
    let docs = task.desk.by_ids(Table::EndUser, ids.clone()).await?;
    if let Some(id) = ids.iter().find(|id| !docs.iter().any(|d| d.id == **id)) {
        return Err(CUSTOMER.none(id));
    }
    let told = |d: &Doc| Entry::deleted("customer", d.id.as_str(), Value::Object(d.fields.clone()));
    let change = Change::Delete {
        table: Table::EndUser,
        ids: &ids,
    };
    let entries = docs.iter().map(told).collect();
    task.desk.write(&task.actor, &[change], entries).await?;
    Ok(json!({
        "deleted_customers": ids.len(),
        "message": format!("Successfully deleted customers with ids: {}", ids.join(", ")),
    }))
}

async fn block(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let rows = objects::run(actor, desk, body, |task| set_blocked(task, true)).await?;
    Ok(Json(json!({"blocked_users": rows})))
}

async fn unblock(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let rows = objects::run(actor, desk, body, |task| set_blocked(task, false)).await?;
    Ok(Json(json!({"unblocked_users": rows, "blocked_users": []})))
}

/// Somebody nobody has made can be blocked too: callers name whom they like.
async fn set_blocked(task: Arc<Task>, blocked: bool) -> Result<Vec<Value>> {
    let ids = objects::ids(&task.fields, "user_ids", MOST_NAMED)?;
    let there = task.desk.by_ids(Table::EndUser, ids.clone()).await?;
    let mut docs = Vec::with_capacity(ids.len());
    let mut entries = Vec::with_capacity(ids.len());
    for id in &ids {
        let found = there.iter().find(|d| d.id == *id).cloned();
        if found.is_none() && !blocked {
            return Err(CUSTOMER.none(id));
        }
        let mut doc = found.unwrap_or_else(|| task.blank(id.as_str()));
        let before = Value::Object(doc.fields.clone());
        doc.fields.insert("blocked".into(), blocked.into());
        task.touch(&mut doc);
        let action = if blocked { "blocked" } else { "unblocked" };
        let after = Value::Object(doc.fields.clone());
        entries.push(Entry::changed(action, "customer", id.as_str(), before, after));
        docs.push(doc);
    }
    let put = |doc| Change::Put {
        table: Table::EndUser,
        doc,
    };
    let changes: Vec<Change<'_>> = docs.iter().map(put).collect();
    let written = task.desk.write(&task.actor, &changes, entries).await;
    // One that somebody else made meanwhile is found when all this is begun again.
    written.map_err(|e| match e {
        crate::store::StoreError::Conflict { .. } => crate::store::StoreError::Stale("customer".into()),
        e => e,
    })?;
    rows(&task.desk, &docs).await
}
