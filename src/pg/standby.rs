//! Commits that wait for a synchronous standby.

use pgrx::pg_sys;

/// May the running transaction's commit wait for a standby, for as long as that one likes? It keeps its
/// locks meanwhile.
pub fn commit_may_wait() -> bool {
    let local = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_LOCAL_FLUSH as i32;
    // SAFETY: variables of the process; the names are a string that ends with a zero, or NULL.
    unsafe {
        let names = pg_sys::SyncRepStandbyNames;
        pg_sys::max_wal_senders > 0
            && pg_sys::synchronous_commit > local
            && !names.is_null()
            && *names != 0
    }
}

/// The running transaction's commit does not wait for standbys.
pub fn do_not_wait() {
    if !commit_may_wait() {
        return;
    }
    // SAFETY: strings that end with a zero. As `SET LOCAL` does it.
    unsafe {
        pg_sys::set_config_option(
            c"synchronous_commit".as_ptr(),
            c"local".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_LOCAL,
            true,
            0,
            false,
        );
    }
}
