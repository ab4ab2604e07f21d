-- Set, reset, drop, rename and merge in transactions that write early, and at random against plain SQL.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
SET counterx.pending_work_mem = '64kB';
CREATE FUNCTION long_name(i bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT 'many:' || i || repeat('.', 180) $$;
SELECT count(counter_incr(long_name(i), i)) FROM generate_series(1, 1000) i;
SELECT counterx.compact();
SELECT count(counter_incr(long_name(i), 10)) FROM generate_series(501, 1500) i;

-- Half is written already when each of these comes; all of it counts.
BEGIN;
SELECT count(counter_incr(long_name(i), 100)) FROM generate_series(1, 2000) i;
SELECT count(*), sum(value) FROM counters;
SELECT sum(counter_set(long_name(i), 1)) FROM generate_series(1, 2000, 2) i;
SELECT count(*), sum(value) FROM counters;
SELECT sum(counter_reset(long_name(i))) FROM generate_series(2, 2000, 2) i;
SELECT count(*), sum(value) FROM counters;
SAVEPOINT a;
SELECT count(*) FILTER (WHERE counter_drop(long_name(i))) FROM generate_series(1, 2500) i;
SELECT count(*), sum(value) FROM counters;
SELECT count(*) FILTER (WHERE counter_drop(long_name(i))) FROM generate_series(1, 2500) i;
ROLLBACK TO a;
SELECT count(*), sum(value) FROM counters;
SELECT count(*) FILTER (WHERE counter_drop(long_name(i))) FROM generate_series(1, 2000, 3) i;
SELECT count(counter_incr(long_name(i), 3)) FROM generate_series(1, 2000, 6) i;
SAVEPOINT b;
SELECT count(counter_rename(long_name(i), 'renamed:' || long_name(i))) FROM generate_series(1, 2000, 6) i;
SELECT count(counter_merge(long_name(i + 1), long_name(i))) FROM generate_series(2, 1999, 3) i;
RELEASE b;
SELECT count(*), sum(value) FROM counters;
SELECT split_part(name, ':', 1) AS kind, count(*), sum(value) FROM counters GROUP BY 1 ORDER BY 1;
COMMIT;
SELECT split_part(name, ':', 1) AS kind, count(*), sum(value) FROM counters GROUP BY 1 ORDER BY 1;
SELECT counterx.compact() > 0 AS folded;
SELECT split_part(name, ':', 1) AS kind, count(*), sum(value) FROM counters GROUP BY 1 ORDER BY 1;
SELECT count(*), sum(value), min(uses) > 0 AS used FROM counterx.total;
-- All dropped, and written early: nothing stays in the totals.
SELECT count(*) FILTER (WHERE counter_drop(name)) FROM counters;
SELECT count(*) FROM counters;
SELECT counterx.compact() > 0 AS folded;
SELECT count(*) FROM counterx.total;

-- At random: what a table of plain rows goes through in the same transactions, savepoints and
-- rollbacks included. Folds come between transactions, and now and then within.
CREATE TABLE model (name text COLLATE "C" PRIMARY KEY, value bigint NOT NULL);
CREATE TABLE done (what text PRIMARY KEY, times bigint NOT NULL);
CREATE FUNCTION add_to_model(counter text, delta bigint) RETURNS void LANGUAGE sql AS $$
    INSERT INTO model VALUES (counter, delta) ON CONFLICT (name) DO UPDATE SET value = model.value + delta
$$;
CREATE FUNCTION differences() RETURNS TABLE (name text, value numeric, should bigint) LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(c.name, m.name), c.value, m.value
    FROM counters c FULL JOIN model m ON m.name = c.name
    WHERE c.value IS DISTINCT FROM m.value OR counter_value(coalesce(c.name, m.name)) <> coalesce(m.value, 0)
$$;
CREATE FUNCTION step() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    op text := (ARRAY['incr', 'incr', 'decr', 'many', 'set', 'reset', 'drop', 'drop', 'rename', 'merge', 'get', 'bulk'])[1 + floor(random() * 12)];
    a text := 'n' || floor(random() * 12);
    b text := 'n' || floor(random() * 12);
    n bigint := floor(random() * 200) - 100;
    was bigint := (SELECT value FROM model WHERE name = a);
    answer bigint;
BEGIN
    CASE op
        WHEN 'incr' THEN PERFORM counter_incr(a, n); PERFORM add_to_model(a, n);
        WHEN 'decr' THEN PERFORM counter_decr(a, n); PERFORM add_to_model(a, -n);
        WHEN 'get' THEN
            PERFORM add_to_model(a, n);
            answer := counter_incr_get(a, n);
            ASSERT answer = coalesce(was, 0) + n;
        WHEN 'many' THEN
            PERFORM counter_incr_many(ARRAY[a, b, a], ARRAY[n, 1, 2]);
            PERFORM add_to_model(a, n + 2); PERFORM add_to_model(b, 1);
        WHEN 'bulk' THEN
            -- So much that all before it is written.
            PERFORM counter_incr(long_name(i), 1) FROM generate_series(1, 400) i WHERE i % 4 = 0 OR n > 50;
            PERFORM counter_drop(long_name(i)) FROM generate_series(1, 400) i;
        WHEN 'set' THEN
            answer := counter_set(a, n);
            ASSERT answer = coalesce(was, 0);
            PERFORM add_to_model(a, n - coalesce(was, 0));
        WHEN 'reset' THEN
            answer := counter_reset(a);
            ASSERT answer = coalesce(was, 0);
            UPDATE model SET value = 0 WHERE name = a;
        WHEN 'drop' THEN
            ASSERT counter_drop(a) = (was IS NOT NULL);
            DELETE FROM model WHERE name = a;
        WHEN 'rename' THEN
            PERFORM counter_rename(a, b);
            ASSERT was IS NOT NULL;
            UPDATE model SET name = b WHERE name = a;
        WHEN 'merge' THEN
            PERFORM counter_merge(b, a);
            ASSERT was IS NOT NULL;
            DELETE FROM model WHERE name = a;
            PERFORM add_to_model(b, was);
    END CASE;
    INSERT INTO done VALUES (op, 1) ON CONFLICT (what) DO UPDATE SET times = done.times + 1;
EXCEPTION
    -- Of renames and merges.
    WHEN undefined_object THEN ASSERT was IS NULL;
    WHEN duplicate_object THEN ASSERT EXISTS (SELECT FROM model WHERE name = b);
    WHEN invalid_parameter_value THEN ASSERT a = b;
END $$;
CREATE FUNCTION some_steps(depth int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. floor(random() * 5) LOOP
        PERFORM step();
        ASSERT NOT EXISTS (SELECT FROM differences());
        IF depth < 4 AND random() < 0.4 THEN
            BEGIN
                PERFORM some_steps(depth + 1);
                IF random() < 0.4 THEN
                    RAISE EXCEPTION USING ERRCODE = 'ZZ000';
                END IF;
            EXCEPTION WHEN SQLSTATE 'ZZ000' THEN
                NULL;
            END;
            ASSERT NOT EXISTS (SELECT FROM differences());
        END IF;
    END LOOP;
END $$;
CREATE PROCEDURE at_random(transactions int) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. transactions LOOP
        PERFORM some_steps(1);
        IF random() < 0.2 THEN ROLLBACK; ELSE COMMIT; END IF;
        ASSERT NOT EXISTS (SELECT FROM differences());
        IF random() < 0.3 THEN
            PERFORM counterx.compact();
            IF random() < 0.3 THEN
                IF random() < 0.5 THEN PERFORM step(); END IF;
                ROLLBACK;
            ELSE
                IF random() < 0.3 THEN PERFORM some_steps(1); END IF;
                COMMIT;
            END IF;
            ASSERT NOT EXISTS (SELECT FROM differences());
        END IF;
    END LOOP;
END $$;
SELECT setseed(0.42);
CALL at_random(150);
SELECT count(*) AS kinds, bool_and(times > 3) AS all_of_them FROM done;
SELECT counterx.compact() >= 0 AS folded;
SELECT count(*) FROM differences();
SELECT name, t.value, m.value, t.uses FROM counterx.total t FULL JOIN model m USING (name) WHERE t.value IS DISTINCT FROM m.value OR t.uses <= 0;
-- The comparison can fail.
UPDATE model SET value = value + 1 WHERE name = (SELECT min(name) FROM model);
SELECT count(*) FROM differences();
