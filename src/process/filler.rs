//! The process that makes tracks exact: it counts the rows of tables that have just been tracked, and of those
//! whose tracks are stale.
//!
//! It is started by the worker, which must go on folding: to count a large table takes minutes. One at a time
//! in a database, and it ends when there is nothing left that it can do now; the worker looks again. Where
//! `counterx.track_checks` asks for it, one is started each minute to compare some groups of the others.
//!
//! # Note about waiting
//! Before the rows of a table are counted, all must have ended who have it in use (`fill.rs`). That may take hours:
//! a prepared transaction is one of them, an autovacuum another. So the filler waits outside of any transaction, with
//! no lock and no snapshot, and looks again and again who has ended; and it waits for those of all tables at once, and
//! takes in tracks that come meanwhile. Those of a track are taken down once, right after its row was read, and again
//! only when that row says something else: on a busy table there is always somebody, and who has come later is
//! not waited for.

use crate::pg::compat;
use crate::pg::error::log;
use crate::pg::lock::{self, FillerMark};
use crate::pg::ports;
use crate::pg::relation::SHARE_ROW_EXCLUSIVE;
use crate::pg::snapshot::LatestSnapshot;
use crate::process::session;
use crate::process::tracks::CHECKS_EVERY;
use crate::settings;
use crate::store::catalog;
use crate::track::check;
use crate::track::fill::{self, NotNow, Others};
use crate::track::tables::{self, Catalogs, Patience, Track};
use crate::track::watch;
use crate::write::pressure;
use counterx_core::schedule::LaneClock;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::time::{Duration, Instant};

/// While it waits, the filler looks for further tracks this often; what could not be counted is tried again after
/// this time, and then less and less often.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Most transactions are short: at first it looks this soon whether they have ended, and then less often.
const SOON: Duration = Duration::from_millis(10);
/// What others may have locked for long is tried again later.
const LOCK_TIMEOUT: &std::ffi::CStr = c"5s";

/// The filler's main function; the argument is the database's OID, and whether to check groups.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn counterx_filler_main(arg: pg_sys::Datum) {
    compat::set_signal_handler(pg_sys::SIGTERM, ports::die);
    compat::set_signal_handler(pg_sys::SIGHUP, ports::SignalHandlerForConfigReload);
    session::ignore_cancels();
    let database = pg_sys::Oid::from(arg.value() as u32);
    let checks = arg.value() >> 32 != 0;
    // SAFETY: once, at the start of a background worker.
    unsafe { pg_sys::BackgroundWorkerUnblockSignals() };
    // SAFETY: once, as the bootstrap superuser.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::InvalidOid, 0);
    }
    session::own_settings(&[(c"lock_timeout", LOCK_TIMEOUT)]);
    pressure::exempt();
    // The worker looks whether somebody has it, which takes a moment.
    if !session::patiently(FillerMark::try_set) {
        return;
    }
    failpoint!("filler.ready");
    Filler::new(checks).run();
}

/// A track that is not exact.
struct Unfinished {
    track: Track,
    /// Who has to end before it is counted.
    others: Others,
    /// How many they were when they were told.
    told: usize,
    /// When it was tried; None: not yet.
    tries: Option<LaneClock>,
}

struct Filler {
    started: Instant,
    /// When it has looked for tracks.
    looked: Option<Duration>,
    /// When it has compared some groups.
    checked: Option<Duration>,
    unfinished: Vec<Unfinished>,
}

impl Filler {
    fn new(checks: bool) -> Self {
        Self {
            started: Instant::now(),
            looked: None,
            checked: (!checks).then_some(Duration::ZERO),
            unfinished: Vec::new(),
        }
    }

    fn run(&mut self) {
        let mut pause = SOON;
        loop {
            if lock::database_is_wanted() {
                return;
            }
            let now = self.started.elapsed();
            if self.looked.is_none_or(|at| now - at >= LOOK_EVERY) {
                self.looked = Some(now);
                if self.look() {
                    pause = SOON;
                }
            }
            self.see_who_has_ended();
            self.fill();
            self.check();
            if self.unfinished.iter().all(|it| it.others.is_empty()) {
                return;
            }
            session::wait(pause);
            pause = (pause * 2).min(LOOK_EVERY);
        }
    }

    /// Which tracks are not exact, and who has to end before they are counted. Is there a new one?
    fn look(&mut self) -> bool {
        let known = &mut self.unfinished;
        let found = session::transaction(c"looking for tracks", || {
            if catalog::try_shared().is_err() {
                return Vec::new();
            }
            let _latest = LatestSnapshot::take();
            let catalogs = Catalogs::enter();
            let mut found = Vec::new();
            for track in tables::tracks(&catalogs, None, None) {
                let is_due = track.is_known && track.state != "exact";
                let Some(table) = track.table.filter(|_| is_due) else {
                    continue;
                };
                let Some(old) = known.iter_mut().find(|old| old.track == track) else {
                    let others = Others::of(&catalogs, &track, table);
                    found.push((track, Some(others)));
                    continue;
                };
                if old.told != old.others.len() {
                    let told = (!old.others.is_empty()).then(|| old.others.shown(&catalogs));
                    tables::note(&catalogs, &track.type_name, "waiting_for", told.as_deref());
                    old.told = old.others.len();
                }
                found.push((track, None));
            }
            found
        });
        let found = match found {
            Ok(found) => found,
            Err(message) => {
                log(format!("counterx: cannot look for tracks: {message}"));
                return false;
            }
        };
        let mut is_new = false;
        let mut old = std::mem::take(&mut self.unfinished);
        for (track, others) in found {
            if let Some(others) = others {
                is_new = true;
                self.unfinished.push(Unfinished {
                    track,
                    others,
                    told: 0,
                    tries: None,
                });
            } else if let Some(at) = old.iter().position(|old| old.track == track) {
                self.unfinished.push(old.swap_remove(at));
            }
        }
        is_new
    }

    fn see_who_has_ended(&mut self) {
        if self.unfinished.iter().all(|it| it.others.is_empty()) {
            return;
        }
        let seen = session::transaction(c"waiting for who uses tracked tables", || {
            for it in &mut self.unfinished {
                it.others.see_who_has_ended();
            }
        });
        if let Err(message) = seen {
            log(format!(
                "counterx: cannot see who uses tracked tables: {message}"
            ));
        }
    }

    /// Counts those that need not wait for anybody any more.
    fn fill(&mut self) {
        for it in &mut self.unfinished {
            let now = self.started.elapsed();
            let is_due = (it.tries.as_ref()).is_none_or(|tries| tries.due(now, LOOK_EVERY));
            if !is_due || !it.others.is_empty() {
                continue;
            }
            failpoint!("filler.looked");
            pgrx::check_for_interrupts!();
            if std::mem::take(&mut it.told) > 0 {
                note(&it.track.type_name, "waiting_for", None);
            }
            fill_one(&it.track);
            // Whether it is exact now, the next look tells.
            let now = self.started.elapsed();
            it.tries.get_or_insert_default().failed(now);
        }
    }

    /// Compares some groups of the others, now and then.
    fn check(&mut self) {
        let now = self.started.elapsed();
        if self.checked.is_some_and(|at| now - at < CHECKS_EVERY) {
            return;
        }
        self.checked = Some(now);
        check_some(settings::track_checks());
    }
}

/// Compares so many groups of the tracks that are exact, those of a track at random first.
fn check_some(mut groups: usize) {
    if groups == 0 {
        return;
    }
    let mut tracks = exact_tracks();
    if !tracks.is_empty() {
        let first = ports::random() as usize % tracks.len();
        tracks.rotate_left(first);
    }
    let mut left = tracks.len();
    for track in tracks {
        pgrx::check_for_interrupts!();
        let Some(table) = track.table else { continue };
        let type_name = track.type_name.as_str();
        let share = groups.div_ceil(left);
        left -= 1;
        let checked = session::transaction(c"comparing some groups of a tracked table", || {
            let _latest = LatestSnapshot::take();
            let catalogs = Catalogs::enter();
            let checked = check::some_groups(&catalogs, table, type_name, share);
            if let Some(why) = &checked.wrong {
                watch::set_stale(&catalogs, type_name, why, Some(table));
            }
            checked
        });
        match checked {
            Ok(checked) => groups = groups.saturating_sub(checked.groups),
            Err(message) => log(format!(
                "counterx: comparing some groups of the tracked table of type \"{type_name}\" failed: {message}"
            )),
        }
    }
}

/// The tracks that are exact, and whose tables are here. With an error, none.
fn exact_tracks() -> Vec<Track> {
    let looked = session::transaction(c"looking for tracks", || {
        if catalog::try_shared().is_err() {
            return Vec::new();
        }
        let _latest = LatestSnapshot::take();
        let mut tracks = tables::tracks(&Catalogs::enter(), None, None);
        tracks.retain(|track| track.table.is_some() && track.is_known && track.state == "exact");
        tracks
    });
    looked.unwrap_or_else(|message| {
        log(format!("counterx: cannot look for tracks: {message}"));
        Vec::new()
    })
}

/// Notes how far a track is, unless somebody has its row locked.
fn note(type_name: &str, what: &str, text: Option<&str>) {
    let noted = session::transaction(c"noting how far a track is", || {
        let _latest = LatestSnapshot::take();
        tables::note(&Catalogs::enter(), type_name, what, text);
    });
    if let Err(message) = noted {
        log(format!(
            "counterx: cannot note how far a track is: {message}"
        ));
    }
}

fn fill_one(track: &Track) {
    let Some(table) = track.table else { return };
    let type_name = &track.type_name;
    let noted = |what: &str, text: Option<String>| note(type_name, what, text.as_deref());
    let result = session::transaction(c"counting the rows of a tracked table", || {
        let _latest = LatestSnapshot::take();
        let catalogs = Catalogs::enter();
        fill::fill(&catalogs, track, table, Patience::ComesAgain)
            .map(|differences| differences.len())
    });
    failpoint!("filler.filled");
    match result {
        Ok(Ok(differences)) => log(format!(
            "counterx: the track of type \"{type_name}\" is exact; {differences} counters were put right"
        )),
        Ok(Err(NotNow::Locked)) => {
            let holders = session::transaction(c"looking for who uses a table", || {
                let _latest = LatestSnapshot::take();
                tables::holders(&Catalogs::enter(), table, SHARE_ROW_EXCLUSIVE)
            });
            if let Ok(holders) = holders {
                noted("waiting_for", holders);
            }
        }
        Ok(Err(NotNow::Trouble(trouble))) => noted("last_error", Some(trouble)),
        Err(message) => {
            log(format!(
                "counterx: counting the rows of the tracked table of type \"{type_name}\" failed: {message}"
            ));
            noted("last_error", Some(message));
        }
    }
}
