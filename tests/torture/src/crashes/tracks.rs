//! A crash, an error and a pause at each point of tracking, filling, emptying and untracking, beside a load on the
//! tracked tables.

use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use counterx_cluster_tests::{
    Control, DEADLINE, Load, Recovering, TRACKS, TrackedLoad, create_bare_database, is_in_the_way,
    is_lost, no_drift, patiently, resolve_orphans, rows_agree, track_all, tracked_under_watch,
    tracks_have_triggers,
};
use counterx_harness::poll_until;
use postgres::{Client, Config};

use super::points::{Action, arm, disarm, go, has_fired};
use super::rig::{Rig, fails_with, hold_pause_in, is_paused};
use crate::options::Options;
use crate::report::PartReport;

/// What a session does to come by a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Track,
    Untrack,
    Recount,
    /// The whole table.
    Truncate,
    /// One of its partitions.
    TruncateLeaf,
    /// None: the filler comes by.
    Filler,
}

/// Points that only those who have to do with tracks come by.
const POINTS: [(&str, Way); 25] = [
    ("track.locked", Way::Track),
    ("track.triggers_made", Way::Track),
    ("track.noted", Way::Track),
    ("untrack.triggers_dropped", Way::Untrack),
    ("untrack.forgotten", Way::Untrack),
    ("untrack.removed", Way::Untrack),
    ("empty.subtracted", Way::Truncate),
    ("empty.subtracted", Way::TruncateLeaf),
    ("fill.waited", Way::Recount),
    ("fill.locked", Way::Recount),
    ("fill.snapshot_taken", Way::Recount),
    ("fill.counted", Way::Recount),
    ("fill.added", Way::Recount),
    ("fill.noted", Way::Recount),
    ("commit.flushed", Way::Recount),
    ("filler.ready", Way::Filler),
    ("filler.looked", Way::Filler),
    ("filler.filled", Way::Filler),
    ("fill.waited", Way::Filler),
    ("fill.locked", Way::Filler),
    ("fill.snapshot_taken", Way::Filler),
    ("fill.counted", Way::Filler),
    ("fill.added", Way::Filler),
    ("fill.noted", Way::Filler),
    ("commit.flushed", Way::Untrack),
];

/// Points at which others may still write to the table.
const UNLOCKED: [&str; 8] = [
    "filler.ready",
    "filler.looked",
    "filler.filled",
    "fill.waited",
    "fill.locked",
    "fill.snapshot_taken",
    "fill.counted",
    "fill.added",
];

const DB: &str = "tracks";

/// The track that all of this is done to.
const TRACK: (&str, &str, &str) = TRACKS[4];

/// The points by their names.
#[cfg(test)]
pub(super) fn points() -> impl Iterator<Item = &'static str> {
    POINTS.into_iter().map(|(point, _)| point)
}

pub(super) fn run(rig: &mut Rig, options: &Options, report: &mut PartReport) -> Result<()> {
    let mark = rig.cluster.log_len();
    let mut client = create_bare_database(&rig.cluster, DB)?;
    // Transactions at random come into each other's way a lot.
    client.batch_execute(&format!(
        "ALTER DATABASE {DB} SET deadlock_timeout = '50ms'"
    ))?;
    track_all(&mut client)?;
    drop(client);
    let all: Vec<_> = POINTS
        .into_iter()
        .flat_map(|entry| Action::ALL.map(|action| (entry, action)))
        .collect();
    let seed = options.seed_for("points of tracks");
    let load = Load {
        clients: 3,
        // As many as there is time for.
        transactions: 1_000_000,
        two_phase: true,
        survives: true,
        seed,
        ..Load::default()
    };
    let how = TrackedLoad {
        untracks: true,
        ddl: true,
        ..TrackedLoad::default()
    };
    let config = rig.cluster.config(DB);
    let watched = tracked_under_watch(&config, &load, how, |control| {
        go(all, 4, seed, options, |(point, way), action| {
            let mut stage = Stage {
                rig,
                config: &config,
                control,
            };
            stage
                .step(point, way, action)
                .with_context(|| format!("{} at {point}, {way:?}", action.word()))?;
            report.tried(&format!("{} at a point of tracks", action.word()), 1);
            Ok(())
        })?;
        // Not a failure: it is how a load of that length is told to end.
        control.abort();
        Ok(())
    });
    disarm(&rig.cluster)?;
    let watched = watched.with_context(|| rig.log_end(mark))?;
    rig.checks += watched.checks;
    let mut connection = Recovering::new(&config);
    let client = connection.client()?;
    all_is_well(client, true).with_context(|| rig.log_end(mark))?;
    rig.log_is_clean(mark)
}

/// All tracks become exact by themselves, and are.
fn all_is_well(client: &mut Client, tracked: bool) -> Result<()> {
    poll_until("the tracks to be exact", DEADLINE, || {
        for table in ["task", "comment", "item"] {
            let sql = format!(
                "SELECT counter_track_wait('{table}', '{} s')",
                DEADLINE.as_secs()
            );
            let row = client.query_one(&sql, &[])?;
            ensure!(row.get::<_, bool>(0), "{table} does not become exact");
        }
        let looked = rows_agree(client).and_then(|_| {
            for (table, type_name, _) in TRACKS {
                if tracked || type_name != TRACK.1 {
                    no_drift(client, &[(table, type_name)])?;
                }
            }
            Ok(())
        });
        match looked {
            Err(error)
                if error
                    .chain()
                    .any(|cause| cause.downcast_ref().is_some_and(is_in_the_way)) =>
            {
                Ok(false)
            }
            other => other.map(|()| true),
        }
    })?;
    tracks_have_triggers(client)
}

struct Stage<'a> {
    rig: &'a mut Rig,
    config: &'a Config,
    control: &'a Control,
}

impl Stage<'_> {
    fn connect(&self) -> Result<Client> {
        let mut connection = Recovering::new(self.config);
        connection.client()?;
        connection.into_client().context("just connected")
    }

    fn step(&mut self, point: &str, way: Way, action: Action) -> Result<()> {
        let mut client = self.connect()?;
        if way == Way::Track {
            self.untrack(&mut client)?;
        } else {
            self.track(&mut client)?;
        }
        match way {
            Way::Filler => self.filler(&mut client, point, action),
            _ => self.session(client, point, way, action),
        }?;
        let mut client = self.connect()?;
        ensure!(!self.control.is_aborted(), "the load has failed");
        let tracked = is_tracked(&mut client)?;
        all_is_well(&mut client, tracked)?;
        if !tracked {
            let left: i64 = client
                .query_one(
                    "SELECT count(*) FROM counters WHERE name ^@ $1",
                    &[&format!("{}:", TRACK.1)],
                )?
                .get(0);
            ensure!(left == 0, "{left} counters are left without a track");
        }
        self.goes_on()
    }

    /// Commits go on.
    fn goes_on(&self) -> Result<()> {
        let before = self.control.finished();
        poll_until("the load to go on", DEADLINE, || {
            ensure!(!self.control.is_aborted(), "the load has failed");
            Ok(self.control.finished() >= before + 10)
        })
    }

    fn track(&self, client: &mut Client) -> Result<()> {
        if !is_tracked(client)? {
            patiently(client, &sql(Way::Track))?;
        }
        let sql = format!("SELECT counter_track_wait('{}', '1 min')", TRACK.0);
        let row = client.query_one(&sql, &[])?;
        ensure!(row.get::<_, bool>(0), "the track does not become exact");
        Ok(())
    }

    fn untrack(&self, client: &mut Client) -> Result<()> {
        if is_tracked(client)? {
            patiently(client, &sql(Way::Untrack))?;
        }
        Ok(())
    }

    fn session(&mut self, mut client: Client, point: &str, way: Way, action: Action) -> Result<()> {
        let before = is_tracked(&mut client)?;
        let setting = format!("{point}={}", action.word());
        match action {
            Action::Crash => {
                let mut witness = self.connect()?;
                let lost = act(&mut client, way, Some(&setting))
                    .err()
                    .map(anyhow::Error::from)
                    .context("the point was not reached")?;
                ensure!(is_lost(&lost), "{lost:?}");
                drop(client);
                self.recover(&mut witness)?;
                let mut client = self.connect()?;
                ensure!(
                    is_tracked(&mut client)? == before,
                    "half of it is there after the crash"
                );
                act(&mut client, way, None)?;
            }
            Action::Error => {
                fails_with(
                    act(&mut client, way, Some(&setting)),
                    &format!("failpoint {point}"),
                )?;
                ensure!(
                    is_tracked(&mut client)? == before,
                    "half of it is there after the error"
                );
                act(&mut client, way, None)?;
            }
            Action::Pause => {
                let mut holder = hold_pause_in(&self.rig.cluster, DB)?;
                std::thread::scope(|scope| {
                    let acting = scope.spawn(move || act(&mut client, way, Some(&setting)));
                    let result = poll_until("somebody to pause", DEADLINE, || {
                        ensure!(!acting.is_finished(), "the point was not reached");
                        is_paused(&mut holder)
                    })
                    .and_then(|()| self.goes_on_beside(point));
                    // Also after a failure, so that the other one can go on.
                    drop(holder);
                    let acted = acting.join().map_err(|_| anyhow!("a session panicked"))?;
                    result.and(acted.map_err(Into::into))
                })?;
            }
        }
        let is_due = match way {
            Way::Track => true,
            Way::Untrack => false,
            _ => before,
        };
        ensure!(
            is_tracked(&mut self.connect()?)? == is_due,
            "{way:?} was not done"
        );
        Ok(())
    }

    fn goes_on_beside(&self, point: &str) -> Result<()> {
        if UNLOCKED.contains(&point) {
            self.goes_on()?;
        }
        Ok(())
    }

    /// The server goes down, which a witness learns, and comes back.
    fn recover(&mut self, witness: &mut Client) -> Result<()> {
        poll_until("the server to notice a crash", DEADLINE, || {
            Ok(witness.batch_execute("SELECT 1").is_err())
        })?;
        let mut client = self.connect()?;
        self.rig.crashes += 1;
        // What they have locked would be locked for ever.
        resolve_orphans(&mut client)
    }

    /// The track is stale, and the filler comes by when it makes it exact.
    fn filler(&mut self, client: &mut Client, point: &str, action: Action) -> Result<()> {
        let (table, type_name, _) = TRACK;
        let mut holder = match action {
            Action::Pause => Some(hold_pause_in(&self.rig.cluster, DB)?),
            Action::Crash | Action::Error => None,
        };
        arm(&mut self.rig.cluster, &[(point, action)])?;
        // A failure is told by what comes after: the server may go down at any moment.
        let stale = format!(
            "ALTER TABLE {table} DISABLE TRIGGER counterx_{type_name}_insert;
             ALTER TABLE {table} ENABLE ALWAYS TRIGGER counterx_{type_name}_insert"
        );
        patiently(client, &stale)?;
        let started = Instant::now();
        poll_until("the filler to come by", DEADLINE, || {
            ensure!(!self.control.is_aborted(), "the load has failed");
            Ok(has_fired(&self.rig.cluster, point, action))
        })
        .with_context(|| format!("{:?} after the track has become stale", started.elapsed()))?;
        if action == Action::Crash {
            self.recover(client)?;
        }
        if let Some(holder) = &mut holder {
            poll_until("the filler to pause", DEADLINE, || is_paused(holder))?;
            self.goes_on_beside(point)?;
        }
        Ok(())
    }
}

fn is_tracked(client: &mut Client) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT FROM counterx.track WHERE type = $1)";
    Ok(client.query_one(sql, &[&TRACK.1])?.get(0))
}

fn sql(way: Way) -> String {
    let (table, type_name, how) = TRACK;
    match way {
        Way::Track => format!("SELECT counter_track('{table}', '{type_name}', {how})"),
        Way::Untrack => format!("SELECT counter_untrack('{table}', '{type_name}')"),
        Way::Recount => format!("SELECT FROM counter_recount('{table}', '{type_name}')"),
        Way::Truncate => format!("TRUNCATE {table}"),
        Way::TruncateLeaf => format!("TRUNCATE {table}_1"),
        Way::Filler => "SELECT".to_owned(),
    }
}

/// Does it, until nobody is in its way.
fn act(client: &mut Client, way: Way, setting: Option<&String>) -> Result<(), postgres::Error> {
    let set = setting.map_or_else(String::new, |setting| {
        format!("SET LOCAL counterx.failpoint = '{setting}';")
    });
    let sql = format!("BEGIN; {set} {}; COMMIT", sql(way));
    let started = Instant::now();
    loop {
        let result = client.batch_execute(&sql);
        if result.is_err() {
            // Lost as well, when it is that.
            let _ = client.batch_execute("ROLLBACK");
        }
        match result {
            Err(error) if is_in_the_way(&error) && started.elapsed() < DEADLINE => {}
            result => return result,
        }
    }
}
