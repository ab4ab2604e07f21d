//! The launcher, which starts workers. It exists only when the library is in `shared_preload_libraries`.

use crate::pg::compat;
use crate::pg::error::log;
use crate::pg::ports;
use crate::process::committer;
use crate::process::directory;
use crate::process::session;
use crate::process::start;
use crate::settings;
use counterx_core::turns::Seat;
use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::collections::HashMap;
use std::time::Duration;

/// A worker of one database is not started more often than this.
const START_PAUSE: Duration = Duration::from_secs(1);

/// The launcher looks around this often when nobody calls it.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// When no worker can be started, the log says so again after this time at the earliest.
const SAY_AGAIN_AFTER_US: i64 = 60_000_000;

/// Registers the launcher. Called from `_PG_init`, when the postmaster loads the library.
pub fn register() {
    BackgroundWorkerBuilder::new("counterx launcher")
        .set_type("counterx launcher")
        .set_library("counterx")
        .set_function("counterx_launcher_main")
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(Duration::from_secs(5)))
        .load();
}

/// The launcher's main function.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn counterx_launcher_main(_arg: pg_sys::Datum) {
    compat::set_signal_handler(pg_sys::SIGTERM, ports::die);
    compat::set_signal_handler(pg_sys::SIGHUP, ports::SignalHandlerForConfigReload);
    session::ignore_cancels();
    // SAFETY: once, at the start of a background worker. Without a database, so that none is held.
    unsafe {
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0);
        directory::set_launcher(pg_sys::MyLatch);
    }
    let mut launcher = Launcher::default();
    loop {
        let pause = launcher.start_next();
        session::wait(pause.min(committer::start_wanted()));
    }
}

/// What the launcher remembers. Times are microseconds of the server's clock.
#[derive(Default)]
struct Launcher {
    last_starts: HashMap<Seat, i64>,
    shortage: Option<Shortage>,
    /// When the log said that there are no slots.
    said_at: Option<i64>,
    /// The same of those for further workers.
    said_of_further_at: Option<i64>,
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
        let now = ports::now();
        self.last_starts.retain(|_, at| now - *at < PAUSE_US);
        let mut turns = settings::max_workers() as usize;
        if let Some(shortage) = self.shortage.filter(|shortage| now < shortage.until) {
            // So that those who have a slot make room for those who wait.
            turns = turns.min(shortage.workers);
        }
        let held_up = |seat| self.last_starts.get(&seat).map(|at| at + PAUSE_US);
        let plan = directory::plan(turns, held_up);
        let mut next = plan.next.unwrap_or(i64::MAX);
        if plan.waiting > 0 {
            next = next.min(now + PAUSE_US);
        }
        let mut starts = plan.start.into_iter();
        let mut refused = None;
        for start in starts.by_ref() {
            // The entry says so already, so that the worker's own report comes later.
            if start::start(start.seat.database.into(), start::Purpose::of(&start)) {
                self.last_starts.insert(start.seat, now);
            } else if start.seat.is_first() {
                refused = Some(start);
                break;
            } else {
                // Nobody makes room for it. It is tried less and less often.
                directory::set_failed(start.seat);
                self.say_that_none_can_help(now);
            }
        }
        if let Some(refused) = refused {
            let workers = directory::refused(std::iter::once(refused).chain(starts));
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

    fn say_that_none_can_help(&mut self, now: i64) {
        let said = self.said_of_further_at;
        if said.is_none_or(|at| now - at > SAY_AGAIN_AFTER_US) {
            log(
                "counterx: no free background worker slot for a further worker of a database, will try again",
            );
        }
        self.said_of_further_at = Some(now);
    }
}
