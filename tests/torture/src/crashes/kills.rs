//! `kill -9` of one process of each kind, and all ways to stop a server.

use std::time::Instant;

use anyhow::Result;
use counterx_cluster_tests::DEADLINE;
use counterx_harness::{kill9_chosen, poll_until};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};

use super::rig::{Restart, Rig, Scene, restart};
use crate::options::Options;
use crate::report::PartReport;

#[derive(Clone, Copy)]
enum Victim {
    /// A process, as `pg_stat_activity` calls its kind.
    Process(&'static str),
    Server(&'static str, Restart),
}

const VICTIMS: [Victim; 10] = [
    Victim::Process("counterx worker"),
    Victim::Process("client backend"),
    Victim::Server("kill -9 survived: postmaster", Restart::Killed),
    Victim::Process("counterx launcher"),
    Victim::Process("checkpointer"),
    Victim::Process("background writer"),
    Victim::Process("walwriter"),
    Victim::Process("autovacuum launcher"),
    Victim::Server("immediate shutdown survived", Restart::Immediate),
    Victim::Server("fast shutdown survived", Restart::Fast),
];

pub(super) fn run(rig: &mut Rig, options: &Options, report: &mut PartReport) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(options.seed_for("kills"));
    let mut first = VICTIMS;
    first.shuffle(&mut rng);
    let first = &first[..options.size(2, VICTIMS.len())];
    let end = Instant::now() + options.time() / 3;
    rig.under_load("kills", options.seed_for("kills"), true, |scene| {
        for victim in first {
            kill(scene, *victim, report)?;
        }
        while !options.short && Instant::now() < end {
            let victim = VICTIMS.choose(&mut rng).expect("there are some");
            kill(scene, *victim, report)?;
        }
        Ok(())
    })
}

fn kill(scene: &mut Scene, victim: Victim, report: &mut PartReport) -> Result<()> {
    match victim {
        Victim::Process(kind) => {
            scene.crash(|scene| kill_process(scene, kind))?;
            report.tried(&format!("kill -9 survived: {kind}"), 1);
        }
        Victim::Server(what, how) => {
            scene.crash(|scene| restart(scene.cluster, how))?;
            report.tried(what, 1);
        }
    }
    scene.all_is_well()
}

fn kill_process(scene: &mut Scene, kind: &str) -> Result<()> {
    let mut client = scene.connect()?;
    let sql = "SELECT pid FROM pg_stat_activity
                WHERE pid <> pg_backend_pid() AND backend_type = $1
                  AND (datname = current_database() OR datname IS NULL)
                ORDER BY state = 'active' DESC NULLS LAST, random() LIMIT 1";
    kill9_chosen(|| {
        let mut pid = 0;
        poll_until(kind, DEADLINE, || {
            pid = client.query_opt(sql, &[&kind])?.map_or(0, |row| row.get(0));
            Ok(pid != 0)
        })?;
        Ok(pid)
    })
}
