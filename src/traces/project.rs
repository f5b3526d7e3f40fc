//! Which Langfuse project a call belongs to, and how much of it may be told: what the key says, else its
//! team, else the config. Keys and teams name projects in LiteLLM's words, and only addresses of the config.
//! Their secret keys are sealed in the store (see `admin::callbacks`) and opened here, for the worker alone.

use super::Said;
use crate::conf::{Langfuse, Project, Secret};
use crate::store::seal::Seal;
use filters::contract::ports::Wanted;
use filters::model::key::{Caller, Holder};
use filters::model::trace::{Capture, Trace};
use serde_json::{Map, Value};

/// Entries of a `logging` list that are looked at.
const MOST_ENTRIES: usize = 16;

/// Where a call's spans go within Langfuse.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub host: String,
    pub project: Project,
}

/// What became of looking for a project.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// One of a key or a team.
    Own(Target),
    Default(Target),
    /// The call is not told of: nobody wants it, or not calls that end so.
    None,
    /// A key or a team names an address that the config does not.
    Refused(String),
    /// A key's or a team's secret key cannot be opened.
    Sealed,
}

/// The objects that may speak of tracing, the most specific first.
fn voices(holder: &Holder) -> impl Iterator<Item = &Map<String, Value>> {
    let team = holder
        .team
        .as_ref()
        .and_then(|t| t.fields.get("metadata"))
        .and_then(Value::as_object);
    [Some(&holder.key.metadata), team]
        .into_iter()
        .flatten()
        .filter(|m| !m.is_empty())
}

/// The project of a call that is over.
pub fn find(langfuse: &Langfuse, said: &Said, trace: &Trace, failed: bool) -> Found {
    let fits = |success: bool, failure: bool| if failed { failure } else { success };
    if let Some(holder) = trace.caller.key() {
        for voice in voices(holder) {
            if let Some(own) = own(voice, said) {
                if !fits(own.success, own.failure) {
                    return Found::None;
                }
                let host = own.host.unwrap_or_else(|| langfuse.host.clone());
                if host != langfuse.host && !langfuse.hosts.contains(&host) {
                    return Found::Refused(host);
                }
                let Some(secret_key) = opened(own.secret_key, &said.seal) else {
                    return Found::Sealed;
                };
                let public_key = own.public_key;
                return Found::Own(Target {
                    host,
                    project: Project {
                        public_key,
                        secret_key,
                    },
                });
            }
        }
        let team = said
            .tracing
            .teams
            .iter()
            .find(|t| holder.team_id.as_deref() == Some(t.team_id.as_str()));
        if let Some(team) = team {
            // The config itself names this address.
            return Found::Own(Target {
                host: team.host.clone().unwrap_or_else(|| langfuse.host.clone()),
                project: team.project.clone(),
            });
        }
    }
    match &langfuse.project {
        Some(project) if fits(langfuse.on.success, langfuse.on.failure) => Found::Default(Target {
            host: langfuse.host.clone(),
            project: project.clone(),
        }),
        _ => Found::None,
    }
}

/// A project that a key or a team names.
struct Own {
    public_key: String,
    /// As it is kept.
    secret_key: String,
    host: Option<String>,
    success: bool,
    failure: bool,
}

/// What was kept before secrets were sealed, and what comes out of a variable, is taken as it is.
fn opened(kept: String, seal: &Seal) -> Option<Secret> {
    match Seal::is_sealed(&kept) {
        true => seal.open(&kept).ok().map(|open| Secret::new(open.expose())),
        false => Some(Secret::new(kept)),
    }
}

fn own(voice: &Map<String, Value>, said: &Said) -> Option<Own> {
    let list = voice.get("logging").and_then(Value::as_array);
    let entries = list
        .into_iter()
        .flatten()
        .take(MOST_ENTRIES)
        .filter_map(Value::as_object);
    for entry in entries {
        let name = entry.get("callback_name").and_then(Value::as_str);
        if !matches!(name, Some("langfuse" | "langfuse_otel")) {
            continue;
        }
        let (success, failure) = match entry.get("callback_type").and_then(Value::as_str) {
            Some("success") => (true, false),
            Some("failure") => (false, true),
            _ => (true, true),
        };
        let vars = entry.get("callback_vars").and_then(Value::as_object);
        if let Some(found) = vars.and_then(|v| project(v, said, success, failure)) {
            return Some(found);
        }
    }
    // The shape that LiteLLM's `/team/{id}/callback` keeps.
    let settings = voice.get("callback_settings").and_then(Value::as_object)?;
    let names = |list: &str| {
        let list = settings.get(list).and_then(Value::as_array);
        list.is_some_and(|l| {
            l.iter()
                .any(|n| matches!(n.as_str(), Some("langfuse" | "langfuse_otel")))
        })
    };
    let (success, failure) = (names("success_callback"), names("failure_callback"));
    let vars = settings.get("callback_vars").and_then(Value::as_object)?;
    (success || failure)
        .then(|| project(vars, said, success, failure))
        .flatten()
}

fn project(vars: &Map<String, Value>, said: &Said, success: bool, failure: bool) -> Option<Own> {
    let text = |name: &str| {
        let given = vars.get(name)?.as_str().filter(|t| !t.is_empty())?;
        match given.strip_prefix("os.environ/") {
            None => Some(given.to_owned()),
            // Other variables are nobody's business who may write metadata.
            Some(variable) if variable.starts_with("LANGFUSE_") => {
                said.env.get(variable).map(|s| s.expose().to_owned())
            }
            Some(_) => None,
        }
    };
    Some(Own {
        public_key: text("langfuse_public_key")?,
        secret_key: text("langfuse_secret_key").or_else(|| text("langfuse_secret"))?,
        host: text("langfuse_host").map(|h| h.trim_end_matches('/').to_owned()),
        success,
        failure,
    })
}

/// How much of this caller's calls may be told. Asked on every call, so nothing is looked for that is not
/// there.
pub fn wants(most: Capture, redact: bool, caller: &Caller) -> Wanted {
    let mut wanted = Wanted {
        capture: most,
        redacted: false,
    };
    let mut redact = redact;
    if let Some(holder) = caller.key() {
        for voice in voices(holder) {
            redact |= voice.get("turn_off_message_logging").is_some_and(is_on);
            if let Some(capture) = voice
                .get("tracing")
                .and_then(Value::as_str)
                .and_then(Capture::parse)
            {
                wanted.capture = wanted.capture.min(capture);
            }
            let list = voice.get("logging").and_then(Value::as_array);
            for entry in list.into_iter().flatten().take(MOST_ENTRIES) {
                let vars = entry.get("callback_vars");
                redact |= vars
                    .and_then(|v| v.get("turn_off_message_logging"))
                    .is_some_and(is_on);
            }
        }
    }
    if redact && wanted.capture == Capture::Full {
        wanted.capture = Capture::Metadata;
        wanted.redacted = true;
    }
    wanted
}

fn is_on(value: &Value) -> bool {
    match value {
        Value::Bool(on) => *on,
        Value::String(text) => text.eq_ignore_ascii_case("true"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::{Env, On, Tracing};
    use crate::traces::sample;
    use filters::model::account::Kind;
    use filters::model::party::Party;
    use filters::testkit;
    use serde_json::json;
    use std::sync::Arc;

    fn langfuse() -> Langfuse {
        Langfuse {
            host: "http://main".into(),
            project: Some(Project {
                public_key: "pk-main".into(),
                secret_key: Secret::new("sk-main"),
            }),
            hosts: vec!["http://other".into()],
            on: On {
                success: true,
                failure: false,
            },
            ..Langfuse::default()
        }
    }

    fn caller(key: Value, team: Value) -> Caller {
        let mut holder = Holder::alone(testkit::key("sk-a"));
        let object = |v: Value| v.as_object().cloned().unwrap_or_default();
        holder.key.metadata = object(key);
        holder.key.team_id = Some("t1".into());
        let fields = object(json!({"metadata": team}));
        holder.team = Some(Arc::new(Party::new(Kind::Team, "t1", fields)));
        Caller::Key(Arc::new(holder))
    }

    fn logging(public: &str, host: Option<&str>, kind: &str) -> Value {
        let mut vars = json!({"langfuse_public_key": public, "langfuse_secret_key": "sk"});
        if let Some(host) = host {
            vars["langfuse_host"] = host.into();
        }
        json!({"logging": [{"callback_name": "other"},
            {"callback_name": "langfuse", "callback_type": kind, "callback_vars": vars}]})
    }

    fn said() -> Said {
        Said {
            tracing: Tracing::default(),
            env: Env::from([("LANGFUSE_X", "from-env"), ("DATABASE_URL", "secret")]),
            seal: Seal::new(&"salt".into()),
        }
    }

    #[test]
    fn sealed_secrets_are_opened_with_the_salt_that_closed_them() {
        let with = |secret: String| {
            let vars = json!({"langfuse_public_key": "pk", "langfuse_secret_key": secret});
            let mut trace = sample::trace();
            let logging = json!({"logging": [{"callback_name": "langfuse", "callback_vars": vars}]});
            trace.caller = caller(logging, json!({}));
            find(&langfuse(), &said(), &trace, false)
        };
        let target = Target {
            host: "http://main".into(),
            project: Project {
                public_key: "pk".into(),
                secret_key: Secret::new("sk-own"),
            },
        };
        for kept in ["sk-own".to_string(), Seal::new(&"salt".into()).seal("sk-own")] {
            assert_eq!(with(kept), Found::Own(target.clone()));
        }
        assert_eq!(with(Seal::new(&"other".into()).seal("sk-own")), Found::Sealed);
    }

    #[track_caller]
    fn check(key: Value, team: Value, failed: bool, want: Option<(&str, &str)>) {
        let mut trace = sample::trace();
        trace.caller = caller(key, team);
        let found = find(&langfuse(), &said(), &trace, failed);
        let found = match &found {
            Found::Sealed => Some(("", "sealed")),
            Found::Own(t) | Found::Default(t) => Some((t.host.as_str(), t.project.public_key.as_str())),
            Found::Refused(host) => Some((host.as_str(), "refused")),
            Found::None => None,
        };
        assert_eq!(found, want);
    }

    #[test]
    fn the_most_specific_project_is_taken() {
        let none = || json!({});
        check(none(), none(), false, Some(("http://main", "pk-main")));
        check(none(), none(), true, None);
        let both = "success_and_failure";
        check(
            none(),
            logging("pk-team", None, both),
            true,
            Some(("http://main", "pk-team")),
        );
        check(
            logging("pk-key", Some("http://other/"), both),
            logging("pk-team", None, both),
            false,
            Some(("http://other", "pk-key")),
        );
        check(logging("pk-key", None, "failure"), none(), false, None);
        check(
            logging("pk-key", Some("http://169.254.169.254"), both),
            none(),
            false,
            Some(("http://169.254.169.254", "refused")),
        );
        check(
            logging("os.environ/LANGFUSE_X", None, both),
            none(),
            false,
            Some(("http://main", "from-env")),
        );
        check(
            logging("os.environ/DATABASE_URL", None, both),
            none(),
            false,
            Some(("http://main", "pk-main")),
        );
        let settings = json!({"callback_settings": {"success_callback": ["langfuse"],
            "callback_vars": {"langfuse_public_key": "pk-set", "langfuse_secret": "sk"}}});
        check(none(), settings, false, Some(("http://main", "pk-set")));
        for odd in [
            json!({"logging": "x"}),
            json!({"logging": [1, {"callback_name": "langfuse"}]}),
        ] {
            check(odd, json!([1]), false, Some(("http://main", "pk-main")));
        }
    }

    #[test]
    fn keys_and_teams_may_say_less_and_never_more() {
        let of = |most, key, team| {
            let w = wants(most, false, &caller(key, team));
            (w.capture, w.redacted)
        };
        let none = || json!({});
        assert_eq!(of(Capture::Full, none(), none()), (Capture::Full, false));
        assert_eq!(
            of(Capture::Full, json!({"turn_off_message_logging": true}), none()),
            (Capture::Metadata, true)
        );
        assert_eq!(
            of(Capture::Full, none(), json!({"turn_off_message_logging": "True"})),
            (Capture::Metadata, true)
        );
        assert_eq!(
            of(Capture::Full, none(), json!({"tracing": "off"})),
            (Capture::Off, false)
        );
        assert_eq!(
            of(Capture::Metadata, json!({"tracing": "full"}), none()),
            (Capture::Metadata, false)
        );
        let vars = json!({"logging": [{"callback_vars": {"turn_off_message_logging": "true"}}]});
        assert_eq!(of(Capture::Full, vars, none()), (Capture::Metadata, true));
        assert!(wants(Capture::Full, true, &Caller::Anonymous).redacted);
    }
}
