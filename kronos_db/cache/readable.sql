-- What operators may read of namespaces and their entries by AdminService.Query: column by column, so that a new one is not
-- readable until it stands here. Every other column is a secret, and stands here with the reason. Applied by every migrate.

GRANT SELECT (
    durable, namespace_id, key, version, base, fresh_until, stale_until, update_time, used_time, lease_until, size,
    grown, appeared, expected, tags
) ON cache.entry TO kronos_query;
-- secret: cache.entry (value): the contents, sealed where the namespace says so.
-- secret: cache.entry (indexed): parts of the contents.
-- secret: cache.entry (lease_id): who holds it may fill the entry.
-- secret: cache.entry (lease_base): part of the lease token.
GRANT SELECT (durable, namespace_id, number, key) ON cache.entry_index TO kronos_query;
-- secret: cache.entry_index (value): parts of the contents.
GRANT SELECT (namespace_id, key, uses) ON cache.key_use TO kronos_query;
GRANT SELECT (
    name, id, durable, sensitive, default_ttl, default_stale_time, max_entries, max_bytes, max_value_bytes, indexes,
    version, create_time, update_time
) ON cache.namespace TO kronos_query;
GRANT SELECT (namespace_id, hits, misses, puts, evictions, expirations) ON cache.stat TO kronos_query;
GRANT SELECT (namespace_id, tag, sequence, update_time) ON cache.tag TO kronos_query;
GRANT SELECT (namespace_id, entries, bytes, is_base) ON cache.usage TO kronos_query;

-- What the runtime keeps in every schema.
GRANT SELECT (xid, place, part, kind, record_id, create_time, copied) ON cache.change TO kronos_query;
-- secret: cache.change (body): what watchers are told, sealed values and contents among it.
GRANT SELECT (is_only, purged) ON cache.change_horizon TO kronos_query;
GRANT SELECT (id, beat, timeline, applied) ON cache.copy_holder TO kronos_query;
GRANT SELECT (id, purpose, person, master_key_id, is_current, create_time) ON cache.data_key TO kronos_query;
-- secret: cache.data_key (wrapped): data keys, wrapped by a master key.
GRANT SELECT (caller, request_id, expire_time, tags) ON cache.idempotency TO kronos_query;
-- secret: cache.idempotency (reply): answers kept for repeats, with whatever they answered.
-- secret: cache.idempotency (fingerprint): keyed hash of a request.
GRANT SELECT (name, holder, fence, expire_time, success_time) ON cache.lease TO kronos_query;
GRANT SELECT (name, checksum, applied_at) ON cache.schema_migration TO kronos_query;
