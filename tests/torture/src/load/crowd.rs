//! Many connections at once, with all that transactions do.

use anyhow::{Result, ensure};
use counterx_cluster_tests::{
    Load, check, create_database, folding_hard, footprint, settle, under_watch,
};

use super::memory;
use crate::measure::float;
use crate::options::Options;
use crate::report::{PartReport, Unit};

pub(super) fn run(options: &Options, report: &mut PartReport) {
    let clients = options.size(60, 200);
    let what = format!("{clients} connections with a mixed load, against the oracle");
    report.step(&what, |report| crowd(options, report, clients));
}

fn crowd(options: &Options, report: &mut PartReport, clients: u64) -> Result<()> {
    let cluster = folding_hard("torture-crowd")
        .conf("max_connections", &(clients + 20).to_string())
        .conf("max_prepared_transactions", &(clients + 20).to_string())
        .start()?;
    let mut client = create_database(&cluster, "crowd")?;
    let load = Load {
        clients,
        transactions: options.size(6, 40 + options.time().as_secs()),
        names: 300,
        two_phase: true,
        serializable: true,
        checkers: 2,
        seed: options.seed_for("crowd"),
        ..Load::default()
    };
    let started = std::time::Instant::now();
    let (watched, memories) = memory::watched(&cluster, || {
        under_watch(&cluster.config("crowd"), &load, |_| Ok(()))
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let outcome = watched.outcome;
    ensure!(
        outcome.unknown == 0,
        "{} transactions are unknown",
        outcome.unknown
    );
    let done = outcome.done + outcome.refused;
    ensure!(done == clients * load.transactions, "{outcome:?}");
    settle(&mut client)?;
    let names = check(&mut client)?;
    ensure!(names > 0, "nothing was counted");
    ensure!(footprint(&mut client)?.pending == 0, "something is pending");
    report.tried("connections at once", clients);
    report.tried("transactions of the crowd", outcome.done);
    report.tried(
        "transactions of the crowd refused with 40001",
        outcome.refused,
    );
    report.tried("checks of all counters beside the crowd", watched.checks);
    let rate = float(i64::try_from(done)?) / seconds;
    report.figure("transactions of the crowd", rate, Unit::PerSecond);
    memory::report(report, "beside the crowd", &memories);
    Ok(())
}
