-- What people were told of, and until when it is not told again: alerts, by a digest of what they say of whom.
-- Microseconds since 1970.
CREATE TABLE tk_told (
    name TEXT PRIMARY KEY,
    until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX tk_told_until ON tk_told (until);
