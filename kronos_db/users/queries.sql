-- The SQL of the users domain.

-- fragment: columns
-- What makes a User, in the order of its fields. The id as text: a UUID would be made text again. No
-- attributes as null: parsing the JSON of nothing is a tenth of what reading a user costs.
id::text, username, username_key, email, phone, display_name, NULLIF(attributes, '{}'), state, version, create_time,
update_time, delete_time

-- name: get_by_id
-- Users by id; unknown ids are passed over. The keys are in a query of their own here and in the next two: the planner
-- is not to see how many there are. Else it finds a plan for just so many cheaper than the prepared one, and plans each
-- time anew.
SELECT {columns}
FROM users.users
WHERE id = ANY((SELECT %(keys)s::uuid[])::uuid[]);

-- name: get_by_username
-- Users by normalised username.
SELECT {columns}
FROM users.users
WHERE username_key = ANY((SELECT %(keys)s::text[])::text[]);

-- name: get_by_email
-- Users by the blind index of the e-mail.
SELECT {columns}
FROM users.users
WHERE email_index = ANY((SELECT %(keys)s::text[])::text[]);

-- name: create
-- Creates users, and passes over those that conflict with any other, so that the caller can tell which.
INSERT INTO users.users (
    id, username, username_key, email, phone, display_name, attributes, state, create_time, update_time
)
SELECT id, username, username_key, email, phone, display_name, attributes, 1, now(), now()
FROM unnest(
    %(ids)s::uuid[], %(usernames)s::text[], %(username_keys)s::text[], %(emails)s::text[], %(phones)s::text[],
    %(display_names)s::text[], %(attributes)s::jsonb[]
) AS new (id, username, username_key, email, phone, display_name, attributes)
ON CONFLICT DO NOTHING
RETURNING {columns};

-- name: find_conflict
-- The first of the new users that conflicts with a stored one or repeats the id of a new one, and the constraint that
-- says so. New ones that were inserted just now are told from those they conflict with by their id.
WITH new AS (
    SELECT *
    FROM unnest(
        %(ids)s::uuid[], %(username_keys)s::text[], %(emails)s::text[], %(phones)s::text[]
    ) WITH ORDINALITY AS item (id, username_key, email, phone, position)
)
SELECT new.position, 'users_pkey' AS refused
FROM new JOIN users.users AS old ON old.id = new.id
WHERE new.id <> ALL(%(created)s::uuid[])
UNION ALL
SELECT new.position, 'users_pkey'
FROM new JOIN new AS earlier ON earlier.id = new.id AND earlier.position < new.position
UNION ALL
SELECT new.position, 'users_username'
FROM new JOIN users.users AS old ON old.username_key = new.username_key AND old.id <> new.id
UNION ALL
SELECT new.position, 'users_email'
FROM new JOIN users.users AS old ON old.email_index = split_part(new.email, '.', 3) AND old.id <> new.id
UNION ALL
SELECT new.position, 'users_phone'
FROM new JOIN users.users AS old ON old.phone_index = split_part(new.phone, '.', 3) AND old.id <> new.id
ORDER BY 1, 2
LIMIT 1;

-- name: update
-- Changes the named fields of a user that is not deleted and, when a version is given, is at that version.
UPDATE users.users
SET username = CASE WHEN 'username' = ANY(%(fields)s) THEN %(username)s ELSE username END,
    username_key = CASE WHEN 'username' = ANY(%(fields)s) THEN %(username_key)s ELSE username_key END,
    email = CASE WHEN 'email' = ANY(%(fields)s) THEN %(email)s ELSE email END,
    phone = CASE WHEN 'phone' = ANY(%(fields)s) THEN %(phone)s ELSE phone END,
    display_name = CASE WHEN 'display_name' = ANY(%(fields)s) THEN %(display_name)s ELSE display_name END,
    attributes = CASE WHEN 'attributes' = ANY(%(fields)s) THEN %(attributes)s ELSE attributes END,
    version = version + 1,
    update_time = now()
WHERE id = %(id)s::uuid AND delete_time IS NULL AND version = COALESCE(%(version)s, version)
RETURNING {columns};

-- name: change_state
-- Makes a transition of a user that is in one of the states it is allowed from.
UPDATE users.users
SET state = COALESCE(%(to_state)s::smallint, state),
    delete_time = CASE %(to_deleted)s::boolean WHEN true THEN now() WHEN false THEN NULL ELSE delete_time END,
    version = version + 1,
    update_time = now()
WHERE id = %(id)s::uuid
    AND state = ANY(%(allowed)s)
    AND (delete_time IS NOT NULL) = %(from_deleted)s
    AND version = COALESCE(%(version)s, version)
RETURNING {columns};

-- name: erase
-- Removes a user; its credentials go with it.
DELETE FROM users.users
WHERE id = %(id)s::uuid AND version = COALESCE(%(version)s, version)
RETURNING {columns};

-- name: touch
-- Counts a change that lies outside of the row: a new password.
UPDATE users.users
SET version = version + 1, update_time = now()
WHERE id = %(id)s::uuid AND delete_time IS NULL AND version = COALESCE(%(version)s, version)
RETURNING {columns};

-- name: set_password_hash
-- Sets or replaces the password hash of a user.
INSERT INTO users.credentials (user_id, password_hash, update_time)
VALUES (%(id)s::uuid, %(password_hash)s, now())
ON CONFLICT (user_id) DO UPDATE SET password_hash = EXCLUDED.password_hash, update_time = EXCLUDED.update_time;

-- name: upgrade_password_hash
-- Replaces a hash by one of the same password with newer parameters, unless the password changed meanwhile.
UPDATE users.credentials
SET password_hash = %(password_hash)s, update_time = now()
WHERE user_id = %(id)s::uuid AND password_hash = %(previous)s;

-- fragment: credential_columns
-- What makes a Credential, in the order of its fields.
users.id::text, users.state, users.delete_time IS NOT NULL, credentials.password_hash

-- name: credential_by_id
-- Credential of a user by id.
SELECT {credential_columns}
FROM users.users LEFT JOIN users.credentials ON credentials.user_id = users.id
WHERE users.id = %(key)s::uuid;

-- name: credential_by_username
-- Credential of a user by normalised username.
SELECT {credential_columns}
FROM users.users LEFT JOIN users.credentials ON credentials.user_id = users.id
WHERE users.username_key = %(key)s;

-- name: credential_by_email
-- Credential of a user by the blind index of the e-mail.
SELECT {credential_columns}
FROM users.users LEFT JOIN users.credentials ON credentials.user_id = users.id
WHERE users.email_index = %(key)s;

-- fragment: filters
-- Filters of a listing; null filters nothing.
(%(state)s::smallint IS NULL OR state = %(state)s)
    AND (%(deleted)s::boolean IS NULL OR (delete_time IS NOT NULL) = %(deleted)s)
    AND (%(create_time_from)s::timestamptz IS NULL OR create_time >= %(create_time_from)s)
    AND (%(create_time_until)s::timestamptz IS NULL OR create_time < %(create_time_until)s)
    AND (%(username_prefix)s::text IS NULL OR username_key ^@ %(username_prefix)s)

-- name: list_oldest_first
-- A page of users by time, oldest first. plan: custom, since which filters are given decides the index.
SELECT {columns}
FROM users.users
WHERE {filters}
    AND (%(after_time)s::timestamptz IS NULL OR (create_time, id) > (%(after_time)s, %(after_id)s::uuid))
ORDER BY create_time, users.id
LIMIT %(limit)s;

-- name: list_newest_first
-- A page of users by time, newest first. plan: custom.
SELECT {columns}
FROM users.users
WHERE {filters}
    AND (%(after_time)s::timestamptz IS NULL OR (create_time, id) < (%(after_time)s, %(after_id)s::uuid))
ORDER BY create_time DESC, users.id DESC
LIMIT %(limit)s;

-- name: list_username_ascending
-- A page of users by normalised username. plan: custom.
SELECT {columns}
FROM users.users
WHERE {filters}
    AND (%(after_username)s::text IS NULL OR username_key > %(after_username)s)
ORDER BY username_key
LIMIT %(limit)s;

-- name: list_username_descending
-- A page of users by normalised username, from the end. plan: custom.
SELECT {columns}
FROM users.users
WHERE {filters}
    AND (%(after_username)s::text IS NULL OR username_key < %(after_username)s)
ORDER BY username_key DESC
LIMIT %(limit)s;
