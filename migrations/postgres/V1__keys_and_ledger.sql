-- Money is in nano-dollars. The names start with tk_ so that they stand beside LiteLLM's tables.

CREATE TABLE tk_keys (
    hash             bytea PRIMARY KEY CHECK (octet_length(hash) = 32),
    key_name         text NOT NULL,
    key_alias        text,
    user_id          text,
    team_id          text,
    models           jsonb NOT NULL,
    aliases          jsonb NOT NULL,
    spend_nanos      bigint NOT NULL,
    -- What the key had spent when it came, beyond the rows of this ledger:
    -- spend_nanos = opening_nanos + the sum of its rows, always.
    opening_nanos    bigint NOT NULL,
    max_budget_nanos bigint,
    expires          timestamptz,
    blocked          boolean NOT NULL,
    metadata         jsonb NOT NULL,
    extra            jsonb NOT NULL,
    created_at       timestamptz NOT NULL,
    created_by       text,
    updated_at       timestamptz NOT NULL
);
CREATE UNIQUE INDEX tk_keys_alias ON tk_keys (key_alias);
CREATE INDEX tk_keys_user ON tk_keys (user_id);
CREATE INDEX tk_keys_team ON tk_keys (team_id);
CREATE INDEX tk_keys_created ON tk_keys (created_at DESC, hash);

CREATE TABLE tk_users (
    user_id          text PRIMARY KEY,
    user_alias       text,
    user_email       text,
    user_role        text,
    models           jsonb NOT NULL DEFAULT '[]',
    spend_nanos      bigint NOT NULL DEFAULT 0,
    max_budget_nanos bigint,
    metadata         jsonb NOT NULL DEFAULT '{}',
    extra            jsonb NOT NULL DEFAULT '{}',
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE tk_teams (
    team_id     text PRIMARY KEY,
    spend_nanos bigint NOT NULL DEFAULT 0
);

-- One row per client call. `day` (UTC, of `started`) is kept so that the table can be cut by day later.
CREATE TABLE tk_ledger (
    request_id            text PRIMARY KEY,
    day                   date NOT NULL,
    endpoint              text NOT NULL,
    key_hash              bytea,
    key_alias             text,
    user_id               text,
    team_id               text,
    end_user              text,
    requested_model       text NOT NULL,
    model_group           text NOT NULL,
    model                 text NOT NULL,
    deployment_id         text NOT NULL,
    provider              text NOT NULL,
    stream                boolean NOT NULL,
    status                text NOT NULL,
    http_status           integer NOT NULL,
    error                 text,
    prompt_tokens         bigint NOT NULL,
    completion_tokens     bigint NOT NULL,
    cached_tokens         bigint NOT NULL,
    cache_creation_tokens bigint NOT NULL,
    reasoning_tokens      bigint NOT NULL,
    characters            bigint NOT NULL,
    audio_millis          bigint NOT NULL,
    images                bigint NOT NULL,
    -- Spend never falls, and no single call costs more than a million dollars:
    -- such a row goes to tk_dead_letters instead of spoiling every sum it is part of.
    spend_nanos           bigint NOT NULL CHECK (spend_nanos BETWEEN 0 AND 1000000000000000),
    priced                boolean NOT NULL,
    estimated             boolean NOT NULL,
    clamped               boolean NOT NULL,
    started               timestamptz NOT NULL,
    first_byte            timestamptz,
    ended                 timestamptz NOT NULL,
    attempts              jsonb NOT NULL,
    tags                  jsonb NOT NULL,
    -- The client's own text. Not jsonb: what jsonb refuses (a lone surrogate, deep nesting) must
    -- not let a caller keep its calls off the books.
    metadata              text,
    client_ip             text NOT NULL,
    user_agent            text,
    bytes_in              bigint NOT NULL,
    bytes_out             bigint NOT NULL
);
CREATE INDEX tk_ledger_started ON tk_ledger (started DESC, request_id DESC);
CREATE INDEX tk_ledger_key ON tk_ledger (key_hash, started DESC);
CREATE INDEX tk_ledger_user ON tk_ledger (user_id, started DESC);

-- What the dashboard reads. Nobody's key, user or team is the empty value.
-- Calls the client left are neither successes nor failures.
CREATE TABLE tk_daily (
    day               date NOT NULL,
    key_hash          bytea NOT NULL,
    model_group       text NOT NULL,
    user_id           text NOT NULL,
    team_id           text NOT NULL,
    provider          text NOT NULL,
    requests          bigint NOT NULL,
    successes         bigint NOT NULL,
    failures          bigint NOT NULL,
    prompt_tokens     bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cached_tokens     bigint NOT NULL,
    spend_nanos       bigint NOT NULL,
    PRIMARY KEY (day, key_hash, model_group, user_id, team_id, provider)
);
CREATE INDEX tk_daily_key ON tk_daily (key_hash, day);

-- Rows the ledger could not take, whole, for a person to look at.
CREATE TABLE tk_dead_letters (
    request_id text PRIMARY KEY,
    reason     text NOT NULL,
    record     text NOT NULL,
    dead_at    timestamptz NOT NULL DEFAULT now()
);
