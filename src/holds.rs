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
//! as the hold has kept room for it.
//!
//! # Why an expired hold cannot be confirmed after its amount was given to another
//! Who reads holds looks at the clock *before* reserving; who confirms one reserves *before* looking
//! at the clock. So if the reader's reservation came first, the one who confirms sees a later time,
//! and finds the hold expired if the reader did; if it came second, the reader has noted the take.
//! The clock of `escrow.rs` does not go back, whatever the system's does.

use crate::catalog::{self, Unusable};
use crate::escrow::clock;
use crate::lease;
use crate::pg::error::{raise, report};
use crate::pg::firing;
use crate::pg::insert::Inserter;
use crate::pg::lock::HoldLock;
use crate::pg::memory::MemoryScope;
use crate::pg::ports;
use crate::pg::relation::{ROW_EXCLUSIVE, Relation, SHARE_UPDATE_EXCLUSIVE};
use crate::pg::room;
use crate::pg::scan::{Direction, IndexScan, Key, TableScan};
use crate::pg::snapshot::{self, LatestSnapshot};
use crate::pg::varlena::NameText;
use crate::read;
use crate::shape;
use crate::token::Batch;
use counterx_core::lane::NameHash;
use counterx_core::names::NameRange;
use counterx_core::room::{NoMemory, keep_spare};
use pgrx::{PgSqlErrorCode, pg_sys};
use std::collections::HashMap;

/// Columns of `counterx.hold`: id, name, amount, created_at, expires_at.
mod column {
    pub const KEY: [i16; 1] = [1];
    pub const BY_NAME: [i16; 1] = [2];
    pub const BY_EXPIRY: [i16; 1] = [5];
    pub const ID: usize = 1;
    pub const NAME: usize = 2;
    pub const AMOUNT: usize = 3;
    pub const EXPIRES_AT: usize = 5;
}

/// A hold that has expired is shown for so long, in microseconds: a day.
const KEPT_FOR_US: i64 = 24 * 3600 * 1_000_000;

/// What is on hold of a counter, for this snapshot, at this time.
///
/// # Safety
/// The snapshot is active or registered.
pub unsafe fn held(name: &[u8], clock: i64, snapshot: pg_sys::Snapshot) -> i128 {
    let table = read::open(catalog::shared().hold);
    if table.blocks() == 0 {
        return 0;
    }
    let index = read::index_of(&table, &column::BY_NAME);
    let text = NameText::new(name);
    // SAFETY: the caller's promise.
    let mut scan = unsafe { IndexScan::new(&table, &index, snapshot, 1) };
    scan.seek(&[Key::text_eq(1, text.datum())]);
    let mut sum = 0;
    while let Some(row) = scan.next(Direction::Forward) {
        if row.int8(column::EXPIRES_AT) > clock {
            sum += i128::from(row.int8(column::AMOUNT));
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
    let table = read::open(catalog::shared().hold);
    let mut sums: HashMap<Box<[u8]>, i128> = HashMap::new();
    // SAFETY: the caller's snapshot is active.
    let mut scan = unsafe { TableScan::new(&table, snapshot) };
    while let Some(row) = scan.next() {
        let name = row.text(column::NAME);
        if range.contains(name) && row.int8(column::EXPIRES_AT) > clock {
            room::granted(keep_spare());
            room::granted(sums.try_reserve(1).map_err(NoMemory::from));
            *sums.entry(name.into()).or_default() += i128::from(row.int8(column::AMOUNT));
        }
    }
    sums
}

/// A hold that this transaction has locked.
pub struct Hold {
    /// The counter.
    pub name: Vec<u8>,
    /// What is set aside.
    pub amount: i64,
    /// Microseconds since 2000.
    pub expires_at: i64,
    id: i64,
    tid: pg_sys::ItemPointerData,
}

/// Locks a hold to the end of the transaction, waiting for others who have. None: there is none.
pub fn lock(id: i64) -> Option<Hold> {
    HoldLock::take(id);
    find(id)
}

/// The latest state, as of a row that is updated; also what this command has made itself.
fn find(id: i64) -> Option<Hold> {
    let table = read::open(catalog::shared().hold);
    let index = read::index_of(&table, &column::KEY);
    // SAFETY: the snapshot is a static.
    let mut scan = unsafe { IndexScan::new(&table, &index, snapshot::self_snapshot(), 1) };
    scan.seek(&[Key::int8_eq(1, id)]);
    scan.next(Direction::Forward).map(|row| Hold {
        name: row.text(column::NAME).to_vec(),
        amount: row.int8(column::AMOUNT),
        expires_at: row.int8(column::EXPIRES_AT),
        id,
        tid: row.tid(),
    })
}

/// Removes a hold.
pub fn remove(hold: &Hold) {
    lease::enter(NameHash::of(&hold.name).lane());
    // A row that this very command has made can only be deleted by a later one.
    // SAFETY: changes happen in no parallel operation.
    unsafe { pg_sys::CommandCounterIncrement() };
    delete(hold);
}

fn delete(hold: &Hold) {
    let Some(table) = Relation::open_until_commit(catalog::shared().hold, ROW_EXCLUSIVE) else {
        Unusable::NotInstalled.raise()
    };
    let fires = shape::fires_triggers(&table);
    // Looked for again, now that the table is locked: VACUUM FULL or a tool may have moved the row.
    let Some(Hold { mut tid, .. }) = find(hold.id) else {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("the row of hold {} has been removed by hand", hold.id),
            )
            .set_hint("Holds end with counter_hold_confirm() and counter_hold_release()."),
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

/// Makes a hold and returns its id.
pub fn insert(name: &[u8], amount: i64, now: i64, expires_at: i64) -> i64 {
    lease::enter(NameHash::of(name).lane());
    let shared = catalog::shared();
    // SAFETY: nothing allocated in the scope leaves it.
    let _scope = unsafe { MemoryScope::enter(pg_sys::CurrentMemoryContext) };
    let id = ports::next_value(shared.hold_id);
    let Some(mut table) = Inserter::open(shared.hold) else {
        Unusable::NotInstalled.raise()
    };
    let fires = shape::fires_triggers(table.table());
    let name = NameText::new(name);
    let values = [
        Some(id.into()),
        Some(name.datum()),
        Some(amount.into()),
        Some(now.into()),
        Some(expires_at.into()),
    ];
    // SAFETY: the columns of sql/tables.sql.
    unsafe {
        let tid = table.insert(values);
        if fires {
            firing::after_insert(table.table(), tid);
        }
    }
    failpoint!("hold.inserted");
    id
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
    let index = read::index_of(&table, &column::BY_EXPIRY);
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
            expired.push(row.int8(column::ID));
        }
    }
    let full = expired.len() == limit;
    for id in expired {
        if HoldLock::try_take(id)
            && let Some(hold) = find(id)
        {
            // Other tables are locked by now: no gate may be waited for.
            delete(&hold);
        }
    }
    if full { Batch::More } else { Batch::Done }
}
