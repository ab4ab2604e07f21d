//! The foreign table `counterx.listing`, which the view `counters` shows.
//!
//! # How it works
//! A foreign table is how the server lets a relation that is stored nowhere take part in a query's
//! planning: conditions on the name reach us before a row is made. `name = 'a'` then reads one
//! counter, `name LIKE 'a%'` a range of them, and a join can look up each.
//!
//! | module | what it does |
//! |---|---|
//! | [`condition`] | which conditions narrow the names |
//! | [`plan`] | rows, costs, paths, plan |
//! | [`scan`] | running a plan, and showing it |
//!
//! # Invariants
//! - Conditions only narrow what is read: the executor checks all of them once more on each row.
//! - There is nothing to write to: the table is read-only for everybody.
//! - Never in a parallel worker: the own transaction's increments are in the leader's memory.

use pgrx::{PgBox, pg_guard, pg_sys};

mod condition;

mod plan;

mod scan;

/// Tells the server how the handler is called.
#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_counterx_fdw_handler() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// The SQL function `counterx.fdw_handler()`: the table of our callbacks. All that it leaves out,
/// such as changing rows, does not exist.
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_fdw_handler(_fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the node is zeroed, which is right for all members that are not set.
    let mut routine =
        unsafe { PgBox::<pg_sys::FdwRoutine>::alloc_node(pg_sys::NodeTag::T_FdwRoutine) };
    routine.GetForeignRelSize = Some(plan::estimate_size);
    routine.GetForeignPaths = Some(plan::add_paths);
    routine.GetForeignPlan = Some(plan::make_plan);
    routine.BeginForeignScan = Some(scan::begin);
    routine.IterateForeignScan = Some(scan::iterate);
    routine.ReScanForeignScan = Some(scan::rescan);
    routine.EndForeignScan = Some(scan::end);
    routine.ExplainForeignScan = Some(scan::explain);
    pg_sys::Datum::from(routine.into_pg())
}
