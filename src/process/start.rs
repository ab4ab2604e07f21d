//! Asking for a worker, and starting one.
//!
//! A worker is started by a commit that has written deltas, through the launcher or, where the library was not
//! preloaded, by the committing backend itself.

use crate::pg::lock::{self, WorkerMark};
use crate::pg::ports;
use crate::pg::turns;
use crate::process::directory;
use crate::settings;
use counterx_core::turns::{Seat, Start};
use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::Cell;
use std::time::Duration;

thread_local! {
    /// When this backend last looked whether there is a worker, in microseconds.
    static LOOKED_AT: Cell<i64> = const { Cell::new(0) };
}

/// Without a launcher, a backend looks for the worker this often: well below the least time after
/// which an idle worker ends.
const LOOK_EVERY_US: i64 = 500_000;

/// The same while its database waits for a turn.
const LOOK_OFTEN_US: i64 = 100_000;

/// The running transaction leaves something to fold. Called after its rows were written.
pub fn request() {
    // SAFETY: set once when the backend connected.
    let database = unsafe { pg_sys::MyDatabaseId };
    if directory::is_loaded() {
        directory::request(database);
        return;
    }
    let now = ports::now();
    let pause = if turns::waits() {
        LOOK_OFTEN_US
    } else {
        LOOK_EVERY_US
    };
    if now - LOOKED_AT.get() < pause {
        return;
    }
    LOOKED_AT.set(now);
    if WorkerMark::FIRST.is_set() {
        turns::stop_waiting();
    } else if lock::database_allows_connections() {
        // Whatever comes of it, the next commits try again, and reads are right meanwhile.
        match turns::find(database.to_u32(), settings::max_workers(), now) {
            turns::Chance::Turn(turn) => {
                turns::stop_waiting();
                // Who has asked before may have been gone just now, as his worker was there.
                if !WorkerMark::FIRST.is_set() && start(database, Purpose::Turn(turn)) {
                    stay_until_it_is_there();
                }
            }
            turns::Chance::NoTurn => turns::wait(database.to_u32(), now),
            turns::Chance::TooSoon => {}
        }
    }
}

thread_local! {
    /// Will [`wait_before_exit`] be called?
    static STAYS: Cell<bool> = const { Cell::new(false) };
    /// When this session started a worker last, in microseconds.
    static STARTED_AT: Cell<i64> = const { Cell::new(0) };
}

/// That a worker is on its way is known by a lock of the session that has asked for it. Many sessions
/// end right after they have counted, and each that follows would ask for one more.
fn stay_until_it_is_there() {
    STARTED_AT.set(ports::now());
    if !STAYS.replace(true) {
        // SAFETY: once in a process.
        unsafe { pg_sys::before_shmem_exit(Some(wait_before_exit), pg_sys::Datum::from(0)) };
    }
}

/// Nobody waits for this any more but the postmaster.
#[pg_guard]
unsafe extern "C-unwind" fn wait_before_exit(code: core::ffi::c_int, _arg: pg_sys::Datum) {
    const LONGEST_US: i64 = 500_000;
    const PAUSE: Duration = Duration::from_millis(10);
    // The session was not ended by force.
    if code == 0 {
        while (0..LONGEST_US).contains(&(ports::now() - STARTED_AT.get()))
            && !WorkerMark::FIRST.is_set()
        {
            std::thread::sleep(PAUSE);
        }
    }
}

/// What a worker is started for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To fold, by the launcher.
    Fold,
    /// To see whether a log can be emptied now, by the launcher.
    Visit,
    /// To fold, in this turn, without a launcher.
    Turn(u32),
    /// The same, as the next after a worker that is about to end.
    Next(u32),
    /// To fold beside others of its database.
    Further(Further),
}

/// A worker beside others of its database.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Further {
    /// From 1.
    pub number: u8,
    /// Without a launcher: its turn.
    pub turn: Option<u32>,
}

/// What the argument of a further worker has its number from.
const NUMBER_AT: u32 = 16;

impl Purpose {
    /// What the launcher starts one for.
    pub fn of(start: &Start) -> Self {
        match (start.seat.number, start.visit) {
            (0, true) => Self::Visit,
            (0, false) => Self::Fold,
            (number, _) => Self::Further(Further { number, turn: None }),
        }
    }

    /// The worker's number in its database.
    pub fn number(self) -> u8 {
        match self {
            Self::Further(further) => further.number,
            Self::Fold | Self::Visit | Self::Turn(_) | Self::Next(_) => 0,
        }
    }

    fn encode(self) -> u32 {
        match self {
            Self::Fold => 0,
            Self::Visit => 1,
            Self::Turn(turn) => 2 + 2 * turn,
            Self::Next(turn) => 3 + 2 * turn,
            Self::Further(Further { number, turn }) => {
                u32::from(number) << NUMBER_AT | turn.map_or(0, |turn| turn + 1)
            }
        }
    }

    /// What a worker's argument says.
    pub fn decode(number: u32) -> Self {
        let further = number >> NUMBER_AT;
        if further != 0 {
            let turn = number & ((1 << NUMBER_AT) - 1);
            return Self::Further(Further {
                number: further as u8,
                turn: turn.checked_sub(1),
            });
        }
        match number {
            0 => Self::Fold,
            1 => Self::Visit,
            other if other.is_multiple_of(2) => Self::Turn(other / 2 - 1),
            other => Self::Next((other - 3) / 2),
        }
    }
}

/// A worker of this database cannot keep up: asks for a further one, of this number. It comes if there is a turn that
/// no database needs. False when it will not; whatever comes of it, who wants one asks again. In no transaction.
pub fn request_further(database: pg_sys::Oid, number: u8) -> bool {
    if directory::is_loaded() {
        directory::request_further(Seat {
            database: database.to_u32(),
            number,
        });
        return true;
    }
    let turn = turns::find_for_further(settings::max_workers(), ports::now());
    turn.is_some() && start(database, Purpose::Further(Further { number, turn }))
}

/// Asks the postmaster for a worker. False when max_worker_processes are all in use.
pub fn start(database: pg_sys::Oid, purpose: Purpose) -> bool {
    builder(database, purpose).load_dynamic().is_ok()
}

/// The same, and waits until its process is there.
pub fn start_and_wait(database: pg_sys::Oid, purpose: Purpose) -> bool {
    // SAFETY: set when the process started.
    let notify = unsafe { pg_sys::MyProcPid };
    let builder = builder(database, purpose).set_notify_pid(notify);
    let Ok(worker) = builder.load_dynamic() else {
        return false;
    };
    // It may be over already, and that is as good.
    let _ = worker.wait_for_startup();
    true
}

fn builder(database: pg_sys::Oid, purpose: Purpose) -> BackgroundWorkerBuilder {
    let argument = usize::try_from(purpose.encode()).unwrap_or(0) << 32;
    BackgroundWorkerBuilder::new("counterx worker")
        .set_type("counterx worker")
        .set_library("counterx")
        .set_function("counterx_worker_main")
        .set_argument(Some(pg_sys::Datum::from(
            argument | database.to_u32() as usize,
        )))
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(None)
}

/// Starts the process that fills tracks, and checks some groups of them if that is asked for. Whether one is there
/// already, it finds out itself. False when max_worker_processes are all in use.
pub fn start_filler(database: pg_sys::Oid, checks: bool) -> bool {
    let argument = usize::from(checks) << 32 | database.to_u32() as usize;
    BackgroundWorkerBuilder::new("counterx filler")
        .set_type("counterx filler")
        .set_library("counterx")
        .set_function("counterx_filler_main")
        .set_argument(Some(pg_sys::Datum::from(argument)))
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(None)
        .load_dynamic()
        .is_ok()
}
