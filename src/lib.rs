//! counterx: exact counters that many transactions change at the same time.
//!
//! Where to find what:
//!
//! | module | what it does |
//! |---|---|
//! | [`api`] | the SQL functions |
//! | [`xact`], [`notes`] | the running transaction's increments and its callbacks; what else it remembers |
//! | [`flush`] | from memory to the logs, at commit |
//! | [`read`], [`totals`] | the exact value for a snapshot |
//! | [`paging`], [`ranking`], [`value_index`] | many counters at once, by name and by value |
//! | [`listing`], [`fdw`] | the view `counters` |
//! | [`lease`] | gates: epochs, who may still write, who may fold |
//! | [`token`] | what makes an increment happen once |
//! | [`types`], [`escrow`], [`holds`] | bounded counters: their bounds, what is reserved, what is set aside |
//! | [`fold`], [`rotation`] | from the logs to the totals; getting space back |
//! | [`compaction`] | the order of these, for a worker's tick and for `compact()` |
//! | [`worker`], [`launcher`] | the background processes |
//! | [`committer`] | hits: what sessions hand over to a process that commits for them |
//! | [`mend`] | what restores leave behind |
//! | [`triggers`], [`ours`] | trigger functions; whose change of our tables it is |
//! | [`catalog`] | where our relations are |
//! | [`shape`] | what others have done to them by DDL |
//! | [`settings`] | settings |
//! | [`failpoint`] | where tests make a process crash, in debug builds |
//! | [`pg`] | wrappers of the server's own resources |
//!
//! Pure logic lives in the crate `counterx-core`; SQL objects are in `sql/`.

use pgrx::prelude::*;

#[macro_use]
mod failpoint;

mod api;
mod catalog;
mod committer;
mod compaction;
mod escrow;
mod fdw;
mod flush;
mod fold;
mod holds;
mod launcher;
mod lease;
mod listing;
mod mend;
mod notes;
mod ours;
mod paging;
mod pg;
mod ranking;
mod read;
mod restored;
mod rotation;
mod settings;
mod shape;
mod token;
mod totals;
mod triggers;
mod types;
mod value_index;
mod worker;
mod xact;

::pgrx::pg_module_magic!(name, version);

extension_sql_file!("../sql/schema.sql", name = "schema", bootstrap);
extension_sql_file!(
    "../sql/counters.sql",
    name = "counters",
    requires = ["schema"]
);
extension_sql_file!(
    "../sql/tables.sql",
    name = "tables",
    requires = ["counters"]
);
extension_sql_file!("../sql/views.sql", name = "views", finalize);

/// Runs when a process loads the library; the postmaster's children inherit what it did there.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    without_backtraces();
    settings::define();
    xact::register_callbacks();
    catalog::register_callbacks();
    // SAFETY: a plain read of a variable of the server's.
    if unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        launcher::register();
        escrow::register();
        committer::register();
    }
}

/// The bindings put a backtrace of theirs into each error's DETAIL where the server's environment has
/// RUST_BACKTRACE. Rust looks at the environment once, at the first backtrace: so that is taken now, with
/// the setting that says no, and the environment is as it was for other libraries.
fn without_backtraces() {
    const VARIABLE: &str = "RUST_LIB_BACKTRACE";
    let before = std::env::var_os(VARIABLE);
    // SAFETY: the process has one thread.
    unsafe { std::env::set_var(VARIABLE, "0") };
    let _ = std::backtrace::Backtrace::capture();
    // SAFETY: as above.
    unsafe {
        match before {
            Some(value) => std::env::set_var(VARIABLE, value),
            None => std::env::remove_var(VARIABLE),
        }
    }
}

#[cfg(any(test, feature = "pg_test"))]
mod fdw_tests;
#[cfg(any(test, feature = "pg_test"))]
mod hits_tests;
#[cfg(any(test, feature = "pg_test"))]
mod ranking_tests;
#[cfg(any(test, feature = "pg_test"))]
mod tests;

/// Needed by `cargo pgrx test` at the root of the crate.
#[cfg(test)]
pub mod pg_test {
    /// Nothing to prepare.
    pub fn setup(_options: Vec<&str>) {}

    /// Settings of the test server.
    #[must_use]
    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec!["shared_preload_libraries = 'counterx'"]
    }
}
