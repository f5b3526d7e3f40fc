//! The side of the process that is replaced.

use super::TAKE_OVER;
use super::line::{self, GO, LONGEST_WORD, NO, Word};
use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

/// For a new process that is not wanted to end by itself.
const TO_END: Duration = Duration::from_secs(5);
/// For the exit code of a process that said nothing.
const TO_FALL: Duration = Duration::from_secs(2);

/// Starts `binary` with `args`, hands it `listeners`, and waits until it says that it serves; that cannot be
/// taken back. The new one's process id. `Err` is a sentence: the new one is gone, or on its way out, and
/// nothing has changed. So it ends as well when `stop` does.
pub async fn hand_over(
    binary: &Path,
    args: &[OsString],
    listeners: &[TcpListener],
    patience: Duration,
    stop: impl Future<Output = ()>,
) -> Result<u32, String> {
    let cannot = |e: io::Error| format!("{} cannot be started: {e}", binary.display());
    let (ours, theirs) = UnixStream::pair().map_err(cannot)?;
    let mut child = spawn(binary, args, theirs).map_err(cannot)?;
    let pid = child.id().unwrap_or_default();
    log::info!("upgrade: started {} as process {pid}", binary.display());
    let mut line = match send(ours, listeners) {
        Ok(line) => BufReader::new(line),
        Err(e) => {
            let why = match tokio::time::timeout(TO_FALL, child.wait()).await {
                Ok(Ok(status)) => without_a_word(status),
                _ => format!("the sockets cannot be handed over: {e}"),
            };
            tokio::spawn(end(child));
            return Err(why);
        }
    };
    let outcome = tokio::select! {
        outcome = hear(&mut line, &mut child) => outcome,
        () = tokio::time::sleep(patience) => {
            Err(format!("the new process was not ready within {} s", patience.as_secs_f32()))
        }
        () = stop => Err("the running process was told to stop meanwhile".to_string()),
    };
    match outcome {
        Ok(()) => {
            // Whoever waits for nobody leaves a zombie.
            tokio::spawn(async move {
                if let Ok(status) = child.wait().await {
                    log::warn!("upgrade: the new process {pid} has ended: {}", ended(status));
                }
            });
            Ok(pid)
        }
        Err(why) => {
            // One that is ready the next moment must not take itself for the gateway.
            let _ = line.get_mut().try_write(NO);
            tokio::spawn(end(child));
            Err(why)
        }
    }
}

fn spawn(binary: &Path, args: &[OsString], line: UnixStream) -> io::Result<Child> {
    Command::new(binary)
        .args(args)
        .env(TAKE_OVER, std::process::id().to_string())
        // It names the process that the service manager watches; from then on it is the new one.
        .env_remove("WATCHDOG_PID")
        .stdin(Stdio::from(OwnedFd::from(line)))
        .spawn()
}

fn send(line: UnixStream, listeners: &[TcpListener]) -> io::Result<tokio::net::UnixStream> {
    line::send_listeners(&line, listeners)?;
    line.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(line)
}

/// Waits for the new process' word and answers it.
async fn hear(line: &mut BufReader<tokio::net::UnixStream>, child: &mut Child) -> Result<(), String> {
    let mut said = Vec::new();
    let mut limited = (&mut *line).take(LONGEST_WORD);
    if let Err(e) = limited.read_until(b'\n', &mut said).await {
        log::warn!("upgrade: the line to the new process: {e}");
    }
    match serde_json::from_slice(&said) {
        Ok(Word::Ready) => {}
        Ok(Word::Failed { why }) => return Err(format!("the new process gave up: {why}")),
        // A program that knows nothing of hand-overs, or one that fell.
        Err(_) => {
            return Err(match tokio::time::timeout(TO_FALL, child.wait()).await {
                Ok(Ok(status)) => without_a_word(status),
                _ => "the new process knows nothing of a hand-over".to_string(),
            });
        }
    }
    if let Ok(Some(status)) = child.try_wait() {
        return Err(format!("the new process ended at once: {}", ended(status)));
    }
    let gone = |e: io::Error| format!("the new process is gone: {e}");
    line.get_mut().write_all(GO).await.map_err(gone)
}

/// Asks it to go, and after a while does not ask any more.
async fn end(mut child: Child) {
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok())
        && let Some(pid) = rustix::process::Pid::from_raw(pid)
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(TO_END, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn without_a_word(status: ExitStatus) -> String {
    format!("the new process ended without a word: {}", ended(status))
}

fn ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}
