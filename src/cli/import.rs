//! `tollkeeper import litellm`: takes over a LiteLLM database, into the store that the config names.
//! `tollkeeper import traefik`: takes over Traefik's labels in a compose file, into a config.

use super::client::Failure;
use super::show::{clean, put, say};
use crate::conf::{self, Conf, EXIT_CONFIG, Env};
use crate::import::litellm::{self, ImportError, Order, Salts, Vault};
use crate::import::traefik;
use crate::master_key;
use crate::store::litellm::ReadError;
use crate::store::seal::Seal;
use crate::store::{self, Address, Store};
use clap::{Args, Subcommand};
use filters::model::secret::Secret;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// For a store to answer, tables made included.
const PATIENCE: Duration = Duration::from_secs(60);
/// For one batch.
const STATEMENT: Duration = Duration::from_secs(60);
/// The exit code of a database that cannot be reached, as `sysexits` has it.
const UNAVAILABLE: i32 = 69;

#[derive(Subcommand)]
pub enum From {
    /// Take keys, users, teams, budgets, models and sums out of a LiteLLM database.
    ///
    /// LiteLLM's tables are only read, and it may go on running. Issued keys keep working. A second run
    /// takes what came since. Provider keys are decrypted with $LITELLM_SALT_KEY, else the master key.
    Litellm(LitellmArgs),
    /// Turn Traefik's labels in a compose file into our config.
    ///
    /// The config goes to stdout, or into a file; what could not be taken is listed on stderr, item by item.
    Traefik(TraefikArgs),
}

#[derive(Args)]
pub struct TraefikArgs {
    /// The compose file with the labels.
    #[arg(value_name = "COMPOSE_FILE")]
    compose: PathBuf,
    /// Write the config into this file, which must not be there yet.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// The compose service that Tollkeeper takes the place of; else it is known by its image.
    #[arg(long, value_name = "SERVICE")]
    gateway: Option<String>,
}

/// Largest compose file, in bytes.
const MOST_COMPOSE: u64 = 4 << 20;

fn traefik(args: &TraefikArgs, env: &Env) -> Result<(), Failure> {
    let name = args.compose.display();
    let text = conf::load::read_bounded(&args.compose, MOST_COMPOSE)
        .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".into()))
        .map_err(|why| Failure::config(format!("{name}: {why}")))?;
    // As compose does: the environment, then the `.env` beside the file.
    let env = conf::load::with_dotenv(env, &args.compose);
    let variable = |name: &str| env.get(name).map(|s| s.expose().to_string());
    let taken = traefik::take_over(&text, args.gateway.as_deref(), &variable)
        .map_err(|why| Failure::config(format!("{name}: {why}")))?;
    match &args.write {
        None => put(taken.yaml.trim_end())?,
        Some(file) => {
            let made = std::fs::File::create_new(file).and_then(|mut f| f.write_all(taken.yaml.as_bytes()));
            made.map_err(|e| Failure::failed(format!("{}: {e}", file.display())))?;
            say(format_args!(
                "{} is written; look through it with `tollkeeper check`.",
                file.display()
            ));
        }
    }
    for (title, items) in [
        ("Not taken:", &taken.left),
        ("Taken, and not quite the same:", &taken.notes),
    ] {
        if !items.is_empty() {
            say(format_args!("\n{title}"));
        }
        for item in items {
            say(format_args!("  - {}", clean(item)));
        }
    }
    Ok(())
}

#[derive(Args)]
pub struct LitellmArgs {
    /// LiteLLM's own DATABASE_URL; else $LITELLM_DATABASE_URL, which others of this machine cannot read.
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Read and compare everything, write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Take the single calls too, not only what they sum up to.
    #[arg(long)]
    spend_logs: bool,
    /// The config that names our own database; else the first one found, as `serve` looks for it.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// Returns 0 when it ran to its end, whatever had to be left; 78 for a bad config or address, 69 when a
/// database cannot be asked.
pub fn run(from: From, env: &Env) -> i32 {
    let args = match from {
        From::Litellm(args) => args,
        From::Traefik(args) => return super::told(traefik(&args, env)),
    };
    let given = args.database_url.as_deref().map(Secret::new);
    let variable = || {
        env.get("LITELLM_DATABASE_URL")
            .map(|url| Secret::new(url.expose()))
    };
    let Some(source) = given.or_else(variable) else {
        return super::told(Err(Failure::usage(
            "where is LiteLLM's database? Set LITELLM_DATABASE_URL to what LiteLLM has as DATABASE_URL, or say it with \
             --database-url",
        )));
    };
    let conf = match conf::load(args.config.as_deref(), env) {
        Ok(loaded) => loaded.conf,
        Err(report) => {
            anstream::eprintln!("{}", report.render(true));
            return EXIT_CONFIG;
        }
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => {
            anstream::eprintln!("error: {e}");
            return 1;
        }
    };
    match runtime.block_on(import(&args, source, &conf)) {
        Ok(text) => {
            anstream::print!("{text}");
            0
        }
        Err((code, why)) => {
            anstream::eprintln!("error: {why}");
            code
        }
    }
}

async fn import(args: &LitellmArgs, source: Secret, conf: &Conf) -> Result<String, (i32, String)> {
    let store = own_store(conf, args.dry_run).await?;
    let known = |secret: &Option<conf::Secret>| secret.as_ref().map(|s| Secret::new(s.expose()));
    let salts = [known(&conf.general.salt_key), known(&conf.general.master_key)];
    let env = conf.env.clone();
    let order = Order {
        source,
        spend_logs: args.spend_logs,
        salts: Salts::new(salts.into_iter().flatten()),
        vault: vault(conf),
        usable: Arc::new(move |model| usable(model, &env)),
        now_micros: Timestamp::now().as_microsecond(),
    };
    let report = litellm::run(&order, store, args.dry_run).await.map_err(|e| {
        let code = match &e {
            ImportError::Source(ReadError::NotLitellm(_)) => EXIT_CONFIG,
            ImportError::Source(_) | ImportError::Store(_) => UNAVAILABLE,
        };
        (code, e.to_string())
    })?;
    Ok(if args.json {
        format!("{:#}\n", report.to_json())
    } else {
        report.to_text()
    })
}

/// The store that the config names. `None`: it does not exist yet, and a dry run does not make it.
async fn own_store(conf: &Conf, dry_run: bool) -> Result<Option<Arc<dyn Store>>, (i32, String)> {
    let address = match &conf.general.database_url {
        Some(url) => Address::parse(url.expose()).map_err(|e| (EXIT_CONFIG, e.to_string()))?,
        None => Address::Sqlite(conf.tollkeeper.data_dir.join("tollkeeper.db")),
    };
    let settings = store::Settings {
        statement_timeout: STATEMENT,
        ..store::Settings::default()
    };
    let unavailable = |e: store::StoreError| (UNAVAILABLE, format!("our own database: {e}"));
    if dry_run
        && !store::probe::exists(&address, &settings)
            .await
            .map_err(unavailable)?
    {
        return Ok(None);
    }
    if let Address::Sqlite(path) = &address
        && let Some(dir) = path.parent()
    {
        std::fs::create_dir_all(dir).map_err(|e| (1, format!("{}: {e}", dir.display())))?;
    }
    let store = store::open(&address, &settings).await.map_err(unavailable)?;
    match tokio::time::timeout(PATIENCE, store.ready()).await {
        Ok(()) => Ok(Some(store)),
        Err(_) => Err((UNAVAILABLE, "our own database does not answer".into())),
    }
}

/// Why a model could not serve, were it in the config.
fn usable(model: &Value, env: &Env) -> Result<(), String> {
    let entry: serde_json::Map<String, Value> = ["model_name", "litellm_params", "model_info"]
        .into_iter()
        .filter_map(|name| Some((name.to_string(), model.get(name)?.clone())))
        .collect();
    let text = json!({"model_list": [entry]}).to_string();
    let conf = conf::load_text("database", &text, env)
        .map_err(|report| format!("as a config entry it has {}", report.summary()))?
        .conf;
    match (conf.models.first(), conf.skipped.first()) {
        (None, Some(skipped)) => Err(format!(
            "provider {} is not spoken yet",
            skipped.params.provider.name
        )),
        (None, None) => Err("it is no model".into()),
        (Some(_), _) => Ok(()),
    }
}

/// The configured master key, or the one that a gateway made here; none is made for an import.
fn own_master_key(conf: &Conf) -> Option<conf::Secret> {
    let data_dir = &conf.tollkeeper.data_dir;
    if conf.general.master_key.is_none() && !data_dir.join("master.key").is_file() {
        return None;
    }
    master_key::find(conf, data_dir).ok().map(|key| key.secret)
}

/// Provider secrets are kept under the salt key, else the master key, as the gateway opens them.
fn vault(conf: &Conf) -> Vault {
    let general = &conf.general;
    let salt = general.salt_key.clone().or_else(|| own_master_key(conf));
    let seal = salt.map(|s| Arc::new(Seal::new(&Secret::new(s.expose()))));
    let opener = seal.clone();
    Vault {
        close: Arc::new(move |text| match &seal {
            Some(seal) => Ok(seal.seal(text)),
            None => Err("there is neither a salt key nor a master key to keep its secrets with".into()),
        }),
        open: Arc::new(move |text| match (&opener, Seal::is_sealed(text)) {
            (_, false) => Ok(None),
            (Some(seal), true) => seal.open(text).map(Some).map_err(|e| e.to_string()),
            (None, true) => Err("there is no salt key".into()),
        }),
    }
}
