-- What is scraped of a database that counts: the one source of queries.yaml (postgres_exporter) and
-- sql_exporter.yaml. After a change here, run scripts/monitoring.
--
-- A line "--| group NAME" begins a query; the lines after it describe what it returns, in order:
--     --| label COLUMN WHAT IT SAYS
--     --| gauge COLUMN WHAT IT SAYS
--     --| counter COLUMN WHAT IT SAYS
-- The metric of a column is NAME_COLUMN. No query reads what grows with the number of counters or of pending
-- deltas; none returns null, which an exporter would make NaN of. What is not known has no row.

--| group counterx
--| label datname database
--| gauge preloaded the library was loaded at server start: 1, or 0
--| gauge workers workers that run in the database
--| gauge folding_paused counterx.compaction is off: 1, or 0
--| gauge pending_deltas deltas that are not folded yet, estimated
--| gauge oldest_pending_seconds age of the oldest of them; 0: there is none, or it is not known
--| gauge lanes_failing lanes whose last fold has failed
--| gauge lanes_out_of_space those of them that failed because the disk is full
--| gauge log_bytes size of the logs of deltas with their indexes
--| gauge log_max_size_bytes the setting counterx.log_max_size
--| gauge total_bytes size of the totals with their indexes
--| gauge token_bytes size of the table of tokens with its indexes
--| gauge hold_bytes size of the table of holds with its indexes
--| gauge history_bytes size of the tables of history with their indexes
--| gauge stream_bytes size of the changes for streams with their indexes
--| gauge oldest_token_seconds age of the oldest token; 0: there is none
--| gauge token_ttl_seconds the setting counterx.token_ttl
--| gauge oldest_hold_expired_seconds how long ago the oldest hold has expired; 0: none has
--| gauge longest_hold_seconds time until the last of the holds expires; 0: there is none
--| gauge asked_at_seconds when the server was asked, by its clock, in seconds since 1970
SELECT current_database() AS datname,
       v.preloaded::int AS preloaded,
       s.workers,
       (d.off OR w.paused OR c.off)::int AS folding_paused,
       COALESCE(s.pending, 0) AS pending_deltas,
       COALESCE(GREATEST(EXTRACT(epoch FROM clock_timestamp() - s.oldest_pending), 0), 0)::float8 AS oldest_pending_seconds,
       f.failing AS lanes_failing,
       f.out_of_space AS lanes_out_of_space,
       s.log_bytes,
       pg_size_bytes(current_setting('counterx.log_max_size')) AS log_max_size_bytes,
       s.total_bytes, s.token_bytes, s.hold_bytes, s.history_bytes, s.stream_bytes,
       COALESCE(EXTRACT(epoch FROM clock_timestamp() - u.oldest_token), 0)::float8 AS oldest_token_seconds,
       EXTRACT(epoch FROM current_setting('counterx.token_ttl')::interval)::float8 AS token_ttl_seconds,
       COALESCE(GREATEST(EXTRACT(epoch FROM clock_timestamp() - u.first_hold_expires), 0), 0)::float8 AS oldest_hold_expired_seconds,
       COALESCE(GREATEST(EXTRACT(epoch FROM u.last_hold_expires - clock_timestamp()), 0), 0)::float8 AS longest_hold_seconds,
       EXTRACT(epoch FROM clock_timestamp())::float8 AS asked_at_seconds
FROM counterx.stat s
CROSS JOIN (SELECT bool_or(state = 'paused') AS paused FROM counterx.workers) w
CROSS JOIN (
    -- The last fold of a lane that moved something, and the last that failed.
    SELECT count(*) FILTER (WHERE failing) AS failing,
           count(*) FILTER (WHERE failing AND last_error LIKE '53100:%') AS out_of_space
    FROM (SELECT last_error, last_error_at > COALESCE(last_fold_at, '-infinity') AS failing
          FROM counterx.fold_status()) each
) f
CROSS JOIN (
    SELECT EXISTS (
        SELECT FROM pg_db_role_setting g JOIN pg_database b ON b.oid = g.setdatabase
        CROSS JOIN unnest(g.setconfig) c
        WHERE b.datname = current_database() AND g.setrole = 0
          AND lower(c) IN ('counterx.compaction=off', 'counterx.compaction=false', 'counterx.compaction=no', 'counterx.compaction=0')
    ) AS off
) d
-- An exporter's session has what ALTER DATABASE said when it began: that one is looked up above.
CROSS JOIN (SELECT bool_or(setting = 'off' AND source <> 'database') AS off FROM pg_settings WHERE name = 'counterx.compaction') c
CROSS JOIN counterx.version() v
CROSS JOIN counterx.upkeep u;

--| group counterx_stat
--| label datname database
--| counter increments_total increments asked for
--| counter rows_flushed_total deltas written to logs
--| counter early_flushes_total times that a transaction wrote its increments early, for want of memory
--| counter hit_batches_total transactions of the committer that counted hits
--| counter hits_batched_total hits in them
--| gauge hits_waiting hits that are handed over and not counted yet
--| counter hits_refused_total hits that a bound has refused
--| counter hits_failed_total hits for which there was no committer, or no room, or that the committer could not commit
--| counter folds_total folds
--| counter deltas_folded_total deltas that they moved into totals
--| counter fold_seconds_total time that they took
--| counter truncations_total logs that were emptied
--| counter refused_total changes that a bound has refused
--| counter escrow_waits_total waits for other transactions that had changed the same bounded counter
--| counter escrow_wait_seconds_total time that they took
--| counter tokens_used_total tokens that were used
--| counter tokens_replayed_total calls with a token that was used before
--| counter tokens_expired_total tokens that were removed
--| counter holds_expired_total holds that were removed, as they had expired
--| counter serialization_conflicts_total serialization failures that counting has raised
--| counter back_pressure_waits_total waits for a fold, as a lane had more than counterx.max_pending
--| counter back_pressure_wait_seconds_total time that they took
--| counter back_pressure_refused_total transactions that were refused for that reason
SELECT current_database() AS datname,
       increments AS increments_total,
       rows_flushed AS rows_flushed_total,
       early_flushes AS early_flushes_total,
       hit_batches AS hit_batches_total,
       hits_batched AS hits_batched_total,
       hits_waiting,
       hits_refused AS hits_refused_total,
       hits_failed AS hits_failed_total,
       folds AS folds_total,
       deltas_folded AS deltas_folded_total,
       fold_time / 1000 AS fold_seconds_total,
       truncations AS truncations_total,
       refused AS refused_total,
       escrow_waits AS escrow_waits_total,
       escrow_wait_time / 1000 AS escrow_wait_seconds_total,
       tokens_used AS tokens_used_total,
       tokens_replayed AS tokens_replayed_total,
       tokens_expired AS tokens_expired_total,
       holds_expired AS holds_expired_total,
       serialization_conflicts AS serialization_conflicts_total,
       back_pressure_waits AS back_pressure_waits_total,
       back_pressure_wait_time / 1000 AS back_pressure_wait_seconds_total,
       back_pressure_refused AS back_pressure_refused_total
-- What is behind the view: its sizes are asked for above.
FROM counterx.stat_figures()
WHERE stats_reset IS NOT NULL;

--| group counterx_lane
--| label datname database
--| label lane number of the lane
--| gauge log_bytes size of its two logs with their indexes
--| gauge failing its last fold has failed: 1, or 0
--| counter deltas_folded_total deltas folded, since the extension was created
SELECT current_database() AS datname,
       n::text AS lane,
       l.bytes AS log_bytes,
       COALESCE(f.last_error_at > COALESCE(f.last_fold_at, '-infinity'), false)::int AS failing,
       COALESCE(f.deltas_folded, 0) AS deltas_folded_total
FROM generate_series(0, 7) n
CROSS JOIN LATERAL (
    SELECT COALESCE(sum(pg_table_size(r.oid) + pg_indexes_size(r.oid)), 0)::bigint AS bytes
    FROM pg_class r
    WHERE r.relnamespace = 'counterx'::regnamespace AND r.relname IN ('log_' || n || '_a', 'log_' || n || '_b')
) l
LEFT JOIN counterx.fold_status() f ON f.lane = n;

--| group counterx_hit
--| label datname database
--| gauge committers committers that run in the database
--| gauge queue_size the setting counterx.hit_queue_size
SELECT current_database() AS datname,
       (SELECT count(*) FROM pg_stat_activity
        WHERE backend_type = 'counterx committer' AND datname = current_database()) AS committers,
       current_setting('counterx.hit_queue_size')::bigint AS queue_size
-- It has a row where the library is preloaded.
FROM counterx.escrow_status();

--| group counterx_escrow
--| label datname database from which the server was asked: the memory is shared by all
--| gauge entries bounded counters that can be in change at one time
--| gauge used bounded counters that are in change
--| gauge fullest_ratio share that is used of the part with the least room
SELECT current_database() AS datname, entries, used, fullest AS fullest_ratio
FROM counterx.escrow_status();

--| group counterx_others
--| label datname database
--| gauge idle_in_transaction_seconds age of the oldest transaction whose session is idle; 0: there is none
--| gauge writer_seconds age of the oldest transaction that is writing to a lane, or has written early; 0: there is none
--| gauge lock_wait_seconds how long the session waits that has waited longest for a counter, a token or a hold; 0: none does
--| gauge snapshot_seconds age of the oldest transaction that holds a snapshot; 0: there is none
--| gauge prepared_seconds age of the oldest prepared transaction; 0: there is none
--| gauge slot_age_transactions age of the oldest horizon of a replication slot, in transactions; 0: there is none
SELECT current_database() AS datname,
       COALESCE(a.idle, 0)::float8 AS idle_in_transaction_seconds,
       COALESCE(w.oldest, 0)::float8 AS writer_seconds,
       COALESCE(w.waiting, 0)::float8 AS lock_wait_seconds,
       COALESCE(a.snapshot, 0)::float8 AS snapshot_seconds,
       COALESCE((SELECT EXTRACT(epoch FROM clock_timestamp() - min(prepared))
                 FROM pg_prepared_xacts WHERE database = current_database()), 0)::float8 AS prepared_seconds,
       COALESCE((SELECT GREATEST(max(age(xmin)), max(age(catalog_xmin))) FROM pg_replication_slots), 0) AS slot_age_transactions
FROM (
    SELECT EXTRACT(epoch FROM clock_timestamp() - min(xact_start) FILTER (WHERE state LIKE 'idle in transaction%')) AS idle,
           EXTRACT(epoch FROM clock_timestamp() - min(xact_start) FILTER (WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid())) AS snapshot
    FROM pg_stat_activity
    WHERE datname = current_database()
) a
CROSS JOIN (
    SELECT EXTRACT(epoch FROM clock_timestamp() - min(s.xact_start) FILTER (
               WHERE l.granted AND l.mode = 'RowExclusiveLock' AND c.relname LIKE 'gate\__')) AS oldest,
           EXTRACT(epoch FROM clock_timestamp() - min(l.waitstart) FILTER (
               WHERE NOT l.granted AND l.locktype = 'userlock')) AS waiting
    FROM pg_locks l
    LEFT JOIN pg_class c ON c.oid = l.relation AND c.relnamespace = 'counterx'::regnamespace
    LEFT JOIN pg_stat_activity s ON s.pid = l.pid
    WHERE l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
) w;

--| group counterx_track
--| label datname database
--| label type type of its counters
--| label table_name the table that is tracked
--| gauge exact its counters equal the rows: 1, or 0
--| gauge failing it is not exact, and an error is the reason: 1, or 0
--| gauge waiting it is not exact, and a transaction that has the table in use is waited for: 1, or 0
SELECT current_database() AS datname, type, "table" AS table_name,
       (state = 'exact')::int AS exact,
       (state <> 'exact' AND last_error IS NOT NULL)::int AS failing,
       (state <> 'exact' AND waiting_for IS NOT NULL)::int AS waiting
FROM counter_tracks;

--| group counterx_history
--| label datname database
--| gauge unit_seconds 60 where history is kept by minutes or events, 3600 where by longer units alone
--| gauge behind_seconds how far what is sealed is behind the clock; negative: it is ahead
--| gauge not_begun units of types whose history is not known from any time on yet, or 1 where nothing is sealed
SELECT current_database() AS datname,
       h.unit AS unit_seconds,
       COALESCE(EXTRACT(epoch FROM clock_timestamp() - s.sealed_until), 0)::float8 AS behind_seconds,
       GREATEST(h.not_begun, (s.sealed_until IS NULL)::int) AS not_begun
FROM counter_sealed s
CROSS JOIN (
    SELECT CASE WHEN bool_or(unit IN ('minute', 'event')) THEN 60 ELSE 3600 END AS unit,
           count(*) FILTER (WHERE since IS NULL) AS not_begun, count(*) AS histories
    FROM counter_histories
) h
WHERE h.histories > 0;

--| group counterx_stream
--| label datname database
--| label stream name of the stream
--| gauge lost its consumer has missed something: 1, or 0
--| gauge lag_seconds age of the oldest change that waits for its consumer; 0: none does
--| gauge lag_folds folds that the consumer is behind, in the lane where these are most
--| gauge lag_bytes size of the tables in which changes wait, with those of other streams
--| gauge keep_seconds how long changes wait for it
--| gauge max_size_bytes the setting counterx.stream_max_size
SELECT current_database() AS datname, stream,
       (state = 'lost')::int AS lost,
       COALESCE(GREATEST(EXTRACT(epoch FROM lag), 0), 0)::float8 AS lag_seconds,
       COALESCE(lag_folds, 0) AS lag_folds,
       COALESCE(lag_bytes, 0) AS lag_bytes,
       EXTRACT(epoch FROM keep)::float8 AS keep_seconds,
       pg_size_bytes(current_setting('counterx.stream_max_size')) AS max_size_bytes
FROM counter_streams
-- One that is being made, or dropped, at this moment has none.
WHERE state IS NOT NULL;

--| group counterx_version
--| label datname database
--| label library version of the library
--| label objects version of the extension's SQL objects in the database
--| gauge complete they are of one version: 1, or 0
SELECT current_database() AS datname, library, COALESCE(objects, '') AS objects,
       (library IS NOT DISTINCT FROM objects)::int AS complete
FROM counterx.version();

--| group counterx_installed
--| label datname database
--| label objects version of the extension's SQL objects in the database
--| label files version of the extension's files
--| gauge updated they are of one version: 1, or 0
-- Asks the catalogs alone: objects of another version may lack what the other queries call.
SELECT current_database() AS datname, e.extversion AS objects, COALESCE(a.default_version, '') AS files,
       (e.extversion IS NOT DISTINCT FROM a.default_version)::int AS updated
FROM pg_extension e
LEFT JOIN pg_available_extensions() a ON a.name = e.extname
WHERE e.extname = 'counterx';
