-- One statement a line. PID is a session of the same role, DIR a directory with a file `canary`, OID a large object.
-- Settings
SELECT set_config('statement_timeout', '0', false)
SELECT set_config('statement_timeout', '0', true)
SELECT pg_catalog.set_config('search_path', 'stand', false)
SELECT set_config('role', 'kronos', false)
SELECT set_config('transaction_read_only', 'off', true)
SELECT set_config('stand.hidden', '1', false)
SELECT set_config(name, setting, false) FROM pg_settings WHERE name = 'work_mem'
UPDATE pg_settings SET setting = '0' WHERE name = 'statement_timeout'
SET statement_timeout = 0
SET LOCAL statement_timeout = 0
SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE
SET TRANSACTION READ WRITE
SET TRANSACTION ISOLATION LEVEL SERIALIZABLE
SET ROLE kronos
SET SESSION AUTHORIZATION kronos
SET search_path = stand
RESET ALL
RESET ROLE
SHOW data_directory
DISCARD ALL
SELECT setseed(0.5)
ALTER SYSTEM SET work_mem = '1GB'
ALTER ROLE kronos_query SET statement_timeout = 0
ALTER DATABASE hostile SET work_mem = '1GB'
SELECT pg_reload_conf()
SELECT pg_rotate_logfile()
-- Transactions and several statements
COMMIT
ROLLBACK
BEGIN
SAVEPOINT a
PREPARE TRANSACTION 'a'
SELECT 1; COMMIT; CREATE TABLE stand.made (a int)
SELECT 1; INSERT INTO stand.t (id) VALUES (99)
SELECT 1; SELECT pg_advisory_lock(1)
SELECT 1) AS q OFFSET 0) AS s (c0) OFFSET 0) AS r; COMMIT; SELECT pg_advisory_lock(1); SELECT 1 FROM (SELECT 1 FROM (SELECT 1 FROM (SELECT 1
COMMIT; SELECT set_config('work_mem', '77MB', false)
END; CREATE TEMP TABLE x (a int)
-- Locks
SELECT pg_advisory_lock(1)
SELECT pg_advisory_lock(1, 2)
SELECT pg_advisory_lock_shared(1)
SELECT pg_advisory_xact_lock(1)
SELECT pg_try_advisory_lock(1)
SELECT pg_try_advisory_lock_shared(3)
SELECT pg_try_advisory_xact_lock(1)
SELECT pg_advisory_unlock_all()
SELECT * FROM generate_series(1, 3) AS g, LATERAL (SELECT pg_try_advisory_lock(g)) AS x
LOCK TABLE stand.t
LOCK TABLE stand.t IN ACCESS SHARE MODE
SELECT id FROM stand.t FOR UPDATE
SELECT id FROM stand.t FOR NO KEY UPDATE
SELECT id FROM stand.t FOR SHARE
SELECT id FROM stand.t FOR KEY SHARE SKIP LOCKED
SELECT * FROM (SELECT id FROM stand.t FOR UPDATE NOWAIT) AS x
WITH x AS (SELECT id FROM stand.t FOR UPDATE) SELECT * FROM x
-- Other sessions
SELECT pg_terminate_backend(PID)
SELECT pg_terminate_backend(PID, 100)
SELECT pg_cancel_backend(PID)
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()
SELECT * FROM pg_terminate_backend(PID)
SELECT id FROM stand.t WHERE pg_cancel_backend(PID)
SELECT pg_log_backend_memory_contexts(PID)
SELECT pg_notify('watched', 'x')
NOTIFY watched, 'x'
LISTEN watched
UNLISTEN *
SELECT pg_stat_reset()
SELECT pg_stat_reset_shared('bgwriter')
SELECT pg_stat_statements_reset()
SELECT pg_stat_clear_snapshot()
SELECT pg_stat_force_next_flush()
SELECT pg_switch_wal()
SELECT pg_create_restore_point('x')
SELECT pg_promote()
SELECT pg_wal_replay_pause()
CHECKPOINT
SELECT pg_sleep(5)
SELECT pg_sleep_for('5 seconds')
SELECT pg_sleep_until(now() + interval '5 seconds')
-- The log of the server, snapshots, transaction ids
SELECT pg_logical_emit_message(false, 'x', 'y')
SELECT pg_logical_emit_message(true, 'x', 'y')
SELECT pg_logical_emit_message(false, 'x', 'y'::bytea, true)
SELECT pg_export_snapshot()
SELECT txid_current()
SELECT pg_current_xact_id()
SELECT pg_create_physical_replication_slot('x')
SELECT pg_create_logical_replication_slot('x', 'pgoutput')
SELECT pg_drop_replication_slot('x')
SELECT pg_replication_origin_create('x')
SELECT pg_backup_start('x')
SELECT pg_nextoid('pg_class', 'oid', 'pg_class_oid_index')
-- Texts that are run as SQL
SELECT * FROM ts_stat('SELECT to_tsvector(secret) FROM stand.t')
SELECT * FROM ts_stat('SELECT pg_advisory_lock(7)::text::tsvector')
SELECT ts_rewrite('a'::tsquery, 'SELECT ''a''::tsquery, pg_advisory_lock(8)::text::tsquery')
SELECT query_to_xml('SELECT pg_advisory_lock(1)', true, false, '')
SELECT query_to_xmlschema('SELECT 1', true, false, '')
SELECT table_to_xml('stand.t', true, false, '')
SELECT schema_to_xml('stand', true, false, '')
SELECT database_to_xml(true, false, '')
SELECT cursor_to_xml('kronos_result', 1, true, false, '')
DO $$ BEGIN PERFORM pg_advisory_lock(1); END $$
DO LANGUAGE plpgsql 'BEGIN PERFORM stand.write(); END'
CALL stand.proceed()
EXECUTE something
PREPARE something AS SELECT 1
DEALLOCATE ALL
EXPLAIN ANALYZE SELECT stand.write()
EXPLAIN SELECT 1
EXPLAIN ANALYZE INSERT INTO stand.t (id) VALUES (99)
EXPLAIN (ANALYZE) DELETE FROM stand.t
DECLARE c CURSOR WITH HOLD FOR SELECT 1
FETCH 1 FROM kronos_result
MOVE 1 IN kronos_result
CLOSE ALL
SELECT * FROM dblink('host=DIR', 'SELECT 1') AS t (a int)
SELECT stand.dblink_connect('x')
SELECT xpath('/a', '<a/>'::xml)
SELECT XMLPARSE(DOCUMENT '<!DOCTYPE x [<!ENTITY e SYSTEM "file://DIR/canary">]><x>&e;</x>')
SELECT xmlelement(name a, 1)
SELECT * FROM XMLTABLE('/a' PASSING '<a/>' COLUMNS b text)
-- Files
SELECT pg_read_file('DIR/canary')
SELECT * FROM pg_read_file('DIR/canary')
SELECT * FROM ROWS FROM (pg_read_file('DIR/canary')) AS x
SELECT x FROM stand.t, LATERAL pg_read_file('DIR/canary') AS x
SELECT pg_read_binary_file('DIR/canary')
SELECT * FROM pg_ls_dir('DIR')
SELECT * FROM pg_ls_waldir()
SELECT * FROM pg_ls_logdir()
SELECT * FROM pg_ls_tmpdir()
SELECT pg_stat_file('DIR/canary')
SELECT * FROM pg_hba_file_rules
SELECT * FROM pg_file_settings
SELECT * FROM pg_ident_file_mappings
SELECT * FROM pg_show_all_file_settings()
SELECT * FROM pg_hba_file_rules()
SELECT pg_current_logfile()
SELECT lo_import('DIR/canary')
SELECT lo_export(OID, 'DIR/written')
SELECT lo_create(4711)
SELECT lo_creat(-1)
SELECT lo_from_bytea(4712, 'x')
SELECT lo_put(OID, 0, 'y')
SELECT lo_get(OID)
SELECT lo_open(OID, 131072)
SELECT loread(lo_open(OID, 262144), 10)
SELECT lowrite(lo_open(OID, 131072), 'x')
SELECT lo_truncate(lo_open(OID, 131072), 0)
SELECT lo_unlink(OID)
COPY stand.t TO STDOUT
COPY (SELECT 1) TO 'DIR/written'
COPY (SELECT 1) TO PROGRAM 'touch DIR/written'
COPY stand.t (id) FROM 'DIR/canary'
COPY stand.t (id) FROM PROGRAM 'cat DIR/canary'
COPY stand.t (id) FROM STDIN
LOAD 'DIR/canary'
CREATE EXTENSION dblink
-- Rows
INSERT INTO stand.t (id) VALUES (99)
UPDATE stand.t SET id = 99
DELETE FROM stand.t
TRUNCATE stand.t
MERGE INTO stand.t USING (SELECT 1 AS a) AS s ON id = a WHEN MATCHED THEN DELETE
WITH x AS (DELETE FROM stand.t RETURNING id) SELECT * FROM x
WITH x AS (INSERT INTO stand.t (id) VALUES (99) RETURNING id) SELECT * FROM x
WITH x AS (UPDATE stand.t SET id = id + 1 RETURNING id) SELECT count(*) FROM x
WITH x AS (MERGE INTO stand.t USING (SELECT 1 AS a) AS s ON id = a WHEN MATCHED THEN DELETE RETURNING id) SELECT * FROM x
WITH RECURSIVE x AS (SELECT 1 AS a), y AS (DELETE FROM stand.t RETURNING id) SELECT * FROM x
SELECT * FROM (WITH x AS (DELETE FROM stand.t RETURNING id) SELECT * FROM x) AS y
SELECT 1 INTO stand.made
SELECT * INTO TEMP made FROM stand.t
CREATE TABLE stand.made AS SELECT 1
CREATE TABLE public.made (a int)
CREATE TEMP TABLE made (a int)
CREATE TEMP TABLE made AS SELECT 1
CREATE TEMP VIEW made AS SELECT 1
CREATE TEMP SEQUENCE made
CREATE UNLOGGED TABLE stand.made (a int)
CREATE VIEW stand.made AS SELECT 1
CREATE MATERIALIZED VIEW stand.made AS SELECT 1
REFRESH MATERIALIZED VIEW stand.made
CREATE INDEX made ON stand.t (id)
CREATE SCHEMA made
CREATE FUNCTION public.made() RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE FUNCTION pg_temp.made() RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE ROLE made SUPERUSER
CREATE DATABASE made
CREATE STATISTICS stand.made ON id, secret FROM stand.t
CREATE SUBSCRIPTION made CONNECTION 'host=DIR' PUBLICATION p
CREATE PUBLICATION made FOR ALL TABLES
CREATE DOMAIN public.made AS int CHECK (stand.write() > 0)
CREATE OPERATOR public.%% (LEFTARG = int, RIGHTARG = int, FUNCTION = int4pl)
ALTER TABLE stand.t ADD COLUMN made int
DROP TABLE stand.t
DROP OWNED BY kronos
REASSIGN OWNED BY kronos TO kronos_query
GRANT SELECT ON stand.t TO kronos_query
GRANT kronos TO kronos_query
COMMENT ON TABLE stand.t IS 'made'
SECURITY LABEL ON TABLE stand.t IS 'made'
VACUUM stand.t
ANALYZE stand.t
CLUSTER stand.t
REINDEX TABLE stand.t
-- Functions of ours, straight and behind operators, casts, types, views, columns
SELECT stand.write()
SELECT * FROM stand.write()
SELECT * FROM ROWS FROM (stand.write(), generate_series(1, 2)) AS x
SELECT id FROM stand.t WHERE stand.write() > 0
SELECT id FROM stand.t ORDER BY stand.write()
SELECT 1 OPERATOR(stand.@@@) 2
SELECT id FROM stand.t ORDER BY id USING OPERATOR(stand.<<<)
SELECT '1'::stand.checked
SELECT CAST(1 AS stand.checked)
SELECT 1::stand.checked
SELECT NULL::stand.checked
SELECT ROW(1, 'x')::stand.t
SELECT * FROM stand.view
SELECT made FROM stand.view
SELECT (t).write FROM (SELECT ROW(1, 'x', 'a')::stand.t AS t) AS x
SELECT (x).pg_terminate_backend FROM (SELECT PID AS x) AS y
SELECT stand.shout('a')
SELECT count(stand.kind_text(kind)) FROM stand.t
SELECT stand.total(id) FROM stand.t
-- Sequences
SELECT nextval('stand.number')
SELECT setval('stand.number', 7)
SELECT currval('stand.number')
SELECT lastval()
SELECT * FROM stand.number
SELECT pg_sequence_last_value('stand.number'::regclass)
-- What is not to be read
SELECT secret FROM stand.t
SELECT * FROM stand.t
TABLE stand.t
SELECT t FROM stand.t AS t
SELECT t.* FROM stand.t AS t
SELECT row_to_json(t) FROM stand.t AS t
SELECT count(secret) FROM stand.t
SELECT id FROM stand.t WHERE secret LIKE 'a%'
SELECT id FROM stand.t ORDER BY secret
SELECT id FROM stand.t GROUP BY id, secret
SELECT a.id FROM stand.t AS a JOIN stand.t AS b USING (secret)
SELECT * FROM stand.hidden
SELECT * FROM pg_authid
SELECT rolpassword FROM pg_catalog.pg_authid
SELECT * FROM pg_shadow
SELECT * FROM pg_largeobject
SELECT * FROM pg_user_mapping
SELECT * FROM pg_statistic
SELECT * FROM pg_stats WHERE tablename = 't'
SELECT * FROM pg_stat_activity
SELECT query FROM pg_stat_get_activity(NULL) AS x
SELECT * FROM pg_settings
SELECT current_setting('data_directory')
SELECT * FROM pg_subscription
SELECT * FROM pg_stat_ssl
WITH pg_authid AS (SELECT 1) SELECT * FROM pg_authid
SELECT 'pg_authid'::regclass
SELECT 'pg_authid'::regclass::oid
SELECT CAST('pg_read_file(text)' AS regprocedure)
SELECT regclass('pg_authid')
SELECT to_regclass('pg_authid')
SELECT to_regproc('pg_read_file')
SELECT 'kronos'::regrole
SELECT pg_get_functiondef('stand.write'::regproc)
SELECT pg_get_viewdef('stand.view'::regclass)
SELECT has_table_privilege('stand.t', 'SELECT')
-- Spelt otherwise
SELECT "pg_read_file"('DIR/canary')
SELECT U&"\0070g_read_file"('DIR/canary')
SELECT U&"pg!005fread_file" UESCAPE '!' ('DIR/canary')
SELECT PG_READ_FILE('DIR/canary')
SELECT pg_catalog . pg_read_file ('DIR/canary')
SELECT pg_read_file/**/('DIR/canary')
SELECT /* SELECT 1 */ pg_read_file('DIR/canary') -- x
SELECT pg_read_file(E'DIR/\x63anary')
SELECT pg_read_file(U&'DIR/\0063anary')
SELECT pg_read_file($$DIR/canary$$)
SELECT hostile.stand.write()
SELECT * FROM hostile.pg_catalog.pg_authid
SELECT $1
SELECT id FROM ONLY stand.hidden
SELECT * FROM stand.t TABLESAMPLE stand.sampled (1)
SELECT 1 LIMIT pg_advisory_lock(1)::text::int
SELECT 1 OFFSET (SELECT pg_try_advisory_lock(1)::int)
SELECT CASE WHEN pg_try_advisory_lock(1) THEN 1 END
SELECT sum(1) FILTER (WHERE pg_try_advisory_lock(1))
SELECT sum(1) OVER (ORDER BY pg_try_advisory_lock(1)::text)
SELECT id FROM stand.t GROUP BY GROUPING SETS ((id, pg_try_advisory_lock(1)))
SELECT JSON_OBJECT('a': pg_try_advisory_lock(1))
SELECT JSON_VALUE('{}'::jsonb, '$.a' DEFAULT pg_try_advisory_lock(1)::text ON EMPTY)
SELECT * FROM JSON_TABLE('[1]'::jsonb, '$[*]' PASSING pg_try_advisory_lock(1) AS x COLUMNS (a int PATH '$'))
SELECT ARRAY[pg_try_advisory_lock(1)]
SELECT (ARRAY[1, 2])[pg_try_advisory_lock(1)::int]
VALUES (pg_try_advisory_lock(1))
SELECT DISTINCT ON (pg_try_advisory_lock(1)) 1
SELECT 1 UNION SELECT pg_try_advisory_lock(1)::int
SELECT 1 WHERE EXISTS (SELECT pg_try_advisory_lock(1))
SELECT 1 = ANY (ARRAY(SELECT pg_try_advisory_lock(1)::int))
SELECT * FROM generate_series(1, pg_try_advisory_lock(1)::int)
-- What no name in the text tells: casts and conversions that are functions
SELECT mark::integer FROM stand.t
SELECT CAST(mark AS int4) FROM stand.t
SELECT id FROM stand.t WHERE (mark)::int > 0
SELECT sum(mark::int) OVER () FROM stand.t
