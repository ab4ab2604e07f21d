//! PREPARE TRANSACTION: counted once it commits, once, whenever that is; never in anybody's way.

use anyhow::{Result, ensure};
use counterx_cluster_tests::{DEADLINE, check, compact, create_database, refused, settle, shared};
use counterx_harness::{Cluster, StopMode, poll_until};
use postgres::Client;
use postgres::error::SqlState;

fn start(name: &str) -> Result<Cluster> {
    Cluster::builder()
        .name(name)
        .conf("counterx.compaction_interval", "20ms")
        .start()
}

fn cluster() -> &'static Cluster {
    shared(|| start("two-phase"))
}

fn value(client: &mut Client, name: &str) -> Result<i64> {
    Ok(client
        .query_one("SELECT counter_value($1)", &[&name])?
        .get(0))
}

fn late(client: &mut Client) -> Result<i64> {
    Ok(client
        .query_one("SELECT count(*) FROM counterx.late", &[])?
        .get(0))
}

/// Prepares three transactions with other work in between, has the server go down, ends them.
fn across(cluster: &mut Cluster, down_and_up: impl Fn(&mut Cluster) -> Result<()>) -> Result<()> {
    let mut client = create_database(cluster, "across")?;
    client.batch_execute("SELECT bump('a', 1)")?;
    client.batch_execute(
        "BEGIN;
         SELECT bump('a', 5); SELECT bump('b', 7);
         SAVEPOINT s; SELECT bump('a', 100); ROLLBACK TO s; SELECT bump('b', 1); RELEASE s;
         PREPARE TRANSACTION 'stays'",
    )?;
    // The same backend goes on: what was prepared is no longer its business.
    client.batch_execute("SELECT bump('a', 10)")?;
    client.batch_execute("BEGIN; SELECT bump('a', 1000); ROLLBACK")?;
    client.batch_execute("BEGIN; SELECT bump('b', 20); SELECT bump('a', -3); COMMIT")?;
    client.batch_execute("BEGIN; SELECT bump('a', 500); PREPARE TRANSACTION 'goes'")?;
    client.batch_execute("BEGIN; SELECT 1; PREPARE TRANSACTION 'has no increment'")?;
    client.batch_execute("SELECT bump('c', 1)")?;
    check(&mut client)?;
    ensure!(value(&mut client, "a")? == 8 && value(&mut client, "b")? == 20);
    drop(client);

    down_and_up(cluster)?;

    let mut client = cluster.connect_db("across")?;
    check(&mut client)?;
    ensure!(value(&mut client, "a")? == 8 && value(&mut client, "b")? == 20);
    client.batch_execute("SELECT bump('a', 30)")?;
    client.batch_execute("COMMIT PREPARED 'stays'")?;
    check(&mut client)?;
    ensure!(value(&mut client, "a")? == 43 && value(&mut client, "b")? == 28);
    client.batch_execute("ROLLBACK PREPARED 'goes'")?;
    client.batch_execute("COMMIT PREPARED 'has no increment'")?;
    client.batch_execute("SELECT bump('a', 1)")?;
    check(&mut client)?;
    settle(&mut client)?;
    ensure!(late(&mut client)? == 0);
    check(&mut client)?;
    ensure!(value(&mut client, "a")? == 44 && value(&mut client, "b")? == 28);
    Ok(())
}

#[test]
fn prepared_transaction_survives_a_restart_and_counts_once() -> Result<()> {
    across(&mut start("two-phase-restart")?, |cluster| {
        cluster.restart(StopMode::Fast)
    })
}

#[test]
fn prepared_transaction_survives_a_killed_postmaster_and_counts_once() -> Result<()> {
    across(&mut start("two-phase-kill")?, |cluster| {
        cluster.kill_postmaster()?;
        cluster.start()
    })
}

#[test]
fn transaction_in_doubt_does_not_stop_its_lane() -> Result<()> {
    let mut client = create_database(cluster(), "doubt")?;
    let mut other = cluster().connect_db("doubt")?;
    client.batch_execute("BEGIN; SELECT bump('x', 5); PREPARE TRANSACTION 'doubt'")?;
    let folded = "SELECT coalesce(sum(folded_epoch), 0)::bigint FROM counterx.lanes";
    for round in 1..=5_i64 {
        let before: i64 = other.query_one(folded, &[])?.get(0);
        other.batch_execute("SELECT bump('x', 1)")?;
        poll_until("the lane to be folded", DEADLINE, || {
            let after: i64 = other.query_one(folded, &[])?.get(0);
            Ok(after > before)
        })?;
        check(&mut other)?;
        ensure!(value(&mut other, "x")? == round);
    }
    let sql = "SELECT value::bigint FROM counterx.total WHERE name = 'x' ORDER BY gen DESC LIMIT 1";
    ensure!(
        other.query_one(sql, &[])?.get::<_, i64>(0) == 5,
        "the deltas are not in the total"
    );

    other.batch_execute("COMMIT PREPARED 'doubt'")?;
    ensure!(value(&mut other, "x")? == 10);
    check(&mut other)?;
    // No commit of a session told the worker; the next one does.
    client.batch_execute("SELECT bump('x', 1)")?;
    settle(&mut client)?;
    ensure!(late(&mut client)? == 0);
    check(&mut client)?;
    ensure!(client.query_one(sql, &[])?.get::<_, i64>(0) == 11);
    Ok(())
}

#[test]
fn late_deltas_are_folded_by_hand_too() -> Result<()> {
    let mut client = create_database(cluster(), "byhand")?;
    client.batch_execute(
        "ALTER DATABASE byhand SET counterx.compaction = off;
         BEGIN; SELECT bump('x', 5); PREPARE TRANSACTION 'byhand'",
    )?;
    client.batch_execute("COMMIT PREPARED 'byhand'")?;
    ensure!(late(&mut client)? == 1);
    check(&mut client)?;
    let folded = compact(&mut client)?;
    ensure!(folded == 1, "compact() says that it folded {folded}");
    ensure!(late(&mut client)? == 0);
    check(&mut client)?;
    Ok(())
}

#[test]
fn rolled_back_prepared_transaction_counts_nothing() -> Result<()> {
    let mut client = create_database(cluster(), "rolledback")?;
    client.batch_execute("BEGIN; SELECT bump('x', 5); PREPARE TRANSACTION 'rolledback'")?;
    client.batch_execute("SELECT bump('x', 1)")?;
    client.batch_execute("ROLLBACK PREPARED 'rolledback'")?;
    client.batch_execute("SELECT bump('x', 1)")?;
    settle(&mut client)?;
    check(&mut client)?;
    ensure!(value(&mut client, "x")? == 2);
    Ok(())
}

#[test]
fn failed_prepare_counts_nothing_and_leaves_nothing() -> Result<()> {
    let mut client = create_database(cluster(), "failed")?;
    client.batch_execute("BEGIN; SELECT bump('x', 5); PREPARE TRANSACTION 'twice'")?;
    let again = client.batch_execute("BEGIN; SELECT bump('x', 7); PREPARE TRANSACTION 'twice'");
    refused(again, &SqlState::DUPLICATE_OBJECT)?;
    client.batch_execute("ROLLBACK")?;
    // A temporary table makes PREPARE fail after the callbacks of extensions have run.
    client.batch_execute("CREATE TEMP TABLE t (x int)")?;
    let temp = client.batch_execute(
        "BEGIN; SELECT bump('x', 7); INSERT INTO t VALUES (1); PREPARE TRANSACTION 'temporary'",
    );
    refused(temp, &SqlState::FEATURE_NOT_SUPPORTED)?;
    client.batch_execute("ROLLBACK")?;
    client.batch_execute("SELECT bump('x', 1)")?;
    client.batch_execute("COMMIT PREPARED 'twice'")?;
    check(&mut client)?;
    ensure!(value(&mut client, "x")? == 6);
    client.batch_execute("SELECT bump('x', 1)")?;
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}

#[test]
fn several_prepared_transactions_of_one_counter_end_in_any_order() -> Result<()> {
    let mut client = create_database(cluster(), "several")?;
    for number in 0..6 {
        client.batch_execute(&format!(
            "BEGIN; SELECT bump('x', {}); PREPARE TRANSACTION 'several {number}'",
            10_i64.pow(number)
        ))?;
    }
    for (number, verb) in [(3, "COMMIT"), (0, "ROLLBACK"), (5, "COMMIT"), (1, "COMMIT")] {
        client.batch_execute(&format!("{verb} PREPARED 'several {number}'"))?;
        check(&mut client)?;
        client.batch_execute("SELECT bump('y', 1)")?;
    }
    ensure!(value(&mut client, "x")? == 101_010);
    settle(&mut client)?;
    check(&mut client)?;
    client.batch_execute("ROLLBACK PREPARED 'several 2'; ")?;
    client.batch_execute("COMMIT PREPARED 'several 4'")?;
    ensure!(value(&mut client, "x")? == 111_010);
    Ok(())
}
