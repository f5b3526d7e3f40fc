//! The PROXY protocol, versions 1 and 2: the first bytes of a connection, in which a proxy says whom it
//! speaks for. Who may send it is `door`'s.

use std::io::{Error, ErrorKind, Result};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::{AsyncRead, AsyncReadExt};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// What version 1 may take, its end of line included, bytes.
const LONGEST_LINE: usize = 107;
/// What version 2 may say after its first 16 bytes. Addresses take 36; the rest are additions that nobody
/// here reads.
const LONGEST_BLOCK: usize = 4096;

/// Reads the header and not a byte more. `None`: the proxy speaks for itself, as it does for health checks,
/// or for somebody without an address.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>> {
    let mut start = [0; 12];
    stream.read_exact(&mut start).await?;
    if start == *SIGNATURE {
        return version_2(stream).await;
    }
    if !start.starts_with(b"PROXY ") {
        return Err(wrong("it does not begin as one"));
    }
    let mut line = start.to_vec();
    // The bytes stand in the connection's buffer; these are no system calls.
    while !line.ends_with(b"\r\n") {
        if line.len() >= LONGEST_LINE {
            return Err(wrong("its line is too long"));
        }
        line.push(stream.read_u8().await?);
    }
    version_1(&line)
}

fn version_1(line: &[u8]) -> Result<Option<SocketAddr>> {
    let line = std::str::from_utf8(line).map_err(|_| wrong("its line is no text"))?;
    let line = line.strip_suffix("\r\n").unwrap_or(line);
    if line.contains(['\r', '\n']) {
        return Err(wrong("its line has an end in its middle"));
    }
    let mut words = line.split(' ').skip(1);
    let family = words.next();
    if family == Some("UNKNOWN") {
        return Ok(None);
    }
    let words: Vec<&str> = words.collect();
    let [source, destination, source_port, destination_port] = words[..] else {
        return Err(wrong("its line has not four words for two addresses"));
    };
    let port = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) {
        true => text.parse::<u16>().map_err(|_| wrong("a port is none")),
        false => Err(wrong("a port is none")),
    };
    let (port, _) = (port(source_port)?, port(destination_port)?);
    let no_address = |_| wrong("an address is none");
    match family {
        Some("TCP4") => {
            destination.parse::<Ipv4Addr>().map_err(no_address)?;
            let ip: Ipv4Addr = source.parse().map_err(no_address)?;
            Ok(Some(SocketAddr::from((ip, port))))
        }
        Some("TCP6") => {
            destination.parse::<Ipv6Addr>().map_err(no_address)?;
            let ip: Ipv6Addr = source.parse().map_err(no_address)?;
            Ok(Some(SocketAddr::from((ip, port))))
        }
        _ => Err(wrong("its family is neither TCP4 nor TCP6")),
    }
}

async fn version_2(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>> {
    let command = stream.read_u8().await?;
    let family = stream.read_u8().await?;
    let length = usize::from(stream.read_u16().await?);
    if length > LONGEST_BLOCK {
        return Err(wrong("it is too long"));
    }
    let mut block = vec![0; length];
    stream.read_exact(&mut block).await?;
    match command {
        0x20 => return Ok(None),
        0x21 => {}
        _ => return Err(wrong("its version or command is unknown")),
    }
    match family {
        0x11 => {
            let [a, b, c, d, _, _, _, _, hi, lo, ..] = block[..] else {
                return Err(wrong("its addresses are cut off"));
            };
            let port = u16::from_be_bytes([hi, lo]);
            whole(&block, 12)?;
            Ok(Some(SocketAddr::from(([a, b, c, d], port))))
        }
        0x21 => {
            whole(&block, 36)?;
            let ip: Option<[u8; 16]> = block.get(..16).and_then(|s| s.try_into().ok());
            let port: Option<[u8; 2]> = block.get(32..34).and_then(|s| s.try_into().ok());
            match (ip, port) {
                (Some(ip), Some(port)) => Ok(Some(SocketAddr::from((
                    Ipv6Addr::from(ip),
                    u16::from_be_bytes(port),
                )))),
                _ => Err(wrong("its addresses are cut off")),
            }
        }
        // Datagrams, sockets of the file system, unspecified: nobody with an address.
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => Ok(None),
        _ => Err(wrong("its family is unknown")),
    }
}

fn whole(block: &[u8], needed: usize) -> Result<()> {
    match block.len() >= needed {
        true => Ok(()),
        false => Err(wrong("its addresses are cut off")),
    }
}

fn wrong(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> (Result<Option<SocketAddr>>, Vec<u8>) {
        let mut rest = bytes;
        let got = futures::executor::block_on(read(&mut rest));
        (got, rest.to_vec())
    }

    fn version_2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let mut out = SIGNATURE.to_vec();
        out.extend([command, family]);
        out.extend((block.len() as u16).to_be_bytes());
        out.extend(block);
        out
    }

    #[test]
    fn both_versions_are_read_and_nothing_after_them() {
        let v4 = [&[192, 0, 2, 7, 10, 0, 0, 1][..], &[0x10, 0x01, 0x01, 0xbb]].concat();
        let mut v6 = Ipv6Addr::LOCALHOST.octets().to_vec();
        v6.extend(Ipv6Addr::UNSPECIFIED.octets());
        v6.extend([0x10, 0x01, 0x01, 0xbb]);
        let with_tlv = [&v4[..], &[3, 0, 4, 1, 2, 3, 4]].concat();
        for (header, address) in [
            (
                b"PROXY TCP4 192.0.2.7 10.0.0.1 4097 443\r\n".to_vec(),
                Some("192.0.2.7:4097"),
            ),
            (
                b"PROXY TCP6 2001:db8::1 ::1 4097 443\r\n".to_vec(),
                Some("[2001:db8::1]:4097"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ff ff 1 1\r\n".to_vec(), None),
            (version_2(0x21, 0x11, &v4), Some("192.0.2.7:4097")),
            (version_2(0x21, 0x11, &with_tlv), Some("192.0.2.7:4097")),
            (version_2(0x21, 0x21, &v6), Some("[::1]:4097")),
            (version_2(0x20, 0x00, &[]), None),
            (version_2(0x21, 0x31, &[0; 216]), None),
        ] {
            let (got, rest) = of(&[&header[..], b"GET / HTTP/1.1\r\n"].concat());
            assert_eq!(
                got.unwrap(),
                address.map(|a| a.parse().unwrap()),
                "{}",
                header.escape_ascii()
            );
            assert_eq!(rest, b"GET / HTTP/1.1\r\n", "{}", header.escape_ascii());
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for header in [
            b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 4097\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 +097 443\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 70000 443\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::1 ::1 4097 443\r\n".to_vec(),
            b"PROXY TCP6 192.0.2.7 10.0.0.1 1 2\r\n".to_vec(),
            b"PROXY TCP4  192.0.2.7 10.0.0.1 1 2\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.7 10.0.0.1 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2\nGET / HTTP/1.1\r\n".to_vec(),
            [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat(),
            b"PROXY TCP4 192.0.2.7".to_vec(),
            version_2(0x11, 0x11, &[0; 12]),
            version_2(0x22, 0x11, &[0; 12]),
            version_2(0x21, 0x11, &[0; 11]),
            version_2(0x21, 0x21, &[0; 35]),
            version_2(0x21, 0x99, &[0; 36]),
            version_2(0x21, 0x11, &[0; 5000]),
            SIGNATURE.to_vec(),
        ] {
            assert!(of(&header).0.is_err(), "{}", header.escape_ascii());
        }
    }
}
