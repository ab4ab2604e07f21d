//! Readers on a hot standby, all the time, while its primary counts, folds and truncates.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use counterx_cluster_tests::{
    DEADLINE, MixedEnd, Recovering, Refusal, catch_up, check, compact, create_database, footprint,
    mixed_under_watch, nothing_crashed, prepare_mixed, same_at_last, settle, turn_over,
};
use counterx_harness::{Cluster, poll_until};
use postgres::{Client, Config, IsolationLevel};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Pair, for_a_while};
use crate::options::Options;
use crate::report::PartReport;

/// The settings of the standby that decide who gives way, a reader or the replay.
const WAYS: [(&str, &str); 4] = [("off", "20ms"), ("off", "-1"), ("on", "30s"), ("on", "-1")];

/// What readers have met.
#[derive(Default)]
struct Looks {
    whole: u64,
    refused: BTreeMap<Refusal, u64>,
}

pub(super) fn run(options: &Options, report: &mut PartReport, pair: &mut Pair) {
    for (number, (feedback, delay)) in WAYS.into_iter().enumerate() {
        // The short form has time for one, which is another for another seed.
        let what =
            format!("reads on a standby, hot_standby_feedback {feedback}, replay waits {delay}");
        if options.short && number as u64 != options.seed % WAYS.len() as u64 {
            report.skipped(&what, "the short form takes one of four, by the seed");
            continue;
        }
        report.step(&what, |report| {
            pair.standby.reload(&[
                ("hot_standby_feedback", feedback),
                ("max_standby_streaming_delay", delay),
            ])?;
            read_beside_load(options, report, pair, &format!("reading{number}"))
        });
    }
    report.step("snapshots older than a replayed truncation", |report| {
        old_snapshots(options, report, pair)
    });
}

fn read_beside_load(
    options: &Options,
    report: &mut PartReport,
    pair: &Pair,
    db: &str,
) -> Result<()> {
    let mut client = create_database(&pair.primary, db)?;
    prepare_mixed(&mut client)?;
    catch_up(&pair.primary, &mut pair.standby.connect()?)?;
    let before = footprint(&mut client)?;
    let since = pair.standby.log_len();
    let over = AtomicBool::new(false);
    let config = pair.standby.config(db);
    let mut end = MixedEnd::default();
    let mut looks = Looks::default();
    let loaded = std::thread::scope(|scope| {
        // Ages of snapshots: between two looks through one.
        let readers: Vec<_> = [0_u64, 100, options.size(300, 3000)]
            .into_iter()
            .map(|age| {
                let (config, over) = (&config, &over);
                let seed = options.seed_for(&format!("{db} {age}"));
                scope.spawn(move || read(config, over, age, seed))
            })
            .collect();
        let loaded = for_a_while(options, db, 0.15, |mixed| {
            end += mixed_under_watch(&pair.primary.config(db), mixed, |control| {
                // A reader that has failed has shown what there is to show.
                poll_until("the load", 4 * DEADLINE, || {
                    ensure!(
                        !readers
                            .iter()
                            .any(std::thread::ScopedJoinHandle::is_finished),
                        "a reader of the standby has ended"
                    );
                    Ok(control.is_done())
                })
            })?;
            turn_over(&mut client)
        });
        over.store(true, Ordering::Relaxed);
        let mut result = Ok(());
        for reader in readers {
            match reader.join().unwrap_or_else(|_| Err(anyhow!("panicked"))) {
                Ok(more) => {
                    looks.whole += more.whole;
                    for (refusal, times) in more.refused {
                        *looks.refused.entry(refusal).or_default() += times;
                    }
                }
                Err(error) => result = Err(error.context("a reader of the standby")),
            }
        }
        // What a reader has seen comes first: it explains the rest.
        result.and(loaded)
    });
    report.tried("transactions on a primary", end.transactions);
    report.tried(
        "snapshots of a standby that were equal to the oracle",
        looks.whole,
    );
    for (refusal, times) in &looks.refused {
        report.tried(in_words(*refusal), *times);
    }
    loaded?;
    lost_only_to_recovery(&pair.standby, since, &looks)?;
    ensure!(looks.whole > 0, "no snapshot could be read to its end");

    client.batch_execute("SELECT bump('last', 1)")?;
    settle(&mut client)?;
    let after = footprint(&mut client)?;
    report.tried(
        "folded epochs beside readers of a standby",
        (after.folded - before.folded).unsigned_abs(),
    );
    same_at_last(&pair.primary, &pair.standby, db)
}

fn in_words(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Truncated => "snapshots of a standby refused: 40001, deltas were truncated",
        Refusal::Recovery => "snapshots of a standby refused: 40001, conflict with recovery",
        Refusal::Deadlock => "snapshots of a standby refused: 40P01, deadlock with recovery",
        Refusal::Lost => "idle snapshots of a standby ended with their session by recovery",
    }
}

/// Looks through one snapshot after the other, at least twice through each.
fn read(config: &Config, over: &AtomicBool, age: u64, seed: u64) -> Result<Looks> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut connection = Recovering::new(config);
    let mut looks = Looks::default();
    loop {
        let last = over.load(Ordering::Relaxed);
        match read_once(&mut connection, age, over, &mut rng) {
            Ok(()) => looks.whole += 1,
            Err(error) => match Refusal::of(&error) {
                Some(refusal) => {
                    *looks.refused.entry(refusal).or_default() += 1;
                    connection.forget();
                }
                None => return Err(error),
            },
        }
        if last {
            return Ok(looks);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn read_once(
    connection: &mut Recovering,
    age: u64,
    over: &AtomicBool,
    rng: &mut StdRng,
) -> Result<()> {
    let mut snapshot = connection
        .client()?
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()?;
    let first = check(&mut snapshot)?;
    let mut rest = rng.random_range(0..=age);
    while rest > 0 && !over.load(Ordering::Relaxed) {
        let pause = rest.min(250);
        std::thread::sleep(Duration::from_millis(pause));
        rest -= pause;
    }
    let second = check(&mut snapshot)?;
    ensure!(
        first == second,
        "a snapshot changed: {first} counters, then {second}"
    );
    Ok(snapshot.commit()?)
}

/// Each session that has ended was ended by recovery, says the log; and nothing has crashed.
fn lost_only_to_recovery(standby: &Cluster, since: u64, looks: &Looks) -> Result<()> {
    let log = standby.log_since(since);
    let ended = log
        .matches("terminating connection due to conflict with recovery")
        .count() as u64;
    let lost = looks.refused.get(&Refusal::Lost).copied().unwrap_or(0);
    ensure!(
        lost <= ended,
        "{lost} sessions were lost, {ended} of them to recovery"
    );
    nothing_crashed(&log)
}

/// The ways to read a counter, for the first look of a snapshot at any.
const READS: [&str; 6] = [
    "SELECT counter_value('old')::bigint",
    "SELECT value::bigint FROM counters WHERE name = 'old'",
    "SELECT value::bigint FROM counter_list('old', NULL, 1)",
    "SELECT value::bigint FROM counter_values(ARRAY['old'])",
    "SELECT counter_sum('old')::bigint",
    "SELECT sum(value)::bigint FROM counters WHERE name < 'p'",
];

/// What no reader should meet by chance: the snapshot is taken before a log is emptied, nothing that
/// is replayed meanwhile meets a lock or a dead row of the reader's, and only then are counters
/// looked at.
fn old_snapshots(options: &Options, report: &mut PartReport, pair: &mut Pair) -> Result<()> {
    pair.standby.reload(&[
        ("hot_standby_feedback", "off"),
        ("max_standby_streaming_delay", "-1"),
    ])?;
    // Vacuum's work on the system's tables, replayed, waits for the snapshot.
    pair.primary.reload(&[("autovacuum", "off")])?;
    create_database(&pair.primary, "old")?
        .batch_execute("ALTER DATABASE old SET counterx.compaction = off")?;
    // The switch is for new sessions.
    let mut client = pair.primary.connect_db("old")?;
    let mut refused = 0;
    for round in 0..options.size(2, 30) {
        let read = READS[round % READS.len()];
        refused += u64::from(old_snapshot(report, pair, &mut client, round, read)?);
    }
    pair.primary.reload(&[("autovacuum", "on")])?;
    report.tried(in_words(Refusal::Truncated), refused);
    ensure!(
        refused > 0,
        "no snapshot was refused as its deltas were truncated: the check has not been tried"
    );
    Ok(())
}

/// True when the snapshot was refused for its truncated deltas.
fn old_snapshot(
    report: &mut PartReport,
    pair: &Pair,
    client: &mut Client,
    round: usize,
    read: &str,
) -> Result<bool> {
    // Names of their own: totals that are inserted leave no dead rows to be pruned.
    client.batch_execute(&format!(
        "SELECT bump('old', {round} + 1);
         SELECT count(counter_incr('q:{round}:' || n)) FROM generate_series(1, 8000) n"
    ))?;
    // The database itself may not have arrived yet.
    catch_up(&pair.primary, &mut pair.standby.connect()?)?;
    let mut other = pair.standby.connect_db("old")?;
    let mut reader = pair.standby.connect_db("old")?;
    // The session knows the relations: to look them up later may wait for the replay.
    reader.batch_execute("SELECT counter_value('warm')")?;
    let mut snapshot = reader
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()?;
    let sum = "SELECT sum(delta)::bigint FROM oracle";
    let oracle: i64 = snapshot.query_one(sum, &[])?.get(0);

    let before = footprint(client)?;
    let mut there = before.clone();
    poll_until("a log to be emptied", DEADLINE, || {
        compact(client)?;
        there = footprint(client)?;
        if there.has_emptied_since(&before) {
            return Ok(true);
        }
        // The other log becomes the active one with the next delta.
        client.batch_execute("SELECT counter_incr('q:' || n) FROM generate_series(1, 100) n")?;
        Ok(false)
    })?;
    // Or the replay waits for the snapshot: for something that was pruned on the way.
    let mut here = footprint(&mut other)?;
    let arrived = poll_until("the truncation", Duration::from_secs(4), || {
        here = footprint(&mut other)?;
        Ok(here.truncated == there.truncated && here.files == there.files)
    });
    if arrived.is_err() {
        report.tried("snapshots of a standby that the replay waited for", 1);
    }
    match snapshot.query_one(read, &[]) {
        Ok(row) => {
            let value: i64 = row.get(0);
            // The fillers are not in the oracle; the last way to read has no more than `old` either.
            ensure!(
                value == oracle,
                "{read}: {value}, oracle {oracle}; at {here:?} of {there:?}"
            );
            report.tried("old snapshots of a standby that were exact", 1);
            Ok(false)
        }
        Err(error) => {
            let error = error.into();
            match Refusal::of(&error) {
                Some(Refusal::Truncated) => Ok(true),
                Some(refusal) => {
                    report.tried(in_words(refusal), 1);
                    Ok(false)
                }
                None => Err(error.context(read.to_owned())),
            }
        }
    }
}
