//! Counts what is in flight, so that a process that has to go can leave as soon as nothing is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Requests between their head and their last byte.
#[derive(Default)]
pub struct InFlight(AtomicUsize);

/// One of them. Ends when dropped.
pub struct Flight(Arc<InFlight>);

impl InFlight {
    pub fn begin(self: &Arc<Self>) -> Flight {
        self.0.fetch_add(1, Ordering::SeqCst);
        Flight(Arc::clone(self))
    }

    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}
