//! `LiteLLM_SpendLogs` to ledger rows, on request. Their money is part of the sums that came with keys,
//! owners and days; the rows are there to be looked at and add to nothing.

use super::row::{Row, id_flaw};
use crate::store::litellm::Table;
use filters::model::call::Endpoint;
use filters::model::key::KeyHash;
use filters::model::record::{Record, Status};
use serde_json::{Map, Value};

pub const TABLE: &str = "LiteLLM_SpendLogs";

/// The most one ledger row may cost: a million dollars.
const MOST_NANOS: i64 = 1_000_000 * 1_000_000_000;

/// Everything but prompts and answers, which are never taken.
const COLUMNS: &[&str] = &[
    "request_id",
    "call_type",
    "api_key",
    "spend",
    "prompt_tokens",
    "completion_tokens",
    "startTime",
    "endTime",
    "completionStartTime",
    "model",
    "model_id",
    "model_group",
    "custom_llm_provider",
    "user",
    "metadata",
    "request_tags",
    "team_id",
    "organization_id",
    "end_user",
    "requester_ip_address",
    "status",
];

/// All rows.
pub fn table() -> Table<'static> {
    Table {
        name: TABLE,
        id: "request_id",
        columns: COLUMNS.to_vec(),
        beside: &[],
        label: &["request_id"],
    }
}

/// Makes a ledger row; the error says why it is left.
pub fn record(row: &mut Row) -> Result<Record, &'static str> {
    let request_id = row.text("request_id").ok_or("it has no id")?;
    if id_flaw(&request_id).is_some() {
        return Err("its id is longer than 512 bytes or holds control characters");
    }
    let call_type = row.text("call_type").unwrap_or_default();
    let endpoint = endpoint(&call_type).ok_or("it is no call of a kind that is kept here")?;
    let started = row.micros("startTime").ok_or("its start is no time")?;
    let ended = row.micros("endTime").unwrap_or(started).max(started);
    let metadata = row.object("metadata");
    let failed = row
        .text("status")
        .or_else(|| metadata.get("status")?.as_str().map(Into::into))
        .is_some_and(|s| s == "failure");
    let mut spend_nanos = row.nanos("spend").unwrap_or(0);
    let clamped = spend_nanos > MOST_NANOS || row.flaws.iter().any(|f| f.field == "spend");
    if spend_nanos > MOST_NANOS {
        row.flaw(
            "spend",
            "is more than a million dollars for one call, cut to that",
        );
        spend_nanos = MOST_NANOS;
    }
    let count = |name: &str| row.value(name).and_then(Value::as_u64).unwrap_or(0);
    let (prompt_tokens, completion_tokens) = (count("prompt_tokens"), count("completion_tokens"));
    let usage = metadata.get("usage_object");
    let detail = |group: &str, name: &str| {
        let value = usage.and_then(|u| u.get(group)).and_then(|g| g.get(name));
        value.and_then(Value::as_u64).unwrap_or(0)
    };
    let model = row.text("model").unwrap_or_default();
    let group = row.text("model_group").unwrap_or_else(|| model.clone());
    let mut record = Record {
        request_id,
        endpoint,
        key_hash: row.text("api_key").and_then(|h| KeyHash::from_hex(&h)),
        key_alias: said(&metadata, "user_api_key_alias"),
        user_id: row.text("user"),
        team_id: row.text("team_id"),
        organization_id: row.text("organization_id"),
        end_user: row.text("end_user"),
        requested_model: group.clone(),
        model_group: group,
        model,
        deployment_id: row.text("model_id").unwrap_or_default(),
        provider: row.text("custom_llm_provider").unwrap_or_default(),
        stream: false,
        status: if failed { Status::Failure } else { Status::Success },
        http_status: http_status(failed, &metadata),
        error: failed.then(|| error_class(&metadata)).flatten(),
        prompt_tokens,
        completion_tokens,
        cached_tokens: detail("prompt_tokens_details", "cached_tokens"),
        cache_creation_tokens: detail("prompt_tokens_details", "cache_creation_tokens"),
        reasoning_tokens: detail("completion_tokens_details", "reasoning_tokens"),
        characters: 0,
        audio_millis: 0,
        images: 0,
        spend_nanos,
        priced: true,
        estimated: false,
        clamped,
        started_micros: started,
        first_byte_micros: row
            .micros("completionStartTime")
            .filter(|t| (started..=ended).contains(t)),
        ended_micros: ended,
        attempts: Vec::new(),
        tags: tags(row),
        metadata: kept(&metadata),
        client_ip: row.text("requester_ip_address").unwrap_or_default(),
        user_agent: None,
        bytes_in: 0,
        bytes_out: 0,
    };
    record.clean();
    Ok(record)
}

/// LiteLLM names calls by its Python functions; `a…` is the asynchronous one.
fn endpoint(call_type: &str) -> Option<Endpoint> {
    let name = match call_type {
        // Neither of these begins with the `a` of an asynchronous one.
        "anthropic_messages" => "completion",
        "" => "completion",
        name => name,
    };
    Some(match name.strip_prefix('a').unwrap_or(name) {
        "completion" => Endpoint::Chat,
        "text_completion" => Endpoint::Completions,
        "embedding" => Endpoint::Embeddings,
        "speech" => Endpoint::Speech,
        "transcription" => Endpoint::Transcriptions,
        "image_generation" => Endpoint::Images,
        "moderation" => Endpoint::Moderations,
        "rerank" => Endpoint::Rerank,
        "responses" => Endpoint::Responses,
        _ => return None,
    })
}

fn said(metadata: &Map<String, Value>, name: &str) -> Option<String> {
    let text = metadata.get(name)?.as_str()?;
    (!text.is_empty()).then(|| text.into())
}

fn http_status(failed: bool, metadata: &Map<String, Value>) -> u16 {
    if !failed {
        return 200;
    }
    let code = metadata
        .get("error_information")
        .and_then(|e| e.get("error_code"));
    let code = match code {
        Some(Value::String(text)) => text.parse().ok(),
        Some(value) => value.as_u64().and_then(|n| u16::try_from(n).ok()),
        None => None,
    };
    code.filter(|c| (400..600).contains(c)).unwrap_or(500)
}

/// The kind of error only: LiteLLM's texts hold tracebacks, and what an upstream quoted.
fn error_class(metadata: &Map<String, Value>) -> Option<String> {
    let class = metadata.get("error_information")?.get("error_class")?.as_str()?;
    (!class.is_empty()).then(|| class.into())
}

fn tags(row: &mut Row) -> Vec<String> {
    match row.value("request_tags") {
        Some(Value::Array(_)) => row.texts("request_tags"),
        // Older releases wrote the list as a text.
        Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// What the caller gave to be kept.
fn kept(metadata: &Map<String, Value>) -> Option<String> {
    let given = ["spend_logs_metadata", "requester_metadata"]
        .into_iter()
        .filter_map(|name| metadata.get(name)?.as_object())
        .find(|fields| !fields.is_empty())?;
    serde_json::to_string(given).ok()
}
