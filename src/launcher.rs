//! The launcher, which starts workers, and the shared memory in which it is asked for them. Both
//! exist only when the library is in `shared_preload_libraries`.
//!
//! # Note about shared memory
//! One LWLock protects all of [`Directory`]. A committing transaction takes it shared, finds that
//! its database has a worker, and is done; only when there is none does it take it exclusively,
//! leave a request and set the launcher's latch. Nobody waits for anything while holding it, and
//! a process that dies with it takes the server through crash recovery, which makes it anew.

use crate::pg::compat;
use crate::pg::error::log;
use crate::pg::ports;
use crate::worker;
use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgLwLock, pg_shmem_init, pg_sys};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// So many databases can have a worker at a time. Each takes one of max_worker_processes as well,
/// of which few servers have more.
const MAX_DATABASES: usize = 128;

/// A worker of one database is not started more often than this.
const START_PAUSE: Duration = Duration::from_secs(1);

/// A worker that has not reported for duty by then never will: its database is gone, say.
const START_TIMEOUT_US: i64 = 30_000_000;

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum SlotState {
    #[default]
    Free,
    /// A commit has left something to fold.
    Requested,
    /// The launcher has asked the postmaster for a worker.
    Starting,
    /// The worker is there.
    Running,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    database: u32,
    state: SlotState,
    /// Since when, in microseconds.
    since: i64,
}

/// What the processes share.
struct Directory {
    /// The address of the launcher's latch, which lies in shared memory; 0 before it has started.
    launcher_latch: usize,
    slots: [Slot; MAX_DATABASES],
}

impl Default for Directory {
    fn default() -> Self {
        Self {
            launcher_latch: 0,
            slots: [Slot::default(); MAX_DATABASES],
        }
    }
}

impl Directory {
    fn slot_of(&mut self, database: u32) -> Option<&mut Slot> {
        let taken = |slot: &Slot| slot.database == database && slot.state != SlotState::Free;
        let at = self.slots.iter().position(taken).or_else(|| {
            self.slots
                .iter()
                .position(|slot| slot.state == SlotState::Free)
        })?;
        Some(&mut self.slots[at])
    }
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

/// A transaction of this database leaves something to fold.
pub fn request(database: pg_sys::Oid) {
    let database = database.to_u32();
    let known = DIRECTORY
        .share()
        .slots
        .iter()
        .any(|slot| slot.database == database && slot.state != SlotState::Free);
    if known {
        return;
    }
    let latch = {
        let mut directory = DIRECTORY.exclusive();
        if let Some(slot) = directory.slot_of(database)
            && slot.state == SlotState::Free
        {
            *slot = Slot {
                database,
                state: SlotState::Requested,
                since: now(),
            };
        }
        directory.launcher_latch
    };
    wake(latch);
}

/// The worker of this database has begun its work, or goes on with it.
pub fn set_running(database: pg_sys::Oid) {
    set(database, SlotState::Running);
}

/// The worker of this database has ended its work. Cannot fail: it is called when a process exits.
pub fn set_stopped(database: pg_sys::Oid) {
    set(database, SlotState::Free);
}

/// The worker of this database ends without having looked whether there is work left. Cannot fail:
/// it is called when a process exits.
pub fn request_again(database: pg_sys::Oid) {
    set(database, SlotState::Requested);
    wake(DIRECTORY.share().launcher_latch);
}

fn set(database: pg_sys::Oid, state: SlotState) {
    let database = database.to_u32();
    if let Some(slot) = DIRECTORY.exclusive().slot_of(database) {
        *slot = Slot {
            database,
            state,
            since: now(),
        };
    }
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
    // SAFETY: once, at the start of a background worker. Without a database, so that none is held.
    unsafe {
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0);
        DIRECTORY.exclusive().launcher_latch = pg_sys::MyLatch as usize;
    }
    let mut last_start: HashMap<u32, Instant> = HashMap::new();
    loop {
        let waiting = start_requested(&mut last_start);
        let pause = if waiting {
            START_PAUSE
        } else {
            Duration::from_secs(10)
        };
        worker::wait(pause);
    }
}

/// Starts what was asked for. True when something has to be tried again.
fn start_requested(last_start: &mut HashMap<u32, Instant>) -> bool {
    last_start.retain(|_, started| started.elapsed() < START_PAUSE);
    let mut again = false;
    let requested: Vec<u32> = {
        let mut directory = DIRECTORY.exclusive();
        for slot in &mut directory.slots {
            if slot.state == SlotState::Starting {
                again = true;
                if now() - slot.since > START_TIMEOUT_US {
                    slot.state = SlotState::Free;
                }
            }
        }
        directory
            .slots
            .iter()
            .filter(|slot| slot.state == SlotState::Requested)
            .map(|slot| slot.database)
            .collect()
    };
    for database in requested {
        if last_start.contains_key(&database) {
            again = true;
            continue;
        }
        // Before the start, so that the worker's own report comes later.
        set(pg_sys::Oid::from(database), SlotState::Starting);
        if worker::start(pg_sys::Oid::from(database)) {
            last_start.insert(database, Instant::now());
        } else {
            log("counterx: no free background worker slot, will try again");
            set(pg_sys::Oid::from(database), SlotState::Requested);
        }
        again = true;
    }
    again
}
