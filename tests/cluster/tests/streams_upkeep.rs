//! Streams in lanes that are full, beside consumers that are quiet, at work or away, and where folds cannot write.

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, create_bare_database, folding_hard, patiently, pause_folding, refused, shared,
};
use counterx_harness::{Cluster, poll_until};
use postgres::Client;
use postgres::error::SqlState;
use postgres::types::FromSqlOwned;

const LOST: SqlState = SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE;

/// Lanes are full soon: a table is left for the other one from 32 kB on.
fn small() -> &'static Cluster {
    shared(|| {
        folding_hard("streams-upkeep")
            .conf("counterx.stream_max_size", "1MB")
            .conf("wal_level", "logical")
            .start()
    })
}

/// A database in which nobody folds who is not told to.
fn still(cluster: &Cluster, db: &str) -> Result<Client> {
    let mut client = create_bare_database(cluster, db)?;
    pause_folding(&mut client, db)?;
    cluster.connect_db(db)
}

fn one<T: FromSqlOwned>(client: &mut Client, sql: &str) -> Result<T> {
    Ok(client.query_one(sql, &[])?.try_get(0)?)
}

/// Runs statements one by one, each in a transaction of its own.
fn run(client: &mut Client, statements: &[&str]) -> Result<()> {
    for statement in statements {
        client.batch_execute(statement)?;
    }
    Ok(())
}

fn start(client: &mut Client, stream: &str, arguments: &str) -> Result<()> {
    run(
        client,
        &[
            &format!("SELECT counter_stream_create('{stream}', {arguments})"),
            &format!("SELECT count(*) FROM counter_stream_bootstrap('{stream}')"),
        ],
    )
}

fn state_of(client: &mut Client, stream: &str) -> Result<String> {
    one(
        client,
        &format!("SELECT state FROM counter_streams WHERE stream = '{stream}'"),
    )
}

/// Counts what makes each lane a sixth full, and folds it by hand.
fn fill(client: &mut Client) -> Result<()> {
    run(
        client,
        &[
            "SELECT counter_incr('fill:' || n) FROM generate_series(1, 400) n",
            "SELECT counterx.compact()",
        ],
    )
}

fn read(client: &mut Client, stream: &str) -> Result<i64> {
    one(
        client,
        &format!(
            "SELECT coalesce(sum(delta), 0)::bigint FROM counter_stream_next('{stream}', 100000)"
        ),
    )
}

/// What changes take on disk.
fn bytes(client: &mut Client) -> Result<i64> {
    one(
        client,
        "SELECT sum(pg_relation_size(c.oid))::bigint FROM pg_class c
          WHERE relnamespace = 'counterx'::regnamespace AND relname ~ '^change_[0-7]_[ab]$'",
    )
}

/// Nothing that was counted waits to be folded.
fn is_folded(client: &mut Client) -> Result<bool> {
    let pending: i64 = one(
        client,
        "SELECT sum(pending_deltas)::bigint FROM counterx.lanes",
    )?;
    Ok(pending == 0)
}

/// No worker, no upkeep: `compact()` now and then, and a consumer that reads all each time.
#[test]
fn who_has_read_all_is_not_lost_where_somebody_folds_by_hand() -> Result<()> {
    let mut client = still(small(), "by_hand")?;
    start(&mut client, "all", "mode => 'every'")?;
    for round in 0..40 {
        fill(&mut client)?;
        ensure!(state_of(&mut client, "all")? == "live", "round {round}");
        ensure!(read(&mut client, "all")? == 400, "round {round}");
    }
    // Who folds in a transaction that does more has no reader wait meanwhile.
    let mut folder = small().connect_db("by_hand")?;
    for round in 0..30 {
        run(
            &mut folder,
            &["SELECT counter_incr('fill:' || n) FROM generate_series(1, 400) n"],
        )?;
        folder.batch_execute("BEGIN; SELECT counterx.compact()")?;
        client.batch_execute("SET statement_timeout = '60s'")?;
        ensure!(read(&mut client, "all")? == 0, "round {round}");
        folder.batch_execute("COMMIT")?;
        ensure!(read(&mut client, "all")? == 400, "round {round}");
    }
    ensure!(bytes(&mut client)? < 1024 * 1024);
    Ok(())
}

/// The worker folds faster than it sees to upkeep.
#[test]
fn who_has_read_all_is_not_lost_where_a_worker_folds() -> Result<()> {
    let mut client = create_bare_database(small(), "by_worker")?;
    start(&mut client, "all", "mode => 'every'")?;
    let mut sum = 0;
    for round in 0..60 {
        client.batch_execute("SELECT counter_incr('fill:' || n) FROM generate_series(1, 400) n")?;
        poll_until("all to be folded", DEADLINE, || is_folded(&mut client))?;
        sum += read(&mut client, "all")?;
        ensure!(sum == 400 * (round + 1), "{sum} after round {round}");
    }
    Ok(())
}

/// After a loss the stream can be begun anew at once.
#[test]
fn a_lost_stream_begins_anew_at_once() -> Result<()> {
    let mut client = still(small(), "anew")?;
    start(&mut client, "all", "mode => 'every'")?;
    let mut rounds = 0;
    while state_of(&mut client, "all")? == "live" {
        fill(&mut client)?;
        rounds += 1;
        ensure!(rounds < 100, "nobody is lost");
    }
    client.batch_execute("SELECT count(*) FROM counter_stream_bootstrap('all')")?;
    for round in 0..20 {
        fill(&mut client)?;
        ensure!(read(&mut client, "all")? == 400, "round {round}");
    }
    Ok(())
}

/// A stream in which nothing happens, and whose consumer waits for hints, beside one that fills the lanes.
#[test]
fn a_quiet_stream_is_not_lost_by_changes_of_others() -> Result<()> {
    let mut client = still(small(), "quiet")?;
    start(&mut client, "all", "mode => 'every'")?;
    start(&mut client, "rare", "'rare:'")?;
    for round in 0..40 {
        fill(&mut client)?;
        ensure!(read(&mut client, "all")? == 400, "round {round}");
        ensure!(state_of(&mut client, "rare")? == "live", "round {round}");
    }
    run(
        &mut client,
        &[
            "SELECT counter_incr('rare:' || n) FROM generate_series(1, 9) n",
            "SELECT counterx.compact()",
        ],
    )?;
    ensure!(read(&mut client, "rare")? == 9);
    // It has something of its own that it does not read.
    run(
        &mut client,
        &[
            "SELECT counter_incr('rare:' || n) FROM generate_series(1, 9) n",
            "SELECT counterx.compact()",
        ],
    )?;
    let mut rounds = 0;
    while state_of(&mut client, "rare")? == "live" {
        fill(&mut client)?;
        read(&mut client, "all")?;
        rounds += 1;
        ensure!(rounds < 100, "it is not lost");
    }
    ensure!(state_of(&mut client, "all")? == "live");
    Ok(())
}

/// That changes are gone is so at once, that somebody has passed them when it is committed. Who empties a table fails in
/// between: a fold by hand, at its commit, and upkeep.
#[test]
fn a_quiet_stream_is_not_lost_where_emptying_fails() -> Result<()> {
    let mut client = still(small(), "emptying_fails")?;
    start(&mut client, "all", "mode => 'every'")?;
    start(&mut client, "rare", "'rare:'")?;
    for (place, fails) in [
        ("a fold", "SELECT counterx.compact()"),
        ("upkeep", "CALL counterx.compact_in_steps()"),
    ] {
        let mut failures = 0;
        for round in 0..60 {
            client.batch_execute(
                "SELECT counter_incr('fill:' || n) FROM generate_series(1, 400) n",
            )?;
            let before = if fails.starts_with("CALL") {
                client.batch_execute("SELECT counterx.compact()")?;
                read(&mut client, "all")?
            } else {
                0
            };
            client.batch_execute("SET counterx.failpoint = 'stream.gone_noted=error'")?;
            // One moves the quiet stream, and the next one empties what it has passed.
            for _ in 0..2 {
                if let Err(error) = client.batch_execute(fails) {
                    ensure!(
                        format!("{error:?}").contains("stream.gone_noted"),
                        "{error:?}"
                    );
                    failures += 1;
                }
                for stream in ["all", "rare"] {
                    let state = state_of(&mut client, stream)?;
                    ensure!(
                        state == "live",
                        "{stream} is {state} after {place} in round {round}"
                    );
                }
            }
            client.batch_execute("RESET counterx.failpoint")?;
            client.batch_execute("SELECT counterx.compact()")?;
            let sum = before + read(&mut client, "all")?;
            ensure!(sum == 400, "{sum} in round {round} of {place}");
        }
        ensure!(failures > 0, "{place} has emptied nothing");
    }
    ensure!(bytes(&mut client)? < 1024 * 1024);
    Ok(())
}

/// What a transaction has read itself, and folded, it may take back: just where that fold finds the lane full.
#[test]
fn who_reads_and_folds_and_fails_to_commit_has_lost_nothing() -> Result<()> {
    let mut client = still(small(), "takes_back")?;
    start(&mut client, "all", "mode => 'every'")?;
    for folds in 8..17 {
        client.batch_execute("SELECT count(*) FROM counter_stream_bootstrap('all')")?;
        read(&mut client, "all")?;
        for _ in 0..folds {
            fill(&mut client)?;
        }
        if state_of(&mut client, "all")? != "live" {
            continue;
        }
        client.batch_execute("SELECT counter_incr('fill:' || n) FROM generate_series(1, 400) n")?;
        client.batch_execute("SET counterx.failpoint = 'stream.gone_noted=error'")?;
        client.batch_execute("BEGIN")?;
        ensure!(read(&mut client, "all")? == 400 * folds);
        client.batch_execute("SELECT counterx.compact()")?;
        if let Err(error) = client.batch_execute("COMMIT") {
            ensure!(
                format!("{error:?}").contains("stream.gone_noted"),
                "{error:?}"
            );
        }
        client.batch_execute("RESET counterx.failpoint")?;
        let state = state_of(&mut client, "all")?;
        ensure!(state == "live", "{state} after {folds} folds");
    }
    Ok(())
}

/// Long before lanes are full, what all have read is removed, beside a stream that has nothing to read.
#[test]
fn a_quiet_stream_does_not_keep_changes_of_others() -> Result<()> {
    let cluster = folding_hard("streams-large").start()?;
    let mut client = still(&cluster, "large")?;
    start(&mut client, "all", "mode => 'every'")?;
    start(&mut client, "rare", "'rare:'")?;
    client.batch_execute("SELECT counter_incr('large:' || n) FROM generate_series(1, 16000) n")?;
    client.batch_execute("SELECT counterx.compact()")?;
    client.batch_execute(
        "CREATE TABLE names AS SELECT DISTINCT name FROM counter_stream_next('all', 100000) WHERE lane = 0",
    )?;
    let mut rounds = 0;
    while bytes(&mut client)? < 8 * 1024 * 1024 {
        run(
            &mut client,
            &[
                "SELECT counter_incr(name) FROM names",
                "SELECT counterx.compact()",
                "SELECT count(*) FROM counter_stream_next('all', 100000)",
            ],
        )?;
        rounds += 1;
        ensure!(rounds < 200, "{} bytes", bytes(&mut client)?);
    }
    // One leaves the table, one empties it.
    for _ in 0..3 {
        client.batch_execute("CALL counterx.compact_in_steps()")?;
    }
    ensure!(
        bytes(&mut client)? < 4 * 1024 * 1024,
        "{} bytes",
        bytes(&mut client)?
    );
    ensure!(state_of(&mut client, "rare")? == "live");
    Ok(())
}

/// A consumer that sits in a transaction makes nobody else lost, and is right itself.
#[test]
fn a_consumer_that_sits_in_a_transaction_harms_nobody_else() -> Result<()> {
    let mut client = still(small(), "sits")?;
    start(&mut client, "all", "mode => 'every'")?;
    start(&mut client, "sits", "mode => 'every'")?;
    fill(&mut client)?;
    read(&mut client, "all")?;
    let mut sitting = small().connect_db("sits")?;
    sitting.batch_execute("BEGIN")?;
    ensure!(read(&mut sitting, "sits")? == 400);
    for round in 0..60 {
        fill(&mut client)?;
        ensure!(read(&mut client, "all")? == 400, "round {round}");
    }
    ensure!(bytes(&mut client)? < 1024 * 1024);
    sitting.batch_execute("COMMIT")?;
    refused(
        sitting.query("SELECT * FROM counter_stream_next('sits')", &[]),
        &LOST,
    )?;
    // Whoever has read what is removed then, goes on.
    // Who is refused is told so before its locks go.
    patiently(
        &mut client,
        "SELECT count(*) FROM counter_stream_bootstrap('sits')",
    )?;
    let mut sum = 0;
    for _ in 0..3 {
        fill(&mut client)?;
        read(&mut client, "all")?;
        sum += 400;
    }
    sitting.batch_execute("BEGIN")?;
    ensure!(read(&mut sitting, "sits")? == sum);
    fill(&mut client)?;
    read(&mut client, "all")?;
    sitting.batch_execute("COMMIT")?;
    ensure!(read(&mut sitting, "sits")? == 400);
    Ok(())
}

/// Who follows by logical decoding alone gets all, also when nobody has read the stream for so long that it is lost.
#[test]
fn what_is_published_goes_on_where_nobody_reads_the_stream() -> Result<()> {
    let mut client = still(small(), "published")?;
    client
        .batch_execute("SELECT pg_create_logical_replication_slot('published', 'test_decoding')")?;
    start(&mut client, "feed", "mode => 'every', publish => true")?;
    for _ in 0..60 {
        client.batch_execute("SELECT counter_incr('fill:' || n) FROM generate_series(1, 400) n")?;
        client.batch_execute("SELECT counter_incr('feed:x')")?;
        client.batch_execute("SELECT counterx.compact()")?;
    }
    ensure!(state_of(&mut client, "feed")? == "lost");
    let shown: i64 = one(
        &mut client,
        "SELECT count(*) FROM pg_logical_slot_get_changes('published', NULL, NULL)
          WHERE data LIKE 'table counterx.change\\_%INSERT:%''feed:x''%'",
    )?;
    ensure!(shown == 60, "{shown}");
    ensure!(bytes(&mut client)? < 1024 * 1024);
    client.batch_execute("SELECT pg_drop_replication_slot('published')")?;
    Ok(())
}

/// One lane's changes cannot be seen to: those of the others are.
#[test]
fn upkeep_goes_on_where_that_of_a_lane_fails() -> Result<()> {
    let mut client = create_bare_database(small(), "one_lane")?;
    start(&mut client, "all", "''")?;
    client.batch_execute("SELECT counter_incr('fill:' || n) FROM generate_series(1, 400) n")?;
    poll_until("all to be folded", DEADLINE, || is_folded(&mut client))?;
    // Before the worker has seen that nobody needs them.
    client.batch_execute(
        "BEGIN;
         DROP INDEX counterx.change_0_a_fold_seq, counterx.change_0_b_fold_seq;
         SELECT counter_stream_drop('all');
         COMMIT",
    )?;
    let full = "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class
                 WHERE relnamespace = 'counterx'::regnamespace AND relname ~ '^change_[0-7]_[ab]$'
                   AND pg_relation_size(oid) > 0";
    let mut left: Option<String> = None;
    poll_until("the other lanes to be emptied", DEADLINE, || {
        // The worker may have made room for another database.
        client.batch_execute("SELECT counter_incr('more')")?;
        left = one(&mut client, full)?;
        Ok(left.as_deref() == Some("change_0_a"))
    })
    .with_context(|| format!("{left:?}"))
}

/// Two things fail for good, each of which would keep the other one from being left out.
#[test]
fn folds_go_on_where_neither_history_nor_changes_can_be_written() -> Result<()> {
    let mut client = create_bare_database(small(), "neither")?;
    run(
        &mut client,
        &[
            "SELECT counter_history('v', minute => NULL, hour => NULL)",
            "SELECT counter_incr('v:' || n) FROM generate_series(1, 50) n",
            "SELECT counter_seal()",
        ],
    )?;
    start(&mut client, "all", "''")?;
    // The worker sees to the same tables, in another order.
    patiently(
        &mut client,
        "DO $$ DECLARE t record; BEGIN
             FOR t IN SELECT c.oid::regclass AS name, relname ~ '^change' AS is_change FROM pg_class c
                       WHERE relnamespace = 'counterx'::regnamespace AND relkind = 'r'
                         AND relname ~ '^(change|bucket)_[0-9]_[0-9ab]$' LOOP
                 EXECUTE format('CREATE INDEX ON %s ((value + 1))', t.name);
             END LOOP;
         END $$",
    )?;
    client.batch_execute("SELECT counter_incr('v:' || n) FROM generate_series(1, 50) n")?;
    poll_until("lanes to be folded without both", DEADLINE, || {
        is_folded(&mut client)
    })?;
    ensure!(one::<i64>(&mut client, "SELECT counter_value('v:7')")? == 2);
    // The next folds may be about to say that it is lost, and have its place locked.
    poll_until(
        "a consumer to hear that it has missed something",
        DEADLINE,
        || {
            let next = client.query("SELECT * FROM counter_stream_next('all')", &[]);
            let code = next.err().and_then(|error| error.code().cloned());
            ensure!(code.is_some(), "something is missing, and nobody says so");
            Ok(code == Some(LOST))
        },
    )?;
    Ok(())
}

/// A session that folds by hand leaves out as well what cannot be written, whatever else it does in between.
#[test]
fn folds_by_hand_go_on_where_changes_cannot_be_written() -> Result<()> {
    let mut client = still(small(), "hand_fails")?;
    start(&mut client, "all", "''")?;
    client.batch_execute("SELECT counter_alert_create('high', above => 0)")?;
    for lane in 0..8 {
        for side in ["a", "b"] {
            client.batch_execute(&format!(
                "CREATE INDEX ON counterx.change_{lane}_{side} ((value + 1))"
            ))?;
        }
    }
    client.batch_execute("SELECT counter_incr('a')")?;
    for _ in 0..2 {
        refused(
            client.batch_execute("SELECT counterx.compact()"),
            &SqlState::FEATURE_NOT_SUPPORTED,
        )?;
        client.batch_execute("SELECT counter_value('a')")?;
    }
    client.batch_execute("SELECT counterx.compact()")?;
    ensure!(is_folded(&mut client)?);
    ensure!(state_of(&mut client, "all")? == "lost");
    // That it is told to nobody is no reason not to judge it.
    let fired = "SELECT count(*) FROM counter_alerts_fired('high')";
    ensure!(one::<i64>(&mut client, fired)? == 1);
    // Unless that cannot be written either.
    client.batch_execute("CREATE INDEX ON counterx.alert_state ((alert + 1))")?;
    client.batch_execute("SELECT counter_incr('b')")?;
    for _ in 0..4 {
        refused(
            client.batch_execute("SELECT counterx.compact()"),
            &SqlState::FEATURE_NOT_SUPPORTED,
        )?;
    }
    client.batch_execute("SELECT counterx.compact()")?;
    ensure!(is_folded(&mut client)?);
    ensure!(one::<i64>(&mut client, fired)? == 1);
    Ok(())
}

/// Somebody has altered what folds read of streams: counting goes on.
#[test]
fn folds_go_on_where_tables_of_streams_are_altered() -> Result<()> {
    for (db, change) in [
        ("altered", "ALTER TABLE counterx.stream RENAME keep TO kept"),
        (
            "altered_alert",
            "ALTER TABLE counterx.alert RENAME below TO beneath",
        ),
        (
            "empty_cell",
            "ALTER TABLE counterx.stream_cell DISABLE TRIGGER ALL; TRUNCATE counterx.stream_cell",
        ),
    ] {
        let mut client = create_bare_database(small(), db)?;
        start(&mut client, "all", "''")?;
        client.batch_execute(change)?;
        client.batch_execute("SELECT counter_incr('a:' || n) FROM generate_series(1, 50) n")?;
        poll_until(&format!("{db}: lanes to be folded"), DEADLINE, || {
            is_folded(&mut client)
        })?;
        ensure!(
            client
                .query("SELECT * FROM counter_stream_next('all')", &[])
                .is_err(),
            "{db}: something is missing, and nobody says so"
        );
    }
    Ok(())
}

/// A history of events has a fold write a counter in parts: streams and alerts go by the whole.
#[test]
fn a_counter_of_many_events_changes_once_in_a_fold() -> Result<()> {
    let mut client = still(small(), "many_events")?;
    run(
        &mut client,
        &[
            "SELECT counter_history('ev', events => '1 day')",
            "SELECT counter_incr('ev:x', 50)",
            "SELECT counterx.compact()",
        ],
    )?;
    start(&mut client, "all", "mode => 'every'")?;
    run(
        &mut client,
        &[
            "SELECT counter_alert_create('high', above => 100)",
            "SELECT counter_incr('ev:x', 1)",
            "SET synchronous_commit = off",
            "DO $$ BEGIN
                 FOR n IN 1 .. 6000 LOOP
                     PERFORM counter_incr('ev:x', 60);
                     COMMIT;
                     PERFORM counter_incr('ev:x', -60);
                     COMMIT;
                 END LOOP;
             END $$",
            "SELECT counterx.compact()",
        ],
    )?;
    let rows: String = one(
        &mut client,
        "SELECT string_agg(format('%s %s %s', value, delta, kind), ', ') FROM counter_stream_next('all')",
    )?;
    ensure!(rows == "51 1 changed", "{rows}");
    ensure!(one::<i64>(&mut client, "SELECT count(*) FROM counter_alerts_fired()")? == 0);
    ensure!(one::<i64>(&mut client, "SELECT counter_value('ev:x')")? == 51);
    Ok(())
}
