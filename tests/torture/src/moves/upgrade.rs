//! pg_upgrade to another major version.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use counterx_cluster_tests::{check, create_database, folding_hard};
use counterx_harness::{Cluster, StopMode, run as run_command, run_dir};

use super::{backlog, fingerprint, is_sound};
use crate::options::Options;
use crate::report::PartReport;

pub(super) fn run(options: &Options, report: &mut PartReport) {
    let what = "pg_upgrade to another major version";
    if options.short {
        report.skipped(what, "the short form has no time for it");
        return;
    }
    let others: Vec<_> = [16, 17, 18].into_iter().filter_map(other).collect();
    let mut tried = false;
    for postgres in &others {
        if let Err(why) = postgres.has_extension() {
            report.skipped(
                &format!("pg_upgrade to PostgreSQL {}", postgres.major),
                format!("{why:#}"),
            );
            continue;
        }
        tried = true;
        if let Err(why) = upgrades_without_us(postgres) {
            report.skipped(
                &format!("pg_upgrade to PostgreSQL {}", postgres.major),
                format!(
                    "a cluster without counterx cannot be upgraded from one to the other here either: {why:#}"
                ),
            );
            continue;
        }
        let what = format!("pg_upgrade to PostgreSQL {}", postgres.major);
        report.step(&what, |report| upgrade(options, report, postgres));
    }
    if !tried {
        report.skipped(
            what,
            "no other PostgreSQL with the extension was found: build one with \
             scripts/build-postgres 18, or set PG16_CONFIG, PG17_CONFIG or PG18_CONFIG, and install \
             the extension with cargo pgrx install --no-default-features --features pg18 --pg-config",
        );
    }
}

/// Another PostgreSQL.
struct Postgres {
    major: u32,
    bin_dir: PathBuf,
}

/// Where the environment says, or scripts/build-postgres puts it, or Debian does.
fn other(major: u32) -> Option<Postgres> {
    let places = [
        env::var_os(format!("PG{major}_CONFIG"))
            .and_then(|config| PathBuf::from(config).parent().map(Path::to_owned)),
        run_dir()
            .ok()
            .map(|dir| dir.join(format!("postgres-{major}/bin"))),
        Some(PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"))),
    ];
    places
        .into_iter()
        .flatten()
        .find(|bin_dir| bin_dir.join("pg_upgrade").is_file())
        .map(|bin_dir| Postgres { major, bin_dir })
}

impl Postgres {
    /// It has the library and the script of this version.
    fn has_extension(&self) -> Result<()> {
        for (what, file) in [
            ("--pkglibdir", "counterx.so"),
            ("--sharedir", "extension/counterx.control"),
        ] {
            let output = run_command(Command::new(self.bin_dir.join("pg_config")).arg(what))?;
            let file = Path::new(String::from_utf8(output.stdout)?.trim()).join(file);
            ensure!(
                file.is_file(),
                "there is no {}: install it with PGRX_PG_CONFIG_PATH={config} cargo pgrx install \
                 --no-default-features --features pg{} --pg-config {config}",
                file.display(),
                self.major,
                config = self.bin_dir.join("pg_config").display(),
            );
        }
        Ok(())
    }
}

/// An empty cluster that pg_upgrade is to fill.
fn target(postgres: &Postgres, preload: bool) -> Result<Cluster> {
    let mut new = folding_hard("new")
        .bin_dir(&postgres.bin_dir)
        .preload(preload);
    if postgres.major >= 18 {
        // On by default since then, and both clusters must agree.
        new = new.initdb("--no-data-checksums");
    }
    let mut new = new.start()?;
    new.stop(StopMode::Fast)?;
    Ok(new)
}

/// The control: do these two servers upgrade one to the other at all?
fn upgrades_without_us(postgres: &Postgres) -> Result<()> {
    let mut old = Cluster::builder().name("old").preload(false).start()?;
    old.connect()?.batch_execute("CREATE TABLE plain (n int)")?;
    let new = target(postgres, false)?;
    old.stop(StopMode::Fast)?;
    pg_upgrade(&old, &new, "--copy")
}

fn upgrade(options: &Options, report: &mut PartReport, postgres: &Postgres) -> Result<()> {
    for mode in ["--copy", "--link"] {
        // Prepared transactions would be in the way of pg_upgrade; all else may be there.
        let mut old = folding_hard("old").start()?;
        let mut client = backlog(options, &old, "upgraded")?;
        client.batch_execute(
            "SELECT counter_drop('counter:1'); DELETE FROM oracle WHERE name = 'counter:1'",
        )?;
        let expected = fingerprint(&mut client)?;
        let mut empty = create_database(&old, "unused")?;
        check(&mut empty)?;
        drop((client, empty));
        let mut new = target(postgres, true)?;
        old.stop(StopMode::Fast)?;
        pg_upgrade(&old, &new, mode)?;
        new.start()?;
        new.connect()?
            .batch_execute("ALTER DATABASE upgraded RESET counterx.compaction")?;
        let version: String = new
            .connect()?
            .query_one("SELECT current_setting('server_version')", &[])?
            .get(0);
        ensure!(
            version.starts_with(&postgres.major.to_string()),
            "it is PostgreSQL {version}"
        );
        is_sound(options, &new, "upgraded", &expected).context(mode)?;
        new.connect_db("unused")?
            .batch_execute("SELECT bump('x', 1)")?;
        check(&mut new.connect_db("unused")?)?;
        new.restart(StopMode::Immediate)?;
        check(&mut new.connect_db("upgraded")?).context("after a crash of the new cluster")?;
        report.tried(
            &format!("clusters upgraded to PostgreSQL {}", postgres.major),
            1,
        );
    }
    Ok(())
}

fn pg_upgrade(old: &Cluster, new: &Cluster, mode: &str) -> Result<()> {
    let mut command = new.tool("pg_upgrade");
    command
        .arg("--old-bindir")
        .arg(old.bin_dir())
        .arg("--new-bindir")
        .arg(new.bin_dir())
        .arg("--old-datadir")
        .arg(old.data_dir())
        .arg("--new-datadir")
        .arg(new.data_dir())
        .args(["--username", "postgres", "--no-sync", mode])
        // Its own servers, at ports and in directories of its own choice.
        .arg("--socketdir")
        .arg(new.socket_dir());
    match run_command(&mut command) {
        Ok(_) => Ok(()),
        Err(_) => bail!("pg_upgrade failed:\n{}", complaints(new)),
    }
}

/// What the logs that pg_upgrade keeps complain of.
fn complaints(new: &Cluster) -> String {
    let mut text = String::new();
    let mut directories = vec![new.data_dir().join("pg_upgrade_output.d")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let log = fs::read_to_string(&path).unwrap_or_default();
            for line in log.lines().filter(|line| line.contains("ERROR:")) {
                let _ = writeln!(text, "{line}");
            }
        }
    }
    text
}
