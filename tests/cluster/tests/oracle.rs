//! Every counter equals the oracle in every snapshot, at every moment that a checker looks.

use anyhow::{Result, ensure};
use counterx_cluster_tests::{
    Load, check, count_and_settle, create_database, folding_hard, folds_and_empties, folds_often,
    footprint, settle, shared, under_watch,
};
use counterx_harness::Cluster;

fn cluster() -> &'static Cluster {
    shared(|| {
        folding_hard("oracle")
            // Commits that take their time: a transaction whose rows are written and not visible
            // yet is what a fold must not pass over.
            .conf("fsync", "on")
            .conf("commit_delay", "10000")
            .conf("commit_siblings", "0")
            .start()
    })
}

#[test]
fn counters_equal_the_oracle_in_every_snapshot_of_a_mixed_load() -> Result<()> {
    let mut client = create_database(cluster(), "mixed")?;
    let before = footprint(&mut client)?;
    let load = Load {
        clients: 16,
        transactions: 400,
        names: 60,
        checkers: 2,
        ..Load::default()
    };
    let watched = under_watch(&cluster().config("mixed"), &load, |_| Ok(()))?;
    ensure!(
        watched.outcome.done == load.clients * load.transactions,
        "{watched:?}"
    );
    ensure!(
        watched.checks >= 40,
        "too few looks to mean anything: {watched:?}"
    );

    settle(&mut client)?;
    ensure!(
        check(&mut client)? >= 60,
        "fewer counters than the load has"
    );
    // The load proves nothing about folds and rotation unless they took place beside it.
    folds_often(&mut client, &before)?;
    let after = folds_and_empties(&mut client, &before)?;
    ensure!(
        after.files != before.files,
        "no log was truncated: {before:?} {after:?}"
    );
    Ok(())
}

#[test]
fn prepared_and_serializable_transactions_in_the_mix_change_nothing_of_that() -> Result<()> {
    let mut client = create_database(cluster(), "prepared")?;
    let load = Load {
        clients: 8,
        transactions: 200,
        two_phase: true,
        serializable: true,
        ..Load::default()
    };
    let watched = under_watch(&cluster().config("prepared"), &load, |_| Ok(()))?;
    let outcome = watched.outcome;
    ensure!(outcome.done > outcome.refused, "{watched:?}");
    ensure!(
        watched.checks >= 10,
        "too few looks to mean anything: {watched:?}"
    );
    count_and_settle(&mut client)
}
