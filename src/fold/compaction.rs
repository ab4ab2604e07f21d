//! What a worker's tick and `counterx.compact()` do with one lane: in which order epochs are
//! published, awaited, folded and truncated.

use crate::fold::beginnings;
use crate::fold::folding::{self, LeftOut};
use crate::fold::rotation::{self, Drained};
use crate::fold::sealing::{self, Seal, Sealing};
use crate::fold::stream;
use crate::fold::stream_upkeep;
use crate::pg::ports;
use crate::pg::standby;
use crate::store::catalog::{self, LaneRels};
use crate::store::gate::{self, Lease, Published};
use crate::store::pending;
use crate::store::shape::Refusal;
use crate::store::state;
use counterx_core::gate::Side;
use counterx_core::lane::LANES;
use counterx_core::schedule::Folded;
use pgrx::pg_sys;
use std::cell::Cell;
use std::thread::LocalKey;

/// What a worker remembers of a lane between its ticks. It is lost with the worker, which is right: the next one
/// publishes anew and waits.
#[derive(Default)]
pub struct LaneMemory {
    /// The lane's gate.
    gate: pg_sys::Oid,
    published: Option<Published>,
    drained: Option<Drained>,
    folded: Folded,
    /// So many folds have failed in the midst of their history since one was committed.
    failures_in_history: u32,
    /// Or of what streams are told.
    failures_in_streams: u32,
}

/// After so many failures without a fold that is committed, one leaves out what fails: what fails by chance does not
/// fail so often. Each kind is counted by itself, as what fails in turn would never be left out. Alerts are left out
/// after as many again without changes for streams: nobody is told of a firing that was not judged.
const MOST_FAILURES: u32 = 3;

/// The same of folds by hand, as sessions are short.
const MOST_FAILURES_BY_HAND: u32 = 2;

impl LaneMemory {
    /// What is known of a lane of another extension, which was dropped, says nothing of this one.
    fn keep_to(&mut self, rels: &LaneRels) {
        if self.gate != rels.gate {
            *self = Self {
                gate: rels.gate,
                ..Self::default()
            };
        }
    }

    /// So many pending deltas start a fold before its time, where the setting says `threshold`.
    pub fn early_at(&self, threshold: u64) -> u64 {
        self.folded.early_at(threshold)
    }

    /// Have the writers of what was published ended, so that the lane can be folded? Does not wait.
    pub fn is_settled(&mut self) -> bool {
        (self.published.as_mut()).is_some_and(Published::is_settled)
    }

    /// A fold has failed. Returns what could not be written, once more, so that the next one leaves it out.
    pub fn after_failure(&mut self) -> LeftOut {
        let history = u32::from(beginnings::take_failure());
        let streams = u32::from(stream::take_failure());
        *self = Self {
            gate: self.gate,
            failures_in_history: self.failures_in_history + history,
            failures_in_streams: self.failures_in_streams + streams,
            ..Self::default()
        };
        stream::forget_hints();
        self.left_out()
    }

    /// A fold is committed.
    pub fn after_commit(&mut self) {
        self.failures_in_history = 0;
        self.failures_in_streams = 0;
        stream::release_hints();
    }

    fn left_out(&self) -> LeftOut {
        LeftOut {
            history: self.failures_in_history >= MOST_FAILURES,
            streams: self.failures_in_streams >= MOST_FAILURES,
            alerts: self.failures_in_streams >= 2 * MOST_FAILURES,
        }
    }

    /// Another worker has the lane from now on. What an inactive log waits for stays known, as it is not truncated before
    /// one that knows it has waited for long enough: where a lane goes to and fro, nobody else would ever be that one.
    pub fn give_up(&mut self) {
        *self = Self {
            gate: self.gate,
            drained: self.drained.take(),
            ..Self::default()
        };
    }

    /// A truncation has failed. The published epoch is of a transaction that was committed before, so
    /// it stays known: forgotten each time, it would never be folded.
    pub fn forget_drained(&mut self) {
        self.drained = None;
    }
}

/// What became of a tick.
pub enum Tick {
    /// Finished epochs were folded: all that was committed before the last one was published.
    Folded,
    /// An epoch was published: what was written before is folded when its writers have ended.
    Published,
    /// They have not.
    Waiting,
    /// Nothing is pending.
    Idle,
    /// Somebody else is folding the lane.
    Busy,
}

/// One step for one lane, without waiting for anybody. The caller is in a READ COMMITTED
/// transaction of its own, and commits it. If that fails, it tells `memory` by `after_failure`; and by `after_commit`, if a
/// fold is committed.
///
/// # Errors
/// [`Refusal`] when the tables of totals and states are such that nothing is to be folded.
pub fn tick(
    lane: usize,
    rels: LaneRels,
    memory: &mut LaneMemory,
    clock_is_trusted: bool,
) -> Result<Tick, Refusal> {
    let Some(lease) = Lease::try_take(rels) else {
        return Ok(Tick::Busy);
    };
    memory.keep_to(&rels);
    let gate = folding::sound_gate(lane, &lease);
    if !pending::has_pending(lane, &rels) {
        match sealing::of(lane, clock_is_trusted) {
            Sealing::Due => {}
            Sealing::NotDue | Sealing::Leaps => return Ok(Tick::Idle),
        }
    }
    // The list of writers says who may write rows of the epochs before its own, whoever has published
    // since: `compact()` does so without the lease, and may wait then for as long as it likes. Who has
    // folded since has left nothing of them.
    let left = |known: &Published| {
        known.epoch <= gate.epoch && known.epoch - 1 > state::folded_epoch(lane)
    };
    // Should this transaction fail, the caller forgets what it knows.
    let Some(mut published) = memory.published.take().filter(left) else {
        memory.published = Some(lease.publish(rotation::wants_switch(&rels, gate)));
        return Ok(Tick::Published);
    };
    if !published.is_settled() {
        memory.published = Some(published);
        return Ok(Tick::Waiting);
    }
    if let Err(refusal) = folding::check_tables() {
        memory.published = Some(published);
        return Err(refusal);
    }
    let seal = Seal {
        clock: published.clock,
        is_trusted: clock_is_trusted,
    };
    let left_out = memory.left_out();
    memory.folded = folding::fold(lane, &lease, published.epoch - 1, seal, left_out);
    Ok(Tick::Folded)
}

/// Truncates the lane's inactive log if nobody needs it any more. In a transaction of its own; if
/// that fails, the caller has `memory` forget what was drained. True when it was done.
pub fn reclaim(lane: usize, rels: LaneRels, memory: &mut LaneMemory) -> bool {
    let Some(lease) = Lease::try_take(rels) else {
        return false;
    };
    memory.keep_to(&rels);
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
        .is_some_and(|drained| rotation::truncate(&lease, gate, drained))
}

/// A lane's deltas that were committed before somebody asked for them to be folded.
pub struct Due {
    lane: usize,
    published: Option<Published>,
    clock_is_trusted: bool,
}

impl Due {
    /// All that is pending in a lane now.
    pub fn now(lane: usize) -> Self {
        let rels = catalog::lane(lane);
        let gate = gate::open(lane);
        // To publish needs no lease as long as the log stays the same one: whoever folds finds a gate that
        // is not the one that he has published, and begins anew.
        let is_due = pending::has_pending(lane, &rels) || sealing::of(lane, false) == Sealing::Due;
        let published = is_due.then(|| gate::publish(&rels, &gate, false));
        Self {
            lane,
            published,
            clock_is_trusted: false,
        }
    }

    /// The same of who says that the clock is right: the lane is sealed, whether anything is pending or not.
    pub fn seal(lane: usize) -> Self {
        let rels = catalog::lane(lane);
        let gate = gate::open(lane);
        Self {
            lane,
            published: Some(gate::publish(&rels, &gate, false)),
            clock_is_trusted: true,
        }
    }

    /// No delta: there may be a log to be truncated all the same.
    pub fn nothing(lane: usize) -> Self {
        Self {
            lane,
            published: None,
            clock_is_trusted: false,
        }
    }

    /// Waits until all have ended who may still write such a delta. It is done without any lock: whoever
    /// is waited for may be waiting for anything.
    pub fn wait(&mut self) {
        if let Some(published) = &mut self.published {
            published.settle();
        }
    }

    /// Folds them, and returns how many. Waits for others who fold the lane. An inactive log that was
    /// drained before is truncated at the very end of the transaction.
    pub fn fold(self) -> i64 {
        let rels = catalog::lane(self.lane);
        let Some(lease) = Lease::take(rels) else {
            return 0;
        };
        let gate = folding::sound_gate(self.lane, &lease);
        // Before the fold, as a fold that is not committed says nothing of others' snapshots.
        if let Some(drained) = rotation::drained(self.lane, &rels, gate) {
            truncate_at_commit(Inactive {
                lane: self.lane,
                gate: rels.gate,
                active: gate.side,
                drained,
            });
        }
        let Some(published) = self.published else {
            return 0;
        };
        // No wider than needed: of two who fold, the second has nothing left to do.
        let is_folded = state::folded_epoch(self.lane) >= published.epoch - 1;
        if is_folded && !self.clock_is_trusted {
            return 0;
        }
        if let Err(refusal) = folding::check_tables() {
            refusal.raise()
        }
        let seal = Seal {
            clock: published.clock,
            is_trusted: self.clock_is_trusted,
        };
        // What this session could not write before. (What is left out of history is left out by workers alone.)
        let failures = FAILURES_IN_STREAMS.get() + u32::from(stream::take_failure());
        FAILURES_IN_STREAMS.set(failures);
        let left_out = LeftOut {
            streams: failures >= MOST_FAILURES_BY_HAND,
            alerts: failures >= 2 * MOST_FAILURES_BY_HAND,
            ..LeftOut::default()
        };
        note(&WRITTEN_AT);
        let folded = folding::fold(self.lane, &lease, published.epoch - 1, seal, left_out);
        HAS_FOLDED.set(true);
        if rotation::wants_switch(&rels, gate) {
            lease.publish(true);
        }
        i64::try_from(folded.deltas).unwrap_or(i64::MAX)
    }
}

/// A log to be truncated when the transaction commits.
#[derive(Clone, Copy)]
struct Inactive {
    lane: usize,
    /// The lane's gate: the extension may be another one by then.
    gate: pg_sys::Oid,
    /// The log that was active when it was found.
    active: Side,
    drained: Drained,
}

thread_local! {
    static INACTIVE: Cell<[Option<Inactive>; LANES]> = const { Cell::new([None; LANES]) };
    /// There are some: most transactions end with a look at this alone.
    static ANY_INACTIVE: Cell<bool> = const { Cell::new(false) };
    /// The level of the outermost (sub)transaction that has folded by hand; 0: none has.
    static FOLDED_AT: Cell<u32> = const { Cell::new(0) };
    /// That of the outermost one in which a fold has written, which is not committed; 0: none has.
    static WRITTEN_AT: Cell<u32> = const { Cell::new(0) };
    /// The running transaction has folded some lane to the end.
    static HAS_FOLDED: Cell<bool> = const { Cell::new(false) };
    /// So many folds of this session by hand have failed in the midst of what streams are told, since it has committed
    /// one.
    static FAILURES_IN_STREAMS: Cell<u32> = const { Cell::new(0) };
}

fn truncate_at_commit(inactive: Inactive) {
    let mut all = INACTIVE.get();
    all[inactive.lane] = Some(inactive);
    INACTIVE.set(all);
    ANY_INACTIVE.set(true);
}

/// Notes the running (sub)transaction, if none further out is known.
fn note(outermost: &'static LocalKey<Cell<u32>>) {
    let level = ports::xact_nest_level();
    let known = outermost.get();
    outermost.set(if known == 0 { level } else { known.min(level) });
}

/// The running (sub)transaction folds by hand.
pub fn note_folding() {
    note(&FOLDED_AT);
}

/// Has the running transaction folded by hand, and so keeps others from folding until it ends?
pub fn has_folded() -> bool {
    FOLDED_AT.get() != 0
}

/// Does the running transaction see what a fold of its own has written? Others do not, and it may come to nothing.
pub fn sees_own_fold() -> bool {
    WRITTEN_AT.get() != 0
}

/// The transaction is about to commit, and does nothing else any more: a log that is locked now is locked
/// for a moment. Nobody is waited for.
pub fn before_commit() {
    // A commit that waits for a standby would have all wait who read or count. Another time: workers and
    // `compact_in_steps()` do not wait.
    let is_any = ANY_INACTIVE.get() || stream_upkeep::has_full();
    if !is_any || standby::commit_may_wait() {
        return;
    }
    stream_upkeep::before_commit();
    for inactive in INACTIVE.take().into_iter().flatten() {
        // Those who have dropped the extension since have nothing to be truncated.
        let Ok(rels) = catalog::try_lane(inactive.lane) else {
            continue;
        };
        if rels.gate != inactive.gate {
            continue;
        }
        let Some(lease) = Lease::try_take(rels) else {
            continue;
        };
        let gate = lease.gate();
        // Somebody has changed logs: what was inactive is written to.
        if gate.side == inactive.active {
            rotation::truncate(&lease, gate, inactive.drained);
        }
    }
}

/// The subtransaction at this level was released.
pub fn release_subxact(level: u32) {
    for outermost in [&FOLDED_AT, &WRITTEN_AT] {
        if outermost.get() >= level {
            outermost.set(level - 1);
        }
    }
}

/// The subtransaction at this level was rolled back. That a log is drained stays true. Neither allocates
/// nor fails.
pub fn abort_subxact(level: u32) {
    for outermost in [&FOLDED_AT, &WRITTEN_AT] {
        if outermost.get() >= level {
            outermost.set(0);
        }
    }
}

/// The transaction has ended. Neither allocates nor fails.
pub fn after_end(is_committed: bool) {
    if HAS_FOLDED.replace(false) && is_committed {
        FAILURES_IN_STREAMS.set(0);
    }
    if ANY_INACTIVE.replace(false) {
        INACTIVE.set([None; LANES]);
    }
    FOLDED_AT.set(0);
    WRITTEN_AT.set(0);
    stream_upkeep::after_end();
}

/// Notes an error where `counterx.workers` shows it, in a transaction of its own. Only the holder of
/// the lease writes to the lane's state: when somebody else has it by now, the note is left out, and
/// the log has to do.
pub fn note_error(lane: usize, rels: LaneRels, message: &str) {
    if Lease::try_take(rels).is_some() {
        state::save_error(lane, message);
    }
}
