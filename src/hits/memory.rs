//! The shared memory of hits, and what guards it. See the note in [`super`].
//!
//! # Layout
//! A header; the places; then, place by place, their entries. One LWLock for the header's purpose, and one
//! for each place.

use crate::pg::compat::WaitEvent;
use crate::pg::shared::{self, Area, Held, Piece, Size, Waiter};
use crate::settings;
use counterx_core::hits::{Entry, Line, Place};
use pgrx::pg_sys;
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a session waits for that cannot hand over its hit.
static ROOM: WaitEvent = WaitEvent::new(c"CounterxHitRoom");

#[repr(C)]
struct Header {
    /// A place may be free.
    places: pg_sys::ConditionVariable,
    /// Who waits for one.
    line: Line,
}

#[repr(C)]
struct Shared {
    /// Something has changed for those who could not push.
    room: pg_sys::ConditionVariable,
    /// Is there nothing in the queue? As it was when the lock was given back last.
    seems_empty: AtomicBool,
    place: Place,
}

/// How the memory is divided. The same in all processes: the settings change at server start only.
#[derive(Clone, Copy)]
struct Geometry {
    places: usize,
    entries: usize,
}

impl Geometry {
    fn new() -> Self {
        Self {
            places: settings::max_committers(),
            entries: settings::hit_queue_size(),
        }
    }

    fn places_at(self) -> usize {
        size_of::<Header>().next_multiple_of(align_of::<Shared>())
    }

    fn entries_at(self) -> usize {
        let end = self.places_at() + self.places * size_of::<Shared>();
        end.next_multiple_of(align_of::<Entry>())
    }

    fn bytes(self) -> usize {
        self.entries_at() + self.places * self.entries * size_of::<Entry>()
    }
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

static WAKE_LAUNCHER: OnceLock<fn()> = OnceLock::new();

/// Was the library loaded when the server started?
pub fn is_preloaded() -> bool {
    WAKE_LAUNCHER.get().is_some()
}

/// There may be a committer to be started. Cannot fail: it is called when a process exits.
pub fn wake_launcher() {
    if let Some(wake) = WAKE_LAUNCHER.get() {
        wake();
    }
}

/// Asks for the memory, and says how to wake the launcher, which is known to floors above. Called from
/// `_PG_init`, when the postmaster loads the library.
pub fn register(wake_launcher: fn()) {
    // A second one would be the same.
    let _ = WAKE_LAUNCHER.set(wake_launcher);
    shared::ask_for(&AREA);
}

static AREA: Area = Area {
    name: c"counterx hits",
    size: || {
        let geometry = Geometry::new();
        (geometry.places > 0).then(|| Size {
            bytes: geometry.bytes(),
            locks: geometry.places + 1,
        })
    },
    attach,
};

/// # Safety
/// See [`Area::attach`].
unsafe fn attach(piece: Piece) {
    let geometry = Geometry::new();
    let attached = Attached {
        base: piece.base,
        locks: piece.locks,
        geometry,
    };
    // SAFETY: the caller's promise; the memory is as large as the layout says.
    unsafe {
        if piece.is_new {
            pg_sys::ConditionVariableInit(&raw mut (*attached.header()).places);
            (&raw mut (*attached.header()).line).write(Line::EMPTY);
            for number in 0..geometry.places {
                let shared = attached.shared(number);
                pg_sys::ConditionVariableInit(&raw mut (*shared).room);
                for at in 0..geometry.entries {
                    attached.entries(number).add(at).write(Entry::FREE);
                }
                let entries =
                    std::slice::from_raw_parts_mut(attached.entries(number), geometry.entries);
                (&raw mut (*shared).place).write(Place::new(entries));
                (&raw mut (*shared).seems_empty).write(AtomicBool::new(true));
            }
        }
        ATTACHED.set(Some(attached));
    }
}

impl Attached {
    fn header(&self) -> *mut Header {
        self.base.cast::<Header>().as_ptr()
    }

    /// What is shared of a place.
    fn shared(&self, number: usize) -> *mut Shared {
        // SAFETY: inside of the memory.
        unsafe {
            let all = self.base.add(self.geometry.places_at()).cast::<Shared>();
            all.add(number).as_ptr()
        }
    }

    /// The first of a place's entries.
    fn entries(&self, number: usize) -> *mut Entry {
        // SAFETY: inside of the memory.
        unsafe {
            let all = self.base.add(self.geometry.entries_at()).cast::<Entry>();
            all.add(number * self.geometry.entries).as_ptr()
        }
    }

    fn lock(&self, number: usize) -> *mut pg_sys::LWLock {
        // SAFETY: one lock for each place, and one more.
        unsafe { &raw mut (*self.locks.add(number).as_ptr()).lock }
    }
}

/// Is there any? Not without preloading, and where no committer may run.
pub fn is_there() -> bool {
    ATTACHED.get().is_some()
}

/// A place, by its number.
#[derive(Clone, Copy)]
pub struct Spot {
    attached: Attached,
    number: usize,
}

impl Spot {
    /// The one of this number. None: there is none.
    pub fn get(number: usize) -> Option<Self> {
        let attached = ATTACHED.get()?;
        (number < attached.geometry.places).then_some(Self { attached, number })
    }

    /// All.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..).map_while(Self::get)
    }

    /// Its number.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Is there nothing to be taken? Without the lock, so it may have changed by now.
    pub fn seems_empty(self) -> bool {
        // SAFETY: inside of the memory, and initialized at startup.
        unsafe { &(*self.attached.shared(self.number)).seems_empty }.load(Ordering::Relaxed)
    }

    /// How many hits of a database are on their way; none where it has no place.
    pub fn waiting(database: u32) -> usize {
        Self::all()
            .find_map(|spot| {
                let mut guard = spot.lock();
                let place = guard.place();
                (place.database == database).then(|| place.queue.len())
            })
            .unwrap_or(0)
    }

    /// Locks it.
    pub fn lock(self) -> Guard {
        // SAFETY: of the place, which is there.
        let held = unsafe { Held::take(self.attached.lock(self.number)) };
        Guard {
            attached: self.attached,
            number: self.number,
            _held: held,
        }
    }

    /// Wakes all who could not push.
    pub fn tell_of_room(self) {
        // SAFETY: initialized at startup; neither allocates nor fails.
        unsafe {
            let shared = self.attached.shared(self.number);
            pg_sys::ConditionVariableBroadcast(&raw mut (*shared).room);
        }
    }

    /// Whoever cannot push listens here.
    pub fn listen(self) -> Waiter {
        let shared = self.attached.shared(self.number);
        // SAFETY: inside of the memory, and initialized at startup.
        unsafe { Waiter::new(&raw mut (*shared).room, ROOM.number()) }
    }
}

/// A locked place.
pub struct Guard {
    attached: Attached,
    number: usize,
    _held: Held,
}

impl Guard {
    /// The place, and its entries.
    pub fn parts(&mut self) -> (&mut Place, &mut [Entry]) {
        // SAFETY: the part of this place, which is locked.
        unsafe {
            let shared = self.attached.shared(self.number);
            let entries = self.attached.entries(self.number);
            let entries = std::slice::from_raw_parts_mut(entries, self.attached.geometry.entries);
            (&mut (*shared).place, entries)
        }
    }

    /// The place.
    pub fn place(&mut self) -> &mut Place {
        self.parts().0
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let is_empty = self.place().queue.is_empty();
        // SAFETY: inside of the memory, and initialized at startup.
        let known = unsafe { &(*self.attached.shared(self.number)).seems_empty };
        known.store(is_empty, Ordering::Relaxed);
    }
}

/// Keeps places from changing hands.
pub struct Assignment {
    attached: Attached,
    _held: Held,
}

impl Assignment {
    /// Waits for it. To be taken before a place is locked. None: there is no shared memory.
    pub fn lock() -> Option<Self> {
        let attached = ATTACHED.get()?;
        // SAFETY: the one behind those of the places.
        let _held = unsafe { Held::take(attached.lock(attached.geometry.places)) };
        Some(Self { attached, _held })
    }

    /// The databases that wait for a place.
    pub fn line(&mut self) -> &mut Line {
        // SAFETY: initialized at startup, and locked.
        unsafe { &mut (*self.attached.header()).line }
    }
}

/// Whoever wants a place listens here. None: there is no shared memory.
pub fn listen_for_places() -> Option<Waiter> {
    let header = ATTACHED.get()?.header();
    // SAFETY: inside of the memory, and initialized at startup.
    Some(unsafe { Waiter::new(&raw mut (*header).places, ROOM.number()) })
}

/// A place is free.
pub fn tell_of_place() {
    if let Some(attached) = ATTACHED.get() {
        // SAFETY: initialized at startup; neither allocates nor fails.
        unsafe { pg_sys::ConditionVariableBroadcast(&raw mut (*attached.header()).places) };
    }
}

/// The process's own latch, as others may set it.
pub fn own_latch() -> usize {
    // SAFETY: set when the process started; that of a process slot, which is never freed.
    unsafe { pg_sys::MyLatch as usize }
}

/// Wakes a process by its latch. Should it have ended, whoever has its slot now looks around for nothing.
pub fn wake(latch: usize) {
    // SAFETY: the latch of a process slot.
    unsafe { pg_sys::SetLatch(latch as *mut pg_sys::Latch) };
}
