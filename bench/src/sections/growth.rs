//! How costs grow with the number of counters, and with that of pending deltas.

use anyhow::{Context, Result};
use counterx_harness::poll_until;
use postgres::Client;
use std::time::{Duration, Instant};

use crate::goals::Goal;
use crate::options::{Options, Section};
use crate::pgbench::{Latency, Pgbench};
use crate::plot::{Line, Plot};
use crate::proc::own_bytes;
use crate::report::{Latencies, Measured, Table};
use crate::server::Server;
use crate::stats::{Series, Unit, turns};

/// Counters of the databases. The last ones are fewer in a quick run.
const COUNTERS: [u32; 3] = [1, 1000, 1_000_000];
const QUICK: u32 = 100_000;

/// Pending deltas, which are spread over at most a million counters.
const PENDING: [u32; 4] = [1000, 10_000, 1_000_000, 10_000_000];
const NAMES: u32 = 1_000_000;

/// How long it may take to fold what there is.
const FOLD_DEADLINE: Duration = Duration::from_secs(300);

const PENDING_SQL: &str = "SELECT coalesce(sum(pending_deltas), 0)::bigint FROM counterx.lanes";

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut measured = Measured::new(
        Section::Growth,
        "First databases of one cluster, with so many counters each: one client increments one of them \
         by lot, each time in a transaction of its own, with `synchronous_commit = off`, so that no wait \
         for a disk hides what a call costs; the databases take turns, and the time is that of a \
         transaction as the client sees it, round trip and all. Reads are those of one by lot, with \
         nothing pending. Then a database in which nothing is folded: so many deltas pending, those of \
         ten million ten for each of a million counters; then the same fold by `counterx.compact()`.",
    );
    more_counters(options, &mut measured).context("more counters")?;
    more_pending(options, &mut measured).context("more pending deltas")?;
    Ok(measured)
}

/// A database, and a connection to it.
struct Database {
    counters: u32,
    name: String,
    client: Client,
}

impl Database {
    fn create(server: &mut Server, name: String, counters: u32) -> Result<Self> {
        server.execute(&format!("CREATE DATABASE {name}"))?;
        let mut client = server.cluster.connect_db(&name)?;
        client.batch_execute("CREATE EXTENSION counterx")?;
        Ok(Self {
            counters,
            name,
            client,
        })
    }

    fn settle(&mut self) -> Result<()> {
        poll_until("the worker to fold everything", FOLD_DEADLINE, || {
            let pending: i64 = self.client.query_one(PENDING_SQL, &[])?.get(0);
            Ok(pending == 0)
        })
    }
}

/// One by lot, of so many.
fn script(counters: u32, sql: &str) -> String {
    format!("\\set k random(1, {counters})\n{sql};")
}

const INCREMENT: &str = "SELECT counter_incr('page:' || :k::text)";
const READ: &str = "SELECT counter_value('page:' || :k::text)";

fn asynchronous() -> [(&'static str, String); 1] {
    [("synchronous_commit", "off".to_owned())]
}

fn more_counters(options: &Options, measured: &mut Measured) -> Result<()> {
    let mut server = Server::start("growth", options)?;
    let mut databases = Vec::new();
    for counters in COUNTERS.map(|counters| counters.min(options.size(QUICK, u32::MAX))) {
        let mut database = Database::create(&mut server, format!("growth_{counters}"), counters)?;
        println!("    {counters} counters");
        database.client.batch_execute(&format!(
            "SELECT count(counter_incr('page:' || i)) FROM generate_series(1, {counters}) AS i"
        ))?;
        database.settle()?;
        database.client.batch_execute("VACUUM (ANALYZE)")?;
        databases.push(database);
    }
    server.execute("CHECKPOINT")?;

    let count = databases.len();
    let mut increments = vec![Vec::new(); count];
    let mut of_one = vec![Vec::new(); count];
    let mut reads = vec![Vec::new(); count];
    for round in 0..options.rounds() {
        for turn in turns(round, count) {
            let database = &mut databases[turn];
            let pgbench = |counters, sql| {
                Pgbench::new(&server.cluster, 1, &script(counters, sql)).database(&database.name)
            };
            let all = pgbench(database.counters, INCREMENT).settings(&asynchronous());
            let all = all.run(options.short_seconds())?;
            let one = pgbench(1, INCREMENT).settings(&asynchronous());
            let one = one.run(options.short_seconds())?;
            let read = pgbench(database.counters, READ);
            database.settle()?;
            let read = read.run_logged(1)?;
            let read = Latency::of(read.iter().map(|logged| logged.microseconds))?;
            println!(
                "    round {}: {} counters: an increment takes {}, a read {}",
                round + 1,
                database.counters,
                Unit::Microseconds.format(1e6 / all.rate),
                Unit::Microseconds.format(read.mean)
            );
            increments[turn].push(1e6 / all.rate);
            of_one[turn].push(1e6 / one.rate);
            reads[turn].push(read);
        }
    }
    let name = |number: usize| Unit::Count.format(databases[number].counters.into());
    let series = |what: &str, all: Vec<Vec<f64>>| -> Result<Vec<Series>> {
        let series = all.into_iter().enumerate().map(|(number, rounds)| {
            Series::new(
                format!("{what} {}", name(number)),
                Unit::Microseconds,
                rounds,
            )
        });
        series.collect()
    };
    let increments = series("an increment of one by lot of", increments)?;
    let of_one = series("an increment of always the same one of", of_one)?;
    let last = count - 1;
    let what = format!("an increment, {} counters against 1", name(last));
    let growth = increments[last].ratio_to(what, &increments[0])?;
    if !options.quick {
        measured.goal(Goal::MillionCounters, growth.clone());
    }
    measured.ratios.push(growth);
    let what = format!("of always the same one, {} counters against 1", name(last));
    measured
        .ratios
        .push(of_one[last].ratio_to(what, &of_one[0])?);
    let mut read_line = Vec::new();
    for (number, rounds) in reads.iter().enumerate() {
        let what = format!("read of one by lot of {}", name(number));
        let latencies = Latencies::new(&what, rounds)?;
        read_line.push((number as f64, latencies.mean.median));
        measured.latencies.push(latencies);
    }
    let line = |name: &str, series: &[Series]| {
        let points = series.iter().enumerate();
        let points = points.map(|(place, series)| (place as f64, series.median));
        Line::new(name, points.collect())
    };
    measured.plots.push(Plot::over(
        "growth",
        "time of a call, as there are more counters",
        "microseconds",
        "counters",
        (0..count).map(name).collect(),
        vec![
            line("increment, one by lot", &increments),
            line("increment, the same one", &of_one),
            Line::new("read, one by lot", read_line),
        ],
    ));
    measured.figures.extend(increments);
    measured.figures.extend(of_one);
    Ok(())
}

fn more_pending(options: &Options, measured: &mut Measured) -> Result<()> {
    let settings = [("counterx.compaction", "off"), ("max_wal_size", "32GB")];
    let mut server = Server::start_with("pending", options, &settings)?;
    let mut table = Table::new(
        "pending deltas",
        &[
            "pending",
            "read of one by lot, p50",
            "p99",
            "increment",
            "logs",
            "fold of all",
            "deltas folded per second",
            "memory of who folds",
        ],
    );
    let (mut reads, mut folds) = (Vec::new(), Vec::new());
    let most = options.size(1_000_000, u32::MAX);
    let levels: Vec<u32> = PENDING.into_iter().filter(|&level| level <= most).collect();
    for (number, &level) in levels.iter().enumerate() {
        println!("    {level} pending");
        let names = level.min(NAMES);
        for _ in 0..level / names {
            server.execute(&format!(
                "SELECT count(counter_incr('page:' || i)) FROM generate_series(1, {names}) AS i"
            ))?;
        }
        server.check("pending deltas", PENDING_SQL, level.into())?;
        let log_bytes: i64 = server.one("SELECT sum(log_bytes)::bigint FROM counterx.lanes")?;
        let read = Pgbench::new(&server.cluster, 1, &script(names, READ))
            .run_logged(options.short_seconds())?;
        let read = Latency::of(read.iter().map(|logged| logged.microseconds))?;
        let write = Pgbench::new(&server.cluster, 1, &script(names, INCREMENT))
            .settings(&asynchronous())
            .run(options.short_seconds())?;
        let pending = server.pending()?;
        let mut folder = server.cluster.connect()?;
        let pid: i32 = folder.query_one("SELECT pg_backend_pid()", &[])?.get(0);
        let start = Instant::now();
        folder.query_one("SELECT counterx.compact()", &[])?;
        let took = start.elapsed().as_secs_f64();
        let own = own_bytes(pid)?;
        server.check("pending deltas", PENDING_SQL, 0)?;
        // The first call folds, this one empties the logs.
        folder.query_one("SELECT counterx.compact()", &[])?;
        server.execute("VACUUM (ANALYZE) counterx.total")?;
        server.execute("CHECKPOINT")?;
        reads.push((number as f64, read.p50));
        folds.push((number as f64, pending as f64 / took));
        table.rows.push(vec![
            Unit::Count.format(level.into()),
            Unit::Microseconds.format(read.p50),
            Unit::Microseconds.format(read.p99),
            Unit::Microseconds.format(1e6 / write.rate),
            Unit::Bytes.format(log_bytes as f64),
            Unit::Seconds.format(took),
            Unit::PerSecond.format(pending as f64 / took),
            Unit::Bytes.format(own),
        ]);
        let what = format!("fold of {} deltas", Unit::Count.format(pending as f64));
        measured
            .figures
            .push(Series::new(what, Unit::Seconds, vec![took])?);
    }
    measured.tables.push(table);
    let places: Vec<String> = levels
        .iter()
        .map(|&level| Unit::Count.format(level.into()))
        .collect();
    measured.plots.push(Plot::over(
        "pending-reads",
        "read of one counter, as more deltas are pending",
        "microseconds, median",
        "pending deltas",
        places.clone(),
        vec![Line::new("counter_value, one by lot", reads)],
    ));
    measured.plots.push(Plot::over(
        "pending-folds",
        "speed of a fold, as more deltas are pending",
        "deltas per second",
        "pending deltas",
        places,
        vec![Line::new("counterx.compact()", folds)],
    ));
    Ok(())
}
