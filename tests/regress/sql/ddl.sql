-- What others do to the extension's tables by DDL, and what they are told. tests/cluster has all the
-- operations; here are the words.
\set SHOW_CONTEXT never
CREATE VIEW counters AS SELECT 1 AS mine;
CREATE EXTENSION counterx;
DROP VIEW counters;
CREATE SCHEMA "My Counters";
CREATE TABLE "My Counters".counter_types ();
CREATE EXTENSION counterx SCHEMA "My Counters";
DROP TABLE "My Counters".counter_types;
DROP SCHEMA "My Counters";
-- Tables are heaps, whatever new ones are here.
CREATE ACCESS METHOD heap2 TYPE TABLE HANDLER heap_tableam_handler;
SET default_table_access_method = heap2;
CREATE EXTENSION counterx;
SHOW default_table_access_method;
SELECT count(*) FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'heap2';
RESET default_table_access_method;

-- This session knows the tables by now.
SELECT counter_incr('x'), counter_incr_once('t', 'x');
SELECT counterx.compact();
SELECT counter_type_create('stock', min => 0);
SELECT counter_incr('stock:1', 10);

-- Columns.
ALTER TABLE counterx.total ADD COLUMN changed_at timestamptz DEFAULT now();
SELECT counter_value('x');
ALTER TABLE counterx.total DROP COLUMN changed_at;
SELECT counter_value('x');
SELECT counter_incr('x');
SELECT counterx.compact();
SELECT counter_value('x');
ALTER TABLE counterx.token ALTER COLUMN delta TYPE numeric;
SELECT counter_incr_once('u', 'x');
ALTER TABLE counterx.token ALTER COLUMN delta TYPE bigint;
SELECT counter_incr_once('u', 'x');
ALTER TABLE counterx.late RENAME COLUMN delta TO amount;
SELECT counter_value('x');
ALTER TABLE counterx.late RENAME COLUMN amount TO delta;
BEGIN;
ALTER TABLE counterx.state DROP COLUMN folds;
SELECT counter_value('x');
ROLLBACK;
ALTER TABLE counterx.type ALTER COLUMN description SET NOT NULL;
UPDATE counterx.type SET description = '';
ALTER TABLE counterx.type ALTER COLUMN description SET NOT NULL;
SELECT counter_type_create('other');
ALTER TABLE counterx.type ALTER COLUMN description DROP NOT NULL;

-- Tables.
ALTER TABLE counterx.hold SET UNLOGGED;
SELECT counter_hold('stock:1', 1, '1h');
ALTER TABLE counterx.hold SET LOGGED;
ALTER TABLE counterx.state SET ACCESS METHOD heap2;
SELECT counter_value('x');
ALTER TABLE counterx.state SET ACCESS METHOD heap;
ALTER TABLE counterx.anchor RENAME TO harbour;
SELECT counter_value('x');
ALTER TABLE counterx.harbour RENAME TO anchor;

-- Indexes.
CREATE INDEX partial ON counterx.total (value) WHERE value > 0;
SELECT counter_incr('x');
SELECT counterx.compact();
DROP INDEX counterx.partial;
CREATE INDEX expression ON counterx.token (length(name));
SELECT counter_incr_once('v', 'x');
DROP INDEX counterx.expression;
DROP INDEX counterx.token_at, counterx.token_key;
SELECT counter_incr_once('v', 'x');
CREATE UNIQUE INDEX token_key ON counterx.token (token);
CREATE INDEX token_at ON counterx.token (at);

-- Triggers.
CREATE TABLE heard (what text);
CREATE FUNCTION hear() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.heard VALUES (concat_ws(' ', TG_OP, TG_TABLE_NAME, current_user));
    RETURN NULL;
END $$;
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON counterx.state FOR EACH ROW EXECUTE FUNCTION hear();
SELECT counterx.compact();
SELECT DISTINCT last_error FROM counterx.workers;
DROP TRIGGER audit ON counterx.state;
SELECT counterx.compact();
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON counterx.token FOR EACH ROW EXECUTE FUNCTION hear();
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON counterx.hold FOR EACH ROW EXECUTE FUNCTION hear();
-- They run as the table's owner, as in any function of the owner's.
CREATE ROLE counterx_ddl;
GRANT EXECUTE ON FUNCTION counter_hold_release(bigint) TO counterx_ddl;
SET ROLE counterx_ddl;
SELECT counter_incr_once('v', 'x'), counter_incr_once('v', 'x');
SELECT counter_hold('stock:1', 1, '1h') AS hold \gset
SELECT counter_hold_release(:hold);
SELECT current_user;
RESET ROLE;
SELECT regexp_replace(what, current_user, 'owner') FROM heard;
DROP TRIGGER audit ON counterx.token;
CREATE TRIGGER stamp BEFORE INSERT ON counterx.token FOR EACH ROW EXECUTE FUNCTION hear();
SELECT counter_incr_once('w', 'x');
DROP TRIGGER stamp ON counterx.token;
CREATE TRIGGER swallow BEFORE INSERT ON counterx.type FOR EACH ROW EXECUTE FUNCTION hear();
SELECT counter_type_create('other');
DROP TRIGGER swallow ON counterx.type;

SELECT counter_value('x'), (SELECT value FROM counters WHERE name = 'x');
DROP EXTENSION counterx;
DROP ROLE counterx_ddl;
