//! The background worker of one database: it folds while there is something to fold, and ends
//! when there was nothing for a while.
//!
//! A worker is started by a commit that has written deltas, through the launcher or, where the
//! library was not preloaded, by the committing backend itself. It is never started by the mere
//! presence of rows: in the middle of a restore there are rows that must not be folded.
//!
//! # Note about starting and ending
//! The worker of a database holds the mark ([`WorkerMark`]) and, with a launcher, an entry. A
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

use crate::catalog::{self, LaneRels, Unusable};
use crate::compaction::{self, LaneMemory, Tick};
use crate::fold;
use crate::holds;
use crate::launcher;
use crate::mend;
use crate::pg::compat;
use crate::pg::error::{log, raise, report, sqlstate};
use crate::pg::lock::{self, WorkerMark};
use crate::pg::ports;
use crate::pg::relation::Relation;
use crate::pg::turns;
use crate::pg::user::ActingAs;
use crate::rotation;
use crate::settings;
use crate::token::{self, Batch};
use counterx_core::lane::LANES;
use counterx_core::schedule::{self, LaneClock, POLL};
use counterx_core::turns::Turn;
use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, PgTryBuilder, pg_sys};
use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

thread_local! {
    /// When this backend last looked whether there is a worker, in microseconds.
    static LOOKED_AT: Cell<i64> = const { Cell::new(0) };
}

/// Without a launcher, a backend looks for the worker this often: well below the least time after
/// which an idle worker ends.
const LOOK_EVERY_US: i64 = 500_000;

/// The same while its database waits for a turn.
const LOOK_OFTEN_US: i64 = 100_000;

/// The running transaction leaves something to fold. Called after its rows were written.
pub fn request() {
    // SAFETY: set once when the backend connected.
    let database = unsafe { pg_sys::MyDatabaseId };
    if launcher::is_loaded() {
        launcher::request(database);
        return;
    }
    let now = now();
    let pause = if turns::waits() {
        LOOK_OFTEN_US
    } else {
        LOOK_EVERY_US
    };
    if now - LOOKED_AT.get() < pause {
        return;
    }
    LOOKED_AT.set(now);
    if WorkerMark::is_set() {
        turns::stop_waiting();
    } else if lock::database_allows_connections() {
        // Whatever comes of it, the next commits try again, and reads are right meanwhile.
        match turns::find(database.to_u32(), settings::max_workers(), now) {
            turns::Chance::Turn(turn) => {
                turns::stop_waiting();
                // Who has asked before may have been gone just now, as his worker was there.
                if !WorkerMark::is_set() && start(database, Purpose::Turn(turn)) {
                    stay_until_it_is_there();
                }
            }
            turns::Chance::NoTurn => turns::wait(database.to_u32(), now),
            turns::Chance::TooSoon => {}
        }
    }
}

thread_local! {
    /// Will [`wait_before_exit`] be called?
    static STAYS: Cell<bool> = const { Cell::new(false) };
    /// When this session started a worker last, in microseconds.
    static STARTED_AT: Cell<i64> = const { Cell::new(0) };
}

/// That a worker is on its way is known by a lock of the session that has asked for it. Many sessions
/// end right after they have counted, and each that follows would ask for one more.
fn stay_until_it_is_there() {
    STARTED_AT.set(now());
    if !STAYS.replace(true) {
        // SAFETY: once in a process.
        unsafe { pg_sys::before_shmem_exit(Some(wait_before_exit), pg_sys::Datum::from(0)) };
    }
}

/// Nobody waits for this any more but the postmaster.
#[pg_guard]
unsafe extern "C-unwind" fn wait_before_exit(code: core::ffi::c_int, _arg: pg_sys::Datum) {
    const LONGEST_US: i64 = 500_000;
    const PAUSE: Duration = Duration::from_millis(10);
    // The session was not ended by force.
    if code == 0 {
        while (0..LONGEST_US).contains(&(now() - STARTED_AT.get())) && !WorkerMark::is_set() {
            std::thread::sleep(PAUSE);
        }
    }
}

fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// What a worker is started for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To fold, by the launcher.
    Fold,
    /// To see whether a log can be emptied now, by the launcher.
    Visit,
    /// To fold, in this turn, without a launcher.
    Turn(u32),
    /// The same, as the next after a worker that is about to end.
    Next(u32),
}

impl Purpose {
    /// What the launcher starts one for.
    pub fn of(visit: bool) -> Self {
        if visit { Self::Visit } else { Self::Fold }
    }

    fn encode(self) -> u32 {
        match self {
            Self::Fold => 0,
            Self::Visit => 1,
            Self::Turn(turn) => 2 + 2 * turn,
            Self::Next(turn) => 3 + 2 * turn,
        }
    }

    fn decode(number: u32) -> Self {
        match number {
            0 => Self::Fold,
            1 => Self::Visit,
            other if other.is_multiple_of(2) => Self::Turn(other / 2 - 1),
            other => Self::Next((other - 3) / 2),
        }
    }
}

/// Asks the postmaster for a worker. False when max_worker_processes are all in use.
pub fn start(database: pg_sys::Oid, purpose: Purpose) -> bool {
    builder(database, purpose).load_dynamic().is_ok()
}

/// The same, and waits until its process is there.
fn start_and_wait(database: pg_sys::Oid, purpose: Purpose) -> bool {
    // SAFETY: set when the process started.
    let notify = unsafe { pg_sys::MyProcPid };
    let builder = builder(database, purpose).set_notify_pid(notify);
    let Ok(worker) = builder.load_dynamic() else {
        return false;
    };
    // It may be over already, and that is as good.
    let _ = worker.wait_for_startup();
    true
}

fn builder(database: pg_sys::Oid, purpose: Purpose) -> BackgroundWorkerBuilder {
    let argument = usize::try_from(purpose.encode()).unwrap_or(0) << 32;
    BackgroundWorkerBuilder::new("counterx worker")
        .set_type("counterx worker")
        .set_library("counterx")
        .set_function("counterx_worker_main")
        .set_argument(Some(pg_sys::Datum::from(
            argument | database.to_u32() as usize,
        )))
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(None)
}

/// From here on `pg_cancel_backend()` cancels what runs in [`transaction`], and nothing else: outside
/// of it there is nothing to cancel, and the error would end the process.
pub fn ignore_cancels() {
    // SAFETY: a plain counter of the process.
    unsafe { pg_sys::QueryCancelHoldoffCount = 1 };
}

fn heed_cancels() {
    // SAFETY: plain variables of the process. What was sent before is not meant for what comes.
    unsafe {
        pg_sys::QueryCancelPending = 0;
        pg_sys::QueryCancelHoldoffCount = 0;
    }
}

/// What workers and the launcher wait for between their rounds.
static IDLE: compat::WaitEvent = compat::WaitEvent::new(c"CounterxMain");

/// Sleeps until something happens or the time is over, and does what the server asks for: ends
/// on SIGTERM, reads the configuration again on SIGHUP.
pub fn wait(pause: Duration) {
    let timeout = pause.as_millis().clamp(1, 3_600_000) as core::ffi::c_long;
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: the process's own latch.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, timeout, IDLE.number());
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
    // SAFETY: a flag that a signal handler sets.
    unsafe { pg_sys::QueryCancelPending = 0 };
    reload_if_asked();
}

/// Reads the configuration again if the postmaster has said so. Outside of any transaction.
fn reload_if_asked() {
    // SAFETY: a flag that a signal handler sets; the caller is in no transaction.
    unsafe {
        if pg_sys::ConfigReloadPending != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// The worker's main function; the argument is the database's OID, and what it is started for.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn counterx_worker_main(arg: pg_sys::Datum) {
    compat::set_signal_handler(pg_sys::SIGTERM, ports::die);
    compat::set_signal_handler(pg_sys::SIGHUP, ports::SignalHandlerForConfigReload);
    ignore_cancels();
    let database = pg_sys::Oid::from(arg.value() as u32);
    let purpose = Purpose::decode((arg.value() >> 32) as u32);
    // SAFETY: once, at the start of a background worker; as the bootstrap superuser.
    unsafe {
        pg_sys::BackgroundWorkerUnblockSignals();
        if launcher::is_loaded() {
            pg_sys::before_shmem_exit(Some(on_exit), pg_sys::Datum::from(database));
        }
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::InvalidOid, 0);
    }
    own_settings();
    // Before it waits for anything: from now on it notices that they were changed.
    let known = transaction(c"reading settings", || database_settings(database));
    if !take_mark() {
        return;
    }
    let has_turn = match purpose {
        Purpose::Fold | Purpose::Visit => true,
        Purpose::Turn(turn) => patiently(|| turns::try_take_turn(turn)),
        Purpose::Next(turn) => wait_for_turn(turn),
    };
    if !has_turn {
        return;
    }
    failpoint!("worker.ready");
    IN_WORKER.set(true);
    let mut worker = Worker::new(database, purpose, known.unwrap_or_default());
    if purpose == Purpose::Visit {
        set_working(database, true);
        worker.look_in();
    } else {
        set_working(database, false);
        worker.run();
    }
}

/// With a launcher: what becomes of the database's entry, whatever ends the process.
#[pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: core::ffi::c_int, arg: pg_sys::Datum) {
    let database = pg_sys::Oid::from(arg.value() as u32);
    match ENTRY.get() {
        Entry::Starting => launcher::set_failed(database),
        // Ended by force. Whoever has counted since then has relied on this worker.
        Entry::Working => launcher::request_again(database),
        Entry::NotOurs => {}
    }
    launcher::look();
}

/// What the database's entry in the launcher's directory is to this process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// It waits for this process to report for duty.
    Starting,
    /// It shows this process.
    Working,
    /// Given up, or another worker's.
    NotOurs,
}

thread_local! {
    static ENTRY: Cell<Entry> = const { Cell::new(Entry::Starting) };
}

fn set_working(database: pg_sys::Oid, visit: bool) {
    if launcher::is_loaded() {
        launcher::set_working(database, visit);
        ENTRY.set(Entry::Working);
    }
}

/// Those who just look at the mark, and a predecessor that is about to end, hold it for a moment.
fn take_mark() -> bool {
    // Without a launcher: whoever has it will look for rows when it gives it up.
    let taken = if launcher::is_loaded() || !WorkerMark::is_set() {
        patiently(WorkerMark::try_set)
    } else {
        false
    };
    if !taken {
        ENTRY.set(Entry::NotOurs);
    }
    taken
}

/// The worker before is about to end. In the queue for its lock, so that no session finds the turn
/// free in the moment between the two.
fn wait_for_turn(turn: u32) -> bool {
    set(c"lock_timeout", c"5s");
    let taken = transaction(c"waiting for a turn", || turns::take_turn(turn));
    set(c"lock_timeout", c"0");
    taken.is_ok()
}

/// Tries for a second.
fn patiently(attempt: impl Fn() -> bool) -> bool {
    for _ in 0..50 {
        if attempt() {
            return true;
        }
        wait(Duration::from_millis(20));
    }
    false
}

thread_local! {
    /// Is this process a worker?
    static IN_WORKER: Cell<bool> = const { Cell::new(false) };
    /// How often [`make_way`] was called.
    static STEPS: Cell<u32> = const { Cell::new(0) };
    /// When it looks again.
    static NEXT_GLANCE: Cell<Option<Instant>> = const { Cell::new(None) };
    /// It has ended a fold.
    static MADE_WAY: Cell<bool> = const { Cell::new(false) };
}

/// Called at each step of what may take long. Ends it where somebody waits for the worker to leave
/// the database: who drops or renames it waits five seconds only.
///
/// # Errors
/// Raises 57014 in a worker, if its database is wanted.
pub fn make_way() {
    const STEPS_TO_CLOCK: u32 = 16;
    const EVERY: Duration = Duration::from_millis(100);
    if !IN_WORKER.get() {
        return;
    }
    STEPS.set(STEPS.get().wrapping_add(1));
    if !STEPS.get().is_multiple_of(STEPS_TO_CLOCK) {
        return;
    }
    let now = Instant::now();
    if NEXT_GLANCE.get().is_some_and(|next| now < next) {
        return;
    }
    NEXT_GLANCE.set(Some(now + EVERY));
    if lock::database_is_wanted() {
        MADE_WAY.set(true);
        raise(report(
            PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            "the database is wanted by somebody who needs it alone",
        ));
    }
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
    let further = compat::FURTHER_TIMEOUTS.iter().map(|&name| (name, c"0"));
    for (name, value) in fixed.into_iter().chain(further) {
        set(name, value);
    }
}

fn set(name: &core::ffi::CStr, value: &core::ffi::CStr) {
    // SAFETY: strings that end with a zero.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        );
    }
}

/// Runs `body` in a transaction of its own, READ COMMITTED and writable, as the extension's owner. An
/// error aborts the transaction and comes back as its message.
///
/// The session's user may be anybody: `ALTER DATABASE ... SET role` makes it so, and the bootstrap
/// superuser need not be a superuser any more. The owner may write to what is the extension's.
pub fn transaction<R>(activity: &core::ffi::CStr, body: impl FnOnce() -> R) -> Result<R, String> {
    let body = Cell::new(Some(body));
    let run = || {
        heed_cancels();
        // SAFETY: outside of any transaction, in a background worker.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, activity.as_ptr());
            pg_sys::StartTransactionCommand();
            pg_sys::XactIsoLevel = pg_sys::XACT_READ_COMMITTED as i32;
            pg_sys::XactReadOnly = false;
        }
        let body = body.take().expect("runs once");
        let owner = as_owner();
        let result = body();
        drop(owner);
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
    ignore_cancels();
    // SAFETY: outside of any transaction.
    unsafe {
        pg_sys::pgstat_report_stat(false);
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
    }
    result
}

fn as_owner() -> Option<ActingAs> {
    let gate = catalog::try_lane(0).ok()?.gate;
    Relation::open_for_read(gate).map(|gate| ActingAs::owner_of(&gate))
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
    tokens: LaneClock,
    /// It has looked for expired tokens at least once.
    looked_for_tokens: bool,
    tokens_removed: token::Progress,
}

/// How often a worker looks for expired tokens, at least.
const TOKENS_EVERY: Duration = Duration::from_secs(10);

/// So many expired tokens are removed in one transaction: some milliseconds. Between two of them
/// lanes have their turn.
const TOKEN_BATCH: usize = 1000;

/// How often a worker looks whether the settings of its database were changed.
const GLANCE_EVERY: Duration = Duration::from_secs(1);

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
            reclaims: Default::default(),
            counts: Default::default(),
            memories: Default::default(),
            refused: None,
            database_settings,
            glances: LaneClock::default(),
            tokens: LaneClock::default(),
            looked_for_tokens: false,
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
                Ok(Outlook::NewSettings) => return self.start_anew(),
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
            self.look_for_others();
            mend::triggers_now_and_then();
            if settings::compaction() {
                for (lane, &crowded) in crowded.iter().enumerate() {
                    let clock = &self.clocks[lane];
                    let early = crowded || self.is_hurried(lane);
                    if clock.due(self.now(), settings::compaction_interval())
                        || (early && clock.may_be_early())
                    {
                        self.tick(lane);
                    }
                    if MADE_WAY.get() {
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
            }
            if self.makes_room() {
                return;
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
                let hurried = (0..LANES).any(|lane| self.is_hurried(lane));
                wait(until_due.min(if hurried { HURRY } else { POLL }));
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
        if launcher::is_loaded() {
            if self.busy == idle {
                self.busy = !idle;
                launcher::set_busy(self.database, self.busy);
            }
            let (asked, waiting) = launcher::asked(self.database);
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
            turns::waiting(self::now()).len() as u32
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
            launcher::request_always(self.database);
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
        let now = self::now();
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
        start_and_wait(next.into(), Purpose::Next(turn));
        true
    }

    /// A new session has to be started to get new settings.
    fn start_anew(&self) {
        self.give_up();
        self.start_successor();
    }

    fn start_successor(&self) {
        if launcher::is_loaded() {
            launcher::request_always(self.database);
        } else {
            let turn = match self.purpose {
                Purpose::Turn(turn) | Purpose::Next(turn) => turn,
                Purpose::Fold | Purpose::Visit => 0,
            };
            start(self.database, Purpose::Next(turn));
        }
    }

    /// There is nothing to fold that somebody has asked for, but perhaps a log that can be emptied.
    /// (Rows to fold may be there as well: those of a restore must be left alone.)
    fn look_in(&mut self) {
        let usable = transaction(c"looking for logs to be emptied", || {
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
        }
        self.give_up();
        let left = self.left();
        self.visit_later(left);
    }

    /// With a launcher: another worker is to look in when this one has ended.
    fn visit_later(&self, left: Left) {
        if launcher::is_loaded() && left.inactive {
            let pause = settings::worker_idle_timeout().min(VISIT_AT_LEAST_EVERY);
            launcher::visit_after(self.database, pause);
        }
    }

    /// Whoever has changed a setting and counted then may have relied on this worker, which does not
    /// know the setting yet.
    fn left(&self) -> Left {
        reload_if_asked();
        let left = transaction(c"looking for pending deltas", || {
            let mut left = Left {
                new_settings: self.has_new_settings(),
                ..Left::default()
            };
            for lane in 0..LANES {
                if let Ok(rels) = catalog::try_lane(lane) {
                    left.pending |= fold::has_pending(lane, &rels);
                    left.inactive |= rotation::has_inactive_rows(&rels);
                }
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
        database_settings(self.database) != self.database_settings
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
                if !matches!(tick, Tick::Waiting) {
                    self.turn.lane_is_done(lane);
                }
                if matches!(tick, Tick::Folded | Tick::Waiting) {
                    self.last_work = now;
                }
            }
            Ok(Err(refusal)) => {
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
            Err(_) if MADE_WAY.get() => return,
            Err(message) => {
                self.clocks[lane].failed(now);
                self.turn.lane_is_done(lane);
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
            ENTRY.set(Entry::NotOurs);
        }
        WorkerMark::clear();
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
        if !left.is_work() || !take_mark() {
            self.visit_later(left);
            return true;
        }
        set_working(self.database, false);
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
