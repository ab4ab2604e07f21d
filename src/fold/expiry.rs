//! Getting rid of history that is not wanted any more.
//!
//! Rows that have expired go with their tables: see `crates/core/src/history.rs` for which table has which. First
//! is committed that readers leave them out; when all snapshots of the database see that, the table is
//! emptied by TRUNCATE. Nobody is waited for: what is in use is left for the next time.
//!
//! What does not go in this way is swept out: see `sweep.rs`.
//!
//! # Invariants
//! - Time is what the lanes are sealed through, never the clock: one that has leapt would have all of it go.
//! - `expired` is committed and seen by all before `cut` is written, and `cut` is written before a table is emptied.

use crate::fold::rotation::all_snapshots_see;
use crate::pg::cell;
use crate::pg::compat;
use crate::pg::relation::{ACCESS_EXCLUSIVE, Relation, SHARE_UPDATE_EXCLUSIVE};
use crate::pg::scan::{Direction, IndexScan, Key, TableScan};
use crate::pg::snapshot;
use crate::store::catalog;
use crate::store::columns;
use crate::store::gate;
use crate::store::history;
use crate::store::ours::AtWork;
use crate::store::shape;
use crate::store::state;
use crate::store::tables;
use counterx_core::history::Class;
use counterx_core::lane::LANES;
use pgrx::pg_sys;

/// How far history has expired, and what may have been written.
#[derive(Clone, Copy)]
pub struct Times {
    /// All lanes are sealed through it.
    pub sealed: i64,
    /// No lane has written what begins later.
    pub newest: i64,
}

/// None: there is no history, or one lane has not begun with it.
pub fn times() -> Option<Times> {
    let shared = catalog::shared();
    let lanes = (0..LANES).map(|lane| state::current(lane, &shared));
    let (mut sealed, mut newest) = (i64::MAX, i64::MIN);
    for state in lanes {
        sealed = sealed.min(state.sealed?);
        newest = newest
            .max(state.sealed?)
            .max(state.counted.unwrap_or(i64::MIN));
    }
    Some(Times { sealed, newest })
}

/// Notes what has expired, for readers to leave it out. In a transaction of its own. True: there is more that is not
/// wanted than before.
pub fn note_expired() -> bool {
    let Some(times) = times() else { return false };
    gate::enter(0);
    let oid = catalog::relation_of("expired");
    // One at a time.
    let Some(table) = Relation::open_if_free(oid, SHARE_UPDATE_EXCLUSIVE) else {
        return false;
    };
    if let Err(refusal) = shape::check_foldable(&table) {
        refusal.raise()
    }
    let index = tables::index_of(&table, &columns::expired::KEY);
    let mut is_new = false;
    for class in finite() {
        let Some(through) = expired_through(class, times.sealed) else {
            continue;
        };
        // SAFETY: the snapshot is a static.
        let mut scan = unsafe { IndexScan::new(&table, &index, snapshot::self_snapshot(), 1) };
        scan.seek(&[Key::int4_eq(1, class.number() as i32)]);
        let old = scan.next(Direction::Forward);
        let known = old.as_ref().map(|row| row.int8(columns::expired::THROUGH));
        if known.is_some_and(|known| known >= through) {
            continue;
        }
        is_new = true;
        let values = [(class.number() as i32).into(), through.into()].map(Some);
        let tid = old.map(|row| row.tid());
        // SAFETY: the columns of expired; the indexes are closed again.
        unsafe {
            let indexes = pg_sys::CatalogOpenIndexes(table.as_ptr());
            tables::write_row(&table, indexes, tid, values);
            pg_sys::CatalogCloseIndexes(indexes);
        }
    }
    is_new
}

fn finite() -> impl Iterator<Item = Class> {
    (0..Class::FINITE).filter_map(Class::of_number)
}

/// In steps as long as a segment: nothing can be emptied in between.
fn expired_through(class: Class, sealed: i64) -> Option<i64> {
    class.segment_begin(class.wanted_from(sealed)?)
}

/// Empties the tables all of whose rows have expired for every snapshot of the database. In a transaction of its own.
pub fn empty_tables() {
    let Some(times) = times() else { return };
    gate::enter(0);
    let known = tables::open(catalog::relation_of("expired"));
    let mut expired = [None; Class::FINITE];
    {
        // SAFETY: the snapshot is a static.
        let mut scan = unsafe { TableScan::new(&known, snapshot::self_snapshot()) };
        while let Some(row) = scan.next() {
            let class = row
                .get(columns::expired::CLASS)
                .map_or(0, |datum| datum.value());
            if let Some(place) = expired.get_mut(class)
                && all_snapshots_see(row.xmin(), &known)
            {
                *place = Some(row.int8(columns::expired::THROUGH));
            }
        }
    }
    for class in finite() {
        let Some(through) = expired[class.number()] else {
            continue;
        };
        for number in 0..class.tables() {
            if class.is_expired(number, through, times.newest) {
                empty(class, number, through);
            }
        }
    }
}

fn empty(class: Class, number: usize, through: i64) {
    let oid = catalog::relation_of(&history::table_name(class, number));
    if tables::open(oid).blocks() == 0 {
        return;
    }
    let cut = tables::open(catalog::relation_of("cut"));
    failpoint!("expiry.found");
    let Some(table) = Relation::open_if_free(oid, ACCESS_EXCLUSIVE) else {
        return;
    };
    // SAFETY: the relation is open. A higher count than ours is a scan of this very session.
    let in_use = unsafe { (*table.as_ptr()).rd_refcnt } > 1;
    // Triggers of others may be those of a tool that copies the table.
    if in_use || shape::check_foldable(&table).is_err() {
        return;
    }
    // Meanwhile the table's next turn may have begun. Who writes to it holds a lock until he commits.
    if !times().is_some_and(|times| class.is_expired(number, through, times.newest)) {
        return;
    }
    failpoint!("expiry.locked");
    cell::update::<{ Class::FINITE }>(&cut, |mut cut| {
        cut[class.number()] = cut[class.number()].max(through);
        cut
    });
    failpoint!("expiry.cut");
    let _at_work = AtWork::begin();
    // SAFETY: open, and locked exclusively.
    unsafe { compat::truncate(table.as_ptr(), oid) };
}
