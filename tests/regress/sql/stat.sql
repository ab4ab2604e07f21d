-- The view counterx.stat: its columns, what is counted when, and the reset. (No worker folds here.)
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
SELECT a.attname AS column, format_type(a.atttypid, a.atttypmod) AS type
FROM pg_attribute a WHERE a.attrelid = 'counterx.stat'::regclass AND a.attnum > 0 ORDER BY a.attnum;
-- In a database that has counted nothing.
SELECT stats_reset <= now() + '1 minute' AS since, increments, rows_flushed, early_flushes, hit_batches, hits_batched, hits_waiting,
    hits_refused, hits_failed, folds, deltas_folded, fold_time, truncations, refused, escrow_waits, escrow_wait_time FROM counterx.stat;
SELECT tokens_used, tokens_replayed, tokens_expired, holds_expired, serialization_conflicts, back_pressure_waits, back_pressure_wait_time, back_pressure_refused,
    pending, oldest_pending, workers, last_error, last_error_at FROM counterx.stat;
SELECT log_bytes > 0 AS log, total_bytes > 0 AS total, token_bytes > 0 AS token, hold_bytes > 0 AS hold, history_bytes > 0 AS history, stream_bytes > 0 AS stream FROM counterx.stat;

-- Those of the own transaction are added when it ends.
BEGIN;
SELECT counter_incr('a'), counter_incr('a'), counter_decr('b');
SELECT increments, rows_flushed, pending FROM counterx.stat;
COMMIT;
SELECT increments, rows_flushed, pending, oldest_pending BETWEEN now() - interval '1 hour' AND now() AS oldest FROM counterx.stat;
-- What is rolled back was asked for all the same.
BEGIN;
SELECT counter_incr('a');
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT counter_incr_many('{"a": 1, "b": 1}');
ROLLBACK TO s;
SELECT counter_incr('c');
COMMIT;
SELECT increments, rows_flushed, pending FROM counterx.stat;
-- No increments: changes by value.
SELECT counter_set('a', 10), counter_drop('c');
SELECT increments, rows_flushed, pending FROM counterx.stat;
-- Early writing.
BEGIN;
SET LOCAL counterx.pending_work_mem = '64kB';
SELECT count(counter_incr('early:' || i)) FROM generate_series(1, 3000) i;
COMMIT;
SELECT increments, rows_flushed, early_flushes > 1 AS early, pending FROM counterx.stat;

-- Folds count when they are committed.
BEGIN;
SELECT counterx.compact();
SELECT pending FROM counterx.stat;
ROLLBACK;
SELECT folds, deltas_folded, fold_time, pending FROM counterx.stat;
BEGIN;
SAVEPOINT s;
SELECT counterx.compact();
ROLLBACK TO s;
COMMIT;
SELECT folds, deltas_folded, fold_time, pending FROM counterx.stat;
BEGIN;
SAVEPOINT s;
SELECT counterx.compact();
RELEASE s;
SAVEPOINT s;
ROLLBACK TO s;
COMMIT;
SELECT folds, deltas_folded, fold_time > 0 AS fold_time, pending, oldest_pending FROM counterx.stat;
SELECT s.folds = w.folds AND s.deltas_folded = w.deltas_folded AS as_workers FROM counterx.stat s, counterx.workers w;

-- Bounds, tokens, hits.
SELECT counter_type_create('stock', min => 0);
SELECT counter_try_incr('stock:1', -1), counter_incr('stock:1', 5), counter_take_up_to('stock:1', 7);
SELECT counter_decr('stock:1', 1);
SELECT refused FROM counterx.stat;
SELECT counter_incr_once('t', 'a'), counter_incr_once('t', 'a'), counter_incr_once('t', 'a');
SELECT counter_incr_once('t', 'b');
SELECT tokens_used, tokens_replayed FROM counterx.stat;
SELECT counter_hit('h'), counter_hit_many('{"h": 1, "i": 2}'), counter_try_hit('stock:1', -1);
SELECT counter_hit('stock:1', -1);
-- One that fails is tried twice, and counts once.
SELECT counter_hit_many('{"h": 1, "stock:1": -1}');
SELECT increments, refused FROM counterx.stat;
SELECT hit_batches > 0 AS batches, hits_batched, hits_refused, hits_failed, hits_waiting FROM counterx.stat;

-- The reset is for this database's figures alone, and leaves what there is now.
CREATE TABLE before AS SELECT stats_reset, pending, total_bytes FROM counterx.stat;
SELECT counterx.stat_reset();
SELECT s.stats_reset > b.stats_reset AS later, s.pending = b.pending AND s.pending > 0 AS pending, s.total_bytes = b.total_bytes AS bytes,
    s.increments, s.rows_flushed, s.early_flushes, s.hit_batches, s.hits_batched, s.hits_refused, s.folds, s.deltas_folded, s.fold_time, s.truncations
FROM counterx.stat s, before b;
SELECT refused, tokens_used, tokens_replayed FROM counterx.stat;

-- In a plan with other things, and in a read-only transaction.
SELECT count(*) FROM counterx.stat a, counterx.stat b WHERE a.increments = b.increments;
BEGIN READ ONLY;
SELECT increments FROM counterx.stat;
COMMIT;
-- Who may monitor may look, and not reset.
CREATE ROLE regress_counterx_monitor IN ROLE pg_monitor;
SET ROLE regress_counterx_monitor;
SELECT increments FROM counterx.stat;
SELECT counterx.stat_reset();
RESET ROLE;
DROP ROLE regress_counterx_monitor;

-- Changes for streams have their size, and nothing else has it.
SELECT stream_bytes, history_bytes FROM counterx.stat \gset
SELECT counter_stream_create('s');
SELECT count(*) > 0 AS some FROM counter_stream_bootstrap('s');
SELECT counter_incr('streamed');
SELECT counterx.compact();
SELECT stream_bytes > :stream_bytes AS stream, history_bytes = :history_bytes AS history FROM counterx.stat;

-- What a savepoint takes back is what was done in it, and no more.
SELECT counter_incr('stock:2', 8);
SELECT count(counter_hold('stock:2', 1, '1 hour')) FROM generate_series(1, 8);
CREATE FUNCTION expire(holds integer) RETURNS boolean LANGUAGE sql AS $$
    UPDATE counterx.hold SET expires_at = now() - interval '2 days'
        WHERE id IN (SELECT h.id FROM counterx.hold h ORDER BY h.id LIMIT holds);
    SELECT counterx.compact() >= 0;
$$;
BEGIN;
SELECT expire(1);
SAVEPOINT s;
SELECT expire(2);
ROLLBACK TO s;
COMMIT;
SELECT holds_expired FROM counterx.stat;
BEGIN;
SAVEPOINT s;
SELECT expire(2);
SAVEPOINT t;
SELECT expire(4);
RELEASE t;
ROLLBACK TO s;
SAVEPOINT t;
SELECT expire(3);
RELEASE t;
RELEASE s;
COMMIT;
SELECT holds_expired FROM counterx.stat;
