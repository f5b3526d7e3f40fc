//! Changes parts of a body without copying the rest.
//!
//! What is not edited stays the same bytes in the same memory. The edits of JSON objects keep every
//! comma right whatever is replaced, removed and inserted together; they trust the ranges of a
//! [`peek::scan`](super::peek::scan) of the same body, and [`apply`] refuses those of another one.

use super::peek::{Field, Object};
use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use std::ops::Range;

/// A body in pieces, sent one after another.
#[derive(Debug, Clone, Default)]
pub struct Rope(SmallVec<[Bytes; 8]>);

/// Puts `with` in the place of the bytes in `range`; an empty range inserts, an empty `with` removes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    pub range: Range<usize>,
    pub with: Bytes,
}

/// Why edits cannot be applied. They come from us, so this is a fault of ours, never of the caller's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpliceError {
    #[error("an edit of bytes {range:?} does not lie within a body of {len} bytes")]
    OutOfRange { range: Range<usize>, len: usize },
    #[error("edits of bytes {first:?} and {second:?} overlap")]
    Overlap {
        first: Range<usize>,
        second: Range<usize>,
    },
}

impl Rope {
    /// Adds a piece at the end; an empty one is left out.
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.0.push(piece);
        }
    }

    /// The pieces, none of them empty.
    pub fn pieces(&self) -> &[Bytes] {
        &self.0
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The whole in one piece: copied only when there are several.
    pub fn to_bytes(&self) -> Bytes {
        match self.0.as_slice() {
            [] => Bytes::new(),
            [one] => one.clone(),
            many => {
                let mut whole = BytesMut::with_capacity(self.len());
                many.iter().for_each(|piece| whole.extend_from_slice(piece));
                whole.freeze()
            }
        }
    }

    /// The whole as slices of at most `max` bytes (and at least one), without copying.
    pub fn slices(&self, max: usize) -> impl Iterator<Item = Bytes> + '_ {
        let max = max.max(1);
        self.0.iter().flat_map(move |piece| {
            (0..piece.len())
                .step_by(max)
                .map(move |at| piece.slice(at..piece.len().min(at.saturating_add(max))))
        })
    }
}

impl From<Bytes> for Rope {
    fn from(whole: Bytes) -> Self {
        let mut rope = Rope::default();
        rope.push(whole);
        rope
    }
}

/// Applies `edits`, in any order, to `body`. Insertions at one place keep the order they are given in.
pub fn apply(body: &Bytes, mut edits: Vec<Edit>) -> Result<Rope, SpliceError> {
    edits.sort_by_key(|edit| (edit.range.start, edit.range.end));
    let mut rope = Rope::default();
    let mut last = 0..0;
    for Edit { range, with } in edits {
        if range.start > range.end || range.end > body.len() {
            return Err(SpliceError::OutOfRange {
                range,
                len: body.len(),
            });
        }
        if range.start < last.end {
            return Err(SpliceError::Overlap {
                first: last,
                second: range,
            });
        }
        rope.push(body.slice(last.end..range.start));
        rope.push(with);
        last = range;
    }
    rope.push(body.slice(last.end..));
    Ok(rope)
}

/// Puts the JSON text `with` in the place of a field's value.
pub fn replace_value(field: &Field, with: Bytes) -> Edit {
    Edit {
        range: field.value.clone(),
        with,
    }
}

/// Takes one field out of its object, with the one comma that is too many then.
///
/// For a single field only: two neighbours would both take the comma between them, or neither. Use
/// [`object_edits`] for several.
pub fn remove_field(body: &[u8], object: &Object, field: &Field) -> Edit {
    remove_run(body, object, field, field).0
}

/// The edits that replace values, remove fields and insert new ones, in any combination.
///
/// `replace` and `remove` leave alone what is not among the object's found fields, so scan for every
/// name given here. Removing wins over replacing. An inserted key goes before the closing brace; one
/// that is there already (and stays) gets the new value in its place, so no key is ever doubled. Of the
/// same name given twice, the last counts. The values are JSON texts and are not checked.
pub fn object_edits(
    body: &[u8],
    object: &Object,
    replace: &[(&str, Bytes)],
    remove: &[&str],
    insert: &[(&str, Bytes)],
) -> Vec<Edit> {
    let mut edits = Vec::with_capacity(replace.len() + remove.len() + 1);
    let removed = |field: &&Field| remove.contains(&field.name);

    for field in object.fields.iter().filter(|field| !removed(field)) {
        let with = insert
            .iter()
            .rev()
            .chain(replace.iter().rev())
            .find(|(name, _)| *name == field.name);
        edits.extend(with.map(|(_, with)| replace_value(field, with.clone())));
    }

    let mut emptied = object.empty;
    let mut gone = object.fields.iter().filter(removed).peekable();
    while let Some(first) = gone.next() {
        // Neighbours that go together are one run, so that each comma is taken exactly once.
        let mut last = first;
        while let Some(next) = gone.next_if(|next| follows(body, last, next)) {
            last = next;
        }
        let (edit, all) = remove_run(body, object, first, last);
        emptied |= all;
        edits.push(edit);
    }

    let mut text = BytesMut::new();
    for (at, (key, json)) in insert.iter().enumerate() {
        let stays = object.get(key).is_some_and(|field| !removed(&field));
        let again = insert.iter().skip(at + 1).any(|(later, _)| later == key);
        if stays || again {
            continue;
        }
        if !emptied || !text.is_empty() {
            text.extend_from_slice(b",");
        }
        text.extend_from_slice(&json_string(key));
        text.extend_from_slice(b":");
        text.extend_from_slice(json);
    }
    if !text.is_empty() {
        edits.push(Edit {
            range: object.close..object.close,
            with: text.freeze(),
        });
    }
    edits
}

/// A string as JSON text, quoted and escaped.
pub fn json_string(text: &str) -> Bytes {
    let mut json = Vec::with_capacity(text.len() + 2);
    json.push(b'"');
    let mut plain = 0;
    for (at, byte) in text.bytes().enumerate() {
        let short = match byte {
            b'"' | b'\\' => byte,
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0..=0x1F => b'u',
            _ => continue,
        };
        json.extend_from_slice(text.as_bytes().get(plain..at).unwrap_or_default());
        json.extend_from_slice(&[b'\\', short]);
        if short == b'u' {
            json.extend_from_slice(format!("{byte:04x}").as_bytes());
        }
        plain = at + 1;
    }
    json.extend_from_slice(text.as_bytes().get(plain..).unwrap_or_default());
    json.push(b'"');
    json.into()
}

/// Takes out the fields from `first` to `last`, between which nothing stays. Also says whether nothing
/// at all stays in the object.
fn remove_run(body: &[u8], object: &Object, first: &Field, last: &Field) -> (Edit, bool) {
    let after = comma_after(body, last.value.end);
    let before = comma_before(body, object.open, first.key.start);
    let range = match (before, after) {
        // Up to the next key, so that the indentation of the removed one serves it.
        (_, Some(comma)) => first.key.start..skip_space(body, comma + 1),
        (Some(comma), None) => comma..last.value.end,
        (None, None) => first.key.start..last.value.end,
    };
    (
        Edit {
            range,
            with: Bytes::new(),
        },
        before.is_none() && after.is_none(),
    )
}

fn follows(body: &[u8], field: &Field, next: &Field) -> bool {
    comma_after(body, field.value.end).is_some_and(|comma| skip_space(body, comma + 1) == next.key.start)
}

fn comma_after(body: &[u8], at: usize) -> Option<usize> {
    let at = skip_space(body, at);
    (body.get(at) == Some(&b',')).then_some(at)
}

fn comma_before(body: &[u8], open: usize, at: usize) -> Option<usize> {
    let between = body.get(open..at)?;
    let last = between.iter().rposition(|byte| !is_space(*byte))?;
    (between.get(last) == Some(&b',')).then_some(open + last)
}

fn skip_space(body: &[u8], at: usize) -> usize {
    let rest = body.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| is_space(**byte)).count()
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

#[cfg(test)]
mod tests {
    use super::super::peek::{DEFAULT_DEPTH, scan};
    use super::*;

    const WANTED: &[&str] = &["a", "b", "c", "new"];

    fn text(rope: &Rope) -> String {
        String::from_utf8(rope.to_bytes().to_vec()).unwrap()
    }

    /// Edits a body: `a=1` replaces, `-a` removes, `+a=1` inserts.
    fn check(body: &str, edits: &str, expected: &str) {
        let object = scan(body.as_bytes(), WANTED, DEFAULT_DEPTH).unwrap();
        let (mut replace, mut remove, mut insert) = (Vec::new(), Vec::new(), Vec::new());
        for edit in edits.split_whitespace() {
            match (
                edit.strip_prefix('-'),
                edit.strip_prefix('+'),
                edit.split_once('='),
            ) {
                (Some(name), ..) => remove.push(name),
                (_, Some(_), Some((name, json))) => insert.push((&name[1..], Bytes::from(json.to_owned()))),
                (_, _, Some((name, json))) => replace.push((name, Bytes::from(json.to_owned()))),
                _ => panic!("{edit} is no edit"),
            }
        }
        let edits = object_edits(body.as_bytes(), &object, &replace, &remove, &insert);
        let rope = apply(&Bytes::from(body.to_owned()), edits).unwrap();
        assert_eq!(text(&rope), expected, "for {body}");
        scan(expected.as_bytes(), &[], DEFAULT_DEPTH).unwrap();
    }

    #[test]
    fn values_are_replaced_in_place() {
        check(r#"{"a":1}"#, r#"a="x""#, r#"{"a":"x"}"#);
        check(
            r#"{ "a" : 1 , "b" : [2] }"#,
            "a=0 b={}",
            r#"{ "a" : 0 , "b" : {} }"#,
        );
        check(r#"{"a":1}"#, "b=2", r#"{"a":1}"#);
        check(r#"{"a":1}"#, "a=2 a=3", r#"{"a":3}"#);
    }

    #[test]
    fn removed_fields_take_their_comma_along() {
        check(r#"{"a":1}"#, "-a", "{}");
        check(r#"{ "a" : 1 }"#, "-a", "{  }");
        check(r#"{"a":1,"x":2}"#, "-a", r#"{"x":2}"#);
        check(r#"{"x":1,"a":2}"#, "-a", r#"{"x":1}"#);
        check(r#"{"x":1,"a":2,"y":3}"#, "-a", r#"{"x":1,"y":3}"#);
        check(r#"{"a":1,"b":2,"c":3}"#, "-a -b -c", "{}");
        check(r#"{"a":1,"b":2,"x":3}"#, "-a -b", r#"{"x":3}"#);
        check(r#"{"x":1,"a":2,"b":3}"#, "-b -a", r#"{"x":1}"#);
        check(r#"{"a":1,"x":2,"b":3}"#, "-a -b", r#"{"x":2}"#);
        check(r#"{"a":1,"b":2,"c":3}"#, "-a -c", r#"{"b":2}"#);
        check(r#"{"x":",","a":",","y":1}"#, "-a", r#"{"x":",","y":1}"#);
        check(
            "{\n  \"a\": 1,\n  \"x\": 2,\n  \"b\": 3\n}",
            "-a -b",
            "{\n  \"x\": 2\n}",
        );
        check(r#"{"a":1}"#, "-b", r#"{"a":1}"#);
    }

    #[test]
    fn inserted_fields_go_before_the_closing_brace() {
        check("{}", "+new=1", r#"{"new":1}"#);
        check(" { } ", "+new=1 +b=2", r#" { "new":1,"b":2} "#);
        check(r#"{"x":{}}"#, "+new=1", r#"{"x":{},"new":1}"#);
        check(r#"{"a":1}"#, "-a +new=1", r#"{"new":1}"#);
        check(r#"{"a":1,"x":2}"#, "-a +new=1 +c=2", r#"{"x":2,"new":1,"c":2}"#);
        check(r#"{"x":1,"a":2}"#, "-a +new=1", r#"{"x":1,"new":1}"#);
        check(r#"{"a":1,"x":2}"#, "+a=3", r#"{"a":3,"x":2}"#);
        check(r#"{"a":1,"x":2}"#, "-a +a=3", r#"{"x":2,"a":3}"#);
        check("{}", "+a=1 +a=2", r#"{"a":2}"#);
        check(r#"{"a":1}"#, "a=2 -a", "{}");
    }

    #[test]
    fn one_field_alone_can_be_removed() {
        let body = Bytes::from_static(br#"{"x":1,"a":2,"b":3}"#);
        let object = scan(&body, WANTED, DEFAULT_DEPTH).unwrap();
        for (name, expected) in [("a", r#"{"x":1,"b":3}"#), ("b", r#"{"x":1,"a":2}"#)] {
            let edit = remove_field(&body, &object, object.get(name).unwrap());
            assert_eq!(text(&apply(&body, vec![edit]).unwrap()), expected);
        }
    }

    #[test]
    fn edits_are_sorted_and_must_not_overlap() {
        let body = Bytes::from_static(b"0123456789");
        let edit = |range, with: &'static str| Edit {
            range,
            with: Bytes::from_static(with.as_bytes()),
        };
        let applied = |edits| apply(&body, edits).map(|rope| text(&rope));
        assert_eq!(applied(vec![]).unwrap(), "0123456789");
        assert_eq!(
            applied(vec![edit(8..9, "B"), edit(0..1, "A")]).unwrap(),
            "A1234567B9"
        );
        assert_eq!(
            applied(vec![edit(5..5, "x"), edit(5..5, "y"), edit(5..6, "z")]).unwrap(),
            "01234xyz6789"
        );
        assert_eq!(applied(vec![edit(0..5, ""), edit(5..10, "")]).unwrap(), "");
        assert_eq!(applied(vec![edit(10..10, "!")]).unwrap(), "0123456789!");
        let overlap = SpliceError::Overlap {
            first: 1..4,
            second: 3..5,
        };
        assert_eq!(applied(vec![edit(3..5, ""), edit(1..4, "")]), Err(overlap));
        assert_eq!(
            applied(vec![edit(9..11, "")]),
            Err(SpliceError::OutOfRange {
                range: 9..11,
                len: 10
            })
        );
        let backwards = Range { start: 5, end: 4 };
        assert!(matches!(
            applied(vec![edit(backwards, "")]),
            Err(SpliceError::OutOfRange { .. })
        ));
    }

    #[test]
    fn untouched_parts_are_not_copied() {
        let body = Bytes::from(vec![b'x'; 1000]);
        let rope = apply(
            &body,
            vec![Edit {
                range: 500..501,
                with: Bytes::from_static(b"yy"),
            }],
        )
        .unwrap();
        assert_eq!(rope.len(), 1001);
        assert_eq!(rope.pieces().len(), 3);
        assert_eq!(rope.pieces()[2].as_ptr(), body[501..].as_ptr());
        let slices: Vec<Bytes> = rope.slices(300).collect();
        assert_eq!(
            slices.iter().map(Bytes::len).collect::<Vec<_>>(),
            [300, 200, 2, 300, 199]
        );
        assert_eq!(slices.concat(), rope.to_bytes());
        assert_eq!(
            rope.slices(0).count(),
            1001,
            "a limit of nothing still makes headway"
        );
        assert_eq!(rope.slices(usize::MAX).count(), 3);
        assert_eq!(Rope::from(body.clone()).to_bytes().as_ptr(), body.as_ptr());
        assert!(Rope::from(Bytes::new()).is_empty() && Rope::default().to_bytes().is_empty());
    }

    #[test]
    fn strings_are_quoted_as_serde_json_reads_them() {
        let all: String = (0..0x180)
            .filter_map(char::from_u32)
            .chain("😀\u{2028}".chars())
            .collect();
        for text in ["", "plain", "q\"b\\", &all] {
            assert_eq!(
                serde_json::from_slice::<String>(&json_string(text)).unwrap(),
                text
            );
        }
    }
}
