-- The SQL of namespaces.

-- fragment: columns
-- What makes a Namespace, in the order of its fields.
name, id::text, durable, sensitive, default_ttl, default_stale_time, max_entries, max_bytes, max_value_bytes, indexes,
version, create_time, update_time

-- name: get
-- Namespaces by name.
SELECT {columns} FROM cache.namespace WHERE name = ANY(%(names)s::text[]);

-- name: list
-- A page of namespaces by name.
SELECT {columns} FROM cache.namespace WHERE %(after)s::text IS NULL OR name > %(after)s ORDER BY name LIMIT %(limit)s;

-- name: create
-- Creates a namespace.
WITH made AS (
    INSERT INTO cache.namespace (
        name, id, durable, sensitive, default_ttl, default_stale_time, max_entries, max_bytes, max_value_bytes, indexes,
        create_time, update_time
    )
    VALUES (
        %(name)s, %(id)s::uuid, %(durable)s, %(sensitive)s, %(default_ttl)s, %(default_stale_time)s, %(max_entries)s,
        %(max_bytes)s, %(max_value_bytes)s, %(indexes)s::jsonb, now(), now()
    )
    RETURNING *
), counted AS (
    INSERT INTO cache.usage (namespace_id, entries, bytes, is_base) SELECT made.id, 0, 0, true FROM made
)
SELECT {columns} FROM made;

-- name: update
-- Changes the named fields of a namespace that, when a version is given, is at that version.
UPDATE cache.namespace
SET default_ttl = CASE WHEN 'default_ttl' = ANY(%(fields)s) THEN %(default_ttl)s ELSE default_ttl END,
    default_stale_time = CASE WHEN 'default_stale_time' = ANY(%(fields)s) THEN %(default_stale_time)s
        ELSE default_stale_time END,
    max_entries = CASE WHEN 'max_entries' = ANY(%(fields)s) THEN %(max_entries)s ELSE max_entries END,
    max_bytes = CASE WHEN 'max_bytes' = ANY(%(fields)s) THEN %(max_bytes)s ELSE max_bytes END,
    max_value_bytes = CASE WHEN 'max_value_bytes' = ANY(%(fields)s) THEN %(max_value_bytes)s ELSE max_value_bytes END,
    version = version + 1,
    update_time = now()
WHERE name = %(name)s AND version = COALESCE(%(version)s, version)
RETURNING {columns};

-- name: delete
-- Deletes a namespace; its entries belong to nobody from then on.
DELETE FROM cache.namespace
WHERE name = %(name)s AND version = COALESCE(%(version)s, version)
RETURNING {columns};
