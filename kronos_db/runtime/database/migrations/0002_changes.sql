-- What committed writes changed: for those who watch, and for those who keep copies.

-- One number for each transaction that changes something, drawn at its end, when it holds all of its locks: of two
-- transactions of which one had to wait for the other, or began after the other was acknowledged, it orders them as
-- their commits do.
CREATE SEQUENCE change_place;

CREATE TABLE change (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    place bigint NOT NULL,
    -- Order within the transaction, from 1.
    part integer NOT NULL,
    kind text NOT NULL,
    record_id text NOT NULL,
    body jsonb NOT NULL,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (xid, part)
);
CREATE INDEX change_create_time ON change (create_time);

-- The newest transaction of which changes were removed: who has not seen it cannot go on from where he was.
CREATE TABLE change_horizon (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    purged xid8 NOT NULL
);
INSERT INTO change_horizon (purged) VALUES ('0');

-- What a repeated call has to make good for the one that it repeats: which copies the write made old.
ALTER TABLE idempotency ADD COLUMN tags text[] NOT NULL DEFAULT '{}';

-- Who keeps copies of this domain's data and answers from them. `applied` is the moment (a number that orders
-- snapshots of one timeline) up to which a holder has dropped what was changed; `beat` grows as long as it lives.
CREATE TABLE copy_holder (
    id uuid PRIMARY KEY,
    beat bigint NOT NULL,
    timeline text NOT NULL,
    applied bigint NOT NULL
);
