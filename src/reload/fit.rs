//! What would keep a gateway from starting and shows in no snapshot and no certificate: `check` and a reload find it as well.
//! Opens nothing.

use crate::conf::Conf;
use crate::shared::agreement::Agreement;
use crate::store::Address;

/// A sentence each.
pub fn problems(conf: &Conf) -> Vec<String> {
    let database = conf.general.database_url.as_ref();
    let redis = conf.meters.redis.as_ref();
    let all = [
        database.map_or(Ok(()), |url| {
            let address = Address::parse(url.expose());
            address.map(drop).map_err(|e| format!("database_url: {e}"))
        }),
        redis.map_or(Ok(()), |url| Agreement::check(&url.expose().into())),
    ];
    all.into_iter().filter_map(Result::err).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::{Env, load_text};

    #[test]
    fn addresses_that_are_none_are_found() {
        for (text, word) in [
            ("{}", ""),
            ("tollkeeper: {redis: {url: 'redis://a:6379'}}", ""),
            ("router_settings: {redis_url: 'http://secret@a'}", "Redis"),
            (
                "litellm_settings: {cache_params: {type: redis, url: 'a:6379'}}",
                "Redis",
            ),
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
