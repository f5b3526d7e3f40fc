-- How many of a day's calls had no price, beside what the days add up to: most gateways have none of them, and
-- gateways of the version before still write the days' own columns while this one starts.

CREATE TABLE tk_daily_unpriced (
    day             date NOT NULL,
    key_hash        bytea NOT NULL,
    model_group     text NOT NULL,
    user_id         text NOT NULL,
    team_id         text NOT NULL,
    organization_id text NOT NULL,
    provider        text NOT NULL,
    calls           bigint NOT NULL,
    PRIMARY KEY (day, key_hash, model_group, user_id, team_id, organization_id, provider)
);

CREATE TABLE tk_daily_labels_unpriced (
    -- end_user, tag
    kind        text NOT NULL,
    day         date NOT NULL,
    label       text NOT NULL,
    model_group text NOT NULL,
    calls       bigint NOT NULL,
    PRIMARY KEY (kind, day, label, model_group)
);

-- What reports add up. A day that has both stands here twice.
CREATE VIEW tk_usage AS
SELECT *, 0::bigint AS unpriced FROM tk_daily
UNION ALL
SELECT *, 0::bigint FROM tk_daily_imported
UNION ALL
SELECT day, key_hash, model_group, user_id, team_id, organization_id, provider, 0::bigint, 0::bigint, 0::bigint,
    0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, calls
FROM tk_daily_unpriced;

CREATE VIEW tk_usage_labels AS
SELECT *, 0::bigint AS unpriced FROM tk_daily_labels
UNION ALL
SELECT kind, day, label, model_group, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint,
    0::bigint, calls
FROM tk_daily_labels_unpriced;
