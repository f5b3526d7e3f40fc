//! Requests and tokens within a moving window.

use super::*;
use crate::kit::{until, within};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::sync::Mutex;
use tollkeeper::shared::agreement::MOST;

#[tokio::test]
async fn a_window_is_given_out_given_back_and_put_right() {
    let server = Server::start();
    let [a, b] = two(&server);
    let ask = |want, share| requests(10, 60, want, share);
    let first = a.window("k", &ask(4, 0)).await.unwrap();
    assert_eq!((first.granted, first.used), (4, 4));
    assert!((1..=1_000).contains(&first.lasts_millis), "{first:?}");
    // Until the newest of it is older than the window, its own second included.
    assert!((60_001..=61_000).contains(&first.resets_in_millis), "{first:?}");
    assert_eq!(first.resets_in_millis, 60_000 + first.lasts_millis);

    let second = b.window("k", &ask(4, 8)).await.unwrap();
    assert_eq!((second.granted, second.used), (6, 10));
    let full = a.window("k", &ask(1, 1)).await.unwrap();
    assert_eq!((full.granted, full.used), (0, 10));
    assert!((1..=61_000).contains(&full.resets_in_millis));

    // Unused permits of a grant, and of one that nobody knows.
    let back = WindowAsk {
        give_back: vec![
            (first.second, 3),
            (first.second - 1_000, 50),
            (i64::MIN, u64::MAX),
        ],
        ..ask(4, 4)
    };
    let answer = a.window("k", &back).await.unwrap();
    assert_eq!((answer.granted, answer.used), (0, 7));
    assert_eq!(a.window("k", &ask(3, 3)).await.unwrap().used, 10);

    // More was used than estimated, and less.
    let more = WindowAsk {
        adjust: 5,
        ..ask(0, 9)
    };
    let answer = a.window("k", &more).await.unwrap();
    assert_eq!((answer.granted, answer.used), (0, 15));
    let less = WindowAsk {
        adjust: -12,
        ..ask(0, 0)
    };
    assert_eq!(b.window("k", &less).await.unwrap().used, 3);
    let far_less = WindowAsk {
        adjust: i64::MIN,
        ..ask(0, 0)
    };
    let answer = b.window("k", &far_less).await.unwrap();
    assert_eq!((answer.used, answer.resets_in_millis), (0, 0));
    assert_eq!(server.cli(&["exists", "tk:window:{k}:requests:60"]), "0");

    // Never granted, and no waiting helps.
    assert_eq!(a.window("k", &ask(11, 0)).await.unwrap().granted, 0);
    // Tokens are another account; so is another window.
    let tokens = WindowAsk {
        measure: Measure::Tokens,
        ..requests(u64::MAX, 60, MOST as u64 - 1, 0)
    };
    for used in [MOST as u64 - 1, MOST as u64 - 1] {
        assert_eq!(a.window("k", &tokens).await.unwrap().used, used);
    }
    let hour = a.window("k", &requests(10, 3_600, 1, 1)).await.unwrap();
    assert_eq!((hour.used, hour.second % 30), (1, 0));
    assert!((1..=30_000).contains(&hour.lasts_millis), "{hour:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_window_ever_holds_more_than_the_limit() {
    const LIMIT: u64 = 20;
    let server = Server::start();
    let replicas = two(&server);
    // What was used of the grants of each second.
    let used: Arc<Mutex<BTreeMap<i64, u64>>> = Arc::default();
    let total = Arc::new(AtomicU64::new(0));
    let mut clients = Vec::new();
    for n in 0..16_u64 {
        let agreement = Arc::clone(&replicas[usize::try_from(n % 2).unwrap()]);
        let (used, total) = (Arc::clone(&used), Arc::clone(&total));
        clients.push(tokio::spawn(async move {
            let mut back = Vec::new();
            while total.load(Ordering::SeqCst) < 4 * LIMIT {
                let ask = WindowAsk {
                    give_back: std::mem::take(&mut back),
                    ..requests(LIMIT, 1, 1, 1 + n % 5)
                };
                let answer = agreement.window("k", &ask).await.unwrap();
                if answer.granted == 0 {
                    assert!(answer.used > 0 && answer.resets_in_millis > 0, "{answer:?}");
                    continue;
                }
                // Every other permit beyond the one that was needed is not used.
                let unused = (answer.granted - 1) / 2;
                back.push((answer.second, unused));
                total.fetch_add(answer.granted - unused, Ordering::SeqCst);
                *used.lock().await.entry(answer.second).or_default() += answer.granted - unused;
            }
        }));
    }
    for client in clients {
        within("the limit is given out four times", client).await.unwrap();
    }
    let used = used.lock().await;
    assert!(used.len() >= 3, "{used:?}");
    // A window of one second touches two of the clock's.
    for (second, n) in used.iter() {
        let before = used.get(&(second - 1)).copied().unwrap_or(0);
        assert!(n + before <= LIMIT, "{used:?}");
    }
}

#[tokio::test]
async fn there_is_room_when_it_was_said_there_would_be() {
    let server = Server::start();
    let [a, b] = two(&server);
    let ask = requests(3, 1, 2, 0);
    let first = a.window("k", &ask).await.unwrap();
    assert_eq!(first.granted, 2);
    // (asked, answered) of what was refused first, and when that said there would be room.
    let mut refused: Option<(Instant, Instant, Duration)> = None;
    until("there is room", async || {
        let asked = Instant::now();
        let answer = b.window("k", &ask).await.unwrap();
        let said = Duration::from_millis(answer.resets_in_millis);
        let &mut (first_asked, first_answered, first_said) =
            refused.get_or_insert((asked, Instant::now(), said));
        let rounding = Duration::from_millis(1);
        if answer.granted == 0 {
            assert!(
                asked <= first_answered + first_said + rounding,
                "{answer:?} is late"
            );
            return false;
        }
        // A machine that stood still may have let the first second pass.
        let at_once = first_asked == asked;
        assert!(
            at_once || Instant::now() + rounding >= first_asked + first_said,
            "{answer:?} is early"
        );
        true
    })
    .await;
}
