//! Reading: exact for the snapshot, at every isolation level.
//!
//! # How it works
//! With one snapshot: the lane's folded epoch (newest state), the counter's total (newest total),
//! and every log row of a later epoch; the late deltas; and what the own transaction has not
//! written yet. A fold moves rows from one side of that sum to the other in one transaction, so
//! whatever a snapshot sees of it, the sum is the same.
//!
//! # Invariants
//! - The gate is read after the snapshot was taken: no epoch that the snapshot sees is higher.
//! - Totals and state have one live row a key, the one of the highest `gen`; under a snapshot
//!   that holds dead versions back they are found from there without visiting those.
//! - The truncated-through epoch is read after the scan. If the snapshot still needed that epoch,
//!   rows may have been missed. The truncation waits for all snapshots of the primary, which need not
//!   look; for one of a standby without hot_standby_feedback nobody waits. A snapshot knows that it
//!   was taken on a standby, also when that has been promoted since.
//! - What the own transaction has changed by a counter's latest value (set, reset, drop) goes with
//!   that value alone. A snapshot taken before, such as that of the same statement or of an open
//!   cursor in READ COMMITTED, may see an older one: such a counter is read by its latest value.
//!   So is a bounded one whose changes such a snapshot does not bear: it would be beyond its bounds.
//! - Whoever reads in a SERIALIZABLE transaction locks the counter's page in the anchor
//!   relation *before* reading the gate. A writer inserts and then checks for that lock. So either
//!   the writer meets the lock, or the reader visits the writer's row.

use crate::pg::error::{raise, report};
use crate::pg::ports;
use crate::pg::room;
use crate::pg::scan::{Direction, IndexScan, Key, Row};
use crate::pg::snapshot::{self, LatestSnapshot, OwnRowsVisible};
use crate::pg::varlena::NameText;
use crate::read::lane::{self, LaneReader};
use crate::read::outrun;
use crate::store::catalog::{self, SharedRels};
use crate::store::columns;
use crate::store::since;
use crate::store::tables;
use crate::store::totals::TotalsByName;
use crate::transaction::notes;
use crate::transaction::pending;
use counterx_core::lane::{LANES, NameHash};
use counterx_core::names::NameRange;
use counterx_core::sums::Sums;
use counterx_core::tally::Tally;
use pgrx::{PgSqlErrorCode, pg_sys};

/// Reads one counter with the running query's snapshot.
pub fn tally(name: &[u8]) -> Tally {
    tally_at(name, snapshot::active_or_latest().as_ptr())
}

/// Reads one counter with this snapshot, which is active or registered.
pub fn tally_at(name: &[u8], snapshot: pg_sys::Snapshot) -> Tally {
    let own = pending::pending_tally(NameHash::of(name), name).unwrap_or_default();
    // SAFETY: the caller's snapshot is a live one.
    let command = unsafe { (*snapshot).curcid };
    let latest = || {
        let latest = LatestSnapshot::take();
        written_at(name, latest.as_ptr()) + own
    };
    if notes::was_changed_by_value_since(name, command) {
        return latest();
    }
    let tally = written_at(name, snapshot) + own;
    if outrun::is_beyond(name, tally, command) {
        return latest();
    }
    tally
}

/// Is this snapshot, which is active or registered, too old for what the transaction has done to a counter? Then the
/// counter is read by the latest one.
pub fn is_outrun(name: &[u8], snapshot: pg_sys::Snapshot) -> bool {
    // SAFETY: the caller's snapshot is a live one.
    let command = unsafe { (*snapshot).curcid };
    notes::was_changed_by_value_since(name, command)
        || (outrun::was_changed_since(name, command) && {
            let own = pending::pending_tally(NameHash::of(name), name).unwrap_or_default();
            outrun::is_out_of_bounds(name, written_at(name, snapshot) + own)
        })
}

/// What the latest value of a counter has on that of this snapshot.
fn since(name: &[u8], snapshot: pg_sys::Snapshot) -> Tally {
    let latest = LatestSnapshot::take();
    written_at(name, latest.as_ptr()) - written_at(name, snapshot)
}

/// The part of a counter that is not in the running transaction's memory.
pub fn written_at(name: &[u8], snapshot: pg_sys::Snapshot) -> Tally {
    written(name, snapshot, OwnRows::Visible)
}

/// Do the rows count that the running transaction has written?
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum OwnRows {
    /// From their insertion on.
    Visible,
    /// The snapshot hides them.
    Hidden,
}

/// The same, with or without the rows that the running transaction has written.
pub fn written(name: &[u8], snapshot: pg_sys::Snapshot, own: OwnRows) -> Tally {
    let hash = NameHash::of(name);
    let mut reader = Reader::open_with(Lanes::Of(&[hash]), snapshot, own);
    let mut tally = Tally::default();
    for lane in &reader.lanes {
        tally += lane.sum_of(&NameText::new(name), reader.logs_snapshot.as_ptr());
    }
    tally += reader.totals().get(name);
    late_of(
        &reader.shared,
        &NameText::new(name),
        reader.snapshot,
        |row| tally += tables::late_tally(row),
    );
    reader.finish();
    tally
}

/// Does a counter exist for others at this moment? What the running transaction has done does not count.
pub fn exists_for_others(name: &[u8]) -> bool {
    let latest = LatestSnapshot::take();
    // SAFETY: the snapshot is active as long as `latest` lives.
    let mut others = unsafe { OwnRowsVisible::hidden(latest.as_ptr()) };
    written(name, others.as_ptr(), OwnRows::Hidden).exists()
}

/// A snapshot that hides what the running transaction has written. In a serializable transaction, who reads
/// with it does not note that.
///
/// # Safety
/// As of [`OwnRowsVisible::hidden`].
pub unsafe fn hidden(snapshot: pg_sys::Snapshot) -> OwnRowsVisible {
    // SAFETY: the caller's promise.
    let others = unsafe { OwnRowsVisible::hidden(snapshot) };
    if ports::isolation_is_serializable() {
        others.quiet()
    } else {
        others
    }
}

/// The latest value of a counter, with what the running transaction has done, likewise.
pub fn latest_quietly(name: &[u8]) -> i128 {
    let latest = LatestSnapshot::take();
    // SAFETY: the snapshot is active as long as `latest` lives.
    let mut quiet = unsafe { OwnRowsVisible::same(latest.as_ptr()) }.quiet();
    tally_at(name, quiet.as_ptr()).value
}

/// What others have taken from a counter by deltas, and added to it, in transactions that have committed
/// and that this snapshot does not see.
///
/// # Safety
/// The snapshot is active or registered, and one of the running transaction's own.
pub unsafe fn unseen(name: &[u8], snapshot: pg_sys::Snapshot) -> (i128, i128) {
    let latest = LatestSnapshot::take();
    // SAFETY: the caller's promise; and `latest` is active. The gate is read after both were taken.
    unsafe {
        let (mut known, mut all) = (hidden(snapshot), hidden(latest.as_ptr()));
        let hashes = [NameHash::of(name)];
        // What the snapshot knows as folded, it sees; the rest is in the logs as long as it lives.
        let reader = Reader::open_with(Lanes::Of(&hashes), known.as_ptr(), OwnRows::Hidden);
        let (mut taken, mut added) = (0, 0);
        let text = NameText::new(name);
        for lane in &reader.lanes {
            for (snapshot, sign) in [(all.as_ptr(), 1), (known.as_ptr(), -1)] {
                lane.each_of(&text, snapshot, |row| {
                    let delta = tables::log_tally(row).value;
                    taken += sign * -delta.min(0);
                    added += sign * delta.max(0);
                });
            }
        }
        reader.finish();
        (taken, added)
    }
}

/// Which counters a [`Reader`] is for.
pub enum Lanes<'a> {
    /// Those with these hashes.
    Of(&'a [NameHash]),
    /// All.
    All,
}

/// The lanes of some counters, open for reading with one snapshot.
///
/// Open it before the totals are read: gates are locked before anything else. And
/// [finish](Self::finish) it when all is read.
pub struct Reader {
    pub(super) shared: SharedRels,
    pub(super) snapshot: pg_sys::Snapshot,
    /// The same snapshot, as the logs are read with it.
    pub(super) logs_snapshot: OwnRowsVisible,
    pub(super) lanes: Vec<LaneReader>,
}

/// Of so many names, serializable transactions lock each; beyond, all counters at once.
const MAX_NAME_LOCKS: usize = 64;

impl Reader {
    /// Opens the lanes. The snapshot is active or registered.
    pub fn open(lanes: Lanes, snapshot: pg_sys::Snapshot) -> Self {
        Self::open_with(lanes, snapshot, OwnRows::Visible)
    }

    fn open_with(lanes: Lanes, snapshot: pg_sys::Snapshot, own: OwnRows) -> Self {
        refuse_parallel_worker();
        let shared = catalog::shared();
        // SAFETY: the caller's snapshot is active or registered, or our copy of such a one.
        unsafe { since::check(snapshot) };
        let wanted = match lanes {
            Lanes::All => None,
            Lanes::Of(hashes) => Some(hashes),
        };
        // What escrow looks at does not make transactions depend on each other: see `bounds/levels.rs`.
        if own == OwnRows::Visible {
            lock_for_serializable(
                &shared,
                snapshot,
                wanted.filter(|hashes| hashes.len() <= MAX_NAME_LOCKS),
            );
        }
        let mut chosen = [wanted.is_none(); LANES];
        for hash in wanted.into_iter().flatten() {
            chosen[hash.lane()] = true;
        }
        let lanes = (0..LANES).filter(|&lane| chosen[lane]);
        Self {
            lanes: lane::open_lanes(lanes, &shared, snapshot),
            // SAFETY: the caller's snapshot is active or registered.
            logs_snapshot: unsafe {
                match own {
                    OwnRows::Visible => OwnRowsVisible::copy(snapshot),
                    OwnRows::Hidden => OwnRowsVisible::hidden(snapshot),
                }
            },
            shared,
            snapshot,
        }
    }

    /// The totals, for this reader's snapshot.
    pub fn totals(&self) -> TotalsByName {
        // SAFETY: whoever opened the reader keeps the snapshot.
        unsafe { TotalsByName::open(self.snapshot) }
    }

    /// All that is pending of the names in a range: logs, late deltas and the own transaction's.
    pub fn pending_in(&mut self, range: &NameRange) -> Sums {
        let mut sums = Sums::default();
        self.for_each_pending(range, |name, tally| room::granted(sums.add(name, tally)));
        sums
    }

    /// Visits each pending delta of the names in a range.
    pub fn for_each_pending(&mut self, range: &NameRange, mut visit: impl FnMut(&[u8], Tally)) {
        let snapshot = self.logs_snapshot.as_ptr();
        for lane in &self.lanes {
            lane.for_each(range, snapshot, |row| {
                visit(row.text(columns::log::NAME), tables::log_tally(row))
            });
        }
        self.for_each_late(|row| {
            let name = row.text(columns::late::NAME);
            if range.contains(name) {
                visit(name, tables::late_tally(row));
            }
        });
        pending::for_each_pending(|name, tally| {
            if range.contains(name) {
                visit(name, tally);
            }
        });
        for name in self.outrun() {
            if range.contains(&name) {
                visit(&name, since(&name, self.snapshot));
            }
        }
    }

    /// Counters of which this snapshot is too old for what the transaction has done.
    fn outrun(&self) -> Vec<Box<[u8]>> {
        // SAFETY: whoever opened the reader keeps the snapshot.
        let command = unsafe { (*self.snapshot).curcid };
        let mut names = notes::changed_by_value_since(command);
        let noted = names.len();
        for name in outrun::changed_since(command) {
            let own = pending::pending_tally(NameHash::of(&name), &name).unwrap_or_default();
            if names[..noted].binary_search(&name).is_err()
                && outrun::is_out_of_bounds(&name, written_at(&name, self.snapshot) + own)
            {
                names.push(name);
            }
        }
        names
    }

    /// All that is pending of these names, which are in ascending order, each once.
    pub fn pending_of(&mut self, names: &[Vec<u8>]) -> Sums {
        let mut sums = Sums::default();
        let mut of_lane: [Vec<&[u8]>; LANES] = Default::default();
        for name in names {
            room::push(&mut of_lane[NameHash::of(name).lane()], &**name);
        }
        let snapshot = self.logs_snapshot.as_ptr();
        for lane in &self.lanes {
            lane.add_sums_of(&of_lane[lane.lane], snapshot, &mut sums);
        }
        let wanted = |name: &[u8]| names.binary_search_by(|known| (**known).cmp(name)).is_ok();
        self.for_each_late(|row| {
            let name = row.text(columns::late::NAME);
            if wanted(name) {
                room::granted(sums.add(name, tables::late_tally(row)));
            }
        });
        pending::for_each_pending(|name, tally| {
            if wanted(name) {
                room::granted(sums.add(name, tally));
            }
        });
        for name in self.outrun() {
            if wanted(&name) {
                room::granted(sums.add(&name, since(&name, self.snapshot)));
            }
        }
        sums
    }

    fn for_each_late(&self, visit: impl FnMut(&Row)) {
        tables::scan_late(&self.shared, self.snapshot, visit);
    }

    /// To be called when all is read.
    ///
    /// # Errors
    /// Raises 40001 when something was truncated meanwhile that the snapshot needs.
    pub fn finish(self) {
        // SAFETY: whoever opened the reader keeps the snapshot.
        if !unsafe { (*self.snapshot).takenDuringRecovery } {
            return;
        }
        for lane in &self.lanes {
            lane.check_nothing_was_truncated();
        }
    }
}

/// The transaction's own increments are in the leader's memory: a worker would miss them.
fn refuse_parallel_worker() {
    if ports::is_parallel_worker() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INVALID_TRANSACTION_STATE,
                "cannot read counters in a parallel worker",
            )
            .set_hint("Mark the calling function PARALLEL RESTRICTED."),
        );
    }
}

/// See the module's invariants. Without names, all counters are locked.
fn lock_for_serializable(
    shared: &SharedRels,
    snapshot: pg_sys::Snapshot,
    names: Option<&[NameHash]>,
) {
    // SAFETY: the snapshot is the caller's, who reads with it.
    if !ports::isolation_is_serializable() || unsafe { snapshot::is_quiet(snapshot) } {
        return;
    }
    let anchor = tables::open(shared.anchor);
    // SAFETY: the relation is open, the snapshot is the transaction's.
    unsafe {
        let Some(names) = names else {
            return ports::predicate_lock_relation(anchor.as_ptr(), snapshot);
        };
        for hash in names {
            ports::predicate_lock_page(anchor.as_ptr(), hash.anchor_page(), snapshot);
        }
    }
}

/// Visits the late deltas of one counter.
pub(super) fn late_of(
    shared: &SharedRels,
    name: &NameText,
    snapshot: pg_sys::Snapshot,
    mut visit: impl FnMut(&Row),
) {
    let late = tables::open(shared.late);
    if late.blocks() == 0 {
        return;
    }
    let index = tables::index_of(&late, &columns::late::KEY);
    // SAFETY: the caller's snapshot outlives this call.
    let mut scan = unsafe { IndexScan::new(&late, &index, snapshot, 1) };
    scan.seek(&[Key::text_eq(1, name.datum())]);
    while let Some(row) = scan.next(Direction::Forward) {
        visit(&row);
    }
}
