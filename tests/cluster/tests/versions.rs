//! From one major version of PostgreSQL to a later one: by pg_upgrade, and by a dump.
//!
//! These need several servers that have the extension, so they are ignored unless asked for:
//! `scripts/test versions`, which `scripts/test-versions` runs when it has tested each version by itself.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use counterx_cluster_tests::{
    DEADLINE, Mixed, check, create_bare_database, create_database, folding_hard, footprint,
    mixed_under_watch, no_drift, prepare_mixed, settle,
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

/// Has the worker of a database pause. Returns a session that knows of it.
fn without_worker(cluster: &Cluster, mut client: Client, db: &str) -> Result<Client> {
    client.batch_execute(&format!(
        "ALTER DATABASE {db} SET counterx.compaction = off"
    ))?;
    poll_until("the worker to pause", DEADLINE, || {
        let sql = "SELECT state IN ('paused', 'stopped') FROM counterx.workers";
        Ok(client.query_one(sql, &[])?.get(0))
    })?;
    cluster.connect_db(db)
}

/// A database that has counted in all ways, with deltas that wait to be folded, in logs and late ones,
/// with types, holds and tokens, and nobody who folds.
fn backlog(cluster: &Cluster, db: &str) -> Result<Client> {
    let mut client = create_database(cluster, db)?;
    prepare_mixed(&mut client)?;
    client.batch_execute("SELECT counter_history('counter', events => '7 days')")?;
    let traffic = Mixed {
        clients: 1,
        transactions: 15,
        survives: false,
        seed: 15,
    };
    mixed_under_watch(&cluster.config(db), traffic, |_| Ok(()))?;
    settle(&mut client)?;
    let mut client = without_worker(cluster, client, db)?;
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
        "SELECT string_agg(concat_ws(' ', type, unit, keep, time_zone), ', ' ORDER BY type, unit) FROM counter_histories",
        "SELECT string_agg(concat_ws(' ', c.name, b.start AT TIME ZONE 'UTC', b.delta, b.ups, b.downs, b.changes, b.adjusted, b.value), ', ' ORDER BY c.name, b.start)
           FROM counters c, LATERAL counter_buckets(c.name, 'minute') b WHERE c.name LIKE 'counter:%'",
        "SELECT string_agg(concat_ws(' ', c.name, e.at AT TIME ZONE 'UTC', e.delta, e.kind), ', ' ORDER BY c.name, e.at)
           FROM counters c, LATERAL counter_events(c.name, max_rows => 1000) e WHERE c.name LIKE 'counter:%'",
    ]
    .iter()
    .map(|sql| Ok(client.query_one(*sql, &[])?.get(0)))
    .collect()
}

/// The history of each counter comes to its value: it was there from the beginning.
fn history_agrees(client: &mut Client) -> Result<()> {
    let sql = "
        SELECT count(*), count(*) FILTER (WHERE c.value IS DISTINCT FROM b.sum OR c.value IS DISTINCT FROM e.sum)
          FROM counters c,
               LATERAL (SELECT sum(delta + adjusted) FROM counter_buckets(c.name, 'day')) b,
               LATERAL (SELECT sum(delta) FROM counter_events(c.name, max_rows => 100000)) e
         WHERE c.name LIKE 'counter:%'";
    let row = client.query_one(sql, &[])?;
    let (all, wrong): (i64, i64) = (row.get(0), row.get(1));
    ensure!(
        all > 20 && wrong == 0,
        "{wrong} of {all} histories are wrong"
    );
    Ok(())
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
    history_agrees(&mut client).context("having counted")?;
    settle(&mut client)?;
    check(&mut client).context("folded")?;
    history_agrees(&mut client).context("folded")?;
    drop(client);
    cluster.restart(StopMode::Immediate)?;
    let mut client = cluster.connect_db(db)?;
    check(&mut client).context("after a crash")?;
    history_agrees(&mut client).context("after a crash")?;
    Ok(())
}

/// Runs pg_upgrade into a new cluster, and starts that.
fn pg_upgrade(mut old: Cluster, new: ClusterBuilder) -> Result<Cluster> {
    let mut new = new.start()?;
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
    Ok(new)
}

#[test]
#[ignore = "needs several servers: scripts/test versions"]
fn pg_upgrade_takes_everything_to_a_later_version() -> Result<()> {
    let pairs = [(15, 16), (15, 17), (15, 18), (16, 18)];
    each_pair("pg_upgrade", pairs.into_iter(), |old, new| {
        let old = builder("old", old)?.start()?;
        let mut client = backlog(&old, "upgraded")?;
        let expected = fingerprint(&mut client)?;
        drop((client, create_database(&old, "unused")?));
        let mut new = pg_upgrade(old, builder("new", new)?)?;
        goes_on(&mut new, "upgraded", &expected)?;
        new.connect_db("unused")?
            .batch_execute("SELECT bump('x', 1)")?;
        check(&mut new.connect_db("unused")?)?;
        Ok(())
    })
}

/// Tracked tables of many kinds, by type; those of the first are exact.
const EXACT: [(&str, &str); 4] = [
    ("task", "tasks"),
    ("task", "points"),
    ("event", "events"),
    ("event", "halves"),
];

/// A database with tracks in each state, with deltas that wait to be folded, and nobody who folds or counts.
fn tracked(cluster: &Cluster, db: &str) -> Result<Client> {
    let mut client = create_bare_database(cluster, db)?;
    client.batch_execute(
        "CREATE TYPE mood AS ENUM ('fine', 'so so');
         CREATE DOMAIN price AS numeric(10, 2);
         CREATE FUNCTION half(n integer) RETURNS integer LANGUAGE sql IMMUTABLE RETURN n / 2;
         CREATE TABLE task (id integer PRIMARY KEY, status text, points price, mood mood,
                            twice integer GENERATED ALWAYS AS (id % 3 * 2) STORED);
         CREATE TABLE event (id integer, shard integer, kind text) PARTITION BY LIST (shard);
         CREATE TABLE event_1 PARTITION OF event FOR VALUES IN (1);
         CREATE TABLE event_2 (gone integer, kind text, shard integer, id integer);
         ALTER TABLE event_2 DROP COLUMN gone;
         ALTER TABLE event ATTACH PARTITION event_2 FOR VALUES IN (2);
         CREATE TABLE event_3 PARTITION OF event FOR VALUES IN (3) PARTITION BY RANGE (id);
         CREATE TABLE event_3_low PARTITION OF event_3 FOR VALUES FROM (MINVALUE) TO (50);
         CREATE TABLE event_3_high PARTITION OF event_3 FOR VALUES FROM (50) TO (MAXVALUE);
         CREATE TABLE begun (id integer);
         CREATE TABLE doubtful (id integer);
         CREATE TABLE broken (id integer)",
    )?;
    client.batch_execute(
        "INSERT INTO task SELECT n, 's' || n % 4, n % 5 - 2, (enum_range(NULL::mood))[1 + n % 2] FROM generate_series(1, 60) n;
         INSERT INTO event SELECT n, 1 + n % 3, CASE WHEN n % 4 > 0 THEN repeat('k', n % 4 * 100) END FROM generate_series(1, 90) n;
         INSERT INTO begun SELECT generate_series(1, 10);
         SELECT counter_track('task', 'tasks', '{status, mood, twice}');
         SELECT counter_track('task', 'points', '{mood}', sum => 'points', scale => 2, filter => $$status <> 's3'$$);
         SELECT counter_track('event', 'events', '{shard, kind}');
         SELECT counter_track('event', 'halves', '{half(id)}', filter => 'half(id) < 20');
         SELECT counter_track('doubtful', 'doubtful', '{id}');
         SELECT counter_track('broken', 'broken', '{id}')",
    )?;
    for table in ["task", "event", "doubtful", "broken"] {
        let wait = "SELECT counter_track_wait($1::text::regclass, '1 min')";
        let exact: bool = client.query_one(wait, &[&table])?.get(0);
        ensure!(exact, "{table} has not become exact");
    }
    let mut client = without_worker(cluster, client, db)?;
    client.batch_execute(
        "UPDATE task SET status = 'moved', points = points + 0.25 WHERE id % 7 = 0;
         DELETE FROM event WHERE id % 5 = 0;
         UPDATE event SET shard = 4 - shard WHERE id % 11 = 0",
    )?;
    client.batch_execute(
        "BEGIN; INSERT INTO task VALUES (70, 'late', 1, 'fine'); DELETE FROM event_2 WHERE id < 40; PREPARE TRANSACTION 'late'",
    )?;
    client.batch_execute("COMMIT PREPARED 'late'")?;
    client.batch_execute(
        "SELECT counter_track('begun', 'begun', '{}');
         INSERT INTO begun VALUES (11);
         ALTER TABLE doubtful DISABLE TRIGGER counterx_doubtful_insert;
         INSERT INTO doubtful VALUES (1), (2);
         ALTER TABLE doubtful ENABLE ALWAYS TRIGGER counterx_doubtful_insert;
         INSERT INTO doubtful VALUES (2);
         ALTER TABLE broken DISABLE TRIGGER counterx_broken_insert;
         INSERT INTO broken VALUES (1)",
    )?;
    no_drift(&mut client, &EXACT)?;
    ensure!(footprint(&mut client)?.pending > 0, "there is no backlog");
    Ok(client)
}

fn states(client: &mut Client) -> Result<String> {
    let sql = "SELECT string_agg(type || ' ' || state, ', ' ORDER BY type COLLATE \"C\") FROM counter_tracks";
    Ok(client.query_one(sql, &[])?.get(0))
}

/// All tracks but the one whose trigger is off become exact; that one does when it is on.
fn become_exact(cluster: &Cluster, db: &str) -> Result<()> {
    let mut client = cluster.connect_db(db)?;
    client.batch_execute(&format!("ALTER DATABASE {db} RESET counterx.compaction"))?;
    let mut client = cluster.connect_db(db)?;
    let wait = |client: &mut Client, table: &str| -> Result<()> {
        let sql = "SELECT counter_track_wait($1::text::regclass, '1 min')";
        let exact: bool = client.query_one(sql, &[&table])?.get(0);
        ensure!(exact, "{table} has not become exact: {}", states(client)?);
        Ok(())
    };
    for table in ["task", "event", "begun", "doubtful"] {
        wait(&mut client, table)?;
    }
    no_drift(&mut client, &EXACT)?;
    no_drift(&mut client, &[("begun", "begun"), ("doubtful", "doubtful")])?;
    poll_until("the trigger to be missed", DEADLINE, || {
        let sql = "SELECT coalesce(last_error LIKE '%not enabled ALWAYS', false) FROM counter_tracks WHERE type = 'broken' AND state = 'stale'";
        Ok(client.query_one(sql, &[])?.get(0))
    })?;
    client.batch_execute("ALTER TABLE broken ENABLE ALWAYS TRIGGER counterx_broken_insert")?;
    wait(&mut client, "broken")?;
    no_drift(&mut client, &[("broken", "broken")])?;
    // DDL is noticed.
    client.batch_execute("ALTER TABLE event DETACH PARTITION event_1")?;
    wait(&mut client, "event")?;
    client.batch_execute(
        "CREATE TABLE event_4 PARTITION OF event FOR VALUES IN (4);
         INSERT INTO event VALUES (1, 4, 'new'), (2, 4, 'new'); TRUNCATE event_2; DELETE FROM event_3 WHERE id < 40;
         ALTER TABLE event ATTACH PARTITION event_1 FOR VALUES IN (1)",
    )?;
    wait(&mut client, "event")?;
    no_drift(&mut client, &EXACT)?;
    settle(&mut client)?;
    no_drift(&mut client, &EXACT)
}

#[test]
#[ignore = "needs several servers: scripts/test versions"]
fn pg_upgrade_takes_tracked_tables_with_it() -> Result<()> {
    // To the same version goes whoever changes what initdb has made.
    let pairs = [(15, 15), (18, 18), (15, 16), (15, 18), (16, 17)];
    each_pair(
        "tracked tables",
        pairs.into_iter(),
        |old_major, new_major| {
            const BEFORE: &str = "begun attached, broken stale, doubtful stale, events exact, halves exact, points exact, tasks exact";
            const COUNTERS: &str =
                "SELECT string_agg(name || '=' || value, ' ' ORDER BY name) FROM counters";
            let databases = ["ddl_first", "worker_first"];
            let old = builder("tracks-old", old_major)?.start()?;
            let mut expected = Vec::new();
            for db in databases {
                let mut client = tracked(&old, db)?;
                let found = states(&mut client)?;
                ensure!(found == BEFORE, "{found} in {db}");
                expected.push(client.query_one(COUNTERS, &[])?.get::<_, String>(0));
            }
            let new = pg_upgrade(old, builder("tracks-new", new_major)?)?;
            for (db, expected) in databases.into_iter().zip(&expected) {
                let mut client = new.connect_db(db)?;
                let found = states(&mut client)?;
                ensure!(found == BEFORE, "{found} in {db} after pg_upgrade");
                let counters: String = client.query_one(COUNTERS, &[])?.get(0);
                ensure!(counters == *expected, "{counters} instead of {expected}");
                no_drift(&mut client, &EXACT)?;
                client.batch_execute(
                "INSERT INTO task VALUES (71, 'new', 0.5, 'so so'); UPDATE task SET mood = 'fine' WHERE id % 2 = 0;
                 UPDATE event SET shard = 1 + shard % 3; DELETE FROM event_3_high; INSERT INTO event_1 VALUES (7, 1, 'leaf')",
            )?;
                no_drift(&mut client, &EXACT)?;
            }
            // What comes at once may be what makes counters wrong.
            let mut client = new.connect_db("ddl_first")?;
            client.batch_execute("ALTER TYPE mood RENAME VALUE 'fine' TO 'well'")?;
            let found = states(&mut client)?;
            ensure!(
                found.contains("points stale, tasks stale"),
                "{found} though a label was renamed"
            );
            drop(client);
            become_exact(&new, "ddl_first")?;
            // And so may what comes after it was looked at.
            let mut client = new.connect_db("worker_first")?;
            client.batch_execute("ALTER DATABASE worker_first RESET counterx.compaction")?;
            let mut client = new.connect_db("worker_first")?;
            client.batch_execute("INSERT INTO task VALUES (72, 'new', 0.5, 'so so')")?;
            poll_until("the tracks to be looked at", DEADLINE, || {
                let sql = "SELECT bool_and((looked ->> 'version')::integer = current_setting('server_version_num')::integer / 10000) FROM counterx.track";
                Ok(client.query_one(sql, &[])?.get(0))
            })?;
            if old_major != new_major {
                client.batch_execute("CREATE TABLE harmless ()")?;
                let found = states(&mut client)?;
                ensure!(
                    found.ends_with("events exact, halves exact, points exact, tasks exact"),
                    "{found} though nothing has happened"
                );
            }
            client.batch_execute(
            "CREATE OR REPLACE FUNCTION half(n integer) RETURNS integer LANGUAGE sql IMMUTABLE RETURN n / 3",
        )?;
            become_exact(&new, "worker_first")
        },
    )
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
