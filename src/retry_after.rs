//! What an answer says of when to ask again. How long its reader is willing to wait, the reader says.

use http::HeaderMap;
use jiff::Timestamp;
use std::time::Duration;

/// Reads `retry-after-ms`, else `Retry-After`: seconds, or a date. Zero for a date that is over. `None` where neither is
/// there or can be read.
pub fn read(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |text: &str, unit: f64| {
        let number: f64 = text.parse().ok()?;
        Duration::try_from_secs_f64(number / unit).ok()
    };
    if let Some(wait) = text("retry-after-ms").and_then(|t| number(t, 1000.0)) {
        return Some(wait);
    }
    let after = text("retry-after")?;
    number(after, 1.0).or_else(|| {
        let at = jiff::fmt::rfc2822::parse(after).ok()?.timestamp();
        Some(at.duration_since(Timestamp::now()).try_into().unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&'static str, &str)]) -> Option<Duration> {
        let headers = pairs
            .iter()
            .map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap()));
        read(&headers.collect())
    }

    #[test]
    fn seconds_milliseconds_and_dates_are_read() {
        let after = |text| of(&[("retry-after", text)]);
        assert_eq!(after("3"), Some(Duration::from_secs(3)));
        assert_eq!(after(" 0.25 "), Some(Duration::from_millis(250)));
        assert_eq!(after("Fri, 01 Jan 2010 00:00:00 GMT"), Some(Duration::ZERO));
        let soon = Timestamp::now() + Duration::from_secs(100);
        let date = jiff::fmt::rfc2822::DateTimePrinter::new()
            .timestamp_to_rfc9110_string(&soon)
            .unwrap();
        let left = after(&date).unwrap();
        assert!(left > Duration::from_secs(50) && left <= Duration::from_secs(100));
        for nonsense in ["soon", "", "-1", "NaN", "inf", "1e400"] {
            assert_eq!(after(nonsense), None, "{nonsense}");
        }
        let both = [("retry-after", "7"), ("retry-after-ms", "1500")];
        assert_eq!(of(&both), Some(Duration::from_millis(1500)));
        assert_eq!(of(&[]), None);
    }
}
