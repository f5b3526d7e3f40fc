//! `tollkeeper ledger check`: proves that sums and rows agree.

use crate::conf::{self, EXIT_CONFIG, Env};
use crate::ledger;
use crate::store::{self, Address};
use std::path::Path;
use std::time::Duration;

/// The whole ledger is read, so this is generous.
const PATIENCE: Duration = Duration::from_secs(600);

/// Returns 0 when everything agrees, 1 when something does not, 69 when the store cannot be asked.
pub fn check(config: Option<&Path>, as_json: bool, env: &Env) -> i32 {
    let conf = match conf::load(config, env) {
        Ok(loaded) => loaded.conf,
        Err(report) => {
            anstream::eprintln!("{}", report.render(true));
            return EXIT_CONFIG;
        }
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            anstream::eprintln!("error: {e}");
            return 1;
        }
    };
    let data_dir = &conf.tollkeeper.data_dir;
    let address = match &conf.general.database_url {
        Some(url) => Address::parse(url.expose()),
        None => Ok(Address::Sqlite(data_dir.join("tollkeeper.db"))),
    };
    runtime.block_on(async {
        let opened = match &address {
            Ok(address) => store::open(address, &store::Settings::default()).await,
            Err(_) => {
                anstream::eprintln!("error: database_url is neither a Postgres address nor a file");
                return EXIT_CONFIG;
            }
        };
        // Whoever asks wants to know at once why it cannot be.
        if let Ok(address) = &address
            && let Err(e) = store::probe::facts(address, &store::Settings::default()).await
        {
            anstream::eprintln!("error: {e}");
            return 69;
        }
        let store = match opened {
            Ok(store) => store,
            Err(e) => {
                anstream::eprintln!("error: {e}");
                return 69;
            }
        };
        if tokio::time::timeout(Duration::from_secs(10), store.ready())
            .await
            .is_err()
        {
            anstream::eprintln!("error: the database does not answer");
            return 69;
        }
        match ledger::check::check(data_dir, store.as_ref(), PATIENCE).await {
            Ok(report) => {
                match as_json {
                    true => anstream::println!("{:#}", report.to_json()),
                    false => anstream::println!("{report}"),
                }
                i32::from(!report.is_sound())
            }
            Err(e) => {
                anstream::eprintln!("error: {e}");
                69
            }
        }
    })
}
