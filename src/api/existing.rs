//! All counters of a range of names, and dropping them by deltas, one after the other.

use crate::bounds::escrow;
use crate::bounds::types;
use crate::pg::room;
use crate::read::reader::{Lanes, Reader};
use crate::store::totals::{self, Order};
use crate::transaction::notes;
use crate::write::change;
use crate::write::writing;
use counterx_core::names::NameRange;
use counterx_core::tally::Tally;
use pgrx::pg_sys;
use std::ops::ControlFlow;

/// What there is of each counter of a range for a snapshot, which is active, by the names that they are stored as. One that
/// has ended since its window was removed may be less than nothing.
pub fn in_range(
    range: &NameRange,
    order: Order,
    snapshot: pg_sys::Snapshot,
) -> Vec<(Vec<u8>, Tally)> {
    let mut reader = Reader::open(Lanes::All, snapshot);
    let mut pending = reader.pending_in(range);
    let mut counters = Vec::new();
    let mut keep = |name: &[u8], tally: Tally| {
        if !tally.is_zero() {
            room::push(&mut counters, (room::copy(name), tally));
        }
    };
    // SAFETY: the caller's snapshot is active.
    let _all = unsafe {
        totals::visit(range, order, snapshot, |name, row| {
            keep(name, totals::tally(row) + pending.take(name));
            ControlFlow::Continue(())
        })
    };
    for (name, tally) in pending {
        keep(&name, tally);
    }
    reader.finish();
    counters
}

/// Drops counters of which nobody else changes any. Where the transaction may have changed types, `by_types` has each go by
/// its type as it is.
pub fn drop_each(counters: &[(Vec<u8>, Tally)], by_types: bool) {
    for (name, tally) in counters {
        pgrx::check_for_interrupts!();
        notes::note_change_by_value(name);
        if by_types && let Some(limits) = types::find(name) {
            escrow::note_gone_by(name, limits.generation);
        }
        drop_one(name, *tally);
    }
}

/// What is beyond a bigint takes several deltas: see `change.rs`.
fn drop_one(name: &[u8], mut written: Tally) {
    while i64::try_from(-written.value).is_err() {
        pgrx::check_for_interrupts!();
        let part = match written.value > 0 {
            true => -i64::MAX,
            false => i64::MAX,
        };
        change::adjust_unchecked(name, part);
        writing::write_early();
        written += Tally::of(part, 1);
    }
    change::drop_unchecked(name, written);
}
