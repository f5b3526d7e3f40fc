//! The management API: virtual keys, what they spent, whose they are. Called in process by the proxy.
//!
//! The answers are supersets: every field that LiteLLM's scripts read and every flat field of the
//! plain API are there side by side. Nothing here authenticates, speaks HTTP to a socket or writes
//! an error body: the proxy puts the [`Caller`](filters::model::key::Caller) into the request's
//! extensions before, and renders the [`Stop`](filters::contract::Stop) that it finds in the
//! response's extensions after.
//!
//! No answer but that of `POST /key/generate` holds a key: keys are shown as their hash and as
//! `sk-...` with the last four characters.

mod ask;
pub(crate) mod duration;
mod error;
mod fields;
mod keys;
mod limits;
mod lookup;
mod shapes;
mod spend;
#[cfg(test)]
mod tests;
mod users;

pub use error::Stopped;

use crate::shared::keys::KeyCache;
use crate::store::Store;
use axum::Router;
use axum::routing::{get, post};
use filters::contract::ports::{Catalog, Clock};
use std::sync::Arc;

/// What the API works on.
#[derive(Clone)]
pub struct Admin {
    pub store: Arc<dyn Store>,
    /// Told to forget a key after each change of it.
    pub keys: Arc<KeyCache>,
    /// The models of the snapshot that serves now.
    pub catalog: Arc<dyn Fn() -> Arc<dyn Catalog> + Send + Sync>,
    pub clock: Arc<dyn Clock>,
}

/// What the handlers share.
struct Desk {
    store: Arc<dyn Store>,
    keys: Arc<KeyCache>,
    catalog: Arc<dyn Fn() -> Arc<dyn Catalog> + Send + Sync>,
    clock: Arc<dyn Clock>,
    /// Held while a key is read, changed and written back: without it, an update that crosses a block
    /// would lift it again. Every store call is bounded in time, so this wait is too.
    changing: tokio::sync::Mutex<()>,
}

/// The API as a service. Each request must carry a [`Caller`](filters::model::key::Caller) in its
/// extensions. A response that stands for an error carries `Arc<Stop>` in its extensions, its status
/// and nothing else; the caller of this router renders it.
pub fn router(admin: Admin) -> Router {
    let desk = Desk {
        store: admin.store,
        keys: admin.keys,
        catalog: admin.catalog,
        clock: admin.clock,
        changing: tokio::sync::Mutex::new(()),
    };
    Router::new()
        .route("/key/generate", post(keys::generate).fallback(error::only_post))
        .route("/key/update", post(keys::update).fallback(error::only_post))
        .route("/key/delete", post(keys::delete).fallback(error::only_post))
        .route("/key/block", post(keys::block).fallback(error::only_post))
        .route("/key/unblock", post(keys::unblock).fallback(error::only_post))
        .route("/key/info", get(lookup::info).fallback(error::only_get))
        .route("/key/list", get(lookup::list).fallback(error::only_get))
        .route("/spend/logs", get(spend::logs).fallback(error::only_get))
        .route("/user/info", get(users::info).fallback(error::only_get))
        .fallback(error::unknown_route)
        .with_state(Arc::new(desk))
}
