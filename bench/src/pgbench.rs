//! Runs of pgbench, and what it says about them.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use counterx_harness::{Cluster, poll_until};
use serde::{Deserialize, Serialize};

use crate::stats::percentile;

/// pgbench's threads: as many as the smallest machine worth measuring on has processors.
const JOBS: u32 = 2;

/// How long a run may take beyond the seconds that it was told: connecting, and the last
/// transaction. A run of so many transactions, too.
const GRACE: Duration = Duration::from_secs(600);

/// Clients that connect in a second on a busy machine.
const CONNECTS: u32 = 64;

/// Runs, each four times as long as the one before, until there is a transaction.
const LONGER: u32 = 3;

/// How queries are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Parsed and planned each time.
    Simple,
    /// Parsed once a connection.
    Prepared,
}

impl Protocol {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Prepared => "prepared",
        }
    }
}

/// A run to come.
#[derive(Clone, Debug)]
#[must_use]
pub(crate) struct Pgbench<'a> {
    cluster: &'a Cluster,
    scripts: Vec<String>,
    clients: u32,
    protocol: Protocol,
    database: String,
    /// What `PGOPTIONS` says.
    settings: String,
    /// Transactions per second at most.
    rate: Option<u32>,
}

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) transactions: i64,
    /// Transactions per second, of all clients together.
    pub(crate) rate: f64,
}

/// One line of a transaction log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Logged {
    /// The script's number.
    pub(crate) script: usize,
    /// When it ended, in seconds since 1970.
    pub(crate) end: f64,
    pub(crate) microseconds: u64,
    /// How late it began; a part of `microseconds`. None without [`Pgbench::rate`].
    pub(crate) lag: Option<u64>,
}

/// One line of progress.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Progress {
    /// The end of the second that it tells of, in seconds since 1970.
    pub(crate) end: f64,
    pub(crate) rate: f64,
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Latency {
    /// # Errors
    /// There is none.
    pub(crate) fn of(microseconds: impl Iterator<Item = u64>) -> Result<Self> {
        let mut sorted: Vec<u64> = microseconds.collect();
        ensure!(!sorted.is_empty(), "pgbench has logged no transaction");
        sorted.sort_unstable();
        Ok(Self {
            mean: sorted.iter().sum::<u64>() as f64 / sorted.len() as f64,
            p50: percentile(&sorted, 50) as f64,
            p99: percentile(&sorted, 99) as f64,
        })
    }
}

impl<'a> Pgbench<'a> {
    /// Clients that run one script.
    pub(crate) fn new(cluster: &'a Cluster, clients: u32, script: &str) -> Self {
        Self {
            cluster,
            scripts: vec![script.to_owned()],
            clients,
            protocol: Protocol::Prepared,
            database: "postgres".to_owned(),
            settings: String::new(),
            rate: None,
        }
    }

    /// In another database than `postgres`.
    pub(crate) fn database(mut self, name: &str) -> Self {
        name.clone_into(&mut self.database);
        self
    }

    /// Settings of all its sessions.
    pub(crate) fn settings(mut self, settings: &[(&str, String)]) -> Self {
        for (name, value) in settings {
            self.settings += &format!("-c {name}={value} ");
        }
        self
    }

    /// So many transactions per second, and no more.
    pub(crate) fn rate(mut self, rate: u32) -> Self {
        self.rate = Some(rate);
        self
    }

    /// One more script: which one comes next is drawn by lot.
    pub(crate) fn script(mut self, script: &str) -> Self {
        self.scripts.push(script.to_owned());
        self
    }

    pub(crate) fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// For so many seconds; for more where none is done in these, as transactions can be long.
    pub(crate) fn run(&self, seconds: u32) -> Result<Outcome> {
        // Of the time that pgbench is told, it takes some to connect its clients.
        let mut seconds = seconds + self.clients / CONNECTS;
        for _ in 0..LONGER {
            let (outcome, _) = self.start(seconds)?.finish()?;
            if outcome.transactions > 0 {
                return Ok(outcome);
            }
            seconds *= 4;
        }
        bail!("no transaction was done in {} s", seconds / 4)
    }

    /// For so many seconds, with a log of every transaction.
    pub(crate) fn run_logged(&self, seconds: u32) -> Result<Vec<Logged>> {
        self.logged(["-T", &seconds.to_string()], seconds)
    }

    /// So many times, with a log of every transaction.
    pub(crate) fn run_logged_times(&self, transactions: u32) -> Result<Vec<Logged>> {
        self.logged(["-t", &transactions.to_string()], 0)
    }

    /// Once; returns the seconds that it took.
    pub(crate) fn run_once(&self) -> Result<f64> {
        match self.run_logged_times(1)?[..] {
            [only] => Ok(only.microseconds as f64 / 1e6),
            ref all => bail!("pgbench has logged {} transactions, not one", all.len()),
        }
    }

    /// In the background, until [`Background::stop`] or the end of `seconds`. A line of progress
    /// each second.
    pub(crate) fn start(&self, seconds: u32) -> Result<Background> {
        let mut command = self.command()?;
        command
            .args(["-T", &seconds.to_string()])
            .args(["-P", "1", "--progress-timestamp"]);
        self.spawn(command, seconds)
    }

    fn spawn(&self, mut command: Command, seconds: u32) -> Result<Background> {
        // Into a file, as nobody reads a pipe meanwhile.
        let path = self.new_path("output");
        let file =
            File::create(&path).with_context(|| format!("could not make {}", path.display()))?;
        command
            .stdout(file.try_clone().context("could not share a file")?)
            .stderr(file);
        let child = command.spawn().context("could not start pgbench")?;
        let deadline = GRACE + Duration::from_secs(seconds.into());
        Ok(Background {
            child,
            path,
            deadline,
        })
    }

    fn logged(&self, arguments: [&str; 2], seconds: u32) -> Result<Vec<Logged>> {
        let prefix = self.new_path("log");
        let mut command = self.command()?;
        command
            .args(arguments)
            .arg("-l")
            .arg("--log-prefix")
            .arg(&prefix);
        self.spawn(command, seconds)?.finish()?;
        let mut log = Vec::new();
        let directory = self.cluster.directory();
        for entry in fs::read_dir(directory).context("could not look for pgbench's log")? {
            let path = entry.context("could not look for pgbench's log")?.path();
            // One file a thread: prefix.PID, prefix.PID.1, ...
            if path.file_stem() == prefix.file_name()
                || path.with_extension("").file_stem() == prefix.file_name()
            {
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("could not read {}", path.display()))?;
                for line in text.lines() {
                    log.push(
                        parse_logged(line).with_context(|| format!("pgbench logged: {line}"))?,
                    );
                }
                fs::remove_file(&path)
                    .with_context(|| format!("could not remove {}", path.display()))?;
            }
        }
        if self.clients == 1 {
            find_hidden(&mut log);
        }
        Ok(log)
    }

    fn command(&self) -> Result<Command> {
        let mut command = self.cluster.tool("pgbench");
        command
            .arg("-n")
            .args(["-M", self.protocol.name()])
            .args(["-c", &self.clients.to_string()])
            .args(["-j", &JOBS.min(self.clients).to_string()])
            .env("PGDATABASE", &self.database)
            .env("PGOPTIONS", &self.settings)
            .stdin(Stdio::null());
        if let Some(rate) = self.rate {
            command.args(["-R", &rate.to_string()]);
        }
        for script in &self.scripts {
            let path = self.new_path("script");
            fs::write(&path, script)
                .with_context(|| format!("could not write {}", path.display()))?;
            command.arg("-f").arg(path);
        }
        Ok(command)
    }

    /// In the cluster's directory, which the server's user, and so pgbench, can write to.
    fn new_path(&self, kind: &str) -> PathBuf {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        self.cluster
            .directory()
            .join(format!("pgbench-{kind}-{number}"))
    }
}

/// A running pgbench, stopped when dropped.
#[derive(Debug)]
pub(crate) struct Background {
    child: Child,
    path: PathBuf,
    deadline: Duration,
}

impl Background {
    /// Stops it, which it must not have done by itself.
    pub(crate) fn stop(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("could not look at pgbench")? {
            bail!("pgbench has ended too early ({status}):\n{}", self.output());
        }
        Ok(())
    }

    /// Waits for its end; returns what it came to, and how.
    pub(crate) fn finish(mut self) -> Result<(Outcome, Vec<Progress>)> {
        let mut status = None;
        poll_until("pgbench to end", self.deadline, || {
            status = self
                .child
                .try_wait()
                .context("could not wait for pgbench")?;
            Ok(status.is_some())
        })?;
        let output = self.output();
        let status = status.context("pgbench has ended, and has no status")?;
        ensure!(status.success(), "pgbench failed ({status}):\n{output}");
        let progress = output
            .lines()
            .filter(|line| line.starts_with("progress: "))
            .map(|line| parse_progress(line).with_context(|| format!("pgbench said: {line}")))
            .collect::<Result<_>>()?;
        Ok((parse_outcome(&output)?, progress))
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> Result<bool> {
        let status = self.child.try_wait().context("could not look at pgbench")?;
        Ok(status.is_none())
    }

    fn output(&self) -> String {
        fs::read_to_string(&self.path).unwrap_or_default()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.path);
    }
}

/// Reads the summary. Transactions that failed are an error: the rate of errors is no rate.
fn parse_outcome(text: &str) -> Result<Outcome> {
    // What all of them said, once for each time, is of no use here.
    let told = || {
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("progress"))
            .collect();
        lines.join("\n")
    };
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.split([' ', '/']).next())
            .with_context(|| format!("pgbench did not say \"{name}\":\n{}", told()))
    };
    let failed: i64 = field("number of failed transactions: ")?.parse()?;
    ensure!(
        failed == 0,
        "{failed} transactions have failed:\n{}",
        told()
    );
    let transactions = field("number of transactions actually processed: ")?.parse()?;
    // Of none, pgbench tells no rate.
    let rate = if transactions == 0 {
        0.0
    } else {
        field("tps = ")?.parse()?
    };
    Ok(Outcome { transactions, rate })
}

/// Finds out how long those have taken whose answer was there when pgbench first looked for it. It
/// takes the time once for each look, and so logs 0 for them. That is where another process had the
/// processor meanwhile: to leave it so would cut off the slowest. One client has begun the next one
/// when it had the answer.
fn find_hidden(log: &mut [Logged]) {
    for number in 1..log.len() {
        let next = log[number];
        let this = &mut log[number - 1];
        if this.microseconds == 0 {
            let hidden = (next.end - this.end) * 1e6 - next.microseconds as f64;
            this.microseconds = hidden.max(0.0).round() as u64;
        }
    }
}

/// Reads `client transaction microseconds script seconds microseconds`, and a lag where there is one.
fn parse_logged(line: &str) -> Result<Logged> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, _, microseconds, script, second, fraction, lag @ ..] = &fields[..] else {
        bail!("too few fields");
    };
    Ok(Logged {
        script: script.parse()?,
        end: second.parse::<f64>()? + fraction.parse::<f64>()? / 1e6,
        microseconds: microseconds.parse()?,
        lag: lag.first().map(|lag| lag.parse()).transpose()?,
    })
}

/// Reads `progress: 1600000000.123 s, 4567.8 tps, ...`.
fn parse_progress(line: &str) -> Result<Progress> {
    let mut parts = line
        .strip_prefix("progress: ")
        .context("no progress")?
        .split(", ");
    let end = parts.next().and_then(|part| part.strip_suffix(" s"));
    let rate = parts.next().and_then(|part| part.strip_suffix(" tps"));
    Ok(Progress {
        end: end.context("no time")?.parse()?,
        rate: rate.context("no rate")?.parse()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str = "\
transaction type: script
number of clients: 32
number of transactions actually processed: 7117
number of failed transactions: 0 (0.000%)
latency average = 8.990 ms
initial connection time = 60.563 ms
tps = 3559.590312 (without initial connection time)
";

    #[test]
    fn a_summary_is_read() {
        let outcome = parse_outcome(SUMMARY).unwrap();
        assert_eq!(outcome.transactions, 7117);
        assert_eq!(outcome.rate, 3559.590312);
        let counted = SUMMARY.replace("7117", "1/1");
        assert_eq!(parse_outcome(&counted).unwrap().transactions, 1);
    }

    #[test]
    fn failed_transactions_are_an_error() {
        let failed = SUMMARY.replace("transactions: 0", "transactions: 3");
        assert!(parse_outcome(&failed).is_err());
        assert!(parse_outcome("").is_err());
    }

    #[test]
    fn a_run_without_transactions_has_no_rate() {
        let (none, _) = SUMMARY.split_once("latency").unwrap();
        let outcome = parse_outcome(&none.replace("7117", "0")).unwrap();
        assert_eq!((outcome.transactions, outcome.rate), (0, 0.0));
        assert!(parse_outcome(none).is_err());
    }

    #[test]
    fn a_log_line_is_read() {
        let logged = parse_logged("0 1 412 2 1600000000 250000").unwrap();
        assert_eq!((logged.script, logged.microseconds), (2, 412));
        assert_eq!(logged.end, 1_600_000_000.25);
        assert_eq!(logged.lag, None);
        let late = parse_logged("0 1 412 2 1600000000 250000 400").unwrap();
        assert_eq!(late.lag, Some(400));
        assert!(parse_logged("0 1 412").is_err());
        assert!(parse_logged("0 1 skipped 0 1 2").is_err());
    }

    #[test]
    fn a_hidden_latency_is_found() {
        let logged = |end, microseconds| Logged {
            script: 0,
            end: 1_600_000_000.0 + end,
            microseconds,
            lag: None,
        };
        // Begun and, so it says, ended at 1.0; the next one begun at 1.003 and ended at 1.0031.
        let mut log = [logged(0.5, 40), logged(1.0, 0), logged(1.0031, 100)];
        find_hidden(&mut log);
        assert_eq!(log.map(|logged| logged.microseconds), [40, 3000, 100]);
        find_hidden(&mut []);
    }

    #[test]
    fn a_progress_line_is_read() {
        let line = "progress: 1600000000.500 s, 4567.8 tps, lat 7.0 ms stddev 1.2, 0 failed";
        let progress = parse_progress(line).unwrap();
        assert_eq!((progress.end, progress.rate), (1_600_000_000.5, 4567.8));
        assert!(parse_progress("progress: ").is_err());
    }

    #[test]
    fn latencies_are_summed_up() {
        let latency = Latency::of([4, 1, 2, 1].into_iter()).unwrap();
        assert_eq!((latency.mean, latency.p50, latency.p99), (2.0, 1.0, 4.0));
        assert!(Latency::of(std::iter::empty()).is_err());
    }
}
