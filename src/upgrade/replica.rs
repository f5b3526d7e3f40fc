//! A replica's lasting name: what it holds in Redis after a restart is its own again. Two processes of one
//! data directory overlap while one takes over from the other; each has a name of its own, held by a lock
//! for as long as it lives.

use crate::lock::Lock;
use std::fs::OpenOptions;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Far more processes than ever overlap.
const NAMES: u32 = 64;

pub struct Replica {
    pub name: String,
    /// Held, not used: dropping it gives the name to others.
    _lock: Lock,
}

impl Replica {
    /// The first name below `data_dir` that no living process has, made if need be.
    pub fn claim(data_dir: &Path) -> io::Result<Self> {
        for n in 0..NAMES {
            let file = match n {
                0 => "replica".to_string(),
                n => format!("replica-{n}"),
            };
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(data_dir.join(file))?;
            let Some(mut lock) = Lock::take(file)? else {
                continue;
            };
            let file = lock.file();
            let mut text = String::new();
            // What is no text is no name either, and is written anew.
            let _ = (&*file).take(100).read_to_string(&mut text);
            let mut name = text.trim().to_string();
            if uuid::Uuid::parse_str(&name).is_err() {
                name = uuid::Uuid::new_v4().to_string();
                file.set_len(0)?;
                file.rewind()?;
                file.write_all(name.as_bytes())?;
            }
            return Ok(Self { name, _lock: lock });
        }
        let text = format!("all {NAMES} names are held by other processes");
        Err(io::Error::new(io::ErrorKind::ResourceBusy, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_lasts_and_is_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let first = Replica::claim(dir.path()).unwrap();
        let second = Replica::claim(dir.path()).unwrap();
        assert_ne!(first.name, second.name);
        let was = first.name.clone();
        drop(first);
        assert_eq!(Replica::claim(dir.path()).unwrap().name, was);
        std::fs::write(dir.path().join("replica"), b"\xff no name").unwrap();
        let anew = Replica::claim(dir.path()).unwrap();
        assert!(uuid::Uuid::parse_str(&anew.name).is_ok());
        let written = std::fs::read_to_string(dir.path().join("replica")).unwrap();
        assert_eq!(written, anew.name);
    }
}
