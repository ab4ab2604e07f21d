//! What is dumped, in whatever state, is what is restored, and the copy goes on from there.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, FOLD_HARD, Load, check, compact, create_database, footprint, settle, shared,
    under_watch,
};
use counterx_harness::{Cluster, poll_until, run};
use postgres::Client;

fn cluster() -> &'static Cluster {
    shared(|| {
        FOLD_HARD
            .iter()
            .fold(Cluster::builder().name("dump"), |builder, (name, value)| {
                builder.conf(name, value)
            })
            .start()
    })
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
    client.batch_execute(&format!(
        "ALTER DATABASE {db} SET counterx.compaction = off"
    ))?;
    poll_until("the worker to pause", DEADLINE, || {
        let state: String = client
            .query_one("SELECT state FROM counterx.workers", &[])?
            .get(0);
        Ok(state == "paused")
    })?;
    let mut client = cluster().connect_db(db)?;
    work(db)?;
    client.batch_execute(&format!(
        "BEGIN; SELECT bump('late', 3); SELECT bump('counter:0', 5); PREPARE TRANSACTION '{db}'"
    ))?;
    client.batch_execute(&format!("COMMIT PREPARED '{db}'"))?;
    Ok(client)
}

/// The copy is equal, counts and folds on, and can be dumped and restored in turn.
fn copy_is_sound(original: &str, dumped: &Dump, copy: &str) -> Result<()> {
    let mut client = restore(dumped, copy)?;
    check(&mut client)?;
    let before = footprint(&mut client)?;
    ensure!(
        before.pending > 0,
        "{original}: the dump has no backlog: {before:?}"
    );
    work(copy)?;
    client.batch_execute("SELECT bump('last', 1)")?;
    settle(&mut client)?;
    check(&mut client)?;
    let after = footprint(&mut client)?;
    ensure!(
        after.folded > before.folded,
        "nothing was folded: {before:?} {after:?}"
    );

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
    copy_is_sound(db, &dumped, &copy)?;
    ensure!(values(&mut client)? == expected, "the original has changed");

    // The original folds its backlog when it may, and is not confused by any of this.
    client.batch_execute(&format!("ALTER DATABASE {db} RESET counterx.compaction"))?;
    let mut client = cluster().connect_db(db)?;
    client.batch_execute("SELECT bump('last', 1)")?;
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
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
        client.batch_execute("SELECT bump('last', 1)")?;
        settle(&mut client)?;
        check(&mut client)?;
    }
    check(&mut client)?;
    Ok(())
}

#[test]
fn restored_database_is_not_folded_before_somebody_counts() -> Result<()> {
    let mut client = backlog("untouched")?;
    let pending = footprint(&mut client)?.pending;
    let mut copy = restore(&dump("untouched", Format::Custom)?, "untouched_copy")?;
    // Only a commit that flushed deltas starts a worker; rows that are merely there do not.
    let row = copy.query_one(
        "SELECT count(*) FROM pg_stat_activity
          WHERE datname = 'untouched_copy' AND backend_type = 'counterx worker'",
        &[],
    )?;
    ensure!(row.get::<_, i64>(0) == 0, "a worker runs");
    ensure!(footprint(&mut copy)?.pending == pending);
    check(&mut copy)?;
    ensure!(compact(&mut copy)? > 0);
    settle(&mut copy)?;
    check(&mut copy)?;
    Ok(())
}
