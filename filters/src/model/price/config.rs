//! Prices an operator writes into the config, laid over the table's. Refuses a negative price and one that is
//! not a number; ignores every field that is not a price, so that it can read a whole `litellm_params`.

use std::fmt;

use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Price;
use super::rate::{Meter, Rate, ServiceTier, parse_field};
use crate::model::money::{Femto, MoneyError};

/// A price field that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct PriceError {
    /// The field as it was written.
    pub field: String,
    pub reason: MoneyError,
}

/// LiteLLM's cost fields (`input_cost_per_token`, `output_cost_per_second`, `tiered_pricing` …) as found in
/// `litellm_params` or `model_info`. Values are dollars per unit, as numbers or numeric strings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PriceOverride {
    rates: Vec<Rate>,
}

impl PriceOverride {
    /// Reads the cost fields among these; the others, and those that are null, are passed over.
    pub fn from_fields<'a>(
        fields: impl IntoIterator<Item = (&'a str, &'a Value)>,
    ) -> Result<PriceOverride, PriceError> {
        let mut found = PriceOverride::default();
        for (field, value) in fields {
            found.take(field, value)?;
        }
        Ok(found)
    }

    pub fn is_empty(&self) -> bool {
        self.rates.is_empty()
    }

    /// The price that counts: these fields over `base`, the table's. `None` if neither prices anything.
    ///
    /// Naming a price for input or output also lays aside the table's rates that stand for it under a
    /// condition (long prompts, service tiers, cache, audio): an operator who writes "input costs 0" means all
    /// of it, unless the finer price is written too.
    pub fn over(&self, base: Option<&Price>) -> Option<Price> {
        let base = base.map(Price::rates).unwrap_or_default();
        let laid_aside = |meter: Meter| {
            self.rates.iter().any(|own| {
                own.above == 0
                    && own.tier == ServiceTier::Standard
                    && (own.meter == meter || own.meter.dependants().contains(&meter))
            })
        };
        let kept = base.iter().filter(|rate| !laid_aside(rate.meter));
        let price = Price::new(kept.chain(&self.rates).copied());
        (!price.is_empty()).then_some(price)
    }

    /// Lays `other` over these fields; used for `litellm_params` over `model_info`.
    pub fn extend(&mut self, other: &PriceOverride) {
        self.rates.extend_from_slice(&other.rates);
    }

    fn take(&mut self, field: &str, value: &Value) -> Result<(), PriceError> {
        if field == "tiered_pricing" {
            return self.take_steps(value);
        }
        let Some((meter, above, tier)) = parse_field(field) else {
            return Ok(());
        };
        if let Some(price) = parse_price(field, value)? {
            self.rates.push(Rate {
                meter,
                above,
                tier,
                price,
            });
        }
        Ok(())
    }

    /// `tiered_pricing: [{range: [from, to], input_cost_per_token: …}]`: the whole call is priced by the step
    /// that its prompt falls into.
    fn take_steps(&mut self, value: &Value) -> Result<(), PriceError> {
        /// More steps than this are a mistake.
        const MOST_STEPS: usize = 64;
        let steps = value.as_array().map(Vec::as_slice).unwrap_or_default();
        for step in steps.iter().take(MOST_STEPS).filter_map(Value::as_object) {
            let from = step
                .get("range")
                .and_then(|range| range.get(0))
                .and_then(Value::as_f64);
            let Some(from) = from.filter(|from| (0.0..=f64::from(u32::MAX)).contains(from)) else {
                continue;
            };
            for (field, value) in step {
                let Some((meter, 0, tier)) = parse_field(field) else {
                    continue;
                };
                if let Some(price) = parse_price(field, value)? {
                    self.rates.push(Rate {
                        meter,
                        above: from as u32,
                        tier,
                        price,
                    });
                }
            }
        }
        Ok(())
    }
}

fn parse_price(field: &str, value: &Value) -> Result<Option<Femto>, PriceError> {
    let parsed = match value {
        Value::Null => return Ok(None),
        Value::Number(number) => number.to_string().parse(),
        Value::String(text) => text.parse(),
        _ => Err(MoneyError::NotANumber),
    };
    parsed.map(Some).map_err(|reason| PriceError {
        field: field.to_owned(),
        reason,
    })
}

impl<'de> Deserialize<'de> for PriceOverride {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PriceOverride, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

impl Serialize for PriceOverride {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.rates.iter().map(|rate| (rate.field(), rate.price)))
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = PriceOverride;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map with cost fields")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PriceOverride, A::Error> {
        let mut found = PriceOverride::default();
        while let Some(field) = map.next_key::<String>()? {
            if field != "tiered_pricing" && parse_field(&field).is_none() {
                map.next_value::<de::IgnoredAny>()?;
                continue;
            }
            let value: Value = map.next_value()?;
            found.take(&field, &value).map_err(de::Error::custom)?;
        }
        Ok(found)
    }
}
