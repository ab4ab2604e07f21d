//! What users call.

use crate::catalog;
use crate::compaction;
use crate::fold::Restoring;
use crate::pg::error::{quoted, raise, report};
use crate::pg::ports;
use crate::read;
use crate::xact;
use counterx_core::lane::{LANES, MAX_NAME_BYTES};
use pgrx::callconv::{Arg, ArgAbi};
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys};

/// A counter's name as it comes from SQL: the bytes of a text, in the database's encoding.
pub struct Name<'a>(&'a [u8]);

// SAFETY: the SQL type is text, and the datum is read as such.
unsafe impl SqlTranslatable for Name<'_> {
    const TYPE_IDENT: &'static str = "counterx::Name";
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal("TEXT"));
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> =
        Ok(ReturnsRef::One(SqlMappingRef::literal("TEXT")));
}

// SAFETY: detoasting yields a plain text, which lives as long as the function's memory context.
unsafe impl<'fcx> ArgAbi<'fcx> for Name<'fcx> {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: the argument is a text and not null, by the contract of the trait.
        Self(unsafe { arg.unbox_arg_using_from_datum::<&[u8]>() }.unwrap_or_default())
    }
}

/// The bytes of a valid name.
///
/// # Errors
/// Raises 22004 for NULL, 22023 for an empty or too long one.
fn valid(name: Option<Name<'_>>) -> &[u8] {
    let Some(Name(name)) = name else {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
                "counter name must not be null",
            )
            .set_hint("Skip the call, or use COALESCE to give a name."),
        )
    };
    let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
    if name.is_empty() {
        raise(
            report(code, "counter name must not be empty").set_hint("Names have 1 to 255 bytes."),
        );
    }
    if name.len() > MAX_NAME_BYTES {
        raise(
            report(code, "counter name is too long")
                .set_detail(format!(
                    "The name has {} bytes, the maximum is {MAX_NAME_BYTES}. It begins with {}.",
                    name.len(),
                    quoted(&name[..32])
                ))
                .set_hint("Use a shorter name, or a hash of it."),
        );
    }
    name
}

fn valid_delta(delta: Option<i64>) -> i64 {
    delta.unwrap_or_else(|| {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
                "counter delta must not be null",
            )
            .set_hint("Use COALESCE(delta, 0) to count nothing."),
        )
    })
}

#[pg_extern(volatile, parallel_unsafe, cost = 10)]
fn counter_incr(name: Option<Name>, delta: default!(Option<i64>, 1)) {
    xact::check_may_write(c"counter_incr()");
    xact::add(valid(name), valid_delta(delta));
}

#[pg_extern(volatile, parallel_unsafe, cost = 10)]
fn counter_decr(name: Option<Name>, delta: default!(Option<i64>, 1)) {
    xact::check_may_write(c"counter_decr()");
    let delta = valid_delta(delta).checked_neg().unwrap_or_else(|| {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
                format!("counter delta {} is out of range", i64::MIN),
            )
            .set_hint("The least delta that can be negated is -9223372036854775807."),
        )
    });
    xact::add(valid(name), delta);
}

#[pg_extern(stable, parallel_restricted, cost = 100)]
fn counter_value(name: Option<Name>) -> i64 {
    let name = valid(name);
    let Some(value) = read::value(name) else {
        return 0;
    };
    value.bigint().unwrap_or_else(|| {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
                format!(
                    "value of counter {} is out of range for type bigint",
                    quoted(name)
                ),
            )
            .set_hint("The view counters shows it as numeric."),
        )
    })
}

/// Functions of the schema `counterx`.
#[pg_schema]
pub mod counterx {
    use super::*;
    use pgrx::iter::TableIterator;

    /// SECURITY DEFINER, so that EXECUTE alone is enough to run it: it writes to the gates, which
    /// belong to the extension's owner.
    #[pg_extern(volatile, parallel_unsafe, security_definer)]
    #[search_path(pg_catalog, pg_temp)]
    fn compact() -> i64 {
        xact::check_may_write(c"counterx.compact()");
        let refused = |message: &str, hint: &str| -> ! {
            raise(
                report(
                    PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
                    message.to_owned(),
                )
                .set_hint(hint.to_owned()),
            )
        };
        if ports::isolation_uses_xact_snapshot() {
            refused(
                "counterx.compact() cannot run in a REPEATABLE READ or SERIALIZABLE transaction",
                "Run it in a READ COMMITTED transaction: it needs newer snapshots than the first one.",
            );
        }
        if xact::has_flushed_early() {
            refused(
                "counterx.compact() cannot run in a transaction that has already written increments",
                "Run it in a transaction of its own.",
            );
        }
        // SAFETY: reads the transaction's state.
        let alone = !unsafe { pg_sys::IsTransactionBlock() };
        let mut deltas = 0;
        for lane in 0..LANES {
            match compaction::compact_lane(lane, catalog::lane(lane), alone) {
                Ok(folded) => deltas += folded,
                Err(Restoring { newest }) => ereport!(
                    WARNING,
                    PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "lane {lane} was left alone: it has deltas of epoch {newest}, which its gate has not reached"
                    ),
                    "This is so in the middle of a restore, until the sequences are restored."
                ),
            }
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
                    let status = read::lane_status(lane);
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
}
