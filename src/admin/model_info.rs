//! What is told of models: `/model/info`, the same by page, and sums per name. Nothing here holds a secret:
//! no key, no header, no name or password in an address. Who is no admin sees its own models, and not where
//! they are.

use super::Desk;
use super::ask::Params;
use super::error::{Result, wrong_value};
use super::fields::{Field, Kind};
use super::rights::Actor;
use super::routes::{Route, Who};
use crate::conf::ModelEntry;
use crate::snapshot::{Entry, Models};
use axum::Json;
use axum::extract::State;
use axum::routing::on;
use filters::builtin::access;
use filters::model::price::{Capability, ServiceTier};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Models of one page, unless `size` says otherwise.
const MODELS: u64 = 50;
const MOST_MODELS: u64 = 500;

pub const ROUTES: &[Route] = &[
    Route {
        group: "models",
        who: Who::Reader,
        summary: "The models that the key may call: deployments, limits, prices",
        query: &[Field::new(
            "litellm_model_id",
            Kind::Text,
            "This deployment alone",
        )],
        answer: "ModelInfos",
        ..Route::get(&["/model/info", "/v1/model/info"], |m| on(m, info))
    },
    Route {
        group: "models",
        who: Who::Reader,
        summary: "The same by page",
        query: &[
            Field::new("model", Kind::Text, "Deployments of this name"),
            Field::new("modelId", Kind::Text, "This deployment alone"),
            Field::new("search", Kind::Text, "This text within the name"),
            Field::new("page", Kind::Count, "From 1"),
            Field::new("size", Kind::Count, "Models of a page, at most 500"),
        ],
        answer: "ModelPage",
        ..Route::get(&["/v2/model/info"], |m| on(m, paged))
    },
    Route {
        group: "models",
        who: Who::Reader,
        summary: "The names that the key may call, with what their deployments can do",
        query: &[Field::new("model_group", Kind::Text, "This name alone")],
        answer: "ModelGroups",
        ..Route::get(&["/model_group/info"], |m| on(m, groups))
    },
];

/// Those that the caller may call; an admin sees all.
fn visible<'a>(actor: &Actor, models: &'a Models) -> impl Iterator<Item = &'a Entry> {
    let holder = actor.holder().filter(|_| !actor.sees_all()).cloned();
    models.entries().iter().filter(move |e| {
        holder
            .as_ref()
            .is_none_or(|key| access::may(key, models, &e.written.model_name))
    })
}

/// `GET /model/info`.
async fn info(actor: Actor, State(desk): State<Arc<Desk>>, query: Params) -> Result<Json<Value>> {
    let snapshot = desk.reload.snapshot();
    let full = actor.sees_all();
    let mut entries = visible(&actor, &snapshot.models);
    let data: Vec<Value> = match query.text("litellm_model_id")? {
        None => entries.map(|e| one(e, full)).collect(),
        Some(id) => match entries.find(|e| e.deployment.id == id) {
            Some(entry) => vec![one(entry, full)],
            None => {
                let id: String = id.chars().take(200).collect();
                let message = format!("Model id = {id} not found on litellm proxy");
                return Err(wrong_value("litellm_model_id", message).into());
            }
        },
    };
    Ok(Json(json!({"data": data})))
}

/// `GET /v2/model/info`.
async fn paged(actor: Actor, State(desk): State<Arc<Desk>>, query: Params) -> Result<Json<Value>> {
    let slice = query.page(&["size", "page_size"], MODELS, MOST_MODELS)?;
    let (name, id) = (query.text("model")?, query.text("modelId")?);
    let search = query.text("search")?.map(str::to_lowercase);
    let snapshot = desk.reload.snapshot();
    let found: Vec<&Entry> = visible(&actor, &snapshot.models)
        .filter(|e| name.is_none_or(|n| e.written.model_name == n))
        .filter(|e| id.is_none_or(|i| e.deployment.id == i))
        .filter(|e| {
            let within = |s: &String| e.written.model_name.to_lowercase().contains(s);
            search.as_ref().is_none_or(within)
        })
        .collect();
    let full = actor.sees_all();
    let page = found
        .iter()
        .skip(usize::try_from(slice.offset).unwrap_or(usize::MAX))
        .take(slice.size as usize);
    let total = found.len() as u64;
    Ok(Json(json!({
        "data": page.map(|e| one(e, full)).collect::<Vec<_>>(),
        "total_count": total,
        "current_page": slice.page,
        "total_pages": total.div_ceil(slice.size),
        "size": slice.size,
    })))
}

/// `GET /model_group/info`.
async fn groups(actor: Actor, State(desk): State<Arc<Desk>>, query: Params) -> Result<Json<Value>> {
    let only = query.text("model_group")?;
    let snapshot = desk.reload.snapshot();
    let mut names: Vec<&str> = Vec::new();
    let mut members: std::collections::HashMap<&str, Vec<&Entry>> = std::collections::HashMap::new();
    for entry in visible(&actor, &snapshot.models) {
        let name = entry.written.model_name.as_str();
        if only.is_none_or(|o| o == name) {
            members
                .entry(name)
                .or_insert_with(|| {
                    names.push(name);
                    Vec::new()
                })
                .push(entry);
        }
    }
    let data: Vec<Value> = names
        .into_iter()
        .filter_map(|name| Some(group(name, members.get(name)?)))
        .collect();
    Ok(Json(json!({"data": data})))
}

/// The deployments of one name as one: the widest limits, the highest price, what any of them can do.
fn group(name: &str, entries: &[&Entry]) -> Value {
    let mut providers: Vec<&str> = entries.iter().map(|e| e.deployment.provider.as_str()).collect();
    providers.sort_unstable();
    providers.dedup();
    let most = |field: &dyn Fn(&Entry) -> Option<u64>| entries.iter().filter_map(|e| field(e)).max();
    let sum = |field: &dyn Fn(&Entry) -> Option<u64>| {
        let known = entries.iter().filter_map(|e| field(e));
        known.reduce(u64::saturating_add)
    };
    let dearest = |field: &str| {
        let prices = entries.iter().filter_map(|e| price(e, field));
        prices.reduce(f64::max)
    };
    let mut out = json!({
        "model_group": name,
        "providers": providers,
        "max_input_tokens": most(&max_input),
        "max_output_tokens": most(&|e| e.deployment.max_output_tokens),
        "input_cost_per_token": dearest("input_cost_per_token"),
        "output_cost_per_token": dearest("output_cost_per_token"),
        "mode": entries.iter().find_map(|e| mode(e)),
        "tpm": sum(&|e| e.written.params.tpm),
        "rpm": sum(&|e| e.written.params.rpm),
        "supported_openai_params": null,
        "configurable_clientside_auth_params": null,
        "is_public_model_group": false,
    });
    for capability in Capability::all() {
        let can = entries.iter().any(|e| can(e, capability));
        out[capability.field()] = can.into();
    }
    out
}

fn max_input(entry: &Entry) -> Option<u64> {
    let listed = entry.listing.as_ref().and_then(|l| l.max_input_tokens);
    entry.written.info.max_input_tokens.or(listed)
}

fn mode(entry: &Entry) -> Option<&str> {
    let listed = entry.listing.as_ref().map(|l| l.mode.as_str());
    entry.written.info.mode.as_deref().or(listed)
}

/// What the config says, else what the price table does.
fn can(entry: &Entry, capability: Capability) -> bool {
    let said = entry.written.info.all.get(capability.field());
    let listed = || entry.listing.as_ref().is_some_and(|l| l.supports(capability));
    said.and_then(Value::as_bool).unwrap_or_else(listed)
}

/// Dollars per unit, of the usual tier and a prompt of any length.
fn price(entry: &Entry, field: &str) -> Option<f64> {
    let rates = entry.deployment.price.as_ref()?.rates();
    let usual = rates
        .iter()
        .filter(|r| r.above == 0 && r.tier == ServiceTier::Standard);
    usual
        .filter(|r| r.field() == field)
        .map(|r| r.price.to_dollars_f64())
        .next()
}

fn one(entry: &Entry, full: bool) -> Value {
    let (written, deployment) = (&entry.written, &entry.deployment);
    let mut info = Map::new();
    if let Some(listing) = &entry.listing {
        info.insert("key".into(), json!(listing.name));
        if let Some(day) = &listing.deprecation_date {
            info.insert("deprecation_date".into(), json!(day));
        }
    }
    for capability in Capability::all() {
        info.insert(capability.field().into(), can(entry, capability).into());
    }
    for rate in deployment.price.iter().flat_map(|p| p.rates()) {
        info.insert(rate.field(), json!(rate.price.to_dollars_f64()));
    }
    info.extend(harmless(written.info.all.clone()));
    let limits = json!({
        "id": deployment.id,
        "db_model": written.stored,
        "litellm_provider": deployment.provider,
        "mode": mode(entry),
        "max_tokens": deployment.max_output_tokens,
        "max_input_tokens": max_input(entry),
        "max_output_tokens": deployment.max_output_tokens,
    });
    if let Value::Object(limits) = limits {
        info.extend(limits);
    }
    json!({
        "model_name": written.model_name,
        "litellm_params": params(written, full),
        "model_info": info,
    })
}

/// `litellm_params` without what is secret; with `full` unset, without addresses and call defaults too.
pub fn params(entry: &ModelEntry, full: bool) -> Map<String, Value> {
    let p = &entry.params;
    let seconds = |d: std::time::Duration| json!(d.as_secs_f64());
    let mut out = Map::new();
    if full {
        out = p.defaults.clone();
        out.extend(p.costs.clone());
    }
    let given = [
        ("model", Some(json!(p.model))),
        ("custom_llm_provider", Some(json!(p.provider.name))),
        (
            "api_base",
            p.api_base.as_deref().filter(|_| full).map(|b| json!(address(b))),
        ),
        (
            "organization",
            p.organization.as_ref().filter(|_| full).map(|o| json!(o)),
        ),
        ("timeout", p.timeout.map(seconds)),
        ("stream_timeout", p.stream_timeout.map(seconds)),
        ("max_retries", p.max_retries.map(|n| json!(n))),
        ("weight", p.weight.map(|n| json!(n))),
        ("rpm", p.rpm.map(|n| json!(n))),
        ("tpm", p.tpm.map(|n| json!(n))),
        ("max_parallel_requests", p.max_parallel_requests.map(|n| json!(n))),
        ("order", p.order.map(|n| json!(n))),
        ("cooldown_time", p.cooldown_time.map(seconds)),
        ("drop_params", p.drop_params.map(|n| json!(n))),
        (
            "additional_drop_params",
            Some(json!(p.additional_drop_params)).filter(|_| !p.additional_drop_params.is_empty()),
        ),
        ("base_model", p.base_model.as_ref().map(|b| json!(b))),
    ];
    for (name, value) in given {
        if let Some(value) = value {
            out.insert(name.into(), value);
        }
    }
    harmless(out)
}

/// An address without name, password and query: any of them may be a key.
fn address(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    match text.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_once('/').map_or((rest, None), |(a, p)| (a, Some(p)));
            let host = authority.rsplit('@').next().unwrap_or_default();
            match path {
                Some(path) => format!("{scheme}://{host}/{path}"),
                None => format!("{scheme}://{host}"),
            }
        }
        None => text.to_string(),
    }
}

/// Leaves out what is secret by its name or its look, at any depth.
pub fn harmless(map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter()
        .filter(|(name, value)| !hides(name, value))
        .filter_map(|(name, value)| Some((name, clean(value)?)))
        .collect()
}

fn clean(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) => Some(Value::Object(harmless(map))),
        Value::Array(list) => Some(list.into_iter().filter_map(clean).collect()),
        Value::String(text) if text.contains("sk-") || text.starts_with("Bearer ") => None,
        Value::String(text) if text.contains("://") => Some(address(&text).into()),
        other => Some(other),
    }
}

/// Numbers and flags are no secrets: `max_tokens`, `input_cost_per_token`.
fn hides(name: &str, value: &Value) -> bool {
    if !(value.is_string() || value.is_object() || value.is_array()) {
        return false;
    }
    let name = name.to_ascii_lowercase().replace('-', "_");
    name.starts_with("aws_")
        || name.ends_with("_key")
        || matches!(
            name.as_str(),
            "key" | "headers" | "extra_headers" | "default_headers"
        )
        || [
            "api_key",
            "apikey",
            "token",
            "secret",
            "password",
            "credential",
            "authorization",
            "cookie",
            "private",
        ]
        .iter()
        .any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_left_out_and_numbers_stay() {
        let written = json!({
            "api_key": "a", "headers": {"x": "b"}, "azure_ad_token": "c", "client_secret": "d", "aws_region_name": "e",
            "extra_body": {"api_key": "f", "deep": [{"password": "g", "kept": 1}, "sk-abc"]}, "max_tokens": 5,
            "input_cost_per_token": 0.1, "callback": "https://me:h@host/path?key=i", "stop": ["x"],
        });
        let shown = harmless(written.as_object().unwrap().clone());
        assert_eq!(
            Value::Object(shown),
            json!({"extra_body": {"deep": [{"kept": 1}]}, "max_tokens": 5, "input_cost_per_token": 0.1,
                "callback": "https://host/path", "stop": ["x"]})
        );
        assert_eq!(address("http://u:p@[::1]:8/v1?x=y#z"), "http://[::1]:8/v1");
        assert_eq!(address("http://h"), "http://h");
    }
}
