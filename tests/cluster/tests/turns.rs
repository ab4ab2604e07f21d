//! Workers take turns, leave when others want the database, and are there when they are needed.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, check, count_workers, create_database, footprint, names_in_lanes, settle, turn_over,
    wait_for_no_worker, wait_for_worker,
};
use counterx_harness::{Cluster, ClusterBuilder, poll_until};
use postgres::Client;

/// What the log says when no worker can be started.
const NO_SLOT: &str = "no free background worker slot";

fn small_server(name: &str) -> ClusterBuilder {
    Cluster::builder()
        .name(name)
        .conf("max_worker_processes", "8")
        .conf("counterx.worker_idle_timeout", "1s")
        .conf("counterx.token_ttl", "4s")
}

/// Counts in a database, forty times a second, until it is told to stop. Returns how often.
fn count_steadily(cluster: &Cluster, db: &str, stop: &AtomicBool) -> Result<i64> {
    const PAUSE: Duration = Duration::from_millis(25);
    let mut client = cluster.connect_db(db)?;
    let mut counted = 0;
    while !stop.load(Ordering::Relaxed) {
        client.batch_execute("SELECT bump('x', 1)")?;
        counted += 1;
        thread::sleep(PAUSE);
    }
    Ok(counted)
}

/// How many workers a parallel query got.
fn parallel_workers(client: &mut Client) -> Result<i64> {
    let rows = client.query("EXPLAIN (ANALYZE, COSTS OFF) SELECT sum(n) FROM many", &[])?;
    rows.iter()
        .find_map(|row| {
            let line: String = row.get(0);
            line.trim()
                .strip_prefix("Workers Launched: ")
                .map(str::to_owned)
        })
        .context("no parallel plan")?
        .parse()
        .context("no number of workers")
}

/// Twelve databases that count all the time, on a server that has room for few workers.
fn twelve_databases(cluster: &Cluster) -> Result<()> {
    const FOLDS: i64 = 4;
    let names: Vec<String> = (0..12).map(|n| format!("busy{n}")).collect();
    for name in &names {
        create_database(cluster, name)?.batch_execute(
            "SELECT counter_incr_once('token ' || n, 'once') FROM generate_series(1, 5) n;
             INSERT INTO oracle VALUES ('once', 5)",
        )?;
    }
    let mut client = cluster.connect()?;
    client.batch_execute(
        "CREATE TABLE many AS SELECT generate_series(1, 20000) AS n;
         ANALYZE many;
         SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0",
    )?;
    let since = cluster.log_len();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let counting: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(|| count_steadily(cluster, name, &stop)))
            .collect();
        let mut watch = || -> Result<()> {
            let mut own = Vec::new();
            for name in &names {
                own.push((cluster.connect_db(name)?, 0, 0));
            }
            poll_until(
                "all databases to be folded again and again",
                DEADLINE,
                || {
                    for (own, folded, seen) in &mut own {
                        let now = footprint(own)?.folded;
                        *seen += i64::from(now > *folded);
                        *folded = now;
                    }
                    let workers = count_workers(&mut client, None)?;
                    // Those that are about to end may still be there when the next ones come.
                    ensure!(workers <= 6, "{workers} workers at a time");
                    Ok(own.iter().all(|(_, _, seen)| *seen >= FOLDS))
                },
            )?;
            // A turn is shorter than the time between two looks for what has expired.
            poll_until("expired tokens to be removed", DEADLINE, || {
                for (own, ..) in &mut own {
                    let sql = "SELECT count(*) FROM counterx.token";
                    if own.query_one(sql, &[])?.get::<_, i64>(0) > 0 {
                        return Ok(false);
                    }
                }
                Ok(true)
            })?;
            // For a moment at each change of turns there are two workers in it.
            let mut with_both = 0;
            poll_until("parallel queries to get their workers", DEADLINE, || {
                let got = parallel_workers(&mut client)?;
                ensure!(got > 0, "a parallel query without workers");
                with_both += i64::from(got == 2);
                Ok(with_both >= 10)
            })?;
            Ok(())
        };
        let result = watch();
        stop.store(true, Ordering::Relaxed);
        for thread in counting {
            let counted = thread.join().expect("a counting thread panicked")?;
            ensure!(counted > 0);
        }
        result
    })?;
    let log = cluster.log_since(since);
    let lines = log.lines().filter(|line| line.contains(NO_SLOT)).count();
    ensure!(lines <= 1, "{lines} lines tell of slots:\n{log}");
    for name in &names {
        let mut own = cluster.connect_db(name)?;
        check(&mut own)?;
    }
    Ok(())
}

#[test]
fn twelve_busy_databases_are_all_folded() -> Result<()> {
    let cluster = small_server("turns").start()?;
    twelve_databases(&cluster)?;
    // Nobody commits any more, and nothing is left lying.
    for n in 0..12 {
        settle(&mut cluster.connect_db(&format!("busy{n}"))?)?;
    }
    Ok(())
}

#[test]
fn twelve_busy_databases_are_all_folded_without_preload() -> Result<()> {
    let cluster = small_server("turnsnopreload").preload(false).start()?;
    twelve_databases(&cluster)
}

#[test]
fn forty_databases_that_count_once_are_folded() -> Result<()> {
    let cluster = small_server("forty").start()?;
    create_database(&cluster, "model")?;
    let names: Vec<String> = (0..40).map(|n| format!("rare{n}")).collect();
    let mut client = cluster.connect()?;
    for name in &names {
        client.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE model"))?;
    }
    for name in &names {
        cluster
            .connect_db(name)?
            .batch_execute("SELECT bump('x', 1)")?;
    }
    for name in &names {
        let mut own = cluster.connect_db(name)?;
        settle(&mut own)?;
        check(&mut own)?;
    }
    Ok(())
}

#[test]
fn a_few_databases_keep_their_workers() -> Result<()> {
    let cluster = small_server("few")
        .conf("counterx.worker_idle_timeout", "1h")
        .conf("counterx.compaction_interval", "20ms")
        .start()?;
    let mut clients = Vec::new();
    for name in ["one", "two", "three"] {
        clients.push((name, create_database(&cluster, name)?));
    }
    let mut pids = Vec::new();
    for (name, client) in &mut clients {
        client.batch_execute("SELECT bump('x', 1)")?;
        pids.push(wait_for_worker(client, name)?);
    }
    for _ in 0..20 {
        for (_, client) in &mut clients {
            client.batch_execute("SELECT bump('x', 1)")?;
            settle(client)?;
        }
    }
    for ((name, client), pid) in clients.iter_mut().zip(pids) {
        ensure!(
            wait_for_worker(client, name)? == pid,
            "{name} has another worker"
        );
    }
    Ok(())
}

/// A worker that is paused by a setting of its database makes room before it has seen that the setting
/// has changed. Who has counted since then has relied on it.
fn setting_changes_as_the_turn_ends(name: &str, preload: bool) -> Result<()> {
    let cluster = small_server(name)
        .preload(preload)
        .conf("counterx.max_workers", "1")
        .conf("counterx.compaction_interval", "20ms")
        .conf("counterx.worker_idle_timeout", "1h")
        .start()?;
    let mut other = create_database(&cluster, "other")?;
    let mut client = create_database(&cluster, "paused")?;
    for round in 0..2 {
        client.batch_execute("ALTER DATABASE paused SET counterx.compaction = off")?;
        poll_until("the worker to pause", DEADLINE, || {
            client.batch_execute("SELECT bump('x', 1)")?;
            let sql = "SELECT state = 'paused' FROM counterx.workers";
            Ok(client.query_one(sql, &[])?.get(0))
        })?;
        // All before the worker looks at the settings again, but for one time in ten.
        client.batch_execute("ALTER DATABASE paused RESET counterx.compaction")?;
        client.batch_execute("SELECT bump('x', 1)")?;
        if preload {
            other.batch_execute("SELECT bump('x', 1)")?;
        } else {
            // Without a launcher, those that count find a free turn, or wait for one.
            poll_until("the worker to make room", DEADLINE, || {
                other.batch_execute("SELECT bump('x', 1)")?;
                Ok(count_workers(&mut other, Some("other"))? > 0)
            })?;
        }
        settle(&mut client).with_context(|| format!("round {round}"))?;
        check(&mut client)?;
    }
    Ok(())
}

#[test]
fn a_database_is_folded_whose_setting_changes_as_the_turn_ends() -> Result<()> {
    setting_changes_as_the_turn_ends("changes", true)
}

#[test]
fn a_database_is_folded_whose_setting_changes_as_the_turn_ends_without_preload() -> Result<()> {
    setting_changes_as_the_turn_ends("changesnopreload", false)
}

/// Without a launcher: a session finds the turn free before the worker that was started for it is in the queue.
#[test]
fn who_comes_late_for_its_turn_is_heard_of() -> Result<()> {
    // What a paused process waits for: see the engine's `failpoint.rs`.
    const PAUSE_KEY: i64 = 0x636e_7478;
    let mut cluster = small_server("latecomer")
        .preload(false)
        .conf("counterx.max_workers", "1")
        .conf("counterx.compaction_interval", "20ms")
        .conf("counterx.worker_idle_timeout", "1h")
        .start()?;
    let mut other = create_database(&cluster, "other")?;
    let mut client = create_database(&cluster, "late")?;
    client.batch_execute("ALTER DATABASE late SET counterx.compaction = off")?;
    poll_until("the worker to pause", DEADLINE, || {
        client.batch_execute("SELECT bump('x', 1)")?;
        let sql = "SELECT state = 'paused' FROM counterx.workers";
        Ok(client.query_one(sql, &[])?.get(0))
    })?;
    let mut holder = cluster.connect_db("late")?;
    holder.execute("SELECT pg_advisory_lock($1)", &[&PAUSE_KEY])?;
    cluster.reload(&[("counterx.failpoint", "worker.queues=pause")])?;
    // Another worker is started that knows the setting, and this one ends.
    client.batch_execute("ALTER DATABASE late RESET counterx.compaction")?;
    client.batch_execute("SELECT bump('x', 1)")?;
    poll_until("another database to get the turn", DEADLINE, || {
        other.batch_execute("SELECT bump('x', 1)")?;
        Ok(count_workers(&mut other, Some("other"))? > 0)
    })?;
    settle(&mut other)?;
    let sql = "SELECT sum(pending_deltas) > 0 FROM counterx.lanes";
    ensure!(
        client.query_one(sql, &[])?.get::<_, bool>(0),
        "it was folded"
    );
    cluster.reload(&[("counterx.failpoint", "")])?;
    holder.execute("SELECT pg_advisory_unlock($1)", &[&PAUSE_KEY])?;
    // Nobody commits any more.
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}

#[test]
fn a_server_without_free_slots_says_so_once() -> Result<()> {
    // The launcher takes one, logical replication's the other.
    let cluster = small_server("noslot")
        .conf("max_worker_processes", "2")
        .start()?;
    let mut clients = Vec::new();
    for name in ["one", "two", "three", "four"] {
        clients.push(create_database(&cluster, name)?);
    }
    poll_until("the log to tell", DEADLINE, || {
        for client in &mut clients {
            client.batch_execute("SELECT bump('x', 1)")?;
        }
        Ok(cluster.log().contains(NO_SLOT))
    })?;
    // The launcher tries again once a second.
    for _ in 0..200 {
        for client in &mut clients {
            client.batch_execute("SELECT bump('x', 1), pg_sleep(0.005)")?;
        }
    }
    let log = cluster.log();
    let lines = log.lines().filter(|line| line.contains(NO_SLOT)).count();
    ensure!(lines == 1, "{lines} lines");
    for client in &mut clients {
        check(client)?;
    }
    Ok(())
}

#[test]
fn cancelling_an_idle_worker_or_the_launcher_does_nothing() -> Result<()> {
    let cluster = Cluster::builder()
        .name("cancel")
        .conf("counterx.compaction_interval", "20ms")
        .start()?;
    let mut client = create_database(&cluster, "cancel")?;
    client.batch_execute("SELECT bump('x', 1)")?;
    settle(&mut client)?;
    let worker = wait_for_worker(&mut client, "cancel")?;
    let launcher = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'counterx launcher'";
    let launcher_pid: i32 = client.query_one(launcher, &[])?.get(0);
    for _ in 0..30 {
        for pid in [worker, launcher_pid] {
            let sent: bool = client
                .query_one("SELECT pg_cancel_backend($1)", &[&pid])?
                .get(0);
            ensure!(sent, "process {pid} is gone");
        }
        client.batch_execute("SELECT bump('x', 1)")?;
        settle(&mut client)?;
    }
    ensure!(
        wait_for_worker(&mut client, "cancel")? == worker,
        "another worker"
    );
    let mut other = create_database(&cluster, "other")?;
    other.batch_execute("SELECT bump('x', 1)")?;
    settle(&mut other)?;
    let now: i32 = client.query_one(launcher, &[])?.get(0);
    ensure!(now == launcher_pid, "another launcher");
    let log = cluster.log();
    ensure!(!log.contains("exited with exit code"), "{log}");
    Ok(())
}

/// A fold of each lane that takes long: so many counters, and a pause at each.
fn make_long_fold(cluster: &Cluster, db: &str) -> Result<()> {
    let mut client = create_database(cluster, db)?;
    client.batch_execute(
        "SELECT bump_many(array_agg('n' || n), array_agg(n)) FROM generate_series(1, 10000) n",
    )?;
    poll_until("a fold to begin", DEADLINE, || {
        let sql = "SELECT EXISTS (SELECT FROM counterx.lanes WHERE folder_pid IS NOT NULL)
                      AND EXISTS (SELECT FROM pg_locks WHERE relation = 'counterx.total'::regclass
                                     AND mode = 'RowExclusiveLock')";
        Ok(client.query_one(sql, &[])?.get(0))
    })
}

fn long_folds(name: &str, preload: bool) -> Result<()> {
    let mut cluster = Cluster::builder()
        .name(name)
        .preload(preload)
        .conf("counterx.compaction_interval", "20ms")
        .conf("counterx.failpoint", "fold.total_written=slow")
        .start()?;
    make_long_fold(&cluster, "oldname")?;
    let mut client = cluster.connect()?;
    client.batch_execute("ALTER DATABASE oldname RENAME TO newname")?;
    make_long_fold(&cluster, "template")?;
    client.batch_execute("CREATE DATABASE copy TEMPLATE template")?;
    make_long_fold(&cluster, "unwanted")?;
    client.batch_execute("DROP DATABASE unwanted")?;
    if preload {
        // Nobody commits there any more, and there is something left to be folded.
        for db in ["newname", "template"] {
            poll_until("the worker to come back", DEADLINE, || {
                Ok(count_workers(&mut client, Some(db))? > 0)
            })?;
        }
    }
    cluster.reload(&[("counterx.failpoint", "")])?;
    // Those that fold are slow until they are through.
    client.batch_execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'counterx worker'",
    )?;
    for db in ["newname", "template", "copy"] {
        let mut client = cluster.connect_db(db)?;
        check(&mut client)?;
        client.batch_execute("SELECT bump('n1', 1)")?;
        settle(&mut client)?;
        check(&mut client)?;
        // It was not a failure.
        let sql = "SELECT last_error FROM counterx.workers";
        let error: Option<String> = client.query_one(sql, &[])?.get(0);
        ensure!(error.is_none(), "{error:?}");
    }
    Ok(())
}

#[test]
fn a_database_can_be_renamed_copied_and_dropped_beside_a_long_fold() -> Result<()> {
    long_folds("longfold", true)
}

#[test]
fn a_database_can_be_renamed_copied_and_dropped_beside_a_long_fold_without_preload() -> Result<()> {
    long_folds("longfoldnopreload", false)
}

/// `compact()` is a session's own; whoever wants the database waits for sessions, or does not.
#[test]
fn compact_goes_on_when_somebody_wants_the_database() -> Result<()> {
    let cluster = Cluster::builder().name("ownfold").start()?;
    let mut client = create_database(&cluster, "own")?;
    client.batch_execute("ALTER DATABASE own SET counterx.compaction = off")?;
    let mut client = cluster.connect_db("own")?;
    client.batch_execute(
        "SELECT bump_many(array_agg('n' || n), array_agg(n)) FROM generate_series(1, 400) n;
         SET counterx.failpoint = 'fold.total_written=slow'",
    )?;
    let folded = thread::scope(|scope| -> Result<i64> {
        let folding = scope.spawn(|| -> Result<i64> {
            Ok(client.query_one("SELECT counterx.compact()", &[])?.get(0))
        });
        let renamed = cluster
            .connect()?
            .batch_execute("ALTER DATABASE own RENAME TO other");
        let folded = folding.join().expect("the folding thread panicked")?;
        ensure!(renamed.is_err(), "renamed under a session");
        Ok(folded)
    })?;
    ensure!(folded == 400, "{folded}");
    check(&mut client)?;
    Ok(())
}

#[test]
fn roles_and_users_that_a_database_sets_do_not_stop_its_worker() -> Result<()> {
    let cluster = Cluster::builder()
        .name("setrole")
        .conf("counterx.compaction_interval", "20ms")
        .start()?;
    cluster.connect()?.batch_execute("CREATE ROLE nobody")?;
    for (db, name) in [("withrole", "role"), ("withuser", "session_authorization")] {
        let mut client = create_database(&cluster, db)?;
        // The worker of such a database is a new session.
        client.batch_execute(&format!("ALTER DATABASE {db} SET {name} = 'nobody'"))?;
        client.batch_execute("SELECT bump('x', 1)")?;
        settle(&mut client)?;
        // Emptying logs is writing to a gate as well.
        let before = footprint(&mut client)?;
        client.batch_execute("SELECT bump('x', 1)")?;
        settle(&mut client)?;
        ensure!(footprint(&mut client)?.folded > before.folded);
        let sql = "SELECT last_error FROM counterx.workers";
        let error: Option<String> = client.query_one(sql, &[])?.get(0);
        ensure!(error.is_none(), "{db}: {error:?}");
    }
    Ok(())
}

#[test]
fn folding_goes_on_when_the_bootstrap_superuser_is_none_any_more() -> Result<()> {
    let cluster = Cluster::builder()
        .name("demoted")
        .conf("counterx.compaction_interval", "20ms")
        .conf("counterx.log_max_size", "64kB")
        .start()?;
    let mut client = cluster.connect()?;
    client.batch_execute("CREATE ROLE boss SUPERUSER LOGIN")?;
    client.batch_execute("CREATE DATABASE demoted OWNER boss")?;
    let mut config = cluster.config("demoted");
    let mut boss = config.user("boss").connect(postgres::NoTls)?;
    boss.batch_execute("CREATE EXTENSION counterx")?;
    boss.batch_execute(counterx_cluster_tests::oracle_schema())?;
    let demoted = boss.batch_execute("ALTER ROLE postgres NOSUPERUSER");
    let version: i32 = boss
        .query_one("SELECT current_setting('server_version_num')::int", &[])?
        .get(0);
    if version >= 160_000 {
        // Since then it stays one: the server sees to it.
        ensure!(demoted.is_err(), "the bootstrap superuser is none any more");
        return Ok(());
    }
    demoted?;
    for _ in 0..3 {
        boss.batch_execute("SELECT bump('x', 1)")?;
        settle(&mut boss)?;
    }
    turn_over(&mut boss)?;
    check(&mut boss)?;
    Ok(())
}

/// Sessions that were there before count on.
fn no_connections(name: &str, preload: bool) -> Result<()> {
    let cluster = Cluster::builder().name(name).preload(preload).start()?;
    let mut clients = vec![create_database(&cluster, "closed")?];
    for _ in 0..4 {
        clients.push(cluster.connect_db("closed")?);
    }
    cluster
        .connect()?
        .batch_execute("ALTER DATABASE closed ALLOW_CONNECTIONS false")?;
    for _ in 0..150 {
        for client in &mut clients {
            client.batch_execute("SELECT bump('x', 1), pg_sleep(0.005)")?;
        }
    }
    let log = cluster.log();
    let lines = log.lines().filter(|line| line.contains("FATAL:")).count();
    ensure!(lines <= 2, "{lines} failing starts:\n{log}");
    cluster
        .connect()?
        .batch_execute("ALTER DATABASE closed ALLOW_CONNECTIONS true")?;
    poll_until("a worker", DEADLINE, || {
        clients[0].batch_execute("SELECT bump('x', 1)")?;
        Ok(count_workers(&mut clients[0], Some("closed"))? > 0)
    })?;
    settle(&mut clients[0])?;
    check(&mut clients[0])?;
    Ok(())
}

#[test]
fn a_database_without_connections_gets_few_starts() -> Result<()> {
    no_connections("closed", true)
}

#[test]
fn a_database_without_connections_gets_few_starts_without_preload() -> Result<()> {
    no_connections("closednopreload", false)
}

#[test]
fn forty_sessions_at_one_moment_start_one_worker() -> Result<()> {
    let cluster = Cluster::builder()
        .name("stampede")
        .preload(false)
        .conf("log_min_messages", "debug1")
        .start()?;
    let mut client = create_database(&cluster, "stampede")?;
    let mut clients = Vec::new();
    for _ in 0..40 {
        clients.push(cluster.connect_db("stampede")?);
    }
    let barrier = Barrier::new(clients.len());
    thread::scope(|scope| -> Result<()> {
        let committing: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                scope.spawn({
                    let barrier = &barrier;
                    move || {
                        barrier.wait();
                        client.batch_execute("SELECT bump('x', 1)")
                    }
                })
            })
            .collect();
        for thread in committing {
            thread.join().expect("a committing thread panicked")?;
        }
        Ok(())
    })?;
    settle(&mut client)?;
    check(&mut client)?;
    let log = cluster.log();
    let starts = log
        .lines()
        .filter(|line| line.contains(" registering background worker \"counterx worker\""))
        .count();
    // Two, where the first has come and gone on to the next second.
    ensure!((1..=2).contains(&starts), "{starts} workers were started");
    Ok(())
}

#[test]
fn a_log_is_emptied_when_its_snapshot_ends_after_the_worker() -> Result<()> {
    let cluster = Cluster::builder()
        .name("late")
        .conf("counterx.compaction_interval", "20ms")
        .conf("counterx.log_max_size", "64kB")
        .conf("counterx.worker_idle_timeout", "1s")
        .start()?;
    let mut client = create_database(&cluster, "late")?;
    let name = &names_in_lanes(&mut client)?[2];
    let mut old = cluster.connect_db("late")?;
    let mut old = old
        .build_transaction()
        .isolation_level(postgres::IsolationLevel::RepeatableRead)
        .start()?;
    let seen: i64 = old.query_one("SELECT counter_value($1)", &[name])?.get(0);
    client.batch_execute(&format!(
        "DO $$ BEGIN FOR n IN 1 .. 1500 LOOP PERFORM bump('{name}', 1); COMMIT; END LOOP; END $$"
    ))?;
    settle(&mut client)?;
    // More than one log: the full one and the one after it.
    let before = footprint(&mut client)?;
    ensure!(before.log_bytes > 64 * 1024, "{before:?}");
    wait_for_no_worker(&mut client, "late")?;
    ensure!(
        footprint(&mut client)?.truncated == before.truncated,
        "too early"
    );
    let again: i64 = old.query_one("SELECT counter_value($1)", &[name])?.get(0);
    ensure!(again == seen);
    old.commit()?;
    poll_until("the log to be emptied", DEADLINE, || {
        Ok(footprint(&mut client)?.truncated > before.truncated)
    })?;
    // And then nobody comes any more.
    wait_for_no_worker(&mut client, "late")?;
    check(&mut client)?;
    Ok(())
}
