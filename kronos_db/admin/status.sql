-- The SQL of looks at PostgreSQL. `{schema}` is that of the domain that is looked at.

-- name: server
-- The whole server, and the database. What the role may not see is missing. Who receives WAL and replays none, as an
-- archive does, is not behind.
SELECT
    current_setting('server_version'),
    pg_is_in_recovery(),
    CASE
        WHEN NOT pg_is_in_recovery() THEN (
            SELECT extract(epoch FROM max(replay_lag)) FROM pg_stat_replication WHERE replay_lsn IS NOT NULL
        )
        WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
        ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())
    END::float8,
    (SELECT count(*) FROM pg_stat_replication)::integer,
    (SELECT sum(numbackends) FROM pg_stat_database)::integer,
    current_setting('max_connections')::integer,
    (
        SELECT extract(epoch FROM max(clock_timestamp() - xact_start))
        FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
    )::float8,
    (SELECT max(age(datfrozenxid)) FROM pg_database)::bigint,
    (
        SELECT blks_hit::float8 / nullif(blks_hit + blks_read, 0)
        FROM pg_stat_database
        WHERE datname = current_database()
    );

-- name: migrations
-- Which migrations were applied, in that order.
SELECT schema_migration.name
FROM {schema}.schema_migration
ORDER BY schema_migration.applied_at, schema_migration.name;

-- name: works
-- Background work: who does it, and for how many seconds it was not done.
SELECT
    lease.name,
    CASE WHEN lease.expire_time > clock_timestamp() THEN lease.holder END,
    extract(epoch FROM clock_timestamp() - lease.success_time)::float8
FROM {schema}.lease
ORDER BY lease.name;

-- name: sizes
-- Tables of the domain, the largest first, and the database that they are in. Looks at every file of it.
SELECT
    pg_database_size(current_database()),
    relname::text,
    pg_total_relation_size(relid),
    n_live_tup
FROM pg_stat_all_tables
WHERE schemaname = '{schema}'
ORDER BY 3 DESC, 2;
