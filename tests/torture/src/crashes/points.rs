//! A crash, an error or a pause at each point between two steps of the engine: see its `failpoint.rs`.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use counterx_cluster_tests::{
    DEADLINE, create_database, footprint, is_lost, settle, wait_for_no_worker,
};
use counterx_harness::{Cluster, poll_until};
use postgres::Client;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};

use super::rig::{FOLLOW, Rig, Scene, fails_with, fill, follow, is_paused, lanes_fold};
use crate::options::Options;
use crate::report::PartReport;

/// What a session does to come by a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Increment,
    Prepare,
    Compact,
    /// Until there is a log that can be truncated.
    CompactFull,
    /// With late deltas.
    CompactLate,
    /// With windows that have ended.
    CompactEnded,
    /// Of a counter whose windows slide.
    Window,
    Take,
    Once,
    Hold,
    Confirm,
    /// Reads a stream.
    Next,
    /// Begins it anew.
    Bootstrap,
}

impl Way {
    fn compacts(self) -> bool {
        [
            Self::Compact,
            Self::CompactFull,
            Self::CompactLate,
            Self::CompactEnded,
        ]
        .contains(&self)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Crash,
    Error,
    Pause,
}

impl Action {
    pub(super) const ALL: [Self; 3] = [Self::Crash, Self::Error, Self::Pause];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Error => "error",
            Self::Pause => "pause",
        }
    }
}

/// Points that sessions come by.
const SESSIONS: [(&str, Way); 44] = [
    ("catalog.gate_found", Way::Increment),
    ("flush.gate_locked", Way::Increment),
    ("flush.epoch_read", Way::Increment),
    ("insert.in_heap", Way::Increment),
    ("insert.in_heap", Way::Prepare),
    ("insert.in_heap", Way::Once),
    ("insert.in_heap", Way::Hold),
    ("flush.lane_written", Way::Increment),
    ("commit.flushed", Way::Increment),
    ("commit.flushed", Way::Take),
    ("commit.flushed", Way::Compact),
    ("commit.done", Way::Increment),
    ("prepare.late_written", Way::Prepare),
    ("prepare.done", Way::Prepare),
    ("fold.settled", Way::Compact),
    ("fold.snapshot_taken", Way::Compact),
    ("fold.late_deleted", Way::CompactLate),
    ("fold.history_written", Way::Compact),
    ("fold.total_written", Way::Compact),
    ("fold.totals_written", Way::Compact),
    ("fold.state_saved", Way::Compact),
    ("publish.begin", Way::Compact),
    ("publish.gate_written", Way::Compact),
    ("publish.writers_listed", Way::Compact),
    ("truncate.locked", Way::CompactFull),
    ("truncate.published", Way::CompactFull),
    ("truncate.done", Way::CompactFull),
    ("escrow.reserved", Way::Take),
    ("escrow.granted", Way::Take),
    ("escrow.granted", Way::Window),
    ("window.timed", Way::Window),
    ("window.noted", Way::Window),
    ("windows.noted", Way::CompactEnded),
    ("token.locked", Way::Once),
    ("token.acted", Way::Once),
    ("token.kept", Way::Once),
    ("hold.inserted", Way::Hold),
    ("hold.reserved", Way::Confirm),
    ("hold.deleted", Way::Confirm),
    ("stream.row_written", Way::Compact),
    ("stream.switched", Way::CompactFull),
    ("stream.bootstrapped", Way::Bootstrap),
    ("stream.cursor_locked", Way::Next),
    ("stream.read", Way::Next),
];

/// Points that the worker comes by while there is a load.
const WORKER: [&str; 23] = [
    "fold.settled",
    "fold.snapshot_taken",
    "fold.late_deleted",
    "fold.history_written",
    "fold.total_written",
    "fold.totals_written",
    "fold.state_saved",
    "fold.committed",
    "publish.begin",
    "publish.gate_written",
    "publish.writers_listed",
    "truncate.locked",
    "truncate.published",
    "truncate.done",
    "truncate.committed",
    "worker.failed",
    "worker.error_noted",
    "worker.ready",
    "stream.row_written",
    "stream.switched",
    "stream.gone_noted",
    "stream.emptied",
    "stream.hinting",
];

/// Points at which a writer pauses while the worker goes on: what it writes in the end must be folded
/// too, whatever was published, folded and truncated meanwhile.
const WRITERS: [(&str, Way); 7] = [
    ("flush.gate_locked", Way::Increment),
    ("flush.epoch_read", Way::Increment),
    ("insert.in_heap", Way::Increment),
    ("flush.lane_written", Way::Increment),
    ("commit.flushed", Way::Increment),
    ("insert.in_heap", Way::Prepare),
    ("prepare.late_written", Way::Prepare),
];

#[derive(Clone, Copy)]
enum Who {
    Worker(&'static str),
    Writer(&'static str, Way),
}

/// Points that a worker comes by when history expires, for which a clock has to go on by days: the cluster test
/// `history` kills it there. And the one of workers without a launcher: `turns`.
#[cfg(test)]
const ELSEWHERE: [&str; 4] = [
    "expiry.found",
    "expiry.locked",
    "expiry.cut",
    "worker.queues",
];

/// And the one as it ends.
const ENDING: &str = "worker.given_up";

/// Behind the commit an error would be a crash.
pub(super) fn can(point: &str, action: Action) -> bool {
    const BEHIND: [&str; 4] = [
        "commit.done",
        "prepare.done",
        "committer.committed",
        "committer.answered",
    ];
    action == Action::Crash || !BEHIND.contains(&point)
}

/// All of them in the long form, in random order, and then random ones until the time is over; a
/// random handful in the short form.
pub(super) fn go<P: Copy>(
    all: Vec<(P, Action)>,
    few: usize,
    seed: u64,
    options: &Options,
    mut step: impl FnMut(P, Action) -> Result<()>,
) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    let end = Instant::now() + options.time() / 3;
    let mut first = all.clone();
    first.shuffle(&mut rng);
    first.truncate(options.size(few, all.len()));
    for (point, action) in first {
        step(point, action)?;
    }
    while !options.short && Instant::now() < end {
        let (point, action) = *all.choose(&mut rng).expect("there are some");
        step(point, action)?;
    }
    Ok(())
}

pub(super) fn sessions(rig: &mut Rig, options: &Options, report: &mut PartReport) -> Result<()> {
    let all: Vec<_> = SESSIONS
        .iter()
        .flat_map(|&entry| Action::ALL.map(|action| (entry, action)))
        .filter(|((point, _), action)| can(point, *action))
        .collect();
    let seed = options.seed_for("points of sessions");
    rig.under_load("sessions", seed, false, |scene| {
        go(all, 3, seed, options, |(point, way), action| {
            session(scene, point, way, action)
                .and_then(|()| scene.all_is_well())
                .with_context(|| format!("{} at {point}, {way:?}", action.word()))?;
            report.tried(&format!("{} at a point of a session", action.word()), 1);
            Ok(())
        })
    })
}

/// Counts in a window, and waits for its end.
const ENDED: &str = "
    DO $$
    DECLARE
        ends_at timestamptz;
    BEGIN
        PERFORM counter_incr('window.gone:deed');
        SELECT w.ends_at INTO ends_at FROM counter_window('window.gone:deed') w;
        COMMIT;
        PERFORM pg_sleep_until(ends_at);
        PERFORM counter_value('window.gone:deed');
    END $$";

/// What a session is about to do, and how to tell whether it is done.
struct Deed {
    sql: String,
    /// What ends its transaction.
    end: String,
    /// A statement that says so.
    done: String,
    /// What is there to be given back, for a bounded counter.
    bounded: Option<String>,
}

fn session(scene: &mut Scene, point: &str, way: Way, action: Action) -> Result<()> {
    // What is lost is not written for.
    follow(&mut scene.connect()?)?;
    let deed = deed(scene, way)?;
    let mut client = scene.connect()?;
    let setting = format!("counterx.failpoint = '{point}={}'", action.word());
    let is_done =
        |scene: &Scene| -> Result<bool> { Ok(scene.connect()?.query_one(&deed.done, &[])?.get(0)) };
    let again = |client: &mut Client, scene: &mut Scene| -> Result<()> {
        act(&scene.names, client, way, &deed, None).context("at the second try")?;
        ensure!(is_done(scene)?, "not done at the second try: {}", deed.sql);
        Ok(())
    };
    match action {
        Action::Crash => {
            scene.crash(|scene| {
                match act(&scene.names, &mut client, way, &deed, Some(&setting)) {
                    Ok(()) => bail!("the point was not reached"),
                    Err(error) => {
                        let error = anyhow::Error::from(error);
                        ensure!(is_lost(&error), "{error:?}");
                        Ok(())
                    }
                }
            })?;
            let committed = ["commit.done", "prepare.done"].contains(&point);
            if !way.compacts() {
                let done = is_done(scene)?;
                ensure!(done == committed, "done: {done}, committed: {committed}");
            }
            if !committed {
                nothing_is_reserved(scene, &deed)?;
                again(&mut scene.connect()?, scene)?;
            }
        }
        Action::Error => {
            fails_with(
                act(&scene.names, &mut client, way, &deed, Some(&setting)),
                &format!("failpoint {point}"),
            )?;
            client.batch_execute("ROLLBACK")?;
            if [Way::CompactFull, Way::CompactEnded].contains(&way) {
                client.batch_execute("RESET counterx.failpoint")?;
            }
            nothing_is_reserved(scene, &deed)?;
            again(&mut client, scene)?;
        }
        Action::Pause => {
            let mut holder = scene.hold_pause()?;
            std::thread::scope(|scope| {
                let (deed, setting) = (&deed, &setting);
                let names = scene.names.clone();
                let acting =
                    scope.spawn(move || act(&names, &mut client, way, deed, Some(setting)));
                let result = poll_until("somebody to pause", DEADLINE, || {
                    ensure!(!acting.is_finished(), "the point was not reached");
                    is_paused(&mut holder)
                })
                .and_then(|()| scene.writers_do_not_wait());
                // Also after a failure, so that the other one can go on.
                drop(holder);
                let acted = acting.join().map_err(|_| anyhow!("a session panicked"))?;
                result.and(acted.map_err(Into::into))
            })?;
            ensure!(is_done(scene)?, "not done: {}", deed.sql);
        }
    }
    if way == Way::Prepare {
        let mut client = scene.connect()?;
        let sql = "SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'deed-%'";
        for row in client.query(sql, &[])? {
            client.batch_execute(&format!("COMMIT PREPARED '{}'", row.get::<_, String>(0)))?;
        }
    }
    nothing_is_reserved(scene, &deed)
}

/// Does it, with this setting for the transaction alone: the end of one that only makes a setting is a
/// commit as well.
fn act(
    names: &[String],
    client: &mut Client,
    way: Way,
    deed: &Deed,
    setting: Option<&String>,
) -> Result<(), postgres::Error> {
    let Deed { sql, end, .. } = deed;
    if way == Way::CompactEnded {
        if let Some(setting) = setting {
            client.batch_execute(&format!("SET {setting}"))?;
        }
        // One may be removed by the worker before.
        for _ in 0..3 {
            client.batch_execute(ENDED)?;
            client.batch_execute(sql)?;
        }
        return client.batch_execute("RESET counterx.failpoint");
    }
    if way != Way::CompactFull {
        let set = setting.map_or_else(String::new, |setting| format!("SET LOCAL {setting};"));
        return client.batch_execute(&format!("BEGIN; {set} {sql}; {end}"));
    }
    // It truncates nothing when it is in a transaction with others.
    match setting {
        None => return client.batch_execute(sql),
        Some(setting) => client.batch_execute(&format!("SET {setting}"))?,
    }
    // One call changes to the other log, a later one truncates, when the load's snapshots let it.
    for _ in 0..40 {
        fill(client, names)?;
        client.batch_execute(sql)?;
        // Read, so that a lane has room to change to its other table of changes.
        client.batch_execute(FOLLOW)?;
    }
    client.batch_execute("RESET counterx.failpoint")
}

fn deed(scene: &mut Scene, way: Way) -> Result<Deed> {
    let n = scene.unique();
    let name = format!("deed:{n}");
    let many = (0..20).fold(String::new(), |sql, i| {
        format!("{sql} SELECT bump('{name}:{i}', 1);")
    });
    let end = "COMMIT".to_owned();
    let there = format!("SELECT counter_value('{name}:0') = 1");
    let deed = match way {
        Way::Increment => Deed {
            sql: many,
            end,
            done: there,
            bounded: None,
        },
        Way::Prepare => Deed {
            sql: many,
            end: format!("PREPARE TRANSACTION 'deed-{n}'"),
            done: format!("SELECT EXISTS (SELECT FROM pg_prepared_xacts WHERE gid = 'deed-{n}')"),
            bounded: None,
        },
        Way::Compact | Way::CompactFull | Way::CompactLate | Way::CompactEnded => {
            let mut client = scene.connect()?;
            client.batch_execute(&format!("BEGIN; {many} COMMIT"))?;
            if way == Way::CompactLate {
                client.batch_execute(&format!("BEGIN; {many} PREPARE TRANSACTION 'late-{n}'"))?;
                client.batch_execute(&format!("COMMIT PREPARED 'late-{n}'"))?;
            }
            Deed {
                sql: "SELECT counterx.compact()".to_owned(),
                end,
                done: "SELECT true".to_owned(),
                bounded: None,
            }
        }
        Way::Window => {
            let name = format!("window.slide:{n}");
            Deed {
                sql: format!("SELECT attempt('{name}', 2)"),
                end,
                done: format!("SELECT sum(value) = 2 FROM all_windows('{name}')"),
                bounded: None,
            }
        }
        Way::Take => {
            let name = format!("quota:{n}");
            Deed {
                sql: format!("SELECT try('{name}', -2)"),
                end,
                done: format!("SELECT counter_value('{name}') = -2"),
                bounded: Some(name),
            }
        }
        Way::Next | Way::Bootstrap => {
            let mut client = scene.connect()?;
            client.batch_execute(&format!("BEGIN; {many} COMMIT"))?;
            poll_until("the deed to be folded", DEADLINE, || {
                client.batch_execute("SELECT counterx.compact()")?;
                let sql = "SELECT EXISTS (SELECT FROM counterx.total WHERE name = $1)";
                Ok(client.query_one(sql, &[&format!("{name}:19")])?.get(0))
            })?;
            let sql = if way == Way::Next {
                "SELECT mirror_next('deeds', 1000000, NULL)"
            } else {
                "SELECT mirror_bootstrap('deeds')"
            };
            Deed {
                sql: sql.to_owned(),
                end,
                done: format!(
                    "SELECT EXISTS (SELECT FROM mirror WHERE name = '{name}:19' AND value = 1)"
                ),
                bounded: None,
            }
        }
        Way::Once => Deed {
            sql: format!(
                "INSERT INTO oracle VALUES ('{name}', 1); \
                 SELECT 1 / counter_incr_once('{name}', '{name}', 1)::int"
            ),
            end,
            done: format!("SELECT counter_value('{name}') = 1"),
            bounded: None,
        },
        Way::Hold | Way::Confirm => {
            let name = format!("stock:{n}");
            let mut client = scene.connect()?;
            client.batch_execute(&format!("SELECT bump('{name}', 5)"))?;
            let hold = format!("SELECT hold('{name}', 2, '1 hour')");
            if way == Way::Hold {
                Deed {
                    sql: hold,
                    end,
                    done: format!(
                        "SELECT EXISTS (SELECT FROM counter_holds WHERE name = '{name}')"
                    ),
                    bounded: Some(name),
                }
            } else {
                client.batch_execute(&hold)?;
                let sql = "SELECT id FROM counter_holds WHERE name = $1";
                let id: i64 = client.query_one(sql, &[&name])?.get(0);
                Deed {
                    sql: format!("SELECT confirm({id}, false)"),
                    end,
                    done: format!("SELECT counter_value('{name}') = 3"),
                    bounded: Some(name),
                }
            }
        }
    };
    Ok(deed)
}

/// All that is there and not on hold can be taken.
fn nothing_is_reserved(scene: &Scene, deed: &Deed) -> Result<()> {
    let Some(name) = &deed.bounded else {
        return Ok(());
    };
    let mut client = scene.connect()?;
    let mut transaction = client.transaction()?;
    transaction.batch_execute("SET LOCAL counterx.escrow_wait = 0")?;
    let sql = "SELECT available, counter_take_up_to($1, 1000000) FROM counter_available($1)";
    let row = transaction.query_one(sql, &[name])?;
    let (available, taken): (i64, i64) = (row.get(0), row.get(1));
    ensure!(taken == available, "{name}: took {taken} of {available}");
    Ok(transaction.rollback()?)
}

/// Has the setting take effect once, at whoever comes by first.
pub(super) fn arm(cluster: &mut Cluster, points: &[(&str, Action)]) -> Result<()> {
    disarm(cluster)?;
    let setting: Vec<_> = points
        .iter()
        .map(|(point, action)| format!("{point}={} once", action.word()))
        .collect();
    // First, as the connection that reloads must not be lost in the crash.
    cluster.reload(&[("counterx.failpoint", &setting.join(","))])?;
    // Those that lead to the one in question come last.
    for (point, action) in points {
        fs::write(once_file(cluster, point, *action), "")?;
    }
    Ok(())
}

/// Removes what was to happen once, should it not have happened.
pub(super) fn disarm(cluster: &Cluster) -> Result<()> {
    for entry in fs::read_dir(cluster.data_dir())? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy());
        if name.is_some_and(|name| name.starts_with("counterx.failpoint.")) {
            // It may happen just now.
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

pub(super) fn has_fired(cluster: &Cluster, point: &str, action: Action) -> bool {
    !once_file(cluster, point, action).exists()
}

fn once_file(cluster: &Cluster, point: &str, action: Action) -> std::path::PathBuf {
    cluster
        .data_dir()
        .join(format!("counterx.failpoint.{point}={}", action.word()))
}

pub(super) fn worker(rig: &mut Rig, options: &Options, report: &mut PartReport) -> Result<()> {
    let workers = WORKER
        .iter()
        .flat_map(|&point| Action::ALL.map(|action| (Who::Worker(point), action)));
    let writers = WRITERS
        .iter()
        .map(|&(point, way)| (Who::Writer(point, way), Action::Pause));
    // One of those is in each form.
    let first = WRITERS[usize::try_from(options.seed % 5)?];
    let seed = options.seed_for("points of the worker");
    let result = rig.under_load("worker", seed, true, |scene| {
        let mut step = |who, action: Action| {
            let (result, point, whose) = match who {
                Who::Worker(point) => (worker_at(scene, point, action), point, "the worker"),
                Who::Writer(point, way) => (
                    session(scene, point, way, action),
                    point,
                    "a writer beside the worker",
                ),
            };
            result
                .and_then(|()| scene.all_is_well())
                .with_context(|| format!("{} at {point} of {whose}", action.word()))?;
            report.tried(&format!("{} at a point of {whose}", action.word()), 1);
            Ok(())
        };
        step(Who::Writer(first.0, first.1), Action::Pause)?;
        go(workers.chain(writers).collect(), 2, seed, options, step)
    });
    disarm(&rig.cluster)?;
    result
}

fn worker_at(scene: &mut Scene, point: &str, action: Action) -> Result<()> {
    // A worker that has something to note has failed before.
    let failing = point == "worker.failed" || point == "worker.error_noted";
    let mut points = vec![(point, action)];
    if failing {
        points.push(("fold.settled", Action::Error));
    }
    match action {
        Action::Crash => scene.crash(|scene| {
            arm(scene.cluster, &points)?;
            come_by(scene, &points)
        }),
        Action::Error => {
            arm(scene.cluster, &points)?;
            come_by(scene, &points)
        }
        Action::Pause => {
            let mut holder = scene.hold_pause()?;
            arm(scene.cluster, &points)?;
            come_by(scene, &points)?;
            poll_until("the worker to pause", DEADLINE, || is_paused(&mut holder))?;
            scene.writers_do_not_wait()
        }
    }
}

/// Waits until the worker has come by, and does what it takes.
fn come_by(scene: &mut Scene, points: &[(&str, Action)]) -> Result<()> {
    let (point, action) = points[0];
    let names = scene.names.clone();
    let mut terminated = false;
    let mut filled: Option<Instant> = None;
    poll_until("the worker to come by", DEADLINE, || {
        ensure!(!scene.control.is_aborted(), "the load has failed");
        if has_fired(scene.cluster, point, action) {
            return Ok(true);
        }
        // Taken by a worker that knew only the setting before.
        for (point, action) in &points[1..] {
            if has_fired(scene.cluster, point, *action) {
                fs::write(once_file(scene.cluster, point, *action), "")?;
            }
        }
        // The server may go down at any moment from here on.
        let Ok(mut client) = scene.config.connect(postgres::NoTls) else {
            return Ok(false);
        };
        if point == "worker.ready" {
            // Its successor comes by.
            let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                        WHERE backend_type = 'counterx worker' AND datname = current_database()";
            if !terminated && let Ok(rows) = client.query(sql, &[]) {
                terminated = !rows.is_empty();
            }
        } else if point == "fold.late_deleted" {
            let late = (0..8).fold(String::new(), |sql, i| {
                format!("{sql} SELECT bump('late:{i}', 1);")
            });
            let n = scene.unique();
            let _ = client.batch_execute(&format!("BEGIN; {late} PREPARE TRANSACTION 'come-{n}'"));
            let _ = client.batch_execute(&format!("COMMIT PREPARED 'come-{n}'"));
        } else if point.starts_with("stream.") {
            // Whoever pauses may have a table of changes locked.
            let _ = client.batch_execute("SET lock_timeout = '500ms'");
            let _ = client.batch_execute(FOLLOW);
            if point != "stream.row_written" && point != "stream.hinting" {
                let _ = fill(&mut client, &names);
            }
        } else if point.starts_with("truncate.")
            && filled.is_none_or(|at| at.elapsed() > Duration::from_millis(300))
        {
            // No more than it takes: checks of many rows keep old snapshots, and so the logs.
            let _ = fill(&mut client, &names);
            filled = Some(Instant::now());
        }
        Ok(has_fired(scene.cluster, point, action))
    })
}

/// A worker without work gives up its mark and then looks for work that has come meanwhile.
pub(super) fn ending(rig: &mut Rig, report: &mut PartReport) -> Result<()> {
    let mut client = create_database(&rig.cluster, "ending")?;
    let names = counterx_cluster_tests::names_in_lanes(&mut client)?;
    let db = "ending";
    for action in &Action::ALL {
        // The worker is to have work, and then none for a second.
        let mut holder = rig.cluster.connect_db(db)?;
        holder.execute("SELECT pg_advisory_lock($1)", &[&0x636e_7478_i64])?;
        client.batch_execute("SELECT bump('a', 1)")?;
        settle(&mut client)?;
        arm(&mut rig.cluster, &[(ENDING, *action)])?;
        // The worker of another database, or one that has ended just now, does not count.
        let mut last = Instant::now();
        poll_until("a worker to end", DEADLINE, || {
            if has_fired(&rig.cluster, ENDING, *action) {
                return Ok(true);
            }
            if last.elapsed() > Duration::from_secs(5) {
                client.batch_execute("SELECT bump('a', 1)")?;
                last = Instant::now();
            }
            Ok(false)
        })?;
        match action {
            Action::Crash => {
                poll_until("the server to notice a crash", DEADLINE, || {
                    Ok(holder.batch_execute("SELECT 1").is_err())
                })?;
                rig.crashes += 1;
                poll_until("the server to be back", DEADLINE, || {
                    Ok(rig.cluster.connect_db(db).map(|new| client = new).is_ok())
                })?;
            }
            Action::Error => wait_for_no_worker(&mut client, db)?,
            Action::Pause => {
                // Another worker is started for it, or this one sees it.
                client.batch_execute("SELECT bump('meanwhile', 1)")?;
                drop(holder);
                settle(&mut client)?;
                ensure!(footprint(&mut client)?.pending == 0, "something is left");
            }
        }
        lanes_fold(&mut client, &names, true, None)?;
        counterx_cluster_tests::check(&mut client)?;
        report.tried(&format!("{} as a worker ends", action.word()), 1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    fn points_in(directory: &Path, points: &mut BTreeSet<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                points_in(&path, points);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for call in ["failpoint!(\"", "crashpoint!(\""] {
                for rest in text.split(call).skip(1) {
                    points.insert(rest.split('"').next().unwrap().to_owned());
                }
            }
        }
    }

    #[test]
    fn every_point_of_the_engine_is_tried() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src");
        let mut there = BTreeSet::new();
        points_in(&root, &mut there);
        let tried: BTreeSet<String> = SESSIONS
            .iter()
            .map(|(point, _)| *point)
            .chain(WORKER)
            .chain(super::super::hits::POINTS)
            .chain(super::super::tracks::points())
            .chain([ENDING])
            .chain(ELSEWHERE)
            .map(str::to_owned)
            .collect();
        assert_eq!(there, tried);
        // And the table in failpoint.rs has them all.
        let table = fs::read_to_string(root.join("failpoint.rs")).unwrap();
        for point in &there {
            assert!(table.contains(&format!("//! | `{point}` |")), "{point}");
        }
    }
}
