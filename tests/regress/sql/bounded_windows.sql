-- Calls to counters that begin anew with each window, and what is read of them. The clock that windows go by is set.
\set SHOW_CONTEXT never
SET client_min_messages = warning;
SET timezone = 'UTC';
SET datestyle = 'ISO';
SET intervalstyle = 'postgres';
CREATE EXTENSION counterx;
-- Builds for users have no clock that is to be set.
SELECT current_setting('counterx.clock_ahead', true) IS NULL AS no_clock \gset
\if :no_clock
\quit
\endif

-- The clock, give or take some seconds: twenty seconds after a minute has begun.
CREATE PROCEDURE clock(at timestamptz) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('counterx.clock_ahead', extract(epoch FROM at + interval '20 s' - clock_timestamp())::int::text, false);
END $$;
-- Each of these is one window's counter, as it is stored.
CREATE VIEW stored AS
SELECT split_part(name, ':', 1) AS type, to_timestamp(split_part(name, chr(1), 2)::bigint) AS starts, split_part(name, chr(1), 3) AS rest, value
FROM counterx.total WHERE position(chr(1) IN name) > 0;
CALL clock('2030-03-30 12:00+00');
-- Whoever has gone by another time before.
SELECT date_trunc('minute', counterx.reset_window_clock());

-- Both bounds, kept for two windows; unbounded ones; ones that slide.
SELECT counter_type_create('seat', -3, 5, per => '1 hour', kept => 2);
SELECT counter_type_create('free', per => '1 day', time_zone => 'Europe/Berlin', kept => 1);
SELECT counter_type_create('api', max => 10, per => '1 day', sliding => true);
SELECT counter_type_create('seen', max => 2, per => '1 hour', count_refused => true);
SELECT counter_type_create('seenslide', max => 10, per => '1 hour', sliding => true, count_refused => true);
SELECT counter_type_create('plain', 0, 5);

-- Not called yet: it does not exist, and its window is known.
SELECT counter_value('seat:a'), counter_window('seat:a'), (SELECT count(*) FROM counters);
SELECT * FROM counter_window('free:a');
SELECT * FROM counter_window('api:a');
SELECT * FROM counter_windows('seat:a');
SELECT counter_window('plain:a');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_window('seat');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_windows('nothing');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_window(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_windows(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_try(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_try('seat:a', NULL);
\echo :LAST_ERROR_SQLSTATE

-- All calls, within bounds.
SELECT counter_incr('seat:a', 2), counter_decr('seat:a'), counter_incr_get('seat:a', 3), counter_try_incr('seat:a', -1), counter_value('seat:a');
CALL counter_add('seat:a');
SELECT counter_incr_many('{"seat:a": 1, "free:a": 7, "plain:a": 1}'), counter_incr_many(ARRAY['seat:a', 'seat:b', 'seat:a'], ARRAY[-1, 1, -1]);
SELECT counter_incr_once('t1', 'seat:a', 1), counter_incr_once('t1', 'seat:a', 1), counter_incr_once_get('t2', 'seat:a', -2), counter_incr_once_get('t2', 'seat:a', -2);
SELECT * FROM counter_try('seat:a', 3);
SELECT * FROM counter_window('seat:a');
SELECT * FROM counter_values(ARRAY['seat:a', 'free:a', 'plain:a', 'seat:none', 'seat:a']);
SELECT * FROM counter_available('seat:a');
SELECT counter_take_up_to('seat:a', 100), counter_take_up_to('seat:a', 100), counter_take_up_to('seat:a', 0);
SELECT counter_take_up_to('free:a', 4), counter_value('free:a');
SELECT counter_take_up_to('seat:b', 9223372036854775807), counter_value('seat:b');

-- Out of bounds: refused, and said until when.
SELECT counter_decr('seat:a');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('seat:a', 9);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_get('seat:a', 9);
\echo :LAST_ERROR_SQLSTATE
CALL counter_add('seat:a', 9);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_many('{"free:z": 1, "seat:a": 9}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_once('t3', 'seat:a', 9);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_once_get('t3', 'seat:a', 9);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_set('seat:a', 6);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_try_incr('seat:a', 9), counter_try_incr('seat:a', -1);
SELECT * FROM counter_try('seat:a', 8);
SELECT * FROM counter_try('seat:a', 9);
SELECT * FROM counter_try('seat:a', -1);
SELECT * FROM counter_try('seat:a', 6);
SELECT counter_try_incr('seat:a', -7);
SELECT * FROM counter_try('seat:a', -1);
SELECT * FROM counter_try('seat:a', -3);
SELECT * FROM counter_try('seat:a', -4);
SELECT * FROM counter_try('seat:a', -9223372036854775808);
SELECT * FROM counter_try('seat:a', 9223372036854775807);
SELECT counter_try_incr('seat:a', 7);
SELECT * FROM counter_try('plain:a', 9);
SELECT * FROM counter_try('plain:a', 1);
SELECT * FROM counter_try('none:a', 1);
SELECT counter_value('seat:a'), counter_value('free:z'), counter_value('none:a');

-- Set, reset, drop are of the running window.
SELECT counter_set('seat:a', -2), counter_value('seat:a'), counter_reset('seat:a'), counter_value('seat:a');
SELECT counter_set('seat:c', 4), counter_reset('seat:never'), counter_drop('seat:never'), counter_drop('seat:c'), counter_value('seat:c');
SELECT name, value FROM counters ORDER BY name;
SELECT counter_set('seat:c', 4), counter_incr('seat:c'), counter_drop('seat:c'), counter_incr('seat:c', -1), counter_value('seat:c');

-- What is refused altogether.
SELECT counter_rename('seat:a', 'seat:z');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_rename('plain:a', 'seat:z');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_merge('plain:a', 'seat:a');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_merge('seat:a', 'plain:a');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_rename('seat:a', 'seat:a');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold('seat:a', 1, '1 minute');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold('seat:a', 1, '1 minute', 'token');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold('api:a', 1, '1 minute');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_history('seat');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_history('plain');
SELECT counter_history_drop('plain');
SELECT counter_history('later');
SELECT counter_type_create('later', per => '1 hour');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_history_drop('later');
CREATE TABLE rows (a text);
SELECT counter_track('rows', 'seat', '{a}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_track('rows', 'free', '{a}');
\echo :LAST_ERROR_SQLSTATE
DROP TABLE rows;

-- Folded, it is what it was; what comes then is added.
SELECT counterx.compact() > 0 AS folded;
SELECT * FROM stored ORDER BY 1, 2, 3;
SELECT name, value FROM counters ORDER BY name;
SELECT counter_incr('seat:a', 2), counter_value('seat:a');

-- The next window begins at 0, with the whole of the bounds; the one before is kept.
CALL clock('2030-03-30 13:00+00');
SELECT * FROM counter_window('seat:a');
SELECT * FROM counter_windows('seat:a');
SELECT name, value FROM counters ORDER BY name;
SELECT counter_reset('seat:a'), counter_drop('seat:a'), counter_value('seat:a');
SELECT counter_try_incr('seat:a', 5), counter_try_incr('seat:a', 1), counter_try_incr('seat:a', -8), counter_try_incr('seat:a', -1), counter_value('seat:a');
-- A replay is one, in whatever window.
SELECT counter_incr_once('t1', 'seat:a', 1), counter_incr_once_get('t2', 'seat:a', -2), counter_value('seat:a');
-- The window before is nobody's any more. Of a type without bounds as well.
SELECT * FROM counter_windows('seat:a');
CALL clock('2030-03-30 14:00+00');
SELECT counter_incr('seat:a', 1);
SELECT * FROM counter_windows('seat:a');
SELECT * FROM counter_windows('seat:b');
CALL clock('2030-03-30 15:00+00');
SELECT * FROM counter_windows('seat:a');
SELECT counterx.compact() > 0 AS folded;
SELECT * FROM counter_windows('seat:a');
SELECT * FROM counter_window('free:a');
CALL clock('2030-03-30 17:00+00');
SELECT * FROM counter_windows('seat:a');
SELECT value FROM counter_window('seat:a');

-- A transaction's calls are each in the window of their moment. A time is never gone back from.
BEGIN;
SELECT counter_incr('seat:t', 5);
CALL clock('2030-03-30 18:00+00');
SELECT counter_incr('seat:t', 4), counter_value('seat:t');
CALL clock('2030-03-30 17:00+00');
SELECT counter_incr('seat:t', 1), counter_value('seat:t');
SELECT * FROM counter_window('seat:t');
SELECT * FROM counter_windows('seat:t');
SAVEPOINT s;
SELECT counter_decr('seat:t', 5), counter_value('seat:t');
ROLLBACK TO s;
SELECT counter_value('seat:t'), counter_try_incr('seat:t');
CALL clock('2030-03-30 19:00+00');
SELECT counter_incr('seat:t', 2), counter_value('seat:t');
ROLLBACK TO s;
-- What was gone by is, whatever was rolled back.
SELECT * FROM counter_window('seat:t');
SELECT * FROM counter_windows('seat:t');
COMMIT;
-- (The setting was rolled back.)
CALL clock('2030-03-30 19:00+00');
SELECT * FROM counter_windows('seat:t');
-- Repeatable reads: the time of the first look, until a call of one's own.
CALL clock('2030-03-30 20:00+00');
SELECT counter_incr('seat:r', 1), counter_incr('seat:r', 1);
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT counter_value('plain:a');
CALL clock('2030-03-30 21:00+00');
SELECT * FROM counter_window('seat:r');
CALL clock('2030-03-30 22:00+00');
SELECT * FROM counter_window('seat:r');
SELECT counter_value('seat:r'), (SELECT count(*) FROM counters WHERE name LIKE 'seat:%');
SELECT counter_incr_get('seat:r');
SELECT * FROM counter_window('seat:r');
CALL clock('2030-03-30 23:00+00');
SELECT * FROM counter_window('seat:r');
COMMIT;
SELECT * FROM counter_window('seat:r');
SELECT * FROM counter_windows('seat:r');
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT counter_value('seat:r'), counter_try_incr('seat:r', 6);
CALL clock('2030-03-31 00:00+00');
SELECT * FROM counter_window('seat:r');
SELECT counter_try_incr('seat:r', 5), counter_try_incr('seat:r');
SELECT * FROM counter_window('seat:r');
ROLLBACK;

-- Two phases: what is bounded cannot be prepared; what is not, can.
BEGIN;
SELECT counter_incr('seat:p');
PREPARE TRANSACTION 'regress_windows';
\echo :LAST_ERROR_SQLSTATE
BEGIN;
SELECT counter_try_incr('seat:p', 100);
PREPARE TRANSACTION 'regress_windows';
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM pg_prepared_xacts WHERE gid = 'regress_windows';
ROLLBACK PREPARED 'regress_windows';
BEGIN;
SELECT counter_incr('free:p', 3);
PREPARE TRANSACTION 'regress_windows';
SELECT counter_value('free:p');
COMMIT PREPARED 'regress_windows';
SELECT counter_value('free:p');
BEGIN;
SELECT counter_set('free:p', 5), counter_incr('free:q', 2), counter_drop('free:q'), counter_reset('free:a');
PREPARE TRANSACTION 'regress_windows';
COMMIT PREPARED 'regress_windows';
SELECT counter_value('free:p'), counter_value('free:q');

-- Tightened bounds are those of the running window alone.
CALL clock('2030-03-31 01:00+00');
SELECT counter_incr('seat:x', 5);
CALL clock('2030-03-31 02:00+00');
SELECT counter_incr('seat:y', 4);
SELECT counter_type_alter('seat', max => 3);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_alter('seat', max => 4);
SELECT * FROM counter_windows('seat:x');
SELECT counter_try_incr('seat:y'), counter_try_incr('seat:x', 5), counter_try_incr('seat:x', 4);
SELECT counter_type_alter('seat', options => '{"max": null}');
SELECT * FROM counter_try('seat:x', 100);
SELECT counter_type_alter('seat', options => '{"min": null}');
SELECT * FROM counter_try('seat:x', -1000);

-- Days in a zone: this one has 23 hours, that on 27 October 25. Others begin at midnight in UTC.
SELECT * FROM counter_window('free:a');
SELECT counter_incr('free:a', 1);
CALL clock('2030-03-31 21:59+00');
SELECT counter_value('free:a');
CALL clock('2030-03-31 22:00+00');
SELECT counter_value('free:a'), ends_at - begins_at AS length FROM counter_window('free:a');
SELECT * FROM counter_windows('free:a');
CALL clock('2030-10-27 12:00+00');
SELECT *, ends_at - begins_at AS length FROM counter_window('free:a');
SELECT * FROM counter_window('api:a');
SELECT * FROM counter_windows('free:a');

-- Sliding: half of the window before counts still at noon.
CALL clock('2030-11-01 12:00+00');
SELECT counter_try_incr('api:a', 10), counter_try_incr('api:a'), counter_try_incr('api:b', 4), counter_try_incr('api:c', 1);
SELECT * FROM counter_try('api:a', 1);
SELECT * FROM counter_try('api:a', 10);
SELECT * FROM counter_try('api:a', 11);
SELECT counter_incr('api:a', 1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_decr('api:a');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_try_incr('api:a', -1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_take_up_to('api:a', 1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_try_incr('api:a', 0), counter_take_up_to('api:a', 0), counter_incr('api:a', 0);
CALL clock('2030-11-02 12:00+00');
SELECT * FROM counter_window('api:a');
SELECT * FROM counter_windows('api:a');
SELECT * FROM counter_try('api:a', 6);
SELECT * FROM counter_try('api:a', 10);
SELECT * FROM counter_try('api:a', 5);
SELECT * FROM counter_try('api:a', 1);
SELECT counter_incr('api:a', 1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_try_incr('api:b', 9), counter_try_incr('api:b', 8), counter_try_incr('api:c', 10), counter_try_incr('api:c', 9), counter_try_incr('api:d', 10);
-- Nobody had come by before: nothing of it counts.
CALL clock('2030-11-04 00:00+00');
SELECT * FROM counter_window('api:a');
SELECT counter_try_incr('api:a', 10), counter_try_incr('api:a');
-- Folded and again, and by a session that knows nothing yet.
CALL clock('2030-11-05 06:00+00');
SELECT counterx.compact() > 0 AS folded;
SELECT counter_try_incr('api:a', 3), counter_try_incr('api:a', 2), counter_try_incr('api:a');
SELECT * FROM counter_try('api:a', 3);
-- In one transaction: its own adds of the window before count too.
BEGIN;
SELECT counter_try_incr('api:own', 10);
CALL clock('2030-11-06 12:00+00');
SELECT * FROM counter_try('api:own', 6);
SELECT counter_try_incr('api:own', 5);
SAVEPOINT s;
CALL clock('2030-11-07 12:00+00');
SELECT counter_try_incr('api:own', 8), counter_try_incr('api:own', 7);
ROLLBACK TO s;
SELECT counter_try_incr('api:own', 8), counter_try_incr('api:own', 7);
COMMIT;
CALL clock('2030-11-07 12:00+00');
SELECT * FROM counter_window('api:own');
SELECT * FROM counter_windows('api:own');
-- The administrator's word lowers what was counted, and what counts still of it.
SELECT counter_set('api:own', 2), counter_try_incr('api:own', 4), counter_try_incr('api:own', 5);
SELECT counter_reset('api:own'), counter_try_incr('api:own', 8), counter_try_incr('api:own', 7);
SELECT counter_drop('api:own'), counter_try_incr('api:own', 7), counter_set('api:own', 11);
\echo :LAST_ERROR_SQLSTATE
CALL clock('2030-11-08 12:00+00');
SELECT counter_type_alter('api', max => 5);
SELECT counter_try_incr('api:own', 5), counter_try_incr('api:own', 1), counter_try_incr('api:e', 5);
SELECT counter_type_alter('api', max => 3);
\echo :LAST_ERROR_SQLSTATE

-- A refused request counts as well, where the type says so.
CALL clock('2030-11-10 12:00+00');
SELECT counter_try_incr('seen:a'), counter_try_incr('seen:a'), counter_try_incr('seen:a'), counter_value('seen:a');
SELECT * FROM counter_try('seen:a', 2);
SELECT * FROM counter_try('seen:a', 3);
SELECT * FROM counter_window('seen:a');
SELECT counter_incr('seen:a');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_get('seen:a');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_decr('seen:a');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_value('seen:a'), counter_set('seen:a', 5), counter_set('seen:a', 1), counter_try_incr('seen:a'), counter_try_incr('seen:a'), counter_value('seen:a');
BEGIN;
SELECT counter_try_incr('seen:b', 2), counter_try_incr('seen:b', 5), counter_value('seen:b');
SAVEPOINT s;
SELECT counter_try_incr('seen:b', 5), counter_value('seen:b');
ROLLBACK TO s;
SELECT counter_value('seen:b');
COMMIT;
SELECT counter_value('seen:b'), counter_type_alter('seen', max => 1), counter_try_incr('seen:b'), counter_type_alter('seen', max => 100), counter_try_incr('seen:b');
SELECT counter_type_alter('seen', min => 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', 0, 5, per => '1 hour', count_refused => true);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', per => '1 hour', count_refused => true);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', max => 5, count_refused => true);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', max => 5, per => '1 hour', count_refused => true, options => '{"count_refused": true}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '{"max": 5, "per": "1 hour", "count_refused": "no"}');
\echo :LAST_ERROR_SQLSTATE
-- Of those that slide, whoever goes on is not let in.
CALL clock('2030-11-10 13:30+00');
SELECT counter_try_incr('seenslide:a', 10), counter_try_incr('seenslide:a', 30), counter_value('seenslide:a');
CALL clock('2030-11-10 14:30+00');
SELECT * FROM counter_try('seenslide:a', 0);
SELECT * FROM counter_try('seenslide:a', 1);
SELECT counter_value('seenslide:a');
CALL clock('2030-11-10 14:47+00');
SELECT counter_try_incr('seenslide:a'), counter_try_incr('seenslide:a'), counter_value('seenslide:a');
CALL clock('2030-11-10 15:00+00');
SELECT * FROM counter_try('seenslide:a', 200);
SELECT * FROM counter_try('seenslide:a', 5);

-- Windows that are not kept any more are removed by who folds; the clock may go on by an hour at most between two looks.
DROP VIEW stored;
DROP EXTENSION counterx;
CREATE EXTENSION counterx;
CREATE VIEW stored AS
SELECT split_part(name, ':', 1) AS type, to_timestamp(split_part(name, chr(1), 2)::bigint) AS starts, split_part(name, chr(1), 3) AS rest, value
FROM counterx.total WHERE position(chr(1) IN name) > 0 ORDER BY 1, 2, 3;
CALL clock('2030-03-30 12:00+00');
SELECT date_trunc('minute', counterx.reset_window_clock());
SELECT counter_type_create('w', per => '10 minutes', kept => 1);
SELECT counter_type_create('s', max => 5, per => '10 minutes', sliding => true);
SELECT counter_type_create('n', per => '30 minutes');
SELECT counterx.windows_removed();
SELECT counter_incr('w:a'), counter_incr('w:b', -7), counter_incr('w:0', 0), counter_incr('s:a', 2), counter_incr('n:a', 3), counter_incr('w', 4), counter_incr('wx:a', 5);
BEGIN;
SELECT counter_incr('w:late', 9);
PREPARE TRANSACTION 'regress_windows';
SELECT counterx.compact() > 0 AS folded;
TABLE stored;
-- Kept.
CALL clock('2030-03-30 12:10+00');
SELECT counter_incr('w:a', 10), counterx.compact() > 0 AS folded, counterx.windows_removed();
TABLE stored;
-- Not kept; and what is pending of them is folded first, and goes as well.
CALL clock('2030-03-30 12:11+00');
SELECT counter_incr('w:a', 100), counter_incr('s:a', 3);
CALL clock('2030-03-30 12:20+00');
CALL counterx.compact_in_steps();
TABLE stored;
SELECT counterx.windows_removed();
SELECT * FROM counter_windows('w:a');
CALL clock('2030-03-30 12:30+00');
SELECT counterx.compact() > 0 AS folded, counterx.windows_removed();
TABLE stored;
-- What comes late of a window that is gone is nobody's, and goes the next time.
COMMIT PREPARED 'regress_windows';
SELECT counter_value('w:late'), (SELECT count(*) FROM counter_windows('w:late')), (SELECT count(*) FROM counters WHERE name LIKE 'w:%');
SELECT counterx.compact() > 0 AS folded;
TABLE stored;
SELECT name, value FROM counters ORDER BY name;
-- Where no worker may run, as here, who folds has the word that the server's clock is right, however it leaps; but not
-- that of others who have gone by one that was ahead.
SELECT counter_incr('w:a', 1000), counter_incr('n:a', 1000);
CALL clock('2031-03-30 12:00+00');
SELECT counter_incr('w:a', 7);
CALL clock('2030-03-30 12:31+00');
SELECT counterx.compact() > 0 AS folded, counterx.windows_removed();
TABLE stored;
CALL clock('2030-03-30 13:40+00');
SELECT counterx.compact() > 0 AS folded, counterx.windows_removed();
TABLE stored;
-- It was ahead: nobody goes back by himself before what was removed; somebody says that it is right now.
CALL clock('2030-03-30 12:00+00');
SELECT begins_at >= '2030-03-30 12:30+00' AS not_before FROM counter_window('n:a');
SELECT date_trunc('minute', counterx.reset_window_clock());
SELECT counterx.windows_removed() <= '2030-03-30 12:01+00' AS is_back;
SELECT * FROM counter_window('n:a');
SELECT counter_incr_get('n:a', 5);
SELECT counter_type_drop('n');
SELECT counter_type_drop('w');
SELECT name, value FROM counters ORDER BY name;
SELECT counterx.compact() > 0 AS folded;
TABLE stored;

RESET counterx.clock_ahead;
SELECT count(counterx.reset_window_clock());
DROP VIEW stored;
DROP EXTENSION counterx;
