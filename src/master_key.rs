//! The master key: configured, or kept in a file of ours that nobody else can read.

use crate::conf::{Conf, Secret};
use crate::store::seal::Seal;
use base64::Engine;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The master key and how it came about.
pub struct Key {
    pub secret: Secret,
    /// The file it was written to just now.
    pub made: Option<PathBuf>,
    /// The file it was read from.
    pub read: Option<PathBuf>,
}

/// What secrets in the store are sealed with: the salt key, or the master key where there is none, as
/// LiteLLM has it.
pub fn seal(conf: &Conf, master: &Secret) -> Seal {
    let salt = conf.general.salt_key.as_ref().unwrap_or(master);
    Seal::new(&salt.expose().into())
}

/// Where a master key is kept that nobody configured.
pub fn file(data_dir: &Path) -> PathBuf {
    data_dir.join("master.key")
}

/// The configured master key, else the one in the data directory. Makes nothing.
pub fn look(conf: &Conf, data_dir: &Path) -> std::io::Result<Option<Key>> {
    if let Some(secret) = &conf.general.master_key {
        return Ok(Some(Key {
            secret: secret.clone(),
            made: None,
            read: None,
        }));
    }
    let path = file(data_dir);
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().starts_with("sk-") => Ok(Some(Key {
            secret: Secret::new(text.trim()),
            made: None,
            read: Some(path),
        })),
        Ok(_) => Err(std::io::Error::other(
            "it does not hold a key that starts with sk-; remove it to get a new one",
        )),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The same, and a new one where there is none.
pub fn find(conf: &Conf, data_dir: &Path) -> std::io::Result<Key> {
    if let Some(key) = look(conf, data_dir)? {
        return Ok(key);
    }
    let path = file(data_dir);
    let random: [u8; 24] = rand::random();
    let key = format!(
        "sk-tollkeeper-{}",
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random)
    );
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(format!("{key}\n").as_bytes())?;
    file.sync_all()?;
    Ok(Key {
        secret: Secret::new(key),
        made: Some(path),
        read: None,
    })
}
