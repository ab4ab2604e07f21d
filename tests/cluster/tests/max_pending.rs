//! Back-pressure: with `counterx.max_pending`, no lane fills beyond it unnoticed, and nothing is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use counterx_cluster_tests::{
    DEADLINE, Load, Outcome, Recovering, check, create_database, folding_hard, kill_and_recover,
    names_in_lanes, pause_folding, refused, settle, shared, together,
};
use counterx_harness::{Cluster, StopMode, poll_until};
use postgres::error::SqlState;
use postgres::{Client, NoTls};

fn cluster() -> &'static Cluster {
    shared(|| {
        folding_hard("maxpending")
            .conf("wal_level", "logical")
            .start()
    })
}

/// Of a database whose sessions see them from their start.
fn set(client: &mut Client, db: &str, settings: &[(&str, &str)]) -> Result<()> {
    for (name, value) in settings {
        client.batch_execute(&format!(
            "ALTER DATABASE {db} SET counterx.{name} = '{value}'"
        ))?;
    }
    Ok(())
}

/// A transaction that is open and has written early: no lane is folded.
fn hold_up<'a>(client: &'a mut Client) -> Result<postgres::Transaction<'a>> {
    let mut transaction = client.transaction()?;
    transaction.batch_execute(
        "SET LOCAL counterx.max_pending = 0;
         SET LOCAL counterx.pending_work_mem = '64kB';
         SELECT count(counter_incr('early:' || i)) FROM generate_series(1, 3000) i",
    )?;
    Ok(transaction)
}

/// No lane is folded as long as the transaction is open; it writes nothing.
fn lock_gates(transaction: &mut postgres::Transaction) -> Result<()> {
    for lane in 0..8 {
        transaction.batch_execute(&format!(
            "LOCK TABLE counterx.gate_{lane} IN SHARE UPDATE EXCLUSIVE MODE"
        ))?;
    }
    Ok(())
}

/// One pending delta is too many for this session, which waits so long.
fn wait_up_to(client: &mut Client, longest: &str) -> Result<()> {
    Ok(client.batch_execute(&format!(
        "SET counterx.max_pending = 1; SET counterx.max_pending_action = wait; SET counterx.max_pending_wait = '{longest}'"
    ))?)
}

/// Tries what is refused at first, until there is room.
fn try_until_let_through(client: &mut Client, sql: &str) -> Result<()> {
    poll_until("a write to be let through", DEADLINE, || {
        match client.batch_execute(sql) {
            Ok(()) => Ok(true),
            tried => {
                refused(tried, &SqlState::CONFIGURATION_LIMIT_EXCEEDED)?;
                Ok(false)
            }
        }
    })
}

/// How many transactions have waited in its database.
fn waits(client: &mut Client) -> Result<i64> {
    let sql = "SELECT back_pressure_waits FROM counterx.stat";
    Ok(client.query_one(sql, &[])?.get(0))
}

fn pid_of(client: &mut Client) -> Result<i32> {
    Ok(client.query_one("SELECT pg_backend_pid()", &[])?.get(0))
}

#[test]
fn writers_wait_for_folds_and_no_lane_grows_beyond() -> Result<()> {
    const MOST: i64 = 20;
    const NAMES: i64 = 10;
    let mut client = create_database(cluster(), "waits")?;
    set(
        &mut client,
        "waits",
        &[
            ("max_pending", &MOST.to_string()),
            ("max_pending_action", "wait"),
            ("max_pending_wait", "60s"),
        ],
    )?;
    let config = cluster().config("waits");
    let load = Load {
        clients: 4,
        transactions: 100,
        ..Load::default()
    };
    // However quick the worker is, somebody has to wait: nothing is folded before.
    let (mut other, mut watcher) = (config.connect(NoTls)?, config.connect(NoTls)?);
    let mut held_up = other.transaction()?;
    lock_gates(&mut held_up)?;
    // Each that was let through may write all of its names to one lane.
    let bound = MOST + load.clients.cast_signed() * NAMES;
    together(
        &load,
        |_, control| {
            let mut client = config.connect(NoTls)?;
            let sql =
                format!("SELECT count(bump('n:' || i, 1)) FROM generate_series(1, {NAMES}) i");
            for _ in 0..load.transactions {
                client.query_one(&sql, &[])?;
                control.count();
            }
            Ok(Outcome::default())
        },
        |control| {
            let mut client = config.connect(NoTls)?;
            let mut looks = 0;
            while !control.is_done() {
                let most: i64 = client
                    .query_one("SELECT max(pending_deltas) FROM counterx.lanes", &[])?
                    .get(0);
                ensure!(most <= bound, "{most} are pending, at most {bound} may be");
                check(&mut client)?;
                looks += 1;
            }
            Ok(looks)
        },
        |_| {
            poll_until("somebody to wait for a fold", DEADLINE, || {
                let sql = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = 'waits' AND backend_type = 'client backend'
                              AND wait_event IN ('Extension', 'CounterxFold')";
                Ok(watcher.query_one(sql, &[])?.get(0))
            })?;
            Ok(held_up.rollback()?)
        },
    )?;
    let row = client.query_one(
        "SELECT back_pressure_waits, back_pressure_wait_time, counter_value('n:1') FROM counterx.stat",
        &[],
    )?;
    let (waits, time, value): (i64, f64, i64) = (row.get(0), row.get(1), row.get(2));
    ensure!(waits > 0 && time > 0.0, "{waits} waits, {time} ms");
    ensure!(value == (load.clients * load.transactions).cast_signed());
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}

#[test]
fn wait_has_an_end_where_a_lane_cannot_be_folded() -> Result<()> {
    let mut client = create_database(cluster(), "stuck")?;
    let mut other = cluster().connect_db("stuck")?;
    let held_up = hold_up(&mut other)?;
    wait_up_to(&mut client, "200ms")?;
    let waited = client.batch_execute("SELECT bump('x', 1)");
    refused(waited, &SqlState::CONFIGURATION_LIMIT_EXCEEDED)?;
    client.batch_execute("SET counterx.max_pending_action = error")?;
    let tried = client.batch_execute("SELECT bump('x', 1)");
    refused(tried, &SqlState::CONFIGURATION_LIMIT_EXCEEDED)?;
    // What waits is let through as soon as the other one is over.
    client.batch_execute(
        "SET counterx.max_pending_action = wait; SET counterx.max_pending_wait = '60s'",
    )?;
    let pid = pid_of(&mut client)?;
    thread::scope(|scope| -> Result<()> {
        let waiting = scope.spawn(|| client.batch_execute("SELECT bump('x', 1)"));
        let mut watcher = cluster().connect_db("stuck")?;
        wait_for_waiting(&mut watcher, pid)?;
        held_up.commit()?;
        waiting.join().expect("a client panicked")?;
        Ok(())
    })?;
    settle(&mut client)?;
    let row = client.query_one("SELECT counter_value('x'), counter_sum('early:')", &[])?;
    ensure!(row.get::<_, i64>(0) == 1);
    let early: i64 = client
        .query_one("SELECT counter_sum('early:')::bigint", &[])?
        .get(0);
    ensure!(early == 3000);
    Ok(())
}

/// PostgreSQL 15 and 16 have one name for all waits of extensions.
fn wait_for_waiting(watcher: &mut Client, pid: i32) -> Result<()> {
    poll_until("a session to wait for the fold", DEADLINE, || {
        let sql = "SELECT coalesce(wait_event IN ('Extension', 'CounterxFold'), false)
                     FROM pg_stat_activity WHERE pid = $1";
        Ok(watcher.query_one(sql, &[&pid])?.get(0))
    })
}

#[test]
fn waiting_session_can_be_cancelled_and_killed() -> Result<()> {
    let cluster = folding_hard("pressurekill").start()?;
    let mut client = create_database(&cluster, "killed")?;
    let mut other = cluster.connect_db("killed")?;
    let held_up = hold_up(&mut other)?;
    wait_up_to(&mut client, "2min")?;
    let pid = pid_of(&mut client)?;
    let config = cluster.config("killed");
    let mut connection = Recovering::new(&config);
    thread::scope(|scope| -> Result<()> {
        let waiting = scope.spawn(|| {
            let cancelled = client.batch_execute("SELECT bump('x', 1)");
            (cancelled, client.batch_execute("SELECT bump('x', 10)"))
        });
        let watcher = connection.client()?;
        wait_for_waiting(watcher, pid)?;
        watcher.execute("SELECT pg_cancel_backend($1)", &[&pid])?;
        // The same session waits again, in another statement.
        poll_until("the second statement to wait", DEADLINE, || {
            let sql = "SELECT query LIKE '%10)' AND coalesce(wait_event IN ('Extension', 'CounterxFold'), false)
                         FROM pg_stat_activity WHERE pid = $1";
            Ok(watcher.query_one(sql, &[&pid])?.get(0))
        })?;
        kill_and_recover(&mut connection, |_| Ok(pid))?;
        let (cancelled, killed) = waiting.join().expect("a client panicked");
        refused(cancelled, &SqlState::QUERY_CANCELED)?;
        ensure!(killed.is_err());
        Ok(())
    })?;
    drop(held_up);
    let client = connection.client()?;
    client.batch_execute("SELECT bump('y', 1)")?;
    settle(client)?;
    check(client)?;
    let value: i64 = client.query_one("SELECT counter_value('x')", &[])?.get(0);
    ensure!(value == 0);
    Ok(())
}

/// What the error says of how long the transaction has waited.
fn milliseconds_waited(result: std::result::Result<(), postgres::Error>) -> Result<u64> {
    let Err(error) = result else {
        bail!("it was let through")
    };
    let code = error.code().cloned();
    ensure!(
        code == Some(SqlState::CONFIGURATION_LIMIT_EXCEEDED),
        "{error:?}"
    );
    let detail = error.as_db_error().and_then(|error| error.detail());
    let detail = detail.context("no detail")?;
    match detail.split_once("has waited ") {
        // Who was refused at once.
        None => Ok(0),
        Some((_, waited)) => {
            let waited = waited.split_once(" ms").context("no unit")?.0;
            Ok(waited.parse()?)
        }
    }
}

/// The server's own statement_timeout is over when a commit begins.
#[test]
fn nobody_waits_longer_than_a_statement_may_take() -> Result<()> {
    let mut client = create_database(cluster(), "timeout")?;
    let mut other = cluster().connect_db("timeout")?;
    let held_up = hold_up(&mut other)?;
    wait_up_to(&mut client, "1min")?;
    client.batch_execute("SET statement_timeout = '2s'")?;
    let waited = milliseconds_waited(client.batch_execute("SELECT bump('early:1', 1)"))?;
    ensure!((2_000..60_000).contains(&waited), "{waited} ms");
    held_up.rollback()?;
    Ok(())
}

/// A worker may be there, and will not fold.
#[test]
fn nobody_waits_where_folding_is_paused() -> Result<()> {
    let mut client = create_database(cluster(), "paused")?;
    pause_folding(&mut client, "paused")?;
    let mut client = cluster().connect_db("paused")?;
    client.batch_execute("SELECT bump('x', 1)")?;
    wait_up_to(&mut client, "1min")?;
    let waited = milliseconds_waited(client.batch_execute("SELECT bump('x', 1)"))?;
    ensure!(waited == 0, "{waited} ms");
    Ok(())
}

/// Who writes to two lanes is let through when each has had room, whatever others have filled since.
#[test]
fn lanes_need_not_have_room_at_one_moment() -> Result<()> {
    let mut client = create_database(cluster(), "lanes")?;
    let names = names_in_lanes(&mut client)?;
    let mut others = [
        cluster().connect_db("lanes")?,
        cluster().connect_db("lanes")?,
    ];
    // Keeps workers off a lane, and nobody from counting.
    fn hold(client: &mut Client, lane: usize) -> Result<()> {
        client.batch_execute(&format!(
            "BEGIN; LOCK TABLE counterx.gate_{lane} IN SHARE UPDATE EXCLUSIVE MODE"
        ))?;
        Ok(())
    }
    settle(&mut client)?;
    let [first, second] = &mut others;
    hold(first, 0)?;
    hold(second, 1)?;
    let mut filler = cluster().connect_db("lanes")?;
    let fill = |client: &mut Client, lane: usize| {
        client.execute("SELECT counter_incr($1)", &[&names[lane]])
    };
    fill(&mut filler, 0)?;
    fill(&mut filler, 1)?;
    wait_up_to(&mut client, "1min")?;
    let pid = pid_of(&mut client)?;
    let mut watcher = cluster().connect_db("lanes")?;
    // By the marks that it has set, which it sets again with each look.
    let mut wait_for_marks = |lanes: &[u32]| {
        let mut in_a_row = 0;
        poll_until("a session to wait for lanes", DEADLINE, || {
            let sql = "SELECT coalesce(array_agg(objid ORDER BY objid), '{}') = $2 FROM pg_locks
                        WHERE locktype = 'userlock' AND pid = $1 AND objsubid = 0 AND mode = 'ShareLock'
                          AND classid = x'636e7470'::int";
            let are_set: bool = watcher.query_one(sql, &[&pid, &lanes])?.get(0);
            in_a_row = if are_set { in_a_row + 1 } else { 0 };
            Ok(in_a_row == 5)
        })
    };
    thread::scope(|scope| -> Result<()> {
        let waiting = scope.spawn(|| {
            client.execute(
                "SELECT counter_incr($1), counter_incr($2)",
                &[&names[0], &names[1]],
            )
        });
        // All at once, so that the worker need not be told one by one.
        wait_for_marks(&[0, 1])?;
        first.batch_execute("COMMIT")?;
        wait_for_marks(&[1])?;
        // It is full again, and stays so.
        hold(first, 0)?;
        fill(&mut filler, 0)?;
        second.batch_execute("COMMIT")?;
        waiting.join().expect("a client panicked")?;
        Ok(())
    })?;
    first.batch_execute("COMMIT")?;
    settle(&mut client)?;
    Ok(())
}

/// One that would write early is refused in the midst, and may catch that.
#[test]
fn transaction_waits_once_however_often_it_is_refused() -> Result<()> {
    let mut client = create_database(cluster(), "caught")?;
    let mut other = cluster().connect_db("caught")?;
    let held_up = hold_up(&mut other)?;
    wait_up_to(&mut client, "1s")?;
    client.batch_execute("SET counterx.pending_work_mem = '64kB'; SELECT counterx.stat_reset()")?;
    client.batch_execute("BEGIN; SELECT bump('early:1', 1)")?;
    client.batch_execute(
        "DO $$ BEGIN
            PERFORM bump('early:' || i, 1) FROM generate_series(1, 5000) i;
            RAISE 'it was let through';
         EXCEPTION WHEN configuration_limit_exceeded THEN NULL;
         END $$",
    )?;
    let waited = milliseconds_waited(client.batch_execute("COMMIT"))?;
    ensure!(waited >= 1000, "{waited} ms");
    // The next one waits again.
    let again = milliseconds_waited(client.batch_execute("SELECT bump('early:1', 1)"))?;
    ensure!(again >= 1000, "{again} ms");
    let waits = waits(&mut client)?;
    ensure!(waits == 2, "{waits} waits");
    held_up.rollback()?;
    Ok(())
}

/// What fails is not waited for to the end, not by each transaction, and told.
#[test]
fn nobody_waits_long_for_folds_that_fail() -> Result<()> {
    let mut client = create_database(cluster(), "failing")?;
    client.batch_execute(
        "CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no folds today'; END $$;
         CREATE TRIGGER fails BEFORE INSERT ON counterx.total FOR EACH ROW EXECUTE FUNCTION fails()",
    )?;
    client.batch_execute("SELECT bump('x', 1)")?;
    poll_until("folds to fail", DEADLINE, || {
        let sql = "SELECT last_error_at IS NOT NULL FROM counterx.stat";
        Ok(client.query_one(sql, &[])?.get(0))
    })?;
    wait_up_to(&mut client, "1min")?;
    let first = milliseconds_waited(client.batch_execute("SELECT bump('x', 1)"))?;
    ensure!((2000..60_000).contains(&first), "{first} ms");
    let tried = client.batch_execute("SELECT bump('x', 1)");
    let error = tried.err().context("the transaction was let through")?;
    let hint = error.as_db_error().and_then(|error| error.hint());
    let why: String = client
        .query_one("SELECT last_error FROM counterx.stat", &[])?
        .get(0);
    ensure!(
        hint.is_some_and(|hint| hint.contains(&why)),
        "{why}: {error:?}"
    );
    let next = milliseconds_waited(Err(error))?;
    ensure!(next == 0, "{next} ms");
    client.batch_execute("DROP TRIGGER fails ON counterx.total")?;
    settle(&mut client)?;
    client.batch_execute("SELECT bump('x', 1)")?;
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}

/// The worker of a database that waits for its turn comes in time for who waits for it.
#[test]
fn who_waits_is_let_through_where_databases_take_turns() -> Result<()> {
    let cluster = folding_hard("pressureturns")
        .conf("counterx.max_workers", "1")
        .start()?;
    let mut client = create_database(&cluster, "third")?;
    for name in ["first", "second"] {
        create_database(&cluster, name)?;
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let busy: Vec<_> = ["first", "second"]
            .into_iter()
            .map(|name| {
                let (cluster, stop) = (&cluster, &stop);
                scope.spawn(move || -> Result<()> {
                    let mut client = cluster.connect_db(name)?;
                    while !stop.load(Ordering::Relaxed) {
                        client.batch_execute("SELECT bump('x', 1)")?;
                    }
                    Ok(())
                })
            })
            .collect();
        let mut count = || -> Result<()> {
            wait_up_to(&mut client, "1min")?;
            for _ in 0..4 {
                client.batch_execute("SELECT bump('x', 1)")?;
            }
            Ok(())
        };
        let counted = count();
        stop.store(true, Ordering::Relaxed);
        for thread in busy {
            thread.join().expect("a client panicked")?;
        }
        counted
    })?;
    let waits = waits(&mut client)?;
    ensure!(waits > 0, "nobody has waited");
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}

/// How many pages of the logs' indexes were visited, as far as sessions have told.
fn index_pages(client: &mut Client) -> Result<i64> {
    client.batch_execute("SELECT pg_stat_force_next_flush()")?;
    let sql = "SELECT sum(idx_blks_read + idx_blks_hit)::bigint FROM pg_statio_all_indexes
                WHERE schemaname = 'counterx' AND relname LIKE 'log\\_%'";
    Ok(client.query_one(sql, &[])?.get(0))
}

/// What a log may have is known from its size mostly.
#[test]
fn small_logs_are_not_looked_into() -> Result<()> {
    const COMMITS: i64 = 100;
    let mut client = create_database(cluster(), "small")?;
    pause_folding(&mut client, "small")?;
    let mut client = cluster().connect_db("small")?;
    let mut visited = |most: i64| -> Result<i64> {
        client.batch_execute(&format!("SET counterx.max_pending = {most}"))?;
        client.batch_execute("SELECT counter_incr('x')")?;
        let before = index_pages(&mut client)?;
        for _ in 0..COMMITS {
            client.batch_execute("SELECT counter_incr('x')")?;
        }
        Ok(index_pages(&mut client)? - before)
    };
    let (without, with) = (visited(0)?, visited(9_999)?);
    ensure!(
        without > 0 && with < without + COMMITS,
        "{without} pages without a limit, {with} with one"
    );
    Ok(())
}

/// Whoever has the log locked that is not written to keeps no commit waiting: there is no end to that which a setting
/// would say.
#[test]
fn locked_logs_are_not_waited_for() -> Result<()> {
    let mut client = create_database(cluster(), "locked")?;
    let names = names_in_lanes(&mut client)?;
    settle(&mut client)?;
    pause_folding(&mut client, "locked")?;
    let mut client = cluster().connect_db("locked")?;
    let mut other = cluster().connect_db("locked")?;
    // The first one is written to, up to the first switch.
    client.execute("SELECT counter_incr($1)", &[&names[0]])?;
    let sql = "SELECT pg_relation_size('counterx.log_0_a') > 0 AND pg_relation_size('counterx.log_0_b') = 0";
    ensure!(client.query_one(sql, &[])?.get::<_, bool>(0));
    // A wait would end with another error.
    client.batch_execute("SET counterx.max_pending_action = 'error'; SET lock_timeout = '10s'")?;
    other.batch_execute("BEGIN; LOCK TABLE counterx.log_0_b IN ACCESS EXCLUSIVE MODE")?;
    client.batch_execute("SET counterx.max_pending = 1")?;
    client.execute("SELECT counter_incr($1)", &[&names[0]])?;
    other.batch_execute("COMMIT")?;
    let result = client.execute("SELECT counter_incr($1)", &[&names[0]]);
    let code = result.err().and_then(|error| error.code().cloned());
    ensure!(
        code == Some(SqlState::CONFIGURATION_LIMIT_EXCEEDED),
        "{code:?}"
    );
    Ok(())
}

/// A lane that is three quarters full has room for longer than it takes to look once.
#[test]
fn lanes_with_room_are_not_looked_into_each_time() -> Result<()> {
    const COMMITS: i64 = 200;
    let mut client = create_database(cluster(), "room")?;
    pause_folding(&mut client, "room")?;
    let mut client = cluster().connect_db("room")?;
    let count = |client: &mut Client, times: i64| {
        client.batch_execute(&format!(
            "DO $$ BEGIN FOR n IN 1 .. {times} LOOP PERFORM counter_incr('x'); COMMIT; END LOOP; END $$"
        ))
    };
    client
        .batch_execute("SET synchronous_commit = off; SET counterx.max_pending_action = 'error'")?;
    count(&mut client, 30_000)?;
    client.batch_execute("SET counterx.max_pending = 40000")?;
    let before = index_pages(&mut client)?;
    count(&mut client, COMMITS)?;
    let visited = index_pages(&mut client)? - before;
    // A look visits a hundred or so, an increment some three. However slow the machine is, not each commit takes a
    // tenth of a second.
    ensure!(
        visited > 0 && visited < 50 * COMMITS,
        "{visited} pages for {COMMITS} commits"
    );
    Ok(())
}

/// Sessions that were there before do not hear of a setting of the database, and those of a pool may be there for days.
#[test]
fn nobody_waits_where_folding_was_paused_meanwhile() -> Result<()> {
    let mut client = create_database(cluster(), "pausedlate")?;
    let mut admin = cluster().connect_db("pausedlate")?;
    wait_up_to(&mut client, "1min")?;
    pause_folding(&mut admin, "pausedlate")?;
    client.batch_execute("SELECT bump('x', 1)")?;
    // A worker may have to come first, to say so.
    let tried = client.batch_execute("SELECT bump('x', 1)");
    let waited = milliseconds_waited(tried)?;
    ensure!(waited < 60_000, "{waited} ms");
    let tried = client.batch_execute("SELECT bump('x', 1)");
    let error = tried.err().context("the transaction was let through")?;
    let hint = error.as_db_error().and_then(|error| error.hint());
    ensure!(
        hint.is_some_and(|hint| hint.contains("compaction = off")),
        "{error:?}"
    );
    // From then on folds are near.
    admin.batch_execute("ALTER DATABASE pausedlate RESET counterx.compaction")?;
    try_until_let_through(&mut client, "SELECT bump('x', 1)")?;
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}

/// A fold is near when somebody waits for it, whatever the worker's own settings say: those of the session are
/// not known to it.
#[test]
fn who_waits_has_the_worker_fold_at_once() -> Result<()> {
    let cluster = folding_hard("pressuresoon")
        .conf("counterx.compaction_interval", "1h")
        .conf("counterx.compaction_threshold", "1000000")
        .conf("counterx.worker_idle_timeout", "1h")
        .start()?;
    let mut client = create_database(&cluster, "soon")?;
    client.batch_execute(
        "SET counterx.max_pending = 20; SET counterx.max_pending_action = wait; SET counterx.max_pending_wait = '1min'",
    )?;
    for _ in 0..50 {
        client.batch_execute("SELECT bump('x', 1)")?;
    }
    let waits = waits(&mut client)?;
    ensure!(waits > 0, "nobody has waited");
    check(&mut client)?;
    Ok(())
}

/// Each transaction hears that it adds to a backlog, and the log once.
#[test]
fn warnings_do_not_flood_the_log() -> Result<()> {
    let mut client = create_database(cluster(), "warned")?;
    pause_folding(&mut client, "warned")?;
    let heard = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&heard);
    let mut config = cluster().config("warned");
    config.notice_callback(move |_| {
        counts.fetch_add(1, Ordering::Relaxed);
    });
    let mut client = config.connect(NoTls)?;
    client.batch_execute("SET counterx.max_pending = 1; SELECT bump('warned', 1)")?;
    let since = cluster().log_len();
    heard.store(0, Ordering::Relaxed);
    for _ in 0..20 {
        client.batch_execute("SELECT bump('warned', 1)")?;
    }
    ensure!(heard.load(Ordering::Relaxed) == 20);
    let log = cluster().log_since(since);
    let lines = log
        .lines()
        .filter(|line| line.contains("warned WARNING") && line.contains("too many deltas"))
        .count();
    ensure!(lines == 1, "{lines} lines");
    Ok(())
}

/// Nobody folds: whoever waits hears so, and does not wait for a minute.
#[test]
fn nobody_waits_for_a_worker_that_does_not_come() -> Result<()> {
    let cluster = folding_hard("pressurealone")
        .conf("max_worker_processes", "1")
        .start()?;
    let mut client = create_database(&cluster, "alone")?;
    client.batch_execute("SELECT bump('x', 1)")?;
    wait_up_to(&mut client, "1min")?;
    let waited = client.batch_execute("SELECT bump('x', 1)");
    let waited = milliseconds_waited(waited)?;
    ensure!((10_000..60_000).contains(&waited), "{waited} ms");
    client.batch_execute("CALL counterx.compact_in_steps()")?;
    client.batch_execute("SELECT bump('x', 1)")?;
    check(&mut client)?;
    Ok(())
}

#[test]
fn without_preload_it_is_the_same() -> Result<()> {
    let cluster = folding_hard("pressurebare").preload(false).start()?;
    let mut client = create_database(&cluster, "bare")?;
    let mut other = cluster.connect_db("bare")?;
    let held_up = hold_up(&mut other)?;
    client
        .batch_execute("SET counterx.max_pending = 1; SET counterx.max_pending_action = error")?;
    let tried = client.batch_execute("SELECT bump('x', 1)");
    refused(tried, &SqlState::CONFIGURATION_LIMIT_EXCEEDED)?;
    client.batch_execute(
        "SET counterx.max_pending_action = wait; SET counterx.max_pending_wait = '60s'",
    )?;
    held_up.rollback()?;
    client.batch_execute("SELECT bump('x', 1)")?;
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}

/// Rows of one database come to another where too much is pending, and can be folded by nobody. Returns how many
/// transactions have waited.
fn apply_in(db: &str, action: &str) -> Result<i64> {
    let from = format!("{db}_there");
    let mut there = create_database(cluster(), &from)?;
    let mut here = create_database(cluster(), db)?;
    for client in [&mut there, &mut here] {
        client.batch_execute("CREATE TABLE goods (id int PRIMARY KEY, kind text)")?;
    }
    here.batch_execute("SELECT counter_track('goods', 'goods', ARRAY['kind'])")?;
    here.query_one("SELECT counter_track_wait('goods', '1 minute')", &[])?;
    settle(&mut here)?;
    let mut other = cluster().connect_db(db)?;
    // No transaction that writes: it would keep slots from being made.
    let mut held_up = other.transaction()?;
    lock_gates(&mut held_up)?;
    set(
        &mut here,
        db,
        &[
            ("max_pending", "1"),
            ("max_pending_action", action),
            ("max_pending_wait", "1h"),
        ],
    )?;
    let since = cluster().log_len();
    there.batch_execute(
        "CREATE PUBLICATION goods FOR TABLE goods;
         INSERT INTO goods VALUES (1, 'a')",
    )?;
    there.batch_execute(&format!(
        "SELECT pg_create_logical_replication_slot('{db}', 'pgoutput')"
    ))?;
    here.batch_execute(&format!(
        "CREATE SUBSCRIPTION goods CONNECTION 'host={} port={} user=postgres dbname={from}'
         PUBLICATION goods WITH (create_slot = false, slot_name = '{db}')",
        cluster().socket_dir().display(),
        cluster().port(),
    ))?;
    // With the first copy, and after it.
    for id in 2..5 {
        poll_until("the row to be applied", DEADLINE, || {
            let row = here.query_one(
                "SELECT count(*), counter_value(counter_name('goods', 'a')) FROM goods",
                &[],
            )?;
            let (rows, value): (i64, i64) = (row.get(0), row.get(1));
            ensure!(rows == value, "{rows} rows, and the counter says {value}");
            Ok(rows == id - 1)
        })?;
        there.execute("INSERT INTO goods VALUES ($1, 'a')", &[&i32::try_from(id)?])?;
    }
    ensure!(
        cluster()
            .log_since(since)
            .contains("a logical replication worker goes on all the same"),
        "it was not held up"
    );
    let waits = waits(&mut here)?;
    // A session is refused.
    let mut session = cluster().connect_db(db)?;
    session.batch_execute("SET counterx.max_pending_wait = '10ms'")?;
    let tried = session.batch_execute("INSERT INTO goods VALUES (100, 'a')");
    refused(tried, &SqlState::CONFIGURATION_LIMIT_EXCEEDED)?;
    held_up.rollback()?;
    here.batch_execute("DROP SUBSCRIPTION goods")?;
    Ok(waits)
}

/// What an apply worker is refused it tries again for ever, and the subscription stands still.
#[test]
fn apply_worker_goes_on() -> Result<()> {
    let waits = apply_in("applied", "error")?;
    ensure!(waits == 0, "{waits} have waited");
    Ok(())
}

/// Were it held up with each transaction, the sender's disk would fill instead.
#[test]
fn apply_worker_waits_shortly_and_not_each_time() -> Result<()> {
    let waits = apply_in("applied_late", "wait")?;
    // Of three or four that were held up.
    ensure!((1..=2).contains(&waits), "{waits} have waited");
    Ok(())
}

/// A trigger of somebody's that counts when the worker removes what has expired: the worker does not wait for a fold
/// that only it would do.
#[test]
fn worker_is_not_held_up() -> Result<()> {
    let cluster = folding_hard("pressureworker")
        .conf("counterx.token_ttl", "1s")
        .start()?;
    let mut client = create_database(&cluster, "expires")?;
    client.batch_execute(
        "CREATE FUNCTION removed() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN PERFORM public.counter_incr('early:1'); RETURN NULL; END $$;
         CREATE TRIGGER removed AFTER DELETE ON counterx.token FOR EACH ROW EXECUTE FUNCTION removed();
         SELECT counter_incr_once('token', 'x')",
    )?;
    set(
        &mut client,
        "expires",
        &[("max_pending", "1"), ("max_pending_action", "error")],
    )?;
    let mut other = cluster.connect_db("expires")?;
    let held_up = hold_up(&mut other)?;
    let mut client = cluster.connect_db("expires")?;
    let tried = client.batch_execute("SELECT counter_incr('early:1')");
    refused(tried, &SqlState::CONFIGURATION_LIMIT_EXCEEDED)?;
    poll_until("the token to be removed", DEADLINE, || {
        let sql = "SELECT count(*) = 0 FROM counterx.token";
        Ok(client.query_one(sql, &[])?.get(0))
    })?;
    held_up.rollback()?;
    Ok(())
}

/// Workers are asked for by commits. Where all are refused, those that are refused have to ask, or a backlog would
/// stay for ever.
#[test]
fn refused_transactions_have_the_backlog_folded_after_a_restart() -> Result<()> {
    let mut cluster = folding_hard("pressurerestart").start()?;
    let mut client = create_database(&cluster, "again")?;
    pause_folding(&mut client, "again")?;
    client.batch_execute("SELECT bump('x', 1)")?;
    set(
        &mut client,
        "again",
        &[("max_pending", "1"), ("max_pending_action", "error")],
    )?;
    drop(client);
    // There is no worker from here on.
    cluster.restart(StopMode::Fast)?;
    cluster
        .connect()?
        .batch_execute("ALTER DATABASE again RESET counterx.compaction")?;
    let mut client = cluster.connect_db("again")?;
    let first = client.batch_execute("SELECT bump('x', 10)");
    refused(first, &SqlState::CONFIGURATION_LIMIT_EXCEEDED)?;
    try_until_let_through(&mut client, "SELECT bump('x', 10)")?;
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}

/// Whatever they have read before, and where they are prepared instead of committed.
#[test]
fn waiters_of_all_levels_are_let_through() -> Result<()> {
    let cluster = folding_hard("pressurelevels")
        .conf("max_prepared_transactions", "4")
        .start()?;
    let mut client = create_database(&cluster, "levels")?;
    let mut other = cluster.connect_db("levels")?;
    let mut watcher = cluster.connect_db("levels")?;
    let levels = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];
    let ends = [
        "COMMIT",
        "PREPARE TRANSACTION 'levels'; COMMIT PREPARED 'levels'",
    ];
    let mut expected = 0;
    for level in levels {
        for end in ends {
            settle(&mut watcher)?;
            let held_up = hold_up(&mut other)?;
            wait_up_to(&mut client, "1min")?;
            client.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}"))?;
            client.batch_execute("SELECT counter_value('early:1')")?;
            client.batch_execute("SELECT bump('early:1', 1)")?;
            let pid = pid_of(&mut client)?;
            thread::scope(|scope| -> Result<()> {
                // One by one: several statements in one message would be one transaction.
                let waiting = scope.spawn(|| {
                    end.split("; ")
                        .try_for_each(|statement| client.batch_execute(statement))
                });
                wait_for_waiting(&mut watcher, pid)?;
                held_up.rollback()?;
                waiting.join().expect("a client panicked")?;
                Ok(())
            })?;
            expected += 1;
            let value: i64 = watcher
                .query_one("SELECT counter_value('early:1')", &[])?
                .get(0);
            ensure!(value == expected, "{level}, {end}: {value} of {expected}");
        }
    }
    settle(&mut watcher)?;
    check(&mut watcher)?;
    Ok(())
}

/// One that would write early waits in a statement, and can be cancelled there.
#[test]
fn early_writer_waits_and_can_be_cancelled() -> Result<()> {
    let mut client = create_database(cluster(), "earlywait")?;
    let mut other = cluster().connect_db("earlywait")?;
    let held_up = hold_up(&mut other)?;
    wait_up_to(&mut client, "1min")?;
    client.batch_execute("SET counterx.pending_work_mem = '64kB'")?;
    let pid = pid_of(&mut client)?;
    let mut watcher = cluster().connect_db("earlywait")?;
    thread::scope(|scope| -> Result<()> {
        let waiting = scope.spawn(|| {
            client.batch_execute(
                "BEGIN; SELECT count(bump('early:' || i, 1)) FROM generate_series(1, 5000) i",
            )
        });
        wait_for_waiting(&mut watcher, pid)?;
        watcher.execute("SELECT pg_cancel_backend($1)", &[&pid])?;
        let cancelled = waiting.join().expect("a client panicked");
        refused(cancelled, &SqlState::QUERY_CANCELED)?;
        Ok(())
    })?;
    client.batch_execute("ROLLBACK")?;
    held_up.rollback()?;
    client.batch_execute("SELECT bump('early:1', 1)")?;
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}
