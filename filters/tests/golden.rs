//! Goldens of every dialect: `tests/golden/<dialect>/` at the repository root is their specification.
//!
//! | input | output | what is run |
//! |---|---|---|
//! | `<case>.in.json` | `<case>.out.json` | a canonical request |
//! | `<case>.response.in.json` | `<case>.response.out.json` | a provider's whole answer |
//! | `<case>.stream.in.sse` | `<case>.stream.out.sse` | a provider's stream, cut at every byte |
//! | `<case>.error.in.json` | `<case>.error.out.json` | a provider's error: `{"status", "body"}` |
//!
//! `<case>.params.json` changes [`Settings`]. `UPDATE_GOLDEN=1` writes the outputs anew; read them
//! before they are committed.

// All of this file is a test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use filters::dialects::{self, Dialect, DialectError, Endpoint, Params};
use proptest::prelude::*;
use proptest::sample::Index;
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    model: String,
    requested_model: String,
    drop_params: bool,
    max_output_tokens: Option<u64>,
    additional_drop_params: Vec<String>,
    stream: bool,
    defaults: Map<String, Value>,
    endpoint: Endpoint,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            model: "claude-up".into(),
            requested_model: "fast".into(),
            drop_params: false,
            max_output_tokens: None,
            additional_drop_params: vec![],
            stream: false,
            defaults: Map::new(),
            endpoint: Endpoint::Chat,
        }
    }
}

impl Settings {
    fn params(&self) -> Params<'_> {
        Params {
            model: &self.model,
            requested_model: &self.requested_model,
            drop_params: self.drop_params,
            max_output_tokens: self.max_output_tokens,
            additional_drop_params: &self.additional_drop_params,
            stream: self.stream,
            created: 1_700_000_000,
            id: "0199-call",
            defaults: &self.defaults,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Request,
    Response,
    Stream,
    Error,
}

struct Case {
    dialect: &'static dyn Dialect,
    kind: Kind,
    input: PathBuf,
    settings: Settings,
}

/// Every golden, in order of name.
fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let mut inputs: Vec<PathBuf> = Vec::new();
    for folder in fs::read_dir(root).unwrap() {
        let folder = folder.unwrap().path();
        inputs.extend(fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()));
    }
    inputs.sort();
    let cases: Vec<Case> = inputs.into_iter().filter_map(case).collect();
    assert!(cases.len() > 10, "the goldens are where they are looked for");
    cases
}

fn case(input: PathBuf) -> Option<Case> {
    let name = input.file_name()?.to_str()?;
    let (stem, kind) = [
        (".response.in.json", Kind::Response),
        (".stream.in.sse", Kind::Stream),
        (".error.in.json", Kind::Error),
        (".in.json", Kind::Request),
    ]
    .into_iter()
    .find_map(|(end, kind)| Some((name.strip_suffix(end)?, kind)))?;
    let folder = input.parent()?;
    let dialect = dialects::named(folder.file_name()?.to_str()?).expect("a folder is named for its dialect");
    let settings = fs::read(folder.join(format!("{stem}.params.json")));
    let settings = settings
        .map(|text| serde_json::from_slice(&text).unwrap())
        .unwrap_or_default();
    Some(Case {
        dialect,
        kind,
        input,
        settings,
    })
}

impl Case {
    fn run(&self, input: &[u8]) -> Vec<u8> {
        let p = self.settings.params();
        let value = match self.kind {
            Kind::Stream => return self.stream(&[input]),
            Kind::Request => match self.dialect.request(self.settings.endpoint, input, &p) {
                Ok(dressed) => {
                    let headers: Map<String, Value> = dressed
                        .headers
                        .into_iter()
                        .map(|(name, value)| (name.into(), value.into()))
                        .collect();
                    let body: Value = serde_json::from_slice(&dressed.body).expect("a request is JSON");
                    json!({"path": dressed.path, "headers": headers, "body": body})
                }
                Err(error) => failed(error),
            },
            Kind::Response => match self.dialect.response(self.settings.endpoint, input, &p) {
                Ok(body) => serde_json::from_slice(&body).expect("an answer is JSON"),
                Err(error) => failed(error),
            },
            Kind::Error => {
                let error: Value = serde_json::from_slice(input).unwrap_or_default();
                let status = error["status"].as_u64().unwrap_or(500) as u16;
                let body = error["body"]
                    .as_str()
                    .map_or_else(|| error["body"].to_string(), str::to_owned);
                let (status, body) = self.dialect.error(status, body.as_bytes(), &p);
                let body: Value = serde_json::from_slice(&body).expect("an error is JSON");
                assert_eq!(
                    body["error"]["code"],
                    status.to_string(),
                    "the code is the status as a string"
                );
                json!({"status": status, "body": body})
            }
        };
        let mut text = serde_json::to_vec_pretty(&value).unwrap();
        text.push(b'\n');
        text
    }

    fn stream(&self, chunks: &[&[u8]]) -> Vec<u8> {
        let mut translator = self.dialect.stream(&self.settings.params());
        let mut out = Vec::new();
        for chunk in chunks {
            translator.push(Bytes::copy_from_slice(chunk), &mut out);
        }
        translator.finish(&mut out);
        let once = out.len();
        translator.finish(&mut out);
        translator.push(Bytes::from_static(b"data: {}\n\n"), &mut out);
        assert_eq!(out.len(), once, "nothing follows the end");
        assert_eq!(
            translator.failed().is_some(),
            String::from_utf8_lossy(&out).contains("data: {\"error\":"),
            "a stream fails when it says so"
        );
        out
    }
}

fn failed(error: DialectError) -> Value {
    json!({"failed": {
        "status": error.status(),
        "type": error.kind(),
        "param": error.param(),
        "message": error.to_string(),
    }})
}

#[test]
fn goldens_hold() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for case in cases() {
        let name = case.input.file_name().unwrap().to_str().unwrap();
        let output = case.input.with_file_name(name.replace(".in.", ".out."));
        let made = case.run(&fs::read(&case.input).unwrap());
        if update {
            fs::write(&output, made).unwrap();
        } else if fs::read(&output).unwrap_or_default() != made {
            wrong.push(format!("{name} gives\n{}", String::from_utf8_lossy(&made)));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} goldens differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn streams_do_not_depend_on_where_they_are_cut() {
    for case in cases().into_iter().filter(|case| case.kind == Kind::Stream) {
        let input = fs::read(&case.input).unwrap();
        let whole = case.stream(&[&input]);
        for at in 0..=input.len() {
            let (head, tail) = input.split_at(at);
            assert!(
                case.stream(&[head, tail]) == whole,
                "{:?} cut at {at}",
                case.input
            );
        }
        let bytes: Vec<&[u8]> = input.chunks(1).collect();
        assert!(case.stream(&bytes) == whole, "{:?} byte by byte", case.input);
        let crlf = String::from_utf8(input).unwrap().replace('\n', "\r\n");
        let bytes: Vec<&[u8]> = crlf.as_bytes().chunks(1).collect();
        assert!(case.stream(&bytes) == whole, "{:?} with CRLF", case.input);
    }
}

#[test]
fn streams_that_end_early_end_in_an_error() {
    for case in cases().into_iter().filter(|case| case.kind == Kind::Stream) {
        let input = fs::read(&case.input).unwrap();
        for at in 0..input.len() {
            ends_once(&case.stream(&[&input[..at]]));
        }
    }
}

/// A canonical stream is a row of JSON events with one ending: `[DONE]` or an error event.
fn ends_once(out: &[u8]) {
    let out = std::str::from_utf8(out).expect("canonical streams are UTF-8");
    let mut endings = 0;
    for event in out.split_terminator("\n\n") {
        assert_eq!(endings, 0, "nothing follows the ending: {out}");
        let data = event.strip_prefix("data: ").expect("every event is data");
        if data == "[DONE]" {
            endings += 1;
            continue;
        }
        let event: Value = serde_json::from_str(data).expect("every event is JSON");
        endings += usize::from(event.get("error").is_some());
    }
    assert_eq!(endings, 1, "a stream has an ending: {out}");
}

/// What a hostile or broken peer makes of a good body.
#[derive(Clone, Debug)]
enum Damage {
    Cut(Index),
    Overwrite(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// A scalar or a whole value is replaced: the JSON stays JSON and the types go wrong.
    Replace(Index, &'static str),
}

const VALUES: &[&str] = &[
    "null",
    "true",
    "-1",
    "0",
    "1e308",
    "18446744073709551616",
    "99999999999999999999999999",
    "0.5",
    "\"\"",
    "\"x\"",
    "\"\\u0000\\ud83d\\ude00\"",
    "[]",
    "{}",
    "[null]",
    "[[1]]",
    "{\"type\":\"text\"}",
    "{\"type\":\"tool_use\"}",
    "\"data:image/png;base64,\"",
    "\"data:text/plain;base64,!\"",
];

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        any::<Index>().prop_map(Damage::Cut),
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Overwrite(at, byte)),
        (any::<Index>(), prop::collection::vec(any::<u8>(), 1..8))
            .prop_map(|(at, with)| Damage::Insert(at, with)),
        (any::<Index>(), 1..40_usize).prop_map(|(at, count)| Damage::Remove(at, count)),
        (any::<Index>(), prop::sample::select(VALUES)).prop_map(|(at, with)| Damage::Replace(at, with)),
        (any::<Index>(), prop::sample::select(VALUES)).prop_map(|(at, with)| Damage::Replace(at, with)),
        (any::<Index>(), prop::sample::select(VALUES)).prop_map(|(at, with)| Damage::Replace(at, with)),
    ]
}

fn damaged(mut body: Vec<u8>, damage: &Damage) -> Vec<u8> {
    if body.is_empty() {
        return body;
    }
    match damage {
        Damage::Cut(at) => body.truncate(at.index(body.len())),
        Damage::Overwrite(at, byte) => {
            let at = at.index(body.len());
            body[at] = *byte;
        }
        Damage::Insert(at, with) => {
            let at = at.index(body.len());
            body.splice(at..at, with.iter().copied());
        }
        Damage::Remove(at, count) => {
            let at = at.index(body.len());
            body.drain(at..(at + count).min(body.len()));
        }
        Damage::Replace(at, with) => replace(&mut body, *at, with),
    }
    body
}

/// Replaces one JSON value behind a colon, comma or bracket by another.
fn replace(body: &mut Vec<u8>, at: Index, with: &str) {
    let starts: Vec<usize> = (0..body.len())
        .filter(|&at| matches!(body[at], b':' | b',' | b'['))
        .map(|at| at + 1)
        .collect();
    if starts.is_empty() {
        return;
    }
    let start = starts[at.index(starts.len())];
    let mut values = serde_json::Deserializer::from_slice(&body[start..]).into_iter::<Value>();
    if let Some(Ok(_)) = values.next() {
        let end = start + values.byte_offset();
        body.splice(start..end, with.bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_bodies_never_panic(which: Index, wounds in prop::collection::vec(damage(), 1..4), cut: Index) {
        thread_local!(static CASES: Vec<(Case, Vec<u8>)> =
            cases().into_iter().map(|case| { let body = fs::read(&case.input).unwrap(); (case, body) }).collect());
        CASES.with(|cases| {
            let (case, body) = &cases[which.index(cases.len())];
            let body = wounds.iter().fold(body.clone(), damaged);
            let made = case.run(&body);
            if case.kind == Kind::Stream {
                ends_once(&made);
                let (head, tail) = body.split_at(cut.index(body.len() + 1));
                assert_eq!(case.stream(&[head, tail]), made, "cut or whole, the output is the same");
            } else {
                // Whatever the body was meant to be, every other door must stand it too.
                let p = case.settings.params();
                let _ = case.dialect.request(Endpoint::Chat, &body, &p);
                let _ = case.dialect.response(Endpoint::Chat, &body, &p);
                let _ = case.dialect.error(u16::from(body.first().copied().unwrap_or(0)) * 3, &body, &p);
            }
        });
    }
}
