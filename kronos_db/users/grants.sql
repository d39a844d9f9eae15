-- The SQL of grants.

-- fragment: columns
-- What makes a Grant, in the order of its fields.
grants.id::text, grants.user_id::text, roles.id::text, grants.scope, grants.expire_time, grants.version,
grants.create_time, grants.update_time

-- fragment: in_force
-- Whether a grant has not expired, by the clock of the database.
(grants.expire_time IS NULL OR grants.expire_time > now())

-- name: create
-- Grants a role to a user that is not deleted and has fewer grants than the limit, unless it has it there already.
WITH new AS (
    INSERT INTO users.grants (user_id, id, role, scope, expire_time, create_time, update_time)
    SELECT users.id, %(id)s::uuid, roles.number, %(scope)s, %(expire_time)s::timestamptz, now(), now()
    FROM users.users CROSS JOIN users.roles
    WHERE users.id = %(user_id)s::uuid
        AND users.delete_time IS NULL
        AND roles.id = %(role_id)s::uuid
        AND (%(expire_time)s::timestamptz IS NULL OR %(expire_time)s::timestamptz > now())
        AND (SELECT count(*) FROM users.grants AS own WHERE own.user_id = %(user_id)s::uuid) < %(limit)s
    ON CONFLICT ON CONSTRAINT grants_once DO NOTHING
    RETURNING *
)
SELECT {columns}
FROM new AS grants JOIN users.roles ON roles.number = grants.role;

-- name: why_not
-- Why a role was not granted: whether the user is there, the role is, the expiry is past, the limit is reached.
SELECT
    EXISTS (SELECT FROM users.users WHERE id = %(user_id)s::uuid AND delete_time IS NULL),
    EXISTS (SELECT FROM users.roles WHERE id = %(role_id)s::uuid),
    %(expire_time)s::timestamptz IS NOT NULL AND %(expire_time)s::timestamptz <= now(),
    (SELECT count(*) FROM users.grants WHERE user_id = %(user_id)s::uuid) >= %(limit)s;

-- name: remove_expired
-- Removes the grant that is in the way of a new one if it has expired.
WITH old AS (
    DELETE FROM users.grants
    WHERE user_id = %(user_id)s::uuid
        AND role = (SELECT number FROM users.roles WHERE id = %(role_id)s::uuid)
        AND scope = %(scope)s
        AND expire_time <= now()
    RETURNING *
)
SELECT {columns}
FROM old AS grants JOIN users.roles ON roles.number = grants.role;

-- name: update
-- Changes when a grant ends that is in force and, when a version is given, is at that version.
WITH changed AS (
    UPDATE users.grants
    SET expire_time = %(expire_time)s::timestamptz, version = version + 1, update_time = now()
    WHERE id = %(id)s::uuid
        AND {in_force}
        AND version = COALESCE(%(version)s, version)
        AND (%(expire_time)s::timestamptz IS NULL OR %(expire_time)s::timestamptz > now())
    RETURNING *
)
SELECT {columns}
FROM changed AS grants JOIN users.roles ON roles.number = grants.role;

-- name: revoke
-- Removes a grant that is in force and, when a version is given, is at that version.
WITH gone AS (
    DELETE FROM users.grants
    WHERE id = %(id)s::uuid AND {in_force} AND version = COALESCE(%(version)s, version)
    RETURNING *
)
SELECT {columns}
FROM gone AS grants JOIN users.roles ON roles.number = grants.role;

-- name: get
-- A grant that is in force.
SELECT {columns}
FROM users.grants JOIN users.roles ON roles.number = grants.role
WHERE grants.id = %(id)s::uuid AND {in_force};

-- name: list
-- A page of grants in force, oldest first. plan: custom, since which filters are given decides the index.
SELECT {columns}
FROM users.grants JOIN users.roles ON roles.number = grants.role
WHERE {in_force}
    AND (%(user_id)s::uuid IS NULL OR grants.user_id = %(user_id)s::uuid)
    AND (%(role_id)s::uuid IS NULL OR grants.role = (SELECT number FROM users.roles WHERE id = %(role_id)s::uuid))
    AND (%(scope)s::text IS NULL OR grants.scope ^@ %(scope)s)
    AND (%(after)s::uuid IS NULL OR grants.id > %(after)s::uuid)
ORDER BY grants.id
LIMIT %(limit)s;

-- name: any_expired
-- Whether a grant has expired and is still there.
SELECT EXISTS (SELECT FROM users.grants WHERE expire_time <= now());

-- name: expire
-- Removes some of those grants.
WITH due AS (
    SELECT user_id, id
    FROM users.grants
    WHERE expire_time <= now()
    ORDER BY expire_time
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM users.grants
    USING due
    WHERE grants.user_id = due.user_id AND grants.id = due.id
    RETURNING grants.*
)
SELECT {columns}
FROM gone AS grants JOIN users.roles ON roles.number = grants.role;
