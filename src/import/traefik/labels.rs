//! What a compose file says of containers, and Traefik's labels on them, sorted into routers, services and
//! middlewares. What they mean is decided in [`super::plan`].

use serde_yaml::Value;
use std::collections::BTreeMap;

/// Most containers, and most labels of one.
const MOST: usize = 2_000;

/// One service of the compose file.
#[derive(Debug, Default)]
pub struct Container {
    pub name: String,
    pub image: String,
    /// Names under which others on its networks reach it.
    pub aliases: Vec<String>,
    /// Ports that it says it listens on.
    pub ports: Vec<u16>,
    /// In lower case, but for header names.
    pub labels: BTreeMap<String, String>,
    pub command: Vec<String>,
}

/// A router, service or middleware: its fields by name, such as `loadbalancer.server.port`.
pub type Fields = BTreeMap<String, String>;

/// Traefik's labels of one container.
#[derive(Debug, Default)]
pub struct Labels {
    /// None = not said.
    pub enable: Option<bool>,
    pub routers: BTreeMap<String, Fields>,
    pub services: BTreeMap<String, Fields>,
    pub middlewares: BTreeMap<String, Fields>,
    /// Labels of other kinds.
    pub others: Vec<String>,
}

/// Reads a compose file. `variable` is the environment that compose would fill in. `Err` is a sentence.
pub fn containers(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Vec<Container>, String> {
    let mut file: Value = serde_yaml::from_str(text).map_err(|e| format!("this is no YAML: {e}"))?;
    file.apply_merge().map_err(|e| format!("this is no YAML: {e}"))?;
    let Some(services) = file.get("services").and_then(Value::as_mapping) else {
        return Err("this is no compose file: it has no `services`".into());
    };
    if services.len() > MOST {
        return Err(format!("it has more than {MOST} services"));
    }
    let mut all = Vec::new();
    for (name, said) in services {
        let Some(name) = name.as_str() else { continue };
        let texts = |key: &str| list(said.get(key), variable);
        let mut container = Container {
            name: name.to_string(),
            image: texts("image").into_iter().next().unwrap_or_default(),
            aliases: texts("container_name"),
            command: words(said.get("command"), variable),
            ..Container::default()
        };
        container.aliases.extend(texts("hostname"));
        if let Some(networks) = said.get("networks").and_then(Value::as_mapping) {
            let aliases = networks.values().map(|n| list(n.get("aliases"), variable));
            container.aliases.extend(aliases.flatten());
        }
        let ports = texts("expose").into_iter().chain(texts("ports"));
        container.ports = ports.filter_map(|p| inner_port(&p)).collect();
        let deploy = said.get("deploy").and_then(|d| d.get("labels"));
        for labels in [said.get("labels"), deploy].into_iter().flatten() {
            take_labels(&mut container, labels, variable);
        }
        all.push(container);
    }
    Ok(all)
}

/// Both forms: `- "name=value"`, and `name: value`.
fn take_labels(container: &mut Container, labels: &Value, variable: &dyn Fn(&str) -> Option<String>) {
    let mut put = |name: &str, value: String| {
        if container.labels.len() < MOST {
            let name = fill_in(name, variable).to_ascii_lowercase();
            container.labels.insert(name, value);
        }
    };
    match labels {
        Value::Sequence(items) => {
            for item in items.iter().filter_map(Value::as_str) {
                let (name, value) = item.split_once('=').unwrap_or((item, ""));
                put(name.trim(), fill_in(value, variable));
            }
        }
        Value::Mapping(entries) => {
            for (name, value) in entries {
                if let (Some(name), Some(value)) = (name.as_str(), scalar(value)) {
                    put(name.trim(), fill_in(&value, variable));
                }
            }
        }
        _ => {}
    }
}

impl Container {
    /// Traefik's labels among the container's.
    pub fn traefik(&self) -> Labels {
        let mut labels = Labels::default();
        for (name, value) in &self.labels {
            let Some(name) = name.strip_prefix("traefik.") else {
                continue;
            };
            let parts: Vec<&str> = name.splitn(4, '.').collect();
            match parts.as_slice() {
                ["enable"] => labels.enable = Some(value.trim().eq_ignore_ascii_case("true")),
                // Which network Traefik takes; ours is the one we are on.
                ["docker" | "swarm", "network" | "lbswarm"] => {}
                [
                    "http",
                    kind @ ("routers" | "services" | "middlewares"),
                    name,
                    field,
                ] => {
                    let of_kind = match *kind {
                        "routers" => &mut labels.routers,
                        "services" => &mut labels.services,
                        _ => &mut labels.middlewares,
                    };
                    let fields = of_kind.entry(name.to_string()).or_default();
                    fields.insert(field.to_string(), value.trim().to_string());
                }
                _ => labels.others.push(format!("traefik.{name}")),
            }
        }
        labels
    }
}

/// A text, a number or a list of these.
fn list(value: Option<&Value>, variable: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let items = match value {
        Some(Value::Sequence(items)) => items.as_slice(),
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    items
        .iter()
        .filter_map(|item| match item {
            // The long form of a port.
            Value::Mapping(_) => item.get("target").and_then(scalar),
            other => scalar(other),
        })
        .map(|text| fill_in(&text, variable))
        .collect()
}

/// A command: a list, or one line.
fn words(value: Option<&Value>, variable: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    match value {
        Some(Value::String(line)) => fill_in(line, variable)
            .split_whitespace()
            .map(|w| w.trim_matches(['"', '\'']).to_string())
            .collect(),
        other => list(other, variable),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(n) => Some(n.to_string()),
        Value::Bool(b) => Some(b.to_string()),
        _ => None,
    }
}

/// `127.0.0.1:8080:80/tcp` is port 80 inside.
fn inner_port(text: &str) -> Option<u16> {
    let (port, kind) = text.split_once('/').unwrap_or((text, "tcp"));
    if kind != "tcp" {
        return None;
    }
    port.rsplit(':').next()?.parse().ok().filter(|p| *p > 0)
}

/// Compose's `$NAME`, `${NAME}`, `${NAME:-default}` and `$$`. What is not set stays as it is written, so that
/// it shows.
fn fill_in(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((inside, after)) = after.strip_prefix('{').and_then(|a| a.split_once('}')) {
            let end = inside.find(|c| !is_name(c)).unwrap_or(inside.len());
            let (name, or_else) = inside.split_at(end);
            let default = or_else.strip_prefix(":-").or_else(|| or_else.strip_prefix('-'));
            match variable(name).or_else(|| default.map(str::to_string)) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("${{{inside}}}")),
            }
            rest = after;
        } else {
            let end = after.find(|c| !is_name(c)).unwrap_or(after.len());
            let (name, after) = after.split_at(end);
            match variable(name).filter(|_| !name.is_empty()) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("${name}")),
            }
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_labels_and_variables() {
        let text = r#"
x-common: &common
  traefik.enable: true
services:
  a:
    image: chat:1
    container_name: the-chat
    ports: ["127.0.0.1:8080:80", "53:53/udp", {target: 90}]
    networks: {web: {aliases: [chat-alias]}}
    labels:
      <<: *common
      traefik.http.routers.A.rule: Host(`${NAME}.test`)
      traefik.http.services.a.loadbalancer.server.port: 3000
  b:
    labels:
      - "traefik.enable=false"
      - "traefik.http.routers.b.rule=Host(`${MISSING:-b.test}`) && Path(`/$$x$$`) || Host(`${MISSING}`)"
      - traefik.tcp.routers.b.rule=x
      - other=1
"#;
        let of = |name: &str| (name == "NAME").then(|| "chat".to_string());
        let all = containers(text, &of).unwrap();
        let (a, b) = (all[0].traefik(), all[1].traefik());
        assert_eq!((a.enable, b.enable), (Some(true), Some(false)));
        assert_eq!(a.routers["a"]["rule"], "Host(`chat.test`)");
        assert_eq!(a.services["a"]["loadbalancer.server.port"], "3000");
        assert_eq!(all[0].ports, [80, 90]);
        assert_eq!(all[0].aliases, ["the-chat", "chat-alias"]);
        let rule = "Host(`b.test`) && Path(`/$x$`) || Host(`${MISSING}`)";
        assert_eq!(b.routers["b"]["rule"], rule);
        assert_eq!(b.others, ["traefik.tcp.routers.b.rule"]);
        assert!(containers("a: 1", &of).is_err() && containers("a: [", &of).is_err());
    }
}
