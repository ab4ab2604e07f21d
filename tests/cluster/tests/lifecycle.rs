//! Extensions and databases come and go under a busy worker, and idle ones cost nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use counterx_cluster_tests::{
    DEADLINE, Load, bad_lines, check, compact, count_and_settle, count_workers, create_database,
    folding_hard, is_lost, oracle_schema, settle, shared, sqlstate, under_watch,
    wait_for_no_worker, wait_for_worker,
};
use counterx_harness::{Cluster, poll_until};
use postgres::Client;
use postgres::error::SqlState;

fn cluster() -> &'static Cluster {
    shared(|| folding_hard("lifecycle").start())
}

fn value(client: &mut Client, name: &str) -> Result<i64> {
    Ok(client
        .query_one("SELECT counter_value($1)", &[&name])?
        .get(0))
}

/// Counts in `clients` sessions for as long as `meanwhile` takes; what goes wrong for them must
/// be an ordinary error, which they shrug off. Returns how often they counted.
fn beside_counting(
    db: &str,
    clients: usize,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<u64> {
    let over = AtomicBool::new(false);
    let counted = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let sessions: Vec<_> = (0..clients)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    let mut client = cluster().connect_db(db)?;
                    while !over.load(Ordering::Relaxed) {
                        let sql = "SELECT counter_incr('n' || n) FROM generate_series(1, 50) n";
                        match client.batch_execute(sql) {
                            Ok(()) => {
                                counted.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) => {
                                let error = anyhow::Error::from(error);
                                ensure!(!is_lost(&error), "{error:?}");
                                let code = sqlstate(&error);
                                let deadlock = code == Some(&SqlState::T_R_DEADLOCK_DETECTED);
                                ensure!(!deadlock, "{error:?}");
                                std::thread::sleep(Duration::from_millis(10));
                            }
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let result = poll_until("the sessions to count", DEADLINE, || {
            Ok(counted.load(Ordering::Relaxed) > 20 || sessions.iter().any(|s| s.is_finished()))
        })
        .and_then(|()| meanwhile());
        over.store(true, Ordering::Relaxed);
        for session in sessions {
            session
                .join()
                .map_err(|_| anyhow!("a session panicked"))??;
        }
        result
    })?;
    Ok(counted.into_inner())
}

/// What workers and the launcher have complained of in a database since then.
fn complaints(since: u64, db: &str) -> Vec<String> {
    let log = cluster().log_since(since);
    bad_lines(&log)
        .into_iter()
        .filter(|line| {
            line.contains(" PANIC:")
                || line.contains("terminated by signal")
                || (line.contains("counterx worker") && line.contains(db))
                || line.contains("counterx launcher")
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn drop_extension_with_a_busy_worker_and_create_it_again() -> Result<()> {
    let since = cluster().log_len();
    // A new database each time: where an extension was dropped before, the server locks the members
    // of the next one in another order, and its deadlock detector may have to decide.
    for db in ["dropext_a", "dropext_b", "dropext_c"] {
        let mut client = create_database(cluster(), db)?;
        beside_counting(db, 3, || {
            let mut client = cluster().connect_db(db)?;
            wait_for_worker(&mut client, db)?;
            client
                .batch_execute("DROP EXTENSION counterx")
                .context("DROP EXTENSION")?;
            wait_for_no_worker(&mut client, db)
        })?;
        client.batch_execute("CREATE EXTENSION counterx")?;
        ensure!(value(&mut client, "n1")? == 0, "a new extension remembers");
        let rows: i64 = client
            .query_one("SELECT count(*) FROM counters", &[])?
            .get(0);
        ensure!(rows == 0, "a new extension remembers {rows} counters");
        client.batch_execute("SELECT counter_incr('n1', 7)")?;
        ensure!(value(&mut client, "n1")? == 7);
        settle(&mut client)?;
        ensure!(value(&mut client, "n1")? == 7);
    }
    let complaints = complaints(since, "dropext");
    ensure!(complaints.is_empty(), "{complaints:#?}");
    Ok(())
}

#[test]
fn drop_extension_meets_pending_increments_without_a_crash() -> Result<()> {
    let mut client = create_database(cluster(), "droppending")?;
    let started = "SELECT pg_postmaster_start_time()::text";
    let before: String = client.query_one(started, &[])?.get(0);
    let mut witness = cluster().connect()?;

    // In the same transaction: nothing, or an error, but an end. Also with the library's memory
    // of the relations warm and cold, with another attempt to count, and with a new extension.
    for sql in [
        "SELECT counter_incr('x'); DROP EXTENSION counterx",
        "SELECT counter_value('x'); SELECT counter_incr('x'); DROP EXTENSION counterx; CREATE EXTENSION counterx",
        "SELECT counter_incr('x'); DROP EXTENSION counterx; CREATE EXTENSION counterx; SELECT counter_incr('x')",
        "SELECT counter_incr('x'); SAVEPOINT s; SELECT counter_incr('x'); DROP EXTENSION counterx; ROLLBACK TO s",
        "SET LOCAL counterx.pending_work_mem = '64kB'; SELECT counter_incr('x' || n) FROM generate_series(1, 5000) n; DROP EXTENSION counterx",
    ] {
        for end in ["COMMIT", "ROLLBACK", "PREPARE TRANSACTION 'droppending'"] {
            let mut session = cluster().connect_db("droppending")?;
            let result = session.batch_execute(&format!("BEGIN; {sql}; {end}"));
            if let Err(error) = result {
                let error = anyhow::Error::from(error);
                ensure!(!is_lost(&error), "{sql}; {end}: {error:?}");
                session.batch_execute("ROLLBACK")?;
            }
            // The session is whole, whatever came of it.
            session.batch_execute("SELECT 1")?;
            let prepared: i64 = session
                .query_one(
                    "SELECT count(*) FROM pg_prepared_xacts WHERE gid = 'droppending'",
                    &[],
                )?
                .get(0);
            if prepared == 1 {
                session.batch_execute("COMMIT PREPARED 'droppending'")?;
            }
            session
                .batch_execute("DROP EXTENSION IF EXISTS counterx; CREATE EXTENSION counterx")?;
            session.batch_execute("SELECT counter_incr('x', 3)")?;
            ensure!(value(&mut session, "x")? == 3, "{sql}; {end}");
            session.batch_execute("DROP EXTENSION counterx; CREATE EXTENSION counterx")?;
        }
    }
    witness
        .batch_execute("SELECT 1")
        .context("the server has crashed")?;
    ensure!(client.query_one(started, &[])?.get::<_, String>(0) == before);
    Ok(())
}

#[test]
fn drop_extension_by_another_session_meets_pending_increments_without_a_crash() -> Result<()> {
    let mut client = create_database(cluster(), "dropother")?;
    let mut witness = cluster().connect()?;
    for recreate in [false, true] {
        for end in ["COMMIT", "PREPARE TRANSACTION 'dropother'"] {
            let mut session = cluster().connect_db("dropother")?;
            session.batch_execute("SELECT counter_incr('warm'); SELECT counter_value('warm')")?;
            session.batch_execute("BEGIN; SELECT counter_incr('x', 5)")?;
            client.batch_execute("DROP EXTENSION counterx")?;
            if recreate {
                client.batch_execute("CREATE EXTENSION counterx")?;
            }
            match session.batch_execute(end) {
                Ok(()) if end.starts_with("PREPARE") => {
                    session.batch_execute("COMMIT PREPARED 'dropother'")?;
                }
                Ok(()) => {}
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    ensure!(!is_lost(&error), "{end}: {error:?}");
                    session.batch_execute("ROLLBACK")?;
                }
            }
            client.batch_execute("DROP EXTENSION IF EXISTS counterx; CREATE EXTENSION counterx")?;
            // The old session finds the new extension.
            session.batch_execute("SELECT counter_incr('x', 3)")?;
            ensure!(value(&mut session, "x")? == 3 && value(&mut client, "x")? == 3);
        }
    }
    witness
        .batch_execute("SELECT 1")
        .context("the server has crashed")?;
    Ok(())
}

#[test]
fn drop_database_with_a_busy_worker() -> Result<()> {
    let since = cluster().log_len();
    let mut admin = cluster().connect()?;
    for round in 0..3 {
        let db = format!("dropdb{round}");
        drop(create_database(cluster(), &db)?);
        beside_counting(&db, 3, || {
            wait_for_worker(&mut cluster().connect()?, &db).map(drop)
        })?;
        // The sessions have just gone and the worker is at it. Their backends may take a moment.
        admin
            .batch_execute(&format!("DROP DATABASE {db}"))
            .context("DROP DATABASE")?;
        ensure!(count_workers(&mut admin, Some(&db))? == 0);
        // The name is free: nobody brings anything of the old one along.
        let mut client = create_database(cluster(), &db)?;
        ensure!(value(&mut client, "n1")? == 0);
        client.batch_execute("SELECT bump('n1', 2)")?;
        settle(&mut client)?;
        check(&mut client)?;
        drop(client);
        admin
            .batch_execute(&format!("DROP DATABASE {db}"))
            .context("second DROP DATABASE")?;
    }
    let complaints: Vec<_> = complaints(since, "dropdb")
        .into_iter()
        // A worker that is asked to go by the server says so.
        .filter(|line| !line.contains("terminating background worker"))
        .collect();
    ensure!(complaints.is_empty(), "{complaints:#?}");
    Ok(())
}

#[test]
fn drop_database_with_force_and_a_busy_worker() -> Result<()> {
    let mut admin = cluster().connect()?;
    drop(create_database(cluster(), "dropforce")?);
    beside_counting("dropforce", 3, || Ok(()))?;
    admin.batch_execute("DROP DATABASE dropforce WITH (FORCE)")?;
    ensure!(count_workers(&mut admin, Some("dropforce"))? == 0);
    Ok(())
}

#[test]
fn copy_of_a_template_has_the_counters_of_its_original() -> Result<()> {
    let mut admin = cluster().connect()?;
    let load = Load {
        clients: 4,
        transactions: 100,
        ..Load::default()
    };
    let mut client = create_database(cluster(), "original")?;
    under_watch(&cluster().config("original"), &load, |_| Ok(()))?;
    client.batch_execute("ALTER DATABASE original SET counterx.compaction = off")?;
    drop(client);
    let mut client = cluster().connect_db("original")?;
    client.batch_execute("SELECT bump('n' || n, n) FROM generate_series(1, 50) n")?;
    let expected: String = client
        .query_one("SELECT sum(value)::text FROM counters", &[])?
        .get(0);
    drop(client);
    // The worker of the original is there still, or its switch has just been turned.
    admin.batch_execute("CREATE DATABASE copy TEMPLATE original")?;
    admin.batch_execute("CREATE DATABASE copy2 TEMPLATE original STRATEGY file_copy")?;
    for db in ["copy", "copy2"] {
        let mut client = cluster().connect_db(db)?;
        check(&mut client)?;
        let sum: String = client
            .query_one("SELECT sum(value)::text FROM counters", &[])?
            .get(0);
        ensure!(sum == expected, "{db}: {sum}, original {expected}");
        under_watch(&cluster().config(db), &load, |_| Ok(()))?;
        count_and_settle(&mut client)?;
    }
    let mut client = cluster().connect_db("original")?;
    let sum: String = client
        .query_one("SELECT sum(value)::text FROM counters", &[])?
        .get(0);
    ensure!(sum == expected, "the original has changed");
    compact(&mut client)?;
    check(&mut client)?;
    Ok(())
}

#[test]
fn database_with_a_running_worker_can_be_copied_and_renamed() -> Result<()> {
    let mut admin = cluster().connect()?;
    let mut client = create_database(cluster(), "oldname")?;
    client.batch_execute("SELECT bump('n' || n, n) FROM generate_series(1, 50) n")?;
    wait_for_worker(&mut admin, "oldname")?;
    drop(client);
    admin.batch_execute("CREATE DATABASE copied TEMPLATE oldname")?;
    let mut client = cluster().connect_db("oldname")?;
    client.batch_execute("SELECT bump('n' || n, n) FROM generate_series(1, 50) n")?;
    wait_for_worker(&mut admin, "oldname")?;
    drop(client);
    admin.batch_execute("ALTER DATABASE oldname RENAME TO newname")?;
    for db in ["copied", "newname"] {
        let mut client = cluster().connect_db(db)?;
        check(&mut client)?;
        client.batch_execute("SELECT bump('n1', 1)")?;
        settle(&mut client)?;
        check(&mut client)?;
    }
    Ok(())
}

#[test]
fn template_with_an_empty_extension_starts_from_zero_in_each_copy() -> Result<()> {
    let mut admin = cluster().connect()?;
    admin.batch_execute("CREATE DATABASE mould")?;
    let mut client = cluster().connect_db("mould")?;
    client.batch_execute("CREATE EXTENSION counterx")?;
    client.batch_execute(oracle_schema())?;
    drop(client);
    for db in ["cast1", "cast2"] {
        admin.batch_execute(&format!("CREATE DATABASE {db} TEMPLATE mould"))?;
        let mut client = cluster().connect_db(db)?;
        client.batch_execute("SELECT bump('x', 2)")?;
        settle(&mut client)?;
        ensure!(value(&mut client, "x")? == 2);
    }
    Ok(())
}

#[test]
fn idle_worker_leaves_and_an_idle_database_writes_nothing() -> Result<()> {
    let cluster = folding_hard("idle")
        // Nobody else writes WAL: no standby snapshots, no vacuum, no checkpoint.
        .conf("wal_level", "minimal")
        .conf("max_wal_senders", "0")
        .conf("autovacuum", "off")
        .conf("checkpoint_timeout", "1h")
        .conf("max_wal_size", "4GB")
        .conf("counterx.worker_idle_timeout", "3s")
        .start()?;
    let mut client = create_database(&cluster, "idle")?;
    let load = Load {
        transactions: 150,
        two_phase: true,
        ..Load::default()
    };
    under_watch(&cluster.config("idle"), &load, |_| Ok(()))?;
    count_and_settle(&mut client)?;

    // Still for fifty looks, in which the worker has gone round as often.
    let lsn = "SELECT pg_current_wal_insert_lsn()::text";
    let (mut last, mut still) = (String::new(), 0);
    let mut awake = 0;
    poll_until("the database to stop writing", DEADLINE, || {
        let now: String = client.query_one(lsn, &[])?.get(0);
        still = if now == last { still + 1 } else { 0 };
        if still == 0 {
            awake = 0;
        }
        awake += count_workers(&mut client, Some("idle"))?;
        last = now;
        Ok(still >= 50)
    })?;
    ensure!(awake > 10, "the worker left before it could be idle");
    wait_for_no_worker(&mut client, "idle")?;
    let now: String = client.query_one(lsn, &[])?.get(0);
    ensure!(
        now == last,
        "the worker wrote something before it left: {last} {now}"
    );

    // Reads write nothing either, and start nobody.
    let mut reader = cluster.connect_db("idle")?;
    for _ in 0..5 {
        check(&mut reader)?;
    }
    ensure!(
        count_workers(&mut reader, Some("idle"))? == 0,
        "a read has started a worker"
    );
    client.batch_execute("SELECT bump('last', 1)")?;
    wait_for_worker(&mut client, "idle")?;
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}

#[test]
fn database_without_the_extension_gets_no_worker() -> Result<()> {
    let mut admin = cluster().connect()?;
    admin.batch_execute("CREATE DATABASE without")?;
    let mut without = cluster().connect_db("without")?;
    without.batch_execute("CREATE TABLE t AS SELECT 1 AS x")?;
    let mut client = create_database(cluster(), "has")?;
    client.batch_execute("SELECT bump('x', 1)")?;
    wait_for_worker(&mut client, "has")?;
    settle(&mut client)?;
    ensure!(count_workers(&mut client, Some("without"))? == 0);
    ensure!(count_workers(&mut client, Some("has"))? == 1);
    Ok(())
}
