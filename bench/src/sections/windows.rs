//! Counters that begin anew with each window: what that costs a call, and what their removal costs others.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postgres::Client;

use super::attach::{seconds_since_1970, within};
use crate::goals::Goal;
use crate::options::{Options, Section};
use crate::peers::{Batch, Keys, Peer};
use crate::pgbench::{Latency, Pgbench};
use crate::race::{Entry, Named, Pace, Turn, race, race_with, slice};
use crate::redis::{Counting, Fsync, Redis, programs};
use crate::report::{Measured, Table};
use crate::server::Server;
use crate::stats::{Series, Unit};

/// More than any run can take.
const MAX: i64 = 1_000_000_000_000;

/// How often before it is known how fast Redis is.
const TRY: u32 = 2000;

/// Calls per second while windows are removed.
const RATE: u32 = 500;

/// Clients that make them.
const PROBERS: u32 = 8;

/// How long the removal may take.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(600);

/// What changes a plain counter, one of a type whose windows are removed at that time, and one that has a bound as well.
/// Names are put together, as pgbench would take what follows a colon for a variable.
const PROBE: &str = "SELECT counter_incr('probe'), counter_incr('minute:' || 'probe'), \
     counter_try_incr('limit:' || 'probe'), counter_value('probe'), counter_value('minute:' || 'probe');";

enum Runner {
    Postgres(Entry),
    Redis {
        name: String,
        server: usize,
        how: Counting,
        /// How often in a turn.
        times: u32,
    },
}

impl Named for Runner {
    fn name(&self) -> &str {
        match self {
            Self::Postgres(entry) => &entry.name,
            Self::Redis { name, .. } => name,
        }
    }
}

/// A take of one of a counter that has room for all of them.
fn take(of: &str, name: &str, clients: u32) -> Entry {
    Entry::custom(
        name,
        &format!("SELECT counter_try_incr('{of}:' || 'hot');"),
        &format!("SELECT counter_value('{of}:hot')"),
        clients,
    )
}

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut measured = Measured::new(
        Section::Windows,
        format!(
            "{} clients take 1 of a counter that does not reach its maximum, each time in a transaction of its own, \
             with `pgbench -M prepared`: of a type with windows, with windows that slide, and without any. Windows \
             are months, so that none ends in mid-turn; a window's counter is the same row all the time, and \
             what is looked up when one begins is not in these figures. Of the counter that is full, each call is \
             refused.",
            options.clients
        ),
    );
    let mut server = Server::start("windows", options)?;
    server.execute(&format!(
        "SELECT counter_type_create('plain', max => {MAX});
         SELECT counter_type_create('window', max => {MAX}, per => '1 month');
         SELECT counter_type_create('slide', max => {MAX}, per => '1 month', sliding => true);
         SELECT counter_type_create('full', max => 0, per => '1 month')"
    ))?;
    calls(&mut server, options, &mut measured)?;
    beside_redis(&mut server, options, &mut measured)?;
    drop(server);
    removal(options, &mut measured)?;
    Ok(measured)
}

fn calls(server: &mut Server, options: &Options, measured: &mut Measured) -> Result<()> {
    let clients = options.clients;
    let window = take("window", "counter_try_incr, a window", clients);
    let plain = take("plain", "counter_try_incr, bounded", clients);
    let slide = take("slide", "counter_try_incr, a window that slides", clients);
    let full = Entry::custom(
        "counter_try_incr, a window that is full",
        "SELECT counter_try_incr('full:' || 'hot');",
        // Nothing is counted.
        "",
        clients,
    );
    let try_window = Entry::custom(
        "counter_try, a window",
        "SELECT granted, retry_at FROM counter_try('window:' || 'hot');",
        "SELECT counter_value('window:hot')",
        clients,
    );
    let unbounded = Entry::new(Peer::Counter, Keys::Hot, Batch::One, clients);
    let pace = Pace {
        rounds: options.rounds(),
        seconds: options.seconds(),
    };
    let title = format!("a hot counter with a window, {clients} clients, durable");
    let race = race(
        server,
        &title,
        pace,
        &[window, plain.clone(), slide, try_window, unbounded, full],
    )?;
    measured.goal(Goal::WindowOfBounded, race.row(&plain.name)?.ratio.clone());
    let slide = &race.row("counter_try_incr, a window that slides")?.rate;
    let what = "counter_try_incr: a window that slides, times the rate of a bounded counter";
    measured
        .ratios
        .push(slide.ratio_to(what, &race.row(&plain.name)?.rate)?);
    measured.races.push(race);
    server.check("the full counter", "SELECT counter_value('full:hot')", 0)
}

/// The same beside INCR with EXPIRE.
fn beside_redis(server: &mut Server, options: &Options, measured: &mut Measured) -> Result<()> {
    if programs().is_none() {
        measured.how += " There is no Redis here; `make bench` unpacks Debian's.";
        return Ok(());
    }
    let servers = [
        Redis::start(&server.cluster, Fsync::Always)?,
        Redis::start(&server.cluster, Fsync::EverySecond)?,
    ];
    let clients = options.clients;
    let seconds = options.seconds();
    let mut runners = Vec::new();
    let durable = take("window", "counter_try_incr, durable", clients);
    let asynchronous = durable
        .clone()
        .named("counter_try_incr, asynchronous")
        .asynchronous();
    let hits = Entry::custom(
        "counter_try_hit, durable",
        "SELECT counter_try_hit('window:' || 'hot');",
        "SELECT counter_value('window:hot')",
        clients,
    );
    runners.extend([durable, asynchronous, hits].map(Runner::Postgres));
    for (number, fsync) in ["always", "everysec"].into_iter().enumerate() {
        let redis = &servers[number];
        // redis-benchmark runs so many times, not so many seconds.
        let how = redis.limit()?;
        let rate = redis.count(&how, "warm", clients, 1, TRY)?;
        let rate = redis.count(&how, "warm", clients, 1, (rate / 2.0) as u32 + 1)?;
        runners.push(Runner::Redis {
            name: format!("Redis, a script, appendfsync {fsync}"),
            server: number,
            how,
            times: (rate * f64::from(seconds)) as u32 + 1,
        });
    }
    let title = format!("one hot limit, {clients} clients, and Redis");
    let race = race_with(
        server,
        &title,
        options.rounds(),
        &runners,
        |server, runner, _first| match runner {
            Runner::Postgres(entry) => slice(server, entry, seconds),
            Runner::Redis {
                server, how, times, ..
            } => Ok(Turn {
                rate: servers[*server].count(how, "hot", clients, 1, *times)?,
                wal_bytes: None,
            }),
        },
    )?;
    measured.how += &format!(
        " {}, from Debian, with an append-only file, runs a Lua script that is loaded before (`EVALSHA`): `INCR`, \
         `EXPIRE` where that is 1, and a comparison with the maximum; by redis-benchmark, as in section redis.",
        Redis::version()?
    );
    measured.races.push(race);
    Ok(())
}

/// What is counted of a type in a minute is removed when that has ended, beside others.
fn removal(options: &Options, measured: &mut Measured) -> Result<()> {
    let counters = options.size(100_000, 1_000_000);
    let mut server = Server::start("windows-removed", options)?;
    server.execute(&format!(
        "SELECT counter_type_create('minute', per => '1 minute');
         SELECT counter_type_create('limit', max => {MAX}, per => '1 minute')"
    ))?;
    let mut client = server.cluster.connect()?;
    wait_for_second(|second| second < 5)?;
    server.execute(&format!(
        "SELECT count(counter_incr('minute:' || i)) FROM generate_series(1, {counters}) i"
    ))?;
    // Not by `compact()`: a worker removes as well.
    server.settle()?;
    let stored: i64 =
        server.one("SELECT count(*) FROM counterx.total WHERE name LIKE 'minute:%'")?;
    ensure!(
        stored == i64::from(counters),
        "{stored} totals, and not {counters}: the minute was over too early"
    );
    let ends_at: f64 =
        server.one("SELECT extract(epoch FROM ends_at)::float8 FROM counter_window('minute:1')")?;
    server.execute("CHECKPOINT")?;
    let removed = Removed::watch(&mut client)?;
    let probers = Pgbench::new(&server.cluster, PROBERS, PROBE).rate(RATE);
    // Some seconds before the end, and all that it takes.
    let left = Duration::try_from_secs_f64(ends_at - seconds_since_1970()?).unwrap_or_default();
    thread::sleep(left.saturating_sub(Duration::from_secs(8)));
    let began = seconds_since_1970()?;
    let (log, times) = thread::scope(|scope| {
        let probing = scope.spawn(|| probers.run_logged(options.size(45, 90)));
        let times = removed.times(&mut client);
        let log = probing
            .join()
            .map_err(|_| anyhow::anyhow!("who ran pgbench has panicked"))?;
        Ok::<_, anyhow::Error>((log?, times?))
    })?;
    let (first, last) = times;
    let ended = log.iter().map(|call| call.end).fold(began, f64::max);
    ensure!(
        last < ended,
        "the removal took longer than the calls beside it: until {:.1} s after the window's end",
        last - ends_at
    );
    let mut table = Table::new(
        &format!(
            "{} counters of a window that has ended are removed",
            Unit::Count.format(f64::from(counters))
        ),
        &["calls", "number", "p50", "p99", "longest"],
    );
    let mut longest = 0;
    for (what, from, to) in [
        ("before the window's end", began + 1.0, ends_at),
        ("from its end until they were removed", ends_at, last),
        ("after that", last, f64::INFINITY),
    ] {
        let own: Vec<u64> = within(&log, from, to).collect();
        let most = own.iter().copied().max().context("nobody called")?;
        if from == ends_at {
            longest = most;
        }
        let latency = Latency::of(own.iter().copied())?;
        let time = |microseconds| Unit::Microseconds.format(microseconds);
        table.rows.push(vec![
            what.to_owned(),
            Unit::Count.format(own.len() as f64),
            time(latency.p50),
            time(latency.p99),
            time(most as f64),
        ]);
    }
    measured.tables.push(table);
    let one = |what: &str, unit, value| Series::new(what, unit, vec![value]);
    let what = "the longest call while windows are removed";
    let series = one(what, Unit::Seconds, longest as f64 / 1e6)?;
    if counters == 1_000_000 {
        measured.goal(Goal::WindowsRemoved, series);
    } else {
        measured.figures.push(series);
    }
    measured.figures.extend([
        one(
            "from the window's end until the first was removed",
            Unit::Seconds,
            first - ends_at,
        )?,
        one("from the first to the last", Unit::Seconds, last - first)?,
    ]);
    measured.how += &format!(
        " At last {} counters are called once in a minute, and folded. At its end {PROBERS} clients make {RATE} \
         transactions per second that change a plain counter, one of the type whose window has ended, and one of a \
         type with a window and a maximum, and read the first two, durably; the worker removes what was counted in it.",
        Unit::Count.format(f64::from(counters))
    );
    Ok(())
}

/// The first and the last of the totals that are removed, in the order in which that is done.
struct Removed {
    ends: [String; 2],
}

impl Removed {
    fn watch(client: &mut Client) -> Result<Self> {
        let row = client.query_one(
            "SELECT min(name), max(name) FROM counterx.total WHERE name LIKE 'minute:%'",
            &[],
        )?;
        Ok(Self {
            ends: [row.try_get(0)?, row.try_get(1)?],
        })
    }

    /// When they were gone, in seconds since 1970.
    fn times(&self, client: &mut Client) -> Result<(f64, f64)> {
        let look = client.prepare("SELECT EXISTS (SELECT FROM counterx.total WHERE name = $1)")?;
        let start = Instant::now();
        let mut gone = [0.0; 2];
        for (name, at) in self.ends.iter().zip(&mut gone) {
            while client.query_one(&look, &[name])?.try_get(0)? {
                ensure!(
                    start.elapsed() < REMOVAL_DEADLINE,
                    "windows are not removed"
                );
                thread::sleep(Duration::from_millis(20));
            }
            *at = seconds_since_1970()?;
        }
        Ok((gone[0], gone[1]))
    }
}

/// Waits for a second of the minute.
fn wait_for_second(is_right: impl Fn(u64) -> bool) -> Result<()> {
    while !is_right(seconds_since_1970()? as u64 % 60) {
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
