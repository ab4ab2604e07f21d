//! Tablespaces, templates, new names.

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    check, compact, create_database, mixed_under_watch, prepare_mixed, refused, settle,
    wait_for_worker,
};
use counterx_harness::Cluster;
use postgres::Client;
use postgres::error::SqlState;

use super::{backlog, fingerprint, goes_on, is_sound, traffic};
use crate::options::Options;
use crate::report::PartReport;

pub(super) fn run(options: &Options, report: &mut PartReport, cluster: &Cluster) {
    report.step("templates with a backlog, and new names", |report| {
        templates(options, report, cluster)
    });
    report.step(
        "schemas and tables by other names and in other places",
        |report| schemas(options, report, cluster),
    );
    if options.short {
        for what in [
            "databases in other tablespaces",
            "internal tables moved by a superuser",
        ] {
            report.skipped(what, "the short form has no time for it");
        }
        return;
    }
    report.step("databases in other tablespaces", |report| {
        tablespaces(options, report, cluster)
    });
    report.step("internal tables moved by a superuser", |report| {
        internal_tables(options, report, cluster)
    });
}

fn tablespaces(options: &Options, report: &mut PartReport, cluster: &Cluster) -> Result<()> {
    let place = cluster.make_dir("place")?;
    let mut admin = cluster.connect()?;
    admin.batch_execute(&format!(
        "CREATE TABLESPACE place LOCATION '{}'",
        place.display()
    ))?;
    let mut client = create_database(cluster, "moving")?;
    prepare_mixed(&mut client)?;
    client.batch_execute(
        "SELECT counter_incr_once('kept', 'once', 7); INSERT INTO oracle VALUES ('once', 7)",
    )?;
    drop(client);
    let config = cluster.config("moving");
    for (round, tablespace) in ["place", "pg_default"].iter().enumerate() {
        let mut mixed = traffic(options, "moving");
        mixed.seed = mixed.seed.wrapping_add(100 * round as u64);
        mixed_under_watch(&config, mixed, |_| Ok(()))?;
        cluster
            .connect_db("moving")?
            .batch_execute("SELECT bump('n' || n, n) FROM generate_series(1, 50) n")?;
        wait_for_worker(&mut admin, "moving")?;
        // Sessions have gone, perhaps a moment ago; the worker has to go for it.
        admin
            .batch_execute(&format!(
                "ALTER DATABASE moving SET TABLESPACE {tablespace}"
            ))
            .with_context(|| format!("moving to {tablespace} beside a worker"))?;
        let mut client = cluster.connect_db("moving")?;
        check(&mut client)?;
        goes_on(options, cluster, "moving")?;
        report.tried("databases moved to another tablespace", 1);
    }
    // The engine's own tables, one by one, while they are in use.
    let mixed = traffic(options, "tables moving");
    let mut moved = 0;
    mixed_under_watch(&config, mixed, |control| {
        let mut client = cluster.connect_db("moving")?;
        let tables: Vec<String> = client
            .query(
                "SELECT oid::regclass::text FROM pg_class
                  WHERE relnamespace = 'counterx'::regnamespace AND relkind = 'r'",
                &[],
            )?
            .iter()
            .map(|row| row.get(0))
            .collect();
        for table in tables.iter().cycle() {
            let place = if moved % 50 < 25 {
                "place"
            } else {
                "pg_default"
            };
            client
                .batch_execute(&format!("ALTER TABLE {table} SET TABLESPACE {place}"))
                .with_context(|| format!("{table} to {place}"))?;
            moved += 1;
            if control.is_done() && moved > tables.len() as u64 {
                break;
            }
        }
        Ok(())
    })?;
    report.tried(
        "internal tables moved to another tablespace in mid-load",
        moved,
    );
    goes_on(options, cluster, "moving")?;
    admin.batch_execute("DROP DATABASE moving WITH (FORCE)")?;
    admin.batch_execute("DROP TABLESPACE place")?;
    Ok(())
}

fn templates(options: &Options, report: &mut PartReport, cluster: &Cluster) -> Result<()> {
    let mut client = backlog(options, cluster, "mould")?;
    let expected = fingerprint(&mut client)?;
    // Two more that the origin has not resolved. They are the origin's: nobody can end them elsewhere.
    for gid in ["open 1", "open 2"] {
        client.batch_execute(&format!(
            "BEGIN; SELECT bump('open', 11); PREPARE TRANSACTION '{gid}'"
        ))?;
    }
    drop(client);
    let mut admin = cluster.connect()?;
    let strategies: &[&str] = &["wal_log", "file_copy"];
    for (number, strategy) in strategies.iter().enumerate() {
        let result = admin.batch_execute(&format!(
            "CREATE DATABASE cast{number} TEMPLATE mould STRATEGY {strategy}"
        ));
        // The server's own rule: a database with prepared transactions is in use.
        let message = refused(result, &SqlState::OBJECT_IN_USE)?;
        ensure!(message.contains("being accessed"), "{message}");
    }
    cluster
        .connect_db("mould")?
        .batch_execute("COMMIT PREPARED 'open 1'")?;
    cluster
        .connect_db("mould")?
        .batch_execute("ROLLBACK PREPARED 'open 2'")?;
    let mut expected = expected;
    {
        let mut client = cluster.connect_db("mould")?;
        let now = fingerprint(&mut client)?;
        ensure!(now[0].contains("open=11"), "{}", now[0]);
        expected[0].clone_from(&now[0]);
        let late: i64 = client
            .query_one("SELECT count(*) FROM counterx.late", &[])?
            .get(0);
        ensure!(late > 0, "there are no late deltas to be copied");
    }
    for (number, strategy) in strategies.iter().enumerate() {
        if options.short && number as u64 != options.seed % 2 {
            continue;
        }
        admin.batch_execute(&format!(
            "CREATE DATABASE cast{number} TEMPLATE mould STRATEGY {strategy}"
        ))?;
        is_sound(options, cluster, &format!("cast{number}"), &expected)
            .context(strategy.to_string())?;
        report.tried("databases made from a template with a backlog", 1);
    }
    let renamed = "Mould's new name";
    admin.batch_execute(&format!("ALTER DATABASE mould RENAME TO \"{renamed}\""))?;
    admin.batch_execute(&format!(
        "ALTER DATABASE \"{renamed}\" RESET counterx.compaction"
    ))?;
    is_sound(options, cluster, renamed, &expected).context("renamed")?;
    report.tried("databases renamed", 1);
    Ok(())
}

fn schemas(options: &Options, report: &mut PartReport, cluster: &Cluster) -> Result<()> {
    let mut client = create_database(cluster, "schemas")?;
    prepare_mixed(&mut client)?;
    client.batch_execute(
        "SELECT counter_incr_once('kept', 'once', 7); INSERT INTO oracle VALUES ('once', 7);
         SELECT bump('x', 5); CREATE SCHEMA other",
    )?;
    let objects = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'other'::regnamespace";
    for sql in [
        "ALTER EXTENSION counterx SET SCHEMA other",
        "ALTER EXTENSION counterx SET SCHEMA pg_catalog",
    ] {
        refused(client.batch_execute(sql), &SqlState::FEATURE_NOT_SUPPORTED)?;
        let moved: i64 = client.query_one(objects, &[])?.get(0);
        ensure!(moved == 0, "{moved} functions have moved");
        check(&mut client)?;
    }
    report.tried("ALTER EXTENSION SET SCHEMA, refused", 2);

    // The schema of internals under another name. Who has looked the tables up goes on with them, who
    // has not is told that there is no extension; and nothing is lost.
    client.batch_execute("SELECT bump('x', 1)")?;
    client.batch_execute("ALTER SCHEMA counterx RENAME TO hidden")?;
    let mut fresh = cluster.connect_db("schemas")?;
    for session in [&mut client, &mut fresh] {
        for sql in [
            "SELECT counter_value('x')",
            "SELECT bump('x', 1); SELECT counter_value('x')",
            "SELECT value FROM counters WHERE name = 'x'",
            "SELECT bump('stock:a', 1); SELECT counter_value('x')",
            "SELECT FROM hidden.compact(); SELECT counter_value('x')",
            "SELECT change_set('x', 11); SELECT counter_value('x')",
            "SELECT FROM counter_types; SELECT counter_value('x')",
        ] {
            honest(report, session, sql)?;
        }
    }
    client.batch_execute("ALTER SCHEMA hidden RENAME TO counterx")?;
    check(&mut client)?;
    check(&mut fresh)?;
    report.tried("schemas renamed and named back", 1);

    // The schema of the public functions may have any name.
    client.batch_execute(
        "ALTER SCHEMA public RENAME TO elsewhere; SELECT elsewhere.counter_incr('x');
         INSERT INTO elsewhere.oracle VALUES ('x', 1)",
    )?;
    let sql =
        "SELECT elsewhere.counter_value('x') = sum(delta) FROM elsewhere.oracle WHERE name = 'x'";
    ensure!(client.query_one(sql, &[])?.get::<_, bool>(0), "x differs");
    client.batch_execute("ALTER SCHEMA elsewhere RENAME TO public")?;
    goes_on(options, cluster, "schemas")?;

    // And so from the start, with nothing of it in the search path.
    cluster.connect()?.batch_execute("CREATE DATABASE apart")?;
    let mut apart = cluster.connect_db("apart")?;
    apart.batch_execute(
        "CREATE SCHEMA tools; CREATE EXTENSION counterx SCHEMA tools; SET search_path = pg_temp;
         SELECT tools.counter_incr('x', 3), tools.counter_incr_many('{\"y\": 4}'::jsonb);
         SELECT tools.counter_incr_once('t', 'x'), tools.counter_set('z', 9)",
    )?;
    // A type is made before its counters, and what was added can be taken once it is committed.
    for sql in [
        "SELECT tools.counter_type_create('stock', min => 0)",
        "SELECT tools.counter_incr('stock:a', 2)",
        "SELECT tools.counter_hold('stock:a', 1, '1 hour')",
        "SELECT tools.counter_take_up_to('stock:a', 5)",
    ] {
        apart.batch_execute(sql)?;
    }
    for fold in [false, true] {
        if fold {
            compact(&mut apart)?;
        }
        let values: Vec<String> = apart
            .query(
                "SELECT name || '=' || value FROM tools.counters ORDER BY name",
                &[],
            )?
            .iter()
            .map(|row| row.get(0))
            .collect();
        ensure!(
            values == ["stock:a=1", "x=4", "y=4", "z=9"],
            "qualified names: {values:?}"
        );
    }
    report.tried("extensions made in a schema of their own", 1);
    Ok(())
}

/// An error, or the value of `x` that the oracle has, where the statement's last row has one.
fn honest(report: &mut PartReport, client: &mut Client, sql: &str) -> Result<()> {
    match client.simple_query(sql) {
        Err(error) => {
            let code = error
                .code()
                .with_context(|| format!("{sql}: the session is gone"))?
                .clone();
            ensure!(code != SqlState::INTERNAL_ERROR, "{sql}: {error}");
            report.tried(
                "statements refused while the engine's tables were elsewhere",
                1,
            );
        }
        Ok(messages) => {
            let got = messages
                .iter()
                .rev()
                .find_map(|message| match message {
                    postgres::SimpleQueryMessage::Row(row) => Some(row.get(0)),
                    _ => None,
                })
                .flatten();
            let sum = "SELECT sum(delta)::text FROM oracle WHERE name = 'x'";
            let right: String = client.query_one(sum, &[])?.get(0);
            ensure!(got == Some(&*right), "{sql}: {got:?}, not {right}");
            report.tried(
                "statements answered while the engine's tables were elsewhere",
                1,
            );
        }
    }
    Ok(())
}

/// Nothing that anybody should do.
fn internal_tables(options: &Options, report: &mut PartReport, cluster: &Cluster) -> Result<()> {
    let mut client = create_database(cluster, "internal")?;
    prepare_mixed(&mut client)?;
    client.batch_execute(
        "SELECT counter_incr_once('kept', 'once', 7); INSERT INTO oracle VALUES ('once', 7);
         CREATE SCHEMA other; SELECT bump('x', 5)",
    )?;
    settle(&mut client)?;
    client.batch_execute("SELECT bump('x', 1)")?;
    for table in [
        "total", "state", "late", "log_0_a", "type", "hold", "token", "anchor",
    ] {
        client
            .batch_execute(&format!("ALTER TABLE counterx.{table} SET SCHEMA other"))
            .with_context(|| table.to_owned())?;
        let mut fresh = cluster.connect_db("internal")?;
        for session in [&mut client, &mut fresh] {
            honest(report, session, "SELECT counter_value('x')")?;
            honest(
                report,
                session,
                "SELECT sum(value) FROM counters WHERE name = 'x'",
            )?;
            honest(
                report,
                session,
                "SELECT bump('x', 1); SELECT counter_value('x')",
            )?;
        }
        client.batch_execute(&format!("ALTER TABLE other.{table} SET SCHEMA counterx"))?;
        check(&mut client).with_context(|| format!("{table} is back"))?;
        check(&mut fresh).with_context(|| format!("{table} is back"))?;
        report.tried("internal tables moved to another schema and back", 1);
    }
    // Unlogged and logged again. Between transactions: to snapshots older than a rewriting ALTER
    // TABLE, any table of the server's is empty.
    for table in ["total", "log_1_a", "log_1_b", "late", "state"] {
        client.batch_execute("SELECT bump('counter:' || n, n) FROM generate_series(1, 40) n")?;
        client.batch_execute(&format!("ALTER TABLE counterx.{table} SET UNLOGGED"))?;
        honest(
            report,
            &mut client,
            "SELECT bump('x', 1); SELECT counter_value('x')",
        )?;
        client.batch_execute(&format!("ALTER TABLE counterx.{table} SET LOGGED"))?;
        check(&mut client).with_context(|| format!("{table} is logged again"))?;
        report.tried("internal tables made unlogged and logged again", 1);
    }
    goes_on(options, cluster, "internal")
}
