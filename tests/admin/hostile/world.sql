-- One row that is another one when anything was written anywhere.
SELECT (SELECT string_agg(t::text, ',' ORDER BY id) FROM stand.t),
    (SELECT count(*) FROM stand.hidden),
    (SELECT (last_value, is_called)::text FROM stand.number),
    (SELECT string_agg(oid::text || relname || COALESCE(relacl::text, ''), ',' ORDER BY oid) FROM pg_class),
    (SELECT string_agg(oid::text || COALESCE(proacl::text, ''), ',' ORDER BY oid) FROM pg_proc WHERE oid > 16383),
    (SELECT string_agg(attname || COALESCE(attacl::text, ''), ',' ORDER BY attrelid, attnum)
     FROM pg_attribute WHERE attrelid = 'stand.t'::regclass),
    (SELECT string_agg(pg_authid::text, ',' ORDER BY oid) FROM pg_authid),
    (SELECT string_agg(datname, ',' ORDER BY oid) FROM pg_database),
    (SELECT string_agg(nspname, ',' ORDER BY oid) FROM pg_namespace),
    (SELECT string_agg(pg_db_role_setting::text, ',' ORDER BY setdatabase, setrole) FROM pg_db_role_setting),
    (SELECT string_agg(pg_largeobject::text, ',' ORDER BY loid, pageno) FROM pg_largeobject),
    (SELECT count(*) FROM pg_largeobject_metadata), (SELECT count(*) FROM pg_type), (SELECT count(*) FROM pg_operator),
    (SELECT count(*) FROM pg_description WHERE objoid > 16383), (SELECT count(*) FROM pg_publication),
    (SELECT count(*) FROM pg_subscription), (SELECT count(*) FROM pg_statistic_ext), (SELECT count(*) FROM pg_statistic),
    (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_prepared_xacts), (SELECT count(*) FROM pg_extension),
    (SELECT count(*) FROM pg_auth_members), (SELECT count(*) FROM pg_replication_origin),
    (SELECT count(*) FROM pg_locks WHERE locktype IN ('advisory', 'object')),
    (SELECT count(*) FROM pg_stat_statements) > 0,
    -- No transaction id was drawn.
    pg_snapshot_xmax(pg_current_snapshot())::text
