//! One account's meter: money, requests, tokens and calls in flight under one short lock.

use super::money::Money;
use super::window::Window;
use filters::model::account::{Account, Kind};
use parking_lot::Mutex;
use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use tokio::sync::Notify;

/// Seconds of grants that are kept to be given back: twice a window's.
const MOST_GIVEN_BACK: usize = 128;

/// The moment of a decision: milliseconds of the process' own clock, and microseconds since 1970.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    pub mono: u64,
    pub wall: i64,
}

/// An account by its parts, so that a meter is found without making an [`Account`].
pub trait Named {
    /// Kind, id, model.
    fn parts(&self) -> (Kind, &str, &str);
}

impl Named for Account {
    fn parts(&self) -> (Kind, &str, &str) {
        (self.kind, &self.id, &self.model)
    }
}

impl Named for (Kind, &str, &str) {
    fn parts(&self) -> (Kind, &str, &str) {
        *self
    }
}

impl<'a> Borrow<dyn Named + 'a> for Account {
    fn borrow(&self) -> &(dyn Named + 'a) {
        self
    }
}

impl PartialEq for dyn Named + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for dyn Named + '_ {}

/// As [`Account`] is hashed.
impl Hash for dyn Named + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

pub struct Meter {
    /// Meters are locked in this order.
    pub serial: u64,
    pub account: Account,
    pub state: Mutex<State>,
    /// Held while the store is asked, and while Redis is: one question at a time.
    pub reading: tokio::sync::Mutex<()>,
    /// By turns: money, requests, tokens, places.
    pub asking: [tokio::sync::Mutex<()>; 4],
    /// Calls that wait for room.
    pub waiting: AtomicU32,
    pub freed: Notify,
    /// It stands in the list of those that Redis has to hear of.
    pub listed: AtomicBool,
}

#[derive(Debug, Default)]
pub struct State {
    /// None where nobody limits money.
    pub money: Option<Box<Money>>,
    pub requests: Option<Box<Rate>>,
    pub tokens: Option<Box<Rate>>,
    pub in_flight: u64,
    pub slots: Slots,
    /// Milliseconds of the process' clock.
    pub used_at: u64,
}

/// A window, and what Redis granted of the shared one.
#[derive(Debug, Default)]
pub struct Rate {
    pub window: Window,
    pub share: Share,
}

/// Out of a window that all replicas share.
#[derive(Debug, Default)]
pub struct Share {
    pub spare: u64,
    /// Where the grant is counted, by Redis' clock, and until when it may be used, by ours.
    pub second: i64,
    pub until: u64,
    /// Not used of earlier grants.
    pub give_back: Vec<(i64, u64)>,
    /// Used beyond estimates.
    pub adjust: i64,
    pub full: Option<Full>,
    /// What calls that wait for an answer need together.
    pub wanted: u64,
    /// Used everywhere, when Redis last said, and when it empties by our clock.
    pub told: Option<(u64, u64)>,
    /// The largest share that was asked for, to ask for the like again.
    pub limit: u64,
}

/// Redis had nothing for so much, or more. Times of the process' clock, milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Full {
    pub least: u64,
    pub believed_until: u64,
    /// When enough of what is used will be too old to count.
    pub room_at: u64,
}

impl Share {
    /// What is left of a grant goes back with the next question.
    pub fn put_back(&mut self) {
        let spare = std::mem::take(&mut self.spare);
        self.back(self.second, spare);
    }

    pub fn back(&mut self, second: i64, n: u64) {
        if n == 0 {
            return;
        }
        if let Some((_, m)) = self.give_back.iter_mut().find(|(s, _)| *s == second) {
            *m = m.saturating_add(n);
        } else if self.give_back.len() < MOST_GIVEN_BACK {
            // What is not given back counts until its time is over.
            self.give_back.push((second, n));
        }
    }

    pub fn has_something_to_say(&self) -> bool {
        !self.give_back.is_empty() || self.adjust != 0 || self.spare > 0
    }
}

/// Places for calls in flight that Redis granted, those in use included.
#[derive(Debug, Default)]
pub struct Slots {
    pub held: u64,
    pub full_until: u64,
    pub wanted: u64,
    pub limit: u64,
    pub said_at: u64,
    pub everywhere: u64,
}

impl Meter {
    pub fn new(serial: u64, account: Account) -> Self {
        Self {
            serial,
            account,
            state: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            asking: Default::default(),
            waiting: AtomicU32::new(0),
            freed: Notify::new(),
            listed: AtomicBool::new(false),
        }
    }

    /// The account's name in Redis.
    pub fn name(&self) -> String {
        let Account { kind, id, model } = &self.account;
        format!("{}\t{id}\t{model}", kind.as_str())
    }

    /// Whether the next call of the account would find the same if the meter were made anew.
    pub fn is_idle(&self, now: Now, after_millis: u64) -> bool {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            return false;
        }
        let mut state = self.state.lock();
        let state = &mut *state;
        let quiet = |rate: &mut Option<Box<Rate>>| {
            rate.as_mut()
                .is_none_or(|r| r.window.used(now.mono) == 0 && !r.share.has_something_to_say())
        };
        now.mono.saturating_sub(state.used_at) >= after_millis
            && state.in_flight == 0
            && state.slots.held == 0
            && quiet(&mut state.requests)
            && quiet(&mut state.tokens)
            && state.money.as_ref().is_none_or(|m| m.is_idle())
    }
}
