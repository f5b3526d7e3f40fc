//! What was called: the ledger's rows, filtered and by page, and one object per day when that is asked for.
//! How a row looks stands in [`log_row`](super::log_row).
//!
//! A virtual key sees its own rows, and those of its user when it asks for them; see
//! [`scope`](super::scope).

use super::Desk;
use super::ask::{Params, Slice};
use super::days::{self, MOST_SUMS, TIMEZONE, date, midnight};
use super::error::{Result, not_found, wrong_type, wrong_value};
use super::fields::{self, Field, Kind};
use super::log_row::Row;
use super::rights::Actor;
use super::routes::{Route, Who};
use super::scope::{Scope, others};
use crate::store::{Group, MAX_ROWS, Page, SpendFilter, SpendOrder, UsageFilter, lists};
use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::on;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use filters::model::money::Nanos;
use filters::model::record::{Record, Status};
use http::HeaderValue;
use jiff::civil::Date;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const ROUTES: &[Route] = &[
    Route {
        group: "spend",
        who: Who::Reader,
        summary: "Calls and what they cost, newest first",
        query: LOGS,
        answer: "SpendLogs",
        ..Route::get(&["/spend/logs"], |m| on(m, logs))
    },
    Route {
        group: "spend",
        who: Who::Reader,
        summary: "Calls and what they cost, by page",
        query: LOGS,
        answer: "SpendLogPage",
        ..Route::get(&["/spend/logs/ui", "/spend/logs/v2"], |m| on(m, pages))
    },
    Route {
        group: "spend",
        who: Who::Reader,
        summary: "One call",
        answer: "SpendLog",
        ..Route::get(&["/spend/logs/ui/{request_id}"], |m| on(m, one))
    },
];

const LOGS: &[Field] = &[
    super::scope::WHOSE[0],
    super::scope::WHOSE[1],
    super::scope::WHOSE[2],
    super::scope::WHOSE[3],
    Field::new("end_user", Kind::Text, "Calls for this customer"),
    Field::new(
        "model",
        Kind::Text,
        "Calls of this model, as configured or as the upstream calls it",
    ),
    Field::new("model_group", Kind::Text, "Calls of this configured model"),
    Field::new("key_alias", Kind::Text, "Calls with keys that had this alias"),
    Field::new("tag", Kind::Text, "Calls with this tag"),
    Field::new(
        "status",
        Kind::OneOf(&["success", "failure", "aborted", "cut"]),
        "How they ended; failure is all that is no success. Also status_filter",
    ),
    Field::new(
        "http_status",
        Kind::Text,
        "Answered so: 404, or 4xx. Also error_code",
    ),
    Field::new("request_id", Kind::Text, "This call"),
    Field::new(
        "search",
        Kind::Text,
        "Calls with this text in their id; an answer looks at some 30,000 calls and says where to go on",
    ),
    Field::new("min_spend", Kind::Money, "Calls that cost at least this, dollars"),
    Field::new("max_spend", Kind::Money, "Calls that cost at most this, dollars"),
    days::DATES[0],
    days::DATES[1],
    TIMEZONE,
    Field::new(
        "ended_after",
        Kind::Time,
        "Calls that ended later than this (RFC 3339, or microseconds since 1970) and took three hours at most",
    ),
    Field::new(
        "sort_by",
        Kind::OneOf(&["startTime", "spend"]),
        "What they are sorted by",
    ),
    Field::new("sort_order", Kind::OneOf(&["asc", "desc"]), "Which way"),
    Field::new(
        "summarize",
        Kind::Flag,
        "/spend/logs: one object per day in place of rows",
    ),
    Field::new("page", Kind::Count, "From 1"),
    Field::new(
        "limit",
        Kind::Count,
        "Rows of a page, at most 5000; also page_size",
    ),
    Field::new(
        "after",
        Kind::Text,
        "Go on after this row: x-next-after of the answer before",
    ),
];

/// Rows of one answer, unless `limit` says otherwise.
const ROWS: u64 = 1_000;
const MOST_ROWS: u64 = 5_000;
/// The same where pages are counted.
const PAGE_ROWS: u64 = 50;
/// Longest text to look for in ids, bytes.
const MOST_SEARCH: usize = 512;
/// How much earlier than its end a call that `ended_after` finds has begun at most, microseconds. Ends have
/// no index, starts have.
const LONGEST_CALL: i64 = 3 * 3_600_000_000;

/// What the query asks for, of the rows that the caller may see.
struct Asked {
    scope: Scope,
    first: Option<Date>,
    last: Option<Date>,
    filter: SpendFilter,
}

impl Asked {
    async fn read(desk: &Desk, actor: &Actor, params: &Params, moments: bool) -> Result<Self> {
        let scope = desk.scope(actor, params).await?;
        let (mut first, mut last) = (None, None);
        let (start, end) = if moments {
            (
                params.moment("start_date", false)?,
                params.moment("end_date", true)?,
            )
        } else {
            let shift = days::timezone(params)? * 60_000_000;
            (first, last) = (date(params, "start_date")?, date(params, "end_date")?);
            let at = |day: Option<Date>| day.and_then(midnight).map(|t| t.saturating_add(shift));
            (at(first), at(last.and_then(|d| d.tomorrow().ok())))
        };
        if let (Some(start), Some(end)) = (start, end)
            && start >= end
        {
            return Err(wrong_value("start_date", "'start_date' lies after 'end_date'.").into());
        }
        let ended_after = ended_after(params)?;
        let bound = ended_after.map(|t| t.saturating_sub(LONGEST_CALL));
        let (status, success) = outcome(params)?;
        let order = order(params)?;
        let search = params.owned("search")?;
        if search.as_ref().is_some_and(|s| s.len() > MOST_SEARCH) {
            let message = format!("'search' must be at most {MOST_SEARCH} bytes long.");
            return Err(wrong_value("search", message).into());
        }
        let (min_spend, max_spend) = (money(params, "min_spend")?, money(params, "max_spend")?);
        let owner = scope.clone();
        let filter = SpendFilter {
            key_hash: owner.key_hash,
            user_id: owner.user_id,
            team_id: owner.team_id,
            organization_id: owner.organization_id,
            end_user: params.owned("end_user")?,
            model_group: params.owned("model_group")?,
            model: params.owned("model")?,
            key_alias: params.owned("key_alias")?,
            tag: params.owned("tag")?,
            status,
            success,
            http_status: http_status(params)?,
            request_id: params.owned("request_id")?,
            request_id_part: search,
            min_spend_nanos: min_spend,
            max_spend_nanos: max_spend,
            start_micros: start.max(bound),
            end_micros: end,
            ended_after_micros: ended_after,
            after: params.text("after")?.map(cursor).transpose()?,
            order,
            page: Page::default(),
        };
        Ok(Self {
            scope,
            first,
            last,
            filter,
        })
    }
}

/// `GET /spend/logs`: rows, newest first. The header `x-next-page` says that there are more and where, and
/// `x-next-after` the same for whoever goes on by row and not by number: rows that land meanwhile do not
/// shift those. Rows are never grouped unless `summarize=true` asks for it; LiteLLM groups whenever both
/// dates are given.
async fn logs(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Response> {
    let asked = Asked::read(&desk, &actor, &params, false).await?;
    let slice = slice(&params, ROWS)?;
    if params.flag("summarize")?.unwrap_or(false) {
        return Ok(Json(per_day(&desk, &asked).await?).into_response());
    }
    let searches = asked.filter.request_id_part.is_some();
    let (records, next) = page(&desk, asked.filter, slice).await?;
    let rows: Vec<Row<'_>> = records.iter().map(Row::of).collect();
    let mut response = Json(rows).into_response();
    if let Some(next) = next {
        let headers = response.headers_mut();
        // A search goes on where it stopped looking, which no number of a page says.
        if !searches {
            headers.insert("x-next-page", HeaderValue::from(slice.page + 1));
        }
        if let Ok(after) = HeaderValue::from_str(&next) {
            headers.insert("x-next-after", after);
        }
    }
    Ok(response)
}

/// `GET /spend/logs/ui` and `/spend/logs/v2`: a page, and how many there are. Dates may be moments. Of what no
/// sum is kept only so many are counted, and a search tells what it has seen: `total_is_exact` is false then,
/// and there are at least `total`.
async fn pages(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let asked = Asked::read(&desk, &actor, &params, true).await?;
    let slice = slice(&params, PAGE_ROWS)?;
    let whole = SpendFilter {
        after: None,
        ..asked.filter.clone()
    };
    // A search counts what it sees.
    let searches = whole.request_id_part.is_some();
    let counted = async {
        match searches {
            true => Ok((0, false)),
            false => lists::count(&*desk.store, &whole).await,
        }
    };
    let (listed, counted) = tokio::join!(page(&desk, asked.filter, slice), counted);
    let ((records, next), (mut total, mut exact)) = (listed?, counted?);
    let more = next.is_some();
    if searches {
        total = slice.offset + records.len() as u64 + u64::from(more);
        exact = !more && params.text("after")?.is_none();
    }
    let rows: Vec<Row<'_>> = records.iter().map(Row::of).collect();
    Ok(Json(json!({
        "data": rows,
        "total": total,
        "total_is_exact": exact,
        "page": slice.page,
        "page_size": slice.size,
        "total_pages": total.div_ceil(slice.size),
        "has_more": more,
        "next_after": next,
    })))
}

/// `GET /spend/logs/ui/{request_id}`: prompts and answers are not kept, so `messages` and `response` are empty.
async fn one(
    actor: Actor,
    State(desk): State<Arc<Desk>>,
    Path(request_id): Path<String>,
    params: Params,
) -> Result<Json<Value>> {
    let scope = desk.scope(&actor, &params).await?;
    let filter = SpendFilter {
        key_hash: scope.key_hash,
        user_id: scope.user_id,
        team_id: scope.team_id,
        organization_id: scope.organization_id,
        request_id: Some(request_id).filter(|id| !id.contains('\0')),
        ..SpendFilter::default()
    };
    let found = match filter.request_id {
        Some(_) => desk.store.spend_logs(&filter).await?,
        None => Vec::new(),
    };
    match found.first() {
        Some(record) => Ok(Json(json!(Row::of(record)))),
        None if actor.sees_spend() => Err(not_found("request_id", "There is no call of this id.").into()),
        // Whether it is another's is not told.
        None => Err(others()),
    }
}

fn slice(params: &Params, size: u64) -> Result<Slice> {
    let slice = params.page(&["limit", "page_size"], size, MOST_ROWS)?;
    if slice.page > 1 && params.text("after")?.is_some() {
        return Err(wrong_value("after", "Go on by 'page' or by 'after', not by both.").into());
    }
    Ok(slice)
}

/// Rows of a slice, and where the next one begins, if there is one.
async fn page(desk: &Desk, mut filter: SpendFilter, slice: Slice) -> Result<(Vec<Record>, Option<String>)> {
    filter.page = Page {
        // One more than shown, to know whether there is more.
        limit: slice.size as u32 + 1,
        offset: slice.offset,
    };
    let (mut records, stopped) = lists::search(&*desk.store, &filter).await?;
    let more = records.len() as u64 > slice.size;
    records.truncate(slice.size as usize);
    let next = match records.last().filter(|_| more) {
        Some(last) => Some(place(last, filter.order)),
        None => stopped.map(|(value, id)| token(value, &id)),
    };
    Ok((records, next))
}

/// Where a row stands in its order, for `after`.
fn place(record: &Record, order: SpendOrder) -> String {
    let value = match order {
        SpendOrder::Newest | SpendOrder::Oldest => record.started_micros,
        SpendOrder::Dearest | SpendOrder::Cheapest => record.spend_nanos,
    };
    token(value, &record.request_id)
}

fn token(value: i64, id: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{value}:{id}"))
}

fn cursor(text: &str) -> Result<(i64, String)> {
    let read = || {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (value, id) = text.split_once(':')?;
        let id = Some(id).filter(|id| !id.contains('\0'))?;
        Some((value.parse().ok()?, id.to_string()))
    };
    read().ok_or_else(|| wrong_value("after", "'after' must be what 'x-next-after' said, unchanged.").into())
}

fn ended_after(params: &Params) -> Result<Option<i64>> {
    match params.text("ended_after")?.map(str::parse::<i64>) {
        Some(Ok(micros)) if micros >= 0 => Ok(Some(micros)),
        Some(Ok(_)) => Err(wrong_value("ended_after", "'ended_after' must be since 1970.").into()),
        _ => params.moment("ended_after", false),
    }
}

/// One of the two words that LiteLLM's rows have for how a call ended, or one of the four that there are.
fn outcome(params: &Params) -> Result<(Option<Status>, Option<bool>)> {
    for name in ["status", "status_filter"] {
        return Ok(match params.text(name)? {
            None => continue,
            Some("success") => (None, Some(true)),
            Some("failure") => (None, Some(false)),
            Some("aborted") => (Some(Status::Aborted), None),
            Some("cut") => (Some(Status::Cut), None),
            Some(_) => return Err(wrong_type(name, "success, failure, aborted or cut").into()),
        });
    }
    Ok((None, None))
}

/// `404`, or `4xx`.
fn http_status(params: &Params) -> Result<Option<(u16, u16)>> {
    for name in ["http_status", "error_code"] {
        let Some(text) = params.text(name)? else { continue };
        let class = text.strip_suffix("xx").map(str::parse::<u16>);
        return match (class, text.parse::<u16>()) {
            (Some(Ok(n @ 1..=5)), _) => Ok(Some((n * 100, n * 100 + 99))),
            (None, Ok(n @ 0..=999)) => Ok(Some((n, n))),
            _ => Err(wrong_type(name, "a status such as 404, or a class such as 4xx").into()),
        };
    }
    Ok(None)
}

fn order(params: &Params) -> Result<SpendOrder> {
    let rising = match params.text("sort_order")? {
        None | Some("desc") => false,
        Some("asc") => true,
        Some(_) => return Err(wrong_type("sort_order", "asc or desc").into()),
    };
    match (params.text("sort_by")?, rising) {
        (None | Some("startTime" | "start_time" | "timestamp"), false) => Ok(SpendOrder::Newest),
        (None | Some("startTime" | "start_time" | "timestamp"), true) => Ok(SpendOrder::Oldest),
        (Some("spend" | "cost"), false) => Ok(SpendOrder::Dearest),
        (Some("spend" | "cost"), true) => Ok(SpendOrder::Cheapest),
        (Some(_), _) => Err(wrong_type("sort_by", "startTime or spend").into()),
    }
}

/// Dollars of the query, in nano-dollars.
fn money(params: &Params, name: &str) -> Result<Option<i64>> {
    let Some(text) = params.text(name)? else {
        return Ok(None);
    };
    Ok(Some(fields::amount(name, &Value::String(text.into()))?.0))
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
async fn per_day(desk: &Desk, asked: &Asked) -> Result<Value> {
    let f = &asked.filter;
    // What days are not kept by.
    for (name, given) in [
        ("request_id", f.request_id.is_some()),
        ("search", f.request_id_part.is_some()),
        ("end_user", f.end_user.is_some()),
        ("model", f.model.is_some()),
        ("key_alias", f.key_alias.is_some()),
        ("tag", f.tag.is_some()),
        ("status", f.status.is_some() || f.success.is_some()),
        ("http_status", f.http_status.is_some()),
        ("min_spend", f.min_spend_nanos.is_some()),
        ("max_spend", f.max_spend_nanos.is_some()),
        ("ended_after", f.ended_after_micros.is_some()),
        ("after", f.after.is_some()),
    ] {
        if given {
            let message = match name {
                "request_id" => "One request has no sums. Leave out 'summarize' or 'request_id'.".to_string(),
                name => format!("Days are not added up by '{name}'. Leave out 'summarize' or '{name}'."),
            };
            return Err(wrong_value("summarize", message).into());
        }
    }
    let mut days: BTreeMap<Date, Day> = BTreeMap::new();
    if let Some(last) = asked.last {
        days.entry(last).or_default();
    }
    let filter = UsageFilter {
        by: vec![Group::Day, Group::Key, Group::ModelGroup, Group::User],
        start: asked.first,
        end: asked.last,
        model_groups: f.model_group.clone().map(|m| vec![m]),
        ..asked.scope.usage()
    };
    for row in desk.sums(filter, MOST_SUMS).await? {
        let spend = Nanos(row.usage.spend_nanos);
        let day = days.entry(row.day.unwrap_or_default()).or_default();
        day.spend += spend;
        *day.users.entry(row.user_id.unwrap_or_default()).or_default() += spend;
        *day.models.entry(row.model_group.unwrap_or_default()).or_default() += spend;
        if let Some(hash) = row.key_hash {
            *day.keys.entry(hash.hex()).or_default() += spend;
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

const _: () = assert!(MOST_ROWS < MAX_ROWS as u64);
