//! What LiteLLM encrypted: provider keys of models and credentials kept in its database.
//!
//! Three formats are read. A value without a mark is NaCl's SecretBox (XSalsa20-Poly1305): base64 of
//! nonce (24 bytes), tag, ciphertext; `v2:gcm:` and `v3:gcm:` stand before base64 of nonce (12 bytes),
//! ciphertext, tag of AES-256-GCM. The key is the SHA-256 of the salt key, for `v3` an HKDF of it. Every
//! format is authenticated, so a wrong key is noticed and never yields a wrong text.

use aes_gcm::Aes256Gcm;
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use filters::model::secret::Secret;
use sha2::{Digest, Sha256};

const V2: &str = "v2:gcm:";
const V3: &str = "v3:gcm:";
/// What binds a `v3` key to its purpose.
const V3_INFO: &[u8] = b"litellm-at-rest-v3";
/// Nonce and tag of SecretBox: no ciphertext is shorter.
const BOX_OVERHEAD: usize = 24 + 16;
const GCM_NONCE: usize = 12;

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);

/// Why a value stays closed. Says nothing of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    #[error("it is encrypted, and neither LITELLM_SALT_KEY nor a master key is known here")]
    NoKey,
    #[error("it cannot be decrypted with this LITELLM_SALT_KEY or master key")]
    WrongKey,
}

/// The keys that a value may be closed with: LiteLLM takes its salt key, and without one its master key.
/// Rows from before the salt key was set are closed with the latter, so all are tried.
#[derive(Clone, Debug, Default)]
pub struct Salts(Vec<Secret>);

impl Salts {
    pub fn new(keys: impl IntoIterator<Item = Secret>) -> Self {
        Self(keys.into_iter().filter(|k| !k.is_empty()).collect())
    }

    /// The text behind a stored value. What does not look encrypted is the text itself; base64 that is long
    /// enough to be a ciphertext and does not open is an error, for nobody can tell it from one.
    pub fn open(&self, stored: &str) -> Result<Secret, Closed> {
        let opened = match stored
            .strip_prefix(V3)
            .map(|rest| (rest, hkdf as Derive))
            .or_else(|| stored.strip_prefix(V2).map(|rest| (rest, sha256 as Derive)))
        {
            Some((rest, derive)) => {
                let sealed = URL_SAFE.decode(rest).unwrap_or_default();
                self.first(|salt| gcm(&derive(salt), &sealed))
            }
            None => {
                let Some(sealed) = boxed(stored) else {
                    return Ok(Secret::new(stored));
                };
                self.first(|salt| secretbox(&sha256(salt), &sealed))
            }
        };
        match opened {
            Some(text) => Ok(Secret::new(text)),
            None if self.0.is_empty() => Err(Closed::NoKey),
            None => Err(Closed::WrongKey),
        }
    }

    /// The same for a value within another: LiteLLM leaves those as they are, so what does not open is
    /// plain unless it bears a mark.
    pub fn open_within(&self, stored: &str) -> Result<Secret, Closed> {
        match self.open(stored) {
            Err(_) if !stored.starts_with(V2) && !stored.starts_with(V3) => Ok(Secret::new(stored)),
            answer => answer,
        }
    }

    fn first(&self, open: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Option<String> {
        let plain = self.0.iter().find_map(|salt| open(salt.expose().as_bytes()))?;
        String::from_utf8(plain).ok()
    }
}

type Derive = fn(&[u8]) -> [u8; 32];

/// The bytes of what may be a SecretBox. LiteLLM's encoder always pads, so other lengths are no such box.
fn boxed(stored: &str) -> Option<Vec<u8>> {
    if !stored.len().is_multiple_of(4) {
        return None;
    }
    let bytes = URL_SAFE
        .decode(stored)
        .or_else(|_| STANDARD.decode(stored))
        .ok()?;
    (bytes.len() >= BOX_OVERHEAD).then_some(bytes)
}

fn secretbox(key: &[u8; 32], sealed: &[u8]) -> Option<Vec<u8>> {
    use crypto_secretbox::aead::{Aead, KeyInit};
    let (nonce, rest) = sealed.split_at_checked(24)?;
    let cipher = crypto_secretbox::XSalsa20Poly1305::new(crypto_secretbox::Key::from_slice(key));
    cipher
        .decrypt(crypto_secretbox::Nonce::from_slice(nonce), rest)
        .ok()
}

fn gcm(key: &[u8; 32], sealed: &[u8]) -> Option<Vec<u8>> {
    use aes_gcm::aead::{Aead, KeyInit};
    let (nonce, rest) = sealed.split_at_checked(GCM_NONCE)?;
    let nonce: [u8; GCM_NONCE] = nonce.try_into().ok()?;
    Aes256Gcm::new(&(*key).into()).decrypt(&nonce.into(), rest).ok()
}

fn sha256(salt: &[u8]) -> [u8; 32] {
    Sha256::digest(salt).into()
}

/// HKDF-SHA256 without a salt, to one block.
fn hkdf(salt: &[u8]) -> [u8; 32] {
    let secret = hmac(&[0; 32], &[salt]);
    hmac(&secret, &[V3_INFO, &[1]])
}

/// HMAC-SHA256 with a key no longer than a block.
fn hmac(key: &[u8; 32], message: &[&[u8]]) -> [u8; 32] {
    const BLOCK: usize = 64;
    let pad = |with: u8| {
        let mut block = [with; BLOCK];
        for (slot, byte) in block.iter_mut().zip(key) {
            *slot ^= byte;
        }
        block
    };
    let mut inner = Sha256::new_with_prefix(pad(0x36));
    for part in message {
        inner.update(part);
    }
    let outer = Sha256::new_with_prefix(pad(0x5c)).chain_update(inner.finalize());
    outer.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All three were made by other programs: PyNaCl and Python's `cryptography`, with this salt.
    const SALT: &str = "sk-salt-1234";

    fn salts(keys: &[&str]) -> Salts {
        Salts::new(keys.iter().map(|k| Secret::new(*k)))
    }

    #[test]
    fn hkdf_agrees_with_rfc_5869() {
        // Its test case 3: 22 bytes of 0x0b, no salt, no info; the first 32 bytes of the output.
        let secret = hmac(&[0; 32], &[&[0x0b; 22]]);
        let block = hmac(&secret, &[&[], &[1]]);
        let hex: String = block.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
        );
    }

    const TEXT: &str = "sk-provider-key-é";
    const SEALED: [&str; 4] = [
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXKsZl_PUwxG6P8lw6-oH8K4y3-U4ds14782kJnd5PtlIbDA==",
        "AgICAgICAgICAgICAgICAgICAgICAgICEkqOpJCSsiUHGIwA35O0opCVsZoB/nB2rH6vVifNO5++2A==",
        "v2:gcm:AAECAwQFBgcICQoL63wyvXJljqEwtYZ6a03wxW2ufTRwEOxKPtb7L0TrD6sK7A==",
        "v3:gcm:AAECAwQFBgcICQoLcCZXpjyMQ9GNRrPMzREleG9vs5aAHYNVGo4tkVzHJl2bbw==",
    ];

    #[test]
    fn every_format_opens_with_any_of_the_keys() {
        for sealed in SEALED {
            for keys in [&[SALT][..], &["sk-other", SALT], &[SALT, "sk-other"]] {
                assert_eq!(salts(keys).open(sealed).unwrap().expose(), TEXT, "{sealed}");
                assert_eq!(
                    salts(keys).open_within(sealed).unwrap().expose(),
                    TEXT,
                    "{sealed}"
                );
            }
            assert_eq!(salts(&["sk-other"]).open(sealed).unwrap_err(), Closed::WrongKey);
            assert_eq!(salts(&["", ""]).open(sealed).unwrap_err(), Closed::NoKey);
        }
        let empty = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXmeHfcvIOFxmVYMT8W6Gv3g==";
        assert_eq!(salts(&[SALT]).open(empty).unwrap().expose(), "");
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        for sealed in SEALED {
            let mut changed = sealed.to_string().into_bytes();
            let at = changed.len() - 6;
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(
                salts(&[SALT]).open(&changed).unwrap_err(),
                Closed::WrongKey,
                "{changed}"
            );
        }
    }

    #[test]
    fn plain_values_stay_plain() {
        for text in [
            "",
            "os.environ/OPENAI_API_KEY",
            "https://api.example.com/v1",
            "openai/gpt-4o",
            "2024-07-01",
        ] {
            assert_eq!(salts(&[SALT]).open(text).unwrap().expose(), text);
            assert_eq!(salts(&[]).open(text).unwrap().expose(), text);
        }
    }

    #[test]
    fn what_does_not_open_is_an_error_that_says_nothing() {
        let looks = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVowMTIzNDU2Nzg5QUJDREVGR0hJSktM";
        assert_eq!(salts(&[SALT]).open(looks).unwrap_err(), Closed::WrongKey);
        assert_eq!(salts(&[]).open(looks).unwrap_err(), Closed::NoKey);
        assert_eq!(salts(&[SALT]).open_within(looks).unwrap().expose(), looks);
        for broken in ["v2:gcm:", "v3:gcm:!!!", "v3:gcm:AAAA"] {
            assert_eq!(
                salts(&[SALT]).open(broken).unwrap_err(),
                Closed::WrongKey,
                "{broken}"
            );
            assert_eq!(
                salts(&[SALT]).open_within(broken).unwrap_err(),
                Closed::WrongKey,
                "{broken}"
            );
        }
    }
}
