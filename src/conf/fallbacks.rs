//! Where a call goes on when no deployment of its model will do: LiteLLM's `fallbacks`, `default_fallbacks`,
//! `context_window_fallbacks`, `content_policy_fallbacks` and `max_fallbacks`, in `router_settings` or `litellm_settings`.

use super::fields::Fields;
use super::meters::section;
use super::node::{Entry, Node, Value};
use super::report::Notes;
use super::text::shown;
use super::types::Span;
use std::collections::BTreeMap;

/// Further models of one call, where nothing else is said, as in LiteLLM.
const MOST: u32 = 5;
/// Names that stand for a model in one list. More are never tried.
const MOST_NAMES: usize = 100;

/// What the config says of fallbacks.
#[derive(Debug, Clone, PartialEq)]
pub struct Fallbacks {
    pub general: Names,
    /// For prompts that are too long.
    pub context_window: Names,
    /// For what a provider declined.
    pub content_policy: Names,
    /// Further models that one call tries at most.
    pub most: u32,
}

/// The models to go on with, by the model that failed; `*` = any.
pub type Names = BTreeMap<String, To>;

#[derive(Debug, Clone, PartialEq)]
pub struct To {
    pub names: Vec<String>,
    /// The section it stands in, and the field.
    pub path: String,
    pub at: Span,
}

impl Default for Fallbacks {
    fn default() -> Self {
        Self {
            general: Names::new(),
            context_window: Names::new(),
            content_policy: Names::new(),
            most: MOST,
        }
    }
}

impl Fallbacks {
    /// What comes after a model that is called by these names, whatever its failure.
    pub fn after<'a>(names: &'a Names, called: &[&str]) -> &'a [String] {
        let bare = called.iter().filter_map(|name| Some(name.split_once('/')?.1));
        let mut keys = called.iter().copied().chain(bare).chain(["*"]);
        let to = keys.find_map(|key| names.get(key));
        to.map(|to| to.names.as_slice()).unwrap_or_default()
    }

    /// Whether no model has any.
    pub fn is_empty(&self) -> bool {
        [&self.general, &self.context_window, &self.content_policy]
            .iter()
            .all(|names| names.is_empty())
    }
}

/// Fields of either section that are read here.
pub(super) const LITELLM: [&str; 4] = [
    "fallbacks",
    "default_fallbacks",
    "context_window_fallbacks",
    "content_policy_fallbacks",
];
pub(super) const ROUTER: [&str; 5] = [
    "fallbacks",
    "default_fallbacks",
    "context_window_fallbacks",
    "content_policy_fallbacks",
    "max_fallbacks",
];

/// Reads both sections. What `router_settings` say of a model wins.
pub(super) fn read(root: &Node, notes: &Notes) -> Fallbacks {
    let mut out = Fallbacks::default();
    for name in ["router_settings", "litellm_settings"] {
        let Some(fields) = section(root, name, notes) else {
            continue;
        };
        for (field, into) in [
            ("fallbacks", &mut out.general),
            ("context_window_fallbacks", &mut out.context_window),
            ("content_policy_fallbacks", &mut out.content_policy),
        ] {
            if let Some(entry) = fields.entry(field) {
                lists(&fields, field, entry, into);
            }
        }
        if let Some(names) = fields.texts("default_fallbacks")
            && let Some(entry) = fields.entry("default_fallbacks")
        {
            let to = To {
                names,
                path: format!("{name} → default_fallbacks"),
                at: entry.key_at,
            };
            out.general.entry("*".into()).or_insert(to);
        }
        if name == "router_settings"
            && let Some(most) = fields.small_count("max_fallbacks")
        {
            out.most = most;
        }
    }
    out
}

/// `[{a: [b, c]}, …]`, as LiteLLM has it, or `{a: [b, c], …}`.
fn lists(fields: &Fields<'_>, field: &str, entry: &Entry, into: &mut Names) {
    let path = format!("{} → {field}", fields.path);
    match &entry.value.value {
        Value::Map(entries) => entries.iter().for_each(|e| list(fields, &path, e, into)),
        Value::Seq(items) => {
            for item in items {
                match &item.value {
                    Value::Map(entries) => entries.iter().for_each(|e| list(fields, &path, e, into)),
                    _ => wrong(fields, field, item),
                }
            }
        }
        _ => wrong(fields, field, &entry.value),
    }
}

fn wrong(fields: &Fields<'_>, field: &str, node: &Node) {
    let message = format!(
        "`{field}` says for each model which come after it, not {}",
        node.kind()
    );
    let draft = fields.error("type", message, node.at);
    drop(draft.help(format!("write `{field}: [{{\"a-model\": [\"another\"]}}]`")));
}

fn list(fields: &Fields<'_>, path: &str, entry: &Entry, into: &mut Names) {
    let one = std::slice::from_ref(&entry.value);
    let items = match &entry.value.value {
        Value::Seq(items) => items.as_slice(),
        _ => one,
    };
    let mut names = Vec::new();
    for item in items {
        match &item.value {
            Value::Scalar(s) if !s.is_null() && !s.text.is_empty() => names.push(s.text.clone()),
            Value::Map(_) => {
                let message = format!(
                    "a fallback of \"{}\" with parameters of its own is not supported yet",
                    shown(&entry.key)
                );
                let draft = fields.warning("unsupported", message, item.at);
                drop(
                    draft
                        .label("passed over")
                        .help("give the parameters to a model in model_list, and name that one here"),
                );
            }
            _ => {
                let message = format!(
                    "a fallback of \"{}\" must be a model's name, not {}",
                    shown(&entry.key),
                    item.kind()
                );
                drop(fields.error("type", message, item.at));
            }
        }
    }
    names.truncate(MOST_NAMES);
    let to = To {
        names,
        path: path.to_owned(),
        at: entry.key_at,
    };
    into.entry(entry.key.clone()).or_insert(to);
}

#[cfg(test)]
mod tests {
    use super::super::{Env, load_text};
    use super::*;

    fn read(text: &str) -> (Fallbacks, Vec<String>) {
        let models = "model_list:\n- {model_name: a, litellm_params: {model: openai/a, api_key: k}}\n\
                      - {model_name: b, litellm_params: {model: openai/b, api_key: k}}\n";
        let loaded = load_text("config.yaml", &format!("{models}{text}"), &Env::default()).unwrap();
        let problems = loaded.report.problems.iter().map(|p| p.message.clone());
        (loaded.conf.fallbacks.clone(), problems.collect())
    }

    fn names<'a>(of: &'a Names, model: &str) -> Vec<&'a str> {
        let to = of.get(model).map(|to| to.names.as_slice());
        to.unwrap_or_default().iter().map(String::as_str).collect()
    }

    #[test]
    fn both_sections_are_read_and_the_router_wins() {
        let (f, problems) = read(
            "router_settings:\n  fallbacks: [{a: [b]}]\n  max_fallbacks: 2\n\
             litellm_settings:\n  fallbacks: [{a: [x], b: a}]\n  default_fallbacks: [b]\n  \
             context_window_fallbacks: {a: [b]}\n  content_policy_fallbacks: [{b: [a]}]\n",
        );
        assert_eq!(problems, [""; 0]);
        assert_eq!(names(&f.general, "a"), ["b"]);
        assert_eq!(names(&f.general, "b"), ["a"]);
        assert_eq!(names(&f.general, "*"), ["b"]);
        assert_eq!(names(&f.context_window, "a"), ["b"]);
        assert_eq!(names(&f.content_policy, "b"), ["a"]);
        assert_eq!(f.most, 2);
        assert_eq!(read("").0.most, 5);
    }

    #[test]
    fn what_leads_nowhere_is_said() {
        let (f, problems) = read(
            "litellm_settings:\n  fallbacks: [{a: [bb, {model: b, temperature: 0}]}, {aa: [b]}]\n  \
             default_fallbacks: [none]\n",
        );
        assert_eq!(names(&f.general, "a"), ["bb"]);
        for wanted in [
            "\"a\" falls back to \"bb\", which is no model",
            "a fallback of \"a\" with parameters of its own",
            "\"aa\" has fallbacks and is no model",
            "every model falls back to \"none\", which is no model",
        ] {
            assert!(
                problems.iter().any(|p| p.contains(wanted)),
                "{wanted}: {problems:?}"
            );
        }
    }

    #[test]
    fn what_names_no_models_is_refused() {
        for (text, wanted) in [
            (
                "fallbacks: [7]",
                "`fallbacks` says for each model which come after it",
            ),
            (
                "context_window_fallbacks: gpt-4",
                "`context_window_fallbacks` says",
            ),
            (
                "fallbacks: [{a: [[b]]}]",
                "a fallback of \"a\" must be a model's name",
            ),
            ("max_fallbacks: -1", "max_fallbacks"),
        ] {
            let text = format!("router_settings: {{{text}}}");
            let report = load_text("config.yaml", &text, &Env::default())
                .map(|_| ())
                .unwrap_err();
            let all: Vec<_> = report.problems.iter().map(|p| &p.message).collect();
            assert!(all.iter().any(|m| m.contains(wanted)), "{text}: {all:?}");
        }
    }
}
