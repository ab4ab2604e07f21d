-- What a command has made, it can end.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
SELECT counter_type_create('stock', min => 0);
SELECT counter_incr('stock:a', 5);
SELECT counter_hold_release(counter_hold('stock:a', 2, '1 hour'));
SELECT counter_hold_confirm(counter_hold('stock:a', 2, '1 hour'));
SELECT counter_hold_confirm(counter_hold('stock:a', 2, '1 hour', 'token'), 1);
SELECT value, held, available FROM counter_available('stock:a');
SELECT count(*) FROM counter_holds;
-- With what a savepoint takes back.
BEGIN;
SAVEPOINT try;
SELECT counter_hold_release(counter_hold('stock:a', 1, '1 hour'));
ROLLBACK TO try;
SELECT counter_hold('stock:a', 1, '1 hour') AS hold \gset
SAVEPOINT try;
SELECT counter_hold_release(:hold), counter_hold_release(:hold) AS again;
ROLLBACK TO try;
COMMIT;
SELECT value, held, available FROM counter_available('stock:a');
SELECT counter_hold_release(:hold), counter_hold_release(:hold) AS again;
