//! Other extensions in the same server: those that look at each statement, and those that run statements of
//! their own, from workers of their own. All are preloaded beside counterx, before it and after it.
//!
//! `scripts/setup` unpacks those that are not part of PostgreSQL into the copy of Debian's. Another
//! PostgreSQL, of `COUNTERX_VARIANT`, has what it was built with; the test says what it has to leave out.

use std::env;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use counterx_cluster_tests::{
    DEADLINE, Mixed, check, create_database, folding_hard, mixed_under_watch, nothing_crashed,
    prepare_mixed, seed, settle,
};
use counterx_harness::{Cluster, pg_bin_dir, poll_until, run};
use postgres::Client;

/// What is preloaded, and the extension that is created for it.
const NEIGHBOURS: [(&str, Option<&str>); 5] = [
    ("pg_stat_statements", Some("pg_stat_statements")),
    ("auto_explain", None),
    ("pg_cron", Some("pg_cron")),
    ("pg_partman_bgw", Some("pg_partman")),
    ("pglogical", Some("pglogical")),
];

/// Jobs of pg_cron 1.4 start with the minute.
const MINUTES: Duration = Duration::from_secs(180);

fn there() -> Result<Vec<(&'static str, Option<&'static str>)>> {
    let output = run(Command::new(pg_bin_dir()?.join("pg_config")).arg("--pkglibdir"))?;
    let directory = String::from_utf8(output.stdout)?;
    let is_there = |library: &str| {
        std::path::Path::new(directory.trim())
            .join(library)
            .with_extension("so")
            .exists()
    };
    let mut found = Vec::new();
    for neighbour in NEIGHBOURS {
        if is_there(neighbour.0) {
            found.push(neighbour);
        } else {
            ensure!(
                env::var_os("COUNTERX_VARIANT").is_some(),
                "there is no {}: run make setup",
                neighbour.0
            );
            eprintln!("no {} for this PostgreSQL: it is left out", neighbour.0);
        }
    }
    Ok(found)
}

fn start(name: &str, libraries: &str, cron_workers: &str) -> Result<Cluster> {
    let mut cluster = folding_hard(name);
    // Minor releases since August 2026 ask which libraries may decode; earlier ones do not know the setting.
    let settings = run(Command::new(pg_bin_dir()?.join("postgres")).arg("--describe-config"))?;
    if String::from_utf8_lossy(&settings.stdout).contains("output_plugin_libraries") {
        cluster = cluster.conf(
            "output_plugin_libraries",
            "pgoutput, test_decoding, pglogical_output",
        );
    }
    cluster
        .conf("shared_preload_libraries", libraries)
        .conf("wal_level", "logical")
        .conf("max_worker_processes", "48")
        .conf("max_replication_slots", "20")
        .conf("max_wal_senders", "20")
        .conf("track_commit_timestamp", "on")
        .conf("pg_stat_statements.track", "all")
        .conf("auto_explain.log_min_duration", "0")
        .conf("auto_explain.log_analyze", "on")
        .conf("auto_explain.log_nested_statements", "on")
        .conf("auto_explain.sample_rate", "0.2")
        .conf("cron.database_name", "jobs")
        .conf("cron.use_background_workers", cron_workers)
        .conf("pg_partman_bgw.interval", "1")
        .conf("pg_partman_bgw.role", "postgres")
        .start()
}

/// The load of all kinds of changes, with its checkers, in a database in which all of them are.
fn load(cluster: &Cluster, there: &[(&str, Option<&str>)], db: &str) -> Result<()> {
    let mut client = create_database(cluster, db)?;
    prepare_mixed(&mut client)?;
    for (_, extension) in there {
        // pg_cron lives in one database.
        if let Some(extension) = extension
            && *extension != "pg_cron"
        {
            client.batch_execute(&format!("CREATE EXTENSION {extension}"))?;
        }
    }
    let mixed = Mixed {
        clients: 3,
        transactions: 100,
        survives: false,
        seed: seed(),
    };
    let end = mixed_under_watch(&cluster.config(db), mixed, |_| Ok(()))?;
    ensure!(end.transactions > 500 && end.checks > 0, "{end:?}");
    ensure!(check(&mut client)? > 0);
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}

fn value(client: &mut Client, name: &str) -> Result<i64> {
    Ok(client
        .query_one("SELECT counter_value($1)", &[&name])?
        .get(0))
}

/// Each call is seen once, and counts once, also where the plan is run to be explained.
fn statements_are_seen(cluster: &Cluster) -> Result<()> {
    let mut client = create_database(cluster, "seen")?;
    client.batch_execute("CREATE EXTENSION pg_stat_statements; SELECT pg_stat_statements_reset(); SET auto_explain.sample_rate = 1")?;
    for _ in 0..7 {
        client.batch_execute(
            "SELECT counter_incr('seen'); CALL counter_add('seen'); SELECT counter_hit('seen')",
        )?;
    }
    client.batch_execute("SET auto_explain.sample_rate = 0")?;
    let rows = client.query(
        "SELECT query, calls FROM pg_stat_statements
          WHERE query ~ '^(SELECT counter_(incr|hit)|CALL counter_add)' ORDER BY query",
        &[],
    )?;
    let calls: Vec<(String, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    ensure!(
        calls.len() == 3 && calls.iter().all(|(_, calls)| *calls == 7),
        "{calls:?}"
    );
    ensure!(value(&mut client, "seen")? == 21);
    let log = cluster.log();
    ensure!(
        log.contains("Query Text: SELECT counter_incr('seen')"),
        "auto_explain has logged nothing"
    );
    Ok(())
}

/// A job of pg_cron counts, folds, and calls what has to be called outside of a transaction block; by a
/// connection, as any client's, or in a background worker.
fn cron_counts(cluster: &Cluster) -> Result<()> {
    let mut client = create_database(cluster, "jobs")?;
    client.batch_execute("CREATE EXTENSION pg_cron")?;
    let jobs = [
        "SELECT counter_incr('by cron')",
        "CALL counterx.compact_in_steps()",
        "SELECT counterx.compact()",
        "SELECT counter_hit('hit by cron')",
    ];
    for job in jobs {
        client.execute("SELECT cron.schedule('* * * * *', $1)", &[&job])?;
    }
    // Where it connects.
    client.execute(
        "UPDATE cron.job SET nodename = $1",
        &[&cluster.socket_dir().to_string_lossy()],
    )?;
    poll_until("all jobs to be done", MINUTES, || {
        let sql = "SELECT count(DISTINCT command) FILTER (WHERE status = 'succeeded'),
                          coalesce(string_agg(command || ': ' || return_message, '; ') FILTER (WHERE status = 'failed'), '')
                     FROM cron.job_run_details";
        let row = client.query_one(sql, &[])?;
        let failed: String = row.get(1);
        ensure!(failed.is_empty(), "{failed}");
        Ok(row.get::<_, i64>(0) == i64::try_from(jobs.len())?)
    })?;
    client.batch_execute("SELECT cron.unschedule(jobid) FROM cron.job")?;
    let sql = "SELECT count(*) FROM cron.job_run_details WHERE command = $1 AND status IN ('succeeded', 'running', 'starting', 'sending', 'connecting')";
    for (job, name) in [(jobs[0], "by cron"), (jobs[3], "hit by cron")] {
        let runs: i64 = client.query_one(sql, &[&job])?.get(0);
        poll_until("the runs to be counted", DEADLINE, || {
            Ok(runs > 0 && value(&mut client, name)? == runs)
        })?;
    }
    Ok(())
}

/// Partitions come and go by pg_partman's worker, while triggers on their table count.
fn partitions_are_counted(cluster: &Cluster) -> Result<()> {
    let mut client = create_database(cluster, "parts")?;
    client.batch_execute(
        "CREATE EXTENSION pg_partman;
         CREATE TABLE event (id bigint NOT NULL, kind text NOT NULL) PARTITION BY RANGE (id);
         CREATE FUNCTION count_event() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
         BEGIN
             IF TG_OP = 'DELETE' THEN
                 PERFORM public.counter_decr('events:' || OLD.kind);
             ELSE
                 PERFORM public.counter_incr('events:' || NEW.kind);
             END IF;
             RETURN NULL;
         END $$;
         CREATE TRIGGER count_event AFTER INSERT OR DELETE ON event
             FOR EACH ROW EXECUTE FUNCTION count_event();
         SELECT create_parent('public.event', 'id', 'native', '100', p_premake := 2);",
    )?;
    // Not before it is there: its worker gives up for ten minutes when a database cannot be connected to.
    client.batch_execute("ALTER SYSTEM SET pg_partman_bgw.dbname = 'parts'")?;
    client.batch_execute("SELECT pg_reload_conf()")?;
    let partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'event'::regclass";
    let before: i64 = client.query_one(partitions, &[])?.get(0);
    let (mut next, mut known) = (0_i64, before);
    // Its worker makes a partition when the newest rows come near the last one. Rows that it has none for
    // would be in its way, so they wait for it.
    poll_until("new partitions", DEADLINE, || {
        let now: i64 = client.query_one(partitions, &[])?.get(0);
        // One of them is the default. A partition that is committed at this moment may not be known to this
        // session, so it is used in the next round.
        if next + 50 <= (known - 1) * 100 {
            client.execute(
                "INSERT INTO event SELECT n, 'kind ' || n % 3 FROM generate_series($1::bigint, $1 + 49) n",
                &[&next],
            )?;
            next += 50;
            client.execute(
                "DELETE FROM event WHERE id % 10 = 3 AND id >= $1::bigint - 50",
                &[&next],
            )?;
        }
        known = now;
        Ok(now > before + 4)
    })?;
    let sql = "SELECT (SELECT count(*) FROM event), counter_sum('events:')::bigint";
    let row = client.query_one(sql, &[])?;
    let (rows, counted): (i64, i64) = (row.get(0), row.get(1));
    ensure!(
        rows == counted && rows > 0,
        "{rows} rows, {counted} counted"
    );
    Ok(())
}

/// pglogical's apply worker fires the triggers that are ENABLE ALWAYS or REPLICA, and they count.
fn pglogical_counts(cluster: &Cluster) -> Result<()> {
    let schema = "
        CREATE EXTENSION pglogical;
        CREATE TABLE task (id bigint PRIMARY KEY, status text NOT NULL);
        CREATE FUNCTION count_task() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
        BEGIN
            IF TG_OP IN ('UPDATE', 'DELETE') THEN
                PERFORM public.counter_decr('tasks:' || OLD.status);
            END IF;
            IF TG_OP IN ('UPDATE', 'INSERT') THEN
                PERFORM public.counter_incr('tasks:' || NEW.status);
            END IF;
            RETURN NULL;
        END $$;
        CREATE TRIGGER count_task AFTER INSERT OR UPDATE OR DELETE ON task
            FOR EACH ROW EXECUTE FUNCTION count_task();
        ALTER TABLE task ENABLE ALWAYS TRIGGER count_task;";
    let mut there = create_database(cluster, "provider")?;
    let mut here = create_database(cluster, "subscriber")?;
    let dsn = |db: &str| {
        format!(
            "host={} port={} user=postgres dbname={db}",
            cluster.socket_dir().display(),
            cluster.port()
        )
    };
    for (client, db) in [(&mut there, "provider"), (&mut here, "subscriber")] {
        client.batch_execute(schema)?;
        client.execute("SELECT pglogical.create_node($1, $2)", &[&db, &dsn(db)])?;
    }
    there.batch_execute("SELECT pglogical.replication_set_add_table('default', 'task')")?;
    here.execute(
        "SELECT pglogical.create_subscription('counted', $1, synchronize_data := false)",
        &[&dsn("provider")],
    )?;
    poll_until("the subscription", DEADLINE, || {
        let sql = "SELECT coalesce(bool_and(status = 'replicating'), false) FROM pglogical.show_subscription_status()";
        Ok(here.query_one(sql, &[])?.get(0))
    })?;
    there.batch_execute(
        "INSERT INTO task SELECT n, 'open' FROM generate_series(1, 300) n;
         UPDATE task SET status = 'done' WHERE id % 3 = 0;
         DELETE FROM task WHERE id % 7 = 0",
    )?;
    let counts = "SELECT (SELECT coalesce(string_agg(name || '=' || value, ' ' ORDER BY name), '') FROM counters WHERE name LIKE 'tasks:%'),
                         (SELECT string_agg('tasks:' || status || '=' || n, ' ' ORDER BY status)
                            FROM (SELECT status, count(*) AS n FROM task GROUP BY status) s)";
    let row = there.query_one(counts, &[])?;
    let (counted, rows): (String, String) = (row.get(0), row.get(1));
    ensure!(counted == rows, "{counted}; {rows}");
    poll_until("the rows to arrive and be counted", DEADLINE, || {
        let row = here.query_one(counts, &[])?;
        let (counted_here, rows_here): (String, Option<String>) = (row.get(0), row.get(1));
        // In each snapshot.
        ensure!(counted_here == rows_here.unwrap_or_default());
        Ok(counted_here == counted)
    })?;
    settle(&mut here)?;
    here.batch_execute("SELECT pglogical.drop_subscription('counted')")?;
    Ok(())
}

#[test]
fn beside_other_extensions_counters_equal_the_oracle() -> Result<()> {
    let there = there()?;
    let libraries: Vec<&str> = there.iter().map(|(library, _)| *library).collect();
    let libraries = libraries.join(",");
    let has = |wanted: &str| there.iter().any(|(library, _)| *library == wanted);

    let last = start("neighbours-last", &format!("{libraries},counterx"), "on")?;
    load(&last, &there, "last").context("counterx comes last")?;
    let first = start("neighbours", &format!("counterx,{libraries}"), "off")?;
    load(&first, &there, "first").context("counterx comes first")?;

    if has("pg_stat_statements") && has("auto_explain") {
        statements_are_seen(&first)?;
    }
    if has("pg_partman_bgw") {
        partitions_are_counted(&first).context("pg_partman")?;
    }
    if has("pglogical") {
        pglogical_counts(&first).context("pglogical")?;
    }
    if has("pg_cron") {
        // At the same time, as each waits for the next minute.
        let (by_connection, by_worker) = thread::scope(|scope| {
            let by_worker = scope.spawn(|| cron_counts(&last));
            (cron_counts(&first), by_worker.join())
        });
        by_connection.context("pg_cron, by connections")?;
        by_worker
            .map_err(|_| anyhow!("panicked"))?
            .context("pg_cron, by background workers")?;
    }
    for cluster in [&first, &last] {
        nothing_crashed(&cluster.log())?;
    }
    Ok(())
}
