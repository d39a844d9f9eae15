-- The SQL of the routes domain.

-- fragment: route
-- What makes a Route, in the order of its fields.
id::text, name, spec, version, create_time, update_time

-- fragment: quota
-- What makes a Quota, in the order of its fields.
id::text, name, kind, rule, keys, shadow, failure, generation, version, create_time, update_time

-- name: next_version
-- Takes the next version of the table, the first statement of each change of it: changes go one by one.
UPDATE routes.route_table SET version = version + 1 RETURNING version;

-- name: count_routes
-- How many routes there are.
SELECT count(*) FROM routes.routes;

-- name: count_quotas
-- How many quotas there are.
SELECT count(*) FROM routes.quotas;

-- name: get_route_by_id
-- One route by id.
SELECT {route} FROM routes.routes WHERE id = %(key)s::uuid;

-- name: get_route_by_name
-- One route by name.
SELECT {route} FROM routes.routes WHERE name = %(key)s::text;

-- name: list_routes
-- A page of routes by name. plan: custom.
SELECT {route}
FROM routes.routes
WHERE name > %(after)s::text
    AND name ^@ %(name_prefix)s::text
    AND (%(host)s::text IS NULL OR host = %(host)s)
    AND (%(quota)s::text IS NULL OR quotas ? %(quota)s)
ORDER BY name
LIMIT %(limit)s;

-- name: missing_quotas
-- Those of the names that no quota has, in their order.
SELECT wanted.name
FROM unnest(%(names)s::text[]) WITH ORDINALITY AS wanted (name, place)
WHERE NOT EXISTS (SELECT FROM routes.quotas WHERE quotas.name = wanted.name)
ORDER BY wanted.place;

-- name: find_rival
-- A route that matches requests which this one matches too, and goes neither before it nor after it but for its age.
SELECT name
FROM routes.routes
WHERE md5(shape) = md5(%(shape)s::text) AND shape = %(shape)s
    AND host IS NOT DISTINCT FROM %(spec)s::jsonb ->> 'host'
    AND headers = %(headers)s::text
    AND COALESCE(spec -> 'priority', '0') = COALESCE(%(spec)s::jsonb -> 'priority', '0')
    AND CASE WHEN spec -> 'methods' IS NULL THEN %(spec)s::jsonb -> 'methods' IS NULL
        ELSE spec -> 'methods' ?| ARRAY(SELECT jsonb_array_elements_text(%(spec)s::jsonb -> 'methods')) END
    AND id <> %(id)s::uuid
ORDER BY name
LIMIT 1;

-- name: create_route
-- Creates a route; none when another has its name or id.
INSERT INTO routes.routes (id, name, spec, shape, headers, table_version, create_time, update_time)
VALUES (%(id)s, %(name)s, %(spec)s, %(shape)s, %(headers)s, %(table_version)s, now(), now())
ON CONFLICT DO NOTHING
RETURNING {route};

-- name: lock_route
-- One route by id, locked until the end of the transaction.
SELECT {route} FROM routes.routes WHERE id = %(id)s::uuid FOR UPDATE;

-- name: update_route
-- Gives a route other contents.
UPDATE routes.routes
SET spec = %(spec)s, shape = %(shape)s, headers = %(headers)s, version = version + 1,
    table_version = %(table_version)s, update_time = now()
WHERE id = %(id)s::uuid
RETURNING {route};

-- name: delete_route
-- Removes a route.
DELETE FROM routes.routes WHERE id = %(id)s::uuid RETURNING {route};

-- name: delete_routes_but
-- Removes all routes that are not named.
DELETE FROM routes.routes
WHERE NOT EXISTS (
    SELECT FROM jsonb_array_elements_text(%(names)s::text::jsonb) AS kept (name) WHERE kept.name = routes.name
)
RETURNING {route};

-- name: apply_routes
-- Writes routes by their names, and passes over those that are the same already. Returns the names of those that are new,
-- and of the others that were written.
WITH written AS (
    INSERT INTO routes.routes AS old (id, name, spec, shape, headers, table_version, create_time, update_time)
    SELECT (new ->> 0)::uuid, new ->> 1, new -> 2, new ->> 3, new ->> 4, %(table_version)s::bigint, now(), now()
    FROM jsonb_array_elements(%(routes)s::text::jsonb) AS new
    ON CONFLICT (name) DO UPDATE
    SET spec = EXCLUDED.spec, shape = EXCLUDED.shape, headers = EXCLUDED.headers, version = old.version + 1,
        table_version = EXCLUDED.table_version, update_time = EXCLUDED.update_time
    WHERE old.spec <> EXCLUDED.spec
    RETURNING xmax = 0 AS is_new, name
)
SELECT COALESCE(jsonb_agg(name) FILTER (WHERE is_new), '[]'), COALESCE(jsonb_agg(name) FILTER (WHERE NOT is_new), '[]')
FROM written;

-- name: applied
-- Of each route that was written at a version of the table what those who watch are told: as `_note_route` tells it.
SELECT
    id::text,
    jsonb_build_object(
        'event', CASE WHEN version = 1 THEN 'created' ELSE 'updated' END, 'table', table_version, 'name', name,
        'spec', spec, 'version', version, 'created', create_time, 'updated', update_time
    )
FROM routes.routes
WHERE table_version = %(table_version)s::bigint;

-- name: note_removed
-- Remembers what was removed, for processes that know a table with it.
INSERT INTO routes.removed (id, kind, table_version)
SELECT id, %(kind)s, %(table_version)s FROM unnest(%(ids)s::uuid[]) AS gone (id);

-- name: get_quota_by_id
-- One quota by id.
SELECT {quota} FROM routes.quotas WHERE id = %(key)s::uuid;

-- name: get_quota_by_name
-- One quota by name.
SELECT {quota} FROM routes.quotas WHERE name = %(key)s::text;

-- name: list_quotas
-- A page of quotas by name. plan: custom.
SELECT {quota}
FROM routes.quotas
WHERE name > %(after)s::text AND name ^@ %(name_prefix)s::text
ORDER BY name
LIMIT %(limit)s;

-- name: create_quota
-- Creates a quota; none when another has its name or id.
INSERT INTO routes.quotas (
    id, name, kind, rule, keys, shadow, failure, table_version, create_time, update_time
)
VALUES (
    %(id)s, %(name)s, %(kind)s, %(rule)s, %(keys)s, %(shadow)s, %(failure)s, %(table_version)s, now(), now()
)
ON CONFLICT DO NOTHING
RETURNING {quota};

-- name: lock_quota
-- One quota by id, locked until the end of the transaction.
SELECT {quota} FROM routes.quotas WHERE id = %(id)s::uuid FOR UPDATE;

-- name: update_quota
-- Gives a quota other contents; all use is forgotten when the generation is another one.
UPDATE routes.quotas
SET kind = %(kind)s, rule = %(rule)s, keys = %(keys)s, shadow = %(shadow)s, failure = %(failure)s,
    generation = %(generation)s, version = version + 1, table_version = %(table_version)s, update_time = now()
WHERE id = %(id)s::uuid
RETURNING {quota};

-- name: delete_quota
-- Removes a quota.
DELETE FROM routes.quotas WHERE id = %(id)s::uuid RETURNING {quota};

-- name: find_user_of_quota
-- A route that names the quota.
WITH users AS MATERIALIZED (SELECT name FROM routes.routes WHERE quotas ? %(name)s::text)
SELECT min(name) FROM users HAVING count(*) > 0;

-- name: table_since
-- What changed since a version of the table: its version now, whether what was removed since is remembered, and then
-- routes (kind 0), quotas (1) and what was removed (2). Specs and rules are text: psycopg's way to read JSON is longer. One
-- row at least.
SELECT t.version, t.forgotten <= %(since)s::bigint, c.kind, c.id, c.name, c.spec, c.version, c.create_time,
    c.update_time, c.quota_kind, c.keys, c.shadow, c.failure, c.generation
FROM routes.route_table AS t
LEFT JOIN LATERAL (
    SELECT 0 AS kind, id::text, name, spec::text, version, create_time, update_time, NULL::smallint AS quota_kind,
        NULL::smallint[] AS keys, NULL::boolean AS shadow, NULL::smallint AS failure, NULL::bigint AS generation
    FROM routes.routes
    WHERE table_version > %(since)s
    UNION ALL
    SELECT 1, id::text, name, rule::text, version, create_time, update_time, kind, keys, shadow, failure, generation
    FROM routes.quotas
    WHERE table_version > %(since)s
    UNION ALL
    SELECT 2, id::text, kind, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
    FROM routes.removed
    WHERE table_version > %(since)s
) AS c ON true;

-- name: forget_removed
-- Forgets what was removed long ago, and up to which version of the table.
WITH old AS (
    DELETE FROM routes.removed
    WHERE (table_version, id) IN (
        SELECT table_version, id FROM routes.removed
        WHERE remove_time < now() - make_interval(secs => %(kept)s)
        ORDER BY remove_time LIMIT 1000
    )
    RETURNING table_version
), newest AS (
    UPDATE routes.route_table SET forgotten = GREATEST(forgotten, (SELECT max(table_version) FROM old))
    WHERE EXISTS (SELECT FROM old)
)
SELECT count(*) FROM old;

-- name: consume
-- Decides demands in one transaction; see the function for what it is given and answers. Arrays come as texts, which
-- PostgreSQL takes apart: psycopg would look at each element.
SELECT routes.consume(
    %(statement)s::uuid, %(counter_keys)s::text::uuid[], %(counter_slots)s::text::integer[],
    %(counter_expires)s::text::timestamptz[], %(demand_ids)s::text::uuid[], %(prints)s::text::uuid[],
    %(leases)s::text::uuid[], %(ends)s::text::integer[], %(item_counters)s::text::integer[],
    %(item_kinds)s::text::smallint[], %(item_limits)s::text::bigint[], %(item_costs)s::text::bigint[],
    %(item_denies)s::text::boolean[], make_interval(secs => %(remember)s::double precision), %(dry)s::boolean
);

-- name: release
-- Gives places back.
DELETE FROM routes.lease_held
WHERE lease = %(lease)s::uuid AND key = ANY(%(keys)s::text::uuid[]) AND expire_time > clock_timestamp();

-- name: reset
-- Forgets what one subject has used of a quota.
DELETE FROM routes.usage WHERE key = %(key)s::uuid;

-- name: reset_leases
-- Forgets the places that one subject holds of a quota.
DELETE FROM routes.lease_held WHERE key = %(key)s::uuid;

-- name: purge_usage
-- Removes counters that have long ended, some at a time.
DELETE FROM routes.usage
WHERE (key, slot) IN (
    SELECT key, slot FROM routes.usage WHERE expire_time < now() ORDER BY expire_time LIMIT 1000 FOR UPDATE SKIP LOCKED
);

-- name: purge_allowed
-- Removes what no repeat is expected of any more, some at a time.
DELETE FROM routes.allowed
WHERE id IN (SELECT id FROM routes.allowed WHERE expire_time < now() ORDER BY expire_time LIMIT 1000);

-- name: purge_leases
-- Removes places that were not given back.
DELETE FROM routes.lease_held WHERE expire_time < now();
