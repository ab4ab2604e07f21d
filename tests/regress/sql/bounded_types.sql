-- Counter types: what can be said of one, and to which counters it applies.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
SELECT name, min, max, description, counters FROM counter_types;
SELECT counter_type_create('stock', min => 0);
SELECT counter_type_create('seats', -5, 10, 'in all halls');
SELECT counter_type_create('words', options => '{"description": "no bounds", "min": null}');
SELECT counter_type_create('quota', max => 9223372036854775807, options => '{"min": -9223372036854775808}');
SELECT name, min, max, description, counters FROM counter_types ORDER BY name;

-- The names that begin with the type's name and a colon, and no others.
SELECT counter_incr('stock', -1), counter_incr('stocks:a', -1), counter_incr('STOCK:a', -1),
       counter_incr(':stock:a', -1), counter_incr('stock;a', -1), counter_incr('other:stock:a', -1);
SELECT counter_incr('stock:a', -1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('stock:', -1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('stock::', -1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('stock:a:b', 4), counter_incr('stock:c', 1), counter_incr('seats:a', 2);
SELECT name, counters FROM counter_types ORDER BY name;
SELECT counter_incr('words:a', -1000);

-- What cannot be a name.
SELECT counter_type_create(NULL, 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('', 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('a:b', 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('a b', 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('ä', 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create(E'a\nb', 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create(repeat('x', 256), 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('%_\''"', 0);
SELECT counter_type_drop('%_\''"');

-- Options are read strictly.
SELECT counter_type_create('t', options => '{"minimum": 0}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '{"min": 0.5}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '{"min": "0"}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '{"min": 9223372036854775808}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '{"min": -1e400}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => ('{"min": ' || repeat('[', 200) || repeat(']', 200) || '}')::jsonb);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '{"max": true}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '{"description": 7}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '[]');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '[0, 5, "x"]');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '"min"');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => 'null');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', 0, options => '{"min": 0}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', 0, options => '{"min": null}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', description => 'x', options => '{"description": null}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', options => '{}');
SELECT min, max, description FROM counter_types WHERE name = 't';
SELECT counter_type_create('t');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('stock', max => 5);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_drop('t');
SELECT counter_type_drop('t');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_alter('t', 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_drop(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_alter(NULL, 0);
\echo :LAST_ERROR_SQLSTATE

-- Zero has to be within the bounds: every counter starts there.
SELECT counter_type_create('t', min => 1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', max => -1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('t', min => 5, max => 3);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_alter('seats', min => 1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_alter('seats', options => '{"max": -1}');
\echo :LAST_ERROR_SQLSTATE

-- What is not given stays.
SELECT counter_type_alter('seats', max => 12);
SELECT min, max, description FROM counter_types WHERE name = 'seats';
SELECT counter_type_alter('seats', description => 'in one hall');
SELECT min, max, description FROM counter_types WHERE name = 'seats';
SELECT counter_type_alter('seats', options => '{"min": null, "description": null}');
SELECT min, max, description FROM counter_types WHERE name = 'seats';
SELECT counter_incr('seats:a', -1000);
SELECT counter_incr('seats:a', 1011);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_alter('seats', options => '{"max": null}');
SELECT counter_incr('seats:a', 1011);
SELECT counter_type_alter('seats');
SELECT min, max, description FROM counter_types WHERE name = 'seats';

-- Counters that break the bounds are named, five of them.
SELECT counter_type_alter('seats', max => 10);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('seats:' || n, -n) FROM generate_series(1, 7) n;
SELECT counter_type_alter('seats', min => 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_alter('seats', min => -6, max => 12);
\echo :LAST_ERROR_SQLSTATE
SELECT counterx.compact() > 0;
SELECT counter_type_alter('seats', min => -6, max => 13);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_drop('seats:7');
SELECT counter_type_alter('seats', min => -6, max => 13);
SELECT counter_incr('seats:6', -1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('seats:a', 1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('stocks', min => 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('big:a', 9223372036854775807);
SELECT counter_incr('big:a');
SELECT counter_type_create('big', max => 9223372036854775807);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_create('big', min => 0);
SELECT counter_incr('big:b', -1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('big:a', 9223372036854775807);
SELECT counter_decr('big:a', 9223372036854775807);
SELECT value FROM counters WHERE name = 'big:a';

-- Not in a transaction that has changed such counters itself; looser bounds are no problem.
BEGIN;
SELECT counter_incr('fresh:a', 5);
SELECT counter_type_create('fresh', min => 0);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
SELECT counter_incr('plain', -5);
SELECT counter_type_create('fresh', min => 0);
SELECT counter_incr('fresh:a', 5);
SELECT counter_type_alter('fresh', min => 0, max => 4);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SELECT counter_incr('fresh:a', -5);
BEGIN;
SELECT counter_incr('stock:c', -1);
SELECT counter_type_alter('stock', min => -1);
SELECT counter_incr('stock:c', -1);
SELECT counter_type_drop('stock');
SELECT counter_incr('stock:c', -10);
COMMIT;
SELECT counter_value('stock:c');
SELECT counter_type_create('stock', min => 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_set('stock:c', 1);
SELECT counter_type_create('stock', min => 0);

-- A definition is there for its own transaction at once, and gone when it is rolled back.
BEGIN;
SELECT counter_type_create('t', min => 0);
SELECT counter_try_incr('t:a', -1);
SAVEPOINT s;
SELECT counter_type_drop('t');
SELECT counter_try_incr('t:a', -1);
ROLLBACK TO s;
SELECT counter_try_incr('t:a', -1);
SAVEPOINT s;
SELECT counter_type_alter('t', min => -3);
SELECT counter_try_incr('t:a', -1);
ROLLBACK TO s;
SELECT counter_try_incr('t:a', -1);
COMMIT;
SELECT counter_try_incr('t:a', -1);
BEGIN;
SELECT counter_type_drop('t');
ROLLBACK;
SELECT counter_try_incr('t:a', -1);
BEGIN;
SELECT counter_type_create('gone', max => 0);
ROLLBACK;
SELECT counter_try_incr('gone:a', 1);
SELECT counter_type_drop('t');
SELECT counter_try_incr('t:a', -1);

-- The owner changes the table by hand: that is heard of, and bounds are bounds.
INSERT INTO counterx.type (name, min, generation) VALUES ('hand', 0, 1);
SELECT counter_try_incr('hand:a', -1);
UPDATE counterx.type SET min = -1, generation = 2 WHERE name = 'hand';
SELECT counter_try_incr('hand:a', -1);
COPY counterx.type (name, max, generation) FROM STDIN;
copied	0	1
\.
SELECT counter_try_incr('copied:a', 1);
DELETE FROM counterx.type WHERE name = 'copied';
SELECT counter_try_incr('copied:a', 1);
INSERT INTO counterx.type (name, min, generation) VALUES ('a:b', 0, 1);
\echo :LAST_ERROR_SQLSTATE

-- Who may do what.
CREATE ROLE regress_counterx_clerk;
SET ROLE regress_counterx_clerk;
SELECT count(*) > 0 FROM counter_types;
SELECT count(*) FROM counter_holds;
SELECT counter_try_incr('stock:c', -1);
SELECT counter_take_up_to('stock:c', 10);
SELECT counter_type_create('mine', min => 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_alter('stock', min => -1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_drop('stock');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM counterx.type;
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM counterx.hold;
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
GRANT EXECUTE ON FUNCTION counter_type_create, counter_type_alter, counter_type_drop TO regress_counterx_clerk;
SET ROLE regress_counterx_clerk;
SELECT counter_type_create('mine', min => 0);
SELECT counter_type_alter('mine', max => 1);
SELECT counter_type_create('other', min => 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_type_drop('mine');
RESET ROLE;
REVOKE ALL ON FUNCTION counter_type_create, counter_type_alter, counter_type_drop FROM regress_counterx_clerk;

-- Read-only transactions.
BEGIN READ ONLY;
SELECT counter_type_create('r', min => 0);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT counter_type_alter('stock', min => -1);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT counter_type_drop('stock');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT count(*) > 0 FROM counter_types;
COMMIT;
DROP ROLE regress_counterx_clerk;
DROP EXTENSION counterx;

-- A new extension in the same session knows nothing of the old one's types.
CREATE EXTENSION counterx;
SELECT counter_try_incr('stock:c', -1);
SELECT name, min, max, description, counters FROM counter_types;

-- What tells other sessions is a trigger, and nothing else.
SELECT counterx.type_changed();
\echo :LAST_ERROR_SQLSTATE
