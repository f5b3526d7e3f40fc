//! What a call's body must hold, because its key or team says so (`enforced_params`). What the fields say is not
//! looked at.

use crate::contract::Refusal;
use crate::contract::call::{Call, Scanned};
use crate::model::key::Holder;
use crate::wire::peek;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// How deep a body may nest.
const MAX_DEPTH: usize = 100;

/// A field that must be there: how it is called, and what of that is still to be found.
type Path<'p> = (&'p str, &'p str);

/// Refuses a call without one of the fields that its key or team asks for, in LiteLLM's words.
pub fn check(key: &Holder, call: &Call) -> Result<(), Refusal> {
    let paths: Vec<Path<'_>> = key
        .enforced_params()
        .filter(|name| !named_elsewhere(call, name))
        .map(|name| (name, name))
        .collect();
    if paths.is_empty() {
        return Ok(());
    }
    let mut search = Search::of(&paths);
    match &call.scanned {
        Scanned::Json(_) => search.through(&call.body),
        Scanned::Form { parts, .. } => {
            for part in parts {
                search.field(&part.name, call.body.get(part.value.clone()).unwrap_or_default());
            }
        }
    }
    let found = search.finish();
    let Some((path, _)) = paths.into_iter().find(|(path, _)| !found.contains(path)) else {
        return Ok(());
    };
    let path: String = path.chars().take(200).collect();
    let name = match path.contains('.') {
        true => path.split('.').map(|s| format!("[{s}]")).collect(),
        false => path.clone(),
    };
    let message = format!("BadRequest please pass param={name} in request body. This is a required param");
    Err(Refusal::bad_request(message).param(path))
}

/// What may also come in the path or in headers.
fn named_elsewhere(call: &Call, name: &str) -> bool {
    match name {
        "model" => true,
        "user" => call.user.as_deref().is_some_and(|u| !u.is_empty()),
        "tags" => !call.tags.is_empty(),
        _ => false,
    }
}

/// Looks for fields in one object. Every part of a body is gone through once, however many are asked for.
struct Search<'p, 'b> {
    /// By the name they have in this object.
    open: HashMap<&'p str, Vec<Path<'p>>>,
    found: HashSet<&'p str>,
    /// Values that may hold further ones.
    deeper: Vec<(&'p str, &'b [u8])>,
}

impl<'p, 'b> Search<'p, 'b> {
    fn of(paths: &[Path<'p>]) -> Self {
        let mut open: HashMap<&str, Vec<Path<'p>>> = HashMap::new();
        for (path, rest) in paths {
            let (name, rest) = rest.split_once('.').unwrap_or((rest, ""));
            open.entry(name).or_default().push((path, rest));
        }
        Self {
            open,
            found: HashSet::new(),
            deeper: Vec::new(),
        }
    }

    /// What is no object has no fields.
    fn through(&mut self, object: &'b [u8]) {
        let read = peek::each_field(object, MAX_DEPTH, |key, escaped, value| {
            let plain = key.strip_prefix(b"\"").and_then(|k| k.strip_suffix(b"\""));
            let name: Option<Cow<'_, str>> = match escaped {
                true => serde_json::from_slice(key).ok().map(Cow::Owned),
                false => plain.and_then(|k| std::str::from_utf8(k).ok()).map(Cow::Borrowed),
            };
            if let Some(name) = name {
                self.field(&name, value);
            }
        });
        if read.is_err() {
            self.found.clear();
            self.deeper.clear();
        }
    }

    fn field(&mut self, name: &str, value: &'b [u8]) {
        // A null is a field that was not sent.
        if value == b"null" {
            return;
        }
        // Clients of LiteLLM use this where an endpoint has metadata of its own.
        let name = match name {
            "litellm_metadata" if !self.open.contains_key(name) => "metadata",
            name => name,
        };
        let Some((name, asked)) = self.open.get_key_value(name) else {
            return;
        };
        let here = asked.iter().filter(|(_, rest)| rest.is_empty());
        self.found.extend(here.map(|(path, _)| *path));
        if asked.iter().any(|(_, rest)| !rest.is_empty()) {
            self.deeper.push((name, value));
        }
    }

    /// The fields that are there, deeper ones included.
    fn finish(mut self) -> HashSet<&'p str> {
        for (name, value) in std::mem::take(&mut self.deeper) {
            let asked = self.open.get(name).into_iter().flatten();
            let rest: Vec<Path<'p>> = asked.filter(|(_, rest)| !rest.is_empty()).copied().collect();
            let mut within = Search::of(&rest);
            within.through(value);
            self.found.extend(within.finish());
        }
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::account::Kind;
    use crate::model::call::Endpoint;
    use crate::model::party::Party;
    use crate::testkit;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn holder(asked: Value) -> Holder {
        let mut key = testkit::key("sk-a");
        key.extra.insert("enforced_params".into(), asked);
        Holder::alone(key)
    }

    fn lacks(holder: &Holder, body: &str) -> Option<String> {
        let body = format!(r#"{{"model": "m", "messages": []{body}}}"#);
        let call = Call::parse(Endpoint::Chat, body.into(), "application/json".into(), None, None).unwrap();
        check(holder, &call).err().map(|refusal| {
            assert_eq!(refusal.status, 400);
            refusal.param.unwrap()
        })
    }

    #[test]
    fn fields_are_found_wherever_they_are_asked_for() {
        let some = |path: &str| Some(path.to_string());
        let asked = holder(json!([
            "user",
            "metadata.generation_name",
            "a.b.c",
            "model",
            "messages"
        ]));
        assert_eq!(lacks(&asked, ""), some("user"));
        assert_eq!(lacks(&asked, r#", "user": null"#), some("user"));
        let user = r#", "user": "eve""#;
        for metadata in [
            "",
            r#", "metadata": {}"#,
            r#", "metadata": {"generation_name": null}"#,
            r#", "metadata": ["generation_name"]"#,
            r#", "metadata": "generation_name""#,
            r#", "metadata": {"x": {"generation_name": 1}}"#,
            r#", "generation_name": 1, "metadata.generation_name": 1"#,
        ] {
            assert_eq!(
                lacks(&asked, &format!("{user}{metadata}")),
                some("metadata.generation_name"),
                "{metadata}"
            );
        }
        let named = [
            r#"{"generation_name": ""}"#,
            r#"{"\u0067eneration_name": 0, "x": [{}]}"#,
        ];
        for name in ["metadata", "litellm_metadata"] {
            for named in named {
                let body = format!(r#"{user}, "{name}": {named}"#);
                assert_eq!(lacks(&asked, &body), some("a.b.c"), "{body}");
                assert_eq!(
                    lacks(&asked, &format!(r#"{body}, "a": {{"b": {{"c": 1}}}}"#)),
                    None
                );
                assert_eq!(
                    lacks(&asked, &format!(r#"{body}, "a": {{"b": 1}}"#)),
                    some("a.b.c")
                );
            }
        }
        assert_eq!(lacks(&holder(json!([])), ""), None);
        assert_eq!(
            lacks(&holder(json!(["", "."])), ""),
            some(""),
            "a name that no field has"
        );
    }

    #[test]
    fn keys_and_teams_ask_for_theirs() {
        assert_eq!(lacks(&holder(json!(null)), ""), None);
        let mut holder = holder(json!(["seed", 7]));
        assert_eq!(lacks(&holder, ""), Some("seed".into()));
        let team = json!({"enforced_params": ["n"]});
        let team = Party::new(Kind::Team, "t", team.as_object().unwrap().clone());
        holder.team = Some(Arc::new(team));
        assert_eq!(lacks(&holder, r#", "seed": 1"#), Some("n".into()));
        assert_eq!(lacks(&holder, r#", "seed": 1, "n": 1"#), None);
    }

    #[test]
    fn forms_have_fields_too() {
        let asked = holder(json!(["prompt", "metadata.name"]));
        let part = |name: &str, value: &str| {
            format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        };
        let lacks = |parts: &[(&str, &str)]| {
            let given: String = parts.iter().map(|(n, v)| part(n, v)).collect();
            let body = format!(
                "{}--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nx\r\n--b--\r\n",
                given
            );
            let kind = "multipart/form-data; boundary=b".to_string();
            let call = Call::parse(Endpoint::Transcriptions, body.into(), kind, Some("m"), None).unwrap();
            check(&asked, &call).err().map(|r| r.message)
        };
        let message = |name: &str| {
            Some(format!(
                "BadRequest please pass param={name} in request body. This is a required param"
            ))
        };
        assert_eq!(lacks(&[]), message("prompt"));
        assert_eq!(lacks(&[("prompt", "x")]), message("[metadata][name]"));
        assert_eq!(lacks(&[("prompt", "x"), ("metadata", r#"{"name": "y"}"#)]), None);
    }
}
