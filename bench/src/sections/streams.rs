//! Streams: what they cost those who count, and the fold; how soon somebody is told, and how long it takes to read.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postgres::Client;
use postgres::fallible_iterator::FallibleIterator;

use super::fold::{self, Came, EACH, RATE};
use crate::goals::Goal;
use crate::options::{Options, Section};
use crate::pgbench::{Latency, Pgbench};
use crate::race::{Entry, Pace, race};
use crate::report::{Latencies, Measured, Table};
use crate::server::Server;
use crate::stats::{Series, Unit, turns};

/// Servers, and how many streams on the counters of a load each has.
const SERVERS: [(&str, u32); 3] = [
    ("streams-none", 0),
    ("streams-one", 1),
    ("streams-hundred", 100),
];

/// What is folded, and how `:k` is drawn.
const LOADS: [(&str, Option<&str>); 2] = [
    ("ten hot counters", None),
    ("10,000 counters by lot", Some("random(1, 10000)")),
];

/// Rows of a page.
const PAGE: i32 = 1000;

/// Pages of a turn.
const PAGES: i32 = 20;

/// Between two commits that are hinted: streams are hinted ten times a second at most.
const BETWEEN: Duration = Duration::from_millis(130);

/// Of the other counters, per second, while hints are waited for.
const BESIDE: u32 = 500;

/// How long a hint may take before it is none.
const HINT_DEADLINE: Duration = Duration::from_secs(20);

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut measured = Measured::new(
        Section::Streams,
        format!(
            "First {} clients add to one counter, that of a stream and one that no stream covers. Then, as in section \
             fold, {RATE} transactions per second that change {EACH} counters each, on servers without streams, with \
             one on all counters, and with a hundred on the same ones: the worker's processor time for a delta. Nobody \
             reads them meanwhile; between turns all begin anew. Then one client counts, at most every {} ms and at \
             no set time, and another one waits for the notification: from the answer to the commit until it is there, less \
             `counterx.compaction_interval`, which is 200 ms here; with nothing else to do, and beside {BESIDE} transactions per second of \
             other counters of the same stream's database. At last a consumer reads {PAGES} pages of {PAGE} rows, \
             each in a transaction of its own, durably.",
            options.clients,
            BETWEEN.as_millis(),
        ),
    );
    counting(options, &mut measured)?;
    folding(options, &mut measured)?;
    // So that many can be waited for.
    let interval = [("counterx.compaction_interval", "200ms")];
    let mut server = Server::start_with("streams-read", options, &interval)?;
    hints(&mut server, options, &mut measured)?;
    pages(&mut server, options, &mut measured)?;
    Ok(measured)
}

/// The rate of increments.
fn counting(options: &Options, measured: &mut Measured) -> Result<()> {
    let mut server = Server::start("streams", options)?;
    server.execute("SELECT counter_stream_create('told', prefix => 'told:')")?;
    server.execute("SELECT counter_stream_bootstrap('told')")?;
    // Each is put together, as pgbench would take what follows a colon for a variable.
    let entry = |of: &str, name: &str| {
        Entry::custom(
            name,
            &format!("SELECT counter_incr('{of}:' || 'hot');"),
            &format!("SELECT counter_value('{of}:hot')"),
            options.clients,
        )
    };
    let pace = Pace {
        rounds: options.rounds(),
        seconds: options.seconds(),
    };
    let title = format!("counter_incr, {} clients, durable", options.clients);
    let told = entry("told", "a counter of a stream");
    let other = entry("other", "a counter of none");
    let race = race(&mut server, &title, pace, &[told, other.clone()])?;
    measured.goal(Goal::StreamIncrements, race.row(&other.name)?.ratio.clone());
    measured.races.push(race);
    let state: String = server.one("SELECT state FROM counter_streams")?;
    ensure!(state == "live", "the stream is {state}");
    Ok(())
}

/// The processor time of folds.
fn folding(options: &Options, measured: &mut Measured) -> Result<()> {
    let seconds = options.seconds() * 2;
    let mut servers = Vec::new();
    for (name, streams) in SERVERS {
        let mut server = Server::start(name, options)?;
        for number in 0..streams {
            server.execute(&format!("SELECT counter_stream_create('all-{number}')"))?;
        }
        servers.push((server, streams));
    }
    let what = |streams: u32| match streams {
        0 => "no stream".to_owned(),
        1 => "one stream".to_owned(),
        many => format!("{many} streams"),
    };
    let mut table = Table::new(
        "folding, medians",
        &[
            "",
            "increments reached",
            "worker's share of a processor",
            "worker's time for a delta",
            "times that without",
            "WAL for an increment, in all",
        ],
    );
    for (load, draw) in LOADS {
        let mut all: [Vec<Came>; SERVERS.len()] = Default::default();
        for round in 0..options.few_rounds() {
            for turn in turns(round, SERVERS.len()) {
                let (server, streams) = &mut servers[turn];
                begin(server, *streams)?;
                let script = fold::script("told:", draw);
                let name = format!("{load}, {}", what(*streams));
                all[turn].push(fold::turn(server, options, &name, &script, seconds)?);
                let live: i64 =
                    server.one("SELECT count(*) FROM counter_streams WHERE state = 'live'")?;
                ensure!(
                    live == i64::from(*streams),
                    "{live} of {streams} streams are live: something else was measured"
                );
            }
        }
        let series = |came: &[Came], what: &str, unit, of: fn(&Came) -> f64| {
            let values = came.iter().map(of).collect();
            Series::new(format!("{load}, {what}"), unit, values)
        };
        let mut times = Vec::new();
        for ((_, streams), came) in SERVERS.into_iter().zip(&all) {
            let what = what(streams);
            let reached = series(came, &what, Unit::PerSecond, |came| came.reached)?;
            let share = series(came, &what, Unit::Share, |came| came.share)?;
            let wal = series(came, &what, Unit::Bytes, |came| came.wal)?;
            let each = format!("{what}: worker's time for a delta");
            let each = series(came, &each, Unit::Microseconds, |came| came.each)?;
            times.push(each);
            let each = &times[times.len() - 1];
            let ratio = each.ratio_to(format!("{}, times that without", each.what), &times[0])?;
            table.rows.push(vec![
                format!("{load}, {what}"),
                Unit::PerSecond.format(reached.median),
                Unit::Share.format(share.median),
                format!("{:.2} µs", each.median),
                Unit::Ratio.format(ratio.median),
                Unit::Bytes.format(wal.median),
            ]);
            if streams == 1 {
                let goal = match draw {
                    None => Goal::StreamFoldHot,
                    Some(_) => Goal::StreamFold,
                };
                measured.goal(goal, ratio.clone());
            }
            if streams > 0 {
                measured.ratios.push(ratio);
            }
        }
        let [_, one, hundred] = &times[..] else {
            unreachable!("one of each server")
        };
        let ratio = hundred.ratio_to(format!("{}, times that with one", hundred.what), one)?;
        if draw.is_some() {
            measured.goal(Goal::StreamHundred, ratio.clone());
        }
        measured.ratios.push(ratio);
        measured.figures.extend(times);
    }
    measured.tables.push(table);
    Ok(())
}

/// Starts all streams of a server, or begins them anew: nothing is unread.
fn begin(server: &mut Server, streams: u32) -> Result<()> {
    for number in 0..streams {
        server.execute(&format!(
            "SELECT count(*) FROM counter_stream_bootstrap('all-{number}')"
        ))?;
    }
    Ok(())
}

/// From a commit to its hint.
fn hints(server: &mut Server, options: &Options, measured: &mut Measured) -> Result<()> {
    server.execute("SELECT counter_stream_create('hints', prefix => 'hint:')")?;
    server.execute("SELECT counter_stream_bootstrap('hints')")?;
    let interval: i64 = server.one(
        "SELECT (extract(epoch FROM current_setting('counterx.compaction_interval')::interval) * 1000000)::bigint",
    )?;
    let mut counting = server.cluster.connect()?;
    let mut listening = server.cluster.connect()?;
    listening.batch_execute("LISTEN counterx")?;
    let times = options.size(30, 100);
    for busy in [false, true] {
        let what = if busy {
            "commit to notification, beside others"
        } else {
            "commit to notification"
        };
        let mut latencies = Vec::new();
        for _ in 0..options.few_rounds() {
            let others = busy
                .then(|| {
                    Pgbench::new(
                        &server.cluster,
                        options.clients,
                        "SELECT counter_incr('other-hot');",
                    )
                    .rate(BESIDE)
                    .start(1_000_000)
                })
                .transpose()?;
            if busy {
                server.wait_for_growth("SELECT counter_value('other-hot')", BESIDE)?;
            }
            let mut all = Vec::new();
            for number in 0..times {
                all.push(hint(&mut counting, &mut listening, number)?);
            }
            if let Some(others) = others {
                others.stop()?;
                server.wait_for_no_pgbench()?;
            }
            server.settle()?;
            latencies.push(Latency::of(all.into_iter())?);
        }
        let series = |of: fn(&Latency) -> f64, part: &str| {
            let values = latencies.iter().map(of).collect();
            Series::new(format!("{what}: {part}"), Unit::Microseconds, values)
        };
        let beyond = (latencies.iter())
            .map(|latency| latency.p99 - interval as f64)
            .collect();
        let beyond = Series::new(
            format!("{what}: p99, less compaction_interval"),
            Unit::Microseconds,
            beyond,
        )?;
        if busy {
            measured.figures.push(beyond);
        } else {
            measured.goal(Goal::StreamHint, beyond);
        }
        measured.latencies.push(Latencies {
            mean: series(|latency| latency.mean, "mean")?,
            p50: series(|latency| latency.p50, "p50")?,
            p99: series(|latency| latency.p99, "p99")?,
            what: what.to_owned(),
        });
    }
    Ok(())
}

/// Microseconds from a commit until it is told of.
fn hint(counting: &mut Client, listening: &mut Client, number: u32) -> Result<u64> {
    // The last hint is known, and the next one may come at once; and the worker is somewhere in its interval.
    thread::sleep(BETWEEN + Duration::from_millis(u64::from(number) * 37 % 101));
    while listening.notifications().iter().next()?.is_some() {}
    counting.execute(
        "SELECT counter_incr('hint:' || $1::integer % 10)",
        &[&(number as i32)],
    )?;
    let committed = Instant::now();
    let mut notifications = listening.notifications();
    let notification = notifications
        .timeout_iter(HINT_DEADLINE)
        .next()?
        .context("nobody was told of a commit")?;
    ensure!(
        notification.payload() == "hints",
        "told of {}",
        notification.payload()
    );
    Ok(committed.elapsed().as_micros().try_into()?)
}

/// How long a page takes.
fn pages(server: &mut Server, options: &Options, measured: &mut Measured) -> Result<()> {
    server.execute("SELECT counter_stream_create('pages', prefix => 'page:')")?;
    server.execute("SELECT count(*) FROM counter_stream_bootstrap('pages')")?;
    let mut client = server.cluster.connect()?;
    let next = client.prepare("SELECT * FROM counter_stream_next('pages', $1)")?;
    let mut medians = Vec::new();
    let mut longest = Vec::new();
    // One more than counts: what is read for the first time.
    for round in 0..=options.few_rounds() {
        server.execute(&format!(
            "SELECT count(counter_incr('page:' || n)) FROM generate_series(1, {}) n",
            PAGE * PAGES
        ))?;
        server.fold()?;
        let mut all = Vec::new();
        for _ in 0..PAGES {
            let start = Instant::now();
            let rows = client.query(&next, &[&PAGE])?;
            all.push(u64::try_from(start.elapsed().as_micros())?);
            ensure!(
                rows.len() == PAGE as usize,
                "a page has {} rows",
                rows.len()
            );
        }
        ensure!(client.query(&next, &[&PAGE])?.is_empty(), "more is unread");
        if round > 0 {
            let latency = Latency::of(all.iter().copied())?;
            medians.push(latency.p50);
            longest.push(latency.p99);
        }
    }
    let what = format!("counter_stream_next, {PAGE} rows");
    measured.goal(
        Goal::StreamNext,
        Series::new(format!("{what}: median"), Unit::Microseconds, medians)?,
    );
    measured.figures.push(Series::new(
        format!("{what}: longest"),
        Unit::Microseconds,
        longest,
    )?);
    Ok(())
}
