//! Requests that two servers could read in two ways, and paths with two spellings, on raw sockets: what is
//! not refused is exactly one request, behind the gateway as well.

use crate::kit::LONG;
use crate::kit::client::{Conn, H2};
use crate::kit::gateway::{Gateway, MASTER, Setup};
use crate::kit::upstream::{Script, Upstream};
use serde_json::json;
use std::collections::BTreeSet;

const CHAT: &str = r#"{"model":"small","messages":[]}"#;
/// What an attacker hopes to have taken for a request of its own.
const SMUGGLED: &str = "GET /tts/smuggled HTTP/1.1\r\nhost: gateway.test\r\n\r\n";

/// What has to become of a request, and of what stands behind it on the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// 400 and the end.
    Refused,
    /// Not even an answer, or a refusal of another kind; the end in any case.
    Ended,
    /// One answer, and the end.
    OneAnswer,
    /// As refused; but a stream lane has passed on what came before, and can only break off.
    Broken,
}
use Then::{Broken, Ended, OneAnswer, Refused};

struct Case {
    what: &'static str,
    /// After `POST … HTTP/1.1`; `{}` = host and authorization.
    head: &'static str,
    body: &'static str,
    then: Then,
}

const fn case(what: &'static str, head: &'static str, body: &'static str, then: Then) -> Case {
    Case {
        what,
        head,
        body,
        then,
    }
}

/// Heads and bodies after a good request line.
#[rustfmt::skip]
const CASES: &[Case] = &[
    case("both, the length first", "{}content-length: 5\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n", Refused),
    case("both, the coding first", "{}transfer-encoding: chunked\r\ncontent-length: 5\r\n", "0\r\n\r\n", Refused),
    case("both, a length of zero", "{}content-length: 0\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n", Refused),
    case("both, oddly written", "{}Content-Length: 6\r\nTransfer-Encoding:chunked\r\n", "0\r\n\r\nX", Refused),
    case("two codings in two lines", "{}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n", Refused),
    case("chunked twice", "{}transfer-encoding: chunked, chunked\r\n", "0\r\n\r\n", Refused),
    case("chunked and identity", "{}transfer-encoding: chunked, identity\r\n", "0\r\n\r\n", Refused),
    case("identity and chunked", "{}transfer-encoding: identity, chunked\r\n", "0\r\n\r\n", Refused),
    case("identity", "{}transfer-encoding: identity\r\n", "", Refused),
    case("gzip and chunked", "{}transfer-encoding: gzip, chunked\r\n", "0\r\n\r\n", Refused),
    case("an unknown coding", "{}transfer-encoding: xchunked\r\n", "0\r\n\r\n", Refused),
    case("a cow in two lines", "{}transfer-encoding: chunked\r\ntransfer-encoding: cow\r\n", "0\r\n\r\n", Refused),
    case("a quoted coding", "{}transfer-encoding: \"chunked\"\r\n", "0\r\n\r\n", Refused),
    case("a coding with a parameter", "{}transfer-encoding: chunked;q=1\r\n", "0\r\n\r\n", Refused),
    case("an empty coding", "{}transfer-encoding:\r\n", "", Refused),
    case("a coding after a vertical tab", "{}transfer-encoding: \u{b}chunked\r\n", "0\r\n\r\n", Refused),
    case("a coding before a NUL", "{}transfer-encoding: chunked\0\r\n", "0\r\n\r\n", Refused),
    case("a space before its colon", "{}transfer-encoding : chunked\r\n", "0\r\n\r\n", Refused),
    case("a tab before its colon", "{}transfer-encoding\t: chunked\r\n", "0\r\n\r\n", Refused),
    case("a folded coding", "{}transfer-encoding:\r\n chunked\r\n", "0\r\n\r\n", Refused),
    case("a coding in a folded line", "{}x-a: b\r\n transfer-encoding: chunked\r\n", "0\r\n\r\n", Refused),
    case("an underscore in the coding", "{}transfer_encoding: chunked\r\n", "0\r\n\r\n", Refused),
    case("two lengths", "{}content-length: 5\r\ncontent-length: 6\r\n", "12345", Refused),
    case("two equal lengths", "{}content-length: 5\r\ncontent-length: 5\r\n", "12345", Refused),
    case("a list of lengths", "{}content-length: 5, 6\r\n", "12345", Refused),
    case("a list of equal lengths", "{}content-length: 5, 5\r\n", "12345", Refused),
    case("a signed length", "{}content-length: +5\r\n", "12345", Refused),
    case("a negative length", "{}content-length: -5\r\n", "", Refused),
    case("a length in hex", "{}content-length: 0x5\r\n", "12345", Refused),
    case("a length with a point", "{}content-length: 5.0\r\n", "12345", Refused),
    case("a length with a blank in it", "{}content-length: 1 0\r\n", "12345", Refused),
    case("an empty length", "{}content-length:\r\n", "", Refused),
    case("a length of letters", "{}content-length: five\r\n", "", Refused),
    case("a length beyond numbers", "{}content-length: 99999999999999999999999\r\n", "", Refused),
    case("an underscore in the length", "{}content_length: 5\r\n", "12345", Refused),
    case("a space before the length's colon", "{}content-length : 5\r\n", "12345", Refused),
    case("a folded length", "{}content-length:\r\n 5\r\n", "12345", Refused),
    case("a header folded by a tab", "{}x-a: b\r\n\tc\r\ncontent-length: 0\r\n", "", Refused),
    case("a bare LF after a header", "{}x-a: b\ncontent-length: 0\r\n", "", Refused),
    case("a bare LF before the length", "{}x-a: b\ncontent-length: 54\r\n", "", Refused),
    case("a bare CR in a value", "{}x-a: b\rcontent-length: 5\r\n", "", Refused),
    case("a bare CR at a line's start", "{}\rcontent-length: 5\r\n", "", Refused),
    case("a NUL in a value", "{}x-a: b\0c\r\ncontent-length: 0\r\n", "", Refused),
    case("a NUL in a name", "{}x\0a: b\r\ncontent-length: 0\r\n", "", Refused),
    case("an escape in a value", "{}x-a: \u{1b}[2J\r\ncontent-length: 0\r\n", "", Refused),
    case("a DEL in a value", "{}x-a: a\u{7f}b\r\ncontent-length: 0\r\n", "", Refused),
    case("a name of nothing", "{}: b\r\ncontent-length: 0\r\n", "", Refused),
    case("a name with a space", "{}x a: b\r\ncontent-length: 0\r\n", "", Refused),
    case("a line without a colon", "{}nonsense\r\ncontent-length: 0\r\n", "", Refused),
    case("a name with a bracket", "{}x(a): b\r\ncontent-length: 0\r\n", "", Refused),
    case("a name that is not ASCII", "{}x-\u{e4}: b\r\ncontent-length: 0\r\n", "", Refused),
    case("two hosts", "{}host: other.test\r\ncontent-length: 0\r\n", "", Refused),
    case("two equal hosts", "{}host: gateway.test\r\ncontent-length: 0\r\n", "", Refused),
    case("no host", "content-length: 0\r\n", "", Refused),
    case("a host with a path", "host: gateway.test/x\r\ncontent-length: 0\r\n", "", Refused),
    case("a host with a user", "host: a@gateway.test\r\ncontent-length: 0\r\n", "", Refused),
    case("a host with a blank", "host: gateway.test other\r\ncontent-length: 0\r\n", "", Refused),
    case("a folded host", "host:\r\n gateway.test\r\ncontent-length: 0\r\n", "", Refused),
    case("a space before the first header", " x-a: b\r\n{}content-length: 0\r\n", "", Refused),
    // What is wrong with a body shows when it comes.
    case("a size that is none", "{}transfer-encoding: chunked\r\n", "zz\r\nabc\r\n0\r\n\r\n", Broken),
    case("a signed size", "{}transfer-encoding: chunked\r\n", "+3\r\nabc\r\n0\r\n\r\n", Broken),
    case("a negative size", "{}transfer-encoding: chunked\r\n", "-3\r\nabc\r\n0\r\n\r\n", Broken),
    case("a size in 0x", "{}transfer-encoding: chunked\r\n", "0x3\r\nabc\r\n0\r\n\r\n", Broken),
    case("a size beyond numbers", "{}transfer-encoding: chunked\r\n", "fffffffffffffffff\r\nabc\r\n", Broken),
    case("a chunk longer than it says", "{}transfer-encoding: chunked\r\n", "3\r\nabcdef\r\n0\r\n\r\n", Broken),
    case("a chunk without its end", "{}transfer-encoding: chunked\r\n", "3\r\nabc0\r\n\r\n", Broken),
    case("a size with an underscore", "{}transfer-encoding: chunked\r\n", "0_3\r\nabc\r\n0\r\n\r\n", Broken),
    case("a size after a blank", "{}transfer-encoding: chunked\r\n", " 3\r\nabc\r\n0\r\n\r\n", Broken),
    case("an empty size behind a proxy", "{}via: 1.1 front\r\ntransfer-encoding: chunked\r\n", "\r\nabc\r\n0\r\n\r\n", OneAnswer),
    case("a bare LF after a size", "{}transfer-encoding: chunked\r\n", "3\nabc\r\n0\r\n\r\n", Broken),
    case("a bare LF after a chunk", "{}transfer-encoding: chunked\r\n", "3\r\nabc\n0\r\n\r\n", Broken),
    case("a NUL after a size", "{}transfer-encoding: chunked\r\n", "3\0\r\nabc\r\n0\r\n\r\n", Broken),
];

/// Whole first lines.
#[rustfmt::skip]
const LINES: &[(&str, &str, Then)] = &[
    ("HTTP/1.0 with a coding", "POST {path} HTTP/1.0\r\n{}transfer-encoding: chunked\r\n\r\n0\r\n\r\n", Refused),
    ("a version of the future", "POST {path} HTTP/1.2\r\n{}content-length: 0\r\n\r\n", Ended),
    ("HTTP/2.0 in a line", "POST {path} HTTP/2.0\r\n{}content-length: 0\r\n\r\n", Ended),
    ("HTTP/0.9", "POST {path}\r\n{}content-length: 0\r\n\r\n", Ended),
    ("a version in lower case", "POST {path} http/1.1\r\n{}content-length: 0\r\n\r\n", Ended),
    ("a version with a blank", "POST {path} HTTP/1.1 \r\n{}content-length: 0\r\n\r\n", Ended),
    ("two blanks before the target", "POST  {path} HTTP/1.1\r\n{}content-length: 0\r\n\r\n", Ended),
    ("two blanks before the version", "POST {path}  HTTP/1.1\r\n{}content-length: 0\r\n\r\n", Ended),
    ("a tab in place of a blank", "POST\t{path} HTTP/1.1\r\n{}content-length: 0\r\n\r\n", Ended),
    ("a blank in the target", "POST {path} x HTTP/1.1\r\n{}content-length: 0\r\n\r\n", Refused),
    ("a request in the target", "POST {path} HTTP/1.1 /x HTTP/1.1\r\n{}content-length: 0\r\n\r\n", Refused),
    ("a tab in the target", "POST {path}\tx HTTP/1.1\r\n{}content-length: 0\r\n\r\n", Refused),
    ("a blank before the method", " POST {path} HTTP/1.1\r\n{}content-length: 0\r\n\r\n", Ended),
    ("a bare LF after the line", "POST {path} HTTP/1.1\n{}content-length: 0\r\n\r\n", Refused),
    ("a bare CR in the line", "POST {path}\r HTTP/1.1\r\n{}content-length: 0\r\n\r\n", Ended),
    ("a NUL in the target", "POST {path}\0 HTTP/1.1\r\n{}content-length: 0\r\n\r\n", Ended),
    ("all lines with bare LF", "POST {path} HTTP/1.1\nhost: gateway.test\ncontent-length: 0\n\n", Refused),
    ("another host in the target", "POST http://other.test{path} HTTP/1.1\r\n{}content-length: 0\r\n\r\n", Refused),
    ("a user in the target", "POST http://gateway.test@other.test{path} HTTP/1.1\r\n{}content-length: 0\r\n\r\n", Refused),
    ("a tunnel", "CONNECT gateway.test:443 HTTP/1.1\r\n{}\r\n", Ended),
    ("bytes after an upgrade", "POST {path} HTTP/1.1\r\n{}connection: upgrade\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\ncontent-length: 0\r\n\r\n", OneAnswer),
    ("bytes after a websocket's head", "GET {path} HTTP/1.1\r\n{}connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n", OneAnswer),
    ("bytes after HTTP/1.0", "POST {path} HTTP/1.0\r\n{}content-length: 0\r\n\r\n", OneAnswer),
    ("bytes after a good-bye", "POST {path} HTTP/1.1\r\n{}connection: close\r\ncontent-length: 0\r\n\r\n", OneAnswer),
];

async fn gateway(models: &Upstream, stream: &Upstream) -> Gateway {
    Setup::new()
        .model("small", models)
        .general(
            "pass_through_endpoints",
            json!([{"path": "/tts", "target": format!("http://127.0.0.1:{}/tts", stream.port), "include_subpath": true}]),
        )
        // Nothing ends because its time is over.
        .setting(
            "timeouts",
            json!({"header": "10m", "keepalive": "10m", "body": "10m", "body_idle": "10m"}),
        )
        .start()
        .await
}

/// Everything that comes until the connection ends, as text; `None` = it does not end.
async fn all_of(conn: &mut Conn) -> Option<String> {
    let mut out = Vec::new();
    let reading = async {
        while let Some(piece) = conn.reader.piece().await {
            out.extend_from_slice(&piece);
        }
    };
    let ended = tokio::time::timeout(LONG, reading).await.is_ok();
    ended.then(|| String::from_utf8_lossy(&out).into_owned())
}

fn answers(text: &str) -> Vec<u16> {
    text.match_indices("HTTP/1.1 ")
        .filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok())
        .collect()
}

#[tokio::test]
async fn every_ambiguous_request_is_refused_and_nothing_of_it_goes_on() {
    let models = Upstream::good().await;
    let stream = Upstream::start(|_| Script::answer(200, &[], "spoken")).await;
    let gateway = gateway(&models, &stream).await;
    let who =
        format!("host: gateway.test\r\nauthorization: Bearer {MASTER}\r\ncontent-type: application/json\r\n");
    let mut wrong = Vec::new();
    let mut tried: Vec<(String, Then)> = Vec::new();
    for lane in ["/v1/chat/completions", "/tts/x", "/key/generate", "/v1/nothing"] {
        let lines = LINES
            .iter()
            .map(|(what, text, then)| (*what, text.replace("{}", &who), *then));
        let cases = CASES.iter().map(|c| {
            let head = c.head.replace("{}", &who);
            (
                c.what,
                format!("POST {{path}} HTTP/1.1\r\n{head}\r\n{}", c.body),
                c.then,
            )
        });
        for (what, text, then) in cases.chain(lines) {
            let streamed = lane == "/tts/x";
            let path = match streamed {
                true => format!("{lane}{}x", tried.len()),
                false => lane.to_string(),
            };
            tried.push((path.clone(), then));
            let text = text.replace("{path}", &path);
            let mut conn = Conn::open(gateway.at).await;
            conn.send(format!("{text}{SMUGGLED}").as_bytes()).await;
            let Some(got) = all_of(&mut conn).await else {
                wrong.push(format!("{what} at {path}: the connection stays open\n  {text:?}"));
                continue;
            };
            let statuses = answers(&got);
            let fine = match then {
                Refused => statuses == [400],
                Ended => statuses.iter().all(|s| *s >= 400) && statuses.len() <= 1,
                OneAnswer => statuses.len() == 1,
                Broken if streamed => statuses.is_empty() || statuses == [400],
                // Nobody reads the body of what is not there.
                Broken if lane == "/v1/nothing" => statuses == [404],
                Broken => statuses == [400],
            };
            if !fine {
                wrong.push(format!(
                    "{what} at {path}: {then:?}, {statuses:?}\n  {text:?}\n  {got:?}"
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        tried.len(),
        wrong.join("\n")
    );
    assert_eq!(models.count(), 0, "nothing of it reached a model");
    // And what is in order is served on one connection, one after the other.
    let mut conn = Conn::open(gateway.at).await;
    for _ in 0..3 {
        let answer = conn
            .ask("POST", "/v1/chat/completions", &[], CHAT.as_bytes())
            .await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    let targets = stream.targets();
    assert!(!targets.iter().any(|t| t.contains("smuggled")), "{targets:?}");
    for (path, then) in tried.iter().filter(|(path, _)| path.starts_with("/tts")) {
        let reached = targets.iter().filter(|t| *t == path).count();
        let most = usize::from(matches!(then, OneAnswer | Broken));
        assert!(reached <= most, "{path} reached its upstream {reached} times");
    }
    assert!(CASES.len() + LINES.len() >= 60, "the list is long enough");
}

/// The body's framing over HTTP/2 has its own ways to be wrong.
#[tokio::test]
async fn what_http_2_must_not_carry_reaches_nobody() {
    let models = Upstream::good().await;
    let stream = Upstream::start(|_| Script::answer(200, &[], "spoken")).await;
    let gateway = gateway(&models, &stream).await;
    let mut h2 = H2::open(gateway.at).await;
    let answer = h2
        .ask(
            "POST",
            "/v1/chat/completions",
            &[("content-type", "application/json")],
            CHAT,
        )
        .await;
    assert_eq!(answer.status(), 200);
    let before = models.count() + stream.count();
    for path in ["/tts/../key/generate", "/tts//x", "/tts/%2e%2e/x", "/tts/x;y"] {
        assert_eq!(h2.ask("GET", path, &[], "").await.status(), 400, "{path}");
    }
    for (name, value) in [
        ("host", "other.test"),
        ("content-length", "5, 6"),
        ("content-length", "+5"),
    ] {
        let mut h2 = H2::open(gateway.at).await;
        let status = h2.try_ask("POST", "/tts/x", &[(name, value)]).await;
        assert!(status.is_none_or(|s| s == 400), "{name}: {value}: {status:?}");
    }
    assert_eq!(models.count() + stream.count(), before);
}

/// Spellings of one path that some server reads as another.
fn spellings(lane: &str) -> BTreeSet<String> {
    let last = lane.rsplit('/').next().unwrap();
    let first = lane.split('/').nth(1).unwrap();
    let mut out = BTreeSet::new();
    #[rustfmt::skip]
    let bad = [
        "//{}", "/.//{}", "/./{}", "/../{}", "/x/../{}", "/x/./{}", "/x//{}", "/x/..//{}", "/%2e/{}", "/%2E/{}", "/%2e%2e/{}", "/%2E%2e/{}",
        "/.%2e/{}", "/%2e./{}", "/x/%2e%2e/{}", "/x%2f{}", "/x%2F{}", "/x%5c{}", "/x%5C..%5C{}", "/x\\{}", "/x\\..\\{}", "/..\\{}", "/%2f{}", "/%5c{}",
        "/x%2f..%2f{}", "/;/{}", "/;x/{}", "/x;/../{}", "/x;a=b/{}", "/..;/{}", "/x/..;/{}", "/%3b/{}", "/%3B/{}", "/x%3b/../{}", "/%252e%252e/{}", "/%252f{}",
        "/x%252f{}", "/%25%32%65/{}", "/%c0%ae%c0%ae/../{}", "/%00/{}", "/x%00/{}", "/%0a{}", "/%0d%0a{}", "/%09{}", "/%1f{}", "/%7f{}", "/%23/{}", "/x%23/{}",
        "/%3f/{}", "/x%3f/../{}", "/%/{}", "/%2/{}", "/%zz/{}", "/%u002e/{}", "/.../../{}", "/x/.../..//{}", "/*/../{}", "/%2a/../{}", "/~/../{}", "/x/y/../../{}",
        "/{}/..", "/{}/.", "/{}/../{}", "/{}//", "/{}/%2e", "/{}/%2e%2e", "/{}%2f", "/{}%2f..", "/{}%5c", "/{};", "/{};x", "/{};/x",
        "/{}%3b", "/{}%00", "/{}%00.html", "/{}%0a", "/{}%0d", "/{}%23", "/{}%3f", "/{}%3fx=y", "/{}%25", "/{}%252f", "/{}%", "/{}%a",
        "/{}%g0", "/{}/./", "/{}/x/..", "/{}/x/../", "/{}\\", "/{}\\..", "/{}/;/x", "/{}/..;/", "/{}#x", "/#/{}", "x/{}",
    ];
    for pattern in bad {
        out.insert(pattern.replace("{}", lane.trim_start_matches('/')));
    }
    // Inside of the path itself.
    for c in ["%2f", "%2F", "//", "/./", "\\", "%5c", "/;/", "/%2e/", "/x/../"] {
        if lane.matches('/').count() > 1 {
            let at = lane.rfind('/').unwrap();
            out.insert(format!("{}{c}{}", &lane[..at], last));
        }
    }
    for c in [
        "%00", "%0a", "%7f", ";", "\\", "%5c", "%2e%2e/", "%25", "%23", "%3f", "%3b",
    ] {
        let (a, b) = first.split_at(1);
        out.insert(lane.replacen(first, &format!("{a}{c}{b}"), 1));
    }
    out
}

#[tokio::test]
async fn every_spelling_of_a_path_gets_the_same_decision_at_every_lane() {
    let models = Upstream::good().await;
    let stream = Upstream::start(|_| Script::answer(200, &[], "spoken")).await;
    let gateway = gateway(&models, &stream).await;
    let mut conn = Conn::open(gateway.at).await;
    for lane in [
        "/v1/chat/completions",
        "/v1/models",
        "/key/generate",
        "/tts/v1",
        "/health",
        "/metrics",
        "/spend/logs",
    ] {
        let spellings = spellings(lane);
        assert!(spellings.len() >= 100, "{}", spellings.len());
        for path in spellings {
            for method in ["GET", "POST"] {
                let answer = conn.ask(method, &path, &[], b"").await;
                // The id of a model is looked up in a list and nowhere else; it may have dots and slashes.
                let is_id = path.starts_with("/v1/models/%2");
                let expected = if !is_id {
                    400
                } else if method == "GET" {
                    404
                } else {
                    405
                };
                assert_eq!(answer.status(), expected, "{method} {path}: {}", answer.text());
                if answer.head.header("connection") == Some("close") {
                    conn = Conn::open(gateway.at).await;
                }
            }
        }
    }
    assert_eq!(
        models.count() + stream.count(),
        0,
        "no odd path reached an upstream"
    );
    // Escapes that mean nothing else stay what they are, and go on as they came.
    let answer = conn.ask("GET", "/tts/a%20b/%C3%A4?x=%2F..%2f", &[], b"").await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(stream.last().target, "/tts/a%20b/%C3%A4?x=%2F..%2f");
}
