//! Users, teams with their members, organizations, end users, tags and budgets: rows to objects with
//! LiteLLM's field names.

use super::keys;
use super::limits;
use super::row::{Row, Shape, id_flaw};
use super::write::Wanted;
use crate::store::Table;
use crate::store::litellm::{self, Beside, PAGE, ReadError, Source};
use filters::model::account::{Account, Kind, member};
use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};

/// How a table is read.
pub struct Spec {
    /// As it is called in the report.
    pub what: &'static str,
    pub name: &'static str,
    pub table: Table,
    /// Column of the id.
    pub id: &'static str,
    /// Columns that become fields, besides limits and metadata.
    shapes: &'static [(&'static str, Shape)],
    /// The same for those that name something.
    ids: &'static [&'static str],
}

pub const BUDGETS: Spec = Spec {
    what: "budgets",
    name: "LiteLLM_BudgetTable",
    table: Table::Budget,
    id: "budget_id",
    shapes: &[
        ("allowed_models", Shape::Texts),
        ("created_by", Shape::Text),
        ("updated_by", Shape::Text),
    ],
    ids: &[],
};

pub const ORGANIZATIONS: Spec = Spec {
    what: "organizations",
    name: "LiteLLM_OrganizationTable",
    table: Table::Organization,
    id: "organization_id",
    shapes: &[
        ("organization_alias", Shape::Text),
        ("models", Shape::Texts),
        ("created_by", Shape::Text),
        ("updated_by", Shape::Text),
    ],
    ids: &[],
};

pub const USERS: Spec = Spec {
    what: "users",
    name: "LiteLLM_UserTable",
    table: Table::User,
    id: "user_id",
    shapes: &[
        ("user_alias", Shape::Text),
        ("user_email", Shape::Text),
        ("user_role", Shape::Text),
        ("sso_user_id", Shape::Text),
        ("models", Shape::Texts),
        ("teams", Shape::Texts),
        ("allowed_cache_controls", Shape::Texts),
        ("policies", Shape::Texts),
    ],
    ids: &["organization_id"],
};

pub const TEAMS: Spec = Spec {
    what: "teams",
    name: "LiteLLM_TeamTable",
    table: Table::Team,
    id: "team_id",
    shapes: &[
        ("team_alias", Shape::Text),
        ("models", Shape::Texts),
        ("blocked", Shape::Flag),
        ("team_member_permissions", Shape::Texts),
        ("default_team_member_models", Shape::Texts),
        ("access_group_ids", Shape::Texts),
        ("policies", Shape::Texts),
        ("router_settings", Shape::Json),
    ],
    ids: &["organization_id"],
};

pub const END_USERS: Spec = Spec {
    what: "end users",
    name: "LiteLLM_EndUserTable",
    table: Table::EndUser,
    id: "user_id",
    shapes: &[
        ("alias", Shape::Text),
        ("blocked", Shape::Flag),
        ("allowed_model_region", Shape::Text),
        ("default_model", Shape::Text),
    ],
    ids: &[],
};

pub const TAGS: Spec = Spec {
    what: "tags",
    name: "LiteLLM_TagTable",
    table: Table::Tag,
    id: "tag_name",
    shapes: &[
        ("description", Shape::Text),
        ("models", Shape::Texts),
        ("model_info", Shape::Json),
        ("created_by", Shape::Text),
    ],
    ids: &[],
};

/// Fields that restrict: a row in which one cannot be read is left, lest it may do more here than there.
const RESTRICTING: [&str; 12] = [
    "models",
    "allowed_routes",
    "permissions",
    "team_id",
    "user_id",
    "organization_id",
    "budget_id",
    "max_budget",
    "max_parallel_requests",
    "tpm_limit",
    "rpm_limit",
    "model_max_budget",
];

/// Whether a field was left out that held the row's owner back.
pub fn is_looser(row: &Row) -> bool {
    row.flaws
        .iter()
        .any(|f| RESTRICTING.contains(&f.field.as_str()) && f.what.ends_with("left out"))
}

/// All rows.
pub fn table(spec: &'static Spec) -> litellm::Table<'static> {
    let mut columns: Vec<&str> = vec![
        spec.id,
        "spend",
        "model_spend",
        "metadata",
        "created_at",
        "updated_at",
        "members_with_roles",
        "members",
        "admins",
    ];
    columns.extend(spec.shapes.iter().map(|(name, _)| *name));
    columns.extend(spec.ids);
    columns.extend(limits::COLUMNS.iter().filter(|c| **c != spec.id));
    litellm::Table {
        name: spec.name,
        id: spec.id,
        columns,
        beside: match spec.table {
            Table::Budget => &[],
            Table::Team => &[Beside::Budget, Beside::ModelAliases],
            _ => &[Beside::Budget],
        },
        label: std::slice::from_ref(&spec.id),
    }
}

/// Makes an object of a row; the error says why the row is left.
pub fn wanted(spec: &Spec, row: &mut Row, now: i64) -> Result<Wanted, &'static str> {
    let id = row.text(spec.id).ok_or("it has no id")?;
    if id_flaw(&id).is_some() {
        return Err("its id is longer than 512 bytes or holds control characters");
    }
    let by_model = limits::spent_by_model(row);
    let mut fields = row.read_all(spec.shapes);
    for name in spec.ids {
        if let Some(other) = row.id(name) {
            fields.insert((*name).into(), other.into());
        }
    }
    let limited = limits::read(row);
    fields.extend(limited.into_iter().filter(|(name, _)| name != spec.id));
    let metadata = row.object("metadata");
    limits::out_of(&metadata, &mut fields, row);
    if !metadata.is_empty() {
        fields.insert("metadata".into(), metadata.into());
    }
    let model_aliases = keys::aliases(row, "model_aliases");
    if !model_aliases.is_empty() {
        fields.insert("model_aliases".into(), json!(model_aliases));
    }
    if is_looser(row) {
        return Err("a field that restricts it cannot be read");
    }
    let mut openings = Vec::new();
    if let Some(kind) = spec.table.kind() {
        openings.push((Account::new(kind, id.clone()), limits::spent(row, now)));
        for (model, nanos) in by_model {
            openings.push((Account::of_model(kind, id.clone(), model), nanos));
        }
    }
    let updated = row.micros("updated_at");
    let created = row.micros("created_at").or(updated).unwrap_or(0);
    Ok(Wanted {
        table: spec.table,
        id,
        fields,
        created_at_micros: created,
        updated_at_micros: updated.unwrap_or(created),
        openings,
    })
}

/// Who belongs to what, as far as it stands in tables of its own: rows by the id of the whole.
pub type Memberships = HashMap<String, Vec<Row>>;

/// Rows of a membership table for these teams or organizations.
pub async fn memberships(
    source: &Source,
    name: &'static str,
    of: &'static str,
    ids: &[String],
) -> Result<Memberships, ReadError> {
    let mut out = Memberships::new();
    let own = [of, "user_id", "user_role", "spend", "created_at", "updated_at"];
    let table = litellm::Table {
        name,
        id: "user_id",
        columns: own.into_iter().chain(limits::COLUMNS.iter().copied()).collect(),
        beside: &[Beside::Budget],
        label: &["user_id"],
    };
    for ids in ids.chunks(PAGE) {
        for raw in source.of(&table, of, ids).await? {
            // What cannot be read is counted where the whole table is.
            if let Ok(row) = Row::new(raw)
                && let Some(id) = row.text(of)
            {
                out.entry(id).or_default().push(row);
            }
        }
    }
    Ok(out)
}

/// Puts the members into a team: those it lists, each with what its membership says of limits and spend.
/// Returns how many memberships found their member.
pub fn team_members(team: &mut Wanted, row: &mut Row, mut rows: Vec<Row>, now: i64) -> u64 {
    let mut members: Vec<Map<String, Value>> = Vec::new();
    if let Some(Value::Array(list)) = row.take("members_with_roles") {
        for entry in list {
            match entry {
                Value::Object(entry) if named(&entry).is_some() => members.push(listed_member(&entry)),
                _ => row.flaw("members_with_roles", "lists a member without a name, left out"),
            }
        }
    }
    // Before roles were written down, there were two plain lists.
    let mut there: HashSet<String> = members
        .iter()
        .filter_map(|m| m.get("user_id")?.as_str().map(str::to_string))
        .collect();
    for (column, role) in [("admins", "admin"), ("members", "user")] {
        for id in row.texts(column) {
            if id_flaw(&id).is_none() && !id.is_empty() && there.insert(id.clone()) {
                members.push(Map::from_iter([
                    ("user_id".to_string(), id.into()),
                    ("role".to_string(), role.into()),
                ]));
            }
        }
    }
    let mut places: HashMap<String, &mut Map<String, Value>> = HashMap::new();
    for member in &mut members {
        if let Some(id) = member.get("user_id").and_then(Value::as_str) {
            places.entry(id.to_string()).or_insert(member);
        }
    }
    let mut found = 0;
    for membership in &mut rows {
        let Some(user_id) = membership.id("user_id") else {
            continue;
        };
        let Some(member_fields) = places.get_mut(&user_id) else {
            continue;
        };
        let spent = limits::spent(membership, now);
        found += 1;
        member_fields.extend(limits::read(membership));
        row.flaws.append(&mut membership.flaws);
        let account = Account::new(Kind::Member, member(&team.id, &user_id));
        team.openings.push((account, spent));
    }
    if !members.is_empty() {
        let list = members.into_iter().map(Value::Object).collect();
        team.fields
            .insert("members_with_roles".into(), Value::Array(list));
    }
    found
}

fn named(member: &Map<String, Value>) -> Option<&str> {
    let text = |name: &str| member.get(name).and_then(Value::as_str).filter(|t| !t.is_empty());
    text("user_id")
        .or_else(|| text("user_email"))
        .filter(|t| id_flaw(t).is_none())
}

/// What a team's own list may say of a member.
fn listed_member(entry: &Map<String, Value>) -> Map<String, Value> {
    ["user_id", "user_email", "role"]
        .into_iter()
        .filter_map(|name| Some((name.to_string(), entry.get(name)?.clone())))
        .filter(|(_, value)| value.is_string())
        .collect()
}

/// Puts the members into an organization. Returns how many there are.
pub fn organization_members(organization: &mut Wanted, row: &mut Row, rows: Vec<Row>, now: i64) -> u64 {
    let mut members = Vec::new();
    for mut membership in rows {
        let Some(user_id) = membership.id("user_id") else {
            continue;
        };
        let account = Account::new(Kind::OrganizationMember, member(&organization.id, &user_id));
        organization
            .openings
            .push((account, limits::spent(&mut membership, now)));
        let mut fields = limits::read(&mut membership);
        fields.insert("user_id".into(), user_id.into());
        if let Some(role) = membership.text("user_role") {
            fields.insert("user_role".into(), role.into());
        }
        row.flaws.append(&mut membership.flaws);
        members.push(Value::Object(fields));
    }
    let n = members.len() as u64;
    if n > 0 {
        organization.fields.insert("members".into(), members.into());
    }
    n
}
