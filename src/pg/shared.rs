//! What protects a part of shared memory: LWLocks and condition variables of ours.

use pgrx::pg_sys;
use std::time::Duration;

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
