//! The value index: what it costs and does not cost others, and that ranks are exact with it, without
//! it, and while it comes and goes.

use anyhow::{Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, Load, Maintenance, agree, changes_schema, changes_under_watch, create_database,
    folding_hard, refused, settle, shared, totals_are_clean,
};
use counterx_harness::{Cluster, poll_until};
use postgres::error::SqlState;
use postgres::{Client, IsolationLevel};

fn cluster() -> &'static Cluster {
    shared(|| {
        folding_hard("value-index")
            .conf("deadlock_timeout", "20ms")
            .start()
    })
}

fn database(name: &str, counters: i32) -> Result<Client> {
    let mut client = create_database(cluster(), name)?;
    client.batch_execute(changes_schema())?;
    client.execute(
        "SELECT bump('n:' || n, n) FROM generate_series(1, $1::int) n",
        &[&counters],
    )?;
    settle(&mut client)?;
    Ok(client)
}

fn says(client: &mut Client, sql: &str) -> Result<bool> {
    Ok(client.query_one(sql, &[])?.get(0))
}

/// More counters of one prefix than are read by name where there is a value index.
const MANY: i32 = 1200;

const CREATE: &str = "SELECT counterx.create_value_index()";
const DROP: &str = "SELECT counterx.drop_value_index()";

/// The value indexes: names, and whether they are valid.
fn indexes(client: &mut Client) -> Result<String> {
    let sql = "SELECT coalesce(string_agg(indexrelid::regclass::text || CASE WHEN indisvalid THEN '' ELSE ' (invalid)' END,
                                          ' ' ORDER BY indexrelid), '')
                 FROM pg_index WHERE indrelid = 'counterx.total'::regclass AND indkey::text = '3 1'";
    Ok(client.query_one(sql, &[])?.get(0))
}

/// How often value indexes were scanned, by this session and others that have said so.
fn scans(client: &mut Client) -> Result<i64> {
    let sql = "SELECT coalesce(sum(pg_stat_get_numscans(indexrelid)), 0)::bigint FROM pg_index
                WHERE indrelid = 'counterx.total'::regclass AND indkey::text = '3 1'";
    Ok(client.query_one(sql, &[])?.get(0))
}

#[test]
fn while_it_is_built_others_count_and_read_and_folding_catches_up_afterwards() -> Result<()> {
    let mut client = database("building", MANY)?;
    // Whoever has to wait fails.
    client.batch_execute("SET lock_timeout = '5s'")?;
    for end in ["ROLLBACK", "COMMIT"] {
        let mut builder = cluster().connect_db("building")?;
        builder.batch_execute("BEGIN")?;
        ensure!(says(&mut builder, CREATE)?);
        client.batch_execute(
            "SELECT bump('n:' || n, 1000 * n) FROM generate_series(490, 510) n;
             SELECT bump('d:1', 5); SELECT change_set('n:3', 77777);
             SELECT change_once('a token ' || pg_current_xact_id()::text, 'p:1', 3);
             SELECT change_take('d:1', 'd:tmp:1:');",
        )?;
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
        client.batch_execute("SELECT change_drop('n:5'); COMMIT")?;
        poll_until(
            "the worker to wait for the table of totals",
            DEADLINE,
            || {
                let sql = "SELECT count(*) > 0 FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                        WHERE NOT l.granted AND a.backend_type = 'counterx worker'
                          AND a.datname = current_database()";
                says(&mut client, sql)
            },
        )?;
        client.batch_execute("SELECT bump('n:2', 1234567)")?;
        agree(&mut client)?;
        // The builder's own transaction goes on as well.
        builder.batch_execute("SELECT bump('n:499', 999999999)")?;
        agree(&mut builder)?;
        builder.batch_execute(end)?;
        client.batch_execute("SELECT bump('n:2', 1)")?;
        settle(&mut client)?;
        agree(&mut client)?;
        totals_are_clean(&mut client)?;
        client.batch_execute("SELECT change_put(NULL, 'd:tmp:1:')")?;
    }
    ensure!(indexes(&mut client)? == "counterx.total_value_name");
    ensure!(!says(&mut client, CREATE)?);
    ensure!(says(&mut client, DROP)? && !says(&mut client, DROP)?);
    agree(&mut client)?;
    Ok(())
}

/// Has CREATE INDEX CONCURRENTLY fail while it waits for somebody.
fn cancelled_build(client: &mut Client, db: &str, name: &str, ready: bool) -> Result<()> {
    let mut other = cluster().connect_db(db)?;
    // Before the index is made ready, those who may write are waited for; afterwards, old snapshots.
    other.batch_execute(if ready {
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class"
    } else {
        "BEGIN; LOCK TABLE counterx.total IN ROW EXCLUSIVE MODE"
    })?;
    let phase = if ready {
        "waiting for old snapshots"
    } else {
        "waiting for writers before build"
    };
    let mut builder = cluster().connect_db(db)?;
    let pid: i32 = builder.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    let sql = format!("CREATE INDEX CONCURRENTLY {name} ON counterx.total (value DESC, name)");
    std::thread::scope(|scope| -> Result<()> {
        let build = scope.spawn(move || builder.batch_execute(&sql));
        poll_until(phase, DEADLINE, || {
            let sql =
                "SELECT count(*) FROM pg_stat_progress_create_index WHERE pid = $1 AND phase = $2";
            let found: i64 = client.query_one(sql, &[&pid, &phase])?.get(0);
            Ok(found == 1)
        })?;
        client.query_one("SELECT pg_cancel_backend($1)", &[&pid])?;
        let built = build
            .join()
            .unwrap_or_else(|_| panic!("the builder panicked"));
        refused(built, &SqlState::QUERY_CANCELED)?;
        Ok(())
    })?;
    other.batch_execute("ROLLBACK")?;
    let row = client.query_one(
        "SELECT indisready, indisvalid FROM pg_index WHERE indexrelid = ('counterx.' || $1)::regclass",
        &[&name],
    )?;
    let state: (bool, bool) = (row.get(0), row.get(1));
    ensure!(state == (ready, false), "the index is left {state:?}");
    Ok(())
}

#[test]
fn invalid_index_is_not_used_and_is_replaced() -> Result<()> {
    let db = "invalid";
    let mut client = database(db, 100)?;
    let count = |client: &mut Client| -> Result<()> {
        client.batch_execute(
            "SELECT bump('n:' || n, n % 7 * 1000) FROM generate_series(1, 100, 3) n;
             SELECT change_set('n:' || n, n) FROM generate_series(1, 20) n",
        )?;
        settle(client)?;
        agree(client)?;
        Ok(())
    };
    for ready in [false, true] {
        cancelled_build(&mut client, db, "total_value_name", ready)?;
        count(&mut client)?;
        ensure!(indexes(&mut client)? == "counterx.total_value_name (invalid)");
        ensure!(scans(&mut client)? == 0, "an invalid index was scanned");
        ensure!(says(&mut client, CREATE)?, "not replaced");
        ensure!(indexes(&mut client)? == "counterx.total_value_name");
        count(&mut client)?;
        poll_until("the index to be used", DEADLINE, || {
            client.batch_execute("SELECT * FROM counter_top(3)")?;
            Ok(scans(&mut client)? > 0)
        })?;
        ensure!(says(&mut client, DROP)?);

        // Of another name it is somebody's, and in nobody's way.
        cancelled_build(&mut client, db, "mine", ready)?;
        count(&mut client)?;
        ensure!(!says(&mut client, DROP)? && says(&mut client, CREATE)?);
        ensure!(indexes(&mut client)? == "counterx.mine (invalid) counterx.total_value_name");
        count(&mut client)?;
        ensure!(says(&mut client, DROP)?);
        client.batch_execute("DROP INDEX counterx.mine")?;
    }
    // One that is left invalid under our name is dropped by hand as well.
    cancelled_build(&mut client, db, "total_value_name", true)?;
    ensure!(
        !says(&mut client, DROP)?,
        "there was none that could be used"
    );
    ensure!(indexes(&mut client)?.is_empty());
    // And one that somebody has made is as good as ours.
    client.batch_execute("CREATE INDEX CONCURRENTLY mine ON counterx.total (value DESC, name)")?;
    ensure!(!says(&mut client, CREATE)?);
    count(&mut client)?;
    refused(
        client.batch_execute(DROP),
        &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
    )?;
    Ok(())
}

/// Runs loads of changes and statement after statement beside them.
fn beside_load(db: &str, statements: &[&str]) -> Result<()> {
    let mut client = database(db, 100)?;
    ensure!(says(&mut client, CREATE)?);
    let statements: Vec<String> = statements.iter().map(ToString::to_string).collect();
    let config = cluster().config(db);
    Maintenance::of(&statements, &config)?.beside(|seed, meanwhile| {
        let load = Load {
            clients: 6,
            transactions: 50,
            names: 5,
            two_phase: true,
            seed,
            ..Load::default()
        };
        let watched = changes_under_watch(&config, &load, meanwhile)?;
        ensure!(watched.checks > 0, "nobody looked: {watched:?}");
        Ok(())
    })?;
    for statement in &statements {
        client.batch_execute(statement)?;
        agree(&mut client)?;
    }
    client.batch_execute("SELECT bump('n:last', 1)")?;
    settle(&mut client)?;
    agree(&mut client)?;
    totals_are_clean(&mut client)
}

#[test]
fn ranks_are_exact_while_the_table_is_rewritten_and_its_indexes_rebuilt() -> Result<()> {
    beside_load(
        "rewritten",
        &[
            "VACUUM FULL counterx.total",
            "REINDEX TABLE counterx.total",
            "VACUUM (FREEZE, ANALYZE) counterx.total",
            "REINDEX INDEX counterx.total_value_name",
            "CLUSTER counterx.total USING total_value_name",
        ],
    )
}

#[test]
fn ranks_are_exact_while_the_index_is_rebuilt_concurrently() -> Result<()> {
    beside_load(
        "online",
        &[
            "REINDEX INDEX CONCURRENTLY counterx.total_value_name",
            "REINDEX TABLE CONCURRENTLY counterx.total",
        ],
    )
}

#[test]
fn ranks_are_exact_while_the_index_comes_and_goes() -> Result<()> {
    beside_load("comes", &[DROP, CREATE])
}

/// The index is younger than the snapshot, and rows that only the snapshot sees may not be in it.
#[test]
fn snapshot_older_than_the_index_ranks_by_its_own_truth() -> Result<()> {
    let mut client = database("older", MANY)?;
    let mut old = cluster().connect_db("older")?;
    let mut snapshot = old
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()?;
    let truth = agree(&mut snapshot)?;
    for round in 0..5 {
        client.batch_execute(&format!(
            "SELECT bump('n:' || n, (n * 7919 + {round}) % 1000 - 500) FROM generate_series(1, 500) n"
        ))?;
        settle(&mut client)?;
    }
    ensure!(says(&mut client, CREATE)?);
    ensure!(agree(&mut snapshot)? == truth);
    agree(&mut client)?;
    client.batch_execute("SELECT bump('n:' || n, n) FROM generate_series(1, 500, 2) n")?;
    settle(&mut client)?;
    ensure!(agree(&mut snapshot)? == truth);
    agree(&mut client)?;
    snapshot.commit()?;
    agree(&mut old)?;
    Ok(())
}
