//! Meters over a store in memory.

use super::*;
use crate::store::{self, Address};
use filters::contract::ports::{Estimate, Standing};
use filters::model::key::{Holder, Key};
use filters::model::limits::Measure;
use filters::testkit::{self, FakeClock};
use serde_json::{Value, json};
use std::sync::Mutex as StdMutex;

#[derive(Default)]
struct Heard(StdMutex<Vec<(Kind, i64)>>);

impl Events for Heard {
    fn soft_budget_crossed(&self, crossed: &Crossed<'_>) {
        let line = (crossed.account.kind, crossed.soft_budget_nanos);
        self.0.lock().unwrap().push(line);
    }

    fn refused(&self, _refused: &Refused) {}
}

struct Bench {
    gate: Gate,
    clock: Arc<FakeClock>,
    heard: Arc<Heard>,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn new(settings: Settings) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Sqlite(dir.path().join("db"));
        let store = store::open(&address, &store::Settings::default()).await.unwrap();
        let (clock, heard) = (Arc::new(FakeClock::default()), Arc::new(Heard::default()));
        clock.set(1_000_000);
        let world = World {
            parties: Arc::new(Parties::new(Arc::clone(&store))),
            store,
            clock: Arc::clone(&clock) as _,
            unlanded: Box::new(|accounts| vec![0; accounts.len()]),
            agreement: None,
            events: Arc::clone(&heard) as _,
        };
        Bench {
            gate: Gate(Meters::new(world, settings)),
            clock,
            heard,
            _dir: dir,
        }
    }

    async fn ask(&self, caller: &Caller, call: Ask<'_>) -> Result<Box<dyn Admitted>, Box<Refused>> {
        let estimate = || Estimate {
            tokens: call.tokens,
            nanos: call.nanos,
        };
        let asked = Asked {
            caller,
            end_user: call.end_user,
            tags: &[],
            requested: call.model,
            model: call.model,
            group: call.model,
            counted: false,
            estimate: &estimate,
        };
        match self.gate.try_admit(&asked) {
            Some(decided) => decided,
            None => self.gate.admit(&asked).await,
        }
    }

    fn spend(&self, key: &Key, nanos: i64) {
        self.gate.0.spent(&Record {
            key_hash: Some(key.hash),
            spend_nanos: nanos,
            ended_micros: self.clock.now_micros(),
            ..testkit::record("r")
        });
    }
}

#[derive(Clone, Copy)]
struct Ask<'a> {
    model: &'a str,
    end_user: Option<&'a str>,
    tokens: u64,
    nanos: i64,
}

const CALL: Ask<'static> = Ask {
    model: "m",
    end_user: None,
    tokens: 10,
    nanos: 1_000,
};

fn key(fields: Value) -> Key {
    let mut key = testkit::key("sk-a");
    if let Value::Object(fields) = fields {
        key.extra = fields;
    }
    key.max_budget_nanos = Limits::of(&key.extra).budget.nanos;
    key
}

fn caller(key: &Key) -> Caller {
    Caller::Key(Arc::new(key.clone().into()))
}

fn party(kind: Kind, id: &str, fields: Value) -> Option<Arc<filters::model::party::Party>> {
    let Value::Object(fields) = fields else { panic!() };
    Some(Arc::new(filters::model::party::Party::new(kind, id, fields)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_calls_at_once_pass_a_budget_for_three_by_one_at_most() {
    let bench = Arc::new(Bench::new(Settings::default()).await);
    // 3,500 nano-dollars.
    let key = key(json!({"max_budget": "0.0000035"}));
    let caller = Arc::new(caller(&key));
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let (bench, caller) = (Arc::clone(&bench), Arc::clone(&caller));
        calls.spawn(async move { bench.ask(&caller, CALL).await.ok() });
    }
    let held: Vec<_> = calls.join_all().await.into_iter().flatten().collect();
    assert_eq!(held.len(), 4, "three fit, and one goes over");
    drop(held);
    for _ in 0..10 {
        assert!(bench.ask(&caller, CALL).await.is_ok(), "given back each time");
    }
    bench.spend(&key, 3_500);
    let refused = bench.ask(&caller, CALL).await.err().unwrap();
    assert_eq!(
        refused.why,
        Why::Budget {
            spent: 3_500,
            budget: 3_500,
            anew: None,
        }
    );
}

#[tokio::test]
async fn a_call_is_counted_by_all_or_by_none() {
    let bench = Bench::new(Settings::default()).await;
    let key =
        key(json!({"rpm_limit": 100, "max_parallel_requests": 100, "tpm_limit": 1000, "max_budget": 1}));
    let mut holder = Holder::from(key);
    holder.team = party(Kind::Team, "t", json!({"rpm_limit": 2}));
    holder.user = party(Kind::User, "u", json!({"rpm_limit": 100}));
    let caller = Caller::Key(Arc::new(holder));
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(bench.ask(&caller, CALL).await.unwrap());
    }
    for _ in 0..5 {
        let refused = bench.ask(&caller, CALL).await.err().unwrap();
        assert_eq!((refused.kind, refused.id.as_str()), (Kind::Team, "t"));
        let left = |kind, measure| {
            let found = refused
                .standings
                .iter()
                .find(|s| s.kind == kind && s.measure == measure);
            found.map(|s: &Standing| s.remaining)
        };
        assert_eq!(
            left(Kind::Key, Measure::Requests),
            Some(98),
            "the refused are not counted"
        );
        assert_eq!(left(Kind::User, Measure::Requests), Some(98));
        assert_eq!(left(Kind::Key, Measure::Tokens), Some(980));
        assert_eq!(left(Kind::Key, Measure::Parallel), Some(98));
        assert_eq!(left(Kind::Team, Measure::Requests), Some(0));
    }
    for mut held in held {
        held.settle(4);
    }
    let (_, stats) = bench.gate.0.stats()[5];
    assert_eq!((stats.in_flight, stats.reserved_nanos), (0, 0), "nothing leaks");
}

#[tokio::test]
async fn tokens_are_set_aside_and_settled() {
    let bench = Bench::new(Settings::default()).await;
    let caller = caller(&key(json!({"tpm_limit": 100})));
    let ask = |tokens| Ask { tokens, ..CALL };
    let mut first = bench.ask(&caller, ask(60)).await.unwrap();
    let refused = bench.ask(&caller, ask(60)).await.err().unwrap();
    assert!(matches!(
        refused.why,
        Why::Rate {
            measure: Measure::Tokens,
            limit: 100,
            remaining: 40,
            ..
        }
    ));
    first.settle(10);
    drop(first);
    let second = bench.ask(&caller, ask(60)).await.unwrap();
    assert_eq!(second.standings()[0].remaining, 30);
    drop(second);
    let huge = bench.ask(&caller, ask(1_000_000)).await.err().unwrap();
    assert!(
        matches!(
            huge.why,
            Why::Rate {
                retry_millis: 1..,
                ..
            }
        ),
        "it needs the whole window"
    );
}

#[tokio::test]
async fn a_model_has_limits_of_its_own() {
    let bench = Bench::new(Settings::default()).await;
    let caller = caller(&key(json!({
        "model_rpm_limit": {"m": 1}, "model_max_budget": {"dear": {"budget_limit": "0.000001", "time_period": "1d"}}
    })));
    let of = |model| Ask { model, ..CALL };
    let _one = bench.ask(&caller, of("m")).await.unwrap();
    let refused = bench.ask(&caller, of("m")).await.err().unwrap();
    assert_eq!((refused.kind, refused.model.as_deref()), (Kind::Key, Some("m")));
    assert!(bench.ask(&caller, of("other")).await.is_ok());
    let _dear = bench.ask(&caller, of("dear")).await.unwrap();
    let refused = bench.ask(&caller, of("dear")).await.err().unwrap();
    assert!(matches!(refused.why, Why::Budget { .. }));
    bench.clock.set(86_400_000_000);
    drop(_dear);
    assert!(bench.ask(&caller, of("dear")).await.is_ok());
}

#[tokio::test]
async fn whose_budget_counts() {
    let gateway = Limits::of(json!({"max_budget": "0.000004"}).as_object().unwrap());
    let settings = Settings {
        gateway,
        end_user_budget_nanos: Some(1_000),
        ..Settings::default()
    };
    let bench = Bench::new(settings).await;
    let mut holder = Holder::from(key(json!({})));
    holder.user = party(Kind::User, "u", json!({"max_budget": 0, "rpm_limit": 10}));
    let alone = Caller::Key(Arc::new(holder.clone()));
    let refused = bench.ask(&alone, CALL).await.err().unwrap();
    assert_eq!(refused.kind, Kind::User);
    holder.key.team_id = Some("t".into());
    let in_team = Caller::Key(Arc::new(holder));
    let _a = bench.ask(&in_team, CALL).await.unwrap();
    let of = |end_user| Ask {
        end_user: Some(end_user),
        ..CALL
    };
    let _b = bench.ask(&in_team, of("eve")).await.unwrap();
    let refused = bench.ask(&in_team, of("eve")).await.err().unwrap();
    assert_eq!((refused.kind, refused.id.as_str()), (Kind::EndUser, "eve"));
    let _c = bench.ask(&in_team, of("bob")).await.unwrap();
    let master = Caller::Master {
        hash: KeyHash::of("sk-master"),
    };
    let _d = bench.ask(&master, CALL).await.unwrap();
    let refused = bench.ask(&master, CALL).await.err().unwrap();
    assert_eq!(refused.kind, Kind::Gateway, "the gateway's budget is everybody's");
}

#[tokio::test]
async fn a_soft_budget_warns_once() {
    let bench = Bench::new(Settings::default()).await;
    let key = key(json!({"soft_budget": "0.000001", "max_budget": 1}));
    drop(bench.ask(&caller(&key), CALL).await);
    for _ in 0..3 {
        bench.spend(&key, 600);
    }
    assert_eq!(*bench.heard.0.lock().unwrap(), [(Kind::Key, 1_000)]);
}

#[tokio::test]
async fn who_waits_goes_in_when_a_place_comes_free() {
    let settings = Settings {
        queue: Some(QueueSettings {
            max_wait: Duration::from_secs(20),
            max_waiting: 2,
        }),
        ..Settings::default()
    };
    let bench = Arc::new(Bench::new(settings).await);
    let caller = Arc::new(caller(&key(json!({"max_parallel_requests": 1}))));
    let first = bench.ask(&caller, CALL).await.unwrap();
    let wait = || {
        let (bench, caller) = (Arc::clone(&bench), Arc::clone(&caller));
        tokio::spawn(async move { bench.ask(&caller, CALL).await })
    };
    let waiting = async |n: u32| {
        let meter = |m: &Arc<Meter>| m.waiting.load(Ordering::SeqCst);
        while bench.gate.0.table.iter().map(|m| meter(&m)).sum::<u32>() != n {
            tokio::task::yield_now().await;
        }
    };
    let second = wait();
    waiting(1).await;
    let third = wait();
    waiting(2).await;
    let fourth = bench.ask(&caller, CALL).await.err().unwrap();
    assert!(
        matches!(fourth.why, Why::Queue { waiting: 2, .. }),
        "no more may wait"
    );
    // One that leaves frees its place.
    third.abort();
    waiting(1).await;
    let third = wait();
    waiting(2).await;
    drop(first);
    let second = second.await.unwrap().unwrap();
    assert_eq!(second.queued(), Some(1));
    drop(second);
    let third = third.await.unwrap().unwrap();
    assert_eq!(third.queued(), Some(2));
}

#[tokio::test]
async fn meters_that_nobody_uses_are_let_go_of() {
    let settings = Settings {
        end_user_budget_nanos: Some(1_000_000),
        ..Settings::default()
    };
    let bench = Bench::new(settings).await;
    let caller = caller(&key(json!({})));
    let names: Vec<String> = (0..50).map(|n| format!("made-up-{n}")).collect();
    for name in &names {
        let call = Ask {
            end_user: Some(name),
            ..CALL
        };
        drop(bench.ask(&caller, call).await);
    }
    let meters = &bench.gate.0;
    assert_eq!(meters.table.len(), 50);
    let later = Now {
        mono: meters.now().mono + 1_000_000,
        wall: 0,
    };
    meters.guests.sweep(later);
    meters
        .table
        .retain(|_, m| Arc::strong_count(m) > 1 || !m.is_idle(later, 120_000));
    assert_eq!(meters.table.len(), 0);
}

#[tokio::test]
async fn a_name_that_means_two_models_has_the_limits_of_each() {
    let Value::Object(fields) = json!({"model_rpm_limit": {"small": 2}}) else {
        panic!()
    };
    let settings = Settings {
        gateway: Limits::of(&fields),
        ..Settings::default()
    };
    let bench = Bench::new(settings).await;
    let caller = caller(&key(json!({})));
    let is_let_in = |group| {
        let asked = Asked {
            caller: &caller,
            end_user: None,
            tags: &[],
            requested: "mine",
            model: group,
            group,
            counted: false,
            estimate: &Estimate::default,
        };
        bench.gate.try_admit(&asked).unwrap().is_ok()
    };
    // One key's alias means another model than the other's.
    assert!(is_let_in("other"));
    assert_eq!(["small"; 3].map(is_let_in), [true, true, false]);
    assert!(is_let_in("other"));
}

#[tokio::test]
async fn a_call_that_goes_on_keeps_its_place_and_sets_aside_anew() {
    let bench = Bench::new(Settings::default()).await;
    let limits = json!({
        "max_parallel_requests": 1, "rpm_limit": 2, "tpm_limit": 100, "max_budget": 0.001,
        "model_rpm_limit": {"second": 1}, "model_max_parallel_requests": {"first": 1},
    });
    let caller = caller(&key(limits));
    let estimate = || Estimate {
        tokens: 60,
        nanos: 600_000,
    };
    let asked = |model, counted| Asked {
        caller: &caller,
        end_user: None,
        tags: &[],
        requested: model,
        model,
        group: model,
        counted,
        estimate: &estimate,
    };
    let mut place = bench.gate.admit(&asked("first", false)).await.unwrap();
    let other = bench.gate.admit(&asked("other", true)).await;
    assert!(
        other.is_err(),
        "tokens and money of the first are set aside still"
    );
    place.go_on();
    let stranger = bench.gate.admit(&asked("other", false)).await.err().unwrap();
    let is_of =
        |refused: &Refused, wanted| matches!(refused.why, Why::Rate { measure, .. } if measure == wanted);
    assert!(is_of(&stranger, Measure::Parallel), "{stranger:?}");
    let second = bench.gate.admit(&asked("second", true)).await.unwrap();
    assert!(
        bench.gate.admit(&asked("second", true)).await.is_err(),
        "the model's own limits count"
    );
    drop(second);
    drop(place);
    let again = bench.gate.admit(&asked("first", false)).await;
    assert!(again.is_ok(), "two calls are two requests");
    drop(again);
    let third = bench.gate.admit(&asked("first", false)).await.err().unwrap();
    assert!(is_of(&third, Measure::Requests), "{third:?}");
    let in_flight = bench.gate.0.stats().iter().map(|(_, s)| s.in_flight).sum::<u64>();
    assert_eq!(in_flight, 0);
}

#[tokio::test]
async fn a_name_of_ones_own_widens_no_limit() {
    let fields = json!({
        "model_rpm_limit": {"dear": 1, "cheap": 100, "openai/big": 1},
        "model_max_budget": {"dear": 0.000_001, "cheap": 9},
    });
    for (requested, model, group) in [
        // An alias of the key's own that is another model's name, and one behind a wildcard.
        ("cheap", "dear", "dear"),
        ("mine", "dear", "dear"),
        ("mine", "openai/big", "openai/*"),
        ("cheap", "openai/big", "openai/*"),
    ] {
        let bench = Bench::new(Settings::default()).await;
        let caller = caller(&key(fields.clone()));
        let asked = Asked {
            caller: &caller,
            end_user: None,
            tags: &[],
            requested,
            model,
            group,
            counted: false,
            estimate: &Estimate::default,
        };
        let first = bench.gate.admit(&asked).await;
        assert!(first.is_ok(), "{requested}");
        drop(first);
        let refused = bench.gate.admit(&asked).await.err().unwrap();
        assert_eq!(refused.model.as_deref(), Some(model), "{requested}");
    }
    // And its money is what the model's own budget says.
    let bench = Bench::new(Settings::default()).await;
    let caller = caller(&key(json!({"model_max_budget": {"dear": 0.000_001, "cheap": 9}})));
    let estimate = || Estimate {
        tokens: 1,
        nanos: 1_000,
    };
    let asked = Asked {
        caller: &caller,
        end_user: None,
        tags: &[],
        requested: "cheap",
        model: "dear",
        group: "dear",
        counted: false,
        estimate: &estimate,
    };
    let _held = bench.gate.admit(&asked).await.ok().unwrap();
    let refused = bench.gate.admit(&asked).await.err().unwrap();
    assert!(
        matches!(refused.why, Why::Budget { budget: 1_000, .. }),
        "{:?}",
        refused.why
    );
}

#[tokio::test]
async fn what_a_call_did_not_use_is_told_to_redis_after_it() {
    let bench = Bench::new(Settings::default()).await;
    let key = key(json!({"tpm_limit": 1000}));
    let held = bench.ask(&caller(&key), CALL).await.ok().unwrap();
    let meters = &bench.gate.0;
    let meter = Arc::clone(&meters.table.iter().next().unwrap());
    // Granted elsewhere: half of it is not used.
    meter.state.lock().tokens.as_mut().unwrap().share.back(7, 1);
    assert!(meters.listed.lock().is_empty());
    drop(held);
    assert_eq!(meters.listed.lock().len(), 1);
}

#[tokio::test]
async fn what_is_set_aside_is_told() {
    let bench = Bench::new(Settings::default()).await;
    let key = key(json!({"max_budget": 1}));
    let (mine, other) = (
        Account::new(Kind::Key, key.hash.hex()),
        Account::new(Kind::Key, "somebody else"),
    );
    let told = || bench.gate.0.set_aside(&[&other, &mine]);
    assert_eq!(told(), [0, 0]);
    let held = bench.ask(&caller(&key), CALL).await.ok().unwrap();
    assert_eq!(told(), [0, CALL.nanos]);
    drop(held);
    assert_eq!(told(), [0, 0]);
}

#[tokio::test]
async fn what_the_config_says_later_counts_from_then_on() {
    let bench = Bench::new(Settings::default()).await;
    let meters = Arc::clone(&bench.gate.0);
    let caller = caller(&key(json!({})));
    let limits = |fields: Value| Settings {
        gateway: Limits::of(fields.as_object().unwrap()),
        ..Settings::default()
    };
    let _first = bench.ask(&caller, CALL).await.unwrap();
    meters.apply(&limits(json!({"rpm_limit": 2})));
    for _ in 0..2 {
        assert!(bench.ask(&caller, CALL).await.is_ok());
    }
    let refused = bench.ask(&caller, CALL).await.err().unwrap();
    assert_eq!(refused.kind, Kind::Gateway);
    // What was counted stays counted.
    meters.apply(&limits(json!({"rpm_limit": 3})));
    assert!(bench.ask(&caller, CALL).await.is_ok());
    assert!(bench.ask(&caller, CALL).await.is_err());
    meters.apply(&Settings::default());
    assert!(bench.ask(&caller, CALL).await.is_ok());
    // End users that nobody has made known, and were let pass a moment ago.
    let eve = Ask {
        end_user: Some("eve"),
        ..CALL
    };
    let _held = bench.ask(&caller, eve).await.unwrap();
    meters.apply(&Settings {
        end_user_budget_nanos: Some(1_000),
        ..Settings::default()
    });
    let _held = bench.ask(&caller, eve).await.unwrap();
    let refused = bench.ask(&caller, eve).await.err().unwrap();
    assert_eq!(refused.kind, Kind::EndUser);
}

#[tokio::test]
async fn another_calendar_makes_budgets_look_again() {
    // The store has a clock of its own, so now is now.
    let now = jiff::Timestamp::now();
    let midnight = |seconds_ago: i64| {
        let since = (now.as_second() - seconds_ago).rem_euclid(86_400);
        let offset = jiff::tz::Offset::from_seconds(-i32::try_from(since).unwrap()).unwrap();
        Settings {
            calendar: Calendar {
                zone: jiff::tz::TimeZone::fixed(offset),
                ..Calendar::default()
            },
            ..Settings::default()
        }
    };
    let bench = Bench::new(midnight(3_600)).await;
    bench.clock.set(now.as_microsecond());
    let key = key(json!({"max_budget": "0.000001", "budget_duration": "1d"}));
    let a_minute_ago = now.as_microsecond() - 60_000_000;
    let spent = Record {
        key_hash: Some(key.hash),
        spend_nanos: 1_000,
        started_micros: a_minute_ago,
        ended_micros: a_minute_ago,
        ..testkit::record("spent")
    };
    bench.gate.0.world.store.append(&[spent]).await.unwrap();
    let caller = caller(&key);
    let refused = bench.ask(&caller, CALL).await.err().unwrap();
    assert_eq!(refused.kind, Kind::Key, "spent today");
    bench.gate.0.apply(&midnight(10));
    assert!(
        bench.ask(&caller, CALL).await.is_ok(),
        "where the day has just begun, that was yesterday"
    );
    bench.gate.0.apply(&midnight(3_600));
    assert!(
        bench.ask(&caller, CALL).await.is_err(),
        "and here it is today again"
    );
}
