//! A section's cluster, and what is asked of it beside the measuring.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZero;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use counterx_harness::{Cluster, poll_until};
use postgres::Client;
use postgres::types::FromSqlOwned;
use serde::Serialize;

/// As a real server has it, but for checkpoints: one that comes by itself would hit one of those
/// who are compared and not the others.
const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("autovacuum_naptime", "1min"),
    ("checkpoint_timeout", "1h"),
    ("max_wal_size", "16GB"),
];

/// Connections that are left for this program, autovacuum and the like.
const SPARE_CONNECTIONS: u32 = 20;

/// How long the worker may take to fold what a slice has left.
const FOLD_DEADLINE: Duration = Duration::from_secs(300);

/// How long a server may take to notice that pgbench has ended.
const NOTICE_DEADLINE: Duration = Duration::from_secs(60);

/// Settings worth knowing when reading the figures.
const SETTINGS_SQL: &str = "
    SELECT name::text, current_setting(name) FROM pg_settings
    WHERE name IN ('autovacuum', 'autovacuum_naptime', 'checkpoint_timeout', 'commit_delay',
                   'debug_assertions', 'fsync', 'full_page_writes', 'jit', 'lc_collate',
                   'max_connections', 'max_wal_size', 'shared_buffers',
                   'shared_preload_libraries', 'synchronous_commit', 'wal_level',
                   'wal_sync_method')
       OR name LIKE 'counterx.%'";

const PENDING_SQL: &str = "SELECT coalesce(sum(pending_deltas), 0)::bigint FROM counterx.lanes";

/// What the figures were made on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct About {
    pub(crate) started: String,
    pub(crate) postgresql: String,
    pub(crate) counterx: String,
    pub(crate) machine: String,
    /// Of the machine before the run: others' work shows in it.
    pub(crate) load_average: String,
    pub(crate) settings: BTreeMap<String, String>,
}

/// A cluster with the extension, and a connection to it.
pub(crate) struct Server {
    pub(crate) cluster: Cluster,
    pub(crate) client: Client,
}

impl Server {
    pub(crate) fn start(name: &str, clients: u32) -> Result<Self> {
        Self::start_with(name, clients, &[])
    }

    /// With more settings.
    pub(crate) fn start_with(name: &str, clients: u32, settings: &[(&str, &str)]) -> Result<Self> {
        let connections = (clients + SPARE_CONNECTIONS).max(100).to_string();
        let mut builder = Cluster::builder()
            .name(name)
            .conf("max_connections", &connections);
        for (name, value) in SETTINGS.iter().chain(settings) {
            builder = builder.conf(name, value);
        }
        let cluster = builder.start()?;
        let mut client = cluster.connect()?;
        client
            .batch_execute("CREATE EXTENSION counterx")
            .context("could not create the extension")?;
        Ok(Self { cluster, client })
    }

    pub(crate) fn about(&mut self) -> Result<About> {
        let rows = self.client.query(SETTINGS_SQL, &[])?;
        Ok(About {
            started: self.one("SELECT to_char(now(), 'YYYY-MM-DD HH24:MI TZ')")?,
            postgresql: self.one("SELECT version()")?,
            counterx: self.one("SELECT extversion FROM pg_extension WHERE extname = 'counterx'")?,
            machine: machine(),
            load_average: load_average(),
            settings: rows.iter().map(|row| (row.get(0), row.get(1))).collect(),
        })
    }

    /// The only value of the only row.
    pub(crate) fn one<T: FromSqlOwned>(&mut self, sql: &str) -> Result<T> {
        self.client
            .query_one(sql, &[])
            .and_then(|row| row.try_get(0))
            .with_context(|| format!("could not run: {sql}"))
    }

    pub(crate) fn execute(&mut self, sql: &str) -> Result<()> {
        self.client
            .batch_execute(sql)
            .with_context(|| format!("could not run: {sql}"))
    }

    /// Deltas that are not folded yet.
    pub(crate) fn pending(&mut self) -> Result<i64> {
        self.one(PENDING_SQL)
    }

    /// Waits until the worker has folded everything, so that it does not fold one's deltas in the
    /// next one's time. Returns how many there were.
    pub(crate) fn settle(&mut self) -> Result<i64> {
        let before = self.pending()?;
        poll_until("the worker to fold everything", FOLD_DEADLINE, || {
            Ok(self.pending()? == 0)
        })?;
        Ok(before)
    }

    /// Waits until the server has noticed that a pgbench was stopped.
    pub(crate) fn wait_for_no_pgbench(&mut self) -> Result<()> {
        poll_until("pgbench's connections to end", NOTICE_DEADLINE, || {
            let left: i64 = self
                .one("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'")?;
            Ok(left == 0)
        })
    }

    /// Waits until what `sql` counts has grown by `by`.
    pub(crate) fn wait_for_growth(&mut self, sql: &str, by: u32) -> Result<()> {
        let start: i64 = self.one(sql)?;
        poll_until("the writers to write", NOTICE_DEADLINE, || {
            Ok(self.one::<i64>(sql)? >= start + i64::from(by))
        })
    }

    /// Says so when what `sql` counts is not `expected`: then something else was measured.
    pub(crate) fn check(&mut self, what: &str, sql: &str, expected: i64) -> Result<()> {
        let found: i64 = self.one(sql)?;
        ensure!(
            found == expected,
            "{what}: {found} counted, but {expected} were done"
        );
        Ok(())
    }
}

fn machine() -> String {
    let cpus = thread::available_parallelism().map_or(0, NonZero::get);
    let model = fs::read_to_string("/proc/cpuinfo")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|rest| rest.split_once(':'))
        .map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned());
    let kernel = read_line("/proc/sys/kernel/osrelease");
    format!("{cpus} processors ({model}), Linux {kernel}")
}

/// Of the last minute, the last five and the last fifteen.
pub(crate) fn load_average() -> String {
    let line = read_line("/proc/loadavg");
    line.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn read_line(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
