-- What the page shows. Run at each start, by a role that may create types, streams and alerts: the extension's
-- owner, or who was granted that.
CREATE EXTENSION IF NOT EXISTS counterx;

DO $$
BEGIN
    -- Nothing is sold that is not there.
    IF NOT EXISTS (SELECT FROM counter_types WHERE name = 'live-stock') THEN
        PERFORM counter_type_create('live-stock', min => 0);
    END IF;
    -- One stream for what is one part of the page.
    IF NOT EXISTS (SELECT FROM counter_streams WHERE stream = 'live-board') THEN
        PERFORM counter_stream_create('live-board', prefix => 'live-board:', keep => '1 hour');
    END IF;
    IF NOT EXISTS (SELECT FROM counter_streams WHERE stream = 'live-stock') THEN
        PERFORM counter_stream_create('live-stock', prefix => 'live-stock:', keep => '1 hour');
    END IF;
    -- Fired below 10, and once more only when there have been 20 in between.
    IF NOT EXISTS (SELECT FROM counter_alerts WHERE alert = 'live-low') THEN
        PERFORM counter_alert_create('live-low', prefix => 'live-stock:', below => 10, rearm => 20, stream => 'live-stock');
    END IF;
END $$;
