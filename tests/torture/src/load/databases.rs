//! Very many databases in one server, of which each counts now and then: few workers take turns.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use counterx_cluster_tests::count_workers;
use counterx_harness::{Cluster, poll_until};

use crate::options::Options;
use crate::report::{PartReport, Unit};

/// How long the last database may take to be folded, in the long form on a slow machine.
const DEADLINE: Duration = Duration::from_secs(300);

pub(super) fn run(options: &Options, report: &mut PartReport) {
    let databases = options.size(40, 1000);
    let what = format!("{databases} databases that count now and then");
    report.step(&what, |report| take_turns(options, report, databases));
}

fn take_turns(options: &Options, report: &mut PartReport, databases: u64) -> Result<()> {
    const ROUNDS: i64 = 2;
    let cluster = Cluster::builder()
        .name("torture-databases")
        .conf("max_worker_processes", "8")
        // A visit of autovacuum to each of them is not what is tried.
        .conf("autovacuum", "off")
        .conf("counterx.worker_idle_timeout", "1s")
        .start()?;
    let mut client = cluster.connect()?;
    client.batch_execute("CREATE DATABASE model")?;
    cluster
        .connect_db("model")?
        .batch_execute("CREATE EXTENSION counterx")?;
    let started = Instant::now();
    for number in 0..databases {
        client.batch_execute(&format!(
            "CREATE DATABASE many{number} TEMPLATE model STRATEGY wal_log"
        ))?;
    }
    let seconds = started.elapsed().as_secs_f64();
    report.figure("making very many databases", seconds, Unit::Seconds);
    report.tried("databases in one server", databases);
    let pending = "SELECT sum(pending_deltas)::bigint FROM counterx.lanes";
    let mut most_workers = 0;
    for round in 1..=ROUNDS {
        let started = Instant::now();
        // Another order each time.
        let step = 7 + 2 * (options.seed_for("databases") % 20 + round.unsigned_abs());
        for number in 0..databases {
            let db = format!("many{}", number * step % databases);
            // Where the step divides their number, some count more than once.
            (cluster.connect_db(&db)?).batch_execute("SELECT counter_incr('visits')")?;
            most_workers = most_workers.max(count_workers(&mut client, None)?);
        }
        let counted = Instant::now();
        for number in 0..databases {
            let mut own = cluster.connect_db(&format!("many{number}"))?;
            poll_until("a database to be folded", DEADLINE, || {
                let left: i64 = own.query_one(pending, &[])?.get(0);
                Ok(left == 0)
            })?;
        }
        let what = format!("one count in each of {databases} databases, round {round}");
        let seconds = (counted - started).as_secs_f64();
        report.figure(&what, seconds, Unit::Seconds);
        let what = format!("... until the last of them was folded, round {round}");
        report.figure(&what, counted.elapsed().as_secs_f64(), Unit::Seconds);
    }
    let mut sum = 0;
    for number in 0..databases {
        let value: i64 = cluster
            .connect_db(&format!("many{number}"))?
            .query_one("SELECT counter_value('visits')", &[])?
            .get(0);
        sum += value;
    }
    let due = i64::try_from(databases)? * ROUNDS;
    ensure!(sum == due, "{due} were counted, and the counters say {sum}");
    // One that is about to end may be there still when the next one comes.
    ensure!(most_workers <= 6, "{most_workers} workers at a time");
    let log = cluster.log();
    let shortages = log.matches("no free background worker slot").count();
    ensure!(shortages <= 1, "{shortages} lines tell of slots");
    Ok(())
}
