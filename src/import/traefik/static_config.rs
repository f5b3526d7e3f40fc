//! What Traefik's own container says on its command line: entry points, resolvers of certificates, and
//! whether containers are shown by default.

use super::labels::Container;
use std::collections::BTreeMap;

/// An entry point.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct EntryPoint {
    pub port: Option<u16>,
    pub tls: bool,
    /// The entry point that requests are sent on to.
    pub redirects_to: Option<String>,
    /// A resolver for every router here.
    pub resolver: Option<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    pub email: Option<String>,
    pub directory: Option<String>,
    pub by_dns: bool,
}

#[derive(Debug)]
pub struct Static {
    pub entry_points: BTreeMap<String, EntryPoint>,
    pub resolvers: BTreeMap<String, Resolver>,
    pub exposed_by_default: bool,
    /// Arguments of which nothing is taken.
    pub left: Vec<String>,
}

/// Arguments that say how Traefik runs, and nothing of what it serves.
const OWN_AFFAIRS: [&str; 12] = [
    "api",
    "log",
    "accesslog",
    "ping",
    "metrics",
    "global",
    "providers.docker",
    "providers.swarm",
    "tracing",
    "experimental",
    "serverstransport",
    "hostresolver",
];

pub fn read(containers: &[Container]) -> Static {
    let mut found = Static {
        entry_points: BTreeMap::new(),
        resolvers: BTreeMap::new(),
        exposed_by_default: true,
        left: Vec::new(),
    };
    let command = containers
        .iter()
        .filter(|c| is_traefik(c))
        .flat_map(|c| &c.command);
    for argument in command.filter(|a| a.starts_with("--")) {
        let (name, value) = argument.split_once('=').unwrap_or((argument, "true"));
        let name = name.trim_start_matches('-').to_ascii_lowercase();
        let value = value.trim_matches(['"', '\'']);
        let parts: Vec<&str> = name.splitn(3, '.').collect();
        let known = match parts.as_slice() {
            ["entrypoints", point, field] => {
                let point = found.entry_points.entry(point.to_string()).or_default();
                entry_point(point, field, value)
            }
            ["certificatesresolvers", resolver, field] => {
                let resolver = found.resolvers.entry(resolver.to_string()).or_default();
                acme(resolver, field, value)
            }
            ["providers", "docker", "exposedbydefault"] => {
                found.exposed_by_default = value != "false";
                true
            }
            _ => OWN_AFFAIRS
                .iter()
                .any(|own| name == *own || name.strip_prefix(own).is_some_and(|r| r.starts_with('.'))),
        };
        if !known {
            found.left.push(format!("Traefik's argument --{name}"));
        }
    }
    for (name, port) in [("web", 80), ("websecure", 443)] {
        let point = found.entry_points.entry(name.to_string()).or_default();
        point.port.get_or_insert(port);
    }
    found
}

/// Whether a container is Traefik itself.
pub fn is_traefik(container: &Container) -> bool {
    let image = container.image.rsplit('/').next().unwrap_or_default();
    image.split([':', '@']).next() == Some("traefik")
}

fn entry_point(point: &mut EntryPoint, field: &str, value: &str) -> bool {
    match field {
        "address" => {
            let address = value.split('/').next().unwrap_or_default();
            point.port = address.rsplit(':').next().and_then(|p| p.parse().ok());
            point.port.is_some()
        }
        "http.tls" => {
            point.tls = value == "true";
            true
        }
        "http.tls.certresolver" => {
            point.tls = true;
            point.resolver = Some(value.to_string());
            true
        }
        "http.redirections.entrypoint.to" => {
            point.redirects_to = Some(value.trim_start_matches(':').to_ascii_lowercase());
            true
        }
        "http.redirections.entrypoint.scheme" | "http.redirections.entrypoint.permanent" => true,
        _ => false,
    }
}

fn acme(resolver: &mut Resolver, field: &str, value: &str) -> bool {
    match field {
        "acme.email" => resolver.email = Some(value.to_string()),
        "acme.caserver" => resolver.directory = Some(value.to_string()),
        "acme.storage"
        | "acme.httpchallenge"
        | "acme.httpchallenge.entrypoint"
        | "acme.tlschallenge"
        | "acme.keytype" => {}
        _ if field.starts_with("acme.dnschallenge") => resolver.by_dns = true,
        _ => return false,
    }
    true
}
