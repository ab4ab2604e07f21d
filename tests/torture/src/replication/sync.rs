//! A synchronous standby that stops answering: commits wait, and nobody else does.

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, catch_up, check, create_database, footprint, names_in_lanes, settle,
};
use counterx_harness::{pause, poll_until, resume};
use postgres::Client;

use super::{Pair, wait_for_synchronous};
use crate::report::PartReport;

pub(super) fn run(report: &mut PartReport, pair: &mut Pair) {
    report.step("a synchronous standby that stops answering", |report| {
        let result = stall(report, pair);
        pair.primary.reload(&[("synchronous_standby_names", "")])?;
        result
    });
}

fn stall(report: &mut PartReport, pair: &mut Pair) -> Result<()> {
    let mut client = create_database(&pair.primary, "stalled")?;
    client.batch_execute("CREATE TABLE attempts (number int)")?;
    let lanes = names_in_lanes(&mut client)?;
    catch_up(&pair.primary, &mut pair.standby.connect()?)?;
    pair.primary.reload(&[
        ("synchronous_standby_names", "standby"),
        // Stopped, it would be taken for dead, and commits wait all the same.
        ("wal_sender_timeout", "0"),
    ])?;
    wait_for_synchronous(&mut client)?;
    // A backlog in the lanes that nobody will hang in, which the worker folds in the stall.
    let mut local = pair.primary.connect_db("stalled")?;
    local.batch_execute("SET synchronous_commit = local")?;

    let receiver: i32 = pair
        .standby
        .connect()?
        .query_one("SELECT pid FROM pg_stat_wal_receiver", &[])?
        .get(0);
    pause(receiver)?;
    let stalled = std::thread::scope(|scope| {
        let names = &lanes[..2];
        let hanging: Vec<_> = names
            .iter()
            .map(|name| {
                let client = pair.primary.connect_db("stalled");
                scope.spawn(move || -> Result<()> {
                    // Cancelled, it is committed here all the same, with a warning.
                    Ok(client?.batch_execute(&format!(
                        "SET synchronous_commit = remote_apply;
                         BEGIN; INSERT INTO attempts VALUES (1); SELECT bump('{name}', 5); COMMIT"
                    ))?)
                })
            })
            .collect();
        let stalled = beside_hanging(&mut client, &mut local, &lanes);
        // Whatever came of it, nobody may go on hanging.
        client.query(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'",
            &[],
        )?;
        let mut result = stalled;
        for thread in hanging {
            let ended = thread
                .join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")))
                .context("a commit that was cancelled");
            result = result.and(ended);
        }
        result
    });
    let checked = stalled.and_then(|()| {
        // The cancelled ones are committed: both sides have them. Still no standby answers, and
        // all gets folded.
        let attempts: i64 = client
            .query_one("SELECT count(*) FROM attempts", &[])?
            .get(0);
        ensure!(attempts == 2, "{attempts} of 2 are committed");
        check(&mut client)?;
        local.batch_execute("SELECT bump('last', 1)")?;
        settle(&mut client).context("with the standby still stopped")?;
        check(&mut client)?;
        Ok(())
    });
    resume(receiver)?;
    checked?;
    let mut standby = pair.standby.connect_db("stalled")?;
    catch_up(&pair.primary, &mut standby)?;
    check(&mut standby)?;
    local.batch_execute("SET synchronous_commit = remote_apply; SELECT bump('again', 1)")?;
    ensure!(
        standby
            .query_one("SELECT counter_value('again')", &[])?
            .get::<_, i64>(0)
            == 1,
        "what was acknowledged is not to be read on the standby"
    );
    report.tried("commits that hung for a synchronous standby, cancelled", 2);
    Ok(())
}

/// While two commits hang: the rest is read, counted and folded.
fn beside_hanging(client: &mut Client, local: &mut Client, lanes: &[String]) -> Result<()> {
    poll_until("the commits to hang", DEADLINE, || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        Ok(client.query_one(sql, &[])?.get::<_, i64>(0) == 2)
    })?;
    // Should one of these hang, it says so.
    client.batch_execute("SET statement_timeout = '60s'")?;
    local.batch_execute("SET statement_timeout = '60s'")?;
    check(client).context("a read beside hanging commits")?;
    let before = footprint(client)?;
    for round in 1..=20 {
        for name in lanes {
            local.execute("SELECT bump($1, $2)", &[name, &i64::from(round)])?;
        }
    }
    check(client)?;
    // The lanes of those who hang wait for them, as for anybody who is about to commit. The others
    // do not, and the worker does not wait for a standby with its own commits.
    let sql = "SELECT count(*) FROM counterx.lanes WHERE pending_deltas = 0";
    poll_until("the other lanes to be folded", DEADLINE, || {
        Ok(client.query_one(sql, &[])?.get::<_, i64>(0) >= 6)
    })?;
    let after = footprint(client)?;
    ensure!(
        after.folded > before.folded,
        "nothing was folded: {before:?} {after:?}"
    );
    check(client)?;
    Ok(())
}
