//! Dresses a call for its deployment and turns the answer back: the model's name by a splice where the
//! upstream speaks OpenAI's dialect, the whole body where it speaks another.

use crate::contract::ports::{Clock, Ports};
use crate::contract::{Call, Cx, Fault, Filter, Needs, Refusal, Result, Scanned, Stop, Upstream};
use crate::dialects::params::GATEWAY_ONLY;
use crate::dialects::{self, Dialect, DialectError, Params};
use crate::model::call::Endpoint;
use crate::model::deployment::Deployment;
use crate::wire::{multipart, splice};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header, response};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::sync::Arc;

/// An answer in a foreign dialect longer than this is a fault of the upstream.
const MAX_ANSWER: usize = 16 << 20;

pub struct Translate {
    clock: Arc<dyn Clock>,
}

impl Translate {
    pub fn new(ports: &Ports) -> Self {
        Self {
            clock: Arc::clone(&ports.clock),
        }
    }

    /// What the dialect must know of the call.
    fn with_params<T>(&self, cx: &Cx, d: &Deployment, call: &Call, f: impl FnOnce(&Params) -> T) -> T {
        f(&Params {
            model: &cx.upstream_model,
            requested_model: &call.requested_model,
            drop_params: d.drop_params,
            max_output_tokens: d.max_output_tokens,
            additional_drop_params: &d.additional_drop_params,
            stream: call.stream,
            created: self.clock.now_micros() / 1_000_000,
            id: &cx.request_id,
            defaults: &d.defaults,
        })
    }
}

#[async_trait]
impl Filter for Translate {
    fn needs(&self) -> Needs {
        Needs {
            upstream_request: true,
            response: true,
            response_chunks: true,
            ..Needs::NONE
        }
    }

    async fn upstream_request_filter(&self, cx: &mut Cx, up: &mut Upstream) -> Result<()> {
        cx.translator = None;
        cx.collected = Vec::new();
        let (Some(call), Some(d)) = (&cx.call, up.deployment.clone()) else {
            return Ok(());
        };
        let dialect = dialect(&d)?;
        let content_type;
        if dialect.is_identity() {
            up.path = call.endpoint.path().to_string();
            content_type = call.content_type.clone();
            up.body = match &call.scanned {
                Scanned::Json(object) => same_dialect(call, object, &d, up)?,
                Scanned::Form { parts, .. } => form(call, parts, &up.model)?,
            };
        } else {
            let body = canonical(call, up)?;
            let dressed = self
                .with_params(cx, &d, call, |p| dialect.request(call.endpoint, &body, p))
                .map_err(|e| refusal(e, &call.requested_model))?;
            for (name, value) in &dressed.headers {
                insert(up, name, value)?;
            }
            up.path = dressed.path;
            up.body = dressed.body.into();
            content_type = "application/json".to_string();
        }
        insert(up, "content-type", &content_type)?;
        if let Some(key) = &d.api_key {
            let (name, value) = dialect.auth(key.expose());
            insert(up, name, &value)?;
        }
        for (name, value) in &d.headers {
            insert(up, name, value.expose())?;
        }
        Ok(())
    }

    fn response_filter(&self, cx: &mut Cx, head: &mut response::Parts) -> Result<()> {
        let (Some(call), Some(d)) = (&cx.call, cx.deployment.clone()) else {
            return Ok(());
        };
        let dialect = dialect(&d)?;
        if dialect.is_identity() {
            return Ok(());
        }
        head.headers.remove(header::CONTENT_LENGTH);
        let kind = if cx.event_stream {
            cx.translator = Some(self.with_params(cx, &d, call, |p| dialect.stream(p)));
            "text/event-stream; charset=utf-8"
        } else {
            "application/json"
        };
        head.headers
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        Ok(())
    }

    fn response_body_filter(&self, cx: &mut Cx, chunk: &mut Bytes, end: bool) -> Result<()> {
        let Some(d) = cx.deployment.clone() else {
            return Ok(());
        };
        let dialect = dialect(&d)?;
        if dialect.is_identity() || cx.call.is_none() {
            return Ok(());
        }
        if let Some(translator) = &mut cx.translator {
            let mut out = Vec::with_capacity(chunk.len());
            translator.push(chunk.clone(), &mut out);
            if end {
                translator.finish(&mut out);
            }
            *chunk = out.into();
            return Ok(());
        }
        if cx.collected.len() + chunk.len() > MAX_ANSWER {
            return Err(
                Fault::upstream("The upstream's answer is larger than the gateway takes.", &d.id).into(),
            );
        }
        cx.collected.extend_from_slice(chunk);
        *chunk = Bytes::new();
        if !end {
            return Ok(());
        }
        let body = std::mem::take(&mut cx.collected);
        let Some(call) = &cx.call else { return Ok(()) };
        *chunk = if cx.response_status >= 400 {
            let (status, body) =
                self.with_params(cx, &d, call, |p| dialect.error(cx.response_status, &body, p));
            cx.response_status = status;
            body
        } else {
            self.with_params(cx, &d, call, |p| dialect.response(call.endpoint, &body, p))
                .map_err(|e| {
                    Fault::upstream(
                        format!(
                            "The deployment {} answered in a way that cannot be understood.",
                            d.id
                        ),
                        e,
                    )
                })?
        };
        Ok(())
    }
}

/// How a deployment is spoken to.
pub fn dialect(d: &Deployment) -> Result<&'static dyn Dialect> {
    dialects::named(d.dialect).ok_or_else(|| {
        Fault::internal(format!(
            "deployment {} has the unknown dialect {}",
            d.id, d.dialect
        ))
        .into()
    })
}

fn refusal(e: DialectError, model: &str) -> Stop {
    let mut refusal = Refusal::bad_request(format!("{model}: {e}"));
    if let Some(param) = e.param() {
        refusal = refusal.param(param);
    }
    refusal.into()
}

fn insert(up: &mut Upstream, name: &str, value: &str) -> Result<()> {
    let bad = |e: &dyn std::fmt::Display| {
        Fault::internal(format!("the upstream header {name} cannot be sent: {e}"))
    };
    // Nearly all are these two, and taking a name apart costs more than all the rest here.
    let name = match name {
        "content-type" => header::CONTENT_TYPE,
        "authorization" => header::AUTHORIZATION,
        _ => HeaderName::try_from(name).map_err(|e| bad(&e))?,
    };
    // The error of a value does not quote it, so a key cannot get into a log here.
    let value = HeaderValue::try_from(value).map_err(|e| bad(&e))?;
    up.headers.insert(name, value);
    Ok(())
}

/// The client's bytes with the model's name, the deployment's defaults and the filters' edits spliced in.
fn same_dialect(
    call: &Call,
    object: &crate::wire::peek::Object,
    d: &Deployment,
    up: &mut Upstream,
) -> Result<splice::Rope> {
    up.edits.set("model", splice::json_string(&up.model));
    for (name, value) in &d.defaults {
        let twin = crate::dialects::params::twin(name);
        let sent = |n: &str| {
            object
                .get(n)
                .is_some_and(|f| f.kind != crate::wire::peek::Kind::Null)
        };
        let known = object.get(name).is_some() || call_has(call, name);
        if !known && !twin.is_some_and(sent) {
            up.edits.set(name.clone(), value.to_string());
        }
    }
    // OpenAI takes `metadata` in a chat only with `store`, and strict servers do not know it: it is
    // the gateway's unless the client clearly means it for the upstream.
    let keeps_metadata = call.endpoint == Endpoint::Responses || call.store;
    let mut remove: Vec<&str> = up.edits.remove.clone();
    remove.extend(
        GATEWAY_ONLY
            .iter()
            .copied()
            .filter(|f| object.get(f).is_some() && !(*f == "metadata" && keeps_metadata)),
    );
    let dropped = &d.additional_drop_params;
    remove.extend(
        object
            .fields
            .iter()
            .map(|f| f.name)
            .filter(|n| dropped.iter().any(|d| d == n)),
    );
    let insert: Vec<(&str, Bytes)> = up
        .edits
        .set
        .iter()
        .map(|(n, v)| (n.as_str(), v.clone()))
        .collect();
    let edits = splice::object_edits(&call.body, object, &[], &remove, &insert);
    let rope = splice::apply(&call.body, edits).map_err(Fault::internal)?;
    let unscanned = |name: &&String| object.get(name).is_none() && call_has(call, name);
    if dropped.iter().any(|name| unscanned(&name)) {
        return Ok(without(&rope.to_bytes(), dropped)?.into());
    }
    Ok(rope)
}

/// The client's body with the filters' edits, for a dialect to translate.
fn canonical(call: &Call, up: &Upstream) -> Result<Bytes> {
    let Scanned::Json(object) = &call.scanned else {
        return Ok(call.body.clone());
    };
    let set: Vec<(&str, Bytes)> = up
        .edits
        .set
        .iter()
        .map(|(n, v)| (n.as_str(), v.clone()))
        .collect();
    let edits = splice::object_edits(&call.body, object, &[], &up.edits.remove, &set);
    Ok(splice::apply(&call.body, edits)
        .map_err(Fault::internal)?
        .to_bytes())
}

/// The object without these fields, whose names the scan did not know. Values stay as they are written.
fn without(body: &[u8], names: &[String]) -> Result<Bytes> {
    let fields: Fields = serde_json::from_slice(body).map_err(Fault::internal)?;
    let mut out = Vec::with_capacity(body.len());
    for (name, value) in fields
        .0
        .iter()
        .filter(|(n, _)| !names.iter().any(|dropped| dropped == n))
    {
        out.push(if out.is_empty() { b'{' } else { b',' });
        out.extend_from_slice(&splice::json_string(name));
        out.push(b':');
        out.extend_from_slice(value.get().as_bytes());
    }
    if out.is_empty() {
        out.push(b'{');
    }
    out.push(b'}');
    Ok(out.into())
}

/// The top level of an object, in order, values unread.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Top;
        impl<'de> Visitor<'de> for Top {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        d.deserialize_map(Top)
    }
}

/// Whether the body has this top-level field, for names that the first scan did not look for.
fn call_has(call: &Call, name: &str) -> bool {
    serde_json::from_slice::<Fields>(&call.body).is_ok_and(|f| f.0.iter().any(|(n, _)| n == name))
}

/// The client's form with the model's name spliced in.
fn form(call: &Call, parts: &[multipart::Part], model: &str) -> Result<splice::Rope> {
    let model_part = multipart::only(parts, "model").ok().flatten();
    let edits = match model_part {
        Some(part) => vec![splice::Edit {
            range: part.value.clone(),
            with: Bytes::copy_from_slice(model.as_bytes()),
        }],
        // No model named: the form goes on as it is, the upstream has its own default.
        None => Vec::new(),
    };
    splice::apply(&call.body, edits).map_err(|e| Fault::internal(e).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit;

    async fn sent(body: &str, defaults: &str) -> String {
        let kit = testkit::Kit::default();
        let mut cx = kit.cx();
        cx.call = Some(testkit::call(Endpoint::Chat, body));
        let mut d = testkit::deployment("openai");
        d.defaults = serde_json::from_str(defaults).unwrap();
        let mut up = testkit::upstream();
        up.model = "real".into();
        up.deployment = Some(Arc::new(d));
        Translate::new(&kit.ports())
            .upstream_request_filter(&mut cx, &mut up)
            .await
            .unwrap();
        assert_eq!(up.headers.get("authorization").unwrap(), "Bearer provider-key");
        String::from_utf8(up.body.to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn fields_of_any_name_can_be_dropped() {
        let kit = testkit::Kit::default();
        let mut cx = kit.cx();
        let body = r#"{"model":"a","odd":{"x":1.0e2},"messages":[1.50],"seed":1}"#;
        cx.call = Some(testkit::call(Endpoint::Chat, body));
        let mut d = testkit::deployment("openai");
        d.additional_drop_params = vec!["odd".into(), "seed".into()];
        let mut up = testkit::upstream();
        up.model = "real".into();
        up.deployment = Some(Arc::new(d));
        Translate::new(&kit.ports())
            .upstream_request_filter(&mut cx, &mut up)
            .await
            .unwrap();
        assert_eq!(up.body.to_bytes(), r#"{"model":"real","messages":[1.50]}"#);
    }

    #[tokio::test]
    async fn only_what_must_change_changes() {
        assert_eq!(
            sent(
                r#"{ "model" : "gpt-4", "messages":[ 1.0e2 ],"x":{"model":"gpt-4"} }"#,
                "{}"
            )
            .await,
            r#"{ "model" : "real", "messages":[ 1.0e2 ],"x":{"model":"gpt-4"} }"#
        );
        assert_eq!(
            sent(
                r#"{"model":"a","messages":[],"temperature":0.5}"#,
                r#"{"temperature":1,"top_k":3}"#
            )
            .await,
            r#"{"model":"real","messages":[],"temperature":0.5,"top_k":3}"#
        );
        assert_eq!(
            sent(
                r#"{"model":"a","metadata":{"t":1},"num_retries":2,"messages":[]}"#,
                "{}"
            )
            .await,
            r#"{"model":"real","messages":[]}"#
        );
        assert_eq!(
            sent(
                r#"{"model":"a","metadata":{"t":"1"},"store":true,"messages":[]}"#,
                "{}"
            )
            .await,
            r#"{"model":"real","metadata":{"t":"1"},"store":true,"messages":[]}"#
        );
    }
}
