//! Kill -9 at any moment: whatever was answered is in the ledger, once.

use crate::kit::client::request;
use crate::kit::gateway::{Gateway, Setup, rows};
use crate::kit::upstream::{Script, Upstream, delta, usage};
use crate::kit::{postgres, until};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tollkeeper::store::SpendFilter;

const CALLERS: usize = 8;
const ROUNDS: usize = 5;

/// Calls until the connection breaks; notes the ids of answers that came whole.
async fn caller(at: SocketAddr, n: usize, answered: Arc<Mutex<BTreeSet<String>>>, going: Arc<AtomicBool>) {
    let mut turn = n;
    while going.load(SeqCst) {
        turn += 1;
        let body = json!({"model": "small", "messages": [], "stream": turn.is_multiple_of(2)}).to_string();
        if let Some(id) = one_call(at, body.as_bytes()).await {
            answered.lock().unwrap().insert(id);
        }
    }
}

/// The id of a call whose answer came to its end; None = it did not.
async fn one_call(at: SocketAddr, body: &[u8]) -> Option<String> {
    let mut stream = TcpStream::connect(at).await.ok()?;
    let bytes = request("POST", "/v1/chat/completions", &[], body);
    stream.write_all(&bytes).await.ok()?;
    let mut got = Vec::new();
    loop {
        let whole = got.ends_with(b"0\r\n\r\n") || got.ends_with(b"\"total_tokens\":10}}");
        if whole {
            let text = String::from_utf8_lossy(&got);
            assert!(text.starts_with("HTTP/1.1 200"), "{text}");
            let id = text.lines().find_map(|l| l.strip_prefix("x-litellm-call-id: "));
            return Some(id.expect("an answer has its id").to_string());
        }
        if stream.read_buf(&mut got).await.ok()? == 0 {
            return None;
        }
    }
}

async fn killed_again_and_again(mut gateway: Gateway) {
    let answered: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let mut before = 0;
    for round in 0..ROUNDS {
        let going = Arc::new(AtomicBool::new(true));
        let callers: Vec<_> = (0..CALLERS)
            .map(|n| tokio::spawn(caller(gateway.at, n, answered.clone(), going.clone())))
            .collect();
        // Each round dies after another number of answers, in the middle of the next ones.
        let enough = before + 20 + 37 * round;
        until("calls are answered", async || {
            answered.lock().unwrap().len() >= enough
        })
        .await;
        gateway.kill();
        going.store(false, SeqCst);
        for caller in callers {
            caller.await.unwrap();
        }
        before = answered.lock().unwrap().len();
        gateway.up().await;
    }
    let ids = answered.lock().unwrap().clone();
    // Calls that were not answered may have rows as well, and those of an answered one may come later than these.
    let store = gateway.store().await;
    until("all answered calls are in the ledger", async || {
        let rows = rows(&*store, SpendFilter::default()).await;
        let found: BTreeSet<String> = rows.iter().map(|r| r.request_id.clone()).collect();
        assert_eq!(found.len(), rows.len(), "no call is in the ledger twice");
        ids.is_subset(&found)
    })
    .await;
    assert_eq!(
        store.differences(10, Duration::from_secs(30)).await.unwrap(),
        [],
        "sums and rows agree"
    );
    let dead = store.dead_letters(Default::default()).await.unwrap();
    assert!(dead.is_empty(), "{dead:?}");
    gateway.stop().await;
}

async fn upstream() -> Upstream {
    Upstream::start(|seen| {
        if seen.json()["stream"] == true {
            Script::sse(&[&delta("one"), &delta("two"), &usage(7, 3), "[DONE]"]).end()
        } else {
            Script::chat("hello")
        }
    })
    .await
}

#[tokio::test]
async fn with_sqlite() {
    let upstream = upstream().await;
    let gateway = Setup::new().model("small", &upstream).start().await;
    killed_again_and_again(gateway).await;
}

#[tokio::test]
async fn with_postgres() {
    let upstream = upstream().await;
    let gateway = Setup::new()
        .model("small", &upstream)
        .database(&postgres::shared().database())
        .start()
        .await;
    killed_again_and_again(gateway).await;
}
