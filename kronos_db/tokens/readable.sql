-- What operators may read of tokens and revocations by AdminService.Query: column by column, so that a new one is not
-- readable until it stands here. Every other column is a secret, and stands here with the reason. Applied by every migrate.

GRANT SELECT (key, number, before, revoke_time, until, marked) ON tokens.cutoff TO kronos_query;
GRANT SELECT (
    id, family_id, kind, mark, number, subject_kind, subject, client_id, device_id, scope, claims, jwt_id,
    expire_time, idle_seconds, access_seconds, grace_seconds, grant_time, issue_time, seen_time, use_time,
    successor_id, successor_access_id, revoke_time, purge_time, version
) ON tokens.token TO kronos_query;
-- secret: tokens.token (hash): keyed hash of the token.
-- secret: tokens.token (device_name): sealed.
-- secret: tokens.token (ip_address): sealed.
-- secret: tokens.token (sensitive_claims): sealed.

-- What the runtime keeps in every schema.
GRANT SELECT (xid, place, part, kind, record_id, create_time, copied) ON tokens.change TO kronos_query;
-- secret: tokens.change (body): what watchers are told, sealed values and contents among it.
GRANT SELECT (is_only, purged) ON tokens.change_horizon TO kronos_query;
GRANT SELECT (id, beat, timeline, applied) ON tokens.copy_holder TO kronos_query;
GRANT SELECT (id, purpose, person, master_key_id, is_current, create_time) ON tokens.data_key TO kronos_query;
-- secret: tokens.data_key (wrapped): data keys, wrapped by a master key.
GRANT SELECT (caller, request_id, expire_time, tags) ON tokens.idempotency TO kronos_query;
-- secret: tokens.idempotency (reply): answers kept for repeats, with whatever they answered.
-- secret: tokens.idempotency (fingerprint): keyed hash of a request.
GRANT SELECT (name, holder, fence, expire_time, success_time) ON tokens.lease TO kronos_query;
GRANT SELECT (name, checksum, applied_at) ON tokens.schema_migration TO kronos_query;
