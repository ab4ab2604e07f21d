-- What makes counters and rows differ without a trigger is noticed.
CREATE EXTENSION counterx;
CREATE SCHEMA tracks_ddl;
SET search_path = tracks_ddl, public;
SET client_min_messages = warning;
CREATE FUNCTION state(of text) RETURNS text LANGUAGE sql
    RETURN (SELECT concat_ws(': ', t.state, t.reason) FROM counter_tracks t WHERE t.type = of);

-- Everything about a function that its value depends on.
CREATE FUNCTION shown(t text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT coalesce(t, 'none') $$;
CREATE FUNCTION moved(a int, b int DEFAULT 3) RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT a + b $$;
CREATE TABLE plain (a int, t text);
INSERT INTO plain VALUES (1, NULL), (2, 'x');
SELECT counter_track('plain', 'shown', '{shown(t)}'), counter_track('plain', 'moved', '{moved(a)}');
SELECT count(*) FROM counter_recount('plain');
SELECT state('shown'), state('moved');
ALTER FUNCTION shown(text) STRICT;
SELECT state('shown'), state('moved');
SELECT name, counted, recorded FROM counter_recount('plain');
CREATE OR REPLACE FUNCTION moved(a int, b int DEFAULT 5) RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT a + b $$;
SELECT state('shown'), state('moved');
SELECT name, counted, recorded FROM counter_recount('plain');

-- In the transaction that replaces a function, others still count by what it was.
BEGIN;
CREATE OR REPLACE FUNCTION moved(a int, b int DEFAULT 5) RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT a * b $$;
SELECT name, counted, recorded FROM counter_recount('plain', 'moved');
SELECT state('moved');
COMMIT;
SELECT state('moved');
SELECT name, counted, recorded FROM counter_recount('plain', 'moved');
SELECT state('moved');

-- Labels, through domains and arrays.
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE DOMAIN inner_mood AS mood;
CREATE DOMAIN outer_mood AS inner_mood;
CREATE TABLE moody (m outer_mood, all_of mood[]);
INSERT INTO moody VALUES ('good', '{bad}');
SELECT counter_track('moody', 'moods', '{m}'), counter_track('moody', 'first', '{all_of[1]}');
SELECT count(*) FROM counter_recount('moody');
ALTER TYPE mood RENAME VALUE 'good' TO 'fine';
SELECT state('moods'), state('first');
SELECT name, counted, recorded FROM counter_recount('moody');

-- Children have rows that no trigger counts.
CREATE TABLE child () INHERITS (plain);
SELECT state('moved') LIKE 'stale%' AS is_stale;
SELECT count(*) FROM counter_recount('plain', 'moved');
DROP TABLE child;
SELECT count(*) FROM counter_recount('plain');
SELECT state('moved');

-- Nobody waits for what the own transaction keeps from happening.
BEGIN;
SAVEPOINT a;
SELECT counter_track('moody', 'waited', '{m}');
RELEASE a;
SELECT counter_track_wait('moody', '1 min');
ROLLBACK;
BEGIN;
ALTER TABLE moody ADD COLUMN further int;
SELECT counter_track_wait('moody', '1 min');
ROLLBACK;

-- Somebody else's triggers keep no track from being counted; one's own of the same type do.
CREATE TABLE other (a int);
CREATE TRIGGER x AFTER INSERT ON other FOR EACH ROW EXECUTE FUNCTION counterx.count_row('moods');
SELECT count(*) FROM counter_recount('moody', 'moods');
CREATE ROLE regress_counterx_other;
ALTER TABLE other OWNER TO regress_counterx_other;
SELECT count(*) FROM counter_recount('moody', 'moods');
DROP TABLE other;
DROP ROLE regress_counterx_other;

SELECT counter_untrack('plain'), counter_untrack('moody');
DROP SCHEMA tracks_ddl CASCADE;
