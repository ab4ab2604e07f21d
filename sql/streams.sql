-- Who wants to know of changes: src/store/stream.rs.

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

REVOKE ALL ON ALL TABLES IN SCHEMA counterx FROM PUBLIC;

SELECT pg_catalog.pg_extension_config_dump('counterx.stream', '');
SELECT pg_catalog.pg_extension_config_dump('counterx.alert', '');
