//! What the server can tell of its own files: of tables and indexes by amcheck, of pages by their
//! checksums, and of WAL by comparing each replayed page with the one that the writer had.
//!
//! A standby with `wal_consistency_checking` stops with an error at the first page that differs, and
//! so does the recovery after a crash.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use counterx_cluster_tests::{
    BoundedLoad, Load, agree, amcheck, bounded_under_watch, catch_up, changes_schema,
    changes_under_watch, check, create_database, folding_hard, prepare_bounded, settle,
    under_watch, wait_for_worker,
};
use counterx_harness::{Cluster, ClusterBuilder, StopMode, kill9_chosen, run as run_command};

use super::variant::bad_lines;
use crate::options::Options;
use crate::report::{PartReport, Unit};

/// A database for each kind of load: each has rules of its own for the values of its counters.
const COUNTS: &str = "counts";
const CHANGES: &str = "changes";
const BOUNDED: &str = "bounded";

/// All of them rewrite tables or indexes of ours as an administrator may.
const MAINTENANCE: &str = "
    VACUUM (FULL) counterx.total;
    VACUUM (FULL) counterx.state;
    VACUUM (FULL, FREEZE) counterx.token;
    VACUUM (FREEZE) counterx.log_0_a;
    CLUSTER counterx.total USING total_pkey;
    REINDEX TABLE CONCURRENTLY counterx.state;
    REINDEX INDEX counterx.log_0_a_epoch_name;
    ANALYZE";

pub(super) fn run(
    options: &Options,
    report: &mut PartReport,
    bin_dir: Option<&Path>,
) -> Result<()> {
    let mut primary = start_primary(bin_dir)?;
    let standby = with_programs(Cluster::builder().name("checks-standby"), bin_dir)
        .standby_of(&primary)
        .conf("primary_slot_name", "standby")
        .conf("hot_standby_feedback", "on")
        // What is replayed may wait for whoever looks: logs are truncated meanwhile.
        .conf("max_standby_streaming_delay", "-1")
        .conf("wal_retrieve_retry_interval", "100ms")
        .start()?;
    create_database(&primary, COUNTS)?;
    let mut client = create_database(&primary, CHANGES)?;
    client.batch_execute(changes_schema())?;
    client.batch_execute("SELECT counterx.create_value_index()")?;
    prepare_bounded(&mut create_database(&primary, BOUNDED)?)?;
    let begun: String = client
        .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])?
        .get(0);
    drop(client);

    let started = Instant::now();
    for round in 0.. {
        if round > 0 && (options.short || started.elapsed() > options.time()) {
            break;
        }
        let seed = options.seed_for(&format!("storage {round}"));
        let result = load(options, report, &mut primary, seed)
            .and_then(|()| look(report, &primary, &standby));
        // A server that met a wrong page does not come back: the others only miss it.
        if let Err(bad) = said_nothing_bad(&primary, &standby) {
            return Err(match result {
                Ok(()) => bad,
                Err(error) => error.context(bad),
            });
        }
        result?;
    }
    let row = primary.connect()?.query_one(
        "SELECT (pg_current_wal_insert_lsn() - $1::text::pg_lsn)::float8",
        &[&begun],
    )?;
    report.figure(
        "WAL replayed with every page compared",
        row.get::<_, f64>(0) / f64::from(1 << 20),
        Unit::Mebibytes,
    );
    for mut cluster in [standby, primary] {
        cluster.stop(StopMode::Fast)?;
        verify_checksums(report, &cluster)?;
    }
    Ok(())
}

/// Looks for what nothing excuses in both servers' logs.
fn said_nothing_bad(primary: &Cluster, standby: &Cluster) -> Result<()> {
    let logs = [primary.log(), standby.log()];
    let bad: Vec<_> = logs.iter().flat_map(|log| bad_lines(log)).collect();
    ensure!(bad.is_empty(), "a server's log has: {bad:#?}");
    Ok(())
}

fn with_programs(builder: ClusterBuilder, bin_dir: Option<&Path>) -> ClusterBuilder {
    match bin_dir {
        Some(bin_dir) => builder.bin_dir(bin_dir),
        None => builder,
    }
}

fn start_primary(bin_dir: Option<&Path>) -> Result<Cluster> {
    let primary = with_programs(folding_hard("checks"), bin_dir)
        .conf("wal_consistency_checking", "all")
        .conf("deadlock_timeout", "20ms")
        .conf("max_wal_size", "2GB")
        // On by default from PostgreSQL 18 on.
        .initdb("--data-checksums")
        .start()?;
    primary.connect()?.batch_execute(
        "SELECT pg_create_physical_replication_slot('standby', immediately_reserve => true)",
    )?;
    Ok(primary)
}

/// A load with the death of a worker and of the whole server in it, then loads of all other kinds.
fn load(
    options: &Options,
    report: &mut PartReport,
    primary: &mut Cluster,
    seed: u64,
) -> Result<()> {
    let counts = Load {
        clients: 6,
        transactions: options.size(25, 100),
        two_phase: true,
        survives: true,
        seed,
        ..Load::default()
    };
    let watched = under_watch(&primary.config(COUNTS), &counts, |control| {
        control.wait_for_share(0.3)?;
        kill9_chosen(|| wait_for_worker(&mut primary.connect()?, COUNTS))?;
        control.wait_for_share(0.6)?;
        primary.kill_postmaster()?;
        primary.start()
    })?;
    report.tried("crashes: a worker and the server, under load", 2);
    let mut done = watched.outcome.done;

    let changes = Load {
        clients: 6,
        transactions: options.size(15, 60),
        names: 4,
        survives: false,
        ..counts
    };
    done += changes_under_watch(&primary.config(CHANGES), &changes, |_| Ok(()))?
        .outcome
        .done;
    let bounded = BoundedLoad {
        clients: 6,
        transactions: options.size(15, 60),
        survives: false,
        holds: true,
        seed,
    };
    let end = bounded_under_watch(&primary.config(BOUNDED), bounded, |_| Ok(()))?;
    done += end.done.load(std::sync::atomic::Ordering::Relaxed);
    report.tried("transactions", done);
    Ok(())
}

/// Looks at both servers, before and after maintenance.
fn look(report: &mut PartReport, primary: &Cluster, standby: &Cluster) -> Result<()> {
    for db in [COUNTS, CHANGES, BOUNDED] {
        let mut client = primary.connect_db(db)?;
        let mut checked = amcheck(&mut client).context("after the load")?;
        // Each statement is a transaction of its own: VACUUM insists on that.
        primary.psql(db, MAINTENANCE)?;
        client.batch_execute("SELECT bump('n:last', 1)")?;
        settle(&mut client)?;
        checked += amcheck(&mut client).context("after maintenance")?;
        // It may have given up.
        let mut replica = standby.connect().context("the standby has gone")?;
        catch_up(primary, &mut replica)?;
        let mut replica = standby.connect_db(db)?;
        check(&mut replica).context("on the standby")?;
        if db == CHANGES {
            agree(&mut client)?;
        }
        checked += amcheck(&mut replica).context("on the standby")?;
        report.tried("relations held to amcheck", checked);
    }
    Ok(())
}

/// Reads every page of a server that is down.
fn verify_checksums(report: &mut PartReport, cluster: &Cluster) -> Result<()> {
    let output = run_command(
        cluster
            .tool("pg_checksums")
            .args(["--check", "--pgdata"])
            .arg(cluster.data_dir()),
    )?;
    let text = String::from_utf8_lossy(&output.stdout);
    let blocks = text
        .lines()
        .find_map(|line| line.strip_prefix("Blocks scanned:"))
        .and_then(|number| number.trim().parse::<u64>().ok());
    match blocks {
        Some(blocks) if blocks > 0 => report.tried("pages whose checksum is right", blocks),
        _ => bail!("pg_checksums has scanned nothing: {text}"),
    }
    Ok(())
}
