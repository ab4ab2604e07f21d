-- Types with windows beside what was there before: holds, histories, values beyond a bigint, a clock that was wrong.
\set SHOW_CONTEXT never
SET client_min_messages = warning;
SET timezone = 'UTC';
SET datestyle = 'ISO';
CREATE EXTENSION counterx;
-- Builds for users have no clock that is to be set.
SELECT current_setting('counterx.clock_ahead', true) IS NULL AS no_clock \gset
\if :no_clock
\quit
\endif
CREATE PROCEDURE clock(at timestamptz) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('counterx.clock_ahead', extract(epoch FROM at + interval '20 s' - clock_timestamp())::int::text, false);
END $$;
CREATE VIEW stored AS
    SELECT replace(name, chr(1), '|') AS name, value, uses FROM counterx.total ORDER BY 1;
CALL clock('2030-03-30 12:00+00');
SELECT date_trunc('minute', counterx.reset_window_clock());

-- A hold of an earlier type of that name would change a counter without a window.
SELECT counter_type_create('api', min => 0);
SELECT counter_incr('api:x', 10);
SELECT counter_hold('api:x', 5, '1 day') AS hold \gset
SELECT counter_type_drop('api');
SELECT counter_drop('api:x');
SELECT counter_type_create('api', per => '1 day');
SELECT counter_hold_release(:hold);
SELECT counter_type_create('api', per => '1 day');
-- Nor does one come by a restore.
INSERT INTO counterx.hold (id, name, amount, created_at, expires_at)
VALUES (nextval('counterx.hold_id'), 'api:x', 1, now(), now() + interval '1 day');

-- Values beyond a bigint, in the running window and in one that has ended.
SELECT counter_incr('api:big', 9223372036854775807);
SELECT counter_incr('api:big', 9223372036854775807);
CALL clock('2030-03-31 12:00+00');
SELECT counter_incr('api:big', 9223372036854775807);
SELECT counter_incr('api:big', 9223372036854775807);
SELECT counter_incr('api:small', 1);
SELECT counterx.compact() > 0;
SELECT * FROM stored;

-- A type is replaced by another one in one transaction, also after others have been changed; and several are dropped.
SELECT counter_type_create('one', per => '1 hour'), counter_type_create('two', per => '1 hour');
SELECT counter_incr('one:a'), counter_incr('two:a');
BEGIN;
SELECT counter_type_drop('one'), counter_type_drop('two');
SELECT counter_type_create('one', per => '1 day');
SELECT counter_value('one:a'), counter_incr('other:a');
-- Nobody else knows yet that what was dropped is there to be taken.
SAVEPOINT s;
SELECT counter_incr('one:a', 5);
ROLLBACK TO s;
COMMIT;
SELECT counter_incr('one:a', 5), counter_drop('other:a');
SELECT counter_value('one:a'), counter_value('two:a'), counter_sum('one:'), counter_sum('two:');
BEGIN;
SELECT counter_incr('x');
SELECT counter_type_create('three', 0, 10);
SELECT counter_type_drop('api');
COMMIT;
SELECT counterx.compact() >= 0;
SELECT * FROM stored WHERE uses <> 0 OR value <> 0;
-- Whoever has counted himself defines no type of that in the same transaction.
BEGIN;
SELECT counter_incr('one:a');
SELECT counter_type_drop('one');
ROLLBACK;
BEGIN;
SELECT counter_incr('y:1');
SELECT counter_type_drop('one');
SELECT counter_type_create('y', per => '1 day');
ROLLBACK;
SELECT counter_value('one:a');

SELECT counter_type_drop('one');

-- The clock was a year ahead for a moment, somebody counted, and it was set right. What is running by the right one is
-- kept, whoever vouches for the clock.
SELECT counter_type_create('day', max => 10, per => '1 day');
SELECT counter_incr('day:a', 7);
SELECT counterx.compact() > 0;
CALL clock('2031-03-31 12:00+00');
SELECT counter_incr('day:a', 1);
CALL clock('2030-03-31 12:05+00');
SELECT counter_value('day:a');
SHOW counterx.compaction;
SELECT counterx.compact() > 0;
SELECT * FROM stored WHERE uses <> 0;
SELECT counter_try_incr('day:a', 9), counter_try_incr('day:a', 1);
SELECT regexp_replace(counterx.reset_window_clock()::text, ':[0-9.]+\+', '+');
SELECT counter_value('day:a'), counter_try_incr('day:a', 4), counter_try_incr('day:a', 3);

-- A history, and a window: one or the other.
SELECT counter_history('day', hour => '1 day');
SELECT counter_history('rate', hour => '1 day');
SELECT counter_type_create('rate', per => '1 day');

RESET counterx.clock_ahead;
SELECT counterx.reset_window_clock() IS NOT NULL;
DROP VIEW stored;
DROP EXTENSION counterx;
