//! Functions of the schema `counterx`, for operators.

use super::args::NameOut;
use crate::catalog;
use crate::compaction;
use crate::fold::{self, LeftAlone, Restoring};
use crate::holds;
use crate::pg::error::{raise, report};
use crate::pg::ports;
use crate::read;
use crate::token;
use crate::value_index;
use crate::xact;
use counterx_core::lane::LANES;
use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys};

/// Functions of the schema `counterx`.
#[pg_schema]
pub mod counterx {
    use super::*;
    use pgrx::iter::TableIterator;

    /// Where no worker may run, regular calls keep the tables of tokens and holds small as well.
    const MAX_EXPIRED: usize = 100_000;

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
                Err(LeftAlone::Refused(refusal)) => refusal.raise(),
                Err(LeftAlone::Restoring(Restoring { newest })) => ereport!(
                    WARNING,
                    PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "lane {lane} was left alone: it has deltas of epoch {newest}, which its gate has not reached"
                    ),
                    "This is so in the middle of a restore, until the sequences are restored."
                ),
            }
        }
        token::remove_expired(MAX_EXPIRED, &mut token::Progress::default());
        holds::remove_expired(MAX_EXPIRED);
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
                    let status = fold::status(lane)?;
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

    /// SECURITY DEFINER, as the table belongs to the extension's owner.
    #[pg_extern(volatile, parallel_unsafe, security_definer)]
    #[search_path(pg_catalog, pg_temp)]
    fn create_value_index() -> bool {
        xact::check_may_write(c"counterx.create_value_index()");
        value_index::create()
    }

    /// SECURITY DEFINER, as above.
    #[pg_extern(volatile, parallel_unsafe, security_definer)]
    #[search_path(pg_catalog, pg_temp)]
    fn drop_value_index() -> bool {
        xact::check_may_write(c"counterx.drop_value_index()");
        value_index::remove()
    }
}
