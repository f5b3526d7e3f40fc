//! Who a key belongs to, and what that user spent.

use super::Desk;
use super::ask::{Asking, Params, Slice};
use super::error::{Result, forbidden, not_found};
use super::fields::{Field, Kind};
use super::routes::{Route, Who};
use super::shapes::{self, DEFAULT_USER};
use crate::store::{KeyFilter, Page, Table};
use axum::Json;
use axum::extract::State;
use axum::routing::on;
use filters::model::account::{Account, Kind as Subject};
use filters::model::key::{Caller, Key};
use filters::model::money::Nanos;
use serde_json::{Value, json};
use std::sync::Arc;

/// Keys of one answer, unless `size` says otherwise.
const KEYS: u64 = 100;
const MOST_KEYS: u64 = 500;

pub const ROUTES: &[Route] = &[Route {
    group: "users",
    who: Who::Reader,
    summary: "A user with its keys; without one, the user who asks",
    query: &[
        Field::new("user_id", Kind::Text, "Whom"),
        Field::new("page", Kind::Count, "Page of its keys, from 1"),
        Field::new("size", Kind::Count, "Keys of a page"),
    ],
    answer: "UserInfo",
    ..Route::get(&["/user/info"], |m| on(m, info))
}];

/// `GET /user/info`: the caller's own user, or `?user_id=`. The master key without a `user_id` gets
/// everybody's keys, page by page, and no `user_info`.
pub async fn info(
    Asking(caller): Asking,
    State(desk): State<Arc<Desk>>,
    params: Params,
) -> Result<Json<Value>> {
    let asked = params.text("user_id")?;
    let slice = params.page(&["size", "page_size"], KEYS, MOST_KEYS)?;
    let body = match (&caller, asked) {
        (Caller::Master { .. }, None) => everybody(&desk, slice).await?,
        (Caller::Master { .. }, Some(id)) => user(&desk, id, slice).await?,
        (Caller::Key(key), asked) => match (key.user_id.as_deref(), asked) {
            (Some(own), None) => user(&desk, own, slice).await?,
            (Some(own), Some(id)) if own == id => user(&desk, own, slice).await?,
            (None, None) => nobody(key, desk.clock.now_micros()),
            _ => return Err(others()),
        },
        (Caller::Anonymous, _) => return Err(others()),
    };
    Ok(Json(shapes::plain(body)))
}

fn others() -> super::Stopped {
    forbidden(
        "You are not allowed to access this user's info. Ask for your own, without 'user_id', or use the master key.",
    )
    .into()
}

/// A user is known by its row, or by its keys: a key may name a user that nobody has added.
async fn user(desk: &Desk, id: &str, slice: Slice) -> Result<Value> {
    let found = desk.store.document(Table::User, id).await?;
    let (keys, total) = keys(desk, Some(id), slice).await?;
    if found.is_none() && total == 0 {
        let id: String = id.chars().take(200).collect();
        return Err(not_found("user_id", format!("User {id} not found")).into());
    }
    let row = shapes::user_row(id, found.as_ref(), spend(desk, id).await?);
    let (max_budget, models) = (row["max_budget"].clone(), row["models"].clone());
    Ok(json!({
        "user_id": id,
        "spend": row["spend"],
        "user_info": row,
        "keys": keys,
        "teams": [],
        "total_count": total,
        "max_budget": max_budget,
        "models": models,
    }))
}

/// Nano-dollars a user has spent in all.
pub(super) async fn spend(desk: &Desk, id: &str) -> Result<i64> {
    let balances = desk.store.balances(&[Account::new(Subject::User, id)]).await?;
    Ok(balances.first().map_or(0, |b| b.total_nanos))
}

async fn everybody(desk: &Desk, slice: Slice) -> Result<Value> {
    let (keys, total) = keys(desk, None, slice).await?;
    Ok(json!({
        "user_id": DEFAULT_USER,
        "user_info": null,
        "keys": keys,
        "teams": [],
        "total_count": total,
        "spend": Nanos(spend(desk, DEFAULT_USER).await?),
        "max_budget": null,
        "models": (desk.catalog)().names(),
    }))
}

/// A key without a user stands for itself.
fn nobody(key: &Key, now: i64) -> Value {
    json!({
        "user_id": null,
        "user_info": null,
        "keys": [shapes::key_with_token(key, now)],
        "teams": [],
        "total_count": 1,
        "spend": Nanos(key.spend_nanos),
        "max_budget": key.max_budget_nanos.map(Nanos),
        "models": key.models,
    })
}

async fn keys(desk: &Desk, user_id: Option<&str>, slice: Slice) -> Result<(Vec<Value>, u64)> {
    let filter = KeyFilter {
        user_id: user_id.map(str::to_string),
        ..KeyFilter::default()
    };
    let page = Page {
        limit: slice.size as u32,
        offset: slice.offset,
    };
    let found = desk.store.list_keys(&filter, page).await?;
    let now = desk.clock.now_micros();
    Ok((
        found
            .keys
            .iter()
            .map(|k| shapes::key_with_token(k, now))
            .collect(),
        found.total,
    ))
}
