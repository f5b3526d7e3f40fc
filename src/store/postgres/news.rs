//! What other replicas changed, heard through Postgres: a connection of its own that listens, and that is
//! made anew whenever it is lost.

use super::connect::{Target, describe, from_statement};
use super::within;
use crate::store::{News, Result, StoreError};
use std::future::poll_fn;
use std::time::Duration;
use tokio::sync::{Notify, broadcast};
use tokio::time::timeout;
use tokio_postgres::AsyncMessage;

/// One for the database: schemas that share it hear of each other's changes, which does no harm.
pub const CHANNEL: &str = "tk_news";

/// The connection is asked this often whether it still stands, and must answer this soon. Together they
/// are how long a change can go unheard without anybody knowing.
const ASK_EVERY: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// Listens for as long as it is polled.
pub async fn listen(mut target: Target, tell: broadcast::Sender<News>) {
    target.config.tcp_user_timeout(ASK_EVERY);
    target.config.keepalives_idle(ASK_EVERY);
    let mut pause = Duration::from_millis(100);
    let mut said = String::new();
    loop {
        let mut heard = false;
        let Err(e) = listen_once(&target, &tell, &mut heard).await;
        if heard {
            // What changed from here on is not heard; whoever reads again now has read too early, and
            // is told once more when the connection is back.
            let _ = tell.send(News::Everything);
            pause = Duration::from_millis(100);
            said.clear();
        }
        let text = e.to_string();
        if text != said {
            log::warn!("store=postgres news=lost connecting again: {text}");
            said = text;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// What a listener says to itself to learn whether it hears anything: poolers take LISTEN and forget it.
const PROBE: &str = "p:";

enum Never {}

/// Returns when the connection is gone. `heard` says whether it ever listened.
async fn listen_once(
    target: &Target,
    tell: &broadcast::Sender<News>,
    heard: &mut bool,
) -> std::result::Result<Never, StoreError> {
    let connected = target.config.connect(target.tls.clone());
    let limit = target.settings.connect_timeout;
    let (client, mut connection) = within(limit, async {
        connected.await.map_err(|e| StoreError::Unavailable(describe(&e)))
    })
    .await?;
    let probe = format!("{PROBE}{}", uuid::Uuid::new_v4());
    let came_back = Notify::new();
    // The connection does its work only while it is polled, so it and the questions go side by side.
    let drive = async {
        loop {
            match poll_fn(|cx| connection.poll_message(cx)).await {
                Some(Ok(AsyncMessage::Notification(n))) if n.channel() == CHANNEL => {
                    if n.payload().starts_with(PROBE) {
                        // Another replica's, unless it is ours.
                        if n.payload() == probe {
                            came_back.notify_one();
                        }
                        continue;
                    }
                    // No listener is no error.
                    let _ = tell.send(News::from_text(n.payload()));
                }
                Some(Ok(_)) => {}
                Some(Err(e)) => return StoreError::Unavailable(describe(&e)),
                None => return StoreError::unavailable("the connection was closed"),
            }
        }
    };
    let ask = async {
        let greet = format!("{}; LISTEN {CHANNEL}", target.greeting);
        if let Err(e) = answered(limit, client.batch_execute(&greet)).await {
            return e;
        }
        *heard = true;
        let _ = tell.send(News::Everything);
        // Probe and channel are ours and hold no quotes.
        let send = format!("NOTIFY {CHANNEL}, '{probe}'");
        if let Err(e) = answered(ANSWER_WITHIN, client.batch_execute(&send)).await {
            return e;
        }
        if timeout(ANSWER_WITHIN, came_back.notified()).await.is_err() {
            log::warn!(
                "store=postgres news=silent the database address leads through a pooler that passes no LISTEN on: \
                 what other replicas change is seen when it is read again, not at once"
            );
        }
        loop {
            tokio::time::sleep(ASK_EVERY).await;
            if let Err(e) = answered(ANSWER_WITHIN, client.batch_execute("")).await {
                return e;
            }
        }
    };
    tokio::select! {
        e = drive => Err(e),
        e = ask => Err(e),
    }
}

async fn answered(
    limit: Duration,
    work: impl Future<Output = std::result::Result<(), tokio_postgres::Error>>,
) -> Result<()> {
    within(limit, async { work.await.map_err(from_statement) }).await
}
