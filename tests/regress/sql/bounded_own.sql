-- What a transaction has done itself counts for what it does next, in the order of time.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
SELECT counter_type_create('stock', min => 0);
SELECT counter_type_create('quota', min => 0, max => 3);
CREATE FUNCTION see(name text, OUT value bigint, OUT held bigint, OUT available bigint)
LANGUAGE sql AS 'SELECT a.value, a.held, a.available FROM counter_available($1) a';

-- A shelf is stocked and sold from in one transaction.
BEGIN;
SELECT counter_incr('stock:a', 5);
SELECT * FROM see('stock:a');
SELECT counter_try_incr('stock:a', -6), counter_try_incr('stock:a', -3), counter_take_up_to('stock:a', 9);
SELECT * FROM see('stock:a');
SELECT counter_incr('stock:a', -1);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
-- Not the other way round.
BEGIN;
SELECT counter_try_incr('stock:a', -1), counter_incr('stock:a', 1), counter_try_incr('stock:a', -1);
COMMIT;

-- A quota of files.
CREATE TABLE file (id int);
CREATE FUNCTION count_files() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM counter_incr('quota:files', CASE TG_OP WHEN 'INSERT' THEN 1 ELSE -1 END);
    RETURN NULL;
END $$;
CREATE TRIGGER count_files AFTER INSERT OR DELETE ON file FOR EACH ROW EXECUTE FUNCTION count_files();
BEGIN;
INSERT INTO file SELECT generate_series(1, 3);
SELECT counter_try_incr('quota:files');
DELETE FROM file;
INSERT INTO file SELECT generate_series(1, 3);
INSERT INTO file VALUES (4);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
INSERT INTO file VALUES (1);
BEGIN;
DELETE FROM file;
INSERT INTO file SELECT generate_series(1, 3);
COMMIT;
SELECT counter_value('quota:files');

-- Savepoints: an add that is rolled back takes the takes after it with it; those before it stay.
BEGIN;
SELECT counter_incr('stock:b', 2);
SELECT counter_try_incr('stock:b', -1);
SAVEPOINT a;
SELECT counter_incr('stock:b', 3);
SAVEPOINT b;
SELECT counter_try_incr('stock:b', -4), counter_try_incr('stock:b', -1);
ROLLBACK TO b;
SELECT counter_try_incr('stock:b', -4);
RELEASE b;
SELECT counter_value('stock:b');
ROLLBACK TO a;
SELECT counter_value('stock:b'), counter_try_incr('stock:b', -2), counter_try_incr('stock:b', -1);
SAVEPOINT b;
SELECT counter_incr('stock:b', 7);
RELEASE b;
SELECT counter_try_incr('stock:b', -7);
RELEASE a;
SELECT counter_try_incr('stock:b', -1);
COMMIT;
SELECT counter_value('stock:b');

-- Up and down, set and dropped.
BEGIN;
SELECT counter_set('stock:c', 9), counter_set('stock:c', 2), counter_reset('stock:c'), counter_set('stock:c', 4);
SELECT counter_drop('stock:c'), counter_value('stock:c'), counter_set('quota:c', 3), counter_set('quota:c', 0);
SELECT counter_set('quota:c', 3), counter_drop('quota:c'), counter_set('quota:c', 3);
SELECT counter_try_incr('quota:c'), counter_try_incr('quota:c', -3), counter_try_incr('quota:c', 4);
COMMIT;
SELECT counter_value('stock:c'), counter_value('quota:c');

-- Written early, as the memory for pending increments is full: all is as before.
SET counterx.pending_work_mem = '64kB';
BEGIN;
SELECT counter_incr('stock:e', 4);
SELECT count(counter_incr('filler:' || n)) FROM generate_series(1, 3000) n;
SELECT counter_try_incr('stock:e', -5), counter_try_incr('stock:e', -3);
SELECT * FROM see('stock:e');
SAVEPOINT s;
SELECT counter_drop('stock:e');
SELECT count(counter_incr('filler:' || n)) FROM generate_series(1, 3000) n;
SELECT counter_take_up_to('stock:e', 9);
ROLLBACK TO s;
SELECT counter_take_up_to('stock:e', 9);
COMMIT;
SELECT counter_value('stock:e');
RESET counterx.pending_work_mem;

-- Holds of the transaction itself.
SELECT counter_set('stock:h', 5);
BEGIN;
SELECT counter_hold('stock:h', 5, '1 hour') AS hold \gset
SELECT counter_try_incr('stock:h', -1), counter_hold_release(:hold), counter_try_incr('stock:h', -1);
SELECT counter_hold('stock:h', 4, '1 hour') AS hold \gset
SELECT counter_hold_confirm(:hold, 1);
SELECT * FROM see('stock:h');
SELECT counter_take_up_to('stock:h', 9);
ROLLBACK;
BEGIN;
SELECT counter_incr('stock:h', 2);
SELECT counter_hold('stock:h', 7, '1 hour') AS hold \gset
SELECT counter_hold_confirm(:hold), counter_value('stock:h'), counter_try_incr('stock:h', -1);
ROLLBACK;
-- All in one statement.
BEGIN;
SELECT counter_hold_release(counter_hold('stock:h', 5, '1 hour')), counter_take_up_to('stock:h', 9);
ROLLBACK;

-- Holds that others see: what is released, or not confirmed, can be taken.
SELECT counter_hold('stock:h', 5, '1 hour') AS hold \gset
BEGIN;
SELECT counter_try_incr('stock:h', -1), counter_hold_release(:hold);
SELECT * FROM see('stock:h');
SAVEPOINT s;
SELECT counter_try_incr('stock:h', -6), counter_try_incr('stock:h', -5), counter_try_incr('stock:h', -1);
ROLLBACK TO s;
SELECT counter_hold('stock:h', 5, '1 hour') > 0, counter_try_incr('stock:h', -1);
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT counter_hold_release(:hold), counter_try_incr('stock:h', -5);
ROLLBACK TO s;
SELECT counter_try_incr('stock:h', -1), counter_hold_confirm(:hold, 2), counter_take_up_to('stock:h', 9);
ROLLBACK;
-- Not of one that has expired: its amount was free before.
BEGIN;
UPDATE counterx.hold SET expires_at = created_at WHERE id = :hold;
COMMIT;
BEGIN;
SELECT counter_take_up_to('stock:h', 4), counter_hold_release(:hold), counter_take_up_to('stock:h', 9);
ROLLBACK;
SELECT counter_hold_release(:hold);

-- To extend: from now, never shorter, not once it has expired.
SELECT counter_hold('stock:h', 5, '1 minute') AS hold \gset
SELECT counter_hold_extend(:hold, '1 hour') - now() BETWEEN '1 hour' AND '1 hour 1 minute' AS extended;
SELECT counter_hold_extend(:hold, '1 minute') = expires_at AS same, expires_at - now() > '59 minutes' AS long, amount
  FROM counter_holds WHERE id = :hold;
SELECT * FROM see('stock:h');
SELECT counter_try_incr('stock:h', -1);
BEGIN;
SELECT counter_hold_extend(:hold, '2 hours') - now() > '119 minutes' AS extended, counter_try_incr('stock:h', -1);
SELECT counter_hold_extend(:hold, '3 hours') - now() > '179 minutes' AS extended, counter_try_incr('stock:h', -1);
SELECT * FROM see('stock:h');
SAVEPOINT s;
SELECT counter_hold_release(:hold), counter_take_up_to('stock:h', 9);
ROLLBACK TO s;
SELECT counter_hold_confirm(:hold), counter_try_incr('stock:h', -1), counter_value('stock:h');
ROLLBACK;
SELECT expires_at - now() < '61 minutes' AS as_before, amount FROM counter_holds WHERE id = :hold;
SELECT counter_hold_extend(:hold, '0');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_extend(:hold, '-1 hour');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_extend(:hold, '300000 years');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_extend(:hold, NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_extend(NULL, '1 hour');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_extend(-1, '1 hour');
\echo :LAST_ERROR_SQLSTATE

-- To give a part back.
SELECT counter_hold_reduce(:hold, 6);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_reduce(:hold, 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_reduce(:hold, NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_reduce(NULL, 1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_reduce(-1, 1);
\echo :LAST_ERROR_SQLSTATE
BEGIN;
SELECT counter_hold_reduce(:hold, 2), counter_take_up_to('stock:h', 9);
SELECT * FROM see('stock:h');
SELECT counter_hold_reduce(:hold, 1), counter_hold_extend(:hold, '2 hours') > now() AS extended, counter_take_up_to('stock:h', 9);
SELECT counter_hold_confirm(:hold, 3);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SELECT counter_hold_reduce(:hold, 2);
SELECT * FROM see('stock:h');
SELECT id = :hold AS same, amount, expires_at - created_at > '59 minutes' AS long FROM counter_holds;
SELECT counter_take_up_to('stock:h', 9);
SELECT counter_hold_reduce(:hold, 3);
SELECT counter_hold_reduce(:hold, 1);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM see('stock:h');

-- Expired.
SELECT counter_hold('stock:h', 3, '1 hour') AS hold \gset
UPDATE counterx.hold SET expires_at = created_at WHERE id = :hold;
SELECT counter_hold_extend(:hold, '1 hour');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_reduce(:hold, 1);
\echo :LAST_ERROR_SQLSTATE
-- A clock that was set back: others have taken its amount.
SELECT counter_take_up_to('stock:h', 9);
ALTER TABLE counterx.hold DISABLE TRIGGER restored;
UPDATE counterx.hold SET expires_at = now() + interval '1 minute' WHERE id = :hold;
ALTER TABLE counterx.hold ENABLE ALWAYS TRIGGER restored;
SELECT counter_hold_extend(:hold, '1 hour');
\echo :LAST_ERROR_SQLSTATE
DELETE FROM counterx.hold;

-- Prepared transactions: none that has reserved something.
SELECT counter_set('stock:h', 5);
SELECT counter_hold('stock:h', 5, '1 hour') AS hold \gset
BEGIN;
SELECT counter_hold_extend(:hold, '2 hours') > now() AS extended;
PREPARE TRANSACTION 'counterx_own';
\echo :LAST_ERROR_SQLSTATE
BEGIN;
SELECT counter_hold_reduce(:hold, 1);
PREPARE TRANSACTION 'counterx_own';
\echo :LAST_ERROR_SQLSTATE
BEGIN;
SELECT counter_hold_reduce(:hold, 5);
PREPARE TRANSACTION 'counterx_own';
ROLLBACK PREPARED 'counterx_own';

-- Read-only transactions, without a type, and a day after.
BEGIN READ ONLY;
SELECT counter_hold_extend(:hold, '2 hours');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT counter_hold_reduce(:hold, 1);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT * FROM see('stock:h');
COMMIT;
SELECT counter_type_drop('stock');
SELECT counter_hold_extend(:hold, '2 hours') > now() AS extended, counter_hold_reduce(:hold, 1);
SELECT * FROM see('stock:h');
SELECT counter_type_create('stock', min => 0);
SELECT * FROM see('stock:h');

-- A drop of more than a bigint: written and pending together. What is on hold stays.
SELECT counter_incr('stock:x', 9223372036854775807);
SELECT counter_hold('stock:x', 5, '1 hour') AS hold \gset
BEGIN;
SELECT counter_incr('stock:x', 2);
SELECT counter_drop('stock:x');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SELECT * FROM see('stock:x');
SELECT counter_hold_confirm(:hold);
BEGIN;
SELECT counter_incr('stock:x', 9);
SELECT counter_drop('stock:x');
COMMIT;
SELECT * FROM see('stock:x');
