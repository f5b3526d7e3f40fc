//! Filters in order. Requests run it forwards, responses backwards.

use super::Result;
use super::cx::Cx;
use super::filter::Filter;
use super::upstream::Upstream;
use super::verdict::{Outcome, Verdict};
use bytes::Bytes;
use http::{request, response};
use std::sync::Arc;

/// The filters of a lane, sorted by hook when built.
#[derive(Default)]
pub struct Chain {
    names: Vec<String>,
    request: Vec<Arc<dyn Filter>>,
    call: Vec<Arc<dyn Filter>>,
    fallback: Vec<Arc<dyn Filter>>,
    upstream_request: Vec<Arc<dyn Filter>>,
    response: Vec<Arc<dyn Filter>>,
    chunks: Vec<Arc<dyn Filter>>,
    logging: Vec<Arc<dyn Filter>>,
}

impl Chain {
    pub fn new(filters: Vec<(String, Arc<dyn Filter>)>) -> Self {
        let mut chain = Chain::default();
        for (name, filter) in filters {
            let needs = filter.needs();
            let wanted = [
                (needs.request, &mut chain.request),
                (needs.call, &mut chain.call),
                (needs.fallback, &mut chain.fallback),
                (needs.upstream_request, &mut chain.upstream_request),
                (needs.response, &mut chain.response),
                (needs.response_chunks, &mut chain.chunks),
                (needs.logging, &mut chain.logging),
            ];
            for (_, list) in wanted.into_iter().filter(|(wants, _)| *wants) {
                list.push(Arc::clone(&filter));
            }
            chain.names.push(name);
        }
        for list in [&mut chain.response, &mut chain.chunks, &mut chain.logging] {
            list.reverse();
        }
        chain
    }

    /// Filter names in chain order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    pub async fn request_filter(&self, cx: &mut Cx, head: &request::Parts) -> Result<Verdict> {
        for f in &self.request {
            if let answer @ Verdict::Answer(_) = f.request_filter(cx, head).await? {
                return Ok(answer);
            }
        }
        Ok(Verdict::Continue)
    }

    pub async fn call_filter(&self, cx: &mut Cx, head: &request::Parts) -> Result<Verdict> {
        for f in &self.call {
            if let answer @ Verdict::Answer(_) = f.call_filter(cx, head).await? {
                return Ok(answer);
            }
        }
        Ok(Verdict::Continue)
    }

    pub async fn fallback_filter(&self, cx: &mut Cx) -> Result<()> {
        for f in &self.fallback {
            f.fallback_filter(cx).await?;
        }
        Ok(())
    }

    pub async fn upstream_request_filter(&self, cx: &mut Cx, up: &mut Upstream) -> Result<()> {
        for f in &self.upstream_request {
            f.upstream_request_filter(cx, up).await?;
        }
        Ok(())
    }

    pub fn response_filter(&self, cx: &mut Cx, head: &mut response::Parts) -> Result<()> {
        self.response.iter().try_for_each(|f| f.response_filter(cx, head))
    }

    pub fn response_body_filter(&self, cx: &mut Cx, chunk: &mut Bytes, end: bool) -> Result<()> {
        self.chunks
            .iter()
            .try_for_each(|f| f.response_body_filter(cx, chunk, end))
    }

    pub fn logging(&self, cx: &mut Cx, outcome: &Outcome) {
        for f in &self.logging {
            f.logging(cx, outcome);
        }
    }
}
