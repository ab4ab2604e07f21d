//! Bounded counters: what the transactions in flight have reserved of them.
//!
//! The rules are in `counterx_core::escrow`; this is where accounts live, and when reservations are
//! made and given back.
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

mod memory;

use crate::notes;
use crate::pg::error::{quoted, raise, report};
use crate::pg::lock::BoundLock;
use crate::pg::ports;
use crate::pg::snapshot;
use crate::read;
use crate::settings;
use crate::xact;
use counterx_core::escrow::{self, Account, Amounts, Bounds, End, Noted, Seen, Standing, Verdict};
use counterx_core::lane::{MAX_NAME_BYTES, NameHash};
use hashbrown::HashTable;
use memory::{Guard, Partition, Waiter};
use pgrx::{PgSqlErrorCode, pg_sys};
use std::cell::RefCell;
use std::time::Instant;

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
    /// The counter's value as others see it.
    pub value: i128,
    /// What could have been taken for certain; None: there is no minimum.
    pub available: Option<i64>,
}

/// What this transaction has reserved of a counter.
struct Own {
    hash: NameHash,
    name: Box<[u8]>,
    /// The slot, once one was taken.
    slot: Option<usize>,
    /// Of the type by which all of this transaction's changes were checked. None: not all were.
    generation: Option<i64>,
    amounts: Amounts,
    /// When the first of the holds expires that the transaction has confirmed.
    backed_until: i64,
}

struct Op {
    level: u32,
    own: usize,
    amounts: Amounts,
}

/// This transaction's reservations: all of each counter, and in which subtransaction they were made.
#[derive(Default)]
struct Reservations {
    owns: Vec<Own>,
    index: HashTable<usize>,
    log: Vec<Op>,
}

thread_local! {
    static RESERVATIONS: RefCell<Reservations> = RefCell::default();
}

impl Reservations {
    fn find(&self, hash: NameHash, name: &[u8]) -> Option<usize> {
        let is_it = |&at: &usize| *self.owns[at].name == *name;
        self.index.find(hash.get(), is_it).copied()
    }

    /// The entry of a counter; and room in the log, as noting a reservation must not fail.
    fn prepare(&mut self, hash: NameHash, name: &[u8], generation: i64) -> usize {
        self.log.reserve(1);
        if let Some(at) = self.find(hash, name) {
            let own = &mut self.owns[at];
            own.generation = own.generation.filter(|&known| known == generation);
            return at;
        }
        let at = self.owns.len();
        let unchecked = xact::pending_tally(hash, name).is_some() || xact::has_flushed_early();
        self.owns.push(Own {
            hash,
            name: name.into(),
            slot: None,
            generation: (!unchecked).then_some(generation),
            amounts: Amounts::default(),
            backed_until: i64::MAX,
        });
        let owns = &self.owns;
        self.index
            .insert_unique(hash.get(), at, |&at| owns[at].hash.get());
        at
    }

    fn note(&mut self, at: usize, amounts: Amounts) {
        let level = ports::xact_nest_level();
        self.owns[at].amounts = self.owns[at].amounts.plus(amounts);
        match self.log.last_mut() {
            Some(last) if last.level == level && last.own == at => {
                last.amounts = last.amounts.plus(amounts);
            }
            _ => self.log.push(Op {
                level,
                own: at,
                amounts,
            }),
        }
    }

    /// Takes back what was noted last.
    fn unnote(&mut self, at: usize, amounts: Amounts) {
        self.owns[at].amounts = self.owns[at].amounts.minus(amounts);
        if let Some(last) = self.log.last_mut() {
            last.amounts = last.amounts.minus(amounts);
        }
    }

    /// Does not allocate, and does not fail.
    fn abort_subxact(&mut self, level: u32) {
        while self.log.last().is_some_and(|op| op.level >= level) {
            let Some(op) = self.log.pop() else { break };
            let own = &mut self.owns[op.own];
            own.amounts = own.amounts.minus(op.amounts);
            own.give_back(op.amounts, End::Aborted, false);
        }
    }

    fn release_subxact(&mut self, level: u32) {
        for op in self.log.iter_mut().rev() {
            if op.level < level {
                break;
            }
            op.level = level - 1;
        }
    }

    /// Does not allocate, and does not fail.
    fn end(&mut self, end: End) {
        for own in &self.owns {
            own.give_back(own.amounts, end, true);
        }
        self.owns.clear();
        self.index.clear();
        self.log.clear();
    }
}

impl Own {
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
    RESERVATIONS.with_borrow(|all| all.owns.iter().any(|own| !own.amounts.is_zero()))
}

/// What the running transaction has reserved of a counter.
pub fn reserved(hash: NameHash, name: &[u8]) -> Amounts {
    RESERVATIONS.with_borrow(|all| {
        let known = all.find(hash, name);
        known.map_or_else(Amounts::default, |at| all.owns[at].amounts)
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
    RESERVATIONS.with_borrow_mut(|all| all.release_subxact(level));
}

/// Reserves what a delta needs, for the running (sub)transaction. To be called before the delta is
/// added to the map.
///
/// # Errors
/// [`Shortage`] when a bound could be broken. Raises 22003 for numbers out of range, 53400 when
/// there is no free account.
pub fn request(name: &[u8], delta: i64, limits: Limits) -> Result<(), Shortage> {
    let call = Call::new(name, delta, limits.generation);
    let result = match Partition::of(call.hash.get()) {
        // That the counter is changed by these bounds is known from here on: see flush.rs.
        _ if call.wanted.is_zero() => Ok(()),
        Some(partition) => call.request_shared(partition, limits.bounds),
        None => call.request_alone(limits.bounds),
    };
    if result.is_ok() {
        failpoint!("escrow.granted");
    }
    if ports::isolation_is_serializable() {
        // A refusal tells what the value is. To be granted tells nothing that another order of the
        // transactions would not: grants commute.
        let hash = call.hash;
        if result.is_err() || notes::has_read(hash) {
            check_for_contradiction(name);
        }
    }
    result
}

/// The latest value was used for a decision. A serializable transaction must not see another one.
fn check_for_contradiction(name: &[u8]) {
    let seen = read::written_at(name, snapshot::active_or_latest().as_ptr());
    let latest = snapshot::LatestSnapshot::take();
    if seen != read::written_at(name, latest.as_ptr()) {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                format!(
                    "could not serialize access due to concurrent change of counter {}",
                    quoted(name)
                ),
            )
            .set_hint("Retry the transaction."),
        );
    }
}

/// Reserves what confirming a hold takes, which the hold keeps room for.
///
/// To be called before the caller looks whether the hold has expired: see `holds.rs`.
pub fn reserve_held(name: &[u8], amount: i64, expires_at: i64, generation: i64) {
    let mut call = Call::new(name, -amount, generation);
    call.wanted.backed = call.wanted.takes;
    call.backed_until = expires_at;
    match Partition::of(call.hash.get()) {
        Some(partition) => {
            call.reserve(partition, Bounds::default());
        }
        None => {
            BoundLock::take(name);
            call.note();
        }
    }
}

/// Would the value, as the running transaction would leave it now, stay above its minimum if so much
/// more were taken? What a hold has kept room for does, unless a clock was set back past its end.
pub fn has_room(name: &[u8], amount: i64, bounds: Bounds) -> bool {
    let latest = snapshot::LatestSnapshot::take();
    let value = read::tally_at(name, latest.as_ptr()).value;
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
    /// Reserved before by this transaction.
    own: Standing,
    wanted: Amounts,
    /// When the hold expires that keeps room for what is wanted.
    backed_until: i64,
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
    fn new(name: &'a [u8], delta: i64, generation: i64) -> Self {
        let hash = NameHash::of(name);
        let (at, own) = RESERVATIONS.with_borrow_mut(|all| {
            let at = all.prepare(hash, name, generation);
            let own = Standing {
                amounts: all.owns[at].amounts,
                backed_until: all.owns[at].backed_until,
            };
            (at, own)
        });
        let fits = |wanted: &Amounts| own.amounts.checked_add(*wanted).is_some();
        let wanted = Amounts::of(delta).filter(fits);
        Self {
            name,
            hash,
            at,
            generation,
            own,
            wanted: wanted.unwrap_or_else(|| out_of_range(name)),
            backed_until: i64::MAX,
        }
    }

    fn note(&self) {
        RESERVATIONS.with_borrow_mut(|all| {
            all.note(self.at, self.wanted);
            let own = &mut all.owns[self.at];
            own.backed_until = own.backed_until.min(self.backed_until);
        });
    }

    fn shortage(&self, bounds: Bounds, seen: Seen, noted: Noted) -> Shortage {
        Shortage {
            value: seen.value,
            available: escrow::available(bounds, seen, self.own, noted),
        }
    }

    fn request_alone(&self, bounds: Bounds) -> Result<(), Shortage> {
        let lock = BoundLock::take(self.name);
        let seen = read::seen_by_others(self.name, clock());
        let noted = Noted::NOBODY;
        if escrow::check(bounds, seen, self.own, self.wanted, noted) == Verdict::Granted {
            self.note();
            Ok(())
        } else {
            // Who has reserved nothing holds nobody up, least of all when he is prepared.
            lock.release();
            Err(self.shortage(bounds, seen, noted))
        }
    }

    fn request_shared(&self, partition: Partition, bounds: Bounds) -> Result<(), Shortage> {
        let mut deadline = None;
        loop {
            // Before the reservation: who confirms a hold that this reading finds expired has to
            // find it expired as well, unless he had reserved before, and is noted.
            let clock = clock();
            let reserved = self.reserve(partition, bounds);
            if reserved.covered {
                return Ok(());
            }
            // Should this fail, the abort of the subtransaction gives back what was reserved.
            failpoint!("escrow.reserved");
            let seen = read::seen_by_others(self.name, clock);
            let slot = reserved.slot;
            partition.lock().slots()[slot]
                .account
                .learn(reserved.noted, seen);
            let verdict = escrow::check(bounds, seen, self.own, self.wanted, reserved.noted);
            if verdict == Verdict::Granted {
                return Ok(());
            }
            self.give_back(partition, &reserved);
            let until = *deadline.get_or_insert_with(|| Instant::now() + settings::escrow_wait());
            let left = until.saturating_duration_since(Instant::now());
            if verdict == Verdict::Refused || left.is_zero() {
                return Err(self.shortage(bounds, seen, reserved.noted));
            }
            // Who ends after this wakes us; who has ended since we noted him is seen here.
            let waiter = Waiter::new(partition);
            let given_back = partition.lock().slots()[slot].given_back;
            if given_back == reserved.given_back.wrapping_add(1) {
                waiter.wait(left);
            }
        }
    }

    /// Reserves, and notes it. Is it covered by what the account knows?
    fn reserve(&self, partition: Partition, bounds: Bounds) -> Reserved {
        let known = RESERVATIONS.with_borrow(|all| all.owns[self.at].slot);
        let mut guard = partition.lock();
        let Some(at) = known.or_else(|| find_slot(&mut guard, self.hash, self.name)) else {
            drop(guard);
            no_slot()
        };
        let slot = &mut guard.slots()[at];
        if slot.generation != self.generation {
            // Increments may have gone past the account while the counter had no bounds.
            slot.account.forget();
            slot.generation = self.generation;
        }
        let account = &mut slot.account;
        let Some(noted) = account.reserve_backed(self.own.amounts, self.wanted, self.backed_until)
        else {
            drop(guard);
            out_of_range(self.name)
        };
        slot.users += u32::from(known.is_none());
        slot.reserved = slot.reserved.wrapping_add(1);
        let reserved = Reserved {
            slot: at,
            noted,
            reserved: slot.reserved,
            given_back: slot.given_back,
            covered: slot.account.is_covered(bounds, self.wanted),
        };
        drop(guard);
        RESERVATIONS.with_borrow_mut(|all| all.owns[self.at].slot = Some(at));
        self.note();
        reserved
    }

    /// Gives back what was not granted. Only those who have come since can have been kept by it.
    fn give_back(&self, partition: Partition, reserved: &Reserved) {
        RESERVATIONS.with_borrow_mut(|all| all.unnote(self.at, self.wanted));
        let others_have_come = {
            let mut guard = partition.lock();
            let slot = &mut guard.slots()[reserved.slot];
            slot.release(self.wanted, End::Aborted);
            slot.reserved != reserved.reserved
        };
        if others_have_come {
            partition.wake();
        }
    }
}

/// The counter's slot, or a free one made its own.
fn find_slot(guard: &mut Guard, hash: NameHash, name: &[u8]) -> Option<usize> {
    // SAFETY: set once when the backend connected.
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
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
    let at = guard.slots().iter().position(|slot| slot.users == 0)?;
    guard.hashes()[at] = hash.get();
    let slot = &mut guard.slots()[at];
    *slot = Slot {
        database,
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
                "the increments of bounded counter {} in flight are out of range for type bigint",
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
