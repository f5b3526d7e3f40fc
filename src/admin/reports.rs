//! What was spent, added up over days by key, model, provider, team, customer or tag: LiteLLM's
//! `/global/spend/…`. Everything is read from daily sums and balances, never from single calls.

use super::Desk;
use super::ask::Params;
use super::days::{self, DATES, Days, MOST_SUMS};
use super::error::{Result, wrong_type, wrong_value};
use super::fields::{Field, Fields, Kind};
use super::rights::Actor;
use super::routes::{Route, Who};
use super::scope::WHOSE;
use super::spend::{LIMIT, limit, reset};
use crate::store::{DocFilter, Group, MAX_ROWS, Page, Table, Usage, UsageFilter, UsageOrder, UsageRow};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing::on;
use filters::model::account::{Account, Kind as Subject};
use filters::model::key::KeyHash;
use filters::model::money::Nanos;
use jiff::Timestamp;
use jiff::civil::Date;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

pub const ROUTES: &[Route] = &[
    Route {
        group: "spend",
        who: Who::Accountant,
        summary: "What the whole gateway spent",
        answer: "GlobalSpend",
        ..Route::get(&["/global/spend"], |m| on(m, whole))
    },
    Route {
        group: "spend",
        who: Who::Reader,
        summary: "What was spent, by day",
        query: NARROWED,
        answer: "SpendByDay",
        ..Route::get(&["/global/spend/logs"], |m| on(m, by_day))
    },
    Route {
        group: "spend",
        who: Who::Reader,
        summary: "What was spent, by key, the dearest first",
        query: LIMITED,
        answer: "SpendByKey",
        ..Route::get(&["/global/spend/keys"], |m| on(m, by_key))
    },
    Route {
        group: "spend",
        who: Who::Reader,
        summary: "What was spent, by model, the dearest first",
        query: LIMITED,
        answer: "SpendByModel",
        ..Route::get(&["/global/spend/models"], |m| on(m, by_model))
    },
    Route {
        group: "spend",
        who: Who::Reader,
        summary: "What was spent, by provider, the dearest first",
        query: NARROWED,
        answer: "SpendByProvider",
        ..Route::get(&["/global/spend/provider"], |m| on(m, by_provider))
    },
    Route {
        group: "spend",
        who: Who::Accountant,
        summary: "What was spent, by team and day",
        query: &DATES,
        answer: "SpendByTeam",
        ..Route::get(&["/global/spend/teams"], |m| on(m, by_team))
    },
    Route {
        group: "spend",
        who: Who::Accountant,
        summary: "What was spent, by customer, the dearest first",
        body: &[&[
            Field::new("startTime", Kind::Time, "From this day on"),
            Field::new("endTime", Kind::Time, "Up to this day"),
        ]],
        answer: "SpendByCustomer",
        ..Route::post(&["/global/spend/end_users"], |m| on(m, by_end_user))
    },
    Route {
        group: "spend",
        who: Who::Accountant,
        summary: "What was spent, by tag, the dearest first",
        query: &[
            DATES[0],
            DATES[1],
            Field::new("tags", Kind::Text, "These tags alone, with commas"),
        ],
        answer: "SpendByTag",
        ..Route::get(&["/global/spend/tags"], |m| on(m, by_tag))
    },
    Route {
        group: "spend",
        who: Who::Accountant,
        summary: "A report by team, customer or key",
        query: &[
            DATES[0],
            DATES[1],
            Field::new(
                "group_by",
                Kind::OneOf(&["team", "customer", "api_key", "user", "organization"]),
                "What it is by",
            ),
            Field::new("api_key", Kind::Key, "By model, of this key"),
            Field::new("internal_user_id", Kind::Text, "By key and model, of this user"),
            Field::new("team_id", Kind::Text, "By key and model, of this team"),
            Field::new("customer_id", Kind::Text, "By model, of this customer"),
        ],
        answer: "SpendReport",
        ..Route::get(&["/global/spend/report"], |m| on(m, report))
    },
    Route {
        group: "spend",
        who: Who::Master,
        summary: "Refused: what was spent stays in the books",
        ..Route::post(&["/global/spend/reset"], |m| on(m, reset))
    },
];

const NARROWED: &[Field] = &[DATES[0], DATES[1], WHOSE[0], WHOSE[1], WHOSE[2], WHOSE[3]];
const LIMITED: &[Field] = &[DATES[0], DATES[1], WHOSE[0], WHOSE[1], WHOSE[2], WHOSE[3], LIMIT];

/// Entries of a list that LiteLLM gives no limit.
const MOST_LISTED: u32 = 1_000;

/// `GET /global/spend`: `spend` counts against `max_budget`, `total_spend` is of all time.
async fn whole(State(desk): State<Arc<Desk>>) -> Result<Json<Value>> {
    let balances = desk.store.balances(&[Account::new(Subject::Gateway, "")]).await?;
    let balance = balances.into_iter().next().unwrap_or_default();
    Ok(Json(json!({
        "spend": Nanos(balance.period_nanos),
        "total_spend": Nanos(balance.total_nanos),
        "max_budget": (desk.policy)().budget(),
    })))
}

/// Sums of the days and calls that the query names, by one group.
async fn sums(
    desk: &Desk,
    actor: &Actor,
    params: &Params,
    group: Group,
    limit: Option<u32>,
) -> Result<Vec<UsageRow>> {
    let days = Days::or_month(params, desk.clock.now_micros())?;
    let filter = UsageFilter {
        by: vec![group],
        order: match group {
            Group::Day => UsageOrder::Groups,
            _ => UsageOrder::Spend,
        },
        page: Page {
            limit: limit.unwrap_or(MOST_LISTED),
            offset: 0,
        },
        ..desk.scope(actor, params).await?.usage()
    };
    Ok(desk.store.usage(&days.of(filter)).await?)
}

async fn by_day(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let rows = sums(&desk, &actor, &params, Group::Day, None).await?;
    // The first day first.
    let list = rows
        .into_iter()
        .rev()
        .map(|row| json!({"date": day_text(row.day), "spend": Nanos(row.usage.spend_nanos)}));
    Ok(Json(Value::Array(list.collect())))
}

async fn by_key(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let limit = limit(&params, 100)?;
    let rows = sums(&desk, &actor, &params, Group::Key, Some(limit)).await?;
    let names = desk.key_names(rows.iter().filter_map(|r| r.key_hash)).await?;
    let list = rows.into_iter().map(|row| {
        let name = row.key_hash.and_then(|h| names.get(&h));
        json!({
            "api_key": row.key_hash.map(|h| h.hex()).unwrap_or_default(),
            "key_alias": name.and_then(|n| n.alias.as_deref()),
            "key_name": name.map(|n| n.name.as_str()),
            "total_spend": Nanos(row.usage.spend_nanos),
        })
    });
    Ok(Json(Value::Array(list.collect())))
}

async fn by_model(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let limit = limit(&params, 100)?;
    let rows = sums(&desk, &actor, &params, Group::ModelGroup, Some(limit)).await?;
    let list = rows.into_iter().map(|row| {
        json!({
            "model": row.model_group,
            "total_spend": Nanos(row.usage.spend_nanos),
            "unpriced_requests": row.usage.unpriced,
        })
    });
    Ok(Json(Value::Array(list.collect())))
}

async fn by_provider(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let rows = sums(&desk, &actor, &params, Group::Provider, None).await?;
    let list = rows
        .into_iter()
        .map(|row| json!({"provider": row.provider, "spend": Nanos(row.usage.spend_nanos)}));
    Ok(Json(Value::Array(list.collect())))
}

/// `GET /global/spend/teams`: teams under their alias where they have one of their own, else under their id.
async fn by_team(State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let days = Days::or_month(&params, desk.clock.now_micros())?;
    let filter = UsageFilter {
        by: vec![Group::Day, Group::Team],
        ..UsageFilter::default()
    };
    let rows = desk.sums(days.of(filter), MOST_SUMS).await?;
    let ids: BTreeSet<String> = rows.iter().filter_map(|r| r.team_id.clone()).collect();
    let names = desk.names(Table::Team, &ids, "team_alias", "Unassigned").await?;
    let name = |row: &UsageRow| {
        let id = row.team_id.as_deref().unwrap_or_default();
        names.get(id).cloned().unwrap_or_default()
    };
    let mut per_day: BTreeMap<Date, BTreeMap<String, Nanos>> = BTreeMap::new();
    let mut totals: BTreeMap<String, (String, Nanos)> = BTreeMap::new();
    for row in &rows {
        let spend = Nanos(row.usage.spend_nanos);
        let name = name(row);
        *per_day
            .entry(row.day.unwrap_or_default())
            .or_default()
            .entry(name.clone())
            .or_default() += spend;
        let id = row.team_id.clone().unwrap_or_default();
        totals.entry(id).or_insert((name, Nanos(0))).1 += spend;
    }
    let mut totals: Vec<_> = totals.into_iter().collect();
    totals.sort_by_key(|(_, (_, spend))| std::cmp::Reverse(*spend));
    let daily = per_day.into_iter().map(|(day, teams)| {
        let mut object = Map::new();
        for (name, spend) in teams {
            object.insert(name, json!(spend));
        }
        object.insert("date".into(), json!(day.to_string()));
        Value::Object(object)
    });
    let listed: Vec<&String> = totals.iter().map(|(_, (name, _))| name).collect();
    let per_team = totals
        .iter()
        .map(|(id, (name, spend))| json!({"team_id": id, "team_alias": name, "total_spend": spend}));
    Ok(Json(json!({
        "daily_spend": daily.collect::<Vec<_>>(),
        "teams": listed,
        "total_spend_per_team": per_team.collect::<Vec<_>>(),
    })))
}

/// `POST /global/spend/end_users`: whole days, UTC.
async fn by_end_user(State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let fields = Fields::read_or_none(body).await?;
    if fields.text("api_key")?.is_some_and(|k| !k.is_empty()) {
        let message =
            "Customers' sums are kept for all keys together. Leave 'api_key' out, or ask /spend/logs.";
        return Err(wrong_value("api_key", message).into());
    }
    let (first, last) = (day_in(&fields, "startTime")?, day_in(&fields, "endTime")?);
    let days = Days::or_month_of(first, last, desk.clock.now_micros())?;
    let filter = UsageFilter {
        by: vec![Group::EndUser],
        order: UsageOrder::Spend,
        ..UsageFilter::default()
    };
    let rows = desk.store.usage(&days.of(filter)).await?;
    let list = rows.into_iter().map(|row| {
        json!({
            "end_user": row.end_user,
            "total_count": row.usage.requests,
            "total_spend": Nanos(row.usage.spend_nanos),
        })
    });
    Ok(Json(Value::Array(list.collect())))
}

/// A day, or the day of a moment, in a body.
fn day_in(fields: &Fields, name: &str) -> Result<Option<Date>> {
    let Some(text) = fields.text(name)?.filter(|t| !t.is_empty()) else {
        return Ok(None);
    };
    let day = Date::strptime("%Y-%m-%d", text)
        .ok()
        .or_else(|| {
            text.parse::<Timestamp>()
                .ok()
                .map(|t| days::day_of(t.as_microsecond()))
        })
        .filter(|d| d.year() >= 1970);
    match day {
        Some(day) => Ok(Some(day)),
        None => Err(wrong_value(
            name,
            format!(
                "'{name}' must be a day since 1970 (YYYY-MM-DD) or a moment (YYYY-MM-DDTHH:MM:SSZ), in UTC."
            ),
        )
        .into()),
    }
}

/// `GET /global/spend/tags`: a call with three tags counts to each.
async fn by_tag(State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let days = Days::or_month(&params, desk.clock.now_micros())?;
    let filter = UsageFilter {
        by: vec![Group::Tag],
        tags: list(&params, "tags")?,
        order: UsageOrder::Spend,
        page: Page {
            limit: MOST_LISTED,
            offset: 0,
        },
        ..UsageFilter::default()
    };
    let rows = desk.store.usage(&days.of(filter)).await?;
    let list: Vec<Value> = rows
        .into_iter()
        .map(|row| {
            json!({
                "name": row.tag,
                "spend": Nanos(row.usage.spend_nanos),
                "log_count": row.usage.requests,
            })
        })
        .collect();
    Ok(Json(json!({"spend_per_tag": list})))
}

/// Names of the query, with commas between them.
pub fn list(params: &Params, name: &str) -> Result<Option<Vec<String>>> {
    let Some(text) = params.text(name)? else {
        return Ok(None);
    };
    let names: Vec<String> = text
        .split(',')
        .map(str::trim)
        .filter(|n| !n.is_empty() && *n != "all-tags")
        .map(Into::into)
        .collect();
    if names.len() > MOST_LISTED as usize {
        return Err(wrong_value(name, format!("'{name}' names more than {MOST_LISTED}.")).into());
    }
    Ok(Some(names).filter(|n| !n.is_empty()))
}

/// `GET /global/spend/report`: per day by team, customer, user or organization, each with what it spent by
/// model and key; by key without days. Naming one key, user, team or customer narrows to it.
async fn report(State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let days = Days::required(&params)?;
    let one = |name: &str| Ok::<_, super::Stopped>(params.owned(name)?.map(|id| vec![id]));
    let (user, team, customer) = (one("internal_user_id")?, one("team_id")?, one("customer_id")?);
    let key = params.key("api_key")?;
    let asked = match params.text("group_by")? {
        Some(group) => group,
        None if key.is_some() || user.is_some() => "api_key",
        None if customer.is_some() => "customer",
        None => "team",
    };
    let mut filter = UsageFilter {
        key_hashes: key.map(|h| vec![h]),
        user_ids: user,
        team_ids: team,
        end_users: customer,
        ..UsageFilter::default()
    };
    let (group, several, name) = match asked {
        "api_key" => return by_key_and_model(&desk, days.of(filter)).await,
        "team" => (Group::Team, "teams", "team_name"),
        "customer" => (Group::EndUser, "customers", "customer"),
        "user" => (Group::User, "users", "user"),
        "organization" => (Group::Organization, "organizations", "organization"),
        _ => return Err(wrong_type("group_by", "team, customer, api_key, user or organization").into()),
    };
    let of_key = filter.key_hashes.is_some() || filter.user_ids.is_some() || filter.team_ids.is_some();
    if (group == Group::EndUser && of_key) || (group != Group::EndUser && filter.end_users.is_some()) {
        let message = "Customers' sums are kept for all keys, users and teams together. Ask for either.";
        return Err(wrong_value("customer_id", message).into());
    }
    filter.by = vec![Group::Day, group, Group::ModelGroup];
    if group != Group::EndUser {
        filter.by.push(Group::Key);
    }
    let rows = desk.sums(days.of(filter), MOST_SUMS / 4).await?;
    let ids: BTreeSet<String> = rows.iter().filter_map(|r| id_of(r, group)).collect();
    let names = match group {
        Group::Team => {
            desk.names(Table::Team, &ids, "team_alias", "Unassigned Team")
                .await?
        }
        _ => HashMap::new(),
    };
    let mut report: BTreeMap<Date, BTreeMap<String, Vec<&UsageRow>>> = BTreeMap::new();
    for row in &rows {
        let day = report.entry(row.day.unwrap_or_default()).or_default();
        day.entry(id_of(row, group).unwrap_or_default())
            .or_default()
            .push(row);
    }
    let list = report.into_iter().map(|(day, entries)| {
        let entries = entries.into_iter().map(|(id, rows)| {
            let total: Nanos = rows.iter().map(|r| Nanos(r.usage.spend_nanos)).sum();
            let unpriced: i64 = rows.iter().map(|r| r.usage.unpriced).sum();
            let metadata = rows.iter().map(|r| {
                json!({
                    "model": r.model_group,
                    "spend": Nanos(r.usage.spend_nanos),
                    "total_tokens": total_tokens(&r.usage),
                    "api_key": r.key_hash.map(|h| h.hex()),
                })
            });
            let mut entry = json!({
                "total_spend": total,
                "unpriced_requests": unpriced,
                "metadata": metadata.collect::<Vec<_>>(),
            });
            if let Value::Object(entry) = &mut entry {
                entry.insert(name.into(), json!(names.get(&id).unwrap_or(&id)));
                if group == Group::Team {
                    entry.insert("team_id".into(), json!(id));
                }
            }
            entry
        });
        let mut object = Map::new();
        object.insert("group_by_day".into(), json!(format!("{day}T00:00:00+00:00")));
        object.insert(several.into(), Value::Array(entries.collect()));
        Value::Object(object)
    });
    Ok(Json(Value::Array(list.collect())))
}

async fn by_key_and_model(desk: &Desk, mut filter: UsageFilter) -> Result<Json<Value>> {
    if filter.end_users.is_some() {
        let message =
            "Customers' sums are kept for all keys together. Leave 'customer_id' or 'group_by' out.";
        return Err(wrong_value("customer_id", message).into());
    }
    filter.by = vec![Group::Key, Group::ModelGroup];
    let rows = desk.sums(filter, MOST_SUMS / 4).await?;
    let names = desk.key_names(rows.iter().filter_map(|r| r.key_hash)).await?;
    let mut keys: BTreeMap<Option<KeyHash>, (Usage, Vec<Value>)> = BTreeMap::new();
    for row in &rows {
        let (total, models) = keys.entry(row.key_hash).or_default();
        total.add(&row.usage);
        models.push(json!({
            "model": row.model_group,
            "total_cost": Nanos(row.usage.spend_nanos),
            "total_input_tokens": row.usage.prompt_tokens,
            "total_output_tokens": row.usage.completion_tokens,
        }));
    }
    let mut keys: Vec<_> = keys.into_iter().collect();
    keys.sort_by_key(|(_, (total, _))| std::cmp::Reverse(total.spend_nanos));
    let list = keys.into_iter().map(|(hash, (total, models))| {
        json!({
            "api_key": hash.map(|h| h.hex()).unwrap_or_default(),
            "key_alias": hash.and_then(|h| names.get(&h)?.alias.clone()),
            "total_cost": Nanos(total.spend_nanos),
            "total_input_tokens": total.prompt_tokens,
            "total_output_tokens": total.completion_tokens,
            "unpriced_requests": total.unpriced,
            "model_details": models,
        })
    });
    Ok(Json(Value::Array(list.collect())))
}

/// Whose a row is, in a report by this group.
pub fn id_of(row: &UsageRow, group: Group) -> Option<String> {
    match group {
        Group::Day => row.day.map(|d| d.to_string()),
        Group::Key => Some(row.key_hash.map(|h| h.hex()).unwrap_or_default()),
        Group::ModelGroup => row.model_group.clone(),
        Group::User => row.user_id.clone(),
        Group::Team => row.team_id.clone(),
        Group::Organization => row.organization_id.clone(),
        Group::Provider => row.provider.clone(),
        Group::EndUser => row.end_user.clone(),
        Group::Tag => row.tag.clone(),
    }
}

pub fn total_tokens(usage: &Usage) -> i64 {
    usage.prompt_tokens.saturating_add(usage.completion_tokens)
}

fn day_text(day: Option<Date>) -> String {
    day.map(|d| d.to_string()).unwrap_or_default()
}

/// How a key is called.
pub struct KeyName {
    pub alias: Option<String>,
    pub name: String,
    pub team_id: Option<String>,
}

impl Desk {
    /// How keys are called, as far as they are still there.
    pub async fn key_names(
        &self,
        hashes: impl Iterator<Item = KeyHash>,
    ) -> Result<HashMap<KeyHash, KeyName>> {
        let hashes: BTreeSet<KeyHash> = hashes.collect();
        let hashes: Vec<KeyHash> = hashes.into_iter().collect();
        let mut names = HashMap::with_capacity(hashes.len());
        for chunk in hashes.chunks(MAX_ROWS as usize) {
            for key in self.keys_of(chunk).await? {
                let name = KeyName {
                    alias: key.key_alias,
                    name: key.key_name,
                    team_id: key.team_id,
                };
                names.insert(key.hash, name);
            }
        }
        Ok(names)
    }

    /// The alias of each object that has one nobody else of these has, else its id; `nobody` for the empty id.
    pub async fn names(
        &self,
        table: Table,
        ids: &BTreeSet<String>,
        alias: &str,
        nobody: &str,
    ) -> Result<HashMap<String, String>> {
        let mut names: HashMap<String, String> = ids
            .iter()
            .map(|id| {
                (
                    id.clone(),
                    if id.is_empty() {
                        nobody.to_string()
                    } else {
                        id.clone()
                    },
                )
            })
            .collect();
        let mut taken: HashMap<String, String> = HashMap::new();
        let ids: Vec<String> = ids.iter().filter(|id| !id.is_empty()).cloned().collect();
        for chunk in ids.chunks(MAX_ROWS as usize) {
            let filter = DocFilter {
                ids: Some(chunk.to_vec()),
                page: Page {
                    limit: MAX_ROWS,
                    offset: 0,
                },
                ..DocFilter::default()
            };
            for doc in self.store.documents(table, &filter).await?.docs {
                let called = doc.fields.get(alias).and_then(Value::as_str).unwrap_or_default();
                // `date` stands beside the names.
                if called.is_empty() || called == "date" || called == nobody || names.contains_key(called) {
                    continue;
                }
                match taken.get(called) {
                    None => {
                        taken.insert(called.to_string(), doc.id.clone());
                        names.insert(doc.id.clone(), called.to_string());
                    }
                    Some(other) => {
                        names.insert(other.clone(), other.clone());
                    }
                }
            }
        }
        Ok(names)
    }
}
