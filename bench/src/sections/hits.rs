//! Hits: increments that count by themselves, many in one commit.

use anyhow::{Context, Result};

use crate::goals::Goal;
use crate::options::{Options, Section};
use crate::peers::{Batch, Keys, Peer};
use crate::pgbench::{Latency, Pgbench};
use crate::race::{Entry, Named, Pace, Race, Turn, race, race_with};
use crate::report::{Latencies, Measured};
use crate::server::Server;
use crate::stats::{Series, Unit, turns};

/// Beside the chosen number.
const CLIENTS: [u32; 3] = [1, 8, 128];

/// Of each kind, where two kinds write at the same time.
const BESIDE: u32 = 16;

const HIT: &str = "SELECT counter_hit('hit');";

/// More than any run can take.
const STOCK: i64 = 1_000_000_000_000;

/// Each flush takes so many microseconds more: as a disk that takes long to flush.
const SLOW_FLUSH: [(&str, &str); 2] = [("commit_delay", "2000"), ("commit_siblings", "0")];

fn hit(clients: u32) -> Entry {
    Entry::custom("counter_hit", HIT, "SELECT counter_value('hit')", clients)
}

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut server = Server::start("hits", options)?;
    let clients = options.clients;
    let mut measured = Measured::new(
        Section::Hits,
        format!(
            "{clients} clients hit one counter, with `pgbench -M prepared`, beside those who add to one \
             counter or insert a row, each time in a transaction of its own; then the same with fewer and \
             with more clients. `wait => false` is held against `SELECT 1`, the round trip. Many counters \
             are 10,000, by lot. A bounded counter is held against the conditional UPDATE. Then {BESIDE} \
             clients of plain INSERT beside {BESIDE} that hit, or count in their transactions; and the \
             other way round, {BESIDE} that hit, or count, beside {BESIDE} of INSERT, where each flush \
             takes 2 ms more (`commit_delay`). A turn of each, in rounds.",
        ),
    );
    let pace = Pace {
        rounds: options.rounds(),
        seconds: options.seconds(),
    };

    let title = format!("hits, {clients} clients, durable");
    let peers = [Peer::Counter, Peer::Insert, Peer::Message, Peer::Update];
    let durable = at(&mut server, &title, pace, clients, &peers)?;
    for (goal, peer) in [
        (Goal::HitsOfInsert, Peer::Insert),
        (Goal::HitsOfMessage, Peer::Message),
        (Goal::HitsOfCounter, Peer::Counter),
        (Goal::HitsOfUpdate, Peer::Update),
    ] {
        measured.goal(goal, durable.times(peer)?);
    }
    let wal = |name: &str| {
        let row = durable.row(name)?;
        row.wal_bytes.as_ref().context("a turn has counted nothing")
    };
    let of_insert = wal("counter_hit")?.ratio_to("WAL bytes", wal(&Peer::Insert.name())?)?;
    measured.goal(Goal::HitsWalOfInsert, of_insert);
    measured.plots.push(durable.plot("hits", &title));
    measured.races.push(durable);

    let few = Pace {
        rounds: options.few_rounds(),
        seconds: options.short_seconds(),
    };
    for clients in CLIENTS {
        let title = format!("hits, {clients} clients, durable");
        let peers = [Peer::Counter, Peer::Insert];
        measured
            .races
            .push(at(&mut server, &title, few, clients, &peers)?);
    }

    let silent = silent(&mut server, pace, clients)?;
    measured.goal(Goal::SilentHitsOfSelect, silent.times(Peer::SelectOne)?);
    measured.races.push(silent);

    let many = many(&mut server, pace, clients)?;
    measured.goal(Goal::ManyHitsOfInsert, many.times(Peer::Insert)?);
    measured.races.push(many);

    let bounded = bounded(&mut server, pace, clients)?;
    let [_, update] = &bounded.rows[..] else {
        unreachable!("as many rows as entries")
    };
    measured.goal(Goal::TryHitsOfUpdate, update.ratio.clone());
    measured.races.push(bounded);

    latencies(&mut server, options, &mut measured)?;

    let title = format!("{BESIDE} clients of INSERT beside {BESIDE} others");
    let insert = Peer::Insert.script(Keys::Hot, Batch::One);
    let beside_hits = [
        ("beside counter_hit", &*insert, HIT),
        ("beside counter_incr", &*insert, COUNT),
    ]
    .map(pair);
    let race = beside(&mut server, &title, few, &beside_hits)?;
    measured.goal(Goal::InsertBesideHits, race.rows[1].ratio.clone());
    measured.races.push(race);
    drop(server);

    let mut slow = Server::start_with("hits-slow", options, &SLOW_FLUSH)?;
    slow.execute(&Peer::Insert.create(Keys::Hot))?;
    let title = format!("{BESIDE} clients beside {BESIDE} of INSERT, flushes of 2 ms");
    let hits_beside = [
        ("counter_hit", HIT, &*insert),
        ("counter_incr", COUNT, &*insert),
    ]
    .map(pair);
    let race = beside(&mut slow, &title, few, &hits_beside)?;
    measured.goal(Goal::SlowHitsOfCounter, race.rows[1].ratio.clone());
    measured.races.push(race);
    Ok(measured)
}

/// What `counter_incr` counts here is what [`Peer::Counter`] counts.
const COUNT: &str = "SELECT counter_incr('hot');";

fn at(server: &mut Server, title: &str, pace: Pace, clients: u32, peers: &[Peer]) -> Result<Race> {
    let mut entries = vec![hit(clients)];
    entries.extend((peers.iter()).map(|&peer| Entry::new(peer, Keys::Hot, Batch::One, clients)));
    race(server, title, pace, &entries)
}

fn silent(server: &mut Server, pace: Pace, clients: u32) -> Result<Race> {
    let silent = Entry::silent_hits(clients);
    let floor = Entry::new(Peer::SelectOne, Keys::Hot, Batch::One, clients);
    let title = format!("hits that nobody waits for, {clients} clients");
    race(server, &title, pace, &[silent, floor])
}

fn many(server: &mut Server, pace: Pace, clients: u32) -> Result<Race> {
    let hits = Entry::custom(
        "counter_hit",
        "\\set k random(1, 10000)\nSELECT counter_hit('many-hits-' || :k);",
        "SELECT counter_sum('many-hits-')::bigint",
        clients,
    );
    let insert = Entry::new(Peer::Insert, Keys::Uniform, Batch::One, clients);
    let title = format!("hits of 10,000 counters, {clients} clients, durable");
    race(server, &title, pace, &[hits, insert])
}

fn bounded(server: &mut Server, pace: Pace, clients: u32) -> Result<Race> {
    server.execute(&format!(
        "SELECT counter_type_create('stock', min => 0);
         SELECT counter_set('stock:hot', {STOCK});
         CREATE TABLE stock (id integer PRIMARY KEY, n bigint NOT NULL);
         INSERT INTO stock VALUES (1, {STOCK});"
    ))?;
    let take = Entry::custom(
        "counter_try_hit(-1), bounded",
        // Put together, as pgbench would take what follows a colon for a variable.
        "SELECT counter_try_hit('stock:' || 'hot', -1);",
        &format!("SELECT {STOCK} - counter_value('stock:hot')"),
        clients,
    );
    let mut update = Entry::custom(
        "UPDATE ... WHERE n >= 1",
        "UPDATE stock SET n = n - 1 WHERE id = 1 AND n >= 1;",
        &format!("SELECT {STOCK} - n FROM stock WHERE id = 1"),
        clients,
    );
    "VACUUM FULL stock".clone_into(&mut update.reset);
    let title = format!("hits of a bounded counter, {clients} clients, durable");
    race(server, &title, pace, &[take, update])
}

/// The same load, with a log of each call.
fn latencies(server: &mut Server, options: &Options, measured: &mut Measured) -> Result<()> {
    let ways = [("counter_hit", HIT), ("counter_incr", COUNT)];
    let mut all = [Vec::new(), Vec::new()];
    for round in 0..options.few_rounds() {
        for turn in turns(round, ways.len()) {
            let pgbench = Pgbench::new(&server.cluster, options.clients, ways[turn].1);
            let log = pgbench.run_logged(options.seconds())?;
            all[turn].push(Latency::of(log.iter().map(|call| call.microseconds))?);
            server.fold()?;
        }
    }
    for ((name, _), all) in ways.iter().zip(&all) {
        let what = format!("{name}, {} clients", options.clients);
        let series = |of: fn(&Latency) -> f64, part: &str| {
            let values = all.iter().map(of).collect();
            Series::new(format!("{what}: {part}"), Unit::Microseconds, values)
        };
        measured.latencies.push(Latencies {
            mean: series(|latency| latency.mean, "mean")?,
            p50: series(|latency| latency.p50, "p50")?,
            p99: series(|latency| latency.p99, "p99")?,
            what,
        });
    }
    let [hit, count] = &measured.latencies[..] else {
        unreachable!("one of each way")
    };
    let ratio = hit
        .p99
        .ratio_to("p99 of counter_hit, times that of counter_incr", &count.p99)?;
    measured.goal(Goal::HitsLatency, ratio);
    Ok(())
}

/// Two scripts at the same time.
struct Pair<'a> {
    name: &'static str,
    script: &'a str,
    other: &'a str,
}

fn pair<'a>((name, script, other): (&'static str, &'a str, &'a str)) -> Pair<'a> {
    Pair {
        name,
        script,
        other,
    }
}

impl Named for Pair<'_> {
    fn name(&self) -> &str {
        self.name
    }
}

/// The first script's rate, while as many clients run the other one.
fn beside(server: &mut Server, title: &str, pace: Pace, pairs: &[Pair<'_>; 2]) -> Result<Race> {
    race_with(server, title, pace.rounds, pairs, |server, pair, _| {
        // Some seconds more than what is measured takes.
        let others = Pgbench::new(&server.cluster, BESIDE, pair.other).start(pace.seconds + 600)?;
        let outcome = Pgbench::new(&server.cluster, BESIDE, pair.script).run(pace.seconds)?;
        others.stop()?;
        server.fold()?;
        Ok(Turn {
            rate: outcome.rate,
            wal_bytes: None,
        })
    })
}
