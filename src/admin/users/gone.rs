//! How users go: with their keys, their teams and their organizations.

use super::{MOST_NAMED, USER};
use crate::admin::Desk;
use crate::admin::audit::Entry;
use crate::admin::error::{Result, wrong_value};
use crate::admin::members::{self, told};
use crate::admin::objects::{self, Task};
use crate::admin::organizations;
use crate::admin::rights::Actor;
use crate::store::{Change, DocFilter, KeyFilter, Page, Table};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use serde_json::Value;
use std::sync::Arc;

/// Teams that are changed in one transaction when a member goes.
const TEAMS_AT_ONCE: u32 = 20;
/// Rounds of that.
const ROUNDS: usize = 1_000;

/// `POST /user/delete`: how many went, with their keys and memberships. What they spent stays told.
pub(super) async fn delete(actor: Actor, State(desk): State<Arc<Desk>>, body: Body) -> Result<Json<Value>> {
    objects::run(actor, desk, body, try_delete).await.map(Json)
}

async fn try_delete(task: Arc<Task>) -> Result<Value> {
    let ids = objects::ids(&task.fields, "user_ids", MOST_NAMED)?;
    // All are looked for first: a slip of the pen deletes nobody.
    let there = task.desk.by_ids(Table::User, ids.clone()).await?;
    if let Some(id) = ids.iter().find(|id| !there.iter().any(|d| d.id == **id)) {
        return Err(USER.none(id));
    }
    let own = task.actor.holder().and_then(|k| k.user_id.as_deref());
    if own.is_some_and(|own| ids.iter().any(|id| id == own)) {
        return Err(wrong_value("user_ids", "You would delete yourself, and the key you ask with.").into());
    }
    for id in &ids {
        // Begun again for each, so that a crossing change of one team does not start all anew.
        let (desk, actor, id) = (Arc::clone(&task.desk), task.actor.clone(), id.clone());
        crate::admin::settle(move || {
            let (desk, actor, id) = (Arc::clone(&desk), actor.clone(), id.clone());
            async move { remove(&desk, &actor, &id).await }
        })
        .await?;
    }
    Ok(ids.len().into())
}

/// Memberships, keys, the user, and keys once more: one that is made meanwhile must not outlive its user.
/// Each step can be begun again; the user goes last, so that a call that broke off can be repeated.
pub(super) async fn remove(desk: &Desk, actor: &Actor, id: &str) -> Result<()> {
    leave_teams(desk, actor, id).await?;
    organizations::leave_all(desk, actor, id).await?;
    let keys = KeyFilter {
        user_id: Some(id.into()),
        ..KeyFilter::default()
    };
    desk.drop_keys(actor, &keys).await?;
    if let Some(user) = desk.store.document(Table::User, id).await? {
        let told = Entry::deleted("user", id, Value::Object(user.fields));
        let ids = [id.to_string()];
        let change = Change::Delete {
            table: Table::User,
            ids: &ids,
        };
        desk.write(actor, &[change], vec![told]).await?;
    }
    desk.drop_keys(actor, &keys).await
}

async fn leave_teams(desk: &Desk, actor: &Actor, id: &str) -> Result<()> {
    let filter = DocFilter {
        member: Some(id.into()),
        page: Page {
            limit: TEAMS_AT_ONCE,
            offset: 0,
        },
        ..DocFilter::default()
    };
    for _ in 0..ROUNDS {
        let mut teams = desk.store.documents(Table::Team, &filter).await?.docs;
        if teams.is_empty() {
            return Ok(());
        }
        let mut entries = Vec::new();
        for team in &mut teams {
            let mut gone = Vec::new();
            while let Some(at) = members::place(members::list(&team.fields), Some(id), None) {
                match members::take(team, "members_with_roles", at) {
                    Some(entry) => gone.push(entry),
                    None => break,
                }
            }
            team.updated_at_micros = desk.clock.now_micros();
            entries.push(told(&team.id, gone, Vec::new()));
        }
        let put = |doc| Change::Put {
            table: Table::Team,
            doc,
        };
        let changes: Vec<Change<'_>> = teams.iter().map(put).collect();
        desk.write(actor, &changes, entries).await?;
    }
    Err(wrong_value(
        "user_ids",
        "This user is in too many teams to be deleted at once. Ask again.",
    )
    .into())
}
