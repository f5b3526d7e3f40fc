//! LiteLLM's spelling of models: `<provider>/<model>`, bare names, wildcards; who that is, where it
//! is called, and which environment variable holds its key.
//!
//! The facts about providers are data, `conf/providers.yaml`, embedded in the binary.

use std::sync::LazyLock;

use serde::Deserialize;

use super::load::Env;
use super::secret::Secret;
use super::text::{base_url, nearest};
use super::types::{Dialect, Provider};

/// What is known about a provider; one entry of `conf/providers.yaml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderData {
    /// The prefix before the slash.
    pub name: String,
    /// Where it is called when nothing else is said.
    #[serde(default)]
    pub base: Option<String>,
    /// Environment variables that hold another address, first match wins.
    #[serde(default)]
    pub base_env: Vec<String>,
    /// Environment variables that hold the key, first match wins.
    #[serde(default)]
    pub key_env: Vec<String>,
    #[serde(default = "openai")]
    pub dialect: Spoken,
    /// It answers without a key.
    #[serde(default)]
    pub keyless: bool,
    /// Added to the address unless it ends with it: Ollama's own address is not its OpenAI one.
    #[serde(default)]
    pub path: Option<String>,
    /// Said when a deployment of it is skipped.
    #[serde(default)]
    pub note: Option<String>,
}

/// The dialects as the data file names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spoken {
    OpenAi,
    Anthropic,
    /// Not spoken yet.
    Own,
}

fn openai() -> Spoken {
    Spoken::OpenAi
}

static PROVIDERS: LazyLock<Vec<ProviderData>> = LazyLock::new(|| {
    serde_saphyr::from_str(include_str!("../../conf/providers.yaml"))
        .expect("a test reads the embedded providers.yaml")
});

/// Every provider there is, in the data file's order.
pub fn providers() -> &'static [ProviderData] {
    &PROVIDERS
}

pub fn provider(name: &str) -> Option<&'static ProviderData> {
    PROVIDERS.iter().find(|p| p.name == name)
}

impl ProviderData {
    pub fn provider(&self) -> Provider {
        let dialect = match self.dialect {
            Spoken::OpenAi => Dialect::OpenAi,
            Spoken::Anthropic => Dialect::Anthropic,
            Spoken::Own => Dialect::Unsupported,
        };
        Provider {
            name: self.name.clone(),
            dialect,
            keyless: self.keyless,
        }
    }

    /// Where it is called: what the file says, else its variable, else its own address.
    pub fn address(&self, given: Option<&str>, env: &Env) -> Option<String> {
        let from_env = || {
            let set = self.base_env.iter().find_map(|name| env.get(name))?;
            base_url(set.expose()).ok()
        };
        let base = given
            .map(str::to_owned)
            .or_else(from_env)
            .or_else(|| self.base.clone())?;
        let base = base.trim_end_matches('/');
        Some(match &self.path {
            Some(path) if !base.ends_with(path.as_str()) => format!("{base}{path}"),
            _ => base.to_owned(),
        })
    }

    /// The variable that holds its key, with the key.
    pub fn key(&self, env: &Env) -> Option<(&str, Secret)> {
        self.key_env
            .iter()
            .find_map(|name| Some((name.as_str(), env.get(name)?)))
    }

    /// Whether an address is the provider's own: its key is sent nowhere else unasked.
    pub fn owns(&self, address: &str, env: &Env) -> bool {
        let host = |url: &str| {
            url.parse::<http::Uri>()
                .ok()?
                .authority()
                .map(|a| a.as_str().to_ascii_lowercase())
        };
        let Some(wanted) = host(address) else { return false };
        let named = self
            .base_env
            .iter()
            .filter_map(|name| env.get(name))
            .filter_map(|url| host(url.expose()));
        named
            .chain(self.base.as_deref().and_then(host))
            .any(|own| own == wanted)
    }
}

/// Why a model string names nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unresolved {
    /// The part before the slash is no provider; the nearest that is one.
    Prefix {
        prefix: String,
        near: Option<&'static str>,
    },
    /// No prefix, and the name belongs to no family that is known.
    Bare,
}

/// Splits a model string into its provider and the name the provider knows.
/// `*` alone is `None`: each call's own name says who serves it.
pub fn split<'m>(
    model: &'m str,
    custom_provider: Option<&str>,
    api_base: Option<&str>,
) -> Result<Option<(&'static ProviderData, &'m str)>, Unresolved> {
    if let Some(name) = custom_provider {
        let data = provider(name).ok_or_else(|| unknown(name))?;
        let bare = model.strip_prefix(name).and_then(|rest| rest.strip_prefix('/'));
        return Ok(Some((data, bare.unwrap_or(model))));
    }
    if let Some((prefix, rest)) = model.split_once('/') {
        if let Some(data) = provider(prefix) {
            return Ok(Some((data, rest)));
        }
        return Err(unknown(prefix));
    }
    if model == "*" {
        // With an address there is only one server it can be, and those speak OpenAI's dialect.
        return Ok(api_base
            .and_then(|_| provider("openai"))
            .map(|data| (data, model)));
    }
    if let Some(data) = family(model).and_then(provider) {
        return Ok(Some((data, model)));
    }
    let at_home = |data: &&ProviderData| api_base.is_some_and(|base| data.owns(base, &Env::default()));
    match PROVIDERS.iter().find(at_home) {
        Some(data) => Ok(Some((data, model))),
        None => Err(Unresolved::Bare),
    }
}

fn unknown(prefix: &str) -> Unresolved {
    let near = nearest(prefix, PROVIDERS.iter().map(|p| p.name.as_str()));
    Unresolved::Prefix {
        prefix: prefix.to_owned(),
        near,
    }
}

/// Who makes a model of this name, judged by how the name starts.
fn family(model: &str) -> Option<&'static str> {
    const FAMILIES: [(&str, &[&str]); 9] = [
        (
            "openai",
            &[
                "gpt-",
                "chatgpt-",
                "o1",
                "o3",
                "o4",
                "text-embedding-3",
                "text-embedding-ada",
                "whisper-",
                "tts-",
                "dall-e",
                "omni-moderation",
                "text-moderation",
                "babbage-",
                "davinci-",
                "codex-",
                "computer-use-",
                "ft:gpt-",
                "sora-",
            ],
        ),
        ("anthropic", &["claude"]),
        (
            "mistral",
            &[
                "mistral-",
                "ministral-",
                "magistral-",
                "devstral-",
                "pixtral-",
                "voxtral-",
                "open-mistral",
                "open-mixtral",
            ],
        ),
        ("codestral", &["codestral"]),
        ("gemini", &["gemini-"]),
        (
            "cohere",
            &["command", "embed-english", "embed-multilingual", "rerank-"],
        ),
        ("deepseek", &["deepseek-chat", "deepseek-reasoner"]),
        ("xai", &["grok-"]),
        ("perplexity", &["sonar"]),
    ];
    FAMILIES
        .iter()
        .find(|(_, starts)| starts.iter().any(|start| model.starts_with(start)))
        .map(|(name, _)| *name)
}

/// Where a call goes whose deployment is `model: "*"`: resolved from the name the client sent.
#[derive(Debug, Clone)]
pub struct Resolved {
    pub provider: Provider,
    pub upstream_model: String,
    pub api_base: Option<String>,
    pub api_key: Option<Secret>,
}

/// Resolves a client's own spelling, `groq/llama-3.3` or `gpt-4.1`, with keys from the environment.
pub fn resolve_name(name: &str, env: &Env) -> Result<Resolved, Unresolved> {
    let (data, model) = split(name, None, None)?.ok_or(Unresolved::Bare)?;
    Ok(Resolved {
        provider: data.provider(),
        upstream_model: model.to_owned(),
        api_base: data.address(None, env),
        api_key: data.key(env).map(|(_, key)| key),
    })
}

/// What the `*` of a pattern stands for in `name`; the whole name when it has no prefix to match.
/// A pattern without `*` matches itself and captures nothing.
pub fn capture<'n>(pattern: &str, name: &'n str) -> Option<&'n str> {
    match pattern.split_once('*') {
        None => (pattern == name).then_some(""),
        Some((start, end)) => name.strip_prefix(start)?.strip_suffix(end),
    }
}

/// Puts what was captured into an upstream's name.
pub fn fill(pattern: &str, captured: &str) -> String {
    pattern.replacen('*', captured, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(model: &str) -> Option<(&'static str, &str)> {
        split(model, None, None)
            .ok()
            .flatten()
            .map(|(data, rest)| (data.name.as_str(), rest))
    }

    #[test]
    fn the_embedded_providers_are_whole() {
        let mut names: Vec<_> = providers().iter().map(|p| p.name.as_str()).collect();
        assert!(names.len() > 130, "the long tail is there: {}", names.len());
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all, "each name stands once");
        for p in providers() {
            if let Some(base) = &p.base {
                assert_eq!(
                    base_url(base).as_deref(),
                    Ok(base.as_str()),
                    "{} has a good address",
                    p.name
                );
            }
            assert!(
                p.dialect == Spoken::Own || p.base.is_some() || !p.base_env.is_empty(),
                "{} is reachable",
                p.name
            );
            assert_eq!(
                p.note.is_some(),
                p.dialect == Spoken::Own,
                "{} says why it is skipped",
                p.name
            );
        }
    }

    #[test]
    fn prefixes_and_families_are_resolved() {
        assert_eq!(who("openai/qwen3"), Some(("openai", "qwen3")));
        assert_eq!(
            who("openrouter/meta/llama:free"),
            Some(("openrouter", "meta/llama:free"))
        );
        assert_eq!(who("gpt-4.1-mini"), Some(("openai", "gpt-4.1-mini")));
        assert_eq!(who("o3-mini"), Some(("openai", "o3-mini")));
        assert_eq!(who("claude-2"), Some(("anthropic", "claude-2")));
        assert_eq!(
            who("mistral-large-latest"),
            Some(("mistral", "mistral-large-latest"))
        );
        assert_eq!(who("whisper-1"), Some(("openai", "whisper-1")));
        assert_eq!(split("llama3", None, None).err(), Some(Unresolved::Bare));
        assert_eq!(
            split("opnai/gpt-4", None, None).err(),
            Some(Unresolved::Prefix {
                prefix: "opnai".into(),
                near: Some("openai")
            })
        );
        assert!(matches!(split("*", None, None), Ok(None)), "each call decides");
        assert!(matches!(split("*", None, Some("http://h")), Ok(Some(_))));
        let custom = split("meta-llama/L3", Some("hosted_vllm"), None).ok().flatten();
        assert_eq!(
            custom.map(|(d, m)| (d.name.as_str(), m)),
            Some(("hosted_vllm", "meta-llama/L3"))
        );
    }

    #[test]
    fn an_address_comes_from_the_file_then_the_variable_then_the_data() {
        let env = Env::from([
            ("OLLAMA_API_BASE", "http://box:11434/"),
            ("OPENAI_API_KEY", "sk-x"),
        ]);
        let ollama = provider("ollama").unwrap();
        assert_eq!(ollama.address(None, &env).as_deref(), Some("http://box:11434/v1"));
        assert_eq!(
            ollama.address(None, &Env::default()).as_deref(),
            Some("http://localhost:11434/v1")
        );
        assert_eq!(
            ollama.address(Some("http://h:1/v1"), &env).as_deref(),
            Some("http://h:1/v1")
        );
        let openai = provider("openai").unwrap();
        assert_eq!(openai.key(&env).map(|(name, _)| name), Some("OPENAI_API_KEY"));
        assert!(openai.owns("https://api.openai.com/v1", &env));
        assert!(!openai.owns("https://api.openai.com.evil.example/v1", &env));
    }

    #[test]
    fn wildcards_capture_and_fill() {
        assert_eq!(capture("*", "x/y"), Some("x/y"));
        assert_eq!(capture("openai/*", "openai/gpt-4"), Some("gpt-4"));
        assert_eq!(capture("openai/*", "gpt-4"), None);
        assert_eq!(capture("a-*-z", "a-z"), None);
        assert_eq!(capture("small", "small"), Some(""));
        assert_eq!(fill("org/*", "m"), "org/m");
        assert_eq!(fill("org/m", "x"), "org/m");
    }
}
