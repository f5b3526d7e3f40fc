-- What came out of another gateway's database: see the same step for Postgres.

CREATE TABLE tk_daily_imported (
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
CREATE INDEX tk_daily_imported_key ON tk_daily_imported (key_hash, day);
CREATE INDEX tk_daily_imported_user ON tk_daily_imported (user_id, day);
CREATE INDEX tk_daily_imported_team ON tk_daily_imported (team_id, day);

CREATE TABLE tk_ledger_imported (
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
    bytes_out             INTEGER NOT NULL,
    organization_id       TEXT
) STRICT;
CREATE INDEX tk_ledger_imported_started ON tk_ledger_imported (started, request_id);
CREATE INDEX tk_ledger_imported_spend ON tk_ledger_imported (spend_nanos, request_id);
CREATE INDEX tk_ledger_imported_key ON tk_ledger_imported (key_hash, started);
CREATE INDEX tk_ledger_imported_user ON tk_ledger_imported (user_id, started);
CREATE INDEX tk_ledger_imported_team ON tk_ledger_imported (team_id, started);

CREATE VIEW tk_daily_all AS SELECT * FROM tk_daily UNION ALL SELECT * FROM tk_daily_imported;
CREATE VIEW tk_ledger_all AS SELECT * FROM tk_ledger UNION ALL SELECT * FROM tk_ledger_imported;
