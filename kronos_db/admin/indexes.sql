-- The SQL of index advice: what a domain's own role may know of its tables, and what operators did to its indexes.

-- name: observed
-- For how long the statistics of this database have been counted, in seconds, and how many standbys read from this
-- server. Without pg_read_all_stats a role sees that there are standbys, not which.
SELECT
    extract(epoch FROM now() - coalesce(
        (SELECT stats_reset FROM pg_catalog.pg_stat_database WHERE datname = current_database()),
        pg_catalog.pg_postmaster_start_time()
    ))::float8,
    (SELECT count(*) FROM pg_catalog.pg_stat_replication)::int;

-- name: tables
-- The tables of a schema: rows as the planner knows them, bytes, rows written, and the primary key.
SELECT
    class.relname::text,
    greatest(class.reltuples, 0)::float8,
    pg_catalog.pg_relation_size(class.oid),
    coalesce(stat.n_tup_ins + stat.n_tup_upd - stat.n_tup_hot_upd, 0)::bigint,
    ARRAY(
        SELECT attribute.attname::text
        FROM pg_catalog.pg_index AS index
        CROSS JOIN unnest(index.indkey::int2[]) WITH ORDINALITY AS key (number, place)
        JOIN pg_catalog.pg_attribute AS attribute
            ON attribute.attrelid = class.oid AND attribute.attnum = key.number
        WHERE index.indrelid = class.oid AND index.indisprimary
        ORDER BY key.place
    ),
    class.relkind = 'p'
FROM pg_catalog.pg_class AS class
LEFT JOIN pg_catalog.pg_stat_all_tables AS stat ON stat.relid = class.oid
WHERE class.relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s)
    AND class.relkind IN ('r', 'p');

-- name: columns
-- The columns of the tables of a schema, with what ANALYZE found. The values as text, cut short.
SELECT
    class.relname::text,
    attribute.attname::text,
    pg_catalog.format_type(attribute.atttypid, NULL),
    attribute.attnotnull,
    stats.n_distinct::float8,
    coalesce(stats.null_frac, 0)::float8,
    coalesce(stats.avg_width, 8)::int,
    coalesce(stats.most_common_freqs::float8[], '{}'),
    coalesce(
        (SELECT array_agg(left(value, 200)) FROM unnest(stats.most_common_vals::text::text[]) AS value), '{}'
    )
FROM pg_catalog.pg_class AS class
JOIN pg_catalog.pg_attribute AS attribute
    ON attribute.attrelid = class.oid AND attribute.attnum > 0 AND NOT attribute.attisdropped
LEFT JOIN pg_catalog.pg_stats AS stats
    ON stats.schemaname = %(schema)s AND stats.tablename = class.relname AND stats.attname = attribute.attname
    AND stats.inherited = (class.relkind = 'p')
WHERE class.relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s)
    AND class.relkind IN ('r', 'p')
ORDER BY class.relname, attribute.attnum;

-- name: indexes
-- The indexes of a schema. Whoever builds one holds a lock on its table, which every role may see, other than the
-- progress. An expected size is told of btrees over columns that are not NULL and whose width is known,
-- as if pages were nine tenths full and no two keys alike: those with many like keys are smaller than that.
SELECT
    class.relname::text,
    relation.relname::text,
    pg_catalog.pg_get_indexdef(class.oid),
    method.amname::text,
    ARRAY(
        SELECT pg_catalog.pg_get_indexdef(class.oid, place, true)
            || CASE WHEN opclass.opcdefault THEN '' ELSE ' ' || opclass.opcname END
            || CASE
                WHEN attribute.attcollation = 0 OR index.indcollation[place - 1] IN (0, attribute.attcollation) THEN ''
                ELSE ' COLLATE ' || index.indcollation[place - 1]::regcollation
            END
            || CASE WHEN index.indoption[place - 1] & 1 = 1 THEN ' DESC' ELSE '' END
            || CASE WHEN index.indoption[place - 1] IN (1, 2) THEN ' NULLS OTHER' ELSE '' END
        FROM generate_series(1, index.indnkeyatts) AS place
        JOIN pg_catalog.pg_opclass AS opclass ON opclass.oid = index.indclass[place - 1]
        LEFT JOIN pg_catalog.pg_attribute AS attribute
            ON attribute.attrelid = relation.oid AND attribute.attnum = index.indkey[place - 1]
        ORDER BY place
    ),
    ARRAY(
        SELECT coalesce(attribute.attname::text, pg_catalog.pg_get_indexdef(class.oid, place, true))
        FROM generate_series(1, index.indnkeyatts) AS place
        LEFT JOIN pg_catalog.pg_attribute AS attribute
            ON attribute.attrelid = relation.oid AND attribute.attnum = index.indkey[place - 1]
            AND attribute.attnum > 0
        ORDER BY place
    ),
    ARRAY(
        SELECT pg_catalog.pg_get_indexdef(class.oid, place, true)
        FROM generate_series(index.indnkeyatts + 1, index.indnatts) AS place
    ),
    coalesce(pg_catalog.pg_get_expr(index.indpred, index.indrelid, true), ''),
    index.indisunique,
    index.indisunique OR index.indisprimary OR index.indisexclusion OR index.indisreplident OR index.indisclustered,
    EXISTS (SELECT FROM pg_catalog.pg_constraint AS made WHERE made.conindid = class.oid),
    EXISTS (
        SELECT
        FROM pg_catalog.pg_constraint AS foreign_key
        WHERE foreign_key.conrelid = relation.oid AND foreign_key.contype = 'f'
            AND foreign_key.conkey @> (index.indkey::int2[])[0:cardinality(foreign_key.conkey) - 1]
    ),
    index.indisvalid AND index.indisready,
    EXISTS (
        SELECT
        FROM pg_catalog.pg_locks AS lock
        WHERE lock.relation IN (class.oid, relation.oid)
            AND lock.mode IN ('ShareUpdateExclusiveLock', 'ShareLock', 'AccessExclusiveLock')
            AND lock.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
    ),
    class.relispartition OR class.relkind = 'I',
    coalesce(stat.idx_scan, 0)::bigint,
    pg_catalog.pg_relation_size(class.oid),
    CASE
        WHEN method.amname = 'btree' AND index.indexprs IS NULL AND class.reltuples >= 0 AND width.known THEN
            -- A line pointer and a tuple header, and each key at a multiple of eight bytes.
            (ceil(class.reltuples * (4 + 8 + width.bytes) / (8192 - 24 - 16) / 0.9) + 2)::bigint * 8192
    END
FROM pg_catalog.pg_index AS index
JOIN pg_catalog.pg_class AS class ON class.oid = index.indexrelid
JOIN pg_catalog.pg_class AS relation ON relation.oid = index.indrelid
JOIN pg_catalog.pg_am AS method ON method.oid = class.relam
LEFT JOIN pg_catalog.pg_stat_all_indexes AS stat ON stat.indexrelid = class.oid
CROSS JOIN LATERAL (
    SELECT
        coalesce(bool_and(stats.avg_width IS NOT NULL), false) AS known,
        8 * ceil(sum(coalesce(stats.avg_width, 8)) / 8.0) AS bytes
    FROM unnest(index.indkey::int2[]) AS key (number)
    LEFT JOIN pg_catalog.pg_attribute AS attribute
        ON attribute.attrelid = relation.oid AND attribute.attnum = key.number
    LEFT JOIN pg_catalog.pg_stats AS stats
        ON stats.schemaname = %(schema)s AND stats.tablename = relation.relname AND stats.attname = attribute.attname
) AS width
WHERE relation.relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s)
    AND relation.relkind IN ('r', 'p')
ORDER BY relation.relname, class.relname;

-- name: lock
-- Takes the lock under which indexes are changed, one at a time in the whole fleet; it goes with the connection.
SELECT pg_catalog.pg_try_advisory_lock(27506, 1);

-- name: unlock
-- Lets go of the scratch database.
SELECT pg_catalog.pg_advisory_unlock(27506, 1);

-- name: owns
-- Whether this role may change the indexes of a table; no row when the table is not there.
SELECT pg_catalog.pg_has_role(relowner, 'USAGE')
FROM pg_catalog.pg_class
WHERE relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s) AND relname = %(table)s;

-- name: progress
-- How far the build of an index is that a session runs: phase, share that is done of it, and for how many it waits.
SELECT
    phase,
    CASE
        WHEN blocks_total > 0 THEN blocks_done::float8 / blocks_total
        WHEN tuples_total > 0 THEN tuples_done::float8 / tuples_total
        ELSE 0
    END,
    greatest(lockers_total - lockers_done, 0)::int
FROM pg_catalog.pg_stat_progress_create_index
WHERE pid = %(pid)s;

-- name: found
-- The indexes of a table that have the name of one, or that which REINDEX gives it for the time of its work, with
-- whether they are valid; and whether somebody builds or drops an index of the table.
SELECT
    relation.relname::text,
    index.indisvalid AND index.indisready,
    EXISTS (
        SELECT
        FROM pg_catalog.pg_locks AS lock
        WHERE lock.relation = index.indrelid AND lock.mode IN ('ShareUpdateExclusiveLock', 'ShareLock')
            AND lock.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
    )
FROM pg_catalog.pg_index AS index
JOIN pg_catalog.pg_class AS relation ON relation.oid = index.indexrelid
WHERE relation.relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s)
    AND (
        relation.relname = %(index)s
        OR (
            relation.relname ~ '_cc(new|old)[0-9]*$'
            -- Long names are cut to make room for the ending.
            AND regexp_replace(relation.relname, '_cc(new|old)[0-9]*$', '') IN (
                left(%(index)s, 57), left(%(index)s, 56)
            )
        )
    );

-- name: begin_change
-- Notes that a change begins.
INSERT INTO admin.index_changes (
    id, advice_id, kind, domain, table_name, index_name, statement, undo, caller, before
) VALUES (
    %(id)s, %(advice_id)s, %(kind)s, %(domain)s, %(table)s, %(index)s, %(statement)s, %(undo)s, %(caller)s,
    %(before)s::jsonb
)
ON CONFLICT (id) DO NOTHING;

-- name: end_change
-- Notes how a change stands now.
UPDATE admin.index_changes
SET state = %(state)s, detail = %(detail)s, update_time = clock_timestamp()
WHERE id = %(id)s;

-- fragment: change
-- What makes a Change, in the order of its fields.
id::text, advice_id, kind, domain, table_name, index_name, statement, undo, caller, state, detail, before::text,
create_time, update_time

-- name: get_change
-- One change.
SELECT {change}
FROM admin.index_changes
WHERE id = %(id)s;

-- name: changes_in
-- The oldest changes in a state.
SELECT {change}
FROM admin.index_changes
WHERE state = %(state)s
ORDER BY create_time
LIMIT 100;

-- name: list_changes
-- A page of changes, the newest first.
SELECT {change}
FROM admin.index_changes
WHERE %(after)s::timestamptz IS NULL OR (create_time, id) < (%(after)s, %(after_id)s::uuid)
ORDER BY create_time DESC, id DESC
LIMIT %(limit)s;

-- name: schema_mark
-- The comment of a schema, empty without one; no row when there is no such schema.
SELECT coalesce(pg_catalog.obj_description(oid, 'pg_namespace'), '')
FROM pg_catalog.pg_namespace
WHERE nspname = %(schema)s;

-- name: sampled
-- How many rows a table had when it was last analysed.
SELECT reltuples::bigint FROM pg_catalog.pg_class WHERE oid = %(table)s::regclass;

-- name: size
-- The bytes of an index.
SELECT pg_catalog.pg_relation_size(%(index)s::regclass);
