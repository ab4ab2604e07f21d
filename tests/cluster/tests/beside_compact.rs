//! `compact()` beside the worker: whoever waits in it for a lane's writer holds up no other lane.

use anyhow::{Result, ensure};
use counterx_cluster_tests::create_database;
use counterx_harness::{Cluster, poll_until};
use postgres::Client;
use postgres::error::SqlState;
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

/// What a failpoint's pause waits for: see `src/failpoint.rs`.
const PAUSE_KEY: i64 = 0x636e_7478;

fn folded_lanes(client: &mut Client) -> Result<i64> {
    let query = "SELECT count(*) FROM counterx.lanes WHERE folded_epoch > 0";
    Ok(client.query_one(query, &[])?.get(0))
}

#[test]
fn a_worker_folds_though_compact_is_called_and_waits_all_the_time() -> Result<()> {
    let cluster = Cluster::builder()
        .name("beside-compact")
        .conf("counterx.compaction_interval", "500ms")
        .start()?;
    let mut client = create_database(&cluster, "counted")?;
    let mut writer = cluster.connect_db("counted")?;
    let mut other = cluster.connect_db("counted")?;
    // A commit that hangs, with the gate of its lane.
    other.execute("SELECT pg_advisory_lock($1)", &[&PAUSE_KEY])?;
    let pid: i32 = writer.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    let commit = thread::spawn(move || {
        writer.batch_execute(
            "BEGIN; SELECT counter_incr('held'); SET LOCAL counterx.failpoint = 'commit.flushed=pause'; COMMIT",
        )
    });
    poll_until("a commit that hangs", LIMIT, || {
        let query = "SELECT wait_event = 'advisory' FROM pg_stat_activity WHERE pid = $1";
        let hangs: Option<bool> = other.query_one(query, &[&pid])?.get(0);
        Ok(hangs == Some(true))
    })?;
    client.batch_execute("SET statement_timeout = '100ms'")?;
    let mut waited = 0;
    poll_until("folds of the other lanes", LIMIT, || {
        other.batch_execute("SELECT counter_incr('free' || i) FROM generate_series(1, 50) i")?;
        let error = client.batch_execute("SELECT counterx.compact()").err();
        let cancelled = error.is_some_and(|error| error.code() == Some(&SqlState::QUERY_CANCELED));
        waited += i32::from(cancelled);
        Ok(waited > 10 && folded_lanes(&mut other)? == 7)
    })?;
    other.execute("SELECT pg_advisory_unlock($1)", &[&PAUSE_KEY])?;
    commit.join().expect("does not panic")?;
    ensure!(waited > 10);
    Ok(())
}
