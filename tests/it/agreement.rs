//! Replicas that agree through a real Redis: on money, requests, tokens and calls in flight; and what
//! becomes of questions while Redis is gone.

use crate::kit::redis::Server;
use crate::kit::{until, within};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tollkeeper::shared::agreement::{
    Agreement, Away, MOST, Measure, MoneyAsk, Settings, SlotsAsk, WindowAsk,
};

/// What a machine with other things to do may add to a bound.
const SLACK: Duration = Duration::from_millis(250);

/// Patient, so that only what is asked decides, not how busy the machine is.
fn patient() -> Settings {
    Settings {
        bound: Duration::from_secs(20),
        lease: Duration::from_secs(60),
        ..Settings::default()
    }
}

fn replica(server: &Server, name: &str, settings: Settings) -> Arc<Agreement> {
    Agreement::connect_with(&server.url().into(), "tk", name, settings)
}

fn two(server: &Server) -> [Arc<Agreement>; 2] {
    ["a", "b"].map(|name| replica(server, name, patient()))
}

fn money(budget: i64) -> MoneyAsk {
    MoneyAsk {
        budget,
        ttl_seconds: 3_600,
        ..MoneyAsk::default()
    }
}

fn requests(limit: u64, window_seconds: u32, want: u64, share: u64) -> WindowAsk {
    WindowAsk {
        measure: Measure::Requests,
        limit,
        window_seconds,
        want,
        share,
        give_back: Vec::new(),
        adjust: 0,
    }
}

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

#[tokio::test]
async fn accounts_share_one_connection_and_any_name_is_a_name() {
    let server = Server::start();
    let agreement = replica(&server, "a|1:{x}\n\0'", patient());
    let names: Vec<String> = (0..200)
        .map(|n| format!("account {n}"))
        .chain(["", "}", "{", "a}:0", "\0\r\n", "\"); return 1 --"].map(str::to_string))
        .chain(["x".repeat(100_000), "y".repeat(100_000)])
        .collect();
    let says = |unlanded| MoneyAsk {
        unlanded,
        want: 1,
        ..money(1_000_000)
    };
    for _ in 0..2 {
        let answers = names.iter().enumerate().map(|(n, name)| {
            let (agreement, ask) = (&agreement, says(i64::try_from(n).unwrap()));
            async move { agreement.money(name, &ask).await.unwrap().spent }
        });
        let spent = within("answers", futures::future::join_all(answers)).await;
        assert!(
            spent
                .iter()
                .enumerate()
                .all(|(n, s)| i64::try_from(n).unwrap() == *s)
        );
        // Scripts that Redis forgot are sent again.
        server.cli(&["script", "flush"]);
    }
    let clients = server.cli(&["client", "list", "type", "normal"]);
    assert_eq!(
        clients.lines().filter(|l| !l.contains("cmd=client")).count(),
        1,
        "{clients}"
    );
}

#[tokio::test]
async fn a_killed_redis_costs_calls_nothing_and_is_found_again() {
    let mut server = Server::start();
    let agreement = replica(&server, "a", Settings::default());
    until("the first answer", async || {
        agreement.money("k", &money(5)).await.is_ok()
    })
    .await;
    assert!(agreement.is_up());
    server.kill();
    for _ in 0..2 {
        let asked = Instant::now();
        assert_eq!(agreement.money("k", &money(5)).await, Err(Away));
        assert!(asked.elapsed() < Settings::default().bound + SLACK);
    }
    assert!(!agreement.is_up());
    all_away_at_once(&agreement).await;
    server.up();
    until("it is back", async || {
        agreement.slots("k", &SlotsAsk::default()).await.is_ok()
    })
    .await;
    assert!(agreement.is_up());
}

#[tokio::test]
async fn a_redis_that_hangs_is_given_up_within_the_bound() {
    let server = Server::start();
    let agreement = replica(&server, "a", Settings::default());
    until("the first answer", async || {
        agreement.money("k", &money(5)).await.is_ok()
    })
    .await;
    server.freeze();
    // All that are in flight, not one after the other.
    let asked = Instant::now();
    let ask = money(5);
    let questions = (0..500).map(|_| agreement.money("k", &ask));
    let answers = within("answers", futures::future::join_all(questions)).await;
    assert!(answers.iter().all(|a| *a == Err(Away)));
    assert!(
        asked.elapsed() < Settings::default().bound + SLACK,
        "{:?}",
        asked.elapsed()
    );
    assert!(!agreement.is_up());
    all_away_at_once(&agreement).await;
    server.thaw();
    until("it is back", async || {
        agreement.money("k", &money(5)).await.is_ok()
    })
    .await;

    // Nobody asks: it is found out all the same.
    server.freeze();
    until("it is noticed", async || !agreement.is_up()).await;
    all_away_at_once(&agreement).await;
}

async fn all_away_at_once(agreement: &Agreement) {
    let asked = Instant::now();
    for _ in 0..1_000 {
        assert_eq!(agreement.money("k", &money(5)).await, Err(Away));
    }
    assert!(asked.elapsed() < SLACK, "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_connection_that_is_closed_is_replaced() {
    let server = Server::start();
    let agreement = replica(&server, "a", patient());
    agreement.money("k", &money(5)).await.unwrap();
    server.cli(&["client", "kill", "type", "normal"]);
    until("another connection", async || {
        agreement.money("k", &money(5)).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_takes_no_writes_is_away() {
    let server = Server::start();
    let agreement = replica(&server, "a", patient());
    agreement.money("k", &money(5)).await.unwrap();
    server.cli(&["replicaof", "127.0.0.1", "1"]);
    assert_eq!(agreement.money("k", &money(5)).await, Err(Away));
    assert!(!agreement.is_up());
    server.cli(&["replicaof", "no", "one"]);
    until("it takes writes", async || {
        agreement.money("k", &money(5)).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_key_that_is_somebody_elses_spoils_one_account_only() {
    let server = Server::start();
    let agreement = replica(&server, "a", patient());
    server.cli(&["set", "tk:money:{k}:0", "mine"]);
    server.cli(&[
        "hset",
        "tk:money:{odd}:0",
        "base",
        "x",
        "u:b",
        "",
        "l:b",
        "1",
        "more",
        "9",
    ]);
    server.cli(&["hset", "tk:slots:{odd}", "b", "1|2"]);
    server.cli(&["hset", "tk:window:{odd}:requests:60", "x", "1", "5", "y"]);
    assert_eq!(agreement.money("k", &money(5)).await, Err(Away));
    assert!(agreement.is_up());
    let answer = agreement.money("odd", &money(5)).await.unwrap();
    assert_eq!((answer.spent, answer.left_after), (0, 5));
    let slots = agreement.slots("odd", &SlotsAsk::default()).await.unwrap();
    assert_eq!(slots.in_use_everywhere, 0);
    assert_eq!(
        agreement
            .window("odd", &requests(1, 60, 1, 1))
            .await
            .unwrap()
            .used,
        1
    );
}

#[tokio::test]
async fn tls_is_spoken_with_a_server_that_is_known() {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "an authority for tests");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["127.0.0.1".to_string()])
        .unwrap()
        .signed_by(&key, &authority)
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [certificate_file, key_file] = ["certificate.pem", "key.pem"].map(|name| dir.path().join(name));
    std::fs::write(&certificate_file, certificate.pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();

    let server = Server::start_tls(&certificate_file, &key_file);
    let root_certificates = Some(authority.pem().into_bytes());
    let known = replica(
        &server,
        "a",
        Settings {
            root_certificates,
            ..patient()
        },
    );
    assert!(known.money("k", &money(5)).await.is_ok());
    let stranger = replica(&server, "b", patient());
    assert_eq!(stranger.money("k", &money(5)).await, Err(Away));
    assert!(!stranger.is_up() && known.is_up());
}

#[tokio::test]
async fn an_address_that_cannot_be_used_is_away_for_good() {
    let agreement = Agreement::connect(&"redis://".into(), "tk", "a");
    assert_eq!(agreement.money("k", &money(5)).await, Err(Away));
    assert!(!agreement.is_up());
    assert!(Agreement::check(&"redis://".into()).is_err());
    assert!(Agreement::check(&"redis://127.0.0.1".into()).is_ok());
}
