//! Streams: whoever follows one misses nothing and gets nothing twice, whatever is killed, truncated, promoted or
//! restored; and who does not follow holds nobody up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use counterx_cluster_tests::{
    Consumer, DEADLINE, Load, Outside, Recovering, catch_up, changes_schema, changes_under_watch,
    check, committing, compact, consume_beside, create_database, drain, folding_hard, is_busy,
    is_gone, kill_and_recover, look_at_stream, look_at_stream_twice, names_in_lanes,
    nothing_crashed, nothing_crashed_by_itself, parse_position, patiently, pause_folding, refused,
    resolve_orphans, settle, shared, streamed_schema, under_watch, wait_for_commits_to_wait,
};
use counterx_harness::{Cluster, poll_until, run};
use postgres::error::SqlState;
use postgres::{Client, Config, IsolationLevel, NoTls};

const LOST: SqlState = SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE;

fn cluster() -> &'static Cluster {
    shared(|| {
        folding_hard("streams")
            .conf("wal_keep_size", "512MB")
            .start()
    })
}

/// A database with the loads, consumers and a stream of all its counters.
fn prepare(cluster: &Cluster, db: &str, mode: &str) -> Result<Client> {
    let mut client = create_database(cluster, db)?;
    client.batch_execute(changes_schema())?;
    client.batch_execute(streamed_schema())?;
    client.execute(
        "SELECT counter_stream_create('all', mode => $1)::text",
        &[&mode],
    )?;
    client.batch_execute("SELECT mirror_bootstrap('all')")?;
    Ok(client)
}

/// A database in which nobody folds who is not told to.
fn still(db: &str, mode: &str) -> Result<Client> {
    let mut client = prepare(cluster(), db, mode)?;
    pause_folding(&mut client, db)?;
    cluster().connect_db(db)
}

/// Runs statements one by one, each in a transaction of its own unless they say otherwise.
fn each(client: &mut Client, statements: &[&str]) -> Result<()> {
    for statement in statements {
        client
            .batch_execute(statement)
            .with_context(|| (*statement).to_owned())?;
    }
    Ok(())
}

fn one<T: postgres::types::FromSqlOwned>(client: &mut Client, sql: &str) -> Result<T> {
    Ok(client.query_one(sql, &[])?.try_get(0)?)
}

fn state_of(client: &mut Client, stream: &str) -> Result<String> {
    let sql = format!("SELECT state FROM counter_streams WHERE stream = '{stream}'");
    one(client, &sql)
}

fn wait_for_state(client: &mut Client, stream: &str, state: &str) -> Result<()> {
    poll_until(&format!("{stream} to be {state}"), DEADLINE, || {
        Ok(state_of(client, stream)? == state)
    })
}

/// All that was folded has been read, and is what the counters are.
fn ends_right(client: &mut Client, stream: &str) -> Result<()> {
    settle(client)?;
    drain(client, stream)?;
    look_at_stream(client, stream)?;
    is_counted(client, stream)
}

/// What was read is what the counters are.
fn is_counted(client: &mut Client, stream: &str) -> Result<()> {
    let sql = format!(
        "SELECT coalesce(string_agg(format('%s: read %s, counted %s', name, m.value, c.value), E'\\n'), '')
           FROM (SELECT name, value FROM mirror WHERE stream = '{stream}') m FULL JOIN
                (SELECT c.name, c.value FROM counters c JOIN counter_streams s
                     ON s.stream = '{stream}' AND starts_with(c.name, s.prefix)) c USING (name)
          WHERE coalesce(m.value, 0) <> coalesce(c.value, 0)"
    );
    let wrong: String = one(client, &sql)?;
    ensure!(wrong.is_empty(), "{stream}:\n{wrong}");
    Ok(())
}

/// Looks at a stream until it is told to stop, and as often as means something.
fn look_on(config: &Config, stream: &str, survives: bool, stop: &AtomicBool) -> Result<u64> {
    let mut connection = Recovering::new(config);
    let mut looks = 0;
    let mut enough = None;
    while !stop.load(Ordering::Relaxed) || looks == 0 {
        if stop.load(Ordering::Relaxed) {
            // All have ended, and nobody is in the way.
            let until = *enough.get_or_insert_with(|| Instant::now() + DEADLINE);
            ensure!(Instant::now() < until, "{stream} cannot be looked at");
        }
        match connection
            .client()
            .and_then(|client| look_at_stream_twice(client, stream))
        {
            Ok(whole) => looks += u64::from(whole),
            Err(error) if is_busy(&error) => connection.forget(),
            Err(error) if survives && counterx_cluster_tests::is_lost(&error) => {
                connection.forget()
            }
            Err(error) => return Err(error),
        }
    }
    Ok(looks)
}

/// Beside changes of all kinds: consumers, one that peeks, somebody who looks on, and what `meanwhile` does.
fn follow(
    cluster: &Cluster,
    db: &str,
    consumers: &[Consumer],
    load: &Load,
    meanwhile: impl FnOnce(&counterx_cluster_tests::Control) -> Result<()>,
) -> Result<()> {
    let config = cluster.config(db);
    let mut client = cluster.connect_db(db)?;
    client.batch_execute("SELECT counter_stream_create('outside', mode => 'every')")?;
    let mut outside = Outside::of("outside");
    outside.bootstrap(&mut client)?;
    drop(client);
    let stop = AtomicBool::new(false);
    let mut all = Vec::new();
    let looks = std::thread::scope(|scope| {
        let looking = scope.spawn(|| look_on(&config, "all", load.survives, &stop));
        let watched = changes_under_watch(&config, load, |control| {
            all = consume_beside(&config, control, consumers, Some(&mut outside), || {
                meanwhile(control)?;
                control.wait_for_share(1.0)
            })?;
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        let looks = looking.join().expect("does not panic");
        // What somebody has seen explains the rest.
        looks.and_then(|looks| watched.map(|_| looks))
    })?;
    ensure!(looks > 0, "nobody looked");
    let rows: i64 = all.iter().map(|consumed| consumed.rows).sum();
    let given_up: u64 = all.iter().map(|consumed| consumed.given_up).sum();
    ensure!(rows > 0, "nothing was consumed: {all:?}");
    ensure!(given_up > 0, "nobody has given up: {all:?}");
    let mut client = cluster.connect_db(db)?;
    resolve_orphans(&mut client)?;
    client.batch_execute("SELECT bump('n:last', 1)")?;
    ends_right(&mut client, "all")?;
    check(&mut client)?;
    outside.ends_right(&mut client, "")?;
    ensure!(
        outside.new > 0 && outside.known > 0,
        "all was acknowledged at once"
    );
    Ok(())
}

fn changes() -> Load {
    Load {
        clients: 4,
        transactions: 120,
        names: 8,
        two_phase: true,
        ..Load::default()
    }
}

#[test]
fn nothing_is_missed_by_consumers_that_give_up_at_random() -> Result<()> {
    for mode in ["latest", "every"] {
        let db = format!("random_{mode}");
        prepare(cluster(), &db, mode)?;
        let consumers = [Consumer::of("all", 1), Consumer::of("all", 2)];
        follow(cluster(), &db, &consumers, &changes(), |_| Ok(()))?;
    }
    nothing_crashed(&cluster().log())
}

#[test]
fn nothing_is_missed_by_consumers_that_share_lanes() -> Result<()> {
    prepare(cluster(), "shared", "latest")?;
    let of = |lanes: &[i32], seed| Consumer {
        lanes: Some(lanes.to_vec()),
        ..Consumer::of("all", seed)
    };
    let consumers = [
        of(&[0, 1], 1),
        of(&[2, 4, 3], 2),
        of(&[5, 6, 7], 3),
        // Gets in the way of all.
        Consumer::of("all", 4),
    ];
    follow(cluster(), "shared", &consumers, &changes(), |_| Ok(()))
}

#[test]
fn lanes_are_read_at_the_same_time() -> Result<()> {
    let mut first = still("lanes", "every")?;
    for name in names_in_lanes(&mut first)? {
        first.execute("SELECT counter_incr($1, 3)", &[&name])?;
    }
    compact(&mut first)?;
    let mut second = cluster().connect_db("lanes")?;
    first.batch_execute("BEGIN")?;
    let rows: i64 = one(&mut first, "SELECT mirror_next('all', 1000, '{0,1,2,3}')")?;
    ensure!(rows == 4, "{rows} rows");
    let rows: i64 = one(&mut second, "SELECT mirror_next('all', 1000, '{4,5,6,7}')")?;
    ensure!(rows == 4, "{rows} rows");
    for sql in [
        "SELECT mirror_next('all', 1000, '{7,0}')",
        "SELECT mirror_next('all', 1000, NULL)",
    ] {
        refused(second.batch_execute(sql), &SqlState::LOCK_NOT_AVAILABLE)?;
    }
    // Who only looks is in nobody's way.
    let rows: i64 = one(
        &mut second,
        "SELECT count(*) FROM counter_stream_peek('all')",
    )?;
    ensure!(rows == 4, "{rows} rows are unread");
    first.batch_execute("ROLLBACK")?;
    ends_right(&mut second, "all")
}

/// A bootstrap, and what follows it, at each level, as often as there is time for.
#[test]
fn a_bootstrap_beside_a_load_has_an_exact_seam() -> Result<()> {
    prepare(cluster(), "seam", "every")?;
    let config = cluster().config("seam");
    let mut times = 0;
    changes_under_watch(&config, &changes(), |control| {
        let mut client = config.connect(NoTls)?;
        // A quick load may be over before the second one is through.
        while times < 4 || !control.is_done() {
            ensure!(!control.is_aborted(), "the load has failed");
            for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
                times += 1;
                let stream = format!("seam{times}");
                let outcome = (|| -> Result<()> {
                    client.execute(
                        "SELECT counter_stream_create($1, mode => 'every')::text",
                        &[&stream],
                    )?;
                    // The first one starts it, the second one finds it live.
                    for _ in 0..2 {
                        client.batch_execute(&format!(
                            "BEGIN ISOLATION LEVEL {level}; SELECT mirror_bootstrap('{stream}'); COMMIT"
                        ))?;
                        look_at_stream_twice(&mut client, &stream)?;
                        client.query_one("SELECT mirror_next($1, 20, NULL)", &[&stream])?;
                        look_at_stream_twice(&mut client, &stream)?;
                    }
                    Ok(())
                })();
                match outcome {
                    // A fold came between the snapshot and the start.
                    Err(error) if is_busy(&error) => client.batch_execute("ROLLBACK")?,
                    outcome => outcome.with_context(|| format!("{stream}, {level}"))?,
                }
                let sql = "SELECT counter_stream_drop($1)";
                client.query_one(sql, &[&stream])?;
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// Beside consumers that bootstrap as well, and a live stream is begun again.
#[test]
fn a_live_stream_is_begun_again_beside_its_consumers() -> Result<()> {
    prepare(cluster(), "again", "latest")?;
    let consumers = [1, 2].map(|seed| Consumer {
        bootstraps: true,
        ..Consumer::of("all", seed)
    });
    follow(cluster(), "again", &consumers, &changes(), |_| Ok(()))
}

#[test]
fn a_start_that_is_rolled_back_leaves_nothing() -> Result<()> {
    let mut client = still("rolled", "every")?;
    each(
        &mut client,
        &[
            "SELECT counter_stream_create('other')",
            "BEGIN; SELECT counter_stream_bootstrap('other'); ROLLBACK",
            "BEGIN; SAVEPOINT s; SELECT counter_stream_bootstrap('other'); ROLLBACK TO s; COMMIT",
        ],
    )?;
    ensure!(state_of(&mut client, "other")? == "new");
    refused(
        client.batch_execute("SELECT * FROM counter_stream_next('other')"),
        &LOST,
    )?;
    refused(
        client.batch_execute("SELECT * FROM counter_stream_peek('other')"),
        &LOST,
    )?;
    // Others fold meanwhile.
    each(
        &mut client,
        &["SELECT bump('a', 5)", "SELECT counterx.compact()"],
    )?;
    ends_right(&mut client, "all")?;
    each(
        &mut client,
        &["SELECT mirror_bootstrap('other')", "SELECT bump('a', 2)"],
    )?;
    compact(&mut client)?;
    ends_right(&mut client, "other")?;
    let value: String = one(
        &mut client,
        "SELECT value::text FROM mirror WHERE stream = 'other' AND name = 'a'",
    )?;
    ensure!(value == "7", "{value}");
    Ok(())
}

/// The page that a fold is returned in pieces; a failed statement in the midst of it.
#[test]
fn a_fold_is_read_in_pages() -> Result<()> {
    let mut client = still("pages", "every")?;
    each(
        &mut client,
        &["SELECT counter_incr('page:' || n, n) FROM generate_series(1, 1000) n"],
    )?;
    compact(&mut client)?;
    let mut rows = 0;
    for max_rows in [1, 2, 7, 100, 333].into_iter().cycle() {
        let sql = "SELECT mirror_next('all', $1, NULL)";
        client.batch_execute("BEGIN")?;
        client.query_one(sql, &[&max_rows])?;
        ensure!(client.batch_execute("SELECT 1/0").is_err());
        client.batch_execute("ROLLBACK")?;
        let read: i64 = client.query_one(sql, &[&max_rows])?.get(0);
        ensure!(read <= i64::from(max_rows), "{read} of {max_rows}");
        rows += read;
        look_at_stream(&mut client, "all")?;
        if read == 0 {
            break;
        }
    }
    ensure!(rows == 1000, "{rows} rows");
    ends_right(&mut client, "all")
}

#[test]
fn latest_has_one_row_for_each_counter() -> Result<()> {
    let mut client = still("latest", "latest")?;
    for _ in 0..5 {
        each(
            &mut client,
            &[
                "SELECT bump('a', 2), bump('b', 3)",
                "SELECT counterx.compact()",
            ],
        )?;
    }
    let rows: String = one(
        &mut client,
        "SELECT string_agg(concat_ws(' ', name, delta, value, kind), ',' ORDER BY name), count(DISTINCT position)
           FROM counter_stream_peek('all')",
    )?;
    ensure!(rows == "a 10 10 created,b 15 15 created", "{rows}");
    each(
        &mut client,
        &[
            "SELECT counter_drop('a'), bump('b', -3)",
            "INSERT INTO oracle VALUES ('a', -10)",
        ],
    )?;
    compact(&mut client)?;
    ends_right(&mut client, "all")
}

/// What becomes of counters by other means is told, and adds up.
#[test]
fn kinds_tell_what_has_become_of_a_counter() -> Result<()> {
    let mut client = still("kinds", "every")?;
    client.batch_execute(
        "CREATE FUNCTION told() RETURNS text LANGUAGE sql AS $$
             SELECT coalesce(string_agg(concat_ws(' ', name, delta, coalesce(value, 0), kind), ', ' ORDER BY name COLLATE \"C\", kind), '')
               FROM counter_stream_next('all', 1000)
         $$",
    )?;
    for (what, told) in [
        ("SELECT counter_incr('a', 5)", "a 5 5 created"),
        ("SELECT counter_incr('a', 2)", "a 2 7 changed"),
        ("SELECT counter_incr('a', 0)", ""),
        ("SELECT counter_set('a', 100)", "a 93 100 adjusted"),
        (
            "SELECT counter_rename('a', 'b')",
            "a -100 0 dropped, b 100 100 created",
        ),
        ("SELECT counter_incr('c', 1)", "c 1 1 created"),
        (
            "SELECT counter_merge('b', 'c')",
            "b 1 101 adjusted, c -1 0 dropped",
        ),
        ("SELECT counter_reset('b')", "b -101 0 adjusted"),
        ("SELECT counter_incr('b', 4)", "b 4 4 changed"),
        ("SELECT counter_drop('b')", "b -4 0 dropped"),
        ("SELECT counter_incr('b', 4)", "b 4 4 created"),
        ("SELECT counter_incr('b', -4)", "b -4 0 changed"),
        // In one fold.
        ("SELECT counter_incr('d', 4), counter_drop('d')", ""),
    ] {
        each(&mut client, &[what])?;
        compact(&mut client)?;
        let now: String = one(&mut client, "SELECT told()")?;
        // Nothing has changed, and that may be said, or not.
        let is_idle = told.is_empty() && now.split(", ").all(|row| row.contains(" 0 "));
        ensure!(now == told || is_idle, "{what}: {now}, and not {told}");
    }
    Ok(())
}

/// Rows of a table that is tracked while a stream follows; the fill is no crossing of a threshold.
#[test]
fn a_fill_is_an_adjustment_and_fires_nothing() -> Result<()> {
    let mut client = prepare(cluster(), "filled", "every")?;
    each(
        &mut client,
        &[
            "CREATE TABLE item (id int PRIMARY KEY, kind text)",
            "INSERT INTO item SELECT n, 'k' || n % 3 FROM generate_series(1, 300) n",
            "SELECT counter_alert_create('many', 'item:', above => 50, rearm => 10)",
            "SELECT counter_track('item', 'item', '{kind}')",
            "SELECT counter_track_wait('item', '1 min')",
        ],
    )?;
    settle(&mut client)?;
    let (fired, adjusted): (i64, i64) = {
        let row = client.query_one(
            "SELECT count(*) FILTER (WHERE kind = 'fired'), count(DISTINCT name) FILTER (WHERE kind <> 'fired')
               FROM counter_stream_peek('all') WHERE starts_with(name, 'item:')",
            &[],
        )?;
        (row.get(0), row.get(1))
    };
    ensure!((fired, adjusted) == (0, 3), "{fired} {adjusted}");
    // It is fired already.
    let fired: i64 = one(
        &mut client,
        "SELECT count(*) FROM counter_alerts_fired('many')",
    )?;
    ensure!(fired == 3, "{fired}");
    each(
        &mut client,
        &[
            "DELETE FROM item WHERE id % 3 = 1 AND id > 9",
            "INSERT INTO item SELECT n, 'k1' FROM generate_series(1001, 1060) n",
        ],
    )?;
    settle(&mut client)?;
    ends_right(&mut client, "all")
}

/// Kills busy backends, of consumers or of others, and the server goes on.
#[test]
fn nothing_is_missed_where_backends_are_killed() -> Result<()> {
    worst("killed-backend", |cluster, db| {
        let mut connection = Recovering::new(&cluster.config(db));
        kill_and_recover(&mut connection, committing)
    })
}

#[test]
fn nothing_is_missed_where_the_worker_is_killed() -> Result<()> {
    worst("killed-worker", |cluster, db| {
        let mut connection = Recovering::new(&cluster.config(db));
        kill_and_recover(&mut connection, |connection| {
            let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'counterx worker'
                          AND datname = current_database()";
            counterx_cluster_tests::victim(connection, "a worker", sql)
        })
    })
}

/// What is seen outside stays where it was seen: [`Outside`] holds each row against what it saw there before.
#[test]
fn nothing_is_missed_where_the_postmaster_is_killed() -> Result<()> {
    worst("killed-postmaster", |cluster, _| {
        cluster.kill_postmaster()?;
        cluster.start()
    })
}

fn worst(name: &str, worst: impl Fn(&mut Cluster, &str) -> Result<()>) -> Result<()> {
    let mut cluster = folding_hard(&format!("streams-{name}")).start()?;
    let db = "worst";
    prepare(&cluster, db, "latest")?;
    let config = cluster.config(db);
    let mut client = cluster.connect_db(db)?;
    client.batch_execute("SELECT counter_stream_create('outside', mode => 'every')")?;
    let mut outside = Outside::of("outside");
    outside.bootstrap(&mut client)?;
    drop(client);
    let load = Load {
        transactions: 200,
        two_phase: true,
        survives: true,
        ..Load::default()
    };
    let consumers = [1, 2].map(|seed| Consumer {
        survives: true,
        ..Consumer::of("all", seed)
    });
    let mut all = Vec::new();
    let watched = under_watch(&config, &load, |control| {
        all = consume_beside(&config, control, &consumers, Some(&mut outside), || {
            control.at_each_third(|| worst(&mut cluster, db))?;
            control.wait_for_share(1.0)
        })?;
        Ok(())
    })?;
    // Consumers may have been connecting just then: they do so often, and on a busy machine it takes long.
    ensure!(
        watched.outcome.unknown > 0,
        "nobody noticed: {watched:?} {all:?}"
    );
    let mut connection = Recovering::new(&config);
    let client = connection.client()?;
    resolve_orphans(client)?;
    client.batch_execute("SELECT bump('after', 1)")?;
    ends_right(client, "all")?;
    outside.ends_right(client, "")?;
    nothing_crashed_by_itself(&cluster.log())
}

/// What is seen and lost in the crash is not there: a commit of the worker does not wait for the disk, a peek does.
#[test]
fn what_was_seen_survives_a_crash() -> Result<()> {
    let mut cluster = folding_hard("streams-seen")
        .conf("wal_writer_delay", "10s")
        .conf("wal_writer_flush_after", "0")
        .start()?;
    let mut client = prepare(&cluster, "seen", "every")?;
    client.batch_execute("SELECT counter_stream_create('outside', mode => 'every')")?;
    let mut outside = Outside::of("outside");
    outside.bootstrap(&mut client)?;
    for round in 0..4 {
        client.batch_execute("SET synchronous_commit = off")?;
        poll_until("a fold to be seen", DEADLINE, || {
            client.batch_execute("SELECT bump('a', 1), bump('b' || pg_backend_pid(), 3)")?;
            Ok(outside.peek(&mut client, 1000)? > 0)
        })?;
        let seen = outside.values.clone();
        cluster.kill_postmaster()?;
        cluster.start()?;
        client = cluster.connect_db("seen")?;
        outside.peek(&mut client, 1000)?;
        ensure!(
            seen.iter()
                .all(|(name, _)| outside.values.contains_key(name)),
            "round {round}"
        );
        // Others are folded to what may be the same numbers.
        client.batch_execute(&format!("SELECT bump('a', {})", 100 * (round + 1)))?;
        settle(&mut client)?;
        outside.ends_right(&mut client, "")?;
    }
    Ok(())
}

/// A cursor goes with its stream to the standby that is promoted; who has seen what may not be there begins anew.
#[test]
fn a_promoted_standby_goes_on() -> Result<()> {
    let primary = folding_hard("streams-primary")
        .conf("wal_keep_size", "512MB")
        .start()?;
    let mut client = prepare(&primary, "moved", "every")?;
    client.batch_execute("SELECT counter_stream_create('outside', mode => 'every')")?;
    let mut outside = Outside::of("outside");
    outside.bootstrap(&mut client)?;
    let mut standby = Cluster::builder()
        .name("streams-standby")
        .standby_of(&primary)
        .conf("hot_standby_feedback", "on")
        .start()?;
    let load = Load {
        transactions: 40,
        two_phase: true,
        ..Load::default()
    };
    let config = primary.config("moved");
    under_watch(&config, &load, |control| {
        consume_beside(
            &config,
            control,
            &[Consumer::of("all", 1)],
            Some(&mut outside),
            || control.wait_for_share(1.0),
        )?;
        Ok(())
    })?;
    client.batch_execute("SELECT bump('unread', 5)")?;
    settle(&mut client)?;
    // It has a position of before.
    outside.peek(&mut client, 1000)?;
    let mut there = standby.connect_db("moved")?;
    catch_up(&primary, &mut there)?;
    // A standby can be read, and nothing else.
    let here: i64 = one(
        &mut client,
        "SELECT count(*) FROM counter_stream_peek('all', 100000)",
    )?;
    let seen: i64 = one(
        &mut there,
        "SELECT count(*) FROM counter_stream_peek('all', 100000)",
    )?;
    ensure!(
        here == seen && here > 0,
        "{here} here, {seen} on the standby"
    );
    look_at_stream(&mut there, "all")?;
    for sql in [
        "SELECT * FROM counter_stream_next('all')",
        "SELECT * FROM counter_stream_bootstrap('all')",
    ] {
        refused(
            there.batch_execute(sql),
            &SqlState::READ_ONLY_SQL_TRANSACTION,
        )?;
    }
    drop(there);
    standby.promote()?;
    let mut there = standby.connect_db("moved")?;
    there.batch_execute("SELECT bump('after', 7)")?;
    settle(&mut there)?;
    drain(&mut there, "all")?;
    is_counted(&mut there, "all")?;
    check(&mut there)?;
    let Err(error) = outside.peek(&mut there, 1000) else {
        bail!("a consumer outside goes on");
    };
    ensure!(is_gone(&error), "{error:#}");
    if let Err(error) = outside.acknowledge(&mut there) {
        ensure!(is_gone(&error), "{error:#}");
    } else {
        bail!("a position of before is taken");
    }
    outside.bootstrap(&mut there)?;
    there.batch_execute("SELECT bump('after', 1)")?;
    settle(&mut there)?;
    outside.ends_right(&mut there, "")
}

fn dump(db: &str, arguments: &[&str]) -> Result<String> {
    let file = cluster().directory().join(format!("{db}.streams"));
    let file = file.to_str().context("odd path")?.to_owned();
    run(cluster()
        .tool("pg_dump")
        .args(arguments)
        .args(["--file", &file, db]))?;
    Ok(file)
}

fn psql(db: &str, file: &str, arguments: &[&str]) -> Result<()> {
    run(cluster()
        .tool("psql")
        .args(["-Xq", "-d", db, "-f", file])
        .args(arguments))?;
    Ok(())
}

#[test]
fn a_restored_stream_begins_anew() -> Result<()> {
    let mut client = prepare(cluster(), "dumped", "every")?;
    each(
        &mut client,
        &[
            "SELECT bump('a', 5)",
            "SELECT counter_alert_create('low', 'a', below => 10, rearm => 20)",
        ],
    )?;
    settle(&mut client)?;
    let position: String = one(
        &mut client,
        "SELECT max(position) FROM counter_stream_peek('all')",
    )?;
    let file = dump("dumped", &[])?;
    cluster()
        .connect()?
        .batch_execute("CREATE DATABASE dumped_copy")?;
    psql("dumped_copy", &file, &["-v", "ON_ERROR_STOP=1"])?;
    let mut copy = cluster().connect_db("dumped_copy")?;
    ensure!(state_of(&mut copy, "all")? == "new");
    refused(
        copy.batch_execute("SELECT * FROM counter_stream_next('all')"),
        &LOST,
    )?;
    let ack = format!("SELECT counter_stream_ack('all', '{position}')");
    refused(copy.batch_execute(&ack), &LOST)?;
    copy.batch_execute("SELECT mirror_bootstrap('all')")?;
    refused(copy.batch_execute(&ack), &LOST)?;
    copy.batch_execute("SELECT bump('a', 1), bump('b', 2)")?;
    ends_right(&mut copy, "all")?;
    check(&mut copy)?;
    let alerts: i64 = one(&mut copy, "SELECT count(*) FROM counter_alerts")?;
    ensure!(alerts == 1, "{alerts} alerts");
    // The original goes on.
    client.batch_execute(&ack)?;
    client.batch_execute("SELECT bump('a', 1)")?;
    settle(&mut client)
}

/// Onto a database in use: what is restored there changes counters, and the stream that is there tells of it.
#[test]
fn a_restore_onto_a_stream_in_use_is_followed() -> Result<()> {
    let mut client = prepare(cluster(), "source", "every")?;
    each(&mut client, &["SELECT bump('a', 5), bump('b', 6)"])?;
    settle(&mut client)?;
    let file = dump("source", &["--data-only"])?;
    let mut used = prepare(cluster(), "used", "every")?;
    each(&mut used, &["SELECT bump('a', 100)"])?;
    ends_right(&mut used, "all")?;
    let position: Option<String> = one(
        &mut used,
        "SELECT max(position) FROM counter_stream_peek('all')",
    )?;
    ensure!(position.is_none(), "{position:?}");
    // Some tables refuse what is there twice.
    cluster()
        .tool("psql")
        .args(["-Xq", "-d", "used", "-f", &file])
        .output()?;
    each(&mut used, &["SELECT counter_incr('a', 1)"])?;
    settle(&mut used)?;
    if state_of(&mut used, "all")? != "live" {
        used.batch_execute("SELECT mirror_bootstrap('all')")?;
        used.batch_execute("SELECT counter_incr('a', 1)")?;
    }
    ends_right(&mut used, "all")
}

/// The oldest unread row is older than it is kept: lost, and folds go on; another stream of the same counters stays.
#[test]
fn a_slow_consumer_is_lost_after_keep() -> Result<()> {
    let mut client = prepare(cluster(), "slow", "every")?;
    each(
        &mut client,
        &[
            "SELECT counter_stream_create('slow', keep => '1 second')",
            "SELECT counter_stream_create('elsewhere', prefix => 'else:', keep => '1 second')",
            "SELECT mirror_bootstrap('slow'), mirror_bootstrap('elsewhere')",
            "SELECT bump('a', 1)",
        ],
    )?;
    poll_until("the stream to be lost", DEADLINE, || {
        client.batch_execute("SELECT bump('a', 1)")?;
        Ok(state_of(&mut client, "slow")? == "lost")
    })?;
    refused(
        client.batch_execute("SELECT * FROM counter_stream_next('slow')"),
        &LOST,
    )?;
    refused(
        client.batch_execute("SELECT * FROM counter_stream_peek('slow')"),
        &LOST,
    )?;
    let reason: Option<String> = one(
        &mut client,
        "SELECT reason FROM counter_streams WHERE stream = 'slow'",
    )?;
    ensure!(reason.is_some_and(|reason| !reason.is_empty()));
    // What is not its own makes nobody late.
    ensure!(state_of(&mut client, "elsewhere")? == "live");
    client.batch_execute("SELECT bump('else:a', 1)")?;
    ends_right_unless_lost(&mut client, "elsewhere")?;
    ends_right(&mut client, "all")?;
    patiently(&mut client, "SELECT mirror_bootstrap('slow')")?;
    client.batch_execute("SELECT bump('a', 1)")?;
    ends_right_unless_lost(&mut client, "slow")?;
    check(&mut client)?;
    Ok(())
}

/// The same of a stream that is kept for a second. Who takes longer is late again, and begins anew.
fn ends_right_unless_lost(client: &mut Client, stream: &str) -> Result<()> {
    poll_until(
        &format!("{stream} to be read in time"),
        DEADLINE,
        || match ends_right(client, stream) {
            Ok(()) => Ok(true),
            Err(error) if is_gone(&error) => {
                patiently(client, &format!("SELECT mirror_bootstrap('{stream}')"))?;
                client.batch_execute("SELECT bump('a', 1), bump('else:a', 1)")?;
                Ok(false)
            }
            Err(error) => Err(error),
        },
    )
}

fn change_bytes(client: &mut Client) -> Result<i64> {
    one(
        client,
        "SELECT coalesce(sum(pg_relation_size(c.oid)), 0)::bigint FROM pg_class c
          WHERE relnamespace = 'counterx'::regnamespace AND relname ~ '^change_[0-7]_[ab]$'",
    )
}

/// Nobody reads: the rows stop growing, counting and folding do not.
#[test]
fn rows_are_bounded_by_their_size() -> Result<()> {
    let cluster = folding_hard("streams-size")
        .conf("counterx.stream_max_size", "4MB")
        .start()?;
    let mut client = prepare(&cluster, "size", "every")?;
    // Keeps rows from being removed as well.
    let mut reader = cluster.connect_db("size")?;
    reader.batch_execute(
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM counter_stream_peek('all')",
    )?;
    let mut most = 0;
    for round in 0..120 {
        client.batch_execute(&format!(
            "SELECT bump_many(array_agg('size:' || {round} % 7 || ':' || n), array_agg(n)) FROM generate_series(1, 1000) n"
        ))?;
        settle(&mut client)?;
        most = most.max(change_bytes(&mut client)?);
    }
    ensure!(state_of(&mut client, "all")? == "lost");
    ensure!(most < 3 * 4 * 1024 * 1024, "{most} bytes");
    check(&mut client)?;
    reader.batch_execute("COMMIT")?;
    refused(
        client.batch_execute("SELECT * FROM counter_stream_next('all')"),
        &LOST,
    )?;
    client.batch_execute("SELECT mirror_bootstrap('all')")?;
    for round in 0..20 {
        client.batch_execute(&format!("SELECT bump_many(array_agg('size:' || n), array_agg(n + {round})) FROM generate_series(1, 200) n"))?;
        ends_right(&mut client, "all")?;
    }
    Ok(())
}

/// A consumer that has its place locked, or its position in hand, when the lane gets full and rows are left out: what
/// it commits then does not make a stream live that has a gap.
#[test]
fn a_consumer_at_work_in_a_full_lane_misses_nothing() -> Result<()> {
    const ROUNDS: i32 = 60;
    let cluster = folding_hard("streams-full")
        .conf("counterx.stream_max_size", "1MB")
        .conf("counterx.compaction", "off")
        .start()?;
    let mut client = prepare(&cluster, "full_lane", "every")?;
    let mut consumer = cluster.connect_db("full_lane")?;
    let next = "SELECT mirror_next('all', 1000000, NULL)";
    let fill = |client: &mut Client| -> Result<()> {
        client
            .batch_execute("SELECT counter_incr('full:' || n, n) FROM generate_series(1, 400) n")?;
        client.batch_execute("SELECT counterx.compact()")?;
        Ok(())
    };
    let mut lost = 0;
    for unread in [0, 2, 5, 9] {
        for way in ["next", "bootstrap", "ack"] {
            // Both tables are emptied.
            client.batch_execute("SELECT mirror_bootstrap('all')")?;
            for _ in 0..4 {
                fill(&mut client)?;
                client.batch_execute("SELECT mirror_bootstrap('all')")?;
                client.batch_execute("CALL counterx.compact_in_steps()")?;
            }
            for _ in 0..unread {
                fill(&mut client)?;
            }
            let what = format!("{way} with {unread} folds unread");
            if state_of(&mut client, "all")? != "live" {
                continue;
            }
            let sql = "SELECT position FROM counter_stream_peek('all', 1000000) WITH ORDINALITY p
                        ORDER BY p.ordinality DESC LIMIT 1";
            let position: Option<String> = consumer.query_opt(sql, &[])?.map(|row| row.get(0));
            match way {
                "next" => consumer.batch_execute(&format!("BEGIN; {next}"))?,
                "bootstrap" => consumer.batch_execute("BEGIN; SELECT mirror_bootstrap('all')")?,
                // As what was peeked is applied where it was peeked.
                _ => consumer.batch_execute(
                    "INSERT INTO mirror AS m
                     SELECT 'all', name, sum(delta) FROM counter_stream_peek('all', 1000000) GROUP BY name
                         ON CONFLICT (stream, name) DO UPDATE SET value = m.value + EXCLUDED.value",
                )?,
            }
            let mut rounds = 0;
            while rounds < ROUNDS && state_of(&mut client, "all")? == "live" {
                fill(&mut client)?;
                rounds += 1;
            }
            lost += i32::from(rounds < ROUNDS);
            fill(&mut client)?;
            if way == "ack" {
                let Some(position) = position else { continue };
                let ack = format!("SELECT counter_stream_ack('all', '{position}')");
                match consumer.batch_execute(&ack) {
                    Ok(()) => {}
                    Err(error) => ensure!(is_gone(&error.into()), "{what}"),
                }
            } else {
                consumer.batch_execute("COMMIT")?;
            }
            if state_of(&mut client, "all")? == "live" {
                look_at_stream(&mut client, "all").context(what)?;
            }
        }
    }
    ensure!(lost > 3, "lanes are full only {lost} times");
    Ok(())
}

/// What all have read is removed, beside snapshots that see it as unread: those are refused, or right.
#[test]
fn a_truncation_beside_older_snapshots_leaves_no_gap() -> Result<()> {
    let mut client = still("older", "every")?;
    let mut refusals = 0;
    for _ in 0..30 {
        each(
            &mut client,
            &[
                "SELECT bump('a', 1), bump('b', 2)",
                "SELECT counterx.compact()",
            ],
        )?;
        let mut reader = cluster().connect_db("older")?;
        let mut snapshot = reader
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()?;
        snapshot.batch_execute("SELECT count(*) FROM mirror")?;
        for _ in 0..3 {
            each(
                &mut client,
                &[
                    "SELECT bump('a', 1)",
                    "CALL counterx.compact_in_steps()",
                    "SELECT mirror_next('all', 1000, NULL)",
                    "CALL counterx.compact_in_steps()",
                ],
            )?;
        }
        match look_at_stream(&mut snapshot, "all") {
            Ok(_) => {}
            Err(error) => {
                ensure!(is_gone(&error) || is_busy(&error), "{error:#}");
                refusals += 1;
            }
        }
    }
    println!("{refusals} refused");
    compact(&mut client)?;
    ends_right(&mut client, "all")
}

#[test]
fn drop_all_counters_loses_all_streams() -> Result<()> {
    let mut client = prepare(cluster(), "dropped", "every")?;
    each(
        &mut client,
        &[
            "SELECT counter_alert_create('low', 'stock:', below => 10, rearm => 15)",
            "SELECT counter_incr('stock:a', 3)",
        ],
    )?;
    settle(&mut client)?;
    let fired: i64 = one(&mut client, "SELECT count(*) FROM counter_alerts_fired()")?;
    ensure!(fired == 1, "{fired}");
    each(&mut client, &["SELECT counterx.drop_all_counters()"])?;
    wait_for_state(&mut client, "all", "lost")?;
    // With the fold of the drop, which comes when it comes.
    poll_until("nothing to have fired", DEADLINE, || {
        let sql = "SELECT count(*) FROM counter_alerts_fired()";
        Ok(one::<i64>(&mut client, sql)? == 0)
    })?;
    refused(
        client.batch_execute("SELECT * FROM counter_stream_next('all')"),
        &LOST,
    )?;
    each(
        &mut client,
        &[
            "SELECT mirror_bootstrap('all')",
            "SELECT counter_incr('stock:a', 4)",
        ],
    )?;
    ends_right(&mut client, "all")?;
    poll_until("the alert to fire again", DEADLINE, || {
        Ok(one::<i64>(
            &mut client,
            "SELECT count(*) FROM counter_alerts_fired('low')",
        )? == 1)
    })
}

/// What an alert says, held against what it has to say of the values that the folds came to.
fn alerts_are_right(client: &mut Client, alerts: &[(&str, &str, bool, i64, i64)]) -> Result<u64> {
    let sql = "SELECT name, coalesce(value, 0)::bigint, kind, alert, lane, fold
                 FROM counter_stream_peek('all', 10000000) WITH ORDINALITY p ORDER BY p.ordinality";
    let mut fired: BTreeMap<(String, String), bool> = BTreeMap::new();
    let mut due: Vec<(String, String, &str, i64)> = Vec::new();
    let mut told: Vec<(String, String, String, i64)> = Vec::new();
    for row in client.query(sql, &[])? {
        let (name, value, kind): (String, i64, String) = (row.get(0), row.get(1), row.get(2));
        if let Some(alert) = row.get::<_, Option<String>>(3) {
            told.push((alert, name, kind, value));
            continue;
        }
        for (alert, prefix, is_below, at, rearm) in alerts {
            if !name.starts_with(prefix) {
                continue;
            }
            let state = fired
                .entry(((*alert).to_owned(), name.clone()))
                .or_default();
            let is_beyond = if *is_below { value < *at } else { value > *at };
            let is_back = if *is_below {
                value >= *rearm
            } else {
                value <= *rearm
            };
            if kind == "dropped" {
                *state = false;
            } else if !*state && is_beyond {
                *state = true;
                due.push(((*alert).to_owned(), name.clone(), "fired", value));
            } else if *state && is_back {
                *state = false;
                due.push(((*alert).to_owned(), name.clone(), "rearmed", value));
            }
        }
    }
    let by_counter = |mut all: Vec<(String, String, String, i64)>| {
        all.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        all
    };
    let due = due
        .into_iter()
        .map(|(alert, name, kind, value)| (alert, name, kind.to_owned(), value))
        .collect();
    let (due, told) = (by_counter(due), by_counter(told));
    if due != told {
        let at = due.iter().zip(&told).position(|(due, told)| due != told);
        bail!(
            "alerts: at {at:?} {:?} was due, and {:?} told; {} due, {} told",
            at.map(|at| &due[at]),
            at.map(|at| &told[at]),
            due.len(),
            told.len()
        );
    }
    let mut states: Vec<(String, String)> = Vec::new();
    for row in client.query("SELECT alert, name FROM counter_alerts_fired()", &[])? {
        states.push((row.get(0), row.get(1)));
    }
    states.sort();
    let is_fired: Vec<_> = fired
        .into_iter()
        .filter(|(_, is)| *is)
        .map(|(key, _)| key)
        .collect();
    ensure!(
        states == is_fired,
        "fired are {states:?}, and not {is_fired:?}"
    );
    Ok(due.len() as u64)
}

/// Each crossing between folds once, of counters that go up and down, are dropped, renamed and set.
#[test]
fn alerts_fire_once_for_each_crossing() -> Result<()> {
    let mut client = prepare(cluster(), "alerts", "every")?;
    let alerts = [
        ("low", "p:", true, 200, 400),
        ("high", "p:", false, 600, 600),
        ("both", "", true, 50, 50),
        ("negative", "n:", true, 0, 10),
    ];
    for (alert, prefix, is_below, at, rearm) in alerts {
        let side = if is_below { "below" } else { "above" };
        client.batch_execute(&format!(
            "SELECT counter_alert_create('{alert}', '{prefix}', {side} => {at}, rearm => {rearm})"
        ))?;
    }
    changes_under_watch(&cluster().config("alerts"), &changes(), |_| Ok(()))?;
    settle(&mut client)?;
    let due = alerts_are_right(&mut client, &alerts)?;
    ensure!(due > 20, "only {due} crossings");
    Ok(())
}

/// The same where the worker is killed all the time: a firing is part of its fold.
#[test]
fn alerts_fire_once_where_the_server_crashes() -> Result<()> {
    let mut cluster = folding_hard("streams-alerts").start()?;
    let db = "alerts";
    let mut client = prepare(&cluster, db, "every")?;
    let alerts = [
        ("low", "counter:", true, 0, 100),
        ("high", "counter:", false, 500, 300),
    ];
    for (alert, prefix, is_below, at, rearm) in alerts {
        let side = if is_below { "below" } else { "above" };
        client.batch_execute(&format!(
            "SELECT counter_alert_create('{alert}', '{prefix}', {side} => {at}, rearm => {rearm})"
        ))?;
    }
    drop(client);
    let load = Load {
        two_phase: true,
        survives: true,
        ..Load::default()
    };
    let config = cluster.config(db);
    under_watch(&config, &load, |control| {
        control.at_each_third(|| {
            cluster.kill_postmaster()?;
            cluster.start()
        })
    })?;
    let mut connection = Recovering::new(&config);
    let client = connection.client()?;
    resolve_orphans(client)?;
    client.batch_execute("SELECT bump('after', 1)")?;
    settle(client)?;
    let due = alerts_are_right(client, &alerts)?;
    ensure!(due > 5, "only {due} crossings");
    Ok(())
}

fn folds_go_on(client: &mut Client) -> Result<()> {
    let before: i64 = one(
        client,
        "SELECT sum(folded_epoch)::bigint FROM counterx.lanes",
    )?;
    poll_until("folds to go on", DEADLINE, || {
        client.batch_execute("SET synchronous_commit = off; SELECT bump('on', 1)")?;
        let now: i64 = one(
            client,
            "SELECT sum(folded_epoch)::bigint FROM counterx.lanes",
        )?;
        Ok(now > before + 10)
    })?;
    settle(client)
}

/// Waits for a hint of a stream, and returns how many there were meanwhile.
fn hinted(listener: &mut Client, payload: &str) -> Result<usize> {
    use postgres::fallible_iterator::FallibleIterator;
    let mut all = 0;
    poll_until(&format!("a hint of {payload}"), DEADLINE, || {
        let mut notifications = listener.notifications();
        let mut iterator = notifications.timeout_iter(Duration::from_millis(100));
        let mut is_there = false;
        while let Some(notification) = iterator.next()? {
            ensure!(notification.channel() == "counterx", "{notification:?}");
            all += 1;
            is_there |= notification.payload() == payload;
        }
        Ok(is_there)
    })?;
    Ok(all)
}

#[test]
fn the_worker_hints_whoever_listens() -> Result<()> {
    let mut client = prepare(cluster(), "hints", "latest")?;
    each(
        &mut client,
        &[
            "SELECT counter_stream_create('quiet', notify => false)",
            "SELECT counter_alert_create('low', 'stock:', below => 10)",
            "SELECT mirror_bootstrap('quiet')",
        ],
    )?;
    let mut listener = cluster().connect_db("hints")?;
    listener.batch_execute("LISTEN counterx")?;
    client.batch_execute("SELECT bump('a', 1)")?;
    hinted(&mut listener, "all").context("the first one")?;
    client.batch_execute("SELECT bump('stock:a', 1)")?;
    hinted(&mut listener, "alert:low")?;
    // Folded by hand, and hinted by the worker.
    client.batch_execute("BEGIN; SELECT bump('a', 1); COMMIT; SELECT counterx.compact()")?;
    hinted(&mut listener, "all").context("folded by hand")?;
    // Bursts come to few hints, and the last one is told.
    for _ in 0..200 {
        client.batch_execute("SELECT bump('a', 1)")?;
    }
    settle(&mut client)?;
    hinted(&mut listener, "all").context("the last one")?;
    ends_right(&mut client, "all")
}

/// The queue of notifications cannot be emptied while a listener is in a transaction. Where that fills it, hints are
/// left out, and nothing else.
#[test]
fn folds_go_on_beside_a_listener_that_is_idle_in_transaction() -> Result<()> {
    let builder = folding_hard("streams-listener");
    let has_setting = cluster()
        .connect()?
        .query_opt(
            "SELECT FROM pg_settings WHERE name = 'max_notify_queue_pages'",
            &[],
        )?
        .is_some();
    let builder = if has_setting {
        builder.conf("max_notify_queue_pages", "64")
    } else {
        builder
    };
    let cluster = builder.start()?;
    let mut client = prepare(&cluster, "listener", "latest")?;
    let mut listener = cluster.connect_db("listener")?;
    each(&mut listener, &["LISTEN counterx", "BEGIN; SELECT 1"])?;
    let mut noise = cluster.connect_db("listener")?;
    noise.batch_execute("LISTEN noise")?;
    let mut is_full = false;
    for _ in 0..200 {
        let sql = "SELECT pg_notify('noise', n || repeat('x', 7000)) FROM generate_series(1, 20) n";
        if noise.batch_execute(sql).is_err() {
            is_full = true;
            break;
        }
    }
    ensure!(is_full == has_setting, "the queue is full: {is_full}");
    folds_go_on(&mut client)?;
    ends_right(&mut client, "all")?;
    listener.batch_execute("COMMIT")?;
    poll_until("a hint after all", DEADLINE, || {
        client.batch_execute("SELECT bump('a', 1)")?;
        settle(&mut client)?;
        Ok(hinted(&mut listener, "all").is_ok())
    })?;
    nothing_crashed(&cluster.log())
}

/// Who notifies and waits for a standby that is not there keeps a lock that every other notification waits for.
#[test]
fn folds_go_on_beside_a_notification_that_waits_for_a_standby() -> Result<()> {
    let mut cluster = folding_hard("streams-absent").start()?;
    let mut client = prepare(&cluster, "absent", "latest")?;
    let mut other = cluster.connect_db("absent")?;
    let mut control = cluster.connect_db("absent")?;
    control.batch_execute("SET synchronous_commit = local; CREATE TABLE other (id int)")?;
    let mut listener = cluster.connect_db("absent")?;
    listener.batch_execute("LISTEN counterx")?;
    cluster.reload(&[("synchronous_standby_names", "nobody")])?;
    wait_for_commits_to_wait(&cluster)?;
    let pid: i32 = one(&mut other, "SELECT pg_backend_pid()")?;
    let waiting = std::thread::spawn(move || {
        other.batch_execute("BEGIN; INSERT INTO other VALUES (1); NOTIFY others; COMMIT")
    });
    poll_until("somebody to wait for the standby", DEADLINE, || {
        let sql = "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $1";
        Ok(control.query_one(sql, &[&pid])?.get::<_, Option<bool>>(0) == Some(true))
    })?;
    client.batch_execute("SET synchronous_commit = off")?;
    folds_go_on(&mut client)?;
    ensure!(!waiting.is_finished(), "nobody waits any more");
    client.batch_execute("SET synchronous_commit = off; SELECT mirror_next('all', 1000, NULL)")?;
    cluster.reload(&[("synchronous_standby_names", "")])?;
    waiting.join().expect("does not panic")?;
    client.batch_execute("SELECT bump('a', 1)")?;
    hinted(&mut listener, "all")?;
    ends_right(&mut client, "all")
}

/// Positions that are none of the stream's.
#[test]
fn positions_from_elsewhere_are_refused() -> Result<()> {
    let mut client = still("positions", "every")?;
    each(&mut client, &["SELECT bump('a', 1), bump('b', 1)"])?;
    compact(&mut client)?;
    let position: String = one(
        &mut client,
        "SELECT max(position) FROM counter_stream_peek('all')",
    )?;
    let (start, timeline, _) = parse_position(&position)?;
    let lanes = |fold: i64| vec![fold.to_string(); 8].join(",");
    let ack = |position: &str| format!("SELECT counter_stream_ack('all', '{position}')");
    for (what, position, code) in [
        (
            "another start",
            format!(
                "{}:{timeline}:{}",
                "0".repeat(8) + "-0000-4000-8000-000000000000",
                lanes(0)
            ),
            LOST,
        ),
        (
            "another timeline",
            format!("{start}:{}:{}", timeline + 1, lanes(0)),
            LOST,
        ),
        (
            "what is not there",
            format!("{start}:{timeline}:{}", lanes(1_000_000)),
            LOST,
        ),
        (
            "no position",
            "nonsense".to_owned(),
            SqlState::INVALID_PARAMETER_VALUE,
        ),
        (
            "an empty one",
            String::new(),
            SqlState::INVALID_PARAMETER_VALUE,
        ),
    ] {
        refused(client.batch_execute(&ack(&position)), &code).with_context(|| what)?;
    }
    // Never backwards.
    client.batch_execute(&ack(&position))?;
    client.batch_execute(&ack(&format!("{start}:{timeline}:{}", lanes(0))))?;
    let rows: i64 = one(
        &mut client,
        "SELECT count(*) FROM counter_stream_peek('all')",
    )?;
    ensure!(rows < 2, "{rows} rows are unread again");
    // A stream of the same name that is another one.
    each(
        &mut client,
        &[
            "SELECT counter_stream_drop('all')",
            "SELECT counter_stream_create('all', mode => 'every')",
        ],
    )?;
    refused(client.batch_execute(&ack(&position)), &LOST)?;
    client.batch_execute("SELECT mirror_bootstrap('all')")?;
    refused(client.batch_execute(&ack(&position)), &LOST)?;
    Ok(())
}

/// The points of the engine's own table that have to do with streams.
fn points() -> Result<Vec<String>> {
    let file = counterx_cluster_tests::checkout().join("src/failpoint.rs");
    let table = std::fs::read_to_string(file)?;
    Ok(table
        .lines()
        .filter_map(|line| line.strip_prefix("//! | `stream."))
        .filter_map(|line| line.split('`').next())
        .map(|point| format!("stream.{point}"))
        .collect())
}

/// Killed at each of them, by a session or by the worker, whoever comes by.
#[test]
fn nothing_is_missed_where_somebody_is_killed_at_a_point() -> Result<()> {
    let mut cluster = folding_hard("streams-points")
        .conf("counterx.stream_max_size", "2MB")
        .start()?;
    let db = "points";
    let mut client = prepare(&cluster, db, "every")?;
    if !counterx_cluster_tests::has_clock(&mut client)? {
        return Ok(());
    }
    let points = points()?;
    ensure!(!points.is_empty(), "the engine has no points");
    let mut missed = Vec::new();
    for point in &points {
        for action in ["crash", "error"] {
            let entry = format!("{point}={action}");
            cluster.reload(&[("counterx.failpoint", &format!("{entry} once"))])?;
            let once = cluster
                .data_dir()
                .join(format!("counterx.failpoint.{entry}"));
            std::fs::write(&once, "")?;
            let config = cluster.config(db);
            let mut connection = Recovering::new(&config);
            let fired = poll_until("somebody to come by", DEADLINE / 2, || {
                let result = connection.client().and_then(|client| {
                    let position: Option<String> =
                        one(client, "SELECT max(position) FROM counter_stream_peek('all', 5)")?;
                    each(client, &["SELECT bump_many(array_agg('p:' || n), array_agg(n)) FROM generate_series(1, 300) n"])?;
                    drop(position);
                    each(
                        client,
                        &[
                            "SELECT counterx.compact()",
                            "SELECT mirror_next('all', 1000000, NULL)",
                            "CALL counterx.compact_in_steps()",
                            "SELECT mirror_bootstrap('all')",
                        ],
                    )
                });
                match result {
                    Ok(()) => {}
                    Err(error)
                        if counterx_cluster_tests::is_lost(&error)
                            || is_busy(&error)
                            || is_gone(&error)
                            || format!("{error:#}").contains("failpoint") =>
                    {
                        connection.forget();
                    }
                    Err(error) => return Err(error.context(entry.clone())),
                }
                Ok(!once.exists())
            });
            if fired.is_err() {
                missed.push(entry.clone());
                let _ = std::fs::remove_file(&once);
            }
            let mut connection = Recovering::new(&config);
            let mut tries = 0;
            loop {
                tries += 1;
                let result = connection.client().and_then(|client| {
                    if state_of(client, "all")? != "live" {
                        client.batch_execute("SELECT mirror_bootstrap('all')")?;
                    }
                    client.batch_execute("SELECT bump('after', 1)")?;
                    ends_right(client, "all")?;
                    check(client)?;
                    Ok(())
                });
                match result {
                    // The crash comes only now.
                    Err(error) if tries < 5 && counterx_cluster_tests::is_lost(&error) => {
                        connection.forget();
                    }
                    result => break result.with_context(|| format!("after {entry}"))?,
                }
            }
        }
    }
    ensure!(missed.is_empty(), "nobody came by {missed:?}");
    nothing_crashed_by_itself(&cluster.log())
}
