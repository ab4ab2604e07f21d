//! How far a process is, where others see it: in the place that the server has for that in each process's
//! status, and clears when the process ends. Its own views show only commands that it knows, and so not ours.

use super::compat;
use pgrx::pg_sys;

const MARK: core::ffi::c_int = 0;
const COUNT: core::ffi::c_int = 1;

/// What this process is at, as long as this lives. Nothing is shown where `track_activities` is off.
pub struct Progress(());

impl Progress {
    /// Something that is known by this mark. `mark` is not 0.
    pub fn begin(mark: i64) -> Self {
        let progress = Self(());
        progress.clear();
        progress.set(COUNT, 0);
        progress.set(MARK, mark);
        progress
    }

    /// It has come to this number.
    pub fn show(&self, count: u64) {
        self.set(COUNT, i64::try_from(count).unwrap_or(i64::MAX));
    }

    fn set(&self, index: core::ffi::c_int, value: i64) {
        // SAFETY: one of the process's own numbers.
        unsafe { pg_sys::pgstat_progress_update_param(index, value) };
    }

    fn clear(&self) {
        // SAFETY: sets the process's own numbers to 0; it is at no command that the server knows.
        unsafe {
            pg_sys::pgstat_progress_start_command(
                pg_sys::ProgressCommandType::PROGRESS_COMMAND_INVALID,
                pg_sys::InvalidOid,
            );
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// How far the process is that is at what has this mark, in this database; None: there is none.
pub fn of(mark: i64) -> Option<i64> {
    let is_at_it = |status: &&pg_sys::PgBackendStatus| {
        // SAFETY: set once when the backend connected.
        let here = unsafe { pg_sys::MyDatabaseId };
        status.st_databaseid == here
            && status.st_progress_command == pg_sys::ProgressCommandType::PROGRESS_COMMAND_INVALID
            && status.st_progress_param[MARK as usize] == mark
    };
    compat::backend_statuses()
        .find(is_at_it)
        .map(|status| status.st_progress_param[COUNT as usize])
}
