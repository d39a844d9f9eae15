-- The SQL of what is counted, of eviction, and of what is removed in the background.

-- name: usage
-- How many entries and bytes a namespace has; null when that is to be counted anew.
SELECT CASE WHEN bool_or(is_base) THEN sum(entries)::bigint END, CASE WHEN bool_or(is_base) THEN sum(bytes)::bigint END
FROM cache.usage
WHERE namespace_id = %(namespace_id)s::uuid;

-- name: measure
-- The same, by looking at every entry.
SELECT count(*), COALESCE(sum(size), 0)::bigint
FROM cache.entry
WHERE durable = %(durable)s AND namespace_id = %(namespace_id)s::uuid AND version > 0;

-- name: sum_up
-- Makes one row of the rows of a namespace's usage.
WITH gone AS (
    DELETE FROM cache.usage WHERE namespace_id = %(namespace_id)s::uuid RETURNING entries, bytes, is_base
)
INSERT INTO cache.usage (namespace_id, entries, bytes, is_base)
SELECT %(namespace_id)s::uuid, sum(entries), sum(bytes), bool_or(is_base) FROM gone HAVING count(*) > 0;

-- name: recount
-- Counts a namespace anew when nothing is known. Exact also while others write: a row of usage and what it counts become
-- visible together.
WITH unknown AS MATERIALIZED (
    SELECT WHERE NOT EXISTS (SELECT FROM cache.usage WHERE namespace_id = %(namespace_id)s::uuid AND is_base)
), gone AS (
    DELETE FROM cache.usage WHERE namespace_id = %(namespace_id)s::uuid AND EXISTS (SELECT FROM unknown)
)
INSERT INTO cache.usage (namespace_id, entries, bytes, is_base)
SELECT %(namespace_id)s::uuid, count(*), COALESCE(sum(size), 0), true
FROM cache.entry
WHERE durable = %(durable)s AND namespace_id = %(namespace_id)s::uuid AND version > 0
    AND EXISTS (SELECT FROM unknown)
HAVING EXISTS (SELECT FROM unknown);

-- fragment: removed
-- Removes `victims`, with their rows in the index, and counts that.
gone AS (
    DELETE FROM cache.entry AS entry
    USING victims
    WHERE entry.durable = %(durable)s AND entry.namespace_id = %(namespace_id)s::uuid AND entry.key = victims.key
    RETURNING entry.key, entry.version, entry.size, entry.indexed, victims.is_over
), counted AS (
    INSERT INTO cache.usage (namespace_id, entries, bytes)
    SELECT %(namespace_id)s::uuid, -count(*), -sum(size) FROM gone WHERE version > 0 HAVING count(*) > 0
), unindexed AS (
    DELETE FROM cache.entry_index AS item
    USING gone CROSS JOIN LATERAL unnest(gone.indexed) WITH ORDINALITY AS old (value, number)
    WHERE item.durable = %(durable)s AND item.namespace_id = %(namespace_id)s::uuid AND item.number = old.number
        AND item.value = old.value AND item.key = gone.key
)

-- fragment: over
-- Whether `entry` is of no more use: as an entry, as a stale value, and as a lease.
(entry.lease_until IS NULL OR entry.lease_until < now())
    AND (entry.stale_until <= now() OR EXISTS (
        SELECT FROM cache.tag
        WHERE tag.namespace_id = entry.namespace_id AND tag.tag = ANY(entry.tags) AND tag.sequence > entry.base
    ))

-- name: evict
-- Looks at the next entries behind a key, and removes those that are over and, of the others, the least recently used.
-- Those that somebody is changing are passed over. Returns the last key, how many were looked at, and how many entries and
-- bytes were removed, how many of these were over.
WITH seen AS MATERIALIZED (
    SELECT entry.key, entry.used_time, {over} AS is_over
    FROM cache.entry AS entry
    WHERE entry.durable = %(durable)s AND entry.namespace_id = %(namespace_id)s::uuid AND entry.key > %(after)s
    ORDER BY entry.key
    LIMIT %(limit)s
), chosen AS (
    SELECT key, is_over FROM seen ORDER BY is_over DESC, used_time LIMIT %(most)s
), victims AS (
    SELECT entry.key, chosen.is_over
    FROM chosen JOIN cache.entry AS entry
        ON entry.durable = %(durable)s AND entry.namespace_id = %(namespace_id)s::uuid AND entry.key = chosen.key
    WHERE entry.lease_until IS NULL OR entry.lease_until < now()
    ORDER BY entry.key
    FOR UPDATE OF entry SKIP LOCKED
), {removed}
SELECT (SELECT max(key) FROM seen), (SELECT count(*) FROM seen), count(*) FILTER (WHERE version > 0),
    COALESCE(sum(size), 0), count(*) FILTER (WHERE is_over AND version > 0)
FROM gone;

-- name: sweep
-- Looks at the next entries behind a key, and removes those that are over; returns what `evict` does.
WITH seen AS MATERIALIZED (
    SELECT entry.key, {over} AS is_over
    FROM cache.entry AS entry
    WHERE entry.durable = %(durable)s AND entry.namespace_id = %(namespace_id)s::uuid AND entry.key > %(after)s
    ORDER BY entry.key
    LIMIT %(limit)s
), victims AS (
    SELECT entry.key, true AS is_over
    FROM seen JOIN cache.entry AS entry
        ON entry.durable = %(durable)s AND entry.namespace_id = %(namespace_id)s::uuid AND entry.key = seen.key
    WHERE seen.is_over AND {over}
    ORDER BY entry.key
    FOR UPDATE OF entry SKIP LOCKED
), {removed}
SELECT (SELECT max(key) FROM seen), (SELECT count(*) FROM seen), count(*) FILTER (WHERE version > 0),
    COALESCE(sum(size), 0), count(*) FILTER (WHERE version > 0)
FROM gone;

-- name: forget_tags
-- Removes invalidations that no entry is to be compared with any more. They are so old that neither a lease nor a write
-- from before them can come.
WITH old AS MATERIALIZED (
    SELECT tag, sequence FROM cache.tag
    WHERE namespace_id = %(namespace_id)s::uuid AND update_time < now() - make_interval(secs => %(seconds)s::float8)
    ORDER BY tag
    LIMIT %(limit)s
)
DELETE FROM cache.tag AS forgotten
USING old
WHERE forgotten.namespace_id = %(namespace_id)s::uuid AND forgotten.tag = old.tag AND forgotten.sequence = old.sequence
    AND old.tag NOT IN (
        SELECT unnest(entry.tags) FROM cache.entry
        WHERE entry.durable = %(durable)s AND entry.namespace_id = %(namespace_id)s::uuid
            AND entry.base < (SELECT max(sequence) FROM old)
    );

-- name: orphans
-- A namespace id of which there are rows and no namespace, in one of the two parts; null when there is none. Walks from
-- id to id.
WITH RECURSIVE ids AS (
    (SELECT namespace_id FROM cache.entry WHERE durable = %(durable)s ORDER BY namespace_id LIMIT 1)
    UNION ALL
    SELECT (
        SELECT entry.namespace_id FROM cache.entry
        WHERE entry.durable = %(durable)s AND entry.namespace_id > ids.namespace_id ORDER BY namespace_id LIMIT 1
    )
    FROM ids WHERE ids.namespace_id IS NOT NULL
)
SELECT namespace_id::text FROM ids
WHERE namespace_id IS NOT NULL AND NOT EXISTS (SELECT FROM cache.namespace WHERE id = namespace_id);

-- name: remove_orphans
-- Removes some rows of a namespace that is no more.
DELETE FROM cache.entry
WHERE durable = %(durable)s AND namespace_id = %(namespace_id)s::uuid AND key IN (
    SELECT key FROM cache.entry WHERE durable = %(durable)s AND namespace_id = %(namespace_id)s::uuid LIMIT %(limit)s
);

-- name: remove_orphaned_index
-- Removes some rows of the index of a namespace that is no more.
DELETE FROM cache.entry_index
WHERE durable = %(durable)s AND namespace_id = %(namespace_id)s::uuid AND (number, value, key) IN (
    SELECT number, value, key FROM cache.entry_index
    WHERE durable = %(durable)s AND namespace_id = %(namespace_id)s::uuid LIMIT %(limit)s
);

-- name: sweep_index
-- Looks at the next rows of an index behind one, and removes those that their entry does not bear out: two writes of one
-- new key at once may leave such a row. Returns the last row, and how many were looked at.
WITH seen AS MATERIALIZED (
    SELECT item.number, item.value, item.key
    FROM cache.entry_index AS item
    WHERE item.durable = %(durable)s AND item.namespace_id = %(namespace_id)s::uuid
        AND (item.number, item.value, item.key) > (%(number)s::smallint, %(value)s, %(key)s)
    ORDER BY item.number, item.value, item.key
    LIMIT %(limit)s
), untrue AS (
    SELECT seen.number, seen.value, seen.key
    FROM seen LEFT JOIN cache.entry AS entry
        ON entry.durable = %(durable)s AND entry.namespace_id = %(namespace_id)s::uuid AND entry.key = seen.key
    WHERE entry.indexed[seen.number] IS DISTINCT FROM seen.value
), gone AS (
    DELETE FROM cache.entry_index AS item
    USING untrue
    WHERE item.durable = %(durable)s AND item.namespace_id = %(namespace_id)s::uuid AND item.number = untrue.number
        AND item.value = untrue.value AND item.key = untrue.key
)
SELECT number, value, key, (SELECT count(*) FROM seen) FROM seen ORDER BY number DESC, value DESC, key DESC LIMIT 1;

-- name: remove_orphaned_tags
-- Removes what else is left of namespaces that are no more.
WITH usage AS (
    DELETE FROM cache.usage WHERE NOT EXISTS (SELECT FROM cache.namespace WHERE id = usage.namespace_id)
), stat AS (
    DELETE FROM cache.stat WHERE NOT EXISTS (SELECT FROM cache.namespace WHERE id = stat.namespace_id)
), key_use AS (
    DELETE FROM cache.key_use WHERE NOT EXISTS (SELECT FROM cache.namespace WHERE id = key_use.namespace_id)
)
DELETE FROM cache.tag WHERE NOT EXISTS (SELECT FROM cache.namespace WHERE id = tag.namespace_id);

-- name: count
-- Adds to what was counted.
INSERT INTO cache.stat AS old (namespace_id, hits, misses, puts, evictions, expirations)
SELECT * FROM unnest(
    %(namespace_ids)s::uuid[], %(hits)s::bigint[], %(misses)s::bigint[], %(puts)s::bigint[], %(evictions)s::bigint[],
    %(expirations)s::bigint[]
) AS item (namespace_id, hits, misses, puts, evictions, expirations)
ORDER BY namespace_id
ON CONFLICT (namespace_id) DO UPDATE SET
    hits = old.hits + EXCLUDED.hits, misses = old.misses + EXCLUDED.misses, puts = old.puts + EXCLUDED.puts,
    evictions = old.evictions + EXCLUDED.evictions, expirations = old.expirations + EXCLUDED.expirations;

-- name: count_uses
-- Adds to how often keys were asked for.
INSERT INTO cache.key_use AS old (namespace_id, key, uses)
SELECT * FROM unnest(%(namespace_ids)s::uuid[], %(keys)s::text[], %(uses)s::bigint[]) AS item (namespace_id, key, uses)
ORDER BY namespace_id, key
ON CONFLICT (namespace_id, key) DO UPDATE SET uses = old.uses + EXCLUDED.uses;

-- name: forget_uses
-- Lets what was asked for long ago count less.
WITH rare AS (
    DELETE FROM cache.key_use WHERE namespace_id = %(namespace_id)s::uuid AND uses < 2
)
UPDATE cache.key_use SET uses = uses / 2 WHERE namespace_id = %(namespace_id)s::uuid AND uses >= 2;

-- name: stat
-- What was counted for a namespace.
SELECT hits, misses, puts, evictions, expirations FROM cache.stat WHERE namespace_id = %(namespace_id)s::uuid;

-- name: top_keys
-- The keys that are asked for most.
SELECT key, uses FROM cache.key_use WHERE namespace_id = %(namespace_id)s::uuid ORDER BY uses DESC, key LIMIT %(limit)s;
