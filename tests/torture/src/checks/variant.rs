//! Another PostgreSQL to test with, and suites that run against it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use counterx_harness::run_dir;

use crate::options::Options;
use crate::report::{PartReport, Unit};

/// What a server or a test says when it has gone wrong in a way that nothing excuses. The signals are
/// those of a process that ends itself or touches what is not there; others are what tests kill with.
const BAD: [&str; 6] = [
    "TRAP:",
    "PANIC:",
    "inconsistent page found",
    "was terminated by signal 6",
    "was terminated by signal 7",
    "was terminated by signal 11",
];

/// One of those that `scripts/build-postgres` builds, with the extension in it.
pub(super) struct Variant {
    name: &'static str,
    directory: PathBuf,
}

impl Variant {
    /// Builds it, where it is not there yet.
    ///
    /// # Errors
    /// It can't be built here: no package, no network.
    pub(super) fn prepare(name: &'static str) -> Result<Self> {
        let status = Command::new(root().join("scripts/build-postgres"))
            .arg(name)
            .status()
            .context("could not start scripts/build-postgres")?;
        ensure!(
            status.success(),
            "scripts/build-postgres {name} failed, see above"
        );
        Ok(Self {
            name,
            directory: run_dir()?.join(format!("postgres-{name}")),
        })
    }

    /// Where it is installed.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its programs.
    pub(super) fn bin_dir(&self) -> PathBuf {
        self.directory.join("bin")
    }

    /// A command of this project, for this server.
    pub(super) fn command(&self, script: &str) -> Command {
        let mut command = Command::new("bash");
        command
            .args(["-c", &format!(". scripts/env && exec {script}")])
            .current_dir(root())
            .env("COUNTERX_VARIANT", self.name);
        command
    }

    /// Builds the extension for it.
    ///
    /// # Errors
    /// It does not compile there.
    pub(super) fn build_extension(&self) -> Result<()> {
        let status = self
            .command("scripts/build")
            .status()
            .context("could not start scripts/build")?;
        ensure!(
            status.success(),
            "counterx does not build for {}",
            self.name
        );
        Ok(())
    }

    /// Runs a suite and counts its tests. What it printed and all servers' logs are kept when it
    /// has found something.
    ///
    /// # Errors
    /// A test failed, or a server said one of the [`BAD`] things.
    pub(super) fn suite(
        &self,
        options: &Options,
        report: &mut PartReport,
        what: &str,
        command: &mut Command,
    ) -> Result<()> {
        let directory = options
            .output
            .join(format!("checks-{}", what.replace(' ', "-")));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory)
            .with_context(|| format!("could not make {}", directory.display()))?;
        let output = directory.join("output.txt");
        let file = File::create(&output).context("could not make the suite's log")?;
        let started = Instant::now();
        let status = command
            .env("COUNTERX_LOG_DIR", &directory)
            .stdout(
                file.try_clone()
                    .context("could not share the suite's log")?,
            )
            .stderr(file)
            .status()
            .context("could not start the suite")?;
        report.figure(
            &format!("duration of {what}"),
            started.elapsed().as_secs_f64(),
            Unit::Seconds,
        );
        let text = fs::read(&output).context("could not read the suite's log")?;
        let text = String::from_utf8_lossy(&text);
        let tests = text.lines().filter(|line| is_test(line, "ok")).count();
        report.tried(&format!("tests passed: {what}"), tests as u64);
        let mut wrong: Vec<String> = text
            .lines()
            .filter(|line| is_test(line, "FAILED"))
            .map(str::to_owned)
            .collect();
        wrong.extend(bad_lines_in(&directory)?);
        if !status.success() || !wrong.is_empty() {
            bail!(
                "{what}: {status}, {tests} passed; all of it is in {}\n{}",
                directory.display(),
                wrong.join("\n")
            );
        }
        ensure!(tests > 0, "{what}: no test was run");
        fs::remove_dir_all(&directory).context("could not remove the suite's logs")
    }
}

/// The checkout.
pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("."))
}

/// The lines of a server's log that nothing excuses, whatever was killed.
pub(super) fn bad_lines(log: &str) -> impl Iterator<Item = &str> {
    log.lines()
        .filter(|line| BAD.iter().any(|bad| line.contains(bad)))
}

/// Those of all files in a directory.
fn bad_lines_in(directory: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).context("could not read the suite's logs")? {
        let path = entry?.path();
        let log = fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
        let log = String::from_utf8_lossy(&log);
        found.extend(bad_lines(&log).map(|line| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            format!("{name}: {line}")
        }));
    }
    Ok(found)
}

/// A line of cargo's or PostgreSQL's test runner with this end.
fn is_test(line: &str, end: &str) -> bool {
    line.starts_with("test ")
        && line
            .split_once(" ...")
            .is_some_and(|(_, rest)| rest.split_whitespace().next() == Some(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_test_runners_are_known() {
        assert!(is_test("test a::b ... ok", "ok"));
        assert!(is_test(
            "test api                          ... ok         4711 ms",
            "ok"
        ));
        assert!(is_test(
            "test api ... FAILED (test process exited with exit code 2)",
            "FAILED"
        ));
        assert!(!is_test("test result: ok. 3 passed", "ok"));
    }

    #[test]
    fn a_failed_assertion_is_found_among_other_lines() {
        let log = "LOG:  ready\nTRAP: FailedAssertion(\"a\")\nLOG:  server process was killed";
        assert_eq!(bad_lines(log).count(), 1);
    }
}
