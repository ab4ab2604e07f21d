//! A table of history, open for those who write it.

use crate::pg::relation::{ROW_EXCLUSIVE, Relation};
use crate::pg::scan::IndexScan;
use crate::pg::snapshot;
use crate::store::catalog;
use crate::store::shape;
use crate::store::tables;
use pgrx::pg_sys;

/// Opens a table of history to write it.
///
/// # Errors
/// Raises 0A000 where triggers or indexes of others are in the way: it is left for later, as with totals.
pub fn open_for_writing(oid: pg_sys::Oid) -> Relation {
    let Some(table) = Relation::open_until_commit(oid, ROW_EXCLUSIVE) else {
        catalog::gone()
    };
    if let Err(refusal) = shape::check_foldable(&table) {
        refusal.raise()
    }
    table
}

/// One with all its indexes.
pub struct Table {
    // Ended before its relations are closed.
    /// By its key, as far as it is committed or done by this transaction.
    pub scan: IndexScan,
    /// Of the table.
    pub indexes: pg_sys::CatalogIndexState,
    _index: Relation,
    /// Itself.
    pub table: Relation,
    /// Its OID.
    pub oid: pg_sys::Oid,
}

impl Table {
    /// Opens one, to be scanned by so many conditions on its key.
    ///
    /// # Errors
    /// As of [`open_for_writing`].
    pub fn open(oid: pg_sys::Oid, key: &[i16], conditions: usize) -> Self {
        let table = open_for_writing(oid);
        let index = tables::index_of(&table, key);
        // SAFETY: an ordinary table, open; the snapshot is a static.
        unsafe {
            Self {
                scan: IndexScan::new(&table, &index, snapshot::self_snapshot(), conditions),
                indexes: pg_sys::CatalogOpenIndexes(table.as_ptr()),
                _index: index,
                table,
                oid,
            }
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened by us.
            unsafe { pg_sys::CatalogCloseIndexes(self.indexes) };
        }
    }
}
