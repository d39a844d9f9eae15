-- percentiles
SELECT l_shipmode, percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY l_extendedprice),
    percentile_disc(0.5) WITHIN GROUP (ORDER BY l_quantity), mode() WITHIN GROUP (ORDER BY l_tax), stddev_samp(l_tax)
FROM tpch.lineitem GROUP BY l_shipmode;
-- window frames
SELECT o_orderkey, sum(o_totalprice) OVER w, avg(o_totalprice) OVER (w ROWS BETWEEN 3 PRECEDING AND CURRENT ROW),
    count(*) OVER (ORDER BY o_orderdate RANGE BETWEEN '30 days' PRECEDING AND '1 day' FOLLOWING EXCLUDE TIES),
    rank() OVER w, lag(o_totalprice, 2, 0.0) OVER w, ntile(4) OVER w, first_value(o_orderdate) OVER w
FROM tpch.orders WINDOW w AS (PARTITION BY o_orderstatus ORDER BY o_orderdate) LIMIT 20;
-- a recursive query with a search order and a mark of cycles
WITH RECURSIVE tree (id, parent) AS (
    SELECT 1, NULL::int UNION ALL SELECT n, tree.id FROM tree, LATERAL (VALUES (tree.id * 2), (tree.id * 2 + 1)) AS v (n)
    WHERE n < 64) SEARCH DEPTH FIRST BY id SET place CYCLE id SET looped USING path
SELECT id, parent, looped FROM tree ORDER BY place;
-- nested queries with WITH
WITH a AS (WITH b AS MATERIALIZED (SELECT o_custkey, sum(o_totalprice) AS total FROM tpch.orders GROUP BY 1)
    SELECT * FROM b WHERE total > 100), c AS NOT MATERIALIZED (SELECT max(total) AS most FROM a)
SELECT a.* FROM a, c WHERE a.total = c.most;
-- GROUPING SETS, ROLLUP, CUBE and FILTER
SELECT l_returnflag, l_shipmode, GROUPING(l_returnflag, l_shipmode), count(*) FILTER (WHERE l_quantity > 10)
FROM tpch.lineitem GROUP BY GROUPING SETS (ROLLUP (l_returnflag, l_shipmode), CUBE (l_linestatus), ()) LIMIT 50;
-- JSON
SELECT jsonb_build_object('a', jsonb_agg(jsonb_build_array(r_regionkey, r_name) ORDER BY r_name)) #>> '{a,0,1}',
    jsonb_path_query_array('[1, 5, 9]', '$[*] ? (@ > $least)', '{"least": 2}'), '{"a": {"b": [1]}}'::jsonb -> 'a' @> '{"b": [1]}',
    JSON_VALUE('{"a": 7}', '$.a' RETURNING int), JSON_OBJECT('x': 1 ABSENT ON NULL), JSON_ARRAYAGG(r_name)
FROM tpch.region;
-- JSON as tables
SELECT t.*, e.key, e.value, r.* FROM JSON_TABLE('[{"n": "a", "v": [1, 2]}]', '$[*]'
        COLUMNS (name text PATH '$.n', NESTED PATH '$.v[*]' COLUMNS (v int PATH '$'))) AS t,
    jsonb_each('{"k": 1}') AS e, jsonb_to_recordset('[{"a": 1, "b": "x"}]') AS r (a int, b text);
-- arrays, ranges, texts
SELECT array_agg(DISTINCT n_regionkey ORDER BY n_regionkey DESC), string_agg(n_name, ', ' ORDER BY n_name),
    cardinality(string_to_array('a,b,c', ',')), (ARRAY[1, 2, 3])[2:3], ARRAY[1] || 2, 2 = ANY (ARRAY[1, 2]),
    int4range(1, 10) && int4range(5, 15), upper(tstzrange(now(), now() + interval '1 day')) > now(),
    range_agg(int4range(n_nationkey, n_nationkey + 1)), regexp_replace('a1b2', '\d', '#', 'g'), 'abc' ~* '^A'
FROM tpch.nation;
-- series of times, with gaps filled
SELECT month::date, count(o_orderkey), repeat('*', least(count(o_orderkey), 60)::int), to_char(month, 'YYYY-MM')
FROM generate_series(timestamptz '1993-01-01', '1994-01-01', interval '1 month') AS month
LEFT JOIN tpch.orders ON date_trunc('month', o_orderdate::timestamptz) = month GROUP BY month ORDER BY month;
-- several functions in FROM, ordinals, samples
SELECT * FROM ROWS FROM (generate_series(1, 3), unnest(ARRAY['a', 'b'])) WITH ORDINALITY AS x (n, t, place),
    unnest(ARRAY[1, 2], ARRAY['x', 'y']) AS u (a, b) WHERE n < 3;
-- a sample
SELECT count(*) BETWEEN 0 AND 800 FROM tpch.lineitem TABLESAMPLE bernoulli (10) REPEATABLE (7);
-- sets and comparisons of rows
(SELECT 1 AS a UNION SELECT 2 INTERSECT SELECT 2) EXCEPT ALL SELECT 3 ORDER BY a FETCH FIRST 1 ROWS WITH TIES;
-- what describes the tables
SELECT c.relname, c.reltuples, pg_size_pretty(pg_total_relation_size(c.oid)), s.seq_scan, i.indexname
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_stat_user_tables AS s ON s.relid = c.oid LEFT JOIN pg_indexes AS i ON i.tablename = c.relname
WHERE n.nspname = 'tpch' ORDER BY 1;
-- full text
SELECT n_name, ts_rank(to_tsvector('simple', n_name), websearch_to_tsquery('simple', 'france or japan')) AS rank
FROM tpch.nation WHERE to_tsvector('simple', n_name) @@ to_tsquery('simple', 'france | japan');
-- every kind of value
SELECT true, 1::int2, 9223372036854775807, 1.5::float8, 'NaN'::float8, 1.50::numeric, 'NaN'::numeric, 'ä'::text,
    'x'::"char", '\x00ff'::bytea, timestamptz '2026-01-02 03:04:05.678901+02', timestamp '2026-01-02 03:04:05', date '2026-01-02',
    interval '1 day 2 hours', '{"a":1}'::json, '{"a": 1}'::jsonb, ARRAY[1, NULL, 3], ARRAY[['a, "b"', 'c\d'], ['', 'NULL']],
    '{}'::int[], '[0:1]={7,8}'::int[], '10.0.0.1'::inet, NULL, ROW(1, 'x'), 'infinity'::timestamptz, 42::oid,
    gen_random_uuid() IS NOT NULL, int4range(1, 3), timestamptz '0044-03-15 12:00:00 BC';
