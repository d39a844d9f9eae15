-- What operators may read of queues and their messages by AdminService.Query: column by column, so that a new one is not
-- readable until it stands here. Every other column is a secret, and stands here with the reason. Applied by every migrate.

GRANT SELECT (bin, abandon_time) ON messages.abandoned_bin TO kronos_query;
GRANT SELECT (
    bin, id, dead_time, cause, rank, attempts, ordering_key, enqueue_time, headers, history
) ON messages.dead_letter TO kronos_query;
-- secret: messages.dead_letter (payload): the contents.
GRANT SELECT (bin, key, message_id, expire_time) ON messages.deduplication TO kronos_query;
GRANT SELECT (bin, ordering_key) ON messages.lane TO kronos_query;
GRANT SELECT (
    bin, id, state, rank, position, due_time, attempts, ordering_key, number, not_before, expire_time, enqueue_time,
    headers, history
) ON messages.message TO kronos_query;
-- secret: messages.message (payload): the contents.
-- secret: messages.message (lease_token): who has it may acknowledge.
GRANT SELECT (
    name, id, bin, dead_bin, ordered, lease_duration, max_attempts, min_backoff, max_backoff, dead_letter_queue,
    message_retention, dead_letter_retention, max_backlog, max_payload_bytes, version, create_time, update_time
) ON messages.queue TO kronos_query;
GRANT SELECT (
    bin, xid, part, ready, delayed, leased, blocked, dead, enqueued_total, leased_total, acked_total
) ON messages.tally TO kronos_query;
GRANT SELECT (
    bin, folded, ready, delayed, leased, blocked, dead, enqueued_total, leased_total, acked_total, sample_time,
    sample_enqueued, sample_leased, sample_acked, enqueue_rate, lease_rate, ack_rate
) ON messages.total TO kronos_query;

-- What the runtime keeps in every schema.
GRANT SELECT (xid, place, part, kind, record_id, create_time, copied) ON messages.change TO kronos_query;
-- secret: messages.change (body): what watchers are told, sealed values and contents among it.
GRANT SELECT (is_only, purged) ON messages.change_horizon TO kronos_query;
GRANT SELECT (id, beat, timeline, applied) ON messages.copy_holder TO kronos_query;
GRANT SELECT (id, purpose, person, master_key_id, is_current, create_time) ON messages.data_key TO kronos_query;
-- secret: messages.data_key (wrapped): data keys, wrapped by a master key.
GRANT SELECT (caller, request_id, expire_time, tags) ON messages.idempotency TO kronos_query;
-- secret: messages.idempotency (reply): answers kept for repeats, with whatever they answered.
-- secret: messages.idempotency (fingerprint): keyed hash of a request.
GRANT SELECT (name, holder, fence, expire_time, success_time) ON messages.lease TO kronos_query;
GRANT SELECT (name, checksum, applied_at) ON messages.schema_migration TO kronos_query;
