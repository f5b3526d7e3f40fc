//! Budgets and limits end to end: exact on one gateway, within a bound on two that share Redis, and still
//! there when Redis is not.

use crate::kit::client::{Answer, Conn};
use crate::kit::gateway::{Gateway, Setup, plain_key, rows};
use crate::kit::upstream::{Gate, Script, Upstream, delta, usage};
use crate::kit::{postgres, redis, until};
use filters::model::key::{Key, KeyHash};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tollkeeper::store::{Change, Doc, SpendFilter, Store, Table};

const KEY: &str = "sk-limited-key-0001";
/// What a call of the priced model costs, nano-dollars: three tokens of the answer.
const COST: i64 = 3_000_000;
/// Three and a half calls.
const BUDGET: i64 = COST * 7 / 2;

fn priced() -> Value {
    json!({"input_cost_per_token": 0, "output_cost_per_token": 0.001})
}

async fn upstream() -> Upstream {
    Upstream::start(|seen| {
        if seen.target.ends_with("/embeddings") {
            let usage = json!({"prompt_tokens": 7, "total_tokens": 7});
            let data = json!([{"object": "embedding", "index": 0, "embedding": [0.5]}]);
            return Script::json(
                200,
                &json!({"object": "list", "model": "up", "data": data, "usage": usage}),
            );
        }
        match seen.json()["stream"].as_bool() {
            Some(true) => Script::sse(&[&delta("a"), &delta("b"), &usage(7, 3), "[DONE]"]).end(),
            _ => Script::chat("hello"),
        }
    })
    .await
}

fn limited(text: &str, fields: Value) -> Key {
    let mut key = plain_key(text);
    key.user_id = None;
    if let Value::Object(fields) = fields {
        key.max_budget_nanos = fields
            .get("max_budget")
            .and_then(Value::as_f64)
            .map(|d| (d * 1e9) as i64);
        key.extra = fields;
    }
    key
}

async fn insert(gateway: &Gateway, key: &Key) {
    gateway.store().await.insert_key(key).await.unwrap();
}

async fn call_at(gateway: &Gateway, path: &str, key: &str, body: &Value) -> Answer {
    let who = format!("Bearer {key}");
    let mut conn = Conn::open(gateway.at).await;
    conn.ask(
        "POST",
        path,
        &[("authorization", &who)],
        body.to_string().as_bytes(),
    )
    .await
}

async fn chat(gateway: &Gateway, key: &str, model: &str) -> Answer {
    let body = json!({"model": model, "messages": [], "max_tokens": 3});
    call_at(gateway, "/v1/chat/completions", key, &body).await
}

/// Statuses of calls that are made at once, over these gateways in turn.
async fn crowd(gateways: &[Arc<Gateway>], n: usize, path: &'static str, body: Value) -> BTreeMap<u16, usize> {
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..n {
        let gateway = Arc::clone(&gateways[i % gateways.len()]);
        let body = body.clone();
        calls.spawn(async move {
            let answer = call_at(&gateway, path, KEY, &body).await;
            if answer.status() != 200 {
                assert_eq!(answer.json()["error"]["type"], "budget_exceeded", "{answer:?}");
                assert_eq!(answer.head.header("x-should-retry"), Some("false"));
            }
            answer.status()
        });
    }
    let mut statuses = BTreeMap::new();
    for status in calls.join_all().await {
        *statuses.entry(status).or_insert(0) += 1;
    }
    statuses
}

/// What the key's rows sum up to once all served calls are there.
async fn spent(store: &dyn Store, served: usize) -> i64 {
    let mut sum = 0;
    until("the served calls are in the ledger", async || {
        let rows = rows(store, SpendFilter::default()).await;
        sum = rows.iter().map(|r| r.spend_nanos).sum();
        rows.iter().filter(|r| r.http_status == 200).count() >= served
    })
    .await;
    sum
}

async fn against_a_budget(n: usize, path: &'static str, body: Value, most: usize) {
    let upstream = upstream().await;
    let gateway = Setup::new()
        .deployment("small", &upstream.base(), priced())
        .deployment(
            "embed",
            &upstream.base(),
            // Seven tokens of what is read.
            json!({"input_cost_per_token": COST as f64 / 7e9, "output_cost_per_token": 0}),
        )
        .setting("limits", json!({"connections_per_address": 2_000}))
        .start()
        .await;
    insert(
        &gateway,
        &limited(KEY, json!({"max_budget": BUDGET as f64 / 1e9})),
    )
    .await;
    let gateway = Arc::new(gateway);
    let statuses = crowd(&[Arc::clone(&gateway)], n, path, body).await;
    let served = statuses.get(&200).copied().unwrap_or(0);
    assert!((1..=most).contains(&served), "{statuses:?}");
    assert_eq!(
        served + statuses.get(&429).copied().unwrap_or(0),
        n,
        "{statuses:?}"
    );
    let spent = spent(&*gateway.store().await, served).await;
    assert!(spent <= BUDGET + COST + 10, "{spent} of {BUDGET}");
    assert_eq!(upstream.count(), served, "who is refused costs nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_chats_pass_a_budget_by_one_at_most() {
    let body = json!({"model": "small", "messages": [], "max_tokens": 3});
    against_a_budget(200, "/v1/chat/completions", body, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_pass_a_budget_by_one_at_most() {
    let body = json!({"model": "small", "messages": [], "max_tokens": 3, "stream": true});
    against_a_budget(1000, "/v1/chat/completions", body, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_embeddings_pass_a_budget_by_one_at_most() {
    let body = json!({"model": "embed", "input": "seven words or more make seven tokens or more of it"});
    against_a_budget(200, "/v1/embeddings", body, 4).await;
}

async fn put(store: &dyn Store, table: Table, id: &str, fields: Value) {
    let Value::Object(fields) = fields else { panic!() };
    let doc = Doc {
        id: id.into(),
        fields,
        version: 0,
        created_at_micros: 0,
        updated_at_micros: 0,
    };
    store
        .change(&[Change::Put { table, doc: &doc }], &[])
        .await
        .unwrap();
}

#[tokio::test]
async fn every_subject_limits_requests() {
    let upstream = upstream().await;
    let gateway = Setup::new()
        .model("small", &upstream)
        .setting("limits", json!({"models": {"small": {"rpm": 9}}}))
        .start()
        .await;
    let store = gateway.store().await;
    put(&*store, Table::User, "uma", json!({"rpm_limit": 2})).await;
    let members = json!([{"user_id": "mia", "role": "user", "rpm_limit": 1}]);
    put(&*store, Table::Team, "tea", json!({"rpm_limit": 2})).await;
    put(
        &*store,
        Table::Team,
        "two",
        json!({"members_with_roles": members}),
    )
    .await;
    put(&*store, Table::Organization, "org", json!({"budget_id": "b1"})).await;
    put(&*store, Table::Budget, "b1", json!({"rpm_limit": 1})).await;
    let with = |text: &str, user: Option<&str>, team: Option<&str>, fields: Value| {
        let mut key = limited(text, fields);
        (key.user_id, key.team_id) = (user.map(Into::into), team.map(Into::into));
        key
    };
    for (key, most, descriptor, value) in [
        (
            with("sk-of-a-user-00001", Some("uma"), None, json!({})),
            2,
            "user",
            "uma",
        ),
        (
            with("sk-of-a-team-00001", None, Some("tea"), json!({})),
            2,
            "team",
            "tea",
        ),
        (
            with("sk-of-a-member-001", Some("mia"), Some("two"), json!({})),
            1,
            "team_member",
            "two:mia",
        ),
        (
            with(
                "sk-of-a-key-000001",
                None,
                None,
                json!({"model_rpm_limit": {"small": 1}}),
            ),
            1,
            "model_per_key",
            "",
        ),
        (
            with(
                "sk-of-an-org-00001",
                None,
                None,
                json!({"organization_id": "org"}),
            ),
            1,
            "organization",
            "org",
        ),
    ] {
        store.insert_key(&key).await.unwrap();
        let text = key_text(&key);
        for n in 0..most {
            let answer = chat(&gateway, text, "small").await;
            assert_eq!(answer.status(), 200, "{descriptor} {n}: {}", answer.text());
            let left = format!("x-ratelimit-{descriptor}-remaining-requests");
            assert_eq!(
                answer.head.header(&left),
                Some((most - n - 1).to_string().as_str()),
                "{answer:?}"
            );
        }
        let answer = chat(&gateway, text, "small").await;
        assert_eq!(answer.status(), 429);
        let told = answer.error();
        assert!(
            told.starts_with(&format!("Rate limit exceeded for {descriptor}: {value}")),
            "{told}"
        );
        assert_eq!(answer.json()["error"]["type"], "throttling_error");
    }
    // All of these together were seven calls; the model takes nine.
    insert(&gateway, &limited(KEY, json!({}))).await;
    for _ in 0..2 {
        assert_eq!(chat(&gateway, KEY, "small").await.status(), 200);
    }
    let answer = chat(&gateway, KEY, "small").await;
    assert_eq!(answer.status(), 429);
    let told = answer.error();
    assert!(told.contains("for model: small"), "{told}");
}

/// The keys of these tests are made of their text, which a stored key does not hold.
fn key_text(key: &Key) -> &'static str {
    [
        "sk-of-a-user-00001",
        "sk-of-a-team-00001",
        "sk-of-a-member-001",
        "sk-of-a-key-000001",
        "sk-of-an-org-00001",
    ]
    .into_iter()
    .find(|t| KeyHash::of(t) == key.hash)
    .unwrap()
}

#[tokio::test]
async fn headers_tell_how_limits_stand() {
    let upstream = upstream().await;
    let gateway = Setup::new().model("small", &upstream).start().await;
    insert(
        &gateway,
        &limited(
            KEY,
            json!({"rpm_limit": 3, "tpm_limit": 1000, "max_parallel_requests": 5}),
        ),
    )
    .await;
    let first = chat(&gateway, KEY, "small").await;
    assert_eq!(first.status(), 200);
    for (name, value) in [
        ("x-ratelimit-limit-requests", "3"),
        ("x-ratelimit-remaining-requests", "2"),
        ("x-ratelimit-limit-tokens", "1000"),
        ("x-ratelimit-api_key-remaining-requests", "2"),
        ("x-ratelimit-api_key-limit-max_parallel_requests", "5"),
        ("x-ratelimit-api_key-remaining-max_parallel_requests", "4"),
    ] {
        assert_eq!(first.head.header(name), Some(value), "{name}: {first:?}");
    }
    assert!(
        first
            .head
            .header("ratelimit")
            .unwrap()
            .starts_with("\"api_key-requests\";r=2;t=")
    );
    let second = chat(&gateway, KEY, "small").await;
    let left: u64 = second
        .head
        .header("x-ratelimit-remaining-tokens")
        .unwrap()
        .parse()
        .unwrap();
    // The first call's ten tokens, and what is set aside for this one.
    assert!((900..990).contains(&left), "{left}");
    assert_eq!(chat(&gateway, KEY, "small").await.status(), 200);
    let refused = chat(&gateway, KEY, "small").await;
    assert_eq!(refused.status(), 429);
    assert!(
        refused
            .error()
            .contains("Limit type: requests. Current limit: 3, Remaining: 0")
    );
    assert!(
        refused.error().contains(&KeyHash::of(KEY).hex()),
        "the hash, never the key"
    );
    assert!(!refused.text().contains(KEY));
    let seconds: u64 = refused.head.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=61).contains(&seconds));
    assert!(refused.head.header("retry-after-ms").is_some());
    assert_eq!(refused.head.header("rate_limit_type"), Some("requests"));
    assert_eq!(refused.head.header("x-ratelimit-remaining-requests"), Some("0"));
    let open = chat(&gateway, crate::kit::gateway::MASTER, "small").await;
    assert!(
        open.head.header("x-ratelimit-limit-requests").is_none() && open.head.header("ratelimit").is_none(),
        "where nothing is limited, nothing is said"
    );
}

#[tokio::test]
async fn calls_in_flight_are_counted_until_they_end() {
    let gate = Gate::new();
    let held = gate.clone();
    let upstream = Upstream::start(move |_| {
        Script::sse(&[&delta("a")])
            .wait(&held)
            .events(&[&usage(1, 1), "[DONE]"])
            .end()
    })
    .await;
    let gateway = Setup::new()
        .model("small", &upstream)
        .deployment("narrow", &upstream.base(), json!({"max_parallel_requests": 1}))
        .start()
        .await;
    insert(&gateway, &limited(KEY, json!({"max_parallel_requests": 2}))).await;
    let who = format!("Bearer {KEY}");
    let stream = async |model: &str, who: &str| {
        let mut conn = Conn::open(gateway.at).await;
        let body = json!({"model": model, "messages": [], "stream": true}).to_string();
        let request = crate::kit::client::request(
            "POST",
            "/v1/chat/completions",
            &[("authorization", who)],
            body.as_bytes(),
        );
        conn.send(&request).await;
        let head = conn.head().await;
        (conn, head)
    };
    let (mut a, head) = stream("small", &who).await;
    assert_eq!(head.status, 200);
    let (b, head) = stream("small", &who).await;
    assert_eq!(head.status, 200);
    let (_, head) = stream("small", &who).await;
    assert_eq!(head.status, 429);
    assert_eq!(head.header("rate_limit_type"), Some("max_parallel_requests"));
    // One leaves in the middle: its place is free as soon as that is noticed.
    drop(b);
    until("the place of the call that left is free", async || {
        let (_c, head) = stream("small", &who).await;
        head.status == 200
    })
    .await;
    gate.open();
    let (_, whole) = a.reader.rest().await;
    assert!(whole);

    let master = format!("Bearer {}", crate::kit::gateway::MASTER);
    let (_d, head) = stream("narrow", &master).await;
    assert_eq!(head.status, 200);
    let answer = chat(&gateway, crate::kit::gateway::MASTER, "narrow").await;
    assert_eq!(answer.status(), 429, "the deployment takes one at a time");
    assert!(
        answer
            .error()
            .contains("No deployments available for selected model, Try again in 1 seconds.")
    );
    assert_eq!(answer.head.header("retry-after"), Some("1"));
}

#[tokio::test]
async fn a_full_deployment_is_passed_over() {
    let (one, two) = (upstream().await, upstream().await);
    let gateway = Setup::new()
        .deployment("both", &one.base(), json!({"id": "one", "rpm": 2, "order": 1}))
        .deployment("both", &two.base(), json!({"id": "two", "rpm": 1, "order": 2}))
        .start()
        .await;
    let begun = Instant::now();
    for _ in 0..3 {
        assert_eq!(
            chat(&gateway, crate::kit::gateway::MASTER, "both").await.status(),
            200
        );
    }
    assert_eq!((one.count(), two.count()), (2, 1));
    let answer = chat(&gateway, crate::kit::gateway::MASTER, "both").await;
    assert_eq!(answer.status(), 429);
    let seconds: u64 = answer.head.header("retry-after").unwrap().parse().unwrap();
    // A minute after the first of them.
    let since = begun.elapsed().as_secs();
    assert!(seconds <= 61 && seconds + since >= 58, "{seconds} after {since}");
}

#[tokio::test]
async fn a_call_may_wait_for_its_place() {
    let gate = Gate::new();
    let held = gate.clone();
    let upstream = Upstream::start(move |seen| match seen.n {
        0 => Script::nothing().wait(&held).then(chat_step()),
        _ => Script::chat("hello"),
    })
    .await;
    let gateway = Setup::new()
        .model("small", &upstream)
        .setting("limits", json!({"queue": {"max_wait": "50s", "max_waiting": 5}}))
        .start()
        .await;
    insert(&gateway, &limited(KEY, json!({"max_parallel_requests": 1}))).await;
    let gateway = Arc::new(gateway);
    let call = || {
        let gateway = Arc::clone(&gateway);
        tokio::spawn(async move { chat(&gateway, KEY, "small").await })
    };
    let first = call();
    upstream.request(0).await;
    let second = call();
    until("somebody waits", async || {
        // A third asks for another model, which is not there, and is refused before the queue.
        let metrics = crate::kit::client::ask(&gateway, "GET", "/metrics", &[], "").await;
        metrics.text().contains("tollkeeper_limited_calls_waiting 1")
    })
    .await;
    gate.open();
    assert_eq!(first.await.unwrap().status(), 200);
    let second = second.await.unwrap();
    assert_eq!(second.status(), 200);
    assert_eq!(second.head.header("x-tollkeeper-queue-position"), Some("1"));
}

fn chat_step() -> crate::kit::upstream::Step {
    let body = json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "up",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "late"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    })
    .to_string();
    let head = format!(
        "HTTP/1.1 200 Scripted\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    crate::kit::upstream::Step::Send(head.into())
}

async fn replicas(
    postgres: &postgres::Server,
    redis: &redis::Server,
    upstream: &Upstream,
) -> Vec<Arc<Gateway>> {
    let mut gateways = Vec::new();
    let database = postgres.database();
    for _ in 0..2 {
        let gateway = Setup::new()
            .deployment("small", &upstream.base(), priced())
            .setting("redis", json!({"url": redis.url()}))
            .setting("limits", json!({"connections_per_address": 2_000}))
            .database(&database)
            .start()
            .await;
        gateways.push(Arc::new(gateway));
    }
    gateways
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_keep_one_budget_and_one_limit() {
    let postgres = postgres::Server::start();
    for _ in 0..4 {
        if keeps_one_budget_and_one_limit(&postgres).await {
            return;
        }
    }
    panic!("Redis was away each time");
}

/// False = the machine was so busy that Redis was found away, which allows for more.
async fn keeps_one_budget_and_one_limit(postgres: &postgres::Server) -> bool {
    let redis = redis::Server::start();
    let upstream = upstream().await;
    let gateways = replicas(postgres, &redis, &upstream).await;
    insert(
        &gateways[0],
        &limited(KEY, json!({"max_budget": BUDGET as f64 / 1e9})),
    )
    .await;
    let body = json!({"model": "small", "messages": [], "max_tokens": 3});
    let statuses = crowd(&gateways, 1000, "/v1/chat/completions", body).await;
    let served = statuses.get(&200).copied().unwrap_or(0);
    let spent = spent(&*gateways[0].store().await, served).await;

    let other = "sk-limited-key-0002";
    insert(&gateways[0], &limited(other, json!({"rpm_limit": 10}))).await;
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..60 {
        let gateway = Arc::clone(&gateways[i % 2]);
        calls.spawn(async move { chat(&gateway, other, "small").await.status() });
    }
    let let_in = calls.join_all().await.into_iter().filter(|s| *s == 200).count();
    for gateway in &gateways {
        if !gateway.has_had_redis().await {
            return false;
        }
    }
    // One call over on each replica, as docs/limits.md says.
    assert!((3..=5).contains(&served), "{statuses:?}");
    assert!(spent <= BUDGET + 2 * COST, "{spent} of {BUDGET}");
    assert!((5..=10).contains(&let_in), "{let_in} of 10 requests a minute");
    true
}

/// What Redis takes the store to have summed up, nano-dollars: of the account of which that is most.
fn landed_in(redis: &redis::Server) -> i64 {
    let client = ::redis::Client::open(redis.url()).unwrap();
    let mut line = client.get_connection().unwrap();
    let accounts: Vec<String> = ::redis::cmd("KEYS").arg("*:money:*").query(&mut line).unwrap();
    let landed = accounts.iter().map(|name| {
        let landed = ::redis::cmd("HGET").arg(name).arg("base").query(&mut line);
        landed.unwrap_or(Some(0)).unwrap_or(0)
    });
    landed.max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_made_again_owes_nothing_on_any_replica() {
    let (postgres, redis) = (postgres::Server::start(), redis::Server::start());
    let upstream = upstream().await;
    let gateways = replicas(&postgres, &redis, &upstream).await;
    let key = limited(KEY, json!({"max_budget": BUDGET as f64 / 1e9}));
    insert(&gateways[0], &key).await;
    let mut served = 0;
    for gateway in &gateways {
        until("the budget is used up", async || {
            let status = chat(gateway, KEY, "small").await.status();
            served += usize::from(status == 200);
            status == 429
        })
        .await;
    }
    let store = gateways[0].store().await;
    // What lands after the key was made again is the new one's: it has the same name.
    let spent = spent(&*store, served).await;
    // Said as landed, and not only as on its way.
    until("Redis knows what was spent", async || landed_in(&redis) >= spent).await;
    let deleted = [key.hash];
    store.change(&[Change::DeleteKeys(&deleted)], &[]).await.unwrap();
    insert(&gateways[0], &key).await;
    for gateway in &gateways {
        until("the key that was made again is served", async || {
            chat(gateway, KEY, "small").await.status() == 200
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_each_replica_goes_on_by_itself() {
    let (postgres, mut redis) = (postgres::Server::start(), redis::Server::start());
    let upstream = upstream().await;
    let gateways = replicas(&postgres, &redis, &upstream).await;
    insert(
        &gateways[0],
        &limited(
            KEY,
            json!({"max_budget": 1000 * COST / 1_000_000_000, "rpm_limit": 100}),
        ),
    )
    .await;
    insert(
        &gateways[0],
        &limited("sk-limited-key-0003", json!({"max_budget": 0.0})),
    )
    .await;
    for gateway in &gateways {
        assert_eq!(chat(gateway, KEY, "small").await.status(), 200);
    }
    redis.kill();
    for gateway in &gateways {
        let mut took = Vec::new();
        for _ in 0..10 {
            let begun = Instant::now();
            let answer = chat(gateway, KEY, "small").await;
            assert_eq!(answer.status(), 200, "nobody is thrown out: {}", answer.text());
            took.push(begun.elapsed());
        }
        // The machine may be busy with something else now and then, and not all the time.
        took.sort();
        assert!(took[5] < Duration::from_secs(2), "{took:?}");
        let answer = chat(gateway, "sk-limited-key-0003", "small").await;
        assert_eq!(answer.status(), 429, "and nobody is let in");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_deleted_on_one_replica_is_refused_on_the_other_within_a_second() {
    let (postgres, redis) = (postgres::Server::start(), redis::Server::start());
    let upstream = upstream().await;
    let gateways = replicas(&postgres, &redis, &upstream).await;
    insert(&gateways[0], &limited("sk-limited-key-0009", json!({}))).await;
    let mut load = tokio::task::JoinSet::new();
    for gateway in gateways.clone() {
        load.spawn(async move {
            let mut conn = Conn::open(gateway.at).await;
            let body = json!({"model": "small", "messages": [], "max_tokens": 3}).to_string();
            loop {
                let who = [("authorization", "Bearer sk-limited-key-0009")];
                conn.ask("POST", "/v1/chat/completions", &who, body.as_bytes())
                    .await;
            }
        });
    }
    let store = gateways[0].store().await;
    let mut quickest = Duration::MAX;
    // The machine may be busy with something else several times, and not each time.
    for n in 0..5 {
        let key = format!("sk-limited-key-01{n:02}");
        insert(&gateways[0], &limited(&key, json!({"rpm_limit": 100_000}))).await;
        for gateway in &gateways {
            assert_eq!(chat(gateway, &key, "small").await.status(), 200);
        }
        store
            .change(&[Change::DeleteKeys(&[KeyHash::of(&key)])], &[])
            .await
            .unwrap();
        let gone = Instant::now();
        for gateway in &gateways {
            until("the deleted key is refused", async || {
                chat(gateway, &key, "small").await.status() == 401
            })
            .await;
        }
        quickest = quickest.min(gone.elapsed());
        if quickest < Duration::from_secs(1) {
            break;
        }
    }
    load.abort_all();
    assert!(quickest < Duration::from_secs(1), "{quickest:?}");
}
