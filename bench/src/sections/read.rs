//! Point reads, alone and beside writers.

use anyhow::{Context, Result};

use crate::goals::Goal;
use crate::job::Job;
use crate::options::{Options, Section};
use crate::peers::{Batch, Keys, MANY, Peer};
use crate::pgbench::{Latency, Pgbench, Protocol};
use crate::plot::{Bar, Plot};
use crate::report::{Latencies, Measured};
use crate::server::Server;
use crate::stats::{Unit, turns};

/// By its primary key, a row that has the same name as the counter.
pub(crate) const LOOKUP: &str = "SELECT n FROM plain WHERE name = 'x';";

/// The table of the look-up, and as many counters: among so many, no index is a single page.
pub(crate) fn fill(server: &mut Server) -> Result<()> {
    server.execute(&format!(
        "CREATE TABLE plain (name text PRIMARY KEY, n bigint NOT NULL);
         INSERT INTO plain SELECT 'name-' || i, i FROM generate_series(1, {MANY}) AS i;
         INSERT INTO plain VALUES ('x', 42);
         SELECT count(counter_incr('name-' || i, i)) FROM generate_series(1, {MANY}) AS i;
         SELECT counter_incr('x', 42);
         SELECT counter_incr('hot');"
    ))?;
    server.fold()?;
    server.check("the counter x", "SELECT counter_value('x')", 42)?;
    // Not within a transaction block, so each by itself.
    server.execute("VACUUM (ANALYZE)")?;
    server.execute("CHECKPOINT")
}

/// Longer than any slice: these writers are stopped.
const FOR_EVER: u32 = 1_000_000;

/// Those whose hot counter is read beside its writers.
const WRITERS: [Peer; 7] = [
    Peer::Counter,
    Peer::Hit,
    Peer::Update,
    Peer::Slots(100),
    Peer::SummedLog,
    Peer::FoldedLog { indexed: true },
    Peer::MaterializedView,
];

/// Reads that one session makes, in an order drawn by lot, so that whatever befalls it befalls
/// them alike: a session of its own for each would mostly compare which processors they got.
struct Session {
    protocol: Protocol,
    /// Who writes meanwhile.
    writers: Option<Peer>,
    /// What, and how. The look-up goes last, always.
    reads: Vec<(&'static str, String)>,
}

impl Session {
    fn name(&self) -> String {
        match &self.writers {
            Some(writers) => format!("beside {}", writers.name()),
            None => format!("nothing pending, {}", self.protocol.name()),
        }
    }
}

fn sessions() -> Vec<Session> {
    let view = |name: &str| format!("SELECT value FROM counters WHERE name = '{name}';");
    let value = |name: &str| Peer::Counter.read(name).unwrap_or_default();
    let alone = |protocol| Session {
        protocol,
        writers: None,
        reads: vec![("counter_value", value("x")), ("view counters", view("x"))],
    };
    let beside = WRITERS.iter().map(|&peer| {
        let reads = match peer {
            Peer::Counter => vec![
                ("counter_value of the hot counter", value("hot")),
                ("view counters", view("hot")),
                ("counter_value of a cold one", value("x")),
            ],
            _ => vec![("the hot counter", peer.read("hot").unwrap_or_default())],
        };
        Session {
            protocol: Protocol::Prepared,
            writers: Some(peer),
            reads,
        }
    });
    let mut sessions: Vec<Session> = [alone(Protocol::Prepared), alone(Protocol::Simple)]
        .into_iter()
        .chain(beside)
        .collect();
    for session in &mut sessions {
        session.reads.push(("look-up", LOOKUP.to_owned()));
    }
    sessions
}

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut server = Server::start("read", options)?;
    fill(&mut server)?;
    for peer in WRITERS {
        server.execute(&peer.create(Keys::Hot))?;
    }
    let sessions = sessions();
    // By session, then round, then read.
    let mut latencies = vec![Vec::new(); sessions.len()];
    for round in 0..options.rounds() {
        for peer in WRITERS {
            server.execute(&peer.reset(Keys::Hot))?;
        }
        for turn in turns(round, sessions.len()) {
            let session = &sessions[turn];
            let measured = slice(&mut server, session, options)?;
            for ((what, _), latency) in session.reads.iter().zip(&measured) {
                println!(
                    "    round {}: {what}, {}: {}",
                    round + 1,
                    session.name(),
                    Unit::Microseconds.format(latency.mean)
                );
            }
            latencies[turn].push(measured);
        }
    }

    let mut measured = Measured::new(
        Section::Read,
        format!(
            "One client reads one value at a time, among {MANY} others: in each session several kinds of \
             reads, in an order drawn by lot. The look-up is that of a row by its primary key, which \
             nobody writes. Where it says *beside*, {} clients write at full speed what is read, but for \
             the look-up and the cold counter: how the look-up fares tells how busy the machine is. \
             Ratios are of median latencies, and of p99 where it says so. What the materialized view \
             answers is up to a second and a refresh old; all others answer what was committed.",
            options.clients
        ),
    );
    let mut bars = Vec::new();
    for (session, rounds) in sessions.iter().zip(&latencies) {
        let mut all = Vec::new();
        for (number, (what, _)) in session.reads.iter().enumerate() {
            let what = format!("{what}, {}", session.name());
            let of_read: Vec<Latency> = rounds.iter().map(|round| round[number]).collect();
            all.push(Latencies::new(&what, &of_read)?);
        }
        let (lookup, others) = all.split_last().context("a session has reads")?;
        for (place, other) in others.iter().enumerate() {
            let what = format!("{}, times the look-up", other.what);
            let p50 = other.p50.ratio_to(&what, &lookup.p50)?;
            let p99 = other.p99.ratio_to(format!("{what}, p99"), &lookup.p99)?;
            match (session.writers, session.protocol, place) {
                (None, Protocol::Prepared, 0) => {
                    measured.goal(Goal::ReadOfLookup, p50.clone());
                }
                (Some(Peer::Counter), _, 0) => {
                    measured.goal(Goal::BusyReadOfLookup, p99.clone());
                    measured.goal(Goal::BusyMedianOfLookup, p50.clone());
                }
                (Some(Peer::Hit), _, 0) => measured.goal(Goal::HitsReadOfLookup, p50.clone()),
                _ => {}
            }
            if session.writers.is_some() && place == 0 {
                let name = session.name().replace("beside ", "");
                bars.push(Bar::new(&name, &other.p99));
            }
            measured.ratios.push(p50);
            if session.writers.is_some() {
                measured.ratios.push(p99);
            }
        }
        measured.latencies.extend(all);
    }
    bars.sort_by(|a: &Bar, b| a.value.total_cmp(&b.value));
    measured.plots.push(Plot::bars(
        "read",
        &format!(
            "read of the hot counter beside its {} writers",
            options.clients
        ),
        "microseconds, p99",
        bars,
    ));
    Ok(measured)
}

/// One turn: the latency of each of the session's reads.
fn slice(server: &mut Server, session: &Session, options: &Options) -> Result<Vec<Latency>> {
    let mut beside = None;
    if let Some(peer) = session.writers {
        let job = peer.job();
        let job = job
            .map(|sql| Job::start(&server.cluster, &sql))
            .transpose()?;
        let script = peer.script(Keys::Hot, Batch::One);
        let writers = Pgbench::new(&server.cluster, options.clients, &script).start(FOR_EVER)?;
        let total = peer
            .total(Keys::Hot)
            .context("what is written can be read")?;
        server.wait_for_growth(&total, options.clients)?;
        beside = Some((writers, job));
    }
    let [(_, first), rest @ ..] = &session.reads[..] else {
        unreachable!("a session has reads")
    };
    let reader = Pgbench::new(&server.cluster, 1, first).protocol(session.protocol);
    let log = rest
        .iter()
        .fold(reader, |reader, (_, script)| reader.script(script))
        .run_logged(options.seconds())?;
    if let Some((writers, job)) = beside {
        writers.stop()?;
        server.wait_for_no_pgbench()?;
        if let Some(job) = job {
            job.stop()?;
        }
    }
    server.fold()?;
    (0..session.reads.len())
        .map(|number| {
            let of_read = log.iter().filter(|logged| logged.script == number);
            Latency::of(of_read.map(|logged| logged.microseconds))
        })
        .collect()
}
