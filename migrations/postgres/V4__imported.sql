-- What came out of another gateway's database: sums of its days and rows of its ledger. They stand apart
-- from our own, so that our sums stay the sums of our rows; readers see both together. What was spent
-- before is in the accounts' opening_nanos.

CREATE TABLE tk_daily_imported (
    LIKE tk_daily INCLUDING CONSTRAINTS,
    PRIMARY KEY (day, key_hash, model_group, user_id, team_id, organization_id, provider)
);
CREATE INDEX tk_daily_imported_key ON tk_daily_imported (key_hash, day);
CREATE INDEX tk_daily_imported_user ON tk_daily_imported (user_id, day);
CREATE INDEX tk_daily_imported_team ON tk_daily_imported (team_id, day);

CREATE TABLE tk_ledger_imported (
    LIKE tk_ledger INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
    PRIMARY KEY (request_id)
);
CREATE INDEX tk_ledger_imported_day ON tk_ledger_imported (day);
CREATE INDEX tk_ledger_imported_started ON tk_ledger_imported (started, request_id);
CREATE INDEX tk_ledger_imported_spend ON tk_ledger_imported (spend_nanos, request_id);
CREATE INDEX tk_ledger_imported_key ON tk_ledger_imported (key_hash, started);
CREATE INDEX tk_ledger_imported_user ON tk_ledger_imported (user_id, started);
CREATE INDEX tk_ledger_imported_team ON tk_ledger_imported (team_id, started);

CREATE VIEW tk_daily_all AS SELECT * FROM tk_daily UNION ALL SELECT * FROM tk_daily_imported;
CREATE VIEW tk_ledger_all AS SELECT * FROM tk_ledger UNION ALL SELECT * FROM tk_ledger_imported;
