//! The background worker of one database: it folds while there is something to fold, and ends
//! when there was nothing for a while.
//!
//! A worker is started by a commit that has written deltas, through the launcher or, where the
//! library was not preloaded, by the committing backend itself. It is never started by the mere
//! presence of rows: in the middle of a restore there are rows that must not be folded.
//!
//! # Note about starting and ending
//! The worker of a database holds the mark (`duty.rs`) and, with a launcher, an entry. A
//! committing transaction inserts its rows first and then looks for the mark or the entry; a worker
//! that wants to end gives both up first and then looks for rows, committed or not. So either the
//! transaction sees that there is no worker, or the worker sees the row.
//!
//! # Note about turns
//! At most `counterx.max_workers` run at a time. With a launcher, its directory says who waits and who
//! is to make room. Without one, a worker holds the lock of its turn; sessions that find all turns
//! taken hold a lock that says so, and a worker that has had its turn looks for those, starts the
//! worker of the database that has waited longest, and ends. (What its own database has committed in
//! that moment waits for the next commit there.)
//!
//! A worker has had its turn when it has folded each lane once. While others wait, it does so at once
//! instead of once in an interval; and then it stays for as long as is fair.

use crate::bounds::types;
use crate::figures::local;
use crate::fold::rotation;
use crate::fold::sealing::{self, Sealing};
use crate::fold::sweep;
use crate::fold::way;
use crate::pg::compat;
use crate::pg::error::log;
use crate::pg::lock::{self, Stillness};
use crate::pg::ports;
use crate::pg::snapshot::LatestSnapshot;
use crate::pg::turns;
use crate::process::directory;
use crate::process::duty;
use crate::process::lanes::Lanes;
use crate::process::mend;
use crate::process::session;
use crate::process::start::{self, Further, Purpose};
use crate::process::streams::Streams;
use crate::process::tracks::Tracks;
use crate::process::upkeep::Upkeep;
use crate::process::uptime::Uptime;
use crate::settings;
use crate::store::catalog::{self, LaneRels, Unusable};
use crate::store::pending;
use crate::track::tables::{self, Catalogs};
use crate::write::pressure;
use counterx_core::folders::Present;
use counterx_core::lane::LANES;
use counterx_core::schedule::{LaneClock, POLL, SHORTEST};
use counterx_core::turns::{Seat, Turn};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::CStr;
use std::time::Duration;

/// The worker's main function; the argument is the database's OID, and what it is started for.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn counterx_worker_main(arg: pg_sys::Datum) {
    compat::set_signal_handler(pg_sys::SIGTERM, ports::die);
    compat::set_signal_handler(pg_sys::SIGHUP, ports::SignalHandlerForConfigReload);
    session::ignore_cancels();
    let database = pg_sys::Oid::from(arg.value() as u32);
    let purpose = Purpose::decode((arg.value() >> 32) as u32);
    let seat = Seat {
        database: database.to_u32(),
        number: purpose.number(),
    };
    // SAFETY: once, at the start of a background worker.
    unsafe { pg_sys::BackgroundWorkerUnblockSignals() };
    duty::report_exit(seat);
    // SAFETY: once, as the bootstrap superuser.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::InvalidOid, 0);
    }
    session::own_settings(&[
        // A fold and its bookkeeping are one commit, and the increments' own commits are durable
        // before it in the WAL: losing the fold in a crash loses nothing.
        (c"synchronous_commit", c"off"),
        (c"lock_timeout", c"0"),
    ]);
    // What it removes may fire triggers that count: it would wait for its own fold.
    pressure::exempt();
    if !seat.is_first() {
        // What counterx.workers knows it by.
        let name = format!("counterx further worker {}\0", seat.number);
        if let Ok(name) = CStr::from_bytes_with_nul(name.as_bytes()) {
            session::set(c"application_name", name);
        }
    }
    // Before it waits for anything: from now on it notices that they were changed.
    let known = session::transaction(c"reading settings", || session::database_settings(database));
    if !duty::take_mark(seat) {
        return;
    }
    let has_turn = match purpose {
        Purpose::Fold | Purpose::Visit | Purpose::Further(Further { turn: None, .. }) => true,
        Purpose::Turn(turn)
        | Purpose::Further(Further {
            turn: Some(turn), ..
        }) => session::patiently(|| turns::try_take_turn(turn)),
        Purpose::Next(turn) => duty::wait_for_turn(seat, turn),
    };
    if !has_turn {
        return;
    }
    failpoint!("worker.ready");
    way::enter_worker();
    let mut worker = Worker::new(seat, purpose, known.unwrap_or_default());
    if purpose == Purpose::Visit {
        duty::set_working(seat, true);
        worker.look_in();
    } else {
        duty::set_working(seat, false);
        worker.run();
    }
}

struct Worker {
    database: pg_sys::Oid,
    seat: Seat,
    /// Which workers of the database are there.
    present: Present,
    /// When others may be made to hold still again.
    stillness_at: Duration,
    purpose: Purpose,
    up: Uptime,
    lanes: Lanes,
    upkeep: Upkeep,
    tracks: Tracks,
    /// What it does for streams.
    streams: Streams,
    /// Its turn is over but for one more fold of each lane.
    last_round: bool,
    /// Others want a turn.
    others: Others,
    /// When to look for them next, where that takes a look at the lock table.
    others_at: Duration,
    /// What the launcher knows.
    busy: bool,
    /// Those that its session began with.
    database_settings: Option<i64>,
    /// When the worker looks at the settings of the database, and after an error at all.
    glances: LaneClock,
    /// Looks have failed: the next one comes then.
    blind_until: Duration,
}

/// How often a worker looks whether the settings of its database were changed.
const GLANCE_EVERY: Duration = Duration::from_secs(1);

/// A worker looks in after this time where there is more to be deleted of a history.
const SWEEP_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// And after this time where it was in the way of somebody who needed the database alone.
const VISIT_AFTER_MAKING_WAY: Duration = Duration::from_secs(5);

/// Without a launcher, a worker looks for others that want its turn this often: one that is idle is
/// the first to see them.
const OTHERS_EVERY_IDLE: Duration = Duration::from_millis(250);
const OTHERS_EVERY: Duration = Duration::from_secs(1);

/// While others wait, a worker does not wait longer than this before it goes on.
const HURRY: Duration = Duration::from_millis(5);

/// A worker looks in again after the time after which an idle one ends, but not much later.
const VISIT_AT_LEAST_EVERY: Duration = Duration::from_secs(60);

/// Who wants this worker's turn.
#[derive(Clone, Copy, Default)]
struct Others {
    /// So many databases wait.
    waiting: u32,
    /// This worker is to make room for one of them.
    asked: bool,
}

/// What is left to do in a database.
#[derive(Clone, Copy, Default)]
struct Left {
    /// There is something to fold.
    pending: bool,
    /// There is a log to be truncated later.
    inactive: bool,
    /// There is a track that is not exact.
    unfinished: bool,
    /// There are rows of a history that was dropped.
    sweeps: bool,
    /// There is history: a bucket ends in this time.
    seals_in: Option<Duration>,
    /// There is history, and the clock has leapt.
    leaps: bool,
    /// The settings of the database were changed: those that this session has do not count.
    new_settings: bool,
}

impl Left {
    /// Is there something that a worker would fold?
    fn is_work(self) -> bool {
        self.pending && (settings::compaction() || self.new_settings)
    }
}

/// What a worker found when it looked around.
enum Outlook {
    /// These lanes have more pending rows than the threshold.
    Crowded([bool; LANES]),
    /// The settings of the database were changed: a new session has to be started to get them.
    NewSettings,
    /// The extension is gone, or of another version.
    Unusable,
}

impl Worker {
    fn new(seat: Seat, purpose: Purpose, database_settings: Option<i64>) -> Self {
        Self {
            database: seat.database.into(),
            seat,
            present: Present::alone(seat.number),
            stillness_at: Duration::ZERO,
            purpose,
            up: Uptime::start(),
            lanes: Lanes::of(seat.number),
            upkeep: Upkeep::default(),
            tracks: Tracks::default(),
            streams: Streams::of(seat),
            last_round: false,
            others: Others::default(),
            others_at: Duration::ZERO,
            busy: true,
            database_settings,
            glances: LaneClock::default(),
            blind_until: Duration::ZERO,
        }
    }

    fn run(&mut self) {
        loop {
            if lock::database_is_wanted() {
                return self.make_way();
            }
            self.share_lanes();
            let found = match self.up.now() < self.blind_until {
                true => Ok(Outlook::Crowded([false; LANES])),
                false => session::transaction(c"looking for pending deltas", || self.look()),
            };
            let crowded = match found {
                Ok(Outlook::Crowded(crowded)) => crowded,
                Ok(Outlook::NewSettings) => return self.start_anew(),
                Ok(Outlook::Unusable) => return self.give_up(),
                Err(message) => {
                    self.glances.failed(self.up.now());
                    log(format!(
                        "counterx: the worker cannot look for pending deltas: {message}"
                    ));
                    let pause = self.glances.until_due(self.up.now(), GLANCE_EVERY);
                    self.blind_until = self.up.now() + pause;
                    self.lanes.count_later(&self.up, pause);
                    // It may be one lane whose log cannot be read. A fold of it says so, and the others go on.
                    [false; LANES]
                }
            };
            self.look_for_others();
            if self.seat.is_first() {
                duty::tell_paused(!settings::compaction());
                mend::triggers_now_and_then();
                if settings::compaction() {
                    self.tracks.see_to(&mut self.up, self.database);
                }
            } else if self.is_dispensable() {
                return self.give_up();
            }
            let mut held_still = false;
            if settings::compaction() {
                for (lane, &crowded) in crowded.iter().enumerate() {
                    let waited_for = self.others.waiting > 0;
                    if self.lanes.is_due(&self.up, lane, crowded, waited_for) {
                        held_still |= !self.fold(lane);
                        // A round of slow folds may take longer than a first worker waits before it makes room itself.
                        if !self.seat.is_first() {
                            self.look_for_others();
                            if self.is_dispensable() {
                                return self.give_up();
                            }
                        }
                    }
                    if way::has_made_way() {
                        return self.make_way();
                    }
                    pgrx::check_for_interrupts!();
                }
                self.look_for_help();
                self.streams
                    .see_to(self.up.now(), |lane| self.lanes.has(lane));
            }
            if self.seat.is_first() {
                if settings::compaction() {
                    self.keep_up();
                }
                if self.makes_room() {
                    return;
                }
                let is_idle = self.up.since_work() > settings::worker_idle_timeout();
                if is_idle && !self.streams.has_hints() && self.may_end() {
                    return;
                }
            }
            if settings::compaction() {
                let hurried = self.others.waiting > 0
                    && (0..LANES).any(|lane| self.lanes.is_hurried(&self.up, lane));
                let pause = self
                    .lanes
                    .until_due(&self.up)
                    .min(if hurried { HURRY } else { POLL })
                    .min(self.lanes.until_look(&self.up));
                let told = self.streams.until_due(self.up.now()).max(SHORTEST);
                // What was not done is due all the time.
                let least = if held_still { HURRY } else { Duration::ZERO };
                session::wait(pause.min(told).max(least));
            } else {
                // SAFETY: outside of any transaction; what counterx.workers shows.
                unsafe {
                    pg_sys::pgstat_report_activity(
                        pg_sys::BackendState::STATE_IDLE,
                        c"paused".as_ptr(),
                    );
                }
                session::wait(POLL);
            }
        }
    }

    /// Takes and gives up lanes, so that each of the workers that are there has its share.
    fn share_lanes(&mut self) {
        self.present = duty::present(self.seat.number);
        self.lanes.share(&self.up, self.present);
        // As long as there is work for others, there is.
        if self.present.count() > 1 && self.seat.is_first() {
            self.up.note_work();
        }
    }

    /// False: it does not, as the first worker has asked for stillness.
    fn fold(&mut self, lane: usize) -> bool {
        if !self.seat.is_first() && Stillness::is_asked() {
            return false;
        }
        self.lanes.tick(&mut self.up, lane);
        // That may have taken long, and who has come since waits for lanes.
        if settings::workers_per_database() > 1 {
            self.share_lanes();
            self.look_for_help();
        }
        true
    }

    /// Where one more worker may come, and would help, asks for it.
    fn look_for_help(&mut self) {
        let now = self.up.now();
        self.lanes.load.look(now);
        let most = settings::workers_per_database();
        if let Some(number) = self.present.next(most)
            && self.others.waiting == 0
            && self.lanes.load.wants_help(now)
        {
            // It comes while this one is at its next fold, and finds its share free. If it does not come, this one takes
            // that back with its next look.
            if start::request_further(self.database, number) {
                self.lanes.share(&self.up, self.present.with(number));
            }
        }
    }

    /// May, or must, this further worker go? The others have its lanes then.
    fn is_dispensable(&self) -> bool {
        let has_turn = match self.purpose {
            // Without a launcher all further workers go who see that somebody waits.
            Purpose::Further(Further {
                turn: Some(turn), ..
            }) => turn < settings::max_workers(),
            _ => true,
        };
        usize::from(self.seat.number) >= settings::workers_per_database()
            || self.others.asked
            || !has_turn
            || !settings::compaction()
            || self.lanes.load.is_idle(self.up.now())
    }

    /// Removes what has expired. Some of it goes only while nobody folds: if others of this database do all the time,
    /// they hold still for a moment.
    fn keep_up(&mut self) {
        const LONGEST: Duration = Duration::from_secs(1);
        const PAUSE: Duration = Duration::from_secs(10);
        self.upkeep.remove_tokens(&self.up);
        self.upkeep.expire_history(&self.up);
        self.upkeep.remove_windows(&mut self.up);
        let started = self.up.now();
        if self.present.count() == 1 || !self.upkeep.is_kept_out() || started < self.stillness_at {
            return;
        }
        let Some(_still) = Stillness::try_ask() else {
            return;
        };
        while self.upkeep.try_again(&mut self.up)
            && self.up.now() - started < LONGEST
            && !lock::database_is_wanted()
        {
            session::wait(SHORTEST);
        }
        self.stillness_at = self.up.now() + PAUSE;
    }

    /// Had the worker nothing to do of late?
    fn is_idle(&self) -> bool {
        let quiet = settings::compaction_interval() * 2 + OTHERS_EVERY;
        self.up.since_work() > quiet || !settings::compaction()
    }

    fn look_for_others(&mut self) {
        let idle = self.is_idle();
        if directory::is_loaded() {
            if self.busy == idle {
                self.busy = !idle;
                directory::set_busy(self.seat, self.busy);
            }
            let (asked, waiting) = directory::asked(self.seat);
            self.others = Others { waiting, asked };
            return;
        }
        let now = self.up.now();
        if now < self.others_at {
            return;
        }
        let pause = if idle {
            OTHERS_EVERY_IDLE
        } else {
            OTHERS_EVERY
        };
        self.others_at = now + pause;
        // Where a turn is free, nobody has to wait for one.
        let waiting = if turns::is_any_free(settings::max_workers()) {
            0
        } else {
            turns::waiting(ports::now()).len() as u32
        };
        self.others = Others {
            waiting,
            asked: waiting > 0,
        };
    }

    /// Makes room for another database, if one waits and this one has had its turn. False: it stays.
    fn makes_room(&mut self) -> bool {
        let Others { waiting, asked } = self.others;
        let over = || {
            let turns = settings::max_workers();
            !settings::compaction() || self.lanes.turn.is_over(self.up.now(), waiting, turns)
        };
        if let Purpose::Turn(turn) | Purpose::Next(turn) = self.purpose {
            // After the setting was lowered there are too many.
            let too_many = turn >= settings::max_workers();
            return (asked || too_many) && over() && self.hand_over(turn, too_many);
        }
        if !asked || !over() {
            return false;
        }
        self.give_up();
        failpoint!("worker.given_up");
        let left = self.left();
        if left.is_work() {
            directory::request_always(self.database);
        }
        self.visit_later(left);
        true
    }

    /// Without a launcher: starts the worker of the database that has waited longest, in this turn.
    fn hand_over(&mut self, turn: u32, too_many: bool) -> bool {
        if too_many {
            self.give_up();
            return true;
        }
        // What was committed since the last folds would have to wait for the next commit.
        if !self.last_round {
            let left = self.left();
            if left.new_settings {
                self.start_anew();
                return true;
            }
            if left.is_work() {
                self.last_round = true;
                self.lanes.turn = Turn::default();
                return false;
            }
        }
        if !turns::try_hand_over() {
            return false;
        }
        let now = ports::now();
        let next = turns::waiting(now)
            .into_iter()
            .find(|&database| turns::may_start_next(database, turn, now));
        let Some(next) = next else {
            turns::keep();
            self.last_round = false;
            return false;
        };
        self.give_up();
        // It waits for the turn until this process has ended. Should there be no slot for it, the one
        // of this process will do, and the next commit that waits finds the turn free.
        start::start_and_wait(next.into(), Purpose::Next(turn));
        true
    }

    /// A new session has to be started to get new settings.
    fn start_anew(&mut self) {
        self.give_up();
        self.start_successor();
    }

    fn start_successor(&self) {
        // Who needs another further one asks for it.
        if !self.seat.is_first() {
            return;
        }
        if directory::is_loaded() {
            directory::request_always(self.database);
        } else {
            let turn = match self.purpose {
                Purpose::Turn(turn) | Purpose::Next(turn) => turn,
                Purpose::Fold | Purpose::Visit | Purpose::Further(_) => 0,
            };
            start::start(self.database, Purpose::Next(turn));
        }
    }

    /// There is nothing to fold that somebody has asked for, but perhaps a log that can be emptied.
    /// (Rows to fold may be there as well: those of a restore must be left alone.)
    fn look_in(&mut self) {
        let usable = session::transaction(c"looking for logs to be emptied", || {
            (0..LANES).all(|lane| catalog::try_lane(lane).is_ok())
        });
        if usable == Ok(true) && settings::compaction() {
            self.share_lanes();
            for lane in 0..LANES {
                if lock::database_is_wanted() {
                    return self.make_way();
                }
                if self.lanes.has(lane) {
                    self.lanes.reclaim(&self.up, lane);
                }
                pgrx::check_for_interrupts!();
            }
            self.tracks.look(&mut self.up, self.database);
            self.seal_idle_lanes();
            self.upkeep.sweep_history(&self.up, self.database);
            self.upkeep
                .remove_rest_of_windows(&mut self.up, self.database);
        }
        self.give_up();
        let left = self.left();
        self.visit_later(left);
    }

    /// Seals the lanes that have nothing to fold. Those that have are left to a worker that folds.
    fn seal_idle_lanes(&mut self) {
        /// Somebody may write early, and go on for hours.
        const PATIENCE: Duration = Duration::from_secs(10);
        let started = self.up.now();
        loop {
            let mut goes_on = false;
            for lane in 0..LANES {
                if lock::database_is_wanted() {
                    return;
                }
                if !self.lanes.has(lane) {
                    continue;
                }
                let trusted = self.up.is_clock_trusted();
                let found = session::transaction(c"looking for what is to be sealed", || {
                    let sealing = sealing::of(lane, trusted);
                    // Nobody else looks for rows here.
                    let is_idle = sealing == Sealing::NotDue
                        || !pending::has_pending(lane, &catalog::lane(lane));
                    (sealing, is_idle)
                });
                match found {
                    Ok((Sealing::NotDue, _) | (_, false)) => {}
                    Err(message) => {
                        return log(format!(
                            "counterx: the worker cannot look for what is to be sealed: {message}"
                        ));
                    }
                    Ok((Sealing::Due, true)) => {
                        self.lanes.tick(&mut self.up, lane);
                        let (asked, _) = directory::asked(self.seat);
                        goes_on |= !asked && self.up.now() - started < PATIENCE;
                    }
                    Ok((Sealing::Leaps, true)) => {
                        self.lanes.note_leap(true);
                        // Not at the cost of others, whose deltas wait.
                        let (asked, waiting) = directory::asked(self.seat);
                        goes_on |= !asked && waiting == 0;
                    }
                }
                pgrx::check_for_interrupts!();
            }
            if !goes_on || !settings::compaction() {
                return;
            }
            session::wait(if self.lanes.leaps() { POLL } else { HURRY });
        }
    }

    /// With a launcher: another worker is to look in when this one has ended.
    fn visit_later(&self, left: Left) {
        if !directory::is_loaded() {
            return;
        }
        let soon = settings::worker_idle_timeout().min(VISIT_AT_LEAST_EVERY);
        let soon = (left.inactive || left.unfinished).then_some(soon);
        let sweeps = left.sweeps.then_some(SWEEP_AGAIN_AFTER);
        if let Some(pause) = soon.into_iter().chain(sweeps).chain(left.seals_in).min() {
            directory::visit_after(self.database, pause);
        }
    }

    /// Whoever has changed a setting and counted then may have relied on this worker, which does not
    /// know the setting yet.
    fn left(&self) -> Left {
        session::reload_if_asked();
        let left = session::transaction(c"looking for pending deltas", || {
            let mut left = Left {
                new_settings: self.has_new_settings(),
                ..Left::default()
            };
            for lane in 0..LANES {
                if let Ok(rels) = catalog::try_lane(lane) {
                    left.pending |= pending::has_pending(lane, &rels);
                    left.inactive |= rotation::has_inactive_rows(&rels);
                    left.leaps |= sealing::of(lane, false) == Sealing::Leaps;
                }
            }
            left.seals_in = sealing::next_end();
            left.sweeps = sweep::is_wanted();
            left.inactive |= self.upkeep.has_windows_left();
            if types::are_any_tracked() {
                let _latest = LatestSnapshot::take();
                left.unfinished = tables::unfinished(&Catalogs::enter()).is_some();
            }
            left
        });
        // Who cannot look goes on, and looks again.
        left.unwrap_or(Left {
            pending: true,
            ..Left::default()
        })
    }

    fn has_new_settings(&self) -> bool {
        session::database_settings(self.database) != self.database_settings
    }

    fn look(&mut self) -> Outlook {
        let lanes: Vec<LaneRels> = match (0..LANES).map(catalog::try_lane).collect() {
            Ok(lanes) => lanes,
            Err(Unusable::NotInstalled) => return Outlook::Unusable,
            Err(Unusable::Missing(table)) => {
                log(format!(
                    "counterx: counterx.{table} is missing; the worker ends"
                ));
                return Outlook::Unusable;
            }
            Err(Unusable::Version(version)) => {
                log(format!(
                    "counterx: the extension is version {version}, the library {}; the worker ends",
                    env!("CARGO_PKG_VERSION")
                ));
                return Outlook::Unusable;
            }
        };
        let glances = self.glances.due(self.up.now(), GLANCE_EVERY);
        if glances {
            if self.has_new_settings() {
                return Outlook::NewSettings;
            }
            // Where all room is taken, it is made outside of users' transactions.
            let _ = local::sums();
        }
        let crowded = self.lanes.crowded(&self.up, &lanes);
        if glances {
            self.glances.succeeded(self.up.now());
        }
        Outlook::Crowded(crowded)
    }

    fn give_up(&mut self) {
        self.lanes.give_up_all();
        duty::give_up(self.seat);
    }

    /// Somebody needs the database alone. What is left to do here has to be done afterwards, and perhaps nobody commits
    /// for long: the next worker comes by itself.
    fn make_way(&mut self) {
        self.give_up();
        if !directory::is_loaded() || !self.seat.is_first() {
            return;
        }
        match self.purpose {
            Purpose::Visit => directory::visit_after(self.database, VISIT_AFTER_MAKING_WAY),
            _ => directory::owe(self.database),
        }
    }

    /// See the module's note. False when there is work after all.
    fn may_end(&mut self) -> bool {
        self.give_up();
        failpoint!("worker.given_up");
        let left = self.left();
        if left.new_settings && left.is_work() {
            self.start_successor();
            return true;
        }
        // Nobody would come again without a launcher; and who waits for the clock to be trusted has to stay.
        let seals = settings::compaction()
            && (left.leaps
                || self.upkeep.has_windows_that_leap()
                || (left.seals_in.is_some() && !directory::is_loaded()));
        if !(left.is_work() || seals) || !duty::take_mark(self.seat) {
            self.visit_later(left);
            return true;
        }
        duty::set_working(self.seat, false);
        self.up.note_work();
        false
    }
}
