-- Objects with LiteLLM's fields, one table for each kind and all of one shape, and who changed what.
-- What users and teams have spent is in tk_accounts.

ALTER TABLE tk_keys ADD COLUMN organization_id TEXT;
UPDATE tk_keys SET organization_id = extra ->> '$.organization_id'
WHERE json_type(extra, '$.organization_id') = 'text' AND extra ->> '$.organization_id' <> '';
CREATE INDEX tk_keys_organization ON tk_keys (organization_id);

ALTER TABLE tk_users RENAME TO tk_users_1;
CREATE TABLE tk_users (
    id         TEXT PRIMARY KEY NOT NULL,
    -- A JSON object.
    fields     TEXT NOT NULL,
    -- Counts up with each change.
    version    INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
INSERT INTO tk_users
SELECT user_id,
    json_patch(
        json_set(extra, '$.models', json(models), '$.metadata', json(metadata)),
        json_object('user_alias', user_alias, 'user_email', user_email, 'user_role', user_role, 'max_budget',
            json(printf('%d.%09d', max_budget_nanos / 1000000000, max_budget_nanos % 1000000000)))),
    1, created_at, updated_at
FROM tk_users_1 WHERE max_budget_nanos >= 0;
INSERT INTO tk_users
SELECT user_id,
    json_patch(
        json_set(extra, '$.models', json(models), '$.metadata', json(metadata)),
        json_object('user_alias', user_alias, 'user_email', user_email, 'user_role', user_role)),
    1, created_at, updated_at
FROM tk_users_1 WHERE max_budget_nanos IS NULL OR max_budget_nanos < 0;
DROP TABLE tk_users_1;

ALTER TABLE tk_teams RENAME TO tk_teams_1;
CREATE TABLE tk_teams (
    id         TEXT PRIMARY KEY NOT NULL,
    fields     TEXT NOT NULL,
    version    INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
INSERT INTO tk_teams
SELECT team_id, '{}', 1, unixepoch() * 1000000, unixepoch() * 1000000 FROM tk_teams_1;
DROP TABLE tk_teams_1;

CREATE TABLE tk_organizations (
    id         TEXT PRIMARY KEY NOT NULL,
    fields     TEXT NOT NULL,
    version    INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

CREATE TABLE tk_end_users (
    id         TEXT PRIMARY KEY NOT NULL,
    fields     TEXT NOT NULL,
    version    INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

CREATE TABLE tk_budgets (
    id         TEXT PRIMARY KEY NOT NULL,
    fields     TEXT NOT NULL,
    version    INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

CREATE TABLE tk_tags (
    id         TEXT PRIMARY KEY NOT NULL,
    fields     TEXT NOT NULL,
    version    INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

CREATE TABLE tk_models (
    id         TEXT PRIMARY KEY NOT NULL,
    fields     TEXT NOT NULL,
    version    INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

CREATE INDEX tk_users_created ON tk_users (created_at DESC, id);
CREATE INDEX tk_users_email ON tk_users (fields ->> '$.user_email');
CREATE INDEX tk_users_organization ON tk_users (fields ->> '$.organization_id');
CREATE INDEX tk_teams_created ON tk_teams (created_at DESC, id);
CREATE INDEX tk_teams_alias ON tk_teams (fields ->> '$.team_alias');
CREATE INDEX tk_teams_organization ON tk_teams (fields ->> '$.organization_id');
CREATE INDEX tk_organizations_created ON tk_organizations (created_at DESC, id);
CREATE INDEX tk_organizations_alias ON tk_organizations (fields ->> '$.organization_alias');
CREATE INDEX tk_end_users_created ON tk_end_users (created_at DESC, id);
CREATE INDEX tk_budgets_created ON tk_budgets (created_at DESC, id);
CREATE INDEX tk_tags_created ON tk_tags (created_at DESC, id);
CREATE INDEX tk_models_created ON tk_models (created_at DESC, id);
CREATE INDEX tk_models_name ON tk_models (fields ->> '$.model_name');

CREATE TABLE tk_audit (
    id             TEXT PRIMARY KEY NOT NULL,
    at             INTEGER NOT NULL,
    changed_by     TEXT NOT NULL,
    changed_by_key BLOB,
    action         TEXT NOT NULL,
    table_name     TEXT NOT NULL,
    object_id      TEXT NOT NULL,
    -- JSON, cut where it is long.
    before         TEXT,
    after          TEXT
) STRICT;
CREATE INDEX tk_audit_at ON tk_audit (at DESC, id DESC);
CREATE INDEX tk_audit_object ON tk_audit (object_id, at DESC);
