//! What folding costs at a given rate of increments.

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::goals::Goal;
use crate::options::{Options, Section};
use crate::pgbench::Pgbench;
use crate::proc::cpu_seconds;
use crate::report::{Measured, Table};
use crate::server::Server;
use crate::stats::{Series, Unit, turns};

/// Transactions per second, and counters that each of them changes: as few machines make 20,000
/// durable transactions per second beside pgbench. Ten counters in a transaction are ten deltas,
/// and so as much to fold as ten transactions.
pub(super) const RATE: u32 = 2000;
pub(super) const EACH: u32 = 10;

/// Which ten.
struct Load {
    name: &'static str,
    goal: Option<Goal>,
    /// Of the counters' names.
    prefix: &'static str,
    /// How `:k` is drawn, for each; none where they are always the same ten.
    draw: Option<&'static str>,
}

const LOADS: [Load; 3] = [
    Load {
        name: "ten hot counters",
        goal: Some(Goal::FoldCpuHot),
        prefix: "",
        draw: None,
    },
    Load {
        name: "10,000 counters by lot",
        goal: Some(Goal::FoldCpuSpread),
        prefix: "page:",
        draw: Some("random(1, 10000)"),
    },
    Load {
        name: "a million counters, Zipf-distributed",
        goal: None,
        prefix: "page:",
        draw: Some("random_zipfian(1, 1000000, 1.05)"),
    },
];

#[derive(Default)]
struct Rounds {
    reached: Vec<f64>,
    share: Vec<f64>,
    each: Vec<f64>,
    deltas: Vec<f64>,
    wal: Vec<f64>,
}

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut server = Server::start("fold", options)?;
    let seconds = options.seconds() * 3;
    let mut all: Vec<Rounds> = LOADS.iter().map(|_| Rounds::default()).collect();
    for round in 0..options.few_rounds() {
        for place in turns(round, LOADS.len()) {
            let load = &LOADS[place];
            let script = script(load.prefix, load.draw);
            let came = turn(&mut server, options, load.name, &script, seconds)?;
            let rounds = &mut all[place];
            rounds.reached.push(came.reached);
            rounds.share.push(came.share);
            rounds.each.push(came.each);
            rounds.deltas.push(came.deltas);
            rounds.wal.push(came.wal);
        }
    }
    let mut measured = Measured::new(
        Section::Fold,
        format!(
            "{RATE} transactions per second by {} clients, durable, each of which changes {EACH} counters \
             with `counter_incr_many`: {} increments, and nearly as many deltas, per second. For {seconds} \
             s in each turn. The worker's time is that in user and in kernel mode, as `/proc` tells it, \
             from the first increment until all is folded, as a share of the same time on one processor.",
            options.clients,
            RATE * EACH
        ),
    );
    let mut table = Table::new(
        "medians",
        &[
            "",
            "increments reached",
            "worker's share of a processor",
            "worker's time for a delta",
            "WAL for an increment, in all",
        ],
    );
    for (load, rounds) in LOADS.iter().zip(all) {
        let name = load.name;
        let reached = Series::new(
            format!("{name}: increments"),
            Unit::PerSecond,
            rounds.reached,
        )?;
        let share = Series::new(format!("{name}: worker's share"), Unit::Share, rounds.share)?;
        let each = Series::new(
            format!("{name}: worker's time for a delta"),
            Unit::Microseconds,
            rounds.each,
        )?;
        let wal = Series::new(format!("{name}: WAL"), Unit::Bytes, rounds.wal)?;
        table.rows.push(vec![
            name.to_owned(),
            Unit::PerSecond.format(reached.median),
            Unit::Share.format(share.median),
            format!("{:.2} µs", each.median),
            Unit::Bytes.format(wal.median),
        ]);
        if let Some(goal) = load.goal {
            // Less than was asked for would flatter.
            if reached.median < f64::from(RATE * EACH) * 0.95 {
                measured.how += &format!(
                    " **This machine has not reached that rate** ({name}): the share is that at the rate \
                     which it has reached, and no answer to the goal."
                );
            }
            measured.goal(goal, share.clone());
        }
        let deltas = Series::new(format!("{name}: deltas folded"), Unit::Count, rounds.deltas)?;
        measured.figures.extend([reached, share, each, deltas, wal]);
    }
    measured.tables.push(table);
    Ok(measured)
}

/// What came of a turn.
pub(super) struct Came {
    /// Increments per second.
    pub(super) reached: f64,
    /// The worker's, of one processor.
    pub(super) share: f64,
    /// Microseconds of the worker for a delta.
    pub(super) each: f64,
    pub(super) deltas: f64,
    /// Bytes for an increment.
    pub(super) wal: f64,
}

/// A load of transactions that each change ten counters, with what folds it.
pub(super) fn turn(
    server: &mut Server,
    options: &Options,
    name: &str,
    script: &str,
    seconds: u32,
) -> Result<Came> {
    const FOLDED: &str = "SELECT deltas_folded FROM counterx.workers";
    // A worker there must be, and it must be the same one at the end.
    server.execute("SELECT counter_incr('warm-up')")?;
    server.settle()?;
    let worker = server.worker()?;
    let folded: i64 = server.one(FOLDED)?;
    let wal = server.wal_bytes()?;
    let cpu = cpu_seconds(worker)?;
    let start = Instant::now();
    let outcome = Pgbench::new(&server.cluster, options.clients, script)
        .rate(RATE)
        .run(seconds)?;
    server.settle()?;
    let took = start.elapsed().as_secs_f64();
    let cpu = cpu_seconds(worker)? - cpu;
    let wal = server.wal_bytes()? - wal;
    let folded = server.one::<i64>(FOLDED)? - folded;
    ensure!(
        server.worker()? == worker,
        "the worker has ended, and another one has started"
    );
    let increments = outcome.transactions as f64 * f64::from(EACH);
    println!(
        "    {name}: {} of a processor, {} deltas folded",
        Unit::Share.format(cpu / took),
        Unit::Count.format(folded as f64)
    );
    Ok(Came {
        reached: outcome.rate * f64::from(EACH),
        share: cpu / took,
        each: cpu * 1e6 / folded.max(1) as f64,
        deltas: folded as f64,
        wal: wal as f64 / increments.max(1.0),
    })
}

/// pgbench's script of such a transaction: names begin with `prefix`. `draw` says how `:k` is drawn, for
/// each; none where they are always the same ten.
pub(super) fn script(prefix: &str, draw: Option<&str>) -> String {
    let mut script = String::new();
    let mut names = Vec::new();
    for number in 0..EACH {
        if let Some(draw) = draw {
            script += &format!("\\set k{number} {draw}\n");
            names.push(format!("'{prefix}' || :k{number}::text"));
        } else {
            names.push(format!("'{prefix}' || 'hot-{number}'"));
        }
    }
    let ones = vec!["1"; EACH as usize].join(",");
    script
        + &format!(
            "SELECT counter_incr_many(ARRAY[{}], '{{{ones}}}');\n",
            names.join(", ")
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_transaction_changes_ten() {
        for load in &LOADS {
            let script = script(load.prefix, load.draw);
            let draws = if load.draw.is_some() { 10 } else { 0 };
            assert_eq!(script.matches("\\set").count(), draws, "{script}");
            assert!(script.contains("'{1,1,1,1,1,1,1,1,1,1}'"), "{script}");
        }
    }
}
