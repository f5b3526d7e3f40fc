//! Small readings of text: durations, sizes, addresses, near matches, and quoting what a file says.

use std::time::Duration;

/// Longest duration taken, in seconds: a century. Anything above is a typing error.
const MAX_SECONDS: f64 = 100.0 * 366.0 * 86_400.0;

/// `500ms`, `30s`, `10m`, `1h`, `2d`, or a bare number of seconds.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().ok()?;
    let unit = match unit.trim() {
        "ms" => 0.001,
        "" | "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
        "h" | "hour" | "hours" => 3_600.0,
        "d" | "day" | "days" => 86_400.0,
        _ => return None,
    };
    let seconds = number * unit;
    (seconds.is_finite() && (0.0..=MAX_SECONDS).contains(&seconds)).then(|| Duration::from_secs_f64(seconds))
}

/// `32MiB`, `64KiB`, `100MB`, or a bare number of bytes.
pub(super) fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit);
    }
    let bytes = number.parse::<f64>().ok()? * unit as f64;
    // Above 2^53 a float no longer counts single bytes, and no limit is meant to be that large.
    (bytes.is_finite() && (0.0..9e15).contains(&bytes)).then_some(bytes as u64)
}

/// Checks an address of an upstream, and returns it without slashes at the end.
pub(super) fn base_url(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    let Some((scheme, _)) = text.split_once("://") else {
        return Err("an address starts with http:// or https://");
    };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err("only http:// and https:// are spoken");
    }
    // The parser would drop a fragment silently, and what was meant by it.
    if text.contains('#') {
        return Err("an address to call has no `#`");
    }
    let Ok(uri) = text.parse::<http::Uri>() else {
        return Err("this is not a valid address");
    };
    let Some(authority) = uri.authority() else {
        return Err("the host is missing");
    };
    if authority.as_str().contains('@') {
        return Err("a name or password in the address is not used; put the key into api_key or headers");
    }
    // `Authority` takes `host:` and `host:99999`; a port that is no port is a typing error.
    let after_host = authority
        .as_str()
        .strip_prefix(authority.host())
        .unwrap_or_default();
    if authority.host().is_empty() {
        return Err("the host is missing");
    }
    if !after_host.is_empty() && !matches!(authority.port_u16(), Some(1..)) {
        return Err("the port must be a number from 1 to 65535");
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// The known word nearest to `word`, if it is near enough to have been meant.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    let word = word.to_ascii_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&word, candidate), candidate))
        .filter(|(likeness, candidate)| {
            // Jaro-Winkler alone finds `api_version` in `api_base`: a common start is not enough.
            let distance = strsim::damerau_levenshtein(&word, candidate);
            *likeness >= 0.8 && distance <= 1 + candidate.len().max(word.len()) / 4
        })
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// What a file says, fit to stand in a message: short, on one line, without control characters.
pub(super) fn shown(text: &str) -> String {
    const MOST: usize = 60;
    let mut out: String = text.chars().take(MOST).flat_map(visible).collect();
    if text.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}

fn visible(c: char) -> impl Iterator<Item = char> {
    // Direction marks and the like would let a file rewrite the message it stands in.
    let hidden = c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    let escape = hidden.then(|| c.escape_unicode());
    let plain = (!hidden).then_some(c);
    escape.into_iter().flatten().chain(plain)
}

/// Whether a field of this name holds something that must not be shown.
pub(super) fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    const WORDS: [&str; 12] = [
        "api_key",
        "apikey",
        "master_key",
        "secret",
        "password",
        "passwd",
        "authorization",
        "credential",
        "database_url",
        "redis_url",
        "webhook_url",
        "cookie",
    ];
    WORDS.iter().any(|word| name.contains(word))
        || name == "key"
        || (name.ends_with("_key") && !name.ends_with("_group_key"))
        || (name.ends_with("_token") && !name.ends_with("_per_token"))
        || name == "token"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_and_without_a_unit() {
        let read = |s| duration(s).map(|d| d.as_millis());
        assert_eq!(read("30s"), Some(30_000));
        assert_eq!(read("1.5"), Some(1_500));
        assert_eq!(read("500ms"), Some(500));
        assert_eq!(read("10m"), Some(600_000));
        assert_eq!(read("0"), Some(0));
        for bad in [
            "",
            "s",
            "-1",
            "1y",
            "1e9s",
            "99999999999999d",
            "NaN",
            "inf",
            "1.2.3s",
        ] {
            assert_eq!(read(bad), None, "{bad:?} is no duration");
        }
    }

    #[test]
    fn sizes_are_read_with_and_without_a_unit() {
        assert_eq!(size("32MiB"), Some(32 << 20));
        assert_eq!(size("100 MB"), Some(100_000_000));
        assert_eq!(size("1.5k"), Some(1536));
        assert_eq!(size("17"), Some(17));
        for bad in [
            "",
            "MiB",
            "-1",
            "1 pB",
            "99999999999999999999G",
            "18446744073709551615k",
        ] {
            assert_eq!(size(bad), None, "{bad:?} is no size");
        }
    }

    #[test]
    fn addresses_are_judged() {
        assert_eq!(base_url("http://h:8080/v1/").as_deref(), Ok("http://h:8080/v1"));
        assert_eq!(
            base_url("https://[::1]:8443").as_deref(),
            Ok("https://[::1]:8443")
        );
        for bad in [
            "",
            "h:80",
            "ftp://h",
            "http://",
            "http://h:99999",
            "http://h:",
            "http://u:p@h",
            "http://a b",
            "http://h:0",
        ] {
            assert!(base_url(bad).is_err(), "{bad:?} is no address");
        }
    }

    #[test]
    fn a_near_match_is_found_and_a_far_one_is_not() {
        let known = ["api_base", "api_key", "api_version", "temperature"];
        assert_eq!(nearest("api_bse", known), Some("api_base"));
        assert_eq!(nearest("Api_Key", known), Some("api_key"));
        assert_eq!(nearest("temprature", known), Some("temperature"));
        assert_eq!(nearest("top_k", known), None);
    }
}
