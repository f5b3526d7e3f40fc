//! Reads the answer of an HTTP/1 upstream that says how long it is, as whole JSON answers do, in as few steps as
//! that takes. Whatever is not as ordinary as that is put back unread, for Pingora's client to make sense of.

use super::head;
use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, StatusCode, header, response};
use pingora::prelude::*;
use pingora::protocols::Stream;
use pingora::protocols::l4::stream::Stream as Tcp;
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// What is read at once, bytes: the whole of most answers.
const FIRST: usize = 8 << 10;
/// Of a large answer, and handed on as it comes.
const PIECE: usize = 64 << 10;
/// A head longer than this is not ordinary.
const LONGEST_HEAD: usize = 16 << 10;
/// And neither is one with more fields than this.
const MOST_FIELDS: usize = 64;

/// What came of looking.
pub(super) enum Looked {
    Ordinary(Box<Reply>),
    /// Nothing of it has been read.
    Other(Stream),
}

/// An answer whose head has been read, and what has come of its body.
pub(super) struct Reply {
    head: response::Parts,
    stream: Stream,
    /// What has come and was not handed on.
    come: BytesMut,
    /// What is still to come, bytes.
    left: u64,
    /// The upstream keeps the connection.
    stays: bool,
    /// For each further read.
    pub(super) patience: Duration,
}

/// Waits for an answer; each read behind its head waits at most `patience`. Only on plain TCP can anything be put
/// back.
pub(super) async fn look(stream: Stream, patience: Duration) -> Result<Looked> {
    let mut stream = match stream.into_any().downcast::<Tcp>() {
        Ok(tcp) => tcp,
        Err(_) => {
            return Err(Error::explain(
                ErrorType::InternalError,
                "a connection of no known kind",
            ));
        }
    };
    let mut come = BytesMut::with_capacity(FIRST);
    loop {
        let n = stream.read_buf(&mut come).await;
        if n.or_err(ErrorType::ReadError, "reading an answer")? == 0 {
            return Err(Error::explain(
                ErrorType::ConnectionClosed,
                "before an answer's head was whole",
            ));
        }
        let Some(end) = memchr::memmem::find(&come, b"\r\n\r\n") else {
            if come.len() < LONGEST_HEAD {
                continue;
            }
            break;
        };
        let Some(Head { parts, length, stays }) = come.get(..end + 2).and_then(parse) else {
            break;
        };
        let _ = come.split_to(end + 4);
        // What nobody asked for is not another answer.
        let stays = stays && come.len() as u64 <= length;
        come.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        return Ok(Looked::Ordinary(Box::new(Reply {
            head: parts,
            left: length - come.len() as u64,
            stream,
            come,
            stays,
            patience,
        })));
    }
    stream.rewind(&come);
    Ok(Looked::Other(stream))
}

impl Reply {
    /// What of its head goes on to the client. Once.
    pub(super) fn take_head(&mut self) -> response::Parts {
        std::mem::replace(&mut self.head, http::Response::new(()).into_parts().0)
    }

    /// The next part of the body, and whether it is the last.
    pub(super) async fn next(&mut self) -> Result<(Bytes, bool)> {
        if self.come.is_empty() && self.left > 0 {
            // Not beyond the end: that is nobody's.
            let room = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
            self.come.reserve(room);
            let mut rest = (&mut self.stream).take(self.left);
            let n = pingora_timeout::timeout(self.patience, rest.read_buf(&mut self.come))
                .await
                .or_err(ErrorType::ReadTimedout, "waiting for an answer's rest")?
                .or_err(ErrorType::ReadError, "reading an answer")?;
            if n == 0 {
                return Err(Error::explain(
                    ErrorType::ConnectionClosed,
                    format!("{} bytes before the answer's end", self.left),
                ));
            }
            self.left = self.left.saturating_sub(n as u64);
        }
        Ok((self.come.split().freeze(), self.left == 0))
    }

    /// The connection, if another request may be sent on it.
    pub(super) fn into_connection(self) -> Option<Stream> {
        (self.stays && self.left == 0 && self.come.is_empty()).then_some(self.stream)
    }
}

struct Head {
    parts: response::Parts,
    length: u64,
    stays: bool,
}

/// Reads the lines of a head. `None` = it is not ordinary: no success, no single length, coded or changed on the way,
/// or not written as it should be.
fn parse(head: &[u8]) -> Option<Head> {
    let (line, mut rest) = line(head)?;
    let code = line.strip_prefix(b"HTTP/1.1 ")?;
    let status = StatusCode::from_bytes(code.get(..3)?).ok()?;
    let ends = matches!(code.get(3), None | Some(b' '));
    let bodyless = matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT);
    if !ends || !status.is_success() || bodyless {
        return None;
    }
    let mut parts = http::Response::new(()).into_parts().0;
    parts.status = status;
    // With what the gateway says of a call.
    parts.headers.reserve(16);
    let (mut length, mut stays, mut fields) = (None, true, 0);
    while !rest.is_empty() {
        let (field, next) = self::line(rest)?;
        rest = next;
        fields += 1;
        let colon = memchr::memchr(b':', field)?;
        let name = HeaderName::from_bytes(field.get(..colon)?).ok()?;
        let value = field.get(colon + 1..)?.trim_ascii();
        match name {
            header::CONTENT_LENGTH => {
                let digits = !value.is_empty() && value.len() < 16 && value.iter().all(u8::is_ascii_digit);
                if length.is_some() || !digits {
                    return None;
                }
                length = Some(std::str::from_utf8(value).ok()?.parse().ok()?);
            }
            header::TRANSFER_ENCODING | header::UPGRADE | header::TRAILER => return None,
            header::CONNECTION if !value.eq_ignore_ascii_case(b"keep-alive") => stays = false,
            _ => {}
        }
        if fields > MOST_FIELDS {
            return None;
        }
        head::pass(&mut parts.headers, name, || HeaderValue::from_bytes(value).ok())?;
    }
    Some(Head {
        parts,
        length: length?,
        stays,
    })
}

/// The next line without its end, and what follows it.
fn line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(b'\n', text)?;
    let (line, rest) = (text.get(..at)?.strip_suffix(b"\r")?, text.get(at + 1..)?);
    Some((line, rest))
}
