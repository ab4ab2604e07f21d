//! `CALL counterx.compact_in_steps()`: what `compact()` does, each step in a transaction of its own.

use super::admin::{self, Removal};
use crate::fold::compaction::Due;
use crate::fold::stream_upkeep;
use crate::pg::error::{raise, report};
use crate::pg::function::version_1;
use crate::pg::standby;
use counterx_core::lane::LANES;
use pgrx::{PgSqlErrorCode, pg_guard, pg_sys};

version_1!(pg_finfo_counterx_compact_in_steps);

/// Folds lane by lane. What a step has done is committed before the next one begins, so that a lane is
/// kept from others for as long as its own fold takes, and a truncated log is free at once.
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_compact_in_steps(
    fcinfo: pg_sys::FunctionCallInfo,
) -> pg_sys::Datum {
    check_not_atomic(fcinfo);
    // SAFETY: in a CALL that may end transactions; what is connected here is finished here. No lock, scan
    // or snapshot of ours is open between two steps.
    unsafe {
        pg_sys::SPI_connect_ext(pg_sys::SPI_OPT_NONATOMIC as i32);
        for lane in 0..LANES {
            step(|| {
                // The first transaction may have more to commit than this fold. Of the others, nothing is
                // lost that could not be done again.
                if lane > 0 {
                    standby::do_not_wait();
                }
                let mut due = Due::now(lane);
                due.wait();
                due.fold();
            });
            // The fold is committed, so it may have drained a log that nobody needs any more.
            step(|| {
                standby::do_not_wait();
                Due::nothing(lane).fold();
            });
            step(|| {
                standby::do_not_wait();
                stream_upkeep::keep(lane);
            });
        }
        let (mut more, mut removal) = (true, Removal::default());
        while more {
            step(|| {
                standby::do_not_wait();
                more = admin::remove_expired(&mut removal);
            });
        }
        pg_sys::SPI_finish();
    }
    pg_sys::Datum::null()
}

fn step(body: impl FnOnce()) {
    admin::check_may_fold(c"counterx.compact_in_steps()");
    body();
    pgrx::check_for_interrupts!();
    // SAFETY: connected, in a CALL that may end transactions. A new transaction is begun at once.
    unsafe { pg_sys::SPI_commit() };
}

/// # Errors
/// Raises 25001 within a transaction block, a function, or anything else that needs its transaction.
fn check_not_atomic(fcinfo: pg_sys::FunctionCallInfo) {
    // SAFETY: what the server has called us with: a CALL leaves its node there.
    let free = unsafe {
        let context = (*fcinfo).context;
        !context.is_null()
            && (*context).type_ == pg_sys::NodeTag::T_CallContext
            && !(*context.cast::<pg_sys::CallContext>()).atomic
    };
    if !free {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
                "counterx.compact_in_steps() cannot run inside a transaction block",
            )
            .set_hint("CALL it by itself. counterx.compact() does the same in one transaction."),
        );
    }
}
