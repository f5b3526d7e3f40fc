//! What is counted of answers, wherever they are cut.

use super::*;
use crate::testkit;

/// Runs a stream through, cut every `step` bytes; what the client sees and what was used.
fn run(body: &str, events: &str, step: usize) -> (String, Metered) {
    let mut cx = testkit::Kit::default().cx();
    cx.call = Some(testkit::call(Endpoint::Chat, body));
    cx.event_stream = true;
    cx.response_status = 200;
    let mut out = Vec::new();
    let chunks: Vec<&[u8]> = events.as_bytes().chunks(step).collect();
    for (i, piece) in chunks.iter().enumerate() {
        let mut chunk = Bytes::copy_from_slice(piece);
        MeterUsage
            .response_body_filter(&mut cx, &mut chunk, i + 1 == chunks.len())
            .unwrap();
        out.extend_from_slice(&chunk);
    }
    (String::from_utf8(out).unwrap(), cx.metered)
}

const DELTAS: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hello\"}}]}\n\n\
    data: {\"choices\":[{\"delta\":{\"content\":\" wor\\\"ld\"}}],\"usage\":null}\n\n";
const USAGE: &str =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2,\"total_tokens\":9}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

#[test]
fn the_usage_event_is_hidden_from_those_who_did_not_ask_at_every_cut() {
    let events = format!("{DELTAS}{USAGE}{DONE}");
    for step in 1..=events.len() {
        let (seen, m) = run(r#"{"model":"m","messages":[],"stream":true}"#, &events, step);
        assert_eq!(seen, format!("{DELTAS}{DONE}"), "cut every {step} bytes");
        let used = m.used.unwrap();
        assert_eq!(
            (used.prompt_tokens, used.completion_tokens, used.estimated),
            (7, 2, false)
        );
        assert!(m.done);
    }
}

#[test]
fn the_last_word_of_a_stream_settles_it_before_it_closes() {
    let mut cx = testkit::Kit::default().cx();
    cx.call = Some(testkit::call(
        Endpoint::Chat,
        r#"{"model":"m","messages":[],"stream":true}"#,
    ));
    cx.event_stream = true;
    cx.response_status = 200;
    let mut chunk = Bytes::from(format!("{DELTAS}{USAGE}{DONE}"));
    MeterUsage
        .response_body_filter(&mut cx, &mut chunk, false)
        .unwrap();
    assert_eq!(
        cx.metered.used.unwrap().completion_tokens,
        2,
        "known with [DONE], not when it closes"
    );
}

#[test]
fn the_first_word_is_what_begins_a_stream() {
    let began = |endpoint: Endpoint, body: &str, events: &[&str]| {
        let mut cx = testkit::Kit::default().cx();
        cx.call = Some(testkit::call(endpoint, body));
        cx.event_stream = true;
        cx.response_status = 200;
        cx.first_byte = Some(cx.started);
        let began = events.iter().map(|event| {
            let mut chunk = Bytes::copy_from_slice(event.as_bytes());
            MeterUsage
                .response_body_filter(&mut cx, &mut chunk, false)
                .unwrap();
            cx.first_token.is_some()
        });
        began.collect::<Vec<bool>>()
    };
    let chat = r#"{"model":"m","messages":[],"stream":true}"#;
    let role = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
    let thought = "data: {\"choices\":[{\"delta\":{\"reasoning\":\"Hm\"}}]}\n\n";
    for first in [DELTAS, thought] {
        assert_eq!(
            began(Endpoint::Chat, chat, &[": ping\n\n", role, first, DONE]),
            [false, false, true, true]
        );
    }
    let created = "event: response.created\ndata: {\"response\":{\"id\":\"r\"}}\n\n";
    let delta = "event: response.output_text.delta\ndata: {\"delta\":\"Hi\"}\n\n";
    let asked = r#"{"model":"m","input":"x","stream":true}"#;
    assert_eq!(
        began(Endpoint::Responses, asked, &[created, delta]),
        [false, true]
    );
}

#[test]
fn those_who_asked_see_every_byte() {
    let events = format!("{DELTAS}{USAGE}{DONE}");
    let asked = r#"{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;
    for step in [1, 3, 50, 1000] {
        assert_eq!(run(asked, &events, step).0, events);
    }
}

#[test]
fn a_silent_upstream_is_counted_for_and_flagged() {
    let (seen, m) = run(
        r#"{"model":"m","messages":[],"stream":true}"#,
        &format!("{DELTAS}{DONE}"),
        9,
    );
    assert_eq!(seen, format!("{DELTAS}{DONE}"));
    let used = m.used.unwrap();
    assert!(used.estimated && used.prompt_tokens > 0);
    assert_eq!(used.completion_tokens, 4, "two deltas of thirteen bytes");
}

fn ended(cx: &mut Cx) -> Option<Usage> {
    let outcome = Outcome {
        status: crate::model::record::Status::Aborted,
        http_status: 499,
        error: None,
        error_kind: None,
    };
    MeterUsage.logging(cx, &outcome);
    cx.metered.used
}

#[test]
fn a_question_that_went_out_is_owed_though_its_client_left() {
    let mut cx = testkit::Kit::default().cx();
    cx.call = Some(testkit::call(Endpoint::Chat, r#"{"model":"m","messages":[]}"#));
    assert_eq!(ended(&mut cx), None, "nothing went out");
    cx.metered.sent = true;
    for status in [302, 500] {
        cx.response_status = status;
        assert_eq!(ended(&mut cx), None, "{status}: no answer, no debt");
    }
    cx.response_status = 0;
    cx.metered.held_bytes = 400;
    let used = ended(&mut cx).unwrap();
    assert_eq!(
        (used.prompt_tokens, used.completion_tokens, used.estimated),
        (7, 100, true)
    );
}

#[test]
fn a_stream_that_broke_off_is_owed_for_what_came() {
    let early = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":90,\"completion_tokens\":1}}\n\n";
    for by_error in [false, true] {
        let mut cx = testkit::Kit::default().cx();
        cx.call = Some(testkit::call(
            Endpoint::Chat,
            r#"{"model":"m","messages":[],"stream":true}"#,
        ));
        (cx.event_stream, cx.response_status) = (true, 200);
        let mut chunk = Bytes::from(format!("{early}{DELTAS}"));
        MeterUsage
            .response_body_filter(&mut cx, &mut chunk, false)
            .unwrap();
        if by_error {
            cx.metered.error = Some("it broke off".into());
            let mut rest = Bytes::new();
            MeterUsage.response_body_filter(&mut cx, &mut rest, true).unwrap();
        }
        let used = ended(&mut cx).unwrap();
        assert_eq!(
            (used.prompt_tokens, used.completion_tokens, used.estimated),
            (90, 4, true)
        );
    }
}

#[test]
fn a_break_after_all_was_told_is_no_estimate() {
    let told = Usage {
        prompt_tokens: 90,
        completion_tokens: 9,
        ..Usage::default()
    };
    assert_eq!(told.at_least(&Usage::estimate(4, 4, 1)), told);
}

#[test]
fn the_tier_is_read_off_streams_and_whole_answers() {
    let tiered = DELTAS.replacen('{', "{\"service_tier\":\"flex\",", 1);
    let (_, m) = run(
        r#"{"model":"m","messages":[],"stream":true}"#,
        &format!("{tiered}{USAGE}{DONE}"),
        7,
    );
    assert_eq!(m.service_tier, Some(ServiceTier::Flex));
    let mut cx = testkit::Kit::default().cx();
    cx.call = Some(testkit::call(Endpoint::Chat, r#"{"model":"m","messages":[]}"#));
    cx.response_status = 200;
    let mut whole = Bytes::from_static(br#"{"choices":[],"service_tier":"priority"}"#);
    MeterUsage
        .response_body_filter(&mut cx, &mut whole, true)
        .unwrap();
    assert_eq!(cx.metered.service_tier, Some(ServiceTier::Priority));
}

#[test]
fn usage_beside_a_choice_stays_where_it_is() {
    let last = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1,\
         \"completion_tokens\":1}}\n\n";
    let (seen, m) = run(
        r#"{"model":"m","messages":[],"stream":true}"#,
        &format!("{last}{DONE}"),
        20,
    );
    assert_eq!(seen, format!("{last}{DONE}"));
    assert_eq!(m.used.unwrap().completion_tokens, 1);
}

#[test]
fn asking_keeps_the_clients_other_options() {
    let call = |b: &str| testkit::call(Endpoint::Chat, b);
    let plain = call(r#"{"model":"m","messages":[],"stream":true}"#);
    assert!(asks(&plain));
    assert_eq!(with_include_usage(&plain), r#"{"include_usage":true}"#);
    let other = call(r#"{"model":"m","messages":[],"stream":true,"stream_options":{"x":1}}"#);
    assert_eq!(with_include_usage(&other), r#"{"x":1,"include_usage":true}"#);
    let no = call(r#"{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":false}}"#);
    assert_eq!(with_include_usage(&no), r#"{"include_usage":true}"#);
    assert!(!asks(&call(r#"{"model":"m","messages":[]}"#)));
}

#[test]
fn the_end_of_an_answer_says_what_the_whole_says() {
    let usage = |n: u64| format!(r#""usage":{{"prompt_tokens":{n},"completion_tokens":1}}"#);
    let (one, nine) = (usage(1), usage(9));
    let choices = r#""choices":[{"message":{"content":"é \"usage\":{} \\"}}]"#;
    let far = "x".repeat(END);
    for (answer, is_found) in [
        (format!("{{{choices},{one}}}"), true),
        (
            format!("\n{{{choices} , {one} , \"service_tier\" : \"flex\",\"x\":[{{}}]}}\n"),
            true,
        ),
        (format!("{{\"service_tier\":\"flex\",{one},\"x\":null}}"), true),
        (format!("{{{one},\"service_tier\":null}}"), true),
        // Deeper down it is somebody else's.
        (format!("{{{one},\"x\":{{{nine}}}}}"), false),
        (format!("{{\"x\":{{{nine}}}}}"), false),
        (format!("{{\"x\":[{{{nine}}}]}}"), false),
        (format!("[{{{nine}}}]"), false),
        // Not a key, or not whole.
        (format!("{{{one},\"object\":\"usage\"}}"), false),
        (format!("{{{one},\"object\":\"\\\"usage\\\"\"}}"), true),
        (format!("{{{one},\"object\":\"say \\\"usage\"}}"), false),
        (format!("{{{choices},{one}"), false),
        (format!("{{{one},\"far\":\"{far}\"}}"), false),
        (r#"{"usage":null}"#.into(), false),
        (r#"{"usage":{"prompt_tokens":1},"service_tier":7}"#.into(), false),
    ] {
        let found = at_the_end(answer.as_bytes());
        assert_eq!(found.is_some(), is_found, "{answer}");
        if is_found {
            assert_eq!(found, at_the_top(answer.as_bytes()), "{answer}");
        }
    }
}
