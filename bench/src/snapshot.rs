//! Section D: an open REPEATABLE READ snapshot.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use counterx_harness::Cluster;
use postgres::Client;

use crate::contenders::COUNTER;
use crate::hot::slice;
use crate::options::{Options, Section};
use crate::pgbench::{Latency, Logged, Pgbench, Progress};
use crate::read::LOOKUP;
use crate::report::{Measured, Target, Wanted, Window};
use crate::server::Server;
use crate::stats::{Series, Unit, turns};

/// Of the rate without one.
const OF_RATE: f64 = 0.9;

/// No growth, but for the noise of medians.
const GROWTH: f64 = 1.1;

/// The part of the long run that counts as its beginning, and as its end, in seconds; of a
/// shorter run a quarter.
const WINDOW: f64 = 60.0;

/// Scripts of the reader, by their number in the log.
const HOT: usize = 0;
const COLD: usize = 1;
const CONTROL: usize = 2;

const LOG_BYTES_SQL: &str = "SELECT sum(log_bytes)::bigint FROM counterx.lanes";

/// A session that sits idle in a transaction which has taken its snapshot.
struct OldSnapshot {
    client: Client,
    value: i64,
}

impl OldSnapshot {
    fn open(cluster: &Cluster) -> Result<Self> {
        let mut client = cluster.connect()?;
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
        let value = client.query_one(COUNTER.total, &[])?.get(0);
        Ok(Self { client, value })
    }

    /// Ends it, after another look at the counter; returns the seconds that this took.
    fn close(mut self) -> Result<f64> {
        let start = Instant::now();
        let value: i64 = self
            .client
            .query_one(COUNTER.total, &[])
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
    let mut server = Server::start("bench-snapshot", options.clients)?;
    server.execute(
        "CREATE TABLE plain (name text PRIMARY KEY, n bigint NOT NULL);
         INSERT INTO plain VALUES ('x', 42);
         SELECT counter_incr('x', 42);
         SELECT counter_incr('hot');",
    )?;
    slice(&mut server, &COUNTER, options.clients, 1)?;
    server.settle()?;
    server.execute("VACUUM (ANALYZE)")?;
    server.execute("CHECKPOINT")?;

    let mut measured = Measured::new(
        Section::D,
        format!(
            "A session sits idle in a REPEATABLE READ transaction that has read the hot counter. \
             First in turns, without it and with it open for a slice, with {} clients that \
             increment. Then for {} s on end, with a reader beside them that reads, in random \
             order, the hot counter, a cold one, and, by its primary key, a row that nobody writes. \
             The same follows for a while without it. Of the last table, the first row is the \
             beginning and the last one with the snapshot is the end: compared are the median \
             latencies, less what the look-up's has grown by, for that is the machine.",
            options.clients, options.old_snapshot_seconds
        ),
    );
    in_turns(&mut server, options, &mut measured)?;
    on_end(&mut server, options, &mut measured)?;
    Ok(measured)
}

fn in_turns(server: &mut Server, options: &Options, measured: &mut Measured) -> Result<()> {
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..options.rounds {
        for turn in turns(round, 2) {
            let snapshot = (turn == 1)
                .then(|| OldSnapshot::open(&server.cluster))
                .transpose()?;
            let outcome = slice(server, &COUNTER, options.clients, options.seconds)?;
            println!(
                "  round {}: {} an open snapshot: {}",
                round + 1,
                if snapshot.is_some() {
                    "with"
                } else {
                    "without"
                },
                Unit::PerSecond.format(outcome.rate)
            );
            rates[turn].push(outcome.rate);
            if let Some(snapshot) = snapshot {
                snapshot.close()?;
            }
            server.settle()?;
        }
    }
    let [without, with] = rates;
    let without = Series::new("increments, without a snapshot", Unit::PerSecond, without)?;
    let with = Series::new("increments, with an open snapshot", Unit::PerSecond, with)?;
    let ratio = with.ratio_to("open snapshot, of the rate without it", &without)?;
    measured.ratios.push(ratio.clone());
    measured
        .targets
        .push(Target::new(ratio, Wanted::AtLeast(OF_RATE)));
    measured.figures.extend([without, with]);
    Ok(())
}

fn on_end(server: &mut Server, options: &Options, measured: &mut Measured) -> Result<()> {
    let seconds = options.old_snapshot_seconds;
    println!("  {seconds} s with an open snapshot");
    let bytes_before: i64 = server.one(LOG_BYTES_SQL)?;
    let snapshot = OldSnapshot::open(&server.cluster)?;
    let (writes, reads) = side_by_side(server, options.clients, seconds)?;
    let count = (f64::from(seconds) / WINDOW).round().max(4.0);
    let mut windows = windows(&writes, &reads, count, true)?;
    let bytes_after: i64 = server.one(LOG_BYTES_SQL)?;
    let old_read = snapshot.close()?;
    server.settle()?;

    // The machine of five minutes ago is another one, so the end has a neighbour without it.
    let seconds_without = (seconds / 4).min(WINDOW as u32 / 2);
    println!("  {seconds_without} s without it");
    let (writes, reads) = side_by_side(server, options.clients, seconds_without)?;
    let without = self::windows(&writes, &reads, 1.0, false)?[0];
    server.settle()?;

    let [first, .., last] = windows[..] else {
        unreachable!("at least four windows")
    };
    let one = |what: &str, unit, value| Series::new(what, unit, vec![value]);
    let rate = one(
        &format!("open snapshot for {seconds} s, its end of the rate right after it"),
        Unit::Ratio,
        last.rate / without.rate,
    )?;
    measured.ratios.push(rate.clone());
    measured
        .targets
        .push(Target::new(rate, Wanted::AtLeast(OF_RATE)));
    for (what, growth) in [
        ("hot", growth(&first, &last, |window| window.hot.p50)),
        ("cold", growth(&first, &last, |window| window.cold.p50)),
    ] {
        let what = format!("read of the {what} counter, end of {seconds} s against beginning");
        let growth = one(&what, Unit::Ratio, growth)?;
        measured.ratios.push(growth.clone());
        measured
            .targets
            .push(Target::new(growth, Wanted::AtMost(GROWTH)));
    }
    measured.ratios.push(one(
        &format!("increments, end of {seconds} s against beginning"),
        Unit::Ratio,
        last.rate / first.rate,
    )?);
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
    measured.windows = windows;
    Ok(())
}

/// Writers and a reader at the same time.
fn side_by_side(
    server: &mut Server,
    clients: u32,
    seconds: u32,
) -> Result<(Vec<Progress>, Vec<Logged>)> {
    let before: i64 = server.one(COUNTER.total)?;
    let writers = Pgbench::new(&server.cluster, clients, COUNTER.script).start(seconds)?;
    server.wait_for_growth(COUNTER.total, clients)?;
    let reads = Pgbench::new(&server.cluster, 1, COUNTER.total)
        .script("SELECT counter_value('x');")
        .script(LOOKUP)
        .run_logged(seconds)?;
    let (outcome, writes) = writers.finish()?;
    server.check(COUNTER.name, COUNTER.total, before + outcome.transactions)?;
    Ok((writes, reads))
}

/// What a latency at the end is of that at the beginning. First, what the look-up, which no
/// snapshot can slow, takes longer than at the beginning is taken off: so much longer takes any
/// round trip now, be it of 20 or of 500 microseconds.
fn growth(first: &Window, last: &Window, of: fn(&Window) -> f64) -> f64 {
    (of(last) - (last.lookup.p50 - first.lookup.p50)) / of(first)
}

/// Cuts the time in which both have run into `count` equal parts.
fn windows(
    writes: &[Progress],
    reads: &[Logged],
    count: f64,
    snapshot: bool,
) -> Result<Vec<Window>> {
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
            })
            .collect();
        let windows = windows(&writes, &reads, 4.0, true).unwrap();
        assert_eq!(windows.len(), 4);
        assert_eq!(windows[0].from, 0.0);
        assert_eq!((windows[0].rate, windows[3].rate), (100.0, 50.0));
        assert_eq!((windows[1].hot.p50, windows[1].cold.p50), (9.0, 5.0));
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
        assert!(windows(&writes, &[], 4.0, true).is_err());
    }
}
