//! Waiting in place of a refusal, where the config wants it: fair between teams and keys, bounded in time
//! and in number, and left by whoever hangs up.
//!
//! Calls that the same meter refused stand in one line. Each tenant's calls are spread over virtual time,
//! closer together the more weight it has; the call that is due first is tried first. A call that comes
//! while others wait for one of its meters joins them.

use super::decide::{Held, may_wait, refuser};
use super::meter::Meter;
use super::{Meters, Missing, blocked};
use filters::contract::ports::{Asked, Refused, Why};
use filters::model::key::Caller;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// `tollkeeper.limits.queue`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    pub max_wait: Duration,
    pub max_waiting: usize,
}

/// One turn of a tenant of weight 1 in virtual time.
const TURN: u64 = 1 << 20;
const MOST_WEIGHT: f64 = 1000.0;
/// Another replica may have made room; nobody here hears of that.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

#[derive(Default)]
pub struct Queue {
    /// By the meter's serial number.
    lines: Mutex<HashMap<u64, Line>>,
    waiting: AtomicUsize,
}

#[derive(Default)]
pub(super) struct Line {
    /// (when due, number): the first is tried first.
    tickets: BTreeSet<(u64, u64)>,
    /// When the last one that went was due.
    now: u64,
    /// When each tenant's last call is due.
    tenants: HashMap<String, u64>,
    numbers: u64,
}

impl Line {
    /// A ticket, and its place counted from 1.
    fn join(&mut self, tenant: &str, weight: f64) -> ((u64, u64), u32) {
        let last = self.tenants.get(tenant).copied().unwrap_or(0).max(self.now);
        let due = last.saturating_add((TURN as f64 / weight) as u64);
        self.tenants.insert(tenant.to_string(), due);
        self.numbers += 1;
        let ticket = (due, self.numbers);
        self.tickets.insert(ticket);
        let place = self.tickets.range(..=ticket).count();
        (ticket, u32::try_from(place).unwrap_or(u32::MAX))
    }

    fn leave(&mut self, ticket: (u64, u64), went: bool) {
        self.tickets.remove(&ticket);
        if went {
            self.now = self.now.max(ticket.0);
        }
    }

    fn is_first(&self, ticket: (u64, u64)) -> bool {
        self.tickets.first() == Some(&ticket)
    }
}

/// A place in a line. Dropping it leaves.
struct Ticket<'a> {
    queue: &'a Queue,
    meter: Arc<Meter>,
    ticket: (u64, u64),
    place: u32,
    went: bool,
}

impl Ticket<'_> {
    fn is_first(&self) -> bool {
        let lines = self.queue.lines.lock();
        lines
            .get(&self.meter.serial)
            .is_some_and(|l| l.is_first(self.ticket))
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut lines = self.queue.lines.lock();
        if let Some(line) = lines.get_mut(&self.meter.serial) {
            line.leave(self.ticket, self.went);
            if line.tickets.is_empty() {
                lines.remove(&self.meter.serial);
            }
        }
        drop(lines);
        self.queue.waiting.fetch_sub(1, Ordering::SeqCst);
        self.meter.waiting.fetch_sub(1, Ordering::SeqCst);
        // Somebody else is first now.
        self.meter.freed.notify_waiters();
    }
}

impl Queue {
    pub fn len(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Decides, and waits where that may help.
    pub(super) async fn admit(
        &self,
        meters: &Arc<Meters>,
        asked: &Asked<'_>,
        settings: &QueueSettings,
    ) -> Result<Option<Held>, Box<Refused>> {
        let (line, refused) = match self.crowded(meters, asked)? {
            Some(meter) => (meter, None),
            None => match meters.decided(asked).await {
                Err(refused) if may_wait(&refused).is_some() => {
                    let bounds = meters.bounds(asked, meters.now()).unwrap_or_default();
                    match refuser(&bounds, &refused) {
                        Some(meter) => (Arc::clone(meter), Some(refused)),
                        None => return Err(refused),
                    }
                }
                decided => return decided,
            },
        };
        let Some(ticket) = self.join(&line, asked.caller, settings.max_waiting) else {
            return Err(refused.unwrap_or_else(|| self.full(&line, settings)));
        };
        self.wait(meters, asked, ticket, refused, settings).await
    }

    /// The meter of the call that others wait for.
    fn crowded(&self, meters: &Meters, asked: &Asked<'_>) -> Result<Option<Arc<Meter>>, Box<Refused>> {
        let bounds = match meters.bounds(asked, meters.now()) {
            Ok(bounds) => bounds,
            Err(Missing::Blocked(kind, id)) => return Err(blocked(kind, id)),
            Err(Missing::Unknown(_)) => return Ok(None),
        };
        let mut meters = bounds.iter().map(|b| &b.meter);
        Ok(meters.find(|m| m.waiting.load(Ordering::SeqCst) > 0).cloned())
    }

    fn join(&self, meter: &Arc<Meter>, caller: &Caller, most: usize) -> Option<Ticket<'_>> {
        self.waiting
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| {
                (n < most).then_some(n + 1)
            })
            .ok()?;
        meter.waiting.fetch_add(1, Ordering::SeqCst);
        let (tenant, weight) = tenant(caller);
        let mut lines = self.lines.lock();
        let line = lines.entry(meter.serial).or_default();
        let (ticket, place) = line.join(&tenant, weight);
        drop(lines);
        Some(Ticket {
            queue: self,
            meter: Arc::clone(meter),
            ticket,
            place,
            went: false,
        })
    }

    fn full(&self, meter: &Meter, settings: &QueueSettings) -> Box<Refused> {
        let waiting = self.waiting.load(Ordering::SeqCst);
        Box::new(Refused {
            kind: meter.account.kind,
            id: meter.account.id.clone(),
            alias: None,
            model: None,
            why: Why::Queue {
                waiting: u32::try_from(waiting).unwrap_or(u32::MAX),
                retry_millis: settings.max_wait.as_millis() as u64,
            },
            standings: Vec::new(),
        })
    }

    async fn wait(
        &self,
        meters: &Arc<Meters>,
        asked: &Asked<'_>,
        mut ticket: Ticket<'_>,
        mut refused: Option<Box<Refused>>,
        settings: &QueueSettings,
    ) -> Result<Option<Held>, Box<Refused>> {
        let until = Instant::now() + settings.max_wait;
        let meter = Arc::clone(&ticket.meter);
        loop {
            let freed = meter.freed.notified();
            tokio::pin!(freed);
            // Registered before looking, so that no place that comes free in between is missed.
            freed.as_mut().enable();
            let mut again = until;
            if ticket.is_first() {
                match meters.decided(asked).await {
                    Ok(mut held) => {
                        ticket.went = true;
                        if let Some(held) = &mut held {
                            held.queued = Some(ticket.place);
                        }
                        return Ok(held);
                    }
                    Err(why) => {
                        let Some(millis) = may_wait(&why) else {
                            return Err(why);
                        };
                        let mut pause = Duration::from_millis(millis.max(1));
                        if meters.is_shared() {
                            pause = pause.min(LOOK_AGAIN);
                        }
                        again = until.min(Instant::now() + pause);
                        refused = Some(why);
                    }
                }
            }
            if Instant::now() >= until {
                return Err(refused.unwrap_or_else(|| self.full(&meter, settings)));
            }
            tokio::select! {
                () = freed => {}
                () = tokio::time::sleep_until(again) => {}
            }
        }
    }
}

/// Whose turn a call takes, and how much that one counts: the team's, else the key's.
fn tenant(caller: &Caller) -> (String, f64) {
    let weight = |fields: &serde_json::Map<String, serde_json::Value>| {
        fields
            .get("queue_weight")
            .and_then(serde_json::Value::as_f64)
            .filter(|w| w.is_finite() && *w > 0.0)
            .map_or(1.0, |w| w.clamp(1.0 / MOST_WEIGHT, MOST_WEIGHT))
    };
    match caller {
        Caller::Key(holder) => match (&holder.team_id, &holder.team) {
            (Some(id), Some(team)) => (format!("team {id}"), weight(&team.fields)),
            (Some(id), None) => (format!("team {id}"), 1.0),
            _ => (holder.hash.hex(), weight(&holder.extra)),
        },
        _ => (String::new(), 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_go_round_by_weight() {
        let mut line = Line::default();
        // One that floods, one that comes later, and one that counts twice.
        for _ in 0..6 {
            line.join("flood", 1.0);
        }
        let (late, place) = line.join("late", 1.0);
        assert_eq!(place, 2, "behind one of the flood's calls, not behind all");
        for _ in 0..4 {
            line.join("heavy", 2.0);
        }
        let order: Vec<_> = line.tickets.iter().map(|t| t.1).collect();
        // heavy's are numbers 8 to 11: two for each of the others' one.
        assert_eq!(order, [8, 1, 7, 9, 10, 2, 11, 3, 4, 5, 6]);
        line.leave(late, true);
        let (_, place) = line.join("late", 1.0);
        assert_eq!(place, 7, "who had a turn is not before those who wait");
        let first = *line.tickets.first().unwrap();
        assert!(line.is_first(first));
    }
}
