//! Reading the table of totals.
//!
//! A counter has one visible row for every snapshot, the one of the highest `gen`. Under a snapshot
//! that keeps dead versions, look-ups go from the highest `gen` down, so that they meet it first; and
//! walks over many counters leave each one's dead versions out.

use crate::pg::number;
use crate::pg::relation::Relation;
use crate::pg::scan::{Direction, Found, IndexScan, Key, Row, TableScan};
use crate::pg::spot::{Spot, SpotRow, Spots};
use crate::pg::varlena::{NameText, text_bytes};
use crate::store::catalog;
use crate::store::columns;
use crate::store::tables;
use counterx_core::lane::{MAX_NAME_BYTES, NameHash};
use counterx_core::names::NameRange;
use counterx_core::tally::Tally;
use pgrx::pg_sys;
use std::cell::RefCell;
use std::ops::ControlFlow;

/// What a row of `total` says.
pub fn tally(row: &Row) -> Tally {
    // The last column first: rows are taken apart from the left, and up to where somebody looks.
    let uses = row.int8(columns::total::USES);
    let value = row
        .get(columns::total::VALUE)
        .expect("the column is NOT NULL");
    tally_of(value, uses.into())
}

/// The same of one that was found at its spot.
pub fn tally_at_spot(row: &SpotRow<{ columns::total::COLUMNS }>) -> Tally {
    use columns::total::{USES, VALUE};
    let column = |column| row.get(column).expect("the columns are NOT NULL");
    tally_of(column(VALUE), column(USES))
}

fn tally_of(value: pg_sys::Datum, uses: pg_sys::Datum) -> Tally {
    Tally {
        // SAFETY: a numeric; it is too short to be stored out of line or compressed.
        value: unsafe { number::total(value) },
        uses: uses.value() as i64,
    }
}

thread_local! {
    /// Where this backend has found totals last. What is found there is held against the name.
    static SPOTS: RefCell<Spots> = RefCell::new(Spots::with_room(FEW_SPOTS));
}

/// Spots of readers: 3 kB.
const FEW_SPOTS: usize = 256;

/// Whoever folds meets the same counters again and again.
pub fn remember_many() {
    SPOTS.with_borrow_mut(|spots| spots.grow_to(Spots::MANY));
}

/// Where a counter's total was last.
fn spot(hash: NameHash) -> Spot {
    SPOTS.with_borrow(|spots| spots.get(hash.get()))
}

/// A counter's total is here.
pub fn remember(hash: NameHash, spot: Spot) {
    SPOTS.with_borrow_mut(|spots| spots.set(hash.get(), spot));
}

/// The row of a counter's total, if it is where it was last. A snapshot sees one row of a counter, so
/// any that it sees is the right one.
///
/// # Safety
/// The snapshot sees one version of a row at most, and is a static one, active or registered.
pub unsafe fn find_at_spot<'a>(
    hash: NameHash,
    name: &[u8],
    table: &'a Relation,
    snapshot: pg_sys::Snapshot,
) -> Option<SpotRow<'a, { columns::total::COLUMNS }>> {
    // SAFETY: the caller's promise.
    let row = unsafe { spot(hash).find(table, snapshot) }?;
    // SAFETY: names are at most 255 bytes long: never compressed, never out of line.
    let found = unsafe { text_bytes(row.get(columns::total::NAME)?) };
    (found == name).then_some(row)
}

/// Looks up totals by name.
pub struct TotalsByName {
    // Ended before its relations are closed.
    scan: Option<IndexScan>,
    index: Option<Relation>,
    table: Relation,
    snapshot: pg_sys::Snapshot,
}

impl TotalsByName {
    /// Opens the table.
    ///
    /// # Safety
    /// The snapshot lives as long as this.
    pub unsafe fn open(snapshot: pg_sys::Snapshot) -> Self {
        Self {
            scan: None,
            index: None,
            table: tables::open(catalog::shared().total),
            snapshot,
        }
    }

    /// The total of a counter; nothing for one that was never folded.
    pub fn get(&mut self, name: &[u8]) -> Tally {
        let hash = NameHash::of(name);
        // SAFETY: whoever opened this keeps the snapshot.
        if let Some(row) = unsafe { find_at_spot(hash, name, &self.table, self.snapshot) } {
            return tally_at_spot(&row);
        }
        let (tally, spot) = self.by_index(name);
        remember(hash, spot);
        tally
    }

    fn by_index(&mut self, name: &[u8]) -> (Tally, Spot) {
        let index =
            (self.index).get_or_insert_with(|| tables::index_of(&self.table, &columns::total::KEY));
        let scan = self.scan.get_or_insert_with(|| {
            // SAFETY: whoever opened this keeps the snapshot.
            unsafe { IndexScan::new(&self.table, index, self.snapshot, 1) }
        });
        let text = NameText::new(name);
        scan.seek(&[Key::text_eq(1, text.datum())]);
        match scan.next_with_spot(Direction::Backward) {
            Some((row, spot)) => (tally(&row), spot),
            None => Default::default(),
        }
    }
}

/// Locks all indexes, for those who need more than one of them at a time. REINDEX TABLE locks one
/// after the other and keeps them: who did so in another order could deadlock with it.
pub fn lock_indexes() -> LockedIndexes {
    let table = tables::open(catalog::shared().total);
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

/// A walk through totals in the order of their names.
///
/// An index entry that leads to nothing visible costs what one costs that does, and while an old
/// snapshot is open a counter can have thousands of them. So after a few in a row the counter's
/// visible row is looked up from the newest version down, and the walk goes on beyond the name.
pub struct Walk {
    /// What the scan was sent to last.
    key: Box<NameText>,
    /// The counter met last.
    name: Vec<u8>,
    /// The scan has left the walk's course, to look that counter up.
    astray: bool,
}

/// So many index entries are visited in vain before a counter is looked up: about as many as that
/// costs.
const PATIENCE: u32 = 4;

impl Walk {
    /// A walk from this name on, or from the one that follows it.
    pub fn new(from: &[u8]) -> Self {
        Self {
            key: Box::new(NameText::new(from)),
            name: Vec::with_capacity(MAX_NAME_BYTES),
            astray: false,
        }
    }

    /// Sends the scan, one of totals by a single condition, to the start.
    ///
    /// The walk outlives the scan.
    pub fn start(&self, scan: &mut IndexScan) {
        scan.seek(&[Key::text_ge(1, self.key.datum())]);
    }

    /// The next counter's row.
    pub fn next(&mut self, scan: &mut IndexScan) -> Option<Row> {
        if std::mem::take(&mut self.astray) {
            scan.seek(&[Key::text_gt(1, self.key.datum())]);
        }
        loop {
            match scan.next_visible(Direction::Forward, PATIENCE) {
                Found::Visible(row) => {
                    self.set_name(&row);
                    return Some(row);
                }
                Found::End => return None,
                Found::Invisible(row) => {
                    pgrx::check_for_interrupts!();
                    let is_new = row.text(columns::total::NAME) != self.name;
                    self.set_name(&row);
                    *self.key = NameText::new(&self.name);
                    if is_new {
                        scan.seek(&[Key::text_eq(1, self.key.datum())]);
                        if let Some(row) = scan.next(Direction::Backward) {
                            self.astray = true;
                            return Some(row);
                        }
                    }
                    scan.seek(&[Key::text_gt(1, self.key.datum())]);
                }
            }
        }
    }

    fn set_name(&mut self, row: &Row) {
        self.name.clear();
        self.name.extend_from_slice(row.text(columns::total::NAME));
    }
}

/// Is a [`Walk`] quicker than reading the whole table, because nearly all of it is dead? By what VACUUM
/// last found: counters come and go more slowly than their versions.
pub fn is_sparse(table: &Relation) -> bool {
    /// A page has room for twenty of the longest names, and for many more usual ones.
    const LIVE_ROWS_PER_PAGE: f64 = 8.0;
    /// Too few to care.
    const FEW_PAGES: f64 = 16.0;
    let pages = f64::from(table.blocks());
    pages > FEW_PAGES
        && table
            .live_rows()
            .is_some_and(|rows| (pages - FEW_PAGES) * LIVE_ROWS_PER_PAGE > f64::from(rows))
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
    let table = tables::open(catalog::shared().total);
    if range.is_all() && order == Order::Any && !is_sparse(&table) {
        // SAFETY: the caller's promise.
        let mut scan = unsafe { TableScan::new(&table, snapshot) };
        while let Some(row) = scan.next() {
            pgrx::check_for_interrupts!();
            visit(row.text(columns::total::NAME), &row)?;
        }
        return ControlFlow::Continue(());
    }
    let index = tables::index_of(&table, &columns::total::KEY);
    let mut walk = Walk::new(first_bytes(range));
    // SAFETY: the caller's promise.
    let mut scan = unsafe { IndexScan::new(&table, &index, snapshot, 1) };
    walk.start(&mut scan);
    while let Some(row) = walk.next(&mut scan) {
        pgrx::check_for_interrupts!();
        let name = row.text(columns::total::NAME);
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
