//! What a budget holds, whoever spends it.

use super::*;
use crate::kit::{until, within};
use std::time::Instant;
use tokio::sync::Mutex;
use tollkeeper::shared::agreement::{MOST, SlotsAsk};

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_calls_on_two_replicas_pass_a_budget_by_one_at_most() {
    const COST: i64 = 1_000;
    let server = Server::start();
    let replicas = two(&server).map(|agreement| (agreement, Arc::new(Mutex::new(0))));
    let mut calls = Vec::new();
    for n in 0..1_000 {
        let (agreement, held) = replicas[n % 2].clone();
        calls.push(tokio::spawn(async move {
            // As a meter does: one question at a time about an account.
            let mut held = held.lock().await;
            let ask = MoneyAsk {
                held: *held,
                want: COST,
                ..money(3_500)
            };
            let granted = agreement.money("team", &ask).await.unwrap().granted;
            if granted > 0 {
                *held += COST;
            }
            granted > 0
        }));
    }
    let mut admitted = 0;
    for call in calls {
        admitted += usize::from(within("an answer", call).await.unwrap());
    }
    assert_eq!(admitted, 4);

    // They end: what was set aside is spent.
    for (agreement, held) in &replicas {
        let ask = MoneyAsk {
            unlanded: *held.lock().await,
            want: 1,
            ..money(3_500)
        };
        assert_eq!(agreement.money("team", &ask).await.unwrap().granted, 0);
    }
    let (agreement, spent) = &replicas[0];
    let again = MoneyAsk {
        unlanded: *spent.lock().await,
        ..money(3_500)
    };
    let all = agreement.money("team", &again).await.unwrap();
    assert_eq!((all.spent, all.left_after), (4_000, -500));
}

#[tokio::test]
async fn what_is_said_about_money_is_absolute() {
    let server = Server::start();
    let [a, b] = two(&server);
    let said = MoneyAsk {
        landed: 100,
        unlanded: 30,
        held: 50,
        want: 10,
        ..money(10_000)
    };
    // However often it is said. A sixteenth of what is left is lent at once.
    for _ in 0..3 {
        let answer = a.money("k", &said).await.unwrap();
        assert_eq!((answer.granted, answer.spent), (613, 130));
        assert_eq!(answer.left_after, 10_000 - 130 - 50 - 613);
    }
    // The other has seen more of the store, and counts what the first keeps.
    let other = MoneyAsk {
        landed: 120,
        unlanded: 7,
        ..money(10_000)
    };
    let answer = b.money("k", &other).await.unwrap();
    assert_eq!((answer.granted, answer.spent), (0, 157));
    assert_eq!(answer.left_after, 10_000 - 157 - 663);
    // An account that rests gives all back, whatever it wants.
    let rest = MoneyAsk {
        landed: 130,
        idle: true,
        want: 5,
        ..money(10_000)
    };
    let answer = a.money("k", &rest).await.unwrap();
    assert_eq!((answer.granted, answer.spent), (0, 137));
    assert_eq!(answer.left_after, 10_000 - 137);
    // Another period is another account.
    let next = MoneyAsk {
        period: 1,
        ..money(10_000)
    };
    assert_eq!(b.money("k", &next).await.unwrap().spent, 0);
}

#[tokio::test]
async fn large_amounts_stay_exact() {
    let server = Server::start();
    let [a, b] = two(&server);
    let landed = 8_765_432_109_876_543;
    let said = MoneyAsk {
        landed,
        unlanded: 1,
        want: 3,
        ..money(MOST)
    };
    let granted = (MOST - landed - 1) / 16;
    for _ in 0..2 {
        let answer = a.money("k", &said).await.unwrap();
        assert_eq!((answer.granted, answer.spent), (granted, landed + 1));
    }
    let answer = b.money("k", &money(i64::MAX)).await.unwrap();
    assert_eq!(
        (answer.spent, answer.left_after),
        (landed + 1, MOST - landed - 1 - granted)
    );
    // Beyond the bound is the bound, in every number.
    let beyond = MoneyAsk {
        period: i64::MIN,
        era: i64::MIN,
        landed: i64::MAX,
        unlanded: i64::MAX,
        held: i64::MAX,
        want: i64::MAX,
        budget: i64::MIN,
        idle: false,
        ttl_seconds: u64::MAX,
    };
    let answer = a.money("k", &beyond).await.unwrap();
    assert_eq!(
        (answer.granted, answer.spent, answer.left_after),
        (0, MOST, -MOST)
    );
    let below = MoneyAsk {
        landed: -5,
        unlanded: i64::MIN,
        held: -1,
        want: -1,
        ..money(0)
    };
    let answer = a.money("k2", &below).await.unwrap();
    assert_eq!((answer.granted, answer.spent, answer.left_after), (0, 0, 0));
}

#[tokio::test]
async fn what_a_vanished_replica_was_lent_comes_back() {
    let server = Server::start();
    let lease = Duration::from_millis(200);
    let gone = replica(&server, "gone", Settings { lease, ..patient() });
    let stays = replica(&server, "stays", patient());
    let all = MoneyAsk {
        want: 1_000,
        ..money(1_000)
    };
    let slots = SlotsAsk {
        limit: 2,
        want: 1,
        share: 2,
        ..SlotsAsk::default()
    };
    let before = Instant::now();
    assert_eq!(gone.money("k", &all).await.unwrap().granted, 1_000);
    assert_eq!(gone.slots("k", &slots).await.unwrap().granted, 2);
    drop(gone);
    until("the money is there again", async || {
        stays.money("k", &all).await.unwrap().granted == 1_000
    })
    .await;
    assert!(before.elapsed() >= lease);
    until("the slots are there again", async || {
        stays.slots("k", &slots).await.unwrap().granted == 2
    })
    .await;
}

#[tokio::test]
async fn what_an_emptied_redis_forgot_is_said_again() {
    let mut server = Server::start();
    let [a, b] = two(&server);
    let says = |unlanded| MoneyAsk {
        landed: 500,
        unlanded,
        ..money(10_000)
    };
    a.money("k", &says(20)).await.unwrap();
    assert_eq!(b.money("k", &says(3)).await.unwrap().spent, 523);
    server.stop();
    server.up();
    until("b gets through", async || b.money("k", &says(3)).await.is_ok()).await;
    until("a gets through", async || a.money("k", &says(21)).await.is_ok()).await;
    assert_eq!(b.money("k", &says(3)).await.unwrap().spent, 524);
}
