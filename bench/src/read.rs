//! Section C: point reads.

use anyhow::Result;

use crate::contenders::{COUNTER, CREATE, Contender, RESET, SLOTS, UPDATE};
use crate::options::{Options, Section};
use crate::pgbench::{Latency, Pgbench, Protocol};
use crate::report::{Latencies, Measured, Target, Wanted};
use crate::server::Server;
use crate::stats::{Unit, turns};

/// Times the latency of a look-up.
const OF_LOOKUP: f64 = 1.5;

/// A counter and a row of the same name among so many others, so that no index is a single page.
const OTHERS: u32 = 10_000;

/// By its primary key, a row that has the same name as the counter.
pub(crate) const LOOKUP: &str = "SELECT n FROM plain WHERE name = 'x';";

/// Longer than any slice: these writers are stopped.
const FOR_EVER: u32 = 1_000_000;

/// Reads that one session makes, in an order drawn by lot, so that whatever befalls it befalls
/// them alike: a session of its own for each would mostly compare which processors they got.
struct Session {
    protocol: Protocol,
    /// Who writes meanwhile.
    writers: Option<Contender>,
    reads: Vec<Read>,
}

#[derive(Clone)]
struct Read {
    what: &'static str,
    script: String,
}

impl Read {
    fn new(what: &'static str, script: impl Into<String>) -> Self {
        let script = script.into();
        Self { what, script }
    }
}

impl Session {
    /// The look-up goes last, always.
    fn new(protocol: Protocol, writers: Option<Contender>, mut reads: Vec<Read>) -> Self {
        reads.push(Read::new("look-up", LOOKUP));
        Self {
            protocol,
            writers,
            reads,
        }
    }

    fn name(&self) -> String {
        match &self.writers {
            Some(writers) => format!("beside {}", writers.name),
            None => format!("nothing pending, {}", self.protocol.name()),
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut server = Server::start("bench-read", options.clients)?;
    server.execute(CREATE)?;
    server.execute(RESET)?;
    fill(&mut server)?;
    let has_view: bool = server.one("SELECT to_regclass('counters') IS NOT NULL")?;
    let sessions = sessions(has_view);

    // By session, then round, then read.
    let mut latencies = vec![Vec::new(); sessions.len()];
    for round in 0..options.rounds {
        server.execute(RESET)?;
        for turn in turns(round, sessions.len()) {
            let session = &sessions[turn];
            let measured = slice(&mut server, session, options)?;
            for (read, latency) in session.reads.iter().zip(&measured) {
                println!(
                    "  round {}: {}, {}: {}",
                    round + 1,
                    read.what,
                    session.name(),
                    Unit::Microseconds.format(latency.mean)
                );
            }
            latencies[turn].push(measured);
        }
    }

    let mut measured = Measured::new(
        Section::C,
        format!(
            "One client reads one value at a time, among {OTHERS} others: in each session several \
             kinds of reads, in an order drawn by lot. The look-up is that of a row by its primary \
             key, which nobody writes. Where it says *beside*, {} clients write at full speed what \
             is read, but for the look-up: how that fares tells how busy the machine is. Ratios are \
             of mean latencies.",
            options.clients
        ),
    );
    for (session, rounds) in sessions.iter().zip(&latencies) {
        let mut all = Vec::new();
        for (number, read) in session.reads.iter().enumerate() {
            let what = format!("{}, {}", read.what, session.name());
            let of_read: Vec<Latency> = rounds.iter().map(|round| round[number]).collect();
            all.push(Latencies::new(&what, &of_read)?);
        }
        let (lookup, others) = all.split_last().unwrap_or_else(|| unreachable!());
        for other in others {
            let what = format!("{}, times the look-up", other.what);
            let ratio = other.mean.ratio_to(what, &lookup.mean)?;
            measured.ratios.push(ratio.clone());
            if session.writers.is_none() && other.what.starts_with("counter_value") {
                let target = Target::new(ratio, Wanted::AtMost(OF_LOOKUP));
                measured.targets.push(target);
            }
        }
        measured.latencies.extend(all);
    }
    Ok(measured)
}

/// One counter and one row of the name `x`, among others; all folded, vacuumed and analyzed.
fn fill(server: &mut Server) -> Result<()> {
    server.execute(&format!(
        "CREATE TABLE plain (name text PRIMARY KEY, n bigint NOT NULL);
         INSERT INTO plain SELECT 'name-' || i, i FROM generate_series(1, {OTHERS}) AS i;
         INSERT INTO plain VALUES ('x', 42);
         SELECT count(counter_incr('name-' || i, i)) FROM generate_series(1, {OTHERS}) AS i;
         SELECT counter_incr('x', 42);
         SELECT counter_incr('hot');"
    ))?;
    server.settle()?;
    server.check("the counter x", "SELECT counter_value('x')", 42)?;
    // Not within a transaction block, so each by itself.
    server.execute("VACUUM (ANALYZE)")?;
    server.execute("CHECKPOINT")
}

fn sessions(has_view: bool) -> Vec<Session> {
    let counter = |name: &str| {
        let mut reads = vec![Read::new(
            "counter_value",
            format!("SELECT counter_value('{name}');"),
        )];
        if has_view {
            reads.push(Read::new(
                "view counters",
                format!("SELECT value FROM counters WHERE name = '{name}';"),
            ));
        }
        reads
    };
    vec![
        Session::new(Protocol::Prepared, None, counter("x")),
        Session::new(Protocol::Simple, None, counter("x")),
        Session::new(Protocol::Prepared, Some(COUNTER), counter("hot")),
        Session::new(
            Protocol::Prepared,
            Some(UPDATE),
            vec![Read::new("the one row", UPDATE.total)],
        ),
        Session::new(
            Protocol::Prepared,
            Some(SLOTS),
            vec![Read::new("sum of the slots", SLOTS.total)],
        ),
    ]
}

/// One turn: the latency of each of the session's reads.
fn slice(server: &mut Server, session: &Session, options: &Options) -> Result<Vec<Latency>> {
    let writers = match session.writers {
        Some(writers) => {
            let running =
                Pgbench::new(&server.cluster, options.clients, writers.script).start(FOR_EVER)?;
            server.wait_for_growth(writers.total, options.clients)?;
            Some(running)
        }
        None => None,
    };
    let [first, rest @ ..] = &session.reads[..] else {
        unreachable!("a session has reads")
    };
    let reader = Pgbench::new(&server.cluster, 1, &first.script).protocol(session.protocol);
    let log = rest
        .iter()
        .fold(reader, |reader, read| reader.script(&read.script))
        .run_logged(options.seconds)?;
    if let Some(writers) = writers {
        writers.stop()?;
        server.wait_for_no_pgbench()?;
    }
    server.settle()?;
    (0..session.reads.len())
        .map(|number| {
            let of_read = log.iter().filter(|logged| logged.script == number);
            Latency::of(of_read.map(|logged| logged.microseconds))
        })
        .collect()
}
