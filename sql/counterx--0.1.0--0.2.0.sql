\echo Use "ALTER EXTENSION counterx UPDATE" to load this file. \quit

-- From 0.1.0 to 0.2.0: what a fresh installation of 0.2.0 has, with the counters, tokens, holds and types of
-- before, and with the rights that were granted. tests/cluster/tests/upgrade.rs compares the two.
--
-- It locks the gates first, lanes ascending, as everybody does at commit: it waits for transactions that have
-- counted, prepared ones too. Those that keep a lane for a token or a hold, and have counted in an earlier
-- one, it can meet as a deadlock.

-- What was committed while this waits for its locks has to be seen: no snapshot may be older than they are.
DO $$
BEGIN
    IF pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.<>) 'read committed' THEN
        RAISE active_sql_transaction USING
            MESSAGE = 'extension "counterx" cannot be updated in a REPEATABLE READ or SERIALIZABLE transaction',
            DETAIL = 'What is committed while the update waits for others would be lost.',
            HINT = 'BEGIN ISOLATION LEVEL READ COMMITTED; ALTER EXTENSION counterx UPDATE; COMMIT.';
    END IF;
END
$$;

-- What is made here belongs to the extension's owner, whichever superuser runs this. Ends with the script.
DO $$
DECLARE
    extension_owner name;
BEGIN
    SELECT r.rolname INTO extension_owner
    FROM pg_catalog.pg_extension e
    JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) e.extowner
    WHERE e.extname OPERATOR(pg_catalog.=) 'counterx' AND r.rolsuper
      -- Who is that already may be so by means that do not allow it to be set again.
      AND r.rolname OPERATOR(pg_catalog.<>) current_user;
    IF FOUND THEN
        PERFORM pg_catalog.set_config('role', extension_owner::text, true);
    END IF;
END
$$;

-- The first new function of the library. Who has an older one hears what to do.
DO $$
BEGIN
    CREATE FUNCTION counterx.guard() RETURNS trigger
        LANGUAGE c
        AS 'MODULE_PATHNAME', 'counterx_guard';
EXCEPTION WHEN undefined_function THEN
    RAISE object_not_in_prerequisite_state USING
        MESSAGE = 'this session has loaded a library of counterx that is older than version 0.2.0',
        HINT = 'Install the library of the new version, restart the server if shared_preload_libraries names counterx, and reconnect.';
END
$$;

-- As in sql/schema.sql.
SET LOCAL default_table_access_method = heap;

-- Gates were two sequences each, and are tables of one row now. What is in the logs stays as it is: epochs
-- go on from where they were.
DO $$
BEGIN
    FOR lane IN 0 .. 7 LOOP
        -- Locks it, as nobody may write to the lane from here on.
        EXECUTE pg_catalog.format('ALTER SEQUENCE counterx.gate_%s RENAME TO gate_%s_of_0_1', lane, lane);
    END LOOP;
    FOR lane IN 0 .. 7 LOOP
        EXECUTE pg_catalog.format('CREATE TABLE counterx.gate_%s (gate bigint NOT NULL, truncated bigint NOT NULL)
            WITH (autovacuum_enabled = off, vacuum_truncate = off)', lane);
        EXECUTE pg_catalog.format('INSERT INTO counterx.gate_%s
            SELECT g.last_value, t.last_value FROM counterx.gate_%s_of_0_1 g, counterx.truncated_%s t', lane, lane, lane);
        EXECUTE pg_catalog.format('COMMENT ON TABLE counterx.gate_%s IS ''current epoch and active log of lane %s''', lane, lane);
        EXECUTE pg_catalog.format('DROP SEQUENCE counterx.gate_%s_of_0_1, counterx.truncated_%s', lane, lane);
        EXECUTE pg_catalog.format('REVOKE ALL ON counterx.gate_%s FROM PUBLIC', lane);
    END LOOP;
END
$$;

-- Late deltas had a lane. STORAGE PLAIN: see sql/tables.sql.
ALTER TABLE counterx.late RENAME TO late_of_0_1;
CREATE TABLE counterx.late_form (
    name text COLLATE "C" NOT NULL,
    delta bigint NOT NULL,
    at timestamptz NOT NULL,
    uses bigint,
    kind "char"
);
ALTER TABLE counterx.late_form ALTER COLUMN name SET STORAGE PLAIN;
CREATE TABLE counterx.late (LIKE counterx.late_form INCLUDING STORAGE) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
INSERT INTO counterx.late (name, delta, at, uses)
    SELECT l.name, l.delta, l.at, l.uses FROM ONLY counterx.late_of_0_1 l;
DROP TABLE counterx.late_form, counterx.late_of_0_1;
ALTER TABLE counterx.late ADD CONSTRAINT late_name_length CHECK (pg_catalog.octet_length(name) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(name) OPERATOR(pg_catalog.<=) 255);
ALTER TABLE counterx.late ALTER COLUMN kind SET DEFAULT 'r'::pg_catalog."char";
CREATE INDEX late_name ON counterx.late (name);
COMMENT ON TABLE counterx.late IS 'deltas that belong to no epoch: of prepared transactions, and of restores; normally empty';
REVOKE ALL ON counterx.late FROM PUBLIC;

-- Rows of 0.1.0 do not tell what they are, and are taken for increments.
DO $$
BEGIN
    FOR lane IN 0 .. 7 LOOP
        EXECUTE pg_catalog.format('ALTER TABLE counterx.log_%s_a ADD COLUMN kind "char"', lane);
        EXECUTE pg_catalog.format('ALTER TABLE counterx.log_%s_b ADD COLUMN kind "char"', lane);
    END LOOP;
END
$$;

-- How far lanes are sealed, and what was counted when.
ALTER TABLE counterx.state ADD COLUMN sealed_until timestamptz, ADD COLUMN counted_until timestamptz;

-- Tokens and holds have a TOAST table now, and all three have constraints for what restores bring.
ALTER TABLE counterx.token
    ALTER COLUMN token SET STORAGE EXTENDED,
    ALTER COLUMN name SET STORAGE EXTENDED;
ALTER TABLE counterx.token ADD CONSTRAINT token_length CHECK (pg_catalog.octet_length(token) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(token) OPERATOR(pg_catalog.<=) 255),
    ADD CONSTRAINT token_name_length CHECK (pg_catalog.octet_length(name) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(name) OPERATOR(pg_catalog.<=) 255),
    ADD CONSTRAINT token_of_hold_has_id CHECK (hold IS NOT TRUE OR value IS NOT NULL);
ALTER TABLE counterx.hold ALTER COLUMN name SET STORAGE EXTENDED;
ALTER TABLE counterx.hold ADD CONSTRAINT hold_name_length CHECK (pg_catalog.octet_length(name) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(name) OPERATOR(pg_catalog.<=) 255),
    ADD CONSTRAINT hold_amount_positive CHECK (amount OPERATOR(pg_catalog.>) 0);
ALTER TABLE counterx.type DROP CONSTRAINT type_name_check;
ALTER TABLE counterx.type ADD CONSTRAINT type_name_check CHECK (name OPERATOR(pg_catalog.~) '^[!-9;-~]{1,255}$'),
    ADD COLUMN tracked boolean NOT NULL DEFAULT false,
    ADD COLUMN per interval,
    ADD COLUMN zone text,
    ADD COLUMN kept integer NOT NULL DEFAULT 0 CHECK (kept OPERATOR(pg_catalog.>=) 0 AND kept OPERATOR(pg_catalog.<=) 1000),
    ADD COLUMN sliding boolean NOT NULL DEFAULT false,
    ADD COLUMN count_refused boolean NOT NULL DEFAULT false,
    ADD COLUMN removed_until timestamptz CHECK (pg_catalog.isfinite(removed_until)),
    ADD CONSTRAINT type_sliding_check CHECK (NOT sliding OR (per IS NOT NULL AND min IS NULL AND max IS NOT NULL AND kept OPERATOR(pg_catalog.>=) 1)),
    ADD CONSTRAINT type_count_refused_check CHECK (NOT count_refused OR (per IS NOT NULL AND min IS NULL AND max IS NOT NULL)),
    ADD CONSTRAINT type_min_check CHECK (min OPERATOR(pg_catalog.<=) 0),
    ADD CONSTRAINT type_max_check CHECK (max OPERATOR(pg_catalog.>=) 0);
COMMENT ON TABLE counterx.type IS 'counter types, their bounds, and how often these begin anew';

-- One row, which is changed in place: src/pg/cell.rs. removed: windows that begin before this time may be gone. looked:
-- when a worker has looked for such windows last. Both in microseconds since 2000.
CREATE TABLE counterx.window_clock (removed bigint NOT NULL, looked bigint NOT NULL) WITH (autovacuum_enabled = off, vacuum_truncate = off);
INSERT INTO counterx.window_clock
SELECT n.least, n.least FROM (VALUES (-9223372036854775808)) n (least);
COMMENT ON TABLE counterx.window_clock IS 'up to when windows of counters may be gone';

-- PostgreSQL 18 gives NOT NULL constraints names: those of the tables that these were copied from, and a
-- number where there are two of them.
DO $$
DECLARE
    ours record;
BEGIN
    FOR ours IN
        SELECT r.relname, c.conname,
            CASE WHEN r.relname OPERATOR(pg_catalog.=) 'late' THEN pg_catalog.rtrim(c.conname::text, '1')
                ELSE pg_catalog.replace(c.conname::text, '_form_', '_') END AS new_name
        FROM pg_catalog.pg_constraint c
        JOIN pg_catalog.pg_class r ON r.oid OPERATOR(pg_catalog.=) c.conrelid
        WHERE c.conrelid OPERATOR(pg_catalog.=) ANY (ARRAY['counterx.late', 'counterx.token', 'counterx.hold']::pg_catalog.regclass[])
          AND c.contype OPERATOR(pg_catalog.=) 'n'::pg_catalog."char"
    LOOP
        IF ours.new_name OPERATOR(pg_catalog.<>) ours.conname::text THEN
            EXECUTE pg_catalog.format('ALTER TABLE counterx.%I RENAME CONSTRAINT %I TO %I', ours.relname, ours.conname, ours.new_name);
        END IF;
    END LOOP;
END
$$;

-- Functions whose form changes keep their identity, and whoever may call them. But what has stored a call
-- of the old form would fail, or call them wrongly.
DO $$
DECLARE
    changed record;
BEGIN
    FOR changed IN
        SELECT f.signature, pg_catalog.string_agg(DISTINCT pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid), ', ') AS users
        FROM pg_catalog.unnest(ARRAY[
            '@extschema@.counter_incr(text, bigint)',
            '@extschema@.counter_decr(text, bigint)',
            '@extschema@.counter_incr_many(text[], bigint[])',
            '@extschema@.counter_incr_many(jsonb)',
            '@extschema@.counter_rename(text, text)',
            '@extschema@.counter_merge(text, text)',
            '@extschema@.counter_hold_confirm(bigint, bigint)',
            '@extschema@.counter_type_create(text, bigint, bigint, text, jsonb)',
            '@extschema@.counter_type_alter(text, bigint, bigint, text, jsonb)',
            '@extschema@.counter_type_drop(text)',
            '@extschema@.counter_list(text, text, integer)',
            '@extschema@.counter_top(integer, text)',
            '@extschema@.counter_bottom(integer, text)',
            '@extschema@.counter_drop(text)'
        ]::pg_catalog.regprocedure[]) f(signature)
        JOIN pg_catalog.pg_depend d
            ON d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
            AND d.refobjid OPERATOR(pg_catalog.=) f.signature
        GROUP BY f.signature
    LOOP
        RAISE dependent_objects_still_exist USING
            MESSAGE = pg_catalog.format('cannot update the extension "counterx" because other objects depend on function %s, whose form changes', changed.signature),
            DETAIL = pg_catalog.concat('They are: ', changed.users, '.'),
            HINT = 'Save their definitions, drop them, run ALTER EXTENSION counterx UPDATE, and create them again.';
    END LOOP;
END
$$;

-- Those that returned nothing return true.
UPDATE pg_catalog.pg_proc SET prorettype = 'pg_catalog.bool'::pg_catalog.regtype
WHERE oid OPERATOR(pg_catalog.=) ANY (ARRAY[
    '@extschema@.counter_incr(text, bigint)',
    '@extschema@.counter_decr(text, bigint)',
    '@extschema@.counter_incr_many(text[], bigint[])',
    '@extschema@.counter_incr_many(jsonb)',
    '@extschema@.counter_rename(text, text)',
    '@extschema@.counter_merge(text, text)',
    '@extschema@.counter_hold_confirm(bigint, bigint)',
    '@extschema@.counter_type_create(text, bigint, bigint, text, jsonb)',
    '@extschema@.counter_type_alter(text, bigint, bigint, text, jsonb)',
    '@extschema@.counter_type_drop(text)'
]::pg_catalog.regprocedure[]);

-- Numbers of rows are bigint, lists go on after a place, and a drop may take the history along.
CREATE FUNCTION counterx.counter_list(
    prefix text DEFAULT '',
    after text DEFAULT NULL,
    max_rows bigint DEFAULT 100
) RETURNS TABLE (name text, value bigint)
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000 ROWS 100
    AS 'MODULE_PATHNAME', 'counter_list_wrapper';
CREATE FUNCTION counterx.counter_top(
    n bigint DEFAULT 10,
    prefix text DEFAULT '',
    after_value bigint DEFAULT NULL,
    after_name text DEFAULT NULL
) RETURNS TABLE (rank bigint, name text, value bigint)
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 10000 ROWS 10
    AS 'MODULE_PATHNAME', 'counter_top_wrapper';
CREATE FUNCTION counterx.counter_bottom(
    n bigint DEFAULT 10,
    prefix text DEFAULT '',
    after_value bigint DEFAULT NULL,
    after_name text DEFAULT NULL
) RETURNS TABLE (rank bigint, name text, value bigint)
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 10000 ROWS 10
    AS 'MODULE_PATHNAME', 'counter_bottom_wrapper';
CREATE FUNCTION counterx.counter_drop(name text, purge boolean DEFAULT false) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE COST 200
    AS 'MODULE_PATHNAME', 'counter_drop_wrapper';
CREATE FUNCTION counterx.counter_type_create(
    name text,
    min bigint DEFAULT NULL,
    max bigint DEFAULT NULL,
    description text DEFAULT NULL,
    options jsonb DEFAULT NULL,
    per interval DEFAULT NULL,
    time_zone text DEFAULT NULL,
    kept bigint DEFAULT NULL,
    sliding boolean DEFAULT NULL,
    count_refused boolean DEFAULT NULL
) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'counter_type_create_wrapper';
UPDATE pg_catalog.pg_proc old
SET pronargs = new.pronargs,
    pronargdefaults = new.pronargdefaults,
    proargtypes = new.proargtypes,
    proallargtypes = new.proallargtypes,
    proargmodes = new.proargmodes,
    proargnames = new.proargnames,
    proargdefaults = new.proargdefaults
FROM pg_catalog.pg_proc new,
    (VALUES
        ('@extschema@.counter_list(text, text, integer)'::pg_catalog.regprocedure, 'counterx.counter_list(text, text, bigint)'::pg_catalog.regprocedure),
        ('@extschema@.counter_top(integer, text)', 'counterx.counter_top(bigint, text, bigint, text)'),
        ('@extschema@.counter_bottom(integer, text)', 'counterx.counter_bottom(bigint, text, bigint, text)'),
        ('@extschema@.counter_drop(text)', 'counterx.counter_drop(text, boolean)'),
        ('@extschema@.counter_type_create(text, bigint, bigint, text, jsonb)', 'counterx.counter_type_create(text, bigint, bigint, text, jsonb, interval, text, bigint, boolean, boolean)')
    ) f (old_function, new_function)
WHERE old.oid OPERATOR(pg_catalog.=) f.old_function AND new.oid OPERATOR(pg_catalog.=) f.new_function;
DROP FUNCTION counterx.counter_list, counterx.counter_top, counterx.counter_bottom, counterx.counter_drop, counterx.counter_type_create;

CREATE OR REPLACE FUNCTION counter_available(name text)
    RETURNS TABLE (name text, value bigint, held bigint, available bigint)
    LANGUAGE c VOLATILE PARALLEL UNSAFE COST 200
    AS 'MODULE_PATHNAME', 'counter_available_wrapper';
CREATE OR REPLACE FUNCTION counterx.compact() RETURNS bigint
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'compact_wrapper';
CREATE OR REPLACE FUNCTION counterx.type_changed() RETURNS trigger
    LANGUAGE c SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'counterx_type_changed';

-- What was asked for, and how far it is. The definition itself is in the table's triggers.
CREATE TABLE counterx.track (
    type text COLLATE "C" PRIMARY KEY,
    table_schema text NOT NULL,
    table_name text NOT NULL,
    key text[] NOT NULL,
    sum text,
    scale integer NOT NULL DEFAULT 0,
    filter text,
    state text NOT NULL CHECK (state OPERATOR(pg_catalog.=) ANY (ARRAY['attached', 'exact', 'stale'])),
    since timestamptz NOT NULL,
    version bigint NOT NULL,
    reason text,
    looked jsonb,
    rows_seen bigint,
    waiting_for text,
    last_error text
);
COMMENT ON TABLE counterx.track IS 'tracked tables';

-- What was asked for: one row for each type and unit. What rows of buckets refer to is its id, a random
-- number, so that rows of another database are never taken for its own.
CREATE TABLE counterx.history (
    id bigint PRIMARY KEY,
    type text COLLATE "C" NOT NULL CHECK (type OPERATOR(pg_catalog.~) '^[!-9;-~]{1,255}$'),
    unit text COLLATE "C" NOT NULL CHECK (unit OPERATOR(pg_catalog.=) ANY (ARRAY['event', 'minute', 'hour', 'day', 'month'])),
    keep interval CHECK (keep OPERATOR(pg_catalog.>) '00:00:00'),
    class integer NOT NULL CHECK (class OPERATOR(pg_catalog.>=) 0 AND class OPERATOR(pg_catalog.<=) 4),
    zone text NOT NULL,
    since timestamptz CHECK (pg_catalog.isfinite(since)),
    complete timestamptz CHECK (pg_catalog.isfinite(complete)),
    UNIQUE (type, unit)
);
COMMENT ON TABLE counterx.history IS 'types of which is kept what was counted when';

-- Where its rows were written when they were kept for another time: what begins before `until`, or, as long as that is
-- null, perhaps all.
CREATE TABLE counterx.history_class (
    history bigint NOT NULL,
    class integer NOT NULL CHECK (class OPERATOR(pg_catalog.>=) 0 AND class OPERATOR(pg_catalog.<=) 4),
    until timestamptz,
    PRIMARY KEY (history, class)
);
COMMENT ON TABLE counterx.history_class IS 'where histories were kept before';

-- Where it begins in each lane: with this epoch, which was published at that time. Since when it is known is for the
-- fold to say that moves what comes before.
CREATE TABLE counterx.history_lane (
    history bigint NOT NULL,
    lane integer NOT NULL,
    epoch bigint NOT NULL,
    at timestamptz NOT NULL,
    since timestamptz,
    PRIMARY KEY (history, lane)
);
COMMENT ON TABLE counterx.history_lane IS 'where histories begin in each lane';

-- What is before it is expired: readers leave it out from here on, and it is emptied when all of them do.
CREATE TABLE counterx.expired (
    class integer PRIMARY KEY,
    through timestamptz NOT NULL
);
COMMENT ON TABLE counterx.expired IS 'what of the history is not shown any more';

-- One row, which is changed in place: src/pg/cell.rs. What is before these times may be gone, in microseconds since 2000.
CREATE TABLE counterx.cut (class_0 bigint NOT NULL, class_1 bigint NOT NULL, class_2 bigint NOT NULL, class_3 bigint NOT NULL)
    WITH (autovacuum_enabled = off, vacuum_truncate = off);
INSERT INTO counterx.cut
SELECT n.least, n.least, n.least, n.least FROM (VALUES (-9223372036854775808)) n (least);
COMMENT ON TABLE counterx.cut IS 'what of the history may be gone';

-- The form of buckets. Numbers and names are short, and stored in line as folds write them. The tables have TOAST tables
-- all the same, which are never used: see counterx.token.
CREATE TABLE counterx.bucket_form (
    history bigint NOT NULL,
    start timestamptz NOT NULL,
    changes bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    value numeric NOT NULL,
    delta numeric NOT NULL,
    adjusted numeric NOT NULL,
    ups numeric NOT NULL,
    downs numeric NOT NULL
);
DO $$
DECLARE
    class int;
    number int;
BEGIN
    FOR class IN 0 .. 4 LOOP
        FOR number IN 0 .. CASE class WHEN 4 THEN 0 ELSE 5 END LOOP
            EXECUTE pg_catalog.format('CREATE TABLE counterx.bucket_%s_%s (LIKE counterx.bucket_form, PRIMARY KEY (name, history, start))
                WITH (fillfactor = 70)', class, number);
            EXECUTE pg_catalog.format('COMMENT ON TABLE counterx.bucket_%s_%s IS ''what was counted when: rows that are kept for up to %s''', class, number,
                (ARRAY['a day', 'a week', '35 days', '800 days', 'any time'])[class OPERATOR(pg_catalog.+) 1]);
        END LOOP;
    END LOOP;
    CREATE TABLE counterx.bucket_restored (LIKE counterx.bucket_form, PRIMARY KEY (name, history, start));
    -- What we write is so by itself.
    ALTER TABLE counterx.bucket_restored
    ADD CONSTRAINT bucket_restored_name_length CHECK (pg_catalog.octet_length(name) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(name) OPERATOR(pg_catalog.<=) 255),
    ADD CONSTRAINT bucket_restored_start CHECK (pg_catalog.isfinite(start)),
    ADD CONSTRAINT bucket_restored_numbers CHECK (
        pg_catalog.trunc(value) OPERATOR(pg_catalog.=) value AND pg_catalog.abs(value) OPERATOR(pg_catalog.<) 1e38 AND
        pg_catalog.trunc(delta) OPERATOR(pg_catalog.=) delta AND pg_catalog.abs(delta) OPERATOR(pg_catalog.<) 1e37 AND
        pg_catalog.trunc(adjusted) OPERATOR(pg_catalog.=) adjusted AND pg_catalog.abs(adjusted) OPERATOR(pg_catalog.<) 1e37 AND
        pg_catalog.trunc(ups) OPERATOR(pg_catalog.=) ups AND pg_catalog.abs(ups) OPERATOR(pg_catalog.<) 1e37 AND
        pg_catalog.trunc(downs) OPERATOR(pg_catalog.=) downs AND pg_catalog.abs(downs) OPERATOR(pg_catalog.<) 1e37);
    COMMENT ON TABLE counterx.bucket_restored IS 'what was counted when, in the database that a restore comes from';
END
$$;
DROP TABLE counterx.bucket_form;

-- Who wants to know of changes.
-- What was asked for. Rows are only inserted and deleted.
CREATE TABLE counterx.stream (
    name text COLLATE "C" PRIMARY KEY CHECK (pg_catalog.octet_length(name) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(name) OPERATOR(pg_catalog.<=) 255),
    prefix text COLLATE "C" NOT NULL CHECK (pg_catalog.octet_length(prefix) OPERATOR(pg_catalog.<=) 255),
    mode text NOT NULL CHECK (mode OPERATOR(pg_catalog.=) ANY (ARRAY['latest', 'every'])),
    keep interval NOT NULL CHECK (keep OPERATOR(pg_catalog.>) '00:00:00'),
    notify boolean NOT NULL,
    publish boolean NOT NULL,
    consumer text NOT NULL,
    created_at timestamptz NOT NULL
);
COMMENT ON TABLE counterx.stream IS 'streams of changes';

CREATE TABLE counterx.alert (
    id bigint PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE CHECK (pg_catalog.octet_length(name) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(name) OPERATOR(pg_catalog.<=) 255),
    prefix text COLLATE "C" NOT NULL CHECK (pg_catalog.octet_length(prefix) OPERATOR(pg_catalog.<=) 255),
    below bigint,
    above bigint,
    rearm bigint NOT NULL,
    stream text COLLATE "C",
    created_at timestamptz NOT NULL,
    CHECK ((below IS NULL) OPERATOR(pg_catalog.<>) (above IS NULL)),
    CHECK (rearm OPERATOR(pg_catalog.>=) below AND above IS NULL OR rearm OPERATOR(pg_catalog.<=) above AND below IS NULL)
);
COMMENT ON TABLE counterx.alert IS 'thresholds that counters are watched for';

-- How far consumers have come: all through change seq of fold fold is done. incarnation: which start of the stream it is
-- of. era: which life of which database, when a consumer was told or has told where it is: see src/pg/wal.rs.
CREATE TABLE counterx.cursor (
    stream text COLLATE "C" NOT NULL,
    lane integer NOT NULL,
    fold bigint NOT NULL,
    seq bigint NOT NULL,
    era bigint NOT NULL,
    incarnation uuid NOT NULL,
    lost_reason text,
    PRIMARY KEY (stream, lane)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
COMMENT ON TABLE counterx.cursor IS 'how far consumers of streams have come in each lane';

-- Counters for which an alert has fired, and not been rearmed since.
CREATE TABLE counterx.alert_state (
    alert bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    lane integer NOT NULL,
    value numeric NOT NULL,
    since timestamptz NOT NULL,
    PRIMARY KEY (name, alert)
);
COMMENT ON TABLE counterx.alert_state IS 'counters that are beyond the threshold of an alert';
CREATE TABLE counterx.alert_lane (
    alert bigint NOT NULL,
    lane integer NOT NULL,
    fired bigint NOT NULL,
    last_fired_at timestamptz NOT NULL,
    PRIMARY KEY (alert, lane)
) WITH (fillfactor = 50);
COMMENT ON TABLE counterx.alert_lane IS 'how often alerts have fired in each lane';

-- One row, which is changed in place: src/pg/cell.rs. For each lane: which table is written to (0 = a, 1 = b), the fold
-- through which changes may be gone, and why they went.
DO $$
DECLARE
    lane int;
    side text;
BEGIN
    EXECUTE (
        SELECT pg_catalog.format('CREATE TABLE counterx.stream_cell (%s) WITH (autovacuum_enabled = off, vacuum_truncate = off)',
            pg_catalog.string_agg(pg_catalog.format('side_%1$s bigint NOT NULL, gone_%1$s bigint NOT NULL, why_%1$s bigint NOT NULL', l), ', ' ORDER BY l))
        FROM pg_catalog.generate_series(0, 7) l);
    EXECUTE (
        SELECT pg_catalog.format('INSERT INTO counterx.stream_cell VALUES (%s)', pg_catalog.string_agg('0, 0, 0', ', '))
        FROM pg_catalog.generate_series(0, 7) l);
    FOR lane IN 0 .. 7 LOOP
        FOREACH side IN ARRAY ARRAY['a', 'b'] LOOP
            -- Emptied by TRUNCATE alone, so vacuum has nothing to find.
            EXECUTE pg_catalog.format('CREATE TABLE counterx.change_%s_%s (
                    fold bigint NOT NULL,
                    seq bigint NOT NULL,
                    at timestamptz NOT NULL,
                    name text COLLATE "C" NOT NULL,
                    delta numeric NOT NULL,
                    value numeric NOT NULL,
                    kind "char" NOT NULL,
                    alert text COLLATE "C",
                    stream text COLLATE "C"
                ) WITH (autovacuum_enabled = off, vacuum_truncate = off)', lane, side);
            EXECUTE pg_catalog.format('CREATE INDEX change_%s_%s_fold_seq ON counterx.change_%s_%s (fold, seq)', lane, side, lane, side);
            EXECUTE pg_catalog.format('COMMENT ON TABLE counterx.change_%s_%s IS ''changes of counters of lane %s, for the consumers of streams''', lane, side, lane);
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON TABLE counterx.stream_cell IS 'for each lane: which table changes go to, and through which fold they may be gone';
DO $$
DECLARE
    ours regclass;
BEGIN
    FOR ours IN
        SELECT c.oid
        FROM pg_catalog.pg_class c
        WHERE c.relnamespace OPERATOR(pg_catalog.=) 'counterx'::pg_catalog.regnamespace
          AND c.relkind OPERATOR(pg_catalog.=) 'r'
          AND c.relname OPERATOR(pg_catalog.~) '^(history|history_class|history_lane|expired|cut|window_clock|bucket_([0-4]_[0-5]|restored)|stream|alert|cursor|alert_state|alert_lane|stream_cell|change_[0-7]_[ab])$'
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON %s FROM PUBLIC', ours);
    END LOOP;
END
$$;
-- A dump has the history of all counters as a reader sees it, in one table: see src/api/restore.rs. It is dumped as
-- that of a restore.
CREATE FUNCTION counterx.dump_history(OUT id bigint, OUT type text, OUT unit text, OUT keep interval, OUT class integer, OUT zone text, OUT since timestamptz) RETURNS SETOF record
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000
    AS 'MODULE_PATHNAME', 'counterx_dump_history';
CREATE FUNCTION counterx.dump_buckets(OUT history bigint, OUT start timestamptz, OUT changes bigint, OUT name text, OUT value numeric, OUT delta numeric, OUT adjusted numeric, OUT ups numeric, OUT downs numeric) RETURNS SETOF record
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 10000
    AS 'MODULE_PATHNAME', 'counterx_dump_buckets';

-- New ones.
CREATE FUNCTION counter_track("table" regclass, type text, key text[], sum text DEFAULT NULL, scale integer DEFAULT 0, filter text DEFAULT NULL, adopt boolean DEFAULT false)
    RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'counter_track_wrapper';
CREATE FUNCTION counter_untrack("table" regclass, type text DEFAULT NULL, keep boolean DEFAULT false)
    RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'counter_untrack_wrapper';
CREATE FUNCTION counter_drift("table" regclass, type text DEFAULT NULL)
    RETURNS TABLE (name text, counted numeric, recorded numeric, rows bigint, recorded_rows bigint)
    LANGUAGE c VOLATILE PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'counter_drift_wrapper';
CREATE FUNCTION counter_recount("table" regclass, type text DEFAULT NULL)
    RETURNS TABLE (name text, counted numeric, recorded numeric, rows bigint, recorded_rows bigint)
    LANGUAGE c VOLATILE PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'counter_recount_wrapper';
CREATE FUNCTION counter_track_wait("table" regclass, timeout interval DEFAULT NULL)
    RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'counter_track_wait_wrapper';
CREATE FUNCTION counter_groups(type text)
    RETURNS TABLE (key text[], value numeric, rows bigint, avg numeric)
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 10000 ROWS 100
    AS 'MODULE_PATHNAME', 'counter_groups_wrapper';
CREATE FUNCTION counter_groups(type text, VARIADIC parts "any")
    RETURNS TABLE (key text[], value numeric, rows bigint, avg numeric)
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 10000 ROWS 100
    AS 'MODULE_PATHNAME', 'counter_groups_wrapper';
CREATE FUNCTION counter_history(type text, minute text DEFAULT '1 day', hour text DEFAULT '35 days', day text DEFAULT 'infinity', month text DEFAULT NULL, events text DEFAULT NULL, time_zone text DEFAULT 'UTC')
    RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'counter_history_wrapper';
CREATE FUNCTION counter_history_drop(type text) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'counter_history_drop_wrapper';
CREATE FUNCTION counter_seal() RETURNS timestamptz
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'counter_seal_wrapper';
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
CREATE FUNCTION counter_window(name text, OUT value bigint, OUT begins_at timestamptz, OUT ends_at timestamptz)
    RETURNS record
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 100
    AS 'MODULE_PATHNAME', 'counter_window_wrapper';
CREATE FUNCTION counter_try(name text, delta bigint DEFAULT 1, OUT granted boolean, OUT retry_at timestamptz)
    RETURNS record
    LANGUAGE c VOLATILE PARALLEL UNSAFE COST 100
    AS 'MODULE_PATHNAME', 'counter_try_wrapper';
CREATE FUNCTION counter_windows(name text)
    RETURNS TABLE (value bigint, begins_at timestamptz, ends_at timestamptz)
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000 ROWS 10
    AS 'MODULE_PATHNAME', 'counter_windows_wrapper';
CREATE FUNCTION counter_at(name text, at timestamptz) RETURNS bigint
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 200
    AS 'MODULE_PATHNAME', 'counter_at_wrapper';
CREATE FUNCTION counter_at_boundary(name text, at timestamptz) RETURNS timestamptz
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 200
    AS 'MODULE_PATHNAME', 'counter_at_boundary_wrapper';
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
CREATE FUNCTION counterx.windows_removed() RETURNS timestamptz
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 100
    AS 'MODULE_PATHNAME', 'windows_removed_wrapper';
CREATE FUNCTION counterx.reset_window_clock() RETURNS timestamptz
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'reset_window_clock_wrapper';
CREATE FUNCTION counterx.sealed_until() RETURNS timestamptz
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 100
    AS 'MODULE_PATHNAME', 'counterx_sealed_until';
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
CREATE PROCEDURE counter_add(name text, delta bigint DEFAULT 1)
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'counter_add_wrapper';
CREATE FUNCTION counter_hit(name text, delta bigint DEFAULT 1, wait boolean DEFAULT true) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE COST 100
    AS 'MODULE_PATHNAME', 'counter_hit_wrapper';
CREATE FUNCTION counter_hit_many(deltas jsonb, wait boolean DEFAULT true) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE COST 100
    AS 'MODULE_PATHNAME', 'counter_hit_many_wrapper';
CREATE FUNCTION counter_try_hit(name text, delta bigint DEFAULT 1) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE COST 100
    AS 'MODULE_PATHNAME', 'counter_try_hit_wrapper';
CREATE FUNCTION counter_rank(name text, prefix text DEFAULT '') RETURNS bigint
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 10000
    AS 'MODULE_PATHNAME', 'counter_rank_wrapper';
CREATE FUNCTION counter_name(type text, VARIADIC parts "any") RETURNS text
    LANGUAGE c IMMUTABLE PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'counterx_name';
CREATE FUNCTION counter_parts(name text) RETURNS text[]
    LANGUAGE c IMMUTABLE PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'counter_parts_wrapper';
CREATE FUNCTION counter_hold_extend(id bigint, ttl interval) RETURNS timestamptz
    LANGUAGE c VOLATILE PARALLEL UNSAFE COST 200
    AS 'MODULE_PATHNAME', 'counter_hold_extend_wrapper';
CREATE FUNCTION counter_hold_reduce(id bigint, amount bigint) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE COST 200
    AS 'MODULE_PATHNAME', 'counter_hold_reduce_wrapper';
CREATE FUNCTION counterx.drop_all_counters() RETURNS bigint
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE COST 10000 SECURITY DEFINER SET search_path TO pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'drop_all_counters_wrapper';
CREATE FUNCTION counterx.version() RETURNS TABLE (library text, objects text, server text, preloaded bool, hint text)
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 1000 ROWS 1
    AS 'MODULE_PATHNAME', 'version_wrapper';
CREATE FUNCTION counterx.escrow_status() RETURNS TABLE (entries bigint, used bigint, fullest double precision)
    LANGUAGE c VOLATILE STRICT PARALLEL SAFE COST 10 ROWS 1
    AS 'MODULE_PATHNAME', 'escrow_status_wrapper';
CREATE FUNCTION counterx.lock_key(name text) RETURNS bigint
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'lock_key_wrapper';
CREATE FUNCTION counterx.rows_so_far(type_name text) RETURNS bigint
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED
    AS 'MODULE_PATHNAME', 'rows_so_far_wrapper';
CREATE FUNCTION counterx.restored() RETURNS trigger
    LANGUAGE c SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'counterx_restored';
CREATE PROCEDURE counterx.compact_in_steps()
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'counterx_compact_in_steps';
CREATE FUNCTION counterx.dump_rows(OUT name text, OUT delta bigint, OUT at timestamptz, OUT uses bigint, OUT kind "char") RETURNS SETOF record
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 10000
    AS 'MODULE_PATHNAME', 'counterx_dump_rows';

-- One row for each worker; one without a pid if there is none.
CREATE OR REPLACE VIEW counterx.workers AS
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

CREATE FUNCTION counterx.stat_figures()
    RETURNS TABLE (stats_reset timestamptz, increments bigint, rows_flushed bigint, early_flushes bigint, hit_batches bigint, hits_batched bigint, hits_waiting bigint, hits_refused bigint, hits_failed bigint, folds bigint, deltas_folded bigint, fold_time double precision, truncations bigint, refused bigint, escrow_waits bigint, escrow_wait_time double precision, tokens_used bigint, tokens_replayed bigint, tokens_expired bigint, holds_expired bigint, serialization_conflicts bigint, back_pressure_waits bigint, back_pressure_wait_time double precision, back_pressure_refused bigint, pending bigint, oldest_pending timestamptz)
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000 ROWS 1
    AS 'MODULE_PATHNAME', 'counterx_stat_figures';
CREATE FUNCTION counterx.stat_reset() RETURNS boolean
    LANGUAGE c PARALLEL RESTRICTED
    AS 'MODULE_PATHNAME', 'counterx_stat_reset';

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
REVOKE ALL ON counterx.stat FROM PUBLIC;
REVOKE ALL ON FUNCTION counterx.stat_figures(), counterx.stat_reset() FROM PUBLIC;
GRANT SELECT ON counterx.stat TO pg_monitor;
GRANT EXECUTE ON FUNCTION counterx.stat_figures() TO pg_monitor;

CREATE OR REPLACE VIEW counter_types AS
SELECT t.name, t.min, t.max, t.description,
       (SELECT pg_catalog.count(*) FROM counterx.listing l
        WHERE l.name OPERATOR(pg_catalog.^@) pg_catalog.concat(t.name, ':')) AS counters,
       t.per, t.zone AS time_zone, CASE WHEN t.per IS NOT NULL THEN t.kept END AS kept,
       CASE WHEN t.per IS NOT NULL THEN t.sliding END AS sliding,
       CASE WHEN t.per IS NOT NULL THEN t.count_refused END AS count_refused
FROM ONLY counterx.type t;
COMMENT ON COLUMN counter_types.counters IS 'number of its counters; of those with windows, in the running one';
COMMENT ON COLUMN counter_types.per IS 'length of the windows with which its counters begin anew; null: they do not';
COMMENT ON COLUMN counter_types.time_zone IS 'whose days or months these are; null: those of UTC';
COMMENT ON COLUMN counter_types.kept IS 'how many windows before the running one are kept';
COMMENT ON COLUMN counter_types.sliding IS 'what was counted in the window before the running one counts still, less and less';
COMMENT ON COLUMN counter_types.count_refused IS 'a request that is refused counts as well';

CREATE OR REPLACE VIEW counter_holds AS
SELECT h.id, h.name, h.amount, h.created_at, h.expires_at,
       h.expires_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp() AS expired
FROM ONLY counterx.hold h;

-- Other triggers than before, and on other tables.
DO $$
DECLARE
    ours record;
BEGIN
    FOR ours IN
        SELECT t.tgname, t.tgrelid::pg_catalog.regclass AS tab
        FROM pg_catalog.pg_trigger t
        JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.tgrelid
        WHERE c.relnamespace OPERATOR(pg_catalog.=) 'counterx'::pg_catalog.regnamespace
          AND t.tgfoid OPERATOR(pg_catalog.=) ANY (ARRAY['counterx.ignore_replicated()', 'counterx.type_changed()']::pg_catalog.regprocedure[])
    LOOP
        EXECUTE pg_catalog.format('DROP TRIGGER %I ON %s', ours.tgname, ours.tab);
    END LOOP;
END
$$;
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
          -- Not what somebody else has put into the schema.
          AND EXISTS (
            SELECT FROM pg_catalog.pg_depend d
            JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid
            WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
              AND d.objid OPERATOR(pg_catalog.=) c.oid
              AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass
              AND d.deptype OPERATOR(pg_catalog.=) 'e'
              AND e.extname OPERATOR(pg_catalog.=) 'counterx'
          )
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

CREATE VIEW counterx.upkeep AS
SELECT (SELECT pg_catalog.min(t.at) FROM ONLY counterx.token t) AS oldest_token,
       (SELECT pg_catalog.min(h.expires_at) FROM ONLY counterx.hold h) AS first_hold_expires,
       (SELECT pg_catalog.max(h.expires_at) FROM ONLY counterx.hold h) AS last_hold_expires;
COMMENT ON VIEW counterx.upkeep IS 'one row: whether tokens and holds are removed in time';
COMMENT ON COLUMN counterx.upkeep.oldest_token IS 'when the oldest token was used; null: there is none';
COMMENT ON COLUMN counterx.upkeep.first_hold_expires IS 'when the first of the holds expires, or has expired; null: there is none';
COMMENT ON COLUMN counterx.upkeep.last_hold_expires IS 'when the last of them does';
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

-- Rights on what is new.
REVOKE ALL ON counterx.locks, counterx.upkeep, counterx.track FROM PUBLIC;
REVOKE ALL ON FUNCTION
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
REVOKE ALL ON ROUTINE counterx.track_restored(), counterx.tracked_ddl(), counterx.guard(), counterx.restored(), counterx.compact_in_steps(), counterx.drop_all_counters(),
    counterx.lock_key(text), counterx.dump_rows(), counterx.dump_history(), counterx.dump_buckets(), counterx.sealed_until(), counterx.stream_status(), counterx.reset_window_clock(), counterx.windows_removed(), counterx.version(),
    counterx.escrow_status()
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION counterx.count_row(), counterx.count_truncate(), counterx.rows_so_far(text), counterx.sealed_until(), counterx.stream_status() TO PUBLIC;
GRANT SELECT ON counterx.locks, counterx.upkeep TO pg_monitor;
GRANT EXECUTE ON FUNCTION counterx.escrow_status(), counterx.lock_key(text), counterx.version() TO pg_monitor;
GRANT SELECT, INSERT ON counterx.late, counterx.track, counterx.history, counterx.bucket_restored, counterx.stream, counterx.alert TO pg_database_owner;
GRANT EXECUTE ON FUNCTION counterx.dump_rows(), counterx.dump_history(), counterx.dump_buckets(), counterx.windows_removed(), counterx.version() TO pg_database_owner;
-- And on what was there. Rights as an extension's script leaves them are in no dump, as whoever restores it
-- creates the extension. What others have granted has to stay in dumps: the server does not see it while it
-- grants these, and so takes none of it for the extension's own.
DO $$
DECLARE
    target record;
    granted aclitem[];
BEGIN
    FOR target IN
        -- pg_upgrade notes no initial rights that are those of every new object.
        SELECT g.command, COALESCE(i.initprivs, pg_catalog.acldefault('n', n.nspowner)) AS initprivs,
            n.oid, n.nspacl AS acl, true AS is_schema
        FROM (VALUES ('GRANT USAGE ON SCHEMA counterx TO pg_database_owner')) g(command)
        JOIN pg_catalog.pg_namespace n ON n.nspname OPERATOR(pg_catalog.=) 'counterx'
        LEFT JOIN pg_catalog.pg_init_privs i
            ON i.objoid OPERATOR(pg_catalog.=) n.oid AND i.classoid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass
        UNION ALL
        SELECT g.command,
            COALESCE(i.initprivs, pg_catalog.acldefault(CASE WHEN c.relkind OPERATOR(pg_catalog.=) 'S'::pg_catalog."char" THEN 's'::pg_catalog."char" ELSE 'r'::pg_catalog."char" END, c.relowner)),
            c.oid, c.relacl, false
        FROM (VALUES
            ('counterx.token'::pg_catalog.regclass, 'GRANT SELECT, INSERT ON counterx.token TO pg_database_owner'),
            ('counterx.type', 'GRANT SELECT, INSERT ON counterx.type TO pg_database_owner'),
            ('counterx.hold', 'GRANT SELECT, INSERT ON counterx.hold TO pg_database_owner'),
            ('counterx.hold_id', 'GRANT SELECT, UPDATE ON counterx.hold_id TO pg_database_owner')
        ) g(tab, command)
        JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) g.tab
        LEFT JOIN pg_catalog.pg_init_privs i
            ON i.objoid OPERATOR(pg_catalog.=) c.oid AND i.objsubid OPERATOR(pg_catalog.=) 0
            AND i.classoid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
    LOOP
        IF target.acl IS NULL THEN
            EXECUTE target.command;
            CONTINUE;
        END IF;
        IF target.is_schema THEN
            UPDATE pg_catalog.pg_namespace SET nspacl = target.initprivs WHERE oid OPERATOR(pg_catalog.=) target.oid;
            EXECUTE target.command;
            SELECT n.nspacl INTO granted FROM pg_catalog.pg_namespace n WHERE n.oid OPERATOR(pg_catalog.=) target.oid;
        ELSE
            UPDATE pg_catalog.pg_class SET relacl = target.initprivs WHERE oid OPERATOR(pg_catalog.=) target.oid;
            EXECUTE target.command;
            SELECT c.relacl INTO granted FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) target.oid;
        END IF;
        SELECT target.acl OPERATOR(pg_catalog.||) pg_catalog.array_agg(g.item) INTO granted
        FROM pg_catalog.unnest(granted) g(item)
        WHERE EXISTS (
            SELECT FROM pg_catalog.aclexplode(ARRAY[g.item]) x
            WHERE x.grantee OPERATOR(pg_catalog.=) 'pg_database_owner'::pg_catalog.regrole
        ) AND NOT EXISTS (
            SELECT FROM pg_catalog.aclexplode(target.acl) x
            WHERE x.grantee OPERATOR(pg_catalog.=) 'pg_database_owner'::pg_catalog.regrole
        );
        granted := COALESCE(granted, target.acl);
        IF target.is_schema THEN
            UPDATE pg_catalog.pg_namespace SET nspacl = granted WHERE oid OPERATOR(pg_catalog.=) target.oid;
        ELSE
            UPDATE pg_catalog.pg_class SET relacl = granted WHERE oid OPERATOR(pg_catalog.=) target.oid;
        END IF;
    END LOOP;
END
$$;

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
COMMENT ON VIEW counterx.workers IS 'the background workers of this database, a row for each; one row with no pid when none is needed or none could start';
COMMENT ON COLUMN counterx.workers.number IS '0: the one that is there while the database counts; from 1: further ones (counterx.workers_per_database), which fold and do nothing else; null when no worker runs';
COMMENT ON FUNCTION counterx.fold_status() IS 'how folds went, behind the views counterx.lanes and counterx.workers';
COMMENT ON FUNCTION counterx.stat_figures() IS 'the figures behind the view counterx.stat';
COMMENT ON FUNCTION counterx.stat_reset() IS 'has the cumulative figures of counterx.stat begin anew; returns true';

-- What a dump has: see sql/tables.sql and sql/history.sql.
UPDATE pg_catalog.pg_extension SET extconfig = NULL, extcondition = NULL WHERE extname OPERATOR(pg_catalog.=) 'counterx';
SELECT pg_catalog.pg_extension_config_dump('counterx.late', 'WHERE false UNION ALL SELECT d.name, d.delta, d.at, d.uses, d.kind FROM counterx.dump_rows() d');
SELECT pg_catalog.pg_extension_config_dump('counterx.token', '');
SELECT pg_catalog.pg_extension_config_dump('counterx.type', 'WHERE false UNION ALL SELECT t.name, t.min, t.max, t.description, t.generation, t.tracked, t.per, t.zone, t.kept, t.sliding, t.count_refused, CASE WHEN t.per IS NOT NULL THEN counterx.windows_removed() END FROM ONLY counterx.type t');
SELECT pg_catalog.pg_extension_config_dump('counterx.track', 'WHERE false UNION ALL SELECT t.type, t.table_schema, t.table_name, t.key, t.sum, t.scale, t.filter, t.state, t.since, t.version, t.reason, NULL, t.rows_seen, NULL, NULL FROM ONLY counterx.track t');
SELECT pg_catalog.pg_extension_config_dump('counterx.hold', '');
SELECT pg_catalog.pg_extension_config_dump('counterx.hold_id', '');
SELECT pg_catalog.pg_extension_config_dump('counterx.history', 'WHERE false UNION ALL SELECT h.id, h.type, h.unit, h.keep, h.class, h.zone, h.since, NULL FROM counterx.dump_history() h');
SELECT pg_catalog.pg_extension_config_dump('counterx.bucket_restored', 'WHERE false UNION ALL SELECT b.history, b.start, b.changes, b.name, b.value, b.delta, b.adjusted, b.ups, b.downs FROM counterx.dump_buckets() b');
SELECT pg_catalog.pg_extension_config_dump('counterx.stream', '');
SELECT pg_catalog.pg_extension_config_dump('counterx.alert', '');

-- Sessions hear of it: see CONTRIBUTING.md.
ALTER TABLE counterx.anchor SET (autovacuum_enabled = off);
