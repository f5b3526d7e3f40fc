//! The house rules that a compiler does not know: which floor may name what, and how files open.

use std::fs;
use std::path::{Path, PathBuf};

/// Longer files are looked at for a seam.
const LONG_FILE: usize = 600;

/// Files that are longer for a reason.
const LONG_FOR_A_REASON: &[(&str, &str)] = &[
    ("src/proxy/call.rs", "one attempt loop, read from top to bottom"),
    ("filters/src/wire/multipart.rs", "a third of it is its tests"),
    (
        "src/admin/organizations.rs",
        "one object: its fields, its calls, its rights",
    ),
];

/// A source file: its path below the root, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The text without its unit tests and its comments.
    fn code(&self) -> String {
        let end = self.text.find("#[cfg(test)]").unwrap_or(self.text.len());
        let lines = self.text[..end].lines();
        let code: Vec<&str> = lines.filter(|l| !l.trim_start().starts_with("//")).collect();
        code.join("\n")
    }

    fn is_test(&self) -> bool {
        self.path.contains("/tests") || self.path.contains("/benches/")
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = ["src", "filters", "tests/it"].map(|d| root.join(d)).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
                found.push(Source { path, text });
            }
        }
    }
    assert!(found.len() > 100, "the sources are found");
    found
}

/// Every place outside `allowed` (prefixes of paths) whose code holds one of `words`.
fn strays(sources: &[Source], within: &str, words: &[&str], allowed: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources
        .iter()
        .filter(|s| s.path.starts_with(within) && !s.is_test())
    {
        if allowed.iter().any(|a| source.path.starts_with(a)) {
            continue;
        }
        let code = source.code();
        for word in words.iter().filter(|w| code.contains(**w)) {
            found.push(format!("{} names {word:?}", source.path));
        }
    }
    found
}

fn none(found: Vec<String>, why: &str) {
    assert!(found.is_empty(), "{why}:\n  {}", found.join("\n  "));
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = sources()
        .iter()
        .filter(|s| !s.text.starts_with("//! "))
        .map(|s| s.path.clone())
        .collect();
    none(silent, "a file opens with `//!` and what it is for");
}

#[test]
fn long_files_have_a_reason() {
    let sources = sources();
    let long = sources
        .iter()
        .filter(|s| {
            !s.path.starts_with("tests/") && !s.path.contains("/tests/") && s.text.lines().count() > LONG_FILE
        })
        .filter(|s| !LONG_FOR_A_REASON.iter().any(|(path, _)| *path == s.path))
        .map(|s| format!("{}: {} lines", s.path, s.text.lines().count()))
        .collect();
    none(
        long,
        "look for the seam in these files, or write down why they are long",
    );
}

#[test]
fn filters_know_no_host() {
    let host = [
        "pingora",
        "tokio",
        "rusqlite",
        "deadpool",
        "axum",
        "std::fs",
        "std::net::Tcp",
        "std::net::Udp",
        "std::net::ToSocketAddrs",
        "std::process",
        "std::env",
        "std::thread",
        "reqwest",
        "hyper",
    ];
    none(
        strays(&sources(), "filters/src/", &host, &["filters/src/testkit.rs"]),
        "filters do no I/O except through a port",
    );
}

#[test]
fn only_the_road_names_pingora() {
    let words = [
        "pingora::",
        "pingora_core::",
        "pingora_proxy::",
        "pingora_http::",
        "pingora_error::",
    ];
    none(
        strays(
            &sources(),
            "src/",
            &words,
            &["src/proxy/", "src/server/", "src/tls/"],
        ),
        "only the road, its certificates and the server name a Pingora type",
    );
}

#[test]
fn only_the_store_writes_sql() {
    let words = [
        "INSERT INTO",
        "SELECT ",
        "UPDATE tk_",
        "DELETE FROM",
        "CREATE TABLE",
        "tokio_postgres::",
        "rusqlite::",
        "deadpool_postgres::",
    ];
    none(
        strays(&sources(), "src/", &words, &["src/store/"]),
        "only the store writes SQL",
    );
}

#[test]
fn only_the_config_reads_the_environment() {
    let words = ["env::var", "env::vars"];
    none(
        strays(&sources(), "src/", &words, &["src/conf/load.rs"]),
        "only conf/load.rs reads the environment",
    );
}

#[test]
fn only_one_place_renders_errors() {
    let words = ["{\"error\"", "json!({\"error\":", "error_event(message"];
    none(
        strays(&sources(), "src/", &words, &["src/proxy/respond.rs"]),
        "only proxy/respond.rs writes an error to a client",
    );
}

#[test]
fn the_road_does_not_reach_past_the_handles_it_was_given() {
    let sources = sources();
    let upwards = [
        (
            "src/proxy/",
            &[
                "crate::admin",
                "crate::server",
                "crate::cli",
                "crate::store",
                "crate::ledger",
            ][..],
        ),
        ("src/admin/", &["crate::proxy", "crate::server", "crate::cli"]),
        (
            "src/store/",
            &[
                "crate::proxy",
                "crate::server",
                "crate::cli",
                "crate::admin",
                "crate::ledger",
                "crate::conf",
            ],
        ),
        (
            "src/ledger/",
            &[
                "crate::proxy",
                "crate::server",
                "crate::cli",
                "crate::admin",
                "crate::conf",
            ],
        ),
        (
            "src/conf/",
            &[
                "crate::proxy",
                "crate::server",
                "crate::cli",
                "crate::admin",
                "crate::ledger",
                "crate::store",
            ],
        ),
        (
            "src/shared/",
            &["crate::proxy", "crate::server", "crate::cli", "crate::admin"],
        ),
    ];
    for (floor, above) in upwards {
        none(strays(&sources, floor, above, &[]), "an arrow never points up");
    }
}
