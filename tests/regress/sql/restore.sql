-- What restores bring by SQL, and what they must not.
CREATE EXTENSION counterx;
SELECT counter_incr('used', 5), counter_incr('gone', 1);
SELECT counter_drop('gone');
SELECT counter_incr('dropped', 1);
SELECT counterx.compact() > 0 AS folded;
SELECT counter_drop('dropped');

-- The engine's own tables are nobody else's.
INSERT INTO counterx.log_0_a VALUES (1, now(), 1, 'x');
\echo :LAST_ERROR_SQLSTATE
INSERT INTO counterx.total VALUES ('x', 0, 1, 1);
UPDATE counterx.total SET value = 7;
DELETE FROM counterx.state;
UPDATE counterx.gate_0 SET gate = 2;
DELETE FROM counterx.gate_0;
TRUNCATE counterx.gate_0;
TRUNCATE counterx.total, counterx.state;
TRUNCATE counterx.late;
TRUNCATE counterx.token, counterx.hold;
\echo :LAST_ERROR_SQLSTATE
TRUNCATE counterx.type;
-- Whatever the session's role, as a restore may set it.
SET session_replication_role = replica;
INSERT INTO counterx.state VALUES (0, 0, 1000, 0, 0);
SET session_replication_role = DEFAULT;
SELECT counterx.guard();
SELECT counterx.restored();

-- Values of counters that are not there, which includes those that were dropped, count at once.
COPY counterx.late (name, delta, at, uses) FROM stdin;
new	40	2026-01-01 00:00:00+00	\N
gone	2	2026-01-01 00:00:00+00	\N
dropped	3	2026-01-01 00:00:00+00	\N
nothing	0	2026-01-01 00:00:00+00	\N
huge	9223372036854775807	2026-01-01 00:00:00+00	\N
huge	9223372036854775807	2026-01-01 00:00:00+00	\N
\.
SELECT * FROM counters ORDER BY name;
SELECT counter_value('new'), counter_incr('new'), counter_value('new');
SELECT counterx.compact() AS folded, (SELECT count(*) FROM counterx.late) AS left_over;
SELECT * FROM counters ORDER BY name;
-- A dump has them again, each value in as many rows as it takes; also what is only in memory.
BEGIN;
SELECT counter_incr('new');
SELECT name, delta, uses FROM counterx.dump_rows() ORDER BY name, delta;
ROLLBACK;

-- Where there is such a counter, nothing of the command is restored.
INSERT INTO counterx.late VALUES ('another', 1, now()), ('used', 1, now());
\echo :LAST_ERROR_SQLSTATE
SELECT counter_value('another'), counter_value('used');
-- Rows of one transaction are one restore.
BEGIN;
INSERT INTO counterx.late VALUES ('parts', 1, now());
INSERT INTO counterx.late VALUES ('parts', 2, now());
SELECT counter_value('parts');
SAVEPOINT s;
INSERT INTO counterx.late VALUES ('parts', 4, now());
ROLLBACK TO s;
SELECT counter_value('parts');
COMMIT;
SELECT counter_value('parts');
INSERT INTO counterx.late VALUES ('parts', 8, now());
UPDATE counterx.late SET delta = 100;
DELETE FROM counterx.late;
-- What is no counter.
INSERT INTO counterx.late VALUES ('', 1, now());
\echo :LAST_ERROR_SQLSTATE
INSERT INTO counterx.late VALUES (repeat('x', 256), 1, now());
INSERT INTO counterx.late VALUES (NULL, 1, '2026-01-01');
INSERT INTO counterx.late VALUES ('x', NULL, '2026-01-01');
INSERT INTO counterx.late VALUES ('x', 1, now(), 9223372036854775807);
\echo :LAST_ERROR_SQLSTATE
INSERT INTO counterx.late VALUES ('x', 1, now(), -1);
INSERT INTO counterx.late VALUES ('x', 1, now(), 1);
-- Names out of a table that has compressed them.
CREATE TABLE wide (name text, rest text);
ALTER TABLE wide ALTER COLUMN rest SET STORAGE PLAIN;
INSERT INTO wide SELECT repeat(name, 50), repeat('x', 7000) FROM (VALUES ('late'), ('type'), ('hold'), ('token')) names (name);
SELECT count(*) FILTER (WHERE pg_column_size(name) < 50) AS compressed FROM wide;
INSERT INTO counterx.late SELECT name, 3, now() FROM wide WHERE name LIKE 'late%';
SELECT counter_value(repeat('late', 50)), counter_sum('late');
SELECT counterx.compact() > 0 AS folded;
SELECT name = repeat('late', 50) AS right_name, value, counter_value(name) FROM counters WHERE name LIKE 'late%';
INSERT INTO counterx.type SELECT name, 0, 10, NULL, 1 FROM wide WHERE name LIKE 'type%';
SELECT counter_try_incr(repeat('type', 50) || ':x', 11) AS granted;
INSERT INTO counterx.hold SELECT 900, name, 1, now(), now() + interval '1 hour' FROM wide WHERE name LIKE 'hold%';
SELECT held FROM counter_available(repeat('hold', 50));
SELECT counter_hold_release(900);
INSERT INTO counterx.token SELECT 'compressed', name, 1, NULL, now() FROM wide WHERE name LIKE 'token%';
SELECT counter_incr_once('compressed', repeat('token', 50), 1) AS added;
SELECT counter_drop(repeat('late', 50)), counter_type_drop(repeat('type', 50));
DROP TABLE wide;

-- Bounds hold for restored values, and for types that are restored after them.
SELECT counter_type_create('quota', max => 10);
INSERT INTO counterx.late VALUES ('quota:a', 10, now()), ('quota:b', 3, now());
INSERT INTO counterx.late VALUES ('quota:c', 11, now());
\echo :LAST_ERROR_SQLSTATE
SELECT counter_try_incr('quota:a'), counter_try_incr('quota:b', 7), counter_try_incr('quota:b');
INSERT INTO counterx.late VALUES ('stock:a', -1, now());
INSERT INTO counterx.type VALUES ('stock', 0, NULL, NULL, 1);
INSERT INTO counterx.type VALUES ('stock', -1, NULL, NULL, 1);
SELECT counter_try_incr('stock:a', -1);
UPDATE counterx.type SET min = 0 WHERE name = 'stock';
INSERT INTO counterx.type VALUES ('no:type', 0, NULL, NULL, 1);
INSERT INTO counterx.type VALUES ('type', 1, NULL, NULL, 1);
INSERT INTO counterx.type VALUES ('type', NULL, -1, NULL, 1);
-- What a failed restore has brought is not looked at by the next one: it locks nobody out.
CREATE VIEW locked_out AS SELECT count(*) FROM pg_locks
    WHERE relation = 'counterx.anchor'::regclass AND mode = 'ExclusiveLock' AND pid = pg_backend_pid();
INSERT INTO counterx.late VALUES ('quota:failed', 1, now()), ('x', NULL, '2026-01-01');
BEGIN;
INSERT INTO counterx.late VALUES ('plain:after', 1, now());
TABLE locked_out;
INSERT INTO counterx.late VALUES ('quota:after', 1, now());
TABLE locked_out;
ROLLBACK;
DROP VIEW locked_out;
-- A hold that is restored makes room for nobody, and takes nobody's.
SELECT counter_incr('stock:b', 5);
SELECT counter_try_incr('stock:b', -1);
SELECT counter_hold('stock:b', 3, '1 hour') AS hold \gset
INSERT INTO counterx.hold VALUES (1000, 'stock:b', 3, now(), now() + interval '1 hour');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_reduce(:hold, 2);
INSERT INTO counterx.hold VALUES (1000, 'stock:b', 4, now(), now() + interval '1 hour');
UPDATE counterx.hold SET amount = 5 WHERE id = 1000;
SELECT counter_hold_confirm(:hold), counter_hold_confirm(1000);
SELECT counter_value('stock:b');
INSERT INTO counterx.token VALUES ('of no hold', 'stock:c', 1, NULL, '2026-01-01', true);
\echo :LAST_ERROR_SQLSTATE
-- Ids go on above those of restored holds, however far the sequence is behind.
INSERT INTO counterx.hold VALUES (1000000000000000, 'stock:c', 1, now(), now() + interval '1 hour');
SELECT counter_incr('stock:d', 5);
SET statement_timeout = '20s';
SELECT counter_hold('stock:d', 1, '1 hour'), counter_hold('stock:d', 1, '1 hour');
SELECT setval('counterx.hold_id', 1);
CREATE ROLE regress_counterx_holder;
SET ROLE regress_counterx_holder;
SELECT counter_hold('stock:d', 1, '1 hour');
RESET ROLE;
DROP ROLE regress_counterx_holder;
RESET statement_timeout;
-- What the transaction has restored itself is hidden from its own requests. So there are none.
BEGIN;
SAVEPOINT s;
INSERT INTO counterx.late VALUES ('quota:own', 8, now());
ROLLBACK TO s;
SELECT counter_try_incr('quota:other', 5);
ROLLBACK;
BEGIN;
SAVEPOINT s;
INSERT INTO counterx.late VALUES ('quota:own', 8, now());
RELEASE s;
SAVEPOINT s;
SELECT counter_try_incr('quota:own', 5);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_incr('stock:own');
COMMIT;
SELECT counter_try_incr('quota:own', 5), counter_try_incr('quota:own', 2);
BEGIN;
INSERT INTO counterx.hold VALUES (1001, 'stock:own', 1, now(), now() + interval '1 hour');
SAVEPOINT s;
SELECT counter_try_incr('stock:own', -1);
ROLLBACK TO s;
SELECT counter_hold('stock:own', 1, '1 hour');
ROLLBACK TO s;
SELECT counter_hold_confirm(1001);
ROLLBACK TO s;
SELECT counter_hold_release(1001);
COMMIT;
-- Of a counter that is restored after its hold.
INSERT INTO counterx.hold VALUES (1002, 'stock:c', 3, now(), now() + interval '1 hour');
INSERT INTO counterx.late VALUES ('stock:c', 4, now());
SELECT available FROM counter_available('stock:c');
SELECT counter_try_incr('stock:b', -1), counter_try_incr('stock:b', -1);
INSERT INTO counterx.hold VALUES (1001, 'stock:b', 0, '2026-01-01', '2026-01-02');

-- compact() keeps every lane from others until its transaction ends, so it cannot be prepared.
BEGIN;
SELECT counterx.compact() >= 0 AS folded;
PREPARE TRANSACTION 'folded';
\echo :LAST_ERROR_SQLSTATE
BEGIN;
SAVEPOINT s;
SELECT counterx.compact() >= 0 AS folded;
RELEASE s;
PREPARE TRANSACTION 'folded';
-- Rolled back, it keeps nothing.
BEGIN;
SAVEPOINT s;
SELECT counterx.compact() >= 0 AS folded;
ROLLBACK TO s;
PREPARE TRANSACTION 'folded';
COMMIT PREPARED 'folded';

-- Step by step.
SELECT counter_incr('step', 1);
CALL counterx.compact_in_steps();
SELECT sum(pending_deltas) AS pending FROM counterx.lanes;
BEGIN;
CALL counterx.compact_in_steps();
ROLLBACK;
DO $$ BEGIN CALL counterx.compact_in_steps(); END $$;
SELECT counter_incr('step', 1);
DO $$ BEGIN PERFORM 1 / counter_value('nothing'); EXCEPTION WHEN division_by_zero THEN CALL counterx.compact_in_steps(); END $$;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT counterx.compact();
ROLLBACK;
SET default_transaction_isolation = 'repeatable read';
CALL counterx.compact_in_steps();
RESET default_transaction_isolation;
SELECT counter_value('step');
DROP EXTENSION counterx;
