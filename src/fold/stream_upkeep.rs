//! Keeping streams in order: what was read goes, and who does not read is lost.
//!
//! # Invariants
//! - Nobody is waited for, neither consumers nor those who read changes: what is in use is left for the next time.
//! - Through which fold changes are gone is written before they are.
//! - That is so at once, whatever becomes of the transaction. So who has passed changes is asked by what is committed: what
//!   this transaction has moved itself may be rolled back. Who is moved on has what he has passed emptied by a later one.

use crate::fold::way;
use crate::pg::clock;
use crate::pg::compat;
use crate::pg::error::log;
use crate::pg::relation::{ACCESS_EXCLUSIVE, ROW_EXCLUSIVE, Relation};
use crate::pg::scan::TableScan;
use crate::pg::snapshot::{self, LatestSnapshot, OwnRowsVisible};
use crate::pg::standby;
use crate::settings;
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
use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;

/// A table is left for the other one from this size on.
const LARGE: u64 = 4 * 1024 * 1024;

/// Or when its first change is so old, in microseconds: so that those of quiet counters go as well.
const OLD: i64 = 60 * 1_000_000;

thread_local! {
    /// The alerts that there were when states were last looked at whose alert is gone, by lane.
    static ALERTS: RefCell<[Option<Vec<i64>>; LANES]> = const { RefCell::new([const { None }; LANES]) };
    /// Lanes whose table is to be left for the other one when the transaction commits, a bit for each.
    static FULL: Cell<u32> = const { Cell::new(0) };
    /// Lanes of which it was said that changes are left out.
    static LEFT_OUT: Cell<u32> = const { Cell::new(0) };
}

/// The size from which on a lane's table is left for its other one.
fn limit() -> u64 {
    settings::stream_max_size() / 32
}

/// Is this the size of a table that nothing more is written to?
pub fn is_beyond_limit(bytes: u64) -> bool {
    bytes > 2 * limit()
}

/// There is no room for what a fold of this number writes, or for more of it: streams have missed it.
pub fn leave_out(lane: usize, number: i64) {
    stream::note_gone(lane, number, Why::Size);
    let said = LEFT_OUT.get();
    LEFT_OUT.set(said | 1 << lane);
    if said & 1 << lane == 0 {
        log(format!(
            "counterx: changes of lane {lane} take more than counterx.stream_max_size allows, and cannot be removed; further ones are left out, also for logical decoding"
        ));
    }
}

fn active_size(lane: usize) -> u64 {
    Segment::open(lane, stream::cell(lane).side).map_or(0, |active| active.bytes())
}

/// May a fold write to the lane's table without more ado?
pub fn has_room(lane: usize) -> bool {
    let has_room = active_size(lane) < limit();
    if has_room {
        LEFT_OUT.set(LEFT_OUT.get() & !(1 << lane));
    }
    has_room
}

/// Sees to it that a fold of this number finds room, where it has none at once. `live`: the cursors in the lane that are not lost. Nobody is waited
/// for: consumers that are behind are lost, where there is no room. False: there is none whatever is done, and nothing
/// is to be written.
///
/// A consumer that is at work may read what is there, and come to stand before this very fold. So who is behind and at
/// work is spared as long as there is some room, and passed over then: he has missed something, or he has read it all.
pub fn make_room(
    lane: usize,
    number: i64,
    streams: &[Stream],
    live: &mut Vec<Cursor>,
    latest: &LatestSnapshot,
) -> bool {
    let side = stream::cell(lane).side;
    let Some(inactive) = Segment::open(lane, side.other()) else {
        stream::set_side(lane, side.other());
        failpoint!("stream.switched");
        return true;
    };
    let last = inactive.last_fold();
    drop(inactive);
    let is_full = is_beyond_limit(active_size(lane));
    let mut why = Why::Read;
    if let Some(last) = last {
        let is_behind = |cursor: &Cursor| cursor.position < Position::end_of(last);
        pass_over(lane, streams, live, last, latest);
        live.retain(|cursor| !(is_behind(cursor) && lose(cursor, Why::Size.reason())));
        // Who was moved or lost just now is not yet so, and the next fold finds him there: as long as there is some room.
        let committed = committed_live(lane, &catalog::shared(), latest);
        if live.iter().chain(&committed).any(is_behind) {
            if !is_full {
                return true;
            }
            why = Why::Size;
        }
    }
    // Whoever folds by hand may keep his transaction open, and so those waiting who read: unless somebody else would
    // miss something, it is done at its end.
    let is_now = way::is_worker() || (is_full && !standby::commit_may_wait());
    if !is_now {
        FULL.set(FULL.get() | 1 << lane);
    } else if empty(lane, side.other(), last, why) {
        // Should this be rolled back, what is there is gone all the same, and what follows is above it.
        stream::set_side(lane, side.other());
        failpoint!("stream.switched");
        return true;
    }
    if is_full {
        leave_out(lane, number);
    }
    !is_full
}

/// Moves those on who are behind, but have nothing of their own in the table that is not written to, whose last fold
/// this is.
fn pass_over(
    lane: usize,
    streams: &[Stream],
    live: &mut [Cursor],
    last: i64,
    latest: &LatestSnapshot,
) {
    let end = Position::end_of(last);
    let of = |cursor: &Cursor| streams.iter().find(|stream| stream.name == cursor.stream);
    // Who has missed something stays behind it.
    let cell = stream::cell(lane);
    let mut quiet: Vec<(usize, &Stream)> = (live.iter().enumerate())
        .filter(|(_, cursor)| cursor.is_live(cell) && cursor.position < end)
        .filter_map(|(at, cursor)| Some((at, of(cursor)?)))
        .collect();
    let Some(first) = quiet.iter().map(|&(at, _)| live[at].position).min() else {
        return;
    };
    let changes = Changes::open(lane);
    // SAFETY: the snapshot is active.
    let _ = unsafe {
        changes.visit_after(first, last, latest.as_ptr(), |row| {
            let position = stream::position(row);
            quiet.retain(|&(at, stream)| {
                position <= live[at].position || !stream::is_of(row, &stream.name, &stream.prefix)
            });
            if quiet.is_empty() {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })
    };
    drop(changes);
    for (at, _) in quiet {
        if set(&live[at], end, None) {
            live[at].position = end;
        }
    }
}

/// Will the end of the running transaction leave a table for the other one?
pub fn has_full() -> bool {
    FULL.get() != 0
}

/// The transaction, which has folded by hand, is about to commit: tables that are full are left for the other ones, if
/// all have passed what is in these. Nobody is waited for.
pub fn before_commit() {
    let full = FULL.take();
    for lane in (0..LANES).filter(|lane| full & 1 << lane != 0) {
        // Those who have dropped the extension since have nothing to be emptied.
        let Ok(rels) = catalog::try_lane(lane) else {
            continue;
        };
        if Lease::try_take(rels).is_none() {
            continue;
        }
        let latest = LatestSnapshot::take();
        let live = committed_live(lane, &catalog::shared(), &latest);
        let side = stream::cell(lane).side;
        if empty_if_passed(lane, side.other(), &live) {
            stream::set_side(lane, side.other());
        }
    }
}

/// The transaction has ended. Neither allocates nor fails.
pub fn after_end() {
    FULL.set(0);
}

/// The cursors in a lane that have missed nothing, where they are without what the running transaction has done, for
/// upkeep or as a consumer.
fn committed_live(lane: usize, shared: &SharedRels, latest: &LatestSnapshot) -> Vec<Cursor> {
    // SAFETY: the snapshot is active, and so longer than the copy.
    let mut cursors = unsafe {
        let mut committed = OwnRowsVisible::hidden(latest.as_ptr());
        let streams = stream::streams(shared, committed.as_ptr());
        stream::cursors_in(lane, &streams, committed.as_ptr())
    };
    let cell = stream::cell(lane);
    cursors.retain(|cursor| cursor.is_live(cell));
    cursors
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
            let streams = stream::streams(&shared, latest.as_ptr());
            let cursors = stream::cursors_in(lane, &streams, latest.as_ptr());
            (streams, cursors)
        };
        let folds = state::current(lane, &shared).folds;
        let inactive = Segment::open(lane, stream::cell(lane).side.other());
        let last = inactive.and_then(|inactive| inactive.last_fold());
        for cursor in &cursors {
            let of = streams.iter().find(|stream| stream.name == cursor.stream);
            if let Some(stream) = of
                && cursor.is_live(stream::cell(lane))
            {
                let holds = last.is_some_and(|last| cursor.position < Position::end_of(last));
                see_to(stream, cursor, (folds, holds), &latest);
            }
        }
    }
    let latest = LatestSnapshot::take();
    reclaim(lane, &committed_live(lane, &shared, &latest));
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

/// Looks whether a stream has changes that were not read for too long, of so many folds; and moves its cursor past what
/// is not its own, if it `holds` the table that is not written to.
fn see_to(stream: &Stream, cursor: &Cursor, (folds, holds): (i64, bool), latest: &LatestSnapshot) {
    /// So many changes are passed at a time.
    const MANY: u32 = 100_000;
    let mut passed = 0;
    let oldest = stream.keep.before(clock::now());
    let changes = Changes::open(cursor.lane);
    let mut reached = None;
    let mut fate = None;
    // SAFETY: the snapshot is active.
    let flow = unsafe {
        changes.visit_after(cursor.position, folds, latest.as_ptr(), |row| {
            let is_old = stream::at(row) < oldest;
            let is_own = stream::is_of(row, &stream.name, &stream.prefix);
            if is_old && is_own {
                fate = Some(Fate::Lost);
                return ControlFlow::Break(());
            }
            if is_own || passed >= MANY || !(is_old || holds) {
                fate = reached.map(Fate::MovedTo);
                return ControlFlow::Break(());
            }
            passed += 1;
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
    let set = AsOwner::under_lease().run(
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
/// and that is worth it. `live`: cursors that have missed nothing, as far as that is committed.
fn reclaim(lane: usize, live: &[Cursor]) {
    let side = stream::cell(lane).side;
    if tables::open(stream::changes_of(lane, side.other())).blocks() > 0 {
        empty_if_passed(lane, side.other(), live);
    } else if let Some(active) = Segment::open(lane, side) {
        let is_old = (active.first_at()).is_none_or(|at| at < clock::now().saturating_sub(OLD));
        if is_old || live.is_empty() || active.bytes() >= LARGE {
            stream::set_side(lane, side.other());
        }
    }
}

/// Empties a table if nobody needs it any more, as far as that is committed. False: it is left as it is.
fn empty_if_passed(lane: usize, side: Side, live: &[Cursor]) -> bool {
    let last = Segment::open(lane, side).and_then(|segment| segment.last_fold());
    let is_passed = |last| (live.iter()).all(|cursor| cursor.position >= Position::end_of(last));
    last.is_none_or(is_passed) && empty(lane, side, last, Why::Read)
}

/// Empties a table that nobody uses, of which folds through this one are done with. False: somebody does.
fn empty(lane: usize, side: Side, last: Option<i64>, why: Why) -> bool {
    let oid = stream::changes_of(lane, side);
    let Some(table) = Relation::open_if_free(oid, ACCESS_EXCLUSIVE) else {
        return false;
    };
    // SAFETY: the relation is open. A higher count than ours is a scan of this very session.
    let in_use = unsafe { (*table.as_ptr()).rd_refcnt } > 1;
    // Triggers of others may be those of a tool that copies the table.
    if in_use || shape::check_foldable(&table).is_err() {
        return false;
    }
    if let Some(last) = last {
        stream::note_gone(lane, last, why);
    }
    failpoint!("stream.gone_noted");
    let _at_work = AtWork::begin();
    // SAFETY: open, and locked exclusively.
    unsafe { compat::truncate(table.as_ptr(), oid) };
    failpoint!("stream.emptied");
    true
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
    let states = (alert_state::ALERT, alert_state::LANE);
    let lanes = (alert_lane::ALERT, alert_lane::LANE);
    if !remove(lane, "alert_state", states, is_gone) || !remove(lane, "alert_lane", lanes, is_gone)
    {
        // Another time.
        return;
    }
    ALERTS.with_borrow_mut(|known| known[lane] = Some(ids));
}

/// False: the table is one that we do not write to.
fn remove(
    lane: usize,
    table: &str,
    (alert, of): (usize, usize),
    is_gone: impl Fn(i64) -> bool,
) -> bool {
    let oid = catalog::relation_of(table);
    if tables::open(oid).blocks() == 0 {
        return true;
    }
    let table = Relation::open_until_commit(oid, ROW_EXCLUSIVE).unwrap_or_else(|| catalog::gone());
    if shape::check_foldable(&table).is_err() {
        return false;
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
    true
}
