//! What days are made of: LiteLLM's `{results: [{date, metrics, breakdown}], metadata}`. Whose days they are
//! is found in [`activity`](super::activity).
//!
//! Sums are kept by the name that clients ask for, so `models` and `model_groups` are the same. Pages are
//! made of whole days, so that no day is split.

use super::Desk;
use super::ask::{Params, Slice};
use super::days::{self, Days, MOST_SUMS};
use super::error::{Result, wrong_type, wrong_value};
use super::reports::{KeyName, id_of, list, total_tokens};
use crate::store::{DocFilter, Group, Page, Table, Usage, UsageFilter, UsageRow};
use axum::Json;
use filters::model::key::KeyHash;
use filters::model::money::Nanos;
use jiff::civil::Date;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Days of one page, unless `page_size` says otherwise.
const DAYS: u64 = 50;
const MOST_PAGE: u64 = 1_000;
/// Most sums that one answer is made of: each shows five times where nothing is left out.
const MOST_WHOLE: usize = 20_000;
/// The same of each part where `breakdown` names them.
const MOST_PART: usize = 60_000;

/// What is called what in the days' `breakdown`.
const PARTS: [(&str, Group); 4] = [
    ("models", Group::ModelGroup),
    ("model_groups", Group::ModelGroup),
    ("providers", Group::Provider),
    ("api_keys", Group::Key),
];

/// LiteLLM's `metrics`.
#[derive(Serialize)]
struct Metrics {
    spend: Nanos,
    prompt_tokens: i64,
    completion_tokens: i64,
    cache_read_input_tokens: i64,
    cache_creation_input_tokens: i64,
    total_tokens: i64,
    successful_requests: i64,
    failed_requests: i64,
    /// Those that the client left included.
    api_requests: i64,
    /// Answered calls without a price, which count with nothing in the spend.
    unpriced_requests: i64,
}

impl Metrics {
    fn of(usage: &Usage) -> Self {
        Self {
            spend: Nanos(usage.spend_nanos),
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cache_read_input_tokens: usage.cached_tokens,
            cache_creation_input_tokens: usage.cache_creation_tokens,
            total_tokens: total_tokens(usage),
            successful_requests: usage.successes,
            failed_requests: usage.failures,
            api_requests: usage.requests,
            unpriced_requests: usage.unpriced,
        }
    }
}

/// One entry of a part of a breakdown.
#[derive(Default)]
struct Entry {
    usage: Usage,
    /// The same by key, where it is broken down so.
    keys: BTreeMap<Option<KeyHash>, Usage>,
}

/// A day's breakdown: parts by name, entries by id.
type Parts = BTreeMap<&'static str, BTreeMap<String, Entry>>;

/// Which of the parts are shown.
struct Wanted(Option<Vec<String>>);

impl Wanted {
    fn read(params: &Params) -> Result<Self> {
        let wanted = list(params, "breakdown")?;
        let known = |name: &String| name == "entities" || PARTS.iter().any(|(part, _)| part == name);
        match wanted {
            Some(names) if !names.iter().all(known) => Err(wrong_type(
                "breakdown",
                "models, model_groups, providers, api_keys or entities, with commas",
            )
            .into()),
            wanted => Ok(Self(wanted)),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|w| w.iter().any(|n| n == name))
    }

    /// By key within models and the like.
    fn is_all(&self) -> bool {
        self.0.is_none()
    }
}

/// `{results: [{date, metrics, breakdown}], metadata}`, the last day first. Totals are of all pages.
pub async fn answer(
    desk: &Desk,
    params: &Params,
    mut filter: UsageFilter,
    entity: Group,
) -> Result<Json<Value>> {
    let days = Days::required(params)?.touched(days::timezone(params)?);
    let wanted = Wanted::read(params)?;
    let slice = params.page(&["page_size"], DAYS, MOST_PAGE)?;
    filter.model_groups = params.owned("model")?.map(|m| vec![m]);
    let labels = matches!(entity, Group::Tag | Group::EndUser);
    if labels && params.text("api_key")?.is_some() {
        let message = "Sums of tags and customers are kept for all keys together. Leave 'api_key' out.";
        return Err(wrong_value("api_key", message).into());
    }

    let mut by = vec![Group::Day];
    if labels {
        // Calls without a label are not in these sums.
        by.push(entity);
    }
    let mut all: BTreeMap<Date, Usage> = BTreeMap::new();
    let mut total = Usage::default();
    for row in desk
        .sums(days.of(UsageFilter { by, ..filter.clone() }), MOST_SUMS)
        .await?
    {
        all.entry(row.day.unwrap_or_default())
            .or_default()
            .add(&row.usage);
        total.add(&row.usage);
    }
    let shown: Vec<(Date, Usage)> = all
        .iter()
        .rev()
        .skip(slice.offset as usize)
        .take(slice.size as usize)
        .map(|(day, usage)| (*day, *usage))
        .collect();
    let mut parts: BTreeMap<Date, Parts> = BTreeMap::new();
    if let (Some((last, _)), Some((first, _))) = (shown.first(), shown.last()) {
        let page = Days {
            first: *first,
            last: *last,
        };
        parts = broken_down(desk, page.of(filter), entity, &wanted, shown.len()).await?;
    }
    let names = Names::of(desk, &parts, entity).await?;
    let results: Vec<Value> = shown
        .iter()
        .map(|(day, usage)| {
            let mut breakdown = Map::new();
            for part in ["models", "model_groups", "providers", "api_keys", "entities"] {
                let entries = parts
                    .get_mut(day)
                    .and_then(|p| p.remove(part))
                    .unwrap_or_default();
                let entries = entries.into_iter().map(|(id, e)| names.entry(part, id, &e));
                breakdown.insert(part.into(), Value::Object(entries.collect()));
            }
            // Columns of LiteLLM's that no sums are kept by.
            breakdown.insert("mcp_servers".into(), json!({}));
            breakdown.insert("endpoints".into(), json!({}));
            json!({"date": day.to_string(), "metrics": Metrics::of(usage), "breakdown": breakdown})
        })
        .collect();
    Ok(Json(
        json!({"results": results, "metadata": metadata(&total, all.len() as u64, slice)}),
    ))
}

fn metadata(total: &Usage, days: u64, slice: Slice) -> Value {
    json!({
        "total_spend": Nanos(total.spend_nanos),
        "total_prompt_tokens": total.prompt_tokens,
        "total_completion_tokens": total.completion_tokens,
        "total_tokens": total_tokens(total),
        "total_api_requests": total.requests,
        "total_successful_requests": total.successes,
        "total_failed_requests": total.failures,
        "total_unpriced_requests": total.unpriced,
        "total_cache_read_input_tokens": total.cached_tokens,
        "total_cache_creation_input_tokens": total.cache_creation_tokens,
        "page": slice.page,
        "page_size": slice.size,
        "total_pages": days.div_ceil(slice.size).max(1),
        "has_more": slice.offset.saturating_add(slice.size) < days,
    })
}

/// What each day of a page is made of.
async fn broken_down(
    desk: &Desk,
    filter: UsageFilter,
    entity: Group,
    wanted: &Wanted,
    days: usize,
) -> Result<BTreeMap<Date, Parts>> {
    let labels = matches!(entity, Group::Tag | Group::EndUser);
    let kept = |group: Group| !labels || group == Group::ModelGroup || group == entity;
    let parts = PARTS.into_iter().chain([("entities", entity)]);
    let parts: Vec<(&'static str, Group)> = parts
        .filter(|(name, group)| wanted.has(name) && kept(*group))
        .collect();
    let mut found: BTreeMap<Date, Parts> = BTreeMap::new();
    let groups: BTreeSet<Group> = parts.iter().map(|(_, group)| *group).collect();
    if wanted.is_all() {
        let by = [Group::Day].into_iter().chain(groups).collect();
        let rows = read(desk, UsageFilter { by, ..filter }, MOST_WHOLE, days).await?;
        rows.iter().for_each(|row| take(&mut found, row, &parts, !labels));
        return Ok(found);
    }
    for group in groups {
        // What has a label is found by it only.
        let mut by = vec![Group::Day, group];
        if labels && group != entity {
            by.push(entity);
        }
        let of: Vec<_> = parts.iter().copied().filter(|(_, g)| *g == group).collect();
        let rows = read(desk, UsageFilter { by, ..filter.clone() }, MOST_PART, days).await?;
        rows.iter().for_each(|row| take(&mut found, row, &of, false));
    }
    Ok(found)
}

async fn read(desk: &Desk, filter: UsageFilter, most: usize, days: usize) -> Result<Vec<UsageRow>> {
    let found = desk.sums_up_to(filter, most).await?;
    found.ok_or_else(|| {
        let advice = match days {
            1 => "Narrow it by 'model' or 'api_key', or name the parts you need in 'breakdown'".to_string(),
            n => format!(
                "Ask with a smaller 'page_size' ({} perhaps), or name the parts you need in 'breakdown'",
                (n / 4).max(1)
            ),
        };
        let message = format!("These {days} days are made of more than {most} sums. {advice}.");
        wrong_value("page_size", message).into()
    })
}

fn take(found: &mut BTreeMap<Date, Parts>, row: &UsageRow, parts: &[(&'static str, Group)], keys: bool) {
    let day = found.entry(row.day.unwrap_or_default()).or_default();
    for (name, group) in parts {
        let id = id_of(row, *group).unwrap_or_default();
        let entry = day.entry(name).or_default().entry(id).or_default();
        entry.usage.add(&row.usage);
        if keys && *group != Group::Key {
            entry.keys.entry(row.key_hash).or_default().add(&row.usage);
        }
    }
}

/// How keys and entities are called.
struct Names {
    keys: HashMap<KeyHash, KeyName>,
    entities: HashMap<String, String>,
    /// The field of an entity's `metadata` that its name stands in.
    field: Option<&'static str>,
}

impl Names {
    async fn of(desk: &Desk, parts: &BTreeMap<Date, Parts>, entity: Group) -> Result<Self> {
        let ids = |part: &'static str| {
            let parts = parts.values().filter_map(move |p| p.get(part));
            parts.flat_map(|entries| entries.keys())
        };
        let within = parts.values().flat_map(|p| p.values()).flat_map(|p| p.values());
        let hashes: BTreeSet<KeyHash> = within
            .flat_map(|e| e.keys.keys().copied().flatten())
            .chain(ids("api_keys").filter_map(|h| KeyHash::from_hex(h)))
            .collect();
        let (table, field) = match entity {
            Group::Team => (Table::Team, "team_alias"),
            Group::User => (Table::User, "user_alias"),
            Group::Organization => (Table::Organization, "organization_alias"),
            _ => {
                return Ok(Self {
                    keys: desk.key_names(hashes.into_iter()).await?,
                    entities: HashMap::new(),
                    field: None,
                });
            }
        };
        let entities: BTreeSet<String> = ids("entities").cloned().collect();
        Ok(Self {
            keys: desk.key_names(hashes.into_iter()).await?,
            entities: desk.aliases(table, &entities, field).await?,
            field: Some(field),
        })
    }

    /// `(id, {metrics, metadata, api_key_breakdown})`.
    fn entry(&self, part: &str, id: String, entry: &Entry) -> (String, Value) {
        let mut object = Map::new();
        object.insert("metrics".into(), json!(Metrics::of(&entry.usage)));
        let metadata = match (part, self.field) {
            ("api_keys", _) => self.key(KeyHash::from_hex(&id)),
            ("entities", Some(field)) => json!({field: self.entities.get(&id)}),
            _ => json!({}),
        };
        object.insert("metadata".into(), metadata);
        if part != "api_keys" {
            let keys = entry.keys.iter().map(|(hash, usage)| {
                let one = json!({"metrics": Metrics::of(usage), "metadata": self.key(*hash)});
                (hash.map(|h| h.hex()).unwrap_or_default(), one)
            });
            object.insert("api_key_breakdown".into(), Value::Object(keys.collect()));
        }
        (id, Value::Object(object))
    }

    fn key(&self, hash: Option<KeyHash>) -> Value {
        let name = hash.and_then(|h| self.keys.get(&h));
        json!({
            "key_alias": name.and_then(|n| n.alias.as_deref()),
            "team_id": name.and_then(|n| n.team_id.as_deref()),
        })
    }
}

impl Desk {
    /// The aliases of those objects that have one.
    async fn aliases(
        &self,
        table: Table,
        ids: &BTreeSet<String>,
        field: &str,
    ) -> Result<HashMap<String, String>> {
        let ids: Vec<String> = ids.iter().filter(|id| !id.is_empty()).cloned().collect();
        let mut aliases = HashMap::new();
        for chunk in ids.chunks(1_000) {
            let filter = DocFilter {
                ids: Some(chunk.to_vec()),
                page: Page {
                    limit: 1_000,
                    offset: 0,
                },
                ..DocFilter::default()
            };
            for doc in self.store.documents(table, &filter).await?.docs {
                if let Some(alias) = doc.fields.get(field).and_then(Value::as_str) {
                    aliases.insert(doc.id.clone(), alias.to_string());
                }
            }
        }
        Ok(aliases)
    }
}
