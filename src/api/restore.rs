//! What a dump has of the counters, and what becomes of it in the database that it is restored into.
//!
//! # How it works
//! A dump has the exact value of each counter for its snapshot, and nothing of how the engine keeps it:
//! no epochs, no gates. The table `late` is what is dumped: it is declared to `pg_dump` with a condition
//! that leaves its own rows out and has [`dump_rows`](counterx_dump_rows) make others. Late deltas belong
//! to no epoch, so wherever such rows arrive they count as soon as they are committed, and the next fold
//! of their lane takes them along.
//!
//! History goes the same way: what is dumped as the table `bucket_restored` are the rows of all tables of buckets, with
//! what is not folded yet. There they stay, and are read beside those that folds write.
//!
//! # Invariants
//! - Rows are added only where there is no such counter yet: otherwise what was restored twice would count
//!   twice. One restore at a time, so that the second of two sees the first.
//! - Restored values go past the accounts of bounded counters. So where they could break a bound, all
//!   counters of the type are looked at with everybody kept out, and who has gone by the values of before
//!   is told to retry. The same where holds were restored: what others hold stays theirs. (Holds of
//!   counters that do not exist pass, as the counters may be restored after them.)

use crate::api::types as definitions;
use crate::bounds::types;
use crate::pg::error::{quoted, raise, report};
use crate::pg::function::version_1;
use crate::pg::memory::{MemoryArena, MemorySwitch};
use crate::pg::number;
use crate::pg::ports;
use crate::pg::relation::{ACCESS_SHARE, Relation, SHARE_UPDATE_EXCLUSIVE};
use crate::pg::rows::Rows;
use crate::pg::snapshot;
use crate::pg::varlena::{text_bytes, text_datum};
use crate::query::listing::{Entry, Listing, Wanted};
use crate::read::dumped;
use crate::read::reader;
use crate::store::catalog;
use crate::store::columns;
use crate::store::history::Interval;
use crate::store::history::values_of;
use crate::transaction::restored;
use crate::write::writing;
use counterx_core::lane::MAX_NAME_BYTES;
use counterx_core::names::NameRange;
use counterx_core::windows::Stored;
use pgrx::{PgSqlErrorCode, pg_guard, pg_sys};
use std::cell::Cell;

version_1!(
    pg_finfo_counterx_dump_rows,
    pg_finfo_counterx_dump_history,
    pg_finfo_counterx_dump_buckets
);

/// Rows of `late` that have the value of each counter for the running query's snapshot. A value beyond a
/// bigint takes several.
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_dump_rows(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let current = snapshot::active_or_latest();
    // SAFETY: called as a table function of the columns of `late`; the server checks that it is. The
    // listing ends before the snapshot and the arena do, and each row is copied before the next one.
    unsafe {
        pg_sys::InitMaterializedSRF(fcinfo, 0);
        let result = (*fcinfo).resultinfo.cast::<pg_sys::ReturnSetInfo>();
        let arena = MemoryArena::below(pg_sys::CurrentMemoryContext);
        let now = pg_sys::GetCurrentTimestamp();
        let wanted = Wanted::Range(NameRange::all());
        let mut listing = Listing::start_stored(wanted, current.as_ptr(), &arena);
        let row = MemoryArena::below(pg_sys::CurrentMemoryContext);
        loop {
            pgrx::check_for_interrupts!();
            row.reset();
            let _switch = MemorySwitch::to(row.as_ptr());
            let Some(Entry { name, value, uses }) = listing.next() else {
                break;
            };
            let mut rest = number::total(value);
            // Those of a tracked table are its rows; else nobody needs their number.
            let mut uses = types::is_of_tracked(text_bytes(name)).then_some(uses);
            loop {
                let part = rest.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
                rest -= i128::from(part);
                let kind = columns::kind::RESTORED.into();
                let mut values = [
                    name,
                    part.into(),
                    now.into(),
                    uses.unwrap_or(0).into(),
                    kind,
                ];
                let mut nulls = [false, false, false, uses.is_none(), false];
                pg_sys::tuplestore_putvalues(
                    (*result).setResult,
                    (*result).setDesc,
                    values.as_mut_ptr(),
                    nulls.as_mut_ptr(),
                );
                if rest == 0 {
                    break;
                }
                uses = uses.map(|_| 0);
            }
        }
    }
    pg_sys::Datum::null()
}

/// Rows of `history`, for what [`counterx_dump_buckets`] has: no other classes have rows, and what is not kept any more is
/// not known.
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_dump_history(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: called as a table function of the columns of `history`.
    let mut rows = unsafe { Rows::begin(fcinfo) };
    dumped::for_each_series(|series, since| {
        rows.put(|| {
            [
                Some(series.id.into()),
                Some(text_datum(&series.type_name)),
                Some(text_datum(series.unit.name().as_bytes())),
                series.keep.as_ref().map(Interval::datum),
                Some((series.class.number() as i32).into()),
                Some(text_datum(&series.zone)),
                since.map(Into::into),
            ]
        });
    });
    pg_sys::Datum::null()
}

/// Rows of `bucket_restored` that have the history of all counters for the running query's snapshot, wherever it is
/// stored, and what is not folded yet.
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_dump_buckets(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: called as a table function of the columns of `bucket_restored`.
    let mut rows = unsafe { Rows::begin(fcinfo) };
    dumped::for_each_row(|name, series, row| {
        rows.put(|| values_of(text_datum(name), series, row));
    });
    pg_sys::Datum::null()
}

thread_local! {
    /// The (sub)transaction that has locked `late` against other restores, by when the transaction began.
    static LOCKED_BY: Cell<(i64, pg_sys::SubTransactionId)> = const { Cell::new((0, 0)) };
}

/// More rows than any table has, and far from overflowing a sum of them.
const MOST_ROWS: i64 = 1 << 50;

/// Looks at a row of `late` that comes by SQL.
///
/// # Errors
/// Raises 23505 when there is such a counter, 22023 for what is no name and for what no dump has.
pub fn check_row(name: &[u8], delta: i64, uses: Option<i64>, kind: Option<i8>) {
    if !(1..=MAX_NAME_BYTES).contains(&name.len()) {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("a counter's name has {} bytes in this database's encoding", name.len()),
            )
            .set_hint(format!("It can have 1 to {MAX_NAME_BYTES}. Rename the counter with counter_rename() before the dump is made, or restore it into a database of the same encoding.")),
        )
    }
    if let Some(uses) = uses.filter(|uses| !(0..=MOST_ROWS).contains(uses)) {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("counter {} is restored with {uses} uses", quoted(name)),
            )
            .set_detail("Whether a counter exists is counted by its uses. A dump has those of tracked tables: numbers of rows.")
            .set_hint("Leave the column \"uses\" out, or null."),
        )
    }
    if kind != Some(columns::kind::RESTORED) {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!(
                    "counter {} does not come as what was restored",
                    quoted(name)
                ),
            )
            .set_detail("What a restore brings was counted elsewhere, or at another time.")
            .set_hint("Leave the column \"kind\" out: 'r' is its default."),
        )
    }
    let shared = catalog::shared();
    // Not at each row: a lock that is held already still takes a look-up.
    // SAFETY: reads variables of the backend.
    let subxact = unsafe {
        let started = pg_sys::GetCurrentTransactionStartTimestamp();
        (started, pg_sys::GetCurrentSubTransactionId())
    };
    if LOCKED_BY.get() != subxact {
        if Relation::open_until_commit(shared.late, SHARE_UPDATE_EXCLUSIVE).is_none() {
            catalog::gone()
        }
        LOCKED_BY.set(subxact);
    }
    writing::wake_worker_at_commit();
    if reader::exists_for_others(name) {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION,
                format!("counter {} exists already", quoted(&types::plain(name))),
            )
            .set_detail("A restored value would be added to it.")
            .set_hint("Restore counters into a database that does not have them, or drop those that it has with counter_drop() first."),
        )
    }
    let Some(limits) = types::known_limits_of(name) else {
        return;
    };
    if limits.window.is_some() && Stored::of(name).is_none() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("counter {} is of a type with a window, and comes without one", quoted(name)),
            )
            .set_detail("Where it comes from, its type had none.")
            .set_hint("Restore it before the type gets a window, and drop it then; or rename it with counter_rename() before the dump is made."),
        )
    }
    let could_break =
        (delta < 0 && limits.bounds.min.is_some()) || (delta > 0 && limits.bounds.max.is_some());
    if could_break {
        restored::note(name);
    }
}

/// Looks at a row of `hold` that comes by SQL.
pub fn check_hold(name: &[u8]) {
    let limits = types::known_limits_of(name);
    if limits.is_some_and(|limits| limits.window.is_some()) {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("counter {} begins anew, and cannot be held", quoted(name)),
            )
            .set_hint("Its type has a window here. Restore into another database, or drop the type first."),
        );
    }
    if limits.is_some_and(|limits| limits.bounds.min.is_some()) {
        restored::note(name);
    }
}

/// All rows of `late` of a command have come.
///
/// # Errors
/// Raises 23514 when a bound would be broken, 40001 when a serializable transaction has read counters that
/// it cannot have seen with these.
pub fn after_rows() {
    // SAFETY: what the command has brought shall be seen.
    unsafe { pg_sys::CommandCounterIncrement() };
    if ports::isolation_is_serializable() {
        let Some(anchor) = Relation::open_until_commit(catalog::shared().anchor, ACCESS_SHARE)
        else {
            catalog::gone()
        };
        // SAFETY: the relation is open.
        unsafe { ports::check_table_for_serializable_conflict_in(anchor.as_ptr()) };
    }
    recheck_touched();
}

/// All rows of `hold` of a command have come.
///
/// # Errors
/// Raises 23514 when there is more on hold of a counter than there is.
pub fn after_holds() {
    // SAFETY: as above.
    unsafe { pg_sys::CommandCounterIncrement() };
    recheck_touched();
}

fn recheck_touched() {
    let touched: Vec<String> = restored::take_unchecked().into_iter().collect();
    definitions::recheck(&touched);
}
