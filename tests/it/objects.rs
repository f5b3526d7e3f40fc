//! Keys, objects, their audit and their news: one suite, run on SQLite and on a real Postgres.

use crate::kit::{postgres, until, within};
use crate::store::{DAY, NOON, both, differences, key, open, record};
use filters::model::account::{Account, Kind};
use filters::model::key::{Key, KeyHash};
use filters::model::record::Record;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::Receiver;
use tollkeeper::store::{
    Audit, AuditFilter, Change, Doc, DocFilter, KeyFilter, KeySort, MAX_ROWS, News, Order, Page, Store,
    StoreError, Table, Taken,
};

fn map(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn doc(id: &str, fields: Value) -> Doc {
    Doc {
        id: id.into(),
        fields: map(fields),
        version: 0,
        created_at_micros: NOON,
        updated_at_micros: NOON,
    }
}

async fn put(s: &dyn Store, table: Table, doc: &Doc) -> Result<(), StoreError> {
    s.change(&[Change::Put { table, doc }], &[]).await
}

fn audit(n: i64) -> Audit {
    Audit {
        id: format!("audit-{n}"),
        at_micros: NOON + n,
        changed_by: "admin".into(),
        changed_by_key: Some(KeyHash::of("sk-admin")),
        action: "created".into(),
        table_name: "user".into(),
        object_id: "alice".into(),
        before: None,
        after: Some(json!({"n": n, "text": "é\u{0}"})),
    }
}

async fn ids(s: &dyn Store, table: Table, filter: DocFilter) -> String {
    let found = s.documents(table, &filter).await.unwrap();
    let ids: Vec<&str> = found.docs.iter().map(|d| d.id.as_str()).collect();
    ids.join(" ")
}

async fn names(s: &dyn Store, filter: KeyFilter) -> String {
    let found = s.list_keys(&filter, Page::default()).await.unwrap();
    assert_eq!(found.total, found.keys.len() as u64);
    let names: Vec<&str> = found
        .keys
        .iter()
        .map(|k| k.key_alias.as_deref().unwrap_or("-"))
        .collect();
    names.join(" ")
}

/// Waits until the store hears what is told from now on.
async fn listening(s: &dyn Store) -> Receiver<News> {
    let mut news = s.news();
    if s.kind() == "postgres" {
        // Only once a change of ours came back is it certain that the connection listens.
        let mut n = 0;
        until("the store listens", async || {
            n += 1;
            let probe = doc(&format!("probe-{n}"), json!({}));
            put(s, Table::Tag, &probe).await.unwrap();
            let heard = tokio::time::timeout(Duration::from_millis(200), async {
                while news.recv().await.unwrap() != News::Doc(Table::Tag, probe.id.clone()) {}
            });
            heard.await.is_ok()
        })
        .await;
    }
    news
}

async fn next(news: &mut Receiver<News>) -> News {
    within("there is news", news.recv()).await.unwrap()
}

#[tokio::test]
async fn keys_are_kept_as_they_were_given() {
    both(async |s| {
        let a = key("sk-a");
        s.insert_key(&a).await.unwrap();
        assert_eq!(s.key_by_hash(&a.hash).await.unwrap(), Some(a.clone()));
        assert_eq!(s.key_by_hash(&KeyHash::of("sk-none")).await.unwrap(), None);
        let bare = Key {
            key_alias: None,
            user_id: None,
            team_id: None,
            models: vec![],
            aliases: BTreeMap::new(),
            max_budget_nanos: None,
            expires_micros: None,
            blocked: true,
            metadata: Default::default(),
            extra: Default::default(),
            created_by: None,
            created_at_micros: NOON + 1,
            ..key("sk-bare")
        };
        s.insert_key(&bare).await.unwrap();
        assert_eq!(s.key_by_hash(&bare.hash).await.unwrap(), Some(bare.clone()));

        let all = s.list_keys(&KeyFilter::default(), Page::default()).await.unwrap();
        assert_eq!(
            (all.keys, all.total),
            (vec![bare.clone(), a.clone()], 2),
            "newest first"
        );
        let page = Page { limit: 1, offset: 1 };
        let second = s.list_keys(&KeyFilter::default(), page).await.unwrap();
        assert_eq!((second.keys, second.total), (vec![a.clone()], 2));
        assert_eq!(s.keys_of_user("alice").await.unwrap(), vec![a.clone()]);
        let aliases = ["alias of sk-a".to_string(), "no such".to_string()];
        assert_eq!(s.keys_by_alias(&aliases).await.unwrap(), vec![a.clone()]);

        let gone = s.delete_keys(&[a.hash, KeyHash::of("sk-none")]).await.unwrap();
        assert_eq!(gone, [a.hash], "only what was there is reported");
        assert_eq!(s.key_by_hash(&a.hash).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn what_is_taken_is_named() {
    both(async |s| {
        let a = key("sk-a");
        s.insert_key(&a).await.unwrap();
        assert_eq!(
            s.insert_key(&a).await,
            Err(StoreError::Conflict { what: Taken::Key })
        );
        let twin = Key {
            key_alias: a.key_alias.clone(),
            ..key("sk-b")
        };
        let taken = Err(StoreError::Conflict {
            what: Taken::KeyAlias,
        });
        assert_eq!(s.insert_key(&twin).await, taken);
        s.insert_key(&key("sk-b")).await.unwrap();
        assert_eq!(s.update_key(&twin).await.map(drop), taken);
        for text in ["sk-c", "sk-d"] {
            let nameless = Key {
                key_alias: None,
                ..key(text)
            };
            s.insert_key(&nameless)
                .await
                .expect("no alias is not an alias that is taken");
        }
    })
    .await;
}

#[tokio::test]
async fn an_update_keeps_spend_and_creation() {
    both(async |s| {
        let old = key("sk-a");
        s.insert_key(&old).await.unwrap();
        s.append(&[record("r1")]).await.unwrap();
        let new = Key {
            key_alias: Some("renamed".into()),
            user_id: Some("bob".into()),
            blocked: true,
            spend_nanos: 77,
            created_at_micros: 1,
            updated_at_micros: NOON + 9,
            ..old.clone()
        };
        assert!(s.update_key(&new).await.unwrap());
        let expected = Key {
            spend_nanos: 1_500,
            created_at_micros: NOON,
            ..new
        };
        assert_eq!(s.key_by_hash(&old.hash).await.unwrap(), Some(expected));
        assert_eq!(
            s.document(Table::User, "bob").await.unwrap(),
            None,
            "a key may name a user that nobody has added"
        );
        assert!(!s.update_key(&key("sk-none")).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn keys_are_found_by_what_they_are() {
    both(async |s| {
        for (n, name) in ["Alpha", "beta", "gam%ma", "del_ta"].iter().enumerate() {
            let n = n as i64;
            let k = Key {
                key_alias: Some(name.to_string()),
                team_id: Some(format!("t{n}")),
                blocked: n == 1,
                // The day after, or long ago.
                expires_micros: [None, Some(i64::MAX / 4), Some(NOON - NOON / 2), Some(1)][n as usize],
                created_at_micros: NOON + n,
                created_by: Some(format!("maker{}", n % 2)),
                spend_nanos: 10 - n,
                extra: map(json!({"organization_id": format!("o{}", n / 2)})),
                ..key(name)
            };
            s.insert_key(&k).await.unwrap();
        }
        let bare = Key {
            key_alias: None,
            team_id: None,
            created_by: None,
            expires_micros: None,
            created_at_micros: NOON + 9,
            extra: Map::new(),
            ..key("sk-bare-nail")
        };
        s.insert_key(&bare).await.unwrap();
        let any = KeyFilter::default;
        let cases = [
            (any(), "- del_ta gam%ma beta Alpha"),
            (
                KeyFilter {
                    organization_id: Some("o0".into()),
                    ..any()
                },
                "beta Alpha",
            ),
            (
                KeyFilter {
                    created_by: Some("maker1".into()),
                    ..any()
                },
                "del_ta beta",
            ),
            (
                KeyFilter {
                    team_ids: Some(vec!["t0".into(), "t3".into(), "none".into()]),
                    ..any()
                },
                "del_ta Alpha",
            ),
            (
                KeyFilter {
                    team_ids: Some(vec![]),
                    ..any()
                },
                "",
            ),
            (
                KeyFilter {
                    hashes: Some(vec![KeyHash::of("beta"), KeyHash::of("no such")]),
                    ..any()
                },
                "beta",
            ),
            (
                KeyFilter {
                    hashes: Some(vec![]),
                    ..any()
                },
                "",
            ),
            (
                KeyFilter {
                    search: Some("ALPH".into()),
                    ..any()
                },
                "Alpha",
            ),
            (
                KeyFilter {
                    search: Some("%".into()),
                    ..any()
                },
                "gam%ma",
            ),
            (
                KeyFilter {
                    search: Some("l_t".into()),
                    ..any()
                },
                "del_ta",
            ),
            (
                KeyFilter {
                    search: Some("nail".into()),
                    ..any()
                },
                "-",
            ),
            (
                KeyFilter {
                    blocked: Some(true),
                    ..any()
                },
                "beta",
            ),
            (
                KeyFilter {
                    expired: Some(true),
                    ..any()
                },
                "del_ta gam%ma",
            ),
            (
                KeyFilter {
                    expired: Some(false),
                    ..any()
                },
                "- beta Alpha",
            ),
            (
                KeyFilter {
                    sort: KeySort::Alias,
                    order: Order::Rising,
                    ..any()
                },
                "Alpha beta del_ta gam%ma -",
            ),
            (
                KeyFilter {
                    sort: KeySort::Alias,
                    ..any()
                },
                "gam%ma del_ta beta Alpha -",
            ),
            (
                KeyFilter {
                    sort: KeySort::Spend,
                    order: Order::Rising,
                    ..any()
                },
                "- del_ta gam%ma beta Alpha",
            ),
            (
                KeyFilter {
                    sort: KeySort::Spend,
                    ..any()
                },
                "Alpha beta gam%ma del_ta -",
            ),
            (
                KeyFilter {
                    order: Order::Rising,
                    ..any()
                },
                "Alpha beta gam%ma del_ta -",
            ),
        ];
        for (filter, expected) in cases {
            let asked = format!("{filter:?}");
            assert_eq!(names(&*s, filter).await, expected, "{asked}");
        }
    })
    .await;
}

#[tokio::test]
async fn keys_show_what_they_spent_in_their_period() {
    both(async |s| {
        let k = Key {
            spend_nanos: 1_000,
            ..key("sk-a")
        };
        s.insert_key(&k).await.unwrap();
        let account = Account::new(Kind::Key, k.hash.hex());
        let shown = async || s.key_by_hash(&k.hash).await.unwrap().unwrap().spend_nanos;
        let total = async || s.balances(std::slice::from_ref(&account)).await.unwrap()[0].total_nanos;
        s.append(&[record("r1")]).await.unwrap();
        assert_eq!((shown().await, total().await), (2_500, 2_500));
        // A period that lasts for ever after: what was before it is not shown.
        s.begin_period(&account, NOON + DAY, None).await.unwrap();
        assert_eq!((shown().await, total().await), (0, 2_500));
        let later = Record {
            ended_micros: NOON + DAY,
            ..record("r2")
        };
        s.append(&[later]).await.unwrap();
        assert_eq!((shown().await, total().await), (1_500, 4_000));
        // Said again, an opening is replaced.
        for nanos in [7_000, 500] {
            let open = Change::Open {
                account: &account,
                nanos,
            };
            s.change(&[open], &[]).await.unwrap();
            assert_eq!(total().await, nanos + 3_000);
        }
        // One that is over long since.
        let other = key("sk-b");
        s.insert_key(&other).await.unwrap();
        let account = Account::new(Kind::Key, other.hash.hex());
        s.begin_period(&account, 0, Some(NOON / 2)).await.unwrap();
        let open = Change::Open {
            account: &account,
            nanos: 9,
        };
        s.change(&[open], &[]).await.unwrap();
        assert_eq!(s.key_by_hash(&other.hash).await.unwrap().unwrap().spend_nanos, 0);
        assert_eq!(differences(&*s).await, []);
        // Made again, a key begins anew.
        s.delete_keys(&[k.hash]).await.unwrap();
        s.insert_key(&k).await.unwrap();
        assert_eq!(shown().await, 1_000);
        assert_eq!(differences(&*s).await, []);
        // Also in a period in which the one before it spent, and on each model.
        let hex = k.hash.hex();
        let accounts = [
            Account::new(Kind::Key, hex.as_str()),
            Account::of_model(Kind::Key, hex, record("r1").model_group),
        ];
        for account in &accounts {
            s.begin_period(account, NOON, None).await.unwrap();
            let balances = s.balances(std::slice::from_ref(account)).await.unwrap();
            assert_eq!(balances[0].period_nanos, 0, "{account:?}");
        }
        assert_eq!(differences(&*s).await, []);
    })
    .await;
}

#[tokio::test]
async fn ten_thousand_keys_are_listed_by_page() {
    both(async |s| {
        let keys: Vec<Key> = (0..10_000)
            .map(|n| Key {
                key_alias: Some(format!("k{n:05}")),
                created_at_micros: NOON + n / 3,
                ..key(&format!("sk-{n}"))
            })
            .collect();
        for some in keys.chunks(2_500) {
            let changes: Vec<Change<'_>> = some.iter().map(Change::InsertKey).collect();
            s.change(&changes, &[]).await.unwrap();
        }
        for sort in [KeySort::Created, KeySort::Spend, KeySort::Alias] {
            let filter = KeyFilter {
                sort,
                order: Order::Rising,
                search: Some("k0".into()),
                ..KeyFilter::default()
            };
            let first = s.list_keys(&filter, Page { limit: 3, offset: 0 }).await.unwrap();
            assert_eq!((first.total, first.keys.len()), (10_000, 3));
        }
        let mut seen = Vec::new();
        for offset in (0..10_000).step_by(1_000) {
            let page = Page { limit: 1_000, offset };
            let found = s.list_keys(&KeyFilter::default(), page).await.unwrap();
            assert_eq!((found.total, found.keys.len()), (10_000, 1_000));
            assert!(
                found
                    .keys
                    .windows(2)
                    .all(|w| w[0].created_at_micros >= w[1].created_at_micros)
            );
            seen.extend(found.keys.into_iter().map(|k| k.hash));
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 10_000, "no key twice, none left out");
        let hashes: Vec<KeyHash> = keys.iter().map(|k| k.hash).collect();
        assert_eq!(s.delete_keys(&hashes).await.unwrap().len(), 10_000);
        assert_eq!(names(&*s, KeyFilter::default()).await, "");
    })
    .await;
}

#[tokio::test]
async fn of_two_writers_of_a_key_one_is_told() {
    both(async |s| {
        let old = key("sk-a");
        s.insert_key(&old).await.unwrap();
        let mut mine = old.clone();
        mine.blocked = true;
        let theirs = Key {
            key_alias: Some("theirs".into()),
            ..old.clone()
        };
        let change = |key| Change::UpdateKey {
            key,
            read_at_micros: NOON,
        };
        // At the very same microsecond, by a clock that stands still.
        let (a, b) = (mine.clone(), theirs.clone());
        let (a, b) = ([change(&a)], [change(&b)]);
        let (first, second) = tokio::join!(s.change(&a, &[]), s.change(&b, &[]));
        let stale = |r: &Result<(), StoreError>| matches!(r, Err(StoreError::Stale(_)));
        assert!(
            (first.is_ok() && stale(&second)) || (stale(&first) && second.is_ok()),
            "{first:?} {second:?}"
        );
        let kept = s.key_by_hash(&old.hash).await.unwrap().unwrap();
        assert_eq!(kept.updated_at_micros, NOON + 1);
        assert_ne!(kept.blocked, kept.key_alias.as_deref() == Some("theirs"));
        s.delete_keys(&[old.hash]).await.unwrap();
        mine.updated_at_micros = NOON + 5;
        let gone = s
            .change(
                &[Change::UpdateKey {
                    key: &mine,
                    read_at_micros: NOON + 1,
                }],
                &[],
            )
            .await;
        assert!(stale(&gone), "{gone:?}");
    })
    .await;
}

#[tokio::test]
async fn objects_are_kept_as_they_were_given() {
    both(async |s| {
        for table in Table::ALL {
            let fields = json!({
                "models": ["small", "é🦀"], "max_budget": 12.5, "tpm_limit": 1000, "blocked": false, "user_email": null,
                "metadata": {"deep": [{"a": {"b": [1, -2.5, 1e300, 9007199254740993_i64, "x"]}}]}, "": "",
            });
            let one = doc("one", fields);
            put(&*s, table, &one).await.unwrap();
            let read = s.document(table, "one").await.unwrap().unwrap();
            assert_eq!(read, Doc { version: 1, ..one.clone() });
            assert_eq!(s.document(table, "ONE").await.unwrap(), None);
            assert_eq!(
                put(&*s, table, &one).await,
                Err(StoreError::Conflict { what: Taken::Id })
            );
            let next = Doc {
                fields: map(json!({"models": []})),
                created_at_micros: 1,
                updated_at_micros: NOON + 7,
                ..read
            };
            put(&*s, table, &next).await.unwrap();
            let read = s.document(table, "one").await.unwrap().unwrap();
            let expected = Doc {
                version: 2,
                created_at_micros: NOON,
                ..next.clone()
            };
            assert_eq!(read, expected, "the creation stays");
            let stale = put(&*s, table, &next).await.unwrap_err();
            assert!(
                matches!(&stale, StoreError::Stale(what) if what == &format!("{table:?} one").to_lowercase() || what.ends_with(" one")),
                "{stale}"
            );
            let ids = ["one".to_string(), "none".to_string()];
            s.change(&[Change::Delete { table, ids: &ids }], &[])
                .await
                .unwrap();
            assert_eq!(s.document(table, "one").await.unwrap(), None);
            let gone = put(&*s, table, &expected).await;
            assert!(matches!(gone, Err(StoreError::Stale(_))), "{gone:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn of_many_writers_one_at_a_time_wins() {
    both(async |s| {
        put(&*s, Table::Team, &doc("red", json!({"n": 0}))).await.unwrap();
        let writers: Vec<_> = (0..6)
            .map(|_| {
                let s = Arc::clone(&s);
                tokio::spawn(async move {
                    let mut done = 0;
                    while done < 5 {
                        let mut team = s.document(Table::Team, "red").await.unwrap().unwrap();
                        let n = team.fields["n"].as_i64().unwrap();
                        team.fields.insert("n".into(), json!(n + 1));
                        match put(&*s, Table::Team, &team).await {
                            Ok(()) => done += 1,
                            Err(StoreError::Stale(_)) => {}
                            Err(e) => panic!("{e}"),
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        let team = s.document(Table::Team, "red").await.unwrap().unwrap();
        assert_eq!((&team.fields["n"], team.version), (&json!(30), 31));
    })
    .await;
}

#[tokio::test]
async fn objects_are_found_by_what_they_are() {
    both(async |s| {
        for (n, alias) in ["Red", "green", "bl%ue", "x_y"].iter().enumerate() {
            let members: Vec<Value> = (0..=n)
                .map(|m| json!({"user_id": format!("u{m}"), "role": "user"}))
                .collect();
            let team = Doc {
                created_at_micros: NOON + n as i64,
                ..doc(
                    &format!("t{n}"),
                    json!({
                        "team_alias": alias, "organization_id": format!("o{}", n / 2), "models": [format!("m{n}"), "all"],
                        "members_with_roles": members, "rank": format!("{}", 9 - n),
                    }),
                )
            };
            put(&*s, Table::Team, &team).await.unwrap();
        }
        let odd = Doc {
            created_at_micros: NOON - 1,
            ..doc("odd", json!({"models": "all", "members_with_roles": {"user_id": "u0"}, "team_alias": null}))
        };
        put(&*s, Table::Team, &odd).await.unwrap();
        let any = DocFilter::default;
        let equal = |name, text: &str| DocFilter {
            equal: vec![(name, text.to_string())],
            ..any()
        };
        let search = |text: &str| DocFilter {
            search: Some((text.into(), vec!["team_alias", "organization_id"])),
            ..any()
        };
        let holding = |text: &str| DocFilter {
            holding: vec![("models", text.into())],
            ..any()
        };
        let member = |user: &str| DocFilter {
            member: Some(user.into()),
            ..any()
        };
        let sorted = |by, order| DocFilter {
            sort: Some((by, order)),
            ..any()
        };
        let of = |ids: &[&str]| DocFilter {
            ids: Some(ids.iter().map(|id| id.to_string()).collect()),
            ..any()
        };
        let mut both_of = equal("organization_id", "o1");
        both_of.holding = vec![("models", "m3".into())];
        for (filter, expected) in [
            (any(), "t3 t2 t1 t0 odd"),
            (of(&["t1", "t3", "none"]), "t3 t1"),
            (of(&[]), ""),
            (equal("team_alias", "Red"), "t0"),
            (equal("team_alias", "red"), ""),
            (equal("organization_id", "o1"), "t3 t2"),
            (both_of, "t3"),
            (search("RED"), "t0"),
            (search("%"), "t2"),
            (search("_"), "t3"),
            (search("T2"), "t2"),
            (search("O0"), "t1 t0"),
            (search("' OR 1=1 --"), ""),
            (holding("all"), "t3 t2 t1 t0"),
            (holding("m1"), "t1"),
            (holding("m"), ""),
            (member("u3"), "t3"),
            (member("u2"), "t3 t2"),
            (member("u0"), "t3 t2 t1 t0"),
            (member("%"), ""),
            (sorted("team_alias", Order::Rising), "t0 t2 t1 t3 odd"),
            (sorted("team_alias", Order::Falling), "t3 t1 t2 t0 odd"),
            (sorted("rank", Order::Rising), "t3 t2 t1 t0 odd"),
            (sorted("created_at", Order::Rising), "odd t0 t1 t2 t3"),
            (sorted("id", Order::Rising), "odd t0 t1 t2 t3"),
        ] {
            let asked = format!("{filter:?}");
            assert_eq!(ids(&*s, Table::Team, filter).await, expected, "{asked}");
        }
        let page = DocFilter {
            page: Page { limit: 2, offset: 1 },
            ..any()
        };
        let found = s.documents(Table::Team, &page).await.unwrap();
        assert_eq!((found.docs.len(), found.total), (2, 5));
        assert_eq!(ids(&*s, Table::Team, page).await, "t2 t1");
        let most = DocFilter {
            page: Page {
                limit: u32::MAX,
                offset: u64::MAX,
            },
            ..any()
        };
        assert_eq!(ids(&*s, Table::Team, most).await, "");
        for bad in [equal("team_alias'", "x"), sorted("a b", Order::Rising), search(&"x".repeat(1_001))] {
            let refused = s.documents(Table::Team, &bad).await.unwrap_err();
            assert!(matches!(refused, StoreError::Invalid(_)), "{refused}");
        }
        assert_eq!(ids(&*s, Table::User, any()).await, "", "each table for itself");
    })
    .await;
}

#[tokio::test]
async fn a_change_is_whole_or_not_at_all() {
    both(async |s| {
        put(&*s, Table::User, &doc("alice", json!({"n": 1})))
            .await
            .unwrap();
        s.insert_key(&key("sk-a")).await.unwrap();
        let mut news = listening(&*s).await;
        let (bob, team) = (doc("bob", json!({})), doc("red", json!({})));
        let stale = Doc {
            version: 9,
            ..doc("alice", json!({"n": 2}))
        };
        let fresh = key("sk-b");
        let twin = Key {
            key_alias: fresh.key_alias.clone(),
            ..key("sk-c")
        };
        let poor = Account::new(Kind::User, "bob");
        let good = [
            Change::Put {
                table: Table::User,
                doc: &bob,
            },
            Change::InsertKey(&fresh),
            Change::DeleteKeys(&[KeyHash::of("sk-a")]),
            Change::Open {
                account: &poor,
                nanos: 5,
            },
        ];
        let bad = [
            Change::Put {
                table: Table::User,
                doc: &stale,
            },
            Change::InsertKey(&twin),
            Change::Put {
                table: Table::User,
                doc: &bob,
            },
            Change::UpdateKey {
                key: &twin,
                read_at_micros: NOON,
            },
        ];
        for last in bad {
            let mut changes = good.to_vec();
            changes.push(last);
            changes.push(Change::Put {
                table: Table::Team,
                doc: &team,
            });
            let refused = s.change(&changes, &[audit(1)]).await.unwrap_err();
            assert!(
                matches!(refused, StoreError::Stale(_) | StoreError::Conflict { .. }),
                "{refused}"
            );
            assert_eq!(s.document(Table::User, "bob").await.unwrap(), None);
            assert_eq!(s.document(Table::Team, "red").await.unwrap(), None);
            assert_eq!(names(&*s, KeyFilter::default()).await, "alias of sk-a");
            assert_eq!(s.audit(&AuditFilter::default()).await.unwrap(), []);
        }
        s.change(&good, &[audit(1), audit(2)]).await.unwrap();
        assert_eq!(names(&*s, KeyFilter::default()).await, "alias of sk-b");
        // What failed was not told: the first thing heard is what was done.
        for expected in [
            News::Doc(Table::User, "bob".into()),
            News::Key(fresh.hash),
            News::Key(KeyHash::of("sk-a")),
        ] {
            assert_eq!(next(&mut news).await, expected);
        }
        let lines = s.audit(&AuditFilter::default()).await.unwrap();
        assert_eq!(lines, [audit(2), audit(1)], "newest first");
    })
    .await;
}

#[tokio::test]
async fn audit_rows_are_found_by_what_they_are() {
    both(async |s| {
        let lines: Vec<Audit> = (0..6)
            .map(|n| Audit {
                changed_by: format!("u{}", n % 2),
                changed_by_key: (n != 0).then(|| KeyHash::of("sk-admin")),
                action: ["created", "updated", "deleted"][n as usize % 3].into(),
                table_name: ["user", "team"][n as usize / 3].into(),
                object_id: format!("o{n}"),
                ..audit(n)
            })
            .collect();
        s.change(&[], &lines).await.unwrap();
        let found = async |f: AuditFilter| -> String {
            let found = s.audit(&f).await.unwrap();
            for line in &found {
                assert!(lines.contains(line));
            }
            let ids: Vec<&str> = found.iter().map(|a| a.object_id.as_str()).collect();
            ids.join(" ")
        };
        let any = AuditFilter::default;
        for (filter, expected) in [
            (any(), "o5 o4 o3 o2 o1 o0"),
            (
                AuditFilter {
                    changed_by: Some("u1".into()),
                    ..any()
                },
                "o5 o3 o1",
            ),
            (
                AuditFilter {
                    action: Some("deleted".into()),
                    table_name: Some("team".into()),
                    ..any()
                },
                "o5",
            ),
            (
                AuditFilter {
                    object_id: Some("o4".into()),
                    ..any()
                },
                "o4",
            ),
            (
                AuditFilter {
                    start_micros: Some(NOON + 1),
                    end_micros: Some(NOON + 3),
                    ..any()
                },
                "o2 o1",
            ),
            (
                AuditFilter {
                    page: Page { limit: 2, offset: 1 },
                    ..any()
                },
                "o4 o3",
            ),
        ] {
            assert_eq!(found(filter).await, expected);
        }
        let long = Audit {
            id: "long".into(),
            at_micros: NOON + 9,
            after: Some(json!({"x": "é\"".repeat(200_000)})),
            ..audit(9)
        };
        s.change(&[], &[long]).await.unwrap();
        let after = s.audit(&any()).await.unwrap()[0].after.clone().unwrap();
        assert_eq!(after["cut"], true);
        assert!(after.to_string().len() <= 32 << 10);
    })
    .await;
}

#[tokio::test]
async fn text_in_every_field_is_only_text() {
    both(async |s| {
        for evil in [
            "'; DROP TABLE tk_users; --",
            "\" OR \"\"=\"",
            "$1 ?1 :x %s {} \\ \\u0000 \\",
            "\u{202e}\u{feff}🦀\r\n\t",
            "a\tb:c",
        ] {
            let mut fields = map(json!({"list": [evil], "object": {evil: {evil: evil}}}));
            for name in [
                "user_email",
                "team_alias",
                "organization_id",
                "organization_alias",
                "model_name",
            ] {
                fields.insert(name.into(), json!(evil));
            }
            fields.insert(evil.into(), json!(evil));
            let mut told = s.news();
            for table in Table::ALL {
                let mut d = doc(evil, json!({}));
                d.fields = fields.clone();
                put(&*s, table, &d).await.unwrap();
                let expected = Doc { version: 1, ..d };
                assert_eq!(s.document(table, evil).await.unwrap(), Some(expected));
                for filter in [
                    DocFilter {
                        ids: Some(vec![evil.into()]),
                        ..DocFilter::default()
                    },
                    DocFilter {
                        equal: vec![("user_email", evil.into())],
                        holding: vec![("list", evil.into())],
                        search: Some((evil.into(), vec!["team_alias"])),
                        ..DocFilter::default()
                    },
                ] {
                    assert_eq!(ids(&*s, table, filter).await, evil);
                }
                while next(&mut told).await != News::Doc(table, evil.into()) {}
            }
            let k = Key {
                key_alias: Some(evil.into()),
                user_id: Some(evil.into()),
                team_id: Some(evil.into()),
                created_by: Some(evil.into()),
                extra: map(json!({"organization_id": evil, evil: evil})),
                ..key(evil)
            };
            s.insert_key(&k).await.unwrap();
            let filter = KeyFilter {
                user_id: Some(evil.into()),
                team_ids: Some(vec![evil.into()]),
                organization_id: Some(evil.into()),
                created_by: Some(evil.into()),
                search: Some(evil.into()),
                ..KeyFilter::default()
            };
            let found = s.list_keys(&filter, Page::default()).await.unwrap();
            assert_eq!(found.keys, [k]);
            let line = Audit {
                id: format!("1 {evil}"),
                changed_by: evil.into(),
                action: evil.into(),
                table_name: evil.into(),
                object_id: evil.into(),
                before: Some(json!({evil: evil})),
                ..audit(1)
            };
            s.change(&[], std::slice::from_ref(&line)).await.unwrap();
            let filter = AuditFilter {
                changed_by: Some(evil.into()),
                action: Some(evil.into()),
                table_name: Some(evil.into()),
                object_id: Some(evil.into()),
                ..AuditFilter::default()
            };
            assert_eq!(s.audit(&filter).await.unwrap(), [line]);
        }
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused() {
    both(async |s| {
        let nested = (0..70).fold(json!(1), |inner, _| json!([inner]));
        let bad = [
            doc("", json!({})),
            doc("a\0b", json!({})),
            doc(&"x".repeat(1_001), json!({})),
            doc("a", json!({"x": "\u{0}"})),
            doc("a", json!({"x": {"y": ["\u{0}"]}})),
            doc("a", json!({"x": {"\u{0}": 1}})),
            doc("a", json!({"\u{0}": 1})),
            doc("a", json!({"x": nested})),
            doc("a", json!({"x": "y".repeat(1 << 20)})),
            doc("a", json!({"user_email": "y".repeat(1_001)})),
            Doc {
                version: -1,
                ..doc("a", json!({}))
            },
        ];
        for d in bad {
            let refused = put(&*s, Table::User, &d).await.unwrap_err();
            assert!(matches!(refused, StoreError::Invalid(_)), "{refused}");
            assert!(refused.to_string().len() < 200, "{refused}");
        }
        let nul = || Some("a\0b".to_string());
        let long = || Some("x".repeat(1_001));
        for k in [
            Key {
                key_alias: nul(),
                ..key("sk-a")
            },
            Key {
                user_id: nul(),
                ..key("sk-a")
            },
            Key {
                team_id: long(),
                ..key("sk-a")
            },
            Key {
                models: vec!["a\0".into()],
                ..key("sk-a")
            },
            Key {
                metadata: map(json!({"a": ["\u{0}"]})),
                ..key("sk-a")
            },
            Key {
                extra: map(json!({"a": "x".repeat(1 << 20)})),
                ..key("sk-a")
            },
        ] {
            let refused = s.insert_key(&k).await.unwrap_err();
            assert!(matches!(refused, StoreError::Invalid(_)), "{refused}");
        }
        let many: Vec<KeyHash> = vec![KeyHash([0; 32]); MAX_ROWS as usize + 1];
        let refused = s.change(&[Change::DeleteKeys(&many)], &[]).await.unwrap_err();
        assert!(matches!(refused, StoreError::Invalid(_)), "{refused}");
        let filter = KeyFilter {
            search: nul(),
            ..KeyFilter::default()
        };
        let refused = s.list_keys(&filter, Page::default()).await.unwrap_err();
        assert!(matches!(refused, StoreError::Invalid(_)), "{refused}");
        assert_eq!(ids(&*s, Table::User, DocFilter::default()).await, "");
        assert_eq!(s.document(Table::User, "a\0b").await.unwrap(), None);
        let largest = doc(&"é".repeat(500), json!({"x": "y".repeat((1 << 20) - 20)}));
        put(&*s, Table::User, &largest).await.unwrap();
        assert!(s.document(Table::User, &largest.id).await.unwrap().is_some());
    })
    .await;
}

#[tokio::test]
async fn much_news_is_everything() {
    both(async |s| {
        let mut news = listening(&*s).await;
        let ids: Vec<String> = (0..101).map(|n| format!("u{n}")).collect();
        let gone = Change::Delete {
            table: Table::User,
            ids: &ids,
        };
        s.change(&[gone], &[]).await.unwrap();
        assert_eq!(next(&mut news).await, News::Everything);
        s.delete_keys(&[]).await.unwrap();
        s.change(&[Change::DeleteKeys(&[KeyHash::of("sk-a")])], &[])
            .await
            .unwrap();
        assert_eq!(next(&mut news).await, News::Key(KeyHash::of("sk-a")));
    })
    .await;
}

#[tokio::test]
async fn replicas_hear_of_each_other() {
    let server = postgres::shared();
    let url = server.database();
    let (here, there) = (open(&url).await, open(&url).await);
    here.ready().await;
    there.ready().await;
    let mut news = listening(&*there).await;
    let mut quickest = Duration::MAX;
    // The machine may be busy with something else several times, and not each time.
    for text in ["sk-a", "sk-b", "sk-c", "sk-d", "sk-e"] {
        let told = tokio::time::Instant::now();
        here.insert_key(&key(text)).await.unwrap();
        assert_eq!(next(&mut news).await, News::Key(KeyHash::of(text)));
        quickest = quickest.min(told.elapsed());
    }
    assert!(quickest < Duration::from_secs(1), "{quickest:?}");

    // The connections that listen are ended, and found again.
    let name = url.rsplit('/').next().unwrap();
    let ended = server.sql(
        name,
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    );
    assert!(ended.parse::<u32>().unwrap() >= 2);
    assert_eq!(next(&mut news).await, News::Everything, "it is lost");
    assert_eq!(next(&mut news).await, News::Everything, "it is back");
    let ids = ["alice".to_string()];
    let gone = Change::Delete {
        table: Table::User,
        ids: &ids,
    };
    until("the pool has noticed what broke", async || {
        here.change(std::slice::from_ref(&gone), &[]).await.is_ok()
    })
    .await;
    assert_eq!(next(&mut news).await, News::Doc(Table::User, "alice".into()));
}

/// Every migration in turn, over what a database of the first version held.
#[tokio::test]
async fn what_the_first_version_kept_is_still_there() {
    const KEY: &str = "INSERT INTO tk_keys VALUES (HASH, 'sk-...x', 'a', 'alice', 'red', '[]', '{}', 1500, 1500, NULL, \
        NULL, false, '{}', '{\"organization_id\": \"acme\"}', TIME, NULL, TIME);";
    const USERS: &str =
        "INSERT INTO tk_users VALUES ('alice', 'Al', 'a@example.org', NULL, '[\"small\"]', 7, 12500000001, \
        '{\"a\": {\"b\": null}}', '{\"tpm_limit\": 5}', TIME, TIME), \
        ('bob', NULL, NULL, NULL, '[]', 0, NULL, '{}', '{}', TIME, TIME);
        INSERT INTO tk_teams VALUES ('red', 9);";
    let old = [KEY, USERS].concat();
    let check = |fields: &str| {
        let fields: Value = serde_json::from_str(fields).unwrap();
        let expected = json!({
            "user_alias": "Al", "user_email": "a@example.org", "models": ["small"], "max_budget": 12.500000001,
            "metadata": {"a": {"b": null}}, "tpm_limit": 5,
        });
        assert_eq!(fields, expected);
    };

    let c = rusqlite::Connection::open_in_memory().unwrap();
    let one = |sql: &str| -> String { c.query_row(sql, [], |row| row.get(0)).unwrap() };
    c.execute_batch(include_str!("../../migrations/sqlite/V1__keys_and_ledger.sql"))
        .unwrap();
    let hash = format!("x'{}'", KeyHash::of("sk-x").hex());
    c.execute_batch(&old.replace("HASH", &hash).replace("TIME", "1795176000000000"))
        .unwrap();
    for next in [
        include_str!("../../migrations/sqlite/V2__accounts_and_days.sql"),
        include_str!("../../migrations/sqlite/V3__objects.sql"),
    ] {
        c.execute_batch(next).unwrap();
    }
    check(&one(
        "SELECT fields FROM tk_users WHERE id = 'alice' AND version = 1 AND created_at = 1795176000000000",
    ));
    assert_eq!(
        one("SELECT fields FROM tk_users WHERE id = 'bob'"),
        r#"{"models":[],"metadata":{}}"#
    );
    assert_eq!(one("SELECT group_concat(id) FROM tk_teams"), "red");
    assert_eq!(one("SELECT organization_id FROM tk_keys"), "acme");

    let server = postgres::shared();
    let url = server.database();
    let name = url.rsplit('/').next().unwrap();
    server.sql(
        name,
        include_str!("../../migrations/postgres/V1__keys_and_ledger.sql"),
    );
    let hash = format!("'\\x{}'", KeyHash::of("sk-x").hex());
    server.sql(
        name,
        &old.replace("HASH", &hash)
            .replace("TIME", "'2026-11-20 12:00:00+00'"),
    );
    for next in [
        include_str!("../../migrations/postgres/V2__accounts_and_days.sql"),
        include_str!("../../migrations/postgres/V3__objects.sql"),
    ] {
        server.sql(name, next);
    }
    check(&server.sql(
        name,
        "SELECT fields FROM tk_users WHERE id = 'alice' AND version = 1 AND created_at = '2026-11-20 12:00:00+00'",
    ));
    assert_eq!(
        server.sql(name, "SELECT fields FROM tk_users WHERE id = 'bob'"),
        r#"{"models": [], "metadata": {}}"#
    );
    assert_eq!(
        server.sql(name, "SELECT string_agg(id, ',') FROM tk_teams"),
        "red"
    );
    assert_eq!(server.sql(name, "SELECT organization_id FROM tk_keys"), "acme");
    assert_eq!(
        server.sql(
            name,
            "SELECT string_agg(column_name, ',' ORDER BY column_name) FROM information_schema.columns \
             WHERE table_name IN ('tk_users', 'tk_teams')"
        ),
        "created_at,created_at,fields,fields,id,id,updated_at,updated_at,version,version"
    );
}
