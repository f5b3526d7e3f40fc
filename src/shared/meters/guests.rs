//! End users and tags: whom a call names itself, so that they are looked up when it comes.

use super::Meters;
use super::meter::Now;
use super::subject::Subject;
use crate::store::Table;
use dashmap::DashMap;
use filters::model::account::Kind;
use filters::model::limits::{Allowance, Limits};
use futures::future::join_all;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long an answer of the store is believed; what the store tells of changes comes earlier.
const FRESH: Duration = Duration::from_secs(60);
/// How long somebody is let pass whom the store could not be asked about.
const UNASKED: Duration = Duration::from_secs(2);
/// How long the last word on somebody is kept for a time when the store cannot be asked.
const KEPT: Duration = Duration::from_secs(600);
/// How long somebody is believed when changes may have been missed.
const DOUBTED: Duration = Duration::from_millis(500);
/// Most that are remembered. Callers make names up.
const MOST: usize = 100_000;

/// What is known of an end user or a tag.
#[derive(Clone)]
pub enum Guest {
    /// Nobody knows it, or nothing limits it.
    Free,
    Blocked,
    Limited(Arc<Subject>),
}

struct Entry {
    guest: Guest,
    /// Milliseconds of the process' clock.
    until: u64,
}

impl Entry {
    fn doubt(&mut self, now: Now) {
        self.until = self.until.min(now.mono + DOUBTED.as_millis() as u64);
    }
}

#[derive(Default)]
pub struct Guests {
    end_users: DashMap<String, Entry>,
    tags: DashMap<String, Entry>,
    /// Counts what was forgotten, so that what was read before a change is not believed after it.
    changes: AtomicU64,
}

impl Guests {
    fn of(&self, kind: Kind) -> &DashMap<String, Entry> {
        match kind {
            Kind::EndUser => &self.end_users,
            _ => &self.tags,
        }
    }

    pub fn known(&self, kind: Kind, id: &str, now: Now) -> Option<Guest> {
        let entry = self.of(kind).get(id)?;
        (now.mono < entry.until).then(|| entry.guest.clone())
    }

    /// The last word of the store, however old: for when it cannot be asked.
    fn last(&self, kind: Kind, id: &str) -> Option<Guest> {
        Some(self.of(kind).get(id)?.guest.clone())
    }

    fn learn(&self, kind: Kind, id: String, guest: Guest, now: Now, fresh: Duration) {
        let known = self.of(kind);
        if known.len() >= MOST {
            known.retain(|_, e| now.mono < e.until);
        }
        if known.len() >= MOST {
            // Made-up names push each other out, and others for as long as it takes to ask again.
            known.clear();
        }
        let until = now.mono + fresh.as_millis() as u64;
        known.insert(id, Entry { guest, until });
    }

    pub fn forget(&self, kind: Kind, id: &str) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        if matches!(kind, Kind::EndUser | Kind::Tag) {
            self.of(kind).remove(id);
        }
    }

    pub fn forget_all(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.end_users.clear();
        self.tags.clear();
    }

    /// What is known is believed for a moment only.
    pub fn doubt(&self, now: Now) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        for known in [&self.end_users, &self.tags] {
            for mut entry in known.iter_mut() {
                entry.doubt(now);
            }
        }
    }

    /// The same for one.
    fn believe_less(&self, kind: Kind, id: &str, now: Now) {
        if let Some(mut entry) = self.of(kind).get_mut(id) {
            entry.doubt(now);
        }
    }

    pub fn sweep(&self, now: Now) {
        for known in [&self.end_users, &self.tags] {
            known.retain(|_, e| now.mono < e.until.saturating_add(KEPT.as_millis() as u64));
        }
    }
}

impl Meters {
    /// Asks the store about these, all at once: a call waits no longer for many than for one.
    pub(super) async fn look_up(&self, who: Vec<(Kind, String)>, deadline: Instant) {
        let changes = self.guests.changes.load(Ordering::SeqCst);
        let found = join_all(who.iter().map(async |(kind, id)| {
            let table = match kind {
                Kind::EndUser => Table::EndUser,
                _ => Table::Tag,
            };
            timeout_at(deadline, self.world.parties.find(table, id)).await
        }));
        let found = found.await;
        let now = self.now();
        for ((kind, id), found) in who.into_iter().zip(found) {
            let (guest, fresh) = match found {
                Ok(Ok(Some(party))) if party.blocked => (Guest::Blocked, FRESH),
                Ok(Ok(Some(party))) => {
                    let subject = match party.limits.bind() {
                        true => Subject::of_party(self, &party, true),
                        false => self.stranger(kind, &id),
                    };
                    (limited(subject), FRESH)
                }
                Ok(Ok(None)) => (limited(self.stranger(kind, &id)), FRESH),
                // Nobody is thrown out because the store is away, and nobody let in who was not before.
                Ok(Err(_)) | Err(_) => (self.guests.last(kind, &id).unwrap_or(Guest::Free), UNASKED),
            };
            self.guests.learn(kind, id.clone(), guest, now, fresh);
            // Somebody was changed meanwhile, maybe this one.
            if self.guests.changes.load(Ordering::SeqCst) != changes {
                self.guests.believe_less(kind, &id, now);
            }
        }
    }

    /// Somebody of whom nobody said anything.
    fn stranger(&self, kind: Kind, id: &str) -> Option<Subject> {
        let nanos = self.rules.load().settings.end_user_budget_nanos;
        let nanos = nanos.filter(|_| kind == Kind::EndUser && self.has_room_for_more())?;
        let limits = Limits {
            budget: Allowance {
                nanos: Some(nanos),
                ..Allowance::default()
            },
            ..Limits::default()
        };
        Subject::new(self, kind, id, None, &limits, true)
    }
}

fn limited(subject: Option<Subject>) -> Guest {
    subject.map_or(Guest::Free, |s| Guest::Limited(Arc::new(s)))
}
