//! Steady load over minutes: what it takes on the disk, and in the WAL.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::job::Job;
use crate::options::{Options, Section};
use crate::peers::{Batch, Keys, Peer};
use crate::pgbench::Pgbench;
use crate::plot::{Line, Plot};
use crate::report::{Measured, Table};
use crate::server::Server;
use crate::stats::{Series, Unit};

/// How much shorter than that of the counters the load of each of the others is.
const OTHERS_SHARE: u32 = 15;

/// Looks at the sizes of all this.
const LOOKS: u32 = 60;

/// Seconds of which the plot shows the WAL together: one by one, the whole pages after a checkpoint
/// would hide all else.
const PART: u32 = 10;

/// Here checkpoints come by themselves, and often enough that there are some, as on a real server:
/// after each, a page is written to the WAL as a whole when it is first changed.
const SETTINGS: &[(&str, &str)] = &[("checkpoint_timeout", "2min")];

const PEERS: [Peer; 4] = [
    Peer::Counter,
    Peer::Update,
    Peer::Slots(10),
    Peer::FoldedLog { indexed: true },
];

/// What a look has seen.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// Since the start.
    seconds: f64,
    increments: i64,
    wal_bytes: i64,
    /// Of its tables and indexes.
    size: i64,
}

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut server = Server::start_with("steady", options, SETTINGS)?;
    let rate = options.steady_rate;
    let mut measured = Measured::new(
        Section::Steady,
        format!(
            "{} clients make {rate} increments per second, durable, half of them of one counter, the \
             others of one of 10,000 by lot: of counterx for {} s, of each of the others for a fifteenth of \
             that. A checkpoint comes each two minutes. Autovacuum has its default settings. Sizes are \
             those of tables and indexes together; WAL bytes are all that the server has written, \
             divided by the increments of the same time.",
            options.clients,
            options.long_seconds()
        ),
    );
    let mut table = Table::new(
        "from beginning to end",
        &["", "seconds", "increments", "WAL bytes each", "size"],
    );
    let mut sizes = Vec::new();
    let mut wal = Vec::new();
    for peer in PEERS {
        let ours = peer == Peer::Counter;
        let seconds = if ours {
            options.long_seconds()
        } else {
            (options.long_seconds() / OTHERS_SHARE).max(4)
        };
        println!("    {seconds} s: {}", peer.name());
        let looks = load(&mut server, options, peer, seconds)
            .with_context(|| format!("steady load of {}", peer.name()))?;
        for (from, to) in parts(&looks, if ours { 10 } else { 2 }) {
            table.rows.push(table_row(&peer.name(), from, to));
        }
        let [first, .., last] = looks[..] else {
            unreachable!("at least two looks")
        };
        let per_increment = wal_each(&first, &last);
        let what = format!("{}: WAL, from beginning to end", peer.name());
        let figure = Series::new(what, Unit::Bytes, vec![per_increment])?;
        measured.figures.push(figure);
        let most = looks.iter().map(|look| look.size).max().unwrap_or(0);
        let what = format!("{}: size, at most", peer.name());
        let figure = Series::new(what, Unit::Bytes, vec![most as f64])?;
        measured.figures.push(figure);
        let points = looks.iter().map(|look| (look.seconds, look.size as f64));
        sizes.push(Line::new(peer.name(), points.collect()));
        let points = parts(&looks, (seconds / PART).max(4) as usize)
            .into_iter()
            .map(|(from, to)| (to.seconds, wal_each(&from, &to)));
        wal.push(Line::new(peer.name(), points.collect()));
    }
    measured.tables.push(table);
    measured.plots.push(Plot::lines(
        "steady-size",
        &format!("space, at {rate} increments per second"),
        "bytes",
        "seconds",
        sizes,
    ));
    measured.plots.push(Plot::lines(
        "steady-wal",
        &format!("WAL, at {rate} increments per second"),
        "bytes for each increment",
        "seconds",
        wal,
    ));
    Ok(measured)
}

fn load(server: &mut Server, options: &Options, peer: Peer, seconds: u32) -> Result<Vec<Look>> {
    let keys = Keys::Mixed;
    let create = peer.create(keys);
    if !create.is_empty() {
        server.execute(&create)?;
    }
    server.execute("VACUUM (ANALYZE)")?;
    server.execute("CHECKPOINT")?;
    let total = peer.total(keys).context("what is counted can be read")?;
    let before: i64 = server.one(&total)?;
    let size = format!(
        "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c
         WHERE c.relkind IN ('r', 'S') AND {}",
        peer.relations()
    );
    let job = peer.job();
    let job = job
        .map(|sql| Job::start(&server.cluster, &sql))
        .transpose()?;
    let start = Instant::now();
    let look = |server: &mut Server| {
        Ok::<Look, anyhow::Error>(Look {
            seconds: start.elapsed().as_secs_f64(),
            increments: server.one::<i64>(&total)? - before,
            wal_bytes: server.wal_bytes()?,
            size: server.one(&size)?,
        })
    };
    let mut looks = vec![look(server)?];
    let mut running = Pgbench::new(
        &server.cluster,
        options.clients,
        &peer.script(keys, Batch::One),
    )
    .rate(options.steady_rate)
    .start(seconds)?;
    let pause = Duration::from_secs_f64(f64::from(seconds) / f64::from(LOOKS)).max(
        // A look must not become the load.
        Duration::from_millis(500),
    );
    while running.is_running()? {
        thread::sleep(pause);
        looks.push(look(server)?);
    }
    let (outcome, _) = running.finish()?;
    if let Some(job) = job {
        job.stop()?;
    }
    server.settle()?;
    looks.push(look(server)?);
    server.check(&peer.name(), &total, before + outcome.transactions)?;
    Ok(looks)
}

fn wal_each(from: &Look, to: &Look) -> f64 {
    let increments = (to.increments - from.increments).max(1);
    (to.wal_bytes - from.wal_bytes) as f64 / increments as f64
}

/// The beginning and the end of each of so many parts, or of as many as there are.
fn parts(looks: &[Look], count: usize) -> Vec<(Look, Look)> {
    let steps = looks.len() - 1;
    let count = count.clamp(1, steps);
    (0..count)
        .map(|part| {
            (
                looks[part * steps / count],
                looks[(part + 1) * steps / count],
            )
        })
        // A moment without increments has no WAL for each of them.
        .filter(|(from, to)| to.increments > from.increments)
        .collect()
}

fn table_row(name: &str, from: Look, to: Look) -> Vec<String> {
    let rate = (to.increments - from.increments) as f64 / (to.seconds - from.seconds);
    vec![
        name.to_owned(),
        format!("{:.0} to {:.0}", from.seconds, to.seconds),
        Unit::PerSecond.format(rate),
        format!("{:.0}", wal_each(&from, &to)),
        Unit::Bytes.format(to.size as f64),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_cut_into_parts() {
        let looks: Vec<Look> = (0..=20)
            .map(|second| Look {
                seconds: f64::from(second),
                increments: i64::from(second.min(19)) * 10,
                wal_bytes: i64::from(second) * 1000,
                size: 1,
            })
            .collect();
        let parts = parts(&looks, 4);
        assert_eq!(parts.len(), 4);
        assert_eq!((parts[0].0.seconds, parts[0].1.seconds), (0.0, 5.0));
        assert_eq!(wal_each(&parts[0].0, &parts[0].1), 100.0);
        assert_eq!(parts[3].1.seconds, 20.0);
        // More than there are; and the last step has no increments.
        assert_eq!(self::parts(&looks, 100).len(), 19);
    }
}
