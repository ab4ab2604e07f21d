//! What waits for the consumers of a stream.
//!
//! # How it works
//! All is read by one snapshot: how many folds a lane has had, and the changes of those that the consumer has not read.
//! Lanes are visited by the age of their oldest change that was not read, so that none has to wait for ever where a
//! consumer takes a few at a time.
//!
//! # Invariants
//! - Through which fold changes may be gone is looked at after they were read: they are emptied whatever a snapshot sees.
//! - What is handed out survives a crash: otherwise a fold that was lost, and is made again, would have the number of one
//!   that a consumer has seen, and say something else. So the write-ahead log is flushed first.

use crate::pg::wal;
use crate::store::catalog;
use crate::store::state;
use crate::store::stream::{self, Changes, Cursor, Stream};
use counterx_core::lane::LANES;
use counterx_core::streams::{Batch, Position};
use pgrx::pg_sys;
use std::ops::ControlFlow;

/// Changes behind some cursors of a stream have gone that were to be read.
pub struct Gone {
    /// The lane.
    pub lane: usize,
}

/// What waits behind these cursors of a stream, up to a number of rows.
///
/// # Errors
/// [`Gone`].
///
/// # Safety
/// The snapshot is an MVCC one, active or registered.
pub unsafe fn batch(
    of: &Stream,
    cursors: &[Cursor],
    limit: usize,
    snapshot: pg_sys::Snapshot,
) -> Result<Batch, Gone> {
    let mut from = [Position::default(); LANES];
    for cursor in cursors {
        from[cursor.lane] = cursor.position;
    }
    let mut batch = Batch::new(of.is_every, limit, from);
    let mut lanes: Vec<(i64, usize, Waiting)> = (cursors.iter())
        .filter_map(|cursor| {
            // SAFETY: the caller's promise.
            let waiting = unsafe { Waiting::of(cursor, snapshot) };
            // SAFETY: as above.
            let oldest = unsafe { waiting.oldest(snapshot) };
            if oldest.is_none() {
                batch.end_lane(cursor.lane, waiting.folds);
            }
            oldest.map(|oldest| (oldest, cursor.lane, waiting))
        })
        .collect();
    lanes.sort_by_key(|(oldest, lane, _)| (*oldest, *lane));
    for (_, lane, waiting) in lanes {
        // SAFETY: as above.
        if unsafe { waiting.read(of, lane, snapshot, &mut batch) }.is_break() {
            break;
        }
    }
    for cursor in cursors {
        if cursor.position.is_lost(stream::cell(cursor.lane).gone) {
            return Err(Gone { lane: cursor.lane });
        }
    }
    wal::flush();
    Ok(batch)
}

/// What waits in a lane.
struct Waiting {
    changes: Changes,
    after: Position,
    /// How many folds it has had.
    folds: i64,
}

impl Waiting {
    /// # Safety
    /// As of [`batch`].
    unsafe fn of(cursor: &Cursor, snapshot: pg_sys::Snapshot) -> Self {
        let changes = Changes::open(cursor.lane);
        Self {
            changes,
            after: cursor.position,
            folds: state::lane_state(&catalog::shared(), cursor.lane, snapshot).folds,
        }
    }

    /// When the first of it was folded, whoever wants it.
    ///
    /// # Safety
    /// As of [`batch`].
    unsafe fn oldest(&self, snapshot: pg_sys::Snapshot) -> Option<i64> {
        let mut oldest = None;
        // SAFETY: the caller's promise.
        let _ = unsafe {
            self.changes
                .visit_after(self.after, self.folds, snapshot, |row| {
                    oldest = Some(stream::at(row));
                    ControlFlow::Break(())
                })
        };
        oldest
    }

    /// # Safety
    /// As of [`batch`].
    unsafe fn read(
        &self,
        of: &Stream,
        lane: usize,
        snapshot: pg_sys::Snapshot,
        batch: &mut Batch,
    ) -> ControlFlow<()> {
        // SAFETY: the caller's promise.
        unsafe {
            self.changes
                .visit_after(self.after, self.folds, snapshot, |row| {
                    let wanted = stream::is_of(row, &of.name, &of.prefix);
                    let change = wanted.then(|| stream::read(row, lane)).flatten();
                    let Some(change) = change else {
                        batch.pass(lane, stream::position(row));
                        return ControlFlow::Continue(());
                    };
                    if batch.add(change) {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                })?;
        }
        batch.end_lane(lane, self.folds);
        ControlFlow::Continue(())
    }
}

/// How far the consumer of a stream is behind in a lane.
pub struct Lag {
    /// So many folds.
    pub folds: i64,
    /// When the oldest change was folded that waits; None: none does.
    pub oldest: Option<i64>,
    /// The size of what has changes that wait, of any stream, in bytes.
    pub bytes: i64,
}

/// Looks how far that is.
///
/// # Safety
/// As of [`batch`].
pub unsafe fn lag(of: &Stream, cursor: &Cursor, snapshot: pg_sys::Snapshot) -> Lag {
    /// So many changes of others are passed at most. What follows them is nearly as old.
    const MANY: usize = 10_000;
    // SAFETY: the caller's promise.
    let waiting = unsafe { Waiting::of(cursor, snapshot) };
    let (mut passed, mut oldest) = (0, None);
    // SAFETY: as above.
    let _ = unsafe {
        waiting
            .changes
            .visit_after(waiting.after, waiting.folds, snapshot, |row| {
                passed += 1;
                if passed > MANY || stream::is_of(row, &of.name, &of.prefix) {
                    oldest = Some(stream::at(row));
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })
    };
    let bytes = waiting.changes.bytes_after(waiting.after);
    Lag {
        folds: waiting.folds - cursor.position.fold,
        oldest,
        bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
    }
}
