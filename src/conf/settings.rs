//! LiteLLM's settings: `general_settings`, `litellm_settings`, `router_settings`, and the names of
//! its other sections. What has no effect is said to have none; unknown names are warnings.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

use super::fields::{Fields, unset};
use super::keys::{self, Fate};
use super::node::{Entry, Node, Value};
use super::pass_through;
use super::report::Notes;
use super::secret::Secret;
use super::text::{is_secret_name, nearest, shown};
use super::types::{General, GroupAlias, LitellmSettings, RouterSettings};
use super::{cooldown, fallbacks, meters, tracing, watch};

const SECTIONS: [&str; 7] = [
    "model_list",
    "general_settings",
    "litellm_settings",
    "router_settings",
    "environment_variables",
    "include",
    "tollkeeper",
];

/// A section of the file.
pub(super) fn top_section<'a>(root: &'a Node, name: &str) -> Option<&'a Entry> {
    match &root.value {
        Value::Map(entries) => entries.iter().find(|e| e.key == name),
        _ => None,
    }
}

/// Judges the names of the sections.
pub(super) fn top_level(root: &Node, notes: &Notes) {
    let Some(fields) = Fields::open(root, notes, "") else {
        return;
    };
    for entry in fields
        .all()
        .iter()
        .filter(|e| !SECTIONS.contains(&e.key.as_str()))
    {
        // Compose files keep anchors in sections named so; they mean nothing by themselves.
        if entry.key.starts_with("x-") {
            continue;
        }
        if keys::TOP.iter().any(|(name, _)| *name == entry.key) {
            say_fate(&fields, entry, keys::TOP);
            continue;
        }
        let message = format!("unknown section `{}`", shown(&entry.key));
        let draft = fields.warning("unknown-field", message, entry.key_at);
        match nearest(
            &entry.key,
            SECTIONS
                .iter()
                .copied()
                .chain(keys::TOP.iter().map(|(name, _)| *name)),
        ) {
            Some(near) => drop(draft.label(format!("did you mean `{near}`?"))),
            None => drop(draft.label("without effect")),
        }
    }
}

fn section<'a>(root: &'a Node, name: &'static str, notes: &'a Notes) -> Option<Fields<'a>> {
    Fields::open(&top_section(root, name)?.value, notes, name)
}

/// Says what becomes of a key that is known and not used. A setting that is switched off asks for
/// nothing, so nothing is said.
pub(super) fn say_fate(fields: &Fields<'_>, entry: &Entry, table: &[(&'static str, Fate)]) {
    let asks_nothing = match &entry.value.value {
        Value::Scalar(s) => s.is_null() || s.as_bool() == Some(false) || s.text.is_empty(),
        Value::Seq(items) => items.is_empty(),
        Value::Map(entries) => entries.is_empty(),
    };
    let Some((_, fate)) = table
        .iter()
        .find(|(name, _)| *name == entry.key)
        .filter(|_| !asks_nothing)
    else {
        return;
    };
    let name = shown(&entry.key);
    match fate {
        Fate::Needless(why) => {
            drop(
                fields
                    .notes
                    .note("litellm-only", format!("`{name}` has no effect here: {why}"))
                    .at(entry.key_at)
                    .path(&fields.path),
            );
        }
        Fate::Missing(why) => {
            drop(
                fields
                    .warning("unsupported", format!("`{name}`: {why}"), entry.key_at)
                    .label("without effect"),
            );
        }
    }
}

/// Judges the fields of a section that nobody has asked for.
pub(super) fn rest(fields: &Fields<'_>, used: &[&'static str], table: &[(&'static str, Fate)]) {
    for entry in fields.rest() {
        if table.iter().any(|(name, _)| *name == entry.key) {
            say_fate(fields, entry, table);
            continue;
        }
        let place = fields.path.rsplit(" → ").next().unwrap_or_default();
        let message = format!("unknown field `{}` in {place}", shown(&entry.key));
        let draft = fields.warning("unknown-field", message, entry.key_at);
        match nearest(
            &entry.key,
            used.iter().copied().chain(table.iter().map(|(name, _)| *name)),
        ) {
            Some(near) => drop(draft.label(format!("did you mean `{near}`?"))),
            None => drop(draft.label("without effect")),
        }
    }
}

/// Everything as written, but for what must not be shown.
fn written(fields: &Fields<'_>) -> Map<String, Json> {
    fields
        .all()
        .iter()
        .filter_map(|e| Some((e.key.clone(), open_json(&e.key, &e.value)?)))
        .collect()
}

fn open_json(key: &str, node: &Node) -> Option<Json> {
    let closed = is_secret_name(key) || matches!(key, "headers" | "extra_headers");
    match &node.value {
        _ if closed => None,
        Value::Map(entries) => Some(Json::Object(
            entries
                .iter()
                .filter_map(|e| Some((e.key.clone(), open_json(&e.key, &e.value)?)))
                .collect(),
        )),
        Value::Seq(items) => Some(items.iter().filter_map(|item| open_json("", item)).collect()),
        Value::Scalar(_) => Some(node.to_json()),
    }
}

/// A secret whose variable must be set.
fn needed_secret(fields: &Fields<'_>, key: &'static str) -> Option<Secret> {
    let entry = fields.entry_or_unset(key)?;
    if let Some(variable) = unset(&entry.value) {
        let message = format!("environment variable {} is not set", shown(variable));
        let draft = fields
            .error("env", message, entry.value.at)
            .label(format!("needed by `{key}`"));
        drop(draft.help("set it in the environment or in a .env beside the config"));
        return None;
    }
    fields.secret(key).filter(|secret| !secret.is_empty())
}

pub(super) fn general(root: &Node, notes: &Notes) -> General {
    let Some(fields) = section(root, "general_settings", notes) else {
        return General::default();
    };
    const USED: [&str; 7] = [
        "master_key",
        "salt_key",
        "database_url",
        "pass_through_endpoints",
        "litellm_key_header_name",
        "database_connection_pool_limit",
        "maximum_spend_logs_retention_period",
    ];
    let master_key = needed_secret(&fields, "master_key");
    if let (Some(key), Some(entry)) = (&master_key, fields.entry("master_key")) {
        weak_key(&fields, key, entry);
    }
    let database_url = needed_secret(&fields, "database_url");
    if let (Some(url), Some(entry)) = (&database_url, fields.entry("database_url")) {
        let text = url.expose();
        if !["postgres://", "postgresql://", "sqlite:"]
            .iter()
            .any(|start| text.starts_with(start))
        {
            let draft = fields.error(
                "url",
                "`database_url` names a database that is not spoken",
                entry.value.at,
            );
            drop(
                draft.help(
                    "postgresql://user:password@host:5432/name, or leave it out for the embedded SQLite",
                ),
            );
        }
    }
    let mut out = General {
        master_key,
        database_url,
        salt_key: needed_secret(&fields, "salt_key"),
        pass_through_endpoints: Vec::new(),
        litellm_key_header_name: fields.parsed("litellm_key_header_name", "header", |text| {
            let name = http::HeaderName::from_bytes(text.as_bytes());
            name.map(|name| name.as_str().to_owned())
                .map_err(|_| "this is no header's name".into())
        }),
        database_connection_pool_limit: fields.small_count("database_connection_pool_limit"),
        maximum_spend_logs_retention_period: fields.some_time("maximum_spend_logs_retention_period"),
        all: written(&fields),
    };
    for (index, item) in fields
        .list("pass_through_endpoints")
        .unwrap_or_default()
        .iter()
        .enumerate()
    {
        out.pass_through_endpoints
            .extend(pass_through::read(item, index, &fields));
    }
    let elsewhere = meters::GENERAL.iter().chain(&watch::GENERAL);
    elsewhere.for_each(|name| fields.know(name));
    rest(&fields, &USED, keys::GENERAL);
    out
}

/// What to do about a weak key.
pub(super) const MAKE_A_KEY: &str = "make one: openssl rand -hex 24 | sed 's/^/sk-/'";

/// Shortest master key that is not warned about, in characters.
const MIN_MASTER_KEY: usize = 16;

/// Says when the master key is a placeholder or so short that it can be guessed.
fn weak_key(fields: &Fields<'_>, key: &Secret, entry: &Entry) {
    if let Some(why) = weakness(key) {
        let draft = fields.warning(
            "weak-key",
            "the master key is weak: whoever guesses it owns every key",
            entry.value.at,
        );
        drop(draft.label(why).help(MAKE_A_KEY));
    }
}

/// Why a master key is easy to guess, if it is.
pub fn weakness(key: &Secret) -> Option<&'static str> {
    const PLACEHOLDERS: [&str; 7] = [
        "change-this",
        "changeme",
        "change-me",
        "your-",
        "example",
        "placeholder",
        "<",
    ];
    let text = key.expose().to_ascii_lowercase();
    if text == "sk-1234" || PLACEHOLDERS.iter().any(|word| text.contains(word)) {
        return Some("a placeholder from some documentation");
    }
    if text.len() < MIN_MASTER_KEY {
        return Some("shorter than 16 characters");
    }
    None
}

pub(super) fn litellm(root: &Node, notes: &Notes) -> LitellmSettings {
    let Some(fields) = section(root, "litellm_settings", notes) else {
        return LitellmSettings::default();
    };
    const USED: [&str; 7] = [
        "drop_params",
        "request_timeout",
        "num_retries",
        "model_alias_map",
        // Read where keys are made.
        "default_key_generate_params",
        "upperbound_key_generate_params",
        "key_generation_settings",
    ];
    let out = LitellmSettings {
        drop_params: fields.flag("drop_params").unwrap_or(false),
        request_timeout: fields.some_time("request_timeout"),
        num_retries: fields.small_count("num_retries"),
        model_alias_map: alias_map(&fields),
        all: written(&fields),
    };
    let elsewhere = meters::LITELLM
        .iter()
        .chain(&cooldown::LITELLM)
        .chain(&fallbacks::LITELLM);
    elsewhere.for_each(|name| fields.know(name));
    tracing::LITELLM.iter().for_each(|name| fields.know(name));
    rest(&fields, &USED, keys::LITELLM);
    out
}

fn alias_map(fields: &Fields<'_>) -> BTreeMap<String, GroupAlias> {
    let Some(child) = fields.child("model_alias_map") else {
        return BTreeMap::new();
    };
    let mut out = BTreeMap::new();
    for entry in child.all() {
        match entry.value.scalar().filter(|s| !s.is_null()) {
            Some(target) => {
                let alias = GroupAlias {
                    model: target.text.clone(),
                    hidden: false,
                    at: entry.key_at,
                };
                out.insert(entry.key.clone(), alias);
            }
            None => {
                let message = format!(
                    "alias \"{}\" must name a model, not {}",
                    shown(&entry.key),
                    entry.value.kind()
                );
                drop(child.error("type", message, entry.value.at));
            }
        }
    }
    out
}

pub(super) fn router(root: &Node, notes: &Notes) -> RouterSettings {
    let Some(fields) = section(root, "router_settings", notes) else {
        return RouterSettings::default();
    };
    const USED: [&str; 5] = [
        "model_group_alias",
        "routing_strategy",
        "num_retries",
        "timeout",
        "stream_timeout",
    ];
    let out = RouterSettings {
        model_group_alias: group_aliases(&fields),
        routing_strategy: fields.text("routing_strategy"),
        num_retries: fields.small_count("num_retries"),
        timeout: fields.some_time("timeout"),
        stream_timeout: fields.some_time("stream_timeout"),
        all: written(&fields),
    };
    if let (Some(strategy), Some(entry)) = (&out.routing_strategy, fields.entry("routing_strategy")) {
        const KNOWN: [&str; 6] = [
            "simple-shuffle",
            "least-busy",
            "latency-based-routing",
            "usage-based-routing",
            "usage-based-routing-v2",
            "cost-based-routing",
        ];
        if strategy != "simple-shuffle" {
            let message = format!("routing strategy \"{}\" is not supported yet", shown(strategy));
            let draft = fields.warning("unsupported", message, entry.value.at);
            match nearest(strategy, KNOWN).filter(|_| !KNOWN.contains(&strategy.as_str())) {
                Some(near) => drop(draft.label(format!("did you mean `{near}`?"))),
                None => drop(draft.label("`simple-shuffle` is used: by weight, else evenly")),
            }
        }
    }
    let elsewhere = meters::ROUTER
        .iter()
        .chain(&cooldown::ROUTER)
        .chain(&fallbacks::ROUTER);
    elsewhere.for_each(|name| fields.know(name));
    rest(&fields, &USED, keys::ROUTER);
    out
}

fn group_aliases(fields: &Fields<'_>) -> BTreeMap<String, GroupAlias> {
    let Some(child) = fields.child("model_group_alias") else {
        return BTreeMap::new();
    };
    let mut out = BTreeMap::new();
    for entry in child.all() {
        let alias = match &entry.value.value {
            Value::Scalar(s) if !s.is_null() => Some(GroupAlias {
                model: s.text.clone(),
                hidden: false,
                at: entry.key_at,
            }),
            Value::Map(_) => {
                Fields::open(&entry.value, child.notes, child.below(&entry.key)).and_then(|alias| {
                    let hidden = alias.flag("hidden").unwrap_or(false);
                    let model = alias.text("model");
                    if model.is_none() {
                        drop(alias.error(
                            "missing",
                            "`model` is missing: where does the alias lead?",
                            entry.key_at,
                        ));
                    }
                    rest(&alias, &["model", "hidden"], &[]);
                    Some(GroupAlias {
                        model: model?,
                        hidden,
                        at: entry.key_at,
                    })
                })
            }
            _ => {
                let message = format!(
                    "alias \"{}\" must name a model, not {}",
                    shown(&entry.key),
                    entry.value.kind()
                );
                drop(child.error("type", message, entry.value.at));
                None
            }
        };
        if let Some(alias) = alias {
            out.insert(entry.key.clone(), alias);
        }
    }
    out
}
