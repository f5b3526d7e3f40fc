-- What each user has spent in each organization: see the same step for Postgres.

INSERT INTO tk_accounts (kind, id, model, spend_nanos, dropped_nanos, last_ended)
WITH r AS (
    SELECT organization_id || char(9) || user_id AS id, model_group, sum(spend_nanos) AS spend, max(ended) AS ended
    FROM tk_ledger WHERE organization_id <> '' AND user_id <> '' AND spend_nanos <> 0 GROUP BY 1, 2
), d AS (
    SELECT organization_id || char(9) || user_id AS id, model_group, sum(spend_nanos) AS spend
    FROM tk_daily WHERE organization_id <> '' AND user_id <> '' AND spend_nanos <> 0 GROUP BY 1, 2
), of_group AS (
    SELECT id, model_group, coalesce(r.spend, 0) AS kept, max(coalesce(d.spend, 0), coalesce(r.spend, 0)) AS spend, r.ended
    FROM d FULL JOIN r USING (id, model_group)
), m AS (
    SELECT id, '' AS model, kept, spend, ended FROM of_group
    UNION ALL SELECT id, model_group, kept, spend, ended FROM of_group WHERE model_group <> ''
)
SELECT 'organization_member', id, model, sum(spend), sum(spend - kept), max(ended) FROM m GROUP BY 2, 3;
