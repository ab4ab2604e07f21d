//! Keeping streams in order: what was read goes, and who does not read is lost.
//!
//! # Invariants
//! - Nobody is waited for, neither consumers nor those who read changes: what is in use is left for the next time.
//! - Through which fold changes are gone is written before they are.

use crate::pg::clock;
use crate::pg::compat;
use crate::pg::relation::{ACCESS_EXCLUSIVE, ROW_EXCLUSIVE, Relation};
use crate::pg::scan::TableScan;
use crate::pg::snapshot::{self, LatestSnapshot};
use crate::store::as_owner::{AsOwner, Bytes};
use crate::store::catalog::{self, SharedRels};
use crate::store::columns::{alert_lane, alert_state};
use crate::store::gate::Lease;
use crate::store::ours::AtWork;
use crate::store::shape;
use crate::store::state;
use crate::store::stream::{self, Changes, Cursor, Segment, Stream, Why};
use crate::store::tables;
use counterx_core::gate::Side;
use counterx_core::lane::LANES;
use counterx_core::streams::Position;
use pgrx::pg_sys;
use std::cell::RefCell;
use std::ops::ControlFlow;

/// A table is left for the other one from this size on.
const LARGE: u64 = 4 * 1024 * 1024;

/// Or when its first change is so old, in microseconds: so that those of quiet counters go as well.
const OLD: i64 = 60 * 1_000_000;

thread_local! {
    /// The alerts that there were when states were last looked at whose alert is gone, by lane.
    static ALERTS: RefCell<[Option<Vec<i64>>; LANES]> = const { RefCell::new([const { None }; LANES]) };
}

/// One step for a lane, in a READ COMMITTED transaction of its own. Does nothing where somebody folds.
pub fn keep(lane: usize) {
    let shared = catalog::shared();
    if !stream::may_be_any(&shared) && is_clean(lane) {
        return;
    }
    let rels = catalog::lane(lane);
    if Lease::try_take(rels).is_none() {
        return;
    }
    {
        let latest = LatestSnapshot::take();
        // SAFETY: the snapshot is active.
        let (streams, cursors) = unsafe {
            (
                stream::streams(&shared, latest.as_ptr()),
                stream::cursors(Some(lane), latest.as_ptr()),
            )
        };
        let folds = state::current(lane, &shared).folds;
        for cursor in &cursors {
            let of = streams.iter().find(|stream| stream.name == cursor.stream);
            if let Some(stream) = of
                && cursor.is_live(stream::cell(lane))
            {
                see_to(stream, cursor, folds, &latest);
            }
        }
    }
    let latest = LatestSnapshot::take();
    // SAFETY: the snapshot is active.
    let (streams, mut cursors) = unsafe {
        (
            stream::streams(&shared, latest.as_ptr()),
            stream::cursors(Some(lane), latest.as_ptr()),
        )
    };
    let cell = stream::cell(lane);
    cursors.retain(|cursor| {
        cursor.is_live(cell) && streams.iter().any(|stream| stream.name == cursor.stream)
    });
    reclaim(lane, &cursors);
    forget_alerts(lane, &shared, &latest);
}

/// Has a lane no changes at all?
pub fn is_clean(lane: usize) -> bool {
    let is_empty = |&side: &Side| tables::open(stream::changes_of(lane, side)).blocks() == 0;
    Side::BOTH.iter().all(is_empty)
}

/// What a cursor that is behind comes to.
enum Fate {
    /// What it has not read is too old.
    Lost,
    /// Nothing is its own up to there.
    MovedTo(Position),
}

/// Looks whether a stream has changes that were not read for too long.
fn see_to(stream: &Stream, cursor: &Cursor, folds: i64, latest: &LatestSnapshot) {
    let oldest = stream.keep.before(clock::now());
    let changes = Changes::open(cursor.lane);
    let mut reached = None;
    let mut fate = None;
    // SAFETY: the snapshot is active.
    let flow = unsafe {
        changes.visit_after(cursor.position, folds, latest.as_ptr(), |row| {
            let is_old = stream::at(row) < oldest;
            if !is_old {
                fate = reached.map(Fate::MovedTo);
                return ControlFlow::Break(());
            }
            if stream::is_of(row, &stream.name, &stream.prefix) {
                fate = Some(Fate::Lost);
                return ControlFlow::Break(());
            }
            reached = Some(stream::position(row));
            ControlFlow::Continue(())
        })
    };
    if flow.is_continue() && reached.is_some() {
        fate = Some(Fate::MovedTo(Position::end_of(folds)));
    }
    drop(changes);
    match fate {
        None => {}
        Some(Fate::Lost) => {
            lose(
                cursor,
                "changes were not read for longer than they are kept",
            );
        }
        Some(Fate::MovedTo(position)) => {
            set(cursor, position, None);
        }
    }
}

/// A consumer is told that it has missed something, from the end of the running transaction on, which holds the lease.
/// False: it is at work just now, and may come to be where it has missed nothing. So what it needs has to be there.
pub fn lose(cursor: &Cursor, reason: &'static str) -> bool {
    set(cursor, cursor.position, Some(reason))
}

/// Changes a cursor, if nobody else does or has. False: somebody does.
fn set(cursor: &Cursor, to: Position, lost_reason: Option<&'static str>) -> bool {
    // Who drops all counters has it locked, and waits for our lease.
    let table = catalog::relation_of("cursor");
    if Relation::open_if_free(table, ROW_EXCLUSIVE).is_none() {
        return false;
    }
    // One that is locked has a consumer at work.
    let set = AsOwner::enter().run(
        "UPDATE ONLY counterx.cursor c SET fold = $5, seq = $6, lost_reason = $7 \
         FROM (SELECT k.stream, k.lane FROM ONLY counterx.cursor k \
               WHERE k.stream OPERATOR(pg_catalog.=) $1 AND k.lane OPERATOR(pg_catalog.=) $2 \
                 AND k.fold OPERATOR(pg_catalog.=) $3 AND k.seq OPERATOR(pg_catalog.=) $4 AND k.lost_reason IS NULL \
               FOR UPDATE SKIP LOCKED) k \
         WHERE c.stream OPERATOR(pg_catalog.=) k.stream AND c.lane OPERATOR(pg_catalog.=) k.lane",
        &[
            Bytes(&cursor.stream).into(),
            (cursor.lane as i32).into(),
            cursor.position.fold.into(),
            cursor.position.seq.into(),
            to.fold.into(),
            to.seq.into(),
            lost_reason.into(),
        ],
    );
    set > 0
}

/// Empties the table that is not written to, if nobody needs it any more; else has the lane change to it, if it is empty
/// and that is worth it. `live`: cursors that have missed nothing.
fn reclaim(lane: usize, live: &[Cursor]) {
    let side = stream::cell(lane).side;
    if let Some(inactive) = Segment::open(lane, side.other()) {
        let last = inactive.last_fold();
        drop(inactive);
        let is_passed =
            |last| (live.iter()).all(|cursor| cursor.position >= Position::end_of(last));
        if last.is_none_or(is_passed) {
            empty(lane, side.other(), last);
        }
    } else if let Some(active) = Segment::open(lane, side) {
        let is_old = (active.first_at()).is_none_or(|at| at < clock::now().saturating_sub(OLD));
        if is_old || live.is_empty() || active.bytes() >= LARGE {
            stream::set_side(lane, side.other());
        }
    }
}

/// Empties a table that nobody uses, of which folds through this one are done with.
fn empty(lane: usize, side: Side, last: Option<i64>) {
    let oid = stream::changes_of(lane, side);
    let Some(table) = Relation::open_if_free(oid, ACCESS_EXCLUSIVE) else {
        return;
    };
    // SAFETY: the relation is open. A higher count than ours is a scan of this very session.
    let in_use = unsafe { (*table.as_ptr()).rd_refcnt } > 1;
    // Triggers of others may be those of a tool that copies the table.
    if in_use || shape::check_foldable(&table).is_err() {
        return;
    }
    if let Some(last) = last {
        stream::note_gone(lane, last, Why::Read);
    }
    failpoint!("stream.gone_noted");
    let _at_work = AtWork::begin();
    // SAFETY: open, and locked exclusively.
    unsafe { compat::truncate(table.as_ptr(), oid) };
    failpoint!("stream.emptied");
}

/// Removes states of alerts that are gone: who drops an alert leaves them to whoever holds the lease.
fn forget_alerts(lane: usize, shared: &SharedRels, latest: &LatestSnapshot) {
    // SAFETY: the snapshot is active.
    let alerts = unsafe { stream::alerts(shared, latest.as_ptr()) };
    let mut ids: Vec<i64> = alerts.iter().map(|alert| alert.id).collect();
    ids.sort_unstable();
    if ALERTS.with_borrow(|known| known[lane].as_ref() == Some(&ids)) {
        return;
    }
    let is_gone = |id: i64| ids.binary_search(&id).is_err();
    remove(
        lane,
        "alert_state",
        (alert_state::ALERT, alert_state::LANE),
        is_gone,
    );
    remove(
        lane,
        "alert_lane",
        (alert_lane::ALERT, alert_lane::LANE),
        is_gone,
    );
    ALERTS.with_borrow_mut(|known| known[lane] = Some(ids));
}

fn remove(lane: usize, table: &str, (alert, of): (usize, usize), is_gone: impl Fn(i64) -> bool) {
    let oid = catalog::relation_of(table);
    if tables::open(oid).blocks() == 0 {
        return;
    }
    let table = Relation::open_until_commit(oid, ROW_EXCLUSIVE).unwrap_or_else(|| catalog::gone());
    if shape::check_foldable(&table).is_err() {
        return;
    }
    // SAFETY: the snapshot is a static.
    let mut scan = unsafe { TableScan::new(&table, snapshot::self_snapshot()) };
    while let Some(row) = scan.next() {
        pgrx::check_for_interrupts!();
        let is_ours = row.get(of).is_some_and(|datum| datum.value() == lane);
        if is_ours && is_gone(row.int8(alert)) {
            let mut tid = row.tid();
            // SAFETY: a visible row, which only the holder of this lane's lease changes.
            unsafe { pg_sys::simple_heap_delete(table.as_ptr(), &mut tid) };
        }
    }
}
