-- Lists of calls by whatever they are narrowed by. Planning a statement over a year of days costs more than
-- reading its page, so one function goes from day to day and stops when the page is full.

CREATE INDEX tk_ledger_organization ON tk_ledger (organization_id, started) WHERE organization_id IS NOT NULL;
CREATE INDEX tk_ledger_alias ON tk_ledger (key_alias, started) WHERE key_alias IS NOT NULL;
CREATE INDEX tk_ledger_group ON tk_ledger (model_group, started);
CREATE INDEX tk_ledger_model ON tk_ledger (model, started);
-- Those that did not go well: few, and looked for most.
CREATE INDEX tk_ledger_unwell ON tk_ledger (status, http_status, started)
    WHERE status <> 'success' OR http_status NOT BETWEEN 200 AND 299;

-- The tables in which the days from `first` to `last` may lie, or all of `days` (null = open), in order;
-- `bound` = what else holds there. What lies elsewhen lies between the days that have tables of their own.
CREATE FUNCTION tk_ledger_tables(first date, last date, days date[], falling boolean)
RETURNS TABLE (name text, bound text) LANGUAGE plpgsql STABLE AS $$
DECLARE
    strange boolean := EXISTS (SELECT FROM tk_ledger_elsewhen);
BEGIN
    RETURN QUERY
    WITH parts_of_days AS (
        SELECT c.oid::regclass::text AS part, to_date(substr(c.relname, 12), 'YYYYMMDD') AS d
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'tk_ledger'::regclass AND c.relname LIKE 'tk\_ledger\_d%'
    ), parts AS (
        SELECT part, d, 0 AS gap, '' AS extra FROM parts_of_days
        WHERE (first IS NULL OR d >= first) AND (last IS NULL OR d <= last) AND (days IS NULL OR d = ANY (days))
        UNION ALL
        SELECT 'tk_ledger_elsewhen', d, 1, concat(' AND day > ', quote_literal(d), ' AND day < ' || quote_literal(next))
        FROM (SELECT d, lead(d) OVER (ORDER BY d) AS next FROM parts_of_days) following
        WHERE strange AND (next IS NULL OR next > d + 1)
        UNION ALL
        SELECT 'tk_ledger_elsewhen', DATE '0001-01-01', 1, coalesce(' AND day < ' || quote_literal(min(d)), '')
        FROM parts_of_days WHERE strange HAVING strange
    )
    SELECT part, extra FROM parts
    ORDER BY CASE WHEN falling THEN d END DESC, CASE WHEN falling THEN gap END DESC, d, gap;
END
$$;

-- The rows of which `test` is true, from the (skip + 1)th on, `most` of them, in the order of their starts or
-- of what they cost; in the latter the first `skip` come along, and in no order. `test` is an expression over a
-- row in which the values are $1[1], $1[2] and so on.
CREATE FUNCTION tk_ledger_walk(test text, args text[], first date, last date,
    days date[], by_spend boolean, falling boolean, skip bigint, most bigint)
RETURNS SETOF tk_ledger LANGUAGE plpgsql STABLE AS $$
DECLARE
    part record;
    n bigint;
    way text := CASE WHEN falling THEN 'DESC' ELSE 'ASC' END;
    beyond text := format(' AND (spend_nanos, request_id) %s ($3, $4)', CASE WHEN falling THEN '>' ELSE '<' END);
    -- Where rows stand in their table; with what they cost, their ids and the table's number.
    places tid[];
    costs bigint[];
    ids text[];
    best_places tid[] := '{}';
    best_costs bigint[] := '{}';
    best_ids text[] := '{}';
    best_parts integer[] := '{}';
    names text[] := '{}';
    full_up boolean := false;
    found_some boolean := test = 'true';
BEGIN
    IF by_spend THEN
        most := most + skip;
    END IF;
    FOR part IN SELECT * FROM tk_ledger_tables(first, last, days, falling) LOOP
        EXIT WHEN most <= 0;
        IF NOT by_spend THEN
            IF skip > 0 THEN
                EXECUTE format('SELECT count(*) FROM %s WHERE (%s)%s', part.name, test, part.bound)
                    INTO n USING args;
                IF n <= skip THEN
                    skip := skip - n;
                    CONTINUE;
                END IF;
            END IF;
            -- Where most tables have nothing, that is learned more cheaply without order and columns.
            IF NOT found_some THEN
                EXECUTE format('SELECT 1 FROM %s WHERE (%s)%s LIMIT 1', part.name, test, part.bound) INTO n USING args;
                CONTINUE WHEN n IS NULL;
            END IF;
            RETURN QUERY EXECUTE
                format('SELECT * FROM %s WHERE (%s)%s ORDER BY started %s, request_id %s LIMIT $2 OFFSET $3',
                    part.name, test, part.bound, way, way) USING args, most, skip;
            GET DIAGNOSTICS n = ROW_COUNT;
            found_some := n > 0;
            skip := 0;
            most := most - n;
            CONTINUE;
        END IF;
        IF full_up THEN
            EXECUTE format('SELECT 1 FROM %s WHERE (%s)%s%s LIMIT 1', part.name, test, part.bound, beyond)
                INTO n USING args, most, best_costs[most], best_ids[most];
            CONTINUE WHEN n IS NULL;
        END IF;
        EXECUTE format(
            'SELECT array_agg(spend_nanos), array_agg(request_id), array_agg(at)
             FROM (SELECT spend_nanos, request_id, ctid AS at FROM %s WHERE (%s)%s%s
             ORDER BY spend_nanos %s, request_id %s LIMIT $2) s',
            part.name, test, part.bound, CASE WHEN full_up THEN beyond ELSE '' END, way, way)
            INTO costs, ids, places USING args, most, best_costs[most], best_ids[most];
        CONTINUE WHEN places IS NULL;
        names := names || part.name;
        best_costs := best_costs || costs;
        best_ids := best_ids || ids;
        best_places := best_places || places;
        best_parts := best_parts || array_fill(cardinality(names), ARRAY[cardinality(places)]);
        CONTINUE WHEN cardinality(best_ids) < CASE WHEN full_up THEN 3 * most ELSE most END;
        -- From here on only what is beyond the last of the best counts.
        SELECT array_agg(c), array_agg(i), array_agg(p), array_agg(t)
            INTO best_costs, best_ids, best_places, best_parts
        FROM (
            SELECT * FROM unnest(best_costs, best_ids, best_places, best_parts) AS b (c, i, p, t)
            ORDER BY CASE WHEN falling THEN c END DESC, CASE WHEN falling THEN i END DESC, c, i LIMIT most
        ) b;
        full_up := true;
    END LOOP;
    IF by_spend THEN
        FOR part IN
            SELECT t, array_agg(p) AS places FROM (
                SELECT * FROM unnest(best_costs, best_ids, best_places, best_parts) AS b (c, i, p, t)
                ORDER BY CASE WHEN falling THEN c END DESC, CASE WHEN falling THEN i END DESC, c, i LIMIT most
            ) b GROUP BY t
        LOOP
            RETURN QUERY EXECUTE format('SELECT * FROM %s WHERE ctid = ANY ($1)', names[part.t])
                USING part.places;
        END LOOP;
    END IF;
END
$$;

-- How many rows there are of which `test` is true; no more than `most` are counted.
CREATE FUNCTION tk_ledger_count(test text, args text[], first date, last date, days date[], most bigint)
RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE
    part record;
    n bigint;
    counted bigint := 0;
BEGIN
    FOR part IN SELECT * FROM tk_ledger_tables(first, last, days, true) LOOP
        EXECUTE format('SELECT count(*) FROM (SELECT FROM %s WHERE (%s)%s LIMIT $2) s', part.name, test, part.bound)
            INTO n USING args, most - counted;
        counted := counted + n;
        EXIT WHEN counted >= most;
    END LOOP;
    RETURN counted;
END
$$;
