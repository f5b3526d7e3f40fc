//! Calls, tokens and spend by day, and what each day is made of: LiteLLM's `/…/daily/activity` and
//! `/global/activity`. Everything is read from daily sums; days are days in UTC. How a day is taken apart
//! stands in [`daily`](super::daily).

use super::Desk;
use super::ask::Params;
use super::daily::answer;
use super::days::{DATES, Days, MOST_SUMS, TIMEZONE};
use super::error::Result;
use super::fields::{Field, Kind};
use super::reports::{list, total_tokens};
use super::rights::{Actor, role_among};
use super::routes::{Route, Who};
use super::scope::{Scope, WHOSE, others};
use crate::store::{DocFilter, Group, Page, Table, Usage, UsageFilter, UsageRow};
use axum::Json;
use axum::extract::State;
use axum::routing::on;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const ROUTES: &[Route] = &[
    Route {
        group: "spend",
        who: Who::Reader,
        summary: "What users called by day, and what each day is made of",
        query: &[
            DATES[0], DATES[1], WHOSE[0], WHOSE[1], WHOSE[2], WHOSE[3], MODEL, PAGE, SIZE, BREAKDOWN,
            TIMEZONE,
        ],
        answer: "DailyActivity",
        ..Route::get(&["/user/daily/activity"], |m| on(m, of_users))
    },
    Route {
        group: "spend",
        who: Who::Reader,
        summary: "What teams called by day, and what each day is made of",
        query: &[
            DATES[0],
            DATES[1],
            Field::new("team_ids", Kind::Text, "These teams, with commas"),
            WHOSE[0],
            MODEL,
            PAGE,
            SIZE,
            BREAKDOWN,
            TIMEZONE,
        ],
        answer: "DailyActivity",
        ..Route::get(&["/team/daily/activity"], |m| on(m, of_teams))
    },
    Route {
        group: "spend",
        who: Who::Reader,
        summary: "What organizations called by day, and what each day is made of",
        query: &[
            DATES[0],
            DATES[1],
            Field::new("organization_ids", Kind::Text, "These organizations, with commas"),
            WHOSE[0],
            MODEL,
            PAGE,
            SIZE,
            BREAKDOWN,
            TIMEZONE,
        ],
        answer: "DailyActivity",
        ..Route::get(&["/organization/daily/activity"], |m| on(m, of_organizations))
    },
    Route {
        group: "spend",
        who: Who::Accountant,
        summary: "What was called with each tag by day; a call with three tags counts to each",
        query: &[
            DATES[0],
            DATES[1],
            Field::new("tags", Kind::Text, "These tags, with commas"),
            MODEL,
            PAGE,
            SIZE,
            BREAKDOWN,
            TIMEZONE,
        ],
        answer: "DailyActivity",
        ..Route::get(&["/tag/daily/activity"], |m| on(m, of_tags))
    },
    Route {
        group: "spend",
        who: Who::Accountant,
        summary: "What was called for each customer by day",
        query: &[
            DATES[0],
            DATES[1],
            Field::new("end_user_ids", Kind::Text, "These customers, with commas"),
            MODEL,
            PAGE,
            SIZE,
            BREAKDOWN,
            TIMEZONE,
        ],
        answer: "DailyActivity",
        ..Route::get(&["/customer/daily/activity", "/end_user/daily/activity"], |m| {
            on(m, of_customers)
        })
    },
    Route {
        group: "spend",
        who: Who::Reader,
        summary: "Calls and tokens by day",
        query: &[DATES[0], DATES[1], WHOSE[0], WHOSE[1], WHOSE[2], WHOSE[3]],
        answer: "GlobalActivity",
        ..Route::get(&["/global/activity"], |m| on(m, global))
    },
    Route {
        group: "spend",
        who: Who::Reader,
        summary: "Calls and tokens by model and day",
        query: &[DATES[0], DATES[1], WHOSE[0], WHOSE[1], WHOSE[2], WHOSE[3]],
        answer: "GlobalActivityByModel",
        ..Route::get(&["/global/activity/model"], |m| on(m, global_by_model))
    },
];

const MODEL: Field = Field::new("model", Kind::Text, "Calls of this configured model");
const PAGE: Field = Field::new("page", Kind::Count, "From 1");
const SIZE: Field = Field::new("page_size", Kind::Count, "Days of a page, at most 1000");
const BREAKDOWN: Field = Field::new(
    "breakdown",
    Kind::Text,
    "These parts alone, with commas: models, model_groups, providers, api_keys, entities; then models and the \
     like are not broken down by key",
);

async fn of_users(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let scope = desk.scope(&actor, &params).await?;
    answer(&desk, &params, scope.usage(), Group::User).await
}

/// Without `team_ids`, whoever does not see all gets the teams that it leads, or what is its own.
async fn of_teams(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let mut asked = list(&params, "team_ids")?;
    if asked.is_none() {
        asked = params.owned("team_id")?.map(|id| vec![id]);
    }
    let key_hashes = params.key("api_key")?.map(|h| vec![h]);
    let mut filter = UsageFilter {
        key_hashes,
        team_ids: asked,
        ..UsageFilter::default()
    };
    if !actor.sees_spend() {
        match &filter.team_ids {
            Some(ids) => {
                for id in ids {
                    if !desk.sees_team_spend(&actor, id).await? {
                        return Err(others());
                    }
                }
            }
            None => match desk.led_teams(&actor).await? {
                led if !led.is_empty() => filter.team_ids = Some(led),
                _ => filter = desk.scope(&actor, &params).await?.usage(),
            },
        }
    }
    answer(&desk, &params, filter, Group::Team).await
}

async fn of_organizations(
    actor: Actor,
    State(desk): State<Arc<Desk>>,
    params: Params,
) -> Result<Json<Value>> {
    let mut asked = list(&params, "organization_ids")?;
    if asked.is_none() {
        asked = params.owned("organization_id")?.map(|id| vec![id]);
    }
    let key_hashes = params.key("api_key")?.map(|h| vec![h]);
    let mut filter = UsageFilter {
        key_hashes,
        organization_ids: asked,
        ..UsageFilter::default()
    };
    if !actor.sees_spend() {
        match &filter.organization_ids {
            Some(ids) => {
                for id in ids {
                    if !desk.leads_organization(&actor, id).await? {
                        return Err(others());
                    }
                }
            }
            None => filter = desk.scope(&actor, &params).await?.usage(),
        }
    }
    answer(&desk, &params, filter, Group::Organization).await
}

async fn of_tags(State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let filter = UsageFilter {
        tags: list(&params, "tags")?,
        ..UsageFilter::default()
    };
    answer(&desk, &params, filter, Group::Tag).await
}

async fn of_customers(State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let filter = UsageFilter {
        end_users: list(&params, "end_user_ids")?,
        ..UsageFilter::default()
    };
    answer(&desk, &params, filter, Group::EndUser).await
}

impl Desk {
    /// The teams that somebody is an admin of.
    async fn led_teams(&self, actor: &Actor) -> Result<Vec<String>> {
        let Some(user) = actor.user_id().filter(|_| !actor.only_looks()) else {
            return Ok(Vec::new());
        };
        let filter = DocFilter {
            member: Some(user.to_string()),
            page: Page {
                limit: 1_000,
                offset: 0,
            },
            ..DocFilter::default()
        };
        let found = self.store.documents(Table::Team, &filter).await?;
        let led = found
            .docs
            .into_iter()
            .filter(|t| role_among(&t.fields, user) == Some("admin"));
        Ok(led.map(|t| t.id).collect())
    }
}

/// Whose calls of which days.
async fn asked(desk: &Desk, actor: &Actor, params: &Params, by: Vec<Group>) -> Result<Vec<UsageRow>> {
    let scope: Scope = desk.scope(actor, params).await?;
    let days = Days::required(params)?;
    desk.sums(days.of(UsageFilter { by, ..scope.usage() }), MOST_SUMS / 4)
        .await
}

/// `GET /global/activity`, the first day first. Money is elsewhere.
async fn global(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let rows = asked(&desk, &actor, &params, vec![Group::Day]).await?;
    Ok(Json(Value::Object(by_days(rows.iter()))))
}

/// `GET /global/activity/model`: the same of each model, the one with most calls first.
async fn global_by_model(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let rows = asked(&desk, &actor, &params, vec![Group::Day, Group::ModelGroup]).await?;
    let mut models: BTreeMap<&str, Vec<&UsageRow>> = BTreeMap::new();
    for row in &rows {
        let model = row.model_group.as_deref().unwrap_or_default();
        models.entry(model).or_default().push(row);
    }
    let mut models: Vec<_> = models.into_iter().collect();
    let calls = |rows: &[&UsageRow]| rows.iter().map(|r| r.usage.requests).sum::<i64>();
    models.sort_by_key(|(_, rows)| std::cmp::Reverse(calls(rows)));
    let list = models.into_iter().map(|(model, rows)| {
        let mut object = by_days(rows.into_iter());
        object.insert("model".into(), json!(model));
        Value::Object(object)
    });
    Ok(Json(Value::Array(list.collect())))
}

/// From rows, newest first, to LiteLLM's object. Its days are `Nov 20`; `day` tells the year too.
fn by_days<'a>(rows: impl DoubleEndedIterator<Item = &'a UsageRow>) -> Map<String, Value> {
    let mut total = Usage::default();
    let mut days: Vec<Value> = Vec::new();
    for row in rows.rev() {
        total.add(&row.usage);
        let day = row.day.unwrap_or_default();
        days.push(json!({
            "date": day.strftime("%b %d").to_string(),
            "day": day.to_string(),
            "api_requests": row.usage.requests,
            "total_tokens": total_tokens(&row.usage),
        }));
    }
    let mut object = Map::new();
    object.insert("daily_data".into(), Value::Array(days));
    object.insert("sum_api_requests".into(), json!(total.requests));
    object.insert("sum_total_tokens".into(), json!(total_tokens(&total)));
    object
}
