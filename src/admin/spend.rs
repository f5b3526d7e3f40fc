//! What was called and what it cost: the ledger's rows, or their sums per day when those are asked for.
//!
//! A row carries the plain API's names and LiteLLM's side by side. A virtual key sees its own rows,
//! and those of its user when it asks for them.

use super::Desk;
use super::ask::{Asking, Params, Slice};
use super::error::{Result, forbidden, wrong_value};
use super::fields::{Field, Kind};
use super::routes::{Route, Who};
use super::shapes::iso;
use crate::store::{DailyFilter, MAX_ROWS, Page, SpendFilter};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::on;
use filters::model::key::{Caller, KeyHash};
use filters::model::money::Nanos;
use filters::model::record::{Attempt, Record, Status};
use http::HeaderValue;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const ROUTES: &[Route] = &[Route {
    group: "spend",
    who: Who::Reader,
    summary: "Calls and what they cost, newest first",
    query: &[
        Field::new("api_key", Kind::Key, "Calls with this key (sk-... or hash)"),
        Field::new("user_id", Kind::Text, "Calls of this user"),
        Field::new("team_id", Kind::Text, "Calls of this team"),
        Field::new("request_id", Kind::Text, "This call"),
        Field::new("start_date", Kind::Time, "First day, YYYY-MM-DD, UTC"),
        Field::new("end_date", Kind::Time, "Last day, YYYY-MM-DD, UTC"),
        Field::new("summarize", Kind::Flag, "One object per day in place of rows"),
        Field::new("page", Kind::Count, "From 1"),
        Field::new("limit", Kind::Count, "Rows of a page, at most 5000"),
    ],
    answer: "SpendLogs",
    ..Route::get(&["/spend/logs"], |m| on(m, logs))
}];

/// Rows of one answer, unless `limit` says otherwise.
const ROWS: u64 = 1_000;
const MOST_ROWS: u64 = 5_000;
/// Daily sums read for one answer.
const MOST_SUMS: u64 = 200_000;

/// Whose rows, and of which days. Nothing in here is wider than what the caller may see.
struct Scope {
    key_hash: Option<KeyHash>,
    user_id: Option<String>,
    team_id: Option<String>,
    request_id: Option<String>,
    first: Option<Date>,
    last: Option<Date>,
}

/// `GET /spend/logs`: rows, newest first. The header `x-next-page` says that there are more and where.
/// Rows are never grouped unless `summarize=true` asks for it; LiteLLM groups whenever both dates are given.
pub async fn logs(Asking(caller): Asking, State(desk): State<Arc<Desk>>, params: Params) -> Result<Response> {
    let scope = scope(&caller, &desk, &params).await?;
    let slice = params.page(&["limit", "page_size"], ROWS, MOST_ROWS)?;
    if !params.flag("summarize")?.unwrap_or(false) {
        return rows(&desk, scope, slice).await;
    }
    if scope.request_id.is_some() {
        let message = "One request has no sums. Leave out 'summarize' or 'request_id'.";
        return Err(wrong_value("summarize", message).into());
    }
    Ok(Json(days(&desk, scope).await?).into_response())
}

async fn scope(caller: &Caller, desk: &Desk, params: &Params) -> Result<Scope> {
    let mut scope = Scope {
        key_hash: params.key("api_key")?,
        user_id: params.owned("user_id")?,
        team_id: params.owned("team_id")?,
        request_id: params.owned("request_id")?,
        first: date(params, "start_date")?,
        last: date(params, "end_date")?,
    };
    if let (Some(first), Some(last)) = (scope.first, scope.last)
        && first > last
    {
        return Err(wrong_value("start_date", "'start_date' lies after 'end_date'.").into());
    }
    let own = match caller {
        Caller::Master { .. } => return Ok(scope),
        Caller::Key(key) => key,
        Caller::Anonymous => return Err(others()),
    };
    if scope.user_id.is_some() && scope.user_id != own.user_id {
        return Err(others());
    }
    match scope.key_hash {
        Some(hash) if hash == own.hash => {}
        Some(hash) => {
            // Another key of the same user: then only what was spent as that user.
            let other = desk.store.key_by_hash(&hash).await?;
            if own.user_id.is_none() || other.is_none_or(|k| k.user_id != own.user_id) {
                return Err(others());
            }
            scope.user_id = own.user_id.clone();
        }
        None if scope.user_id.is_some() => {}
        None => scope.key_hash = Some(own.hash),
    }
    Ok(scope)
}

fn others() -> super::Stopped {
    forbidden(
        "You are not allowed to see what others spent. Leave out 'api_key' and 'user_id', or use the master key.",
    )
    .into()
}

fn date(params: &Params, name: &str) -> Result<Option<Date>> {
    let Some(text) = params.text(name)? else {
        return Ok(None);
    };
    match Date::strptime("%Y-%m-%d", text) {
        Ok(date) if date.year() >= 1970 => Ok(Some(date)),
        _ => Err(wrong_value(
            name,
            format!("'{name}' must be a day since 1970 as YYYY-MM-DD, in UTC."),
        )
        .into()),
    }
}

/// The first moment of a day; none after the last day that has a name.
fn midnight(day: Date) -> Option<i64> {
    let start = day.to_zoned(TimeZone::UTC).ok()?;
    Some(start.timestamp().as_microsecond())
}

async fn rows(desk: &Desk, scope: Scope, slice: Slice) -> Result<Response> {
    let filter = SpendFilter {
        key_hash: scope.key_hash,
        user_id: scope.user_id,
        team_id: scope.team_id,
        request_id: scope.request_id,
        start_micros: scope.first.and_then(midnight),
        end_micros: scope.last.and_then(|d| d.tomorrow().ok()).and_then(midnight),
        page: Page {
            // One more than shown, to know whether there is more.
            limit: slice.size as u32 + 1,
            offset: slice.offset,
        },
        ..SpendFilter::default()
    };
    let mut records = desk.store.spend_logs(&filter).await?;
    let more = records.len() as u64 > slice.size;
    records.truncate(slice.size as usize);
    let rows: Vec<Row<'_>> = records.iter().map(Row::of).collect();
    let mut response = Json(rows).into_response();
    if more {
        response
            .headers_mut()
            .insert("x-next-page", HeaderValue::from(slice.page + 1));
    }
    Ok(response)
}

/// One call. Money in dollars, times in UTC.
#[derive(Serialize)]
struct Row<'a> {
    request_id: &'a str,
    model: &'a str,
    tokens: u64,
    cost: Nanos,
    timestamp: String,
    /// Left out for a key that is nobody's: `user` is empty then.
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,

    call_type: &'static str,
    /// The key's hash; empty = nobody's.
    api_key: String,
    spend: Nanos,
    total_tokens: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    #[serde(rename = "startTime")]
    start_time: String,
    #[serde(rename = "endTime")]
    end_time: String,
    /// When the first byte of the answer came; the end for what was not streamed, as in LiteLLM.
    #[serde(rename = "completionStartTime")]
    completion_start_time: String,
    request_duration_ms: i64,
    model_id: &'a str,
    model_group: &'a str,
    custom_llm_provider: &'a str,
    /// Never shown: the address of an upstream is nobody's business.
    api_base: &'static str,
    user: &'a str,
    metadata: Value,
    cache_hit: &'static str,
    cache_key: &'static str,
    request_tags: &'a [String],
    team_id: Option<&'a str>,
    organization_id: Option<&'a str>,
    end_user: &'a str,
    requester_ip_address: &'a str,
    messages: Map<String, Value>,
    response: Map<String, Value>,
    proxy_server_request: Map<String, Value>,
    session_id: Option<&'a str>,
    /// LiteLLM's two words; `outcome` tells the four that there are.
    status: &'static str,

    outcome: &'static str,
    requested_model: &'a str,
    key_alias: Option<&'a str>,
    stream: bool,
    http_status: u16,
    error: Option<&'a str>,
    attempts: &'a [Attempt],
    /// False = there is no price; `spend` is 0 and means nothing.
    priced: bool,
    estimated: bool,
    clamped: bool,
    cached_tokens: u64,
    cache_creation_tokens: u64,
    reasoning_tokens: u64,
    characters: u64,
    audio_seconds: f64,
    images: u64,
    user_agent: Option<&'a str>,
    bytes_in: u64,
    bytes_out: u64,
}

impl<'a> Row<'a> {
    fn of(r: &'a Record) -> Self {
        let api_key = r.key_hash.map(|h| h.hex()).unwrap_or_default();
        let spend = Nanos(if r.priced { r.spend_nanos } else { 0 });
        let started = iso(r.started_micros);
        Row {
            request_id: &r.request_id,
            model: &r.model,
            tokens: r.total_tokens(),
            cost: spend,
            timestamp: started.clone(),
            user_id: r.user_id.as_deref(),
            call_type: r.endpoint.call_type(),
            metadata: metadata(r, &api_key),
            api_key,
            spend,
            total_tokens: r.total_tokens(),
            prompt_tokens: r.prompt_tokens,
            completion_tokens: r.completion_tokens,
            start_time: started,
            end_time: iso(r.ended_micros),
            completion_start_time: iso(r.first_byte_micros.filter(|_| r.stream).unwrap_or(r.ended_micros)),
            request_duration_ms: r.ended_micros.saturating_sub(r.started_micros) / 1000,
            model_id: &r.deployment_id,
            model_group: &r.model_group,
            custom_llm_provider: &r.provider,
            api_base: "",
            user: r.user_id.as_deref().unwrap_or_default(),
            cache_hit: "False",
            cache_key: "Cache OFF",
            request_tags: &r.tags,
            team_id: r.team_id.as_deref(),
            organization_id: None,
            end_user: r.end_user.as_deref().unwrap_or_default(),
            requester_ip_address: &r.client_ip,
            messages: Map::new(),
            response: Map::new(),
            proxy_server_request: Map::new(),
            session_id: None,
            status: match r.status {
                Status::Success => "success",
                Status::Failure | Status::Aborted | Status::Cut => "failure",
            },
            outcome: r.status.as_str(),
            requested_model: &r.requested_model,
            key_alias: r.key_alias.as_deref(),
            stream: r.stream,
            http_status: r.http_status,
            error: r.error.as_deref(),
            attempts: &r.attempts,
            priced: r.priced,
            estimated: r.estimated,
            clamped: r.clamped,
            cached_tokens: r.cached_tokens,
            cache_creation_tokens: r.cache_creation_tokens,
            reasoning_tokens: r.reasoning_tokens,
            characters: r.characters,
            audio_seconds: r.audio_millis as f64 / 1000.0,
            images: r.images,
            user_agent: r.user_agent.as_deref(),
            bytes_in: r.bytes_in,
            bytes_out: r.bytes_out,
        }
    }
}

/// What LiteLLM's dashboards look for there; the client's own object is `requester_metadata`.
fn metadata(r: &Record, api_key: &str) -> Value {
    let own: Option<Value> = r.metadata.as_deref().and_then(|m| serde_json::from_str(m).ok());
    let error = r
        .error
        .as_deref()
        .map(|e| json!({"error_code": r.http_status.to_string(), "error_message": e}));
    json!({
        "user_api_key": api_key,
        "user_api_key_alias": r.key_alias,
        "user_api_key_user_id": r.user_id,
        "user_api_key_team_id": r.team_id,
        "requester_ip_address": r.client_ip,
        "requester_metadata": own.unwrap_or_else(|| json!({})),
        "error_information": error,
    })
}

/// What one day adds up to.
#[derive(Default)]
struct Day {
    spend: Nanos,
    users: BTreeMap<String, Nanos>,
    models: BTreeMap<String, Nanos>,
    keys: BTreeMap<String, Nanos>,
}

/// LiteLLM's objects, one per day, the first day first:
/// `{startTime, spend, users: {}, models: {}, <key hash>: spend}`. The last day asked for is always there.
async fn days(desk: &Desk, scope: Scope) -> Result<Value> {
    let mut days: BTreeMap<Date, Day> = BTreeMap::new();
    if let Some(last) = scope.last {
        days.entry(last).or_default();
    }
    let mut filter = DailyFilter {
        start: scope.first,
        end: scope.last,
        key_hash: scope.key_hash,
        user_id: scope.user_id,
        team_id: scope.team_id,
        page: Page {
            limit: MAX_ROWS,
            offset: 0,
        },
    };
    loop {
        let sums = desk.store.daily(&filter).await?;
        let more = sums.len() as u64 == u64::from(MAX_ROWS);
        for sum in sums {
            let spend = Nanos(sum.spend_nanos);
            let day = days.entry(sum.day).or_default();
            day.spend += spend;
            *day.users.entry(sum.user_id).or_default() += spend;
            *day.models.entry(sum.model_group).or_default() += spend;
            if let Some(hash) = sum.key_hash {
                *day.keys.entry(hash.hex()).or_default() += spend;
            }
        }
        if !more {
            break;
        }
        filter.page.offset += u64::from(MAX_ROWS);
        if filter.page.offset >= MOST_SUMS {
            let message = "These days hold too much to be added up at once. Ask for fewer days.";
            return Err(wrong_value("start_date", message).into());
        }
    }
    let objects = days.into_iter().map(|(date, day)| {
        let mut object = Map::new();
        object.insert("startTime".into(), json!(date.to_string()));
        object.insert("spend".into(), json!(day.spend));
        object.insert("users".into(), json!(day.users));
        object.insert("models".into(), json!(day.models));
        for (hash, spend) in day.keys {
            object.insert(hash, json!(spend));
        }
        Value::Object(object)
    });
    Ok(Value::Array(objects.collect()))
}
