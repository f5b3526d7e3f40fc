//! Lists of calls, on both stores: whatever they are narrowed by, in every order and by every way of paging they
//! hold what a plain look at all rows finds.

use crate::store::{DAY, both, record};
use filters::model::key::KeyHash;
use filters::model::record::{Record, Status};
use jiff::Timestamp;
use tollkeeper::store::{DailyRow, Page, SpendFilter, SpendOrder, Store, lists};

const ORDERS: [SpendOrder; 4] = [
    SpendOrder::Newest,
    SpendOrder::Oldest,
    SpendOrder::Dearest,
    SpendOrder::Cheapest,
];

fn now() -> i64 {
    Timestamp::now().as_microsecond()
}

/// Numbers that look drawn, the same each time.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn of(&mut self, what: &str, sides: u64) -> String {
        format!("{what}{}", self.throw(sides))
    }
}

/// Calls of some two years: on days with a table of their own, on days beyond, before and between them.
fn made(dice: &mut Dice, id: &str) -> Record {
    let day = match dice.throw(4) {
        0 => dice.throw(3),
        1 => dice.throw(40),
        2 => 380 + dice.throw(40),
        _ => 700 + dice.throw(30) * 7,
    };
    let well = dice.throw(3) > 0;
    Record {
        started_micros: now() - day as i64 * DAY - dice.throw(5) as i64 * 3_600_000_000,
        key_hash: (dice.throw(8) > 0).then(|| KeyHash::of(&dice.of("k", 3))),
        key_alias: (dice.throw(3) > 0).then(|| dice.of("alias", 2)),
        user_id: (dice.throw(4) > 0).then(|| dice.of("u", 3)),
        team_id: (dice.throw(4) > 0).then(|| dice.of("t", 2)),
        organization_id: (dice.throw(2) > 0).then(|| dice.of("o", 2)),
        end_user: (dice.throw(2) > 0).then(|| dice.of("c", 3)),
        model_group: dice.of("g", 3),
        model: dice.of("m", 3),
        tags: (0..dice.throw(3)).map(|_| dice.of("it's ", 3)).collect(),
        status: match (well, dice.throw(3)) {
            (true, _) => Status::Success,
            (_, 0) => Status::Failure,
            (_, 1) => Status::Cut,
            _ => Status::Aborted,
        },
        http_status: if well {
            200
        } else {
            [200, 404, 429, 500][dice.throw(4) as usize]
        },
        spend_nanos: dice.throw(6) as i64,
        ..record(id)
    }
}

fn asked(dice: &mut Dice) -> SpendFilter {
    let mut some = |n: u64| dice.throw(n) == 0;
    let which: Vec<bool> = (0..13).map(|_| some(6)).collect();
    let start = now() - dice.throw(800) as i64 * DAY;
    SpendFilter {
        key_hash: which[0].then(|| KeyHash::of(&dice.of("k", 4))),
        key_alias: which[1].then(|| dice.of("alias", 3)),
        user_id: which[2].then(|| dice.of("u", 4)),
        team_id: which[3].then(|| dice.of("t", 3)),
        organization_id: which[4].then(|| dice.of("o", 3)),
        end_user: which[5].then(|| dice.of("c", 4)),
        model_group: which[6].then(|| dice.of("g", 4)),
        model: which[7].then(|| dice.of("m", 4)),
        tag: which[8].then(|| dice.of("it's ", 4)),
        status: which[9].then_some([Status::Failure, Status::Cut, Status::Success][dice.throw(3) as usize]),
        success: which[10].then_some(dice.throw(2) == 0),
        http_status: which[11]
            .then_some([(404, 404), (400, 499), (200, 299), (0, 999)][dice.throw(4) as usize]),
        min_spend_nanos: which[12].then_some(dice.throw(7) as i64),
        start_micros: (dice.throw(4) == 0).then_some(start),
        end_micros: (dice.throw(4) == 0).then_some(start + dice.throw(400) as i64 * DAY),
        order: ORDERS[dice.throw(4) as usize],
        ..SpendFilter::default()
    }
}

fn fits(f: &SpendFilter, r: &Record) -> bool {
    fn is(asked: &Option<String>, has: &Option<String>) -> bool {
        asked.is_none() || asked == has
    }
    f.key_hash.is_none_or(|k| r.key_hash == Some(k))
        && is(&f.key_alias, &r.key_alias)
        && is(&f.user_id, &r.user_id)
        && is(&f.team_id, &r.team_id)
        && is(&f.organization_id, &r.organization_id)
        && is(&f.end_user, &r.end_user)
        && f.model_group.as_ref().is_none_or(|g| *g == r.model_group)
        && f.model
            .as_ref()
            .is_none_or(|m| *m == r.model_group || *m == r.model)
        && f.tag.as_ref().is_none_or(|t| r.tags.contains(t))
        && f.status.is_none_or(|s| s == r.status)
        && f.success.is_none_or(|s| s == (r.status == Status::Success))
        && f.http_status
            .is_none_or(|(a, b)| (a..=b).contains(&r.http_status))
        && f.min_spend_nanos.is_none_or(|n| r.spend_nanos >= n)
        && f.start_micros.is_none_or(|t| r.started_micros >= t)
        && f.end_micros.is_none_or(|t| r.started_micros < t)
}

fn sorted<'a>(f: &SpendFilter, rows: &'a [Record]) -> Vec<&'a Record> {
    let mut found: Vec<&Record> = rows.iter().filter(|r| fits(f, r)).collect();
    found.sort_by_key(|r| match f.order {
        SpendOrder::Newest | SpendOrder::Oldest => (r.started_micros, &r.request_id),
        SpendOrder::Dearest | SpendOrder::Cheapest => (r.spend_nanos, &r.request_id),
    });
    if matches!(f.order, SpendOrder::Newest | SpendOrder::Dearest) {
        found.reverse();
    }
    found
}

/// Asks many questions in many ways and looks at the rows for the answer.
async fn agrees(s: &dyn Store, dice: &mut Dice, rows: &[Record], questions: usize) {
    for _ in 0..questions {
        let f = asked(dice);
        agrees_on(s, dice, rows, f).await;
    }
}

/// One question, by page, by cursor, and how many.
async fn agrees_on(s: &dyn Store, dice: &mut Dice, rows: &[Record], f: SpendFilter) {
    let plain = sorted(&f, rows);
    let limit = 1 + dice.throw(20) as u32;
    let offset = dice.throw(plain.len() as u64 + 2);
    let by_number = SpendFilter {
        page: Page { limit, offset },
        ..f.clone()
    };
    let found = s.spend_logs(&by_number).await.unwrap();
    let ids: Vec<&str> = found.iter().map(|r| r.request_id.as_str()).collect();
    let expected: Vec<&str> = plain
        .iter()
        .skip(offset as usize)
        .take(limit as usize)
        .map(|r| r.request_id.as_str())
        .collect();
    assert_eq!(ids, expected, "{} {by_number:?}", s.kind());
    for row in &found {
        assert_eq!(rows.iter().find(|r| r.request_id == row.request_id), Some(row));
    }
    let mut after = None;
    let mut walked = Vec::new();
    loop {
        let page = Page {
            limit: limit + 10,
            offset: 0,
        };
        let part = SpendFilter {
            after,
            page,
            ..f.clone()
        };
        let part = s.spend_logs(&part).await.unwrap();
        let Some(last) = part.last() else { break };
        let value = match f.order {
            SpendOrder::Newest | SpendOrder::Oldest => last.started_micros,
            SpendOrder::Dearest | SpendOrder::Cheapest => last.spend_nanos,
        };
        after = Some((value, last.request_id.clone()));
        walked.extend(part.into_iter().map(|r| r.request_id));
    }
    let expected: Vec<&str> = plain.iter().map(|r| r.request_id.as_str()).collect();
    assert_eq!(walked, expected, "{} {f:?}", s.kind());
    let all = plain.len() as u64;
    assert_eq!(s.count_records(&f).await.unwrap(), all, "{f:?}");
    assert_eq!(
        lists::count(s, &f).await.unwrap(),
        (all, true),
        "{} {f:?}",
        s.kind()
    );
    let most = dice.throw(30);
    assert_eq!(s.count_up_to(&f, most).await.unwrap(), all.min(most), "{f:?}");
}

/// All days that are over.
async fn look_through(s: &dyn Store) {
    while s.digest_day().await.unwrap() {}
}

#[tokio::test]
async fn every_list_holds_what_a_plain_look_finds() {
    both(async |s| {
        let mut dice = Dice(7);
        let mut rows: Vec<Record> = (0..400).map(|n| made(&mut dice, &format!("r{n:03}"))).collect();
        for part in rows.chunks(70) {
            s.append(part).await.unwrap();
        }
        agrees(&*s, &mut dice, &rows, 50).await;
        // The same once the days were looked through, and with calls that came to such days afterwards.
        look_through(&*s).await;
        agrees(&*s, &mut dice, &rows, 50).await;
        let late: Vec<Record> = (0..60).map(|n| made(&mut dice, &format!("late{n:03}"))).collect();
        s.append(&late).await.unwrap();
        rows.extend(late);
        agrees(&*s, &mut dice, &rows, 20).await;
        look_through(&*s).await;
        agrees(&*s, &mut dice, &rows, 30).await;
        let others: Vec<Record> = (0..80).map(|n| made(&mut dice, &format!("old{n:03}"))).collect();
        assert_eq!(s.import_records(&others, false).await.unwrap(), 80);
        rows.extend(others);
        agrees(&*s, &mut dice, &rows, 30).await;
    })
    .await;
}

#[tokio::test]
async fn one_call_is_found_by_its_id_wherever_it_lies() {
    both(async |s| {
        let made = |days: i64, id: String| Record {
            started_micros: now() - days * DAY,
            ..record(&id)
        };
        let here = uuid::Uuid::now_v7().to_string();
        // An id of now, of a call that began long ago.
        let strange = uuid::Uuid::now_v7().to_string();
        let rows = [
            made(0, here.clone()),
            made(200, strange.clone()),
            made(900, "mine".into()),
        ];
        s.append(&rows).await.unwrap();
        let ids = [
            (here, 1),
            (strange, 1),
            ("mine".into(), 1),
            ("nobody's".into(), 0),
            (uuid::Uuid::now_v7().to_string(), 0),
        ];
        for _ in 0..2 {
            for (id, found) in &ids {
                let f = SpendFilter {
                    request_id: Some(id.clone()),
                    ..SpendFilter::default()
                };
                let there = s.spend_logs(&f).await.unwrap();
                let there: Vec<&String> = there.iter().map(|r| &r.request_id).collect();
                assert_eq!(there, vec![id; *found], "{}", s.kind());
                assert_eq!(lists::count(&*s, &f).await.unwrap(), (*found as u64, true));
            }
            look_through(&*s).await;
        }
    })
    .await;
}

/// Calls at the first and the last moment of days, many of one moment and one price, in days that were looked
/// through and such that were not.
#[tokio::test]
async fn days_that_were_looked_through_keep_to_their_borders() {
    both(async |s| {
        let mut dice = Dice(11);
        let midnight = |days: i64| (now() / DAY - days) * DAY;
        let border = |dice: &mut Dice| midnight(dice.throw(9) as i64) + [-1, 0, 1][dice.throw(3) as usize];
        let mut rows = Vec::new();
        for part in 0..2 {
            let some: Vec<Record> = (0..150)
                .map(|n| Record {
                    started_micros: border(&mut dice),
                    spend_nanos: dice.throw(2) as i64,
                    key_hash: Some(KeyHash::of(&dice.of("k", 2))),
                    key_alias: Some(dice.of("alias", 2)),
                    team_id: Some(dice.of("t", 2)),
                    tags: vec![dice.of("tag", 2)],
                    ..record(&format!("r{part}{:03}", (n * 77) % 150))
                })
                .collect();
            s.append(&some).await.unwrap();
            rows.extend(some);
            // The second time half of the calls came to days that were looked through.
            for looked_through in [false, true] {
                if looked_through {
                    look_through(&*s).await;
                }
                for n in 0..60 {
                    let start = border(&mut dice);
                    let f = SpendFilter {
                        start_micros: (n % 2 == 0).then_some(start),
                        end_micros: (n % 3 == 0).then(|| start.max(border(&mut dice))),
                        key_alias: (n % 5 == 1).then(|| dice.of("alias", 3)),
                        tag: (n % 5 == 2).then(|| dice.of("tag", 3)),
                        team_id: (n % 5 > 2).then(|| dice.of("t", 3)),
                        order: ORDERS[dice.throw(4) as usize],
                        ..SpendFilter::default()
                    };
                    agrees_on(&*s, &mut dice, &rows, f).await;
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn pages_far_back_are_found_by_their_number() {
    both(async |s| {
        let mut dice = Dice(17);
        let rows: Vec<Record> = (0..2_400)
            .map(|n| {
                let made = made(&mut dice, &format!("r{n:04}"));
                Record {
                    started_micros: now() - dice.throw(12) as i64 * DAY,
                    ..made
                }
            })
            .collect();
        for part in rows.chunks(800) {
            s.append(part).await.unwrap();
        }
        look_through(&*s).await;
        for order in [SpendOrder::Newest, SpendOrder::Oldest] {
            for alias in [None, Some("alias1".to_string())] {
                for start in [None, Some(now() - 7 * DAY)] {
                    let f = SpendFilter {
                        key_alias: alias.clone(),
                        start_micros: start,
                        order,
                        ..SpendFilter::default()
                    };
                    let plain = sorted(&f, &rows);
                    for offset in [1_000, 1_300, 2_350] {
                        let page = Page { limit: 60, offset };
                        let found = s.spend_logs(&SpendFilter { page, ..f.clone() }).await.unwrap();
                        let found: Vec<&str> = found.iter().map(|r| r.request_id.as_str()).collect();
                        let expected = plain.iter().skip(offset as usize).take(60);
                        let expected: Vec<&str> = expected.map(|r| r.request_id.as_str()).collect();
                        assert_eq!(found, expected, "{} {f:?} {offset}", s.kind());
                    }
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn calls_that_come_while_days_are_looked_through_are_told_of() {
    both(async |s| {
        let mut dice = Dice(19);
        let rows: Vec<Record> = (0..240)
            .map(|n| {
                let made = made(&mut dice, &format!("r{n:03}"));
                Record {
                    started_micros: now() - (3 + dice.throw(3) as i64) * DAY,
                    ..made
                }
            })
            .collect();
        let (some, late) = rows.split_at(60);
        s.append(some).await.unwrap();
        // One store, and two that look through at the same time.
        let append = async {
            for part in late.chunks(6) {
                s.append(part).await.unwrap();
            }
        };
        let look = async {
            for _ in 0..60 {
                s.digest_day().await.unwrap();
            }
        };
        tokio::join!(append, look, look_through(&*s));
        agrees(&*s, &mut dice, &rows, 20).await;
        look_through(&*s).await;
        agrees(&*s, &mut dice, &rows, 20).await;
    })
    .await;
}

#[tokio::test]
async fn long_names_do_not_keep_a_day_from_being_looked_through() {
    both(async |s| {
        let long = |c: char| c.to_string().repeat(800);
        let rows: Vec<Record> = (0..6)
            .map(|n| Record {
                started_micros: now() - (5 + n % 2) * DAY,
                key_alias: Some(long(if n % 3 == 0 { 'a' } else { 'b' })),
                tags: vec![long('é'), long('t')],
                end_user: Some(long('c')),
                model: long('m'),
                key_hash: None,
                ..record(&format!("r{n}"))
            })
            .collect();
        s.append(&rows).await.unwrap();
        look_through(&*s).await;
        let mut dice = Dice(23);
        let any = SpendFilter::default;
        for f in [
            any(),
            SpendFilter {
                key_alias: Some(long('a')),
                ..any()
            },
            SpendFilter {
                key_alias: Some(long('x')),
                ..any()
            },
            SpendFilter {
                tag: Some(long('é')),
                key_alias: Some(long('b')),
                ..any()
            },
            SpendFilter {
                model: Some(long('m')),
                end_user: Some(long('c')),
                ..any()
            },
        ] {
            for order in ORDERS {
                agrees_on(&*s, &mut dice, &rows, SpendFilter { order, ..f.clone() }).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_let_go_of_is_not_counted_any_more() {
    both(async |s| {
        let mut dice = Dice(13);
        let mut rows: Vec<Record> = (0..200)
            .map(|n| Record {
                started_micros: now() - dice.throw(20) as i64 * DAY,
                ..made(&mut dice, &format!("r{n:03}"))
            })
            .collect();
        s.append(&rows).await.unwrap();
        look_through(&*s).await;
        let first = now() / DAY - 10;
        let day = Timestamp::from_microsecond(first * DAY).unwrap();
        let day = day.to_zoned(jiff::tz::TimeZone::UTC).date();
        let before = rows.len();
        rows.retain(|r| r.started_micros >= first * DAY);
        let dropped = s.drop_rows_before(day).await.unwrap();
        assert_eq!(dropped, (before - rows.len()) as u64);
        agrees(&*s, &mut dice, &rows, 60).await;
        look_through(&*s).await;
        agrees(&*s, &mut dice, &rows, 30).await;
    })
    .await;
}

#[tokio::test]
async fn a_search_looks_at_some_calls_and_says_where_to_go_on() {
    both(async |s| {
        let rows: Vec<Record> = (0..30)
            .map(|n: i64| Record {
                started_micros: now() - n * DAY,
                ..record(&format!(
                    "call {n:02} {}",
                    if n % 10 == 7 { "needle" } else { "hay" }
                ))
            })
            .collect();
        s.append(&rows).await.unwrap();
        let day = |n: i64| {
            (Timestamp::from_microsecond(now() - n * DAY).unwrap())
                .to_zoned(jiff::tz::TimeZone::UTC)
                .date()
        };
        // As many calls on each day as one search looks at in three.
        let busy: Vec<DailyRow> = (0..30)
            .map(|n| DailyRow {
                day: day(n),
                key_hash: None,
                model_group: "g".into(),
                user_id: String::new(),
                team_id: String::new(),
                organization_id: String::new(),
                provider: String::new(),
                requests: 20_000,
                successes: 20_000,
                failures: 0,
                prompt_tokens: 0,
                completion_tokens: 0,
                cached_tokens: 0,
                cache_creation_tokens: 0,
                spend_nanos: 0,
            })
            .collect();
        s.import_daily(&busy, false).await.unwrap();
        for order in [SpendOrder::Newest, SpendOrder::Oldest] {
            let mut seen = Vec::new();
            let mut after = None;
            let mut answers = 0;
            loop {
                let f = SpendFilter {
                    request_id_part: Some("needle".into()),
                    order,
                    after,
                    ..SpendFilter::default()
                };
                let (found, on) = lists::search(&*s, &f).await.unwrap();
                assert!(found.len() <= 1, "three days hold one at most");
                seen.extend(found.into_iter().map(|r| r.request_id));
                answers += 1;
                match on {
                    Some(on) => after = Some(on),
                    None => break,
                }
            }
            let mut expected = vec!["call 07 needle", "call 17 needle", "call 27 needle"];
            if order == SpendOrder::Oldest {
                expected.reverse();
            }
            assert_eq!(seen, expected, "{}", s.kind());
            assert!((8..=30).contains(&answers), "{answers}");
        }
        // A page that is full ends the search, whatever is left to look at.
        let f = SpendFilter {
            request_id_part: Some("hay".into()),
            page: Page { limit: 2, offset: 0 },
            ..SpendFilter::default()
        };
        let (found, on) = lists::search(&*s, &f).await.unwrap();
        assert_eq!((found.len(), on), (2, None));
    })
    .await;
}
