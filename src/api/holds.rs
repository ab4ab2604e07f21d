//! Holds.

use super::args::{self, Interval, NameOut, Text};
use crate::escrow;
use crate::holds;
use crate::pg::error::{quoted, raise, report};
use crate::pg::snapshot;
use crate::read;
use crate::token::{self, Claim, Use};
use crate::types;
use crate::xact;
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
    xact::check_may_write(c"counter_hold()");
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
    let limits = types::limits_of(name).filter(|limits| limits.bounds.min.is_some());
    let Some(limits) = limits else {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("counter {} has no minimum to hold against", quoted(name)),
            )
            .set_hint("Holds are for counters of a type with a minimum: SELECT counter_type_create('stock', min => 0)."),
        )
    };
    if let Err(shortage) = escrow::request(name, -amount, limits) {
        xact::raise_shortage(name, -amount, limits.bounds, &shortage)
    }
    let now = escrow::clock();
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
    let id = holds::insert(name, amount, now, expires_at);
    // The table is locked from here on, so that the bounds stay as they are until the hold is seen.
    types::check_same(name, limits);
    id
}

#[pg_extern(volatile, parallel_unsafe, cost = 200)]
fn counter_hold_confirm(id: Option<i64>, amount: default!(Option<i64>, "NULL")) -> bool {
    xact::check_may_write(c"counter_hold_confirm()");
    let id = args::required("id", id);
    let hold = holds::lock(id).unwrap_or_else(|| {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                format!("hold {id} does not exist"),
            )
            .set_hint("It was confirmed or released before, or expired long ago. SELECT * FROM counter_holds shows what there is."),
        )
    });
    let amount = amount.unwrap_or(hold.amount);
    args::positive("amount", amount);
    if amount > hold.amount {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!(
                    "cannot confirm {amount} of hold {id}: it holds {}",
                    hold.amount
                ),
            )
            .set_hint("Take what is more with counter_incr()."),
        );
    }
    // Reserves, and then looks at the clock: see holds.rs.
    let limits = types::limits_of(&hold.name);
    if let Some(limits) = limits {
        escrow::reserve_held(&hold.name, amount, hold.expires_at, limits.generation);
    }
    failpoint!("hold.reserved");
    if hold.expires_at <= escrow::clock() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("hold {id} has expired"),
            )
            .set_hint("Its amount may be taken by others. Make a new hold, or take the amount with counter_incr()."),
        );
    }
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
    holds::remove(&hold);
    failpoint!("hold.deleted");
    xact::add_reserved(&hold.name, -amount);
    true
}

#[pg_extern(volatile, parallel_unsafe, cost = 200)]
fn counter_hold_release(id: Option<i64>) -> bool {
    xact::check_may_write(c"counter_hold_release()");
    let hold = holds::lock(args::required("id", id));
    if let Some(hold) = &hold {
        holds::remove(hold);
    }
    hold.is_some()
}

/// One row: a table function, as it has several columns.
#[pg_extern(stable, parallel_restricted, cost = 200)]
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
    let name = args::name(name);
    let current = snapshot::active_or_latest();
    let value = read::tally_at(name, current.as_ptr()).value;
    // SAFETY: the snapshot is active as long as `current` lives.
    let held = unsafe { holds::held(name, escrow::clock(), current.as_ptr()) };
    let min = types::limits_of(name).and_then(|limits| limits.bounds.min);
    let available = min.map(|min| args::bigint(name, value - held - i128::from(min)));
    TableIterator::once((
        NameOut(name.into()),
        args::bigint(name, value),
        args::bigint(name, held),
        available,
    ))
}
