//! The routes of the management API as data: one row per call. The router, the refusals of other
//! methods, `GET /routes` and the description of the API are all made from these rows, so that they
//! cannot disagree. What a call does stands in its handler; whom it is for is judged in
//! [`rights`](super::rights) before the handler runs.
//!
//! To add a call: write the handler, and a row for it in the `ROUTES` of its module; add a new module's
//! `ROUTES` to [`TABLES`].

use super::fields::Field;
use super::{
    Desk, activity, audit, budgets, config, customers, error, issue, keys, log, logs, lookup, members,
    model_info, models, openapi, organizations, reports, rights, rotation, spend, tags, teams, users,
};
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::{Json, Router};
use filters::model::call::Endpoint;
use http::{Method, Uri};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// All rows, by module.
const TABLES: &[&[Route]] = &[
    issue::ROUTES,
    keys::ROUTES,
    rotation::ROUTES,
    lookup::ROUTES,
    users::ROUTES,
    teams::ROUTES,
    teams::logging::ROUTES,
    members::ROUTES,
    organizations::ROUTES,
    customers::ROUTES,
    budgets::ROUTES,
    tags::ROUTES,
    logs::ROUTES,
    spend::ROUTES,
    models::ROUTES,
    model_info::ROUTES,
    config::ROUTES,
    log::ROUTES,
    reports::ROUTES,
    activity::ROUTES,
    audit::ROUTES,
    ROUTES,
];

const ROUTES: &[Route] = &[
    Route {
        group: "gateway",
        who: Who::Open,
        summary: "The paths that are served here",
        answer: "Routes",
        ..Route::get(&["/routes"], |m| on(m, listed))
    },
    Route {
        group: "gateway",
        who: Who::Open,
        summary: "This description",
        ..Route::get(&["/openapi.json"], |m| on(m, openapi::served))
    },
];

/// One call. Rows begin with [`Route::get`] or [`Route::post`] and name what differs.
pub struct Route {
    pub verb: Verb,
    /// All spellings of its path, the usual one first. `{name}` stands for one segment.
    pub paths: &'static [&'static str],
    /// Which part of the API it belongs to: `keys`, `users`, `teams`, …
    pub group: &'static str,
    pub who: Who,
    /// One line without a full stop.
    pub summary: &'static str,
    /// Fields of the JSON body, in groups that rows share.
    pub body: &'static [&'static [Field]],
    /// Parameters of the query.
    pub query: &'static [Field],
    /// Name of the answer's shape.
    pub answer: &'static str,
    pub handler: fn(MethodFilter) -> MethodRouter<Arc<Desk>>,
}

impl Route {
    pub const fn get(
        paths: &'static [&'static str],
        handler: fn(MethodFilter) -> MethodRouter<Arc<Desk>>,
    ) -> Self {
        Self::new(Verb::Get, paths, handler)
    }

    pub const fn post(
        paths: &'static [&'static str],
        handler: fn(MethodFilter) -> MethodRouter<Arc<Desk>>,
    ) -> Self {
        Self::new(Verb::Post, paths, handler)
    }

    /// For nobody but admins until the row says otherwise.
    pub const fn new(
        verb: Verb,
        paths: &'static [&'static str],
        handler: fn(MethodFilter) -> MethodRouter<Arc<Desk>>,
    ) -> Self {
        Self {
            verb,
            paths,
            group: "gateway",
            who: Who::Admin,
            summary: "",
            body: &[],
            query: &[],
            answer: "Object",
            handler,
        }
    }

    /// Fields of the body, one by one.
    pub fn fields(&self) -> impl Iterator<Item = &'static Field> {
        self.body.iter().flat_map(|group| group.iter())
    }
}

/// The methods in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "GET",
            Verb::Post => "POST",
            Verb::Put => "PUT",
            Verb::Patch => "PATCH",
            Verb::Delete => "DELETE",
        }
    }

    fn filter(self) -> MethodFilter {
        match self {
            Verb::Get => MethodFilter::GET,
            Verb::Post => MethodFilter::POST,
            Verb::Put => MethodFilter::PUT,
            Verb::Patch => MethodFilter::PATCH,
            Verb::Delete => MethodFilter::DELETE,
        }
    }
}

/// Whom a call is for. What an admitted caller may do to *which* object is for the handler to ask:
/// [`rights`](super::rights) has a small function for each such question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Everybody, without a key.
    Open,
    /// Reads; any key sees what is its own.
    Reader,
    /// Reads of everybody's spend: admins, admin viewers, and keys with `permissions.get_spend_routes`.
    Accountant,
    /// Reads everything: admins and admin viewers.
    Overseer,
    /// Reads what is everybody's, as these do; admins of organizations read what is theirs.
    Governor,
    /// A key changes itself; its user's role and teams may reach further.
    Holder,
    /// Internal users with their own keys, team admins with their team's.
    Maker,
    /// Admins of a team or an organization, with what belongs to it.
    Manager,
    /// The master key and keys of proxy admins.
    Admin,
    /// The master key alone.
    Master,
}

/// Every row.
pub fn all() -> impl Iterator<Item = &'static Route> {
    TABLES.iter().flat_map(|rows| rows.iter())
}

/// Whether a path of the management API, whichever the method, only shows what a key may see of itself and its like: LiteLLM's
/// `info_routes`.
pub fn is_info(path: &str) -> bool {
    let mut fitting = all().filter(|r| r.paths.iter().any(|p| fits(p, path))).peekable();
    fitting.peek().is_some() && fitting.all(|r| r.who == Who::Reader)
}

/// The paths that want a key and have no part in `{}`.
pub fn paths() -> Vec<&'static str> {
    all()
        .filter(|r| r.who != Who::Open)
        .flat_map(|r| r.paths.iter().copied())
        .filter(|p| !p.contains('{'))
        .collect()
}

/// The paths that want none.
pub fn open_paths() -> Vec<&'static str> {
    all()
        .filter(|r| r.who == Who::Open)
        .flat_map(|r| r.paths.iter().copied())
        .collect()
}

/// `{name}` stands for one segment.
fn fits(pattern: &str, path: &str) -> bool {
    let (mut want, mut got) = (pattern.split('/'), path.split('/'));
    loop {
        match (want.next(), got.next()) {
            (None, None) => return true,
            (Some(w), Some(g)) if w == g || (w.starts_with('{') && !g.is_empty()) => {}
            _ => return false,
        }
    }
}

/// The rows as a router: each is judged before its handler runs, and other methods are told which there
/// are.
pub(super) fn router() -> Router<Arc<Desk>> {
    let mut paths: BTreeMap<&'static str, (MethodRouter<Arc<Desk>>, Vec<Verb>)> = BTreeMap::new();
    for route in all() {
        for path in route.paths {
            let judge = move |request: Request, next: Next| rights::judge(route, request, next);
            let handler = (route.handler)(route.verb.filter()).layer(middleware::from_fn(judge));
            let (methods, verbs) = paths.entry(path).or_default();
            *methods = std::mem::take(methods).merge(handler);
            verbs.push(route.verb);
        }
    }
    let mut router = Router::new();
    for (path, (methods, verbs)) in paths {
        let allowed = allowed(verbs);
        let refuse = move |method: Method, uri: Uri| {
            let stopped = error::not_taken(&allowed, &method, &uri);
            async move { stopped }
        };
        router = router.route(path, methods.fallback(refuse));
    }
    router.fallback(error::unknown_route)
}

/// The `allow` header for a path.
fn allowed(mut verbs: Vec<Verb>) -> String {
    verbs.sort_unstable();
    let names = verbs.iter().map(|v| match v {
        Verb::Get => "GET, HEAD",
        other => other.as_str(),
    });
    names.collect::<Vec<_>>().join(", ")
}

/// `GET /routes`, in LiteLLM's shape: model calls and management.
async fn listed() -> Json<Value> {
    let calls = Endpoint::ALL.iter().map(|e| {
        json!({"path": format!("/v1{}", e.path()), "methods": ["POST"], "name": "model call", "endpoint": e.path()})
    });
    let models = ["/v1/models", "/v1/models/{model_id}"]
        .map(|p| json!({"path": p, "methods": ["GET"], "name": "models", "endpoint": "/models"}));
    let management = all().flat_map(|r| {
        r.paths.iter().map(|path| {
            json!({"path": path, "methods": [r.verb.as_str()], "name": r.group, "endpoint": r.summary})
        })
    });
    let routes: Vec<Value> = calls.chain(models).chain(management).collect();
    Json(json!({"routes": routes}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn rows_are_whole_and_there_once() {
        let mut seen = BTreeSet::new();
        for route in all() {
            let name = route.paths.first().copied().unwrap_or_default();
            assert!(
                !route.summary.is_empty() && !route.summary.ends_with('.'),
                "{name}"
            );
            for path in route.paths {
                assert!(path.starts_with('/'), "{path}");
                assert!(seen.insert((path, route.verb)), "{path} stands there twice");
            }
            let mut names = BTreeSet::new();
            for field in route.fields() {
                assert!(names.insert(field.name), "{name}: {} twice", field.name);
            }
        }
        drop(router());
    }

    #[test]
    fn patterns_fit_whole_paths() {
        assert!(fits("/key/{key}/regenerate", "/key/sk-a/regenerate"));
        assert!(!fits("/key/{key}/regenerate", "/key//regenerate"));
        assert!(!fits("/key/info", "/key/info/x"));
        assert!(is_info("/key/info"));
        assert!(!is_info("/key/generate"));
    }
}
