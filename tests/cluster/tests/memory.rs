//! A transaction whose increments outgrow `counterx.pending_work_mem` is as exact as any other.

use anyhow::{Result, ensure};
use counterx_cluster_tests::{
    check, count_and_settle, create_database, footprint, refused, settle, shared,
};
use counterx_harness::Cluster;
use postgres::Client;
use postgres::error::SqlState;

fn cluster() -> &'static Cluster {
    shared(|| {
        Cluster::builder()
            .name("memory")
            .conf("counterx.compaction_interval", "20ms")
            .conf("counterx.log_max_size", "64kB")
            .start()
    })
}

fn small(db: &str) -> Result<Client> {
    let mut client = cluster().connect_db(db)?;
    client.batch_execute("SET counterx.pending_work_mem = '64kB'")?;
    Ok(client)
}

/// Rows that the session's own transaction has put into the logs before its end.
fn early(client: &mut Client) -> Result<i64> {
    let logs: Vec<_> = (0..8)
        .flat_map(|lane| {
            ["a", "b"].map(|side| format!("SELECT xmin FROM counterx.log_{lane}_{side}"))
        })
        .collect();
    let sql = format!(
        "SELECT count(*) FROM ({}) logs WHERE pg_xact_status(xmin::text::xid8) = 'in progress'",
        logs.join(" UNION ALL ")
    );
    Ok(client.query_one(&sql, &[])?.get(0))
}

fn many(sign: &str, from: u32, to: u32) -> String {
    format!("SELECT bump('many:' || n, {sign}n) FROM generate_series({from}, {to}) n")
}

#[test]
fn thousands_of_names_between_savepoints_are_exact() -> Result<()> {
    let mut client = create_database(cluster(), "savepoints")?;
    let mut session = small("savepoints")?;
    session.batch_execute("BEGIN")?;
    session.batch_execute("SELECT bump('many:1', 1000)")?;
    for (number, end) in ["RELEASE", "ROLLBACK TO", "RELEASE", "ROLLBACK TO"]
        .iter()
        .enumerate()
    {
        session.batch_execute(&format!("SAVEPOINT outer{number}"))?;
        session.batch_execute(&many("", 1, 3000))?;
        check(&mut session)?;
        session.batch_execute("SAVEPOINT deep")?;
        session.batch_execute(&many("-", 1500, 4500))?;
        check(&mut session)?;
        session.batch_execute("ROLLBACK TO deep")?;
        check(&mut session)?;
        session.batch_execute(&many("2 * ", 2500, 5500))?;
        session.batch_execute("RELEASE deep")?;
        check(&mut session)?;
        session.batch_execute(&format!("{end} outer{number}"))?;
        check(&mut session)?;
        ensure!(check(&mut client)? == 0, "others see what is not committed");
    }
    ensure!(
        early(&mut session)? > 0,
        "nothing was flushed early: the test shows nothing"
    );
    session.batch_execute("COMMIT")?;
    ensure!(check(&mut client)? == 5500);
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}

#[test]
fn early_flushed_transaction_that_rolls_back_counts_nothing() -> Result<()> {
    let mut client = create_database(cluster(), "rollback")?;
    let mut session = small("rollback")?;
    client.batch_execute("SELECT bump('many:7', 7)")?;
    session.batch_execute("BEGIN")?;
    session.batch_execute(&many("", 1, 5000))?;
    check(&mut session)?;
    session.batch_execute("ROLLBACK")?;
    check(&mut session)?;
    session.batch_execute("SELECT bump('many:7', 1)")?;
    check(&mut client)?;
    settle(&mut client)?;
    check(&mut client)?;
    let value: i64 = client
        .query_one("SELECT counter_value('many:7')", &[])?
        .get(0);
    ensure!(value == 8);
    Ok(())
}

/// Such a transaction holds its epoch: folds that come while it is open must not pass over it.
#[test]
fn folds_beside_an_open_early_flushed_transaction_lose_nothing() -> Result<()> {
    let mut client = create_database(cluster(), "open")?;
    let mut session = small("open")?;
    session.batch_execute("BEGIN")?;
    session.batch_execute(&many("", 1, 3000))?;
    ensure!(early(&mut session)? > 0, "nothing was flushed early");
    // By hand one would wait for that transaction to end, so not for long here.
    client.batch_execute("SET statement_timeout = '100ms'")?;
    for _ in 0..5 {
        client.batch_execute("SELECT bump('many:' || n, 1) FROM generate_series(1, 200) n")?;
        if let Err(error) = client.batch_execute("SELECT counterx.compact()") {
            refused(Err::<(), _>(error), &SqlState::QUERY_CANCELED)?;
        }
        check(&mut client)?;
        check(&mut session)?;
        session.batch_execute(&many("", 2000, 3500))?;
    }
    client.batch_execute("RESET statement_timeout")?;
    session.batch_execute("COMMIT")?;
    check(&mut client)?;
    count_and_settle(&mut client)?;
    ensure!(footprint(&mut client)?.pending == 0);
    Ok(())
}

#[test]
fn prepare_after_an_early_flush_is_refused_and_leaves_nothing() -> Result<()> {
    let mut client = create_database(cluster(), "prepare")?;
    let mut session = small("prepare")?;
    session.batch_execute("BEGIN")?;
    session.batch_execute(&many("", 1, 5000))?;
    ensure!(early(&mut session)? > 0, "nothing was flushed early");
    let message = refused(
        session.batch_execute("PREPARE TRANSACTION 'memory'"),
        &SqlState::FEATURE_NOT_SUPPORTED,
    )?;
    ensure!(!message.is_empty());
    session.batch_execute("ROLLBACK")?;
    let prepared: i64 = client
        .query_one("SELECT count(*) FROM pg_prepared_xacts", &[])?
        .get(0);
    ensure!(prepared == 0);
    ensure!(check(&mut client)? == 0);
    session.batch_execute("BEGIN; SELECT bump('x', 1); PREPARE TRANSACTION 'memory'")?;
    session.batch_execute("COMMIT PREPARED 'memory'")?;
    session.batch_execute("SELECT bump('x', 1)")?;
    settle(&mut client)?;
    ensure!(check(&mut client)? == 1);
    Ok(())
}

#[test]
fn early_flush_inside_a_rolled_back_savepoint_does_not_forbid_to_prepare_wrongly() -> Result<()> {
    let mut client = create_database(cluster(), "undone")?;
    let mut session = small("undone")?;
    session.batch_execute("BEGIN; SELECT bump('x', 1); SAVEPOINT s")?;
    session.batch_execute(&many("", 1, 5000))?;
    session.batch_execute("ROLLBACK TO s; SELECT bump('x', 10)")?;
    check(&mut session)?;
    // Whether it may be prepared is the engine's choice; what it must not do is to lose a part.
    let count = match session.batch_execute("PREPARE TRANSACTION 'undone'") {
        Ok(()) => {
            session.batch_execute("COMMIT PREPARED 'undone'")?;
            11_i64
        }
        Err(error) => {
            refused(Err::<(), _>(error), &SqlState::FEATURE_NOT_SUPPORTED)?;
            session.batch_execute("ROLLBACK")?;
            0
        }
    };
    check(&mut client)?;
    let value: i64 = client.query_one("SELECT counter_value('x')", &[])?.get(0);
    ensure!(value == count, "{value}, not {count}");
    client.batch_execute("SELECT bump('x', 1)")?;
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}
