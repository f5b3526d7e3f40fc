//! The table of known models, built into the binary. It is searched as text: rows are sorted by name, so a
//! look-up is a bisection that reads a dozen lines and parses one. Nothing is unpacked or kept on the heap.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::listing::{COLUMNS, Listing};

/// Written by `scripts/update-prices.py`.
static EMBEDDED: Prices = Prices {
    text: Cow::Borrowed(include_str!("../../../../conf/prices.tsv")),
};

/// Why a table was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    #[error("line {0}: not a row of {COLUMNS} tab-separated columns with known prices and flags")]
    BadRow(usize),
    #[error("line {0}: names must be sorted and appear once")]
    NotSorted(usize),
    #[error("no rows")]
    Empty,
}

/// A table of models.
#[derive(Debug)]
pub struct Prices {
    text: Cow<'static, str>,
}

impl Prices {
    /// The table this binary was built with.
    pub fn embedded() -> &'static Prices {
        &EMBEDDED
    }

    /// A table from elsewhere, every row of it checked.
    pub fn parse(text: String) -> Result<Prices, TableError> {
        let mut last: Option<&str> = None;
        for (at, line) in text.lines().enumerate() {
            // Comments stand before the first row only: the search must not land on one.
            if last.is_none() && line.starts_with('#') {
                continue;
            }
            if Listing::parse(line).is_none() {
                return Err(TableError::BadRow(at + 1));
            }
            let name = row_name(line);
            if last.is_some_and(|last| last >= name) {
                return Err(TableError::NotSorted(at + 1));
            }
            last = Some(name);
        }
        if last.is_none() {
            return Err(TableError::Empty);
        }
        Ok(Prices {
            text: Cow::Owned(text),
        })
    }

    /// A line of the header: `version`, `date`, `source`, `licence`.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.text
            .lines()
            .take_while(|line| line.starts_with('#'))
            .find_map(|line| line.strip_prefix("# ")?.strip_prefix(name)?.strip_prefix(": "))
    }

    /// Every model name in the table, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.rows().lines().map(row_name)
    }

    /// The row of exactly this name.
    pub fn get(&self, name: &str) -> Option<Listing> {
        Listing::parse(self.row(name)?)
    }

    /// The row for a model of a provider, by LiteLLM's look-up names in turn: `<provider>/<model>`, the bare
    /// model, the model without its provider prefix, then without its fine-tune, region or date suffix. A bare
    /// name counts only if the row is of that provider. `provider` may be empty: unknown. Letter case counts.
    pub fn find(&self, provider: &str, model: &str) -> Option<Listing> {
        let bare = if provider.is_empty() {
            model
        } else {
            model
                .strip_prefix(provider)
                .and_then(|rest| rest.strip_prefix('/'))
                .unwrap_or(model)
        };
        if let Some(listing) = self.find_bare(provider, bare) {
            return Some(listing);
        }
        // With no provider given the model's own prefix may be one.
        if provider.is_empty()
            && let Some((prefix, rest)) = model.split_once('/')
            && !prefix.is_empty()
        {
            return self.find(prefix, rest);
        }
        shortened(provider, bare)
            .into_iter()
            .find_map(|short| self.find_bare(provider, &short))
    }

    /// As [`Prices::find`] for an image of a size (`1024x1024`) and a quality, which have rows of their own;
    /// without one, the model's.
    pub fn find_image(&self, provider: &str, model: &str, size: &str, quality: &str) -> Option<Listing> {
        let bare = model
            .strip_prefix(provider)
            .and_then(|rest| rest.strip_prefix('/'))
            .unwrap_or(model);
        let size = size.replacen('x', "-x-", 1);
        let named = |name: String| self.find_bare(provider, &name);
        (!size.is_empty() && !quality.is_empty())
            .then(|| named(format!("{quality}/{size}/{bare}")))
            .flatten()
            .or_else(|| {
                (!size.is_empty())
                    .then(|| named(format!("{size}/{bare}")))
                    .flatten()
            })
            .or_else(|| self.find(provider, model))
    }

    fn find_bare(&self, provider: &str, model: &str) -> Option<Listing> {
        if !provider.is_empty()
            && let Some(listing) = self.get(&format!("{provider}/{model}"))
        {
            return Some(listing);
        }
        self.get(model)
            .filter(|listing| same_provider(provider, &listing.provider))
    }

    /// The text without the header.
    fn rows(&self) -> &str {
        let mut rest: &str = &self.text;
        while rest.starts_with('#') {
            rest = rest.split_once('\n').map_or("", |(_, after)| after);
        }
        rest
    }

    fn row(&self, name: &str) -> Option<&str> {
        let mut rows = self.rows();
        while !rows.is_empty() {
            // Bytes, not characters: the middle may fall inside a letter, a line break may not.
            let bytes = rows.as_bytes();
            let middle = bytes.len() / 2;
            let start = memchr::memrchr(b'\n', bytes.get(..middle)?).map_or(0, |at| at + 1);
            let end = memchr::memchr(b'\n', bytes.get(start..)?).map_or(bytes.len(), |at| start + at);
            let line = rows.get(start..end)?;
            match name.as_bytes().cmp(row_name(line).as_bytes()) {
                Ordering::Equal => return Some(line),
                Ordering::Less => rows = rows.get(..start)?,
                Ordering::Greater => rows = rows.get(end + 1..).unwrap_or_default(),
            }
        }
        None
    }
}

fn row_name(line: &str) -> &str {
    line.split_once('\t').map_or(line, |(name, _)| name)
}

/// Whether a row of one provider prices a model asked from another. Some providers go by several names in the
/// table, some only pass on what others price.
fn same_provider(asked: &str, listed: &str) -> bool {
    match asked {
        "" | "litellm_proxy" | "github" => true,
        _ if asked == listed || listed.is_empty() => true,
        "vertex_ai" => listed.starts_with("vertex_ai"),
        "fireworks_ai" => listed.starts_with("fireworks_ai"),
        "bedrock" | "bedrock_converse" => listed.starts_with("bedrock"),
        "azure_ai" => matches!(listed, "azure" | "openai"),
        "azure" => listed == "azure_text",
        "openai" => listed == "text-completion-openai",
        "cohere" | "cohere_chat" => listed.starts_with("cohere"),
        _ => false,
    }
}

/// Names under which a variant of a model may be listed, nearest first.
fn shortened(provider: &str, model: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut add = |name: &str| {
        if !name.is_empty() && name != model {
            names.push(name.to_owned());
        }
    };
    // A fine-tune costs what fine-tunes of its base cost: ft:gpt-4o:org::id is listed as ft:gpt-4o.
    if let Some(base) = model.strip_prefix("ft:").and_then(|rest| rest.split(':').next()) {
        add(&format!("ft:{base}"));
    }
    if provider.starts_with("bedrock") {
        let route = ["converse/", "invoke/"]
            .into_iter()
            .find_map(|route| model.strip_prefix(route));
        let plain = route.unwrap_or(model);
        add(plain);
        let plain = plain.rsplit('/').next().unwrap_or(plain);
        add(plain);
        if let Some((region, rest)) = plain.split_once('.')
            && matches!(
                region,
                "us" | "eu" | "apac" | "jp" | "au" | "us-gov" | "global" | "ca" | "sa"
            )
        {
            add(rest);
        }
    }
    if let Some((base, _)) = model.split_once('@') {
        add(base);
    }
    add(without_date(model));
    names
}

/// Cuts `-2026-01-31`, `-20260131` or a three-digit version off the end of a name.
fn without_date(model: &str) -> &str {
    let shapes: [&[usize]; 3] = [&[4, 2, 2], &[8], &[3]];
    for shape in shapes {
        let mut rest = model;
        let fits = shape.iter().rev().all(|digits| match rest.rsplit_once('-') {
            Some((before, last)) if last.len() == *digits && last.bytes().all(|b| b.is_ascii_digit()) => {
                rest = before;
                true
            }
            _ => false,
        });
        if fits {
            return rest;
        }
    }
    model
}

#[cfg(test)]
mod tests {
    use super::super::listing::CAPABILITIES;
    use super::super::{Capability, Meter, Mode, ServiceTier};
    use super::*;
    use crate::model::money::Femto;

    #[test]
    fn every_embedded_row_is_found_and_parses() {
        let prices = Prices::embedded();
        let checked = Prices::parse(prices.text.clone().into_owned()).unwrap();
        assert!(checked.names().count() > 4_000);
        for name in prices.names() {
            assert_eq!(
                prices.get(name).map(|listing| listing.name).as_deref(),
                Some(name)
            );
        }
    }

    #[test]
    fn the_legend_in_the_table_is_ours() {
        let prices = Prices::embedded();
        let meters: Vec<String> = super::super::rate::METERS
            .iter()
            .map(|(_, code, field)| format!("{code}={field}"))
            .collect();
        assert_eq!(prices.header("meters"), Some(meters.join(" ").as_str()));
        let flags: Vec<String> = CAPABILITIES
            .iter()
            .map(|(_, letter, field)| format!("{letter}={field}"))
            .collect();
        assert_eq!(prices.header("flags"), Some(flags.join(" ").as_str()));
        assert!(prices.header("version").is_some());
        assert!(
            prices
                .header("licence")
                .is_some_and(|licence| licence.contains("MIT"))
        );
        for (at, (capability, _, field)) in CAPABILITIES.iter().enumerate() {
            assert_eq!(*capability as usize, at, "{field}");
        }
    }

    #[track_caller]
    fn check(provider: &str, model: &str, name: Option<&str>) {
        let found = Prices::embedded().find(provider, model);
        assert_eq!(
            found.map(|listing| listing.name).as_deref(),
            name,
            "{provider} {model}"
        );
    }

    #[test]
    fn models_are_found_by_litellms_names() {
        check("openai", "gpt-4o", Some("gpt-4o"));
        check("openai", "openai/gpt-4o", Some("gpt-4o"));
        check("", "openai/gpt-4o", Some("gpt-4o"));
        check("", "gpt-4o", Some("gpt-4o"));
        check("azure", "gpt-4o", Some("azure/gpt-4o"));
        check("", "azure/gpt-4o", Some("azure/gpt-4o"));
        check("anthropic", "claude-sonnet-4-5", Some("claude-sonnet-4-5"));
        check("gemini", "gemini-2.5-pro", Some("gemini/gemini-2.5-pro"));
        check("vertex_ai", "gemini-2.5-pro", Some("gemini-2.5-pro"));
        check("groq", "whisper-large-v3", Some("groq/whisper-large-v3"));
        check("openai", "tts-1", Some("tts-1"));
        check("openai", "gpt-4o-2031-12-24", Some("gpt-4o"));
        check(
            "openai",
            "ft:gpt-4o-2024-08-06:org::id",
            Some("ft:gpt-4o-2024-08-06"),
        );
        check("openai", "GPT-4o", None);
        check("groq", "gpt-4o", None);
        check("openai", "my-own-model", None);
        check("openai", "", None);
        check("", "/", None);
        check("", "", None);
        check("", &"/".repeat(1_000_000), None);
    }

    #[test]
    fn images_are_found_by_size_and_quality() {
        let prices = Prices::embedded();
        let found = prices
            .find_image("openai", "gpt-image-1", "1024x1024", "high")
            .unwrap();
        assert_eq!(found.name, "high/1024-x-1024/gpt-image-1");
        let found = prices.find_image("openai", "gpt-image-1", "7x7", "odd").unwrap();
        assert_eq!(found.name, "gpt-image-1");
    }

    #[test]
    fn a_listing_tells_limits_and_capabilities() {
        let listing = Prices::embedded().get("gpt-4o").unwrap();
        assert_eq!(listing.mode, Mode::Chat);
        assert_eq!(listing.provider, "openai");
        assert_eq!(listing.max_input_tokens, Some(128_000));
        assert_eq!(listing.max_output_tokens, Some(16_384));
        assert!(listing.supports(Capability::Vision));
        assert!(!listing.supports(Capability::AudioInput));
        assert!(
            listing
                .capabilities()
                .any(|capability| capability.field() == "supports_tool_choice")
        );
        assert_eq!(
            listing.price.rate(Meter::Input, 1, ServiceTier::Standard),
            Some(Femto(2_500_000_000)),
            "2.5 dollars per million"
        );
    }

    #[test]
    fn a_bad_table_is_refused_with_its_line() {
        let row = |name: &str, rates: &str| format!("{name}\topenai\tchat\t\t\t\t\t{rates}\n");
        let parse = |text: String| Prices::parse(text).map(|_| ());
        assert_eq!(parse(String::new()), Err(TableError::Empty));
        assert_eq!(parse("# only\n# comments\n".to_owned()), Err(TableError::Empty));
        assert_eq!(parse(row("a", "in=-1")), Err(TableError::BadRow(1)));
        assert_eq!(parse(row("a", "gold=1")), Err(TableError::BadRow(1)));
        assert_eq!(parse(row("a", "in=1") + "# late\n"), Err(TableError::BadRow(2)));
        assert_eq!(
            parse(row("b", "in=1") + &row("a", "in=1")),
            Err(TableError::NotSorted(2))
        );
        assert_eq!(
            parse(row("a", "in=1") + &row("a", "in=1")),
            Err(TableError::NotSorted(2))
        );
        let table =
            Prices::parse(row("a", "in=1") + &row("é", "in=2") + row("ö", "out=3").trim_end()).unwrap();
        assert!(["a", "é", "ö"].iter().all(|name| table.get(name).is_some()));
        assert!(
            ["", "0", "b", "z", "ø"]
                .iter()
                .all(|name| table.get(name).is_none())
        );
    }
}
