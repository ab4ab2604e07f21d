-- Idempotent increments: counter_incr_once and counter_incr_once_get.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
-- The first call counts, a repetition does not; default delta, by position and by name.
SELECT counter_incr_once('t1', 'x'), counter_incr_once('t1', 'x'), counter_incr_once('t2', 'x', 10);
SELECT counter_incr_once('t1', 'x'), counter_incr_once('t2', 'x', 10), counter_incr_once(token => 't3', name => 'x', delta => 100);
SELECT counter_value('x');
SELECT counterx.compact();
SELECT counter_incr_once('t1', 'x'), counter_incr_once('t3', 'x', 100), counter_value('x');
-- With the value: a repetition returns what the first call has returned.
SELECT counter_incr_once_get('g1', 'x', 1000), counter_incr_once_get('g1', 'x', 1000);
SELECT counter_incr('x', 5);
SELECT counter_incr_once_get('g1', 'x', 1000), counter_value('x');
SELECT counter_incr_once_get('g2', 'y', -3), counter_incr_once_get('g3', 'zero', 0);
SELECT counter_incr_once_get('g2', 'y', -3), counter_incr_once_get('g3', 'zero', 0);
SELECT name, value FROM counters ORDER BY name;
-- A token of one function is known to the other, which may not know the value.
SELECT counter_incr_once('g1', 'x', 1000);
SELECT counter_incr_once_get('t1', 'x');
\echo :LAST_ERROR_SQLSTATE
-- Used for something else: refused.
SELECT counter_incr_once('t1', 'x', 2);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_once('t1', 'y');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_once_get('g1', 'X', 1000);
\echo :LAST_ERROR_SQLSTATE
-- Tokens are bytes, and nothing else than tokens: not names, no patterns.
SELECT counter_incr_once(t, 'bytes') FROM unnest(ARRAY['a', 'A', 'a ', '%', 'ä', 'x', repeat('ä', 127), repeat('x', 255), repeat('x', 254), '''"\']) t;
SELECT counter_incr_once(t, 'bytes') FROM unnest(ARRAY['a', 'A', 'a ', '%', 'ä', 'x', repeat('ä', 127), repeat('x', 255), repeat('x', 254), '''"\']) t;
SELECT counter_value('bytes');
-- The longest of all that is stored.
SELECT counter_incr_once(repeat('t', 255), repeat('n', 255), -9223372036854775808), counter_incr_once(repeat('t', 255), repeat('n', 255), -9223372036854775808);
-- Errors.
SELECT counter_incr_once(NULL, 'x');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_once('t', NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_once('t', 'x', NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_once('', 'x');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_once(repeat('ä', 128), 'x');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_once('t', '');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_once_get('t', repeat('x', 256));
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_once_get(NULL, 'x');
\echo :LAST_ERROR_SQLSTATE
BEGIN READ ONLY;
SELECT counter_incr_once('t1', 'x');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT counter_incr_once_get('g1', 'x', 1000);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
-- An increment that fails leaves its token free.
BEGIN;
SELECT counter_incr('full', 9223372036854775807);
SAVEPOINT s;
SELECT counter_incr_once('f', 'full', 1);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr_once('f', 'full', -1);
COMMIT;
SELECT counter_incr('full', 2);
SELECT counter_incr_once_get('f2', 'full', 1);
\echo :LAST_ERROR_SQLSTATE
SELECT value FROM counters WHERE name = 'full';
SELECT counter_incr_once_get('f2', 'full', -1);

-- It is part of the transaction: a token that is rolled back is free again, with its savepoint too.
BEGIN;
SELECT counter_incr_once('r', 'r', 1);
ROLLBACK;
SELECT counter_incr_once('r', 'r', 2);
BEGIN;
SELECT counter_incr_once('s1', 's', 1);
SAVEPOINT a;
SELECT counter_incr_once('s2', 's', 10), counter_incr_once('s1', 's', 1), counter_incr_once_get('s3', 's', 100);
SAVEPOINT b;
SELECT counter_incr_once('s2', 's', 10), counter_incr_once('s4', 's', 1000);
RELEASE b;
ROLLBACK TO a;
SELECT counter_value('s');
SELECT counter_incr_once('s1', 's', 1), counter_incr_once('s2', 's', 20), counter_incr_once_get('s3', 's', 200), counter_incr_once('s4', 's', 2000);
SAVEPOINT c;
SELECT counter_incr_once('s5', 's', 10000);
RELEASE c;
SELECT counter_incr_once('s5', 's', 10000);
RELEASE a;
SELECT counter_value('s');
COMMIT;
SELECT counter_incr_once('s5', 's', 10000), counter_incr_once_get('s3', 's', 200), counter_value('s');
DO $$
BEGIN
    PERFORM counter_incr_once('d1', 'd', 1);
    BEGIN
        PERFORM counter_incr_once('d2', 'd', 10);
        PERFORM counter_incr_once('d1', 'd', 2);
    EXCEPTION WHEN invalid_parameter_value THEN
        ASSERT counter_incr_once('d2', 'd', 100);
    END;
    ASSERT NOT counter_incr_once('d2', 'd', 100);
END $$;
SELECT counter_value('d');

-- The same token several times in one statement counts once; with another increment it is refused.
CREATE TABLE events (id text, kind text, n int);
INSERT INTO events SELECT 'e' || i % 10, 'kind:' || i % 2, i % 10 FROM generate_series(0, 49) i;
SELECT count(*) FILTER (WHERE counter_incr_once(id, kind, n)) AS counted, count(*) FROM events;
SELECT name, value FROM counters WHERE name LIKE 'kind:%' ORDER BY name;
CREATE TABLE log (id text, counted boolean, value bigint);
INSERT INTO log SELECT 'i' || i % 3, counter_incr_once('i' || i % 3, 'i', i % 3), counter_incr_once_get('v' || i % 3, 'v', i % 3) FROM generate_series(0, 8) i;
SELECT id, count(*) FILTER (WHERE counted) AS counted, count(*), count(DISTINCT value) AS values FROM log GROUP BY id ORDER BY id;
SELECT name, value FROM counters WHERE name IN ('i', 'v') ORDER BY name;
INSERT INTO log SELECT 'j', counter_incr_once('j', 'j', i) FROM generate_series(1, 2) i;
SELECT count(*) FROM log WHERE id = 'j';
SELECT counter_value('j'), counter_incr_once('j', 'j', 5);

-- Thousands in one transaction take no lock each; written early or not.
BEGIN;
SELECT count(*) FILTER (WHERE counter_incr_once('m' || i, 'm')) FROM generate_series(1, 10000) i;
SELECT count(*) < 100 AS few_locks FROM pg_locks WHERE pid = pg_backend_pid();
SELECT count(*) FILTER (WHERE counter_incr_once('m' || i, 'm')) FROM generate_series(1, 10000) i;
COMMIT;
SELECT counter_value('m');
SET counterx.pending_work_mem = '64kB';
BEGIN;
SELECT count(*) FILTER (WHERE counter_incr_once('early' || i, 'early:' || i || repeat('.', 180), i)) FROM generate_series(1, 1000) i;
SAVEPOINT a;
SELECT count(*) FILTER (WHERE counter_incr_once('early' || i, 'early:' || i || repeat('.', 180), i)) FROM generate_series(501, 1500) i;
ROLLBACK TO a;
SELECT sum(counter_incr_once_get('get' || i, 'early:' || i || repeat('.', 180), i)) FROM generate_series(501, 1500) i;
SELECT sum(counter_incr_once_get('get' || i, 'early:' || i || repeat('.', 180), i)) FROM generate_series(501, 1500) i;
COMMIT;
RESET counterx.pending_work_mem;
SELECT counter_sum('early:') = 1000 * 1001 / 2 + (501 + 1500) * 1000 / 2 AS exact;

-- Prepared: the token is taken from the moment that the transaction is decided.
BEGIN;
SELECT counter_incr_once('p1', 'p', 1), counter_incr_once_get('p2', 'p', 10);
PREPARE TRANSACTION 'counterx_tokens';
COMMIT PREPARED 'counterx_tokens';
SELECT counter_incr_once('p1', 'p', 1), counter_incr_once_get('p2', 'p', 10), counter_value('p');
BEGIN;
SELECT counter_incr_once('p3', 'p', 100);
PREPARE TRANSACTION 'counterx_tokens';
ROLLBACK PREPARED 'counterx_tokens';
SELECT counter_incr_once('p3', 'p', 100), counter_value('p');

-- A counter may be dropped; its tokens stay used.
SELECT counter_drop('p'), counter_incr_once('p1', 'p', 1), counter_value('p');
SELECT counter_incr_once('p4', 'p', 7), counter_value('p');

-- Expired tokens are removed by compact(), and are free from then on. Until then they count.
SELECT count(*) FROM counterx.token WHERE token LIKE 'p_';
UPDATE counterx.token SET at = at - interval '8 days' WHERE token IN ('p1', 'p2');
UPDATE counterx.token SET at = at - interval '6 days' WHERE token = 'p3';
SELECT counter_incr_once('p1', 'p', 1), counter_incr_once_get('p2', 'p', 10);
SELECT counterx.compact() >= 0 AS folded;
SELECT token FROM counterx.token WHERE token LIKE 'p_' ORDER BY token;
SELECT counter_incr_once('p1', 'p', 2), counter_incr_once_get('p2', 'p', 10), counter_incr_once('p3', 'p', 100);
-- A removal that is rolled back has not been. In its own transaction they are free.
UPDATE counterx.token SET at = at - interval '8 days' WHERE token IN ('p1', 'p2');
BEGIN;
SELECT counterx.compact() >= 0 AS folded;
SELECT count(*) FROM counterx.token WHERE token IN ('p1', 'p2');
SAVEPOINT a;
SELECT counter_incr_once('p1', 'p', 3), counter_incr_once('p1', 'p', 3);
ROLLBACK TO a;
SELECT counter_incr_once('p1', 'p', 4), counter_value('p');
ROLLBACK;
SELECT counter_incr_once('p1', 'p', 2), counter_value('p');

-- All isolation levels, alone.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT counter_incr_once('p1', 'p', 2), counter_incr_once('rr', 'p', 1), counter_incr_once('rr', 'p', 1), counter_incr_once_get('rrg', 'p', 1), counter_incr_once_get('rrg', 'p', 1);
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT counter_incr_once('p1', 'p', 2), counter_incr_once('rr', 'p', 1), counter_incr_once('ser', 'p', 1), counter_incr_once('ser', 'p', 1);
SAVEPOINT a;
SELECT counter_incr_once('ser', 'p', 1), counter_incr_once_get('serg', 'p', 1), counter_incr_once_get('serg', 'p', 1);
RELEASE a;
SELECT counter_incr_once_get('serg', 'p', 1);
COMMIT;
SELECT counter_value('p');
