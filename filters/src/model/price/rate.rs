//! What can be charged for, and what one unit of it costs under which conditions. Knows LiteLLM's field names.

use crate::model::money::Femto;

/// One kind of thing that is counted and charged for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Meter {
    Input,
    Output,
    CacheRead,
    CacheCreation,
    CacheCreation1h,
    Reasoning,
    InputAudioToken,
    OutputAudioToken,
    InputImageToken,
    OutputImageToken,
    InputCharacter,
    OutputCharacter,
    InputSecond,
    OutputSecond,
    InputImage,
    OutputImage,
    InputPixel,
    OutputPixel,
    Query,
    Request,
}

/// Meter, its name in our table, its field in LiteLLM's cost map and config.
pub(super) const METERS: [(Meter, &str, &str); 20] = [
    (Meter::Input, "in", "input_cost_per_token"),
    (Meter::Output, "out", "output_cost_per_token"),
    (Meter::CacheRead, "read", "cache_read_input_token_cost"),
    (Meter::CacheCreation, "write", "cache_creation_input_token_cost"),
    (
        Meter::CacheCreation1h,
        "write1h",
        "cache_creation_input_token_cost_above_1hr",
    ),
    (Meter::Reasoning, "think", "output_cost_per_reasoning_token"),
    (Meter::InputAudioToken, "in_audio", "input_cost_per_audio_token"),
    (
        Meter::OutputAudioToken,
        "out_audio",
        "output_cost_per_audio_token",
    ),
    (Meter::InputImageToken, "in_picture", "input_cost_per_image_token"),
    (
        Meter::OutputImageToken,
        "out_picture",
        "output_cost_per_image_token",
    ),
    (Meter::InputCharacter, "in_char", "input_cost_per_character"),
    (Meter::OutputCharacter, "out_char", "output_cost_per_character"),
    (Meter::InputSecond, "in_second", "input_cost_per_second"),
    (Meter::OutputSecond, "out_second", "output_cost_per_second"),
    (Meter::InputImage, "in_image", "input_cost_per_image"),
    (Meter::OutputImage, "out_image", "output_cost_per_image"),
    (Meter::InputPixel, "in_pixel", "input_cost_per_pixel"),
    (Meter::OutputPixel, "out_pixel", "output_cost_per_pixel"),
    (Meter::Query, "query", "input_cost_per_query"),
    (Meter::Request, "request", "input_cost_per_request"),
];

impl Meter {
    /// The meters that fall back to this one when they have no price of their own.
    pub(super) fn dependants(self) -> &'static [Meter] {
        match self {
            Meter::Input => &[
                Meter::CacheRead,
                Meter::CacheCreation,
                Meter::CacheCreation1h,
                Meter::InputAudioToken,
                Meter::InputImageToken,
            ],
            Meter::Output => &[Meter::Reasoning, Meter::OutputAudioToken, Meter::OutputImageToken],
            Meter::CacheCreation => &[Meter::CacheCreation1h],
            _ => &[],
        }
    }

    /// LiteLLM's field for the standard price of this meter.
    pub fn field(self) -> &'static str {
        METERS.get(self as usize).map_or("", |(_, _, field)| field)
    }
}

/// How urgently the provider was asked to work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ServiceTier {
    #[default]
    Standard,
    Priority,
    Flex,
    Batches,
    Ultrafast,
    Balanced,
}

const TIERS: [(ServiceTier, &str); 5] = [
    (ServiceTier::Priority, "priority"),
    (ServiceTier::Flex, "flex"),
    (ServiceTier::Batches, "batches"),
    (ServiceTier::Ultrafast, "ultrafast"),
    (ServiceTier::Balanced, "balanced"),
];

impl ServiceTier {
    /// The standard one first.
    pub const ALL: [ServiceTier; 6] = [
        ServiceTier::Standard,
        ServiceTier::Priority,
        ServiceTier::Flex,
        ServiceTier::Batches,
        ServiceTier::Ultrafast,
        ServiceTier::Balanced,
    ];

    /// The tier named by a `service_tier` field; `auto`, `default` and whatever is unknown are standard.
    pub fn parse(name: &str) -> ServiceTier {
        let name = name.trim();
        let alias = match name.to_ascii_lowercase().as_str() {
            "fast" => "priority",
            "batch" => "batches",
            _ => "",
        };
        let wanted = if alias.is_empty() { name } else { alias };
        let known = TIERS.iter().find(|(_, tier)| tier.eq_ignore_ascii_case(wanted));
        known.map_or(ServiceTier::Standard, |(tier, _)| *tier)
    }

    fn suffix(self) -> &'static str {
        TIERS
            .iter()
            .find(|(tier, _)| *tier == self)
            .map_or("", |(_, name)| name)
    }
}

/// One price and when it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate {
    pub meter: Meter,
    /// Holds when the whole prompt has more tokens than this; 0 holds always.
    pub above: u32,
    pub tier: ServiceTier,
    /// Dollars per unit of the meter, in femto-dollars.
    pub price: Femto,
}

impl Rate {
    /// LiteLLM's name for this price, as `input_cost_per_token_above_200k_tokens_priority`.
    pub fn field(&self) -> String {
        let mut field = self.meter.field().to_owned();
        if self.above > 0 && self.above.is_multiple_of(1000) {
            field.push_str(&format!("_above_{}k_tokens", self.above / 1000));
        } else if self.above > 0 {
            field.push_str(&format!("_above_{}_tokens", self.above));
        }
        if self.tier != ServiceTier::Standard {
            field.push('_');
            field.push_str(self.tier.suffix());
        }
        field
    }

    /// Reads one word of the table: `in>200000/priority=4.5e-6`.
    pub(super) fn parse_word(word: &str) -> Option<Rate> {
        let (name, price) = word.split_once('=')?;
        let (name, tier) = match name.split_once('/') {
            Some((name, tier)) => (name, TIERS.iter().find(|(_, known)| *known == tier)?.0),
            None => (name, ServiceTier::Standard),
        };
        let (code, above) = match name.split_once('>') {
            Some((code, above)) => (code, above.parse().ok()?),
            None => (name, 0),
        };
        let meter = METERS.iter().find(|(_, known, _)| *known == code)?.0;
        Some(Rate {
            meter,
            above,
            tier,
            price: price.parse().ok()?,
        })
    }
}

/// Takes a LiteLLM cost field apart; `None` if it is not one we charge by.
pub(super) fn parse_field(field: &str) -> Option<(Meter, u32, ServiceTier)> {
    let mut name = field;
    let mut tier = ServiceTier::Standard;
    for (known, suffix) in TIERS {
        if let Some(rest) = name.strip_suffix(suffix).and_then(|rest| rest.strip_suffix('_')) {
            (name, tier) = (rest, known);
            break;
        }
    }
    let mut above = 0;
    if let Some((rest, tokens)) = name
        .strip_suffix("_tokens")
        .and_then(|threshold| threshold.rsplit_once("_above_"))
    {
        let (digits, scale) = match tokens.strip_suffix('k') {
            Some(digits) => (digits, 1000),
            None => (tokens, 1),
        };
        above = digits.parse::<u32>().ok()?.checked_mul(scale)?;
        name = rest;
    }
    let name = match name {
        "input_cost_per_token_cache_hit" => "cache_read_input_token_cost",
        other => other,
    };
    let meter = METERS.iter().find(|(_, _, known)| *known == name)?.0;
    Some((meter, above, tier))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(field: &str, expected: Option<(Meter, u32, ServiceTier)>) {
        assert_eq!(parse_field(field), expected, "{field}");
        if let Some((meter, above, tier)) = expected {
            let rate = Rate {
                meter,
                above,
                tier,
                price: Femto(1),
            };
            assert_eq!(rate.field(), field);
        }
    }

    #[test]
    fn field_names_come_apart_and_together() {
        use ServiceTier::{Batches, Flex, Priority, Standard};
        check("input_cost_per_token", Some((Meter::Input, 0, Standard)));
        check(
            "output_cost_per_token_above_200k_tokens",
            Some((Meter::Output, 200_000, Standard)),
        );
        check(
            "input_cost_per_token_above_272k_tokens_flex",
            Some((Meter::Input, 272_000, Flex)),
        );
        check(
            "cache_creation_input_token_cost_above_1hr",
            Some((Meter::CacheCreation1h, 0, Standard)),
        );
        check(
            "cache_creation_input_token_cost_above_1hr_above_200k_tokens",
            Some((Meter::CacheCreation1h, 200_000, Standard)),
        );
        check(
            "cache_read_input_token_cost_priority",
            Some((Meter::CacheRead, 0, Priority)),
        );
        check("output_cost_per_token_batches", Some((Meter::Output, 0, Batches)));
        check(
            "input_cost_per_token_above_199999_tokens",
            Some((Meter::Input, 199_999, Standard)),
        );
        check("input_cost_per_token_above_99999999999k_tokens", None);
        check("input_cost_per_flower", None);
        check("rpm", None);
        check("", None);
    }

    #[test]
    fn every_meter_stands_at_its_own_place() {
        for (at, (meter, _, field)) in METERS.iter().enumerate() {
            assert_eq!(*meter as usize, at);
            assert_eq!(meter.field(), *field);
        }
    }

    #[test]
    fn service_tiers_are_read_as_providers_write_them() {
        assert_eq!(ServiceTier::parse("Priority"), ServiceTier::Priority);
        assert_eq!(ServiceTier::parse("fast"), ServiceTier::Priority);
        assert_eq!(ServiceTier::parse("batch"), ServiceTier::Batches);
        assert_eq!(ServiceTier::parse("auto"), ServiceTier::Standard);
        assert_eq!(ServiceTier::parse("scale"), ServiceTier::Standard);
    }
}
