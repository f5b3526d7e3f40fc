//! One order: the account, the authority's looks at the names, the certificate. Nothing here waits for
//! ever, and what goes wrong says what to do. When an order is due is known in `tend`.

use super::challenge::{Challenges, Posted};
use super::post::{Post, chain};
use super::vault::Vault;
use crate::conf::{Acme, AcmeChallenge};
use crate::tls::files::{Certificate, in_memory};
use crate::tls::now;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, CertificateIdentifier, ChallengeType, Error,
    ExternalAccountKey, Identifier, NewAccount, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// For a whole order.
const WHOLE: Duration = Duration::from_secs(300);
/// For the authority to look at the names, or to make the certificate.
const LOOKS: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(250))
    .backoff(1.5)
    .timeout(Duration::from_secs(120));
/// An authority's clock may be this far ahead of ours, seconds: its certificate is then waited for.
const AHEAD: i64 = 60;
const ERRORS: &str = "urn:ietf:params:acme:error:";

/// What an order has brought.
pub struct Got {
    /// PEM: the certificate, then those between it and the authority's.
    pub chain: String,
    /// PEM.
    pub key: String,
    pub certificate: Certificate,
}

/// Why an order came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// A sentence.
    pub why: String,
    /// What to do, a sentence.
    pub advice: String,
    /// How long the authority wants to be left alone.
    pub wait: Option<Duration>,
}

/// An account as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    email: Option<String>,
    credentials: AccountCredentials,
}

/// Orders the entry's certificate. The caller keeps what comes of it. `replaces`: what the authority calls the
/// certificate that it takes the place of.
pub async fn order(
    entry: &Acme,
    challenge: AcmeChallenge,
    replaces: Option<&str>,
    vault: &Vault,
    challenges: &Arc<Challenges>,
) -> Result<Got, Failure> {
    let post = Post::new(entry.ca.as_deref()).map_err(plain)?;
    let ordering = Ordering {
        entry,
        challenge,
        replaces,
        vault,
        challenges,
        post: &post,
    };
    let ordered = match tokio::time::timeout(WHOLE, ordering.run()).await {
        Ok(ordered) => ordered,
        Err(_) => Err(plain(format!("it was not done in {} s", WHOLE.as_secs()))),
    };
    ordered.map_err(|failure| Failure {
        wait: post.wait(),
        ..failure
    })
}

struct Ordering<'a> {
    entry: &'a Acme,
    challenge: AcmeChallenge,
    replaces: Option<&'a str>,
    vault: &'a Vault,
    challenges: &'a Arc<Challenges>,
    post: &'a Post,
}

impl Ordering<'_> {
    async fn run(&self) -> Result<Got, Failure> {
        let names: Vec<Identifier> = self.entry.hosts.iter().cloned().map(Identifier::Dns).collect();
        let account = self.account(true).await?;
        let ordered = match self.replaces.and_then(|id| id.split_once('.')) {
            Some((key, serial)) => {
                let replaces = CertificateIdentifier {
                    authority_key_identifier: key.into(),
                    serial: serial.into(),
                };
                match account.new_order(&NewOrder::new(&names).replaces(replaces)).await {
                    // It may know nothing of that, or see it otherwise; a certificate is needed anyway.
                    Err(_) => account.new_order(&NewOrder::new(&names)).await,
                    ordered => ordered,
                }
            }
            None => account.new_order(&NewOrder::new(&names)).await,
        };
        let mut order = match ordered {
            // The authority has forgotten us, as one for tests does at each start.
            Err(Error::Api(p)) if kind(&p) == "accountDoesNotExist" => {
                let account = self.account(false).await?;
                account.new_order(&NewOrder::new(&names)).await
            }
            ordered => ordered,
        }
        .map_err(|e| self.told(e))?;
        let posted = self.post(&mut order).await?;
        let looked = match order.state().status {
            // All names were looked at for an order before.
            OrderStatus::Ready => Ok(OrderStatus::Ready),
            _ => order.poll_ready(&LOOKS).await,
        };
        match looked {
            Ok(OrderStatus::Ready) => {}
            Ok(_) => return Err(self.refused(&mut order, None).await),
            Err(e) => return Err(self.refused(&mut order, Some(e)).await),
        }
        drop(posted);
        let told = |e: rcgen::Error| plain(format!("the request for the certificate cannot be made: {e}"));
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(told)?;
        let mut params = CertificateParams::new(self.entry.hosts.clone()).map_err(told)?;
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&pair).map_err(told)?;
        order
            .finalize_csr(request.der())
            .await
            .map_err(|e| self.told(e))?;
        let chain = order.poll_certificate(&LOOKS).await.map_err(|e| self.told(e))?;
        let key = pair.serialize_pem();
        let read = |now: i64| in_memory(chain.as_bytes(), key.as_bytes(), now);
        let mut certificate = read(now());
        if let (Err(_), Ok(early)) = (&certificate, read(now() + AHEAD)) {
            let wait = early.facts.not_before.saturating_sub(now()).clamp(0, AHEAD);
            tokio::time::sleep(Duration::from_secs(wait.unsigned_abs())).await;
            certificate = read(now());
        }
        let certificate =
            certificate.map_err(|why| plain(format!("what the authority gave cannot be used: {why}")))?;
        let names = &certificate.facts.names;
        if let Some(host) = self.entry.hosts.iter().find(|h| !names.contains(h)) {
            let why = format!("what the authority gave cannot be used: it is not for {host}");
            return Err(plain(why));
        }
        Ok(Got {
            chain,
            key,
            certificate,
        })
    }

    /// The account that is kept, if there is one and it is wanted; else a new one.
    async fn account(&self, kept: bool) -> Result<Account, Failure> {
        let kept = self.vault.account(self.entry).filter(|_| kept);
        let kept = kept.and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok());
        let contact = self.entry.email.as_ref().map(|email| format!("mailto:{email}"));
        let contact: Vec<&str> = contact.as_deref().into_iter().collect();
        let builder = Account::builder_with_http(Box::new(self.post.clone()));
        if let Some(kept) = kept {
            let old = kept.email;
            let again = serde_json::to_value(&kept.credentials).ok();
            let account = builder
                .from_credentials(kept.credentials)
                .await
                .map_err(|e| self.told(e))?;
            if old == self.entry.email {
                return Ok(account);
            }
            match (account.update_contacts(&contact).await, again) {
                (Ok(()), Some(credentials)) => {
                    let kept = serde_json::json!({"email": self.entry.email, "credentials": credentials});
                    self.keep_account(&kept)?;
                }
                (Err(Error::Api(p)), _) if kind(&p) == "accountDoesNotExist" => {}
                (Err(e), _) => return Err(self.told(e)),
                (Ok(()), None) => {}
            }
            return Ok(account);
        }
        let external = match &self.entry.external_account {
            Some(external) => {
                let key = BASE64_URL_SAFE_NO_PAD
                    .decode(external.key.expose().trim_end_matches('='))
                    .map_err(|_| plain("external_account.key is no base64".into()))?;
                Some(ExternalAccountKey::new(external.id.clone(), &key))
            }
            None => None,
        };
        let wanted = NewAccount {
            contact: &contact,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let (account, credentials) = builder
            .create(&wanted, self.entry.directory.clone(), external.as_ref())
            .await
            .map_err(|e| self.told(e))?;
        self.keep_account(&Kept {
            email: self.entry.email.clone(),
            credentials,
        })?;
        log::info!("event=acme_account_made directory={}", self.entry.directory);
        Ok(account)
    }

    fn keep_account(&self, kept: &impl Serialize) -> Result<(), Failure> {
        let bytes = serde_json::to_vec(kept).map_err(|e| plain(e.to_string()))?;
        self.vault.keep_account(self.entry, &bytes).map_err(plain)
    }

    /// Puts there what the authority looks for, and tells it to look.
    async fn post(&self, order: &mut Order) -> Result<Vec<Posted>, Failure> {
        let (wanted, word) = match self.challenge {
            AcmeChallenge::Http01 => (ChallengeType::Http01, "http-01"),
            AcmeChallenge::TlsAlpn01 => (ChallengeType::TlsAlpn01, "tls-alpn-01"),
        };
        let mut posted = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(|e| self.told(e))?;
            match authorization.status {
                AuthorizationStatus::Pending => {}
                AuthorizationStatus::Valid => continue,
                status => {
                    let name = authorization.identifier().to_string();
                    return Err(plain(format!(
                        "the authority has no way to see that {name} is ours: {status:?}"
                    )));
                }
            }
            let name = authorization.identifier().to_string();
            let Some(mut challenge) = authorization.challenge(wanted.clone()) else {
                return Err(Failure {
                    why: format!("the authority does not offer {word} for {name}"),
                    advice: "set `challenge` in tollkeeper.tls.acme to the other one".into(),
                    wait: None,
                });
            };
            let says = challenge.key_authorization();
            posted.push(match self.challenge {
                AcmeChallenge::Http01 => self.challenges.post_token(&challenge.token, says.as_str()),
                AcmeChallenge::TlsAlpn01 => self
                    .challenges
                    .post_name(&name, says.digest().as_ref())
                    .map_err(plain)?,
            });
            challenge.set_ready().await.map_err(|e| self.told(e))?;
        }
        Ok(posted)
    }

    /// Why the authority does not believe that the names are ours: it says so with each name.
    async fn refused(&self, order: &mut Order, e: Option<Error>) -> Failure {
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            let Ok(state) = authorization.refresh().await else {
                break;
            };
            let name = state.identifier().to_string();
            if let Some(problem) = state.challenges.iter().find_map(|c| c.error.clone()) {
                return self.of_problem(&problem, Some(&name));
            }
        }
        match e {
            Some(e) => self.told(e),
            None => plain("the authority refused the order and does not say why".into()),
        }
    }

    fn told(&self, e: Error) -> Failure {
        match e {
            Error::Api(problem) => self.of_problem(&problem, None),
            Error::Timeout(_) => Failure {
                why: "the authority was not done in time".into(),
                advice: self.reach("NAME"),
                wait: None,
            },
            e => Failure {
                why: chain(&e),
                advice: match self.entry.ca {
                    None => "the directory has to be reached from here by https; an authority of your own needs `ca`",
                    Some(_) => "the directory has to be reached from here by https, with a certificate that `ca` vouches for",
                }
                .into(),
                wait: None,
            },
        }
    }

    fn of_problem(&self, problem: &Problem, name: Option<&str>) -> Failure {
        let name = name.or_else(|| self.entry.hosts.first().map(String::as_str));
        let name = name.unwrap_or_default();
        let detail = problem.detail.clone().unwrap_or_default();
        let of_names: Vec<String> = problem
            .subproblems
            .iter()
            .take(5)
            .map(ToString::to_string)
            .collect();
        let advice = match kind(problem) {
            "connection" | "unauthorized" | "incorrectResponse" | "tls" => self.reach(name),
            "dns" => format!("{name} needs an address (A, AAAA) that the authority can look up"),
            "caa" => format!("a CAA record of {name} forbids this authority"),
            "rateLimited" => "wait; use `staging: true` while trying things out".into(),
            "rejectedIdentifier" => {
                "this authority gives no certificate for such a name; take it out of `hosts`".into()
            }
            "externalAccountRequired" => "set `external_account` in tollkeeper.tls.acme".into(),
            "userActionRequired" => "the authority's terms have changed; it says above what to do".into(),
            "invalidContact" | "unsupportedContact" => "set another `email` in tollkeeper.tls.acme".into(),
            _ => "it is tried again".into(),
        };
        let of_names = if of_names.is_empty() {
            String::new()
        } else {
            format!(" ({})", of_names.join("; "))
        };
        let why: String = format!("{}: {detail}{of_names}", kind(problem))
            .chars()
            .take(1_000)
            .collect();
        Failure {
            why: format!("{name}: {why}"),
            advice,
            wait: None,
        }
    }

    /// What the authority has to be able to do.
    fn reach(&self, name: &str) -> String {
        match self.challenge {
            AcmeChallenge::Http01 => format!(
                "http://{name}/.well-known/acme-challenge/ has to come to a plain listener of this gateway from the \
                 outside, port 80: look at the name's addresses, the firewall, the port that leads here"
            ),
            AcmeChallenge::TlsAlpn01 => format!(
                "port 443 of {name} has to come to a listener of this gateway with `tls` from the outside, and nobody \
                 before it may speak TLS: look at the name's addresses, the firewall, the port that leads here"
            ),
        }
    }
}

/// Without the part that all problems share.
fn kind(problem: &Problem) -> &str {
    let whole = problem.r#type.as_deref().unwrap_or("refused");
    whole.strip_prefix(ERRORS).unwrap_or(whole)
}

fn plain(why: String) -> Failure {
    Failure {
        why,
        advice: "it is tried again".into(),
        wait: None,
    }
}
