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

-- What else is in a SELECT list counts once beside a row of several columns, as beside any value.
CALL clock('2030-04-02 12:00+00');
SELECT counter_type_create('list', max => 3, per => '1 day');
SELECT counter_incr('list:a'), counter_try('list:b'), counter_window('list:b');
SELECT counter_incr('list:a'), counter_try('list:b', 3);
SELECT counter_try_incr('list:a'), (SELECT granted FROM counter_try('list:c', 2)), counter_try('list:d', 4);
SELECT name, value FROM counters WHERE name LIKE 'list:%' ORDER BY 1;

-- After all counters were dropped, those without bounds go on in the same transaction.
SELECT counter_type_create('loose', per => '1 day');
SELECT counter_incr('loose:a', 4), counter_incr('plain', 4);
BEGIN;
SELECT counterx.drop_all_counters() >= 4 AS dropped;
SELECT counter_incr('loose:a'), counter_incr('plain'), counter_value('loose:a'), counter_value('plain');
COMMIT;
SELECT name, value FROM counters WHERE name LIKE 'l%' OR name = 'plain' ORDER BY 1;
BEGIN;
SELECT counter_incr('plain');
SELECT counter_type_create('later', 0, 5);
SELECT counterx.drop_all_counters() > 0 AS dropped;
COMMIT;
SELECT counter_value('loose:a'), counter_value('plain');
SELECT counter_try_incr('list:a');
BEGIN;
SELECT counter_incr('plain');
SELECT counter_type_create('latest', 0, 5);
SELECT counterx.drop_all_counters() > 0 AS dropped;
COMMIT;
SELECT counter_value('list:a'), counter_value('plain'), counter_incr('list:a');

-- Restored twice: the counter is told by its name.
INSERT INTO counterx.late (name, delta) SELECT name, 1 FROM counterx.dump_rows() WHERE name LIKE 'list:%a';

-- A column that somebody has added and dropped is null in the row of a table that is rewritten, and in nobody's way.
ALTER TABLE counterx.window_clock ADD COLUMN note text;
SELECT counter_value('list:a');
ALTER TABLE counterx.window_clock DROP COLUMN note;
VACUUM FULL counterx.window_clock;
SELECT counter_value('list:a'), counter_incr('list:e');

-- Clocks that are set back over midnight. By three hours, so that the day has two midnights that far apart.
CALL clock('2023-03-08 13:20+00');
SELECT counterx.reset_window_clock() IS NOT NULL;
SELECT counter_type_create('far', per => '1 day', time_zone => 'Antarctica/Casey', kept => 1);
SELECT counter_incr('far:a'), counter_window('far:a');
CALL clock('2023-03-08 15:59:10+00');
SELECT counter_window('far:a');
CALL clock('2023-03-09 16:00+00');
SELECT counter_window('far:a');
SELECT * FROM counter_windows('far:a');
-- From after midnight to before it: the day before goes on until the second one.
CALL clock('2010-03-04 13:20+00');
SELECT counterx.reset_window_clock() IS NOT NULL;
SELECT counter_incr('far:b'), counter_window('far:b');
CALL clock('2010-03-04 16:00+00');
SELECT counter_window('far:b');
SELECT * FROM counter_windows('far:b');

RESET counterx.clock_ahead;
SELECT counterx.reset_window_clock() IS NOT NULL;
DROP VIEW stored;
DROP EXTENSION counterx;
