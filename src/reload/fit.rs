//! What of a config only shows when it is put to use, beyond what the snapshot and certificates show: `check`, a reload
//! and the start find the same. Opens nothing.

use crate::conf::Conf;
use crate::shared::agreement::Agreement;
use crate::shared::meters;
use crate::shared::period::{self, Calendar, Reset};
use crate::store::Address;
use filters::model::limits::Limits;

/// What would keep a gateway from starting, a sentence each.
pub fn problems(conf: &Conf) -> Vec<String> {
    let database = conf.general.database_url.as_ref();
    let redis = conf.meters.redis.as_ref();
    let all = [
        meter_settings(conf).map(drop),
        database.map_or(Ok(()), |url| {
            let address = Address::parse(url.expose());
            address.map(drop).map_err(|e| format!("database_url: {e}"))
        }),
        redis.map_or(Ok(()), |url| Agreement::check(&url.expose().into())),
    ];
    all.into_iter().filter_map(Result::err).collect()
}

/// What the config says of budgets and limits. `Err` is a sentence.
pub fn meter_settings(conf: &Conf) -> Result<meters::Settings, String> {
    let said = &conf.meters;
    let gateway = Limits::of(&said.gateway);
    let allowances = gateway.models.values().map(|m| &m.budget);
    for allowance in allowances.chain([&gateway.budget]) {
        if let Some(text) = allowance.period.as_deref().filter(|t| !period::is_period(t)) {
            return Err(format!(
                "budget_duration {text:?}: a period is a number and a unit, such as 30d or 1mo"
            ));
        }
    }
    let reset = if said.rolling {
        Reset::Rolling
    } else {
        Reset::Calendar
    };
    Ok(meters::Settings {
        calendar: Calendar {
            zone: said.zone.clone().unwrap_or(jiff::tz::TimeZone::UTC),
            reset,
        },
        gateway,
        end_user_budget_nanos: said.end_user_budget_nanos,
        queue: said.queue.as_ref().map(|q| meters::QueueSettings {
            max_wait: q.max_wait,
            max_waiting: q.max_waiting,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::{Env, load_text};

    #[test]
    fn what_would_keep_it_from_starting_is_found() {
        for (text, word) in [
            ("{}", ""),
            ("tollkeeper: {redis: {url: 'redis://a:6379'}}", ""),
            ("litellm_settings: {max_budget: 5, budget_duration: 1mo}", ""),
            ("litellm_settings: {max_budget: 5, budget_duration: 30x}", "30x"),
            (
                "tollkeeper: {limits: {models: {a: {max_budget: 1, budget_duration: soon}}}}",
                "soon",
            ),
            ("router_settings: {redis_url: 'http://secret@a'}", "Redis"),
        ] {
            let conf = load_text("test", text, &Env::default()).unwrap().conf;
            let found = problems(&conf).join("; ");
            assert_eq!(found.is_empty(), word.is_empty(), "{text}: {found}");
            assert!(
                found.contains(word) && !found.contains("secret"),
                "{text}: {found}"
            );
        }
    }
}
