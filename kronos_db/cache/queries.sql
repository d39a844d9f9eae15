-- The SQL of entries. Keys, and what goes with them, come as one text each that is taken apart here: psycopg would look
-- at every item. Whoever changes entries locks them in the order of their keys, so that no two wait for each other.

-- fragment: invalidated
-- Whether a tag of `entry` was invalidated since its base was drawn.
EXISTS (
    SELECT FROM cache.tag
    WHERE tag.namespace_id = entry.namespace_id AND tag.tag = ANY(entry.tags) AND tag.sequence > entry.base
)

-- fragment: current
-- Whether there is an entry, and it is neither over nor invalidated.
(entry.version > 0 AND entry.fresh_until > now() AND NOT {invalidated})

-- fragment: columns
-- What makes an Entry, in the order of its fields.
entry.key, entry.version, entry.tags, NULLIF(entry.fresh_until, 'infinity') AS expire_time, entry.update_time, entry.value

-- name: get
-- Entries by namespace and key; with the seconds that they have left, and whether it is time to note that they are used.
SELECT asked.place, {columns}, EXTRACT(EPOCH FROM NULLIF(entry.fresh_until, 'infinity') - now())::float8,
    entry.used_time < now() - interval '1 minute'
FROM unnest(%(namespace_ids)s::uuid[], string_to_array(%(keys)s, E'\x1f'))
    WITH ORDINALITY AS asked (namespace_id, key, place)
JOIN cache.entry AS entry
    ON entry.durable = %(durable)s AND entry.namespace_id = asked.namespace_id AND entry.key = asked.key
WHERE {current};

-- name: use
-- Notes that entries of the memory part are used, which keeps them from giving way.
UPDATE cache.entry AS entry SET used_time = now()
FROM unnest(%(namespace_ids)s::uuid[], string_to_array(%(keys)s, E'\x1f')) AS asked (namespace_id, key)
WHERE entry.durable = false AND entry.namespace_id = asked.namespace_id AND entry.key = asked.key
    AND entry.used_time < now() - interval '1 minute';

-- fragment: new
-- The entries that a call wants stored.
new AS (
    SELECT item.key, substr(%(values)s::bytea, start, bytes) AS value,
        COALESCE(string_to_array(item.tags, E'\x1e'), '{}') AS tags,
        octet_length(item.key) + bytes + COALESCE(octet_length(item.tags), 0) + 128 AS size,
        COALESCE(now() + make_interval(secs => ttl), 'infinity') AS fresh_until,
        make_interval(secs => stale) AS stale, expected, indexed::text[] AS indexed, lease_id, lease_base
    FROM unnest(
        string_to_array(%(keys)s, E'\x1f'), %(starts)s::integer[], %(sizes)s::integer[],
        string_to_array(%(tags)s, E'\x1f'), %(ttls)s::float8[], %(stales)s::float8[], %(expected)s::bigint[],
        %(indexed)s::text[], %(lease_ids)s::uuid[], %(lease_bases)s::bigint[]
    ) AS item (key, start, bytes, tags, ttl, stale, expected, indexed, lease_id, lease_base)
), drawn AS MATERIALIZED (
    SELECT nextval('cache.version') AS number
)

-- fragment: insert_columns
-- The columns of a row that is put.
durable, namespace_id, key, version, base, fresh_until, stale_until, update_time, used_time, size, grown, appeared,
expected, tags, indexed, value

-- fragment: insert_values
-- And their values.
%(durable)s, %(namespace_id)s::uuid, new.key, number, number, new.fresh_until, new.fresh_until + new.stale, now(), now(),
new.size, new.size, 1, new.expected, new.tags, new.indexed, new.value

-- fragment: replace
-- Puts an entry in the place of another, or of a lease.
ON CONFLICT (durable, namespace_id, key) DO UPDATE SET
    version = EXCLUDED.version, base = EXCLUDED.base, fresh_until = EXCLUDED.fresh_until,
    stale_until = EXCLUDED.stale_until, update_time = EXCLUDED.update_time, used_time = EXCLUDED.used_time,
    lease_id = NULL, lease_base = NULL, lease_until = NULL, size = EXCLUDED.size, grown = EXCLUDED.size - entry.size,
    appeared = CASE WHEN entry.version = 0 THEN 1 ELSE 0 END, tags = EXCLUDED.tags, indexed = EXCLUDED.indexed,
    value = EXCLUDED.value

-- fragment: counted
-- Counts what was written.
counted AS (
    INSERT INTO cache.usage (namespace_id, entries, bytes)
    SELECT %(namespace_id)s::uuid, sum(appeared), sum(grown) FROM written HAVING count(*) > 0
)

-- fragment: reindexed
-- Brings the index of what was written up to date; `before` has what it was. A value that stays is left alone.
unindexed AS (
    DELETE FROM cache.entry_index AS item
    USING written JOIN before ON before.key = written.key
        CROSS JOIN LATERAL unnest(before.indexed) WITH ORDINALITY AS old (value, number)
    WHERE item.durable = %(durable)s AND item.namespace_id = %(namespace_id)s::uuid AND item.number = old.number
        AND item.value = old.value AND item.key = written.key
        AND written.indexed[old.number] IS DISTINCT FROM old.value
), added AS (
    INSERT INTO cache.entry_index (durable, namespace_id, number, value, key)
    SELECT %(durable)s, %(namespace_id)s::uuid, now.number, now.value, written.key
    FROM written CROSS JOIN LATERAL unnest(written.indexed) WITH ORDINALITY AS now (value, number)
    WHERE now.value IS NOT NULL
    ON CONFLICT DO NOTHING
)

-- name: put
-- Puts entries of a namespace without indexes, whatever there is. All of a call have one version.
WITH {new}, written AS (
    INSERT INTO cache.entry AS entry ({insert_columns})
    SELECT {insert_values} FROM new CROSS JOIN drawn ORDER BY new.key
    {replace}
    RETURNING version, grown, appeared
), {counted}
SELECT max(version) FROM written;

-- name: put_checked
-- Puts entries whose expected version is the current one, and indexes them. What is there is locked first, so that
-- none whose entry has just gone is put anew.
WITH {new}, before AS (
    SELECT entry.key, entry.version, entry.indexed, {current} AS is_current
    FROM new JOIN cache.entry AS entry ON entry.key = new.key
    WHERE entry.durable = %(durable)s AND entry.namespace_id = %(namespace_id)s::uuid
    ORDER BY entry.key
    FOR UPDATE OF entry
), written AS (
    INSERT INTO cache.entry AS entry ({insert_columns})
    SELECT {insert_values}
    FROM new LEFT JOIN before ON before.key = new.key CROSS JOIN drawn
    WHERE COALESCE(new.expected, 0) = 0 OR before.key IS NOT NULL
    ORDER BY new.key
    {replace}
    WHERE EXCLUDED.expected IS NULL OR CASE WHEN {current} THEN entry.version ELSE 0 END = EXCLUDED.expected
    RETURNING key, version, indexed, grown, appeared
), {counted}, {reindexed}
SELECT new.key, written.version, CASE WHEN before.is_current THEN before.version END
FROM new LEFT JOIN written ON written.key = new.key LEFT JOIN before ON before.key = new.key;

-- name: fill
-- Stores values under their leases: as long as they are held, and no tag was invalidated since they were given.
WITH {new}, before AS (
    SELECT entry.key, entry.indexed
    FROM new JOIN cache.entry AS entry ON entry.key = new.key
    WHERE entry.durable = %(durable)s AND entry.namespace_id = %(namespace_id)s::uuid
        AND entry.lease_id = new.lease_id AND entry.lease_base = new.lease_base AND entry.lease_until > now()
        AND NOT EXISTS (
            SELECT FROM cache.tag
            WHERE tag.namespace_id = %(namespace_id)s::uuid AND tag.tag = ANY(entry.tags || new.tags)
                AND tag.sequence > new.lease_base
        )
    ORDER BY entry.key
    FOR UPDATE OF entry
), written AS (
    UPDATE cache.entry AS entry SET
        version = number, base = entry.lease_base, fresh_until = new.fresh_until,
        stale_until = new.fresh_until + new.stale, update_time = now(), used_time = now(), lease_id = NULL,
        lease_base = NULL, lease_until = NULL, size = new.size, grown = new.size - entry.size,
        appeared = CASE WHEN entry.version = 0 THEN 1 ELSE 0 END, tags = new.tags, indexed = new.indexed,
        value = new.value
    FROM before JOIN new ON new.key = before.key CROSS JOIN drawn
    WHERE entry.durable = %(durable)s AND entry.namespace_id = %(namespace_id)s::uuid AND entry.key = before.key
        AND entry.lease_id = new.lease_id AND entry.lease_base = new.lease_base
    RETURNING entry.key, entry.version, entry.indexed, entry.grown, entry.appeared
), {counted}, {reindexed}
SELECT key, version FROM written;

-- name: delete
-- Deletes entries whose expected version is the current one, and with their rows the leases of their keys.
WITH asked AS (
    SELECT key, expected
    FROM unnest(string_to_array(%(keys)s, E'\x1f'), %(expected)s::bigint[]) AS item (key, expected)
), before AS (
    SELECT entry.key, CASE WHEN {current} THEN entry.version ELSE 0 END AS version
    FROM asked JOIN cache.entry AS entry ON entry.key = asked.key
    WHERE entry.durable = %(durable)s AND entry.namespace_id = %(namespace_id)s::uuid
    ORDER BY entry.key
    FOR UPDATE OF entry
), gone AS (
    DELETE FROM cache.entry AS entry
    USING before JOIN asked ON asked.key = before.key
    WHERE entry.durable = %(durable)s AND entry.namespace_id = %(namespace_id)s::uuid AND entry.key = before.key
        AND (asked.expected IS NULL OR asked.expected = CASE WHEN {current} THEN entry.version ELSE 0 END)
    RETURNING entry.key, entry.version, entry.size, entry.indexed
), counted AS (
    INSERT INTO cache.usage (namespace_id, entries, bytes)
    SELECT %(namespace_id)s::uuid, -count(*), -sum(size) FROM gone WHERE version > 0 HAVING count(*) > 0
), unindexed AS (
    DELETE FROM cache.entry_index AS item
    USING gone CROSS JOIN LATERAL unnest(gone.indexed) WITH ORDINALITY AS old (value, number)
    WHERE item.durable = %(durable)s AND item.namespace_id = %(namespace_id)s::uuid AND item.number = old.number
        AND item.value = old.value AND item.key = gone.key
)
SELECT asked.key, COALESCE(before.version, 0), gone.key IS NOT NULL
FROM asked LEFT JOIN before ON before.key = asked.key LEFT JOIN gone ON gone.key = asked.key;

-- name: touch
-- Gives entries a new time to live.
WITH before AS (
    SELECT entry.key
    FROM unnest(string_to_array(%(keys)s, E'\x1f')) AS asked (key)
    JOIN cache.entry AS entry ON entry.key = asked.key
    WHERE entry.durable = %(durable)s AND entry.namespace_id = %(namespace_id)s::uuid
    ORDER BY entry.key
    FOR UPDATE OF entry
)
UPDATE cache.entry AS entry SET
    fresh_until = COALESCE(now() + make_interval(secs => %(ttl)s::float8), 'infinity'),
    stale_until = COALESCE(now() + make_interval(secs => %(ttl)s::float8), 'infinity')
        + make_interval(secs => %(stale)s::float8),
    used_time = now()
FROM before
WHERE entry.durable = %(durable)s AND entry.namespace_id = %(namespace_id)s::uuid AND entry.key = before.key
    AND {current}
RETURNING entry.key;

-- name: invalidate_tags
-- Makes every entry with one of the tags missing, by one row for each tag.
INSERT INTO cache.tag AS old (namespace_id, tag, sequence, update_time)
SELECT %(namespace_id)s::uuid, asked.tag, nextval('cache.version'), now()
FROM (SELECT tag FROM unnest(string_to_array(%(tags)s, E'\x1f')) AS item (tag) ORDER BY tag COLLATE "C") AS asked
ON CONFLICT (namespace_id, tag) DO UPDATE
    SET sequence = GREATEST(old.sequence, EXCLUDED.sequence), update_time = EXCLUDED.update_time;

-- name: lease
-- Gives leases for keys without a current entry that nobody holds one for, and tells of all what there is. Who asks again
-- under the id of a lease that he holds gets that. The number is drawn before the caller reads its source.
WITH asked AS (
    SELECT namespace_id, key, lease_id, seconds
    FROM unnest(
        %(namespace_ids)s::uuid[], string_to_array(%(keys)s, E'\x1f'), %(lease_ids)s::uuid[], %(seconds)s::float8[]
    ) AS item (namespace_id, key, lease_id, seconds)
), taken AS (
    INSERT INTO cache.entry AS entry (
        durable, namespace_id, key, version, base, fresh_until, stale_until, update_time, used_time, lease_id, lease_base,
        lease_until, size, grown, appeared, tags, value
    )
    SELECT %(durable)s, namespace_id, key, 0, 0, 'epoch', 'epoch', now(), now(), lease_id,
        nextval('cache.version'), now() + make_interval(secs => seconds), 0, 0, 0, '{}', ''
    FROM (SELECT * FROM asked ORDER BY namespace_id, key COLLATE "C") AS sorted
    ON CONFLICT (durable, namespace_id, key) DO UPDATE SET
        lease_base = CASE WHEN entry.lease_id = EXCLUDED.lease_id THEN entry.lease_base ELSE EXCLUDED.lease_base END,
        lease_id = EXCLUDED.lease_id, lease_until = EXCLUDED.lease_until
    WHERE NOT {current}
        AND (entry.lease_id IS NULL OR entry.lease_until <= now() OR entry.lease_id = EXCLUDED.lease_id)
    RETURNING namespace_id, key, lease_base
), found AS (
    SELECT {columns}, entry.namespace_id, {current} AS is_current,
        entry.version > 0 AND entry.stale_until > now() AND NOT {invalidated} AS is_servable,
        EXTRACT(EPOCH FROM entry.lease_until - now())::float8 AS lease_left
    FROM asked JOIN cache.entry AS entry
        ON entry.durable = %(durable)s AND entry.namespace_id = asked.namespace_id AND entry.key = asked.key
)
SELECT asked.namespace_id::text, asked.key, taken.lease_base, COALESCE(found.is_current, false),
    COALESCE(found.is_servable, false),
    found.lease_left, found.version, found.tags, found.expire_time, found.update_time, found.value
FROM asked
LEFT JOIN taken ON taken.namespace_id = asked.namespace_id AND taken.key = asked.key
LEFT JOIN found ON found.namespace_id = asked.namespace_id AND found.key = asked.key;

-- name: lease_state
-- What `lease` would find, without taking any.
SELECT {columns}, {current}, entry.version > 0 AND entry.stale_until > now() AND NOT {invalidated},
    CASE WHEN entry.lease_until > now() THEN EXTRACT(EPOCH FROM entry.lease_until - now())::float8 END
FROM cache.entry AS entry
WHERE entry.durable = %(durable)s AND entry.namespace_id = %(namespace_id)s::uuid
    AND entry.key = ANY(string_to_array(%(keys)s, E'\x1f'));

-- name: abandon
-- Gives leases back.
UPDATE cache.entry AS entry SET lease_id = NULL, lease_base = NULL, lease_until = NULL
FROM (
    SELECT held.key, asked.lease_id, asked.lease_base
    FROM unnest(string_to_array(%(keys)s, E'\x1f'), %(lease_ids)s::uuid[], %(lease_bases)s::bigint[])
        AS asked (key, lease_id, lease_base)
    JOIN cache.entry AS held
        ON held.durable = %(durable)s AND held.namespace_id = %(namespace_id)s::uuid AND held.key = asked.key
    ORDER BY held.key
    FOR UPDATE OF held
) AS asked
WHERE entry.durable = %(durable)s AND entry.namespace_id = %(namespace_id)s::uuid AND entry.key = asked.key
    AND entry.lease_id = asked.lease_id AND entry.lease_base = asked.lease_base
RETURNING entry.key;

-- fragment: in_index
-- Which index a query is for.
item.durable = %(durable)s AND item.namespace_id = %(namespace_id)s::uuid AND item.number = %(number)s::smallint

-- fragment: index_entries
-- Rows of the index with their entries, if these bear them out. OFFSET 0 keeps them in the order of the index: taken
-- apart, the planner would expect so few that it would rather find all and sort them.
cache.entry_index AS item CROSS JOIN LATERAL (
    SELECT {columns}
    FROM cache.entry AS entry
    WHERE entry.durable = %(durable)s AND entry.namespace_id = %(namespace_id)s::uuid AND entry.key = item.key
        AND entry.indexed[item.number] = item.value AND {current}
    OFFSET 0
) AS entry

-- name: query_ascending
-- A page of entries by an index, from a value and key on until a value. Whatever is asked for is such a range, so that one
-- plan fits all.
SELECT item.value, entry.*
FROM {index_entries}
WHERE {in_index} AND (item.value, item.key) > (%(after_value)s::text, %(after_key)s::text) AND item.value < %(high)s::text
ORDER BY item.value, item.key
LIMIT %(limit)s;

-- name: query_descending
-- A page of entries by an index, from a value and key down to a value.
SELECT item.value, entry.*
FROM {index_entries}
WHERE {in_index} AND (item.value, item.key) < (%(after_value)s::text, %(after_key)s::text) AND item.value >= %(low)s::text
ORDER BY item.value DESC, item.key DESC
LIMIT %(limit)s;
