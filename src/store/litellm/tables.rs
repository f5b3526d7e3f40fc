//! The statements: which rows of which tables, and what is read beside them.

use super::{Cursor, Raw, Result, Source, listed, quoted};

/// Issued keys.
pub const KEYS: &str = "LiteLLM_VerificationToken";
/// Secrets that were rotated and are taken for a while longer.
pub const ROTATED: &str = "LiteLLM_DeprecatedVerificationToken";
/// Sums of days.
pub const DAYS: &str = "LiteLLM_DailyUserSpend";
const BUDGETS: &str = "LiteLLM_BudgetTable";

/// Aliases that several keys share; of more, the rest is found out when they are written.
const MAX_TWINS: usize = 100_000;
/// Longest name in a sum's key, in characters: the key must fit an index entry.
const MAX_NAME: u32 = 120;
/// The most one row of daily spend counts for: 9 million dollars, in nano-dollars.
const MOST_NANOS: i64 = 9_000_000 * 1_000_000_000;

/// What a row refers to, as one more column of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// `litellm_budget_table`: the row of the `budget_id`.
    Budget,
    /// `object_permission`: the row of the `object_permission_id`.
    Permission,
    /// `model_aliases`: of the `model_id`.
    ModelAliases,
    /// `active`: the key of the `active_token_id`.
    ActiveKey,
}

/// A table and what of it is read. Names come from the source text, never from data.
#[derive(Clone, Debug)]
pub struct Table<'a> {
    pub name: &'static str,
    /// What rows are ordered by, and what must be there.
    pub id: &'static str,
    pub columns: Vec<&'a str>,
    pub beside: &'static [Beside],
    /// What a row is called in a report: the first of these columns that says something.
    pub label: &'static [&'static str],
}

impl Source {
    /// Begins to read all rows; `None` = there is no such table here.
    pub async fn open(&self, table: &Table<'_>) -> Result<Option<Cursor>> {
        if !self.has(table.name, table.id) {
            return Ok(None);
        }
        let select = format!("{} ORDER BY t.{}", self.select(table), quoted(table.id));
        self.declare(&select, &self.label(table)).await.map(Some)
    }

    /// The rows of which `of` is one of these.
    pub async fn of(&self, table: &Table<'_>, of: &'static str, ids: &[String]) -> Result<Vec<Raw>> {
        if !self.has(table.name, table.id) || !self.has(table.name, of) || ids.is_empty() {
            return Ok(Vec::new());
        }
        let of = quoted(of);
        let select = format!(
            "{} WHERE t.{of} = ANY($1) ORDER BY t.{}",
            self.select(table),
            quoted(table.id)
        );
        self.all(&select, &self.label(table), ids).await
    }

    fn select(&self, table: &Table<'_>) -> String {
        let mut list = listed(&self.present(table.name, table.columns.iter().copied()));
        for beside in table.beside {
            let (other, id, own, wanted) = match beside {
                Beside::Budget => (
                    BUDGETS,
                    "budget_id",
                    "budget_id",
                    "to_json(b) AS litellm_budget_table",
                ),
                Beside::Permission => (
                    "LiteLLM_ObjectPermissionTable",
                    "object_permission_id",
                    "object_permission_id",
                    "to_json(b) AS object_permission",
                ),
                Beside::ModelAliases => (
                    "LiteLLM_ModelTable",
                    "id",
                    "model_id",
                    "b.aliases AS model_aliases",
                ),
                Beside::ActiveKey => (KEYS, "token", "active_token_id", "to_json(b) AS active"),
            };
            if self.has(other, id) && self.has(table.name, own) {
                // The name of the column stands outside of the subquery.
                let (value, name) = wanted.split_once(" AS ").unwrap_or((wanted, "beside"));
                list.push_str(&format!(
                    ", (SELECT {value} FROM {} b WHERE b.{} = t.{}) AS {name}",
                    quoted(other),
                    quoted(id),
                    quoted(own)
                ));
            }
        }
        format!("SELECT {list} FROM {} t", quoted(table.name))
    }

    fn label(&self, table: &Table<'_>) -> String {
        let there = self.present(table.name, table.label.iter().copied());
        let there: Vec<String> = there
            .iter()
            .map(|c| format!("nullif({}, '')", quoted(c)))
            .collect();
        if there.is_empty() {
            "''::text".into()
        } else {
            format!("coalesce({})", there.join(", "))
        }
    }

    /// Begins to read the aliases that several keys share, each with the `token` of the oldest.
    pub async fn twins(&self) -> Result<Option<Cursor>> {
        if !self.has(KEYS, "key_alias") {
            return Ok(None);
        }
        let age = if self.has(KEYS, "created_at") {
            "t.\"created_at\" NULLS LAST, t.\"token\""
        } else {
            "t.\"token\""
        };
        let select = format!(
            "SELECT t.\"key_alias\" AS alias, (array_agg(t.\"token\" ORDER BY {age}))[1] AS token \
             FROM \"{KEYS}\" t WHERE t.\"key_alias\" <> '' GROUP BY 1 HAVING count(*) > 1 LIMIT {MAX_TWINS}"
        );
        self.declare(&select, "''::text").await.map(Some)
    }

    /// Begins to read the sums of days, as ours are cut; `None` = there are none, or not as we know them.
    pub async fn days(&self) -> Result<Option<Cursor>> {
        match self.daily_sums() {
            Some(select) => self
                .declare(&select, "concat(day, ' ', model_group)")
                .await
                .map(Some),
            None => Ok(None),
        }
    }

    /// How many users have a password.
    pub async fn passwords(&self) -> Result<u64> {
        if !self.has("LiteLLM_UserTable", "password") {
            return Ok(0);
        }
        self.number("SELECT count(*) FROM \"LiteLLM_UserTable\" WHERE \"password\" <> ''")
            .await
    }

    /// How many memberships are of teams that are gone.
    pub async fn orphans(&self) -> Result<u64> {
        if !self.has("LiteLLM_TeamMembership", "team_id") || !self.has("LiteLLM_TeamTable", "team_id") {
            return Ok(0);
        }
        let sql = "SELECT count(*) FROM \"LiteLLM_TeamMembership\" m WHERE NOT EXISTS \
             (SELECT 1 FROM \"LiteLLM_TeamTable\" t WHERE t.\"team_id\" = m.\"team_id\")";
        self.number(sql).await
    }

    /// The statement for all sums; `None` = the table is not there or not the one we know.
    fn daily_sums(&self) -> Option<String> {
        if !["date", "api_key", "spend"].iter().all(|c| self.has(DAYS, c)) {
            return None;
        }
        let has = |column: &str| self.has(DAYS, column);
        let text = |column: &str| {
            if has(column) {
                format!("left(coalesce(t.\"{column}\", ''), {MAX_NAME})")
            } else {
                "''::text".into()
            }
        };
        let group = match (has("model_group"), has("model")) {
            (true, true) => {
                format!("left(coalesce(nullif(t.\"model_group\", ''), t.\"model\", ''), {MAX_NAME})")
            }
            (true, false) => text("model_group"),
            _ => text("model"),
        };
        let count = |column: &str| {
            if has(column) {
                format!("sum(greatest(coalesce(t.\"{column}\", 0), 0)::numeric)::text")
            } else {
                "'0'::text".into()
            }
        };
        // A sum knows no team; the key that made it does. What stands for no virtual key (LiteLLM writes
        // unknown keys in plain text here) counts as nobody's.
        let hash = "CASE WHEN lower(t.\"api_key\") ~ '^[0-9a-f]{64}$' THEN lower(t.\"api_key\") ELSE '' END";
        let of_key = |column: &str| {
            if self.has(KEYS, column) {
                format!("left(coalesce(k.\"{column}\", ''), {MAX_NAME})")
            } else {
                "''::text".into()
            }
        };
        let join = format!("LEFT JOIN \"{}\" k ON k.\"token\" = lower(t.\"api_key\")", KEYS);
        // In Postgres NaN is larger than any number.
        let sound = "t.\"spend\" >= 0 AND t.\"spend\" <= 9e6";
        Some(format!(
            "SELECT t.\"date\" AS day, {hash} AS key_hash, {group} AS model_group, {user} AS user_id, {team} AS team_id, \
             {organization} AS organization_id, {provider} AS provider, {requests} AS requests, {successes} AS successes, {failures} AS failures, \
             {prompt} AS prompt_tokens, {completion} AS completion_tokens, {cached} AS cached_tokens, {created} AS cache_creation_tokens, \
             sum(CASE WHEN {sound} THEN round(t.\"spend\"::numeric * 1000000000) \
                 WHEN t.\"spend\" > 9e6 AND t.\"spend\" <> 'NaN' THEN {MOST_NANOS} ELSE 0 END)::text AS spend_nanos, \
             count(*) FILTER (WHERE NOT ({sound})) AS unsound \
             FROM \"{DAYS}\" t {join} GROUP BY 1, 2, 3, 4, 5, 6, 7",
            user = text("user_id"),
            team = of_key("team_id"),
            organization = of_key("organization_id"),
            provider = text("custom_llm_provider"),
            requests = count("api_requests"),
            successes = count("successful_requests"),
            failures = count("failed_requests"),
            prompt = count("prompt_tokens"),
            completion = count("completion_tokens"),
            cached = count("cache_read_input_tokens"),
            created = count("cache_creation_input_tokens"),
        ))
    }
}
