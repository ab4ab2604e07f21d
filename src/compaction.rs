//! What a worker's tick and `counterx.compact()` do with one lane: in which order epochs are
//! published, awaited, folded and truncated.

use crate::catalog::LaneRels;
use crate::fold::{self, LeftAlone};
use crate::lease::{Lease, Published};
use crate::rotation::{self, Drained};
use counterx_core::schedule::Folded;

/// What a worker remembers of a lane between its ticks. It is lost with the worker, which is
/// right: the next one publishes anew and waits.
#[derive(Default)]
pub struct LaneMemory {
    published: Option<Published>,
    drained: Option<Drained>,
    folded: Folded,
}

impl LaneMemory {
    /// So many pending deltas start a fold before its time, where the setting says `threshold`.
    pub fn early_at(&self, threshold: u64) -> u64 {
        self.folded.early_at(threshold)
    }

    /// A truncation has failed. The published epoch is of a transaction that was committed before, so
    /// it stays known: forgotten each time, it would never be folded.
    pub fn forget_drained(&mut self) {
        self.drained = None;
    }
}

/// What became of a tick.
pub enum Tick {
    /// Finished epochs were folded.
    Folded,
    /// Something is pending, and its turn will come.
    Waiting,
    /// Nothing is pending.
    Idle,
    /// Somebody else is folding the lane.
    Busy,
}

/// One step for one lane, without waiting for anybody. The caller is in a READ COMMITTED
/// transaction of its own, and commits it; if that fails, it forgets `memory`.
///
/// # Errors
/// [`LeftAlone`] when the lane is to be left alone.
pub fn tick(lane: usize, rels: LaneRels, memory: &mut LaneMemory) -> Result<Tick, LeftAlone> {
    let Some(lease) = Lease::try_take(rels) else {
        return Ok(Tick::Busy);
    };
    let gate = lease.gate();
    fold::check_gate(&rels, gate)?;
    if !fold::has_pending(lane, &rels) {
        return Ok(Tick::Idle);
    }
    // The list of writers belongs to the epoch that it was taken at: when the gate shows another
    // one, somebody has published since, and the list says nothing.
    let folded = match memory
        .published
        .as_mut()
        .filter(|known| known.epoch == gate.epoch)
    {
        Some(published) => {
            if !published.is_settled() {
                return Ok(Tick::Waiting);
            }
            fold::check_tables()?;
            memory.folded = fold::fold(lane, &lease, published.epoch - 1);
            true
        }
        None => false,
    };
    // Should this transaction fail after the publish, the caller forgets what it knows.
    if fold::has_pending(lane, &rels) {
        memory.published = Some(lease.publish(rotation::wants_switch(&rels, gate)));
    }
    Ok(if folded { Tick::Folded } else { Tick::Waiting })
}

/// Truncates the lane's inactive log if nobody needs it any more. In a transaction of its own; if
/// that fails, the caller has `memory` forget what was drained. True when it was done.
pub fn reclaim(lane: usize, rels: LaneRels, memory: &mut LaneMemory) -> bool {
    let Some(lease) = Lease::try_take(rels) else {
        return false;
    };
    let gate = lease.gate();
    // The first fold that was seen to have drained the log stays the one to wait for: later ones
    // always are too young for some snapshot.
    let newer = rotation::drained(lane, &rels, gate);
    memory.drained = match (memory.drained, newer) {
        (Some(known), Some(seen)) if known.newest == seen.newest => Some(known),
        _ => newer,
    };
    memory
        .drained
        .is_some_and(|drained| rotation::truncate(&rels, gate, drained))
}

/// Folds all that was committed before the call, waiting where needed. Returns the number of
/// deltas. With `truncate`, an inactive log that an earlier call has drained is emptied.
///
/// # Errors
/// [`LeftAlone`] when the lane is to be left alone.
pub fn compact_lane(lane: usize, rels: LaneRels, truncate: bool) -> Result<i64, LeftAlone> {
    let Some(lease) = Lease::take(rels) else {
        return Ok(0);
    };
    let gate = lease.gate();
    fold::check_gate(&rels, gate)?;
    if truncate && let Some(drained) = rotation::drained(lane, &rels, gate) {
        rotation::truncate(&rels, gate, drained);
    }
    if !fold::has_pending(lane, &rels) {
        return Ok(0);
    }
    fold::check_tables()?;
    let mut published = lease.publish(rotation::wants_switch(&rels, gate));
    published.settle();
    let folded = fold::fold(lane, &lease, published.epoch - 1);
    Ok(i64::try_from(folded.deltas).unwrap_or(i64::MAX))
}

/// Notes an error where `counterx.workers` shows it, in a transaction of its own. Only the holder of
/// the lease writes to the lane's state: when somebody else has it by now, the note is left out, and
/// the log has to do.
pub fn note_error(lane: usize, rels: LaneRels, message: &str) {
    if Lease::try_take(rels).is_some() {
        fold::save_error(lane, message);
    }
}
