-- The audit log: events are only ever added.

CREATE TABLE admin.audit_events (
    -- Without gaps: who adds events holds a lock meanwhile.
    sequence bigint PRIMARY KEY,
    id uuid NOT NULL,
    call_id uuid NOT NULL,
    -- 1 BEGUN, 2 ENDED, 3 REFUSED.
    phase smallint NOT NULL,
    event_time timestamptz NOT NULL,
    caller text NOT NULL,
    method text NOT NULL,
    request text NOT NULL,
    detail text NOT NULL,
    code text NOT NULL,
    reason text NOT NULL,
    request_id text NOT NULL,
    call_count bigint NOT NULL,
    previous_hash bytea NOT NULL,
    -- HMAC-SHA256 of all of the above, by a key that the database does not know.
    hash bytea NOT NULL,
    CONSTRAINT audit_events_id UNIQUE (id),
    CONSTRAINT audit_events_phase CHECK (phase IN (1, 2, 3)),
    CONSTRAINT audit_events_hashes CHECK (length(previous_hash) = 32 AND length(hash) = 32)
);
-- The event that a caller's, a method's and a call's listing begins with.
CREATE INDEX audit_events_caller ON admin.audit_events (caller, sequence);
CREATE INDEX audit_events_method ON admin.audit_events (method, sequence);
CREATE INDEX audit_events_call_id ON admin.audit_events (call_id);
CREATE INDEX audit_events_event_time ON admin.audit_events (event_time);

-- Rights alone do not hold the owner of the table. ALWAYS: also in a session that replays a replica's changes.
CREATE FUNCTION admin.refuse_change() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog
    AS $$ BEGIN
        RAISE EXCEPTION '% of %.% is refused: events are only ever added', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
            USING ERRCODE = 'insufficient_privilege';
    END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON admin.audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION admin.refuse_change();
ALTER TABLE admin.audit_events ENABLE ALWAYS TRIGGER append_only;
