//! When a lane is to be sealed though there is nothing to fold.
//!
//! Folds seal their lanes by the way. A lane in which nothing is counted would never be sealed otherwise, nor a
//! history begin in it. So while there is any history, its epoch is published, its writers are awaited, and nothing is
//! folded, once for each bucket that ends.

use crate::pg::clock;
use crate::pg::snapshot;
use crate::store::catalog::{self, SharedRels};
use crate::store::history::{self, Series};
use crate::store::state;
use counterx_core::history::{HOUR, LEAP, MINUTE, Unit, seal};
use std::collections::HashSet;
use std::time::Duration;

/// Does a lane have to be sealed?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealing {
    /// There is no history, or nothing has ended since it was.
    NotDue,
    /// Something has ended, or is to begin.
    Due,
    /// It would be, but the clock has leapt, and nobody has said that it is right.
    Leaps,
}

/// The time through which a lane is sealed when all epochs before a published one are folded.
#[derive(Clone, Copy)]
pub struct Seal {
    /// The clock, as it was before the epoch was published.
    pub clock: i64,
    /// Is it known to be right?
    pub is_trusted: bool,
}

impl Seal {
    /// After one that was sealed through `known`.
    pub fn after(self, known: Option<i64>) -> i64 {
        seal(known, self.clock, self.is_trusted)
    }
}

/// See [`Sealing`]. `is_trusted`: the clock is known to be right.
pub fn of(lane: usize, is_trusted: bool) -> Sealing {
    let Ok(shared) = catalog::try_shared() else {
        return Sealing::NotDue;
    };
    if !history::may_be_any(&shared) {
        return Sealing::NotDue;
    }
    of_any(lane, is_trusted, &shared)
}

#[cold]
fn of_any(lane: usize, is_trusted: bool, shared: &SharedRels) -> Sealing {
    let snapshot = snapshot::self_snapshot();
    // SAFETY: the snapshot is a static.
    let all = unsafe { history::series(shared, None, snapshot) };
    if all.is_empty() {
        return Sealing::NotDue;
    }
    let clock = clock::now();
    let Some(known) = state::newest(shared, lane).sealed else {
        return Sealing::Due;
    };
    // SAFETY: as above.
    let begins = unsafe { history::begins_of_lane(lane, snapshot) };
    let begun: HashSet<i64> = (begins.into_iter())
        .filter(|(_, begin)| begin.since.is_some())
        .map(|(id, _)| id)
        .collect();
    let has_begun = |id: i64| begun.contains(&id);
    let is_new = !all
        .iter()
        .any(|series| series.since.is_some() || has_begun(series.id));
    if seal(Some(known), clock, is_trusted || is_new) == known {
        return if clock.saturating_sub(known) > LEAP {
            Sealing::Leaps
        } else {
            Sealing::NotDue
        };
    }
    let unit = step(&all);
    let has_ended = clock.div_euclid(unit) > known.div_euclid(unit);
    if has_ended || all.iter().any(|series| !has_begun(series.id)) {
        Sealing::Due
    } else {
        Sealing::NotDue
    }
}

/// Lanes are sealed this often: longer units than hours as well, so that nobody has to wait for the end of a day.
fn step(all: &[Series]) -> i64 {
    if all.iter().any(|series| series.unit == Unit::Minute) {
        MINUTE
    } else {
        HOUR
    }
}

/// When lanes are to be sealed next, from now; None: there is no history.
pub fn next_end() -> Option<Duration> {
    let shared = catalog::try_shared().ok()?;
    if !history::may_be_any(&shared) {
        return None;
    }
    // SAFETY: the snapshot is a static.
    let all = unsafe { history::series(&shared, None, snapshot::self_snapshot()) };
    if all.is_empty() {
        return None;
    }
    let unit = step(&all);
    let rest = unit - clock::now().rem_euclid(unit);
    Some(Duration::from_micros(rest.unsigned_abs()))
}
