//! Every provider's spelling, and every number no provider should send.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

#[track_caller]
fn check(usage: Value, expected: Usage) {
    assert_eq!(
        Usage::read(usage.to_string().as_bytes()),
        Some(expected),
        "{usage}"
    );
}

fn tokens(prompt_tokens: u64, completion_tokens: u64) -> Usage {
    Usage {
        prompt_tokens,
        completion_tokens,
        ..Usage::default()
    }
}

#[test]
fn spellings() {
    check(
        json!({"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}),
        tokens(11, 3),
    );
    check(json!({"prompt_tokens": 8, "total_tokens": 8}), tokens(8, 0));
    check(json!({"total_tokens": 8}), tokens(8, 0));
    check(
        json!({"prompt_tokens": 8, "completion_tokens": null}),
        tokens(8, 0),
    );
    check(
        json!({
            "prompt_tokens": 100, "completion_tokens": 50,
            "prompt_tokens_details": {"cached_tokens": 40, "audio_tokens": 5, "image_tokens": 6},
            "completion_tokens_details": {"reasoning_tokens": 20, "audio_tokens": 7, "image_tokens": 8}
        }),
        Usage {
            cached_tokens: 40,
            audio_prompt_tokens: 5,
            image_prompt_tokens: 6,
            reasoning_tokens: 20,
            audio_completion_tokens: 7,
            image_tokens: 8,
            ..tokens(100, 50)
        },
    );
    // Responses API: cached tokens are inside input_tokens.
    check(
        json!({
            "input_tokens": 100, "output_tokens": 50, "total_tokens": 150,
            "input_tokens_details": {"cached_tokens": 40}, "output_tokens_details": {"reasoning_tokens": 20}
        }),
        Usage {
            cached_tokens: 40,
            reasoning_tokens: 20,
            ..tokens(100, 50)
        },
    );
    // Anthropic: cached tokens stand beside input_tokens.
    check(
        json!({
            "input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 30,
            "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20}
        }),
        Usage {
            cached_tokens: 100,
            cache_creation_tokens: 30,
            cache_creation_1h_tokens: 20,
            ..tokens(140, 5)
        },
    );
    // A gateway that adds Anthropic's names to OpenAI's has counted them in already.
    check(
        json!({"prompt_tokens": 140, "completion_tokens": 5, "cache_read_input_tokens": 100}),
        Usage {
            cached_tokens: 100,
            ..tokens(140, 5)
        },
    );
    // DeepSeek.
    check(
        json!({"prompt_tokens": 10, "completion_tokens": 2, "prompt_cache_hit_tokens": 4}),
        Usage {
            cached_tokens: 4,
            ..tokens(10, 2)
        },
    );
    // xAI: reasoning is outside the completion but inside the total.
    check(
        json!({
            "prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 112,
            "completion_tokens_details": {"reasoning_tokens": 100}
        }),
        Usage {
            reasoning_tokens: 100,
            ..tokens(10, 102)
        },
    );
    // Transcriptions, by duration or by token.
    check(
        json!({"type": "duration", "seconds": 4}),
        Usage {
            seconds_milli: 4_000,
            ..Usage::default()
        },
    );
    check(
        json!({
            "type": "tokens", "input_tokens": 14, "output_tokens": 45, "total_tokens": 59,
            "input_token_details": {"text_tokens": 0, "audio_tokens": 14}
        }),
        Usage {
            audio_prompt_tokens: 14,
            ..tokens(14, 45)
        },
    );
}

#[test]
fn nothing_counted_is_none() {
    for usage in [
        json!(null),
        json!([]),
        json!(7),
        json!({}),
        json!({"cost": 1}),
        json!({"prompt_tokens": null}),
    ] {
        assert_eq!(Usage::read(usage.to_string().as_bytes()), None, "{usage}");
    }
}

#[test]
fn hostile_numbers_are_clamped_and_flagged() {
    let clamped = |prompt, completion| Usage {
        clamped: true,
        ..tokens(prompt, completion)
    };
    check(
        json!({"prompt_tokens": "11", "completion_tokens": 3.0}),
        tokens(11, 3),
    );
    check(
        json!({"prompt_tokens": -5, "completion_tokens": 3}),
        clamped(0, 3),
    );
    check(
        json!({"prompt_tokens": "NaN", "completion_tokens": 3}),
        clamped(0, 3),
    );
    check(
        json!({"prompt_tokens": "-inf", "completion_tokens": "inf"}),
        clamped(0, MOST),
    );
    check(
        json!({"prompt_tokens": true, "completion_tokens": [1]}),
        clamped(0, 0),
    );
    check(
        json!({"prompt_tokens": 1, "completion_tokens": 10u64.pow(19)}),
        clamped(1, MOST),
    );
    check(
        serde_json::from_str(r#"{"prompt_tokens":1000000000000000000000000000000}"#).unwrap(),
        clamped(MOST, 0),
    );
    check(
        json!({"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 99}}),
        Usage {
            cached_tokens: 10,
            ..clamped(10, 1)
        },
    );
    check(
        json!({"input_tokens": MOST, "output_tokens": 0, "cache_read_input_tokens": 1}),
        Usage {
            cached_tokens: 1,
            ..clamped(MOST, 0)
        },
    );
}

#[track_caller]
fn finds(body: &str, expected: Option<Usage>) {
    assert_eq!(Usage::find_in(body.as_bytes()), expected, "{body}");
}

#[test]
fn usage_is_found_where_providers_put_it() {
    finds(
        r#"{"choices":[{"x":"\"usage\":{}"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#,
        Some(tokens(1, 2)),
    );
    finds(
        r#"{"type":"response.completed","response":{"id":"r","usage":{"input_tokens":1,"output_tokens":2}}}"#,
        Some(tokens(1, 2)),
    );
    finds(
        r#"{"type":"message_start","message":{"usage":{"input_tokens":3,"output_tokens":1}}}"#,
        Some(tokens(3, 1)),
    );
    finds(
        r#"{"type":"message_delta","delta":{},"usage" : {"output_tokens":9}}"#,
        Some(tokens(0, 9)),
    );
    // Named twice, the last one counts.
    finds(
        r#"{"usage":{"prompt_tokens":1},"usage":{"prompt_tokens":5}}"#,
        Some(tokens(5, 0)),
    );
    finds(
        r#"{"usage":null,"response":"text","message":{"usage":{"prompt_tokens":5}}}"#,
        Some(tokens(5, 0)),
    );
}

#[test]
fn no_usage_is_none() {
    finds(r#"{"choices":[],"usage":null}"#, None);
    finds(r#"{"choices":[],"usage" : null }"#, None);
    finds(r#"{"choices":[{"usage":{"prompt_tokens":1}}]}"#, None);
    finds(r#"{"text":"say \"usage\": 7"}"#, None);
    finds(r#"{"usage":{"prompt_tokens":1}"#, None);
    finds(r#"["usage",{"usage":{"prompt_tokens":1}}]"#, None);
    finds("[DONE]", None);
    finds("", None);
    finds(r#""usage""#, None);
    let deep = format!(r#"{{"a":{},"usage":{{"prompt_tokens":1}}}}"#, "[".repeat(100_000));
    finds(&deep, None);
    let long = format!(
        r#"{{"usage":{{"prompt_tokens":1,"x":"{}"}}}}"#,
        "x".repeat(LONGEST_USAGE)
    );
    finds(&long, None);
}

#[test]
fn a_transcription_is_measured_by_its_duration() {
    let find = |body: &str| Usage::find_in_transcription(body.as_bytes());
    let seconds = |seconds_milli| {
        Some(Usage {
            seconds_milli,
            ..Usage::default()
        })
    };
    assert_eq!(
        find(r#"{"task":"transcribe","duration":8.47,"text":"hi"}"#),
        seconds(8_470)
    );
    assert_eq!(
        find(r#"{"duration":"8.470000267028809","text":"hi"}"#),
        seconds(8_470)
    );
    assert_eq!(
        find(r#"{"text":"hi","usage":{"type":"duration","seconds":9}}"#),
        seconds(9_000)
    );
    assert_eq!(find(r#"{"text":"hi"}"#), None);
    let hostile = find(r#"{"duration":1e30}"#).unwrap();
    assert!(hostile.clamped && hostile.seconds_milli == MOST_MILLIS);
    assert_eq!(
        Usage::find_in(br#"{"duration":8.47}"#),
        None,
        "only where audio was asked for"
    );
}

#[test]
fn estimates_are_rough_but_never_nothing() {
    assert_eq!(estimate_prompt(0), 1);
    assert_eq!(estimate_prompt(9), 3);
    assert_eq!(estimate_prompt(usize::MAX), MOST);
    assert_eq!(estimate_completion(0, 0), 0);
    assert_eq!(estimate_completion(3, 7), 7);
    assert_eq!(estimate_completion(400, 7), 100);
    assert_eq!(estimate_completion(0, u64::MAX), MOST);
    assert!(Usage::estimate(1, 1, 1).estimated);
}

#[test]
fn running_totals_merge() {
    let mut usage = Usage {
        cached_tokens: 5,
        ..tokens(10, 1)
    };
    usage.merge(&tokens(3, 40));
    assert_eq!(
        usage,
        Usage {
            cached_tokens: 5,
            ..tokens(10, 40)
        }
    );
    assert_eq!(usage.total_tokens(), 50);
    let mut guess = Usage::estimate(4, 4, 1);
    guess.merge(&Usage {
        clamped: true,
        ..tokens(1, 1)
    });
    assert!(!guess.estimated && guess.clamped);
}

#[test]
fn usage_survives_the_spool() {
    let usage = Usage {
        cached_tokens: 5,
        estimated: true,
        ..tokens(10, 1)
    };
    let text = serde_json::to_string(&usage).unwrap();
    assert_eq!(serde_json::from_str::<Usage>(&text).unwrap(), usage);
    assert!(serde_json::from_str::<Usage>("{}").unwrap().is_empty());
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    let names = prop::sample::select(vec![
        "usage",
        "prompt_tokens",
        "completion_tokens",
        "input_tokens",
        "output_tokens",
        "total_tokens",
        "prompt_tokens_details",
        "completion_tokens_details",
        "cached_tokens",
        "reasoning_tokens",
        "seconds",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
        "cache_creation",
        "audio_tokens",
        "ephemeral_1h_input_tokens",
        "response",
        "message",
        "duration",
    ]);
    leaf.prop_recursive(4, 64, 12, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((names.clone(), inner), 0..12).prop_map(|fields| fields
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect()),
        ]
    })
}

proptest! {
    #[test]
    fn whatever_comes_stays_within_bounds(value in any_json()) {
        let body = value.to_string();
        let found = [
            Usage::read(body.as_bytes()),
            Usage::find_in(body.as_bytes()),
            Usage::find_in_transcription(body.as_bytes()),
        ];
        for usage in found.into_iter().flatten() {
            prop_assert!(usage.prompt_tokens <= MOST && usage.completion_tokens <= MOST);
            prop_assert!(usage.cached_tokens + usage.cache_creation_tokens <= usage.prompt_tokens);
            prop_assert!(usage.cache_creation_1h_tokens <= usage.cache_creation_tokens);
            prop_assert!(usage.reasoning_tokens <= usage.completion_tokens);
            prop_assert!(usage.seconds_milli <= MOST_MILLIS);
        }
    }

    #[test]
    fn bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Usage::find_in(&body);
        let named = [b"{\"usage\":", body.as_slice()].concat();
        let _ = Usage::find_in_transcription(&named);
    }
}

#[test]
fn files_within_a_prompt_are_not_counted_as_text() {
    let text = |n: usize| "A".repeat(n);
    #[track_caller]
    fn check(body: &str, tokens: u64) {
        assert_eq!(estimate_prompt_of(body.as_bytes()), tokens);
    }
    check("", 1);
    check(&text(4000), 1000);
    check(
        &format!(r#"{{"url":"data:image/png;base64,{}"}}"#, text(4_000_000)),
        1508,
    );
    check(&format!(r#"{{"url":"data:image/png;base64,{}"}}"#, text(40)), 18);
    check(
        &format!(
            r#"{{"url":"data:image/png;base64,{}\/{}"}}"#,
            text(1000),
            text(4_000_000)
        ),
        1508,
    );
    check(&format!(r#"{{"data" : "{}"}}"#, text(4_000_000)), 1504);
    check(&format!(r#"{{"data":"{}"}}"#, text(4000)), 1003);
    // Words are words, whatever stands before them.
    let words = "many words ".repeat(4000);
    assert!(estimate_prompt_of(format!(r#"{{"x":"data:a;base64,{words}"}}"#).as_bytes()) > 11_000);
    assert!(estimate_prompt_of(format!(r#"{{"x":"no;base64,{}"}}"#, text(44_000)).as_bytes()) > 11_000);
    check(&format!(r#"["data:","no;base64,{}"]"#, text(44_000)), 11_006);
}

#[test]
fn the_tier_is_the_answers_own() {
    let tier = |json: &str| tier_in(json.as_bytes());
    assert_eq!(tier(r#"{"service_tier":"flex"}"#).as_deref(), Some("flex"));
    assert_eq!(
        tier(r#"{"type":"x","response":{"service_tier":"priority"}}"#).as_deref(),
        Some("priority")
    );
    for none in [
        r#"{"service_tier":null}"#,
        r#"{"service_tier":"auto"}"#,
        r#"{"service_tier":7}"#,
        r#"{"metadata":{"service_tier":"flex"}}"#,
        r#"{"response":{"metadata":{"service_tier":"flex"}}}"#,
        r#"{"service_tier":"flex""#,
        "{}",
    ] {
        assert_eq!(tier(none), None, "{none}");
    }
}
