//! Whoever waits for a lock of ours is told for which, and so is who looks after the server.

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{DEADLINE, create_bare_database, shared};
use counterx_harness::{Cluster, poll_until};
use postgres::error::SqlState;
use postgres::{Client, NoTls};

fn cluster() -> &'static Cluster {
    shared(|| {
        Cluster::builder()
            .name("waiting")
            .conf("log_lock_waits", "on")
            .conf("deadlock_timeout", "50ms")
            .start()
    })
}

fn database(name: &str) -> Result<Client> {
    let mut client = create_bare_database(cluster(), name)?;
    client.batch_execute(
        "SELECT counter_incr('a'), counter_incr('b'); \
         SELECT counter_type_create('stock', min => 0); SELECT counter_incr('stock:x', 5)",
    )?;
    Ok(client)
}

/// The context of an error with this code.
fn context(client: &mut Client, sql: &str, code: &SqlState) -> Result<String> {
    let error = client.batch_execute(sql).err().context("no error")?;
    let error = error
        .as_db_error()
        .context("not an error of the server's")?;
    ensure!(error.code() == code, "{error:?}");
    Ok(error.where_().unwrap_or_default().to_owned())
}

#[test]
fn errors_say_what_was_waited_for() -> Result<()> {
    let mut one = database("errors")?;
    let mut two = cluster().connect_db("errors")?;
    two.batch_execute("SET lock_timeout = '200ms'")?;
    let hold: i64 = one
        .query_one("SELECT counter_hold('stock:x', 2, '1 hour')", &[])?
        .get(0);
    one.batch_execute(&format!(
        "BEGIN; SELECT counter_set('a', 7), counter_hold_release({hold})"
    ))?;
    let timeout = &SqlState::LOCK_NOT_AVAILABLE;
    let line = "while locking counter \"a\"";
    ensure!(context(&mut two, "SELECT counter_reset('a')", timeout)? == line);
    let said = context(
        &mut two,
        &format!("SELECT counter_hold_confirm({hold})"),
        timeout,
    )?;
    ensure!(said == format!("while locking hold {hold}"), "{said}");
    // Beside what others say, and not any longer than it is true.
    let said = context(
        &mut two,
        "DO $$ BEGIN PERFORM counter_drop('a'); END $$",
        timeout,
    )?;
    ensure!(
        said.starts_with(line) && said.contains("PL/pgSQL"),
        "{said}"
    );
    let caught = "DO $$ BEGIN PERFORM counter_drop('a'); EXCEPTION WHEN lock_not_available THEN PERFORM 1 / 0; END $$";
    let said = context(&mut two, caught, &SqlState::DIVISION_BY_ZERO)?;
    ensure!(!said.contains("while locking"), "{said}");
    ensure!(context(&mut two, "SELECT 1 / 0", &SqlState::DIVISION_BY_ZERO)?.is_empty());
    ensure!(
        context(
            &mut two,
            "SELECT counter_incr('')",
            &SqlState::INVALID_PARAMETER_VALUE
        )?
        .is_empty()
    );

    // A deadlock, and a wait that the server logs.
    two.batch_execute("SET lock_timeout = 0; BEGIN; SELECT counter_set('b', 1)")?;
    let waiter = std::thread::spawn(move || {
        let said = context(
            &mut two,
            "SELECT counter_set('a', 1)",
            &SqlState::T_R_DEADLOCK_DETECTED,
        );
        (two, said)
    });
    poll_until("the other one to wait", DEADLINE, || {
        Ok(cluster()
            .log()
            .contains("still waiting for ExclusiveLock on user lock"))
    })?;
    let ours = one.batch_execute("SELECT counter_set('b', 1)").err();
    let (_two, theirs) = waiter.join().expect("it ends");
    let ours = ours.and_then(|error| Some(error.as_db_error()?.where_()?.to_owned()));
    // The server chooses which.
    match (ours, theirs) {
        (Some(said), _) => ensure!(said == "while locking counter \"b\"", "{said}"),
        (None, theirs) => ensure!(theirs? == line),
    }
    let log = cluster().log();
    let lines: Vec<&str> = log.lines().collect();
    let logged = lines.windows(4).any(|lines| {
        lines[0].contains("still waiting for ExclusiveLock on user lock")
            && lines[1..].iter().any(|said| said.contains(line))
    });
    ensure!(logged, "the log does not say what is waited for");
    Ok(())
}

#[test]
fn the_view_of_locks_names_counters() -> Result<()> {
    let mut one = database("views")?;
    one.batch_execute("CREATE ROLE watchman LOGIN; GRANT pg_monitor TO watchman")?;
    let mut config = cluster().config("views");
    let mut watchman = config.user("watchman").connect(NoTls)?;
    let all = "SELECT granted, kind, name, hold, cardinality(blocked_by), waiting_since IS NOT NULL FROM counterx.locks ORDER BY kind, name, granted DESC";
    ensure!(watchman.query(all, &[])?.is_empty());
    let hold: i64 = one
        .query_one("SELECT counter_hold('stock:x', 2, '1 hour')", &[])?
        .get(0);
    one.batch_execute(&format!(
        "BEGIN; SELECT counter_set('a', 7), counter_set('new', 1), counter_hold_release({hold})"
    ))?;
    let mut two = cluster().connect_db("views")?;
    let waiter = std::thread::spawn(move || two.batch_execute("SELECT counter_reset('a')"));
    let expected = format!(
        "true counter Some(\"a\") None 0 false; false counter Some(\"a\") None 1 true; \
         true counter None None 0 false; true hold Some(\"stock:x\") Some({hold}) 0 false"
    );
    let mut seen = String::new();
    let found = poll_until("the locks to be shown", DEADLINE, || {
        let rows = watchman.query(all, &[])?;
        let rows: Vec<String> = rows
            .iter()
            .map(|row| {
                let (name, hold): (Option<String>, Option<i64>) = (row.get(2), row.get(3));
                let (granted, kind): (bool, String) = (row.get(0), row.get(1));
                let (blockers, since): (i32, bool) = (row.get(4), row.get(5));
                format!("{granted} {kind} {name:?} {hold:?} {blockers} {since}")
            })
            .collect();
        seen = rows.join("; ");
        Ok(seen == expected)
    });
    found.with_context(|| seen.clone())?;
    one.batch_execute("COMMIT")?;
    waiter.join().expect("it ends")?;
    ensure!(watchman.query(all, &[])?.is_empty());
    Ok(())
}
