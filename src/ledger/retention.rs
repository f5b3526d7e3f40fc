//! Lets rows go that are older than the config wants them kept. The sums they were part of stay.

use crate::store::{Result, Store};
use std::sync::Arc;
use std::time::Duration;

/// Rows are dropped by whole days, so looking more often than this is of little use.
const EVERY: Duration = Duration::from_secs(6 * 3_600);
/// After a failure: the store may be away, or somebody read what was to be dropped.
const AGAIN: Duration = Duration::from_secs(300);
const DAY_SECONDS: u64 = 86_400;

/// Drops now and then what is older than `keep`, for as long as the process runs. Replicas may all do this.
pub async fn keep_tidy(store: Arc<dyn Store>, keep: Duration) {
    store.ready().await;
    loop {
        let pause = match drop_old(&*store, keep).await {
            Ok(0) => EVERY,
            Ok(rows) => {
                log::info!(
                    "{rows} ledger rows were older than {} days and dropped",
                    days(keep)
                );
                EVERY
            }
            Err(e) => {
                log::warn!("old ledger rows stay for now: {e}");
                AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Drops the days that are over for longer than `keep`, counted in whole days; how many rows that were.
pub async fn drop_old(store: &dyn Store, keep: Duration) -> Result<u64> {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let kept = jiff::Span::new().days(i64::try_from(days(keep)).unwrap_or(i64::MAX).clamp(1, 100_000));
    store.drop_rows_before(today.saturating_sub(kept)).await
}

fn days(keep: Duration) -> u64 {
    keep.as_secs().div_ceil(DAY_SECONDS).max(1)
}
