//! Holds: amounts that are set aside from bounded counters, beyond the transaction that does it.
//!
//! # How it works
//! A hold is a row of `counterx.hold`. As long as it is there and has not expired, its amount cannot be
//! taken by others; it is still part of the value, so it makes no room below a maximum. Whether it has
//! expired is decided by whoever reads it, so an expired one is free at once; the row is removed
//! some time later.
//!
//! Making a hold reserves its amount until the transaction ends, as a take does. To confirm one
//! removes the row and takes from the counter; that take is reserved without looking at the bounds,
//! as the hold has kept room for it. To extend or to reduce one puts another row in its place; what that
//! one holds is reserved likewise. Until the commit others go by the old row.
//!
//! Who releases a hold can take its amount in the same transaction, without others being able to: see
//! `counterx_core::path`.
//!
//! # Why an expired hold cannot be confirmed after its amount was given to another
//! Who reads holds looks at the clock *before* reserving; who confirms, extends or reduces one, or takes
//! what one had set aside that he has released, reserves *before* looking at the clock. So if the reader's reservation came first, the one who confirms sees a later time,
//! and finds the hold expired if the reader did; if it came second, the reader has noted the take.
//! The clock of `accounts.rs` does not go back, whatever the system's does.

use crate::bounds::accounts::clock;
use crate::figures::local::{Figure, count_if_committed};
use crate::pg::error::{raise, report};
use crate::pg::firing;
use crate::pg::insert::Inserter;
use crate::pg::lock::{HoldLock, IdsLock};
use crate::pg::memory::MemoryScope;
use crate::pg::ports;
use crate::pg::relation::{ROW_EXCLUSIVE, Relation, SHARE_UPDATE_EXCLUSIVE};
use crate::pg::room;
use crate::pg::scan::{Direction, IndexScan, Key, TableScan};
use crate::pg::snapshot::{self, LatestSnapshot, OwnRowsVisible};
use crate::pg::user::ActingAs;
use crate::pg::varlena::NameText;
use crate::store::catalog::{self, SharedRels};
use crate::store::columns::hold;
use crate::store::expired::Batch;
use crate::store::gate;
use crate::store::shape;
use crate::store::tables;
use counterx_core::lane::NameHash;
use counterx_core::names::NameRange;
use counterx_core::path::Change;
use counterx_core::room::{NoMemory, keep_spare};
use pgrx::{PgSqlErrorCode, pg_sys};
use std::collections::HashMap;

/// A hold that has expired is shown for so long, in microseconds: a day.
const KEPT_FOR_US: i64 = 24 * 3600 * 1_000_000;

/// What is on hold of a counter, for this snapshot, at this time.
///
/// # Safety
/// The snapshot is active or registered.
pub unsafe fn held(name: &[u8], clock: i64, snapshot: pg_sys::Snapshot) -> i128 {
    let table = tables::open(catalog::shared().hold);
    // SAFETY: the caller's promise.
    if table.blocks() == 0 && unsafe { is_left_empty(&table, snapshot) } {
        return 0;
    }
    let index = tables::index_of(&table, &hold::BY_NAME);
    let text = NameText::new(name);
    // SAFETY: the caller's promise.
    let mut scan = unsafe { IndexScan::new(&table, &index, snapshot, 1) };
    scan.seek(&[Key::text_eq(1, text.datum())]);
    let mut sum = 0;
    while let Some(row) = scan.next(Direction::Forward) {
        if row.int8(hold::EXPIRES_AT) > clock {
            sum += i128::from(row.int8(hold::AMOUNT));
        }
    }
    sum
}

/// A serializable transaction sees that there are no holds, and goes by that. Whoever inserts the first
/// one after this meets its lock; who has done it before has made the table grow.
///
/// # Safety
/// The snapshot is active or registered.
unsafe fn is_left_empty(table: &Relation, snapshot: pg_sys::Snapshot) -> bool {
    // SAFETY: the caller's promise; the table is open.
    unsafe {
        if ports::isolation_is_serializable() && !snapshot::is_quiet(snapshot) {
            ports::predicate_lock_relation(table.as_ptr(), snapshot);
        }
    }
    table.blocks() == 0
}

/// What others have set aside of a counter, in transactions that have committed and that this snapshot
/// does not see; also if it is not on hold any more.
///
/// # Safety
/// The snapshot is active or registered.
pub unsafe fn unseen(name: &[u8], clock: i64, snapshot: pg_sys::Snapshot) -> i128 {
    let table = tables::open(catalog::shared().hold);
    if table.blocks() == 0 {
        return 0;
    }
    let index = tables::index_of(&table, &hold::BY_NAME);
    let text = NameText::new(name);
    // SAFETY: the snapshot is a static. Rows that the other one does not see stay as long as it lives.
    let mut scan = unsafe { IndexScan::new(&table, &index, snapshot::any_snapshot(), 1) };
    scan.seek(&[Key::text_eq(1, text.datum())]);
    let mut sum = 0;
    while let Some(row) = scan.next(Direction::Forward) {
        if row.int8(hold::EXPIRES_AT) > clock && ports::has_committed_unseen(row.xmin(), snapshot) {
            sum += i128::from(row.int8(hold::AMOUNT));
        }
    }
    sum
}

/// What is on hold of the counters of a range, by name.
pub fn held_in(
    range: &NameRange,
    clock: i64,
    snapshot: pg_sys::Snapshot,
) -> HashMap<Box<[u8]>, i128> {
    let table = tables::open(catalog::shared().hold);
    let mut sums: HashMap<Box<[u8]>, i128> = HashMap::new();
    // SAFETY: the caller's snapshot is active.
    let mut scan = unsafe { TableScan::new(&table, snapshot) };
    while let Some(row) = scan.next() {
        let name = row.text(hold::NAME);
        if range.contains(name) && row.int8(hold::EXPIRES_AT) > clock {
            room::granted(keep_spare());
            room::granted(sums.try_reserve(1).map_err(NoMemory::from));
            *sums.entry(name.into()).or_default() += i128::from(row.int8(hold::AMOUNT));
        }
    }
    sums
}

/// A hold that this transaction has locked.
pub struct Hold {
    id: i64,
    /// The counter.
    pub name: Vec<u8>,
    /// What is set aside.
    pub amount: i64,
    /// Microseconds since 2000.
    pub expires_at: i64,
    created_at: i64,
    /// The transaction has made it, or changed it: others do not see it so.
    is_own: bool,
    tid: pg_sys::ItemPointerData,
}

impl Hold {
    /// What its end gives back.
    pub fn released(&self) -> Change {
        if self.is_own {
            Change::release_own(self.amount)
        } else {
            Change::release(self.amount, self.expires_at)
        }
    }

    /// Has it expired at that time, for everybody?
    pub fn has_expired(&self, clock: i64) -> bool {
        self.expires_at <= clock
    }

    /// What it is to end a hold that may have expired.
    pub fn given_back(&self, clock: i64) -> Option<Change> {
        // Of one that others see as expired, they see the amount as free.
        (self.is_own || !self.has_expired(clock)).then(|| self.released())
    }
}

/// Locks a hold to the end of the transaction, waiting for others who have. None: there is none.
///
/// # Errors
/// Raises 40001 where a transaction that goes by one snapshot sees something else.
pub fn lock(id: i64) -> Option<Hold> {
    HoldLock::take(id);
    let hold = find(id);
    let one_snapshot = ports::isolation_uses_xact_snapshot();
    if let Some(active) = snapshot::active().filter(|_| one_snapshot) {
        // SAFETY: the active snapshot stays so. What this command has done counts as well.
        let seen = unsafe { find_at(id, OwnRowsVisible::copy(active).as_ptr()) };
        let what = |hold: &Option<Hold>| hold.as_ref().map(|hold| (hold.amount, hold.expires_at));
        if what(&seen) != what(&hold) {
            raise(
                report(
                    PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                    format!("could not serialize access due to concurrent change of hold {id}"),
                )
                .set_hint("Retry the transaction. In READ COMMITTED the latest state is taken."),
            );
        }
    }
    hold
}

/// The latest state, as of a row that is updated; also what this command has made itself.
fn find(id: i64) -> Option<Hold> {
    // SAFETY: the snapshot is a static.
    unsafe { find_at(id, snapshot::self_snapshot()) }
}

/// # Safety
/// The snapshot is a static one, active or registered, or a copy of one.
unsafe fn find_at(id: i64, snapshot: pg_sys::Snapshot) -> Option<Hold> {
    let table = tables::open(catalog::shared().hold);
    let index = tables::index_of(&table, &hold::KEY);
    // SAFETY: the caller's promise.
    let mut scan = unsafe { IndexScan::new(&table, &index, snapshot, 1) };
    scan.seek(&[Key::int8_eq(1, id)]);
    scan.next(Direction::Forward).map(|row| Hold {
        name: row.text(hold::NAME).to_vec(),
        id,
        amount: row.int8(hold::AMOUNT),
        created_at: row.int8(hold::CREATED_AT),
        expires_at: row.int8(hold::EXPIRES_AT),
        is_own: ports::is_own_xid(row.xmin()),
        tid: row.tid(),
    })
}

/// Removes a hold.
pub fn remove(hold: &Hold) {
    gate::enter(NameHash::of(&hold.name).lane());
    tables::keep_restorers_waiting();
    delete(hold);
}

fn delete(hold: &Hold) {
    let Some(table) = Relation::open_until_commit(catalog::shared().hold, ROW_EXCLUSIVE) else {
        catalog::gone()
    };
    if hold.is_own {
        // This very command may have made it.
        // SAFETY: what the transaction has written so far shall be visible to its commands from now on.
        unsafe { pg_sys::CommandCounterIncrement() };
    }
    let fires = shape::fires_triggers(&table);
    // Looked for again, now that the table is locked: VACUUM FULL or a tool may have moved the row.
    let Some(Hold { mut tid, .. }) = find(hold.id) else {
        // All were dropped meanwhile (`counterx.drop_all_counters()`), or somebody has deleted the row.
        raise(
            report(
                PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                format!(
                    "could not end hold {}: it was deleted concurrently",
                    hold.id
                ),
            )
            .set_hint("Retry the transaction."),
        )
    };
    // SAFETY: a visible row, which nobody else removes without its lock.
    unsafe {
        pg_sys::simple_heap_delete(table.as_ptr(), &mut tid);
        if fires {
            firing::after_delete(&table, tid);
        }
    }
}

/// An id that no hold has, or had lately. A restore, or a tool that copies the values of sequences, may have
/// set the sequence back.
fn next_id(shared: &SharedRels) -> i64 {
    let highest = {
        let table = tables::open(shared.hold);
        let index = tables::index_of(&table, &hold::KEY);
        // SAFETY: the snapshot is a static.
        let mut scan = unsafe { IndexScan::new(&table, &index, snapshot::any_snapshot(), 0) };
        scan.seek(&[]);
        scan.next(Direction::Backward)
            .map_or(0, |row| row.int8(hold::ID))
    };
    loop {
        let id = ports::next_value(shared.hold_id);
        if id > highest {
            return id;
        }
        if behind(id, highest) > NEAR {
            catch_up(shared, highest);
        }
        pgrx::check_for_interrupts!();
    }
}

/// So many ids are called for one by one.
const NEAR: i128 = 1000;

fn behind(id: i64, highest: i64) -> i128 {
    i128::from(highest) - i128::from(id)
}

/// Sets the sequence of ids forward: there may be millions to go.
///
/// Nobody is given an id meanwhile, and then set back to it: one session at a time does this, and only where
/// all others find that they have far to go as well, and wait for it.
fn catch_up(shared: &SharedRels, highest: i64) {
    let lock = IdsLock::take();
    if behind(ports::next_value(shared.hold_id), highest) > 2 * NEAR {
        let _owner = ActingAs::owner_of(&tables::open(shared.hold));
        ports::set_value(shared.hold_id, highest);
    }
    lock.release();
}

/// Makes a hold and returns its id.
pub fn insert(name: &[u8], amount: i64, now: i64, expires_at: i64) -> i64 {
    gate::enter(NameHash::of(name).lane());
    tables::keep_restorers_waiting();
    let id = next_id(&catalog::shared());
    insert_row(id, name, amount, now, expires_at);
    failpoint!("hold.inserted");
    id
}

/// Puts another amount, or another end, in a hold's place. Others go by the old one until the
/// transaction commits.
pub fn replace(hold: &Hold, amount: i64, expires_at: i64) {
    remove(hold);
    failpoint!("hold.deleted");
    insert_row(hold.id, &hold.name, amount, hold.created_at, expires_at);
    failpoint!("hold.inserted");
}

fn insert_row(id: i64, name: &[u8], amount: i64, created_at: i64, expires_at: i64) {
    // SAFETY: nothing allocated in the scope leaves it.
    let _scope = unsafe { MemoryScope::enter(pg_sys::CurrentMemoryContext) };
    let Some(mut table) = Inserter::open(catalog::shared().hold) else {
        catalog::gone()
    };
    let fires = shape::fires_triggers(table.table());
    let name = NameText::new(name);
    let values = [
        Some(id.into()),
        Some(name.datum()),
        Some(amount.into()),
        Some(created_at.into()),
        Some(expires_at.into()),
    ];
    // SAFETY: the columns of sql/tables.sql.
    unsafe {
        let tid = table.insert(values);
        if fires {
            firing::after_insert(table.table(), tid);
        }
    }
}

/// Removes holds that have expired long ago, at most `limit`. Leaves those that somebody has locked.
pub fn remove_expired(limit: usize) -> Batch {
    let shared = catalog::shared();
    let Some(table) = Relation::open_if_free(shared.hold, SHARE_UPDATE_EXCLUSIVE) else {
        return Batch::Busy;
    };
    shape::check(&table);
    if table.blocks() == 0 {
        return Batch::Done;
    }
    let latest = LatestSnapshot::take();
    let index = tables::index_of(&table, &hold::BY_EXPIRY);
    let before = clock().saturating_sub(KEPT_FOR_US);
    let mut expired = Vec::new();
    {
        // SAFETY: the snapshot outlives the scan.
        let mut scan = unsafe { IndexScan::new(&table, &index, latest.as_ptr(), 1) };
        scan.seek(&[Key::timestamptz_le(1, before)]);
        while expired.len() < limit
            && let Some(row) = scan.next(Direction::Forward)
        {
            pgrx::check_for_interrupts!();
            expired.push(row.int8(hold::ID));
        }
    }
    let full = expired.len() == limit;
    for id in expired {
        if HoldLock::try_take(id)
            && let Some(hold) = find(id)
            // Who had it locked may have extended it in time.
            && hold.expires_at <= before
        {
            // Other tables are locked by now: no gate may be waited for.
            delete(&hold);
            count_if_committed(Figure::HoldsExpired, 1);
        }
    }
    if full { Batch::More } else { Batch::Done }
}
