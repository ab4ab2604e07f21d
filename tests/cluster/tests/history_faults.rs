//! History: what was found to be wrong once.

use anyhow::{Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, create_database, folding_hard, has_clock, refused, set_clock, shared,
};
use counterx_harness::{Cluster, poll_until};
use postgres::Client;
use postgres::error::SqlState;

fn cluster() -> &'static Cluster {
    shared(|| {
        folding_hard("history-faults")
            .conf("max_prepared_transactions", "10")
            .conf("counterx.log_max_size", "64kB")
            .conf("timezone", "UTC")
            .start()
    })
}

/// A database in which nobody folds who is not told to.
fn still(name: &str) -> Result<Client> {
    drop(create_database(cluster(), name)?);
    let mut client = cluster().connect_db("postgres")?;
    client.batch_execute(&format!(
        "ALTER DATABASE {name} SET counterx.compaction = off"
    ))?;
    cluster().connect_db(name)
}

/// Runs statements one by one, each in a transaction of its own unless they say otherwise.
fn run(client: &mut Client, statements: &str) -> Result<()> {
    for statement in statements.split(';').filter(|part| !part.trim().is_empty()) {
        client.batch_execute(statement)?;
    }
    Ok(())
}

fn number(client: &mut Client, sql: &str) -> Result<Option<i64>> {
    Ok(client.query_one(sql, &[])?.get(0))
}

/// What the buckets of a counter come to, and what its newest one says of the value.
fn day(client: &mut Client, name: &str) -> Result<(i64, i64)> {
    let sql = format!(
        "SELECT coalesce(sum(delta), 0)::bigint, (array_agg(value ORDER BY start DESC))[1]::bigint
           FROM counter_buckets('{name}', 'day')"
    );
    let row = client.query_one(&sql, &[])?;
    Ok((row.get(0), row.get::<_, Option<i64>>(1).unwrap_or_default()))
}

/// An index that needs the executor, made by somebody who wants reports: no fold writes to that table, none
/// crashes, and counting goes on.
#[test]
fn folds_go_on_where_history_cannot_be_written() -> Result<()> {
    // The worker, which would leave out the history before the session has met the error, comes later.
    let mut client = still("stopped")?;
    run(
        &mut client,
        "SELECT counter_history('v', minute => NULL, hour => NULL);
         SELECT counter_incr('v:a', 10);
         SELECT counter_seal();
         CREATE INDEX report ON counterx.bucket_4_0 ((value + 1));
         SELECT counter_incr('v:a', 5), counter_incr('w:a', 7)",
    )?;
    let message = refused(
        client.batch_execute("SELECT counter_seal()"),
        &SqlState::FEATURE_NOT_SUPPORTED,
    )?;
    ensure!(message.contains("report"), "{message}");
    client.batch_execute("ALTER DATABASE stopped RESET counterx.compaction")?;
    client = cluster().connect_db("stopped")?;
    client.batch_execute("SELECT counter_incr('w:a', 0)")?;
    poll_until(
        "the lane to be folded without its history",
        DEADLINE,
        || {
            let sql = "SELECT sum(pending_deltas)::bigint FROM counterx.lanes";
            Ok(number(&mut client, sql)? == Some(0))
        },
    )?;
    ensure!(number(&mut client, "SELECT counter_value('v:a')")? == Some(15));
    ensure!(cluster().log().contains("the next fold leaves it out"));
    run(
        &mut client,
        "DROP INDEX counterx.report; SELECT counter_incr('v:a', 100); SELECT counter_seal()",
    )?;
    let (delta, value) = day(&mut client, "v:a")?;
    ensure!((delta, value) == (110, 115), "{delta} {value}");
    // What was left out is an adjustment of the bucket that was there.
    let sql = "SELECT sum(delta + adjusted)::bigint FROM counter_buckets('v:a', 'day')";
    ensure!(number(&mut client, sql)? == Some(115));
    Ok(())
}

/// What is late is folded before the logs, and so before what a history that begins has.
#[test]
fn what_is_prepared_beside_a_beginning_leaves_values_right() -> Result<()> {
    let mut client = still("begins")?;
    run(
        &mut client,
        "SELECT counter_incr('c:x', 5);
         SELECT counter_history('c');
         BEGIN; SELECT counter_incr('c:x', 3); PREPARE TRANSACTION 'beside';
         COMMIT PREPARED 'beside';
         SELECT counter_incr('c:x', 20)",
    )?;
    for _ in 0..2 {
        let (delta, value) = day(&mut client, "c:x")?;
        ensure!((delta, value) == (20, 28), "{delta} {value}");
        client.batch_execute("SELECT counter_seal()")?;
    }
    run(
        &mut client,
        "BEGIN; SELECT counter_incr('c:x', 2); PREPARE TRANSACTION 'later'; COMMIT PREPARED 'later'",
    )?;
    for _ in 0..2 {
        let (delta, value) = day(&mut client, "c:x")?;
        ensure!((delta, value) == (22, 30), "{delta} {value}");
        client.batch_execute("SELECT counter_seal()")?;
    }
    Ok(())
}

/// A purge takes what was counted before it, and nothing of what is counted after it, whichever log that is in.
#[test]
fn what_is_counted_after_a_purge_stays() -> Result<()> {
    let mut client = still("purged")?;
    client.batch_execute("SELECT counter_history('v', events => '1 day')")?;
    let sizes = "SELECT pg_relation_size('counterx.log_' || l || '_' || s) AS size FROM generate_series(0, 7) l, unnest('{a,b}'::text[]) s";
    let mut expected = 0;
    // In turn, each of the logs is the older one.
    for round in 0..4 {
        // Fills the active log of each lane, so that the next fold that is by hand changes to the other one.
        run(
            &mut client,
            "SELECT counter_incr('v:a', 1000);
             SELECT count(counter_incr('fill:' || n)) FROM generate_series(1, 20000) n;
             SELECT counter_drop('v:a', purge => true);
             SELECT counter_incr('v:a', 5)",
        )?;
        let full = number(&mut client, &format!("SELECT max(size) FROM ({sizes}) s"))?;
        ensure!(full > Some(64 * 1024), "{full:?}");
        expected = 5;
        let (delta, value) = day(&mut client, "v:a")?;
        ensure!(
            (delta, value) == (expected, expected),
            "before: {delta} {value}"
        );
        client.batch_execute("SELECT counterx.compact()")?;
        run(
            &mut client,
            "BEGIN; SELECT counter_incr('v:a', 3); PREPARE TRANSACTION 'after'; COMMIT PREPARED 'after'",
        )?;
        expected += 3;
        for _ in 0..2 {
            let (delta, value) = day(&mut client, "v:a")?;
            ensure!(
                (delta, value) == (expected, expected),
                "round {round}: {delta} {value}"
            );
            client.batch_execute("SELECT counterx.compact()")?;
        }
    }
    // Prepared and committed after the purge, and folded before it by its place.
    run(
        &mut client,
        "SELECT counter_drop('v:a', purge => true);
         BEGIN; SELECT counter_incr('v:a', 9); PREPARE TRANSACTION 'late'; COMMIT PREPARED 'late'",
    )?;
    for _ in 0..2 {
        let (delta, value) = day(&mut client, "v:a")?;
        ensure!((delta, value) == (9, 9), "{delta} {value}, not {expected}");
        client.batch_execute("SELECT counterx.compact()")?;
    }
    let sql = "SELECT count(*) FROM counter_events('v:a') WHERE delta = 9 AND folded";
    ensure!(number(&mut client, sql)? == Some(1));
    Ok(())
}

/// What a shorter time has hidden is not known by a longer one.
#[test]
fn what_was_hidden_is_not_known_again() -> Result<()> {
    let mut client = still("longer")?;
    if !has_clock(&mut client)? {
        return Ok(());
    }
    client.batch_execute("SELECT counter_history('v', hour => NULL, day => NULL)")?;
    for (time, delta) in [
        ("2027-03-01 12:00:05+00", 1),
        ("2027-03-02 12:00:05+00", 10),
        ("2027-03-06 12:00:05+00", 100),
    ] {
        set_clock(&mut client, time)?;
        run(
            &mut client,
            &format!("SELECT counter_incr('v:a', {delta}); SELECT counter_seal()"),
        )?;
    }
    let then = "SELECT counter_at('v:a', '2027-03-02 00:00+00')";
    ensure!(number(&mut client, then)?.is_none());
    for keep in ["infinity", "1 day", "7 days", "infinity"] {
        client.batch_execute(&format!(
            "SELECT counter_history('v', minute => '{keep}', hour => NULL, day => NULL)"
        ))?;
        ensure!(number(&mut client, then)?.is_none(), "{keep}");
        let sql = "SELECT (min(value - delta) + sum(delta) - counter_value('v:a'))::bigint FROM counter_buckets('v:a', 'minute')";
        ensure!(number(&mut client, sql)? == Some(0), "{keep}");
        let known = number(
            &mut client,
            "SELECT counter_at('v:a', '2027-03-06 11:00+00')",
        )?;
        ensure!(known == Some(11), "{keep}: {known:?}");
    }
    Ok(())
}

/// The rows of a dropped history are deleted though nobody counts any more, and no other history is there.
#[test]
fn dropped_rows_go_by_themselves() -> Result<()> {
    let mut client = create_database(cluster(), "dropped")?;
    run(
        &mut client,
        "SELECT counter_history('v', events => 'infinity');
         SELECT count(counter_incr('v:' || n)) FROM generate_series(1, 3000) n;
         SELECT counter_seal();
         SELECT counter_history_drop('v')",
    )?;
    poll_until("all rows to be deleted", DEADLINE, || {
        let sql = "SELECT (SELECT count(*) FROM counterx.bucket_4_0) + (SELECT count(*) FROM counterx.history_lane)";
        Ok(number(&mut client, sql)? == Some(0))
    })?;
    // Nobody sees what is left of it where somebody begins another one.
    run(
        &mut client,
        "SELECT counter_history('v'); SELECT counter_incr('v:1')",
    )?;
    let (delta, value) = day(&mut client, "v:1")?;
    ensure!((delta, value) == (1, 2), "{delta} {value}");
    Ok(())
}

/// A zone that the server does not know any more.
#[test]
fn an_unknown_zone_does_not_stop_folds() -> Result<()> {
    let mut client = still("nowhere")?;
    run(
        &mut client,
        "SELECT counter_history('v', time_zone => 'Asia/Kolkata');
         SELECT counter_incr('v:a', 1);
         SELECT counter_seal();
         UPDATE counterx.history SET zone = 'Europe/Nowhere'",
    )?;
    for value in 2..5 {
        // One that has found no row yet, each time.
        let mut other = cluster().connect_db("nowhere")?;
        run(
            &mut other,
            "SELECT counter_incr('v:a', 1); SELECT counter_seal()",
        )?;
        let (delta, newest) = day(&mut other, "v:a")?;
        ensure!((delta, newest) == (value, value), "{delta} {newest}");
    }
    for zone in ["CET", "EST", "nowhere", "Europe/Nowhere"] {
        refused(
            client.batch_execute(&format!(
                "SELECT counter_history('x', time_zone => '{zone}')"
            )),
            &SqlState::INVALID_PARAMETER_VALUE,
        )?;
    }
    Ok(())
}

/// What is kept for longer from now on is kept with the bucket that is open.
#[test]
fn an_open_bucket_is_kept_as_long_as_it_is_asked_for() -> Result<()> {
    let mut client = still("moved")?;
    run(
        &mut client,
        "SELECT counter_history('v', minute => NULL, hour => NULL, day => '2 days');
         SELECT counter_incr('v:a', 1);
         SELECT counter_seal();
         SELECT counter_history('v', minute => NULL, hour => NULL, day => 'infinity');
         SELECT counter_incr('v:a', 10);
         SELECT counter_seal();
         SELECT counter_incr('v:a', 100)",
    )?;
    for _ in 0..2 {
        let (delta, value) = day(&mut client, "v:a")?;
        ensure!((delta, value) == (111, 111), "{delta} {value}");
        let rows = number(&mut client, "SELECT count(*) FROM counterx.bucket_4_0")?;
        ensure!(rows == Some(1), "{rows:?}");
        run(&mut client, "SELECT counter_seal()")?;
    }
    Ok(())
}
