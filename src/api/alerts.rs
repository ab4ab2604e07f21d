//! Alerts: `counter_alert_create` and its relatives.
//!
//! All of it is a change of the table `counterx.alert`. Folds look at that by their own snapshots: see
//! `fold/stream.rs`. What is left of an alert that is dropped is removed by who holds the leases.

use super::args::{self, Arguments};
use super::streams::{valid_name, valid_prefix};
use crate::pg::error::{quoted, raise, report};
use crate::pg::function::version_1;
use crate::pg::ports;
use crate::store::as_owner::{AsOwner, Bytes};
use crate::write::change;
use counterx_core::alerts::{NoThreshold, Threshold};
use pgrx::{PgSqlErrorCode, pg_guard, pg_sys};

version_1!(pg_finfo_counterx_alert_create, pg_finfo_counterx_alert_drop);

/// `counter_alert_create(alert, prefix, below, above, rearm, stream)`
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_alert_create(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    change::check_may_write(c"counter_alert_create()");
    // SAFETY: called with (text, text, bigint, bigint, bigint, text).
    let (name, prefix, stream, arguments) = unsafe {
        let arguments = Arguments::of(fcinfo);
        let stream = (arguments.text(5)).map(|text| valid_name("name of a stream", Some(text)));
        (
            valid_name("name of an alert", arguments.text(0)),
            valid_prefix(arguments.text(1)),
            stream,
            arguments,
        )
    };
    let (below, above) = (arguments.number(2), arguments.number(3));
    let rearm = arguments.number(4);
    if let Err(why) = Threshold::new(below, above, rearm) {
        raise(match why {
            NoThreshold::NotOne => args::invalid("an alert has one threshold")
                .set_hint("Give below or above, and not both."),
            NoThreshold::RearmedBeyond => args::invalid(
                "an alert cannot be rearmed where it fires",
            )
            .set_hint(
                "Give a value for rearm that is not less than below, or not greater than above.",
            ),
        })
    }
    let owner = AsOwner::enter();
    if let Some(stream) = stream
        && owner.run(
            "SELECT FROM ONLY counterx.stream WHERE name OPERATOR(pg_catalog.=) $1 FOR KEY SHARE",
            &[Bytes(stream).into()],
        ) == 0
    {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                format!("stream {} does not exist", quoted(stream)),
            )
            .set_hint("counter_stream_create() creates one."),
        )
    }
    // No two databases have the same one, but by a restore.
    let id = (ports::random() >> 1).cast_signed();
    let made = owner.run(
        "INSERT INTO counterx.alert (id, name, prefix, below, above, rearm, stream, created_at) \
         VALUES ($1, $2, $3, $4, $5, COALESCE($6, $4, $5), $7, pg_catalog.statement_timestamp()) ON CONFLICT (name) DO NOTHING",
        &[
            id.into(),
            Bytes(name).into(),
            Bytes(prefix).into(),
            below.into(),
            above.into(),
            rearm.into(),
            stream.map(Bytes).into(),
        ],
    );
    if made == 0 {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
                format!("alert {} already exists", quoted(name)),
            )
            .set_hint("counter_alert_drop() drops it."),
        )
    }
    true.into()
}

/// `counter_alert_drop(alert)`
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_alert_drop(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    change::check_may_write(c"counter_alert_drop()");
    // SAFETY: called with (text).
    let name = unsafe { valid_name("name of an alert", Arguments::of(fcinfo).text(0)) };
    let dropped = AsOwner::enter().run(
        "DELETE FROM ONLY counterx.alert WHERE name OPERATOR(pg_catalog.=) $1",
        &[Bytes(name).into()],
    );
    (dropped > 0).into()
}
