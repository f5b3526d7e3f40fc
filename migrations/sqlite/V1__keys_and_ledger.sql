-- The same tables as for Postgres. Times are microseconds since 1970, UTC; days are days since 1970;
-- money is in nano-dollars. STRICT, so that a sum that overflows is refused instead of rounded.

CREATE TABLE tk_keys (
    hash             BLOB PRIMARY KEY CHECK (length(hash) = 32),
    key_name         TEXT NOT NULL,
    key_alias        TEXT,
    user_id          TEXT,
    team_id          TEXT,
    models           TEXT NOT NULL,
    aliases          TEXT NOT NULL,
    spend_nanos      INTEGER NOT NULL,
    opening_nanos    INTEGER NOT NULL,
    max_budget_nanos INTEGER,
    expires          INTEGER,
    blocked          INTEGER NOT NULL,
    metadata         TEXT NOT NULL,
    extra            TEXT NOT NULL,
    created_at       INTEGER NOT NULL,
    created_by       TEXT,
    updated_at       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX tk_keys_alias ON tk_keys (key_alias);
CREATE INDEX tk_keys_user ON tk_keys (user_id);
CREATE INDEX tk_keys_team ON tk_keys (team_id);
CREATE INDEX tk_keys_created ON tk_keys (created_at DESC, hash);

CREATE TABLE tk_users (
    user_id          TEXT PRIMARY KEY NOT NULL,
    user_alias       TEXT,
    user_email       TEXT,
    user_role        TEXT,
    models           TEXT NOT NULL DEFAULT '[]',
    spend_nanos      INTEGER NOT NULL DEFAULT 0,
    max_budget_nanos INTEGER,
    metadata         TEXT NOT NULL DEFAULT '{}',
    extra            TEXT NOT NULL DEFAULT '{}',
    created_at       INTEGER NOT NULL DEFAULT (unixepoch() * 1000000),
    updated_at       INTEGER NOT NULL DEFAULT (unixepoch() * 1000000)
) STRICT, WITHOUT ROWID;

CREATE TABLE tk_teams (
    team_id     TEXT PRIMARY KEY NOT NULL,
    spend_nanos INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE TABLE tk_ledger (
    request_id            TEXT PRIMARY KEY NOT NULL,
    day                   INTEGER NOT NULL,
    endpoint              TEXT NOT NULL,
    key_hash              BLOB,
    key_alias             TEXT,
    user_id               TEXT,
    team_id               TEXT,
    end_user              TEXT,
    requested_model       TEXT NOT NULL,
    model_group           TEXT NOT NULL,
    model                 TEXT NOT NULL,
    deployment_id         TEXT NOT NULL,
    provider              TEXT NOT NULL,
    stream                INTEGER NOT NULL,
    status                TEXT NOT NULL,
    http_status           INTEGER NOT NULL,
    error                 TEXT,
    prompt_tokens         INTEGER NOT NULL,
    completion_tokens     INTEGER NOT NULL,
    cached_tokens         INTEGER NOT NULL,
    cache_creation_tokens INTEGER NOT NULL,
    reasoning_tokens      INTEGER NOT NULL,
    characters            INTEGER NOT NULL,
    audio_millis          INTEGER NOT NULL,
    images                INTEGER NOT NULL,
    spend_nanos           INTEGER NOT NULL CHECK (spend_nanos BETWEEN 0 AND 1000000000000000),
    priced                INTEGER NOT NULL,
    estimated             INTEGER NOT NULL,
    clamped               INTEGER NOT NULL,
    started               INTEGER NOT NULL,
    first_byte            INTEGER,
    ended                 INTEGER NOT NULL,
    attempts              TEXT NOT NULL,
    tags                  TEXT NOT NULL,
    metadata              TEXT,
    client_ip             TEXT NOT NULL,
    user_agent            TEXT,
    bytes_in              INTEGER NOT NULL,
    bytes_out             INTEGER NOT NULL
) STRICT;
CREATE INDEX tk_ledger_started ON tk_ledger (started DESC, request_id DESC);
CREATE INDEX tk_ledger_key ON tk_ledger (key_hash, started DESC);
CREATE INDEX tk_ledger_user ON tk_ledger (user_id, started DESC);

CREATE TABLE tk_daily (
    day               INTEGER NOT NULL,
    key_hash          BLOB NOT NULL,
    model_group       TEXT NOT NULL,
    user_id           TEXT NOT NULL,
    team_id           TEXT NOT NULL,
    provider          TEXT NOT NULL,
    requests          INTEGER NOT NULL,
    successes         INTEGER NOT NULL,
    failures          INTEGER NOT NULL,
    prompt_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cached_tokens     INTEGER NOT NULL,
    spend_nanos       INTEGER NOT NULL,
    PRIMARY KEY (day, key_hash, model_group, user_id, team_id, provider)
) STRICT, WITHOUT ROWID;
CREATE INDEX tk_daily_key ON tk_daily (key_hash, day);

CREATE TABLE tk_dead_letters (
    request_id TEXT PRIMARY KEY NOT NULL,
    reason     TEXT NOT NULL,
    record     TEXT NOT NULL,
    dead_at    INTEGER NOT NULL DEFAULT (unixepoch() * 1000000)
) STRICT;
