//! The canonical dialect: what OpenAI and everything compatible with it speaks.
//!
//! Nothing is translated. A request changes only in `model` and in what the deployment's
//! configuration adds or removes; every other value keeps its bytes.

use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value, value::RawValue};

use super::class::{ErrorClass, message_of};
use super::params::{self, is_gateway_only};
use super::{Dialect, DialectError, Dressed, Endpoint, Params, StreamTranslator};

/// The identity.
pub struct OpenAi;

impl Dialect for OpenAi {
    fn name(&self) -> &'static str {
        "openai"
    }

    fn is_identity(&self) -> bool {
        true
    }

    fn request(&self, endpoint: Endpoint, body: &[u8], p: &Params) -> Result<Dressed, DialectError> {
        // A form keeps its bytes: the road splices the model into it.
        let body = if endpoint.is_multipart() {
            Bytes::copy_from_slice(body)
        } else {
            spliced(body, p)?
        };
        Ok(Dressed {
            path: endpoint.path().to_owned(),
            headers: Vec::new(),
            body,
        })
    }

    fn auth(&self, key: &str) -> (&'static str, String) {
        ("authorization", ["Bearer ", key].concat())
    }

    fn response(&self, _: Endpoint, body: &[u8], _: &Params) -> Result<Bytes, DialectError> {
        Ok(Bytes::copy_from_slice(body))
    }

    fn error(&self, status: u16, body: &[u8], _: &Params) -> (u16, Bytes) {
        let class = self.classify(status, body);
        (class.status(), envelope(class, body))
    }

    fn stream(&self, _: &Params) -> Box<dyn StreamTranslator> {
        Box::new(Untouched)
    }
}

/// OpenAI's own envelope goes on as it is; anything else is put into one.
fn envelope(class: ErrorClass, body: &[u8]) -> Bytes {
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(rename = "error")]
        _error: Map<String, Value>,
    }
    match serde_json::from_slice::<Envelope>(body) {
        Ok(_) => Bytes::copy_from_slice(body),
        Err(_) => class.envelope("OpenAIException", &message_of(body)),
    }
}

/// Bytes in, bytes out. Whether the stream was cut off is for the road to see, which counts the
/// framing of the connection; the format itself has no stop that every server sends.
struct Untouched;

impl StreamTranslator for Untouched {
    fn push(&mut self, chunk: Bytes, out: &mut Vec<u8>) {
        out.extend_from_slice(&chunk);
    }

    fn finish(&mut self, _: &mut Vec<u8>) {}
}

/// The top level of an object in order, values unread.
struct TopLevel<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for TopLevel<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = TopLevel<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(TopLevel(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// `body` with the upstream's model name and the deployment's defaults, without what the deployment
/// drops and what is the gateway's own.
fn spliced(body: &[u8], p: &Params) -> Result<Bytes, DialectError> {
    let TopLevel(fields) = serde_json::from_slice(body).map_err(params::not_an_object)?;
    let mut out = Vec::with_capacity(body.len() + 64);
    put("model", &Value::from(p.model).to_string(), &mut out);
    let dropped = |name: &str| {
        name == "model"
            || is_gateway_only(name)
            || p.additional_drop_params.iter().any(|dropped| dropped == name)
    };
    let sent = |name: &str| {
        fields
            .iter()
            .any(|(sent, value)| sent == name && value.get() != "null")
    };
    for (name, value) in &fields {
        // A null means "not sent", so a default may take its place.
        let replaced = value.get() == "null" && p.defaults.contains_key(name);
        if !dropped(name) && !replaced {
            put(name, value.get(), &mut out);
        }
    }
    for (name, value) in p.defaults {
        if !dropped(name) && !sent(name) && !params::twin(name).is_some_and(sent) {
            put(name, &value.to_string(), &mut out);
        }
    }
    out.push(b'}');
    Ok(Bytes::from(out))
}

/// One more field of the object being written; the first opens it.
fn put(name: &str, value: &str, out: &mut Vec<u8>) {
    out.push(if out.is_empty() { b'{' } else { b',' });
    out.extend_from_slice(Value::from(name).to_string().as_bytes());
    out.push(b':');
    out.extend_from_slice(value.as_bytes());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(body: &str, defaults: Value, drop: &[&str], expected: &str) {
        let defaults: Map<String, Value> = serde_json::from_value(defaults).unwrap();
        let drop: Vec<String> = drop.iter().map(|name| name.to_string()).collect();
        let p = Params {
            model: "up",
            requested_model: "down",
            drop_params: false,
            max_output_tokens: None,
            additional_drop_params: &drop,
            stream: false,
            created: 0,
            id: "id",
            defaults: &defaults,
        };
        let dressed = OpenAi.request(Endpoint::Chat, body.as_bytes(), &p).unwrap();
        assert_eq!(std::str::from_utf8(&dressed.body).unwrap(), expected);
    }

    #[test]
    fn only_the_model_changes() {
        check(
            r#"{"a": 1.50, "model":"x"}"#,
            json!({}),
            &[],
            r#"{"model":"up","a":1.50}"#,
        );
        check("{}", json!({}), &[], r#"{"model":"up"}"#);
    }

    #[test]
    fn defaults_fill_gaps_and_the_request_wins() {
        let defaults = json!({"temperature": 0, "max_tokens": 9});
        check(
            r#"{"temperature":1}"#,
            defaults.clone(),
            &[],
            r#"{"model":"up","temperature":1,"max_tokens":9}"#,
        );
        check(
            r#"{"temperature":null,"max_completion_tokens":4}"#,
            defaults,
            &[],
            r#"{"model":"up","max_completion_tokens":4,"temperature":0}"#,
        );
    }

    #[test]
    fn what_is_configured_away_or_the_gateways_own_stays_here() {
        let body = r#"{"seed":1,"metadata":{},"litellm_trace_id":"t","n":2}"#;
        check(body, json!({"seed": 7}), &["seed"], r#"{"model":"up","n":2}"#);
    }

    #[test]
    fn an_error_gets_an_envelope_only_when_it_has_none() {
        let own = br#"{"error":{"message":"m","code":"model_not_found"}}"#;
        assert_eq!(envelope(ErrorClass::NotFound, own), own.as_slice());
        let made: Value = serde_json::from_slice(&envelope(ErrorClass::BadGateway, b"<html>")).unwrap();
        assert_eq!(made["error"]["code"], "502");
    }
}
