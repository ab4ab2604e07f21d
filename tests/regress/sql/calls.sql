-- CALL counter_add(): what counter_incr() does, as a command that is evaluated once and has no result.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;

CALL counter_add('a');
CALL counter_add('a', 3);
CALL counter_add(delta => -1, name => 'a');
SELECT counter_value('a');

-- It is part of the transaction, savepoints included.
BEGIN;
CALL counter_add('a', 10);
SAVEPOINT s;
CALL counter_add('a', 100);
ROLLBACK TO s;
SELECT counter_value('a');
ROLLBACK;
SELECT counter_value('a');

-- A procedure that ends its transaction in between, where no snapshot is kept.
CREATE PROCEDURE count_twice() LANGUAGE plpgsql AS $$
BEGIN
    CALL counter_add('a', 5);
    COMMIT;
    CALL counter_add('a', 5);
    CALL counter_add('stock:a', 2);
    ROLLBACK;
    CALL counter_add('stock:a', 1);
END $$;
SELECT counter_type_create('stock', min => 0);
CALL count_twice();
SELECT counter_value('a'), counter_value('stock:a');

-- Bounds, at each isolation level: what is seen by a transaction is what it is compared with.
CALL counter_add('stock:a', -2);
BEGIN ISOLATION LEVEL SERIALIZABLE;
CALL counter_add('stock:a', -1);
CALL counter_add('stock:a', -1);
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
CALL counter_add('stock:a', -1);
SELECT counter_value('stock:a');
COMMIT;
SELECT counter_value('stock:a');

-- In functions and triggers too.
CREATE TABLE row (id int);
CREATE FUNCTION count_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    CALL counter_add('rows');
    RETURN NULL;
END $$;
CREATE TRIGGER count_row AFTER INSERT ON row FOR EACH ROW EXECUTE FUNCTION count_row();
INSERT INTO row VALUES (1), (2), (3);
SELECT counter_value('rows');

-- A prepared statement, with parameters that know no type and with those that are integers.
PREPARE one(text, int) AS SELECT counter_incr($1, $2);
EXECUTE one('p', 2);
CALL counter_add('p'::varchar, 2::smallint);
SELECT counter_value('p');

-- What is refused, and by whom.
CALL counter_add(NULL);
CALL counter_add('');
CALL counter_add('a', NULL);
CALL counter_add('a', 9223372036854775807);
CALL counter_add('a', 9223372036854775807);
SELECT value FROM counters WHERE name = 'a';
SELECT counter_add('a');
EXPLAIN CALL counter_add('a');
BEGIN READ ONLY;
CALL counter_add('a');
ROLLBACK;
CREATE ROLE regress_counterx_caller;
REVOKE EXECUTE ON PROCEDURE counter_add FROM PUBLIC;
SET ROLE regress_counterx_caller;
CALL counter_add('a');
RESET ROLE;
DROP ROLE regress_counterx_caller;
SELECT obj_description('counter_add'::regproc, 'pg_proc');
