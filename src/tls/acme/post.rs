//! Carries the requests to the authority: over TLS and nothing else, judged by the system's authorities or
//! by those of a file, each within a time and a size. Redirects are not followed: what is signed is signed
//! for one address.

use super::super::files;
use crate::retry_after;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use std::fmt::Write;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// For one request, answer included.
const PATIENCE: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(10);
/// Largest answer, bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Requests to one authority.
#[derive(Clone)]
pub struct Post {
    client: reqwest::Client,
    /// What a refusal said of coming back.
    wait: Arc<Mutex<Option<Duration>>>,
}

impl Post {
    /// `Err` names the file.
    pub fn new(ca: Option<&Path>) -> Result<Self, String> {
        let mut builder = reqwest::Client::builder()
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(PATIENCE);
        if let Some(file) = ca {
            let roots = files::roots(file)?;
            let roots: Result<Vec<_>, _> = roots
                .iter()
                .map(|der| reqwest::Certificate::from_der(der))
                .collect();
            let roots = roots.map_err(|e| format!("{}: {e}", file.display()))?;
            builder = builder.tls_certs_only(roots);
        }
        let client = builder
            .build()
            .map_err(|e| format!("requests to the authority cannot be made: {}", chain(&e)))?;
        Ok(Self {
            client,
            wait: Arc::default(),
        })
    }

    /// How long the authority wants to be left alone, if its last refusal said so.
    pub fn wait(&self) -> Option<Duration> {
        *self.wait.lock()
    }
}

impl HttpClient for Post {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let this = self.clone();
        Box::pin(async move { this.send(request).await.map_err(|why| Error::Other(why.into())) })
    }
}

impl Post {
    /// What is at an address for everybody, and when it says to come again.
    pub async fn get<T: DeserializeOwned>(&self, address: &str) -> Result<(T, Option<Duration>), String> {
        let (answer, bytes) = fetched(self.client.get(address), address).await?;
        if answer.status() != StatusCode::OK {
            return Err(format!("{address}: the answer is {}", answer.status()));
        }
        let wait = retry_after::read(answer.headers());
        match serde_json::from_slice(&bytes) {
            Ok(found) => Ok((found, wait)),
            Err(e) => Err(format!("{address}: {e}")),
        }
    }

    async fn send(&self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, String> {
        let (head, body) = request.into_parts();
        let to = head.uri.to_string();
        let Ok(body) = body.collect().await;
        let request = self.client.request(head.method, &to).headers(head.headers);
        let (answer, bytes) = fetched(request.body(body.to_bytes()), &to).await?;
        let status = answer.status();
        if status.is_client_error() || status.is_server_error() {
            *self.wait.lock() = retry_after::read(answer.headers());
            // Whoever stands before the authority does not say why in its language.
            if serde_json::from_slice::<instant_acme::Problem>(&bytes).is_err() {
                return Err(format!("{to}: the answer is {status}"));
            }
        }
        let mut response = http::Response::new(http_body_util::Full::new(Bytes::from(bytes)));
        *response.status_mut() = status;
        *response.headers_mut() = answer.headers().clone();
        Ok(BytesResponse::from(response))
    }
}

/// Sends it and reads the whole answer, as far as that is bearable.
async fn fetched(request: reqwest::RequestBuilder, to: &str) -> Result<(reqwest::Response, Vec<u8>), String> {
    let told = |e: reqwest::Error| format!("{to}: {}", chain(&e.without_url()));
    let mut answer = request.send().await.map_err(told)?;
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(told)? {
        if bytes.len() + chunk.len() > MAX_ANSWER {
            return Err(format!("{to}: the answer is larger than {MAX_ANSWER} bytes"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok((answer, bytes))
}

/// An error with all its causes.
pub fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        next = cause.source();
    }
    text
}
