//! What a person or a coding agent finds at `/` and `/llms.txt`: what this is, and where to go on. Served only
//! where no lane of the config has the path.

use filters::contract::{Answer, Refusal};
use serde_json::json;

const LINKS: [(&str, &str); 6] = [
    ("/v1/models", "models (needs a key)"),
    ("/openapi.json", "the API's description, OpenAPI 3.1"),
    ("/routes", "every path"),
    ("/health", "alive, and which version"),
    ("/health/readiness", "ready, database included"),
    ("/llms.txt", "a few words for coding agents"),
];

/// The page at a path; `accept` is the client's header.
pub fn page(path: &str, accept: Option<&str>) -> Option<Answer> {
    let (kind, body) = match path {
        "/" if accept.is_some_and(|a| a.contains("application/json") && !a.contains("text/html")) => {
            ("application/json", root())
        }
        "/" => ("text/html; charset=utf-8", html()),
        "/llms.txt" => ("text/plain; charset=utf-8", llms()),
        _ => return None,
    };
    Some(Answer {
        status: 200,
        headers: vec![
            ("content-type", kind.into()),
            (
                "content-security-policy",
                "default-src 'none'; style-src 'unsafe-inline'".into(),
            ),
            ("x-content-type-options", "nosniff".into()),
        ],
        body: body.into(),
    })
}

/// What any other path gets. Most who come here have pasted a whole address where a base URL belongs.
pub fn not_here(path: &str) -> Refusal {
    let twice = ["/chat/completions/", "/v1/v1/", "/responses/", "/embeddings/"];
    let what = if path == "/ui" || path.starts_with("/ui/") {
        "There is no admin UI here yet: `tollkeeper key`, `usage` and `logs` show what one would, and /openapi.json \
         describes the management API."
    } else if twice.iter().any(|part| path.contains(part)) {
        "There is nothing at this path: a client appends it to its base URL, which has to end with /v1."
    } else {
        "There is nothing at this path. The API is at /v1: /v1/models, /v1/chat/completions, …"
    };
    Refusal::new(404, "invalid_request_error", what).code("not_found")
}

fn root() -> String {
    let links: serde_json::Map<_, _> = LINKS
        .iter()
        .map(|(path, what)| (path.to_string(), json!(what)))
        .collect();
    json!({
        "name": "Tollkeeper",
        "version": env!("CARGO_PKG_VERSION"),
        "openai_base": "/v1",
        "links": links,
    })
    .to_string()
}

fn html() -> String {
    let links: String = LINKS
        .iter()
        .map(|(path, what)| format!("<li><a href=\"{path}\">{path}</a> {what}</li>\n"))
        .collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<title>Tollkeeper</title>\n<style>body{{font:1rem/1.5 system-ui;max-width:40rem;\
         margin:3rem auto;padding:0 1rem;color-scheme:light dark}}</style>\n<h1>Tollkeeper {}</h1>\n<p>The edge and the \
         gate in front of every model. Point an OpenAI client at <code>/v1</code> of this address and give it a \
         key. No key yet? Whoever runs this makes one: <code>tollkeeper key create --name you</code>.</p>\n<ul>\n{links}</ul>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    )
}

fn llms() -> String {
    let links: String = LINKS
        .iter()
        .map(|(path, what)| format!("- [{path}]({path}): {what}\n"))
        .collect();
    format!(
        "# Tollkeeper\n\n> A gateway for language models: OpenAI's API under /v1 for every model behind it, and LiteLLM's \
         management API (/key, /user, /team, /model, /spend).\n\nSend `Authorization: Bearer sk-...` with every call; a \
         key is made by `POST /key/generate` with an admin's key, or by `tollkeeper key create` where this runs. \
         `GET /v1/models` lists the models that the key may call; chats go to `POST /v1/chat/completions`. Errors are OpenAI's: `{{\"error\": {{\"message\", \
         \"type\", \"param\", \"code\"}}}}`.\n\n## Where to go on\n\n{links}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gets_what_it_reads() {
        let kind = |path, accept| page(path, accept).map(|a| a.headers[0].1.clone());
        assert_eq!(kind("/", Some("application/json")).unwrap(), "application/json");
        let browser = Some("text/html,application/xhtml+xml,application/json;q=0.9,*/*;q=0.8");
        assert!(kind("/", browser).unwrap().starts_with("text/html"));
        assert!(kind("/", None).unwrap().starts_with("text/html"));
        assert!(kind("/llms.txt", None).unwrap().starts_with("text/plain"));
        assert!(page("/nothing", None).is_none());
        for (path, word) in [
            ("/nothing", "The API is at /v1"),
            ("/v1/chat/completions/chat/completions", "has to end with /v1"),
            ("/v1/v1/models", "has to end with /v1"),
            ("/ui/login", "no admin UI"),
            ("/uix", "The API is at /v1"),
        ] {
            assert!(not_here(path).message.contains(word), "{path}");
        }
        let root: serde_json::Value =
            serde_json::from_slice(&page("/", Some("application/json")).unwrap().body).unwrap();
        assert_eq!(root["openai_base"], "/v1");
    }
}
