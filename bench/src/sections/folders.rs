//! Several workers of one database: how fast a backlog of a million counters is folded by one, and by two.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use counterx_harness::poll_until;

use crate::options::{Options, Section};
use crate::pgbench::Pgbench;
use crate::report::{Measured, Table};
use crate::sections::fold::{EACH, RATE, script};
use crate::server::Server;
use crate::stats::{Series, Unit, turns};

const WORKERS: [u32; 2] = [1, 2];

/// Counters, of which each delta's is drawn by lot.
const COUNTERS: u32 = 1_000_000;

/// So many increments make the backlog in one transaction. Of few of them are two of one counter.
const BATCH: u32 = 50_000;
const BATCHES: u32 = 40;

/// A worker folds each lane within so long.
const DEADLINE: Duration = Duration::from_secs(600);

/// The load beside it is stopped sooner.
const LOAD_SECONDS: u32 = 600;

/// A worker that has nothing to fold looks at each lane once in a second.
const ROUND: Duration = Duration::from_secs(3);

const FOLDED: &str = "SELECT max(deltas_folded) FROM counterx.workers";

/// No library that is preloaded has sessions of the same name.
const OWNERS: &str = "SELECT count(DISTINCT pid) FROM pg_locks WHERE locktype = 'userlock'
    AND classid = x'636e746c'::int::oid AND objsubid = 0 AND granted AND mode = 'ExclusiveLock'";

/// What came of a turn.
#[derive(Clone, Copy)]
struct Came {
    /// Deltas folded per second of wall time.
    rate: f64,
    /// Seconds until all of the workers were there.
    until_all: f64,
}

pub(crate) fn run(options: &Options) -> Result<Measured> {
    // The second worker is asked for when the first one was busy for two seconds.
    let batches = BATCHES;
    let mut server = Server::start("folders", options)?;
    server.execute(&format!(
        "SELECT count(counter_incr('page:' || n)) FROM generate_series(1, {COUNTERS}) n"
    ))?;
    server.fold()?;
    let mut measured = Measured::new(
        Section::Folders,
        format!(
            "Nobody folds while {} increments, each of one of {COUNTERS} counters by lot, are committed in {batches} \
             transactions. Then the workers may, and so many deltas as were pending are folded: the rate is that of all \
             of this time, in which the second worker has to be asked for and to come. Once nobody counts meanwhile, \
             and once {} clients count {} times a second, durable, in the same counters.",
            batches * BATCH,
            options.clients,
            RATE * EACH
        ),
    );
    let mut table = Table::new(
        "medians",
        &[
            "",
            "one worker",
            "two workers",
            "two, of one",
            "until two are there",
        ],
    );
    for load in [false, true] {
        let name = if load {
            "beside increments"
        } else {
            "backlog alone"
        };
        let mut rates = [Vec::new(), Vec::new()];
        let mut until = Vec::new();
        for round in 0..options.few_rounds() {
            for place in turns(round, WORKERS.len()) {
                let came = turn(&mut server, options, WORKERS[place], batches, load)
                    .with_context(|| format!("{} workers, {name}", WORKERS[place]))?;
                println!(
                    "    {name}, {} workers: {} deltas per second",
                    WORKERS[place],
                    Unit::Count.format(came.rate)
                );
                rates[place].push(came.rate);
                if WORKERS[place] > 1 {
                    until.push(came.until_all);
                }
            }
        }
        let [one, two] = rates;
        let ratios = one.iter().zip(&two).map(|(one, two)| two / one).collect();
        let one = Series::new(format!("{name}: one worker"), Unit::PerSecond, one)?;
        let two = Series::new(format!("{name}: two workers"), Unit::PerSecond, two)?;
        let ratio = Series::new(format!("{name}: two, of one"), Unit::Ratio, ratios)?;
        let until = Series::new(format!("{name}: until two are there"), Unit::Seconds, until)?;
        table.rows.push(vec![
            name.to_owned(),
            Unit::PerSecond.format(one.median),
            Unit::PerSecond.format(two.median),
            Unit::Ratio.format(ratio.median),
            Unit::Seconds.format(until.median),
        ]);
        measured.figures.extend([one, two, ratio, until]);
    }
    measured.tables.push(table);
    Ok(measured)
}

fn set(server: &mut Server, setting: &str, value: &str) -> Result<()> {
    server.execute(&format!("ALTER SYSTEM SET {setting} = {value}"))?;
    server.execute("SELECT pg_reload_conf()")
}

fn turn(
    server: &mut Server,
    options: &Options,
    workers: u32,
    batches: u32,
    load: bool,
) -> Result<Came> {
    set(server, "counterx.compaction", "off")?;
    set(
        server,
        "counterx.workers_per_database",
        &workers.to_string(),
    )?;
    poll_until("the workers to pause", DEADLINE, || {
        server.one::<bool>("SELECT bool_and(state IN ('paused', 'stopped')) FROM counterx.workers")
    })?;
    for _ in 0..batches {
        server.execute(&format!(
            "SELECT count(counter_incr('page:' || 1 + floor(random() * {COUNTERS})::int)) \
             FROM generate_series(1, {BATCH})"
        ))?;
    }
    server.execute("CHECKPOINT")?;
    let pending = server.pending()?;
    ensure!(
        pending > i64::from(batches * BATCH) / 2,
        "{pending} are pending"
    );
    let before: i64 = server.one(FOLDED)?;
    let draw = format!("random(1, {COUNTERS})");
    let running = if load {
        let script = script("page:", Some(&draw));
        let pgbench = Pgbench::new(&server.cluster, options.clients, &script).rate(RATE);
        let running = pgbench.start(LOAD_SECONDS)?;
        server.wait_for_growth(
            "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()",
            RATE,
        )?;
        Some(running)
    } else {
        None
    };
    set(server, "counterx.compaction", "on")?;
    let start = Instant::now();
    let (mut until_all, mut folded) = (None, 0);
    poll_until("the backlog to be folded", DEADLINE, || {
        if until_all.is_none() && server.one::<i64>(OWNERS)? == i64::from(workers) {
            until_all = Some(start.elapsed().as_secs_f64());
        }
        folded = server.one::<i64>(FOLDED)? - before;
        Ok(folded >= pending)
    })?;
    let took = start.elapsed().as_secs_f64();
    if let Some(running) = running {
        running.stop()?;
        server.wait_for_no_pgbench()?;
    }
    let until_all = until_all.context("not all of the workers have come")?;
    server.settle()?;
    // The next turn begins as this one did: with one worker that has all lanes, and has folded each since it got it.
    set(server, "counterx.workers_per_database", "1")?;
    poll_until("further workers to go", DEADLINE, || {
        server.one::<bool>("SELECT count(*) = 1 FROM counterx.workers")
    })?;
    thread::sleep(ROUND);
    Ok(Came {
        rate: folded as f64 / took,
        until_all,
    })
}
