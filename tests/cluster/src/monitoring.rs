//! What an administrator's monitoring sees of a cluster: real exporters, promtool and Prometheus, with the files of
//! `contrib/monitoring` as they are.
//!
//! Alerts wait for minutes or hours, and no test does. [`lapse`] takes two scrapes of a fault, and says what the
//! figures come to when all goes on in that way: ages grow, backlogs grow, what stands still stands still. promtool
//! has its own clock and tells which alerts fire then.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use counterx_harness::{Cluster, free_port, poll_until};

use crate::pages::checkout;
use crate::server::DEADLINE;

/// The role that exporters connect as.
const EXPORTER: &str = "counterx_exporter";

/// A file of `contrib/monitoring`.
///
/// # Errors
/// There is no such file.
pub fn monitoring(name: &str) -> Result<PathBuf> {
    let path = checkout().join("contrib/monitoring").join(name);
    path.canonicalize()
        .with_context(|| path.display().to_string())
}

/// A program that listens on a port, and ends with this value or with the thread that started it.
pub struct Program {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Program {
    /// Starts a program of Debian's packages in a directory of the cluster's, and waits until it answers.
    ///
    /// # Errors
    /// `scripts/setup` has not unpacked it, or it ends or does not answer: with its log.
    pub fn start(
        cluster: &Cluster,
        name: &str,
        arrange: impl FnOnce(&mut Command, u16),
    ) -> Result<Self> {
        let programs = env::var_os("COUNTERX_MONITORING")
            .context("COUNTERX_MONITORING is not set: run the tests through make")?;
        let port = free_port()?;
        let log = cluster.directory().join(format!("{name}-{port}.log"));
        let output = File::create(&log).with_context(|| log.display().to_string())?;
        // It listens to nobody but us, and is not to stay behind when the test ends in the middle.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(Path::new(&programs).join(name))
            .current_dir(cluster.directory())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        arrange(&mut command, port);
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        let mut program = Self { child, port, log };
        let answers = poll_until(&format!("{name} to answer"), DEADLINE, || {
            ensure!(program.child.try_wait()?.is_none(), "it has ended");
            Ok(TcpStream::connect(("127.0.0.1", port)).is_ok())
        });
        answers.with_context(|| program.log())?;
        Ok(program)
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What it answers.
    ///
    /// # Errors
    /// It does not, or with an error.
    pub fn get(&self, path: &str) -> Result<String> {
        get(self.port, path).with_context(|| self.log())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The body of an answer on a port of this machine.
///
/// # Errors
/// There is none, or another status than 200.
pub fn get(port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    // Of version 1.0, which has no parts to be put together.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("an answer without a body")?;
    ensure!(
        head.lines()
            .next()
            .is_some_and(|line| line.contains(" 200 ")),
        "{path}: {answer}"
    );
    Ok(body.to_owned())
}

/// What was scraped: series, with their labels, and their values.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// The series, as Prometheus writes them.
    pub series: BTreeMap<String, f64>,
    /// They are of some moment from the one to the other.
    asked: Option<(Instant, Instant)>,
}

impl Figures {
    /// Takes the extension's metrics from what an exporter has answered.
    ///
    /// # Errors
    /// It has another form.
    pub fn parse(text: &str) -> Result<Self> {
        let mut series = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with("counterx")) {
            let (name, value) = line.rsplit_once(' ').context("no value")?;
            let value = value.parse().with_context(|| line.to_owned())?;
            series.insert(name.to_owned(), value);
        }
        Ok(Self {
            series,
            asked: None,
        })
    }

    /// The value of the one series of a metric.
    ///
    /// # Errors
    /// There is none, or several.
    pub fn value(&self, metric: &str) -> Result<f64> {
        let mut all = self.of(metric);
        match (all.next(), all.next()) {
            (Some(value), None) => Ok(value),
            (None, _) => bail!("no {metric}"),
            _ => bail!("several {metric}"),
        }
    }

    /// The values of all series of a metric.
    pub fn of<'a>(&'a self, metric: &'a str) -> impl Iterator<Item = f64> + 'a {
        self.series.iter().filter_map(move |(name, value)| {
            let of_it = name.split('{').next() == Some(metric);
            of_it.then_some(*value)
        })
    }
}

/// postgres_exporter with `queries.yaml`, for a database.
///
/// # Errors
/// Those of the server, and that it does not start.
pub fn scrape_database(cluster: &Cluster, db: &str) -> Result<Program> {
    cluster.psql(
        "postgres",
        &format!(
            "DO $$ BEGIN
                PERFORM pg_advisory_xact_lock(7);
                IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{EXPORTER}') THEN
                    CREATE ROLE {EXPORTER} LOGIN; GRANT pg_monitor TO {EXPORTER};
                END IF;
             END $$"
        ),
    )?;
    let queries = monitoring("queries.yaml")?;
    let source = format!(
        "user={EXPORTER} host={} port={} dbname={db} sslmode=disable",
        cluster.socket_dir().display(),
        cluster.port()
    );
    Program::start(cluster, "prometheus-postgres-exporter", |command, port| {
        command
            .env("DATA_SOURCE_NAME", source)
            .args(["--disable-default-metrics", "--disable-settings-metrics"])
            .args(["--no-collector.database", "--no-collector.bgwriter"])
            .arg(format!("--extend.query-path={}", queries.display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"));
    })
}

impl Program {
    /// Scrapes an exporter.
    ///
    /// # Errors
    /// It does not answer as it should.
    pub fn scrape(&self) -> Result<Figures> {
        let asked = Instant::now();
        let mut figures = Figures::parse(&self.get("/metrics")?)?;
        figures.asked = Some((asked, Instant::now()));
        Ok(figures)
    }
}

/// What the series come to from the second scrape on, a sample a minute for so many minutes, when all goes on as it did
/// between the two: in the notation of promtool.
///
/// A scrape takes its time, and how long it was between the two moments that the figures are of is known nearly. What
/// are seconds, and become more or less by as many as that may be, are ages: they go with the time exactly.
///
/// # Errors
/// The scrapes are one.
pub fn lapse(first: &Figures, second: &Figures, minutes: u32) -> Result<BTreeMap<String, String>> {
    /// How exact they are.
    const SLACK: f64 = 0.05;
    let (least, elapsed, most) = match (first.asked, second.asked) {
        (Some(first), Some(second)) if second.0 > first.1 => (
            (second.0 - first.1).as_secs_f64(),
            (second.1 - first.1).as_secs_f64(),
            (second.1 - first.0).as_secs_f64(),
        ),
        _ => bail!("the second scrape is not after the first"),
    };
    let mut all = BTreeMap::new();
    for (name, value) in &second.series {
        let before = first.series.get(name).unwrap_or(value);
        let change = value - before;
        let is_seconds =
            (name.split('{').next()).is_some_and(|metric| metric.ends_with("_seconds"));
        let step = if is_seconds && (least - SLACK..=most + SLACK).contains(&change.abs()) {
            60.0_f64.copysign(change)
        } else {
            change / elapsed * 60.0
        };
        let (sign, step) = if step < 0.0 {
            ('-', -step)
        } else {
            ('+', step)
        };
        all.insert(name.clone(), format!("{value}{sign}{step}x{minutes}"));
    }
    Ok(all)
}

/// Which alerts fire at a minute, by the names after `Counterx`: exactly these.
///
/// # Errors
/// Others do: with what promtool says.
pub fn firing(
    cluster: &Cluster,
    series: &BTreeMap<String, String>,
    minute: u32,
    alerts: &[&str],
) -> Result<()> {
    let mut test = format!(
        "rule_files: [{}]\nevaluation_interval: 1m\ntests:\n  - interval: 1m\n    input_series:\n      \
         - {{series: 'up', values: '1x{minute}'}}\n",
        monitoring("alerts.yaml")?.display()
    );
    for (name, values) in series {
        writeln!(test, "      - {{series: '{name}', values: '{values}'}}")?;
    }
    writeln!(
        test,
        "    promql_expr_test:\n      - expr: group by (alertname) (ALERTS{{alertstate=\"firing\"}})\n        \
         eval_time: {minute}m\n        exp_samples:"
    )?;
    for alert in alerts {
        writeln!(
            test,
            "          - {{labels: '{{alertname=\"Counterx{alert}\"}}', value: 1}}"
        )?;
    }
    if alerts.is_empty() {
        test = test.trim_end().to_owned() + " []\n";
    }
    let file = cluster
        .directory()
        .join(format!("alerts-{}.yaml", free_port()?));
    fs::write(&file, &test)?;
    promtool(&["test", "rules", &file.display().to_string()]).with_context(|| test)?;
    Ok(())
}

/// Runs promtool, and returns what it says.
///
/// # Errors
/// It has failed: with what it says.
pub fn promtool(arguments: &[&str]) -> Result<String> {
    let programs = env::var_os("COUNTERX_MONITORING")
        .context("COUNTERX_MONITORING is not set: run the tests through make")?;
    let output = Command::new(Path::new(&programs).join("promtool"))
        .args(arguments)
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "promtool: {said}");
    Ok(said)
}

/// A pause between two scrapes, long enough to tell what moves from what does not.
pub const BETWEEN: Duration = Duration::from_millis(1500);
