//! Full disks: a small tmpfs under the tables, and one under the WAL. Needs root, for `mount`.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{DEADLINE, check, oracle_schema, settle, wait_for_pause};
use counterx_harness::{StopMode, poll_until, run};
use postgres::Client;
use postgres::error::SqlState;

use super::rig::{Rig, lanes_fold, logs_shrink};
use crate::options::Options;
use crate::report::PartReport;

/// What unmounts: it waits for the end of its standard input, which comes with the end of this
/// process at the latest, however it ends.
const KEEPER: &str = r#"read -r _; umount -l "$1"; rmdir "$1""#;

/// A small file system in memory, mounted as long as this lives.
#[derive(Debug)]
pub(super) struct Tmpfs {
    directory: PathBuf,
    keeper: Child,
}

impl Tmpfs {
    /// Mounts one for the server's user. The inner error says why that cannot be done here.
    fn mount(rig: &Rig, name: &str, megabytes: u32) -> Result<Result<Self, String>> {
        if fs::metadata("/proc/self")?.uid() != 0 {
            return Ok(Err("only root may mount a small file system".to_owned()));
        }
        let directory = counterx_harness::run_dir()?.join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&directory)?;
        let mounted = run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(&directory));
        if let Err(error) = mounted {
            fs::remove_dir(&directory)?;
            return Ok(Err(format!(
                "a small file system cannot be mounted: {error:#}"
            )));
        }
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "sh"])
            .arg(&directory)
            .current_dir("/")
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn();
        let keeper = match keeper {
            Ok(keeper) => keeper,
            Err(error) => {
                run(Command::new("umount").arg(&directory))?;
                return Err(error.into());
            }
        };
        let mounted = Self { directory, keeper };
        let owner = fs::metadata(rig.cluster.data_dir())?;
        chown(&mounted.directory, Some(owner.uid()), Some(owner.gid()))?;
        fs::set_permissions(&mounted.directory, Permissions::from_mode(0o700))?;
        Ok(Ok(mounted))
    }

    fn filler(&self) -> PathBuf {
        self.directory.join("filler")
    }

    /// Takes all the space that is left.
    fn fill(&self) -> Result<()> {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(self.filler())?;
        // Down to the last page.
        for size in [1 << 20, 1 << 12] {
            let block = vec![0; size];
            while file.write_all(&block).is_ok() {}
        }
        Ok(())
    }

    fn free(&self) -> Result<()> {
        fs::remove_file(self.filler()).context("could not free the disk")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

fn is_full(error: &postgres::Error) -> bool {
    error.code() == Some(&SqlState::DISK_FULL)
}

/// Names of counters in a lane, and one of each other lane.
fn names_by_lane(client: &mut Client, lane: i32) -> Result<(Vec<String>, Vec<String>)> {
    let mut transaction = client.transaction()?;
    transaction.batch_execute(
        "SET LOCAL counterx.pending_work_mem = '64kB';
         SELECT counter_incr(repeat('n', 150) || n) FROM generate_series(1, 30000) n",
    )?;
    let mut others = Vec::new();
    let mut crowd = Vec::new();
    for number in 0..8 {
        // A worker may have changed the logs meanwhile.
        let sql = format!(
            "SELECT name FROM (TABLE counterx.log_{number}_a UNION ALL TABLE counterx.log_{number}_b) logs
              WHERE name LIKE 'nnn%'"
        );
        let rows = transaction.query(&sql, &[])?;
        let mut names = rows.iter().map(|row| row.get::<_, String>(0));
        if number == lane {
            crowd = names.collect();
        } else {
            others.extend(names.next());
        }
    }
    transaction.rollback()?;
    ensure!(others.len() == 7 && crowd.len() > 1000, "too few names");
    Ok((crowd, others))
}

/// The tables are full, and the WAL is not.
pub(super) fn data(rig: &mut Rig, report: &mut PartReport) -> Result<()> {
    let disk = match Tmpfs::mount(rig, "full-data", 64)? {
        Ok(disk) => disk,
        Err(why) => {
            report.skipped("full disk under the tables", why);
            return Ok(());
        }
    };
    let mark = rig.cluster.log_len();
    let mut admin = rig.cluster.connect()?;
    admin.batch_execute(&format!(
        "CREATE TABLESPACE small LOCATION '{}'",
        disk.directory.display()
    ))?;
    rig.mounts.push(disk);
    admin.batch_execute("CREATE DATABASE full_data TABLESPACE small")?;
    let mut client = rig.cluster.connect_db("full_data")?;
    client.batch_execute("CREATE EXTENSION counterx")?;
    client.batch_execute(oracle_schema())?;
    // The oracle has space, so that it is the engine that runs out of it.
    client.batch_execute(
        "ALTER TABLE oracle SET TABLESPACE pg_default; ALTER INDEX oracle_name SET TABLESPACE pg_default",
    )?;
    let result = full_data(rig, &mut client, report);
    result
        .and_then(|()| rig.log_is_clean(mark))
        .with_context(|| rig.log_end(mark))
}

fn full_data(rig: &mut Rig, client: &mut Client, report: &mut PartReport) -> Result<()> {
    let (crowd, others) = names_by_lane(client, CROWDED)?;
    fold_and_commit(rig, client, &crowd, &others, report)?;
    truncation(rig, client, &others, report)?;
    client.execute(BUMP, &[&crowd])?;
    let short: Vec<String> = (0..8).map(|n| format!("shrink:{n}")).collect();
    logs_shrink(client, &short)?;
    check(client)?;
    Ok(())
}

/// The lane whose fold needs more space than there is.
const CROWDED: i32 = 3;

const BUMP: &str = "SELECT bump(name, 1) FROM unnest($1::text[]) name";

fn fold_and_commit(
    rig: &mut Rig,
    client: &mut Client,
    crowd: &[String],
    others: &[String],
    report: &mut PartReport,
) -> Result<()> {
    // One log of each lane has some pages with room for more, and is not left for the other one soon.
    let small = "SELECT bool_and(size BETWEEN 1 AND 49152 AND least = 0) FROM
                  (SELECT sum(pg_relation_size(oid)) AS size, min(pg_relation_size(oid)) AS least
                     FROM pg_class WHERE relname ~ '^log_._[ab]$' GROUP BY left(relname, 5)) logs";
    let each: Vec<&String> = others.iter().chain(crowd.first()).collect();
    let mut last: Option<Instant> = None;
    poll_until("the logs to be small", DEADLINE, || {
        // A worker that had nothing to do for a while has ended.
        if last.is_none_or(|last| last.elapsed() > Duration::from_millis(500)) {
            client.execute(BUMP, &[&each])?;
            last = Some(Instant::now());
        }
        Ok(client.query_one(small, &[])?.get(0))
    })?;
    settle(client)?;
    rig.cluster.reload(&[("counterx.compaction", "off")])?;
    wait_for_pause(client)?;
    client.execute(BUMP, &[&others])?;
    client.execute(BUMP, &[&crowd])?;
    rig.disk()?.fill()?;
    let filled = Instant::now();
    rig.cluster.reload(&[("counterx.compaction", "on")])?;
    client.execute(BUMP, &[&others])?;
    let message = format!("folding lane {CROWDED} failed: 53100");
    let failures = |rig: &Rig| rig.cluster.log().matches(&message).count();
    poll_until("a fold to fail", DEADLINE, || Ok(failures(rig) >= 3))?;
    // Other lanes go on as long as there is room in the pages of the totals, which are everybody's.
    // Each pause is twice as long as the one before, from 0.1 s on.
    let failed = failures(rig);
    let seconds = filled.elapsed().as_secs_f64();
    let most = 3.0 + (1.0 + seconds / 0.1).log2();
    ensure!(
        f64::from(u32::try_from(failed)?) <= most,
        "{failed} failures in {seconds:.1} s"
    );
    let noted: Option<String> = client
        .query_one("SELECT last_error FROM counterx.workers", &[])?
        .get(0);
    ensure!(
        noted
            .as_deref()
            .is_some_and(|text| text.starts_with("53100")),
        "counterx.workers shows {noted:?}"
    );
    let pending: i64 = client
        .query_one(
            "SELECT pending_deltas FROM counterx.lanes WHERE lane = $1",
            &[&CROWDED],
        )?
        .get(0);
    ensure!(pending > 0, "a fold that failed has folded");
    check(client).context("reads while a lane cannot fold")?;
    report.tried("folds failed on a full disk", failed as u64);

    let mut refused = 0;
    poll_until("commits to be refused", DEADLINE, || {
        match client.execute(BUMP, &[&crowd]) {
            Ok(_) => {}
            Err(error) if is_full(&error) => refused += 1,
            Err(error) => return Err(error.into()),
        }
        Ok(refused >= 3)
    })?;
    check(client).context("reads after commits that were refused")?;
    report.tried("commits refused on a full disk", refused);

    // A hit's error is the one of the committer's commit. What nobody waits for is counted when it can be.
    let some = &crowd[..crowd.len().min(400)];
    let hit = |wait: bool| {
        format!(
            "SELECT counter_hit_many((SELECT jsonb_object_agg(name, 1) FROM unnest($1::text[]) name), {wait})"
        )
    };
    let note = "INSERT INTO oracle (name, delta) SELECT name, 1 FROM unnest($1::text[]) name";
    let mut counted = 0;
    poll_until("a hit to be refused", DEADLINE, || {
        match client.execute(&hit(true), &[&some]) {
            Ok(_) => counted += 1,
            Err(error) if is_full(&error) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
        client.execute(note, &[&some])?;
        Ok(false)
    })?;
    check(client).context("reads after a hit that was refused")?;
    client.execute(&hit(false), &[&some])?;
    client.execute(note, &[&some])?;
    report.tried("hits on a full disk", counted + 2);

    rig.disk()?.free()?;
    poll_until(
        "the hit that nobody waited for to be counted",
        DEADLINE,
        || Ok(check(client).is_ok()),
    )?;
    settle(client).context("with space again")?;
    check(client)?;
    lanes_fold(client, others, true, Some(CROWDED))
}

/// A truncation makes new files, the index's with a page in it. Should the disk have one left, it goes
/// well.
fn truncation(
    rig: &mut Rig,
    client: &mut Client,
    others: &[String],
    report: &mut PartReport,
) -> Result<()> {
    // A log that is folded and waits for an old snapshot to end.
    let mut old = rig.cluster.connect_db("full_data")?;
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT counter_value('x')")?;
    let full_logs = "SELECT left(relname, 5) FROM pg_class WHERE relname ~ '^log_._[ab]$'
                      GROUP BY 1 HAVING min(pg_relation_size(oid)) > 0";
    poll_until("a log to be left for the other one", DEADLINE, || {
        for _ in 0..100 {
            client.execute("SELECT bump($1, 1)", &[&others[0]])?;
        }
        Ok(!client.query(full_logs, &[])?.is_empty())
    })?;
    settle(client)?;
    let mark = rig.cluster.log_len();
    rig.disk()?.fill()?;
    old.batch_execute("COMMIT")?;
    let failures = |rig: &Rig| {
        let log = rig.cluster.log_since(mark);
        log.matches("emptying a log of lane").count()
    };
    poll_until("a truncation to be tried", DEADLINE, || {
        // Those of them whose logs have room left.
        for name in others {
            match client.execute("SELECT bump($1, 1)", &[name]) {
                Ok(_) => {}
                Err(error) if is_full(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(failures(rig) > 1 || client.query(full_logs, &[])?.is_empty())
    })?;
    check(client).context("reads while a log cannot be emptied")?;
    report.tried("truncations failed on a full disk", failures(rig) as u64);
    rig.disk()?.free()?;
    settle(client).context("with space again")?;
    check(client)?;
    lanes_fold(client, others, true, Some(CROWDED))
}

/// The WAL has no space left: the server goes down in the middle of whatever it does.
pub(super) fn wal(rig: &mut Rig, options: &Options, report: &mut PartReport) -> Result<()> {
    let disk = match Tmpfs::mount(rig, "full-wal", 128)? {
        Ok(disk) => disk,
        Err(why) => {
            report.skipped("full disk under the WAL", why);
            return Ok(());
        }
    };
    let there = disk.directory.join("pg_wal");
    rig.mounts.push(disk);
    rig.cluster.stop(StopMode::Fast)?;
    move_directory(&rig.cluster.data_dir().join("pg_wal"), &there)?;
    rig.cluster.start()?;
    for round in 0..options.size(1, 3) {
        let at = rig.mounts.len() - 1;
        let disk = rig.mounts.remove(at);
        let result = rig.under_load(
            &format!("full_wal_{round}"),
            options.seed_for("full WAL") + round,
            true,
            |scene| {
                scene.crash(|scene| {
                    let mark = scene.cluster.log_len();
                    disk.fill()?;
                    poll_until("the WAL to run full", 2 * DEADLINE, || {
                        // Who needs the next segment, be it a client or the worker, goes down.
                        if let Ok(mut client) = scene.config.connect(postgres::NoTls) {
                            let names = scene.names.clone();
                            let _ = super::rig::fill(&mut client, &names);
                            let _ = client.batch_execute("SELECT pg_switch_wal()");
                        }
                        let log = scene.cluster.log_since(mark);
                        Ok(log.contains(" PANIC:") && log.contains("No space left"))
                    })?;
                    // It may be down for good, as recovery needs space as well.
                    scene.cluster.stop(StopMode::Immediate)?;
                    disk.free()?;
                    scene.cluster.start()
                })?;
                scene.all_is_well()
            },
        );
        rig.mounts.push(disk);
        result?;
        report.tried("PANIC on a full disk of the WAL survived", 1);
    }
    Ok(())
}

fn move_directory(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").arg("-a").arg(from).arg(to))?;
    fs::remove_dir_all(from)?;
    symlink(to, from).context("could not link pg_wal")
}
