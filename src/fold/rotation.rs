//! Getting space back: a lane's two logs are used in turn.
//!
//! # Invariants
//! A log is truncated only when all of its epochs are folded **and** every snapshot of the database
//! sees the fold that did it; until then some reader may still need its rows. The truncated-through
//! epoch is published first. Nobody is waited for: a log that is in use is left for the next time.

use crate::figures::local::{Figure, count_if_committed};
use crate::pg::compat;
use crate::pg::relation::{ACCESS_EXCLUSIVE, Relation};
use crate::settings;
use crate::store::catalog::{self, LaneRels};
use crate::store::gate::{self, Lease};
use crate::store::ours::AtWork;
use crate::store::pending::newest_epoch;
use crate::store::state;
use crate::store::tables;
use counterx_core::gate::Gate;
use pgrx::pg_sys;

/// Shall the next publish change to the other log? When this one is full, or so old that its
/// xids would soon need freezing, and the other one is empty.
pub fn wants_switch(rels: &LaneRels, gate: Gate) -> bool {
    let active = tables::open(rels.log(gate.side));
    let full = u64::from(active.blocks()) * u64::from(pg_sys::BLCKSZ) >= settings::log_max_size();
    // SAFETY: reads the next xid to be handed out.
    let next_xid = unsafe { pg_sys::ReadNextTransactionId() };
    let age = next_xid
        .into_inner()
        .wrapping_sub(active.frozen_xid().into_inner());
    let old = active.blocks() > 0 && age > FREEZE_AGE;
    (full || old) && tables::open(rels.log(gate.side.other())).blocks() == 0
}

/// Well before autovacuum_freeze_max_age (200 million by default) makes autovacuum come for a
/// table that TRUNCATE renews for nothing.
const FREEZE_AGE: u32 = 100_000_000;

/// An inactive log that waits for the snapshots that may still need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// The highest epoch in it.
    pub newest: i64,
    /// A fold that was committed when all of it was folded already.
    pub xid: pg_sys::TransactionId,
}

/// Looks whether the inactive log has rows, all of them folded.
pub fn drained(lane: usize, rels: &LaneRels, gate: Gate) -> Option<Drained> {
    let side = gate.side.other();
    if tables::open(rels.log(side)).blocks() == 0 {
        return None;
    }
    let newest = newest_epoch(rels, side);
    let shared = catalog::shared();
    let state = state::newest(&shared, lane);
    // Only a version that others can see by now says something about their snapshots.
    let xid = state.xmin.filter(|&xid| {
        // SAFETY: takes any xid.
        !unsafe { pg_sys::TransactionIdIsCurrentTransactionId(xid) }
    })?;
    (newest <= state.folded).then_some(Drained { newest, xid })
}

/// Is there anything to be truncated, now or later?
pub fn has_inactive_rows(rels: &LaneRels) -> bool {
    let gate = gate::read_gate(&tables::open(rels.gate));
    tables::open(rels.log(gate.side.other())).blocks() > 0
}

/// Truncates the inactive log, if every snapshot of the database sees it folded and nobody is
/// using it. True when it was done.
pub fn truncate(lease: &Lease, gate: Gate, drained: Drained) -> bool {
    let rels = lease.rels();
    let side = gate.side.other();
    let table = rels.log(side);
    // First, as the lock is one that readers wait for and that takes an xid and WAL where there may be
    // standbys: not at each tick while an old snapshot is open.
    if !all_snapshots_see(drained.xid, &tables::open(table)) {
        return false;
    }
    let Some(log) = Relation::open_if_free(table, ACCESS_EXCLUSIVE) else {
        return false;
    };
    // SAFETY: the relation is open. A higher count than ours is a scan of this very session.
    let in_use = unsafe { (*log.as_ptr()).rd_refcnt } > 1;
    if in_use || !all_snapshots_see(drained.xid, &log) || newest_epoch(rels, side) > drained.newest
    {
        return false;
    }
    failpoint!("truncate.locked");
    lease.set_truncated(drained.newest);
    failpoint!("truncate.published");
    let _at_work = AtWork::begin();
    // SAFETY: open, and locked exclusively.
    unsafe { compat::truncate(log.as_ptr(), table) };
    count_if_committed(Figure::Truncations, 1);
    failpoint!("truncate.done");
    true
}

/// Does every snapshot of the database see what this transaction has committed?
pub fn all_snapshots_see(xid: pg_sys::TransactionId, log: &Relation) -> bool {
    // SAFETY: the relation is open.
    unsafe {
        let horizon = pg_sys::GetOldestNonRemovableTransactionId(log.as_ptr());
        pg_sys::TransactionIdPrecedes(xid, horizon)
    }
}
