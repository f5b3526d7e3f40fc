//! `model_list`: each entry read into a deployment, its provider, address and key resolved.

use serde_json::{Map, Value as Json};

use super::fields::Fields;
use super::keys::{CALL_PARAMS, PARAMS, PROVIDER_PARAM_NAMES, PROVIDER_PARAMS};
use super::litellm::Spoken;
use super::load::Env;
use super::node::{Entry, Node, Value};
use super::pass_through::headers;
use super::reach::{address, key, resolve};
use super::report::Notes;
use super::settings::{say_fate, top_section};
use super::text::{base_url, nearest, shown};
use super::types::{Dialect, LitellmParams, ModelEntry, ModelInfo, Provider};

/// Most deployments in one config.
const MAX_MODELS: usize = 20_000;

/// Reads `model_list` into those that can be used and those whose provider is not spoken yet.
pub(super) fn read(root: &Node, env: &Env, notes: &Notes) -> (Vec<ModelEntry>, Vec<ModelEntry>) {
    let (mut used, mut skipped) = (Vec::new(), Vec::new());
    let Some(section) = top_section(root, "model_list").filter(|e| !e.value.is_null()) else {
        return (used, skipped);
    };
    let Value::Seq(items) = &section.value.value else {
        let message = format!("`model_list` must be a list, not {}", section.value.kind());
        drop(
            notes
                .error("type", message)
                .at(section.key_at)
                .help("start each model with `- model_name: …`"),
        );
        return (used, skipped);
    };
    if items.len() > MAX_MODELS {
        drop(
            notes
                .error("too-large", format!("more than {MAX_MODELS} models"))
                .at(section.key_at),
        );
    }
    for (index, item) in items.iter().take(MAX_MODELS).enumerate() {
        let Some(entry) = model(item, index, env, notes) else {
            continue;
        };
        match entry.params.provider.dialect {
            Dialect::Unsupported => skipped.push(entry),
            _ => used.push(entry),
        }
    }
    (used, skipped)
}

/// Reads one entry. None when something without which it cannot be used is missing or wrong;
/// everything else is reported all the same.
fn model(item: &Node, index: usize, env: &Env, notes: &Notes) -> Option<ModelEntry> {
    let name = match &item.value {
        Value::Map(entries) => entries
            .iter()
            .find(|e| e.key == "model_name")
            .and_then(|e| e.value.scalar()),
        _ => None,
    };
    let path = match name {
        Some(name) => format!("model_list[{index}] \"{}\"", shown(&name.text)),
        None => format!("model_list[{index}]"),
    };
    let fields = Fields::open(item, notes, path)?;
    let model_name = fields.text("model_name").filter(|name| !name.is_empty());
    if model_name.is_none()
        && !fields
            .all()
            .iter()
            .any(|e| e.key == "model_name" && !e.value.is_null())
    {
        drop(
            fields
                .error("missing", "`model_name` is missing", item.at)
                .help("it is the name clients use"),
        );
    }
    if let (Some(name), Some(entry)) = (&model_name, fields.entry("model_name"))
        && name.matches('*').count() > 1
    {
        drop(fields.error("wildcard", "a name holds one `*` at most", entry.value.at));
    }
    let (info, info_costs) = info(&fields);
    let params = match fields.entry("litellm_params") {
        Some(_) => fields
            .child("litellm_params")
            .and_then(|child| params(&child, &info, info_costs, item, env)),
        None => {
            drop(
                fields
                    .error("missing", "`litellm_params` is missing", item.at)
                    .help("write `litellm_params:` with `model: <provider>/<model>` below it"),
            );
            None
        }
    };
    fields.know("access_groups");
    warn_rest(&fields, "a model's entry");
    Some(ModelEntry {
        model_name: model_name?,
        params: params?,
        info,
        stored: false,
        at: item.at,
    })
}

/// Warns of fields nobody has asked for.
fn warn_rest(fields: &Fields<'_>, what: &str) {
    let known = ["model_name", "litellm_params", "model_info"];
    for entry in fields.rest() {
        let message = format!("unknown field `{}` in {what}", shown(&entry.key));
        let draft = fields.warning("unknown-field", message, entry.key_at);
        match nearest(&entry.key, known) {
            Some(near) => drop(draft.label(format!("did you mean `{near}`?"))),
            None if is_param(&entry.key) => {
                drop(
                    draft
                        .label("without effect here")
                        .help("it belongs below `litellm_params`, indented further"),
                );
            }
            None => drop(draft.label("without effect")),
        }
    }
}

fn is_param(key: &str) -> bool {
    USED_PARAMS.contains(&key) || CALL_PARAMS.contains(&key) || is_cost(key)
}

/// The names of `litellm_params` that are read below.
const USED_PARAMS: [&str; 23] = [
    "model",
    "custom_llm_provider",
    "api_base",
    "base_url",
    "api_key",
    "organization",
    "headers",
    "extra_headers",
    "timeout",
    "stream_timeout",
    "max_retries",
    "weight",
    "rpm",
    "tpm",
    "max_parallel_requests",
    "order",
    "cooldown_time",
    "drop_params",
    "additional_drop_params",
    "base_model",
    "input_cost_per_token",
    "output_cost_per_token",
    "model_info",
];

fn is_cost(key: &str) -> bool {
    key.contains("_cost_") || key.ends_with("_cost") || key == "tiered_pricing"
}

fn params(
    fields: &Fields<'_>,
    info: &ModelInfo,
    info_costs: Map<String, Json>,
    item: &Node,
    env: &Env,
) -> Option<LitellmParams> {
    let model = fields.text("model").filter(|model| !model.is_empty());
    let custom = fields.text("custom_llm_provider");
    let base_key = if fields.entry_or_unset("api_base").is_some() {
        "api_base"
    } else {
        "base_url"
    };
    fields.know("base_url");
    let given_base = fields.parsed(base_key, "url", |text| base_url(text).map_err(str::to_owned));
    let has_base = fields.entry_or_unset(base_key).is_some();

    let found = match &model {
        Some(model) => resolve(fields, model, custom.as_deref(), given_base.as_deref(), has_base),
        None => {
            if fields.all().iter().all(|e| e.key != "model" || e.value.is_null()) {
                let draft = fields.error("missing", "`model` is missing in litellm_params", item.at);
                drop(draft.help("write `model: <provider>/<model>`, such as openai/gpt-4.1"));
            }
            None
        }
    };
    let unspoken = found
        .as_ref()
        .is_some_and(|f| f.data.is_some_and(|d| d.dialect == Spoken::Own));
    let api_base = address(fields, base_key, given_base, found.as_ref(), unspoken, env);
    let api_key = key(
        fields,
        found.as_ref(),
        has_base,
        api_base.as_deref(),
        unspoken,
        env,
    );

    let mut all_headers = headers(fields, "headers");
    for (name, value) in headers(fields, "extra_headers") {
        all_headers.retain(|(there, _)| !there.eq_ignore_ascii_case(&name));
        all_headers.push((name, value));
    }
    let mut costs = info_costs;
    let mut out = LitellmParams {
        model: model.unwrap_or_default(),
        provider: Provider {
            name: String::new(),
            dialect: Dialect::ByName,
            keyless: false,
        },
        upstream_model: String::new(),
        api_base,
        api_key,
        organization: fields.text("organization"),
        headers: all_headers,
        timeout: fields.some_time("timeout"),
        stream_timeout: fields.some_time("stream_timeout"),
        max_retries: fields.small_count("max_retries"),
        weight: fields.amount("weight"),
        rpm: fields.count("rpm"),
        tpm: fields.count("tpm"),
        max_parallel_requests: fields.count("max_parallel_requests"),
        order: fields.integer("order"),
        cooldown_time: fields.duration("cooldown_time"),
        drop_params: fields.flag("drop_params"),
        additional_drop_params: fields.texts("additional_drop_params").unwrap_or_default(),
        base_model: fields.text("base_model").or_else(|| info.base_model.clone()),
        costs: Map::new(),
        defaults: Map::new(),
    };
    fields.know("model_info");
    for (key, _) in PARAMS {
        if let Some(entry) = fields.entry(key) {
            say_fate(fields, entry, PARAMS);
        }
    }
    for entry in fields.rest() {
        if is_cost(&entry.key) {
            costs.extend(cost(fields, entry));
        } else if is_providers(&entry.key) {
            if !unspoken
                && found.is_some()
                && !entry.value.is_null()
                && !CALL_PARAMS.contains(&entry.key.as_str())
            {
                let message = format!(
                    "`{}` belongs to a provider that is not supported yet",
                    shown(&entry.key)
                );
                drop(
                    fields
                        .warning("unsupported", message, entry.key_at)
                        .label("without effect"),
                );
            }
        } else {
            call_default(fields, entry, &mut out.defaults);
        }
    }
    out.costs = costs;
    let found = found?;
    out.upstream_model = found.model;
    if let Some(data) = found.data {
        out.provider = data.provider();
        if data.dialect == Spoken::Own {
            let why = data.note.as_deref().unwrap_or("it speaks a dialect of its own");
            let message = format!("provider \"{}\" is not supported yet: {why}", data.name);
            let at = fields.entry("model").map_or(item.at, |e| e.value.at);
            drop(
                fields
                    .warning("unsupported", message, at)
                    .label("this deployment is skipped"),
            );
        } else if out.api_base.is_none() {
            return None; // `address` has said why
        }
    } else {
        out.provider.name = "*".into();
    }
    Some(out)
}

fn is_providers(key: &str) -> bool {
    PROVIDER_PARAMS.iter().any(|start| key.starts_with(start)) || PROVIDER_PARAM_NAMES.contains(&key)
}

/// A field that is no setting is sent with each call, unless it looks like a mistyped setting.
fn call_default(fields: &Fields<'_>, entry: &Entry, defaults: &mut Map<String, Json>) {
    let key = entry.key.as_str();
    if CALL_PARAMS.contains(&key) {
        defaults.insert(entry.key.clone(), entry.value.to_json());
        return;
    }
    let message = format!("unknown field `{}` in litellm_params", shown(key));
    let draft = fields.warning("unknown-field", message, entry.key_at);
    let known = USED_PARAMS
        .iter()
        .chain(CALL_PARAMS)
        .copied()
        .chain(PARAMS.iter().map(|(name, _)| *name));
    match nearest(key, known) {
        Some(near) => drop(
            draft
                .label(format!("did you mean `{near}`?"))
                .help("it is left out of the calls"),
        ),
        None => {
            drop(draft.label("sent to the upstream with each call, as a parameter"));
            defaults.insert(entry.key.clone(), entry.value.to_json());
        }
    }
}

/// Reads `model_info`; its cost fields apart.
fn info(fields: &Fields<'_>) -> (ModelInfo, Map<String, Json>) {
    let mut costs = Map::new();
    let Some(child) = fields.child("model_info") else {
        return (ModelInfo::default(), costs);
    };
    let info = ModelInfo {
        id: child.text("id").filter(|id| !id.is_empty()),
        mode: child.text("mode"),
        base_model: child.text("base_model"),
        max_input_tokens: child.count("max_input_tokens"),
        max_output_tokens: child.count("max_output_tokens"),
        all: child
            .all()
            .iter()
            .map(|e| (e.key.clone(), e.value.to_json()))
            .collect(),
    };
    for entry in child.all().iter().filter(|e| is_cost(&e.key)) {
        costs.extend(cost(&child, entry));
    }
    (info, costs)
}

/// Reads one cost field, in dollars.
fn cost(fields: &Fields<'_>, entry: &Entry) -> Option<(String, Json)> {
    if entry.value.is_null() {
        return None;
    }
    // Tiers and search prices are lists and mappings; the price table reads them.
    let value = match &entry.value.value {
        Value::Scalar(_) => Json::from(fields.amount_of(entry)?),
        _ => entry.value.to_json(),
    };
    Some((entry.key.clone(), value))
}
