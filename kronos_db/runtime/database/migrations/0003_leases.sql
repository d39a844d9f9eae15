-- Which process of the whole fleet does a piece of background work, and until when. A row is never deleted: fences grow.
CREATE TABLE lease (
    name text PRIMARY KEY,
    holder uuid NOT NULL,
    -- Another one whenever the lease is taken, not when it is renewed: what was begun under an older one is over.
    fence bigint NOT NULL,
    expire_time timestamptz NOT NULL,
    -- When the work was last done, by whichever process.
    success_time timestamptz
);
