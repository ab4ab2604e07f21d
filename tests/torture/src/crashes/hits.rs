//! Hits at each point of their callers and of the committer, by a book that the clients keep.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, Recovering, Told, Way, create_bare_database, hit_while, wait_for_hits,
};
use counterx_harness::poll_until;
use postgres::Config;

use super::points::{Action, arm, can, go, has_fired};
use super::rig::{Rig, hold_pause_in, is_paused};
use crate::options::Options;
use crate::report::PartReport;

/// Points that only hits come by.
pub(super) const POINTS: [&str; 7] = [
    "hit.pushed",
    "committer.ready",
    "committer.taken",
    "committer.added",
    "committer.committed",
    "committer.answered",
    "committer.leaving",
];

const DB: &str = "hits";

/// There are the other parts' loads as well.
const PAUSE: Duration = Duration::from_micros(500);

pub(super) fn run(rig: &mut Rig, options: &Options, report: &mut PartReport) -> Result<()> {
    create_bare_database(&rig.cluster, DB)?;
    let all: Vec<_> = POINTS
        .iter()
        .flat_map(|&point| Action::ALL.map(|action| (point, action)))
        .filter(|(point, action)| can(point, *action))
        .collect();
    let seed = options.seed_for("points of hits");
    let mut number = 0;
    let result = go(all, 3, seed, options, |point, action| {
        number += 1;
        step(rig, number, point, action)
            .with_context(|| format!("{} at {point}", action.word()))?;
        report.tried(&format!("{} at a point of hits", action.word()), 1);
        Ok(())
    });
    rig.cluster.reload(&[("counterx.failpoint", "")])?;
    result
}

fn step(rig: &mut Rig, number: usize, point: &str, action: Action) -> Result<()> {
    let config = rig.cluster.config(DB);
    let book = hit_while(
        &config,
        &format!("book:{number}:"),
        &Way::ALL.map(|way| Way {
            pause: PAUSE,
            ..way
        }),
        |hits| meanwhile(rig, &config, hits, point, action),
    )?;
    ensure!(book.has(Told::Counted), "nobody was counted");
    let crash = action == Action::Crash;
    let mut connection = Recovering::new(&config);
    poll_until("what nobody waited for", DEADLINE, || {
        Ok(book.audit(connection.client()?)? == 0 || crash)
    })
}

fn meanwhile(
    rig: &mut Rig,
    config: &Config,
    hits: &AtomicU64,
    point: &str,
    action: Action,
) -> Result<()> {
    let holder = match action {
        Action::Pause => Some(hold_pause_in(&rig.cluster, DB)?),
        Action::Crash | Action::Error => None,
    };
    arm(&mut rig.cluster, &[(point, action)])?;
    poll_until("somebody to come by", DEADLINE, || {
        if has_fired(&rig.cluster, point, action) {
            return Ok(true);
        }
        // Its successor comes by, or it does on its way out. The server may go down at any moment.
        let ends = ["committer.ready", "committer.leaving"].contains(&point);
        if ends && let Ok(mut client) = config.connect(postgres::NoTls) {
            let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                        WHERE backend_type = 'counterx committer' AND datname = current_database()";
            let _ = client.batch_execute(sql);
        }
        Ok(false)
    })?;
    if action == Action::Crash {
        rig.crashes += 1;
    }
    if let Some(mut holder) = holder {
        poll_until("somebody to pause", DEADLINE, || is_paused(&mut holder))?;
    }
    wait_for_hits(hits, 20)
}
