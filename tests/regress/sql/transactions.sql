-- An increment is part of its transaction, whatever that is made of.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;

-- Commit and rollback.
BEGIN;
SELECT counter_incr('x', 1);
SELECT counter_value('x');
ROLLBACK;
SELECT counter_value('x');
BEGIN;
SELECT counter_incr('x', 1);
COMMIT;
SELECT counter_value('x');
-- A failed transaction rolls back, whatever it is told.
BEGIN;
SELECT counter_incr('x', 1);
SELECT 1 / 0;
COMMIT;
SELECT counter_value('x');

-- Savepoints: ROLLBACK TO takes back, RELEASE keeps, and a savepoint can be gone back to again.
BEGIN;
SELECT counter_incr('s', 1);
SAVEPOINT a;
SELECT counter_incr('s', 10);
SAVEPOINT b;
SELECT counter_incr('s', 100);
SELECT counter_value('s');
ROLLBACK TO b;
SELECT counter_value('s');
SELECT counter_incr('s', 1000);
RELEASE b;
SELECT counter_value('s');
ROLLBACK TO a;
SELECT counter_value('s');
SELECT counter_incr('s', 10000), counter_incr('only in a', 1);
ROLLBACK TO a;
SELECT counter_incr('s', 100000);
RELEASE a;
COMMIT;
SELECT name, value FROM counters ORDER BY name;
-- One inside of the other; going back to the eighth takes back its own and all that is deeper.
BEGIN;
SELECT format('SAVEPOINT p%s; SELECT counter_incr(''deep'', 1)', i) FROM generate_series(1, 12) i \gexec
ROLLBACK TO p8;
SELECT counter_value('deep');
COMMIT;
SELECT counter_value('deep');

-- Exception blocks are subtransactions.
DO $$
BEGIN
    PERFORM counter_incr('e', 1);
    BEGIN
        PERFORM counter_incr('e', 10);
        BEGIN
            PERFORM counter_incr('e', 100);
            RAISE division_by_zero;
        EXCEPTION WHEN division_by_zero THEN
            PERFORM counter_incr('e', 1000);
        END;
        RAISE NOTICE 'in the middle: %', counter_value('e');
        RAISE unique_violation;
    EXCEPTION WHEN unique_violation THEN
        RAISE NOTICE 'at the end: %', counter_value('e');
    END;
END $$;
SELECT counter_value('e');
-- An error of our own can be caught like any other.
DO $$
BEGIN
    PERFORM counter_incr('caught', 1);
    BEGIN
        PERFORM counter_incr('caught', 5), counter_incr('', 1);
    EXCEPTION WHEN invalid_parameter_value THEN
        RAISE NOTICE '%', SQLERRM;
    END;
END $$;
SELECT counter_value('caught');

-- A procedure that commits: each of its transactions stands for itself.
CREATE PROCEDURE count_and_end() LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. 10 LOOP
        PERFORM counter_incr('procedure', i);
        IF i % 2 = 0 THEN COMMIT; ELSE ROLLBACK; END IF;
    END LOOP;
    PERFORM counter_incr('procedure', 1000);
    RAISE EXCEPTION 'the last one does not get there';
END $$;
CALL count_and_end();
-- 2 + 4 + 6 + 8 + 10
SELECT counter_value('procedure');

-- A function that counts and reads.
CREATE FUNCTION sql_count(n text) RETURNS bigint LANGUAGE sql AS $$
    SELECT counter_incr(n, 2);
    SELECT counter_value(n);
$$;
SELECT sql_count('f'), sql_count('f');

-- A trigger's increments go with its statement.
CREATE TABLE orders (id int PRIMARY KEY, state text);
CREATE FUNCTION count_orders() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM counter_incr('orders:' || coalesce(NEW.state, OLD.state), CASE TG_OP WHEN 'DELETE' THEN -1 ELSE 1 END);
    RETURN NULL;
END $$;
CREATE TRIGGER count AFTER INSERT OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION count_orders();
INSERT INTO orders SELECT i, CASE WHEN i % 3 = 0 THEN 'paid' ELSE 'open' END FROM generate_series(1, 10) i;
DELETE FROM orders WHERE id = 10;
INSERT INTO orders VALUES (20, 'open'), (1, 'open');
COPY orders FROM stdin;
30	paid
31	paid
\.
-- As it should be: what the table itself says.
SELECT name, value FROM counters WHERE name LIKE 'orders:%' ORDER BY name;
SELECT state, count(*) FROM orders GROUP BY state ORDER BY state;
-- A deferred one counts at the end of the transaction, just before the increments are written.
CREATE FUNCTION count_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM counter_incr('deferred');
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION count_late();
BEGIN;
INSERT INTO orders VALUES (40, 'paid'), (41, 'paid');
SELECT counter_value('deferred'), counter_value('orders:paid');
COMMIT;
SELECT counter_value('deferred'), counter_value('orders:paid');
BEGIN;
INSERT INTO orders VALUES (50, 'paid');
SET CONSTRAINTS ALL IMMEDIATE;
SELECT counter_value('deferred'), counter_value('orders:paid');
ROLLBACK;
SELECT counter_value('deferred'), counter_value('orders:paid');

-- Cursors: counting by a query that is run in parts, and to its end at commit when it is held.
BEGIN;
DECLARE parts CURSOR FOR SELECT i, counter_incr('cursor', i) FROM generate_series(1, 10) i;
MOVE 3 IN parts;
SELECT counter_value('cursor');
MOVE 1 IN parts;
CLOSE parts;
COMMIT;
SELECT counter_value('cursor');
BEGIN;
DECLARE held CURSOR WITH HOLD FOR SELECT i, counter_incr('held', i) FROM generate_series(1, 10) i;
SELECT counter_value('held');
COMMIT;
SELECT counter_value('held');
CLOSE held;

-- Prepared statements, with a generic plan from the sixth time on.
PREPARE count_one(text, bigint) AS SELECT counter_incr($1, $2);
PREPARE value_of(text) AS SELECT counter_value($1), (SELECT value FROM counters WHERE name = $1);
EXECUTE count_one('prepared', 1);
EXECUTE value_of('prepared');
EXECUTE count_one('prepared', 2);
EXECUTE value_of('prepared');
EXECUTE count_one('prepared', 3);
EXECUTE value_of('prepared');
EXECUTE value_of('prepared');
EXECUTE value_of('prepared');
EXECUTE value_of('prepared');
EXECUTE count_one('prepared', 4);
EXECUTE value_of('prepared');
EXECUTE value_of('unknown');
DISCARD ALL;

-- Several statements in one message are one transaction.
SELECT counter_incr('message', 1)\; SELECT counter_incr('message', 1)\; SELECT 1 / 0;
SELECT counter_value('message');

-- COMMIT AND CHAIN begins anew.
BEGIN;
SELECT counter_incr('chain', 1);
COMMIT AND CHAIN;
SELECT counter_incr('chain', 10);
ROLLBACK;
SELECT counter_value('chain');

-- Two-phase commit: nothing until COMMIT PREPARED, and the session's next transaction is unrelated.
BEGIN;
SELECT counter_incr('2pc', 1);
SAVEPOINT a;
SELECT counter_incr('2pc', 10);
ROLLBACK TO a;
SELECT counter_incr('2pc', 100);
PREPARE TRANSACTION 'counterx_regress';
SELECT counter_value('2pc');
SELECT counter_incr('2pc', 1000);
SELECT counter_value('2pc');
COMMIT PREPARED 'counterx_regress';
SELECT counter_value('2pc');
SELECT value FROM counters WHERE name = '2pc';
BEGIN;
SELECT counter_incr('2pc', 10000);
PREPARE TRANSACTION 'counterx_regress';
ROLLBACK PREPARED 'counterx_regress';
SELECT counter_value('2pc');

-- Nothing of all this depends on what is folded.
SELECT counterx.compact() > 0;
SELECT name, value FROM counters ORDER BY name;
