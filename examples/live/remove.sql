-- Removes what setup.sql has made, and what was counted.
SELECT counter_alert_drop('live-low');
SELECT counter_stream_drop('live-board'), counter_stream_drop('live-stock');
SELECT count(counter_drop(name)) FROM counters WHERE name ^@ 'live-board:' OR name ^@ 'live-stock:';
SELECT counter_type_drop('live-stock');
