//! Base backups and recovery to a point in time, taken and chosen in mid-load.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, Mixed, check, compact, create_database, folding_hard, folds_on, footprint,
    mixed_under_watch, prepare_mixed, resolve_prepared,
};
use counterx_harness::{Cluster, poll_until};
use postgres::Client;

use crate::options::Options;
use crate::report::PartReport;

const DB: &str = "saved";

pub(super) fn run(options: &Options, report: &mut PartReport) {
    report.step(
        "base backups and recovery to points in mid-load",
        |report| recover(options, report),
    );
}

/// A point to recover to.
struct Target {
    /// In words.
    what: &'static str,
    setting: &'static str,
    value: String,
    /// The last mark that is there then, and the first one that is not.
    marks: (i64, i64),
    /// What the counters summed up to, for a point at which nobody counted.
    sum: Option<String>,
}

fn recover(options: &Options, report: &mut PartReport) -> Result<()> {
    let archive = "../archive";
    let primary = folding_hard("archiving")
        .conf("archive_mode", "on")
        .conf(
            "archive_command",
            &format!("test ! -f {archive}/%f && cp %p {archive}/%f.tmp && mv {archive}/%f.tmp {archive}/%f"),
        )
        .start()?;
    let archive = primary.make_dir("archive")?;
    let mut client = create_database(&primary, DB)?;
    prepare_mixed(&mut client)?;
    client.batch_execute("CREATE TABLE marks (number bigserial PRIMARY KEY)")?;
    let mixed = Mixed {
        clients: 3,
        transactions: 150,
        survives: false,
        seed: options.seed_for("backup"),
    };
    // Something to copy, folded and not.
    mixed_under_watch(&primary.config(DB), mixed, |_| Ok(()))?;
    let mut targets = Vec::new();
    let mut backup = None;
    let more = Mixed {
        seed: mixed.seed.wrapping_add(10),
        ..mixed
    };
    let end = mixed_under_watch(&primary.config(DB), more, |control| {
        control.wait_for_share(0.1)?;
        let mut client = primary.connect_db(DB)?;
        let first = mark(&mut client)?;
        // In doubt until the load has ended, so in most of the copies.
        client.batch_execute("BEGIN; SELECT bump('doubt', 3); PREPARE TRANSACTION 'in doubt'")?;
        backup = Some(primary.base_backup("backup")?);
        for (number, what) in ["name", "xid", "time", "lsn"].into_iter().enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "0 to 3")]
            control.wait_for_share(0.4 + 0.1 * number as f64)?;
            targets.push(target(&mut client, what)?);
        }
        ensure!(first < targets[0].marks.0);
        Ok(())
    })?;
    report.tried("transactions beside base backups", end.transactions);
    // A point at which nobody counts: what there is then is known.
    let sum: String = client.query_one(SUM, &[])?.get(0);
    let mut quiet = target(&mut client, "name")?;
    quiet.what = "a name, at rest";
    quiet.sum = Some(sum);
    targets.push(quiet);
    client.batch_execute("SELECT bump('too late', 1)")?;
    let last = mark(&mut client)?;
    let sql = "SELECT pg_walfile_name(pg_switch_wal())";
    let file: String = client.query_one(sql, &[])?.get(0);
    poll_until("the last WAL to be archived", DEADLINE, || {
        Ok(archive.join(&file).exists())
    })?;
    let Some(backup) = backup else {
        anyhow::bail!("no backup was taken");
    };

    started_by_itself(report, &backup, mixed)?;
    targets.push(Target {
        what: "the first consistent point",
        setting: "recovery_target",
        value: "immediate".to_owned(),
        marks: (1, last),
        sum: None,
    });
    for target in &targets {
        recovered_to(report, &backup, &archive, target, mixed)
            .with_context(|| format!("recovered to {}", target.what))?;
    }
    check(&mut client)?;
    Ok(())
}

const SUM: &str = "SELECT coalesce(sum(value), 0)::text FROM counters";

fn mark(client: &mut Client) -> Result<i64> {
    let sql = "INSERT INTO marks DEFAULT VALUES RETURNING number";
    Ok(client.query_one(sql, &[])?.get(0))
}

/// Marks a point between two rows.
fn target(client: &mut Client, kind: &str) -> Result<Target> {
    let before = mark(client)?;
    let (what, setting, value) = match kind {
        "name" => {
            let name = format!("point {before}");
            client.query_one("SELECT pg_create_restore_point($1)::text", &[&name])?;
            ("a name", "recovery_target_name", name)
        }
        "xid" => {
            let sql = "SELECT xmin::text FROM marks WHERE number = $1";
            let xid = client.query_one(sql, &[&before])?.get(0);
            ("a transaction", "recovery_target_xid", xid)
        }
        "lsn" => {
            let lsn = client
                .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])?
                .get(0);
            ("a place in the WAL", "recovery_target_lsn", lsn)
        }
        _ => {
            // Later than that commit, and earlier than the next one.
            let time = client
                .query_one("SELECT clock_timestamp()::text", &[])?
                .get(0);
            ("a time", "recovery_target_time", time)
        }
    };
    let after = mark(client)?;
    Ok(Target {
        what,
        setting,
        value,
        marks: (before, after),
        sum: None,
    })
}

fn started_by_itself(report: &mut PartReport, backup: &Path, mixed: Mixed) -> Result<()> {
    let cluster = folding_hard("copy")
        .from_backup(backup)
        .conf("archive_mode", "off")
        .start()?;
    report.tried("base backups started", 1);
    goes_on(report, &cluster, mixed)
}

fn recovered_to(
    report: &mut PartReport,
    backup: &Path,
    archive: &Path,
    target: &Target,
    mixed: Mixed,
) -> Result<()> {
    let cluster = folding_hard("recovered")
        .recover_from_backup(backup)
        .conf("archive_mode", "off")
        .conf(
            "restore_command",
            &format!("cp {}/%f %p", archive.display()),
        )
        .conf(target.setting, &target.value)
        .conf("recovery_target_action", "promote")
        .start()?;
    let mut client = cluster.connect()?;
    poll_until("the end of recovery", DEADLINE, || {
        let sql = "SELECT NOT pg_is_in_recovery()";
        Ok(client.query_one(sql, &[])?.get(0))
    })?;
    let mut client = cluster.connect_db(DB)?;
    let compared = check(&mut client)?;
    ensure!(compared > 0, "there are no counters");
    let sql = "SELECT bool_or(number = $1), bool_or(number >= $2) FROM marks";
    let row = client.query_one(sql, &[&target.marks.0, &target.marks.1])?;
    ensure!(
        row.get::<_, bool>(0) && !row.get::<_, bool>(1),
        "it is another point: {:?}",
        client
            .query_one("SELECT max(number) FROM marks", &[])?
            .get::<_, i64>(0)
    );
    if let Some(sum) = &target.sum {
        let here: String = client.query_one(SUM, &[])?.get(0);
        ensure!(here == *sum, "the sum is {here}, it was {sum}");
    }
    report.tried("recoveries to a point in time", 1);
    goes_on(report, &cluster, mixed)
}

/// Equal as it is, after what was in doubt has ended, and after more of everything.
fn goes_on(report: &mut PartReport, cluster: &Cluster, mixed: Mixed) -> Result<()> {
    let mut client = cluster.connect_db(DB)?;
    check(&mut client)?;
    // Those of the load that were cut off in mid-air as well.
    let in_doubt: i64 = client
        .query_one("SELECT count(*) FROM pg_prepared_xacts", &[])?
        .get(0);
    resolve_prepared(&cluster.config(DB))?;
    check(&mut client)?;
    report.tried(
        "prepared transactions resolved in a copy",
        in_doubt.unsigned_abs(),
    );
    compact(&mut client)?;
    check(&mut client)?;
    let before = footprint(&mut client)?;
    let more = Mixed {
        transactions: mixed.transactions / 2,
        seed: mixed.seed.wrapping_add(20),
        ..mixed
    };
    mixed_under_watch(&cluster.config(DB), more, |_| Ok(()))?;
    folds_on(&mut client, &before)?;
    Ok(())
}
