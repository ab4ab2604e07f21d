//! Bounded counters under load: no snapshot shows one beyond its bounds, nothing is sold twice,
//! nothing is kept back when all have ended; whatever is killed, and however the library is loaded.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use counterx_cluster_tests::{
    BoundedEnd, BoundedLoad, DEADLINE, Recovering, bounded_under_watch, check, create_database,
    folding_hard, prepare_bounded, refused, seed, shared, victim,
};
use counterx_harness::{Cluster, StopMode, kill9_chosen, poll_until};
use postgres::error::SqlState;
use postgres::{Client, Config};

fn start(name: &str, preload: bool) -> Result<Cluster> {
    folding_hard(name)
        .preload(preload)
        // Without shared memory, whoever takes from two counters may meet a deadlock.
        .conf("deadlock_timeout", "10ms")
        .conf("max_connections", "130")
        .start()
}

fn preloaded() -> &'static Cluster {
    shared(|| start("bounded", true))
}

fn not_preloaded() -> &'static Cluster {
    static SHARED: std::sync::OnceLock<Cluster> = std::sync::OnceLock::new();
    SHARED.get_or_init(|| start("bounded-nopreload", false).expect("a server"))
}

const LOAD: BoundedLoad = BoundedLoad {
    clients: 16,
    transactions: 60,
    survives: false,
    holds: true,
    seed: 0,
};

/// The load and its checks, in a new database.
fn stress(
    config: &Config,
    mut client: Client,
    load: BoundedLoad,
    meanwhile: impl FnOnce(&BoundedEnd, &BoundedLoad) -> Result<()>,
) -> Result<()> {
    let load = BoundedLoad {
        seed: seed(),
        ..load
    };
    prepare_bounded(&mut client)?;
    drop(client);
    let end = bounded_under_watch(config, load, |end| meanwhile(end, &load))?;
    ensure!(end.looks.load(Ordering::Relaxed) > 0, "{end:?}");
    ensure!(end.done.load(Ordering::Relaxed) > 10, "{end:?}");
    ensure!(
        load.survives == (end.lost.load(Ordering::Relaxed) > 0),
        "{end:?}"
    );
    Ok(())
}

#[test]
fn any_mix_keeps_the_bounds() -> Result<()> {
    let client = create_database(preloaded(), "mix")?;
    let load = BoundedLoad {
        clients: 24,
        ..LOAD
    };
    stress(&preloaded().config("mix"), client, load, |_, _| Ok(()))
}

#[test]
fn any_mix_keeps_the_bounds_without_preload() -> Result<()> {
    let client = create_database(not_preloaded(), "mix")?;
    let load = BoundedLoad {
        transactions: 40,
        ..LOAD
    };
    stress(&not_preloaded().config("mix"), client, load, |_, _| Ok(()))
}

/// Terminates a client's backend again and again.
fn terminate(config: &Config, end: &BoundedEnd, load: &BoundedLoad) -> Result<()> {
    let mut connection = Recovering::new(config);
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM (
                   SELECT pid FROM pg_stat_activity
                    WHERE datname = current_database() AND pid <> pg_backend_pid()
                      AND backend_type = 'client backend' AND xact_start IS NOT NULL
                    ORDER BY random() LIMIT 3) victims";
    while !end.reached(load, 95) {
        connection.client()?.execute(sql, &[])?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn terminated_backends_keep_nothing_back() -> Result<()> {
    let client = create_database(preloaded(), "terminate")?;
    let config = preloaded().config("terminate");
    let load = BoundedLoad {
        survives: true,
        ..LOAD
    };
    stress(&config, client, load, |end, load| {
        terminate(&config, end, load)
    })
}

#[test]
fn terminated_backends_keep_nothing_back_without_preload() -> Result<()> {
    let client = create_database(not_preloaded(), "terminate")?;
    let config = not_preloaded().config("terminate");
    let load = BoundedLoad {
        survives: true,
        transactions: 40,
        ..LOAD
    };
    stress(&config, client, load, |end, load| {
        terminate(&config, end, load)
    })
}

#[test]
fn crashes_keep_the_bounds_and_nothing_back() -> Result<()> {
    let mut cluster = start("bounded-crash", true)?;
    let client = create_database(&cluster, "crash")?;
    let config = cluster.config("crash");
    let load = BoundedLoad {
        survives: true,
        transactions: 80,
        ..LOAD
    };
    let wait = |end: &BoundedEnd, load: &BoundedLoad, percent| {
        poll_until("a share of the load", 2 * DEADLINE, || {
            Ok(end.reached(load, percent))
        })
    };
    stress(&config, client, load, |end, load| {
        wait(end, load, 25)?;
        let sql = "SELECT pid FROM pg_stat_activity WHERE xact_start IS NOT NULL
                      AND backend_type = 'client backend' AND pid <> pg_backend_pid() LIMIT 1";
        let mut connection = Recovering::new(&config);
        kill9_chosen(|| victim(&mut connection, "a victim", sql))?;
        wait(end, load, 50)?;
        cluster.restart(StopMode::Immediate)?;
        wait(end, load, 75)?;
        cluster.kill_postmaster()?;
        cluster.start()
    })
}

/// Sells all units one by one; a third of the sales are rolled back. Who is refused goes home.
/// Returns what is left.
fn sell(cluster: &Cluster, db: &str, stock: i64, clients: u64, wait: &str) -> Result<i64> {
    let mut client = create_database(cluster, db)?;
    client.batch_execute(
        "CREATE TABLE sold (unit bigint GENERATED ALWAYS AS IDENTITY, client bigint);
         SELECT counter_type_create('stock', min => 0)",
    )?;
    client.execute("SELECT bump('stock:a', $1)", &[&stock])?;
    let attempts = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let sellers: Vec<_> = (0..clients)
            .map(|number| {
                let attempts = &attempts;
                scope.spawn(move || -> Result<()> {
                    let mut client = cluster.connect_db(db)?;
                    client.batch_execute(&format!("SET counterx.escrow_wait = '{wait}'"))?;
                    let take = client.prepare("SELECT counter_try_incr('stock:a', -1)")?;
                    let book = client.prepare("INSERT INTO sold (client) VALUES ($1)")?;
                    loop {
                        let attempt = attempts.fetch_add(1, Ordering::Relaxed);
                        let mut transaction = client.transaction()?;
                        if !transaction.query_one(&take, &[])?.get::<_, bool>(0) {
                            return Ok(());
                        }
                        transaction.execute(&book, &[&(number as i64)])?;
                        if attempt.is_multiple_of(3) {
                            transaction.rollback()?;
                        } else {
                            transaction.commit()?;
                        }
                    }
                })
            })
            .collect();
        for seller in sellers {
            seller.join().map_err(|_| anyhow!("a seller panicked"))??;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let sql = "SELECT counter_value('stock:a'), (SELECT count(*) FROM sold)";
    let row = client.query_one(sql, &[])?;
    let (left, sold): (i64, i64) = (row.get(0), row.get(1));
    ensure!(
        left >= 0 && sold + left == stock,
        "{sold} sold, {left} left"
    );
    // What is left can be had, unit by unit, and no more.
    for number in 0..=left {
        let sql = "SELECT counter_try_incr('stock:a', -1)";
        let got: bool = client.query_one(sql, &[])?.get(0);
        ensure!(got == (number < left), "unit {number} of {left}: {got}");
    }
    Ok(left)
}

/// Who waits for others is refused only when all is sold for good.
#[test]
fn every_unit_is_sold_exactly_once() -> Result<()> {
    let left = sell(preloaded(), "sale", 10_000, 32, "1h")?;
    ensure!(left == 0, "somebody was refused, and {left} are left");
    Ok(())
}

#[test]
fn every_unit_is_sold_exactly_once_without_preload() -> Result<()> {
    let left = sell(not_preloaded(), "sale", 1_500, 16, "0")?;
    ensure!(left == 0, "somebody was refused, and {left} are left");
    Ok(())
}

#[test]
fn nothing_is_oversold_when_nobody_waits() -> Result<()> {
    for round in 0..10 {
        sell(preloaded(), &format!("hasty{round}"), 40, 16, "0")?;
    }
    Ok(())
}

fn ask(client: &mut Client, sql: &str) -> Result<bool> {
    Ok(client.query_one(sql, &[])?.get(0))
}

const TAKE: &str = "SELECT counter_try_incr('stock:a', -1)";

/// So many wait for one who has reserved both units. How many get one after this?
fn some_wait(db: &str, number: i64, end: &str) -> Result<usize> {
    let mut client = create_database(preloaded(), db)?;
    client.batch_execute(
        "SELECT counter_type_create('stock', min => 0); SELECT bump('stock:a', 2);",
    )?;
    let mut holder = preloaded().connect_db(db)?;
    holder.batch_execute("BEGIN; SELECT counter_incr('stock:a', -2)")?;
    let together = &Barrier::new(usize::try_from(number)?);
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..number)
            .map(|_| {
                scope.spawn(move || -> Result<bool> {
                    let mut client = preloaded().connect_db(db)?;
                    client.batch_execute("SET counterx.escrow_wait = '1h'")?;
                    together.wait();
                    ask(&mut client, TAKE)
                })
            })
            .collect();
        // Again and again: they sleep, and do not wake each other.
        let mut in_a_row = 0;
        poll_until("all to wait", DEADLINE, || {
            let sql = "SELECT count(*) = $1 FROM pg_stat_activity
                        WHERE datname = current_database() AND backend_type = 'client backend'
                          AND wait_event_type = 'Extension'
                          AND wait_event = CASE WHEN current_setting('server_version_num')::int < 170000
                              THEN 'Extension' ELSE 'CounterxRoom' END";
            let all: bool = client.query_one(sql, &[&number])?.get(0);
            in_a_row = if all { in_a_row + 1 } else { 0 };
            Ok(in_a_row == 50)
        })?;
        if let Err(error) = holder.batch_execute(end) {
            ensure!(end.contains("terminate"), "{error:#}");
        }
        let mut got = 0;
        for waiter in waiters {
            got += usize::from(waiter.join().map_err(|_| anyhow!("panicked"))??);
        }
        Ok(got)
    })
}

#[test]
fn all_who_wait_are_woken() -> Result<()> {
    for (db, end, due) in [
        ("woken1", "ROLLBACK", 2),
        ("woken2", "COMMIT", 0),
        ("woken3", "SELECT pg_terminate_backend(pg_backend_pid())", 2),
    ] {
        let got = some_wait(db, 2, end)?;
        ensure!(got == due, "{got} after {end}");
    }
    Ok(())
}

/// Nobody keeps the others from sleeping, or from getting what there is.
#[test]
fn many_who_wait_are_not_in_each_others_way() -> Result<()> {
    let got = some_wait("many", 100, "ROLLBACK")?;
    ensure!(got == 2, "{got}");
    Ok(())
}

#[test]
fn who_is_cancelled_while_waiting_keeps_nothing_back() -> Result<()> {
    let mut client = create_database(preloaded(), "cancelled")?;
    client.batch_execute(
        "SELECT counter_type_create('stock', min => 0); SELECT bump('stock:a', 1);",
    )?;
    let mut holder = preloaded().connect_db("cancelled")?;
    let mut waiter = preloaded().connect_db("cancelled")?;
    for _ in 0..3 {
        holder.batch_execute(&format!("BEGIN; {TAKE}"))?;
        waiter.batch_execute(
            "SET counterx.escrow_wait = '1h'; SET statement_timeout = '50ms'; BEGIN; SAVEPOINT s",
        )?;
        refused(waiter.query_one(TAKE, &[]), &SqlState::QUERY_CANCELED)?;
        holder.batch_execute("ROLLBACK")?;
        ensure!(ask(
            &mut holder,
            &format!("BEGIN; {TAKE}").replace("BEGIN; ", "")
        )?);
        holder.batch_execute("SELECT counter_incr('stock:a', 1)")?;
        waiter.batch_execute("ROLLBACK TO s; SET statement_timeout = 0")?;
        ensure!(ask(&mut waiter, TAKE)?);
        waiter.batch_execute("ROLLBACK")?;
    }
    Ok(())
}

#[test]
fn full_accounts_are_a_clear_error_and_nothing_else() -> Result<()> {
    let cluster = Cluster::builder()
        .name("bounded-entries")
        .conf("counterx.escrow_entries", "16")
        .start()?;
    let mut one = create_database(&cluster, "entries")?;
    one.batch_execute("SELECT counter_type_create('stock', min => 0)")?;
    let mut two = cluster.connect_db("entries")?;
    one.batch_execute("SELECT counter_incr('stock:' || n, 5) FROM generate_series(1, 16) n")?;
    one.batch_execute("SELECT counter_incr('stock:' || n, 5) FROM generate_series(17, 32) n")?;

    for ending in [
        "ROLLBACK",
        "COMMIT",
        "SELECT pg_terminate_backend(pg_backend_pid())",
    ] {
        one.batch_execute(
            "BEGIN; SELECT counter_incr('stock:' || n, -1) FROM generate_series(1, 16) n",
        )?;
        let full = two.execute("SELECT counter_incr('stock:17', -1)", &[]);
        let hint = full
            .as_ref()
            .err()
            .and_then(|error| error.as_db_error()?.hint().map(str::to_owned));
        refused(full, &SqlState::CONFIGURATION_LIMIT_EXCEEDED)?;
        ensure!(
            hint.is_some_and(|hint| hint.contains("counterx.escrow_entries")),
            "the hint does not name the setting"
        );
        // Those that have an account, and plain ones, are not concerned.
        two.batch_execute("SELECT counter_incr('stock:3', -1)")?;
        two.batch_execute("SELECT counter_incr('plain:' || n) FROM generate_series(1, 100) n")?;
        if one.batch_execute(ending).is_err() {
            one = cluster.connect_db("entries")?;
        }
        poll_until("accounts to be free", DEADLINE, || {
            Ok(two
                .execute("SELECT counter_incr('stock:17', -1)", &[])
                .is_ok())
        })?;
        two.batch_execute("SELECT counter_incr('stock:' || n, 0) FROM generate_series(1, 32) n")?;
    }
    // In one transaction: what went before is intact after a rollback to a savepoint.
    one.batch_execute(
        "BEGIN; SELECT counter_incr('stock:' || n, -1) FROM generate_series(1, 16) n; SAVEPOINT s",
    )?;
    refused(
        one.execute("SELECT counter_incr('stock:17', -1)", &[]),
        &SqlState::CONFIGURATION_LIMIT_EXCEEDED,
    )?;
    one.batch_execute("ROLLBACK TO s; SELECT counter_incr('stock:1', -1); COMMIT")?;
    let sql = "SELECT counter_value('stock:1') = 5 - 1 - 2 AND counter_value('stock:17') = 2";
    ensure!(ask(&mut one, sql)?);
    Ok(())
}

/// The same database by another name has accounts of its own.
#[test]
fn a_database_made_from_a_template_has_its_own_stock() -> Result<()> {
    let cluster = start("bounded-template", true)?;
    let mut client = create_database(&cluster, "original")?;
    client.batch_execute(
        "SELECT counter_type_create('stock', min => 0); SELECT bump('stock:a', 3)",
    )?;
    client.batch_execute("SELECT counter_hold('stock:a', 1, '1 hour')")?;
    drop(client);
    let mut admin = cluster.connect()?;
    poll_until("the database to be copied", DEADLINE, || {
        Ok(admin
            .batch_execute("CREATE DATABASE copy TEMPLATE original")
            .is_ok())
    })?;
    let (mut original, mut copy) = (cluster.connect_db("original")?, cluster.connect_db("copy")?);
    original.batch_execute("BEGIN")?;
    for client in [&mut original, &mut copy] {
        ensure!(ask(client, "SELECT counter_take_up_to('stock:a', 9) = 2")?);
        ensure!(ask(client, "SELECT NOT counter_try_incr('stock:a', -1)")?);
    }
    copy.batch_execute("SELECT counter_hold_confirm(1)")?;
    original.batch_execute("ROLLBACK")?;
    ensure!(ask(&mut original, "SELECT counter_value('stock:a') = 3")?);
    ensure!(ask(&mut copy, "SELECT counter_value('stock:a') = 0")?);
    check(&mut original)?;
    Ok(())
}
