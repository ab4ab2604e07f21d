//! Without `shared_preload_libraries` the same promises hold.

use anyhow::{Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, Load, check, compact, count_workers, create_database, folding_hard,
    folds_and_empties, footprint, settle, shared, under_watch, wait_for_no_worker, wait_for_worker,
};
use counterx_harness::{Cluster, poll_to_end, poll_until};

fn cluster() -> &'static Cluster {
    shared(|| {
        folding_hard("nopreload")
            .preload(false)
            .conf("counterx.worker_idle_timeout", "1s")
            .start()
    })
}

#[test]
fn without_preload_counters_equal_the_oracle_in_every_snapshot() -> Result<()> {
    let mut client = create_database(cluster(), "mixed")?;
    let before = footprint(&mut client)?;
    let load = Load {
        transactions: 250,
        two_phase: true,
        ..Load::default()
    };
    let mut seen = false;
    let watched = under_watch(&cluster().config("mixed"), &load, |control| {
        let mut client = cluster().connect_db("mixed")?;
        let all = load.clients * load.transactions;
        poll_to_end("the load", DEADLINE, || {
            ensure!(!control.is_aborted(), "the load has failed");
            // That a commit has started.
            seen |= count_workers(&mut client, Some("mixed"))? > 0;
            Ok(all - control.finished())
        })?;
        // Of two that were started at the same time one finds that it is not needed.
        poll_until("the second worker to leave", DEADLINE, || {
            Ok(count_workers(&mut client, Some("mixed"))? <= 1)
        })
    })?;
    ensure!(seen, "no worker was seen");
    ensure!(watched.checks > 0, "{watched:?}");
    folds_and_empties(&mut client, &before).map(drop)
}

#[test]
fn without_preload_a_commit_starts_a_worker_again_and_again() -> Result<()> {
    let mut client = create_database(cluster(), "again")?;
    for round in 1..=3_i64 {
        client.batch_execute("SELECT bump('x', 1)")?;
        wait_for_worker(&mut client, "again")?;
        settle(&mut client)?;
        wait_for_no_worker(&mut client, "again")?;
        check(&mut client)?;
        let value: i64 = client.query_one("SELECT counter_value('x')", &[])?.get(0);
        ensure!(value == round);
    }
    Ok(())
}

#[test]
fn without_preload_compact_folds() -> Result<()> {
    let mut client = create_database(cluster(), "byhand")?;
    client.batch_execute("ALTER DATABASE byhand SET counterx.compaction = off")?;
    let mut client = cluster().connect_db("byhand")?;
    client.batch_execute("SELECT bump('x' || n, n) FROM generate_series(1, 20) n")?;
    ensure!(footprint(&mut client)?.pending == 20);
    let folded = compact(&mut client)?;
    ensure!(folded == 20, "folded {folded}");
    ensure!(footprint(&mut client)?.pending == 0);
    check(&mut client)?;
    Ok(())
}

#[test]
fn without_preload_a_session_that_never_loaded_the_library_reads() -> Result<()> {
    let mut client = create_database(cluster(), "fresh")?;
    client.batch_execute("SELECT bump('x', 3)")?;
    for sql in [
        "SELECT counter_value('x')",
        "SELECT value::bigint FROM counters",
        "SELECT coalesce(sum(pending_deltas), 0)::bigint * 0 + 3 FROM counterx.lanes",
        "SELECT count(*) * 0 + 3 FROM counterx.workers",
    ] {
        let mut fresh = cluster().connect_db("fresh")?;
        let value: i64 = fresh.query_one(sql, &[])?.get(0);
        ensure!(value == 3, "{sql}: {value}");
    }
    Ok(())
}

#[test]
fn without_preload_the_version_says_what_is_missing() -> Result<()> {
    let mut client = create_database(cluster(), "version")?;
    let row = client.query_one(
        "SELECT library = objects, preloaded, hint FROM counterx.version()",
        &[],
    )?;
    let said: (bool, bool, String) = (row.get(0), row.get(1), row.get(2));
    ensure!(
        said.0
            && !said.1
            && said
                .2
                .starts_with("Add counterx to shared_preload_libraries"),
        "{said:?}"
    );
    Ok(())
}
