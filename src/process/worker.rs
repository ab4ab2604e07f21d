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

use crate::bounds::holds;
use crate::bounds::types;
use crate::bounds::windows::Leaps;
use crate::fold::compaction::{self, LaneMemory, Tick};
use crate::fold::expiry;
use crate::fold::rotation;
use crate::fold::sealing::{self, Sealing};
use crate::fold::sweep::{self, Sweep};
use crate::fold::way;
use crate::pg::clock;
use crate::pg::compat;
use crate::pg::error::log;
use crate::pg::lock;
use crate::pg::ports;
use crate::pg::snapshot::LatestSnapshot;
use crate::pg::turns;
use crate::process::directory;
use crate::process::duty;
use crate::process::mend;
use crate::process::session;
use crate::process::start::{self, Purpose};
use crate::process::streams::Streams;
use crate::settings;
use crate::store::catalog::{self, LaneRels, Unusable};
use crate::store::expired::Batch;
use crate::store::pending;
use crate::store::shape::Refusal;
use crate::track::tables::{self, Catalogs};
use crate::track::watch;
use crate::write::token;
use crate::write::windows;
use counterx_core::history::Steadiness;
use counterx_core::lane::LANES;
use counterx_core::schedule::{self, LaneClock, POLL, SHORTEST, Settling};
use counterx_core::turns::Turn;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::time::{Duration, Instant};

/// The worker's main function; the argument is the database's OID, and what it is started for.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn counterx_worker_main(arg: pg_sys::Datum) {
    compat::set_signal_handler(pg_sys::SIGTERM, ports::die);
    compat::set_signal_handler(pg_sys::SIGHUP, ports::SignalHandlerForConfigReload);
    session::ignore_cancels();
    let database = pg_sys::Oid::from(arg.value() as u32);
    let purpose = Purpose::decode((arg.value() >> 32) as u32);
    // SAFETY: once, at the start of a background worker.
    unsafe { pg_sys::BackgroundWorkerUnblockSignals() };
    duty::report_exit(database);
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
    // Before it waits for anything: from now on it notices that they were changed.
    let known = session::transaction(c"reading settings", || session::database_settings(database));
    if !duty::take_mark() {
        return;
    }
    let has_turn = match purpose {
        Purpose::Fold | Purpose::Visit => true,
        Purpose::Turn(turn) => session::patiently(|| turns::try_take_turn(turn)),
        Purpose::Next(turn) => duty::wait_for_turn(turn),
    };
    if !has_turn {
        return;
    }
    failpoint!("worker.ready");
    way::enter_worker();
    let mut worker = Worker::new(database, purpose, known.unwrap_or_default());
    if purpose == Purpose::Visit {
        duty::set_working(database, true);
        worker.look_in();
    } else {
        duty::set_working(database, false);
        worker.run();
    }
}

struct Worker {
    database: pg_sys::Oid,
    purpose: Purpose,
    started: Instant,
    turn: Turn,
    /// Its turn is over but for one more fold of each lane.
    last_round: bool,
    /// Others want a turn.
    others: Others,
    /// When to look for them next, where that takes a look at the lock table.
    others_at: Duration,
    /// What the launcher knows.
    busy: bool,
    last_work: Duration,
    clocks: [LaneClock; LANES],
    /// Of epochs that were published and are to be folded when their writers have ended.
    settlings: [Settling; LANES],
    /// Of truncations: one that fails must not hold up folding.
    reclaims: [LaneClock; LANES],
    /// When to count next what is pending.
    counts: [Duration; LANES],
    memories: [LaneMemory; LANES],
    /// Why all lanes are left alone, as the log has it.
    refused: Option<String>,
    /// Those that its session began with.
    database_settings: Option<i64>,
    /// When the worker looks at the settings of the database, and after an error at all.
    glances: LaneClock,
    /// When the worker looks for tracks to be filled.
    looks_for_tracks: LaneClock,
    /// When those that it has found are tried again.
    tracks: LaneClock,
    /// When some groups of the others were compared.
    checked: Option<Duration>,
    /// Which were not exact when it looked last.
    unfinished: Option<i64>,
    /// When what is not wanted of history is looked for, and whether that is to go on.
    expiry: LaneClock,
    sweep: Option<Sweep>,
    /// It has looked for that at least once.
    looked_for_expired: bool,
    /// Whether the clock that history goes by can be trusted.
    steadiness: Steadiness,
    /// It has leapt.
    leaps: bool,
    tokens: LaneClock,
    /// It has looked for expired tokens at least once.
    looked_for_tokens: bool,
    tokens_removed: token::Progress,
    /// When windows are looked for that are not kept any more.
    windows: LaneClock,
    looked_for_windows: bool,
    windows_removed: windows::Progress,
    /// When it was forgotten last how far that has come: late deltas bring totals back.
    windows_since: Duration,
    /// There are some that could not be removed yet.
    windows_left: bool,
    /// It is said that they are not removed, as the clock has leapt.
    windows_leap: bool,
    /// What it does for streams.
    streams: Streams,
}

/// How often a worker looks for expired tokens, at least.
const TOKENS_EVERY: Duration = Duration::from_secs(10);

/// So many expired tokens are removed in one transaction: some milliseconds. Between two of them
/// lanes have their turn.
const TOKEN_BATCH: usize = 1000;

/// How often a worker looks whether the settings of its database were changed.
const GLANCE_EVERY: Duration = Duration::from_secs(1);

/// How often a worker looks for tracks that are not exact.
const TRACKS_EVERY: Duration = Duration::from_millis(500);
/// How often some groups of tracked tables are compared with their rows, where that is asked for.
const CHECKS_EVERY: Duration = Duration::from_secs(60);

/// How often a worker looks for windows that are not kept any more, at least.
const WINDOWS_EVERY: Duration = Duration::from_secs(10);

/// So often it begins with them from the start.
const FORGET_WINDOWS_AFTER: Duration = Duration::from_secs(3600);

/// A worker looks in after this time where there is more to be deleted of a history.
const SWEEP_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// How often a worker looks for history that has expired.
const EXPIRY_EVERY: Duration = Duration::from_secs(10);

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
    fn new(database: pg_sys::Oid, purpose: Purpose, database_settings: Option<i64>) -> Self {
        Self {
            database,
            purpose,
            started: Instant::now(),
            turn: Turn::default(),
            last_round: false,
            others: Others::default(),
            others_at: Duration::ZERO,
            busy: true,
            last_work: Duration::ZERO,
            clocks: Default::default(),
            settlings: Default::default(),
            reclaims: Default::default(),
            counts: Default::default(),
            memories: Default::default(),
            refused: None,
            database_settings,
            glances: LaneClock::default(),
            looks_for_tracks: LaneClock::default(),
            tracks: LaneClock::default(),
            checked: None,
            unfinished: None,
            expiry: LaneClock::default(),
            sweep: None,
            looked_for_expired: false,
            steadiness: Steadiness::default(),
            leaps: false,
            tokens: LaneClock::default(),
            looked_for_tokens: false,
            tokens_removed: token::Progress::default(),
            windows: LaneClock::default(),
            looked_for_windows: false,
            windows_removed: windows::Progress::default(),
            windows_since: Duration::ZERO,
            windows_left: false,
            windows_leap: false,
            streams: Streams::default(),
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn run(&mut self) {
        loop {
            if lock::database_is_wanted() {
                return self.give_up();
            }
            let crowded = match session::transaction(c"looking for pending deltas", || self.look())
            {
                Ok(Outlook::Crowded(crowded)) => crowded,
                Ok(Outlook::NewSettings) => return self.start_anew(),
                Ok(Outlook::Unusable) => return self.give_up(),
                Err(message) => {
                    self.glances.failed(self.now());
                    log(format!(
                        "counterx: the worker cannot look for pending deltas: {message}"
                    ));
                    session::wait(self.glances.until_due(self.now(), GLANCE_EVERY));
                    continue;
                }
            };
            self.look_for_others();
            mend::triggers_now_and_then();
            if settings::compaction() {
                self.see_to_tracks();
            }
            if settings::compaction() {
                for (lane, &crowded) in crowded.iter().enumerate() {
                    let clock = &self.clocks[lane];
                    let early = crowded || self.is_hurried(lane);
                    let settled = self.settlings[lane].until_due(self.now());
                    if clock.due(self.now(), settings::compaction_interval())
                        || (early && clock.may_be_early())
                        || settled == Some(Duration::ZERO)
                    {
                        self.tick(lane);
                    }
                    if way::has_made_way() {
                        return self.give_up();
                    }
                    pgrx::check_for_interrupts!();
                }
                // At the start of a turn, too: it may be shorter than the pause.
                let pause = TOKENS_EVERY.min(settings::token_ttl());
                if !self.looked_for_tokens || self.tokens.due(self.now(), pause) {
                    self.looked_for_tokens = true;
                    self.remove_tokens();
                }
                self.expire_history();
                self.remove_windows();
                self.streams.see_to(self.now());
            }
            if self.makes_room() {
                return;
            }
            let is_idle = self.now() - self.last_work > settings::worker_idle_timeout();
            if is_idle && !self.streams.has_hints() && self.may_end() {
                return;
            }
            let until_due = self
                .clocks
                .iter()
                .map(|clock| clock.until_due(self.now(), settings::compaction_interval()))
                .min()
                .unwrap_or(POLL);
            if settings::compaction() {
                let hurried = (0..LANES).any(|lane| self.is_hurried(lane));
                let pause = until_due.min(if hurried { HURRY } else { POLL });
                let told = self.streams.until_due(self.now());
                session::wait(pause.min(self.until_look()).min(told.max(SHORTEST)));
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

    /// Time until some lane is to be looked at before it is due.
    fn until_look(&self) -> Duration {
        let now = self.now();
        let settled = (self.settlings.iter()).filter_map(|settling| settling.until_due(now));
        let counted = (self.counts.iter()).map(|count| count.saturating_sub(now));
        settled.chain(counted).min().unwrap_or(POLL).max(SHORTEST)
    }

    /// While others wait, this turn's first fold of each lane comes at once.
    fn is_hurried(&self, lane: usize) -> bool {
        self.others.waiting > 0 && self.turn.misses(lane) && self.clocks[lane].may_be_early()
    }

    /// Had the worker nothing to do of late?
    fn is_idle(&self) -> bool {
        let quiet = settings::compaction_interval() * 2 + OTHERS_EVERY;
        self.now() - self.last_work > quiet || !settings::compaction()
    }

    fn look_for_others(&mut self) {
        let idle = self.is_idle();
        if directory::is_loaded() {
            if self.busy == idle {
                self.busy = !idle;
                directory::set_busy(self.database, self.busy);
            }
            let (asked, waiting) = directory::asked(self.database);
            self.others = Others { waiting, asked };
            return;
        }
        let now = self.now();
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
            !settings::compaction() || self.turn.is_over(self.now(), waiting, turns)
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
                self.turn = Turn::default();
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
    fn start_anew(&self) {
        self.give_up();
        self.start_successor();
    }

    fn start_successor(&self) {
        if directory::is_loaded() {
            directory::request_always(self.database);
        } else {
            let turn = match self.purpose {
                Purpose::Turn(turn) | Purpose::Next(turn) => turn,
                Purpose::Fold | Purpose::Visit => 0,
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
            for lane in 0..LANES {
                if lock::database_is_wanted() {
                    return self.give_up();
                }
                self.reclaim(lane);
                pgrx::check_for_interrupts!();
            }
            self.look_for_tracks();
            self.seal_idle_lanes();
            self.sweep_history();
            self.remove_rest_of_windows();
        }
        self.give_up();
        let left = self.left();
        self.visit_later(left);
    }

    /// Seals the lanes that have nothing to fold. Those that have are left to a worker that folds.
    fn seal_idle_lanes(&mut self) {
        /// Somebody may write early, and go on for hours.
        const PATIENCE: Duration = Duration::from_secs(10);
        let started = self.now();
        loop {
            let mut goes_on = false;
            for lane in 0..LANES {
                if lock::database_is_wanted() {
                    return;
                }
                let trusted = self.is_clock_trusted();
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
                        self.tick(lane);
                        goes_on |= self.now() - started < PATIENCE;
                    }
                    Ok((Sealing::Leaps, true)) => {
                        self.note_leap(true);
                        // Not at the cost of others, whose deltas wait.
                        let (asked, waiting) = directory::asked(self.database);
                        goes_on |= !asked && waiting == 0;
                    }
                }
                pgrx::check_for_interrupts!();
            }
            if !goes_on || !settings::compaction() {
                return;
            }
            session::wait(if self.leaps { POLL } else { HURRY });
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
            left.inactive |= self.windows_left;
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
        if self.glances.due(self.now(), GLANCE_EVERY) {
            if self.has_new_settings() {
                return Outlook::NewSettings;
            }
            self.glances.succeeded(self.now());
        }
        let threshold = settings::compaction_threshold();
        let mut crowded = [false; LANES];
        let now = self.now();
        for (lane, rels) in lanes.iter().enumerate() {
            if now < self.counts[lane] {
                continue;
            }
            if self.settlings[lane].is_on() {
                // It is about to be folded, or cannot be.
                self.counts[lane] = now + POLL;
                continue;
            }
            let limit = self.memories[lane].early_at(threshold);
            let count = pending::count_pending_entries(lane, rels, limit);
            crowded[lane] = count >= limit;
            let since = self.clocks[lane].since(now);
            let pause = match count {
                0 => POLL,
                _ => schedule::until_next_count(count, limit, since).max(SHORTEST),
            };
            self.counts[lane] = now + pause;
        }
        Outlook::Crowded(crowded)
    }

    fn tick(&mut self, lane: usize) {
        let trusted = self.is_clock_trusted();
        let memory = &mut self.memories[lane];
        let result: Result<Result<_, Refusal>, _> = session::transaction(c"folding", || {
            let tick = compaction::tick(lane, catalog::lane(lane), memory, trusted)?;
            Ok((tick, sealing::of(lane, trusted) == Sealing::Leaps))
        });
        let now = self.now();
        match result {
            Ok(Ok((tick, leaps))) => {
                self.note_leap(leaps);
                let settling = &mut self.settlings[lane];
                match tick {
                    Tick::Published => settling.published(now),
                    Tick::Waiting => settling.waits(now),
                    Tick::Folded | Tick::Idle | Tick::Busy => *settling = Settling::default(),
                }
                match tick {
                    Tick::Folded | Tick::Idle => self.clocks[lane].succeeded(now),
                    Tick::Published | Tick::Waiting | Tick::Busy => self.clocks[lane].waited(now),
                }
                if matches!(tick, Tick::Folded) {
                    self.memories[lane].after_commit();
                    self.refused = None;
                    // What has come since is to be counted now: it was not while the writers were waited for.
                    self.counts[lane] = now;
                }
                let goes_on = matches!(tick, Tick::Published | Tick::Waiting);
                if !goes_on {
                    self.turn.lane_is_done(lane);
                }
                if goes_on || matches!(tick, Tick::Folded) {
                    self.last_work = now;
                }
                if matches!(tick, Tick::Published) {
                    // Back in a moment.
                    return;
                }
            }
            Ok(Err(refusal)) => {
                self.settlings[lane] = Settling::default();
                self.clocks[lane].failed(now);
                self.turn.lane_is_done(lane);
                let message = refusal.message();
                if self.refused.as_ref() != Some(&message) {
                    log(format!(
                        "counterx: all lanes are left alone: {message}; {}",
                        refusal.hint()
                    ));
                }
                Self::note(lane, &message);
                self.refused = Some(message);
                return;
            }
            // No failure, and the worker is about to end.
            Err(_) if way::has_made_way() => return,
            Err(message) => {
                self.settlings[lane] = Settling::default();
                self.clocks[lane].failed(now);
                self.turn.lane_is_done(lane);
                let left_out = self.memories[lane].after_failure();
                if left_out.history {
                    log(format!(
                        "counterx: history of lane {lane} cannot be written; the next fold leaves it out, and it begins anew then"
                    ));
                }
                if left_out.streams {
                    log(format!(
                        "counterx: changes of lane {lane} cannot be written for streams; the next fold leaves them out, and streams are lost then"
                    ));
                }
                return Self::note_failure(lane, "folding", &message);
            }
        }
        failpoint!("fold.committed");
        self.reclaim(lane);
        failpoint!("truncate.committed");
    }

    /// Has the clock gone steadily for as long as this process looks at it, and long enough?
    fn is_clock_trusted(&mut self) -> bool {
        let steady = i64::try_from(self.now().as_micros()).unwrap_or(i64::MAX);
        self.steadiness.look(clock::now(), steady)
    }

    /// Lanes are not sealed, as the clock has leapt. Says so once.
    fn note_leap(&mut self, leaps: bool) {
        if leaps && !self.leaps {
            log(
                "counterx: history is not sealed: the clock is more than an hour past the time through which it was sealed last; it will be when the clock has gone steadily for ten minutes, or by counter_seal()",
            );
        }
        self.leaps = leaps;
    }

    fn reclaim(&mut self, lane: usize) {
        let clock = &self.reclaims[lane];
        if !clock.may_be_early() && !clock.due(self.now(), settings::compaction_interval()) {
            return;
        }
        let memory = &mut self.memories[lane];
        let result = session::transaction(c"truncating", || {
            compaction::reclaim(lane, catalog::lane(lane), memory)
        });
        let now = self.now();
        match result {
            Ok(_) => self.reclaims[lane].succeeded(now),
            Err(message) => {
                self.reclaims[lane].failed(now);
                self.memories[lane].forget_drained();
                Self::note_failure(lane, "emptying a log of", &message);
            }
        }
    }

    /// Other lanes go on; what has failed is tried again after a pause that grows.
    fn note_failure(lane: usize, doing: &str, message: &str) {
        log(format!("counterx: {doing} lane {lane} failed: {message}"));
        failpoint!("worker.failed");
        Self::note(lane, message);
    }

    fn note(lane: usize, message: &str) {
        let noted = session::transaction(c"noting an error", || {
            compaction::note_error(lane, catalog::lane(lane), message);
            failpoint!("worker.error_noted");
        });
        if let Err(why) = noted {
            log(format!(
                "counterx: the error could not be noted in counterx.state: {why}"
            ));
        }
    }

    fn remove_tokens(&mut self) {
        let progress = &mut self.tokens_removed;
        let removed =
            session::transaction(
                c"removing what has expired",
                || match token::remove_expired(TOKEN_BATCH, progress) {
                    Batch::Done => holds::remove_expired(TOKEN_BATCH),
                    other => other,
                },
            );
        let now = self.now();
        match removed {
            // It stays due.
            Ok(Batch::More) => {}
            Ok(Batch::Done | Batch::Busy) => self.tokens.succeeded(now),
            Err(message) => {
                self.tokens.failed(now);
                self.tokens_removed = token::Progress::default();
                log(format!(
                    "counterx: removing expired tokens and holds failed: {message}"
                ));
            }
        }
    }

    /// Removes what is stored for windows that are not kept any more, some of it at a time.
    fn remove_windows(&mut self) {
        let now = self.now();
        if self.looked_for_windows && !self.windows.due(now, WINDOWS_EVERY) {
            return;
        }
        self.looked_for_windows = true;
        if now - self.windows_since > FORGET_WINDOWS_AFTER {
            self.windows_since = now;
            self.windows_removed = windows::Progress::default();
        }
        let trusted = self.is_clock_trusted();
        let progress = &mut self.windows_removed;
        let removed = session::transaction(c"removing windows that have ended", || {
            windows::remove_ended(trusted, progress)
        });
        let leaps = matches!(removed, Ok(Err(Leaps)));
        if leaps && !self.windows_leap {
            log(
                "counterx: ended windows of counters are not removed: the clock is more than an hour past the time at which they were looked for last; they will be when it has gone steadily for ten minutes",
            );
        }
        self.windows_leap = leaps;
        // What leaps is looked at another time.
        match removed.map(|removed| removed.unwrap_or(Batch::Busy)) {
            // It stays due.
            Ok(Batch::More) => {
                self.windows_left = true;
                self.last_work = now;
            }
            Ok(Batch::Busy) => {
                self.windows_left = true;
                self.windows.succeeded(now);
            }
            Ok(Batch::Done) => {
                self.windows_left = false;
                self.windows.succeeded(now);
            }
            Err(message) => {
                self.windows.failed(now);
                self.windows_removed = windows::Progress::default();
                log(format!(
                    "counterx: removing windows that have ended failed: {message}"
                ));
            }
        }
    }

    /// Goes on with that, for some time; or until it is known that the clock is right, unless somebody else waits.
    fn remove_rest_of_windows(&mut self) {
        self.remove_windows();
        while self.windows_left && !lock::database_is_wanted() && settings::compaction() {
            let (asked, waiting) = directory::asked(self.database);
            if asked || waiting > 0 {
                return;
            }
            session::wait(POLL);
            self.remove_windows();
            pgrx::check_for_interrupts!();
        }
    }

    /// Goes on with what is to be deleted, for some time.
    fn sweep_history(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(30);
        let started = self.now();
        self.expire_history();
        while self.sweep.is_some()
            && self.now() - started < PATIENCE
            && !lock::database_is_wanted()
            && settings::compaction()
        {
            session::wait(HURRY);
            self.expire_history();
        }
    }

    fn expire_history(&mut self) {
        let now = self.now();
        let pause = match self.sweep {
            Some(_) => settings::compaction_interval(),
            None => EXPIRY_EVERY,
        };
        // At the start of a turn or a visit, too: it may be shorter than the pause.
        if self.looked_for_expired && !self.expiry.due(now, pause) {
            return;
        }
        self.looked_for_expired = true;
        let mut sweep = self.sweep.take();
        let done = (|| {
            if sweep.is_none() {
                let expired = session::transaction(c"expiring history", || {
                    sealing::next_end().is_some() && expiry::note_expired()
                })?;
                session::transaction(c"emptying history", expiry::empty_tables)?;
                sweep = Some(Sweep::new(expired));
            }
            let sweep = sweep.get_or_insert_default();
            session::transaction(c"deleting history", || sweep::step(sweep))
        })();
        match done {
            Ok(Batch::Done) => self.expiry.succeeded(now),
            // Busy: somebody folds.
            Ok(Batch::More | Batch::Busy) => {
                self.sweep = sweep;
                self.expiry.succeeded(now);
            }
            Err(message) => {
                self.expiry.failed(now);
                log(format!("counterx: expiring history failed: {message}"));
            }
        }
    }

    fn see_to_tracks(&mut self) {
        let now = self.now();
        if self.looks_for_tracks.due(now, TRACKS_EVERY) {
            self.looks_for_tracks.succeeded(now);
            self.look_for_tracks();
        }
    }

    /// Has tracks filled that are not exact, by a process of its own, and some groups of the others checked. What
    /// could not be filled is tried again after a pause that grows.
    fn look_for_tracks(&mut self) {
        let now = self.now();
        let found = session::transaction(c"looking for tracks", || {
            if !types::are_any_tracked() {
                return (false, None);
            }
            let _latest = LatestSnapshot::take();
            let catalogs = Catalogs::enter();
            watch::see_to(&catalogs);
            (true, tables::unfinished(&catalogs))
        });
        let (are_any, unfinished) = found.unwrap_or_else(|message| {
            log(format!(
                "counterx: the worker cannot look for tracks: {message}"
            ));
            (false, self.unfinished)
        });
        let is_new = unfinished != self.unfinished;
        self.unfinished = unfinished;
        let fills = unfinished.is_some() && (is_new || self.tracks.due(now, TRACKS_EVERY));
        if is_new || unfinished.is_none() {
            self.tracks.succeeded(now);
        }
        if fills {
            self.tracks.failed(now);
            if is_new {
                self.last_work = now;
            }
        }
        let checks = are_any
            && settings::track_checks() > 0
            && self.checked.is_none_or(|at| now - at >= CHECKS_EVERY);
        if checks {
            self.checked = Some(now);
        }
        if (fills || checks) && !start::start_filler(self.database, checks) {
            log(
                "counterx: no process could be started to count rows of tracked tables: max_worker_processes are all in use",
            );
            if fills {
                self.note_that_there_is_no_slot();
            }
        }
    }

    fn note_that_there_is_no_slot(&self) {
        let noted = session::transaction(c"noting that nobody can count", || {
            let _latest = LatestSnapshot::take();
            tables::note_unfinished(
                &Catalogs::enter(),
                "no process could be started to count: max_worker_processes are all in use",
            );
        });
        if let Err(message) = noted {
            log(format!(
                "counterx: cannot note that nobody can count: {message}"
            ));
        }
    }

    fn give_up(&self) {
        duty::give_up(self.database);
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
            && (left.leaps || (left.seals_in.is_some() && !directory::is_loaded()));
        if !(left.is_work() || seals) || !duty::take_mark() {
            self.visit_later(left);
            return true;
        }
        duty::set_working(self.database, false);
        self.last_work = self.now();
        false
    }
}
