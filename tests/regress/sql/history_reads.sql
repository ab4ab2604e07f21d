-- Reading what was counted when: buckets, values as of a time, rates, what has changed most, events; of folded rows and
-- of pending ones, which have to look the same. Nobody folds in between, and the clock that history goes by is set.
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

-- The clock, give or take some seconds. All times below are minutes, and the clock stands in the middle of one.
CREATE PROCEDURE clock(at timestamptz) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('counterx.clock_ahead', extract(epoch FROM at + interval '20 s' - clock_timestamp())::int::text, false);
END $$;
-- In each unit, a counter's value is that before its oldest bucket and the sum of all, and each row has the value
-- after it; the events are the same changes once more.
CREATE FUNCTION disagreeing(name text) RETURNS TABLE (unit text, value numeric, sum numeric) LANGUAGE sql STABLE AS $$
    WITH b AS (
        SELECT u.unit, b.start, b.delta + b.adjusted AS net, b.value, b.value - b.delta - b.adjusted AS before,
            b.delta = b.ups - b.downs AS is_difference,
            lag(b.value) OVER (PARTITION BY u.unit ORDER BY b.start) AS last
        FROM (VALUES ('minute'), ('hour'), ('day'), ('month')) u (unit), counter_buckets(disagreeing.name, u.unit) b
    ), s AS (
        SELECT b.unit, (array_agg(b.before ORDER BY b.start))[1] + sum(b.net) AS sum,
            bool_and(b.is_difference AND (b.last IS NULL OR b.last = b.before)) AS is_chain,
            (array_agg(b.value ORDER BY b.start DESC))[1] AS value
        FROM b GROUP BY b.unit
    )
    SELECT s.unit, counter_value(disagreeing.name), s.sum FROM s
    WHERE NOT s.is_chain OR s.sum <> counter_value(disagreeing.name) OR s.value <> s.sum
$$;
-- What every function says of a counter, for comparing it before and after a fold. A sealed bucket may be one after.
CREATE VIEW said AS
SELECT n.name, u.unit, b.start, b.delta, b.ups, b.downs, b.changes, b.adjusted, b.value
FROM (VALUES ('hits:a'), ('hits:b')) n (name), (VALUES ('minute'), ('hour'), ('day'), ('month')) u (unit), counter_buckets(n.name, u.unit) b
UNION ALL
SELECT n.name, 'event', e.at, e.delta, NULL, NULL, e.xid::text::bigint, (e.kind = 'adjustment')::int, NULL
FROM (VALUES ('hits:a'), ('hits:b')) n (name), counter_events(n.name) e
UNION ALL
SELECT t.name, 'changed', NULL, t.delta, NULL, NULL, NULL, NULL, NULL FROM counter_top_changed(10, 'hits:') t;

-- Before anything is known.
CALL clock('2030-03-30 22:10+00');
SELECT counter_incr('hits:a', 1000);
SELECT counter_history('hits', month => 'infinity', events => '7 days', time_zone => 'Europe/Berlin');
SELECT * FROM counter_histories ORDER BY unit;
SELECT sealed_until IS NULL AS never FROM counter_sealed;
SELECT * FROM counter_buckets('hits:a', 'minute', fill => true);
SELECT counter_at('hits:a', 'infinity'), counter_at_boundary('hits:a', 'infinity');
SELECT * FROM counter_events('hits:a');
SELECT * FROM counter_top_changed(10, 'hits:');
SELECT date_trunc('minute', counter_seal());
SELECT unit, date_trunc('minute', since) FROM counter_histories ORDER BY unit;
SELECT delta IS NULL AS nothing, from_at = to_at AS same, to_at, per_second FROM counter_rate('hits:a', '1 hour');

-- Two minutes, of which one is folded; then the days and months of the time zone, one of them of 23 hours.
SELECT counter_incr('hits:a', 5);
SELECT counter_decr('hits:a', 2);
SELECT counter_seal() IS NOT NULL AS sealed;
CALL clock('2030-03-30 22:12+00');
SELECT counter_incr('hits:a', 10), counter_incr('hits:b', 7);
SELECT counter_incr('hits:a', 1);
SELECT * FROM counter_buckets('hits:a', 'minute');
CALL clock('2030-03-30 23:00+00');
SELECT counter_incr('hits:a', 100);
CALL clock('2030-03-31 21:59+00');
SELECT counter_incr('hits:a', 200);
CALL clock('2030-03-31 22:00+00');
SELECT counter_incr('hits:a', 400);
SELECT * FROM disagreeing('hits:a');
CREATE TEMP TABLE before AS SELECT * FROM said;
SELECT count(*) FROM before;
SELECT counterx.compact();
SELECT * FROM before EXCEPT SELECT * FROM said;
SELECT * FROM said EXCEPT SELECT * FROM before;
SELECT * FROM disagreeing('hits:a');
SELECT * FROM counter_buckets('hits:a', 'minute');
SELECT * FROM counter_buckets('hits:a', 'hour');
SELECT start, start AT TIME ZONE 'Europe/Berlin' AS local, delta, value, sealed FROM counter_buckets('hits:a', 'day', fill => true);
SELECT start, delta, value, sealed FROM counter_buckets('hits:a', 'month', fill => true);
SELECT counter_seal() IS NOT NULL AS sealed;
SELECT start, delta, value, sealed FROM counter_buckets('hits:a', 'day');

-- Spans, and empty buckets between.
SELECT start, delta, value FROM counter_buckets('hits:a', 'minute', '2030-03-30 22:12+00', '2030-03-30 23:00+00');
SELECT start, delta, value FROM counter_buckets('hits:a', 'minute', '2030-03-30 22:12:00.000001+00', '2030-03-30 23:00:00.000001+00');
SELECT start, delta, changes, value FROM counter_buckets('hits:a', 'minute', to_timestamp(0), '2030-03-30 22:15+00', true);
SELECT start, delta, changes, value FROM counter_buckets('hits:a', 'minute', '2030-03-30 22:58:30+00', '2030-03-30 23:02+00', true);
SELECT count(*), min(start), max(start), sum(delta) FROM counter_buckets('hits:a', 'minute', fill => true);
SELECT count(*), min(start), max(start), sum(delta) FROM counter_buckets('hits:a', 'hour', fill => true);
SELECT * FROM counter_buckets('hits:a', 'hour', '2030-03-31 22:30+00', NULL, true);
SELECT * FROM counter_buckets('hits:a', 'hour', '2030-03-31+00', '2030-03-30+00', true);
SELECT * FROM counter_buckets('hits:a', 'hour', 'infinity', NULL, true);
SELECT * FROM counter_buckets('hits:a', 'hour', NULL, '-infinity', true);
SELECT count(*) FROM counter_buckets('hits:a', 'hour', '-infinity', 'infinity');
-- A counter that never was has its zeros.
SELECT start, delta, value FROM counter_buckets('hits:none', 'day', fill => true);
SELECT start, delta, value FROM counter_buckets('hits:none', 'day');

-- As of a time: before the history, at each boundary, between, now, and in times to come.
SELECT t AS at, counter_at_boundary('hits:a', t) AS boundary, counter_at('hits:a', t), counter_at('hits:b', t) AS b, counter_at('hits:none', t) AS none
FROM unnest(ARRAY['-infinity', '2030-03-30 22:10+00', '2030-03-30 22:11+00', '2030-03-30 22:12+00', '2030-03-30 22:12:59.999999+00',
    '2030-03-30 22:13+00', '2030-03-30 23:00:30+00', '2030-03-30 23:01+00', '2030-03-31 10:00+00', '2030-03-31 22:00+00']::timestamptz[]) t;
SELECT counter_at_boundary('hits:a', 'infinity'), counter_at('hits:a', 'infinity'), counter_at('hits:a', '4000-01-01') = counter_at('hits:a', 'infinity') AS same;
SELECT bool_and(b.value - b.delta - b.adjusted = counter_at('hits:a', b.start)) AS agree FROM counter_buckets('hits:a', 'minute') b WHERE b.start >= '2030-03-30 22:11+00';

-- Rates.
SELECT * FROM counter_rate('hits:a', '1 minute');
SELECT * FROM counter_rate('hits:a', '1 hour');
SELECT delta, from_at, to_at FROM counter_rate('hits:a', '90 s');
SELECT delta, from_at, to_at FROM counter_rate('hits:a', '23 hours');
SELECT delta, from_at, to_at FROM counter_rate('hits:a', '10 years');

-- Events, page by page.
SELECT date_trunc('minute', at) AS at, delta, kind, xid IS NOT NULL AS has_xid, folded FROM counter_events('hits:a');
SELECT e.delta FROM counter_events('hits:a', NULL, 2) e;
SELECT n.delta FROM (SELECT max(at) AS at FROM counter_events('hits:a', NULL, 2)) p, counter_events('hits:a', p.at, 3) n;
SELECT * FROM counter_events('hits:a', NULL, 0);
SELECT * FROM counter_events('hits:a', 'infinity');
SELECT count(*) FROM counter_events('hits:a', '-infinity');

-- What the own transaction does is there at once, and gone when it is rolled back. What depends on the value is an
-- adjustment, in the same statement as well.
CALL clock('2030-03-31 22:02+00');
BEGIN;
SELECT counter_incr('hits:a', 3);
SAVEPOINT s;
SELECT counter_incr('hits:a', 50);
SELECT delta, ups, downs, changes, adjusted, value, sealed FROM counter_buckets('hits:a', 'minute', '2030-03-31 22:02+00');
ROLLBACK TO s;
SELECT counter_decr('hits:a', 1);
SELECT counter_set('hits:a', 5000);
SELECT delta, ups, downs, changes, adjusted, value FROM counter_buckets('hits:a', 'minute', '2030-03-31 22:02+00');
SELECT s.old, b.adjusted, b.value, counter_value('hits:a'), counter_at('hits:a', 'infinity')
FROM (SELECT counter_set('hits:a', 6000) AS old OFFSET 0) s, LATERAL counter_buckets('hits:a', 'day', CASE WHEN s.old > 0 THEN timestamptz '2030-03-31 22:00+00' END) b;
SELECT pg_current_xact_id() IS NOT NULL AS has_one;
SELECT delta, kind, xid = pg_current_xact_id() AS mine, folded FROM counter_events('hits:a', '2030-03-31 22:02+00');
SELECT * FROM disagreeing('hits:a');
SELECT * FROM counter_top_changed(10, 'hits:', '1 hour');
COMMIT;
SELECT * FROM disagreeing('hits:a');
TRUNCATE before;
INSERT INTO before SELECT * FROM said;
SELECT counterx.compact();
SELECT * FROM before EXCEPT SELECT * FROM said;
SELECT * FROM said EXCEPT SELECT * FROM before;
-- What was written early is as what was not.
SET counterx.pending_work_mem = '64kB';
BEGIN;
SELECT counter_incr('hits:a', 1);
SELECT count(*) FROM generate_series(1, 2000) n, LATERAL (SELECT counter_incr('hits:many:' || n)) c OFFSET 0;
SELECT counter_incr('hits:a', 1);
SELECT sum(pending_deltas) > 1000 AS written FROM counterx.lane_status();
SELECT delta, changes, value FROM counter_buckets('hits:a', 'minute', '2030-03-31 22:02+00');
SELECT * FROM disagreeing('hits:a');
ROLLBACK;
RESET counterx.pending_work_mem;

-- One snapshot.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT value FROM counter_buckets('hits:a', 'month');
SELECT counter_set('hits:a', 6001);
SELECT value FROM counter_buckets('hits:a', 'month');
SELECT * FROM disagreeing('hits:a');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT counter_incr('hits:a');
SELECT * FROM disagreeing('hits:a');
COMMIT;

-- A clock that is set back: it is counted at the end of what is sealed, where folds will count it.
CALL clock('2030-03-31 22:05+00');
SELECT date_trunc('minute', counter_seal());
CALL clock('2030-03-31 21:00+00');
SELECT counter_incr('hits:a', 9);
SELECT start, delta, value, sealed FROM counter_buckets('hits:a', 'minute', '2030-03-31 22:02+00');
SELECT counter_at_boundary('hits:a', 'infinity'), counter_at('hits:a', 'infinity');
SELECT date_trunc('minute', at), delta, folded FROM counter_events('hits:a', '2030-03-31 22:04+00');
SELECT counter_seal() IS NOT NULL AS sealed;
SELECT start, delta, value, sealed FROM counter_buckets('hits:a', 'minute', '2030-03-31 22:02+00');
SELECT date_trunc('minute', at), delta, folded FROM counter_events('hits:a', '2030-03-31 22:04+00');
-- One that was ahead, and not sealed: an older bucket than the newest gets something, and all values with it.
CALL clock('2030-03-31 22:09+00');
SELECT counter_incr('hits:a', 1);
SELECT counterx.compact();
CALL clock('2030-03-31 23:20+00');
SELECT counter_incr('hits:a', 20);
CALL clock('2030-03-31 22:10+00');
SELECT counter_incr('hits:a', 300);
SELECT start, delta, value FROM counter_buckets('hits:a', 'minute', '2030-03-31 22:09+00');
SELECT * FROM disagreeing('hits:a');
SELECT counterx.compact();
SELECT start, delta, value FROM counter_buckets('hits:a', 'minute', '2030-03-31 22:09+00');
SELECT * FROM disagreeing('hits:a');

-- Minutes are kept for a day: then hours say what was, and at last days. Nothing was counted since.
CALL clock('2030-04-03 12:00+00');
SELECT counter_seal() IS NOT NULL AS sealed;
SELECT * FROM counter_buckets('hits:a', 'minute');
SELECT count(*), min(value), max(value) FROM counter_buckets('hits:a', 'minute', fill => true);
SELECT t AS at, counter_at_boundary('hits:a', t) AS boundary, counter_at('hits:a', t)
FROM unnest(ARRAY['2030-03-30 22:30+00', '2030-03-31 10:20+00', '2030-04-02 10:20+00', '2030-04-03 11:30+00']::timestamptz[]) t;
SELECT delta, from_at, to_at FROM counter_rate('hits:a', '3 days');
SELECT * FROM counter_top_changed(10, 'hits:', '1 day');
SELECT * FROM counter_top_changed(1, 'hits:', '4 days');
SELECT * FROM counter_top_changed(10, 'hits:b', '4 days');
SELECT * FROM counter_top_changed(0, 'hits:', '4 days');
SELECT count(*) FROM counter_events('hits:a');
CALL clock('2030-06-01 12:00+00');
SELECT counter_seal() IS NOT NULL AS sealed;
SELECT count(*) FROM counter_events('hits:a');
SELECT * FROM counter_buckets('hits:a', 'hour');
SELECT counter_at_boundary('hits:a', '2030-03-31 23:30+00'), counter_at('hits:a', '2030-03-31 23:30+00');
SELECT start, delta, adjusted, value FROM counter_buckets('hits:a', 'month', fill => true);
SELECT * FROM disagreeing('hits:a');
SELECT counter_incr('hits:a', 4);
SELECT start, delta, value FROM counter_buckets('hits:a', 'minute');
SELECT start, delta, value FROM counter_buckets('hits:a', 'hour');
SELECT * FROM disagreeing('hits:a');

-- Another time that it is kept for has the rows in other tables; they are one history.
SELECT counter_history('hits', hour => '7 days', minute => '7 days', month => 'infinity', events => 'infinity', time_zone => 'Europe/Berlin');
SELECT counter_incr('hits:a', 1), counterx.compact();
SELECT counter_incr('hits:a', 2);
SELECT start, delta, value FROM counter_buckets('hits:a', 'minute');
SELECT count(*) FROM counter_events('hits:a');
SELECT * FROM disagreeing('hits:a');
SELECT counterx.compact();
SELECT start, delta, value FROM counter_buckets('hits:a', 'minute');
SELECT * FROM disagreeing('hits:a');

-- A purge hides all that was, and nothing that the transaction counts after it.
BEGIN;
SELECT counter_drop('hits:a', purge => true);
SELECT * FROM counter_buckets('hits:a', 'month');
SELECT counter_incr('hits:a', 6);
SELECT delta, adjusted, value FROM counter_buckets('hits:a', 'month');
SELECT delta, kind, folded FROM counter_events('hits:a');
SELECT * FROM disagreeing('hits:a');
ROLLBACK;
SELECT count(*) FROM counter_buckets('hits:a', 'month');
SELECT counter_drop('hits:a', purge => true);
SELECT counter_incr('hits:a', 8);
SELECT delta, adjusted, value FROM counter_buckets('hits:a', 'month');
SELECT name, delta FROM counter_top_changed(10, 'hits:', '1 year');
SELECT counter_at('hits:a', '2030-05-01+00');
TRUNCATE before;
INSERT INTO before SELECT * FROM said;
SELECT counterx.compact();
SELECT * FROM before EXCEPT SELECT * FROM said;
SELECT * FROM said EXCEPT SELECT * FROM before;

-- Values beyond a bigint.
SELECT counter_incr('hits:big', 9223372036854775807);
SELECT counter_incr('hits:big', 9223372036854775807);
SELECT delta, value FROM counter_buckets('hits:big', 'day');
CALL clock('2030-06-01 12:01+00');
SELECT counter_at('hits:big', 'infinity');
SELECT delta FROM counter_rate('hits:big', '1 minute');
SELECT counterx.compact();
SELECT delta, value FROM counter_buckets('hits:big', 'day');

-- Mistakes.
SELECT * FROM counter_buckets(NULL, 'hour');
SELECT * FROM counter_buckets('', 'hour');
SELECT * FROM counter_buckets('hits:a', NULL);
SELECT * FROM counter_buckets('hits:a', 'week');
SELECT * FROM counter_buckets('hits:a', 'event');
SELECT * FROM counter_buckets('hits:a', 'hour', fill => NULL);
SELECT * FROM counter_buckets('orders:eu', 'hour');
SELECT * FROM counter_buckets('plain', 'hour');
SELECT counter_at('hits:a', NULL);
SELECT counter_at(NULL, now());
SELECT counter_at('orders:eu', now());
SELECT counter_at_boundary('plain', now());
SELECT * FROM counter_rate('hits:a', NULL);
SELECT * FROM counter_rate('hits:a', '0 s');
SELECT * FROM counter_rate('hits:a', '-1 hour');
SELECT * FROM counter_rate('orders:eu', '1 hour');
SELECT * FROM counter_top_changed(10);
SELECT * FROM counter_top_changed(10, 'hits');
SELECT * FROM counter_top_changed(10, repeat('x', 3000000));
SELECT * FROM counter_top_changed(10, repeat('x', 3000000) || ':');
SELECT * FROM counter_buckets('hits:a', repeat('x', 3000000));
SELECT * FROM counter_top_changed(10, NULL);
SELECT * FROM counter_top_changed(NULL, 'hits:');
SELECT * FROM counter_top_changed(-1, 'hits:');
SELECT * FROM counter_top_changed(10, 'hits:', NULL);
SELECT * FROM counter_top_changed(10, 'hits:', '0 s');
SELECT * FROM counter_top_changed(10, 'orders:');
SELECT * FROM counter_events(NULL);
SELECT * FROM counter_events('hits:a', NULL, -1);
SELECT * FROM counter_events('hits:a', NULL, NULL);
SELECT * FROM counter_events('orders:eu');
SELECT counter_history('plain', minute => NULL, hour => NULL, day => NULL, events => 'infinity');
SELECT * FROM counter_buckets('plain:a', 'day');
SELECT * FROM counter_rate('plain:a', '1 day');
SELECT counter_history('plain');
SELECT * FROM counter_events('plain:a');
SELECT counter_history_drop('plain');
SELECT * FROM counter_buckets('plain:a', 'day');
