//! Counters that begin anew: no window gives more than its maximum and none gives less, whenever it ends, whatever is
//! killed; and what is removed changes no answer.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, Recovering, WindowedEnd, WindowedLoad, create_database, folding_hard,
    nothing_crashed, nothing_crashed_by_itself, prepare_windowed, seed, shared, victim,
    windowed_under_watch,
};
use counterx_harness::{Cluster, StopMode, kill9_chosen, poll_until};
use postgres::{Client, Config};

fn start(name: &str, preload: bool) -> Result<Cluster> {
    folding_hard(name)
        .preload(preload)
        // Without shared memory, whoever takes from two counters may meet a deadlock.
        .conf("deadlock_timeout", "10ms")
        .conf("max_prepared_transactions", "10")
        .start()
}

fn preloaded() -> &'static Cluster {
    shared(|| start("windows", true))
}

const LOAD: WindowedLoad = WindowedLoad {
    clients: 32,
    transactions: 25,
    survives: false,
    seed: 0,
};

/// The load and its checks, in a new database.
fn stress(
    config: &Config,
    mut client: Client,
    load: WindowedLoad,
    meanwhile: impl FnOnce(&WindowedEnd, &WindowedLoad) -> Result<()>,
) -> Result<()> {
    let load = WindowedLoad {
        seed: seed(),
        ..load
    };
    prepare_windowed(&mut client)?;
    drop(client);
    let end = windowed_under_watch(config, load, |end| meanwhile(end, &load))?;
    ensure!(end.looks.load(Ordering::Relaxed) > 3, "{end:?}");
    ensure!(end.done.load(Ordering::Relaxed) > 100, "{end:?}");
    ensure!(end.refused.load(Ordering::Relaxed) > 10, "{end:?}");
    ensure!(
        load.survives == (end.lost.load(Ordering::Relaxed) > 0),
        "{end:?}"
    );
    Ok(())
}

#[test]
fn any_mix_at_the_ends_of_windows_keeps_what_is_promised() -> Result<()> {
    let client = create_database(preloaded(), "mix")?;
    stress(&preloaded().config("mix"), client, LOAD, |_, _| Ok(()))?;
    nothing_crashed(&preloaded().log())
}

#[test]
fn any_mix_without_preload_keeps_what_is_promised() -> Result<()> {
    let cluster = start("windows-nopreload", false)?;
    let client = create_database(&cluster, "mix")?;
    let load = WindowedLoad {
        clients: 16,
        ..LOAD
    };
    stress(&cluster.config("mix"), client, load, |_, _| Ok(()))?;
    nothing_crashed(&cluster.log())
}

#[test]
fn what_is_killed_keeps_nothing_back() -> Result<()> {
    let mut cluster = start("windows-crash", true)?;
    let client = create_database(&cluster, "crash")?;
    let config = cluster.config("crash");
    let load = WindowedLoad {
        survives: true,
        transactions: 50,
        ..LOAD
    };
    let wait = |end: &WindowedEnd, load: &WindowedLoad, percent| {
        poll_until("a share of the load", 2 * DEADLINE, || {
            Ok(end.reached(load, percent))
        })
    };
    stress(&config, client, load, |end, load| {
        let mut connection = Recovering::new(&config);
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM (
                       SELECT pid FROM pg_stat_activity
                        WHERE datname = current_database() AND pid <> pg_backend_pid()
                          AND backend_type = 'client backend' AND xact_start IS NOT NULL
                        ORDER BY random() LIMIT 3) victims";
        while !end.reached(load, 20) {
            connection.client()?.execute(sql, &[])?;
            std::thread::sleep(Duration::from_millis(20));
        }
        let sql = "SELECT pid FROM pg_stat_activity WHERE xact_start IS NOT NULL
                      AND backend_type = 'client backend' AND pid <> pg_backend_pid() LIMIT 1";
        kill9_chosen(|| victim(&mut connection, "a victim", sql))?;
        wait(end, load, 45)?;
        cluster.restart(StopMode::Immediate)?;
        wait(end, load, 70)?;
        cluster.kill_postmaster()?;
        cluster.start()
    })?;
    nothing_crashed_by_itself(&cluster.log())
}
