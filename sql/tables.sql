-- The engine's own relations. src/store/catalog.rs finds them by name,
-- src/store/columns.rs has their columns by number, and src/store/shape.rs checks them: a change here
-- is a change there.
--
-- The gates come first, after the view: see sql/schema.sql.

-- The forms of the tables that transactions write to in their last moments, when no snapshot is
-- set and TOAST must not be needed: names are stored in line. STORAGE PLAIN has to be there before
-- the table is, or it gets a TOAST table all the same.
--
-- kind: null is an increment, and takes no space. 'a' is an adjustment, by which nothing was counted: set, reset,
-- drop, rename, merge; of tracked tables, rows that were there before, and what a new count adds. 'e' and 'f' are the
-- same two, written before the end of a subtransaction: what has written the row is not the transaction's id. 'p' is
-- an adjustment that takes the counter's history with it. 'r' is what a restore brings, in `late` alone.
CREATE TABLE counterx.log_form (
    epoch bigint NOT NULL,
    at timestamptz NOT NULL,
    delta bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    uses bigint,
    kind "char"
);
ALTER TABLE counterx.log_form ALTER COLUMN name SET STORAGE PLAIN;
CREATE TABLE counterx.late_form (
    name text COLLATE "C" NOT NULL,
    delta bigint NOT NULL,
    at timestamptz NOT NULL,
    uses bigint,
    kind "char"
);
ALTER TABLE counterx.late_form ALTER COLUMN name SET STORAGE PLAIN;

DO $$
DECLARE
    lane int;
    side text;
BEGIN
    -- One row each, which is changed in place: src/pg/cell.rs. gate: epoch * 2 + active log (0 = a, 1 = b).
    -- The first epoch is 1. truncated: the highest epoch whose deltas may be gone from the logs.
    FOR lane IN 0 .. 7 LOOP
        EXECUTE pg_catalog.format('CREATE TABLE counterx.gate_%s (gate bigint NOT NULL, truncated bigint NOT NULL)
            WITH (autovacuum_enabled = off, vacuum_truncate = off)', lane);
        EXECUTE pg_catalog.format('INSERT INTO counterx.gate_%s VALUES (2, 0)', lane);
        EXECUTE pg_catalog.format('COMMENT ON TABLE counterx.gate_%s IS ''current epoch and active log of lane %s''', lane, lane);
    END LOOP;
    FOR lane IN 0 .. 7 LOOP
        FOREACH side IN ARRAY ARRAY['a', 'b'] LOOP
            -- Emptied by TRUNCATE alone, so vacuum has nothing to find.
            EXECUTE pg_catalog.format('CREATE TABLE counterx.log_%s_%s (LIKE counterx.log_form INCLUDING STORAGE)
                WITH (autovacuum_enabled = off, vacuum_truncate = off)', lane, side);
            EXECUTE pg_catalog.format('CREATE INDEX log_%s_%s_epoch_name ON counterx.log_%s_%s (epoch, name)', lane, side, lane, side);
            EXECUTE pg_catalog.format('COMMENT ON TABLE counterx.log_%s_%s IS ''deltas of lane %s that are not folded yet, or not truncated yet''', lane, side, lane);
        END LOOP;
    END LOOP;
END
$$;


CREATE TABLE counterx.total (
    name text COLLATE "C" NOT NULL,
    gen bigint NOT NULL,
    value numeric NOT NULL,
    uses bigint NOT NULL,
    PRIMARY KEY (name, gen)
) WITH (fillfactor = 80);
COMMENT ON TABLE counterx.total IS 'folded values; one live row a counter, the one of the highest gen';

CREATE TABLE counterx.state (
    lane integer NOT NULL,
    gen bigint NOT NULL,
    folded_epoch bigint NOT NULL,
    folds bigint NOT NULL,
    deltas_folded bigint NOT NULL,
    last_fold_at timestamptz,
    last_fold_us bigint,
    last_error text,
    last_error_at timestamptz,
    sealed_until timestamptz,
    counted_until timestamptz,
    PRIMARY KEY (lane, gen)
) WITH (fillfactor = 50);
COMMENT ON TABLE counterx.state IS 'how far each lane is folded; one live row a lane, the one of the highest gen';

CREATE TABLE counterx.late (LIKE counterx.late_form INCLUDING STORAGE) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
ALTER TABLE counterx.late ADD CONSTRAINT late_name_length CHECK (pg_catalog.octet_length(name) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(name) OPERATOR(pg_catalog.<=) 255);
-- What comes by SQL is what a restore brings, whether it says so or not.
ALTER TABLE counterx.late ALTER COLUMN kind SET DEFAULT 'r'::pg_catalog."char";
CREATE INDEX late_name ON counterx.late (name);
COMMENT ON TABLE counterx.late IS 'deltas that belong to no epoch: of prepared transactions, and of restores; normally empty';

-- Names are of the usual storage, so the table has a TOAST table: pg_repack, which copies tables without
-- their columns' storage, cannot put a copy in the place of one that has none.
--
-- REPLICA IDENTITY NOTHING: publications ship neither the rows, which are inserted without being
-- announced to logical decoding, nor their removal.
CREATE TABLE counterx.token (
    token text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    delta bigint NOT NULL,
    value bigint,
    at timestamptz NOT NULL,
    hold boolean
);
CREATE UNIQUE INDEX token_key ON counterx.token (token);
CREATE INDEX token_at ON counterx.token (at);
ALTER TABLE counterx.token ADD CONSTRAINT token_length CHECK (pg_catalog.octet_length(token) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(token) OPERATOR(pg_catalog.<=) 255),
    ADD CONSTRAINT token_name_length CHECK (pg_catalog.octet_length(name) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(name) OPERATOR(pg_catalog.<=) 255),
    ADD CONSTRAINT token_of_hold_has_id CHECK (hold IS NOT TRUE OR value IS NOT NULL);
ALTER TABLE counterx.token REPLICA IDENTITY NOTHING;
COMMENT ON TABLE counterx.token IS 'tokens of counter_incr_once(), and what they were used for';

DROP TABLE counterx.log_form, counterx.late_form;

CREATE TABLE counterx.anchor () WITH (autovacuum_enabled = off);
COMMENT ON TABLE counterx.anchor IS 'always empty: what serializable transactions that read and change one counter lock';

-- removed_until: what a dump has of the table window_clock. Null, but for the moment in which it is restored.
CREATE TABLE counterx.type (
    name text COLLATE "C" PRIMARY KEY CHECK (name OPERATOR(pg_catalog.~) '^[!-9;-~]{1,255}$'),
    min bigint CHECK (min OPERATOR(pg_catalog.<=) 0),
    max bigint CHECK (max OPERATOR(pg_catalog.>=) 0),
    description text,
    generation bigint NOT NULL,
    tracked boolean NOT NULL DEFAULT false,
    per interval,
    zone text,
    kept integer NOT NULL DEFAULT 0 CHECK (kept OPERATOR(pg_catalog.>=) 0 AND kept OPERATOR(pg_catalog.<=) 1000),
    sliding boolean NOT NULL DEFAULT false,
    count_refused boolean NOT NULL DEFAULT false,
    removed_until timestamptz CHECK (pg_catalog.isfinite(removed_until)),
    CONSTRAINT type_sliding_check CHECK (NOT sliding OR (per IS NOT NULL AND min IS NULL AND max IS NOT NULL AND kept OPERATOR(pg_catalog.>=) 1)),
    CONSTRAINT type_count_refused_check CHECK (NOT count_refused OR (per IS NOT NULL AND min IS NULL AND max IS NOT NULL))
);
COMMENT ON TABLE counterx.type IS 'counter types, their bounds, and how often these begin anew';

-- One row, which is changed in place: src/pg/cell.rs. removed: windows that begin before this time may be gone. looked:
-- when a worker has looked for such windows last. Both in microseconds since 2000.
CREATE TABLE counterx.window_clock (removed bigint NOT NULL, looked bigint NOT NULL) WITH (autovacuum_enabled = off, vacuum_truncate = off);
INSERT INTO counterx.window_clock
SELECT n.least, n.least FROM (VALUES (-9223372036854775808)) n (least);
COMMENT ON TABLE counterx.window_clock IS 'up to when windows of counters may be gone';

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

CREATE TABLE counterx.hold (
    id bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    amount bigint NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX hold_key ON counterx.hold (id);
ALTER TABLE counterx.hold ADD CONSTRAINT hold_name_length CHECK (pg_catalog.octet_length(name) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(name) OPERATOR(pg_catalog.<=) 255),
    ADD CONSTRAINT hold_amount_positive CHECK (amount OPERATOR(pg_catalog.>) 0);
CREATE INDEX hold_name ON counterx.hold (name);
CREATE INDEX hold_expires_at ON counterx.hold (expires_at);
ALTER TABLE counterx.hold REPLICA IDENTITY NOTHING;
COMMENT ON TABLE counterx.hold IS 'amounts that are set aside from bounded counters';
CREATE SEQUENCE counterx.hold_id;
COMMENT ON SEQUENCE counterx.hold_id IS 'ids of holds';

REVOKE ALL ON ALL TABLES IN SCHEMA counterx FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA counterx FROM PUBLIC;

-- A dump has the values of the counters, and nothing of how the engine keeps them: what is dumped as the
-- rows of `late` are those of counterx.dump_rows(). See src/api/restore.rs.
CREATE FUNCTION counterx.dump_rows(OUT name text, OUT delta bigint, OUT at timestamptz, OUT uses bigint, OUT kind "char") RETURNS SETOF record
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 10000
    AS 'MODULE_PATHNAME', 'counterx_dump_rows';
SELECT pg_catalog.pg_extension_config_dump('counterx.late', 'WHERE false UNION ALL SELECT d.name, d.delta, d.at, d.uses, d.kind FROM counterx.dump_rows() d');
SELECT pg_catalog.pg_extension_config_dump('counterx.token', '');
SELECT pg_catalog.pg_extension_config_dump('counterx.type', 'WHERE false UNION ALL SELECT t.name, t.min, t.max, t.description, t.generation, t.tracked, t.per, t.zone, t.kept, t.sliding, t.count_refused, CASE WHEN t.per IS NOT NULL THEN counterx.windows_removed() END FROM ONLY counterx.type t');
SELECT pg_catalog.pg_extension_config_dump('counterx.track', 'WHERE false UNION ALL SELECT t.type, t.table_schema, t.table_name, t.key, t.sum, t.scale, t.filter, t.state, t.since, t.version, t.reason, NULL, t.rows_seen, NULL, NULL FROM ONLY counterx.track t');
SELECT pg_catalog.pg_extension_config_dump('counterx.hold', '');
SELECT pg_catalog.pg_extension_config_dump('counterx.hold_id', '');
