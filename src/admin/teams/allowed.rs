//! What a team's keys may call and what its members may do with them: `/team/model/*`, `/team/permissions_*`.

use super::reach::{reach, wholly, within_organization};
use super::show::{row, seen};
use super::{TEAM, save};
use crate::admin::Desk;
use crate::admin::ask::Params;
use crate::admin::error::{Result, missing, wrong_type, wrong_value};
use crate::admin::fields::Fields;
use crate::admin::objects::{self, Task};
use crate::admin::rights::Actor;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use serde_json::{Value, json};
use std::sync::Arc;

/// What a team's members may be allowed to do with the team's keys.
const PERMISSIONS: [&str; 14] = [
    "/key/generate",
    "/key/service-account/generate",
    "/key/update",
    "/key/delete",
    "/key/info",
    "/key/list",
    "/key/health",
    "/key/regenerate",
    "/key/{key_id}/regenerate",
    "/key/block",
    "/key/unblock",
    "/team/daily/activity",
    "/spend/logs",
    "/spend/logs/v2",
];

pub(super) fn check_permissions(fields: &Fields) -> Result<()> {
    let list = fields.texts("team_member_permissions")?;
    match list.iter().find(|p| !PERMISSIONS.contains(&p.as_str())) {
        Some(_) => {
            let message = format!("'team_member_permissions' may hold {}.", PERMISSIONS.join(", "));
            Err(wrong_value("team_member_permissions", message).into())
        }
        None => Ok(()),
    }
}

pub(super) async fn add_models(
    actor: Actor,
    State(desk): State<Arc<Desk>>,
    body: Body,
) -> Result<Json<Value>> {
    objects::run(actor, desk, body, |task| change_models(task, true))
        .await
        .map(Json)
}

pub(super) async fn delete_models(
    actor: Actor,
    State(desk): State<Arc<Desk>>,
    body: Body,
) -> Result<Json<Value>> {
    objects::run(actor, desk, body, |task| change_models(task, false))
        .await
        .map(Json)
}

async fn change_models(task: Arc<Task>, add: bool) -> Result<Value> {
    let named = task.fields.texts("models")?;
    if named.is_empty() {
        return Err(missing("models", "The field 'models' is required.").into());
    }
    let mut team = wholly(&task).await?;
    let before = team.clone();
    let mut models = filters::model::party::texts(&team.fields, "models");
    if add {
        // A list that is empty allows all: to name one would take the others away.
        if models.is_empty() {
            let message = "This team may call all models. Set its 'models' with /team/update instead.";
            return Err(wrong_value("models", message).into());
        }
        models.retain(|m| m != NO_MODELS);
        for model in named {
            if !models.contains(&model) {
                models.push(model);
            }
        }
    } else {
        let none = models.is_empty();
        models.retain(|m| !named.contains(m));
        // And one that became empty would allow all.
        if models.is_empty() && !none {
            models.push(NO_MODELS.into());
        }
    }
    team.fields.insert("models".into(), json!(models));
    if models.len() > 10_000 {
        return Err(wrong_type("models", "a list of at most 10000 models").into());
    }
    within_organization(&task, &team).await?;
    task.touch(&mut team);
    save(&task, "updated", &before, &team).await?;
    row(&task.desk, &team).await.map(Value::Object)
}

/// LiteLLM's word for a list that allows no model.
const NO_MODELS: &str = "no-default-models";

/// `GET /team/permissions_list`.
pub(super) async fn permissions(
    actor: Actor,
    State(desk): State<Arc<Desk>>,
    params: Params,
) -> Result<Json<Value>> {
    let team = seen(&desk, &actor, &params).await?;
    let own = filters::model::party::texts(&team.fields, "team_member_permissions");
    Ok(Json(json!({
        "team_id": team.id,
        "team_member_permissions": own,
        "all_available_permissions": PERMISSIONS,
    })))
}

/// `POST /team/permissions_update`.
pub(super) async fn set_permissions(
    actor: Actor,
    State(desk): State<Arc<Desk>>,
    body: Body,
) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_set_permissions)
        .await
        .map(Json)
}

async fn try_set_permissions(task: Arc<Task>) -> Result<Value> {
    if !task.fields.has("team_member_permissions") {
        let message = "The field 'team_member_permissions' is required.";
        return Err(missing("team_member_permissions", message).into());
    }
    check_permissions(&task.fields)?;
    let id = objects::id(&task.fields, "team_id")?;
    let mut team = TEAM.find(&task.desk, &id).await?;
    reach(&task.desk, &task.actor, &team).await?;
    let before = team.clone();
    let list = task.fields.texts("team_member_permissions")?;
    team.fields.insert("team_member_permissions".into(), json!(list));
    task.touch(&mut team);
    save(&task, "updated", &before, &team).await?;
    row(&task.desk, &team).await.map(Value::Object)
}
