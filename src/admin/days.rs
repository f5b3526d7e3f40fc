//! Which days a report is about, and the reading of daily sums: nothing here adds up single calls.

use super::Desk;
use super::ask::Params;
use super::error::{Result, wrong_type, wrong_value};
use super::fields::{Field, Kind};
use crate::store::{MAX_ROWS, Page, UsageFilter, UsageRow};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// Most days of one report.
pub const MOST_DAYS: i32 = 400;
/// Daily sums read for one answer.
pub const MOST_SUMS: usize = 200_000;
/// The largest difference that a time zone has, in minutes.
const FURTHEST: i64 = 14 * 60;

/// The parameters that [`Days`] are read from.
pub const DATES: [Field; 2] = [
    Field::new("start_date", Kind::Time, "First day, YYYY-MM-DD, UTC"),
    Field::new("end_date", Kind::Time, "Last day, YYYY-MM-DD, UTC"),
];

pub const TIMEZONE: Field = Field::new(
    "timezone",
    Kind::Text,
    "Minutes from the days' zone to UTC, as getTimezoneOffset() in JavaScript",
);

/// From the first to the last day, both included, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Days {
    pub first: Date,
    pub last: Date,
}

impl Days {
    /// `start_date` and `end_date`, without which there is no answer.
    pub fn required(params: &Params) -> Result<Self> {
        match (date(params, "start_date")?, date(params, "end_date")?) {
            (Some(first), Some(last)) => Self::between(first, last),
            (first, _) => {
                let name = if first.is_none() { "start_date" } else { "end_date" };
                Err(wrong_value(
                    name,
                    "Please provide start_date and end_date, as YYYY-MM-DD in UTC.",
                )
                .into())
            }
        }
    }

    /// The same, or the last 30 days. One date alone stands for 30 days from or up to it.
    pub fn or_month(params: &Params, now_micros: i64) -> Result<Self> {
        let (first, last) = (date(params, "start_date")?, date(params, "end_date")?);
        Self::or_month_of(first, last, now_micros)
    }

    pub fn or_month_of(first: Option<Date>, last: Option<Date>, now_micros: i64) -> Result<Self> {
        let month = Span::new().days(29);
        let today = day_of(now_micros);
        let (first, last) = match (first, last) {
            (Some(first), Some(last)) => (first, last),
            (Some(first), None) => (first, first.saturating_add(month).min(today.max(first))),
            (None, last) => {
                let last = last.unwrap_or(today);
                (last.saturating_sub(month), last)
            }
        };
        Self::between(first, last)
    }

    fn between(first: Date, last: Date) -> Result<Self> {
        if first > last {
            return Err(wrong_value("start_date", "'start_date' lies after 'end_date'.").into());
        }
        let days = last.since(first).map_or(i32::MAX, |s| s.get_days());
        if days >= MOST_DAYS {
            return Err(wrong_value(
                "start_date",
                format!("A report is about {MOST_DAYS} days at most. Ask for several."),
            )
            .into());
        }
        Ok(Self { first, last })
    }

    /// The UTC days that the days of another zone touch.
    pub fn touched(self, minutes: i64) -> Self {
        let day = Span::new().days(1);
        match minutes {
            0 => self,
            m if m > 0 => Self {
                last: self.last.saturating_add(day),
                ..self
            },
            _ => Self {
                first: self.first.saturating_sub(day),
                ..self
            },
        }
    }

    pub fn of(self, filter: UsageFilter) -> UsageFilter {
        UsageFilter {
            start: Some(self.first),
            end: Some(self.last),
            ..filter
        }
    }
}

/// The day of a moment, UTC.
pub fn day_of(micros: i64) -> Date {
    let moment = Timestamp::from_microsecond(micros).unwrap_or(Timestamp::UNIX_EPOCH);
    moment.to_zoned(TimeZone::UTC).date()
}

pub fn date(params: &Params, name: &str) -> Result<Option<Date>> {
    let Some(text) = params.text(name)? else {
        return Ok(None);
    };
    match Date::strptime("%Y-%m-%d", text) {
        Ok(date) if date.year() >= 1970 => Ok(Some(date)),
        _ => Err(wrong_value(
            name,
            format!("'{name}' must be a day since 1970 as YYYY-MM-DD, in UTC."),
        )
        .into()),
    }
}

/// `timezone`: UTC minus local time, in minutes.
pub fn timezone(params: &Params) -> Result<i64> {
    let Some(text) = params.text("timezone")? else {
        return Ok(0);
    };
    match text.parse::<i64>() {
        Ok(minutes) if minutes.abs() <= FURTHEST => Ok(minutes),
        _ => Err(wrong_type(
            "timezone",
            &format!("a whole number of minutes from -{FURTHEST} to {FURTHEST}"),
        )
        .into()),
    }
}

/// The first moment of a day; none after the last day that has a name.
pub fn midnight(day: Date) -> Option<i64> {
    let start = day.to_zoned(TimeZone::UTC).ok()?;
    Some(start.timestamp().as_microsecond())
}

impl Desk {
    /// All sums that fit, whatever the filter's page; a refusal when there are more than `most`.
    pub async fn sums(&self, filter: UsageFilter, most: usize) -> Result<Vec<UsageRow>> {
        let found = self.sums_up_to(filter, most).await?;
        found.ok_or_else(|| {
            wrong_value(
                "start_date",
                "These days hold too much to be added up at once. Ask for fewer days.",
            )
            .into()
        })
    }

    /// The same; `None` when there are more.
    pub async fn sums_up_to(&self, mut filter: UsageFilter, most: usize) -> Result<Option<Vec<UsageRow>>> {
        let mut found: Vec<UsageRow> = Vec::new();
        loop {
            // One more than there may be, to know that there is more.
            let left = (most + 1).saturating_sub(found.len()).min(MAX_ROWS as usize);
            filter.page = Page {
                limit: left as u32,
                offset: found.len() as u64,
            };
            let page = self.store.usage(&filter).await?;
            let full = page.len() == left;
            found.extend(page);
            if found.len() > most {
                return Ok(None);
            }
            if !full {
                return Ok(Some(found));
            }
        }
    }
}
