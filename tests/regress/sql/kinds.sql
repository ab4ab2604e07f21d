-- What the logs say of why a counter has changed: null is an increment, 'a' an adjustment.
CREATE EXTENSION counterx;
SET counterx.compaction = off;
-- All rows of the logs and of late, as they were written.
CREATE FUNCTION logged(OUT name text, OUT delta bigint, OUT uses bigint, OUT kind "char") RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
    part text;
BEGIN
    FOR part IN SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'counterx'::regnamespace AND c.relname ~ '^log_._.$' LOOP
        RETURN QUERY EXECUTE format('SELECT l.name, l.delta, l.uses, l.kind FROM counterx.%I l', part);
    END LOOP;
    RETURN QUERY SELECT l.name, l.delta, l.uses, l.kind FROM counterx.late l;
END
$$;
CREATE VIEW log_rows AS SELECT * FROM logged() ORDER BY name COLLATE "C", kind NULLS FIRST, delta;
\set rows 'SELECT name, delta, uses, kind FROM log_rows WHERE name LIKE '

-- All ways to count.
SELECT counter_type_create('way', min => 0);
SELECT counter_incr('way:1', 5), counter_decr('way:1', 2), counter_incr_get('way:2', 0), counter_incr_many('{"way:3": 3, "way:4": 4}');
CALL counter_add('way:5');
SELECT counter_incr_once('token', 'way:6', 6), counter_hit('way:7', 7);
SELECT counter_try_incr('way:5', 5), counter_take_up_to('way:3', 9);
SELECT counter_hold('way:4', 4, '1 hour') AS id \gset
SELECT counter_hold_confirm(:id, 3);
:rows 'way:%';

-- All ways to adjust. What does not change anything writes nothing.
SELECT counter_incr('set', 5), counter_incr('reset', 5), counter_incr('drop', 5), counter_incr('rename', 5), counter_incr('merge', 5), counter_incr('into', 5);
SELECT counter_set('set', 7), counter_set('set new', 0), counter_reset('reset'), counter_drop('drop');
SELECT counter_rename('rename', 'renamed'), counter_merge('into', 'merge');
SELECT counter_set('set', 7), counter_reset('reset'), counter_reset('none'), counter_drop('none');
:rows ANY ('{set%,reset,drop,rename%,merge,into,none}');
SELECT name, value FROM counters WHERE name !~ ':' ORDER BY name;

-- Both kinds in one transaction are two rows.
BEGIN;
SELECT counter_incr('both:1', 5), counter_set('both:1', 3), counter_incr('both:1');
SELECT counter_set('both:2', 10), counter_incr('both:2', 5);
-- To and fro comes to zero.
SELECT counter_incr('both:3', 5), counter_set('both:3', 9), counter_set('both:3', 5);
-- A drop forgets what the transaction has counted, and a new counter has no adjustments.
SELECT counter_incr('both:4', 5), counter_drop('both:4'), counter_incr('both:4', 2);
SELECT counter_incr('both:5', 5), counter_rename('both:5', 'both:6'), counter_incr('both:6');
SELECT name, value FROM counters WHERE name LIKE 'both:%' ORDER BY name;
COMMIT;
:rows 'both:%';
SELECT name, value FROM counters WHERE name LIKE 'both:%' ORDER BY name;
BEGIN;
SELECT counter_incr('set', 1), counter_drop('set'), counter_incr('set', 2);
SELECT counter_value('set');
COMMIT;
:rows 'set';
SELECT counter_value('set');

-- In savepoints that are rolled back, and others.
BEGIN;
SELECT counter_incr('sub:1', 1), counter_set('sub:2', 1);
SAVEPOINT a;
SELECT counter_set('sub:1', 10), counter_incr('sub:2', 10), counter_set('sub:3', 1);
ROLLBACK TO a;
SELECT counter_incr('sub:3', 3);
SAVEPOINT b;
SELECT counter_set('sub:3', 5);
RELEASE b;
COMMIT;
:rows 'sub:%';

-- Written early, by each savepoint.
SET counterx.pending_work_mem = '64kB';
BEGIN;
SELECT counter_incr('early:1', 1), counter_set('early:2', 2);
SELECT count(counter_incr('much:' || repeat('x', 150) || i)) FROM generate_series(1, 600) i;
SAVEPOINT a;
SELECT counter_set('early:1', 10), counter_incr('early:2', 10);
SELECT count(counter_set('more:' || repeat('x', 150) || i, i)) FROM generate_series(1, 600) i;
:rows 'early:%';
ROLLBACK TO a;
SELECT counter_set('early:1', 20);
COMMIT;
RESET counterx.pending_work_mem;
:rows 'early:%';
SELECT kind, count(*) FROM log_rows WHERE name LIKE ANY ('{much:%,more:%}') GROUP BY 1;

-- What does not fit one row of a kind is written before.
BEGIN;
SELECT counter_incr('wide', 9223372036854775807), counter_set('wide', 0);
SELECT counter_incr('wide', 5), counter_set('wide', 9223372036854775807);
SELECT counter_decr('wide', 9223372036854775807), counter_set('wide', 9223372036854775807);
COMMIT;
:rows 'wide';
SELECT counter_value('wide');
SELECT sum(delta) FILTER (WHERE kind IS NULL) AS counted, sum(delta) FILTER (WHERE kind = 'a') AS adjusted FROM log_rows WHERE name = 'wide';
-- A value that one delta does not hold is dropped in parts.
SELECT counter_incr('wide', 9223372036854775807);
SELECT counter_incr('wide', 9223372036854775807);
SELECT counter_drop('wide');
SELECT sum(delta) FILTER (WHERE kind IS NULL) AS counted, sum(delta) FILTER (WHERE kind = 'a') AS adjusted FROM log_rows WHERE name = 'wide';

-- Of tracked tables: rows that come and go are counted, by TRUNCATE as well. What was there before, what was
-- changed while the triggers slept, and what goes when the rows stay, is adjusted.
CREATE TABLE tasks (id int PRIMARY KEY, grp text);
INSERT INTO tasks VALUES (1, 'a'), (2, 'a'), (3, 'b');
SELECT counter_track('tasks', key => '{grp}', type => 'task');
INSERT INTO tasks VALUES (4, 'a');
:rows 'task:%';
SELECT name FROM counter_recount('tasks') ORDER BY name;
UPDATE tasks SET grp = 'b' WHERE id = 2;
DELETE FROM tasks WHERE id = 3;
:rows 'task:%';
ALTER TABLE tasks DISABLE TRIGGER counterx_task_insert;
INSERT INTO tasks VALUES (5, 'c');
ALTER TABLE tasks ENABLE ALWAYS TRIGGER counterx_task_insert;
SELECT name, rows, recorded_rows FROM counter_recount('tasks');
:rows 'task:c';
BEGIN;
INSERT INTO tasks VALUES (6, 'c');
TRUNCATE tasks;
INSERT INTO tasks VALUES (7, 'd');
COMMIT;
:rows 'task:%';
SELECT name, value FROM counters WHERE name LIKE 'task:%';
-- A drop forgets what was there of rows too.
BEGIN;
INSERT INTO tasks VALUES (8, 'd'), (9, 'e');
SELECT counter_untrack('tasks');
SELECT counter_value('task:d'), counter_incr('task:d', 5), counter_drop('task:d');
SELECT counter_incr('task:e', 5);
COMMIT;
:rows 'task:%';
SELECT name, value FROM counters WHERE name LIKE 'task:%';
DROP TABLE tasks;

-- Totals add up both.
CREATE TABLE before AS SELECT * FROM counters;
SELECT counterx.compact() > 0 AS folded;
SELECT * FROM before EXCEPT SELECT * FROM counters;
SELECT * FROM counters EXCEPT SELECT * FROM before;
SELECT name, uses > 0 AS used FROM counterx.total WHERE name LIKE 'both:%' ORDER BY name;

-- What a restore brings is marked as that.
SELECT name, delta, uses, kind FROM counterx.dump_rows() WHERE name LIKE 'both:%' ORDER BY name;
INSERT INTO counterx.late (name, delta, at) VALUES ('old dump', 1, now());
INSERT INTO counterx.late (name, delta, at, uses, kind) VALUES ('new dump', 2, now(), NULL, 'r');
INSERT INTO counterx.late (name, delta, at, uses, kind) VALUES ('no dump', 3, now(), NULL, NULL);
INSERT INTO counterx.late (name, delta, at, uses, kind) VALUES ('no dump', 3, now(), NULL, 'b');
:rows '% dump';
SELECT counterx.drop_all_counters() > 0 AS dropped;
SELECT kind, count(*) > 0 AS some FROM log_rows WHERE name IN ('old dump', 'both:1') AND delta < 0 GROUP BY 1;
SELECT count(*) FROM counters;

-- An increment's row is as wide as one without the column would be.
CREATE TABLE narrow (epoch bigint NOT NULL, at timestamptz NOT NULL, delta bigint NOT NULL, name text COLLATE "C" NOT NULL, uses bigint);
INSERT INTO narrow SELECT 1, now(), 1, repeat('x', i), NULL FROM generate_series(1, 255) i;
CREATE TABLE wide (LIKE counterx.log_0_a);
INSERT INTO wide SELECT 1, now(), 1, repeat('x', i), NULL, NULL FROM generate_series(1, 255) i;
SELECT count(*) FROM narrow n JOIN wide w ON w.name = n.name WHERE pg_column_size(n.*) = pg_column_size(w.*);
SELECT pg_column_size(w.*) AS increment FROM wide w WHERE length(name) = 12;
UPDATE wide SET kind = 'a' WHERE length(name) = 12;
SELECT pg_column_size(w.*) AS adjustment FROM wide w WHERE length(name) = 12;

DROP TABLE before, narrow, wide;
DROP VIEW log_rows;
DROP FUNCTION logged;
DROP EXTENSION counterx;
