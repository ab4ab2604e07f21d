//! The primary is killed in mid-load, the standby is promoted, the clients go over and go on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use counterx_cluster_tests::{
    Mixed, Recovering, catch_up, check, create_database, is_lost, mixed_under_watch, prepare_mixed,
    settle, turn_over,
};
use counterx_harness::StopMode;
use postgres::Config;
use postgres::config::TargetSessionAttrs;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Pair, wait_for_synchronous};
use crate::options::Options;
use crate::report::PartReport;

pub(super) fn run(options: &Options, report: &mut PartReport, mut pair: Pair) {
    report.step("failover in mid-load", |report| {
        failover(options, report, &mut pair)
    });
    if options.short {
        report.skipped("failover after a stop", "the short form has no time for it");
        return;
    }
    // Each with a new pair: the old primary is not to come back.
    for (number, stop) in [StopMode::Immediate, StopMode::Fast]
        .into_iter()
        .enumerate()
    {
        report.step(&format!("failover after a {stop:?} stop"), |report| {
            let mut pair = Pair::start()?;
            failover_by(
                options,
                report,
                &mut pair,
                &format!("failover{number}"),
                |primary| primary.stop(stop),
            )
        });
    }
}

fn failover(options: &Options, report: &mut PartReport, pair: &mut Pair) -> Result<()> {
    failover_by(options, report, pair, "failover", |primary| {
        primary.kill_postmaster()
    })
}

/// Clients of this database find the one of the two servers that takes writes.
fn either(pair: &Pair, db: &str) -> Config {
    let mut config = pair.primary.config(db);
    config
        .host_path(pair.standby.socket_dir())
        .port(pair.standby.port())
        .target_session_attrs(TargetSessionAttrs::ReadWrite);
    config
}

fn failover_by(
    options: &Options,
    report: &mut PartReport,
    pair: &mut Pair,
    db: &str,
    end: impl FnOnce(&mut counterx_harness::Cluster) -> Result<()>,
) -> Result<()> {
    let mut client = create_database(&pair.primary, db)?;
    prepare_mixed(&mut client)?;
    client.batch_execute(
        "CREATE TABLE ledger (id bigint PRIMARY KEY, name text NOT NULL, delta bigint NOT NULL)",
    )?;
    catch_up(&pair.primary, &mut pair.standby.connect()?)?;
    // On the primary alone: the standby has nobody to wait for once it is promoted.
    pair.primary
        .reload(&[("synchronous_standby_names", "standby")])?;
    wait_for_synchronous(&mut client)?;
    drop(client);

    let config = either(pair, db);
    let mixed = Mixed {
        clients: options.size(2, 4),
        transactions: options.size(30, 250),
        survives: true,
        seed: options.seed_for(db),
    };
    let over = AtomicBool::new(false);
    let (loaded, ledgers) = std::thread::scope(|scope| {
        let ledgers: Vec<_> = (0..options.size(2, 4))
            .map(|number| {
                let (config, over) = (&config, &over);
                let seed = options.seed_for(&format!("{db} ledger {number}"));
                scope.spawn(move || keep_ledger(config, over, number, seed))
            })
            .collect();
        let loaded = mixed_under_watch(&config, mixed, |control| {
            control.wait_for_share(0.4)?;
            end(&mut pair.primary)?;
            pair.standby.promote()?;
            control.wait_for_share(0.8)
        });
        over.store(true, Ordering::Relaxed);
        let ledgers: Result<Vec<Ledger>> = ledgers
            .into_iter()
            .map(|ledger| ledger.join().unwrap_or_else(|_| Err(anyhow!("panicked"))))
            .collect();
        (loaded, ledgers)
    });
    let (loaded, ledgers) = (loaded?, ledgers?);
    report.tried("failovers", 1);
    report.tried("transactions across a failover", loaded.transactions);
    report.tried("transactions that lost their connection", loaded.lost);

    let mut client = pair.standby.connect_db(db)?;
    check(&mut client)?;
    compare_ledgers(report, &mut client, &ledgers)?;
    let more = Mixed {
        survives: false,
        seed: mixed.seed.wrapping_add(100),
        ..mixed
    };
    if !options.short {
        mixed_under_watch(&pair.standby.config(db), more, |_| Ok(()))?;
    }
    turn_over(&mut client).context("on the new primary")?;
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}

/// What a client knows of its own transactions.
#[derive(Default)]
struct Ledger {
    acknowledged: Vec<Entry>,
    /// Those whose COMMIT was not answered.
    open: Vec<Entry>,
}

struct Entry {
    id: i64,
    name: String,
    delta: i64,
}

/// Counts, and writes down in its own memory what was acknowledged.
fn keep_ledger(config: &Config, over: &AtomicBool, number: i64, seed: u64) -> Result<Ledger> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut connection = Recovering::new(config);
    let mut ledger = Ledger::default();
    for serial in 0_i64.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let entry = Entry {
            id: number * 1_000_000_000 + serial,
            name: format!("ledger:{}", rng.random_range(0..5)),
            delta: rng.random_range(-50..100),
        };
        let (id, name, delta) = (entry.id, &entry.name, entry.delta);
        let result = connection.client().and_then(|client| {
            Ok(client.batch_execute(&format!(
                "BEGIN; INSERT INTO ledger VALUES ({id}, '{name}', {delta});
                 SELECT bump('{name}', {delta}); COMMIT"
            ))?)
        });
        match result {
            Ok(()) => ledger.acknowledged.push(entry),
            Err(error) if is_lost(&error) => {
                connection.forget();
                ledger.open.push(entry);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(ledger)
}

/// All that was acknowledged is there, and what was not is there with its increment or not at all.
fn compare_ledgers(
    report: &mut PartReport,
    client: &mut postgres::Client,
    ledgers: &[Ledger],
) -> Result<()> {
    let there: BTreeMap<i64, (String, i64)> = client
        .query("SELECT id, name, delta FROM ledger", &[])?
        .iter()
        .map(|row| (row.get(0), (row.get(1), row.get(2))))
        .collect();
    let mut sums: BTreeMap<&str, i64> = BTreeMap::new();
    let mut known = 0;
    for ledger in ledgers {
        for entry in &ledger.acknowledged {
            ensure!(
                there.contains_key(&entry.id),
                "{} was acknowledged and is gone",
                entry.id
            );
        }
        for entry in ledger.acknowledged.iter().chain(&ledger.open) {
            if there.contains_key(&entry.id) {
                known += 1;
                *sums.entry(&entry.name).or_default() += entry.delta;
            }
        }
        report.tried(
            "commits acknowledged with a synchronous standby",
            ledger.acknowledged.len() as u64,
        );
        report.tried("commits that were not answered", ledger.open.len() as u64);
    }
    ensure!(
        known == there.len(),
        "{known} of {} rows are known to a client",
        there.len()
    );
    for (name, sum) in sums {
        let value: i64 = client
            .query_one("SELECT counter_value($1)", &[&name])?
            .get(0);
        ensure!(value == sum, "{name} is {value}, its clients say {sum}");
    }
    ensure!(
        ledgers.iter().all(|ledger| !ledger.acknowledged.is_empty()),
        "a client had nothing acknowledged"
    );
    Ok(())
}
