//! Counters of tracked tables equal their rows, in every snapshot, whatever happens to the rows.

use anyhow::{Result, ensure};
use counterx_cluster_tests::{
    Load, TRACKS, TrackedLoad, create_bare_database, folding_hard, footprint, no_drift, rows_agree,
    settle, shared, track_all, tracked_under_watch,
};
use counterx_harness::Cluster;
use postgres::Client;

fn cluster() -> &'static Cluster {
    shared(|| {
        folding_hard("tracks")
            .conf("wal_level", "logical")
            .conf("max_prepared_transactions", "20")
            .conf("deadlock_timeout", "50ms")
            .start()
    })
}

/// When all has ended.
fn agree_at_last(client: &mut Client) -> Result<()> {
    let all: Vec<(&str, &str)> = TRACKS
        .iter()
        .map(|(table, name, _)| (*table, *name))
        .collect();
    for _ in 0..2 {
        ensure!(rows_agree(client)? > 5, "hardly any groups are left");
        no_drift(client, &all)?;
        settle(client)?;
    }
    Ok(())
}

#[test]
fn counters_equal_the_rows_in_every_snapshot_of_a_mixed_load() -> Result<()> {
    let mut client = create_bare_database(cluster(), "mixed")?;
    track_all(&mut client)?;
    let before = footprint(&mut client)?;
    let load = Load {
        clients: 8,
        transactions: 150,
        two_phase: true,
        checkers: 2,
        ..Load::default()
    };
    let watched = tracked_under_watch(
        &cluster().config("mixed"),
        &load,
        TrackedLoad::default(),
        |_| Ok(()),
    )?;
    let outcome = watched.outcome;
    ensure!(outcome.done > outcome.refused, "{watched:?}");
    ensure!(
        watched.checks >= 20,
        "too few looks to mean anything: {watched:?}"
    );
    agree_at_last(&mut client)?;
    let after = footprint(&mut client)?;
    ensure!(
        after.folded > before.folded,
        "no fold: {before:?} {after:?}"
    );
    Ok(())
}

#[test]
fn truncates_in_the_mix_change_nothing_of_that() -> Result<()> {
    let mut client = create_bare_database(cluster(), "truncates")?;
    track_all(&mut client)?;
    let load = Load {
        clients: 6,
        transactions: 150,
        two_phase: true,
        checkers: 2,
        ..Load::default()
    };
    let how = TrackedLoad {
        truncates: true,
        ..TrackedLoad::default()
    };
    let watched = tracked_under_watch(&cluster().config("truncates"), &load, how, |_| Ok(()))?;
    ensure!(
        watched.checks >= 10,
        "too few looks to mean anything: {watched:?}"
    );
    agree_at_last(&mut client)
}
