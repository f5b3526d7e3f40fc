//! Records there and back, and payloads of other versions and of none.

use super::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn words() -> impl Strategy<Value = String> {
    "\\PC{0,12}"
}

fn attempts() -> impl Strategy<Value = Vec<Attempt>> {
    let one = (words(), any::<u16>(), option::of(words()), any::<i64>());
    vec(
        one.prop_map(|(deployment_id, status, error, duration_micros)| Attempt {
            deployment_id,
            status,
            error,
            duration_micros,
        }),
        0..4,
    )
}

fn records() -> impl Strategy<Value = Record> {
    let status = prop::sample::select(vec![
        Status::Success,
        Status::Failure,
        Status::Aborted,
        Status::Cut,
    ]);
    // Small numbers, zero and the largest alike.
    let number = prop_oneof![Just(0), 0..200u64, any::<u64>()];
    let time = prop_oneof![Just(0), any::<i64>()];
    (
        "[0-9a-f-]{1,36}",
        prop::sample::select(Endpoint::ALL.to_vec()),
        option::of(any::<[u8; 32]>().prop_map(KeyHash)),
        vec(option::of(words()), 8),
        vec(words(), 6),
        (status, any::<u16>(), any::<[bool; 4]>()),
        vec(number, 10),
        (time.clone(), time.clone(), option::of(time.clone()), time),
        attempts(),
        vec(words(), 0..4),
    )
        .prop_map(
            |(id, endpoint, key_hash, maybe, text, how, n, times, attempts, tags)| {
                let mut maybe = maybe.into_iter();
                let mut maybe = move || maybe.next().unwrap();
                let mut text = text.into_iter();
                let mut text = move || text.next().unwrap();
                Record {
                    request_id: id,
                    endpoint,
                    key_hash,
                    key_alias: maybe(),
                    user_id: maybe(),
                    team_id: maybe(),
                    organization_id: maybe(),
                    end_user: maybe(),
                    requested_model: text(),
                    model_group: text(),
                    model: text(),
                    deployment_id: text(),
                    provider: text(),
                    stream: how.2[0],
                    status: how.0,
                    http_status: how.1,
                    error: maybe(),
                    prompt_tokens: n[0],
                    completion_tokens: n[1],
                    cached_tokens: n[2],
                    cache_creation_tokens: n[3],
                    reasoning_tokens: n[4],
                    characters: n[5],
                    audio_millis: n[6],
                    images: n[7],
                    spend_nanos: times.0,
                    priced: how.2[1],
                    estimated: how.2[2],
                    clamped: how.2[3],
                    started_micros: times.1,
                    first_byte_micros: times.2,
                    ended_micros: times.3,
                    attempts,
                    tags,
                    metadata: maybe(),
                    client_ip: text(),
                    user_agent: maybe(),
                    bytes_in: n[8],
                    bytes_out: n[9],
                }
            },
        )
}

fn encoded(record: &Record) -> Vec<u8> {
    let mut out = Vec::new();
    encode(record, &mut out);
    out
}

/// A record with something in each kind of field.
fn full() -> Record {
    Record {
        request_id: "0199".into(),
        key_hash: Some(KeyHash([0xb1; 32])),
        key_alias: Some(String::new()),
        status: Status::Cut,
        spend_nanos: -1,
        priced: true,
        started_micros: 1_795_132_800_000_000,
        first_byte_micros: Some(0),
        attempts: vec![Attempt {
            deployment_id: "d".into(),
            status: 500,
            error: Some("it answered 500".into()),
            duration_micros: 7,
        }],
        tags: vec![String::new(), "é".into()],
        ..blank()
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(record in records()) {
        prop_assert_eq!(decode(&encoded(&record)).unwrap(), record);
    }

    #[test]
    fn what_earlier_versions_wrote_is_read(record in records()) {
        let json = serde_json::to_vec(&record).unwrap();
        prop_assert_eq!(decode(&json).unwrap(), record);
    }

    #[test]
    fn noise_is_refused_and_never_a_panic(mut noise in vec(any::<u8>(), 0..200)) {
        noise.insert(0, FORMAT);
        let _ = decode(&noise);
    }
}

#[test]
fn a_part_of_a_payload_is_never_taken_for_more_than_it_says() {
    let record = full();
    let whole = encoded(&record);
    assert_eq!(decode(&whole).unwrap(), record);
    for cut in 0..whole.len() {
        // Cut between fields it may be read, and then lacks them.
        if let Ok(part) = decode(&whole[..cut]) {
            assert_ne!(part, record, "cut at {cut}");
            assert_eq!(part.request_id, record.request_id, "cut at {cut}");
        }
    }
}

#[test]
fn fields_of_a_newer_version_are_skipped() {
    let record = full();
    let mut out = vec![FORMAT];
    bytes(&mut out, 900, b"\xff\x00 from tomorrow");
    key(&mut out, 901, NUMBER);
    varint(&mut out, u64::MAX);
    out.extend_from_slice(&encoded(&record)[1..]);
    nested(&mut out, 902, |out| count(out, 1, 7));
    assert_eq!(decode(&out).unwrap(), record);
}

#[test]
fn a_field_that_holds_what_it_cannot_hold_is_refused() {
    let whole = encoded(&full());
    let with = |add: &dyn Fn(&mut Vec<u8>)| {
        let mut out = whole.clone();
        add(&mut out);
        decode(&out).map(drop).unwrap_err().to_string()
    };
    let refused = |number| format!("field {number} holds what it cannot hold");
    assert_eq!(with(&|o| bytes(o, 3, b"short")), refused(3));
    assert_eq!(with(&|o| bytes(o, 14, b"glorious")), refused(14));
    assert_eq!(with(&|o| count(o, 15, 70_000)), refused(15));
    assert_eq!(with(&|o| bytes(o, 8, b"\xff")), refused(8));
    assert_eq!(with(&|o| count(o, 8, 1)), refused(8));
    assert_eq!(with(&|o| bytes(o, 17, b"1")), refused(17));
    assert_eq!(with(&|o| o.push(0x83)), "it ends within a field");
    assert_eq!(with(&|o| o.extend([7, 1])), refused(1));
    assert_eq!(decode(&[FORMAT]).unwrap_err().to_string(), "field 2 is missing");
    assert!(decode(b"").is_err() && decode(b"[1]").is_err() && decode(b"{").is_err());
}
