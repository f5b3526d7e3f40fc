//! Calls in flight.

use super::*;
use crate::kit::within;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Mutex;
use tollkeeper::shared::agreement::SlotsAsk;

#[tokio::test]
async fn slots_are_shared() {
    let server = Server::start();
    let [a, b] = two(&server);
    let ask = |in_use, want| SlotsAsk {
        limit: 3,
        in_use,
        want,
        share: 2,
    };
    assert_eq!(a.slots("k", &ask(0, 1)).await.unwrap().granted, 2);
    assert_eq!(b.slots("k", &ask(0, 1)).await.unwrap().granted, 1);
    assert_eq!(b.slots("k", &ask(1, 1)).await.unwrap().granted, 0);
    let answer = a.slots("k", &ask(2, 1)).await.unwrap();
    assert_eq!((answer.granted, answer.in_use_everywhere), (0, 3));
    // What is not in use any more is given back by saying so.
    let answer = a.slots("k", &ask(0, 0)).await.unwrap();
    assert_eq!((answer.granted, answer.in_use_everywhere), (0, 1));
    assert_eq!(b.slots("k", &ask(1, 1)).await.unwrap().granted, 2);
    assert_eq!(b.slots("other", &ask(u64::MAX, 1)).await.unwrap().granted, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn never_more_calls_in_flight_than_there_are_slots() {
    let server = Server::start();
    let replicas = two(&server).map(|agreement| (agreement, Arc::new(Mutex::new(0_u64))));
    let (running, most, served) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut calls = Vec::new();
    for n in 0..400 {
        let (agreement, in_use) = replicas[n % 2].clone();
        let (running, most, served) = (Arc::clone(&running), Arc::clone(&most), Arc::clone(&served));
        calls.push(tokio::spawn(async move {
            let ask = |in_use, want| SlotsAsk {
                limit: 5,
                in_use,
                want,
                share: 1,
            };
            {
                let mut in_use = in_use.lock().await;
                if agreement.slots("k", &ask(*in_use, 1)).await.unwrap().granted == 0 {
                    return;
                }
                *in_use += 1;
            }
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            served.fetch_add(1, Ordering::SeqCst);
            running.fetch_sub(1, Ordering::SeqCst);
            let mut in_use = in_use.lock().await;
            *in_use -= 1;
            agreement.slots("k", &ask(*in_use, 0)).await.unwrap();
        }));
    }
    for call in calls {
        within("a call", call).await.unwrap();
    }
    let (most, served) = (most.load(Ordering::SeqCst), served.load(Ordering::SeqCst));
    assert!((1..=5).contains(&most) && served >= 5, "{most} of {served}");
    assert_eq!(server.cli(&["exists", "tk:slots:{k}"]), "0");
}
