//! The built-in filters: one file each, holding its settings, the filter and its tests.

pub mod access;
pub mod auth;
pub mod cors;
pub mod limits;
pub mod metrics;
pub mod passthrough;
pub mod spend;
pub mod trace;
pub mod translate;
pub mod usage;

use crate::contract::filter::Filter;
use crate::contract::registry::Registry;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::Arc;

/// Every built-in filter under its name.
pub fn registry() -> Registry {
    Registry::default()
        .with("access", |s, _| none(s).map(|()| share(access::Access)))
        .with("auth", |s, p| auth::Auth::new(settings(s)?, p).map(share))
        .with("cors", |s, _| settings(s).map(|c| share(cors::Cors::new(c))))
        .with("limits", |s, p| limits::Limits::new(settings(s)?, p).map(share))
        .with("metrics", |s, p| {
            settings(s).map(|c| share(metrics::Metrics::new(c, p)))
        })
        .with("passthrough", |s, _| {
            settings(s).map(|c| share(passthrough::Passthrough::new(c)))
        })
        .with("spend", |s, p| none(s).map(|()| share(spend::Spend::new(p))))
        .with("trace", |s, p| none(s).map(|()| share(trace::Trace::new(p))))
        .with("translate", |s, p| {
            none(s).map(|()| share(translate::Translate::new(p)))
        })
        .with("usage", |s, _| none(s).map(|()| share(usage::MeterUsage)))
}

/// The chain of a lane that carries model calls, in order. Responses run it backwards, so whatever
/// stands before `translate` sees canonical bytes whatever the provider spoke.
pub const CALL_CHAIN: [&str; 9] = [
    "cors",
    "auth",
    "trace",
    "access",
    "limits",
    "metrics",
    "spend",
    "usage",
    "translate",
];

/// The chain of a lane whose bodies flow through untouched.
pub const STREAM_CHAIN: [&str; 5] = ["cors", "auth", "metrics", "passthrough", "limits"];

fn share<F: Filter + 'static>(filter: F) -> Arc<dyn Filter> {
    Arc::new(filter)
}

/// The settings of a filter: null means the defaults.
fn settings<T: DeserializeOwned + Default>(value: &Value) -> Result<T, String> {
    match value {
        Value::Null => Ok(T::default()),
        v => serde_json::from_value(v.clone()).map_err(|e| e.to_string()),
    }
}

fn none(value: &Value) -> Result<(), String> {
    match value {
        Value::Null => Ok(()),
        Value::Object(m) if m.is_empty() => Ok(()),
        _ => Err("it takes no settings".into()),
    }
}
