-- No setting of a session makes another group of a row: it may come under some settings, change under others and
-- go under others again, in one transaction or many.
CREATE EXTENSION counterx;
\set VERBOSITY terse
\set SHOW_CONTEXT never
CREATE TYPE mood AS ENUM ('fine', 'not so fine');
CREATE DOMAIN price AS numeric(12, 4);
CREATE TABLE told (
    id integer PRIMARY KEY, d date, ts timestamp, tz timestamptz, n numeric, p price, f double precision, b bytea, i interval, m money, j jsonb,
    a inet, e mood, c char(8), t text
);
SELECT counter_track('told', 'moments', '{d, ts, tz}');
SELECT counter_track('told', 'numbers', ARRAY['n', 'p', 'f::numeric(12,4)', 'a', 'e', 'c'], sum => 'f::numeric(12,4)', scale => 4);
SELECT counter_track('told', 'berlin', ARRAY[$$(tz AT TIME ZONE 'Europe/Berlin')::date$$, $$extract(hour FROM tz AT TIME ZONE 'Europe/Berlin')$$]);
SELECT counter_track('told', 'texts', ARRAY[$$encode(b, 'hex')$$, $$j ->> 'x'$$, 't', 'extract(epoch FROM i)'], filter => $$tz < '2030-01-01 00:00+00' AND i > '1 hour' AND f <> 0.25$$);
SELECT count(*) FROM counter_recount('told');

-- What does go by settings is no key.
SELECT counter_track('told', 'refused', '{tz::date}');
SELECT counter_track('told', 'refused', '{tz::timestamp}');
SELECT counter_track('told', 'refused', ARRAY[$$date_trunc('day', tz)$$]);
SELECT counter_track('told', 'refused', ARRAY[$$to_char(ts, 'Day')$$]);
SELECT counter_track('told', 'refused', '{d::text}');
SELECT counter_track('told', 'refused', '{f::text}');
SELECT counter_track('told', 'refused', '{b::text}');
SELECT counter_track('told', 'refused', '{i::text}');
SELECT counter_track('told', 'refused', '{concat(d)}');
SELECT counter_track('told', 'refused', ARRAY[$$format('%s', ts)$$]);
SELECT counter_track('told', 'refused', '{id}', sum => 'm::numeric');
SELECT counter_track('told', 'refused', '{id}', sum => 'f');
SELECT counter_track('told', 'refused', '{id}', filter => $$tz > '2026-01-01'::text::timestamptz$$);
SELECT counter_track('told', 'refused', '{id}', filter => 'tz > d');

-- Hours of the nights in which Berlin's clocks are changed, and of others.
CREATE VIEW fresh AS
SELECT n AS id, '2026-03-28'::date + n % 3 AS d, '2026-03-29 01:30'::timestamp + n * interval '20 min' AS ts,
    (CASE n % 2 WHEN 0 THEN '2026-03-28 23:10+00' ELSE '2026-10-24 22:10+00' END)::timestamptz + n % 24 * interval '10 min' AS tz,
    (n % 7)::numeric(10, 3) AS n, n % 5 + 0.5 AS p, n % 3 / 8.0 AS f, decode(lpad(to_hex(n % 4 * 85), 2, '0') || 'ff00', 'hex') AS b,
    n % 5 * interval '40 min' AS i, '1.5'::money AS m, format('{"x": %s}', n % 3)::jsonb AS j, '10.0.0.0/24'::inet + n % 2 AS a,
    (enum_range(NULL::mood))[1 + n % 2] AS e, repeat('x', n % 2) AS c, CASE WHEN n % 4 > 0 THEN n % 4 || '%:' END AS t
FROM generate_series(1, 48) n;

CREATE FUNCTION amiss() RETURNS TABLE (type text, key text[], counted numeric, value numeric) LANGUAGE sql AS $$
    WITH told AS (SELECT * FROM told), rows AS (
        SELECT counter_name('moments', d, ts, tz) AS name, count(*) AS value FROM told GROUP BY d, ts, tz
        UNION ALL
        SELECT counter_name('numbers', n, p, f::numeric(12,4), a, e, c), sum(f::numeric(12,4)) * 10000 FROM told GROUP BY n, p, f::numeric(12,4), a, e, c
        UNION ALL
        SELECT counter_name('berlin', (tz AT TIME ZONE 'Europe/Berlin')::date, extract(hour FROM tz AT TIME ZONE 'Europe/Berlin')), count(*)
        FROM told GROUP BY (tz AT TIME ZONE 'Europe/Berlin')::date, extract(hour FROM tz AT TIME ZONE 'Europe/Berlin')
        UNION ALL
        SELECT counter_name('texts', encode(b, 'hex'), j ->> 'x', t, extract(epoch FROM i)), count(*)
        FROM told WHERE tz < '2030-01-01 00:00+00' AND i > '1 hour' AND f <> 0.25 GROUP BY encode(b, 'hex'), j ->> 'x', t, extract(epoch FROM i)
    ), counted AS (SELECT c.name, c.value FROM counters c)
    SELECT split_part(coalesce(r.name, c.name), ':', 1), counter_parts(coalesce(r.name, c.name)), c.value, r.value
    FROM counted c FULL JOIN rows r USING (name) WHERE c.value IS DISTINCT FROM r.value
$$;
CREATE TABLE style (no integer PRIMARY KEY, zone text, datestyle text, intervalstyle text, bytea text, digits text, lc text);
INSERT INTO style VALUES
    (0, 'UTC', 'ISO, YMD', 'postgres', 'hex', '1', 'C'), (1, 'Europe/Berlin', 'German', 'iso_8601', 'escape', '-15', 'POSIX'),
    (2, 'America/St_Johns', 'SQL, MDY', 'sql_standard', 'hex', '3', 'C'), (3, 'Asia/Kathmandu', 'Postgres, DMY', 'postgres_verbose', 'escape', '0', 'POSIX'),
    (4, 'Australia/Lord_Howe', 'SQL, DMY', 'iso_8601', 'escape', '2', 'C');
CREATE FUNCTION put_on(which integer) RETURNS text LANGUAGE plpgsql AS $$
DECLARE s style;
BEGIN
    SELECT * INTO s FROM style WHERE no = which % 5;
    PERFORM set_config('TimeZone', s.zone, false), set_config('DateStyle', s.datestyle, false), set_config('IntervalStyle', s.intervalstyle, false),
        set_config('bytea_output', s.bytea, false), set_config('extra_float_digits', s.digits, false),
        set_config('lc_numeric', s.lc, false), set_config('lc_monetary', s.lc, false), set_config('lc_time', s.lc, false);
    RETURN '2026-03-29 02:30+00'::timestamptz::text;
END $$;

-- In one session: each row under three styles.
SELECT put_on(0);
INSERT INTO told SELECT * FROM fresh;
SELECT count(*) FROM amiss();
SELECT * FROM counter_groups('berlin');
SELECT sum(value) AS value, sum(rows) AS rows FROM counter_groups('numbers');
SELECT put_on(1);
SELECT count(*) FROM amiss();
SELECT * FROM counter_groups('berlin', '2026-03-29'::date);
UPDATE told SET tz = tz + interval '30 min', ts = ts - interval '1 day', d = d + 1, n = n + 0.00, f = f * 2, b = b || '\x5c'::bytea, i = i + interval '10 min' WHERE id % 2 = 0;
SELECT count(*) FROM amiss();
SELECT put_on(2);
DELETE FROM told WHERE id % 3 = 0;
UPDATE told SET n = n + 1.10, p = p * 1.0, a = a + 1, j = '{"x": "1"}', e = 'fine', c = c || ' ' WHERE id % 5 < 3;
SELECT count(*) FROM amiss();
SELECT put_on(3);
SELECT count(*) FROM counter_drift('told');
DELETE FROM told WHERE id % 2 = 0;
SELECT count(*) FROM amiss();
SELECT put_on(4);
DELETE FROM told;
SELECT count(*) FROM counters;
SELECT count(*) FROM counter_drift('told');

-- In one transaction, by prepared statements, with settings that come and go.
PREPARE put AS INSERT INTO told SELECT * FROM fresh WHERE id % $1 = 0 ON CONFLICT (id) DO UPDATE SET tz = excluded.tz + interval '1 hour', n = excluded.n + 1, b = excluded.b;
PREPARE move AS UPDATE told SET tz = tz - interval '1 hour', ts = ts + interval '1 hour', f = f + 0.0625 WHERE id % $1 = 0;
PREPARE cut AS DELETE FROM told WHERE id % $1 = 0;
SET plan_cache_mode = force_generic_plan;
BEGIN;
SELECT put_on(0);
EXECUTE put(1);
SELECT put_on(1);
EXECUTE move(2);
SAVEPOINT a;
SELECT put_on(2);
EXECUTE cut(3);
SELECT count(*) FROM amiss();
ROLLBACK TO a;
SELECT count(*) FROM amiss();
SELECT put_on(3);
EXECUTE put(4);
EXECUTE cut(5);
COMMIT;
SELECT count(*) FROM amiss();
SELECT put_on(4);
EXECUTE move(3);
EXECUTE cut(2);
SELECT count(*) FROM amiss();
SELECT put_on(1);
TRUNCATE told;
SELECT count(*) FROM counters;

-- In the middle of a statement: each row comes and goes under another style.
DEALLOCATE ALL;
RESET plan_cache_mode;
CREATE FUNCTION other_style() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM put_on(coalesce(NEW.id, OLD.id)); RETURN coalesce(NEW, OLD); END $$;
CREATE TRIGGER other_style BEFORE INSERT OR UPDATE OR DELETE ON told FOR EACH ROW EXECUTE FUNCTION other_style();
CREATE TRIGGER another_style AFTER INSERT OR UPDATE OR DELETE ON told FOR EACH ROW EXECUTE FUNCTION other_style();
INSERT INTO told SELECT * FROM fresh;
SELECT count(*) FROM amiss();
UPDATE told SET id = id + 2, tz = tz + interval '30 min', n = n * 1.0, b = b || '\x00'::bytea WHERE id > 46;
UPDATE told SET tz = tz + interval '30 min', d = d - 1, f = f + 0.0625, b = b || '\x00'::bytea;
SELECT count(*) FROM amiss();
DELETE FROM told WHERE id % 3 > 0;
SELECT count(*) FROM amiss();
-- And counted all over again.
SELECT put_on(3);
SELECT count(*) FROM counter_recount('told');
ALTER TABLE told DISABLE TRIGGER ALL;
INSERT INTO told SELECT * FROM fresh WHERE id NOT IN (SELECT id FROM told);
DO $$ DECLARE command text; BEGIN
    FOR command IN SELECT format('ALTER TABLE told ENABLE ALWAYS TRIGGER %I', tgname) FROM pg_trigger WHERE tgrelid = 'told'::regclass LOOP EXECUTE command; END LOOP;
END $$;
SELECT count(*) > 0 AS some FROM counter_recount('told');
SELECT put_on(0);
SELECT count(*) FROM amiss();
SELECT put_on(2);
DELETE FROM told;
SELECT count(*) FROM counters;
RESET ALL;
