-- Who may call what of the API, and what a catalog says about it.
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE ROLE regress_counterx_reader;
CREATE ROLE regress_counterx_writer;
CREATE ROLE regress_counterx_admin;
CREATE ROLE regress_counterx_nobody;
RESET client_min_messages;
CREATE EXTENSION counterx;

-- As it is created: who is nobody may read and count.
SELECT p.oid::regprocedure AS function, has_function_privilege('regress_counterx_nobody', p.oid, 'EXECUTE') AS open
FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'counterx')
ORDER BY open DESC, p.oid::regprocedure::text COLLATE "C";

-- The example of the manual: closed to PUBLIC, then given to a reader and a writer.
REVOKE EXECUTE ON FUNCTION counter_value, counter_values, counter_list, counter_sum, counter_rank, counter_top, counter_bottom,
    counter_buckets, counter_at, counter_at_boundary, counter_rate, counter_top_changed, counter_events,
    counter_incr, counter_decr, counter_incr_get, counter_incr_many(text[], bigint[]), counter_incr_many(jsonb),
    counter_incr_once, counter_incr_once_get FROM PUBLIC;
REVOKE SELECT ON counters, counter_histories, counter_sealed FROM PUBLIC;
GRANT EXECUTE ON FUNCTION counter_value, counter_values, counter_list, counter_sum, counter_rank, counter_top, counter_bottom,
    counter_buckets, counter_at, counter_at_boundary, counter_rate, counter_top_changed, counter_events TO regress_counterx_reader, regress_counterx_writer;
GRANT SELECT ON counters, counter_histories, counter_sealed TO regress_counterx_reader;
GRANT EXECUTE ON FUNCTION counter_incr, counter_decr, counter_incr_get, counter_incr_many(text[], bigint[]), counter_incr_many(jsonb),
    counter_incr_once, counter_incr_once_get TO regress_counterx_writer;
GRANT EXECUTE ON FUNCTION counter_set, counter_reset, counter_drop, counter_rename, counter_merge, counter_history, counter_history_drop, counter_seal TO regress_counterx_admin;
GRANT USAGE ON SCHEMA counterx TO regress_counterx_admin;
GRANT EXECUTE ON FUNCTION counterx.compact, counterx.create_value_index, counterx.drop_value_index TO regress_counterx_admin;

-- Each role calls everything, and gets a result or 42501.
SELECT counter_history('h', events => '1 day');
CREATE TABLE calls (place int GENERATED ALWAYS AS IDENTITY, command text);
INSERT INTO calls (command) VALUES
    ('SELECT counter_incr(''x'', 5)'),
    ('SELECT counter_decr(''x'')'),
    ('SELECT counter_incr_get(''x'')'),
    ('SELECT counter_incr_many(ARRAY[''x''], ARRAY[1])'),
    ('SELECT counter_incr_many(''{"x": 1}'')'),
    ('SELECT counter_incr_once(''token'', ''x'')'),
    ('SELECT counter_incr_once_get(''token_get'', ''x'')'),
    ('SELECT counter_value(''x'')'),
    ('SELECT value FROM counter_values(''{x}'')'),
    ('SELECT value FROM counter_list()'),
    ('SELECT counter_sum()'),
    ('SELECT value FROM counter_top()'),
    ('SELECT value FROM counter_bottom()'),
    ('SELECT value FROM counters'),
    ('SELECT value FROM counter_buckets(''h:x'', ''day'')'),
    ('SELECT counter_at(''h:x'', now())'),
    ('SELECT counter_at_boundary(''h:x'', now())'),
    ('SELECT delta FROM counter_rate(''h:x'', ''1 hour'')'),
    ('SELECT name FROM counter_top_changed(1, ''h:'')'),
    ('SELECT delta FROM counter_events(''h:x'')'),
    ('SELECT unit FROM counter_histories'),
    ('SELECT sealed_until FROM counter_sealed'),
    ('SELECT counter_history(''g'')'),
    ('SELECT counter_history_drop(''g'')'),
    ('SELECT counter_seal()'),
    ('SELECT counter_set(''y'', 5)'),
    ('SELECT counter_reset(''y'')'),
    ('SELECT counter_rename(''y'', ''z'')'),
    ('SELECT counter_merge(''y'', ''z'')'),
    ('SELECT counter_drop(''y'')'),
    ('SELECT counterx.compact()'),
    ('SELECT counterx.create_value_index()'),
    ('SELECT counterx.drop_value_index()'),
    ('SELECT count(*) FROM counterx.lane_status()'),
    ('SELECT count(*) FROM counterx.fold_status()'),
    ('SELECT count(*) FROM counterx.escrow_status()'),
    ('SELECT count(*) FROM counterx.upkeep'),
    ('SELECT count(*) FROM counterx.lanes'),
    ('SELECT count(*) FROM counterx.stat_figures()'),
    ('SELECT count(*) FROM counterx.stat'),
    ('SELECT counterx.stat_reset()'),
    ('SELECT count(*) FROM counterx.total'),
    ('SELECT count(*) FROM counterx.token'),
    ('SELECT count(*) FROM counterx.history'),
    ('SELECT count(*) FROM counterx.bucket_4_0'),
    ('SELECT count(*) FROM counterx.dump_buckets()'),
    ('SELECT counterx.sealed_until()');
CREATE FUNCTION outcome(role name, command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    EXECUTE format('SET LOCAL ROLE %I', role);
    BEGIN
        EXECUTE command INTO result;
        result := 'may';
    EXCEPTION WHEN OTHERS THEN
        result := SQLSTATE;
    END;
    RESET ROLE;
    RETURN result;
END $$;
SELECT command, outcome('regress_counterx_nobody', command) AS nobody, outcome('regress_counterx_reader', command) AS reader,
    outcome('regress_counterx_writer', command) AS writer, outcome('regress_counterx_admin', command) AS admin
FROM calls ORDER BY place;
-- In a session and at a commit of its own; the tables it writes to are none of its own.
\c -
\set SHOW_CONTEXT never
SET ROLE regress_counterx_writer;
BEGIN;
SELECT counter_incr_many('{"w": 1}'), counter_incr_once('w', 'w', 10), counter_incr_once_get('wg', 'w', 100);
COMMIT;
SELECT * FROM counter_top(1, 'w');
\c -
\set SHOW_CONTEXT never
SET ROLE regress_counterx_reader;
SELECT counter_value('w'), counter_sum('w');
SELECT * FROM counter_list('w');
\c -
\set SHOW_CONTEXT never
SET ROLE regress_counterx_admin;
SELECT counter_set('a', 3), counter_rename('a', 'b'), counter_reset('b'), counter_drop('b');
SELECT counterx.create_value_index(), counterx.create_value_index();
SELECT counterx.compact() > 0 AS folded;
RESET ROLE;
SELECT * FROM counter_top(1, 'w');
SELECT pg_get_userbyid(relowner) = current_user AS index_belongs_to_the_owner FROM pg_class WHERE oid = 'counterx.total_value_name'::regclass;
SET ROLE regress_counterx_admin;
SELECT counterx.drop_value_index(), counterx.drop_value_index();
RESET ROLE;

-- Everything says what it is: functions, the view and each of its columns, tables and sequences. (Their row
-- types are members too, from PostgreSQL 17 on.)
SELECT pg_describe_object(d.classid, d.objid, 0) AS without_comment
FROM pg_depend d
WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'counterx')
  AND d.classid <> 'pg_type'::regclass
  AND obj_description(d.objid, d.classid::regclass::name) IS NULL
ORDER BY 1;
SELECT a.attrelid::regclass AS relation, a.attname AS column_without_comment
FROM pg_depend d JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'v' JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE d.classid = 'pg_class'::regclass AND d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'counterx')
  AND col_description(a.attrelid, a.attnum) IS NULL;
-- Marks for the planner. None is strict: a NULL is an error.
SELECT p.oid::regprocedure AS function, p.provolatile AS volatile, p.proparallel AS parallel, p.proisstrict AS strict, p.prosecdef AS definer,
    p.procost AS cost, p.prorows AS rows, p.proleakproof AS leakproof, nullif(p.prosupport::oid, 0)::regproc AS support, p.proconfig AS config
FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'counterx')
ORDER BY p.oid::regprocedure::text COLLATE "C";
SELECT p.oid::regprocedure AS function, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result
FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'counterx')
ORDER BY p.oid::regprocedure::text COLLATE "C";

DROP EXTENSION counterx;
DROP ROLE regress_counterx_reader, regress_counterx_writer, regress_counterx_admin, regress_counterx_nobody;
