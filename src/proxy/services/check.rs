//! Health checks: asks the backends of services in the background, each at its own pace, and notes what it
//! finds in their standing. Each check opens a connection of its own: whether one can be opened is half of
//! what is asked.

use super::standing::Check;
use super::{Backend, HealthCheck, Service};
use crate::proxy::peer::Peers;
use crate::snapshot::Snapshot;
use arc_swap::ArcSwap;
use http::{Method, Version, header};
use pingora::connectors::http::Connector;
use pingora_http::RequestHeader;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// How soon a new config's checks begin.
const LOOK: Duration = Duration::from_millis(250);
/// Checks at once.
const MOST: usize = 64;

/// What checks go out through.
struct Road {
    connector: Connector,
    peers: Peers,
}

/// Checks the services of whichever snapshot serves. Never ends.
pub async fn watch(snapshot: Arc<ArcSwap<Snapshot>>) {
    let road = Arc::new(Road {
        connector: Connector::new(None),
        peers: Peers::default(),
    });
    let mut running = JoinSet::new();
    loop {
        let services = Arc::clone(&snapshot.load().services);
        let mut next = LOOK;
        for service in services.iter() {
            let Some(check) = &service.health_check else {
                continue;
            };
            for backend in &service.backends {
                if running.len() >= MOST {
                    break;
                }
                if let Some(turn) = backend.standing().begin_check(check.interval) {
                    let (road, service) = (Arc::clone(&road), Arc::clone(service));
                    let backend = Arc::clone(backend);
                    running.spawn(async move {
                        look(&road, &service, &backend, &turn).await;
                        drop(turn);
                    });
                }
                next = next.min(backend.standing().check_in());
            }
        }
        while running.try_join_next().is_some() {}
        drop(services);
        tokio::time::sleep(next.max(Duration::from_millis(10))).await;
    }
}

async fn look(road: &Road, service: &Service, backend: &Backend, turn: &Check) {
    let Some(check) = &service.health_check else {
        return;
    };
    let found = tokio::time::timeout(check.timeout, ask(road, service, backend, check))
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {:?}", check.timeout)));
    if !backend.standing().checked(turn, found.is_ok()) {
        return;
    }
    match found {
        Ok(()) => log::info!(
            "event=backend_well service={} backend={}",
            service.name,
            backend.url()
        ),
        Err(cause) => {
            log::warn!(
                "event=backend_ill service={} backend={} cause={cause:?}",
                service.name,
                backend.url()
            );
            service.say_if_alone();
        }
    }
}

/// One check. `Err` says what was wrong.
async fn ask(road: &Road, service: &Service, backend: &Backend, check: &HealthCheck) -> Result<(), String> {
    let base = &backend.base;
    let place = road.peers.place(base, service.timeouts.connect).await?;
    let mut peer = service.peer(&place.peer, false);
    peer.options.read_timeout = Some(check.timeout);
    let (mut client, _) = road
        .connector
        .get_http_session(&*peer)
        .await
        .map_err(|e| e.to_string())?;
    let path = format!("{}{}", base.path, check.path);
    let authority = check.host.clone().unwrap_or_else(|| base.authority());
    let h2 = matches!(client, pingora::protocols::http::client::HttpSession::H2(_));
    let head = head(&path, &authority, base.tls, h2).map_err(|e| e.to_string())?;
    client
        .write_request_header(head)
        .await
        .map_err(|e| e.to_string())?;
    client.finish_request_body().await.map_err(|e| e.to_string())?;
    loop {
        client.read_response_header().await.map_err(|e| e.to_string())?;
        let Some(head) = client.response_header() else {
            return Err("no answer".into());
        };
        let status = head.status.as_u16();
        if head.status.is_informational() && check.status != Some(status) {
            continue;
        }
        let is_well = match check.status {
            Some(wanted) => status == wanted,
            None => (200..400).contains(&status),
        };
        return if is_well {
            Ok(())
        } else {
            Err(format!("status {status}"))
        };
    }
}

fn head(path: &str, authority: &str, tls: bool, h2: bool) -> pingora_error::Result<Box<RequestHeader>> {
    let mut head = RequestHeader::build(Method::GET, path.as_bytes(), Some(3))?;
    if h2 {
        let scheme = if tls { "https" } else { "http" };
        let uri = http::Uri::builder()
            .scheme(scheme)
            .authority(authority)
            .path_and_query(path)
            .build()
            .map_err(|e| {
                pingora_error::Error::because(pingora_error::ErrorType::InvalidHTTPHeader, "the URI", e)
            })?;
        head.set_uri(uri);
        head.set_version(Version::HTTP_2);
    } else {
        head.insert_header(header::HOST, authority)?;
        head.insert_header(header::CONNECTION, "close")?;
    }
    head.insert_header(header::USER_AGENT, "tollkeeper-health-check")?;
    Ok(Box::new(head))
}
