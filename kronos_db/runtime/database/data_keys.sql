-- name: load
-- Every data key of the domain itself; keys of persons are looked up one by one.
SELECT id, purpose, person, master_key_id, wrapped, create_time
FROM {schema}.data_key
WHERE person IS NULL
ORDER BY is_current DESC, create_time DESC;

-- name: find
-- One data key by its id.
SELECT id, purpose, person, master_key_id, wrapped, create_time
FROM {schema}.data_key
WHERE id = %(id)s;

-- name: add
-- Adds the first key of a purpose, unless another process was first.
INSERT INTO {schema}.data_key (id, purpose, person, master_key_id, wrapped, is_current, create_time)
VALUES (%(id)s, %(purpose)s, %(person)s, %(master_key_id)s, %(wrapped)s, true, %(create_time)s)
ON CONFLICT DO NOTHING;

-- name: current
-- The current key of a purpose.
SELECT id, purpose, person, master_key_id, wrapped, create_time
FROM {schema}.data_key
WHERE purpose = %(purpose)s AND person IS NOT DISTINCT FROM %(person)s::uuid AND is_current;
