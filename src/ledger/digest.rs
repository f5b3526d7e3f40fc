//! Has the store look through the days that are over, so that long lists of calls are quick: see
//! [`Store::digest_day`].

use crate::store::Store;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// After the start: others have more to do then.
const FIRST: Duration = Duration::from_secs(60);
/// A day is over once a day.
const EVERY: Duration = Duration::from_secs(3_600);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(300);
const BREATH: Duration = Duration::from_millis(20);

/// Looks through what there is, now and then, for as long as the process runs. Replicas may all do this.
pub async fn keep_digested(store: Arc<dyn Store>) {
    store.ready().await;
    let mut pause = FIRST;
    loop {
        tokio::time::sleep(pause).await;
        let began = Instant::now();
        pause = match store.digest_day().await {
            // Half of the time is left to those who write.
            Ok(true) => began.elapsed().max(BREATH),
            Ok(false) => EVERY,
            Err(e) => {
                log::warn!("ledger: a day was not looked through, lists of calls may be slower: {e}");
                AGAIN
            }
        };
    }
}
