//! The process that makes tracks exact: it counts the rows of tables that have just been tracked, and of those
//! whose tracks are stale.
//!
//! It is started by the worker, which must go on folding: to count a large table takes minutes. One at a time
//! in a database, and it ends when there is nothing left that it can do now; the worker looks again.

use crate::pg::compat;
use crate::pg::error::log;
use crate::pg::lock::FillerMark;
use crate::pg::ports;
use crate::process::session;
use crate::store::catalog;
use crate::track::fill::{self, NotNow};
use crate::track::tables::{self, Catalogs, Track};
use pgrx::pg_sys;
use pgrx::prelude::*;

/// The filler's main function; the argument is the database's OID.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn counterx_filler_main(arg: pg_sys::Datum) {
    compat::set_signal_handler(pg_sys::SIGTERM, ports::die);
    compat::set_signal_handler(pg_sys::SIGHUP, ports::SignalHandlerForConfigReload);
    session::ignore_cancels();
    let database = pg_sys::Oid::from(arg.value() as u32);
    // SAFETY: once, at the start of a background worker.
    unsafe { pg_sys::BackgroundWorkerUnblockSignals() };
    // SAFETY: once, as the bootstrap superuser.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::InvalidOid, 0);
    }
    session::own_settings(&[(c"lock_timeout", c"0")]);
    if !FillerMark::try_set() {
        return;
    }
    failpoint!("filler.ready");
    for track in unfinished() {
        failpoint!("filler.looked");
        pgrx::check_for_interrupts!();
        fill_one(&track);
    }
}

/// Tracks that are not exact. With an error, none.
fn unfinished() -> Vec<Track> {
    let looked = session::transaction(c"looking for tracks", || {
        if catalog::try_shared().is_err() {
            return Vec::new();
        }
        let _latest = crate::pg::snapshot::LatestSnapshot::take();
        let catalogs = Catalogs::enter();
        let mut tracks = tables::tracks(&catalogs, None, None);
        tracks.retain(|track| track.state != "exact" && track.table.is_some());
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
            let _latest = crate::pg::snapshot::LatestSnapshot::take();
            tables::note(&Catalogs::enter(), type_name, what, text.as_deref());
        });
        if let Err(message) = result {
            log(format!(
                "counterx: cannot note how far a track is: {message}"
            ));
        }
    };
    let waits_for = session::transaction(c"looking for who uses a table", || {
        let _latest = crate::pg::snapshot::LatestSnapshot::take();
        tables::holders(&Catalogs::enter(), table)
    });
    if let Ok(Some(holders)) = waits_for {
        noted("waiting_for", Some(holders));
    }
    let result = session::transaction(c"counting the rows of a tracked table", || {
        let _latest = crate::pg::snapshot::LatestSnapshot::take();
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
