-- Every error that users can run into, with its code, and that it leaves nothing behind.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;

-- No name, no delta: 22004.
SELECT counter_incr(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_decr(NULL, 1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_value(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr('x', NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_decr('x', NULL);
\echo :LAST_ERROR_SQLSTATE

-- Empty and too long names: 22023. Length is counted in bytes, and the message cuts the name
-- without making something else of its characters than a replacement.
SELECT counter_incr('');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_value('');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_incr(repeat('x', 256));
\echo :LAST_ERROR_SQLSTATE
SELECT counter_decr(repeat('x', 100000));
\echo :LAST_ERROR_SQLSTATE
SELECT counter_value(repeat('ä', 128));
\echo :LAST_ERROR_SQLSTATE
SELECT counter_value('x' || repeat('ä', 128));
\echo :LAST_ERROR_SQLSTATE

-- A transaction's sum for one counter has to fit a bigint, at every moment: 22003. What was
-- counted before the savepoint stays.
BEGIN;
SELECT counter_incr('x', 9223372036854775807);
SAVEPOINT s;
SELECT counter_incr('x');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT counter_value('x');
SELECT counter_decr('x', 7);
COMMIT;
SELECT counter_value('x');
SELECT counter_decr('y', -9223372036854775808);
\echo :LAST_ERROR_SQLSTATE
BEGIN;
SELECT counter_decr('y', 9223372036854775807), counter_decr('y', 1);
SELECT counter_decr('y', 1);
\echo :LAST_ERROR_SQLSTATE
COMMIT;
SELECT counter_value('y');

-- A value beyond bigint: 22003 from counter_value, while counters shows it.
SELECT counter_incr('x', 9223372036854775807);
SELECT counter_value('x');
\echo :LAST_ERROR_SQLSTATE
SELECT value FROM counters WHERE name = 'x';
SELECT counterx.compact();
SELECT counter_value('x');
\echo :LAST_ERROR_SQLSTATE
SELECT value FROM counters WHERE name = 'x';

-- Read-only transactions: 25006.
SET default_transaction_read_only = on;
SELECT counter_incr('r');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_decr('r');
\echo :LAST_ERROR_SQLSTATE
SELECT counterx.compact();
\echo :LAST_ERROR_SQLSTATE
RESET default_transaction_read_only;

-- compact() needs new snapshots: 25001 where the isolation level has only one.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT counterx.compact();
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT counterx.compact();
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;

-- An error takes back what the statement has counted.
SELECT counter_incr('half'), 1 / (2 - i) FROM generate_series(1, 2) i;
SELECT counter_value('half');

-- The SQL objects are older than the library, or newer: 55000. What a session has found out about
-- the extension it remembers, so this takes another one.
SELECT extversion AS version FROM pg_extension WHERE extname = 'counterx' \gset
CREATE FUNCTION complaint(command text, OUT code text, OUT message text, OUT hint text) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE command;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
    message := replace(message, current_setting('test.version'), '<version>');
END $$;
UPDATE pg_extension SET extversion = '0.0.9' WHERE extname = 'counterx';
\c -
SET test.version = :'version';
\x on
SELECT * FROM complaint('SELECT counter_incr(''v'')');
SELECT code FROM complaint('SELECT counter_value(''v'')');
SELECT code FROM complaint('SELECT * FROM counters');
SELECT code FROM complaint('SELECT counterx.compact()');
UPDATE pg_extension SET extversion = '999.0' WHERE extname = 'counterx';
SELECT * FROM complaint('SELECT counter_incr(''v'')');
\x off
UPDATE pg_extension SET extversion = :'version' WHERE extname = 'counterx';
SELECT counter_incr('v');
SELECT counter_value('v');

-- The extension goes while the transaction holds increments: 42704 at its end.
BEGIN;
SELECT counter_incr('gone');
DROP EXTENSION counterx;
COMMIT;
\echo :LAST_ERROR_SQLSTATE
-- That transaction failed as a whole: the extension is still there.
SELECT counter_value('v'), counter_value('gone');
-- Without increments, and with increments that are taken back, dropping is no problem.
BEGIN;
SAVEPOINT s;
SELECT counter_incr('gone');
ROLLBACK TO s;
DROP EXTENSION counterx;
COMMIT;
