//! The command line: `tollkeeper` alone serves, like `tollkeeper serve`.
//!
//! The commands are plain functions that are given all they need and return an exit code. Those that talk
//! to a running gateway find it with [`reach`] and ask it through [`client`].

pub mod check;
mod client;
mod config;
mod doctor;
mod healthcheck;
pub mod import;
mod key;
pub mod ledger;
mod litellm_flags;
mod log;
mod logs;
#[cfg(test)]
mod manual;
mod paper;
mod reach;
mod routes;
mod show;
#[cfg(target_os = "linux")]
mod supervise;
mod tls;
mod upgrade;
mod usage;

use crate::conf::Env;
use crate::server::{self, Serve};
use clap::{Args, Parser, Subcommand};
use client::Failure;
use filters::contract::Registry;
use litellm_flags::LitellmFlags;
use show::RED;
use std::net::IpAddr;
use std::path::PathBuf;

/// The edge and the gate in front of every model.
#[derive(Parser)]
#[command(
    name = "tollkeeper",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  tollkeeper                            find local model servers and serve them\n  tollkeeper -c config.yaml             serve a LiteLLM config\n  tollkeeper check -c config.yaml       say everything that is wrong with it\n  tollkeeper key create --name app      make a key on the running gateway\n  tollkeeper logs -f                    see calls as they end"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway (what happens without a command).
    Serve(Box<ServeArgs>),
    /// Check a config and report every problem in one run. Exit code 78 when it cannot be used.
    #[command(alias = "validate")]
    Check {
        /// The config; else the first one found, as `serve` looks for it.
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[arg(long, default_value = "text", value_name = "text|json|github")]
        format: check::Format,
        /// Count warnings as errors.
        #[arg(long)]
        strict: bool,
    },
    /// The table of lanes in match order, from a config and without starting.
    Routes(routes::RoutesArgs),
    /// Make, list, change and delete virtual keys of the running gateway.
    Key(Box<key::KeyArgs>),
    /// What was called and what it cost, by model, key, user, team or day.
    Usage(usage::UsageArgs),
    /// The calls of the running gateway, and with -f those that come.
    Logs(logs::LogsArgs),
    /// What the running gateway logs, and how to have it tell more for a while.
    Log(log::LogArgs),
    /// Have the running gateway read its config again. A config that cannot be used changes nothing.
    Reload(config::AskArgs),
    /// Which config the running gateway serves, and what was wrong with a newer one.
    Status(config::AskArgs),
    /// What the config was, and the way back.
    Config(config::ConfigArgs),
    /// Look at all that the gateway stands on, and say what to do about what is not well.
    Doctor(doctor::DoctorArgs),
    /// Exit code 0 when the gateway is alive, else 1: for containers.
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Replace the running gateway by a new process, without a connection lost. One that does not get ready
    /// changes nothing.
    Upgrade(upgrade::UpgradeArgs),
    /// Have the running gateway say that it is not ready, and keep no connection; it goes on answering.
    Drain(upgrade::DrainArgs),
    /// Run the gateway as the first process of a container, so that it can be upgraded in there.
    #[cfg(target_os = "linux")]
    Supervise(supervise::SuperviseArgs),
    /// Look after certificates, and after who trusts them.
    Tls(tls::TlsArgs),
    /// Take over what another gateway has: LiteLLM's database, Traefik's labels.
    Import {
        #[command(subcommand)]
        from: import::From,
    },
    /// The manual page, for `man -l -`.
    Man(paper::ManArgs),
    /// What a shell needs to complete commands and flags: `source <(tollkeeper completions bash)`.
    Completions {
        #[arg(value_name = "bash|zsh|fish|powershell")]
        shell: clap_complete::Shell,
    },
    /// Look after the ledger.
    Ledger {
        #[command(subcommand)]
        command: LedgerCommand,
    },
}

#[derive(Subcommand)]
enum LedgerCommand {
    /// Compare every sum with the rows it was made of, and look through the spool.
    Check {
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print an object.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args, Default)]
struct ServeArgs {
    /// The config; else the first of $CONFIG_FILE_PATH, ./config.yaml, /app/config.yaml, …
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of the first listener.
    #[arg(long, value_name = "ADDRESS", value_parser = litellm_flags::host)]
    host: Option<IpAddr>,
    /// Port of the first listener.
    #[arg(long)]
    port: Option<u16>,
    #[command(flatten)]
    litellm: LitellmFlags,
    /// A certificate (PEM) for the first listener, which then speaks TLS; else $SSL_CERTFILE_PATH.
    #[arg(long = "ssl_certfile_path", value_name = "FILE")]
    ssl_certfile_path: Option<PathBuf>,
    /// The key to it (PEM); else $SSL_KEYFILE_PATH.
    #[arg(long = "ssl_keyfile_path", value_name = "FILE")]
    ssl_keyfile_path: Option<PathBuf>,
}

/// Reads the command line, does what it says, returns the exit code.
pub fn run(registry: Registry) -> i32 {
    let cli = Cli::parse();
    let env = Env::of_process();
    match cli.command {
        None => serve(cli.serve, registry, &env),
        Some(Command::Serve(args)) => serve(*args, registry, &env),
        Some(Command::Check {
            config,
            format,
            strict,
        }) => check::run(config, format, strict, &env, &registry),
        Some(Command::Routes(args)) => told(routes::run(args, &env, &registry)),
        Some(Command::Key(args)) => ask(key::run(*args, &env)),
        Some(Command::Usage(args)) => ask(usage::run(args, &env)),
        Some(Command::Logs(args)) => ask(logs::run(args, &env)),
        Some(Command::Log(args)) => ask(log::run(args, &env)),
        Some(Command::Reload(args)) => ask(config::reload(args, &env)),
        Some(Command::Status(args)) => ask(config::status(args, &env)),
        Some(Command::Config(args)) => ask(config::run(args, &env)),
        Some(Command::Doctor(args)) => ask(doctor::run(args, &env, &registry)),
        Some(Command::Healthcheck(args)) => ask(healthcheck::run(args, &env)),
        Some(Command::Upgrade(args)) => ask(upgrade::run(args, &env)),
        Some(Command::Drain(args)) => ask(upgrade::drain(args, &env)),
        #[cfg(target_os = "linux")]
        Some(Command::Supervise(args)) => supervise::run(&args),
        Some(Command::Tls(args)) => told(tls::run(args, &env)),
        Some(Command::Import { from }) => import::run(from, &env),
        Some(Command::Man(args)) => told(paper::man::<Cli>(&args)),
        Some(Command::Completions { shell }) => told(paper::completions::<Cli>(shell)),
        Some(Command::Ledger {
            command: LedgerCommand::Check { config, json },
        }) => ledger::check(config.as_deref(), json, &env),
    }
}

/// Runs a command that talks to a gateway, and tells why when it fails.
fn ask(command: impl Future<Output = Result<(), Failure>>) -> i32 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    told(match runtime {
        Ok(runtime) => runtime.block_on(command),
        Err(e) => Err(Failure::failed(format!("the runtime cannot start: {e}"))),
    })
}

/// The exit code of what was done, after a word on what went wrong.
fn told(done: Result<(), Failure>) -> i32 {
    match done {
        Ok(()) => 0,
        Err(failure) => {
            if !failure.message.is_empty() {
                show::say(format_args!("{RED}error:{RED:#} {}", failure.message));
            }
            failure.code
        }
    }
}

fn serve(args: ServeArgs, registry: Registry, env: &Env) -> i32 {
    if let Some(why) = args.litellm.refused() {
        return told(Err(Failure::usage(why)));
    }
    let certificate = match tls::certificate_of(args.ssl_certfile_path, args.ssl_keyfile_path, env) {
        Ok(certificate) => certificate,
        Err(why) => return told(Err(Failure::usage(why))),
    };
    if let Some(url) = args.litellm.asks() {
        let url = match (url, args.port) {
            ("", None) => None,
            ("", Some(port)) => Some(format!("http://127.0.0.1:{port}")),
            (url, _) => Some(url.to_string()),
        };
        return ask(healthcheck::run(
            healthcheck::HealthcheckArgs::at(url, args.config),
            env,
        ));
    }
    let config = match args.litellm.config().map(|made| litellm_flags::write(&made, env)) {
        Some(Ok(made)) => Some(made),
        Some(Err(failure)) => return told(Err(failure)),
        None => args.config,
    };
    server::serve(
        &Serve {
            config,
            host: args.host,
            port: args.port,
            ignored: args.litellm.ignored(),
            certificate,
        },
        registry,
        env,
    )
}
