//! Millions of deltas that wait, as after a long pause of the worker; then it starts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use counterx_cluster_tests::pause_folding;
use counterx_harness::{Cluster, poll_until};
use postgres::Client;

use super::memory;
use crate::measure::{Times, float};
use crate::options::Options;
use crate::report::{PartReport, Unit};

/// Names of one transaction; each has one delta.
const BATCH: i64 = 5_000;

/// Sessions that count.
const WRITERS: i64 = 2;

/// It bounds a failure.
const PATIENCE: Duration = Duration::from_secs(1200);

/// Reads that go on meanwhile.
const READS: [(&str, &str); 3] = [
    // A delta in each transaction.
    ("a hot counter", "SELECT counter_value('hot')"),
    // Folded, and left alone since.
    ("a cold counter", "SELECT counter_value('cold')"),
    // One of very many.
    ("a counter of the crowd", "SELECT counter_value('some:77')"),
];

pub(super) fn run(options: &Options, report: &mut PartReport) {
    let deltas: i64 = options.size(200_000, 10_000_000);
    let what = format!("a backlog of {deltas} deltas, and its end");
    report.step(&what, |report| backlog(options, report, deltas));
}

fn backlog(options: &Options, report: &mut PartReport, deltas: i64) -> Result<()> {
    let cluster = Cluster::builder()
        .name("torture-backlog")
        .conf("shared_buffers", options.size("256MB", "2GB"))
        .conf("counterx.log_max_size", "1MB")
        .conf("max_wal_size", "16GB")
        .conf("checkpoint_timeout", "1h")
        .start()?;
    let mut client = cluster.connect()?;
    client.batch_execute("CREATE EXTENSION counterx")?;
    // As many names as there are in 20 transactions, so each counter has many deltas.
    let names = 20 * BATCH;
    let sql = format!(
        "SELECT counter_incr('cold', 7), counter_incr('hot', 0), counter_incr('done', 0);
         SELECT count(counter_incr('some:' || n, 0)) FROM generate_series(0, {} - 1) n",
        names
    );
    client.batch_execute(&sql)?;
    settle(&mut client, 3 + names)?;
    let times = read_for(&mut client, Duration::from_millis(options.size(200, 2000)))?;
    report_reads(report, "before the backlog", &times);

    pause_folding(&mut client, "postgres")?;
    let transactions = deltas / BATCH;
    let ((), memories) = memory::watched(&cluster, || {
        let wal = wal(&mut client)?;
        let started = Instant::now();
        write(&cluster, transactions)?;
        let seconds = started.elapsed().as_secs_f64();
        report.tried("deltas of the backlog", u64::try_from(deltas)?);
        report.figure("deltas written", float(deltas) / seconds, Unit::PerSecond);
        let written = (self::wal(&mut client)? - wal) / float(deltas);
        report.figure("bytes of WAL for a delta", written, Unit::Count);

        check(&mut client, transactions, names)?;
        let times = read_for(&mut client, Duration::from_millis(options.size(500, 5000)))?;
        report_reads(report, "beside the whole backlog", &times);
        let started = Instant::now();
        client.query_one("SELECT count(*) FROM counters", &[])?;
        report.figure(
            "the view counters beside the whole backlog",
            started.elapsed().as_secs_f64() * 1000.0,
            Unit::Milliseconds,
        );

        let wal = self::wal(&mut client)?;
        let folded = folded(&mut client)?;
        let started = Instant::now();
        client.batch_execute(
            "ALTER DATABASE postgres RESET counterx.compaction; SELECT counter_incr('done')",
        )?;
        let over = AtomicBool::new(false);
        let times = std::thread::scope(|scope| {
            let reader = scope.spawn(|| read_until(&mut cluster.connect()?, &over));
            let due = folded + transactions * BATCH + 1;
            let drained = settle(&mut client, due);
            over.store(true, Ordering::Relaxed);
            let times = reader
                .join()
                .unwrap_or_else(|_| Err(anyhow!("the reader panicked")))?;
            drained.map(|()| times)
        })?;
        let seconds = started.elapsed().as_secs_f64();
        report.figure("until the backlog was folded", seconds, Unit::Seconds);
        report.figure("deltas folded", float(deltas) / seconds, Unit::PerSecond);
        let written = (self::wal(&mut client)? - wal) / float(deltas);
        report.figure("bytes of WAL to fold a delta", written, Unit::Count);
        report_reads(report, "while the backlog was folded", &times);
        check(&mut client, transactions, names)?;
        let times = read_for(&mut client, Duration::from_millis(options.size(200, 2000)))?;
        report_reads(report, "after the backlog", &times);
        shrinks(&mut client)
    })?;
    memory::report(report, "beside the backlog", &memories);
    // One counter at a time is all that a fold keeps, however many deltas there are.
    let Some(worker) = memories.get("counterx worker") else {
        return Err(anyhow!("no worker was seen: {memories:?}"));
    };
    ensure!(
        worker.most < worker.start + 64.0,
        "the worker grew by the backlog: {worker:?} MiB"
    );
    Ok(())
}

/// Real rows: many transactions, with one delta of each of their names.
fn write(cluster: &Cluster, transactions: i64) -> Result<()> {
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                scope.spawn(move || {
                    let mut client = cluster.connect()?;
                    let sql = format!(
                        "SELECT counter_incr('hot'),
                                count(counter_incr('some:' || n, n))
                           FROM generate_series($1::bigint * {BATCH}, ($1::bigint + 1) * {BATCH} - 2) n"
                    );
                    let statement = client.prepare(&sql)?;
                    for number in (writer..transactions).step_by(WRITERS as usize) {
                        client.execute(&statement, &[&(number % 20)])?;
                    }
                    Ok::<_, anyhow::Error>(())
                })
            })
            .collect();
        for writer in writers {
            writer
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a writer panicked")))?;
        }
        Ok(())
    })
}

/// Totals of all kinds, to the last unit.
fn check(client: &mut Client, transactions: i64, names: i64) -> Result<()> {
    let slices = names / BATCH;
    let mut due = 0;
    for slice in 0..slices {
        let times = transactions / slices + i64::from(slice < transactions % slices);
        let (first, last) = (slice * BATCH, (slice + 1) * BATCH - 2);
        due += times * (first + last) * (last - first + 1) / 2;
    }
    let row = client.query_one(
        "SELECT counter_value('hot'), counter_value('cold'), counter_sum('some:')::bigint,
                (SELECT sum(value) FILTER (WHERE name LIKE 'some:%')::bigint FROM counters),
                counter_value('some:77')",
        &[],
    )?;
    let some = 77 * (transactions / slices + i64::from(transactions % slices > 0));
    let wanted = [transactions, 7, due, due, some];
    for (column, wanted) in wanted.iter().enumerate() {
        let got: i64 = row.get(column);
        ensure!(got == *wanted, "column {column}: {got}, not {wanted}");
    }
    Ok(())
}

fn read_once(client: &mut Client, times: &mut [Times; READS.len()]) -> Result<()> {
    for ((_, sql), times) in READS.iter().zip(times) {
        times.time(|| client.query_one(*sql, &[]))?;
    }
    std::thread::sleep(Duration::from_millis(1));
    Ok(())
}

fn read_for(client: &mut Client, time: Duration) -> Result<[Times; READS.len()]> {
    let mut times = Default::default();
    let started = Instant::now();
    while started.elapsed() < time {
        read_once(client, &mut times)?;
    }
    Ok(times)
}

fn read_until(client: &mut Client, over: &AtomicBool) -> Result<[Times; READS.len()]> {
    let mut times = Default::default();
    while !over.load(Ordering::Relaxed) {
        read_once(client, &mut times)?;
    }
    Ok(times)
}

fn report_reads(report: &mut PartReport, when: &str, times: &[Times; READS.len()]) {
    for ((what, _), times) in READS.iter().zip(times) {
        let p50 = format!("{what}, {when}: median");
        report.figure(&p50, times.p50(), Unit::Milliseconds);
        let p99 = format!("{what}, {when}: p99");
        report.figure(&p99, times.p99(), Unit::Milliseconds);
    }
}

/// How many deltas were folded so far.
fn folded(client: &mut Client) -> Result<i64> {
    let sql = "SELECT deltas_folded FROM counterx.workers";
    Ok(client.query_one(sql, &[])?.get(0))
}

fn settle(client: &mut Client, due: i64) -> Result<()> {
    poll_until("the backlog to be folded", PATIENCE, || {
        Ok(folded(client)? >= due)
    })
}

fn wal(client: &mut Client) -> Result<f64> {
    let sql = "SELECT (pg_current_wal_insert_lsn() - '0/0')::float8";
    Ok(client.query_one(sql, &[])?.get(0))
}

/// The lanes' logs are emptied as the lanes are used.
fn shrinks(client: &mut Client) -> Result<()> {
    poll_until("the logs to shrink", PATIENCE, || {
        client
            .batch_execute("SELECT counter_incr('after:' || n) FROM generate_series(1, 200) n")?;
        let sql = "SELECT sum(log_bytes)::bigint FROM counterx.lanes";
        Ok(client.query_one(sql, &[])?.get::<_, i64>(0) < 20 << 20)
    })
}
