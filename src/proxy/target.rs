//! Where a stream lane sends, and what becomes of the path on the way there.

use super::paths;
use super::services::Service;
use filters::model::deployment::Base;
use std::sync::Arc;

/// Where a stream lane sends.
pub struct Target {
    pub to: To,
    /// The first of these that the path begins with is taken off its front.
    pub strip: Vec<String>,
    /// Put there after that, before the base's own path.
    pub add: String,
    /// The target's own query, put before the client's.
    pub query: Option<String>,
}

/// One place, or several that are all the same.
pub enum To {
    Place(Base),
    Service(Arc<Service>),
}

impl Target {
    /// What is taken off the front of a path.
    pub fn stripped(&self, path: &str) -> &str {
        let fits = |p: &&String| path == p.as_str() || paths::below(path, p).is_some();
        self.strip.iter().find(fits).map_or("", String::as_str)
    }

    /// Path and query at `base` for a client's path and query.
    pub fn path(&self, base: &Base, path: &str, query: Option<&str>) -> String {
        let rest = path.strip_prefix(self.stripped(path)).unwrap_or(path);
        let mut out = [&base.path, &self.add, rest].concat();
        if out.is_empty() {
            out.push('/');
        }
        let query: Vec<&str> = [self.query.as_deref(), query]
            .into_iter()
            .flatten()
            .filter(|q| !q.is_empty())
            .collect();
        if !query.is_empty() {
            out.push('?');
            out.push_str(&query.join("&"));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_keep_the_rest_of_the_path() {
        let check = |url: &str, add: &str, own: Option<&str>, path: &str, query: Option<&str>, want: &str| {
            let base = Base::parse(url).unwrap();
            let t = Target {
                to: To::Place(base.clone()),
                strip: vec!["/tts/x".into(), "/tts".into()],
                add: add.into(),
                query: own.map(Into::into),
            };
            assert_eq!(t.path(&base, path, query), want, "{url} {path}");
        };
        check(
            "http://x:1",
            "",
            None,
            "/tts/v1/audio/speech",
            None,
            "/v1/audio/speech",
        );
        check("http://x:1/base", "", None, "/tts", Some("a=1"), "/base?a=1");
        check("http://x:1", "", Some("k=v"), "/tts", Some("a=1"), "/?k=v&a=1");
        check("http://x:1", "/app", None, "/tts/x/y", None, "/app/y");
        check("http://x:1/base", "/app", None, "/ttsx", None, "/base/app/ttsx");
    }
}
