//! What sessions, workers and the launcher share: which databases have a worker, or want one. It exists only
//! when the library is in `shared_preload_libraries`.
//!
//! # Note about shared memory
//! One LWLock protects all of [`Directory`]. A committing transaction takes it shared, finds that
//! its database has a worker or waits for one, and is done; only when there is none does it take it
//! exclusively, leave a request and set the launcher's latch. Nobody waits for anything while
//! holding it, and a process that dies with it takes the server through crash recovery, which makes
//! it anew.

use crate::pg::lock;
use crate::pg::ports;
use counterx_core::turns::{self, Seat};
use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgLwLock, pg_shmem_init, pg_sys};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Three quarters of so many workers can be there, or be wanted, at a time. The others' next
/// commits ask again. It takes a few hundred kilobytes.
const PLACES: usize = 4096;

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

/// Reserves the shared memory. Called from `_PG_init`, when the postmaster loads the library.
pub fn register() {
    pg_shmem_init!(DIRECTORY);
    PRELOADED.store(true, Ordering::Relaxed);
}

/// The launcher is here, and is woken by its latch from now on.
pub fn set_launcher(latch: *mut pg_sys::Latch) {
    DIRECTORY.exclusive().launcher_latch = latch as usize;
}

/// What the launcher is to do where so many may work at a time: see [`turns::Directory::plan`].
pub fn plan(turns: usize, held_up: impl Fn(Seat) -> Option<i64>) -> turns::Plan {
    (DIRECTORY.exclusive().databases).plan(ports::now(), turns, held_up)
}

/// The postmaster has refused these. Returns how many turns are taken.
pub fn refused(starts: impl Iterator<Item = turns::Start>) -> usize {
    let mut directory = DIRECTORY.exclusive();
    for start in starts {
        directory.databases.refused(start);
    }
    directory.databases.turns_taken()
}

/// Was the library loaded through `shared_preload_libraries`?
pub fn is_loaded() -> bool {
    PRELOADED.load(Ordering::Relaxed)
}

/// A transaction of this database leaves something to fold. Called in that transaction.
pub fn request(database: pg_sys::Oid) {
    let lacks_worker = (DIRECTORY.share().databases).lacks_worker(database.to_u32(), ports::now);
    if lacks_worker && lock::database_allows_connections() {
        request_always(database);
    }
}

/// The same in no transaction.
pub fn request_always(database: pg_sys::Oid) {
    let latch = {
        let mut directory = DIRECTORY.exclusive();
        directory.databases.request(database.to_u32(), ports::now());
        directory.launcher_latch
    };
    wake(latch);
}

/// A worker has more to do than it can. If there is a turn that no database needs, a further one comes.
pub fn request_further(seat: Seat) {
    let latch = {
        let mut directory = DIRECTORY.exclusive();
        directory.databases.request(seat, ports::now());
        directory.launcher_latch
    };
    wake(latch);
}

/// This worker has begun its work, or goes on with it. `visit`: it only looks in.
pub fn set_working(seat: Seat, visit: bool) {
    let latch = {
        let mut directory = DIRECTORY.exclusive();
        (directory.databases).working(seat, visit, ports::now());
        directory.launcher_latch
    };
    // From now on it can be asked to make room.
    wake(latch);
}

/// This worker has ended its work. Cannot fail: it is called when a process exits.
pub fn set_stopped(seat: Seat) {
    DIRECTORY.exclusive().databases.stopped(seat);
}

/// This worker could not begin. Cannot fail: it is called when a process exits.
pub fn set_failed(seat: Seat) {
    (DIRECTORY.exclusive().databases).failed(seat, ports::now());
}

/// The first worker of this database ends without having looked whether there is work left. Cannot fail:
/// it is called when a process exits.
pub fn request_again(database: pg_sys::Oid) {
    (DIRECTORY.exclusive().databases).request_again(database.to_u32(), ports::now());
}

/// The first worker of this database has left work behind, as somebody needs the database alone. Another one comes when
/// that is over.
pub fn owe(database: pg_sys::Oid) {
    let latch = {
        let mut directory = DIRECTORY.exclusive();
        directory.databases.owe(database.to_u32(), ports::now());
        directory.launcher_latch
    };
    wake(latch);
}

/// A worker is to look in after this time, if no commit wants one before.
pub fn visit_after(database: pg_sys::Oid, pause: Duration) {
    let at = ports::now() + pause.as_micros() as i64;
    (DIRECTORY.exclusive().databases).visit_at(database.to_u32(), at, ports::now());
}

/// This worker has work, or has none.
pub fn set_busy(seat: Seat, busy: bool) {
    (DIRECTORY.exclusive().databases).set_busy(seat, busy);
}

/// Is this worker to make room? How many databases wait?
pub fn asked(seat: Seat) -> (bool, u32) {
    DIRECTORY.share().databases.asked(seat)
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
