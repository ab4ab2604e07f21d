//! A hot standby reads the truth of its snapshot or fails with 40001; never a wrong value.

use std::time::Duration;

use anyhow::{Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, Footprint, Load, Recovering, Refusal, agree, catch_up, changes_schema,
    changes_under_watch, check, check_database, compact, create_database, folding_hard,
    folds_and_empties, footprint, nothing_crashed, refused, resolve_prepared, same_at_last, settle,
    shared, under_watch, undisturbed,
};
use counterx_harness::{Cluster, poll_until};
use postgres::error::SqlState;
use postgres::{Client, Config, IsolationLevel};

fn primary() -> &'static Cluster {
    shared(|| {
        folding_hard("primary")
            .conf("wal_keep_size", "512MB")
            .start()
    })
}

fn standby(name: &str, feedback: &str, delay: &str) -> Result<Cluster> {
    Cluster::builder()
        .name(name)
        .standby_of(primary())
        .conf("hot_standby_feedback", feedback)
        .conf("wal_receiver_status_interval", "1s")
        .conf("max_standby_streaming_delay", delay)
        .start()
}

fn is_conflict(error: &anyhow::Error) -> bool {
    Refusal::of(error).is_some()
}

/// Looks through one snapshot for a while. True if it lasted, false if recovery got in the way.
fn look(connection: &mut Recovering, age: Duration) -> Result<bool> {
    let result = (|| {
        let mut transaction = connection
            .client()?
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()?;
        check(&mut transaction)?;
        std::thread::sleep(age);
        check(&mut transaction)?;
        transaction.commit()?;
        Ok(())
    })();
    match result {
        Ok(()) => Ok(true),
        Err(error) if is_conflict(&error) => {
            connection.forget();
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// A load on the primary, and readers on the standby all the time, and then until some of their snapshots
/// were read to their end.
fn read_beside_load(db: &str, standby: &Config) -> Result<()> {
    let mut client = create_database(primary(), db)?;
    let before = footprint(&mut client)?;
    let (mut whole, mut conflicts) = (0, 0);
    let load = Load {
        transactions: 250,
        two_phase: true,
        ..Load::default()
    };
    under_watch(&primary().config(db), &load, |control| {
        let mut connection = Recovering::new(standby);
        poll_until("the database on the standby", DEADLINE, || {
            Ok(standby.connect(postgres::NoTls).is_ok_and(|mut client| {
                client
                    .batch_execute("SELECT FROM oracle LIMIT 1; SELECT FROM counters LIMIT 1")
                    .is_ok()
            }))
        })?;
        let mut round = 0;
        while !control.is_done() {
            round += 1;
            if look(&mut connection, Duration::from_millis(round % 4 * 60))? {
                whole += 1;
            } else {
                conflicts += 1;
            }
        }
        Ok(())
    })?;
    // The load may end before the standby says that it needs an emptied log no more: its readers go on.
    let mut connection = Recovering::new(standby);
    poll_until("a log to be emptied beside some readers", DEADLINE, || {
        client.batch_execute("SELECT bump('last', 1)")?;
        if look(&mut connection, Duration::from_millis(60))? {
            whole += 1;
        } else {
            conflicts += 1;
        }
        let enough = whole > 0 && whole + conflicts > 3;
        Ok(enough && footprint(&mut client)?.has_emptied_since(&before))
    })?;
    settle(&mut client)
}

fn same_truth_at_last(db: &str, standby: &Cluster) -> Result<()> {
    nothing_crashed(&standby.log())?;
    same_at_last(primary(), standby, db)
}

#[test]
fn standby_without_feedback_is_exact_or_says_40001() -> Result<()> {
    let standby = standby("nofeedback", "off", "20ms")?;
    read_beside_load("nofeedback", &standby.config("nofeedback"))?;
    same_truth_at_last("nofeedback", &standby)
}

#[test]
fn standby_with_feedback_is_exact() -> Result<()> {
    let standby = standby("feedback", "on", "30s")?;
    read_beside_load("feedback", &standby.config("feedback"))?;
    same_truth_at_last("feedback", &standby)
}

/// Fills the logs of a few counters until a log was emptied, or, if nothing may be emptied, until
/// it long should have been.
fn churn(client: &mut Client, rounds: u32, until_truncated: bool) -> Result<Footprint> {
    let before = footprint(client)?;
    for _ in 0..rounds {
        client.batch_execute(
            "DO $$ BEGIN
                FOR n IN 1 .. 400 LOOP PERFORM bump('old', n); PERFORM bump('new', 1); COMMIT; END LOOP;
             END $$",
        )?;
        compact(client)?;
        let now = footprint(client)?;
        if until_truncated && now.truncated > before.truncated {
            return Ok(now);
        }
    }
    ensure!(
        !until_truncated,
        "no log was emptied: {before:?} {:?}",
        footprint(client)?
    );
    footprint(client)
}

/// The snapshot is taken before a log is emptied, the counter is looked at only afterwards, and
/// nothing that replay does in between meets a lock of the reader.
#[test]
fn snapshot_older_than_a_replayed_truncation_is_exact_or_says_40001() -> Result<()> {
    let standby = standby("oldsnapshot", "off", "-1")?;
    let mut client = create_database(primary(), "oldsnapshot")?;
    // Folded by hand alone: a busy worker's dead versions get pruned, and replay of that waits
    // for the snapshot before it comes to the truncation.
    client.batch_execute(
        "ALTER DATABASE oldsnapshot SET counterx.compaction = off; SELECT bump('old', 1)",
    )?;
    // Pending when the snapshot is taken: that is what it will miss.
    let mut reader = standby.connect()?;
    catch_up(primary(), &mut reader)?;
    let mut reader = standby.connect_db("oldsnapshot")?;
    reader.batch_execute("SELECT counter_value('warm'); SELECT FROM counters")?;
    let mut snapshot = reader
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()?;
    let rows: i64 = snapshot
        .query_one("SELECT count(*) FROM oracle", &[])?
        .get(0);
    let there = churn(&mut client, 20, true)?;

    let mut other = standby.connect_db("oldsnapshot")?;
    // No further than that: what comes after the truncation cleans up behind it in pg_class, and
    // waits for the snapshot.
    poll_until("the truncation on the standby", DEADLINE, || {
        let here = footprint(&mut other)?;
        Ok(here.truncated == there.truncated && here.files == there.files)
    })?;

    let sql =
        "SELECT count(*), sum(delta)::bigint, counter_value('old') FROM oracle WHERE name = 'old'";
    match snapshot.query_one(sql, &[]) {
        Ok(row) => {
            let (count, oracle, value): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
            ensure!(oracle == value, "oracle {oracle}, counter {value}");
            ensure!(count == rows, "a snapshot changed");
        }
        Err(error) => ensure!(is_conflict(&error.into())),
    }
    drop(snapshot);
    check(&mut reader)?;
    Ok(())
}

/// Replay holds the lock of a TRUNCATE up to its commit, and may have to wait for the reader's snapshot
/// before that. A reader that waited for the lock would then wait for ever, and the replay with it.
#[test]
fn reader_does_not_wait_for_ever_for_a_replay_that_waits_for_it() -> Result<()> {
    // A primary of its own: what other tests and autovacuum clean up in the shared catalogs would make
    // the replay wait for the snapshot too, before it comes to the lock.
    let primary = Cluster::builder()
        .name("replayed")
        .conf("autovacuum", "off")
        .start()?;
    let standby = Cluster::builder()
        .name("replaying")
        .standby_of(&primary)
        .conf("hot_standby_feedback", "off")
        .conf("max_standby_streaming_delay", "-1")
        .start()?;
    let mut client = create_database(&primary, "replaying")?;
    client.batch_execute(
        "ALTER DATABASE replaying SET counterx.compaction = off; SELECT bump('x', 1);
         CREATE TABLE dead (n int) WITH (autovacuum_enabled = off);
         INSERT INTO dead VALUES (1)",
    )?;
    catch_up(&primary, &mut standby.connect()?)?;
    let mut reader = standby.connect_db("replaying")?;
    reader.batch_execute("SELECT counter_value('warm')")?;
    let mut snapshot = reader
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()?;
    snapshot.query_one("SELECT count(*) FROM oracle", &[])?;

    // As a fold does it; and a vacuum between the lock and the commit, which has to wait for the
    // snapshot.
    let mut folder = primary.connect_db("replaying")?;
    let locks: String = (0..8)
        .flat_map(|lane| ["a", "b"].map(|side| format!("counterx.log_{lane}_{side}")))
        .collect::<Vec<_>>()
        .join(", ");
    client.batch_execute("DELETE FROM dead")?;
    folder.batch_execute(&format!("BEGIN; LOCK TABLE {locks}"))?;
    client.batch_execute("VACUUM dead")?;
    folder.batch_execute("COMMIT")?;
    let mut other = standby.connect()?;
    poll_until("the replay to wait for the snapshot", DEADLINE, || {
        let sql = "SELECT count(*) FROM pg_stat_activity JOIN pg_locks USING (pid)
                    WHERE backend_type = 'startup' AND wait_event = 'RecoveryConflictSnapshot'
                      AND mode = 'AccessExclusiveLock'";
        Ok(other.query_one(sql, &[])?.get::<_, i64>(0) >= 16)
    })?;
    // Without a bound of our own it would say 57014.
    snapshot.batch_execute("SET LOCAL statement_timeout = '60s'")?;
    refused(
        snapshot.query_one("SELECT counter_value('x')", &[]),
        &SqlState::T_R_SERIALIZATION_FAILURE,
    )?;
    drop(snapshot);
    catch_up(&primary, &mut other)?;
    check(&mut reader)?;
    Ok(())
}

#[test]
fn feedback_keeps_the_logs_that_a_snapshot_of_the_standby_needs() -> Result<()> {
    let standby = standby("kept", "on", "-1")?;
    let mut client = create_database(primary(), "kept")?;
    client.batch_execute("SELECT bump('old', 1)")?;
    let mut reader = standby.connect()?;
    catch_up(primary(), &mut reader)?;
    let mut reader = standby.connect_db("kept")?;
    let mut snapshot = reader
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()?;
    snapshot.query_one("SELECT count(*) FROM oracle", &[])?;
    let xmin: String = snapshot
        .query_one(
            "SELECT txid_snapshot_xmin(txid_current_snapshot())::text",
            &[],
        )?
        .get(0);
    // The walreceiver tells now and then. Other snapshots of the standby come and go.
    poll_until("the primary to know of the snapshot", DEADLINE, || {
        let sql = "SELECT coalesce(bool_or(backend_xmin::text::bigint <= $1::text::bigint), false)
                     FROM pg_stat_replication WHERE application_name = 'kept'";
        Ok(client.query_one(sql, &[&xmin])?.get(0))
    })?;
    let before = footprint(&mut client)?;
    let after = churn(&mut client, 6, false)?;
    ensure!(
        after.truncated == before.truncated,
        "emptied: {before:?} {after:?}"
    );
    ensure!(
        after.folded > before.folded,
        "nothing was folded: {before:?} {after:?}"
    );
    let mut other = standby.connect_db("kept")?;
    catch_up(primary(), &mut other)?;
    check(&mut other)?;
    ensure!(check(&mut snapshot)? == 1);
    snapshot.commit()?;
    churn(&mut client, 100, true)?;
    Ok(())
}

#[test]
fn standby_refuses_increments_and_compaction() -> Result<()> {
    let standby = standby("refuses", "off", "30s")?;
    let mut client = create_database(primary(), "refuses")?;
    client.batch_execute("SELECT bump('x', 1)")?;
    let mut reader = standby.connect()?;
    catch_up(primary(), &mut reader)?;
    let mut reader = standby.connect_db("refuses")?;
    for sql in [
        "SELECT counter_incr('x')",
        "SELECT counter_decr('x', 2)",
        "SELECT counterx.compact()",
        "BEGIN; SELECT counter_incr('x'); COMMIT",
        "SELECT counter_incr_get('x')",
        "SELECT counter_incr_many(ARRAY['x'], ARRAY[1])",
        "SELECT counter_incr_many('{\"x\": 1}')",
        "SELECT counter_incr_once('t', 'x')",
        "SELECT counter_incr_once_get('t', 'x')",
        "SELECT counter_set('x', 1)",
        "SELECT counter_reset('x')",
        "SELECT counter_drop('x')",
        "SELECT counter_rename('x', 'y')",
        "SELECT counter_merge('x', 'y')",
        "SELECT counterx.create_value_index()",
        "SELECT counterx.drop_value_index()",
    ] {
        refused(
            reader.batch_execute(sql),
            &SqlState::READ_ONLY_SQL_TRANSACTION,
        )?;
        reader.batch_execute("ROLLBACK")?;
    }
    reader.batch_execute("SELECT * FROM counterx.lanes; SELECT * FROM counterx.workers")?;
    check(&mut reader)?;
    Ok(())
}

#[test]
fn promoted_standby_is_exact_and_goes_on_counting_and_folding() -> Result<()> {
    let mut standby = standby("promoted", "off", "30s")?;
    let mut client = create_database(primary(), "promoted")?;
    client.batch_execute("SELECT bump('first', 1)")?;
    catch_up(primary(), &mut standby.connect()?)?;
    let config = standby.config("promoted");
    // Cut off in mid-load: the counters of what has arrived are those of the oracle that has.
    let load = Load {
        transactions: 200,
        two_phase: true,
        ..Load::default()
    };
    under_watch(&primary().config("promoted"), &load, |control| {
        control.wait_for_share(0.5)?;
        standby.promote()?;
        check_database(&config)?;
        Ok(())
    })?;
    let mut client = standby.connect_db("promoted")?;
    check(&mut client)?;
    // What was in doubt when it was cut off nobody will end here, and no log can be truncated beside it.
    resolve_prepared(&config)?;
    check(&mut client)?;
    let before = footprint(&mut client)?;
    // The old primary's names of prepared transactions may be taken.
    let load = Load {
        transactions: 200,
        two_phase: true,
        seed: load.seed + 1,
        ..load
    };
    under_watch(&config, &load, |_| Ok(()))?;
    folds_and_empties(&mut client, &before).map(drop)
}

/// With and without a value index, with and without deltas that wait, in the middle of changes of
/// every kind and after them.
#[test]
fn all_ways_to_read_agree_on_a_standby_and_with_the_primary() -> Result<()> {
    let standby = standby("allways", "on", "30s")?;
    let mut client = create_database(primary(), "allways")?;
    client.batch_execute(changes_schema())?;
    catch_up(primary(), &mut standby.connect()?)?;
    let config = standby.config("allways");
    for value_index in [false, true] {
        if value_index {
            let sql = "SELECT counterx.create_value_index()";
            client.query_one(sql, &[])?;
        }
        let load = Load {
            transactions: 40,
            names: 6,
            checkers: 0,
            ..Load::default()
        };
        let mut looks = 0;
        changes_under_watch(&primary().config("allways"), &load, |control| {
            let mut connection = Recovering::new(&config);
            while !control.is_done() {
                let look = (|| -> Result<()> {
                    let mut snapshot = connection
                        .client()?
                        .build_transaction()
                        .isolation_level(IsolationLevel::RepeatableRead)
                        .start()?;
                    agree(&mut snapshot)?;
                    Ok(snapshot.commit()?)
                })();
                match look {
                    Ok(()) => looks += 1,
                    Err(error) if is_conflict(&error) => connection.forget(),
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })?;
        ensure!(looks > 0, "no look beside the load");
        // Some that are folded, and some that wait.
        client.batch_execute(
            "ALTER DATABASE allways SET counterx.compaction = off;
             SELECT bump('p:' || n % 7, n) FROM generate_series(1, 50) n",
        )?;
        let mut here = Recovering::new(&config);
        for pending in [true, false] {
            if !pending {
                compact(&mut client)?;
            }
            catch_up(primary(), here.client()?)?;
            let expected = agree(&mut client)?;
            let found = undisturbed(&mut here, agree)?;
            ensure!(found == expected, "the standby says {found:?}");
        }
        client.batch_execute("ALTER DATABASE allways RESET counterx.compaction")?;
    }
    nothing_crashed(&standby.log())
}

/// A gate is changed through generic WAL records, which the check compares bit by bit. So nothing else may
/// change on its page: neither where somebody reads it by SQL, on the primary or on the standby, nor by VACUUM.
/// The first change comes before a checkpoint, so it is replayed on the page that the row's insertion made.
#[test]
fn gates_that_were_read_by_sql_are_the_same_on_the_standby() -> Result<()> {
    let primary = Cluster::builder()
        .name("gates")
        .conf("wal_consistency_checking", "all")
        .conf("counterx.compaction", "off")
        .start()?;
    let mut standby = Cluster::builder()
        .name("gatesstandby")
        .standby_of(&primary)
        .start()?;
    let mut client = create_database(&primary, "gates")?;
    let read = "SELECT * FROM counterx.gate_0, counterx.gate_1, counterx.gate_2, counterx.gate_3";
    // Of all lanes. What is to be folded has committed before.
    let publish = "SELECT count(counter_incr('a' || n)) FROM generate_series(1, 40) n; COMMIT; SELECT counterx.compact()";
    for step in [
        publish,
        "CHECKPOINT",
        publish,
        read,
        publish,
        "VACUUM counterx.gate_0",
        publish,
        "VACUUM FULL counterx.gate_1",
        read,
        publish,
    ] {
        client.batch_execute(step)?;
        catch_up(&primary, &mut standby.connect()?)?;
        standby.connect_db("gates")?.batch_execute(read)?;
    }
    nothing_crashed(&standby.log())?;
    standby.promote()?;
    standby.connect_db("gates")?.batch_execute(publish)?;
    Ok(())
}
