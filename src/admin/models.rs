//! Models that are kept in the database beside the config's: added, changed and deleted while calls go on.
//! Each is checked by building it exactly as an entry of the config's `model_list`, and is in use here when
//! the answer comes; other replicas hear of it from the store. What they look like is in
//! [`model_info`](super::model_info).

use super::audit::Entry;
use super::error::{Result, missing, not_found, wrong_value};
use super::fields::{Field, Fields, Kind};
use super::model_info;
use super::rights::Actor;
use super::routes::{Route, Verb};
use super::{Desk, settle};
use crate::conf::ModelEntry;
use crate::reload::{MOST_STORED, Origin};
use crate::store::seal::Seal;
use crate::store::{Change, Doc, DocFilter, Page, Table};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::routing::on;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// For a written model to be in use here. It is written whatever happens, so this is no reason to fail.
const PATIENCE: Duration = Duration::from_secs(10);

/// Variables that hold secrets of the gateway's own: no upstream gets one.
const OWN_SECRETS: [&str; 4] = ["MASTER_KEY", "SALT_KEY", "DATABASE_URL", "REDIS_"];

pub const ROUTES: &[Route] = &[
    Route {
        group: "models",
        summary: "Add a model to the database",
        body: &[
            &[
                Field::required("model_name", Kind::Id, "The name that clients call it by"),
                Field::required("litellm_params", Kind::Object, "As in the config's model_list"),
            ],
            ABOUT,
        ],
        answer: "ModelRow",
        ..Route::post(&["/model/new"], |m| on(m, create))
    },
    Route {
        group: "models",
        summary: "Change a model of the database; what is not named stays",
        body: &[CHANGED, ABOUT],
        answer: "ModelRow",
        ..Route::post(&["/model/update"], |m| on(m, update))
    },
    Route {
        group: "models",
        summary: "Change a model of the database; what is not named stays",
        body: &[CHANGED, ABOUT],
        answer: "ModelRow",
        ..Route::new(Verb::Patch, &["/model/{id}/update"], |m| on(m, patch))
    },
    Route {
        group: "models",
        summary: "Delete a model of the database",
        body: &[&[Field::required("id", Kind::Id, "Its model_info.id")]],
        answer: "Message",
        ..Route::post(&["/model/delete"], |m| on(m, delete))
    },
];

const ABOUT: &[Field] = &[Field::new(
    "model_info",
    Kind::Settings,
    "Its id and what else is told about it",
)];

const CHANGED: &[Field] = &[
    Field::new("model_name", Kind::Id, "The name that clients call it by"),
    Field::new(
        "litellm_params",
        Kind::Settings,
        "What of them changes; null takes one away",
    ),
];

/// What a body says of a model.
#[derive(Clone)]
struct Wanted {
    id: Option<String>,
    name: Option<String>,
    params: Map<String, Value>,
    info: Map<String, Value>,
}

impl Wanted {
    fn read(fields: &Fields) -> Result<Self> {
        let params = fields.object("litellm_params")?;
        let mut info = fields.object("model_info")?;
        check_params(&params)?;
        let id = match info.remove("id") {
            None | Some(Value::Null) => None,
            Some(id) => {
                Kind::Id.read("model_info.id", &id)?;
                id.as_str().filter(|t| !t.is_empty()).map(str::to_string)
            }
        };
        // What the gateway says of it is not for others to say.
        for ours in ["db_model", "created_at", "created_by", "updated_at", "updated_by"] {
            info.remove(ours);
        }
        Ok(Self {
            id,
            name: fields.id("model_name")?,
            params,
            info,
        })
    }
}

/// Text that only looks sealed would be opened as somebody else's, and the gateway's own secrets are sent
/// nowhere.
fn check_params(params: &Map<String, Value>) -> Result<()> {
    fn texts(value: &Value, judge: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
        match value {
            Value::String(text) => judge(text),
            Value::Array(list) => list.iter().try_for_each(|v| texts(v, judge)),
            Value::Object(map) => map.iter().try_for_each(|(name, v)| {
                judge(name)?;
                texts(v, judge)
            }),
            _ => Ok(()),
        }
    }
    for (name, value) in params {
        let param = format!("litellm_params.{name}");
        texts(value, &mut |text| {
            if Seal::is_sealed(text) {
                return Err(
                    wrong_value(&param, format!("'{param}' is sealed. Give its plain value.")).into(),
                );
            }
            let named = text.contains("os.environ/") || text.contains("${");
            if named && OWN_SECRETS.iter().any(|own| text.contains(own)) {
                let message = format!("'{param}' names a variable that holds a secret of the gateway's own.");
                return Err(wrong_value(&param, message).into());
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// `POST /model/new`.
async fn create(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let fields = Fields::read(body).await?;
    fields.required("model_name")?;
    if fields.value("litellm_params").is_none() {
        return Err(missing("litellm_params", "The field 'litellm_params' is required.").into());
    }
    let mut wanted = Wanted::read(&fields)?;
    wanted.id.get_or_insert_with(|| Uuid::new_v4().to_string());
    let made = settle(move || {
        let (desk, actor, wanted) = (Arc::clone(&desk), actor.clone(), wanted.clone());
        async move { add(&desk, &actor, wanted).await }
    });
    Ok(Json(made.await?))
}

async fn add(desk: &Desk, actor: &Actor, wanted: Wanted) -> Result<Value> {
    let id = wanted.id.unwrap_or_default();
    let served = desk.reload.snapshot();
    if served.models.entry(&id).is_some_and(|e| !e.written.stored) {
        let message = format!("Model with id={id} is in the config. Choose another id.");
        return Err(wrong_value("model_info.id", message).into());
    }
    let one = DocFilter {
        page: Page { limit: 1, offset: 0 },
        ..DocFilter::default()
    };
    if desk.store.documents(Table::Model, &one).await?.total >= MOST_STORED as u64 {
        let message = format!("The database holds {MOST_STORED} models, which is the most it may.");
        return Err(wrong_value("model_name", message).into());
    }
    let now = desk.clock.now_micros();
    let mut fields = Map::new();
    fields.insert("model_name".into(), json!(wanted.name));
    fields.insert("litellm_params".into(), wanted.params.into());
    fields.insert("model_info".into(), wanted.info.into());
    let by = json!(actor.user_id());
    fields.insert("created_by".into(), by.clone());
    fields.insert("updated_by".into(), by);
    let doc = Doc {
        id,
        fields,
        version: 0,
        created_at_micros: now,
        updated_at_micros: now,
    };
    put(desk, actor, doc, None).await
}

/// `POST /model/update`: the id stands in `model_info.id`.
async fn update(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let fields = Fields::read(body).await?;
    let wanted = Wanted::read(&fields)?;
    let named = match &wanted.id {
        Some(id) => Some(id.clone()),
        None => fields.id("id")?.or(fields.id("model_id")?),
    };
    let Some(id) = named else {
        return Err(missing("model_info.id", "The field 'model_info.id' is required.").into());
    };
    change(desk, actor, id, wanted, 400).await
}

/// `PATCH /model/{id}/update`.
async fn patch(
    actor: Actor,
    Path(id): Path<String>,
    State(desk): State<Arc<Desk>>,
    body: Body,
) -> Result<Json<Value>> {
    super::fields::check_line("id", &id)?;
    let wanted = Wanted::read(&Fields::read(body).await?)?;
    if wanted.id.as_ref().is_some_and(|other| *other != id) {
        return Err(wrong_value("model_info.id", "A model keeps its id.").into());
    }
    change(desk, actor, id, wanted, 404).await
}

async fn change(
    desk: Arc<Desk>,
    actor: Actor,
    id: String,
    wanted: Wanted,
    unknown: u16,
) -> Result<Json<Value>> {
    let changed = settle(move || {
        let (desk, actor, id, wanted) = (Arc::clone(&desk), actor.clone(), id.clone(), wanted.clone());
        async move {
            let Some(mut doc) = desk.store.document(Table::Model, &id).await? else {
                let served = desk.reload.snapshot();
                return Err(if served.models.entry(&id).is_some() {
                    let message =
                        "Can't edit model. Model in config. Store model in db via `/model/new`. to edit.";
                    wrong_value("model_info.id", message).into()
                } else if unknown == 404 {
                    not_found("model_id", format!("Model {id} not found on proxy.")).into()
                } else {
                    wrong_value("model_info.id", format!("Model with id={id} not found in db")).into()
                });
            };
            let before = shown(&desk.reload.check(&doc).await, &doc);
            if let Some(name) = wanted.name {
                doc.fields.insert("model_name".into(), name.into());
            }
            merge(&mut doc.fields, "litellm_params", wanted.params);
            merge(&mut doc.fields, "model_info", wanted.info);
            doc.fields.insert("updated_by".into(), json!(actor.user_id()));
            // Two changes within one microsecond are two.
            doc.updated_at_micros = desk.clock.now_micros().max(doc.updated_at_micros + 1);
            put(&desk, &actor, doc, Some(before)).await
        }
    });
    Ok(Json(changed.await?))
}

/// What is named takes the place of what was there; null takes it away.
fn merge(fields: &mut Map<String, Value>, name: &str, changes: Map<String, Value>) {
    let section = fields.entry(name).or_insert_with(|| json!({}));
    if !section.is_object() {
        *section = json!({});
    }
    if let Value::Object(section) = section {
        for (name, value) in changes {
            match value {
                Value::Null => {
                    section.remove(&name);
                }
                value => {
                    section.insert(name, value);
                }
            }
        }
    }
}

/// Checks, seals, writes and takes into use. `before` is what is told of it as it was.
async fn put(desk: &Desk, actor: &Actor, mut doc: Doc, before: Option<Value>) -> Result<Value> {
    let entry = desk.reload.check(&doc).await;
    if let Err(why) = &entry {
        return Err(wrong_value("litellm_params", format!("This model cannot be used: {why}")).into());
    }
    let after = shown(&entry, &doc);
    if let Some(params) = doc.fields.get_mut("litellm_params") {
        seal(params, desk.reload.seal());
    }
    let line = match before {
        None => Entry::created("model", doc.id.clone(), after.clone()),
        Some(before) => Entry::updated("model", doc.id.clone(), before, after.clone()),
    };
    let put = Change::Put {
        table: Table::Model,
        doc: &doc,
    };
    desk.write(actor, &[put], vec![line]).await?;
    let when = entry.ok().and_then(|e| e.info.all.get("updated_at").cloned());
    let in_use = take_into_use(desk, |desk| {
        let served = desk.reload.snapshot();
        let there = served.models.entry(&doc.id);
        there.is_some_and(|e| e.written.stored && e.written.info.all.get("updated_at") == when.as_ref())
    });
    let mut answer = after;
    answer["in_use"] = in_use.await.into();
    Ok(answer)
}

/// Whether what was written serves here now.
async fn take_into_use(desk: &Desk, so: impl Fn(&Desk) -> bool) -> bool {
    let reload = Arc::clone(&desk.reload);
    // Its own task: it goes on when the wait for it ends.
    let work = tokio::spawn(async move { reload.apply(Origin::Store).await });
    let _ = tokio::time::timeout(PATIENCE, work).await;
    let so = so(desk);
    if !so {
        log::warn!("event=model_not_in_use cause=\"the store's models could not be read; they will be\"");
    }
    so
}

/// Seals every text, wherever it stands.
fn seal(value: &mut Value, with: &Seal) {
    match value {
        Value::String(text) if !Seal::is_sealed(text) => *text = with.seal(text),
        Value::Array(list) => list.iter_mut().for_each(|v| seal(v, with)),
        Value::Object(map) => map.values_mut().for_each(|v| seal(v, with)),
        _ => {}
    }
}

/// The answer's row. A model that cannot be built shows little.
fn shown(entry: &std::result::Result<ModelEntry, String>, doc: &Doc) -> Value {
    let text = |name: &str| doc.fields.get(name).cloned().unwrap_or_default();
    let (params, mut info) = match entry {
        Ok(entry) => (
            model_info::params(entry, true),
            model_info::harmless(entry.info.all.clone()),
        ),
        Err(_) => (Map::new(), Map::new()),
    };
    info.insert("id".into(), json!(doc.id));
    info.insert("db_model".into(), true.into());
    json!({
        "model_id": doc.id,
        "model_name": text("model_name"),
        "litellm_params": params,
        "model_info": info,
        "created_at": super::shapes::iso(doc.created_at_micros),
        "created_by": text("created_by"),
        "updated_at": super::shapes::iso(doc.updated_at_micros),
        "updated_by": text("updated_by"),
    })
}

/// `POST /model/delete`.
async fn delete(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let fields = Fields::read(body).await?;
    fields.required("id")?;
    let id = fields.id("id")?.unwrap_or_default();
    let gone = settle(move || {
        let (desk, actor, id) = (Arc::clone(&desk), actor.clone(), id.clone());
        async move {
            let Some(doc) = desk.store.document(Table::Model, &id).await? else {
                // LiteLLM's sentence, for the config's models as well.
                return Err(wrong_value("id", format!("Model with id={id} not found in db")).into());
            };
            let before = shown(&desk.reload.check(&doc).await, &doc);
            let ids = [id.clone()];
            let delete = Change::Delete {
                table: Table::Model,
                ids: &ids,
            };
            let line = Entry::deleted("model", id.clone(), before);
            desk.write(&actor, &[delete], vec![line]).await?;
            take_into_use(&desk, |desk| {
                let served = desk.reload.snapshot();
                served.models.entry(&id).is_none_or(|e| !e.written.stored)
            })
            .await;
            Ok(json!({"message": format!("Model: {id} deleted successfully")}))
        }
    });
    Ok(Json(gone.await?))
}
