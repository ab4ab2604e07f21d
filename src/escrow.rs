//! Bounded counters: what the transactions in flight have reserved of them.
//!
//! The rules are in `counterx_core::escrow`; this is where accounts live, and when reservations are
//! made and given back. What one transaction has done to a counter, and so has reserved, is a path of
//! `counterx_core::path`; what its snapshot has to do with it is in `levels`.
//!
//! # With shared memory
//! An account lies in shared memory while somebody uses it. An increment reserves, and is granted at
//! once if the account knows enough; else it reads the counter with a new snapshot, *after* having
//! reserved. What is only contended waits a little for others to end. Reservations are given back in
//! the callbacks that run when a transaction has become visible or has aborted, and when a
//! subtransaction aborts.
//!
//! # Without (the library is not in `shared_preload_libraries`)
//! A lock on the counter's name, kept to the end of the transaction, lets one in at a time. Whether
//! there is shared memory is a fact of the server, the same for all its processes, so the two ways
//! never meet.
//!
//! # Note about locking
//! Accounts are spread over partitions by their names' hashes. A partition's LWLock protects its
//! slots; it is held for a few dozen instructions, none of which can fail, and nothing is waited for
//! meanwhile. Who waits for others sleeps on the partition's condition variable, without the lock.
//! A process that dies with the lock takes the server through crash recovery, which makes all anew:
//! no transaction is in flight then. (Prepared ones have no reservations: see `xact.rs`.)

mod levels;
mod memory;

use crate::pg::error::{quoted, raise, report};
use crate::pg::lock::BoundLock;
use crate::pg::ports;
use crate::pg::room;
use crate::read;
use crate::restored;
use crate::settings;
use crate::types;
use crate::xact;
use counterx_core::escrow::{self, Account, Amounts, Bounds, End, Noted, Seen, Verdict};
use counterx_core::lane::{MAX_NAME_BYTES, NameHash};
use counterx_core::path::{Change, Path, Paths, Step};
use counterx_core::room::{NoMemory, keep_spare};
use hashbrown::HashTable;
use memory::{Guard, Partition, Waiter};
use pgrx::{PgSqlErrorCode, pg_sys};
use std::cell::RefCell;
use std::time::Instant;

pub use levels::note_reads;
pub use memory::register;

/// A place for an account.
#[derive(Clone, Copy)]
#[repr(C)]
struct Slot {
    account: Account,
    /// Of the type whose bounds the account was used with last.
    generation: i64,
    database: u32,
    /// Transactions that use the account; 0: it may be given to another counter.
    users: u32,
    /// How often somebody has reserved, and has given back; both wrap around.
    reserved: u32,
    given_back: u32,
    name_length: u16,
    name: [u8; MAX_NAME_BYTES],
}

impl Slot {
    const FREE: Self = Self {
        account: Account::NEW,
        generation: 0,
        database: 0,
        users: 0,
        reserved: 0,
        given_back: 0,
        name_length: 0,
        name: [0; MAX_NAME_BYTES],
    };

    fn is_of(&self, database: u32, name: &[u8]) -> bool {
        self.database == database && self.name[..usize::from(self.name_length)] == *name
    }

    fn release(&mut self, amounts: Amounts, end: End) {
        self.account.release(amounts, end);
        self.given_back = self.given_back.wrapping_add(1);
    }
}

/// A counter's bounds, and the generation of its type that they are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The bounds.
    pub bounds: Bounds,
    /// Differs between any two definitions of a type.
    pub generation: i64,
}

/// Why an increment is not granted.
pub struct Shortage {
    /// The counter's value, with what the transaction has done.
    pub value: i128,
    /// What could have been taken for certain; None: there is no minimum.
    pub available: Option<i64>,
    /// Is what others have reserved in the way as well?
    pub others: bool,
    /// Is something on hold?
    pub held: bool,
}

/// What this transaction has to do with a counter. What it has done, and reserved for that, is the path
/// of the same number.
struct Own {
    hash: NameHash,
    name: Box<[u8]>,
    /// The slot, once one was taken.
    slot: Option<usize>,
    /// Of the type by which all of this transaction's changes were checked. None: not all were.
    generation: Option<i64>,
    /// What the transaction's snapshot shows, once that was looked at.
    base: Option<levels::Base>,
    /// What was granted at most by what one snapshot shows, rolled back or not.
    granted: Amounts,
    /// The command that has changed it last. Snapshots of later ones were taken after that.
    command: pg_sys::CommandId,
}

/// This transaction's reservations.
#[derive(Default)]
struct Reservations {
    owns: Vec<Own>,
    index: HashTable<usize>,
    paths: Paths,
}

thread_local! {
    static RESERVATIONS: RefCell<Reservations> = RefCell::default();
}

impl Reservations {
    fn find(&self, hash: NameHash, name: &[u8]) -> Option<usize> {
        let is_it = |&at: &usize| *self.owns[at].name == *name;
        self.index.find(hash.get(), is_it).copied()
    }

    /// The entry of a counter; and room for its next step, as noting a reservation must not fail.
    ///
    /// # Errors
    /// [`NoMemory`].
    fn prepare(&mut self, hash: NameHash, name: &[u8], generation: i64) -> Result<usize, NoMemory> {
        keep_spare()?;
        self.paths.prepare()?;
        if let Some(at) = self.find(hash, name) {
            let own = &mut self.owns[at];
            own.generation = own.generation.filter(|&known| known == generation);
            return Ok(at);
        }
        self.owns.try_reserve(1)?;
        let owns = &self.owns;
        self.index.try_reserve(1, |&at| owns[at].hash.get())?;
        // What was written early of it was checked as well, if it had these bounds then.
        let unchecked = xact::pending_tally(hash, name).is_some()
            || (xact::has_flushed_early() && types::have_changed());
        self.owns.push(Own {
            hash,
            name: name.into(),
            slot: None,
            generation: (!unchecked).then_some(generation),
            base: None,
            granted: Amounts::NONE,
            command: pg_sys::FirstCommandId,
        });
        let at = self.paths.push();
        let owns = &self.owns;
        self.index
            .insert_unique(hash.get(), at, |&at| owns[at].hash.get());
        Ok(at)
    }

    /// Does not allocate, and does not fail.
    fn abort_subxact(&mut self, level: u32) {
        let owns = &self.owns;
        self.paths.abort_subxact(level, |at, amounts| {
            owns[at].give_back(amounts, End::Aborted, false);
        });
    }

    /// Does not allocate, and does not fail.
    fn end(&mut self, end: End) {
        for (at, own) in self.owns.iter().enumerate() {
            own.give_back(self.paths.get(at).amounts(), end, true);
        }
        self.owns.clear();
        self.index.clear();
        self.paths.clear();
    }
}

impl Own {
    fn was_changed_since(&self, command: pg_sys::CommandId) -> bool {
        self.command >= command && !ports::isolation_uses_xact_snapshot()
    }

    fn give_back(&self, amounts: Amounts, end: End, leave: bool) {
        let (Some(partition), Some(slot)) = (Partition::of(self.hash.get()), self.slot) else {
            return;
        };
        {
            let mut guard = partition.lock();
            let slot = &mut guard.slots()[slot];
            slot.release(amounts, end);
            slot.users -= u32::from(leave);
        }
        partition.wake();
    }
}

/// Does the running transaction hold anything back from others?
pub fn has_reservations() -> bool {
    RESERVATIONS.with_borrow(|all| {
        let mut all = (0..all.owns.len()).map(|at| all.paths.get(at));
        all.any(|path| !path.amounts().is_zero())
    })
}

/// What the running transaction has done to a counter, as far as its bounds are concerned.
fn own_path(hash: NameHash, name: &[u8]) -> Path {
    RESERVATIONS.with_borrow(|all| {
        let known = all.find(hash, name);
        known.map_or(Path::NEW, |at| all.paths.get(at))
    })
}

/// The bounded counters that the running transaction has changed since a snapshot of this command was
/// taken. That may not show what they were changed on top of: see `read.rs`.
///
/// None in a transaction that goes by one snapshot, as that bears what is granted: see `levels`.
pub fn changed_since(command: pg_sys::CommandId) -> Vec<Box<[u8]>> {
    RESERVATIONS.with_borrow(|all| {
        let since = all.owns.iter().filter(|own| own.was_changed_since(command));
        since.map(|own| own.name.clone()).collect()
    })
}

/// Is this counter one of them?
pub fn was_changed_since(name: &[u8], command: pg_sys::CommandId) -> bool {
    RESERVATIONS.with_borrow(|all| {
        !all.owns.is_empty()
            && (all.find(NameHash::of(name), name))
                .is_some_and(|at| all.owns[at].was_changed_since(command))
    })
}

/// The generation of the type by whose bounds all changes of a counter by the running transaction
/// were checked. None: there is no such one.
pub fn generation_of(hash: NameHash, name: &[u8]) -> Option<i64> {
    RESERVATIONS.with_borrow(|all| {
        let known = all.find(hash, name)?;
        all.owns[known].generation
    })
}

/// The transaction has ended; its changes, if it has committed, are visible. Neither allocates nor
/// fails.
pub fn after_end(end: End) {
    RESERVATIONS.with(|all| {
        // Borrowed only when the session ends in the middle of a call; see `xact.rs`.
        if let Ok(mut all) = all.try_borrow_mut() {
            all.end(end);
        }
    });
}

/// The subtransaction at this level was rolled back. Neither allocates nor fails.
pub fn abort_subxact(level: u32) {
    RESERVATIONS.with(|all| {
        if let Ok(mut all) = all.try_borrow_mut() {
            all.abort_subxact(level);
        }
    });
}

/// The subtransaction at this level was released.
pub fn release_subxact(level: u32) {
    RESERVATIONS.with_borrow_mut(|all| all.paths.release_subxact(level));
}

/// Reserves what a delta needs, for the running (sub)transaction. To be called before the delta is
/// added to the map.
///
/// # Errors
/// [`Shortage`] when a bound could be broken. Raises 22003 for numbers out of range, 53400 when
/// there is no free account.
pub fn request(name: &[u8], delta: i64, limits: Limits) -> Result<(), Shortage> {
    request_changes(name, &[Change::delta(delta)], limits)
}

/// The same for deltas that come one after the other, and may be out of range in all.
///
/// # Errors
/// As of [`request`].
pub fn request_both(name: &[u8], deltas: [i64; 2], limits: Limits) -> Result<(), Shortage> {
    request_changes(name, &deltas.map(Change::delta), limits)
}

/// The same for a hold, which is to be inserted then.
///
/// # Errors
/// As of [`request`].
pub fn request_hold(name: &[u8], amount: i64, limits: Limits) -> Result<(), Shortage> {
    request_changes(name, &[Change::hold(amount)], limits)
}

fn request_changes(name: &[u8], changes: &[Change], limits: Limits) -> Result<(), Shortage> {
    restored::check(name);
    let call = Call::new(name, changes, limits.generation);
    let bounds = limits.bounds;
    let partition = Partition::of(call.hash.get());
    if call.step.wanted().is_zero() {
        // That the counter is changed by these bounds is known from here on: see flush.rs.
        call.note();
        return Ok(());
    }
    let result = match partition {
        Some(partition) => call.request_shared(partition, bounds),
        None => call.request_alone(bounds),
    };
    match result {
        Ok(noted) => {
            failpoint!("escrow.granted");
            call.check_snapshot(bounds, noted, partition.is_some());
            Ok(())
        }
        Err(shortage) => Err(call.refusal_by_snapshot(bounds, shortage)),
    }
}

/// A hold that others see is gone, or one that the transaction has made itself. Reserves nothing.
pub fn note_release(name: &[u8], change: Change, generation: i64) {
    Call::new(name, &[change], generation).note();
}

/// Reserves what is done with a hold, which keeps room for it: its end, and what comes instead.
///
/// To be called before the caller looks whether the hold has expired: see `holds.rs`.
pub fn reserve_held(name: &[u8], changes: &[Change], generation: i64) {
    restored::check(name);
    let call = Call::new(name, changes, generation);
    match Partition::of(call.hash.get()) {
        _ if call.step.wanted().is_zero() => call.note(),
        Some(partition) => {
            call.reserve(partition, Bounds::default());
        }
        None => {
            BoundLock::take(name);
            call.note();
        }
    }
}

/// What the running transaction could take now. None: there is no minimum.
///
/// One that goes by one snapshot can take no more than that shows; and a serializable one is told nothing
/// else.
pub fn available(name: &[u8], bounds: Bounds) -> Option<i64> {
    let by_snapshot = ports::isolation_uses_xact_snapshot().then(|| seen_available(name, bounds));
    match by_snapshot {
        Some(available) if ports::isolation_is_serializable() => available,
        Some(available) => available.min(latest_available(name, bounds)),
        None => latest_available(name, bounds),
    }
}

fn seen_available(name: &[u8], bounds: Bounds) -> Option<i64> {
    let own = own_path(NameHash::of(name), name);
    let clock = clock();
    let seen = levels::read_as_seen(name, clock);
    escrow::available(bounds, seen, &own, clock, Noted::NOBODY)
}

fn latest_available(name: &[u8], bounds: Bounds) -> Option<i64> {
    let hash = NameHash::of(name);
    let own = own_path(hash, name);
    let clock = clock();
    // As in a request: who commits before the reading is part of it, others are in here.
    let noted = Partition::of(hash.get()).and_then(|partition| {
        let mut guard = partition.lock();
        let at = find_slot(&mut guard, hash, name)?;
        Some(guard.slots()[at].account.note(own.amounts()))
    });
    let seen = read::seen_by_others(name, clock);
    escrow::available(bounds, seen, &own, clock, noted.unwrap_or(Noted::NOBODY))
}

/// What the running transaction could take if no other one took anything. None: there is no minimum.
pub fn most(name: &[u8], bounds: Bounds) -> Option<i64> {
    if ports::isolation_is_serializable() {
        return seen_available(name, bounds);
    }
    let clock = clock();
    let seen = read::seen_by_others(name, clock);
    let own = own_path(NameHash::of(name), name);
    escrow::available(bounds, seen, &own, clock, Noted::NOBODY)
}

/// Would the value, as the running transaction would leave it now, stay above its minimum if so much
/// more were taken? What a hold has kept room for does, unless a clock was set back past its end.
pub fn has_room(name: &[u8], amount: i64, bounds: Bounds) -> bool {
    let value = read::latest_quietly(name);
    bounds
        .min
        .is_none_or(|min| value - i128::from(amount) >= i128::from(min))
}

/// The time by which holds expire: it never goes back.
pub fn clock() -> i64 {
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    Partition::of(0).map_or(now, |partition| partition.clock(now))
}

/// One request.
struct Call<'a> {
    name: &'a [u8],
    hash: NameHash,
    /// Its entry in the transaction's reservations.
    at: usize,
    generation: i64,
    step: Step,
}

/// What was found when it was reserved.
struct Reserved {
    slot: usize,
    noted: Noted,
    reserved: u32,
    given_back: u32,
    covered: bool,
}

impl<'a> Call<'a> {
    fn new(name: &'a [u8], changes: &[Change], generation: i64) -> Self {
        let hash = NameHash::of(name);
        let prepared = RESERVATIONS.with_borrow_mut(|all| {
            let at = all.prepare(hash, name, generation)?;
            Ok((at, all.paths.get(at)))
        });
        let (at, before) = room::granted(prepared);
        let after = (changes.iter()).try_fold(before, |path, change| path.then(*change));
        Self {
            name,
            hash,
            at,
            generation,
            step: Step {
                before,
                after: after.unwrap_or_else(|| out_of_range(name)),
            },
        }
    }

    fn note(&self) {
        self.set(self.step.after);
    }

    fn set(&self, path: Path) {
        let level = ports::xact_nest_level();
        // SAFETY: marks the command as one that writes, so that the next one has another number.
        let command = unsafe { pg_sys::GetCurrentCommandId(true) };
        RESERVATIONS.with_borrow_mut(|all| {
            all.owns[self.at].command = command;
            all.paths.set(level, self.at, path);
        });
    }

    /// To be looked up after the reservation, by those who lean on a hold.
    fn now(&self, clock_before: i64) -> i64 {
        if self.step.after.backed_until() == i64::MAX {
            clock_before
        } else {
            clock()
        }
    }

    fn shortage(&self, bounds: Bounds, seen: Seen, now: i64, noted: Noted) -> Shortage {
        let own = &self.step.before;
        let others = if self.step.wanted().takes != 0 {
            noted.others.takes_at(seen.clock)
        } else {
            noted.others.amounts.adds
        };
        Shortage {
            value: seen.value + i128::from(own.value()),
            available: escrow::available(bounds, seen, own, now, noted),
            others: others != 0,
            held: seen.held > own.released_at(now).into(),
        }
    }

    fn request_alone(&self, bounds: Bounds) -> Result<Noted, Shortage> {
        let lock = BoundLock::take(self.name);
        let clock = clock();
        let seen = read::seen_by_others(self.name, clock);
        let noted = Noted::NOBODY;
        if escrow::check(bounds, seen, &self.step, clock, noted) == Verdict::Granted {
            self.note();
            Ok(noted)
        } else {
            // Who has reserved nothing holds nobody up, least of all when he is prepared.
            lock.release();
            Err(self.shortage(bounds, seen, clock, noted))
        }
    }

    fn request_shared(&self, partition: Partition, bounds: Bounds) -> Result<Noted, Shortage> {
        let mut deadline = None;
        loop {
            // Before the reservation: who confirms a hold that this reading finds expired has to
            // find it expired as well, unless he had reserved before, and is noted.
            let clock = clock();
            let reserved = self.reserve(partition, bounds);
            if reserved.covered {
                return Ok(reserved.noted);
            }
            // Should this fail, the abort of the subtransaction gives back what was reserved.
            failpoint!("escrow.reserved");
            // After it: who leans on a hold that was released is like one who confirms it.
            let now = self.now(clock);
            let seen = read::seen_by_others(self.name, clock);
            let slot = reserved.slot;
            partition.lock().slots()[slot]
                .account
                .learn(reserved.noted, seen);
            let verdict = escrow::check(bounds, seen, &self.step, now, reserved.noted);
            if verdict == Verdict::Granted {
                return Ok(reserved.noted);
            }
            self.give_back(partition, &reserved);
            // What was on hold at the reading, and is not any more, is seen as free the next time.
            let until = self.step.after.backed_until();
            if clock < until && until <= now {
                continue;
            }
            let until = *deadline.get_or_insert_with(|| Instant::now() + settings::escrow_wait());
            let left = until.saturating_duration_since(Instant::now());
            if verdict == Verdict::Refused || left.is_zero() {
                return Err(self.shortage(bounds, seen, now, reserved.noted));
            }
            let known = reserved.given_back.wrapping_add(1);
            self.wait_for_room(partition, bounds, slot, known, until);
        }
    }

    /// Waits until others have ended so that it is worth another try, or until that time.
    ///
    /// Looks without reserving. Many who tried again at once would find what each of them has reserved, give
    /// it back, wake the others by that, and go on so without anybody being granted what there is. Who
    /// reserves while nobody else does, is granted it.
    fn wait_for_room(
        &self,
        partition: Partition,
        bounds: Bounds,
        slot: usize,
        mut known: u32,
        until: Instant,
    ) {
        loop {
            {
                // Who ends after this wakes us; who has ended since we noted him is seen here.
                let waiter = Waiter::new(partition);
                while partition.lock().slots()[slot].given_back == known {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return;
                    }
                    waiter.wait(left);
                }
            }
            let noted = {
                let mut guard = partition.lock();
                let slot = &guard.slots()[slot];
                known = slot.given_back;
                slot.account.note(self.step.before.amounts())
            };
            let clock = clock();
            let seen = read::seen_by_others(self.name, clock);
            let verdict = escrow::check(bounds, seen, &self.step, clock, noted);
            if verdict != Verdict::Contended || until <= Instant::now() {
                return;
            }
        }
    }

    /// Reserves, and notes it. Is it covered by what the account knows?
    fn reserve(&self, partition: Partition, bounds: Bounds) -> Reserved {
        let known = RESERVATIONS.with_borrow(|all| all.owns[self.at].slot);
        let mut guard = partition.lock();
        let Some(at) = known.or_else(|| take_slot(&mut guard, self.hash, self.name)) else {
            drop(guard);
            no_slot()
        };
        let slot = &mut guard.slots()[at];
        if slot.generation != self.generation {
            // Increments may have gone past the account while the counter had no bounds.
            slot.account.forget();
            slot.generation = self.generation;
        }
        let noted = slot.account.reserve_step(&self.step);
        slot.users += u32::from(known.is_none());
        slot.reserved = slot.reserved.wrapping_add(1);
        let reserved = Reserved {
            slot: at,
            noted,
            reserved: slot.reserved,
            given_back: slot.given_back,
            covered: slot.account.is_covered(bounds, self.step.wanted()),
        };
        drop(guard);
        RESERVATIONS.with_borrow_mut(|all| all.owns[self.at].slot = Some(at));
        self.note();
        reserved
    }

    /// Gives back what was not granted. Only those who have come since can have been kept by it.
    fn give_back(&self, partition: Partition, reserved: &Reserved) {
        self.set(self.step.before);
        let others_have_come = {
            let mut guard = partition.lock();
            let slot = &mut guard.slots()[reserved.slot];
            slot.release(self.step.wanted(), End::Aborted);
            slot.reserved != reserved.reserved
        };
        if others_have_come {
            partition.wake();
        }
    }
}

fn my_database() -> u32 {
    // SAFETY: set once when the backend connected.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

/// The counter's slot, if it has one.
fn find_slot(guard: &mut Guard, hash: NameHash, name: &[u8]) -> Option<usize> {
    let database = my_database();
    let mut from = 0;
    while let Some(found) = guard.hashes()[from..]
        .iter()
        .position(|&known| known == hash.get())
    {
        let at = from + found;
        if guard.slots()[at].is_of(database, name) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// The counter's slot, or a free one made its own.
fn take_slot(guard: &mut Guard, hash: NameHash, name: &[u8]) -> Option<usize> {
    if let Some(known) = find_slot(guard, hash, name) {
        return Some(known);
    }
    let at = guard.slots().iter().position(|slot| slot.users == 0)?;
    guard.hashes()[at] = hash.get();
    let slot = &mut guard.slots()[at];
    *slot = Slot {
        database: my_database(),
        name_length: name.len() as u16,
        ..Slot::FREE
    };
    slot.name[..name.len()].copy_from_slice(name);
    Some(at)
}

fn out_of_range(name: &[u8]) -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
            format!(
                "the changes of bounded counter {} in this transaction are out of range for type bigint",
                quoted(name)
            ),
        )
        .set_hint("Use smaller deltas."),
    )
}

fn no_slot() -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            "too many bounded counters are being changed at the same time",
        )
        .set_hint("Raise counterx.escrow_entries and restart the server, or change fewer bounded counters in one transaction."),
    )
}
