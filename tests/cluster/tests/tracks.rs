//! Counters of tracked tables equal their rows, in every snapshot, whatever happens to the rows.

use anyhow::{Result, ensure};
use counterx_cluster_tests::{
    Control, DEADLINE, Load, TRACKS, TrackedLoad, create_bare_database, folding_hard, footprint,
    is_in_the_way, no_drift, patiently, rows_agree, settle, shared, track, track_all,
    tracked_under_watch,
};
use counterx_harness::{Cluster, poll_until};
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
    // The load may have emptied everything.
    client.batch_execute(
        "INSERT INTO task (id, status) VALUES (-1, 'last'), (-2, 'very last');
         INSERT INTO comment VALUES (-1, 'last');
         INSERT INTO item (id, shard, status) VALUES (-1, 0, 'last'), (-1, 1, 'last'), (-1, 5, NULL)",
    )?;
    for _ in 0..2 {
        ensure!(rows_agree(client)? > 5, "groups are missing");
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

/// As an administrator does it, who is in nobody's way.
fn track_and_untrack(client: &mut Client, control: &Control) -> Result<u64> {
    let (table, type_name, how) = TRACKS[4];
    let mut rounds = 0;
    while !control.is_done() {
        patiently(
            client,
            &format!("SELECT counter_untrack('{table}', '{type_name}')"),
        )?;
        let left: i64 = client
            .query_one(
                "SELECT count(*) FROM counters WHERE name ^@ 'revenue:'",
                &[],
            )?
            .get(0);
        ensure!(
            left == 0,
            "{left} counters are left of a track that is no more"
        );
        track(client, table, type_name, how)?;
        // What is exact stays so.
        let sql = "SELECT count(*) FROM counter_recount('item', 'items')";
        poll_until(sql, DEADLINE, || match client.query_one(sql, &[]) {
            Ok(row) => {
                let wrong: i64 = row.get(0);
                ensure!(wrong == 0, "{wrong} counters were wrong");
                Ok(true)
            }
            Err(error) if is_in_the_way(&error) => Ok(false),
            Err(error) => Err(error.into()),
        })?;
        rounds += 1;
    }
    Ok(rounds)
}

fn tracks_come_and_go(db: &str, truncates: bool) -> Result<()> {
    let mut client = create_bare_database(cluster(), db)?;
    track_all(&mut client)?;
    let load = Load {
        clients: 6,
        transactions: 120,
        two_phase: true,
        ..Load::default()
    };
    let how = TrackedLoad {
        truncates,
        untracks: true,
    };
    let mut rounds = 0;
    tracked_under_watch(&cluster().config(db), &load, how, |control| {
        rounds = track_and_untrack(&mut cluster().connect_db(db)?, control)?;
        Ok(())
    })?;
    ensure!(rounds > 1, "the load was over before anything happened");
    agree_at_last(&mut client)
}

#[test]
fn tracks_come_and_go_beside_a_load() -> Result<()> {
    tracks_come_and_go("comes_and_goes", false)
}

#[test]
fn tracks_come_and_go_beside_truncates() -> Result<()> {
    tracks_come_and_go("comes_and_goes_truncates", true)
}
