//! Which model is meant, and whether this key may call it: the key's own list, and those of its team, its
//! user (for a key without a team) and its organization; and whether its call holds what they ask for (`required`).

mod required;

use crate::contract::ports::Catalog;
use crate::contract::{Cx, Fault, Filter, Needs, Refusal, Result, Stop, Verdict};
use crate::model::account::Kind;
use crate::model::key::{Caller, Holder};
use crate::model::party::Party;
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
        let catalog = cx.catalog.as_ref();
        call.model = resolve(&cx.caller, catalog, &call.requested_model)?;
        for name in &mut call.fallbacks {
            *name = resolve(&cx.caller, catalog, name).map_err(|stop| match stop {
                Stop::Refusal(refusal) => refusal.param("fallbacks").into(),
                other => other,
            })?;
        }
        if let Some(key) = cx.caller.key() {
            required::check(key, call)?;
        }
        Ok(Verdict::Continue)
    }
}

/// The name to route by.
pub fn resolve(caller: &Caller, catalog: &dyn Catalog, requested: &str) -> Result<String> {
    let key = caller.key();
    let name = key.map_or(requested, |k| real_name(k, requested));
    if let Some(key) = key
        && let Some(kind) = denied(key, catalog, requested, name)
    {
        let who = match kind {
            "team_model_access_denied" => "this team",
            "user_model_access_denied" => "this user",
            "org_model_access_denied" => "this organization",
            _ => "this API key",
        };
        return Err(Refusal::new(
            403,
            kind,
            format!(
                "The requested model '{}' is not available for {who}, or the model name is invalid. {}",
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

/// What a name stands for: the key's aliases first, then its team's.
fn real_name<'a>(key: &'a Holder, requested: &'a str) -> &'a str {
    let of_key = key.aliases.get(requested).map(String::as_str);
    of_key
        .or_else(|| {
            let aliases = key.team.as_ref()?.fields.get("model_aliases")?;
            aliases.get(requested)?.as_str()
        })
        .unwrap_or(requested)
}

/// LiteLLM's type of the refusal, when somebody's list does not allow the model.
fn denied(key: &Holder, catalog: &dyn Catalog, requested: &str, name: &str) -> Option<&'static str> {
    // Either name may stand in a list: an admin thinks of the alias, a script of the model. Aliases of
    // the key are the key's own affair: they open no list but its own.
    let of_key = |n: &str| lists(&key.models, catalog, n, key.team_id.is_some());
    if !of_key(requested) && !of_key(name) {
        return Some("key_model_access_denied");
    }
    if let Some(team) = &key.team {
        let alias_of_team = !key.aliases.contains_key(requested);
        let allows = |party: &Party| {
            lists(&party.models, catalog, name, false)
                || (alias_of_team && lists(&party.models, catalog, requested, false))
        };
        if !allows(team) || !key.member.as_deref().is_none_or(allows) {
            return Some("team_model_access_denied");
        }
    }
    let personal = key.team_id.is_none();
    let others = [
        key.user.as_deref().filter(|_| personal),
        key.organization.as_deref(),
    ];
    others
        .into_iter()
        .flatten()
        .find(|party| !lists(&party.models, catalog, name, false))
        .map(|party| match party.kind {
            Kind::Organization => "org_model_access_denied",
            _ => "user_model_access_denied",
        })
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

/// Whether a key may call a name, by all lists that count.
pub fn may(key: &Holder, catalog: &dyn Catalog, name: &str) -> bool {
    denied(key, catalog, name, real_name(key, name)).is_none()
}

/// Whether a list allows a name: exactly, by `*` or `prefix*`, or by an access group. An empty list allows
/// everything.
pub fn lists(models: &[String], catalog: &dyn Catalog, name: &str, in_team: bool) -> bool {
    models.is_empty()
        || models.iter().any(|allowed| match allowed.as_str() {
            "*" | "all-proxy-models" => true,
            // What these are is for the team's own list to say.
            "all-team-models" if in_team => true,
            // LiteLLM's word for a list that is meant to be empty.
            "no-default-models" => false,
            _ => {
                allowed == name
                    || allowed
                        .strip_suffix('*')
                        .is_some_and(|prefix| !prefix.is_empty() && name.starts_with(prefix))
                    || catalog.in_access_group(name, allowed)
            }
        })
}

fn available(caller: &Caller, catalog: &dyn Catalog) -> String {
    let visible = visible(caller, catalog);
    if catalog.names().is_empty() {
        return "This gateway has no models yet; whoever runs it adds them.".into();
    }
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
    fn everybodys_lists_count() {
        let catalog = testkit::catalog(&["a", "b", "c"]);
        let party = |kind, fields: serde_json::Value| {
            Some(Arc::new(Party::new(
                kind,
                "x",
                fields.as_object().unwrap().clone(),
            )))
        };
        let mut key = testkit::key("sk-a");
        key.models = vec!["all-team-models".into()];
        key.team_id = Some("x".into());
        let team_fields = serde_json::json!({"models": ["a", "fast"], "model_aliases": {"fast": "b"}});
        let mut holder = Holder::alone(key);
        holder.team = party(Kind::Team, team_fields);
        // A team's key is no personal key: the user's list does not count.
        holder.user = party(Kind::User, serde_json::json!({"models": ["c"]}));
        let check = |holder: &Holder, asked: &str, want: std::result::Result<&str, &str>| {
            let caller = Caller::Key(Arc::new(holder.clone()));
            let got = resolve(&caller, catalog.as_ref(), asked);
            assert_eq!(got.as_deref().map_err(|s| s.kind()), want, "{asked}");
        };
        check(&holder, "a", Ok("a"));
        check(&holder, "fast", Ok("b"));
        check(&holder, "b", Err("team_model_access_denied"));
        check(&holder, "c", Err("team_model_access_denied"));
        assert_eq!(
            visible(&Caller::Key(Arc::new(holder.clone())), catalog.as_ref()),
            ["a"]
        );

        // An alias of the key's own opens nobody else's list.
        holder.key.aliases.insert("a".into(), "c".into());
        holder.key.models.clear();
        check(&holder, "a", Err("team_model_access_denied"));

        holder.key.aliases.clear();
        holder.key.team_id = None;
        holder.team = None;
        check(&holder, "a", Err("user_model_access_denied"));
        check(&holder, "c", Ok("c"));
        holder.organization = party(
            Kind::Organization,
            serde_json::json!({"models": ["no-default-models"]}),
        );
        check(&holder, "c", Err("org_model_access_denied"));
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
