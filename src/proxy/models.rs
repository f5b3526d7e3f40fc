//! The models of one snapshot: which name leads to which deployments, and what `/models` shows.

use super::balance::{Group, Place};
use super::cooldown::Rule;
use super::rooms::Ceiling;
use crate::conf::litellm::{capture, fill, resolve_name};
use crate::conf::{Conf, Dialect, Env, Fallbacks, ModelEntry};
use filters::builtin::access;
use filters::contract::ports::Catalog;
use filters::contract::{Answer, Refusal};
use filters::model::call::Endpoint;
use filters::model::deployment::{Base, Deployment};
use filters::model::key::Caller;
use filters::model::price::{Listing, Price, PriceOverride, Prices, ServiceTier};
use filters::model::usage::Usage;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// LiteLLM's constant for every model's `created`.
const CREATED: i64 = 1_677_610_602;

/// Aliases of aliases that are followed.
const MOST_ALIASES: usize = 8;

/// Names and what they lead to. Never changes.
pub struct Models {
    groups: Vec<Group>,
    /// Looked at several times by every call.
    exact: HashMap<String, usize, foldhash::fast::RandomState>,
    /// Most specific first.
    patterns: Vec<(String, usize)>,
    aliases: BTreeMap<String, String>,
    /// In the config's order, aliases first, as LiteLLM lists them.
    names: Vec<String>,
    env: Env,
    drop_params: bool,
    /// In the config's order, those of the database last.
    entries: Vec<Entry>,
}

/// A deployment, as it is written and as it is called.
pub struct Entry {
    pub written: ModelEntry,
    pub deployment: Arc<Deployment>,
    /// What the price table says of it.
    pub listing: Option<Arc<Listing>>,
}

/// A way to serve a call: the group it belongs to and what the wildcard stood for.
pub struct Found<'a> {
    pub group: &'a Group,
    /// What the `*` of the name stands for in the call's model.
    captured: Option<String>,
    models: &'a Models,
}

impl Models {
    /// Builds from a checked config. `Err` names what cannot be used.
    pub fn new(conf: &Conf) -> Result<Self, String> {
        let timeout = conf
            .litellm
            .request_timeout
            .or(conf.router.timeout)
            .unwrap_or(conf.tollkeeper.timeouts.first_byte);
        let drop_params = conf.litellm.drop_params;
        let mut order: Vec<String> = Vec::new();
        let mut by_name: HashMap<String, Vec<(Arc<Deployment>, Place)>> = HashMap::new();
        let mut entries = Vec::with_capacity(conf.models.len());
        for entry in &conf.models {
            if !by_name.contains_key(&entry.model_name) {
                order.push(entry.model_name.clone());
            }
            let (deployment, listing) =
                deployment(entry, conf, timeout).map_err(|e| format!("{}: {e}", entry.model_name))?;
            let deployment = Arc::new(deployment);
            entries.push(Entry {
                written: entry.clone(),
                deployment: Arc::clone(&deployment),
                listing: listing.map(Arc::new),
            });
            by_name
                .entry(entry.model_name.clone())
                .or_default()
                .push((deployment, place(entry, conf)));
        }
        let mut groups = Vec::with_capacity(order.len());
        let mut exact = HashMap::default();
        let mut patterns = Vec::new();
        for (at, name) in order.iter().enumerate() {
            let others = Fallbacks::after(&conf.fallbacks.general, &[name]);
            let others = others.iter().any(|other| other != name);
            let members = by_name.remove(name).unwrap_or_default();
            groups.push(Group::new(name.clone(), members, others));
            if name.contains('*') {
                patterns.push((name.clone(), at));
            } else {
                exact.insert(name.clone(), at);
            }
        }
        // The pattern with the most fixed characters is the most specific one.
        patterns.sort_by_key(|(p, at)| (std::cmp::Reverse(p.len()), *at));
        let mut aliases = BTreeMap::new();
        let mut shown = Vec::new();
        for (alias, target) in &conf.router.model_group_alias {
            aliases.insert(alias.clone(), target.model.clone());
            if !target.hidden {
                shown.push(alias.clone());
            }
        }
        for (alias, target) in &conf.litellm.model_alias_map {
            aliases
                .entry(alias.clone())
                .or_insert_with(|| target.model.clone());
        }
        shown.extend(order);
        Ok(Self {
            groups,
            exact,
            patterns,
            aliases,
            names: shown,
            env: conf.env.clone(),
            drop_params,
            entries,
        })
    }

    /// All deployments as they are written, in the config's order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The deployment of this id.
    pub fn entry(&self, id: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.deployment.id == id)
    }

    /// The group that serves a name.
    pub fn find(&self, model: &str) -> Option<Found<'_>> {
        let mut model = model;
        // An alias may lead to another; a circle ends here as it leads nowhere.
        for _ in 0..MOST_ALIASES {
            match self.aliases.get(model) {
                Some(target) if !self.exact.contains_key(model) => model = target,
                _ => break,
            }
        }
        if let Some(at) = self.exact.get(model) {
            return self.groups.get(*at).map(|group| Found {
                group,
                captured: None,
                models: self,
            });
        }
        let (at, captured) = self
            .patterns
            .iter()
            .find_map(|(p, at)| capture(p, model).map(|c| (*at, c.to_string())))?;
        // `*` without an address serves whatever names its provider; other names lead nowhere.
        let group = self.groups.get(at)?;
        let by_name = group.deployments.iter().all(|d| d.dialect == BY_NAME);
        if by_name && resolve_name(model, &self.env).is_err() {
            return None;
        }
        Some(Found {
            group,
            captured: Some(captured),
            models: self,
        })
    }

    /// The first name that is no wildcard: what a call without a model gets.
    pub fn default_model(&self) -> Option<&str> {
        self.names.iter().map(String::as_str).find(|n| !n.contains('*'))
    }

    pub fn deployments(&self) -> impl Iterator<Item = &Arc<Deployment>> {
        self.groups.iter().flat_map(|g| &g.deployments)
    }

    /// All deployments, and for how many seconds each is cooling.
    pub fn standings(&self) -> impl Iterator<Item = (&Arc<Deployment>, Option<f64>)> {
        self.groups.iter().flat_map(Group::standings)
    }
}

impl Found<'_> {
    /// The deployment as it is called for this model: wildcards filled in.
    pub fn dress(&self, d: &Arc<Deployment>, model: &str) -> Result<(Arc<Deployment>, String), Refusal> {
        let Some(captured) = &self.captured else {
            return Ok((Arc::clone(d), d.upstream_model.clone()));
        };
        if d.dialect != BY_NAME {
            return Ok((Arc::clone(d), fill(&d.upstream_model, captured)));
        }
        let refusal = || {
            Refusal::new(
                404,
                "invalid_request_error",
                format!("No provider is known for the model '{model}'."),
            )
            .param("model")
            .code("model_not_found")
        };
        let resolved = resolve_name(model, &self.models.env).map_err(|_| refusal())?;
        let dialect = dialect_name(resolved.provider.dialect).ok_or_else(refusal)?;
        let base = resolved
            .api_base
            .as_deref()
            .and_then(|b| Base::parse(b).ok())
            .ok_or_else(refusal)?;
        let listing = Prices::embedded().find(&resolved.provider.name, &resolved.upstream_model);
        let named = Deployment {
            id: d.id.clone(),
            model_name: d.model_name.clone(),
            provider: resolved.provider.name,
            dialect,
            upstream_model: resolved.upstream_model.clone(),
            base,
            api_key: resolved.api_key.map(|k| k.expose().into()),
            headers: d.headers.clone(),
            timeout: d.timeout,
            stream_timeout: d.stream_timeout,
            drop_params: self.models.drop_params,
            additional_drop_params: d.additional_drop_params.clone(),
            defaults: d.defaults.clone(),
            price: listing.as_ref().map(|l| l.price.clone()),
            max_output_tokens: listing.as_ref().and_then(|l| l.max_output_tokens),
            model_info: d.model_info.clone(),
        };
        Ok((Arc::new(named), resolved.upstream_model))
    }
}

impl Catalog for Models {
    fn group_of(&self, model: &str) -> Option<&str> {
        self.find(model).map(|f| f.group.name.as_str())
    }

    fn names(&self) -> &[String] {
        &self.names
    }

    fn in_access_group(&self, model: &str, access_group: &str) -> bool {
        self.find(model).is_some_and(|f| {
            f.group.deployments.iter().any(|d| {
                d.model_info
                    .get("access_groups")
                    .and_then(Value::as_array)
                    .is_some_and(|groups| groups.iter().any(|g| g.as_str() == Some(access_group)))
            })
        })
    }

    fn worst_cost(&self, model: &str, endpoint: Endpoint, usage: &Usage, tier: ServiceTier) -> Option<i64> {
        let at = |p: &Price| {
            let cost = p.cost(usage, endpoint.into(), tier);
            if tier == ServiceTier::Standard {
                return cost;
            }
            cost.max(p.cost(usage, endpoint.into(), ServiceTier::Standard))
        };
        let found = self.find(model)?;
        found
            .group
            .deployments
            .iter()
            .filter_map(|d| match d.price {
                Some(ref p) => at(p),
                // A wildcard's price depends on the name that is called.
                None if found.captured.is_some() => {
                    let (d, _) = found.dress(d, model).ok()?;
                    d.price.as_ref().and_then(at)
                }
                None => None,
            })
            .map(|n| n.0)
            .max()
    }

    fn max_output_tokens(&self, model: &str) -> Option<u64> {
        let found = self.find(model)?;
        found
            .group
            .deployments
            .iter()
            .filter_map(|d| match d.max_output_tokens {
                None if found.captured.is_some() => found.dress(d, model).ok()?.0.max_output_tokens,
                known => known,
            })
            .max()
    }
}

/// The dialect of a deployment whose provider each call names itself.
const BY_NAME: &str = "by-name";

fn dialect_name(dialect: Dialect) -> Option<&'static str> {
    match dialect {
        Dialect::OpenAi => Some("openai"),
        Dialect::Anthropic => Some("anthropic"),
        Dialect::ByName => Some(BY_NAME),
        Dialect::Unsupported => None,
    }
}

fn deployment(
    entry: &ModelEntry,
    conf: &Conf,
    default_timeout: Duration,
) -> Result<(Deployment, Option<Listing>), String> {
    let p = &entry.params;
    let dialect = dialect_name(p.provider.dialect)
        .ok_or_else(|| format!("provider {} is not spoken yet", p.provider.name))?;
    let base = match &p.api_base {
        Some(url) => Base::parse(url)?,
        None if dialect == BY_NAME => Base {
            tls: false,
            host: String::new(),
            port: 0,
            path: String::new(),
            h2: false,
        },
        None => return Err("it has no api_base".into()),
    };
    let priced_as = p.base_model.as_deref().or(entry.info.base_model.as_deref());
    let listing = match priced_as {
        Some(name) => Prices::embedded()
            .get(name)
            .or_else(|| Prices::embedded().find(&p.provider.name, name)),
        // A server of one's own charges nothing that a public price list knows.
        None if is_elsewhere(&base, &p.provider.name) => None,
        None => Prices::embedded().find(&p.provider.name, &p.upstream_model),
    };
    let overrides = PriceOverride::from_fields(p.costs.iter().map(|(n, v)| (n.as_str(), v)))
        .map_err(|e| e.to_string())?;
    let price = if overrides.is_empty() {
        listing.as_ref().map(|l| l.price.clone())
    } else {
        overrides.over(listing.as_ref().map(|l| &l.price))
    };
    let mut headers: Vec<_> = p
        .headers
        .iter()
        .map(|(n, v)| (n.to_ascii_lowercase(), v.expose().into()))
        .collect();
    if let Some(organization) = &p.organization {
        headers.push(("openai-organization".into(), organization.as_str().into()));
    }
    let timeout = p.timeout.unwrap_or(default_timeout);
    let deployment = Deployment {
        id: id(entry),
        model_name: entry.model_name.clone(),
        provider: p.provider.name.clone(),
        dialect,
        upstream_model: p.upstream_model.clone(),
        base,
        api_key: p.api_key.as_ref().map(|k| k.expose().into()),
        headers,
        timeout,
        stream_timeout: p.stream_timeout.or(conf.router.stream_timeout).unwrap_or(timeout),
        drop_params: p.drop_params.unwrap_or(conf.litellm.drop_params),
        additional_drop_params: p.additional_drop_params.clone(),
        defaults: p.defaults.clone(),
        price: price.filter(|p| !p.is_empty()),
        max_output_tokens: entry
            .info
            .max_output_tokens
            .or(listing.as_ref().and_then(|l| l.max_output_tokens)),
        model_info: entry.info.all.clone(),
    };
    Ok((deployment, listing))
}

/// The id of an entry's deployment: `model_info.id`, else one that is made of the entry.
pub fn id(entry: &ModelEntry) -> String {
    entry.info.id.clone().unwrap_or_else(|| id_of(entry))
}

fn place(entry: &ModelEntry, conf: &Conf) -> Place {
    let p = &entry.params;
    let retries = p
        .max_retries
        .or(conf.litellm.num_retries)
        .or(conf.router.num_retries)
        .unwrap_or(0);
    Place {
        weight: p.share(),
        order: p.order.unwrap_or(i64::MAX),
        retries,
        ceiling: Ceiling {
            rpm: p.rpm,
            tpm: p.tpm,
            parallel: p.max_parallel_requests,
        },
        // Where each call names its own provider, there is no upstream that steps back.
        cooldown: (p.provider.dialect != Dialect::ByName)
            .then(|| Rule::new(entry, &conf.cooldown))
            .flatten(),
    }
}

/// Whether an OpenAI-compatible server other than the provider's own is meant: `openai/llama` with an
/// `api_base` at home must not be charged at OpenAI's prices.
fn is_elsewhere(base: &Base, provider: &str) -> bool {
    crate::conf::litellm::provider(provider)
        .and_then(|p| p.base.as_deref())
        .and_then(|own| Base::parse(own).ok())
        .is_some_and(|own| own.host != base.host)
}

/// A stable id: the same entry has the same one after a restart.
fn id_of(entry: &ModelEntry) -> String {
    let p = &entry.params;
    let mut hash = Sha256::new();
    for part in [
        entry.model_name.as_str(),
        p.model.as_str(),
        p.api_base.as_deref().unwrap_or_default(),
    ] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    // Two keys for one place are two deployments; the digest does not give the key away.
    hash.update(p.api_key.as_ref().map_or("", |k| k.expose()).as_bytes());
    hash.update(p.weight.unwrap_or(0.0).to_le_bytes());
    hash.finalize()
        .iter()
        .take(16)
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// `GET /models`, in the shape the client expects: it says which one it is by its headers and query.
pub fn list(models: &Models, caller: &Caller, anthropic: bool, query: Option<&str>) -> Answer {
    let names = access::visible(caller, models);
    let body = if anthropic {
        let data: Vec<Value> = names
            .iter()
            .map(|id| json!({"type": "model", "id": id, "display_name": id, "created_at": "2023-02-28T18:56:42Z"}))
            .collect();
        json!({"has_more": false, "first_id": names.first(), "last_id": names.last(), "data": data})
    } else {
        let data: Vec<Value> = names.iter().map(|id| one(id)).collect();
        let mut body = Map::new();
        body.insert("object".into(), "list".into());
        body.insert("data".into(), data.into());
        // Codex wants this array to be there and falls back to its own knowledge of what it names.
        if query.is_some_and(|q| q.split('&').any(|p| p.starts_with("client_version="))) {
            body.insert("models".into(), json!([]));
        }
        Value::Object(body)
    };
    json_answer(&body)
}

/// `GET /models/{id}`.
pub fn retrieve(models: &Models, caller: &Caller, id: &str) -> Result<Answer, Refusal> {
    let allowed = caller.key().is_none_or(|k| access::may(k, models, id));
    if !allowed || models.find(id).is_none() {
        return Err(access::not_found(caller, models, id));
    }
    Ok(json_answer(&one(id)))
}

fn one(id: &str) -> Value {
    json!({"id": id, "object": "model", "created": CREATED, "owned_by": "openai"})
}

fn json_answer(body: &Value) -> Answer {
    Answer {
        status: 200,
        headers: vec![("content-type", "application/json".into())],
        body: body.to_string().into(),
    }
}
