//! The config of the running gateway: which one serves, what was wrong with the last attempt to change it,
//! what it was before, and the way back. Making it so is [`Reload`](crate::reload::Reload)'s.

use super::Desk;
use super::ask::Params;
use super::error::{Result, not_found};
use super::fields::{Field, Fields, Kind};
use super::routes::{Route, Who};
use crate::history::Version;
use crate::reload::{Applied, NotBack, Origin};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing::on;
use filters::contract::{Fault, Refusal};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;

/// Versions of one answer, unless `limit` says otherwise.
const VERSIONS: u64 = 20;
const MOST_VERSIONS: u64 = 50;

pub const ROUTES: &[Route] = &[
    Route {
        group: "config",
        summary: "Read the config again and take it into use",
        answer: "ConfigApplied",
        ..Route::post(&["/config/reload"], |m| on(m, reload))
    },
    Route {
        group: "config",
        who: Who::Overseer,
        summary: "Which config serves, since when, and what was wrong with a newer one",
        answer: "ConfigStatus",
        ..Route::get(&["/config/status"], |m| on(m, status))
    },
    Route {
        group: "config",
        who: Who::Overseer,
        summary: "What the config's files were, newest first, as differences",
        query: &[Field::new(
            "limit",
            Kind::Count,
            "Versions of the answer, at most 50",
        )],
        answer: "ConfigHistory",
        ..Route::get(&["/config/history"], |m| on(m, history))
    },
    Route {
        group: "config",
        summary: "Put the files of an earlier version back and take them into use",
        body: &[&[Field::required(
            "version",
            Kind::Count,
            "Its number in the history",
        )]],
        answer: "ConfigApplied",
        ..Route::post(&["/config/rollback"], |m| on(m, rollback))
    },
];

/// `POST /config/reload`.
async fn reload(State(desk): State<Arc<Desk>>) -> Result<Json<Value>> {
    let reload = Arc::clone(&desk.reload);
    // Its own task: a client that leaves does not stop it half-way.
    let done = tokio::spawn(async move { reload.apply(Origin::Api).await }).await;
    match done.map_err(Fault::internal)? {
        Ok(applied) => Ok(Json(shown(&applied))),
        Err(why) => Err(refused(&why).into()),
    }
}

fn refused(why: &str) -> Refusal {
    Refusal::new(
        400,
        "bad_request_error",
        format!(
            "The config cannot be used; the one before it serves on.\n{}",
            why.trim_end()
        ),
    )
    .param("config")
}

fn shown(applied: &Applied) -> Value {
    let message = if applied.unchanged {
        "Nothing differs from what serves."
    } else if applied.restart.is_empty() {
        "The config is in use."
    } else {
        "The config is in use, but for the settings that wait for a restart."
    };
    json!({
        "message": message,
        "generation": applied.generation,
        "version": applied.version,
        "unchanged": applied.unchanged,
        "added": applied.added,
        "removed": applied.removed,
        "changed": applied.changed,
        "sections": applied.sections,
        "restart_required": applied.restart,
    })
}

/// `GET /config/status`.
async fn status(State(desk): State<Arc<Desk>>) -> Json<Value> {
    let status = desk.reload.status();
    let now = crate::tls::now();
    let ends = desk.reload.certificates().into_iter();
    let certificates = ends.map(|(host, end)| {
        json!({
            "host": host,
            "expires_at": Timestamp::from_second(end).map(|t| t.to_string()).ok(),
            "days": end.saturating_sub(now).div_euclid(86_400),
        })
    });
    Json(json!({
        "generation": status.generation,
        "version": status.version,
        "origin": status.origin.as_str(),
        "applied_at": status.applied_at.to_string(),
        "deployments": status.deployments,
        "path": desk.reload.path().map(|p| p.display().to_string()),
        "restart_required": status.restart,
        "last_failure": status.failed.as_ref().map(|(at, why)| json!({"at": at.to_string(), "message": why})),
        "gateway_version": env!("CARGO_PKG_VERSION"),
        "database": desk.store.kind(),
        "certificates": certificates.collect::<Vec<_>>(),
    }))
}

/// `GET /config/history`.
async fn history(State(desk): State<Arc<Desk>>, query: Params) -> Result<Json<Value>> {
    let limit = query.number("limit", 1, MOST_VERSIONS)?.unwrap_or(VERSIONS) as usize;
    let kept = desk.reload.history().clone();
    let told = tokio::task::spawn_blocking(move || {
        kept.list().map(|versions| {
            let before = versions.iter().skip(1).map(Some).chain([None]);
            let rows = versions.iter().zip(before).take(limit);
            rows.map(|(version, before)| row(version, before))
                .collect::<Vec<_>>()
        })
    });
    let versions = told.await.map_err(Fault::internal)?.map_err(Fault::internal)?;
    Ok(Json(json!({
        "current": desk.reload.status().version,
        "versions": versions,
    })))
}

fn row(version: &Version, before: Option<&Version>) -> Value {
    let files: Vec<String> = version
        .files
        .iter()
        .map(|f| f.path.display().to_string())
        .collect();
    json!({
        "version": version.number,
        "at": version.at.to_string(),
        "origin": version.origin,
        "files": files,
        // Without anything before it everything would be new.
        "difference": before.map(|b| version.difference(Some(b))),
    })
}

/// `POST /config/rollback`.
async fn rollback(State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let fields = Fields::read(body).await?;
    let number = match fields.value("version") {
        Some(value) => super::fields::count("version", value)?,
        None => return Err(super::error::missing("version", "The field 'version' is required.").into()),
    };
    let reload = Arc::clone(&desk.reload);
    let done = tokio::spawn(async move { reload.roll_back(number).await }).await;
    match done.map_err(Fault::internal)? {
        Ok(applied) => Ok(Json(shown(&applied))),
        Err(NotBack::Unknown) => Err(not_found(
            "version",
            format!("There is no version {number}. GET /config/history lists those there are."),
        )
        .into()),
        Err(NotBack::Refused(why)) => Err(Refusal::new(
            400,
            "bad_request_error",
            format!(
                "Version {number} was not put back; everything is as it was.\n{}",
                why.trim_end()
            ),
        )
        .param("version")
        .into()),
    }
}
