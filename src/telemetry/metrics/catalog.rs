//! Every metric there is, as data: `docs/metrics.md` is made of this list and held against it by a test.
//!
//! Names have base units. Labels hold what the config or the store names, words from fixed lists, or `other`:
//! nothing that a caller makes up.

use super::page::{Family, Kind};

macro_rules! families {
    ($($id:ident: $kind:ident $name:literal [$($label:ident),*] $unit:literal, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $id: Family = Family {
                name: $name,
                kind: Kind::$kind,
                labels: &[$(stringify!($label)),*],
                unit: $unit,
                help: $help,
            };
        )*
        /// In the order of the manual.
        pub static ALL: &[&Family] = &[$(&$id),*];
    };
}

families! {
    // The four names that LiteLLM's users were promised.
    LITELLM_REQUESTS: Counter "litellm_requests_total" [model, status] "requests",
        "Requests by model and status.";
    LITELLM_DURATION: Histogram "litellm_request_duration_seconds" [model] "seconds",
        "From the request's head to its last byte.";
    LITELLM_TOKENS: Counter "litellm_tokens_total" [model, type] "tokens",
        "Tokens by model and type: prompt, completion.";
    LITELLM_ERRORS: Counter "litellm_errors_total" [model, code] "requests",
        "Failed requests by model and kind of error.";

    // Calls.
    REQUESTS: Counter "tollkeeper_requests_total" [model, endpoint, status] "requests",
        "Requests by model, endpoint and status; the endpoint of pass-through and of requests without a call is none.";
    DURATION: Histogram "tollkeeper_request_duration_seconds" [model] "seconds",
        "From the request's head to its last byte, the client's own slowness included.";
    ERRORS: Counter "tollkeeper_errors_total" [model, kind] "requests",
        "Failed requests by model and kind of error.";
    FIRST_BYTE: Histogram "tollkeeper_time_to_first_byte_seconds" [model] "seconds",
        "From the request's head to the upstream's first byte.";
    FIRST_TOKEN: Histogram "tollkeeper_time_to_first_token_seconds" [model] "seconds",
        "Streams: from the request's head to the first piece of the answer.";
    INTER_TOKEN: Histogram "tollkeeper_inter_token_seconds" [model] "seconds",
        "Streams: mean time between two tokens of an answer.";
    UPSTREAM: Histogram "tollkeeper_upstream_duration_seconds" [model] "seconds",
        "Of a request: all attempts at upstreams together, until the last byte of the answer.";
    OVERHEAD: Histogram "tollkeeper_gateway_overhead_seconds" [model] "seconds",
        "Of a request that went upstream: what no attempt took, such as reading the body, queueing, pauses between rounds.";
    TOKENS: Counter "tollkeeper_tokens_total" [model, type] "tokens",
        "Tokens by model and type: prompt, completion.";
    TOKEN_DETAILS: Counter "tollkeeper_token_details_total" [model, detail] "tokens",
        "Tokens that are in tollkeeper_tokens_total already, by what they were: cached, cache_creation, reasoning.";
    SPEND: Counter "tollkeeper_spend_dollars_total" [model] "dollars",
        "What calls cost.";
    SPEND_NANOS: Counter "tollkeeper_spend_nanodollars_total" [model] "nano-dollars",
        "What calls cost, exactly.";
    UNPRICED: Counter "tollkeeper_unpriced_calls_total" [model] "calls",
        "Answered calls of models without a known price.";
    ESTIMATED: Counter "tollkeeper_estimated_calls_total" [model] "calls",
        "Calls whose usage the upstream did not tell, so that it was counted here.";
    RETRIES: Counter "tollkeeper_retries_total" [model] "attempts",
        "Attempts at a deployment that had failed for the same call before.";
    FALLBACKS: Counter "tollkeeper_fallbacks_total" [model, outcome] "calls",
        "Calls that went on to another deployment, of their model or of another, by how that ended: answered, failed.";
    MODEL_FALLBACKS: Counter "tollkeeper_model_fallbacks_total" [model, fallback, outcome] "calls",
        "Calls of a model that went on to another one, by how that one ended: answered, failed.";
    IN_FLIGHT: Gauge "tollkeeper_requests_in_flight" [] "requests",
        "Requests between head and last byte.";
    CONNECTIONS: Gauge "tollkeeper_connections" [] "connections",
        "Client connections that are open.";
    CONNECTIONS_REFUSED: Counter "tollkeeper_connections_refused_total" [reason] "connections",
        "Client connections that were closed at the door or cut, by reason, see docs/edge.md.";

    // Deployments.
    ATTEMPTS: Counter "tollkeeper_deployment_attempts_total" [deployment, model, provider, outcome] "attempts",
        "Attempts by how they ended: answered, no_answer, rate_limited, credentials, server_error, refused.";
    ATTEMPT_DURATION: Histogram "tollkeeper_deployment_attempt_duration_seconds" [deployment, model, provider] "seconds",
        "From the attempt's start to the answer: its head for streams, all of it otherwise.";
    DEPLOYMENT_STATE: Gauge "tollkeeper_deployment_state" [deployment, model, provider] "0, 1, 2",
        "How the last attempts ended: 0 well, 1 the last one or two failed, 2 three or more in a row failed.";
    COOLDOWNS: Counter "tollkeeper_deployment_cooldowns_total" [deployment, model, provider, reason] "cool-downs",
        "Times a deployment stepped back behind the others of its name, by reason: rate_limit, authentication, timeout, not_found, server_error, unreachable.";
    COOLING: Gauge "tollkeeper_deployment_cooling" [deployment, model, provider] "0, 1",
        "1 while a deployment is cooling: it is asked only where no other is left.";
    DEPLOYMENTS: Gauge "tollkeeper_deployments" [] "deployments",
        "Deployments that the config has.";
    UPSTREAM_CONNECTIONS: Counter "tollkeeper_upstream_connections_total" [kind] "attempts",
        "Attempts of model calls by the connection they went out on: new, reused (from the pool).";

    // Services behind stream lanes.
    SERVICE_REQUESTS: Counter "tollkeeper_service_requests_total" [service, backend, status] "requests",
        "Requests at a service's backend by status: 1xx to 5xx, none when no answer came.";
    SERVICE_UP: Gauge "tollkeeper_service_backend_up" [service, backend] "0, 1",
        "1 while requests go there: the last health check was good, and it did not refuse a connection just now.";
    SERVICE_IN_FLIGHT: Gauge "tollkeeper_service_requests_in_flight" [service, backend] "requests",
        "Requests and WebSockets that a backend has.";

    // Budgets and limits.
    BUDGET: Gauge "tollkeeper_budget_dollars" [kind, id, name] "dollars",
        "Budgets of who called within the last minutes: gateway, organization, team, key; the 100 that are used most.";
    BUDGET_REMAINING: Gauge "tollkeeper_budget_remaining_dollars" [kind, id, name] "dollars",
        "What is left of these in their period, below zero when more was spent.";
    BUDGET_RESET: Gauge "tollkeeper_budget_reset_timestamp_seconds" [kind, id, name] "seconds since 1970",
        "When the budget's period ends.";
    LIMIT: Gauge "tollkeeper_limit" [kind, id, name, limit] "requests or tokens per minute, calls in flight",
        "Limits of the same subjects: requests, tokens, max_parallel_requests.";
    LIMIT_USED: Gauge "tollkeeper_limit_used" [kind, id, name, limit] "requests or tokens of the last minute, calls in flight",
        "What is used of these here.";
    SOFT_CROSSED: Counter "tollkeeper_budget_soft_crossed_total" [kind] "crossings",
        "Soft budgets that were crossed, by kind of subject.";
    LIMIT_REFUSED: Counter "tollkeeper_limit_refused_total" [kind, limit] "calls",
        "Calls refused by a limit, by kind of subject and what it limits.";
    METERS: Gauge "tollkeeper_limit_meters" [kind] "subjects",
        "Subjects whose limits are in memory, by kind.";
    LIMITED_IN_FLIGHT: Gauge "tollkeeper_limited_calls_in_flight" [kind] "calls",
        "Calls in flight that a limit counts, by kind of subject.";
    RESERVED: Gauge "tollkeeper_budget_reserved_nanodollars" [kind] "nano-dollars",
        "Set aside for calls in flight, by kind of subject.";
    WAITING: Gauge "tollkeeper_limited_calls_waiting" [] "calls",
        "Calls that wait for room within their limits.";

    // The ledger.
    LEDGER_PENDING: Gauge "tollkeeper_ledger_pending_records" [] "records",
        "Records on their way to the store.";
    LEDGER_PENDING_BYTES: Gauge "tollkeeper_ledger_pending_bytes" [] "bytes",
        "What these take in the spool.";
    LEDGER_OLDEST: Gauge "tollkeeper_ledger_oldest_record_age_seconds" [] "seconds",
        "Since the end of the call whose record is next in line; 0 when none waits.";
    LEDGER_LANDED: Counter "tollkeeper_ledger_landed_records_total" [] "records",
        "Records brought into the store.";
    LEDGER_DEAD: Gauge "tollkeeper_ledger_dead_records" [] "records",
        "Records that the store can never take.";
    LEDGER_LOST: Gauge "tollkeeper_ledger_lost_records" [] "records",
        "Records that neither disk nor memory took.";
    LEDGER_SPOOL_ERRORS: Gauge "tollkeeper_ledger_spool_errors" [] "errors",
        "Times the disk refused a record.";
    LEDGER_HEALTHY: Gauge "tollkeeper_ledger_healthy" [] "0, 1",
        "1 while the disk takes records and the store takes rows.";

    // Langfuse and OpenTelemetry.
    TRACES_SENT: Counter "tollkeeper_traces_sent_total" [exporter] "calls",
        "Calls that Langfuse or OpenTelemetry were told of.";
    TRACES_LOST: Counter "tollkeeper_traces_lost_total" [exporter, reason] "calls",
        "Calls that they were not told of: full, refused, rejected, address, projects, sealed, removed.";
    TRACES_RETRIES: Counter "tollkeeper_traces_retries_total" [exporter] "batches",
        "Batches that were sent again.";
    TRACES_UP: Gauge "tollkeeper_traces_receiver_up" [exporter] "0, 1",
        "1 while the receiver takes what it is sent.";
    TRACES_QUEUE: Gauge "tollkeeper_traces_queue_bytes" [] "bytes",
        "What waits in memory to be told.";

    // Alerts and the log.
    ALERTS: Counter "tollkeeper_alerts_total" [event, outcome] "posts",
        "Alerts by what became of them: sent and failed, for each webhook; dropped, as too many waited; repeated, not posted since the same was told a short while ago, here or by another replica.";
    LOG_LINES: Counter "tollkeeper_log_lines_total" [level] "lines",
        "Lines of the log by level, those of requests included.";
    LOG_LOST: Counter "tollkeeper_log_lines_lost_total" [] "lines",
        "Lines that whoever reads stderr did not take in time.";
    LOG_SUPPRESSED: Counter "tollkeeper_log_lines_suppressed_total" [] "lines",
        "Lines of requests beyond log.most_per_second; how many of each kind is told in one line a second.";

    // Certificates, config, process.
    CERTIFICATES: Gauge "tollkeeper_tls_certificate_expires_seconds" [host] "seconds",
        "Until the certificate that is shown for a configured name ends; below zero when it has.";
    GENERATION: Gauge "tollkeeper_config_generation" [] "generations",
        "Counts up with each config that was taken into use.";
    CONFIG_APPLIED: Gauge "tollkeeper_config_applied_timestamp_seconds" [] "seconds since 1970",
        "When the config that serves was taken into use.";
    CONFIG_LAST_OK: Gauge "tollkeeper_config_last_reload_successful" [] "0, 1",
        "0 when the last attempt to change the config failed: the old one serves.";
    CONFIG_RESTART: Gauge "tollkeeper_config_restart_needed" [] "settings",
        "Settings that were changed and wait for a restart.";
    LEAVING: Gauge "tollkeeper_leaving" [] "0, 1",
        "1 once the process was told to go and lets its calls end.";
    BUILD: Gauge "tollkeeper_build_info" [version, store] "1",
        "Which version this is, and which database it keeps its books in.";
    CPU: Counter "process_cpu_seconds_total" [] "seconds",
        "User and system CPU time.";
    RSS: Gauge "process_resident_memory_bytes" [] "bytes",
        "Memory that is in use.";
    VIRTUAL: Gauge "process_virtual_memory_bytes" [] "bytes",
        "Address space that is in use.";
    OPEN_FDS: Gauge "process_open_fds" [] "files",
        "Open file descriptors, sockets included.";
    MAX_FDS: Gauge "process_max_fds" [] "files",
        "The most there may be.";
    THREADS: Gauge "process_threads" [] "threads",
        "Threads of the process.";
    STARTED: Gauge "process_start_time_seconds" [] "seconds since 1970",
        "When the process was started.";

    // LiteLLM's own names, where they are asked for.
    L_REQUESTS: Counter "litellm_proxy_total_requests_metric_total"
        [api_key_alias, end_user, hashed_api_key, requested_model, route, status_code, team, team_alias, user, user_email] "requests",
        "LiteLLM: requests that clients made.";
    L_FAILED: Counter "litellm_proxy_failed_requests_metric_total"
        [api_key_alias, end_user, exception_class, exception_status, hashed_api_key, requested_model, route, team, team_alias, user, user_email] "requests",
        "LiteLLM: requests that failed.";
    L_LATENCY: Histogram "litellm_request_total_latency_metric"
        [api_key_alias, end_user, hashed_api_key, model, requested_model, team, team_alias, user] "seconds",
        "LiteLLM: from the request's head to its last byte.";
    L_API_LATENCY: Histogram "litellm_llm_api_latency_metric"
        [api_key_alias, end_user, hashed_api_key, model, requested_model, team, team_alias, user] "seconds",
        "LiteLLM: of that, what upstreams took.";
    L_FIRST_TOKEN: Histogram "litellm_llm_api_time_to_first_token_metric"
        [api_key_alias, hashed_api_key, model, team, team_alias] "seconds",
        "LiteLLM: streams, to the first piece of the answer.";
    L_OVERHEAD: Histogram "litellm_overhead_latency_metric"
        [api_base, api_key_alias, api_provider, hashed_api_key, litellm_model_name, model_group] "seconds",
        "LiteLLM: what the gateway took; api_base is always None.";
    L_SPEND: Counter "litellm_spend_metric_total"
        [api_key_alias, end_user, hashed_api_key, model, team, team_alias, user, user_email] "dollars",
        "LiteLLM: what calls cost.";
    L_CALLS: Counter "litellm_requests_metric_total"
        [api_key_alias, end_user, hashed_api_key, model, team, team_alias, user, user_email] "calls",
        "LiteLLM: calls that were answered.";
    L_TOKENS: Counter "litellm_total_tokens_metric_total"
        [api_key_alias, end_user, hashed_api_key, model, requested_model, team, team_alias, user, user_email] "tokens",
        "LiteLLM: input and output tokens.";
    L_INPUT: Counter "litellm_input_tokens_metric_total"
        [api_key_alias, end_user, hashed_api_key, model, requested_model, team, team_alias, user, user_email] "tokens",
        "LiteLLM: input tokens.";
    L_OUTPUT: Counter "litellm_output_tokens_metric_total"
        [api_key_alias, end_user, hashed_api_key, model, requested_model, team, team_alias, user, user_email] "tokens",
        "LiteLLM: output tokens.";
    L_DEPLOYMENT_TOTAL: Counter "litellm_deployment_total_requests_total"
        [api_base, api_provider, litellm_model_name, model_id, requested_model] "attempts",
        "LiteLLM: attempts at a deployment; without the key's labels.";
    L_DEPLOYMENT_GOOD: Counter "litellm_deployment_success_responses_total"
        [api_base, api_provider, litellm_model_name, model_id, requested_model] "attempts",
        "LiteLLM: of these, those that were answered.";
    L_DEPLOYMENT_BAD: Counter "litellm_deployment_failure_responses_total"
        [api_base, api_provider, exception_class, exception_status, litellm_model_name, model_id, requested_model] "attempts",
        "LiteLLM: of these, those that failed; exception_status is None where no answer came.";
    L_DEPLOYMENT_STATE: Gauge "litellm_deployment_state"
        [api_base, api_provider, litellm_model_name, model_id] "0, 1, 2",
        "LiteLLM: 0 healthy, 1 partial outage, 2 outage.";
    L_COOLED: Counter "litellm_deployment_cooled_down_total"
        [api_base, api_provider, exception_status, litellm_model_name, model_id] "cool-downs",
        "LiteLLM: times a deployment was cooled down; exception_status is None where no answer came.";
    L_FALLBACKS_GOOD: Counter "litellm_deployment_successful_fallbacks_total" [fallback_model, requested_model] "calls",
        "LiteLLM: calls that another model answered; without the key's labels.";
    L_FALLBACKS_BAD: Counter "litellm_deployment_failed_fallbacks_total" [fallback_model, requested_model] "calls",
        "LiteLLM: calls that another model did not answer either.";
    L_KEY_REMAINING: Gauge "litellm_remaining_api_key_budget_metric" [api_key_alias, hashed_api_key] "dollars",
        "LiteLLM: what is left of a key's budget.";
    L_KEY_BUDGET: Gauge "litellm_api_key_max_budget_metric" [api_key_alias, hashed_api_key] "dollars",
        "LiteLLM: a key's budget.";
    L_KEY_HOURS: Gauge "litellm_api_key_budget_remaining_hours_metric" [api_key_alias, hashed_api_key] "hours",
        "LiteLLM: until a key's budget starts anew.";
    L_TEAM_REMAINING: Gauge "litellm_remaining_team_budget_metric" [team, team_alias] "dollars",
        "LiteLLM: what is left of a team's budget.";
    L_TEAM_BUDGET: Gauge "litellm_team_max_budget_metric" [team, team_alias] "dollars",
        "LiteLLM: a team's budget.";
    L_TEAM_HOURS: Gauge "litellm_team_budget_remaining_hours_metric" [team, team_alias] "hours",
        "LiteLLM: until a team's budget starts anew.";
}
