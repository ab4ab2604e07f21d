-- The view that lists counters. Behind it is a foreign table of our own wrapper (src/query/fdw/mod.rs), so
-- that conditions on the name become look-ups. The view is what users may read; nobody may use
-- the wrapper or the server for tables of their own.

CREATE FUNCTION counterx.fdw_handler() RETURNS fdw_handler
    LANGUAGE c STRICT
    AS 'MODULE_PATHNAME', 'counterx_fdw_handler';
COMMENT ON FUNCTION counterx.fdw_handler() IS 'for the foreign-data wrapper counterx alone';
REVOKE ALL ON FUNCTION counterx.fdw_handler() FROM PUBLIC;

CREATE FOREIGN DATA WRAPPER counterx HANDLER counterx.fdw_handler NO VALIDATOR;
COMMENT ON FOREIGN DATA WRAPPER counterx IS 'reads the counters of this database';
REVOKE ALL ON FOREIGN DATA WRAPPER counterx FROM PUBLIC;

CREATE SERVER counterx FOREIGN DATA WRAPPER counterx;
COMMENT ON SERVER counterx IS 'this database';
REVOKE ALL ON FOREIGN SERVER counterx FROM PUBLIC;

CREATE FOREIGN TABLE counterx.listing (
    name text COLLATE "C" NOT NULL,
    value numeric NOT NULL
) SERVER counterx;
COMMENT ON FOREIGN TABLE counterx.listing IS 'what the view counters shows';
REVOKE ALL ON counterx.listing FROM PUBLIC;

CREATE OR REPLACE VIEW counters AS
SELECT l.name, l.value
FROM counterx.listing l;
COMMENT ON VIEW counters IS 'all counters with their exact values for the current snapshot';
COMMENT ON COLUMN counters.name IS 'name of the counter; its order is that of its bytes';
COMMENT ON COLUMN counters.value IS 'sum of all increments; has no limit, unlike the result of counter_value()';
GRANT SELECT ON counters TO PUBLIC;
