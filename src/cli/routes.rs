//! `tollkeeper routes`: the table of lanes in match order, from a config and without starting anything.

use super::client::Failure;
use super::show::{clean, json, put, put_table, say, table};
use crate::conf::{self, Env};
use crate::proxy::lanes::{Kind, Lane, Target, To};
use crate::proxy::table::Pattern;
use crate::snapshot::Snapshot;
use clap::Args;
use comfy_table::Cell;
use filters::contract::Registry;
use filters::contract::cx::Auth;
use filters::contract::ports::Ports;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Args)]
pub struct RoutesArgs {
    /// The config; else the first one found, as `serve` looks for it.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only what this host has, in the order that counts for it.
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// For programs.
    #[arg(long)]
    json: bool,
}

pub fn run(args: RoutesArgs, env: &Env, registry: &Registry) -> Result<(), Failure> {
    let conf = conf::load(args.config.as_deref(), env)
        .map_err(|report| Failure::config(report.render(true)))?
        .conf;
    let snapshot = Snapshot::new(&conf, registry, &Ports::detached()).map_err(Failure::config)?;
    let host = args.host.map(|h| h.trim_end_matches('.').to_ascii_lowercase());
    let Some(rows) = snapshot.lanes.rows(host.as_deref()) else {
        say("Nobody here knows that host: it gets 404, or 421 on a TLS connection for another name.");
        return Ok(());
    };
    if args.json {
        let rows: Vec<Value> = rows.iter().map(|(lane, path)| as_json(lane, path)).collect();
        return put(json(&Value::from(rows)));
    }
    let rows = rows
        .iter()
        .map(|(lane, path)| {
            let methods = any(&lane.methods, "all");
            [
                lane.priority.to_string(),
                any(&lane.hosts, "*"),
                path.to_string(),
                methods,
                lane.name.to_string(),
                lane.kind.as_str().to_string(),
                auth(lane.auth).to_string(),
                lane.chain.names().join(" "),
                leads_to(&lane.kind),
            ]
            .iter()
            .map(|cell| Cell::new(clean(cell)))
            .collect()
        })
        .collect();
    let header = [
        "PRIORITY", "HOSTS", "PATH", "METHODS", "LANE", "DRIVER", "AUTH", "FILTERS", "TO",
    ];
    put_table(&table(&header, rows, &[0]))
}

fn as_json(lane: &Lane, path: &Pattern) -> Value {
    let mut row = json!({
        "priority": lane.priority,
        "hosts": lane.hosts,
        "path": path.to_string(),
        "methods": lane.methods,
        "lane": &*lane.name,
        "driver": lane.kind.as_str(),
        "auth": auth(lane.auth),
        "filters": lane.chain.names(),
    });
    let Kind::Stream(target) = &lane.kind else {
        return row;
    };
    row["strip_prefix"] = json!(target.strip);
    row["add_prefix"] = json!(target.add);
    match &target.to {
        To::Place(base) => row["target"] = json!(format!("{}{}", base.authority(), base.path)),
        To::Service(service) => {
            let backends = service.backends.iter();
            row["service"] = json!(service.name);
            row["strategy"] = json!(service.strategy.as_str());
            row["backends"] = backends
                .map(|b| json!({"url": b.url(), "weight": b.weight}))
                .collect();
        }
    }
    row
}

/// `chat → http://chat:3000 ×3, http://other:3000`.
fn leads_to(kind: &Kind) -> String {
    let Kind::Stream(Target { to, .. }) = kind else {
        return String::new();
    };
    match to {
        To::Place(base) => {
            let scheme = if base.tls { "https" } else { "http" };
            format!("{scheme}://{}{}", base.authority(), base.path)
        }
        To::Service(service) => {
            let all: Vec<String> = service
                .backends
                .iter()
                .map(|b| match b.weight {
                    1 => b.url(),
                    weight => format!("{} ×{weight}", b.url()),
                })
                .collect();
            format!("{} → {}", service.name, all.join(", "))
        }
    }
}

fn any(list: &[String], nothing: &str) -> String {
    if list.is_empty() {
        nothing.to_string()
    } else {
        list.join(", ")
    }
}

fn auth(auth: Auth) -> &'static str {
    match auth {
        Auth::Required => "required",
        Auth::Internal => "internal",
        Auth::Open => "open",
    }
}
