//! Very many counters: as many names as there are articles in an encyclopaedia, asked for as they
//! are, or as people do: few very often, and most hardly ever.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use counterx_harness::{Cluster, poll_until};
use postgres::Client;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::memory;
use super::zipf::Zipf;
use crate::measure::{float, own_memory};
use crate::options::Options;
use crate::report::{PartReport, Unit};

/// Between 1 and 1.1, as web pages, words and cities have it.
const EXPONENT: f64 = 1.07;

/// Connections that count.
const CLIENTS: u64 = 4;

/// How long a million counters may take for anything. It bounds a failure.
const PATIENCE: Duration = Duration::from_secs(300);

pub(super) fn run(options: &Options, report: &mut PartReport) {
    report.step("very many names", |report| {
        let cluster = Cluster::builder()
            .name("torture-names")
            .conf("counterx.compaction_interval", "100ms")
            .conf("shared_buffers", options.size("128MB", "1GB"))
            .conf("max_wal_size", "4GB")
            .start()?;
        cluster
            .connect()?
            .batch_execute("CREATE EXTENSION counterx")?;
        let (result, memories) = memory::watched(&cluster, || {
            distinct(&cluster, options, report)?;
            zipf(&cluster, options, report)
        })?;
        memory::report(report, "beside very many names", &memories);
        Ok(result)
    });
}

fn name(number: u32) -> String {
    format!("page:{number:07}")
}

/// Each name once, in large transactions; then all the ways to look at them.
fn distinct(cluster: &Cluster, options: &Options, report: &mut PartReport) -> Result<()> {
    const BATCH: u32 = 10_000;
    let count: u32 = options.size(20_000, 1_000_000);
    let mut client = cluster.connect()?;
    let started = Instant::now();
    for first in (1..=count).step_by(BATCH as usize) {
        let last = (first + BATCH - 1).min(count);
        if (first / BATCH).is_multiple_of(2) {
            let names: Vec<String> = (first..=last).map(name).collect();
            let deltas: Vec<i64> = (first..=last).map(i64::from).collect();
            client.execute("SELECT counter_incr_many($1, $2)", &[&names, &deltas])?;
        } else {
            let sql = "SELECT count(counter_incr('page:' || lpad(n::text, 7, '0'), n))
                         FROM generate_series($1::int, $2::int) n";
            client.execute(sql, &[&first.cast_signed(), &last.cast_signed()])?;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    report.tried("distinct names", u64::from(count));
    report.figure(
        "increments of new names, one session",
        f64::from(count) / seconds,
        Unit::PerSecond,
    );
    let sum = i64::from(count) * i64::from(count + 1) / 2;
    // Pending, while being folded, and folded.
    check_all(&mut client, count, sum).context("before all is folded")?;
    let started = Instant::now();
    settle(&mut client)?;
    report.figure(
        "until all names were folded",
        started.elapsed().as_secs_f64(),
        Unit::Seconds,
    );
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    for (what, sql) in [
        ("the view counters", "SELECT count(*) FROM counters"),
        ("counter_sum of all", "SELECT counter_sum('')"),
        (
            "counter_top(10) of all",
            "SELECT count(*) FROM counter_top(10)",
        ),
        (
            "a page of 100",
            "SELECT count(*) FROM counter_list('page:', 'page:0010000', 100)",
        ),
        ("one counter", "SELECT counter_value('page:0012345')"),
    ] {
        let started = Instant::now();
        client.query_one(sql, &[])?;
        let millis = started.elapsed().as_secs_f64() * 1000.0;
        let what = format!("{what}, of {count} counters");
        report.figure(&what, millis, Unit::Milliseconds);
    }
    check_all(&mut client, count, sum).context("when all is folded")?;
    if let Some(memory) = own_memory(pid) {
        let what = format!("own memory of a session that has read {count} counters");
        report.figure(&what, memory, Unit::Mebibytes);
    }
    pages(&mut client, count, report)
}

fn check_all(client: &mut Client, count: u32, sum: i64) -> Result<()> {
    let row = client.query_one(
        "SELECT count(*), sum(value)::bigint, counter_sum('page:')::bigint FROM counters",
        &[],
    )?;
    let (names, listed, summed): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    ensure!(
        names == i64::from(count) && listed == sum && summed == sum,
        "{count} counters come to {sum}; the view says {names} and {listed}, counter_sum {summed}"
    );
    let top = client.query(
        "SELECT rank::bigint, name, value::bigint FROM counter_top(5)",
        &[],
    )?;
    ensure!(top.len() == 5, "{} of the first five", top.len());
    for (row, number) in top.iter().zip((0..=count).rev()) {
        let (rank, listed, value): (i64, String, i64) = (row.get(0), row.get(1), row.get(2));
        ensure!(
            rank == i64::from(count - number) + 1
                && listed == name(number)
                && value == i64::from(number),
            "rank {rank} is {listed} with {value}"
        );
    }
    Ok(())
}

/// All of them, page by page: each name once, in order.
fn pages(client: &mut Client, count: u32, report: &mut PartReport) -> Result<()> {
    let sql = "SELECT name, value::bigint FROM counter_list('page:', $1, 1000)";
    let statement = client.prepare(sql)?;
    let (mut after, mut next) = (String::new(), 1);
    let started = Instant::now();
    loop {
        let rows = client.query(&statement, &[&after])?;
        for row in &rows {
            let (listed, value): (String, i64) = (row.get(0), row.get(1));
            ensure!(
                listed == name(next) && value == i64::from(next),
                "{listed} with {value} is where {} is due",
                name(next)
            );
            next += 1;
        }
        match rows.last() {
            Some(row) => after = row.get(0),
            None => break,
        }
    }
    ensure!(next == count + 1, "the pages end before {}", name(next));
    report.tried("counters read page by page", u64::from(count));
    report.figure(
        "all counters, page by page",
        started.elapsed().as_secs_f64(),
        Unit::Seconds,
    );
    Ok(())
}

/// Several sessions, whose names are drawn; each keeps a ledger of its own.
fn zipf(cluster: &Cluster, options: &Options, report: &mut PartReport) -> Result<()> {
    const BATCH: usize = 20;
    let count: u32 = options.size(20_000, 1_000_000);
    let transactions = options.size(60, 20 * options.seconds);
    let zipf = Zipf::new(count, EXPONENT);
    let seed = options.seed_for("zipf");
    let started = Instant::now();
    let ledgers: Vec<HashMap<u32, i64>> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let zipf = &zipf;
                scope.spawn(move || {
                    let mut rng = StdRng::seed_from_u64(seed.wrapping_add(number));
                    let mut client = cluster.connect()?;
                    let mut ledger = HashMap::new();
                    let statement = client.prepare("SELECT counter_incr_many($1, $2)")?;
                    for _ in 0..transactions {
                        let numbers: Vec<u32> = (0..BATCH).map(|_| zipf.draw(&mut rng)).collect();
                        let names: Vec<String> = numbers.iter().copied().map(name).collect();
                        let deltas: Vec<i64> =
                            (0..BATCH).map(|_| rng.random_range(-5..20)).collect();
                        client.execute(&statement, &[&names, &deltas])?;
                        for (number, delta) in numbers.into_iter().zip(deltas) {
                            *ledger.entry(number).or_insert(0) += delta;
                        }
                    }
                    Ok::<_, anyhow::Error>(ledger)
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|client| {
                client
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a client panicked")))
            })
            .collect::<Result<_>>()
    })?;
    let increments = CLIENTS * transactions * BATCH as u64;
    report.tried(
        "increments of names drawn from a Zipf distribution",
        increments,
    );
    report.figure(
        "increments of names drawn from a Zipf distribution",
        float(i64::try_from(increments)?) / started.elapsed().as_secs_f64(),
        Unit::PerSecond,
    );
    // On top of what each name had: its number.
    let mut due: Vec<i64> = (0..=i64::from(count)).collect();
    let mut drawn = vec![false; due.len()];
    for (number, delta) in ledgers.into_iter().flatten() {
        due[number as usize] += delta;
        drawn[number as usize] = true;
    }
    let drawn = drawn.iter().filter(|drawn| **drawn).count();
    report.tried("different names that were drawn", u64::try_from(drawn)?);
    let mut client = cluster.connect()?;
    equal(&mut client, &due).context("before all is folded")?;
    settle(&mut client)?;
    equal(&mut client, &due).context("when all is folded")
}

/// Every counter is what is due, exactly.
fn equal(client: &mut Client, due: &[i64]) -> Result<()> {
    let rows = client.query(
        "SELECT right(name, 7)::int, value::bigint FROM counters",
        &[],
    )?;
    ensure!(
        rows.len() == due.len() - 1,
        "{} counters, of {}",
        rows.len(),
        due.len() - 1
    );
    for row in rows {
        let (number, value): (i32, i64) = (row.get(0), row.get(1));
        let due = due[usize::try_from(number)?];
        ensure!(
            value == due,
            "page {number} has {value}, and {due} were counted"
        );
    }
    Ok(())
}

fn settle(client: &mut Client) -> Result<()> {
    let sql = "SELECT coalesce(sum(pending_deltas), 0) = 0 FROM counterx.lanes";
    poll_until("everything to be folded", PATIENCE, || {
        Ok(client.query_one(sql, &[])?.get::<_, bool>(0))
    })
}
