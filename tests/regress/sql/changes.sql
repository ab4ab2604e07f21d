-- What depends on a counter's value: set, reset, drop, rename, merge.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
-- What the tables say about each counter, by plain SQL: the oracle for all that is committed.
CREATE FUNCTION stored() RETURNS TABLE (name text, value numeric, uses numeric) LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN QUERY EXECUTE (
        SELECT 'SELECT p.name, sum(p.value), sum(p.uses) FROM ('
            || 'SELECT t.name, t.value, t.uses FROM counterx.total t UNION ALL SELECT l.name, l.delta, coalesce(l.uses, 1) FROM counterx.late l'
            || string_agg(format(' UNION ALL SELECT l.name, l.delta, coalesce(l.uses, 1) FROM counterx.log_%s_%s l WHERE l.epoch > coalesce((SELECT max(s.folded_epoch) FROM counterx.state s WHERE s.lane = %1$s), 0)', lane, side), '')
            || ') p GROUP BY p.name ORDER BY p.name'
        FROM generate_series(0, 7) lane, unnest(ARRAY['a', 'b']) side);
END $$;
-- No uses, no value; and the view shows those that have some. Nothing, when all is well.
CREATE FUNCTION faults() RETURNS TABLE (fault text, name text, value numeric, uses numeric) LANGUAGE sql VOLATILE AS $$
    SELECT 'without use', s.* FROM stored() s WHERE s.uses < 0 OR (s.uses = 0 AND s.value <> 0)
    UNION ALL
    SELECT 'shown otherwise', coalesce(s.name, c.name), s.value, s.uses
    FROM (SELECT * FROM stored() WHERE stored.uses > 0) s FULL JOIN counters c ON c.name = s.name
    WHERE c.value IS DISTINCT FROM s.value OR counter_value(coalesce(s.name, c.name)) IS DISTINCT FROM s.value
$$;

-- Each returns what was there before.
SELECT counter_set('a', 5);
SELECT counter_set('a', 7);
SELECT counter_set('a', 7);
SELECT counter_reset('a'), counter_reset('a');
SELECT counter_incr('a', 3);
SELECT counterx.compact() > 0 AS folded;
SELECT counter_incr('a', 4);
SELECT counter_set('a', -2);
SELECT name, value FROM counters;
-- Setting makes a counter, also to 0; resetting makes none.
SELECT counter_set('zero', 0);
SELECT counter_reset('unknown');
SELECT name, value FROM counters ORDER BY name;
-- A drop takes it from the list; a second one finds nothing.
SELECT counter_drop('zero'), counter_drop('zero');
SELECT counter_drop('zero'), counter_drop('unknown');
SELECT name, value FROM counters ORDER BY name;
SELECT counter_value('zero');
-- A renamed one leaves nothing behind, and is no other for what comes later.
SELECT counter_rename('a', 'b');
SELECT counter_incr('b', 12);
SELECT name, value FROM counters;
SELECT counter_set('a', 100);
SELECT counter_merge('a', 'b');
SELECT name, value FROM counters;
-- Merged into one that does not exist: as a rename.
SELECT counter_merge(into_name => 'c', from_name => 'a');
SELECT name, value FROM counters;
SELECT counter_rename(old_name => 'c', new_name => 'a');
SELECT * FROM faults();
SELECT counterx.compact() > 0 AS folded;
SELECT name, value, uses > 0 AS used FROM counterx.total;
SELECT * FROM faults();

-- All in one transaction, one after the other, on counters that are folded, pending, and new.
SELECT counter_incr('folded', 10), counter_incr('both', 20);
SELECT counterx.compact();
SELECT counter_incr('both', 2), counter_incr('pending', 30);
BEGIN;
SELECT counter_incr('folded'), counter_incr('both'), counter_incr('pending'), counter_incr('own', 40);
SELECT counter_set('folded', 1), counter_set('both', 2), counter_set('pending', 3), counter_set('own', 4);
SELECT name, value FROM counters ORDER BY name;
SELECT counter_incr('folded'), counter_incr('both'), counter_incr('pending'), counter_incr('own');
SELECT counter_reset('folded'), counter_reset('both'), counter_reset('pending'), counter_reset('own');
SELECT counter_incr('folded', 5), counter_incr('both', 6), counter_incr('pending', 7), counter_incr('own', 8);
SELECT counter_rename('folded', 'folded2'), counter_rename('own', 'own2'), counter_merge('both', 'pending');
SELECT name, value FROM counters ORDER BY name;
SELECT counter_drop('folded'), counter_drop('pending'), counter_drop('own');
SELECT counter_drop('both'), counter_drop('own2');
SELECT counter_incr('own', 9), counter_incr('pending', 10);
SELECT name, value FROM counters ORDER BY name;
SELECT * FROM counter_values('{folded,folded2,both,pending,own,own2}');
COMMIT;
SELECT name, value FROM counters ORDER BY name;
SELECT * FROM faults();
SELECT counterx.compact() > 0 AS folded;
SELECT name, value FROM counters ORDER BY name;
SELECT name, value, uses > 0 AS used FROM counterx.total ORDER BY name;
SELECT * FROM faults();

-- Dropped, then counted on; counted on, then dropped; in one transaction and in several.
BEGIN;
SELECT counter_drop('own'), counter_incr('own', 1), counter_incr('pending', 1), counter_drop('pending');
SELECT name, value FROM counters WHERE name IN ('own', 'pending');
COMMIT;
SELECT name, value FROM counters WHERE name IN ('own', 'pending');
SELECT * FROM faults();
SELECT counterx.compact() > 0 AS folded;
SELECT name, value FROM counterx.total WHERE name IN ('own', 'pending');
SELECT counter_drop('own');
SELECT counterx.compact();
SELECT count(*) FROM counterx.total WHERE name = 'own';
SELECT counter_drop('own');
SELECT counter_incr('own', 11);
SELECT counter_drop('own');
SELECT counter_incr('own', 12);
SELECT * FROM faults();
SELECT counterx.compact();
SELECT name, value, uses FROM counterx.total WHERE name = 'own';
-- Dropped and made again in epochs of one fold: a fold that was rolled back has published them.
SELECT counter_drop('own');
BEGIN; SELECT counterx.compact() > 0 AS folded; ROLLBACK;
SELECT counter_incr('own', 13);
BEGIN; SELECT counterx.compact() > 0 AS folded; ROLLBACK;
SELECT counter_drop('own');
BEGIN; SELECT counterx.compact() > 0 AS folded; ROLLBACK;
SELECT counter_incr('own', 14);
SELECT counter_value('own');
SELECT * FROM faults();
SELECT counterx.compact();
SELECT name, value, uses FROM counterx.total WHERE name = 'own';
-- In the fold's own transaction.
BEGIN;
SELECT counter_incr('own', 1);
SELECT counterx.compact();
SELECT counter_drop('own');
SELECT counterx.compact(), counter_drop('own');
SELECT counter_incr('own', 15);
COMMIT;
SELECT counter_value('own');
SELECT counter_incr('own', 1);
BEGIN;
SELECT counterx.compact(), counter_reset('own');
SELECT counter_value('own');
SELECT counterx.compact(), counter_set('own', 16), counter_value('own');
COMMIT;
SELECT counter_value('own');
SELECT * FROM faults();

-- Savepoints: taken back, and kept.
SELECT counter_drop(name) FROM counters;
SELECT counter_incr_many('{"s": 5, "t": 6}');
BEGIN;
SELECT counter_incr('s', 1);
SAVEPOINT a;
SELECT counter_drop('s');
SELECT counter_incr('s', 100);
SAVEPOINT b;
SELECT counter_rename('s', 'u'), counter_set('t', 0);
SELECT name, value FROM counters ORDER BY name;
ROLLBACK TO b;
SELECT name, value FROM counters ORDER BY name;
SELECT counter_merge('t', 's');
RELEASE b;
SELECT name, value FROM counters ORDER BY name;
ROLLBACK TO a;
SELECT name, value FROM counters ORDER BY name;
SELECT counter_reset('s');
SAVEPOINT c;
SELECT counter_drop('s'), counter_drop('t');
RELEASE c;
SELECT counter_incr('t', 7);
RELEASE a;
SAVEPOINT d;
SELECT counter_drop('t');
ROLLBACK TO d;
SELECT name, value FROM counters ORDER BY name;
COMMIT;
SELECT name, value FROM counters ORDER BY name;
SELECT * FROM faults();
DO $$
BEGIN
    PERFORM counter_set('t', 70);
    BEGIN
        PERFORM counter_drop('t');
        PERFORM counter_merge('s', 't');
    EXCEPTION WHEN undefined_object THEN
        PERFORM counter_incr('t', 1);
    END;
END $$;
SELECT name, value FROM counters ORDER BY name;
-- A rollback of all.
BEGIN;
SELECT counter_drop('t'), counter_set('s', 3), counter_incr('v', 1);
ROLLBACK;
SELECT name, value FROM counters ORDER BY name;
SELECT * FROM faults();

-- In the transaction's memory nothing is left of a counter that came and went: no row is written.
SELECT counterx.compact() > 0 AS folded;
BEGIN;
SELECT counter_incr('gone', 5), counter_set('gone', 6), counter_rename('gone', 'gone2'), counter_drop('gone2');
COMMIT;
SELECT counter_set('t', (SELECT value FROM counters WHERE name = 't')::bigint) = counter_value('t') AS same, counter_reset('gone'), counter_drop('gone');
SELECT sum(pending_deltas) FROM counterx.lanes;

-- Prepared.
BEGIN;
SELECT counter_drop('t'), counter_set('w', 8), counter_incr('s', 1);
PREPARE TRANSACTION 'counterx_changes';
SELECT name, value FROM counters ORDER BY name;
COMMIT PREPARED 'counterx_changes';
SELECT name, value FROM counters ORDER BY name;
SELECT * FROM faults();
SELECT counterx.compact();
SELECT name, value FROM counters ORDER BY name;
SELECT count(*) FROM counterx.late;
SELECT * FROM faults();

-- REPEATABLE READ and SERIALIZABLE alone, with what the transaction does itself.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT counter_set('s', 9), counter_reset('s'), counter_drop('s'), counter_set('s', 10), counter_rename('s', 'r'), counter_merge('w', 'r');
SELECT name, value FROM counters ORDER BY name;
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT counter_set('s', 9), counter_reset('s'), counter_drop('s'), counter_set('s', 10), counter_rename('s', 'r'), counter_merge('w', 'r');
COMMIT;
SELECT name, value FROM counters ORDER BY name;
SELECT * FROM faults();

-- Errors.
SELECT counter_set(NULL, 1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_set('x', NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_set('', 1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_reset(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_reset(repeat('x', 256));
\echo :LAST_ERROR_SQLSTATE
SELECT counter_drop(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_drop('');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_rename('unknown', 'x');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_rename('w', 'w');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_rename('w', NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_rename(NULL, 'w');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_rename('w', repeat('ä', 128));
\echo :LAST_ERROR_SQLSTATE
SELECT counter_set('z', 1);
SELECT counter_rename('w', 'z');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_merge('z', 'unknown');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_merge('unknown', 'unknown');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_merge('z', NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_merge('', 'z');
\echo :LAST_ERROR_SQLSTATE
BEGIN READ ONLY;
SELECT counter_set('w', 1);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT counter_reset('w');
ROLLBACK;
BEGIN READ ONLY;
SELECT counter_drop('unknown');
ROLLBACK;
BEGIN READ ONLY;
SELECT counter_rename('w', 'x');
ROLLBACK;
BEGIN READ ONLY;
SELECT counter_merge('w', 'x');
ROLLBACK;
SELECT name, value FROM counters ORDER BY name;
SELECT * FROM faults();
