//! What grows by and by: the worker over tens of thousands of folds, a reader over thousands of
//! truncations, a session that has counted a million names, and the catalogs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{create_database, names_in_lanes, wait_for_worker};
use counterx_harness::Cluster;
use postgres::Client;

use crate::measure::{float, own_memory};
use crate::options::Options;
use crate::report::{self, PartReport, Unit};

/// What a process may grow by, over all its folds, in MiB.
const LIMIT: f64 = 16.0;

pub(super) fn run(options: &Options, report: &mut PartReport) {
    let cluster = Cluster::builder()
        .name("torture-growth")
        .conf("counterx.compaction_interval", "1ms")
        .conf("counterx.compaction_threshold", "1")
        // Each fold or two changes logs and truncates.
        .conf("counterx.log_max_size", "64kB")
        .start();
    let cluster = match cluster {
        Ok(cluster) => cluster,
        Err(error) => return report.finding("memory over time", report::causes(&error)),
    };
    report.step("memory of worker and reader over many folds", |report| {
        folds(&cluster, options, report)
    });
    report.step(
        "memory of a session that has counted very many names",
        |report| session(&cluster, options, report),
    );
}

/// The figures of one moment.
#[derive(Clone, Copy, Debug)]
struct Moment {
    folds: i64,
    truncations: i64,
    worker: f64,
    reader: f64,
    catalogs: f64,
}

fn folds(cluster: &Cluster, options: &Options, report: &mut PartReport) -> Result<()> {
    let mut client = create_database(cluster, "folds")?;
    let names = names_in_lanes(&mut client)?;
    let mut reader = cluster.connect_db("folds")?;
    let mut reading = || -> Result<i32> {
        let sql =
            "SELECT pg_backend_pid(), counter_value('lane:1'), (SELECT count(*) FROM counters)";
        Ok(reader.query_one(sql, &[])?.get(0))
    };
    let statement = client.prepare(
        "SELECT count(counter_incr(n || ':' || m)) FROM unnest($1::text[]) n, generate_series(1, 40) m",
    )?;
    let worker = wait_for_worker(&mut client, "folds")?;
    let look = |client: &mut Client, reader: i32| -> Result<Moment> {
        let folds = client
            .query_one("SELECT folds FROM counterx.workers", &[])?
            .get(0);
        let sql = "SELECT sum(pg_total_relation_size(c))::bigint
                     FROM unnest('{pg_class,pg_statistic,pg_depend,pg_attribute}'::regclass[]) c";
        let catalogs: i64 = client.query_one(sql, &[])?.get(0);
        Ok(Moment {
            folds,
            truncations: files(client)?,
            worker: own_memory(worker).context("the worker has gone")?,
            reader: own_memory(reader).context("the reader has gone")?,
            catalogs: float(catalogs) / f64::from(1 << 20),
        })
    };
    let (warm, all) = options.size((200, 800), (5_000, 45_000));
    let mut start: Option<Moment> = None;
    let mut logs = 0;
    let began = Instant::now();
    let end = loop {
        for _ in 0..20 {
            client.query_one(&statement, &[&names])?;
        }
        let pid = reading()?;
        let now = look(&mut client, pid)?;
        logs = logs.max(now.truncations);
        if start.is_none() && now.folds >= warm {
            start = Some(now);
        }
        // The time bounds a failure.
        if now.folds >= all || began.elapsed() > Duration::from_secs(options.size(30, 240)) {
            break now;
        }
    };
    let start = start.with_context(|| format!("hardly a fold: {end:?}"))?;
    let folds = end.folds - start.folds;
    ensure!(folds > warm, "only {folds} folds: nothing was shown");
    let truncations = end.truncations - start.truncations;
    ensure!(truncations > 0, "no log was truncated: nothing was shown");
    report.tried("folds whose memory was watched", u64::try_from(folds)?);
    for (what, start, end) in [
        ("worker", start.worker, end.worker),
        ("reader", start.reader, end.reader),
    ] {
        let what = format!("growth of the {what}'s own memory over these folds");
        report.limited(&what, end - start, Unit::Mebibytes, LIMIT);
        // Of a leak one can be sure when it is large, or there are many folds.
        ensure!(
            end - start <= options.size(2.0, LIMIT),
            "{what}: from {start} to {end} MiB in {folds} folds"
        );
    }
    let grown = end.catalogs - start.catalogs;
    let what = "growth of the catalogs over these folds";
    report.figure(what, grown, Unit::Mebibytes);
    ensure!(grown < 64.0, "{what}: {start:?}, {end:?}");
    Ok(())
}

/// Sum of the epochs through which logs were truncated.
fn files(client: &mut Client) -> Result<i64> {
    Ok(counterx_cluster_tests::footprint(client)?.truncated)
}

/// What a session keeps after large transactions: no more after the last than after the second.
fn session(cluster: &Cluster, options: &Options, report: &mut PartReport) -> Result<()> {
    const ROUNDS: usize = 5;
    let mut client = create_database(cluster, "session")?;
    let mut busy = cluster.connect_db("session")?;
    let pid: i32 = busy.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    let names: i64 = options.size(20_000, 1_000_000);
    let batch = options.size(4_000, 100_000);
    let memory = || own_memory(pid).context("the session has gone");
    let before = memory()?;
    let (mut most, mut after) = (before, Vec::new());
    let statement = busy.prepare(
        "SELECT count(counter_incr('page:' || n)) FROM generate_series($1::bigint, $2::bigint) n",
    )?;
    for round in 0..ROUNDS {
        let mut first = 1;
        // All in one transaction at first: it is written early.
        let batch = if round == 0 { names } else { batch };
        while first <= names {
            let last = (first + batch - 1).min(names);
            busy.query_one(&statement, &[&first, &last])?;
            most = most.max(memory()?);
            first = last + 1;
        }
        // Small ones, as they come all day.
        for _ in 0..20 {
            busy.batch_execute("SELECT counter_incr('page:1')")?;
        }
        after.push(memory()?);
    }
    let rounds = i64::try_from(ROUNDS)?;
    report.tried(
        "increments of a session whose memory was watched",
        u64::try_from(names * rounds)?,
    );
    report.figure(
        "a session's own memory at its start",
        before,
        Unit::Mebibytes,
    );
    report.figure("... at most", most, Unit::Mebibytes);
    for (round, after) in after.iter().enumerate() {
        let what = format!("... after {} times {names} names", round + 1);
        report.figure(&what, *after, Unit::Mebibytes);
    }
    let grown = after[ROUNDS - 1] - after[1];
    let what = "growth of a session's own memory from the second time on";
    report.limited(what, grown, Unit::Mebibytes, LIMIT);
    ensure!(grown <= LIMIT, "{what}: {after:?} MiB");
    let sum: i64 = client
        .query_one("SELECT counter_sum('page:')::bigint", &[])?
        .get(0);
    let due = rounds * (names + 20);
    ensure!(sum == due, "{due} were counted, and counter_sum says {sum}");
    Ok(())
}
