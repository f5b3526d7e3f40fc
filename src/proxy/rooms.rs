//! How much a deployment takes: requests and tokens per 60 seconds, calls in flight, as the config has it
//! (`rpm`, `tpm`, `max_parallel_requests`). Counted in this process, over all generations of the config.

use super::by_deployment::ByDeployment;
use crate::shared::meters::window::Window;
use parking_lot::Mutex;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

/// Where nothing is known, a place comes free within a second or so.
const PLACE_MILLIS: u64 = 1000;

/// A deployment's limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ceiling {
    pub rpm: Option<u64>,
    pub tpm: Option<u64>,
    /// Calls in flight at once.
    pub parallel: Option<u64>,
}

impl Ceiling {
    pub fn is_set(&self) -> bool {
        *self != Ceiling::default()
    }
}

/// What a deployment does now.
#[derive(Default)]
pub struct Room(Mutex<Busy>);

#[derive(Default)]
struct Busy {
    requests: Window,
    tokens: Window,
    in_flight: u64,
}

/// The rooms of all deployments that are limited.
pub static ROOMS: ByDeployment<Room> = ByDeployment::new();
static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A call's share of a room. Dropping it leaves; what was not used of the tokens is given back.
pub struct Stay {
    room: Arc<Room>,
    second: u64,
    estimated: u64,
    used: u64,
}

impl Stay {
    /// What the call used in all; without this, nothing.
    pub fn settle(&mut self, tokens: u64) {
        self.used = tokens;
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let now = now();
        let mut busy = self.room.0.lock();
        busy.in_flight = busy.in_flight.saturating_sub(1);
        busy.tokens.correct(self.second, self.estimated, self.used, now);
    }
}

fn now() -> u64 {
    BASE.elapsed().as_millis() as u64
}

impl Room {
    /// Lets a call in, or says after how many milliseconds there may be room.
    pub fn enter(self: &Arc<Self>, ceiling: Ceiling, tokens: u64) -> Result<Stay, u64> {
        self.enter_at(ceiling, tokens, now())
    }

    fn enter_at(self: &Arc<Self>, ceiling: Ceiling, tokens: u64, now: u64) -> Result<Stay, u64> {
        let mut busy = self.0.lock();
        let Busy {
            requests,
            tokens: window,
            in_flight,
        } = &mut *busy;
        let mut estimated = 0;
        let mut wait = 0;
        if let Some(rpm) = ceiling.rpm {
            wait = requests.room_in(1, rpm, now).unwrap_or(60_000);
        }
        if let Some(tpm) = ceiling.tpm {
            // A call that may use more than the limit has the whole window for itself.
            estimated = tokens.clamp(1, tpm.max(1));
            wait = wait.max(window.room_in(estimated, tpm, now).unwrap_or(60_000));
        }
        if ceiling.parallel.is_some_and(|most| *in_flight >= most) {
            wait = wait.max(PLACE_MILLIS);
        }
        if wait > 0 {
            return Err(wait);
        }
        requests.add(1, now);
        let second = window.add(estimated, now);
        *in_flight += 1;
        drop(busy);
        Ok(Stay {
            room: Arc::clone(self),
            second,
            estimated,
            used: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_is_full_by_any_of_its_limits() {
        let room = Arc::new(Room::default());
        let ceiling = |rpm, tpm, parallel| Ceiling { rpm, tpm, parallel };
        let most = ceiling(Some(3), Some(100), Some(2));
        let a = room.enter_at(most, 10, 0).ok();
        let b = room.enter_at(most, 10, 0).ok();
        assert!(a.is_some() && b.is_some());
        assert_eq!(room.enter_at(most, 10, 0).err(), Some(PLACE_MILLIS));
        drop(a);
        assert_eq!(
            room.enter_at(most, 95, 0).err(),
            Some(61_000),
            "the other call's tokens are set aside"
        );
        let c = room.enter_at(most, 90, 0);
        assert!(c.is_ok());
        drop((b, c));
        assert_eq!(
            room.enter_at(most, 1, 0).err(),
            Some(61_000),
            "three requests were made"
        );
        assert!(room.enter_at(most, 1, 61_000).is_ok());
    }
}
