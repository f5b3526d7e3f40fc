//! Where a team's calls are told of: `/team/{team_id}/callback` and `/team/{team_id}/disable_logging`, as
//! LiteLLM has them. What is kept stands in the team's `metadata.logging`, where `traces::project` reads it.

use super::reach::reach;
use super::show::row;
use super::{TEAM, save};
use crate::admin::error::{Result, missing, not_found, wrong_type, wrong_value};
use crate::admin::fields::{self, Field, Fields, Kind};
use crate::admin::objects::{self, Task};
use crate::admin::rights::Actor;
use crate::admin::routes::{Route, Verb, Who};
use crate::admin::{Desk, callbacks};
use crate::store::Doc;
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::routing::on;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Both mean the same here.
const CALLBACKS: [&str; 2] = ["langfuse", "langfuse_otel"];
const TYPES: &[&str] = &["success", "failure", "success_and_failure"];
const VARS: [&str; 5] = [
    "langfuse_public_key",
    "langfuse_secret_key",
    "langfuse_secret",
    "langfuse_host",
    "turn_off_message_logging",
];
/// What stands before the name of a variable, and which of these are looked up.
const VARIABLE: &str = "os.environ/";
const LOOKED_UP: &str = "os.environ/LANGFUSE_";
/// Callbacks of one team. No more are looked at.
const MOST: usize = 16;

pub const ROUTES: &[Route] = &[
    Route {
        group: "teams",
        who: Who::Manager,
        summary: "Tell a Langfuse project of a team's calls",
        body: &[&[
            Field::required("callback_name", Kind::Text, "langfuse or langfuse_otel"),
            Field::new(
                "callback_type",
                Kind::OneOf(TYPES),
                "Which calls; none = success_and_failure",
            ),
            Field::required(
                "callback_vars",
                Kind::Object,
                "langfuse_public_key, langfuse_secret_key, langfuse_host, turn_off_message_logging",
            ),
        ]],
        answer: "TeamCallbackAdded",
        ..Route::post(&["/team/{team_id}/callback"], |m| on(m, add))
    },
    Route {
        group: "teams",
        who: Who::Reader,
        summary: "Who is told of a team's calls, without secrets",
        answer: "TeamCallbacks",
        ..Route::get(&["/team/{team_id}/callback"], |m| on(m, show))
    },
    Route {
        group: "teams",
        who: Who::Manager,
        summary: "Take a team's callbacks of this name away",
        answer: "TeamCallbacks",
        ..Route::new(Verb::Delete, &["/team/{team_id}/callback/{callback_name}"], |m| {
            on(m, remove)
        })
    },
    Route {
        group: "teams",
        who: Who::Manager,
        summary: "Tell nobody of a team's calls until a callback is added",
        answer: "TeamCallbacks",
        ..Route::post(&["/team/{team_id}/disable_logging"], |m| on(m, disable))
    },
];

/// A team whose callbacks the actor may change, as it was and as it is to become.
async fn open(task: &Task, team_id: &str) -> Result<(Doc, Doc)> {
    fields::check_line("team_id", team_id)?;
    let team = TEAM.find(&task.desk, team_id).await?;
    reach(&task.desk, &task.actor, &team).await?;
    Ok((team.clone(), team))
}

/// A team's `metadata`; empty where there is none.
fn metadata(team: &Doc) -> Map<String, Value> {
    let there = team.fields.get("metadata").and_then(Value::as_object);
    there.cloned().unwrap_or_default()
}

/// The entries under `logging`.
fn entries(metadata: &Map<String, Value>) -> Vec<Value> {
    let list = metadata.get("logging").and_then(Value::as_array);
    list.cloned().unwrap_or_default()
}

fn named<'a>(entry: &'a Value, field: &str) -> &'a str {
    entry.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// `POST /team/{team_id}/callback`.
async fn add(
    actor: Actor,
    Path(team_id): Path<String>,
    State(desk): State<Arc<Desk>>,
    body: Body,
) -> Result<Json<Value>> {
    let fields = Fields::read(body).await?;
    let attempt = move |task| try_add(task, team_id.clone());
    objects::run_on(actor, desk, fields, attempt).await.map(Json)
}

async fn try_add(task: Arc<Task>, team_id: String) -> Result<Value> {
    let (before, mut team) = open(&task, &team_id).await?;
    let name = task.fields.required("callback_name")?;
    if !CALLBACKS.contains(&name) {
        let message = format!("'callback_name' must be one of {}.", CALLBACKS.join(", "));
        return Err(wrong_value("callback_name", message).into());
    }
    let kind = match task.fields.text("callback_type")? {
        None => "success_and_failure",
        Some(kind) if TYPES.contains(&kind) => kind,
        Some(_) => {
            let message = format!("'callback_type' must be one of {}.", TYPES.join(", "));
            return Err(wrong_value("callback_type", message).into());
        }
    };
    let vars = vars(&task.fields)?;
    let mut metadata = metadata(&team);
    let mut list = entries(&metadata);
    let same = |e: &Value| named(e, "callback_name") == name && named(e, "callback_type") == kind;
    if list.iter().any(same) {
        let message = format!(
            "callback_name = {name} already exists in team_callback_settings, for team_id = {team_id} and event = {kind}"
        );
        return Err(wrong_value("callback_name", message).into());
    }
    if list.len() >= MOST {
        let message = format!("A team has at most {MOST} callbacks.");
        return Err(wrong_value("callback_name", message).into());
    }
    list.push(json!({"callback_name": name, "callback_type": kind, "callback_vars": vars}));
    metadata.insert("logging".into(), list.into());
    // Whoever wants to be told wants no silence.
    if metadata.get("tracing").and_then(Value::as_str) == Some("off") {
        metadata.remove("tracing");
    }
    team.fields.insert("metadata".into(), metadata.into());
    task.touch(&mut team);
    save(&task, "updated", &before, &team).await?;
    Ok(json!({"status": "success", "data": row(&task.desk, &team).await?}))
}

/// What a callback needs, each of its shape.
fn vars(given: &Fields) -> Result<Map<String, Value>> {
    if given.value("callback_vars").is_none() {
        return Err(missing("callback_vars", "The field 'callback_vars' is required.").into());
    }
    let vars = given.object("callback_vars")?;
    for (name, value) in &vars {
        let field = format!("callback_vars.{name}");
        if !VARS.contains(&name.as_str()) {
            let message = format!("'callback_vars' may hold {}.", VARS.join(", "));
            return Err(wrong_value("callback_vars", message).into());
        }
        match value {
            Value::Bool(_) if name == "turn_off_message_logging" => {}
            Value::String(text) => {
                fields::check_line(&field, text)?;
                if text.starts_with(VARIABLE) && !text.starts_with(LOOKED_UP) {
                    let message = format!("'{field}': of variables only {LOOKED_UP}… are looked up.");
                    return Err(wrong_value(&field, message).into());
                }
            }
            _ => return Err(wrong_type(&field, "a text").into()),
        }
    }
    callbacks::refuse_sealed("callback_vars", &vars)?;
    let has = |name: &str| {
        vars.get(name)
            .and_then(Value::as_str)
            .is_some_and(|t| !t.is_empty())
    };
    let (public, secret) = (
        has("langfuse_public_key"),
        has("langfuse_secret_key") || has("langfuse_secret"),
    );
    let project = public || secret || vars.contains_key("langfuse_host") || vars.is_empty();
    for (is_there, name) in [(public, "langfuse_public_key"), (secret, "langfuse_secret_key")] {
        if project && !is_there {
            let field = format!("callback_vars.{name}");
            return Err(missing(&field, format!("The field '{field}' is required.")).into());
        }
    }
    Ok(vars)
}

/// `GET /team/{team_id}/callback`, for those who may change it and those who see everything.
async fn show(
    actor: Actor,
    Path(team_id): Path<String>,
    State(desk): State<Arc<Desk>>,
) -> Result<Json<Value>> {
    fields::check_line("team_id", &team_id)?;
    let team = TEAM.find(&desk, &team_id).await?;
    if !actor.sees_all() {
        reach(&desk, &actor, &team).await?;
    }
    Ok(Json(json!({"status": "success", "data": told(&team)})))
}

/// What is in use of a team's callbacks: `logging`, and `callback_settings` only where there is none.
fn told(team: &Doc) -> Value {
    let mut metadata = metadata(team);
    callbacks::hide(&mut metadata);
    let (mut success, mut failure) = (Vec::new(), Vec::new());
    let mut vars = Map::new();
    if metadata.get("logging").is_some_and(|l| !l.is_null()) {
        for entry in entries(&metadata) {
            let (name, kind) = (named(&entry, "callback_name"), named(&entry, "callback_type"));
            for (list, other) in [(&mut success, "failure"), (&mut failure, "success")] {
                if !name.is_empty() && kind != other && !list.iter().any(|n| n == name) {
                    list.push(Value::from(name));
                }
            }
            // The first that names a project is the one that is told.
            for (name, value) in entry
                .get("callback_vars")
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
            {
                vars.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
    } else if let Some(settings) = metadata.get("callback_settings") {
        let list = |name: &str| {
            let list = settings.get(name).and_then(Value::as_array);
            list.cloned().unwrap_or_default()
        };
        (success, failure) = (list("success_callback"), list("failure_callback"));
        let kept = settings.get("callback_vars").and_then(Value::as_object);
        vars = kept.cloned().unwrap_or_default();
    }
    json!({
        "team_id": team.id,
        "success_callbacks": success,
        "failure_callbacks": failure,
        "callback_vars": vars,
    })
}

/// `DELETE /team/{team_id}/callback/{callback_name}`: all of this name, whichever calls they are for.
async fn remove(
    actor: Actor,
    Path((team_id, name)): Path<(String, String)>,
    State(desk): State<Arc<Desk>>,
    body: Body,
) -> Result<Json<Value>> {
    let fields = Fields::read_or_none(body).await?;
    let attempt = move |task| try_remove(task, team_id.clone(), name.clone());
    objects::run_on(actor, desk, fields, attempt).await.map(Json)
}

async fn try_remove(task: Arc<Task>, team_id: String, name: String) -> Result<Value> {
    fields::check_line("callback_name", &name)?;
    let (before, mut team) = open(&task, &team_id).await?;
    let mut metadata = metadata(&team);
    let mut list = entries(&metadata);
    let there = list.len();
    list.retain(|e| named(e, "callback_name") != name);
    if list.len() == there {
        let message = format!("callback_name = {name} is not registered for team_id = {team_id}.");
        return Err(not_found("callback_name", message).into());
    }
    metadata.insert("logging".into(), list.into());
    team.fields.insert("metadata".into(), metadata.into());
    task.touch(&mut team);
    save(&task, "updated", &before, &team).await?;
    Ok(json!({
        "status": "success",
        "message": format!("Callback {name} removed for team {team_id}"),
        "data": told(&team),
    }))
}

/// `POST /team/{team_id}/disable_logging`.
async fn disable(
    actor: Actor,
    Path(team_id): Path<String>,
    State(desk): State<Arc<Desk>>,
    body: Body,
) -> Result<Json<Value>> {
    let fields = Fields::read_or_none(body).await?;
    let attempt = move |task| try_disable(task, team_id.clone());
    objects::run_on(actor, desk, fields, attempt).await.map(Json)
}

async fn try_disable(task: Arc<Task>, team_id: String) -> Result<Value> {
    let (before, mut team) = open(&task, &team_id).await?;
    let mut metadata = metadata(&team);
    metadata.insert("logging".into(), json!([]));
    if let Some(Value::Object(settings)) = metadata.get_mut("callback_settings") {
        for list in ["success_callback", "failure_callback"] {
            settings.insert(list.into(), json!([]));
        }
    }
    // Else the gateway's own project would be told.
    metadata.insert("tracing".into(), "off".into());
    team.fields.insert("metadata".into(), metadata.into());
    task.touch(&mut team);
    save(&task, "updated", &before, &team).await?;
    Ok(json!({
        "status": "success",
        "message": format!("Logging disabled for team {team_id}"),
        "data": told(&team),
    }))
}
