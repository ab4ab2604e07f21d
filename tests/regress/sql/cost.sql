-- How much of a large set of counters a read touches: what was asked for, and not the rest.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
SELECT count(counter_incr('n:' || i, i % 10000)) FROM generate_series(1, 50000) i;
SELECT counterx.compact();
-- The folded logs are emptied by the next one.
SELECT counterx.compact();
SELECT counterx.create_value_index();
VACUUM counterx.total;
SELECT count(counter_incr('n:' || i, 5)) FROM generate_series(1, 50000, 5000) i;
SELECT pg_relation_size('counterx.total') / 8192 > 400 AS large;

-- The number of blocks that a query asks the buffer manager for, once its session knows the tables.
CREATE FUNCTION blocks(query text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    plan json;
BEGIN
    FOR i IN 1 .. 2 LOOP
        EXECUTE 'EXPLAIN (ANALYZE, BUFFERS, TIMING off, FORMAT json) ' || query INTO plan;
    END LOOP;
    RETURN (plan -> 0 -> 'Plan' ->> 'Shared Hit Blocks')::bigint + (plan -> 0 -> 'Plan' ->> 'Shared Read Blocks')::bigint;
END $$;
CREATE TABLE queries (query text, bounded boolean);
INSERT INTO queries VALUES
    ('SELECT counter_value(''n:4711'')', true),
    ('SELECT * FROM counter_values(''{n:1,n:4711,unknown}'')', true),
    ('SELECT * FROM counter_list(max_rows => 10)', true),
    ('SELECT * FROM counter_list(''n:4'', ''n:4711'', 10)', true),
    ('SELECT * FROM counter_list(''nothing'')', true),
    ('SELECT * FROM counter_top(10)', true),
    ('SELECT * FROM counter_bottom(10)', true),
    ('SELECT * FROM counter_top(10, ''n:471'')', true),
    ('SELECT * FROM counter_bottom(10, ''n:12345'')', true),
    ('SELECT counter_sum(''n:4711'')', true),
    ('SELECT * FROM counters WHERE name = ''n:4711''', true),
    ('SELECT * FROM counters WHERE name LIKE ''n:4711%''', true),
    ('SELECT * FROM counters WHERE name IN (''n:1'', ''n:2'')', true),
    -- The whole of it.
    ('SELECT counter_sum()', false),
    ('SELECT * FROM counters', false);
-- The bound is generous, and less than the table of totals has blocks.
SELECT query, bounded, CASE WHEN bounded THEN blocks(query) < 400 ELSE blocks(query) > 400 END AS as_expected FROM queries;
-- A large prefix is tried by name first, for a bounded number of counters.
SELECT blocks('SELECT * FROM counter_top(10, ''n:4'')') < 1500 AS as_expected;
-- Under pending deltas as well: they are few.
BEGIN;
SELECT count(counter_incr('n:' || i, 5)) FROM generate_series(1, 50000, 500) i;
SELECT query, blocks(query) FROM queries WHERE bounded AND blocks(query) >= 600;
ROLLBACK;
-- None of them reads the table of totals from its beginning to its end.
CREATE FUNCTION table_scans() RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT seq_scan FROM pg_stat_xact_user_tables WHERE schemaname = 'counterx' AND relname = 'total'
$$;
BEGIN;
SELECT table_scans() AS before \gset
SELECT count(blocks(query)) FROM queries WHERE bounded;
SELECT table_scans() - :before AS scans;
SELECT count(blocks(query)) FROM queries WHERE NOT bounded;
SELECT table_scans() > :before AS rises;
COMMIT;
-- Without the value index ranks are found by reading all, and increments read none of it.
SELECT counterx.drop_value_index();
SELECT blocks('SELECT * FROM counter_top(10)') > 400 AS all;
BEGIN;
SELECT blocks('SELECT counter_incr(''n:4711''), counter_incr_many(''{"n:1": 1, "new": 1}'')');
ROLLBACK;
SELECT blocks('SELECT counter_incr_once(''t'', ''n:4711''), counter_set(''n:1'', 5), counter_drop(''n:2''), counter_merge(''n:3'', ''n:'' || counter_incr_get(''n:4''))') < 300 AS few;
-- How the view is read: a prefix is a range of names, a list of names is looked up.
EXPLAIN (COSTS off) SELECT * FROM counters WHERE name LIKE 'n:47%';
EXPLAIN (COSTS off) SELECT * FROM counters WHERE starts_with(name, 'n:47');
EXPLAIN (COSTS off) SELECT * FROM counters WHERE name ^@ 'n:47' AND value > 5;
EXPLAIN (COSTS off) SELECT * FROM counters WHERE name >= 'n:47' AND name < 'n:48';
EXPLAIN (COSTS off) SELECT * FROM counters WHERE name = ANY ('{n:1,n:2}');
-- What the planner expects of the functions.
EXPLAIN SELECT * FROM counter_values('{a,b,c}');
EXPLAIN SELECT * FROM counter_list('n:', NULL, 10);
EXPLAIN SELECT * FROM counter_top(3);
