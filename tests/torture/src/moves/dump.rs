//! pg_dump and pg_restore, in all ways that people use them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use counterx_cluster_tests::{
    check, compact, create_database, mixed_under_watch, prepare_mixed, settle,
};
use counterx_harness::{Cluster, run as run_command};

use super::{backlog, fingerprint, goes_on, is_sound, traffic};
use crate::options::Options;
use crate::report::PartReport;

/// A way to dump and restore.
#[derive(Clone, Copy, Debug)]
struct Way {
    dump: &'static [&'static str],
    /// The arguments of each call of psql or pg_restore, one after the other.
    restore: &'static [&'static [&'static str]],
}

const WAYS: [Way; 8] = [
    Way {
        dump: &["--format=plain"],
        restore: &[&["psql"]],
    },
    Way {
        dump: &["--format=custom"],
        restore: &[&["pg_restore", "--jobs=3"]],
    },
    Way {
        dump: &["--format=directory", "--jobs=3"],
        restore: &[&["pg_restore", "--jobs=3"]],
    },
    Way {
        dump: &["--format=plain"],
        restore: &[&["psql", "--single-transaction"]],
    },
    Way {
        dump: &["--format=custom"],
        restore: &[&["pg_restore", "--single-transaction"]],
    },
    Way {
        dump: &["--format=custom"],
        restore: &[&["pg_restore"]],
    },
    Way {
        dump: &["--format=directory"],
        restore: &[
            &["pg_restore", "--section=pre-data"],
            &["pg_restore", "--section=data"],
            &["pg_restore", "--section=post-data"],
        ],
    },
    Way {
        dump: &["--format=plain", "--inserts"],
        restore: &[&["psql"]],
    },
];

pub(super) fn run(options: &Options, report: &mut PartReport, cluster: &Cluster) {
    report.step("dumps of a backlog, restored in every way", |report| {
        let mut client = backlog(options, cluster, "dumped")?;
        let expected = fingerprint(&mut client)?;
        for (number, way) in WAYS.iter().enumerate() {
            // The short form has time for one, which is another for another seed.
            if options.short && number as u64 != options.seed % WAYS.len() as u64 {
                report.skipped(
                    &format!("{way:?}"),
                    "the short form takes one way, by the seed",
                );
                continue;
            }
            let copy = format!("dumped{number}");
            let dumped = dump(cluster, "dumped", &copy, way.dump)?;
            restore(cluster, &copy, &dumped, way)
                .and_then(|()| is_sound(options, cluster, &copy, &expected))
                .with_context(|| format!("{way:?}"))?;
            report.tried("dumps restored", 1);
        }
        ensure!(
            fingerprint(&mut client)? == expected,
            "the original has changed"
        );
        if !options.short {
            schema_only(options, report, cluster)?;
            data_only(options, report, cluster, &expected)?;
        }
        Ok(())
    });
    if options.short {
        for what in ["schemas and data restored apart", "dumps in mid-load"] {
            report.skipped(what, "the short form has no time for it");
        }
        return;
    }
    report.step("dumps in mid-load", |report| {
        mid_load(options, report, cluster)
    });
}

pub(super) fn dump(cluster: &Cluster, db: &str, name: &str, arguments: &[&str]) -> Result<PathBuf> {
    let file = cluster.directory().join(format!("{name}.dump"));
    run_command(
        cluster
            .tool("pg_dump")
            .args(arguments)
            .arg("--file")
            .arg(&file)
            .arg(db),
    )?;
    Ok(file)
}

fn restore_command(cluster: &Cluster, db: &str, file: &Path, arguments: &[&str]) -> Command {
    let mut command = cluster.tool(arguments[0]);
    command.args(&arguments[1..]).args(["-d", db]);
    if arguments[0] == "psql" {
        command
            .args(["-Xq", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-f"])
            .arg(file);
    } else {
        command.arg("--exit-on-error").arg(file);
    }
    command
}

fn restore(cluster: &Cluster, db: &str, file: &Path, way: &Way) -> Result<()> {
    cluster
        .connect()?
        .batch_execute(&format!("CREATE DATABASE {db}"))?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let disturber = scope.spawn(|| disturb(cluster, db, &over));
        let restored = way.restore.iter().try_for_each(|arguments| {
            run_command(&mut restore_command(cluster, db, file, arguments)).map(drop)
        });
        over.store(true, Ordering::Relaxed);
        disturber
            .join()
            .unwrap_or_else(|_| Err(anyhow!("panicked")))?;
        restored
    })
}

/// Folds, as far as anything lets itself be folded in the middle of a restore.
fn disturb(cluster: &Cluster, db: &str, over: &AtomicBool) -> Result<()> {
    let mut client = cluster.connect_db(db)?;
    while !over.load(Ordering::Relaxed) {
        // Before the extension is there it is an error, and where the restore is one transaction.
        let _ = client.batch_execute("SET lock_timeout = '100ms'; SELECT counterx.compact()");
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
    Ok(())
}

fn schema_only(options: &Options, report: &mut PartReport, cluster: &Cluster) -> Result<()> {
    let file = dump(cluster, "dumped", "schema", &["--schema-only"])?;
    cluster.connect()?.batch_execute("CREATE DATABASE empty")?;
    run_command(&mut restore_command(cluster, "empty", &file, &["psql"]))?;
    let mut client = cluster.connect_db("empty")?;
    for nothing in fingerprint(&mut client)? {
        ensure!(nothing.is_empty(), "without data there is {nothing}");
    }
    client.batch_execute(
        "SELECT counter_incr_once('kept', 'once', 7); INSERT INTO oracle VALUES ('once', 7);
         SELECT counter_type_create('stock', min => 0), counter_type_create('seats', max => 10),
                counter_type_create('quota', min => -5, max => 5);
         SELECT bump('stock:a', 20)",
    )?;
    goes_on(options, cluster, "empty").context("of a schema without data")?;
    report.tried("schemas restored without data", 1);
    Ok(())
}

/// Into a database that has the extension, from its CREATE EXTENSION on unused.
fn data_only(
    options: &Options,
    report: &mut PartReport,
    cluster: &Cluster,
    expected: &[String],
) -> Result<()> {
    let schema = dump(cluster, "dumped", "before_data", &["--schema-only"])?;
    let data = dump(cluster, "dumped", "data", &["--data-only"])?;
    cluster.connect()?.batch_execute("CREATE DATABASE filled")?;
    for file in [schema, data] {
        run_command(&mut restore_command(cluster, "filled", &file, &["psql"]))?;
    }
    is_sound(options, cluster, "filled", expected).context("schema and data apart")?;
    report.tried("schemas and data restored apart", 1);
    Ok(())
}

fn mid_load(options: &Options, report: &mut PartReport, cluster: &Cluster) -> Result<()> {
    let mut client = create_database(cluster, "busy")?;
    prepare_mixed(&mut client)?;
    client.batch_execute(
        "SELECT counter_incr_once('kept', 'once', 7); INSERT INTO oracle VALUES ('once', 7)",
    )?;
    let mut mixed = traffic(options, "busy");
    mixed.transactions *= 4;
    let mut dumps = Vec::new();
    let end = mixed_under_watch(&cluster.config("busy"), mixed, |control| {
        for number in 0..4_usize {
            #[expect(clippy::cast_precision_loss, reason = "0 to 3")]
            control.wait_for_share(0.2 + 0.2 * number as f64)?;
            let way = &WAYS[number % 3];
            let name = format!("busy{number}");
            dumps.push((dump(cluster, "busy", &name, way.dump)?, name, way));
        }
        Ok(())
    })?;
    report.tried("transactions beside dumps", end.transactions);
    for (file, copy, way) in &dumps {
        restore(cluster, copy, file, way)?;
        let mut restored = cluster.connect_db(copy)?;
        check(&mut restored).with_context(|| format!("{way:?}"))?;
        compact(&mut restored)?;
        check(&mut restored).with_context(|| format!("{way:?}, folded"))?;
        goes_on(options, cluster, copy)?;
        report.tried("dumps in mid-load restored", 1);
    }
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}
