//! Holds the manual against the config: each block of YAML that the pages show loads, and each key of LiteLLM's that does
//! nothing here is told of in the words of `check`.

use super::*;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every variable that the pages name, with a value that is one wherever it stands.
fn env() -> Env {
    [
        "LITELLM_MASTER_KEY",
        "ANTHROPIC_API_KEY",
        "MY_WEBHOOK",
        "MY_SLACK",
        "SLACK_WEBHOOK_URL",
        "WEBHOOK_URL",
        "LANGFUSE_PUBLIC_KEY",
        "LANGFUSE_SECRET_KEY",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    ]
    .map(|name| (name, "https://example.com"))
    .into_iter()
    .chain([("DATABASE_URL", "postgresql://u:p@db:5432/x")])
    .collect()
}

/// The blocks of YAML in a page, each as a whole config.
fn blocks(page: &str) -> Vec<String> {
    let blocks = page.split("\n```yaml\n").skip(1);
    let blocks = blocks.filter_map(|rest| rest.split("\n```").next());
    let whole = |block: &str| match block.starts_with(' ') {
        true => format!("tollkeeper:\n{block}\n"),
        false => format!("{block}\n"),
    };
    blocks.map(whole).collect()
}

#[test]
fn each_config_in_the_manual_loads() {
    let docs = fs::read_dir(root().join("docs")).unwrap();
    let mut pages: Vec<PathBuf> = docs.map(|entry| entry.unwrap().path()).collect();
    pages.extend(["README.md", "filters/README.md"].map(|page| root().join(page)));
    let env = env();
    let mut looked = 0;
    for page in pages {
        for block in blocks(&fs::read_to_string(&page).unwrap()) {
            looked += 1;
            if let Err(report) = load_text("block.yaml", &block, &env) {
                panic!("{}:\n{block}\n{}", page.display(), report.render(false));
            }
        }
    }
    assert!(looked >= 12, "only {looked} blocks were found");
}

/// A LiteLLM key that is known and does nothing is told of in the manual, in the words of `check`.
#[test]
fn the_manual_has_each_key_that_does_nothing() {
    let page = fs::read_to_string(root().join("docs/litellm-compat.md")).unwrap();
    let plain = page.replace('\n', " ");
    for (section, table) in [
        ("Sections", keys::TOP),
        ("model_list", keys::PARAMS),
        ("general_settings", keys::GENERAL),
        ("litellm_settings", keys::LITELLM),
        ("router_settings", keys::ROUTER),
    ] {
        let begin = page.find(&format!("\n## {section}\n")).unwrap();
        let rest = &page[begin + 1..];
        let part = &rest[..rest.find("\n## ").unwrap_or(rest.len())];
        for (key, fate) in table {
            assert!(part.contains(&format!("`{key}`")), "{section} tells of `{key}`");
            let (keys::Fate::Needless(why) | keys::Fate::Missing(why)) = fate;
            assert!(plain.contains(why), "{section}: `{key}`: {why}");
        }
    }
}
