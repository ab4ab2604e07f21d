//! From a call to the maps of the running transaction: bounds first, then the sum.

use crate::bounds::escrow::{self, InWindow};
use crate::bounds::limits::{Limits, Shortage};
use crate::bounds::types;
use crate::bounds::windowed::Windowed;
use crate::bounds::windows::Place;
use crate::figures::local::{Figure, count};
use crate::pg::error::{raise, report};
use crate::pg::ports;
use crate::pg::room;
use crate::pg::time;
use crate::settings;
use crate::store::catalog;
use crate::transaction::pending::{self, Kind, PHASE, Phase, Source};
use crate::write::writing;
use counterx_core::escrow::Bounds;
use counterx_core::history::MINUTE;
use counterx_core::lane::NameHash;
use counterx_core::pending::Refused;
use counterx_core::tally::Tally;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::borrow::Cow;
use std::rc::Rc;

/// Adds to a counter on behalf of the running (sub)transaction.
///
/// # Errors
/// Raises 22003 when the transaction's sum for this counter would leave the range of a bigint, 53200 when
/// there is no memory for one more.
pub fn add(name: &[u8], delta: i64) {
    add_where(name, delta);
}

/// The same. Returns the name that the counter is read by, as the caller wants to know what it has come to.
///
/// # Errors
/// As of [`add`].
pub fn add_to(name: &[u8], delta: i64) -> Cow<'_, [u8]> {
    match add_where(name, delta) {
        Some(place) => Cow::Owned(place.name().to_vec()),
        None => Cow::Borrowed(name),
    }
}

/// The same. Returns in which window it counts, if its type has some.
#[inline]
fn add_where(name: &[u8], delta: i64) -> Option<Place> {
    let limits = types::limits_of(name);
    if let Some(limits) = limits
        && let Some(window) = limits.window
    {
        return Some(add_in_window(name, delta, limits, &types::window(window)));
    }
    put_within_bounds(Kind::Increment, name, delta, limits);
    None
}

#[inline]
fn put_within_bounds(kind: Kind, name: &[u8], delta: i64, limits: Option<Limits>) {
    if let Some(limits) = limits
        && let Err(shortage) = escrow::request(name, delta, limits)
    {
        raise_shortage(name, delta.into(), limits.bounds, &shortage)
    }
    put(kind, name, delta);
}

fn add_in_window(name: &[u8], delta: i64, limits: Limits, windowed: &Rc<Windowed>) -> Place {
    match escrow::request_in_window(name, delta, limits, windowed, false) {
        InWindow::Granted(place) => {
            add_reserved(place.name(), delta);
            place
        }
        // An error undoes what it would have counted.
        InWindow::Refused(shortage) | InWindow::Counted(_, shortage) => {
            raise_shortage(name, delta.into(), limits.bounds, &shortage)
        }
    }
}

/// Adds to a counter in the window that is running, if its bounds allow it.
fn try_add_in_window(
    name: &[u8],
    delta: i64,
    limits: Limits,
    windowed: &Rc<Windowed>,
    may_count_refused: bool,
) -> Result<(), Shortage> {
    let (place, result) =
        match escrow::request_in_window(name, delta, limits, windowed, may_count_refused) {
            InWindow::Granted(place) => (place, Ok(())),
            InWindow::Refused(shortage) => return Err(shortage),
            InWindow::Counted(place, shortage) => (place, Err(shortage)),
        };
    add_reserved(place.name(), delta);
    result
}

/// The same for a change by which nothing is counted, of a counter by the name that it is stored as.
///
/// # Errors
/// As of [`add`].
pub fn adjust(name: &[u8], delta: i64) {
    put_within_bounds(Kind::Adjustment, name, delta, types::limits_of(name));
}

/// Adds to a counter, if its bounds allow it. Where its type says so, a request that is refused counts as well.
///
/// # Errors
/// [`Shortage`] when they do not; else as of [`add`].
pub fn try_add(name: &[u8], delta: i64) -> Result<(), Shortage> {
    request(name, delta, true)
}

/// The same for a request that becomes an error when it is refused, and so counts nothing.
///
/// # Errors
/// As of [`try_add`].
pub fn add_or_fail(name: &[u8], delta: i64) -> Result<(), Shortage> {
    request(name, delta, false)
}

fn request(name: &[u8], delta: i64, may_count_refused: bool) -> Result<(), Shortage> {
    if let Some(limits) = types::limits_of(name) {
        if let Some(window) = limits.window {
            let windowed = types::window(window);
            return try_add_in_window(name, delta, limits, &windowed, may_count_refused);
        }
        escrow::request(name, delta, limits)?;
    }
    add_reserved(name, delta);
    Ok(())
}

/// Adds to a counter what its bounds are known to allow.
///
/// # Errors
/// As of [`add`], but for the bounds.
pub fn add_reserved(name: &[u8], delta: i64) {
    put(Kind::Increment, name, delta);
}

/// Adjusts a counter, for who has made sure that nobody goes by what it was.
///
/// # Errors
/// As of [`add`], but for the bounds.
pub fn adjust_unchecked(name: &[u8], delta: i64) {
    put(Kind::Adjustment, name, delta);
}

fn put(kind: Kind, name: &[u8], delta: i64) {
    count_increment(kind);
    let hash = NameHash::of(name);
    change(name, |level| {
        let add = || {
            pending::change((Source::Calls, kind), |map| {
                map.add(level, hash, name, delta)
            })
        };
        match add() {
            // What is of this kind does not fit, but what there is of both does.
            Err(Refused::Overflow) if pending::fits(hash, name, delta) => {
                writing::flush_early(level);
                add()
            }
            added => added,
        }
    });
}

#[inline]
fn count_increment(kind: Kind) {
    if kind == Kind::Increment {
        count(Figure::Increments, 1);
    }
}

/// Clocks differ a little between a server and the one that was promoted for it.
const FAR_AHEAD: i64 = MINUTE;

/// Refuses a change that could break a bound.
///
/// # Errors
/// Raises 23514.
pub fn raise_shortage(name: &[u8], delta: i128, bounds: Bounds, shortage: &Shortage) -> ! {
    let name = crate::pg::error::quoted(&types::plain(name));
    let (message, mut hint) = match bounds {
        Bounds { min: Some(min), .. } if delta < 0 => (
            format!("counter {name} must not go below {min}"),
            "counter_try_incr() answers false instead, and counter_take_up_to() takes what there is.",
        ),
        Bounds { max, .. } => (
            format!(
                "counter {name} must not go above {}",
                max.unwrap_or(i64::MAX)
            ),
            "counter_try_incr() answers false instead.",
        ),
    };
    let mut detail = match shortage.available {
        Some(available) if delta < 0 => format!(
            "Asked for {}, available are {available}.",
            delta.unsigned_abs()
        ),
        _ => format!("Its value is {}, the change {delta}.", shortage.value),
    };
    // Nobody is blamed who is not in the way.
    detail += match (delta < 0, shortage.others, shortage.held) {
        (true, true, true) => {
            " What other transactions have reserved, and what is on hold, is not available."
        }
        (true, true, false) => " What other transactions have reserved is not available.",
        (true, false, true) => " What is on hold is not available.",
        (false, true, _) => " What other transactions are about to add counts as well.",
        _ => "",
    };
    if let Some(renewal) = &shortage.renewal {
        let ends_at = time::text(renewal.ends_at);
        detail += &format!(" It begins anew at {ends_at}.");
        if shortage.before != 0 {
            let before = shortage.before;
            detail += &format!(" The {before} of its window before count in part.");
        }
        if let Some(retry_at) = renewal.retry_at.filter(|at| *at != renewal.ends_at) {
            detail += &format!(" There is room at {}.", time::text(retry_at));
        }
        if renewal.ahead > FAR_AHEAD {
            let seconds = renewal.ahead / (MINUTE / 60);
            detail += &format!(
                " That goes by a clock that is {seconds} s ahead of the server's, which was ahead before or is behind now."
            );
            hint = "If the server's clock is right, the extension's owner can have windows go by it again with counterx.reset_window_clock().";
        }
    }
    raise(
        report(PgSqlErrorCode::ERRCODE_CHECK_VIOLATION, message)
            .set_detail(detail)
            .set_hint(hint),
    )
}

/// Drops a counter on behalf of the running (sub)transaction; `written` is all there is of it but
/// for what is pending here.
///
/// # Errors
/// Raises 22003 when the value is out of range for a bigint.
pub fn drop_counter(name: &[u8], written: Tally) {
    let hash = NameHash::of(name);
    // What is pending here goes with it.
    if let Some(limits) = types::limits_of(name) {
        let changes = [
            pending::pending_tally(hash, name).unwrap_or_default(),
            written,
        ];
        let [Ok(pending), Ok(rest)] = changes.map(|tally| i64::try_from(-tally.value)) else {
            raise_out_of_range(name)
        };
        let delta = i128::from(pending) + i128::from(rest);
        let deltas = i64::try_from(delta).map_or([pending, rest], |delta| [delta, 0]);
        if let Err(shortage) = escrow::request_both(name, deltas, limits) {
            raise_shortage(name, delta, limits.bounds, &shortage)
        }
    }
    drop_unchecked(name, written);
}

/// The same without a look at its bounds: for who has made sure that nobody goes by what it was.
///
/// # Errors
/// As of [`drop_counter`], but for the bounds.
pub fn drop_unchecked(name: &[u8], written: Tally) {
    let hash = NameHash::of(name);
    change(name, |level| {
        pending::drop_counter(level, hash, name, written)
    });
}

/// A counter's history goes when the transaction commits.
///
/// # Errors
/// Raises 53200 where there is no memory for it.
pub fn purge(name: &[u8]) {
    let hash = NameHash::of(name);
    change(name, |level| pending::purge(level, hash, name));
}

/// Adds to the counter of a group of a tracked table's rows, of which there are `rows` more.
///
/// # Errors
/// As of [`add`], but for the bounds.
pub fn add_rows(kind: Kind, hash: NameHash, name: &[u8], delta: i64, rows: i64) {
    count_increment(kind);
    change(name, |level| {
        pending::change((Source::Rows, kind), |map| {
            map.add_rows(level, hash, name, delta, rows)
        })
    });
}

fn change(name: &[u8], how: impl FnOnce(u32) -> Result<(), Refused>) {
    let level = ports::xact_nest_level();
    match how(level).map(|()| pending::bytes() > settings::pending_work_mem()) {
        Ok(false) if PHASE.get() == Phase::Running => {}
        Ok(_) => writing::flush_early(level),
        Err(Refused::NoMemory) => room::raise_no_memory(),
        Err(Refused::Overflow) => raise_out_of_range(name),
    }
}

fn raise_out_of_range(name: &[u8]) -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
            format!(
                "the increments of counter {} in this transaction are out of range for type bigint",
                crate::pg::error::quoted(&types::plain(name))
            ),
        )
        .set_hint(
            "Commit, and go on in a new transaction: a counter's value itself has no such limit.",
        ),
    )
}

/// Refuses what the server does not allow in a parallel operation.
///
/// # Errors
/// Raises 25000 in one.
pub fn check_not_parallel(function: &'static core::ffi::CStr) {
    if ports::in_parallel_mode() {
        // SAFETY: raises an error.
        unsafe { pg_sys::PreventCommandIfParallelMode(function.as_ptr()) };
    }
}

/// Refuses what must not change counters now.
///
/// # Errors
/// Raises 25006 in a read-only transaction and on a standby, 25000 in a parallel operation, and
/// an error when the extension cannot be used.
pub fn check_may_write(function: &'static core::ffi::CStr) {
    if ports::xact_read_only() {
        // SAFETY: both raise an error, or return.
        unsafe {
            pg_sys::PreventCommandDuringRecovery(function.as_ptr());
            pg_sys::PreventCommandIfReadOnly(function.as_ptr());
        }
    }
    check_not_parallel(function);
    if !catalog::is_known() {
        catalog::shared();
    }
}
