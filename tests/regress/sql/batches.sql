-- Many increments in one call: counter_incr_many with two arrays, and with a JSON object.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
SELECT counter_incr_many(ARRAY['a', 'b', 'c'], ARRAY[1, -2, 0]::bigint[]);
SELECT counter_incr_many('{"a": 10, "b": -20, "d": 7}');
SELECT name, value FROM counters ORDER BY name;
-- By name, and with arrays of integers that turn into bigints.
SELECT counter_incr_many(names => '{a}', deltas => '{100}');
SELECT counter_incr_many(deltas => '{"a": 1000}'::jsonb);
SELECT counter_incr_many(ARRAY['a']::varchar[], ARRAY[10000]::int[]);
SELECT counter_value('a');
-- What a name gets twice is added up. (In a JSON object the last one counts, as jsonb has it.)
SELECT counter_incr_many(ARRAY['twice', 'x', 'twice', 'twice'], ARRAY[1, 1, 10, 100]);
SELECT counter_incr_many('{"json": 1, "x": 1, "json": 10}');
SELECT name, value FROM counters WHERE name IN ('twice', 'x', 'json') ORDER BY name;
-- One delta a counter waits to be folded for each transaction.
BEGIN;
SELECT counter_incr_many(ARRAY['once', 'once', 'once'], ARRAY[1, 2, 3]) FROM generate_series(1, 3);
COMMIT;
SELECT name, value FROM counters WHERE name = 'once';
SELECT sum(pending_deltas) FROM counterx.lanes;
SELECT counterx.compact();
-- Nothing to add is no error, and makes nothing.
SELECT counter_incr_many('{}', '{}');
SELECT counter_incr_many('{}'::jsonb);
SELECT counter_incr_many(ARRAY[]::text[], ARRAY[]::bigint[]);
SELECT sum(pending_deltas) FROM counterx.lanes;
-- Arrays that do not begin at 1.
SELECT counter_incr_many('[5:6]={low,high}', '[-3:-2]={1,2}');
SELECT name, value FROM counters WHERE name IN ('low', 'high') ORDER BY name;
-- From a query.
CREATE TABLE hits (page text, n int);
INSERT INTO hits SELECT 'page:' || i % 5, i FROM generate_series(1, 100) i;
SELECT counter_incr_many(array_agg(page), array_agg(n)) FROM hits;
SELECT counter_incr_many(jsonb_object_agg(page, n)) FROM (SELECT page, sum(n) AS n FROM hits GROUP BY page) s;
SELECT name, value, value = 2 * (SELECT sum(n) FROM hits WHERE page = name) AS right FROM counters WHERE name LIKE 'page:%' ORDER BY name;
-- Names that are stored out of line or compressed, in arrays that are.
CREATE TABLE stored (names text[], deltas bigint[], object jsonb);
INSERT INTO stored
SELECT array_agg('stored:' || i || repeat('.', 200)), array_agg(i), jsonb_object_agg('stored:' || i || repeat('.', 200), i)
FROM generate_series(1, 2000) i;
SELECT pg_column_size(names) < 200000 AS compressed FROM stored;
SELECT counter_incr_many(names, deltas), counter_incr_many(object) FROM stored;
SELECT count(*), sum(value), bool_and(value = 2 * substring(name FROM 'stored:(\d+)')::int) AS right FROM counters WHERE name LIKE 'stored:%';

-- Numbers in JSON are what they are worth, however they are written.
SELECT counter_incr_many('{"j:1.0": 1.0, "j:1e3": 1e3, "j:-0": -0, "j:0.0": 0.0, "j:1200e-2": 1200e-2, "j:-5.000": -5.000,
    "j:1e18": 1e18, "j:10000": 10000, "j:max": 9223372036854775807, "j:min": -9223372036854775808}');
SELECT name, value FROM counters WHERE name LIKE 'j:%' ORDER BY name;
-- Keys in any script, escaped ones, and the longest one.
SELECT counter_incr_many('{"u:\u00e4": 1, "u:ä": 10, "u:日本": 2, "u:\ud83d\ude00": 3, "u:\"\\\n": 4, "u: ": 5}');
SELECT quote_literal(name), value FROM counters WHERE name LIKE 'u:%' ORDER BY name;
SELECT counter_incr_many(jsonb_build_object(repeat('x', 255), 6));
SELECT counter_value(repeat('x', 255));

-- Errors of arrays. Nothing of such a call is counted, and the transaction can go on behind a savepoint.
SELECT sum(value) AS before FROM counters \gset
BEGIN;
SAVEPOINT s;
SELECT counter_incr_many(ARRAY['e:1', 'e:2'], ARRAY[1]);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many(ARRAY[]::text[], ARRAY[1]);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many(NULL, ARRAY[1]);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many(ARRAY['e:1'], NULL);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many(ARRAY['e:1', NULL], ARRAY[1, 2]);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many(ARRAY['e:1', 'e:2'], ARRAY[1, NULL]);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many(ARRAY['e:1', ''], ARRAY[1, 2]);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many(ARRAY['e:1', repeat('ä', 128)], ARRAY[1, 2]);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many(ARRAY[['e:1', 'e:2'], ['e:3', 'e:4']], ARRAY[1, 2, 3, 4]);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many(ARRAY['e:1', 'e:2'], ARRAY[[1, 2]]);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
-- The sum of a transaction leaves bigint in the midst of the call.
SELECT counter_incr_many(ARRAY['e:1', 'e:2', 'e:2'], ARRAY[1, 9223372036854775807, 1]);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('e', ARRAY[1]);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT name, value FROM counters WHERE name LIKE 'e:%';
COMMIT;
-- Errors of objects.
BEGIN;
SAVEPOINT s;
SELECT counter_incr_many(NULL::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('[]'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('[{"e:1": 1}]'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('5'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('"e:1"'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('null'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('true'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('{"e:1": 1, "e:2": "1"}'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('{"e:1": 1, "e:2": null}'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('{"e:1": 1, "e:2": false}'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('{"e:1": 1, "e:2": [1]}'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('{"e:1": 1, "e:2": {"e:3": 1}}'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('{"e:1": 1, "e:2": {}}'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('{"e:1": 1, "e:2": 1.5}'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('{"e:1": 1, "e:2": 1e-3}'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('{"e:1": 1, "e:2": 9223372036854775808}'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('{"e:1": 1, "e:2": -9223372036854775809}'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('{"e:1": 1, "e:2": 1e30}'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('{"e:1": 1, "e:2": 1e400}'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('{"e:1": 1, "e:2": -1e100000}'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many('{"": 1}'::jsonb);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many(jsonb_build_object('e:1', 1, repeat('ä', 128), 1));
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT name, value FROM counters WHERE name LIKE 'e:%';
COMMIT;
SELECT sum(value) = :before AS unchanged FROM counters;
-- All or nothing in an exception block too, with what was there before in the same transaction.
DO $$
BEGIN
    PERFORM counter_incr_many(ARRAY['block:a', 'block:b'], ARRAY[1, 2]);
    BEGIN
        PERFORM counter_incr_many(ARRAY['block:a', 'block:c', NULL], ARRAY[10, 20, 30]);
    EXCEPTION WHEN null_value_not_allowed THEN
        PERFORM counter_incr_many('{"block:b": 100}');
    END;
    BEGIN
        PERFORM counter_incr_many('{"block:a": 1000, "block:bb": 1, "block:ccc": "no"}');
    EXCEPTION WHEN invalid_parameter_value THEN
        PERFORM counter_incr_many('{"block:b": 10000}');
    END;
END $$;
SELECT name, value FROM counters WHERE name LIKE 'block:%' ORDER BY name;
-- Early: more than counterx.pending_work_mem holds, with an error after much was written.
SET counterx.pending_work_mem = '64kB';
BEGIN;
SELECT counter_incr_many(array_agg('early:' || i || repeat('.', 180)), array_agg(i)) FROM generate_series(1, 2000) i;
SAVEPOINT s;
SELECT counter_incr_many(array_agg('early:' || i || repeat('.', 180)) || ARRAY['early:', 'early:'], array_agg(i::bigint) || ARRAY[9223372036854775807, 1]) FROM generate_series(1, 2000) i;
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_many(array_agg('early:' || i || repeat('.', 180)) || ARRAY['early:'], array_agg(i::bigint) || ARRAY[1::bigint]) FROM generate_series(1, 2000) i;
COMMIT;
RESET counterx.pending_work_mem;
SELECT counter_sum('early:') = 2 * (2000 * 2001 / 2) + 1 AS exact;
-- Not in a read-only transaction.
BEGIN READ ONLY;
SELECT counter_incr_many(ARRAY['a'], ARRAY[1]);
ROLLBACK;
BEGIN READ ONLY;
SELECT counter_incr_many('{"a": 1}');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SELECT counterx.compact() > 0 AS folded;
SELECT name, value FROM counters WHERE name ~ '^[a-d]$' ORDER BY name;
