-- What operators had done to indexes on the server's advice.

CREATE TABLE admin.index_changes (
    id uuid PRIMARY KEY,
    advice_id text NOT NULL,
    -- As Kind of the advice.
    kind smallint NOT NULL,
    domain text NOT NULL,
    table_name text NOT NULL,
    index_name text NOT NULL,
    statement text NOT NULL,
    undo text NOT NULL,
    caller text NOT NULL,
    -- 1 RUNNING, 2 DONE, 3 FAILED, 4 KEPT, 5 UNDONE.
    state smallint NOT NULL DEFAULT 1,
    -- Why it is in that state.
    detail text NOT NULL DEFAULT '',
    -- Of each statement concerned: its query id, calls and mean ms of the time before.
    before jsonb NOT NULL DEFAULT '{}',
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    update_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT index_changes_state CHECK (state BETWEEN 1 AND 5)
);
CREATE INDEX index_changes_state ON admin.index_changes (state, create_time);
