//! The committer's transactions: one for a batch of hits; where that fails, one for each of them.
//!
//! # Invariant
//! [`in_transaction`] knows of the running transaction whether it has committed, in every moment, by a
//! callback of the server's. So whatever ends the process, what it has taken is answered or put back.

use crate::bounds::types;
use crate::figures::local::{self, Figure};
use crate::hits::failure::Failure;
use crate::hits::memory::{self, Spot};
use crate::pg::error::{log, quoted};
use crate::pg::room;
use crate::process::session;
use crate::store::catalog;
use crate::store::history;
use crate::write::change;
use crate::write::writing;
use counterx_core::escrow::Bounds;
use counterx_core::hits::{Answer, Change, Entry, Kind, Place, Queue};
use counterx_core::lane::{LANES, NameHash};
use pgrx::{PgSqlErrorCode, PgTryBuilder, pg_guard, pg_sys};
use std::cell::{Cell, RefCell};
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

/// So long a batch waits for a lock. What a session holds that waits for the batch, nobody sees.
pub const LOCK_TIMEOUT: &core::ffi::CStr = c"1s";

/// The same for what is tried again, by itself.
const SHORT_LOCK_TIMEOUT: &core::ffi::CStr = c"10ms";

/// Where many wait for a lock one by one, others are held up no longer than this by what nobody waits for.
const ROUND: Duration = Duration::from_secs(1);

/// Where flushes take longer than this, those who wait flush for themselves: the batch and then its own
/// flush are too much beside other writers, and it costs them a second sleep.
const SLOW_FLUSH: Duration = Duration::from_micros(500);

/// A hit that was taken.
pub struct Item {
    ticket: u32,
    kind: Kind,
    durable: bool,
    silent: bool,
    first: OwnChange,
    /// Further counters of the same hit.
    others: Vec<OwnChange>,
    /// One of them begins anew with each window, as was found when it was tried.
    has_window: Cell<bool>,
}

struct OwnChange {
    name: Vec<u8>,
    delta: i64,
}

impl Item {
    /// Copies a hit, as what it says is needed when it is answered already.
    fn of(entries: &[Entry], ticket: u32) -> Self {
        let own = |change: Change| OwnChange {
            name: room::copy(change.name),
            delta: change.delta,
        };
        let mut changes = Queue::changes(entries, ticket).map(own);
        let entry = &entries[ticket as usize];
        Self {
            ticket,
            kind: entry.kind(),
            durable: entry.is_durable(),
            silent: entry.is_silent(),
            first: changes.next().expect("a hit has a counter"),
            others: room::collect(changes),
            has_window: Cell::new(false),
        }
    }

    fn changes(&self) -> impl Iterator<Item = &OwnChange> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// The lanes that it is written to, as far as that is known: in which lane a window is, only a transaction can tell.
    fn lanes(&self) -> impl Iterator<Item = usize> {
        (self.changes())
            .filter(|_| !self.has_window.get())
            .map(|change| NameHash::of(&change.name).lane())
    }
}

/// What became of a hit within its transaction.
enum Verdict {
    Counted,
    Refused,
    Failed(Failure),
}

thread_local! {
    /// What became of the hits of the running transaction, if it commits.
    static CURRENT: RefCell<Vec<(u32, Verdict)>> = const { RefCell::new(Vec::new()) };
    /// The running transaction has committed.
    static COMMITTED: Cell<bool> = const { Cell::new(false) };
    /// It has flushed the WAL.
    static FLUSHED: Cell<bool> = const { Cell::new(false) };
    /// As it is set now.
    static SYNCHRONOUS: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Once in a committer.
pub fn register_callback() {
    // SAFETY: the function is valid for the life of the process.
    unsafe { pg_sys::RegisterXactCallback(Some(on_xact_event), std::ptr::null_mut()) };
}

/// Neither allocates nor fails.
#[pg_guard]
unsafe extern "C-unwind" fn on_xact_event(
    event: pg_sys::XactEvent::Type,
    _arg: *mut core::ffi::c_void,
) {
    if event == pg_sys::XactEvent::XACT_EVENT_COMMIT {
        COMMITTED.set(true);
    }
}

/// Runs `body` in a transaction of its own.
fn in_transaction(body: impl FnOnce()) -> Result<(), Failure> {
    COMMITTED.set(false);
    // SAFETY: a plain variable of the process.
    unsafe { pg_sys::XactLastCommitEnd = 0 };
    session::attempt(body, Failure::of)
}

const TRY_INSTEAD: &str = "counter_try_hit() answers false instead.";

/// Adds one hit. Errors of bounds are its own; any other one is the transaction's, and also those of bounds
/// where a hit has several counters: what was added to some of them has to be undone.
fn add(item: &Item) -> Verdict {
    let mut changes = item.changes();
    item.has_window
        .set(changes.any(|change| types::window_of(&change.name).is_some()));
    if !item.others.is_empty() {
        for OwnChange { name, delta } in item.changes() {
            change::add(name, *delta);
        }
        return Verdict::Counted;
    }
    let OwnChange { name, delta } = &item.first;
    let added = match item.kind {
        Kind::Try => change::try_add(name, *delta),
        _ => change::add_or_fail(name, *delta),
    };
    let Err(shortage) = added else {
        return Verdict::Counted;
    };
    if item.kind == Kind::Try {
        return Verdict::Refused;
    }
    let bounds = types::limits_of(name).map_or(Bounds::default(), |limits| limits.bounds);
    // What is raised there is made of texts alone, and leaves nothing behind.
    let tell = || change::raise_shortage(name, (*delta).into(), bounds, &shortage);
    PgTryBuilder::new(AssertUnwindSafe(tell))
        .catch_others(|error| {
            Verdict::Failed(Failure {
                hint: TRY_INSTEAD.to_owned(),
                ..Failure::of(&error)
            })
        })
        .execute()
}

fn count(item: &Item) {
    let verdict = add(item);
    CURRENT.with_borrow_mut(|current| room::push(current, (item.ticket, verdict)));
    failpoint!("committer.added");
}

/// Where there is history, hits that count down are written by themselves: what went up and what went down would not
/// be known otherwise. All are in the first part where that makes no difference.
fn apart(items: &[Item]) -> (Vec<&Item>, Vec<&Item>) {
    let goes_down = |item: &&Item| item.changes().any(|change| change.delta < 0);
    let (downs, ups): (Vec<_>, Vec<_>) = items.iter().partition(goes_down);
    let is_mixed = !ups.is_empty() && !downs.is_empty();
    if is_mixed && history::may_be_any(&catalog::shared()) {
        (ups, downs)
    } else {
        (items.iter().collect(), Vec::new())
    }
}

/// While those who wait flush for themselves, one batch in so much time is flushed here all the same, to see
/// how long that takes now. What they measure says little: they wait for each other's flushes.
const PROBE_EVERY: Duration = Duration::from_millis(200);

/// What the last commits with their flushes took. The quickest of them says what the disk takes: on a busy
/// machine most wait for a processor as well.
#[derive(Default)]
struct Flushes {
    took: [Duration; 8],
    next: usize,
}

impl Flushes {
    fn note(&mut self, took: Duration) {
        self.took[self.next] = took;
        self.next = (self.next + 1) % self.took.len();
    }

    fn are_slow(&self) -> bool {
        self.took.iter().all(|&took| took > SLOW_FLUSH)
    }
}

/// The committer's side of its place.
pub struct Batches {
    spot: Spot,
    flushes: Flushes,
    /// When a flush was measured last.
    measured_at: Instant,
    /// What nobody waits for and could not be counted yet.
    left: Vec<Item>,
    /// The log has been told why.
    told: bool,
}

impl Batches {
    /// Of a process that has entered this place.
    pub fn new(spot: Spot) -> Self {
        Self {
            spot,
            flushes: Flushes::default(),
            measured_at: Instant::now(),
            left: Vec::new(),
            told: false,
        }
    }

    /// Is there something that could not be counted yet?
    pub fn has_left(&self) -> bool {
        !self.left.is_empty()
    }

    /// Takes what there is, and counts it. `silent`: only what nobody waits for.
    pub fn count(&mut self, again: bool, silent: bool) {
        let mut items = if again {
            std::mem::take(&mut self.left)
        } else {
            Vec::new()
        };
        {
            let mut guard = self.spot.lock();
            let (place, entries) = guard.parts();
            let take = |place: &mut Place, entries: &mut [Entry]| match silent {
                true => place.queue.take_silent(entries),
                false => place.queue.take(entries),
            };
            while let Some(ticket) = take(place, entries) {
                room::push(&mut items, Item::of(entries, ticket));
            }
        }
        if items.is_empty() {
            return;
        }
        failpoint!("committer.taken");
        match self.commit(&items) {
            Ok(()) => self.told = false,
            // It may be one hit's fault, or a conflict that is over.
            Err(_) => self.count_one_by_one(items),
        }
    }

    /// So that each fails or succeeds by itself.
    fn count_one_by_one(&mut self, items: Vec<Item>) {
        let mut locked: [bool; LANES] = [false; LANES];
        let mut untried = Vec::new();
        let start = Instant::now();
        session::set(c"lock_timeout", SHORT_LOCK_TIMEOUT);
        for item in items {
            if item.silent && start.elapsed() > ROUND {
                room::push(&mut untried, item);
                continue;
            }
            let result = match item.lanes().any(|lane| locked[lane]) {
                // It would take the others' time as well.
                true => Err(lane_is_locked()),
                false => self.commit(std::slice::from_ref(&item)),
            };
            if let Err(mut failure) = result {
                if failure.code == PgSqlErrorCode::ERRCODE_CHECK_VIOLATION {
                    failure.hint = TRY_INSTEAD.to_owned();
                }
                // Of a hit of several lanes nobody knows which one it was.
                if item.others.is_empty() && failure.is_lock_timeout() {
                    for lane in item.lanes() {
                        locked[lane] = true;
                    }
                }
                self.fail(item, failure);
            }
        }
        session::set(c"lock_timeout", LOCK_TIMEOUT);
        // It is their turn first next time.
        for item in std::mem::replace(&mut self.left, untried) {
            room::push(&mut self.left, item);
        }
    }

    /// Counts these in one transaction, and answers. An error: none is counted, and none is answered.
    fn commit(&mut self, items: &[Item]) -> Result<(), Failure> {
        let durable = items.iter().any(|item| item.durable);
        let probes = self.measured_at.elapsed() > PROBE_EVERY;
        let flush = durable && (probes || !self.flushes.are_slow());
        if SYNCHRONOUS.replace(Some(flush)) != Some(flush) {
            // Nobody waits for a standby here: see the module's note.
            let level = if flush { c"local" } else { c"off" };
            session::set(c"synchronous_commit", level);
        }
        FLUSHED.set(flush);
        CURRENT.with_borrow_mut(Vec::clear);
        let start = Instant::now();
        in_transaction(|| {
            let (ups, downs) = apart(items);
            for item in &ups {
                count(item);
            }
            if !downs.is_empty() {
                writing::write_early();
            }
            for item in &downs {
                count(item);
            }
        })?;
        count_batch();
        crashpoint!("committer.committed");
        if flush {
            self.flushes.note(start.elapsed());
            self.measured_at = Instant::now();
        }
        let mut guard = self.spot.lock();
        let (place, entries) = guard.parts();
        let mut wake = Vec::with_capacity(items.len());
        answer_current(place, entries, |waiter| wake.push(waiter));
        let room = place.queue.room_for_others();
        drop(guard);
        crashpoint!("committer.answered");
        wake.into_iter().for_each(memory::wake);
        if room {
            self.spot.tell_of_room();
        }
        Ok(())
    }

    /// This one could not be counted.
    fn fail(&mut self, item: Item, failure: Failure) {
        let failure = if failure.is_lock_timeout() {
            lane_is_locked()
        } else {
            failure
        };
        let mut guard = self.spot.lock();
        let (place, entries) = guard.parts();
        if !Queue::is_waited_for(entries, item.ticket) {
            if failure.may_pass() {
                drop(guard);
                if !std::mem::replace(&mut self.told, true) {
                    let (code, why) = (crate::pg::error::sqlstate(failure.code), &failure.message);
                    log(format!(
                        "counterx: hits that nobody waits for cannot be counted now, will try again: {code}: {why}"
                    ));
                }
                return room::push(&mut self.left, item);
            }
            place
                .queue
                .answer(entries, item.ticket, Answer::Refused, b"");
            drop(guard);
            count_failure(&failure);
            let (name, why) = (quoted(&item.first.name), &failure.message);
            return log(format!(
                "counterx: a hit of counter {name} that nobody waited for is not counted: {why}"
            ));
        }
        if failure.code == PgSqlErrorCode::ERRCODE_QUERY_CANCELED {
            // The committer's statement, not that of who waits.
            return place.queue.put_back(entries, item.ticket);
        }
        let answer = Answer::Failed(failure.code as i32);
        let waiter = place
            .queue
            .answer(entries, item.ticket, answer, &failure.encode());
        let room = place.queue.room_for_others();
        drop(guard);
        count_failure(&failure);
        waiter.into_iter().for_each(memory::wake);
        if room {
            self.spot.tell_of_room();
        }
    }
}

/// That the committer's statement was cancelled says nothing to whoever waits for it.
fn lane_is_locked() -> Failure {
    Failure {
        code: PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
        message: "could not count the hit, as somebody keeps others from counting".to_owned(),
        detail: "The committer has waited for a lock in vain. The hit is not counted.".to_owned(),
        hint:
            "Try again when the transaction that creates or changes a counter type, say, has ended."
                .to_owned(),
    }
}

/// In numbers, the running transaction has committed.
fn count_batch() {
    let (counted, all) = CURRENT.with_borrow(|current| {
        let counted = |verdict: &Verdict| matches!(verdict, Verdict::Counted);
        let counted = current.iter().filter(|(_, verdict)| counted(verdict));
        (counted.count() as u64, current.len() as u64)
    });
    local::count(Figure::HitBatches, 1);
    local::count(Figure::HitsBatched, counted);
    // What fails otherwise has the whole transaction fail.
    local::count(Figure::HitsRefused, all - counted);
    local::hand_over();
}

/// Who has handed it over hears that it is not counted. What the transaction had counted is forgotten with it.
fn count_failure(failure: &Failure) {
    if failure.code == PgSqlErrorCode::ERRCODE_CHECK_VIOLATION {
        local::count(Figure::HitsRefused, 1);
        local::count(Figure::Refused, 1);
    } else {
        local::count(Figure::HitsFailed, 1);
    }
    local::hand_over();
}

/// The running transaction has committed: says so to those who wait. Those to be woken are handed to `wake`.
fn answer_current(place: &mut Place, entries: &mut [Entry], mut wake: impl FnMut(usize)) {
    let counted = Answer::Counted {
        // SAFETY: a plain variable of the process.
        lsn: unsafe { pg_sys::XactLastCommitEnd },
        flushed: FLUSHED.get(),
    };
    let current = CURRENT.with(|current| {
        current
            .try_borrow_mut()
            .map(|mut it| std::mem::take(&mut *it))
    });
    // Borrowed only by who adds to it, before the commit.
    for (ticket, verdict) in current.unwrap_or_default() {
        let (answer, text) = match verdict {
            Verdict::Counted => (counted, Vec::new()),
            Verdict::Refused => (Answer::Refused, Vec::new()),
            Verdict::Failed(failure) => (Answer::Failed(failure.code as i32), failure.encode()),
        };
        if let Some(waiter) = place.queue.answer(entries, ticket, answer, &text) {
            wake(waiter);
        }
    }
}

/// The process ends: what has committed is answered, what has not is put back. Those to be woken are handed
/// to `wake`.
pub fn end(place: &mut Place, entries: &mut [Entry], wake: impl FnMut(usize)) {
    if COMMITTED.get() {
        answer_current(place, entries, |_| {});
    }
    place.queue.put_back_taken(entries);
    place.gone();
    Queue::for_each_waiter(entries, wake);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_disk_is_noticed_and_a_busy_machine_is_not_one() {
        let after = |took: &mut dyn Iterator<Item = u64>| {
            let mut flushes = Flushes::default();
            took.for_each(|took| flushes.note(Duration::from_micros(took)));
            flushes
        };
        assert!(after(&mut std::iter::repeat_n(2_000, 8)).are_slow());
        assert!(!after(&mut std::iter::repeat_n(2_000, 7)).are_slow());
        let mut busy = (0..500).map(|n| if n % 5 == 0 { 150 } else { 2_000 });
        assert!(!after(&mut busy).are_slow());
        let mut mended = std::iter::repeat_n(5_000, 200).chain([100]);
        assert!(!after(&mut mended).are_slow());
    }
}
