//! Being on duty: the mark of the database's worker, and its entry in the directory.

use crate::pg::lock::WorkerMark;
use crate::pg::turns;
use crate::process::directory;
use crate::process::session;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::Cell;

/// What the database's entry in the launcher's directory is to this process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// It waits for this process to report for duty.
    Starting,
    /// It shows this process.
    Working,
    /// Given up, or another worker's.
    NotOurs,
}

thread_local! {
    static ENTRY: Cell<Entry> = const { Cell::new(Entry::Starting) };
}

/// With a launcher: what becomes of the database's entry, whatever ends the process.
#[pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: core::ffi::c_int, arg: pg_sys::Datum) {
    let database = pg_sys::Oid::from(arg.value() as u32);
    match ENTRY.get() {
        Entry::Starting => directory::set_failed(database),
        // Ended by force. Whoever has counted since then has relied on this worker.
        Entry::Working => directory::request_again(database),
        Entry::NotOurs => {}
    }
    directory::look();
}

/// The worker reports for duty, or goes on with it.
pub fn set_working(database: pg_sys::Oid, visit: bool) {
    if directory::is_loaded() {
        directory::set_working(database, visit);
        ENTRY.set(Entry::Working);
    }
}

/// Those who just look at the mark, and a predecessor that is about to end, hold it for a moment.
pub fn take_mark() -> bool {
    // Without a launcher: whoever has it will look for rows when it gives it up.
    let taken = if directory::is_loaded() || !WorkerMark::is_set() {
        session::patiently(WorkerMark::try_set)
    } else {
        false
    };
    if !taken {
        ENTRY.set(Entry::NotOurs);
    }
    taken
}

/// The worker before is about to end. In the queue for its lock, so that no session finds the turn
/// free in the moment between the two.
pub fn wait_for_turn(turn: u32) -> bool {
    session::set(c"lock_timeout", c"5s");
    let taken = session::transaction(c"waiting for a turn", || turns::take_turn(turn));
    session::set(c"lock_timeout", c"0");
    taken.is_ok()
}

/// With a launcher: whatever ends the process, the directory will say so. To be called before anything
/// can fail.
pub fn report_exit(database: pg_sys::Oid) {
    if directory::is_loaded() {
        // SAFETY: once in a process.
        unsafe { pg_sys::before_shmem_exit(Some(on_exit), pg_sys::Datum::from(database)) };
    }
}

/// The worker is off duty. Whoever commits from now on asks for another one.
pub fn give_up(database: pg_sys::Oid) {
    if directory::is_loaded() {
        directory::set_stopped(database);
        ENTRY.set(Entry::NotOurs);
    }
    WorkerMark::clear();
}
