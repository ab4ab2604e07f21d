//! What an administrator does to tables does nothing to values.

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, Load, Maintenance, agree, changes_schema, changes_under_watch, check, compact,
    count_and_settle, create_database, folding_hard, footprint, settle, shared, under_watch,
};
use counterx_harness::{Cluster, poll_until};
use postgres::{Client, IsolationLevel};

fn cluster() -> &'static Cluster {
    shared(|| {
        folding_hard("maintenance")
            .conf("wal_level", "logical")
            // Of each table that has just been copied, the server keeps an origin for a moment.
            .conf("max_replication_slots", "64")
            .conf("counterx.token_ttl", "1s")
            .start()
    })
}

/// Runs loads, and statement after statement beside them.
fn beside_load(db: &str, statements: &[String]) -> Result<()> {
    let mut client = create_database(cluster(), db)?;
    let config = cluster().config(db);
    Maintenance::of(statements, &config)?.beside(|seed, meanwhile| {
        let load = Load {
            transactions: 250,
            two_phase: true,
            seed,
            ..Load::default()
        };
        under_watch(&config, &load, meanwhile)?;
        Ok(())
    })?;
    // Each of them once more at rest, with deltas in the logs.
    client.batch_execute("SELECT bump('n' || n, 1) FROM generate_series(1, 100) n")?;
    for statement in statements {
        client.batch_execute(statement)?;
        check(&mut client)?;
    }
    count_and_settle(&mut client)
}

fn tables() -> Vec<String> {
    let logs = (0..8).flat_map(|lane| ["a", "b"].map(|side| format!("counterx.log_{lane}_{side}")));
    ["total", "state", "late"]
        .into_iter()
        .map(|t| format!("counterx.{t}"))
        .chain(logs)
        .collect()
}

#[test]
fn vacuum_full_of_internal_tables_under_load_changes_no_value() -> Result<()> {
    let statements: Vec<_> = tables()
        .iter()
        .flat_map(|table| {
            [
                format!("VACUUM FULL {table}"),
                format!("VACUUM (FREEZE, ANALYZE) {table}"),
            ]
        })
        .collect();
    beside_load("vacuumfull", &statements)
}

#[test]
fn reindex_of_internal_tables_under_load_changes_no_value() -> Result<()> {
    let mut statements: Vec<_> = tables()
        .iter()
        .map(|table| format!("REINDEX TABLE {table}"))
        .collect();
    statements.push("REINDEX SCHEMA counterx".to_owned());
    beside_load("reindexed", &statements)
}

/// While an index is built concurrently there are two, and writers have to serve both.
#[test]
fn reindex_concurrently_of_internal_tables_under_load_changes_no_value() -> Result<()> {
    let mut statements: Vec<_> = tables()
        .iter()
        .map(|table| format!("REINDEX TABLE CONCURRENTLY {table}"))
        .collect();
    statements.push("REINDEX DATABASE CONCURRENTLY online".to_owned());
    beside_load("online", &statements)
}

#[test]
fn cluster_on_internal_tables_under_load_changes_no_value() -> Result<()> {
    let mut statements = vec![
        "CLUSTER counterx.total USING total_pkey".to_owned(),
        "CLUSTER counterx.state USING state_pkey".to_owned(),
    ];
    for lane in 0..8 {
        for side in ["a", "b"] {
            let log = format!("log_{lane}_{side}");
            statements.push(format!("CLUSTER counterx.{log} USING {log}_epoch_name"));
        }
    }
    beside_load("clustered", &statements)
}

/// A session remembers where it has found rows. By now there may be another counter, or nothing.
#[test]
fn session_that_remembers_rows_reads_what_is_there_now() -> Result<()> {
    let mut other = create_database(cluster(), "remembered")?;
    other.batch_execute("SELECT bump('n' || n, n) FROM generate_series(1, 2000) n")?;
    settle(&mut other)?;
    let mut reader = cluster().connect_db("remembered")?;
    check(&mut reader)?;
    let mut old = cluster().connect_db("remembered")?;
    let mut snapshot = old
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()?;
    check(&mut snapshot)?;
    let changes = "SELECT bump('n' || n, 3) FROM generate_series(1, 2000) n";
    let drops = "SELECT counter_drop(name) FROM counters WHERE name NOT LIKE 'n1%';
                 DELETE FROM oracle WHERE name NOT LIKE 'n1%'";
    let others = "SELECT bump('m' || n, n) FROM generate_series(1, 1500) n";
    for round in 0..2 {
        for statement in [
            changes,
            drops,
            "VACUUM (TRUNCATE) counterx.total",
            others,
            "VACUUM (TRUNCATE) counterx.state",
            drops,
            "VACUUM FULL counterx.total",
            "VACUUM FULL counterx.state",
            changes,
        ] {
            other.batch_execute(statement).context(statement)?;
            // Pending first, then folded.
            check(&mut reader)?;
            settle(&mut other)?;
            check(&mut reader).with_context(|| format!("after {statement}"))?;
            if round == 0 {
                check(&mut snapshot).with_context(|| format!("snapshot after {statement}"))?;
            }
        }
        // Only then there is something for VACUUM to remove.
        if round == 0 {
            snapshot.batch_execute("COMMIT")?;
        }
    }
    // Rows of states move every 64 epochs, and others come to where they were.
    for round in 0..200 {
        other.batch_execute("SELECT bump('n' || n, 1) FROM generate_series(10, 30) n")?;
        compact(&mut other)?;
        if round % 10 == 0 {
            other.batch_execute("VACUUM counterx.state")?;
        }
        if round % 50 == 49 {
            check(&mut reader).with_context(|| format!("round {round}"))?;
        }
    }
    Ok(())
}

fn changes(client: &mut Client, slot: &str) -> Result<Vec<String>> {
    let sql = "SELECT data FROM pg_logical_slot_peek_changes($1, NULL, NULL)";
    Ok(client
        .query(sql, &[&slot])?
        .iter()
        .map(|row| row.get(0))
        .collect())
}

#[test]
fn publication_of_all_tables_neither_breaks_anything_nor_ships_the_logs() -> Result<()> {
    let mut client = create_database(cluster(), "published")?;
    client.batch_execute("CREATE PUBLICATION everything FOR ALL TABLES")?;
    for (slot, plugin) in [("decoding", "test_decoding"), ("output", "pgoutput")] {
        client.execute(
            "SELECT pg_create_logical_replication_slot($1, $2)",
            &[&slot, &plugin],
        )?;
    }
    let before = footprint(&mut client)?;
    let load = Load {
        clients: 4,
        transactions: 150,
        two_phase: true,
        ..Load::default()
    };
    under_watch(&cluster().config("published"), &load, |_| Ok(()))?;
    // Late deltas are deleted by the fold, from a table that has no key to publish deletes by.
    client.batch_execute("BEGIN; SELECT bump('late', 3); PREPARE TRANSACTION 'published'")?;
    client.batch_execute("COMMIT PREPARED 'published'")?;
    // An early flush goes another way into the logs.
    client.batch_execute(
        "BEGIN; SET LOCAL counterx.pending_work_mem = '64kB';
         SELECT bump('many' || n, n) FROM generate_series(1, 3000) n; COMMIT",
    )?;
    settle(&mut client)?;
    check(&mut client)?;
    let after = footprint(&mut client)?;
    ensure!(
        after.folded > before.folded,
        "nothing was folded: {before:?} {after:?}"
    );

    let changes = changes(&mut client, "decoding")?;
    let shipped = |what: &str| changes.iter().filter(|line| line.contains(what)).count();
    ensure!(
        shipped("table public.oracle: INSERT") > 100,
        "the oracle's rows are not there"
    );
    let rows: Vec<_> = changes
        .iter()
        .filter(|line| line.starts_with("table counterx.log_") && !line.contains(": TRUNCATE:"))
        .take(3)
        .collect();
    ensure!(rows.is_empty(), "rows of the logs are shipped: {rows:#?}");
    let binary = client.query_one(
        "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('output', NULL, NULL,
            'proto_version', '1', 'publication_names', 'everything')",
        &[],
    )?;
    ensure!(binary.get::<_, i64>(0) > 100);
    client.batch_execute(
        "SELECT pg_drop_replication_slot('decoding'), pg_drop_replication_slot('output')",
    )?;
    Ok(())
}

#[test]
fn publication_of_all_tables_ships_no_token_neither_coming_nor_going() -> Result<()> {
    let mut client = create_database(cluster(), "tokens")?;
    client.batch_execute(changes_schema())?;
    client.batch_execute("CREATE PUBLICATION everything FOR ALL TABLES")?;
    for (slot, plugin) in [
        ("tokens_text", "test_decoding"),
        ("tokens_output", "pgoutput"),
    ] {
        client.execute(
            "SELECT pg_create_logical_replication_slot($1, $2)",
            &[&slot, &plugin],
        )?;
    }
    let load = Load {
        clients: 4,
        transactions: 60,
        names: 3,
        two_phase: true,
        checkers: 0,
        ..Load::default()
    };
    // Tokens expire meanwhile, and are new again; the load's own book of them would say so.
    client.batch_execute("ALTER TABLE once DROP CONSTRAINT once_pkey")?;
    client.batch_execute(
        "CREATE OR REPLACE FUNCTION change_once_get(token text, name text, delta bigint) RETURNS void
         LANGUAGE sql AS $$ SELECT change_once(token || ' too', name, delta) $$",
    )?;
    changes_under_watch(&cluster().config("tokens"), &load, |_| Ok(()))?;
    client.batch_execute(
        "SELECT count(counter_incr_once('token ' || n, 'n:once')) FROM generate_series(1, 1500) n;
         INSERT INTO oracle VALUES ('n:once', 1500)",
    )?;
    poll_until("all tokens to go", DEADLINE, || {
        let sql = "SELECT count(*) FROM counterx.token";
        Ok(client.query_one(sql, &[])?.get::<_, i64>(0) == 0)
    })?;
    settle(&mut client)?;
    agree(&mut client)?;

    let changes = changes(&mut client, "tokens_text")?;
    let oracle = changes
        .iter()
        .filter(|line| line.contains("table public.oracle: INSERT"))
        .count();
    ensure!(oracle > 50, "the oracle's rows are not there");
    // That a row goes is decoded, but nothing of the row; so publications leave it out.
    let rows: Vec<_> = changes
        .iter()
        .filter(|line| line.starts_with("table counterx.token:") && !line.contains("no-tuple-data"))
        .take(3)
        .collect();
    ensure!(rows.is_empty(), "tokens are decoded: {rows:#?}");
    let row = client.query_one(
        r"SELECT count(*) FILTER (WHERE get_byte(data, 0) = ascii('I')),
                 count(*) FILTER (WHERE get_byte(data, 0) = ascii('R')
                                    AND position('\x636f756e7465727800746f6b656e00'::bytea IN data) > 0),
                 count(*) FILTER (WHERE get_byte(data, 0) = ascii('R')
                                    AND position('\x7075626c6963006f7261636c6500'::bytea IN data) > 0)
            FROM pg_logical_slot_peek_binary_changes('tokens_output', NULL, NULL,
                'proto_version', '1', 'publication_names', 'everything')",
        &[],
    )?;
    let (inserts, token, oracle): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    // A relation is described before its first row.
    ensure!(inserts > 50 && oracle > 0, "{inserts} inserts");
    ensure!(token == 0, "something of the tokens is shipped");
    client.batch_execute(
        "SELECT pg_drop_replication_slot('tokens_text'), pg_drop_replication_slot('tokens_output')",
    )?;
    Ok(())
}

/// Two databases of one server that publish and subscribe to all tables: each has its own counters,
/// also where both have counted under the same names, folded and not.
/// A transaction that is being applied has changed totals of the publisher's; that holds up no fold.
fn fold_beside_a_long_apply(there: &mut Client, here: &mut Client) -> Result<()> {
    const COUNT: &str = "SELECT counter_incr('x' || n) FROM generate_series(1, 40) n";
    for client in [&mut *there, &mut *here] {
        client.batch_execute(COUNT)?;
        settle(client)?;
    }
    here.batch_execute(
        "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             PERFORM pg_catalog.pg_advisory_xact_lock(4711);
             RETURN NULL;
         END $$;
         CREATE TRIGGER linger AFTER INSERT ON goods FOR EACH ROW WHEN (NEW.id = 0)
             EXECUTE FUNCTION linger();
         ALTER TABLE goods ENABLE ALWAYS TRIGGER linger;
         SELECT pg_advisory_lock(4711)",
    )?;
    there.batch_execute("ALTER DATABASE publishing SET counterx.compaction = off")?;
    there.batch_execute(COUNT)?;
    there.batch_execute(
        "BEGIN; SELECT counterx.compact(); INSERT INTO goods VALUES (0, 0); COMMIT",
    )?;
    let waits = "SELECT count(*) > 0 FROM pg_stat_activity
                  WHERE backend_type IN ('logical replication worker', 'logical replication apply worker')
                    AND wait_event = 'advisory'";
    poll_until("the apply worker to wait", DEADLINE, || {
        Ok(here.query_one(waits, &[])?.get(0))
    })?;
    here.batch_execute(COUNT)?;
    settle(here)?;
    let waits: bool = here.query_one(waits, &[])?.get(0);
    ensure!(waits, "nothing was applied meanwhile");
    here.batch_execute("SELECT pg_advisory_unlock(4711); DROP TRIGGER linger ON goods")?;
    there.batch_execute("ALTER DATABASE publishing RESET counterx.compaction")?;
    Ok(())
}

#[test]
fn subscriber_to_all_tables_keeps_its_own_counters_and_gets_the_rest() -> Result<()> {
    let mut there = create_database(cluster(), "publishing")?;
    let mut here = create_database(cluster(), "subscribing")?;
    let count = |client: &mut Client, db: &str, n: i64| -> Result<()> {
        client.batch_execute(&format!(
            "SELECT counter_incr('x', {n}), counter_incr('only {db}', {n}),
                    counter_incr_once('token ' || {n}, 'x', 0);"
        ))?;
        settle(client)?;
        client.batch_execute(&format!("SELECT counter_incr('x', {n})"))?;
        Ok(())
    };
    for (client, min) in [(&mut there, -1), (&mut here, -2)] {
        client.batch_execute("CREATE TABLE goods (id int PRIMARY KEY, amount int)")?;
        client.execute(
            "SELECT counter_type_create('stock', min => $1)",
            &[&i64::from(min)],
        )?;
    }
    count(&mut there, "there", 100)?;
    count(&mut here, "here", 3)?;
    there.batch_execute(
        "CREATE PUBLICATION subscribed FOR ALL TABLES;
         INSERT INTO goods SELECT n, n FROM generate_series(1, 10) n",
    )?;
    // What a subscriber's own trigger calls is no row of another server.
    here.batch_execute(
        "CREATE FUNCTION make_type() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             PERFORM public.counter_type_create('goods' || NEW.id, min => 0);
             PERFORM public.counter_type_alter('goods' || NEW.id, min => -NEW.id);
             RETURN NULL;
         END $$;
         CREATE TRIGGER make_type AFTER INSERT ON goods FOR EACH ROW WHEN (NEW.id > 10)
             EXECUTE FUNCTION make_type();
         ALTER TABLE goods ENABLE ALWAYS TRIGGER make_type",
    )?;
    there.batch_execute("SELECT pg_create_logical_replication_slot('subscribed', 'pgoutput')")?;
    here.batch_execute(&format!(
        "CREATE SUBSCRIPTION subscribed CONNECTION 'host={} port={} user=postgres dbname=publishing'
         PUBLICATION subscribed WITH (create_slot = false)",
        cluster().socket_dir().display(),
        cluster().port()
    ))?;
    // Some of it comes with the first copy, some later.
    for round in 1..=3 {
        there.batch_execute(&format!(
            "UPDATE goods SET amount = amount + {round};
             INSERT INTO goods VALUES (10 + {round}, 0)"
        ))?;
        count(&mut there, "there", 1000 + round)?;
        count(&mut here, "here", 3 + round)?;
        let goods = "SELECT array_agg(g::text ORDER BY id) FROM goods g";
        let sent: Vec<String> = there.query_one(goods, &[])?.get(0);
        poll_until("the rows to arrive", DEADLINE, || {
            let errors: i64 = here
                .query_one(
                    "SELECT (apply_error_count + sync_error_count)::bigint
                       FROM pg_stat_subscription_stats WHERE subname = 'subscribed'",
                    &[],
                )?
                .get(0);
            ensure!(errors == 0, "the subscription has failed {errors} times");
            let synced: bool = here
                .query_one(
                    "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel",
                    &[],
                )?
                .get(0);
            let arrived: Option<Vec<String>> = here.query_one(goods, &[])?.get(0);
            Ok(synced && arrived.as_ref() == Some(&sent))
        })?;
    }
    settle(&mut here)?;
    let sql = "SELECT array_agg(name || '=' || value ORDER BY name) FROM counters";
    let counters: Vec<String> = here.query_one(sql, &[])?.get(0);
    ensure!(counters == ["only here=18", "x=36"], "{counters:?}");
    fold_beside_a_long_apply(&mut there, &mut here)?;
    let sql = "SELECT (SELECT count(*) FROM counterx.token), (SELECT min FROM counter_types WHERE name = 'stock'),
                      (SELECT string_agg(name || min, ' ' ORDER BY name) FROM counter_types WHERE name <> 'stock')";
    let row = here.query_one(sql, &[])?;
    ensure!(row.get::<_, i64>(1) == -2, "a type has arrived");
    let types: &str = row.get(2);
    ensure!(types == "goods11-11 goods12-12 goods13-13", "{types}");
    here.batch_execute(
        "ALTER SUBSCRIPTION subscribed DISABLE;
         ALTER SUBSCRIPTION subscribed SET (slot_name = NONE)",
    )?;
    here.batch_execute("DROP SUBSCRIPTION subscribed")?;
    let sql = "SELECT pg_drop_replication_slot(slot_name)
                 FROM pg_replication_slots WHERE NOT active AND database = 'publishing'";
    poll_until("the slot to be free", DEADLINE, || {
        Ok(there.execute(sql, &[])? == 1)
    })?;
    Ok(())
}
