-- Many counters at once: counter_values in the order asked, counter_list page by page.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
SELECT * FROM counter_list();
SELECT * FROM counter_values('{}');
SELECT * FROM counter_values('{nothing}');
SELECT counter_incr_many('{"b:2": 2, "b:1": 1, "a": 5, "c": -3, "zero": 0, "b:10": 10}');
SELECT counterx.compact();
SELECT counter_incr_many('{"b:3": 3, "b:1": 100, "d": 4}');
BEGIN;
SELECT counter_incr_many('{"b:2": 1000, "own": 1}');

-- In the order asked, as often as asked, 0 for what is not there.
SELECT * FROM counter_values(ARRAY['c', 'b:2', 'unknown', 'a', 'b:1', 'c', 'own', 'b:3']);
SELECT name, value, ordinality FROM counter_values(ARRAY['b:1', 'a']) WITH ORDINALITY;
SELECT sum(value) FROM counter_values(ARRAY['b:1', 'b:2', 'b:3']);
-- By the bytes of their names; all, a page, what comes after.
SELECT * FROM counter_list();
SELECT * FROM counter_list('b:');
SELECT * FROM counter_list('b:', max_rows => 2);
SELECT * FROM counter_list('b:', 'b:10', 2);
SELECT * FROM counter_list('b:', 'b:3');
SELECT * FROM counter_list(after => 'c', max_rows => 2);
SELECT * FROM counter_list('b:', after => 'a');
SELECT * FROM counter_list('b:', after => 'c');
SELECT * FROM counter_list('b:', after => 'b:1x');
SELECT * FROM counter_list(after => '', max_rows => 1);
SELECT * FROM counter_list(after => repeat('b', 300), max_rows => 1);
SELECT * FROM counter_list('nothing');
SELECT * FROM counter_list(repeat('x', 300));
SELECT * FROM counter_list('b:', max_rows => 0);
SELECT count(*) FROM counter_list(max_rows => 2147483647);
-- A counter that is taken back by the transaction is not listed; its value is 0.
SELECT counter_drop('b:2'), counter_drop('own');
SELECT * FROM counter_list('b:', max_rows => 3);
SELECT * FROM counter_values('{b:2,own}');
ROLLBACK;
-- As any table function: joined, in LATERAL, with LIMIT, in a subquery, as a column.
SELECT p, l.* FROM unnest(ARRAY['a', 'b:1', 'none']) p LEFT JOIN LATERAL counter_list(p) l ON true;
SELECT * FROM counter_list() LIMIT 1;
SELECT (counter_list('b:')).name;
SELECT name FROM counter_list() l WHERE EXISTS (SELECT FROM counter_values(ARRAY[l.name]) v WHERE v.value > 5) ORDER BY name DESC;

-- No names, as array_agg() makes it of no rows.
SELECT * FROM counter_values(NULL);

-- Errors.
SELECT * FROM counter_values(ARRAY['a', NULL]);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM counter_values(ARRAY['a', '']);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM counter_values(ARRAY[repeat('x', 256)]);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM counter_values(ARRAY[['a'], ['b:1']]);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM counter_list(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM counter_list(max_rows => NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM counter_list(max_rows => -1);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM counter_list(max_rows => -2147483648);
\echo :LAST_ERROR_SQLSTATE

-- A prefix is no pattern, and is one of bytes: half a character matches none.
SELECT counter_drop(name) FROM counters;
SELECT counter_incr(n) FROM unnest(ARRAY['%', '%a', '_', '_a', 'x%y', 'x_y', 'xyy', '\', '\%',
    'ä', 'äa', 'ö', 'Ã', E'\U0010FFFF', E'\U0010FFFFa', E'\U0010FFFE', E'\x7F', 'é', E'e\u0301', 'E']) n;
SELECT string_agg(quote_literal(name), ' ') FROM counter_list('%');
SELECT string_agg(quote_literal(name), ' ') FROM counter_list('_');
SELECT string_agg(quote_literal(name), ' ') FROM counter_list('x%');
SELECT string_agg(quote_literal(name), ' ') FROM counter_list('x_');
SELECT string_agg(quote_literal(name), ' ') FROM counter_list('\');
SELECT string_agg(quote_literal(name), ' ') FROM counter_list('ä');
SELECT string_agg(quote_literal(name), ' ') FROM counter_list('e');
SELECT count(*) FROM counter_list(E'\U0010FFFF');
SELECT count(*) FROM counter_list(E'\x7F');
SELECT count(*) FROM counter_list(after => E'\U0010FFFF');
-- For every prefix that there is, the same as plain SQL; pending and folded.
CREATE FUNCTION differences() RETURNS TABLE (prefix text, listed text, should text) LANGUAGE sql VOLATILE AS $$
    SELECT p, l.names, s.names
    FROM (SELECT DISTINCT left(name, n) AS p FROM counters, generate_series(0, 3) n) prefixes
    CROSS JOIN LATERAL (SELECT string_agg(name || '=' || value, ' ') AS names FROM counter_list(p, max_rows => 1000000)) l
    CROSS JOIN LATERAL (SELECT string_agg(name || '=' || value, ' ' ORDER BY name COLLATE "C") AS names FROM counters WHERE starts_with(name, p)) s
    WHERE l.names IS DISTINCT FROM s.names
$$;
SELECT * FROM differences();
SELECT counterx.compact();
SELECT * FROM differences();

-- Walked to the end by pages of any size, it is the view: with counters that are folded, pending,
-- both, dropped and not folded, dropped and made again, and in the own transaction.
CREATE FUNCTION walk(prefix text, page_rows int) RETURNS TABLE (name text, value bigint) LANGUAGE plpgsql STABLE AS $$
DECLARE
    last text;
    page record;
BEGIN
    LOOP
        FOR page IN SELECT * FROM counter_list(prefix, last, page_rows) LOOP
            name := page.name;
            value := page.value;
            RETURN NEXT;
        END LOOP;
        EXIT WHEN name IS NOT DISTINCT FROM last;
        last := name;
    END LOOP;
END $$;
-- In the order of the walk.
CREATE FUNCTION walks_differ() RETURNS TABLE (prefix text, page_rows int) LANGUAGE sql STABLE AS $$
    SELECT p, n
    FROM unnest(ARRAY['', 'w:1', 'w:99', 'nothing']) p, unnest(ARRAY[2, 7, 100, 5000]) n
    WHERE (SELECT array_agg((w.name, w.value)::text) FROM walk(p, n) w)
        IS DISTINCT FROM (SELECT array_agg((c.name, c.value)::text ORDER BY c.name) FROM counters c WHERE starts_with(c.name, p))
$$;
SELECT counter_drop(name) FROM counters;
SELECT count(counter_incr('w:' || i, i)) FROM generate_series(1, 1000) i;
SELECT * FROM walks_differ();
SELECT counterx.compact() > 0 AS folded;
SELECT * FROM walks_differ();
SELECT count(counter_incr('w:' || i, 5)) FROM generate_series(900, 1100) i;
SELECT count(counter_drop('w:' || i)) FROM generate_series(1, 1000) i WHERE i % 3 = 0 OR i > 980;
SELECT count(counter_incr('w:' || i, 2)) FROM generate_series(1, 1000) i WHERE i % 9 = 0;
SELECT count(*), sum(value) FROM counters;
SELECT * FROM walks_differ();
BEGIN;
SELECT count(counter_incr('w:own:' || i, 2)), count(counter_incr('w:1', 2)), count(counter_drop('w:' || i)), count(counter_reset('w:' || i + 500)) FROM generate_series(100, 130) i;
SELECT * FROM walks_differ();
ROLLBACK;
SELECT counterx.compact() > 0 AS folded;
SELECT count(*), sum(value) FROM counters;
SELECT * FROM walks_differ();
-- All of a page's candidates are dropped: it reads on to the end.
SELECT count(counter_drop(name)) FROM counters WHERE name < 'w:9';
SELECT * FROM counter_list(max_rows => 2);
SELECT * FROM walks_differ();
SELECT count(counter_drop(name)) FROM counters;
SELECT * FROM counter_list(max_rows => 2);
SELECT * FROM walks_differ();
SELECT counterx.compact() > 0 AS folded;
SELECT count(*) FROM counterx.total;

-- Who walks while counters come, go and are folded sees all that are there all the time, each once
-- and in order.
SELECT count(counter_incr('k:' || lpad(i::text, 4, '0'), i)) FROM generate_series(0, 998, 2) i;
CREATE TABLE walked (place int GENERATED ALWAYS AS IDENTITY, name text COLLATE "C", value bigint);
CREATE PROCEDURE walk_amid_changes() LANGUAGE plpgsql AS $$
DECLARE
    last text;
    rows int;
    pages int := 0;
BEGIN
    LOOP
        INSERT INTO walked (name, value) SELECT * FROM counter_list('k:', last, 30);
        GET DIAGNOSTICS rows = ROW_COUNT;
        EXIT WHEN rows = 0;
        SELECT max(w.name) INTO last FROM walked w;
        COMMIT;
        -- New ones before and behind; some of them go again.
        PERFORM counter_incr('k:' || lpad((pages * 37 % 500 * 2 + 1)::text, 4, '0'));
        PERFORM counter_incr('k:' || lpad((pages * 91 % 500 * 2 + 1)::text, 4, '0'));
        PERFORM counter_drop('k:' || lpad((pages * 74 % 500 * 2 + 1)::text, 4, '0'));
        COMMIT;
        IF pages % 3 = 0 THEN
            PERFORM counterx.compact();
            COMMIT;
        END IF;
        pages := pages + 1;
    END LOOP;
END $$;
CALL walk_amid_changes();
SELECT count(*) FILTER (WHERE substring(name FROM 3)::int % 2 = 0) AS even, count(DISTINCT name) = count(*) AS once,
    bool_and(value = substring(name FROM 3)::int) FILTER (WHERE substring(name FROM 3)::int % 2 = 0) AS exact
FROM walked;
SELECT count(*) FROM (SELECT name > lag(name) OVER (ORDER BY place) AS ascending FROM walked) s WHERE NOT ascending;

-- Few names among many pending deltas are looked up, many are found in passing: in both logs, in several
-- epochs, with folds that were rolled back, and under the names' own transaction.
CREATE PROCEDURE count_often(times int) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. times LOOP
        PERFORM counter_incr('v:' || i % 10, 1), counter_incr('v:' || i % 7, 100), counter_incr('v:' || i || repeat('.', 200));
        COMMIT;
        IF i % 100 = 0 THEN
            PERFORM counterx.compact();
            IF i % 200 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
        END IF;
    END LOOP;
END $$;
CALL count_often(1050);
SELECT sum(pending_deltas) > 300 AS many_pending FROM counterx.lanes;
CREATE FUNCTION values_differ() RETURNS TABLE (names_asked bigint) LANGUAGE sql STABLE AS $$
    SELECT n
    FROM (VALUES (1), (2), (5), (50), (500), (5000)) s(n)
    CROSS JOIN LATERAL (SELECT array_agg(name) AS names FROM (SELECT name FROM counter_list('v:', max_rows => 10) UNION ALL SELECT name FROM counters WHERE name LIKE 'v:%.' ORDER BY name LIMIT n) a(name)) many
    CROSS JOIN LATERAL (SELECT (names)[:n] AS names) asked
    WHERE (SELECT array_agg((v.name, v.value)::text ORDER BY v.ordinality) FROM counter_values(asked.names || '{none}') WITH ORDINALITY v)
        IS DISTINCT FROM (SELECT array_agg((u.name, counter_value(u.name))::text ORDER BY u.ordinality) FROM unnest(asked.names || '{none}') WITH ORDINALITY u(name))
$$;
SELECT * FROM values_differ();
SELECT * FROM counter_values('{v:0,v:6,v:9}');
BEGIN;
SELECT counter_incr('v:0', 1000000), counter_drop('v:6'), counter_set('v:9', -1);
SELECT * FROM values_differ();
SELECT * FROM counter_values('{v:0,v:6,v:9}');
COMMIT;
SELECT * FROM values_differ();
