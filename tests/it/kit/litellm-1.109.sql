-- What release 1.109 has beyond 1.80.

ALTER TABLE "LiteLLM_BudgetTable" ADD COLUMN allowed_models text[] DEFAULT '{}';
ALTER TABLE "LiteLLM_VerificationToken"
    ADD COLUMN total_spend double precision DEFAULT 0, ADD COLUMN router_settings jsonb DEFAULT '{}', ADD COLUMN agent_id text,
    ADD COLUMN project_id text, ADD COLUMN tpd_limit bigint, ADD COLUMN key_type text, ADD COLUMN policies text[] DEFAULT '{}',
    ADD COLUMN access_group_ids text[] DEFAULT '{}', ADD COLUMN budget_fallbacks jsonb, ADD COLUMN budget_limits jsonb,
    ADD COLUMN settings_updated_at timestamp(3), ADD COLUMN last_active timestamp(3);
ALTER TABLE "LiteLLM_UserTable" ADD COLUMN password_reset_required boolean, ADD COLUMN policies text[] DEFAULT '{}';
ALTER TABLE "LiteLLM_TeamTable" ADD COLUMN soft_budget double precision, ADD COLUMN tpd_limit bigint,
    ADD COLUMN router_settings jsonb DEFAULT '{}', ADD COLUMN access_group_ids text[] DEFAULT '{}',
    ADD COLUMN policies text[] DEFAULT '{}', ADD COLUMN default_team_member_models text[] DEFAULT '{}', ADD COLUMN budget_limits jsonb;
ALTER TABLE "LiteLLM_TeamMembership" ADD COLUMN total_spend double precision DEFAULT 0;
ALTER TABLE "LiteLLM_ProxyModelTable" ADD COLUMN blocked boolean NOT NULL DEFAULT false;
ALTER TABLE "LiteLLM_SpendLogs" ADD COLUMN organization_id text, ADD COLUMN request_duration_ms integer, ADD COLUMN litellm_call_id text;
ALTER TABLE "LiteLLM_DailyUserSpend" ADD COLUMN endpoint text, ADD COLUMN timed_requests bigint DEFAULT 0;
CREATE TABLE "LiteLLM_DeletedVerificationToken" (id text PRIMARY KEY, token text);
CREATE TABLE "LiteLLM_DeprecatedVerificationToken" (id text PRIMARY KEY, token text UNIQUE NOT NULL, active_token_id text NOT NULL,
    revoke_at timestamp(3) NOT NULL, created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP);
