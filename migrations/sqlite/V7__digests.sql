-- What the days hold that are over: see the same step for Postgres. Here a list follows one index, and this tells
-- which days have two things together.

CREATE TABLE tk_digest_days (
    day   INTEGER PRIMARY KEY NOT NULL,
    calls INTEGER NOT NULL
) STRICT;

CREATE TABLE tk_digest_marks (
    day      INTEGER NOT NULL,
    kind     TEXT NOT NULL,
    label    TEXT NOT NULL,
    key_hash BLOB NOT NULL,
    calls    INTEGER NOT NULL,
    PRIMARY KEY (day, kind, label, key_hash)
) STRICT, WITHOUT ROWID;

CREATE TABLE tk_digest_costs (
    day      INTEGER NOT NULL,
    key_hash BLOB NOT NULL,
    least    INTEGER NOT NULL,
    most     INTEGER NOT NULL,
    PRIMARY KEY (day, key_hash)
) STRICT, WITHOUT ROWID;

CREATE INDEX tk_daily_organization ON tk_daily (organization_id, day);
CREATE INDEX tk_daily_group ON tk_daily (model_group, day);

CREATE TRIGGER tk_ledger_late AFTER INSERT ON tk_ledger WHEN new.day < unixepoch() / 86400 - 1 BEGIN
    DELETE FROM tk_digest_days WHERE day = new.day;
END;
