//! Reading the table of totals.
//!
//! A counter has one visible row for every snapshot, the one of the highest `gen`. Under a snapshot
//! that keeps dead versions, look-ups go from the highest `gen` down, so that they meet it first.

use crate::catalog;
use crate::pg::number;
use crate::pg::relation::Relation;
use crate::pg::scan::{Direction, IndexScan, Key, Row, TableScan};
use crate::pg::varlena::NameText;
use crate::read::{self, column};
use counterx_core::lane::MAX_NAME_BYTES;
use counterx_core::names::NameRange;
use counterx_core::tally::Tally;
use pgrx::pg_sys;
use std::ops::ControlFlow;

/// What a row of `total` says.
pub fn tally(row: &Row) -> Tally {
    // The last column first: rows are taken apart from the left, and up to where somebody looks.
    let uses = row.int8(column::total::USES);
    let value = row
        .get(column::total::VALUE)
        .expect("the column is NOT NULL");
    Tally {
        // SAFETY: a numeric; it is too short to be stored out of line or compressed.
        value: unsafe { number::total(value) },
        uses,
    }
}

/// Looks up totals by name.
pub struct TotalsByName {
    // Ended before its relations are closed.
    scan: IndexScan,
    _index: Relation,
    _table: Relation,
}

impl TotalsByName {
    /// Opens the table.
    ///
    /// # Safety
    /// The snapshot lives as long as this.
    pub unsafe fn open(snapshot: pg_sys::Snapshot) -> Self {
        let table = read::open(catalog::shared().total);
        let index = read::index_of(&table, &column::total::KEY);
        // SAFETY: the caller's promise.
        let scan = unsafe { IndexScan::new(&table, &index, snapshot, 1) };
        Self {
            scan,
            _index: index,
            _table: table,
        }
    }

    /// The total of a counter; nothing for one that was never folded.
    pub fn get(&mut self, name: &[u8]) -> Tally {
        let text = NameText::new(name);
        self.scan.seek(&[Key::text_eq(1, text.datum())]);
        let row = self.scan.next(Direction::Backward);
        row.as_ref().map(tally).unwrap_or_default()
    }
}

/// Locks all indexes, for those who need more than one of them at a time. REINDEX TABLE locks one
/// after the other and keeps them: who did so in another order could deadlock with it.
pub fn lock_indexes() -> LockedIndexes {
    let table = read::open(catalog::shared().total);
    let indexes = table
        .index_oids()
        .into_iter()
        .filter_map(Relation::open_for_read)
        .collect();
    LockedIndexes {
        _indexes: indexes,
        _table: table,
    }
}

/// See [`lock_indexes`].
pub struct LockedIndexes {
    _indexes: Vec<Relation>,
    _table: Relation,
}

/// The order to visit totals in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By name, ascending.
    ByName,
    /// The quickest.
    Any,
}

/// Visits the totals of the names in a range, until told to stop.
///
/// # Safety
/// The snapshot is active or registered, and stays so.
pub unsafe fn visit(
    range: &NameRange,
    order: Order,
    snapshot: pg_sys::Snapshot,
    mut visit: impl FnMut(&[u8], &Row) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let table = read::open(catalog::shared().total);
    if range.is_all() && order == Order::Any {
        // SAFETY: the caller's promise.
        let mut scan = unsafe { TableScan::new(&table, snapshot) };
        while let Some(row) = scan.next() {
            pgrx::check_for_interrupts!();
            visit(row.text(column::total::NAME), &row)?;
        }
        return ControlFlow::Continue(());
    }
    let index = read::index_of(&table, &column::total::KEY);
    let from = NameText::new(first_bytes(range));
    // SAFETY: the caller's promise.
    let mut scan = unsafe { IndexScan::new(&table, &index, snapshot, 1) };
    scan.seek(&[Key::text_ge(1, from.datum())]);
    while let Some(row) = scan.next(Direction::Forward) {
        pgrx::check_for_interrupts!();
        let name = row.text(column::total::NAME);
        if range.is_past(name) {
            break;
        }
        if range.contains(name) {
            visit(name, &row)?;
        }
    }
    ControlFlow::Continue(())
}

/// Where a scan of a range begins. No name is longer than that, so it begins a little early at most.
pub fn first_bytes(range: &NameRange) -> &[u8] {
    let from = range.from().unwrap_or_default();
    &from[..from.len().min(MAX_NAME_BYTES)]
}
