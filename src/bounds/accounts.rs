//! The shared memory of the accounts, and what guards it. See the note in `escrow.rs`.
//!
//! # Layout
//! A header with the clock; then the partitions, each with its condition variable; then, partition
//! by partition, the hashes of the slots' counters and the slots themselves. Look-ups go through the
//! hashes, which lie close together.

use crate::pg::clock;
use crate::pg::compat::WaitEvent;
use crate::pg::ports;
use crate::pg::shared::{self, Area, Held, Piece, Size, Waiter};
use crate::settings;
use counterx_core::escrow::{Account, Amounts, End};
use counterx_core::lane::{MAX_NAME_BYTES, NameHash};
use pgrx::pg_sys;
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

/// A place for an account.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Slot {
    /// What is known and reserved.
    pub account: Account,
    /// Of the type whose bounds the account was used with last.
    pub generation: i64,
    /// The database of the counter.
    pub database: u32,
    /// Transactions that use the account; 0: it may be given to another counter.
    pub users: u32,
    /// How often somebody has reserved, and has given back; both wrap around.
    pub reserved: u32,
    /// See `reserved`.
    pub given_back: u32,
    /// The most that was counted in the window before, where windows slide; negative: not known.
    pub before: i64,
    /// That is what was counted.
    pub before_is_final: bool,
    /// Of the name, in bytes.
    pub name_length: u16,
    /// The counter.
    pub name: [u8; MAX_NAME_BYTES],
}

impl Slot {
    const FREE: Self = Self {
        account: Account::NEW,
        generation: 0,
        database: 0,
        users: 0,
        reserved: 0,
        given_back: 0,
        before: -1,
        before_is_final: false,
        name_length: 0,
        name: [0; MAX_NAME_BYTES],
    };

    fn is_of(&self, database: u32, name: &[u8]) -> bool {
        self.database == database && self.name[..usize::from(self.name_length)] == *name
    }

    /// The most that was counted in the window before, and whether that is final.
    pub fn before(&self) -> Option<(i128, bool)> {
        (self.before >= 0).then_some((self.before.into(), self.before_is_final))
    }

    /// Learns how much that was, at most: nobody counts in that window any more.
    pub fn learn_before(&mut self, most: i128, is_final: bool) {
        let most = i64::try_from(most.max(0)).unwrap_or(i64::MAX);
        if self.before_is_final {
            return;
        }
        self.before = match is_final || self.before < 0 {
            true => most,
            false => self.before.min(most),
        };
        self.before_is_final = is_final;
    }

    /// A transaction gives back what it had reserved.
    pub fn release(&mut self, amounts: Amounts, end: End) {
        self.account.release(amounts, end);
        self.given_back = self.given_back.wrapping_add(1);
    }
}

/// The time by which holds expire: it never goes back.
pub fn clock() -> i64 {
    latest(|header| &header.clock, ports::now())
}

/// The time by which windows end: it never goes back, but for [`set_window_clock_back`].
pub fn window_clock() -> i64 {
    latest(|header| &header.window_clock, clock::now())
}

/// Somebody says that the system's clock is right, and that what others have gone by was not. Returns what it shows.
///
/// The clock of holds stays ahead: what is set aside by one that is in flight must not be free by another one.
pub fn set_window_clock_back() -> i64 {
    let now = clock::now();
    if let Some(partition) = Partition::of(0) {
        let clock = &partition.header().window_clock;
        clock.fetch_min(now, Ordering::SeqCst);
    }
    now
}

/// What a clock of the shared memory shows, if there is one: whatever the system's clock does, at least `now`. Most of those
/// who go by it at once find that somebody has raised it already.
#[inline]
fn latest(clock: impl FnOnce(&Header) -> &AtomicI64, now: i64) -> i64 {
    let Some(partition) = Partition::of(0) else {
        return now;
    };
    let clock = clock(partition.header());
    let known = clock.load(Ordering::SeqCst);
    if known >= now {
        return known;
    }
    clock.fetch_max(now, Ordering::SeqCst).max(now)
}

fn my_database() -> u32 {
    // SAFETY: set once when the backend connected.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

/// The counter's slot, if it has one.
pub fn find_slot(guard: &mut Guard, hash: NameHash, name: &[u8]) -> Option<usize> {
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
pub fn take_slot(guard: &mut Guard, hash: NameHash, name: &[u8]) -> Option<usize> {
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

/// More partitions than this would not be noticed.
const MAX_PARTITIONS: usize = 32;

/// Fewer slots a partition, and some partitions would be full long before others.
const MIN_SLOTS: usize = 128;

#[repr(C)]
struct Header {
    /// The latest time that somebody has gone by.
    clock: AtomicI64,
    /// The same of who counts in windows. One that can be set back: see [`set_window_clock_back`].
    window_clock: AtomicI64,
}

#[repr(C)]
struct Shared {
    changed: pg_sys::ConditionVariable,
    /// Slots that somebody uses. Changed under the partition's lock, and read without it.
    used: AtomicU32,
}

/// How the memory is divided. The same in all processes: the setting changes at server start only.
#[derive(Clone, Copy)]
struct Geometry {
    partitions: usize,
    slots: usize,
}

impl Geometry {
    fn new() -> Self {
        let entries = settings::escrow_entries();
        let partitions = (entries / MIN_SLOTS).clamp(1, MAX_PARTITIONS);
        // Names spread by chance: with half as much again, all are full when one is, nearly.
        let slots = match partitions {
            1 => entries,
            _ => entries.div_ceil(partitions) * 3 / 2,
        };
        Self { partitions, slots }
    }

    fn shared_at(self) -> usize {
        size_of::<Header>().next_multiple_of(align_of::<Shared>())
    }

    fn hashes_at(self) -> usize {
        let end = self.shared_at() + self.partitions * size_of::<Shared>();
        end.next_multiple_of(align_of::<u64>())
    }

    fn slots_at(self) -> usize {
        let end = self.hashes_at() + self.partitions * self.slots * size_of::<u64>();
        end.next_multiple_of(align_of::<Slot>())
    }

    fn bytes(self) -> usize {
        self.slots_at() + self.partitions * self.slots * size_of::<Slot>()
    }
}

/// How much of the memory is in use, see [`usage`].
pub struct Usage {
    /// Slots in all.
    pub slots: usize,
    /// Those that transactions use.
    pub used: usize,
    /// Used share of the partition that has the least room: a counter of that one is refused when it is 1.
    pub fullest: f64,
}

/// How much of the memory is in use now, in all databases. None: there is no shared memory. Nothing is locked, and it takes
/// as long as there are partitions.
pub fn usage() -> Option<Usage> {
    let attached = ATTACHED.get()?;
    let Geometry { partitions, slots } = attached.geometry;
    let (mut all, mut most) = (0, 0);
    for number in 0..partitions {
        let partition = Partition { attached, number };
        let used = partition.used().load(Ordering::Relaxed) as usize;
        all += used;
        most = most.max(used);
    }
    Some(Usage {
        slots: partitions * slots,
        used: all,
        fullest: most as f64 / slots as f64,
    })
}

/// What is known of the memory once it is there.
#[derive(Clone, Copy)]
struct Attached {
    base: NonNull<u8>,
    locks: NonNull<pg_sys::LWLockPadded>,
    geometry: Geometry,
}

thread_local! {
    static ATTACHED: Cell<Option<Attached>> = const { Cell::new(None) };
}

/// Asks for the memory. Called from `_PG_init`, when the postmaster loads the library.
pub fn register() {
    shared::ask_for(&AREA);
}

static AREA: Area = Area {
    name: c"counterx escrow",
    size: || {
        let geometry = Geometry::new();
        Some(Size {
            bytes: geometry.bytes(),
            locks: geometry.partitions,
        })
    },
    attach,
};

/// # Safety
/// See [`Area::attach`].
unsafe fn attach(piece: Piece) {
    let geometry = Geometry::new();
    let base = piece.base;
    // SAFETY: the caller's promise; the memory is as large as the layout says.
    unsafe {
        if piece.is_new {
            base.cast::<Header>().write(Header {
                clock: AtomicI64::new(i64::MIN),
                window_clock: AtomicI64::new(i64::MIN),
            });
            for i in 0..geometry.partitions {
                let shared = base.add(geometry.shared_at()).cast::<Shared>().add(i);
                pg_sys::ConditionVariableInit(&raw mut (*shared.as_ptr()).changed);
                (&raw mut (*shared.as_ptr()).used).write(AtomicU32::new(0));
            }
            for i in 0..geometry.partitions * geometry.slots {
                base.add(geometry.hashes_at()).cast::<u64>().add(i).write(0);
                let slot = base.add(geometry.slots_at()).cast::<Slot>().add(i);
                slot.write(Slot::FREE);
            }
        }
        ATTACHED.set(Some(Attached {
            base,
            locks: piece.locks,
            geometry,
        }));
    }
}

/// A partition of the accounts.
#[derive(Clone, Copy)]
pub struct Partition {
    attached: Attached,
    number: usize,
}

impl Partition {
    /// The one that accounts of this hash are in. None: there is no shared memory.
    pub fn of(hash: u64) -> Option<Self> {
        let attached = ATTACHED.get()?;
        // The lane is made of the lowest bits, and the anchor of others.
        let number = (hash >> 8) as usize % attached.geometry.partitions;
        Some(Self { attached, number })
    }

    fn shared(&self) -> *mut Shared {
        // SAFETY: inside of the memory.
        unsafe {
            let all = self
                .attached
                .base
                .add(self.attached.geometry.shared_at())
                .cast::<Shared>();
            all.add(self.number).as_ptr()
        }
    }

    fn used(&self) -> &AtomicU32 {
        // SAFETY: inside of the memory, and initialized at startup; atomic.
        unsafe { &(*self.shared()).used }
    }

    fn header(&self) -> &Header {
        // SAFETY: inside of the memory; atomic.
        unsafe { self.attached.base.cast::<Header>().as_ref() }
    }

    /// Locks the partition.
    pub fn lock(self) -> Guard {
        // SAFETY: one lock of the tranche for each partition.
        let held =
            unsafe { Held::take(&raw mut (*self.attached.locks.add(self.number).as_ptr()).lock) };
        Guard {
            partition: self,
            _held: held,
        }
    }

    /// Whoever waits for a change listens here.
    pub fn listen(&self) -> Waiter {
        // Asked for before this process waits for anything.
        let event = ROOM.number();
        // SAFETY: inside of the memory, and initialized at startup.
        unsafe { Waiter::new(&raw mut (*self.shared()).changed, event) }
    }

    /// Wakes all who wait for somebody to end.
    pub fn wake(self) {
        // SAFETY: initialized at startup; neither allocates nor fails.
        unsafe { pg_sys::ConditionVariableBroadcast(&raw mut (*self.shared()).changed) };
    }
}

/// What a session waits for.
static ROOM: WaitEvent = WaitEvent::new(c"CounterxRoom");

/// A locked partition.
pub struct Guard {
    partition: Partition,
    _held: Held,
}

impl Guard {
    /// The hashes of the slots.
    pub fn hashes(&mut self) -> &mut [u64] {
        let Geometry { slots, .. } = self.partition.attached.geometry;
        // SAFETY: the part of this partition, which is locked exclusively.
        unsafe {
            let base = self.partition.attached.base;
            let all = base.add(self.partition.attached.geometry.hashes_at());
            let ours = all.cast::<u64>().add(self.partition.number * slots);
            std::slice::from_raw_parts_mut(ours.as_ptr(), slots)
        }
    }

    /// A transaction begins to use a slot.
    pub fn enter(&mut self, slot: usize) {
        let slot = &mut self.slots()[slot];
        slot.users += 1;
        if slot.users == 1 {
            self.partition.used().fetch_add(1, Ordering::Relaxed);
        }
    }

    /// It uses it no more. Does not allocate, and does not fail.
    pub fn leave(&mut self, slot: usize) {
        let slot = &mut self.slots()[slot];
        slot.users -= 1;
        if slot.users == 0 {
            self.partition.used().fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The slots.
    pub fn slots(&mut self) -> &mut [Slot] {
        let Geometry { slots, .. } = self.partition.attached.geometry;
        // SAFETY: likewise.
        unsafe {
            let base = self.partition.attached.base;
            let all = base.add(self.partition.attached.geometry.slots_at());
            let ours = all.cast::<Slot>().add(self.partition.number * slots);
            std::slice::from_raw_parts_mut(ours.as_ptr(), slots)
        }
    }
}
