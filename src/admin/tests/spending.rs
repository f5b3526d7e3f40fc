//! What reports say, field by field, against the sum of generated calls.

use super::*;
use filters::model::call::Endpoint;
use filters::model::money::Nanos;
use filters::model::record::{Record, Status};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const DAY: i64 = 86_400_000_000;
pub(super) const USERS: [&str; 4] = ["alice", "bob", "o'hara; DROP TABLE tk_daily", ""];
const TEAMS: [&str; 3] = ["red", "blue", ""];
const ORGANIZATIONS: [&str; 2] = ["org", ""];
const MODELS: [&str; 3] = ["small", "large", "embed"];
const PROVIDERS: [&str; 2] = ["openai", "azure"];
pub(super) const TAGS: [&str; 3] = ["a", "b", "c'; --"];

/// Numbers that are the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len() as u64) as usize]
    }

    fn some(&mut self, of: &[&str]) -> Option<String> {
        Some(self.pick(of)).filter(|t| !t.is_empty()).map(Into::into)
    }
}

/// Calls of three days around noon, of a few of everybody.
pub(super) fn calls(secrets: &[String], n: u64) -> Vec<Record> {
    let mut dice = Dice(7);
    (0..n)
        .map(|i| {
            let at = NOON - 2 * DAY + (dice.roll(3) as i64) * DAY + dice.roll(3_600_000_000) as i64;
            let status = [
                Status::Success,
                Status::Success,
                Status::Failure,
                Status::Aborted,
                Status::Cut,
            ];
            let status = status[dice.roll(5) as usize];
            let mut tags: Vec<String> = TAGS.iter().map(|t| t.to_string()).collect();
            tags.retain(|_| dice.roll(2) == 0);
            let secret = dice.roll(secrets.len() as u64 + 1) as usize;
            Record {
                request_id: format!("call-{i:04}"),
                endpoint: Endpoint::Chat,
                key_hash: secrets.get(secret).map(|s| KeyHash::of(s)),
                key_alias: secrets.get(secret).map(|_| format!("key {secret}")),
                user_id: dice.some(&USERS),
                team_id: dice.some(&TEAMS),
                organization_id: dice.some(&ORGANIZATIONS),
                end_user: dice.some(&["eve", "mallory", ""]),
                requested_model: "gpt".into(),
                model_group: dice.pick(&MODELS).into(),
                model: "upstream".into(),
                deployment_id: "d1".into(),
                provider: dice.pick(&PROVIDERS).into(),
                stream: false,
                status,
                http_status: if status == Status::Failure { 429 } else { 200 },
                error: None,
                prompt_tokens: dice.roll(1_000),
                completion_tokens: dice.roll(1_000),
                cached_tokens: dice.roll(100),
                cache_creation_tokens: dice.roll(100),
                reasoning_tokens: 0,
                characters: 0,
                audio_millis: 0,
                images: 0,
                spend_nanos: dice.roll(10_000_000_000) as i64 * i64::from(i % 7 != 0),
                priced: i % 7 != 0,
                estimated: false,
                clamped: false,
                started_micros: at,
                first_byte_micros: None,
                ended_micros: at + dice.roll(60_000_000) as i64,
                attempts: Vec::new(),
                tags,
                metadata: None,
                client_ip: "192.0.2.1".into(),
                user_agent: None,
                bytes_in: 1,
                bytes_out: 1,
            }
        })
        .collect()
}

pub(super) struct Books {
    pub bench: Bench,
    pub secrets: Vec<String>,
    pub calls: Vec<Record>,
}

impl Books {
    pub async fn new() -> Books {
        let bench = Bench::new().await;
        let mut secrets = Vec::new();
        for (n, user) in ["alice", "alice", "bob"].into_iter().enumerate() {
            let fields = json!({"user_id": user, "team_id": "red", "key_alias": format!("key {n}")});
            secrets.push(bench.holder(fields).await.0);
        }
        let calls = calls(&secrets, 400);
        bench.store.append(&calls).await.unwrap();
        Books {
            bench,
            secrets,
            calls,
        }
    }

    /// LiteLLM's metrics of those calls that fit.
    pub fn metrics(&self, fits: impl Fn(&Record) -> bool) -> Value {
        metrics(self.calls.iter().filter(|r| fits(r)))
    }

    /// What was spent by name, without those that spent for nobody.
    fn spent<'a>(&'a self, names: impl Fn(&'a Record) -> Vec<String>) -> BTreeMap<String, Nanos> {
        let mut spent: BTreeMap<String, Nanos> = BTreeMap::new();
        for call in &self.calls {
            for name in names(call) {
                *spent.entry(name).or_default() += Nanos(call.spend_nanos);
            }
        }
        spent
    }

    pub async fn get(&self, uri: &str) -> Value {
        self.bench.get(&master(), uri).await
    }
}

pub(super) fn metrics<'a>(calls: impl Iterator<Item = &'a Record>) -> Value {
    let calls: Vec<&Record> = calls.collect();
    let sum = |of: fn(&Record) -> u64| calls.iter().map(|r| of(r)).sum::<u64>();
    let count = |of: &[Status]| calls.iter().filter(|r| of.contains(&r.status)).count();
    json!({
        "spend": calls.iter().map(|r| Nanos(r.spend_nanos)).sum::<Nanos>(),
        "prompt_tokens": sum(|r| r.prompt_tokens),
        "completion_tokens": sum(|r| r.completion_tokens),
        "total_tokens": sum(Record::total_tokens),
        "cache_read_input_tokens": sum(|r| r.cached_tokens),
        "cache_creation_input_tokens": sum(|r| r.cache_creation_tokens),
        "successful_requests": count(&[Status::Success]),
        "failed_requests": count(&[Status::Failure, Status::Cut]),
        "api_requests": calls.len(),
        "unpriced_requests": calls.iter().filter(|r| !r.priced).count(),
    })
}

pub(super) fn day(call: &Record) -> String {
    super::super::days::day_of(call.started_micros).to_string()
}

pub(super) fn key(call: &Record) -> String {
    call.key_hash.map(|h| h.hex()).unwrap_or_default()
}

pub(super) fn text(of: &Option<String>) -> String {
    of.clone().unwrap_or_default()
}

pub(super) const SPAN: &str = "start_date=2026-11-18&end_date=2026-11-20";

#[tokio::test]
async fn days_are_made_of_their_calls() {
    let books = Books::new().await;
    type Of = fn(&Record) -> Vec<String>;
    let entities: [(&str, Of); 5] = [
        ("user", |r| vec![text(&r.user_id)]),
        ("team", |r| vec![text(&r.team_id)]),
        ("organization", |r| vec![text(&r.organization_id)]),
        ("tag", |r| r.tags.clone()),
        ("customer", |r| r.end_user.iter().cloned().collect()),
    ];
    for (path, entity) in entities {
        let labels = matches!(path, "tag" | "customer");
        let answer = books.get(&format!("/{path}/daily/activity?{SPAN}")).await;
        let results = answer["results"].as_array().unwrap();
        let dates: Vec<&str> = results.iter().map(|d| d["date"].as_str().unwrap()).collect();
        assert_eq!(dates, ["2026-11-20", "2026-11-19", "2026-11-18"], "{path}");
        // A call counts to each of its labels.
        let each = |fits: &dyn Fn(&Record) -> bool| {
            metrics(
                books
                    .calls
                    .iter()
                    .filter(|r| fits(r))
                    .flat_map(|r| std::iter::repeat_n(r, entity(r).len())),
            )
        };
        for (date, result) in dates.iter().zip(results) {
            let on = |r: &Record| day(r) == *date;
            assert_eq!(result["metrics"], each(&on), "{path} {date}");
            let parts: [(&str, Of); 5] = [
                ("models", |r| vec![r.model_group.clone()]),
                ("model_groups", |r| vec![r.model_group.clone()]),
                ("providers", |r| vec![r.provider.clone()]),
                ("api_keys", |r| vec![key(r)]),
                ("entities", entity),
            ];
            for (part, of) in parts {
                let shown = result["breakdown"][part].as_object().unwrap();
                if labels && matches!(part, "providers" | "api_keys") {
                    assert!(shown.is_empty(), "{path} {part}");
                    continue;
                }
                let ids: BTreeSet<String> = books
                    .calls
                    .iter()
                    .filter(|r| on(r) && !entity(r).is_empty())
                    .flat_map(of)
                    .collect();
                assert_eq!(
                    shown.keys().cloned().collect::<BTreeSet<_>>(),
                    ids,
                    "{path} {date} {part}"
                );
                for (id, entry) in shown {
                    let in_part = |r: &Record| on(r) && of(r).contains(id);
                    let want = match part {
                        "entities" => books.metrics(in_part),
                        _ => each(&in_part),
                    };
                    assert_eq!(entry["metrics"], want, "{path} {date} {part} {id}");
                    if part == "api_keys" || labels {
                        continue;
                    }
                    for (hash, one) in entry["api_key_breakdown"].as_object().unwrap() {
                        let want = books.metrics(|r| in_part(r) && key(r) == *hash);
                        assert_eq!(one["metrics"], want, "{path} {date} {part} {id} {hash}");
                    }
                }
            }
            assert_eq!(result["breakdown"]["mcp_servers"], json!({}));
            assert_eq!(result["breakdown"]["endpoints"], json!({}));
        }
        let whole = each(&|_| true);
        let totals = &answer["metadata"];
        for (name, want) in whole.as_object().unwrap() {
            let name = match name.as_str() {
                "total_tokens" => name.clone(),
                name => format!("total_{name}"),
            };
            assert_eq!(&totals[&name], want, "{path} {name}");
        }
        assert_eq!(
            (&totals["page"], &totals["total_pages"], &totals["has_more"]),
            (&json!(1), &json!(1), &json!(false))
        );
    }
}

#[tokio::test]
async fn days_are_paged_and_narrowed() {
    let books = Books::new().await;
    let hash = KeyHash::of(&books.secrets[0]).hex();
    let uri = |more: &str| format!("/user/daily/activity?{SPAN}{more}");
    let second = books.get(&uri("&page=2&page_size=2")).await;
    assert_eq!(second["results"][0]["date"], "2026-11-18");
    assert_eq!(second["results"].as_array().unwrap().len(), 1);
    let whole = books.metrics(|_| true);
    assert_eq!(second["metadata"]["total_spend"], whole["spend"], "of all pages");
    let first = books.get(&uri("&page=1&page_size=2")).await;
    assert_eq!(
        (&first["metadata"]["has_more"], &first["metadata"]["total_pages"]),
        (&json!(true), &json!(2))
    );
    let beyond = books.get(&uri("&page=9")).await;
    assert_eq!(
        (&beyond["results"], &beyond["metadata"]["has_more"]),
        (&json!([]), &json!(false))
    );

    type Fits = Box<dyn Fn(&Record) -> bool>;
    let own = KeyHash::from_hex(&hash);
    let narrowed: [(String, Fits); 6] = [
        ("&model=small".into(), Box::new(|r| r.model_group == "small")),
        (format!("&api_key={hash}"), Box::new(move |r| r.key_hash == own)),
        (
            "&user_id=o%27hara%3B%20DROP%20TABLE%20tk_daily".into(),
            Box::new(|r| r.user_id.as_deref() == Some(USERS[2])),
        ),
        (
            "&team_id=red&user_id=bob".into(),
            Box::new(|r| text(&r.team_id) == "red" && text(&r.user_id) == "bob"),
        ),
        (
            "&organization_id=org".into(),
            Box::new(|r| text(&r.organization_id) == "org"),
        ),
        ("&user_id=nobody".into(), Box::new(|_| false)),
    ];
    for (more, fits) in &narrowed {
        let answer = books.get(&uri(more)).await;
        assert_eq!(
            answer["metadata"]["total_spend"],
            books.metrics(fits)["spend"],
            "{more}"
        );
        let n = books.calls.iter().filter(|r| fits(r)).count();
        assert_eq!(answer["metadata"]["total_api_requests"], n, "{more}");
    }
    let teams = books
        .get(&format!("/team/daily/activity?{SPAN}&team_ids=red,%20blue"))
        .await;
    let want = books.metrics(|r| r.team_id.is_some());
    assert_eq!(teams["metadata"]["total_spend"], want["spend"]);
    let tags = books.get(&format!("/tag/daily/activity?{SPAN}&tags=b")).await;
    let want = books.metrics(|r| r.tags.iter().any(|t| t == "b"));
    assert_eq!(
        tags["results"][0]["breakdown"]["entities"]
            .as_object()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(tags["metadata"]["total_spend"], want["spend"]);

    // Named parts are the same, without keys.
    let all = books.get(&uri("")).await;
    let some = books.get(&uri("&breakdown=model_groups,entities")).await;
    for (all, some) in [0, 1, 2].map(|n| (&all["results"][n], &some["results"][n])) {
        assert_eq!(all["metrics"], some["metrics"]);
        assert_eq!(some["breakdown"]["models"], json!({}));
        let (all, some) = (
            &all["breakdown"]["model_groups"],
            &some["breakdown"]["model_groups"],
        );
        assert_eq!(all["small"]["metrics"], some["small"]["metrics"]);
        assert_eq!(some["small"]["api_key_breakdown"], json!({}));
    }
    let one = &all["results"][0]["breakdown"]["api_keys"][&hash];
    assert_eq!(one["metadata"], json!({"key_alias": "key 0", "team_id": "red"}));
    // Days of another zone touch two days of UTC.
    let east = "/user/daily/activity?start_date=2026-11-19&end_date=2026-11-19&timezone=-60";
    let dates = books.get(east).await;
    assert_eq!(
        (&dates["results"][0]["date"], &dates["results"][1]["date"]),
        (&json!("2026-11-19"), &json!("2026-11-18"))
    );
}

/// Objects of a list by the text of one field, with the money of another.
fn by(list: &Value, name: &str, spend: &str) -> BTreeMap<String, Value> {
    let list = list.as_array().unwrap_or_else(|| panic!("{list}"));
    let found: BTreeMap<String, Value> = list
        .iter()
        .map(|o| (o[name].as_str().unwrap_or_default().to_string(), o[spend].clone()))
        .collect();
    assert_eq!(found.len(), list.len(), "each is there once: {list:?}");
    found
}

fn shown(of: BTreeMap<String, Nanos>) -> BTreeMap<String, Value> {
    of.into_iter().map(|(name, spend)| (name, json!(spend))).collect()
}

#[tokio::test]
async fn reports_add_up_to_the_ledger() {
    let books = Books::new().await;
    let whole = books.metrics(|_| true);
    let spend = books.get("/global/spend").await;
    assert_eq!(
        spend,
        json!({"spend": whole["spend"], "total_spend": whole["spend"], "max_budget": null})
    );
    let get = async |path: &str| books.get(&format!("{path}?{SPAN}")).await;
    let list = get("/global/spend/logs").await;
    assert_eq!(by(&list, "date", "spend"), shown(books.spent(|r| vec![day(r)])));
    assert_eq!(list[0]["date"], "2026-11-18", "the first day first");
    let list = get("/global/spend/keys").await;
    assert_eq!(
        by(&list, "api_key", "total_spend"),
        shown(books.spent(|r| vec![key(r)]))
    );
    for entry in list.as_array().unwrap().iter().filter(|e| e["api_key"] != "") {
        assert!(
            entry["key_alias"].as_str().unwrap().starts_with("key "),
            "{entry}"
        );
        assert!(
            entry["key_name"].as_str().unwrap().starts_with("sk-..."),
            "{entry}"
        );
    }
    let list = get("/global/spend/models").await;
    let want = books.spent(|r| vec![r.model_group.clone()]);
    assert_eq!(by(&list, "model", "total_spend"), shown(want));
    let spends: Vec<f64> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["total_spend"].as_f64().unwrap())
        .collect();
    assert!(
        spends.is_sorted_by(|a, b| a >= b),
        "the dearest first: {spends:?}"
    );
    let one = books.get(&format!("/global/spend/models?{SPAN}&limit=1")).await;
    assert_eq!(one.as_array().unwrap().as_slice(), &list.as_array().unwrap()[..1]);
    let list = get("/global/spend/provider").await;
    let want = books.spent(|r| vec![r.provider.clone()]);
    assert_eq!(by(&list, "provider", "spend"), shown(want));
    let list = get("/global/spend/tags").await;
    let tags = shown(books.spent(|r| r.tags.clone()));
    assert_eq!(by(&list["spend_per_tag"], "name", "spend"), tags);
    let list = books.get("/spend/tags").await;
    assert_eq!(by(&list, "individual_request_tag", "total_spend"), tags);
    let counted: u64 = list
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["log_count"].as_u64().unwrap())
        .sum();
    assert_eq!(
        counted as usize,
        books.calls.iter().map(|r| r.tags.len()).sum::<usize>()
    );
    let body = json!({"startTime": "2026-11-18T00:00:00.000Z", "endTime": "2026-11-20", "api_key": null});
    let list = books.bench.master("POST /global/spend/end_users", body).await;
    let want = books.spent(|r| r.end_user.iter().cloned().collect());
    assert_eq!(by(&list, "end_user", "total_spend"), shown(want));
    assert!(list[0]["total_count"].is_u64());

    books
        .bench
        .put(Table::Team, "red", json!({"team_alias": "The Reds"}))
        .await;
    let teams = get("/global/spend/teams").await;
    let want = books.spent(|r| vec![text(&r.team_id)]);
    assert_eq!(
        by(&teams["total_spend_per_team"], "team_id", "total_spend"),
        shown(want)
    );
    let named: BTreeSet<&str> = teams["teams"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t.as_str().unwrap())
        .collect();
    assert_eq!(named, BTreeSet::from(["The Reds", "blue", "Unassigned"]));
    for of_day in teams["daily_spend"].as_array().unwrap() {
        let reds = books.metrics(|r| json!(day(r)) == of_day["date"] && text(&r.team_id) == "red");
        assert_eq!(of_day["The Reds"], reds["spend"]);
    }

    let activity = get("/global/activity").await;
    assert_eq!(
        (&activity["sum_api_requests"], &activity["sum_total_tokens"]),
        (&whole["api_requests"], &whole["total_tokens"])
    );
    let days = activity["daily_data"].as_array().unwrap();
    assert_eq!(days.len(), 3);
    assert_eq!(
        (&days[0]["date"], &days[2]["date"]),
        (&json!("Nov 18"), &json!("Nov 20"))
    );
    for of_day in days {
        let want = books.metrics(|r| json!(day(r)) == of_day["day"]);
        assert_eq!(
            (&of_day["api_requests"], &of_day["total_tokens"]),
            (&want["api_requests"], &want["total_tokens"])
        );
    }
    for model in get("/global/activity/model").await.as_array().unwrap() {
        let want = books.metrics(|r| json!(r.model_group) == model["model"]);
        assert_eq!(model["sum_total_tokens"], want["total_tokens"], "{model}");
        assert_eq!(model["daily_data"].as_array().unwrap().len(), 3);
    }
}

#[tokio::test]
async fn the_report_is_by_day_and_group() {
    let books = Books::new().await;
    let report = async |more: &str| books.get(&format!("/global/spend/report?{SPAN}{more}")).await;
    type Of = fn(&Record) -> Option<String>;
    let groups: [(&str, &str, &str, Of); 4] = [
        ("&group_by=team", "teams", "team_id", |r| Some(text(&r.team_id))),
        ("&group_by=customer", "customers", "customer", |r| {
            r.end_user.clone()
        }),
        ("&group_by=user", "users", "user", |r| Some(text(&r.user_id))),
        ("&group_by=organization", "organizations", "organization", |r| {
            Some(text(&r.organization_id))
        }),
    ];
    for (more, several, name, of) in groups {
        let days = report(more).await;
        let days = days.as_array().unwrap();
        assert_eq!(days.len(), 3, "{more}");
        assert_eq!(days[0]["group_by_day"], "2026-11-18T00:00:00+00:00");
        for of_day in days {
            let date = of_day["group_by_day"]
                .as_str()
                .unwrap()
                .split('T')
                .next()
                .unwrap();
            for entry in of_day[several].as_array().unwrap() {
                let fits = |r: &Record| day(r) == date && of(r).is_some_and(|id| json!(id) == entry[name]);
                assert_eq!(
                    entry["total_spend"],
                    books.metrics(fits)["spend"],
                    "{more} {entry}"
                );
                for part in entry["metadata"].as_array().unwrap() {
                    let want = books.metrics(|r| {
                        fits(r)
                            && json!(r.model_group) == part["model"]
                            && (several == "customers"
                                || json!(r.key_hash.map(|h| h.hex())) == part["api_key"])
                    });
                    assert_eq!(
                        (&part["spend"], &part["total_tokens"]),
                        (&want["spend"], &want["total_tokens"]),
                        "{more} {part}"
                    );
                }
            }
        }
    }
    let hash = KeyHash::of(&books.secrets[1]).hex();
    let keys = report("&group_by=api_key").await;
    assert_eq!(
        by(&keys, "api_key", "total_cost"),
        shown(books.spent(|r| vec![key(r)]))
    );
    let one = report(&format!("&api_key={hash}")).await;
    assert_eq!(one.as_array().unwrap().len(), 1);
    let want = books.metrics(|r| key(r) == hash);
    assert_eq!(
        (&one[0]["total_input_tokens"], &one[0]["total_output_tokens"]),
        (&want["prompt_tokens"], &want["completion_tokens"])
    );
    for part in one[0]["model_details"].as_array().unwrap() {
        let want = books.metrics(|r| key(r) == hash && json!(r.model_group) == part["model"]);
        assert_eq!(part["total_cost"], want["spend"]);
    }
    let users = books.get("/spend/users").await;
    let want = books.spent(|r| r.user_id.iter().cloned().collect());
    assert_eq!(by(&users, "user_id", "spend"), shown(want));
    let keys = books.get("/spend/keys?limit=2").await;
    let keys = keys.as_array().unwrap();
    assert_eq!(keys.len(), 2);
    assert!(keys[0]["spend"].as_f64() >= keys[1]["spend"].as_f64());
    let token = keys[0]["token"].as_str().unwrap();
    assert_eq!(keys[0]["spend"], books.metrics(|r| key(r) == token)["spend"]);
}
