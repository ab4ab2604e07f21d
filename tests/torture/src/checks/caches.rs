//! Every function while the server's caches are thrown away at each chance: what was kept over a call
//! that may do that points to memory which is overwritten by then.

use std::time::Instant;

use anyhow::{Result, ensure};
use counterx_cluster_tests::{amcheck, create_database, settle};
use counterx_harness::Cluster;

use super::variant::{Variant, bad_lines};
use crate::options::Options;
use crate::report::{PartReport, Unit};

/// All functions and all paths, with output that does not depend on when folds are.
const PATHS: &str = include_str!("paths.sql");

/// The regression tests with what the script lacks: errors in all places, and bounds without shared
/// memory. Each takes a minute, most of it for CREATE EXTENSION.
const TESTS: &str = "bounded_holds errors transactions";

pub(super) fn run(options: &Options, report: &mut PartReport, variant: &Variant) {
    report.step("every function with caches discarded", |report| {
        let cluster = Cluster::builder()
            .name("caches")
            .bin_dir(&variant.bin_dir())
            .conf("counterx.compaction_interval", "20ms")
            .conf("counterx.log_max_size", "64kB")
            .start()?;
        // Also of databases that discard everything, the connections that are there do not.
        let mut plain = create_database(&cluster, "plain")?;
        let mut discarding = create_database(&cluster, "discarding")?;
        plain.batch_execute("ALTER DATABASE discarding SET debug_discard_caches = 1")?;
        let result = compare(report, &cluster);
        let log = cluster.log();
        let bad: Vec<_> = bad_lines(&log).collect();
        ensure!(bad.is_empty(), "{bad:#?}");
        result?;
        settle(&mut discarding)?;
        amcheck(&mut discarding)?;
        Ok(())
    });
    let what = "regression SQL with caches discarded";
    report.step(what, |report| {
        let mut command = variant.command(&format!("scripts/regress regress {TESTS}"));
        command
            .env("COUNTERX_CONF", "debug_discard_caches=1")
            .env("COUNTERX_TEST_LIMIT", "1800");
        variant.suite(options, report, what, &mut command)
    });
}

/// The same script in both databases has to print the same.
fn compare(report: &mut PartReport, cluster: &Cluster) -> Result<()> {
    let expected = cluster.psql("plain", PATHS)?;
    let started = Instant::now();
    let printed = cluster.psql("discarding", PATHS)?;
    report.figure(
        "duration of every function with caches discarded",
        started.elapsed().as_secs_f64(),
        Unit::Seconds,
    );
    for (number, (expected, printed)) in expected.lines().zip(printed.lines()).enumerate() {
        ensure!(
            expected == printed,
            "line {number} of the output is {printed}, and {expected} without"
        );
    }
    ensure!(
        expected.len() == printed.len(),
        "what was printed is longer or shorter than without"
    );
    let statements = PATHS.lines().filter(|line| line.ends_with(';')).count();
    report.tried("statements with caches discarded", statements as u64);
    Ok(())
}
