//! How quickly a big ledger is read: fills a store with made-up rows, a year of them, and measures what the
//! spend API asks for. Not a test: it prints figures.
//!
//! `cargo run --profile dist --example ledger_rows -- postgres://…/scratch [rows]`, or a file for SQLite. The
//! store should be empty; one that has rows already is measured as it is.

#![allow(clippy::unwrap_used)]

use filters::model::key::KeyHash;
use filters::model::record::Status;
use std::time::{Duration, Instant};
use tollkeeper::store::{
    self, Address, Group, Page, Settings, SpendFilter, SpendOrder, Store, UsageFilter, UsageOrder,
};

const DAYS: i64 = 365;
/// Each thing is measured so often; the median counts, the first time is shown as well.
const TIMES: usize = 9;

/// Not in the list: what is NULL. `N`, `DAYS` and the expressions of the dialect are filled in.
const ROWS: &str = "INSERT INTO tk_ledger (day, request_id, endpoint, key_hash, user_id, team_id,
    organization_id, end_user, requested_model, model_group, model, deployment_id, provider, stream, status,
    http_status, prompt_tokens, completion_tokens, cached_tokens, cache_creation_tokens, reasoning_tokens,
    characters, audio_millis, images, spend_nanos, priced, estimated, clamped, started, ended, attempts, tags,
    client_ip, bytes_in, bytes_out)
SELECT DAY, ID, 'chat', KEY, 'user ' || (k % 50), 'team ' || (k % 20), 'org ' || (k % 5),
    CASE WHEN n % 3 = 0 THEN 'customer ' || (n % 1000) END, 'm' || ((k / 2 + n % 2) % 8), 'm' || ((k / 2 + n % 2) % 8),
    'upstream', 'd1', 'p' || (k % 3), TRUE, CASE n % 20 WHEN 0 THEN 'failure' ELSE 'success' END, 200,
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
    measure(&*store).await;
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
        .replace("ID,", "md5(n::text),")
        .replace("KEY,", "sha256(k::text::bytea),")
        .replace(
            "TAGS",
            "CASE WHEN n % 10 = 0 THEN '[\"batch\"]'::jsonb ELSE '[]' END",
        );
    let sql = [
        "SELECT tk_ledger_make_day((now() AT TIME ZONE 'UTC')::date - n) FROM generate_series(-2, DAYS + 1) AS n;",
        POSTGRES,
        &insert,
        ";",
        DAILY,
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
        .replace("ID,", "printf('%08x-%d', (n * 2654435761) & 4294967295, n),")
        .replace("KEY,", "(SELECT hash FROM hashes h WHERE h.k = s.k),")
        .replace("TAGS", "CASE WHEN n % 10 = 0 THEN '[\"batch\"]' ELSE '[]' END");
    c.execute_batch("PRAGMA cache_size = -1000000; PRAGMA synchronous = OFF;")
        .unwrap();
    let sql = ["BEGIN; ", SQLITE, &insert, ";", DAILY, "; COMMIT; ANALYZE;"].concat();
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
            "dearest of a month",
            SpendFilter {
                order: SpendOrder::Dearest,
                start_micros: Some(now - 30 * day),
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
            "of a team",
            SpendFilter {
                team_id: Some("team 3".into()),
                ..any()
            },
        ),
        (
            "of an organization",
            SpendFilter {
                organization_id: Some("org 3".into()),
                ..any()
            },
        ),
        (
            "of a customer",
            SpendFilter {
                end_user: Some("customer 333".into()),
                ..any()
            },
        ),
        (
            "of a model",
            SpendFilter {
                model_group: Some("m3".into()),
                ..any()
            },
        ),
        (
            "of a tag",
            SpendFilter {
                tag: Some("batch".into()),
                ..any()
            },
        ),
        (
            "failures",
            SpendFilter {
                status: Some(Status::Failure),
                ..any()
            },
        ),
        (
            "one request",
            SpendFilter {
                request_id: Some("0123456789".into()),
                ..any()
            },
        ),
        (
            "of nobody",
            SpendFilter {
                user_id: Some("nobody".into()),
                ..any()
            },
        ),
        (
            "id part, of a month",
            SpendFilter {
                request_id_part: Some("abcd".into()),
                start_micros: Some(now - 30 * day),
                ..any()
            },
        ),
    ] {
        let filter = page(filter);
        report(&format!("page: {what}"), async || {
            store.spend_logs(&filter).await.unwrap().len()
        })
        .await;
    }
    for (what, by) in [
        ("model", vec![Group::ModelGroup]),
        ("day and model", vec![Group::Day, Group::ModelGroup]),
        ("key", vec![Group::Key]),
        ("team", vec![Group::Team]),
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
        report(&format!("year by {what}"), async || {
            store.usage(&filter).await.unwrap().len()
        })
        .await;
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
    report("count of all", async || {
        store.count_records(&any()).await.unwrap() as usize
    })
    .await;
}

async fn report(what: &str, work: impl AsyncFn() -> usize) {
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
        "{what:<40} {rows:>8} rows  median {:>7.1} ms  first {:>7.1} ms",
        took[TIMES / 2].as_secs_f64() * 1e3,
        first.as_secs_f64() * 1e3,
    );
}
