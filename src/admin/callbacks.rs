//! Secrets within `metadata`: the Langfuse keys that a key or a team names under `logging`, as LiteLLM has
//! them. They are kept, never shown, and stay when what was shown is written back.

use serde_json::{Map, Value};

/// What stands where a secret does.
const HIDDEN: &str = "***";

/// The settings of callbacks in a `metadata`, in both shapes that LiteLLM has.
fn each(metadata: &mut Map<String, Value>, mut look: impl FnMut(&mut Map<String, Value>)) {
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
    ["secret", "password", "api_key", "token"]
        .iter()
        .any(|part| name.contains(part))
}

/// Takes the secrets out of a `metadata` that is shown. The name of a variable is none.
pub fn hide(metadata: &mut Map<String, Value>) {
    each(metadata, |vars| {
        for (name, value) in vars.iter_mut() {
            let named = value.as_str().is_some_and(|v| v.starts_with("os.environ/"));
            if is_secret(name) && !named && !value.is_null() {
                *value = HIDDEN.into();
            }
        }
    });
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
