//! Where receivers are and what goes with each parcel: paths and headers, by what the config says.

use super::project::Target;
use super::send::Address;
use crate::conf::{Otlp, Tracing};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

/// The gateway's own project.
pub fn main_project(tracing: &Tracing) -> Option<Target> {
    let langfuse = tracing.langfuse.as_ref()?;
    Some(Target {
        host: langfuse.host.clone(),
        project: langfuse.project.clone()?,
    })
}

/// Where a project of Langfuse's is told. `Err` says why it cannot be.
pub fn of_langfuse(target: &Target) -> Result<Address, String> {
    let url = |path: &str| Url::parse(&format!("{}{path}", target.host)).map_err(|e| e.to_string());
    let project = &target.project;
    let basic = STANDARD.encode(format!("{}:{}", project.public_key, project.secret_key.expose()));
    let mut headers = HeaderMap::new();
    headers.insert("authorization", secret(&format!("Basic {basic}"))?);
    // The real-time path, from Langfuse 4 on; older ones do not look at it.
    headers.insert("x-langfuse-ingestion-version", HeaderValue::from_static("4"));
    headers.insert("x-langfuse-sdk-name", HeaderValue::from_static("tollkeeper"));
    headers.insert(
        "x-langfuse-sdk-version",
        HeaderValue::from_static(env!("CARGO_PKG_VERSION")),
    );
    headers.insert("x-langfuse-public-key", secret(&project.public_key)?);
    Ok(Address {
        otlp: url("/api/public/otel/v1/traces")?,
        legacy: Some(url("/api/public/ingestion")?),
        health: Some(url("/api/public/health")?),
        headers,
    })
}

/// Where a receiver of OpenTelemetry is told.
pub fn of_otlp(otlp: &Otlp) -> Result<Address, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in &otlp.headers {
        let name = HeaderName::try_from(name.as_str()).map_err(|e| e.to_string())?;
        headers.insert(name, secret(value.expose())?);
    }
    Ok(Address {
        otlp: Url::parse(&otlp.endpoint).map_err(|e| e.to_string())?,
        legacy: None,
        health: None,
        headers,
    })
}

/// A value that is not shown. The error does not quote it.
fn secret(text: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(text).map_err(|_| "a header's value cannot be sent".to_string())?;
    value.set_sensitive(true);
    Ok(value)
}
