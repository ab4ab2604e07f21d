-- The view counters: every counter with its exact value, in any query.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
SELECT * FROM counters;

-- Counters that are folded, pending, both, in the own transaction; zero and negative ones.
SELECT counter_incr('tasks:done', 5), counter_incr('tasks:open', 2), counter_decr('below', 1), counter_incr('zero', 0);
SELECT counterx.compact();
SELECT counter_incr('tasks:open', 40), counter_incr('tasks:late', 7), counter_incr('task', 1), counter_incr('tasks;', 1);
BEGIN;
SELECT counter_incr('tasks:own', 1), counter_decr('tasks:done', 4);
SELECT name, value FROM counters ORDER BY name;

-- By name, by several names, by prefix, by range; what is not there is not shown.
SELECT value FROM counters WHERE name = 'tasks:open';
SELECT value FROM counters WHERE name = 'unknown';
SELECT name, value FROM counters WHERE name IN ('tasks:own', 'zero', 'unknown', 'tasks:own', NULL) ORDER BY name;
SELECT name, value FROM counters WHERE name LIKE 'tasks:%' ORDER BY value DESC, name;
SELECT name, value FROM counters WHERE starts_with(name, 'tasks:') ORDER BY name;
SELECT name, value FROM counters WHERE name ^@ 'tasks:' ORDER BY name;
SELECT name, value FROM counters WHERE name >= 'tasks:l' AND name < 'tasks:p' ORDER BY name;
SELECT name FROM counters WHERE name > 'tasks:done' AND name <= 'tasks:open' ORDER BY name;
SELECT name FROM counters WHERE name BETWEEN 'b' AND 'c';
SELECT name FROM counters WHERE name LIKE 'tasks_o%' ORDER BY name;
SELECT name FROM counters WHERE name ILIKE 'TASKS:D%';
SELECT name FROM counters WHERE name ~ '^tasks?$';
SELECT name FROM counters WHERE name LIKE 'tasks:%' AND name = 'tasks:open';
SELECT name FROM counters WHERE name = 'a' AND name = 'b';
SELECT name FROM counters WHERE name = NULL;
SELECT name FROM counters WHERE name <> 'zero' ORDER BY name LIMIT 2;
ROLLBACK;

-- By value, and summed up.
SELECT name FROM counters WHERE value < 0;
SELECT name, value FROM counters WHERE value > 1 ORDER BY value;
SELECT count(*), sum(value), max(value) FROM counters;
SELECT name, value, rank() OVER (ORDER BY value DESC, name) FROM counters ORDER BY name LIMIT 3;

-- Joined: each row of the table looks its counter up.
CREATE TABLE boxes (id int, counter text);
INSERT INTO boxes VALUES (1, 'tasks:open'), (2, 'unknown'), (3, 'tasks:done'), (4, 'tasks:open'), (5, NULL);
SELECT id, value FROM boxes LEFT JOIN counters ON name = counter ORDER BY id;
SELECT id, (SELECT value FROM counters WHERE name = counter) FROM boxes ORDER BY id;
SELECT a.name, b.value FROM counters a JOIN counters b USING (name) WHERE a.value > 1 ORDER BY 1;

-- Names are ordered by their bytes, whatever the database's locale is.
SELECT counter_incr(n) FROM unnest(ARRAY['b', 'B', 'a', 'A', 'ä', '_', '1']) n;
SELECT name FROM counters WHERE length(name) = 1 ORDER BY name;
SELECT pg_collation_for(name) FROM counters LIMIT 1;
-- A name is not a pattern.
SELECT counter_incr('100%'), counter_incr('100%%'), counter_incr('100_'), counter_incr('100\');
SELECT name FROM counters WHERE name LIKE '100\%%' ORDER BY name;
SELECT name FROM counters WHERE name LIKE '100\_' ORDER BY name;
SELECT name FROM counters WHERE name LIKE '100\\' ORDER BY name;
SELECT count(*) FROM counters WHERE name LIKE '%';

-- One query reads all of it with one snapshot, also when it reads it several times.
SELECT (SELECT sum(value) FROM counters) = (SELECT sum(counter_value(name)) FROM counters) AS same;

-- It shows; it does not take.
INSERT INTO counters VALUES ('x', 1);
UPDATE counters SET value = 0;
DELETE FROM counters;
TRUNCATE counters;
SELECT * FROM counters WHERE name = 'a' FOR UPDATE;
-- Nor does what is behind it.
INSERT INTO counterx.listing VALUES ('x', 1);
DELETE FROM counterx.listing;
ANALYZE counterx.listing;

-- Copies and cursors.
COPY (SELECT name, value FROM counters WHERE name LIKE 'tasks:%' ORDER BY name) TO stdout;
BEGIN;
DECLARE c SCROLL CURSOR FOR SELECT name, value FROM counters WHERE name LIKE 'tasks:%' ORDER BY name;
FETCH 2 FROM c;
FETCH PRIOR FROM c;
FETCH ALL FROM c;
COMMIT;
CREATE MATERIALIZED VIEW kept AS SELECT name, value FROM counters;
SELECT counter_incr('tasks:open', 1000);
SELECT value FROM kept WHERE name = 'tasks:open';
REFRESH MATERIALIZED VIEW kept;
SELECT value FROM kept WHERE name = 'tasks:open';
