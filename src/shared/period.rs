//! When a budget starts anew: a pure function of the allowance and the moment.
//!
//! As in LiteLLM, periods follow the calendar: a day begins at midnight, seven days on Monday, thirty days
//! and a month on the first. Or they roll on from the moment the budget was set.

use arc_swap::ArcSwap;
use filters::model::limits::Allowance;
use jiff::civil::{Date, date};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan, Zoned};
use std::sync::{Arc, LazyLock};

/// Where midnight is, and whether periods keep to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Calendar {
    pub zone: TimeZone,
    pub reset: Reset,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reset {
    #[default]
    Calendar,
    Rolling,
}

impl Default for Calendar {
    fn default() -> Self {
        Self {
            zone: TimeZone::UTC,
            reset: Reset::default(),
        }
    }
}

/// The calendar of the config that serves. Keys are shown in many places, and each shows when its budget starts
/// anew; what decides about calls has its own word for it.
static SERVING: LazyLock<ArcSwap<Calendar>> = LazyLock::new(ArcSwap::default);

/// From now on this calendar is shown by.
pub fn serve_by(calendar: &Calendar) {
    SERVING.store(Arc::new(calendar.clone()));
}

pub fn serving() -> Arc<Calendar> {
    SERVING.load_full()
}

/// `start <= now < end`, microseconds since 1970. None as end: it never resets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Period {
    pub start: i64,
    pub end: Option<i64>,
}

#[derive(Clone, Copy)]
enum Unit {
    Seconds,
    Days,
    Months,
}

/// The longest that is counted: a thousand years in seconds. What is longer never resets.
const MOST_SECONDS: i64 = 1000 * 366 * 86_400;

/// The budget's period at `now`. A spelling that means nothing never resets: fields are checked when they
/// are written.
pub fn of(allowance: &Allowance, now_micros: i64, calendar: &Calendar) -> Period {
    let forever = Period::default();
    let Some((n, unit)) = allowance.period.as_deref().and_then(parse) else {
        return forever;
    };
    let Ok(now) = Timestamp::from_microsecond(now_micros) else {
        return forever;
    };
    let now = now.to_zoned(calendar.zone.clone());
    let found = match calendar.reset {
        Reset::Rolling => rolling(n, unit, allowance.since_micros, &now),
        Reset::Calendar => match unit {
            Unit::Seconds => seconds(n, &now),
            Unit::Days => days(n, allowance.since_micros, &now),
            Unit::Months => months(n, &now),
        },
    };
    match found {
        Some((start, end)) if start <= now && now < end => Period {
            start: start.timestamp().as_microsecond(),
            end: Some(end.timestamp().as_microsecond()),
        },
        _ => forever,
    }
}

/// A number and a word that starts with the unit, as LiteLLM reads it.
fn parse(text: &str) -> Option<(i64, Unit)> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let n: i64 = number.parse().ok().filter(|n| *n > 0)?;
    let (n, unit, most) = match unit.as_bytes() {
        [b'm', b'o', ..] => (Some(n), Unit::Months, 12_000),
        [b's', ..] => (Some(n), Unit::Seconds, MOST_SECONDS),
        [b'm', ..] => (n.checked_mul(60), Unit::Seconds, MOST_SECONDS),
        [b'h', ..] => (n.checked_mul(3600), Unit::Seconds, MOST_SECONDS),
        [b'd', ..] => (Some(n), Unit::Days, MOST_SECONDS / 86_400),
        [b'w', ..] => (n.checked_mul(7), Unit::Days, MOST_SECONDS / 86_400),
        _ => return None,
    };
    Some((n.filter(|n| *n <= most)?, unit))
}

/// Whether a budget with this spelling ever resets.
pub fn is_period(text: &str) -> bool {
    parse(text).is_some()
}

/// Multiples of so many seconds, counted from midnight where they fit into a day, else from 1970.
fn seconds(n: i64, now: &Zoned) -> Option<(Zoned, Zoned)> {
    let zone = now.time_zone().clone();
    let at = now.timestamp().as_second();
    if n > 86_400 {
        let start = at.div_euclid(n).checked_mul(n)?;
        let zoned = |s: i64| Some(Timestamp::from_second(s).ok()?.to_zoned(zone.clone()));
        return Some((zoned(start)?, zoned(start.checked_add(n)?)?));
    }
    let midnight = now.start_of_day().ok()?;
    let tomorrow = midnight_of(now.date().tomorrow().ok()?, &zone)?;
    let passed = at.saturating_sub(midnight.timestamp().as_second());
    let start = midnight
        .checked_add(passed.div_euclid(n).checked_mul(n)?.seconds())
        .ok()?;
    let end = start.checked_add(n.seconds()).ok()?;
    // Where the clock is set, the day's last period is shorter or longer.
    Some((start, if end > tomorrow { tomorrow } else { end }))
}

fn midnight_of(day: Date, zone: &TimeZone) -> Option<Zoned> {
    // Where the clock skips midnight, the day begins with its first moment.
    day.to_zoned(zone.clone()).ok()?.start_of_day().ok()
}

fn days(n: i64, since_micros: i64, now: &Zoned) -> Option<(Zoned, Zoned)> {
    if n == 30 {
        return months(1, now);
    }
    let zone = now.time_zone().clone();
    let anchor = if n % 7 == 0 {
        // A Monday.
        date(1970, 1, 5)
    } else {
        match since_micros {
            1.. => Timestamp::from_microsecond(since_micros)
                .ok()?
                .to_zoned(zone.clone())
                .date(),
            _ => date(1970, 1, 1),
        }
    };
    let passed = i64::from((now.date() - anchor).get_days());
    let first = passed.div_euclid(n).checked_mul(n)?;
    let day = |k: i64| anchor.checked_add(Span::new().try_days(k).ok()?).ok();
    Some((
        midnight_of(day(first)?, &zone)?,
        midnight_of(day(first.checked_add(n)?)?, &zone)?,
    ))
}

fn months(n: i64, now: &Zoned) -> Option<(Zoned, Zoned)> {
    let zone = now.time_zone();
    let today = now.date();
    let index = i64::from(today.year()) * 12 + i64::from(today.month()) - 1;
    let first = index.div_euclid(n).checked_mul(n)?;
    let month = |index: i64| {
        let year = i16::try_from(index.div_euclid(12)).ok()?;
        let month = i8::try_from(index.rem_euclid(12)).ok()?;
        midnight_of(Date::new(year, month + 1, 1).ok()?, zone)
    };
    Some((month(first)?, month(first.checked_add(n)?)?))
}

/// So often the span after `since` as fits before now.
fn rolling(n: i64, unit: Unit, since_micros: i64, now: &Zoned) -> Option<(Zoned, Zoned)> {
    let zone = now.time_zone().clone();
    // The store keeps boundaries of whole seconds.
    let since = Timestamp::from_second(since_micros.div_euclid(1_000_000))
        .ok()?
        .to_zoned(zone);
    let nth = |k: i64| -> Option<Zoned> {
        let k = k.checked_mul(n)?;
        let span = match unit {
            Unit::Seconds => Span::new().try_seconds(k),
            Unit::Days => Span::new().try_days(k),
            Unit::Months => Span::new().try_months(k),
        };
        since.checked_add(span.ok()?).ok()
    };
    let passed = now.timestamp().as_second() - since.timestamp().as_second();
    let guess = match unit {
        Unit::Seconds => passed.div_euclid(n),
        Unit::Days => passed.div_euclid(n.checked_mul(86_400)?),
        Unit::Months => {
            let index = |z: &Zoned| i64::from(z.year()) * 12 + i64::from(z.month());
            (index(now) - index(&since)).div_euclid(n)
        }
    };
    // Clocks that are set and months of different length put the guess off by one at most.
    for k in [guess, guess - 1, guess + 1] {
        if let (Some(start), Some(end)) = (nth(k), nth(k + 1))
            && start <= *now
            && *now < end
        {
            return Some((start, end));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_microsecond()
    }

    fn calendar(zone: &str, reset: Reset) -> Calendar {
        Calendar {
            zone: TimeZone::get(zone).unwrap(),
            reset,
        }
    }

    #[track_caller]
    fn check(calendar: &Calendar, spelling: &str, since: &str, now: &str, want: (&str, &str)) {
        let allowance = Allowance {
            nanos: Some(1),
            period: Some(spelling.into()),
            since_micros: if since.is_empty() { 0 } else { micros(since) },
        };
        let got = of(&allowance, micros(now), calendar);
        let shown = |m: i64| Timestamp::from_microsecond(m).unwrap().to_string();
        assert_eq!(
            (shown(got.start), got.end.map(shown)),
            (want.0.to_string(), Some(want.1.to_string())),
            "{spelling} at {now}"
        );
    }

    #[test]
    fn periods_follow_the_calendar_as_litellms() {
        let utc = Calendar::default();
        let now = "2026-11-20T12:34:56Z"; // a Friday
        for (spelling, start, end) in [
            ("1d", "2026-11-20T00:00:00Z", "2026-11-21T00:00:00Z"),
            ("24h", "2026-11-20T00:00:00Z", "2026-11-21T00:00:00Z"),
            ("7d", "2026-11-16T00:00:00Z", "2026-11-23T00:00:00Z"),
            ("1w", "2026-11-16T00:00:00Z", "2026-11-23T00:00:00Z"),
            ("30d", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"),
            ("1mo", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"),
            ("3mo", "2026-10-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("12mo", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("1h", "2026-11-20T12:00:00Z", "2026-11-20T13:00:00Z"),
            ("6h", "2026-11-20T12:00:00Z", "2026-11-20T18:00:00Z"),
            ("5m", "2026-11-20T12:30:00Z", "2026-11-20T12:35:00Z"),
            ("30s", "2026-11-20T12:34:30Z", "2026-11-20T12:35:00Z"),
        ] {
            check(&utc, spelling, "", now, (start, end));
        }
        check(
            &utc,
            "10d",
            "2026-11-05T17:00:00Z",
            now,
            ("2026-11-15T00:00:00Z", "2026-11-25T00:00:00Z"),
        );
        // The boundary itself belongs to the new period.
        let midnight = "2026-11-21T00:00:00Z";
        check(&utc, "1d", "", midnight, (midnight, "2026-11-22T00:00:00Z"));
    }

    #[test]
    fn leap_days_and_months_ends_are_days_like_others() {
        let utc = Calendar::default();
        check(
            &utc,
            "1mo",
            "",
            "2028-02-29T23:59:59Z",
            ("2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
        );
        let rolling = calendar("UTC", Reset::Rolling);
        check(
            &rolling,
            "1mo",
            "2027-12-31T10:00:00Z",
            "2028-02-29T11:00:00Z",
            ("2028-02-29T10:00:00Z", "2028-03-31T10:00:00Z"),
        );
        check(
            &rolling,
            "1d",
            "2026-11-18T10:00:00Z",
            "2026-11-20T09:00:00Z",
            ("2026-11-19T10:00:00Z", "2026-11-20T10:00:00Z"),
        );
        check(
            &rolling,
            "90m",
            "2026-11-20T10:00:00Z",
            "2026-11-20T13:00:00Z",
            ("2026-11-20T13:00:00Z", "2026-11-20T14:30:00Z"),
        );
    }

    #[test]
    fn days_have_23_and_25_hours_where_clocks_are_set() {
        let berlin = calendar("Europe/Berlin", Reset::Calendar);
        check(
            &berlin,
            "1d",
            "",
            "2026-03-29T12:00:00Z",
            ("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"),
        );
        check(
            &berlin,
            "1d",
            "",
            "2026-10-25T12:00:00Z",
            ("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
        );
        check(
            &berlin,
            "7d",
            "",
            "2026-10-25T22:59:59Z",
            ("2026-10-18T22:00:00Z", "2026-10-25T23:00:00Z"),
        );
        check(
            &berlin,
            "30d",
            "",
            "2026-10-31T22:59:59Z",
            ("2026-09-30T22:00:00Z", "2026-10-31T23:00:00Z"),
        );
        // The twelve hours before midnight are thirteen on that day.
        check(
            &berlin,
            "12h",
            "",
            "2026-10-25T22:30:00Z",
            ("2026-10-25T22:00:00Z", "2026-10-25T23:00:00Z"),
        );
        // Midnight does not happen in Beirut when summer begins.
        let beirut = calendar("Asia/Beirut", Reset::Calendar);
        check(
            &beirut,
            "1d",
            "",
            "2026-03-29T10:00:00Z",
            ("2026-03-28T22:00:00Z", "2026-03-29T21:00:00Z"),
        );
        check(
            &calendar("Asia/Kolkata", Reset::Calendar),
            "1h",
            "",
            "2026-11-20T12:45:00Z",
            ("2026-11-20T12:30:00Z", "2026-11-20T13:30:00Z"),
        );
    }

    #[test]
    fn whatever_the_moment_one_period_follows_the_other() {
        for zone in ["UTC", "Europe/Berlin", "America/Sao_Paulo", "Asia/Beirut"] {
            for reset in [Reset::Calendar, Reset::Rolling] {
                let calendar = calendar(zone, reset);
                for spelling in ["7h", "36h", "1d", "5d", "7d", "30d", "1mo", "5mo"] {
                    let allowance = Allowance {
                        nanos: None,
                        period: Some(spelling.into()),
                        since_micros: micros("2026-01-31T13:00:00Z"),
                    };
                    let mut now = micros("2027-01-15T03:07:09Z");
                    for _ in 0..40 {
                        let this = of(&allowance, now, &calendar);
                        let end = this.end.unwrap();
                        assert!(this.start <= now && now < end, "{zone} {spelling}");
                        let last = of(&allowance, end - 1, &calendar);
                        assert_eq!(last, this, "{zone} {reset:?} {spelling}");
                        let next = of(&allowance, end, &calendar);
                        assert_eq!(next.start, end, "{zone} {reset:?} {spelling}");
                        now = end;
                    }
                }
            }
        }
    }

    #[test]
    fn what_means_nothing_never_resets() {
        for spelling in [
            "",
            "d",
            "0d",
            "-1d",
            "1y",
            "99999999999999999999d",
            "9999999999d",
            "é",
        ] {
            let allowance = Allowance {
                nanos: None,
                period: Some(spelling.into()),
                since_micros: 0,
            };
            for reset in [Reset::Calendar, Reset::Rolling] {
                let calendar = calendar("UTC", reset);
                assert_eq!(of(&allowance, 0, &calendar), Period::default(), "{spelling}");
                assert_eq!(of(&allowance, i64::MAX, &calendar), Period::default());
            }
        }
    }
}
