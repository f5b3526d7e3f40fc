//! Secrets within `metadata`: the Langfuse keys that a key or a team names under `logging`, as LiteLLM has
//! them. They are sealed when they are written ([`Desk::write`](super::Desk::write)) and opened only where calls
//! are told of (`traces::project`); they are never shown, and stay when what was shown is written back.

use super::error::{Result, wrong_value};
use crate::store::seal::Seal;
use crate::store::{Change, Doc};
use filters::model::key::Key;
use serde_json::{Map, Value};

/// What stands where a secret does.
const HIDDEN: &str = "***";

/// The settings of callbacks in a `metadata`, in both shapes that LiteLLM has.
pub fn each(metadata: &mut Map<String, Value>, mut look: impl FnMut(&mut Map<String, Value>)) {
    if let Some(Value::Array(list)) = metadata.get_mut("logging") {
        for vars in list
            .iter_mut()
            .filter_map(|e| e.get_mut("callback_vars")?.as_object_mut())
        {
            look(vars);
        }
    }
    let settings = metadata
        .get_mut("callback_settings")
        .and_then(|s| s.get_mut("callback_vars"));
    if let Some(Value::Object(vars)) = settings {
        look(vars);
    }
}

fn is_secret(name: &str) -> bool {
    ["secret", "password", "api_key", "token", "service_account"]
        .iter()
        .any(|part| name.contains(part))
}

/// The values that are secret. The name of a variable is none.
pub fn each_secret(metadata: &mut Map<String, Value>, mut look: impl FnMut(&mut Value)) {
    each(metadata, |vars| {
        for (name, value) in vars.iter_mut() {
            let named = value.as_str().is_some_and(|v| v.starts_with("os.environ/"));
            if is_secret(name) && !named && !value.is_null() {
                look(value);
            }
        }
    });
}

/// Takes the secrets out of a `metadata` that is shown.
pub fn hide(metadata: &mut Map<String, Value>) {
    each_secret(metadata, |value| *value = HIDDEN.into());
}

/// Refuses a `metadata` that is given with text that only looks sealed: it would be opened as somebody else's.
pub fn check(metadata: &Map<String, Value>) -> Result<()> {
    ["logging", "callback_settings"]
        .iter()
        .filter_map(|name| Some((name, metadata.get(*name)?)))
        .try_for_each(|(name, value)| no_sealed(&format!("metadata.{name}"), value))
}

/// The same for the settings of one callback.
pub fn refuse_sealed(field: &str, vars: &Map<String, Value>) -> Result<()> {
    vars.values().try_for_each(|value| no_sealed(field, value))
}

fn no_sealed(field: &str, value: &Value) -> Result<()> {
    match value {
        Value::String(text) if Seal::is_sealed(text) => Err(wrong_value(
            field,
            format!("'{field}' holds a sealed text. Give its plain value."),
        )
        .into()),
        Value::Array(list) => list.iter().try_for_each(|v| no_sealed(field, v)),
        Value::Object(map) => map.values().try_for_each(|v| no_sealed(field, v)),
        _ => Ok(()),
    }
}

/// Whether there is a secret that is not sealed yet; then it is now.
fn close(metadata: &mut Map<String, Value>, seal: &Seal) -> bool {
    let mut any = false;
    each_secret(metadata, |value| {
        if let Value::String(text) = value
            && !text.is_empty()
            && text != HIDDEN
            && !Seal::is_sealed(text)
        {
            *text = seal.seal(text);
            any = true;
        }
    });
    any
}

/// What is written in place of something with secrets in it.
pub enum Closed {
    Key(Box<Key>),
    Doc(Box<Doc>),
}

impl Closed {
    /// None = there is nothing to seal.
    pub fn of(change: &Change<'_>, seal: &Seal) -> Option<Self> {
        match change {
            Change::InsertKey(key) | Change::UpdateKey { key, .. } => {
                let mut metadata = key.metadata.clone();
                close(&mut metadata, seal).then(|| {
                    let mut key = Box::new((*key).clone());
                    key.metadata = metadata;
                    Closed::Key(key)
                })
            }
            Change::Put { doc, .. } => {
                let mut metadata = doc.fields.get("metadata")?.as_object()?.clone();
                close(&mut metadata, seal).then(|| {
                    let mut doc = Box::new((*doc).clone());
                    doc.fields.insert("metadata".into(), metadata.into());
                    Closed::Doc(doc)
                })
            }
            _ => None,
        }
    }

    pub fn in_place_of<'a>(&'a self, change: &Change<'a>) -> Change<'a> {
        match (self, *change) {
            (Closed::Key(key), Change::InsertKey(_)) => Change::InsertKey(key),
            (Closed::Key(key), Change::UpdateKey { read_at_micros, .. }) => {
                Change::UpdateKey { key, read_at_micros }
            }
            (Closed::Doc(doc), Change::Put { table, .. }) => Change::Put { table, doc },
            (_, other) => other,
        }
    }
}

/// Puts the secrets back into a `metadata` that was shown and comes back: each where the public key beside
/// it is the same.
pub fn restore(metadata: &mut Map<String, Value>, kept: &Map<String, Value>) {
    let mut known: Vec<Map<String, Value>> = Vec::new();
    each(&mut kept.clone(), |vars| known.push(vars.clone()));
    each(metadata, |vars| {
        let public = vars.get("langfuse_public_key").cloned();
        let before = known
            .iter()
            .find(|k| k.get("langfuse_public_key") == public.as_ref());
        for (name, value) in vars.iter_mut().filter(|(_, v)| *v == HIDDEN) {
            if let Some(secret) = before.and_then(|k| k.get(name)) {
                *value = secret.clone();
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_are_sealed_once() {
        let seal = Seal::new(&"salt".into());
        let vars = json!({"langfuse_public_key": "pk", "langfuse_secret_key": "sk", "langfuse_secret": "os.environ/X",
            "api_key": "***", "password": ""});
        let kept = json!({"logging": [{"callback_vars": vars}], "mine": {"secret": "one's own"}});
        let mut closed = kept.as_object().unwrap().clone();
        assert!(check(&closed).is_ok() && close(&mut closed, &seal));
        let secret = closed["logging"][0]["callback_vars"]["langfuse_secret_key"]
            .as_str()
            .unwrap()
            .to_string();
        assert_eq!(seal.open(&secret).unwrap().expose(), "sk");
        assert!(!close(&mut closed, &seal), "what is closed stays as it is");
        assert!(check(&closed).is_err(), "nobody gives what is closed");
        closed["logging"][0]["callback_vars"]["langfuse_secret_key"] = "sk".into();
        assert_eq!(Value::Object(closed), kept, "nothing else is touched");
    }

    #[test]
    fn secrets_are_hidden_and_come_back() {
        let vars = json!({"langfuse_public_key": "pk", "langfuse_secret_key": "sk", "langfuse_secret": "os.environ/X"});
        let kept = json!({"logging": [{"callback_name": "langfuse", "callback_vars": vars}],
            "callback_settings": {"callback_vars": {"langfuse_secret_key": "sk2"}}, "secret": "one's own"});
        let kept = kept.as_object().unwrap();
        let mut shown = kept.clone();
        hide(&mut shown);
        let vars = &shown["logging"][0]["callback_vars"];
        assert_eq!(
            (
                &vars["langfuse_secret_key"],
                &vars["langfuse_secret"],
                &vars["langfuse_public_key"]
            ),
            (&json!("***"), &json!("os.environ/X"), &json!("pk"))
        );
        assert_eq!(
            shown["callback_settings"]["callback_vars"]["langfuse_secret_key"],
            "***"
        );
        assert_eq!(shown["secret"], "one's own", "only what we know of is touched");
        restore(&mut shown, kept);
        assert_eq!(&shown, kept);

        hide(&mut shown);
        shown["logging"][0]["callback_vars"]["langfuse_public_key"] = "another".into();
        restore(&mut shown, kept);
        let vars = &shown["logging"][0]["callback_vars"];
        assert_eq!(
            vars["langfuse_secret_key"], "***",
            "it belongs to another project"
        );
        for odd in [
            json!({"logging": 1}),
            json!({"logging": [1, {"callback_vars": 2}]}),
            json!({"callback_settings": []}),
        ] {
            let mut odd = odd.as_object().unwrap().clone();
            hide(&mut odd);
            restore(&mut odd, kept);
        }
    }
}
