//! Dumps of databases with tracked tables, restored in each way: the tracks are exact, or say that they are
//! not and become so, and DDL is watched.

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{DEADLINE, create_bare_database, no_drift, refused, shared};
use counterx_harness::{Cluster, poll_until, run};
use postgres::Client;
use postgres::error::SqlState;

fn cluster() -> &'static Cluster {
    shared(|| Cluster::builder().name("track-restore").start())
}

const TRACKS: [(&str, &str); 3] = [("task", "tasks"), ("task", "points"), ("note", "notes")];

/// A database with a partitioned table of two tracks, and a plain one; some groups have a sum of zero.
fn source(db: &str) -> Result<Client> {
    let mut client = create_bare_database(cluster(), db)?;
    client.batch_execute(
        "CREATE TABLE task (id int, project int, status text, points numeric) PARTITION BY RANGE (id);
         CREATE TABLE task_1 PARTITION OF task FOR VALUES FROM (0) TO (100);
         CREATE TABLE task_2 PARTITION OF task FOR VALUES FROM (100) TO (300);
         INSERT INTO task SELECT n, n % 3, CASE n % 2 WHEN 0 THEN 'open' END, n % 5 - 2 FROM generate_series(1, 150) n;
         CREATE TABLE note (id int PRIMARY KEY, kind text);
         INSERT INTO note SELECT n, 'k' || n % 4 FROM generate_series(1, 40) n",
    )?;
    client.batch_execute(
        "SELECT counter_track('task', 'tasks', '{project, status}');
         SELECT counter_track('task', 'points', '{project}', sum => 'points', scale => 1, filter => 'status IS NOT NULL');
         SELECT counter_track('note', 'notes', '{kind}')",
    )?;
    for table in ["task", "note"] {
        client.execute(
            "SELECT counter_track_wait($1::text::regclass, '1 min')",
            &[&table],
        )?;
    }
    client.batch_execute(
        "DELETE FROM task WHERE id % 7 = 0; INSERT INTO task VALUES (160, 9, 'x', 0.5); SELECT counter_incr('plain', 5)",
    )?;
    no_drift(&mut client, &TRACKS)?;
    Ok(client)
}

fn file(name: &str) -> Result<String> {
    let file = cluster().directory().join(name);
    Ok(file.to_str().context("odd path")?.to_owned())
}

fn dump(db: &str, arguments: &[&str], name: &str) -> Result<String> {
    let file = file(name)?;
    run(cluster()
        .tool("pg_dump")
        .args(arguments)
        .args(["--file", &file, db]))?;
    Ok(file)
}

fn empty(db: &str) -> Result<Client> {
    let mut client = cluster().connect()?;
    client.batch_execute(&format!("CREATE DATABASE {db}"))?;
    cluster().connect_db(db)
}

fn pg_restore(db: &str, arguments: &[&str], file: &str) -> Result<()> {
    run(cluster()
        .tool("pg_restore")
        .args(arguments)
        .args(["-d", db, file]))?;
    Ok(())
}

/// As somebody has to say after a restore that has switched triggers off and on.
fn enable_always(client: &mut Client) -> Result<()> {
    client.batch_execute(
        "DO $$ DECLARE command text; BEGIN
            FOR command IN SELECT format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', tgrelid::regclass, tgname)
                FROM pg_trigger WHERE tgname LIKE 'counterx%' AND tgparentid = 0 LOOP EXECUTE command; END LOOP;
         END $$",
    )?;
    Ok(())
}

/// All is exact, goes on so, and DDL is noticed.
fn is_as_before(client: &mut Client) -> Result<()> {
    for table in ["task", "note"] {
        client.execute(
            "SELECT counter_track_wait($1::text::regclass, '1 min')",
            &[&table],
        )?;
    }
    no_drift(client, &TRACKS)?;
    let plain: i64 = client
        .query_one("SELECT counter_value('plain')", &[])?
        .get(0);
    ensure!(plain == 5, "the plain counter is {plain}");
    client.batch_execute(
        "INSERT INTO task VALUES (170, 9, 'y', 1); DELETE FROM task WHERE id < 60; DELETE FROM note WHERE id = 7;
         TRUNCATE task_2; INSERT INTO task VALUES (171, 1, 'z', 1)",
    )?;
    no_drift(client, &TRACKS)?;
    // The worker sees to it where the restore has switched triggers off.
    poll_until("DDL to be watched", DEADLINE, || {
        client.batch_execute("INSERT INTO note SELECT max(id) + 1, 'w' FROM note")?;
        // And notes what each track stands on, which a dump does not say.
        let sql =
            "SELECT evtenabled = 'A' AND (SELECT bool_and(looked IS NOT NULL) FROM counterx.track)
                     FROM pg_event_trigger WHERE evtname = 'counterx_tracked_ddl'";
        Ok(client.query_one(sql, &[])?.get(0))
    })?;
    client.batch_execute("ALTER TABLE note DISABLE TRIGGER counterx_notes_insert")?;
    let stale: String = client
        .query_one("SELECT state FROM counter_tracks WHERE type = 'notes'", &[])?
        .get(0);
    ensure!(stale == "stale", "the track is {stale}");
    Ok(())
}

#[test]
fn plain_dump_brings_exact_tracks() -> Result<()> {
    source("of_plain")?;
    let file = dump("of_plain", &[], "plain.sql")?;
    let mut client = empty("plain")?;
    run(cluster()
        .tool("psql")
        .args(["-Xq", "-v", "ON_ERROR_STOP=1", "-d", "plain", "-f", &file]))?;
    is_as_before(&mut client)
}

#[test]
fn custom_dump_brings_exact_tracks_with_several_jobs_and_by_sections() -> Result<()> {
    source("of_custom")?;
    let file = dump("of_custom", &["-Fc"], "custom.dump")?;
    let mut client = empty("jobs")?;
    pg_restore("jobs", &["-j", "3", "--exit-on-error"], &file)?;
    is_as_before(&mut client)?;
    let mut client = empty("sections")?;
    for section in ["pre-data", "data", "post-data"] {
        pg_restore(
            "sections",
            &["--exit-on-error", "--section", section],
            &file,
        )?;
    }
    is_as_before(&mut client)
}

#[test]
fn data_alone_is_counted_once_in_the_end() -> Result<()> {
    source("of_data")?;
    let file = dump("of_data", &["-Fc"], "data.dump")?;
    let mut client = empty("data")?;
    pg_restore("data", &["--exit-on-error", "--schema-only"], &file)?;
    pg_restore("data", &["--exit-on-error", "--data-only"], &file)?;
    is_as_before(&mut client)?;
    let mut client = empty("silent")?;
    pg_restore("silent", &["--exit-on-error", "--schema-only"], &file)?;
    pg_restore(
        "silent",
        &["--exit-on-error", "--data-only", "--disable-triggers"],
        &file,
    )?;
    // Triggers were switched off and on: they fire always again only when somebody has said so.
    enable_always(&mut client)?;
    is_as_before(&mut client)
}

/// What was restored with triggers switched off and on was not looked at yet. A trigger that somebody disables
/// before that, and enables, has missed rows.
#[test]
fn what_a_trigger_missed_before_the_first_look_is_noticed() -> Result<()> {
    source("of_missed")?;
    let file = dump("of_missed", &["-Fc"], "missed.dump")?;
    let mut client = empty("missed")?;
    pg_restore("missed", &["--exit-on-error", "--schema-only"], &file)?;
    pg_restore(
        "missed",
        &["--exit-on-error", "--data-only", "--disable-triggers"],
        &file,
    )?;
    poll_until("DDL to be watched", DEADLINE, || {
        client.batch_execute("INSERT INTO note SELECT max(id) + 1, 'w' FROM note")?;
        let sql =
            "SELECT evtenabled = 'A' FROM pg_event_trigger WHERE evtname = 'counterx_tracked_ddl'";
        Ok(client.query_one(sql, &[])?.get(0))
    })?;
    // The rows of before the looks are in doubt, as the dump's come before the triggers mostly, but not always.
    let state = |client: &mut Client, type_name: &str| -> Result<String> {
        let sql = "SELECT concat_ws(': ', t.state, t.reason) FROM counter_tracks t JOIN counterx.track k USING (type)
                    WHERE type = $1 AND k.looked IS NULL";
        Ok(client.query_one(sql, &[&type_name])?.get(0))
    };
    let notes = state(&mut client, "notes")?;
    ensure!(
        notes.starts_with("stale: rows were changed before"),
        "{notes}"
    );
    let tasks = state(&mut client, "tasks")?;
    ensure!(tasks == "exact", "{tasks}");
    client.batch_execute("ALTER TABLE task DISABLE TRIGGER counterx_tasks_insert")?;
    let tasks = state(&mut client, "tasks")?;
    ensure!(
        tasks == "stale: trigger counterx_tasks_insert on public.task was disabled",
        "{tasks}"
    );
    client.batch_execute("INSERT INTO task VALUES (180, 9, 'missed', 1)")?;
    // As long as a restore brings counters, nobody adds what is missing of them.
    let mut restoring = cluster().connect_db("missed")?;
    restoring.batch_execute("BEGIN; LOCK TABLE counterx.late IN SHARE UPDATE EXCLUSIVE MODE")?;
    client.batch_execute("SET lock_timeout = '100ms'")?;
    let result = client.execute("SELECT counter_recount('task', 'tasks')", &[]);
    refused(result.map(drop), &SqlState::LOCK_NOT_AVAILABLE)?;
    client.batch_execute("RESET lock_timeout")?;
    restoring.batch_execute("COMMIT")?;
    enable_always(&mut client)?;
    is_as_before(&mut client)
}

/// Of several sessions that restore, one makes the row triggers of a partitioned table while another one brings the rows of
/// a partition, and a third one the counters: nothing of it fails, and nothing is counted twice.
#[test]
fn rows_of_partitions_may_come_after_the_triggers_and_before_the_counters() -> Result<()> {
    source("of_order")?;
    let dumped = dump("of_order", &["-Fc"], "order.dump")?;
    let contents = run(cluster().tool("pg_restore").args(["-l", &dumped]))?.stdout;
    let contents = String::from_utf8(contents)?;
    let entries: Vec<&str> = contents
        .lines()
        .filter(|line| !line.starts_with(';'))
        .collect();
    let is_data = |entry: &&&str| entry.contains(" TABLE DATA ");
    let of = |entry: &&&str, what: &str| entry.contains(what);
    let first = entries
        .iter()
        .position(|entry| entry.contains(" TABLE DATA "));
    let (before, rest) = entries.split_at(first.context("no data")?);
    let definitions = |entry: &&&str| {
        is_data(entry) && (of(entry, " counterx type ") || of(entry, " counterx track "))
    };
    let row_triggers = |entry: &&&str| of(entry, " TRIGGER public task ");
    let rows = |entry: &&&str| is_data(entry) && of(entry, " public ");
    let mut ordered = before.to_vec();
    ordered.extend(rest.iter().filter(definitions));
    ordered.extend(rest.iter().filter(row_triggers));
    ordered.extend(rest.iter().filter(rows));
    let found = ordered.len() - before.len();
    ensure!(found == 2 + 6 + 3, "{found} entries of {rest:?}");
    let left: Vec<&str> = rest
        .iter()
        .filter(|entry| !ordered.contains(entry))
        .copied()
        .collect();
    ordered.extend(left);
    let list = file("order.list")?;
    std::fs::write(&list, ordered.join("\n"))?;
    let mut client = empty("in_order")?;
    pg_restore("in_order", &["--exit-on-error", "-L", &list], &dumped)?;
    is_as_before(&mut client)
}
