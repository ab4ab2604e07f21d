-- What everybody uses: counter_incr, counter_decr, counter_value.
CREATE EXTENSION counterx;

-- A counter that was never incremented is 0, and does not exist by having been read.
SELECT counter_value('unknown');
SELECT name, value FROM counters;

-- The delta is 1 unless given, by position or by name.
SELECT counter_incr('a');
SELECT counter_incr('a', 10);
SELECT counter_incr(name => 'a', delta => 100);
SELECT counter_value('a');
SELECT counter_decr('a');
SELECT counter_decr('a', 10);
SELECT counter_decr(name => 'a', delta => 100);
SELECT counter_value('a');

-- Below zero, and with a negative delta.
SELECT counter_decr('below', 5);
SELECT counter_incr('below', -5);
SELECT counter_decr('below', -1);
SELECT counter_value('below');

-- A delta of zero makes the counter exist.
SELECT counter_incr('zero', 0);
SELECT counter_decr('nought', 0);
SELECT name, value FROM counters ORDER BY name;
SELECT counterx.compact();
SELECT name, value FROM counters ORDER BY name;

-- Names are bytes: case, blanks and accents count, and nothing is a wildcard.
SELECT counter_incr(n) FROM unnest(ARRAY['A', ' a', 'a ', '%', '_', 'ä', E'a\nb', '''', '"']) n;
SELECT quote_literal(name) AS quoted, value FROM counters ORDER BY name;
SELECT counter_value('A'), counter_value('a '), counter_value('ä'), counter_value('Ä');

-- Types that turn into text do.
SELECT counter_incr('user:' || 42), counter_incr('vc'::varchar), counter_incr('name'::name);
SELECT counter_value('user:42'), counter_value('vc'), counter_value('name');

-- The longest name: 255 bytes, in memory, pending and folded.
BEGIN;
SELECT counter_incr(repeat('x', 255), 3);
SELECT counter_value(repeat('x', 255));
COMMIT;
SELECT counter_value(repeat('x', 255));
SELECT counterx.compact() > 0;
SELECT counter_value(repeat('x', 255)), counter_value(repeat('x', 254));

-- The same counter for every row of a query: the sum counts once.
SELECT count(counter_incr('rows', i)) FROM generate_series(1, 1000) i;
SELECT counter_value('rows');

-- One row per counter and transaction waits to be folded, however often it was called.
SELECT counterx.compact();
