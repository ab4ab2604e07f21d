//! A session's side of a hit.
//!
//! # When the caller does not wait to the end
//! Cancelled, or out of time, before the committer took the hit: it is withdrawn, and not counted. After
//! that nobody knows yet, and the error says so. Between pushing and waking nothing can interrupt.

use super::failure;
use super::memory::{self, Assignment, Spot};
use crate::bounds::limits::Limits;
use crate::bounds::types;
use crate::figures::local::{Figure, count};
use crate::pg::compat::WaitEvent;
use crate::pg::error::{quoted, raise, report};
use crate::pg::lock;
use crate::pg::ports;
use crate::pg::relation::LockMode;
use crate::pg::shared::Waiter;
use crate::pg::standby;
use crate::settings;
use crate::store::catalog;
use counterx_core::escrow::Bounds;
use counterx_core::hits::{Answer, Change, Full, Hit, Kind, Process, Pushed, Queue, Withdrawn};
use counterx_core::lane::{LANES, NameHash};
use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgSqlErrorCode, PgTryBuilder, pg_guard, pg_sys};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Whoever waits looks again this often, whether something has happened or not.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Who cannot hand over his hit tries again this often.
const TRY_EVERY: Duration = Duration::from_millis(100);

/// So long a session waits for a place, for a committer, or for room.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a session waits for whose hit is on its way.
static ANSWER: WaitEvent = WaitEvent::new(c"CounterxHit");

thread_local! {
    /// The place of this database, as far as is known.
    static PLACE: Cell<Option<usize>> = const { Cell::new(None) };
    /// The hit whose answer is waited for, by its place.
    static WAITS_FOR: Cell<Option<(usize, u32)>> = const { Cell::new(None) };
    /// Will [`before_exit`] be called?
    static LEAVES: Cell<bool> = const { Cell::new(false) };
}

/// Counts by itself: all of these counters, at least one, or none. False: a bound forbids it, and `kind` is
/// [`Kind::Try`].
///
/// # Errors
/// Raises 55000 where there are no committers, 55006 when the transaction itself holds what the committer
/// needs, 54000 for more counters than the queue may take, 53400 when there is no committer or no room for
/// long, 57014 when it is cancelled, and whatever keeps the hit from being counted.
pub fn hit(function: &str, changes: &[Change], kind: Kind, wait: bool) -> bool {
    check_preloaded(function);
    check_size(changes);
    for change in changes {
        check_bounds(change.name, wait);
        check_own_locks(function, change.name);
    }
    let durable = wait && is_commit_durable();
    let hit = Hit {
        changes,
        kind,
        durable,
        waiter: wait.then(memory::own_latch),
    };
    if wait {
        withdraw_at_exit();
        // The first call may fail: before there is something to be given up.
        ANSWER.number();
    }
    let (spot, ticket) = push(&hit);
    if !wait {
        return true;
    }
    let waiting = Waiting::new(spot, ticket);
    failpoint!("hit.pushed");
    match waiting.answer() {
        Answer::Counted { lsn, flushed } => {
            if durable {
                make_durable(lsn, flushed);
            }
            true
        }
        Answer::Refused => false,
        Answer::Failed(_) => unreachable!("raised by who has the text"),
    }
}

fn check_preloaded(function: &str) {
    if memory::is_there() {
        return;
    }
    let (message, hint) = match memory::is_preloaded() {
        false => (
            format!("{function} needs counterx in shared_preload_libraries"),
            "Add counterx to shared_preload_libraries and restart the server, or use counter_incr(), which counts with your transaction.",
        ),
        true => (
            format!("{function} needs a committer, and counterx.max_committers is 0"),
            "Raise counterx.max_committers and restart the server, or use counter_incr(), which counts with your transaction.",
        ),
    };
    let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
    raise(report(code, message).set_hint(hint))
}

/// A hit has to find room some day.
fn check_size(changes: &[Change]) {
    let most = Queue::most_of_one(settings::hit_queue_size());
    if changes.len() > most {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                format!("too many counters in one hit: {}", changes.len()),
            )
            .set_detail(format!(
                "At most {most} are possible, half of counterx.hit_queue_size."
            ))
            .set_hint(
                "Hit fewer at a time, or raise counterx.hit_queue_size and restart the server.",
            ),
        );
    }
}

/// Nobody would hear of it when a bound, or its name, forbids what nobody waits for.
fn check_bounds(name: &[u8], wait: bool) {
    if let Some(windowed) = types::window_of(name) {
        windowed.check_name(name);
    }
    let is_bounded = |limits: Limits| limits.bounds != Bounds::default();
    if !wait && types::limits_of(name).is_some_and(is_bounded) {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!(
                    "a hit of bounded counter {} cannot go unwaited for",
                    quoted(name)
                ),
            )
            .set_detail("A bound could forbid it, and nobody would hear of that.")
            .set_hint("Leave wait => false away."),
        );
    }
}

/// The committer writes to the counter's lane. Would it wait for the running transaction, which waits for it?
fn check_own_locks(function: &str, name: &[u8]) {
    /// What a writer's RowExclusiveLock conflicts with.
    const CONFLICTING: [u32; 4] = [
        pg_sys::ShareLock,
        pg_sys::ShareRowExclusiveLock,
        pg_sys::ExclusiveLock,
        pg_sys::AccessExclusiveLock,
    ];
    let lane = NameHash::of(name).lane();
    // In which lane a window is, is not known before it is counted.
    let lanes = match types::window_of(name) {
        Some(_) => 0..LANES,
        None => lane..lane + 1,
    };
    let is_locked = |lane| {
        let gate = catalog::lane(lane).gate;
        let mut modes = CONFLICTING.iter().map(|&mode| mode as LockMode);
        modes.any(|mode| lock::is_locked(gate, mode))
    };
    if lanes.into_iter().any(is_locked) {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
                format!("{function} cannot count while its own transaction keeps others from counting"),
            )
            .set_detail(format!(
                "The transaction has locked what counter {} is written to, as by creating a counter type.",
                quoted(name)
            ))
            .set_hint("Commit first, or use counter_incr(), which counts with your transaction."),
        );
    }
}

fn is_commit_durable() -> bool {
    // SAFETY: a plain read of a variable of the process.
    unsafe { pg_sys::synchronous_commit > pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as i32 }
}

/// What came of trying to push.
enum Tried {
    Pushed(u32),
    /// The place is another database's now.
    NotOurs,
    NoCommitter,
    NoRoom,
}

/// Why a hit cannot be handed over for long.
#[derive(Clone, Copy)]
enum Obstacle {
    Places,
    Committer,
    Room,
}

impl Obstacle {
    fn raise(self) -> ! {
        count(Figure::HitsFailed, 1);
        let (message, hint) = match self {
            Self::Places => (
                "all committers are busy with other databases",
                "Raise counterx.max_committers and restart the server.",
            ),
            Self::Committer => (
                "there is no committer",
                "Raise max_worker_processes if the server's log says that there is no free background worker slot; else it says why a \"counterx committer\" could not begin.",
            ),
            Self::Room => (
                "there is no room for another hit",
                "Raise counterx.hit_queue_size and restart the server if committing is slow at times; the server's log says if the committer fails.",
            ),
        };
        raise(
            report(
                PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                message,
            )
            .set_detail(format!(
                "The hit has waited for {} seconds, and is not counted.",
                PATIENCE.as_secs()
            ))
            .set_hint(hint),
        )
    }
}

/// Hands the hit over. Waits where there is no room.
fn push(hit: &Hit) -> (Spot, u32) {
    let mut since = None;
    loop {
        let Some(spot) = place() else {
            let waiter = memory::listen_for_places();
            if place().is_none() {
                pause(&mut since, Obstacle::Places, waiter);
            }
            continue;
        };
        let mut tried = try_push(spot, hit);
        let mut waiter = None;
        if matches!(tried, Tried::NoCommitter | Tried::NoRoom) {
            // Whatever changes from here on is heard of.
            waiter = Some(spot.listen());
            tried = try_push(spot, hit);
        }
        match tried {
            Tried::Pushed(ticket) => return (spot, ticket),
            Tried::NotOurs => PLACE.set(None),
            Tried::NoCommitter => pause(&mut since, Obstacle::Committer, waiter),
            Tried::NoRoom => pause(&mut since, Obstacle::Room, waiter),
        }
    }
}

fn pause(since: &mut Option<Instant>, obstacle: Obstacle, waiter: Option<Waiter>) {
    let since = *since.get_or_insert_with(Instant::now);
    if since.elapsed() > PATIENCE {
        drop(waiter);
        obstacle.raise();
    }
    if let Some(waiter) = waiter {
        waiter.wait(TRY_EVERY);
    }
}

fn try_push(spot: Spot, hit: &Hit) -> Tried {
    let mut guard = spot.lock();
    let (place, entries) = guard.parts();
    if place.database != database() {
        return Tried::NotOurs;
    }
    let start = place.want(ports::now());
    let pushed = if place.admits(hit.waiter.is_none()) {
        place.queue.push(entries, hit).map_err(|Full| Tried::NoRoom)
    } else {
        Err(Tried::NoCommitter)
    };
    let latch = place.latch();
    drop(guard);
    if start {
        memory::wake_launcher();
    }
    match (pushed, latch) {
        (Ok(Pushed { ticket, wake }), latch) => {
            if let Some(latch) = latch.filter(|_| wake) {
                memory::wake(latch);
            }
            Tried::Pushed(ticket)
        }
        (Err(tried), _) => tried,
    }
}

fn database() -> u32 {
    // SAFETY: set once when the backend connected.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

/// This database's place; one that nobody uses becomes it, if no other database has waited for one for
/// longer. None: all are in use, and one of them was asked for.
fn place() -> Option<Spot> {
    if let Some(number) = PLACE.get() {
        return Spot::get(number);
    }
    let mut assignment = Assignment::lock()?;
    let database = database();
    let mut idle = None;
    let mut longest: Option<(i64, Spot)> = None;
    let mut makes_room = false;
    for spot in Spot::all() {
        let mut guard = spot.lock();
        let place = guard.place();
        if place.database == database {
            PLACE.set(Some(spot.number()));
            return Some(spot);
        }
        if place.is_idle() {
            // Nobody's before one that somebody may come back to.
            if idle.is_none() || place.database == 0 {
                idle = Some(spot);
            }
        } else {
            makes_room |= place.is_asked() || place.process() == Process::Leaving;
            if place.process() == Process::Working
                && longest.is_none_or(|(since, _)| place.since() < since)
            {
                longest = Some((place.since(), spot));
            }
        }
    }
    let is_next = assignment.line().join(database, ports::now());
    if let Some(spot) = idle {
        let mut guard = spot.lock();
        // Somebody may have come back to it.
        if is_next && guard.place().is_idle() {
            guard.place().claim(database);
            // The next one would take it for idle still.
            guard.place().want(ports::now());
            PLACE.set(Some(spot.number()));
            drop(guard);
            let others_wait = assignment.line().leave(database);
            drop(assignment);
            memory::wake_launcher();
            if others_wait {
                // There may be another place.
                memory::tell_of_place();
            }
            return Some(spot);
        }
    } else if let Some((_, spot)) = longest.filter(|_| !makes_room) {
        let mut guard = spot.lock();
        guard.place().ask();
        let latch = guard.place().latch();
        drop(guard);
        latch.into_iter().for_each(memory::wake);
    }
    None
}

/// A hit whose answer is waited for: given up where that ends by an error.
struct Waiting(Spot, u32);

impl Waiting {
    fn new(spot: Spot, ticket: u32) -> Self {
        WAITS_FOR.set(Some((spot.number(), ticket)));
        Self(spot, ticket)
    }

    /// Waits for the answer.
    fn answer(self) -> Answer {
        let Self(spot, ticket) = self;
        let mut alone_since: Option<Instant> = None;
        loop {
            let mut failure = None;
            let mut guard = spot.lock();
            let (place, entries) = guard.parts();
            let answer =
                (place.queue).collect(entries, ticket, |text| failure = Some(text.to_vec()));
            let start = answer.is_none() && place.want(ports::now());
            let is_alone = !matches!(place.process(), Process::Working | Process::Leaving);
            let room = place.queue.room_for_others();
            drop(guard);
            if room {
                spot.tell_of_room();
            }
            if let Some(answer) = answer {
                WAITS_FOR.set(None);
                if let (Answer::Failed(code), Some(text)) = (answer, failure) {
                    raise(failure::decode(code, &text));
                }
                return answer;
            }
            if start {
                memory::wake_launcher();
            }
            if !is_alone {
                alone_since = None;
            } else if alone_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE
                && give_up_untaken(spot, ticket)
            {
                Obstacle::Committer.raise();
            }
            sleep();
            check_interrupts();
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        withdraw();
    }
}

/// No committer has come. True: the hit is withdrawn. False: one has come now.
fn give_up_untaken(spot: Spot, ticket: u32) -> bool {
    let mut guard = spot.lock();
    let (place, entries) = guard.parts();
    // Nobody has taken it then.
    let is_alone = !matches!(place.process(), Process::Working | Process::Leaving);
    let gives_up = is_alone && !place.queue.is_answered(entries, ticket);
    if gives_up {
        place.queue.withdraw(entries, ticket);
        WAITS_FOR.set(None);
    }
    gives_up
}

fn sleep() {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: the process's own latch.
    unsafe {
        let timeout = LOOK_EVERY.as_millis() as core::ffi::c_long;
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, timeout, ANSWER.number());
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}

/// Gives up the hit that is waited for.
fn withdraw() -> Option<Withdrawn> {
    let (number, ticket) = WAITS_FOR.take()?;
    let spot = Spot::get(number)?;
    let mut guard = spot.lock();
    let (place, entries) = guard.parts();
    let withdrawn = place.queue.withdraw(entries, ticket);
    let room = place.queue.room_for_others();
    drop(guard);
    if room {
        spot.tell_of_room();
    }
    Some(withdrawn)
}

/// Does what the server asks for; an error gives up the hit, and says what is known of it.
fn check_interrupts() {
    // SAFETY: a flag that signal handlers set.
    if unsafe { pg_sys::InterruptPending } == 0 {
        return;
    }
    let check = || {
        pgrx::check_for_interrupts!();
        None
    };
    let error = PgTryBuilder::new(check).catch_others(Some).execute();
    let Some(error) = error else { return };
    let detail = match withdraw() {
        Some(Withdrawn::Taken) => "The hit was handed to the committer, which may count it still.",
        Some(Withdrawn::Answered(Answer::Counted { .. })) => "The hit has been counted.",
        Some(Withdrawn::Before | Withdrawn::Answered(_)) | None => "The hit is not counted.",
    };
    let (code, message) = match &error {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => {
            (report.sql_error_code(), report.message().to_owned())
        }
        CaughtError::RustPanic { .. } => error.rethrow(),
    };
    raise(report(code, message).set_detail(detail))
}

/// A session that is terminated while it waits leaves nothing behind.
fn withdraw_at_exit() {
    if !LEAVES.replace(true) {
        // SAFETY: once in a process.
        unsafe { pg_sys::before_shmem_exit(Some(before_exit), pg_sys::Datum::from(0)) };
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn before_exit(_code: core::ffi::c_int, _arg: pg_sys::Datum) {
    withdraw();
}

/// Sees to it that the commit is as durable as the session wants it to be.
fn make_durable(lsn: u64, flushed: bool) {
    if !flushed {
        // SAFETY: a position up to which the WAL was written.
        unsafe { pg_sys::XLogFlush(lsn) };
    }
    if standby::commit_may_wait() {
        // SAFETY: as a commit does it, which has the same to say when it is cancelled. Interrupts are held
        // off, as the function handles them itself.
        unsafe {
            pg_sys::InterruptHoldoffCount += 1;
            pg_sys::SyncRepWaitForLSN(lsn, true);
            pg_sys::InterruptHoldoffCount -= 1;
        }
    }
}
