//! Shared memory of ours, and what protects a part of it: LWLocks and condition variables.

use pgrx::{pg_guard, pg_sys};
use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::ptr::NonNull;
use std::time::Duration;

/// A piece of the server's shared memory, with LWLocks of its own.
pub struct Area {
    /// By which the server knows it, and `pg_stat_activity` waits for its locks.
    pub name: &'static CStr,
    /// How large it is, as the settings say, which change at server start only. None: there is to be none.
    pub size: fn() -> Option<Size>,
    /// Called when the postmaster has made its shared memory, also when it makes it anew after a crash.
    ///
    /// # Safety
    /// The piece is as large as its size says, and nobody else is there yet.
    pub attach: unsafe fn(Piece),
}

/// How large an [`Area`] is.
pub struct Size {
    pub bytes: usize,
    pub locks: usize,
}

/// What the postmaster has made of an [`Area`].
pub struct Piece {
    pub base: NonNull<u8>,
    /// The first of its locks.
    pub locks: NonNull<pg_sys::LWLockPadded>,
    /// It is to be initialized.
    pub is_new: bool,
}

thread_local! {
    static AREAS: RefCell<Vec<&'static Area>> = const { RefCell::new(Vec::new()) };
    static BEFORE: Cell<(pg_sys::shmem_request_hook_type, pg_sys::shmem_startup_hook_type)> =
        const { Cell::new((None, None)) };
}

/// Asks for shared memory. Called from `_PG_init`, when the postmaster loads the library.
pub fn ask_for(area: &'static Area) {
    let is_first = AREAS.with_borrow_mut(|areas| {
        areas.push(area);
        areas.len() == 1
    });
    if is_first {
        // SAFETY: the postmaster, before it makes its shared memory; the hooks live for ever.
        unsafe {
            BEFORE.set((pg_sys::shmem_request_hook, pg_sys::shmem_startup_hook));
            pg_sys::shmem_request_hook = Some(on_request);
            pg_sys::shmem_startup_hook = Some(on_startup);
        }
    }
}

/// The areas that there are to be.
fn wanted() -> Vec<(&'static Area, Size)> {
    let sized = |area: &&'static Area| Some((*area, (area.size)()?));
    AREAS.with_borrow(|areas| areas.iter().filter_map(sized).collect())
}

#[pg_guard]
unsafe extern "C-unwind" fn on_request() {
    // SAFETY: the one moment at which this is allowed.
    unsafe {
        if let Some(before) = BEFORE.get().0 {
            before();
        }
        for (area, size) in wanted() {
            pg_sys::RequestAddinShmemSpace(size.bytes);
            pg_sys::RequestNamedLWLockTranche(area.name.as_ptr(), size.locks as i32);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_startup() {
    // SAFETY: the memory and the locks were asked for, and the piece is what `attach` wants.
    unsafe {
        if let Some(before) = BEFORE.get().1 {
            before();
        }
        for (area, size) in wanted() {
            let mut found = false;
            let base = pg_sys::ShmemInitStruct(area.name.as_ptr(), size.bytes, &mut found);
            (area.attach)(Piece {
                base: NonNull::new_unchecked(base.cast()),
                locks: NonNull::new_unchecked(pg_sys::GetNamedLWLockTranche(area.name.as_ptr())),
                is_new: !found,
            });
        }
    }
}

/// An LWLock that is held exclusively.
pub struct Held(*mut pg_sys::LWLock);

impl Held {
    /// Waits for it.
    ///
    /// # Safety
    /// The lock was initialized, and is there as long as this lives.
    pub unsafe fn take(lock: *mut pg_sys::LWLock) -> Self {
        // SAFETY: the caller's promise. Released by the drop, or by the server should an error come in between.
        unsafe { pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE) };
        Self(lock)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: held.
            unsafe { pg_sys::LWLockRelease(self.0) };
        }
    }
}

/// Whoever is about to wait for a change. From the making on, none is missed.
pub struct Waiter {
    changed: *mut pg_sys::ConditionVariable,
    event: u32,
}

impl Waiter {
    /// Listens from now on. `event`: what `pg_stat_activity` says meanwhile.
    ///
    /// # Safety
    /// The variable was initialized, and is there as long as this lives.
    pub unsafe fn new(changed: *mut pg_sys::ConditionVariable, event: u32) -> Self {
        // SAFETY: the caller's promise. An error in between is cleaned up after by the server.
        unsafe { pg_sys::ConditionVariablePrepareToSleep(changed) };
        Self { changed, event }
    }

    /// Sleeps until something has changed or the time is over. Interruptible.
    pub fn wait(&self, timeout: Duration) {
        let milliseconds = timeout.as_millis().clamp(1, 3_600_000) as core::ffi::c_long;
        // SAFETY: whoever has made this keeps the variable.
        unsafe { pg_sys::ConditionVariableTimedSleep(self.changed, milliseconds, self.event) };
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: takes this process off the list; does nothing when it is not on one.
            unsafe { pg_sys::ConditionVariableCancelSleep() };
        }
    }
}
