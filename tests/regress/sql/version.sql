-- What is installed, and what is missing.
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE ROLE regress_counterx_watcher IN ROLE pg_monitor;
CREATE ROLE regress_counterx_nobody;
RESET client_min_messages;
CREATE SCHEMA counting;
CREATE EXTENSION counterx SCHEMA counting;
SELECT v.library = e.extversion AS library, v.objects = e.extversion AS objects,
       v.server = current_setting('server_version') AS server, v.preloaded, v.hint
FROM counterx.version() v, pg_extension e
WHERE e.extname = 'counterx';

-- Objects of another version, as an update leaves them that was forgotten, or one that the library was.
BEGIN;
UPDATE pg_extension SET extversion = '0.0.1' WHERE extname = 'counterx';
SELECT library = objects AS same, objects, hint FROM counterx.version();
UPDATE pg_extension SET extversion = '999.0' WHERE extname = 'counterx';
SELECT library = objects AS same, objects, hint FROM counterx.version();
ROLLBACK;

-- Look-alikes are not taken for it.
BEGIN;
CREATE TEMP TABLE pg_extension AS SELECT * FROM pg_catalog.pg_extension;
UPDATE pg_temp.pg_extension SET extversion = '0.0.1';
CREATE FUNCTION pg_temp.current_setting(text) RETURNS text LANGUAGE sql AS $$ SELECT 'mine' $$;
SET LOCAL search_path = pg_temp, pg_catalog;
SELECT library = objects AS same, server <> 'mine' AS server, hint FROM counterx.version();
ROLLBACK;

-- For the owner, for monitoring, and for whoever owns the database.
SET ROLE regress_counterx_watcher;
SELECT library = objects AS same FROM counterx.version();
RESET ROLE;
GRANT USAGE ON SCHEMA counterx TO regress_counterx_nobody;
SET ROLE regress_counterx_nobody;
SELECT * FROM counterx.version();
RESET ROLE;
SELECT has_function_privilege('pg_database_owner', 'counterx.version()', 'EXECUTE') AS database_owner;

DROP OWNED BY regress_counterx_nobody, regress_counterx_watcher;
DROP ROLE regress_counterx_nobody, regress_counterx_watcher;
