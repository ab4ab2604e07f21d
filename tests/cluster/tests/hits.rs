//! Hits, by a [`Book`] that the clients keep.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use counterx_cluster_tests::{
    Book, DEADLINE, Recovering, Told, Way, bad_lines, create_bare_database, hit_while,
    kill_and_recover, victim, wait_for_commits_to_wait, wait_for_hits,
};
use counterx_harness::{Cluster, ClusterBuilder, StopMode, poll_until};
use postgres::Client;

const COMMITTER: &str = "counterx committer";

/// Of all names in the book.
const PREFIX: &str = "book:";

const HURRIES_WITH_SEVERAL: Way = Way {
    timeout: 1,
    ..Way::SEVERAL
};

fn builder(name: &str) -> ClusterBuilder {
    Cluster::builder().name(name)
}

/// A hit that waits comes after those that were handed over before.
fn settle(client: &mut Client) -> Result<()> {
    client.query_one("SELECT counter_hit('settle')", &[])?;
    Ok(())
}

fn committers(client: &mut Client) -> Result<Vec<(String, i32)>> {
    let sql = "SELECT coalesce(datname, ''), pid FROM pg_stat_activity WHERE backend_type = $1";
    let rows = client.query(sql, &[&COMMITTER])?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn committer_of(client: &mut Client, db: &str) -> Result<i32> {
    let mut pid = 0;
    poll_until("a committer", DEADLINE, || {
        let all = committers(client)?;
        pid = (all.iter().find(|(of, _)| of == db)).map_or(0, |&(_, pid)| pid);
        Ok(pid != 0)
    })?;
    Ok(pid)
}

fn no_panics(cluster: &Cluster) -> Result<()> {
    let log = cluster.log();
    let bad: Vec<_> = bad_lines(&log)
        .into_iter()
        .filter(|line| {
            line.contains(" PANIC:")
                || line.contains("TRAP:")
                || (line.contains("terminated by signal") && !line.contains("by signal 9"))
        })
        .collect();
    ensure!(bad.is_empty(), "{bad:#?}");
    Ok(())
}

/// Arms a point for whoever comes there first.
fn arm_once(cluster: &mut Cluster, point: &str, action: &str) -> Result<()> {
    let armed = format!("{point}={action}");
    cluster.reload(&[("counterx.failpoint", &format!("{armed} once"))])?;
    // From here on.
    let file = format!("counterx.failpoint.{armed}");
    Ok(fs::write(cluster.data_dir().join(file), "")?)
}

fn wait_until_taken(cluster: &Cluster, point: &str, action: &str) -> Result<()> {
    let file = (cluster.data_dir()).join(format!("counterx.failpoint.{point}={action}"));
    poll_until("the failpoint to be reached", DEADLINE, || {
        Ok(!file.exists())
    })
}

const POINTS: [&str; 9] = [
    "hit.pushed",
    "committer.ready",
    "committer.taken",
    "committer.added",
    "flush.lane_written",
    "commit.flushed",
    "commit.done",
    "committer.committed",
    "committer.answered",
];

/// Debug builds have them.
fn has_failpoints(client: &mut Client) -> Result<bool> {
    let sql = "SELECT current_setting('counterx.failpoint', true) IS NOT NULL";
    Ok(client.query_one(sql, &[])?.get(0))
}

/// Has a process take this action at each of the points in turn, under load.
fn at_each_point(name: &str, action: &str, crash: bool) -> Result<()> {
    for point in POINTS {
        if !crash && ["commit.done", "committer.committed", "committer.answered"].contains(&point) {
            // Nothing can fail there.
            continue;
        }
        let mut cluster = builder(&format!("{name}-{}", point.replace('.', "-"))).start()?;
        let mut client = create_bare_database(&cluster, "hits")?;
        if !has_failpoints(&mut client)? {
            return Ok(());
        }
        let config = cluster.config("hits");
        if point == "committer.ready" {
            arm_once(&mut cluster, point, action)?;
        }
        let book = hit_while(&config, PREFIX, &Way::ALL, |hits| {
            if point != "committer.ready" {
                arm_once(&mut cluster, point, action)?;
            }
            wait_until_taken(&cluster, point, action)?;
            wait_for_hits(hits, 20)
        })
        .with_context(|| format!("{action} at {point}:\n{}", last_lines(&cluster)))?;
        if crash {
            client = cluster.connect_db("hits")?;
        }
        settle(&mut client)?;
        match crash {
            true => book.audit(&mut client).map(|_| ()),
            false => book.audit_all(&mut client),
        }
        .with_context(|| format!("{action} at {point}"))?;
        no_panics(&cluster)?;
    }
    Ok(())
}

fn last_lines(cluster: &Cluster) -> String {
    let log = cluster.log();
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

#[test]
fn crash_at_each_point_loses_and_doubles_nothing() -> Result<()> {
    at_each_point("hits-crash", "crash", true)
}

#[test]
fn error_at_each_point_loses_and_doubles_nothing() -> Result<()> {
    at_each_point("hits-error", "error", false)
}

#[test]
fn killed_processes_lose_and_double_nothing() -> Result<()> {
    let cluster = builder("hits-kill").start()?;
    create_bare_database(&cluster, "hits")?;
    let config = cluster.config("hits");
    let book = hit_while(
        &config,
        PREFIX,
        &[Way::WAITS, Way::WAITS, Way::SEVERAL, Way::SEVERAL_SILENT],
        |hits| {
            for kind in [COMMITTER, "client backend", "counterx launcher", COMMITTER] {
                let mut connection = Recovering::new(&config);
                let sql = format!(
                    "SELECT pid FROM pg_stat_activity WHERE backend_type = '{kind}'
                    AND pid <> pg_backend_pid() AND (datname = 'hits' OR datname IS NULL) LIMIT 1"
                );
                kill_and_recover(&mut connection, |connection| victim(connection, kind, &sql))?;
                wait_for_hits(hits, 50)?;
            }
            Ok(())
        },
    )?;
    let mut client = cluster.connect_db("hits")?;
    settle(&mut client)?;
    book.audit(&mut client)?;
    no_panics(&cluster)
}

#[test]
fn committer_that_is_terminated_or_cancelled_loses_nothing() -> Result<()> {
    let cluster = builder("hits-terminate").start()?;
    let mut client = create_bare_database(&cluster, "hits")?;
    let config = cluster.config("hits");
    let mut other = cluster.connect_db("hits")?;
    let book = hit_while(&config, PREFIX, &Way::ALL, |hits| {
        for round in 0..12 {
            let pid = committer_of(&mut other, "hits")?;
            let function = match round % 2 {
                0 => "pg_cancel_backend",
                _ => "pg_terminate_backend",
            };
            other.query_one(&format!("SELECT {function}($1)"), &[&pid])?;
            wait_for_hits(hits, 30)?;
        }
        Ok(())
    })?;
    ensure!(
        !book.has(Told::NotCounted) && !book.has(Told::Unknown),
        "somebody has heard of it"
    );
    book.audit_all(&mut client)?;
    no_panics(&cluster)
}

/// Keeps hits from being counted, as long as it lives.
fn obstacle(cluster: &Cluster) -> Result<Client> {
    let mut session = cluster.connect_db("hits")?;
    session.batch_execute("BEGIN; SELECT counter_type_create('obstacle', max => 1)")?;
    Ok(session)
}

#[test]
fn callers_do_not_hear_that_the_committer_was_cancelled() -> Result<()> {
    let cluster = builder("hits-cancelled").start()?;
    let mut client = create_bare_database(&cluster, "hits")?;
    settle(&mut client)?;
    let obstacle = obstacle(&cluster)?;
    let done = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    thread::scope(|scope| -> Result<()> {
        let cancels = [(); 2].map(|()| {
            scope.spawn(|| -> Result<()> {
                let mut session = cluster.connect()?;
                let sql = "SELECT pg_cancel_backend(pid)
                             FROM pg_stat_activity, generate_series(1, 200)
                            WHERE backend_type = $1";
                while !done.load(Ordering::Relaxed) {
                    session.execute(sql, &[&COMMITTER])?;
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        });
        let hits = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Relaxed) {
                if let Err(error) = client.batch_execute("SELECT counter_hit('a')") {
                    // Between two cancels it may find that somebody is in the way.
                    let code = error.code().context("the connection broke")?.code();
                    ensure!(code == "55P03", "{error}");
                }
            }
            Ok(())
        });
        let result = wait_for_hits(&rounds, 500);
        drop(obstacle);
        done.store(true, Ordering::Relaxed);
        for cancels in cancels {
            cancels.join().expect("does not panic")?;
        }
        hits.join().expect("does not panic")?;
        result
    })?;
    no_panics(&cluster)
}

#[test]
fn many_that_nobody_waits_for_do_not_hold_up_those_who_wait() -> Result<()> {
    let cluster = builder("hits-left")
        .conf("counterx.hit_queue_size", "20000")
        .start()?;
    let mut client = create_bare_database(&cluster, "hits")?;
    let mut obstacle = cluster.connect_db("hits")?;
    obstacle.batch_execute("BEGIN; LOCK TABLE counterx.gate_0 IN SHARE MODE")?;
    let (mut locked, mut free) = (None, None);
    for n in 0..1000 {
        let name = format!("n{n}");
        match client.query_one("SELECT counter_hit($1)", &[&name]) {
            Ok(_) => free = Some(name),
            Err(_) => locked = Some(name),
        }
        if locked.is_some() && free.is_some() {
            break;
        }
    }
    let locked = locked.context("no counter is in the locked lane")?;
    let free = free.context("all counters are in the locked lane")?;
    // Each of them waits for the lock by itself.
    let sql = "SELECT count(counter_hit_many(jsonb_build_object($1::text, 1, $2::text, 1), wait => false))
                 FROM generate_series(1, 6000)";
    client.query_one(sql, &[&locked, &free])?;
    client.batch_execute("SET statement_timeout = '20s'")?;
    for _ in 0..3 {
        client.query_one("SELECT counter_hit($1)", &[&free])?;
    }
    drop(obstacle);
    poll_until("all to be counted", DEADLINE, || {
        let row = client.query_one("SELECT counter_value($1)", &[&locked])?;
        Ok(row.get::<_, i64>(0) == 6000)
    })?;
    no_panics(&cluster)
}

#[test]
fn errors_do_not_end_the_committer() -> Result<()> {
    let cluster = builder("hits-exit-on-error").start()?;
    create_bare_database(&cluster, "hits")?
        .batch_execute("ALTER DATABASE hits SET exit_on_error = on")?;
    let _obstacle = obstacle(&cluster)?;
    let mut client = cluster.connect_db("hits")?;
    // The session itself is to hear of it.
    client.batch_execute("SET exit_on_error = off; SET statement_timeout = '60s'")?;
    let error = (client.batch_execute("SELECT counter_hit('a')")).expect_err("counted");
    let code = error.code().context("the connection broke")?.code();
    ensure!(code == "55P03", "{error}");
    Ok(())
}

#[test]
fn restart_loses_nothing() -> Result<()> {
    let mut cluster = builder("hits-restart").start()?;
    create_bare_database(&cluster, "hits")?;
    let config = cluster.config("hits");
    let book = hit_while(&config, PREFIX, &Way::ALL, |hits| {
        for _ in 0..3 {
            cluster.restart(StopMode::Fast)?;
            wait_for_hits(hits, 50)?;
        }
        Ok(())
    })?;
    let mut client = cluster.connect_db("hits")?;
    book.audit_all(&mut client)?;
    no_panics(&cluster)
}

#[test]
fn callers_who_are_stopped_know_what_became_of_it() -> Result<()> {
    let cluster = builder("hits-stopped").start()?;
    let mut client = create_bare_database(&cluster, "hits")?;
    let config = cluster.config("hits");
    let mut stopped = 0;
    let mut other = cluster.connect_db("hits")?;
    let ways = [
        Way::WAITS,
        Way::WAITS,
        Way::HURRIES,
        Way::HURRIES,
        HURRIES_WITH_SEVERAL,
        Way::SILENT,
    ];
    let book = hit_while(&config, PREFIX, &ways, |hits| {
        for round in 0..40 {
            let function = match round % 4 {
                3 => "pg_terminate_backend",
                _ => "pg_cancel_backend",
            };
            let sql = format!(
                "SELECT {function}(pid) FROM pg_stat_activity
                  WHERE backend_type = 'client backend' AND datname = 'hits'
                    AND pid <> pg_backend_pid() AND query LIKE 'SELECT counter_hit($1)%'"
            );
            stopped += other.query(&sql, &[])?.len();
            wait_for_hits(hits, 10)?;
        }
        Ok(())
    })?;
    ensure!(stopped > 0, "nobody was stopped");
    ensure!(book.has(Told::Counted) && book.has(Told::Handed));
    ensure!(
        book.has(Told::NotCounted) || book.has(Told::Unknown),
        "nobody was in doubt"
    );
    book.audit_all(&mut client)?;
    no_panics(&cluster)
}

/// What a paused process waits for: see the engine's `failpoint.rs`.
const PAUSE_KEY: i64 = 0x636e_7478;

#[test]
fn cancelled_hit_is_withdrawn_or_in_doubt() -> Result<()> {
    let mut cluster = builder("hits-cancel").start()?;
    let mut control = create_bare_database(&cluster, "hits")?;
    if !has_failpoints(&mut control)? {
        return Ok(());
    }
    cluster.reload(&[("counterx.failpoint", "committer.taken=pause")])?;
    for cancels in [true, false] {
        control.execute("SELECT pg_advisory_lock($1)", &[&PAUSE_KEY])?;
        let hit = |name: &'static str| -> Result<_> {
            let mut session = cluster.connect_db("hits")?;
            let pid: i32 = session.query_one("SELECT pg_backend_pid()", &[])?.get(0);
            let call = move || {
                session
                    .query_one("SELECT counter_hit($1)", &[&name])
                    .map(|_| ())
            };
            Ok((pid, thread::spawn(call)))
        };
        let (first, first_call) = hit("first")?;
        poll_until("the committer to take it", DEADLINE, || {
            let sql = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                        WHERE a.backend_type = $1 AND l.locktype = 'advisory' AND NOT l.granted";
            Ok(control.query_one(sql, &[&COMMITTER])?.get::<_, i64>(0) > 0)
        })?;
        let (second, second_call) = hit("second")?;
        poll_until("the second one to wait", DEADLINE, || {
            let sql = "SELECT count(*) FROM pg_stat_activity
                        WHERE pid = $1 AND state = 'active' AND wait_event IN ('Extension', 'CounterxHit')";
            Ok(control.query_one(sql, &[&second])?.get::<_, i64>(0) > 0)
        })?;
        let calls = [(first, first_call), (second, second_call)];
        let mut results = Vec::new();
        for (pid, call) in calls {
            if cancels {
                control.query_one("SELECT pg_cancel_backend($1)", &[&pid])?;
                results.push(call.join().expect("does not panic"));
            } else {
                control.query("SELECT pg_advisory_unlock($1)", &[&PAUSE_KEY])?;
                results.push(call.join().expect("does not panic"));
            }
        }
        let all: Vec<Told> = (results.into_iter())
            .map(|result| match result {
                Ok(()) => Ok(Told::Counted),
                Err(error) => Told::of(&error.into()),
            })
            .collect::<Result<_>>()?;
        let expected = match cancels {
            true => [Told::Unknown, Told::NotCounted],
            false => [Told::Counted; 2],
        };
        ensure!(all == expected, "{all:?}");
        control.query("SELECT pg_advisory_unlock_all()", &[])?;
    }
    settle(&mut control)?;
    let sql = "SELECT counter_value('first'), counter_value('second')";
    let row = control.query_one(sql, &[])?;
    let values: (i64, i64) = (row.get(0), row.get(1));
    // The first one was taken both times.
    ensure!(values == (2, 1), "{values:?}");
    Ok(())
}

#[test]
fn twelve_databases_share_two_committers() -> Result<()> {
    let cluster = builder("hits-twelve")
        .conf("max_worker_processes", "8")
        .conf("counterx.worker_idle_timeout", "1s")
        .start()?;
    let names: Vec<String> = (0..12).map(|n| format!("hits{n}")).collect();
    for name in &names {
        create_bare_database(&cluster, name)?;
    }
    let books = thread::scope(|scope| -> Result<Vec<Book>> {
        let threads: Vec<_> = names
            .iter()
            .map(|name| {
                let config = cluster.config(name);
                scope.spawn(move || {
                    hit_while(&config, PREFIX, &[Way::WAITS, Way::SILENT], |hits| {
                        wait_for_hits(hits, 200)
                    })
                })
            })
            .collect();
        (threads.into_iter())
            .map(|thread| thread.join().expect("does not panic"))
            .collect()
    })?;
    for (name, book) in names.iter().zip(&books) {
        let mut client = cluster.connect_db(name)?;
        settle(&mut client)?;
        let missing = book.audit(&mut client).with_context(|| name.clone())?;
        ensure!(
            missing == 0,
            "{name}: {missing} that were handed over are lost"
        );
    }
    let mut client = cluster.connect()?;
    poll_until("idle committers to end", DEADLINE, || {
        Ok(committers(&mut client)?.is_empty())
    })
}

#[test]
fn databases_have_their_turn_in_the_order_of_their_coming() -> Result<()> {
    let mut cluster = builder("hits-turns")
        .conf("counterx.max_committers", "1")
        .start()?;
    let mut control = create_bare_database(&cluster, "first")?;
    if !has_failpoints(&mut control)? {
        return Ok(());
    }
    const NAMES: [&str; 3] = ["second", "third", "fourth"];
    for name in NAMES {
        create_bare_database(&cluster, name)?;
    }
    cluster.reload(&[("counterx.failpoint", "committer.taken=pause")])?;
    control.execute("SELECT pg_advisory_lock($1)", &[&PAUSE_KEY])?;
    let served = Mutex::new(Vec::new());
    let hit = |name: &'static str| -> Result<()> {
        let mut session = cluster.connect_db(name)?;
        session.batch_execute("SET statement_timeout = '60s'; SELECT counter_hit('a')")?;
        served.lock().expect("is not poisoned").push(name);
        Ok(())
    };
    thread::scope(|scope| -> Result<()> {
        let mut hits = vec![scope.spawn(|| hit("first"))];
        let mut wait_for = |name: &str, sessions: i64| {
            poll_until("sessions to hit", DEADLINE, || {
                let sql = "SELECT count(*) FROM pg_stat_activity
                            WHERE datname = $1 AND query LIKE '%counter_hit%'
                              AND wait_event IN ('Extension', 'CounterxHit', 'CounterxHitRoom')";
                Ok(control.query_one(sql, &[&name])?.get::<_, i64>(0) == sessions)
            })
        };
        let mut waited = wait_for("first", 1);
        // Who comes first is alone, and so would rarely be the first by chance.
        for (name, sessions) in NAMES.into_iter().zip([1, 4, 8]) {
            hits.extend((0..sessions).map(|_| scope.spawn(|| hit(name))));
            waited = waited.and_then(|()| wait_for(name, sessions));
        }
        control.execute("SELECT pg_advisory_unlock($1)", &[&PAUSE_KEY])?;
        for hit in hits {
            hit.join().expect("does not panic")?;
        }
        waited
    })?;
    let mut order = served.into_inner().expect("is not poisoned");
    let mut known = Vec::new();
    order.retain(|name| {
        let fresh = !known.contains(name);
        known.push(*name);
        fresh
    });
    ensure!(order == ["first", "second", "third", "fourth"], "{order:?}");
    no_panics(&cluster)
}

#[test]
fn server_without_hits_has_no_committer() -> Result<()> {
    let cluster = builder("hits-none").start()?;
    let mut client = create_bare_database(&cluster, "hits")?;
    client.batch_execute("SELECT counter_incr('a')")?;
    ensure!(committers(&mut client)?.is_empty());
    client.batch_execute("SELECT counter_hit('a')")?;
    ensure!(committers(&mut client)?.len() == 1);
    Ok(())
}

fn error_of(client: &mut Client, sql: &str) -> Result<(String, String, String)> {
    let Err(error) = client.batch_execute(sql) else {
        bail!("{sql} was no error");
    };
    let db = error.as_db_error().context("no error of the server's")?;
    let hint = db.hint().unwrap_or_default().to_owned();
    let detail = db.detail().unwrap_or_default().to_owned();
    ensure!(!hint.is_empty(), "{sql}: {error} has no hint");
    Ok((db.code().code().to_owned(), detail, hint))
}

#[test]
fn without_preload_it_is_an_error() -> Result<()> {
    let cluster = builder("hits-no-preload").preload(false).start()?;
    let mut client = create_bare_database(&cluster, "hits")?;
    for sql in [
        "SELECT counter_hit('a')",
        "SELECT counter_hit('a', wait => false)",
        "SELECT counter_try_hit('a')",
    ] {
        let (code, _, hint) = error_of(&mut client, sql)?;
        ensure!(
            code == "55000" && hint.contains("shared_preload_libraries"),
            "{sql}: {code}, {hint}"
        );
    }
    let cluster = builder("hits-none-allowed")
        .conf("counterx.max_committers", "0")
        .start()?;
    let mut client = create_bare_database(&cluster, "hits")?;
    let (code, _, hint) = error_of(&mut client, "SELECT counter_hit('a')")?;
    ensure!(
        code == "55000" && hint.contains("counterx.max_committers"),
        "{code}, {hint}"
    );
    Ok(())
}

#[test]
fn standby_refuses_hits() -> Result<()> {
    let primary = builder("hits-primary").start()?;
    let mut client = create_bare_database(&primary, "hits")?;
    client.batch_execute("SELECT counter_hit('a')")?;
    let standby = builder("hits-standby").standby_of(&primary).start()?;
    let mut reader = standby.connect_db("hits")?;
    for sql in ["SELECT counter_hit('a')", "SELECT counter_try_hit('a')"] {
        let error = reader.batch_execute(sql).expect_err("a standby counts");
        let code = error.code().context("no code")?.code().to_owned();
        ensure!(code == "25006", "{error}");
    }
    Ok(())
}

#[test]
fn without_a_free_slot_callers_hear_of_it() -> Result<()> {
    let mut cluster = builder("hits-no-slot")
        .conf("max_worker_processes", "2")
        .start()?;
    let mut client = create_bare_database(&cluster, "hits")?;
    for sql in [
        "SELECT counter_hit('a')",
        "SELECT counter_hit('a', wait => false)",
    ] {
        let (code, detail, hint) = error_of(&mut client, sql)?;
        ensure!(
            code == "53400"
                && detail.contains("is not counted")
                && hint.contains("max_worker_processes"),
            "{sql}: {code}, {detail}, {hint}"
        );
    }
    let lines = cluster
        .log()
        .matches("no free background worker slot for a committer")
        .count();
    ensure!(lines == 1, "{lines} lines in the log");
    cluster.reload(&[("max_worker_processes", "8")])?;
    cluster.restart(StopMode::Fast)?;
    let mut client = cluster.connect_db("hits")?;
    client.batch_execute("SELECT counter_hit('a')")?;
    let value: i64 = client.query_one("SELECT counter_value('a')", &[])?.get(0);
    ensure!(value == 1, "what was refused is counted: {value}");
    Ok(())
}

#[test]
fn launcher_that_was_ended_comes_back() -> Result<()> {
    let cluster = builder("hits-launcher").start()?;
    let mut client = create_bare_database(&cluster, "hits")?;
    let ended = client.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'counterx launcher'",
        &[],
    )?;
    ensure!(ended.len() == 1);
    // The postmaster starts it again after five seconds.
    client.batch_execute("SELECT counter_hit('a')")?;
    let value: i64 = client.query_one("SELECT counter_value('a')", &[])?.get(0);
    ensure!(value == 1);
    Ok(())
}

#[test]
fn database_is_dropped_renamed_and_copied_beside_its_committer() -> Result<()> {
    let cluster = builder("hits-ddl").start()?;
    let mut admin = cluster.connect()?;
    let mut client = create_bare_database(&cluster, "hits")?;
    client
        .batch_execute("SELECT counter_hit('a', 3); SELECT counter_hit('a', 4, wait => false)")?;
    drop(client);
    let alone = |admin: &mut Client, db: &str| {
        poll_until("sessions to leave", DEADLINE, || {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'";
            Ok(admin.query_one(sql, &[&db])?.get::<_, i64>(0) == 0)
        })
    };
    alone(&mut admin, "hits")?;
    admin.batch_execute("ALTER DATABASE hits RENAME TO renamed")?;
    let mut client = cluster.connect_db("renamed")?;
    let value: i64 = client.query_one("SELECT counter_value('a')", &[])?.get(0);
    ensure!(value == 7, "{value}");
    client.batch_execute("SELECT counter_hit('a', 1)")?;
    drop(client);
    alone(&mut admin, "renamed")?;
    admin.batch_execute("CREATE DATABASE copied TEMPLATE renamed")?;
    let mut client = cluster.connect_db("copied")?;
    client.batch_execute("SELECT counter_hit('a', 1)")?;
    let value: i64 = client.query_one("SELECT counter_value('a')", &[])?.get(0);
    ensure!(value == 9, "{value}");
    drop(client);
    alone(&mut admin, "copied")?;
    for db in ["copied", "renamed"] {
        admin.batch_execute(&format!("DROP DATABASE {db}"))?;
    }
    Ok(())
}

#[test]
fn what_nobody_waited_for_goes_with_its_database() -> Result<()> {
    let mut cluster = builder("hits-gone")
        .conf("counterx.max_committers", "1")
        .start()?;
    let mut admin = cluster.connect()?;
    let mut client = create_bare_database(&cluster, "gone")?;
    if !has_failpoints(&mut client)? {
        return Ok(());
    }
    client.batch_execute("SELECT counter_hit('a')")?;
    // No successor before the launcher is back, which takes five seconds.
    admin.batch_execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'counterx launcher'",
    )?;
    arm_once(&mut cluster, "committer.taken", "error")?;
    client.batch_execute("SELECT counter_hit('a', wait => false)")?;
    wait_until_taken(&cluster, "committer.taken", "error")?;
    drop(client);
    poll_until("the database to be dropped", DEADLINE, || {
        Ok(admin.batch_execute("DROP DATABASE gone").is_ok())
    })?;
    let mut other = create_bare_database(&cluster, "other")?;
    poll_until("the place to be free", DEADLINE, || {
        Ok(other.batch_execute("SELECT counter_hit('a')").is_ok())
    })?;
    let log = cluster.log();
    // (Perhaps one of a worker as well: the launcher was gone when the first hit asked for one.)
    let starts = log.matches("counterx committer FATAL:  database").count();
    ensure!(starts <= 1, "{starts} vain starts of a committer:\n{log}");
    Ok(())
}

#[test]
fn extension_is_dropped_and_made_beside_hits() -> Result<()> {
    let cluster = builder("hits-drop").start()?;
    let mut client = create_bare_database(&cluster, "hits")?;
    let done = AtomicBool::new(false);
    let hits = AtomicU64::new(0);
    let hit = |way: &str| -> Result<()> {
        let mut own = cluster.connect_db("hits")?;
        while !done.load(Ordering::Relaxed) {
            match own.batch_execute(&format!("SELECT counter_hit('a'{way})")) {
                Ok(()) => hits.fetch_add(1, Ordering::Relaxed),
                Err(error) => {
                    let code = error
                        .code()
                        .context("the connection broke")?
                        .code()
                        .to_owned();
                    // No function, no extension, a type that is gone; a lock that was waited for.
                    let expected = [
                        "42883", "42704", "0A000", "55000", "55P03", "42P01", "40P01", "XX000",
                    ];
                    ensure!(expected.contains(&code.as_str()), "{code}: {error}");
                    0
                }
            };
        }
        Ok(())
    };
    thread::scope(|scope| -> Result<()> {
        let threads = [
            scope.spawn(|| hit("")),
            scope.spawn(|| hit("")),
            scope.spawn(|| hit(", wait => false")),
        ];
        let mut drop_and_make = || -> Result<()> {
            for _ in 0..8 {
                wait_for_hits(&hits, 20)?;
                let mut tries = 0;
                // A deadlock is decided by the server.
                while let Err(error) =
                    client.batch_execute("DROP EXTENSION counterx; CREATE EXTENSION counterx")
                {
                    tries += 1;
                    ensure!(tries < 10, "{error}");
                }
            }
            wait_for_hits(&hits, 20)
        };
        let result = drop_and_make();
        done.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("does not panic")?;
        }
        result
    })?;
    let before: i64 = client.query_one("SELECT counter_value('a')", &[])?.get(0);
    client.batch_execute("SELECT counter_hit('a')")?;
    let after: i64 = client.query_one("SELECT counter_value('a')", &[])?.get(0);
    ensure!(after > before);
    no_panics(&cluster)
}

#[test]
fn bounds_hold_while_types_come_and_go() -> Result<()> {
    let cluster = builder("hits-types").start()?;
    let mut client = create_bare_database(&cluster, "hits")?;
    let done = AtomicBool::new(false);
    let hits = AtomicU64::new(0);
    let granted = AtomicU64::new(0);
    let hit = |delta: i64| -> Result<()> {
        let mut own = cluster.connect_db("hits")?;
        while !done.load(Ordering::Relaxed) {
            match own.query_one("SELECT counter_try_hit('q:a', $1)", &[&delta]) {
                Ok(row) => {
                    if row.get(0) {
                        let _ = granted.fetch_add(delta.cast_unsigned(), Ordering::Relaxed);
                    }
                }
                Err(error) => {
                    let code = error
                        .code()
                        .context("the connection broke")?
                        .code()
                        .to_owned();
                    ensure!(
                        ["40001", "55P03", "23514"].contains(&code.as_str()),
                        "{code}: {error}"
                    );
                }
            }
            hits.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let mut refused = 0;
    thread::scope(|scope| -> Result<()> {
        let threads = [1, 1, -1, 2].map(|delta| scope.spawn(move || hit(delta)));
        let mut change = || -> Result<()> {
            for _ in 0..6 {
                // Somebody may be beyond it already.
                if client
                    .batch_execute("SELECT counter_type_create('q', min => 0, max => 50)")
                    .is_err()
                {
                    refused += 1;
                    client.batch_execute("SELECT counter_set('q:a', 10)")?;
                    continue;
                }
                for _ in 0..10 {
                    let value: i64 = client.query_one("SELECT counter_value('q:a')", &[])?.get(0);
                    ensure!((0..=50).contains(&value), "the value is {value}");
                    wait_for_hits(&hits, 5)?;
                }
                client.batch_execute(
                    "SELECT counter_type_alter('q', max => 100); SELECT counter_type_drop('q')",
                )?;
                wait_for_hits(&hits, 5)?;
            }
            Ok(())
        };
        let result = change();
        done.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("does not panic")?;
        }
        result
    })?;
    if refused == 0 {
        let value: i64 = client.query_one("SELECT counter_value('q:a')", &[])?.get(0);
        let granted = granted.load(Ordering::Relaxed).cast_signed();
        ensure!(
            value == granted,
            "{granted} were granted, and the value is {value}"
        );
    }
    no_panics(&cluster)
}

#[test]
fn standby_that_hangs_holds_up_those_alone_who_want_it() -> Result<()> {
    let mut cluster = builder("hits-synchronous").start()?;
    let mut other = create_bare_database(&cluster, "hits")?;
    other.batch_execute("SELECT counter_hit('a')")?;
    cluster.reload(&[("synchronous_standby_names", "nobody")])?;
    wait_for_commits_to_wait(&cluster)?;
    let mut waiting = cluster.connect_db("hits")?;
    let pid: i32 = waiting.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    let hit = thread::spawn(move || {
        waiting
            .query_one("SELECT counter_hit('a', 10)", &[])
            .map(|_| ())
    });
    poll_until("a hit that waits for the standby", DEADLINE, || {
        let query = "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $1";
        let waits: Option<bool> = other.query_one(query, &[&pid])?.get(0);
        Ok(waits == Some(true))
    })?;
    // Visible to all, as for those who do not want the standby's word.
    let mut local = cluster.connect_db("hits")?;
    local.batch_execute("SET synchronous_commit = local; SET statement_timeout = '20s'")?;
    local.batch_execute("SELECT counter_hit('a', 100)")?;
    local.batch_execute("SELECT counter_hit('a', 0, wait => false)")?;
    let value: i64 = local.query_one("SELECT counter_value('a')", &[])?.get(0);
    ensure!(value == 111, "{value}");
    // As a commit that is cancelled: a warning, since it is committed here.
    other.query_one("SELECT pg_cancel_backend($1)", &[&pid])?;
    hit.join().expect("does not panic")?;
    ensure!(
        cluster
            .log()
            .contains("canceling wait for synchronous replication")
    );
    // And the server can be shut down.
    cluster.restart(StopMode::Fast)?;
    Ok(())
}

#[test]
fn callers_flush_for_themselves_where_it_takes_long() -> Result<()> {
    let cluster = builder("hits-slow-disk")
        .conf("fsync", "on")
        .conf("commit_delay", "3000")
        .conf("commit_siblings", "0")
        .start()?;
    let mut client = create_bare_database(&cluster, "hits")?;
    let config = cluster.config("hits");
    // The committer's commits do not flush any more; who waits does, and was not told before.
    let book = hit_while(
        &config,
        PREFIX,
        &[Way::WAITS, Way::WAITS, Way::WAITS, Way::SILENT],
        |_| {
            let mut connection = cluster.connect_db("hits")?;
            poll_until("callers to flush", DEADLINE, || {
                let sql = "SELECT count(*) FROM pg_stat_activity
                        WHERE backend_type = 'client backend' AND wait_event IN ('WALWrite', 'WALSync')";
                Ok(connection.query_one(sql, &[])?.get::<_, i64>(0) > 0)
            })
        },
    )?;
    book.audit_all(&mut client)?;
    Ok(())
}

#[test]
fn five_hundred_connections_are_served() -> Result<()> {
    const CLIENTS: usize = 500;
    let cluster = builder("hits-many")
        .conf("max_connections", "520")
        .start()?;
    let mut client = create_bare_database(&cluster, "hits")?;
    let mut sessions = Vec::new();
    for _ in 0..CLIENTS {
        sessions.push(cluster.connect_db("hits")?);
    }
    thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (sessions.iter_mut())
            .map(|session| {
                scope.spawn(move || -> Result<()> {
                    for _ in 0..3 {
                        session.batch_execute("SELECT counter_hit('a')")?;
                    }
                    session.batch_execute("SELECT counter_hit('a', wait => false)")?;
                    Ok(())
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("does not panic")?;
        }
        Ok(())
    })?;
    settle(&mut client)?;
    let value: i64 = client.query_one("SELECT counter_value('a')", &[])?.get(0);
    ensure!(value == 4 * CLIENTS as i64, "{value}");
    Ok(())
}

#[test]
fn full_queue_makes_callers_wait_and_loses_nothing() -> Result<()> {
    let cluster = builder("hits-full")
        .conf("counterx.hit_queue_size", "16")
        .start()?;
    let mut client = create_bare_database(&cluster, "hits")?;
    client.batch_execute(
        "SELECT count(counter_hit('many', wait => false)) FROM generate_series(1, 3000)",
    )?;
    let config = cluster.config("hits");
    let mut ways = [Way::WAITS; 24];
    ways[..8].fill(Way::SEVERAL);
    let book = hit_while(&config, PREFIX, &ways, |hits| wait_for_hits(hits, 500))?;
    settle(&mut client)?;
    book.audit(&mut client)?;
    let value: i64 = client
        .query_one("SELECT counter_value('many')", &[])?
        .get(0);
    ensure!(value == 3000, "{value}");
    Ok(())
}
