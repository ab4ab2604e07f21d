//! Back-pressure: what becomes of writers where so much waits to be folded that nobody should add to it.
//!
//! # Why it is judged where it is
//! A fold waits for all transactions that have a lane's gate locked as a writer does. One that waited for the fold
//! under such a lock would wait for itself, and nothing would notice. So a transaction is judged once, before its
//! first gate; not when it has written early, or folds or locks a lane itself.
//!
//! A writer that has passed may wait for a row that one who waits here has locked, and the fold waits for it: that
//! ends with `counterx.max_pending_wait`, as each wait here does.

use crate::figures::local::{Figure, count, count_time};
use crate::pg::compat::WaitEvent;
use crate::pg::error::{log, raise, report, warn_client};
use crate::pg::lock::{self, FoldWanted, FoldingPaused, LaneLock, WorkerMark};
use crate::pg::ports;
use crate::pg::relation::LockMode;
use crate::settings::{self, PendingAction};
use crate::store::backlog;
use crate::store::catalog;
use crate::store::state;
use crate::transaction::pending;
use counterx_core::gate::Side;
use counterx_core::lane::LANES;
use counterx_core::schedule;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode, pg_sys};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// A worker that was asked for is there after this time, or there will be none soon: a database that waits for its
/// turn has one every four seconds or so, and a start that has failed is tried again after one, two and four.
const WORKER_COMES_IN: Duration = Duration::from_secs(10);

/// Who waits asks for a worker this often, and looks whether there is one.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// What has failed is tried again after a pause that grows to a minute. Nobody waits longer than this for a lane whose
/// last fold has failed, and a session not again before one has been committed.
const FAILING_WAITS: Duration = Duration::from_secs(2);

/// An apply worker waits no longer than this: who sends to it hears nothing meanwhile.
const APPLY_WAITS: Duration = Duration::from_secs(5);

/// To look into a lane's logs takes half as many instructions again as to count. A lane in which there is room for an
/// eighth of what may be there, and for this many at least, is not looked at again for this time, in microseconds.
const LOOK_AGAIN_AFTER: i64 = 100_000;
const FITS_FOR_LONG: u64 = 5_000;

/// The log is told again after this time, in microseconds, that a lane is crowded; and an apply worker that has
/// waited in vain does not wait again before.
const SAY_AGAIN_AFTER: i64 = 60_000_000;

/// What a session waits for.
static FOLD: WaitEvent = WaitEvent::new(c"CounterxFold");

thread_local! {
    /// The running transaction was judged.
    static JUDGED: Cell<bool> = const { Cell::new(false) };
    /// It has waited so long before it was refused. It may have caught that error, and come again.
    static WAITED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// This process does the extension's own work: nobody could do it instead.
    static EXEMPT: Cell<bool> = const { Cell::new(false) };
    static SAID_AT: Cell<Option<i64>> = const { Cell::new(None) };
    /// How many folds a lane had had when this process waited in vain for one that fails.
    static IN_VAIN: [Cell<i64>; LANES] = const { [const { Cell::new(-1) }; LANES] };
    /// When this process has found last that a lane has room for long, and how much was too much then.
    static ROOMY: [Cell<(i64, u64)>; LANES] = const { [const { Cell::new((i64::MIN, 0)) }; LANES] };
}

/// The process does the extension's own work, and is never held up.
pub fn exempt() {
    EXEMPT.set(true);
}

/// The transaction has ended. Neither allocates nor fails.
pub fn after_end() {
    JUDGED.set(false);
    WAITED.set(Duration::ZERO);
}

/// The running transaction is about to write, and has not locked a gate for that yet. `ask_for_worker`: whoever
/// finds a lane crowded asks for it, whatever becomes of the transaction.
///
/// # Errors
/// Raises 53400 where so much is pending that the settings forbid it.
#[inline]
pub fn judge(ask_for_worker: impl Fn()) {
    let most = settings::max_pending();
    if most > 0 && !EXEMPT.get() && !JUDGED.get() && !pending::has_flushed_early() {
        judge_lanes(most, ask_for_worker);
        JUDGED.set(true);
    }
}

/// A lane of which more is pending than should be.
struct Crowded {
    lane: usize,
    pending: u64,
    most: u64,
}

fn judge_lanes(most: u64, ask_for_worker: impl Fn()) {
    let lanes = [const { Cell::new(false) }; LANES];
    pending::for_each_change(|change| lanes[change.row.hash.lane()].set(true));
    let crowded = |lane: usize| {
        if has_room_for_long(lane, most) {
            return None;
        }
        let lasts = most >= 2 * FITS_FOR_LONG;
        let many = match lasts {
            true => most - FITS_FOR_LONG.max(most / 8),
            false => most,
        };
        // An index that is missing keeps writers from writing anyway, and says why.
        let found = backlog::pending_if(lane, many).ok()?;
        let pending = found.unwrap_or_default();
        if lasts && pending < many {
            ROOMY.with(|roomy| roomy[lane].set((ports::now(), most)));
        }
        let is_crowded = pending >= most && !keeps_from_folding(lane);
        is_crowded.then_some(Crowded {
            lane,
            pending,
            most,
        })
    };
    // Each lane is to have room once. Who writes to many would wait for ever for all of them to have it at one moment,
    // beside those who write to one.
    let first = || {
        let mut left = (0..LANES).filter(|&lane| lanes[lane].get());
        left.find_map(|lane| {
            let found = crowded(lane);
            lanes[lane].set(found.is_some());
            found
        })
    };
    let Some(found) = first() else { return };
    // Commits ask for workers, and one that is refused may be the only one that comes: after a restart, say, nobody
    // else would have the backlog folded.
    ask_for_worker();
    // SAFETY: a plain look at a variable of the process.
    let applies = unsafe { pg_sys::IsLogicalWorker() };
    let longest = longest_wait();
    match settings::max_pending_action() {
        PendingAction::Warn => found.warn(),
        // An apply worker would begin the transaction anew until it is let through, or disable the subscription.
        PendingAction::Error if applies => say_that_it_goes_on(&found),
        PendingAction::Error => found.refuse(None),
        // Were each of its transactions held up, what it is to apply would pile up where it comes from.
        PendingAction::Wait if applies => {
            if !has_said()
                && let Err((found, _)) = wait(
                    found,
                    longest.min(APPLY_WAITS),
                    &lanes,
                    ask_for_worker,
                    first,
                )
            {
                say_that_it_goes_on(&found);
            }
        }
        PendingAction::Wait => {
            if let Err((found, waited)) = wait(found, longest, &lanes, ask_for_worker, first) {
                found.refuse(Some(waited));
            }
        }
    }
}

/// The server has ended its `statement_timeout` before a commit begins: so that is heeded here.
fn longest_wait() -> Duration {
    // SAFETY: a plain read of a variable of the backend.
    let timeout = unsafe { pg_sys::StatementTimeout };
    let longest = settings::max_pending_wait();
    match timeout {
        ..=0 => longest,
        _ => longest.min(Duration::from_millis(timeout.unsigned_abs().into())),
    }
}

/// Has this process looked a moment ago, and found that there was a lot of room?
fn has_room_for_long(lane: usize, most: u64) -> bool {
    let (at, was_most) = ROOMY.with(|roomy| roomy[lane].get());
    was_most == most && (0..LOOK_AGAIN_AFTER).contains(&ports::now().saturating_sub(at))
}

/// Does the running transaction itself keep others from folding the lane? It has folded it by hand, say, or created
/// a type.
fn keeps_from_folding(lane: usize) -> bool {
    /// What a folder's lease, or its wait for writers, conflicts with.
    const CONFLICTING: [u32; 6] = [
        pg_sys::RowExclusiveLock,
        pg_sys::ShareUpdateExclusiveLock,
        pg_sys::ShareLock,
        pg_sys::ShareRowExclusiveLock,
        pg_sys::ExclusiveLock,
        pg_sys::AccessExclusiveLock,
    ];
    /// What a writer's lock on a table conflicts with. Who makes an index on totals has one, and who rebuilds those of
    /// logs, which a fold reads.
    const AGAINST_WRITERS: [u32; 4] = [
        pg_sys::ShareLock,
        pg_sys::ShareRowExclusiveLock,
        pg_sys::ExclusiveLock,
        pg_sys::AccessExclusiveLock,
    ];
    let is_locked = |relation, modes: &[u32]| {
        let mut modes = modes.iter().map(|&mode| mode as LockMode);
        modes.any(|mode| lock::is_locked(relation, mode))
    };
    let shared = catalog::shared();
    let rels = catalog::lane(lane);
    is_locked(rels.gate, &CONFLICTING)
        || [shared.total, shared.state, shared.late]
            .into_iter()
            .chain(Side::BOTH.map(|side| rels.log(side)))
            .any(|table| is_locked(table, &AGAINST_WRITERS))
}

/// Waits until each of the `lanes` has had room.
///
/// # Errors
/// One that is, still, and how long that was waited for.
fn wait(
    found: Crowded,
    longest: Duration,
    lanes: &[Cell<bool>; LANES],
    ask_for_worker: impl Fn(),
    first: impl Fn() -> Option<Crowded>,
) -> Result<(), (Crowded, Duration)> {
    let before = WAITED.get();
    let since = Instant::now();
    let mut found = found;
    let (mut seen, mut asked) = (before, before);
    for look in 0.. {
        let waited = match look {
            0 => before,
            _ => before + since.elapsed(),
        };
        WAITED.set(waited);
        // The one that was there may have ended, and what it has left is somebody else's.
        if look == 0 || waited - asked >= ASK_EVERY {
            asked = waited;
            if is_paused() {
                return Err((found, waited));
            }
            // The first worker takes each lane that is free. Where it is not there, a further one may have this lane.
            let is_first_there = WorkerMark::FIRST.is_set();
            if is_first_there || LaneLock::is_taken(found.lane) {
                seen = waited;
            }
            if !is_first_there {
                ask_for_worker();
            }
        }
        if waited >= longest || waited - seen > WORKER_COMES_IN {
            return Err((found, waited));
        }
        if asked == waited && fails_for_long(found.lane, waited - before) {
            return Err((found, waited));
        }
        let pause = schedule::until_next_look(look, ports::random());
        if look == 0 && before.is_zero() {
            count(Figure::BackPressureWaits, 1);
        }
        let start = Instant::now();
        // All that may be crowded: who waited for one after the other would be late.
        let wanted: [_; LANES] =
            std::array::from_fn(|lane| lanes[lane].get().then(|| FoldWanted::tell(lane)));
        ports::wait(pause.min(longest - waited), FOLD.number());
        wanted.into_iter().flatten().for_each(FoldWanted::release);
        count_time(Figure::BackPressureWaitTime, start.elapsed());
        match first() {
            Some(still) => found = still,
            None => break,
        }
    }
    Ok(())
}

/// Has somebody who has `waited` that long waited enough, as the folds of this lane fail?
fn fails_for_long(lane: usize, waited: Duration) -> bool {
    let Some(failing) = state::failing(lane) else {
        return false;
    };
    IN_VAIN.with(|folds| {
        if waited >= FAILING_WAITS {
            folds[lane].set(failing.folds);
        }
        folds[lane].get() == failing.folds
    })
}

/// Is folding paused? By the worker's settings, if there is one: those that this session began with may be older.
fn is_paused() -> bool {
    !settings::compaction() || FoldingPaused::is_set()
}

/// Has this process said to the log of late that a lane is crowded?
fn has_said() -> bool {
    let said_at = SAID_AT.get();
    said_at.is_some_and(|at| (0..SAY_AGAIN_AFTER).contains(&ports::now().saturating_sub(at)))
}

fn say_that_it_goes_on(found: &Crowded) {
    if has_said() {
        return;
    }
    SAID_AT.set(Some(ports::now()));
    log(format!(
        "counterx: {}; a logical replication worker goes on all the same, as its transaction would only be tried again",
        found.message()
    ));
}

impl Crowded {
    fn message(&self) -> String {
        format!(
            "too many deltas of counters wait to be folded in lane {}",
            self.lane
        )
    }

    fn refuse(&self, waited: Option<Duration>) -> ! {
        count(Figure::BackPressureRefused, 1);
        raise(self.report(waited))
    }

    /// Whoever counts hears it each time, and the server's log now and then: a busy server has thousands of these in a
    /// second.
    fn warn(&self) {
        let report = self.report(None);
        if has_said() {
            warn_client(report);
        } else {
            SAID_AT.set(Some(ports::now()));
            report.report(PgLogLevel::WARNING);
        }
    }

    fn report(&self, waited: Option<Duration>) -> ErrorReport {
        let (pending, most) = (self.pending, self.most);
        let mut detail = format!("There are some {pending}, and counterx.max_pending is {most}.");
        if let Some(waited) = waited.filter(|waited| waited.as_millis() > 0) {
            detail += &format!(
                " The transaction has waited {} ms for a fold.",
                waited.as_millis()
            );
        }
        let hint = if is_paused() {
            "Folding is paused by counterx.compaction = off. Switch it on, or call counterx.compact().".to_owned()
        } else if let Some(failing) = state::failing(self.lane) {
            format!(
                "The last fold of this lane has failed: {}. Try again when the reason is gone; the server's log has each attempt, with its hint.",
                failing.error
            )
        } else {
            "counterx.workers and counterx.lanes show what holds up folding: no worker runs, folding is paused or fails, or a transaction that has written early is open. Try again when that is over.".to_owned()
        };
        report(
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            self.message(),
        )
        .set_detail(detail)
        .set_hint(hint)
    }
}
