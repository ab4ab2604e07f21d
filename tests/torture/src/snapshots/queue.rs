//! What counters are often made with: a queue of deltas with an index on the name, folded by
//! `DELETE ... RETURNING`. Under the same old snapshot, to show what that does to it.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use postgres::Client;

use super::field::Field;
use crate::measure::{Times, float, ratio};
use crate::options::Options;
use crate::report::{PartReport, Unit};

const SCHEMA: &str = "
    CREATE TABLE queue (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, delta bigint NOT NULL);
    CREATE INDEX queue_name ON queue (name);
    CREATE TABLE queue_total (name text PRIMARY KEY, value numeric NOT NULL) WITH (fillfactor = 80);
    INSERT INTO queue_total SELECT 'hot:' || n, 0 FROM generate_series(1, 9) n;
    INSERT INTO queue_total SELECT 'cold:' || n, n FROM generate_series(1, 1000) n";

const FOLD: &str = "
    WITH gone AS (DELETE FROM queue RETURNING name, delta),
    sums AS (SELECT name, sum(delta) AS delta FROM gone GROUP BY name)
    UPDATE queue_total t SET value = t.value + sums.delta FROM sums WHERE t.name = sums.name";

const READ: &str = "
    SELECT (coalesce((SELECT value FROM queue_total WHERE name = 'hot:1'), 0)
            + coalesce((SELECT sum(delta) FROM queue WHERE name = 'hot:1'), 0))::bigint";

const WINDOWS: usize = 4;

#[derive(Default)]
struct Window {
    seconds: f64,
    increments: i64,
    folds: Times,
    reads: Times,
}

pub(super) fn run(field: &Field, options: &Options, report: &mut PartReport) {
    let what = "a queue table that DELETE folds, with and without an old snapshot";
    report.step(what, |report| {
        for (db, who, old) in [
            ("queue_control", "nobody old", false),
            ("queue_old", "under an old snapshot", true),
        ] {
            let windows = story(field, options, db, old)?;
            let [first, .., last] = &windows[..] else {
                return Err(anyhow!("no windows"));
            };
            let folds: usize = windows.iter().map(|window| window.folds.len()).sum();
            report.tried(
                &format!("folds of the queue table, {who}"),
                u64::try_from(folds)?,
            );
            for (what, ratio) in [
                ("a fold, median", ratio(last.folds.p50(), first.folds.p50())),
                (
                    "a read of a hot counter, median",
                    ratio(last.reads.p50(), first.reads.p50()),
                ),
                (
                    "a read of a hot counter, p99",
                    ratio(last.reads.p99(), first.reads.p99()),
                ),
            ] {
                report.figure(
                    &format!("queue table, {who}: {what}, end / start"),
                    ratio,
                    Unit::Ratio,
                );
            }
            report.figure(
                &format!("queue table, {who}: increments, start / end"),
                ratio(
                    float(first.increments) / first.seconds,
                    float(last.increments) / last.seconds,
                ),
                Unit::Ratio,
            );
        }
        Ok(())
    });
}

fn story(field: &Field, options: &Options, db: &str, with_snapshot: bool) -> Result<Vec<Window>> {
    field
        .cluster
        .connect()?
        .batch_execute(&format!("CREATE DATABASE {db}"))?;
    let mut client = field.cluster.connect_db(db)?;
    client.batch_execute(SCHEMA)?;
    let mut old = field.cluster.connect_db(db)?;
    if with_snapshot {
        old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
        old.query_one(READ, &[])?;
    }
    let over = AtomicBool::new(false);
    let counted = AtomicI64::new(0);
    let windows = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let result = write(&mut field.cluster.connect_db(db)?, &over, &counted);
                    over.store(true, Ordering::Relaxed);
                    result
                })
            })
            .collect();
        let windows = (0..WINDOWS)
            .map(|_| window(&mut client, options, &counted))
            .collect::<Result<Vec<_>>>();
        over.store(true, Ordering::Relaxed);
        for writer in writers {
            writer
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a writer panicked")))?;
        }
        windows
    })?;
    // Slow or not, it must not have miscounted, or it is no comparison.
    let value: i64 = client.query_one(READ, &[])?.get(0);
    let due = counted.load(Ordering::Relaxed);
    ensure!(
        value == due,
        "the queue table says {value}, and {due} were counted"
    );
    drop((client, old));
    field.drop(db)?;
    Ok(windows)
}

fn write(client: &mut Client, over: &AtomicBool, counted: &AtomicI64) -> Result<()> {
    let sql = "INSERT INTO queue (name, delta) SELECT 'hot:' || n, 1 FROM generate_series(1, 9) n";
    let statement = client.prepare(sql)?;
    while !over.load(Ordering::Relaxed) {
        client.execute(&statement, &[])?;
        counted.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// A fixed time, as one of fixed folds would take for ever.
fn window(client: &mut Client, options: &Options, counted: &AtomicI64) -> Result<Window> {
    let time = options.size(Duration::from_millis(250), Duration::from_secs(5));
    let mut window = Window::default();
    let (fold, read) = (client.prepare(FOLD)?, client.prepare(READ)?);
    let before = counted.load(Ordering::Relaxed);
    let started = Instant::now();
    while started.elapsed() < time {
        // As autovacuum would at its best.
        if window.folds.len() % 20 == 19 {
            for table in ["queue", "queue_total"] {
                client.batch_execute(&format!("VACUUM (TRUNCATE off) {table}"))?;
            }
        }
        window.folds.time(|| client.execute(&fold, &[]))?;
        window.reads.time(|| client.query_one(&read, &[]))?;
        std::thread::sleep(Duration::from_millis(1));
    }
    window.seconds = started.elapsed().as_secs_f64();
    window.increments = 9 * (counted.load(Ordering::Relaxed) - before);
    Ok(window)
}
