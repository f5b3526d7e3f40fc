//! How the API refuses: a [`Stop`] in the response's extensions, for the proxy to render.

use crate::store::{StoreError, Taken};
use axum::body::Body;
use axum::http::{Method, Uri};
use axum::response::{IntoResponse, Response};
use filters::contract::{Fault, Refusal, Stop};
use http::StatusCode;
use std::sync::Arc;

pub type Result<T> = std::result::Result<T, Stopped>;

/// Why a request goes no further. As a response it has the status, an empty body and `Arc<Stop>` in its
/// extensions: only the proxy writes errors to clients, so that they look the same everywhere.
#[derive(Clone, Debug)]
pub struct Stopped(pub Arc<Stop>);

/// `code` of the refusal for a write that somebody else's crossed.
const STALE: &str = "changed_meanwhile";

impl Stopped {
    /// Whether reading again and writing again may help.
    pub fn is_stale(&self) -> bool {
        matches!(&*self.0, Stop::Refusal(r) if r.code == Some(STALE))
    }
}

impl IntoResponse for Stopped {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() =
            StatusCode::from_u16(self.0.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.extensions_mut().insert(self.0);
        response
    }
}

impl From<Refusal> for Stopped {
    fn from(r: Refusal) -> Self {
        Stopped(Arc::new(r.into()))
    }
}

impl From<Fault> for Stopped {
    fn from(f: Fault) -> Self {
        Stopped(Arc::new(f.into()))
    }
}

impl From<StoreError> for Stopped {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Unavailable(_) => Fault::unavailable(
                "Keys and spend cannot be read or changed right now because the database is away. \
                 Try again in a few seconds.",
                e,
            )
            .into(),
            StoreError::Conflict {
                what: Taken::KeyAlias,
            } => taken(
                "key_alias",
                "Unique key aliases across all keys are required: this one is in use already.",
            )
            .into(),
            StoreError::Conflict { what: Taken::Key } => taken(
                "key",
                "This key is in use already. Leave `key` out to have a new one made.",
            )
            .into(),
            StoreError::Conflict { what: Taken::Id } => Refusal::new(
                409,
                "bad_request_error",
                "An object of this id exists already. Choose another id, or update the one there is.",
            )
            .into(),
            StoreError::Stale(_) => Refusal::new(
                409,
                "bad_request_error",
                "Somebody else changed this at the same time. Look at it and try again.",
            )
            .code(STALE)
            .into(),
            // The database's words stay in the log.
            StoreError::Invalid(why) => {
                log::debug!("event=value_refused by=store cause={why:?}");
                Refusal::bad_request(
                    "A value of this request cannot be stored. Check ids, aliases and metadata.",
                )
                .into()
            }
            StoreError::Other(why) => Fault::internal(why).into(),
        }
    }
}

/// 400 in LiteLLM's type for a name that is in use.
pub fn taken(field: &str, message: impl Into<String>) -> Refusal {
    Refusal::new(400, "bad_request_error", message).param(field)
}

/// 422: the field is of another type.
pub fn wrong_type(field: &str, expected: &str) -> Refusal {
    Refusal::new(
        422,
        "invalid_request_error",
        format!("The field '{field}' must be {expected}."),
    )
    .param(field)
}

/// 422: the field is not there.
pub fn missing(field: &str, message: impl Into<String>) -> Refusal {
    Refusal::new(422, "invalid_request_error", message).param(field)
}

/// 400: the type is right, the value cannot be.
pub fn wrong_value(field: &str, message: impl Into<String>) -> Refusal {
    Refusal::bad_request(message).param(field)
}

pub fn forbidden(message: impl Into<String>) -> Refusal {
    Refusal::new(403, "auth_error", message)
}

pub fn not_found(param: &str, message: impl Into<String>) -> Refusal {
    Refusal::new(404, "not_found_error", message).param(param)
}

pub async fn unknown_route(uri: Uri) -> Stopped {
    let path: String = uri.path().chars().take(200).collect();
    Refusal::new(
        404,
        "not_found_error",
        format!("There is no {path} in the management API."),
    )
    .into()
}

/// 405, with the methods that there are.
pub fn not_taken(allowed: &str, method: &Method, uri: &Uri) -> Stopped {
    let method: String = method.as_str().chars().take(32).collect();
    Refusal::new(
        405,
        "invalid_request_error",
        format!("{} does not take {method}; it takes {allowed}.", uri.path()),
    )
    .header("allow", allowed)
    .into()
}
