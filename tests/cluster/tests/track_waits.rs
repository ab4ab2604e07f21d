//! Who keeps a track from becoming exact keeps nobody else from anything.

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, create_bare_database, no_drift, settle, shared, wait_for_pause,
};
use counterx_harness::{Cluster, ClusterBuilder, poll_until};
use postgres::Client;

fn cluster() -> &'static Cluster {
    shared(|| {
        Cluster::builder()
            .name("track-waits")
            .conf("counterx.worker_idle_timeout", "1h")
            .start()
    })
}

/// A database with two tracked tables, `a` and `b`, whose keys are what functions make of a column.
fn two_tracks(db: &str) -> Result<Client> {
    two_tracks_in(cluster(), db)
}

fn two_tracks_in(cluster: &Cluster, db: &str) -> Result<Client> {
    let mut client = create_bare_database(cluster, db)?;
    client.batch_execute(
        "CREATE FUNCTION key_of_a(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1';
         CREATE FUNCTION key_of_b(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1';
         CREATE TABLE a (n int); INSERT INTO a VALUES (1);
         CREATE TABLE b (n int); INSERT INTO b VALUES (1)",
    )?;
    client.batch_execute(
        "SELECT counter_track('a', 'a', '{key_of_a(n)}'), counter_track('b', 'b', '{key_of_b(n)}')",
    )?;
    client.batch_execute(
        "SELECT counter_track_wait('a', '1 min'), counter_track_wait('b', '1 min')",
    )?;
    Ok(client)
}

/// The track of this type is stale from now on: its function is another one, the number says which.
fn make_stale(client: &mut Client, name: &str, by: i32) -> Result<()> {
    client.batch_execute(&format!(
        "CREATE OR REPLACE FUNCTION key_of_{name}(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 + {by}'"
    ))?;
    Ok(())
}

fn is_exact(client: &mut Client, name: &str) -> Result<bool> {
    let sql = "SELECT state = 'exact' FROM counter_tracks WHERE type = $1";
    Ok(client.query_one(sql, &[&name])?.get(0))
}

fn becomes_exact(client: &mut Client, name: &str) -> Result<()> {
    poll_until(&format!("{name} to become exact"), DEADLINE, || {
        is_exact(client, name)
    })
}

/// Until it is told whom a track waits for.
fn waits_for(client: &mut Client, name: &str, whom: &str) -> Result<()> {
    let mut told: Option<String> = None;
    poll_until(&format!("{name} to wait for {whom}"), DEADLINE, || {
        let sql = "SELECT waiting_for FROM counter_tracks WHERE type = $1";
        told = client.query_one(sql, &[&name])?.get(0);
        Ok(told.as_deref() == Some(whom))
    })
    .with_context(|| format!("{name} waits for {told:?}"))
}

#[test]
fn writer_of_one_table_keeps_no_other_track_from_becoming_exact() -> Result<()> {
    let mut client = two_tracks("one_writer")?;
    let mut first = cluster().connect_db("one_writer")?;
    let pid: i32 = first.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    first.batch_execute("BEGIN; INSERT INTO a VALUES (2)")?;
    make_stale(&mut client, "a", 1)?;
    waits_for(&mut client, "a", &format!("process {pid}"))?;
    // The filler has begun before these come: one that is stale, one that is new, one that has to wait as well.
    make_stale(&mut client, "b", 1)?;
    becomes_exact(&mut client, "b")?;
    client.batch_execute("CREATE TABLE c (n int); INSERT INTO c VALUES (1)")?;
    client.batch_execute("SELECT counter_track('c', 'c', '{n}')")?;
    becomes_exact(&mut client, "c")?;
    let mut second = cluster().connect_db("one_writer")?;
    let pid: i32 = second.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    second.batch_execute("BEGIN; INSERT INTO b VALUES (2)")?;
    make_stale(&mut client, "b", 2)?;
    waits_for(&mut client, "b", &format!("process {pid}"))?;
    second.batch_execute("COMMIT")?;
    becomes_exact(&mut client, "b")?;
    ensure!(
        !is_exact(&mut client, "a")?,
        "nobody has waited for a writer"
    );
    first.batch_execute("COMMIT")?;
    becomes_exact(&mut client, "a")?;
    no_drift(&mut client, &[("a", "a"), ("b", "b"), ("c", "c")])
}

/// It has written its deltas, so it keeps gates.
#[test]
fn prepared_writer_of_one_table_keeps_no_other_track_from_becoming_exact() -> Result<()> {
    let mut client = two_tracks("prepared")?;
    client.batch_execute("BEGIN; INSERT INTO a VALUES (2); PREPARE TRANSACTION 'writes a'")?;
    let whom = "prepared transaction 'writes a'";
    make_stale(&mut client, "a", 1)?;
    waits_for(&mut client, "a", whom)?;
    make_stale(&mut client, "b", 1)?;
    becomes_exact(&mut client, "b")?;
    // What it has written may be of counters that are those of a new track.
    client.batch_execute("CREATE TABLE c (n int); INSERT INTO c VALUES (1)")?;
    client.batch_execute("SELECT counter_track('c', 'c', '{n}')")?;
    waits_for(&mut client, "c", whom)?;
    client.batch_execute("COMMIT PREPARED 'writes a'")?;
    becomes_exact(&mut client, "a")?;
    becomes_exact(&mut client, "c")?;
    no_drift(&mut client, &[("a", "a"), ("b", "b"), ("c", "c")])
}

/// What they find makes a track stale.
#[test]
fn groups_are_checked_while_a_track_waits() -> Result<()> {
    let mut client = two_tracks("checked")?;
    client.batch_execute(
        "CREATE TABLE c (n int); CREATE INDEX ON c (n); INSERT INTO c SELECT generate_series(1, 9)",
    )?;
    client.batch_execute("SELECT counter_track('c', 'c', '{n}')")?;
    client.batch_execute("SELECT counter_track_wait('c', '1 min')")?;
    client.batch_execute("BEGIN; INSERT INTO a VALUES (2); PREPARE TRANSACTION 'unchecked'")?;
    make_stale(&mut client, "a", 1)?;
    waits_for(&mut client, "a", "prepared transaction 'unchecked'")?;
    client.batch_execute("ALTER SYSTEM SET counterx.track_checks = 100")?;
    client.batch_execute("SELECT pg_reload_conf()")?;
    // As nobody should do it: no command of DDL, so nothing is noticed. Sessions that begin after it go by it.
    let enable = |client: &mut Client, how: &str| {
        client.batch_execute(&format!(
            "UPDATE pg_trigger SET tgenabled = '{how}'
              WHERE tgrelid = 'c'::regclass AND tgfoid = 'counterx.count_row()'::regprocedure"
        ))
    };
    enable(&mut client, "D")?;
    let mut unnoticed = cluster().connect_db("checked")?;
    unnoticed.batch_execute("DELETE FROM c WHERE n > 5")?;
    enable(&mut client, "A")?;
    // Looked for each minute. It is put right at once, and says so.
    let rows = "SELECT state = 'exact' AND rows_seen = 5 FROM counter_tracks WHERE type = 'c'";
    poll_until("groups to be checked", 3 * DEADLINE, || {
        Ok(client.query_one(rows, &[])?.get(0))
    })?;
    ensure!(
        !is_exact(&mut client, "a")?,
        "nobody has waited for a writer"
    );
    client.batch_execute("ROLLBACK PREPARED 'unchecked'")?;
    becomes_exact(&mut client, "a")
}

#[test]
fn filler_that_waits_has_no_snapshot_and_no_locks() -> Result<()> {
    let mut client = two_tracks("no_locks")?;
    let mut writer = cluster().connect_db("no_locks")?;
    let pid: i32 = writer.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    writer.batch_execute("BEGIN; SAVEPOINT before; INSERT INTO a VALUES (2)")?;
    make_stale(&mut client, "a", 1)?;
    waits_for(&mut client, "a", &format!("process {pid}"))?;
    // Now and then it looks, for a moment.
    let sql = "SELECT a.backend_xmin IS NULL AND a.backend_xid IS NULL
                      AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'relation')
                 FROM pg_stat_activity a WHERE a.backend_type = 'counterx filler' AND a.datname = 'no_locks'";
    for _ in 0..5 {
        poll_until("the filler to have nothing", DEADLINE, || {
            let filler = client.query_opt(sql, &[])?;
            Ok(filler.context("the filler has not waited")?.get(0))
        })?;
    }
    // The transaction goes on, and is waited for, and is in nobody's way any more.
    writer.batch_execute("ROLLBACK TO before")?;
    client.batch_execute("SET lock_timeout = '1min'; DROP EXTENSION counterx CASCADE")?;
    poll_until("the filler to end", DEADLINE, || {
        Ok(client.query_opt(sql, &[])?.is_none())
    })?;
    writer.batch_execute("COMMIT")?;
    Ok(())
}

/// Nothing is folded, and nothing looked at, while this runs.
fn while_paused(
    cluster: &Cluster,
    client: &mut Client,
    change: impl FnOnce(&mut Client) -> Result<()>,
) -> Result<()> {
    let mut admin = cluster.connect()?;
    admin.batch_execute("ALTER SYSTEM SET counterx.compaction = off")?;
    admin.batch_execute("SELECT pg_reload_conf()")?;
    wait_for_pause(client)?;
    change(client)?;
    admin.batch_execute("ALTER SYSTEM RESET counterx.compaction")?;
    admin.batch_execute("SELECT pg_reload_conf()")?;
    Ok(())
}

fn folds(client: &mut Client) -> Result<()> {
    client.batch_execute("SELECT counter_incr('other')")?;
    settle(client)
}

fn is(client: &mut Client, what: &str, sql: &str) -> Result<()> {
    poll_until(what, DEADLINE, || Ok(client.query_one(sql, &[])?.get(0)))
}

fn pausing(name: &str) -> ClusterBuilder {
    Cluster::builder()
        .name(name)
        .conf("counterx.worker_idle_timeout", "1h")
}

#[test]
fn locked_track_that_was_restored_keeps_nothing_from_being_folded() -> Result<()> {
    let cluster = pausing("track-waits-restored").start()?;
    let mut client = two_tracks_in(&cluster, "restored")?;
    let mut holder = cluster.connect_db("restored")?;
    while_paused(&cluster, &mut client, |client| {
        client.batch_execute("UPDATE counterx.track SET looked = NULL")?;
        holder.batch_execute("BEGIN; SELECT FROM counterx.track WHERE type = 'a' FOR UPDATE")?;
        Ok(())
    })?;
    // After `a`, so the worker has come by.
    let looked =
        |name: &str| format!("SELECT looked IS NOT NULL FROM counterx.track WHERE type = '{name}'");
    is(&mut client, "the other track to be looked at", &looked("b"))?;
    folds(&mut client)?;
    let a: bool = client.query_one(&looked("a"), &[])?.get(0);
    ensure!(!a, "the track was not locked");
    holder.batch_execute("COMMIT")?;
    is(&mut client, "the track to be looked at", &looked("a"))
}

#[test]
fn locked_track_that_nobody_can_count_keeps_nothing_from_being_folded() -> Result<()> {
    // For the launcher, the server's own, and the worker.
    let cluster = pausing("track-waits-slots")
        .conf("max_worker_processes", "3")
        .start()?;
    let mut client = create_bare_database(&cluster, "slots")?;
    client.batch_execute("SELECT counter_incr('other')")?;
    settle(&mut client)?;
    let mut holder = cluster.connect_db("slots")?;
    while_paused(&cluster, &mut client, |client| {
        client.batch_execute(
            "CREATE TABLE a (n int); INSERT INTO a VALUES (1);
             CREATE TABLE b (n int); INSERT INTO b VALUES (1)",
        )?;
        client.batch_execute(
            "SELECT counter_track('a', 'a', '{n}'), counter_track('b', 'b', '{n}')",
        )?;
        holder.batch_execute("BEGIN; SELECT FROM counter_recount('a')")?;
        Ok(())
    })?;
    let noted = "SELECT coalesce(last_error LIKE '%max_worker_processes%', false) FROM counterx.track WHERE type = 'b'";
    is(&mut client, "the other track to say what it lacks", noted)?;
    folds(&mut client)?;
    holder.batch_execute("COMMIT")?;
    becomes_exact(&mut client, "a")
}

/// It is noticed as soon as the track is free again.
#[test]
fn locked_track_of_missed_ddl_keeps_nothing_from_being_folded() -> Result<()> {
    let cluster = pausing("track-waits-ddl").start()?;
    let mut client = two_tracks_in(&cluster, "ddl")?;
    let mut holder = cluster.connect_db("ddl")?;
    while_paused(&cluster, &mut client, |client| {
        client.batch_execute("ALTER EVENT TRIGGER counterx_tracked_ddl DISABLE")?;
        make_stale(client, "a", 1)?;
        make_stale(client, "b", 1)?;
        ensure!(
            is_exact(client, "a")? && is_exact(client, "b")?,
            "DDL was noticed"
        );
        holder.batch_execute("BEGIN; SELECT FROM counterx.track WHERE type = 'a' FOR UPDATE")?;
        Ok(())
    })?;
    let version =
        |name: &str| format!("SELECT version > 1 FROM counterx.track WHERE type = '{name}'");
    is(&mut client, "the other track to be stale", &version("b"))?;
    folds(&mut client)?;
    let a: bool = client.query_one(&version("a"), &[])?.get(0);
    ensure!(!a, "the track was not locked");
    let watched = |how: &str| {
        format!(
            "SELECT evtenabled = '{how}' FROM pg_event_trigger WHERE evtname = 'counterx_tracked_ddl'"
        )
    };
    // Not always: that is when all was looked at.
    is(&mut client, "DDL to be watched", &watched("O"))?;
    holder.batch_execute("COMMIT")?;
    is(&mut client, "the track to be stale", &version("a"))?;
    is(&mut client, "DDL to be watched always", &watched("A"))?;
    becomes_exact(&mut client, "a")?;
    no_drift(&mut client, &[("a", "a"), ("b", "b")])
}

#[test]
fn locked_event_trigger_keeps_nothing_from_being_folded() -> Result<()> {
    let cluster = pausing("track-waits-trigger").start()?;
    let mut client = two_tracks_in(&cluster, "trigger")?;
    let mut holder = cluster.connect_db("trigger")?;
    while_paused(&cluster, &mut client, |client| {
        client.batch_execute("ALTER EVENT TRIGGER counterx_tracked_ddl DISABLE")?;
        holder.batch_execute("BEGIN; ALTER EVENT TRIGGER counterx_tracked_ddl ENABLE REPLICA")?;
        Ok(())
    })?;
    poll_until("the worker to give up", DEADLINE, || {
        Ok(cluster.log().contains("the worker cannot look at tracks"))
    })?;
    folds(&mut client)?;
    holder.batch_execute("ROLLBACK")?;
    let watched =
        "SELECT evtenabled = 'A' FROM pg_event_trigger WHERE evtname = 'counterx_tracked_ddl'";
    is(&mut client, "DDL to be watched", watched)
}
