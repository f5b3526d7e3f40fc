//! Whether there is a store at an address, without making one.

use super::postgres::connect::{Target, describe};
use super::{Address, Result, Settings, StoreError};

/// True once a gateway has made its tables there. Changes nothing; a server that does not answer is
/// [`StoreError::Unavailable`].
pub async fn exists(address: &Address, settings: &Settings) -> Result<bool> {
    let url = match address {
        Address::Sqlite(path) => return Ok(path.is_file()),
        Address::Postgres(url) => url,
    };
    let target = Target::parse(url, settings)?;
    let unavailable = |e: tokio_postgres::Error| StoreError::Unavailable(describe(&e));
    let asked = tokio::time::timeout(target.settings.connect_timeout * 2, async {
        let (client, connection) = target
            .config
            .connect(target.tls.clone())
            .await
            .map_err(unavailable)?;
        let work = async {
            client
                .batch_execute(&target.greeting)
                .await
                .map_err(unavailable)?;
            let sql = "SELECT to_regclass('tk_migrations') IS NOT NULL";
            let row = client.query_one(sql, &[]).await.map_err(unavailable)?;
            row.try_get(0).map_err(unavailable)
        };
        tokio::select! {
            answer = work => answer,
            _ = connection => Err(StoreError::unavailable("the connection was lost")),
        }
    });
    match asked.await {
        Ok(answer) => answer,
        Err(_) => Err(StoreError::unavailable("Postgres did not answer in time")),
    }
}
