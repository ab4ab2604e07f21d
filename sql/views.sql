-- What operators look at, and who may use what.

CREATE VIEW counterx.lanes AS
SELECT s.lane,
       s.epoch,
       s.folded_epoch,
       s.pending_deltas,
       s.log_bytes,
       pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) f.last_fold_at) AS seconds_since_fold,
       p.pid AS folder_pid
FROM counterx.lane_status() s
LEFT JOIN counterx.fold_status() f ON f.lane OPERATOR(pg_catalog.=) s.lane
LEFT JOIN LATERAL (
    SELECT l.pid
    FROM pg_catalog.pg_locks l
    JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) l.relation
    JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) l.database
    WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
      AND c.relnamespace OPERATOR(pg_catalog.=) 'counterx'::pg_catalog.regnamespace
      AND c.relname OPERATOR(pg_catalog.=) pg_catalog.concat('gate_', s.lane)
      AND l.mode OPERATOR(pg_catalog.=) 'ShareUpdateExclusiveLock'
      AND l.granted
    LIMIT 1
) p ON true;
COMMENT ON VIEW counterx.lanes IS 'the lanes of this database: how much is pending, and whether folding keeps up';
COMMENT ON COLUMN counterx.lanes.lane IS 'number of the lane; a counter belongs to the lane that its name hashes to';
COMMENT ON COLUMN counterx.lanes.epoch IS 'epoch that deltas are stamped with now';
COMMENT ON COLUMN counterx.lanes.folded_epoch IS 'all deltas up to this epoch are in the totals';
COMMENT ON COLUMN counterx.lanes.pending_deltas IS 'deltas that are not folded yet';
COMMENT ON COLUMN counterx.lanes.log_bytes IS 'size of both logs with their indexes';
COMMENT ON COLUMN counterx.lanes.seconds_since_fold IS 'seconds since the last fold that moved something';
COMMENT ON COLUMN counterx.lanes.folder_pid IS 'process that is folding the lane at this moment';

CREATE VIEW counterx.workers AS
WITH newest AS (SELECT * FROM counterx.fold_status())
SELECT a.pid,
       CASE
           WHEN a.pid IS NULL THEN 'stopped'
           WHEN a.state OPERATOR(pg_catalog.=) 'active' THEN a.query
           WHEN a.query OPERATOR(pg_catalog.=) 'paused' THEN 'paused'
           ELSE 'waiting'
       END AS state,
       t.folds,
       t.deltas_folded,
       pg_catalog.make_interval(secs => l.last_fold_us::pg_catalog.float8 OPERATOR(pg_catalog./) 1000000) AS last_fold_duration,
       e.last_error,
       e.last_error_at,
       a.number
FROM (
    SELECT COALESCE(pg_catalog.sum(st.folds), 0)::bigint AS folds,
           COALESCE(pg_catalog.sum(st.deltas_folded), 0)::bigint AS deltas_folded
    FROM newest st
) t
LEFT JOIN LATERAL (
    -- One that is about to leave and its successor may both be there for a moment.
    SELECT DISTINCT ON (n.number) n.number, sa.pid, sa.state, sa.query
    FROM pg_catalog.pg_stat_activity sa,
         LATERAL (SELECT COALESCE(pg_catalog.substring(sa.application_name, '^counterx further worker ([0-9])$')::integer, 0) AS number) n
    WHERE sa.backend_type OPERATOR(pg_catalog.=) 'counterx worker'
      AND sa.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
    ORDER BY n.number, sa.backend_start
) a ON true
LEFT JOIN LATERAL (
    SELECT st.last_fold_us
    FROM newest st
    WHERE st.last_fold_at IS NOT NULL
    ORDER BY st.last_fold_at DESC
    LIMIT 1
) l ON true
LEFT JOIN LATERAL (
    SELECT st.last_error, st.last_error_at
    FROM newest st
    WHERE st.last_error_at IS NOT NULL
    ORDER BY st.last_error_at DESC
    LIMIT 1
) e ON true;
COMMENT ON VIEW counterx.workers IS 'the background workers of this database, a row for each; one row with no pid when none is needed or none could start';
COMMENT ON COLUMN counterx.workers.pid IS 'process id; null when no worker runs';
COMMENT ON COLUMN counterx.workers.state IS 'stopped, paused, waiting, or what it does at this moment';
COMMENT ON COLUMN counterx.workers.folds IS 'folds so far, over all workers that this database had';
COMMENT ON COLUMN counterx.workers.deltas_folded IS 'deltas folded so far, likewise';
COMMENT ON COLUMN counterx.workers.last_fold_duration IS 'duration of the last fold';
COMMENT ON COLUMN counterx.workers.last_error IS 'SQLSTATE and message of the last fold that failed';
COMMENT ON COLUMN counterx.workers.last_error_at IS 'when it failed';
COMMENT ON COLUMN counterx.workers.number IS '0: the one that is there while the database counts; from 1: further ones (counterx.workers_per_database), which fold and do nothing else; null when no worker runs';

CREATE VIEW counterx.locks AS
WITH ours AS (
    SELECT l.pid, l.granted, l.waitstart, l.objsubid AS class,
           (l.classid::pg_catalog.int8 OPERATOR(pg_catalog.<<) 32) OPERATOR(pg_catalog.|) l.objid::pg_catalog.int8 AS key
    FROM pg_catalog.pg_locks l
    JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) l.database
    WHERE l.locktype OPERATOR(pg_catalog.=) 'userlock'
      AND d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
      AND l.objsubid OPERATOR(pg_catalog.>=) 1::smallint
      AND l.objsubid OPERATOR(pg_catalog.<=) 4::smallint
)
SELECT o.pid, o.granted,
       (ARRAY['counter', 'token', 'bounded counter', 'hold'])[o.class] AS kind,
       CASE o.class WHEN 4 THEN h.name ELSE n.name END AS name,
       CASE o.class WHEN 4 THEN o.key END AS hold,
       pg_catalog.pg_blocking_pids(o.pid) AS blocked_by,
       o.waitstart AS waiting_since
FROM ours o
LEFT JOIN (SELECT l.name, counterx.lock_key(l.name) AS key FROM counterx.listing l) n
    ON n.key OPERATOR(pg_catalog.=) o.key AND o.class OPERATOR(pg_catalog.=) ANY (ARRAY[1, 3]::smallint[])
LEFT JOIN ONLY counterx.hold h
    ON h.id OPERATOR(pg_catalog.=) o.key AND o.class OPERATOR(pg_catalog.=) 4::smallint;
COMMENT ON VIEW counterx.locks IS 'locks of this database on counters, tokens and holds, with the names of counters that exist';
COMMENT ON COLUMN counterx.locks.pid IS 'process id of the session that has or wants the lock';
COMMENT ON COLUMN counterx.locks.granted IS 'it has it; false: it waits';
COMMENT ON COLUMN counterx.locks.kind IS 'counter (it is set, reset, dropped, renamed or merged), token, bounded counter (only without shared_preload_libraries), or hold';
COMMENT ON COLUMN counterx.locks.name IS 'name of the counter; null for one that does not exist yet, and for tokens';
COMMENT ON COLUMN counterx.locks.hold IS 'id of the hold';
COMMENT ON COLUMN counterx.locks.blocked_by IS 'process ids of the sessions that it waits for';
COMMENT ON COLUMN counterx.locks.waiting_since IS 'since when it waits';

CREATE VIEW counterx.upkeep AS
SELECT (SELECT pg_catalog.min(t.at) FROM ONLY counterx.token t) AS oldest_token,
       (SELECT pg_catalog.min(h.expires_at) FROM ONLY counterx.hold h) AS first_hold_expires,
       (SELECT pg_catalog.max(h.expires_at) FROM ONLY counterx.hold h) AS last_hold_expires;
COMMENT ON VIEW counterx.upkeep IS 'one row: whether tokens and holds are removed in time';
COMMENT ON COLUMN counterx.upkeep.oldest_token IS 'when the oldest token was used; null: there is none';
COMMENT ON COLUMN counterx.upkeep.first_hold_expires IS 'when the first of the holds expires, or has expired; null: there is none';
COMMENT ON COLUMN counterx.upkeep.last_hold_expires IS 'when the last of them does';

CREATE FUNCTION counterx.type_changed() RETURNS trigger
    LANGUAGE c SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'counterx_type_changed';
CREATE FUNCTION counterx.ignore_replicated() RETURNS trigger
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'counterx_ignore_replicated';
CREATE FUNCTION counterx.guard() RETURNS trigger
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'counterx_guard';
CREATE FUNCTION counterx.restored() RETURNS trigger
    LANGUAGE c SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'counterx_restored';
CREATE FUNCTION counter_key(VARIADIC "any") RETURNS text
    LANGUAGE c IMMUTABLE PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'counterx_key';
CREATE FUNCTION counterx.count_row() RETURNS trigger
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'counterx_count_row';
CREATE FUNCTION counterx.count_truncate() RETURNS trigger
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'counterx_count_truncate';
CREATE FUNCTION counterx.track_restored() RETURNS trigger
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'counterx_track_restored';
CREATE FUNCTION counterx.tracked_ddl() RETURNS event_trigger
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'counterx_tracked_ddl';
CREATE PROCEDURE counterx.compact_in_steps()
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'counterx_compact_in_steps';
CREATE FUNCTION counter_name(type text, VARIADIC parts "any") RETURNS text
    LANGUAGE c IMMUTABLE PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'counterx_name';
CREATE FUNCTION counter_buckets(name text, unit text, "from" timestamptz DEFAULT NULL, "to" timestamptz DEFAULT NULL, fill boolean DEFAULT false)
    RETURNS TABLE (start timestamptz, delta numeric, ups numeric, downs numeric, changes bigint, adjusted numeric, value numeric, sealed boolean)
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000 ROWS 100
    AS 'MODULE_PATHNAME', 'counterx_buckets';
CREATE FUNCTION counter_rate(name text, over interval)
    RETURNS TABLE (delta numeric, from_at timestamptz, to_at timestamptz, per_second double precision)
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 500 ROWS 1
    AS 'MODULE_PATHNAME', 'counterx_rate';
CREATE FUNCTION counter_top_changed(max_rows bigint, prefix text DEFAULT '', since interval DEFAULT '1 day')
    RETURNS TABLE (name text, delta numeric)
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 10000 ROWS 10
    AS 'MODULE_PATHNAME', 'counterx_top_changed';
CREATE FUNCTION counter_events(name text, after timestamptz DEFAULT NULL, max_rows bigint DEFAULT 1000)
    RETURNS TABLE (at timestamptz, delta numeric, kind text, xid xid8, folded boolean)
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000 ROWS 100
    AS 'MODULE_PATHNAME', 'counterx_events';
CREATE FUNCTION counterx.sealed_until() RETURNS timestamptz
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 100
    AS 'MODULE_PATHNAME', 'counterx_sealed_until';
CREATE FUNCTION counterx.stat_figures()
    RETURNS TABLE (stats_reset timestamptz, increments bigint, rows_flushed bigint, early_flushes bigint, hit_batches bigint, hits_batched bigint, hits_waiting bigint, hits_refused bigint, hits_failed bigint, folds bigint, deltas_folded bigint, fold_time double precision, truncations bigint, refused bigint, escrow_waits bigint, escrow_wait_time double precision, tokens_used bigint, tokens_replayed bigint, tokens_expired bigint, holds_expired bigint, serialization_conflicts bigint, back_pressure_waits bigint, back_pressure_wait_time double precision, back_pressure_refused bigint, pending bigint, oldest_pending timestamptz)
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000 ROWS 1
    AS 'MODULE_PATHNAME', 'counterx_stat_figures';
CREATE FUNCTION counterx.stat_reset() RETURNS boolean
    LANGUAGE c PARALLEL RESTRICTED
    AS 'MODULE_PATHNAME', 'counterx_stat_reset';
CREATE FUNCTION counter_stream_create(stream text, prefix text DEFAULT '', mode text DEFAULT 'latest', keep interval DEFAULT '1 day', notify boolean DEFAULT true, publish boolean DEFAULT false, consumer name DEFAULT NULL)
    RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'counterx_stream_create';
CREATE FUNCTION counter_stream_drop(stream text) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'counterx_stream_drop';
CREATE FUNCTION counter_stream_bootstrap(stream text)
    RETURNS TABLE (name text, value bigint)
    LANGUAGE c VOLATILE PARALLEL UNSAFE COST 10000 ROWS 1000
    AS 'MODULE_PATHNAME', 'counterx_stream_bootstrap';
CREATE FUNCTION counter_stream_next(stream text, max_rows integer DEFAULT 1000, lanes integer[] DEFAULT NULL)
    RETURNS TABLE (name text, value bigint, delta bigint, kind text, alert text, at timestamptz, lane integer, fold bigint)
    LANGUAGE c VOLATILE PARALLEL UNSAFE COST 1000 ROWS 1000
    AS 'MODULE_PATHNAME', 'counterx_stream_next';
CREATE FUNCTION counter_stream_peek(stream text, max_rows integer DEFAULT 1000, lanes integer[] DEFAULT NULL)
    RETURNS TABLE (name text, value bigint, delta bigint, kind text, alert text, at timestamptz, lane integer, fold bigint, "position" text)
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000 ROWS 1000
    AS 'MODULE_PATHNAME', 'counterx_stream_peek';
CREATE FUNCTION counter_stream_ack(stream text, "position" text) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'counterx_stream_ack';
CREATE FUNCTION counter_alert_create(alert text, prefix text DEFAULT '', below bigint DEFAULT NULL, above bigint DEFAULT NULL, rearm bigint DEFAULT NULL, stream text DEFAULT NULL)
    RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'counterx_alert_create';
CREATE FUNCTION counter_alert_drop(alert text) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'counterx_alert_drop';
CREATE FUNCTION counter_alerts_fired(wanted text DEFAULT NULL)
    RETURNS TABLE (alert text, name text, value numeric, since timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp COST 1000 ROWS 100
    AS $$
        SELECT a.name, s.name, s.value, s.since
        FROM ONLY counterx.alert a
        JOIN ONLY counterx.alert_state s ON s.alert OPERATOR(pg_catalog.=) a.id
        WHERE wanted IS NULL OR a.name OPERATOR(pg_catalog.=) wanted
        ORDER BY a.name, s.name
    $$;
CREATE FUNCTION counterx.stream_status()
    RETURNS TABLE (stream text, state text, reason text, lag_folds bigint, oldest timestamptz, lag_bytes bigint)
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000 ROWS 10
    AS 'MODULE_PATHNAME', 'counterx_stream_status';

CREATE VIEW counterx.stat AS
SELECT f.stats_reset,
       f.increments,
       f.rows_flushed,
       f.early_flushes,
       f.hit_batches,
       f.hits_batched,
       f.hits_waiting,
       f.hits_refused,
       f.hits_failed,
       f.folds,
       f.deltas_folded,
       f.fold_time,
       f.truncations,
       f.refused,
       f.escrow_waits,
       f.escrow_wait_time,
       f.tokens_used,
       f.tokens_replayed,
       f.tokens_expired,
       f.holds_expired,
       f.serialization_conflicts,
       f.back_pressure_waits,
       f.back_pressure_wait_time,
       f.back_pressure_refused,
       f.pending,
       f.oldest_pending,
       b.log_bytes,
       b.total_bytes,
       b.token_bytes,
       b.hold_bytes,
       b.history_bytes,
       b.stream_bytes,
       w.workers,
       e.last_error,
       e.last_error_at
FROM counterx.stat_figures() f
CROSS JOIN (
    SELECT COALESCE(pg_catalog.sum(pg_catalog.pg_total_relation_size(c.oid)) FILTER (WHERE pg_catalog.starts_with(c.relname::text, 'log_')), 0)::bigint AS log_bytes,
           COALESCE(pg_catalog.sum(pg_catalog.pg_total_relation_size(c.oid)) FILTER (WHERE c.relname OPERATOR(pg_catalog.=) 'total'), 0)::bigint AS total_bytes,
           COALESCE(pg_catalog.sum(pg_catalog.pg_total_relation_size(c.oid)) FILTER (WHERE c.relname OPERATOR(pg_catalog.=) 'token'), 0)::bigint AS token_bytes,
           COALESCE(pg_catalog.sum(pg_catalog.pg_total_relation_size(c.oid)) FILTER (WHERE c.relname OPERATOR(pg_catalog.=) 'hold'), 0)::bigint AS hold_bytes,
           COALESCE(pg_catalog.sum(pg_catalog.pg_total_relation_size(c.oid)) FILTER (WHERE pg_catalog.starts_with(c.relname::text, 'bucket_')), 0)::bigint AS history_bytes,
           COALESCE(pg_catalog.sum(pg_catalog.pg_total_relation_size(c.oid)) FILTER (WHERE pg_catalog.starts_with(c.relname::text, 'change_')), 0)::bigint AS stream_bytes
    -- By what the extension has: to look through all relations of a schema takes all of pg_class.
    FROM pg_catalog.pg_extension x
    JOIN pg_catalog.pg_depend d
        ON d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass
        AND d.refobjid OPERATOR(pg_catalog.=) x.oid
        AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
        AND d.deptype OPERATOR(pg_catalog.=) 'e'
    JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) d.objid AND c.relkind OPERATOR(pg_catalog.=) 'r'
    WHERE x.extname OPERATOR(pg_catalog.=) 'counterx'
) b
CROSS JOIN (
    SELECT pg_catalog.count(*)::integer AS workers
    FROM pg_catalog.pg_stat_activity sa
    WHERE sa.backend_type OPERATOR(pg_catalog.=) 'counterx worker'
      AND sa.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
) w
LEFT JOIN LATERAL (
    SELECT st.last_error, st.last_error_at
    FROM counterx.fold_status() st
    WHERE st.last_error_at IS NOT NULL
    ORDER BY st.last_error_at DESC
    LIMIT 1
) e ON true;
COMMENT ON VIEW counterx.stat IS 'how counting goes in this database, in one row: what happened since stats_reset, and what there is now';
COMMENT ON COLUMN counterx.stat.stats_reset IS 'since when the cumulative figures count; null, as all of them, where counterx is not in shared_preload_libraries';
COMMENT ON COLUMN counterx.stat.increments IS 'increments that were asked for, also in transactions that were rolled back';
COMMENT ON COLUMN counterx.stat.rows_flushed IS 'rows written to the logs: one a counter and transaction, nearly';
COMMENT ON COLUMN counterx.stat.early_flushes IS 'how often a transaction has written before its end, as for want of counterx.pending_work_mem';
COMMENT ON COLUMN counterx.stat.hit_batches IS 'transactions of the committer';
COMMENT ON COLUMN counterx.stat.hits_batched IS 'hits that these have counted';
COMMENT ON COLUMN counterx.stat.hits_waiting IS 'hits that wait for the committer now';
COMMENT ON COLUMN counterx.stat.hits_refused IS 'hits that a bound forbade';
COMMENT ON COLUMN counterx.stat.hits_failed IS 'hits that were not counted for another reason: for want of a committer or of room, or as the committer could not commit them';
COMMENT ON COLUMN counterx.stat.folds IS 'folds of a lane';
COMMENT ON COLUMN counterx.stat.deltas_folded IS 'deltas that they have moved into totals';
COMMENT ON COLUMN counterx.stat.fold_time IS 'how long they took, in milliseconds';
COMMENT ON COLUMN counterx.stat.truncations IS 'logs that were emptied';
COMMENT ON COLUMN counterx.stat.refused IS 'requests that a bound forbade';
COMMENT ON COLUMN counterx.stat.escrow_waits IS 'requests that have waited for what other transactions may give back';
COMMENT ON COLUMN counterx.stat.escrow_wait_time IS 'how long, in milliseconds';
COMMENT ON COLUMN counterx.stat.tokens_used IS 'calls with a token that was new';
COMMENT ON COLUMN counterx.stat.tokens_replayed IS 'calls with a token that was used before';
COMMENT ON COLUMN counterx.stat.tokens_expired IS 'tokens that were removed';
COMMENT ON COLUMN counterx.stat.holds_expired IS 'holds that were removed, a day after they had expired';
COMMENT ON COLUMN counterx.stat.serialization_conflicts IS 'errors 40001 of counterx';
COMMENT ON COLUMN counterx.stat.back_pressure_waits IS 'transactions that have waited for a fold, as of counterx.max_pending';
COMMENT ON COLUMN counterx.stat.back_pressure_wait_time IS 'how long, in milliseconds';
COMMENT ON COLUMN counterx.stat.back_pressure_refused IS 'transactions that were refused, as of counterx.max_pending: with error 53400';
COMMENT ON COLUMN counterx.stat.pending IS 'deltas in the logs that are not folded, nearly';
COMMENT ON COLUMN counterx.stat.oldest_pending IS 'when the oldest of them was written, nearly; null: there is none';
COMMENT ON COLUMN counterx.stat.log_bytes IS 'size of the logs with their indexes';
COMMENT ON COLUMN counterx.stat.total_bytes IS 'size of the totals with their indexes';
COMMENT ON COLUMN counterx.stat.token_bytes IS 'size of the tokens with their indexes';
COMMENT ON COLUMN counterx.stat.hold_bytes IS 'size of the holds with their indexes';
COMMENT ON COLUMN counterx.stat.history_bytes IS 'size of what was counted by time, with its indexes';
COMMENT ON COLUMN counterx.stat.stream_bytes IS 'size of the changes for streams with their indexes';
COMMENT ON COLUMN counterx.stat.workers IS 'workers of this database that run now';
COMMENT ON COLUMN counterx.stat.last_error IS 'SQLSTATE and message of the last fold that failed';
COMMENT ON COLUMN counterx.stat.last_error_at IS 'when it failed';

REVOKE ALL ON counterx.lanes, counterx.workers, counterx.locks, counterx.upkeep, counterx.stat FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA counterx FROM PUBLIC;

-- The triggers of a partition that is made are made by whoever makes it. They count what the track says, and
-- nobody can name them who may not use the schema.
GRANT EXECUTE ON FUNCTION counterx.count_row(), counterx.count_truncate() TO PUBLIC;
-- The views counter_tracks, counter_sealed and counter_streams call them as whoever reads the view.
GRANT EXECUTE ON FUNCTION counterx.rows_so_far(text), counterx.sealed_until(), counterx.stream_status() TO PUBLIC;

-- Who may monitor the server may see how folding goes, and who waits for whom. They see no counter by that
-- but the names of those that are locked.
GRANT USAGE ON SCHEMA counterx TO pg_monitor;
GRANT SELECT ON counterx.lanes, counterx.workers, counterx.locks, counterx.upkeep, counterx.stat TO pg_monitor;
GRANT EXECUTE ON FUNCTION counterx.lane_status(), counterx.fold_status(), counterx.escrow_status(), counterx.stat_figures(), counterx.lock_key(text), counterx.version() TO pg_monitor;

-- Whoever owns the database makes its dumps, and restores them into a database of his own.
GRANT USAGE ON SCHEMA counterx TO pg_database_owner;
GRANT SELECT, INSERT ON counterx.late, counterx.token, counterx.type, counterx.track, counterx.hold, counterx.history, counterx.bucket_restored, counterx.stream, counterx.alert TO pg_database_owner;
GRANT SELECT, UPDATE ON counterx.hold_id TO pg_database_owner;
GRANT EXECUTE ON FUNCTION counterx.dump_rows(), counterx.dump_history(), counterx.dump_buckets(), counterx.windows_removed(), counterx.version() TO pg_database_owner;

-- What happens when others than we change our tables. All of these fire in every session, whatever
-- session_replication_role says; the functions look who it is.
DO $$
DECLARE
    ours regclass;
BEGIN
    FOR ours IN
        SELECT c.oid
        FROM pg_catalog.pg_class c
        WHERE c.relnamespace OPERATOR(pg_catalog.=) 'counterx'::pg_catalog.regnamespace
          AND c.relkind OPERATOR(pg_catalog.=) 'r'
          AND c.relname OPERATOR(pg_catalog.<>) 'anchor'
        ORDER BY c.oid
    LOOP
        IF ours OPERATOR(pg_catalog.=) ANY (ARRAY['counterx.token', 'counterx.type', 'counterx.hold', 'counterx.track', 'counterx.history', 'counterx.bucket_restored', 'counterx.stream', 'counterx.alert']::pg_catalog.regclass[]) THEN
            -- What restores fill. Every server has its own counters: rows that a subscription to a
            -- publication FOR ALL TABLES brings are ignored.
            EXECUTE pg_catalog.format('CREATE TRIGGER ignore_replicated BEFORE INSERT OR UPDATE OR DELETE ON %s
                FOR EACH ROW EXECUTE FUNCTION counterx.ignore_replicated()', ours);
            EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE ALWAYS TRIGGER ignore_replicated', ours);
        ELSE
            EXECUTE pg_catalog.format('CREATE TRIGGER guard BEFORE %s UPDATE OR DELETE ON %s
                FOR EACH ROW EXECUTE FUNCTION counterx.guard()',
                CASE WHEN ours OPERATOR(pg_catalog.=) 'counterx.late'::pg_catalog.regclass THEN '' ELSE 'INSERT OR' END, ours);
            EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE ALWAYS TRIGGER guard', ours);
        END IF;
        -- A publication ships it, and no trigger could leave it out where it arrives.
        EXECUTE pg_catalog.format('CREATE TRIGGER guard_truncate BEFORE TRUNCATE ON %s
            FOR EACH STATEMENT EXECUTE FUNCTION counterx.guard()', ours);
        EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE ALWAYS TRIGGER guard_truncate', ours);
    END LOOP;
END
$$;
CREATE TRIGGER restored BEFORE INSERT ON counterx.late
    FOR EACH ROW EXECUTE FUNCTION counterx.restored();
ALTER TABLE counterx.late ENABLE ALWAYS TRIGGER restored;
CREATE TRIGGER restored_all AFTER INSERT ON counterx.late
    FOR EACH STATEMENT EXECUTE FUNCTION counterx.restored();
ALTER TABLE counterx.late ENABLE ALWAYS TRIGGER restored_all;
CREATE TRIGGER restored BEFORE INSERT OR UPDATE ON counterx.hold
    FOR EACH ROW EXECUTE FUNCTION counterx.restored();
ALTER TABLE counterx.hold ENABLE ALWAYS TRIGGER restored;
CREATE TRIGGER restored_all AFTER INSERT OR UPDATE ON counterx.hold
    FOR EACH STATEMENT EXECUTE FUNCTION counterx.restored();
ALTER TABLE counterx.hold ENABLE ALWAYS TRIGGER restored_all;
-- Every backend keeps the types in memory: whatever changes them has to tell.
CREATE TRIGGER type_changed AFTER INSERT OR UPDATE OR DELETE ON counterx.type
    FOR EACH STATEMENT EXECUTE FUNCTION counterx.type_changed();
ALTER TABLE counterx.type ENABLE ALWAYS TRIGGER type_changed;

CREATE TRIGGER restored_all AFTER INSERT ON counterx.track
    FOR EACH STATEMENT EXECUTE FUNCTION counterx.track_restored();
ALTER TABLE counterx.track ENABLE ALWAYS TRIGGER restored_all;
-- Enabled as long as there are tracked tables: see src/track/tables.rs.
CREATE EVENT TRIGGER counterx_tracked_ddl ON ddl_command_end EXECUTE FUNCTION counterx.tracked_ddl();
ALTER EVENT TRIGGER counterx_tracked_ddl DISABLE;
COMMENT ON EVENT TRIGGER counterx_tracked_ddl IS 'notices DDL that may make the counters of tracked tables wrong';

CREATE VIEW counter_types AS
SELECT t.name, t.min, t.max, t.description,
       (SELECT pg_catalog.count(*) FROM counterx.listing l
        WHERE l.name OPERATOR(pg_catalog.^@) pg_catalog.concat(t.name, ':')) AS counters,
       t.per, t.zone AS time_zone, CASE WHEN t.per IS NOT NULL THEN t.kept END AS kept,
       CASE WHEN t.per IS NOT NULL THEN t.sliding END AS sliding,
       CASE WHEN t.per IS NOT NULL THEN t.count_refused END AS count_refused
FROM ONLY counterx.type t;
COMMENT ON VIEW counter_types IS 'counter types';
COMMENT ON COLUMN counter_types.name IS 'what the names of its counters begin with, before the colon';
COMMENT ON COLUMN counter_types.min IS 'least value of its counters; null: none';
COMMENT ON COLUMN counter_types.max IS 'greatest value of its counters; null: none';
COMMENT ON COLUMN counter_types.description IS 'what somebody has said of it';
COMMENT ON COLUMN counter_types.counters IS 'number of its counters; of those with windows, in the running one';
COMMENT ON COLUMN counter_types.per IS 'length of the windows with which its counters begin anew; null: they do not';
COMMENT ON COLUMN counter_types.time_zone IS 'whose days or months these are; null: those of UTC';
COMMENT ON COLUMN counter_types.kept IS 'how many windows before the running one are kept';
COMMENT ON COLUMN counter_types.sliding IS 'what was counted in the window before the running one counts still, less and less';
COMMENT ON COLUMN counter_types.count_refused IS 'a request that is refused counts as well';
GRANT SELECT ON counter_types TO PUBLIC;

CREATE VIEW counter_tracks AS
SELECT t.type, pg_catalog.format('%I.%I', t.table_schema, t.table_name) AS "table", t.key, t.sum, t.scale, t.filter,
       CASE WHEN h.are_here AND NOT h.is_detached THEN t.state ELSE 'stale' END AS state, t.since,
       CASE
           WHEN h.is_detached THEN COALESCE(t.reason, 'a partition is being detached')
           WHEN h.are_here THEN t.reason
           ELSE COALESCE(t.reason, 'the table, or its triggers, are not here')
       END AS reason,
       COALESCE(p.rows, t.rows_seen) AS rows_seen, CASE WHEN p.rows IS NULL THEN t.waiting_for END AS waiting_for,
       -- It may tell of a row.
       CASE WHEN pg_catalog.pg_has_role('pg_monitor', 'USAGE') THEN t.last_error END AS last_error
FROM ONLY counterx.track t,
LATERAL (
    -- DETACH PARTITION CONCURRENTLY commits in the middle: from then on, nobody sees the partition in the table.
    SELECT pg_catalog.count(g.oid) OPERATOR(pg_catalog.>) 0 AS are_here, pg_catalog.count(i.inhrelid) OPERATOR(pg_catalog.>) 0 AS is_detached
    FROM pg_catalog.pg_trigger g
    LEFT JOIN pg_catalog.pg_inherits i ON i.inhrelid OPERATOR(pg_catalog.=) g.tgrelid AND i.inhdetachpending
    WHERE g.tgfoid OPERATOR(pg_catalog.=) 'counterx.count_row()'::pg_catalog.regprocedure
      AND pg_catalog.substr(g.tgargs, 1, pg_catalog.octet_length(t.type) OPERATOR(pg_catalog.+) 1)
          OPERATOR(pg_catalog.=) (pg_catalog.convert_to(t.type, 'SQL_ASCII') OPERATOR(pg_catalog.||) '\x00'::bytea)
) h,
LATERAL (SELECT counterx.rows_so_far(t.type)) p(rows);
COMMENT ON VIEW counter_tracks IS 'tracked tables';
COMMENT ON COLUMN counter_tracks.type IS 'type of its counters: what their names begin with, before the colon';
COMMENT ON COLUMN counter_tracks."table" IS 'name that the table had when it was tracked';
COMMENT ON COLUMN counter_tracks.key IS 'columns and expressions that the names are made of';
COMMENT ON COLUMN counter_tracks.sum IS 'what is added up; null: rows are counted';
COMMENT ON COLUMN counter_tracks.scale IS 'digits after the point of the sum: values are whole numbers of its smallest unit';
COMMENT ON COLUMN counter_tracks.filter IS 'which rows count; null: all';
COMMENT ON COLUMN counter_tracks.state IS 'exact, attached (rows of before are still to be counted), or stale (the counters may be wrong)';
COMMENT ON COLUMN counter_tracks.since IS 'since when it has been in this state';
COMMENT ON COLUMN counter_tracks.reason IS 'why it is stale';
COMMENT ON COLUMN counter_tracks.rows_seen IS 'rows that were counted last, or so far while they are counted';
COMMENT ON COLUMN counter_tracks.waiting_for IS 'who has the table in use, and is waited for before rows are counted';
COMMENT ON COLUMN counter_tracks.last_error IS 'why it could not be made exact, for members of pg_monitor';
GRANT SELECT ON counter_tracks TO PUBLIC;

CREATE VIEW counter_holds AS
SELECT h.id, h.name, h.amount, h.created_at, h.expires_at,
       h.expires_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp() AS expired
FROM ONLY counterx.hold h;
COMMENT ON VIEW counter_holds IS 'amounts that are set aside from bounded counters';
COMMENT ON COLUMN counter_holds.id IS 'what counter_hold() has returned';
COMMENT ON COLUMN counter_holds.name IS 'name of the counter';
COMMENT ON COLUMN counter_holds.amount IS 'amount that is set aside';
COMMENT ON COLUMN counter_holds.created_at IS 'when it was made';
COMMENT ON COLUMN counter_holds.expires_at IS 'until when it can be confirmed';
COMMENT ON COLUMN counter_holds.expired IS 'its amount is free again';
GRANT SELECT ON counter_holds TO PUBLIC;

CREATE VIEW counter_histories AS
SELECT h.type, h.unit, COALESCE(h.keep::text, 'infinity') AS keep, h.zone AS time_zone,
       COALESCE(h.since, (
           SELECT CASE WHEN pg_catalog.count(l.since) OPERATOR(pg_catalog.=) 8 THEN pg_catalog.max(l.since) END
           FROM ONLY counterx.history_lane l
           WHERE l.history OPERATOR(pg_catalog.=) h.id
       )) AS since
FROM ONLY counterx.history h;
COMMENT ON VIEW counter_histories IS 'types of which is kept what was counted when, a row for each unit';
COMMENT ON COLUMN counter_histories.type IS 'what the names of the counters begin with, before the colon';
COMMENT ON COLUMN counter_histories.unit IS 'minute, hour, day, month, or event: each change by itself';
COMMENT ON COLUMN counter_histories.keep IS 'how long that is kept, an interval or infinity';
COMMENT ON COLUMN counter_histories.time_zone IS 'whose minutes, hours, days and months they are';
COMMENT ON COLUMN counter_histories.since IS 'since when it is known of all counters of the type; null: not yet';
GRANT SELECT ON counter_histories TO PUBLIC;

CREATE VIEW counter_sealed AS
SELECT counterx.sealed_until() AS sealed_until;
COMMENT ON VIEW counter_sealed IS 'one row: how far history is sealed';
COMMENT ON COLUMN counter_sealed.sealed_until IS 'buckets that end at this time or before never change; null: none is sealed';
GRANT SELECT ON counter_sealed TO PUBLIC;

CREATE VIEW counter_streams AS
SELECT s.name AS stream, s.prefix, s.mode, s.keep, s.notify, s.publish, s.consumer, st.state, st.reason, st.lag_folds,
       pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) st.oldest AS lag, st.lag_bytes, s.created_at
FROM ONLY counterx.stream s
LEFT JOIN counterx.stream_status() st ON st.stream OPERATOR(pg_catalog.=) s.name;
COMMENT ON VIEW counter_streams IS 'streams of changes';
COMMENT ON COLUMN counter_streams.stream IS 'name of the stream';
COMMENT ON COLUMN counter_streams.prefix IS 'what the names of its counters begin with';
COMMENT ON COLUMN counter_streams.mode IS 'latest (what the changes of a counter come to) or every (each of them)';
COMMENT ON COLUMN counter_streams.keep IS 'how long changes wait for the consumer';
COMMENT ON COLUMN counter_streams.notify IS 'the worker notifies the channel counterx when there are changes';
COMMENT ON COLUMN counter_streams.publish IS 'changes are announced to logical decoding';
COMMENT ON COLUMN counter_streams.consumer IS 'role whose members may consume';
COMMENT ON COLUMN counter_streams.state IS 'new (not started), live, or lost (something is missing: it has to be bootstrapped again)';
COMMENT ON COLUMN counter_streams.reason IS 'why it is lost';
COMMENT ON COLUMN counter_streams.lag_folds IS 'folds that the consumer is behind, in the lane where these are most';
COMMENT ON COLUMN counter_streams.lag IS 'age of the oldest change that waits; null: none does';
COMMENT ON COLUMN counter_streams.lag_bytes IS 'size of the tables in which changes wait, with those of other streams';
COMMENT ON COLUMN counter_streams.created_at IS 'when it was created';
GRANT SELECT ON counter_streams TO PUBLIC;

CREATE VIEW counter_alerts AS
SELECT a.name AS alert, a.prefix, a.below, a.above, a.rearm, a.stream,
       (SELECT pg_catalog.count(*) FROM ONLY counterx.alert_state s WHERE s.alert OPERATOR(pg_catalog.=) a.id) AS fired,
       (SELECT pg_catalog.max(l.last_fired_at) FROM ONLY counterx.alert_lane l WHERE l.alert OPERATOR(pg_catalog.=) a.id) AS last_fired_at,
       a.created_at
FROM ONLY counterx.alert a;
COMMENT ON VIEW counter_alerts IS 'thresholds that counters are watched for';
COMMENT ON COLUMN counter_alerts.alert IS 'name of the alert';
COMMENT ON COLUMN counter_alerts.prefix IS 'what the names of its counters begin with';
COMMENT ON COLUMN counter_alerts.below IS 'it fires for a counter that comes to be less; null: it goes by above';
COMMENT ON COLUMN counter_alerts.above IS 'it fires for a counter that comes to be greater; null: it goes by below';
COMMENT ON COLUMN counter_alerts.rearm IS 'value from which on it can fire again';
COMMENT ON COLUMN counter_alerts.stream IS 'the stream that is told; null: all that have the counter';
COMMENT ON COLUMN counter_alerts.fired IS 'number of counters for which it has fired and was not rearmed since';
COMMENT ON COLUMN counter_alerts.last_fired_at IS 'when it has fired last';
COMMENT ON COLUMN counter_alerts.created_at IS 'when it was created';
GRANT SELECT ON counter_alerts TO PUBLIC;

REVOKE ALL ON FUNCTION
    counter_type_create(text, bigint, bigint, text, jsonb, interval, text, bigint, boolean, boolean),
    counter_type_alter(text, bigint, bigint, text, jsonb),
    counter_type_drop(text),
    counter_track(regclass, text, text[], text, integer, text, boolean),
    counter_untrack(regclass, text, boolean),
    counter_recount(regclass, text),
    counter_drift(regclass, text),
    counter_history(text, text, text, text, text, text, text),
    counter_history_drop(text),
    counter_seal(),
    counter_stream_create(text, text, text, interval, boolean, boolean, name),
    counter_stream_drop(text),
    counter_alert_create(text, text, bigint, bigint, bigint, text),
    counter_alert_drop(text)
FROM PUBLIC;

-- Who may do what. Everybody may read and count until the owner says otherwise; what changes counters
-- by other means than counting is nobody's but the owner's, until it is granted.
REVOKE ALL ON FUNCTION
    counter_set(text, bigint),
    counter_reset(text),
    counter_drop(text, boolean),
    counter_rename(text, text),
    counter_merge(text, text)
FROM PUBLIC;

-- What the planner may expect. (The support function of unnest() looks at the length of the array.)
ALTER FUNCTION counter_values(text[]) ROWS 100 SUPPORT pg_catalog.array_unnest_support;
ALTER FUNCTION counter_list(text, text, bigint) ROWS 100;
ALTER FUNCTION counter_windows(text) ROWS 10;
ALTER FUNCTION counter_top(bigint, text, bigint, text) ROWS 10;
ALTER FUNCTION counter_bottom(bigint, text, bigint, text) ROWS 10;
ALTER FUNCTION counterx.lane_status() ROWS 8;
ALTER FUNCTION counterx.escrow_status() ROWS 1;
ALTER FUNCTION counterx.fold_status() ROWS 8;
ALTER FUNCTION counterx.version() ROWS 1;

COMMENT ON FUNCTION counter_incr(text, bigint) IS 'adds to a counter, with the transaction; returns true; waits for nobody unless the counter has bounds';
COMMENT ON PROCEDURE counter_add(text, bigint) IS 'what counter_incr() does, as a command: for clients that take a SELECT for a read';
COMMENT ON FUNCTION counter_decr(text, bigint) IS 'subtracts from a counter, with the transaction; returns true; waits for nobody unless the counter has bounds';
COMMENT ON FUNCTION counter_incr_get(text, bigint) IS 'adds to a counter and returns the value that this transaction now sees; others may get the same one';
COMMENT ON FUNCTION counter_incr_many(text[], bigint[]) IS 'adds to many counters, the first delta to the first name and so on; returns true';
COMMENT ON FUNCTION counter_incr_many(jsonb) IS 'adds to many counters: an object of names and deltas; returns true';
COMMENT ON FUNCTION counter_incr_once(text, text, bigint) IS 'adds to a counter once for each token; false when that was done before';
COMMENT ON FUNCTION counter_incr_once_get(text, text, bigint) IS 'adds to a counter once for each token; returns the value seen then, also when that was done before';
COMMENT ON FUNCTION counter_hit(text, bigint, boolean) IS 'adds to a counter at once, whatever becomes of the transaction; many sessions share a commit; returns true';
COMMENT ON FUNCTION counter_hit_many(jsonb, boolean) IS 'adds to many counters at once, to all or to none, whatever becomes of the transaction: an object of names and deltas; returns true';
COMMENT ON FUNCTION counter_try_hit(text, bigint) IS 'adds to a counter at once if its bounds allow it, whatever becomes of the transaction; false when they do not';
COMMENT ON FUNCTION counter_value(text) IS 'the exact value of a counter for the current snapshot; 0 when it does not exist';
COMMENT ON FUNCTION counter_window(text) IS 'what a counter has in the running window, when that began and when it ends';
COMMENT ON FUNCTION counter_windows(text) IS 'what a counter came to in earlier windows that are kept, the last one first';
COMMENT ON FUNCTION counter_values(text[]) IS 'the values of many counters in one snapshot, in the order asked; 0 for those that do not exist';
COMMENT ON FUNCTION counter_list(text, text, bigint) IS 'the first counters with a prefix whose names come after a given one, in the order of their names';
COMMENT ON FUNCTION counter_sum(text) IS 'the sum of all counters with a prefix';
COMMENT ON FUNCTION counter_rank(text, text) IS 'the rank of a counter among those with a prefix, as counter_top() shows it; null when it is not among them';
COMMENT ON FUNCTION counter_top(bigint, text, bigint, text) IS 'the counters of the greatest values among those with a prefix, or of those after a place; equal values share a rank';
COMMENT ON FUNCTION counter_bottom(bigint, text, bigint, text) IS 'the counters of the least values among those with a prefix, or of those after a place; equal values share a rank';
COMMENT ON FUNCTION counter_name(text, "any") IS 'the name of a counter of a type, made of parts';
COMMENT ON FUNCTION counter_parts(text) IS 'the parts that a counter''s name is made of, without the type';
COMMENT ON FUNCTION counter_set(text, bigint) IS 'sets a counter and returns its old value; waits for other calls of this kind on it, not for increments';
COMMENT ON FUNCTION counter_reset(text) IS 'sets a counter to 0 and returns its old value';
COMMENT ON FUNCTION counter_drop(text, boolean) IS 'removes a counter, and its history when that is purged; false when there was none';
COMMENT ON FUNCTION counter_history(text, text, text, text, text, text, text) IS 'keeps what the counters of a type count by minute, hour, day, month and event, each for so long; returns true';
COMMENT ON FUNCTION counter_history_drop(text) IS 'ends the history of a type and removes it; false when there was none';
COMMENT ON FUNCTION counter_seal() IS 'seals the history of all lanes through this moment, as the clock is right; returns through when';
COMMENT ON FUNCTION counter_buckets(text, text, timestamptz, timestamptz, boolean) IS 'what was counted of a counter in each minute, hour, day or month that begins in a span of time';
COMMENT ON FUNCTION counter_at(text, timestamptz) IS 'the value of a counter at the last boundary of its finest known unit that is not later than a time; null when that is not known';
COMMENT ON FUNCTION counter_at_boundary(text, timestamptz) IS 'that boundary: as of when counter_at() knows the value';
COMMENT ON FUNCTION counter_rate(text, interval) IS 'what was counted of a counter in the last whole units that make up an interval; no row when that is not known';
COMMENT ON FUNCTION counter_top_changed(bigint, text, interval) IS 'the counters of a type, or some of them, of which most was counted lately';
COMMENT ON FUNCTION counter_events(text, timestamptz, bigint) IS 'single changes of a counter after a time, in the order in which they were counted';
COMMENT ON FUNCTION counterx.sealed_until() IS 'the time behind the view counter_sealed';
COMMENT ON FUNCTION counter_stream_create(text, text, text, interval, boolean, boolean, name) IS 'declares a stream of the changes of the counters with a prefix; counter_stream_bootstrap() starts it; returns true';
COMMENT ON FUNCTION counter_stream_drop(text) IS 'ends a stream; false when there was none';
COMMENT ON FUNCTION counter_stream_bootstrap(text) IS 'starts a stream, or begins it anew: returns what its counters are, and has the changes that follow wait for the consumer';
COMMENT ON FUNCTION counter_stream_next(text, integer, integer[]) IS 'the next changes of a stream; they are read when the transaction commits';
COMMENT ON FUNCTION counter_stream_peek(text, integer, integer[]) IS 'the next changes of a stream, each with what it is acknowledged by';
COMMENT ON FUNCTION counter_stream_ack(text, text) IS 'changes of a stream are read up to a position; returns true';
COMMENT ON FUNCTION counter_alert_create(text, text, bigint, bigint, bigint, text) IS 'watches the counters with a prefix for a threshold; returns true';
COMMENT ON FUNCTION counter_alert_drop(text) IS 'ends an alert; false when there was none';
COMMENT ON FUNCTION counter_alerts_fired(text) IS 'the counters for which an alert, or any, has fired and was not rearmed since, with the values at which it has';
COMMENT ON FUNCTION counterx.stream_status() IS 'how far the consumers of streams are, behind the view counter_streams';
COMMENT ON FUNCTION counter_rename(text, text) IS 'moves a counter to a new name, which must not exist; returns true';
COMMENT ON FUNCTION counter_merge(text, text) IS 'adds the second counter to the first and removes the second; returns true';
COMMENT ON FUNCTION counter_try_incr(text, bigint) IS 'adds to a counter if its bounds allow it; false when they do not';
COMMENT ON FUNCTION counter_try(text, bigint) IS 'what counter_try_incr() does; where it is not granted, with the time from which it would be';
COMMENT ON FUNCTION counter_take_up_to(text, bigint) IS 'subtracts as much as there is, up to an amount, and returns how much';
COMMENT ON FUNCTION counter_available(text) IS 'value of a counter, what is on hold of it, and what could be taken now';
COMMENT ON FUNCTION counter_hold(text, bigint, interval, text) IS 'sets an amount of a bounded counter aside for some time; returns the id of the hold';
COMMENT ON FUNCTION counter_hold_confirm(bigint, bigint) IS 'takes the amount of a hold, or a part of it, and ends the hold; returns true';
COMMENT ON FUNCTION counter_hold_release(bigint) IS 'ends a hold; false when there was none';
COMMENT ON FUNCTION counter_hold_extend(bigint, interval) IS 'makes a hold last for so long from now on, if it would end earlier; returns its end';
COMMENT ON FUNCTION counter_hold_reduce(bigint, bigint) IS 'gives back so much of a hold; returns what it still holds, 0 when that was all and the hold has ended';
COMMENT ON FUNCTION counter_type_create(text, bigint, bigint, text, jsonb, interval, text, bigint, boolean, boolean) IS 'declares the counters whose names begin with a name and a colon, bounds them, and has them begin anew in windows; returns true';
COMMENT ON FUNCTION counter_type_alter(text, bigint, bigint, text, jsonb) IS 'changes what is given of a counter type; in options, null takes a bound away; returns true';
COMMENT ON FUNCTION counter_type_drop(text) IS 'ends a counter type; its counters stay, without bounds, but those with windows go; returns true';
COMMENT ON FUNCTION counter_track(regclass, text, text[], text, integer, text, boolean) IS 'counts the rows of a table by group, or adds up a column, from now on by triggers and soon exactly; returns true';
COMMENT ON FUNCTION counter_track_wait(regclass, interval) IS 'waits until the counters of a tracked table are exact; false when they are not in that time';
COMMENT ON FUNCTION counter_untrack(regclass, text, boolean) IS 'ends the tracks of a table, or that of one type, and drops their counters unless they are to be kept; returns true';
COMMENT ON FUNCTION counter_groups(text) IS 'the groups of a tracked table: parts of the name, value, rows, and the average of a sum';
COMMENT ON FUNCTION counter_groups(text, "any") IS 'the groups of a tracked table whose names begin with these parts';
COMMENT ON FUNCTION counter_drift(regclass, text) IS 'groups of a tracked table whose counters do not agree with the rows, by one snapshot; no rows: exact';
COMMENT ON FUNCTION counter_recount(regclass, text) IS 'makes the counters of a tracked table exact, and returns what was not';
COMMENT ON FUNCTION counter_key("any") IS 'what the triggers of tracked tables compare; for their conditions alone';
COMMENT ON FUNCTION counterx.count_row() IS 'counts the rows of tracked tables';
COMMENT ON FUNCTION counterx.count_truncate() IS 'takes back what the rows of a tracked table were counted as, before it is emptied';
COMMENT ON FUNCTION counterx.tracked_ddl() IS 'notices DDL that may make the counters of tracked tables wrong';
COMMENT ON FUNCTION counterx.track_restored() IS 'sees to the tracks that a restore brings';
COMMENT ON FUNCTION counterx.type_changed() IS 'tells all sessions that the types have changed';
COMMENT ON FUNCTION counterx.ignore_replicated() IS 'leaves out the rows of another server''s counters';
COMMENT ON FUNCTION counterx.guard() IS 'refuses what others than counterx would change';
COMMENT ON FUNCTION counterx.restored() IS 'checks what a restore brings';
COMMENT ON FUNCTION counterx.dump_rows() IS 'what a dump has of the counters: their values';
COMMENT ON FUNCTION counterx.dump_history() IS 'what a dump has of the types that have a history';
COMMENT ON FUNCTION counterx.dump_buckets() IS 'what a dump has of the history of counters';
COMMENT ON PROCEDURE counterx.compact_in_steps() IS 'as compact(), lane by lane, each in a transaction of its own';
COMMENT ON FUNCTION counterx.compact() IS 'folds all committed deltas now; returns how many';
COMMENT ON FUNCTION counterx.drop_all_counters() IS 'drops all counters and deletes all tokens and holds, for test suites; returns how many counters there were';
COMMENT ON FUNCTION counterx.windows_removed() IS 'up to when windows of counters may be gone, for dumps; null: none is';
COMMENT ON FUNCTION counterx.reset_window_clock() IS 'has windows go by the server''s clock again, which was ahead and is right now; returns what it shows';
COMMENT ON FUNCTION counterx.create_value_index() IS 'makes an index on folded values for counter_top() and counter_bottom(); false when there is one';
COMMENT ON FUNCTION counterx.drop_value_index() IS 'drops the index on folded values; false when there is none';
COMMENT ON FUNCTION counterx.version() IS 'one row: versions of the library, of the SQL objects and of the server, whether the library was preloaded, and what to do about what is missing';
COMMENT ON FUNCTION counterx.rows_so_far(text) IS 'rows of a track that have been counted so far; null: nobody counts them now';
COMMENT ON FUNCTION counterx.lock_key(text) IS 'a counter''s name as pg_locks shows it: classid and objid of its user locks';
COMMENT ON FUNCTION counterx.escrow_status() IS 'one row: how many bounded counters can be in change at one time in all databases, how many are, and the used share of the part with the least room; none without shared_preload_libraries';
COMMENT ON FUNCTION counterx.lane_status() IS 'the figures behind the view counterx.lanes';
COMMENT ON FUNCTION counterx.fold_status() IS 'how folds went, behind the views counterx.lanes and counterx.workers';
COMMENT ON FUNCTION counterx.stat_figures() IS 'the figures behind the view counterx.stat';
COMMENT ON FUNCTION counterx.stat_reset() IS 'has the cumulative figures of counterx.stat begin anew; returns true';
