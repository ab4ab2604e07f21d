-- At the limits of bigint and beyond: changes take as many deltas as they need, and lists go on.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
-- The limits themselves are values like others.
SELECT counter_set('x', 9223372036854775807);
SELECT counter_set('x', 0), counter_set('y', -9223372036854775808);
SELECT counter_incr_get('x', 9223372036854775807), counter_incr_get('x', 0);
SELECT * FROM counter_values('{x,y}');
SELECT * FROM counter_top(1);
SELECT * FROM counter_bottom(1);
SELECT counter_rename('x', 'max');
SELECT counter_merge('sum', 'max');
SELECT counter_rename('sum', 'max');
SELECT counter_reset('max'), counter_set('max', 9223372036854775807), counter_drop('max'), counter_set('max', 9223372036854775807);
SELECT counterx.compact() > 0 AS folded;
-- The least bigint has no counterpart: it takes two deltas to bring it to zero.
BEGIN;
SELECT counter_reset('y');
SELECT name, value FROM counters ORDER BY name;
ROLLBACK;
BEGIN;
SELECT counter_drop('y');
SELECT name, value FROM counters ORDER BY name;
ROLLBACK;
SELECT counter_rename('y', 'z');
SELECT counter_rename('z', 'y');
SELECT counter_merge('max', 'y');
SELECT name, value FROM counters ORDER BY name;
-- From one end to the other.
SELECT counter_set('max', 9223372036854775807), counter_set('min', -9223372036854775808);
SELECT counter_set('max', -2);
SELECT counter_set('min', 9223372036854775807);
SELECT counter_set('min', -1), counter_value('max');
SELECT counter_reset('min');
-- In one transaction, with what it has counted itself.
SELECT counter_set('max', 0);
SELECT counter_set('max', 9223372036854775807);
BEGIN;
SELECT counter_decr('max', 7);
SAVEPOINT s;
SELECT counter_set('max', -10);
ROLLBACK TO s;
SELECT counter_set('max', 0);
COMMIT;
SELECT counter_value('max');
BEGIN;
SELECT counter_incr('own', 9223372036854775807);
SELECT counter_set('own', -1);
SELECT counter_value('own');
SAVEPOINT s;
SELECT counter_incr('own', -9223372036854775807), counter_incr('own', -9223372036854775807), counter_incr('own', -2);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_drop('own');
SELECT counter_incr('own', -9223372036854775808);
COMMIT;
SELECT counter_value('own');
SELECT counter_incr('own', 1), counter_drop('own');
SELECT name FROM counter_list('own');
SELECT counter_drop('own');

-- Beyond: the value of several transactions.
SELECT counter_incr('huge', 9223372036854775807);
SELECT counter_incr('huge', 9223372036854775807);
SELECT counter_incr('huge', 2);
SELECT counterx.compact() > 0 AS folded;
SELECT value FROM counters WHERE name = 'huge';
SELECT counter_value('huge');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_get('huge');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM counter_values('{max,huge}');
SELECT * FROM counter_list('h');
SELECT * FROM counter_top(1);
SELECT * FROM counter_bottom(1);
BEGIN;
SELECT counter_set('huge', 9223372036854775807);
SELECT counter_value('huge');
SELECT counter_reset('huge');
ROLLBACK;
BEGIN;
SELECT counter_reset('huge');
SELECT counter_value('huge');
SELECT counter_drop('huge'), counter_value('huge');
SELECT name FROM counter_list('huge');
ROLLBACK;
BEGIN;
SELECT counter_rename('huge', 'h');
SELECT counter_incr('small', 5), counter_decr('h');
SELECT counter_merge('small', 'h');
SELECT name, value FROM counters WHERE name IN ('h', 'huge', 'small');
ROLLBACK;
SELECT counter_incr('small', 5);
SELECT counter_merge('huge', 'small');
SELECT counter_sum('h'), counter_sum();
SELECT value FROM counters WHERE name = 'huge';
SELECT counter_drop('huge');
SELECT counterx.compact() > 0 AS folded;
SELECT * FROM counter_list();
SELECT name, value, uses > 0 AS used FROM counterx.total ORDER BY name;
-- Far beyond.
DO $$ BEGIN FOR i IN 1 .. 50 LOOP PERFORM counter_incr('far', 9223372036854775807); COMMIT; END LOOP; END $$;
SELECT value FROM counters WHERE name = 'far';
SELECT counterx.compact();
SELECT value, counter_sum() - value AS rest FROM counters WHERE name = 'far';
SELECT counterx.create_value_index();
SELECT * FROM counter_bottom(1);
SELECT * FROM counter_top(1);
-- With what the transaction has added itself; in savepoints that are rolled back and released; in a
-- transaction of one snapshot.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT counter_incr('far', 9223372036854775807), counter_incr('near', 1);
SAVEPOINT s;
SELECT counter_drop('far');
SELECT name, value FROM counters ORDER BY name;
ROLLBACK TO s;
SELECT counter_set('far', -5);
SELECT name, value FROM counters ORDER BY name;
ROLLBACK TO s;
SELECT name, value FROM counters ORDER BY name;
SELECT counter_drop('far');
RELEASE s;
SELECT counter_incr('far', 3);
SELECT counter_reset('far'), counter_set('far', 4);
COMMIT;
SELECT name, value FROM counters ORDER BY name;
SELECT counterx.compact() > 0 AS folded;
SELECT name, value FROM counters ORDER BY name;
SELECT counter_drop('far'), counter_drop('far');
SELECT counterx.compact() > 0 AS folded;
SELECT name, value, uses > 0 AS used FROM counterx.total ORDER BY name;
-- Deltas that are written early are not prepared.
DO $$ BEGIN FOR i IN 1 .. 2 LOOP PERFORM counter_decr('far', 9223372036854775807); COMMIT; END LOOP; END $$;
BEGIN;
SELECT counter_reset('far');
PREPARE TRANSACTION 'far';
\echo :LAST_ERROR_SQLSTATE
SELECT value FROM counters WHERE name = 'far';
-- A bounded counter is brought back by a transaction for each part: what one takes has to fit.
DO $$ BEGIN FOR i IN 1 .. 2 LOOP PERFORM counter_incr('open:1', 9223372036854775807); COMMIT; END LOOP; END $$;
SELECT counter_type_create('open', min => 0);
SELECT counter_drop('open:1');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_decr('open:1', 9223372036854775807);
SELECT counter_drop('open:1');
SELECT name, value FROM counters ORDER BY name;
-- How an administrator finds them.
SELECT name, value FROM counters WHERE value NOT BETWEEN -9223372036854775808 AND 9223372036854775807;
