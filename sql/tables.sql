-- The engine's own relations. src/catalog.rs finds them by name, src/flush.rs, src/read.rs,
-- src/fold.rs and src/token.rs know their columns by number, and src/shape.rs checks them: a change here
-- is a change there.
--
-- The gates come first, after the view: see sql/schema.sql.

-- The forms of the tables that transactions write to in their last moments, when no snapshot is
-- set and TOAST must not be needed: names are stored in line. STORAGE PLAIN has to be there before
-- the table is, or it gets a TOAST table all the same.
CREATE TABLE counterx.log_form (
    epoch bigint NOT NULL,
    at timestamptz NOT NULL,
    delta bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    uses bigint
);
ALTER TABLE counterx.log_form ALTER COLUMN name SET STORAGE PLAIN;
CREATE TABLE counterx.late_form (
    lane integer NOT NULL,
    name text COLLATE "C" NOT NULL,
    delta bigint NOT NULL,
    at timestamptz NOT NULL,
    uses bigint
);
ALTER TABLE counterx.late_form ALTER COLUMN name SET STORAGE PLAIN;

DO $$
DECLARE
    lane int;
    side text;
BEGIN
    -- gate: epoch * 2 + active log (0 = a, 1 = b). The first epoch is 1.
    FOR lane IN 0 .. 7 LOOP
        EXECUTE pg_catalog.format('CREATE SEQUENCE counterx.gate_%s AS bigint MINVALUE 2 START 2 NO CYCLE', lane);
        EXECUTE pg_catalog.format('COMMENT ON SEQUENCE counterx.gate_%s IS ''current epoch times two, plus one when log b is the active one''', lane);
    END LOOP;
    FOR lane IN 0 .. 7 LOOP
        EXECUTE pg_catalog.format('CREATE SEQUENCE counterx.truncated_%s AS bigint MINVALUE 0 START 0 NO CYCLE', lane);
        EXECUTE pg_catalog.format('COMMENT ON SEQUENCE counterx.truncated_%s IS ''highest epoch whose deltas may be gone from the logs''', lane);
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
    PRIMARY KEY (lane, gen)
) WITH (fillfactor = 50);
COMMENT ON TABLE counterx.state IS 'how far each lane is folded; one live row a lane, the one of the highest gen';

CREATE TABLE counterx.late (LIKE counterx.late_form INCLUDING STORAGE) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
COMMENT ON TABLE counterx.late IS 'deltas of prepared transactions; normally empty';

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
ALTER TABLE counterx.token REPLICA IDENTITY NOTHING;
COMMENT ON TABLE counterx.token IS 'tokens of counter_incr_once(), and what they were used for';

DROP TABLE counterx.log_form, counterx.late_form;

CREATE TABLE counterx.anchor () WITH (autovacuum_enabled = off);
COMMENT ON TABLE counterx.anchor IS 'always empty: what serializable transactions that read and change one counter lock';

CREATE TABLE counterx.type (
    name text COLLATE "C" PRIMARY KEY CHECK (pg_catalog.strpos(name, ':') OPERATOR(pg_catalog.=) 0),
    min bigint,
    max bigint,
    description text,
    generation bigint NOT NULL
);
COMMENT ON TABLE counterx.type IS 'counter types and their bounds';

CREATE TABLE counterx.hold (
    id bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    amount bigint NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX hold_key ON counterx.hold (id);
CREATE INDEX hold_name ON counterx.hold (name);
CREATE INDEX hold_expires_at ON counterx.hold (expires_at);
ALTER TABLE counterx.hold REPLICA IDENTITY NOTHING;
COMMENT ON TABLE counterx.hold IS 'amounts that are set aside from bounded counters';
CREATE SEQUENCE counterx.hold_id;
COMMENT ON SEQUENCE counterx.hold_id IS 'ids of holds';

REVOKE ALL ON ALL TABLES IN SCHEMA counterx FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA counterx FROM PUBLIC;

-- All that holds state goes into a dump. CREATE EXTENSION leaves it empty.
DO $$
DECLARE
    holds_state regclass;
BEGIN
    FOR holds_state IN
        SELECT c.oid
        FROM pg_catalog.pg_class c
        WHERE c.relnamespace OPERATOR(pg_catalog.=) 'counterx'::pg_catalog.regnamespace
          AND c.relkind OPERATOR(pg_catalog.=) ANY (ARRAY['r', 'S']::pg_catalog."char"[])
          AND c.relname OPERATOR(pg_catalog.<>) 'anchor'
        ORDER BY c.oid
    LOOP
        PERFORM pg_catalog.pg_extension_config_dump(holds_state, '');
    END LOOP;
END
$$;
