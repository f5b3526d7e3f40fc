//! What was told already, so that nobody hears the same again and again. What is told once for weeks is kept in a
//! file, since a restart is no news.

use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Most subjects that are remembered; beyond that only those are forgotten whose time is over.
const MOST: usize = 20_000;
/// What is not told again for so long is kept in the file.
const LASTING: Duration = Duration::from_secs(86_400);
/// The longest subject, bytes; it may hold an id that somebody chose.
const MOST_SUBJECT: usize = 1_024;
/// The largest file that is read, bytes.
const MOST_FILE: u64 = 8 << 20;

pub struct Told {
    /// Until when it is not told again, seconds since 1970, and whether that is kept.
    until: HashMap<String, (u64, bool)>,
    file: Option<PathBuf>,
}

impl Told {
    pub fn open(data_dir: Option<&Path>) -> Self {
        let file = data_dir.map(|dir| dir.join("alerts.json"));
        let read = file.as_deref().and_then(read).unwrap_or_default();
        let kept = read.into_iter().take(MOST).filter_map(|(name, until)| {
            let until = until.as_u64().filter(|until| *until > now())?;
            Some((name, (until, true)))
        });
        Self {
            until: kept.collect(),
            file,
        }
    }

    /// Whether this was not told within `window`; then it counts as told now.
    pub fn is_news(&mut self, event: &str, subject: &str, window: Duration) -> bool {
        let now = now();
        let cut = subject.floor_char_boundary(MOST_SUBJECT);
        let name = format!("{event} {}", subject.get(..cut).unwrap_or_default());
        if self.until.get(&name).is_some_and(|(until, _)| now < *until) {
            return false;
        }
        if self.until.len() >= MOST {
            self.until.retain(|_, (until, _)| now < *until);
        }
        if self.until.len() >= MOST {
            return false;
        }
        let lasts = window >= LASTING;
        self.until
            .insert(name, (now.saturating_add(window.as_secs()), lasts));
        if lasts {
            self.keep();
        }
        true
    }

    fn keep(&self) {
        let Some(file) = &self.file else { return };
        let lasting = self.until.iter().filter(|(_, (_, lasts))| *lasts);
        let all: Map<String, Value> = lasting
            .map(|(name, (until, _))| (name.clone(), (*until).into()))
            .collect();
        let new = file.with_extension("json.new");
        let written =
            std::fs::write(&new, Value::Object(all).to_string()).and_then(|()| std::fs::rename(&new, file));
        if let Err(e) = written {
            log::warn!("event=alerts_not_kept cause=\"{e}\" a restart may tell some again");
        }
    }
}

fn read(file: &Path) -> Option<Map<String, Value>> {
    if std::fs::metadata(file).ok()?.len() > MOST_FILE {
        return None;
    }
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn what_lasts_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut told = Told::open(Some(dir.path()));
        assert!(told.is_news("key_expiring", "k:7", LASTING * 60));
        assert!(told.is_news("deployment_down", "d", HOUR));
        let mut again = Told::open(Some(dir.path()));
        assert!(!again.is_news("key_expiring", "k:7", LASTING * 60));
        assert!(
            again.is_news("deployment_down", "d", HOUR),
            "this was about another run"
        );
        std::fs::write(dir.path().join("alerts.json"), "{broken").unwrap();
        assert!(Told::open(Some(dir.path())).is_news("key_expiring", "k:7", HOUR));
    }

    #[test]
    fn it_is_bounded() {
        let mut told = Told::open(None);
        for n in 0..MOST {
            assert!(told.is_news("e", &n.to_string(), HOUR));
        }
        assert!(!told.is_news("e", "one more", HOUR));
        assert_eq!(told.until.len(), MOST);
        told.until.values_mut().for_each(|u| u.0 = 0);
        assert!(told.is_news("e", &"é".repeat(MOST_SUBJECT), HOUR));
        assert_eq!(told.until.len(), 1);
    }
}
