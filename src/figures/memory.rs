//! The sums that all sessions share.
//!
//! # Layout
//! A header; then one entry for each database. An entry has its sums several times over, and each backend adds to
//! one of them, so that those who count at the same time do not pass the same memory from processor to processor.
//!
//! # Note about locking
//! An LWLock protects which entry is whose, and a backend takes it once, when it counts for the first time. Sums are
//! atomic. An entry changes hands only when the database that it was of is gone, and with it all who add to it.

use crate::pg::error::log;
use crate::pg::ports;
use crate::pg::shared::{self, Area, Held, Piece, Size};
use pgrx::pg_sys;
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Figure {
    /// Increments that were asked for.
    Increments,
    /// Rows written to logs.
    RowsFlushed,
    /// Transactions' writes before their end.
    EarlyFlushes,
    /// Transactions of the committer.
    HitBatches,
    /// Hits that these have counted.
    HitsBatched,
    /// Hits that a bound forbade.
    HitsRefused,
    /// Hits that were not counted for another reason.
    HitsFailed,
    /// Folds of a lane.
    Folds,
    /// Deltas that they have moved.
    DeltasFolded,
    /// How long they took, in microseconds.
    FoldTime,
    /// Logs that were emptied.
    Truncations,
    /// Requests that a bound forbade.
    Refused,
    /// Requests that have waited for what others may give back.
    EscrowWaits,
    /// How long, in microseconds.
    EscrowWaitTime,
    /// Tokens that were new.
    TokensUsed,
    /// Tokens that were used before.
    TokensReplayed,
    /// Tokens that were removed.
    TokensExpired,
    /// Holds that were removed when they had expired long ago.
    HoldsExpired,
    /// Errors 40001.
    SerializationConflicts,
    /// Transactions that have waited for a fold.
    BackPressureWaits,
    /// How long, in microseconds.
    BackPressureWaitTime,
    /// Transactions that were refused, as too much waits to be folded. The last one: see [`FIGURES`].
    BackPressureRefused,
}

/// So many figures there are.
pub const FIGURES: usize = Figure::BackPressureRefused as usize + 1;

// A bit of a u32 says of each whether it has changed.
const _: () = assert!(FIGURES <= u32::BITS as usize);

/// More than this would not be noticed.
const PARTS: usize = 8;

#[repr(C)]
struct Header {
    /// The log has been told that there is no room.
    told: AtomicBool,
}

/// A part of a database's sums, in cache lines of its own. What each increment counts stands first.
#[repr(C, align(64))]
struct Part([AtomicU64; FIGURES]);

#[repr(C)]
struct Entry {
    parts: [Part; PARTS],
    /// 0: nobody's.
    database: AtomicU32,
    /// When it was zero last.
    since: AtomicI64,
}

impl Entry {
    fn reset(&self) {
        for sum in self.parts.iter().flat_map(|part| &part.0) {
            sum.store(0, Ordering::Relaxed);
        }
        self.since.store(ports::now(), Ordering::Relaxed);
    }
}

/// What is known of the memory once it is there.
#[derive(Clone, Copy)]
struct Attached {
    base: NonNull<u8>,
    lock: NonNull<pg_sys::LWLockPadded>,
    entries: usize,
}

thread_local! {
    static ATTACHED: Cell<Option<Attached>> = const { Cell::new(None) };
}

static ENTRIES: OnceLock<fn() -> usize> = OnceLock::new();

/// For so many databases. The same in all processes: the setting changes at server start only.
fn entries() -> usize {
    ENTRIES.get().map_or(0, |entries| entries())
}

fn entries_at() -> usize {
    size_of::<Header>().next_multiple_of(align_of::<Entry>())
}

/// With room to begin at a cache line.
fn bytes(entries: usize) -> usize {
    entries_at() + entries * size_of::<Entry>() + align_of::<Entry>()
}

/// Asks for the memory, and says for how many databases, which a setting of floors above has. Called from
/// `_PG_init`, when the postmaster loads the library.
pub fn register(entries: fn() -> usize) {
    // A second one would be the same.
    let _ = ENTRIES.set(entries);
    shared::ask_for(&AREA);
}

static AREA: Area = Area {
    name: c"counterx figures",
    size: || {
        Some(Size {
            bytes: bytes(entries()),
            locks: 1,
        })
    },
    attach,
};

/// # Safety
/// See [`Area::attach`].
unsafe fn attach(piece: Piece) {
    let entries = entries();
    // SAFETY: the caller's promise; the memory is as large as the layout says.
    unsafe {
        let base = piece.base;
        let base = base.add(base.align_offset(align_of::<Entry>()));
        if piece.is_new {
            // All numbers are zero, and so is what is false.
            std::ptr::write_bytes(
                base.as_ptr(),
                0,
                entries_at() + entries * size_of::<Entry>(),
            );
        }
        ATTACHED.set(Some(Attached {
            base,
            lock: piece.locks,
            entries,
        }));
    }
}

impl Attached {
    fn header(&self) -> &'static Header {
        // SAFETY: initialized at startup, and there as long as the process; atomic.
        unsafe { self.base.cast::<Header>().as_ref() }
    }

    fn entries(&self) -> &'static [Entry] {
        // SAFETY: as above.
        unsafe {
            let all = self.base.add(entries_at()).cast::<Entry>();
            std::slice::from_raw_parts(all.as_ptr(), self.entries)
        }
    }

    /// Keeps entries from changing hands.
    fn lock(&self) -> Held {
        // SAFETY: of our own tranche, which is there as long as the process.
        unsafe { Held::take(&raw mut (*self.lock.as_ptr()).lock) }
    }

    /// The entry of this database, or a free one made its own.
    fn take(&self) -> Option<&'static Entry> {
        let database = my_database()?;
        let is_of = |of: u32| {
            self.entries()
                .iter()
                .find(|entry| entry.database.load(Ordering::Relaxed) == of)
        };
        let _held = self.lock();
        is_of(database).or_else(|| {
            let free = is_of(0)?;
            free.reset();
            free.database.store(database, Ordering::Relaxed);
            Some(free)
        })
    }
}

/// None: a process that has none, as the launcher.
fn my_database() -> Option<u32> {
    // SAFETY: set once when the backend connected.
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
    (database != 0).then_some(database)
}

/// Is there any? Not without preloading.
pub fn is_there() -> bool {
    ATTACHED.get().is_some() && my_database().is_some()
}

/// The sums of a database, of which this backend adds to one part.
#[derive(Clone, Copy)]
pub struct Sums {
    entry: &'static Entry,
    part: &'static Part,
}

impl Sums {
    fn of(entry: &'static Entry) -> Self {
        // SAFETY: set when the process started.
        let number = unsafe { pg_sys::MyProcPid }.unsigned_abs() as usize;
        let part = &entry.parts[number % PARTS];
        Self { entry, part }
    }

    /// Those of this database, if there is room. Takes a lock, but neither allocates nor fails.
    pub fn of_this_database() -> Option<Self> {
        ATTACHED.get()?.take().map(Self::of)
    }

    /// So much more of a figure.
    #[inline]
    pub fn add(self, figure: usize, n: u64) {
        self.part.0[figure].fetch_add(n, Ordering::Relaxed);
    }

    /// A figure.
    pub fn get(self, figure: usize) -> u64 {
        let parts = self.entry.parts.iter();
        parts.fold(0, |sum, part| {
            sum.wrapping_add(part.0[figure].load(Ordering::Relaxed))
        })
    }

    /// Since when, as a timestamptz.
    pub fn since(self) -> i64 {
        self.entry.since.load(Ordering::Relaxed)
    }

    /// From zero on again. What is added at this moment may count or not.
    pub fn reset(self) {
        self.entry.reset();
    }
}

/// The sums of this database, for which there was no room: those of a database that is gone are given up. In a
/// transaction. None: there are more databases than entries, which is said in the log once.
pub fn make_room() -> Option<Sums> {
    let attached = ATTACHED.get()?;
    let is_gone = |database: u32| {
        // SAFETY: a look into a cache of the catalogs.
        !unsafe {
            pg_sys::SearchSysCacheExists(
                pg_sys::SysCacheIdentifier::DATABASEOID as i32,
                pg_sys::Datum::from(database as usize),
                pg_sys::Datum::null(),
                pg_sys::Datum::null(),
                pg_sys::Datum::null(),
            )
        }
    };
    for entry in attached.entries() {
        let database = entry.database.load(Ordering::Relaxed);
        if database != 0 && is_gone(database) {
            // Not when somebody else has done so, and it is a third one's by now.
            let _held = attached.lock();
            let _ = (entry.database).compare_exchange(
                database,
                0,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
    }
    let sums = attached.take().map(Sums::of);
    if sums.is_none() && !attached.header().told.swap(true, Ordering::Relaxed) {
        log(format!(
            "counterx: no room for the figures of another database: more than {} count; raise counterx.stat_databases and restart the server",
            attached.entries
        ));
    }
    sums
}
