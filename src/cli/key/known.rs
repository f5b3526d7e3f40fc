//! Whether the models that a key is made for are there. A key for a model that comes later is no mistake, so this is a
//! word beside the answer and no refusal.

use crate::cli::client::Gateway;
use crate::cli::show::{YELLOW, clean, say};
use serde_json::Value;
use std::collections::BTreeSet;

/// How much alike two names are, from 0 to 1, to be meant for each other.
const ALIKE: f64 = 0.8;

/// Says which of `named` the gateway does not have. Says nothing when it cannot be asked.
pub async fn warn(gateway: &Gateway, named: &[&str]) {
    if named.is_empty() {
        return;
    }
    let (Ok(models), groups) = (
        gateway.get("/v1/models", &[]).await,
        gateway.get("/model/info", &[]).await,
    ) else {
        return;
    };
    let mut there = ids(&models.json);
    if let Ok(groups) = groups {
        there.extend(access_groups(&groups.json));
    }
    for (name, near) in missing(named, &there) {
        let near = near.map(|near| format!(": did you mean {}?", clean(near)));
        say(format_args!(
            "{YELLOW}!{YELLOW:#} no model is called {}{}",
            clean(name),
            near.unwrap_or_default()
        ));
    }
}

fn ids(models: &Value) -> BTreeSet<String> {
    let list = models.get("data").and_then(Value::as_array);
    let ids = list.into_iter().flatten().filter_map(|m| m.get("id")?.as_str());
    ids.map(str::to_string).collect()
}

fn access_groups(models: &Value) -> BTreeSet<String> {
    let list = models.get("data").and_then(Value::as_array).into_iter().flatten();
    let groups = list.filter_map(|m| m.get("model_info")?.get("access_groups")?.as_array());
    let names = groups.flatten().filter_map(Value::as_str);
    names.map(str::to_string).collect()
}

/// Those of `named` that nothing of `there` is or covers, each with the nearest name.
fn missing<'a>(named: &[&'a str], there: &'a BTreeSet<String>) -> Vec<(&'a str, Option<&'a str>)> {
    // A pattern on either side may cover anything that begins like it.
    let begins = |pattern: &str, name: &str| {
        let begin = pattern.split_once('*').map(|(begin, _)| begin);
        begin.is_some_and(|begin| name.starts_with(begin))
    };
    let is_there = |name: &str| {
        there
            .iter()
            .any(|t| t == name || begins(t, name) || begins(name, t))
    };
    let nearest = |name: &str| {
        let scored = there.iter().map(|t| (strsim::jaro_winkler(t, name), t.as_str()));
        let best = scored.max_by(|a, b| a.0.total_cmp(&b.0));
        best.filter(|(alike, _)| *alike >= ALIKE).map(|(_, t)| t)
    };
    let missing = named.iter().copied().filter(|name| !is_there(name));
    missing.map(|name| (name, nearest(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_named_with_what_is_near() {
        let there = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<BTreeSet<_>>();
        let some = there(&["small", "claude", "groq/*", "fast-ones"]);
        assert_eq!(
            missing(&["small", "smal", "groq/llama", "fast-ones", "zzz", "cl*"], &some),
            [("smal", Some("small")), ("zzz", None)]
        );
        assert_eq!(missing(&["anything"], &there(&["*"])), []);
        assert_eq!(missing(&["a"], &there(&[])), [("a", None)]);
    }
}
