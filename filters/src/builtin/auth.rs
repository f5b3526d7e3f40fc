//! Who is calling: the master key, a virtual key, or nobody where the lane allows it; and whether the key
//! is one for this path.
//!
//! Keys are hashed first and looked up by hash; what a caller wrote never reaches a query. A key that was
//! rotated stands for its successor while its grace lasts, so that both spend from one account.

use crate::contract::cx::{Auth as LaneAuth, Cx, Purpose};
use crate::contract::ports::{Clock, Keys, Ports};
use crate::contract::{Fault, Filter, Needs, Refusal, Result, Stop, Verdict};
use crate::model::account::Kind;
use crate::model::key::{Caller, Holder, Key, KeyHash, MasterKey};
use crate::model::party::{self, Party};
use async_trait::async_trait;
use http::{HeaderMap, HeaderName, header, request};
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

/// Longer texts are no keys of anybody's.
const MAX_KEY_BYTES: usize = 1024;

/// How many rotations a grace may span.
const MOST_ROTATIONS: usize = 8;

/// Headers that may carry the key, besides LiteLLM's, which wins over all of them.
static KEY_HEADERS: [HeaderName; 3] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
];
static LITELLMS_HEADER: HeaderName = HeaderName::from_static("x-litellm-api-key");

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// A header that carries the key in place of all the usual ones (LiteLLM's
    /// `litellm_key_header_name`).
    pub header: Option<String>,
}

pub struct Auth {
    header: Option<HeaderName>,
    keys: Arc<dyn Keys>,
    clock: Arc<dyn Clock>,
    master: Option<MasterKey>,
}

impl Auth {
    /// `Err` when the configured header has a name that no header can have.
    pub fn new(settings: Settings, ports: &Ports) -> Result<Self, String> {
        let header = settings
            .header
            .map(|h| HeaderName::try_from(h.as_str()).map_err(|e| format!("header {h}: {e}")));
        Ok(Self {
            header: header.transpose()?,
            keys: Arc::clone(&ports.keys),
            clock: Arc::clone(&ports.clock),
            master: ports.master.clone(),
        })
    }

    /// The key that the head carries, without its scheme.
    fn presented<'h>(&self, headers: &'h HeaderMap) -> Result<&'h str> {
        match &self.header {
            None => presented(headers),
            Some(name) => {
                let value = headers.get(name).ok_or_else(|| {
                    Refusal::unauthorized(format!(
                        "Authentication Error, No api key passed in. Send it in {name}."
                    ))
                })?;
                let text = text(value, name.as_str())?;
                Ok(bearer(text).unwrap_or(text).trim())
            }
        }
    }

    async fn caller(&self, presented: &str) -> Result<Caller> {
        let hash = KeyHash::of(presented);
        if self.master.as_ref().is_some_and(|m| m.is(&hash)) {
            return Ok(Caller::Master { hash });
        }
        // Also what keeps a stored hash from being used as a key.
        if !presented.starts_with("sk-") || presented.len() > MAX_KEY_BYTES {
            return Err(Refusal::unauthorized(
                "Authentication Error, a virtual key is expected: it starts with \"sk-\". \
                 Ask an admin for one, or make one with POST /key/generate.",
            )
            .into());
        }
        let mut key = self.find(&hash).await?;
        for _ in 0..MOST_ROTATIONS {
            let Some(next) = key.rotated_to().copied() else {
                self.standing(&key)?;
                return Ok(Caller::Key(by_old_secret(key, &hash)));
            };
            // Its own block counts as well: it may be the secret that leaked.
            if key.blocked {
                return Err(blocked());
            }
            let until = key.extra.get("rotated_until_micros").and_then(Value::as_i64);
            if until.is_none_or(|at| at <= self.clock.now_micros()) {
                return Err(expired(&key));
            }
            key = self.find(&next).await?;
        }
        Err(expired(&key))
    }

    /// A key that was issued.
    async fn find(&self, hash: &KeyHash) -> Result<Arc<Holder>> {
        let key = match self.keys.cached(hash) {
            Some(known) => known,
            None => self.keys.find(hash).await.map_err(|e| {
                Fault::unavailable(
                    "Keys cannot be looked up right now because the database is away. Try again in a few seconds.",
                    e,
                )
            })?,
        };
        key.ok_or_else(|| {
            Refusal::new(
                401,
                "token_not_found_in_db",
                "Authentication Error, Invalid API key provided. It was never issued here, or it was deleted.",
            )
            .param("key")
            .header("www-authenticate", "Bearer")
            .into()
        })
    }

    fn standing(&self, key: &Holder) -> Result<()> {
        if key.blocked {
            return Err(blocked());
        }
        for party in [&key.team, &key.organization, &key.user, &key.member]
            .into_iter()
            .flatten()
        {
            if party.blocked {
                return Err(blocked_party(party));
            }
        }
        if key.expires_micros.is_some_and(|at| at <= self.clock.now_micros()) {
            return Err(expired(key));
        }
        Ok(())
    }
}

/// Notes it where somebody came with a secret that has a successor: it must not outlive its grace.
fn by_old_secret(key: Arc<Holder>, presented: &KeyHash) -> Arc<Holder> {
    if key.hash == *presented {
        return key;
    }
    let mut noted = Holder::clone(&key);
    noted.by_old_secret = true;
    Arc::new(noted)
}

fn blocked() -> Stop {
    Refusal::unauthorized(
        "Authentication Error, Key is blocked. Update via `/key/unblock` if you are an admin.",
    )
    .into()
}

fn blocked_party(party: &Party) -> Stop {
    let (name, route) = match party.kind {
        Kind::Team => ("Team", "/team/unblock"),
        Kind::Organization => ("Organization", "/organization/update"),
        Kind::Member => ("Team member", "/team/member_update"),
        _ => ("User", "/user/update"),
    };
    // A member's id names both sides with a tab in between.
    let id = party.id.replace('\t', " ");
    Refusal::unauthorized(format!(
        "Authentication Error, {name}={id} is blocked. Update via `{route}` if you are an admin."
    ))
    .into()
}

fn expired(key: &Key) -> Stop {
    Refusal::new(
        401,
        "expired_key",
        format!(
            "Authentication Error - Expired Key. {} has expired; ask for a new one.",
            key.key_name
        ),
    )
    .param(key.key_name.clone())
    .into()
}

/// Whether a key's `allowed_routes` let it call this path. None at all allow everything.
fn may_call(key: &Holder, path: &str, purpose: Purpose) -> Result<()> {
    let allowed = key.allowed_routes();
    let lets = |route: &String| covers(route, path, purpose);
    let passed_through = || match purpose {
        Purpose::Model => party::texts(&key.extra, "allowed_passthrough_routes"),
        _ => Vec::new(),
    };
    if allowed.is_empty() || allowed.iter().any(lets) || passed_through().iter().any(lets) {
        return Ok(());
    }
    Err(Refusal::new(
        403,
        "auth_error",
        format!(
            "Virtual key is not allowed to call this route. Only allowed to call routes: [{}]. Tried to call \
             route: {path}",
            allowed.join(", ")
        ),
    )
    .into())
}

/// One entry: a group of LiteLLM's, a path, or the beginning of paths with `*`. What only shows is a part
/// of management.
fn covers(route: &str, path: &str, purpose: Purpose) -> bool {
    match route {
        "llm_api_routes" | "openai_routes" => purpose == Purpose::Model,
        "info_routes" => purpose == Purpose::Info,
        "management_routes" => matches!(purpose, Purpose::Management | Purpose::Info),
        _ => match route.strip_suffix('*') {
            Some(start) => path.starts_with(start) || start.strip_suffix('/') == Some(path),
            None => path == route,
        },
    }
}

#[async_trait]
impl Filter for Auth {
    fn needs(&self) -> Needs {
        Needs {
            request: true,
            ..Needs::NONE
        }
    }

    async fn request_filter(&self, cx: &mut Cx, head: &request::Parts) -> Result<Verdict> {
        let keyless = match cx.auth {
            LaneAuth::Open => true,
            LaneAuth::Internal => cx.internal,
            LaneAuth::Required => false,
        };
        // On a lane that wants no key, a key-like header is the upstream's business or a leftover;
        // judging it would make a keyless call fail for what it need not have sent.
        if !keyless {
            let caller = self.caller(self.presented(&head.headers)?).await?;
            if let Some(key) = caller.key() {
                may_call(key, head.uri.path(), cx.purpose)?;
            }
            cx.caller = caller;
        }
        Ok(Verdict::Continue)
    }
}

/// The key in the usual headers.
fn presented(headers: &HeaderMap) -> Result<&str> {
    if let Some(value) = headers.get(&LITELLMS_HEADER) {
        let text = text(value, LITELLMS_HEADER.as_str())?;
        return Ok(bearer(text).unwrap_or(text).trim());
    }
    let mut found: Option<(&HeaderName, &str)> = None;
    for name in &KEY_HEADERS {
        for value in headers.get_all(name) {
            let text = text(value, name.as_str())?;
            let key = if *name == header::AUTHORIZATION {
                bearer(text).map(str::trim).filter(|k| !k.is_empty()).ok_or_else(|| {
                    Refusal::unauthorized(
                        "Authentication Error, Malformed API Key passed in. Ensure Key has `Bearer ` prefix.",
                    )
                })?
            } else {
                bearer(text).unwrap_or(text).trim()
            };
            match found {
                Some((other, k)) if k != key => {
                    return Err(Refusal::unauthorized(format!(
                        "Authentication Error, the headers {other} and {name} carry two different keys. Send one."
                    ))
                    .into());
                }
                _ => found = Some((name, key)),
            }
        }
    }
    match found {
        Some((_, key)) if !key.is_empty() => Ok(key),
        _ => Err(Refusal::unauthorized(
            "Authentication Error, No api key passed in. Send it as `Authorization: Bearer sk-...`.",
        )
        .into()),
    }
}

fn bearer(text: &str) -> Option<&str> {
    let (scheme, rest) = text.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("basic")).then_some(rest)
}

fn text<'a>(value: &'a http::HeaderValue, name: &str) -> Result<&'a str> {
    value.to_str().map_err(|_| {
        Refusal::unauthorized(format!(
            "Authentication Error, the header {name} holds bytes that no key has. Check how the key was copied."
        ))
        .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit;

    fn check(headers: &[(&str, &str)], want: std::result::Result<&str, &str>) {
        let mut map = HeaderMap::new();
        for (n, v) in headers {
            map.append(http::HeaderName::try_from(*n).unwrap(), v.parse().unwrap());
        }
        match (presented(&map), want) {
            (Ok(got), Ok(want)) => assert_eq!(got, want, "{headers:?}"),
            (Err(stop), Err(part)) => {
                assert_eq!(stop.status(), 401);
                assert!(
                    stop.shown().contains(part),
                    "{:?} should say {part}",
                    stop.shown()
                );
            }
            (got, want) => panic!("{headers:?}: got {got:?}, want {want:?}"),
        }
    }

    #[test]
    fn keys_are_found_where_clients_put_them() {
        check(&[("authorization", "Bearer sk-a")], Ok("sk-a"));
        check(&[("authorization", "bearer sk-a")], Ok("sk-a"));
        check(&[("x-api-key", "sk-a")], Ok("sk-a"));
        check(&[("api-key", "sk-a")], Ok("sk-a"));
        check(
            &[
                ("x-litellm-api-key", "Bearer sk-a"),
                ("authorization", "nonsense"),
            ],
            Ok("sk-a"),
        );
        check(
            &[("authorization", "Bearer sk-a"), ("x-api-key", "sk-a")],
            Ok("sk-a"),
        );
        check(
            &[("authorization", "Bearer sk-a"), ("x-api-key", "sk-b")],
            Err("authorization and x-api-key"),
        );
        check(&[("authorization", "sk-a")], Err("Malformed"));
        check(&[("authorization", "Bearer ")], Err("Malformed"));
        check(&[("x-api-key", "")], Err("No api key"));
        check(&[], Err("No api key"));
        check(&[("cookie", "sk-a")], Err("No api key"));
    }

    #[tokio::test]
    async fn standing_decides() {
        let kit = testkit::Kit::default();
        let mut key = testkit::key("sk-good");
        kit.keys.insert(key.clone());
        key.hash = KeyHash::of("sk-blocked");
        key.blocked = true;
        kit.keys.insert(key.clone());
        key.hash = KeyHash::of("sk-expired");
        key.blocked = false;
        key.expires_micros = Some(kit.clock.now_micros());
        kit.keys.insert(key);
        let auth = Auth::new(Settings::default(), &kit.ports()).unwrap();
        let status = |k: &'static str| {
            let auth = &auth;
            async move {
                auth.caller(k)
                    .await
                    .map(|c| c.is_admin())
                    .map_err(|s| (s.status(), s.kind()))
            }
        };
        assert_eq!(status(testkit::MASTER).await, Ok(true));
        assert_eq!(status("sk-good").await, Ok(false));
        assert_eq!(status("sk-unknown").await, Err((401, "token_not_found_in_db")));
        assert_eq!(status("sk-blocked").await, Err((401, "auth_error")));
        assert_eq!(status("sk-expired").await, Err((401, "expired_key")));
        let hash = KeyHash::of("sk-good").hex();
        assert_eq!(
            auth.caller(&hash).await.map(|_| ()).map_err(|s| s.status()),
            Err(401),
            "a stored hash is no key"
        );
        kit.keys.away();
        assert_eq!(
            status("sk-good").await,
            Ok(false),
            "a known key goes on while the store is away"
        );
        assert_eq!(
            status("sk-unknown2").await,
            Err((503, "service_unavailable_error"))
        );
    }

    fn head(key: &str, path: &str) -> request::Parts {
        let request = http::Request::get(path).header("authorization", format!("Bearer {key}"));
        request.body(()).unwrap().into_parts().0
    }

    #[tokio::test]
    async fn a_rotated_key_stands_for_its_successor_while_it_may() {
        let kit = testkit::Kit::default();
        kit.clock.set(100);
        let chain = |text: &str, to: Option<&str>, until: i64| {
            let mut key = testkit::key(text);
            if let Some(to) = to {
                key.extra
                    .insert("rotated_to".into(), KeyHash::of(to).hex().into());
                key.extra.insert("rotated_until_micros".into(), until.into());
            }
            kit.keys.insert(key);
        };
        chain("sk-1", Some("sk-2"), 200);
        chain("sk-2", Some("sk-3"), 150);
        chain("sk-3", None, 0);
        chain("sk-over", Some("sk-3"), 100);
        chain("sk-lost", Some("sk-gone"), 200);
        chain("sk-round", Some("sk-round"), 200);
        let auth = Auth::new(Settings::default(), &kit.ports()).unwrap();
        let who = async |key: &str| auth.caller(key).await.map(|c| c.key_hash()).map_err(|s| s.kind());
        for key in ["sk-1", "sk-2", "sk-3"] {
            assert_eq!(who(key).await, Ok(Some(KeyHash::of("sk-3"))), "{key}");
        }
        assert_eq!(who("sk-over").await, Err("expired_key"));
        assert_eq!(who("sk-lost").await, Err("token_not_found_in_db"));
        assert_eq!(who("sk-round").await, Err("expired_key"));
        kit.clock.set(150);
        assert_eq!(who("sk-1").await, Err("expired_key"), "the second grace is over");
        assert_eq!(who("sk-3").await, Ok(Some(KeyHash::of("sk-3"))));
    }

    #[tokio::test]
    async fn whoever_is_above_a_key_may_be_blocked() {
        let kit = testkit::Kit::default();
        let auth = Auth::new(Settings::default(), &kit.ports()).unwrap();
        fn party(kind: Kind) -> Option<Arc<Party>> {
            let fields = serde_json::json!({"blocked": true});
            Some(Arc::new(Party::new(
                kind,
                "red",
                fields.as_object().unwrap().clone(),
            )))
        }
        let plain = |change: fn(&mut Holder)| {
            let mut holder = Holder::alone(testkit::key("sk-a"));
            change(&mut holder);
            holder
        };
        for (holder, says) in [
            (
                plain(|h| h.team = party(Kind::Team)),
                "Team=red is blocked. Update via `/team/unblock`",
            ),
            (plain(|h| h.user = party(Kind::User)), "User=red is blocked"),
            (
                plain(|h| h.organization = party(Kind::Organization)),
                "Organization=red is blocked",
            ),
        ] {
            let stop = auth.standing(&holder).unwrap_err();
            assert_eq!((stop.status(), stop.kind()), (401, "auth_error"));
            assert!(stop.shown().contains(says), "{}", stop.shown());
        }
        auth.standing(&plain(|_| {})).unwrap();
    }

    #[tokio::test]
    async fn keys_keep_to_their_routes() {
        let kit = testkit::Kit::default();
        let auth = Auth::new(Settings::default(), &kit.ports()).unwrap();
        use Purpose::*;
        for (routes, path, purpose, lets) in [
            (&[][..], "/key/generate", Management, true),
            (&["llm_api_routes"], "/v1/chat/completions", Model, true),
            (&["llm_api_routes"], "/tts/x", Model, true),
            (&["llm_api_routes"], "/key/info", Info, false),
            (&["llm_api_routes"], "/key/generate", Management, false),
            (&["info_routes"], "/key/info", Info, true),
            (&["info_routes"], "/v1/models", Model, false),
            (&["info_routes"], "/key/generate", Management, false),
            (&["management_routes"], "/key/generate", Management, true),
            (&["management_routes"], "/key/info", Info, true),
            (&["management_routes"], "/v1/chat/completions", Model, false),
            (&["/v1/embeddings"], "/v1/embeddings", Model, true),
            (&["/v1/embeddings"], "/v1/embeddings/x", Model, false),
            (&["/tts/*"], "/tts/v1/speech", Model, true),
            (&["/tts/*"], "/tts", Model, true),
            (&["/tts/*"], "/ttsx", Model, false),
            (&["*"], "/key/generate", Management, true),
            (&["/nothing", "info_routes"], "/key/info", Info, true),
        ] {
            let secret = format!("sk-{}{path}", routes.join("+"));
            let mut key = testkit::key(&secret);
            key.extra.insert("allowed_routes".into(), routes.into());
            kit.keys.insert(key);
            let mut cx = kit.cx();
            cx.purpose = purpose;
            let got = auth.request_filter(&mut cx, &head(&secret, path)).await;
            assert_eq!(got.is_ok(), lets, "{routes:?} {path}");
            if let Err(stop) = got {
                assert_eq!(stop.status(), 403);
                assert!(
                    stop.shown().ends_with(&format!("Tried to call route: {path}")),
                    "{}",
                    stop.shown()
                );
                assert!(cx.caller.key().is_none(), "a refused key is nobody's");
            }
        }
    }

    #[tokio::test]
    async fn an_old_secret_is_known_as_one() {
        let kit = testkit::Kit::default();
        let new = testkit::key("sk-new");
        let mut old = testkit::key("sk-old");
        old.extra.insert("rotated_to".into(), new.hash.hex().into());
        let until = kit.clock.now_micros() + 1;
        old.extra.insert("rotated_until_micros".into(), until.into());
        kit.keys.insert(new);
        kit.keys.insert(old);
        let auth = Auth::new(Settings::default(), &kit.ports()).unwrap();
        for (secret, noted) in [("sk-new", false), ("sk-old", true)] {
            let caller = auth.caller(secret).await.unwrap();
            let key = caller.key().unwrap();
            assert_eq!((key.hash, key.by_old_secret), (KeyHash::of("sk-new"), noted));
        }
    }
}
