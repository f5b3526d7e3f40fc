//! What must hold for any input: the wire formats against generated bodies, streams and forms, with
//! `serde_json` and small naive readers as the judges.

use super::peek::{self, DEFAULT_DEPTH, Kind, PeekError};
use super::{multipart, splice, sse};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Map, Value};

const WANTED: &[&str] = &["a", "b", "c", "d", "e", "f", "model"];

/// JSON text of any value, with any space and any spelling of strings and numbers.
fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        select(vec![
            "null",
            "true",
            "false",
            "0",
            "-0",
            "1.5e3",
            "-12.25E-2",
            "12345678901234567890123",
            "1e999"
        ])
        .prop_map(str::to_owned),
        string(),
        any::<i64>().prop_map(|number| number.to_string()),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            (vec(inner.clone(), 0..6), space()).prop_map(|(values, space)| {
                format!("[{space}{}{space}]", values.join(&format!("{space},{space}")))
            }),
            vec((string(), inner), 0..6)
                .prop_flat_map(|members| (Just(members), space()))
                .prop_map(|(members, space)| object(&members, &space)),
        ]
    })
}

fn object(members: &[(String, String)], space: &str) -> String {
    let members = members
        .iter()
        .map(|(key, value)| format!("{key}{space}:{space}{value}"));
    format!(
        "{{{space}{}{space}}}",
        members.collect::<Vec<_>>().join(&format!("{space},{space}"))
    )
}

fn space() -> impl Strategy<Value = String> {
    "[ \\n\\r\\t]{0,3}"
}

/// A string in quotes: often a wanted name, sometimes escaped, now and then wrong.
fn string() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => "[a-z ,:{}\\[\\]]{0,12}",
        2 => "[^\"\\\\\\x00-\\x1F]{0,40}",
        2 => select(vec!["\\n", "\\\"", "\\\\", "\\/", "\\u0061", "\\uD83D\\uDE00", "é", "😀"]).prop_map(str::to_owned),
        1 => select(vec!["\\uD83D", "\\uDE00", "\\x", "\\u12", "\n", "\0", "\u{7f}"]).prop_map(str::to_owned),
    ];
    let name = prop_oneof![9 => select(WANTED).prop_map(str::to_owned), 1 => Just("\\u0061".to_owned())];
    prop_oneof![name, vec(piece, 0..4).prop_map(|pieces| pieces.concat())]
        .prop_map(|text| format!("\"{text}\""))
}

/// Bytes that are nearly JSON: a body with a few bytes changed, doubled or gone.
fn nearly_json() -> impl Strategy<Value = Vec<u8>> {
    let damage = (
        any::<Index>(),
        0..3,
        prop_oneof![any::<u8>(), select(b"{}[]\",:\\ 0-.eE\x00\xC3\xA9".to_vec())],
    );
    (json(), vec(damage, 0..3)).prop_map(|(text, damages)| {
        let mut body = text.into_bytes();
        for (index, kind, byte) in damages {
            let at = index.index(body.len() + 1);
            match (kind, body.get_mut(at)) {
                (0, Some(old)) => *old = byte,
                (1, Some(_)) => drop(body.remove(at)),
                _ => body.insert(at, byte),
            }
        }
        body
    })
}

fn judge(body: &[u8]) -> Result<(), TestCaseError> {
    let tree = serde_json::from_slice::<Value>(body);
    let found = peek::scan(body, &[], DEFAULT_DEPTH);
    match &tree {
        Ok(Value::Object(members)) => {
            let object = found.map_err(|error| TestCaseError::fail(format!("refused: {error}")))?;
            prop_assert_eq!(object.empty, members.is_empty());
        }
        // It reads numbers into floats, we leave them as they are.
        Err(error) if error.to_string().contains("number out of range") => {}
        Err(_) | Ok(_) => prop_assert!(found.is_err(), "accepted, but not by serde_json: {:?}", tree),
    }
    if let Ok(Value::Object(members)) = tree {
        match peek::scan(body, WANTED, DEFAULT_DEPTH) {
            Err(PeekError::Duplicate(name) | PeekError::EscapedKey(name)) => {
                prop_assert!(members.contains_key(name), "{name} is not even there")
            }
            Err(error) => prop_assert!(false, "{error}"),
            Ok(object) => judge_fields(body, &object, &members)?,
        }
    }
    Ok(())
}

fn judge_fields(
    body: &[u8],
    object: &peek::Object,
    members: &Map<String, Value>,
) -> Result<(), TestCaseError> {
    for name in WANTED {
        prop_assert_eq!(
            object.get(name).is_some(),
            members.contains_key(*name),
            "whether {} is there",
            name
        );
    }
    for field in &object.fields {
        let value = &members[field.name];
        prop_assert_eq!(
            &serde_json::from_slice::<Value>(&body[field.value.clone()]).unwrap(),
            value
        );
        let text = peek::str_value(body, field);
        prop_assert_eq!(text.as_deref(), value.as_str());
        prop_assert_eq!(peek::bool_value(field), value.as_bool());
        prop_assert!(value.as_u64().is_none() || peek::u64_value(body, field) == value.as_u64());
        let same = match field.kind {
            Kind::String { .. } => value.is_string(),
            Kind::Number => value.is_number(),
            Kind::True | Kind::False => value.is_boolean(),
            Kind::Null => value.is_null(),
            Kind::Array => value.is_array(),
            Kind::Object => value.is_object(),
        };
        prop_assert!(same, "{:?} is no {:?}", value, field.kind);
    }
    Ok(())
}

/// A small value, the same as text and as a tree.
fn small() -> impl Strategy<Value = &'static str> {
    select(vec!["1", "null", "\"x,}\"", "[]", "{\"a\":[1,{}]}", "\"\\\"{\""])
}

fn edits() -> impl Strategy<Value = Vec<(&'static str, Bytes)>> {
    vec(
        (
            select(WANTED),
            small().prop_map(|json| Bytes::from_static(json.as_bytes())),
        ),
        0..4,
    )
}

/// What [`splice::object_edits`] promises, done on a tree, where nothing can go wrong with commas.
fn edit_tree(
    tree: &mut Map<String, Value>,
    replace: &[(&str, Bytes)],
    remove: &[&str],
    insert: &[(&str, Bytes)],
) {
    let value = |json: &Bytes| serde_json::from_slice::<Value>(json).unwrap();
    for (name, json) in replace {
        if let Some(old) = tree.get_mut(*name) {
            *old = value(json);
        }
    }
    for name in remove {
        tree.shift_remove(*name);
    }
    let there: Vec<String> = tree.keys().cloned().collect();
    for (at, (name, json)) in insert.iter().enumerate() {
        // Of a new name given twice the last counts, and it goes where the last stands.
        let again = insert.iter().skip(at + 1).any(|(later, _)| later == name);
        if !again || there.iter().any(|key| key == name) {
            tree.insert((*name).to_owned(), value(json));
        }
    }
}

/// The pieces that line ends and fields of an event stream are made of.
fn stream() -> impl Strategy<Value = String> {
    let piece = select(vec![
        "\n", "\r", "\r\n", "\n\n", "\r\n\r\n", "data: ", "data:", "data", ":", " ", "x", "event: e",
        "[DONE]", "ü",
    ]);
    vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

/// The data of every event of a whole stream, read line by line as the standard says.
fn naive_data(stream: &str) -> Vec<String> {
    let (mut all, mut data) = (Vec::new(), None::<String>);
    for line in stream
        .replace("\r\n", "\n")
        .replace('\r', "\n")
        .split_terminator('\n')
    {
        if line.is_empty() {
            all.extend(data.take());
        } else if let Some(value) = line.strip_prefix("data:").or((line == "data").then_some("")) {
            let value = value.strip_prefix(' ').unwrap_or(value);
            data = Some(data.map_or(value.to_owned(), |data| data + "\n" + value));
        }
    }
    all
}

fn split(splitter: &mut sse::Splitter, stream: &[u8], cuts: &[usize]) -> Vec<Bytes> {
    let (mut events, mut start) = (Vec::new(), 0);
    for &end in cuts.iter().chain([&stream.len()]) {
        let chunk = Bytes::copy_from_slice(&stream[start..end]);
        let clean = splitter.ends_clean(&chunk);
        splitter.push(chunk, |event| events.push(event));
        assert!(
            !clean || splitter.pending() == 0,
            "a clean chunk leaves nothing behind"
        );
        start = end;
    }
    events.extend(splitter.finish());
    events
}

const BOUNDARY: &str = "bound-ary";

/// Content that is full of beginnings of boundaries.
fn content() -> impl Strategy<Value = String> {
    let piece = select(vec![
        "\r\n",
        "\r",
        "\n",
        "--",
        "-",
        "bound",
        "-ary",
        "\r\n--bound",
        "\r\n--bound-aryx",
        "x",
        "\0",
    ]);
    let content = vec(piece, 0..12).prop_map(|pieces| pieces.concat());
    content.prop_filter("a boundary", |content| {
        let content = format!("\n{content}\r\n");
        let mut found = content
            .match_indices("\n--bound-ary")
            .map(|(at, found)| content[at + found.len()..].bytes());
        found.all(|mut rest| !matches!(rest.next(), None | Some(b'\r' | b'\n' | b' ' | b'\t' | b'-')))
            && !content.starts_with("\n--bound-ary")
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn scan_accepts_what_serde_json_accepts(body in json(), before in space(), after in space()) {
        judge(format!("{before}{body}{after}").as_bytes())?;
        judge(format!("{{\"x\":{body}}}").as_bytes())?;
    }

    #[test]
    fn scan_refuses_what_serde_json_refuses(body in nearly_json()) {
        judge(&body)?;
    }

    #[test]
    fn scan_is_as_deep_as_serde_json(shape in vec(any::<bool>(), 120..135)) {
        let open: String = shape.iter().map(|object| if *object { "{\"a\":" } else { "[" }).collect();
        let close: String = shape.iter().rev().map(|object| if *object { '}' } else { ']' }).collect();
        judge(format!("{{\"x\":{open}1{close}}}").as_bytes())?;
    }

    #[test]
    fn spliced_objects_are_edited_trees(
        members in vec((prop_oneof![select(WANTED).prop_map(str::to_owned), "[xyz]{1,2}"], small()), 0..8),
        (replace, remove, insert) in (edits(), vec(select(WANTED), 0..4), edits()),
        (space, around) in (space(), space()),
    ) {
        let mut tree = Map::new();
        let mut texts = Vec::new();
        for (key, json) in members.into_iter().filter(|(key, _)| !key.is_empty()) {
            if !tree.contains_key(&key) {
                texts.push((format!("\"{key}\""), json.to_owned()));
                tree.insert(key, serde_json::from_str::<Value>(json).unwrap());
            }
        }
        let body = Bytes::from(format!("{around}{}{around}", object(&texts, &space)));
        let found = peek::scan(&body, WANTED, DEFAULT_DEPTH).unwrap();
        let edits = splice::object_edits(&body, &found, &replace, &remove, &insert);
        let touched: usize = edits.iter().map(|edit| edit.range.len()).sum();
        let rope = splice::apply(&body, edits).unwrap();
        edit_tree(&mut tree, &replace, &remove, &insert);
        let whole = rope.to_bytes();
        let spliced: Value = serde_json::from_slice(&whole).unwrap();
        prop_assert_eq!(spliced.to_string(), Value::Object(tree).to_string(), "order included");

        // What no edit touched is not only equal, it is the very same memory.
        let own = body.as_ptr() as usize..body.as_ptr() as usize + body.len();
        let kept = rope.pieces().iter().filter(|piece| own.contains(&(piece.as_ptr() as usize)));
        let kept: usize = kept.map(Bytes::len).sum();
        prop_assert_eq!(kept, body.len() - touched);
        let again = peek::scan(&whole, WANTED, DEFAULT_DEPTH).unwrap();
        for field in &found.fields {
            let edited = replace.iter().chain(&insert).any(|(name, _)| *name == field.name);
            if !edited && !remove.contains(&field.name) {
                let now = again.get(field.name).unwrap();
                prop_assert_eq!(&whole[now.key.start..now.value.end], &body[field.key.start..field.value.end]);
            }
        }
        for max in [1, 7, 1 << 20] {
            prop_assert_eq!(rope.slices(max).collect::<Vec<_>>().concat(), &whole[..]);
        }
    }

    #[test]
    fn streams_are_split_alike_however_they_are_cut(
        stream in stream(),
        cuts in vec(any::<Index>(), 0..10),
        limit in 1..40usize,
    ) {
        let text = stream.as_bytes();
        let whole = split(&mut sse::Splitter::default(), text, &[]);
        prop_assert_eq!(whole.concat(), text, "no byte is lost");
        for cut in 0..text.len() {
            prop_assert_eq!(&split(&mut sse::Splitter::default(), text, &[cut]), &whole, "cut at {}", cut);
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        cuts.sort_unstable();
        prop_assert_eq!(&split(&mut sse::Splitter::default(), text, &cuts), &whole);
        prop_assert_eq!(split(&mut sse::Splitter::new(limit), text, &cuts).concat(), text, "within a limit");
        let mut small = sse::Splitter::new(limit);
        for chunk in text.chunks(3) {
            small.push(Bytes::copy_from_slice(chunk), |_| ());
            prop_assert!(small.pending() <= limit);
        }
    }

    #[test]
    fn events_hold_the_data_the_standard_says(stream in stream()) {
        let stream = stream + "\n\ndata: end\n\n";
        let events = split(&mut sse::Splitter::default(), stream.as_bytes(), &[]);
        let data: Vec<String> = events
            .iter()
            .filter_map(|event| sse::data(event))
            .map(|data| String::from_utf8(data.into_owned()).unwrap())
            .collect();
        prop_assert_eq!(data, naive_data(&stream));
    }

    #[test]
    fn forms_are_read_as_they_are_written(
        parts in vec(("[a-z\"; =]{0,8}", proptest::option::of("[a-zA-Z\"/: .]{0,8}"), content()), 0..6),
        preamble in content(),
    ) {
        let quote = |text: &str| text.replace('"', "%22");
        let mut form = if preamble.is_empty() { String::new() } else { preamble + "\r\n" };
        for (name, filename, content) in &parts {
            form += &format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{}\"", quote(name));
            if let Some(filename) = filename {
                form += &format!("; filename=\"{}\"", quote(filename));
            }
            form += &format!("\r\n\r\n{content}\r\n");
        }
        form += &format!("--{BOUNDARY}--\r\n");
        let found = multipart::scan(form.as_bytes(), BOUNDARY, multipart::Limits::default()).unwrap();
        let found = found.into_iter().map(|part| (part.name, part.filename, form[part.value].to_owned()));
        prop_assert_eq!(found.collect::<Vec<_>>(), parts);
    }

    #[test]
    fn nothing_panics(
        soup in prop_oneof![
            vec(any::<u8>(), 0..200),
            nearly_json(),
            stream().prop_map(String::into_bytes),
            content().prop_map(String::into_bytes),
        ],
        (from, to) in (0..250usize, 0..250usize),
        depth in 0..200usize,
        text in any::<String>(),
    ) {
        if let Ok(object) = peek::scan(&soup, WANTED, depth) {
            let insert = [("model", Bytes::new())];
            // Ranges of one body used on another may give nonsense or a refusal, but no more.
            let other = Bytes::from(soup[..from.min(soup.len())].to_vec());
            let _ = splice::apply(&other, splice::object_edits(&other, &object, &[], WANTED, &insert));
            for field in &object.fields {
                let _ = (peek::str_value(&other, field), peek::u64_value(&other, field));
                let _ = peek::scan_at(&soup, field.value.clone(), WANTED, depth);
            }
        }
        let _ = peek::scan_at(&soup, from..to, WANTED, depth);
        let _ = (sse::data(&soup), sse::name(&soup), sse::is_done(&soup));
        prop_assert_eq!(split(&mut sse::Splitter::new(from), &soup, &[]).concat(), &soup[..]);
        let _ = multipart::scan(&soup, BOUNDARY, multipart::Limits::default());
        let form = [b"--bound-ary\r\n", &soup[..]].concat();
        let _ = multipart::scan(&form, BOUNDARY, multipart::Limits { parts: 2, head: from });
        let _ = multipart::boundary(&text);
        let _ = multipart::boundary(&format!("multipart/form-data; {text}"));
        let _ = multipart::scan(&soup, &text, multipart::Limits::default());
    }
}
