//! Holds.

use super::args;
use super::args::Interval;
use super::args::NameOut;
use super::args::Text;
use crate::bounds::accounts;
use crate::bounds::escrow;
use crate::bounds::holds::{self, Hold};
use crate::bounds::types;
use crate::bounds::windows::Look;
use crate::pg::error::{quoted, raise, report};
use crate::pg::snapshot;
use crate::read::reader;
use crate::write::change;
use crate::write::token::{self, Claim, Use};
use counterx_core::path::Change;
use pgrx::PgSqlErrorCode;
use pgrx::iter::TableIterator;
use pgrx::prelude::*;

#[pg_extern(volatile, parallel_unsafe, cost = 200)]
fn counter_hold(
    name: Option<Text>,
    amount: Option<i64>,
    ttl: Option<Interval>,
    token: default!(Option<Text>, "NULL"),
) -> i64 {
    change::check_may_write(c"counter_hold()");
    let (name, amount) = (args::name(name), args::required("amount", amount));
    args::positive("amount", amount);
    let ttl = args::required("ttl", ttl);
    let Some(token) = token else {
        return hold(name, amount, ttl);
    };
    // The token remembers the hold, also when it is gone.
    let token = args::token(Some(token));
    let claim = token::claim(
        token,
        Use {
            name,
            amount,
            hold: true,
        },
        || Some(hold(name, amount, ttl)),
    );
    let (Claim::Taken(id) | Claim::Replay(id)) = claim;
    id.expect("a hold keeps its id")
}

fn hold(name: &[u8], amount: i64, ttl: Interval) -> i64 {
    let limits = types::limits_of(name);
    if limits.is_some_and(|limits| limits.window.is_some()) {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("cannot hold an amount of counter {}, which has a window", quoted(name)),
            )
            .set_detail("It begins anew with each window, and a hold could last longer.")
            .set_hint("Take the amount with counter_try_incr(), and give back in the same window what is not used."),
        );
    }
    let Some(limits) = limits.filter(|limits| limits.bounds.min.is_some()) else {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("counter {} has no minimum to hold against", quoted(name)),
            )
            .set_hint("Holds are for counters of a type with a minimum: SELECT counter_type_create('stock', min => 0)."),
        )
    };
    if let Err(shortage) = escrow::request_hold(name, amount, limits) {
        change::raise_shortage(name, (-amount).into(), limits.bounds, &shortage)
    }
    let now = accounts::clock();
    let expires_at = end_of(&ttl, now);
    let id = holds::insert(name, amount, now, expires_at);
    // The table is locked from here on, so that the bounds stay as they are until the hold is seen.
    types::check_same(name, limits);
    id
}

/// Locks a hold that has to be there.
fn must_lock(id: i64) -> Hold {
    holds::lock(id).unwrap_or_else(|| {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                format!("hold {id} does not exist"),
            )
            .set_hint("It was confirmed or released before, or expired long ago. SELECT * FROM counter_holds shows what there is."),
        )
    })
}

fn too_much(verb: &str, id: i64, hold: &Hold, amount: i64, hint: &str) -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!(
                "cannot {verb} {amount} of hold {id}: it holds {}",
                hold.amount
            ),
        )
        .set_hint(hint),
    )
}

fn must_not_have_expired(id: i64, hold: &Hold) {
    if hold.has_expired(accounts::clock()) {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("hold {id} has expired"),
            )
            .set_hint("Its amount may be taken by others. Make a new hold, or take the amount with counter_incr()."),
        );
    }
}

/// Reserves the end of a hold and what comes instead, which it keeps room for; and then looks whether
/// it does: see `bounds/holds.rs`.
fn go_on_from(id: i64, hold: &Hold, instead: Change, amount: i64) {
    let limits = types::limits_of(&hold.name);
    if let Some(limits) = limits {
        let changes = [hold.released(), instead];
        escrow::reserve_held(&hold.name, &changes, limits.generation);
    }
    failpoint!("hold.reserved");
    must_not_have_expired(id, hold);
    if limits.is_some_and(|limits| !escrow::has_room(&hold.name, amount, limits.bounds)) {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_CHECK_VIOLATION,
                format!("what hold {id} has set aside is gone"),
            )
            .set_detail("A clock was set back: the hold had expired, and others have taken its amount.")
            .set_hint("Make a new hold, or take the amount with counter_incr(). Keep the clocks of a primary and its standbys in step."),
        );
    }
}

#[pg_extern(volatile, parallel_unsafe, cost = 200)]
fn counter_hold_confirm(id: Option<i64>, amount: default!(Option<i64>, "NULL")) -> bool {
    change::check_may_write(c"counter_hold_confirm()");
    let id = args::required("id", id);
    let hold = must_lock(id);
    let amount = amount.unwrap_or(hold.amount);
    args::positive("amount", amount);
    if amount > hold.amount {
        let hint = "Take what is more with counter_incr().";
        too_much("confirm", id, &hold, amount, hint)
    }
    go_on_from(id, &hold, Change::delta(-amount), amount);
    holds::remove(&hold);
    failpoint!("hold.deleted");
    change::add_reserved(&hold.name, -amount);
    true
}

#[pg_extern(volatile, parallel_unsafe, cost = 200)]
fn counter_hold_release(id: Option<i64>) -> bool {
    change::check_may_write(c"counter_hold_release()");
    let hold = holds::lock(args::required("id", id));
    if let Some(hold) = &hold {
        release(hold);
    }
    hold.is_some()
}

fn release(hold: &Hold) {
    let limits = types::limits_of(&hold.name);
    if let (Some(limits), Some(change)) = (limits, hold.given_back(accounts::clock())) {
        escrow::note_release(&hold.name, change, limits.generation);
    }
    holds::remove(hold);
}

#[pg_extern(volatile, parallel_unsafe, cost = 200)]
fn counter_hold_extend(id: Option<i64>, ttl: Option<Interval>) -> TimestampWithTimeZone {
    change::check_may_write(c"counter_hold_extend()");
    let id = args::required("id", id);
    let ttl = args::required("ttl", ttl);
    let hold = must_lock(id);
    must_not_have_expired(id, &hold);
    let mut expires_at = end_of(&ttl, accounts::clock());
    if expires_at > hold.expires_at {
        go_on_from(id, &hold, Change::hold(hold.amount), hold.amount);
        expires_at = end_of(&ttl, accounts::clock()).max(expires_at);
        replace(&hold, hold.amount, expires_at);
    } else {
        expires_at = hold.expires_at;
    }
    TimestampWithTimeZone::try_from(expires_at).expect("an end that was computed by the server")
}

#[pg_extern(volatile, parallel_unsafe, cost = 200)]
fn counter_hold_reduce(id: Option<i64>, amount: Option<i64>) -> i64 {
    change::check_may_write(c"counter_hold_reduce()");
    let id = args::required("id", id);
    let amount = args::required("amount", amount);
    args::positive("amount", amount);
    let hold = must_lock(id);
    if amount > hold.amount {
        let hint = "counter_hold_release() gives back all of it.";
        too_much("give back", id, &hold, amount, hint)
    }
    must_not_have_expired(id, &hold);
    let left = hold.amount - amount;
    if left == 0 {
        release(&hold);
    } else {
        go_on_from(id, &hold, Change::hold(left), left);
        replace(&hold, left, hold.expires_at);
    }
    left
}

/// The table is locked from here on, so that the bounds stay as they are until the hold is seen.
fn replace(hold: &Hold, amount: i64, expires_at: i64) {
    let limits = types::limits_of(&hold.name);
    holds::replace(hold, amount, expires_at);
    if let Some(limits) = limits {
        types::check_same(&hold.name, limits);
    }
}

/// When a hold ends that lasts for so long from now on.
fn end_of(ttl: &Interval, now: i64) -> i64 {
    let expires_at = ttl.after(now);
    if expires_at <= now {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                "ttl of a hold must be positive",
            )
            .set_hint("Give an interval, such as '15 minutes'."),
        );
    }
    expires_at
}

/// One row: a table function, as it has several columns. It looks at the latest state, which the server
/// does not allow in the midst of a parallel query.
#[pg_extern(volatile, parallel_unsafe, cost = 200)]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn counter_available(
    name: Option<Text>,
) -> TableIterator<
    'static,
    (
        name!(name, NameOut),
        name!(value, i64),
        name!(held, i64),
        name!(available, Option<i64>),
    ),
> {
    change::check_not_parallel(c"counter_available()");
    let name = args::name(name);
    let read = Look::default().name(name);
    let current = snapshot::active_or_latest();
    let value = reader::tally_at(&read, current.as_ptr()).value;
    // SAFETY: the snapshot is active as long as `current` lives.
    let held = unsafe { holds::held(&read, accounts::clock(), current.as_ptr()) };
    let limits = types::limits_of(name);
    TableIterator::once((
        NameOut(name.into()),
        args::bigint(name, value),
        args::bigint(name, held),
        limits.and_then(|limits| escrow::available(&read, limits.bounds)),
    ))
}
