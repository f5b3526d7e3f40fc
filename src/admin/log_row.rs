//! How a row of the ledger looks in answers: the plain API's names and LiteLLM's side by side.

use super::shapes::iso;
use filters::model::money::Nanos;
use filters::model::record::{Attempt, Record, Status};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// One call. Money in dollars, times in UTC.
#[derive(Serialize)]
pub struct Row<'a> {
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
    pub fn of(r: &'a Record) -> Self {
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
            organization_id: r.organization_id.as_deref(),
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
