-- Reads in the leader of a parallel plan. Each in a session of its own, so that nothing is known.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
SELECT counter_type_create('stock', min => 0);
SELECT counter_incr('stock:a', 5), counter_incr('stock:b', 7), counter_incr('plain', 3);
SELECT counterx.compact() > 0 AS folded;
SELECT counter_incr('stock:a', 1), counter_hold('stock:a', 2, '1 hour') > 0 AS held;
CREATE TABLE big AS SELECT n FROM generate_series(1, 1000) n;
ALTER DATABASE :DBNAME SET parallel_setup_cost = 0;
ALTER DATABASE :DBNAME SET parallel_tuple_cost = 0;
ALTER DATABASE :DBNAME SET min_parallel_table_scan_size = 0;
ALTER DATABASE :DBNAME SET max_parallel_workers_per_gather = 1;
\c -
EXPLAIN (COSTS off) SELECT f FROM (SELECT sum(n) AS n FROM big) b, LATERAL counter_value('stock:a') f WHERE b.n > 0;
SELECT f FROM (SELECT sum(n) AS n FROM big) b, LATERAL counter_value('stock:a') f WHERE b.n > 0;
-- In the target list, above the Gather.
SELECT sum(v) FROM (SELECT counter_value('plain') v FROM big OFFSET 0) s;
\c -
SELECT f.* FROM (SELECT sum(n) AS n FROM big) b, LATERAL counter_values('{stock:b,none,plain}') f WHERE b.n > 0;
\c -
SELECT f.* FROM (SELECT sum(n) AS n FROM big) b, LATERAL counter_list('stock:') f WHERE b.n > 0;
\c -
SELECT f FROM (SELECT sum(n) AS n FROM big) b, LATERAL counter_sum('stock:') f WHERE b.n > 0;
\c -
SELECT f.* FROM (SELECT sum(n) AS n FROM big) b, LATERAL counter_top(2) f WHERE b.n > 0;
\c -
SELECT f.* FROM (SELECT sum(n) AS n FROM big) b, LATERAL counter_bottom(2) f WHERE b.n > 0;
\c -
SELECT f.* FROM (SELECT sum(n) AS n FROM big) b, LATERAL counter_available('stock:a') f WHERE b.n > 0;
SELECT f.* FROM (SELECT sum(n) AS n FROM big) b, LATERAL counter_available('plain') f WHERE b.n > 0;
\c -
SELECT c.* FROM (SELECT sum(n) AS n FROM big) b, counters c WHERE b.n > 0 ORDER BY name;
\c -
SELECT c.* FROM (SELECT sum(n) AS n FROM big) b, counter_types c WHERE b.n > 0;
\c -
SELECT c.name, c.amount FROM (SELECT sum(n) AS n FROM big) b, counter_holds c WHERE b.n > 0;
\c -
SELECT count(*), sum(l.pending_deltas) FROM (SELECT sum(n) AS n FROM big) b, counterx.lanes l WHERE b.n > 0;
\c -
SELECT count(*) FROM (SELECT sum(n) AS n FROM big) b, counterx.workers w WHERE b.n > 0;
\c -
SELECT f.folds > 0 AS folded FROM (SELECT sum(n) AS n FROM big) b, LATERAL counterx.fold_status() f WHERE b.n > 0 ORDER BY 1 DESC LIMIT 1;
\c -
SELECT count(*) FROM (SELECT sum(n) AS n FROM big) b, LATERAL counterx.dump_rows() d WHERE b.n > 0;

-- By the latest value, where the snapshot is older than a change by value; inside the statement.
CREATE FUNCTION inner_value(name text) RETURNS SETOF bigint STABLE LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT f FROM (SELECT sum(n) AS n FROM big) b, LATERAL counter_value(name) f WHERE b.n > 0;
END $$;
SELECT counter_set('plain', 40), inner_value('plain');
SET counterx.pending_work_mem = '64kB';
BEGIN;
SELECT count(counter_incr('early:' || n)) FROM generate_series(1, 3000) n;
SELECT counter_set('early:1', 40), inner_value('early:1'), inner_value('early:2');
ROLLBACK;
