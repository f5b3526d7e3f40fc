//! One dressed attempt: what is about to be sent upstream.

use crate::model::deployment::Deployment;
use bytes::Bytes;
use http::{HeaderMap, Method};
use std::sync::Arc;

use crate::wire::splice::Rope;

/// The request of one upstream attempt, made anew from the client's for each attempt.
pub struct Upstream {
    /// None on lanes that name a target instead of a model.
    pub deployment: Option<Arc<Deployment>>,
    /// The model name for this deployment, wildcards filled in.
    pub model: String,
    pub method: Method,
    /// Path and query below the base of the deployment or target: `/chat/completions`.
    pub path: String,
    /// What is sent besides `host`, `content-length` and framing.
    pub headers: HeaderMap,
    /// Changes to the top level of a JSON body, gathered by filters and applied by `translate`, which
    /// stands last: one splice, whatever the number of filters.
    pub edits: Edits,
    /// What is sent. Written by `translate`; empty on lanes whose bodies flow through unread.
    pub body: Rope,
}

/// Changes to the top level of a JSON object, by field name.
#[derive(Debug, Default)]
pub struct Edits {
    /// Takes the place of the field's value, or is added when the field is absent.
    pub set: Vec<(String, Bytes)>,
    pub remove: Vec<&'static str>,
}

impl Edits {
    pub fn set(&mut self, name: impl Into<String>, json: impl Into<Bytes>) {
        let name = name.into();
        self.set.retain(|(n, _)| *n != name);
        self.set.push((name, json.into()));
    }
}
