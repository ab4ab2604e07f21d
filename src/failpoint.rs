//! Places at which a test can make a process crash, fail or stand still. They exist in debug builds
//! alone: in a release build the macro is nothing, and there is neither setting nor name.
//!
//! # How it works
//! The setting `counterx.failpoint` lists `POINT=ACTION`, with commas in between. Superusers set it in
//! their session, or in the configuration file for everybody: the worker has no other. The actions:
//!
//! - `crash`: SIGKILL to the own process, as of `kill -9`;
//! - `error`: an ERROR;
//! - `pause`: waits until nobody holds the advisory lock [`PAUSE_KEY`];
//! - `slow`: takes twenty milliseconds more each time.
//!
//! With ` once` behind it, an action is taken by whoever removes the file
//! `counterx.failpoint.POINT=ACTION` from the data directory. So a point in the configuration file fires once, also when it takes the
//! server through crash recovery. That an action was taken is written to the server's log.
//!
//! # The points
//! | point | between |
//! |---|---|
//! | `catalog.gate_found` | a session has found a lane's gate by its name, and looks for the logs |
//! | `flush.gate_locked` | a writer locks a lane's gate, and reads the epoch |
//! | `flush.epoch_read` | reads the epoch, and opens the log |
//! | `insert.in_heap` | a row is in the heap, and in the index; also of late deltas, tokens and holds |
//! | `flush.lane_written` | all rows of a lane, and those of the next one |
//! | `commit.flushed` | all that PRE_COMMIT does, and the commit record |
//! | `commit.done` | the commit, and that the client hears of it; crash only |
//! | `prepare.late_written` | late deltas are written, and the transaction is prepared |
//! | `prepare.done` | the transaction is prepared, and the client hears of it; crash only |
//! | `fold.settled` | all writers of the epochs have ended, and the snapshot |
//! | `fold.snapshot_taken` | the snapshot, and the first row |
//! | `fold.late_deleted` | late deltas are deleted, and added to totals |
//! | `fold.total_written` | one total, and the next |
//! | `fold.history_written` | what a fold has of one counter is in its history, and its total is written |
//! | `stream.row_written` | what streams are told of one counter is written, and its total is |
//! | `stream.switched` | a fold has changed to the lane's other table for changes, and its first row there |
//! | `stream.gone_noted` | it is published that changes are gone, and the TRUNCATE |
//! | `stream.emptied` | the TRUNCATE, and the commit |
//! | `stream.cursor_locked` | a consumer has locked its cursors, and the snapshot |
//! | `stream.read` | changes are read and flushed, and the cursors are moved |
//! | `stream.bootstrapped` | the cursors are set, and what counters are is read |
//! | `stream.hinting` | a worker is about to notify consumers, and does |
//! | `fold.totals_written` | all totals, and the state |
//! | `fold.state_saved` | the state, and the publish or the commit |
//! | `fold.committed` | a worker's fold is committed, and it looks whether a log can be truncated |
//! | `publish.begin` | it is known whether the log changes, and the gate is written |
//! | `publish.gate_written` | the gate, and the list of writers |
//! | `publish.writers_listed` | the list of writers, and the commit |
//! | `truncate.locked` | the log is locked and not needed any more, and that is published |
//! | `truncate.published` | it is published that the epochs are gone, and the TRUNCATE |
//! | `truncate.done` | the TRUNCATE, and the commit |
//! | `truncate.committed` | a worker has looked whether a log can be truncated, and goes on with the next lane |
//! | `expiry.found` | a table of history is not wanted any more, and is locked |
//! | `expiry.locked` | a table of history is locked and not wanted any more, and that is published |
//! | `expiry.cut` | it is published that its rows are gone, and the TRUNCATE |
//! | `worker.failed` | a worker's fold has failed, and that is noted |
//! | `worker.error_noted` | that is noted, and committed |
//! | `worker.queues` | a worker was started as the next one in a turn, and waits in the queue for it |
//! | `worker.ready` | a worker has taken the mark, and looks around |
//! | `worker.given_up` | a worker gives its mark back, and looks whether there is work left |
//! | `hit.pushed` | a hit is handed over, and its caller waits |
//! | `committer.ready` | a committer has its database, and says that it is there |
//! | `committer.taken` | hits are taken, and the transaction begins |
//! | `committer.added` | one hit is added, and the next one; for the last one also: the commit |
//! | `committer.committed` | the hits are committed, and answered; crash only |
//! | `committer.answered` | they are answered, and those who wait are woken; crash only |
//! | `committer.leaving` | a committer takes no more hits, and ends |
//! | `escrow.reserved` | an amount is reserved, and the counter is read |
//! | `escrow.granted` | the bounds are found to allow it, and it is added |
//! | `window.timed` | a call has looked in which window it counts, and reserves |
//! | `window.noted` | what is in flight of the window before is noted, and its value is read |
//! | `windows.noted` | up to when windows are removed is written, and they are deleted |
//! | `token.locked` | a token is locked, and looked for |
//! | `token.acted` | what it is for is done, and the token is kept |
//! | `token.kept` | the token is kept, and unlocked |
//! | `hold.inserted` | a hold is made, and the call returns |
//! | `hold.reserved` | what confirming a hold takes is reserved, and the hold is looked at |
//! | `hold.deleted` | a hold is removed, and what it held is taken |
//! | `track.locked` | a table is locked against writers, and its triggers are made |
//! | `track.triggers_made` | its triggers are made, and its track is written |
//! | `track.noted` | what the track stands on is noted, and the call returns |
//! | `untrack.triggers_dropped` | the triggers are dropped, and the counters are taken back |
//! | `untrack.forgotten` | the counters are taken back, and the track is removed |
//! | `untrack.removed` | the track is removed, and the next one, or the end of the call |
//! | `empty.subtracted` | the rows of a table are subtracted, and it is emptied |
//! | `filler.ready` | a filler has taken the mark, and looks for tracks |
//! | `filler.looked` | it has found a track, and begins with that |
//! | `filler.filled` | it has filled one, or could not, and says so |
//! | `fill.waited` | who may have missed the triggers has ended, and the type is locked |
//! | `fill.locked` | the table is locked, and the snapshot |
//! | `fill.snapshot_taken` | the snapshot, and the first row |
//! | `fill.counted` | rows and counters are compared, and the differences are added |
//! | `fill.added` | they are added, and the track is noted as exact |
//! | `fill.noted` | that is noted, and the transaction goes on or commits |

/// A point of the table above.
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(debug_assertions)]
        $crate::failpoint::reached($name);
    };
}

/// The same where an error would take the server down.
macro_rules! crashpoint {
    ($name:literal) => {
        #[cfg(debug_assertions)]
        $crate::failpoint::reached_after_end($name);
    };
}

#[cfg(debug_assertions)]
pub use armed::{define, reached, reached_after_end};

#[cfg(debug_assertions)]
mod armed {
    use crate::pg::clock;
    use crate::pg::error::{raise, report};
    use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
    use pgrx::{PgSqlErrorCode, pg_sys};
    use std::ffi::CString;

    static FAILPOINT: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

    /// The bigint of `pg_advisory_lock()` that whoever is paused waits for.
    const PAUSE_KEY: u32 = 0x636e_7478;

    const SLOW: std::time::Duration = std::time::Duration::from_millis(20);

    unsafe extern "C" {
        fn kill(pid: core::ffi::c_int, signal: core::ffi::c_int) -> core::ffi::c_int;
    }

    #[derive(Clone, Copy)]
    enum Action {
        Crash,
        Error,
        Pause,
        Slow,
    }

    /// Defines the setting. It is not listed: there is nothing to choose for users.
    pub fn define() {
        clock::define();
        GucRegistry::define_string_guc(
            c"counterx.failpoint",
            c"Makes processes crash, fail or pause at certain points.",
            c"For tests, in debug builds only.",
            &FAILPOINT,
            GucContext::Suset,
            GucFlags::NO_SHOW_ALL,
        );
    }

    /// A point was reached.
    ///
    /// # Errors
    /// Raises 58030 when that is what was asked for.
    pub fn reached(point: &str) {
        match armed(point) {
            None => {}
            Some(Action::Crash) => crash(),
            Some(Action::Error) => raise(report(
                PgSqlErrorCode::ERRCODE_IO_ERROR,
                format!("failpoint {point}"),
            )),
            Some(Action::Pause) => pause(),
            Some(Action::Slow) => std::thread::sleep(SLOW),
        }
    }

    /// A point was reached at which nothing may fail.
    pub fn reached_after_end(point: &str) {
        if let Some(Action::Crash) = armed(point) {
            crash();
        }
    }

    fn armed(point: &str) -> Option<Action> {
        let setting = FAILPOINT.get()?;
        let entries = setting.to_str().ok()?.split(',');
        let action = entries
            .filter_map(|entry| entry.trim().split_once('='))
            .find_map(|(name, action)| (name == point).then_some(action))?;
        let (action, once) = match action.strip_suffix(" once") {
            Some(action) => (action, true),
            None => (action, false),
        };
        // Servers run in their data directory.
        if once && std::fs::remove_file(format!("counterx.failpoint.{point}={action}")).is_err() {
            return None;
        }
        let action = match action {
            "crash" => Action::Crash,
            "error" => Action::Error,
            "pause" => Action::Pause,
            // Reached so often that it would fill the log.
            "slow" => return Some(Action::Slow),
            _ => return None,
        };
        // Not through the server's own log, which must not be used everywhere.
        eprintln!("failpoint {point} in process {}", std::process::id());
        Some(action)
    }

    fn crash() -> ! {
        loop {
            // SAFETY: our own process, which that ends.
            unsafe { kill(std::process::id() as core::ffi::c_int, 9) };
        }
    }

    fn pause() {
        let tag = pg_sys::LOCKTAG {
            // SAFETY: set once when the process connected to its database.
            locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
            locktag_field2: 0,
            locktag_field3: PAUSE_KEY,
            locktag_field4: 1,
            locktag_type: pg_sys::LockTagType::LOCKTAG_ADVISORY as u8,
            locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
        };
        let mode = pg_sys::ShareLock as pg_sys::LOCKMODE;
        // SAFETY: as pg_advisory_lock_shared() does it, also outside of transactions; interruptible.
        // Given back at once.
        unsafe {
            pg_sys::LockAcquire(&tag, mode, true, false);
            pg_sys::LockRelease(&tag, mode, true);
        }
    }
}
