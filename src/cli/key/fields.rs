//! What a key is made or changed to, as options. The API judges the values; only what it could not even
//! be asked is refused here.

use crate::cli::client::Failure;
use crate::cli::show::clean;
use clap::Args;
use filters::model::money::Nanos;
use serde_json::{Map, Value, json};

/// The word that takes something away.
const NONE: &str = "none";

#[derive(Args)]
pub struct Fields {
    /// The key's alias.
    #[arg(long, value_name = "ALIAS")]
    name: Option<String>,
    /// Models it may call, comma-separated; `all` = every one.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    models: Option<Vec<String>>,
    /// Dollars it may spend.
    #[arg(long, value_name = "DOLLARS", allow_negative_numbers = true)]
    budget: Option<String>,
    /// After how long the budget starts anew, such as 30d.
    #[arg(long, value_name = "DURATION", allow_negative_numbers = true)]
    budget_duration: Option<String>,
    /// How long the key lives from now on, such as 30d, 12h or 1mo.
    #[arg(long, value_name = "DURATION", allow_negative_numbers = true)]
    duration: Option<String>,
    /// Requests per minute.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    rpm: Option<String>,
    /// Tokens per minute.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    tpm: Option<String>,
    /// Requests at the same time.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    parallel: Option<String>,
    /// The user whom it belongs to.
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// The team that it belongs to.
    #[arg(long, value_name = "ID")]
    team: Option<String>,
    /// A tag for its calls; may be given several times.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Something to remember with it; may be given several times.
    #[arg(long = "metadata", value_name = "NAME=VALUE")]
    metadata: Vec<String>,
}

impl Fields {
    /// The body of a new key.
    pub fn create(&self) -> Result<Map<String, Value>, Failure> {
        let mut body = self.common()?;
        if let Some(duration) = self.duration.as_deref().filter(|d| *d != NONE) {
            body.insert("duration".into(), json!(duration));
        }
        let metadata = self.metadata(Map::new())?;
        if !metadata.is_empty() {
            body.insert("metadata".into(), Value::Object(metadata));
        }
        // A new key has nothing that could be taken away.
        body.retain(|_, value| !value.is_null());
        Ok(body)
    }

    /// What changes of the key `row`.
    pub fn update(&self, row: &Value) -> Result<Map<String, Value>, Failure> {
        let mut body = self.common()?;
        if let Some(duration) = &self.duration {
            let duration = if duration == NONE { "-1" } else { duration };
            body.insert("duration".into(), json!(duration));
        }
        if !self.metadata.is_empty() {
            let there = row.get("metadata").and_then(Value::as_object).cloned();
            let metadata = self.metadata(there.unwrap_or_default())?;
            body.insert("metadata".into(), Value::Object(metadata));
        }
        if body.is_empty() {
            return Err(Failure::usage(
                "nothing was named that should change; see `tollkeeper key update --help`",
            ));
        }
        Ok(body)
    }

    /// The models that are named, but for words that mean a set of them.
    pub fn models(&self) -> Vec<&str> {
        const WORDS: [&str; 4] = ["all", "all-team-models", "all-proxy-models", "no-default-models"];
        let named = self.models.iter().flatten().map(|m| m.trim());
        named.filter(|m| !m.is_empty() && !WORDS.contains(m)).collect()
    }

    fn common(&self) -> Result<Map<String, Value>, Failure> {
        let mut body = Map::new();
        let texts = [
            ("key_alias", &self.name),
            ("budget_duration", &self.budget_duration),
            ("user_id", &self.user),
            ("team_id", &self.team),
        ];
        for (field, text) in texts {
            if let Some(text) = text {
                let value = if text == NONE { Value::Null } else { json!(text) };
                body.insert(field.into(), value);
            }
        }
        let counts = [
            ("rpm_limit", "--rpm", &self.rpm),
            ("tpm_limit", "--tpm", &self.tpm),
            ("max_parallel_requests", "--parallel", &self.parallel),
        ];
        for (field, option, text) in counts {
            if let Some(text) = text {
                let value = match text.parse::<u64>() {
                    Ok(n) => json!(n),
                    Err(_) if text == NONE => Value::Null,
                    Err(_) => return Err(wrong(option, text, "a whole number, or none")),
                };
                body.insert(field.into(), value);
            }
        }
        if let Some(text) = &self.budget {
            let value = match text.trim_start_matches('$').parse::<Nanos>() {
                Ok(amount) => json!(amount),
                Err(_) if text == NONE => Value::Null,
                Err(e) => {
                    return Err(wrong(
                        "--budget",
                        text,
                        &format!("dollars, such as 50 or 0.25 ({e}), or none"),
                    ));
                }
            };
            body.insert("max_budget".into(), value);
        }
        if let Some(models) = &self.models {
            let models: Vec<&str> = models
                .iter()
                .map(|m| m.trim())
                .filter(|m| !m.is_empty())
                .collect();
            let models = if models == ["all"] { Vec::new() } else { models };
            body.insert("models".into(), json!(models));
        }
        match self.tags.as_slice() {
            [] => {}
            [tag] if tag == NONE => drop(body.insert("tags".into(), Value::Null)),
            tags => drop(body.insert("tags".into(), json!(tags))),
        }
        Ok(body)
    }

    /// `NAME=VALUE` is put in, `NAME=` is taken out.
    fn metadata(&self, mut there: Map<String, Value>) -> Result<Map<String, Value>, Failure> {
        for pair in &self.metadata {
            match pair.split_once('=') {
                Some((name, "")) if !name.is_empty() => drop(there.remove(name)),
                Some((name, value)) if !name.is_empty() => drop(there.insert(name.into(), json!(value))),
                _ => return Err(wrong("--metadata", pair, "NAME=VALUE")),
            }
        }
        Ok(there)
    }
}

fn wrong(option: &str, text: &str, expected: &str) -> Failure {
    Failure::usage(format!("{option} {}: this must be {expected}", clean(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        fields: Fields,
    }

    fn fields(line: &str) -> Fields {
        Alone::parse_from(["x"].into_iter().chain(line.split_whitespace())).fields
    }

    #[test]
    fn options_become_the_apis_fields() {
        let body = fields(
            "--name a --models m,n --budget $50.25 --budget-duration 30d --duration 1mo --rpm 60 --tpm 1000 \
             --parallel 2 --user u --team t --tag x --tag y --metadata k=v=w",
        )
        .create()
        .unwrap();
        assert_eq!(
            Value::Object(body),
            json!({
                "key_alias": "a", "budget_duration": "30d", "user_id": "u", "team_id": "t", "rpm_limit": 60,
                "tpm_limit": 1000, "max_parallel_requests": 2, "max_budget": 50.25, "models": ["m", "n"],
                "tags": ["x", "y"], "duration": "1mo", "metadata": {"k": "v=w"},
            })
        );
        assert!(
            fields("--budget none --duration none")
                .create()
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn an_update_changes_what_is_named() {
        let row = json!({"metadata": {"keep": 1, "go": 2}});
        let body = fields("--budget none --duration none --models all --metadata go= --metadata new=x")
            .update(&row)
            .unwrap();
        assert_eq!(
            Value::Object(body),
            json!({"max_budget": null, "models": [], "duration": "-1", "metadata": {"keep": 1, "new": "x"}})
        );
        assert_eq!(fields("").update(&row).unwrap_err().code, 2);
    }

    #[test]
    fn nonsense_is_refused_here() {
        for line in [
            "--rpm -1",
            "--budget much",
            "--rpm 1.5",
            "--parallel x",
            "--metadata novalue",
            "--metadata =v",
        ] {
            let failure = fields(line).create().unwrap_err();
            assert_eq!(failure.code, 2, "{line}: {}", failure.message);
        }
    }
}
