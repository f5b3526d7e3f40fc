//! How a deployment is reached: who serves it, at which address, with which key.

use super::fields::{Fields, unset};
use super::litellm::{self, ProviderData, Unresolved};
use super::load::Env;
use super::report::Severity;
use super::secret::Secret;
use super::text::shown;
use super::types::Span;

/// Who a model string names.
pub(super) struct Found {
    /// None for `*`: each call's own name says it.
    pub data: Option<&'static ProviderData>,
    pub model: String,
}

/// Finds out who a model string names. Reports when that is nobody.
pub(super) fn resolve(
    fields: &Fields<'_>,
    model: &str,
    custom: Option<&str>,
    base: Option<&str>,
    has_base: bool,
) -> Option<Found> {
    let at = fields.entry("model").map(|e| e.value.at).unwrap_or_default();
    if model.matches('*').count() > 1 {
        drop(fields.error("wildcard", "a name holds one `*` at most", at));
    }
    // An address whose variable is missing is still an address: the report must not change with it.
    let base = base.or(has_base.then_some(""));
    match litellm::split(model, custom, base) {
        Ok(Some((_, ""))) => {
            drop(fields.error("missing", "the model's name is missing behind the `/`", at));
            None
        }
        Ok(Some((data, model))) => Some(Found {
            data: Some(data),
            model: model.to_owned(),
        }),
        Ok(None) => Some(Found {
            data: None,
            model: model.to_owned(),
        }),
        Err(Unresolved::Prefix { prefix, near }) => {
            let at = match custom {
                Some(_) => fields.entry("custom_llm_provider").map_or(at, |e| e.value.at),
                None => at,
            };
            let message = format!("unknown provider \"{}\"", shown(&prefix));
            let mut draft = fields.error("provider", message, at);
            if let Some(near) = near {
                draft = draft.label(format!("did you mean `{near}`?"));
            }
            drop(draft.help("for any server that speaks OpenAI's dialect: openai/<its name for the model>, and its api_base"));
            None
        }
        Err(Unresolved::Bare) => {
            let message = format!("which provider serves \"{}\"?", shown(model));
            let draft = fields
                .error("provider", message, at)
                .label("a provider is missing in front");
            drop(draft.help(format!(
                "write <provider>/{}; openai/{0} with an api_base for any server that speaks OpenAI's dialect",
                shown(model)
            )));
            None
        }
    }
}

/// Where the deployment is called. Reports when that is nowhere.
pub(super) fn address(
    fields: &Fields<'_>,
    base_key: &'static str,
    given: Option<String>,
    found: Option<&Found>,
    unspoken: bool,
    env: &Env,
) -> Option<String> {
    let entry = fields.entry_or_unset(base_key);
    if let Some((entry, variable)) = entry.and_then(|e| Some((e, unset(&e.value)?)))
        && !unspoken
    {
        let message = format!("environment variable {} is not set", shown(variable));
        let at_home = found
            .and_then(|f| f.data)
            .filter(|d| d.keyless)
            .and_then(|d| d.address(None, env));
        // A server at home has one usual address. Any other default could be somebody else's
        // server, and would be sent the prompts that were meant for this one.
        if let Some(home) = at_home {
            let draft = fields.warning("env", message, entry.value.at);
            drop(draft.label(format!("needed by `{base_key}`: {home} is used")));
            return Some(home);
        }
        let draft = fields
            .error("env", message, entry.value.at)
            .label(format!("needed by `{base_key}`"));
        drop(draft.help("set it in the environment or in a .env beside the config"));
        return None;
    }
    if entry.is_some() && given.is_none() {
        return None; // not a good address, and said so
    }
    if let (Some(entry), Some(true), false) = (entry, given.as_ref().map(|base| base.contains('?')), unspoken)
    {
        let draft = fields.error("url", format!("`{base_key}` ends in a query"), entry.value.at);
        drop(draft.label("paths are appended to it: take the `?…` out"));
        return None;
    }
    let data = found?.data?;
    let address = data.address(given.as_deref(), env);
    if address.is_none() && !unspoken {
        let at = fields.entry("model").map(|e| e.value.at).unwrap_or_default();
        let variable = data
            .base_env
            .first()
            .map_or(String::new(), |name| format!(", or set {name}"));
        let draft = fields.error(
            "missing",
            format!("`api_base` is missing: {} has no usual address", data.name),
            at,
        );
        drop(draft.help(format!("add `api_base: http://host:port/v1`{variable}")));
    }
    address
}

/// The deployment's key: what the file says, else the provider's variable.
pub(super) fn key(
    fields: &Fields<'_>,
    found: Option<&Found>,
    has_base: bool,
    address: Option<&str>,
    unspoken: bool,
    env: &Env,
) -> Option<Secret> {
    let data = found.and_then(|f| f.data);
    if let Some(entry) = fields.entry_or_unset("api_key") {
        let Some(variable) = unset(&entry.value) else {
            let key = fields.secret("api_key").filter(|key| !key.is_empty())?;
            return sendable(fields, key, "`api_key`", entry.value.at);
        };
        if unspoken {
            return None;
        }
        let message = format!("environment variable {} is not set", shown(variable));
        let keyless = data.is_some_and(|d| d.keyless);
        let severity = if keyless {
            Severity::Warning
        } else {
            Severity::Error
        };
        let mut help = "set it in the environment or in a .env beside the config".to_owned();
        if has_base {
            help.push_str("; if this server needs no key, remove the line");
        }
        let draft = fields
            .notes
            .draft(severity, "env", message)
            .at(entry.value.at)
            .path(&fields.path);
        let label = if keyless {
            "needed by `api_key`: called without one"
        } else {
            "needed by `api_key`"
        };
        drop(draft.label(label).help(help));
        return None;
    }
    let data = data.filter(|_| !unspoken)?;
    let at = fields.entry("model").map(|e| e.value.at).unwrap_or_default();
    let Some((variable, key)) = data.key(env) else {
        if let (false, false, Some(name)) = (data.keyless, has_base, data.key_env.first()) {
            let message = format!("no key for {}: its calls will be refused", data.name);
            drop(
                fields
                    .warning("no-key", message, at)
                    .help(format!("set {name}, or add `api_key:`")),
            );
        }
        return None;
    };
    if address.is_some_and(|address| data.owns(address, env)) {
        return sendable(fields, key, variable, at);
    }
    // The provider's key is for the provider. Someone else's server gets one when the file says so.
    let message = format!(
        "{variable} is not sent to this server, which is not {}'s own",
        data.name
    );
    let draft = fields.notes.note("key-kept", message).at(at).path(&fields.path);
    drop(draft.help(format!("to send it, add `api_key: os.environ/{variable}`")));
    None
}

/// Refuses a key that no header can carry: a line break pasted along, most often.
fn sendable(fields: &Fields<'_>, key: Secret, named: &str, at: Span) -> Option<Secret> {
    if http::HeaderValue::from_str(key.expose()).is_ok() {
        return Some(key);
    }
    let message = format!("{named} holds characters that no header may hold");
    drop(
        fields
            .error("header", message, at)
            .help("a line break or a space pasted along?"),
    );
    None
}
