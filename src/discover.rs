//! Finds model servers on this machine when there is no config: by their answer, not by their port. When it is done
//! again is the reload's.

use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// For a list of models, and for what kind of server it is. Where nobody listens the answer is there at once.
const PATIENCE: Duration = Duration::from_secs(1);
const MAX_ANSWER: usize = 1 << 20;

/// Where model servers listen by default.
const PORTS: [u16; 5] = [11434, 8080, 8081, 8000, 1234];

/// A server that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub kind: &'static str,
    pub port: u16,
    /// The models it offers, as it names them.
    pub models: Vec<String>,
}

/// Asks all ports at once. Loopback only.
pub async fn servers() -> Vec<Server> {
    let probes = PORTS.map(|port| tokio::spawn(probe(port)));
    let mut found = Vec::new();
    for p in probes {
        if let Ok(Some(server)) = p.await {
            found.push(server);
        }
    }
    found
}

async fn probe(port: u16) -> Option<Server> {
    let within = |path| tokio::time::timeout(PATIENCE, get(port, path));
    let models = ids(&within("/v1/models").await.ok()??)?;
    // One that is too busy to say what it is serves all the same.
    let kind = tokio::time::timeout(PATIENCE, kind(port)).await;
    Some(Server {
        kind: kind.unwrap_or("OpenAI-compatible server"),
        port,
        models,
    })
}

/// What kind of server it is: each has a page of its own.
async fn kind(port: u16) -> &'static str {
    let (version, running, props) = tokio::join!(
        get(port, "/api/version"),
        get(port, "/running"),
        get(port, "/props")
    );
    let vllm = get(port, "/version").await;
    if version.as_ref().is_some_and(|v| v.get("version").is_some()) {
        "Ollama"
    } else if running.as_ref().is_some_and(|v| v.get("running").is_some()) {
        "llama-swap"
    } else if props
        .as_ref()
        .is_some_and(|v| v.get("default_generation_settings").is_some())
    {
        "llama.cpp"
    } else if vllm.as_ref().is_some_and(|v| v.get("version").is_some()) {
        "vLLM"
    } else if port == 1234 {
        "LM Studio"
    } else {
        "OpenAI-compatible server"
    }
}

fn ids(models: &Value) -> Option<Vec<String>> {
    let data = models.get("data")?.as_array()?;
    Some(
        data.iter()
            .take(256)
            .filter_map(|m| m.get("id")?.as_str().map(Into::into))
            .collect(),
    )
}

/// A GET without ceremony: this runs before anything else stands, against this machine only.
async fn get(port: u16, path: &str) -> Option<Value> {
    let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .await
        .ok()?;
    let request =
        format!("GET {path} HTTP/1.0\r\nHost: localhost:{port}\r\nAccept: application/json\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream
        .take(MAX_ANSWER as u64)
        .read_to_end(&mut answer)
        .await
        .ok()?;
    let end = memchr::memmem::find(&answer, b"\r\n\r\n")?;
    let head = std::str::from_utf8(answer.get(..end)?).ok()?;
    let ok = head.split(' ').nth(1) == Some("200");
    let body = answer.get(end + 4..)?;
    // Some servers answer HTTP/1.0 in chunks all the same; the JSON then stands between the lines.
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { dechunk(body)? } else { body.to_vec() };
    ok.then(|| serde_json::from_slice(&body).ok()).flatten()
}

fn dechunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let line = memchr::memmem::find(rest, b"\r\n")?;
        let size = std::str::from_utf8(rest.get(..line)?).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(out);
        }
        let data = rest.get(line + 2..)?;
        out.extend_from_slice(data.get(..size)?);
        rest = data.get(size + 2..)?;
    }
}

/// Whether there is a model among them that is none of `names`.
pub fn is_new<'a>(found: &[Server], names: impl Iterator<Item = &'a str>) -> bool {
    let names: std::collections::BTreeSet<&str> = names.collect();
    let mut models = found.iter().flat_map(|server| &server.models);
    models.any(|model| !names.contains(model.as_str()))
}

/// The config that makes what was found callable under the names it goes by.
pub fn config(servers: &[Server], openai_key: bool) -> String {
    let mut models = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for s in servers {
        for m in s.models.iter().filter(|m| seen.insert((*m).clone())) {
            models.push(serde_json::json!({
                "model_name": m,
                "litellm_params": {
                    "model": format!("openai/{m}"),
                    "api_base": format!("http://127.0.0.1:{}/v1", s.port),
                    "api_key": "none",
                },
            }));
        }
    }
    if openai_key {
        models.push(serde_json::json!({"model_name": "openai/*", "litellm_params": {"model": "openai/*"}}));
    }
    // JSON is YAML.
    serde_json::json!({ "model_list": models }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_put_together() {
        assert_eq!(
            dechunk(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n").unwrap(),
            b"abcde"
        );
        assert_eq!(dechunk(b"ff\r\nabc"), None);
        assert_eq!(dechunk(b"zz\r\n"), None);
    }

    #[test]
    fn what_is_found_can_be_called() {
        let servers = [
            Server {
                kind: "Ollama",
                port: 11434,
                models: vec!["a:1".into(), "b".into()],
            },
            Server {
                kind: "llama.cpp",
                port: 8080,
                models: vec!["b".into()],
            },
        ];
        let text = config(&servers, true);
        let loaded = crate::conf::load::load_text("found", &text, &crate::conf::Env::default()).unwrap();
        let names: Vec<_> = loaded.conf.models.iter().map(|m| m.model_name.as_str()).collect();
        assert_eq!(names, ["a:1", "b", "openai/*"]);
        assert_eq!(loaded.conf.models[0].params.upstream_model, "a:1");
        assert!(
            !is_new(&servers, ["b", "a:1", "c"].into_iter()),
            "one that went stays"
        );
        assert!(is_new(&servers, ["b", "c"].into_iter()));
        assert!(!is_new(&[], [].into_iter()));
    }
}
