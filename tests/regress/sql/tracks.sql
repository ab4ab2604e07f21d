-- Tracked tables: rows are counted by group, exactly. No worker is here, so tracks are made exact by hand.
CREATE EXTENSION counterx;
\set VERBOSITY terse
CREATE SCHEMA tracks;
SET search_path = tracks, public;
CREATE FUNCTION state(of text) RETURNS text LANGUAGE sql AS
    $$ SELECT concat_ws('; ', state, reason) FROM counter_tracks WHERE type = of $$;

CREATE TABLE task (id int PRIMARY KEY, project int, status text, points numeric, note text);
INSERT INTO task SELECT n, n % 2, CASE WHEN n % 3 = 0 THEN 'done' ELSE 'open' END, n / 4.0 FROM generate_series(1, 12) n;
SELECT counter_track('task', type => 'tasks', key => '{project, status}');
SELECT counter_track('task', type => 'points', key => '{project}', sum => 'points', scale => 2, filter => $$status = 'open'$$);
SELECT counter_track('task', type => 'all-tasks', key => '{}');
SELECT * FROM counter_recount('task');
SELECT type, "table", key, sum, scale, filter, state, reason, rows_seen, last_error FROM counter_tracks ORDER BY type;
SELECT state('tasks'), counter_track_wait('task', '0 s');
SELECT name, value FROM counters ORDER BY name;
SELECT * FROM counter_groups('tasks');
SELECT key, value, rows, round(avg, 4) AS avg FROM counter_groups('points');
SELECT * FROM counter_groups('tasks', 1);
SELECT * FROM counter_groups('tasks', 1, 'done');
SELECT * FROM counter_groups('tasks', VARIADIC ARRAY['1', 'open']);
SELECT * FROM counter_groups('all-tasks');
SELECT counter_value(counter_name('tasks', 1, 'open'));
SELECT * FROM counter_drift('task');

-- Each kind of change.
INSERT INTO task VALUES (13, NULL, 'a:b%', 1.00, NULL), (14, 1, NULL, NULL, NULL), (15, 1, '', 0, NULL);
SELECT * FROM counter_groups('tasks');
UPDATE task SET note = 'x';
UPDATE task SET status = 'done', points = points + 0.5 WHERE id IN (1, 2);
UPDATE task SET points = 1.50 WHERE id = 1;
UPDATE task SET points = 1.5 WHERE id = 1;
DELETE FROM task WHERE id = 4;
INSERT INTO task VALUES (1, 7, 'open', 3), (20, 7, 'open', 3) ON CONFLICT (id) DO UPDATE SET project = excluded.project;
INSERT INTO task VALUES (1, 8, 'open', 3) ON CONFLICT DO NOTHING;
MERGE INTO task t USING (VALUES (20, 'done'), (21, 'open')) s(id, status) ON t.id = s.id
    WHEN MATCHED THEN UPDATE SET status = s.status
    WHEN NOT MATCHED THEN INSERT VALUES (s.id, 9, s.status, 2.25);
WITH gone AS (DELETE FROM task WHERE id = 21 RETURNING *)
INSERT INTO task SELECT id + 100, project, status, points FROM gone;
SELECT * FROM counter_drift('task');
BEGIN;
SAVEPOINT a;
DELETE FROM task WHERE project = 1;
SELECT * FROM counter_drift('task');
ROLLBACK TO a;
SELECT * FROM counter_drift('task');
TRUNCATE task;
SELECT name, value FROM counters WHERE name LIKE 'tasks:%';
INSERT INTO task VALUES (1, 1, 'new', 1);
SELECT name, value FROM counters ORDER BY name;
ROLLBACK;
SELECT * FROM counter_drift('task');
-- Nothing is written for what cancels itself out.
SELECT sum(pending_deltas) FROM counterx.lanes;
BEGIN;
INSERT INTO task VALUES (30, 1, 'open', 1);
DELETE FROM task WHERE id = 30;
COMMIT;
SELECT sum(pending_deltas) FROM counterx.lanes;
SELECT * FROM counter_drift('task');

-- What cannot be part of a sum.
UPDATE task SET points = 0.001 WHERE id = 5;
UPDATE task SET points = 'NaN' WHERE id = 5;
UPDATE task SET points = 'NaN' WHERE id = 1;
UPDATE task SET points = 1e17 WHERE id = 2 OR id = 5;
SELECT * FROM counter_drift('task');

-- Nobody else changes these counters.
SELECT counter_incr('tasks:1:open');
SELECT counter_hit('tasks:1:open');
SELECT counter_hit('tasks:1:open', wait => false);
SELECT counter_set('tasks:1:open', 1);
SELECT counter_reset('tasks:1:open');
SELECT counter_drop('tasks:1:open');
SELECT counter_rename('tasks:1:open', 'other');
SELECT counter_incr('other');
SELECT counter_rename('other', 'tasks:9:x');
SELECT counter_merge('other', 'tasks:1:open');
SELECT counter_merge('tasks:1:open', 'other');
SELECT counter_try_incr('tasks:1:open');
SELECT counter_incr_once('token', 'tasks:1:open');
SELECT counter_hold('tasks:1:open', 1, '1 min');
SELECT counter_type_create('tasks', max => 5);
SELECT counter_type_alter('tasks', max => 5);
SELECT counter_type_drop('tasks');
SELECT counterx.drop_all_counters();
SELECT * FROM counter_drift('task');

-- What is refused.
CREATE TABLE odd (a int, f float8, m money, t timestamptz, n numeric, c text, b bytea);
SELECT counter_track('odd', 'odd', '{f}');
SELECT counter_track('odd', 'odd', '{m}');
SELECT counter_track('odd', 'odd', '{b}');
SELECT counter_track('odd', 'odd', '{t::date}');
SELECT counter_track('odd', 'odd', '{now()}');
SELECT counter_track('odd', 'odd', '{a::text}');
SELECT counter_track('odd', 'odd', '{odd}');
SELECT counter_track('odd', 'odd', '{ctid}');
SELECT counter_track('odd', 'odd', '{nosuch}');
SELECT counter_track('odd', 'odd', '{a) FROM odd WHERE (true}');
SELECT counter_track('odd', 'odd', '{"a), (a"}');
SELECT counter_track('odd', 'odd', '{(SELECT 1)}');
SELECT counter_track('odd', 'odd', '{count(a)}');
SELECT counter_track('odd', 'odd', '{a}', sum => 'f');
SELECT counter_track('odd', 'odd', '{a}', sum => 'n', scale => 19);
SELECT counter_track('odd', 'odd', '{a}', sum => 'n', scale => -1);
SELECT counter_track('odd', 'odd', '{a}', filter => 'a');
SELECT counter_track('odd', 'o:dd', '{a}');
SELECT counter_track('odd', NULL, '{a}');
SELECT counter_track(NULL, 'odd', '{a}');
SELECT counter_track('odd', 'odd', '{NULL}');
SELECT counter_track('odd', repeat('x', 250), '{a}');
SELECT counter_track('task', 'tasks', '{project}');
SELECT counter_track('pg_class', 'odd', '{relname}');
SELECT counter_track('counterx.total', 'odd', '{name}');
SELECT counter_type_create('bounded', max => 5);
SELECT counter_track('odd', 'bounded', '{a}');
SELECT counter_type_drop('bounded');
SELECT counter_track('odd', 'other', '{a}');
CREATE UNLOGGED TABLE lost (a int);
SELECT counter_track('lost', 'odd', '{a}');
CREATE VIEW look AS SELECT a FROM odd;
SELECT counter_track('look', 'odd', '{a}');
CREATE TABLE child () INHERITS (odd);
SELECT counter_track('odd', 'odd', '{a}');
SELECT counter_track('child', 'odd', '{a}');
DROP TABLE child;
SELECT counter_drift('odd');
SELECT counter_recount('odd');
SELECT counter_untrack('odd');
SELECT counter_track_wait('odd');
SELECT counter_untrack('task', 'nosuch');
SELECT * FROM counter_groups('nosuch');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT counter_track('odd', 'odd', '{a}');
ROLLBACK;
BEGIN;
SELECT counter_track('odd', 'odd', '{a}');
SELECT counter_track_wait('odd', '1 s');
ROLLBACK;
SELECT tgname FROM pg_trigger WHERE tgrelid = 'odd'::regclass;
SELECT count(*) FROM counterx.type WHERE name = 'odd';

-- Counters know no row security.
CREATE TABLE hidden (a int);
ALTER TABLE hidden ENABLE ROW LEVEL SECURITY;
SELECT counter_track('hidden', 'hidden', '{a}');
SELECT counter_untrack('hidden');
-- Whose it is.
CREATE ROLE track_user;
GRANT USAGE ON SCHEMA tracks TO track_user;
GRANT SELECT, INSERT, UPDATE, DELETE ON task TO track_user;
SET ROLE track_user;
SELECT counter_track('task', 'theirs', '{project}');
SELECT * FROM counter_drift('task');
INSERT INTO task VALUES (40, 4, 'open', 1);
SELECT counter_value('tasks:4:open');
RESET ROLE;
GRANT EXECUTE ON FUNCTION counter_track, counter_drift, counter_recount, counter_untrack TO track_user;
SET ROLE track_user;
SELECT counter_track('task', 'theirs', '{project}');
SELECT * FROM counter_drift('task');
SELECT * FROM counter_recount('task');
SELECT counter_untrack('task');
RESET ROLE;
CREATE SCHEMA theirs AUTHORIZATION track_user;
SET ROLE track_user;
CREATE TABLE theirs.t (a int);
SELECT counter_track('theirs.t', 'theirs', '{a}');
INSERT INTO theirs.t VALUES (1), (1), (2);
SELECT * FROM counter_recount('theirs.t');
SELECT * FROM counter_groups('theirs');
-- With a trigger of their own, they count in no other type.
CREATE TRIGGER mine AFTER INSERT ON theirs.t FOR EACH ROW WHEN (true OR CASE WHEN true THEN counter_key(0, 1, 'open') END IS NULL) EXECUTE FUNCTION counterx.count_row('tasks');
RESET ROLE;

-- DDL follows, or makes the track stale.
ALTER TABLE task RENAME project TO p;
ALTER TABLE task RENAME TO job;
INSERT INTO job (id, p, status) VALUES (50, 5, 'open');
SELECT * FROM counter_drift('job');
ALTER TABLE job DROP COLUMN p;
ALTER TABLE job ALTER COLUMN p TYPE bigint;
ALTER TABLE job DISABLE TRIGGER ALL;
INSERT INTO job (id, p, status) VALUES (51, 5, 'open');
SELECT state('tasks');
SELECT * FROM counter_recount('job', 'tasks');
SELECT format('ALTER TABLE job ENABLE ALWAYS TRIGGER %I', tgname) FROM pg_trigger WHERE tgrelid = 'job'::regclass ORDER BY 1 \gexec
SELECT state('tasks');
SELECT * FROM counter_recount('job');
SELECT state('tasks'), counter_value('tasks:5:open');
ALTER TABLE job SET UNLOGGED;
SELECT state('tasks');
ALTER TABLE job SET LOGGED;
SELECT * FROM counter_recount('job');
DROP TRIGGER counterx_points_update ON job;
SELECT state('points');
SELECT counter_untrack('job', 'points');
SELECT counter_untrack('job', 'all-tasks', keep => true);
SELECT name, value FROM counters WHERE name LIKE 'points:%' OR name LIKE 'all-tasks:%';
SELECT counter_incr('all-tasks:', 1);
CREATE FUNCTION half(n int) RETURNS int LANGUAGE sql IMMUTABLE RETURN n / 2;
SELECT counter_track('job', 'halves', '{half(p)}');
SELECT * FROM counter_recount('job');
CREATE OR REPLACE FUNCTION half(n int) RETURNS int LANGUAGE sql IMMUTABLE RETURN n / 3;
SELECT state('halves');
SELECT * FROM counter_recount('job');
SELECT * FROM counter_drift('job');
DROP FUNCTION half(int);
DROP TABLE job;
SELECT type, state FROM counter_tracks;
SELECT counter_incr('tasks:1:open', 0);

-- Partitions.
CREATE TABLE event (id int, day date, kind text) PARTITION BY RANGE (day);
CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE event_2 (kind text, gone int, day date, id int);
ALTER TABLE event_2 DROP COLUMN gone;
ALTER TABLE event ATTACH PARTITION event_2 FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
INSERT INTO event SELECT n, '2026-01-10'::date + n, CASE n % 2 WHEN 0 THEN 'a' END FROM generate_series(1, 40) n;
SELECT counter_track('event_1', 'events', '{kind}');
SELECT counter_track('event', 'events', '{kind}');
SELECT * FROM counter_recount('event');
SELECT * FROM counter_groups('events');
UPDATE event SET day = '2026-02-27' WHERE id = 2;
INSERT INTO event_2 VALUES ('leaf', '2026-02-03', 99);
DELETE FROM event_1 WHERE id = 4;
TRUNCATE event_2;
SELECT * FROM counter_drift('event');
CREATE TABLE event_3 PARTITION OF event FOR VALUES FROM ('2026-03-01') TO ('2026-04-01');
SELECT state('events');
INSERT INTO event VALUES (100, '2026-03-05', 'c');
TRUNCATE event_3;
INSERT INTO event VALUES (101, '2026-03-05', 'd');
SELECT * FROM counter_drift('event');
ALTER TABLE event DETACH PARTITION event_3;
SELECT state('events');
SELECT * FROM counter_recount('event');
INSERT INTO event_3 VALUES (102, '2026-03-05', 'd');
ALTER TABLE event ATTACH PARTITION event_3 FOR VALUES FROM ('2026-03-01') TO ('2026-04-01');
SELECT state('events');
SELECT * FROM counter_recount('event');
SELECT * FROM counter_groups('events');
-- One that has been a table of its own, and has partitions itself.
CREATE TABLE event_4 (id int, day date, kind text) PARTITION BY RANGE (id);
CREATE TABLE event_4_low PARTITION OF event_4 FOR VALUES FROM (MINVALUE) TO (0);
CREATE TABLE event_4_high PARTITION OF event_4 FOR VALUES FROM (0) TO (MAXVALUE);
INSERT INTO event_4 VALUES (-1, '2026-04-05', 'low'), (1, '2026-04-05', 'high');
ALTER TABLE event ATTACH PARTITION event_4 FOR VALUES FROM ('2026-04-01') TO ('2026-05-01');
SELECT state('events');
SELECT * FROM counter_recount('event');
TRUNCATE event_4_low;
SELECT * FROM counter_groups('events');
SELECT * FROM counter_drift('event');
DROP TABLE event_4;
SELECT * FROM counter_recount('event');
DROP TABLE event_3;
SELECT state('events');
SELECT * FROM counter_recount('event');
TRUNCATE event;
SELECT * FROM counter_groups('events');
SELECT * FROM counter_drift('event');
SELECT counter_untrack('event');
SELECT counter_untrack('theirs.t');
SELECT evtenabled FROM pg_event_trigger WHERE evtname = 'counterx_tracked_ddl';

-- A track without its table, as a restore may leave it.
CREATE TABLE gone (a int);
SELECT counter_track('gone', 'gone', '{a}');
INSERT INTO gone VALUES (1);
SELECT counter_untrack(NULL, 'gone');
ALTER EVENT TRIGGER counterx_tracked_ddl DISABLE;
DROP TABLE gone;
ALTER EVENT TRIGGER counterx_tracked_ddl ENABLE ALWAYS;
SELECT state('gone');
SELECT counter_incr('gone:1');
SELECT counter_untrack(NULL, 'nosuch');
SELECT counter_untrack(NULL);
SELECT counter_untrack(NULL, 'gone');
SELECT counter_value('gone:1');
SELECT counter_track('task_of_nobody', 'gone', '{a}');

-- A filter that looks like a definition.
CREATE TABLE lookalike (id int, open boolean, kind text, amount numeric, day timestamptz);
INSERT INTO lookalike VALUES (1, true, 'xa', 1, 'infinity'), (2, true, 'b', 2, now()), (3, false, 'xc', 3, now());
SELECT counter_track('lookalike', 'looks', '{id}', filter => $$CASE WHEN open THEN starts_with(kind, 'x') ELSE false END$$);
SELECT counter_track('lookalike', 'sums', '{kind}', sum => 'amount', filter => $$CASE WHEN open THEN isfinite(day) ELSE false END AND NOT (CASE WHEN open THEN isfinite(day) END IS NULL)$$);
SELECT name, counted FROM counter_recount('lookalike');
INSERT INTO lookalike VALUES (4, true, 'xd', 4, now()), (5, true, 'e', 5, 'infinity');
UPDATE lookalike SET open = NOT open;
DELETE FROM lookalike WHERE id = 3;
SELECT * FROM counter_drift('lookalike');
SELECT * FROM counter_groups('looks');
SELECT counter_untrack('lookalike');
-- Whoever owns a table makes its partitions.
SET ROLE track_user;
CREATE TABLE theirs.parted (a int, b text) PARTITION BY LIST (a);
SELECT counter_track('theirs.parted', 'parted', '{b}');
CREATE TABLE theirs.parted_1 PARTITION OF theirs.parted FOR VALUES IN (1);
INSERT INTO theirs.parted VALUES (1, 'x'), (1, 'y');
SELECT * FROM counter_recount('theirs.parted');
SELECT * FROM counter_groups('parted');
-- One that could not be counted keeps the track from being exact.
CREATE UNLOGGED TABLE theirs.parted_2 PARTITION OF theirs.parted FOR VALUES IN (2);
INSERT INTO theirs.parted VALUES (2, 'x');
SELECT state('parted');
SELECT * FROM counter_recount('theirs.parted');
DROP TABLE theirs.parted_2;
SELECT * FROM counter_recount('theirs.parted');
SELECT state('parted');
RESET ROLE;
-- A copy of a table has the triggers, and not the track.
CREATE TABLE copied (a int, b text);
SELECT replace(pg_get_triggerdef(oid), 'theirs.parted', 'tracks.copied') FROM pg_trigger
    WHERE tgrelid = 'theirs.parted'::regclass AND tgname LIKE '%insert' \gexec
INSERT INTO copied VALUES (1, 'x');
INSERT INTO copied VALUES (1, 'x');
SELECT * FROM counter_drift('theirs.parted');
SELECT * FROM counter_recount('theirs.parted');
DROP TABLE copied;
SELECT * FROM counter_recount('theirs.parted');
BEGIN;
INSERT INTO theirs.parted VALUES (1, 'z');
SELECT counter_track_wait('theirs.parted', '1 min');
ROLLBACK;
-- Labels that only an expression uses, and the function of an operator.
CREATE TYPE st AS ENUM ('open', 'shut');
CREATE FUNCTION same(int, int) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN $1 IS NOT DISTINCT FROM $2;
CREATE OPERATOR === (FUNCTION = same, LEFTARG = int, RIGHTARG = int);
CREATE TABLE using_them (a int, b boolean);
SELECT counter_track('using_them', 'labels', $${CASE WHEN b THEN 'shut'::tracks.st ELSE 'open'::tracks.st END}$$);
SELECT counter_track('using_them', 'operator', '{a}', filter => 'a OPERATOR(tracks.===) 1');
SELECT count(*) FROM counter_recount('using_them');
ALTER TYPE st RENAME VALUE 'shut' TO 'closed';
SELECT state('labels'), state('operator');
CREATE OR REPLACE FUNCTION same(int, int) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN $1 = $2;
SELECT state('operator');
SELECT count(*) FROM counter_recount('using_them');
SELECT counter_untrack('using_them');
-- To read groups takes no transaction id.
BEGIN;
SELECT count(*) FROM counter_groups('parted');
SELECT count(*) FROM counter_drift('theirs.parted');
SELECT pg_current_xact_id_if_assigned();
COMMIT;
SELECT counter_untrack('theirs.parted');

SET client_min_messages = warning;
DROP SCHEMA tracks, theirs CASCADE;
REVOKE EXECUTE ON FUNCTION counter_track, counter_drift, counter_recount, counter_untrack FROM track_user;
DROP ROLE track_user;
