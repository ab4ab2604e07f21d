-- Increments of bounded counters: whatever changes one respects its bounds, or changes nothing.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
SELECT counter_type_create('low', min => 0);
SELECT counter_type_create('high', max => 10);
SELECT counter_type_create('both', min => -5, max => 5);
CREATE VIEW bounded AS SELECT name, value FROM counters ORDER BY name;

-- The errors say what was asked for and what there is.
SELECT counter_incr('low:a', 3);
SELECT counter_incr('low:a', -4);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_decr('low:a', 4);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('high:a', 11);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_decr('high:a', -11);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('both:a', -6);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('both:a', 6);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_get('low:a', -4);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_many(ARRAY['x', 'low:a', 'low:a'], ARRAY[1, -2, -2]);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_many('{"low:a": -4, "x": 1}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_once('token', 'low:a', -4);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_once_get('token', 'low:a', -4);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_set('low:a', -1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_set('both:a', 6);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM bounded;

-- All the way to the bound, by each of them.
SELECT counter_incr('low:a', -1), counter_decr('low:a', 1), counter_incr_get('low:a', -1);
SELECT counter_incr('high:a', 10), counter_incr('both:a', 5), counter_incr('both:b', -5);
SELECT counter_incr_many(ARRAY['both:a', 'both:b'], ARRAY[-10, 10]);
SELECT counter_incr_once('token', 'both:a', 10), counter_incr_once('token', 'both:a', 10);
SELECT counter_incr_once_get('again', 'both:b', -10), counter_incr_once_get('again', 'both:b', -10);
SELECT counter_set('low:a', 7), counter_reset('both:a'), counter_reset('both:b');
SELECT * FROM bounded;

-- Those that do not raise.
SELECT counter_try_incr('low:a', -8), counter_try_incr('low:a', -7), counter_try_incr('low:a', -1);
SELECT counter_try_incr('low:a'), counter_try_incr('high:a'), counter_try_incr('unbounded', -100);
SELECT counter_take_up_to('low:a', 5), counter_take_up_to('low:a', 5), counter_take_up_to('low:a', 0);
SELECT counter_take_up_to('high:a', 25), counter_take_up_to('both:a', 25), counter_take_up_to('unbounded', 25);
SELECT * FROM bounded;
SELECT counter_take_up_to('low:a', -1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_take_up_to('low:a', NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_take_up_to(NULL, 1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_try_incr(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_try_incr('low:a', NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_try_incr('');
\echo :LAST_ERROR_SQLSTATE

-- A delta of zero makes a counter, also where there is no room.
SELECT counter_incr('low:zero', 0), counter_try_incr('low:a', 0);
SELECT count(*) FROM counters WHERE name = 'low:zero';

-- What the own transaction has done before counts: see bounded_own.
SELECT counter_set('low:a', 5), counter_set('high:a', 5);
BEGIN;
SELECT counter_incr('low:a', 10);
SELECT counter_value('low:a'), counter_take_up_to('low:a', 100), counter_value('low:a');
SELECT counter_decr('high:a', 10);
SELECT counter_try_incr('high:a', 6), counter_try_incr('high:a', 5), counter_try_incr('high:a', 1);
COMMIT;
SELECT counter_value('low:a'), counter_value('high:a');
SELECT counter_take_up_to('low:a', 100);

-- Savepoints give back.
SELECT counter_set('low:a', 5);
BEGIN;
SELECT counter_incr('low:a', -1);
SAVEPOINT a;
SELECT counter_incr('low:a', -2);
SAVEPOINT b;
SELECT counter_take_up_to('low:a', 100);
SELECT counter_incr('low:a', -1);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO b;
SELECT counter_value('low:a');
SELECT counter_try_incr('low:a', -3), counter_try_incr('low:a', -2);
ROLLBACK TO a;
SELECT counter_value('low:a'), counter_try_incr('low:a', -5), counter_try_incr('low:a', -4);
ROLLBACK TO a;
SAVEPOINT b;
SELECT counter_incr('low:a', -3);
RELEASE b;
SELECT counter_try_incr('low:a', -2);
RELEASE a;
SELECT counter_try_incr('low:a', -2), counter_try_incr('low:a', -1), counter_try_incr('low:a', -1);
ROLLBACK;
SELECT counter_value('low:a');
BEGIN;
SAVEPOINT a;
SAVEPOINT b;
SELECT counter_incr('low:a', -2);
RELEASE b;
SAVEPOINT b;
SELECT counter_incr('low:a', -1);
RELEASE b;
SELECT counter_try_incr('low:a', -3);
ROLLBACK TO a;
SELECT counter_take_up_to('low:a', 9);
COMMIT;
SELECT counter_value('low:a');

-- So do exception blocks, also many of them.
SELECT counter_set('low:a', 5);
DO $$
BEGIN
    FOR i IN 1 .. 1000 LOOP
        BEGIN
            PERFORM counter_incr('low:a', -5);
            PERFORM 1 / (i % 2);
            PERFORM counter_incr('low:a', -1);
        EXCEPTION WHEN division_by_zero OR check_violation THEN
            NULL;
        END;
        BEGIN
            PERFORM counter_incr('high:b', 1), counter_incr('high:b', -1);
        EXCEPTION WHEN check_violation THEN
            NULL;
        END;
    END LOOP;
    PERFORM counter_incr('low:a', -4);
END $$;
SELECT counter_value('low:a'), counter_value('high:b');

-- Rolled back as a whole, by hand and by an error.
BEGIN;
SELECT counter_incr('low:a', -1);
ROLLBACK;
BEGIN;
SELECT counter_incr('low:a', -1);
SELECT 1 / 0;
COMMIT;
SELECT counter_take_up_to('low:a', 9);

-- Written early, as the memory for pending increments is full: all is as before.
SET counterx.pending_work_mem = '64kB';
SELECT counter_set('low:a', 5), counter_set('low:b', 5);
BEGIN;
SELECT counter_incr('low:a', -2), counter_incr('low:b', 3);
SELECT count(counter_incr('filler:' || n)) FROM generate_series(1, 3000) n;
SELECT counter_value('low:a'), counter_try_incr('low:a', -4), counter_try_incr('low:b', -6);
SAVEPOINT s;
SELECT counter_incr('low:a', -3);
SELECT count(counter_incr('filler:' || n)) FROM generate_series(1, 3000) n;
SELECT counter_value('low:a'), counter_try_incr('low:a', -1);
ROLLBACK TO s;
SELECT counter_value('low:a'), counter_take_up_to('low:a', 9), counter_take_up_to('low:b', 9);
COMMIT;
SELECT counter_value('low:a'), counter_value('low:b');
BEGIN;
SELECT count(counter_incr('low:' || n, 2)) FROM generate_series(1, 3000) n;
SELECT count(*) FILTER (WHERE counter_try_incr('low:' || n, -1)) FROM generate_series(1, 3000) n;
COMMIT;
SELECT count(*) FILTER (WHERE counter_try_incr('low:' || n, -2)),
       count(*) FILTER (WHERE counter_try_incr('low:' || n, -1)) FROM generate_series(1, 3000) n;
RESET counterx.pending_work_mem;

-- Extreme numbers: within the bounds, refused, or out of range; never wrapped around.
SELECT counter_type_create('wide', min => -9223372036854775808, max => 9223372036854775807);
SELECT counter_incr('wide:a', 9223372036854775807);
SELECT counter_incr('wide:a');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_decr('wide:a', -9223372036854775807);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('wide:b', -9223372036854775808);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('wide:b', -9223372036854775807);
SELECT counter_incr('wide:b', -2);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('wide:b', -1);
SELECT counter_try_incr('low:a', -9223372036854775808);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_decr('low:a', -9223372036854775808);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_try_incr('low:a', -9223372036854775807), counter_take_up_to('low:a', 9223372036854775807);
BEGIN;
SELECT counter_incr('low:c', 9223372036854775807);
SELECT counter_incr('low:c', 1);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SELECT counter_incr('low:c', 5);
BEGIN;
SELECT counter_incr('low:c', -1);
SELECT counter_take_up_to('low:c', 9223372036854775807);
SELECT counter_take_up_to('low:c', 9223372036854775807);
ROLLBACK;
BEGIN;
SELECT counter_incr('high:d', -9223372036854775807);
SELECT counter_incr('high:d', -1);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SELECT counter_value('low:c'), counter_value('high:d');
SELECT name, value FROM counters WHERE name LIKE 'wide:%' ORDER BY name;

-- set, reset, drop, rename and merge.
SELECT counter_set('low:a', 5), counter_set('low:b', 3), counter_set('high:a', 8), counter_set('high:b', -100);
SELECT counter_reset('low:a');
SELECT counter_set('low:a', 5), counter_drop('low:a'), counter_drop('low:a');
SELECT counter_rename('low:b', 'low:renamed');
SELECT counter_rename('high:b', 'low:negative');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_set('both:a', 3), counter_set('both:b', 3), counter_set('both:c', -3);
SELECT counter_merge('both:a', 'both:b');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_merge('both:a', 'both:c');
SELECT counter_merge('high:a', 'low:renamed');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_merge('plain', 'low:renamed'), counter_value('plain');
SELECT counter_merge('low:d', 'high:b');
\echo :LAST_ERROR_SQLSTATE
SELECT name, value FROM counters WHERE name ~ '^(low:(a|b|d|renamed|negative)|high|both|plain)' ORDER BY name;
BEGIN;
SELECT counter_incr('both:b', 2), counter_incr('both:b', -4), counter_drop('both:b'), counter_value('both:b');
SELECT counter_incr('both:b', 2), counter_value('both:b');
ROLLBACK;
BEGIN;
SELECT counter_set('low:set', 5), counter_set('low:set', 8), counter_value('low:set');
COMMIT;
SELECT counter_value('low:set'), counter_value('both:b');

-- What is reserved is given back by the session that has reserved it: it cannot be prepared.
BEGIN;
SELECT counter_incr('low:set', -1);
PREPARE TRANSACTION 'counterx_bounded';
\echo :LAST_ERROR_SQLSTATE
BEGIN;
SELECT counter_incr('high:a', -1);
PREPARE TRANSACTION 'counterx_bounded';
\echo :LAST_ERROR_SQLSTATE
-- What was given back, was refused or changed nothing can be prepared.
BEGIN;
SAVEPOINT s;
SELECT counter_incr('low:set', -1);
ROLLBACK TO s;
SELECT counter_try_incr('low:set', -100), counter_incr('low:set', 0), counter_incr('plain');
PREPARE TRANSACTION 'counterx_bounded';
SELECT counter_take_up_to('low:set', 3);
COMMIT PREPARED 'counterx_bounded';
SELECT counter_value('low:set'), counter_value('plain');

-- Read-only transactions.
BEGIN READ ONLY;
SELECT counter_try_incr('low:set', -1);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT counter_take_up_to('low:set', 1);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;

-- An own fold that is not committed changes nothing of what there is.
BEGIN;
SELECT counterx.compact() > 0;
SELECT counter_try_incr('low:set', -6), counter_try_incr('low:set', -5);
COMMIT;
SELECT counter_value('low:set'), counter_try_incr('low:set', -1);

-- Many names in one transaction, and all levels.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FILTER (WHERE counter_try_incr('low:many' || n, -1)) FROM generate_series(1, 100) n;
SELECT count(*) FILTER (WHERE counter_try_incr('low:many' || n, 1)) FROM generate_series(1, 100) n;
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT count(*) FILTER (WHERE counter_try_incr('low:many' || n, -1)) FROM generate_series(1, 100) n;
SELECT count(*) FILTER (WHERE counter_try_incr('low:many' || n, -1)) FROM generate_series(1, 100) n;
COMMIT;
SELECT sum(value) FROM counters WHERE name LIKE 'low:many%';
