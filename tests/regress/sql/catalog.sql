-- What the extension consists of. A change here is a change for users, for their dumps, or for the
-- upgrade from an older version: it should not happen by accident.
CREATE EXTENSION counterx;

CREATE VIEW members AS
SELECT d.classid, d.objid, i.type, i.schema, i.name, i.identity
FROM pg_depend d, pg_identify_object(d.classid, d.objid, 0) i
WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'counterx');

-- All members; those that each lane has are shown once, and so are the tables of buckets.
SELECT type, regexp_replace(regexp_replace(identity, 'bucket_[0-4]_[0-5]', 'bucket_<class>_<number>'), '_[0-7]', '_<lane>') AS identity, count(*)
FROM members
WHERE type NOT LIKE '%type'
GROUP BY 1, 2
ORDER BY 1, 2;

-- Functions: what they take and give, and how they are marked. Increments are never to run in a
-- parallel worker; reads only in the leader, as it alone knows its transaction's increments.
SELECT p.oid::regprocedure AS function,
       pg_get_function_arguments(p.oid) AS arguments,
       pg_get_function_result(p.oid) AS result,
       p.provolatile AS vol, p.proparallel AS par, p.proisstrict AS strict,
       p.prosecdef AS definer, p.proleakproof AS leakproof, p.procost AS cost, p.proconfig AS config, p.proacl IS NOT NULL AS has_acl
FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
ORDER BY p.oid::regprocedure::text;

-- Views, and the tables and sequences behind them: columns, types, collations. One lane for all.
SELECT c.relkind AS kind, a.attrelid::regclass AS relation, a.attnum AS num, a.attname AS column,
       format_type(a.atttypid, a.atttypmod) AS type, l.collname AS collation, a.attnotnull AS not_null, a.attstorage AS storage
FROM members m
JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
LEFT JOIN pg_collation l ON l.oid = a.attcollation
WHERE c.relkind IN ('r', 'v', 'f') AND c.relname !~ '^log_[1-7]_|_b$|^bucket_([1-4]_|0_[1-5])'
ORDER BY c.relkind = 'r', c.relname, a.attnum;
SELECT tablename, regexp_replace(indexdef, 'INDEX .* ON', 'INDEX ON') AS index
FROM pg_indexes WHERE schemaname = 'counterx' AND tablename !~ '^log_[1-7]_|_b$|^bucket_([1-4]_|0_[1-5])'
ORDER BY 1, 2;
SELECT regexp_replace(regexp_replace(c.relname, 'bucket_[0-4]_[0-5]', 'bucket_<class>_<number>'), '_[0-7]', '_<lane>') AS relation, c.reloptions, count(*)
FROM members m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
WHERE c.relkind = 'r'
GROUP BY 1, 2 ORDER BY 1, 2;
SELECT regexp_replace(sequencename, '_[0-7]', '_<lane>') AS sequence, data_type, start_value, min_value, cycle, cache_size, count(*)
FROM pg_sequences WHERE schemaname = 'counterx'
GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1;

-- What goes into dumps: values, and what is said of counters. Nothing of how the engine keeps them.
SELECT d.relation::regclass, d.condition
FROM pg_extension e, unnest(e.extconfig, e.extcondition) d (relation, condition)
WHERE e.extname = 'counterx' ORDER BY d.relation::regclass::text;
-- And CREATE EXTENSION leaves the tables empty, so that a restore meets nothing; cells have their rows.
SELECT coalesce(sum(pg_relation_size(c.oid)), 0) AS bytes
FROM members m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
WHERE c.relkind = 'r' AND c.relname !~ '^gate_|^cut$';
SELECT count(*) AS sequences_used FROM pg_sequences WHERE schemaname = 'counterx' AND last_value IS NOT NULL;

-- Everything has a comment that says what it is for.
SELECT type, identity FROM members
WHERE type NOT LIKE '%type' AND obj_description(objid, classid::regclass::name) IS NULL
ORDER BY 1, 2;
SELECT a.attrelid::regclass AS view, a.attname AS column
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
JOIN members m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid
WHERE c.relkind = 'v' AND a.attnum > 0 AND col_description(a.attrelid, a.attnum) IS NULL;

-- Privileges.
SELECT nspacl FROM pg_namespace WHERE nspname = 'counterx';
SELECT c.oid::regclass AS relation, a.privilege_type, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee
FROM members m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid, aclexplode(c.relacl) a
WHERE a.grantee <> c.relowner
ORDER BY 1, 2, 3;

-- The version is that of the control file, there is no other one to be installed, and the extension
-- stays where it was put.
SELECT e.extversion = a.default_version AS current, n.nspname AS schema, e.extrelocatable AS relocatable
FROM pg_extension e
JOIN pg_available_extensions a ON a.name = e.extname
JOIN pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname = 'counterx';
ALTER EXTENSION counterx SET SCHEMA pg_catalog;

-- It can be dropped and created again, elsewhere, and then is empty.
SELECT counter_incr('x');
DROP VIEW members;
DROP EXTENSION counterx;
SELECT count(*) FROM pg_class WHERE relname LIKE 'gate%' OR relname LIKE 'log\__\__';
SELECT count(*) FROM pg_namespace WHERE nspname = 'counterx';
CREATE SCHEMA elsewhere;
CREATE EXTENSION counterx SCHEMA elsewhere;
SELECT elsewhere.counter_value('x');
SELECT elsewhere.counter_incr('x');
SELECT name, value FROM elsewhere.counters;
