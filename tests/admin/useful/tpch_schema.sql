-- The tables of TPC-H with a few rows, all made of the numbers of the rows.
CREATE SCHEMA tpch;
CREATE TABLE tpch.region (r_regionkey integer, r_name text, r_comment text);
CREATE TABLE tpch.nation (n_nationkey integer, n_name text, n_regionkey integer, n_comment text);
CREATE TABLE tpch.supplier (s_suppkey integer, s_name text, s_address text, s_nationkey integer, s_phone text,
    s_acctbal numeric, s_comment text);
CREATE TABLE tpch.part (p_partkey integer, p_name text, p_mfgr text, p_brand text, p_type text, p_size integer,
    p_container text, p_retailprice numeric, p_comment text);
CREATE TABLE tpch.partsupp (ps_partkey integer, ps_suppkey integer, ps_availqty integer, ps_supplycost numeric,
    ps_comment text);
CREATE TABLE tpch.customer (c_custkey integer, c_name text, c_address text, c_nationkey integer, c_phone text,
    c_acctbal numeric, c_mktsegment text, c_comment text);
CREATE TABLE tpch.orders (o_orderkey integer, o_custkey integer, o_orderstatus text, o_totalprice numeric,
    o_orderdate date, o_orderpriority text, o_clerk text, o_shippriority integer, o_comment text);
CREATE TABLE tpch.lineitem (l_orderkey integer, l_partkey integer, l_suppkey integer, l_linenumber integer,
    l_quantity numeric, l_extendedprice numeric, l_discount numeric, l_tax numeric, l_returnflag text,
    l_linestatus text, l_shipdate date, l_commitdate date, l_receiptdate date, l_shipinstruct text, l_shipmode text,
    l_comment text);
INSERT INTO tpch.region SELECT i, (ARRAY['EUROPE', 'ASIA', 'AMERICA'])[i], '' FROM generate_series(1, 3) AS i;
INSERT INTO tpch.nation SELECT i, (ARRAY['FRANCE', 'GERMANY', 'INDIA', 'JAPAN', 'BRAZIL', 'CANADA', 'SAUDI ARABIA'])[i],
    (i + 1) / 2, '' FROM generate_series(1, 6) AS i;
INSERT INTO tpch.supplier SELECT i, 'Supplier ' || i, 'Street ' || i, 1 + i % 6, 10 + i % 20 || '-1', i * 10, 'x'
    FROM generate_series(1, 20) AS i;
INSERT INTO tpch.part SELECT i, 'forest green ' || i, 'M' || i % 3, 'Brand#' || 10 + i % 30,
    (ARRAY['STANDARD BRASS', 'PROMO TIN', 'ECONOMY ANODIZED STEEL'])[1 + i % 3], 1 + i % 50,
    (ARRAY['SM CASE', 'MED BAG', 'LG BOX', 'JUMBO PKG'])[1 + i % 4], 900 + i, '' FROM generate_series(1, 60) AS i;
INSERT INTO tpch.partsupp SELECT p, 1 + (p * s) % 20, 10 * s, p + s, '' FROM generate_series(1, 60) AS p, generate_series(1, 4) AS s;
INSERT INTO tpch.customer SELECT i, 'Customer ' || i, 'Street ' || i, 1 + i % 6, 10 + i % 25 || '-2', i * 5,
    (ARRAY['BUILDING', 'MACHINERY'])[1 + i % 2], '' FROM generate_series(1, 50) AS i;
INSERT INTO tpch.orders SELECT i, 1 + i % 40, (ARRAY['F', 'O'])[1 + i % 2], i * 100, date '1993-01-01' + i * 7,
    (ARRAY['1-URGENT', '2-HIGH', '5-LOW'])[1 + i % 3], 'Clerk', 0, '' FROM generate_series(1, 200) AS i;
INSERT INTO tpch.lineitem SELECT o, 1 + (o + l) % 60, 1 + (o * l) % 20, l, (o * l) % 50, o * l, (o % 10) / 100.0, 0.05,
    (ARRAY['R', 'A', 'N'])[1 + o % 3], (ARRAY['F', 'O'])[1 + l % 2], date '1993-01-01' + o * 7 + l,
    date '1993-01-01' + o * 7 + 5, date '1993-01-01' + o * 7 + 2 * l, 'DELIVER IN PERSON',
    (ARRAY['MAIL', 'SHIP', 'AIR'])[1 + l % 3], '' FROM generate_series(1, 200) AS o, generate_series(1, 4) AS l;
ANALYZE;
