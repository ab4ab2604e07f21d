-- What a database is kept in order with moves rows, replaces files and swaps indexes. Values stay,
-- with all that can be where: in totals, pending in either log, late, and in the own transaction. A
-- session that has used the old files and indexes goes on with the new ones.
CREATE EXTENSION counterx;
CREATE PROCEDURE fill() LANGUAGE plpgsql AS $$
BEGIN
    PERFORM counter_incr('n:' || i, i) FROM generate_series(1, 1000) i;
    COMMIT;
    PERFORM counterx.compact();
    COMMIT;
    PERFORM counter_incr('n:' || i, -2 * i) FROM generate_series(1, 1000) i WHERE i % 2 = 0;
    COMMIT;
    PERFORM counter_incr('n:' || i, 10) FROM generate_series(1, 1000) i WHERE i % 3 = 0;
    COMMIT;
END $$;
-- The oracle: what the calls of fill() sum up to, by plain arithmetic.
CREATE TABLE filled (times bigint);
INSERT INTO filled VALUES (0);
CREATE FUNCTION differences() RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT count(*) FROM generate_series(1, 1000) i CROSS JOIN filled f
    CROSS JOIN LATERAL (SELECT f.times * (i + CASE WHEN i % 2 = 0 THEN -2 * i ELSE 0 END + CASE WHEN i % 3 = 0 THEN 10 ELSE 0 END) AS should) s
    LEFT JOIN counters c ON c.name = 'n:' || i
    WHERE c.value IS DISTINCT FROM s.should OR counter_value('n:' || i) IS DISTINCT FROM s.should
$$;
CREATE PROCEDURE fill_and_note() LANGUAGE plpgsql AS $$ BEGIN CALL fill(); UPDATE filled SET times = times + 1; COMMIT; END $$;
CALL fill_and_note();
SELECT differences();
-- The check can fail.
BEGIN;
SELECT counter_incr('n:500');
SELECT differences();
ROLLBACK;
-- A prepared transaction keeps its deltas meanwhile.
BEGIN;
SELECT counter_incr('late', 7);
PREPARE TRANSACTION 'counterx_maintenance';

VACUUM;
SELECT differences();
VACUUM (FREEZE, ANALYZE);
SELECT differences();
ANALYZE counterx.total, counterx.state, counterx.log_0_a;
SELECT differences();
CALL fill_and_note();
SELECT differences();

COMMIT PREPARED 'counterx_maintenance';
SELECT counter_value('late');

-- VACUUM FULL of a table that has pending deltas, with the file that this session has used before.
SELECT format('VACUUM FULL counterx.%I', relname) FROM pg_class
WHERE relnamespace = 'counterx'::regnamespace AND relkind = 'r' AND relname !~ '^log_[2-7]' ORDER BY relname \gexec
SELECT differences(), counter_value('late');
VACUUM FULL;
SELECT differences(), counter_value('late');
CALL fill_and_note();
SELECT differences();

REINDEX TABLE counterx.total;
REINDEX TABLE counterx.state;
REINDEX TABLE counterx.log_0_a;
REINDEX TABLE counterx.log_0_b;
SELECT differences();
REINDEX SCHEMA counterx;
SELECT differences();
CALL fill_and_note();
SELECT differences();
-- This one makes new indexes, with new OIDs.
REINDEX TABLE CONCURRENTLY counterx.total;
REINDEX TABLE CONCURRENTLY counterx.state;
REINDEX INDEX CONCURRENTLY counterx.log_0_a_epoch_name;
REINDEX INDEX CONCURRENTLY counterx.log_1_b_epoch_name;
SELECT differences();
CALL fill_and_note();
SELECT differences();

CLUSTER counterx.total USING total_pkey;
CLUSTER counterx.state USING state_pkey;
CLUSTER counterx.log_0_a USING log_0_a_epoch_name;
SELECT differences();
CALL fill_and_note();
SELECT differences();

-- In the midst of a transaction that has read and counted.
BEGIN;
SELECT counter_incr('n:1', 1), counter_value('n:1');
REINDEX TABLE counterx.log_7_a;
CLUSTER counterx.total;
SELECT counter_incr('n:1', -1);
SELECT differences();
COMMIT;
SELECT differences();

CHECKPOINT;
DISCARD ALL;
SELECT differences();
SELECT counterx.compact() > 0 AS folded;
SELECT differences();
SELECT sum(pending_deltas) AS pending FROM counterx.lanes;
SELECT times FROM filled;
