-- The SQL of statements: how PostgreSQL is read, and what is kept of that. The first ones run as each domain's own role,
-- which sees its own statements and sessions in full, and no other's.

-- name: extension
-- The schema of pg_stat_statements in this database, quoted, and whether it tells since when it counts (1.11,
-- PostgreSQL 17); no row without it.
SELECT
    quote_ident(space.nspname),
    string_to_array(extension.extversion, '.')::int[] >= ARRAY[1, 11]
FROM pg_catalog.pg_extension AS extension
JOIN pg_catalog.pg_namespace AS space ON space.oid = extension.extnamespace
WHERE extension.extname = 'pg_stat_statements';

-- name: counters
-- The counters of this role's statements in this database, by what pg_stat_statements tells them apart. Its schema may
-- be another one.
SELECT
    queryid, toplevel, stats_since, calls, round(total_exec_time * 1000)::bigint, rows, shared_blks_hit,
    shared_blks_read, temp_blks_written * current_setting('block_size')::bigint, wal_bytes::bigint, query
FROM public.pg_stat_statements
WHERE userid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user)
    AND dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
    AND queryid IS NOT NULL AND calls > 0;

-- name: sessions
-- This role's sessions that do something, or hold a transaction open.
SELECT
    pid, backend_start, xact_start, query_start, state, coalesce(wait_event_type, ''), coalesce(wait_event, ''),
    pg_catalog.pg_blocking_pids(pid), application_name, query
FROM pg_catalog.pg_stat_activity
WHERE usename = current_user AND datname = current_database() AND state <> 'idle' AND pid <> pg_catalog.pg_backend_pid();

-- name: signal
-- Cancels what a session does, or ends it: only the session that began at that time, if it is this role's, and only
-- while it runs the statement that began at `query_start`. One row when there is one, with whether it was signalled.
SELECT
    CASE
        WHEN %(pretend)s::boolean THEN true
        WHEN %(end)s::boolean THEN pg_catalog.pg_terminate_backend(pid)
        ELSE pg_catalog.pg_cancel_backend(pid)
    END
FROM pg_catalog.pg_stat_activity
WHERE pid = %(pid)s AND backend_start = %(backend_start)s AND usename = current_user AND state <> 'idle'
    AND datname = current_database() AND pid <> pg_catalog.pg_backend_pid()
    AND (%(query_start)s::timestamptz IS NULL OR query_start = %(query_start)s);

-- name: take_clock
-- Waits until nobody else takes a reading in; the time of this one, later than that of any before.
UPDATE admin.statement_clock
SET taken_at = greatest(clock_timestamp(), taken_at + interval '1 microsecond')
RETURNING taken_at;

-- name: known_statements
-- The statements of a domain whose text is kept.
SELECT domain, query_id FROM admin.statements;

-- name: add_statements
-- Keeps texts.
INSERT INTO admin.statements (domain, query_id, fingerprint, text)
SELECT *
FROM unnest(%(domains)s::text[], %(query_ids)s::bigint[], %(fingerprints)s::text[], %(texts)s::text[])
ON CONFLICT DO NOTHING;

-- name: absorb
-- Takes in what every counter has gone up by since it was last read: all of it where its series is new. A reading that
-- is older than the last one of a series changes nothing.
WITH read AS (
    SELECT *
    FROM unnest(
        %(domains)s::text[], %(query_ids)s::bigint[], %(top_levels)s::boolean[], %(stats_since)s::timestamptz[],
        %(calls)s::bigint[], %(total_us)s::bigint[], %(rows)s::bigint[], %(blocks_hit)s::bigint[],
        %(blocks_read)s::bigint[], %(temp_bytes)s::bigint[], %(wal_bytes)s::bigint[]
    ) AS read (
        domain, query_id, top_level, stats_since, calls, total_us, rows, blocks_hit, blocks_read, temp_bytes, wal_bytes
    )
),
moved AS (
    SELECT
        read.domain, read.query_id,
        sum(read.calls - coalesce(old.calls, 0)) AS calls,
        sum(greatest(0, read.total_us - coalesce(old.total_us, 0))) AS total_us,
        sum(greatest(0, read.rows - coalesce(old.rows, 0))) AS rows,
        sum(greatest(0, read.blocks_hit - coalesce(old.blocks_hit, 0))) AS blocks_hit,
        sum(greatest(0, read.blocks_read - coalesce(old.blocks_read, 0))) AS blocks_read,
        sum(greatest(0, read.temp_bytes - coalesce(old.temp_bytes, 0))) AS temp_bytes,
        sum(greatest(0, read.wal_bytes - coalesce(old.wal_bytes, 0))) AS wal_bytes
    FROM read
    LEFT JOIN admin.statement_series AS old USING (domain, query_id, top_level, stats_since)
    WHERE read.calls > coalesce(old.calls, 0)
    GROUP BY read.domain, read.query_id
),
kept AS (
    INSERT INTO admin.statement_series AS series
    SELECT read.*, %(taken_at)s
    FROM read
    ON CONFLICT (domain, query_id, top_level, stats_since) DO UPDATE
    SET calls = excluded.calls, total_us = excluded.total_us, rows = excluded.rows, blocks_hit = excluded.blocks_hit,
        blocks_read = excluded.blocks_read, temp_bytes = excluded.temp_bytes, wal_bytes = excluded.wal_bytes,
        seen_at = excluded.seen_at
    WHERE series.calls < excluded.calls
        OR (series.calls = excluded.calls AND series.seen_at < excluded.seen_at - interval '1 day')
)
INSERT INTO admin.statement_deltas (
    taken_at, domain, query_id, calls, total_us, rows, blocks_hit, blocks_read, temp_bytes, wal_bytes
)
SELECT
    %(taken_at)s, domain, query_id, calls, total_us, rows, blocks_hit, blocks_read, temp_bytes, wal_bytes
FROM moved;

-- name: set_sources
-- Notes how reading each domain went; the time of those that were read.
INSERT INTO admin.statement_sources AS source (domain, state, taken_at)
SELECT domain, state, CASE WHEN state = 1 THEN %(taken_at)s::timestamptz END
FROM unnest(%(domains)s::text[], %(states)s::smallint[]) AS read (domain, state)
ON CONFLICT (domain) DO UPDATE
SET state = excluded.state, taken_at = coalesce(excluded.taken_at, source.taken_at);

-- name: sources
-- How reading each domain went the last time.
SELECT domain, state, taken_at FROM admin.statement_sources ORDER BY domain;

-- name: last_taken
-- When the last reading was taken in; NULL before the first.
SELECT taken_at FROM admin.statement_clock;

-- name: add_origins
-- Keeps which methods issue which named queries. One that changed with a release has a fingerprint of its own.
INSERT INTO admin.statement_origins (fingerprint, query, method, text)
SELECT *
FROM unnest(%(fingerprints)s::text[], %(queries)s::text[], %(methods)s::text[], %(texts)s::text[])
ON CONFLICT DO NOTHING;

-- name: methods_of
-- The methods that issue each of some named queries.
SELECT query, array_agg(DISTINCT method ORDER BY method)
FROM admin.statement_origins
WHERE query = ANY(%(queries)s) AND method <> ''
GROUP BY query;

-- fragment: cost
-- What statements cost between two times, each statement with its names and methods.
SELECT
    delta.domain, delta.query_id, delta.calls, delta.total_us, delta.rows, delta.blocks_hit, delta.blocks_read,
    delta.temp_bytes, delta.wal_bytes, statement.text,
    coalesce(origin.queries, '{}') AS queries, coalesce(origin.methods, '{}') AS methods,
    coalesce(origin.text, statement.text) AS source,
    CASE %(order)s::smallint
        WHEN 2 THEN delta.total_us / delta.calls
        WHEN 3 THEN delta.calls
        WHEN 4 THEN delta.rows
        WHEN 5 THEN delta.temp_bytes
        WHEN 6 THEN delta.blocks_read
        ELSE delta.total_us
    END AS weight
FROM (
    SELECT
        domain, query_id, sum(calls) AS calls, sum(total_us) AS total_us, sum(rows) AS rows,
        sum(blocks_hit) AS blocks_hit, sum(blocks_read) AS blocks_read, sum(temp_bytes) AS temp_bytes,
        sum(wal_bytes) AS wal_bytes
    FROM admin.statement_deltas
    WHERE taken_at > %(after)s AND taken_at <= %(until)s AND (%(domain)s::text IS NULL OR domain = %(domain)s)
    GROUP BY domain, query_id
) AS delta
JOIN admin.statements AS statement USING (domain, query_id)
LEFT JOIN LATERAL (
    SELECT
        array_agg(DISTINCT query ORDER BY query) AS queries,
        array_agg(DISTINCT method ORDER BY method) FILTER (WHERE method <> '') AS methods,
        min(text) AS text
    FROM admin.statement_origins AS origin
    WHERE origin.fingerprint = statement.fingerprint AND origin.query LIKE delta.domain || ':%%'
) AS origin ON true;

-- name: list_costs
-- A page of statements by what they cost, most first.
-- plan: custom
SELECT
    domain, query_id, calls::bigint, total_us::bigint, rows::bigint, blocks_hit::bigint, blocks_read::bigint,
    temp_bytes::bigint, wal_bytes::bigint, text, queries, methods, source, weight::text
FROM ({cost}) AS cost
WHERE (%(method)s::text IS NULL OR %(method)s = ANY(methods))
    AND (%(last_weight)s::numeric IS NULL OR (-weight, domain, query_id) > (
        -%(last_weight)s::numeric, %(last_domain)s::text, %(last_query_id)s::bigint
    ))
ORDER BY -weight, domain, query_id
LIMIT %(limit)s;

-- name: reset
-- Forgets what was counted, of one domain or of all.
DELETE FROM admin.statement_deltas WHERE %(domain)s::text IS NULL OR domain = %(domain)s;

-- name: purge_deltas
-- Removes what is older than is kept.
DELETE FROM admin.statement_deltas
WHERE taken_at IN (
    SELECT DISTINCT taken_at FROM admin.statement_deltas
    WHERE taken_at < now() - make_interval(secs => %(kept)s)
    LIMIT %(limit)s
);

-- name: purge_series
-- Removes counters that PostgreSQL has not shown for longer than that. Those it shows are seen anew every day.
DELETE FROM admin.statement_series WHERE seen_at < now() - make_interval(secs => %(kept)s);

-- name: purge_statements
-- Removes texts that nothing is counted of.
DELETE FROM admin.statements AS statement
WHERE NOT EXISTS (
    SELECT FROM admin.statement_series AS series
    WHERE series.domain = statement.domain AND series.query_id = statement.query_id
) AND NOT EXISTS (
    SELECT FROM admin.statement_deltas AS delta
    WHERE delta.domain = statement.domain AND delta.query_id = statement.query_id
);
