//! Gates, and the lease on a lane.
//!
//! # Note about locking
//! A lane's gate is a cell (see [`cell`]): two numbers on one page, WAL-logged, and not subject to
//! snapshots. The table that it is the only row of is also the object on which writers and folders meet:
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
//! The gate's second number is the highest epoch whose deltas may be gone from the logs. It is written
//! before a log is truncated, by the holder of the lease, and read by readers after their scan.
//!
//! # Invariant
//! The gate is above all that is folded, and never goes back. Only we write it, and only upwards. Should
//! somebody bring a state or deltas of another database in by force, past the triggers that refuse that,
//! the gate is lifted above them: by the folder, and by each writer when it writes to the lane for the
//! first time since the lane's tables were last altered ([`lift`]).

use crate::pg::cell;
use crate::pg::clock;
use crate::pg::lock::{VirtualXact, conflicting_xacts};
use crate::pg::relation::{ACCESS_SHARE, ROW_SHARE, Relation, SHARE_UPDATE_EXCLUSIVE};
use crate::store::catalog::{self, LaneRels};
use crate::store::shape;
use counterx_core::gate::Gate;
use pgrx::pg_sys;

/// Reads a lane's gate.
pub fn read_gate(gate: &Relation) -> Gate {
    shape::check(gate);
    let [value, _] = cell::read(gate);
    Gate::decode(value)
}

/// Reads the highest epoch whose deltas may be gone from the logs.
pub fn read_truncated(gate: &Relation) -> i64 {
    let [_, truncated] = cell::read(gate);
    truncated
}

/// Lifts a gate above an epoch, if it is not. Returns what it is then.
pub fn lift(gate: &Relation, above: i64) -> Gate {
    let [value, _] = cell::update(gate, |[value, truncated]| {
        let gate = Gate::decode(value);
        let lifted = Gate {
            epoch: gate.epoch.max(above.saturating_add(1)),
            side: gate.side,
        };
        [lifted.encode(), truncated]
    });
    Gate::decode(value)
}

/// Opens a lane's gate for reading.
pub fn open(lane: usize) -> Relation {
    Relation::open_for_read(catalog::lane(lane).gate).unwrap_or_else(|| catalog::gone())
}

/// Locks a lane's gate to the end of the transaction, as a reader does: for those who keep a lock on
/// another relation of ours that long. DROP EXTENSION then meets them here, and not on the way.
pub fn enter(lane: usize) {
    let gate = catalog::lane(lane).gate;
    if Relation::open_until_commit(gate, ACCESS_SHARE).is_none() {
        catalog::gone()
    }
}

/// Locks the first lane's gate to the end of the transaction, for those who change a counter by its value:
/// who drops all counters waits for them, and they for him. Nobody else does, folders and writers neither.
/// It is the same gate for all of them, and the first that the other one locks, so the two do not deadlock.
pub fn enter_to_change() {
    if Relation::open_until_commit(catalog::lane(0).gate, ROW_SHARE).is_none() {
        catalog::gone()
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

    /// Lifts the gate above an epoch, if it is not. Returns what it is then.
    pub fn lift(&self, above: i64) -> Gate {
        lift(&self.gate, above)
    }

    /// The deltas up to this epoch may be gone from the logs from now on.
    pub fn set_truncated(&self, through: i64) {
        cell::update(&self.gate, |[gate, truncated]| {
            [gate, truncated.max(through)]
        });
    }

    /// Publishes the next epoch, and says who may still write rows of an earlier one.
    pub fn publish(&self, switch: bool) -> Published {
        publish(&self.rels, &self.gate, switch)
    }
}

/// Publishes the next epoch, and says who may still write rows of an earlier one. Only the holder of the
/// lease knows whether to change to the other log.
pub fn publish(rels: &LaneRels, gate: &Relation, switch: bool) -> Published {
    // Before it is published: who stamps the next epoch reads a later one.
    let clock = clock::now();
    failpoint!("publish.begin");
    let [value, _] = cell::update(gate, |[gate, truncated]| {
        [Gate::decode(gate).next(switch).encode(), truncated]
    });
    failpoint!("publish.gate_written");
    let writers = conflicting_xacts(rels.gate, pg_sys::ShareLock as i32);
    failpoint!("publish.writers_listed");
    Published {
        epoch: Gate::decode(value).epoch,
        clock,
        writers,
    }
}

/// An epoch, and the transactions that may still write rows of earlier ones.
pub struct Published {
    /// The epoch that was published.
    pub epoch: i64,
    /// The clock before that.
    pub clock: i64,
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
