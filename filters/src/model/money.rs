//! Money as integers. `Nanos` is what is billed and summed, `Femto` is what one unit of something costs.
//! Refuses floats that are not a number, and amounts it cannot hold; never sums floats.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

/// Decimal places of a [`Nanos`].
const NANO_PLACES: i32 = 9;
/// Decimal places of a [`Femto`].
const FEMTO_PLACES: i32 = 15;

/// Why an amount of money was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    #[error("not a decimal number of dollars")]
    NotANumber,
    #[error("must not be negative")]
    Negative,
    #[error("larger than can be counted")]
    TooLarge,
}

/// An amount in nano-dollars (1e-9 USD). Arithmetic saturates instead of wrapping, so a hostile number can
/// never turn a debt into a credit. Holds up to 9.2 thousand million dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub i64);

impl Nanos {
    pub const ZERO: Nanos = Nanos(0);
    pub const MAX: Nanos = Nanos(i64::MAX);

    /// Dollars as a float, rounded half away from zero to the nearest nano-dollar. The decimal a person would
    /// write is what counts, so `0.1` is exactly 100,000,000 nano-dollars.
    pub fn from_dollars_f64(dollars: f64) -> Result<Nanos, MoneyError> {
        if !dollars.is_finite() {
            return Err(MoneyError::NotANumber);
        }
        // Rust prints the shortest decimal that reads back as the same float: the noise stays behind.
        dollars.to_string().parse()
    }

    /// Dollars as the nearest float: for metrics and JSON, never for sums.
    pub fn to_dollars_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// A budget out of a request or a config: a JSON number or a numeric string, not negative.
    pub fn parse_budget(value: &Value) -> Result<Nanos, MoneyError> {
        let amount = match value {
            Value::Number(number) => number.to_string().parse::<Nanos>()?,
            Value::String(text) => text.parse::<Nanos>()?,
            _ => return Err(MoneyError::NotANumber),
        };
        amount.checked_not_negative()
    }

    /// Refuses an amount below zero.
    pub fn checked_not_negative(self) -> Result<Nanos, MoneyError> {
        if self.0 < 0 {
            Err(MoneyError::Negative)
        } else {
            Ok(self)
        }
    }

    pub fn saturating_add(self, other: Nanos) -> Nanos {
        Nanos(self.0.saturating_add(other.0))
    }

    pub fn saturating_sub(self, other: Nanos) -> Nanos {
        Nanos(self.0.saturating_sub(other.0))
    }
}

impl Add for Nanos {
    type Output = Nanos;
    fn add(self, other: Nanos) -> Nanos {
        self.saturating_add(other)
    }
}

impl Sub for Nanos {
    type Output = Nanos;
    fn sub(self, other: Nanos) -> Nanos {
        self.saturating_sub(other)
    }
}

impl Neg for Nanos {
    type Output = Nanos;
    fn neg(self) -> Nanos {
        Nanos(self.0.saturating_neg())
    }
}

impl AddAssign for Nanos {
    fn add_assign(&mut self, other: Nanos) {
        *self = *self + other;
    }
}

impl SubAssign for Nanos {
    fn sub_assign(&mut self, other: Nanos) {
        *self = *self - other;
    }
}

impl Sum for Nanos {
    fn sum<I: Iterator<Item = Nanos>>(amounts: I) -> Nanos {
        amounts.fold(Nanos::ZERO, Nanos::saturating_add)
    }
}

/// Plain decimal dollars, no exponent, no trailing zeros: `0.00051`, `17`, `-0.5`.
impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_decimal(f, self.0 < 0, u128::from(self.0.unsigned_abs()), NANO_PLACES)
    }
}

/// Reads decimal dollars: `0.00051`, `5.1e-4`, ` 17 `.
impl FromStr for Nanos {
    type Err = MoneyError;
    fn from_str(text: &str) -> Result<Nanos, MoneyError> {
        let (negative, magnitude) = parse_decimal(text, NANO_PLACES)?;
        let magnitude = i64::try_from(magnitude).map_err(|_| MoneyError::TooLarge)?;
        Ok(Nanos(if negative { -magnitude } else { magnitude }))
    }
}

/// A JSON number in dollars. Exact for up to 15 significant digits (a million dollars to the nano-dollar), the
/// nearest float above.
impl Serialize for Nanos {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Both operands are exact and division rounds once, so the shortest decimal printed is ours.
        serializer.serialize_f64(self.to_dollars_f64())
    }
}

impl<'de> Deserialize<'de> for Nanos {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Nanos, D::Error> {
        deserializer.deserialize_any(DollarsVisitor)
    }
}

struct DollarsVisitor;

impl Visitor<'_> for DollarsVisitor {
    type Value = Nanos;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an amount in dollars, as a number or a numeric string")
    }

    fn visit_f64<E: de::Error>(self, dollars: f64) -> Result<Nanos, E> {
        Nanos::from_dollars_f64(dollars).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, dollars: i64) -> Result<Nanos, E> {
        dollars
            .checked_mul(1_000_000_000)
            .map(Nanos)
            .ok_or_else(|| E::custom(MoneyError::TooLarge))
    }

    fn visit_u64<E: de::Error>(self, dollars: u64) -> Result<Nanos, E> {
        let dollars = i64::try_from(dollars).map_err(|_| E::custom(MoneyError::TooLarge))?;
        self.visit_i64(dollars)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Nanos, E> {
        text.parse().map_err(E::custom)
    }
}

/// The price of one unit (a token, a character, a second, an image) in femto-dollars (1e-15 USD).
///
/// Published token prices go down to 1e-11 dollars, and the finest figures in the table that are not float
/// noise have 15 decimals, so this unit holds them exactly; a u64 of it reaches 18,446 dollars per unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Femto(pub u64);

impl Femto {
    pub const ZERO: Femto = Femto(0);

    /// Dollars per unit as a float, by the decimal a person would write.
    pub fn from_dollars_f64(dollars: f64) -> Result<Femto, MoneyError> {
        if !dollars.is_finite() {
            return Err(MoneyError::NotANumber);
        }
        dollars.to_string().parse()
    }

    /// Dollars per unit as the nearest float, for showing.
    pub fn to_dollars_f64(self) -> f64 {
        self.0 as f64 / 1e15
    }
}

impl fmt::Display for Femto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_decimal(f, false, u128::from(self.0), FEMTO_PLACES)
    }
}

impl FromStr for Femto {
    type Err = MoneyError;
    fn from_str(text: &str) -> Result<Femto, MoneyError> {
        let (negative, magnitude) = parse_decimal(text, FEMTO_PLACES)?;
        if negative && magnitude != 0 {
            return Err(MoneyError::Negative);
        }
        u64::try_from(magnitude)
            .map(Femto)
            .map_err(|_| MoneyError::TooLarge)
    }
}

impl Serialize for Femto {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.to_dollars_f64())
    }
}

/// A sum of units times prices, rounded once, when it is turned into [`Nanos`].
///
/// Counted in thousandths of a femto-dollar so that milliseconds at a price per second need no rounding.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bill(u128);

impl Bill {
    /// Adds whole units at a price per unit.
    pub(crate) fn add(&mut self, units: u64, price: Femto) {
        self.add_thousandths(u128::from(units) * 1000, price);
    }

    /// Adds thousandths of a unit (milliseconds) at a price per unit (second).
    pub(crate) fn add_milli(&mut self, thousandths: u64, price: Femto) {
        self.add_thousandths(u128::from(thousandths), price);
    }

    fn add_thousandths(&mut self, thousandths: u128, price: Femto) {
        self.0 = self
            .0
            .saturating_add(thousandths.saturating_mul(u128::from(price.0)));
    }

    /// The sum in nano-dollars, rounded half up.
    pub(crate) fn round(self) -> Nanos {
        const PER_NANO: u128 = 1_000_000_000;
        let whole = self.0 / PER_NANO;
        let rounded = if self.0 % PER_NANO >= PER_NANO / 2 {
            whole + 1
        } else {
            whole
        };
        Nanos(i64::try_from(rounded).unwrap_or(i64::MAX))
    }
}

/// Sign and magnitude of a decimal number in units of 10^-places, rounded half up.
fn parse_decimal(text: &str, places: i32) -> Result<(bool, u128), MoneyError> {
    /// Longer spellings than this are not amounts.
    const LONGEST: usize = 400;
    let text = text.trim();
    if text.is_empty() || text.len() > LONGEST {
        return Err(MoneyError::NotANumber);
    }
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, text.get(1..).unwrap_or_default()),
        Some(b'+') => (false, text.get(1..).unwrap_or_default()),
        _ => (false, text),
    };
    let (digits, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => {
            let exponent = unsigned.get(at + 1..).unwrap_or_default();
            (
                unsigned.get(..at).unwrap_or_default(),
                exponent.parse::<i16>().map_err(|_| MoneyError::NotANumber)?,
            )
        }
        None => (unsigned, 0),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return Err(MoneyError::NotANumber);
    }
    if !whole
        .bytes()
        .chain(fraction.bytes())
        .all(|byte| byte.is_ascii_digit())
    {
        return Err(MoneyError::NotANumber);
    }

    // The digit at `position` is worth 10^position of the unit; what lies below the unit only rounds.
    let mut position = i32::from(exponent) + places + whole.len() as i32;
    let mut magnitude: u128 = 0;
    for byte in whole.bytes().chain(fraction.bytes()) {
        position -= 1;
        let digit = u128::from(byte - b'0');
        if position >= 0 {
            magnitude = magnitude
                .checked_mul(10)
                .and_then(|m| m.checked_add(digit))
                .ok_or(MoneyError::TooLarge)?;
        } else if position == -1 && digit >= 5 {
            magnitude = magnitude.checked_add(1).ok_or(MoneyError::TooLarge)?;
        }
    }
    if magnitude != 0 && position > 0 {
        let scale = u32::try_from(position)
            .ok()
            .and_then(|zeros| 10u128.checked_pow(zeros));
        magnitude = scale
            .and_then(|scale| magnitude.checked_mul(scale))
            .ok_or(MoneyError::TooLarge)?;
    }
    Ok((negative, magnitude))
}

fn write_decimal(f: &mut fmt::Formatter<'_>, negative: bool, magnitude: u128, places: i32) -> fmt::Result {
    let places = places.unsigned_abs();
    let unit = 10u128.pow(places);
    let sign = if negative { "-" } else { "" };
    let (whole, fraction) = match (u64::try_from(magnitude), u64::try_from(unit)) {
        // Nearly always, and much quicker.
        (Ok(magnitude), Ok(unit)) => {
            let (whole, fraction) = (magnitude / unit, magnitude % unit);
            if f.width().is_none() && f.precision().is_none() {
                return write_plain(f, sign, whole, fraction, places as usize);
            }
            (u128::from(whole), u128::from(fraction))
        }
        _ => (magnitude / unit, magnitude % unit),
    };
    if fraction == 0 {
        return f.pad(&format!("{sign}{whole}"));
    }
    let fraction = format!("{fraction:0width$}", width = places as usize);
    f.pad(&format!("{sign}{whole}.{}", fraction.trim_end_matches('0')))
}

/// The same piece by piece: every priced call shows its cost.
fn write_plain(
    f: &mut fmt::Formatter<'_>,
    sign: &str,
    whole: u64,
    mut fraction: u64,
    mut places: usize,
) -> fmt::Result {
    f.write_str(sign)?;
    f.write_str(itoa::Buffer::new().format(whole))?;
    if fraction == 0 {
        return Ok(());
    }
    while fraction.is_multiple_of(10) {
        fraction /= 10;
        places -= 1;
    }
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(fraction);
    f.write_str(".")?;
    for _ in digits.len()..places {
        f.write_str("0")?;
    }
    f.write_str(digits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, nanos: i64, shown: &str) {
        let amount: Nanos = text.parse().unwrap();
        assert_eq!(amount, Nanos(nanos), "{text}");
        assert_eq!(amount.to_string(), shown, "{text}");
    }

    #[test]
    fn decimals_are_read_exactly() {
        check("0.00051", 510_000, "0.00051");
        check("5.1e-4", 510_000, "0.00051");
        check("17", 17_000_000_000, "17");
        check(" 1E2 ", 100_000_000_000, "100");
        check("-.5", -500_000_000, "-0.5");
        check("1.", 1_000_000_000, "1");
        check("0.0000000005", 1, "0.000000001");
        check("0.00000000049999", 0, "0");
        check("0e300", 0, "0");
        check("1e-300", 0, "0");
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in [
            "", "-", ".", "NaN", "inf", "1e", "1e99999", "1,5", "0x10", "1_000", "1e5e5", "١",
        ] {
            assert_eq!(text.parse::<Nanos>(), Err(MoneyError::NotANumber), "{text}");
        }
        assert_eq!("1e30".parse::<Nanos>(), Err(MoneyError::TooLarge));
        assert_eq!("1e300".parse::<Nanos>(), Err(MoneyError::TooLarge));
        assert_eq!(Nanos::from_dollars_f64(f64::NAN), Err(MoneyError::NotANumber));
        assert_eq!(
            Nanos::from_dollars_f64(f64::INFINITY),
            Err(MoneyError::NotANumber)
        );
        assert_eq!(Nanos::from_dollars_f64(1e300), Err(MoneyError::TooLarge));
        assert_eq!("-1".parse::<Femto>(), Err(MoneyError::Negative));
        assert_eq!("20000".parse::<Femto>(), Err(MoneyError::TooLarge));
    }

    #[test]
    fn budgets_are_numbers_or_numeric_strings_and_not_negative() {
        assert_eq!(
            Nanos::parse_budget(&serde_json::json!(0.1)),
            Ok(Nanos(100_000_000))
        );
        assert_eq!(
            Nanos::parse_budget(&serde_json::json!("12.5")),
            Ok(Nanos(12_500_000_000))
        );
        assert_eq!(
            Nanos::parse_budget(&serde_json::json!(3)),
            Ok(Nanos(3_000_000_000))
        );
        assert_eq!(
            Nanos::parse_budget(&serde_json::json!(-1)),
            Err(MoneyError::Negative)
        );
        assert_eq!(
            Nanos::parse_budget(&serde_json::json!("NaN")),
            Err(MoneyError::NotANumber)
        );
        assert_eq!(
            Nanos::parse_budget(&serde_json::json!([1])),
            Err(MoneyError::NotANumber)
        );
    }

    #[test]
    fn json_shows_no_float_noise() {
        assert_eq!(serde_json::to_string(&Nanos(510_000)).unwrap(), "0.00051");
        assert_eq!(serde_json::to_string(&Nanos(300_000_000)).unwrap(), "0.3");
        assert_eq!(serde_json::to_string(&Nanos(17_000_000_000)).unwrap(), "17.0");
        assert_eq!(
            serde_json::from_str::<Nanos>("\"0.3\"").unwrap(),
            Nanos(300_000_000)
        );
        assert!(serde_json::from_str::<Nanos>("true").is_err());
        assert!(serde_json::from_str::<Nanos>("1e30").is_err());
        assert!(serde_json::from_str::<Nanos>("10000000000").is_err());
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Nanos::MAX + Nanos(1), Nanos::MAX);
        assert_eq!(Nanos(i64::MIN) - Nanos(1), Nanos(i64::MIN));
        assert_eq!(-Nanos(i64::MIN), Nanos::MAX);
        assert_eq!([Nanos::MAX, Nanos(5)].into_iter().sum::<Nanos>(), Nanos::MAX);
        let mut bill = Bill::default();
        bill.add(u64::MAX, Femto(u64::MAX));
        bill.add(u64::MAX, Femto(u64::MAX));
        assert_eq!(bill.round(), Nanos::MAX);
    }

    #[test]
    fn a_bill_rounds_half_up_once() {
        let mut bill = Bill::default();
        bill.add(1, Femto(250_000));
        bill.add(1, Femto(249_999));
        assert_eq!(bill.round(), Nanos(0));
        bill.add_milli(1000, Femto(1));
        assert_eq!(bill.round(), Nanos(1));
    }

    #[test]
    fn prices_are_exact_to_the_femto_dollar() {
        assert_eq!("1.59263611e-7".parse::<Femto>().unwrap(), Femto(159_263_611));
        assert_eq!(
            Femto::from_dollars_f64(0.0000029999900000000002).unwrap(),
            Femto(2_999_990_000)
        );
        assert_eq!(Femto(30_000_000_000).to_string(), "0.00003");
    }

    proptest! {
        #[test]
        fn display_reads_back(nanos: i64) {
            prop_assume!(nanos != i64::MIN);
            prop_assert_eq!(Nanos(nanos).to_string().parse::<Nanos>(), Ok(Nanos(nanos)));
        }

        #[test]
        fn json_reads_back(nanos in -1_000_000_000_000_000i64..1_000_000_000_000_000) {
            let json = serde_json::to_string(&Nanos(nanos)).unwrap();
            prop_assert!(json.len() <= 24);
            prop_assert_eq!(serde_json::from_str::<Nanos>(&json).unwrap(), Nanos(nanos));
        }

        #[test]
        fn reading_never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Nanos>();
            let _ = text.parse::<Femto>();
        }
    }
}
