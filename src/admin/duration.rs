//! How long a key lives: `30s 20m 30min 1h 7d 2w 1mo`, as LiteLLM writes it.

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// Why a duration was refused, as the end of a sentence about the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    #[error("must be a number and a unit: 30s, 20m, 1h, 7d, 2w or 1mo")]
    Spelling,
    #[error("is too long")]
    TooLong,
}

/// The moment that lies a duration after `now_micros`, in microseconds since 1970. A month is a
/// calendar month, cut to the month's last day: one after 31 January is the last of February.
pub fn after(now_micros: i64, text: &str) -> Result<i64, DurationError> {
    let span = span(text)?;
    let now = Timestamp::from_microsecond(now_micros).map_err(|_| DurationError::TooLong)?;
    let then = now.to_zoned(TimeZone::UTC).checked_add(span);
    Ok(then
        .map_err(|_| DurationError::TooLong)?
        .timestamp()
        .as_microsecond())
}

/// A number and a word that starts with the unit. LiteLLM looks at the start only, so that `30min`,
/// `7days` and `1month` are durations; what follows the unit must still be a word, because the hours
/// of `1d12h` would be lost.
pub fn span(text: &str) -> Result<Span, DurationError> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() || !unit.bytes().all(|b| b.is_ascii_alphabetic()) {
        return Err(DurationError::Spelling);
    }
    let n: Result<i64, _> = number.parse();
    let span = Span::new();
    let span = match unit.as_bytes() {
        [b'm', b'o', ..] => n.map(|n| span.try_months(n)),
        [b's', ..] => n.map(|n| span.try_seconds(n)),
        [b'm', ..] => n.map(|n| span.try_minutes(n)),
        [b'h', ..] => n.map(|n| span.try_hours(n)),
        [b'd', ..] => n.map(|n| span.try_days(n)),
        [b'w', ..] => n.map(|n| span.try_weeks(n)),
        _ => return Err(DurationError::Spelling),
    };
    span.map_err(|_| DurationError::TooLong)?
        .map_err(|_| DurationError::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(now: &str, text: &str, want: Result<&str, DurationError>) {
        let now: Timestamp = now.parse().unwrap();
        let want = want.map(|w| w.parse::<Timestamp>().unwrap().as_microsecond());
        assert_eq!(after(now.as_microsecond(), text), want, "{text} after {now}");
    }

    #[test]
    fn every_spelling() {
        let now = "2026-11-20T12:00:00.000001Z";
        for (text, then) in [
            ("30s", "2026-11-20T12:00:30.000001Z"),
            ("30sec", "2026-11-20T12:00:30.000001Z"),
            ("20m", "2026-11-20T12:20:00.000001Z"),
            ("20min", "2026-11-20T12:20:00.000001Z"),
            ("30minutes", "2026-11-20T12:30:00.000001Z"),
            ("1h", "2026-11-20T13:00:00.000001Z"),
            ("36hours", "2026-11-22T00:00:00.000001Z"),
            ("7d", "2026-11-27T12:00:00.000001Z"),
            ("30d", "2026-12-20T12:00:00.000001Z"),
            (" 90days ", "2027-02-18T12:00:00.000001Z"),
            ("2w", "2026-12-04T12:00:00.000001Z"),
            ("1mo", "2026-12-20T12:00:00.000001Z"),
            ("1month", "2026-12-20T12:00:00.000001Z"),
            ("14mo", "2028-01-20T12:00:00.000001Z"),
            ("0s", "2026-11-20T12:00:00.000001Z"),
            ("0030s", "2026-11-20T12:00:30.000001Z"),
        ] {
            check(now, text, Ok(then));
        }
    }

    #[test]
    fn months_end_where_the_month_ends() {
        check("2027-01-31T23:00:00Z", "1mo", Ok("2027-02-28T23:00:00Z"));
        check("2028-01-31T23:00:00Z", "1mo", Ok("2028-02-29T23:00:00Z"));
    }

    #[test]
    fn nonsense_is_refused() {
        use DurationError::*;
        let now = "2026-11-20T12:00:00Z";
        for text in [
            "", " ", "d", "30", "1.5h", "-1d", "+1d", "1d12h", "30 d", "1y", "30D", "３d", "1d;", "1 OR 1",
            "1é", "ewig",
        ] {
            check(now, text, Err(Spelling));
        }
        for text in [
            "99999999999999999999d",
            "9223372036854775807s",
            "20000y",
            "9000000d",
            "120000mo",
        ] {
            let want = if text.ends_with('y') { Spelling } else { TooLong };
            check(now, text, Err(want));
        }
    }
}
