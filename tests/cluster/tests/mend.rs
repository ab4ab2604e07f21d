//! What `pg_restore --disable-triggers` leaves of our triggers is mended, and said.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{DEADLINE, create_bare_database, settle, shared};
use counterx_harness::{Cluster, poll_until, run};
use postgres::Client;

fn cluster() -> &'static Cluster {
    shared(|| {
        Cluster::builder()
            .name("mend")
            .conf("counterx.compaction_interval", "50ms")
            .start()
    })
}

fn database(name: &str) -> Result<Client> {
    create_bare_database(cluster(), name)
}

/// Triggers that are not as the install script has made them.
fn odd(client: &mut Client) -> Result<i64> {
    let sql = "SELECT count(*) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
                WHERE c.relnamespace = 'counterx'::regnamespace AND t.tgenabled <> 'A'";
    Ok(client.query_one(sql, &[])?.get(0))
}

fn wait_until_mended(client: &mut Client) -> Result<()> {
    poll_until("the triggers to be mended", DEADLINE, || {
        Ok(odd(client)? == 0)
    })
}

/// A data-only dump of a database with a type, a hold, a token and counters.
fn dump(db: &str) -> Result<String> {
    let mut client = database(db)?;
    client.batch_execute(
        "SELECT counter_type_create('stock', min => 0);
         SELECT counter_incr('stock:a', 5), counter_incr('plain', 7), counter_incr_once('t', 'once');",
    )?;
    client.batch_execute("SELECT counter_hold('stock:a', 2, '1 hour')")?;
    let file = cluster().directory().join(format!("{db}.custom"));
    let file = file.to_str().context("odd path")?.to_owned();
    run(cluster()
        .tool("pg_dump")
        .args(["--format=custom", "--data-only", "--file", &file, db])
        .stdin(Stdio::null()))?;
    Ok(file)
}

fn restore(db: &str, file: &str) -> Result<()> {
    run(cluster().tool("pg_restore").args([
        "--data-only",
        "--disable-triggers",
        "--exit-on-error",
        "-d",
        db,
        file,
    ]))?;
    Ok(())
}

#[test]
fn triggers_are_always_on_again_after_a_restore() -> Result<()> {
    let file = dump("source")?;
    let mut client = database("copy")?;
    // A worker that runs already, and one that is started after it.
    client.batch_execute("SELECT counter_incr('before')")?;
    settle(&mut client)?;
    let log = cluster().log_len();
    restore("copy", &file)?;
    client.batch_execute("SELECT counter_incr('after')")?;
    wait_until_mended(&mut client)?;
    let said = cluster().log_since(log);
    ensure!(said.contains("counterx: triggers on "), "{said}");
    ensure!(
        said.contains("counterx.late") && said.contains("counterx.type"),
        "{said}"
    );
    ensure!(said.contains("were not ENABLE ALWAYS"), "{said}");
    let values = "SELECT string_agg(name || '=' || value, ' ' ORDER BY name) FROM counters";
    let values: String = client.query_one(values, &[])?.get(0);
    ensure!(
        values == "after=1 before=1 once=1 plain=7 stock:a=5",
        "{values}"
    );

    // All sessions hear of types, whatever the role of the one that changes them.
    let take = "SELECT counter_try_incr('quota:x', -1)";
    ensure!(client.query_one(take, &[])?.get::<_, bool>(0));
    let mut other = cluster().connect_db("copy")?;
    other.batch_execute("SELECT counter_set('quota:x', 0)")?;
    other.batch_execute("SET session_replication_role = replica")?;
    other.batch_execute(
        "INSERT INTO counterx.type (name, min, generation) VALUES ('quota', 0, 1)",
    )?;
    ensure!(!client.query_one(take, &[])?.get::<_, bool>(0));
    Ok(())
}

#[test]
fn what_is_locked_or_disabled_is_left_alone() -> Result<()> {
    let mut client = database("busy")?;
    client.batch_execute(
        "ALTER TABLE counterx.type ENABLE TRIGGER ALL; ALTER TABLE counterx.token ENABLE TRIGGER ALL;
         ALTER TABLE counterx.late DISABLE TRIGGER ALL",
    )?;
    let mut locker = cluster().connect_db("busy")?;
    locker.batch_execute("BEGIN; LOCK counterx.type IN ROW EXCLUSIVE MODE")?;
    client.batch_execute("SELECT counter_incr('a')")?;
    // Nothing waits for the lock.
    settle(&mut client)?;
    poll_until("what is free to be mended", DEADLINE, || {
        let sql = "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'counterx.token'::regclass AND tgenabled = 'O'";
        Ok(client.query_one(sql, &[])?.get::<_, i64>(0) == 0)
    })?;
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    ensure!(client.query_one(waiting, &[])?.get::<_, i64>(0) == 0);
    let disabled = "SELECT count(*) FROM pg_trigger WHERE tgenabled = 'D'";
    let before: i64 = client.query_one(disabled, &[])?.get(0);
    ensure!(before > 0 && odd(&mut client)? > before);
    locker.batch_execute("COMMIT")?;
    poll_until("the rest to be mended", DEADLINE, || {
        Ok(odd(&mut client)? == before)
    })?;
    ensure!(client.query_one(disabled, &[])?.get::<_, i64>(0) == before);
    client
        .batch_execute("ALTER TABLE counterx.late ENABLE TRIGGER ALL; SELECT counter_incr('a')")?;
    wait_until_mended(&mut client)
}
