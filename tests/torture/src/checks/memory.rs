//! Memory that is read before it is written, or used after it was given back, as valgrind sees it.
//!
//! The server is one with assertions, which tells valgrind of its own memory contexts: what was freed
//! with one is out of bounds from then on. Its own developers' list says what is known and harmless;
//! beyond that, an error counts when a call from counterx led to it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use counterx_harness::run_dir;

use super::variant::Variant;
use crate::options::Options;
use crate::report::{PartReport, Unit};

/// The regression tests that go through all the paths where memory changes hands. The others take
/// the same ones again, and everything takes some thirty times as long under valgrind.
const TESTS: &str = "api batches bounded_holds changes errors folding listing tokens transactions";

pub(super) fn run(options: &Options, report: &mut PartReport, variant: &Variant) {
    if Command::new("valgrind").arg("--version").output().is_err() {
        report.skipped("memory that is used wrongly", "there is no valgrind here");
        return;
    }
    let what = "unit tests of the pure logic under valgrind";
    report.step(what, |report| {
        // Cases for a property: as many as there is time for.
        let mut command = variant.command("cargo test --package counterx-core");
        command
            .env(runner_variable()?, "valgrind -q --error-exitcode=99")
            .env("PROPTEST_CASES", "16");
        variant.suite(options, report, what, &mut command)
    });
    let what = "regression SQL under valgrind";
    report.step(what, |report| {
        let logs = Logs::new()?;
        let under = format!(
            "valgrind -q --leak-check=no --trace-children=yes --suppressions={} --xml=yes --xml-file={}/%p.xml",
            variant.directory().join("share/valgrind.supp").display(),
            logs.directory.display()
        );
        let mut command = variant.command(&format!("scripts/regress regress {TESTS}"));
        command
            .env("COUNTERX_SERVER_UNDER", under)
            .env("COUNTERX_TEST_LIMIT", "1800");
        let result = variant.suite(options, report, what, &mut command);
        logs.read(report)?;
        result
    });
}

/// The variable that tells cargo what to run tests under.
fn runner_variable() -> Result<String> {
    let output = Command::new("rustc")
        .arg("-vV")
        .output()
        .context("could not start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc does not say what it compiles for")?;
    Ok(format!(
        "CARGO_TARGET_{}_RUNNER",
        host.to_uppercase().replace('-', "_")
    ))
}

/// What valgrind writes: a file for each process, in a directory that the servers' user can write to.
struct Logs {
    directory: PathBuf,
}

impl Logs {
    fn new() -> Result<Self> {
        let directory = run_dir()?.join(format!("valgrind-{}", std::process::id()));
        fs::create_dir_all(&directory)
            .and_then(|()| fs::set_permissions(&directory, fs::Permissions::from_mode(0o1777)))
            .with_context(|| format!("could not make {}", directory.display()))?;
        Ok(Self { directory })
    }

    /// Fails with the errors that counterx had a part in.
    fn read(&self, report: &mut PartReport) -> Result<()> {
        let (mut processes, mut ours, mut others) = (0, Vec::new(), 0_u32);
        for entry in fs::read_dir(&self.directory).context("could not read valgrind's logs")? {
            let text = fs::read(entry?.path()).context("could not read a log of valgrind's")?;
            processes += 1;
            for error in errors(&String::from_utf8_lossy(&text)) {
                if error.ours {
                    ours.push(error.text);
                } else {
                    others += 1;
                }
            }
        }
        report.tried("processes watched by valgrind", processes);
        report.figure(
            "valgrind's errors that counterx has no part in",
            f64::from(others),
            Unit::Count,
        );
        ensure!(processes > 0, "valgrind has watched nothing");
        ours.sort();
        ours.dedup();
        if !ours.is_empty() {
            bail!(
                "{} errors, with all of it in {}:\n{}",
                ours.len(),
                self.directory.display(),
                ours[..ours.len().min(10)].join("\n\n")
            );
        }
        fs::remove_dir_all(&self.directory).context("could not remove valgrind's logs")
    }
}

/// An error in one of these logs.
#[derive(Debug)]
struct Error {
    /// Was there a frame of the extension among its callers?
    ours: bool,
    /// Its kind and stack.
    text: String,
}

/// The errors of a log, which may end in the middle of one, as its process may. What is not freed at a
/// process's end is none: as XML, valgrind lists that whether it is asked to or not.
fn errors(xml: &str) -> Vec<Error> {
    xml.split("<error>")
        .skip(1)
        .filter(|error| !tag(error, "kind").is_some_and(|kind| kind.starts_with("Leak_")))
        .map(|error| {
            let error = error.split("</error>").next().unwrap_or_default();
            let mut text = tag(error, "kind").unwrap_or("error").to_owned();
            let mut ours = false;
            for frame in error.split("<frame>").skip(1) {
                let object = tag(frame, "obj").unwrap_or("?");
                ours |= is_ours(object);
                text.push_str("\n    ");
                text.push_str(tag(frame, "fn").unwrap_or(object));
                if let (Some(file), Some(line)) = (tag(frame, "file"), tag(frame, "line")) {
                    text.push_str(&format!(" ({file}:{line})"));
                }
            }
            Error { ours, text }
        })
        .collect()
}

fn is_ours(object: &str) -> bool {
    Path::new(object)
        .file_name()
        .is_some_and(|name| name == "counterx.so")
}

/// What is between the first such tag and its end.
fn tag<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_ours_when_one_of_its_callers_is() {
        let frame = |object: &str| {
            format!("<frame><obj>{object}</obj><fn>f</fn><file>f.c</file><line>7</line></frame>")
        };
        let server = frame("/a/bin/postgres");
        let xml = format!(
            "<error><kind>InvalidRead</kind><stack>{server}</stack></error>
             <error><kind>UninitCondition</kind><stack>{server}{}</stack></error>
             <error><kind>Leak_DefinitelyLost</kind><stack>{}</stack></error>
             <error><kind>InvalidRead</kind><stack>{}",
            frame("/a/lib/counterx.so"),
            frame("/a/lib/counterx.so"),
            frame("/a/lib/other_counterx.so")
        );
        let errors = errors(&xml);
        assert_eq!(
            errors.iter().map(|error| error.ours).collect::<Vec<_>>(),
            [false, true, false]
        );
        assert_eq!(errors[0].text, "InvalidRead\n    f (f.c:7)");
    }
}
