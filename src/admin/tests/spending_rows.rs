//! Rows of generated calls: by each filter, in each order, by page and by row.

use super::spending::*;
use super::*;
use filters::model::record::{Record, Status};

fn ids(rows: &Value) -> Vec<String> {
    let rows = rows.as_array().unwrap_or_else(|| panic!("{rows}"));
    rows.iter()
        .map(|r| r["request_id"].as_str().unwrap().into())
        .collect()
}

#[tokio::test]
async fn rows_are_filtered_by_everything() {
    let books = Books::new().await;
    let mut newest: Vec<&Record> = books.calls.iter().collect();
    newest.sort_by_key(|r| std::cmp::Reverse((r.started_micros, r.request_id.clone())));
    let dear = 5_000_000_000;
    type Fits = Box<dyn Fn(&Record) -> bool>;
    let ended = NOON + 1_800_000_000;
    let filters: Vec<(String, Fits)> = vec![
        ("".into(), Box::new(|_| true)),
        ("end_user=eve".into(), Box::new(|r| text(&r.end_user) == "eve")),
        ("model=small".into(), Box::new(|r| r.model_group == "small")),
        ("model=upstream".into(), Box::new(|_| true)),
        ("model_group=large".into(), Box::new(|r| r.model_group == "large")),
        (
            "tag=c%27%3B%20--".into(),
            Box::new(|r| r.tags.iter().any(|t| t == TAGS[2])),
        ),
        (
            "key_alias=key%201".into(),
            Box::new(|r| text(&r.key_alias) == "key 1"),
        ),
        (
            "organization_id=org".into(),
            Box::new(|r| text(&r.organization_id) == "org"),
        ),
        ("status=success".into(), Box::new(|r| r.status == Status::Success)),
        ("status=failure".into(), Box::new(|r| r.status != Status::Success)),
        ("status_filter=cut".into(), Box::new(|r| r.status == Status::Cut)),
        ("http_status=4xx".into(), Box::new(|r| r.http_status == 429)),
        ("error_code=429".into(), Box::new(|r| r.http_status == 429)),
        ("http_status=404".into(), Box::new(|_| false)),
        ("search=-000".into(), Box::new(|r| r.request_id.contains("-000"))),
        ("search=%25".into(), Box::new(|_| false)),
        ("min_spend=5".into(), Box::new(move |r| r.spend_nanos >= dear)),
        ("max_spend=5".into(), Box::new(move |r| r.spend_nanos <= dear)),
        (
            "min_spend=1e-9&max_spend=0.5&team_id=red".into(),
            Box::new(|r| (1..=500_000_000).contains(&r.spend_nanos) && text(&r.team_id) == "red"),
        ),
        (
            format!("ended_after={ended}"),
            Box::new(move |r| r.ended_micros > ended && r.started_micros >= ended - 3 * 3_600_000_000),
        ),
        (
            "ended_after=2026-11-20T12:30:00Z&status=success".into(),
            Box::new(move |r| r.ended_micros > ended && r.status == Status::Success),
        ),
        (
            "start_date=2026-11-19&end_date=2026-11-19".into(),
            Box::new(|r| day(r) == "2026-11-19"),
        ),
        // Midnight lies an hour later there.
        (
            "start_date=2026-11-19&end_date=2026-11-19&timezone=720".into(),
            Box::new(|r| (NOON - DAY..NOON).contains(&r.started_micros)),
        ),
    ];
    for (query, fits) in &filters {
        let want: Vec<String> = newest
            .iter()
            .filter(|r| fits(r))
            .map(|r| r.request_id.clone())
            .collect();
        let rows = books.get(&format!("/spend/logs?{query}")).await;
        assert_eq!(ids(&rows), want, "{query}");
        if query.contains("timezone") {
            continue;
        }
        let page = books.get(&format!("/spend/logs/ui?{query}&page_size=7")).await;
        let n = want.len();
        assert_eq!(ids(&page["data"]), want[..n.min(7)], "{query}");
        // A search tells of what it has seen: the page, and that there is more.
        let seen = if query.starts_with("search=") { n.min(8) } else { n };
        for (name, is) in [
            ("total", json!(seen)),
            ("total_is_exact", json!(seen == n)),
            ("page", json!(1)),
            ("page_size", json!(7)),
            ("total_pages", json!(seen.div_ceil(7))),
            ("has_more", json!(n > 7)),
        ] {
            assert_eq!(page[name], is, "{query} {name}");
        }
    }
    let times = "start_date=2026-11-20%2012:00:00&end_date=2026-11-20%2012:30:00";
    let page = books.get(&format!("/spend/logs/v2?{times}&page_size=1000")).await;
    let within = |r: &&&Record| (NOON..NOON + 1_800_000_000).contains(&r.started_micros);
    assert_eq!(page["total"], newest.iter().filter(within).count());
}

#[tokio::test]
async fn rows_go_on_after_a_row() {
    let books = Books::new().await;
    for (sort, sorted) in [
        ("", None),
        ("&sort_order=asc", None),
        ("&sort_by=spend", Some(true)),
        ("&sort_by=spend&sort_order=asc", Some(false)),
    ] {
        let whole = ids(&books.get(&format!("/spend/logs?limit=5000{sort}")).await);
        assert_eq!(whole.len(), 400);
        if let Some(falling) = sorted {
            let spend = |id: &String| {
                books
                    .calls
                    .iter()
                    .find(|r| r.request_id == *id)
                    .unwrap()
                    .spend_nanos
            };
            let spends: Vec<i64> = whole.iter().map(spend).collect();
            assert!(spends.is_sorted_by(|a, b| if falling { a >= b } else { a <= b }));
        }
        let (mut after, mut found) = (String::new(), Vec::new());
        loop {
            let route = format!("GET /spend/logs?limit=70{sort}{after}");
            let answer = books.bench.call(&master(), &route, "").await;
            found.extend(ids(&answer.body));
            let Some(next) = answer.headers.get("x-next-after") else {
                break;
            };
            after = format!("&after={}", next.to_str().unwrap());
        }
        assert_eq!(found, whole, "{sort}");
        let page = books.get(&format!("/spend/logs/ui?page_size=70{sort}")).await;
        let next = page["next_after"].as_str().unwrap();
        let page = books
            .get(&format!("/spend/logs/ui?page_size=70{sort}&after={next}"))
            .await;
        assert_eq!(ids(&page["data"]), whole[70..140], "{sort}");
        assert_eq!(page["total"], 400);
    }
    let one = books.get("/spend/logs/ui/call-0007").await;
    assert_eq!(one["request_id"], "call-0007");
    for empty in ["messages", "response", "proxy_server_request"] {
        assert_eq!(one[empty], json!({}), "{empty}");
    }
}
