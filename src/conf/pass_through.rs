//! `pass_through_endpoints`, and what they share with lanes and deployments: headers and paths.

use super::fields::{Fields, unset};
use super::keys::Fate;
use super::node::Node;
use super::secret::Secret;
use super::settings::rest;
use super::text::{base_url, shown};
use super::types::PassThrough;

/// Reads one entry.
pub(super) fn read(item: &Node, index: usize, above: &Fields<'_>) -> Option<PassThrough> {
    let fields = Fields::open(
        item,
        above.notes,
        above.below(&format!("pass_through_endpoints[{index}]")),
    )?;
    let has = |key: &str| {
        fields
            .all()
            .iter()
            .any(|e| e.key == key && (!e.value.is_null() || unset(&e.value).is_some()))
    };
    for key in ["path", "target"] {
        if !has(key) {
            drop(fields.error("missing", format!("`{key}` is missing"), item.at));
        }
    }
    let path = fields.parsed("path", "path", route_path);
    if let Some((entry, variable)) = fields
        .entry_or_unset("target")
        .and_then(|e| Some((e, unset(&e.value)?)))
    {
        let message = format!("environment variable {} is not set", shown(variable));
        drop(
            fields
                .error("env", message, entry.value.at)
                .label("needed by `target`"),
        );
    }
    let target = fields.parsed("target", "url", |text| base_url(text).map_err(str::to_owned));
    let methods = fields.parsed_list("methods", "choice", |text| {
        let method = text.to_ascii_uppercase();
        const KNOWN: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
        if KNOWN.contains(&method.as_str()) {
            Ok(method)
        } else {
            Err(format!("one of {}", KNOWN.join(", ")))
        }
    });
    let out = PassThrough {
        id: fields.text("id"),
        path: path.clone().unwrap_or_default(),
        target: target.clone().unwrap_or_default(),
        headers: headers(&fields, "headers"),
        include_subpath: fields.flag("include_subpath").unwrap_or(false),
        auth: fields.flag("auth"),
        forward_headers: fields.flag("forward_headers").unwrap_or(false),
        merge_query_params: fields.flag("merge_query_params").unwrap_or(false),
        methods: methods.unwrap_or_default(),
        at: item.at,
    };
    const MORE: [(&str, Fate); 3] = [
        ("cost_per_request", Fate::Missing("not supported yet")),
        ("guardrails", Fate::Missing("not supported yet")),
        ("default_query_params", Fate::Missing("not supported yet")),
    ];
    let used = [
        "path",
        "target",
        "headers",
        "include_subpath",
        "auth",
        "forward_headers",
        "merge_query_params",
        "methods",
    ];
    rest(&fields, &used, &MORE);
    path.and(target).map(|_| out)
}

/// A path of ours: absolute, plain, without a slash at the end.
pub(super) fn route_path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err("a path starts with `/`".into());
    }
    if text.contains(['?', '#', '\\', '%', ';', ' '])
        || text.contains("//")
        || text.chars().any(char::is_control)
    {
        return Err("a path holds plain characters only, no `?`, `#`, `%`, `;`, `\\`, spaces or `//`".into());
    }
    if text.split('/').any(|part| part == "." || part == "..") {
        return Err("a path holds no `.` or `..` parts".into());
    }
    let trimmed = text.trim_end_matches('/');
    Ok(if trimmed.is_empty() {
        "/".into()
    } else {
        trimmed.to_owned()
    })
}

/// Headers below a key: names and secret values.
pub(super) fn headers(fields: &Fields<'_>, key: &'static str) -> Vec<(String, Secret)> {
    let Some(child) = fields.child(key) else {
        return Vec::new();
    };
    let mut out: Vec<(String, Secret)> = Vec::new();
    for entry in child.all() {
        let name = http::HeaderName::from_bytes(entry.key.as_bytes());
        let Ok(name) = name else {
            let message = format!("\"{}\" is no header's name", shown(&entry.key));
            drop(child.error("header", message, entry.key_at));
            continue;
        };
        // A header whose variable is missing is left out; that was said already.
        let Some(value) = entry.value.scalar().filter(|s| !s.is_null()) else {
            if entry.value.scalar().is_none() {
                let message = format!(
                    "header \"{}\" must be text, not {}",
                    shown(&entry.key),
                    entry.value.kind()
                );
                drop(child.error("type", message, entry.value.at));
            }
            continue;
        };
        if http::HeaderValue::from_str(&value.text).is_err() {
            let message = format!(
                "header \"{}\" holds characters that no header may hold",
                shown(&entry.key)
            );
            drop(child.error("header", message, entry.value.at));
            continue;
        }
        out.retain(|(there, _)| there != name.as_str());
        out.push((name.as_str().to_owned(), Secret::new(value.text.clone())));
    }
    out
}
