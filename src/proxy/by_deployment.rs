//! What this process keeps of a deployment over all generations of the config, for as long as one of them has it.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};

/// One `T` for each name of a deployment.
pub struct ByDeployment<T>(LazyLock<Mutex<HashMap<String, Weak<T>>>>);

impl<T: Default> ByDeployment<T> {
    pub const fn new() -> Self {
        Self(LazyLock::new(Mutex::default))
    }

    /// What is kept under this name: a new config goes on where the old one was.
    pub fn of(&self, name: &str) -> Arc<T> {
        let mut kept = self.0.lock();
        if let Some(one) = kept.get(name).and_then(Weak::upgrade) {
            return one;
        }
        // Looked through only when it would have to grow.
        if kept.len() == kept.capacity() {
            kept.retain(|_, one| one.strong_count() > 0);
        }
        let one = Arc::<T>::default();
        kept.insert(name.to_string(), Arc::downgrade(&one));
        one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_outlives_the_config_that_asked_for_it() {
        static KEPT: ByDeployment<Mutex<u8>> = ByDeployment::new();
        let old = KEPT.of("a");
        *old.lock() = 7;
        let new = KEPT.of("a");
        drop(old);
        assert_eq!((*new.lock(), *KEPT.of("b").lock()), (7, 0));
        drop(new);
        assert_eq!(*KEPT.of("a").lock(), 0, "nobody had it any more");
    }
}
