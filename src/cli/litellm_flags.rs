//! The flags of LiteLLM's command line, so that its compose files and units start this binary unchanged.
//! What they can mean here they mean; the others are taken, and one line in the log says so.
//!
//! `--model` makes a config of one model and writes it to the data directory: from there on it is a config
//! like any other. Only flags whose loss would be a danger are refused.

use super::client::Failure;
use crate::conf::{self, EXIT_CONFIG, Env};
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Name, whether it takes a value, and why nothing is done.
const IGNORED: &[(&str, bool, &str)] = &[
    ("num_workers", true, "threads are automatic"),
    ("debug", false, "use RUST_LOG=debug"),
    ("detailed_debug", false, "use RUST_LOG=debug"),
    ("telemetry", true, "nothing is sent to anybody"),
    (
        "add_function_to_prompt",
        false,
        "functions go to the model as they are",
    ),
    ("add_key", true, "keys come from the environment"),
    ("save", false, "write a config and name it with --config"),
    ("use_queue", false, "see tollkeeper.limits.queue in the config"),
    ("local", false, "there is no banner to choose"),
    ("run_gunicorn", false, "there is one server"),
    ("run_hypercorn", false, "there is one server; it speaks HTTP/2"),
    ("run_granian", false, "there is one server; it speaks HTTP/2"),
    (
        "use_prisma_db_push",
        false,
        "tables are made and migrated at the start",
    ),
    (
        "use_prisma_migrate",
        false,
        "tables are made and migrated at the start",
    ),
    (
        "enforce_prisma_migration_check",
        false,
        "tables are made and migrated at the start",
    ),
    (
        "use_v2_migration_resolver",
        false,
        "tables are made and migrated at the start",
    ),
    ("iam_token_db_auth", false, "database_url holds the password"),
    ("log_config", true, "see tollkeeper.log in the config"),
    (
        "keepalive_timeout",
        true,
        "see tollkeeper.timeouts.keepalive in the config",
    ),
    ("max_requests_before_restart", true, "there is no need to restart"),
    ("num_requests", true, "it belongs to a test of LiteLLM's"),
];

/// These do nothing without `--model`.
const WITH_MODEL: &str = "it goes with --model; a config says it per model";

/// The flags that were given and that do nothing, each with the reason.
#[derive(Default)]
pub struct Ignored(Vec<String>);

impl Args for Ignored {
    fn augment_args(mut command: clap::Command) -> clap::Command {
        for (name, takes_value, _) in IGNORED {
            let action = if *takes_value {
                ArgAction::Append
            } else {
                ArgAction::Count
            };
            command = command.arg(Arg::new(*name).long(*name).action(action).hide(true));
        }
        command
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Ignored {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |name: &str| matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine);
        let said = IGNORED.iter().filter(|(name, ..)| given(name));
        Ok(Self(
            said.map(|(name, _, why)| format!("--{name} ({why})")).collect(),
        ))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// LiteLLM's flags but for `--config`, `--host` and `--port`, which are ours as well.
#[derive(Args, Default)]
#[command(next_help_heading = "One model, without a config")]
pub struct LitellmFlags {
    /// Serve this model, as <provider>/<name>, whatever name a client asks for.
    #[arg(short, long, conflicts_with = "config")]
    model: Option<String>,
    /// One more name that /models shows for it.
    #[arg(long)]
    alias: Option<String>,
    /// Where the model is served, such as http://127.0.0.1:8080/v1.
    #[arg(long = "api_base", value_name = "URL")]
    api_base: Option<String>,
    /// Azure's api-version.
    #[arg(long = "api_version", hide = true)]
    api_version: Option<String>,
    /// Headers for the model's server, as a JSON object.
    #[arg(long, value_name = "JSON", hide = true, value_parser = headers)]
    headers: Option<Value>,
    /// Used when a client sends none.
    #[arg(long)]
    temperature: Option<f64>,
    /// Used when a client sends none.
    #[arg(long = "max_tokens")]
    max_tokens: Option<u64>,
    /// Seconds that an answer may take.
    #[arg(long = "request_timeout", value_name = "SECONDS")]
    request_timeout: Option<f64>,
    /// Take out parameters that the model's server does not know.
    #[arg(long = "drop_params")]
    drop_params: bool,
    /// Dollars that may be spent.
    #[arg(long = "max_budget", value_name = "DOLLARS")]
    max_budget: Option<f64>,
    /// LiteLLM's way to ask a running gateway whether it is well.
    #[arg(long, hide = true)]
    health: bool,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "", value_name = "URL")]
    test: Option<String>,
    #[arg(long = "test_async", hide = true)]
    test_async: bool,
    #[arg(long = "skip_server_startup", hide = true)]
    skip_server_startup: bool,
    #[arg(long, hide = true, value_name = "LIST")]
    ciphers: Option<String>,
    #[command(flatten)]
    ignored: Ignored,
}

impl LitellmFlags {
    /// Which gateway is only to be asked whether it lives; "" = the one of this machine. No model is called,
    /// since that may cost.
    pub fn asks(&self) -> Option<&str> {
        let any = (self.health || self.test_async).then_some("");
        self.test.as_deref().or(any)
    }

    /// A flag that must not be overlooked: other ciphers than thought, a budget that does not hold, a server in
    /// place of a migration.
    pub fn refused(&self) -> Option<&'static str> {
        if self.ciphers.is_some() {
            Some("--ciphers is not taken: only those that are safe are offered, see docs/tls.md")
        } else if self.max_budget.is_some() && self.model.is_none() {
            Some("--max_budget goes with --model; with a config, set litellm_settings.max_budget there")
        } else if self.skip_server_startup {
            Some(
                "--skip_server_startup: there is nothing to do but to serve; tables are made and migrated at the start",
            )
        } else {
            None
        }
    }

    /// One line for each flag without effect.
    pub fn ignored(&self) -> Vec<String> {
        let mut lines = self.ignored.0.clone();
        if self.model.is_none() {
            let given = [
                ("alias", self.alias.is_some()),
                ("api_base", self.api_base.is_some()),
                ("api_version", self.api_version.is_some()),
                ("headers", self.headers.is_some()),
                ("temperature", self.temperature.is_some()),
                ("max_tokens", self.max_tokens.is_some()),
            ];
            let given = given.iter().filter(|(_, given)| *given);
            lines.extend(given.map(|(name, _)| format!("--{name} ({WITH_MODEL})")));
            for (name, given) in [
                ("request_timeout", self.request_timeout.is_some()),
                ("drop_params", self.drop_params),
            ] {
                if given {
                    lines.push(format!("--{name} (set litellm_settings.{name} in the config)"));
                }
            }
        }
        lines
    }

    /// The config that `--model` asks for. Like LiteLLM, it serves any name a client may ask for.
    pub fn config(&self) -> Option<Value> {
        let model = self.model.as_ref()?;
        let mut params = Map::new();
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                params.insert(name.into(), value);
            }
        };
        set("model", Some(json!(model)));
        set("api_base", self.api_base.as_ref().map(|v| json!(v)));
        set("api_version", self.api_version.as_ref().map(|v| json!(v)));
        set("headers", self.headers.clone());
        set("temperature", self.temperature.map(|v| json!(v)));
        set("max_tokens", self.max_tokens.map(|v| json!(v)));
        let mut names: Vec<&str> = self.alias.iter().map(String::as_str).collect();
        for name in [model, "*"] {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let models: Vec<Value> = names
            .iter()
            .map(|name| json!({"model_name": name, "litellm_params": params}))
            .collect();
        let mut settings = Map::new();
        if self.drop_params {
            settings.insert("drop_params".into(), json!(true));
        }
        if let Some(seconds) = self.request_timeout {
            settings.insert("request_timeout".into(), json!(seconds));
        }
        if let Some(dollars) = self.max_budget {
            settings.insert("max_budget".into(), json!(dollars));
        }
        Some(json!({"model_list": models, "litellm_settings": settings}))
    }
}

/// Checks a config that the command line made and writes it below the data directory, where it can be looked
/// at and serves as any other. Its name is made of what it says: gateways side by side keep theirs.
pub fn write(config: &Value, env: &Env) -> Result<PathBuf, Failure> {
    let text = format!("# What the command line said. JSON is YAML.\n{config:#}\n");
    let loaded = conf::load_text("the command line", &text, env).map_err(|report| {
        Failure::new(
            EXIT_CONFIG,
            format!("--model: this cannot be used\n{}", report.render(true)),
        )
    })?;
    let dir = loaded.conf.tollkeeper.data_dir;
    let digest = Sha256::digest(text.as_bytes());
    let name: String = digest.iter().take(4).map(|b| format!("{b:02x}")).collect();
    let path = dir.join(format!("model-{name}.yaml"));
    keep(&dir, &path, &text).map_err(|e| {
        Failure::failed(format!(
            "{} cannot be written: {e}. Set TOLLKEEPER_DATA_DIR.",
            path.display()
        ))
    })?;
    Ok(path)
}

fn keep(dir: &Path, path: &Path, text: &str) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    if fs::read(path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(());
    }
    let new = path.with_extension(format!("{}.new", std::process::id()));
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&new, path)
}

/// `--host`: an address, or the one name that people write there.
pub fn host(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        _ => text
            .trim_matches(['[', ']'])
            .parse()
            .map_err(|_| "an IP address of this machine, such as 127.0.0.1 or 0.0.0.0".into()),
    }
}

fn headers(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        _ => Err(r#"a JSON object, such as {"X-Team": "a"}"#.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[arg(long)]
        config: Option<String>,
        #[command(flatten)]
        flags: LitellmFlags,
    }

    fn flags(line: &str) -> Result<LitellmFlags, clap::Error> {
        let words = std::iter::once("tollkeeper").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.flags)
    }

    #[test]
    fn flags_without_effect_are_named_each_once() {
        let flags = flags(
            "--config c.yaml --num_workers 8 --debug --debug --detailed_debug --telemetry False --add_function_to_prompt \
             --temperature 0.2 --drop_params --save",
        )
        .unwrap();
        let lines = flags.ignored();
        let names: Vec<&str> = lines.iter().filter_map(|l| l.split(' ').next()).collect();
        assert_eq!(
            names,
            [
                "--num_workers",
                "--debug",
                "--detailed_debug",
                "--telemetry",
                "--add_function_to_prompt",
                "--save",
                "--temperature",
                "--drop_params"
            ]
        );
        assert_eq!(lines[0], "--num_workers (threads are automatic)");
        assert!(flags.config().is_none() && flags.refused().is_none() && flags.asks().is_none());
    }

    #[test]
    fn one_model_makes_a_config_that_loads() {
        let flags = flags(
            "-m openai/qwen --api_base http://127.0.0.1:8080/v1 --alias small --temperature 0.2 --max_tokens 99 \
             --request_timeout 30 --drop_params --max_budget 5 --debug",
        )
        .unwrap();
        assert_eq!(flags.ignored(), ["--debug (use RUST_LOG=debug)"]);
        let dir = tempfile::tempdir().unwrap();
        let env = Env::from([("TOLLKEEPER_DATA_DIR", dir.path().to_str().unwrap())]);
        let path = write(&flags.config().unwrap(), &env).unwrap();
        assert_eq!(path.parent(), Some(dir.path()));
        let conf = conf::load(Some(&path), &env).unwrap().conf;
        let names: Vec<_> = conf.models.iter().map(|m| m.model_name.as_str()).collect();
        assert_eq!(names, ["small", "openai/qwen", "*"]);
        for model in &conf.models {
            assert_eq!(model.params.upstream_model, "qwen");
            assert_eq!(model.params.defaults["max_tokens"], 99);
        }
        assert!(conf.litellm.drop_params);
        // The same words are the same file.
        assert_eq!(write(&flags.config().unwrap(), &env).unwrap(), path);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_must_not_be_overlooked_is_refused() {
        for line in ["--ciphers ALL", "--max_budget 5", "--skip_server_startup"] {
            assert!(flags(line).unwrap().refused().is_some(), "{line}");
        }
        for line in [
            "--model x --config c.yaml",
            "--temperature hot",
            "--headers []",
            "--modle x",
        ] {
            assert!(flags(line).is_err(), "{line}");
        }
        let nonsense = flags("--model nonsense://x --api_base ftp://y").unwrap();
        let failure = write(&nonsense.config().unwrap(), &Env::default()).unwrap_err();
        assert_eq!(failure.code, 78, "{}", failure.message);
    }

    #[test]
    fn a_test_asks_and_does_not_serve() {
        assert_eq!(flags("--test").unwrap().asks(), Some(""));
        assert_eq!(flags("--test http://h:1").unwrap().asks(), Some("http://h:1"));
        assert_eq!(flags("--health").unwrap().asks(), Some(""));
    }

    #[test]
    fn hosts_as_people_write_them() {
        assert_eq!(host("localhost"), Ok(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(host("0.0.0.0"), Ok(Ipv4Addr::UNSPECIFIED.into()));
        assert_eq!(host("[::1]"), Ok("::1".parse().unwrap()));
        assert!(host("llm.example.com").is_err());
    }
}
