//! What a worker does about tracked tables: it has those counted whose counters are not exact.

use crate::bounds::types;
use crate::pg::error::log;
use crate::pg::lock::FillerMark;
use crate::pg::snapshot::LatestSnapshot;
use crate::process::session;
use crate::process::start;
use crate::process::uptime::Uptime;
use crate::settings;
use crate::track::tables::{self, Catalogs};
use crate::track::watch;
use counterx_core::schedule::LaneClock;
use pgrx::pg_sys;
use std::ffi::CStr;
use std::time::Duration;

/// How often a worker looks for tracks that are not exact.
const TRACKS_EVERY: Duration = Duration::from_millis(500);
/// How often some groups of tracked tables are compared with their rows, where that is asked for.
pub const CHECKS_EVERY: Duration = Duration::from_secs(60);
/// A worker folds, and waits for no lock that somebody else may have for long. The rows of tracks it passes over
/// where they are locked; this is for all else.
const SHORT_LOCK_TIMEOUT: &CStr = c"100ms";

/// What a worker knows of them.
#[derive(Default)]
pub struct Tracks {
    /// When the worker looks for tracks to be filled.
    looks: LaneClock,
    /// When it sees to what has not been noticed, which may be in somebody's way.
    watches: LaneClock,
    /// When those that it has found are tried again.
    fills: LaneClock,
    /// When some groups of the others were compared.
    checked: Option<Duration>,
    /// Which were not exact when it looked last.
    unfinished: Option<i64>,
}

impl Tracks {
    /// Looks for them, if it is time to.
    pub fn see_to(&mut self, up: &mut Uptime, database: pg_sys::Oid) {
        let now = up.now();
        if self.looks.due(now, TRACKS_EVERY) {
            self.looks.succeeded(now);
            self.look(up, database);
        }
    }

    /// Has tracks filled that are not exact, by a process of its own, and some groups of the others checked. What
    /// could not be filled is tried again after a pause that grows.
    pub fn look(&mut self, up: &mut Uptime, database: pg_sys::Oid) {
        session::set(c"lock_timeout", SHORT_LOCK_TIMEOUT);
        self.look_patiently(up, database);
        session::set(c"lock_timeout", c"0");
    }

    fn look_patiently(&mut self, up: &mut Uptime, database: pg_sys::Oid) {
        let now = up.now();
        if self.watches.due(now, TRACKS_EVERY) {
            self.watch(now);
        }
        let found = session::transaction(c"looking for tracks", || {
            if !types::are_any_tracked() {
                return (false, None, false);
            }
            let is_filler_there = FillerMark::is_set();
            let _latest = LatestSnapshot::take();
            let unfinished = tables::unfinished(&Catalogs::enter());
            (true, unfinished, is_filler_there)
        });
        let (are_any, unfinished, is_filler_there) = found.unwrap_or_else(|message| {
            log(format!(
                "counterx: the worker cannot look for tracks: {message}"
            ));
            (false, self.unfinished, false)
        });
        let is_new = unfinished != self.unfinished;
        self.unfinished = unfinished;
        // One that is there takes in what has come, and checks groups itself.
        let fills = unfinished.is_some()
            && !is_filler_there
            && (is_new || self.fills.due(now, TRACKS_EVERY));
        if is_new || unfinished.is_none() {
            self.fills.succeeded(now);
        }
        if fills {
            self.fills.failed(now);
        }
        if is_new && unfinished.is_some() {
            up.note_work();
        }
        let checks = are_any
            && !is_filler_there
            && settings::track_checks() > 0
            && self.checked.is_none_or(|at| now - at >= CHECKS_EVERY);
        if checks {
            self.checked = Some(now);
        }
        if (fills || checks) && !start::start_filler(database, checks) {
            log(
                "counterx: no process could be started to count rows of tracked tables: max_worker_processes are all in use",
            );
            if fills {
                self.note_that_there_is_no_slot();
            }
        }
    }

    /// Sees to what has not been noticed. What somebody is in the way of is tried again after a pause that grows.
    fn watch(&mut self, now: Duration) {
        let watched = session::transaction(c"looking at tracks", || {
            if !types::are_any_tracked() {
                return true;
            }
            let _latest = LatestSnapshot::take();
            watch::see_to(&Catalogs::enter())
        });
        match watched {
            Ok(true) => self.watches.succeeded(now),
            Ok(false) => self.watches.failed(now),
            Err(message) => {
                self.watches.failed(now);
                log(format!(
                    "counterx: the worker cannot look at tracks: {message}"
                ));
            }
        }
    }

    fn note_that_there_is_no_slot(&self) {
        let noted = session::transaction(c"noting that nobody can count", || {
            let _latest = LatestSnapshot::take();
            tables::note_unfinished(
                &Catalogs::enter(),
                "no process could be started to count: max_worker_processes are all in use",
            );
        });
        if let Err(message) = noted {
            log(format!(
                "counterx: cannot note that nobody can count: {message}"
            ));
        }
    }
}
