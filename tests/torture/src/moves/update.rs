//! ALTER EXTENSION UPDATE.
//!
//! An older version is made up: the same objects under another number, and a script that leads from there
//! to here. That shows what sessions and the worker do while library and objects differ, and that an update
//! script is run in mid-load and all goes on. That objects of older forms are brought to the form of today
//! is for `tests/cluster/tests/upgrade.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, check, compact, create_database, folding_hard, is_lost, mixed_under_watch,
    prepare_mixed, settle, sqlstate, wait_for_no_worker, wait_for_worker,
};
use counterx_harness::{Cluster, poll_until, run as run_command, run_dir};
use postgres::error::SqlState;
use postgres::{Client, NoTls};

use super::{goes_on, traffic};
use crate::options::Options;
use crate::report::PartReport;

/// The version that never was.
const OLDER: &str = "0.0.9";

pub(super) fn run(options: &Options, report: &mut PartReport) {
    report.step("ALTER EXTENSION UPDATE with data and load", |report| {
        let copy = copy_of_postgres()?;
        let result = update(options, report, &copy);
        let _ = fs::remove_dir_all(&copy.directory);
        result
    });
}

/// A PostgreSQL of our own, into which scripts of other versions can be put.
struct Postgres {
    directory: PathBuf,
    bin_dir: PathBuf,
    extension_dir: PathBuf,
}

fn copy_of_postgres() -> Result<Postgres> {
    let bin_dir = counterx_harness::pg_bin_dir()?;
    let config = |bin_dir: &Path, what: &str| -> Result<PathBuf> {
        let output = run_command(std::process::Command::new(bin_dir.join("pg_config")).arg(what))?;
        Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
    };
    // Both below one root, from which programs find the rest wherever it lies.
    let share = config(&bin_dir, "--sharedir")?;
    let root = share
        .ancestors()
        .find(|root| bin_dir.starts_with(root))
        .context("programs and shared files have no common root")?
        .to_owned();
    ensure!(
        root.starts_with(run_dir()?),
        "{} is no private copy of PostgreSQL",
        root.display()
    );
    let directory = run_dir()?.join(format!("updated-{}", std::process::id()));
    run_command(
        std::process::Command::new("cp")
            .arg("-a")
            .arg(&root)
            .arg(&directory),
    )?;
    let bin_dir = directory.join(bin_dir.strip_prefix(&root)?);
    let extension_dir = directory.join(share.strip_prefix(&root)?).join("extension");
    Ok(Postgres {
        directory,
        bin_dir,
        extension_dir,
    })
}

/// Takes the version that is there for granted, and adds the one before it with a way from there.
fn make_up_older(postgres: &Postgres, version: &str) -> Result<()> {
    let script = |name: String| postgres.extension_dir.join(format!("counterx--{name}.sql"));
    fs::copy(script(version.to_owned()), script(OLDER.to_owned()))
        .context("could not copy the script of this version")?;
    // The first update that there will be may add a function and grant it, or fill something.
    fs::write(
        script(format!("{OLDER}--{version}")),
        "CREATE FUNCTION counterx.made_up() RETURNS bigint LANGUAGE sql
             AS 'SELECT pg_catalog.count(*) FROM counterx.total';
         ALTER TABLE counterx.total SET (fillfactor = 75);
         CREATE INDEX made_up ON counterx.total (gen);\n",
    )
    .context("could not write the update script")
}

fn update(options: &Options, report: &mut PartReport, postgres: &Postgres) -> Result<()> {
    let cluster = folding_hard("updated").bin_dir(&postgres.bin_dir).start()?;
    let mut client = create_database(&cluster, "updated")?;
    let version: String = client
        .query_one(
            "SELECT extversion FROM pg_extension WHERE extname = 'counterx'",
            &[],
        )?
        .get(0);
    make_up_older(postgres, &version)?;
    from_scratch(&cluster)?;

    prepare_mixed(&mut client)?;
    client.batch_execute(
        "SELECT counter_incr_once('kept', 'once', 7); INSERT INTO oracle VALUES ('once', 7)",
    )?;
    for round in 0..options.size(1, 4_u64) {
        let mut mixed = traffic(options, "updated");
        mixed.seed = mixed.seed.wrapping_add(100 * round);
        mixed_under_watch(&cluster.config("updated"), mixed, |_| Ok(()))?;
        client.batch_execute("SELECT bump('n' || n, n) FROM generate_series(1, 100) n")?;
        differ(options, report, &cluster, &version)?;
        goes_on(options, &cluster, "updated")?;
        report.tried("updates of the extension with data and load", 1);
    }
    Ok(())
}

/// The way of who has the older version, as far as there is one.
fn from_scratch(cluster: &Cluster) -> Result<()> {
    cluster
        .connect()?
        .batch_execute("CREATE DATABASE scratch")?;
    let mut client = cluster.connect_db("scratch")?;
    client.batch_execute(&format!("CREATE EXTENSION counterx VERSION '{OLDER}'"))?;
    let error = refuses(&mut client, "SELECT counter_incr('x')")?;
    ensure!(error.contains("ALTER EXTENSION counterx UPDATE"), "{error}");
    client.batch_execute("ALTER EXTENSION counterx UPDATE; SELECT counter_incr('x', 2)")?;
    compact(&mut client)?;
    let value: i64 = client.query_one("SELECT counter_value('x')", &[])?.get(0);
    ensure!(value == 2, "x is {value}");
    Ok(())
}

fn refuses(client: &mut Client, sql: &str) -> Result<String> {
    match client.batch_execute(sql) {
        Ok(()) => anyhow::bail!("{sql} went well between the versions"),
        Err(error) => {
            let db = error.as_db_error().context("the session is gone")?;
            ensure!(
                *db.code() == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                "{sql}: {error:?}"
            );
            Ok(format!(
                "{} {}",
                db.message(),
                db.hint().unwrap_or_default()
            ))
        }
    }
}

/// The objects become those of the older version, and are updated, with sessions at work.
fn differ(
    options: &Options,
    report: &mut PartReport,
    cluster: &Cluster,
    version: &str,
) -> Result<()> {
    let mut client = cluster.connect_db("updated")?;
    wait_for_worker(&mut client, "updated")?;
    let since = cluster.log_len();
    // What an earlier round's update has made.
    let sql = "SELECT to_regproc('counterx.made_up') IS NOT NULL";
    let undo = if client.query_one(sql, &[])?.get(0) {
        "ALTER EXTENSION counterx DROP FUNCTION counterx.made_up(); DROP FUNCTION counterx.made_up();
         DROP INDEX counterx.made_up;"
    } else {
        ""
    };
    // So far as the catalog knows. The relation's entry is touched, too, as by any script of an update:
    // that is what makes sessions look again.
    client.batch_execute(&format!(
        "BEGIN; {undo}
         UPDATE pg_extension SET extversion = '{OLDER}' WHERE extname = 'counterx';
         COMMENT ON TABLE counterx.total IS 'touched'; ALTER TABLE counterx.total SET (fillfactor = 80);
         COMMIT"
    ))?;
    for sql in [
        "SELECT counter_value('once')",
        "SELECT counter_incr('once')",
        "SELECT * FROM counters",
        "SELECT counter_try_incr('stock:a', -1)",
        "SELECT counter_set('once', 1)",
        "SELECT counterx.compact()",
        "SELECT counter_incr_once('new', 'once')",
    ] {
        let error = refuses(&mut client, sql)?;
        ensure!(
            error.contains(OLDER) && error.contains("ALTER EXTENSION counterx UPDATE"),
            "{sql}: {error}"
        );
        report.tried("calls refused with a hint while the versions differed", 1);
    }
    wait_for_no_worker(&mut client, "updated").context("of another version")?;
    let log = cluster.log_since(since);
    ensure!(
        log.contains("the worker ends") && !log.contains("PANIC"),
        "{log}"
    );

    // Sessions that try all the time: refused before, and never again afterwards.
    let config = cluster.config("updated");
    let updated = AtomicBool::new(false);
    let refusals = AtomicU64::new(0);
    let sessions = options.size(2, 6);
    std::thread::scope(|scope| {
        let tries: Vec<_> = (0..sessions)
            .map(|number| {
                let (config, updated, refusals) = (&config, &updated, &refusals);
                scope.spawn(move || -> Result<(u64, u64)> {
                    let mut session = config.connect(NoTls)?;
                    let (mut refused, mut done) = (0, 0);
                    while done < 20 {
                        let over = updated.load(Ordering::Relaxed);
                        match session.execute("SELECT bump($1, 1)", &[&format!("try:{number}")]) {
                            Ok(_) => done += 1,
                            Err(error) => {
                                let error = anyhow::Error::from(error);
                                ensure!(
                                    !is_lost(&error)
                                        && !over
                                        && sqlstate(&error)
                                            == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE),
                                    "{error:?}"
                                );
                                refused += 1;
                                refusals.fetch_add(1, Ordering::Relaxed);
                                std::thread::sleep(std::time::Duration::from_millis(5));
                            }
                        }
                    }
                    Ok((refused, done))
                })
            })
            .collect();
        let waited = poll_until("the sessions to be refused", DEADLINE, || {
            ensure!(
                !tries.iter().any(std::thread::ScopedJoinHandle::is_finished),
                "a session has ended before the update"
            );
            Ok(refusals.load(Ordering::Relaxed) >= 3 * sessions)
        });
        let result = poll_until("ALTER EXTENSION UPDATE", DEADLINE, || {
            match client.batch_execute("ALTER EXTENSION counterx UPDATE") {
                Ok(()) => Ok(true),
                // It takes locks that others hold for a moment, in an order of its own.
                Err(error) if error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED) => Ok(false),
                Err(error) => Err(error.into()),
            }
        });
        updated.store(true, Ordering::Relaxed);
        let mut ended = Ok(());
        for session in tries {
            match session
                .join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")))
            {
                Ok((refused, done)) => {
                    report.tried("increments refused until the update", refused);
                    report.tried("increments after the update, by the same sessions", done);
                }
                Err(error) => ended = Err(error),
            }
        }
        waited.and(result).and(ended)
    })?;
    let now: String = client
        .query_one(
            "SELECT extversion FROM pg_extension WHERE extname = 'counterx'",
            &[],
        )?
        .get(0);
    ensure!(now == version, "the version is {now}");
    client.query_one("SELECT counterx.made_up()", &[])?;
    check(&mut client)?;
    client.batch_execute("SELECT bump('once', 1)")?;
    settle(&mut client).context("the worker comes back")?;
    check(&mut client)?;
    Ok(())
}
