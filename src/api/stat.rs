//! The figures behind the view `counterx.stat`.

use crate::figures::local::{self, Figure};
use crate::figures::memory;
use crate::hits::memory::{self as hits, Spot};
use crate::pg::error::{raise, report};
use crate::pg::function::version_1;
use crate::pg::rows::Rows;
use crate::store::backlog;
use pgrx::{IntoDatum, PgSqlErrorCode, pg_guard, pg_sys};

version_1!(pg_finfo_counterx_stat_figures, pg_finfo_counterx_stat_reset);

/// Microseconds, shown in milliseconds.
fn milliseconds(microseconds: u64) -> Option<pg_sys::Datum> {
    (microseconds as f64 / 1000.0).into_datum()
}

/// `counterx.stat_figures()`
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_stat_figures(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    use Figure::*;
    // SAFETY: a table function of the columns that are put.
    let mut rows = unsafe { Rows::begin(fcinfo) };
    let sums = local::sums();
    // What is known is shown, whatever state the logs are in.
    let pending = backlog::pending_in_all().ok();
    let oldest = backlog::oldest().ok();
    let number = |figure: Figure| sums.map(|sums| sums.get(figure as usize).cast_signed().into());
    let time = |figure: Figure| sums.and_then(|sums| milliseconds(sums.get(figure as usize)));
    // SAFETY: set once when the backend connected.
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
    let waiting = hits::is_preloaded().then(|| (Spot::waiting(database) as i64).into());
    rows.put(|| {
        [
            sums.map(|sums| sums.since().into()),
            number(Increments),
            number(RowsFlushed),
            number(EarlyFlushes),
            number(HitBatches),
            number(HitsBatched),
            waiting,
            number(HitsRefused),
            number(HitsFailed),
            number(Folds),
            number(DeltasFolded),
            time(FoldTime),
            number(Truncations),
            number(Refused),
            number(EscrowWaits),
            time(EscrowWaitTime),
            number(TokensUsed),
            number(TokensReplayed),
            number(TokensExpired),
            number(HoldsExpired),
            number(SerializationConflicts),
            number(BackPressureWaits),
            time(BackPressureWaitTime),
            number(BackPressureRefused),
            pending.map(|pending| pending.cast_signed().into()),
            oldest.flatten().map(Into::into),
        ]
    });
    pg_sys::Datum::null()
}

/// `counterx.stat_reset()`
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_stat_reset(_fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    if !memory::is_there() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "counterx.stat_reset() needs counterx in shared_preload_libraries",
            )
            .set_detail("Without it there are no cumulative figures to reset.")
            .set_hint("Add counterx to shared_preload_libraries and restart the server."),
        );
    }
    let Some(sums) = local::sums() else {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                "there is no room for the figures of this database",
            )
            .set_hint("Raise counterx.stat_databases and restart the server."),
        )
    };
    sums.reset();
    true.into()
}
