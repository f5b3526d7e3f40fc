//! How quickly a big ledger is read: fills a store with made-up rows, a year of them, and measures what the
//! spend API asks for. Not a test: it prints figures, and which of them are beyond what is promised (a page in
//! 50 ms, a year of usage in 300 ms).
//!
//! `cargo run --profile dist --example ledger_rows -- postgres://…/scratch [rows]`, or a file for SQLite. The
//! store should be empty; one that has rows already is measured as it is. `make bench-lists ARGS=…` is the same.

#![allow(clippy::unwrap_used)]

use filters::model::key::KeyHash;
use filters::model::record::Status;
use std::time::{Duration, Instant};
use tollkeeper::store::{
    self, Address, Group, Page, Settings, SpendFilter, SpendOrder, Store, UsageFilter, UsageOrder, lists,
};

const DAYS: i64 = 365;
/// Each thing is measured so often; the median counts, the first time is shown as well.
const TIMES: usize = 9;

/// Not in the list: what is NULL. `N`, `DAYS` and the expressions of the dialect are filled in.
const ROWS: &str = "INSERT INTO tk_ledger (day, request_id, endpoint, key_hash, key_alias, user_id, team_id,
    organization_id, end_user, requested_model, model_group, model, deployment_id, provider, stream, status,
    http_status, prompt_tokens, completion_tokens, cached_tokens, cache_creation_tokens, reasoning_tokens,
    characters, audio_millis, images, spend_nanos, priced, estimated, clamped, started, ended, attempts, tags,
    client_ip, bytes_in, bytes_out)
SELECT DAY, ID, 'chat', KEY, 'alias ' || k, 'user ' || (k % 50), 'team ' || (k % 20), 'org ' || (k % 5),
    CASE WHEN n % 3 = 0 THEN 'customer ' || (n % 1000) END, 'm' || ((k / 2 + n % 2) % 8), 'm' || ((k / 2 + n % 2) % 8),
    CASE WHEN n % 10000 = 0 THEN 'seldom' ELSE 'upstream' END, 'd1', 'p' || (k % 3), TRUE, CASE n % 20 WHEN 0 THEN 'failure' ELSE 'success' END, 200,
    n % 5000, n % 900, 0, 0, 0, 0, 0, 0, (n * 7919) % 50000000, TRUE, FALSE, FALSE, started, started, '[]',
    TAGS, '192.0.2.1', 1000, 2000
FROM s";

const POSTGRES: &str = "WITH s AS (
    SELECT n, n % 200 AS k, now() - make_interval(secs => n::float8 * DAYS * 86400 / ROWS) AS started
    FROM generate_series(1::bigint, ROWS) AS n
) ";

const SQLITE: &str = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < ROWS), s AS (
    SELECT n, n % 200 AS k, (unixepoch() - n * DAYS * 86400 / ROWS) * 1000000 + n % 1000000 AS started FROM c
) ";

const DAILY: &str = "INSERT INTO tk_daily
SELECT day, key_hash, model_group, user_id, team_id, organization_id, provider, count(*),
    count(*) FILTER (WHERE status = 'success'), count(*) FILTER (WHERE status = 'failure'),
    sum(prompt_tokens), sum(completion_tokens), 0, 0, sum(spend_nanos)
FROM tk_ledger GROUP BY 1, 2, 3, 4, 5, 6, 7";

const LABELS: &str = "INSERT INTO tk_daily_labels
SELECT kind, day, label, model_group, count(*), count(*), 0, 0, 0, 0, 0, 0 FROM (
    SELECT 'end_user' AS kind, day, end_user AS label, model_group FROM tk_ledger WHERE end_user IS NOT NULL
    UNION ALL SELECT 'tag', day, TAG, model_group FROM tk_ledger WHERE tags <> '[]'
) l GROUP BY 1, 2, 3, 4";

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let text = args.next().expect("the address of a store");
    let rows: u64 = args.next().map_or(1_000_000, |n| n.parse().unwrap());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let address = Address::parse(&text).unwrap();
    let settings = Settings {
        statement_timeout: Duration::from_secs(120),
        ..Settings::default()
    };
    let store = store::open(&address, &settings).await.unwrap();
    store.ready().await;
    if store
        .spend_logs(&page(SpendFilter::default()))
        .await
        .unwrap()
        .is_empty()
    {
        let began = Instant::now();
        match &address {
            Address::Postgres(url) => fill_postgres(url.expose(), rows).await,
            Address::Sqlite(path) => fill_sqlite(path, rows),
        }
        println!("filled with {rows} rows in {:.0?}", began.elapsed());
    }
    let began = Instant::now();
    let mut days = 0;
    while store.digest_day().await.unwrap() {
        days += 1;
    }
    println!("looked {days} days through in {:.0?}", began.elapsed());
    first_on_a_connection(&address, &settings).await;
    measure(&*store).await;
}

/// Each list on a connection that has seen none: what the database must learn of the tables first.
async fn first_on_a_connection(address: &Address, settings: &Settings) {
    for (what, order, team) in [
        ("newest", SpendOrder::Newest, None),
        ("dearest", SpendOrder::Dearest, None),
        ("dearest of a team", SpendOrder::Dearest, Some("team 3")),
        ("of no team", SpendOrder::Newest, Some("nobody")),
    ] {
        let store = store::open(address, settings).await.unwrap();
        store.ready().await;
        // The connection itself.
        store.extent().await.unwrap();
        let filter = page(SpendFilter {
            order,
            team_id: team.map(str::to_owned),
            ..SpendFilter::default()
        });
        let began = Instant::now();
        let rows = store.spend_logs(&filter).await.unwrap().len();
        let took = began.elapsed().as_secs_f64() * 1e3;
        println!("first page of a connection: {what:<31} {rows:>8} rows  {took:>7.1} ms");
    }
}

fn filled_in(sql: &str, rows: u64) -> String {
    sql.replace("ROWS", &rows.to_string())
        .replace("DAYS", &DAYS.to_string())
}

async fn fill_postgres(url: &str, rows: u64) {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let insert = ROWS
        .replace("DAY,", "(started AT TIME ZONE 'UTC')::date,")
        // Like ours: the time comes first.
        .replace("ID,", "regexp_replace(lpad(to_hex((extract(epoch FROM started) * 1000)::bigint), 12, '0') || '7' || \
             md5(n::text), '^(.{8})(.{4})(.{4}).(.{3})(.{12}).*', '\\1-\\2-\\3-8\\4-\\5'),")
        .replace("KEY,", "sha256(k::text::bytea),")
        .replace(
            "TAGS",
            "CASE WHEN n % 10000 = 0 THEN '[\"rare\"]'::jsonb WHEN n % 10 = 0 THEN '[\"batch\"]'::jsonb ELSE '[]' END",
        );
    let sql = [
        "SELECT tk_ledger_make_day((now() AT TIME ZONE 'UTC')::date - n) FROM generate_series(-2, DAYS + 1) AS n;",
        POSTGRES,
        &insert,
        ";",
        DAILY,
        ";",
        &LABELS.replace("TAG", "tags->>0"),
        "; ANALYZE;",
    ]
    .concat();
    client.batch_execute(&filled_in(&sql, rows)).await.unwrap();
}

fn fill_sqlite(path: &std::path::Path, rows: u64) {
    let c = rusqlite::Connection::open(path).unwrap();
    for k in 0..200 {
        c.execute_batch("CREATE TEMP TABLE IF NOT EXISTS hashes (k INTEGER PRIMARY KEY, hash BLOB)")
            .unwrap();
        let hash = KeyHash::of(&k.to_string()).0;
        c.execute("INSERT INTO hashes VALUES (?1, ?2)", rusqlite::params![k, hash])
            .unwrap();
    }
    let insert = ROWS
        .replace("DAY,", "started / 86400000000,")
        .replace(
            "ID,",
            "printf('%08x-%04x-7%03x-8%03x-%012x', started / 65536000, started / 1000 & 65535, n & 4095, n >> 12 & 4095, \
             (n * 2654435761) & 281474976710655),",
        )
        .replace("KEY,", "(SELECT hash FROM hashes h WHERE h.k = s.k),")
        .replace(
            "TAGS",
            "CASE WHEN n % 10000 = 0 THEN '[\"rare\"]' WHEN n % 10 = 0 THEN '[\"batch\"]' ELSE '[]' END",
        );
    let labels = LABELS.replace("TAG", "tags ->> 0");
    c.execute_batch("PRAGMA cache_size = -1000000; PRAGMA synchronous = OFF;")
        .unwrap();
    let sql = [
        "BEGIN; ",
        SQLITE,
        &insert,
        ";",
        DAILY,
        ";",
        &labels,
        "; COMMIT; ANALYZE;",
    ]
    .concat();
    c.execute_batch(&filled_in(&sql, rows)).unwrap();
}

fn page(filter: SpendFilter) -> SpendFilter {
    SpendFilter {
        page: Page {
            limit: 100,
            offset: 0,
        },
        ..filter
    }
}

async fn measure(store: &dyn Store) {
    let any = SpendFilter::default;
    let now = jiff::Timestamp::now().as_microsecond();
    let day = 86_400_000_000;
    let key = KeyHash::of("7");
    let half = now - 180 * day;
    let some = |text: &str| Some(text.to_owned());
    let id = store
        .spend_logs(&page(SpendFilter {
            after: Some((half, String::new())),
            ..any()
        }))
        .await
        .unwrap();
    let id = id.first().map_or_else(String::new, |r| r.request_id.clone());
    let mut slow = Slow::default();
    for (what, filter) in [
        ("newest", any()),
        (
            "oldest",
            SpendFilter {
                order: SpendOrder::Oldest,
                ..any()
            },
        ),
        (
            "dearest",
            SpendFilter {
                order: SpendOrder::Dearest,
                ..any()
            },
        ),
        (
            "cheapest",
            SpendFilter {
                order: SpendOrder::Cheapest,
                ..any()
            },
        ),
        (
            "dearest of a month",
            SpendFilter {
                order: SpendOrder::Dearest,
                start_micros: Some(now - 30 * day),
                ..any()
            },
        ),
        (
            "dearest of a team",
            SpendFilter {
                order: SpendOrder::Dearest,
                team_id: some("team 3"),
                ..any()
            },
        ),
        (
            "dearest of a customer",
            SpendFilter {
                order: SpendOrder::Dearest,
                end_user: some("customer 333"),
                ..any()
            },
        ),
        (
            "deep, by cursor",
            SpendFilter {
                after: Some((half, String::new())),
                ..any()
            },
        ),
        (
            "of a key",
            SpendFilter {
                key_hash: Some(key),
                ..any()
            },
        ),
        (
            "of a key, a day half a year ago",
            SpendFilter {
                key_hash: Some(key),
                start_micros: Some(half),
                end_micros: Some(half + day),
                ..any()
            },
        ),
        (
            "of a user",
            SpendFilter {
                user_id: some("user 3"),
                ..any()
            },
        ),
        (
            "of nobody",
            SpendFilter {
                user_id: some("nobody"),
                ..any()
            },
        ),
        (
            "of a team",
            SpendFilter {
                team_id: some("team 3"),
                ..any()
            },
        ),
        (
            "of no team",
            SpendFilter {
                team_id: some("nobody"),
                ..any()
            },
        ),
        (
            "of an organization",
            SpendFilter {
                organization_id: some("org 3"),
                ..any()
            },
        ),
        (
            "of no organization",
            SpendFilter {
                organization_id: some("nobody"),
                ..any()
            },
        ),
        (
            "of a customer",
            SpendFilter {
                end_user: some("customer 333"),
                ..any()
            },
        ),
        (
            "of no customer",
            SpendFilter {
                end_user: some("nobody"),
                ..any()
            },
        ),
        (
            "of a customer, oldest",
            SpendFilter {
                end_user: some("customer 333"),
                order: SpendOrder::Oldest,
                ..any()
            },
        ),
        (
            "of a model",
            SpendFilter {
                model_group: some("m3"),
                ..any()
            },
        ),
        (
            "of no model",
            SpendFilter {
                model: some("nothing"),
                ..any()
            },
        ),
        (
            "of a model of the upstream",
            SpendFilter {
                model: some("upstream"),
                ..any()
            },
        ),
        (
            "of a rare model",
            SpendFilter {
                model: some("seldom"),
                ..any()
            },
        ),
        (
            "of a tag",
            SpendFilter {
                tag: some("batch"),
                ..any()
            },
        ),
        (
            "of a rare tag",
            SpendFilter {
                tag: some("rare"),
                ..any()
            },
        ),
        (
            "of no tag",
            SpendFilter {
                tag: some("nothing"),
                ..any()
            },
        ),
        (
            "of an alias",
            SpendFilter {
                key_alias: some("alias 7"),
                ..any()
            },
        ),
        (
            "of no alias",
            SpendFilter {
                key_alias: some("nothing"),
                ..any()
            },
        ),
        (
            "failures",
            SpendFilter {
                success: Some(false),
                ..any()
            },
        ),
        (
            "cut, of which there are none",
            SpendFilter {
                status: Some(Status::Cut),
                ..any()
            },
        ),
        (
            "http 404, of which there are none",
            SpendFilter {
                http_status: Some((404, 404)),
                ..any()
            },
        ),
        (
            "of a team, cut",
            SpendFilter {
                team_id: some("team 3"),
                status: Some(Status::Cut),
                ..any()
            },
        ),
        (
            "of a tag and a team that has it never",
            SpendFilter {
                team_id: some("team 3"),
                tag: some("batch"),
                ..any()
            },
        ),
        (
            "of a customer and a team that has it never",
            SpendFilter {
                team_id: some("team 4"),
                end_user: some("customer 333"),
                ..any()
            },
        ),
        (
            "of a model of the upstream and a team that has it never",
            SpendFilter {
                team_id: some("team 4"),
                model: some("seldom"),
                ..any()
            },
        ),
        (
            "of a tag and a key, dearest",
            SpendFilter {
                order: SpendOrder::Dearest,
                key_hash: Some(KeyHash::of("10")),
                tag: some("batch"),
                ..any()
            },
        ),
        (
            "costing a lot",
            SpendFilter {
                min_spend_nanos: Some(49_999_000),
                ..any()
            },
        ),
        (
            "costing more than any",
            SpendFilter {
                min_spend_nanos: Some(60_000_000),
                ..any()
            },
        ),
        (
            "one request",
            SpendFilter {
                request_id: Some(id.clone()),
                ..any()
            },
        ),
        (
            "no request",
            SpendFilter {
                request_id: some("0123456789"),
                ..any()
            },
        ),
        (
            "no request, by an id like ours",
            SpendFilter {
                request_id: Some(uuid::Uuid::now_v7().to_string()),
                ..any()
            },
        ),
    ] {
        let filter = page(filter);
        let took = report(&format!("page: {what}"), async || {
            store.spend_logs(&filter).await.unwrap().len()
        })
        .await;
        slow.beyond(what, took, PAGE);
        let took = report(&format!("   and how many: {what}"), async || {
            lists::count(store, &filter).await.unwrap().0 as usize
        })
        .await;
        slow.beyond(&format!("how many: {what}"), took, PAGE);
    }
    for (what, part) in [("found", &id[4..]), ("not found", "nothing")] {
        let filter = page(SpendFilter {
            request_id_part: some(part),
            ..any()
        });
        let took = report(&format!("one answer of a search, {what}"), async || {
            lists::search(store, &filter).await.unwrap().0.len()
        })
        .await;
        slow.beyond("search", took, PAGE);
    }
    let filter = SpendFilter {
        page: Page {
            limit: 100,
            offset: 500_000,
        },
        ..any()
    };
    let took = report("page 5,000 by number", async || {
        store.spend_logs(&filter).await.unwrap().len()
    })
    .await;
    slow.beyond("page 5,000 by number", took, PAGE);
    for (what, by) in [
        ("model", vec![Group::ModelGroup]),
        ("day and model", vec![Group::Day, Group::ModelGroup]),
        ("key", vec![Group::Key]),
        ("team", vec![Group::Team]),
        ("user", vec![Group::User]),
        ("tag", vec![Group::Tag]),
        ("customer", vec![Group::EndUser]),
        ("nothing", vec![]),
    ] {
        let filter = UsageFilter {
            by,
            order: UsageOrder::Groups,
            page: Page {
                limit: 10_000,
                offset: 0,
            },
            ..UsageFilter::default()
        };
        let took = report(&format!("year by {what}"), async || {
            store.usage(&filter).await.unwrap().len()
        })
        .await;
        slow.beyond(what, took, YEAR);
    }
    let filter = UsageFilter {
        by: vec![Group::Day, Group::ModelGroup],
        key_hashes: Some(vec![key]),
        page: Page {
            limit: 10_000,
            offset: 0,
        },
        ..UsageFilter::default()
    };
    report("year of a key by day and model", async || {
        store.usage(&filter).await.unwrap().len()
    })
    .await;
    report("count of all, one by one", async || {
        store.count_records(&any()).await.unwrap() as usize
    })
    .await;
    match slow.0.as_slice() {
        [] => println!("all within what is promised"),
        slow => println!("beyond what is promised: {}", slow.join("; ")),
    }
}

/// What is promised.
const PAGE: Duration = Duration::from_millis(50);
const YEAR: Duration = Duration::from_millis(300);

#[derive(Default)]
struct Slow(Vec<String>);

impl Slow {
    fn beyond(&mut self, what: &str, took: Duration, promised: Duration) {
        if took > promised {
            self.0
                .push(format!("{what} ({:.0} ms)", took.as_secs_f64() * 1e3));
        }
    }
}

/// Prints the median and returns it.
async fn report(what: &str, work: impl AsyncFn() -> usize) -> Duration {
    let mut took = Vec::new();
    let mut rows = 0;
    for _ in 0..TIMES {
        let began = Instant::now();
        rows = work().await;
        took.push(began.elapsed());
    }
    let first = took[0];
    took.sort();
    println!(
        "{what:<60} {rows:>8} rows  median {:>7.1} ms  best {:>7.1} ms  first {:>7.1} ms",
        took[TIMES / 2].as_secs_f64() * 1e3,
        took[0].as_secs_f64() * 1e3,
        first.as_secs_f64() * 1e3,
    );
    took[TIMES / 2]
}
