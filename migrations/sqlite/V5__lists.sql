-- Lists of calls by whatever they are narrowed by: see the same step for Postgres.

CREATE INDEX tk_ledger_organization ON tk_ledger (organization_id, started, request_id)
    WHERE organization_id IS NOT NULL;
CREATE INDEX tk_ledger_alias ON tk_ledger (key_alias, started, request_id) WHERE key_alias IS NOT NULL;
CREATE INDEX tk_ledger_group ON tk_ledger (model_group, started, request_id);
CREATE INDEX tk_ledger_model ON tk_ledger (model, started, request_id);
CREATE INDEX tk_ledger_unwell ON tk_ledger (started, request_id, status, http_status)
    WHERE status <> 'success' OR http_status NOT BETWEEN 200 AND 299;

-- What an index of a list cannot be in SQLite: one row for each tag of a call.
CREATE TABLE tk_ledger_tags (
    tag TEXT NOT NULL,
    -- `started` and `request_id` of the call.
    at  INTEGER NOT NULL,
    id  TEXT NOT NULL,
    PRIMARY KEY (tag, at, id)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER tk_ledger_tagged AFTER INSERT ON tk_ledger WHEN new.tags <> '[]' BEGIN
    INSERT OR IGNORE INTO tk_ledger_tags SELECT value, new.started, new.request_id FROM json_each(new.tags)
    WHERE type = 'text';
END;
CREATE TRIGGER tk_ledger_untagged AFTER DELETE ON tk_ledger WHEN old.tags <> '[]' BEGIN
    DELETE FROM tk_ledger_tags WHERE tag IN (SELECT value FROM json_each(old.tags) WHERE type = 'text')
        AND at = old.started AND id = old.request_id;
END;
INSERT OR IGNORE INTO tk_ledger_tags
SELECT t.value, l.started, l.request_id FROM tk_ledger l, json_each(l.tags) t WHERE l.tags <> '[]' AND t.type = 'text';
