-- What newer versions of PostgreSQL can do with a tracked table. There is an expected output for each.
CREATE EXTENSION counterx;
\set VERBOSITY terse
SELECT current_setting('server_version_num')::integer >= 170000 AS from_17, current_setting('server_version_num')::integer >= 180000 AS from_18 \gset
CREATE FUNCTION state(of text) RETURNS text LANGUAGE sql AS
    $$ SELECT concat_ws('; ', state, reason) FROM counter_tracks WHERE type = of $$;

\if :from_17
-- The expression of a generated column is another one, and with it the groups of all rows.
CREATE TABLE made (id integer, twice integer GENERATED ALWAYS AS (id / 2) STORED, unused integer GENERATED ALWAYS AS (id + 1) STORED);
INSERT INTO made SELECT generate_series(1, 5);
SELECT counter_track('made', 'made', '{twice}');
SELECT count(*) FROM counter_recount('made');
ALTER TABLE made ALTER COLUMN unused SET EXPRESSION AS (id + 2);
SELECT state('made');
ALTER TABLE made ALTER COLUMN twice SET EXPRESSION AS (id / 3);
SELECT state('made');
INSERT INTO made VALUES (6);
DELETE FROM made WHERE id = 1;
SELECT * FROM counter_recount('made');
SELECT state('made');
SELECT key, value FROM counter_groups('made');
ALTER TABLE made ALTER COLUMN twice DROP EXPRESSION;
SELECT state('made');
SELECT count(*) FROM counter_recount('made');
UPDATE made SET twice = 7;
SELECT * FROM counter_drift('made');
SELECT counter_untrack('made');
-- That of one partition.
CREATE TABLE made_in (id integer, half integer GENERATED ALWAYS AS (id / 2) STORED) PARTITION BY LIST (id);
CREATE TABLE made_in_1 PARTITION OF made_in FOR VALUES IN (2, 4);
CREATE TABLE made_in_2 PARTITION OF made_in DEFAULT;
INSERT INTO made_in SELECT generate_series(1, 6);
SELECT counter_track('made_in', 'made-in', '{half}');
SELECT count(*) FROM counter_recount('made_in');
ALTER TABLE made_in_1 ALTER COLUMN half SET EXPRESSION AS (id * 10);
SELECT state('made-in');
INSERT INTO made_in VALUES (4), (7);
SELECT * FROM counter_recount('made_in');
UPDATE made_in SET id = 8 WHERE id = 2;
SELECT key, value FROM counter_groups('made-in');
SELECT * FROM counter_drift('made_in');
SELECT counter_untrack('made_in');

-- MERGE of what the source does not have, into a partitioned table, and through a view.
CREATE TABLE part (id integer, shard integer, kind text) PARTITION BY LIST (shard);
CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1);
CREATE TABLE part_2 (kind text, shard integer, id integer);
ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES IN (2);
INSERT INTO part SELECT n, 1 + n % 2, 'old' FROM generate_series(1, 6) n;
SELECT counter_track('part', 'part', '{shard, kind}');
SELECT count(*) FROM counter_recount('part');
WITH m AS (
    MERGE INTO part p USING (VALUES (1, 'a'), (2, NULL), (10, 'c')) s (id, kind) ON p.id = s.id
    WHEN MATCHED AND s.kind IS NULL THEN DELETE
    WHEN MATCHED THEN UPDATE SET kind = s.kind, shard = 3 - shard
    WHEN NOT MATCHED THEN INSERT VALUES (s.id, 1, s.kind)
    WHEN NOT MATCHED BY SOURCE AND p.id < 5 THEN UPDATE SET kind = 'left', shard = 1
    WHEN NOT MATCHED BY SOURCE AND p.id = 6 THEN DELETE
    RETURNING merge_action() AS action, p.id, p.shard, p.kind
)
SELECT * FROM m ORDER BY id;
SELECT key, value FROM counter_groups('part');
SELECT * FROM counter_drift('part');
CREATE VIEW first AS SELECT * FROM part WHERE shard = 1;
MERGE INTO first f USING generate_series(1, 12) s ON f.id = s
    WHEN MATCHED THEN UPDATE SET shard = 2
    WHEN NOT MATCHED AND s > 10 THEN INSERT VALUES (s, 1, 'view');
SELECT key, value FROM counter_groups('part');
SELECT * FROM counter_drift('part');
SELECT counter_untrack('part');

-- Numbers of their own, which partitions have from their table.
CREATE TABLE numbered (id integer GENERATED ALWAYS AS IDENTITY, shard integer) PARTITION BY LIST (shard);
CREATE TABLE numbered_1 PARTITION OF numbered FOR VALUES IN (1);
SELECT counter_track('numbered', 'numbered', '{id, shard}');
SELECT count(*) FROM counter_recount('numbered');
INSERT INTO numbered (shard) VALUES (1), (1);
CREATE TABLE numbered_2 PARTITION OF numbered FOR VALUES IN (2);
INSERT INTO numbered (shard) VALUES (2);
UPDATE numbered SET shard = 2, id = DEFAULT WHERE id = 1;
SELECT state('numbered');
SELECT key, value FROM counter_groups('numbered');
SELECT * FROM counter_drift('numbered');
SELECT counter_untrack('numbered');

-- Lines that COPY passes over do not count.
CREATE TABLE copied (id integer, kind text);
SELECT counter_track('copied', 'copied', '{kind}');
SELECT count(*) FROM counter_recount('copied');
COPY copied FROM PROGRAM $$printf '1 a\nx a\n2 b\n3 b\ny b\n'$$ (DELIMITER ' ', ON_ERROR ignore);
SELECT key, value FROM counter_groups('copied');
SELECT * FROM counter_drift('copied');
SELECT counter_untrack('copied');

-- Without event triggers, DDL is not noticed; to count again is what helps.
CREATE TABLE unseen (id integer);
SELECT counter_track('unseen', 'unseen', '{}');
SELECT count(*) FROM counter_recount('unseen');
SET event_triggers = off;
ALTER TABLE unseen DISABLE TRIGGER counterx_unseen_insert;
INSERT INTO unseen VALUES (1);
SELECT state('unseen');
SELECT * FROM counter_drift('unseen');
SELECT * FROM counter_recount('unseen');
ALTER TABLE unseen ENABLE ALWAYS TRIGGER counterx_unseen_insert;
SELECT * FROM counter_recount('unseen');
SELECT state('unseen');
RESET event_triggers;
INSERT INTO unseen VALUES (2);
SELECT * FROM counter_drift('unseen');
SELECT counter_untrack('unseen');
\endif

\if :from_18
-- Columns that are computed when they are read have no value in the rows that triggers see.
CREATE TABLE computed (id integer, twice integer GENERATED ALWAYS AS (id * 2), kind text, kept integer GENERATED ALWAYS AS (id % 2) STORED);
INSERT INTO computed (id, kind) VALUES (1, 'a'), (2, 'b');
SELECT counter_track('computed', 'computed', '{twice}');
SELECT counter_track('computed', 'computed', '{twice + 1}');
SELECT counter_track('computed', 'computed', '{kind}', filter => 'twice > 2');
SELECT counter_track('computed', 'computed', '{kind}', sum => 'twice');
SELECT counter_track('computed', 'computed', '{kind, kept}', sum => 'id * 2');
SELECT count(*) FROM counter_recount('computed');
ALTER TABLE computed ADD COLUMN more text GENERATED ALWAYS AS (kind || id) VIRTUAL;
SELECT state('computed');
INSERT INTO computed (id, kind) VALUES (3, 'a');
UPDATE computed SET id = 5 WHERE id = 3;
DELETE FROM computed WHERE kind = 'b';
ALTER TABLE computed ALTER COLUMN twice SET EXPRESSION AS (id * 3);
SELECT state('computed');
SELECT key, value FROM counter_groups('computed');
SELECT * FROM counter_drift('computed');
SELECT counter_untrack('computed');

-- Old and new values of the rows that were changed.
CREATE TABLE returned (id integer PRIMARY KEY, kind text, amount integer);
SELECT counter_track('returned', 'returned', '{kind}', sum => 'amount');
SELECT count(*) FROM counter_recount('returned');
INSERT INTO returned VALUES (1, 'a', 1), (2, 'a', 2) RETURNING old.kind, new.kind, new.amount;
INSERT INTO returned VALUES (2, 'b', 20), (3, 'b', 30) ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, amount = returned.amount + 1 RETURNING old.kind, old.amount, new.kind, new.amount;
UPDATE returned SET kind = kind || '!', amount = -amount WHERE id < 3 RETURNING WITH (OLD AS o, NEW AS n) o.kind, n.kind, o.amount, n.amount;
DELETE FROM returned WHERE id = 1 RETURNING old.kind, new.kind;
MERGE INTO returned r USING (VALUES (2, 'm'), (4, 'm')) s (id, kind) ON r.id = s.id WHEN MATCHED THEN UPDATE SET kind = s.kind WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.kind, 4)
    RETURNING merge_action(), old.kind, new.kind;
SELECT key, value, rows FROM counter_groups('returned');
SELECT * FROM counter_drift('returned');
SELECT counter_untrack('returned');

-- Foreign keys that are not enforced do nothing; those that are enforced later do.
CREATE TABLE parent (id integer PRIMARY KEY);
CREATE TABLE child (id integer, parent integer, CONSTRAINT child_parent FOREIGN KEY (parent) REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE NOT ENFORCED);
SELECT counter_track('child', 'children', '{parent}');
SELECT count(*) FROM counter_recount('child');
INSERT INTO parent VALUES (1), (2);
INSERT INTO child VALUES (1, 1), (2, 1), (3, 2), (4, 9);
UPDATE parent SET id = 3 WHERE id = 2;
DELETE FROM parent WHERE id = 1;
SELECT key, value FROM counter_groups('children');
DELETE FROM child WHERE parent IN (2, 9);
INSERT INTO parent VALUES (1);
ALTER TABLE child ALTER CONSTRAINT child_parent ENFORCED;
SELECT state('children');
UPDATE parent SET id = 5 WHERE id = 1;
SELECT key, value FROM counter_groups('children');
DELETE FROM parent;
SELECT key, value FROM counter_groups('children');
SELECT * FROM counter_drift('child');
SELECT counter_untrack('child');

-- Periods.
CREATE TABLE room (id int4range, valid daterange, kind text, PRIMARY KEY (id, valid WITHOUT OVERLAPS));
CREATE TABLE booking (room int4range, valid daterange, FOREIGN KEY (room, PERIOD valid) REFERENCES room (id, PERIOD valid));
SELECT counter_track('room', 'rooms', '{id}');
SELECT counter_track('room', 'rooms', '{lower(id), kind}', filter => $$valid @> '2026-06-01'::date$$);
SELECT counter_track('booking', 'bookings', ARRAY['lower(room)', 'lower(valid)']);
SELECT count(*) FROM counter_recount('room');
SELECT count(*) FROM counter_recount('booking');
INSERT INTO room VALUES ('[1,2)', '[2026-01-01,2026-07-01)', 'a'), ('[1,2)', '[2026-07-01,2027-01-01)', 'a'), ('[2,3)', '[2026-05-01,)', 'b');
INSERT INTO room VALUES ('[1,2)', '[2026-06-01,2026-08-01)', 'c');
INSERT INTO room VALUES ('[1,2)', '[2026-06-01,2026-08-01)', 'c'), ('[3,4)', '[2026-06-01,2026-08-01)', 'c') ON CONFLICT DO NOTHING;
INSERT INTO booking VALUES ('[1,2)', '[2026-06-15,2026-07-15)');
INSERT INTO booking VALUES ('[3,4)', '[2026-06-15,2027-07-15)');
UPDATE room SET valid = daterange(lower(valid), lower(valid) + 20) WHERE id = '[3,4)' OR kind = 'b';
DELETE FROM room WHERE id = '[1,2)';
SELECT key, value FROM counter_groups('rooms');
SELECT key, value FROM counter_groups('bookings');
SELECT * FROM counter_drift('room');
SELECT * FROM counter_drift('booking');
SELECT counter_untrack('room');
SELECT counter_untrack('booking');

-- So many lines that cannot be read, and no more: none is counted then.
CREATE TABLE copied_18 (id integer, kind text);
SELECT counter_track('copied_18', 'copied', '{kind}');
SELECT count(*) FROM counter_recount('copied_18');
COPY copied_18 FROM PROGRAM $$printf '1 a\nx a\n2 b\n'$$ (DELIMITER ' ', ON_ERROR ignore, REJECT_LIMIT 1, LOG_VERBOSITY silent);
COPY copied_18 FROM PROGRAM $$printf '3 a\nx a\ny b\n'$$ (DELIMITER ' ', ON_ERROR ignore, REJECT_LIMIT 1, LOG_VERBOSITY silent);
SELECT key, value FROM counter_groups('copied');
SELECT * FROM counter_drift('copied_18');
SELECT counter_untrack('copied_18');
\endif
SELECT count(*) FROM counter_tracks;
