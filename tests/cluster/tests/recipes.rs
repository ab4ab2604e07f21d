//! The triggers of `docs/recipes`, as the pages have them, where others fire them than the sessions of an
//! application: the apply worker of a subscription and a restore, which have no search path; schemas of
//! tenants; statements that fire no row trigger; rows that belong to nothing.

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{DEADLINE, blocks, create_database, page, shared};
use counterx_harness::{Cluster, poll_until, run};
use postgres::Client;

fn cluster() -> &'static Cluster {
    shared(|| {
        Cluster::builder()
            .name("recipes")
            .conf("wal_level", "logical")
            .start()
    })
}

/// The block with this in it, up to where it begins to try what it has defined.
fn definitions(name: &str, has: &str) -> Result<String> {
    let block = (blocks(&page(&format!("recipes/{name}"))?).into_iter())
        .map(|block| block.sql)
        .find(|sql| sql.contains(has))
        .with_context(|| format!("{name} has no block with {has}"))?;
    let tries = |line: &str| {
        [
            "INSERT INTO",
            "BEGIN;",
            "SELECT ",
            "CALL ",
            "SET ",
            "ALTER TABLE",
        ]
        .iter()
        .any(|start| line.starts_with(start))
    };
    let mut defining = false;
    let lines: Vec<&str> = (block.lines())
        .take_while(|line| {
            defining |= line.starts_with("CREATE");
            !(defining && tries(line))
        })
        .collect();
    Ok(lines.join("\n"))
}

fn define(client: &mut Client, page: &str, all: &[&str]) -> Result<()> {
    for has in all {
        let sql = definitions(page, has)?;
        (client.batch_execute(&sql)).with_context(|| format!("{page}: {sql}"))?;
    }
    Ok(())
}

const TASKS: &str = "counting-by-triggers.md";
/// Tables and row triggers, with the one for TRUNCATE.
const ROW_TRIGGERS: [&str; 4] = [
    "CREATE TABLE task (",
    "FUNCTION count_task()",
    "FUNCTION count_truncated_tasks()",
    "FUNCTION task_drift()",
];

/// The counters, as "name=value" in the order of their names, without those at 0.
fn counters(client: &mut Client) -> Result<String> {
    let sql = "SELECT coalesce(string_agg(name || '=' || value, ' ' ORDER BY name), '') FROM counters WHERE value <> 0";
    Ok(client.query_one(sql, &[])?.get(0))
}

fn no_drift(client: &mut Client) -> Result<()> {
    let rows = client.query("SELECT d::text FROM task_drift() d", &[])?;
    let drift: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    ensure!(drift.is_empty(), "{drift:?}");
    Ok(())
}

const WORK: &str = "
    INSERT INTO task (project, status) SELECT n % 3 + 1, 'open' FROM generate_series(1, 30) n;
    INSERT INTO task (project, status) VALUES (NULL, 'open'), (NULL, 'done');
    UPDATE task SET status = 'done' WHERE id % 2 = 0;
    UPDATE task SET project = NULL WHERE id IN (1, 2);
    UPDATE task SET project = 9 WHERE id = 31;
    DELETE FROM task WHERE id IN (3, 32);";

#[test]
fn rows_that_belong_to_nothing_are_not_counted() -> Result<()> {
    let mut client = create_database(cluster(), "nulls")?;
    define(&mut client, TASKS, &ROW_TRIGGERS)?;
    client.batch_execute(WORK)?;
    no_drift(&mut client)?;
    client.batch_execute("TRUNCATE task")?;
    no_drift(&mut client)?;
    // The same by statement.
    let statements = definitions(TASKS, "FUNCTION count_tasks()")?;
    client.batch_execute(&statements)?;
    client.batch_execute(&WORK.replace("id ", "id - 32 "))?;
    no_drift(&mut client)?;
    ensure!(counters(&mut client)?.contains("tasks:1:open"));
    client.batch_execute("DELETE FROM task")?;
    no_drift(&mut client)?;
    ensure!(counters(&mut client)?.is_empty());
    Ok(())
}

#[test]
fn apply_worker_of_a_subscription_counts() -> Result<()> {
    let mut there = create_database(cluster(), "published")?;
    let mut here = create_database(cluster(), "subscribed")?;
    for client in [&mut there, &mut here] {
        define(client, TASKS, &ROW_TRIGGERS)?;
    }
    here.batch_execute(
        "ALTER TABLE task ENABLE ALWAYS TRIGGER count_task;
         ALTER TABLE task ENABLE ALWAYS TRIGGER count_task_moved;
         ALTER TABLE task ENABLE ALWAYS TRIGGER count_truncated;",
    )?;
    // Before the subscription, which copies it, and after.
    there
        .batch_execute("INSERT INTO task (project, status) VALUES (5, 'early'), (NULL, 'early')")?;
    there.batch_execute("CREATE PUBLICATION tasks FOR TABLE task")?;
    there.batch_execute("SELECT pg_create_logical_replication_slot('tasks', 'pgoutput')")?;
    here.batch_execute(&format!(
        "CREATE SUBSCRIPTION tasks CONNECTION 'host={} port={} user=postgres dbname=published'
         PUBLICATION tasks WITH (create_slot = false, slot_name = 'tasks')",
        cluster().socket_dir().display(),
        cluster().port(),
    ))?;
    // An error of the worker would be tried again for ever.
    let arrived = |there: &mut Client, here: &mut Client| -> Result<()> {
        let sent = counters(there)?;
        let rows = "SELECT count(*) FROM task";
        let wanted: i64 = there.query_one(rows, &[])?.get(0);
        poll_until("the rows to arrive", DEADLINE, || {
            let errors = "SELECT (apply_error_count + sync_error_count)::bigint
                            FROM pg_stat_subscription_stats WHERE subname = 'tasks'";
            let errors: i64 = here.query_one(errors, &[])?.get(0);
            ensure!(errors == 0, "the subscription has failed {errors} times");
            let synced = "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel";
            let synced: bool = here.query_one(synced, &[])?.get(0);
            let found: i64 = here.query_one(rows, &[])?.get(0);
            Ok(synced && found == wanted && counters(here)? == sent)
        })?;
        no_drift(here)
    };
    arrived(&mut there, &mut here)?;
    there.batch_execute(WORK)?;
    arrived(&mut there, &mut here)?;
    there.batch_execute("TRUNCATE task")?;
    arrived(&mut there, &mut here)?;
    ensure!(counters(&mut here)?.is_empty());
    here.batch_execute(
        "ALTER SUBSCRIPTION tasks DISABLE;
         ALTER SUBSCRIPTION tasks SET (slot_name = NONE)",
    )?;
    here.batch_execute("DROP SUBSCRIPTION tasks")?;
    poll_until("the slot to be free", DEADLINE, || {
        let sql = "SELECT NOT active FROM pg_replication_slots WHERE slot_name = 'tasks'";
        Ok(there.query_one(sql, &[])?.get(0))
    })?;
    there.batch_execute("SELECT pg_drop_replication_slot('tasks')")?;
    Ok(())
}

fn dump(db: &str, name: &str, options: &[&str]) -> Result<String> {
    let file = cluster().directory().join(name);
    let file = file.to_str().context("odd path")?.to_owned();
    run(cluster()
        .tool("pg_dump")
        .args(["--format=plain", "--file", &file])
        .args(options)
        .arg(db))?;
    Ok(file)
}

fn restore(db: &str, file: &str) -> Result<()> {
    run(cluster()
        .tool("psql")
        .args(["-Xq", "-v", "ON_ERROR_STOP=1", "-d", db, "-f", file]))?;
    Ok(())
}

#[test]
fn data_alone_is_restored_and_counted_once() -> Result<()> {
    let mut source = create_database(cluster(), "data_source")?;
    define(&mut source, TASKS, &ROW_TRIGGERS)?;
    source.batch_execute(WORK)?;
    source.batch_execute("SELECT counter_incr('made by no trigger', 7)")?;
    let expected = counters(&mut source)?;

    // The triggers count.
    let file = dump(
        "data_source",
        "counted.sql",
        &["--data-only", "--exclude-schema=counterx"],
    )?;
    let mut target = create_database(cluster(), "data_counted")?;
    define(&mut target, TASKS, &ROW_TRIGGERS)?;
    restore("data_counted", &file)?;
    no_drift(&mut target)?;
    ensure!(format!("made by no trigger=7 {}", counters(&mut target)?) == expected);

    // The counters are those of the dump.
    let file = dump(
        "data_source",
        "disabled.sql",
        &["--data-only", "--disable-triggers"],
    )?;
    let mut target = create_database(cluster(), "data_disabled")?;
    define(&mut target, TASKS, &ROW_TRIGGERS)?;
    restore("data_disabled", &file)?;
    no_drift(&mut target)?;
    ensure!(counters(&mut target)? == expected);

    // Both: not twice, but an error, or a drift that a recount finds.
    let file = dump("data_source", "both.sql", &["--data-only"])?;
    let mut target = create_database(cluster(), "data_both")?;
    define(&mut target, TASKS, &ROW_TRIGGERS)?;
    let both = restore("data_both", &file);
    ensure!(
        both.is_err() || no_drift(&mut target).is_err(),
        "the page says that this counts twice"
    );

    // A full restore makes the triggers last.
    let file = dump("data_source", "full.sql", &[])?;
    cluster().psql("postgres", "CREATE DATABASE data_full")?;
    restore("data_full", &file)?;
    let mut target = cluster().connect_db("data_full")?;
    no_drift(&mut target)?;
    ensure!(counters(&mut target)? == expected);
    target.batch_execute("DELETE FROM task")?;
    no_drift(&mut target)?;
    Ok(())
}

#[test]
fn tenants_count_for_themselves() -> Result<()> {
    let mut client = create_database(cluster(), "tenants")?;
    define(&mut client, TASKS, &["FUNCTION count_tenant_task()"])?;
    for (tenant, rows) in [("acme", 3), ("zoo", 5)] {
        client.batch_execute(&format!(
            "SET search_path = {tenant};
             INSERT INTO task SELECT n, 1, 'open' FROM generate_series(1, {rows}) n;
             INSERT INTO task VALUES (100, NULL, 'open');
             UPDATE task SET status = 'done' WHERE id = 1;
             DELETE FROM task WHERE id = 2;
             RESET search_path"
        ))?;
    }
    ensure!(
        counters(&mut client)?
            == "acme:tasks:1:done=1 acme:tasks:1:open=1 zoo:tasks:1:done=1 zoo:tasks:1:open=3"
    );
    client.batch_execute("SET search_path = ''; TRUNCATE acme.task; RESET search_path")?;
    ensure!(counters(&mut client)? == "zoo:tasks:1:done=1 zoo:tasks:1:open=3");
    Ok(())
}

#[test]
fn truncate_of_the_whole_and_of_a_partition_counts_each_row_once() -> Result<()> {
    let mut client = create_database(cluster(), "partitions")?;
    define(&mut client, TASKS, &ROW_TRIGGERS)?;
    define(&mut client, TASKS, &["CREATE TABLE job ("])?;
    let fill = "INSERT INTO job SELECT n, n % 2, 'open', date '2026-05-01' + n FROM generate_series(0, 91) n;
                INSERT INTO job VALUES (1000, NULL, 'open', '2026-06-05')";
    client.batch_execute(fill)?;
    let counted = |client: &mut Client| -> Result<(i64, i64)> {
        let sql = "SELECT counter_sum('tasks:')::bigint, (SELECT count(*) FROM job WHERE project IS NOT NULL)";
        let row = client.query_one(sql, &[])?;
        Ok((row.get(0), row.get(1)))
    };
    client.batch_execute("TRUNCATE job_june")?;
    ensure!(counted(&mut client)? == (62, 62));
    client.batch_execute("UPDATE job SET day = day + 31 WHERE day < '2026-05-11'")?;
    ensure!(counted(&mut client)? == (62, 62));
    client.batch_execute("TRUNCATE job")?;
    ensure!(counted(&mut client)? == (0, 0));
    // Also when the partitioned table has the trigger.
    client.batch_execute(
        "CREATE TRIGGER count_truncated BEFORE TRUNCATE ON job
             FOR EACH STATEMENT EXECUTE FUNCTION count_truncated_tasks()",
    )?;
    client.batch_execute(fill)?;
    client.batch_execute("TRUNCATE job")?;
    ensure!(counted(&mut client)? == (0, 0));
    // What moves a partition is not counted, as the page says.
    client.batch_execute(fill)?;
    client.batch_execute("ALTER TABLE job DETACH PARTITION job_may")?;
    ensure!(counted(&mut client)? == (92, 61));
    client.batch_execute(
        "ALTER TABLE job ATTACH PARTITION job_may FOR VALUES FROM ('2026-05-01') TO ('2026-06-01');
         DROP TABLE job_may",
    )?;
    ensure!(counted(&mut client)? == (92, 61));
    Ok(())
}

/// The other pages: what their triggers count, also without a search path, and a TRUNCATE of it.
#[test]
fn triggers_of_all_pages_need_no_search_path_and_count_truncate() -> Result<()> {
    let pages = [
        (
            "likes-and-views.md",
            &["CREATE TABLE article (", "FUNCTION count_article_like()"][..],
            "INSERT INTO public.article (title) SELECT 'Ada' WHERE NOT EXISTS (SELECT FROM public.article);
             INSERT INTO public.article_like VALUES (1, 1), (1, 2), (1, 3);
             DELETE FROM public.article_like WHERE user_id = 2",
            "public.article_like",
            "article:1:likes=2",
        ),
        (
            "migrating-from-update.md",
            &["CREATE TABLE page (", "FUNCTION count_page_hits()"][..],
            "INSERT INTO public.page VALUES (1, 'one', 5), (2, 'two', 0);
             UPDATE public.page SET hits = hits + 1",
            "public.page",
            "page:1:hits=6 page:2:hits=1",
        ),
        (
            "quotas-and-credit.md",
            &["FUNCTION count_disk()"][..],
            "INSERT INTO public.file VALUES (1, 'ada', 100), (2, NULL, 7), (3, 'ada', 11);
             DELETE FROM public.file WHERE id <> 1",
            "public.file",
            "disk:ada=100",
        ),
        (
            "stock.md",
            &["CREATE TABLE stock (", "FUNCTION count_stock()"][..],
            "INSERT INTO public.stock VALUES (1, 5), (2, 6);
             UPDATE public.stock SET n = n - 1;
             DELETE FROM public.stock WHERE id = 2",
            "public.stock",
            "units:1=4",
        ),
    ];
    for (page, define_all, work, table, expected) in pages {
        let db = format!("page_{}", page.replace(['-', '.'], "_"));
        let mut client = create_database(cluster(), &db)?;
        define(&mut client, page, define_all).context(page)?;
        client.batch_execute("SET search_path = ''")?;
        for _ in 0..2 {
            // What a bounded counter has got can be taken when it is committed.
            for statement in work.split(';') {
                client.batch_execute(statement).context(page)?;
            }
            client.batch_execute("SET search_path = public")?;
            let found = counters(&mut client)?;
            ensure!(found == expected, "{page}: {found}");
            client.batch_execute(&format!("SET search_path = ''; TRUNCATE {table}"))?;
            client.batch_execute("SET search_path = public")?;
            let found = counters(&mut client)?;
            ensure!(found.is_empty(), "{page}, after TRUNCATE: {found}");
            client.batch_execute("SET search_path = ''")?;
        }
    }
    Ok(())
}
