//! The launcher, which starts workers, and the shared memory in which it is asked for them. Both
//! exist only when the library is in `shared_preload_libraries`.
//!
//! # Note about shared memory
//! One LWLock protects all of [`Directory`]. A committing transaction takes it shared, finds that
//! its database has a worker or waits for one, and is done; only when there is none does it take it
//! exclusively, leave a request and set the launcher's latch. Nobody waits for anything while
//! holding it, and a process that dies with it takes the server through crash recovery, which makes
//! it anew.

use crate::committer;
use crate::pg::compat;
use crate::pg::error::log;
use crate::pg::lock;
use crate::pg::ports;
use crate::settings;
use crate::worker;
use counterx_core::turns;
use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgLwLock, pg_shmem_init, pg_sys};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Three quarters of so many databases can have a worker, or want one, at a time. The others' next
/// commits ask again. It takes a few hundred kilobytes.
const PLACES: usize = 4096;

/// A worker of one database is not started more often than this.
const START_PAUSE: Duration = Duration::from_secs(1);

/// The launcher looks around this often when nobody calls it.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// When no worker can be started, the log says so again after this time at the earliest.
const SAY_AGAIN_AFTER_US: i64 = 60_000_000;

/// What the processes share.
#[derive(Default)]
struct Directory {
    /// The address of the launcher's latch, which lies in shared memory; 0 before it has started.
    launcher_latch: usize,
    databases: turns::Directory<PLACES>,
}

// SAFETY: plain data, and an address that is the same in all processes.
unsafe impl PGRXSharedMemory for Directory {}

// SAFETY: the name is unique to this extension.
static DIRECTORY: PgLwLock<Directory> = unsafe { PgLwLock::new(c"counterx") };

static PRELOADED: AtomicBool = AtomicBool::new(false);

/// Was the library loaded through `shared_preload_libraries`?
pub fn is_loaded() -> bool {
    PRELOADED.load(Ordering::Relaxed)
}

/// Reserves shared memory and registers the launcher. Called from `_PG_init`, when the postmaster
/// loads the library.
pub fn register() {
    pg_shmem_init!(DIRECTORY);
    PRELOADED.store(true, Ordering::Relaxed);
    BackgroundWorkerBuilder::new("counterx launcher")
        .set_type("counterx launcher")
        .set_library("counterx")
        .set_function("counterx_launcher_main")
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(Duration::from_secs(5)))
        .load();
}

/// A transaction of this database leaves something to fold. Called in that transaction.
pub fn request(database: pg_sys::Oid) {
    let lacks_worker = (DIRECTORY.share().databases).lacks_worker(database.to_u32(), now);
    if lacks_worker && lock::database_allows_connections() {
        request_always(database);
    }
}

/// The same in no transaction.
pub fn request_always(database: pg_sys::Oid) {
    let latch = {
        let mut directory = DIRECTORY.exclusive();
        directory.databases.request(database.to_u32(), now());
        directory.launcher_latch
    };
    wake(latch);
}

/// The worker of this database has begun its work, or goes on with it. `visit`: it only looks in.
pub fn set_working(database: pg_sys::Oid, visit: bool) {
    let latch = {
        let mut directory = DIRECTORY.exclusive();
        (directory.databases).working(database.to_u32(), visit, now());
        directory.launcher_latch
    };
    // From now on it can be asked to make room.
    wake(latch);
}

/// The worker of this database has ended its work. Cannot fail: it is called when a process exits.
pub fn set_stopped(database: pg_sys::Oid) {
    DIRECTORY.exclusive().databases.stopped(database.to_u32());
}

/// The worker of this database could not begin. Cannot fail: it is called when a process exits.
pub fn set_failed(database: pg_sys::Oid) {
    (DIRECTORY.exclusive().databases).failed(database.to_u32(), now());
}

/// The worker of this database ends without having looked whether there is work left. Cannot fail:
/// it is called when a process exits.
pub fn request_again(database: pg_sys::Oid) {
    (DIRECTORY.exclusive().databases).request_again(database.to_u32(), now());
}

/// A worker is to look in after this time, if no commit wants one before.
pub fn visit_after(database: pg_sys::Oid, pause: Duration) {
    let at = now() + pause.as_micros() as i64;
    (DIRECTORY.exclusive().databases).visit_at(database.to_u32(), at, now());
}

/// The worker of this database has work, or has none.
pub fn set_busy(database: pg_sys::Oid, busy: bool) {
    (DIRECTORY.exclusive().databases).set_busy(database.to_u32(), busy);
}

/// Is the worker of this database to make room? How many databases wait?
pub fn asked(database: pg_sys::Oid) -> (bool, u32) {
    DIRECTORY.share().databases.asked(database.to_u32())
}

/// There may be a turn to give away. Cannot fail: it is called when a process exits.
pub fn look() {
    let latch = DIRECTORY.share().launcher_latch;
    wake(latch);
}

fn wake(latch: usize) {
    if latch != 0 {
        // SAFETY: the latch of a process slot, which is never freed. Should the launcher have
        // died, whoever has the slot now looks around once for nothing.
        unsafe { pg_sys::SetLatch(latch as *mut pg_sys::Latch) };
    }
}

fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// The launcher's main function.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn counterx_launcher_main(_arg: pg_sys::Datum) {
    compat::set_signal_handler(pg_sys::SIGTERM, ports::die);
    compat::set_signal_handler(pg_sys::SIGHUP, ports::SignalHandlerForConfigReload);
    worker::ignore_cancels();
    // SAFETY: once, at the start of a background worker. Without a database, so that none is held.
    unsafe {
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0);
        DIRECTORY.exclusive().launcher_latch = pg_sys::MyLatch as usize;
    }
    let mut launcher = Launcher::default();
    loop {
        let pause = launcher.start_next();
        worker::wait(pause.min(committer::start_wanted()));
    }
}

/// What the launcher remembers. Times are microseconds of the server's clock.
#[derive(Default)]
struct Launcher {
    last_starts: HashMap<u32, i64>,
    shortage: Option<Shortage>,
    /// When the log said that there are no slots.
    said_at: Option<i64>,
}

/// The postmaster had no slot for more workers than these.
#[derive(Clone, Copy)]
struct Shortage {
    workers: usize,
    until: i64,
}

impl Launcher {
    /// Starts those whose turn it is. Returns how long there is nothing to do, if nobody calls.
    fn start_next(&mut self) -> Duration {
        const PAUSE_US: i64 = START_PAUSE.as_micros() as i64;
        let now = now();
        self.last_starts.retain(|_, at| now - *at < PAUSE_US);
        let mut turns = settings::max_workers() as usize;
        if let Some(shortage) = self.shortage.filter(|shortage| now < shortage.until) {
            // So that those who have a slot make room for those who wait.
            turns = turns.min(shortage.workers);
        }
        let held_up = |database| self.last_starts.get(&database).map(|at| at + PAUSE_US);
        let plan = (DIRECTORY.exclusive().databases).plan(now, turns, held_up);
        let mut next = plan.next.unwrap_or(i64::MAX);
        if plan.waiting > 0 {
            next = next.min(now + PAUSE_US);
        }
        let mut starts = plan.start.into_iter();
        let mut refused = None;
        for start in starts.by_ref() {
            // The entry says so already, so that the worker's own report comes later.
            if !worker::start(start.database.into(), worker::Purpose::of(start.visit)) {
                refused = Some(start);
                break;
            }
            self.last_starts.insert(start.database, now);
        }
        if let Some(refused) = refused {
            let workers = {
                let mut directory = DIRECTORY.exclusive();
                for start in std::iter::once(refused).chain(starts) {
                    directory.databases.refused(start);
                }
                directory.databases.turns_taken()
            };
            let until = now + PAUSE_US;
            self.shortage = Some(Shortage { workers, until });
            next = next.min(until);
            if self.said_at.is_none() {
                log("counterx: no free background worker slot, will try again");
                self.said_at = Some(now);
            }
        } else if self.shortage.is_some_and(|shortage| now >= shortage.until) {
            self.shortage = None;
        }
        // An episode is over when there was no shortage for a while.
        if self.shortage.is_some() {
            self.said_at = self.said_at.map(|_| now);
            next = next.min(now + PAUSE_US);
        } else if self.said_at.is_some_and(|at| now - at > SAY_AGAIN_AFTER_US) {
            self.said_at = None;
        }
        let pause = u64::try_from(next.saturating_sub(now)).unwrap_or(0);
        Duration::from_micros(pause).min(LOOK_EVERY)
    }
}
