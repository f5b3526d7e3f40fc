//! `tollkeeper reload`, `tollkeeper status` and `tollkeeper config`: which config the running gateway serves,
//! how it takes in a new one, and the way back to an earlier one.

use super::client::Failure;
use super::reach::Reach;
use super::show::{self, GREEN, RED, YELLOW, clean};
use crate::conf::Env;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

#[derive(Args)]
pub struct AskArgs {
    #[command(flatten)]
    reach: Reach,
    /// Answer with JSON, as the gateway gives it.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
    #[command(flatten)]
    ask: AskArgs,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// What the config's files were, newest first, as differences; secrets are starred out.
    History {
        /// Versions to show.
        #[arg(short = 'n', long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..=50))]
        limit: u8,
    },
    /// Put the files of an earlier version back and take them into use. The present ones are kept.
    Rollback {
        /// Its number in the history.
        version: u64,
    },
}

/// `tollkeeper reload`.
pub async fn reload(args: AskArgs, env: &Env) -> Result<(), Failure> {
    let gateway = args.reach.gateway(env)?;
    let applied = gateway.post("/config/reload", &json!({})).await?;
    told(&applied, args.json)
}

/// `tollkeeper status`.
pub async fn status(args: AskArgs, env: &Env) -> Result<(), Failure> {
    let gateway = args.reach.gateway(env)?;
    let status = gateway.get("/config/status", &[]).await?.json;
    if args.json {
        return show::put(show::json(&status));
    }
    let text = |name: &str| text_of(&status, name);
    show::put(format_args!("version      {}", text("gateway_version")))?;
    show::put(format_args!(
        "config       {}",
        match text("path").as_str() {
            "-" => "no file: model servers of this machine are looked for",
            path => path,
        }
    ))?;
    show::put(format_args!(
        "generation   {}, {} {}",
        text("generation"),
        show::second(&text("applied_at")),
        cause(&text("origin"))
    ))?;
    show::put(format_args!("deployments  {}", text("deployments")))?;
    show::put(format_args!("database     {}", text("database")))?;
    let certificates = status.get("certificates").and_then(Value::as_array);
    for (n, certificate) in certificates.into_iter().flatten().enumerate() {
        let title = if n == 0 { "certificates" } else { "" };
        show::put(format_args!(
            "{title:<12} {} {}",
            text_of(certificate, "host"),
            good_for(certificate)
        ))?;
    }
    restart(&status);
    if let Some(failure) = status.get("last_failure").filter(|f| f.is_object()) {
        let message = failure.get("message").and_then(Value::as_str).unwrap_or_default();
        show::say(format_args!(
            "{RED}the config of {} was refused, the one before serves{RED:#}\n{}",
            show::second(&text_of(failure, "at")),
            lines(message)
        ));
    }
    Ok(())
}

/// `tollkeeper config …`.
pub async fn run(args: ConfigArgs, env: &Env) -> Result<(), Failure> {
    let gateway = args.ask.reach.gateway(env)?;
    match args.command {
        ConfigCommand::History { limit } => {
            let limit = limit.to_string();
            let history = gateway.get("/config/history", &[("limit", &limit)]).await?.json;
            if args.ask.json {
                return show::put(show::json(&history));
            }
            let versions = history.get("versions").and_then(Value::as_array);
            for version in versions.into_iter().flatten() {
                let current = version.get("version") == history.get("current");
                show::put(format_args!(
                    "{GREEN}{}{GREEN:#}  {} {}{}",
                    text_of(version, "version"),
                    show::second(&text_of(version, "at")),
                    cause(&text_of(version, "origin")),
                    if current { ", serves" } else { "" }
                ))?;
                if let Some(difference) = version.get("difference").and_then(Value::as_str) {
                    show::put(format_args!("{}\n", lines(difference)))?;
                }
            }
            Ok(())
        }
        ConfigCommand::Rollback { version } => {
            let body = json!({"version": version});
            let applied = gateway.post("/config/rollback", &body).await?;
            told(&applied, args.ask.json)
        }
    }
}

fn told(applied: &Value, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return show::put(show::json(applied));
    }
    show::put(format_args!(
        "{} (generation {})",
        text_of(applied, "message"),
        text_of(applied, "generation")
    ))?;
    for (name, mark) in [
        ("added", '+'),
        ("removed", '-'),
        ("changed", '~'),
        ("sections", '~'),
    ] {
        for item in names(applied, name) {
            show::put(format_args!("  {mark} {item}"))?;
        }
    }
    restart(applied);
    Ok(())
}

/// What brought a config into use, in words.
fn cause(origin: &str) -> &str {
    match origin {
        "start" => "at the start",
        "signal" => "by SIGHUP",
        "file" => "by a changed file",
        "api" => "by a call",
        "database" => "by the database",
        "rollback" => "by a rollback",
        "found" => "by a model server that was found",
        other => other,
    }
}

fn restart(of: &Value) {
    let waiting = names(of, "restart_required");
    if !waiting.is_empty() {
        show::say(format_args!(
            "{YELLOW}a restart is needed for{YELLOW:#} {}\n  tollkeeper upgrade is one that cuts no call off",
            waiting.join(", ")
        ));
    }
}

fn names(of: &Value, name: &str) -> Vec<String> {
    let list = of.get(name).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|v| v.as_str().map(clean))
        .collect()
}

/// A field as text; `-` where there is none.
fn text_of(of: &Value, name: &str) -> String {
    match of.get(name) {
        Some(Value::String(text)) => clean(text),
        None | Some(Value::Null) => "-".into(),
        Some(other) => other.to_string(),
    }
}

/// How long a certificate is good.
fn good_for(certificate: &Value) -> String {
    let day = text_of(certificate, "expires_at");
    let day = day.split('T').next().unwrap_or_default();
    match certificate.get("days").and_then(Value::as_i64) {
        Some(days) if days < 0 => format!("{RED}ended on {day}{RED:#}"),
        Some(days) => format!("ends on {day}, in {}", show::counted(days, "day")),
        None => "-".into(),
    }
}

/// Several lines that drive no terminal.
fn lines(text: &str) -> String {
    text.lines()
        .map(|line| format!("  {}", clean(line)))
        .collect::<Vec<_>>()
        .join("\n")
}
