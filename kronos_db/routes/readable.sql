-- What operators may read of routes, quotas and their use by AdminService.Query: column by column, so that a new one is not
-- readable until it stands here. Every other column is a secret, and stands here with the reason. Applied by every migrate.

GRANT SELECT (id, print, expire_time) ON routes.allowed TO kronos_query;
-- secret: routes.allowed (lease): who has it may give it back.
-- secret: routes.allowed (answer): answers kept for repeats.
GRANT SELECT (key, expire_time) ON routes.lease_held TO kronos_query;
-- secret: routes.lease_held (lease): who has it may give it back.
GRANT SELECT (
    id, name, kind, rule, keys, shadow, failure, generation, version, table_version, create_time, update_time
) ON routes.quotas TO kronos_query;
GRANT SELECT (id, kind, table_version, remove_time) ON routes.removed TO kronos_query;
GRANT SELECT (is_only, version, forgotten) ON routes.route_table TO kronos_query;
GRANT SELECT (
    id, name, spec, host, quotas, shape, headers, version, table_version, create_time, update_time
) ON routes.routes TO kronos_query;
GRANT SELECT (key, slot, value, expire_time) ON routes.usage TO kronos_query;

-- What the runtime keeps in every schema.
GRANT SELECT (xid, place, part, kind, record_id, create_time, copied) ON routes.change TO kronos_query;
-- secret: routes.change (body): what watchers are told, sealed values and contents among it.
GRANT SELECT (is_only, purged) ON routes.change_horizon TO kronos_query;
GRANT SELECT (id, beat, timeline, applied) ON routes.copy_holder TO kronos_query;
GRANT SELECT (id, purpose, person, master_key_id, is_current, create_time) ON routes.data_key TO kronos_query;
-- secret: routes.data_key (wrapped): data keys, wrapped by a master key.
GRANT SELECT (caller, request_id, expire_time, tags) ON routes.idempotency TO kronos_query;
-- secret: routes.idempotency (reply): answers kept for repeats, with whatever they answered.
-- secret: routes.idempotency (fingerprint): keyed hash of a request.
GRANT SELECT (name, holder, fence, expire_time, success_time) ON routes.lease TO kronos_query;
GRANT SELECT (name, checksum, applied_at) ON routes.schema_migration TO kronos_query;
