-- Who may do what, and that search_path redirects nothing.
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE ROLE regress_counterx_user;
CREATE ROLE regress_counterx_other;
CREATE ROLE regress_counterx_folder;
CREATE ROLE regress_counterx_monitor IN ROLE pg_monitor;
RESET client_min_messages;
CREATE EXTENSION counterx;
SELECT counter_incr('x', 5);

-- Everybody may count and read, unless that is revoked. Then EXECUTE alone gives it back.
SELECT has_function_privilege('regress_counterx_user', 'counter_incr(text, bigint)', 'EXECUTE') AS incr,
       has_function_privilege('regress_counterx_user', 'counter_decr(text, bigint)', 'EXECUTE') AS decr,
       has_function_privilege('regress_counterx_user', 'counter_value(text)', 'EXECUTE') AS value,
       has_table_privilege('regress_counterx_user', 'counters', 'SELECT') AS counters;
REVOKE EXECUTE ON FUNCTION counter_incr, counter_decr, counter_value FROM PUBLIC;
REVOKE SELECT ON counters FROM PUBLIC;
GRANT EXECUTE ON FUNCTION counter_incr, counter_value TO regress_counterx_user;
SET ROLE regress_counterx_other;
SELECT counter_incr('x');
SELECT counter_decr('x');
SELECT counter_value('x');
SELECT * FROM counters;
SET ROLE regress_counterx_user;
SELECT counter_incr('x', 10);
SELECT counter_value('x');
SELECT counter_decr('x');
SELECT * FROM counters;
-- A new session of that role, which finds the tables anew, and writes them at its commit.
\c -
\set SHOW_CONTEXT never
SET ROLE regress_counterx_user;
BEGIN;
SELECT counter_incr('x', 100);
COMMIT;
SELECT counter_value('x');

-- The internals are closed: nothing can be looked at, changed, run, or used to make something.
SELECT * FROM counterx.total;
SELECT * FROM counterx.lanes;
SELECT counterx.compact();
SELECT nextval('counterx.hold_id');
CREATE TABLE counterx.mine (i int);
RESET ROLE;
-- Also for those who find the schema.
GRANT USAGE ON SCHEMA counterx TO regress_counterx_user;
GRANT CREATE ON SCHEMA public TO regress_counterx_user;
GRANT CREATE ON DATABASE :"DBNAME" TO regress_counterx_user;
SET ROLE regress_counterx_user;
SELECT * FROM counterx.total;
SELECT * FROM counterx.state;
SELECT * FROM counterx.late;
SELECT * FROM counterx.log_0_a;
SELECT * FROM counterx.anchor;
SELECT * FROM counterx.listing;
SELECT * FROM counterx.lanes;
SELECT * FROM counterx.workers;
SELECT * FROM counterx.gate_0;
SELECT last_value FROM counterx.hold_id;
SELECT setval('counterx.hold_id', 2);
SELECT nextval('counterx.hold_id');
SELECT * FROM counterx.dump_rows();
CALL counterx.compact_in_steps();
UPDATE counterx.gate_0 SET gate = 2;
\echo :LAST_ERROR_SQLSTATE
INSERT INTO counterx.late VALUES ('x', 1000000, now());
\echo :LAST_ERROR_SQLSTATE
INSERT INTO counterx.log_0_a VALUES (1, now(), 1000000, 'x');
\echo :LAST_ERROR_SQLSTATE
UPDATE counterx.total SET value = 0;
\echo :LAST_ERROR_SQLSTATE
DELETE FROM counterx.late;
\echo :LAST_ERROR_SQLSTATE
TRUNCATE counterx.log_0_a;
\echo :LAST_ERROR_SQLSTATE
BEGIN;
LOCK TABLE counterx.total IN ACCESS SHARE MODE;
ROLLBACK;
SELECT counterx.compact();
SELECT * FROM counterx.lane_status();
CREATE FOREIGN TABLE mine (name text, value numeric) SERVER counterx;
CREATE SERVER mine FOREIGN DATA WRAPPER counterx;
RESET ROLE;
REVOKE USAGE ON SCHEMA counterx FROM regress_counterx_user;
REVOKE CREATE ON SCHEMA public FROM regress_counterx_user;
REVOKE CREATE ON DATABASE :"DBNAME" FROM regress_counterx_user;
-- No relation of the extension is open to PUBLIC, and of its functions those alone that triggers and views call.
SELECT c.oid::regclass, c.relacl
FROM pg_class c
WHERE c.relnamespace = 'counterx'::regnamespace AND EXISTS (SELECT FROM aclexplode(c.relacl) a WHERE a.grantee = 0);
SELECT p.oid::regprocedure
FROM pg_proc p
WHERE p.pronamespace = 'counterx'::regnamespace AND has_function_privilege('regress_counterx_user', p.oid, 'EXECUTE') ORDER BY p.oid::regprocedure::text;

-- The view shows what its owner may see: SELECT on it is enough.
GRANT SELECT ON counters TO regress_counterx_user;
SET ROLE regress_counterx_user;
SELECT name, value FROM counters;
RESET ROLE;

-- Folding can be given away: no superuser is needed.
GRANT USAGE ON SCHEMA counterx TO regress_counterx_folder;
GRANT EXECUTE ON FUNCTION counterx.compact() TO regress_counterx_folder;
SET ROLE regress_counterx_folder;
SELECT counterx.compact();
SELECT * FROM counterx.total;
RESET ROLE;
SELECT counter_value('x');

-- Who may monitor the server sees the lanes and the worker, and no counter.
SET ROLE regress_counterx_monitor;
SELECT count(*), sum(pending_deltas) FROM counterx.lanes;
SELECT folds, deltas_folded FROM counterx.workers;
SELECT * FROM counterx.total;
SELECT counterx.compact();
SELECT * FROM counters;
RESET ROLE;

-- Look-alikes of what the extension uses, in a schema that comes first. Each of them complains when
-- it is used.
CREATE SCHEMA evil;
SET search_path = evil, pg_catalog, public;
CREATE FUNCTION evil.complain() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'redirected'; END $$;
CREATE FUNCTION evil.eq(a text, b text) RETURNS boolean LANGUAGE sql AS 'SELECT evil.complain()';
CREATE FUNCTION evil.eq(a bigint, b bigint) RETURNS boolean LANGUAGE sql AS 'SELECT evil.complain()';
CREATE FUNCTION evil.eq(a int, b int) RETURNS boolean LANGUAGE sql AS 'SELECT evil.complain()';
CREATE FUNCTION evil.eq(a name, b name) RETURNS boolean LANGUAGE sql AS 'SELECT evil.complain()';
CREATE FUNCTION evil.plus(a numeric, b numeric) RETURNS numeric LANGUAGE sql AS 'SELECT 0.0 WHERE evil.complain()';
CREATE FUNCTION evil.numeric_add(a numeric, b numeric) RETURNS numeric LANGUAGE sql AS 'SELECT 0.0 WHERE evil.complain()';
CREATE FUNCTION evil.setval(a regclass, b bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint WHERE evil.complain()';
CREATE FUNCTION evil.sum(a numeric) RETURNS numeric LANGUAGE sql AS 'SELECT 0.0 WHERE evil.complain()';
CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT NULL::timestamptz WHERE evil.complain()';
CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.eq);
CREATE OPERATOR evil.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = evil.eq);
CREATE OPERATOR evil.= (LEFTARG = int, RIGHTARG = int, FUNCTION = evil.eq);
CREATE OPERATOR evil.= (LEFTARG = name, RIGHTARG = name, FUNCTION = evil.eq);
CREATE OPERATOR evil.+ (LEFTARG = numeric, RIGHTARG = numeric, FUNCTION = evil.plus);
CREATE TABLE evil.total (name text, gen bigint, value numeric);
CREATE TABLE evil.state (lane int, gen bigint, folded_epoch bigint);
CREATE TABLE evil.late (lane int, name text, delta bigint);
CREATE TABLE evil.log_0_a (epoch bigint, at timestamptz, delta bigint, name text);
CREATE SEQUENCE evil.gate_0;
CREATE TEMPORARY TABLE total (name text, gen bigint, value numeric);
CREATE TEMPORARY TABLE listing (name text, value numeric);
CREATE TABLE evil.pg_extension (extname name, extversion text);
-- They do complain.
SELECT 'a'::text = 'a'::text;
-- In a new session, so that everything is looked up under this path.
SELECT format('ALTER DATABASE %I SET search_path = evil, pg_catalog, public', pg_catalog.current_database()) \gexec
\c -
\set SHOW_CONTEXT never
SHOW search_path;
SELECT public.counter_incr('x', 1000), public.counter_incr('abc', 1), public.counter_decr('flights');
SELECT public.counter_value('x');
SELECT name, value FROM public.counters ORDER BY name;
SELECT value FROM public.counters WHERE name OPERATOR(pg_catalog.=) 'x';
SELECT pg_catalog.sum(pending_deltas) FROM counterx.lanes;
SELECT counterx.compact();
SELECT public.counter_value('x');
SELECT lane, pending_deltas FROM counterx.lanes ORDER BY lane;
SELECT folds, deltas_folded FROM counterx.workers;
BEGIN;
SELECT public.counter_incr('x', 10000);
PREPARE TRANSACTION 'counterx_privileges';
COMMIT PREPARED 'counterx_privileges';
SELECT counterx.compact();
SELECT public.counter_value('x');
-- The look-alikes were left alone.
SELECT (SELECT count(*) FROM evil.total) AS total, (SELECT count(*) FROM evil.state) AS state, (SELECT count(*) FROM evil.late) AS late, (SELECT count(*) FROM evil.log_0_a) AS log, (SELECT is_called FROM evil.gate_0) AS gate;

-- Nor can they get hold of CREATE EXTENSION, which runs its script as a superuser, when somebody
-- else has put them where it is created: not even by types that fit better than the real ones.
DROP EXTENSION counterx;
CREATE FUNCTION evil.format(a text, b int) RETURNS text LANGUAGE sql AS 'SELECT NULL::text WHERE evil.complain()';
CREATE FUNCTION evil.format(a text, b int, c text) RETURNS text LANGUAGE sql AS 'SELECT NULL::text WHERE evil.complain()';
CREATE FUNCTION evil.format(a text, b int, c text, d int) RETURNS text LANGUAGE sql AS 'SELECT NULL::text WHERE evil.complain()';
CREATE FUNCTION evil.format(a text, b int, c text, d int, e text) RETURNS text LANGUAGE sql AS 'SELECT NULL::text WHERE evil.complain()';
CREATE FUNCTION evil.concat(a text, b int) RETURNS text LANGUAGE sql AS 'SELECT NULL::text WHERE evil.complain()';
CREATE FUNCTION evil.make_interval(a float8) RETURNS interval LANGUAGE sql AS 'SELECT NULL::interval WHERE evil.complain()';
CREATE EXTENSION counterx SCHEMA evil;
SELECT evil.counter_incr('x', 1);
SELECT evil.counter_value('x');
SELECT counterx.compact();
SELECT pg_catalog.sum(pending_deltas) FROM counterx.lanes;
SELECT count(*) FROM counterx.workers;
SELECT name, value FROM evil.counters;
DROP EXTENSION counterx;

SELECT format('ALTER DATABASE %I RESET search_path', pg_catalog.current_database()) \gexec
\c -
DROP ROLE regress_counterx_user, regress_counterx_other, regress_counterx_folder, regress_counterx_monitor;
