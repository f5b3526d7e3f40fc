//! Follows the log: asks again every second for what is newer.
//!
//! A row lands soon after its call has *ended*, so each look asks for the calls that ended lately. Rows of
//! several replicas do not land in the order of those ends, and after an outage of the database they land
//! late; so each look overlaps with the last by time, what was seen is remembered by its id, and now and then
//! a look goes back further. Times are the gateway's throughout: this machine's clock may be another. What is
//! remembered is bounded.

use super::row::Row;
use super::{Printer, Source};
use crate::cli::client::{EXIT_UNAVAILABLE, Failure};
use crate::cli::show::say;
use jiff::{SignedDuration, Timestamp};
use std::collections::HashMap;
use std::future::pending;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::unix::pipe;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// How late most rows land.
const NEAR: Reach = Reach {
    back: SignedDuration::from_secs(20),
    size: 200,
    pages: 25,
};
/// How late rows land after an outage.
const FAR: Reach = Reach {
    back: SignedDuration::from_mins(30),
    size: 1000,
    pages: 50,
};
/// Between two looks that go far back, at least; and in shares of what the last one took.
const FAR_EVERY: Duration = Duration::from_secs(15);
const FAR_SHARE: u32 = 20;
/// Most ids that are remembered.
const MOST_SEEN: usize = 200_000;

/// How far a look goes.
struct Reach {
    /// Before the latest end.
    back: SignedDuration,
    /// Rows of a page.
    size: usize,
    pages: usize,
}

/// What was seen.
#[derive(Default)]
struct Seen {
    /// When the calls ended, by id.
    ids: HashMap<String, Option<Timestamp>>,
    newest: Option<Timestamp>,
    /// Calls that ended before are not looked at any more.
    floor: Option<Timestamp>,
}

impl Seen {
    /// True = it is new, and remembered from now on.
    fn note(&mut self, row: &Row) -> bool {
        if row.id().is_empty() || self.ids.contains_key(row.id()) {
            return false;
        }
        self.ids.insert(row.id().to_string(), row.end());
        self.newest = self.newest.max(row.end());
        true
    }

    /// From when on ends count for a look that goes so far back.
    fn horizon(&self, back: SignedDuration) -> Option<Timestamp> {
        let near = self.newest.and_then(|t| t.checked_sub(back).ok());
        near.max(self.floor)
    }

    /// Forgets what no look reaches any more.
    fn forget(&mut self) {
        self.floor = self.horizon(FAR.back);
        if self.ids.len() > MOST_SEEN {
            let mut ends: Vec<_> = self.ids.values().flatten().copied().collect();
            ends.sort_unstable();
            self.floor = self.floor.max(ends.get(ends.len() / 2).copied());
        }
        let floor = self.floor;
        self.ids.retain(|_, ended| *ended >= floor);
    }
}

/// Shows the newest `most` rows, then those that come, until Ctrl-C or until nobody reads any more.
pub async fn run(source: &Source<'_>, most: usize, printer: &Printer) -> Result<(), Failure> {
    tokio::select! {
        ended = tail(source, most, printer) => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
        () = reader_gone() => Err(Failure::closed()),
    }
}

async fn tail(source: &Source<'_>, most: usize, printer: &Printer) -> Result<(), Failure> {
    let mut seen = Seen::default();
    // First what is there is noted, then the newest of it is shown: what lands in between is either among
    // the newest or not noted, and so comes with the next look.
    if look(source, &mut seen, &FAR).await?.cut {
        seen.floor = seen.horizon(NEAR.back);
        say("there are many calls: one that lands late may be missing here");
    }
    let newest = match most {
        0 => Vec::new(),
        most => source.newest(most).await?,
    };
    printer.header()?;
    for row in &newest {
        seen.note(row);
        printer.row(row)?;
    }
    let mut away = false;
    let mut far_at = Instant::now();
    loop {
        let far = Instant::now() >= far_at;
        let begun = Instant::now();
        match look(source, &mut seen, if far { &FAR } else { &NEAR }).await {
            Ok(looked) => {
                if std::mem::take(&mut away) {
                    say("it answers again");
                }
                for row in looked.fresh.iter().filter(|r| source.fits(r)) {
                    printer.row(row)?;
                }
                seen.forget();
                if far {
                    far_at = Instant::now() + FAR_EVERY.max(begun.elapsed() * FAR_SHARE);
                }
            }
            // A restart is no reason to go.
            Err(e) if e.code == EXIT_UNAVAILABLE => {
                if !std::mem::replace(&mut away, true) {
                    say(format_args!("{}\n  Asking on.", e.message));
                }
            }
            Err(e) => return Err(e),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What a look found.
struct Looked {
    /// Rows that were not seen before, oldest first.
    fresh: Vec<Row>,
    /// It did not get as far back as it should.
    cut: bool,
}

async fn look(source: &Source<'_>, seen: &mut Seen, reach: &Reach) -> Result<Looked, Failure> {
    let mut horizon = seen.horizon(reach.back);
    if horizon.is_none() {
        // The first look knows no end before it has seen one.
        let newest = source.page(1, reach.size, None).await?.rows;
        let latest = newest.iter().filter_map(Row::end).max();
        horizon = latest.and_then(|t| t.checked_sub(reach.back).ok());
    }
    let mut found: Vec<Row> = Vec::new();
    let mut cut = false;
    // Without any end there is no call either; one that lands now is asked for as all are.
    let from = horizon.map(|t| t.as_microsecond());
    let mut page = 1;
    for looked in 1..=reach.pages {
        let got = source.page(page, reach.size, from).await?;
        found.extend(got.rows);
        match got.next {
            Some(next) => page = next,
            None => break,
        }
        cut = looked == reach.pages;
    }
    // Noted only now, all at once: a look that fails half-way must not swallow rows.
    found.retain(|row| seen.note(row));
    found.sort_by_key(Row::started);
    Ok(Looked { fresh: found, cut })
}

/// Comes back when the other end of stdout is closed, so that `tollkeeper logs -f | head` ends when `head`
/// does and not with the next call. A file and a terminal never close so.
async fn reader_gone() {
    let stdout = std::io::stdout().as_fd().try_clone_to_owned();
    // Unchecked leaves the descriptor as it is: it is shared, and writing to it must stay as it was.
    let watched = stdout.and_then(pipe::Sender::from_owned_fd_unchecked);
    if let Ok(watched) = watched
        && watched.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    pending().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::Gateway;
    use crate::conf::Secret;
    use serde_json::{Value, json};
    use std::sync::{Arc, Mutex};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// A ledger: what was called, by the seconds in which it began and ended.
    type Ledger = Arc<Mutex<Vec<(i64, i64, String)>>>;

    /// Serves pages of a ledger as the API does. With `grows`, a row lands after each page.
    async fn serve(ledger: Ledger, grows: bool) -> Gateway {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                answer(stream, &ledger).await;
                if grows {
                    let mut rows = ledger.lock().unwrap();
                    let n = rows.len();
                    rows.push((100_000 + n as i64, 100_000 + n as i64, format!("grown {n}")));
                }
            }
        });
        let key = Secret::new("sk-x");
        Gateway::new(base.parse().unwrap(), "test".into(), &key, "test".into()).unwrap()
    }

    async fn answer(mut stream: TcpStream, ledger: &Ledger) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let number = |name: &str| -> Option<i64> {
            let (_, rest) = head.split_once(&format!("{name}="))?;
            Some(rest.split(['&', ' ']).next().unwrap().parse().unwrap())
        };
        let (page, limit) = (
            number("page").unwrap() as usize,
            number("limit").unwrap() as usize,
        );
        let mut rows = ledger.lock().unwrap().clone();
        if let Some(after) = number("ended_after") {
            rows.retain(|(_, ended, _)| at(*ended).as_microsecond() > after);
        }
        rows.sort_by_key(|(began, ..)| std::cmp::Reverse(*began));
        let from = (page - 1) * limit;
        let shown: Vec<Value> = rows
            .iter()
            .skip(from)
            .take(limit)
            .map(|(began, ended, id)| line(*began, *ended, id))
            .collect();
        let next = match from + limit < rows.len() {
            true => format!("x-next-page: {}\r\n", page + 1),
            false => String::new(),
        };
        let body = Value::Array(shown).to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n{next}\r\n",
            body.len()
        );
        stream
            .write_all(format!("{head}{body}").as_bytes())
            .await
            .unwrap();
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn line(began: i64, ended: i64, id: &str) -> Value {
        json!({"request_id": id, "startTime": at(began).to_string(), "endTime": at(ended).to_string()})
    }

    fn source(gateway: &Gateway) -> Source<'_> {
        Source {
            gateway,
            key: None,
            status: None,
            model: None,
        }
    }

    async fn ids(source: &Source<'_>, seen: &mut Seen, reach: &Reach) -> Vec<String> {
        let looked = look(source, seen, reach).await.unwrap();
        looked.fresh.iter().map(|r| r.id().to_string()).collect()
    }

    #[tokio::test]
    async fn every_row_comes_once_however_late_it_lands() {
        let ledger: Ledger = Arc::default();
        let gateway = serve(Arc::clone(&ledger), false).await;
        let (source, mut seen) = (source(&gateway), Seen::default());
        assert!(ids(&source, &mut seen, &FAR).await.is_empty());
        let add = |began: i64, ended: i64, id: &str| ledger.lock().unwrap().push((began, ended, id.into()));
        // More than one page of the near look, all within a few seconds.
        (0..450).for_each(|n| add(20_000 + n / 100, 20_000 + n / 100, &format!("{n}")));
        let first = ids(&source, &mut seen, &NEAR).await;
        assert_eq!(first.len(), 450);
        assert_eq!(
            (first[0].as_str(), first[449].as_str()),
            ("0", "449"),
            "oldest first"
        );
        // One that took hours, one that lands late; and one from before any look.
        add(10_000, 20_005, "slow");
        add(19_000, 19_000, "late");
        add(10_000, 10_000, "of the past");
        assert_eq!(ids(&source, &mut seen, &NEAR).await, ["slow"]);
        assert_eq!(ids(&source, &mut seen, &FAR).await, ["late"]);
        seen.forget();
        assert!(ids(&source, &mut seen, &FAR).await.is_empty());
    }

    #[tokio::test]
    async fn rows_that_move_on_between_pages_are_not_lost() {
        let ledger: Ledger = Arc::default();
        (0..1_000).for_each(|n| ledger.lock().unwrap().push((99_999, 99_999, n.to_string())));
        let gateway = serve(Arc::clone(&ledger), true).await;
        let (source, mut seen) = (source(&gateway), Seen::default());
        let mut all = ids(&source, &mut seen, &NEAR).await;
        all.retain(|id| !id.starts_with("grown"));
        let shown = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!((shown, all.len()), (1_000, 1_000));
    }

    fn row(id: &str, ended: &str) -> Row {
        Row::new(json!({"request_id": id, "startTime": "2026-11-19T00:00:00Z", "endTime": ended}))
    }

    #[test]
    fn a_row_is_new_once_and_forgotten_when_no_look_reaches_it() {
        let mut seen = Seen::default();
        assert!(seen.note(&row("a", "2026-11-20T12:00:00.000000Z")));
        assert!(!seen.note(&row("a", "2026-11-20T12:00:00.000000Z")));
        assert!(!seen.note(&row("", "2026-11-20T12:00:00.000000Z")));
        assert!(seen.note(&row("b", "2026-11-20T15:00:00.000000Z")));
        seen.forget();
        assert_eq!(seen.ids.keys().collect::<Vec<_>>(), ["b"]);
        // What was forgotten lies before every look from now on.
        let floor: Timestamp = "2026-11-20T14:30:00Z".parse().unwrap();
        assert_eq!(seen.horizon(FAR.back), Some(floor));
        assert!(seen.horizon(NEAR.back) > Some(floor));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut seen = Seen::default();
        let start: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        for n in 0..=MOST_SEEN {
            let at = start + SignedDuration::from_millis(n as i64);
            seen.ids.insert(n.to_string(), Some(at));
            seen.newest = Some(at);
        }
        seen.forget();
        assert!(seen.ids.len() <= MOST_SEEN / 2 + 1, "{}", seen.ids.len());
        assert_eq!(seen.floor, seen.ids.values().flatten().min().copied());
    }
}
