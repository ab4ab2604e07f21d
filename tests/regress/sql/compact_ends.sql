-- What compact() leaves to the end of its transaction is done to the extension that it has folded, and to no
-- other one.
CREATE EXTENSION counterx;
-- Each lane goes on in its first log, and the second one waits to be truncated.
SELECT count(counter_incr('many:' || i || repeat('.', 180))) FROM generate_series(1, 4000) i;
SELECT counterx.compact();
SELECT count(counter_incr('many:' || i || repeat('.', 180))) FROM generate_series(1, 4000) i;
SELECT counterx.compact();
SELECT count(counter_incr('many:' || i || repeat('.', 180))) FROM generate_series(1, 4000) i;
SELECT counterx.compact();
BEGIN;
SELECT counterx.compact();
DROP EXTENSION counterx;
CREATE EXTENSION counterx;
COMMIT;
-- Nothing of this one was ever truncated.
SELECT sum(truncated) FROM (TABLE counterx.gate_0 UNION ALL TABLE counterx.gate_7) gate;
DROP EXTENSION counterx;
