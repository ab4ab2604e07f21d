//! Settings take effect without a restart, and trouble of a worker is seen.

use anyhow::{Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, Load, check, compact, create_database, footprint, names_in_lanes, refused, settle,
    shared, under_watch, wait_for_no_worker, wait_for_worker,
};
use counterx_harness::{Cluster, poll_until};
use postgres::Client;
use postgres::error::SqlState;

fn start(name: &str) -> Result<Cluster> {
    Cluster::builder()
        .name(name)
        .conf("counterx.compaction_interval", "20ms")
        .conf("counterx.log_max_size", "64kB")
        .start()
}

fn cluster() -> &'static Cluster {
    shared(|| start("settings"))
}

fn pending(client: &mut Client) -> Result<i64> {
    Ok(footprint(client)?.pending)
}

fn total(client: &mut Client, name: &str) -> Result<Option<i64>> {
    let sql = "SELECT value::bigint FROM counterx.total WHERE name = $1 ORDER BY gen DESC LIMIT 1";
    Ok(client.query_opt(sql, &[&name])?.map(|row| row.get(0)))
}

#[test]
fn interval_and_threshold_change_with_a_reload() -> Result<()> {
    let mut cluster = start("reload")?;
    let mut client = create_database(&cluster, "reload")?;
    client.batch_execute("SELECT bump('x', 1)")?;
    settle(&mut client)?;
    let worker = wait_for_worker(&mut client, "reload")?;

    // An hour's interval: what is counted now stays in the logs until there is enough of it.
    cluster.reload(&[
        ("counterx.compaction_interval", "1h"),
        ("counterx.compaction_threshold", "500"),
        ("counterx.worker_idle_timeout", "1h"),
    ])?;
    poll_until("the session to see the reload", DEADLINE, || {
        let shown: String = client
            .query_one("SHOW counterx.compaction_interval", &[])?
            .get(0);
        Ok(shown == "1h")
    })?;
    // The worker may be in its last short sleep still; once it has passed, a delta stays.
    poll_until("a delta that stays", DEADLINE, || {
        client.batch_execute("SELECT bump('x', 1)")?;
        let mut stays = 0;
        poll_until("a verdict", DEADLINE, || {
            stays += 1;
            Ok(pending(&mut client)? == 0 || stays >= 25)
        })?;
        Ok(pending(&mut client)? > 0)
    })?;
    let before = footprint(&mut client)?;
    client.batch_execute(
        "DO $$ BEGIN FOR n IN 1 .. 1500 LOOP PERFORM bump('x', 1); COMMIT; END LOOP; END $$",
    )?;
    poll_until("an early fold", DEADLINE, || {
        let now = footprint(&mut client)?;
        Ok(now.folded > before.folded && now.pending < 1000)
    })?;
    check(&mut client)?;

    // The other way: nothing to wait for by count, but by time.
    client.batch_execute("SELECT bump('x', 1)")?;
    cluster.reload(&[
        ("counterx.compaction_interval", "20ms"),
        ("counterx.compaction_threshold", "1000000"),
    ])?;
    settle(&mut client)?;
    check(&mut client)?;
    ensure!(
        wait_for_worker(&mut client, "reload")? == worker,
        "another worker did it"
    );

    cluster.reload(&[("counterx.worker_idle_timeout", "1s")])?;
    wait_for_no_worker(&mut client, "reload")
}

#[test]
fn folding_pauses_in_one_database_alone_and_resumes() -> Result<()> {
    let mut paused = create_database(cluster(), "paused")?;
    let mut other = create_database(cluster(), "other")?;
    paused.batch_execute("SELECT bump('x', 1)")?;
    wait_for_worker(&mut paused, "paused")?;
    settle(&mut paused)?;
    paused.batch_execute("ALTER DATABASE paused SET counterx.compaction = off")?;
    // Sessions that are there still, old ones with the old setting, new ones with the new.
    let mut fresh = cluster().connect_db("paused")?;
    let load = Load {
        clients: 4,
        transactions: 60,
        ..Load::default()
    };
    // The worker takes note within a moment.
    poll_until("the pause", DEADLINE, || {
        paused.batch_execute("SELECT bump('x', 1)")?;
        let mut stays = 0;
        poll_until("a verdict", DEADLINE, || {
            stays += 1;
            Ok(pending(&mut paused)? == 0 || stays >= 25)
        })?;
        Ok(pending(&mut paused)? > 0)
    })?;
    let before = footprint(&mut paused)?;
    let watched = under_watch(&cluster().config("paused"), &load, |_| Ok(()))?;
    ensure!(watched.checks > 0);
    fresh.batch_execute("SELECT bump('x', 1)")?;
    // Meanwhile the other database folds, so workers are not stopped in general.
    other.batch_execute("SELECT bump('x', 1)")?;
    settle(&mut other)?;
    let after = footprint(&mut paused)?;
    ensure!(
        after.folded == before.folded,
        "folded in a pause: {before:?} {after:?}"
    );
    ensure!(after.pending > before.pending + 50, "{before:?} {after:?}");
    check(&mut paused)?;

    // By hand it folds in any case.
    fresh.batch_execute("SELECT bump('y', 1)")?;
    ensure!(compact(&mut fresh)? > 0);
    check(&mut fresh)?;

    paused.batch_execute("ALTER DATABASE paused RESET counterx.compaction")?;
    paused.batch_execute("SELECT bump('x', 1)")?;
    settle(&mut paused)?;
    check(&mut paused)?;
    Ok(())
}

#[test]
fn values_out_of_range_and_unknown_settings_are_refused() -> Result<()> {
    let mut client = create_database(cluster(), "ranges")?;
    client.batch_execute("SELECT counter_value('load the library')")?;
    for (name, value) in [
        ("counterx.compaction_interval", "'-1'"),
        ("counterx.compaction_threshold", "0"),
        ("counterx.log_max_size", "'1kB'"),
        ("counterx.worker_idle_timeout", "'-1s'"),
        ("counterx.compaction", "'perhaps'"),
        ("counterx.pending_work_mem", "'1kB'"),
    ] {
        let result = client.batch_execute(&format!("ALTER SYSTEM SET {name} = {value}"));
        refused(result, &SqlState::INVALID_PARAMETER_VALUE)?;
    }
    let unknown = client.batch_execute("SET counterx.no_such_setting = 1");
    refused(unknown, &SqlState::INVALID_NAME)?;
    // Of another code before PostgreSQL 16.5.
    let unknown = client.batch_execute("ALTER SYSTEM SET counterx.no_such_setting = 1");
    let code = unknown.as_ref().err().and_then(postgres::Error::code);
    ensure!(
        code == Some(&SqlState::INVALID_NAME) || code == Some(&SqlState::UNDEFINED_OBJECT),
        "{unknown:?}"
    );
    // The switch is the administrator's.
    client.batch_execute("CREATE ROLE plain; SET ROLE plain")?;
    let result = client.batch_execute("SET counterx.compaction = off");
    refused(result, &SqlState::INSUFFICIENT_PRIVILEGE)?;
    client.batch_execute("SET counterx.pending_work_mem = '1MB'")?;
    Ok(())
}

#[test]
fn failing_lane_is_seen_does_not_stop_the_others_and_recovers() -> Result<()> {
    let mut client = create_database(cluster(), "failing")?;
    let names = names_in_lanes(&mut client)?;
    let bad = &names[5];
    for (lane, name) in names.iter().enumerate() {
        client.execute("SELECT bump($1, $2)", &[name, &(1000 * (lane as i64 + 1))])?;
    }
    settle(&mut client)?;
    // Nobody should put such an index there. It makes the fold of one lane raise an error: the
    // one whose counter would get the total that another counter has.
    client.batch_execute("CREATE UNIQUE INDEX trap ON counterx.total (value)")?;
    let since = cluster().log_len();
    client.execute("SELECT bump($1, -1000)", &[bad])?;
    poll_until("the error to be seen", DEADLINE, || {
        let sql = "SELECT coalesce(last_error LIKE '%duplicate key%trap%'
                                   AND last_error_at > now() - interval '10 minutes', false)
                     FROM counterx.workers";
        Ok(client.query_one(sql, &[])?.get(0))
    })?;
    poll_until("the log to tell of it", DEADLINE, || {
        let log = cluster().log_since(since);
        Ok(log
            .lines()
            .any(|line| line.contains("lane 5") && line.contains("duplicate key")))
    })?;
    check(&mut client)?;
    ensure!(total(&mut client, bad)? == Some(6000));
    // Others go on, again and again, while it fails.
    for round in 1..5_i64 {
        client.execute("SELECT bump($1, 1)", &[&names[1]])?;
        poll_until("another lane's fold", DEADLINE, || {
            Ok(total(&mut client, &names[1])? == Some(2000 + round))
        })?;
        check(&mut client)?;
    }
    client.batch_execute("DROP INDEX counterx.trap")?;
    client.execute("SELECT bump($1, 1)", &[bad])?;
    settle(&mut client)?;
    ensure!(total(&mut client, bad)? == Some(5001));
    check(&mut client)?;
    Ok(())
}

#[test]
fn worker_and_lane_views_tell_what_was_done() -> Result<()> {
    let mut client = create_database(cluster(), "views")?;
    client.batch_execute("SELECT bump('n' || n, 1) FROM generate_series(1, 100) n")?;
    let pid = wait_for_worker(&mut client, "views")?;
    settle(&mut client)?;
    poll_until("the view to tell of the folds", DEADLINE, || {
        let row = client.query_one(
            "SELECT pid, folds, deltas_folded::bigint, last_fold_duration IS NOT NULL, last_error
               FROM counterx.workers",
            &[],
        )?;
        ensure!(
            row.get::<_, Option<String>>(4).is_none(),
            "an error: {row:?}"
        );
        let shown: Option<i32> = row.get(0);
        Ok(shown == Some(pid)
            && row.get::<_, i64>(1) > 0
            && row.get::<_, i64>(2) == 100
            && row.get::<_, bool>(3))
    })?;
    let row = client.query_one(
        "SELECT count(*), sum(pending_deltas)::bigint, min(epoch) > 0, bool_and(folded_epoch < epoch),
                bool_or(seconds_since_fold >= 0), bool_or(log_bytes > 0)
           FROM counterx.lanes",
        &[],
    )?;
    ensure!(
        row.get::<_, i64>(0) == 8 && row.get::<_, i64>(1) == 0,
        "{row:?}"
    );
    ensure!((2..6).all(|column| row.get::<_, bool>(column)), "{row:?}");
    Ok(())
}

/// A setting's text has the encoding of the database that it was made in.
#[test]
fn a_setting_in_another_encoding_does_not_stop_the_worker() -> Result<()> {
    cluster().connect()?.batch_execute(
        "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
    )?;
    let mut client = cluster().connect_db("latin")?;
    client.batch_execute(
        "CREATE EXTENSION counterx;
         ALTER DATABASE latin SET search_path = '\u{e9}t\u{e9}', public",
    )?;
    client.batch_execute("SELECT counter_incr('\u{e9}')")?;
    settle(&mut client)?;
    ensure!(total(&mut client, "\u{e9}")? == Some(1));
    let log = cluster().log();
    ensure!(!log.contains("cannot read the settings"), "{log}");
    ensure!(!log.contains("valid UTF-8"), "{log}");
    Ok(())
}
