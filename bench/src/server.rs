//! A section's cluster, and what is asked of it beside the measuring.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::num::NonZero;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use counterx_harness::{Cluster, poll_until};
use postgres::Client;
use postgres::types::FromSqlOwned;
use serde::{Deserialize, Serialize};

use crate::options::{Options, below_root};
use crate::stats::median;

/// As a small real server has it, but for checkpoints: one that comes by itself would hit one of
/// those who are compared and not the others. The same for all sections, but where one says so.
const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("shared_buffers", "1GB"),
    ("autovacuum_naptime", "1min"),
    ("checkpoint_timeout", "1h"),
    ("max_wal_size", "16GB"),
];

/// The most clients that a section has by itself.
const MOST_CLIENTS: u32 = 128;

/// Connections that are left for this program, autovacuum and the like.
const SPARE_CONNECTIONS: u32 = 22;

/// How long the worker may take to fold what a slice has left.
const FOLD_DEADLINE: Duration = Duration::from_secs(300);

/// Of what is done beside the measuring, so that nothing hangs for ever.
const STATEMENT_TIMEOUT: &str = "20min";

/// How long a server may take to notice that pgbench has ended.
const NOTICE_DEADLINE: Duration = Duration::from_secs(60);

/// Settings worth knowing when reading the figures.
const SETTINGS_SQL: &str = "
    SELECT name::text, current_setting(name) FROM pg_settings
    WHERE name IN ('autovacuum', 'autovacuum_naptime', 'checkpoint_timeout', 'commit_delay',
                   'commit_siblings', 'debug_assertions', 'fsync', 'full_page_writes', 'jit', 'lc_collate',
                   'max_connections', 'max_wal_size', 'shared_buffers',
                   'shared_preload_libraries', 'synchronous_commit', 'wal_level',
                   'wal_buffers', 'wal_compression', 'wal_sync_method', 'wal_writer_delay',
                   'huge_pages', 'effective_io_concurrency', 'data_checksums')
       OR name LIKE 'counterx.%'";

const PENDING_SQL: &str = "SELECT coalesce(sum(pending_deltas), 0)::bigint FROM counterx.lanes";

/// What the figures were made on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) started: String,
    pub(crate) postgresql: String,
    pub(crate) counterx: String,
    pub(crate) machine: String,
    /// Median of the microseconds that writing a page and fdatasync take, where clusters are.
    pub(crate) flush: f64,
    /// Of the machine before the run: others' work shows in it.
    pub(crate) load_average: String,
    pub(crate) settings: BTreeMap<String, String>,
}

/// A cluster with the extension, and a connection to it.
pub(crate) struct Server {
    pub(crate) cluster: Cluster,
    pub(crate) client: Client,
    /// See [`Server::is_new`].
    seen: BTreeSet<String>,
}

impl Server {
    pub(crate) fn start(name: &str, options: &Options) -> Result<Self> {
        Self::start_with(name, options, &[])
    }

    /// With more settings.
    pub(crate) fn start_with(
        name: &str,
        options: &Options,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let connections = options.clients.max(MOST_CLIENTS) + SPARE_CONNECTIONS;
        let mut builder = Cluster::builder()
            .name(&format!("bench-{name}"))
            .conf("max_connections", &connections.to_string());
        for (name, value) in SETTINGS.iter().chain(settings) {
            builder = builder.conf(name, value);
        }
        let cluster = builder.start()?;
        let mut client = cluster.connect()?;
        client
            .batch_execute("CREATE EXTENSION counterx")
            .context("could not create the extension")?;
        client.batch_execute(&format!("SET statement_timeout = '{STATEMENT_TIMEOUT}'"))?;
        Ok(Self {
            cluster,
            client,
            seen: BTreeSet::new(),
        })
    }

    /// Whether this is said for the first time.
    pub(crate) fn is_new(&mut self, what: &str) -> bool {
        self.seen.insert(what.to_owned())
    }

    pub(crate) fn about(&mut self) -> Result<About> {
        let rows = self.client.query(SETTINGS_SQL, &[])?;
        Ok(About {
            started: now(),
            postgresql: self.one("SELECT version()")?,
            counterx: self
                .one::<String>("SELECT extversion FROM pg_extension WHERE extname = 'counterx'")?
                + &commit(),
            flush: flush(self.cluster.directory())?,
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

    /// Waits until the worker has folded everything.
    pub(crate) fn settle(&mut self) -> Result<()> {
        poll_until("the worker to fold everything", FOLD_DEADLINE, || {
            Ok(self.pending()? == 0)
        })
    }

    /// Bytes of WAL so far.
    pub(crate) fn wal_bytes(&mut self) -> Result<i64> {
        self.one("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
    }

    /// The worker's process id. There is one as long as something was counted a moment ago.
    pub(crate) fn worker(&mut self) -> Result<i32> {
        self.one::<Option<i32>>("SELECT pid FROM counterx.workers")?
            .context("no worker runs")
    }

    /// Folds everything, unless the worker does so first.
    pub(crate) fn fold(&mut self) -> Result<()> {
        poll_until("everything to be folded", FOLD_DEADLINE, || {
            self.one::<i64>("SELECT counterx.compact()")?;
            Ok(self.pending()? == 0)
        })
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

/// Of the checkout, if it is one.
fn commit() -> String {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty", "--exclude=*"])
        .current_dir(below_root("."))
        .output();
    match output {
        Ok(output) if output.status.success() => {
            format!(" ({})", String::from_utf8_lossy(&output.stdout).trim())
        }
        _ => String::new(),
    }
}

/// What limits each durable commit: microseconds to write a page and have it on the disk.
fn flush(directory: &Path) -> Result<f64> {
    let path = directory.join("flush");
    let mut took = Vec::new();
    let mut file = File::create(&path).context("could not make a file")?;
    for _ in 0..200 {
        let start = Instant::now();
        file.write_all(&[0x55; 8192])
            .and_then(|()| file.sync_data())
            .context("could not write a page")?;
        took.push(start.elapsed().as_secs_f64() * 1e6);
    }
    drop(file);
    fs::remove_file(&path).context("could not remove a file")?;
    Ok(median(&took))
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
    let memory = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().next()?;
            let kilobytes: f64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
            Some(format!("{:.0} GiB", kilobytes / 1024.0 / 1024.0))
        })
        .unwrap_or_else(|| "unknown memory".to_owned());
    format!("{cpus} processors ({model}), {memory}, Linux {kernel}")
}

/// The time of day, in UTC; `date` knows of years and months.
pub(crate) fn now() -> String {
    let output = Command::new("date").args(["-u", "+%F %H:%M UTC"]).output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

/// Of the last minute, the last five and the last fifteen.
pub(crate) fn load_average() -> String {
    let line = read_line("/proc/loadavg");
    line.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn read_line(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
