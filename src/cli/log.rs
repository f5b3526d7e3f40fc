//! `tollkeeper log`: what the running gateway logs, and having it tell more for a while. The calls themselves are
//! listed by `tollkeeper logs`.

use super::client::Failure;
use super::reach::Reach;
use super::show::{self, clean};
use crate::conf::Env;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

#[derive(Args)]
pub struct LogArgs {
    #[command(subcommand)]
    command: Option<LogCommand>,
    #[command(flatten)]
    reach: Reach,
    /// Answer with JSON, as the gateway gives it.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum LogCommand {
    /// Log from this level up, until the config's section changes or the gateway ends.
    Level {
        #[arg(value_name = "off|error|warn|info|debug|trace|configured")]
        level: String,
    },
    /// The same by directives as in RUST_LOG, such as info,tollkeeper::proxy=debug.
    Filter { directives: String },
}

/// Without a command shows what is logged.
pub async fn run(args: LogArgs, env: &Env) -> Result<(), Failure> {
    let gateway = args.reach.gateway(env)?;
    let path = "/admin/v1/log";
    let state = match args.command {
        None => gateway.get(path, &[]).await?.json,
        Some(LogCommand::Level { level }) => gateway.post(path, &json!({"level": level})).await?,
        Some(LogCommand::Filter { directives }) => gateway.post(path, &json!({"filter": directives})).await?,
    };
    if args.json {
        return show::put(show::json(&state));
    }
    let text = |name: &str| state.get(name).and_then(Value::as_str).map(clean);
    show::put(format_args!("level   {}", text("level").unwrap_or_default()))?;
    if let Some(filter) = text("filter") {
        show::put(format_args!("filter  {filter}"))?;
    }
    show::put(format_args!("from    {}", text("from").unwrap_or_default()))?;
    for (name, what) in [
        (
            "lines_dropped",
            "lines were dropped, since stderr is read too slowly",
        ),
        (
            "requests_not_shown",
            "lines of requests were left out beyond log.most_per_second",
        ),
    ] {
        let count = state.get(name).and_then(Value::as_u64).unwrap_or(0);
        if count > 0 {
            show::say(format_args!("{} {what}", show::count(count)));
        }
    }
    if text("from").as_deref() == Some("request") {
        show::say("tollkeeper log level configured puts it back");
    }
    Ok(())
}
