//! How long a call's prompt is, and what is left of it once it has been sent for good. What a body holds
//! besides is `call`'s.

use super::call::{Call, Scanned};
use crate::model::usage;
use bytes::Bytes;

/// What a token of audio stands for where models count audio in tokens, milliseconds.
const AUDIO_TOKEN_MILLIS: u64 = 100;
/// A body up to this size, bytes, is not worth the work of letting go of it.
const SMALL: usize = 4 << 10;

impl Call {
    /// Input tokens by our own count: of the JSON as it is, of a form by the length of its audio.
    pub fn estimated_prompt(&self) -> u64 {
        if let Some(counted) = self.counted {
            return counted;
        }
        match self.scanned {
            Scanned::Json(_) => usage::estimate_prompt_of(&self.body),
            Scanned::Form { .. } => self
                .audio_millis
                .div_ceil(AUDIO_TOKEN_MILLIS)
                .clamp(1, usage::MOST),
        }
    }

    /// The body is long enough to be let go of.
    pub fn is_worth_letting_go(&self) -> bool {
        self.body.len() > SMALL
    }

    /// For a call whose answer flows, which no other upstream will be asked for: a long prompt would be
    /// held for as long as the answer takes. Says whether the body is gone.
    pub fn let_go_of_body(&mut self) -> bool {
        if !self.is_worth_letting_go() {
            return false;
        }
        self.counted = Some(self.estimated_prompt());
        // It is a part of the body.
        self.metadata = self.metadata.as_deref().map(Bytes::copy_from_slice);
        self.body = Bytes::new();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::call::Endpoint;
    use crate::testkit;

    #[test]
    fn a_body_that_is_gone_counts_as_it_did() {
        let padding = "tell me more ".repeat(SMALL / 4);
        let body = format!(
            r#"{{"model":"a","messages":[{{"role":"user","content":"{padding}"}}],"metadata":{{"trace_id":"t"}}}}"#
        );
        let mut c = testkit::call(Endpoint::Chat, &body);
        let counted = c.estimated_prompt();
        assert!(c.let_go_of_body() && c.body.is_empty());
        assert_eq!(c.estimated_prompt(), counted);
        assert_eq!(c.metadata.as_deref(), Some(&br#"{"trace_id":"t"}"#[..]));
        assert!(!c.let_go_of_body(), "it is gone");
        assert_eq!(c.estimated_prompt(), counted);
        let mut small = testkit::call(Endpoint::Chat, r#"{"model":"a","messages":[]}"#);
        assert!(!small.let_go_of_body());
    }
}
