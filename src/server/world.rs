//! What the gateway's parts see of the world outside: the store, the clock, the other replicas, and who is
//! told of a call. Which part gets what is said in [`super::start`].

use super::{EXIT_FAILED, EXIT_UNAVAILABLE, Failed};
use crate::alerts::Alerts;
use crate::conf::Conf;
use crate::health::Further;
use crate::ledger::Ledger;
use crate::shared::agreement::Agreement;
use crate::shared::meters::{Crossed, Events, Meters};
use crate::store::{self, Address, Store};
use crate::telemetry::metrics::Telemetry;
use crate::traces::Exporters;
use crate::upgrade::replica::Replica;
use filters::contract::ports::{Clock, Ledger as LedgerPort, Refused};
use filters::model::record::Record;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// The ledger, and the meters that have to know of each row.
pub(super) struct Books {
    pub(super) ledger: Arc<Ledger>,
    pub(super) meters: Arc<Meters>,
}

impl LedgerPort for Books {
    fn append(&self, record: Record) {
        self.ledger.write(record, |record| self.meters.spent(record));
    }
}

/// What is told of limits outside of answers.
pub(super) struct Voices {
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) alerts: Arc<Alerts>,
}

impl Events for Voices {
    fn soft_budget_crossed(&self, crossed: &Crossed<'_>) {
        self.telemetry.soft_budget_crossed(crossed.account.kind);
        self.alerts.soft_budget_crossed(crossed);
    }

    fn refused(&self, refused: &Refused) {
        self.telemetry.limit_refused(refused.kind, &refused.why);
        self.alerts.refused(refused);
    }
}

/// The line to Redis, where the config names one.
pub(super) fn agreement(
    background: &tokio::runtime::Runtime,
    conf: &Conf,
    data_dir: &Path,
) -> Result<Option<(Arc<Agreement>, Replica)>, Failed> {
    let Some(url) = &conf.meters.redis else {
        return Ok(None);
    };
    let url = url.expose().into();
    Agreement::check(&url).map_err(Failed::Unusable)?;
    let replica = Replica::claim(data_dir)
        .map_err(|e| Failed::Other(EXIT_FAILED, format!("the replica's name cannot be kept: {e}")))?;
    let _context = background.enter();
    let agreement = Agreement::connect(&url, &conf.meters.redis_prefix, &replica.name);
    Ok(Some((agreement, replica)))
}

/// How Redis is, for readiness; null where the config names none.
pub(super) fn redis_state(agreement: Option<Arc<Agreement>>) -> Further {
    Box::new(move || match &agreement {
        Some(agreement) if agreement.is_up() => "connected".into(),
        Some(_) => "Not connected".into(),
        None => serde_json::Value::Null,
    })
}

/// Who is told of calls, and whether they take it; null when nobody is.
pub(super) fn traces_state(traces: Arc<Exporters>) -> Further {
    Box::new(move || {
        let state = |up| if up { "connected" } else { "Not connected" };
        let told: serde_json::Map<_, _> = traces
            .receivers()
            .into_iter()
            .map(|(name, up)| (name.to_string(), state(up).into()))
            .collect();
        (!told.is_empty()).then_some(told).into()
    })
}

pub(super) struct WallClock;

impl Clock for WallClock {
    fn now_micros(&self) -> i64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_micros() as i64)
    }
}

pub(super) fn open_store(
    background: &tokio::runtime::Runtime,
    conf: &Conf,
    data_dir: &Path,
) -> Result<Arc<dyn Store>, Failed> {
    let address = match &conf.general.database_url {
        Some(url) => {
            Address::parse(url.expose()).map_err(|e| Failed::Unusable(format!("database_url: {e}")))?
        }
        None => Address::Sqlite(data_dir.join("tollkeeper.db")),
    };
    let mut settings = store::Settings::default();
    if let Some(n) = conf.general.database_connection_pool_limit {
        settings.pool_size = n as usize;
    }
    let which = match &address {
        Address::Sqlite(file) => format!("the database {}", file.display()),
        Address::Postgres(_) => "the database".to_string(),
    };
    background
        .block_on(store::open(&address, &settings))
        .map_err(|e| Failed::Other(EXIT_UNAVAILABLE, format!("{which} cannot be opened: {e}")))
}
