//! Reads listeners and the section `tls:`. What stands in the files that are named here is read by
//! `crate::tls`, when it is needed.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::acme;
use super::fields::Fields;
use super::node::Node;
use super::own::{
    CertificateFiles, ClientAuth, Handshake, Hsts, Listener, LocalHost, Tls, TlsVersion, UnknownNames,
};
use super::section::host;

/// Most certificates, and most local names.
const MOST: usize = 1_000;

/// The section `tls:`. Relative paths start at `dir`.
pub(super) fn section(fields: &Fields<'_>, dir: &Path) -> Tls {
    let certificates = fields.list("certificates").unwrap_or_default();
    if certificates.len() > MOST
        && let Some(entry) = fields.entry("certificates")
    {
        let message = format!("`certificates` holds more than {MOST}");
        drop(fields.error("too-large", message, entry.key_at));
    }
    let local = match fields.child("local") {
        Some(local) => {
            let hosts = local.parsed_list("hosts", "host", local_host);
            match (&hosts, fields.entry("local")) {
                (None, Some(entry)) if !local.all().iter().any(|e| e.key == "hosts") => drop(
                    local
                        .error("missing", "`hosts` is missing", entry.key_at)
                        .help("for example `hosts: [llm.home.arpa, \"*.local\"]`"),
                ),
                (Some(hosts), Some(entry)) if hosts.len() > MOST => {
                    let message = format!("`hosts` holds more than {MOST}");
                    drop(local.error("too-large", message, entry.key_at));
                }
                _ => {}
            }
            local.refuse_rest();
            hosts.unwrap_or_default()
        }
        None => Vec::new(),
    };
    let unknown = [("first", UnknownNames::First), ("refuse", UnknownNames::Refuse)];
    Tls {
        certificates: certificates
            .iter()
            .take(MOST)
            .enumerate()
            .filter_map(|(i, item)| certificate(item, i, fields, dir))
            .collect(),
        local,
        acme: acme::section(fields, dir),
        unknown_names: fields.choice("unknown_names", &unknown).unwrap_or_default(),
        handshake: handshake(fields, dir, &Handshake::default()),
        hsts: hsts(fields),
    }
}

/// The least that the list which browsers are delivered with asks for.
const PRELOAD_LEAST: Duration = Duration::from_secs(365 * 86_400);

fn hsts(fields: &Fields<'_>) -> Option<Hsts> {
    let said = fields.child("hsts")?;
    let at = fields.entry("hsts")?.key_at;
    let max_age = said.duration("max_age");
    if !said
        .all()
        .iter()
        .any(|e| e.key == "max_age" && !e.value.is_null())
    {
        drop(
            said.error("missing", "`max_age` is missing", at)
                .help("for example `hsts: {max_age: 180d}`; begin with 5m, browsers keep to it that long"),
        );
    }
    let hsts = Hsts {
        max_age: max_age.unwrap_or_default(),
        include_subdomains: said.flag("include_subdomains").unwrap_or(false),
        preload: said.flag("preload").unwrap_or(false),
    };
    if hsts.preload && max_age.is_some() && (hsts.max_age < PRELOAD_LEAST || !hsts.include_subdomains) {
        drop(said.error(
            "conflict",
            "`preload` asks for `include_subdomains: true` and a `max_age` of 365d or more",
            at,
        ));
    }
    said.refuse_rest();
    max_age.map(|_| hsts)
}

fn certificate(item: &Node, index: usize, above: &Fields<'_>, dir: &Path) -> Option<CertificateFiles> {
    let fields = Fields::open(item, above.notes, above.below(&format!("certificates[{index}]")))?;
    for key in ["cert", "key"] {
        if !fields.all().iter().any(|e| e.key == key && !e.value.is_null()) {
            drop(
                fields
                    .error("missing", format!("`{key}` is missing"), item.at)
                    .help("for example `{cert: tls/llm.pem, key: tls/llm.key}`"),
            );
        }
    }
    let (cert, key) = (fields.text("cert"), fields.text("key"));
    fields.refuse_rest();
    Some(CertificateFiles {
        cert: dir.join(cert?),
        key: dir.join(key?),
    })
}

/// What is said here, else what `above` says.
fn handshake(fields: &Fields<'_>, dir: &Path, above: &Handshake) -> Handshake {
    let versions = [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];
    let auth = [
        ("none", ClientAuth::None),
        ("optional", ClientAuth::Optional),
        ("required", ClientAuth::Required),
    ];
    let said = fields.choice("client_auth", &auth);
    let here = fields.text("client_ca").map(|file| dir.join(file));
    let client_auth = match (said, &here) {
        (Some(said), _) => said,
        (None, Some(_)) => ClientAuth::Required,
        (None, None) => above.client_auth,
    };
    let client_ca = here.or_else(|| above.client_ca.clone());
    if client_auth != ClientAuth::None
        && client_ca.is_none()
        && let Some(entry) = fields.entry("client_auth")
    {
        drop(
            fields
                .error(
                    "missing",
                    "`client_auth` needs a `client_ca` to judge certificates by",
                    entry.key_at,
                )
                .help("for example `client_ca: tls/clients-ca.pem`"),
        );
    }
    Handshake {
        min_version: fields
            .choice("min_version", &versions)
            .unwrap_or(above.min_version),
        client_ca,
        client_auth,
    }
}

/// One item of `listeners`; `common` is what the section `tls` says.
pub(super) fn listener(
    item: &Node,
    index: usize,
    above: &Fields<'_>,
    dir: &Path,
    common: &Handshake,
) -> Option<Listener> {
    let fields = Fields::open(item, above.notes, above.below(&format!("listeners[{index}]")))?;
    let address = fields.parsed("address", "address", |text| {
        text.parse::<SocketAddr>()
            .map_err(|_| "an address is an IP and a port: 127.0.0.1:4000, 0.0.0.0:4000, [::]:4000".into())
    });
    if !fields.all().iter().any(|e| e.key == "address") {
        drop(
            fields
                .error("missing", "`address` is missing", item.at)
                .help("for example `address: 0.0.0.0:4000`"),
        );
    }
    let tls = match fields.entry("tls") {
        Some(entry) if entry.value.scalar().is_some() => {
            fields.flag("tls").unwrap_or(false).then(|| common.clone())
        }
        Some(_) => fields.child("tls").map(|own| {
            let own_words = handshake(&own, dir, common);
            own.refuse_rest();
            own_words
        }),
        None => None,
    };
    let redirect_https = fields.flag("redirect_https").unwrap_or(false);
    if redirect_https
        && tls.is_some()
        && let Some(entry) = fields.entry("redirect_https")
    {
        drop(
            fields
                .error(
                    "redirect",
                    "`redirect_https` is for listeners without TLS",
                    entry.key_at,
                )
                .help("put it on the listener that speaks plain HTTP, such as 0.0.0.0:80"),
        );
    }
    let h2 = fields.flag("h2").unwrap_or(true);
    let proxy_protocol = fields.flag("proxy_protocol").unwrap_or(false);
    fields.refuse_rest();
    Some(Listener {
        address: address?,
        tls,
        h2,
        redirect_https,
        proxy_protocol,
    })
}

/// `llm.home.arpa`, `*.local`, `192.168.1.5`.
fn local_host(text: &str) -> Result<LocalHost, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(LocalHost::Address(address));
    }
    let name =
        host(text).map_err(|_| "a local host is llm.home.arpa, *.local or an address of this machine")?;
    Ok(match name.strip_prefix("*.") {
        Some(parent) => LocalHost::Below(parent.to_string()),
        None => LocalHost::Name(name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::{Conf, Env, load_text};

    fn read(text: &str) -> Result<Conf, String> {
        load_text("config.yaml", text, &Env::default())
            .map(|loaded| loaded.conf)
            .map_err(|report| report.render(false))
    }

    #[test]
    fn a_listener_takes_what_the_section_says_unless_it_says_more() {
        let conf = read(
            "tollkeeper:
  listeners:
    - {address: 0.0.0.0:443, tls: true}
    - {address: 0.0.0.0:8443, tls: {client_ca: other.pem}, h2: false}
    - {address: 0.0.0.0:80, redirect_https: true}
    - {address: 0.0.0.0:81, tls: false}
  tls:
    certificates: [{cert: a.pem, key: /k/a.key}]
    local: {hosts: ['*.Local', llm.home.arpa, 192.168.1.5]}
    min_version: '1.3'
    unknown_names: refuse
    hsts: {max_age: 400d, include_subdomains: true, preload: true}
",
        )
        .unwrap();
        let own = &conf.tollkeeper;
        let common = Handshake {
            min_version: TlsVersion::V1_3,
            ..Handshake::default()
        };
        assert_eq!(own.listeners[0].tls, Some(common));
        assert!(own.listeners[0].h2 && !own.listeners[1].h2);
        let second = own.listeners[1].tls.as_ref().unwrap();
        assert_eq!(second.client_auth, ClientAuth::Required);
        assert_eq!(second.min_version, TlsVersion::V1_3);
        assert!(own.listeners[2].tls.is_none() && own.listeners[2].redirect_https);
        assert!(own.listeners[3].tls.is_none());
        assert_eq!(own.tls.certificates[0].key, Path::new("/k/a.key"));
        assert_eq!(own.tls.unknown_names, UnknownNames::Refuse);
        let hsts = own.tls.hsts.as_ref().map(Hsts::value);
        assert_eq!(
            hsts.as_deref(),
            Some("max-age=34560000; includeSubDomains; preload")
        );
        assert_eq!(
            own.tls.local,
            [
                LocalHost::Below("local".into()),
                LocalHost::Name("llm.home.arpa".into()),
                LocalHost::Address("192.168.1.5".parse().unwrap())
            ]
        );
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (tls, listener, want) in [
            ("{certificates: [{cert: a}]}", "{tls: true}", "`key` is missing"),
            ("{certificates: {cert: a}}", "{tls: true}", "must be a list"),
            ("{min_version: '1.1'}", "{tls: true}", "`1.2`, `1.3`"),
            ("{client_auth: required}", "{tls: true}", "needs a `client_ca`"),
            ("{local: {}}", "{tls: true}", "`hosts` is missing"),
            ("{local: {hosts: ['a b']}}", "{tls: true}", "a local host is"),
            ("{cert: a}", "{tls: true}", "unknown field `cert`"),
            ("{hsts: true}", "{tls: true}", "a mapping is expected"),
            ("{hsts: {}}", "{tls: true}", "`max_age` is missing"),
            (
                "{hsts: {max_age: 5m, preload: true}}",
                "{tls: true}",
                "`preload` asks for",
            ),
            ("{hsts: {max_age: soon}}", "{tls: true}", "max_age"),
            ("{}", "{tls: [1]}", "a mapping is expected"),
            ("{}", "{tls: maybe}", "true or false"),
            ("{}", "{tls: {cert: a}}", "unknown field `cert`"),
            ("{}", "{tls: true, redirect_https: true}", "without TLS"),
        ] {
            let listener = listener.replacen('{', "{address: 0.0.0.0:443, ", 1);
            let text = format!("tollkeeper: {{tls: {tls}, listeners: [{listener}]}}");
            let told = read(&text).expect_err(&text);
            assert!(told.contains(want), "{text}: {told}");
        }
    }
}
