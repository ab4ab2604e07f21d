//! Finding a row again where it was last.
//!
//! An index leads to a row by its key; whoever remembers where to saves the next look-up that way, with
//! the index's locks. The place is a hint and no more: what is found there has to be checked, and where
//! it is not found, the index is asked.

use super::compat;
use super::raw;
use super::relation::Relation;
use super::snapshot::is_quiet;
use counterx_core::room;
use pgrx::pg_sys;

/// What [`index_getnext_visible`] came to.
#[derive(Clone, Copy)]
pub enum Next {
    /// The slot holds the next visible row, and this is where.
    Row(Spot),
    /// So many index entries in a row led to nothing visible; the scan stands on the last of them.
    Invisible,
    /// There are no more.
    End,
}

/// `index_getnext_slot()` that gives up after `patience` index entries in a row without a visible
/// row, or at each one that follows. The scan's snapshot is an MVCC one, which sees one version of
/// each row at most; or the scan is sent elsewhere when a row was found.
///
/// # Safety
/// The scan was started, and the slot fits its table.
pub unsafe fn index_getnext_visible(
    scan: pg_sys::IndexScanDesc,
    direction: pg_sys::ScanDirection::Type,
    slot: *mut pg_sys::TupleTableSlot,
    patience: &mut u32,
) -> Next {
    // SAFETY: the caller's promise. One guard for all: nothing here has to be dropped.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            loop {
                let address = raw::index_getnext_tid(scan, direction);
                if address.is_null() {
                    return Next::End;
                }
                // Fetching replaces it by the version's own.
                let address = *address;
                if raw::index_fetch_heap(scan, slot) {
                    let slot = slot.cast::<pg_sys::BufferHeapTupleTableSlot>();
                    return Next::Row(Spot::new(address, (*slot).buffer));
                }
                match patience.checked_sub(1) {
                    Some(rest) => *patience = rest,
                    None => return Next::Invisible,
                }
            }
        })
    }
}

/// Where a row was found: the address that its index entry has, at which its chain of versions begins,
/// and the buffer that its page was in.
#[derive(Clone, Copy, Debug)]
pub struct Spot {
    block: pg_sys::BlockNumber,
    /// From 1 on; 0 is no address.
    offset: pg_sys::OffsetNumber,
    buffer: pg_sys::Buffer,
}

impl Spot {
    /// No place at all.
    pub const NONE: Self = Self {
        block: 0,
        offset: 0,
        buffer: 0,
    };

    /// The spot of a row that was just put there, and whose chain begins with it.
    pub fn of_new_row(table: &Relation, address: pg_sys::ItemPointerData) -> Self {
        let table = table.as_ptr();
        let spot = Self::new(address, 0);
        // SAFETY: the table is open, and the block exists: it has the row.
        let buffer = unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                let buffer = raw::ReadBuffer(table, spot.block);
                raw::ReleaseBuffer(buffer);
                buffer
            })
        };
        Self { buffer, ..spot }
    }

    /// The spot of a row that an index entry with this address has led to, in this buffer.
    pub fn new(address: pg_sys::ItemPointerData, buffer: pg_sys::Buffer) -> Self {
        Self {
            // SAFETY: takes any address.
            block: unsafe { pgrx::itemptr::item_pointer_get_block_number_no_check(address) },
            offset: address.ip_posid,
            buffer,
        }
    }

    /// The version that is visible there.
    ///
    /// None when there is none, and when the page is not in its buffer any more, as after VACUUM FULL
    /// or a truncation: a block that is gone is never asked for.
    ///
    /// # Safety
    /// The snapshot sees one version of a row at most, and is a static one, active or registered.
    pub unsafe fn find<'a, const COLUMNS: usize>(
        self,
        table: &'a Relation,
        snapshot: pg_sys::Snapshot,
    ) -> Option<SpotRow<'a, COLUMNS>> {
        let relation = table.as_ptr();
        let columns = table.tuple_desc();
        // SAFETY: the table is open.
        let natts = unsafe { (*columns).natts };
        // SAFETY: the caller's promise.
        if self.offset == 0 || natts as usize != COLUMNS || unsafe { is_quiet(snapshot) } {
            return None;
        }
        let mut address = pg_sys::ItemPointerData::default();
        pgrx::itemptr::item_pointer_set_all(&mut address, self.block, self.offset);
        let mut tuple = pg_sys::HeapTupleData::default();
        let mut values = [pg_sys::Datum::from(0); COLUMNS];
        let mut nulls = [false; COLUMNS];
        // SAFETY: the table is open; the arrays have an element for each column; and the columns stay
        // readable as long as the page is pinned. An error gives back the pin and the lock by the
        // server's own means.
        let found = unsafe {
            let numbers = compat::file_numbers(relation);
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                let fork = pg_sys::ForkNumber::MAIN_FORKNUM;
                if !raw::ReadRecentBuffer(numbers, fork, self.block, self.buffer) {
                    return false;
                }
                // As an index scan does it: where nobody else comes by, it is what makes room for
                // further versions in place.
                raw::heap_page_prune_opt(relation, self.buffer);
                raw::LockBuffer(self.buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
                let found = raw::heap_hot_search_buffer(
                    &mut address,
                    relation,
                    self.buffer,
                    snapshot,
                    &mut tuple,
                    std::ptr::null_mut(),
                    true,
                );
                raw::LockBuffer(self.buffer, pg_sys::BUFFER_LOCK_UNLOCK as i32);
                if found {
                    let (values, nulls) = (values.as_mut_ptr(), nulls.as_mut_ptr());
                    raw::heap_deform_tuple(&mut tuple, columns, values, nulls);
                } else {
                    raw::ReleaseBuffer(self.buffer);
                }
                found
            })
        };
        // Not made when there is none: it would release a page that it has not pinned.
        found.then(|| SpotRow {
            values,
            nulls,
            address,
            buffer: self.buffer,
            _table: table,
        })
    }
}

/// A row that was found at its spot. Its page is pinned.
pub struct SpotRow<'a, const COLUMNS: usize> {
    values: [pg_sys::Datum; COLUMNS],
    nulls: [bool; COLUMNS],
    address: pg_sys::ItemPointerData,
    buffer: pg_sys::Buffer,
    _table: &'a Relation,
}

impl<const COLUMNS: usize> SpotRow<'_, COLUMNS> {
    /// The version's own address.
    pub fn tid(&self) -> pg_sys::ItemPointerData {
        self.address
    }

    /// The column's datum, 1-based, valid as long as the row; None when it is null.
    pub fn get(&self, column: usize) -> Option<pg_sys::Datum> {
        (!self.nulls[column - 1]).then(|| self.values[column - 1])
    }
}

impl<const COLUMNS: usize> Drop for SpotRow<'_, COLUMNS> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // SAFETY: pinned by us, and released once.
        unsafe { pg_sys::ReleaseBuffer(self.buffer) };
    }
}

impl Default for Spot {
    fn default() -> Self {
        Self::NONE
    }
}

/// Spots by the hashes of what is there. Of two whose hashes meet, the later one stays.
#[derive(Debug)]
pub struct Spots(Vec<Spot>);

impl Spots {
    /// Those of a process that meets the same rows again and again, as who folds: 768 kB.
    pub const MANY: usize = 64 * 1024;

    /// Room for so many: a power of two.
    pub fn with_room(room: usize) -> Self {
        debug_assert!(room.is_power_of_two());
        Self(vec![Spot::NONE; room])
    }

    /// Makes more room, if there is less, and memory for it. What was known is forgotten then.
    pub fn grow_to(&mut self, room: usize) {
        debug_assert!(room.is_power_of_two());
        if self.0.len() < room
            && let Ok(mut spots) = room::vector(room)
        {
            spots.resize(room, Spot::NONE);
            self.0 = spots;
        }
    }

    /// The spot for this hash, or none.
    pub fn get(&self, hash: u64) -> Spot {
        self.0[self.at(hash)]
    }

    /// Remembers a spot.
    pub fn set(&mut self, hash: u64, spot: Spot) {
        let at = self.at(hash);
        self.0[at] = spot;
    }

    /// The lowest bits of a hash are the lane.
    fn at(&self, hash: u64) -> usize {
        (hash >> 8) as usize & (self.0.len() - 1)
    }
}
