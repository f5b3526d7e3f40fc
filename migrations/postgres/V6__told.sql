-- What one of the replicas has told people of, and until when none tells it again: alerts, by a digest of what
-- they say of whom.
CREATE TABLE tk_told (
    name text PRIMARY KEY,
    until timestamptz NOT NULL
);
CREATE INDEX tk_told_until ON tk_told (until);
