//! What is dumped, in whatever state, is what is restored, and the copy goes on from there.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    Load, agree, changes_schema, changes_under_watch, check, compact, count_and_settle,
    create_database, folding_hard, folds_on, footprint, pause_folding, settle, shared,
    totals_are_clean, under_watch,
};
use counterx_harness::{Cluster, run};
use postgres::Client;

fn cluster() -> &'static Cluster {
    shared(|| folding_hard("dump").start())
}

#[derive(Clone, Copy, Debug)]
enum Format {
    /// SQL for psql: every table in a transaction of its own.
    Plain,
    /// An archive that pg_restore loads table by table, two at a time.
    Custom,
}

/// A dump, taken but not yet restored.
struct Dump {
    format: Format,
    file: String,
}

fn dump(db: &str, format: Format) -> Result<Dump> {
    dump_to(db, format, db)
}

fn dump_to(db: &str, format: Format, name: &str) -> Result<Dump> {
    let file = cluster().directory().join(format!("{name}.{format:?}"));
    let file = file.to_str().context("odd path")?.to_owned();
    let flag = match format {
        Format::Plain => "--format=plain",
        Format::Custom => "--format=custom",
    };
    run(cluster()
        .tool("pg_dump")
        .args([flag, "--file", &file, db])
        .stdin(Stdio::null()))?;
    Ok(Dump { format, file })
}

fn restore(dump: &Dump, db: &str) -> Result<Client> {
    cluster()
        .connect()?
        .batch_execute(&format!("CREATE DATABASE {db}"))?;
    match dump.format {
        Format::Plain => run(cluster().tool("psql").args([
            "-Xq",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            db,
            "-f",
            &dump.file,
        ]))?,
        Format::Custom => run(cluster().tool("pg_restore").args([
            "--exit-on-error",
            "--jobs=2",
            "-d",
            db,
            &dump.file,
        ]))?,
    };
    cluster().connect_db(db)
}

fn values(client: &mut Client) -> Result<String> {
    let sql = "SELECT string_agg(name || '=' || value, ' ' ORDER BY name) FROM counters";
    Ok(client.query_one(sql, &[])?.get(0))
}

/// A short load: enough for folds, and for a rotation of the busiest lane.
fn work(db: &str) -> Result<()> {
    let load = Load {
        transactions: 60,
        two_phase: true,
        ..Load::default()
    };
    under_watch(&cluster().config(db), &load, |_| Ok(()))?;
    Ok(())
}

/// Puts a database into mid-backlog: totals, deltas in both logs of some lane, late deltas, and
/// nobody who folds them.
fn backlog(db: &str) -> Result<Client> {
    let mut client = create_database(cluster(), db)?;
    work(db)?;
    pause_folding(&mut client, db)?;
    let mut client = cluster().connect_db(db)?;
    work(db)?;
    client.batch_execute(&format!(
        "BEGIN; SELECT bump('late', 3); SELECT bump('counter:0', 5); PREPARE TRANSACTION '{db}'"
    ))?;
    client.batch_execute(&format!("COMMIT PREPARED '{db}'"))?;
    Ok(client)
}

/// The copy is equal, counts and folds on, and can be dumped and restored in turn.
fn copy_is_sound(dumped: &Dump, copy: &str) -> Result<()> {
    let mut client = restore(dumped, copy)?;
    check(&mut client)?;
    let before = footprint(&mut client)?;
    work(copy)?;
    folds_on(&mut client, &before)?;

    let again = dump(copy, dumped.format)?;
    let expected = values(&mut client)?;
    let mut client = restore(&again, &format!("{copy}_again"))?;
    check(&mut client)?;
    ensure!(values(&mut client)? == expected, "the copy's copy differs");
    client.batch_execute("SELECT bump('last', 1)")?;
    compact(&mut client)?;
    check(&mut client)?;
    Ok(())
}

fn backlog_survives(format: Format, db: &str) -> Result<()> {
    let mut client = backlog(db)?;
    let before = footprint(&mut client)?;
    let rows = client.query_one(
        "SELECT count(*), (SELECT count(*) FROM counterx.late) FROM counterx.total",
        &[],
    )?;
    ensure!(rows.get::<_, i64>(0) > 0, "the backlog has no totals");
    ensure!(rows.get::<_, i64>(1) > 0, "the backlog has no late deltas");
    ensure!(before.pending > 100, "no backlog: {before:?}");
    let dumped = dump(db, format)?;
    let expected = values(&mut client)?;
    let copy = format!("{db}_copy");
    // The switch belongs to the database, not to what is in it: the copy folds.
    copy_is_sound(&dumped, &copy)?;
    ensure!(values(&mut client)? == expected, "the original has changed");

    // The original folds its backlog when it may, and is not confused by any of this.
    client.batch_execute(&format!("ALTER DATABASE {db} RESET counterx.compaction"))?;
    let mut client = cluster().connect_db(db)?;
    count_and_settle(&mut client)
}

#[test]
fn backlog_survives_a_plain_dump() -> Result<()> {
    backlog_survives(Format::Plain, "plain")
}

#[test]
fn backlog_survives_a_custom_dump() -> Result<()> {
    backlog_survives(Format::Custom, "custom")
}

#[test]
fn dump_in_mid_load_is_one_snapshot() -> Result<()> {
    let mut client = create_database(cluster(), "busy")?;
    let load = Load {
        transactions: 250,
        two_phase: true,
        ..Load::default()
    };
    let mut dumps = Vec::new();
    under_watch(&cluster().config("busy"), &load, |control| {
        for (share, format) in [
            (0.2, Format::Custom),
            (0.5, Format::Plain),
            (0.8, Format::Custom),
        ] {
            control.wait_for_share(share)?;
            let number = dumps.len();
            dumps.push(dump_to("busy", format, &format!("busy{number}"))?);
        }
        Ok(())
    })?;
    for (number, dumped) in dumps.iter().enumerate() {
        let copy = format!("busy_copy{number}");
        let mut client = restore(dumped, &copy)?;
        check(&mut client)?;
        work(&copy)?;
        count_and_settle(&mut client)?;
    }
    check(&mut client)?;
    Ok(())
}

#[test]
fn restored_database_is_folded_before_somebody_counts() -> Result<()> {
    backlog("untouched")?;
    let mut copy = restore(&dump("untouched", Format::Custom)?, "untouched_copy")?;
    check(&mut copy)?;
    settle(&mut copy)?;
    ensure!(footprint(&mut copy)?.folded > 0, "nothing was folded");
    check(&mut copy)?;
    Ok(())
}

/// A database that has dropped, renamed and reset counters, some of it folded and some not, tokens,
/// and a value index.
fn changed(db: &str) -> Result<Client> {
    let mut client = create_database(cluster(), db)?;
    client.batch_execute(changes_schema())?;
    let load = Load {
        transactions: 25,
        names: 3,
        two_phase: true,
        checkers: 0,
        ..Load::default()
    };
    changes_under_watch(&cluster().config(db), &load, |_| Ok(()))?;
    client.batch_execute(
        "SELECT counter_incr('gone:' || n, n) FROM generate_series(1, 20) n;
         SELECT bump('n:last', 1)",
    )?;
    settle(&mut client)?;
    client.batch_execute("SELECT counterx.create_value_index()")?;
    pause_folding(&mut client, db)?;
    let mut client = cluster().connect_db(db)?;
    client.batch_execute(&format!(
        "SELECT counter_drop('gone:' || n) FROM generate_series(1, 19) n;
         BEGIN; SELECT counter_drop('gone:20'); PREPARE TRANSACTION '{db}'"
    ))?;
    client.batch_execute(&format!("COMMIT PREPARED '{db}'"))?;
    client.batch_execute(
        "SELECT counter_incr_once('a token', 'd:tokens', 5), counter_incr_once_get('got', 'd:tokens', 6);
         INSERT INTO oracle VALUES ('d:tokens', 11)",
    )?;
    Ok(client)
}

/// The copy has all of it, and goes on.
fn copy_of_changed_is_sound(
    original: &mut Client,
    copy: &mut Client,
    value_index: bool,
) -> Result<()> {
    let expected = agree(original)?;
    ensure!(!expected.keys().any(|name| name.starts_with("gone:")));
    for fold in [false, true] {
        if fold {
            copy.batch_execute("SELECT bump('n:last', 0)")?;
            compact(copy)?;
            totals_are_clean(copy)?;
        }
        let counters = agree(copy)?;
        ensure!(
            counters == expected,
            "the copy has {counters:?}, not {expected:?}"
        );
    }
    let replay = copy.query_one(
        "SELECT counter_incr_once('a token', 'd:tokens', 5), counter_incr_once_get('got', 'd:tokens', 6)",
        &[],
    )?;
    ensure!(!replay.get::<_, bool>(0), "a token was not restored");
    let value: i64 = replay.get(1);
    ensure!(value == 11, "the token's value is {value}");
    ensure!(agree(copy)? == expected);
    let sql = "SELECT count(*) FROM pg_indexes WHERE schemaname = 'counterx' AND indexdef LIKE '%(value DESC, name)'";
    let indexes: i64 = copy.query_one(sql, &[])?.get(0);
    ensure!(indexes == i64::from(value_index), "{indexes} value indexes");
    let created: bool = copy
        .query_one("SELECT counterx.create_value_index()", &[])?
        .get(0);
    ensure!(created != value_index);
    ensure!(agree(copy)? == expected);
    copy.batch_execute("SELECT bump('d:1', 3), counter_drop('gone:1')")?;
    compact(copy)?;
    agree(copy)?;
    totals_are_clean(copy)
}

#[test]
fn what_was_dropped_stays_dropped_and_tokens_stay_used_in_a_plain_dump() -> Result<()> {
    let mut client = changed("changed")?;
    let mut copy = restore(&dump("changed", Format::Plain)?, "changed_copy")?;
    copy_of_changed_is_sound(&mut client, &mut copy, false)
}

#[test]
fn what_was_dropped_stays_dropped_and_tokens_stay_used_in_a_custom_dump() -> Result<()> {
    let mut client = changed("changedtoo")?;
    let mut copy = restore(&dump("changedtoo", Format::Custom)?, "changedtoo_copy")?;
    copy_of_changed_is_sound(&mut client, &mut copy, false)
}

#[test]
fn what_was_dropped_stays_dropped_and_tokens_stay_used_in_a_copy_of_the_database() -> Result<()> {
    drop(changed("model")?);
    // The worker leaves when it sees that somebody wants the database for himself.
    cluster()
        .connect()?
        .batch_execute("CREATE DATABASE model_copy TEMPLATE model")?;
    let mut client = cluster().connect_db("model")?;
    let mut copy = cluster().connect_db("model_copy")?;
    copy_of_changed_is_sound(&mut client, &mut copy, true)
}
