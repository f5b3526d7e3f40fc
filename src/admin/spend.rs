//! What keys, users and tags have spent, and what a call would cost. Single calls stand in
//! [`logs`](super::logs), sums over days in [`reports`](super::reports).

use super::Desk;
use super::ask::Params;
use super::days::{DATES, Days, MOST_SUMS};
use super::error::{Result, not_found, wrong_type, wrong_value};
use super::fields::{Field, Fields, Kind};
use super::rights::{Actor, own_hash};
use super::routes::{Route, Who};
use super::scope::others;
use super::shapes::iso;
use crate::store::table::Order;
use crate::store::{
    Doc, DocFilter, Group, KeyFilter, KeySort, MAX_ROWS, Page, Table, UsageFilter, UsageOrder,
};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing::on;
use filters::contract::Refusal;
use filters::model::account::{Account, Kind as Subject};
use filters::model::call::Endpoint;
use filters::model::money::Nanos;
use filters::model::price::ServiceTier;
use filters::model::usage::{Usage, estimate_prompt_of};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

pub const ROUTES: &[Route] = &[
    Route {
        group: "spend",
        who: Who::Reader,
        summary: "What a call would cost",
        body: &[&[
            Field::new("model", Kind::Text, "The configured model"),
            Field::new(
                "messages",
                Kind::Objects,
                "What it would be asked; the answer is not counted",
            ),
            Field::new(
                "completion_response",
                Kind::Settings,
                "An answer with its `model` and `usage`: what it cost",
            ),
            Field::new(
                "call_type",
                Kind::Text,
                "Which kind of call, such as acompletion or aembedding",
            ),
        ]],
        answer: "Cost",
        ..Route::post(&["/spend/calculate"], |m| on(m, calculate))
    },
    Route {
        group: "spend",
        who: Who::Accountant,
        summary: "What tags spent, the dearest first",
        query: &DATES,
        answer: "TagSpends",
        ..Route::get(&["/spend/tags"], |m| on(m, tags))
    },
    Route {
        group: "spend",
        who: Who::Reader,
        summary: "Keys and what they spent in their period, the dearest first",
        query: &[LIMIT],
        answer: "Keys",
        ..Route::get(&["/spend/keys"], |m| on(m, keys))
    },
    Route {
        group: "spend",
        who: Who::Reader,
        summary: "Users and what they spent, the dearest first",
        query: &[Field::new("user_id", Kind::Text, "This user alone"), LIMIT],
        answer: "UserSpends",
        ..Route::get(&["/spend/users"], |m| on(m, users))
    },
];

/// How many entries of a list that is sorted by spend.
pub const LIMIT: Field = Field::new("limit", Kind::Count, "How many, at most 1000");

/// The parameter `limit`.
pub fn limit(params: &Params, usual: u64) -> Result<u32> {
    Ok(params.number("limit", 1, 1_000)?.unwrap_or(usual) as u32)
}

/// `POST /spend/calculate`: `{"cost": dollars}`, at the prices that a call would pay; of several deployments
/// those of the dearest. Money is exact; tokens of `messages` are estimated as they are for a budget.
async fn calculate(_: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let fields = Fields::read(body).await?;
    let answer = fields.object("completion_response")?;
    let model = fields.text("model")?.filter(|m| !m.is_empty());
    if model.is_none() && answer.is_empty() {
        return Err(wrong_value(
            "model",
            "Bad Request - Either 'model' or 'completion_response' must be provided",
        )
        .into());
    }
    let named = answer.get("model").and_then(Value::as_str);
    let Some(model) = model.or(named) else {
        return Err(wrong_value(
            "model",
            "'completion_response' names no 'model'. Give 'model' beside it.",
        )
        .into());
    };
    let (usage, tier) = if answer.is_empty() {
        (prompt(&fields)?, fields.text("service_tier")?)
    } else {
        let text = answer.get("usage").map(Value::to_string).unwrap_or_default();
        let usage = Usage::read(text.as_bytes());
        // A number that had to be put right costs nobody anything.
        let usage = usage.filter(|u| !u.clamped);
        let usage = usage.ok_or_else(|| {
            wrong_value(
                "completion_response",
                "'completion_response' has no 'usage' with counts that can be.",
            )
        })?;
        (usage, answer.get("service_tier").and_then(Value::as_str))
    };
    let endpoint = endpoint(&fields)?;
    let tier = tier.map_or(ServiceTier::Standard, ServiceTier::parse);
    let catalog = (desk.catalog)();
    let shown: String = model.chars().take(96).collect();
    if catalog.group_of(model).is_none() {
        return Err(wrong_value("model", format!("There is no model '{shown}' here. See /models.")).into());
    }
    let Some(cost) = catalog.worst_cost(model, endpoint, &usage, tier) else {
        let message = format!("The model '{shown}' has no price for this, so nobody knows what it costs.");
        return Err(wrong_value("model", message).into());
    };
    Ok(Json(json!({
        "cost": Nanos(cost),
        "model": shown,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "estimated": usage.estimated,
    })))
}

fn prompt(fields: &Fields) -> Result<Usage> {
    let asked = ["messages", "input", "prompt"]
        .into_iter()
        .find_map(|name| fields.value(name));
    let asked = match asked {
        Some(asked) => asked,
        None => return Err(wrong_value("messages", "Give 'messages', or 'completion_response'.").into()),
    };
    if fields.has("messages") && !asked.is_array() {
        return Err(wrong_type("messages", "a list of objects").into());
    }
    let text = serde_json::to_vec(asked).unwrap_or_default();
    Ok(Usage {
        prompt_tokens: estimate_prompt_of(&text),
        estimated: true,
        ..Usage::default()
    })
}

/// By LiteLLM's name of the call (`acompletion`, `completion`) or by the path; a chat otherwise.
fn endpoint(fields: &Fields) -> Result<Endpoint> {
    let Some(name) = fields.text("call_type")?.filter(|n| !n.is_empty()) else {
        return Ok(Endpoint::Chat);
    };
    let fits = |e: &Endpoint| {
        let call = e.call_type();
        call == name || call.strip_prefix('a') == Some(name) || e.path().trim_start_matches('/') == name
    };
    let found = Endpoint::ALL.into_iter().find(fits);
    found.ok_or_else(|| wrong_value("call_type", "'call_type' is no kind of call that there is.").into())
}

/// `GET /spend/tags`: a call with three tags counts to each.
async fn tags(State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let filter = UsageFilter {
        by: vec![Group::Tag],
        order: UsageOrder::Spend,
        ..UsageFilter::default()
    };
    let filter = match (params.text("start_date")?, params.text("end_date")?) {
        // Of all days, as LiteLLM's is.
        (None, None) => filter,
        _ => Days::or_month(&params, desk.clock.now_micros())?.of(filter),
    };
    let rows = desk.sums(filter, MOST_SUMS / 10).await?;
    let list = rows.into_iter().map(|row| {
        json!({
            "individual_request_tag": row.tag,
            "log_count": row.usage.requests,
            "total_spend": Nanos(row.usage.spend_nanos),
        })
    });
    Ok(Json(Value::Array(list.collect())))
}

/// `GET /spend/keys`: rows of keys. Whoever does not see all sees its user's keys, or itself.
async fn keys(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let mut filter = KeyFilter {
        sort: KeySort::Spend,
        order: Order::Falling,
        ..KeyFilter::default()
    };
    if !actor.sees_spend() {
        match actor.user_id() {
            Some(user) => filter.user_id = Some(user.to_string()),
            None => filter.hashes = Some(vec![own_hash(&actor)?]),
        }
    }
    let page = Page {
        limit: limit(&params, 100)?,
        offset: 0,
    };
    let found = desk.store.list_keys(&filter, page).await?;
    Ok(Json(desk.keys_with_token(&found.keys).await?.into()))
}

/// `GET /spend/users`: `spend` is of the budget's period, `total_spend` of all time. Users without a row of
/// their own are there if they spent anything.
async fn users(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let limit = limit(&params, 100)? as usize;
    let mut asked = params.owned("user_id")?;
    if !actor.sees_spend() {
        let own = actor.user_id().ok_or_else(others)?;
        if asked.as_deref().is_some_and(|id| id != own) {
            return Err(others());
        }
        asked = Some(own.to_string());
    }
    let most = Page {
        limit: MAX_ROWS,
        offset: 0,
    };
    let mut ids: BTreeSet<String> = BTreeSet::new();
    let docs = desk
        .store
        .documents(
            Table::User,
            &DocFilter {
                ids: asked.clone().map(|id| vec![id]),
                page: most,
                ..DocFilter::default()
            },
        )
        .await?
        .docs;
    ids.extend(docs.iter().map(|d| d.id.clone()));
    let spenders = UsageFilter {
        by: vec![Group::User],
        user_ids: asked.clone().map(|id| vec![id]),
        order: UsageOrder::Spend,
        page: Page {
            limit: 1_000,
            offset: 0,
        },
        ..UsageFilter::default()
    };
    let spenders = desk.store.usage(&spenders).await?;
    ids.extend(
        spenders
            .into_iter()
            .filter_map(|r| r.user_id)
            .filter(|id| !id.is_empty()),
    );
    if ids.is_empty()
        && let Some(id) = asked
    {
        // One's own is there, though nothing is known of it.
        if actor.is_user(Some(&id)) {
            ids.insert(id);
        } else {
            return Err(not_found("user_id", format!("User {id} not found")).into());
        }
    }
    let ids: Vec<String> = ids.into_iter().collect();
    let mut rows = Vec::with_capacity(ids.len());
    for chunk in ids.chunks(MAX_ROWS as usize) {
        let accounts: Vec<Account> = chunk.iter().map(|id| Account::new(Subject::User, id)).collect();
        let balances = desk.store.balances(&accounts).await?;
        rows.extend(chunk.iter().zip(balances));
    }
    rows.sort_by_key(|(_, b)| std::cmp::Reverse((b.period_nanos, b.total_nanos)));
    rows.truncate(limit);
    let list = rows.into_iter().map(|(id, balance)| {
        let doc = docs.iter().find(|d| d.id == *id);
        let mut row = user_row(id, doc);
        row.insert("spend".into(), json!(Nanos(balance.period_nanos)));
        row.insert("total_spend".into(), json!(Nanos(balance.total_nanos)));
        Value::Object(row)
    });
    Ok(Json(Value::Array(list.collect())))
}

/// What a list of users shows of each.
fn user_row(id: &str, doc: Option<&Doc>) -> Map<String, Value> {
    let mut row = Map::new();
    row.insert("user_id".into(), json!(id));
    for name in [
        "user_email",
        "user_alias",
        "user_role",
        "max_budget",
        "budget_duration",
        "tpm_limit",
        "rpm_limit",
    ] {
        let value = doc.and_then(|d| d.fields.get(name)).cloned();
        row.insert(name.into(), value.unwrap_or_default());
    }
    for name in ["models", "teams"] {
        let value = doc
            .and_then(|d| d.fields.get(name))
            .filter(|v| v.is_array())
            .cloned();
        row.insert(name.into(), value.unwrap_or_else(|| json!([])));
    }
    row.insert("created_at".into(), json!(doc.map(|d| iso(d.created_at_micros))));
    row
}

/// `POST /global/spend/reset`, which LiteLLM answers by setting what keys and teams have spent to 0.
pub async fn reset(_: Actor) -> Result<Json<Value>> {
    Err(Refusal::new(
        400,
        "invalid_request_error",
        "Spend is the sum of the calls in the ledger and cannot be set to 0. Budgets with a 'budget_duration' start \
         anew by themselves: set one with /key/update, /team/update or /user/update. To let somebody go on now, \
         raise 'max_budget' there.",
    )
    .into())
}
