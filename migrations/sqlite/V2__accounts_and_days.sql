-- The same as for Postgres, but for the ledger: SQLite has no partitions.

CREATE TABLE tk_accounts (
    kind           TEXT NOT NULL,
    id             TEXT NOT NULL,
    model          TEXT NOT NULL DEFAULT '',
    spend_nanos    INTEGER NOT NULL DEFAULT 0,
    opening_nanos  INTEGER NOT NULL DEFAULT 0,
    dropped_nanos  INTEGER NOT NULL DEFAULT 0,
    baseline_nanos INTEGER NOT NULL DEFAULT 0,
    period_started INTEGER,
    period_ends    INTEGER,
    last_ended     INTEGER,
    PRIMARY KEY (kind, id, model)
) STRICT, WITHOUT ROWID;

CREATE TABLE tk_settings (
    name  TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

ALTER TABLE tk_ledger ADD COLUMN organization_id TEXT;
DROP INDEX tk_ledger_started;
DROP INDEX tk_ledger_key;
DROP INDEX tk_ledger_user;
CREATE INDEX tk_ledger_started ON tk_ledger (started, request_id);
CREATE INDEX tk_ledger_spend ON tk_ledger (spend_nanos, request_id);
CREATE INDEX tk_ledger_key ON tk_ledger (key_hash, started, request_id);
CREATE INDEX tk_ledger_user ON tk_ledger (user_id, started, request_id);
CREATE INDEX tk_ledger_team ON tk_ledger (team_id, started, request_id);
CREATE INDEX tk_ledger_end_user ON tk_ledger (end_user, started, request_id) WHERE end_user IS NOT NULL;

INSERT INTO tk_accounts (kind, id, model, spend_nanos, last_ended)
WITH r AS (
    SELECT key_hash, nullif(user_id, '') AS user_id, nullif(team_id, '') AS team_id,
        nullif(end_user, '') AS end_user, tags, model_group, sum(spend_nanos) AS spend, max(ended) AS ended
    FROM tk_ledger WHERE spend_nanos <> 0 GROUP BY 1, 2, 3, 4, 5, 6
), c AS (
    SELECT 'gateway' AS kind, '' AS id, model_group, spend, ended FROM r
    UNION ALL SELECT 'team', team_id, model_group, spend, ended FROM r
    UNION ALL SELECT 'user', user_id, model_group, spend, ended FROM r
    UNION ALL SELECT 'end_user', end_user, model_group, spend, ended FROM r
    UNION ALL SELECT 'key', lower(hex(key_hash)), model_group, spend, ended FROM r WHERE key_hash IS NOT NULL
    UNION ALL SELECT 'member', team_id || char(9) || user_id, model_group, spend, ended FROM r
    UNION ALL SELECT 'tag', t.value, model_group, spend, ended FROM r, json_each(r.tags) t
        WHERE t.value <> '' AND NOT EXISTS
            (SELECT 1 FROM json_each(r.tags) u WHERE u.key < t.key AND u.value = t.value)
), m AS (
    SELECT kind, id, '' AS model, spend, ended FROM c
    UNION ALL SELECT kind, id, model_group, spend, ended FROM c WHERE model_group <> ''
)
SELECT kind, id, model, sum(spend), max(ended) FROM m WHERE id IS NOT NULL GROUP BY 1, 2, 3;

INSERT INTO tk_accounts (kind, id, spend_nanos, opening_nanos)
SELECT 'key', lower(hex(hash)), opening_nanos, opening_nanos FROM tk_keys WHERE true
ON CONFLICT (kind, id, model) DO UPDATE SET
    spend_nanos = spend_nanos + excluded.opening_nanos, opening_nanos = excluded.opening_nanos;

ALTER TABLE tk_keys DROP COLUMN spend_nanos;
ALTER TABLE tk_keys DROP COLUMN opening_nanos;
ALTER TABLE tk_users DROP COLUMN spend_nanos;
ALTER TABLE tk_teams DROP COLUMN spend_nanos;

DROP TABLE tk_daily;
CREATE TABLE tk_daily (
    day                   INTEGER NOT NULL,
    key_hash              BLOB NOT NULL,
    model_group           TEXT NOT NULL,
    user_id               TEXT NOT NULL,
    team_id               TEXT NOT NULL,
    organization_id       TEXT NOT NULL,
    provider              TEXT NOT NULL,
    requests              INTEGER NOT NULL,
    successes             INTEGER NOT NULL,
    failures              INTEGER NOT NULL,
    prompt_tokens         INTEGER NOT NULL,
    completion_tokens     INTEGER NOT NULL,
    cached_tokens         INTEGER NOT NULL,
    cache_creation_tokens INTEGER NOT NULL,
    spend_nanos           INTEGER NOT NULL,
    PRIMARY KEY (day, key_hash, model_group, user_id, team_id, organization_id, provider)
) STRICT, WITHOUT ROWID;
CREATE INDEX tk_daily_key ON tk_daily (key_hash, day);
CREATE INDEX tk_daily_user ON tk_daily (user_id, day);
CREATE INDEX tk_daily_team ON tk_daily (team_id, day);

INSERT INTO tk_daily
SELECT day, coalesce(key_hash, x''), model_group, coalesce(user_id, ''), coalesce(team_id, ''), '', provider,
    count(*), count(*) FILTER (WHERE status = 'success'), count(*) FILTER (WHERE status IN ('failure', 'cut')),
    sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens), sum(cache_creation_tokens), sum(spend_nanos)
FROM tk_ledger GROUP BY 1, 2, 3, 4, 5, 6, 7;

CREATE TABLE tk_daily_labels (
    kind                  TEXT NOT NULL,
    day                   INTEGER NOT NULL,
    label                 TEXT NOT NULL,
    model_group           TEXT NOT NULL,
    requests              INTEGER NOT NULL,
    successes             INTEGER NOT NULL,
    failures              INTEGER NOT NULL,
    prompt_tokens         INTEGER NOT NULL,
    completion_tokens     INTEGER NOT NULL,
    cached_tokens         INTEGER NOT NULL,
    cache_creation_tokens INTEGER NOT NULL,
    spend_nanos           INTEGER NOT NULL,
    PRIMARY KEY (kind, day, label, model_group)
) STRICT, WITHOUT ROWID;
CREATE INDEX tk_daily_labels_label ON tk_daily_labels (kind, label, day);

INSERT INTO tk_daily_labels
WITH c AS (
    SELECT 'end_user' AS kind, end_user AS label, l.* FROM tk_ledger l WHERE end_user <> ''
    UNION ALL
    SELECT 'tag', t.value, l.* FROM tk_ledger l, json_each(l.tags) t
    WHERE t.value <> '' AND NOT EXISTS
        (SELECT 1 FROM json_each(l.tags) u WHERE u.key < t.key AND u.value = t.value)
)
SELECT kind, day, label, model_group, count(*), count(*) FILTER (WHERE status = 'success'),
    count(*) FILTER (WHERE status IN ('failure', 'cut')), sum(prompt_tokens), sum(completion_tokens),
    sum(cached_tokens), sum(cache_creation_tokens), sum(spend_nanos)
FROM c GROUP BY 1, 2, 3, 4;
