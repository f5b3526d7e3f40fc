//! The connection: shared, lost, hanging, refused, encrypted, and found again.

use super::*;
use crate::kit::{until, within};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::time::Instant;
use tollkeeper::shared::agreement::{Away, SlotsAsk};

/// What a machine with other things to do may add to a bound.
const SLACK: Duration = Duration::from_millis(250);
/// It may be busy with something else several times, and not so often.
const TRIES: usize = 5;

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
    let mut quickest = Duration::MAX;
    for _ in 0..TRIES {
        until("it answers", async || {
            agreement.slots("k", &SlotsAsk::default()).await.is_ok() && agreement.is_up()
        })
        .await;
        server.kill();
        let asked = Instant::now();
        for _ in 0..2 {
            assert_eq!(agreement.money("k", &money(5)).await, Err(Away));
        }
        quickest = quickest.min(asked.elapsed());
        assert!(!agreement.is_up());
        all_away_at_once(&agreement).await;
        server.up();
        if quickest < Settings::default().bound + SLACK {
            break;
        }
    }
    assert!(quickest < Settings::default().bound + SLACK, "{quickest:?}");
    until("it is back", async || {
        agreement.slots("k", &SlotsAsk::default()).await.is_ok() && agreement.is_up()
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_hangs_is_given_up_within_the_bound() {
    let server = Server::start();
    let agreement = replica(&server, "a", Settings::default());
    let is_back = async || {
        until("it answers", async || {
            agreement.money("k", &money(5)).await.is_ok() && agreement.is_up()
        })
        .await;
    };
    let mut quickest = Duration::MAX;
    for _ in 0..TRIES {
        is_back().await;
        server.freeze();
        // All that are in flight, not one after the other.
        let asked = Instant::now();
        let ask = money(5);
        let questions = (0..500).map(|_| agreement.money("k", &ask));
        let answers = within("answers", futures::future::join_all(questions)).await;
        assert!(answers.iter().all(|a| *a == Err(Away)));
        quickest = quickest.min(asked.elapsed());
        assert!(!agreement.is_up());
        all_away_at_once(&agreement).await;
        server.thaw();
        if quickest < Settings::default().bound + SLACK {
            break;
        }
    }
    assert!(quickest < Settings::default().bound + SLACK, "{quickest:?}");
    is_back().await;

    // Nobody asks: it is found out all the same.
    server.freeze();
    until("it is noticed", async || !agreement.is_up()).await;
    all_away_at_once(&agreement).await;
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

async fn all_away_at_once(agreement: &Agreement) {
    let mut quickest = Duration::MAX;
    for _ in 0..TRIES {
        let asked = Instant::now();
        for _ in 0..200 {
            assert_eq!(agreement.money("k", &money(5)).await, Err(Away));
        }
        quickest = quickest.min(asked.elapsed());
    }
    assert!(quickest < SLACK, "{quickest:?}");
}
