//! The line to Redis: one connection that many questions share, kept up behind the scenes.
//!
//! A question waits for an answer for a bounded time. Once one was not answered, Redis is away: all
//! further questions are told so at once, and cost nothing, until a probe of our own was answered.
//! What is asked, and what the answers mean, is the parent's.

use super::{Away, Settings};
use filters::model::secret::Secret;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, FromRedisValue, IntoConnectionInfo, RedisError, RedisResult,
    ScriptInvocation, ServerErrorKind, TlsCertificates,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

/// Longest a connection may take to be made, name resolution and TLS included. Nobody waits for it: a
/// question gives up long before.
const CONNECT: Duration = Duration::from_secs(2);

/// Questions that may wait for their turn to be written, on one connection.
const QUEUE: usize = 1024;

/// Between two words in the log about refusals of single accounts.
const SILENCE: Duration = Duration::from_secs(10);

#[derive(Clone)]
enum State {
    /// For the first time, or just after a connection broke: worth waiting for.
    Connecting,
    /// With the number of the connection, so that a late complaint about an old one is not taken for a
    /// complaint about this one.
    Up(MultiplexedConnection, u64),
    Away,
}

pub struct Line {
    state: watch::Sender<State>,
    /// Whether a question was answered since the last look.
    answered: AtomicBool,
    /// Written every second while nothing is asked: says that Redis answers and takes writes.
    sign_of_life: String,
    /// When a refusal was last put in the log.
    refused: Mutex<Option<Instant>>,
    settings: Settings,
}

/// What is wrong with an address, without repeating it.
pub fn client(url: &Secret, settings: &Settings) -> Result<Client, String> {
    let said = |e: RedisError| match e.kind() {
        // Its detail quotes what stands in the address.
        ErrorKind::InvalidClientConfig => {
            format!(
                "the Redis address cannot be used: {}",
                plain(&e).replace(" - InvalidClientConfig", "")
            )
        }
        _ => "the Redis address is not understood".to_string(),
    };
    if url.expose().ends_with("#insecure") {
        return Err(
            "the Redis address: #insecure is not taken; give the root certificate instead".to_string(),
        );
    }
    let info = url.expose().into_connection_info().map_err(said)?;
    // Without it small questions wait for the acknowledgement of the ones before.
    let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    match &settings.root_certificates {
        Some(pem) => {
            let certificates = TlsCertificates {
                client_tls: None,
                root_cert: Some(pem.clone()),
            };
            Client::build_with_tls(info, certificates)
                .map_err(|_| "the root certificate for Redis is not understood".to_string())
        }
        None => Client::open(info).map_err(said),
    }
}

/// The error in the library's own fixed words.
fn plain(e: &RedisError) -> String {
    let text = e.to_string();
    match e.detail() {
        Some(detail) => text
            .replace(detail, "")
            .trim_end_matches([' ', ':', '-'])
            .to_string(),
        None => text,
    }
}

impl Line {
    /// A line that is away for good, for an address that cannot be used, has no `client`.
    pub fn new(sign_of_life: String, settings: Settings, usable: bool) -> Self {
        let first = if usable { State::Connecting } else { State::Away };
        Self {
            state: watch::Sender::new(first),
            answered: AtomicBool::new(false),
            sign_of_life,
            refused: Mutex::new(None),
            settings,
        }
    }

    pub fn is_up(&self) -> bool {
        matches!(*self.state.borrow(), State::Up(..))
    }

    /// Asks, within the bound. Nothing is asked twice: whether a question whose answer did not come was
    /// carried out, nobody knows.
    pub async fn ask<T: FromRedisValue>(&self, question: &ScriptInvocation<'_>) -> Result<T, Away> {
        let deadline = Instant::now() + self.settings.bound;
        let (mut connection, number) = self.connection(deadline).await.ok_or(Away)?;
        match timeout_at(deadline, question.invoke_async(&mut connection)).await {
            Ok(Ok(answer)) => {
                self.answered.store(true, Ordering::Relaxed);
                Ok(answer)
            }
            Ok(Err(e)) => {
                if is_about_one_key(&e) {
                    self.refused(&e);
                } else if e.is_connection_dropped() {
                    self.broke(number, &e);
                } else {
                    self.lose(number, &e.to_string());
                }
                Err(Away)
            }
            Err(_) => {
                self.lose(number, "no answer in time");
                Err(Away)
            }
        }
    }

    /// One account that cannot be asked about may be asked about a thousand times a second.
    fn refused(&self, why: &RedisError) {
        let now = Instant::now();
        let mut last = self.refused.lock();
        if last.is_none_or(|at| now.duration_since(at) >= SILENCE) {
            *last = Some(now);
            drop(last);
            log::warn!("event=redis_refused error={:?}", why.to_string());
        }
    }

    async fn connection(&self, deadline: Instant) -> Option<(MultiplexedConnection, u64)> {
        let now = self.state.borrow().clone();
        let state = match now {
            State::Connecting => {
                let mut changes = self.state.subscribe();
                let settled = changes.wait_for(|s| !matches!(s, State::Connecting));
                timeout_at(deadline, settled).await.ok()?.ok()?.clone()
            }
            other => other,
        };
        match state {
            State::Up(connection, number) => Some((connection, number)),
            State::Connecting | State::Away => None,
        }
    }

    /// The connection is closed: another may stand at once.
    fn broke(&self, number: u64, why: &RedisError) {
        if self.leave(number, State::Connecting) {
            log::info!("event=redis_connection_lost error={:?}", why.to_string());
        }
    }

    /// Redis does not answer, or not as it should.
    fn lose(&self, number: u64, why: &str) {
        if self.leave(number, State::Away) {
            log::warn!("event=redis_away error={why:?}");
        }
    }

    fn leave(&self, number: u64, next: State) -> bool {
        self.state.send_if_modified(|state| {
            let current = matches!(state, State::Up(_, n) if *n == number);
            if current {
                *state = next;
            }
            current
        })
    }

    /// Whoever waits for a connection need not any longer.
    fn give_up_waiting(&self, why: &str) {
        let waited = self.state.send_if_modified(|state| {
            let waited = matches!(state, State::Connecting);
            if waited {
                *state = State::Away;
            }
            waited
        });
        if waited {
            log::warn!("event=redis_away error={why:?}");
        }
    }

    /// Connects, watches over the connection and connects again, until it is dropped.
    pub async fn keep(self: Arc<Self>, client: Client) {
        // Host and port, without user and password.
        let at = client.get_connection_info().addr().to_string();
        for number in 1.. {
            let connecting = self.reach(&client);
            tokio::pin!(connecting);
            let reached = match timeout(self.settings.bound, &mut connecting).await {
                Ok(reached) => reached,
                Err(_) => {
                    self.give_up_waiting(&format!("no connection in time, to {at}"));
                    connecting.await
                }
            };
            let at_once = match reached {
                Ok(connection) => {
                    let since = Instant::now();
                    self.state.send_replace(State::Up(connection.clone(), number));
                    log::info!("event=redis_up");
                    self.watch_over(connection, number).await;
                    // A connection that breaks as soon as it stands is not worth a run of attempts.
                    since.elapsed() >= self.settings.pause
                        && matches!(*self.state.borrow(), State::Connecting)
                }
                Err(why) => {
                    self.give_up_waiting(&format!("{why}, at {at}"));
                    false
                }
            };
            if !at_once {
                self.give_up_waiting("the connection broke as soon as it stood");
                tokio::time::sleep(self.settings.pause).await;
            }
        }
    }

    /// A new connection on which Redis has answered and taken a write.
    async fn reach(&self, client: &Client) -> Result<MultiplexedConnection, String> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = timeout(CONNECT, connecting)
            .await
            .map_err(|_| "no connection in time".to_string())?
            .map_err(|e| e.to_string())?;
        self.probe(&mut connection).await?.map_err(|e| e.to_string())?;
        Ok(connection)
    }

    /// `Err` outside: no answer in time.
    async fn probe(&self, connection: &mut MultiplexedConnection) -> Result<RedisResult<()>, String> {
        let mut write = redis::cmd("SET");
        write.arg(&self.sign_of_life).arg(1).arg("EX").arg(10);
        timeout(self.settings.bound, write.exec_async(connection))
            .await
            .map_err(|_| "no answer in time".to_string())
    }

    /// Returns once this connection is no longer the one in use.
    async fn watch_over(&self, mut connection: MultiplexedConnection, number: u64) {
        let mut changes = self.state.subscribe();
        loop {
            let left = changes.wait_for(|s| !matches!(s, State::Up(_, n) if *n == number));
            if timeout(self.settings.pause, left).await.is_ok() {
                return;
            }
            if self.answered.swap(false, Ordering::Relaxed) {
                continue;
            }
            match self.probe(&mut connection).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) if e.is_connection_dropped() => self.broke(number, &e),
                Ok(Err(e)) => self.lose(number, &e.to_string()),
                Err(why) => self.lose(number, &why),
            }
        }
    }
}

/// Somebody else's data under our key, or a script that stumbles over it: no reason to leave all other
/// accounts without Redis.
fn is_about_one_key(e: &RedisError) -> bool {
    match e.kind() {
        ErrorKind::Server(ServerErrorKind::ResponseError | ServerErrorKind::Moved | ServerErrorKind::Ask)
        | ErrorKind::UnexpectedReturnType => true,
        _ => e.code() == Some("WRONGTYPE"),
    }
}

/// Asks once whether anybody answers at an address, on a connection of its own: how long that took. Takes at
/// most a few seconds.
pub async fn ping(url: &Secret) -> Result<Duration, String> {
    let client = client(url, &Settings::default())?;
    let asked = timeout(CONNECT, async {
        let mut connection = client.get_multiplexed_async_connection().await?;
        let begun = Instant::now();
        redis::cmd("PING").exec_async(&mut connection).await?;
        Ok::<_, RedisError>(begun.elapsed())
    });
    match asked.await {
        Ok(Ok(took)) => Ok(took),
        Ok(Err(e)) => {
            let refused = matches!(e.code(), Some("NOAUTH" | "WRONGPASS"));
            Err(match refused || e.kind() == ErrorKind::AuthenticationFailed {
                true => "the password is wrong, or there is none".into(),
                false => plain(&e),
            })
        }
        Err(_) => Err("it does not answer in time".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_an_address_do_not_repeat_it() {
        for url in [
            "http://:hunter2@h/",
            "redis://:hunter2@h/hunter2",
            "redis://:hunter2@h/?protocol=hunter2",
            "redis://:hunter2@0.0.0.0/",
            "rediss://:hunter2@h/#hunter2",
            "rediss://:hunter2@h/#insecure",
            "hunter2",
        ] {
            let said = client(&Secret::new(url), &Settings::default()).expect_err(url);
            assert!(
                said.contains("Redis") && !said.contains("hunter2"),
                "{url}: {said}"
            );
        }
        for url in [
            "redis://:hunter2@h:1/2",
            "rediss://u:hunter2@h",
            "valkey://h",
            "unix:///run/redis.sock",
        ] {
            assert!(client(&Secret::new(url), &Settings::default()).is_ok(), "{url}");
        }
    }
}
