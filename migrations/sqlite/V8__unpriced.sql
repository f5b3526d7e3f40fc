-- How many of a day's calls had no price: see the same step for Postgres.

CREATE TABLE tk_daily_unpriced (
    day             INTEGER NOT NULL,
    key_hash        BLOB NOT NULL,
    model_group     TEXT NOT NULL,
    user_id         TEXT NOT NULL,
    team_id         TEXT NOT NULL,
    organization_id TEXT NOT NULL,
    provider        TEXT NOT NULL,
    calls           INTEGER NOT NULL,
    PRIMARY KEY (day, key_hash, model_group, user_id, team_id, organization_id, provider)
) STRICT, WITHOUT ROWID;

CREATE TABLE tk_daily_labels_unpriced (
    kind        TEXT NOT NULL,
    day         INTEGER NOT NULL,
    label       TEXT NOT NULL,
    model_group TEXT NOT NULL,
    calls       INTEGER NOT NULL,
    PRIMARY KEY (kind, day, label, model_group)
) STRICT, WITHOUT ROWID;

CREATE VIEW tk_usage AS
SELECT *, 0 AS unpriced FROM tk_daily
UNION ALL
SELECT *, 0 FROM tk_daily_imported
UNION ALL
SELECT day, key_hash, model_group, user_id, team_id, organization_id, provider, 0, 0, 0, 0, 0, 0, 0, 0, calls
FROM tk_daily_unpriced;

CREATE VIEW tk_usage_labels AS
SELECT *, 0 AS unpriced FROM tk_daily_labels
UNION ALL
SELECT kind, day, label, model_group, 0, 0, 0, 0, 0, 0, 0, 0, calls FROM tk_daily_labels_unpriced;
