//! Tags: what calls are counted under, with limits of their own.

use super::Desk;
use super::ask::Params;
use super::audit::Entry;
use super::error::Result;
use super::fields::{Field, Fields, Kind};
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

/// Tags that one call names.
const MOST_NAMED: usize = 1_000;

pub const TAG: Sort = Sort {
    table: Table::Tag,
    id: "name",
    fields: &[PLAIN, LIMITS, NAMED_BUDGET],
};

const PLAIN: &[Field] = &[
    Field::new("description", Kind::Text, "What it stands for"),
    Field::new("models", Kind::List, "Kept: deployments that carry the tag"),
    Field::new("model_info", Kind::Object, "Kept"),
    Field::new("blocked", Kind::Flag, "Calls under it are refused"),
];

const NAMED: &[Field] = &[Field::required("name", Kind::Id, "Which tag")];

pub const ROUTES: &[Route] = &[
    Route {
        group: "tags",
        summary: "Make a tag",
        body: &[NAMED, PLAIN, LIMITS, NAMED_BUDGET],
        answer: "TagChanged",
        ..Route::post(&["/tag/new"], |m| on(m, new))
    },
    Route {
        group: "tags",
        who: Who::Overseer,
        summary: "Tags by their names",
        body: &[&[Field::required("names", Kind::Texts, "Which")]],
        answer: "TagsByName",
        ..Route::post(&["/tag/info"], |m| on(m, info))
    },
    Route {
        group: "tags",
        who: Who::Overseer,
        summary: "All tags, newest first",
        query: PAGED,
        answer: "Tags",
        ..Route::get(&["/tag/list"], |m| on(m, list))
    },
    Route {
        group: "tags",
        summary: "Change a tag",
        body: &[NAMED, PLAIN, LIMITS, NAMED_BUDGET],
        answer: "TagChanged",
        ..Route::post(&["/tag/update"], |m| on(m, update))
    },
    Route {
        group: "tags",
        summary: "Delete a tag and its limits",
        body: &[NAMED],
        answer: "Message",
        ..Route::post(&["/tag/delete"], |m| on(m, delete))
    },
];

async fn row(desk: &Desk, doc: &Doc) -> Result<Map<String, Value>> {
    let mut row = desk.row(&TAG, doc).await?;
    row.insert("tag_name".into(), doc.id.as_str().into());
    Ok(row)
}

async fn rows(desk: &Desk, docs: &[Doc]) -> Result<Vec<(String, Value)>> {
    let rows = desk.rows(&TAG, docs).await?;
    let named = rows.into_iter().zip(docs).map(|(mut row, doc)| {
        row.insert("tag_name".into(), doc.id.as_str().into());
        (doc.id.clone(), Value::Object(row))
    });
    Ok(named.collect())
}

async fn new(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_new).await.map(Json)
}

async fn try_new(task: Arc<Task>) -> Result<Value> {
    let mut doc = task.blank(objects::id(&task.fields, "name")?);
    task.keep(TAG.fields, &mut doc)?;
    task.check_budget().await?;
    let change = Change::Put {
        table: Table::Tag,
        doc: &doc,
    };
    let told = Entry::created("tag", doc.id.as_str(), Value::Object(doc.fields.clone()));
    let written = task.desk.write(&task.actor, &[change], vec![told]).await;
    written.map_err(|e| TAG.refused(e, &doc.id))?;
    Ok(json!({
        "message": format!("Tag {} created successfully", doc.id),
        "tag": row(&task.desk, &doc).await?,
    }))
}

/// `POST /tag/info`: an object from names to tags, with those that there are.
async fn info(_: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let fields = Fields::read(body).await?;
    let names = objects::ids(&fields, "names", MOST_NAMED)?;
    let docs = desk.by_ids(Table::Tag, names.clone()).await?;
    if let (true, Some(name)) = (docs.is_empty(), names.first()) {
        return Err(TAG.none(name));
    }
    let found: Map<String, Value> = rows(&desk, &docs).await?.into_iter().collect();
    Ok(Json(Value::Object(found)))
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
    let docs = desk.store.documents(Table::Tag, &filter).await?.docs;
    let rows = rows(&desk, &docs).await?.into_iter().map(|(_, row)| row);
    Ok(Json(rows.collect::<Vec<_>>().into()))
}

async fn update(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_update).await.map(Json)
}

async fn try_update(task: Arc<Task>) -> Result<Value> {
    let name = objects::id(&task.fields, "name")?;
    let mut doc = TAG.find(&task.desk, &name).await?;
    let before = Value::Object(doc.fields.clone());
    task.keep(TAG.fields, &mut doc)?;
    task.check_budget().await?;
    task.touch(&mut doc);
    let change = Change::Put {
        table: Table::Tag,
        doc: &doc,
    };
    let told = Entry::updated("tag", name.as_str(), before, Value::Object(doc.fields.clone()));
    task.desk.write(&task.actor, &[change], vec![told]).await?;
    Ok(json!({
        "message": format!("Tag {name} updated successfully"),
        "tag": row(&task.desk, &doc).await?,
    }))
}

async fn delete(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_delete).await.map(Json)
}

async fn try_delete(task: Arc<Task>) -> Result<Value> {
    let name = objects::id(&task.fields, "name")?;
    let doc = TAG.find(&task.desk, &name).await?;
    let ids = [doc.id.clone()];
    let change = Change::Delete {
        table: Table::Tag,
        ids: &ids,
    };
    let told = Entry::deleted("tag", name.as_str(), Value::Object(doc.fields));
    task.desk.write(&task.actor, &[change], vec![told]).await?;
    Ok(json!({"message": format!("Tag {name} deleted successfully")}))
}
