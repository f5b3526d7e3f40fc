//! Where the gateway is and which key is used: what the command says, else the environment, else the
//! config as `serve` finds it, else what zero-config mode does. A config is read only when it is needed.

use super::client::{Failure, Gateway};
use super::show::clean;
use super::tls::certificate_of;
use crate::conf::{self, ClientAuth, Conf, Env, Listener, Secret};
use crate::master_key;
use clap::Args;
use reqwest::Url;
use std::cell::OnceCell;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// Variables that hold a key, the first wins.
const KEYS: [&str; 2] = ["TOLLKEEPER_API_KEY", "LITELLM_MASTER_KEY"];
const URL: &str = "TOLLKEEPER_URL";

#[derive(Args, Default)]
pub struct Reach {
    /// The gateway's address; else $TOLLKEEPER_URL, else the config's first listener.
    #[arg(long, value_name = "URL", global = true, display_order = 100)]
    url: Option<String>,
    /// The config to take address and master key from; else the first one found, as `serve` looks for it.
    #[arg(short, long, value_name = "FILE", global = true, display_order = 101)]
    config: Option<PathBuf>,
}

/// What is looked at, each when it is needed.
pub struct Places<'a> {
    reach: &'a Reach,
    env: &'a Env,
    conf: OnceCell<Conf>,
}

impl Reach {
    pub fn at(url: Option<String>, config: Option<PathBuf>) -> Self {
        Self { url, config }
    }

    /// The config that the command names.
    pub fn config(&self) -> Option<&std::path::Path> {
        self.config.as_deref()
    }

    /// The gateway and the key to ask it with. A key is never taken from the command line.
    pub fn gateway(&self, env: &Env) -> Result<Gateway, Failure> {
        let places = self.places(env);
        let (base, base_from) = places.address()?;
        let (key, key_from) = places.key()?;
        Gateway::new(base, base_from, &key, key_from)
    }

    pub fn places<'a>(&'a self, env: &'a Env) -> Places<'a> {
        Places {
            reach: self,
            env,
            conf: OnceCell::new(),
        }
    }
}

impl Places<'_> {
    /// The gateway's address, and what said so.
    pub fn address(&self) -> Result<(Url, String), Failure> {
        if let Some(url) = &self.reach.url {
            return Ok((address(url, "--url")?, "--url".into()));
        }
        if let Some(url) = self.env.get(URL) {
            return Ok((address(url.expose(), URL)?, URL.into()));
        }
        let conf = self.conf()?;
        let listeners = &conf.tollkeeper.listeners;
        // Not one that wants a certificate of us, if there is another.
        let open = |l: &&Listener| {
            l.tls
                .as_ref()
                .is_none_or(|t| t.client_auth != ClientAuth::Required)
        };
        let listener = listeners.iter().find(open).or(listeners.first());
        let by_flag = certificate_of(None, None, self.env).is_ok_and(|given| given.is_some());
        let is_first = listener == listeners.first();
        let scheme = match listener {
            Some(l) if l.tls.is_some() || by_flag && is_first => "https",
            None if by_flag => "https",
            _ => "http",
        };
        let default = SocketAddr::from((Ipv4Addr::LOCALHOST, 4000));
        let at = local(listener.map_or(default, |l| l.address));
        let from = match (&conf.source.path, listener) {
            (Some(path), Some(_)) if is_first => format!("the first listener in {}", path.display()),
            (Some(path), Some(_)) => format!("a listener in {}", path.display()),
            _ => "the default".to_string(),
        };
        Ok((address(&format!("{scheme}://{at}"), &from)?, from))
    }

    /// The key to ask with, and what said so.
    fn key(&self) -> Result<(Secret, String), Failure> {
        for name in KEYS {
            if let Some(key) = self.env.get(name) {
                let key = Secret::new(key.expose().trim());
                return Ok((key, name.into()));
            }
        }
        self.master()
    }

    /// The master key as the gateway of this config has it, and where it stands.
    pub fn master(&self) -> Result<(Secret, String), Failure> {
        let conf = self.conf()?;
        let file = master_key::file(&conf.tollkeeper.data_dir);
        let found = master_key::look(conf, &conf.tollkeeper.data_dir).map_err(|e| {
            Failure::config(format!(
                "{} cannot be read: {e}. Run this as the user that the gateway runs as, or set TOLLKEEPER_API_KEY.",
                file.display()
            ))
        })?;
        match found {
            Some(key) => {
                let from = match (&key.read, &conf.source.path) {
                    (Some(file), _) => file.display().to_string(),
                    (None, Some(path)) => format!("the master key of {}", path.display()),
                    (None, None) => "the master key of the environment".into(),
                };
                Ok((key.secret, from))
            }
            None => Err(Failure::config(self.nothing(conf, &file))),
        }
    }

    fn nothing(&self, conf: &Conf, file: &std::path::Path) -> String {
        let config = match &conf.source.path {
            Some(path) => format!("`master_key` in {}: not set", path.display()),
            None => {
                let places: Vec<String> = conf::load::candidates(self.env)
                    .iter()
                    .map(|p| p.display().to_string())
                    .collect();
                format!("a config file: none of {}", places.join(", "))
            }
        };
        format!(
            "no key for the gateway was found. Looked at\n  TOLLKEEPER_API_KEY, TOLLKEEPER_MASTER_KEY, \
             LITELLM_MASTER_KEY: not set\n  {config}\n  {}: not there\nSet TOLLKEEPER_API_KEY, or name the gateway's \
             config with -c.",
            file.display()
        )
    }

    fn conf(&self) -> Result<&Conf, Failure> {
        if let Some(conf) = self.conf.get() {
            return Ok(conf);
        }
        match conf::load(self.reach.config.as_deref(), self.env) {
            Ok(loaded) => Ok(self.conf.get_or_init(|| loaded.conf)),
            Err(report) => Err(Failure::config(format!(
                "the config cannot be used\n{}\nWith TOLLKEEPER_URL and TOLLKEEPER_API_KEY set, no config is read.",
                report.render(true)
            ))),
        }
    }
}

/// Whom to ask when a listener takes every address.
pub fn local(mut at: SocketAddr) -> SocketAddr {
    if at.ip().is_unspecified() {
        match at {
            SocketAddr::V4(_) => at.set_ip(Ipv4Addr::LOCALHOST.into()),
            SocketAddr::V6(_) => at.set_ip(Ipv6Addr::LOCALHOST.into()),
        }
    }
    at
}

/// An address as people write it: `OPENAI_BASE_URL`'s `/v1` at its end is none of the gateway's.
fn address(text: &str, from: &str) -> Result<Url, Failure> {
    let wrong = |why: &str| Failure::usage(format!("{from}: {why}; it looks like http://127.0.0.1:4000"));
    let mut url = Url::parse(text.trim()).map_err(|e| wrong(&format!("this is no address ({e})")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(wrong(&format!("{} is no address of a gateway", clean(text))));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(
            "an address holds no user and no password; the key is TOLLKEEPER_API_KEY",
        ));
    }
    url.set_query(None);
    url.set_fragment(None);
    let path = url.path().trim_end_matches('/');
    let path = path.strip_suffix("/v1").unwrap_or(path).to_string();
    url.set_path(&path);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::below;

    fn places(url: Option<&str>, config: Option<&str>, env: &[(&str, &str)]) -> Result<String, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let mut reach = Reach {
            url: url.map(str::to_string),
            config: None,
        };
        // A file of its own in any case, so that none of this machine is found.
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, config.unwrap_or("general_settings: {}\n")).unwrap();
        reach.config = Some(file);
        let env: Env = env.iter().map(|(k, v)| (*k, *v)).collect();
        let places = reach.places(&env);
        places.address().map(|(url, _)| url.to_string())
    }

    #[test]
    fn the_address_is_what_is_said_first() {
        let config = "tollkeeper: {listeners: [{address: 0.0.0.0:4444}]}";
        let env = &[("TOLLKEEPER_URL", "https://llm.example.com/gw/v1/")];
        assert_eq!(
            places(Some("http://a:1"), Some(config), env).unwrap(),
            "http://a:1/"
        );
        assert_eq!(
            places(None, Some(config), env).unwrap(),
            "https://llm.example.com/gw"
        );
        assert_eq!(places(None, Some(config), &[]).unwrap(), "http://127.0.0.1:4444/");
        let six = "tollkeeper: {listeners: [{address: '[::]:4444'}]}";
        assert_eq!(places(None, Some(six), &[]).unwrap(), "http://[::1]:4444/");
        assert_eq!(places(None, None, &[]).unwrap(), "http://127.0.0.1:4000/");
        let tls = "tollkeeper: {listeners: [{address: 0.0.0.0:4444, tls: true}]}";
        assert_eq!(places(None, Some(tls), &[]).unwrap(), "https://127.0.0.1:4444/");
        let files = &[("SSL_CERTFILE_PATH", "a"), ("SSL_KEYFILE_PATH", "b")];
        assert_eq!(
            places(None, Some(config), files).unwrap(),
            "https://127.0.0.1:4444/"
        );
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for url in [
            "",
            "127.0.0.1:4000",
            "ftp://a",
            "http://",
            "http://me:secret@a/",
            "unix:/x",
        ] {
            let failure = places(Some(url), None, &[]).unwrap_err();
            assert_eq!(failure.code, 2, "{url}: {}", failure.message);
            assert!(!failure.message.contains("secret"), "{}", failure.message);
        }
        let failure = places(None, Some("nonsense: ["), &[]).unwrap_err();
        assert_eq!(failure.code, 78, "{}", failure.message);
    }

    #[test]
    fn paths_go_below_the_address() {
        let url = address("https://h/gw/", "--url").unwrap();
        assert_eq!(below(&url, "/key/list").as_str(), "https://h/gw/key/list");
        let url = address("http://h:1/v1", "--url").unwrap();
        assert_eq!(below(&url, "/v1").as_str(), "http://h:1/v1");
    }
}
