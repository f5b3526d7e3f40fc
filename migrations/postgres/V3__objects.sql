-- Objects with LiteLLM's fields, one table for each kind and all of one shape, and who changed what.
-- What users and teams have spent is in tk_accounts.

ALTER TABLE tk_keys ADD COLUMN organization_id text;
UPDATE tk_keys SET organization_id = extra->>'organization_id'
WHERE jsonb_typeof(extra->'organization_id') = 'string' AND extra->>'organization_id' <> '';
CREATE INDEX tk_keys_organization ON tk_keys (organization_id);

ALTER TABLE tk_users RENAME COLUMN user_id TO id;
ALTER TABLE tk_users
    -- A JSON object.
    ADD COLUMN fields jsonb NOT NULL DEFAULT '{}',
    -- Counts up with each change.
    ADD COLUMN version bigint NOT NULL DEFAULT 1;
UPDATE tk_users SET fields = extra
    || jsonb_build_object('models', models, 'metadata', metadata)
    || jsonb_strip_nulls(jsonb_build_object('user_alias', user_alias, 'user_email', user_email,
        'user_role', user_role, 'max_budget',
        CASE WHEN max_budget_nanos >= 0 THEN max_budget_nanos::numeric * 0.000000001 END));
ALTER TABLE tk_users
    DROP COLUMN user_alias, DROP COLUMN user_email, DROP COLUMN user_role, DROP COLUMN models,
    DROP COLUMN max_budget_nanos, DROP COLUMN metadata, DROP COLUMN extra,
    ALTER COLUMN fields DROP DEFAULT, ALTER COLUMN version DROP DEFAULT,
    ALTER COLUMN created_at DROP DEFAULT, ALTER COLUMN updated_at DROP DEFAULT;

ALTER TABLE tk_teams RENAME COLUMN team_id TO id;
ALTER TABLE tk_teams
    ADD COLUMN fields jsonb NOT NULL DEFAULT '{}', ADD COLUMN version bigint NOT NULL DEFAULT 1,
    ADD COLUMN created_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN updated_at timestamptz NOT NULL DEFAULT now();
ALTER TABLE tk_teams
    ALTER COLUMN fields DROP DEFAULT, ALTER COLUMN version DROP DEFAULT,
    ALTER COLUMN created_at DROP DEFAULT, ALTER COLUMN updated_at DROP DEFAULT;

CREATE TABLE tk_organizations (
    id         text PRIMARY KEY,
    fields     jsonb NOT NULL,
    version    bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);

CREATE TABLE tk_end_users (
    id         text PRIMARY KEY,
    fields     jsonb NOT NULL,
    version    bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);

CREATE TABLE tk_budgets (
    id         text PRIMARY KEY,
    fields     jsonb NOT NULL,
    version    bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);

CREATE TABLE tk_tags (
    id         text PRIMARY KEY,
    fields     jsonb NOT NULL,
    version    bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);

CREATE TABLE tk_models (
    id         text PRIMARY KEY,
    fields     jsonb NOT NULL,
    version    bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);

CREATE INDEX tk_users_created ON tk_users (created_at DESC, id);
CREATE INDEX tk_users_email ON tk_users ((fields->>'user_email'));
CREATE INDEX tk_users_organization ON tk_users ((fields->>'organization_id'));
CREATE INDEX tk_teams_created ON tk_teams (created_at DESC, id);
CREATE INDEX tk_teams_alias ON tk_teams ((fields->>'team_alias'));
CREATE INDEX tk_teams_organization ON tk_teams ((fields->>'organization_id'));
CREATE INDEX tk_teams_members ON tk_teams USING gin ((fields->'members_with_roles') jsonb_path_ops);
CREATE INDEX tk_organizations_created ON tk_organizations (created_at DESC, id);
CREATE INDEX tk_organizations_alias ON tk_organizations ((fields->>'organization_alias'));
CREATE INDEX tk_end_users_created ON tk_end_users (created_at DESC, id);
CREATE INDEX tk_budgets_created ON tk_budgets (created_at DESC, id);
CREATE INDEX tk_tags_created ON tk_tags (created_at DESC, id);
CREATE INDEX tk_models_created ON tk_models (created_at DESC, id);
CREATE INDEX tk_models_name ON tk_models ((fields->>'model_name'));

-- `before` and `after` are JSON as text, cut where they are long: what jsonb refuses must not keep a
-- change from being noted.
CREATE TABLE tk_audit (
    id             text PRIMARY KEY,
    at             timestamptz NOT NULL,
    changed_by     text NOT NULL,
    changed_by_key bytea,
    action         text NOT NULL,
    table_name     text NOT NULL,
    object_id      text NOT NULL,
    before         text,
    after          text
);
CREATE INDEX tk_audit_at ON tk_audit (at DESC, id DESC);
CREATE INDEX tk_audit_object ON tk_audit (object_id, at DESC);
