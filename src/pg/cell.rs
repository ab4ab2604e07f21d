//! Cells: a table's one row of numbers, read and changed in place.
//!
//! A cell is what a sequence's value is: one place for all snapshots, WAL-logged, changed at once and
//! for all, whatever becomes of the transaction. It is a table and no sequence, as tools set sequences:
//! restores, switches between two servers, replication of sequences. Nobody sets this one but we.
//!
//! # How it works
//! The row is the only one on the table's first page. Its numbers are NOT NULL bigints and stand at a
//! fixed place behind the row's header. They are read under the page's share lock, and changed under its
//! exclusive lock through a generic WAL record, which a standby replays like any other.

use super::error::{raise, report};
use super::raw;
use super::relation::Relation;
use pgrx::{PgSqlErrorCode, pg_sys};

/// Reads a cell.
///
/// # Errors
/// Raises 55000 when somebody has taken the row away.
pub fn read<const N: usize>(table: &Relation) -> [i64; N] {
    let relation = table.as_ptr();
    // SAFETY: the table is open. The share lock makes the read whole. One guard for all: nothing here has
    // to be dropped.
    let numbers = unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            let buffer = raw::ReadBuffer(relation, 0);
            raw::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
            let numbers = find::<N>(pg_sys::BufferGetPage(buffer)).map(|cell| cell.read());
            raw::UnlockReleaseBuffer(buffer);
            numbers
        })
    };
    numbers.unwrap_or_else(|| damaged(table))
}

/// Changes a cell, at once and for all, and returns what it is then. `change` neither fails nor calls the
/// server: the page is locked meanwhile, and so nobody comes in between.
///
/// # Errors
/// As of [`read`].
pub fn update<const N: usize>(table: &Relation, change: impl Fn([i64; N]) -> [i64; N]) -> [i64; N] {
    try_update(table, change).unwrap_or_else(|| damaged(table))
}

/// The same. None: somebody has taken the row away.
pub fn try_update<const N: usize>(
    table: &Relation,
    change: impl Fn([i64; N]) -> [i64; N],
) -> Option<[i64; N]> {
    let relation = table.as_ptr();
    // SAFETY: as above, with the exclusive lock. What is changed is a copy of the page, which is logged and
    // put in its place as a whole.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            let buffer = raw::ReadBuffer(relation, 0);
            raw::LockBuffer(buffer, pg_sys::BUFFER_LOCK_EXCLUSIVE as i32);
            let old = find::<N>(pg_sys::BufferGetPage(buffer)).map(|cell| cell.read());
            let new = old.map(&change);
            if let Some(new) = new
                && old != Some(new)
            {
                let state = raw::GenericXLogStart(relation);
                let page = raw::GenericXLogRegisterBuffer(state, buffer, 0);
                if let Some(cell) = find::<N>(page) {
                    cell.write(new);
                    freeze(page);
                }
                raw::GenericXLogFinish(state);
            }
            raw::UnlockReleaseBuffer(buffer);
            new
        })
    }
}

/// The cell's numbers on a page. The last of its rows counts: whoever updates one by hand leaves the old
/// version before it.
///
/// # Safety
/// A page of a heap, locked or a copy.
unsafe fn find<const N: usize>(page: pg_sys::Page) -> Option<*mut [i64; N]> {
    // SAFETY: the caller's promise; a row has its header.
    unsafe {
        let (row, length) = last_row(page)?;
        let columns = u32::from((*row).t_infomask2) & pg_sys::HEAP_NATTS_MASK;
        let may_have_nulls = u32::from((*row).t_infomask) & pg_sys::HEAP_HASNULL != 0;
        // Where a column was added and dropped, each rewriting of the table makes it null. Ours stand before it.
        let has_nulls =
            may_have_nulls && ((*row).t_bits.as_ptr().read().trailing_ones() as usize) < N;
        let header = usize::from((*row).t_hoff);
        let whole = length >= header + size_of::<[i64; N]>();
        (columns as usize >= N && !has_nulls && whole).then(|| row.cast::<u8>().add(header).cast())
    }
}

/// The last row on a page, and its length.
///
/// # Safety
/// As of [`find`].
unsafe fn last_row(page: pg_sys::Page) -> Option<(*mut pg_sys::HeapTupleHeaderData, usize)> {
    // SAFETY: the caller's promise: items lie on the page, and a normal one is a row.
    unsafe {
        let mut at = pg_sys::PageGetMaxOffsetNumber(page);
        while at > 0 {
            let item = pg_sys::PageGetItemId(page, at);
            if (*item).lp_flags() == pg_sys::LP_NORMAL {
                return Some((
                    pg_sys::PageGetItem(page, item).cast(),
                    (*item).lp_len() as usize,
                ));
            }
            at -= 1;
        }
        None
    }
}

/// A server that reads the row would note in its header that the inserting transaction has committed: on
/// its own, so pages of a primary and a standby would differ, and `wal_consistency_checking` stop the
/// standby (it leaves such notes out of account for records of the heap, not for generic ones). Of a frozen
/// row there is nothing to be noted. The same goes for the number of the command that inserted it. Who sees the row is nothing that we go by.
///
/// # Safety
/// As of [`find`], with a copy of the page.
unsafe fn freeze(page: pg_sys::Page) {
    // SAFETY: the caller's promise.
    unsafe {
        if let Some((row, _)) = last_row(page) {
            let flags = u32::from((*row).t_infomask);
            // As the install script has made it, and nobody is changing it by hand.
            if flags & pg_sys::HEAP_XMAX_INVALID != 0 && flags & pg_sys::HEAP_UPDATED == 0 {
                (*row).t_infomask |= pg_sys::HEAP_XMIN_FROZEN as u16;
                // Not in the WAL of the insertion, whose replay makes it the first one. Of no meaning for a
                // frozen row.
                (*row).t_choice.t_heap.t_field3.t_cid = pg_sys::FirstCommandId;
            }
        }
    }
}

fn damaged(table: &Relation) -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!(
                "table counterx.{} has lost its row",
                String::from_utf8_lossy(&table.name())
            ),
        )
        .set_hint("Somebody has changed it by hand. Restore the database from a backup, or save the counters that can be read, and create the extension anew."),
    )
}
