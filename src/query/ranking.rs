//! The first and the last counters by value, and sums.
//!
//! # How it works
//! What is pending is summed up in memory; each total that is visited takes its part along, and a
//! bounded heap keeps the best. With the value index, totals come in the order of their values, and
//! the visit ends as soon as no later one can be among the best: not those without pending deltas,
//! as they come in order, nor those with some, as the pending sum bounds how far they can have moved.
//! (The idea is Fagin's threshold algorithm, with the pending set as the second source.) When those
//! that could be are fewer than the rows visited for their sake, they are looked up by name.
//!
//! # Which way is taken
//! Without a value index, all totals of the prefix are visited. With one, small prefixes are still
//! read that way; for a large one the index is the quicker way, unless counters of other prefixes
//! fill its head. As nobody knows beforehand, each way is tried for a bounded number of rows, the
//! index first: a good part of all counters fills the ranks in a few of its rows.
//!
//! # After a place
//! Pages, and the rank of one counter, need the number of those that come before. A btree has no
//! counts, so they are counted: in one pass over the totals of the prefix, or down the value index to
//! the place, which is the quicker way for the upper part of a board. Those with something pending are
//! looked up by name, and left out when the index comes to them.

use crate::pg::number;
use crate::pg::relation::Relation;
use crate::pg::room;
use crate::pg::scan::{Direction, IndexScan};
use crate::pg::snapshot;
use crate::query::shown;
use crate::query::value_index;
use crate::read::reader::{self, Lanes, Reader};
use crate::store::columns;
use crate::store::totals::{self, Order};
use counterx_core::lane::MAX_NAME_BYTES;
use counterx_core::names::NameRange;
use counterx_core::rank::{Best, End, Mark, Ranked};
use counterx_core::sums::{Sums, ToTake};
use counterx_core::tally::Tally;
use counterx_core::windows::Asked;
use pgrx::pg_sys;
use std::ops::ControlFlow;

/// A prefix of so few counters is read by name: about as long as it takes to open the lanes.
const SMALL_RANGE: usize = 1000;

/// At first, the index is tried for so many rows for each rank.
const FIRST_INDEX_ROWS: usize = 16;

/// The index is given up for a prefix that did not fill the ranks in so many rows.
const MAX_INDEX_ROWS: usize = 20_000;

/// To count down to a place, the index is given up after this part of all totals: a row by the index
/// takes several times as long as one of a pass.
const PART_BY_INDEX: usize = 8;

/// The sum of all counters of a range.
pub fn sum(range: &NameRange) -> i128 {
    let latest = snapshot::active_or_latest();
    let asked = Asked::new(shown::now(), range);
    let mut reader = Reader::open(Lanes::All, latest.as_ptr());
    let mut sum = 0;
    reader.for_each_pending(asked.hull(), |name, tally| {
        if asked.shown().shows(name) {
            sum += tally.value;
        }
    });
    for segment in asked.segments() {
        // SAFETY: the snapshot is active or registered as long as `latest` lives.
        let _complete = unsafe {
            totals::visit(segment, Order::Any, latest.as_ptr(), |_, row| {
                sum += totals::tally(row).value;
                ControlFlow::Continue(())
            })
        };
    }
    reader.finish();
    sum
}

/// Where a page of ranks begins.
pub enum From<'a> {
    /// At the end that is ranked from.
    End,
    /// After a place that is known.
    Mark(Mark),
    /// After a counter, wherever it is. One that does not exist is at 0, as for all reads.
    Counter(&'a [u8]),
}

/// The first `n` counters of a range, from one end or after a place.
pub fn rank(end: End, n: usize, range: &NameRange, from: From) -> Vec<Ranked> {
    if n == 0 {
        return Vec::new();
    }
    let latest = snapshot::active_or_latest();
    let asked = Asked::new(shown::now(), range);
    let stored = |name: &[u8]| asked.shown().stored(name).into();
    let after = match from {
        From::End => None,
        From::Mark(mark) => Some(Mark {
            name: mark.name.map(|name| stored(&name)),
            ..mark
        }),
        From::Counter(name) => {
            let name: Box<[u8]> = stored(name);
            let can_exist = (1..=MAX_NAME_BYTES).contains(&name.len());
            Some(Mark {
                value: match can_exist {
                    true => reader::tally_at(&name, latest.as_ptr()).value,
                    false => 0,
                },
                name: Some(name),
            })
        }
    };
    let mut reader = Reader::open(Lanes::All, latest.as_ptr());
    let query = Query {
        end,
        n,
        asked: &asked,
        after,
        pending: pending_of(&asked, &mut reader),
        reader: &reader,
        snapshot: latest.as_ptr(),
    };
    let best = query.run();
    drop(query);
    reader.finish();
    let mut ranked = room::granted(best.into_ranked());
    if !asked.shown().is_plain() {
        for row in &mut ranked {
            row.name = asked.plain(&row.name);
        }
    }
    ranked
}

/// What is pending of what is asked for.
fn pending_of(asked: &Asked, reader: &mut Reader) -> Sums {
    if asked.shown().is_plain() {
        return reader.pending_in(asked.hull());
    }
    let mut sums = Sums::default();
    reader.for_each_pending(asked.hull(), |name, tally| {
        if asked.shown().shows(name) {
            room::granted(sums.add(name, tally));
        }
    });
    sums
}

/// The rank of one counter of a range, from the top. None: it is not in there.
pub fn rank_of(name: &[u8], range: &NameRange) -> Option<i64> {
    if !range.contains(name) {
        return None;
    }
    let latest = snapshot::active_or_latest();
    let asked = Asked::new(shown::now(), range);
    let name = asked.shown().stored(name);
    if name.len() > MAX_NAME_BYTES {
        return None;
    }
    let mut reader = Reader::open(Lanes::All, latest.as_ptr());
    let pending = pending_of(&asked, &mut reader);
    let tally = reader.totals().get(&name) + pending.get(&name);
    let above = tally.exists().then(|| {
        let query = Query {
            end: End::Top,
            n: 0,
            asked: &asked,
            after: Some(Mark::before_all_of(tally.value)),
            pending,
            reader: &reader,
            snapshot: latest.as_ptr(),
        };
        query.run().above()
    });
    reader.finish();
    above.map(|above| above + 1)
}

struct Query<'a> {
    end: End,
    n: usize,
    asked: &'a Asked,
    after: Option<Mark>,
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
        if self.after.is_some() {
            return self.run_after(&table, &index);
        }
        let mut by_value = ByValue::start(self, &table, &index);
        let first = match self.asked.is_all() {
            true => usize::MAX,
            false => self.n.saturating_mul(FIRST_INDEX_ROWS).min(SMALL_RANGE),
        };
        if by_value.advance(first) {
            return by_value.best;
        }
        if let Some(best) = self.by_name(SMALL_RANGE) {
            return best;
        }
        if by_value.advance(MAX_INDEX_ROWS.max(self.n.saturating_mul(10))) {
            return by_value.best;
        }
        drop(by_value);
        self.by_name(usize::MAX).expect("there is no limit")
    }

    fn run_after(&self, table: &Relation, index: &Relation) -> Best {
        if !self.asked.is_all()
            && let Some(best) = self.by_name(SMALL_RANGE)
        {
            return best;
        }
        let part = table.live_rows().unwrap_or_default() as usize / PART_BY_INDEX;
        match self.by_value_after(table, index, part.max(MAX_INDEX_ROWS)) {
            Some(best) => best,
            None => self.by_name(usize::MAX).expect("there is no limit"),
        }
    }

    /// Goes down the value index to the mark, and on until the ranks are filled. None: it takes more
    /// than `limit` rows.
    fn by_value_after(&self, table: &Relation, index: &Relation, limit: usize) -> Option<Best> {
        let mut best = Best::after(self.end, self.n, self.after.clone());
        let mut totals = self.reader.totals();
        for (name, pending) in self.pending.iter() {
            pgrx::check_for_interrupts!();
            offer(&mut best, name, totals.get(name) + pending);
        }
        drop(totals);
        // SAFETY: the query's snapshot outlives it.
        let mut walk = unsafe { value_index::walk(table, index, self.snapshot) };
        for _ in 0..limit {
            pgrx::check_for_interrupts!();
            if !walk.advance(direction(self.end)) {
                return Some(best);
            }
            // SAFETY: the columns of the value index.
            let (name, value) = unsafe {
                let value = walk.get(value_index::column::VALUE);
                let name = walk.text(value_index::column::NAME);
                (name, number::total(value))
            };
            if !self.asked.contains(name) || self.pending.contains(name) {
                continue;
            }
            // Whatever follows comes after this one.
            if best.is_after_mark(name, value) && !best.takes(name, value) {
                return Some(best);
            }
            // It has uses, which are not in the index: nothing is pending of it, and then there is no
            // total without.
            room::granted(best.offer(name, value));
        }
        None
    }

    /// Visits all totals of the range. None: there are more than `limit`.
    fn by_name(&self, limit: usize) -> Option<Best> {
        let mut best = Best::after(self.end, self.n, self.after.clone());
        let mut pending = self.pending.to_take();
        let mut visited = 0;
        for segment in self.asked.segments() {
            // SAFETY: the query's snapshot outlives it.
            let complete = unsafe {
                totals::visit(segment, Order::Any, self.snapshot, |name, row| {
                    if visited == limit {
                        return ControlFlow::Break(());
                    }
                    visited += 1;
                    let pending = room::granted(pending.take(name)).unwrap_or_default();
                    offer(&mut best, name, totals::tally(row) + pending);
                    ControlFlow::Continue(())
                })
            };
            if complete.is_break() {
                return None;
            }
        }
        for (name, never_folded) in pending.rest() {
            offer(&mut best, name, never_folded);
        }
        Some(best)
    }
}

/// A visit of totals in the order of their values.
struct ByValue<'a> {
    query: &'a Query<'a>,
    scan: IndexScan,
    best: Best,
    pending: ToTake<'a>,
    /// The pending sums alone, those that can lift a counter furthest first.
    furthest: Vec<i128>,
    /// Rows visited since the ranks were filled, for counters with pending deltas alone.
    beyond: usize,
}

impl<'a> ByValue<'a> {
    fn start(query: &'a Query<'a>, table: &Relation, index: &Relation) -> Self {
        // SAFETY: the query's snapshot outlives it.
        let mut scan = unsafe { IndexScan::new(table, index, query.snapshot, 0) };
        scan.seek(&[]);
        let mut furthest = room::collect(query.pending.iter().map(|(_, sum)| sum.value));
        furthest.sort_unstable();
        if query.end == End::Top {
            furthest.reverse();
        }
        Self {
            query,
            scan,
            best: Best::new(query.end, query.n),
            pending: query.pending.to_take(),
            furthest,
            beyond: 0,
        }
    }

    /// Visits up to so many more totals. True: the best are known.
    fn advance(&mut self, rows: usize) -> bool {
        let direction = direction(self.query.end);
        for _ in 0..rows {
            pgrx::check_for_interrupts!();
            let Some(row) = self.scan.next(direction) else {
                for (name, never_folded) in self.pending.rest() {
                    offer(&mut self.best, name, never_folded);
                }
                return true;
            };
            let name = row.text(columns::total::NAME);
            if !self.query.asked.contains(name) {
                continue;
            }
            let total = totals::tally(&row);
            match room::granted(self.pending.take(name)) {
                Some(pending) => offer(&mut self.best, name, total + pending),
                None if self.best.takes(name, total.value) => offer(&mut self.best, name, total),
                None if self.is_all_but(total.value) => {
                    self.look_up_rest(total.value);
                    return true;
                }
                None => {}
            }
        }
        false
    }

    /// Are there, but for a few to look up, no more that could be among the best, now that the visit
    /// has come to this value?
    fn is_all_but(&mut self, reached: i128) -> bool {
        self.beyond += 1;
        let could_be = |&sum: &i128| self.could_be_among_best(reached, sum);
        self.furthest.partition_point(could_be) < self.beyond
    }

    /// Could a counter be among the best that was not visited, and has this sum pending?
    fn could_be_among_best(&self, reached: i128, pending: i128) -> bool {
        // A counter without a total starts at 0, wherever the visit has come to.
        let total = match self.query.end {
            End::Top => reached.max(0),
            End::Bottom => reached.min(0),
        };
        self.best.takes_value(total + pending)
    }

    fn look_up_rest(&mut self, reached: i128) {
        let mut totals = self.query.reader.totals();
        for (name, pending) in self.pending.rest() {
            pgrx::check_for_interrupts!();
            if self.could_be_among_best(reached, pending.value) {
                offer(&mut self.best, name, totals.get(name) + pending);
            }
        }
    }
}

/// Which way through the value index.
fn direction(end: End) -> Direction {
    match end {
        End::Top => Direction::Forward,
        End::Bottom => Direction::Backward,
    }
}

fn offer(best: &mut Best, name: &[u8], tally: Tally) {
    if tally.exists() {
        room::granted(best.offer(name, tally.value));
    }
}
