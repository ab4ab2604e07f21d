-- Alerts: when counters cross thresholds.
SET client_min_messages = warning;
CREATE EXTENSION counterx;

SELECT counter_alert_create('low', prefix => 'stock:', below => 10, rearm => 15);
SELECT counter_alert_create('high', prefix => 'stock:', above => 100);
SELECT alert, prefix, below, above, rearm, stream, fired, last_fired_at FROM counter_alerts ORDER BY alert;
-- What cannot be asked for.
SELECT counter_alert_create('low', below => 1);
SELECT counter_alert_create('bad');
SELECT counter_alert_create('bad', below => 1, above => 2);
SELECT counter_alert_create('bad', below => 10, rearm => 9);
SELECT counter_alert_create('bad', above => 10, rearm => 11);
SELECT counter_alert_create('bad', below => 10, stream => 'nowhere');
SELECT counter_alert_create('', below => 10);
SELECT counter_alert_create(NULL, below => 10);

SELECT counter_stream_create('dash', mode => 'every', notify => false);
SELECT * FROM counter_stream_bootstrap('dash');
CREATE FUNCTION folded() RETURNS TABLE (name text, value bigint, delta bigint, kind text, alert text) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM counterx.compact();
    RETURN QUERY SELECT n.name, n.value, n.delta, n.kind, n.alert FROM counter_stream_next('dash') n ORDER BY n.name COLLATE "C", n.fold, n.kind;
END
$$;

-- The first value of all is below.
SELECT counter_incr('stock:apples', 5);
SELECT * FROM folded();
SELECT alert, name, value FROM counter_alerts_fired();
-- Between the two values nothing happens.
SELECT counter_incr('stock:apples', 7);
SELECT * FROM folded();
SELECT counter_incr('stock:apples', 3);
SELECT * FROM folded();
SELECT * FROM counter_alerts_fired();
SELECT counter_decr('stock:apples', 6);
SELECT * FROM folded();
SELECT counter_decr('stock:apples', 1);
SELECT * FROM folded();
-- From one side to the other.
SELECT counter_set('stock:apples', 1000);
SELECT * FROM folded();
SELECT alert, name, value FROM counter_alerts_fired('high');
SELECT alert, fired, last_fired_at <= clock_timestamp() AS has_fired FROM counter_alerts ORDER BY alert;
-- Up and down between two folds is not seen.
SELECT counter_set('stock:apples', 5);
SELECT counter_set('stock:apples', 999);
SELECT * FROM folded();

-- What does not exist any more is nothing to tell of.
SELECT counter_rename('stock:apples', 'stock:pears');
SELECT * FROM folded();
SELECT counter_drop('stock:pears');
SELECT * FROM folded();
SELECT * FROM counter_alerts_fired();

-- One that has a stream tells that one, whatever its prefix is, and no other.
SELECT counter_stream_create('alarms', prefix => 'nothing:', notify => false);
SELECT * FROM counter_stream_bootstrap('alarms');
SELECT counter_alert_create('queue', prefix => 'queue:', above => 3, stream => 'alarms');
SELECT counter_incr('queue:mail', 4);
SELECT * FROM folded();
SELECT name, value, delta, kind, alert FROM counter_stream_next('alarms');
SELECT counter_stream_drop('alarms');

-- The rows of a table that are counted for the first time are nothing that happens.
CREATE TABLE shelf (kind text NOT NULL);
INSERT INTO shelf SELECT 'nuts' FROM generate_series(1, 3);
SELECT counter_alert_create('shelf', prefix => 'shelf:', below => 5);
SELECT counter_track('shelf', 'shelf', ARRAY['kind']);
SELECT count(*) FROM counter_recount('shelf');
SELECT * FROM folded();
SELECT alert, name, value FROM counter_alerts_fired('shelf');
-- But these are.
INSERT INTO shelf SELECT 'nuts' FROM generate_series(1, 2);
SELECT * FROM folded();
DELETE FROM shelf WHERE ctid = (SELECT min(ctid) FROM shelf);
SELECT * FROM folded();

-- What is counted anew is told apart from what happens beside it, in the same fold.
SELECT counter_alert_create('many', prefix => 'shelf:', above => 6);
ALTER TABLE shelf DISABLE TRIGGER counterx_shelf_insert;
INSERT INTO shelf VALUES ('nuts');
ALTER TABLE shelf ENABLE ALWAYS TRIGGER counterx_shelf_insert;
SELECT count(*) AS counted_anew FROM counter_recount('shelf');
INSERT INTO shelf SELECT 'nuts' FROM generate_series(1, 4);
SELECT * FROM folded();
SELECT alert, fired, last_fired_at IS NOT NULL AS told FROM counter_alerts WHERE alert = 'many';
SELECT counter_alert_drop('many');

-- Another one of the same name knows nothing of it.
SELECT counter_alert_drop('shelf'), counter_alert_drop('shelf');
SELECT counter_alert_create('shelf', prefix => 'shelf:', below => 5);
SELECT * FROM counter_alerts_fired('shelf');
SELECT alert, fired, last_fired_at FROM counter_alerts WHERE alert = 'shelf';
CALL counterx.compact_in_steps();
SELECT count(*) FROM counterx.alert_state s WHERE NOT EXISTS (SELECT FROM counterx.alert a WHERE a.id = s.alert);

-- Whoever counts may not define any.
CREATE ROLE alerts_other;
SET ROLE alerts_other;
SELECT counter_alert_create('mine', below => 1);
SELECT counter_alert_drop('low');
SELECT count(*) FROM counter_alerts_fired();
SELECT count(*) FROM counter_alerts;
RESET ROLE;
DROP ROLE alerts_other;
-- All counters are dropped, before the last is folded of what was counted.
SELECT counter_alert_create('few', prefix => 'few:', below => 10);
SELECT counter_incr('few:left', 3);
SELECT counterx.compact() > 0 AS folded;
SELECT fired FROM counterx.alert_lane WHERE alert = (SELECT id FROM counterx.alert WHERE name = 'few');
SELECT counter_incr('few:left');
SELECT counterx.drop_all_counters() > 0 AS dropped;
SELECT counterx.compact() > 0 AS folded;
SELECT fired FROM counterx.alert_lane WHERE alert = (SELECT id FROM counterx.alert WHERE name = 'few');
SELECT count(*) FROM counter_alerts_fired('few');

DROP FUNCTION folded;
DROP TABLE shelf;
DROP EXTENSION counterx;
