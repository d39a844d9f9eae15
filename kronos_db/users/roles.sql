-- The SQL of roles.

-- fragment: columns
-- What makes a Role, in the order of its fields.
roles.id::text, roles.number, roles.name, roles.name_key, roles.description, roles.permissions, ARRAY(
    SELECT parents.id::text
    FROM users.role_parents JOIN users.roles AS parents ON parents.number = role_parents.parent
    WHERE role_parents.role = roles.number
    ORDER BY parents.id
), roles.version, roles.create_time, roles.update_time

-- name: get_by_id
-- A role by id.
SELECT {columns}
FROM users.roles
WHERE roles.id = %(key)s::uuid;

-- name: get_by_name
-- A role by normalised name.
SELECT {columns}
FROM users.roles
WHERE roles.name_key = %(key)s;

-- name: list
-- A page of roles by normalised name. plan: custom.
SELECT {columns}
FROM users.roles
WHERE (%(name_prefix)s::text IS NULL OR roles.name_key ^@ %(name_prefix)s)
    AND (%(after)s::text IS NULL OR roles.name_key > %(after)s)
ORDER BY roles.name_key
LIMIT %(limit)s;

-- name: lock_graph
-- Lets one transaction at a time say what inherits from what: two that each add one half of a cycle would not see it.
SELECT pg_advisory_xact_lock(hashtextextended('users.role_parents', 0));

-- name: create
-- Creates a role without parents.
INSERT INTO users.roles (id, name, name_key, description, permissions, create_time, update_time)
VALUES (%(id)s::uuid, %(name)s, %(name_key)s, %(description)s, %(permissions)s::text[], now(), now());

-- name: lock
-- A role that is about to change; grants of it that are being made are waited for, and wait for us.
SELECT roles.number, roles.version
FROM users.roles
WHERE roles.id = %(id)s::uuid
FOR UPDATE;

-- name: ancestry
-- The roles of these ids, and all that they inherit from, with their own parents: as far as a way can lead.
WITH RECURSIVE above AS (
    SELECT roles.number
    FROM users.roles
    WHERE roles.id = ANY(%(ids)s::uuid[])
    UNION
    SELECT role_parents.parent
    FROM above JOIN users.role_parents ON role_parents.role = above.number
)
SELECT roles.id::text, roles.name, ARRAY(
    SELECT parents.id::text
    FROM users.role_parents JOIN users.roles AS parents ON parents.number = role_parents.parent
    WHERE role_parents.role = roles.number
    ORDER BY parents.id
)
FROM above JOIN users.roles ON roles.number = above.number;

-- name: remove_parents
-- Lets a role inherit from nothing.
DELETE FROM users.role_parents
WHERE role = (SELECT number FROM users.roles WHERE id = %(id)s::uuid);

-- name: add_parents
-- Lets a role inherit from others.
INSERT INTO users.role_parents (role, parent)
SELECT roles.number, parents.number
FROM users.roles JOIN users.roles AS parents ON parents.id = ANY(%(parent_ids)s::uuid[])
WHERE roles.id = %(id)s::uuid;

-- name: update
-- Changes the named fields of a role that was locked.
UPDATE users.roles
SET name = CASE WHEN 'name' = ANY(%(fields)s) THEN %(name)s ELSE name END,
    name_key = CASE WHEN 'name' = ANY(%(fields)s) THEN %(name_key)s ELSE name_key END,
    description = CASE WHEN 'description' = ANY(%(fields)s) THEN %(description)s ELSE description END,
    permissions = CASE WHEN 'permissions' = ANY(%(fields)s) THEN %(permissions)s::text[] ELSE permissions END,
    version = version + 1,
    update_time = now()
WHERE id = %(id)s::uuid;

-- name: in_the_way
-- What keeps a locked role from being removed: how many grants, up to a limit and one, and one role that inherits from it.
SELECT
    (SELECT count(*) FROM (SELECT FROM users.grants WHERE role = %(number)s LIMIT %(limit)s + 1) AS found),
    (
        SELECT roles.name
        FROM users.role_parents JOIN users.roles ON roles.number = role_parents.role
        WHERE role_parents.parent = %(number)s
        ORDER BY roles.name_key
        LIMIT 1
    );

-- name: revoke_all
-- Revokes all grants of a role.
DELETE FROM users.grants
WHERE role = %(number)s
RETURNING id::text, user_id::text, version;

-- name: detach_children
-- Lets nobody inherit from a role; returns who did.
WITH gone AS (
    DELETE FROM users.role_parents WHERE parent = %(number)s RETURNING role
)
UPDATE users.roles
SET version = version + 1, update_time = now()
FROM gone
WHERE roles.number = gone.role
RETURNING roles.id::text, roles.version;

-- name: delete
-- Removes a role.
DELETE FROM users.roles
WHERE number = %(number)s;
