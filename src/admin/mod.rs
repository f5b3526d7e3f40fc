//! The management API: virtual keys, what they spent, whose they are. Called in process by the proxy.
//!
//! The answers are supersets: every field that LiteLLM's scripts read and every flat field of the
//! plain API are there side by side. Nothing here authenticates, speaks HTTP to a socket or writes
//! an error body: the proxy puts the [`Caller`](filters::model::key::Caller) into the request's
//! extensions before, and renders the [`Stop`](filters::contract::Stop) that it finds in the
//! response's extensions after.
//!
//! No answer but those of `POST /key/generate` and `/key/regenerate` holds a key: keys are shown as
//! their hash and as `sk-...` with the last four characters.

mod activity;
mod ask;
mod audit;
mod bounds;
mod budgets;
pub(crate) mod callbacks;
mod config;
mod customers;
mod daily;
mod days;
pub(crate) mod duration;
mod error;
pub mod fields;
mod issue;
mod key_rows;
mod keys;
mod log;
mod log_row;
mod logs;
mod lookup;
mod members;
mod model_info;
mod models;
mod objects;
mod openapi;
mod organizations;
mod policy;
mod reports;
mod rights;
mod rotation;
pub mod routes;
mod scope;
mod shapes;
mod spend;
mod tags;
mod teams;
mod terms;
#[cfg(test)]
mod tests;
mod users;

pub use error::Stopped;
pub use policy::Policy;
pub use rights::sees_all;
pub use routes::{is_info, open_paths, paths};

use crate::reload::Reload;
use crate::shared::keys::KeyCache;
use crate::store::Store;
use axum::Router;
use filters::contract::Fault;
use filters::contract::ports::{Catalog, Clock};
use filters::model::account::Account;
use filters::model::key::KeyHash;
use std::sync::Arc;
use std::time::Duration;

/// How often a change is begun in all when others come first.
const MOST_TRIES: u32 = 40;
/// The longest pause before it is begun again; it is drawn, so that two do not meet for ever.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// What each of these accounts has spent that the store does not know yet.
pub type Unlanded = dyn Fn(&[&Account]) -> Vec<i64> + Send + Sync;

/// What the API works on.
#[derive(Clone)]
pub struct Admin {
    pub store: Arc<dyn Store>,
    /// Told to forget a key after each change of it.
    pub keys: Arc<KeyCache>,
    /// The models of the snapshot that serves now.
    pub catalog: Arc<dyn Fn() -> Arc<dyn Catalog> + Send + Sync>,
    /// What the config that serves now says of new keys.
    pub policy: Arc<dyn Fn() -> Arc<Policy> + Send + Sync>,
    /// Whether a key is the master key, by its hash.
    pub is_master: Arc<dyn Fn(&KeyHash) -> bool + Send + Sync>,
    /// Nano-dollars of each account that are written down and not in the store yet.
    pub unlanded: Arc<Unlanded>,
    pub clock: Arc<dyn Clock>,
    /// Makes and shows the config that serves.
    pub reload: Arc<Reload>,
}

/// What the handlers share.
pub type Desk = Admin;

/// The API as a service. Each request must carry a [`Caller`](filters::model::key::Caller) in its
/// extensions. A response that stands for an error carries `Arc<Stop>` in its extensions, its status
/// and nothing else; the caller of this router renders it.
pub fn router(admin: Admin) -> Router {
    routes::router().with_state(Arc::new(admin))
}

/// Runs a change to its end even when the client leaves meanwhile, and begins it again while somebody
/// else's change comes first: `attempt` reads, judges and writes what it has read, every time.
async fn settle<T, F, Fut>(attempt: F) -> error::Result<T>
where
    T: Send + 'static,
    F: Fn() -> Fut + Send + 'static,
    Fut: Future<Output = error::Result<T>> + Send,
{
    let task = tokio::spawn(async move {
        for _ in 1..MOST_TRIES {
            match attempt().await {
                Err(e) if e.is_stale() => {
                    tokio::time::sleep(LONGEST_PAUSE.mul_f64(rand::random::<f64>())).await;
                }
                done => return done,
            }
        }
        attempt().await
    });
    match task.await {
        Ok(done) => done,
        Err(e) => Err(Fault::internal(e).into()),
    }
}
