-- The SQL of checks: what users hold, and what roles give.

-- fragment: in_force
-- Whether a grant has not expired, by the clock of the database.
(grants.expire_time IS NULL OR grants.expire_time > now())

-- fragment: state
-- The state of a user in one letter: see `State` of `holdings.py`.
CASE WHEN users.delete_time IS NOT NULL THEN 'D' WHEN users.state = 1 THEN 'A' ELSE 'S' END

-- fragment: known
-- A bit for the number of each role that the asking process knows. In a query of its own, as is what is asked for below:
-- the planner is not to see it. Else a plan for just these values looks cheaper than the one that is prepared, and each
-- call is planned anew, which costs more than all the rest of it.
(SELECT %(known)s::bytea)

-- fragment: unknown
-- Whether the asking process does not know a role.
CASE WHEN number < 8 * length({known}) THEN get_bit({known}, number) = 0 ELSE true END

-- fragment: nodes
-- What is to be known of a role, in the order of the fields of Node.
roles.number, roles.id::text, roles.name, ARRAY(SELECT parent FROM users.role_parents WHERE role = roles.number),
roles.permissions

-- name: holdings
-- What users hold, a row for each that exists: its state, its grants as numbers of roles and scopes in turns, and for
-- how many seconds that is true. And a row for each role that gives them anything and is not known yet, whatever the depth.
WITH RECURSIVE held AS MATERIALIZED (
    SELECT grants.user_id, grants.role, grants.scope, grants.expire_time
    FROM users.grants
    WHERE grants.user_id = ANY((SELECT %(user_ids)s::uuid[])::uuid[]) AND {in_force}
), needed (number) AS (
    SELECT number FROM (SELECT DISTINCT role AS number FROM held) AS granted WHERE {unknown}
    UNION
    SELECT number
    FROM (
        SELECT role_parents.parent AS number
        FROM needed JOIN users.role_parents ON role_parents.role = needed.number
    ) AS parents
    WHERE {unknown}
)
SELECT users.id::text, {state}, given.grants, given.seconds, NULL::integer, NULL::text, NULL::text, NULL::integer[],
    NULL::text[]
FROM users.users LEFT JOIN (
    SELECT user_id, string_agg(role || ' ' || scope, ' ') AS grants,
        EXTRACT(EPOCH FROM min(expire_time) - now())::float8 AS seconds
    FROM held
    GROUP BY user_id
) AS given ON given.user_id = users.id
WHERE users.id = ANY((SELECT %(user_ids)s::uuid[])::uuid[])
UNION ALL
SELECT NULL, NULL, NULL, NULL, {nodes}
FROM needed JOIN users.roles ON roles.number = needed.number;

-- name: roles
-- Roles by number and all that they inherit from, but for those that are known.
WITH RECURSIVE needed (number) AS (
    SELECT number FROM unnest(%(numbers)s::integer[]) AS asked (number)
    UNION
    SELECT number
    FROM (
        SELECT role_parents.parent AS number
        FROM needed JOIN users.role_parents ON role_parents.role = needed.number
    ) AS parents
    WHERE {unknown}
)
SELECT {nodes}
FROM needed JOIN users.roles ON roles.number = needed.number;

-- name: account
-- All about one user: its state, each grant in force, and each role that gives it anything.
WITH RECURSIVE held AS MATERIALIZED (
    SELECT grants.*
    FROM users.grants
    WHERE grants.user_id = %(user_id)s::uuid AND {in_force}
), needed (number) AS (
    SELECT role FROM held
    UNION
    SELECT role_parents.parent
    FROM needed JOIN users.role_parents ON role_parents.role = needed.number
)
SELECT {state}, NULL::text, NULL::text, NULL::text, NULL::text, NULL::timestamptz, NULL::bigint, NULL::timestamptz,
    NULL::timestamptz, NULL::integer, NULL::text, NULL::text, NULL::integer[], NULL::text[]
FROM users.users
WHERE users.id = %(user_id)s::uuid
UNION ALL
SELECT NULL, held.id::text, held.user_id::text, roles.id::text, held.scope, held.expire_time, held.version,
    held.create_time, held.update_time, held.role, NULL, NULL, NULL, NULL
FROM held JOIN users.roles ON roles.number = held.role
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, {nodes}
FROM needed JOIN users.roles ON roles.number = needed.number;

-- name: holders
-- A page of the active users who have one of `permissions` in one of `scopes`, by id, and until when. Of each role and scope
-- as many are read as the page has: what is beyond them cannot be on it. plan: custom.
WITH RECURSIVE giving (number) AS (
    SELECT number FROM users.roles WHERE permissions && %(permissions)s::text[]
    UNION
    SELECT role_parents.role
    FROM giving JOIN users.role_parents ON role_parents.parent = giving.number
)
SELECT found.user_id::text,
    CASE WHEN bool_and(found.expire_time IS NOT NULL) THEN max(found.expire_time) END
FROM giving
CROSS JOIN unnest(%(scopes)s::text[]) AS place (scope)
CROSS JOIN LATERAL (
    SELECT grants.user_id, grants.expire_time
    FROM users.grants JOIN users.users ON users.id = grants.user_id
    WHERE grants.role = giving.number
        AND grants.scope = place.scope COLLATE "C"
        AND (%(after)s::uuid IS NULL OR grants.user_id > %(after)s::uuid)
        AND {in_force}
        AND users.state = 1
        AND users.delete_time IS NULL
    ORDER BY grants.user_id
    LIMIT %(limit)s
) AS found
GROUP BY found.user_id
ORDER BY found.user_id
LIMIT %(limit)s;
