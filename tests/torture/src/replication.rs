//! Standbys, promotion, base backups, recovery to a point in time, publications.
//!
//! | step | what it holds counterx to |
//! |---|---|
//! | [`standby`] | a snapshot on a standby is exact, or is refused with one of [`Refusal`] |
//! | [`sync`] | a synchronous standby that does not answer holds up commits, and nothing else |
//! | [`failover`] | what was acknowledged is there after the primary was killed, and clients go on |
//! | [`backup`] | a copy taken in mid-load, and any point that it is recovered to, is whole |
//! | [`logical`] | publications and subscriptions carry user tables, and leave counters alone |
//!
//! [`Refusal`]: counterx_cluster_tests::Refusal

mod backup;
mod failover;
mod logical;
mod standby;
mod sync;

use std::time::{Duration, Instant};

use anyhow::Result;
use counterx_cluster_tests::{DEADLINE, Mixed, folding_hard};
use counterx_harness::{Cluster, poll_until};
use postgres::Client;

use crate::options::Options;
use crate::report::PartReport;

pub(crate) fn run(options: &Options, report: &mut PartReport) -> Result<()> {
    let mut pair = Pair::start()?;
    standby::run(options, report, &mut pair);
    if options.short {
        for what in [
            "a synchronous standby that stops answering",
            "base backups and recovery to points in mid-load",
        ] {
            report.skipped(what, "the short form has no time for it");
        }
    } else {
        sync::run(report, &mut pair);
    }
    failover::run(options, report, pair);
    if !options.short {
        backup::run(options, report);
    }
    logical::run(options, report);
    Ok(())
}

/// A primary and its standby.
struct Pair {
    primary: Cluster,
    standby: Cluster,
}

impl Pair {
    fn start() -> Result<Self> {
        let primary = folding_hard("primary")
            .conf("wal_keep_size", "1GB")
            .start()?;
        let standby = Cluster::builder()
            .name("standby")
            .standby_of(&primary)
            .conf("wal_receiver_status_interval", "1s")
            .conf("hot_standby_feedback", "off")
            .start()?;
        Ok(Self { primary, standby })
    }
}

/// Waits until the primary takes its standby for a synchronous one.
fn wait_for_synchronous(client: &mut Client) -> Result<()> {
    poll_until("the standby to be a synchronous one", DEADLINE, || {
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        Ok(client.query_one(sql, &[])?.get::<_, i64>(0) == 1)
    })
}

/// Does `round` again and again, for this share of the part's time: once at least, and once only in
/// the short form. Each round has a load of its own.
fn for_a_while(
    options: &Options,
    what: &str,
    share: f64,
    mut round: impl FnMut(Mixed) -> Result<()>,
) -> Result<()> {
    let seed = options.seed_for(what);
    let time = options.size(Duration::ZERO, options.time().mul_f64(share));
    let started = Instant::now();
    for number in 0_u64.. {
        round(Mixed {
            clients: options.size(2, 3),
            transactions: options.size(20, 60),
            survives: false,
            // The three loads of a round have seeds of their own.
            seed: seed.wrapping_add(number * 10),
        })?;
        if started.elapsed() >= time {
            break;
        }
    }
    Ok(())
}
