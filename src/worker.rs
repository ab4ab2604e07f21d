//! The background worker of one database: it folds while there is something to fold, and ends
//! when there was nothing for a while.
//!
//! A worker is started by a commit that has written deltas, through the launcher or, where the
//! library was not preloaded, by the committing backend itself. It is never started by the mere
//! presence of rows: in the middle of a restore there are rows that must not be folded.
//!
//! # Note about starting and ending
//! The worker of a database holds the mark ([`WorkerMark`]) and, with a launcher, a slot. A
//! committing transaction inserts its rows first and then looks for the mark or the slot; a worker
//! that wants to end gives both up first and then looks for rows, committed or not. So either the
//! transaction sees that there is no worker, or the worker sees the row.

use crate::catalog::{self, LaneRels, Unusable};
use crate::compaction::{self, LaneMemory, Tick};
use crate::fold;
use crate::holds;
use crate::launcher;
use crate::mend;
use crate::pg::compat;
use crate::pg::error::{log, sqlstate};
use crate::pg::lock::{self, WorkerMark};
use crate::pg::ports;
use crate::settings;
use crate::token::{self, Batch};
use counterx_core::lane::LANES;
use counterx_core::schedule::{self, LaneClock, POLL};
use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use pgrx::{PgTryBuilder, pg_sys};
use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

thread_local! {
    /// When this backend last saw that there is a worker, in microseconds.
    static SEEN_AT: Cell<i64> = const { Cell::new(0) };
}

/// Without a launcher, a backend looks for the worker this often: well below the least time after
/// which an idle worker ends.
const LOOK_EVERY_US: i64 = 500_000;

/// The running transaction leaves something to fold. Called after its rows were written.
pub fn request() {
    // SAFETY: set once when the backend connected.
    let database = unsafe { pg_sys::MyDatabaseId };
    if launcher::is_loaded() {
        launcher::request(database);
        return;
    }
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    if now - SEEN_AT.get() < LOOK_EVERY_US {
        return;
    }
    if !WorkerMark::is_set() {
        // Without a free slot the next commit tries again, and reads are right meanwhile.
        start(database);
    }
    SEEN_AT.set(now);
}

/// Asks the postmaster for a worker. False when max_worker_processes are all in use.
pub fn start(database: pg_sys::Oid) -> bool {
    BackgroundWorkerBuilder::new("counterx worker")
        .set_type("counterx worker")
        .set_library("counterx")
        .set_function("counterx_worker_main")
        .set_argument(Some(pg_sys::Datum::from(database)))
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(None)
        .load_dynamic()
        .is_ok()
}

/// Sleeps until something happens or the time is over, and does what the server asks for: ends
/// on SIGTERM, reads the configuration again on SIGHUP.
pub fn wait(pause: Duration) {
    let timeout = pause.as_millis().clamp(1, 3_600_000) as core::ffi::c_long;
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: the process's own latch.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            events as i32,
            timeout,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
    // SAFETY: a flag that a signal handler sets; the reload runs outside of any transaction.
    unsafe {
        if pg_sys::ConfigReloadPending != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// The worker's main function; the argument is the database's OID.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn counterx_worker_main(arg: pg_sys::Datum) {
    compat::set_signal_handler(pg_sys::SIGTERM, ports::die);
    compat::set_signal_handler(pg_sys::SIGHUP, ports::SignalHandlerForConfigReload);
    let database = pg_sys::Oid::from(arg.value() as u32);
    // SAFETY: once, at the start of a background worker; as the bootstrap superuser.
    unsafe {
        pg_sys::BackgroundWorkerUnblockSignals();
        if launcher::is_loaded() {
            pg_sys::before_shmem_exit(Some(on_exit), arg);
        }
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::InvalidOid, 0);
    }
    own_settings();
    if !take_mark() {
        return;
    }
    failpoint!("worker.ready");
    set_working(database);
    Worker::new(database).run();
}

/// With a launcher: what becomes of the database's slot, whatever ends the process.
#[pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: core::ffi::c_int, arg: pg_sys::Datum) {
    let database = pg_sys::Oid::from(arg.value() as u32);
    match SLOT.get() {
        Slot::Starting => launcher::set_stopped(database),
        // Ended by force. Whoever has counted since then has relied on this worker.
        Slot::Working => launcher::request_again(database),
        Slot::NotOurs => {}
    }
}

/// What the launcher's slot of the database is to this process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// It waits for this process to report for duty.
    Starting,
    /// It shows this process.
    Working,
    /// Given up, or another worker's.
    NotOurs,
}

thread_local! {
    static SLOT: Cell<Slot> = const { Cell::new(Slot::Starting) };
}

fn set_working(database: pg_sys::Oid) {
    if launcher::is_loaded() {
        launcher::set_running(database);
        SLOT.set(Slot::Working);
    }
}

/// Those who just look at the mark, and a predecessor that is about to end, hold it for a moment.
fn take_mark() -> bool {
    for _ in 0..20 {
        if WorkerMark::try_set() {
            return true;
        }
        wait(Duration::from_millis(50));
    }
    SLOT.set(Slot::NotOurs);
    false
}

/// What the worker's session must have, whatever the configuration says.
fn own_settings() {
    let fixed = [
        // A fold and its bookkeeping are one commit, and the increments' own commits are durable
        // before it in the WAL: losing the fold in a crash loses nothing.
        (c"synchronous_commit", c"off"),
        (c"statement_timeout", c"0"),
        (c"lock_timeout", c"0"),
        (c"idle_in_transaction_session_timeout", c"0"),
        (c"search_path", c"pg_catalog"),
        (c"default_transaction_isolation", c"read committed"),
        (c"default_transaction_read_only", c"off"),
    ];
    for (name, value) in fixed {
        // SAFETY: constant strings.
        unsafe {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
    }
}

/// Runs `body` in a transaction of its own, READ COMMITTED and writable. An error aborts the
/// transaction and comes back as its message.
pub fn transaction<R>(activity: &core::ffi::CStr, body: impl FnOnce() -> R) -> Result<R, String> {
    let body = Cell::new(Some(body));
    let run = || {
        // SAFETY: outside of any transaction, in a background worker.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, activity.as_ptr());
            pg_sys::StartTransactionCommand();
            pg_sys::XactIsoLevel = pg_sys::XACT_READ_COMMITTED as i32;
            pg_sys::XactReadOnly = false;
        }
        let body = body.take().expect("runs once");
        let result = body();
        // SAFETY: ends what was started above.
        unsafe { pg_sys::CommitTransactionCommand() };
        Ok(result)
    };
    let result = PgTryBuilder::new(AssertUnwindSafe(run))
        .catch_others(|error| {
            let report = match &error {
                CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => report,
                CaughtError::RustPanic { ereport, .. } => ereport,
            };
            let message = format!(
                "{}: {}",
                sqlstate(report.sql_error_code()),
                report.message()
            );
            // SAFETY: an error was raised since the start; this brings the backend back to rest.
            unsafe { pg_sys::AbortCurrentTransaction() };
            Err(message)
        })
        .execute();
    // SAFETY: outside of any transaction.
    unsafe {
        pg_sys::pgstat_report_stat(false);
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
    }
    result
}

struct Worker {
    database: pg_sys::Oid,
    started: Instant,
    last_work: Duration,
    clocks: [LaneClock; LANES],
    /// Of truncations: one that fails must not hold up folding.
    reclaims: [LaneClock; LANES],
    /// When to count next what is pending.
    counts: [Duration; LANES],
    memories: [LaneMemory; LANES],
    /// Why all lanes are left alone, as the log has it.
    refused: Option<String>,
    database_settings: Option<Option<i64>>,
    /// When the worker looks at the settings of the database, and after an error at all.
    glances: LaneClock,
    tokens: LaneClock,
    tokens_removed: token::Progress,
}

/// How often a worker looks for expired tokens, at least.
const TOKENS_EVERY: Duration = Duration::from_secs(10);

/// So many expired tokens are removed in one transaction: some milliseconds. Between two of them
/// lanes have their turn.
const TOKEN_BATCH: usize = 1000;

/// How often a worker looks whether the settings of its database were changed.
const GLANCE_EVERY: Duration = Duration::from_secs(1);

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
    fn new(database: pg_sys::Oid) -> Self {
        Self {
            database,
            started: Instant::now(),
            last_work: Duration::ZERO,
            clocks: Default::default(),
            reclaims: Default::default(),
            counts: Default::default(),
            memories: Default::default(),
            refused: None,
            database_settings: None,
            glances: LaneClock::default(),
            tokens: LaneClock::default(),
            tokens_removed: token::Progress::default(),
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
            let crowded = match transaction(c"looking for pending deltas", || self.look()) {
                Ok(Outlook::Crowded(crowded)) => crowded,
                Ok(Outlook::NewSettings) => {
                    self.give_up();
                    return request();
                }
                Ok(Outlook::Unusable) => return self.give_up(),
                Err(message) => {
                    self.glances.failed(self.now());
                    log(format!(
                        "counterx: the worker cannot look for pending deltas: {message}"
                    ));
                    wait(self.glances.until_due(self.now(), GLANCE_EVERY));
                    continue;
                }
            };
            mend::triggers_now_and_then();
            if settings::compaction() {
                for (lane, &crowded) in crowded.iter().enumerate() {
                    let clock = &self.clocks[lane];
                    if clock.due(self.now(), settings::compaction_interval())
                        || (crowded && clock.may_be_early())
                    {
                        self.tick(lane);
                    }
                    pgrx::check_for_interrupts!();
                }
                let pause = TOKENS_EVERY.min(settings::token_ttl());
                if self.tokens.due(self.now(), pause) {
                    self.remove_tokens();
                }
            }
            if self.now() - self.last_work > settings::worker_idle_timeout() && self.may_end() {
                return;
            }
            let until_due = self
                .clocks
                .iter()
                .map(|clock| clock.until_due(self.now(), settings::compaction_interval()))
                .min()
                .unwrap_or(POLL);
            if settings::compaction() {
                wait(until_due.min(POLL));
            } else {
                // SAFETY: outside of any transaction; what counterx.workers shows.
                unsafe {
                    pg_sys::pgstat_report_activity(
                        pg_sys::BackendState::STATE_IDLE,
                        c"paused".as_ptr(),
                    );
                }
                wait(POLL);
            }
        }
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
        if self.database_settings.is_none() || self.glances.due(self.now(), GLANCE_EVERY) {
            let settings_now = database_settings(self.database);
            if *self.database_settings.get_or_insert(settings_now) != settings_now {
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
            let limit = self.memories[lane].early_at(threshold);
            let count = fold::count_pending_entries(lane, rels, limit);
            crowded[lane] = count >= limit;
            let since = self.clocks[lane].since(now);
            self.counts[lane] = now + schedule::until_next_count(count, limit, since);
        }
        Outlook::Crowded(crowded)
    }

    fn tick(&mut self, lane: usize) {
        let memory = &mut self.memories[lane];
        let result = transaction(c"folding", || {
            compaction::tick(lane, catalog::lane(lane), memory)
        });
        let now = self.now();
        match result {
            Ok(Ok(tick)) => {
                match tick {
                    Tick::Folded | Tick::Idle => self.clocks[lane].succeeded(now),
                    Tick::Waiting | Tick::Busy => self.clocks[lane].waited(now),
                }
                if matches!(tick, Tick::Folded) {
                    self.refused = None;
                }
                if matches!(tick, Tick::Folded | Tick::Waiting) {
                    self.last_work = now;
                }
            }
            Ok(Err(refusal)) => {
                self.clocks[lane].failed(now);
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
            Err(message) => {
                self.clocks[lane].failed(now);
                self.memories[lane] = LaneMemory::default();
                return Self::note_failure(lane, "folding", &message);
            }
        }
        failpoint!("fold.committed");
        self.reclaim(lane);
        failpoint!("truncate.committed");
    }

    fn reclaim(&mut self, lane: usize) {
        let clock = &self.reclaims[lane];
        if !clock.may_be_early() && !clock.due(self.now(), settings::compaction_interval()) {
            return;
        }
        let memory = &mut self.memories[lane];
        let result = transaction(c"truncating", || {
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
        let noted = transaction(c"noting an error", || {
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
        let removed = transaction(
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

    fn give_up(&self) {
        if launcher::is_loaded() {
            launcher::set_stopped(self.database);
            SLOT.set(Slot::NotOurs);
        }
        WorkerMark::clear();
    }

    /// See the module's note. False when there is work after all.
    fn may_end(&mut self) -> bool {
        self.give_up();
        failpoint!("worker.given_up");
        if !settings::compaction() {
            return true;
        }
        let pending = transaction(c"looking for pending deltas", || {
            (0..LANES).any(|lane| match catalog::try_lane(lane) {
                Ok(rels) => fold::has_pending(lane, &rels),
                Err(_) => false,
            })
        });
        if pending == Ok(false) || !take_mark() {
            return true;
        }
        set_working(self.database);
        self.last_work = self.now();
        false
    }
}

/// What ALTER DATABASE ... SET has set, as one number. (The texts may be in any encoding.)
fn database_settings(database: pg_sys::Oid) -> Option<i64> {
    let _snapshot = crate::pg::snapshot::LatestSnapshot::take();
    Spi::connect(|client| {
        client
            .select(
                "SELECT pg_catalog.hashtextextended(pg_catalog.array_to_string(setconfig, E'\\n'), 0) \
                 FROM pg_catalog.pg_db_role_setting \
                 WHERE setdatabase OPERATOR(pg_catalog.=) $1 AND setrole OPERATOR(pg_catalog.=) 0",
                Some(1),
                &[database.into()],
            )
            .and_then(|table| if table.is_empty() { Ok(None) } else { table.first().get_one::<i64>() })
    })
    .unwrap_or_else(|error| {
        log(format!("counterx: cannot read the settings of the database: {error}"));
        None
    })
}
