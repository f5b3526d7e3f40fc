//! What the config's files hold: read off, told apart, kept in the history. What it means is known in `conf`.

use super::{Digested, Origin, Reload, Turn};
use crate::conf::{self, Conf, Report};
use crate::discover;
use crate::history::{Files, History};
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// How often files that change while they are read are read again.
const MOST_READINGS: u32 = 3;

impl Reload {
    /// Reads the config from its files, and what they hold, such that the two belong together.
    pub(super) async fn read_whole(&self, turn: &mut Turn) -> Result<(Conf, Files), String> {
        let mut held = read_off(&turn.files).await?;
        for _ in 0..MOST_READINGS {
            // What was seen is seen, be it of use or not: a broken file is told of once.
            turn.held = digest(&held);
            let conf = self.read().await?;
            turn.files = conf.source.paths();
            let after = read_off(&turn.files).await?;
            if after == held {
                return Ok((conf, held));
            }
            held = after;
        }
        Err("the files change while they are read; try again".into())
    }

    async fn read(&self) -> Result<Conf, String> {
        let (path, env) = (self.path.clone(), self.env.clone());
        let found = match &path {
            Some(_) => None,
            None => Some(discover::servers().await),
        };
        let loading = tokio::task::spawn_blocking(move || {
            let told = |r: Report| r.render(false);
            let mut conf = conf::load(path.as_deref(), &env).map_err(told)?.conf;
            if let Some(servers) = found {
                let text = discover::config(&servers, env.get("OPENAI_API_KEY").is_some());
                let found = conf::load_text("discovered servers", &text, &env).map_err(told)?;
                conf.models = found.conf.models;
            }
            Ok(conf)
        });
        loading.await.map_err(|e| e.to_string())?
    }
}

/// What the files hold; None = it cannot be read.
pub(super) fn contents(files: &[PathBuf]) -> Files {
    files
        .iter()
        .map(|file| (file.clone(), conf::load::read_file(file)))
        .collect()
}

pub(super) async fn read_off(files: &[PathBuf]) -> Result<Files, String> {
    let files = files.to_vec();
    let reading = tokio::task::spawn_blocking(move || contents(&files));
    reading.await.map_err(|e| e.to_string())
}

/// A file that cannot be read differs from an empty one.
pub(super) fn digest(files: &Files) -> Digested {
    let mut all = Sha256::new();
    for (_, bytes) in files {
        match bytes {
            Some(bytes) => {
                all.update([1]);
                all.update((bytes.len() as u64).to_le_bytes());
                all.update(bytes);
            }
            None => all.update([0]),
        }
    }
    all.finalize().into()
}

/// Keeps what the files hold. Being unable to is told, and stops nothing.
pub(super) fn keep(history: &History, origin: Origin, files: &Files) -> Option<u64> {
    match history.keep(origin.as_str(), files) {
        Ok(number) => number,
        Err(e) => {
            log::warn!("event=config_not_kept cause=\"{e}\" there is no way back to it");
            None
        }
    }
}
