//! From one major version of PostgreSQL to a later one: by pg_upgrade, and by a dump.
//!
//! These need several servers that have the extension, so they are ignored unless asked for:
//! `scripts/test versions`, which `scripts/test-versions` runs when it has tested each version by itself.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use counterx_cluster_tests::{
    DEADLINE, Mixed, check, create_database, folding_hard, footprint, mixed_under_watch,
    prepare_mixed, settle,
};
use counterx_harness::{Cluster, ClusterBuilder, StopMode, poll_until, run, run_dir};
use postgres::Client;

const MAJORS: [u32; 4] = [15, 16, 17, 18];

/// The programs of a version, where `scripts/fetch-postgres` or `scripts/build-postgres` has put them.
fn bin_dir(major: u32) -> Result<PathBuf> {
    let dir = run_dir()?.join(format!("postgres-{major}/bin"));
    ensure!(
        dir.join("pg_upgrade").is_file(),
        "there is none: run scripts/fetch-postgres {major}"
    );
    let library = run(Command::new(dir.join("pg_config")).arg("--pkglibdir"))?;
    let library = PathBuf::from(String::from_utf8(library.stdout)?.trim()).join("counterx.so");
    ensure!(
        library.is_file(),
        "it has no counterx: run COUNTERX_VARIANT={major} scripts/build"
    );
    Ok(dir)
}

/// Each of these pairs of versions, where both are there. Fails when no pair is.
fn each_pair(
    what: &str,
    pairs: impl Iterator<Item = (u32, u32)>,
    f: impl Fn(u32, u32) -> Result<()>,
) -> Result<()> {
    let mut tried = 0;
    for (old, new) in pairs {
        if let Some((major, why)) = [old, new]
            .into_iter()
            .find_map(|major| Some((major, bin_dir(major).err()?)))
        {
            println!("{what} from {old} to {new}: skipped, as of PostgreSQL {major} {why}");
            continue;
        }
        f(old, new).with_context(|| format!("{what} from {old} to {new}"))?;
        println!("{what} from {old} to {new}: ok");
        tried += 1;
    }
    ensure!(tried > 0, "there are no two versions to try it with");
    Ok(())
}

fn builder(name: &str, major: u32) -> Result<ClusterBuilder> {
    let mut builder = folding_hard(&format!("{name}{major}"));
    if major >= 18 {
        // On by default since then; pg_upgrade wants both clusters alike.
        builder = builder.initdb("--no-data-checksums");
    }
    Ok(builder.bin_dir(&bin_dir(major)?))
}

/// A database that has counted in all ways, with deltas that wait to be folded, in logs and late ones,
/// with types, holds and tokens, and nobody who folds.
fn backlog(cluster: &Cluster, db: &str) -> Result<Client> {
    let mut client = create_database(cluster, db)?;
    prepare_mixed(&mut client)?;
    let traffic = Mixed {
        clients: 1,
        transactions: 15,
        survives: false,
        seed: 15,
    };
    mixed_under_watch(&cluster.config(db), traffic, |_| Ok(()))?;
    settle(&mut client)?;
    client.batch_execute(&format!(
        "ALTER DATABASE {db} SET counterx.compaction = off"
    ))?;
    poll_until("the worker to pause", DEADLINE, || {
        let sql = "SELECT state IN ('paused', 'stopped') FROM counterx.workers";
        Ok(client.query_one(sql, &[])?.get(0))
    })?;
    let mut client = cluster.connect_db(db)?;
    client.batch_execute(
        "SELECT bump('counter:' || n % 40, n) FROM generate_series(1, 200) n;
         SELECT hold('stock:a', 1, '1 day') FROM counter_available('stock:a') a WHERE a.available > 0;
         SELECT counter_incr_once('kept', 'once', 7);
         INSERT INTO oracle VALUES ('once', 7);
         SELECT counter_drop('counter:1'); DELETE FROM oracle WHERE name = 'counter:1'",
    )?;
    client.batch_execute(
        "BEGIN; SELECT bump('late', 3); SELECT bump('counter:0', 5); PREPARE TRANSACTION 'late'",
    )?;
    client.batch_execute("COMMIT PREPARED 'late'")?;
    check(&mut client)?;
    ensure!(footprint(&mut client)?.pending > 0, "there is no backlog");
    let late: i64 = client
        .query_one("SELECT count(*) FROM counterx.late", &[])?
        .get(0);
    ensure!(late > 0, "there are no late deltas");
    Ok(client)
}

/// What the copy must have in common with its original.
fn fingerprint(client: &mut Client) -> Result<Vec<String>> {
    [
        "SELECT coalesce(string_agg(name || '=' || value, ' ' ORDER BY name), '') FROM counters",
        "SELECT coalesce(string_agg(concat_ws(' ', name, min, max, description), ', ' ORDER BY name), '') FROM counter_types",
        "SELECT coalesce(string_agg(concat_ws(' ', id, name, amount, expires_at), ', ' ORDER BY id), '') FROM counter_holds",
        "SELECT coalesce(string_agg(concat_ws(' ', token, name, delta, value, hold), ', ' ORDER BY token), '') FROM counterx.token",
    ]
    .iter()
    .map(|sql| Ok(client.query_one(*sql, &[])?.get(0)))
    .collect()
}

/// It has all, counts, folds, and survives a crash.
fn goes_on(cluster: &mut Cluster, db: &str, expected: &[String]) -> Result<()> {
    let mut client = cluster.connect_db(db)?;
    client.batch_execute(&format!("ALTER DATABASE {db} RESET counterx.compaction"))?;
    let mut client = cluster.connect_db(db)?;
    check(&mut client).context("as it came")?;
    for (expected, found) in expected.iter().zip(&fingerprint(&mut client)?) {
        ensure!(
            expected == found,
            "the copy has\n{found}\nthe original had\n{expected}"
        );
    }
    let replayed: bool = client
        .query_one("SELECT NOT counter_incr_once('kept', 'once', 7)", &[])?
        .get(0);
    ensure!(replayed, "a token that was used counts again");
    client.batch_execute(
        "SELECT bump('counter:' || n % 40, n) FROM generate_series(1, 100) n;
         SELECT bump('stock:a', 2), take('stock:a', 1), change_set('n:1', 5)",
    )?;
    check(&mut client).context("having counted")?;
    settle(&mut client)?;
    check(&mut client).context("folded")?;
    drop(client);
    cluster.restart(StopMode::Immediate)?;
    check(&mut cluster.connect_db(db)?).context("after a crash")?;
    Ok(())
}

#[test]
#[ignore = "needs several servers: scripts/test versions"]
fn pg_upgrade_takes_everything_to_a_later_version() -> Result<()> {
    let pairs = [(15, 16), (15, 17), (15, 18), (16, 18)];
    each_pair("pg_upgrade", pairs.into_iter(), |old, new| {
        let mut old = builder("old", old)?.start()?;
        let mut client = backlog(&old, "upgraded")?;
        let expected = fingerprint(&mut client)?;
        drop((client, create_database(&old, "unused")?));
        let mut new = builder("new", new)?.start()?;
        new.stop(StopMode::Fast)?;
        old.stop(StopMode::Fast)?;
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
            .args(["--username", "postgres", "--no-sync"])
            .arg("--socketdir")
            .arg(new.socket_dir());
        if let Err(error) = run(&mut command) {
            bail!("{error:#}\n{}", complaints(&new));
        }
        new.start()?;
        goes_on(&mut new, "upgraded", &expected)?;
        new.connect_db("unused")?
            .batch_execute("SELECT bump('x', 1)")?;
        check(&mut new.connect_db("unused")?)?;
        Ok(())
    })
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
                text += &format!("{line}\n");
            }
        }
    }
    text
}

#[test]
#[ignore = "needs several servers: scripts/test versions"]
fn a_dump_takes_everything_to_a_later_version() -> Result<()> {
    let clusters = MAJORS
        .into_iter()
        .filter(|&major| bin_dir(major).is_ok())
        .map(|major| Ok((major, builder("dump", major)?.start()?)))
        .collect::<Result<Vec<_>>>()?;
    let pairs = MAJORS
        .into_iter()
        .flat_map(|old| MAJORS.into_iter().map(move |new| (old, new)))
        .filter(|(old, new)| old < new);
    let cluster = |wanted: u32| {
        let found = clusters.iter().find(|(major, _)| *major == wanted);
        found.map(|(_, cluster)| cluster).context("it has gone")
    };
    let mut expected = Vec::new();
    for (major, cluster) in &clusters {
        let mut client = backlog(cluster, "original")?;
        expected.push((*major, fingerprint(&mut client)?));
    }
    each_pair("a dump", pairs, |old, new| {
        let db = format!("from{old}");
        let (from, to) = (cluster(old)?, cluster(new)?);
        let file = to.directory().join(format!("{db}.dump"));
        // As the documentation of PostgreSQL has it: by the programs of the newer version.
        run(to
            .tool("pg_dump")
            .args(["--format=custom", "--file"])
            .arg(&file)
            .arg("--host")
            .arg(from.socket_dir())
            .args(["--port", &from.port().to_string(), "original"]))?;
        to.connect()?
            .batch_execute(&format!("CREATE DATABASE {db}"))?;
        run(to
            .tool("pg_restore")
            .args(["--exit-on-error", "--dbname", &db])
            .arg(&file))?;
        let mut client = to.connect_db(&db)?;
        check(&mut client)?;
        let original = expected.iter().find(|(major, _)| *major == old);
        let (_, original) = original.context("there was no original")?;
        let found = fingerprint(&mut client)?;
        ensure!(
            &found == original,
            "the copy has\n{found:?}\nthe original had\n{original:?}"
        );
        client
            .batch_execute("SELECT bump('counter:' || n % 40, n) FROM generate_series(1, 100) n")?;
        settle(&mut client)?;
        check(&mut client).context("folded")?;
        Ok(())
    })
}
