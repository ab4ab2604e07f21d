//! The process that makes tracks exact: it counts the rows of tables that have just been tracked, and of those
//! whose tracks are stale.
//!
//! It is started by the worker, which must go on folding: to count a large table takes minutes. One at a time
//! in a database, and it ends when there is nothing left that it can do now; the worker looks again. Where
//! `counterx.track_checks` asks for it, one is started each minute to compare some groups of the others.

use crate::pg::compat;
use crate::pg::error::log;
use crate::pg::lock::FillerMark;
use crate::pg::ports;
use crate::pg::relation::SHARE_ROW_EXCLUSIVE;
use crate::pg::snapshot::LatestSnapshot;
use crate::process::session;
use crate::settings;
use crate::store::catalog;
use crate::track::check;
use crate::track::fill::{self, NotNow};
use crate::track::tables::{self, Catalogs, Track};
use crate::track::watch;
use crate::write::pressure;
use pgrx::pg_sys;
use pgrx::prelude::*;

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
    session::own_settings(&[(c"lock_timeout", c"0")]);
    pressure::exempt();
    if !FillerMark::try_set() {
        return;
    }
    failpoint!("filler.ready");
    for track in tracks(|track| track.state != "exact") {
        failpoint!("filler.looked");
        pgrx::check_for_interrupts!();
        fill_one(&track);
    }
    if checks {
        check_some(settings::track_checks());
    }
}

/// Compares so many groups of the tracks that are exact, those of a track at random first.
fn check_some(mut groups: usize) {
    let mut tracks = tracks(|track| track.state == "exact" && track.is_known);
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

/// Some of the tracks whose tables are here. With an error, none.
fn tracks(which: impl Fn(&Track) -> bool) -> Vec<Track> {
    let looked = session::transaction(c"looking for tracks", || {
        if catalog::try_shared().is_err() {
            return Vec::new();
        }
        let _latest = LatestSnapshot::take();
        let catalogs = Catalogs::enter();
        let mut tracks = tables::tracks(&catalogs, None, None);
        tracks.retain(|track| track.table.is_some() && which(track));
        tracks
    });
    looked.unwrap_or_else(|message| {
        log(format!("counterx: cannot look for tracks: {message}"));
        Vec::new()
    })
}

fn fill_one(track: &Track) {
    let Some(table) = track.table else { return };
    let type_name = &track.type_name;
    let noted = |what: &str, text: Option<String>| {
        let result = session::transaction(c"noting how far a track is", || {
            let _latest = LatestSnapshot::take();
            tables::note(&Catalogs::enter(), type_name, what, text.as_deref());
        });
        if let Err(message) = result {
            log(format!(
                "counterx: cannot note how far a track is: {message}"
            ));
        }
    };
    let waits_for = session::transaction(c"looking for who uses a table", || {
        let _latest = LatestSnapshot::take();
        tables::holders(&Catalogs::enter(), table, SHARE_ROW_EXCLUSIVE)
    });
    if let Ok(Some(holders)) = waits_for {
        noted("waiting_for", Some(holders));
    }
    let result = session::transaction(c"counting the rows of a tracked table", || {
        let _latest = LatestSnapshot::take();
        let catalogs = Catalogs::enter();
        fill::fill(&catalogs, track, table).map(|differences| differences.len())
    });
    failpoint!("filler.filled");
    match result {
        Ok(Ok(differences)) => log(format!(
            "counterx: the track of type \"{type_name}\" is exact; {differences} counters were put right"
        )),
        Ok(Err(NotNow::Locked)) => {}
        Ok(Err(NotNow::Trouble(trouble))) => noted("last_error", Some(trouble)),
        Err(message) => {
            log(format!(
                "counterx: counting the rows of the tracked table of type \"{type_name}\" failed: {message}"
            ));
            noted("last_error", Some(message));
        }
    }
}
