//! `tollkeeper healthcheck`: is the gateway alive? For containers, whose image has no curl: exit code 0 or
//! 1 and nothing else, whatever the reason.

use super::client::{EXIT_FAILED, Failure, below, http, root};
use super::reach::Reach;
use super::show::clean;
use crate::conf::Env;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// Containers are asked every few seconds; an answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Args)]
pub struct HealthcheckArgs {
    #[command(flatten)]
    reach: Reach,
    /// Ask whether it is ready (database reached), not only whether it is alive.
    #[arg(long)]
    ready: bool,
}

impl HealthcheckArgs {
    /// For whoever names the gateway in another way; `None`: it is found as always.
    pub fn at(url: Option<String>, config: Option<PathBuf>) -> Self {
        Self {
            reach: Reach::at(url, config),
            ready: false,
        }
    }
}

/// Asks once, without a key.
pub async fn run(args: HealthcheckArgs, env: &Env) -> Result<(), Failure> {
    ask(&args, env)
        .await
        .map_err(|f| Failure::new(EXIT_FAILED, f.message))
}

async fn ask(args: &HealthcheckArgs, env: &Env) -> Result<(), Failure> {
    let (base, from) = args.reach.places(env).address()?;
    let path = if args.ready {
        "/health/readiness"
    } else {
        "/health/liveness"
    };
    let request = http(&base)?.get(below(&base, path)).timeout(PATIENCE);
    let answer = request.send().await.map_err(|e| {
        let why = if e.is_timeout() {
            "no answer in time".into()
        } else {
            root(&e)
        };
        Failure::failed(format!("{base} (from {from}): {}", clean(&why)))
    })?;
    match answer.status().as_u16() {
        200..=299 => Ok(()),
        status => Err(Failure::failed(format!(
            "{base} (from {from}): {path} says {status}"
        ))),
    }
}
