//! Virtual keys shown: one, several, or a list. A key sees itself and its user's other keys; whoever leads
//! a team sees its keys too, and admins and their viewers see all.

use super::Desk;
use super::ask::{Params, Slice};
use super::error::{Result, Stopped, forbidden, missing, not_found, wrong_type, wrong_value};
use super::fields::{Field, Fields, Kind};
use super::rights::{Actor, own_hash, role_among};
use super::routes::{Route, Who};
use super::shapes::{self, DEFAULT_USER};
use crate::store::table::Order;
use crate::store::{DocFilter, KeyFilter, KeyPage, KeySort, MAX_ROWS, Page, Table};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing::on;
use filters::model::key::{Caller, KeyHash};
use filters::model::money::Nanos;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

pub const ROUTES: &[Route] = &[
    Route {
        group: "keys",
        who: Who::Reader,
        summary: "A key; without one, the key that asks",
        query: &[Field::new("key", Kind::Key, "The key (sk-...) or its hash")],
        answer: "KeyInfo",
        ..Route::get(&["/key/info"], |m| on(m, info))
    },
    Route {
        group: "keys",
        who: Who::Reader,
        summary: "Several keys",
        body: &[&[Field::required(
            "keys",
            Kind::Texts,
            "Keys (sk-...) or their hashes",
        )]],
        answer: "KeyInfos",
        ..Route::post(&["/v2/key/info"], |m| on(m, infos))
    },
    Route {
        group: "keys",
        who: Who::Reader,
        summary: "Keys, newest first",
        query: LIST,
        answer: "KeyList",
        ..Route::get(&["/key/list"], |m| on(m, list))
    },
    Route {
        group: "keys",
        who: Who::Reader,
        summary: "Aliases of keys, in order",
        query: &[
            Field::new("page", Kind::Count, "From 1"),
            Field::new("size", Kind::Count, "Aliases of a page, at most 500"),
            Field::new("search", Kind::Text, "Aliases with this text in them"),
        ],
        answer: "KeyAliases",
        ..Route::get(&["/key/aliases"], |m| on(m, aliases))
    },
    Route {
        group: "keys",
        who: Who::Reader,
        summary: "Whether the key that asks works",
        answer: "KeyHealth",
        ..Route::post(&["/key/health"], |m| on(m, health))
    },
];

const LIST: &[Field] = &[
    Field::new("page", Kind::Count, "From 1"),
    Field::new("size", Kind::Count, "Keys of a page, at most 100"),
    Field::new("user_id", Kind::Text, "Keys of this user"),
    Field::new("team_id", Kind::Text, "Keys of this team"),
    Field::new("organization_id", Kind::Text, "Keys of this organization"),
    Field::new("key_alias", Kind::Text, "The key of this alias"),
    Field::new("key_hash", Kind::Key, "This key"),
    Field::new("search", Kind::Text, "Keys with this text in alias or name"),
    Field::new("blocked", Kind::Flag, "Blocked ones, or the others"),
    Field::new("expired", Kind::Flag, "Expired ones, or the others"),
    Field::new("return_full_object", Kind::Flag, "Rows in place of hashes"),
    Field::new(
        "include_team_keys",
        Kind::Flag,
        "Also keys of the teams that one leads",
    ),
    Field::new(
        "include_created_by_keys",
        Kind::Flag,
        "Also keys that the user has made",
    ),
    Field::new(
        "sort_by",
        Kind::OneOf(&["created_at", "spend", "key_alias"]),
        "What they are sorted by",
    ),
    Field::new("sort_order", Kind::OneOf(&["asc", "desc"]), "Which way"),
];

/// Most keys of one `POST /v2/key/info`.
const MOST_INFOS: usize = 500;

/// `GET /key/info`: the caller's own key, or `?key=` as `sk-…` or hash.
async fn info(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let hash = match params.key("key")? {
        Some(asked) => asked,
        None => own_hash(&actor)?,
    };
    if let Caller::Master { hash: master } = &actor.caller
        && hash == *master
    {
        return Ok(Json(master_info(&desk, hash).await?));
    }
    // From the store and not from the caller: spend has moved since it was let in.
    let found = desk.store.key_by_hash(&hash).await?;
    match found {
        Some(key) if desk.sees_key(&actor, &key).await? => {
            Ok(Json(shapes::key_info(&key, desk.key_row(&key).await)))
        }
        // Who sees all may know what is not there.
        None if actor.sees_all() || actor.caller.key_hash() == Some(hash) => {
            Err(not_found("key", "Key not found in database").into())
        }
        _ => Err(forbidden(format!(
            "You are not allowed to access this key's info. Your role={}. Ask for your own, without 'key'.",
            actor.role.as_str()
        ))
        .into()),
    }
}

/// `POST /v2/key/info`: those of these keys that the caller may see.
async fn infos(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    let fields = Fields::read(body).await?;
    let asked = fields.texts("keys")?;
    if asked.is_empty() {
        return Err(missing(
            "keys",
            "Name the keys to show: 'keys' (sk-... or hashes), a list.",
        )
        .into());
    }
    if asked.len() > MOST_INFOS {
        return Err(wrong_value(
            "keys",
            format!("At most {MOST_INFOS} keys are shown in one call."),
        )
        .into());
    }
    let hashes: Vec<KeyHash> = asked.iter().filter_map(|k| super::ask::hash_of(k)).collect();
    let mut seen = Vec::new();
    for key in desk.keys_of(&hashes).await? {
        if desk.sees_key(&actor, &key).await? {
            seen.push(key);
        }
    }
    let shown = desk.keys_with_token(&seen).await?;
    Ok(Json(
        json!({"key": asked.iter().map(|k| hash_text(k)).collect::<Vec<_>>(), "info": shown}),
    ))
}

/// A key as an answer repeats it: never the key itself.
fn hash_text(text: &str) -> String {
    super::ask::hash_of(text).map_or_else(|| text.chars().take(96).collect(), |h| h.hex())
}

/// The master key is no row of the store: it may do everything and has no budget. Its spend is that of
/// the user whom LiteLLM books it to.
async fn master_info(desk: &Desk, hash: KeyHash) -> Result<Value> {
    let spend = super::users::spend(desk, DEFAULT_USER).await?;
    let mut body = json!({
        "key_name": "sk-...",
        "key_alias": null,
        "user_id": DEFAULT_USER,
        "user_role": "proxy_admin",
        "team_id": null,
        "models": [],
        "aliases": {},
        "metadata": {},
        "spend": Nanos(spend),
        "max_budget": null,
        "expires": null,
        "blocked": false,
    });
    let info = body.clone();
    if let Value::Object(body) = &mut body {
        body.insert("info".into(), info);
        body.insert("key".into(), json!(hash));
    }
    Ok(shapes::plain(body))
}

/// `POST /key/health`: whoever reads the answer has a key that works. Nothing is logged elsewhere per key.
async fn health(_: Actor) -> Json<Value> {
    Json(json!({"key": "healthy", "logging_callbacks": null}))
}

/// `GET /key/list`: hashes, or rows with `return_full_object=true`.
async fn list(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let slice = params.page(&["size", "page_size"], 10, 100)?;
    let full = params.flag("return_full_object")?.unwrap_or(false);
    let filter = KeyFilter {
        user_id: params.owned("user_id")?,
        team_id: params.owned("team_id")?,
        organization_id: params.owned("organization_id")?,
        key_alias: params.owned("key_alias")?,
        search: params.owned("search")?,
        blocked: params.flag("blocked")?,
        expired: params.flag("expired")?,
        hashes: params.key("key_hash")?.map(|h| vec![h]),
        sort: match params.text("sort_by")? {
            None | Some("created_at") => KeySort::Created,
            Some("spend") => KeySort::Spend,
            Some("key_alias") => KeySort::Alias,
            Some(_) => return Err(wrong_type("sort_by", "created_at, spend or key_alias").into()),
        },
        order: match params.text("sort_order")? {
            None | Some("desc") => Order::Falling,
            Some("asc") => Order::Rising,
            Some(_) => return Err(wrong_type("sort_order", "asc or desc").into()),
        },
        ..KeyFilter::default()
    };
    let wide = Wide {
        teams: params.flag("include_team_keys")?.unwrap_or(false),
        made: params.flag("include_created_by_keys")?.unwrap_or(false),
    };
    let found = desk.visible(&actor, filter, wide, slice).await?;
    let keys = match full {
        true => desk.keys_with_token(&found.keys).await?,
        false => found.keys.iter().map(|k| json!(k.hash)).collect(),
    };
    Ok(Json(json!({
        "keys": keys,
        "total_count": found.total,
        "current_page": slice.page,
        "total_pages": found.total.div_ceil(slice.size),
    })))
}

/// `GET /key/aliases`: for whoever chooses one from a list.
async fn aliases(actor: Actor, State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let slice = params.page(&["size", "page_size"], 100, 500)?;
    let filter = KeyFilter {
        search: params.owned("search")?,
        sort: KeySort::Alias,
        order: Order::Rising,
        ..KeyFilter::default()
    };
    let wide = Wide {
        teams: true,
        made: false,
    };
    let found = desk.visible(&actor, filter, wide, slice).await?;
    let aliases: Vec<&String> = found.keys.iter().filter_map(|k| k.key_alias.as_ref()).collect();
    Ok(Json(json!({
        // Keys without an alias stand last, so a page that is not full is the last one.
        "has_more": aliases.len() as u64 == slice.size && found.total > slice.page * slice.size,
        "aliases": aliases,
        "current_page": slice.page,
        "size": slice.size,
    })))
}

/// What a list shows besides a user's own keys.
#[derive(Clone, Copy)]
struct Wide {
    teams: bool,
    made: bool,
}

impl Desk {
    /// A page of those keys that the filter names and the caller may see.
    async fn visible(
        &self,
        actor: &Actor,
        mut filter: KeyFilter,
        wide: Wide,
        slice: Slice,
    ) -> Result<KeyPage> {
        let page = Page {
            limit: slice.size as u32,
            offset: slice.offset,
        };
        let everybody = actor.sees_all() && filter.user_id.is_none();
        if everybody || (actor.sees_all() && !wide.teams && !wide.made) {
            return Ok(self.store.list_keys(&filter, page).await?);
        }
        let Some(user) = filter.user_id.clone().or(actor.user_id().map(Into::into)) else {
            return self.itself(actor, filter, page).await;
        };
        if !actor.sees_all() && !actor.is_user(Some(&user)) {
            // Somebody else's keys are shown within a team that one leads.
            return match &filter.team_id {
                Some(team)
                    if self.leads_team(actor, team).await? || self.shares_keys(actor, team).await? =>
                {
                    Ok(self.store.list_keys(&filter, page).await?)
                }
                _ => Err(not_yours("user_id", actor)),
            };
        }
        if filter.user_id.is_none()
            && let Some(team) = &filter.team_id
        {
            if self.leads_team(actor, team).await? || self.shares_keys(actor, team).await? {
                return Ok(self.store.list_keys(&filter, page).await?);
            }
            if !self.is_member(actor, team).await? {
                return Err(not_yours("team_id", actor));
            }
        }
        filter.user_id = None;
        let own = KeyFilter {
            user_id: Some(user.clone()),
            ..filter.clone()
        };
        if !wide.teams && !wide.made {
            return Ok(self.store.list_keys(&own, page).await?);
        }
        // A filter joins by "and"; what belongs to one in several ways is gathered first.
        let mut parts = vec![own];
        if wide.teams {
            parts.push(KeyFilter {
                team_ids: Some(self.teams_led_by(&user).await?),
                ..filter.clone()
            });
        }
        if wide.made {
            parts.push(KeyFilter {
                created_by: Some(user),
                ..filter.clone()
            });
        }
        let mut hashes = BTreeSet::new();
        for part in parts {
            let all = Page {
                limit: MAX_ROWS,
                offset: 0,
            };
            hashes.extend(
                self.store
                    .list_keys(&part, all)
                    .await?
                    .keys
                    .iter()
                    .map(|k| k.hash),
            );
        }
        filter.hashes = Some(hashes.into_iter().collect());
        Ok(self.store.list_keys(&filter, page).await?)
    }

    /// A key without a user sees itself, where the filter fits it.
    async fn itself(&self, actor: &Actor, mut filter: KeyFilter, page: Page) -> Result<KeyPage> {
        let own = own_hash(actor)?;
        if filter.hashes.as_ref().is_some_and(|h| !h.contains(&own)) || filter.team_id.is_some() {
            return Err(forbidden(
                "You are not authorized to access this endpoint. No 'user_id' is associated with your API key.",
            )
            .into());
        }
        filter.hashes = Some(vec![own]);
        Ok(self.store.list_keys(&filter, page).await?)
    }

    /// The teams that a user is an admin of.
    async fn teams_led_by(&self, user: &str) -> Result<Vec<String>> {
        let filter = DocFilter {
            member: Some(user.into()),
            page: Page {
                limit: MAX_ROWS,
                offset: 0,
            },
            ..DocFilter::default()
        };
        let teams = self.store.documents(Table::Team, &filter).await?.docs;
        Ok(teams
            .into_iter()
            .filter(|t| role_among(&t.fields, user) == Some("admin"))
            .map(|t| t.id)
            .collect())
    }
}

fn not_yours(field: &str, actor: &Actor) -> Stopped {
    forbidden(format!(
        "You are not allowed to list these keys. Your role={}. Leave '{field}' out to see your own.",
        actor.role.as_str()
    ))
    .param(field)
    .into()
}
