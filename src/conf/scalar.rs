//! What a plain text in YAML means: nothing, a boolean, a number, or itself.
//!
//! PyYAML's reading, as LiteLLM's users know it, with the numbers it misses (`1e-6`) read as well.

/// A text that may mean a number, a boolean or nothing.
#[derive(Debug, Clone)]
pub(super) struct Scalar {
    pub text: String,
    /// Not quoted, so that it may mean something else than its text.
    pub plain: bool,
    /// The environment variable it was taken from.
    pub origin: Origin,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    File,
    /// Replaced by an environment variable.
    Env,
    /// Names an environment variable that is not set.
    Unset(String),
}

impl Scalar {
    pub fn is_null(&self) -> bool {
        matches!(self.origin, Origin::Unset(_))
            || self.plain && matches!(self.text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }

    /// YAML 1.1 spellings count, as they do for LiteLLM's reader.
    pub fn as_bool(&self) -> Option<bool> {
        if !self.plain {
            return None;
        }
        match self.text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => Some(true),
            "false" | "no" | "off" => Some(false),
            _ => None,
        }
    }

    pub fn as_int(&self) -> Option<i64> {
        if !self.plain {
            return None;
        }
        let text = self.text.replace('_', "");
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(&text)),
        };
        if !digits.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let number = if let Some(hex) = digits.strip_prefix("0x") {
            i64::from_str_radix(hex, 16)
        } else if let Some(octal) = digits.strip_prefix("0o") {
            i64::from_str_radix(octal, 8)
        } else if let Some(binary) = digits.strip_prefix("0b") {
            i64::from_str_radix(binary, 2)
        } else {
            digits.parse()
        };
        number.ok().map(|n| if negative { -n } else { n })
    }

    pub fn as_float(&self) -> Option<f64> {
        if let Some(int) = self.as_int() {
            return Some(int as f64);
        }
        let numeric = self
            .text
            .starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'));
        if !self.plain || !numeric {
            return None;
        }
        self.text
            .replace('_', "")
            .parse()
            .ok()
            .filter(|f: &f64| f.is_finite())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Scalar {
        Scalar {
            text: text.into(),
            plain: true,
            origin: Origin::File,
        }
    }

    #[test]
    fn texts_mean_what_pyyaml_says() {
        for text in ["", "~", "null", "NULL"] {
            assert!(plain(text).is_null(), "{text:?} is nothing");
        }
        for (text, number) in [
            ("12", 12),
            ("-7", -7),
            ("+7", 7),
            ("1_000", 1000),
            ("0x1F", 31),
            ("0b11", 3),
            ("0o17", 15),
        ] {
            assert_eq!(plain(text).as_int(), Some(number), "{text:?}");
        }
        for text in ["", "-", "x1", "1x", "0x", "--1", "99999999999999999999", "1.0"] {
            assert_eq!(plain(text).as_int(), None, "{text:?}");
        }
        for (text, number) in [("0.5", 0.5), ("1e-6", 1e-6), ("-.5", -0.5), ("3", 3.0)] {
            assert_eq!(plain(text).as_float(), Some(number), "{text:?}");
        }
        for text in [".nan", ".inf", "inf", "nan", "1e999", "1.2.3", "abc"] {
            assert_eq!(plain(text).as_float(), None, "{text:?}");
        }
        let quoted = Scalar {
            plain: false,
            ..plain("yes")
        };
        assert!(quoted.as_bool().is_none() && plain("yes").as_bool() == Some(true));
    }
}
