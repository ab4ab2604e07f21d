-- What somebody's expressions call runs as the owner of the table, and as nobody else; who may end a track.
CREATE EXTENSION counterx;
\set VERBOSITY terse
CREATE ROLE owner_of_tracked;
GRANT EXECUTE ON FUNCTION counter_track, counter_drift, counter_recount, counter_untrack TO owner_of_tracked;
CREATE SCHEMA owners AUTHORIZATION owner_of_tracked;
SET ROLE owner_of_tracked;
SET search_path = owners, public;
CREATE FUNCTION as_owner(integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF current_user <> 'owner_of_tracked' THEN
        RAISE EXCEPTION 'as %', current_user;
    END IF;
    RETURN true;
END$$;
CREATE FUNCTION zero() RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN CASE WHEN owners.as_owner(0) THEN 0 END;
END$$;
CREATE DOMAIN checked AS integer CHECK (owners.as_owner(VALUE));
CREATE TYPE pair AS (a owners.checked, b text);
CREATE TYPE spread AS RANGE (SUBTYPE = owners.checked);
CREATE TABLE t (k integer, v integer, b boolean);

-- Literals: their type's input function asks the domain.
SELECT counter_track('t', 'owned', '{k}', filter => $$'{1}'::owners.checked[] IS NOT NULL$$);
SELECT counter_track('t', 'owned-pair', '{k}', filter => $$'(1,x)'::owners.pair IS NOT NULL$$);
SELECT counter_track('t', 'owned-range', '{k}', filter => $$'[1,3)'::owners.spread IS NOT NULL$$);
SELECT counter_track('t', 'owned-key', $${"CASE WHEN '{1,2}'::owners.checked[] IS NULL THEN k ELSE v END"}$$);
SELECT counter_track('t', 'owned-sum', '{k}', sum => $$v + ('{1,2}'::owners.checked[])[1]$$);
-- Functions that are folded, and domains and functions that are asked for each row.
SELECT counter_track('t', 'owned-rows', $${"k::owners.checked","v + owners.zero()"}$$, filter => 'b AND owners.as_owner(k) AND (v > 0 OR k > 0)');
INSERT INTO t VALUES (1, 10, true), (1, 20, true), (2, 30, false), (2, NULL, true);
UPDATE t SET k = 3 WHERE v = 20;
UPDATE t SET b = NOT b WHERE k = 2;
DELETE FROM t WHERE v = 10;
SELECT * FROM counter_recount('t');
SELECT * FROM counter_drift('t');
SELECT counter_track_wait('t', '1 min');
SELECT type, state, last_error FROM counter_tracks WHERE "table" = 'owners.t' ORDER BY type;
SELECT g.type, g.key, g.value, g.rows FROM (VALUES ('owned'), ('owned-key'), ('owned-sum'), ('owned-rows')) y(type),
    LATERAL (SELECT y.type, c.* FROM counter_groups(y.type) c) g ORDER BY 1, 2;
SELECT tgname, tgenabled, pg_get_triggerdef(oid, true) FROM pg_trigger
    WHERE tgrelid = 't'::regclass AND tgname ~ '^counterx_owned(-rows)?_' ORDER BY tgname COLLATE "C";
-- The triggers depend on what they use.
ALTER TABLE t DROP COLUMN b;
DROP FUNCTION zero();
DROP TYPE spread;
ALTER TABLE t RENAME COLUMN v TO w;
INSERT INTO t VALUES (5, 50, true);
TRUNCATE t;
SELECT * FROM counter_drift('t');
SELECT * FROM counter_groups('owned-rows');
SELECT counter_untrack('t');

-- The key of a partitioned table is folded by whoever first looks at it.
CREATE TABLE parted (k integer, v integer) PARTITION BY RANGE ((k + owners.zero()));
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20) PARTITION BY LIST ((v + owners.zero()));
CREATE TABLE parted_2_1 PARTITION OF parted_2 FOR VALUES IN (1);
\c -
SET ROLE owner_of_tracked;
SET search_path = owners, public;
SELECT counter_track('parted', 'owned-parts', '{v}', filter => $$'{1}'::owners.checked[] IS NOT NULL$$);
CREATE TABLE parted_2_2 PARTITION OF parted_2 FOR VALUES IN (2);
INSERT INTO parted VALUES (1, 1), (11, 1), (12, 2), (13, 2);
UPDATE parted SET k = 1 WHERE k = 12;
TRUNCATE parted_2_1;
SELECT * FROM counter_recount('parted');
SELECT * FROM counter_groups('owned-parts');
\c -
SET ROLE owner_of_tracked;
SET search_path = owners, public;
SELECT * FROM counter_drift('parted');
SELECT tgrelid::regclass, tgname, tgenabled FROM pg_trigger
    WHERE tgname ~ '^counterx_owned-parts_' ORDER BY tgrelid::regclass::text COLLATE "C", tgname COLLATE "C";
SELECT counter_untrack('parted');

-- Whoever tracks the table of somebody else needs no more of his rights than that.
REVOKE ALL ON t FROM owner_of_tracked;
RESET ROLE;
SELECT counter_track('owners.t', 'owned', '{k}', filter => $$'{1}'::owners.checked[] IS NOT NULL$$);
SET ROLE owner_of_tracked;
SELECT * FROM counter_recount('t');
SELECT counter_untrack('t');
RESET ROLE;

-- A track whose triggers are gone is the owner's as well, as long as there is the table.
CREATE ROLE somebody_else;
GRANT EXECUTE ON FUNCTION counter_track, counter_untrack TO somebody_else;
SET ROLE owner_of_tracked;
CREATE TABLE bare (k integer);
INSERT INTO bare VALUES (1), (1), (2);
SELECT counter_track('bare', 'bare', '{k}');
SELECT count(*) FROM counter_recount('bare');
SET ROLE somebody_else;
SELECT counter_untrack(NULL, 'bare');
SET ROLE owner_of_tracked;
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'owners.bare'::regclass LOOP
        EXECUTE format('DROP TRIGGER %I ON owners.bare', name);
    END LOOP;
END $$;
SELECT state, reason FROM counter_tracks WHERE type = 'bare';
SET ROLE somebody_else;
SELECT counter_untrack(NULL, 'bare');
SELECT counter_untrack(NULL, 'bare', keep => true);
-- Also where it was restored, and the triggers were not.
RESET ROLE;
UPDATE counterx.track SET looked = NULL WHERE type = 'bare';
SET ROLE somebody_else;
SELECT counter_untrack(NULL, 'bare');
SELECT name, value FROM counters WHERE name LIKE 'bare:%' ORDER BY name;
SET ROLE owner_of_tracked;
BEGIN;
SELECT counter_untrack(NULL, 'bare');
SELECT name, value FROM counters WHERE name LIKE 'bare:%' ORDER BY name;
SELECT counter_untrack(NULL, 'bare');
ROLLBACK;
-- Where it has got another name since it was restored, nothing tells that it is there; else that is no matter.
ALTER TABLE bare RENAME TO bare_of_before;
SET ROLE somebody_else;
BEGIN;
SELECT counter_untrack(NULL, 'bare');
ROLLBACK;
RESET ROLE;
UPDATE counterx.track SET looked = jsonb_build_object('root', 'owners.bare_of_before'::regclass::oid) WHERE type = 'bare';
SET ROLE somebody_else;
SELECT counter_untrack(NULL, 'bare');
RESET ROLE;
ALTER EVENT TRIGGER counterx_tracked_ddl DISABLE;
DROP TABLE bare_of_before;
ALTER EVENT TRIGGER counterx_tracked_ddl ENABLE ALWAYS;
SET ROLE somebody_else;
SELECT counter_untrack(NULL, 'bare', keep => true);
SELECT name, value FROM counters WHERE name LIKE 'bare:%' ORDER BY name;
RESET ROLE;
REVOKE EXECUTE ON FUNCTION counter_track, counter_untrack FROM somebody_else;
DROP ROLE somebody_else;

SET client_min_messages = warning;
DROP SCHEMA owners CASCADE;
REVOKE EXECUTE ON FUNCTION counter_track, counter_drift, counter_recount, counter_untrack FROM owner_of_tracked;
DROP ROLE owner_of_tracked;
