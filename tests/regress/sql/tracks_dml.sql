-- What changes the rows of a tracked table changes the counters of their groups.
CREATE EXTENSION counterx;

CREATE TABLE tracked (id integer PRIMARY KEY, kind text, amount numeric, weight integer);
SELECT counter_track('tracked', 'kinds', '{kind}');
SELECT counter_track('tracked', 'amounts', '{kind}', sum => 'amount', scale => 2, filter => 'weight > 0');
SELECT count(*) FROM counter_recount('tracked');

-- Groups come with their first row and go with their last one; a sum of 0 is not the end of a group.
INSERT INTO tracked VALUES (1, 'a', 1.5, 1), (2, 'a', -1.50, 1), (3, NULL, NULL, 1), (4, 'b', 7, 0);
SELECT name, value FROM counters ORDER BY name;
UPDATE tracked SET kind = 'a' WHERE id > 2;
SELECT name, value FROM counters ORDER BY name;
DELETE FROM tracked WHERE id < 3;
SELECT name, value FROM counters ORDER BY name;
SELECT * FROM counter_drift('tracked');

-- What is undone is undone: rows, and tracks that end or begin.
BEGIN;
SELECT counter_untrack('tracked', 'kinds');
INSERT INTO tracked VALUES (5, 'x', 1, 1);
ROLLBACK;
INSERT INTO tracked VALUES (5, 'x', 1, 1);
BEGIN;
INSERT INTO tracked VALUES (6, 'x', 1, 1);
SAVEPOINT s;
SELECT counter_untrack('tracked');
INSERT INTO tracked VALUES (7, 'x', 1, 1);
ROLLBACK TO s;
INSERT INTO tracked VALUES (7, 'x', 1, 1);
SAVEPOINT s;
SELECT counter_track('tracked', 'weights', '{weight}');
INSERT INTO tracked VALUES (8, 'x', 1, 1);
ROLLBACK TO s;
INSERT INTO tracked VALUES (8, 'x', 1, 1);
COMMIT;
SELECT * FROM counter_drift('tracked');
SELECT name, value FROM counters ORDER BY name;

-- A track ends in a transaction that has changed rows, and begins in one.
BEGIN;
INSERT INTO tracked VALUES (9, 'q', 1, 1);
SELECT counter_untrack('tracked', 'amounts');
INSERT INTO tracked VALUES (10, 'q', 2, 1);
COMMIT;
SELECT * FROM counter_drift('tracked');
SELECT name, value FROM counters ORDER BY name;
BEGIN;
INSERT INTO tracked VALUES (11, 'r', 1, 1);
SELECT counter_track('tracked', 'amounts', '{kind}', sum => 'amount', scale => 2, filter => 'weight > 0');
INSERT INTO tracked VALUES (12, 'r', 1, 1);
SELECT name FROM counter_recount('tracked', 'amounts');
INSERT INTO tracked VALUES (13, 'r', 1, 1);
COMMIT;
SELECT * FROM counter_drift('tracked');

-- What cannot be a part of a sum is refused, unless the row does not count.
INSERT INTO tracked VALUES (20, 'n', 'NaN', 1);
INSERT INTO tracked VALUES (20, 'n', 'NaN', 0);
UPDATE tracked SET weight = 1 WHERE id = 20;
INSERT INTO tracked VALUES (21, 'n', 0.001, 1);
INSERT INTO tracked VALUES (21, 'n', 0.010, 1);
UPDATE tracked SET amount = 1e30 WHERE id = 21;
-- The least bigint could be added, and not be taken back.
INSERT INTO tracked VALUES (22, 'n', -92233720368547758.08, 1);
INSERT INTO tracked VALUES (22, 'n', -92233720368547758.07, 1);
DELETE FROM tracked WHERE id = 22;
SELECT * FROM counter_drift('tracked');

-- A sum may be beyond a bigint, and all of it be taken back at once.
INSERT INTO tracked VALUES (30, 'big', 92233720368547758.07, 1);
INSERT INTO tracked VALUES (31, 'big', 92233720368547758.07, 1);
SELECT name, value FROM counters WHERE name = 'amounts:big';
BEGIN;
TRUNCATE tracked;
SELECT * FROM counter_drift('tracked');
ROLLBACK;
SELECT * FROM counter_drift('tracked');
TRUNCATE tracked;
SELECT name, value FROM counters ORDER BY name;

-- Rows whose key cannot be computed do not matter where the filter leaves them out.
CREATE TABLE divided (id integer, by integer);
SELECT counter_track('divided', 'divided', '{100 / by}', filter => 'by <> 0');
SELECT count(*) FROM counter_recount('divided');
INSERT INTO divided VALUES (1, 0), (2, 1), (3, NULL);
UPDATE divided SET by = 1 - by;
SELECT * FROM counter_drift('divided');
SELECT name, value FROM counters WHERE name ^@ 'divided:';

-- More groups than are kept in memory, in subtransactions.
CREATE TABLE many (id integer, kind integer);
SELECT counter_track('many', 'many', '{kind}');
SELECT count(*) FROM counter_recount('many');
SET counterx.pending_work_mem = '64kB';
BEGIN;
INSERT INTO many SELECT n, n % 3000 FROM generate_series(1, 10000) n;
SAVEPOINT a;
UPDATE many SET kind = kind + 1;
SAVEPOINT b;
DELETE FROM many WHERE id % 2 = 0;
ROLLBACK TO b;
UPDATE many SET kind = kind + 5 WHERE id % 7 = 0;
SELECT count(*) FROM counter_drift('many');
ROLLBACK TO a;
DELETE FROM many WHERE id % 3 = 0;
SELECT count(*) FROM counter_drift('many');
COMMIT;
SELECT count(*) FROM counter_drift('many');
RESET counterx.pending_work_mem;

-- Triggers that change the table from within its own changes, before and after ours.
CREATE TABLE changing (id integer, kind text, n integer DEFAULT 0);
CREATE FUNCTION change_again() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.n < 3 THEN
        UPDATE changing SET n = n + 1, kind = kind || n WHERE id = NEW.id;
        INSERT INTO changing VALUES (NEW.id + 100, 'child', 3);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER a_first AFTER INSERT OR UPDATE ON changing FOR EACH ROW EXECUTE FUNCTION change_again();
CREATE TRIGGER z_last AFTER INSERT OR UPDATE ON changing FOR EACH ROW EXECUTE FUNCTION change_again();
SELECT counter_track('changing', 'changing', '{kind}', sum => 'n');
SELECT count(*) FROM counter_recount('changing');
INSERT INTO changing VALUES (1, 'a'), (2, 'b');
SELECT count(*) FROM changing;
SELECT * FROM counter_drift('changing');

-- Changes at the end of the transaction.
CREATE FUNCTION later() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE many SET kind = -1 WHERE id = NEW.id;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER later AFTER INSERT ON many DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION later();
BEGIN;
INSERT INTO many VALUES (20000, 20000);
SELECT name, value FROM counters WHERE name IN ('many:-1', 'many:20000');
COMMIT;
SELECT name, value FROM counters WHERE name IN ('many:-1', 'many:20000');
SELECT * FROM counter_drift('many');

-- Several tracked tables in one statement.
WITH a AS (INSERT INTO divided VALUES (5, 10) RETURNING by),
     b AS (INSERT INTO many SELECT by, by FROM a RETURNING kind)
INSERT INTO tracked SELECT kind, 'cte', 1, 1 FROM b;
SELECT * FROM counter_drift('divided');
SELECT * FROM counter_drift('many');
SELECT * FROM counter_drift('tracked');

-- The definition goes with the table's columns.
ALTER TABLE changing RENAME COLUMN kind TO sort;
ALTER TABLE changing RENAME TO changed;
INSERT INTO changed VALUES (9, 'c', 5);
ALTER TABLE changed ADD COLUMN more double precision DEFAULT random();
VACUUM FULL changed;
SELECT * FROM counter_drift('changed');
\set VERBOSITY terse
ALTER TABLE changed DROP COLUMN sort;
ALTER TABLE changed ALTER COLUMN sort TYPE varchar;
\set VERBOSITY default

-- Others may change rows, and need no rights to counters.
CREATE ROLE regress_tracked;
GRANT ALL ON changed TO regress_tracked;
SET ROLE regress_tracked;
INSERT INTO changed VALUES (3, 'c', 3);
UPDATE changed SET sort = 'theirs' WHERE id = 3;
SELECT * FROM counter_drift('changed');
TRUNCATE changed;
RESET ROLE;
SELECT * FROM counter_drift('changed');
REVOKE ALL ON changed FROM regress_tracked;
DROP ROLE regress_tracked;

-- Nobody changes the counters themselves.
SELECT counter_incr('kinds:cte');
SELECT counter_set('kinds:cte', 5);
SELECT counter_drop('kinds:cte');
SELECT name, value FROM counters WHERE name = 'kinds:cte';

-- The table is emptied by who has an older snapshot.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM tracked;
TRUNCATE tracked;
INSERT INTO tracked VALUES (1, 'after', 1, 1);
COMMIT;
SELECT * FROM counter_drift('tracked');
SELECT name, value FROM counters WHERE name ^@ 'kinds:' ORDER BY name;

-- Partitions that are attached for the first time, with rows of theirs and partitions below.
CREATE TABLE whole (id integer, part integer, kind text) PARTITION BY LIST (part);
CREATE TABLE whole_1 PARTITION OF whole FOR VALUES IN (1);
SELECT counter_track('whole', 'whole', '{kind}');
SELECT counter_track('whole', 'of-whole', '{part}');
SELECT count(*) FROM counter_recount('whole');
CREATE TABLE whole_2 (kind text, part integer, id integer);
INSERT INTO whole_2 VALUES ('a', 2, 1), ('b', 2, 2);
CREATE TABLE whole_3 (id integer, part integer, kind text) PARTITION BY RANGE (id);
CREATE TABLE whole_3_low PARTITION OF whole_3 FOR VALUES FROM (0) TO (10);
CREATE TABLE whole_3_high PARTITION OF whole_3 FOR VALUES FROM (10) TO (20);
INSERT INTO whole_3 VALUES (1, 3, 'a'), (11, 3, 'a');
ALTER TABLE whole ATTACH PARTITION whole_2 FOR VALUES IN (2);
SELECT type, state, reason FROM counter_tracks WHERE "table" = 'public.whole' ORDER BY type COLLATE "C";
SELECT * FROM counter_recount('whole');
ALTER TABLE whole ATTACH PARTITION whole_3 FOR VALUES IN (3);
SELECT type, state, reason FROM counter_tracks WHERE "table" = 'public.whole' ORDER BY type COLLATE "C";
SELECT * FROM counter_recount('whole');
SELECT type, state, reason FROM counter_tracks WHERE "table" = 'public.whole' ORDER BY type COLLATE "C";
SELECT tgrelid::regclass, count(*) FILTER (WHERE tgenabled = 'A'), count(*) FROM pg_trigger WHERE tgrelid::regclass::text LIKE 'whole%' GROUP BY 1 ORDER BY 1;
INSERT INTO whole VALUES (2, 2, 'c'), (2, 3, 'c'), (12, 3, 'c'), (2, 1, 'c');
UPDATE whole SET id = id + 10 WHERE id = 2;
TRUNCATE whole_2;
TRUNCATE whole_3_low;
SELECT * FROM counter_drift('whole');
SELECT name, value FROM counters WHERE name ~ 'whole' ORDER BY name;
TRUNCATE whole_3;
SELECT * FROM counter_drift('whole');
TRUNCATE whole;
SELECT name, value FROM counters WHERE name ~ 'whole' ORDER BY name;

-- Not in the midst of a statement: rows that have yet to be counted would be counted twice.
CREATE FUNCTION recounted(n int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM counter_recount('tracked');
    RETURN n;
END $$;
INSERT INTO tracked SELECT recounted(n), 'midst' FROM generate_series(101, 103) n;
SELECT recounted(1);
SELECT * FROM counter_drift('tracked');
BEGIN;
INSERT INTO tracked VALUES (104, 'own');
SELECT * FROM counter_recount('tracked');
SAVEPOINT a;
DELETE FROM tracked WHERE id = 104;
SELECT * FROM counter_recount('tracked');
ROLLBACK TO a;
COMMIT;
SELECT * FROM counter_drift('tracked');
DROP FUNCTION recounted(int);
