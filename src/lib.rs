//! counterx: exact counters that many transactions change at the same time.
//!
//! Where to find what:
//!
//! | floor | folder | what lives there |
//! |---|---|---|
//! | 7 | [`api`] | the SQL functions, and the trigger functions |
//! | 7 | [`process`] | the background processes: worker, launcher, committer, filler, what they share |
//! | 6 | [`track`] | tracked tables: from rows to the counters of their groups |
//! | 5 | [`write`](mod@write) | from a call to the log: the maps of a transaction, its callbacks, flush, tokens |
//! | 5 | [`hits`] | increments that count by themselves: a session's side, and what it shares with the committer |
//! | 4 | [`fold`] | from the logs to the totals; getting space back |
//! | 4 | [`query`] | many counters at once, by name and by value; the view `counters` |
//! | 4 | [`bounds`] | bounded counters: types, what is reserved, what is set aside |
//! | 3 | [`read`], [`settings`] | the exact value for a snapshot; the settings |
//! | 2 | [`store`] | what is on disk: tables, gates, totals, states |
//! | 2 | [`transaction`] | what the running transaction remembers |
//! | 2 | [`figures`] | what happens, in numbers, for `counterx.stat` |
//! | 2 | [`failpoint`] | where tests make a process crash, in debug builds |
//! | 1 | [`pg`] | all contact with the server |
//!
//! A folder imports what lies below it and nothing else, and no two files import each other: the tests of
//! `crates/floors` hold that.
//!
//! Pure logic lives in the crate `counterx-core`; SQL objects are in `sql/`.

use pgrx::prelude::*;

#[macro_use]
mod failpoint;

mod api;
mod bounds;
mod figures;
mod fold;
mod hits;
mod pg;
mod process;
mod query;
mod read;
mod settings;
mod store;
mod track;
mod transaction;
mod write;

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
extension_sql_file!(
    "../sql/history.sql",
    name = "history",
    requires = ["tables"]
);
extension_sql_file!(
    "../sql/streams.sql",
    name = "streams",
    requires = ["history"]
);
extension_sql_file!("../sql/views.sql", name = "views", finalize);

/// Runs when a process loads the library; the postmaster's children inherit what it did there.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    without_backtraces();
    settings::define();
    tell_floors_below();
    write::callbacks::register();
    // SAFETY: a plain read of a variable of the server's.
    if unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        process::directory::register();
        process::launcher::register();
        bounds::accounts::register();
        figures::memory::register(settings::stat_databases);
        hits::memory::register(process::directory::look);
    }
}

/// What a floor has to hear from above, it offers a place for.
fn tell_floors_below() {
    use bounds::{reservations, types};
    store::catalog::register_callbacks(types::relation_changed);
    read::outrun::register(read::outrun::Bounded {
        changed_since: reservations::changed_since,
        was_changed_since: reservations::was_changed_since,
        is_out_of_bounds: types::is_out_of_bounds,
    });
    query::shown::register(bounds::windows::shown);
    pg::error::register_conflicts(figures::local::count_conflict);
    write::writing::register(process::start::request);
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
#[cfg(any(test, feature = "pg_test"))]
mod windows_tests;

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
