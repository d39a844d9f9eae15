-- What operators may read of log records and counts of them by AdminService.Query: column by column, so that a new one is not
-- readable until it stands here. Every other column is a secret, and stands here with the reason. Applied by every migrate.

GRANT SELECT (minute, service, severity, keep_days, count) ON logs.count_delta TO kronos_query;
GRANT SELECT (erased) ON logs.erasure TO kronos_query;
-- secret: logs.erasure (subject): keyed hash of whom it is about.
GRANT SELECT (minute, service, severity, keep_days, count) ON logs.minute_count TO kronos_query;
GRANT SELECT (
    id, service, attributes, scope_name, scope_version, scope_attributes, seen_time
) ON logs.origin TO kronos_query;
GRANT SELECT (name, keep_days, time_from, time_until) ON logs.partition TO kronos_query;
GRANT SELECT (
    batch, part, keep_days, severity, time, own_time, observed_time, service, origin, trace_id, span_id, flags,
    dropped, severity_text, event_name, structured, body, attributes
) ON logs.record TO kronos_query;
-- secret: logs.record (subject): keyed hash of whom it is about.
GRANT SELECT (service, severity, keep_days) ON logs.retention TO kronos_query;

-- What the runtime keeps in every schema.
GRANT SELECT (xid, place, part, kind, record_id, create_time, copied) ON logs.change TO kronos_query;
-- secret: logs.change (body): what watchers are told, sealed values and contents among it.
GRANT SELECT (is_only, purged) ON logs.change_horizon TO kronos_query;
GRANT SELECT (id, beat, timeline, applied) ON logs.copy_holder TO kronos_query;
GRANT SELECT (id, purpose, person, master_key_id, is_current, create_time) ON logs.data_key TO kronos_query;
-- secret: logs.data_key (wrapped): data keys, wrapped by a master key.
GRANT SELECT (caller, request_id, expire_time, tags) ON logs.idempotency TO kronos_query;
-- secret: logs.idempotency (reply): answers kept for repeats, with whatever they answered.
-- secret: logs.idempotency (fingerprint): keyed hash of a request.
GRANT SELECT (name, holder, fence, expire_time, success_time) ON logs.lease TO kronos_query;
GRANT SELECT (name, checksum, applied_at) ON logs.schema_migration TO kronos_query;
