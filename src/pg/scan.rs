//! Scans of tables and indexes.

use super::compat;
use super::memory::MemorySwitch;
use super::ports;
use super::raw;
use super::relation::Relation;
use super::snapshot::any_snapshot;
use super::snapshot::is_quiet;
use super::spot::{self, Next, Spot};
use super::varlena::text_bytes;
use pgrx::pg_sys;

/// One condition on an index or table column: `column <operator> value`.
#[derive(Clone, Copy)]
pub struct Key {
    column: i16,
    strategy: u32,
    function: u32,
    value: pg_sys::Datum,
}

impl Key {
    /// `int8 = value`
    pub fn int8_eq(column: i16, value: i64) -> Self {
        Self::new(
            column,
            pg_sys::BTEqualStrategyNumber,
            pg_sys::F_INT8EQ,
            value.into(),
        )
    }
    /// `int8 > value`
    pub fn int8_gt(column: i16, value: i64) -> Self {
        Self::new(
            column,
            pg_sys::BTGreaterStrategyNumber,
            pg_sys::F_INT8GT,
            value.into(),
        )
    }
    /// `int8 <= value`
    pub fn int8_le(column: i16, value: i64) -> Self {
        Self::new(
            column,
            pg_sys::BTLessEqualStrategyNumber,
            pg_sys::F_INT8LE,
            value.into(),
        )
    }
    /// `int4 = value`
    pub fn int4_eq(column: i16, value: i32) -> Self {
        Self::new(
            column,
            pg_sys::BTEqualStrategyNumber,
            pg_sys::F_INT4EQ,
            value.into(),
        )
    }
    /// `text = value`, bytewise. The datum must outlive the scan.
    pub fn text_eq(column: i16, value: pg_sys::Datum) -> Self {
        Self::new(
            column,
            pg_sys::BTEqualStrategyNumber,
            pg_sys::F_TEXTEQ,
            value,
        )
    }
    /// `text >= value`, bytewise. The datum must outlive the scan.
    pub fn text_ge(column: i16, value: pg_sys::Datum) -> Self {
        Self::new(
            column,
            pg_sys::BTGreaterEqualStrategyNumber,
            pg_sys::F_TEXT_GE,
            value,
        )
    }

    /// `text > value`, bytewise. The datum must outlive the scan.
    pub fn text_gt(column: i16, value: pg_sys::Datum) -> Self {
        Self::new(
            column,
            pg_sys::BTGreaterStrategyNumber,
            pg_sys::F_TEXT_GT,
            value,
        )
    }

    /// `timestamptz >= value`, in microseconds since 2000.
    pub fn timestamptz_ge(column: i16, value: i64) -> Self {
        Self::new(
            column,
            pg_sys::BTGreaterEqualStrategyNumber,
            pg_sys::F_TIMESTAMPTZ_GE,
            value.into(),
        )
    }
    /// `timestamptz <= value`, in microseconds since 2000.
    pub fn timestamptz_le(column: i16, value: i64) -> Self {
        Self::new(
            column,
            pg_sys::BTLessEqualStrategyNumber,
            pg_sys::F_TIMESTAMPTZ_LE,
            value.into(),
        )
    }

    fn new(column: i16, strategy: u32, function: u32, value: pg_sys::Datum) -> Self {
        Self {
            column,
            strategy,
            function,
            value,
        }
    }
}

const MAX_KEYS: usize = 4;

/// What a scan has to sort out itself: see [`is_quiet`].
#[derive(Clone, Copy)]
struct Filter {
    table: pg_sys::Relation,
    snapshot: Option<pg_sys::Snapshot>,
}

impl Filter {
    /// The filter, and the snapshot for the server.
    ///
    /// # Safety
    /// Table and snapshot live as long as the scan.
    unsafe fn new(table: &Relation, snapshot: pg_sys::Snapshot) -> (Self, pg_sys::Snapshot) {
        // SAFETY: the caller's promise.
        let quiet = unsafe { is_quiet(snapshot) };
        let filter = Self {
            table: table.as_ptr(),
            snapshot: quiet.then_some(snapshot),
        };
        (filter, if quiet { any_snapshot() } else { snapshot })
    }

    fn lets_through(self, slot: *mut pg_sys::TupleTableSlot) -> bool {
        self.snapshot.is_none_or(|snapshot| {
            // SAFETY: whoever made the scan keeps both; the slot holds a row of the table.
            unsafe { ports::satisfies_snapshot(self.table, slot, snapshot) }
        })
    }
}

/// A row that a scan stands on; its columns are valid until the scan moves.
pub struct Row(*mut pg_sys::TupleTableSlot);

impl Row {
    /// The column's datum, 1-based; None when it is null.
    pub fn get(&self, column: usize) -> Option<pg_sys::Datum> {
        // SAFETY: the slot holds a row of a heap, and the column exists: the caller knows the table.
        unsafe {
            let slot = self.0;
            ports::slot_columns(slot, column);
            (!*(*slot).tts_isnull.add(column - 1)).then(|| *(*slot).tts_values.add(column - 1))
        }
    }

    /// A NOT NULL bigint column.
    pub fn int8(&self, column: usize) -> i64 {
        self.get(column).map_or(0, |datum| datum.value() as i64)
    }

    /// A NOT NULL text column.
    pub fn text(&self, column: usize) -> &[u8] {
        // SAFETY: callers copy what they keep, before they reset a context that they work in.
        self.get(column)
            .map_or(&[], |datum| unsafe { text_bytes(datum) })
    }

    /// Where the row is, for as long as the scan stays there.
    pub fn slot(&self) -> *mut pg_sys::TupleTableSlot {
        self.0
    }

    /// The row's address.
    pub fn tid(&self) -> pg_sys::ItemPointerData {
        // SAFETY: the slot holds a row.
        unsafe { (*self.0).tts_tid }
    }

    /// The xid that made this version.
    pub fn xmin(&self) -> pg_sys::TransactionId {
        // SAFETY: the slot holds a heap tuple, which has this system column.
        let datum = unsafe {
            let mut isnull = false;
            pg_sys::slot_getsysattr(self.0, pg_sys::MinTransactionIdAttributeNumber, &mut isnull)
        };
        pg_sys::TransactionId::from(datum.value() as u32)
    }
}

/// What [`IndexScan::next_visible`] came to.
pub enum Found {
    /// A visible row.
    Visible(Row),
    /// A row version that is none.
    Invisible(Row),
    /// There are no more.
    End,
}

/// Which way a scan goes.
#[derive(Clone, Copy)]
pub enum Direction {
    /// Ascending keys.
    Forward,
    /// Descending keys.
    Backward,
}

impl Direction {
    /// For the server.
    pub fn raw(self) -> pg_sys::ScanDirection::Type {
        match self {
            Direction::Forward => pg_sys::ScanDirection::ForwardScanDirection,
            Direction::Backward => pg_sys::ScanDirection::BackwardScanDirection,
        }
    }
}

/// An index scan that fetches rows. It must not outlive its relations.
///
/// The index's access method allocates for the scan whenever it moves, not only when it starts, and
/// keeps that until the end. So each call runs in the memory context that the scan was made in.
pub struct IndexScan {
    context: pg_sys::MemoryContext,
    scan: pg_sys::IndexScanDesc,
    slot: *mut pg_sys::TupleTableSlot,
    keys: usize,
    filter: Filter,
}

impl IndexScan {
    /// Prepares a scan of `keys` conditions; [`IndexScan::seek`] starts it.
    ///
    /// # Safety
    /// The snapshot lives as long as the scan.
    pub unsafe fn new(
        table: &Relation,
        index: &Relation,
        snapshot: pg_sys::Snapshot,
        keys: usize,
    ) -> Self {
        // SAFETY: both are open, and the index belongs to the table.
        unsafe {
            let (filter, snapshot) = Filter::new(table, snapshot);
            let scan =
                compat::index_beginscan(table.as_ptr(), index.as_ptr(), snapshot, keys as i32);
            let slot = pg_sys::table_slot_create(table.as_ptr(), std::ptr::null_mut());
            Self {
                context: pg_sys::CurrentMemoryContext,
                scan,
                slot,
                keys,
                filter,
            }
        }
    }

    /// Starts (again) with these conditions, as many as announced.
    pub fn seek(&mut self, keys: &[Key]) {
        debug_assert_eq!(keys.len(), self.keys);
        let mut entries = [pg_sys::ScanKeyData::default(); MAX_KEYS];
        let (scan, slot) = (self.scan, self.slot);
        let _switch = self.memory();
        // SAFETY: the functions belong to the operators; the collation is set to "C" with them, as all
        // our columns have it. The scan copies the keys; a slot, which has this operation, may be
        // cleared at any time. One guard for all: nothing here has to be dropped.
        unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                for (key, entry) in keys.iter().zip(&mut entries) {
                    raw::ScanKeyInit(
                        entry,
                        key.column,
                        key.strategy as pg_sys::StrategyNumber,
                        pg_sys::Oid::from(key.function),
                        key.value,
                    );
                }
                if let Some(clear) = (*(*slot).tts_ops).clear {
                    clear(slot);
                }
                let length = keys.len() as i32;
                raw::index_rescan(scan, entries.as_mut_ptr(), length, std::ptr::null_mut(), 0);
            });
        }
    }

    /// The next visible row that meets all conditions.
    pub fn next(&mut self, direction: Direction) -> Option<Row> {
        let _switch = self.memory();
        // SAFETY: the scan was started; the slot fits the table.
        while unsafe { pg_sys::index_getnext_slot(self.scan, direction.raw(), self.slot) } {
            if self.filter.lets_through(self.slot) {
                return Some(Row(self.slot));
            }
        }
        None
    }

    /// The next visible row, and where it is. The scan's snapshot is an MVCC one, or the scan is sent
    /// elsewhere before it goes on.
    pub fn next_with_spot(&mut self, direction: Direction) -> Option<(Row, Spot)> {
        if self.filter.snapshot.is_some() {
            return self.next(direction).map(|row| (row, Spot::NONE));
        }
        let _switch = self.memory();
        let mut patience = u32::MAX;
        loop {
            // SAFETY: the scan was started; the slot fits the table.
            let next = unsafe {
                spot::index_getnext_visible(self.scan, direction.raw(), self.slot, &mut patience)
            };
            match next {
                Next::Row(spot) => return Some((Row(self.slot), spot)),
                Next::End => return None,
                Next::Invisible => {}
            }
        }
    }

    /// The next visible row. But after `patience` index entries in a row without one, the row version
    /// that the last of them leads to. The scan's snapshot is an MVCC one.
    pub fn next_visible(&mut self, direction: Direction, patience: u32) -> Found {
        debug_assert!(self.filter.snapshot.is_none());
        let mut patience = patience;
        let _switch = self.memory();
        loop {
            // SAFETY: the scan was started; the slot fits the table, which the scan keeps open.
            unsafe {
                match spot::index_getnext_visible(
                    self.scan,
                    direction.raw(),
                    self.slot,
                    &mut patience,
                ) {
                    Next::Row(_) => return Found::Visible(Row(self.slot)),
                    Next::End => return Found::End,
                    Next::Invisible => {
                        let tid = &raw mut (*self.scan).xs_heaptid;
                        // In vain where only a pointer to later versions is left: then the next one.
                        if ports::fetch_any_version((*self.scan).heapRelation, tid, self.slot) {
                            return Found::Invisible(Row(self.slot));
                        }
                    }
                }
            }
            pgrx::check_for_interrupts!();
        }
    }

    /// The number of index entries that follow, whatever became of their rows, counted up to `limit`.
    /// Touches no row.
    pub fn count_entries(&mut self, limit: u64) -> u64 {
        let scan = self.scan;
        let direction = Direction::Forward.raw();
        let _switch = self.memory();
        // SAFETY: the scan was started. One guard for all: nothing here has to be dropped.
        unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                let mut count = 0;
                while count < limit && !raw::index_getnext_tid(scan, direction).is_null() {
                    count += 1;
                }
                count
            })
        }
    }
}

impl IndexScan {
    fn memory(&self) -> MemorySwitch {
        // SAFETY: whoever made the scan keeps its context as long as the scan.
        unsafe { MemorySwitch::to(self.context) }
    }
}

impl Drop for IndexScan {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let (scan, slot) = (self.scan, self.slot);
        // SAFETY: ended once; the slot lets go of its buffer first.
        unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                raw::ExecDropSingleTupleTableSlot(slot);
                raw::index_endscan(scan);
            });
        }
    }
}

/// A scan of a whole table. It must not outlive the relation.
pub struct TableScan {
    context: pg_sys::MemoryContext,
    scan: pg_sys::TableScanDesc,
    slot: *mut pg_sys::TupleTableSlot,
    filter: Filter,
}

impl TableScan {
    /// # Safety
    /// The snapshot lives as long as the scan.
    pub unsafe fn new(table: &Relation, snapshot: pg_sys::Snapshot) -> Self {
        // SAFETY: the table is open.
        unsafe {
            let (filter, snapshot) = Filter::new(table, snapshot);
            Self {
                filter,
                context: pg_sys::CurrentMemoryContext,
                scan: pg_sys::table_beginscan(table.as_ptr(), snapshot, 0, std::ptr::null_mut()),
                slot: pg_sys::table_slot_create(table.as_ptr(), std::ptr::null_mut()),
            }
        }
    }

    /// A scan of so many pages of a heap, from this one on.
    ///
    /// # Safety
    /// The snapshot lives as long as the scan.
    pub unsafe fn of_pages(
        table: &Relation,
        snapshot: pg_sys::Snapshot,
        (first, pages): (u32, u32),
    ) -> Self {
        // SAFETY: the table is open. Only a scan that does not keep step with others has limits.
        unsafe {
            let (filter, snapshot) = Filter::new(table, snapshot);
            let none = std::ptr::null_mut();
            let scan =
                pg_sys::table_beginscan_strat(table.as_ptr(), snapshot, 0, none, true, false);
            pg_sys::heap_setscanlimits(scan, first, pages);
            Self {
                filter,
                context: pg_sys::CurrentMemoryContext,
                scan,
                slot: pg_sys::table_slot_create(table.as_ptr(), std::ptr::null_mut()),
            }
        }
    }

    /// The next visible row.
    pub fn next(&mut self) -> Option<Row> {
        // SAFETY: as of IndexScan; and the slot fits the table.
        while unsafe {
            let _switch = MemorySwitch::to(self.context);
            pg_sys::table_scan_getnextslot(
                self.scan,
                pg_sys::ScanDirection::ForwardScanDirection,
                self.slot,
            )
        } {
            if self.filter.lets_through(self.slot) {
                return Some(Row(self.slot));
            }
        }
        None
    }
}

impl Drop for TableScan {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // SAFETY: as of IndexScan.
        unsafe {
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            pg_sys::table_endscan(self.scan);
        }
    }
}

/// Fetches rows by their addresses. It must not outlive the relation.
pub struct RowFetch<'a> {
    table: &'a Relation,
    slot: *mut pg_sys::TupleTableSlot,
}

impl<'a> RowFetch<'a> {
    /// A table's, or partition's.
    pub fn new(table: &'a Relation) -> Self {
        // SAFETY: the table is open.
        let slot = unsafe { pg_sys::table_slot_create(table.as_ptr(), std::ptr::null_mut()) };
        Self { table, slot }
    }

    /// The row version at an address, whoever sees it. None: there is none any more.
    pub fn get(&mut self, mut tid: pg_sys::ItemPointerData) -> Option<Row> {
        // SAFETY: the slot fits the table, which is open.
        unsafe { ports::fetch_any_version(self.table.as_ptr(), &raw mut tid, self.slot) }
            .then_some(Row(self.slot))
    }
}

impl Drop for RowFetch<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: it was made by us.
            unsafe { pg_sys::ExecDropSingleTupleTableSlot(self.slot) };
        }
    }
}
