-- Routes, quotas, and what was consumed of them.

-- One row: every change of routes or quotas takes the next version, and so one waits for the other.
CREATE TABLE routes.route_table (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    version bigint NOT NULL,
    -- Up to this version the removed are not all remembered: who knows an older table reads it anew.
    forgotten bigint NOT NULL
);
INSERT INTO routes.route_table (version, forgotten) VALUES (1, 0);

CREATE TABLE routes.routes (
    id uuid PRIMARY KEY,
    name text COLLATE "C" NOT NULL,
    -- All that a caller sets, by the names of the contract; what is searched for stands beside it.
    spec jsonb NOT NULL,
    host text COLLATE "C" GENERATED ALWAYS AS (spec ->> 'host') STORED,
    -- What the template of the path matches, whatever its parameters are called, and the headers, as one text each.
    shape text COLLATE "C" NOT NULL,
    headers text COLLATE "C" NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    -- Version of the table in which it last changed.
    table_version bigint NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    CONSTRAINT routes_name UNIQUE (name)
);
CREATE INDEX routes_match ON routes.routes (md5(shape), host);
CREATE INDEX routes_table_version ON routes.routes (table_version);
CREATE INDEX routes_quotas ON routes.routes USING gin ((spec -> 'quotas'));

CREATE TABLE routes.quotas (
    id uuid PRIMARY KEY,
    name text COLLATE "C" NOT NULL,
    -- 0 calendar, 1 rate, 2 concurrent requests.
    kind smallint NOT NULL,
    rule jsonb NOT NULL,
    keys smallint[] NOT NULL,
    shadow boolean NOT NULL,
    -- 1 refuse, 2 allow, 3 count: while Redis is away.
    failure smallint NOT NULL,
    -- Another one when all use is forgotten.
    generation bigint NOT NULL DEFAULT 1,
    version bigint NOT NULL DEFAULT 1,
    table_version bigint NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    CONSTRAINT quotas_name UNIQUE (name)
);
CREATE INDEX quotas_table_version ON routes.quotas (table_version);

-- Routes and quotas that were removed, for processes that know a table with them.
CREATE TABLE routes.removed (
    id uuid NOT NULL,
    kind text NOT NULL,
    table_version bigint NOT NULL,
    remove_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (table_version, id)
);
CREATE INDEX removed_time ON routes.removed (remove_time);

-- What was consumed, of each quota by each key. The key is a keyed hash of the quota, its generation and whose use it
-- is. The slot is the first day of a calendar period, in days since 1970, or -1 for a rate that is counted here while
-- Redis is away, or -2 for concurrent requests then. The value is what was consumed, or of a rate its theoretical
-- arrival time in ticks of 125 ns since 2025.
CREATE TABLE routes.usage (
    key uuid NOT NULL,
    slot integer NOT NULL,
    value bigint NOT NULL,
    expire_time timestamptz NOT NULL,
    PRIMARY KEY (key, slot)
) WITH (fillfactor = 70);
CREATE INDEX usage_expire_time ON routes.usage (expire_time);

-- Places of concurrent requests that are held while Redis is away.
CREATE TABLE routes.lease_held (
    key uuid NOT NULL,
    lease uuid NOT NULL,
    expire_time timestamptz NOT NULL,
    PRIMARY KEY (key, lease)
);

-- What was allowed of late, so that a repeat consumes nothing more. The id is a keyed hash of caller and request id, or
-- names one statement, whose outcome may have been lost with its connection: then `answer` is the whole of it.
CREATE TABLE routes.allowed (
    id uuid PRIMARY KEY,
    print uuid NOT NULL,
    lease uuid,
    answer bigint[],
    expire_time timestamptz NOT NULL
);
CREATE INDEX allowed_expire_time ON routes.allowed (expire_time);

-- The time in ticks of 125 ns since 2025-01-01.
CREATE FUNCTION routes.ticks() RETURNS bigint LANGUAGE sql VOLATILE AS
$$ SELECT (extract(epoch FROM clock_timestamp() - timestamptz '2025-01-01 00:00:00+00') * 8000000)::bigint $$;

-- Decides demands in order, each for all of its items or none, in one transaction.
--
-- `counter_*` are the counters that items refer to by their place (from 1), in the order of their primary key, so that
-- no two transactions wait for each other in turns. Of each demand: `demand_ids` names it or is null, `prints` tells the
-- same demand from another with its id, `leases` names its places, `ends` is the place of its last item. Of each item: the
-- counter, the kind (0 calendar, 1 rate, 2 concurrent), the most (of rates, in ticks), what is taken (of rates in ticks, of
-- concurrent requests for how many ticks), and whether it is denied when it does not fit.
-- The answer begins with the time in ticks. For each demand: 0 denied, 1 allowed, 2 allowed before, 3 the id is another
-- one's; the two halves of its lease when that is another one than given, else 0 and 0; then for each of its items whether it
-- fits, and the counter's value after it. With `dry` nothing is written.
CREATE FUNCTION routes.consume(
    statement uuid,
    counter_keys uuid[], counter_slots integer[], counter_expires timestamptz[],
    demand_ids uuid[], prints uuid[], leases uuid[], ends integer[],
    item_counters integer[], item_kinds smallint[], item_limits bigint[], item_costs bigint[], item_denies boolean[],
    remember interval, dry boolean
) RETURNS bigint[] LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    now_ticks CONSTANT bigint := routes.ticks();
    item_count CONSTANT integer := COALESCE(cardinality(item_counters), 0);
    counter_count CONSTANT integer := COALESCE(cardinality(counter_keys), 0);
    held bigint[] := '{}';
    was bigint[];
    fits boolean[] := array_fill(false, ARRAY[item_count]);
    answer bigint[] := ARRAY[now_ticks];
    one record;
    known_print uuid;
    known_lease uuid;
    item integer := 0;
    start integer := 1;
    verdict integer;
    counter integer;
    value bigint;
BEGIN
    SELECT allowed.answer INTO one FROM routes.allowed WHERE allowed.id = statement;
    IF FOUND THEN
        RETURN one.answer;
    END IF;
    IF NOT dry THEN
        INSERT INTO routes.usage AS u (key, slot, value, expire_time)
        SELECT * FROM unnest(counter_keys, counter_slots, array_fill(0::bigint, ARRAY[counter_count]), counter_expires)
            AS c (key, slot, value, expire_time)
        WHERE NOT EXISTS (SELECT FROM routes.usage AS o WHERE o.key = c.key AND o.slot = c.slot)
        ORDER BY c.key, c.slot
        ON CONFLICT DO NOTHING;
        -- The locks of the demands come in the order of the counters, and the values are those of after the wait.
        FOR one IN
            SELECT u.value FROM unnest(counter_keys, counter_slots) WITH ORDINALITY AS c (key, slot, place)
            JOIN routes.usage AS u ON u.key = c.key AND u.slot = c.slot ORDER BY u.key, u.slot FOR UPDATE OF u
        LOOP
            held := held || one.value;
        END LOOP;
        IF cardinality(held) <> counter_count THEN
            RAISE EXCEPTION 'a counter was removed meanwhile' USING ERRCODE = 'serialization_failure';
        END IF;
    ELSE
        SELECT array_agg(COALESCE(u.value, 0) ORDER BY c.place) INTO held
        FROM unnest(counter_keys, counter_slots) WITH ORDINALITY AS c (key, slot, place)
        LEFT JOIN routes.usage AS u ON u.key = c.key AND u.slot = c.slot;
    END IF;
    FOR counter IN 1..counter_count LOOP
        IF counter_slots[counter] = -2 THEN
            SELECT count(*) INTO value FROM routes.lease_held AS l
            WHERE l.key = counter_keys[counter] AND l.expire_time > clock_timestamp();
            held[counter] := value;
        END IF;
    END LOOP;
    was := held;
    FOR demand IN 1..cardinality(ends) LOOP
        verdict := 1;
        known_lease := NULL;
        IF demand_ids[demand] IS NOT NULL THEN
            SELECT a.print, a.lease INTO known_print, known_lease FROM routes.allowed AS a
            WHERE a.id = demand_ids[demand] AND a.expire_time > clock_timestamp();
            IF FOUND THEN
                verdict := CASE WHEN known_print = prints[demand] THEN 2 ELSE 3 END;
            END IF;
        END IF;
        FOR item IN start..ends[demand] LOOP
            counter := item_counters[item];
            IF item_kinds[item] = 1 THEN
                -- Never further ahead than the most, should the quota have become smaller or the clock gone back.
                held[counter] := LEAST(GREATEST(held[counter], now_ticks), now_ticks + item_limits[item]);
                fits[item] := held[counter] + item_costs[item] - now_ticks <= item_limits[item];
            ELSIF item_kinds[item] = 2 THEN
                fits[item] := held[counter] < item_limits[item];
            ELSE
                fits[item] := held[counter] + item_costs[item] <= item_limits[item];
            END IF;
            IF verdict = 1 AND NOT fits[item] AND item_denies[item] THEN
                verdict := 0;
            END IF;
        END LOOP;
        answer := answer || verdict::bigint;
        IF verdict = 2 AND known_lease IS NOT NULL THEN
            answer := answer || ('x' || left(translate(known_lease::text, '-', ''), 16))::bit(64)::bigint
                || ('x' || right(translate(known_lease::text, '-', ''), 16))::bit(64)::bigint;
        ELSE
            answer := answer || 0::bigint || 0::bigint;
        END IF;
        FOR item IN start..ends[demand] LOOP
            counter := item_counters[item];
            IF verdict = 1 AND item_kinds[item] = 2 THEN
                held[counter] := held[counter] + (item_costs[item] > 0)::integer;
                IF NOT dry THEN
                    INSERT INTO routes.lease_held (key, lease, expire_time) VALUES (
                        counter_keys[counter], leases[demand],
                        clock_timestamp() + make_interval(secs => item_costs[item] / 8000000.0)
                    );
                END IF;
            ELSIF verdict = 1 AND (fits[item] OR item_kinds[item] = 0) THEN
                held[counter] := held[counter] + item_costs[item];
            END IF;
            answer := answer || fits[item]::integer::bigint || held[counter];
        END LOOP;
        IF verdict = 1 AND NOT dry AND demand_ids[demand] IS NOT NULL THEN
            INSERT INTO routes.allowed (id, print, lease, expire_time)
            VALUES (demand_ids[demand], prints[demand], leases[demand], clock_timestamp() + remember)
            ON CONFLICT (id) DO UPDATE SET print = EXCLUDED.print, lease = EXCLUDED.lease,
                expire_time = EXCLUDED.expire_time;
        END IF;
        start := ends[demand] + 1;
    END LOOP;
    IF dry THEN
        RETURN answer;
    END IF;
    UPDATE routes.usage AS u
    SET value = c.value, expire_time = GREATEST(u.expire_time, c.expire_time)
    FROM unnest(counter_keys, counter_slots, held, was, counter_expires) AS c (key, slot, value, was, expire_time)
    WHERE u.key = c.key AND u.slot = c.slot AND c.slot <> -2 AND c.value <> c.was;
    INSERT INTO routes.allowed (id, print, answer, expire_time)
    VALUES (statement, statement, answer, clock_timestamp() + interval '60 seconds');
    RETURN answer;
END $$;
