-- The limits of numbers. A delta and a transaction's sum are bigints; a counter's value is numeric,
-- so that no increment can ever make it impossible to fold.
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;

-- The limits themselves are values like any other.
SELECT counter_incr('max', 9223372036854775807), counter_incr('min', -9223372036854775808);
SELECT counter_value('max'), counter_value('min');
SELECT counterx.compact();
SELECT counter_value('max'), counter_value('min');

-- One step beyond, pending and folded.
SELECT counter_incr('max'), counter_decr('min');
SELECT counter_value('max');
SELECT counter_value('min');
SELECT name, value FROM counters ORDER BY name;
SELECT counterx.compact();
SELECT counter_value('max');
SELECT counter_value('min');
SELECT name, value FROM counters ORDER BY name;

-- And back: only the sum has to fit, not its parts.
SELECT counter_decr('max'), counter_incr('min');
SELECT counter_value('max'), counter_value('min');

-- The least delta can be added, but not subtracted: its negation is no bigint.
SELECT counter_incr('least', -9223372036854775808);
SELECT counter_decr('least', -9223372036854775808);
SELECT counter_value('least');
SELECT counter_decr('greatest', -9223372036854775807);
SELECT counter_value('greatest');

-- Both ends in one transaction.
BEGIN;
SELECT counter_incr('both', 9223372036854775807), counter_incr('both', -9223372036854775808);
SELECT counter_value('both');
SELECT counter_incr('both', -9223372036854775807);
SELECT counter_value('both');
COMMIT;
SELECT counter_value('both');

-- What the own transaction holds is added to what is committed.
BEGIN;
SELECT counter_incr('both', 9223372036854775807);
SELECT counter_value('both');
COMMIT;
SELECT counter_decr('both', 2);
SELECT value FROM counters WHERE name = 'both';

-- Far beyond, by many transactions: twenty times the greatest bigint.
DO $$
BEGIN
    FOR i IN 1 .. 20 LOOP
        PERFORM counter_incr('far', 9223372036854775807);
        COMMIT;
    END LOOP;
END $$;
SELECT value, value = 20 * 9223372036854775807::numeric AS exact FROM counters WHERE name = 'far';
SELECT counterx.compact();
SELECT value, value = 20 * 9223372036854775807::numeric AS exact FROM counters WHERE name = 'far';
DO $$
BEGIN
    FOR i IN 1 .. 20 LOOP
        PERFORM counter_decr('far', 9223372036854775807);
        COMMIT;
    END LOOP;
END $$;
SELECT counter_value('far');
SELECT counterx.compact();
SELECT counter_value('far');
