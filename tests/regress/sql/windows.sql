-- What is read of many counters, those that begin anew and others side by side: lists, sums, ranks, pages, the view. And
-- hits, which another process counts. The clock is set.
\set SHOW_CONTEXT never
SET client_min_messages = warning;
SET timezone = 'UTC';
SET datestyle = 'ISO';
CREATE EXTENSION counterx;
-- Builds for users have no clock that is to be set.
SELECT current_setting('counterx.clock_ahead', true) IS NULL AS no_clock \gset
\if :no_clock
\quit
\endif
CREATE PROCEDURE clock(at timestamptz) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('counterx.clock_ahead', extract(epoch FROM at + interval '20 s' - clock_timestamp())::int::text, false);
END $$;
CALL clock('2030-03-30 12:00+00');
SELECT date_trunc('minute', counterx.reset_window_clock());

-- Types next to each other in the order of names, with and without windows, one the beginning of another.
SELECT counter_type_create('b', per => '1 hour', kept => 1);
SELECT counter_type_create('bb', 0, 100, per => '1 day');
SELECT counter_type_create('d', max => 1000, per => '1 hour', sliding => true);
SELECT counter_type_create('e', max => 1000);
CREATE FUNCTION fill() RETURNS boolean LANGUAGE sql AS $$
    SELECT bool_and(counter_incr_many(jsonb_build_object(t.name || ':' || n.n, n.n)))
    FROM unnest(ARRAY['a', 'b', 'b;', 'bb', 'c', 'd', 'e']) t (name), generate_series(1, 5) n (n)
$$;
SELECT fill(), counter_incr('b', 100), counter_incr('b:', 7), counter_incr('bb:', 8), counter_incr('z'), counter_incr(':');
-- In every list, what is shown is what one asks for by name.
CREATE VIEW differing AS
    SELECT c.name, c.value, counter_value(c.name) AS single FROM counters c WHERE c.value <> counter_value(c.name)
    UNION ALL SELECT l.name, l.value, counter_value(l.name) FROM counter_list(max_rows => 1000) l WHERE l.value <> counter_value(l.name)
    UNION ALL SELECT t.name, t.value, counter_value(t.name) FROM counter_top(1000) t WHERE t.value <> counter_value(t.name)
    UNION ALL SELECT 'sum', s.sum, counter_sum() FROM (SELECT sum(value) FROM counters) s WHERE s.sum <> counter_sum()
    UNION ALL SELECT 'rank ' || t.name, t.rank, counter_rank(t.name) FROM counter_top(1000) t WHERE t.rank <> counter_rank(t.name)
    UNION ALL SELECT 'order', n.number, m.number
        FROM (SELECT name, row_number() OVER (ORDER BY name COLLATE "C") AS number FROM counters) n
        FULL JOIN counter_list(max_rows => 1000) WITH ORDINALITY m (name, value, number) USING (name)
        WHERE n.number IS DISTINCT FROM m.number;
TABLE differing;
SELECT string_agg(name || '=' || value, ' ' ORDER BY name COLLATE "C") FROM counters;
-- The same folded, and with the next windows behind those; half of that folded.
SELECT counterx.compact() > 0 AS folded;
TABLE differing;
CALL clock('2030-03-30 13:00+00');
TABLE differing;
SELECT string_agg(name || '=' || value, ' ' ORDER BY name COLLATE "C") FROM counters;
SELECT counter_incr('b:' || n, 10 * n), counter_incr('d:' || n, -0) FROM generate_series(1, 3) n;
SELECT counterx.compact() > 0 AS folded;
SELECT counter_incr('b:3', 5), counter_incr('b:6', 60), counter_incr('bb:1', 2), counter_incr('d:9', 4);
TABLE differing;
SELECT string_agg(name || '=' || value, ' ' ORDER BY name COLLATE "C") FROM counters;

-- By prefixes that are a type's, begin within one, go over several, are none.
SELECT p.prefix, (SELECT string_agg(l.name || '=' || l.value, ' ' ORDER BY l.ordinality) FROM counter_list(p.prefix) WITH ORDINALITY l) AS list, counter_sum(p.prefix),
    (SELECT string_agg(t.name, ' ' ORDER BY t.rank, t.name) FROM counter_top(2, p.prefix) t) AS top,
    (SELECT string_agg(t.name, ' ' ORDER BY t.rank, t.name) FROM counter_bottom(2, p.prefix) t) AS bottom
FROM unnest(ARRAY['b', 'b:', 'b:3', 'b:33', 'bb', 'bb:', 'b;', 'd:', 'd:1', 'a', 'z', ':', 'none', '']) p (prefix);
SELECT counter_rank('b:3'), counter_rank('b:3', 'b:'), counter_rank('b:3', 'b'), counter_rank('b:3', 'bb'), counter_rank('b:4', 'b:'), counter_rank('bb:', 'bb:'), counter_rank('d:9', 'd');

-- Page after page is the whole, by whatever number of rows, and from names in between.
CREATE FUNCTION pages(prefix text, rows bigint) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    page text[];
    all_pages text[] := '{}';
BEGIN
    LOOP
        SELECT array_agg(l.name ORDER BY l.ordinality) INTO page FROM counter_list(pages.prefix, all_pages[cardinality(all_pages)], rows) WITH ORDINALITY l;
        EXIT WHEN page IS NULL;
        all_pages := all_pages || page;
    END LOOP;
    RETURN array_to_string(all_pages, ' ');
END $$;
CREATE FUNCTION marked_pages(prefix text, rows bigint, up boolean) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    mark record;
    page text[];
    all_pages text[] := '{}';
BEGIN
    SELECT NULL::bigint AS value, NULL::text AS name INTO mark;
    LOOP
        IF up THEN
            SELECT array_agg(l.name ORDER BY l.ordinality) INTO page
                FROM counter_bottom(rows, marked_pages.prefix, mark.value, mark.name) WITH ORDINALITY l (rank, name, value, ordinality);
        ELSE
            SELECT array_agg(l.name ORDER BY l.ordinality) INTO page
                FROM counter_top(rows, marked_pages.prefix, mark.value, mark.name) WITH ORDINALITY l (rank, name, value, ordinality);
        END IF;
        EXIT WHEN page IS NULL;
        all_pages := all_pages || page;
        SELECT counter_value(page[cardinality(page)]) AS value, page[cardinality(page)] AS name INTO mark;
    END LOOP;
    RETURN array_to_string(all_pages, ' ');
END $$;
SELECT p.prefix, n.n, pages(p.prefix, n.n) = (SELECT string_agg(name, ' ' ORDER BY name COLLATE "C") FROM counters WHERE name ^@ p.prefix) AS list,
    marked_pages(p.prefix, n.n, true) = (SELECT string_agg(name, ' ' ORDER BY value, name COLLATE "C" DESC) FROM counters WHERE name ^@ p.prefix) AS bottom,
    marked_pages(p.prefix, n.n, false) = (SELECT string_agg(name, ' ' ORDER BY value DESC, name COLLATE "C") FROM counters WHERE name ^@ p.prefix) AS top
FROM unnest(ARRAY['', 'b', 'b:']) p (prefix), unnest(ARRAY[1, 2, 7, 100]) n (n);
SELECT a.after, (SELECT string_agg(l.name, ' ' ORDER BY l.ordinality) FROM counter_list('b', a.after, 4) WITH ORDINALITY l) AS list
FROM unnest(ARRAY['a', 'b', 'b:', 'b:2', 'b:2x', E'b:\x01', E'b:\x02', 'b:9', 'b9', 'b;', 'bb:', 'bb:1', 'c', 'z']) a (after);
SELECT n.name, (SELECT string_agg(t.name, ' ' ORDER BY t.ordinality) FROM counter_top(3, 'b:', 35, n.name) WITH ORDINALITY t (rank, name, value, ordinality)) AS after_name
FROM unnest(ARRAY['b:0', 'b:2', 'b:3', 'b:9']) n (name);

-- The view, by all conditions that it is sent: each beside the same one that it is not sent.
CREATE FUNCTION found(condition text) RETURNS TABLE (names text, same boolean) LANGUAGE plpgsql AS $$
DECLARE
    sent text;
    kept text;
BEGIN
    EXECUTE format('SELECT string_agg(name || ''='' || value, '' '' ORDER BY name COLLATE "C") FROM counters WHERE %s', found.condition) INTO sent;
    EXECUTE format('WITH c AS MATERIALIZED (SELECT * FROM counters) SELECT string_agg(name || ''='' || value, '' '' ORDER BY name COLLATE "C") FROM c WHERE %s', found.condition) INTO kept;
    RETURN QUERY SELECT sent, sent IS NOT DISTINCT FROM kept;
END $$;
SELECT c.condition, f.* FROM unnest(ARRAY[
    $$name = 'b:3'$$, $$name = 'b:4'$$, $$name = 'bb:'$$, $$name = 'b'$$, $$name = ''$$,
    $$name = ANY (ARRAY['b:3', 'a:1', 'bb:1', 'b:4', 'e:5', 'b:3', NULL])$$, $$name IN ('b:1', 'd:1', 'none')$$,
    $$name LIKE 'b:%'$$, $$name LIKE 'b%'$$, $$name LIKE 'b_:%'$$, $$name LIKE '%:3'$$, $$name LIKE 'b:3'$$, $$name NOT LIKE 'b%'$$, $$name ~ '^b:[12]$'$$,
    $$name ^@ 'b:'$$, $$starts_with(name, 'bb')$$,
    $$name > 'b:2' COLLATE "C" AND name <= 'bb:1' COLLATE "C"$$, $$name >= 'b:' COLLATE "C" AND name < 'b;' COLLATE "C"$$, $$name < 'b:2' COLLATE "C"$$, $$name >= 'bb:' COLLATE "C"$$,
    $$name > 'b:2' COLLATE "C" AND name < 'b:1' COLLATE "C"$$, $$name = 'b:3' AND value > 30$$, $$value > 30$$, $$name LIKE 'b:%' OR name LIKE 'e:%'$$,
    E'name > E''b:\\x01'' COLLATE "C" AND name < ''b;'' COLLATE "C"', E'name < E''b:\\x01'' COLLATE "C"', E'name LIKE E''b:\\x01%'''
    ]) c (condition), found(c.condition) f;
SELECT t.name, t.counters, (SELECT count(*) FROM counters c WHERE c.name ^@ (t.name || ':')) FROM counter_types t ORDER BY t.name;
SELECT c.name, c.value FROM counter_types t JOIN counters c ON c.name LIKE t.name || ':3' ORDER BY c.name;

-- What a transaction has counted itself is in there, rolled back or not.
BEGIN;
SELECT counter_incr('b:3', 1000), counter_incr('b:own', 1), counter_drop('b:1'), counter_set('d:9', 50), counter_incr('e:own', 2);
TABLE differing;
SELECT string_agg(name || '=' || value, ' ' ORDER BY name COLLATE "C") FROM counters WHERE name LIKE 'b:%' OR name LIKE 'd:%';
SAVEPOINT s;
CALL clock('2030-03-30 14:00+00');
SELECT counter_incr('b:3', 7), counter_incr('b:own', 1);
TABLE differing;
SELECT string_agg(name || '=' || value, ' ' ORDER BY name COLLATE "C") FROM counters WHERE name LIKE 'b%:%' OR name LIKE 'd:%';
ROLLBACK TO s;
TABLE differing;
ROLLBACK;
-- (An hour later by now, whatever was rolled back.)
SELECT string_agg(name || '=' || value, ' ' ORDER BY name COLLATE "C") FROM counters WHERE name LIKE 'b:%' OR name LIKE 'd:%';
SELECT * FROM counter_windows('b:3');
SELECT * FROM counter_windows('b:1');

-- A list in a transaction that goes by one snapshot shows one time.
SELECT counter_incr('b:3', 3), counter_incr('d:3', 3);
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT name, value FROM counters WHERE name IN ('b:3', 'd:3') ORDER BY name;
CALL clock('2030-03-30 15:00+00');
SELECT name, value FROM counters WHERE name IN ('b:3', 'd:3') ORDER BY name;
SELECT name, value FROM counter_list('b:');
SELECT counter_sum('b:'), counter_rank('b:3', 'b:'), counter_rank('b:4', 'b:');
SELECT name, value FROM counter_top(5, 'b:');
TABLE differing;
COMMIT;
SELECT name, value FROM counter_list('b:');

-- The index on values has the totals of all windows.
SELECT counterx.create_value_index();
CALL clock('2030-03-30 16:00+00');
SELECT fill(), counterx.compact() > 0 AS folded;
SELECT counter_incr('b:2', 90);
SELECT count(counter_incr('bulk:' || n, 1000 + n)) FROM generate_series(1, 300) n WHERE counterx.compact() >= 0;
SELECT name, value FROM counter_top(4);
SELECT name, value FROM counter_top(4, 'b:');
SELECT name, value FROM counter_top(4, 'b');
SELECT name, value FROM counter_bottom(4, 'b');
CALL clock('2030-03-30 17:00+00');
SELECT name, value FROM counter_top(4, 'b:');
SELECT name, value FROM counter_bottom(3, 'b');
TABLE differing;
SELECT counterx.drop_value_index();

-- Hits are counted by another process, by its own clock.
RESET counterx.clock_ahead;
SELECT count(counterx.reset_window_clock());
SELECT counter_type_create('hit', max => 3, per => '1 month', time_zone => 'Europe/Berlin');
SELECT counter_type_create('free', per => '1 month');
SELECT counter_type_create('seen', max => 2, per => '1 month', count_refused => true);
-- A month ends when it does: all of this is within one, or is done again.
CREATE TABLE answers (call text, answer text);
CREATE PROCEDURE hit() LANGUAGE plpgsql AS $$
DECLARE
    month timestamptz;
    call text;
    answer text;
BEGIN
    LOOP
        SELECT ends_at INTO month FROM counter_window('hit:a');
        DELETE FROM answers;
        PERFORM counter_drop(name) FROM counters WHERE name LIKE 'hit:%' OR name LIKE 'free:%' OR name LIKE 'seen:%';
        COMMIT;
        FOREACH call IN ARRAY ARRAY[$q$counter_hit('hit:a', 2)$q$, $q$counter_hit('hit:a', 2)$q$, $q$counter_try_hit('hit:a')$q$, $q$counter_try_hit('hit:a')$q$,
            $q$counter_hit('hit:b', 1, wait => false)$q$, $q$counter_hit('free:a', 5)$q$, $q$counter_hit('free:b', 5, wait => false)$q$, $q$counter_hit('free:b', 5)$q$,
            $q$counter_hit_many('{"hit:c": 1, "free:c": 1, "plain:c": 1}')$q$, $q$counter_hit_many('{"hit:d": 4, "free:d": 1}')$q$,
            $q$counter_try_hit('seen:a')$q$, $q$counter_try_hit('seen:a')$q$, $q$counter_try_hit('seen:a')$q$, $q$counter_try_hit('seen:a', 3)$q$, $q$counter_hit('seen:a', 3)$q$,
            $q$counter_hit(E'hit:\x01')$q$, $q$counter_hit('hit:' || repeat('n', 240))$q$, $q$counter_try_hit('hit:a', -1)$q$]
        LOOP
            BEGIN
                EXECUTE 'SELECT ' || call INTO answer;
            EXCEPTION WHEN OTHERS THEN
                answer := SQLSTATE || ' ' || SQLERRM;
            END;
            INSERT INTO answers VALUES (call, answer);
            COMMIT;
        END LOOP;
        EXIT WHEN month = (SELECT ends_at FROM counter_window('hit:a'));
    END LOOP;
END $$;
CALL hit();
SELECT * FROM answers;
SELECT name, value FROM counters WHERE name LIKE 'hit:%' OR name LIKE 'free:%' OR name LIKE 'seen:%' ORDER BY name;

DROP VIEW differing;
DROP EXTENSION counterx;
