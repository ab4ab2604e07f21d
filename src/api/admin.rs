//! Functions of the schema `counterx`, for operators.

use super::args::NameOut;
use super::args::Text;
use super::drop_all;
use crate::bounds::accounts;
use crate::bounds::holds;
use crate::bounds::windows;
use crate::fold::compaction::{self, Due};
use crate::hits;
use crate::pg::error::{raise, report};
use crate::pg::ports;
use crate::query::value_index;
use crate::read::lane;
use crate::settings;
use crate::store::expired::Batch;
use crate::store::state;
use crate::track::fill;
use crate::transaction::pending;
use crate::write::change;
use crate::write::token;
use crate::write::windows as write_windows;
use counterx_core::installation::Installation;
use counterx_core::lane::{LANES, NameHash};
use pgrx::PgSqlErrorCode;
use pgrx::prelude::*;

/// Raises an error where folds cannot be made.
pub fn check_may_fold(function: &'static core::ffi::CStr) {
    change::check_may_write(function);
    check_not_one_snapshot(
        function,
        "Run it in a READ COMMITTED transaction: it needs newer snapshots than the first one.",
    );
    if pending::has_flushed_early() {
        refuse(
            function,
            "transaction that has already written increments",
            "Run it in a transaction of its own.",
        );
    }
}

/// Raises an error in a transaction that sees what its first snapshot has.
pub(super) fn check_not_one_snapshot(function: &core::ffi::CStr, hint: &str) {
    if ports::isolation_uses_xact_snapshot() {
        refuse(
            function,
            "REPEATABLE READ or SERIALIZABLE transaction",
            hint,
        );
    }
}

fn refuse(function: &core::ffi::CStr, transaction: &str, hint: &str) -> ! {
    let function = function.to_string_lossy();
    raise(
        report(
            PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
            format!("{function} cannot run in a {transaction}"),
        )
        .set_hint(hint.to_owned()),
    )
}

/// How far it has come to remove what has expired.
#[derive(Default)]
pub struct Removal {
    tokens: token::Progress,
    windows: write_windows::Progress,
}

/// Where no worker may run, regular calls keep the tables of tokens, holds and totals small as well. True: there
/// may be more.
pub fn remove_expired(progress: &mut Removal) -> bool {
    /// Each hold takes a lock to the end of the transaction, of which a server has some thousands.
    const BATCH: usize = 1000;
    let tokens = token::remove_expired(BATCH, &mut progress.tokens);
    let holds = holds::remove_expired(BATCH);
    [tokens, holds, remove_windows(progress)].contains(&Batch::More)
}

fn remove_windows(progress: &mut Removal) -> Batch {
    // Where there is no worker that watches the clock, whoever calls vouches for it. Else what a clock that leaps shows
    // to have ended is left to the worker.
    let clock_is_trusted = !settings::compaction();
    write_windows::remove_ended(clock_is_trusted, &mut progress.windows).unwrap_or(Batch::Busy)
}

/// What the server knows of the installation: the SQL objects' version, that of the control file, and its
/// own. Looks at catalogs alone, so that it works whichever versions they are.
fn installed() -> (Option<String>, Option<String>, Option<String>) {
    let found = Spi::connect(|client| {
        let row = client.select(
            "SELECT e.extversion, a.default_version::pg_catalog.text, pg_catalog.current_setting('server_version') \
             FROM (VALUES ('counterx'::pg_catalog.name)) n (name) \
             LEFT JOIN pg_catalog.pg_extension e ON e.extname OPERATOR(pg_catalog.=) n.name \
             LEFT JOIN pg_catalog.pg_available_extensions a ON a.name OPERATOR(pg_catalog.=) n.name",
            Some(1),
            &[],
        )?;
        row.first().get_three::<String, String, String>()
    });
    found.unwrap_or_else(|error| {
        raise(report(
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("cannot read what is installed: {error}"),
        ))
    })
}

/// Functions of the schema `counterx`.
#[pg_schema]
pub mod counterx {
    use super::*;
    use pgrx::iter::TableIterator;

    /// Everything in one transaction. A fold goes past the server's checks of rights, so EXECUTE is enough.
    #[pg_extern(volatile, parallel_unsafe)]
    fn compact() -> i64 {
        check_may_fold(c"counterx.compact()");
        let mut due: Vec<Due> = (0..LANES).map(Due::now).collect();
        due.iter_mut().for_each(Due::wait);
        compaction::note_folding();
        let deltas = due.into_iter().map(Due::fold).sum();
        let mut removal = Removal::default();
        remove_expired(&mut removal);
        // The leases of all lanes are held to the end in any case.
        while remove_windows(&mut removal) == Batch::More {
            pgrx::check_for_interrupts!();
        }
        deltas
    }

    /// The figures behind the view `counterx.lanes`.
    #[pg_extern(stable, parallel_restricted, cost = 1000)]
    #[allow(clippy::type_complexity, reason = "the columns of a table function")]
    fn lane_status() -> TableIterator<
        'static,
        (
            name!(lane, i32),
            name!(epoch, i64),
            name!(folded_epoch, i64),
            name!(pending_deltas, i64),
            name!(log_bytes, i64),
        ),
    > {
        TableIterator::new(
            (0..LANES)
                .map(|lane| {
                    let status = lane::lane_status(lane);
                    (
                        lane as i32,
                        status.epoch,
                        status.folded,
                        status.deltas,
                        status.log_bytes,
                    )
                })
                .collect::<Vec<_>>(),
        )
    }

    /// How folds went, behind the views `counterx.lanes` and `counterx.workers`. Lanes that were never
    /// folded have no row.
    #[pg_extern(stable, parallel_restricted, cost = 100)]
    #[allow(clippy::type_complexity, reason = "the columns of a table function")]
    fn fold_status() -> TableIterator<
        'static,
        (
            name!(lane, i32),
            name!(folds, i64),
            name!(deltas_folded, i64),
            name!(last_fold_at, Option<TimestampWithTimeZone>),
            name!(last_fold_us, Option<i64>),
            name!(last_error, Option<NameOut>),
            name!(last_error_at, Option<TimestampWithTimeZone>),
        ),
    > {
        let time =
            |time: Option<i64>| time.and_then(|time| TimestampWithTimeZone::try_from(time).ok());
        TableIterator::new(
            (0..LANES)
                .filter_map(|lane| {
                    let status = state::status(lane)?;
                    Some((
                        lane as i32,
                        status.folds,
                        status.deltas_folded,
                        time(status.last_fold_at),
                        status.last_fold_us,
                        status.last_error.map(NameOut),
                        time(status.last_error_at),
                    ))
                })
                .collect::<Vec<_>>(),
        )
    }

    /// One row: how much of the shared memory of bounded counters is in use, in all databases; none without it.
    #[pg_extern(volatile, parallel_safe, cost = 10)]
    #[allow(clippy::type_complexity, reason = "the columns of a table function")]
    fn escrow_status()
    -> TableIterator<'static, (name!(entries, i64), name!(used, i64), name!(fullest, f64))> {
        let usage = accounts::usage();
        TableIterator::new(
            usage
                .into_iter()
                .map(|usage| (usage.slots as i64, usage.used as i64, usage.fullest)),
        )
    }

    /// SECURITY DEFINER, as the tables of tokens and holds belong to the extension's owner.
    #[pg_extern(volatile, parallel_unsafe, security_definer, cost = 10000)]
    #[search_path(pg_catalog, pg_temp)]
    fn drop_all_counters() -> i64 {
        let function = c"counterx.drop_all_counters()";
        change::check_may_write(function);
        // `DELETE` and `UPDATE` of tokens, holds and types go by it, and would leave what it does not show.
        check_not_one_snapshot(
            function,
            "Run it in a READ COMMITTED transaction: it drops what is there now, not what the first snapshot has.",
        );
        drop_all::drop_all()
    }

    /// One row: what is installed, and what is missing.
    #[pg_extern(stable, parallel_restricted, cost = 1000)]
    #[allow(clippy::type_complexity, reason = "the columns of a table function")]
    fn version() -> TableIterator<
        'static,
        (
            name!(library, String),
            name!(objects, Option<String>),
            name!(server, Option<String>),
            name!(preloaded, bool),
            name!(hint, Option<String>),
        ),
    > {
        let library = env!("CARGO_PKG_VERSION");
        let preloaded = hits::memory::is_preloaded();
        let (objects, files, server) = installed();
        let hints = Installation {
            library,
            objects: objects.as_deref(),
            files: files.as_deref(),
            preloaded,
        }
        .hints();
        let hint = (!hints.is_empty()).then(|| hints.join("\n"));
        TableIterator::once((library.to_owned(), objects, server, preloaded, hint))
    }

    /// What `pg_locks` shows of a lock on a counter's name, as one number.
    #[pg_extern(immutable, strict, parallel_safe)]
    fn lock_key(name: Text) -> i64 {
        NameHash::of(name.0).get().cast_signed()
    }

    /// How many rows of a track have been counted so far; null: nobody counts them now.
    #[pg_extern(stable, strict, parallel_restricted)]
    fn rows_so_far(type_name: Text) -> Option<i64> {
        fill::rows_so_far(type_name.0)
    }

    /// Up to when windows may have been removed; null: none has been.
    #[pg_extern(stable, parallel_restricted, cost = 100)]
    fn windows_removed() -> Option<TimestampWithTimeZone> {
        TimestampWithTimeZone::try_from(windows::removed()?).ok()
    }

    /// The cell is changed past the server's checks of rights, so EXECUTE is enough.
    #[pg_extern(volatile, parallel_unsafe)]
    fn reset_window_clock() -> TimestampWithTimeZone {
        change::check_may_write(c"counterx.reset_window_clock()");
        let now = windows::reset_clock();
        TimestampWithTimeZone::try_from(now).expect("a time that the server's clock shows")
    }

    /// SECURITY DEFINER, as the table belongs to the extension's owner.
    #[pg_extern(volatile, parallel_unsafe, security_definer)]
    #[search_path(pg_catalog, pg_temp)]
    fn create_value_index() -> bool {
        change::check_may_write(c"counterx.create_value_index()");
        value_index::create()
    }

    /// SECURITY DEFINER, as above.
    #[pg_extern(volatile, parallel_unsafe, security_definer)]
    #[search_path(pg_catalog, pg_temp)]
    fn drop_value_index() -> bool {
        change::check_may_write(c"counterx.drop_value_index()");
        value_index::remove()
    }
}
