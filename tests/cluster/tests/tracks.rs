//! Counters of tracked tables equal their rows, in every snapshot, whatever happens to the rows.

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    Control, DEADLINE, Load, Recovering, TRACKED_TABLES, TRACKS, TrackedLoad, catch_up, committing,
    create_bare_database, folding_hard, footprint, is_in_the_way, kill_and_recover, no_drift,
    nothing_crashed, nothing_crashed_by_itself, patiently, rows_agree, settle, shared, track,
    track_all, tracked_under_watch, undisturbed,
};
use counterx_harness::{Cluster, ClusterBuilder, poll_until};
use postgres::error::SqlState;
use postgres::{Client, NoTls};

const DB: &str = "tracked";

fn cluster() -> &'static Cluster {
    shared(|| builder("tracks").conf("wal_level", "logical").start())
}

/// Transactions at random come into each other's way a lot.
fn builder(name: &str) -> ClusterBuilder {
    folding_hard(name).conf("deadlock_timeout", "50ms")
}

fn is_one_in_the_way(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref().is_some_and(is_in_the_way))
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
    let watched = tracked_under_watch(
        &cluster().config("mixed"),
        &load,
        TrackedLoad::default(),
        |_| Ok(()),
    )?;
    let outcome = watched.outcome;
    ensure!(outcome.done > outcome.refused, "{watched:?}");
    ensure!(
        watched.checks >= 20,
        "too few looks to mean anything: {watched:?}"
    );
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
    let watched = tracked_under_watch(&cluster().config("truncates"), &load, how, |_| Ok(()))?;
    ensure!(
        watched.checks >= 10,
        "too few looks to mean anything: {watched:?}"
    );
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
    let expected = format!("It was in use by prepared transaction 'the one', process {pid}.");
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

/// As an administrator does it, who is in nobody's way.
fn track_and_untrack(client: &mut Client, control: &Control) -> Result<u64> {
    let (table, type_name, how) = TRACKS[4];
    let mut rounds = 0;
    while !control.is_done() {
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
        while !control.is_done() {
            match rows_agree(&mut client) {
                Ok(_) => looks += 1,
                // The load empties tables there, too.
                Err(error) if is_one_in_the_way(&error) => {}
                Err(error) => return Err(error),
            }
        }
        ensure!(looks > 3, "nobody looked at the subscriber");
        Ok(())
    })?;
    agree_at_last(&mut there)?;
    let counters = "SELECT array_agg(concat_ws(' ', name, value) ORDER BY name) FROM counters";
    let sent: Vec<String> = there.query_one(counters, &[])?.get(0);
    poll_until("the rows to arrive", DEADLINE, || {
        // A TRUNCATE that comes and a reader may have been each other's deadlock: the worker tries again.
        if let Err(error) = rows_agree(&mut here) {
            ensure!(is_one_in_the_way(&error), error);
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
            while !control.is_done() {
                undisturbed(&mut connection, |client| {
                    rows_agree(client)?;
                    no_drift(client, &all)
                })?;
                looks += 1;
            }
            Ok(())
        },
    )?;
    ensure!(looks > 3, "{looks} looks are too few to mean anything");
    agree_at_last(&mut client)?;
    catch_up(&primary, connection.client()?)?;
    undisturbed(&mut connection, |client| {
        ensure!(rows_agree(client)? > 5, "groups are missing");
        no_drift(client, &all)
    })?;
    nothing_crashed(&standby.log())
}
