-- Hits count by themselves, whatever becomes of the transaction.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;

-- From SQL, with and without arguments.
SELECT counter_hit('views');
SELECT counter_hit('views', 10), counter_hit('views', -1, wait => true);
SELECT counter_hit(name => 'views', delta => 0);
SELECT counter_value('views');
SELECT count(counter_hit('page:' || n % 3, n)) FROM generate_series(1, 30) n;
SELECT * FROM counter_list('page:');

-- A rollback, or one to a savepoint, does not take it back. The next statement sees it.
BEGIN;
SELECT counter_hit('attempts');
SELECT counter_value('attempts');
SELECT counter_incr('attempts', 100);
SELECT counter_value('attempts');
ROLLBACK;
SELECT counter_value('attempts');
BEGIN;
SAVEPOINT try;
SELECT counter_hit('attempts');
SELECT counter_incr('attempts', 100);
ROLLBACK TO try;
SELECT counter_hit('attempts');
COMMIT;
SELECT counter_value('attempts');

-- A transaction with one snapshot does not see it; nor is it in anybody's way.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT counter_value('attempts');
SELECT counter_hit('attempts');
SELECT counter_value('attempts');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT counter_hit('attempts');
SELECT counter_incr('attempts', 10);
COMMIT;
SELECT counter_value('attempts');

-- Without waiting. What waits comes later, so all is counted by then.
SELECT count(counter_hit('silent', wait => false)) FROM generate_series(1, 5000);
SELECT counter_hit('silent', 0);
SELECT counter_value('silent');
SET synchronous_commit = off;
SELECT counter_hit('silent');
RESET synchronous_commit;
SELECT counter_value('silent');

-- From PL/pgSQL, in an exception block and in a trigger of a transaction that fails.
DO $$
BEGIN
    PERFORM counter_hit('block');
    RAISE division_by_zero;
EXCEPTION WHEN division_by_zero THEN
    PERFORM counter_hit('block');
END
$$;
CREATE TABLE login (who text, ok boolean);
CREATE FUNCTION count_login() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM counter_hit('login:' || NEW.who);
    IF NOT NEW.ok THEN
        RAISE EXCEPTION 'wrong password';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER count_login BEFORE INSERT ON login FOR EACH ROW EXECUTE FUNCTION count_login();
INSERT INTO login VALUES ('ada', true);
INSERT INTO login VALUES ('ada', false);
SELECT counter_values(ARRAY['block', 'login:ada']);
CREATE FUNCTION count_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM counter_hit('late');
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER count_late AFTER INSERT ON login DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION count_late();
INSERT INTO login VALUES ('bob', true);
SELECT counter_value('late');

-- Prepared statements, and cursors.
PREPARE hit AS SELECT counter_hit($1, $2);
EXECUTE hit('prepared', 2);
EXECUTE hit('prepared', 3);
BEGIN;
DECLARE c CURSOR FOR SELECT counter_hit('fetched') FROM generate_series(1, 10);
FETCH 3 FROM c;
ROLLBACK;
SELECT * FROM counter_values(ARRAY['prepared', 'fetched']);

-- Many counters in one commit, or none of them.
SELECT counter_hit_many('{"many:a": 1, "many:b": 20}');
SELECT counter_hit_many('{"many:a": -1, "many:b": 1, "many:c": 0}', wait => false);
SELECT counter_hit_many('{}'), counter_hit_many(NULL);
BEGIN;
SELECT counter_hit_many(jsonb_object_agg('many:' || n, n)) FROM generate_series(1, 500) n;
ROLLBACK;
SELECT * FROM counter_list('many:', max_rows => 5);
SELECT counter_sum('many:');

-- Bounded counters.
SELECT counter_type_create('quota', min => 0, max => 5);
SELECT counter_try_hit('quota:a', 3), counter_try_hit('quota:a', 3), counter_try_hit('quota:a', 2);
SELECT counter_hit('quota:a', 1);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_try_hit('quota:a', -6), counter_try_hit('quota:a', -5);
SELECT counter_hit('quota:a', -1);
SELECT counter_try_hit('free', 1), counter_value('free');
SELECT counter_hit_many('{"free": 1, "quota:a": 1, "quota:b": 6}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_values(ARRAY['free', 'quota:a', 'quota:b']);
SELECT counter_hit_many('{"free": 1, "quota:a": 1, "quota:b": 5}');
SELECT counter_values(ARRAY['free', 'quota:a', 'quota:b']);
SELECT counter_hit_many('{"quota:a": -1, "quota:b": -5}');
-- What a transaction has reserved is not there for its own hit.
BEGIN;
SELECT counter_try_incr('quota:a', 4), counter_try_hit('quota:a', 4), counter_try_hit('quota:a', 1);
ROLLBACK;
SELECT counter_value('quota:a');

-- Numbers that no transaction can add up.
SELECT counter_hit('big', 9223372036854775807), counter_hit('big', 9223372036854775807);
SELECT value FROM counters WHERE name = 'big';

-- Mistakes.
SELECT counter_hit(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hit('');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hit(repeat('x', 256));
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hit('a', NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hit('a', wait => NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_try_hit(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_try_hit('a', NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hit('quota:a', 1, wait => false);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hit_many('{"free": 1, "quota:a": 1}', wait => false);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hit_many('{"a": 1, "": 1}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hit_many('{"a": 1, "b": null}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hit_many('{"a": 1, "b": 1.5}');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hit_many('["a"]');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hit_many('{"a": 1}', wait => NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_hit_many(jsonb_object_agg('a' || n, n)) FROM generate_series(1, 513) n;
\echo :LAST_ERROR_SQLSTATE
SELECT counter_values(ARRAY['a', 'a1', 'b']);
BEGIN READ ONLY;
SELECT counter_hit_many('{"a": 1}');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT counter_hit('a');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT counter_try_hit('a');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
SELECT counter_type_create('limit', max => 3);
SELECT counter_hit('a');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
SELECT counter_type_create('limit', max => 3);
SELECT counter_hit('a', wait => false);
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SELECT counter_value('a');

-- In parallel plans they are not run in workers.
SELECT proname, provolatile, proparallel, proisstrict FROM pg_proc
WHERE proname IN ('counter_hit', 'counter_hit_many', 'counter_try_hit') ORDER BY proname;

-- Names of all sizes, and deltas of all sorts.
SELECT counter_hit(repeat('x', 255), -9223372036854775808);
SELECT length(name), value FROM counters WHERE name LIKE 'xx%';

-- The next transaction of this session is none the worse for it.
SELECT counter_incr('views');
SELECT counter_value('views');
DROP EXTENSION counterx CASCADE;
SELECT counter_hit('a');
CREATE EXTENSION counterx;
SELECT counter_hit('a');
SELECT counter_value('a');
