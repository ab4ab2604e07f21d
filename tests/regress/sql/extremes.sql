-- At the limits of bigint and beyond: what is refused says what to do, and that does help.
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
SELECT counter_merge('max', 'y');
\echo :LAST_ERROR_SQLSTATE
SELECT name, value FROM counters ORDER BY name;
-- The least bigint has no counterpart: one change cannot take it to zero.
SELECT counter_reset('y');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_drop('y');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_rename('y', 'z');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('y');
SELECT counter_merge('max', 'y');
SELECT name, value FROM counters ORDER BY name;
-- From one end to the other.
SELECT counter_set('max', 9223372036854775807), counter_set('min', -9223372036854775808);
SELECT counter_set('max', -2);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_set('min', 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_decr('max', 9223372036854775807);
SELECT counter_set('max', -2);
SELECT counter_set('min', -1);
SELECT counter_reset('min');
-- In one transaction, with what it has counted itself.
SELECT counter_set('max', 0);
SELECT counter_set('max', 9223372036854775807);
BEGIN;
SELECT counter_decr('max', 7);
SAVEPOINT s;
SELECT counter_set('max', -10);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_set('max', 0);
COMMIT;
SELECT counter_value('max');
BEGIN;
SELECT counter_incr('own', 9223372036854775807);
SELECT counter_set('own', -1);
SELECT counter_value('own');
SAVEPOINT s;
SELECT counter_incr('own', -9223372036854775807), counter_incr('own', -1);
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
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM counter_list('h');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM counter_top(1);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM counter_bottom(1);
SELECT counter_set('huge', 9223372036854775807);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_reset('huge');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_drop('huge');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_rename('huge', 'h');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_merge('h', 'huge');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('small', 5);
SELECT counter_merge('huge', 'small');
SELECT counter_sum('h'), counter_sum();
SELECT value FROM counters WHERE name = 'huge';
-- As the hint says.
SELECT counter_decr('huge', 9223372036854775807);
SELECT counter_decr('huge', 9223372036854775807);
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
\echo :LAST_ERROR_SQLSTATE
