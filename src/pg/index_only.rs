//! Scans that take what they need from the index, and look at the table only where its visibility map
//! does not say that all rows of a page are visible to everybody. As of the executor's index-only scan.

use super::compat;
use super::memory::MemorySwitch;
use super::raw;
use super::relation::Relation;
use super::scan::Direction;
use super::varlena::text_bytes;
use pgrx::pg_sys;

/// A scan of a whole index of so many columns, for an MVCC snapshot. It must not outlive its relations.
pub struct IndexOnlyScan<const COLUMNS: usize> {
    context: pg_sys::MemoryContext,
    scan: pg_sys::IndexScanDesc,
    slot: *mut pg_sys::TupleTableSlot,
    map: pg_sys::Buffer,
    values: [pg_sys::Datum; COLUMNS],
    nulls: [bool; COLUMNS],
}

/// What one step has come to.
enum Step {
    Visible,
    Invisible,
    End,
}

impl<const COLUMNS: usize> IndexOnlyScan<COLUMNS> {
    /// Prepares and starts it.
    ///
    /// # Safety
    /// The snapshot is an MVCC one and lives as long as the scan. The index is a btree and has so many
    /// columns, of types that are stored in it in line and not compressed.
    pub unsafe fn start(table: &Relation, index: &Relation, snapshot: pg_sys::Snapshot) -> Self {
        // SAFETY: both are open, and the index belongs to the table. What the scan is to return is said
        // before it is started.
        unsafe {
            let scan = compat::index_beginscan(table.as_ptr(), index.as_ptr(), snapshot, 0);
            (*scan).xs_want_itup = true;
            let slot = pg_sys::table_slot_create(table.as_ptr(), std::ptr::null_mut());
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                raw::index_rescan(scan, std::ptr::null_mut(), 0, std::ptr::null_mut(), 0);
            });
            Self {
                context: pg_sys::CurrentMemoryContext,
                scan,
                slot,
                map: pg_sys::InvalidBuffer as pg_sys::Buffer,
                values: [pg_sys::Datum::null(); COLUMNS],
                nulls: [false; COLUMNS],
            }
        }
    }

    /// Goes to the next visible row. False: there is none.
    pub fn advance(&mut self, direction: Direction) -> bool {
        loop {
            match self.step(direction) {
                Step::Visible => return true,
                Step::End => return false,
                Step::Invisible => {}
            }
            pgrx::check_for_interrupts!();
        }
    }

    fn step(&mut self, direction: Direction) -> Step {
        // SAFETY: whoever made the scan keeps its context as long as the scan.
        let _switch = unsafe { MemorySwitch::to(self.context) };
        let (scan, slot, direction) = (self.scan, self.slot, direction.raw());
        let map = &raw mut self.map;
        let (values, nulls) = (self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
        // SAFETY: the scan was started; the slot fits the table, and may be cleared at any time; there is
        // room for all columns. One guard for all: nothing here has to be dropped.
        unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                let tid = raw::index_getnext_tid(scan, direction);
                if tid.is_null() {
                    return Step::End;
                }
                let block = (*tid).ip_blkid;
                let block = (u32::from(block.bi_hi) << 16) | u32::from(block.bi_lo);
                let status = raw::visibilitymap_get_status((*scan).heapRelation, block, map);
                if status & raw::VISIBILITYMAP_ALL_VISIBLE == 0 {
                    if !raw::index_fetch_heap(scan, slot) {
                        return Step::Invisible;
                    }
                    if let Some(clear) = (*(*slot).tts_ops).clear {
                        clear(slot);
                    }
                }
                raw::index_deform_tuple((*scan).xs_itup, (*scan).xs_itupdesc, values, nulls);
                Step::Visible
            })
        }
    }

    /// A column of the index, from 0 on, NOT NULL; valid until the scan moves.
    pub fn get(&self, column: usize) -> pg_sys::Datum {
        debug_assert!(!self.nulls[column]);
        self.values[column]
    }

    /// The same of a text.
    ///
    /// # Safety
    /// It is one.
    pub unsafe fn text(&self, column: usize) -> &[u8] {
        // SAFETY: the caller's promise, and that of who made the scan.
        unsafe { text_bytes(self.get(column)) }
    }
}

impl<const COLUMNS: usize> Drop for IndexOnlyScan<COLUMNS> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let (scan, slot, map) = (self.scan, self.slot, self.map);
        // SAFETY: ended once; the slot and the map let go of their buffers first.
        unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                if map != pg_sys::InvalidBuffer as pg_sys::Buffer {
                    raw::ReleaseBuffer(map);
                }
                raw::ExecDropSingleTupleTableSlot(slot);
                raw::index_endscan(scan);
            });
        }
    }
}
