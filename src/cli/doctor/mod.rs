//! `tollkeeper doctor`: looks at all that a gateway stands on, at once, and says of each thing that is not well
//! what to do next. Changes nothing. `here` looks at this machine, `there` at what the gateway talks to.

mod here;
mod there;

use super::client::Failure;
use super::reach::Reach;
use super::show::{self, DIM, GREEN, RED, YELLOW, clean, counted};
use crate::cli::check;
use crate::conf::{self, Conf, Env, Severity};
use clap::Args;
use filters::contract::Registry;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// For everything together.
const PATIENCE: Duration = Duration::from_secs(9);
/// Columns of a name.
const NAME: usize = 12;
/// A clock may be off by this much, in seconds; a `Date` header has no more than seconds.
const CLOCK_WELL: i64 = 3;
const CLOCK_BAD: i64 = 60;

#[derive(Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    reach: Reach,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    Warn,
    Fail,
}

/// What was found of one thing.
#[derive(Debug)]
struct Finding {
    name: String,
    state: State,
    message: String,
    /// What to do next.
    next: String,
    /// A clock that was seen: whose, and by how many seconds it is ahead of ours.
    ahead: Option<(String, i64)>,
}

impl Finding {
    fn new(name: &str, state: State, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            name: name.to_string(),
            state,
            message: message.into(),
            next: next.into(),
            ahead: None,
        }
    }

    fn ok(name: &str, message: impl Into<String>) -> Self {
        Self::new(name, State::Ok, message, "")
    }

    fn warn(name: &str, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(name, State::Warn, message, next)
    }

    fn fail(name: &str, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(name, State::Fail, message, next)
    }

    fn with_clock(mut self, whose: &str, ahead_seconds: i64) -> Self {
        self.ahead = Some((whose.to_string(), ahead_seconds));
        self
    }
}

/// What all looks share.
struct Ward<'a> {
    conf: &'a Conf,
    env: &'a Env,
    reach: &'a Reach,
    deadline: Instant,
}

/// Looks at everything and tells. Exit code 1 when something fails.
pub async fn run(args: DoctorArgs, env: &Env, registry: &Registry) -> Result<(), Failure> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut findings = Vec::new();
    let (finding, conf) = config(args.reach.config(), env, registry);
    findings.push(finding);
    if let Some(conf) = conf {
        let ward = Ward {
            conf: &conf,
            env,
            reach: &args.reach,
            deadline: Instant::now() + PATIENCE,
        };
        let (mut all, database, redis, receivers, backends, connections, gateway) = tokio::join!(
            here::look(&ward),
            there::database(&ward),
            there::redis(&ward),
            there::receivers(&ward),
            there::backends(&ward),
            there::connections(&ward),
            there::gateway(&ward),
        );
        findings.append(&mut all);
        findings.push(database);
        findings.extend(redis);
        findings.extend(receivers);
        findings.extend(backends);
        findings.extend(clock(&findings));
        findings.extend(connections);
        findings.push(gateway);
    }
    tell(&findings, args.json)?;
    match findings.iter().any(|f| f.state == State::Fail) {
        // All has been said.
        true => Err(Failure::failed("")),
        false => Ok(()),
    }
}

/// As `tollkeeper check` judges it.
fn config(file: Option<&std::path::Path>, env: &Env, registry: &Registry) -> (Finding, Option<Conf>) {
    let mut report = Vec::new();
    let file = file.map(std::path::Path::to_path_buf);
    let judged = check::report(
        file.clone(),
        check::Format::Json,
        false,
        env,
        registry,
        &mut report,
    );
    let report: Value = serde_json::from_slice(&report).unwrap_or_default();
    let count = |name: &str| report.get(name).and_then(Value::as_u64).unwrap_or(0);
    let next = match &file {
        Some(file) => format!("tollkeeper check -c {}", file.display()),
        None => "tollkeeper check".into(),
    };
    let loaded = match conf::load(file.as_deref(), env) {
        Ok(loaded) => loaded,
        Err(report) => {
            let errors = report.count(Severity::Error);
            let first = report.problems.iter().find(|p| p.severity == Severity::Error);
            let first = first.map(|p| format!(": {}", p.message)).unwrap_or_default();
            return (
                Finding::fail("config", format!("{}{first}", counted(errors, "error")), next),
                None,
            );
        }
    };
    let conf = loaded.conf;
    let summary = match &conf.source.path {
        Some(path) => format!(
            "{} ({}, {})",
            path.display(),
            counted(conf.models.len(), "deployment"),
            counted(conf.general.pass_through_endpoints.len(), "pass-through path")
        ),
        None => "none found: model servers of this machine are looked for".into(),
    };
    let finding = match (judged, count("errors"), count("warnings")) {
        (Ok(0), _, 0) => Finding::ok("config", summary),
        (Ok(0), _, warnings) => Finding::warn(
            "config",
            format!("{summary}, {}", counted(warnings, "warning")),
            next,
        ),
        (_, errors, _) => Finding::fail("config", format!("{summary}, {}", counted(errors, "error")), next),
    };
    (finding, Some(conf))
}

/// Our clock among those that were seen: budgets, expiries and certificates go by it.
fn clock(findings: &[Finding]) -> Option<Finding> {
    let mut seen: Vec<&(String, i64)> = findings.iter().filter_map(|f| f.ahead.as_ref()).collect();
    seen.sort_by_key(|(_, ahead)| *ahead);
    // Half of them may be wrong.
    let (whose, ahead) = seen.get(seen.len() / 2)?;
    let off = ahead.abs();
    let message = match off {
        0..=CLOCK_WELL => format!("within {CLOCK_WELL} s of {} others", seen.len()),
        _ => format!(
            "{off} s {} {whose}",
            if *ahead > 0 { "behind" } else { "ahead of" }
        ),
    };
    let next = "timedatectl set-ntp true, here or there: budgets, expiries and certificates go by the clock";
    Some(match off {
        0..=CLOCK_WELL => Finding::ok("clock", message),
        ..=CLOCK_BAD => Finding::warn("clock", message, next),
        _ => Finding::fail("clock", message, next),
    })
}

fn tell(findings: &[Finding], as_json: bool) -> Result<(), Failure> {
    let count = |state| findings.iter().filter(|f| f.state == state).count();
    let (problems, warnings) = (count(State::Fail), count(State::Warn));
    if as_json {
        let checks: Vec<Value> = findings
            .iter()
            .map(|f| {
                let state = match f.state {
                    State::Ok => "ok",
                    State::Warn => "warn",
                    State::Fail => "fail",
                };
                json!({"name": f.name, "state": state, "message": f.message, "next": f.next})
            })
            .collect();
        let all = json!({"problems": problems, "warnings": warnings, "checks": checks});
        return show::put(show::json(&all));
    }
    for f in findings {
        let (style, mark) = match f.state {
            State::Ok => (GREEN, "✓"),
            State::Warn => (YELLOW, "!"),
            State::Fail => (RED, "✗"),
        };
        let name = show::short(&f.name, 40);
        show::put(format_args!(
            "{style}{mark}{style:#} {name:NAME$} {}",
            clean(&f.message)
        ))?;
        if !f.next.is_empty() {
            show::put(format_args!("  {:NAME$} {DIM}{}{DIM:#}", "", clean(&f.next)))?;
        }
    }
    let many = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    match (problems, warnings) {
        (0, 0) => show::put("all is well"),
        _ => show::put(format_args!(
            "{}, {}",
            many(problems, "problem"),
            many(warnings, "warning")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_clocks_may_be_wrong() {
        let judge = |all: &[i64]| {
            let findings: Vec<Finding> = all
                .iter()
                .map(|ahead| Finding::ok("x", "").with_clock("x", *ahead))
                .collect();
            clock(&findings).map(|f| f.state)
        };
        assert_eq!(judge(&[]), None);
        assert_eq!(judge(&[0, 1, 500_000]), Some(State::Ok));
        assert_eq!(judge(&[-30]), Some(State::Warn));
        assert_eq!(judge(&[3_600, 3_601, 0]), Some(State::Fail));
    }
}
