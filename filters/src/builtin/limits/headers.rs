//! How the limits stand, as headers: OpenAI's, LiteLLM's, and the IETF's draft. Of several limits of one
//! measure, OpenAI's tell the tightest.

use crate::contract::fields::{Fields, Text};
use crate::contract::ports::Standing;
use crate::model::account::Kind;
use crate::model::limits::Measure;
use http::HeaderName;
use std::sync::LazyLock;

/// LiteLLM's words for whose limit it is: in all, and for one model.
pub fn descriptor(kind: Kind, of_model: bool) -> &'static str {
    match (kind, of_model) {
        (Kind::Gateway, false) => "gateway",
        (Kind::Gateway, true) => "model",
        (Kind::Organization, false) => "organization",
        (Kind::Organization, true) => "model_per_organization",
        (Kind::Team, false) => "team",
        (Kind::Team, true) => "model_per_team",
        (Kind::Member, false) => "team_member",
        (Kind::Member, true) => "model_per_team_member",
        (Kind::OrganizationMember, false) => "organization_member",
        (Kind::OrganizationMember, true) => "model_per_organization_member",
        (Kind::User, false) => "user",
        (Kind::User, true) => "model_per_user",
        (Kind::Key, false) => "api_key",
        (Kind::Key, true) => "model_per_key",
        (Kind::EndUser, false) => "end_user",
        (Kind::EndUser, true) => "model_per_end_user",
        (Kind::Tag, false) => "tag",
        (Kind::Tag, true) => "model_per_tag",
    }
}

const MEASURES: [Measure; 3] = [Measure::Requests, Measure::Tokens, Measure::Parallel];

struct Names {
    limit: HeaderName,
    remaining: HeaderName,
}

/// LiteLLM's names: two for each subject and measure.
static NAMES: LazyLock<Vec<Names>> = LazyLock::new(|| {
    let name = |text: String| HeaderName::try_from(text).unwrap_or(HeaderName::from_static("x-ratelimit"));
    Kind::ALL
        .iter()
        .flat_map(|kind| [(*kind, false), (*kind, true)])
        .flat_map(|(kind, of_model)| MEASURES.map(|m| (descriptor(kind, of_model), m.as_str())))
        .map(|(of, measure)| Names {
            limit: name(format!("x-ratelimit-{of}-limit-{measure}")),
            remaining: name(format!("x-ratelimit-{of}-remaining-{measure}")),
        })
        .collect()
});

fn names(standing: &Standing) -> Option<&'static Names> {
    let measure = MEASURES.iter().position(|m| *m == standing.measure)?;
    let kind = Kind::ALL.iter().position(|k| *k == standing.kind)?;
    NAMES.get((kind * 2 + usize::from(standing.of_model)) * MEASURES.len() + measure)
}

/// The one that leaves the least.
fn tightest(standings: &[Standing], measure: Measure) -> Option<&Standing> {
    standings
        .iter()
        .filter(|s| s.measure == measure)
        .min_by_key(|s| s.remaining)
}

static OPENAI: LazyLock<[(Measure, [HeaderName; 3]); 2]> = LazyLock::new(|| {
    let all = HeaderName::from_static;
    [
        (
            Measure::Requests,
            [
                all("x-ratelimit-limit-requests"),
                all("x-ratelimit-remaining-requests"),
                all("x-ratelimit-reset-requests"),
            ],
        ),
        (
            Measure::Tokens,
            [
                all("x-ratelimit-limit-tokens"),
                all("x-ratelimit-remaining-tokens"),
                all("x-ratelimit-reset-tokens"),
            ],
        ),
    ]
});
static POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
static RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// The headers of these standings.
pub fn told(standings: &[Standing]) -> Fields {
    if standings.is_empty() {
        return Fields::default();
    }
    // OpenAI's six and the draft's two, and two of each limit.
    let mut fields = Fields::with_capacity(8 + 2 * standings.len());
    for (measure, [limit, remaining, reset]) in OPENAI.iter() {
        if let Some(s) = tightest(standings, *measure) {
            fields.add(limit, |text| text.digits(s.limit));
            fields.add(remaining, |text| text.digits(s.remaining));
            fields.add(reset, |text| span(text, s.reset_millis));
        }
    }
    for s in standings {
        if let Some(names) = names(s) {
            fields.add(&names.limit, |text| text.digits(s.limit));
            fields.add(&names.remaining, |text| text.digits(s.remaining));
        }
    }
    let in_windows = || standings.iter().filter(|s| s.measure != Measure::Parallel);
    if in_windows().next().is_none() {
        return fields;
    }
    fields.add(&POLICY, |text| {
        for (i, s) in in_windows().enumerate() {
            name(text, i, s);
            text.push(";q=").digits(s.limit).push(";w=60");
            if s.measure == Measure::Tokens {
                // The draft's unit for what are no requests.
                text.push(";qu=\"tokens\"");
            }
        }
        text
    });
    fields.add(&RATELIMIT, |text| {
        for (i, s) in in_windows().enumerate() {
            name(text, i, s);
            let reset = s.reset_millis.div_ceil(1000);
            text.push(";r=").digits(s.remaining).push(";t=").digits(reset);
        }
        text
    });
    fields
}

/// Member `i` of one of the draft's lists begins.
fn name(text: &mut Text, i: usize, s: &Standing) {
    text.push(if i > 0 { ", \"" } else { "\"" })
        .push(descriptor(s.kind, s.of_model))
        .push("-")
        .push(s.measure.as_str())
        .push("\"");
}

/// A time as OpenAI writes it: `6ms`, `1.5s`, `1m30s`.
fn span(text: &mut Text, millis: u64) -> &mut Text {
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    if minutes > 0 {
        text.digits(minutes).push("m");
    } else if (1..1000).contains(&rest) {
        return text.digits(rest).push("ms");
    }
    text.digits(rest / 1000);
    let (mut part, mut digits) = (rest % 1000, 3);
    if part > 0 {
        while part % 10 == 0 {
            part /= 10;
            digits -= 1;
        }
        text.push(".");
        let shown = itoa::Buffer::new().format(part).len();
        (shown..digits).for_each(|_| {
            text.push("0");
        });
        text.digits(part);
    }
    text.push("s")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(kind: Kind, measure: Measure, limit: u64, remaining: u64) -> Standing {
        Standing {
            kind,
            of_model: false,
            measure,
            limit,
            remaining,
            reset_millis: 60_500,
        }
    }

    #[test]
    fn times_are_written_as_openai_writes_them() {
        for (millis, want) in [
            (0, "0s"),
            (6, "6ms"),
            (1000, "1s"),
            (1500, "1.5s"),
            (1059, "1.059s"),
            (60_000, "1m0s"),
            (90_000, "1m30s"),
            (60_500, "1m0.5s"),
        ] {
            let mut fields = Fields::default();
            fields.add(&RATELIMIT, |text| span(text, millis));
            assert_eq!(fields.get("ratelimit"), Some(want.as_bytes()));
        }
    }

    #[test]
    fn each_limit_has_its_headers_and_the_tightest_openais() {
        let standings = [
            standing(Kind::Key, Measure::Requests, 10, 4),
            standing(Kind::Team, Measure::Requests, 100, 3),
            standing(Kind::Key, Measure::Tokens, 1000, 900),
            standing(Kind::Key, Measure::Parallel, 2, 1),
        ];
        let fields = told(&standings);
        let get = |name: &str| fields.get(name).map(|v| std::str::from_utf8(v).unwrap());
        assert_eq!(get("x-ratelimit-limit-requests"), Some("100"));
        assert_eq!(get("x-ratelimit-remaining-requests"), Some("3"));
        assert_eq!(get("x-ratelimit-reset-requests"), Some("1m0.5s"));
        assert_eq!(get("x-ratelimit-remaining-tokens"), Some("900"));
        assert_eq!(get("x-ratelimit-api_key-remaining-requests"), Some("4"));
        assert_eq!(get("x-ratelimit-team-limit-requests"), Some("100"));
        assert_eq!(
            get("x-ratelimit-api_key-remaining-max_parallel_requests"),
            Some("1")
        );
        assert_eq!(
            get("ratelimit-policy"),
            Some(
                "\"api_key-requests\";q=10;w=60, \"team-requests\";q=100;w=60, \
                 \"api_key-tokens\";q=1000;w=60;qu=\"tokens\""
            )
        );
        assert_eq!(
            get("ratelimit"),
            Some("\"api_key-requests\";r=4;t=61, \"team-requests\";r=3;t=61, \"api_key-tokens\";r=900;t=61")
        );
        assert!(told(&[]).is_empty(), "where nothing is limited, nothing is said");
    }
}
