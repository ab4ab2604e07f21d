-- Reading where nothing may be written, and without leaving a trace: in read-only transactions,
-- without a transaction id, in parallel plans. Counting there is refused.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
SELECT counter_incr('x', 5);
SELECT counterx.compact();
SELECT counter_incr('x', 2);

-- A read takes no transaction id, whatever it reads: a total, pending deltas, nothing at all.
BEGIN;
SELECT counter_value('x'), counter_value('unknown');
SELECT name, value FROM counters;
SELECT sum(pending_deltas) FROM counterx.lanes;
SELECT txid_current_if_assigned() IS NULL AS without_xid;
-- Nor does an increment, before the end of its transaction.
SELECT counter_incr('x', 100);
SELECT counter_value('x');
SELECT value FROM counters WHERE name = 'x';
SELECT txid_current_if_assigned() IS NULL AS without_xid;
ROLLBACK;
-- A fold that finds nothing writes nothing.
SELECT counterx.compact();
BEGIN;
SELECT counterx.compact();
SELECT txid_current_if_assigned() IS NULL AS without_xid;
COMMIT;
SELECT counter_incr('x', 1);

-- Read-only transactions.
BEGIN READ ONLY;
SELECT counter_value('x');
SELECT name, value FROM counters;
SELECT count(*) FROM counterx.lanes;
SAVEPOINT s;
SELECT counter_incr('x');
ROLLBACK TO s;
SELECT counter_decr('x', 0);
ROLLBACK TO s;
SELECT counterx.compact();
ROLLBACK TO s;
SELECT counter_value('x');
COMMIT;
-- What was counted before a transaction turned read-only is written.
BEGIN;
SELECT counter_incr('x', 10);
SET TRANSACTION READ ONLY;
SELECT counter_value('x');
COMMIT;
SELECT counter_value('x');
-- A deferrable one, which waits for a safe snapshot and then needs no locks of its own.
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE;
SELECT counter_value('x');
SELECT name, value FROM counters;
COMMIT;

-- Parallel plans. The setting has another name from PostgreSQL 16 on.
SELECT set_config(name, 'on', false) FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query');
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
CREATE TABLE numbers AS SELECT i FROM generate_series(1, 1000) i;
ANALYZE numbers;
-- The numbers are summed up by workers, the counters are read by the leader: it knows what the own
-- transaction has counted.
BEGIN;
SELECT counter_incr('x', 1000);
SELECT counter_value('x') + sum(i) FROM numbers;
SELECT value + (SELECT sum(i) FROM numbers) FROM counters WHERE name = 'x';
SELECT count(*) FROM numbers WHERE i <= counter_value('x');
ROLLBACK;
EXPLAIN (COSTS OFF) SELECT counter_value('x') + sum(i) FROM numbers;
-- Functions that claim to be safe and are not: refused in the worker that runs them.
CREATE FUNCTION liar_incr() RETURNS void LANGUAGE plpgsql PARALLEL SAFE AS $$ BEGIN PERFORM counter_incr('x'); END $$;
CREATE FUNCTION liar_value() RETURNS bigint LANGUAGE plpgsql PARALLEL SAFE AS $$ BEGIN RETURN counter_value('x'); END $$;
CREATE FUNCTION liar_list() RETURNS bigint LANGUAGE plpgsql PARALLEL SAFE AS $$ BEGIN RETURN sum(value) FROM counters; END $$;
SELECT liar_incr();
\echo :LAST_ERROR_SQLSTATE
SELECT liar_value();
\echo :LAST_ERROR_SQLSTATE
SELECT liar_list();
\echo :LAST_ERROR_SQLSTATE
-- Nothing of it remains, and the session goes on.
SELECT set_config(name, 'off', false) FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query');
SELECT liar_value();
SELECT counter_incr('x');
SELECT counter_value('x');
