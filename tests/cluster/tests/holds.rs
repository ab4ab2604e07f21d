//! Holds, and types, beyond the life of a session: sales through holds, expiry in the middle of a
//! confirmation, standby, dump and restore.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use counterx_cluster_tests::{DEADLINE, catch_up, create_database, refused, shared, sqlstate};
use counterx_harness::{Cluster, StopMode, poll_until, run};
use postgres::Client;
use postgres::error::SqlState;

fn start(name: &str, preload: bool) -> Result<Cluster> {
    Cluster::builder()
        .name(name)
        .preload(preload)
        .conf("counterx.compaction_interval", "20ms")
        .conf("deadlock_timeout", "10ms")
        .start()
}

fn cluster() -> &'static Cluster {
    shared(|| start("holds", true))
}

fn not_preloaded() -> &'static Cluster {
    static SHARED: std::sync::OnceLock<Cluster> = std::sync::OnceLock::new();
    SHARED.get_or_init(|| start("holds-nopreload", false).expect("a server"))
}

fn stock(cluster: &Cluster, db: &str, units: i64) -> Result<Client> {
    let mut client = create_database(cluster, db)?;
    client.batch_execute("SELECT counter_type_create('stock', min => 0)")?;
    client.execute("SELECT counter_incr('stock:a', $1)", &[&units])?;
    Ok(client)
}

fn ask(client: &mut Client, sql: &str) -> Result<bool> {
    Ok(client.query_one(sql, &[])?.get(0))
}

/// A shop: units are held, and then bought, given back, or forgotten until the hold expires. All are
/// sold in the end, each once.
fn shop(cluster: &Cluster, db: &str, units: i64, clients: u64) -> Result<()> {
    let mut client = stock(cluster, db, units)?;
    client.batch_execute("CREATE TABLE sold (hold bigint PRIMARY KEY)")?;
    std::thread::scope(|scope| {
        let shoppers: Vec<_> = (0..clients)
            .map(|number| {
                scope.spawn(move || -> Result<()> {
                    let mut client = cluster.connect_db(db)?;
                    let hold = client
                        .prepare("SELECT counter_hold('stock:a', 1, make_interval(secs => $1))")?;
                    for round in number.. {
                        // Expires about when it is confirmed, or in good time.
                        let ttl = if round % 2 == 0 { 0.002 } else { 3600.0 };
                        let id: i64 = match client.query_one(&hold, &[&ttl]) {
                            Ok(row) => row.get(0),
                            Err(error) if error.code() == Some(&SqlState::CHECK_VIOLATION) => {
                                let sql = "SELECT counter_value('stock:a') = 0";
                                if ask(&mut client, sql)? {
                                    return Ok(());
                                }
                                continue;
                            }
                            Err(error) => return Err(error.into()),
                        };
                        if round % 6 == 4 {
                            continue;
                        }
                        if round % 6 == 3 {
                            client.execute("SELECT counter_hold_release($1)", &[&id])?;
                            continue;
                        }
                        let bought = (|| -> Result<()> {
                            let mut transaction = client.transaction()?;
                            transaction.execute("SELECT counter_hold_confirm($1)", &[&id])?;
                            transaction.execute("INSERT INTO sold VALUES ($1)", &[&id])?;
                            Ok(transaction.commit()?)
                        })();
                        if let Err(error) = bought {
                            let code = sqlstate(&error);
                            ensure!(
                                code == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE),
                                "{error:#}"
                            );
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        for shopper in shoppers {
            shopper
                .join()
                .map_err(|_| anyhow!("a shopper panicked"))??;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let sold: i64 = client.query_one("SELECT count(*) FROM sold", &[])?.get(0);
    ensure!(sold == units, "{sold} of {units} sold");
    Ok(())
}

#[test]
fn every_unit_is_sold_once_through_holds() -> Result<()> {
    shop(cluster(), "shop", 600, 12)
}

#[test]
fn every_unit_is_sold_once_through_holds_without_preload() -> Result<()> {
    shop(not_preloaded(), "shop", 200, 6)
}

/// Somebody is in the way of a confirmation until the hold has expired. What counts is the time at
/// which the units are taken.
fn confirm_too_late(cluster: &Cluster, db: &str, block: &str, then: &str) -> Result<()> {
    let mut client = stock(cluster, db, 3)?;
    let mut other = cluster.connect_db(db)?;
    let mut attempts = 0;
    loop {
        attempts += 1;
        // Long enough for the confirmation to be under way before, on a machine that is not too busy.
        let ttl = format!("{} milliseconds", 100 << attempts);
        let sql = format!("SELECT counter_hold('stock:a', 2, '{ttl}')");
        let id: i64 = client.query_one(&sql, &[])?.get(0);
        other.batch_execute(&format!("BEGIN; {}", block.replace("$1", &id.to_string())))?;
        let (waited, confirmed) = std::thread::scope(|scope| {
            let client = &mut client;
            let confirmer =
                scope.spawn(move || client.execute("SELECT counter_hold_confirm($1)", &[&id]));
            let mut waited = false;
            poll_until("the hold to expire", DEADLINE, || {
                let sql = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted), expired
                             FROM counter_holds WHERE id = $1";
                // Its own release hides it from the transaction that is in the way.
                let row = cluster.connect_db(db)?.query_one(sql, &[&id])?;
                waited |= row.get::<_, bool>(0) && !row.get::<_, bool>(1);
                Ok(row.get(1))
            })?;
            other.batch_execute(then)?;
            let confirmed = confirmer.join().map_err(|_| anyhow!("panicked"))?;
            Ok::<_, anyhow::Error>((waited, confirmed))
        })?;
        refused(confirmed, &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE)?;
        ensure!(ask(&mut other, "SELECT counter_value('stock:a') >= 0")?);
        if waited {
            return Ok(());
        }
        ensure!(attempts < 6, "the confirmation never came in time");
        other.batch_execute("SELECT counter_set('stock:a', 3)")?;
    }
}

#[test]
fn a_confirmation_that_had_to_wait_for_the_counter_comes_too_late() -> Result<()> {
    let block = "SELECT counter_incr('stock:a', -1)";
    let then = "SELECT counter_take_up_to('stock:a', 3); COMMIT";
    confirm_too_late(not_preloaded(), "late1", block, then)
}

#[test]
fn a_confirmation_that_had_to_wait_for_the_hold_comes_too_late() -> Result<()> {
    let block = "SELECT counter_hold_release($1)";
    confirm_too_late(cluster(), "late2", block, "ROLLBACK")?;
    confirm_too_late(not_preloaded(), "late2", block, "ROLLBACK")
}

/// A confirmation and a take meet while the hold expires: never do both get the units.
#[test]
fn a_hold_that_expires_is_confirmed_or_taken_but_not_both() -> Result<()> {
    const UNITS: i64 = 3;
    let mut client = stock(cluster(), "expiry", UNITS)?;
    let mut taker = cluster().connect_db("expiry")?;
    let (mut confirmed, mut expired) = (0, 0);
    for round in 0..60_u64 {
        let sql = "SELECT counter_hold('stock:a', 3, '4 milliseconds')";
        let id: i64 = client.query_one(sql, &[])?.get(0);
        let (sold, taken) = std::thread::scope(|scope| {
            let client = &mut client;
            let confirmer = scope.spawn(move || -> Result<bool> {
                std::thread::sleep(Duration::from_micros(round % 20 * 250));
                match client.execute("SELECT counter_hold_confirm($1)", &[&id]) {
                    Ok(_) => Ok(true),
                    Err(error) => {
                        let code = SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE;
                        refused(Err::<(), _>(error), &code)?;
                        Ok(false)
                    }
                }
            });
            let mut taken = 0;
            poll_until("somebody to get them", DEADLINE, || {
                let sql = "SELECT counter_take_up_to('stock:a', 3), counter_value('stock:a')";
                let row = taker.query_one(sql, &[])?;
                taken += row.get::<_, i64>(0);
                Ok(taken > 0 || row.get::<_, i64>(1) == 0)
            })?;
            let sold = confirmer.join().map_err(|_| anyhow!("panicked"))??;
            Ok::<_, anyhow::Error>((sold, taken))
        })?;
        ensure!(
            if sold { taken == 0 } else { taken == UNITS },
            "confirmed: {sold}, taken: {taken}"
        );
        confirmed += u64::from(sold);
        expired += u64::from(!sold);
        let sql = "SELECT counter_set('stock:a', 3) = 0";
        ensure!(ask(&mut client, sql)?, "not all were sold");
    }
    ensure!(confirmed > 0 && expired > 0, "{confirmed}, {expired}");
    Ok(())
}

/// What a database with a type, 5 units and a hold of 2 has to be like.
fn as_it_was(client: &mut Client, hold: i64) -> Result<()> {
    let sql = "SELECT min = 0 AND max = 7 AND description = 'what is left' AND counters = 1
                 FROM counter_types WHERE name = 'stock'";
    ensure!(ask(client, sql)?, "the type is another one");
    let sql = "SELECT value = 5 AND held = 2 AND available = 3 FROM counter_available('stock:a')";
    ensure!(ask(client, sql)?, "the counter is another one");
    ensure!(ask(client, "SELECT NOT counter_try_incr('stock:a', -4)")?);
    ensure!(ask(client, "SELECT NOT counter_try_incr('stock:a', 3)")?);
    let sql = "SELECT counter_hold('stock:a', 1, '1 hour')";
    let next: i64 = client.query_one(sql, &[])?.get(0);
    ensure!(next > hold, "hold {next} after {hold}");
    ensure!(ask(client, "SELECT counter_take_up_to('stock:a', 9) = 2")?);
    client.execute("SELECT counter_hold_confirm($1)", &[&hold])?;
    client.execute("SELECT counter_hold_confirm($1)", &[&next])?;
    ensure!(ask(client, "SELECT counter_value('stock:a') = 0")?);
    ensure!(ask(client, "SELECT NOT counter_try_incr('stock:a', -1)")?);
    Ok(())
}

fn furnish(cluster: &Cluster, db: &str) -> Result<i64> {
    let mut client = create_database(cluster, db)?;
    client.batch_execute(
        "SELECT counter_type_create('stock', 0, 7, 'what is left');
         SELECT counter_incr('stock:a', 5)",
    )?;
    let sql = "SELECT counter_hold('stock:a', 2, '1 day', 'basket')";
    Ok(client.query_one(sql, &[])?.get(0))
}

#[test]
fn holds_and_types_survive_crashes() -> Result<()> {
    let mut cluster = start("holds-crash", true)?;
    let hold = furnish(&cluster, "crash")?;
    let mut client = cluster.connect_db("crash")?;
    client.batch_execute("BEGIN; SELECT counter_hold('stock:a', 3, '1 day')")?;
    cluster.restart(StopMode::Immediate)?;
    cluster.kill_postmaster()?;
    cluster.start()?;
    as_it_was(&mut cluster.connect_db("crash")?, hold)
}

#[test]
fn holds_and_types_are_dumped_and_restored() -> Result<()> {
    let hold = furnish(cluster(), "source")?;
    for (db, options) in [("plain", &["-Fp"][..]), ("custom", &["-Fc"][..])] {
        let file = cluster().directory().join(db);
        run(cluster()
            .tool("pg_dump")
            .args(options)
            .arg("-f")
            .arg(&file)
            .arg("source"))?;
        cluster()
            .connect()?
            .batch_execute(&format!("CREATE DATABASE {db}"))?;
        if db == "plain" {
            run(cluster()
                .tool("psql")
                .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", db, "-f"])
                .arg(&file))?;
        } else {
            run(cluster()
                .tool("pg_restore")
                .args(["--exit-on-error", "-d", db])
                .arg(&file))?;
        }
        as_it_was(&mut cluster().connect_db(db)?, hold)?;
    }
    Ok(())
}

#[test]
fn a_promoted_standby_goes_on_where_the_primary_was() -> Result<()> {
    let primary = start("holds-primary", true)?;
    let hold = furnish(&primary, "shop")?;
    let mut standby = Cluster::builder()
        .name("holds-standby")
        .standby_of(&primary)
        .start()?;
    let mut client = standby.connect_db("shop")?;
    let sql = "SELECT value = 5 AND held = 2 AND available = 3 FROM counter_available('stock:a')";
    catch_up(&primary, &mut client)?;
    ensure!(ask(&mut client, sql)?);
    refused(
        client.query_one("SELECT counter_try_incr('stock:a', -1)", &[]),
        &SqlState::READ_ONLY_SQL_TRANSACTION,
    )?;
    refused(
        client.query_one("SELECT counter_hold('stock:a', 1, '1 hour')", &[]),
        &SqlState::READ_ONLY_SQL_TRANSACTION,
    )?;
    standby.promote()?;
    as_it_was(&mut client, hold)
}

/// Sessions of a standby hear of types that the primary makes.
#[test]
fn types_reach_sessions_of_a_standby() -> Result<()> {
    let primary = start("types-primary", true)?;
    let mut client = create_database(&primary, "types")?;
    client.batch_execute("SELECT counter_incr('stock:a', 5)")?;
    let standby = Cluster::builder()
        .name("types-standby")
        .standby_of(&primary)
        .start()?;
    let mut reader = standby.connect_db("types")?;
    let sql = "SELECT available IS NULL FROM counter_available('stock:a')";
    ensure!(ask(&mut reader, sql)?);
    client.batch_execute("SELECT counter_type_create('stock', min => 0)")?;
    let sql = "SELECT available IS NOT DISTINCT FROM 5 FROM counter_available('stock:a')";
    poll_until("the type to be heard of", DEADLINE, || {
        ask(&mut reader, sql)
    })
}
