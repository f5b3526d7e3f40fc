//! Which model is meant, and whether this key may call it.

use crate::contract::ports::Catalog;
use crate::contract::{Cx, Fault, Filter, Needs, Refusal, Result, Verdict};
use crate::model::key::{Caller, Key};
use async_trait::async_trait;
use http::request;

/// How many names a "not found" lists.
const LISTED: usize = 12;

pub struct Access;

#[async_trait]
impl Filter for Access {
    fn needs(&self) -> Needs {
        Needs {
            call: true,
            ..Needs::NONE
        }
    }

    async fn call_filter(&self, cx: &mut Cx, _head: &request::Parts) -> Result<Verdict> {
        let call = cx
            .call
            .as_mut()
            .ok_or_else(|| Fault::internal("access ran before the call was parsed"))?;
        call.model = resolve(&cx.caller, cx.catalog.as_ref(), &call.requested_model)?;
        Ok(Verdict::Continue)
    }
}

/// The name to route by.
pub fn resolve(caller: &Caller, catalog: &dyn Catalog, requested: &str) -> Result<String> {
    let key = caller.key();
    let name = key
        .and_then(|k| k.aliases.get(requested))
        .map_or(requested, String::as_str);
    // Either name may stand in the key's list: an admin thinks of the alias, a script of the model.
    if let Some(k) = key
        && !may(k, catalog, requested)
        && !may(k, catalog, name)
    {
        return Err(Refusal::new(
            403,
            "key_model_access_denied",
            format!(
                "The requested model '{}' is not available for this API key, or the model name is invalid. \
                 {}",
                shown(requested),
                available(caller, catalog)
            ),
        )
        .param("model")
        .into());
    }
    if catalog.group_of(name).is_none() {
        return Err(not_found(caller, catalog, requested).into());
    }
    Ok(name.to_string())
}

/// 404 with the nearest name among those that the caller may see.
pub fn not_found(caller: &Caller, catalog: &dyn Catalog, requested: &str) -> Refusal {
    let visible = visible(caller, catalog);
    let near = nearest(requested, &visible);
    let hint = near.map(|n| format!(" Did you mean '{n}'?")).unwrap_or_default();
    Refusal::new(
        404,
        "invalid_request_error",
        format!(
            "The model '{}' does not exist here.{hint} {}",
            shown(requested),
            available(caller, catalog)
        ),
    )
    .param("model")
    .code("model_not_found")
}

/// The configured names that the caller may call, in the config's order.
pub fn visible<'a>(caller: &Caller, catalog: &'a dyn Catalog) -> Vec<&'a str> {
    let names = catalog.names().iter().map(String::as_str);
    match caller.key() {
        Some(key) => names.filter(|n| may(key, catalog, n)).collect(),
        None => names.collect(),
    }
}

/// Whether a key's list allows a name: exactly, by `*` or `prefix/*`, or by an access group.
pub fn may(key: &Key, catalog: &dyn Catalog, name: &str) -> bool {
    key.models.is_empty()
        || key.models.iter().any(|allowed| {
            allowed == name
                || allowed == "*"
                || allowed == "all-proxy-models"
                || (allowed == "all-team-models" && key.team_id.is_some())
                || allowed
                    .strip_suffix('*')
                    .is_some_and(|prefix| !prefix.is_empty() && name.starts_with(prefix))
                || catalog.in_access_group(name, allowed)
        })
}

fn available(caller: &Caller, catalog: &dyn Catalog) -> String {
    let visible = visible(caller, catalog);
    if visible.is_empty() {
        return "No model is available to this key.".into();
    }
    let more = if visible.len() > LISTED { ", …" } else { "" };
    let names: Vec<&str> = visible.into_iter().take(LISTED).collect();
    format!("Available: {}{more}; see GET /v1/models.", names.join(", "))
}

/// A caller's text in our sentence: short, and without control characters.
fn shown(text: &str) -> String {
    text.chars()
        .take(96)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn nearest<'a>(wanted: &str, names: &[&'a str]) -> Option<&'a str> {
    if wanted.len() > 128 {
        return None;
    }
    let wanted = wanted.to_lowercase();
    names
        .iter()
        .filter(|n| !n.contains('*'))
        .map(|n| (strsim::jaro_winkler(&wanted, &n.to_lowercase()), *n))
        .filter(|(score, _)| *score >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, n)| n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit;
    use std::sync::Arc;

    fn check(models: &[&str], asked: &str, want: std::result::Result<&str, u16>) {
        let catalog = testkit::catalog(&["gpt-4", "gpt-3.5-turbo", "tts-1", "openai/*"]);
        let mut key = testkit::key("sk-a");
        key.models = models.iter().map(|m| m.to_string()).collect();
        key.aliases.insert("fast".into(), "gpt-3.5-turbo".into());
        let got = resolve(&Caller::Key(Arc::new(key.into())), catalog.as_ref(), asked);
        assert_eq!(
            got.as_deref().map_err(|s| s.status()),
            want,
            "models {models:?} asked {asked}: {:?}",
            got.as_ref().err().map(|s| s.shown().to_string())
        );
    }

    #[test]
    fn lists_aliases_and_wildcards() {
        check(&[], "gpt-4", Ok("gpt-4"));
        check(&[], "fast", Ok("gpt-3.5-turbo"));
        check(&["gpt-4"], "gpt-4", Ok("gpt-4"));
        check(&["gpt-4"], "gpt-3.5-turbo", Err(403));
        check(&["gpt-4"], "fast", Err(403));
        check(&["fast"], "fast", Ok("gpt-3.5-turbo"));
        check(&["gpt-3.5-turbo"], "fast", Ok("gpt-3.5-turbo"));
        check(&["gpt-4"], "GPT-4", Err(403));
        check(&["gpt-4"], "gpt-4\u{200b}", Err(403));
        check(&["openai/*"], "openai/gpt-4o", Ok("openai/gpt-4o"));
        check(&["openai/*"], "gpt-4", Err(403));
        check(&["*"], "tts-1", Ok("tts-1"));
        check(&["nothing"], "nothing", Err(404));
        check(&[], "nothing", Err(404));
    }

    #[test]
    fn a_typo_is_answered_with_the_nearest_name() {
        let catalog = testkit::catalog(&["gpt-4", "claude-sonnet"]);
        let refusal = not_found(&Caller::Anonymous, catalog.as_ref(), "claud-sonet");
        assert!(
            refusal.message.contains("Did you mean 'claude-sonnet'?"),
            "{}",
            refusal.message
        );
        let mut key = testkit::key("sk-a");
        key.models = vec!["gpt-4".into()];
        let refusal = not_found(
            &Caller::Key(Arc::new(key.into())),
            catalog.as_ref(),
            "claud-sonet",
        );
        assert!(
            !refusal.message.contains("claude-sonnet"),
            "hidden names stay hidden: {}",
            refusal.message
        );
    }
}
