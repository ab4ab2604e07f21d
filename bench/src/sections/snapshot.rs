//! An open REPEATABLE READ snapshot.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use counterx_harness::Cluster;
use postgres::Client;

use crate::goals::Goal;
use crate::job::Job;
use crate::options::{Options, Section};
use crate::peers::{Batch, Keys, Peer};
use crate::pgbench::{Latency, Logged, Pgbench, Progress};
use crate::plot::{Line, Plot};
use crate::race::{Entry, slice};
use crate::report::{Measured, Table};
use crate::sections::read::{LOOKUP, fill};
use crate::server::Server;
use crate::stats::{Series, Unit, turns};

/// The part of the long run that counts as its beginning, and as its end, in seconds; of a
/// shorter run a quarter.
const WINDOW: u32 = 60;

/// What the goals are about.
const GOAL_SECONDS: u32 = 600;

/// How much shorter than the long run that of each of the others is.
const OTHERS_SHARE: u32 = 20;

/// Seconds that such a run takes at least.
const SHORTEST: u32 = 8;

const OTHERS: [Peer; 4] = [
    Peer::Counter,
    Peer::Update,
    Peer::Slots(100),
    Peer::FoldedLog { indexed: true },
];

/// Scripts of the reader, by their number in the log.
const HOT: usize = 0;
const COLD: usize = 1;
const CONTROL: usize = 2;

const VALUE: &str = "SELECT counter_value('hot')";
const LOG_BYTES_SQL: &str = "SELECT sum(log_bytes)::bigint FROM counterx.lanes";

/// A part of a run.
#[derive(Clone, Copy, Debug)]
struct Window {
    /// Whether the snapshot was open.
    snapshot: bool,
    /// Seconds since the start.
    from: f64,
    to: f64,
    /// Increments per second.
    rate: f64,
    hot: Latency,
    cold: Latency,
    lookup: Latency,
}

/// A session that sits idle in a transaction which has taken its snapshot.
struct OldSnapshot {
    client: Client,
    value: i64,
}

impl OldSnapshot {
    fn open(cluster: &Cluster) -> Result<Self> {
        let mut client = cluster.connect()?;
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
        let value = client.query_one(VALUE, &[])?.get(0);
        Ok(Self { client, value })
    }

    /// Ends it, after another look at the counter; returns the seconds that this took.
    fn close(mut self) -> Result<f64> {
        let start = Instant::now();
        let value: i64 = self
            .client
            .query_one(VALUE, &[])
            .context("the old snapshot could not read the counter")?
            .get(0);
        let took = start.elapsed().as_secs_f64();
        ensure!(
            value == self.value,
            "the old snapshot read {} at first and {value} later",
            self.value
        );
        self.client.batch_execute("COMMIT")?;
        Ok(took)
    }
}

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut server = Server::start("snapshot", options)?;
    fill(&mut server)?;
    for peer in OTHERS {
        server.execute(&peer.create(Keys::Hot))?;
    }
    let counter = Entry::new(Peer::Counter, Keys::Hot, Batch::One, options.clients);
    slice(&mut server, &counter, 1)?;
    server.execute("VACUUM (ANALYZE)")?;
    server.execute("CHECKPOINT")?;

    let others = others_seconds(options);
    let mut measured = Measured::new(
        Section::Snapshot,
        format!(
            "A session sits idle in a REPEATABLE READ transaction that has read the hot counter. \
             First in turns, without it and with it open for a slice, with {} clients that \
             increment. Then for {} s on end, with a reader beside them that reads, in random \
             order, the hot counter, a cold one, and, by its primary key, a row that nobody writes. \
             The same follows for a while without it. The end is compared to that: the rates, and the \
             median latencies, less what the look-up's differ by, for that is the machine. Last, \
             {others} s of each of the others beside a snapshot of its own.",
            options.clients,
            options.long_seconds()
        ),
    );
    in_turns(&mut server, options, &counter, &mut measured)?;
    on_end(&mut server, options, &mut measured)?;
    others_beside_it(&mut server, options, &mut measured)?;
    Ok(measured)
}

fn others_seconds(options: &Options) -> u32 {
    (options.long_seconds() / OTHERS_SHARE).max(SHORTEST)
}

fn in_turns(
    server: &mut Server,
    options: &Options,
    counter: &Entry,
    measured: &mut Measured,
) -> Result<()> {
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..options.few_rounds() {
        for turn in turns(round, 2) {
            let snapshot = (turn == 1)
                .then(|| OldSnapshot::open(&server.cluster))
                .transpose()?;
            let rate = slice(server, counter, options.seconds())?.rate;
            println!(
                "    round {}: {} an open snapshot: {}",
                round + 1,
                if turn == 1 { "with" } else { "without" },
                Unit::PerSecond.format(rate)
            );
            rates[turn].push(rate);
            if let Some(snapshot) = snapshot {
                snapshot.close()?;
            }
        }
    }
    let [without, with] = rates;
    let without = Series::new("increments, without a snapshot", Unit::PerSecond, without)?;
    let with = Series::new("increments, with an open snapshot", Unit::PerSecond, with)?;
    let ratio = with.ratio_to("open snapshot, in turns, of the rate without it", &without)?;
    measured.ratios.push(ratio);
    measured.figures.extend([without, with]);
    Ok(())
}

fn on_end(server: &mut Server, options: &Options, measured: &mut Measured) -> Result<()> {
    let seconds = options.long_seconds();
    println!("    {seconds} s with an open snapshot");
    let bytes_before: i64 = server.one(LOG_BYTES_SQL)?;
    let snapshot = OldSnapshot::open(&server.cluster)?;
    let (writes, reads) = side_by_side(server, options, Peer::Counter, seconds)?;
    let count = (seconds / WINDOW).max(4);
    let mut windows = windows(&writes, &reads, count, true)?;
    let bytes_after: i64 = server.one(LOG_BYTES_SQL)?;
    let old_read = snapshot.close()?;
    server.fold()?;

    // The machine of ten minutes ago is another one, so the end has a neighbour without it.
    let seconds_without = (seconds / 4).clamp(SHORTEST, WINDOW * 3 / 4);
    println!("    {seconds_without} s without it");
    let (writes, reads) = side_by_side(server, options, Peer::Counter, seconds_without)?;
    let without = self::windows(&writes, &reads, 1, false)?[0];
    server.fold()?;

    let [first, .., last] = windows[..] else {
        unreachable!("at least two windows")
    };
    let one = |what: &str, unit, value| Series::new(what, unit, vec![value]);
    let ratio = |what: &str, value| one(what, Unit::Ratio, value);
    let rate = ratio(
        &format!("increments, end of {seconds} s with a snapshot, of those right after it"),
        last.rate / without.rate,
    )?;
    let hot = |window: &Window| window.hot.p50;
    let cold = |window: &Window| window.cold.p50;
    let read = ratio(
        "read of the hot counter, end against without",
        growth(&without, &last, hot),
    )?;
    if seconds >= GOAL_SECONDS {
        measured.goal(Goal::SnapshotIncrements, rate.clone());
        measured.goal(Goal::SnapshotReads, read.clone());
    }
    measured.ratios.extend([
        rate,
        read,
        ratio(
            "read of a cold counter, end against without",
            growth(&without, &last, cold),
        )?,
        ratio(
            "read of the hot counter, end against beginning",
            growth(&first, &last, hot),
        )?,
        ratio("increments, end against beginning", last.rate / first.rate)?,
    ]);
    measured.figures.extend([
        one("logs before the long run", Unit::Bytes, bytes_before as f64)?,
        one("logs after it", Unit::Bytes, bytes_after as f64)?,
        one(
            "the old snapshot's own read at its end",
            Unit::Seconds,
            old_read,
        )?,
    ]);
    windows.push(without);
    let mut table = Table::new(
        "the long run",
        &[
            "seconds",
            "increments",
            "hot counter, p50",
            "p99",
            "cold counter, p50",
            "p99",
            "look-up, p50",
            "p99",
        ],
    );
    table.rows = windows.iter().map(row).collect();
    measured.tables.push(table);
    Ok(())
}

fn row(window: &Window) -> Vec<String> {
    let time = |microseconds| Unit::Microseconds.format(microseconds);
    vec![
        if window.snapshot {
            format!("{:.0} to {:.0}", window.from, window.to)
        } else {
            format!("without it, {:.0}", window.to - window.from)
        },
        Unit::PerSecond.format(window.rate),
        time(window.hot.p50),
        time(window.hot.p99),
        time(window.cold.p50),
        time(window.cold.p99),
        time(window.lookup.p50),
        time(window.lookup.p99),
    ]
}

/// How everybody else fares.
fn others_beside_it(server: &mut Server, options: &Options, measured: &mut Measured) -> Result<()> {
    const PARTS: u32 = 8;
    let seconds = others_seconds(options);
    let mut table = Table::new(
        &format!("{seconds} s of each with a snapshot open, first and last part of its time"),
        &[
            "",
            "increments, first",
            "last",
            "read of the hot one, p50, first",
            "last",
            "p99, last",
        ],
    );
    let mut rates = Vec::new();
    let mut reads_of = Vec::new();
    for peer in OTHERS {
        println!("    {seconds} s with an open snapshot: {}", peer.name());
        let reset = peer.reset(Keys::Hot);
        if !reset.is_empty() {
            server.execute(&reset)?;
        }
        let snapshot = OldSnapshot::open(&server.cluster)?;
        let job = peer.job();
        let job = job
            .map(|sql| Job::start(&server.cluster, &sql))
            .transpose()?;
        let (writes, reads) = side_by_side(server, options, peer, seconds)?;
        if let Some(job) = job {
            job.stop()?;
        }
        snapshot.close()?;
        server.fold()?;
        let windows = windows(&writes, &reads, PARTS, true)?;
        let [first, .., last] = windows[..] else {
            unreachable!("at least two windows")
        };
        table.rows.push(vec![
            peer.name(),
            Unit::PerSecond.format(first.rate),
            Unit::PerSecond.format(last.rate),
            Unit::Microseconds.format(first.hot.p50),
            Unit::Microseconds.format(last.hot.p50),
            Unit::Microseconds.format(last.hot.p99),
        ]);
        let line = |of: fn(&Window) -> f64| {
            let points = windows.iter().map(|window| (window.to, of(window)));
            Line::new(peer.name(), points.collect())
        };
        rates.push(line(|window| window.rate));
        reads_of.push(line(|window| window.hot.p50));
    }
    measured.tables.push(table);
    measured.plots.push(Plot::lines(
        "snapshot",
        "increments while a snapshot is open",
        "increments per second",
        "seconds since it was taken",
        rates,
    ));
    measured.plots.push(Plot::lines(
        "snapshot-reads",
        "reads of the hot counter while a snapshot is open",
        "microseconds, median",
        "seconds since it was taken",
        reads_of,
    ));
    Ok(())
}

/// Writers and a reader at the same time.
fn side_by_side(
    server: &mut Server,
    options: &Options,
    peer: Peer,
    seconds: u32,
) -> Result<(Vec<Progress>, Vec<Logged>)> {
    let total = peer
        .total(Keys::Hot)
        .context("what is written can be read")?;
    let hot = peer.read("hot").context("what is written can be read")?;
    let before: i64 = server.one(&total)?;
    let script = peer.script(Keys::Hot, Batch::One);
    let writers = Pgbench::new(&server.cluster, options.clients, &script).start(seconds)?;
    server.wait_for_growth(&total, options.clients)?;
    let reads = Pgbench::new(&server.cluster, 1, &hot)
        .script("SELECT counter_value('x');")
        .script(LOOKUP)
        .run_logged(seconds)?;
    let (outcome, writes) = writers.finish()?;
    server.check(&peer.name(), &total, before + outcome.transactions)?;
    Ok((writes, reads))
}

/// What a latency at the end is of that at the beginning. First, what the look-up, which no
/// snapshot can slow, takes longer than at the beginning is taken off: so much longer takes any
/// round trip now, be it of 20 or of 500 microseconds.
fn growth(first: &Window, last: &Window, of: fn(&Window) -> f64) -> f64 {
    (of(last) - (last.lookup.p50 - first.lookup.p50)) / of(first)
}

/// Cuts the time in which both have run into `count` equal parts; into fewer, where a machine is so
/// busy, or a read takes so long, that nothing ended in one of them.
fn windows(
    writes: &[Progress],
    reads: &[Logged],
    count: u32,
    snapshot: bool,
) -> Result<Vec<Window>> {
    let mut count = count;
    loop {
        match cut(writes, reads, count.into(), snapshot) {
            Err(_) if count > 2 => count /= 2,
            windows => return windows,
        }
    }
}

fn cut(writes: &[Progress], reads: &[Logged], count: f64, snapshot: bool) -> Result<Vec<Window>> {
    let ends = |times: &mut dyn Iterator<Item = f64>| {
        times.fold((f64::INFINITY, f64::NEG_INFINITY), |(first, last), time| {
            (first.min(time), last.max(time))
        })
    };
    let (first_write, last_write) = ends(&mut writes.iter().map(|write| write.end));
    let (first_read, last_read) = ends(&mut reads.iter().map(|read| read.end));
    let (start, end) = (first_write.max(first_read), last_write.min(last_read));
    ensure!(end > start, "writers and reader have not run side by side");
    let length = (end - start) / count;
    (0..count as u32)
        .map(|number| {
            let from = start + f64::from(number) * length;
            let within = |time: f64| time > from && time <= from + length;
            let rates: Vec<f64> = writes
                .iter()
                .filter(|write| within(write.end))
                .map(|write| write.rate)
                .collect();
            ensure!(!rates.is_empty(), "the writers told of no progress");
            let latency = |script| {
                let of_script = |read: &&Logged| read.script == script && within(read.end);
                Latency::of(reads.iter().filter(of_script).map(|read| read.microseconds))
            };
            Ok(Window {
                snapshot,
                from: from - start,
                to: from - start + length,
                rate: rates.iter().sum::<f64>() / rates.len() as f64,
                hot: latency(HOT)?,
                cold: latency(COLD)?,
                lookup: latency(CONTROL)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_both_is_cut_into_windows() {
        let writes: Vec<Progress> = (1..=40)
            .map(|second| Progress {
                end: f64::from(second),
                rate: if second <= 20 { 100.0 } else { 50.0 },
            })
            .collect();
        let reads: Vec<Logged> = (0..390)
            .map(|tenth| Logged {
                script: tenth % 3,
                end: 1.0 + tenth as f64 / 10.0,
                microseconds: if tenth % 3 == HOT { 9 } else { 5 },
                lag: None,
            })
            .collect();
        let windows = windows(&writes, &reads, 4, true).unwrap();
        assert_eq!(windows.len(), 4);
        assert_eq!(windows[0].from, 0.0);
        assert_eq!((windows[0].rate, windows[3].rate), (100.0, 50.0));
        assert_eq!((windows[1].hot.p50, windows[1].cold.p50), (9.0, 5.0));
        // Progress is told once a second, so half of the 80 would have none, and of the 40 one.
        assert_eq!(self::windows(&writes, &reads, 80, true).unwrap().len(), 20);
    }

    #[test]
    fn a_slower_machine_is_no_growth() {
        let latency = |p50| Latency {
            mean: p50,
            p50,
            p99: p50,
        };
        let window = |hot, lookup| Window {
            snapshot: true,
            from: 0.0,
            to: 1.0,
            rate: 1.0,
            hot: latency(hot),
            cold: latency(1.0),
            lookup: latency(lookup),
        };
        let hot = |window: &Window| window.hot.p50;
        assert_eq!(growth(&window(500.0, 20.0), &window(530.0, 50.0), hot), 1.0);
        assert_eq!(growth(&window(500.0, 20.0), &window(750.0, 20.0), hot), 1.5);
    }

    #[test]
    fn a_run_without_reads_is_an_error() {
        let writes = [Progress {
            end: 1.0,
            rate: 1.0,
        }];
        assert!(windows(&writes, &[], 4, true).is_err());
    }
}
