-- The schema of all internals, and the order of things.
--
-- DROP EXTENSION locks its members roughly in the order of their creation (that of their rows in
-- pg_depend, which fill gaps that earlier ones have left). A query locks the view, then the foreign
-- table behind it, then the gates; increments and folds open a lane's gate before anything else. So
-- members are created in that order, and in a database where the extension was not created and
-- dropped many times nobody deadlocks with a DROP EXTENSION. Elsewhere the server's detector decides.

CREATE SCHEMA counterx;
COMMENT ON SCHEMA counterx IS 'internals of the extension counterx; the public functions are elsewhere';
REVOKE ALL ON SCHEMA counterx FROM PUBLIC;

-- Its real definition is in sql/counters.sql; this holds its place.
CREATE VIEW counters AS SELECT NULL::text COLLATE "C" AS name, NULL::numeric AS value;
