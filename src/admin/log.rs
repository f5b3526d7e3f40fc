//! What the process logs: shown, and changed while it runs. What a line holds is [`crate::telemetry::log`]'s.
//! `GET /spend/logs` and its like, which list calls, are in [`super::logs`].

use super::Desk;
use super::audit::Entry;
use super::error::{Result, wrong_value};
use super::fields::{Field, Fields, Kind};
use super::rights::Actor;
use super::routes::{Route, Who};
use crate::telemetry::log::{self, State as Logged, Wish};
use ::log::LevelFilter;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing::on;
use filters::contract::Refusal;
use serde_json::{Value, json};
use std::sync::Arc;

const PATHS: &[&str] = &["/admin/v1/log"];
const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace", "configured"];

pub const ROUTES: &[Route] = &[
    Route {
        group: "log",
        who: Who::Overseer,
        summary: "What is logged, and how many lines were not told",
        ..Route::get(PATHS, |m| on(m, show))
    },
    Route {
        group: "log",
        summary: "Log more or less until the config's section changes or the process ends",
        body: &[&[
            Field::new(
                "level",
                Kind::OneOf(LEVELS),
                "The level; `configured` is what the config says",
            ),
            Field::new(
                "filter",
                Kind::Text,
                "Directives as in RUST_LOG: info,tollkeeper::proxy=debug",
            ),
        ]],
        ..Route::post(PATHS, |m| on(m, change))
    },
];

fn shown(state: &Logged) -> Value {
    let counts = log::counts();
    json!({
        "level": state.level.as_str().to_ascii_lowercase(),
        "filter": state.filter,
        "from": state.from,
        "lines_dropped": counts.dropped,
        "requests_not_shown": counts.hidden,
    })
}

/// `GET /admin/v1/log`.
async fn show() -> Json<Value> {
    Json(shown(&log::state()))
}

/// `POST /admin/v1/log`.
async fn change(State(desk): State<Arc<Desk>>, actor: Actor, body: Body) -> Result<Json<Value>> {
    let fields = Fields::read(body).await?;
    let text = |name: &'static str, kind: Kind| -> Result<Option<String>> {
        let Some(value) = fields.value(name) else {
            return Ok(None);
        };
        Ok(kind.read(name, value)?.as_str().map(str::to_string))
    };
    let wish =
        match (text("level", Kind::OneOf(LEVELS))?, text("filter", Kind::Text)?) {
            (Some(level), None) if level == "configured" => Wish::Configured,
            (Some(level), None) => Wish::Level(level.parse::<LevelFilter>().map_err(|_| {
                wrong_value("level", format!("'level' must be one of {}.", LEVELS.join(", ")))
            })?),
            (None, Some(filter)) => Wish::Filter(filter),
            _ => {
                return Err(Refusal::bad_request("Say either 'level' or 'filter'.")
                    .param("level")
                    .into());
            }
        };
    let before = log::state();
    let after = log::change(&wish).map_err(|why| wrong_value("filter", format!("'filter': {why}.")))?;
    ::log::warn!(
        "event=log_changed by=request level={} filter={:?}",
        after.level,
        after.filter.as_deref().unwrap_or_default()
    );
    let told = |state: &Logged| json!({"level": state.level.as_str(), "filter": state.filter});
    let entry = Entry::updated("log", "log", told(&before), told(&after));
    // A database that is away is a reason to want more of the log, so that it does not stand in the way.
    if let Err(e) = desk.write(&actor, &[], vec![entry]).await {
        ::log::warn!("event=audit_not_kept action=updated table=log cause=\"{e}\"");
    }
    Ok(Json(shown(&after)))
}
