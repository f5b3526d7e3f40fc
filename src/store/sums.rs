//! What a batch of new rows adds up to: the same for both stores, which only write it down.

use super::period::second_of;
use super::report::Usage;
use super::rows::{count, day_of, moment};
use filters::model::account::{Charge, Kind};
use filters::model::record::{Record, Status};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

/// An account's kind, id and model group.
pub type Subject<'a> = (&'static str, Cow<'a, str>, &'a str);
/// Whose day it is: day, key, model group, user, team, organization, provider.
pub type DayOf<'a> = (i32, &'a [u8], &'a str, &'a str, &'a str, &'a str, &'a str);
/// Kind, day, end user or tag, model group.
pub type LabelOf<'a> = (&'static str, i32, &'a str, &'a str);

/// Sums of the rows that were really new. Batches are bounded and so is each count.
#[derive(Default)]
pub struct Increments<'a> {
    /// Nano-dollars by the second the rows ended in.
    pub accounts: BTreeMap<Subject<'a>, BTreeMap<i64, i64>>,
    pub days: BTreeMap<DayOf<'a>, Usage>,
    pub labels: BTreeMap<LabelOf<'a>, Usage>,
}

/// What two rows have in common that add to all the same sums.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Alike<'a> {
    charge: Charge<'a>,
    provider: &'a str,
    day: i32,
    /// Second since 1970.
    ended: i64,
}

impl<'a> Increments<'a> {
    /// Most rows of a batch are alike, and each adds to two dozen sums: so the alike are added up first.
    pub fn of(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut alike: HashMap<Alike<'a>, Usage, foldhash::fast::RandomState> = HashMap::default();
        for r in records {
            let of = Alike {
                charge: Charge::of(r),
                provider: &r.provider,
                day: day_of(r.started_micros),
                ended: second_of(moment(r.ended_micros)),
            };
            alike.entry(of).or_default().add(&usage(r));
        }
        let mut sums = Self::default();
        for (of, usage) in &alike {
            sums.add(of, usage);
        }
        sums
    }

    fn add(&mut self, of: &Alike<'a>, usage: &Usage) {
        let Alike {
            charge,
            provider,
            day,
            ended,
        } = *of;
        let model = charge.model_group;
        for (kind, id) in charge.subjects(|_| true) {
            if let (Kind::EndUser | Kind::Tag, Cow::Borrowed(label)) = (kind, &id) {
                let label = (kind.as_str(), day, *label, model);
                self.labels.entry(label).or_default().add(usage);
            }
            if usage.spend_nanos == 0 {
                continue;
            }
            if !model.is_empty() {
                self.charge((kind.as_str(), id.clone(), model), ended, usage.spend_nanos);
            }
            self.charge((kind.as_str(), id, ""), ended, usage.spend_nanos);
        }
        let day = (
            day,
            charge.key_hash.map_or([].as_slice(), |h| h.0.as_slice()),
            model,
            charge.user_id.unwrap_or(""),
            charge.team_id.unwrap_or(""),
            charge.organization_id.unwrap_or(""),
            provider,
        );
        self.days.entry(day).or_default().add(usage);
    }

    fn charge(&mut self, subject: Subject<'a>, ended: i64, nanos: i64) {
        let sum = self
            .accounts
            .entry(subject)
            .or_default()
            .entry(ended)
            .or_default();
        *sum = sum.saturating_add(nanos);
    }
}

fn usage(r: &Record) -> Usage {
    Usage {
        requests: 1,
        successes: i64::from(r.status == Status::Success),
        failures: i64::from(matches!(r.status, Status::Failure | Status::Cut)),
        prompt_tokens: count(r.prompt_tokens),
        completion_tokens: count(r.completion_tokens),
        cached_tokens: count(r.cached_tokens),
        cache_creation_tokens: count(r.cache_creation_tokens),
        spend_nanos: r.spend_nanos,
        unpriced: i64::from(!r.priced),
    }
}
