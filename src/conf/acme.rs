//! Reads `tls.acme`: the certificates that are ordered from an authority. Whether the listeners can do
//! what an entry needs is judged by `crate::tls`, which knows them.

use super::fields::Fields;
use super::node::{Node, Value};
use super::own::{Acme, AcmeChallenge, ExternalAccount};
use super::text::shown;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use std::net::IpAddr;
use std::path::Path;

/// Where certificates come from unless the config says otherwise.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
const LETS_ENCRYPT_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";
/// Most certificates.
const MOST_ENTRIES: usize = 100;
/// Most names of a certificate: authorities take no more.
const MOST_HOSTS: usize = 100;
/// Longest address of the directory, bytes.
const MAX_URL: usize = 2_048;
/// Endings that are nobody's in the world.
const LOCAL_ENDINGS: [&str; 7] = [
    "local",
    "localhost",
    "internal",
    "home.arpa",
    "lan",
    "home",
    "test",
];

/// `acme: {…}` or a list of these. Relative paths start at `dir`.
pub(super) fn section(tls: &Fields<'_>, dir: &Path) -> Vec<Acme> {
    let Some(entry) = tls.entry("acme") else {
        return Vec::new();
    };
    let items: &[Node] = match &entry.value.value {
        Value::Seq(items) => items,
        _ => std::slice::from_ref(&entry.value),
    };
    if items.len() > MOST_ENTRIES {
        let message = format!("`acme` holds more than {MOST_ENTRIES} certificates");
        drop(tls.error("too-large", message, entry.key_at));
    }
    let mut all: Vec<Acme> = Vec::new();
    for (i, item) in items.iter().take(MOST_ENTRIES).enumerate() {
        let path = match &entry.value.value {
            Value::Seq(_) => tls.below(&format!("acme[{i}]")),
            _ => tls.below("acme"),
        };
        let Some(fields) = Fields::open(item, tls.notes, path) else {
            continue;
        };
        let Some(read) = certificate(&fields, item, dir) else {
            continue;
        };
        let twice = read
            .hosts
            .iter()
            .find(|h| all.iter().any(|a| a.hosts.contains(h)));
        if let Some(host) = twice {
            let message = format!("`hosts`: {} is in another entry of `acme` already", shown(host));
            drop(fields.error("duplicate", message, item.at));
        }
        all.push(read);
    }
    all
}

fn certificate(fields: &Fields<'_>, item: &Node, dir: &Path) -> Option<Acme> {
    let missing = |key: &'static str, help: &str| {
        if fields.entry_or_unset(key).is_none() {
            let message = format!("`{key}` is missing");
            drop(fields.error("missing", message, item.at).help(help));
        }
    };
    missing("hosts", "for example `hosts: [llm.example.com]`");
    missing(
        "terms",
        "read the authority's terms of service (Let's Encrypt: https://letsencrypt.org/repository/) and say `terms: agreed`",
    );
    fields.choice("terms", &[("agreed", ())]);
    let staging = fields.flag("staging").unwrap_or(false);
    let directory = fields.parsed("directory", "url", directory);
    let is_public = fields.entry("directory").is_none();
    if let (true, false, Some(entry)) = (staging, is_public, fields.entry("staging")) {
        let message =
            "`staging` is Let's Encrypt's; the `directory` that is named here has its own address for that";
        drop(fields.error("conflict", message, entry.key_at));
    }
    let hosts = fields.parsed_list("hosts", "host", |text| host(text, is_public));
    let mut hosts = hosts.unwrap_or_default();
    let before = hosts.len();
    hosts.dedup();
    let said_twice = (1..hosts.len()).any(|i| hosts.iter().take(i).any(|h| Some(h) == hosts.get(i)));
    if let Some(entry) = fields.entry("hosts") {
        if hosts.len() > MOST_HOSTS {
            let message = format!("`hosts` holds more than {MOST_HOSTS} names");
            drop(
                fields
                    .error("too-large", message, entry.key_at)
                    .help("make several entries of `acme`"),
            );
        } else if said_twice || hosts.len() < before {
            drop(fields.error("duplicate", "`hosts` holds a name twice", entry.key_at));
        } else if matches!(&entry.value.value, Value::Seq(items) if items.is_empty()) {
            drop(fields.error("missing", "`hosts` is empty", entry.key_at));
        }
    }
    let challenges = [
        ("http-01", AcmeChallenge::Http01),
        ("tls-alpn-01", AcmeChallenge::TlsAlpn01),
    ];
    let read = Acme {
        email: fields.parsed("email", "email", email),
        directory: directory.unwrap_or_else(|| {
            let usual = if staging {
                LETS_ENCRYPT_STAGING
            } else {
                LETS_ENCRYPT
            };
            usual.into()
        }),
        ca: fields.text("ca").map(|file| dir.join(file)),
        challenge: fields.choice("challenge", &challenges),
        external_account: fields
            .child("external_account")
            .and_then(|e| external_account(&e)),
        hosts,
    };
    fields.refuse_rest();
    (!read.hosts.is_empty()).then_some(read)
}

fn external_account(fields: &Fields<'_>) -> Option<ExternalAccount> {
    let (id, key) = (fields.text("id"), fields.secret("key"));
    for (name, is_there) in [("id", id.is_some()), ("key", key.is_some())] {
        if let (false, Some(first)) = (is_there, fields.all().first())
            && fields.entry_or_unset(name).is_none()
        {
            drop(fields.error("missing", format!("`{name}` is missing"), first.key_at));
        }
    }
    if let (Some(key), Some(entry)) = (&key, fields.entry("key"))
        && BASE64_URL_SAFE_NO_PAD
            .decode(key.expose().trim_end_matches('='))
            .is_err()
    {
        drop(
            fields
                .error("key", "`key` is no base64", entry.key_at)
                .help("take it as the authority shows it: letters, digits, - and _"),
        );
    }
    fields.refuse_rest();
    Some(ExternalAccount { id: id?, key: key? })
}

/// A name that an authority can look up.
fn host(text: &str, is_public: bool) -> Result<String, String> {
    if text.starts_with("*.") {
        return Err("a wildcard cannot be had by http-01 or tls-alpn-01; list the names themselves".into());
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<IpAddr>().is_ok() {
        return Err(
            "an address gets no certificate here; for the local network there is tls.local.hosts".into(),
        );
    }
    let label = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    if text.len() > 253 || !text.split('.').all(label) {
        return Err("a host is a DNS name such as llm.example.com, without a port; one with other letters in its xn-- form".into());
    }
    let name = text.to_ascii_lowercase();
    let ends_locally = |ending: &str| {
        name.strip_suffix(ending)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if is_public && (!name.contains('.') || LOCAL_ENDINGS.iter().any(|e| ends_locally(e))) {
        return Err(
            "Let's Encrypt cannot look this name up; for the local network there is tls.local.hosts, or name the \
             `directory` of an authority of your own"
                .into(),
        );
    }
    Ok(name)
}

fn directory(text: &str) -> Result<String, String> {
    let good = text.len() <= MAX_URL
        && text
            .parse::<http::Uri>()
            .is_ok_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some_and(|h| !h.is_empty()))
        && !text.contains('@');
    if good {
        Ok(text.to_string())
    } else {
        Err("a directory is an https address such as https://ca.home.arpa/acme/acme/directory".into())
    }
}

fn email(text: &str) -> Result<String, String> {
    let good = text.len() <= 254
        && text.is_ascii()
        && !text
            .bytes()
            .any(|b| b.is_ascii_whitespace() || b.is_ascii_control() || b",?&<>".contains(&b))
        && text
            .split_once('@')
            .is_some_and(|(who, at)| !who.is_empty() && at.contains('.') && !at.contains('@'));
    if good {
        Ok(text.to_string())
    } else {
        Err("an address such as ops@example.com".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::{Env, load_text};

    fn read(acme: &str) -> Result<Vec<Acme>, String> {
        let text = format!(
            "tollkeeper: {{tls: {{acme: {acme}}}, listeners: [{{address: 0.0.0.0:443, tls: true}}]}}"
        );
        load_text("config.yaml", &text, &Env::default())
            .map(|loaded| loaded.conf.tollkeeper.tls.acme)
            .map_err(|report| report.render(false))
    }

    #[test]
    fn an_entry_says_little_and_gets_the_rest() {
        let all = read("{hosts: [LLM.example.com, ui.example.com], terms: agreed}").unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].hosts, ["llm.example.com", "ui.example.com"]);
        assert_eq!(all[0].directory, LETS_ENCRYPT);
        assert_eq!(
            (&all[0].email, all[0].challenge, &all[0].ca),
            (&None, None, &None)
        );
        let staging = read("{hosts: a.example.com, terms: agreed, staging: true}").unwrap();
        assert_eq!(staging[0].directory, LETS_ENCRYPT_STAGING);
        let own = read(
            "[{hosts: [a.home.arpa], terms: agreed, directory: 'https://ca.home.arpa/dir', ca: /ca.pem, challenge: \
             http-01, email: a@b.example}, {hosts: [b.example.com], terms: agreed, challenge: tls-alpn-01, \
             external_account: {id: kid-1, key: zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W}}]",
        )
        .unwrap();
        assert_eq!(own[0].challenge, Some(AcmeChallenge::Http01));
        assert_eq!(own[0].ca.as_deref(), Some(Path::new("/ca.pem")));
        assert_eq!(own[1].challenge, Some(AcmeChallenge::TlsAlpn01));
        assert_eq!(own[1].external_account.as_ref().unwrap().id, "kid-1");
    }

    #[test]
    fn what_no_authority_would_give_is_named() {
        for (acme, want) in [
            ("{hosts: [a.example.com]}", "`terms` is missing"),
            ("{hosts: [a.example.com], terms: 'yes'}", "one of `agreed`"),
            ("{terms: agreed}", "`hosts` is missing"),
            ("{hosts: [], terms: agreed}", "`hosts` is empty"),
            (
                "{hosts: ['*.example.com'], terms: agreed}",
                "a wildcard cannot be had",
            ),
            (
                "{hosts: [192.0.2.7], terms: agreed}",
                "an address gets no certificate",
            ),
            (
                "{hosts: ['[2001:db8::1]'], terms: agreed}",
                "an address gets no certificate",
            ),
            ("{hosts: ['a.example.com:443'], terms: agreed}", "without a port"),
            (
                "{hosts: [a_b.example.com], terms: agreed}",
                "a host is a DNS name",
            ),
            ("{hosts: [-a.example.com], terms: agreed}", "a host is a DNS name"),
            ("{hosts: [llm.local], terms: agreed}", "tls.local.hosts"),
            ("{hosts: [llm], terms: agreed}", "tls.local.hosts"),
            (
                "{hosts: [a.example.com, A.example.com], terms: agreed}",
                "a name twice",
            ),
            (
                "{hosts: [a.example.com, b.example.com, a.example.com], terms: agreed}",
                "a name twice",
            ),
            (
                "{hosts: [a.example.com], terms: agreed, directory: 'http://x/dir'}",
                "an https address",
            ),
            (
                "{hosts: [a.example.com], terms: agreed, directory: 'https://x/dir', staging: true}",
                "`staging` is",
            ),
            (
                "{hosts: [a.example.com], terms: agreed, challenge: dns-01}",
                "`http-01`, `tls-alpn-01`",
            ),
            (
                "{hosts: [a.example.com], terms: agreed, email: nobody}",
                "ops@example.com",
            ),
            (
                "{hosts: [a.example.com], terms: agreed, external_account: {id: a}}",
                "`key` is missing",
            ),
            (
                "{hosts: [a.example.com], terms: agreed, external_account: {id: a, key: 'a b'}}",
                "no base64",
            ),
            (
                "{hosts: [a.example.com], terms: agreed, domains: [a]}",
                "unknown field `domains`",
            ),
            (
                "[{hosts: [a.example.com], terms: agreed}, {hosts: [a.example.com], terms: agreed}]",
                "in another entry",
            ),
            ("7", "a mapping is expected"),
        ] {
            let told = read(acme).expect_err(acme);
            assert!(told.contains(want), "{acme}: {told}");
        }
    }
}
