//! What a worker does about tracked tables: it has those counted whose counters are not exact.

use crate::bounds::types;
use crate::pg::error::log;
use crate::pg::snapshot::LatestSnapshot;
use crate::process::session;
use crate::process::start;
use crate::process::uptime::Uptime;
use crate::settings;
use crate::track::tables::{self, Catalogs};
use crate::track::watch;
use counterx_core::schedule::LaneClock;
use pgrx::pg_sys;
use std::time::Duration;

/// How often a worker looks for tracks that are not exact.
const TRACKS_EVERY: Duration = Duration::from_millis(500);
/// How often some groups of tracked tables are compared with their rows, where that is asked for.
const CHECKS_EVERY: Duration = Duration::from_secs(60);

/// What a worker knows of them.
#[derive(Default)]
pub struct Tracks {
    /// When the worker looks for tracks to be filled.
    looks: LaneClock,
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
        let now = up.now();
        let found = session::transaction(c"looking for tracks", || {
            if !types::are_any_tracked() {
                return (false, None);
            }
            let _latest = LatestSnapshot::take();
            let catalogs = Catalogs::enter();
            watch::see_to(&catalogs);
            (true, tables::unfinished(&catalogs))
        });
        let (are_any, unfinished) = found.unwrap_or_else(|message| {
            log(format!(
                "counterx: the worker cannot look for tracks: {message}"
            ));
            (false, self.unfinished)
        });
        let is_new = unfinished != self.unfinished;
        self.unfinished = unfinished;
        let fills = unfinished.is_some() && (is_new || self.fills.due(now, TRACKS_EVERY));
        if is_new || unfinished.is_none() {
            self.fills.succeeded(now);
        }
        if fills {
            self.fills.failed(now);
            if is_new {
                up.note_work();
            }
        }
        let checks = are_any
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
