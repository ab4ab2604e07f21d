//! Settings.

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use pgrx::pg_sys;
use std::time::Duration;

/// What becomes of a transaction that would add to a lane of which too much is pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum PendingAction {
    /// It counts, and is warned.
    #[name = c"warn"]
    Warn,
    /// It waits for a fold, and fails when that does not come in time.
    #[name = c"wait"]
    Wait,
    /// It fails.
    #[name = c"error"]
    Error,
}

/// A second keeps reads short at tens of thousands of increments a second, and an idle server
/// idle.
static COMPACTION_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(1000);
/// Reading a counter visits each of its pending deltas, at some 0.1 microseconds: with a few hundred of them
/// a read of a hot counter stays around that of a plain row with a few dead versions.
static COMPACTION_THRESHOLD: GucSetting<i32> = GucSetting::<i32>::new(500);
static LOG_MAX_SIZE: GucSetting<i32> = GucSetting::<i32>::new(64 * 1024);
/// What a stream's consumer that is away for a night leaves, as a rule.
static STREAM_MAX_SIZE: GucSetting<i32> = GucSetting::<i32>::new(1024 * 1024);
static WORKER_IDLE_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(60_000);
/// Few enough to leave most of the default of max_worker_processes, which is 8, to others; more than
/// one, so that one long fold does not hold up all databases.
static MAX_WORKERS: GucSetting<i32> = GucSetting::<i32>::new(3);
/// One folds tens of thousands of deltas a second; more take processes and processors from others.
static WORKERS_PER_DATABASE: GucSetting<i32> = GucSetting::<i32>::new(1);
static COMPACTION: GucSetting<bool> = GucSetting::<bool>::new(true);
/// A week: longer than any retry of a queue that people look after.
static TOKEN_TTL: GucSetting<i32> = GucSetting::<i32>::new(7 * 24 * 3600);
/// Bounded counters that are being changed at one moment: more than there are sessions, as a rule.
static ESCROW_ENTRIES: GucSetting<i32> = GucSetting::<i32>::new(4096);
/// A few commits' time.
static ESCROW_WAIT: GucSetting<i32> = GucSetting::<i32>::new(20);
/// A committer is a process as well. Few databases are hit at a time, as a rule.
static MAX_COMMITTERS: GucSetting<i32> = GucSetting::<i32>::new(2);
/// More than there are sessions, as a rule; some 600 kB for each committer.
static HIT_QUEUE_SIZE: GucSetting<i32> = GucSetting::<i32>::new(1024);
/// Reading tables costs something, so somebody has to ask for it.
static TRACK_CHECKS: GucSetting<i32> = GucSetting::<i32>::new(0);
static PENDING_WORK_MEM: GucSetting<i32> = GucSetting::<i32>::new(64 * 1024);
/// Not to be able to count is worse than a backlog, unless somebody says otherwise.
static MAX_PENDING: GucSetting<i32> = GucSetting::<i32>::new(0);
static MAX_PENDING_ACTION: GucSetting<PendingAction> =
    GucSetting::<PendingAction>::new(PendingAction::Warn);
/// Some folds' time.
static MAX_PENDING_WAIT: GucSetting<i32> = GucSetting::<i32>::new(10_000);
/// More than count on most servers; some 1.6 kB for each.
static STAT_DATABASES: GucSetting<i32> = GucSetting::<i32>::new(128);

/// The longest pause between two folds of a lane that has something pending.
pub fn compaction_interval() -> Duration {
    Duration::from_millis(COMPACTION_INTERVAL.get().unsigned_abs().into())
}

/// So many pending rows in a lane start a fold before its time.
pub fn compaction_threshold() -> u64 {
    COMPACTION_THRESHOLD.get().unsigned_abs().into()
}

/// The size from which on a log is left for the lane's other one, in bytes.
pub fn log_max_size() -> u64 {
    u64::from(LOG_MAX_SIZE.get().unsigned_abs()) * 1024
}

/// What changes for streams may take on disk, in bytes.
pub fn stream_max_size() -> u64 {
    u64::from(STREAM_MAX_SIZE.get().unsigned_abs()) * 1024
}

/// A worker that had nothing to do for so long ends.
pub fn worker_idle_timeout() -> Duration {
    Duration::from_millis(WORKER_IDLE_TIMEOUT.get().unsigned_abs().into())
}

/// So many workers may run at a time, in all databases.
pub fn max_workers() -> u32 {
    MAX_WORKERS.get().unsigned_abs()
}

/// So many of them may be of one database.
pub fn workers_per_database() -> usize {
    WORKERS_PER_DATABASE.get().unsigned_abs() as usize
}

/// May the worker of this database fold?
pub fn compaction() -> bool {
    COMPACTION.get()
}

/// The memory that a transaction's pending map may take, in bytes.
pub fn pending_work_mem() -> usize {
    PENDING_WORK_MEM.get().unsigned_abs() as usize * 1024
}

/// So many groups of tracked tables are compared with their rows each minute; 0: none.
pub fn track_checks() -> usize {
    TRACK_CHECKS.get().unsigned_abs() as usize
}

/// So long a token is kept at least.
pub fn token_ttl() -> Duration {
    Duration::from_secs(TOKEN_TTL.get().unsigned_abs().into())
}

/// How many bounded counters can be changed at the same time.
pub fn escrow_entries() -> usize {
    ESCROW_ENTRIES.get().unsigned_abs() as usize
}

/// How long an increment waits for others before it is refused because of them.
pub fn escrow_wait() -> Duration {
    Duration::from_millis(ESCROW_WAIT.get().unsigned_abs().into())
}

/// How many databases can have a committer at a time.
pub fn max_committers() -> usize {
    MAX_COMMITTERS.get().unsigned_abs() as usize
}

/// So many pending deltas in a lane are too many; 0: no number is.
pub fn max_pending() -> u64 {
    MAX_PENDING.get().unsigned_abs().into()
}

/// What becomes of a transaction that would add to them.
pub fn max_pending_action() -> PendingAction {
    MAX_PENDING_ACTION.get()
}

/// How long it waits for a fold at most.
pub fn max_pending_wait() -> Duration {
    Duration::from_millis(MAX_PENDING_WAIT.get().unsigned_abs().into())
}

/// For how many databases `counterx.stat` has figures.
pub fn stat_databases() -> usize {
    STAT_DATABASES.get().unsigned_abs() as usize
}

/// How many hits can be on their way in a database.
pub fn hit_queue_size() -> usize {
    HIT_QUEUE_SIZE.get().unsigned_abs() as usize
}

/// Only the postmaster, while it starts, can define a setting that is fixed at server start. A library
/// that is loaded later has no shared memory whose size it could be.
fn at_server_start() -> GucContext {
    // SAFETY: a plain read of a variable of the server's.
    if unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        GucContext::Postmaster
    } else {
        GucContext::Sighup
    }
}

/// Defines them all.
pub fn define() {
    GucRegistry::define_int_guc(
        c"counterx.compaction_interval",
        c"Time between two folds of a lane that has pending deltas.",
        c"Longer intervals write less; shorter ones keep reads of hot counters shorter.",
        &COMPACTION_INTERVAL,
        1,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"counterx.compaction_threshold",
        c"Number of pending deltas in a lane that starts a fold before its time.",
        c"Up to four times as many where they are of many counters. Counted many times a second while a worker runs and a lane fills.",
        &COMPACTION_THRESHOLD,
        1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"counterx.log_max_size",
        c"Size from which on a lane changes to its other log.",
        c"The full log is truncated once no snapshot needs it. A lane takes up to twice this size, and more while an old snapshot is open.",
        &LOG_MAX_SIZE,
        64,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"counterx.stream_max_size",
        c"Size up to which changes wait for the consumers of streams.",
        c"For all streams of a database together. Consumers that are further behind are lost, and have to begin anew.",
        &STREAM_MAX_SIZE,
        1024,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"counterx.worker_idle_timeout",
        c"Time without work after which a database's worker ends.",
        c"The next commit that changes a counter starts another one.",
        &WORKER_IDLE_TIMEOUT,
        1000,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"counterx.max_workers",
        c"Number of workers that may run at a time, in all databases.",
        c"Where more databases count, their workers take turns. Each takes one of max_worker_processes, and so does the launcher.",
        &MAX_WORKERS,
        1,
        1024,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"counterx.workers_per_database",
        c"Number of workers that may share the lanes of one database.",
        c"Further ones come while one cannot keep up, where no other database needs their turn, and each counts for counterx.max_workers.",
        &WORKERS_PER_DATABASE,
        1,
        counterx_core::folders::MOST as i32,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"counterx.compaction",
        c"Lets the background worker fold deltas into totals.",
        c"ALTER DATABASE ... SET counterx.compaction = off pauses one database. Increments and reads go on; counterx.compact() still folds.",
        &COMPACTION,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"counterx.pending_work_mem",
        c"Memory for the increments of one transaction.",
        c"A transaction that needs more writes them early, and then holds up the folding of its lanes until it ends.",
        &PENDING_WORK_MEM,
        64,
        i32::MAX / 1024,
        GucContext::Userset,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"counterx.track_checks",
        c"Number of groups of tracked tables that are compared with their rows each minute.",
        c"Those whose key begins with a column that an index begins with. What differs is counted again. 0: none.",
        &TRACK_CHECKS,
        0,
        10_000,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"counterx.token_ttl",
        c"Time for which the tokens of counter_incr_once() are kept at least.",
        c"Older ones are removed by the worker in small batches; from then on they would count as new.",
        &TOKEN_TTL,
        1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"counterx.escrow_entries",
        c"Number of bounded counters that can be changed at the same time.",
        c"Each takes some 400 bytes of shared memory. Without effect where counterx is not in shared_preload_libraries.",
        &ESCROW_ENTRIES,
        16,
        1_000_000,
        at_server_start(),
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"counterx.escrow_wait",
        c"Time to wait for other transactions before an increment of a bounded counter is refused.",
        c"Only where it is refused because of what they have reserved and may give back. 0 for never.",
        &ESCROW_WAIT,
        0,
        3_600_000,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"counterx.max_committers",
        c"Number of databases that can have a committer for counter_hit() at a time.",
        c"Where more are hit, their committers take turns. Each takes one of max_worker_processes while it is needed. 0 for none.",
        &MAX_COMMITTERS,
        0,
        255,
        at_server_start(),
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"counterx.hit_queue_size",
        c"Number of hits that can be on their way to a committer.",
        c"Each takes some 600 bytes of shared memory, for each of counterx.max_committers. Who finds no room waits.",
        &HIT_QUEUE_SIZE,
        16,
        1_000_000,
        at_server_start(),
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"counterx.max_pending",
        c"Number of pending deltas in a lane beyond which transactions are warned, wait or fail.",
        c"As counterx.max_pending_action says, before they write. 0: no number is too many.",
        &MAX_PENDING,
        0,
        i32::MAX,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"counterx.max_pending_action",
        c"What becomes of a transaction that would write to a lane with too many pending deltas.",
        c"warn: it is warned. wait: it waits for a fold, up to counterx.max_pending_wait, and fails then. error: it fails.",
        &MAX_PENDING_ACTION,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"counterx.max_pending_wait",
        c"Time for which a transaction waits for a fold where too many deltas are pending.",
        c"Of effect where counterx.max_pending_action is wait.",
        &MAX_PENDING_WAIT,
        0,
        3_600_000,
        GucContext::Suset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"counterx.stat_databases",
        c"Number of databases that counterx.stat has cumulative figures for.",
        c"Each takes some 1.6 kilobytes of shared memory. Without effect where counterx is not in shared_preload_libraries.",
        &STAT_DATABASES,
        1,
        10_000,
        at_server_start(),
        GucFlags::default(),
    );
    #[cfg(debug_assertions)]
    crate::failpoint::define();
    // SAFETY: a constant string; from here on misspelt settings of ours are errors.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"counterx".as_ptr()) };
}
