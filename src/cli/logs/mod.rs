//! `tollkeeper logs`: the ledger's rows out of `/spend/logs`, oldest first as a log is read, and with `-f`
//! those that come ([`follow`]). What the API does not filter is filtered here.

mod follow;
mod row;

use super::client::{Failure, Gateway};
use super::key::name;
use super::reach::Reach;
use super::show::{BOLD, put, say};
use crate::conf::Env;
use clap::Args;
use row::{Row, Status};
use serde_json::Value;

/// Rows of one page when rows are filtered here.
const SIZE: usize = 1000;
/// Most pages that are looked through for rows that fit.
const MOST_PAGES: usize = 20;
/// Most rows that are shown at once.
const MOST_ROWS: u16 = 5000;

#[derive(Args)]
#[command(
    after_help = "Examples:\n  tollkeeper logs -f                       calls as they end\n  tollkeeper logs --status failure -n 20   the last failures\n  tollkeeper logs --key app --json | jq .spend"
)]
pub struct LogsArgs {
    #[command(flatten)]
    reach: Reach,
    /// Go on with calls as they end, until Ctrl-C.
    #[arg(short, long)]
    follow: bool,
    /// Only calls that ended so: a status (404), a class (4xx), success, failure, aborted or cut.
    #[arg(long)]
    status: Option<Status>,
    /// Only calls with this key, by name or hash.
    #[arg(long, value_name = "NAME|HASH|-")]
    key: Option<String>,
    /// Only calls of this model, as it was asked for or as it was served.
    #[arg(long)]
    model: Option<String>,
    /// How many calls to start with.
    #[arg(short = 'n', long = "number", default_value_t = 50, value_parser = clap::value_parser!(u16).range(0..=i64::from(MOST_ROWS)))]
    number: u16,
    /// Print the API's objects, one per line.
    #[arg(long)]
    json: bool,
}

/// Which rows are shown, and where they come from.
struct Source<'a> {
    gateway: &'a Gateway,
    /// The hash of the only key that counts.
    key: Option<String>,
    status: Option<Status>,
    model: Option<String>,
}

/// One page of rows, newest first, before anything is filtered here.
struct Page {
    rows: Vec<Row>,
    next: Option<u64>,
}

impl Source<'_> {
    /// `ended_after` narrows to calls that ended later, microseconds since 1970.
    async fn page(&self, page: u64, size: usize, ended_after: Option<i64>) -> Result<Page, Failure> {
        let (page, size) = (page.to_string(), size.to_string());
        let after = ended_after.map(|t| t.max(0).to_string());
        let mut query = vec![
            ("summarize", "false"),
            ("page", page.as_str()),
            ("limit", size.as_str()),
        ];
        query.extend(self.key.as_deref().map(|hash| ("api_key", hash)));
        query.extend(after.as_deref().map(|t| ("ended_after", t)));
        let reply = self.gateway.get("/spend/logs", &query).await?;
        let Value::Array(rows) = reply.json else {
            return Err(Failure::failed(
                "the gateway's log cannot be understood: it is no list",
            ));
        };
        Ok(Page {
            rows: rows.into_iter().map(Row::new).collect(),
            next: reply.next_page,
        })
    }

    fn fits(&self, row: &Row) -> bool {
        self.status.is_none_or(|s| s.fits(row)) && self.model.as_deref().is_none_or(|m| row.is_of(m))
    }

    /// The newest `most` rows that fit, oldest first. Says so when it did not look at all rows.
    async fn newest(&self, most: usize) -> Result<Vec<Row>, Failure> {
        let filtered = self.status.is_some() || self.model.is_some();
        let size = if filtered { SIZE } else { most.clamp(1, SIZE) };
        let mut found: Vec<Row> = Vec::new();
        let mut page = 1;
        for looked in 1.. {
            let Page { rows, next } = self.page(page, size, None).await?;
            for row in rows.into_iter().filter(|r| self.fits(r)) {
                // A row that lands meanwhile moves the others on by one.
                if found.len() < most && !found.iter().rev().take(SIZE).any(|r| r.id() == row.id()) {
                    found.push(row);
                }
            }
            match next {
                Some(next) if found.len() < most && looked < MOST_PAGES => page = next,
                Some(_) if found.len() < most => {
                    say(format_args!(
                        "only the newest {} calls were looked at",
                        SIZE * MOST_PAGES
                    ));
                    break;
                }
                _ => break,
            }
        }
        found.reverse();
        Ok(found)
    }
}

/// Shows what there is and, if asked to, what comes.
pub async fn run(args: LogsArgs, env: &Env) -> Result<(), Failure> {
    let gateway = args.reach.gateway(env)?;
    let key = match &args.key {
        Some(key) => Some(name::hash(&name::find(&gateway, key).await?)?.to_string()),
        None => None,
    };
    let source = Source {
        gateway: &gateway,
        key,
        status: args.status,
        model: args.model.clone(),
    };
    let printer = Printer { json: args.json };
    if args.follow {
        return follow::run(&source, usize::from(args.number), &printer).await;
    }
    let rows = source.newest(usize::from(args.number)).await?;
    if rows.is_empty() && !args.json {
        say("No call fits. Watch for calls: tollkeeper logs -f");
        return Ok(());
    }
    printer.header()?;
    rows.iter().try_for_each(|row| printer.row(row))
}

/// How rows are written.
struct Printer {
    json: bool,
}

impl Printer {
    fn header(&self) -> Result<(), Failure> {
        match self.json {
            true => Ok(()),
            false => put(format_args!("{BOLD}{}{BOLD:#}", row::HEADER.trim_end())),
        }
    }

    fn row(&self, row: &Row) -> Result<(), Failure> {
        match self.json {
            true => put(row.json()),
            false => put(row.line()),
        }
    }
}
