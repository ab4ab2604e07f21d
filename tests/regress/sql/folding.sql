-- Folding by hand: what compact() returns, and what is where before and after. No worker folds here.
CREATE EXTENSION counterx;

-- Nothing is there at first: no totals, no state, every lane in its first epoch.
SELECT lane, epoch, folded_epoch, pending_deltas, seconds_since_fold, folder_pid FROM counterx.lanes ORDER BY lane;
SELECT folds, deltas_folded, last_fold_duration, last_error, last_error_at FROM counterx.workers;
SELECT counterx.compact();
SELECT count(*) FROM counterx.state;

-- 'abc' belongs to lane 0, 'flights' and 'flights:origin:EWR' to lane 1, 'likes:post:1' to lane 7.
SELECT counter_incr(n, 2) FROM unnest(ARRAY['abc', 'flights', 'flights:origin:EWR', 'likes:post:1']) n;
SELECT counter_incr('abc', 3);
SELECT counter_decr('flights', 9);
SELECT lane, epoch, folded_epoch, pending_deltas, log_bytes > 0 AS has_log FROM counterx.lanes ORDER BY lane;
SELECT epoch, delta, name FROM counterx.log_1_a ORDER BY name, delta;

-- Six deltas of three lanes become four totals. Lanes without deltas are left as they are.
SELECT counterx.compact();
SELECT name, value FROM counterx.total ORDER BY name;
SELECT lane, folded_epoch, folds, deltas_folded, last_fold_at <= clock_timestamp() AS in_the_past, last_fold_us >= 0 AS took_time, last_error FROM counterx.state ORDER BY lane;
SELECT lane, epoch, folded_epoch, pending_deltas, seconds_since_fold >= 0 AS folded_before, folder_pid FROM counterx.lanes ORDER BY lane;
SELECT folds, deltas_folded, last_fold_duration >= interval '0' AS took_time, last_error, last_error_at FROM counterx.workers;
SELECT name, value FROM counters ORDER BY name;

-- A second one has nothing to do, publishes nothing and writes nothing.
SELECT counterx.compact();
SELECT lane, epoch, folded_epoch FROM counterx.lanes WHERE epoch > 1 ORDER BY lane;

-- A total is added to, be it to zero. There is one row a counter.
SELECT counter_decr('abc', 5), counter_incr('flights', 7);
SELECT counterx.compact();
SELECT name, value FROM counterx.total ORDER BY name;
SELECT folds, deltas_folded FROM counterx.workers;

-- Several epochs at once: those that were published and not folded, as by a fold that failed.
SELECT counter_incr('abc');
BEGIN;
SELECT counterx.compact();
ROLLBACK;
SELECT counter_incr('abc');
BEGIN;
SELECT counterx.compact();
ROLLBACK;
SELECT counter_incr('abc');
SELECT lane, pending_deltas FROM counterx.lanes WHERE pending_deltas > 0;
SELECT counterx.compact();
SELECT counter_value('abc');

-- A fold that is rolled back has never been, for however many counters; the next one does it all.
-- (What it wrote to the totals stays in the index as dead entries, which the next one meets.)
SELECT count(counter_incr('n:' || i, i)) FROM generate_series(1, 500) i;
BEGIN;
SELECT counterx.compact();
SELECT sum(counter_value('n:' || i)) FROM generate_series(1, 500) i;
SELECT sum(pending_deltas) FROM counterx.lanes;
-- Meanwhile it holds the lease on every lane that it has folded.
SELECT count(*) FROM counterx.lanes WHERE folder_pid = pg_backend_pid();
ROLLBACK;
SELECT sum(counter_value('n:' || i)) FROM generate_series(1, 500) i;
SELECT sum(pending_deltas) FROM counterx.lanes;
SELECT counterx.compact();
SELECT sum(counter_value('n:' || i)) FROM generate_series(1, 500) i;
SELECT sum(value), count(*) FROM counterx.total WHERE name LIKE 'n:%';
-- Again, now with totals that are there.
SELECT count(counter_incr('n:' || i, i)) FROM generate_series(1, 500) i;
BEGIN;
SELECT counterx.compact();
ROLLBACK;
SELECT counterx.compact();
SELECT sum(value), count(*) FROM counterx.total WHERE name LIKE 'n:%';

-- Own increments are not committed yet, so a fold leaves them for later.
BEGIN;
SELECT counter_incr('own', 5);
SELECT counterx.compact();
SELECT counter_value('own');
SELECT counterx.compact();
COMMIT;
SELECT counter_value('own');
SELECT counterx.compact();

-- In a savepoint.
SELECT counter_incr('saved', 1);
BEGIN;
SAVEPOINT a;
SELECT counterx.compact();
ROLLBACK TO a;
SELECT counter_value('saved');
SELECT counterx.compact();
RELEASE a;
COMMIT;
SELECT counter_value('saved');
SELECT count(*), sum(value) FROM counterx.total WHERE name = 'saved';

-- Deltas of a prepared transaction are pending once it has committed.
BEGIN;
SELECT counter_incr('late', 3);
PREPARE TRANSACTION 'counterx_folding';
SELECT count(*) AS pending FROM counterx.lanes WHERE pending_deltas > 0;
SELECT counterx.compact();
COMMIT PREPARED 'counterx_folding';
SELECT count(*) AS pending FROM counterx.lanes WHERE pending_deltas > 0;
SELECT counter_value('late');
-- A read in the command that folds sees the delta where it was, not nowhere.
SELECT counterx.compact(), counter_value('late');
SELECT counter_value('late');
SELECT count(*) FROM counterx.late;
SELECT value FROM counterx.total WHERE name = 'late';

-- gen: every 64 epochs the live version of a row moves to a higher key. One row is alive. (Its first
-- bits are random, and the same for all of a lane.)
DO $$
BEGIN
    FOR i IN 1 .. 200 LOOP
        PERFORM counter_incr('likes:post:1');
        COMMIT;
        PERFORM counterx.compact();
        COMMIT;
    END LOOP;
END $$;
SELECT name, gen & ((1::bigint << 40) - 1) AS steps, value FROM counterx.total WHERE name = 'likes:post:1';
SELECT count(*), bool_and(gen & ((1::bigint << 40) - 1) = folded_epoch / 64) AS gen_follows FROM counterx.state WHERE lane = 7;
SELECT counter_value('likes:post:1');

-- By the thousand, in one statement and one transaction: one delta a counter.
SELECT count(counter_incr('k:' || i % 1000)) FROM generate_series(1, 100000) i;
SELECT counterx.compact();
SELECT count(*), min(value), max(value) FROM counters WHERE name LIKE 'k:%';
