//! Header fields of an answer that go out as they are made. A head's map hashes each name and gives each value
//! memory of its own; for a dozen long names that costs more than all the rest of the head.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Bytes that a value takes, about.
const VALUE: usize = 32;

/// Names, and their values one after the other in one piece of memory.
#[derive(Debug, Default)]
pub struct Fields {
    /// Each name with where its value ends.
    names: Vec<(&'static HeaderName, usize)>,
    text: Text,
}

/// Text of values.
#[derive(Debug, Default)]
pub struct Text(Vec<u8>);

impl Text {
    /// Visible ASCII and spaces.
    pub fn push(&mut self, text: &'static str) -> &mut Self {
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    pub fn digits(&mut self, n: u64) -> &mut Self {
        self.0.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
        self
    }
}

impl Fields {
    /// With room for so many.
    pub fn with_capacity(fields: usize) -> Self {
        Self {
            names: Vec::with_capacity(fields),
            text: Text(Vec::with_capacity(fields * VALUE)),
        }
    }

    /// One more, whose value `write` adds to the text.
    pub fn add(&mut self, name: &'static HeaderName, write: impl FnOnce(&mut Text) -> &mut Text) {
        let end = write(&mut self.text).0.len();
        self.names.push((name, end));
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Each name and its value.
    pub fn iter(&self) -> impl Iterator<Item = (&'static HeaderName, &[u8])> {
        let mut from = 0;
        self.names.iter().map(move |(name, end)| {
            let value = self.text.0.get(from..*end).unwrap_or_default();
            from = *end;
            (*name, value)
        })
    }

    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter()
            .find(|(n, _)| n.as_str() == name)
            .map(|(_, value)| value)
    }

    /// Puts them into a head, in the place of what has the same names there.
    pub fn put(self, headers: &mut HeaderMap) {
        headers.reserve(self.names.len());
        let text = Bytes::from(self.text.0);
        let mut from = 0;
        for (name, end) in self.names {
            let value = text.slice(from.min(end)..end.min(text.len()));
            from = end;
            if let Ok(value) = HeaderValue::from_maybe_shared(value) {
                headers.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_its_value() {
        static A: HeaderName = HeaderName::from_static("x-a");
        static B: HeaderName = HeaderName::from_static("x-b");
        let mut fields = Fields::with_capacity(1);
        fields.add(&A, |text| text.push("n=").digits(18));
        fields.add(&B, |text| text.push("two"));
        assert_eq!((fields.get("x-a"), fields.get("x-c")), (Some(&b"n=18"[..]), None));
        let mut headers = HeaderMap::new();
        headers.insert(&B, HeaderValue::from_static("old"));
        fields.put(&mut headers);
        assert_eq!(headers["x-a"], "n=18");
        assert_eq!(headers["x-b"], "two");
        assert_eq!(headers.len(), 2);
    }
}
