-- What operators may read of administration by AdminService.Query: column by column, so that a new one is not
-- readable until it stands here. Every other column is a secret, and stands here with the reason. Applied by every migrate.

GRANT SELECT (
    sequence, id, call_id, phase, event_time, caller, method, request, detail, code, reason, request_id, call_count,
    previous_hash, hash
) ON admin.audit_events TO kronos_query;

GRANT SELECT (one, taken_at) ON admin.statement_clock TO kronos_query;
GRANT SELECT (domain, state, taken_at) ON admin.statement_sources TO kronos_query;
GRANT SELECT (domain, query_id, fingerprint, text) ON admin.statements TO kronos_query;
GRANT SELECT (fingerprint, query, method, text) ON admin.statement_origins TO kronos_query;
GRANT SELECT (
    domain, query_id, top_level, stats_since, calls, total_us, rows, blocks_hit, blocks_read, temp_bytes, wal_bytes, seen_at
) ON admin.statement_series TO kronos_query;
GRANT SELECT (
    taken_at, domain, query_id, calls, total_us, rows, blocks_hit, blocks_read, temp_bytes, wal_bytes
) ON admin.statement_deltas TO kronos_query;

GRANT SELECT (
    id, advice_id, kind, domain, table_name, index_name, statement, undo, caller, state, detail, before, create_time,
    update_time
) ON admin.index_changes TO kronos_query;

GRANT SELECT (
    is_only, full_schedule, incremental_schedule, drill_schedule, keep_count, keep_age, version, update_time, last_full,
    last_incremental, last_drill
) ON admin.backup_policy TO kronos_query;
GRANT SELECT (
    id, kind, task, due_time, state, request, attempt, fence, not_before, progress, result, failure, detail, create_time,
    end_time
) ON admin.backup_run TO kronos_query;
GRANT SELECT (is_only, summary, update_time) ON admin.backup_summary TO kronos_query;

-- What the runtime keeps in every schema.
GRANT SELECT (xid, place, part, kind, record_id, create_time, copied) ON admin.change TO kronos_query;
-- secret: admin.change (body): what watchers are told, sealed values and contents among it.
GRANT SELECT (is_only, purged) ON admin.change_horizon TO kronos_query;
GRANT SELECT (id, beat, timeline, applied) ON admin.copy_holder TO kronos_query;
GRANT SELECT (id, purpose, person, master_key_id, is_current, create_time) ON admin.data_key TO kronos_query;
-- secret: admin.data_key (wrapped): data keys, wrapped by a master key.
GRANT SELECT (caller, request_id, expire_time, tags) ON admin.idempotency TO kronos_query;
-- secret: admin.idempotency (reply): answers kept for repeats, with whatever they answered.
-- secret: admin.idempotency (fingerprint): keyed hash of a request.
GRANT SELECT (name, holder, fence, expire_time, success_time) ON admin.lease TO kronos_query;
GRANT SELECT (name, checksum, applied_at) ON admin.schema_migration TO kronos_query;
