//! `counterx.drop_all_counters()`: an empty database for the next test, as TRUNCATE is for tables.
//!
//! # How it works
//! Each counter that exists is dropped by a delta, as `counter_drop` does it; so all snapshots stay right,
//! and a rollback takes it back. Tokens and holds are deleted. Types stay: they are definitions. The counters
//! of tracked tables stay as well: they are as many as the rows.
//!
//! A million locks on names are too many, so the gates are locked instead, in a mode that conflicts with
//! those who write at their end, and with those who have changed a counter by its value and hold its
//! name (`lease::enter_to_change`). Increments of transactions that are not over are not seen, and are
//! not waited for: they count when they commit, as after `counter_drop`.
//!
//! Consumers of streams have to begin anew: to be told of each of a million counters is of no use to them.
//!
//! What is on hold, and what others have reserved, would keep bounded counters from being dropped one by
//! one. They go without asking: whoever has gone by what was before is told to retry, by a new generation
//! of all types with bounds, as when a bound is tightened.

use super::existing;
use super::types::Looker;
use super::types::lock_types;
use super::types::new_generation;
use super::types::run;
use crate::bounds::reservations;
use crate::bounds::types;
use crate::pg::error::{raise, report};
use crate::pg::lock::conflicting_xacts;
use crate::pg::relation::{
    EXCLUSIVE, LockMode, Relation, SHARE_ROW_EXCLUSIVE, SHARE_UPDATE_EXCLUSIVE,
};
use crate::pg::snapshot::LatestSnapshot;
use crate::store::catalog;
use crate::store::totals::Order;
use crate::write::writing;
use counterx_core::lane::LANES;
use counterx_core::names::NameRange;
use pgrx::{PgSqlErrorCode, pg_sys};

/// Drops all counters, deletes all tokens and holds. Returns how many counters there were.
///
/// # Errors
/// Raises 25001 after changes of bounded counters. The caller has refused transactions of one snapshot.
pub fn drop_all() -> i64 {
    if reservations::has_reservations() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
                "cannot drop all counters in a transaction that has changed bounded counters",
            )
            .set_hint("Call it in a transaction of its own."),
        );
    }
    lock_all();
    // So that all there is can be seen.
    writing::write_early();
    let latest = LatestSnapshot::take();
    let mut counters = existing::in_range(&NameRange::all(), Order::Any, latest.as_ptr());
    counters.retain(|(name, tally)| tally.exists() && !types::is_of_tracked(name));
    // Only where it has changed types itself, after it had counted.
    existing::drop_each(&counters, types::have_changed());
    // Before the generations change: these rows are nobody's who has to retry.
    writing::write_early();
    drop(latest);
    delete_rows();
    types::bounded_counters_are_gone();
    counters.len() as i64
}

/// Nobody commits increments, and nobody has changed a counter by its value or is about to make or end a
/// hold, until the end of the transaction.
fn lock_all() {
    lock_types(Looker::Definer);
    let shared = catalog::shared();
    let hold = (shared.hold, SHARE_ROW_EXCLUSIVE);
    let gates = (0..LANES).map(|lane| (catalog::lane(lane).gate, EXCLUSIVE));
    let token = (shared.token, SHARE_UPDATE_EXCLUSIVE);
    // Who consumes a stream may need a gate as well.
    let cursor = (catalog::relation_of("cursor"), EXCLUSIVE);
    // Holds first, as in `types.rs`: who has changed some may need a gate.
    let all: Vec<(pg_sys::Oid, LockMode)> = [hold, cursor].into_iter().chain(gates).collect();
    // Those who may take long are waited for without holding up others.
    for &(relation, mode) in &all {
        for xact in conflicting_xacts(relation, mode) {
            xact.wait();
        }
    }
    // Tokens are removed by one at a time.
    for (relation, mode) in all.into_iter().chain([token]) {
        if Relation::open_until_commit(relation, mode).is_none() {
            catalog::gone()
        }
    }
}

fn delete_rows() {
    run("DELETE FROM ONLY counterx.token", &[]);
    run("DELETE FROM ONLY counterx.hold", &[]);
    // What alerts know goes with the folds of the drops: what was counted before them is folded first.
    run(
        "UPDATE ONLY counterx.cursor SET lost_reason = 'all counters were dropped'",
        &[],
    );
    run(
        "UPDATE ONLY counterx.type SET generation = $1 WHERE min IS NOT NULL OR max IS NOT NULL",
        &[new_generation().into()],
    );
    types::changed();
}
