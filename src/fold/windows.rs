//! Removing the totals of windows that have ended and are not kept.
//!
//! # How it works
//! All windows of a type that are not kept any more are one range of names, at the beginning of all that is stored for
//! it. Their totals are deleted as they are, whatever they have come to: a delta that took them back would bring a
//! window back when somebody commits late. What is folded later of such a window is removed the next time.
//!
//! # Invariants
//! - Totals are written by who holds the lease of their lane: whoever removes holds all of them.
//! - Up to when windows may be removed is written before they are: see `bounds/windows.rs`.

use crate::fold::way;
use crate::pg::relation::{ROW_EXCLUSIVE, Relation};
use crate::pg::scan::{Direction, IndexScan, Key};
use crate::pg::snapshot;
use crate::pg::varlena::NameText;
use crate::store::catalog;
use crate::store::columns;
use crate::store::expired::Batch;
use crate::store::gate::Lease;
use crate::store::shape;
use crate::store::tables;
use crate::store::totals;
use counterx_core::lane::LANES;
use counterx_core::names::NameRange;
use pgrx::pg_sys;

/// So many totals are deleted in one transaction: some ten milliseconds.
const ROWS: usize = 5_000;

/// How far the removal has come in each range. What was deleted has entries in the index for as long as somebody could
/// see it: they are not visited again and again.
#[derive(Debug, Default)]
pub struct Progress(Vec<Reached>);

#[derive(Debug)]
struct Reached {
    /// What the range begins with.
    from: Vec<u8>,
    /// All before this name is deleted.
    name: Vec<u8>,
}

impl Progress {
    /// The rest of a range.
    fn rest(&self, names: &NameRange) -> NameRange {
        let mut rest = names.clone();
        let known = (self.0.iter()).find(|reached| Some(&*reached.from) == names.from());
        if let Some(reached) = known {
            rest.at_least(&reached.name);
        }
        rest
    }

    fn note(&mut self, names: &NameRange, name: &[u8]) {
        let Some(from) = names.from() else { return };
        match self.0.iter_mut().find(|reached| *reached.from == *from) {
            Some(reached) => name.clone_into(&mut reached.name),
            None => self.0.push(Reached {
                from: from.to_vec(),
                name: name.to_vec(),
            }),
        }
    }
}

/// Takes the leases of all lanes, to the end of the transaction. To be called before it is looked which windows have
/// ended: who drops a type keeps others from taking them, and drops its counters by deltas, which these totals must be
/// there for. False: somebody folds, or keeps others from folding.
pub fn take_leases() -> bool {
    (0..LANES).all(|lane| Lease::try_take(catalog::lane(lane)).is_some())
}

/// Deletes totals of these ranges, so many at most, by who has the leases. In a READ COMMITTED transaction of its own; if
/// that fails, the caller forgets the progress. Calls `note` with the number of each range of which it finds something,
/// before it deletes that.
pub fn remove(ranges: &[NameRange], progress: &mut Progress, mut note: impl FnMut(usize)) -> Batch {
    let Some(table) = Relation::open_until_commit(catalog::shared().total, ROW_EXCLUSIVE) else {
        catalog::gone()
    };
    if shape::check_foldable(&table).is_err() {
        // Folds say so in the log.
        return Batch::Busy;
    }
    let mut left = ROWS;
    for (number, names) in ranges.iter().enumerate() {
        let rest = progress.rest(names);
        let mut found = first_of(&table, &rest, left, |name| progress.note(names, name));
        if found.is_empty() {
            continue;
        }
        note(number);
        failpoint!("windows.noted");
        for tid in &mut found {
            // SAFETY: a visible row, which only the holder of its lane's lease changes: we have all.
            unsafe { pg_sys::simple_heap_delete(table.as_ptr(), tid) };
        }
        left -= found.len();
        if left == 0 {
            return Batch::More;
        }
    }
    Batch::Done
}

/// The places of the first totals of a range, so many at most.
fn first_of(
    table: &Relation,
    names: &NameRange,
    most: usize,
    mut reached: impl FnMut(&[u8]),
) -> Vec<pg_sys::ItemPointerData> {
    let index = tables::index_of(table, &columns::total::KEY);
    let from = NameText::new(totals::first_bytes(names));
    // SAFETY: the snapshot is a static, and what the scan is sent to outlives it.
    let mut scan = unsafe { IndexScan::new(table, &index, snapshot::self_snapshot(), 1) };
    scan.seek(&[Key::text_ge(1, from.datum())]);
    let mut found = Vec::new();
    while found.len() < most
        && let Some(row) = scan.next(Direction::Forward)
    {
        way::make_way();
        pgrx::check_for_interrupts!();
        let name = row.text(columns::total::NAME);
        if names.is_past(name) {
            break;
        }
        found.push(row.tid());
        reached(name);
    }
    found
}
