//! What others have done to a bounded counter and its holds.

use crate::bounds::holds;
use crate::pg::snapshot::LatestSnapshot;
use crate::read::reader::{self, OwnRows};
use crate::store::catalog;
use crate::store::tables;
use counterx_core::escrow::Seen;
use counterx_core::lane::NameHash;
use pgrx::pg_sys;

/// What others see of a counter at this moment, and what is on hold of it at the time `clock`. What
/// the running transaction has done does not count, written or not.
pub fn seen_by_others(name: &[u8], clock: i64) -> Seen {
    // A tool that puts another table in the place of the holds makes its last rows in that moment. So the
    // table is locked before the snapshot is taken; and before that the gate, as always.
    let _gate = tables::open(catalog::lane(NameHash::of(name).lane()).gate);
    let _holds = tables::open(catalog::shared().hold);
    let latest = LatestSnapshot::take();
    // SAFETY: the snapshot is active as long as `latest` lives.
    unsafe { seen_at(name, clock, latest.as_ptr()) }
}

/// The same for this snapshot. A serializable transaction does not note that it has looked.
///
/// # Safety
/// The snapshot is active or registered.
pub unsafe fn seen_at(name: &[u8], clock: i64, snapshot: pg_sys::Snapshot) -> Seen {
    // SAFETY: the caller's promise.
    unsafe {
        let mut others = reader::hidden(snapshot);
        Seen {
            value: reader::written(name, others.as_ptr(), OwnRows::Hidden).value,
            held: holds::held(name, clock, others.as_ptr()),
            clock,
        }
    }
}

/// What others have taken from a counter, and added to it, in transactions that have committed and
/// that this snapshot does not see.
///
/// # Safety
/// The snapshot is active or registered, and one of the running transaction's own.
pub unsafe fn unseen(name: &[u8], clock: i64, snapshot: pg_sys::Snapshot) -> (i128, i128) {
    // SAFETY: the caller's promise.
    unsafe {
        let (taken, added) = reader::unseen(name, snapshot);
        (taken + holds::unseen(name, clock, snapshot), added)
    }
}
