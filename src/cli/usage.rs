//! `tollkeeper usage`: what was called and what it cost, added up by model, key, user, team or day out of
//! `/user/daily/activity` and `/team/daily/activity`. Sums are made of integers; days are days in UTC.

use super::client::{Failure, Gateway};
use super::reach::Reach;
use super::show::{self, clean, count, dollars, put, put_table, say};
use crate::conf::Env;
use clap::{Args, ValueEnum};
use comfy_table::{Attribute, Cell};
use filters::model::money::Nanos;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Most pages that are read of one span.
const MOST_PAGES: usize = 500;
/// Days of one span: the gateway reports 400 at most.
const SPAN: i32 = 366;

#[derive(Args)]
#[command(
    after_help = "Examples:\n  tollkeeper usage                       the last seven days by model\n  tollkeeper usage --by key --since 30d\n  tollkeeper usage --by day --since 2026-11-01 --csv > november.csv"
)]
pub struct UsageArgs {
    #[command(flatten)]
    reach: Reach,
    /// What to add up by.
    #[arg(long, value_enum, default_value_t = By::Model)]
    by: By,
    /// How far back, today included: 7d, 2w, 1mo; or a day as YYYY-MM-DD (UTC).
    #[arg(long, default_value = "7d", value_name = "TIME")]
    since: String,
    /// Print comma-separated values.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Print one object: {start_date, end_date, by, results, total}, with the API's metrics.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    Model,
    Key,
    User,
    Team,
    Day,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            By::Model => "model",
            By::Key => "key",
            By::User => "user",
            By::Team => "team",
            By::Day => "day",
        }
    }

    fn path(self) -> &'static str {
        match self {
            By::Team => "/team/daily/activity",
            _ => "/user/daily/activity",
        }
    }

    /// The part of a day's breakdown that is read, and how many days a page has: few where there may be
    /// very many of them.
    fn part(self) -> (&'static str, &'static str) {
        match self {
            // The name that clients ask for.
            By::Model => ("model_groups", "100"),
            By::Key => ("api_keys", "5"),
            By::User | By::Team => ("entities", "5"),
            // None is read; this is the smallest.
            By::Day => ("providers", "100"),
        }
    }
}

/// What something adds up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sum {
    spend: Nanos,
    prompt: u64,
    completion: u64,
    successes: u64,
    failures: u64,
    requests: u64,
    /// Answered without a price; a gateway of an earlier version does not say.
    unpriced: u64,
}

impl Sum {
    fn add(&mut self, metrics: &Value) {
        let n = |name: &str| metrics.get(name).and_then(Value::as_u64).unwrap_or(0);
        let spend = metrics.get("spend").and_then(show::amount).unwrap_or_default();
        self.spend += spend;
        for (sum, name) in [
            (&mut self.prompt, "prompt_tokens"),
            (&mut self.completion, "completion_tokens"),
            (&mut self.successes, "successful_requests"),
            (&mut self.failures, "failed_requests"),
            (&mut self.requests, "api_requests"),
            (&mut self.unpriced, "unpriced_requests"),
        ] {
            *sum = sum.saturating_add(n(name));
        }
    }

    /// What it cost. `*`: and calls that nobody has priced.
    fn cost(&self) -> String {
        match (self.unpriced, self.spend) {
            (0, spend) => dollars(spend),
            (_, Nanos(0)) => "not priced*".into(),
            (_, spend) => format!("{}*", dollars(spend)),
        }
    }

    /// Under the API's names.
    fn json(&self) -> Value {
        json!({
            "spend": self.spend,
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt.saturating_add(self.completion),
            "successful_requests": self.successes,
            "failed_requests": self.failures,
            "api_requests": self.requests,
            "unpriced_requests": self.unpriced,
        })
    }
}

/// Sums by what was asked for.
#[derive(Default)]
struct Sums {
    /// By id: a model's name, a key's hash, a user's id, a day.
    by: BTreeMap<String, Sum>,
    /// Aliases of keys and teams by hash or id.
    aliases: BTreeMap<String, String>,
    total: Sum,
}

impl Sums {
    /// Takes one day's object in.
    fn take(&mut self, day: &Value, by: By) {
        let nothing = Value::Null;
        let metrics = day.get("metrics").unwrap_or(&nothing);
        self.total.add(metrics);
        if by == By::Day {
            let date = day.get("date").and_then(Value::as_str).unwrap_or_default();
            return self.by.entry(date.to_string()).or_default().add(metrics);
        }
        let breakdown = day.get("breakdown").unwrap_or(&nothing);
        let entries = breakdown.get(by.part().0).and_then(Value::as_object);
        for (id, one) in entries.into_iter().flatten() {
            let alias = |name: &str| one.get("metadata")?.get(name)?.as_str();
            let alias = match by {
                By::Key => alias("key_alias"),
                By::Team => alias("team_alias"),
                _ => None,
            };
            if let Some(alias) = alias {
                self.aliases.insert(id.clone(), alias.to_string());
            }
            let metrics = one.get("metrics").unwrap_or(&nothing);
            self.by.entry(id.clone()).or_default().add(metrics);
        }
    }

    /// Days in their order, all else by what it cost.
    fn ordered(&self, by: By) -> Vec<(&String, &Sum)> {
        let mut list: Vec<_> = self.by.iter().collect();
        if by != By::Day {
            list.sort_by_key(|(_, sum)| std::cmp::Reverse((sum.spend, sum.requests)));
        }
        list
    }

    fn name(&self, id: &str, by: By) -> String {
        let none = match by {
            By::Team => "(no team)",
            By::User => "(no user)",
            By::Model => "(no model)",
            _ => "(none)",
        };
        match (id, self.aliases.get(id), by) {
            ("", ..) => none.into(),
            (_, Some(alias), _) => clean(alias),
            (hash, None, By::Key) => clean(hash).chars().take(12).collect(),
            _ => clean(id),
        }
    }
}

/// Asks, adds up, shows.
pub async fn run(args: UsageArgs, env: &Env) -> Result<(), Failure> {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let first = since(&args.since, today)?;
    let gateway = args.reach.gateway(env)?;
    let sums = read(&gateway, args.by, first, today).await?;
    if args.json {
        return put(show::json(&object(&sums, args.by, first, today)));
    }
    if args.csv {
        return put(csv(&sums, args.by));
    }
    if sums.by.is_empty() {
        say(format_args!(
            "Nothing was called since {first}. Watch for calls: tollkeeper logs -f"
        ));
        return Ok(());
    }
    table(&sums, args.by)?;
    say(format_args!("{first} to {today}, days in UTC"));
    if sums.total.unpriced > 0 {
        say(unpriced(sums.total.unpriced));
    }
    Ok(())
}

/// What the mark means, and what to do.
fn unpriced(calls: u64) -> String {
    let (calls, their) = match calls {
        1 => ("1 call is".to_string(), "its model's"),
        n => (format!("{} calls are", count(n)), "their models'"),
    };
    format!(
        "* {calls} not priced and in no sum of money: set {their} input_cost_per_token and output_cost_per_token in \
         litellm_params (0 where it is free)"
    )
}

/// The first day that is asked for; `1d` is today alone.
fn since(text: &str, today: Date) -> Result<Date, Failure> {
    let wrong = || {
        Failure::usage(format!(
            "--since {}: this must be 7d, 2w, 1mo or a day as YYYY-MM-DD",
            clean(text)
        ))
    };
    if let Ok(day) = Date::strptime("%Y-%m-%d", text) {
        return if day <= today { Ok(day) } else { Err(wrong()) };
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let n: i64 = number
        .parse()
        .ok()
        .filter(|n| (1..=3660).contains(n))
        .ok_or_else(wrong)?;
    let span = match unit {
        "d" | "day" | "days" => Span::new().try_days(n),
        "w" | "week" | "weeks" => Span::new().try_weeks(n),
        "mo" | "month" | "months" => Span::new().try_months(n),
        _ => return Err(wrong()),
    };
    let before = span.and_then(|s| today.checked_sub(s)).map_err(|_| wrong())?;
    before.tomorrow().map_err(|_| wrong())
}

async fn read(gateway: &Gateway, by: By, first: Date, last: Date) -> Result<Sums, Failure> {
    let mut sums = Sums::default();
    let mut from = first;
    while from <= last {
        let to = from.saturating_add(Span::new().days(SPAN - 1)).min(last);
        span(gateway, by, from, to, &mut sums).await?;
        let Ok(next) = to.tomorrow() else { break };
        from = next;
    }
    Ok(sums)
}

/// Adds what the pages of one span hold.
async fn span(gateway: &Gateway, by: By, first: Date, last: Date, sums: &mut Sums) -> Result<(), Failure> {
    let (first, last) = (first.to_string(), last.to_string());
    let (part, size) = by.part();
    for page in 1..=MOST_PAGES {
        let page = page.to_string();
        let query = [
            ("start_date", first.as_str()),
            ("end_date", last.as_str()),
            ("page", page.as_str()),
            ("page_size", size),
            ("breakdown", part),
        ];
        let answer = gateway.get(by.path(), &query).await?.json;
        let Some(days) = answer.get("results").and_then(Value::as_array) else {
            return Err(Failure::failed(
                "the gateway's sums cannot be understood: there is no `results` in them",
            ));
        };
        days.iter().for_each(|day| sums.take(day, by));
        let more = answer.get("metadata").and_then(|m| m.get("has_more"));
        if more.and_then(Value::as_bool) != Some(true) || days.is_empty() {
            return Ok(());
        }
    }
    // Half a sum looks like a whole one.
    Err(Failure::failed(
        "these days hold more than can be added up here; ask for fewer with --since",
    ))
}

fn object(sums: &Sums, by: By, first: Date, last: Date) -> Value {
    let results: Vec<Value> = sums
        .ordered(by)
        .into_iter()
        .map(|(id, sum)| {
            let mut one = json!({by.name(): id, "metrics": sum.json()});
            let alias = match by {
                By::Key => Some("key_alias"),
                By::Team => Some("team_alias"),
                _ => None,
            };
            if let (Some(alias), Value::Object(one)) = (alias, &mut one) {
                one.insert(alias.into(), json!(sums.aliases.get(id)));
            }
            one
        })
        .collect();
    json!({
        "start_date": first.to_string(),
        "end_date": last.to_string(),
        "by": by.name(),
        "results": results,
        "total": sums.total.json(),
    })
}

fn csv(sums: &Sums, by: By) -> String {
    let mut lines = vec![format!(
        "{},requests,successful,failed,prompt_tokens,completion_tokens,spend_usd,unpriced",
        by.name()
    )];
    for (id, sum) in sums.ordered(by) {
        let name = if id.is_empty() {
            String::new()
        } else {
            sums.name(id, by)
        };
        lines.push(format!(
            "{},{},{},{},{},{},{},{}",
            cell(&name),
            sum.requests,
            sum.successes,
            sum.failures,
            sum.prompt,
            sum.completion,
            sum.spend,
            sum.unpriced
        ));
    }
    lines.join("\n")
}

/// A text as a cell. A spreadsheet would run what starts like a formula, and callers choose names.
fn cell(text: &str) -> String {
    let text = match text.starts_with(['=', '+', '-', '@']) {
        true => format!("'{text}"),
        false => text.to_string(),
    };
    match text.contains([',', '"', '\'', ' ']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text,
    }
}

fn table(sums: &Sums, by: By) -> Result<(), Failure> {
    let line = |name: String, sum: &Sum| {
        vec![
            Cell::new(name),
            Cell::new(count(sum.requests)),
            Cell::new(count(sum.failures)),
            Cell::new(count(sum.prompt)),
            Cell::new(count(sum.completion)),
            Cell::new(sum.cost()),
        ]
    };
    let mut rows: Vec<Vec<Cell>> = sums
        .ordered(by)
        .into_iter()
        .map(|(id, sum)| line(show::short(&sums.name(id, by), 48), sum))
        .collect();
    let total = line("total".into(), &sums.total);
    rows.push(
        total
            .into_iter()
            .map(|c| c.add_attribute(Attribute::Bold))
            .collect(),
    );
    let name = by.name().to_uppercase();
    let header = [&name, "REQUESTS", "FAILED", "TOKENS IN", "TOKENS OUT", "SPEND"];
    put_table(&show::table(&header, rows, &[1, 2, 3, 4, 5]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(date: &str, spend: f64, n: u64) -> Value {
        let metrics = json!({"spend": spend, "prompt_tokens": 7 * n, "completion_tokens": 3 * n,
            "successful_requests": n, "failed_requests": 1, "api_requests": n + 1,
            "unpriced_requests": n - 1});
        let key = json!({"metrics": metrics, "metadata": {"key_alias": "=app, \u{1b}one", "team_id": "t"}});
        json!({"date": date, "metrics": metrics, "breakdown": {
            "models": {"up": {"metrics": metrics}}, "model_groups": {"small": {"metrics": metrics}},
            "api_keys": {"abc": key},
            "entities": {"alice": {"metrics": metrics, "metadata": {"team_alias": "The Reds"}}}}})
    }

    fn sums(by: By) -> Sums {
        let mut sums = Sums::default();
        sums.take(&day("2026-11-19", 0.1, 1), by);
        sums.take(&day("2026-11-20", 0.2, 2), by);
        sums
    }

    #[test]
    fn sums_are_exact_and_by_what_was_asked() {
        let whole = Sum {
            spend: Nanos(300_000_000),
            prompt: 21,
            completion: 9,
            successes: 3,
            failures: 2,
            requests: 5,
            unpriced: 1,
        };
        for (by, id) in [
            (By::Model, "small"),
            (By::Key, "abc"),
            (By::User, "alice"),
            (By::Team, "alice"),
        ] {
            let sums = sums(by);
            assert_eq!(sums.total, whole);
            assert_eq!(
                sums.by,
                BTreeMap::from([(id.to_string(), whole.clone())]),
                "{by:?}"
            );
        }
        assert_eq!(sums(By::Team).name("alice", By::Team), "The Reds");
        assert_eq!(sums(By::User).name("alice", By::User), "alice");
        let days = sums(By::Day);
        let order: Vec<_> = days.ordered(By::Day).iter().map(|(d, _)| d.as_str()).collect();
        assert_eq!(order, ["2026-11-19", "2026-11-20"]);
    }

    #[test]
    fn what_has_no_price_did_not_cost_nothing() {
        let cost = |spend, unpriced| {
            let sum = Sum {
                spend: Nanos(spend),
                unpriced,
                ..Sum::default()
            };
            sum.cost()
        };
        assert_eq!(cost(0, 0), "$0.00", "free");
        assert_eq!(cost(0, 2), "not priced*");
        assert_eq!(cost(300_000_000, 2), "$0.30*");
        assert!(unpriced(1).starts_with("* 1 call is not priced"));
        assert!(unpriced(1_234).starts_with("* 1,234 calls are not priced"));
    }

    #[test]
    fn csv_is_no_formula() {
        assert_eq!(
            csv(&sums(By::Key), By::Key),
            "key,requests,successful,failed,prompt_tokens,completion_tokens,spend_usd,unpriced\n\
             \"'=app, \\u{1b}one\",5,3,2,21,9,0.3,1"
        );
    }

    #[test]
    fn since_counts_today() {
        let today: Date = "2026-11-20".parse().unwrap();
        for (text, first) in [
            ("1d", "2026-11-20"),
            ("7d", "2026-11-14"),
            ("2w", "2026-11-07"),
            ("1mo", "2026-10-21"),
            ("2026-01-31", "2026-01-31"),
        ] {
            assert_eq!(since(text, today).unwrap().to_string(), first, "{text}");
        }
        for text in ["", "7", "d", "0d", "7h", "-1d", "2027-01-01", "99999d", "７d"] {
            assert_eq!(since(text, today).unwrap_err().code, 2, "{text}");
        }
    }
}
