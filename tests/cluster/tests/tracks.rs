//! Counters of tracked tables equal their rows, in every snapshot, whatever happens to the rows.

use anyhow::{Context, Result, bail, ensure};
use counterx_cluster_tests::{
    Control, DEADLINE, Load, Recovering, TRACKED_TABLES, TRACKS, TrackedLoad, catch_up, committing,
    create_bare_database, folding_hard, footprint, is_in_the_way, is_no_look, kill_and_recover,
    no_drift, nothing_crashed, nothing_crashed_by_itself, patiently, rows_agree, settle, shared,
    track, track_all, tracked_under_watch, undisturbed,
};
use counterx_harness::{Cluster, ClusterBuilder, poll_until};
use postgres::error::SqlState;
use postgres::{Client, NoTls};
use std::thread;

const DB: &str = "tracked";

fn cluster() -> &'static Cluster {
    shared(|| builder("tracks").conf("wal_level", "logical").start())
}

/// Transactions at random come into each other's way a lot.
fn builder(name: &str) -> ClusterBuilder {
    folding_hard(name).conf("deadlock_timeout", "50ms")
}

fn all_tracks() -> Vec<(&'static str, &'static str)> {
    let names = TRACKS.iter().map(|(table, name, _)| (*table, *name));
    names.collect()
}

/// When all has ended.
fn agree_at_last(client: &mut Client) -> Result<()> {
    let all = all_tracks();
    // The load may have emptied everything.
    client.batch_execute(
        "INSERT INTO task (id, status) VALUES (-1, 'last'), (-2, 'very last');
         INSERT INTO comment VALUES (-1, 'last');
         INSERT INTO item (id, shard, status) VALUES (-1, 0, 'last'), (-1, 1, 'last'), (-1, 5, NULL)",
    )?;
    for _ in 0..2 {
        ensure!(rows_agree(client)? > 5, "groups are missing");
        no_drift(client, &all)?;
        settle(client)?;
    }
    Ok(())
}

/// Runs loads with different seeds until there were so many looks that they mean something: how many there are beside
/// one is the machine's.
fn look_often(db: &str, load: &Load, how: TrackedLoad, enough: u64) -> Result<()> {
    let mut checks = 0;
    for seed in load.seed..load.seed + 10 {
        let load = Load {
            seed,
            ..load.clone()
        };
        let watched = tracked_under_watch(&cluster().config(db), &load, how, |_| Ok(()))?;
        let outcome = watched.outcome;
        ensure!(outcome.done > outcome.refused, "{watched:?}");
        checks += watched.checks;
        if checks >= enough {
            return Ok(());
        }
    }
    bail!("{checks} looks are too few to mean anything")
}

#[test]
fn counters_equal_the_rows_in_every_snapshot_of_a_mixed_load() -> Result<()> {
    let mut client = create_bare_database(cluster(), "mixed")?;
    track_all(&mut client)?;
    let before = footprint(&mut client)?;
    let load = Load {
        clients: 8,
        transactions: 150,
        two_phase: true,
        checkers: 2,
        ..Load::default()
    };
    look_often("mixed", &load, TrackedLoad::default(), 20)?;
    agree_at_last(&mut client)?;
    let after = footprint(&mut client)?;
    ensure!(
        after.folded > before.folded,
        "no fold: {before:?} {after:?}"
    );
    Ok(())
}

#[test]
fn truncates_in_the_mix_change_nothing_of_that() -> Result<()> {
    let mut client = create_bare_database(cluster(), "truncates")?;
    track_all(&mut client)?;
    let load = Load {
        clients: 6,
        transactions: 150,
        two_phase: true,
        checkers: 2,
        ..Load::default()
    };
    let how = TrackedLoad {
        truncates: true,
        ..TrackedLoad::default()
    };
    look_often("truncates", &load, how, 10)?;
    agree_at_last(&mut client)
}

#[test]
fn who_keeps_a_table_from_being_tracked_is_named() -> Result<()> {
    let mut client = create_bare_database(cluster(), "holders")?;
    client.batch_execute("CREATE TABLE used (a int)")?;
    client.batch_execute("BEGIN; INSERT INTO used VALUES (1); PREPARE TRANSACTION 'the one'")?;
    let mut writer = cluster().config("holders").connect(NoTls)?;
    let pid: i32 = writer.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    writer.batch_execute("BEGIN; INSERT INTO used VALUES (2)")?;
    let track = "SELECT counter_track('used', 'used', '{a}')";
    let refused = client.batch_execute(track).expect_err("it is in use");
    let refused = refused.as_db_error().context("an error of the server's")?;
    ensure!(
        *refused.code() == SqlState::LOCK_NOT_AVAILABLE,
        "{refused:?}"
    );
    let expected = format!("It is in use by prepared transaction 'the one', process {pid}.");
    ensure!(
        refused.detail() == Some(expected.as_str()),
        "{refused:?} instead of: {expected}"
    );
    writer.batch_execute("COMMIT")?;
    client.batch_execute("COMMIT PREPARED 'the one'")?;
    client.batch_execute(track)?;
    client.batch_execute("SELECT counter_track_wait('used', '1 min')")?;
    no_drift(&mut client, &[("used", "used")])
}

#[test]
fn a_table_that_is_in_use_for_a_while_is_tracked_in_one_call() -> Result<()> {
    let mut client = create_bare_database(cluster(), "retried")?;
    client.batch_execute("CREATE TABLE used (a int)")?;
    let config = cluster().config("retried");
    let mut writer = config.connect(NoTls)?;
    writer.batch_execute("BEGIN; INSERT INTO used VALUES (1)")?;
    let tracking = thread::spawn(move || -> Result<()> {
        let mut tracker = config.connect(NoTls)?;
        tracker.batch_execute("SELECT counter_track('used', 'used', '{a}')")?;
        Ok(())
    });
    let mut waits = |expected: bool| {
        poll_until("an attempt to lock the table", DEADLINE, || {
            let waiting = "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'used'::regclass AND NOT granted";
            let waiting: bool = client.query_one(waiting, &[])?.get(0);
            Ok(waiting == expected)
        })
    };
    waits(true)?;
    // An attempt was given up, and nobody queues.
    waits(false)?;
    writer.batch_execute("INSERT INTO used VALUES (2); COMMIT")?;
    tracking.join().expect("does not panic")?;
    client.batch_execute("SELECT counter_track_wait('used', '1 min')")?;
    no_drift(&mut client, &[("used", "used")])
}

#[test]
fn rows_are_shown_while_they_are_counted() -> Result<()> {
    let mut client = create_bare_database(cluster(), "progress")?;
    client.batch_execute(
        "CREATE FUNCTION held_up(a int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
         BEGIN
             IF a = 5000 THEN PERFORM pg_advisory_xact_lock(1); END IF;
             RETURN a % 2;
         END $$;
         CREATE TABLE counted (a int);
         INSERT INTO counted SELECT generate_series(1, 6000)",
    )?;
    let mut holder = cluster().config("progress").connect(NoTls)?;
    holder.batch_execute("SELECT pg_advisory_lock(1)")?;
    client.batch_execute("SELECT counter_track('counted', 'counted', '{held_up(a)}')")?;
    let mut shown = |state: &str, rows: i64| {
        poll_until("rows that were counted", DEADLINE, || {
            let track = "SELECT state, coalesce(rows_seen, 0), waiting_for FROM counter_tracks WHERE type = 'counted'";
            let track = client.query_one(track, &[])?;
            let waits_for: Option<String> = track.get(2);
            Ok(
                (track.get::<_, String>(0), track.get::<_, i64>(1)) == (state.to_owned(), rows)
                    && waits_for.is_none(),
            )
        })
    };
    // Shown for each 1024.
    shown("attached", 4096)?;
    holder.batch_execute("SELECT pg_advisory_unlock(1)")?;
    shown("exact", 6000)
}

#[test]
fn groups_that_went_wrong_unnoticed_are_found_when_some_are_checked() -> Result<()> {
    let cluster = builder("checks").start()?;
    let mut client = create_bare_database(&cluster, "checks")?;
    // What the table's owner has written calls for an owner: when rows are counted, and when groups are checked.
    client.batch_execute(
        "CREATE ROLE shelver;
         GRANT CREATE ON SCHEMA public TO shelver;
         SET ROLE shelver;
         CREATE FUNCTION zero() RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
         BEGIN
             IF current_user <> 'shelver' THEN RAISE EXCEPTION 'as %', current_user; END IF;
             RETURN 0;
         END $$;
         CREATE DOMAIN owned AS int CHECK (VALUE > public.zero());
         CREATE TABLE day (on_day date, shelf text, n int);
         CREATE TABLE checked (LIKE day) PARTITION BY RANGE ((n + zero()));
         CREATE TABLE low PARTITION OF checked FOR VALUES FROM (0) TO (500);
         CREATE TABLE high PARTITION OF checked DEFAULT;
         CREATE INDEX ON checked (on_day);
         CREATE INDEX ON checked ((n + zero()));
         INSERT INTO checked
         SELECT CASE WHEN n % 7 > 0 THEN date '2026-02-27' + n % 7 END, 'a:' || n % 3, n FROM generate_series(1, 1000) n;
         RESET ROLE;
         SELECT counter_track('checked', type => 'checked', key => '{on_day, shelf}', sum => 'n::owned',
             filter => $$n >= zero() AND '{1}'::owned[] IS NOT NULL$$);
         CREATE TABLE no_index (a int);
         INSERT INTO no_index VALUES (1);
         SELECT counter_track('no_index', type => 'no_index', key => '{a}')",
    )?;
    let ready =
        "SELECT counter_track_wait('checked', '1 min'), counter_track_wait('no_index', '1 min')";
    client.batch_execute(ready)?;
    // As nobody should do it: no command of DDL, so nothing is noticed. Sessions that begin after it go by it.
    let enable = |client: &mut Client, how: &str| {
        client.batch_execute(&format!(
            "UPDATE pg_trigger SET tgenabled = '{how}' WHERE tgfoid = 'counterx.count_row()'::regprocedure"
        ))
    };
    enable(&mut client, "D")?;
    let mut unnoticed = cluster.config("checks").connect(NoTls)?;
    unnoticed.batch_execute("SET ROLE shelver; UPDATE checked SET shelf = 'b' WHERE n % 10 = 0")?;
    enable(&mut client, "A")?;
    // Whoever counts again waits for this one.
    let mut writer = cluster.config("checks").connect(NoTls)?;
    writer.batch_execute(
        "SET ROLE shelver; BEGIN; INSERT INTO checked VALUES ('2026-03-01', 'c', 2000)",
    )?;
    client.batch_execute("ALTER SYSTEM SET counterx.track_checks = 100")?;
    client
        .batch_execute("SELECT pg_reload_conf(); SELECT counter_track_wait('no_index', '1 min')")?;
    // Looked for each minute.
    poll_until("a group that is found to be wrong", 3 * DEADLINE, || {
        let track = "SELECT state, reason FROM counter_tracks WHERE type = 'checked'";
        let track = client.query_one(track, &[])?;
        let reason: Option<String> = track.get(1);
        Ok(track.get::<_, String>(0) == "stale"
            && reason.is_some_and(|reason| reason.contains("counter \"checked:")))
    })?;
    writer.batch_execute("COMMIT")?;
    client.batch_execute(ready)?;
    no_drift(
        &mut client,
        &[("checked", "checked"), ("no_index", "no_index")],
    )
}

/// As an administrator does it, who is in nobody's way.
fn track_and_untrack(client: &mut Client, control: &Control) -> Result<u64> {
    let (table, type_name, how) = TRACKS[4];
    let mut rounds = 0;
    // A quick load may be over before an attempt to lock the table was lucky.
    while rounds < 2 || !control.is_done() {
        patiently(
            client,
            &format!("SELECT counter_untrack('{table}', '{type_name}')"),
        )?;
        let left: i64 = client
            .query_one(
                "SELECT count(*) FROM counters WHERE name ^@ 'revenue:'",
                &[],
            )?
            .get(0);
        ensure!(
            left == 0,
            "{left} counters are left of a track that is no more"
        );
        track(client, table, type_name, how)?;
        // What is exact stays so.
        let sql = "SELECT count(*) FROM counter_recount('item', 'items')";
        poll_until(sql, DEADLINE, || match client.query_one(sql, &[]) {
            Ok(row) => {
                let wrong: i64 = row.get(0);
                ensure!(wrong == 0, "{wrong} counters were wrong");
                Ok(true)
            }
            Err(error) if is_in_the_way(&error) => Ok(false),
            Err(error) => Err(error.into()),
        })?;
        rounds += 1;
    }
    Ok(rounds)
}

fn tracks_come_and_go(db: &str, truncates: bool) -> Result<()> {
    let mut client = create_bare_database(cluster(), db)?;
    track_all(&mut client)?;
    let load = Load {
        clients: 6,
        transactions: 120,
        two_phase: true,
        ..Load::default()
    };
    let how = TrackedLoad {
        truncates,
        untracks: true,
        ..TrackedLoad::default()
    };
    let mut rounds = 0;
    tracked_under_watch(&cluster().config(db), &load, how, |control| {
        rounds = track_and_untrack(&mut cluster().connect_db(db)?, control)?;
        Ok(())
    })?;
    ensure!(rounds > 1, "the load was over before anything happened");
    agree_at_last(&mut client)
}

#[test]
fn tracks_come_and_go_beside_a_load() -> Result<()> {
    tracks_come_and_go("comes_and_goes", false)
}

#[test]
fn tracks_come_and_go_beside_truncates() -> Result<()> {
    tracks_come_and_go("comes_and_goes_truncates", true)
}

/// A load, in which the worst happens at a third and at two thirds.
fn worst(name: &str, worst: impl Fn(&mut Cluster) -> Result<()>) -> Result<()> {
    let mut cluster = builder(name).start()?;
    let mut client = create_bare_database(&cluster, DB)?;
    track_all(&mut client)?;
    drop(client);
    let config = cluster.config(DB);
    let load = Load {
        clients: 6,
        transactions: 120,
        two_phase: true,
        survives: true,
        ..Load::default()
    };
    let watched = tracked_under_watch(&config, &load, TrackedLoad::default(), |control| {
        control.at_each_third(|| worst(&mut cluster))
    })?;
    ensure!(watched.outcome.unknown > 0, "nobody noticed: {watched:?}");
    ensure!(watched.checks > 0, "nobody looked: {watched:?}");
    let mut connection = Recovering::new(&config);
    agree_at_last(connection.client()?)?;
    nothing_crashed_by_itself(&cluster.log())
}

#[test]
fn killed_backend_loses_and_doubles_nothing() -> Result<()> {
    worst("tracks-kill-backend", |cluster| {
        let mut connection = Recovering::new(&cluster.config(DB));
        kill_and_recover(&mut connection, committing)
    })
}

#[test]
fn killed_server_loses_and_doubles_nothing() -> Result<()> {
    worst("tracks-kill-server", |cluster| {
        cluster.kill_postmaster()?;
        cluster.start()
    })
}

/// Its own counters, of what it has copied at first and applied later.
#[test]
fn subscriber_counts_what_it_applies() -> Result<()> {
    // Another server: on one and the same, a copy waits for transactions that wait for it.
    let publisher = builder("tracks-publisher")
        .conf("wal_level", "logical")
        .start()?;
    let mut there = create_bare_database(&publisher, "published")?;
    let mut here = create_bare_database(cluster(), "subscribed")?;
    track_all(&mut there)?;
    here.batch_execute(TRACKED_TABLES)?;
    // Foreign keys are in the way of a TRUNCATE that arrives while one of the tables is being copied.
    here.batch_execute(
        "ALTER TABLE task DROP CONSTRAINT task_project_fkey, DROP CONSTRAINT task_owner_fkey;
         ALTER TABLE comment DROP CONSTRAINT comment_task_fkey;
         TRUNCATE project, owner, task, comment, item",
    )?;
    for (table, type_name, how) in TRACKS {
        track(&mut here, table, type_name, how)?;
    }
    there.batch_execute(
        "CREATE PUBLICATION tracked FOR TABLE project, owner, task, comment, item",
    )?;
    // What a publication needs to update and delete rows. From PostgreSQL 18 on, all of a row is none where a column
    // is generated and not published.
    let version: i32 = there
        .query_one("SELECT current_setting('server_version_num')::int", &[])?
        .get(0);
    if version < 180_000 {
        there.batch_execute("ALTER TABLE comment REPLICA IDENTITY FULL")?;
    } else {
        for client in [&mut there, &mut here] {
            client.batch_execute(
                "ALTER TABLE comment ADD COLUMN no bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY",
            )?;
        }
    }
    let load = Load {
        clients: 4,
        transactions: 100,
        two_phase: true,
        ..Load::default()
    };
    let how = TrackedLoad {
        truncates: true,
        ..TrackedLoad::default()
    };
    let subscriber = cluster().config("subscribed");
    tracked_under_watch(&publisher.config("published"), &load, how, |control| {
        here.batch_execute(&format!(
            "CREATE SUBSCRIPTION tracked CONNECTION 'host={} port={} user=postgres dbname=published'
             PUBLICATION tracked",
            publisher.socket_dir().display(),
            publisher.port()
        ))?;
        let mut looks = 0;
        let mut client = subscriber.connect(NoTls)?;
        // A quick load may be over before there is anything to look at.
        while looks < 4 || !control.is_done() {
            ensure!(!control.is_aborted(), "the load has failed");
            match rows_agree(&mut client) {
                Ok(_) => looks += 1,
                // The load empties tables there, too.
                Err(error) if is_no_look(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    })?;
    agree_at_last(&mut there)?;
    let counters = "SELECT array_agg(concat_ws(' ', name, value) ORDER BY name) FROM counters";
    let sent: Vec<String> = there.query_one(counters, &[])?.get(0);
    poll_until("the rows to arrive", DEADLINE, || {
        // A TRUNCATE that comes and a reader may have been each other's deadlock: the worker tries again.
        if let Err(error) = rows_agree(&mut here) {
            ensure!(is_no_look(&error), error);
            return Ok(false);
        }
        let counted: Option<Vec<String>> = here.query_one(counters, &[])?.get(0);
        Ok(counted.as_ref() == Some(&sent))
    })?;
    no_drift(&mut here, &all_tracks())?;
    here.batch_execute("DROP SUBSCRIPTION tracked")?;
    Ok(())
}

#[test]
fn standby_sees_the_same() -> Result<()> {
    let primary = builder("tracks-primary")
        .conf("wal_keep_size", "512MB")
        .start()?;
    let mut client = create_bare_database(&primary, DB)?;
    track_all(&mut client)?;
    let standby = Cluster::builder()
        .name("tracks-standby")
        .standby_of(&primary)
        .conf("hot_standby_feedback", "on")
        .conf("wal_receiver_status_interval", "1s")
        .start()?;
    let mut connection = Recovering::new(&standby.config(DB));
    let all = all_tracks();
    let load = Load {
        clients: 6,
        transactions: 150,
        two_phase: true,
        ..Load::default()
    };
    let mut looks = 0;
    tracked_under_watch(
        &primary.config(DB),
        &load,
        TrackedLoad::default(),
        |control| {
            while looks < 4 || !control.is_done() {
                ensure!(!control.is_aborted(), "the load has failed");
                undisturbed(&mut connection, |client| {
                    rows_agree(client)?;
                    no_drift(client, &all)
                })?;
                looks += 1;
            }
            Ok(())
        },
    )?;
    agree_at_last(&mut client)?;
    catch_up(&primary, connection.client()?)?;
    undisturbed(&mut connection, |client| {
        ensure!(rows_agree(client)? > 5, "groups are missing");
        no_drift(client, &all)
    })?;
    nothing_crashed(&standby.log())
}
