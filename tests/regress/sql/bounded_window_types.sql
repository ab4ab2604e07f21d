-- Types whose counters begin anew with each window: what can be said of one, and what its counters can be called.
\set SHOW_CONTEXT never
SET timezone = 'UTC';
SET intervalstyle = 'postgres';
CREATE EXTENSION counterx;
-- No window ends while this runs: another server has removed windows up to a time that is far ahead, as a dump says.
INSERT INTO counterx.type (name, generation, per, removed_until) VALUES ('stopped', 1, '1 day', '2100-01-01 00:00+00');
SELECT counter_type_drop('stopped');
CREATE VIEW known AS SELECT name, min, max, description, per, time_zone, kept, sliding FROM counter_types ORDER BY name;

-- By arguments, or by an object.
SELECT counter_type_create('plain', min => 0);
SELECT counter_type_create('minute', max => 100, per => '1 minute');
SELECT counter_type_create('hour', per => '90 minutes', kept => 3, description => 'without bounds');
SELECT counter_type_create('day', -5, 5, per => '1 day', time_zone => 'Europe/Berlin', kept => 1000);
SELECT counter_type_create('month', max => 7, per => '1 month', time_zone => 'america/new_york', sliding => true);
SELECT counter_type_create('slow', options => '{"max": 10, "per": "10 s", "sliding": true, "kept": 2, "description": "slides"}');
SELECT counter_type_create('zone', options => '{"per": "1 month", "time_zone": "Asia/Tokyo", "min": null, "max": null, "sliding": false, "kept": 0}');
SELECT counter_type_create('utc', options => '{"per": "1 day", "time_zone": null, "kept": null, "sliding": null}');
SELECT counter_type_create('none', options => '{"per": null, "time_zone": null, "kept": null, "sliding": null}');
SELECT counter_type_create('both', 0, options => '{"per": "00:00:01", "max": 3}', kept => 1);
SELECT counter_type_create('posix', per => '1 day', time_zone => 'XYZ+3');
SELECT * FROM known;

-- Lengths: what divides a day, a day, a month.
DO $$
DECLARE
    length text;
BEGIN
    FOREACH length IN ARRAY ARRAY['1 s', '7 s', '50 s', '7 min', '15 min', '59 min', '5 hours', '90 min', '8 hours', '12 hours', '11 hours 60 min',
        '24 hours', '23 hours 60 min', '25 hours', '1 day', '2 days', '1 day 1 hour', '7 days', '30 days', '1 month', '2 months', '1 year', '1 month 1 day',
        '1 month -1 day', '1 month 1 s', '0', '-1 s', '-1 day', '-1 month', '1 day -24 hours', '0.5 s', '1.5 s', '1 us', '1000 days', '178000000 years', '86400 s', '43200 s']
    LOOP
        BEGIN
            PERFORM counter_type_create('t', per => length::interval);
            RAISE NOTICE '%: %', length, (SELECT per FROM counter_types WHERE name = 't');
            PERFORM counter_type_drop('t');
        EXCEPTION WHEN OTHERS THEN
            DECLARE
                detail text;
            BEGIN
                GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
                RAISE NOTICE '%: % % %', length, SQLSTATE, SQLERRM, detail;
            END;
        END;
    END LOOP;
END $$;
SELECT counter_type_create('t', per => '24 hours');
\echo :LAST_ERROR_SQLSTATE

-- What is refused.
SELECT counter_type_create('t', time_zone => 'UTC');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', kept => 1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', max => 1, sliding => true);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '{"per": null, "kept": 1}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', per => '1 hour', time_zone => 'UTC');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', per => '1 day', time_zone => 'Europe/Nowhere');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', per => '1 day', time_zone => '');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', per => '1 hour', kept => -1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', per => '1 hour', kept => 1001);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', per => '1 hour', kept => 9223372036854775807);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', per => '1 hour', sliding => true);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', 0, 10, per => '1 hour', sliding => true);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', max => 10, per => '1 hour', sliding => true, kept => 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', min => 1, per => '1 hour');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', per => '1 hour', options => '{"per": "1 hour"}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', time_zone => 'UTC', options => '{"per": "1 day", "time_zone": null}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', kept => 1, options => '{"per": "1 day", "kept": 1}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', sliding => false, options => '{"per": "1 day", "sliding": false}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '{"per": 60}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '{"per": "often"}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '{"per": ""}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '{"per": "1 day", "time_zone": 2}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '{"per": "1 day", "kept": "1"}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '{"per": "1 day", "kept": 0.5}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '{"per": "1 day", "sliding": "yes"}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '{"per": "1 day", "sliding": 1}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '{"window": "1 day"}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('minute', per => '1 minute');
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM counter_types WHERE name = 't';

-- What a window is never changes. Bounds and the description do.
SELECT counter_type_alter('minute', options => '{"per": "1 minute"}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_alter('day', options => '{"time_zone": "UTC"}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_alter('plain', options => '{"kept": 1}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_alter('month', options => '{"sliding": null}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_alter('minute', min => -1, max => 50, description => 'fewer');
SELECT counter_type_alter('minute', options => '{"min": null}');
SELECT counter_type_alter('month', min => 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_alter('month', options => '{"max": null}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_alter('month', max => 8);
SELECT * FROM known WHERE name IN ('minute', 'month');

-- Where counters of the type are there, it cannot be.
SELECT counter_incr('late:a');
SELECT counter_type_create('late', max => 10, per => '1 minute');
\echo :LAST_ERROR_SQLSTATE
SELECT counterx.compact() > 0 AS folded;
SELECT counter_type_create('late', max => 10, per => '1 minute');
\echo :LAST_ERROR_SQLSTATE
BEGIN;
SELECT counter_drop('late:a');
SELECT counter_type_create('late', max => 10, per => '1 minute');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SELECT counter_incr('late'), counter_incr('later:a'), counter_drop('late:a');
SELECT counter_type_create('late', max => 10, per => '1 minute');
BEGIN;
SELECT counter_incr('other:a');
SELECT counter_type_create('other', per => '1 minute');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
-- With a type that has no window, its counters stay, and are in the way.
SELECT counter_incr('plain:a'), counter_type_drop('plain'), counter_value('plain:a');
SELECT counter_type_create('plain', per => '1 minute');
\echo :LAST_ERROR_SQLSTATE
-- One that has a window takes them with it.
SELECT counter_incr('day:a', 5), counter_incr('day:b', -5);
SELECT counterx.compact() > 0 AS folded;
SELECT counter_incr('day:b', 1);
BEGIN;
SELECT counter_incr('day:b', 1);
SELECT counter_type_drop('day');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
SELECT counter_type_drop('day');
SELECT name, value FROM counter_list('day:');
ROLLBACK;
SELECT name, value FROM counter_list('day:');
SELECT counter_type_drop('day');
SELECT name, value FROM counter_list('day:');
SELECT counter_window('day:a');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('day', per => '12 hours');
SELECT name, value FROM counter_list('day:');
SELECT counterx.compact() > 0 AS folded;
SELECT count(*) FROM counterx.total WHERE name LIKE 'day:%';
SELECT counter_type_drop('day');
SELECT counter_incr('day:a');
SELECT name, value FROM counter_list('day:');

-- What the hint says, in one transaction: dropped, and created with another window; several of them.
SELECT counter_type_create('week', max => 7, per => '1 day', kept => 6);
SELECT counter_incr('week:a', 7), counter_incr('hour:a', 9223372036854775807);
SELECT counter_incr('hour:a', 9223372036854775807);
-- (Not where it has counted something before: that is written then.)
BEGIN;
SELECT counter_incr('plain:a');
SELECT counter_type_drop('week');
SELECT counter_type_create('week', max => 8, per => '1 month');
SELECT counter_try_incr('week:a', 8), counter_try_incr('week:a');
ROLLBACK;
SELECT counter_value('week:a');
BEGIN;
SELECT counter_type_drop('week');
SELECT counter_type_create('week', min => 0, per => '1 month');
COMMIT;
-- What was dropped is there for others until then, and could be taken once more, where windows begin at the same time.
SELECT counter_incr('week:a', 7);
BEGIN;
SELECT counter_type_drop('week');
SELECT counter_type_create('week', min => 0, per => '1 day');
SELECT counter_incr('other:a'), counter_try_incr('utc:a');
SAVEPOINT s;
SELECT counter_try_incr('week:a', -7);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_set('week:a', -7);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_value('week:a');
COMMIT;
SELECT counter_drop('other:a'), counter_drop('utc:a');
SELECT counter_try_incr('week:a', -7), counter_try_incr('week:a', 1);
SELECT name, value FROM counter_list('week:');
-- Beyond a bigint as well.
SELECT name, value FROM counters WHERE name LIKE 'hour:%';
SELECT counter_type_drop('hour');
SELECT name, value FROM counters WHERE name LIKE 'hour:%';
SELECT * FROM known WHERE name IN ('week', 'hour');
-- What is on hold of a counter would be taken of one that has no window.
SELECT counter_type_create('held', min => 0), counter_incr('held:a', 5);
SELECT counter_hold('held:a', 5, '1 hour') AS hold \gset
SELECT counter_type_drop('held'), counter_drop('held:a');
SELECT counter_type_create('held', per => '1 day');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_release(:hold);
SELECT counter_type_create('held', per => '1 day');
INSERT INTO counterx.hold VALUES (1000, 'held:a', 3, now(), now() + interval '1 hour');
\echo :LAST_ERROR_SQLSTATE

-- Created and dropped in one transaction, after a savepoint, by a read only one.
BEGIN;
SELECT counter_type_create('brief', max => 2, per => '1 day');
SELECT counter_try_incr('brief:a'), counter_try_incr('brief:a'), counter_try_incr('brief:a');
SELECT value FROM counter_window('brief:a');
SELECT counter_type_drop('brief');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT counter_type_create('brief', max => 2, per => '1 day');
ROLLBACK TO s;
SELECT counter_incr('brief:a', 3);
SELECT counter_windows('brief:a');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT counter_type_create('brief', per => '1 day');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;

-- Names: the window is stored with them.
SELECT counter_type_create(repeat('x', 243), per => '1 day');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create(repeat('x', 242), max => 1, per => '1 day');
SELECT counter_try_incr(repeat('x', 242) || ':'), counter_value(repeat('x', 242) || ':');
SELECT counter_try_incr(repeat('x', 242) || ':y');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_value(repeat('x', 242) || ':y');
\echo :LAST_ERROR_SQLSTATE
SELECT octet_length(name), value FROM counter_list(repeat('x', 242));
SELECT counter_incr('utc:' || repeat('n', 239)), counter_value('utc:' || repeat('n', 239));
SELECT counter_incr('utc:' || repeat('n', 240));
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('utc:' || repeat('ä', 120));
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('none:' || repeat('n', 250)), counter_value('none:' || repeat('n', 250));
SELECT counter_incr(E'utc:a\x01b');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_value(E'utc:\x01');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_window(E'utc:\x01'), counter_windows(E'utc:\x01');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_set(E'utc:\x01', 1);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM counter_values(ARRAY['utc:a', E'utc:\x01']);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_rank(E'utc:\x01');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_available(E'utc:\x01');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_many(ARRAY['utc:a', E'utc:\x01'], ARRAY[1, 1]);
\echo :LAST_ERROR_SQLSTATE
-- Nothing of that has counted. In what is asked for in lists it can be: there is none.
SELECT left(name, 10) AS name, octet_length(name), value FROM counter_list('utc:');
SELECT name FROM counter_list(E'utc:\x01');
SELECT name FROM counter_list('utc:', after => E'utc:\x01') WHERE octet_length(name) < 20;
SELECT name FROM counters WHERE name = E'utc:\x01';
-- Names of others may have it.
SELECT counter_incr(E'none:a\x01b'), counter_value(E'none:a\x01b'), counter_incr(E'\x01'), counter_value(E'\x01');

-- Who may.
CREATE ROLE regress_windows;
SET ROLE regress_windows;
SELECT counter_type_create('mine', per => '1 day');
\echo :LAST_ERROR_SQLSTATE
SELECT counterx.reset_window_clock();
\echo :LAST_ERROR_SQLSTATE
SELECT counterx.windows_removed();
\echo :LAST_ERROR_SQLSTATE
SELECT granted, retry_at FROM counter_try('minute:a');
SELECT value FROM counter_window('minute:a');
SELECT count(*) FROM counter_windows('minute:a');
RESET ROLE;
DROP ROLE regress_windows;

-- The table itself.
SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'counterx.type'::regclass AND conname IN ('type_kept_check', 'type_sliding_check', 'type_removed_until_check') ORDER BY conname;
INSERT INTO counterx.type (name, generation, per) VALUES ('hand', 1, '7 minutes');
\echo :LAST_ERROR_SQLSTATE
INSERT INTO counterx.type (name, max, generation, per, sliding) VALUES ('hand', 1, 1, '1 day', true);
\echo :LAST_ERROR_SQLSTATE
INSERT INTO counterx.type (name, generation, per, kept) VALUES ('hand', 1, '1 day', 1001);
\echo :LAST_ERROR_SQLSTATE
INSERT INTO counterx.type (name, generation, removed_until) VALUES ('hand', 1, 'infinity');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('hand:a');
INSERT INTO counterx.type (name, generation, per) VALUES ('hand', 1, '1 day');
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM counter_types WHERE name = 'hand';
-- A zone that another server had: UTC's days, and a word about it.
INSERT INTO counterx.type (name, generation, per, zone) VALUES ('elsewhere', 1, '1 day', 'Europe/Nowhere');
SELECT counter_incr('elsewhere:a');
SELECT value, date_trunc('day', begins_at) = begins_at AS is_midnight, ends_at - begins_at AS length FROM counter_window('elsewhere:a');
-- Up to when another server has removed windows: nobody counts before that.
INSERT INTO counterx.type (name, max, generation, per, kept, removed_until) VALUES ('moved', 1, 1, '1 hour', 1, '2200-01-01 00:00+00');
SELECT removed_until, counterx.windows_removed() FROM counterx.type WHERE name = 'moved';
SELECT counter_try_incr('moved:a'), counter_try_incr('moved:a');
SELECT * FROM counter_window('moved:a');
SELECT * FROM counter_window('both:a');
-- What it had before is not less than that. An administrator can say that the server's clock is right.
INSERT INTO counterx.type (name, max, generation, per, removed_until) VALUES ('moved2', 1, 1, '1 hour', '2150-01-01 00:00+00');
SELECT removed_until, counterx.windows_removed() FROM counterx.type WHERE name = 'moved2';
SELECT counterx.reset_window_clock() < '2100-01-01' AS is_back, counterx.windows_removed() < '2100-01-01' AS are_back;
SELECT begins_at < '2100-01-01' AS is_back FROM counter_window('moved:a');

DROP VIEW known;
DROP EXTENSION counterx;
