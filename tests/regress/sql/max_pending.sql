-- Back-pressure: counterx.max_pending and what it does. (No worker folds here, nor is one there.)
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
-- All in one lane.
SELECT counter_incr('a');
SELECT counter_incr('a');
SET counterx.max_pending = 3;
-- One more is not yet too many.
SELECT counter_incr('a');
SELECT counter_incr('a');
-- Of another lane.
SELECT counter_incr('likes');
-- Once a transaction, whatever it does.
BEGIN;
SELECT counter_incr('a'), counter_incr('a');
SAVEPOINT s;
SELECT counter_incr('a');
RELEASE s;
COMMIT;
-- Nothing is written.
BEGIN;
SELECT counter_incr('a');
ROLLBACK;
BEGIN;
SELECT counter_incr('a');
PREPARE TRANSACTION 'counterx_max_pending';
ROLLBACK PREPARED 'counterx_max_pending';
SELECT counter_value('a');

-- Refused, and counted no more.
SET counterx.max_pending_action = error;
SELECT counter_incr('a');
\echo :LAST_ERROR_SQLSTATE
BEGIN;
SELECT counter_incr('a');
COMMIT;
SELECT counter_set('a', 0);
SELECT counter_value('a');
SELECT counter_incr('likes');
-- What reads alone is not concerned.
SELECT pending FROM counterx.stat;
-- A hit counts by itself, and the committer is not held up.
SELECT counter_hit('a');
SELECT counter_value('a');

-- Early writing is judged where it begins, and then no more.
BEGIN;
SET LOCAL counterx.pending_work_mem = '64kB';
SELECT count(counter_incr('early:' || i)) FROM generate_series(1, 3000) i;
ROLLBACK;
BEGIN;
SET LOCAL counterx.pending_work_mem = '64kB';
SET LOCAL counterx.max_pending = 0;
SELECT count(counter_incr('early:' || i)) FROM generate_series(1, 3000) i;
SET LOCAL counterx.max_pending = 3;
SELECT counter_incr('a');
COMMIT;
SELECT counter_value('a'), counter_sum('early:');

-- A transaction that keeps others from folding the lane would wait for itself: it is let through. (Nobody waits where
-- folding is paused, and all of this server is.)
SET counterx.compaction = on;
SET counterx.max_pending_action = wait;
SET counterx.max_pending_wait = '5s';
BEGIN;
SELECT counter_type_create('t', min => 0);
SELECT counter_incr('a');
COMMIT;
BEGIN;
SELECT counterx.compact() > 0 AS folded;
SELECT counter_incr('a');
COMMIT;
BEGIN;
SELECT counterx.create_value_index();
SELECT counter_incr('a');
COMMIT;
SELECT counterx.drop_value_index();
BEGIN;
LOCK TABLE counterx.log_0_a, counterx.log_1_a, counterx.log_2_a, counterx.log_3_a, counterx.log_4_a, counterx.log_5_a, counterx.log_6_a,
    counterx.log_7_a;
SELECT counter_incr('a');
COMMIT;
SELECT counter_value('a');
-- Waiting where nobody folds ends at once, nearly.
SET counterx.max_pending = 1;
SET counterx.max_pending_wait = 0;
-- (The hint tells whether there is a worker by now that has paused.)
\set VERBOSITY terse
SELECT counter_incr('a');
\set VERBOSITY default
\echo :LAST_ERROR_SQLSTATE
SET counterx.compaction = off;
SET counterx.max_pending_wait = '5s';
SELECT counter_incr('a');
-- It goes on when there is room.
SET counterx.max_pending = 0;
SELECT counterx.compact();
SET counterx.max_pending = 1;
SELECT counter_incr('a');
SELECT counter_value('a');
SELECT back_pressure_waits, back_pressure_wait_time, back_pressure_refused FROM counterx.stat;
