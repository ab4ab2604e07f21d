//! Set, reset, drop, rename, merge and tokens among increments: nothing lost, nothing counted twice,
//! and all ways to read agree in every snapshot.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use anyhow::{Result, ensure};
use counterx_cluster_tests::{
    Control, Load, Outcome, Recovering, agree, changes_schema, changes_under_watch, committing,
    create_database, folding_hard, folds_often, footprint, kill_and_recover,
    nothing_crashed_by_itself, seed, settle, shared, together, totals_are_clean,
};
use counterx_harness::{Cluster, StopMode};
use postgres::{Client, NoTls};

const DB: &str = "changes";

fn start(name: &str) -> Result<Cluster> {
    folding_hard(name)
        // Those that rename and merge meet in all orders, and are told so.
        .conf("deadlock_timeout", "20ms")
        .start()
}

fn cluster() -> &'static Cluster {
    shared(|| start("changes"))
}

fn database(name: &str) -> Result<Client> {
    let mut client = create_database(cluster(), name)?;
    client.batch_execute(changes_schema())?;
    Ok(client)
}

#[test]
fn every_snapshot_of_mixed_changes_is_exact_in_all_ways_to_read() -> Result<()> {
    let mut client = database(DB)?;
    let before = footprint(&mut client)?;
    let load = Load {
        clients: 10,
        transactions: 120,
        names: 4,
        two_phase: true,
        checkers: 2,
        ..Load::default()
    };
    // How many looks there are beside a load is the machine's.
    let mut checks = 0;
    for seed in (seed()..).take(10) {
        let load = Load {
            seed,
            ..load.clone()
        };
        let watched = changes_under_watch(&cluster().config(DB), &load, |_| Ok(()))?;
        let outcome = watched.outcome;
        ensure!(outcome.done > outcome.refused, "{watched:?}");
        checks += watched.checks;
        if checks >= 20 {
            break;
        }
    }
    ensure!(checks >= 20, "too few looks: {checks}");
    client.batch_execute("SELECT bump('n:last', 1)")?;
    settle(&mut client)?;
    agree(&mut client)?;
    totals_are_clean(&mut client)?;
    folds_often(&mut client, &before)?;
    Ok(())
}

/// What resets have returned and what is left add up to all increments; without any oracle.
#[test]
fn what_resets_return_and_what_remains_is_all_that_was_counted() -> Result<()> {
    let mut client = database("resets")?;
    let config = cluster().config("resets");
    let (counted, taken) = (AtomicI64::new(0), AtomicI64::new(0));
    let counting = AtomicI64::new(6);
    let load = Load {
        clients: 10,
        transactions: 300,
        checkers: 0,
        ..Load::default()
    };
    // The first six count. The others take what is there, each in its own way, until they are done.
    let work = |number: u64, control: &Control| {
        let mut connection = Recovering::new(&config);
        let client = connection.client()?;
        if number < 6 {
            for round in 0..300 {
                let delta = round % 5 + 1;
                client.execute("SELECT counter_incr('hot', $1)", &[&delta])?;
                counted.fetch_add(delta, Ordering::Relaxed);
                control.count();
            }
            counting.fetch_sub(1, Ordering::Relaxed);
            return Ok(Outcome::default());
        }
        while counting.load(Ordering::Relaxed) > 0 && !control.is_aborted() {
            let private = format!("private {number}");
            let old: i64 = match number {
                6 => client.query_one("SELECT counter_reset('hot')", &[])?.get(0),
                7 => {
                    let old: i64 = client
                        .query_one("SELECT counter_set('hot', 7)", &[])?
                        .get(0);
                    counted.fetch_add(7, Ordering::Relaxed);
                    old
                }
                8 => {
                    // Half of them undone.
                    client.batch_execute("BEGIN; SAVEPOINT s")?;
                    client.query_one("SELECT counter_reset('hot')", &[])?;
                    client.batch_execute("ROLLBACK TO s")?;
                    let old: i64 = client.query_one("SELECT counter_reset('hot')", &[])?.get(0);
                    client.batch_execute("COMMIT")?;
                    old
                }
                _ => {
                    // Nobody else knows the new name: its value is what was moved.
                    let mut transaction = client.transaction()?;
                    transaction.execute(
                        "SELECT counter_merge($1, 'hot') WHERE counter_value('hot') > 0",
                        &[&private],
                    )?;
                    let old: i64 = transaction
                        .query_one("SELECT counter_value($1)", &[&private])?
                        .get(0);
                    transaction.execute("SELECT counter_drop($1)", &[&private])?;
                    transaction.commit()?;
                    old
                }
            };
            ensure!(old >= 0, "client {number} took {old}");
            taken.fetch_add(old, Ordering::Relaxed);
        }
        Ok(Outcome::default())
    };
    together(&load, work, |_| Ok(0), |_| Ok(()))?;
    let left: i64 = client.query_one("SELECT counter_value('hot')", &[])?.get(0);
    let (counted, taken) = (counted.into_inner(), taken.into_inner());
    ensure!(
        taken + left == counted && taken > 0,
        "{taken} taken, {left} left, {counted} counted"
    );
    Ok(())
}

/// Each increment is a digit of its own, of base 4: a drop takes it or leaves it, whole and once, and
/// the counter exists exactly while some are left.
#[test]
fn increment_that_meets_a_drop_is_dropped_or_stays_whole() -> Result<()> {
    const COUNTING: u64 = 4;
    const DIGITS: u64 = 7;
    let mut client = database("digits")?;
    let config = cluster().config("digits");
    let load = Load {
        clients: COUNTING + 3,
        transactions: 20,
        ..Load::default()
    };
    let round = AtomicU64::new(0);
    let counting = AtomicU64::new(COUNTING);
    let work = |number: u64, control: &Control| {
        let mut client = config.connect(NoTls)?;
        let mut outcome = Outcome::default();
        if number < COUNTING {
            for own_round in 0..load.transactions {
                round.fetch_max(own_round, Ordering::Relaxed);
                for digit in 0..DIGITS {
                    let name = format!("digits:{own_round}");
                    let delta = 1_i64 << ((digit * COUNTING + number) * 2);
                    client.execute("SELECT counter_incr($1, $2)", &[&name, &delta])?;
                }
                control.count();
            }
            counting.fetch_sub(1, Ordering::Relaxed);
            return Ok(outcome);
        }
        while counting.load(Ordering::Relaxed) > 0 && !control.is_aborted() {
            let name = format!("digits:{}", round.load(Ordering::Relaxed));
            let sql = "SELECT counter_drop($1)";
            let existed: bool = client.query_one(sql, &[&name])?.get(0);
            outcome.done += u64::from(existed);
        }
        Ok(outcome)
    };
    let odd_counters = "SELECT coalesce(string_agg(name || '=' || value, ' '), '') FROM counters
                         WHERE value <= 0 OR value::bigint & x'2AAAAAAAAAAAAAAA'::bigint <> 0";
    let look = |control: &Control| {
        let mut client = config.connect(NoTls)?;
        let mut looks = 0;
        while !control.is_over() {
            let odd: String = client.query_one(odd_counters, &[])?.get(0);
            ensure!(odd.is_empty(), "{odd}");
            looks += 1;
        }
        Ok(looks)
    };
    let watched = together(&load, work, look, |_| Ok(()))?;
    ensure!(
        watched.outcome.done > load.transactions && watched.checks > 10,
        "hardly anything was dropped or looked at: {watched:?}"
    );
    let odd: String = client.query_one(odd_counters, &[])?.get(0);
    ensure!(odd.is_empty(), "{odd}");
    client.batch_execute("SELECT counter_incr('last')")?;
    settle(&mut client)?;
    totals_are_clean(&mut client)?;
    Ok(())
}

/// Runs a load on a cluster of its own, does the worst at a third and at two thirds of it, and looks
/// at what is left.
fn worst(name: &str, worst: impl Fn(&mut Cluster) -> Result<()>) -> Result<()> {
    let mut cluster = start(name)?;
    let mut client = create_database(&cluster, DB)?;
    client.batch_execute(changes_schema())?;
    drop(client);
    let config = cluster.config(DB);
    let load = Load {
        transactions: 80,
        names: 4,
        two_phase: true,
        survives: true,
        ..Load::default()
    };
    let watched = changes_under_watch(&config, &load, |control| {
        control.at_each_third(|| worst(&mut cluster))
    })?;
    ensure!(watched.outcome.unknown > 0, "nobody noticed: {watched:?}");
    ensure!(watched.checks > 0, "nobody looked: {watched:?}");
    let mut connection = Recovering::new(&config);
    let client = connection.client()?;
    agree(client)?;
    client.batch_execute("SELECT bump('n:last', 1)")?;
    settle(client)?;
    agree(client)?;
    totals_are_clean(client)?;
    nothing_crashed_by_itself(&cluster.log())
}

#[test]
fn killed_postmaster_loses_and_doubles_no_change() -> Result<()> {
    worst("changes-postmaster", |cluster| {
        cluster.kill_postmaster()?;
        cluster.start()
    })
}

#[test]
fn immediate_shutdown_loses_and_doubles_no_change() -> Result<()> {
    worst("changes-immediate", |cluster| {
        cluster.restart(StopMode::Immediate)
    })
}

/// In the middle of a commit, if one can be met.
#[test]
fn killed_backend_loses_and_doubles_no_change() -> Result<()> {
    worst("changes-backend", |cluster| {
        let mut connection = Recovering::new(&cluster.config(DB));
        kill_and_recover(&mut connection, committing)
    })
}
