//! Taking over a LiteLLM database: a real Postgres with LiteLLM's tables in, our store out.

use crate::kit::client::ask;
use crate::kit::gateway::{BINARY, MASTER, Setup, free_port};
use crate::kit::postgres::{self, Server};
use crate::kit::upstream::Upstream;
use crate::store::{differences, open};
use filters::model::account::{Account, Kind, member};
use filters::model::key::KeyHash;
use filters::model::secret::Secret;
use serde_json::{Value, json};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tollkeeper::store::seal::Seal;
use tollkeeper::store::{DailyFilter, KeyFilter, Page, SpendFilter, Store, Table};

const V80: &str = include_str!("kit/litellm.sql");
const V109: &str = include_str!("kit/litellm-1.109.sql");
const SALT: &str = "sk-salt-1234";
/// What the sealed values below say.
const PROVIDER_KEY: &str = "sk-provider-key-é";
const BOX: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXKsZl_PUwxG6P8lw6-oH8K4y3-U4ds14782kJnd5PtlIbDA==";
const OLD_BOX: &str = "AgICAgICAgICAgICAgICAgICAgICAgICEkqOpJCSsiUHGIwA35O0opCVsZoB/nB2rH6vVifNO5++2A==";
const V2: &str = "v2:gcm:AAECAwQFBgcICQoL63wyvXJljqEwtYZ6a03wxW2ufTRwEOxKPtb7L0TrD6sK7A==";
const V3: &str = "v3:gcm:AAECAwQFBgcICQoLcCZXpjyMQ9GNRrPMzREleG9vs5aAHYNVGo4tkVzHJl2bbw==";

/// A LiteLLM database, and ours beside it.
struct Stage {
    theirs: String,
    ours: String,
    dir: tempfile::TempDir,
}

impl Stage {
    fn new(shapes: &[&str], rows: &str) -> Stage {
        let stage = Stage {
            theirs: server().database(),
            ours: server().database(),
            dir: tempfile::tempdir().unwrap(),
        };
        for sql in shapes.iter().chain([&rows]).filter(|sql| !sql.is_empty()) {
            stage.sql(sql);
        }
        stage
    }

    /// Changes LiteLLM's database.
    fn sql(&self, sql: &str) -> String {
        server().sql(name(&self.theirs), sql)
    }

    fn run(&self, ours: &str, args: &[&str]) -> Output {
        self.run_from(&[("LITELLM_DATABASE_URL", &self.theirs)], ours, args)
    }

    fn run_from(&self, from: &[(&str, &str)], ours: &str, args: &[&str]) -> Output {
        Command::new(BINARY)
            .args(["import", "litellm"])
            .args(args)
            .current_dir(self.dir.path())
            .env_clear()
            .env("HOME", self.dir.path())
            .env("TOLLKEEPER_DATA_DIR", self.dir.path().join("data"))
            .env("DATABASE_URL", ours)
            .env("LITELLM_MASTER_KEY", MASTER)
            .env("LITELLM_SALT_KEY", SALT)
            .envs(from.iter().copied())
            .output()
            .unwrap()
    }

    fn import(&self, args: &[&str]) -> Value {
        self.import_into(&self.ours, args)
    }

    fn import_into(&self, ours: &str, args: &[&str]) -> Value {
        let out = self.run(ours, &[args, &["--json"]].concat());
        let errors = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{errors}");
        serde_json::from_slice(&out.stdout).unwrap()
    }

    async fn store(&self) -> Arc<dyn Store> {
        let store = open(&self.ours).await;
        store.ready().await;
        store
    }
}

fn server() -> &'static Server {
    postgres::shared()
}

fn name(url: &str) -> &str {
    url.rsplit('/').next().unwrap()
}

/// The report's numbers of one kind: read, new, changed, unchanged, kept, left.
fn line(report: &Value, what: &str) -> [u64; 6] {
    let line = &report["taken"][what];
    ["read", "new", "changed", "unchanged", "kept", "left"].map(|n| line[n].as_u64().unwrap_or(0))
}

fn noted(report: &Value, text: &str) -> bool {
    let notes = report["notes"].as_array().unwrap();
    notes
        .iter()
        .any(|n| format!("{} {}: {}", n["what"], n["id"], n["note"]).contains(text))
}

/// All but `kept` and `left`, added up.
fn sums(report: &Value) -> [u64; 3] {
    let lines: Vec<&Value> = report["taken"].as_object().unwrap().values().collect();
    ["new", "changed", "unchanged"].map(|n| lines.iter().map(|l| l[n].as_u64().unwrap()).sum())
}

#[tokio::test]
async fn ten_thousand_keys_keep_working() {
    let stage = Stage::new(
        &[V80],
        r#"INSERT INTO "LiteLLM_VerificationToken" (token, key_name, key_alias, spend, models, max_budget, rpm_limit, metadata)
            SELECT encode(sha256(convert_to('sk-key-number-' || n, 'UTF8')), 'hex'), 'sk-...' || right(n::text, 4), 'key ' || n,
                n * 0.001, ARRAY['small'], 100, 600, '{"n": 1}'
            FROM generate_series(1, 10000) n"#,
    );
    let begun = Instant::now();
    let report = stage.import(&[]);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(line(&report, "keys"), [10_000, 10_000, 0, 0, 0, 0], "{report:#}");

    let upstream = Upstream::good().await;
    let gateway = Setup::new()
        .model("small", &upstream)
        .model("other", &upstream)
        .database(&stage.ours)
        .start()
        .await;
    let call = async |key: &str, model: &str| {
        let who = format!("Bearer {key}");
        let body = json!({"model": model, "messages": [{"role": "user", "content": "x"}]});
        let headers = [
            ("authorization", who.as_str()),
            ("content-type", "application/json"),
        ];
        let path = "/v1/chat/completions";
        ask(&gateway, "POST", path, &headers, body.to_string().as_bytes())
            .await
            .status()
    };
    for n in [1, 777, 10_000] {
        let key = format!("sk-key-number-{n}");
        assert_eq!(call(&key, "small").await, 200, "{key}");
        assert_ne!(call(&key, "other").await, 200, "{key}: not one of its models");
    }
    assert_eq!(call("sk-key-number-10001", "small").await, 401);
    gateway.rows_once(3).await;

    let again = stage.import(&[]);
    assert_eq!(line(&again, "keys"), [10_000, 0, 0, 10_000, 0, 0], "{again:#}");
    let store = stage.store().await;
    let key = store
        .key_by_hash(&KeyHash::of("sk-key-number-777"))
        .await
        .unwrap()
        .unwrap();
    assert!(
        key.spend_nanos >= 777_000_000,
        "what it spent there counts on: {}",
        key.spend_nanos
    );
    assert_eq!(
        (key.max_budget_nanos, &key.extra["rpm_limit"]),
        (Some(100_000_000_000), &json!(600))
    );
    assert_eq!(differences(&*store).await, []);
}

const HASH: [&str; 3] = [
    "1111111111111111111111111111111111111111111111111111111111111111",
    "2222222222222222222222222222222222222222222222222222222222222222",
    "3333333333333333333333333333333333333333333333333333333333333333",
];

/// Two users in a team in an organization, all with limits, some of them out of budgets.
fn company() -> String {
    let [one, two, three] = HASH;
    format!(
        r#"
        INSERT INTO "LiteLLM_BudgetTable" (budget_id, max_budget, rpm_limit, budget_duration, budget_reset_at)
            VALUES ('b1', 10, 7, '30d', '2099-01-01'), ('b2', 3, NULL, NULL, NULL);
        INSERT INTO "LiteLLM_OrganizationTable" (organization_id, organization_alias, budget_id, models, spend)
            VALUES ('o1', 'The Company', 'b1', ARRAY['small'], 4);
        INSERT INTO "LiteLLM_OrganizationMembership" (user_id, organization_id, user_role, spend, budget_id)
            VALUES ('alice', 'o1', 'org_admin', 0.125, 'b2');
        INSERT INTO "LiteLLM_UserTable" (user_id, user_email, user_role, spend, max_budget, models, password, teams)
            VALUES ('alice', 'a@example.com', 'proxy_admin', 1.5, 50, ARRAY['small'], 'c0ffee', ARRAY['t1']),
                   ('bob', 'b@example.com', 'internal_user', 0, NULL, '{{}}', NULL, ARRAY['t1']);
        INSERT INTO "LiteLLM_ModelTable" (id, aliases) VALUES (5, '{{"fast": "small"}}');
        INSERT INTO "LiteLLM_TeamTable" (team_id, team_alias, organization_id, members_with_roles, spend, model_id, tpm_limit, metadata, members)
            VALUES ('t1', 'Red', 'o1', '[{{"user_id": "alice", "role": "admin"}}, {{"user_id": "bob", "role": "user"}}]', 2.25, 5, 1000,
                '{{"tags": ["x"], "model_rpm_limit": {{"small": 3}}}}', ARRAY['carol']);
        INSERT INTO "LiteLLM_TeamMembership" (user_id, team_id, spend, budget_id)
            VALUES ('bob', 't1', 0.5, 'b2'), ('gone', 't1', 1, 'b2'), ('bob', 'no such team', 1, NULL);
        INSERT INTO "LiteLLM_EndUserTable" (user_id, alias, spend, budget_id, blocked) VALUES ('customer', 'Big', 0.25, 'b2', true);
        INSERT INTO "LiteLLM_TagTable" (tag_name, description, spend, budget_id) VALUES ('prod', 'Production', 0.75, 'b2');
        INSERT INTO "LiteLLM_VerificationToken" (token, key_name, key_alias, spend, user_id, team_id, budget_id, expires, blocked,
                budget_duration, budget_reset_at, aliases, model_spend, organization_id, metadata, created_at)
            VALUES ('{one}', 'sk-...1111', 'first', 0.1234567891, 'alice', 't1', 'b1', '2030-01-02 03:04:05', false, NULL, NULL,
                    '{{"a": "small"}}', '{{"small": 0.1}}', 'o1', '{{"tags": ["x"]}}', '2025-01-01'),
                   ('{two}', 'sk-...2222', 'first', 5, 'bob', NULL, NULL, NULL, true, '1d', '2020-01-01', '{{}}', '{{}}', NULL, '{{}}', '2025-02-01'),
                   ('{three}', 'sk-...3333', NULL, 0, NULL, 'litellm-dashboard', NULL, NULL, NULL, NULL, NULL, '{{}}', '{{}}', NULL, '{{}}', now());
        INSERT INTO "LiteLLM_DailyUserSpend" (user_id, date, api_key, model, model_group, custom_llm_provider, mcp_namespaced_tool_name,
                prompt_tokens, completion_tokens, spend, api_requests, successful_requests, failed_requests)
            VALUES ('alice', '2025-03-01', '{one}', 'gpt', 'small', 'openai', '', 100, 10, 0.1, 3, 2, 1),
                   ('alice', '2025-03-01', '{one}', 'gpt', 'small', 'openai', 'tool', 1, 1, 0.2, 1, 1, 0),
                   ('alice', '2025-03-02', 'sk-in-plain-text', 'gpt', 'small', 'openai', '', 5, 5, 0.5, 1, 1, 0),
                   ('alice', 'yesterday', '{one}', 'gpt', 'small', 'openai', '', 5, 5, 0.5, 1, 1, 0);
        INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, prompt_tokens, completion_tokens, "startTime", "endTime", model,
                model_group, "user", request_tags, status, metadata, messages)
            VALUES ('chatcmpl-1', 'acompletion', '{one}', 0.1, 100, 10, '2025-03-01 10:00', '2025-03-01 10:01', 'gpt', 'small', 'alice',
                    '["x"]', 'success', '{{"requester_metadata": {{"trace": "t"}}}}', '["never taken"]'),
                   ('call-2', 'aembedding', '{one}', 0, 0, 0, '2025-03-01 11:00', '2025-03-01 11:00', 'gpt', 'small', 'alice', '[]', 'failure',
                    '{{"error_information": {{"error_code": "429", "error_class": "RateLimitError", "traceback": "secrets"}}}}', '{{}}'),
                   ('call-3', 'call_mcp_tool', '{one}', 0, 0, 0, '2025-03-01 12:00', '2025-03-01 12:00', 'gpt', 'small', 'alice', '[]', 'success', '{{}}', '{{}}');
        INSERT INTO "LiteLLM_Config" VALUES ('general_settings', '{{}}');
        INSERT INTO "LiteLLM_AuditLog" VALUES ('1', 'created');
        "#
    )
}

#[tokio::test]
async fn a_company_moves_from_either_release() {
    for shapes in [&[V80][..], &[V80, V109]] {
        let stage = Stage::new(shapes, &company());
        let report = stage.import(&["--spend-logs"]);
        check_company(&stage, &report).await;

        let again = stage.import(&["--spend-logs"]);
        let [new, changed, unchanged] = sums(&again);
        assert_eq!((new, changed), (0, 0), "{again:#}");
        assert_eq!(unchanged, sums(&report)[0]);

        // LiteLLM goes on: one key spends, a user is renamed. Here somebody blocks the key.
        let store = stage.store().await;
        let hash = KeyHash::from_hex(HASH[0]).unwrap();
        let mut key = store.key_by_hash(&hash).await.unwrap().unwrap();
        key.blocked = true;
        key.updated_at_micros = 4_000_000_000_000_000;
        assert!(store.update_key(&key).await.unwrap());
        stage.sql(&format!(
            r#"UPDATE "LiteLLM_VerificationToken" SET spend = 1 WHERE token = '{}';
               UPDATE "LiteLLM_UserTable" SET user_alias = 'Bobby' WHERE user_id = 'bob'"#,
            HASH[0]
        ));
        let third = stage.import(&[]);
        assert_eq!(line(&third, "keys"), [3, 0, 0, 1, 1, 1], "{third:#}");
        assert_eq!(line(&third, "users"), [2, 0, 1, 1, 0, 0], "{third:#}");
        let key = store.key_by_hash(&hash).await.unwrap().unwrap();
        assert!(key.blocked, "the later change stays");
        assert_eq!(key.spend_nanos, 1_000_000_000);
        let bob = store.document(Table::User, "bob").await.unwrap().unwrap();
        assert_eq!(bob.fields["user_alias"], "Bobby");
        assert_eq!(differences(&*store).await, []);
    }
}

async fn check_company(stage: &Stage, report: &Value) {
    assert_eq!(line(report, "keys"), [3, 2, 0, 0, 0, 1], "{report:#}");
    assert_eq!(line(report, "users"), [2, 2, 0, 0, 0, 0]);
    assert_eq!(line(report, "teams"), [1, 1, 0, 0, 0, 0]);
    assert_eq!(line(report, "daily_sums"), [3, 2, 0, 0, 0, 1]);
    assert_eq!(line(report, "spend_logs"), [3, 2, 0, 0, 0, 1]);
    assert!(
        noted(report, "key_alias: is another, older key's too"),
        "{report:#}"
    );
    let text = report.to_string();
    for left in [
        "passwords of users",
        "litellm-dashboard",
        "LiteLLM_Config general_settings",
        "LiteLLM_AuditLog",
        "their team is gone",
    ] {
        assert!(text.contains(left), "{left}: {report:#}");
    }
    for secret in ["c0ffee", "sk-in-plain-text", HASH[0]] {
        assert!(!text.contains(secret), "{secret}");
    }

    let store = stage.store().await;
    let key = store
        .key_by_hash(&KeyHash::from_hex(HASH[0]).unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(key.key_alias.as_deref(), Some("first"));
    assert_eq!(
        (key.spend_nanos, key.max_budget_nanos),
        (123_456_789, Some(10_000_000_000))
    );
    assert_eq!(key.expires_micros, Some(1_893_553_445_000_000));
    assert_eq!(key.extra["rpm_limit"], 7, "out of its budget");
    assert_eq!(
        (&key.extra["organization_id"], &key.extra["tags"]),
        (&json!("o1"), &json!(["x"]))
    );
    assert_eq!(key.aliases["a"], "small");
    let second = store
        .key_by_hash(&KeyHash::from_hex(HASH[1]).unwrap())
        .await
        .unwrap()
        .unwrap();
    assert!(second.blocked && second.key_alias.is_none());
    assert_eq!(second.spend_nanos, 0, "its period is over");

    let alice = store.document(Table::User, "alice").await.unwrap().unwrap();
    assert_eq!(
        (&alice.fields["max_budget"], &alice.fields["user_role"]),
        (&json!(50), &json!("proxy_admin"))
    );
    assert!(!alice.fields.contains_key("password"));
    let team = store.document(Table::Team, "t1").await.unwrap().unwrap();
    assert_eq!(
        team.fields["members_with_roles"],
        json!([
            {"user_id": "alice", "role": "admin"},
            {"user_id": "bob", "role": "user", "max_budget": 3, "budget_id": "b2"},
            {"user_id": "carol", "role": "user"}
        ])
    );
    assert_eq!(
        (&team.fields["model_aliases"], &team.fields["tpm_limit"]),
        (&json!({"fast": "small"}), &json!(1000))
    );
    assert_eq!(team.fields["model_rpm_limit"], json!({"small": 3}));
    let organization = store.document(Table::Organization, "o1").await.unwrap().unwrap();
    assert_eq!(
        (
            &organization.fields["max_budget"],
            &organization.fields["members"][0]["user_id"],
            &organization.fields["members"][0]["max_budget"],
        ),
        (&json!(10), &json!("alice"), &json!(3))
    );
    let customer = store.document(Table::EndUser, "customer").await.unwrap().unwrap();
    assert_eq!(
        (&customer.fields["blocked"], &customer.fields["max_budget"]),
        (&json!(true), &json!(3))
    );
    assert!(store.document(Table::Tag, "prod").await.unwrap().is_some());
    let budget = store.document(Table::Budget, "b1").await.unwrap().unwrap();
    assert_eq!(budget.fields["budget_duration"], "30d");

    let accounts = [
        Account::new(Kind::User, "alice"),
        Account::new(Kind::Team, "t1"),
        Account::new(Kind::Member, member("t1", "bob")),
        Account::new(Kind::Organization, "o1"),
        Account::new(Kind::EndUser, "customer"),
        Account::new(Kind::Tag, "prod"),
        Account::of_model(Kind::Key, HASH[0], "small"),
        Account::new(Kind::OrganizationMember, member("o1", "alice")),
    ];
    let spent: Vec<i64> = store
        .balances(&accounts)
        .await
        .unwrap()
        .iter()
        .map(|b| b.total_nanos / 1_000_000)
        .collect();
    assert_eq!(spent, [1_500, 2_250, 500, 4_000, 250, 750, 100, 125]);

    let days = store.daily(&DailyFilter::default()).await.unwrap();
    let [plain, own] = &days[..] else {
        panic!("{days:?}")
    };
    assert_eq!((plain.key_hash, plain.spend_nanos), (None, 500_000_000));
    assert_eq!(
        (own.requests, own.prompt_tokens, own.spend_nanos),
        (4, 101, 300_000_000)
    );
    assert_eq!((own.team_id.as_str(), own.model_group.as_str()), ("t1", "small"));

    let rows = store.spend_logs(&SpendFilter::default()).await.unwrap();
    let [failed, good] = &rows[..] else {
        panic!("{rows:?}")
    };
    assert_eq!(
        (failed.http_status, failed.error.as_deref()),
        (429, Some("RateLimitError"))
    );
    assert_eq!(
        (good.request_id.as_str(), good.spend_nanos),
        ("chatcmpl-1", 100_000_000)
    );
    assert_eq!(
        (good.metadata.as_deref(), good.tags.clone()),
        (Some(r#"{"trace":"t"}"#), vec!["x".to_string()])
    );
    assert_eq!(store.count_records(&SpendFilter::default()).await.unwrap(), 2);
    assert_eq!(differences(&*store).await, []);
}

#[tokio::test]
async fn rotated_lent_and_revoked_keys_stay_what_they_are() {
    let rows = r#"
        INSERT INTO "LiteLLM_UserTable" (user_id, user_role) VALUES ('root', 'proxy_admin'), ('bob', 'internal_user');
        INSERT INTO "LiteLLM_VerificationToken" (token, key_name, user_id, created_by)
            SELECT encode(sha256(convert_to('sk-number-' || n, 'UTF8')), 'hex'), 'sk-...er-' || n,
                (ARRAY['bob', 'bob', 'root', 'bob'])[n], (ARRAY['bob', 'root', 'bob', 'default_user_id'])[n]
            FROM generate_series(1, 4) n;
        INSERT INTO "LiteLLM_DeprecatedVerificationToken" (id, token, active_token_id, revoke_at)
            SELECT n::text, encode(sha256(convert_to('sk-old-' || n, 'UTF8')), 'hex'),
                encode(sha256(convert_to('sk-number-' || (ARRAY['1', '2', 'none'])[n], 'UTF8')), 'hex'),
                (ARRAY['2099-01-01', '2020-01-01', '2099-01-01'])[n]::timestamp
            FROM generate_series(1, 3) n"#;
    let stage = Stage::new(&[V80, V109], rows);
    let report = stage.import(&[]);
    assert_eq!(line(&report, "keys"), [7, 5, 0, 0, 0, 2], "{report:#}");
    let store = stage.store().await;
    let key = async |secret: &str| store.key_by_hash(&KeyHash::of(secret)).await.unwrap();
    let old = key("sk-old-1").await.unwrap();
    assert_eq!(
        old.text("rotated_to"),
        Some(KeyHash::of("sk-number-1").hex().as_str())
    );
    assert_eq!(old.extra["rotated_until_micros"], 4_070_908_800_000_000_i64);
    assert_eq!(old.user_id.as_deref(), Some("bob"));
    assert!(key("sk-old-2").await.is_none() && key("sk-old-3").await.is_none());
    for (n, by) in [(1, None), (2, None), (3, Some("bob")), (4, None)] {
        let key = key(&format!("sk-number-{n}")).await.unwrap();
        assert_eq!(key.lent_by(), by, "{n}");
    }
    let again = stage.import(&[]);
    assert_eq!(line(&again, "keys"), [7, 0, 0, 5, 0, 2], "{again:#}");

    // One is deleted and one is rotated here; LiteLLM's database knows nothing of it.
    let gateway = Setup::new()
        .model("small", &Upstream::good().await)
        .database(&stage.ours)
        .start()
        .await;
    let post = async |path: &str, body: Value| {
        let who = format!("Bearer {MASTER}");
        let headers = [
            ("authorization", who.as_str()),
            ("content-type", "application/json"),
        ];
        let answer = ask(&gateway, "POST", path, &headers, body.to_string().as_bytes()).await;
        assert_eq!(answer.status(), 200, "{path}");
    };
    post("/key/delete", json!({"keys": ["sk-number-4"]})).await;
    post("/key/regenerate", json!({"key": "sk-number-2"})).await;
    let third = stage.import(&[]);
    assert_eq!(line(&third, "keys"), [7, 0, 0, 3, 0, 4], "{third:#}");
    for gone in ["sk-number-4", "sk-number-2"] {
        assert!(key(gone).await.is_none(), "{gone}");
    }
}

#[tokio::test]
async fn a_dry_run_says_the_same_and_writes_nothing() {
    let stage = Stage::new(&[V80], &company());
    let dry = stage.import(&["--dry-run", "--spend-logs"]);
    let tables = "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'tk%'";
    assert_eq!(server().sql(name(&stage.ours), tables), "0");
    let wet = stage.import(&["--spend-logs"]);
    assert_eq!(dry["taken"], wet["taken"]);
    stage.sql(r#"UPDATE "LiteLLM_UserTable" SET user_alias = 'Bobby' WHERE user_id = 'bob'"#);
    stage.sql(r#"UPDATE "LiteLLM_DailyUserSpend" SET spend = 9 WHERE date = '2025-03-02'"#);
    let store = stage.store().await;
    let before = store.document(Table::User, "bob").await.unwrap();
    for _ in 0..2 {
        let dry = stage.import(&["--dry-run"]);
        assert_eq!(line(&dry, "users"), [2, 0, 1, 1, 0, 0], "{dry:#}");
        assert_eq!(line(&dry, "daily_sums"), [3, 0, 1, 1, 0, 1], "{dry:#}");
    }
    assert_eq!(store.document(Table::User, "bob").await.unwrap(), before);
}

#[tokio::test]
async fn an_sqlite_store_takes_it_too() {
    let stage = Stage::new(&[V80, V109], &company());
    let file = stage.dir.path().join("ours.db");
    let address = format!("sqlite:{}", file.display());
    let dry = stage.import_into(&address, &["--dry-run", "--spend-logs"]);
    assert!(!file.exists());
    let first = stage.import_into(&address, &["--spend-logs"]);
    assert_eq!(dry["taken"], first["taken"]);
    let again = stage.import_into(&address, &["--spend-logs"]);
    assert_eq!(&sums(&again)[..2], [0, 0], "{again:#}");
    let stage = Stage {
        ours: address,
        ..stage
    };
    check_company(&stage, &first).await;
}

#[tokio::test]
async fn provider_keys_are_decrypted_and_sealed_anew() {
    let wrong = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVowMTIzNDU2Nzg5QUJDREVGR0hJSktM";
    let model = |id: &str, params: Value| {
        format!(
            r#"INSERT INTO "LiteLLM_ProxyModelTable" (model_id, model_name, litellm_params, model_info)
                VALUES ('{id}', 'name of {id}', '{params}', '{{"mode": "chat"}}');"#
        )
    };
    let with =
        |key: &str| json!({"model": "openai/small", "api_base": "http://h/v1", "api_key": key, "timeout": 5});
    let rows = [
        format!(
            r#"INSERT INTO "LiteLLM_CredentialsTable" VALUES ('1', 'mine', '{{"api_key": "{BOX}"}}', '{{}}');"#
        ),
        model("box", with(BOX)),
        model("old-box", with(OLD_BOX)),
        model("v2", with(V2)),
        model("v3", with(V3)),
        model("name", with("os.environ/OPENAI_API_KEY")),
        model(
            "credential",
            json!({"model": "openai/small", "api_base": "http://h/v1", "litellm_credential_name": "mine"}),
        ),
        model(
            "nobody",
            json!({"model": "openai/small", "litellm_credential_name": "not there"}),
        ),
        model("wrong", with(wrong)),
        model(
            "foreign",
            json!({"model": "no-such-provider-at-all/x", "api_key": BOX}),
        ),
    ];
    let stage = Stage::new(&[V80, V109], &rows.concat());
    let report = stage.import(&[]);
    assert_eq!(line(&report, "models"), [9, 7, 0, 0, 0, 2], "{report:#}");
    assert!(
        noted(
            &report,
            r#""name of wrong": "litellm_params.api_key: it cannot be decrypted"#
        ) || noted(&report, "litellm_params.api_key: it cannot be decrypted"),
        "{report:#}"
    );
    assert!(
        noted(&report, "names a credential that is not there"),
        "{report:#}"
    );
    assert!(noted(&report, "taken, and not used"), "{report:#}");
    for secret in [wrong, PROVIDER_KEY, BOX] {
        assert!(!report.to_string().contains(secret));
    }
    let store = stage.store().await;
    let seal = Seal::new(&Secret::new(SALT));
    for id in ["box", "old-box", "v2", "v3", "credential"] {
        let doc = store.document(Table::Model, id).await.unwrap().unwrap();
        let params = &doc.fields["litellm_params"];
        let kept = params["api_key"].as_str().unwrap();
        assert_eq!(seal.open(kept).unwrap().expose(), PROVIDER_KEY, "{id}");
        assert_eq!(
            (&params["model"], &doc.fields["model_info"]["id"]),
            (&json!("openai/small"), &json!(id))
        );
    }
    let doc = store.document(Table::Model, "name").await.unwrap().unwrap();
    assert_eq!(
        doc.fields["litellm_params"]["api_key"],
        "os.environ/OPENAI_API_KEY"
    );
    let again = stage.import(&[]);
    assert_eq!(line(&again, "models"), [9, 0, 0, 7, 0, 2], "{again:#}");
}

#[tokio::test]
async fn secrets_of_callbacks_are_sealed() {
    let logging = |secret: &str| {
        let vars =
            json!({"langfuse_public_key": "pk", "langfuse_secret_key": secret, "langfuse_host": "http://h"});
        json!({"logging": [{"callback_name": "langfuse", "callback_type": "success", "callback_vars": vars}], "mine": 1})
    };
    let sealed = |text: &str| format!("litellm_enc::{text}");
    let wrong = sealed("QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVowMTIzNDU2Nzg5QUJDREVGR0hJSktM");
    let row = |hash: &str, name: &str, secret: &str| {
        let metadata = logging(secret);
        format!(
            r#"INSERT INTO "LiteLLM_VerificationToken" (token, key_name, key_alias, metadata) VALUES ('{hash}', 'k', '{name}', '{metadata}');"#
        )
    };
    let rows = [
        row(HASH[0], "plain", PROVIDER_KEY),
        row(HASH[1], "boxed", &sealed(V2)),
        row(HASH[2], "wrong", &wrong),
        row(&"4".repeat(64), "named", "os.environ/LANGFUSE_SECRET_KEY"),
        format!(
            r#"INSERT INTO "LiteLLM_TeamTable" (team_id, metadata) VALUES ('red', '{}');"#,
            json!({"callback_settings": {"callback_vars": {"langfuse_secret_key": sealed(BOX)}}})
        ),
    ];
    let stage = Stage::new(&[V80, V109], &rows.concat());
    let report = stage.import(&[]);
    assert_eq!(line(&report, "keys"), [4, 4, 0, 0, 0, 0], "{report:#}");
    assert!(
        noted(&report, "a secret of a callback cannot be decrypted"),
        "{report:#}"
    );
    assert!(!report.to_string().contains(PROVIDER_KEY));
    let store = stage.store().await;
    let seal = Seal::new(&Secret::new(SALT));
    let secret = async |hash: &str| {
        let hash = KeyHash::from_hex(hash).unwrap();
        let key = store.key_by_hash(&hash).await.unwrap().unwrap();
        assert_eq!(key.metadata["mine"], 1);
        let vars = &key.metadata["logging"][0]["callback_vars"];
        assert_eq!(
            (&vars["langfuse_public_key"], &vars["langfuse_host"]),
            (&json!("pk"), &json!("http://h"))
        );
        vars["langfuse_secret_key"].clone()
    };
    for hash in [HASH[0], HASH[1]] {
        let kept = secret(hash).await;
        assert_eq!(seal.open(kept.as_str().unwrap()).unwrap().expose(), PROVIDER_KEY);
    }
    assert_eq!(secret(HASH[2]).await, Value::Null);
    assert_eq!(secret(&"4".repeat(64)).await, "os.environ/LANGFUSE_SECRET_KEY");
    let team = store.document(Table::Team, "red").await.unwrap().unwrap();
    let kept = &team.fields["metadata"]["callback_settings"]["callback_vars"]["langfuse_secret_key"];
    assert_eq!(seal.open(kept.as_str().unwrap()).unwrap().expose(), PROVIDER_KEY);
    let again = stage.import(&[]);
    assert_eq!(line(&again, "keys"), [4, 0, 0, 4, 0, 0], "{again:#}");
    assert_eq!(line(&again, "teams"), [1, 0, 0, 1, 0, 0], "{again:#}");

    // What an import took before secrets were sealed is sealed by the next one.
    let hash = KeyHash::from_hex(HASH[0]).unwrap();
    let mut key = store.key_by_hash(&hash).await.unwrap().unwrap();
    key.metadata["logging"][0]["callback_vars"]["langfuse_secret_key"] = PROVIDER_KEY.into();
    assert!(store.update_key(&key).await.unwrap());
    let third = stage.import(&[]);
    assert_eq!(line(&third, "keys"), [4, 0, 1, 3, 0, 0], "{third:#}");
    assert!(Seal::is_sealed(secret(HASH[0]).await.as_str().unwrap()));
}

#[tokio::test]
async fn broken_rows_do_not_stop_their_neighbours() {
    let [one, two, _] = HASH;
    let stage = Stage::new(
        &[V80],
        &format!(
            r#"
            INSERT INTO "LiteLLM_VerificationToken" (token, key_name, key_alias, spend, max_budget, metadata, tpm_limit, expires) VALUES
                ('sk-plain-text-key', 'sk-...-key', NULL, 0, 1, '{{}}', 1, NULL),
                ('{one}', 'sk-...1', 'one', 'NaN', -5, '{{}}', -1, 'infinity'),
                ('{two}', 'sk-...2', 'two', '-Infinity', 1e300, '{{"deep": 1e999}}', NULL, NULL),
                ('{good}', 'sk-...3', 'good', 1, 2, '{{}}', 3, '-infinity');
            INSERT INTO "LiteLLM_UserTable" (user_id, spend, budget_duration, max_budget) VALUES
                ('fine', 1, '30d', 5), (E'two\nlines', 1, NULL, 5), ('{long}', 1, NULL, 5), ('odd', 1, 'sometimes', 'Infinity');
            INSERT INTO "LiteLLM_TeamTable" (team_id, members_with_roles, model_max_budget) VALUES
                ('fine', '{{}}', '{{}}'), ('loose', '[]', '"none"'), ('odd', '[1, {{"role": "admin"}}, {{"user_id": "fine"}}]', '{{}}');
            "#,
            good = "4".repeat(64),
            long = "x".repeat(600),
        ),
    );
    let report = stage.import(&[]);
    assert_eq!(line(&report, "keys"), [4, 2, 0, 0, 0, 2], "{report:#}");
    assert_eq!(line(&report, "users"), [4, 2, 0, 0, 0, 2], "{report:#}");
    assert_eq!(line(&report, "teams"), [3, 2, 0, 0, 0, 1], "{report:#}");
    for note in [
        "its token is not the hash of a key",
        "spend: is not a number",
        "max_budget: is negative",
        "tpm_limit: is negative",
        "expires: is not a time",
        "JSON that cannot be read",
        "budget_duration: is not a duration",
        "max_budget: is more than 9 million dollars",
        "members_with_roles: lists a member without a name",
        "a field that restricts it cannot be read",
    ] {
        assert!(noted(&report, note), "{note}: {report:#}");
    }
    assert!(!report.to_string().contains("sk-plain-text-key"));
    let store = stage.store().await;
    let one = store
        .key_by_hash(&KeyHash::from_hex(one).unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((one.spend_nanos, one.max_budget_nanos), (0, Some(0)));
    assert_eq!(one.extra["tpm_limit"], 0);
    let good = store.key_by_hash(&KeyHash([0x44; 32])).await.unwrap().unwrap();
    assert_eq!(good.expires_micros, Some(0), "it has expired");
    assert_eq!(sums(&stage.import(&[]))[..2], [0, 0]);
}

#[tokio::test]
async fn sql_is_just_text() {
    let nasty = r#"'; DROP TABLE "LiteLLM_UserTable"; DROP TABLE tk_keys; --"#;
    let quoted = nasty.replace('\'', "''");
    let [one, ..] = HASH;
    let stage = Stage::new(
        &[V80],
        &format!(
            r#"
            INSERT INTO "LiteLLM_UserTable" (user_id, user_alias, user_email, user_role, models) VALUES
                ('{quoted}', '{quoted}', '{quoted}', '{quoted}', ARRAY['{quoted}']);
            INSERT INTO "LiteLLM_TeamTable" (team_id, team_alias, members_with_roles) VALUES
                ('{quoted}', '{quoted}', jsonb_build_array(jsonb_build_object('user_id', '{quoted}')));
            INSERT INTO "LiteLLM_TeamMembership" VALUES ('{quoted}', '{quoted}', 1, '{quoted}');
            INSERT INTO "LiteLLM_BudgetTable" (budget_id, max_budget) VALUES ('{quoted}', 1);
            INSERT INTO "LiteLLM_EndUserTable" (user_id, alias) VALUES ('{quoted}', '{quoted}');
            INSERT INTO "LiteLLM_TagTable" (tag_name, description) VALUES ('{quoted}', '{quoted}');
            INSERT INTO "LiteLLM_VerificationToken" (token, key_name, key_alias, user_id, team_id, models, aliases, metadata) VALUES
                ('{one}', '{quoted}', '{quoted}', '{quoted}', '{quoted}', ARRAY['{quoted}'], jsonb_build_object('{quoted}', '{quoted}'),
                    jsonb_build_object('{quoted}', '{quoted}'));
            INSERT INTO "LiteLLM_ProxyModelTable" (model_id, model_name, litellm_params) VALUES
                ('{quoted}', '{quoted}', jsonb_build_object('model', '{quoted}'));
            INSERT INTO "LiteLLM_DailyUserSpend" (user_id, date, api_key, model, model_group, custom_llm_provider) VALUES
                ('{quoted}', '2025-01-01', '{quoted}', '{quoted}', '{quoted}', '{quoted}');
            INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, "startTime", "endTime", model, "user") VALUES
                ('{quoted}', 'completion', '{quoted}', now(), now(), '{quoted}', '{quoted}');
            CREATE TABLE "LiteLLM_{table}" (x int);
            INSERT INTO "LiteLLM_{table}" VALUES (1);
            "#,
            table = r#"x""; DROP TABLE a; --"#,
        ),
    );
    let report = stage.import(&["--spend-logs"]);
    assert_eq!(sums(&report), [9, 0, 0], "{report:#}");
    let store = stage.store().await;
    let all = store
        .list_keys(&KeyFilter::default(), Page::default())
        .await
        .unwrap();
    let key = &all.keys[0];
    for text in [&key.key_alias, &key.user_id, &key.team_id] {
        assert_eq!(text.as_deref(), Some(nasty));
    }
    assert_eq!(
        (
            key.models[0].as_str(),
            key.aliases[nasty].as_str(),
            &key.metadata[nasty]
        ),
        (nasty, nasty, &json!(nasty))
    );
    let user = store.document(Table::User, nasty).await.unwrap().unwrap();
    assert_eq!(user.fields["user_alias"], nasty);
    let logs = store.spend_logs(&SpendFilter::default()).await.unwrap();
    assert_eq!(
        (logs[0].request_id.as_str(), logs[0].model.as_str()),
        (nasty, nasty)
    );
    assert_eq!(
        store.daily(&DailyFilter::default()).await.unwrap()[0].model_group,
        nasty
    );
    assert_eq!(stage.sql(r#"SELECT count(*) FROM "LiteLLM_UserTable""#), "1");
    assert_eq!(sums(&stage.import(&["--spend-logs"])), [0, 0, 9]);
}

#[tokio::test]
async fn what_cannot_be_read_is_said_plainly() {
    let stage = Stage::new(&[], "");
    let out = stage.run(&stage.ours, &[]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(78), "{said}");
    assert!(
        said.contains("no tables of LiteLLM's in schema \"public\""),
        "{said}"
    );
    let stage = Stage {
        theirs: format!("postgres://u:hunter2@127.0.0.1:{}/x", free_port()),
        ..stage
    };
    let out = stage.run(&stage.ours, &[]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(69), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
    let stage = Stage::new(&[V80], &company());
    let out = stage.run(&stage.ours, &["--dry-run"]);
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(said.contains("dry run: nothing was written"), "{said}");
    assert!(said.contains("Not taken"), "{said}");

    // The address may stand on the command line, and has to stand somewhere.
    let out = stage.run_from(&[], &stage.ours, &["--dry-run", "--database-url", &stage.theirs]);
    assert_eq!(String::from_utf8_lossy(&out.stdout), said);
    let out = stage.run_from(&[], &stage.ours, &["--dry-run"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{said}");
    assert!(said.contains("Set LITELLM_DATABASE_URL"), "{said}");
}
