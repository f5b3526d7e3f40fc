//! What only shows when the whole config is there: names that collide, aliases that lead nowhere,
//! paths taken twice.

use std::collections::HashMap;

use super::litellm::capture;
use super::report::Notes;
use super::text::{nearest, shown};
use super::types::{Conf, ModelEntry, PassThrough};

/// Checks the config as a whole.
pub(super) fn whole(conf: &Conf, notes: &Notes) {
    ids(conf, notes);
    groups(conf, notes);
    aliases(conf, notes);
    fallbacks(conf, notes);
    pass_through(&conf.general.pass_through_endpoints, notes);
    lanes(conf, notes);
    super::behind::check(conf, notes);
    super::rules::whole(conf, notes);
}

/// A deployment's id names it in headers and in the ledger: two of one name would be one there.
fn ids(conf: &Conf, notes: &Notes) {
    let mut seen: HashMap<&str, &ModelEntry> = HashMap::new();
    for entry in conf.models.iter().chain(&conf.skipped) {
        let Some(id) = &entry.info.id else { continue };
        if let Some(first) = seen.insert(id, entry) {
            let message = format!("model id \"{}\" is given twice", shown(id));
            let draft = notes
                .error("duplicate-id", message)
                .at(entry.at)
                .label("the second one");
            drop(draft.help(format!(
                "the first is at line {}; an id names one deployment",
                first.at.line
            )));
        }
    }
}

/// Several deployments under one name are balanced; worth saying, as it may be an accident.
fn groups(conf: &Conf, notes: &Notes) {
    let mut groups: Vec<(&str, Vec<&ModelEntry>)> = Vec::new();
    let mut index: HashMap<&str, usize> = HashMap::new();
    for entry in &conf.models {
        let slot = *index.entry(&entry.model_name).or_insert_with(|| {
            groups.push((&entry.model_name, Vec::new()));
            groups.len() - 1
        });
        if let Some((_, members)) = groups.get_mut(slot) {
            members.push(entry);
        }
    }
    for (name, members) in groups.iter().filter(|(_, members)| members.len() > 1) {
        let Some(last) = members.last() else { continue };
        let lines: Vec<String> = members.iter().take(8).map(|m| m.at.line.to_string()).collect();
        let more = if members.len() > 8 { ", …" } else { "" };
        let message = format!(
            "model \"{}\" has {} deployments (lines {}{more}): {}",
            shown(name),
            members.len(),
            lines.join(", "),
            used(members),
        );
        drop(notes.note("balanced", message).at(last.at));
    }
}

/// Which of a name's deployments are used, and how much: the lowest `order` first.
fn used(members: &[&ModelEntry]) -> String {
    let order = |m: &ModelEntry| m.params.order.unwrap_or(i64::MAX);
    let lowest = members.iter().map(|m| order(m)).min();
    let first: Vec<&ModelEntry> = members
        .iter()
        .copied()
        .filter(|m| Some(order(m)) == lowest)
        .collect();
    match first.as_slice() {
        all if all.len() == members.len() => format!("all are used, {}", shares(all)),
        [one] => format!(
            "that at line {} is used, the others when it fails, by `order`",
            one.at.line
        ),
        some => format!(
            "{} of them are used, {}, the others when those fail, by `order`",
            some.len(),
            shares(some)
        ),
    }
}

/// `75 %, 25 % by weight`, or how much each has where all are alike.
fn shares(members: &[&ModelEntry]) -> String {
    let weights: Vec<f64> = members.iter().map(|m| m.params.share()).collect();
    let total: f64 = weights.iter().sum();
    let alike = weights.windows(2).all(|pair| pair.first() == pair.last());
    if alike && total > 0.0 {
        return format!("{} % each", 100 / members.len());
    }
    if total <= 0.0 || members.len() > 8 {
        return "by weight".into();
    }
    let parts: Vec<String> = weights
        .iter()
        .map(|w| format!("{:.0} %", 100.0 * w / total))
        .collect();
    format!("{} by weight", parts.join(", "))
}

fn aliases(conf: &Conf, notes: &Notes) {
    let all = || {
        conf.models
            .iter()
            .chain(&conf.skipped)
            .map(|m| m.model_name.as_str())
    };
    let known = |name: &str| all().any(|pattern| capture(pattern, name).is_some());
    let group = conf
        .router
        .model_group_alias
        .iter()
        .map(|(name, alias)| ("model_group_alias", name, alias));
    let map = conf
        .litellm
        .model_alias_map
        .iter()
        .map(|(name, alias)| ("model_alias_map", name, alias));
    for (field, name, alias) in group.chain(map) {
        let section = if field == "model_group_alias" {
            "router_settings"
        } else {
            "litellm_settings"
        };
        let path = format!("{section} → {field}");
        let target = &alias.model;
        if !known(target) && !conf.router.model_group_alias.contains_key(target) {
            let message = format!(
                "alias \"{}\" leads to \"{}\", which is no model",
                shown(name),
                shown(target)
            );
            let draft = notes.warning("alias", message).at(alias.at).path(&path);
            match nearest(target, all()) {
                Some(near) => drop(draft.label(format!("did you mean `{}`?", shown(near)))),
                None => drop(draft.help("add it to model_list, or take the alias out")),
            }
        }
        // A wildcard does not count: an exact alias is more specific than any pattern.
        if field == "model_group_alias" && conf.models.iter().any(|m| m.model_name == *name) {
            let message = format!("alias \"{}\" is never used: a model has that name", shown(name));
            notes.warning("shadowed", message).at(alias.at).path(&path);
        }
    }
}

/// Fallbacks of and to what is no model.
fn fallbacks(conf: &Conf, notes: &Notes) {
    let models = conf
        .models
        .iter()
        .chain(&conf.skipped)
        .map(|m| m.model_name.as_str());
    let aliases = conf
        .router
        .model_group_alias
        .keys()
        .chain(conf.litellm.model_alias_map.keys());
    let all: Vec<&str> = models.chain(aliases.map(String::as_str)).collect();
    let known = |name: &str| all.iter().any(|pattern| capture(pattern, name).is_some());
    let f = &conf.fallbacks;
    for (from, to) in f.general.iter().chain(&f.context_window).chain(&f.content_policy) {
        let what = match from.as_str() {
            "*" => "every model".to_string(),
            name => format!("\"{}\"", shown(name)),
        };
        let warn = |message: String, wrong: &str| {
            let draft = notes.warning("fallback", message).at(to.at).path(&to.path);
            match nearest(wrong, all.iter().copied()) {
                Some(near) => drop(draft.label(format!("did you mean `{}`?", shown(near)))),
                None => drop(draft.label("without effect")),
            }
        };
        if from != "*" && !known(from) {
            warn(format!("{what} has fallbacks and is no model"), from);
        }
        for name in to.names.iter().filter(|name| !known(name)) {
            let message = format!("{what} falls back to \"{}\", which is no model", shown(name));
            warn(message, name);
        }
    }
}

/// Paths that must stay the gateway's own: keys, money and health are managed there.
const OWN_PATHS: [&str; 13] = [
    "/key",
    "/user",
    "/team",
    "/spend",
    "/global",
    "/budget",
    "/customer",
    "/organization",
    "/model",
    "/health",
    "/ui",
    "/metrics",
    "/config",
];
/// Paths of models, which a pass-through takes away from keys' model lists and prices.
const MODEL_PATHS: [&str; 10] = [
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/models",
    "/responses",
    "/moderations",
    "/rerank",
    "/audio/speech",
    "/audio/transcriptions",
    "/images/generations",
];

fn pass_through(endpoints: &[PassThrough], notes: &Notes) {
    let mut seen: HashMap<&str, Vec<&PassThrough>> = HashMap::new();
    for (index, endpoint) in endpoints.iter().enumerate() {
        let path = format!("general_settings → pass_through_endpoints[{index}]");
        let place = shown(&endpoint.path);
        let before = seen.entry(&endpoint.path).or_default();
        if let Some(first) = before.iter().find(|first| same_method(first, endpoint)) {
            let message = format!("path {place} is taken by two pass-through endpoints");
            let draft = notes
                .error("path-collision", message)
                .at(endpoint.at)
                .label("this one is never reached");
            drop(
                draft
                    .path(&path)
                    .help(format!("the first is at line {}", first.at.line)),
            );
        }
        before.push(endpoint);
        let own = OWN_PATHS.iter().find(|own| {
            endpoint.path == **own
                || endpoint
                    .path
                    .strip_prefix(**own)
                    .is_some_and(|rest| rest.starts_with('/'))
        });
        if let Some(own) = own {
            let message =
                format!("path {place} is the gateway's own: everything below {own} is managed here");
            let draft = notes.error("path-collision", message).at(endpoint.at).path(&path);
            drop(draft.help("choose another path, such as /upstream/…"));
        } else if MODEL_PATHS.contains(&endpoint.path.strip_prefix("/v1").unwrap_or(&endpoint.path)) {
            let message =
                format!("path {place} is a model endpoint: calls to it pass no model list, price or budget");
            let draft = notes
                .warning("path-collision", message)
                .at(endpoint.at)
                .path(&path);
            drop(draft.help("if that is not meant, add the upstream to model_list instead"));
        }
        if endpoint.path == "/" && endpoint.include_subpath {
            let message = "this pass-through takes every path that is not the gateway's own";
            drop(
                notes
                    .warning("path-collision", message)
                    .at(endpoint.at)
                    .path(&path),
            );
        }
    }
}

fn same_method(a: &PassThrough, b: &PassThrough) -> bool {
    a.methods.is_empty() || b.methods.is_empty() || a.methods.iter().any(|method| b.methods.contains(method))
}

fn lanes(conf: &Conf, notes: &Notes) {
    let mut seen: HashMap<&str, u32> = HashMap::new();
    for (index, lane) in conf.tollkeeper.lanes.iter().enumerate() {
        if let Some(first) = seen.insert(&lane.name, lane.at.line) {
            let message = format!("lane \"{}\" is given twice", shown(&lane.name));
            let draft = notes
                .error("duplicate-id", message)
                .at(lane.at)
                .path(&format!("tollkeeper → lanes[{index}]"));
            drop(draft.help(format!("the first is at line {first}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::conf::load::{Env, load_text};

    #[test]
    fn it_is_told_which_deployments_of_a_name_are_used() {
        for (each, want) in [
            (["", "", ""], "all are used, 33 % each"),
            (
                ["weight: 3", "weight: 1", "weight: 0"],
                "all are used, 75 %, 25 %, 0 % by weight",
            ),
            (
                ["rpm: 90", "rpm: 10", ""],
                "all are used, 89 %, 10 %, 1 % by weight",
            ),
            (
                ["order: 2", "order: 1", ""],
                "that at line 3 is used, the others when it fails, by `order`",
            ),
            (
                ["order: 1", "order: 1", "order: 2"],
                "2 of them are used, 50 % each, the others when those fail, by `order`",
            ),
        ] {
            let entry = |more: &&str| {
                format!(
                    "  - {{model_name: m, litellm_params: {{model: openai/x, api_base: 'http://a/v1', {more}}}}}\n"
                )
            };
            let text = format!("model_list:\n{}", each.iter().map(entry).collect::<String>());
            let loaded = load_text("config.yaml", &text, &Env::default()).ok().unwrap();
            let told = loaded.report.render(false);
            assert!(told.contains(&format!("(lines 2, 3, 4): {want}\n")), "{told}");
        }
    }
}
