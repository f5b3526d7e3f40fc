-- What each user has spent in each organization, from what is known already: rows, and of the days whose rows were
-- dropped because of their age, their sums.

WITH r AS (
    SELECT organization_id, user_id, model_group, sum(spend_nanos) AS spend, max(ended) AS ended
    FROM tk_ledger WHERE organization_id <> '' AND user_id <> '' AND spend_nanos <> 0 GROUP BY 1, 2, 3
), d AS (
    SELECT organization_id, user_id, model_group, sum(spend_nanos) AS spend
    FROM tk_daily WHERE organization_id <> '' AND user_id <> '' AND spend_nanos <> 0 GROUP BY 1, 2, 3
), of_group AS (
    SELECT organization_id || chr(9) || user_id AS id, model_group, coalesce(r.spend, 0) AS kept,
        greatest(d.spend, r.spend) AS spend, r.ended
    FROM d FULL JOIN r USING (organization_id, user_id, model_group)
)
INSERT INTO tk_accounts (kind, id, model, spend_nanos, dropped_nanos, last_ended)
SELECT 'organization_member', id, m.model, sum(spend)::bigint, sum(spend - kept)::bigint, max(ended)
FROM of_group CROSS JOIN LATERAL (SELECT '' UNION SELECT model_group) m (model)
GROUP BY 2, 3;
