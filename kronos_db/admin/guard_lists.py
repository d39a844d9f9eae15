"""What a statement of AdminService.Query may be made of: kinds of nodes, functions, types, relations of the catalog."""

from __future__ import annotations


def _names(*texts: str) -> frozenset[str]:
    return frozenset(name for text in texts for name in text.split())


# Kinds of nodes of the parse tree. All else is refused: other statements, INTO, FOR UPDATE, parameters, XML.
NODES = _names(
    "RawStmt SelectStmt WithClause CommonTableExpr CTESearchClause CTECycleClause",
    "RangeVar RangeSubselect RangeFunction RangeTableSample JoinExpr Alias ColumnDef",
    "ResTarget ColumnRef A_Star A_Const A_Expr A_Indices A_Indirection A_ArrayExpr RowExpr",
    "Integer Float Boolean String BitString",
    "BoolExpr NullTest BooleanTest CaseExpr CaseWhen CoalesceExpr MinMaxExpr SQLValueFunction",
    "TypeCast TypeName CollateClause FuncCall NamedArgExpr SubLink SortBy WindowDef GroupingSet GroupingFunc",
    "JsonAggConstructor JsonArgument JsonArrayAgg JsonArrayConstructor JsonArrayQueryConstructor JsonBehavior",
    "JsonFormat JsonFuncExpr JsonIsPredicate JsonKeyValue JsonObjectAgg JsonObjectConstructor JsonOutput JsonParseExpr",
    "JsonReturning JsonScalarExpr JsonSerializeExpr JsonTable JsonTableColumn JsonTablePathSpec JsonValueExpr",
)

_AGGREGATES = """
    any_value array_agg avg bit_and bit_or bit_xor bool_and bool_or corr count covar_pop covar_samp cume_dist dense_rank
    every first_value json_agg json_agg_strict json_object_agg json_object_agg_strict json_object_agg_unique jsonb_agg
    jsonb_agg_strict jsonb_object_agg jsonb_object_agg_strict jsonb_object_agg_unique lag last_value lead max min mode
    nth_value ntile percent_rank percentile_cont percentile_disc range_agg range_intersect_agg rank regr_avgx regr_avgy
    regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy row_number stddev stddev_pop stddev_samp
    string_agg sum var_pop var_samp variance
"""
_NUMBERS = """
    abs acos acosd acosh asin asind asinh atan atan2 atan2d atand atanh cbrt ceil ceiling cos cosd cosh cot cotd degrees
    div erf erfc exp factorial floor gamma gcd lcm lgamma ln log log10 min_scale mod numeric pi power radians random
    random_normal round scale sign sin sind sinh sqrt tan tand tanh to_bin to_hex to_oct trim_scale trunc width_bucket
    int2 int4 int8 float4 float8 bit_count get_bit set_bit get_byte set_byte hashtext hashtextextended
"""
_TEXTS = """
    ascii bit_length btrim casefold char_length character_length chr concat concat_ws crc32 crc32c decode encode format
    initcap is_normalized left length like like_escape lower lpad ltrim md5 normalize notlike octet_length overlay
    parse_ident position quote_ident quote_literal quote_nullable regexp_count regexp_instr regexp_like regexp_match
    regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table regexp_substr repeat replace reverse right
    rpad rtrim sha224 sha256 sha384 sha512 similar_to_escape similar_escape split_part starts_with string_to_array
    string_to_table strpos substr substring text to_ascii to_char to_number translate unicode_assigned unistr upper
    convert_from convert_to varchar bpchar name
"""
_TIMES = """
    age clock_timestamp date date_add date_bin date_part date_subtract date_trunc extract isfinite justify_days
    justify_hours justify_interval make_date make_interval make_time make_timestamp make_timestamptz now overlaps
    statement_timestamp timeofday timezone to_date to_timestamp transaction_timestamp time timetz timestamp timestamptz
    interval
"""
_ARRAYS = """
    array_append array_cat array_dims array_length array_lower array_ndims array_position array_positions array_prepend
    array_remove array_replace array_reverse array_sample array_shuffle array_sort array_to_json array_to_string
    array_upper cardinality generate_series generate_subscripts trim_array unnest
"""
_JSON = """
    json_array_elements json_array_elements_text json_array_length json_build_array json_build_object json_each
    json_each_text json_extract_path json_extract_path_text json_object json_object_keys json_populate_record
    json_populate_recordset json_strip_nulls json_to_record json_to_recordset json_typeof jsonb_array_elements
    jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object jsonb_contained jsonb_contains
    jsonb_delete_path jsonb_each jsonb_each_text jsonb_exists jsonb_exists_all jsonb_exists_any jsonb_extract_path
    jsonb_extract_path_text jsonb_insert jsonb_object jsonb_object_keys jsonb_path_exists jsonb_path_exists_tz
    jsonb_path_match jsonb_path_match_tz jsonb_path_query jsonb_path_query_array jsonb_path_query_array_tz
    jsonb_path_query_first jsonb_path_query_first_tz jsonb_path_query_tz jsonb_populate_record jsonb_populate_recordset
    jsonb_pretty jsonb_set jsonb_set_lax jsonb_strip_nulls jsonb_to_record jsonb_to_recordset jsonb_typeof row_to_json
    to_json to_jsonb
"""
_RANGES = """
    datemultirange daterange int4multirange int4range int8multirange int8range isempty lower lower_inc lower_inf
    multirange nummultirange numrange range_merge tsmultirange tsrange tstzmultirange tstzrange upper upper_inc
    upper_inf
"""
_OTHERS = """
    abbrev area box broadcast center circle diagonal diameter family gen_random_uuid height host hostmask inet_merge
    inet_same_family isclosed isopen line lseg masklen netmask network npoints num_nonnulls num_nulls path point polygon
    pg_input_is_valid pg_typeof pg_column_size pg_collation_for radius set_masklen slope uuid_extract_timestamp
    uuid_extract_version uuidv4 uuidv7 width
    numnode phraseto_tsquery plainto_tsquery querytree setweight strip to_tsquery to_tsvector ts_rank ts_rank_cd
    tsvector_to_array websearch_to_tsquery
"""
# Of the system: sizes, definitions and where one is. None reads a file, tells of other sessions or keeps anything.
_SYSTEM = """
    col_description current_database current_schema format_type obj_description pg_get_constraintdef pg_get_expr
    pg_get_indexdef pg_indexes_size pg_is_in_recovery pg_relation_size pg_size_bytes pg_size_pretty pg_table_size
    pg_total_relation_size version
"""
FUNCTIONS = _names(_AGGREGATES, _NUMBERS, _TEXTS, _TIMES, _ARRAYS, _JSON, _RANGES, _OTHERS, _SYSTEM)
# Methods of TABLESAMPLE, which are functions too.
SAMPLING = _names("bernoulli system")

TYPES = _names(
    "bool int2 int4 int8 numeric float4 float8 money text varchar bpchar char name bytea bit varbit",
    "date time timetz timestamp timestamptz interval uuid json jsonb jsonpath inet cidr macaddr macaddr8 oid xid8",
    "pg_lsn point line lseg box path polygon circle tsvector tsquery record",
    "int4range int8range numrange tsrange tstzrange daterange",
    "int4multirange int8multirange nummultirange tsmultirange tstzmultirange datemultirange",
)

# Relations that every database has: what describes the tables, and their statistics. None holds values of rows.
CATALOG = _names(
    "pg_class pg_namespace pg_attribute pg_type pg_index pg_constraint pg_inherits pg_partitioned_table pg_am",
    "pg_collation pg_description pg_database pg_tables pg_indexes pg_views pg_sequences pg_matviews pg_timezone_names",
    "pg_stat_user_tables pg_stat_user_indexes pg_stat_all_tables pg_stat_all_indexes pg_statio_user_tables",
    "pg_statio_user_indexes pg_stat_database pg_stat_bgwriter pg_stat_checkpointer",
)
INFORMATION_SCHEMA = _names(
    "columns tables schemata views table_constraints key_column_usage constraint_column_usage referential_constraints",
    "check_constraints sequences domains element_types",
)

# Functions whose result grows with a number that they are given: name and place of the number.
AMPLIFIERS: dict[str, int] = {"repeat": 1, "lpad": 1, "rpad": 1}
# Types whose values are as long as their length says.
PADDED = _names("bpchar char bit varbit varchar")
