//! Whatever is killed in mid-load, a counter and the oracle agree afterwards, and folding goes on.
//!
//! A client that lost its connection does not know how its transaction ended. It need not: the
//! oracle's row ended the same way.

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, Load, Recovering, check, create_database, folding_hard, footprint, kill_and_recover,
    nothing_crashed_by_itself, settle, under_watch, victim, wait_for_worker,
};
use counterx_harness::{Cluster, StopMode, poll_until};
use postgres::Config;

const DB: &str = "crash";

/// Runs a load, does the worst at a third and at two thirds of it, and looks at what is left.
/// `survives` says whether clients lose their connections.
fn worst(name: &str, survives: bool, worst: impl Fn(&mut Cluster) -> Result<()>) -> Result<()> {
    let mut cluster = folding_hard(name).start()?;
    do_worst(&mut cluster, survives, worst).with_context(|| {
        let log = cluster.log();
        let lines: Vec<_> = log
            .lines()
            // Those are the load's own.
            .filter(|line| !line.contains("1/0") && !line.contains("division by zero"))
            .collect();
        format!(
            "the log ends:\n{}",
            lines[lines.len().saturating_sub(40)..].join("\n")
        )
    })
}

fn do_worst(
    cluster: &mut Cluster,
    survives: bool,
    worst: impl Fn(&mut Cluster) -> Result<()>,
) -> Result<()> {
    let mut client = create_database(cluster, DB)?;
    let before = footprint(&mut client)?;
    drop(client);
    let config = cluster.config(DB);
    let load = Load {
        transactions: 240,
        two_phase: true,
        survives,
        checkers: 1,
        ..Load::default()
    };
    let watched = under_watch(&config, &load, |control| {
        control.at_each_third(|| worst(cluster))
    })?;
    ensure!(
        !survives || watched.outcome.unknown > 0,
        "nobody noticed: {watched:?}"
    );
    ensure!(watched.checks > 0, "nobody looked: {watched:?}");

    let mut connection = Recovering::new(&config);
    let client = connection.client()?;
    check(client)?;
    client.batch_execute("SELECT bump('after', 1)")?;
    settle(client)?;
    check(client)?;
    nothing_crashed_by_itself(&cluster.log())?;
    let after = footprint(client)?;
    ensure!(
        after.folded > before.folded,
        "no fold: {before:?} {after:?}"
    );
    Ok(())
}

/// Kills the process of this backend type, waits until the server has restarted by itself.
fn kill_one(config: &Config, which: &str) -> Result<()> {
    let mut connection = Recovering::new(config);
    let sql = format!(
        "SELECT pid FROM pg_stat_activity
          WHERE pid <> pg_backend_pid() AND backend_type = '{which}'
            AND (datname = current_database() OR datname IS NULL)
          ORDER BY state = 'active' DESC NULLS LAST LIMIT 1"
    );
    kill_and_recover(&mut connection, |connection| {
        victim(connection, which, &sql)
    })
}

#[test]
fn killed_backend_loses_and_doubles_nothing() -> Result<()> {
    worst("kill-backend", true, |cluster| {
        kill_one(&cluster.config(DB), "client backend")
    })
}

#[test]
fn killed_worker_loses_and_doubles_nothing() -> Result<()> {
    worst("kill-worker", true, |cluster| {
        kill_one(&cluster.config(DB), "counterx worker")
    })
}

#[test]
fn killed_launcher_loses_and_doubles_nothing() -> Result<()> {
    worst("kill-launcher", true, |cluster| {
        kill_one(&cluster.config(DB), "counterx launcher")
    })
}

#[test]
fn killed_postmaster_loses_and_doubles_nothing() -> Result<()> {
    worst("kill-postmaster", true, |cluster| {
        cluster.kill_postmaster()?;
        cluster.start()
    })
}

#[test]
fn immediate_shutdown_loses_and_doubles_nothing() -> Result<()> {
    worst("immediate", true, |cluster| {
        cluster.restart(StopMode::Immediate)
    })
}

#[test]
fn fast_shutdown_under_load_ends_and_loses_nothing() -> Result<()> {
    worst("fast", true, |cluster| cluster.restart(StopMode::Fast))
}

#[test]
fn terminated_worker_disturbs_nobody_and_is_replaced() -> Result<()> {
    worst("terminate-worker", false, |cluster| {
        let mut client = cluster.connect_db(DB)?;
        let pid = wait_for_worker(&mut client, DB)?;
        client.query_one("SELECT pg_terminate_backend($1)", &[&pid])?;
        poll_until("another worker", DEADLINE, || {
            // A commit starts it, and the load may have made its last one. A commit that comes
            // while the old worker is on its way out may be taken for one that it sees to.
            client.batch_execute("SELECT bump('again', 1)")?;
            let sql = "SELECT count(*) FROM pg_stat_activity
                        WHERE backend_type = 'counterx worker' AND datname = $1 AND pid <> $2";
            Ok(client.query_one(sql, &[&DB, &pid])?.get::<_, i64>(0) > 0)
        })
    })
}
