-- Where counters are used from: defaults, triggers, COPY, functions, procedures, prepared statements,
-- cursors.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;

-- As a column's default.
CREATE TABLE tickets (number bigint DEFAULT counter_incr_get('tickets'), title text);
INSERT INTO tickets (title) VALUES ('a'), ('b'), ('c');
INSERT INTO tickets (title) SELECT 'more' FROM generate_series(1, 3);
BEGIN;
INSERT INTO tickets (title) VALUES ('taken back');
ROLLBACK;
INSERT INTO tickets (title) VALUES ('d');
SELECT number, title FROM tickets ORDER BY number;
ALTER TABLE tickets ADD COLUMN seen bigint DEFAULT counter_value('tickets');
SELECT DISTINCT seen FROM tickets;

-- Row triggers, statement triggers, and COPY through them.
CREATE TABLE tasks (id int PRIMARY KEY, status text);
CREATE FUNCTION count_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN PERFORM counter_decr('tasks:' || OLD.status); END IF;
    IF TG_OP <> 'DELETE' THEN PERFORM counter_incr('tasks:' || NEW.status); END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER count_tasks AFTER INSERT OR UPDATE OR DELETE ON tasks FOR EACH ROW EXECUTE FUNCTION count_tasks();
CREATE FUNCTION count_statements() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM counter_incr('statements:' || lower(TG_OP));
    RETURN NULL;
END $$;
CREATE TRIGGER count_statements AFTER INSERT OR UPDATE OR DELETE ON tasks FOR EACH STATEMENT EXECUTE FUNCTION count_statements();
COPY tasks FROM STDIN;
1	open
2	open
3	done
\.
-- A COPY that fails counts nothing.
COPY tasks FROM STDIN;
4	open
5	done
1	open
\.
SELECT * FROM counter_list('tasks:');
INSERT INTO tasks SELECT i, 'open' FROM generate_series(10, 109) i;
INSERT INTO tasks VALUES (1, 'x'), (200, 'open') ON CONFLICT (id) DO UPDATE SET status = 'again';
UPDATE tasks SET status = 'done' WHERE id % 2 = 0;
DELETE FROM tasks WHERE id > 100;
SELECT * FROM counter_list('tasks:');
SELECT status, count(*) FROM tasks GROUP BY status ORDER BY status;
SELECT * FROM counter_list('statements:');
-- Deferred constraint triggers run while the transaction commits.
CREATE CONSTRAINT TRIGGER later AFTER INSERT ON tickets DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION count_statements();
CREATE FUNCTION set_later() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM counter_set('last', NEW.number), counter_incr_once('ticket:' || NEW.title, 'once'), counter_drop('dropped');
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER set_later AFTER INSERT ON tickets DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION set_later();
BEGIN;
INSERT INTO tickets (title) VALUES ('e'), ('f'), ('f');
SELECT counter_incr('dropped');
SELECT * FROM counter_values('{statements:insert,last,once,dropped}');
COMMIT;
SELECT * FROM counter_values('{statements:insert,last,once,dropped}');
SELECT name FROM counter_list('dropped');
-- One that fails takes all of it back.
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$;
CREATE CONSTRAINT TRIGGER z_refuse AFTER INSERT ON tickets DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.title = 'no') EXECUTE FUNCTION refuse();
BEGIN;
INSERT INTO tickets (title) VALUES ('no');
COMMIT;
SELECT * FROM counter_values('{statements:insert,last,once,tickets}');
-- A cursor WITH HOLD is run to its end by the commit.
BEGIN;
DECLARE held CURSOR WITH HOLD FOR SELECT counter_incr_get('held', i) FROM generate_series(1, 4) i;
FETCH held;
COMMIT;
SELECT counter_value('held');
FETCH ALL FROM held;
CLOSE held;
SELECT counter_value('held');
-- CREATE TABLE AS, materialized views, RETURNING, VALUES, CASE, WHERE, window, generated series.
CREATE TABLE made AS SELECT i, counter_incr_get('made') AS n FROM generate_series(1, 3) i;
SELECT * FROM made;
CREATE MATERIALIZED VIEW snapshot AS SELECT * FROM counter_top(3, 'tasks:');
SELECT counter_incr('tasks:done', 1000);
SELECT * FROM snapshot;
REFRESH MATERIALIZED VIEW snapshot;
SELECT * FROM snapshot;
WITH ins AS (INSERT INTO made VALUES (4, 0), (5, 0) RETURNING i, counter_incr_get('made', i) AS n) SELECT * FROM ins;
SELECT i, CASE WHEN i % 2 = 0 THEN counter_incr_get('even') END AS even FROM generate_series(1, 4) i;
SELECT count(*) FROM generate_series(1, 10) i WHERE i < 3 AND counter_incr_get('where') > 0;
SELECT counter_value('where');

-- Procedures that commit and roll back in loops, with savepoints in between.
CREATE PROCEDURE loop_over(n int) LANGUAGE plpgsql AS $$
DECLARE
    row record;
BEGIN
    FOR i IN 1 .. n LOOP
        PERFORM counter_incr('loop:all'), counter_incr_once('loop:' || i, 'loop:once');
        BEGIN
            PERFORM counter_incr('loop:even'), counter_set('loop:last', i);
            IF i % 2 = 1 THEN RAISE division_by_zero; END IF;
        EXCEPTION WHEN division_by_zero THEN
            PERFORM counter_incr('loop:odd');
        END;
        IF i % 5 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
        ASSERT counter_value('loop:all') = i - i / 5;
        IF i % 7 = 0 THEN PERFORM counterx.compact(); COMMIT; END IF;
    END LOOP;
    -- A query of it may go over commits.
    FOR row IN SELECT * FROM counter_list('loop:') LOOP
        PERFORM counter_incr('copy:' || row.name, row.value);
        COMMIT;
    END LOOP;
    FOR row IN SELECT name, value FROM counters WHERE name LIKE 'loop:%' ORDER BY name LOOP
        PERFORM counter_drop(row.name);
        COMMIT;
    END LOOP;
END $$;
CALL loop_over(20);
SELECT * FROM counter_list('copy:');
SELECT * FROM counter_list('loop:');
CALL loop_over(20);
SELECT * FROM counter_list('copy:');
-- What a function does counts for the rest of its statement, too; STABLE ones see it.
CREATE FUNCTION bump(text) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    PERFORM counter_incr($1);
    RETURN counter_value($1);
END $$;
SELECT bump('bump'), bump('bump'), counter_value('bump'), counter_incr_get('bump', 10), (SELECT value FROM counters WHERE name = 'bump'), counter_sum('bump');

-- Prepared statements, with generic plans and with custom ones.
SET plan_cache_mode = force_generic_plan;
PREPARE add (text, bigint) AS SELECT counter_incr_get($1, $2);
PREPARE get (text) AS SELECT counter_value($1), (SELECT value FROM counters WHERE name = $1);
PREPARE page (text, text, int) AS SELECT * FROM counter_list($1, $2, $3);
PREPARE best (int, text) AS SELECT * FROM counter_top($1, $2);
PREPARE several (text[]) AS SELECT * FROM counter_values($1);
EXECUTE add ('p:a', 5);
EXECUTE add ('p:b', 7);
EXECUTE add ('p:a', 1);
EXECUTE get ('p:a');
EXECUTE page ('p:', NULL, 10);
EXECUTE page ('p:', 'p:a', 10);
EXECUTE best (1, 'p:');
SELECT counterx.compact() > 0 AS folded;
EXECUTE get ('p:a');
SELECT counterx.create_value_index();
EXECUTE best (1, 'p:');
EXECUTE several ('{p:b,p:c,p:a}');
SELECT counter_drop('p:b');
EXECUTE best (1, 'p:');
EXECUTE page ('p:', 'p:a', 10);
SELECT counterx.compact() > 0 AS folded, counterx.drop_value_index();
EXECUTE best (1, 'p:');
EXECUTE several ('{p:b,p:c,p:a}');
EXECUTE add (NULL, 1);
EXECUTE page (NULL, NULL, 1);
RESET plan_cache_mode;
-- They outlive the extension.
DROP EXTENSION counterx CASCADE;
CREATE EXTENSION counterx;
EXECUTE add ('p:a', 5);
EXECUTE best (3, 'p:');

-- Cursors over what the functions return, held over changes, folds and truncations: as of their start.
SELECT count(counter_incr('c:' || i, i)) FROM generate_series(1, 500) i;
SELECT counterx.compact() > 0 AS folded;
SELECT count(counter_incr('c:' || i, i)) FROM generate_series(1, 500, 2) i;
BEGIN;
DECLARE list CURSOR FOR SELECT name, value FROM counter_list('c:', max_rows => 1000);
DECLARE top SCROLL CURSOR FOR SELECT * FROM counter_top(3, 'c:');
DECLARE single CURSOR FOR SELECT counter_value('c:' || i) FROM generate_series(7, 9) i;
DECLARE everything CURSOR FOR SELECT count(*), sum(value) FROM counters;
FETCH 2 FROM list;
FETCH 1 FROM top;
FETCH 1 FROM single;
COMMIT;
CREATE PROCEDURE fetch_amid_folds() LANGUAGE plpgsql AS $$
DECLARE
    list CURSOR FOR SELECT name, value FROM counter_list('c:', max_rows => 1000);
    row record;
    n int := 0;
    sum numeric := 0;
BEGIN
    -- Held over commits by PL/pgSQL.
    FOR row IN list LOOP
        n := n + 1;
        sum := sum + row.value;
        IF n % 100 = 0 THEN
            PERFORM counter_incr(row.name, 1000000);
            PERFORM counterx.compact();
            COMMIT;
        END IF;
    END LOOP;
    RAISE NOTICE '% counters, sum %', n, sum;
END $$;
CALL fetch_amid_folds();
SELECT counter_sum('c:');
BEGIN;
DECLARE list CURSOR FOR SELECT name, value FROM counter_list('c:', max_rows => 1000);
DECLARE top SCROLL CURSOR FOR SELECT * FROM counter_top(3, 'c:');
FETCH 1 FROM list;
FETCH 1 FROM top;
SELECT counterx.compact() >= 0 AS folded;
SELECT counter_drop('c:10'), counter_set('c:100', 1);
FETCH 2 FROM list;
FETCH 2 FROM top;
FETCH PRIOR FROM top;
COMMIT;

-- Not in a read-only transaction; reading is.
BEGIN READ ONLY;
SELECT * FROM counter_top(1, 'c:9');
SELECT * FROM counter_list('c:9', max_rows => 1);
SELECT * FROM counter_values('{c:9}');
SELECT counter_sum('c:9') > 0 AS positive;
SELECT counter_incr_get('c:9');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT counterx.create_value_index();
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT counterx.drop_value_index();
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
