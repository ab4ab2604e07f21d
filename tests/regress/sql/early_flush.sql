-- A transaction that changes more counters than counterx.pending_work_mem holds writes them early.
-- Nobody notices: its own rows count for itself and for nobody else, and go with a rollback.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
CREATE FUNCTION long_name(i bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT 'many:' || i || repeat('.', 180) $$;

SET counterx.pending_work_mem = '64kB';
BEGIN;
SELECT count(counter_incr(long_name(i), i)) FROM generate_series(1, 2000) i;
-- It was so much that a transaction id was needed.
SELECT txid_current_if_assigned() IS NOT NULL AS has_written;
SELECT sum(counter_value(long_name(i))) = 2000 * 2001 / 2 AS exact FROM generate_series(1, 2000) i;
SELECT count(*), sum(value) FROM counters WHERE name LIKE 'many:%';
-- Once more: two rows a counter.
SELECT count(counter_incr(long_name(i), i)) FROM generate_series(1, 2000) i;
SELECT sum(counter_value(long_name(i))) = 2 * (2000 * 2001 / 2) AS exact FROM generate_series(1, 2000) i;
SELECT count(*), sum(value) FROM counters WHERE name LIKE 'many:%';
SELECT value FROM counters WHERE name = long_name(7);

-- A savepoint takes back what was written since, and what was not written yet.
SAVEPOINT a;
SELECT count(counter_incr(long_name(i), 1000000)) FROM generate_series(1, 2000) i;
SELECT count(*), sum(value) FROM counters WHERE name LIKE 'many:%';
ROLLBACK TO a;
SELECT count(*), sum(value) FROM counters WHERE name LIKE 'many:%';
-- A released one keeps it.
SAVEPOINT b;
SELECT count(counter_incr(long_name(i), -i)) FROM generate_series(1, 2000) i;
RELEASE b;
SELECT count(*), sum(value) FROM counters WHERE name LIKE 'many:%';

-- Such a transaction cannot fold: it would have to wait for itself. It cannot be prepared: it would
-- hold up the lanes for as long as it is in doubt.
SAVEPOINT c;
SELECT counterx.compact();
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO c;
PREPARE TRANSACTION 'counterx_early';
\echo :LAST_ERROR_SQLSTATE
-- The refusal rolled it back.
SELECT count(*), sum(value) FROM counters WHERE name LIKE 'many:%';
SELECT counterx.compact();

-- Committed, and seen to by a fold.
BEGIN;
SELECT count(counter_incr(long_name(i), i)) FROM generate_series(1, 2000) i;
SELECT count(counter_incr(long_name(i), i)) FROM generate_series(1, 2000) i;
COMMIT;
SELECT count(*), sum(value) FROM counters WHERE name LIKE 'many:%';
SELECT counterx.compact() >= 2000 AS folded;
SELECT count(*), sum(value) FROM counters WHERE name LIKE 'many:%';
SELECT counterx.compact();

-- Rows that are written early count from their insertion on, in the same statement, like those in
-- memory.
SELECT count(*), count(*) FILTER (WHERE counter_value(n) = 1) AS seen_at_once
FROM (SELECT 'new:' || long_name(i) AS n, counter_incr('new:' || long_name(i)) FROM generate_series(1, 1000) i OFFSET 0) s;

-- So does a cursor that was open already: it reads counters as it moves.
BEGIN;
DECLARE c CURSOR FOR SELECT counter_value(long_name(i)) FROM generate_series(1, 3) i;
FETCH c;
SELECT count(counter_incr(long_name(i), 100)) FROM generate_series(1, 2000) i;
FETCH c;
FETCH c;
ROLLBACK;

-- An overflow is one of a row: the part that is written already does not count for the limit, and
-- the value of the counter has none.
BEGIN;
SELECT counter_incr('big', 9223372036854775807);
SELECT count(counter_incr(long_name(i))) FROM generate_series(1, 2000) i;
SELECT counter_incr('big', 9223372036854775807);
SELECT value FROM counters WHERE name = 'big';
COMMIT;
SELECT value FROM counters WHERE name = 'big';
SELECT counterx.compact() > 0 AS folded;
SELECT value FROM counters WHERE name = 'big';

-- The memory is the transaction's: with enough of it the same can be prepared.
RESET counterx.pending_work_mem;
BEGIN;
SELECT count(counter_incr(long_name(i))) FROM generate_series(1, 2000) i;
PREPARE TRANSACTION 'counterx_early';
SELECT count(*), sum(value) FROM counters WHERE name LIKE 'many:%';
COMMIT PREPARED 'counterx_early';
SELECT count(*), sum(value) FROM counters WHERE name LIKE 'many:%';
SELECT counterx.compact();

-- What was written early in a savepoint is gone with it: the transaction holds up nobody any more.
SET counterx.pending_work_mem = '64kB';
BEGIN;
SAVEPOINT s;
SELECT count(counter_incr('early:' || i)) FROM generate_series(1, 3000) i;
ROLLBACK TO s;
SELECT counterx.compact() >= 0 AS folded;
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT count(counter_incr('early:' || i)) FROM generate_series(1, 3000) i;
RELEASE s;
SELECT counterx.compact();
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT count(counter_incr('early:' || i)) FROM generate_series(1, 3000) i;
ROLLBACK TO s;
SELECT counter_incr('x');
PREPARE TRANSACTION 'early';
COMMIT PREPARED 'early';
SELECT counter_value('x'), counter_sum('early:');
