//! What the old and the new process say to each other, over a pair of connected sockets: the old one sends
//! its listening sockets, the new one answers with one word, the old one with another.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

/// More listeners are not handed over.
pub const MOST_LISTENERS: usize = 64;
/// Goes with the sockets. Another form of the hand-over gets another number.
const HELLO: &[u8] = b"tollkeeper sockets 1\n";
/// The longest word, in bytes.
pub const LONGEST_WORD: u64 = 16 << 10;
/// The longest reason that is told.
const LONGEST_WHY: usize = 8 << 10;

/// What the new process says, in one line of JSON.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "word", rename_all = "snake_case")]
pub enum Word {
    /// It accepts connections, and its store is reached.
    Ready,
    /// It ends without having served anybody.
    Failed { why: String },
}

impl Word {
    pub fn failed(why: &str) -> Self {
        let end = why.floor_char_boundary(LONGEST_WHY.min(why.len()));
        Self::Failed {
            why: why.get(..end).unwrap_or_default().trim().to_string(),
        }
    }

    pub fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// What the old process says to a new one that is ready: from here on it is the gateway.
pub const GO: &[u8] = b"go\n";
/// What it says to one that is not wanted any more. As long as the other.
pub const NO: &[u8] = b"no\n";

/// The sockets are not for programs that the new process starts.
#[cfg(target_os = "linux")]
const RECEIVE: RecvFlags = RecvFlags::CMSG_CLOEXEC;
#[cfg(not(target_os = "linux"))]
const RECEIVE: RecvFlags = RecvFlags::empty();

pub fn send_listeners(line: &UnixStream, listeners: &[TcpListener]) -> io::Result<()> {
    let sockets: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_LISTENERS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if sockets.len() > MOST_LISTENERS || !control.push(SendAncillaryMessage::ScmRights(&sockets)) {
        return Err(io::Error::other(format!(
            "{} listeners are more than the {MOST_LISTENERS} that can be handed over",
            sockets.len()
        )));
    }
    let sent = sendmsg(line, &[IoSlice::new(HELLO)], &mut control, SendFlags::NOSIGNAL)?;
    if sent != HELLO.len() {
        return Err(io::Error::from(io::ErrorKind::WriteZero));
    }
    Ok(())
}

pub fn receive_listeners(line: &UnixStream) -> io::Result<Vec<TcpListener>> {
    let mut hello = [0; HELLO.len()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_LISTENERS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(line, &mut [IoSliceMut::new(&mut hello)], &mut control, RECEIVE)?;
    let mut listeners = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sockets) = message {
            listeners.extend(sockets.map(TcpListener::from));
        }
    }
    if got.bytes != HELLO.len() || hello != HELLO || got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "what came over the line is no hand-over that this version knows",
        ));
    }
    Ok(listeners)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn sockets_arrive_as_what_they_were() {
        let (here, there) = UnixStream::pair().unwrap();
        let listeners: Vec<_> = (0..3)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        send_listeners(&here, &listeners).unwrap();
        let got = receive_listeners(&there).unwrap();
        let addresses =
            |all: &[TcpListener]| -> Vec<_> { all.iter().map(|l| l.local_addr().unwrap()).collect() };
        assert_eq!(addresses(&got), addresses(&listeners));
        // The sockets live on when those who sent them are gone.
        drop(listeners);
        std::net::TcpStream::connect(got[0].local_addr().unwrap()).unwrap();
        got[0].accept().unwrap();
    }

    #[test]
    fn what_is_no_hand_over_is_refused() {
        let (mut here, there) = UnixStream::pair().unwrap();
        here.write_all(b"tollkeeper sockets 9\n").unwrap();
        assert!(receive_listeners(&there).is_err());
        drop(here);
        assert!(receive_listeners(&there).is_err());
    }

    #[test]
    fn too_many_are_refused_and_not_cut() {
        let (here, _there) = UnixStream::pair().unwrap();
        let one = TcpListener::bind("127.0.0.1:0").unwrap();
        let many: Vec<_> = (0..=MOST_LISTENERS).map(|_| one.try_clone().unwrap()).collect();
        let error = send_listeners(&here, &many).unwrap_err().to_string();
        assert!(error.contains("65 listeners"), "{error}");
    }

    #[test]
    fn a_long_reason_is_cut_within_the_word() {
        let word = Word::failed(&"ü\n".repeat(20_000));
        let line = word.line();
        assert!(line.len() < LONGEST_WORD as usize);
        assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
        assert_eq!(serde_json::from_slice::<Word>(&line).unwrap(), word);
    }
}
