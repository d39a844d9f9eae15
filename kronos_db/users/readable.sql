-- What operators may read of users, roles and grants by AdminService.Query: column by column, so that a new one is not
-- readable until it stands here. Every other column is a secret, and stands here with the reason. Applied by every migrate.

GRANT SELECT (user_id, update_time) ON users.credentials TO kronos_query;
-- secret: users.credentials (password_hash): hashes of passwords.
GRANT SELECT (user_id, id, role, scope, expire_time, version, create_time, update_time) ON users.grants TO kronos_query;
GRANT SELECT (role, parent) ON users.role_parents TO kronos_query;
GRANT SELECT (
    id, number, name, name_key, description, permissions, version, create_time, update_time
) ON users.roles TO kronos_query;
GRANT SELECT (
    id, username, username_key, display_name, attributes, state, version, create_time, update_time, delete_time
) ON users.users TO kronos_query;
-- secret: users.users (email): sealed.
-- secret: users.users (email_index): keyed hash of it.
-- secret: users.users (phone): sealed.
-- secret: users.users (phone_index): keyed hash of it.

-- What the runtime keeps in every schema.
GRANT SELECT (xid, place, part, kind, record_id, create_time, copied) ON users.change TO kronos_query;
-- secret: users.change (body): what watchers are told, sealed values and contents among it.
GRANT SELECT (is_only, purged) ON users.change_horizon TO kronos_query;
GRANT SELECT (id, beat, timeline, applied) ON users.copy_holder TO kronos_query;
GRANT SELECT (id, purpose, person, master_key_id, is_current, create_time) ON users.data_key TO kronos_query;
-- secret: users.data_key (wrapped): data keys, wrapped by a master key.
GRANT SELECT (caller, request_id, expire_time, tags) ON users.idempotency TO kronos_query;
-- secret: users.idempotency (reply): answers kept for repeats, with whatever they answered.
-- secret: users.idempotency (fingerprint): keyed hash of a request.
GRANT SELECT (name, holder, fence, expire_time, success_time) ON users.lease TO kronos_query;
GRANT SELECT (name, checksum, applied_at) ON users.schema_migration TO kronos_query;
