-- What the days hold that are over, so that a list of calls leaves out the days that have nothing of what it asks
-- for, and a count or a page far back need not count them. To ask one day's table costs a tenth of a millisecond
-- even where it has nothing, and a connection's first look at it ten times that.

-- A day whose calls were looked through. A call that comes to it afterwards takes the day out. (No name here begins
-- with tk_ledger_d, as those of the days' own tables do.)
CREATE TABLE tk_digest_days (
    day      date PRIMARY KEY,
    -- Null: it is being looked through, and what follows is not known yet.
    calls    bigint,
    -- The cheapest and the dearest call; of several the one whose id comes first, or last.
    least    bigint,
    least_id text,
    most     bigint,
    most_id  text
);

-- Which key made calls with which label on a day, and how many.
CREATE TABLE tk_digest_marks (
    day      date NOT NULL,
    -- alias, model (as it was routed by, or as the upstream calls it), status, http (five digits), end_user, tag;
    -- id: of calls whose id does not tell their day. user, team, organization and group are there of all keys
    -- together only: the sums of days tell of which keys they are.
    kind     text NOT NULL,
    -- As tk_ledger_label has it.
    label    text NOT NULL,
    -- Nobody's is empty. Of the kinds model, status, http and tag, which many keys share, one byte of zero stands
    -- for all keys together.
    key_hash bytea NOT NULL,
    calls    bigint NOT NULL,
    -- What the cheapest and the dearest of them cost.
    least    bigint NOT NULL,
    most     bigint NOT NULL,
    PRIMARY KEY (day, kind, label, key_hash)
);

-- A key's cheapest and dearest call of a day.
CREATE TABLE tk_digest_costs (
    day      date NOT NULL,
    key_hash bytea NOT NULL,
    least    bigint NOT NULL,
    least_id text NOT NULL,
    most     bigint NOT NULL,
    most_id  text NOT NULL,
    PRIMARY KEY (day, key_hash)
);

CREATE INDEX tk_daily_organization ON tk_daily (organization_id, day);
CREATE INDEX tk_daily_group ON tk_daily (model_group, day);

-- A label that fits into an index whatever its length.
CREATE FUNCTION tk_ledger_label(label text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN octet_length(label) > 500 THEN md5(label) ELSE label END
$$;

CREATE FUNCTION tk_ledger_came_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM tk_digest_days WHERE day = NEW.day;
    RETURN NULL;
END
$$;
-- In the database, because gateways of the version before still write while this one starts. Days are looked
-- through later than this begins to watch them.
CREATE TRIGGER tk_ledger_late AFTER INSERT ON tk_ledger FOR EACH ROW
    WHEN (NEW.day < (now() AT TIME ZONE 'UTC')::date - 1) EXECUTE FUNCTION tk_ledger_came_late();

-- The next day to look through: it is over for long enough, has a table of its own, and was not looked through.
-- Those that were begun and not finished come last. Null = there is none.
CREATE FUNCTION tk_ledger_undigested() RETURNS date LANGUAGE sql STABLE AS $$
    WITH p AS MATERIALIZED (
        SELECT to_date(substr(c.relname, 12), 'YYYYMMDD') AS d
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'tk_ledger'::regclass AND c.relname LIKE 'tk\_ledger\_d%'
    )
    SELECT p.d FROM p LEFT JOIN tk_digest_days k ON k.day = p.d
    WHERE p.d < (now() AT TIME ZONE 'UTC')::date - 2 AND k.calls IS NULL
    ORDER BY k.day IS NOT NULL, p.d DESC LIMIT 1
$$;

-- Looks a day through. It is in tk_digest_days already, without calls, since before this transaction began, so
-- whatever comes to it meanwhile takes it out, and then this is false and counts for nothing.
CREATE FUNCTION tk_ledger_digest(d date) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    part text := 'tk_ledger_d' || to_char(d, 'YYYYMMDD');
    n bigint;
BEGIN
    DELETE FROM tk_digest_marks WHERE day = d;
    DELETE FROM tk_digest_costs WHERE day = d;
    EXECUTE format($sql$
        WITH s AS MATERIALIZED (
        SELECT m.kind, tk_ledger_label(m.label) AS label, coalesce(m.key_hash, '') AS key_hash, count(*) AS calls,
            min(r.spend_nanos) AS least, max(r.spend_nanos) AS most
        FROM %I r CROSS JOIN LATERAL (
            VALUES ('alias', r.key_alias, r.key_hash), ('model', r.model_group, r.key_hash),
                ('model', CASE WHEN r.model <> r.model_group THEN r.model END, r.key_hash),
                ('status', r.status, r.key_hash), ('http', lpad(r.http_status::text, 5, '0'), r.key_hash),
                ('end_user', r.end_user, r.key_hash),
                ('user', r.user_id, '\x00'), ('team', r.team_id, '\x00'),
                ('organization', r.organization_id, '\x00'), ('group', r.model_group, '\x00'),
                -- Of our own ids the first half is the time.
                ('id', CASE
                    WHEN r.request_id !~ '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$'
                        THEN left(md5(r.request_id), 8)
                    WHEN abs(('x' || substr(r.request_id, 1, 8) || substr(r.request_id, 10, 4))::bit(48)::bigint
                        / 86400000 - ($1 - DATE '1970-01-01')) > 1
                        THEN left(md5(r.request_id), 8)
                END, NULL)
            UNION ALL
            SELECT DISTINCT 'tag', tag, r.key_hash FROM jsonb_array_elements_text(r.tags) AS tag
        ) m (kind, label, key_hash)
        WHERE m.label IS NOT NULL
        GROUP BY 1, 2, 3
        )
        INSERT INTO tk_digest_marks
        SELECT $1, kind, label, key_hash, calls, least, most FROM s
        UNION ALL
        SELECT $1, kind, label, '\x00', sum(calls)::bigint, min(least), max(most) FROM s
        WHERE kind IN ('model', 'status', 'http', 'tag') GROUP BY kind, label
    $sql$, part) USING d;
    EXECUTE format($sql$
        INSERT INTO tk_digest_costs
        SELECT $1, l.key_hash, l.spend_nanos, l.request_id, m.spend_nanos, m.request_id
        FROM (
            SELECT DISTINCT ON (1) coalesce(key_hash, '') AS key_hash, spend_nanos, request_id
            FROM %1$I ORDER BY 1, 2, 3
        ) l JOIN (
            SELECT DISTINCT ON (1) coalesce(key_hash, '') AS key_hash, spend_nanos, request_id
            FROM %1$I ORDER BY 1, 2 DESC, 3 DESC
        ) m USING (key_hash)
    $sql$, part) USING d;
    EXECUTE format('SELECT count(*) FROM %I', part) INTO n;
    UPDATE tk_digest_days SET calls = n,
        (least, least_id) = (SELECT c.least, c.least_id FROM tk_digest_costs c WHERE c.day = d ORDER BY 1, 2 LIMIT 1),
        (most, most_id) = (SELECT c.most, c.most_id FROM tk_digest_costs c WHERE c.day = d ORDER BY 1 DESC, 2 DESC LIMIT 1)
    WHERE day = d AND calls IS NULL;
    RETURN FOUND;
END
$$;

-- The tables in which the days from `first` to `last` may lie, or all of `days` (null = open), in order; `bound` =
-- what else holds there. What lies elsewhen lies between the days that have tables of their own. Of the days in
-- `known` it is known that they have as many calls that are asked for as `calls` says, or some where it is null:
-- `n` is that number, and those that have none are left out.
CREATE FUNCTION tk_ledger_parts(first date, last date, days date[], known date[], calls bigint[], falling boolean)
RETURNS TABLE (name text, d date, bound text, n bigint) LANGUAGE plpgsql STABLE AS $$
DECLARE
    strange boolean := EXISTS (SELECT FROM tk_ledger_elsewhen);
BEGIN
    RETURN QUERY
    WITH parts_of_days AS MATERIALIZED (
        SELECT c.oid AS part, to_date(substr(c.relname, 12), 'YYYYMMDD') AS d
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'tk_ledger'::regclass AND c.relname LIKE 'tk\_ledger\_d%'
    ), parts AS (
        SELECT p.part, p.d, 0 AS gap, '' AS extra, k.n
        FROM parts_of_days p LEFT JOIN unnest(known, calls) AS k (d, n) ON k.d = p.d
        WHERE (first IS NULL OR p.d >= first) AND (last IS NULL OR p.d <= last)
            AND (days IS NULL OR p.d IN (SELECT unnest(days)))
            AND (k.n IS NULL OR k.n <> 0)
        UNION ALL
        SELECT 'tk_ledger_elsewhen'::regclass, f.d, 1,
            concat(' AND day > ', quote_literal(f.d), ' AND day < ' || quote_literal(f.next)), NULL
        FROM (SELECT p.d, lead(p.d) OVER (ORDER BY p.d) AS next FROM parts_of_days p WHERE strange) f
        WHERE f.next IS NULL OR f.next > f.d + 1
        UNION ALL
        SELECT 'tk_ledger_elsewhen'::regclass, DATE '0001-01-01', 1,
            coalesce(' AND day < ' || quote_literal(min(p.d)), ''), NULL
        FROM parts_of_days p HAVING strange
    )
    SELECT p.part::regclass::text, CASE p.gap WHEN 0 THEN p.d END, p.extra, p.n FROM parts p
    ORDER BY CASE WHEN falling THEN p.d END DESC, CASE WHEN falling THEN p.gap END DESC, p.d, p.gap;
END
$$;

-- The rows of which `test` is true, from the (skip + 1)th on, `most` of them, in the order of their starts. `test`
-- is an expression over a row in which the values are $1[1], $1[2] and so on; the days: see tk_ledger_parts.
CREATE FUNCTION tk_ledger_page(test text, args text[], first date, last date, days date[], known date[],
    calls bigint[], falling boolean, skip bigint, most bigint)
RETURNS SETOF tk_ledger LANGUAGE plpgsql STABLE AS $$
DECLARE
    part record;
    n bigint;
    way text := CASE WHEN falling THEN 'DESC' ELSE 'ASC' END;
    found_some boolean := test = 'true';
BEGIN
    FOR part IN SELECT * FROM tk_ledger_parts(first, last, days, known, calls, falling) LOOP
        EXIT WHEN most <= 0;
        IF skip > 0 THEN
            n := part.n;
            IF n IS NULL THEN
                EXECUTE format('SELECT count(*) FROM %s WHERE (%s)%s', part.name, test, part.bound)
                    INTO n USING args;
            END IF;
            IF n <= skip THEN
                skip := skip - n;
                CONTINUE;
            END IF;
        END IF;
        -- Where most tables have nothing, that is learned more cheaply without order and columns.
        IF NOT found_some AND part.n IS NULL THEN
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
    END LOOP;
END
$$;

-- The dearest or cheapest `most` rows of which `test` is true, in no order. `costs` and `ids` say of the days that
-- are `known` what no row of theirs is beyond.
CREATE FUNCTION tk_ledger_extremes(test text, args text[], first date, last date, days date[], known date[],
    calls bigint[], costs bigint[], ids text[], falling boolean, most integer)
RETURNS SETOF tk_ledger LANGUAGE plpgsql STABLE AS $$
DECLARE
    part record;
    way text := CASE WHEN falling THEN 'DESC' ELSE 'ASC' END;
    beyond text := format(' AND (spend_nanos, request_id) %s ($3, $4)', CASE WHEN falling THEN '>' ELSE '<' END);
    best tk_ledger[] := '{}';
    fresh tk_ledger[];
    -- How many of the best are not in order yet, and the last of those that are when there are enough.
    pending integer := 0;
    full_up boolean := false;
    cost bigint;
    id text;
BEGIN
    FOR part IN
        SELECT p.name, p.bound, b.cost, b.id
        FROM tk_ledger_parts(first, last, days, known, calls, falling) p
        LEFT JOIN unnest(known, costs, ids) AS b (d, cost, id) ON b.d = p.d
        -- The most promising first.
        ORDER BY b.cost IS NULL, CASE WHEN falling THEN b.cost END DESC, CASE WHEN falling THEN b.id END DESC,
            b.cost, b.id
    LOOP
        EXIT WHEN most <= 0;
        IF full_up THEN
            CONTINUE WHEN falling AND (part.cost, part.id) < (cost, id) OR NOT falling AND (part.cost, part.id) > (cost, id);
        END IF;
        EXECUTE format(
            'SELECT array_agg(found) FROM (
                SELECT r::tk_ledger AS found FROM %s r WHERE (%s)%s%s ORDER BY spend_nanos %s, request_id %s LIMIT $2
            ) s', part.name, test, part.bound, CASE WHEN full_up THEN beyond ELSE '' END, way, way)
            INTO fresh USING args, most, cost, id;
        CONTINUE WHEN fresh IS NULL;
        best := best || fresh;
        pending := pending + cardinality(fresh);
        CONTINUE WHEN cardinality(best) < most OR full_up AND pending * 4 < most;
        -- From here on only what is beyond the last of the best counts.
        SELECT array_agg(s.b) INTO best FROM (
            SELECT b FROM unnest(best) AS b
            ORDER BY CASE WHEN falling THEN b.spend_nanos END DESC, CASE WHEN falling THEN b.request_id END DESC,
                b.spend_nanos, b.request_id LIMIT most
        ) s;
        cost := (best[most]).spend_nanos;
        id := (best[most]).request_id;
        full_up := true;
        pending := 0;
    END LOOP;
    RETURN QUERY SELECT * FROM unnest(best);
END
$$;

-- How many rows there are of which `test` is true; no more than `most` are counted, and none of the days of which
-- `calls` says 0.
CREATE FUNCTION tk_ledger_counted(test text, args text[], first date, last date, days date[], known date[],
    calls bigint[], most bigint)
RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE
    part record;
    n bigint;
    counted bigint := 0;
BEGIN
    FOR part IN SELECT * FROM tk_ledger_parts(first, last, days, known, calls, true) LOOP
        EXIT WHEN counted >= most;
        EXECUTE format('SELECT count(*) FROM (SELECT FROM %s WHERE (%s)%s LIMIT $2) s', part.name, test, part.bound)
            INTO n USING args, most - counted;
        counted := counted + n;
    END LOOP;
    RETURN counted;
END
$$;
