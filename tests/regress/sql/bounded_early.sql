-- A transaction that has written early may hear of changes to the extension's tables that are none of types:
-- ANALYZE is one. What it was granted stays granted.
CREATE EXTENSION counterx;
SET counterx.pending_work_mem = '64kB';
SELECT counter_type_create('stock', min => 0);
SELECT counter_incr('stock:a', 10);
BEGIN;
SELECT count(counter_incr('early' || i)) FROM generate_series(1, 3000) i;
SELECT counter_incr('stock:a', -1);
ANALYZE counterx.total, counterx.late, counterx.type;
COMMIT;
BEGIN;
SELECT count(counter_incr('early' || i)) FROM generate_series(1, 3000) i;
ANALYZE counterx.log_0_a, counterx.gate_1, counterx.hold, counterx.state;
SELECT counter_incr('stock:a', -1);
COMMIT;
SELECT counter_value('stock:a');
DROP EXTENSION counterx;
