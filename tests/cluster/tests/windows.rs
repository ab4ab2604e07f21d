//! Counters that begin anew: no window gives more than its maximum and none gives less, whenever it ends, whatever is
//! killed; and what is removed changes no answer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use counterx_cluster_tests::{
    Control, DEADLINE, GROWING, Granted, Growing, Load, Recovering, WindowedTraffic,
    create_database, folding_hard, has_clock, nothing_crashed, nothing_crashed_by_itself,
    prepare_windowed, promise_holds, refused, seed, settle, shared, victim, windowed_under_watch,
    windows_hold,
};
use counterx_harness::{Cluster, StopMode, kill9_chosen, poll_until};
use postgres::error::SqlState;
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

fn usual() -> Load {
    Load {
        clients: 32,
        transactions: 25,
        ..Load::default()
    }
}

/// The load and its checks, in a new database.
fn stress(
    config: &Config,
    mut client: Client,
    load: &Load,
    meanwhile: impl FnOnce(&Control) -> Result<()>,
) -> Result<()> {
    prepare_windowed(&mut client)?;
    drop(client);
    let end = windowed_under_watch(config, load, meanwhile)?;
    // One goes by the windows of all counters, and takes its time.
    ensure!(end.checks > 0, "{end:?}");
    ensure!(end.outcome.done > 100, "{end:?}");
    ensure!(end.outcome.refused > 10, "{end:?}");
    ensure!(load.survives == (end.outcome.unknown > 0), "{end:?}");
    Ok(())
}

#[test]
fn any_mix_at_the_ends_of_windows_keeps_what_is_promised() -> Result<()> {
    let client = create_database(preloaded(), "mix")?;
    stress(&preloaded().config("mix"), client, &usual(), |_| Ok(()))?;
    nothing_crashed(&preloaded().log())
}

#[test]
fn any_mix_without_preload_keeps_what_is_promised() -> Result<()> {
    let cluster = start("windows-nopreload", false)?;
    let client = create_database(&cluster, "mix")?;
    let load = Load {
        clients: 16,
        ..usual()
    };
    stress(&cluster.config("mix"), client, &load, |_| Ok(()))?;
    nothing_crashed(&cluster.log())
}

#[test]
fn what_is_killed_keeps_nothing_back() -> Result<()> {
    let mut cluster = start("windows-crash", true)?;
    let client = create_database(&cluster, "crash")?;
    let config = cluster.config("crash");
    let load = Load {
        survives: true,
        transactions: 50,
        ..usual()
    };
    stress(&config, client, &load, |control| {
        let mut connection = Recovering::new(&config);
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM (
                       SELECT pid FROM pg_stat_activity
                        WHERE datname = current_database() AND pid <> pg_backend_pid()
                          AND backend_type = 'client backend' AND xact_start IS NOT NULL
                        ORDER BY random() LIMIT 3) victims";
        while control.finished() * 100 < load.clients * load.transactions * 20 {
            ensure!(!control.is_aborted(), "the load has failed");
            connection.client()?.execute(sql, &[])?;
            std::thread::sleep(Duration::from_millis(20));
        }
        let sql = "SELECT pid FROM pg_stat_activity WHERE xact_start IS NOT NULL
                      AND backend_type = 'client backend' AND pid <> pg_backend_pid() LIMIT 1";
        kill9_chosen(|| victim(&mut connection, "a victim", sql))?;
        control.wait_for_share(0.45)?;
        cluster.restart(StopMode::Immediate)?;
        control.wait_for_share(0.7)?;
        cluster.kill_postmaster()?;
        cluster.start()
    })?;
    nothing_crashed_by_itself(&cluster.log())
}

/// Calls of many clients at the ends of windows, each alone in its transaction: which were granted, which refused.
fn at_boundaries(
    cluster: &Cluster,
    (clients, calls): (u64, u64),
    sql: &str,
) -> Result<(Vec<Granted>, Vec<Granted>)> {
    let outcomes = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients)
            .map(|number| {
                scope.spawn(move || -> Result<Vec<(bool, Granted)>> {
                    let mut client = cluster.connect_db("alone")?;
                    client.batch_execute("SET counterx.escrow_wait = '10s'")?;
                    let micros = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
                    let call = client.prepare(&format!("SELECT {micros}, {sql}, {micros}"))?;
                    let mut traffic = WindowedTraffic::new(seed(), number);
                    let mut outcomes = Vec::new();
                    for _ in 0..calls {
                        traffic.wait_for_boundary();
                        let row = client.query_one(&call, &[])?;
                        let called = Granted {
                            delta: 1,
                            asked: row.get(0),
                            told: row.get(2),
                        };
                        outcomes.push((row.get(1), called));
                    }
                    Ok(outcomes)
                })
            })
            .collect();
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        Ok::<_, anyhow::Error>(all)
    })?;
    let (granted, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|(is, _)| *is);
    let calls = |outcomes: Vec<(bool, Granted)>| -> Vec<Granted> {
        outcomes.into_iter().map(|(_, call)| call).collect()
    };
    ensure!(!granted.is_empty() && !refused.is_empty(), "{sql}");
    Ok((calls(granted), calls(refused)))
}

/// The values of all windows of a counter, by their numbers.
fn windows_of(client: &mut Client, name: &str, growing: &Growing) -> Result<BTreeMap<i64, i64>> {
    let sql =
        "SELECT (extract(epoch FROM begins_at) * 1000000)::bigint, value FROM all_windows($1)";
    let rows = client.query(sql, &[&name])?;
    let windows = rows
        .iter()
        .map(|row| (row.get::<_, i64>(0).div_euclid(growing.length), row.get(1)));
    Ok(windows.collect())
}

/// Where everybody commits, and has time to wait, only who has met a full window is refused. Hits as well, in whose
/// windows there is what was granted; and where refused requests count, what was asked for.
#[test]
fn nobody_is_refused_while_there_is_room() -> Result<()> {
    let mut client = create_database(preloaded(), "alone")?;
    prepare_windowed(&mut client)?;
    for growing in &GROWING {
        let (kind, _) = growing.name.split_once(':').unwrap_or_default();
        let counts_refused = ["window.counts", "window.patient"].contains(&kind);
        for call in ["counter_try_incr", "counter_try_hit"] {
            let name = format!("{kind}:{call}");
            let (granted, refused) =
                at_boundaries(preloaded(), (24, 25), &format!("{call}('{name}')"))?;
            windows_hold(growing, &granted).with_context(|| name.clone())?;
            if growing.slides {
                promise_holds(growing, &granted).with_context(|| name.clone())?;
            }
            let windows = windows_of(&mut client, &name, growing)?;
            let sum: i64 = windows.values().sum();
            let expected = granted.len() + if counts_refused { refused.len() } else { 0 };
            ensure!(
                sum == i64::try_from(expected)?,
                "{name}: {sum}, not {expected}"
            );
            if growing.slides {
                continue;
            }
            for call in refused {
                let window = call.asked.div_euclid(growing.length);
                let value = windows.get(&window).copied().unwrap_or_default();
                let is_known = window == call.told.div_euclid(growing.length);
                ensure!(
                    !is_known || value >= growing.max,
                    "{name} was refused in window {window}, which has {value}"
                );
            }
        }
    }
    // What nobody waits for cannot be refused.
    client.batch_execute("SELECT counter_hit('window.free:hit', 3, wait => false)")?;
    refused(
        client.batch_execute("SELECT counter_hit('window.fixed:hit', 3, wait => false)"),
        &SqlState::INVALID_PARAMETER_VALUE,
    )?;
    poll_until("the hit to be counted", DEADLINE, || {
        let sql = "SELECT sum(value)::bigint FROM all_windows('window.free:hit')";
        Ok(client.query_one(sql, &[])?.get::<_, Option<i64>>(0) == Some(3))
    })?;
    nothing_crashed(&preloaded().log())
}

/// Many ended windows are removed by the worker while others count and commit, in those of today and elsewhere. No call
/// fails. (How long a call takes at most is the benchmark's.)
#[test]
fn a_million_ended_windows_are_removed_beside_callers() -> Result<()> {
    const MANY: i64 = 1_000_000;
    const LENGTH: u64 = 600;
    // Of its own: it is full of them, and its clock is ahead.
    let mut cluster = Cluster::builder()
        .name("windows-many")
        .conf("counterx.compaction_interval", "20ms")
        .start()?;
    let mut client = create_database(&cluster, "many")?;
    if !has_clock(&mut client)? {
        return Ok(());
    }
    // From the beginning of a window on, so that none ends while it is filled, and none while it is removed.
    let begins = LENGTH - SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() % LENGTH;
    cluster.reload(&[("counterx.clock_ahead", &begins.to_string())])?;
    client.batch_execute(
        "SELECT counter_type_create('many', per => '10 minutes');
         SELECT counter_type_create('api', max => 1000000000, per => '10 minutes')",
    )?;
    for first in (1..MANY).step_by(100_000) {
        let sql = "SELECT count(counter_incr('many:' || n)) FROM generate_series($1, $1 + 99999) n";
        client.query_one(sql, &[&i32::try_from(first)?])?;
    }
    let rows = "SELECT count(*) FROM counterx.total WHERE name ^@ 'many:'";
    settle(&mut client)?;
    ensure!(client.query_one(rows, &[])?.get::<_, i64>(0) == MANY);
    // The window ends.
    let ended = begins + LENGTH + 1;
    cluster.reload(&[("counterx.clock_ahead", &ended.to_string())])?;
    let cluster = cluster;
    client.batch_execute("SELECT counter_try_incr('api:now')")?;
    let is_over = AtomicBool::new(false);
    let longest = std::thread::scope(|scope| {
        let is_over = &is_over;
        let probers: Vec<_> = (0..4)
            .map(|number| {
                let cluster = &cluster;
                scope.spawn(move || -> Result<(i64, Duration)> {
                    let mut client = cluster.connect_db("many")?;
                    let (mut calls, mut longest) = (0, Duration::ZERO);
                    while !is_over.load(Ordering::Relaxed) {
                        let started = Instant::now();
                        let row = client.query_one(
                            "SELECT counter_try_incr('api:now'), counter_value('many:1'), counter_incr_get($1)",
                            &[&format!("plain:{number}")],
                        )?;
                        longest = longest.max(started.elapsed());
                        calls += 1;
                        let (is_granted, ended, own): (bool, i64, i64) =
                            (row.get(0), row.get(1), row.get(2));
                        ensure!(is_granted && ended == 0 && own == calls, "{is_granted} {ended} {own}");
                    }
                    Ok((calls, longest))
                })
            })
            .collect();
        let gone = poll_until("all ended windows to be gone", 5 * DEADLINE, || {
            Ok(client.query_one(rows, &[])?.get::<_, i64>(0) == 0)
        });
        is_over.store(true, Ordering::Relaxed);
        let (mut calls, mut longest) = (1, Duration::ZERO);
        for prober in probers {
            let (done, pause) = prober.join().map_err(|_| anyhow!("a prober panicked"))??;
            calls += done;
            longest = longest.max(pause);
        }
        gone?;
        let value: i64 = client
            .query_one("SELECT counter_value('api:now')", &[])?
            .get(0);
        ensure!(value == calls, "{value} after {calls} calls");
        Ok::<_, anyhow::Error>(longest)
    })?;
    println!("the longest pause of a caller: {longest:?}");
    nothing_crashed(&cluster.log())
}
