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
        let Some(end) = memchr::memmem::find(&come, b"\n\r\n") else {
            // Some end lines without a CR, which is not ordinary.
            if come.len() < LONGEST_HEAD && memchr::memmem::find(&come, b"\n\n").is_none() {
                continue;
            }
            break;
        };
        let Some(Head { parts, length, stays }) = come.get(..=end).and_then(parse) else {
            break;
        };
        let _ = come.split_to(end + 3);
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    /// Our side of a connection, on which an upstream says `pieces` one after the other, and closes it.
    async fn said(pieces: &[&str]) -> Stream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (ours, theirs) = tokio::join!(
            TcpStream::connect(listener.local_addr().unwrap()),
            listener.accept()
        );
        let mut theirs = theirs.unwrap().0;
        let pieces: Vec<String> = pieces.iter().map(ToString::to_string).collect();
        tokio::spawn(async move {
            for piece in pieces {
                theirs.write_all(piece.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        Box::new(Tcp::from(ours.unwrap()))
    }

    async fn whole(reply: &mut Reply) -> Result<String> {
        let mut body = Vec::new();
        loop {
            let (piece, end) = reply.next().await?;
            body.extend_from_slice(&piece);
            if end {
                return Ok(String::from_utf8(body).unwrap());
            }
        }
    }

    const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nserver: x\r\nX-Own: 1\r\ncontent-length: 5\r\n\r\nwords";

    #[tokio::test]
    async fn an_ordinary_answer_is_read_wherever_it_is_cut() {
        for at in 1..GOOD.len() {
            let (a, b) = GOOD.split_at(at);
            let looked = look(said(&[a, b]).await, Duration::from_secs(9)).await.unwrap();
            let Looked::Ordinary(mut reply) = looked else {
                panic!("cut at {at}");
            };
            let head = reply.take_head();
            assert_eq!(head.status, 200);
            assert_eq!(head.headers["content-type"], "application/json");
            assert_eq!(head.headers["x-own"], "1");
            assert!(!head.headers.contains_key("server"));
            assert_eq!(whole(&mut reply).await.unwrap(), "words");
            assert!(reply.into_connection().is_some());
        }
    }

    #[tokio::test]
    async fn a_connection_that_is_closed_or_says_more_is_not_kept() {
        for text in [
            GOOD.replace("X-Own: 1", "Connection: close"),
            GOOD.replace("words", "words and more"),
            GOOD.replace("X-Own: 1", "connection: x-own, close"),
        ] {
            let looked = look(said(&[&text]).await, Duration::from_secs(9)).await.unwrap();
            let Looked::Ordinary(mut reply) = looked else {
                panic!("{text}");
            };
            assert_eq!(whole(&mut reply).await.unwrap(), "words");
            assert!(reply.into_connection().is_none(), "{text}");
        }
    }

    #[tokio::test]
    async fn what_is_not_ordinary_is_put_back() {
        let length = "content-length: 5\r\n";
        for text in [
            GOOD.replace(length, "transfer-encoding: chunked\r\n"),
            GOOD.replace(length, "Transfer-Encoding: chunked\r\ncontent-length: 5\r\n"),
            GOOD.replace(length, ""),
            GOOD.replace(length, "content-length: 5\r\ncontent-length: 5\r\n"),
            GOOD.replace(length, "content-length: 5, 5\r\n"),
            GOOD.replace(length, "content-length: +5\r\n"),
            GOOD.replace(length, "content-length: 5\n"),
            GOOD.replace("\r\n", "\n"),
            GOOD.replace("X-Own: 1", "X-Own: 1\r\n folded"),
            GOOD.replace("X-Own: 1", "X Own: 1"),
            GOOD.replace("X-Own: 1", "X-Own: \u{1}"),
            GOOD.replace("X-Own: 1", "no colon"),
            GOOD.replace("HTTP/1.1", "HTTP/1.0"),
            GOOD.replace("200 OK", "404 Not Found"),
            GOOD.replace("200 OK", "204 No Content"),
            GOOD.replace("200 OK", "2000"),
            GOOD.replace("200 OK", "100 Continue"),
            GOOD.replace("X-Own: 1", &"x: y\r\n".repeat(MOST_FIELDS)),
            GOOD.replace("X-Own: 1", &format!("x: {}", "y".repeat(LONGEST_HEAD))),
            "rubbish\r\n\r\n".to_string(),
        ] {
            let looked = look(said(&[&text]).await, Duration::from_secs(9)).await.unwrap();
            let Looked::Other(mut stream) = looked else {
                panic!("{text}");
            };
            let mut again = String::new();
            stream.read_to_string(&mut again).await.unwrap();
            assert_eq!(again, text);
        }
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_an_error() {
        for end in [0, 20, GOOD.len() - 6] {
            let looked = look(said(&[&GOOD[..end]]).await, Duration::from_secs(9)).await;
            assert_eq!(
                *looked.err().unwrap().etype(),
                ErrorType::ConnectionClosed,
                "{end}"
            );
        }
        let looked = look(said(&[&GOOD[..GOOD.len() - 2]]).await, Duration::from_secs(9)).await;
        let Ok(Looked::Ordinary(mut reply)) = looked else {
            panic!("its head is whole");
        };
        assert!(whole(&mut reply).await.is_err());
        assert!(reply.into_connection().is_none());
    }
}
