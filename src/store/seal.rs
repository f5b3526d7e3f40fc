//! Text that is kept in the database and must not be read there: providers' keys. Sealed with
//! AES-256-GCM under the salt key. What LiteLLM wrote is opened elsewhere, on import.

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, Key, KeyInit, Nonce};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use filters::model::secret::Secret;
use sha2::{Digest, Sha256};
use std::fmt;
use thiserror::Error;

/// What sealed text starts with; the number is that of the way it is sealed.
const PREFIX: &str = "tk-sealed-1:";
/// Bytes of a nonce: drawn anew for every text.
const NONCE: usize = 12;

/// Why a text cannot be opened. Says nothing of what is in it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SealError {
    #[error("this is no sealed text")]
    NotSealed,
    #[error("the sealed text was made with another salt key, or it is damaged")]
    WrongKey,
}

/// Seals and opens. Everything sealed with one salt needs that same salt to be opened.
#[derive(Clone)]
pub struct Seal {
    cipher: Aes256Gcm,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal(***)")
    }
}

impl Seal {
    /// `salt` is the salt key as it is configured; its SHA-256 is the key of the cipher.
    pub fn new(salt: &Secret) -> Self {
        let key: [u8; 32] = Sha256::digest(salt.expose().as_bytes()).into();
        Self {
            cipher: Aes256Gcm::new(&Key::<Aes256Gcm>::from(key)),
        }
    }

    /// The same text never looks the same twice.
    pub fn seal(&self, text: &str) -> String {
        let nonce: [u8; NONCE] = rand::random();
        let payload = Payload {
            msg: text.as_bytes(),
            aad: PREFIX.as_bytes(),
        };
        // Only a text of more than 64 GiB is too much for the cipher, and what is kept is far smaller.
        let closed = self
            .cipher
            .encrypt(&Nonce::from(nonce), payload)
            .unwrap_or_default();
        let mut bytes = nonce.to_vec();
        bytes.extend_from_slice(&closed);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    pub fn open(&self, text: &str) -> Result<Secret, SealError> {
        let coded = text.strip_prefix(PREFIX).ok_or(SealError::NotSealed)?;
        let bytes = URL_SAFE_NO_PAD.decode(coded).map_err(|_| SealError::NotSealed)?;
        let (nonce, closed) = bytes.split_first_chunk::<NONCE>().ok_or(SealError::NotSealed)?;
        let payload = Payload {
            msg: closed,
            aad: PREFIX.as_bytes(),
        };
        let open = self
            .cipher
            .decrypt(&Nonce::from(*nonce), payload)
            .map_err(|_| SealError::WrongKey)?;
        let text = String::from_utf8(open).map_err(|_| SealError::WrongKey)?;
        Ok(Secret::new(text))
    }

    /// Whether a text was sealed here, with whatever salt.
    pub fn is_sealed(text: &str) -> bool {
        text.starts_with(PREFIX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(salt: &str) -> Seal {
        Seal::new(&Secret::new(salt))
    }

    #[test]
    fn opens_what_it_sealed() {
        let s = seal("salt");
        for text in ["", "sk-provider", "é🦀\0\n", &"x".repeat(100_000)] {
            let closed = s.seal(text);
            assert!(Seal::is_sealed(&closed) && (text.is_empty() || !closed.contains(text)));
            assert_ne!(closed, s.seal(text), "a nonce is used once");
            assert_eq!(s.open(&closed).unwrap().expose(), text);
        }
    }

    #[test]
    fn what_is_not_its_own_stays_closed() {
        let closed = seal("salt").seal("sk-provider");
        assert_eq!(seal("other").open(&closed), Err(SealError::WrongKey));
        for at in PREFIX.len()..closed.len() - 1 {
            let mut bytes = closed.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(
                seal("salt").open(&String::from_utf8(bytes).unwrap()),
                Err(SealError::WrongKey),
                "byte {at}"
            );
        }
        let cut = &closed[..PREFIX.len() + 20];
        assert_eq!(seal("salt").open(cut), Err(SealError::WrongKey));
        for odd in [
            "",
            "sk-provider",
            "tk-sealed-1:",
            "tk-sealed-1:AAAA",
            "tk-sealed-1:%%%",
            "tk-sealed-2:AAAA",
        ] {
            assert_eq!(seal("salt").open(odd), Err(SealError::NotSealed), "{odd}");
        }
        assert_eq!(format!("{:?}", seal("salt")), "Seal(***)");
    }
}
