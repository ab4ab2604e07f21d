//! Gates, and the lease on a lane.
//!
//! # Note about locking
//! A lane's gate is a sequence: its value lives on one page, is WAL-logged, and is not subject to
//! snapshots. It is also the object on which writers and folders meet:
//!
//! - A writer takes **RowExclusiveLock** on the gate (fast path, shared by all writers), *then*
//!   reads the value, inserts rows stamped with that epoch, and keeps the lock to the end of its
//!   transaction.
//! - The folder of a lane holds **ShareUpdateExclusiveLock** on the gate: the lease. It conflicts
//!   with itself alone, so writers and readers never notice, there is one folder a lane, and the
//!   server releases it when the folder dies. Workers take it conditionally; `compact()` waits.
//! - A reader takes **AccessShareLock** and reads the value after its snapshot was taken: no
//!   epoch that the snapshot can see is higher.
//! - The folder writes the next epoch (*publishes* it) and then asks the lock manager who holds a
//!   lock that conflicts with ShareLock, without asking for that lock. Whoever is not in that
//!   list reads the gate after the write and stamps the new epoch. So once all in the list have
//!   ended, no row of an earlier epoch can appear any more. This is the method of CREATE INDEX
//!   CONCURRENTLY.
//!
//! Everybody opens a lane's gate before any other relation of the extension, lanes ascending.
//!
//! `truncated_<lane>` is such a cell as well. It is written before a log is truncated, by the
//! holder of the lease, and read by readers after their scan.

use crate::catalog::{self, LaneRels};
use crate::pg::lock::{VirtualXact, conflicting_xacts};
use crate::pg::raw;
use crate::pg::relation::{ACCESS_SHARE, Relation, SHARE_UPDATE_EXCLUSIVE};
use counterx_core::gate::Gate;
use pgrx::{direct_function_call_as_datum, pg_sys};

/// The last value of a sequence, read once from its page.
pub fn read_cell(sequence: &Relation) -> i64 {
    // SAFETY: a sequence has one page with one tuple, and last_value is the tuple's first column.
    // The share lock makes the read whole. One guard for all: nothing here has to be dropped.
    unsafe {
        let sequence = sequence.as_ptr();
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            let buffer = raw::ReadBuffer(sequence, 0);
            raw::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
            let page = pg_sys::BufferGetPage(buffer);
            let item = pg_sys::PageGetItemId(page, 1);
            let tuple = pg_sys::PageGetItem(page, item).cast::<pg_sys::HeapTupleHeaderData>();
            let data = tuple.cast::<u8>().add(usize::from((*tuple).t_hoff));
            let value = data.cast::<i64>().read();
            raw::UnlockReleaseBuffer(buffer);
            value
        })
    }
}

/// Writes a sequence's last value, at once and for all, whatever becomes of the transaction.
pub fn write_cell(sequence: pg_sys::Oid, value: i64) {
    // SAFETY: setval(regclass, bigint).
    unsafe {
        direct_function_call_as_datum(
            pg_sys::setval_oid,
            &[
                Some(pg_sys::Datum::from(sequence)),
                Some(pg_sys::Datum::from(value)),
            ],
        );
    }
}

/// Reads a lane's gate.
pub fn read_gate(gate: &Relation) -> Gate {
    Gate::decode(read_cell(gate))
}

/// Locks a lane's gate to the end of the transaction, as a reader does: for those who keep a lock on
/// another relation of ours that long. DROP EXTENSION then meets them here, and not on the way.
pub fn enter(lane: usize) {
    let gate = catalog::lane(lane).gate;
    if Relation::open_until_commit(gate, ACCESS_SHARE).is_none() {
        catalog::Unusable::NotInstalled.raise()
    }
}

/// The lease on a lane, held to the end of the transaction.
pub struct Lease {
    gate: Relation,
    rels: LaneRels,
}

impl Lease {
    /// Takes the lease if it is free.
    pub fn try_take(rels: LaneRels) -> Option<Self> {
        let gate = Relation::open_if_free(rels.gate, SHARE_UPDATE_EXCLUSIVE)?;
        Some(Self { gate, rels })
    }

    /// Takes the lease, and waits for it as long as another has it. None when the lane is gone.
    pub fn take(rels: LaneRels) -> Option<Self> {
        let gate = Relation::open_until_commit(rels.gate, SHARE_UPDATE_EXCLUSIVE)?;
        Some(Self { gate, rels })
    }

    /// The lane's relations.
    pub fn rels(&self) -> &LaneRels {
        &self.rels
    }

    /// The gate's value.
    pub fn gate(&self) -> Gate {
        read_gate(&self.gate)
    }

    /// Publishes the next epoch, and says who may still write rows of an earlier one.
    pub fn publish(&self, switch: bool) -> Published {
        let next = self.gate().next(switch);
        failpoint!("publish.begin");
        write_cell(self.rels.gate, next.encode());
        failpoint!("publish.gate_written");
        let writers = conflicting_xacts(self.rels.gate, pg_sys::ShareLock as i32);
        failpoint!("publish.writers_listed");
        Published {
            epoch: next.epoch,
            writers,
        }
    }
}

/// An epoch, and the transactions that may still write rows of earlier ones.
pub struct Published {
    /// The epoch that was published.
    pub epoch: i64,
    writers: Vec<VirtualXact>,
}

impl Published {
    /// Have all of them ended? Does not wait.
    pub fn is_settled(&mut self) -> bool {
        self.writers.retain(|xact| !xact.has_ended());
        self.writers.is_empty()
    }

    /// Waits until all of them have ended.
    pub fn settle(&mut self) {
        for xact in self.writers.drain(..) {
            xact.wait();
        }
    }
}
