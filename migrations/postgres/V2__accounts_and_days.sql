-- What every subject has spent stands in one table; the ledger is cut by day; days are also summed by
-- organization, end user and tag.

-- spend_nanos = opening_nanos + dropped_nanos + the sum of the subject's rows, always. Written by the
-- ledger's append, by begin_period and retention; an opening is written with the subject.
CREATE TABLE tk_accounts (
    -- gateway, organization, team, member, user, key, end_user, tag
    kind           text NOT NULL,
    -- A key's hash in hexadecimal; team, tab, user for a member; empty for the gateway.
    id             text NOT NULL,
    -- The model group; empty = all models together.
    model          text NOT NULL DEFAULT '',
    spend_nanos    bigint NOT NULL DEFAULT 0,
    -- Spent before this ledger began, or beyond it.
    opening_nanos  bigint NOT NULL DEFAULT 0,
    -- Of rows that were dropped because of their age.
    dropped_nanos  bigint NOT NULL DEFAULT 0,
    -- What of spend_nanos belongs to the time before period_started.
    baseline_nanos bigint NOT NULL DEFAULT 0,
    period_started timestamptz,
    period_ends    timestamptz,
    -- The latest end among the account's rows.
    last_ended     timestamptz,
    PRIMARY KEY (kind, id, model)
);

-- Small things to remember. `rows_from`: the first day (ISO) whose rows are all there; absent = all are.
CREATE TABLE tk_settings (
    name  text PRIMARY KEY,
    value text NOT NULL
);

ALTER TABLE tk_ledger RENAME TO tk_ledger_whole;
ALTER TABLE tk_ledger_whole DROP CONSTRAINT tk_ledger_pkey;
DROP INDEX tk_ledger_started, tk_ledger_key, tk_ledger_user;
ALTER TABLE tk_ledger_whole ADD COLUMN organization_id text;

-- `day` (UTC) follows from `started`, so a row that comes again meets itself. The id stands first in the
-- key, because that is what a single row is asked for by.
CREATE TABLE tk_ledger (
    LIKE tk_ledger_whole INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
    PRIMARY KEY (request_id, day)
) PARTITION BY RANGE (day);
CREATE INDEX tk_ledger_started ON tk_ledger (started, request_id);
CREATE INDEX tk_ledger_spend ON tk_ledger (spend_nanos, request_id);
CREATE INDEX tk_ledger_key ON tk_ledger (key_hash, started);
CREATE INDEX tk_ledger_user ON tk_ledger (user_id, started);
CREATE INDEX tk_ledger_team ON tk_ledger (team_id, started);
CREATE INDEX tk_ledger_end_user ON tk_ledger (end_user, started) WHERE end_user IS NOT NULL;
CREATE INDEX tk_ledger_tags ON tk_ledger USING gin (tags jsonb_path_ops) WHERE tags <> '[]';
CREATE INDEX tk_ledger_ended ON tk_ledger USING brin (ended);

-- Days nobody would expect a row from: imported history, and callers whose clocks are wrong.
CREATE TABLE tk_ledger_elsewhen PARTITION OF tk_ledger DEFAULT;

-- Makes the partition of a day, taking along what of it lies elsewhen; false = it is there already.
-- The caller holds the ledger's lock.
CREATE FUNCTION tk_ledger_make_day(d date) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    name text := 'tk_ledger_d' || to_char(d, 'YYYYMMDD');
BEGIN
    IF to_regclass(name) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE tk_ledger INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
    IF EXISTS (SELECT FROM tk_ledger_elsewhen WHERE day = d) THEN
        EXECUTE format(
            'WITH moved AS (DELETE FROM tk_ledger_elsewhen WHERE day = %L RETURNING *)
             INSERT INTO %I SELECT * FROM moved', d, name);
    END IF;
    EXECUTE format('ALTER TABLE tk_ledger ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, d, d + 1);
    RETURN true;
END
$$;

SELECT tk_ledger_make_day(day) FROM (
    SELECT DISTINCT day FROM tk_ledger_whole
    WHERE day BETWEEN (now() AT TIME ZONE 'UTC')::date - 400 AND (now() AT TIME ZONE 'UTC')::date + 2
) days;
INSERT INTO tk_ledger SELECT * FROM tk_ledger_whole;
DROP TABLE tk_ledger_whole;

-- Each row is charged to every subject it names: in all, and for its model group.
INSERT INTO tk_accounts (kind, id, model, spend_nanos, last_ended)
SELECT c.kind, c.id, m.model, sum(r.spend)::bigint, max(r.ended)
FROM (
    SELECT key_hash, user_id, team_id, end_user, tags, model_group, sum(spend_nanos) AS spend, max(ended) AS ended
    FROM tk_ledger WHERE spend_nanos <> 0 GROUP BY 1, 2, 3, 4, 5, 6
) r
CROSS JOIN LATERAL (
    VALUES ('gateway', ''), ('team', nullif(r.team_id, '')), ('user', nullif(r.user_id, '')),
        ('end_user', nullif(r.end_user, '')), ('key', encode(r.key_hash, 'hex')),
        ('member', nullif(r.team_id, '') || chr(9) || nullif(r.user_id, ''))
    UNION ALL
    SELECT DISTINCT 'tag', nullif(tag, '') FROM jsonb_array_elements_text(r.tags) AS tag
) c (kind, id)
CROSS JOIN LATERAL (SELECT '' UNION SELECT r.model_group) m (model)
WHERE c.id IS NOT NULL
GROUP BY 1, 2, 3;

INSERT INTO tk_accounts AS a (kind, id, spend_nanos, opening_nanos)
SELECT 'key', encode(hash, 'hex'), opening_nanos, opening_nanos FROM tk_keys
ON CONFLICT (kind, id, model) DO UPDATE SET
    spend_nanos = a.spend_nanos + EXCLUDED.opening_nanos, opening_nanos = EXCLUDED.opening_nanos;

ALTER TABLE tk_keys DROP COLUMN spend_nanos, DROP COLUMN opening_nanos;
ALTER TABLE tk_users DROP COLUMN spend_nanos;
ALTER TABLE tk_teams DROP COLUMN spend_nanos;

-- Added up again from the rows, with what V1 did not keep.
DROP TABLE tk_daily;
CREATE TABLE tk_daily (
    day                   date NOT NULL,
    key_hash              bytea NOT NULL,
    model_group           text NOT NULL,
    user_id               text NOT NULL,
    team_id               text NOT NULL,
    organization_id       text NOT NULL,
    provider              text NOT NULL,
    requests              bigint NOT NULL,
    successes             bigint NOT NULL,
    failures              bigint NOT NULL,
    prompt_tokens         bigint NOT NULL,
    completion_tokens     bigint NOT NULL,
    cached_tokens         bigint NOT NULL,
    cache_creation_tokens bigint NOT NULL,
    spend_nanos           bigint NOT NULL,
    PRIMARY KEY (day, key_hash, model_group, user_id, team_id, organization_id, provider)
);
CREATE INDEX tk_daily_key ON tk_daily (key_hash, day);
CREATE INDEX tk_daily_user ON tk_daily (user_id, day);
CREATE INDEX tk_daily_team ON tk_daily (team_id, day);

INSERT INTO tk_daily
SELECT day, coalesce(key_hash, ''::bytea), model_group, coalesce(user_id, ''), coalesce(team_id, ''), '',
    provider, count(*), count(*) FILTER (WHERE status = 'success'),
    count(*) FILTER (WHERE status IN ('failure', 'cut')), sum(prompt_tokens)::bigint,
    sum(completion_tokens)::bigint, sum(cached_tokens)::bigint, sum(cache_creation_tokens)::bigint,
    sum(spend_nanos)::bigint
FROM tk_ledger GROUP BY 1, 2, 3, 4, 5, 6, 7;

-- The same by end user and by tag. A row with three tags counts three times here.
CREATE TABLE tk_daily_labels (
    -- end_user, tag
    kind                  text NOT NULL,
    day                   date NOT NULL,
    label                 text NOT NULL,
    model_group           text NOT NULL,
    requests              bigint NOT NULL,
    successes             bigint NOT NULL,
    failures              bigint NOT NULL,
    prompt_tokens         bigint NOT NULL,
    completion_tokens     bigint NOT NULL,
    cached_tokens         bigint NOT NULL,
    cache_creation_tokens bigint NOT NULL,
    spend_nanos           bigint NOT NULL,
    PRIMARY KEY (kind, day, label, model_group)
);
CREATE INDEX tk_daily_labels_label ON tk_daily_labels (kind, label, day);

INSERT INTO tk_daily_labels
SELECT c.kind, day, c.label, model_group, count(*), count(*) FILTER (WHERE status = 'success'),
    count(*) FILTER (WHERE status IN ('failure', 'cut')), sum(prompt_tokens)::bigint,
    sum(completion_tokens)::bigint, sum(cached_tokens)::bigint, sum(cache_creation_tokens)::bigint,
    sum(spend_nanos)::bigint
FROM tk_ledger
CROSS JOIN LATERAL (
    SELECT 'end_user', end_user
    UNION ALL
    SELECT DISTINCT 'tag', tag FROM jsonb_array_elements_text(tags) AS tag
) c (kind, label)
WHERE c.label <> ''
GROUP BY 1, 2, 3, 4;
