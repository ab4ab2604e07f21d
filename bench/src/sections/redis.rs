//! Redis, which keeps counters in memory and writes what it did to a file.

use anyhow::Result;

use crate::goals::Goal;
use crate::options::{Options, Section};
use crate::peers::{Batch, Keys, Peer};
use crate::race::{Entry, Named, Turn, race_with, slice};
use crate::redis::{Fsync, Redis, programs};
use crate::report::Measured;
use crate::server::Server;

const PIPELINE: u32 = 16;

/// How often before it is known how fast that is.
const TRY: u32 = 2000;

enum Runner {
    Postgres(Entry),
    Redis {
        name: String,
        server: usize,
        pipeline: u32,
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

pub(crate) fn run(options: &Options) -> Result<Measured> {
    if programs().is_none() {
        let why = "there is no Redis here; `make bench` unpacks Debian's.";
        return Ok(Measured::skipped(Section::Redis, why));
    }
    let mut server = Server::start("redis", options)?;
    let servers = [
        Redis::start(&server.cluster, Fsync::Always)?,
        Redis::start(&server.cluster, Fsync::EverySecond)?,
    ];
    let clients = options.clients;
    let seconds = options.seconds();
    let mut runners = Vec::new();
    for (batch, how) in [
        (Batch::One, ""),
        (Batch::Pipeline(PIPELINE), ", pipeline of 16"),
    ] {
        let entry = Entry::new(Peer::Counter, Keys::Hot, batch, clients);
        let durable = entry.clone().named(format!("counter_incr, durable{how}"));
        let not = entry.named(format!("counter_incr, asynchronous{how}"));
        runners.push(Runner::Postgres(durable));
        runners.push(Runner::Postgres(not.asynchronous()));
        for (number, fsync) in ["always", "everysec"].into_iter().enumerate() {
            // redis-benchmark runs so many times, not so many seconds.
            let pipeline = batch.size();
            let rate = servers[number].incr("warm", clients, pipeline, TRY * pipeline)?;
            let rate = servers[number].incr("warm", clients, pipeline, (rate / 2.0) as u32 + 1)?;
            runners.push(Runner::Redis {
                name: format!("Redis, appendfsync {fsync}{how}"),
                server: number,
                pipeline,
                times: (rate * f64::from(seconds)) as u32 + 1,
            });
        }
    }
    let title = format!("one hot counter, {clients} clients");
    let turn = |server: &mut Server, runner: &Runner, _first| match runner {
        Runner::Postgres(entry) => slice(server, entry, seconds),
        Runner::Redis {
            server,
            pipeline,
            times,
            ..
        } => Ok(Turn {
            rate: servers[*server].incr("hot", clients, *pipeline, *times)?,
            wal_bytes: None,
        }),
    };
    let race = race_with(&mut server, &title, options.few_rounds(), &runners, turn)?;

    // What neither waits for a disk nor survives each crash, each through its own benchmark client.
    let silent = Entry::silent_hits(clients);
    let rate = servers[1].incr("warm", clients, 1, TRY)?;
    let rate = servers[1].incr("warm", clients, 1, (rate / 2.0) as u32 + 1)?;
    let redis = "Redis, appendfsync everysec";
    let not_waited_for = [
        Runner::Postgres(silent),
        Runner::Redis {
            name: redis.to_owned(),
            server: 1,
            pipeline: 1,
            times: (rate * f64::from(seconds)) as u32 + 1,
        },
    ];
    let hits = format!("one hot counter, {clients} clients, hits that nobody waits for");
    let hits = race_with(&mut server, &hits, options.rounds(), &not_waited_for, turn)?;

    let mut measured = Measured::new(
        Section::Redis,
        format!(
            "{}, from Debian, with an append-only file, on a Unix socket as PostgreSQL is: `INCR hot` by \
             redis-benchmark, {clients} clients. *always* has each increment on the disk before it is \
             acknowledged, as a durable commit has; *everysec* loses up to a second in a crash, as an \
             asynchronous commit does. A pipeline sends 16 before it waits. Redis counts in memory and \
             answers without parsing SQL, planning, snapshots or a transaction: where a counter need not \
             commit with anything else, it is faster.",
            Redis::version()?
        ),
    );
    measured.plots.push(race.plot("redis", &title));
    measured.races.push(race);
    measured.goal(Goal::SilentHitsOfRedis, hits.row(redis)?.ratio.clone());
    measured.races.push(hits);
    Ok(measured)
}
