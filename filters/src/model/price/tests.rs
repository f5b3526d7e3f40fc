//! Known sums, and what must hold for every sum.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn tokens(prompt_tokens: u64, completion_tokens: u64) -> Usage {
    Usage {
        prompt_tokens,
        completion_tokens,
        ..Usage::default()
    }
}

fn listed(provider: &str, model: &str) -> Price {
    Prices::embedded().find(provider, model).unwrap().price
}

fn configured(fields: serde_json::Value) -> Price {
    serde_json::from_value::<PriceOverride>(fields)
        .unwrap()
        .over(None)
        .unwrap()
}

#[track_caller]
fn check(price: &Price, usage: Usage, mode: Mode, dollars: &str) {
    let cost = price.cost(&usage, mode, ServiceTier::Standard);
    assert_eq!(cost.map(|cost| cost.to_string()).as_deref(), Some(dollars));
}

#[test]
fn known_sums() {
    check(&listed("openai", "gpt-4"), tokens(11, 3), Mode::Chat, "0.00051");
    check(
        &listed("openai", "tts-1"),
        Usage {
            characters: 3,
            ..Usage::default()
        },
        Mode::AudioSpeech,
        "0.000045",
    );
    let custom = configured(json!({"input_cost_per_token": 0.001, "output_cost_per_token": "0.002"}));
    check(&custom, tokens(11, 3), Mode::Chat, "0.017");
    check(
        &listed("openai", "text-embedding-3-small"),
        tokens(1_000, 0),
        Mode::Embedding,
        "0.00002",
    );
    check(
        &listed("cohere", "rerank-v3.5"),
        Usage {
            queries: 1,
            ..Usage::default()
        },
        Mode::Rerank,
        "0.002",
    );
}

#[test]
fn audio_by_the_second_is_charged_once() {
    let minute = Usage {
        seconds_milli: 60_000,
        ..Usage::default()
    };
    check(
        &listed("openai", "whisper-1"),
        minute,
        Mode::AudioTranscription,
        "0.006",
    );
    check(
        &listed("groq", "whisper-large-v3"),
        minute,
        Mode::AudioTranscription,
        "0.0018498",
    );
    let half = Usage {
        seconds_milli: 500,
        ..Usage::default()
    };
    check(
        &listed("openai", "whisper-1"),
        half,
        Mode::AudioTranscription,
        "0.00005",
    );
    // One that has both is charged by tokens when the upstream counted them.
    let counted = Usage {
        seconds_milli: 60_000,
        audio_prompt_tokens: 100,
        ..tokens(100, 10)
    };
    check(
        &listed("openai", "gpt-4o-transcribe"),
        counted,
        Mode::AudioTranscription,
        "0.00035",
    );
    check(
        &listed("openai", "gpt-4o-transcribe"),
        minute,
        Mode::AudioTranscription,
        "0.006",
    );
}

#[test]
fn cached_tokens_have_their_own_price_or_the_input_price() {
    let cached = Usage {
        cached_tokens: 800,
        ..tokens(1_000, 0)
    };
    check(&listed("openai", "gpt-4o"), cached, Mode::Chat, "0.0015");
    check(
        &configured(json!({"input_cost_per_token": 1e-6})),
        cached,
        Mode::Chat,
        "0.001",
    );
    let free = configured(json!({"input_cost_per_token": 1e-6, "cache_read_input_token_cost": 0}));
    check(&free, cached, Mode::Chat, "0.0002");

    // claude-sonnet-4-5, per million: input 3, read 0.3, write 3.75, kept for an hour 6.
    let written = Usage {
        cached_tokens: 200,
        cache_creation_tokens: 300,
        cache_creation_1h_tokens: 100,
        ..tokens(1_000, 0)
    };
    check(
        &listed("anthropic", "claude-sonnet-4-5"),
        written,
        Mode::Chat,
        "0.00291",
    );
}

#[test]
fn reasoning_and_audio_fall_back_to_text() {
    let usage = Usage {
        reasoning_tokens: 10,
        audio_completion_tokens: 5,
        audio_prompt_tokens: 5,
        ..tokens(10, 20)
    };
    check(
        &configured(json!({"input_cost_per_token": 0.1, "output_cost_per_token": 1})),
        usage,
        Mode::Chat,
        "21",
    );
    let fine = json!({
        "input_cost_per_token": 0.1, "output_cost_per_token": 1, "output_cost_per_reasoning_token": 2,
        "input_cost_per_audio_token": 0.2, "output_cost_per_audio_token": 3
    });
    check(&configured(fine), usage, Mode::Chat, "41.5");
}

#[test]
fn a_long_prompt_prices_the_whole_call_higher() {
    let gemini = listed("gemini", "gemini-2.5-pro");
    check(&gemini, tokens(200_000, 1_000), Mode::Chat, "0.26");
    check(&gemini, tokens(200_001, 1_000), Mode::Chat, "0.5150025");
    let cached = Usage {
        cached_tokens: 200_001,
        ..tokens(200_001, 0)
    };
    check(&gemini, cached, Mode::Chat, "0.05000025");
    let steps = listed("dashscope", "qwen-flash");
    check(&steps, tokens(1_000, 1_000), Mode::Chat, "0.00045");
    check(&steps, tokens(256_001, 1_000), Mode::Chat, "0.06600025");
}

#[test]
fn a_service_tier_has_its_price_or_the_standard_one() {
    let cost = |model: &str, tier, usage| {
        listed("", model)
            .cost(&usage, Mode::Chat, tier)
            .unwrap()
            .to_string()
    };
    let one = tokens(1_000_000, 0);
    assert_eq!(cost("gpt-4o", ServiceTier::Priority, one), "4.25");
    assert_eq!(cost("gpt-4o", ServiceTier::Batches, one), "1.25");
    assert_eq!(cost("gpt-4o", ServiceTier::Flex, one), "2.5", "not sold as flex");
    // A flex price for short prompts only: the long prompt pays the standard long price.
    assert_eq!(cost("gemini/gemini-2.5-pro", ServiceTier::Flex, one), "2.5");
}

#[test]
fn images_by_token_or_by_piece() {
    let by_token = Usage {
        image_tokens: 1_000,
        ..tokens(10, 1_000)
    };
    check(
        &listed("openai", "gpt-image-1"),
        by_token,
        Mode::ImageGeneration,
        "0.04005",
    );
    // Without details every output token is of the image.
    check(
        &listed("openai", "gpt-image-1"),
        tokens(10, 1_000),
        Mode::ImageGeneration,
        "0.04005",
    );
    let two = Usage {
        images: 2,
        ..Usage::default()
    };
    let priced = Prices::embedded()
        .find_image("openai", "gpt-image-1", "1024x1024", "low")
        .unwrap()
        .price;
    check(&priced, two, Mode::ImageGeneration, "0.022");
    let pixels = Usage {
        pixels: 1024 * 1024,
        images: 1,
        ..Usage::default()
    };
    let priced = Prices::embedded()
        .find_image("azure", "dall-e-3", "1024x1024", "standard")
        .unwrap()
        .price;
    check(&priced, pixels, Mode::ImageGeneration, "0.044000032");
}

#[test]
fn not_priced_is_not_free() {
    let minute = Usage {
        seconds_milli: 60_000,
        ..Usage::default()
    };
    let chat = |price: &Price, usage: &Usage| price.cost(usage, Mode::Chat, ServiceTier::Standard);
    assert_eq!(chat(&Price::default(), &tokens(1, 1)), None);
    assert_eq!(chat(&Price::default(), &Usage::default()), None);
    assert_eq!(
        chat(&listed("", "gpt-4"), &minute),
        None,
        "a chat model has no price per second"
    );
    assert_eq!(chat(&listed("", "gpt-4"), &Usage::default()), Some(Nanos::ZERO));
    let free = configured(json!({"input_cost_per_token": 0, "output_cost_per_token": "0"}));
    assert_eq!(chat(&free, &tokens(1, 1)), Some(Nanos::ZERO));
    let search = listed("", "searxng/search");
    let one = Usage {
        queries: 1,
        ..Usage::default()
    };
    assert_eq!(
        search.cost(&one, Mode::Search, ServiceTier::Standard),
        Some(Nanos::ZERO)
    );
}

#[test]
fn config_prices_lie_over_the_table() {
    let gemini = listed("gemini", "gemini-2.5-pro");
    let own = |fields| serde_json::from_value::<PriceOverride>(fields).unwrap();

    let nothing = own(json!({"model": "gemini/gemini-2.5-pro", "rpm": 10, "api_key": null, "tags": [1]}));
    assert!(nothing.is_empty());
    assert_eq!(nothing.over(Some(&gemini)), Some(gemini.clone()));
    assert_eq!(nothing.over(None), None);

    // Input free means free: long, cached and urgent too. Output stays the table's.
    let free = own(json!({"input_cost_per_token": 0}))
        .over(Some(&gemini))
        .unwrap();
    let long = Usage {
        cached_tokens: 1_000,
        ..tokens(300_000, 0)
    };
    assert_eq!(
        free.cost(&long, Mode::Chat, ServiceTier::Priority),
        Some(Nanos::ZERO)
    );
    check(&free, tokens(300_000, 1_000), Mode::Chat, "0.015");

    // A finer price alone leaves the others.
    let cache = own(json!({"cache_read_input_token_cost": "1e-3"}))
        .over(Some(&gemini))
        .unwrap();
    check(
        &cache,
        Usage {
            cached_tokens: 1,
            ..tokens(1, 0)
        },
        Mode::Chat,
        "0.001",
    );
    check(&cache, tokens(1_000, 0), Mode::Chat, "0.00125");

    let steps = own(json!({"tiered_pricing": [
        {"range": [0, 10], "input_cost_per_token": 1}, {"range": [10, 20], "input_cost_per_token": 2},
        {"input_cost_per_query": 1, "max_results_range": [0, 1]}, 7
    ]}));
    let steps = steps.over(None).unwrap();
    check(&steps, tokens(10, 0), Mode::Chat, "10");
    check(&steps, tokens(11, 0), Mode::Chat, "22");

    for bad in [
        json!(-1),
        json!("NaN"),
        json!(true),
        json!([1]),
        json!("1e9"),
        json!("free"),
    ] {
        let error =
            serde_json::from_value::<PriceOverride>(json!({"input_cost_per_token": bad})).unwrap_err();
        assert!(error.to_string().contains("input_cost_per_token"), "{error}");
    }
    let fields = json!({"output_cost_per_second": "0.5", "timeout": 3});
    let fields = fields.as_object().unwrap();
    let read = PriceOverride::from_fields(fields.iter().map(|(name, value)| (name.as_str(), value))).unwrap();
    assert_eq!(
        serde_json::to_value(&read).unwrap(),
        json!({"output_cost_per_second": 0.5})
    );
}

#[test]
fn a_chat_priced_per_second_is_charged_by_the_clock() {
    let price = configured(json!({"input_cost_per_second": 0.001}));
    check(
        &price,
        Usage {
            seconds_milli: 2_500,
            ..tokens(10, 10)
        },
        Mode::Chat,
        "0.0025",
    );
}

#[test]
fn impossible_numbers_saturate() {
    let most = Usage {
        prompt_tokens: u64::MAX,
        completion_tokens: u64::MAX,
        cached_tokens: u64::MAX,
        ..Usage::default()
    };
    check(
        &configured(json!({"input_cost_per_token": 18000})),
        most,
        Mode::Chat,
        "9223372036.854775807",
    );
}

fn any_usage() -> impl Strategy<Value = Usage> {
    let most = crate::model::usage::MOST;
    prop::array::uniform14(0..=most).prop_map(|n| Usage {
        prompt_tokens: n[0],
        completion_tokens: n[1],
        cached_tokens: n[2],
        cache_creation_tokens: n[3],
        cache_creation_1h_tokens: n[4],
        reasoning_tokens: n[5],
        audio_prompt_tokens: n[6],
        audio_completion_tokens: n[7],
        image_tokens: n[8],
        image_prompt_tokens: n[9],
        characters: n[10],
        seconds_milli: n[11],
        images: n[12],
        queries: n[13],
        ..Usage::default()
    })
}

/// Flat prices: with a threshold in between, a longer prompt may be cheaper if someone sells it so.
fn any_price() -> impl Strategy<Value = Price> {
    let rate = (0..rate::METERS.len(), 0..1_000_000_000_000u64).prop_map(|(meter, price)| Rate {
        meter: rate::METERS[meter].0,
        above: 0,
        tier: ServiceTier::Standard,
        price: Femto(price),
    });
    prop::collection::vec(rate, 0..12).prop_map(Price::new)
}

proptest! {
    #[test]
    fn cost_is_never_negative_and_grows_with_tokens(
        price in any_price(),
        usage in any_usage(),
        mode in prop::sample::select(MODES.iter().map(|(mode, _)| *mode).collect::<Vec<_>>()),
        more in 0..1_000u64,
    ) {
        let cost = |usage: &Usage| price.cost(usage, mode, ServiceTier::Standard);
        let before = cost(&usage);
        prop_assert!(before.is_none_or(|cost| cost >= Nanos::ZERO));
        // From none to some tokens a call may turn from one priced by duration into one priced by tokens.
        prop_assume!(usage.prompt_tokens > 0 && usage.completion_tokens > 0);
        let longer = Usage { prompt_tokens: usage.prompt_tokens + more, ..usage };
        prop_assert!(cost(&longer) >= before);
        let chattier = Usage { completion_tokens: usage.completion_tokens + more, ..usage };
        prop_assert!(cost(&chattier) >= before);
    }

    #[test]
    fn looking_up_never_panics(provider in "\\PC{0,12}", model in "\\PC{0,24}") {
        let _ = Prices::embedded().find(&provider, &model);
        let _ = Prices::embedded().find_image(&provider, &model, &model, &provider);
        let _ = parse_words(&model);
    }
}

fn parse_words(text: &str) -> usize {
    text.split(' ').filter_map(Rate::parse_word).count()
}
