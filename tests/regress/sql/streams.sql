-- Streams: bootstrap, next, peek and ack.
SET client_min_messages = warning;
SET timezone = 'UTC';
CREATE EXTENSION counterx;

-- Nothing to be had of a stream that is none, or was not started.
SELECT counter_stream_next('dash');
SELECT counter_stream_create('dash', prefix => 'tasks:', notify => false);
SELECT counter_stream_next('dash');
SELECT counter_stream_peek('dash');
SELECT counter_stream_create('dash');
SELECT stream, prefix, mode, keep, notify, publish, consumer = current_user AS own, state, reason, lag_folds, lag, lag_bytes FROM counter_streams;

-- What there was is what bootstrap returns: as far as it is folded.
SELECT counter_incr('tasks:a', 5), counter_incr('tasks:b', 7), counter_incr('other', 1);
SELECT count(*) FROM counter_stream_bootstrap('dash');
SELECT counterx.compact() > 0 AS folded;
SELECT name, value, delta, kind, alert FROM counter_stream_next('dash') ORDER BY name;
SELECT * FROM counter_stream_next('dash');
SELECT * FROM counter_stream_bootstrap('dash') ORDER BY name;
SELECT stream, state, lag, lag_folds FROM counter_streams;

-- The newest of each counter, and what all changes come to.
SELECT counter_incr('tasks:a');
SELECT counterx.compact() > 0 AS folded;
SELECT counter_incr('tasks:a', 2), counter_incr('tasks:c', 3);
SELECT counterx.compact() > 0 AS folded;
SELECT counter_set('tasks:b', 100);
SELECT counterx.compact() > 0 AS folded;
SELECT state, lag > '0' AS lags, lag_folds > 0 AS behind, lag_bytes > 0 AS waits FROM counter_streams;
BEGIN;
SELECT name, value, delta, kind FROM counter_stream_next('dash') ORDER BY name;
SELECT name, value, delta, kind FROM counter_stream_next('dash') ORDER BY name;
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT count(*) FROM counter_stream_next('dash');
ROLLBACK TO s;
SELECT name, value, delta, kind, at <= clock_timestamp() AS at, lane BETWEEN 0 AND 7 AS lane, fold > 0 AS fold FROM counter_stream_next('dash') ORDER BY name;
COMMIT;
SELECT count(*) FROM counter_stream_next('dash');

-- In pages.
SELECT counter_incr_many(array_agg('tasks:' || n), array_agg(n::bigint)) FROM generate_series(1, 100) n;
SELECT counterx.compact() > 0 AS folded;
CREATE TEMP TABLE got (name text, value bigint, delta bigint, page int);
DO $$
DECLARE
    found bigint;
BEGIN
    FOR page IN 1 .. 100 LOOP
        INSERT INTO got SELECT n.name, n.value, n.delta, page FROM counter_stream_next('dash', 7) n;
        GET DIAGNOSTICS found = ROW_COUNT;
        EXIT WHEN found = 0;
    END LOOP;
END
$$;
SELECT count(*), count(DISTINCT name), sum(value), sum(delta), max(page) FROM got;
SELECT counter_stream_next('dash', -1);
SELECT counter_stream_next('dash', NULL);
SELECT * FROM counter_stream_next('dash', 0);

-- Dropped, renamed, merged, reset.
SELECT counter_drop('tasks:a'), counter_rename('tasks:b', 'tasks:z'), counter_merge('tasks:1', 'tasks:2'), counter_reset('tasks:3');
SELECT counterx.compact() > 0 AS folded;
SELECT name, value, delta, kind FROM counter_stream_next('dash') ORDER BY name;

-- All changes, one by one, each with a position.
SELECT counter_stream_create('all', mode => 'every', notify => false);
SELECT name FROM counter_stream_bootstrap('all') WHERE name = 'other';
SELECT counter_incr('x');
SELECT counterx.compact() > 0 AS folded;
SELECT counter_incr('x');
SELECT counterx.compact() > 0 AS folded;
SELECT counter_incr('x');
SELECT counterx.compact() > 0 AS folded;
SELECT name, value, delta, kind FROM counter_stream_peek('all');
SELECT counter_stream_ack('all', (SELECT position FROM counter_stream_peek('all', 1)));
SELECT name, value, delta, kind FROM counter_stream_peek('all');
-- Not back again.
CREATE TEMP TABLE place AS SELECT position FROM counter_stream_peek('all', 1);
SELECT counter_stream_ack('all', (SELECT position FROM counter_stream_peek('all') OFFSET 1));
SELECT counter_stream_ack('all', position) FROM place;
SELECT count(*) FROM counter_stream_peek('all');
-- Not what may still be rolled back.
SELECT counter_incr('x');
BEGIN;
SELECT counterx.compact() > 0 AS folded;
SAVEPOINT s;
SELECT counter_stream_peek('all');
ROLLBACK TO s;
SELECT name, value, delta FROM counter_stream_next('all');
ROLLBACK;
SELECT count(*) FROM counter_stream_peek('all');
BEGIN;
SAVEPOINT s;
SAVEPOINT t;
SELECT counterx.compact() > 0 AS folded;
RELEASE t;
ROLLBACK TO s;
SELECT count(*) FROM counter_stream_peek('all');
SAVEPOINT t;
SELECT counterx.compact() > 0 AS folded;
RELEASE t;
SELECT counter_stream_peek('all');
COMMIT;
SELECT counterx.compact() > 0 AS folded;
BEGIN;
-- Nothing was left to be folded; nor does a bootstrap fold.
SELECT counterx.compact();
SELECT count(*) > 0 AS some FROM counter_stream_bootstrap('dash');
SELECT name, value, delta FROM counter_stream_peek('all');
SELECT count(*) FROM counter_stream_next('all');
COMMIT;
-- Positions of others.
SELECT counter_stream_ack('dash', position) FROM place;
SELECT counter_stream_ack('all', 'nothing');
SELECT counter_stream_ack('all', '');
SELECT counter_stream_ack('all', NULL);
SELECT counter_stream_ack('all', regexp_replace(position, '[^:]*$', '9999,9999,9999,9999,9999,9999,9999,9999')) FROM place;
SELECT counter_stream_ack('all', regexp_replace(position, ':[0-9]+:', ':7:')) FROM place;
SELECT count(*) FROM counter_stream_bootstrap('all');
\set VERBOSITY terse
SELECT counter_stream_ack('all', position) FROM place;
\set VERBOSITY default

-- By lanes.
SELECT counter_incr_many(array_agg('tasks:' || n), array_agg(n::bigint)) FROM generate_series(1, 50) n;
SELECT counterx.compact() > 0 AS folded;
SELECT bool_and(lane IN (0, 1)) FROM counter_stream_next('dash', lanes => '{1,0,1}');
SELECT count(*) FROM counter_stream_next('dash', lanes => '{0,1}');
SELECT bool_and(lane > 1), count(*) > 0 AS some FROM counter_stream_next('dash');
SELECT counter_stream_next('dash', lanes => '{8}');
SELECT counter_stream_next('dash', lanes => '{NULL}');
SELECT counter_stream_next('dash', lanes => '{}');

-- What cannot be asked for.
SELECT counter_stream_create(NULL);
SELECT counter_stream_create('');
SELECT counter_stream_create('bad', prefix => NULL);
SELECT counter_stream_create('bad', prefix => repeat('x', 256));
SELECT counter_stream_create('bad', mode => 'some');
SELECT counter_stream_create('bad', keep => '-1 day');
SELECT counter_stream_create('bad', keep => '0');
SELECT counter_stream_create('bad', keep => NULL);
SELECT counter_stream_create('bad', consumer => 'nobody at all');
SELECT counter_type_create('logins', max => 3, per => '1 hour');
SELECT counter_stream_create('bad', prefix => 'logins:');
-- A shorter one leaves them out.
SELECT counter_stream_create('wide', prefix => 'log'), counter_stream_drop('wide');
SELECT counter_stream_create('bad', prefix => 'logins:jo');
SELECT counter_stream_create('good', prefix => 'loginsx', notify => false), counter_stream_drop('good');
-- Windows are not told of.
SELECT counter_try_incr('logins:jo');
SELECT counterx.compact() > 0 AS folded;
SELECT name FROM counter_stream_next('all') WHERE name LIKE 'logins%';

-- One snapshot.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) > 0 AS some FROM counter_stream_bootstrap('dash');
SELECT count(*) FROM counter_stream_next('dash');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT count(*) FROM counter_stream_next('dash');
SELECT count(*) FROM counter_stream_peek('dash');
COMMIT;
BEGIN READ ONLY;
SELECT count(*) FROM counter_stream_peek('dash');
SELECT counter_stream_next('dash');
ROLLBACK;

-- Who may.
CREATE ROLE streams_reader;
CREATE ROLE streams_other;
SELECT counter_stream_create('theirs', prefix => 'tasks:', consumer => 'streams_reader', notify => false);
SET ROLE streams_other;
SELECT counter_stream_create('mine');
SELECT counter_stream_drop('theirs');
SELECT counter_stream_bootstrap('theirs');
SELECT counter_stream_next('theirs');
SELECT counter_stream_peek('theirs');
SELECT counter_stream_ack('theirs', 'x:1:1');
SELECT stream, state FROM counter_streams ORDER BY stream;
SET ROLE streams_reader;
SELECT count(*) > 0 AS some FROM counter_stream_bootstrap('theirs');
SELECT count(*) FROM counter_stream_next('theirs');
SELECT count(*) FROM counter_stream_peek('theirs');
SELECT counter_stream_next('dash');
RESET ROLE;

-- Not behind our backs.
UPDATE counterx.stream SET prefix = '';
DELETE FROM counterx.stream;
TRUNCATE counterx.stream;
UPDATE counterx.cursor SET fold = 0;
DELETE FROM counterx.change_0_a;

-- What cannot be written does not hold up folds for ever: after two of them streams are lost, and say so.
CREATE INDEX in_the_way ON counterx.change_0_a (fold) WHERE seq > 0;
SELECT counter_incr('abc');
\set VERBOSITY terse
SELECT counterx.compact();
SELECT counterx.compact();
SELECT counterx.compact();
\set VERBOSITY default
SELECT name, value FROM counterx.total WHERE name = 'abc';
SELECT stream, state, reason FROM counter_streams ORDER BY stream;
SELECT counter_stream_next('all');
SELECT counter_stream_peek('all');
DROP INDEX counterx.in_the_way;
SELECT count(*) > 0 AS some FROM counter_stream_bootstrap('all');
SELECT counter_incr('abc');
SELECT counterx.compact();
SELECT name, value, delta FROM counter_stream_next('all');

-- All counters are dropped: all have to begin anew.
SELECT counterx.drop_all_counters() > 0 AS dropped;
SELECT stream, state, reason FROM counter_streams ORDER BY stream;
SELECT counter_stream_next('dash');
SELECT count(*) FROM counter_stream_bootstrap('dash');
SELECT stream, state FROM counter_streams WHERE stream = 'dash';

SELECT counter_stream_drop('dash'), counter_stream_drop('dash');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT counter_stream_drop('all');
ROLLBACK;
SELECT counter_stream_drop(stream) FROM counter_streams;
SELECT count(*) FROM counterx.cursor;
DROP ROLE streams_reader, streams_other;
DROP EXTENSION counterx;
