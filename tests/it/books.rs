//! The books: accounts and their periods, daily usage, what is found of it, and old rows let go. On SQLite
//! and on a real Postgres.

use crate::kit::{LONG, away_from_midnight, postgres};
use crate::store::{differences, key, open, record};
use filters::model::account::{Account, Kind, charged, member};
use filters::model::key::KeyHash;
use filters::model::record::{Record, Status};
use jiff::civil::Date;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tollkeeper::ledger::check::check;
use tollkeeper::ledger::retention::drop_old;
use tollkeeper::store::{
    Balance, DailyFilter, Group, Page, SpendFilter, SpendOrder, Store, StoreError, UsageFilter, UsageOrder,
};

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

fn now() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

fn today() -> Date {
    jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date()
}

fn days_ago(days: i64) -> Date {
    today().checked_sub(jiff::Span::new().days(days)).unwrap()
}

/// A store, and how to change it behind its back.
struct Books {
    store: Arc<dyn Store>,
    sql: Box<dyn Fn(&str) -> String>,
}

async fn on_sqlite(dir: &tempfile::TempDir) -> Books {
    let path = dir.path().join("store.db");
    let store = open(path.to_str().unwrap()).await;
    let sql = move |sql: &str| {
        let c = rusqlite::Connection::open(&path).unwrap();
        if sql.starts_with("SELECT") {
            let n: i64 = c.query_row(sql, [], |row| row.get(0)).unwrap();
            return n.to_string();
        }
        c.execute_batch(sql).unwrap();
        String::new()
    };
    Books {
        store,
        sql: Box::new(sql),
    }
}

async fn on_postgres() -> Books {
    let server = postgres::shared();
    let url = server.database();
    let name = url.rsplit('/').next().unwrap().to_string();
    let store = open(&url).await;
    store.ready().await;
    Books {
        store,
        sql: Box::new(move |sql| server.sql(&name, sql)),
    }
}

async fn both(test: impl AsyncFn(Books)) {
    away_from_midnight().await;
    let dir = tempfile::tempdir().unwrap();
    test(on_sqlite(&dir).await).await;
    test(on_postgres().await).await;
}

/// A row of this case's own subjects.
#[derive(Clone, Debug)]
struct Call {
    id: u8,
    ended: i64,
    nanos: i64,
    model: u8,
    tags: u8,
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<Call>),
    /// Account, start and length, seconds; no length = no end.
    Begin(usize, i64, Option<i64>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let call = (0..60_u8, 0..40 * SECOND, 0..50_i64, 0..3_u8, 0..4_u8);
    let call = call.prop_map(|(id, ended, nanos, model, tags)| Call {
        id,
        ended,
        nanos,
        model,
        tags,
    });
    let append = prop::collection::vec(call, 1..6).prop_map(Step::Append);
    let begin = (0..6_usize, 0..40_i64, prop::option::of(1..25_i64));
    let begin = begin.prop_map(|(account, start, len)| Step::Begin(account, start, len));
    prop::collection::vec(prop_oneof![2 => append, 1 => begin], 1..25)
}

/// The rules at their plainest: all rows are kept and added up anew each time.
#[derive(Default)]
struct Plain {
    rows: Vec<Record>,
    periods: Vec<(Option<i64>, Option<i64>)>,
}

fn is_charged(account: &Account, r: &Record) -> bool {
    let subjects = charged(r);
    subjects
        .iter()
        .any(|(kind, id)| *kind == account.kind && *id == account.id)
        && (account.model.is_empty() || account.model == r.model_group)
}

impl Plain {
    fn append(&mut self, accounts: &[Account], r: &Record) {
        if self.rows.iter().any(|known| known.request_id == r.request_id) {
            return;
        }
        self.rows.push(r.clone());
        for (account, (started, ends)) in accounts.iter().zip(&mut self.periods) {
            if r.spend_nanos > 0 && is_charged(account, r) && ends.is_some_and(|e| r.ended_micros >= e) {
                *started = ends.take();
            }
        }
    }

    fn since(&self, account: &Account, moment: i64) -> i64 {
        let rows = self.rows.iter().filter(|r| is_charged(account, r));
        let rows = rows.filter(|r| r.ended_micros >= moment);
        rows.map(|r| r.spend_nanos).sum()
    }

    fn begin(&mut self, accounts: &[Account], n: usize, start: i64, end: Option<i64>) {
        self.periods[n] = (Some(start), end);
        if let Some(end) = end
            && self.since(&accounts[n], end) > 0
        {
            self.periods[n] = (Some(end), None);
        }
    }

    fn balance(&self, account: &Account, (started, ends): (Option<i64>, Option<i64>)) -> Balance {
        Balance {
            total_nanos: self.since(account, i64::MIN),
            period_nanos: self.since(account, started.unwrap_or(i64::MIN)),
            period_started_micros: started,
            period_ends_micros: ends,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_follow_the_plain_rules_whatever_comes_when() {
    let dir = tempfile::tempdir().unwrap();
    let stores = [on_sqlite(&dir).await.store, on_postgres().await.store];
    let runtime = tokio::runtime::Handle::current();
    let shared = stores.clone();
    let tested = tokio::task::spawn_blocking(move || {
        let stores = shared;
        let mut runner = TestRunner::new(Config {
            cases: 40,
            max_shrink_iters: 60,
            failure_persistence: None,
            ..Config::default()
        });
        let next = AtomicU32::new(0);
        runner.run(&steps(), |steps| {
            let case = next.fetch_add(1, Ordering::Relaxed);
            let stores = &stores;
            runtime.block_on(async move { one_case(stores, case, &steps).await })
        })
    });
    tested.await.unwrap().unwrap();
    for store in stores {
        assert_eq!(differences(&*store).await, [], "{}", store.kind());
    }
}

async fn one_case(stores: &[Arc<dyn Store>], case: u32, steps: &[Step]) -> Result<(), TestCaseError> {
    // A day ahead, so that no period is over while the test runs.
    let base = (now() / SECOND) * SECOND + DAY;
    let team = format!("team {case}");
    let hash = KeyHash::of(&format!("key {case}"));
    let accounts = [
        Account::new(Kind::Team, &team),
        Account::of_model(Kind::Team, &team, "m1"),
        Account::new(Kind::Member, member(&team, "alice")),
        Account::new(Kind::OrganizationMember, member(&format!("org {case}"), "alice")),
        Account::of_model(Kind::Key, hash.hex(), "m0"),
        Account::new(Kind::Tag, format!("tag {case}")),
        Account::of_model(Kind::EndUser, format!("customer {case}"), "m2"),
    ];
    let row = |c: &Call| Record {
        key_hash: Some(hash),
        team_id: Some(team.clone()),
        organization_id: Some(format!("org {case}")),
        end_user: Some(format!("customer {case}")),
        model_group: format!("m{}", c.model),
        spend_nanos: c.nanos,
        tags: vec![format!("tag {case}"); usize::from(c.tags)],
        started_micros: now(),
        ended_micros: base + c.ended,
        ..record(&format!("{case}-{}", c.id))
    };
    let mut plain = Plain {
        periods: vec![(None, None); accounts.len()],
        ..Plain::default()
    };
    for (at, step) in steps.iter().enumerate() {
        match step {
            Step::Append(calls) => {
                let rows: Vec<Record> = calls.iter().map(row).collect();
                rows.iter().for_each(|r| plain.append(&accounts, r));
                for store in stores {
                    store.append(&rows).await.unwrap();
                }
            }
            Step::Begin(n, start, len) => {
                let start = base + start * SECOND;
                let end = len.map(|len| start + len * SECOND);
                plain.begin(&accounts, *n, start, end);
                for store in stores {
                    // Fractions of a second do not count, and saying it twice changes nothing.
                    for late in [0, 999_999] {
                        let end = end.map(|e| e + late);
                        // What is beyond the end has moved the account on; that stays.
                        store
                            .begin_period(&accounts[*n], start + late, end)
                            .await
                            .unwrap();
                    }
                }
            }
        }
        let expected: Vec<Balance> = accounts
            .iter()
            .zip(&plain.periods)
            .map(|(account, period)| plain.balance(account, *period))
            .collect();
        for store in stores {
            let found = store.balances(&accounts).await.unwrap();
            prop_assert_eq!(&found, &expected, "{} after step {}", store.kind(), at);
        }
    }
    Ok(())
}

#[tokio::test]
async fn every_subject_of_a_call_is_charged() {
    both(async |b| {
        let r = Record {
            organization_id: Some("acme".into()),
            tags: vec!["a".into(), "b".into(), "a".into()],
            ..record("r1")
        };
        let free = Record {
            spend_nanos: 0,
            user_id: Some("bob".into()),
            ..record("r2")
        };
        b.store.append(&[r, free]).await.unwrap();
        let mut accounts = Vec::new();
        for (kind, id) in [
            (Kind::Gateway, String::new()),
            (Kind::Organization, "acme".into()),
            (Kind::Team, "red".into()),
            (Kind::Member, member("red", "alice")),
            (Kind::OrganizationMember, member("acme", "alice")),
            (Kind::User, "alice".into()),
            (Kind::Key, KeyHash::of("sk-a").hex()),
            (Kind::EndUser, "customer".into()),
            (Kind::Tag, "a".into()),
            (Kind::Tag, "b".into()),
        ] {
            accounts.push(Account::new(kind, &id));
            accounts.push(Account::of_model(kind, &id, "small"));
        }
        let spent = Balance {
            total_nanos: 1_500,
            period_nanos: 1_500,
            ..Balance::default()
        };
        let found = b.store.balances(&accounts).await.unwrap();
        assert_eq!(found, vec![spent; accounts.len()]);
        let nobody = [
            Account::new(Kind::User, "bob"),
            Account::of_model(Kind::User, "alice", "other"),
        ];
        let found = b.store.balances(&nobody).await.unwrap();
        assert_eq!(found, vec![Balance::default(); 2]);
        assert_eq!(b.store.balances(&[]).await.unwrap(), []);

        let over = Account::new(Kind::User, "alice");
        let (start, end) = (now() - 100 * SECOND, now() - 10 * SECOND);
        b.store.begin_period(&over, start, Some(end)).await.unwrap();
        let found = b.store.balances(std::slice::from_ref(&over)).await.unwrap();
        assert_eq!((found[0].period_nanos, found[0].total_nanos), (0, 1_500));
        let e = b.store.begin_period(&over, end, Some(end)).await.unwrap_err();
        assert!(matches!(e, StoreError::Invalid(_)), "{e}");
    })
    .await;
}

#[tokio::test]
async fn every_sum_that_is_wrong_is_found() {
    both(async |b| {
        b.store.insert_key(&key("sk-a")).await.unwrap();
        let rows: Vec<Record> = (0..6)
            .map(|n| Record {
                organization_id: Some("acme".into()),
                model_group: format!("m{}", n % 2),
                tags: vec!["a".into(), "b".into()],
                ..record(&format!("r{n}"))
            })
            .collect();
        b.store.append(&rows).await.unwrap();
        assert_eq!(differences(&*b.store).await, []);
        let hash = KeyHash::of("sk-a").hex();
        let key = format!("key {hash}");
        let whats = [
            ("gateway", "gateway"),
            ("organization", "organization acme"),
            ("team", "team red"),
            ("member", "member red/alice"),
            ("organization_member", "organization_member acme/alice"),
            ("user", "user alice"),
            ("key", key.as_str()),
            ("end_user", "end_user customer"),
        ];
        for (kind, what) in whats {
            for (model, what) in [("", what.to_owned()), ("m1", format!("{what} model m1"))] {
                let which = format!("WHERE kind = '{kind}' AND model = '{model}'");
                (b.sql)(&format!(
                    "UPDATE tk_accounts SET spend_nanos = spend_nanos + 1 {which}"
                ));
                let found = differences(&*b.store).await;
                assert_eq!(found.len(), 1, "{found:?}");
                assert_eq!(found[0].what, what);
                assert_eq!(found[0].kept.spend_nanos, found[0].rows.spend_nanos + 1);
                (b.sql)(&format!(
                    "UPDATE tk_accounts SET spend_nanos = spend_nanos - 1 {which}"
                ));
            }
        }
        for (sql, back, what) in [
            (
                "UPDATE tk_accounts SET spend_nanos = 0 WHERE kind = 'tag' AND id = 'b' AND model = 'm0'",
                "UPDATE tk_accounts SET spend_nanos = 4500 WHERE kind = 'tag' AND id = 'b' AND model = 'm0'",
                "tag b model m0",
            ),
            (
                "UPDATE tk_daily SET requests = requests + 1 WHERE model_group = 'm0'",
                "UPDATE tk_daily SET requests = requests - 1 WHERE model_group = 'm0'",
                "organization acme",
            ),
            (
                "UPDATE tk_daily_labels SET prompt_tokens = 0 WHERE kind = 'tag' AND label = 'a' AND model_group = 'm0'",
                "UPDATE tk_daily_labels SET prompt_tokens = 30 WHERE kind = 'tag' AND label = 'a' AND model_group = 'm0'",
                "tag a model m0",
            ),
            (
                "DELETE FROM tk_daily_labels WHERE kind = 'end_user' AND model_group = 'm1'",
                "",
                "end_user customer model m1",
            ),
        ] {
            (b.sql)(sql);
            let found = differences(&*b.store).await;
            assert_eq!(found.len(), 1, "{sql}: {found:?}");
            assert!(found[0].what.contains(what), "{found:?}");
            if !back.is_empty() {
                (b.sql)(back);
            }
        }
        (b.sql)("DELETE FROM tk_accounts WHERE kind = 'tag'");
        let found = differences(&*b.store).await;
        assert_eq!(found.len(), 1 + 6, "rows without an account: {found:?}");
        (b.sql)("INSERT INTO tk_accounts (kind, id, spend_nanos) VALUES ('user', 'nobody', 7)");
        let found = differences(&*b.store).await;
        assert!(
            found.iter().any(|d| d.what == "user nobody"),
            "an account without rows"
        );
    })
    .await;
}

#[tokio::test]
async fn old_rows_go_and_the_books_stay_in_order() {
    both(async |b| {
        b.store.insert_key(&key("sk-a")).await.unwrap();
        let at = |id: &str, days: i64| Record {
            started_micros: now() - days * DAY,
            ended_micros: now() - days * DAY,
            organization_id: Some("acme".into()),
            ..record(id)
        };
        let mut rows: Vec<Record> = (0..6).map(|n| at(&format!("r{n}"), n)).collect();
        rows.push(at("imported", 500));
        rows.push(Record {
            started_micros: i64::MIN,
            ..at("early", 0)
        });
        rows.push(Record {
            started_micros: i64::MAX,
            ..at("late", 0)
        });
        b.store.append(&rows).await.unwrap();
        assert_eq!(b.store.rows_from().await.unwrap(), None);
        assert_eq!(differences(&*b.store).await, []);
        let accounts = [
            Account::new(Kind::Gateway, ""),
            Account::new(Kind::Organization, "acme"),
            Account::of_model(Kind::Tag, "batch", "small"),
            Account::new(Kind::OrganizationMember, member("acme", "alice")),
            Account::of_model(Kind::OrganizationMember, member("acme", "alice"), "small"),
        ];
        let balances = b.store.balances(&accounts).await.unwrap();
        let daily = b.store.daily(&DailyFilter::default()).await.unwrap();
        assert_eq!((balances[0].total_nanos, daily.len()), (9 * 1_500, 9));

        // r2 and younger stay, and so does what claims to come from the future.
        assert_eq!(b.store.drop_rows_before(days_ago(2)).await.unwrap(), 5);
        let ids = async || {
            let rows = b.store.spend_logs(&SpendFilter::default()).await.unwrap();
            let ids: Vec<String> = rows.into_iter().map(|r| r.request_id).collect();
            ids.join(" ")
        };
        assert_eq!(ids().await, "late r0 r1 r2");
        assert_eq!(b.store.balances(&accounts).await.unwrap(), balances);
        assert_eq!(b.store.daily(&DailyFilter::default()).await.unwrap(), daily);
        assert_eq!(b.store.rows_from().await.unwrap(), Some(days_ago(2)));
        assert_eq!(differences(&*b.store).await, []);

        // A store of before members of organizations had accounts opens them from this.
        (b.sql)("DELETE FROM tk_accounts WHERE kind = 'organization_member'");
        (b.sql)(match b.store.kind() {
            "sqlite" => include_str!("../../migrations/sqlite/V9__organization_members.sql"),
            _ => include_str!("../../migrations/postgres/V9__organization_members.sql"),
        });
        assert_eq!(b.store.balances(&accounts).await.unwrap(), balances);
        assert_eq!(differences(&*b.store).await, []);
        assert_eq!(b.store.drop_rows_before(days_ago(2)).await.unwrap(), 0);

        b.store.append(&[at("straggler", 4), at("r6", 1)]).await.unwrap();
        assert_eq!(ids().await, "late r0 r6 r1 r2 straggler");
        assert_eq!(differences(&*b.store).await, []);
        let kept = drop_old(&*b.store, Duration::from_secs(2 * 86_400))
            .await
            .unwrap();
        assert_eq!(kept, 1, "the straggler");
        let balances = b.store.balances(&accounts).await.unwrap();
        assert_eq!(balances[0].total_nanos, 11 * 1_500);
        assert_eq!(differences(&*b.store).await, []);

        let dir = tempfile::tempdir().unwrap();
        let report = check(dir.path(), &*b.store, LONG).await.unwrap();
        assert!(
            report.is_sound() && report.rows_from == Some(days_ago(2)),
            "{report}"
        );
        assert!(report.to_string().contains(&format!("from {} on", days_ago(2))));
        // What is kept is still compared.
        (b.sql)(
            "UPDATE tk_accounts SET dropped_nanos = dropped_nanos + 1 WHERE kind = 'gateway' AND model = ''",
        );
        assert_eq!(differences(&*b.store).await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn days_have_partitions_and_elsewhen_takes_the_rest() {
    away_from_midnight().await;
    let b = on_postgres().await;
    let at = |id: &str, days: i64| Record {
        started_micros: now() + days * DAY,
        ..record(id)
    };
    let rows = [
        at("now", 0),
        at("past", -100),
        at("history", -1_000),
        at("ahead", 10),
    ];
    for _ in 0..2 {
        b.store.append(&rows).await.unwrap();
    }
    let count = |table: &str| (b.sql)(&format!("SELECT count(*) FROM {table}"));
    assert_eq!(count("tk_ledger"), "4");
    assert_eq!(count("tk_ledger_elsewhen"), "2");
    let name = |days: i64| format!("tk_ledger_d{}", days_ago(-days).strftime("%Y%m%d"));
    assert_eq!(count(&name(-100)), "1");
    assert_eq!(count(&name(2)), "0", "made ahead");
    // Its day has come.
    assert_eq!(
        (b.sql)("SELECT tk_ledger_make_day((now() AT TIME ZONE 'UTC')::date + 10)"),
        "t"
    );
    assert_eq!(
        (count(&name(10)), count("tk_ledger_elsewhen")),
        ("1".into(), "1".into())
    );
    b.store.append(&rows).await.unwrap();
    assert_eq!(count("tk_ledger"), "4", "a row meets itself wherever it lies");
    assert_eq!(differences(&*b.store).await, []);
}

#[tokio::test]
async fn usage_is_added_up_by_what_is_asked() {
    both(async |b| {
        let rows: Vec<Record> = (0..24_i64)
            .map(|n| Record {
                started_micros: now() - (n % 2) * DAY,
                key_hash: (n % 3 != 0).then(|| KeyHash::of(&format!("k{}", n % 3))),
                user_id: Some(format!("u{}", n % 2)),
                team_id: None,
                organization_id: (n % 4 == 0).then(|| "acme".into()),
                end_user: (n % 3 == 0).then(|| format!("c{}", n % 2)),
                model_group: format!("m{}", n % 4),
                tags: if n % 2 == 0 {
                    vec!["a".into(), "b".into()]
                } else {
                    vec![]
                },
                status: if n % 6 == 0 {
                    Status::Failure
                } else {
                    Status::Success
                },
                spend_nanos: n,
                priced: n % 4 != 0,
                ..record(&format!("r{n}"))
            })
            .collect();
        b.store.append(&rows).await.unwrap();
        // What is there already counts no second time.
        b.store.append(&rows[..6]).await.unwrap();
        let ask = async |f: UsageFilter| b.store.usage(&f).await.unwrap();
        let by = |groups: &[Group]| UsageFilter {
            by: groups.to_vec(),
            ..UsageFilter::default()
        };
        let all = ask(by(&[])).await;
        assert_eq!(all.len(), 1);
        let u = all[0].usage;
        assert_eq!(
            (u.requests, u.successes, u.failures, u.spend_nanos),
            (24, 20, 4, 276)
        );
        assert_eq!(
            (u.prompt_tokens, u.cached_tokens, u.cache_creation_tokens),
            (240, 72, 48)
        );
        assert_eq!(u.unpriced, 6);

        let days = ask(by(&[Group::Day])).await;
        let seen: Vec<_> = days
            .iter()
            .map(|r| (r.day.unwrap(), r.usage.spend_nanos))
            .collect();
        assert_eq!(seen, [(today(), 132), (days_ago(1), 144)], "newest first");

        let dearest = UsageFilter {
            order: UsageOrder::Spend,
            page: Page { limit: 2, offset: 1 },
            ..by(&[Group::ModelGroup])
        };
        let models: Vec<_> = ask(dearest)
            .await
            .into_iter()
            .map(|r| r.model_group.unwrap())
            .collect();
        assert_eq!(models, ["m2", "m1"]);
        let unpriced: Vec<_> = ask(by(&[Group::ModelGroup]))
            .await
            .into_iter()
            .map(|r| (r.model_group.unwrap(), r.usage.requests, r.usage.unpriced))
            .collect();
        let want = [("m0", 6), ("m1", 0), ("m2", 0), ("m3", 0)].map(|(m, n)| (m.to_owned(), 6, n));
        assert_eq!(unpriced, want);

        let keys = ask(by(&[Group::Key, Group::User])).await;
        assert_eq!(keys.len(), 6);
        assert_eq!((keys[0].key_hash, keys[0].user_id.as_deref()), (None, Some("u0")));

        let some = UsageFilter {
            start: Some(today()),
            end: Some(today()),
            key_hashes: Some(vec![KeyHash::of("k1"), KeyHash::of("k2")]),
            organization_ids: Some(vec!["acme".into()]),
            model_groups: Some(vec!["m0".into(), "'; --".into()]),
            ..by(&[Group::Organization, Group::Provider])
        };
        let found = ask(some.clone()).await;
        let expected = rows.iter().enumerate().filter(|(n, _)| n % 4 == 0 && n % 3 != 0);
        assert_eq!(
            found[0].usage.spend_nanos,
            expected.map(|(_, r)| r.spend_nanos).sum::<i64>()
        );
        assert_eq!(found[0].organization_id.as_deref(), Some("acme"));
        assert_eq!(found[0].provider.as_deref(), Some("openai"));
        let none = UsageFilter {
            team_ids: Some(vec![]),
            ..some
        };
        assert_eq!(ask(none).await, [], "an empty list matches nothing");

        let tags = ask(by(&[Group::Tag])).await;
        let seen: Vec<_> = tags
            .iter()
            .map(|r| (r.tag.clone().unwrap(), r.usage.spend_nanos))
            .collect();
        assert_eq!(seen, [("a".to_owned(), 132), ("b".to_owned(), 132)]);
        assert_eq!(tags[0].usage.unpriced, 6);
        let one = UsageFilter {
            end_users: Some(vec!["c0".into()]),
            ..by(&[Group::Day, Group::EndUser, Group::ModelGroup])
        };
        let found = ask(one).await;
        assert_eq!(found.iter().map(|r| r.usage.requests).sum::<i64>(), 4);
        assert!(found.iter().all(|r| r.end_user.as_deref() == Some("c0")));
        for bad in [
            by(&[Group::Tag, Group::EndUser]),
            by(&[Group::Tag, Group::Key]),
            by(&[Group::Day, Group::Day]),
            UsageFilter {
                tags: Some(vec![]),
                user_ids: Some(vec![]),
                ..UsageFilter::default()
            },
        ] {
            let e = b.store.usage(&bad).await.unwrap_err();
            assert!(matches!(e, StoreError::Invalid(_)), "{e}");
        }
    })
    .await;
}

#[tokio::test]
async fn rows_are_found_by_all_that_is_listed() {
    both(async |b| {
        let rows: Vec<Record> = (0..60_i64)
            .map(|n| Record {
                // Over all the widths a page is looked for in, and beyond the partitions.
                started_micros: now() - (n * n / 4) * DAY,
                model_group: format!("m{}", n % 3),
                organization_id: (n % 4 == 0).then(|| "acme".into()),
                end_user: (n % 5 == 0).then(|| "c".into()),
                tags: if n % 6 == 0 {
                    vec!["x".into(), "it's".into()]
                } else {
                    vec![]
                },
                status: if n % 2 == 0 { Status::Cut } else { Status::Success },
                spend_nanos: n % 10,
                ..record(&format!("id%{n:02}"))
            })
            .collect();
        b.store.append(&rows).await.unwrap();
        let any = SpendFilter::default;
        let ids = async |f: SpendFilter| -> Vec<String> {
            let found = b.store.spend_logs(&f).await.unwrap();
            let total = b.store.count_records(&f).await.unwrap();
            assert!(total >= found.len() as u64);
            found.into_iter().map(|r| r.request_id).collect()
        };
        let those = |so: &dyn Fn(&Record) -> bool| -> Vec<String> {
            let rows = rows.iter().filter(|r| so(r));
            rows.map(|r| r.request_id.clone()).collect()
        };
        let f = SpendFilter {
            model_group: Some("m1".into()),
            ..any()
        };
        assert_eq!(ids(f).await, those(&|r| r.model_group == "m1"));
        let f = SpendFilter {
            organization_id: Some("acme".into()),
            ..any()
        };
        assert_eq!(ids(f).await, those(&|r| r.organization_id.is_some()));
        let f = SpendFilter {
            end_user: Some("c".into()),
            ..any()
        };
        assert_eq!(ids(f).await, those(&|r| r.end_user.is_some()));
        let f = SpendFilter {
            tag: Some("it's".into()),
            ..any()
        };
        assert_eq!(ids(f).await, those(&|r| !r.tags.is_empty()));
        let f = SpendFilter {
            tag: Some("%".into()),
            ..any()
        };
        assert_eq!(ids(f).await, [""; 0]);
        let f = SpendFilter {
            status: Some(Status::Cut),
            min_spend_nanos: Some(4),
            max_spend_nanos: Some(6),
            ..any()
        };
        assert_eq!(
            ids(f).await,
            those(&|r| r.status == Status::Cut && (4..=6).contains(&r.spend_nanos))
        );
        let ids_of_ours = [
            uuid::Uuid::now_v7().to_string(),
            uuid::Uuid::from_u64_pair(0x7000, 1 << 63).to_string(),
        ];
        for id in &ids_of_ours {
            let r = Record {
                started_micros: now(),
                spend_nanos: 99,
                ..record(id)
            };
            b.store.append(&[r]).await.unwrap();
            let f = SpendFilter {
                request_id: Some(id.clone()),
                ..any()
            };
            assert_eq!(ids(f).await, [id.as_str()], "whatever its own time says");
            (b.sql)(&format!("DELETE FROM tk_ledger WHERE request_id = '{id}'"));
        }
        let f = SpendFilter {
            request_id_part: Some("%1".into()),
            ..any()
        };
        assert_eq!(ids(f).await, those(&|r| r.request_id.starts_with("id%1")));
        let f = SpendFilter {
            request_id_part: Some("d_1".into()),
            ..any()
        };
        assert_eq!(ids(f).await, [""; 0], "no letter means more than itself");

        for order in [
            SpendOrder::Newest,
            SpendOrder::Oldest,
            SpendOrder::Dearest,
            SpendOrder::Cheapest,
        ] {
            let by_spend = matches!(order, SpendOrder::Dearest | SpendOrder::Cheapest);
            let value = |r: &Record| if by_spend { r.spend_nanos } else { r.started_micros };
            let mut expected: Vec<(i64, String)> =
                rows.iter().map(|r| (value(r), r.request_id.clone())).collect();
            expected.sort();
            if matches!(order, SpendOrder::Newest | SpendOrder::Dearest) {
                expected.reverse();
            }
            let mut seen = Vec::new();
            let mut after = None;
            loop {
                let page = Page { limit: 7, offset: 0 };
                let part = b
                    .store
                    .spend_logs(&SpendFilter {
                        after,
                        order,
                        page,
                        ..any()
                    })
                    .await
                    .unwrap();
                let Some(last) = part.last() else { break };
                after = Some((value(last), last.request_id.clone()));
                seen.extend(part.iter().map(|r| (value(r), r.request_id.clone())));
            }
            assert_eq!(seen, expected, "{order:?}: a cursor skips and repeats nothing");
            let page = Page { limit: 5, offset: 20 };
            let part = b
                .store
                .spend_logs(&SpendFilter { order, page, ..any() })
                .await
                .unwrap();
            let part: Vec<_> = part.into_iter().map(|r| (value(&r), r.request_id)).collect();
            assert_eq!(part, expected[20..25], "{order:?}");
        }
    })
    .await;
}

/// How a store writes its values.
struct Spelling {
    hash: String,
    /// A day, and its first moment.
    young: [String; 2],
    ancient: [String; 2],
    json: fn(&str) -> String,
}

/// Rows as the first version kept them: two of a key that is known, with an opening; one of nobody.
fn old_rows(s: &Spelling) -> String {
    let (hash, [young, at], [ancient, then]) = (&s.hash, &s.young, &s.ancient);
    let (tags, none) = ((s.json)(r#"["a", "b", "a"]"#), (s.json)("[]"));
    format!(
        "INSERT INTO tk_keys VALUES ({hash}, 'n', NULL, 'alice', 'red', '[]', '[]', 3007, 1007, NULL, NULL,
            FALSE, '{{}}', '{{}}', {at}, NULL, {at});
        INSERT INTO tk_users (user_id, spend_nanos) VALUES ('alice', 2000);
        INSERT INTO tk_teams VALUES ('red', 2000);
        INSERT INTO tk_ledger
        SELECT id, day, 'chat', hash, NULL, person, team, 'customer', 'fast', 'small', 'llama-3', 'd1', 'openai',
            TRUE, 'success', 200, NULL, 10, 5, 3, 2, 1, 0, 0, 0, 1000, TRUE, FALSE, FALSE, at, NULL, at, '[]',
            tags, NULL, '192.0.2.1', NULL, 1, 2
        FROM (
            SELECT 'r1' AS id, {young} AS day, {hash} AS hash, 'alice' AS person, 'red' AS team, {at} AS at,
                {tags} AS tags
            UNION ALL SELECT 'r2', {young}, {hash}, 'alice', 'red', {at}, {none}
            UNION ALL SELECT 'r3', {ancient}, NULL, '', NULL, {then}, {none}
        ) r;"
    )
}

async fn check_moved(store: &dyn Store) {
    assert_eq!(differences(store).await, [], "{}", store.kind());
    assert_eq!(store.count_records(&SpendFilter::default()).await.unwrap(), 3);
    let hash = KeyHash::of("sk-a");
    let accounts = [
        Account::new(Kind::Key, hash.hex()),
        Account::of_model(Kind::Key, hash.hex(), "small"),
        Account::new(Kind::Gateway, ""),
        Account::new(Kind::Tag, "a"),
        Account::new(Kind::Member, member("red", "alice")),
    ];
    let found = store.balances(&accounts).await.unwrap();
    let found: Vec<i64> = found.iter().map(|b| b.total_nanos).collect();
    assert_eq!(found, [3007, 2000, 3000, 1000, 2000]);
    assert_eq!(store.spend_of_key(&hash).await.unwrap(), Some(3007));
    let by = |group| UsageFilter {
        by: vec![group],
        ..UsageFilter::default()
    };
    let tags = store.usage(&by(Group::Tag)).await.unwrap();
    assert_eq!((tags.len(), tags[0].usage.requests), (2, 1));
    let all = store.usage(&by(Group::EndUser)).await.unwrap();
    assert_eq!(
        (all[0].usage.requests, all[0].usage.cache_creation_tokens),
        (3, 6)
    );
    // Of today: a fixed day is some day too old for a place of its own.
    let r4 = Record {
        started_micros: now(),
        ..record("r4")
    };
    store.append(&[r4]).await.unwrap();
    assert_eq!(differences(store).await, [], "{}", store.kind());
}

#[tokio::test]
async fn what_the_first_version_kept_is_moved() {
    away_from_midnight().await;
    let day = |date: Date| date.duration_since(jiff::civil::date(1970, 1, 1)).as_hours() / 24;
    let (young, ancient) = (days_ago(3), days_ago(900));

    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole.db");
    open(whole.to_str().unwrap()).await;
    let old = dir.path().join("old.db");
    let c = rusqlite::Connection::open(&old).unwrap();
    c.execute_batch(include_str!("../../migrations/sqlite/V1__keys_and_ledger.sql"))
        .unwrap();
    c.execute_batch(&format!(
        "ATTACH '{}' AS whole; CREATE TABLE tk_migrations AS SELECT * FROM whole.tk_migrations WHERE version = 1;",
        whole.display()
    ))
    .unwrap();
    let spelt = |date| [day(date).to_string(), (day(date) * DAY).to_string()];
    let sql = old_rows(&Spelling {
        hash: format!("x'{}'", KeyHash::of("sk-a").hex()),
        young: spelt(young),
        ancient: spelt(ancient),
        json: |text| format!("'{text}'"),
    });
    c.execute_batch(&sql).unwrap();
    drop(c);
    check_moved(&*open(old.to_str().unwrap()).await).await;

    let server = postgres::shared();
    let (whole, old) = (server.database(), server.database());
    open(&whole).await.ready().await;
    let name = |url: &str| url.rsplit('/').next().unwrap().to_string();
    let made = server.sql(
        &name(&whole),
        "SELECT format('INSERT INTO tk_migrations VALUES (%L, %L, %L, %L)', version, name, applied_on, checksum)
         FROM tk_migrations WHERE version = 1",
    );
    let spelt = |date| {
        [
            format!("DATE '{date}'"),
            format!("TIMESTAMPTZ '{date} 00:00:00+00'"),
        ]
    };
    let sql = old_rows(&Spelling {
        hash: format!("'\\x{}'::bytea", KeyHash::of("sk-a").hex()),
        young: spelt(young),
        ancient: spelt(ancient),
        json: |text| format!("'{text}'::jsonb"),
    });
    let first = include_str!("../../migrations/postgres/V1__keys_and_ledger.sql");
    let history = "CREATE TABLE tk_migrations (version int4 PRIMARY KEY, name varchar(255), \
         applied_on varchar(255), checksum varchar(255))";
    server.sql(&name(&old), &[first, history, ";", &made, ";", &sql].concat());
    let store = open(&old).await;
    store.ready().await;
    check_moved(&*store).await;
    assert_eq!(
        server.sql(&name(&old), "SELECT count(*) FROM tk_ledger_elsewhen"),
        "1"
    );
}
