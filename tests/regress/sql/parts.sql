-- Names that are made of parts.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
SELECT counter_name('tasks', 42, 'open'), counter_parts('tasks:42:open');
-- Escapes, NULL, and the empty text.
SELECT counter_name('t', '100%', 'a:b', '', NULL, 'NULL', '%NULL', '%3A', '%~');
SELECT counter_parts('t:100%25:a%3Ab::%NULL:NULL:%25NULL:%253A:%25~');
SELECT counter_name('t', ''), counter_parts('t:'), counter_name('t', NULL), counter_parts('t:%NULL');
SELECT counter_name('t', NULL::int, NULL::numeric, NULL::date) = counter_name('t', NULL, NULL, NULL) AS nulls_have_no_type;

-- Each type that a part may have. Numbers that are equal have one text, whatever digits they were given.
CREATE TYPE colour AS ENUM ('red', 'dark green', 'a:b');
CREATE DOMAIN amount AS numeric(20, 4) CHECK (value > 0);
CREATE DOMAIN tint AS colour;
CREATE DOMAIN tint_of_tint AS tint;
SELECT counter_name('t', true, false) AS bool, counter_name('t', 't'::bool) = counter_name('t', 'yes'::bool) AS same;
SELECT counter_name('t', 32767::int2, (-32768)::int2, 2147483647, -2147483648, 0, 9223372036854775807, -9223372036854775808, 4294967295::oid);
SELECT counter_name('t', 'a'::"char", ':'::"char", ''::"char", '\377'::"char") AS byte, counter_name('t', 'pg:x'::name) AS name;
SELECT counter_name('t', 'a'::text, 'b '::varchar, 'c  '::char(10), '  '::char(3), ' d'::char(4), E'é\n☃ '::text);
SELECT counter_name('t', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'::uuid) AS uuid;
SELECT counter_name('t', '16/B374D848'::pg_lsn, 'FFFFFFFF/0'::pg_lsn, '0/0'::pg_lsn) AS lsn;
SELECT counter_name('t', '10.0.0.1'::inet, '10.0.0.1/8'::inet, '::1'::inet, '10/8'::cidr, '2001:db8::/32'::cidr) AS inet;
SELECT counter_name('t', '08:00:2b:01:02:03'::macaddr, '08:00:2b:01:02:03:04:05'::macaddr8) AS mac;
SELECT counter_name('t', B'101', B'101'::bit(5), B''::varbit, B'0001'::varbit) AS bit;
SELECT counter_name('t', 'red'::colour, 'dark green'::tint, 'a:b'::tint_of_tint, 1.50::amount) AS enum;
SELECT counter_name('t', 1.0, 1.00, 1, 1.50, -0.10, 0.000, -0.0, 100, 1e20, 1e-20, 12345678901234567890.10);
SELECT counter_name('t', 'NaN'::numeric, 'Infinity'::numeric, '-Infinity'::numeric, 9223372036854775807.0, 9223372036854775808.0, -9223372036854775808.00, -9223372036854775809.00);
SELECT counter_name('t', '2026-11-27'::date, '0044-03-15 BC'::date, 'infinity'::date, '-infinity'::date, '5874897-12-31'::date);
SELECT counter_name('t', '2026-11-27 01:02:03'::timestamp, '2026-11-27 01:02:03.450000'::timestamp, '2026-11-27'::timestamp, '0044-03-15 23:59:59.999999 BC'::timestamp, 'infinity'::timestamp);
SELECT counter_name('t', '2026-11-27 01:02:03+00'::timestamptz, '2026-07-01 00:30:00+02'::timestamptz, '2026-07-01 00:30:00.000001-11:30'::timestamptz, '-infinity'::timestamptz);
-- Compressed, out of line, and with a short header.
CREATE TABLE stored (id int, t text, b char(3000), n numeric, v varbit);
ALTER TABLE stored ALTER t SET STORAGE EXTERNAL;
INSERT INTO stored VALUES
    (1, repeat('x', 4000), repeat('y', 100), repeat('9', 3000)::numeric, repeat('1', 100)::varbit),
    (2, 'short', 'short', 1.50, B'1'), (3, NULL, NULL, NULL, NULL);
SELECT id, length(counter_name('t', id, t)), length(counter_name('t', id, b)), length(counter_name('t', id, n)), length(counter_name('t', id, v)),
    counter_name('t', t) = counter_name('t', t || '') AS t, counter_name('t', b) = counter_name('t', b::text) AS b,
    counter_name('t', n) = counter_name('t', trim_scale(n)::text) AS n, counter_name('t', v) = counter_name('t', v::text) AS v
FROM stored ORDER BY id;
SELECT counter_name('t', id, t, NULL, n, b) FROM stored WHERE id > 1 ORDER BY id;

-- All others are refused: what they look like depends on settings, or one value has several texts.
\set VERBOSITY sqlstate
SELECT counter_name('t', 1.5::float8);
\set VERBOSITY default
SELECT counter_name('t', 1, 1.5::float4);
\set VERBOSITY terse
SELECT counter_name('t', '\x00'::bytea);
SELECT counter_name('t', '1 day'::interval);
SELECT counter_name('t', '$1'::money);
SELECT counter_name('t', '01:02'::time);
SELECT counter_name('t', '{}'::jsonb);
SELECT counter_name('t', '{}'::json);
SELECT counter_name('t', ARRAY[1]);
SELECT counter_name('t', ROW(1, 2));
SELECT counter_name('t', 'stored'::regclass);
SELECT counter_name('t', '(1,2)'::point);
SELECT counter_name('t', '[1,2]'::int4range);
SELECT counter_name('t', '1'::xid);
CREATE DOMAIN ratio AS float8;
SELECT counter_name('t', NULL::ratio);
SELECT counter_name('t', s) FROM stored s;
\set VERBOSITY default
-- What the hint says works, and does not depend on settings.
SELECT counter_name('t', 1.5::float8::numeric(12, 2), encode('\x00ff', 'hex'), '{"key": "v"}'::jsonb ->> 'key', '{"key": 1}'::jsonb ->> 'none');

-- An array of parts.
SELECT counter_name('t', VARIADIC ARRAY['a', NULL, 'b:c']), counter_name('t', VARIADIC ARRAY[1, 2]), counter_name('t', VARIADIC '{1.0,2.50}'::numeric[]);
SELECT counter_name('t', VARIADIC parts => '[3:4]={a,b}'::text[]), counter_name(type => 't', VARIADIC parts => ARRAY['red']::colour[]);
SELECT counter_name('t', VARIADIC counter_parts('t:100%25:a%3Ab::%NULL:NULL'));
SELECT counter_name('t', VARIADIC '{}'::text[]);
SELECT counter_name('t', VARIADIC NULL::text[]);
SELECT counter_name('t', VARIADIC ARRAY[['a'], ['b']]);
SELECT counter_name('t', VARIADIC ARRAY[1.5::float8]);
SELECT counter_name('t', VARIADIC 'x'::text);
SELECT counter_name('t');
-- Types differ from call to call.
SELECT counter_name(type, VARIADIC array[a]), counter_name(type, a, type) FROM (VALUES ('t', 'x'), ('u', 'y'), ('u', NULL)) v (type, a);
PREPARE made (text, int, date) AS SELECT counter_name($1, $2, $3);
SET plan_cache_mode = force_generic_plan;
EXECUTE made ('a', 1, '2026-01-01');
EXECUTE made ('b', NULL, 'infinity');
RESET plan_cache_mode;

-- The type.
SELECT counter_name(NULL, 1);
SELECT counter_name('', 1);
SELECT counter_name('a:b', 1);
\set VERBOSITY terse
SELECT counter_name('two words', 1);
SELECT counter_name('é', 1);
\set VERBOSITY default
SELECT length(counter_name(repeat('x', 208), 1)), length(counter_name(repeat('x', 208), repeat('y', 35)));
SELECT counter_name(repeat('x', 209), 1);
SELECT counter_name(repeat('x', 256), 1);
SELECT counter_type_create('a:b');
SELECT counter_name('%25', 1), counter_parts('%25:1'), counter_name('tasks@1', 7);

-- Names that would be too long: whole parts are kept, a hash stands for all others.
SELECT counter_name('t', 'a', repeat('x', 239)) = 't:a:' || repeat('x', 239) AS fits;
SELECT counter_name('tasks', 42, repeat('x', 300));
SELECT name = 'tasks:42:%~' || left(encode(sha256(convert_to('tasks:42:' || repeat('x', 300), 'UTF8')), 'hex'), 32) AS of_the_whole
FROM counter_name('tasks', 42, repeat('x', 300)) name;
SELECT counter_name('tasks', 42, repeat('x', 300), 'open') <> counter_name('tasks', 42, repeat('x', 300)) AS all_parts_count;
SELECT counter_name('tasks', 42, repeat('☃', 100));
SELECT counter_name('tasks', 42, 'a:b', repeat('%:', 60), 'more', repeat('é', 80));
SELECT octet_length(counter_name('t', repeat('y', 206), repeat('x', 300))), left(counter_name('t', repeat('y', 207), repeat('x', 300)), 6);
SELECT left(counter_name('t', repeat('x', 10000000)), 4);
-- Their parts: those that were kept, and what stands for the others.
SELECT counter_parts(counter_name('tasks', 42, NULL, 'a:b', repeat('x', 300), 'open'));
SELECT counter_incr(counter_name('tasks', 42, repeat('x', 300))), counter_incr(counter_name('tasks', 42, 'open'), 2), counter_incr(counter_name('tasks', 420, 'open'), 100);
SELECT counter_sum(counter_name('tasks', 42) || ':');
SELECT (counter_parts(name))[1] AS project, sum(value) FROM counters WHERE name LIKE 'tasks:%' GROUP BY 1 ORDER BY 1;

-- What no parts make.
SELECT counter_parts(NULL);
SELECT counter_parts('');
SELECT counter_parts('likes');
\set VERBOSITY terse
SELECT counter_parts(':a');
SELECT counter_parts('two words:a');
SELECT counter_parts('t:50%');
SELECT counter_parts('t:a%3ab');
SELECT counter_parts('t:x%NULL');
SELECT counter_parts('t:%~0123456789abcdef0123456789abcdef:a');
SELECT counter_parts(repeat('x', 209) || ':a');
SELECT length((counter_parts('t:' || repeat('x', 241)))[1]);
SELECT counter_parts('t:' || repeat('x', 242));

\set VERBOSITY default
-- Immutable indeed: no setting of the session makes another name.
CREATE TABLE keys (id int PRIMARY KEY, b bool, i int, n numeric, d date, ts timestamp, tz timestamptz, u uuid, a inet, c char(5), e colour, made text);
INSERT INTO keys (id, b, i, n, d, ts, tz, u, a, c, e)
SELECT i, i % 2 = 0, i * 1001, (i * 1.10)::numeric(10, 4), '2026-01-31'::date + i * 37, '2026-03-29 01:59:59.5'::timestamp + i * interval '3599.25 s',
    '2026-03-29 00:59:59.5+00'::timestamptz + i * interval '3599.25 s', md5(i::text)::uuid, '10.0.0.0'::inet + i, i::text, (ARRAY['red', 'dark green', 'a:b'])[1 + i % 3]::colour
FROM generate_series(1, 50) i;
SET TimeZone = 'UTC';
UPDATE keys SET made = counter_name('t', b, i, n, d, ts, tz, u, a, c, e);
SELECT id, made FROM keys WHERE id IN (1, 50) ORDER BY id;
CREATE FUNCTION others() RETURNS bigint LANGUAGE sql AS $$ SELECT count(*) FROM keys WHERE made <> counter_name('t', b, i, n, d, ts, tz, u, a, c, e) $$;
CREATE FUNCTION others_under(style text, zone text, OUT others bigint, OUT shown text) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config(name, value, true)
    FROM (VALUES ('DateStyle', style), ('TimeZone', zone), ('IntervalStyle', 'sql_standard'), ('bytea_output', 'escape'), ('extra_float_digits', '-15'), ('lc_numeric', 'C')) s (name, value);
    others := others();
    -- They are set indeed.
    shown := (SELECT tz::text FROM keys WHERE id = 3);
END $$;
SELECT style, zone, others, shown
FROM unnest(ARRAY['ISO, DMY', 'SQL, MDY', 'Postgres, DMY', 'German']) style, unnest(ARRAY['UTC', 'Europe/Berlin', 'America/St_Johns', 'Asia/Kathmandu']) zone, others_under(style, zone)
ORDER BY style, zone;
RESET ALL;
-- So an index on it, and the same in a parallel worker.
CREATE INDEX keys_by_name ON keys (counter_name('t', b, i, n, d, ts, tz, u, a, c, e));
CREATE INDEX keys_by_part ON keys ((counter_parts(made)));
SET TimeZone = 'Asia/Kathmandu';
SET DateStyle = 'German';
SET enable_seqscan = off; SET enable_bitmapscan = off;
EXPLAIN (COSTS off) SELECT id FROM keys WHERE counter_name('t', b, i, n, d, ts, tz, u, a, c, e) = 'x';
SELECT count(*) FROM keys k WHERE k.id = (SELECT id FROM keys o WHERE counter_name('t', b, i, n, d, ts, tz, u, a, c, e) = k.made);
RESET enable_seqscan;
SET enable_indexscan = off;
SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
ALTER TABLE keys SET (parallel_workers = 2);
EXPLAIN (COSTS off) SELECT count(*) FROM keys WHERE made = counter_name('t', b, i, n, d, ts, tz, u, a, c, e);
SELECT count(*) FROM keys WHERE made = counter_name('t', b, i, n, d, ts, tz, u, a, c, e) AND counter_parts(made) IS NOT NULL;
RESET ALL;
-- Both are inverses of each other, and other parts make another name.
CREATE TABLE bits (bit text);
INSERT INTO bits VALUES (NULL), (''), ('%'), (':'), ('NULL'), ('%NULL'), ('%3A'), ('25'), ('é'), ('a');
WITH made AS (
    SELECT ARRAY[a.bit || coalesce(b.bit, ''), c.bit, d.bit] AS parts, counter_name('t', VARIADIC ARRAY[a.bit || coalesce(b.bit, ''), c.bit, d.bit]) AS name
    FROM bits a, bits b, bits c, bits d
)
SELECT count(*) FILTER (WHERE counter_parts(name) IS DISTINCT FROM parts) AS not_inverse, count(DISTINCT parts) = count(DISTINCT name) AS one_to_one, count(DISTINCT name) > 5000 AS many
FROM made;
-- Renaming a label of an enum is what makes another name.
SELECT counter_name('t', e) FROM keys WHERE id = 3;
ALTER TYPE colour RENAME VALUE 'red' TO 'scarlet';
SELECT counter_name('t', e) FROM keys WHERE id = 3;
