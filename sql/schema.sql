-- The schema of all internals, and the order of things.
--
-- DROP EXTENSION locks its members roughly in the order of their creation (that of their rows in
-- pg_depend, which fill gaps that earlier ones have left). A query locks the view, then the foreign
-- table behind it, then the gates; increments and folds open a lane's gate before anything else. So
-- members are created in that order, and in a database where the extension was not created and
-- dropped many times nobody deadlocks with a DROP EXTENSION. Elsewhere the server's detector decides.

-- Its views are wanted by name in the schema that it is created in.
DO $$
DECLARE
    taken text;
BEGIN
    SELECT pg_catalog.string_agg(pg_catalog.quote_ident(c.relname::text), ', ' ORDER BY c.relname)
    INTO taken
    FROM pg_catalog.pg_class c
    WHERE c.relnamespace OPERATOR(pg_catalog.=) '@extschema@'::pg_catalog.regnamespace
      AND c.relname OPERATOR(pg_catalog.=) ANY (ARRAY['counters', 'counter_types', 'counter_holds', 'counter_tracks', 'counter_histories', 'counter_sealed', 'counter_streams', 'counter_alerts']::pg_catalog.name[]);
    IF taken IS NOT NULL THEN
        RAISE duplicate_table USING
            MESSAGE = 'extension "counterx" cannot be created in the schema @extschema@, which has relations of the names of its views',
            DETAIL = pg_catalog.concat('Already there: ', taken, '.'),
            HINT = 'Create it in another schema: CREATE SCHEMA counting; CREATE EXTENSION counterx SCHEMA counting.';
    END IF;
END
$$;

-- The tables are written to by the heap's own functions, whatever new tables are by default here. Ends
-- with the script.
SET LOCAL default_table_access_method = heap;

CREATE SCHEMA counterx;
COMMENT ON SCHEMA counterx IS 'internals of the extension counterx; the public functions are elsewhere';
REVOKE ALL ON SCHEMA counterx FROM PUBLIC;

-- Its real definition is in sql/counters.sql; this holds its place.
CREATE VIEW counters AS SELECT NULL::text COLLATE "C" AS name, NULL::numeric AS value;
