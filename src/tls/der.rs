//! What we need to know of a certificate: its names, how long it is good, its serial number.
//!
//! Read only after rustls has read the same certificate; whether it is any good is not judged here.
//! Anything unexpected is `None`, and every length is checked against what is there.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use std::net::IpAddr;

/// Most names that are read of one certificate.
const MOST_NAMES: usize = 1_000;

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const LONG_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;
/// id-ce-subjectAltName, 2.5.29.17.
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
/// id-ce-authorityKeyIdentifier, 2.5.29.35.
const AUTHORITY_KEY: &[u8] = &[0x55, 0x1d, 0x23];
const KEY_ID: u8 = 0x80;

/// What a certificate says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// In hex, without leading zeros.
    pub serial: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
    /// In lower case; a wildcard as `*.example.com`.
    pub names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    /// What its authority calls it when it is asked when to renew it (RFC 9773).
    pub renewal_id: Option<String>,
}

/// Reads a certificate in DER.
pub fn facts(certificate: &[u8]) -> Option<Facts> {
    let mut outer = Der(Der(certificate).expect(SEQUENCE)?);
    let mut tbs = Der(outer.expect(SEQUENCE)?);
    let (mut tag, mut value) = tbs.next()?;
    if tag == VERSION {
        (tag, value) = tbs.next()?;
    }
    if tag != INTEGER {
        return None;
    }
    let serial_bytes = value;
    let serial: String = value.iter().map(|b| format!("{b:02x}")).collect();
    tbs.expect(SEQUENCE)?; // the signature's algorithm
    tbs.expect(SEQUENCE)?; // the issuer
    let mut validity = Der(tbs.expect(SEQUENCE)?);
    let mut facts = Facts {
        serial: serial.trim_start_matches('0').to_string(),
        not_before: time(validity.next()?)?,
        not_after: time(validity.next()?)?,
        ..Facts::default()
    };
    while let Some((tag, value)) = tbs.next() {
        if tag == EXTENSIONS {
            let mut extensions = Der(Der(value).expect(SEQUENCE)?);
            while let Some((SEQUENCE, extension)) = extensions.next() {
                let (name, octets) = extension_of(Der(extension))?;
                match name {
                    ALTERNATIVE_NAMES => alternative_names(octets, &mut facts)?,
                    AUTHORITY_KEY => facts.renewal_id = renewal_id(octets, serial_bytes),
                    _ => {}
                }
            }
        }
    }
    Some(facts)
}

/// An extension's kind and what is in it.
fn extension_of<'a>(mut extension: Der<'a>) -> Option<(&'a [u8], &'a [u8])> {
    let name = extension.expect(OID)?;
    loop {
        // What may stand between says whether the extension is critical.
        match extension.next()? {
            (OCTETS, octets) => return Some((name, octets)),
            _ => continue,
        }
    }
}

/// The key of the authority, and the number that it gave.
fn renewal_id(authority_key: &[u8], serial: &[u8]) -> Option<String> {
    let mut fields = Der(Der(authority_key).expect(SEQUENCE)?);
    let key = fields.expect(KEY_ID)?;
    let text = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    Some(format!("{}.{}", text(key), text(serial)))
}

fn alternative_names(octets: &[u8], facts: &mut Facts) -> Option<()> {
    let mut names = Der(Der(octets).expect(SEQUENCE)?);
    while let Some((tag, value)) = names.next() {
        if facts.names.len() + facts.addresses.len() >= MOST_NAMES {
            break;
        }
        match tag {
            DNS_NAME if value.is_ascii() => {
                facts
                    .names
                    .push(String::from_utf8_lossy(value).to_ascii_lowercase());
            }
            IP_ADDRESS => {
                let four = <[u8; 4]>::try_from(value).map(IpAddr::from);
                let sixteen = <[u8; 16]>::try_from(value).map(IpAddr::from);
                facts.addresses.extend(four.or(sixteen));
            }
            _ => {}
        }
    }
    Some(())
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`.
fn time((tag, value): (u8, &[u8])) -> Option<i64> {
    let (year, rest) = match (tag, value.len()) {
        (UTC_TIME, 13) => {
            let year = digits(value.get(..2)?)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, value.get(2..)?)
        }
        (LONG_TIME, 15) => (digits(value.get(..4)?)?, value.get(4..)?),
        _ => return None,
    };
    if rest.last() != Some(&b'Z') {
        return None;
    }
    let part = |at: usize| i8::try_from(digits(rest.get(at..at + 2)?)?).ok();
    DateTime::new(year, part(0)?, part(2)?, part(4)?, part(6)?, part(8)?, 0)
        .ok()?
        .to_zoned(TimeZone::UTC)
        .ok()
        .map(|t| t.timestamp().as_second())
}

fn digits(text: &[u8]) -> Option<i16> {
    text.iter().try_fold(0, |n: i16, b| {
        b.is_ascii_digit().then(|| n * 10 + i16::from(b - b'0'))
    })
}

/// What is left to read.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element: its tag and what is in it.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b)), rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, value))
    }

    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(t, _)| *t == tag).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, SerialNumber, date_time_ymd};

    fn certificate() -> Vec<u8> {
        let names = ["LLM.example.com", "*.example.com", "192.168.1.5", "::1"];
        let mut params = CertificateParams::new(names.map(String::from)).unwrap();
        params.serial_number = Some(SerialNumber::from(0x0123_4567_u64));
        params.not_before = date_time_ymd(2001, 9, 9);
        params.not_after = date_time_ymd(2055, 1, 2);
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        made.der().to_vec()
    }

    #[test]
    fn a_certificate_tells_what_it_is() {
        assert_eq!(
            facts(&certificate()),
            Some(Facts {
                serial: "1234567".into(),
                not_before: 999_993_600,
                not_after: 2_682_460_800,
                names: vec!["llm.example.com".into(), "*.example.com".into()],
                addresses: vec!["192.168.1.5".parse().unwrap(), "::1".parse().unwrap()],
                renewal_id: None,
            })
        );
    }

    /// The example of RFC 9773, section 4.1.
    #[test]
    fn its_authority_knows_it_by_key_and_number() {
        let key = [
            0x69, 0x88, 0x5b, 0x6b, 0x87, 0x46, 0x40, 0x41, 0xe1, 0xb3, 0x7b, 0x84, 0x7b, 0xa0, 0xae, 0x2c,
            0xde, 0x01, 0xc8, 0xd4,
        ];
        let extension = [&[0x30, 0x16, 0x80, 0x14][..], &key].concat();
        let id = renewal_id(&extension, &[0x00, 0x87, 0x65, 0x43, 0x21]);
        assert_eq!(id.as_deref(), Some("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"));
        assert_eq!(renewal_id(&[0x30, 0x00], &[1]), None);
        let mut params = CertificateParams::new(vec!["a.example".into()]).unwrap();
        params.serial_number = Some(SerialNumber::from(0x87_u64));
        params.use_authority_key_identifier_extension = true;
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let id = facts(made.der()).unwrap().renewal_id.unwrap();
        assert!(id.ends_with(".AIc"), "{id}");
    }

    #[test]
    fn a_cut_certificate_is_none() {
        let whole = certificate();
        for len in 0..whole.len() {
            assert_eq!(facts(&whole[..len]), None, "{len}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), at in 0usize..700, with: u8) {
            let _ = facts(&bytes);
            let mut whole = certificate();
            let at = at % whole.len();
            whole[at] = with;
            let _ = facts(&whole);
        }
    }
}
