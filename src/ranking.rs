//! The first and the last counters by value, and sums.
//!
//! # How it works
//! What is pending is summed up in memory; each total that is visited takes its part along, and a
//! bounded heap keeps the best. With the value index, totals come in the order of their values, and
//! the visit ends as soon as no later one can be among the best: not those without pending deltas,
//! as they come in order, nor those with some, as the pending sum bounds how far they can have moved.
//! Those few that could be are looked up. (The idea is Fagin's threshold algorithm, with the
//! pending set as the second source.)
//!
//! # Which way is taken
//! Without a value index, all totals of the prefix are visited. With one, small prefixes are still
//! read that way; for a large one the index is the quicker way, unless counters of other prefixes
//! fill its head. As nobody knows beforehand, each way is tried for a bounded number of rows.

use crate::pg::relation::Relation;
use crate::pg::scan::{Direction, IndexScan};
use crate::pg::snapshot;
use crate::read::{Lanes, Reader, Sums, column};
use crate::totals::{self, Order};
use crate::value_index;
use counterx_core::names::NameRange;
use counterx_core::rank::{Best, End, Ranked};
use counterx_core::tally::Tally;
use pgrx::pg_sys;
use std::ops::ControlFlow;

/// A prefix of so few counters is read by name: about as long as it takes to open the lanes.
const SMALL_RANGE: usize = 1000;

/// The index is given up for a prefix that did not fill the ranks in so many rows.
const MAX_INDEX_ROWS: usize = 20_000;

/// The sum of all counters of a range.
pub fn sum(range: &NameRange) -> i128 {
    let latest = snapshot::active_or_latest();
    let reader = Reader::open(Lanes::All, latest.as_ptr());
    let mut sum = 0;
    reader.for_each_pending(range, |_, tally| sum += tally.value);
    // SAFETY: the snapshot is active or registered as long as `latest` lives.
    let _complete = unsafe {
        totals::visit(range, Order::Any, latest.as_ptr(), |_, row| {
            sum += totals::tally(row).value;
            ControlFlow::Continue(())
        })
    };
    reader.finish();
    sum
}

/// The first `n` counters of a range, from one end.
pub fn rank(end: End, n: usize, range: &NameRange) -> Vec<Ranked> {
    if n == 0 {
        return Vec::new();
    }
    let latest = snapshot::active_or_latest();
    let reader = Reader::open(Lanes::All, latest.as_ptr());
    let query = Query {
        end,
        n,
        range,
        pending: reader.pending_in(range),
        reader: &reader,
        snapshot: latest.as_ptr(),
    };
    let best = query.run();
    drop(query);
    reader.finish();
    best.into_ranked()
}

struct Query<'a> {
    end: End,
    n: usize,
    range: &'a NameRange,
    pending: Sums,
    reader: &'a Reader,
    snapshot: pg_sys::Snapshot,
}

impl Query<'_> {
    fn run(&self) -> Best {
        let _locked = totals::lock_indexes();
        let Some((table, index)) = value_index::find() else {
            return self.by_name(usize::MAX).expect("there is no limit");
        };
        if self.range.is_all() {
            return self
                .by_value(&table, &index, usize::MAX)
                .expect("there is no limit");
        }
        self.by_name(SMALL_RANGE)
            .or_else(|| self.by_value(&table, &index, MAX_INDEX_ROWS.max(self.n * 10)))
            .or_else(|| self.by_name(usize::MAX))
            .expect("there is no limit")
    }

    /// Visits all totals of the range. None: there are more than `limit`.
    fn by_name(&self, limit: usize) -> Option<Best> {
        let mut best = Best::new(self.end, self.n);
        let mut never_folded = self.pending.clone();
        let mut visited = 0;
        // SAFETY: the query's snapshot outlives it.
        let complete = unsafe {
            totals::visit(self.range, Order::Any, self.snapshot, |name, row| {
                if visited == limit {
                    return ControlFlow::Break(());
                }
                visited += 1;
                let pending = never_folded.remove(name).unwrap_or_default();
                offer(&mut best, name, totals::tally(row) + pending);
                ControlFlow::Continue(())
            })
        };
        if complete.is_break() {
            return None;
        }
        for (name, &tally) in &never_folded {
            offer(&mut best, name, tally);
        }
        Some(best)
    }

    /// Visits totals in the order of their values, as far as needed. None: that would be more than
    /// `limit`.
    fn by_value(&self, table: &Relation, index: &Relation, limit: usize) -> Option<Best> {
        let mut best = Best::new(self.end, self.n);
        let mut not_seen = self.pending.clone();
        // Where the visit has come to: what was not seen ranks after it, by its total.
        let mut reached = None;
        let direction = match self.end {
            End::Top => Direction::Forward,
            End::Bottom => Direction::Backward,
        };
        // SAFETY: the query's snapshot outlives it.
        let mut scan = unsafe { IndexScan::new(table, index, self.snapshot, 0) };
        scan.seek(&[]);
        let mut visited = 0;
        while let Some(row) = scan.next(direction) {
            pgrx::check_for_interrupts!();
            visited += 1;
            if visited > limit {
                return None;
            }
            let name = row.text(column::total::NAME);
            if !self.range.contains(name) {
                continue;
            }
            let total = totals::tally(&row);
            match not_seen.remove(name) {
                Some(pending) => offer(&mut best, name, total + pending),
                None if best.takes(name, total.value) => offer(&mut best, name, total),
                None => {
                    reached = Some(total.value);
                    break;
                }
            }
        }
        drop(scan);
        let mut totals = self.reader.totals();
        for (name, &pending) in &not_seen {
            pgrx::check_for_interrupts!();
            // A counter without a total starts at 0, wherever the visit has come to.
            let furthest = |reached: i128| {
                let total = match self.end {
                    End::Top => reached.max(0),
                    End::Bottom => reached.min(0),
                };
                total + pending.value
            };
            if reached.is_none_or(|reached| best.takes_value(furthest(reached))) {
                offer(&mut best, name, totals.get(name) + pending);
            }
        }
        Some(best)
    }
}

fn offer(best: &mut Best, name: &[u8], tally: Tally) {
    if tally.exists() {
        best.offer(name, tally.value);
    }
}
