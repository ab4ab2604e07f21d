//! PREPARE TRANSACTION: counted once it commits, once, whenever that is; never in anybody's way.

use anyhow::{Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, check, compact, create_database, names_in_lanes, refused, settle, shared,
    wait_for_blocked,
};
use counterx_harness::{Cluster, StopMode, poll_until};
use postgres::error::SqlState;
use postgres::{Client, Row};

fn start(name: &str) -> Result<Cluster> {
    Cluster::builder()
        .name(name)
        .conf("counterx.compaction_interval", "20ms")
        .start()
}

fn cluster() -> &'static Cluster {
    shared(|| start("two-phase"))
}

fn value(client: &mut Client, name: &str) -> Result<i64> {
    Ok(client
        .query_one("SELECT counter_value($1)", &[&name])?
        .get(0))
}

fn late(client: &mut Client) -> Result<i64> {
    Ok(client
        .query_one("SELECT count(*) FROM counterx.late", &[])?
        .get(0))
}

/// Prepares three transactions with other work in between, has the server go down, ends them.
fn across(cluster: &mut Cluster, down_and_up: impl Fn(&mut Cluster) -> Result<()>) -> Result<()> {
    let mut client = create_database(cluster, "across")?;
    client.batch_execute("SELECT bump('a', 1)")?;
    client.batch_execute(
        "BEGIN;
         SELECT bump('a', 5); SELECT bump('b', 7);
         SAVEPOINT s; SELECT bump('a', 100); ROLLBACK TO s; SELECT bump('b', 1); RELEASE s;
         PREPARE TRANSACTION 'stays'",
    )?;
    // The same backend goes on: what was prepared is no longer its business.
    client.batch_execute("SELECT bump('a', 10)")?;
    client.batch_execute("BEGIN; SELECT bump('a', 1000); ROLLBACK")?;
    client.batch_execute("BEGIN; SELECT bump('b', 20); SELECT bump('a', -3); COMMIT")?;
    client.batch_execute("BEGIN; SELECT bump('a', 500); PREPARE TRANSACTION 'goes'")?;
    client.batch_execute("BEGIN; SELECT 1; PREPARE TRANSACTION 'has no increment'")?;
    client.batch_execute("SELECT bump('c', 1)")?;
    check(&mut client)?;
    ensure!(value(&mut client, "a")? == 8 && value(&mut client, "b")? == 20);
    drop(client);

    down_and_up(cluster)?;

    let mut client = cluster.connect_db("across")?;
    check(&mut client)?;
    ensure!(value(&mut client, "a")? == 8 && value(&mut client, "b")? == 20);
    client.batch_execute("SELECT bump('a', 30)")?;
    client.batch_execute("COMMIT PREPARED 'stays'")?;
    check(&mut client)?;
    ensure!(value(&mut client, "a")? == 43 && value(&mut client, "b")? == 28);
    client.batch_execute("ROLLBACK PREPARED 'goes'")?;
    client.batch_execute("COMMIT PREPARED 'has no increment'")?;
    client.batch_execute("SELECT bump('a', 1)")?;
    check(&mut client)?;
    settle(&mut client)?;
    ensure!(late(&mut client)? == 0);
    check(&mut client)?;
    ensure!(value(&mut client, "a")? == 44 && value(&mut client, "b")? == 28);
    Ok(())
}

#[test]
fn prepared_transaction_survives_a_restart_and_counts_once() -> Result<()> {
    across(&mut start("two-phase-restart")?, |cluster| {
        cluster.restart(StopMode::Fast)
    })
}

#[test]
fn prepared_transaction_survives_a_killed_postmaster_and_counts_once() -> Result<()> {
    across(&mut start("two-phase-kill")?, |cluster| {
        cluster.kill_postmaster()?;
        cluster.start()
    })
}

#[test]
fn transaction_in_doubt_does_not_stop_its_lane() -> Result<()> {
    let mut client = create_database(cluster(), "doubt")?;
    let mut other = cluster().connect_db("doubt")?;
    client.batch_execute("BEGIN; SELECT bump('x', 5); PREPARE TRANSACTION 'doubt'")?;
    let folded = "SELECT coalesce(sum(folded_epoch), 0)::bigint FROM counterx.lanes";
    for round in 1..=5_i64 {
        let before: i64 = other.query_one(folded, &[])?.get(0);
        other.batch_execute("SELECT bump('x', 1)")?;
        poll_until("the lane to be folded", DEADLINE, || {
            let after: i64 = other.query_one(folded, &[])?.get(0);
            Ok(after > before)
        })?;
        check(&mut other)?;
        ensure!(value(&mut other, "x")? == round);
    }
    let sql = "SELECT value::bigint FROM counterx.total WHERE name = 'x' ORDER BY gen DESC LIMIT 1";
    ensure!(
        other.query_one(sql, &[])?.get::<_, i64>(0) == 5,
        "the deltas are not in the total"
    );

    other.batch_execute("COMMIT PREPARED 'doubt'")?;
    ensure!(value(&mut other, "x")? == 10);
    check(&mut other)?;
    // No commit of a session told the worker; the next one does.
    client.batch_execute("SELECT bump('x', 1)")?;
    settle(&mut client)?;
    ensure!(late(&mut client)? == 0);
    check(&mut client)?;
    ensure!(client.query_one(sql, &[])?.get::<_, i64>(0) == 11);
    Ok(())
}

#[test]
fn late_deltas_are_folded_by_hand_too() -> Result<()> {
    let mut client = create_database(cluster(), "byhand")?;
    client.batch_execute(
        "ALTER DATABASE byhand SET counterx.compaction = off;
         BEGIN; SELECT bump('x', 5); PREPARE TRANSACTION 'byhand'",
    )?;
    client.batch_execute("COMMIT PREPARED 'byhand'")?;
    ensure!(late(&mut client)? == 1);
    check(&mut client)?;
    let folded = compact(&mut client)?;
    ensure!(folded == 1, "compact() says that it folded {folded}");
    ensure!(late(&mut client)? == 0);
    check(&mut client)?;
    Ok(())
}

/// What is late tells adjustments from increments as the logs do.
#[test]
fn late_deltas_have_their_kinds() -> Result<()> {
    let mut client = create_database(cluster(), "kinds")?;
    client.batch_execute(
        "ALTER DATABASE kinds SET counterx.compaction = off;
         SELECT counter_incr('moved', 2), counter_incr('gone', 3)",
    )?;
    client.batch_execute(
        "BEGIN;
         SELECT counter_incr('both', 5), counter_incr('counted', 7), counter_set('both', 4);
         SELECT counter_set('set', 6), counter_rename('moved', 'new'), counter_drop('gone');
         SAVEPOINT s; SELECT counter_set('counted', 100); ROLLBACK TO s;
         PREPARE TRANSACTION 'kinds'",
    )?;
    client.batch_execute("COMMIT PREPARED 'kinds'")?;
    let rows = client.query(
        "SELECT concat_ws(' ', name, delta, coalesce(uses, 1), coalesce(kind, '-')) FROM counterx.late
         ORDER BY name, kind NULLS FIRST",
        &[],
    )?;
    let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let expected = [
        "both 5 1 -",
        "both -1 1 a",
        "counted 7 1 -",
        "gone -3 -1 a",
        "moved -2 -1 a",
        "new 2 1 a",
        "set 6 1 a",
    ];
    ensure!(rows == expected, "{rows:?}");
    let values = "SELECT string_agg(concat_ws('=', name, value), ' ' ORDER BY name) FROM counters";
    for late_rows in [expected.len() as i64, 0] {
        let values: String = client.query_one(values, &[])?.get(0);
        ensure!(values == "both=4 counted=7 new=2 set=6", "{values}");
        ensure!(late(&mut client)? == late_rows);
        compact(&mut client)?;
    }
    Ok(())
}

#[test]
fn rolled_back_prepared_transaction_counts_nothing() -> Result<()> {
    let mut client = create_database(cluster(), "rolledback")?;
    client.batch_execute("BEGIN; SELECT bump('x', 5); PREPARE TRANSACTION 'rolledback'")?;
    client.batch_execute("SELECT bump('x', 1)")?;
    client.batch_execute("ROLLBACK PREPARED 'rolledback'")?;
    client.batch_execute("SELECT bump('x', 1)")?;
    settle(&mut client)?;
    check(&mut client)?;
    ensure!(value(&mut client, "x")? == 2);
    Ok(())
}

#[test]
fn failed_prepare_counts_nothing_and_leaves_nothing() -> Result<()> {
    let mut client = create_database(cluster(), "failed")?;
    client.batch_execute("BEGIN; SELECT bump('x', 5); PREPARE TRANSACTION 'twice'")?;
    let again = client.batch_execute("BEGIN; SELECT bump('x', 7); PREPARE TRANSACTION 'twice'");
    refused(again, &SqlState::DUPLICATE_OBJECT)?;
    client.batch_execute("ROLLBACK")?;
    // A temporary table makes PREPARE fail after the callbacks of extensions have run.
    client.batch_execute("CREATE TEMP TABLE t (x int)")?;
    let temp = client.batch_execute(
        "BEGIN; SELECT bump('x', 7); INSERT INTO t VALUES (1); PREPARE TRANSACTION 'temporary'",
    );
    refused(temp, &SqlState::FEATURE_NOT_SUPPORTED)?;
    client.batch_execute("ROLLBACK")?;
    client.batch_execute("SELECT bump('x', 1)")?;
    client.batch_execute("COMMIT PREPARED 'twice'")?;
    check(&mut client)?;
    ensure!(value(&mut client, "x")? == 6);
    client.batch_execute("SELECT bump('x', 1)")?;
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}

#[test]
fn several_prepared_transactions_of_one_counter_end_in_any_order() -> Result<()> {
    let mut client = create_database(cluster(), "several")?;
    for number in 0..6 {
        client.batch_execute(&format!(
            "BEGIN; SELECT bump('x', {}); PREPARE TRANSACTION 'several {number}'",
            10_i64.pow(number)
        ))?;
    }
    for (number, verb) in [(3, "COMMIT"), (0, "ROLLBACK"), (5, "COMMIT"), (1, "COMMIT")] {
        client.batch_execute(&format!("{verb} PREPARED 'several {number}'"))?;
        check(&mut client)?;
        client.batch_execute("SELECT bump('y', 1)")?;
    }
    ensure!(value(&mut client, "x")? == 101_010);
    settle(&mut client)?;
    check(&mut client)?;
    client.batch_execute("ROLLBACK PREPARED 'several 2'; ")?;
    client.batch_execute("COMMIT PREPARED 'several 4'")?;
    ensure!(value(&mut client, "x")? == 111_010);
    Ok(())
}

/// Calls that lock a counter, each prepared; what the counter is worth before and after.
const LOCKING: [(&str, &str, i64); 4] = [
    ("reset", "SELECT counter_reset('x')", 0),
    ("set", "SELECT counter_set('x', 7)", 7),
    ("drop", "SELECT counter_drop('x')", 0),
    ("rename", "SELECT counter_rename('x', 'y')", 0),
];

/// Runs `sql` in a second session, which has to wait; `let_go` ends that. What the second was told.
fn told_after_waiting(
    mut second: Client,
    sql: &str,
    client: &mut Client,
    let_go: impl FnOnce(&mut Client) -> Result<()>,
) -> Result<Row> {
    let pid: i32 = second.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    std::thread::scope(|scope| {
        let second = scope.spawn(move || second.query_one(sql, &[]));
        wait_for_blocked(client, "the second", pid)?;
        let_go(client)?;
        Ok(second
            .join()
            .unwrap_or_else(|_| panic!("the second panicked"))?)
    })
}

/// The lock of a prepared transaction outlives the server: another one that depends on the value
/// waits until the first has ended, and then takes what that one has left.
#[test]
fn prepared_change_keeps_its_counter_locked_over_a_crash() -> Result<()> {
    let mut cluster = start("two-phase-locks")?;
    let mut client = create_database(&cluster, "locks")?;
    client.batch_execute("ALTER DATABASE locks SET lock_timeout = '60s'")?;
    for (verb, left) in [("COMMIT", true), ("ROLLBACK", false)] {
        for (name, sql, value_after) in LOCKING {
            let mut client = cluster.connect_db("locks")?;
            client.batch_execute(
                "SELECT counter_drop('x'), counter_drop('y'); SELECT counter_incr('x', 100)",
            )?;
            client.batch_execute(&format!("BEGIN; {sql}; PREPARE TRANSACTION 'p'"))?;
            client.batch_execute("SELECT counter_incr('x', 5)")?;
            drop(client);
            // Either way comes twice.
            if name == "reset" || name == "rename" {
                cluster.kill_postmaster()?;
                cluster.start()?;
            }
            let mut client = cluster.connect_db("locks")?;
            ensure!(value(&mut client, "x")? == 105, "{name}");
            let blocked =
                client.batch_execute("SET lock_timeout = '20ms'; SELECT counter_reset('x')");
            refused(blocked, &SqlState::LOCK_NOT_AVAILABLE)?;
            client.batch_execute("RESET lock_timeout")?;
            let second = cluster.connect_db("locks")?;
            let sql = "SELECT counter_reset('x')";
            let taken: i64 = told_after_waiting(second, sql, &mut client, |client| {
                client.batch_execute("SELECT counter_incr('x', 1)")?;
                Ok(client.batch_execute(&format!("{verb} PREPARED 'p'"))?)
            })?
            .get(0);
            let expected = 6 + if left { value_after } else { 100 };
            ensure!(
                taken == expected,
                "{verb} {name}: took {taken}, not {expected}"
            );
            ensure!(value(&mut client, "x")? == 0);
            let moved = if left && name == "rename" { 100 } else { 0 };
            ensure!(value(&mut client, "y")? == moved);
            client.batch_execute("SELECT counter_incr('x')")?;
            settle(&mut client)?;
            ensure!(value(&mut client, "x")? == 1 && value(&mut client, "y")? == moved);
        }
    }
    Ok(())
}

#[test]
fn token_of_a_prepared_transaction_counts_as_it_ends() -> Result<()> {
    let mut cluster = start("two-phase-tokens")?;
    create_database(&cluster, "tokens")?;
    for (verb, applied) in [("COMMIT", false), ("ROLLBACK", true)] {
        let mut client = cluster.connect_db("tokens")?;
        client.batch_execute(&format!(
            "BEGIN; SELECT counter_incr_once('{verb}', 'x', 5); PREPARE TRANSACTION 'p'"
        ))?;
        drop(client);
        cluster.kill_postmaster()?;
        cluster.start()?;
        let mut client = cluster.connect_db("tokens")?;
        let sql = format!("SELECT counter_incr_once('{verb}', 'x', 5)");
        let blocked = client.batch_execute(&format!("SET statement_timeout = '50ms'; {sql}"));
        refused(blocked, &SqlState::QUERY_CANCELED)?;
        client.batch_execute("RESET statement_timeout")?;
        let before = value(&mut client, "x")?;
        let second = cluster.connect_db("tokens")?;
        let second: bool = told_after_waiting(second, &sql, &mut client, |client| {
            Ok(client.batch_execute(&format!("{verb} PREPARED 'p'"))?)
        })?
        .get(0);
        ensure!(second == applied, "{verb}: the second was told {second}");
        ensure!(value(&mut client, "x")? == before + 5, "{verb}");
        // A commit of a session's own tells the worker.
        client.batch_execute("SELECT counter_incr('y')")?;
        settle(&mut client)?;
        ensure!(value(&mut client, "x")? == before + 5, "{verb}");
    }
    Ok(())
}

/// A prepared drop is folded with the late deltas, before the log rows that it has dropped, when those
/// are of a newer epoch than the fold's. Totals are less than nothing then; no snapshot may show it.
#[test]
fn late_drop_is_folded_before_what_it_has_dropped() -> Result<()> {
    let mut client = create_database(cluster(), "latedrop")?;
    client.batch_execute("ALTER DATABASE latedrop SET counterx.compaction = off")?;
    let mut client = cluster().connect_db("latedrop")?;
    let name = names_in_lanes(&mut client)?.swap_remove(0);
    let look = |client: &mut Client, expected: i64| -> Result<()> {
        let sql = "SELECT coalesce((SELECT sum(value) FROM counters WHERE name LIKE 'lane:%'), 0)::bigint,
                          (SELECT coalesce(sum(value), 0)::bigint FROM counters WHERE name = $1),
                          (SELECT coalesce(sum(value), 0)::bigint FROM counter_list('lane:')),
                          (SELECT coalesce(sum(value), 0)::bigint FROM counter_top(5, 'lane:')),
                          (SELECT coalesce(sum(value), 0)::bigint FROM counter_bottom(5, 'lane:')),
                          (SELECT value FROM counter_values(ARRAY[$1])),
                          counter_value($1), counter_sum('lane:')::bigint";
        let row = client.query_one(sql, &[&name])?;
        for column in 0..row.len() {
            let got: i64 = row.get(column);
            ensure!(
                got == expected,
                "reader {column} says {got}, not {expected}"
            );
        }
        let sql = "SELECT (SELECT count(*) FROM counters WHERE name LIKE 'lane:%'),
                          (SELECT count(*) FROM counter_list('lane:')),
                          (SELECT count(*) FROM counter_top(5, 'lane:'))";
        let row = client.query_one(sql, &[])?;
        for column in 0..row.len() {
            let got: i64 = row.get(column);
            ensure!(
                (got == 1) == (expected != 0),
                "reader {column} lists {got} counters"
            );
        }
        Ok(())
    };
    let total = "SELECT coalesce(sum(uses), 0)::bigint FROM counterx.total WHERE name = $1";
    for value_index in [false, true] {
        if value_index {
            client.batch_execute("SELECT counterx.create_value_index()")?;
        }
        // Somebody who keeps his epoch open, so that a fold has to wait after it has published.
        let mut writer = cluster().connect_db("latedrop")?;
        writer.batch_execute(
            "BEGIN; SET LOCAL counterx.pending_work_mem = '64kB';
             SELECT counter_incr('held back ' || n) FROM generate_series(1, 3000) n",
        )?;
        let mut folder = cluster().connect_db("latedrop")?;
        let pid: i32 = folder.query_one("SELECT pg_backend_pid()", &[])?.get(0);
        let mut old = cluster().connect_db("latedrop")?;
        let snapshot = std::thread::scope(|scope| -> Result<_> {
            let fold = scope.spawn(move || folder.batch_execute("SELECT counterx.compact()"));
            wait_for_blocked(&mut client, "the fold", pid)?;
            client.execute("SELECT counter_incr($1, 10)", &[&name])?;
            client.execute("SELECT counter_incr($1, 20)", &[&name])?;
            let mut snapshot = old
                .build_transaction()
                .isolation_level(postgres::IsolationLevel::RepeatableRead)
                .start()?;
            snapshot.query_one("SELECT counter_value($1)", &[&name])?;
            client.batch_execute(&format!(
                "BEGIN; SELECT counter_drop('{name}'); PREPARE TRANSACTION 'latedrop'"
            ))?;
            look(&mut client, 30)?;
            client.batch_execute("COMMIT PREPARED 'latedrop'")?;
            look(&mut client, 0)?;
            writer.batch_execute("ROLLBACK")?;
            fold.join()
                .unwrap_or_else(|_| panic!("the folder panicked"))?;
            Ok(snapshot)
        })?;
        let mut snapshot = snapshot;
        let uses: i64 = client.query_one(total, &[&name])?.get(0);
        ensure!(
            uses == -2,
            "the total has {uses} uses: the drop was not folded first"
        );
        look(&mut client, 0)?;
        client.execute("SELECT counter_incr($1, 3)", &[&name])?;
        look(&mut client, 3)?;
        compact(&mut client)?;
        look(&mut client, 3)?;
        let uses: i64 = client.query_one(total, &[&name])?.get(0);
        ensure!(uses == 1, "the total has {uses} uses");
        let seen = snapshot.query_one(
            "SELECT counter_value($1), value::bigint FROM counters WHERE name = $1",
            &[&name],
        )?;
        ensure!(seen.get::<_, i64>(0) == 30 && seen.get::<_, i64>(1) == 30);
        snapshot.commit()?;
        client.execute("SELECT counter_drop($1)", &[&name])?;
        look(&mut client, 0)?;
        compact(&mut client)?;
        look(&mut client, 0)?;
        let rows = "SELECT count(*) FROM counterx.total WHERE name = $1";
        let rows: i64 = client.query_one(rows, &[&name])?.get(0);
        ensure!(rows == 0, "a total is left");
    }
    Ok(())
}
