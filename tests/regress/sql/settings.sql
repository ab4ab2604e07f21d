-- The settings: units, ranges, who may change them. (What they do is tested with whole clusters.)
\set SHOW_CONTEXT never
CREATE EXTENSION counterx;
-- Loads the library where it is not preloaded.
SELECT counter_value('x');
SELECT name, boot_val, unit, vartype, min_val, max_val, context FROM pg_settings WHERE name LIKE 'counterx.%' ORDER BY name;
SELECT name FROM pg_settings WHERE name LIKE 'counterx.%' AND (short_desc = '' OR coalesce(extra_desc, '') = '');

-- Units are understood and shown.
SET counterx.pending_work_mem = '2MB';
SHOW counterx.pending_work_mem;
SET counterx.pending_work_mem = 100;
SHOW counterx.pending_work_mem;
SET counterx.pending_work_mem = '1 hour';
SET counterx.pending_work_mem = '2TB';
SET counterx.compaction = maybe;
-- Messages of numbers out of range got units in PostgreSQL 17.
\set VERBOSITY sqlstate
SET counterx.pending_work_mem = '32kB';
ALTER SYSTEM SET counterx.compaction_interval = '0ms';
ALTER SYSTEM SET counterx.compaction_interval = '2h';
ALTER SYSTEM SET counterx.compaction_threshold = 0;
ALTER SYSTEM SET counterx.log_max_size = '63kB';
ALTER SYSTEM SET counterx.worker_idle_timeout = '500ms';
SET counterx.max_pending = -1;
SET counterx.max_pending_wait = '2h';
\set VERBOSITY default
SET counterx.max_pending_action = 'panic';

-- Those of the worker are for the configuration file, which is read again without a restart.
SET counterx.compaction_interval = '2s';
\echo :LAST_ERROR_SQLSTATE
SET counterx.compaction_threshold = 5;
SET counterx.log_max_size = '1MB';
SET counterx.worker_idle_timeout = '5s';

-- The switch is for superusers, in a session and for a database; it does not stop compact().
SELECT format('ALTER DATABASE %I SET counterx.compaction = off', current_database()) \gexec
\c -
\set SHOW_CONTEXT never
SHOW counterx.compaction;
SELECT counter_incr('x', 3);
SELECT counterx.compact();
SELECT counter_value('x');
SELECT format('ALTER DATABASE %I RESET counterx.compaction', current_database()) \gexec
SET counterx.compaction = on;
CREATE ROLE regress_counterx_settings;
SET ROLE regress_counterx_settings;
SET counterx.compaction = off;
\echo :LAST_ERROR_SQLSTATE
-- What writers are told to do, only superusers change.
SET counterx.max_pending = 0;
\echo :LAST_ERROR_SQLSTATE
SET counterx.max_pending_action = 'warn';
\echo :LAST_ERROR_SQLSTATE
SET counterx.max_pending_wait = 0;
\echo :LAST_ERROR_SQLSTATE
-- The memory of one's own transactions is everybody's own.
SET counterx.pending_work_mem = '1MB';
SHOW counterx.pending_work_mem;
RESET ROLE;
DROP ROLE regress_counterx_settings;

-- A misspelt setting is an error, and not a setting that nobody reads.
SET counterx.compaction_intervall = '2s';
\echo :LAST_ERROR_SQLSTATE
SELECT set_config('counterx.foo', '1', false);
SHOW counterx.foo;
