-- The greatest and the least counters, and sums.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
SELECT * FROM counter_top();
SELECT * FROM counter_bottom();
SELECT counter_sum(), counter_sum('a');
SELECT counter_incr_many('{"a": 10, "b": 7, "c": 7, "d": 7, "e": 0, "f": -3, "g": -3, "other:h": 8, "other:i": 7}');
-- Equal values share a rank and leave a gap; top lists them by name, bottom is the exact reverse.
SELECT * FROM counter_top();
SELECT * FROM counter_bottom();
SELECT * FROM counter_top(3);
SELECT * FROM counter_bottom(3);
SELECT * FROM counter_top(2, 'other:');
SELECT * FROM counter_bottom(1, prefix => 'other:');
SELECT * FROM counter_top(0);
SELECT * FROM counter_bottom(0, 'other:');
SELECT * FROM counter_top(5, 'nothing');
SELECT count(*) FROM counter_top(2147483647);
SELECT counter_sum(), counter_sum('other:'), counter_sum('f'), counter_sum('nothing'), counter_sum(repeat('x', 300));
-- The same from totals, and from both.
SELECT counterx.compact();
SELECT * FROM counter_top();
SELECT * FROM counter_bottom(4);
-- What is pending moves counters up and down, past the others; dropped ones are out.
SELECT counter_incr_many('{"a": -15, "f": 20, "new": 7, "c": 1}'), counter_drop('b');
SELECT * FROM counter_top();
SELECT * FROM counter_bottom(3);
BEGIN;
SELECT counter_incr_many('{"g": 100, "own": 9}'), counter_drop('f'), counter_set('d', -50);
SELECT * FROM counter_top(4);
SELECT * FROM counter_bottom(4);
SELECT counter_sum(), (SELECT sum(value) FROM counters);
ROLLBACK;
SELECT * FROM counter_top(2);
-- After a place: the ranks go on, ties too; what stands at the place is left out.
SELECT * FROM counter_top(2, after_value => 7, after_name => 'c');
SELECT * FROM counter_top(3, after_value => 7);
SELECT * FROM counter_top(2, 'other:', 8, 'other:h');
SELECT * FROM counter_bottom(3, after_value => -3, after_name => 'g');
SELECT * FROM counter_bottom(2, after_value => -3);
SELECT * FROM counter_top(10, after_value => -1000), counter_bottom(10, after_value => 1000);
-- After a counter, wherever it is; one that does not exist is at 0.
SELECT * FROM counter_top(2, after_name => 'other:h');
SELECT * FROM counter_bottom(2, after_name => 'other:h');
SELECT * FROM counter_top(1, after_name => 'nobody');
SELECT * FROM counter_top(1, after_name => repeat('x', 300));
SELECT * FROM counter_top(1, 'other:', after_name => 'f');
SELECT * FROM counter_top(1, after_value => 8, after_name => '');
-- Ranks of single counters; of those that are not there, none.
SELECT name, counter_rank(name), counter_rank(name, 'other:') FROM counters ORDER BY value DESC, name;
SELECT counter_rank('nobody'), counter_rank('nobody', 'no'), counter_rank('a', 'a'), counter_rank('a', repeat('x', 300));
-- A sum has no limit. A value beyond a bigint is null where there are others: it keeps its place, and
-- theirs are shown.
BEGIN;
SELECT counter_incr_many(ARRAY['huge:1', 'huge:2'], ARRAY[9223372036854775807, 9223372036854775807]);
SELECT counter_sum('huge:'), counter_sum();
SELECT * FROM counter_top(2);
COMMIT;
SELECT counter_incr('huge:2');
SELECT * FROM counter_bottom(3);
SELECT * FROM counter_top(3);
SELECT * FROM counter_top(1, 'huge:1');
SELECT * FROM counter_top(2, after_name => 'huge:2');
SELECT * FROM counter_list('huge:'), counter_values('{huge:2,huge:1}') v;
SELECT counter_rank('huge:2'), counter_rank('huge:1');
SELECT counter_value('huge:2');
\echo :LAST_ERROR_SQLSTATE
SELECT counter_sum('huge:');
-- Errors.
SELECT * FROM counter_top(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM counter_top(-1);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM counter_bottom(10, NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM counter_bottom(-2147483648);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_rank(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_rank('a', NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_sum(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT counter_decr('huge:2', 9223372036854775800);
SELECT count(counter_drop(name)) FROM counters;
SELECT * FROM counter_top();
SELECT counterx.compact() > 0 AS folded;
SELECT * FROM counter_bottom();

-- Against plain SQL, for many n and prefixes, without the value index and with it.
CREATE FUNCTION after_differences(ns int[]) RETURNS TABLE (ends text, n int, p text, place text) LANGUAGE sql VOLATILE AS $$
    WITH c AS MATERIALIZED (SELECT name, value::bigint FROM counters),
    places (v, m) AS (
        SELECT value, name FROM c WHERE hashtext(name) % 211 = 0
        UNION ALL SELECT value, NULL FROM c WHERE hashtext(name) % 397 = 0
        UNION ALL SELECT value, 'r:5x' FROM c WHERE hashtext(name) % 599 = 0
        UNION ALL SELECT NULL, name FROM c WHERE hashtext(name) % 397 = 1
        UNION ALL VALUES (0, NULL), (-7, 'r:1'), (100000, 'zz'), (-100000, ''), (NULL, 'r:77'), (NULL, 'nobody')
    ), plain AS MATERIALIZED (
        SELECT e AS of_end, p AS of_prefix, name, value, rank() OVER w AS rank
        FROM unnest(ARRAY['top', 'bottom']) e, unnest(ARRAY['', 'r:', 'r:1', 's']) p, c
        WHERE starts_with(c.name, p)
        WINDOW w AS (PARTITION BY e, p ORDER BY CASE e WHEN 'top' THEN -value ELSE value END)
    )
    SELECT e, n, p, (v, m)::text
    FROM places, unnest(ARRAY['top', 'bottom']) e, unnest(ns) n, unnest(ARRAY['', 'r:', 'r:1', 's']) p
    CROSS JOIN LATERAL (
        SELECT array_agg((t.rank, t.name, t.value)::text) AS rows
        FROM (SELECT * FROM counter_top(CASE e WHEN 'top' THEN n ELSE 0 END, p, v, m)
              UNION ALL SELECT * FROM counter_bottom(CASE e WHEN 'top' THEN 0 ELSE n END, p, v, m)) t
    ) ranked
    CROSS JOIN LATERAL (
        SELECT array_agg((s.rank, s.name, s.value)::text ORDER BY s.place) AS rows
        FROM (SELECT a.rank, a.name, a.value, row_number() OVER (ORDER BY a.rank, CASE e WHEN 'top' THEN a.name END, a.name DESC) AS place
              FROM plain a, (SELECT COALESCE(v, (SELECT value FROM c WHERE c.name = m), 0) AS v) at
              WHERE (of_end, of_prefix) = (e, p)
                AND CASE e WHEN 'top' THEN a.value < at.v OR a.value = at.v AND a.name > m COLLATE "C"
                           ELSE a.value > at.v OR a.value = at.v AND a.name < m COLLATE "C" END) s
        WHERE s.place <= n
    ) expected
    WHERE ranked.rows IS DISTINCT FROM expected.rows
    UNION ALL
    SELECT 'rank', NULL, of_prefix, name FROM plain
    WHERE of_end = 'top' AND hashtext(name) % 97 = 0 AND counter_rank(name, of_prefix) IS DISTINCT FROM rank
$$;
CREATE FUNCTION differences() RETURNS TABLE (ends text, n int, prefix text) LANGUAGE sql VOLATILE AS $$
    SELECT e, n, p
    FROM unnest(ARRAY['top', 'bottom']) e,
        unnest(ARRAY[0, 1, 3, 17, 500, 5000]) n,
        unnest(ARRAY['', 'r:', 'r:1', 'r:11', 's', 'z']) p
    CROSS JOIN LATERAL (
        SELECT array_agg((t.rank, t.name, t.value)::text) AS rows
        FROM (SELECT * FROM counter_top(CASE e WHEN 'top' THEN n ELSE 0 END, p)
              UNION ALL SELECT * FROM counter_bottom(CASE e WHEN 'top' THEN 0 ELSE n END, p)) t
    ) ranked
    CROSS JOIN LATERAL (
        SELECT array_agg((s.rank, s.name, s.value)::text ORDER BY s.place) AS rows
        FROM (SELECT rank() OVER (ORDER BY c.value * sign), row_number() OVER (ORDER BY c.value * sign, CASE e WHEN 'top' THEN c.name END, c.name DESC) AS place,
                     c.name, c.value
              FROM counters c, (SELECT CASE e WHEN 'top' THEN -1 ELSE 1 END AS sign) x
              WHERE starts_with(c.name, p)) s
        WHERE s.place <= n
    ) plain
    WHERE ranked.rows IS DISTINCT FROM plain.rows
    UNION ALL
    SELECT 'after', n, p FROM after_differences(ARRAY[1, 3, 500])
    UNION ALL
    SELECT 'sum', 0, p FROM unnest(ARRAY['', 'r', 'r:1', 's', 'nothing']) p
    WHERE counter_sum(p) <> (SELECT coalesce(sum(c.value), 0) FROM counters c WHERE starts_with(c.name, p))
$$;
-- Some pending changes: large and small ones, up and down, new counters, drops, counters made again.
CREATE PROCEDURE change(round int) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM counter_incr('r:' || i, ((i * 7919 + round * 104729) % 41) - 20) FROM generate_series(1, 1200) i WHERE (i * 31 + round) % 11 = 0;
    PERFORM counter_incr('r:' || i, ((i * 7919 + round) % 2001) - 1000) FROM generate_series(1, 1200) i WHERE (i + round * 17) % 97 = 0;
    PERFORM counter_incr('s:' || i, round) FROM generate_series(round * 10, round * 12) i;
    COMMIT;
    PERFORM counter_drop('r:' || i) FROM generate_series(1, 1200) i WHERE (i + round * 29) % 53 = 0;
    PERFORM counter_drop(name) FROM counter_top(2);
    PERFORM counter_drop(name) FROM counter_bottom(2, 'r');
    COMMIT;
    PERFORM counter_incr('r:' || i, 3 * round) FROM generate_series(1, 1200) i WHERE (i + round * 29) % 159 = 0;
    COMMIT;
END $$;
-- Values with many ties.
SELECT count(counter_incr('r:' || i, (i * 613) % 97 - 40)) FROM generate_series(1, 1200) i;
SELECT * FROM differences();
SELECT counterx.compact() > 0 AS folded;
SELECT * FROM differences();
CALL change(1);
SELECT * FROM differences();
-- The comparison can fail: a counter that is in the sum and nowhere else.
BEGIN;
SELECT counterx.compact() > 0 AS folded;
ALTER TABLE counterx.total DISABLE TRIGGER guard;
UPDATE counterx.total SET uses = 0 WHERE name = (SELECT name FROM counter_top(1));
SELECT ends, prefix FROM differences() WHERE prefix = '';
ROLLBACK;

SELECT counterx.create_value_index(), counterx.create_value_index();
SELECT indexdef FROM pg_indexes WHERE schemaname = 'counterx' AND tablename = 'total' AND indexname <> 'total_pkey';
SELECT * FROM differences();
CALL change(2);
SELECT * FROM differences();
BEGIN;
SELECT count(counter_incr('r:' || i, i)), count(counter_incr('s:9' || i, 7)), count(counter_drop('r:' || i + 700)) FROM generate_series(100, 140) i;
SELECT * FROM differences();
COMMIT;
SELECT counterx.compact() > 0 AS folded;
SELECT * FROM differences();
CALL change(3);
SELECT counterx.compact() > 0 AS folded;
CALL change(4);
SELECT * FROM differences();
-- Everything of the head is pending downwards, and of the tail upwards.
SELECT count(counter_decr(name, 5000)) FROM counter_top(300);
SELECT count(counter_incr(name, 7000)) FROM counter_bottom(700);
SELECT * FROM differences();
SELECT counterx.compact() > 0 AS folded;
SELECT * FROM differences();
-- Nothing but counters that were never folded; nothing at all.
SELECT count(counter_drop(name)) > 900 AS dropped FROM counters;
SELECT * FROM differences();
SELECT counterx.compact() > 0 AS folded;
SELECT * FROM differences();
SELECT count(counter_incr('r:' || i, i % 7)) FROM generate_series(1, 300) i;
SELECT * FROM differences();
-- In the transaction that makes the index, and in one that drops it.
BEGIN;
SELECT counterx.drop_value_index(), counterx.drop_value_index();
SELECT * FROM differences();
SELECT counterx.compact();
SELECT * FROM differences();
SELECT counterx.create_value_index();
SELECT * FROM differences();
ROLLBACK;
SELECT * FROM differences();

-- A large prefix whose counters are not at the index's head: it gives the index up (after 20,000
-- rows of others), and a small one is read by name.
SELECT count(counter_incr('a:' || i, 1000 + i)), count(counter_incr('b:' || i, -i)) FROM generate_series(1, 25000) i;
SELECT counterx.compact() > 0 AS folded;
SELECT count(counter_incr('r:' || i, i * 2)) FROM generate_series(1, 2000) i;
SELECT counterx.compact() > 0 AS folded;
SELECT counter_incr('r:1700', 1), counter_incr('r:new', 1), counter_drop('r:2000');
CREATE FUNCTION agree(prefix text, n int) RETURNS TABLE (top boolean, bottom boolean, page boolean, rank boolean) LANGUAGE sql STABLE AS $$
    WITH c AS MATERIALIZED (SELECT name, value FROM counters WHERE starts_with(name, prefix))
    SELECT (SELECT array_agg((t.rank, t.name, t.value)::text) FROM counter_top(n, prefix) t)
            = (SELECT array_agg((s.r, s.name, s.value)::text) FROM (SELECT rank() OVER (ORDER BY value DESC) AS r, name, value FROM c ORDER BY value DESC, name LIMIT n) s),
        (SELECT array_agg((t.rank, t.name, t.value)::text) FROM counter_bottom(n, prefix) t)
            = (SELECT array_agg((s.r, s.name, s.value)::text) FROM (SELECT rank() OVER (ORDER BY value) AS r, name, value FROM c ORDER BY value, name DESC LIMIT n) s),
        (SELECT array_agg((t.rank, t.name, t.value)::text) FROM counter_top(n, prefix, after_name => m.name) t)
            IS NOT DISTINCT FROM (SELECT array_agg((s.r, s.name, s.value)::text) FROM (SELECT rank() OVER (ORDER BY value DESC) AS r, row_number() OVER (ORDER BY value DESC, name) AS place, name, value FROM c ORDER BY value DESC, name OFFSET m.place LIMIT n) s),
        counter_rank(m.name, prefix) = m.rank
    FROM (SELECT name, row_number() OVER (ORDER BY value DESC, name) AS place, rank() OVER (ORDER BY value DESC) AS rank FROM c ORDER BY value DESC, name OFFSET (SELECT count(*) FROM c) * 2 / 3 LIMIT 1) m
$$;
SELECT prefix, n, b.* FROM unnest(ARRAY['', 'a:', 'b:', 'r:', 'r:1', 'r:19', 'a:2', 'b:24']) prefix, unnest(ARRAY[1, 10, 3000]) n, agree(prefix, n) b ORDER BY prefix, n;

-- Any index of its shape does, and only one of its shape: others are neither used nor in the way.
SELECT counterx.drop_value_index();
CREATE INDEX other_order ON counterx.total (value, name);
CREATE INDEX other_names ON counterx.total (value DESC, name DESC);
-- (Another order than that of the bytes, where this server has one.)
DO $$
BEGIN
    EXECUTE format('CREATE INDEX other_collation ON counterx.total (value DESC, name COLLATE %I)',
        coalesce((SELECT collname FROM pg_collation WHERE collname = 'en-x-icu'), 'POSIX'));
END
$$;
CREATE INDEX other_operators ON counterx.total (value DESC, name text_pattern_ops);
CREATE INDEX other_columns ON counterx.total (value DESC, name, gen);
SELECT count(counter_incr(n, 1000000)) FROM unnest(ARRAY['r:Z', 'r:a', 'r:B', 'r:z', 'r:A', 'r:b']) n;
SELECT counterx.compact();
SELECT name FROM counter_top(2);
SELECT name FROM counter_bottom(100000) WHERE rank >= (SELECT count(*) FROM counters) - 5;
SELECT prefix, n, b.* FROM unnest(ARRAY['', 'r:']) prefix, unnest(ARRAY[1, 3000]) n, agree(prefix, n) b ORDER BY prefix, n;
SELECT counterx.drop_value_index();
SELECT counterx.create_value_index();
SELECT counterx.create_value_index();
SELECT name FROM counter_top(2);
SELECT counterx.drop_value_index();
SELECT indexname FROM pg_indexes WHERE schemaname = 'counterx' AND tablename = 'total' ORDER BY indexname;
DROP INDEX counterx.other_order, counterx.other_names, counterx.other_collation, counterx.other_operators, counterx.other_columns;
CREATE INDEX CONCURRENTLY by_hand ON counterx.total (value DESC, name);
SELECT counterx.create_value_index();
SELECT prefix, n, b.* FROM unnest(ARRAY['', 'r:']) prefix, unnest(ARRAY[1, 3000]) n, agree(prefix, n) b ORDER BY prefix, n;
SELECT counterx.drop_value_index();
\echo :LAST_ERROR_SQLSTATE
DROP INDEX counterx.by_hand;
SELECT counterx.drop_value_index();
