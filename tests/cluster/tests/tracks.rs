//! Counters of tracked tables equal their rows, in every snapshot, whatever happens to the rows.

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    Load, TRACKS, TrackedLoad, create_bare_database, folding_hard, footprint, no_drift, rows_agree,
    settle, shared, track_all, tracked_under_watch,
};
use counterx_harness::Cluster;
use postgres::error::SqlState;
use postgres::{Client, NoTls};

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

#[test]
fn who_keeps_a_table_from_being_tracked_is_named() -> Result<()> {
    let mut client = create_bare_database(cluster(), "holders")?;
    client.batch_execute("CREATE TABLE used (a int)")?;
    client.batch_execute("BEGIN; INSERT INTO used VALUES (1); PREPARE TRANSACTION 'the one'")?;
    let mut writer = cluster().config("holders").connect(NoTls)?;
    let pid: i32 = writer.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    writer.batch_execute("BEGIN; INSERT INTO used VALUES (2)")?;
    let track = "SELECT counter_track('used', 'used', '{a}')";
    let refused = client.batch_execute(track).expect_err("it is in use");
    let refused = refused.as_db_error().context("an error of the server's")?;
    ensure!(
        *refused.code() == SqlState::LOCK_NOT_AVAILABLE,
        "{refused:?}"
    );
    let expected = format!("It was in use by prepared transaction 'the one', process {pid}.");
    ensure!(
        refused.detail() == Some(expected.as_str()),
        "{refused:?} instead of: {expected}"
    );
    writer.batch_execute("COMMIT")?;
    client.batch_execute("COMMIT PREPARED 'the one'")?;
    client.batch_execute(track)?;
    client.batch_execute("SELECT counter_track_wait('used', '1 min')")?;
    no_drift(&mut client, &[("used", "used")])
}
