//! Every kind of transaction that PostgreSQL knows counts what it commits.

use anyhow::{Result, ensure};
use counterx_cluster_tests::{
    check, compact, count_and_settle, create_database, refused, settle, shared,
};
use counterx_harness::Cluster;
use postgres::Client;
use postgres::error::SqlState;

fn cluster() -> &'static Cluster {
    shared(|| {
        Cluster::builder()
            .name("transactions")
            .conf("counterx.compaction_interval", "20ms")
            .start()
    })
}

fn value(client: &mut Client, name: &str) -> Result<i64> {
    Ok(client
        .query_one("SELECT counter_value($1)", &[&name])?
        .get(0))
}

/// The last word of each test: folded or not, nothing has changed.
fn sound(client: &mut Client) -> Result<()> {
    check(client)?;
    count_and_settle(client)
}

#[test]
fn commit_and_rollback_inside_a_procedure() -> Result<()> {
    let mut client = create_database(cluster(), "procedures")?;
    client.batch_execute(
        "CREATE PROCEDURE p() LANGUAGE plpgsql AS $$
         BEGIN
            FOR n IN 1 .. 100 LOOP
                PERFORM bump('p', n);
                IF n % 3 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
            END LOOP;
            PERFORM bump('p', 10000);
         END $$;
         CREATE PROCEDURE outer_p() LANGUAGE plpgsql AS $$
         BEGIN
            PERFORM bump('q', 1);
            CALL p();
            COMMIT;
            BEGIN
                PERFORM bump('q', 100);
                RAISE division_by_zero;
            EXCEPTION WHEN division_by_zero THEN
                PERFORM bump('q', 10);
            END;
            COMMIT AND CHAIN;
            PERFORM bump('q', 1000);
            ROLLBACK AND CHAIN;
            PERFORM bump('q', 20);
         END $$",
    )?;
    client.batch_execute("CALL p()")?;
    let once: i64 = 10_000 + (1..=100).filter(|n| n % 3 != 0).sum::<i64>();
    ensure!(value(&mut client, "p")? == once);
    client.batch_execute("CALL outer_p()")?;
    ensure!(value(&mut client, "p")? == 2 * once);
    ensure!(value(&mut client, "q")? == 31);
    sound(&mut client)
}

#[test]
fn deferred_constraint_triggers_count() -> Result<()> {
    let mut client = create_database(cluster(), "deferred")?;
    client.batch_execute(
        "CREATE TABLE t (x int);
         CREATE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM bump('rows', new.x); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER deferred AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION count_it()",
    )?;
    client.batch_execute(
        "BEGIN; INSERT INTO t SELECT generate_series(1, 100); SELECT bump('rows', 1); COMMIT",
    )?;
    ensure!(value(&mut client, "rows")? == 5051);
    client.batch_execute("BEGIN; INSERT INTO t VALUES (7); ROLLBACK")?;
    client.batch_execute("BEGIN; INSERT INTO t VALUES (7); SAVEPOINT s; INSERT INTO t VALUES (8); ROLLBACK TO s; COMMIT")?;
    client.batch_execute("BEGIN; INSERT INTO t VALUES (9); PREPARE TRANSACTION 'deferred'")?;
    ensure!(value(&mut client, "rows")? == 5058);
    client.batch_execute("COMMIT PREPARED 'deferred'")?;
    ensure!(value(&mut client, "rows")? == 5067);
    sound(&mut client)
}

#[test]
fn one_statement_with_many_calls_counts_them_all() -> Result<()> {
    let mut client = create_database(cluster(), "series")?;
    client.batch_execute("SELECT counter_incr('x') FROM generate_series(1, 100000)")?;
    client
        .batch_execute("SELECT counter_decr('y' || n % 100, 2) FROM generate_series(1, 10000) n")?;
    ensure!(value(&mut client, "x")? == 100_000);
    ensure!(value(&mut client, "y7")? == -200);
    // One row a counter, however many calls.
    client.batch_execute("SELECT bump('z', 0)")?;
    compact(&mut client)?;
    ensure!(value(&mut client, "x")? == 100_000);
    ensure!(value(&mut client, "y7")? == -200);
    // In the WHERE clause, the target list and an aggregate's argument; in COPY; in a CTE.
    client.batch_execute(
        "SELECT count(counter_incr('w')) FROM generate_series(1, 10);
         WITH c AS MATERIALIZED (SELECT counter_incr('w') FROM generate_series(1, 10)) SELECT count(*) FROM c;
         CREATE TABLE copied (n int, CHECK (counter_incr('w') IS NOT NULL));
         INSERT INTO copied SELECT generate_series(1, 10)",
    )?;
    ensure!(value(&mut client, "w")? == 30);
    Ok(())
}

#[test]
fn cursors_with_hold_and_without_count_what_they_fetch() -> Result<()> {
    let mut client = create_database(cluster(), "cursors")?;
    client.batch_execute(
        "BEGIN;
         DECLARE h CURSOR WITH HOLD FOR SELECT bump('held', n) FROM generate_series(1, 10) n;
         DECLARE c CURSOR FOR SELECT bump('plain', n) FROM generate_series(1, 10) n;
         FETCH 3 FROM c;
         COMMIT",
    )?;
    // The holdable cursor runs to its end at commit, before increments are flushed.
    ensure!(value(&mut client, "held")? == 55);
    ensure!(value(&mut client, "plain")? == 6);
    client.batch_execute("FETCH ALL FROM h; CLOSE h")?;
    ensure!(value(&mut client, "held")? == 55);
    // One that was begun starts anew at commit; what it counts twice the oracle counts twice, too.
    client.batch_execute(
        "BEGIN;
         DECLARE b CURSOR WITH HOLD FOR SELECT bump('begun', n) FROM generate_series(1, 10) n;
         FETCH 3 FROM b;
         COMMIT",
    )?;
    sound(&mut client)
}

#[test]
fn exception_blocks_discard_what_failed_and_keep_the_rest() -> Result<()> {
    let mut client = create_database(cluster(), "exceptions")?;
    client.batch_execute(
        "CREATE FUNCTION f(depth int) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
            PERFORM bump('f', 1);
            IF depth > 0 THEN
                BEGIN
                    PERFORM f(depth - 1);
                    PERFORM bump('f', 100);
                    IF depth % 2 = 0 THEN PERFORM 1 / 0; END IF;
                EXCEPTION WHEN division_by_zero THEN
                    PERFORM bump('caught', 1);
                END;
            END IF;
         END $$",
    )?;
    client.batch_execute("SELECT f(9)")?;
    check(&mut client)?;
    // Depth 8 throws away all below it; 9 keeps its own.
    ensure!(value(&mut client, "f")? == 102);
    ensure!(value(&mut client, "caught")? == 1);
    sound(&mut client)
}

#[test]
fn errors_of_all_kinds_leave_nothing_behind() -> Result<()> {
    let mut client = create_database(cluster(), "errors")?;
    for (sql, code) in [
        (
            "SELECT counter_incr(NULL)",
            SqlState::NULL_VALUE_NOT_ALLOWED,
        ),
        (
            "SELECT counter_incr('x', NULL)",
            SqlState::NULL_VALUE_NOT_ALLOWED,
        ),
        ("SELECT counter_incr('')", SqlState::INVALID_PARAMETER_VALUE),
        (
            "SELECT counter_incr(repeat('x', 256))",
            SqlState::INVALID_PARAMETER_VALUE,
        ),
        (
            "SELECT counter_decr('x', -9223372036854775808)",
            SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
        ),
        (
            "SELECT counter_incr('x', 9223372036854775807), counter_incr('x', 1)",
            SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
        ),
    ] {
        refused(client.batch_execute(sql), &code)?;
        refused(
            client.batch_execute(&format!("BEGIN; SELECT bump('x', 1); {sql}; COMMIT")),
            &code,
        )?;
        client.batch_execute("ROLLBACK")?;
        // In a savepoint: what went before stays.
        client.batch_execute("BEGIN; SELECT bump('kept', 1); SAVEPOINT s; SELECT bump('x', 1)")?;
        refused(client.batch_execute(sql), &code)?;
        client.batch_execute("ROLLBACK TO s; SELECT bump('kept', 1); COMMIT")?;
        check(&mut client)?;
    }
    ensure!(value(&mut client, "x")? == 0);
    ensure!(value(&mut client, "kept")? == 12);

    let readonly = "BEGIN READ ONLY; SELECT counter_incr('x')";
    refused(
        client.batch_execute(readonly),
        &SqlState::READ_ONLY_SQL_TRANSACTION,
    )?;
    client.batch_execute("ROLLBACK")?;
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let sql = format!("BEGIN ISOLATION LEVEL {level}; SELECT counterx.compact()");
        refused(
            client.batch_execute(&sql),
            &SqlState::ACTIVE_SQL_TRANSACTION,
        )?;
        client.batch_execute("ROLLBACK")?;
    }
    // A transaction that may write and then may not any more.
    client.batch_execute(
        "BEGIN; SELECT bump('kept', 1); SET TRANSACTION READ ONLY; SELECT 1; COMMIT",
    )?;
    ensure!(value(&mut client, "kept")? == 13);
    sound(&mut client)
}

#[test]
fn value_beyond_bigint_is_shown_by_the_view_and_comes_back() -> Result<()> {
    let mut client = create_database(cluster(), "overflow")?;
    for _ in 0..3 {
        client.batch_execute("SELECT counter_incr('x', 9223372036854775807)")?;
    }
    for _ in 0..2 {
        let read = client.query_one("SELECT counter_value('x')", &[]);
        refused(read, &SqlState::NUMERIC_VALUE_OUT_OF_RANGE)?;
        let shown: String = client
            .query_one("SELECT value::text FROM counters WHERE name = 'x'", &[])?
            .get(0);
        ensure!(shown == "27670116110564327421", "{shown}");
        settle(&mut client)?;
        compact(&mut client)?;
    }
    for _ in 0..2 {
        client.batch_execute("SELECT counter_decr('x', 9223372036854775807)")?;
    }
    ensure!(value(&mut client, "x")? == i64::MAX);
    settle(&mut client)?;
    ensure!(value(&mut client, "x")? == i64::MAX);
    Ok(())
}

#[test]
fn session_is_reusable_after_discard_all_and_set_role() -> Result<()> {
    let mut client = create_database(cluster(), "sessions")?;
    client.batch_execute(
        "CREATE ROLE nobody;
         GRANT ALL ON oracle TO nobody;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO nobody",
    )?;
    client.batch_execute("SELECT bump('x', 1)")?;
    client.batch_execute("DISCARD ALL")?;
    client.batch_execute("SELECT bump('x', 1)")?;
    client.batch_execute(
        "SET ROLE nobody; SELECT bump('x', 1); BEGIN; SELECT bump('x', 1); RESET ROLE; COMMIT",
    )?;
    client.batch_execute("BEGIN; SELECT bump('x', 1); SET LOCAL ROLE nobody; COMMIT")?;
    client
        .batch_execute("SET ROLE nobody; SET search_path = pg_temp; SELECT public.bump('x', 1)")?;
    for sql in [
        "SELECT * FROM counterx.total",
        "INSERT INTO counterx.log_0_a VALUES (1, now(), 1, 'x')",
        "DELETE FROM counterx.late",
        "UPDATE counterx.gate_0 SET gate = 10",
    ] {
        refused(client.batch_execute(sql), &SqlState::INSUFFICIENT_PRIVILEGE)?;
    }
    let value: i64 = client
        .query_one("SELECT public.counter_value('x')", &[])?
        .get(0);
    ensure!(value == 6, "{value}");
    client.batch_execute("RESET ALL; RESET ROLE")?;
    sound(&mut client)
}
