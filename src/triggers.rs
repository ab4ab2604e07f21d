//! Trigger functions, by the server's own calling convention.
//!
//! Those that the bindings make raise an internal error when somebody calls them by hand.

use crate::pg::error::{raise, report};
use crate::types;
use pgrx::trigger_support::called_as_trigger;
use pgrx::{PgSqlErrorCode, pg_guard, pg_sys};

/// Tells the server how the trigger functions are called.
macro_rules! version_1 {
    ($($finfo:ident),+) => {
        $(
            #[unsafe(no_mangle)]
            #[doc(hidden)]
            pub extern "C" fn $finfo() -> &'static pg_sys::Pg_finfo_record {
                const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
                &V1
            }
        )+
    };
}
version_1!(
    pg_finfo_counterx_type_changed,
    pg_finfo_counterx_ignore_replicated
);

/// What the trigger manager hands over.
///
/// # Errors
/// Raises 39P01 when somebody else has called the function.
fn trigger_data(fcinfo: pg_sys::FunctionCallInfo, function: &str) -> *mut pg_sys::TriggerData {
    // SAFETY: what the server has called us with.
    if !unsafe { called_as_trigger(fcinfo) } {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                format!("counterx.{function}() can only be called as a trigger"),
            )
            .set_hint("It is a part of the extension, and nothing to call."),
        );
    }
    // SAFETY: as was just found out.
    unsafe { (*fcinfo).context.cast() }
}

/// On the table of types, after each change of it: what sessions have in memory is outdated.
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_type_changed(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    trigger_data(fcinfo, "type_changed");
    types::changed();
    pg_sys::Datum::null()
}

/// On the tables that hold state, before each change of a row. A publication FOR ALL TABLES has them,
/// so a subscription brings the rows of another server. Its epochs are not ours, and its totals would
/// take the place of ours: they are left out.
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_ignore_replicated(
    fcinfo: pg_sys::FunctionCallInfo,
) -> pg_sys::Datum {
    let data = trigger_data(fcinfo, "ignore_replicated");
    // SAFETY: reads a static of the process, and what the trigger manager hands over: an update's new
    // row is the second one.
    unsafe {
        if pg_sys::IsLogicalWorker() {
            return pg_sys::Datum::null();
        }
        // A session of replica role for another reason: a restore, say.
        let new = (*data).tg_newtuple;
        let tuple = if new.is_null() {
            (*data).tg_trigtuple
        } else {
            new
        };
        pg_sys::Datum::from(tuple)
    }
}
