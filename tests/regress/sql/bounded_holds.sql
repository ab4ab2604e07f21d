-- Holds: amounts that are set aside beyond their transaction.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
SELECT counter_type_create('stock', min => 0, max => 10);
SELECT counter_type_create('high', max => 10);
SELECT counter_type_create('deep', min => -5);
CREATE FUNCTION see(name text, OUT value bigint, OUT held bigint, OUT available bigint)
LANGUAGE sql AS 'SELECT a.value, a.held, a.available FROM counter_available($1) a';
SELECT * FROM counter_available('stock:a');
SELECT counter_incr('stock:a', 10);

-- What is on hold is part of the value, and not available; it makes no room below the maximum.
SELECT counter_hold('stock:a', 3, '1 hour') AS hold \gset
SELECT id = :hold AS same, name, amount, created_at <= now() AS made, expires_at - created_at AS ttl, expired FROM counter_holds;
SELECT * FROM counter_available('stock:a');
SELECT counter_incr('stock:a', 1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('stock:a', -8);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_try_incr('stock:a', 1), counter_try_incr('stock:a', -8), counter_take_up_to('stock:a', 9);
SELECT * FROM see('stock:a');
SELECT counter_hold('stock:a', 1, '1 hour');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_set('stock:a', 2);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_reset('stock:a');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_drop('stock:a');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_rename('stock:a', 'stock:b');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_merge('stock:b', 'stock:a');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_set('stock:a', 3);
SELECT counter_incr('stock:a', 7);
SELECT counter_incr('stock:a', 1);
\echo :LAST_ERROR_SQLSTATE

-- Confirmed.
SELECT counter_hold_confirm(:hold);
SELECT * FROM see('stock:a');
SELECT counter_hold_confirm(:hold);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_release(:hold);
SELECT counter_try_incr('stock:a', 4), counter_try_incr('stock:a', 3);

-- In part: the rest is free. Not more than there is.
SELECT counter_hold('stock:a', 6, '1 hour') AS hold \gset
SELECT counter_hold_confirm(:hold, 7);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_confirm(:hold, 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_confirm(:hold, -1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_confirm(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_confirm(-1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_confirm(:hold, 2);
SELECT * FROM see('stock:a');
SELECT counter_take_up_to('stock:a', 100);

-- Released; twice is once.
SELECT counter_set('stock:a', 5);
SELECT counter_hold('stock:a', 5, '1 hour') AS hold \gset
SELECT counter_hold_release(:hold), counter_hold_release(:hold), counter_hold_release(-1);
SELECT counter_hold_release(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM see('stock:a');

-- What cannot be held.
SELECT counter_hold('plain', 1, '1 hour');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold('high:a', 1, '1 hour');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold('stock:a', 0, '1 hour');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold('stock:a', -1, '1 hour');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold('stock:a', 1, '0');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold('stock:a', 1, '-1 second');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold('stock:a', 1, '300000 years');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold('stock:a', 9223372036854775807, '1 hour');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold(NULL, 1, '1 hour');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold('stock:a', NULL, '1 hour');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold('stock:a', 1, NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold('stock:a', 1, '1 hour', '');
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM counter_holds;
SELECT counter_hold('deep:a', 5, '1 hour') > 0;
SELECT counter_hold('deep:a', 1, '1 hour');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM see('deep:a');
SELECT * FROM see('plain');
SELECT * FROM see('high:a');
SELECT * FROM counter_available(NULL);
\echo :LAST_ERROR_SQLSTATE

-- Expired: free at once, and not to be confirmed; shown as such until it is removed.
SELECT counter_hold('stock:a', 5, '1 hour') AS hold \gset
UPDATE counterx.hold SET expires_at = created_at WHERE id = :hold;
SELECT * FROM see('stock:a');
SELECT amount, expired FROM counter_holds WHERE id = :hold;
SELECT counter_hold_confirm(:hold);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_confirm(:hold, 1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_take_up_to('stock:a', 100);
SELECT counter_hold_release(:hold);
-- One that expires in time.
SELECT counter_set('stock:a', 5);
SELECT counter_hold('stock:a', 5, '1 millisecond') AS hold \gset
DO $$ BEGIN WHILE EXISTS (SELECT FROM counter_holds WHERE NOT expired AND name = 'stock:a') LOOP PERFORM pg_sleep(0.001); END LOOP; END $$;
SELECT counter_hold_confirm(:hold);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_take_up_to('stock:a', 100);
-- Those that have expired for a day are removed by and by; compact() does it too.
UPDATE counterx.hold SET expires_at = now() - interval '23 hours' WHERE id = :hold;
SELECT counterx.compact() >= 0 AS compacted;
SELECT count(*) FROM counter_holds WHERE id = :hold;
UPDATE counterx.hold SET expires_at = now() - interval '25 hours' WHERE id = :hold;
SELECT counterx.compact() >= 0 AS compacted;
SELECT count(*) FROM counter_holds WHERE id = :hold;
SELECT counter_hold_confirm(:hold);
\echo :LAST_ERROR_SQLSTATE

-- Tokens: the same call again gives the same hold, also when that is gone.
SELECT counter_set('stock:a', 5);
SELECT counter_hold('stock:a', 2, '1 hour', 'basket') AS hold \gset
SELECT counter_hold('stock:a', 2, '1 hour', 'basket') = :hold AS same;
SELECT counter_hold('stock:a', 2, '2 hours', 'basket') = :hold AS same;
SELECT counter_hold('stock:a', 3, '1 hour', 'basket');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold('stock:b', 2, '1 hour', 'basket');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr_once('basket', 'stock:a', 2);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM see('stock:a');
SELECT counter_hold_confirm(:hold);
SELECT counter_hold('stock:a', 2, '1 hour', 'basket') = :hold AS same;
SELECT * FROM see('stock:a');
SELECT counter_incr_once('other', 'stock:a', -2);
SELECT counter_hold('stock:a', 2, '1 hour', 'other');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold('stock:a', 2, '1 hour', 'too much');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold('stock:a', 1, '1 hour', 'too much') > 0;
SELECT * FROM see('stock:a');

-- Transactions and savepoints.
DELETE FROM counterx.hold;
SELECT counter_set('stock:a', 5);
BEGIN;
SELECT counter_hold('stock:a', 3, '1 hour') AS hold \gset
SELECT * FROM see('stock:a');
SELECT counter_try_incr('stock:a', -3), counter_try_incr('stock:a', -2);
ROLLBACK;
SELECT * FROM see('stock:a');
BEGIN;
SAVEPOINT s;
SELECT counter_hold('stock:a', 5, '1 hour') AS hold \gset
ROLLBACK TO s;
SELECT counter_hold('stock:a', 4, '1 hour') AS hold \gset
SAVEPOINT s;
SELECT counter_hold_confirm(:hold);
SELECT * FROM see('stock:a');
ROLLBACK TO s;
SELECT counter_take_up_to('stock:a', 5);
COMMIT;
SELECT * FROM see('stock:a');
BEGIN;
SELECT counter_hold_confirm(:hold);
ROLLBACK;
BEGIN;
SELECT counter_hold_confirm(:hold);
SELECT counter_hold_confirm(:hold);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
SELECT counter_hold_confirm(:hold), counter_hold_release(:hold), counter_value('stock:a');
COMMIT;
SELECT * FROM see('stock:a');
SELECT counter_set('stock:a', 5);
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT counter_hold('stock:a', 5, '1 hour') AS hold \gset
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT counter_hold_confirm(:hold, 5);
COMMIT;
SELECT * FROM see('stock:a');

-- The type goes: its holds stay, and can be confirmed or released. It comes back only if they fit.
SELECT counter_set('stock:a', 5);
SELECT counter_hold('stock:a', 3, '1 hour') AS first \gset
SELECT counter_hold('stock:a', 2, '1 hour') AS second \gset
SELECT counter_type_drop('stock');
SELECT * FROM counter_available('stock:a');
SELECT counter_incr('stock:a', -5);
SELECT counter_hold_confirm(:first);
SELECT counter_type_create('stock', min => 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('stock:a', 4);
SELECT counter_type_create('stock', min => 0);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hold_release(:second);
SELECT counter_type_create('stock', min => 0);
SELECT * FROM see('stock:a');

-- Prepared transactions: no new holds, no confirmations; to release one takes no reservation.
SELECT counter_hold('stock:a', 1, '1 hour') AS hold \gset
BEGIN;
SELECT counter_hold_confirm(:hold);
PREPARE TRANSACTION 'counterx_hold';
\echo :LAST_ERROR_SQLSTATE
SELECT counter_take_up_to('stock:a', 9);
BEGIN;
SELECT counter_hold_release(:hold);
PREPARE TRANSACTION 'counterx_hold';
COMMIT PREPARED 'counterx_hold';
SELECT * FROM see('stock:a');
SELECT counter_set('stock:a', 5);
BEGIN;
SELECT counter_hold('stock:a', 1, '1 hour') AS hold \gset
PREPARE TRANSACTION 'counterx_hold';
\echo :LAST_ERROR_SQLSTATE

-- Read-only transactions, and others' rights.
BEGIN READ ONLY;
SELECT counter_hold('stock:a', 1, '1 hour');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT counter_hold_confirm(1);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT counter_hold_release(1);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT * FROM see('stock:a');
COMMIT;
CREATE ROLE regress_counterx_shopper;
SET ROLE regress_counterx_shopper;
SELECT counter_hold('stock:a', 1, '1 hour') AS hold \gset
SELECT counter_hold('stock:a', 1, '1 hour') AS other \gset
SELECT counter_hold_confirm(:hold), counter_hold_release(:other);
SELECT value, held, available FROM counter_available('stock:a');
RESET ROLE;
DROP ROLE regress_counterx_shopper;

-- A clock that was set back past a hold's end, as one could be after a failover: here the end is moved
-- instead. What the hold had set aside was taken by others meanwhile.
SELECT counter_type_create('clock', min => 0);
SELECT counter_incr('clock:a', 5);
SELECT counter_hold('clock:a', 3, '1 hour') AS hold \gset
UPDATE counterx.hold SET expires_at = now() - interval '1 minute' WHERE id = :hold;
SELECT counter_take_up_to('clock:a', 9);
ALTER TABLE counterx.hold DISABLE TRIGGER restored;
UPDATE counterx.hold SET expires_at = now() + interval '1 minute' WHERE id = :hold;
ALTER TABLE counterx.hold ENABLE ALWAYS TRIGGER restored;
SELECT counter_hold_confirm(:hold);
SELECT counter_value('clock:a');
