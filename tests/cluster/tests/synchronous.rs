//! Folding by hand beside a synchronous standby that hangs: nobody waits to count or to read.

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{create_database, wait_for_commits_to_wait};
use counterx_harness::{Cluster, poll_until};
use postgres::Client;
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// A cluster whose logs are full soon, and which nobody folds.
fn cluster(name: &str) -> Result<Cluster> {
    Cluster::builder()
        .name(name)
        .conf("counterx.compaction", "off")
        .conf("counterx.log_max_size", "64kB")
        .start()
}

/// Each lane has changed its log, and the one that it left is folded.
fn have_logs_to_be_emptied(client: &mut Client) -> Result<()> {
    let fill =
        "SELECT counter_incr('many:' || i || repeat('.', 180)) FROM generate_series(1, 4000) i";
    for command in [fill, "SELECT counterx.compact()", fill] {
        client.batch_execute(command)?;
    }
    Ok(())
}

fn log_bytes(client: &mut Client) -> Result<i64> {
    Ok(client
        .query_one("SELECT sum(log_bytes)::bigint FROM counterx.lanes", &[])?
        .get(0))
}

fn pid(client: &mut Client) -> Result<i32> {
    Ok(client.query_one("SELECT pg_backend_pid()", &[])?.get(0))
}

fn wait_for_standby_wait(client: &mut Client, pid: i32) -> Result<()> {
    poll_until("a commit that waits for the standby", LIMIT, || {
        let query = "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $1";
        let waits: Option<bool> = client.query_one(query, &[&pid])?.get(0);
        Ok(waits == Some(true))
    })
}

#[test]
fn nobody_waits_for_compact_whose_commit_waits_for_a_standby() -> Result<()> {
    let mut cluster = cluster("synchronous-compact")?;
    let mut folder = create_database(&cluster, "counted")?;
    have_logs_to_be_emptied(&mut folder)?;
    let mut other = cluster.connect_db("counted")?;
    cluster.reload(&[("synchronous_standby_names", "nobody")])?;
    wait_for_commits_to_wait(&cluster)?;
    let folder_pid = pid(&mut folder)?;
    let folding = thread::spawn(move || folder.batch_execute("SELECT counterx.compact()"));
    wait_for_standby_wait(&mut other, folder_pid)?;

    let mut counting = cluster.connect_db("counted")?;
    counting.batch_execute("SET statement_timeout = '20s'; SET synchronous_commit = local")?;
    let sum: i64 = counting
        .query_one("SELECT counter_sum('many')::bigint", &[])
        .context("reading beside compact()")?
        .get(0);
    ensure!(sum == 8000, "the sum is {sum}");
    counting
        .batch_execute("SELECT counter_incr('each' || i) FROM generate_series(1, 100) i")
        .context("counting beside compact()")?;

    cluster.reload(&[("synchronous_standby_names", "")])?;
    folding.join().expect("does not panic")?;
    Ok(())
}

#[test]
fn steps_empty_logs_without_waiting_for_a_standby() -> Result<()> {
    let mut cluster = cluster("synchronous-steps")?;
    let mut folder = create_database(&cluster, "counted")?;
    have_logs_to_be_emptied(&mut folder)?;
    let mut other = cluster.connect_db("counted")?;
    let before = log_bytes(&mut other)?;
    cluster.reload(&[("synchronous_standby_names", "nobody")])?;
    wait_for_commits_to_wait(&cluster)?;
    let folder_pid = pid(&mut folder)?;
    let folding = thread::spawn(move || {
        let done = folder.batch_execute("CALL counterx.compact_in_steps()");
        // The setting was changed for the steps alone.
        let after: String = folder.query_one("SHOW synchronous_commit", &[])?.get(0);
        done.map(|()| after)
    });
    // The first step may have something else of the caller's to commit.
    wait_for_standby_wait(&mut other, folder_pid)?;
    other.execute("SELECT pg_cancel_backend($1)", &[&folder_pid])?;
    poll_until("the end of the steps", LIMIT, || Ok(folding.is_finished()))?;
    let setting = folding.join().expect("does not panic")?;
    ensure!(setting == "on", "synchronous_commit is {setting}");
    let after = log_bytes(&mut other)?;
    ensure!(after < before, "{before} bytes before, {after} after");
    cluster.reload(&[("synchronous_standby_names", "")])?;
    Ok(())
}
