-- What was counted when: src/store/history.rs.

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

REVOKE ALL ON ALL TABLES IN SCHEMA counterx FROM PUBLIC;

-- A dump has the history of all counters as a reader sees it, in one table: see src/api/restore.rs. It is dumped as
-- that of a restore.
CREATE FUNCTION counterx.dump_history(OUT id bigint, OUT type text, OUT unit text, OUT keep interval, OUT class integer, OUT zone text, OUT since timestamptz) RETURNS SETOF record
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000
    AS 'MODULE_PATHNAME', 'counterx_dump_history';
CREATE FUNCTION counterx.dump_buckets(OUT history bigint, OUT start timestamptz, OUT changes bigint, OUT name text, OUT value numeric, OUT delta numeric, OUT adjusted numeric, OUT ups numeric, OUT downs numeric) RETURNS SETOF record
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 10000
    AS 'MODULE_PATHNAME', 'counterx_dump_buckets';
SELECT pg_catalog.pg_extension_config_dump('counterx.history', 'WHERE false UNION ALL SELECT h.id, h.type, h.unit, h.keep, h.class, h.zone, h.since, NULL FROM counterx.dump_history() h');
SELECT pg_catalog.pg_extension_config_dump('counterx.bucket_restored', 'WHERE false UNION ALL SELECT b.history, b.start, b.changes, b.name, b.value, b.delta, b.adjusted, b.ups, b.downs FROM counterx.dump_buckets() b');
