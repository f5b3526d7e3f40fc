//! A deadline that costs next to nothing as long as it is kept: its timer is set once and set anew only when it goes
//! off too early. One that is made and dropped for each call is put into the runtime's list and taken out again, under
//! a lock.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use tokio::time::{Instant, Sleep};

/// For one deadline after the other, each of them at about the same distance.
#[derive(Debug, Default)]
pub struct Alarm(Option<Pin<Box<Sleep>>>);

/// What a call waits for with an end. They stay with a connection from call to call.
#[derive(Debug, Default)]
pub struct Alarms {
    /// For its answer, in all.
    pub call: Alarm,
    /// For an upstream's.
    pub upstream: Alarm,
}

impl Alarm {
    /// Whether `at` has come; the task is woken when it does.
    pub fn is_over(&mut self, at: Instant, cx: &mut Context<'_>) -> bool {
        let timer = self
            .0
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if timer.deadline() > at {
            timer.as_mut().reset(at);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= at {
                return true;
            }
            timer.as_mut().reset(at);
        }
        false
    }

    /// What `work` comes to, or `None` if it does not by `at`.
    pub async fn within<T>(&mut self, at: Instant, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if self.is_over(at, cx) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn each_deadline_counts_whatever_the_one_before_was() {
        let mut alarm = Alarm::default();
        for millis in [20, 5, 40, 1] {
            let begun = Instant::now();
            let at = begun + Duration::from_millis(millis);
            assert_eq!(alarm.within(at, async { 7 }).await, Some(7));
            assert_eq!(alarm.within(at, std::future::pending::<()>()).await, None);
            assert!(begun.elapsed() >= Duration::from_millis(millis));
            let soon = tokio::time::sleep(Duration::from_millis(1));
            let later = Instant::now() + Duration::from_secs(60);
            assert_eq!(alarm.within(later, soon).await, Some(()));
        }
    }
}
