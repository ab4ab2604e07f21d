//! Being on duty: a worker's mark, and its entry in the directory.

use crate::pg::lock::{self, FoldingPaused, WorkerMark};
use crate::pg::ports;
use crate::pg::turns;
use crate::process::directory;
use crate::process::session;
use crate::settings;
use counterx_core::folders::Present;
use counterx_core::turns::Seat;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// What the worker's entry in the launcher's directory is to this process.
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
    /// The first worker has told that it does not fold.
    static PAUSED: Cell<bool> = const { Cell::new(false) };
}

/// With a launcher: what becomes of the worker's entry, whatever ends the process.
#[pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: core::ffi::c_int, arg: pg_sys::Datum) {
    let seat = Seat {
        database: arg.value() as u32,
        number: (arg.value() >> 32) as u8,
    };
    match ENTRY.get() {
        Entry::Starting => directory::set_failed(seat),
        // Ended by force. Whoever has counted since then has relied on this worker.
        Entry::Working if seat.is_first() => directory::request_again(seat.database.into()),
        // Nobody has: the others have its lanes, and ask for another one if they cannot keep up.
        Entry::Working => directory::set_stopped(seat),
        Entry::NotOurs => {}
    }
    directory::look();
}

/// The worker reports for duty, or goes on with it.
pub fn set_working(seat: Seat, visit: bool) {
    if directory::is_loaded() {
        directory::set_working(seat, visit);
        ENTRY.set(Entry::Working);
    }
}

/// Those who just look at the mark, and a predecessor that is about to end, hold it for a moment.
pub fn take_mark(seat: Seat) -> bool {
    let mark = WorkerMark::of(seat.number);
    // Without a launcher: whoever has it will look for rows when it gives it up.
    let taken = if directory::is_loaded() || !mark.is_set() {
        session::patiently(|| mark.try_set())
    } else {
        false
    };
    // A further worker's entry is its own, and it has not come.
    if !taken && seat.is_first() {
        ENTRY.set(Entry::NotOurs);
    }
    taken
}

/// Which workers of the database are there, beside this one.
pub fn present(own: u8) -> Present {
    let mut present = Present::alone(own);
    let most = settings::workers_per_database();
    // The only one need not look: those that the setting has room for no more are about to go.
    if most == 1 && own == 0 {
        return present;
    }
    for number in (0..most as u8).filter(|&number| number != own) {
        if WorkerMark::of(number).is_set() {
            present = present.with(number);
        }
    }
    present
}

/// The worker before is about to end. In the queue for its lock, so that no session finds the turn
/// free in the moment between the two.
///
/// One may have found it free in the moment before, and the worker that it has started knows of nobody who waits. So from
/// then on this one is no more on duty than a session that waits for a turn, and lets others know in the same way. It
/// has come for rows that nobody else may ask for.
pub fn wait_for_turn(seat: Seat, turn: u32) -> bool {
    const ONE_TRY: Duration = Duration::from_secs(1);
    const TRIES: u32 = 60;
    let take = || session::transaction(c"waiting for a turn", || turns::take_turn(turn)).is_ok();
    failpoint!("worker.queues");
    session::set(c"lock_timeout", c"1s");
    let mut taken = take();
    if !taken {
        WorkerMark::of(seat.number).clear();
        for _ in 0..TRIES {
            if lock::database_is_wanted() {
                break;
            }
            let started = Instant::now();
            turns::wait(seat.database, ports::now());
            taken = take();
            // Another error than that it has waited in vain.
            if taken || started.elapsed() < ONE_TRY / 2 {
                break;
            }
        }
        turns::stop_waiting();
        taken = taken && take_mark(seat);
    }
    session::set(c"lock_timeout", c"0");
    taken
}

/// With a launcher: whatever ends the process, the directory will say so. To be called before anything
/// can fail.
pub fn report_exit(seat: Seat) {
    if directory::is_loaded() {
        let argument = usize::from(seat.number) << 32 | seat.database as usize;
        // SAFETY: once in a process.
        unsafe { pg_sys::before_shmem_exit(Some(on_exit), pg_sys::Datum::from(argument)) };
    }
}

/// The first worker folds, or does not: who waits for a fold would wait in vain.
pub fn tell_paused(paused: bool) {
    match (PAUSED.get(), paused) {
        (false, true) => PAUSED.set(FoldingPaused::try_set()),
        (true, false) => {
            FoldingPaused::clear();
            PAUSED.set(false);
        }
        _ => {}
    }
}

/// The worker is off duty. Whoever commits from now on asks for another first one.
pub fn give_up(seat: Seat) {
    if directory::is_loaded() {
        directory::set_stopped(seat);
        ENTRY.set(Entry::NotOurs);
    }
    WorkerMark::of(seat.number).clear();
}
