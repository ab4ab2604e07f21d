//! A worker whose steps fail. They are made to fail by the failpoints of a debug build; against a
//! release build, which has none, there is nothing to see.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use counterx_cluster_tests::{
    DEADLINE, check, create_database, folding_hard, names_in_lanes, settle, wait_for_worker,
};
use counterx_harness::{Cluster, poll_until};
use postgres::Client;

/// What a paused process waits for: see the engine's `failpoint.rs`.
const PAUSE_KEY: i64 = 0x636e_7478;

fn start(name: &str) -> Result<Option<Cluster>> {
    let cluster = folding_hard(name).start()?;
    let sql = "SELECT current_setting('counterx.failpoint', true) IS NOT NULL";
    let has_failpoints: bool = cluster.connect()?.query_one(sql, &[])?.get(0);
    Ok(has_failpoints.then_some(cluster))
}

/// Fills the active logs of all lanes.
fn fill(client: &mut Client, names: &[String]) -> Result<()> {
    let sql = "SELECT bump(name || repeat('x', 200) || n, 1)
                 FROM unnest($1::text[]) name, generate_series(1, 40) n";
    client.execute(sql, &[&names])?;
    Ok(())
}

#[test]
fn lane_whose_log_cannot_be_emptied_goes_on_folding() -> Result<()> {
    let Some(mut cluster) = start("cannot-truncate")? else {
        return Ok(());
    };
    let mut client = create_database(&cluster, "failing")?;
    let names = names_in_lanes(&mut client)?;
    cluster.reload(&[("counterx.failpoint", "truncate.locked=error")])?;
    // The worker reads the configuration a little later than we do.
    poll_until("truncations to fail", DEADLINE, || {
        fill(&mut client, &names)?;
        Ok(cluster.log().contains("ERROR:  failpoint truncate.locked")
            || cluster
                .log()
                .matches("failpoint truncate.locked in")
                .count()
                > 20)
    })?;
    for _ in 0..3 {
        fill(&mut client, &names)?;
        settle(&mut client).context("lanes whose logs cannot be emptied")?;
    }
    check(&mut client)?;
    // They are tried again, and not all the time.
    let failed = cluster
        .log()
        .matches("failpoint truncate.locked in")
        .count();
    ensure!(failed < 200, "{failed} failures");
    cluster.reload(&[("counterx.failpoint", "")])?;
    poll_until("logs to be emptied", DEADLINE, || {
        let sql = "SELECT count(*) FROM pg_class c, pg_class d
                    WHERE c.relname ~ '^log_._a$' AND d.relname = replace(c.relname, '_a', '_b')
                      AND least(pg_relation_size(c.oid), pg_relation_size(d.oid)) > 0";
        Ok(client.query_one(sql, &[])?.get::<_, i64>(0) == 0)
    })
}

#[test]
fn lane_that_keeps_failing_is_tried_less_and_less() -> Result<()> {
    let Some(mut cluster) = start("back-off")? else {
        return Ok(());
    };
    let mut client = create_database(&cluster, "failing")?;
    cluster.reload(&[("counterx.failpoint", "fold.settled=error")])?;
    let began = Instant::now();
    client.batch_execute("SELECT bump('a', 1)")?;
    let failed = || cluster.log().matches("folding lane").count();
    poll_until("folds to fail", DEADLINE, || Ok(failed() >= 5))?;
    // Each pause is twice as long as the one before, from 0.1 s on. A slow machine has more time.
    let (failures, seconds) = (failed(), began.elapsed().as_secs_f64());
    let least = 0.1 * f64::from((1 << (failures - 1)) - 1);
    ensure!(seconds > least, "{failures} failures in {seconds:.1} s");
    cluster.reload(&[("counterx.failpoint", "")])?;
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}

#[test]
fn compact_is_not_disturbed_by_a_worker_that_notes_its_error() -> Result<()> {
    let Some(mut cluster) = start("note-error")? else {
        return Ok(());
    };
    let mut client = create_database(&cluster, "failing")?;
    client.batch_execute("SELECT bump('a', 1)")?;
    wait_for_worker(&mut client, "failing")?;
    settle(&mut client)?;
    let mut holder = cluster.connect_db("failing")?;
    holder.execute("SELECT pg_advisory_lock($1)", &[&PAUSE_KEY])?;
    fs::write(
        cluster
            .data_dir()
            .join("counterx.failpoint.fold.settled=error"),
        "",
    )?;
    cluster.reload(&[(
        "counterx.failpoint",
        "fold.settled=error once, worker.error_noted=pause",
    )])?;
    let waits = |client: &mut Client, who: &str| -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = 'failing'
                    AND wait_event_type = 'Lock' AND (backend_type = $1 OR query = $1))";
        Ok(client.query_one(sql, &[&who])?.get(0))
    };
    poll_until("the worker to fail and to stop", DEADLINE, || {
        client.batch_execute("SELECT bump('a', 1)")?;
        waits(&mut client, "counterx worker")
    })?;
    let compact = "SELECT counterx.compact()";
    let mut folder = cluster.connect_db("failing")?;
    std::thread::scope(|scope| {
        let folding = scope.spawn(move || folder.batch_execute(compact));
        poll_until("compact() to meet it", DEADLINE, || {
            waits(&mut client, compact)
        })?;
        holder.execute("SELECT pg_advisory_unlock($1)", &[&PAUSE_KEY])?;
        folding
            .join()
            .map_err(|_| anyhow!("compact() panicked"))?
            .context("compact() beside a worker that notes an error")
    })?;
    settle(&mut client)?;
    check(&mut client)?;
    let noted: Option<String> = client
        .query_one("SELECT last_error FROM counterx.workers", &[])?
        .get(0);
    ensure!(
        noted.as_deref() == Some("58030: failpoint fold.settled"),
        "{noted:?}"
    );
    Ok(())
}

/// What a session has found of the extension by then is gone; it is not to be mixed with the rest.
#[test]
fn session_that_looks_for_relations_while_they_are_replaced_finds_the_new_ones() -> Result<()> {
    let Some(cluster) = start("replaced")? else {
        return Ok(());
    };
    let mut client = create_database(&cluster, "replaced")?;
    let mut holder = cluster.connect_db("replaced")?;
    holder.execute("SELECT pg_advisory_lock($1)", &[&PAUSE_KEY])?;
    let mut session = cluster.connect_db("replaced")?;
    session.batch_execute("SET counterx.failpoint = 'catalog.gate_found=pause'")?;
    std::thread::scope(|scope| {
        let counting = scope.spawn(move || -> Result<i64> {
            session.batch_execute("SELECT counter_incr('x', 3)")?;
            session.batch_execute("SELECT counter_incr('x', 4)")?;
            let sql = "SELECT counter_value('x')::bigint";
            Ok(session.query_one(sql, &[])?.get(0))
        });
        poll_until("the session to look", DEADLINE, || {
            let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'advisory')";
            Ok(client.query_one(sql, &[])?.get(0))
        })?;
        client.batch_execute("DROP EXTENSION counterx; CREATE EXTENSION counterx")?;
        holder.execute("SELECT pg_advisory_unlock($1)", &[&PAUSE_KEY])?;
        let value = counting
            .join()
            .map_err(|_| anyhow!("the session panicked"))??;
        ensure!(value == 7, "{value}");
        Ok(())
    })
}
