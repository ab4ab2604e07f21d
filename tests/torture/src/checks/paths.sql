-- All functions and all paths, once; each line of output is the same whatever the server does beside.
SELECT counter_incr('a'), counter_incr('a', 5), counter_decr('a', 2), counter_incr_get('a', 10);
SELECT counter_incr_many(ARRAY['a', 'b', 'c:x'], ARRAY[1, 2, 3]), counter_incr_many('{"b": 7, "c:y": 8}');
SELECT counter_value('a'), counter_value('nobody');
SELECT * FROM counter_values(ARRAY['a', 'nobody', 'b']);
SELECT * FROM counter_list('c:', max_rows => 1);
SELECT counter_sum(), counter_sum('c:');
SELECT * FROM counter_top(2);
SELECT * FROM counter_bottom(2);
SELECT * FROM counters ORDER BY name;
SELECT value FROM counters WHERE name = 'a';
SELECT name FROM counters WHERE name LIKE 'c:%' AND name > 'c:x';
SELECT c.value FROM (VALUES ('a'), ('b')) v (name) JOIN counters c USING (name) ORDER BY 1;
SELECT counterx.compact() >= 0, counterx.compact() >= 0;
SELECT counter_value('a'), counter_incr('a', 1), counter_value('b');
-- Savepoints and exceptions.
BEGIN;
SELECT counter_incr('s', 1);
SAVEPOINT one;
SELECT counter_incr('s', 10);
SAVEPOINT two;
SELECT counter_incr('s', 100), counter_incr('t', 1000);
ROLLBACK TO two;
RELEASE one;
SELECT counter_value('s'), counter_value('t');
COMMIT;
DO $$ BEGIN
    PERFORM counter_incr('s', 1);
    BEGIN PERFORM counter_incr('s', 10), 1 / 0; EXCEPTION WHEN division_by_zero THEN PERFORM counter_incr('s', 100); END;
END $$;
SELECT counter_value('s');
BEGIN; SELECT counter_incr('s', 1000); ROLLBACK;
SELECT counter_value('s');
-- A procedure that commits.
DO $$ BEGIN FOR n IN 1 .. 3 LOOP PERFORM counter_incr('p', n); COMMIT; END LOOP; END $$;
SELECT counter_value('p');
-- Two phases.
BEGIN; SELECT counter_incr('2p', 5); PREPARE TRANSACTION 'paths';
SELECT counter_value('2p');
COMMIT PREPARED 'paths';
SELECT counter_value('2p'), counterx.compact() >= 0, counterx.compact() >= 0;
SELECT counter_value('2p');
-- More than fits into memory.
BEGIN;
SET LOCAL counterx.pending_work_mem = '64kB';
SELECT count(counter_incr('early:' || n, n)) FROM generate_series(1, 900) n;
SELECT counter_sum('early:'), counter_value('early:7');
COMMIT;
SELECT counter_sum('early:');
-- Changes by value.
SELECT counter_set('a', 7), counter_reset('b'), counter_drop('c:x'), counter_drop('nobody');
SELECT counter_rename('a', 'z'), counter_merge('z', 's');
SELECT * FROM counter_list(max_rows => 3);
-- Tokens.
SELECT counter_incr_once('token', 'o', 3), counter_incr_once_get('get', 'o', 4);
SELECT counter_incr_once('token', 'o', 3), counter_incr_once_get('get', 'o', 4), counter_value('o');
-- Isolation.
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT counter_value('o'), counter_incr('o', 1), counter_value('o');
SELECT count(*) > 0 FROM counters;
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
DECLARE paths CURSOR FOR SELECT name, value FROM counters WHERE name IN ('o', 'p') ORDER BY name;
FETCH 1 FROM paths;
FETCH 1 FROM paths;
COMMIT;
-- Types, bounds and holds.
SELECT counter_type_create('stock', min => 0, max => 20, description => 'paths');
SELECT counter_incr('stock:a', 10);
SELECT counter_try_incr('stock:a', -4), counter_try_incr('stock:a', -40), counter_take_up_to('stock:a', 2);
DO $$ BEGIN PERFORM counter_incr('stock:a', -5); RAISE 'sold twice'; EXCEPTION WHEN check_violation THEN NULL; END $$;
SELECT counter_hold('stock:a', 1, '1 hour') > 0, counter_hold('stock:a', 2, '1 hour', 'held') > 0;
SELECT name, amount, expired FROM counter_holds ORDER BY amount;
SELECT * FROM counter_available('stock:a');
SELECT counter_hold_confirm(id) FROM counter_holds WHERE amount = 1;
SELECT counter_hold_release(id) FROM counter_holds WHERE amount = 2;
SELECT * FROM counter_available('stock:a');
SELECT counter_type_alter('stock', max => 30);
SELECT name, min, max, counters FROM counter_types;
SELECT counter_incr('stock:a', 20), counter_value('stock:a');
SELECT counter_type_drop('stock');
-- Ranks with an index of values; maintenance; what operators see.
SELECT counterx.create_value_index() IS NOT NULL;
SELECT count(counter_incr('r:' || n, n)) FROM generate_series(1, 40) n;
SELECT counterx.compact() >= 0, counterx.compact() >= 0;
SELECT * FROM counter_top(2, 'r:');
VACUUM (FULL) counterx.total;
SELECT * FROM counter_bottom(2, 'r:');
SELECT counterx.drop_value_index() IS NOT NULL;
SELECT count(*), min(epoch) > 0 FROM counterx.lanes;
SELECT count(*) FROM counterx.workers;
SELECT counter_sum(), count(*) FROM counters;
