//! An old snapshot keeps reading its own truth, and stops nothing but the return of space.

use anyhow::{Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, Load, agree, changes_schema, changes_under_watch, check, create_database,
    folding_hard, folds_often, footprint, pages, refused, settle, shared, totals_are_clean,
    under_watch,
};
use counterx_harness::{Cluster, poll_until};
use postgres::error::SqlState;
use postgres::{Client, GenericClient, IsolationLevel};

fn cluster() -> &'static Cluster {
    shared(|| folding_hard("snapshots").start())
}

fn values(client: &mut impl GenericClient) -> Result<String> {
    let sql =
        "SELECT string_agg(format('%s=%s/%s', name, value, counter_value(name)), ' ' ORDER BY name)
                 FROM counters";
    Ok(client.query_one(sql, &[])?.get(0))
}

fn load() -> Load {
    Load {
        clients: 8,
        transactions: 250,
        ..Load::default()
    }
}

fn old_snapshot(db: &str, isolation: IsolationLevel) -> Result<()> {
    let mut client = create_database(cluster(), db)?;
    // Little enough for no log to be full: whatever is emptied from here on, the snapshot needs.
    client.batch_execute("SELECT bump('counter:' || n, n) FROM generate_series(0, 30) n")?;
    let mut old: Client = cluster().connect_db(db)?;
    let mut snapshot = old.build_transaction().isolation_level(isolation).start()?;
    check(&mut snapshot)?;
    let truth = values(&mut snapshot)?;
    let before = footprint(&mut client)?;

    under_watch(&cluster().config(db), &load(), |control| {
        while !control.is_done() {
            check(&mut snapshot)?;
            ensure!(
                values(&mut snapshot)? == truth,
                "the snapshot's values have changed"
            );
        }
        Ok(())
    })?;
    let full = folds_often(&mut client, &before)?;
    ensure!(
        full.truncated == before.truncated,
        "emptied a log in use: {before:?} {full:?}"
    );
    ensure!(
        full.files == before.files,
        "emptied a log in use: {before:?} {full:?}"
    );
    check(&mut snapshot)?;
    ensure!(
        values(&mut snapshot)? == truth,
        "the snapshot's values have changed"
    );
    // A snapshot is no reason for a transaction not to count itself.
    snapshot.batch_execute("SELECT bump('counter:1', 1000); SELECT bump('own', 1)")?;
    check(&mut snapshot)?;
    snapshot.commit()?;

    // Space comes back as the lanes are used again: a log is emptied when its lane goes on.
    poll_until("the logs to shrink", DEADLINE, || {
        client.batch_execute("SELECT bump('counter:' || n, n) FROM generate_series(0, 60) n")?;
        let now = footprint(&mut client)?;
        Ok(now.truncated > full.truncated
            && now.files != full.files
            && now.log_bytes < full.log_bytes / 2)
    })?;
    check(&mut client)?;
    Ok(())
}

#[test]
fn repeatable_read_snapshot_reads_its_own_truth_after_many_folds_and_rotations() -> Result<()> {
    old_snapshot("repeatable", IsolationLevel::RepeatableRead)
}

#[test]
fn serializable_snapshot_reads_its_own_truth_after_many_folds_and_rotations() -> Result<()> {
    old_snapshot("serializable", IsolationLevel::Serializable)
}

#[test]
fn snapshot_that_never_looked_at_a_counter_reads_its_own_truth_too() -> Result<()> {
    let mut client = create_database(cluster(), "blind")?;
    client.batch_execute("SELECT bump('counter:' || n, n) FROM generate_series(0, 30) n")?;
    let mut old = cluster().connect_db("blind")?;
    let mut snapshot = old
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()?;
    snapshot.query_one("SELECT pg_current_snapshot()::text", &[])?;
    under_watch(&cluster().config("blind"), &load(), |_| Ok(()))?;
    ensure!(
        check(&mut snapshot)? == 31,
        "the snapshot knows counters that came later"
    );
    Ok(())
}

/// A cursor's snapshot lives on inside a READ COMMITTED transaction, and after it WITH HOLD.
#[test]
fn cursor_reads_the_truth_of_its_start() -> Result<()> {
    let mut client = create_database(cluster(), "cursors")?;
    client.batch_execute("SELECT bump('counter:' || n, n) FROM generate_series(0, 30) n")?;
    let mut old = cluster().connect_db("cursors")?;
    old.batch_execute(
        "BEGIN;
         DECLARE c CURSOR FOR
            SELECT name, value::bigint AS listed, counter_value(name) AS point,
                   (SELECT sum(delta)::bigint FROM oracle o WHERE o.name = c.name) AS oracle
              FROM counters c ORDER BY name;
         DECLARE h CURSOR WITH HOLD FOR SELECT sum(value)::bigint FROM counters;
         FETCH 3 FROM c",
    )?;
    let load = Load {
        transactions: 100,
        ..load()
    };
    under_watch(&cluster().config("cursors"), &load, |_| Ok(()))?;
    for row in old.query("FETCH ALL FROM c", &[])? {
        let (name, listed, point, oracle): (String, i64, i64, i64) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        ensure!(
            oracle == listed && oracle == point,
            "{name}: {oracle} {listed} {point}"
        );
    }
    old.batch_execute("COMMIT")?;
    let sum: i64 = old.query_one("FETCH ALL FROM h", &[])?.get(0);
    ensure!(sum == (0..=30).sum::<i64>(), "the held cursor says {sum}");
    Ok(())
}

#[test]
fn exported_snapshot_reads_the_truth_of_its_exporter() -> Result<()> {
    let mut client = create_database(cluster(), "exported")?;
    client.batch_execute("SELECT bump('counter:' || n, n) FROM generate_series(0, 30) n")?;
    let mut exporter = cluster().connect_db("exported")?;
    let mut first = exporter
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()?;
    let id: String = first.query_one("SELECT pg_export_snapshot()", &[])?.get(0);
    let load = Load {
        transactions: 100,
        ..load()
    };
    under_watch(&cluster().config("exported"), &load, |_| Ok(()))?;
    let mut importer = cluster().connect_db("exported")?;
    let mut second = importer
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()?;
    second.batch_execute(&format!("SET TRANSACTION SNAPSHOT '{id}'"))?;
    ensure!(check(&mut second)? == 31);
    ensure!(values(&mut second)? == values(&mut first)?);
    Ok(())
}

/// A snapshot from before drops, resets, renames and merges, and many folds of them.
#[test]
fn old_snapshot_keeps_counters_that_were_dropped_or_renamed_since() -> Result<()> {
    let mut client = create_database(cluster(), "changes")?;
    client.batch_execute(changes_schema())?;
    // All kinds, folded and not.
    client.batch_execute(
        "SELECT bump(kind || n, n + 1) FROM generate_series(0, 5) n, unnest(ARRAY['d:', 'p:', 'n:']) kind",
    )?;
    settle(&mut client)?;
    client.batch_execute(
        "SELECT counterx.create_value_index();
         SELECT bump(kind || n, 10) FROM generate_series(3, 8) n, unnest(ARRAY['d:', 'p:', 'n:']) kind",
    )?;
    let before = footprint(&mut client)?;
    let mut old = cluster().connect_db("changes")?;
    let mut snapshot = old
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()?;
    let truth = agree(&mut snapshot)?;
    ensure!(truth.len() == 27, "{truth:?}");
    let load = Load {
        transactions: 60,
        names: 4,
        two_phase: true,
        ..Load::default()
    };
    changes_under_watch(&cluster().config("changes"), &load, |control| {
        while !control.is_done() {
            let now = agree(&mut snapshot)?;
            ensure!(now == truth, "the snapshot says {now:?}, not {truth:?}");
        }
        Ok(())
    })?;
    client.batch_execute(
        "SELECT counter_drop(kind || n) FROM generate_series(0, 8) n, unnest(ARRAY['d:', 'p:', 'n:']) kind;
         DELETE FROM oracle WHERE name ~ '^.:[0-8]$'",
    )?;
    let after = folds_often(&mut client, &before)?;
    totals_are_clean(&mut client)?;
    agree(&mut client)?;
    ensure!(agree(&mut snapshot)? == truth, "the snapshot has changed");
    // It cannot drop what is gone already: it would take back what it sees a second time.
    for sql in [
        "SELECT counter_drop('d:1')",
        "SELECT counter_reset('p:1')",
        "SELECT counter_rename('d:2', 'new')",
        "SELECT counter_merge('n:1', 'n:2')",
    ] {
        snapshot.batch_execute("SAVEPOINT s")?;
        refused(
            snapshot.batch_execute(sql),
            &SqlState::T_R_SERIALIZATION_FAILURE,
        )?;
        snapshot.batch_execute("ROLLBACK TO s")?;
    }
    ensure!(agree(&mut snapshot)? == truth, "the snapshot has changed");
    snapshot.commit()?;

    // The dead totals can go now; and logs are emptied as the lanes are used again.
    poll_until("the dead totals to go", DEADLINE, || {
        client.batch_execute("VACUUM counterx.total")?;
        let sql =
            "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'counterx.total'::regclass";
        Ok(client.query_one(sql, &[])?.get::<_, i64>(0) == 0)
    })?;
    poll_until("a log to be emptied", DEADLINE, || {
        client.batch_execute("SELECT bump('n:' || n, n) FROM generate_series(0, 100) n")?;
        let now = footprint(&mut client)?;
        Ok(now.truncated > after.truncated && now.files != after.files)
    })?;
    agree(&mut client)?;
    Ok(())
}

/// The exclusive lock on a log takes an xid and WAL, and readers wait for it: the worker must not ask
/// for it again and again while an old snapshot needs the log's rows.
#[test]
fn log_that_an_old_snapshot_needs_is_not_locked_at_each_fold() -> Result<()> {
    // Of its own, as all that a server does takes xids.
    let cluster = folding_hard("snapshot-locks").start()?;
    let mut client = create_database(&cluster, "locks")?;
    let mut old = cluster.connect_db("locks")?;
    let mut snapshot = old
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()?;
    check(&mut snapshot)?;
    // Until each lane has gone on to its second log.
    let both = "SELECT bool_and(pg_relation_size(c.oid) > 0) FROM pg_class c
                 WHERE relnamespace = 'counterx'::regnamespace AND relname ~ '^log_._[ab]$'";
    poll_until("all lanes to change logs", DEADLINE, || {
        client.batch_execute("SELECT counter_incr('n:' || n) FROM generate_series(1, 10000) n")?;
        settle(&mut client)?;
        Ok(client.query_one(both, &[])?.get(0))
    })?;

    let look = |client: &mut Client| -> Result<(i64, i64)> {
        let sql = "SELECT (SELECT folds FROM counterx.workers),
                          pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
        let row = client.query_one(sql, &[])?;
        Ok((row.get(0), row.get(1)))
    };
    let (folds_before, xid_before) = look(&mut client)?;
    const COMMITS: i64 = 40;
    for _ in 0..COMMITS {
        client.batch_execute("SELECT counter_incr('n:1')")?;
        settle(&mut client)?;
    }
    let (folds, xid) = look(&mut client)?;
    let (folds, xids) = (folds - folds_before, xid - xid_before);
    ensure!(folds > COMMITS / 2, "only {folds} folds");
    // Each commit and each fold has one; others, such as autovacuum, hardly any.
    ensure!(
        xids <= COMMITS + folds + folds / 2,
        "{xids} xids for {COMMITS} commits and {folds} folds"
    );
    snapshot.commit()?;
    Ok(())
}

/// An old snapshot keeps all the versions of totals that folds leave behind. Lists, pages, ranks and
/// sums find their way past them, whichever snapshot they are for.
#[test]
fn lists_pass_over_the_versions_that_an_old_snapshot_keeps() -> Result<()> {
    let mut client = create_database(cluster(), "versions")?;
    client.batch_execute(
        "SELECT bump('cold:' || n, n) FROM generate_series(1, 300) n;
         SELECT bump('hot:' || n, n) FROM generate_series(0, 5) n",
    )?;
    settle(&mut client)?;
    client.batch_execute("VACUUM counterx.total")?;
    let reads = [
        "SELECT count(*) FROM counters",
        "SELECT count(*) FROM counters WHERE name LIKE 'hot:%'",
        "SELECT count(*) FROM counter_list('hot:', '', 100)",
        "SELECT counter_sum('')",
        "SELECT counter_sum('hot:')",
        "SELECT count(*) FROM counter_top(3)",
        "SELECT count(*) FROM counter_bottom(3, 'hot:')",
        "SELECT sum(folds) FROM counterx.workers",
    ];
    let before = reads
        .iter()
        .map(|sql| pages(&mut client, sql))
        .collect::<Result<Vec<_>>>()?;

    // One from before all, one from the midst, one of now.
    let mut sessions = (0..3)
        .map(|_| cluster().connect_db("versions"))
        .collect::<Result<Vec<_>>>()?;
    let fold = |client: &mut Client, times: u32| -> Result<()> {
        for _ in 0..times {
            client.batch_execute("SELECT bump('hot:' || n, n) FROM generate_series(0, 5) n")?;
            client.batch_execute("SELECT counterx.compact()")?;
        }
        // As very many folds leave it, in less time: older versions, seen by nobody.
        let versions = 50 * times;
        Ok(client.batch_execute(&format!(
            "ALTER TABLE counterx.total DISABLE TRIGGER guard;
             INSERT INTO counterx.total (name, gen, value, uses)
                SELECT 'hot:' || n, -i, 0, 1 FROM generate_series(0, 5) n, generate_series(1, {versions}) i;
             DELETE FROM counterx.total WHERE gen < 0;
             ALTER TABLE counterx.total ENABLE ALWAYS TRIGGER guard"
        ))?)
    };
    let mut snapshots = Vec::new();
    for (session, times) in sessions.iter_mut().zip([0, 100, 100]) {
        fold(&mut client, times)?;
        let mut snapshot = session
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .start()?;
        check(&mut snapshot)?;
        let truth = values(&mut snapshot)?;
        snapshots.push((snapshot, truth));
    }
    settle(&mut client)?;
    let same = "SELECT (SELECT count(*) FROM (SELECT * FROM counters EXCEPT SELECT * FROM counter_list('', '', 1000)) a),
                       (SELECT count(*) FROM (SELECT * FROM counters EXCEPT SELECT name, value FROM counter_top(1000)) a),
                       (SELECT count(*) FROM counters)
                       - (SELECT count(*) FROM counter_list('', '', 1000)),
                       (SELECT sum(value) - counter_sum('') FROM counters)::bigint";
    for (snapshot, truth) in &mut snapshots {
        check(snapshot)?;
        ensure!(values(snapshot)? == *truth, "the snapshot has changed");
        let row = snapshot.query_one(same, &[])?;
        for column in 0..4 {
            let differ: i64 = row.get(column);
            ensure!(differ == 0, "{differ} in column {column}");
        }
    }
    for (sql, before) in reads.iter().zip(before) {
        let after = pages(&mut client, sql)?;
        // At most one page more for each counter, and some look-ups for the six hot ones; of those,
        // each has ten thousand dead versions, and all together hundreds of pages.
        ensure!(
            after < before + 306 + 150,
            "{sql} visits {after} pages, and {before} before"
        );
    }
    Ok(())
}
