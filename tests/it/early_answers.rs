//! An upstream that answers before it has read the whole request.

use crate::kit::client::{Conn, chat, request};
use crate::kit::gateway::Setup;
use crate::kit::letters;
use crate::kit::upstream::{Script, Upstream};
use serde_json::json;

/// The rest of the first request must not be what the upstream takes for the second one: the connection
/// is in the middle of a body, and whoever's turn it is could write what follows.
#[tokio::test]
async fn its_connection_is_not_used_again() {
    let upstream = Upstream::early(100_000, |seen| match seen.n {
        0 => Script::error(429, "slow down").hang(),
        _ => Script::chat("hello"),
    })
    .await;
    let gateway = Setup::new().model("small", &upstream).start().await;
    let conn = Conn::open(gateway.at).await;
    let large = json!({"model": "small", "messages": [{"role": "user", "content": letters(30 << 20)}]});
    let bytes = request("POST", "/v1/chat/completions", &[], large.to_string().as_bytes());
    let answer = conn.ask_both_ways(bytes).await;
    assert_eq!(answer.status(), 429, "{}", answer.text());
    let answer = chat(&gateway, &json!({"model": "small", "messages": []})).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(
        upstream.connections(),
        2,
        "the second call has a connection of its own"
    );
}

/// A size that is refused is refused as such, not for want of room.
#[tokio::test]
async fn a_body_that_is_too_large_is_told_so_before_there_is_talk_of_room() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new().model("small", &upstream).start().await;
    let mut conn = Conn::open(gateway.at).await;
    let mut head = crate::kit::client::head(
        "POST",
        "/v1/chat/completions",
        &[("content-length", "20000000000")],
    );
    head.extend_from_slice(b"\r\n");
    conn.send(&head).await;
    assert_eq!(conn.head().await.status, 413);
}
