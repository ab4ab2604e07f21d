-- All counters dropped at once, as a test suite does it.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
SELECT counterx.drop_all_counters();
SELECT counter_type_create('stock', min => 0), counter_type_create('quota', min => 0, max => 10);
SELECT counter_incr_many('{"a": 1, "b": -2, "zero": 0, "stock:1": 10, "quota:1": 10}');
SELECT counterx.compact() > 0 AS folded;
SELECT counter_incr_many('{"a": 1, "new": 7}'), counter_incr_once('token', 'once', 3);
SELECT counter_hold('stock:1', 4, '1 hour', 'held') IS NOT NULL AS held, counter_hold('quota:1', 10, '1 hour') IS NOT NULL AS held;
DO $$ BEGIN FOR i IN 1 .. 3 LOOP PERFORM counter_incr('huge', 9223372036854775807); COMMIT; END LOOP; END $$;
SELECT counter_incr('least', -9223372036854775808);
-- It is taken back with the transaction, and with a savepoint.
BEGIN;
SAVEPOINT s;
SELECT counterx.drop_all_counters();
SELECT count(*), counter_sum(), counter_value('a') FROM counters;
SELECT count(*) FROM counter_holds;
ROLLBACK TO s;
SELECT name, value FROM counters ORDER BY name;
SELECT counterx.drop_all_counters();
SELECT counterx.drop_all_counters();
ROLLBACK;
SELECT name, value FROM counters ORDER BY name;
SELECT held FROM counter_available('stock:1');
SELECT counter_incr_once('token', 'once', 3);
-- With what the transaction has counted itself. What it counts afterwards counts; the rest of the statement
-- and open cursors see what it sees.
BEGIN;
SELECT counter_incr('a', 100), counter_incr('own', 1);
DECLARE c CURSOR FOR SELECT counter_value('a'), counter_value('own'), counter_sum(), counter_value('later') FROM generate_series(1, 2);
FETCH 1 FROM c;
SELECT counterx.drop_all_counters(), counter_value('a'), (SELECT count(*) FROM counters);
SELECT counter_incr('later', 5), counter_incr('a');
FETCH 1 FROM c;
SELECT name, value FROM counters ORDER BY name;
-- But what it counts of bounded counters would be held against what others see.
SELECT counter_incr('stock:1');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
SELECT counter_incr('stock:1');
SELECT counterx.drop_all_counters();
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
-- For good.
SELECT counterx.drop_all_counters();
SELECT name, value FROM counters;
SELECT * FROM counter_top();
SELECT count(*) FROM counter_holds;
SELECT name, counters FROM counter_types;
SELECT counterx.compact() > 0 AS folded;
SELECT count(*) FROM counterx.total;
SELECT count(*) FROM counterx.token;
-- Everything begins anew: bounds, tokens, holds.
SELECT counter_try_incr('stock:1', -1), counter_try_incr('quota:1', 10), counter_try_incr('quota:1');
SELECT counter_incr_once('token', 'once', 3), counter_value('once');
SELECT counter_incr('stock:1', 3);
SELECT counter_hold('stock:1', 3, '1 hour', 'held') IS NOT NULL AS held;
SELECT counter_try_incr('stock:1', -1);
SELECT counterx.drop_all_counters();
-- Not in transactions of one snapshot, which may not see all.
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT counter_incr('s', 1);
SELECT counterx.drop_all_counters();
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT counterx.drop_all_counters();
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SELECT counter_incr('s', 2), counter_incr('t', 2);
SELECT name, value FROM counters ORDER BY name;
-- Many, more than are kept in memory.
SET counterx.pending_work_mem = '64kB';
SELECT count(counter_incr('many:' || n, n)) FROM generate_series(1, 5000) n;
BEGIN;
SELECT counterx.drop_all_counters();
SELECT count(*) FROM counters;
ROLLBACK;
SELECT count(*), sum(value) FROM counters;
SELECT counterx.drop_all_counters();
SELECT count(*) FROM counters;
RESET counterx.pending_work_mem;
SELECT counterx.compact() > 0 AS folded;
SELECT count(*) FROM counterx.total;
-- Not where it must not write, and not by accident.
BEGIN READ ONLY;
SELECT counterx.drop_all_counters();
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
SELECT counterx.drop_all_counters();
PREPARE TRANSACTION 'dropped';
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('prepared', 2);
CREATE ROLE regress_counterx_drop_all;
SET ROLE regress_counterx_drop_all;
SELECT counterx.drop_all_counters();
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
GRANT USAGE ON SCHEMA counterx TO regress_counterx_drop_all;
GRANT EXECUTE ON FUNCTION counterx.drop_all_counters TO regress_counterx_drop_all;
SET ROLE regress_counterx_drop_all;
SELECT counterx.drop_all_counters();
RESET ROLE;
DROP OWNED BY regress_counterx_drop_all;
DROP ROLE regress_counterx_drop_all;
