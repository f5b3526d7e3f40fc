//! What a config means, typed: the result of loading, read by everything else.
//!
//! LiteLLM's sections are here under LiteLLM's words; our own section is in `own.rs`. Nothing here
//! reads a file or the environment.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::cooldown::Cooldown;
use super::fallbacks::Fallbacks;
use super::load::Env;
use super::meters::Meters;
use super::own::Own;
use super::secret::Secret;

/// Everything the config says. `Conf::default()` is the state without any file.
#[derive(Debug, Clone, Default)]
pub struct Conf {
    /// Deployments that can be called, in the file's order. Several may share a `model_name`.
    pub models: Vec<ModelEntry>,
    /// Deployments whose provider is known but not spoken yet. They are reported, not used.
    pub skipped: Vec<ModelEntry>,
    pub general: General,
    pub litellm: LitellmSettings,
    pub router: RouterSettings,
    /// The section `tollkeeper:`.
    pub tollkeeper: Own,
    /// Budgets and limits, wherever they stand.
    pub meters: Meters,
    /// Where a call goes on when no deployment of its model will do.
    pub fallbacks: Fallbacks,
    /// When a deployment that fails steps back.
    pub cooldown: Cooldown,
    /// Which files were read.
    pub source: Source,
    /// The environment as the config saw it, for provider keys that are named nowhere in the file.
    pub env: Env,
}

impl Conf {
    /// Whether metrics are counted under LiteLLM's own names, too.
    pub fn metrics_speak_litellm(&self) -> bool {
        let said = self.tollkeeper.metrics.litellm_names;
        said.unwrap_or_else(|| self.litellm.calls_back("prometheus"))
    }
}

/// The files a config came from. Empty without a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// The file that was asked for or found; none in zero-config mode.
    pub path: Option<PathBuf>,
    /// Every file read, includes too. `Span::file` is an index into it.
    pub files: Vec<Arc<str>>,
    /// The `.env` beside the file, when there is one.
    pub dotenv: Option<PathBuf>,
}

impl Source {
    /// All files whose content makes the config, `.env` too.
    pub fn paths(&self) -> Vec<PathBuf> {
        let files = self.path.iter().flat_map(|_| &self.files);
        files
            .map(|f| PathBuf::from(&**f))
            .chain(self.dotenv.clone())
            .collect()
    }

    /// `config.yaml:14:7`, for logs and messages.
    pub fn place(&self, at: Span) -> String {
        match self.files.get(at.file as usize) {
            Some(file) => format!("{file}:{}:{}", at.line, at.col),
            None => "(no file)".into(),
        }
    }
}

/// A place in a config file.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// Index into `Source::files`.
    pub file: u32,
    /// Counted from 1; 0 when the place is unknown.
    pub line: u32,
    /// In characters, counted from 1.
    pub col: u32,
    /// Byte offsets into the file, end exclusive.
    pub start: u32,
    pub end: u32,
}

/// Says nothing of the place: whether two configs differ is seen by how they look, and a line that moved is
/// no difference.
impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Span")
    }
}

/// One deployment: an entry of `model_list`.
#[derive(Debug, Clone)]
pub struct ModelEntry {
    /// The name clients use. May hold one `*`.
    pub model_name: String,
    pub params: LitellmParams,
    pub info: ModelInfo,
    /// It comes from the database, and from no file.
    pub stored: bool,
    /// Where the entry starts.
    pub at: Span,
}

/// `litellm_params`, with the provider resolved and its defaults filled in.
#[derive(Debug, Clone)]
pub struct LitellmParams {
    /// As written, such as `openai/qwen3-30b`.
    pub model: String,
    pub provider: Provider,
    /// `model` without the provider's prefix. May hold one `*`, filled from the client's name.
    pub upstream_model: String,
    /// Where to call, without a slash at the end; the provider's own address when the file is
    /// silent. None only when `provider.dialect` is `ByName` or `Unsupported`.
    pub api_base: Option<String>,
    /// From the file, else from the provider's environment variable.
    pub api_key: Option<Secret>,
    pub organization: Option<String>,
    /// `extra_headers` and `headers` in one, sent upstream with each call.
    pub headers: Vec<(String, Secret)>,
    pub timeout: Option<Duration>,
    pub stream_timeout: Option<Duration>,
    pub max_retries: Option<u32>,
    /// Share of the calls among deployments of one name. Never negative.
    pub weight: Option<f64>,
    /// Requests per minute.
    pub rpm: Option<u64>,
    /// Tokens per minute.
    pub tpm: Option<u64>,
    /// Calls in flight at once.
    pub max_parallel_requests: Option<u64>,
    /// Lower is tried first.
    pub order: Option<i64>,
    /// How long it steps back after failures; zero = never.
    pub cooldown_time: Option<Duration>,
    /// Overrides `litellm_settings.drop_params` for this deployment.
    pub drop_params: Option<bool>,
    pub additional_drop_params: Vec<String>,
    /// The model whose price applies, when the name says nothing.
    pub base_model: Option<String>,
    /// Every cost field (`input_cost_per_token`, …) in dollars, from `litellm_params` and
    /// `model_info`; the former wins.
    pub costs: Map<String, Value>,
    /// Call parameters used when the client sends none (`temperature`, `max_tokens`, …).
    pub defaults: Map<String, Value>,
}

impl LitellmParams {
    /// Share of the calls among deployments of one name, as in LiteLLM: `weight`, else `rpm`, else `tpm`, else all
    /// alike.
    pub fn share(&self) -> f64 {
        self.weight
            .or(self.rpm.map(|r| r as f64))
            .or(self.tpm.map(|t| t as f64))
            .unwrap_or(1.0)
    }
}

/// Who serves a model, and in what language.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// LiteLLM's name for it, such as `openai` or `hosted_vllm`.
    pub name: String,
    pub dialect: Dialect,
    /// The provider answers without a key (Ollama, vLLM and others run at home).
    pub keyless: bool,
}

/// What the upstream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    OpenAi,
    Anthropic,
    /// `model: "*"` without an address: each call's own name says who serves it, see
    /// `litellm::resolve_name`.
    ByName,
    /// Known, not spoken yet.
    Unsupported,
}

/// `model_info`, what is told about a model.
#[derive(Debug, Clone, Default)]
pub struct ModelInfo {
    /// Names this deployment in headers and the ledger. Unique in the file.
    pub id: Option<String>,
    /// `chat`, `embedding`, `audio_speech`, …
    pub mode: Option<String>,
    pub base_model: Option<String>,
    pub max_input_tokens: Option<u64>,
    pub max_output_tokens: Option<u64>,
    /// Everything as written, for `/model/info`.
    pub all: Map<String, Value>,
}

/// `general_settings`.
#[derive(Debug, Clone, Default)]
pub struct General {
    pub master_key: Option<Secret>,
    pub database_url: Option<Secret>,
    /// `salt_key`, else `LITELLM_SALT_KEY`: what LiteLLM encrypted stored credentials with, and what we
    /// seal ours with.
    pub salt_key: Option<Secret>,
    pub pass_through_endpoints: Vec<PassThrough>,
    /// Header that carries the key besides the usual ones.
    pub litellm_key_header_name: Option<String>,
    /// Connections to the database at most.
    pub database_connection_pool_limit: Option<u32>,
    /// How long ledger rows are kept, unless `tollkeeper.ledger.keep` says it.
    pub maximum_spend_logs_retention_period: Option<Duration>,
    /// Everything as written. Secrets are left out.
    pub all: Map<String, Value>,
}

impl General {
    /// What stored credentials are sealed with: the salt key, else the master key, as in LiteLLM.
    pub fn salt<'a>(&'a self, master_key: &'a Secret) -> &'a Secret {
        self.salt_key.as_ref().unwrap_or(master_key)
    }
}

/// One entry of `general_settings.pass_through_endpoints`.
#[derive(Debug, Clone)]
pub struct PassThrough {
    pub id: Option<String>,
    /// Starts with `/`, no slash at the end (but for `/` itself).
    pub path: String,
    /// Address the rest of the path is appended to, without a slash at the end.
    pub target: String,
    /// Set on the request that goes upstream.
    pub headers: Vec<(String, Secret)>,
    /// Everything below `path` too.
    pub include_subpath: bool,
    /// What the file says about keys; none when silent.
    pub auth: Option<bool>,
    /// Pass the client's headers on.
    pub forward_headers: bool,
    /// Add the target's query parameters to the client's.
    pub merge_query_params: bool,
    /// Upper case; empty means every method.
    pub methods: Vec<String>,
    pub at: Span,
}

/// `litellm_settings`, the part that has an effect.
#[derive(Debug, Clone, Default)]
pub struct LitellmSettings {
    /// Take out parameters the upstream does not know instead of refusing the call.
    pub drop_params: bool,
    pub request_timeout: Option<Duration>,
    pub num_retries: Option<u32>,
    /// Another name for a model, by the name clients use.
    pub model_alias_map: BTreeMap<String, GroupAlias>,
    /// Everything as written. Secrets are left out.
    pub all: Map<String, Value>,
}

impl LitellmSettings {
    /// Whether one of LiteLLM's lists of callbacks names this one.
    pub fn calls_back(&self, name: &str) -> bool {
        CALLBACKS.iter().any(|list| {
            self.all.get(*list).is_some_and(|named| match named {
                Value::Array(names) => names.iter().any(|n| n.as_str() == Some(name)),
                one => one.as_str() == Some(name),
            })
        })
    }
}

/// Where `litellm_settings` names what is told of calls.
pub const CALLBACKS: [&str; 3] = ["callbacks", "success_callback", "failure_callback"];

/// `router_settings`, the part that has an effect.
#[derive(Debug, Clone, Default)]
pub struct RouterSettings {
    pub model_group_alias: BTreeMap<String, GroupAlias>,
    pub routing_strategy: Option<String>,
    pub num_retries: Option<u32>,
    pub timeout: Option<Duration>,
    pub stream_timeout: Option<Duration>,
    /// Everything as written. Secrets are left out.
    pub all: Map<String, Value>,
}

/// Where an alias leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupAlias {
    pub model: String,
    /// Not shown in `/models`.
    pub hidden: bool,
    /// Where the alias stands in the file.
    pub at: Span,
}

#[cfg(test)]
mod tests {
    use super::super::{Env, load_text};
    use super::*;

    #[test]
    fn the_salt_key_is_the_files_the_environments_or_the_master_key() {
        let master = Secret::new("sk-master");
        let general = |text: &str, salt: &str| {
            let env = Env::from([("LITELLM_SALT_KEY", salt)]);
            load_text("config.yaml", text, &env).unwrap().conf.general
        };
        let own = general("general_settings: {salt_key: ours}", "theirs");
        assert_eq!(own.salt(&master), &Secret::new("ours"));
        assert!(!own.all.contains_key("salt_key"));
        assert_eq!(general("", "theirs").salt(&master), &Secret::new("theirs"));
        assert_eq!(general("", "").salt(&master), &master);
    }
}
