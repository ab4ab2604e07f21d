//! What was counted when, of one counter: exact for the snapshot, pending changes included.
//!
//! # How it works
//! With one snapshot: the series of the counter's type, the time through which its lane is sealed, the rows of its
//! buckets, and all that a fold has not taken yet. That is placed as the fold will place it, by the same clamp and
//! calendar (`crates/core/src/history.rs`), and put between the rows (`crates/core/src/buckets.rs`). A fold moves it
//! from one side to the other in one transaction, so whatever a snapshot sees of it, the buckets are the same.
//!
//! # Invariants
//! - In every snapshot, a counter's value is that before its oldest bucket and the sum of all buckets, whatever
//!   [`crate::read::reader`] goes by: a counter that is read by its latest value has the buckets of that.
//! - What is expired for a snapshot it does not show, so that nobody has to look whether it was emptied since. One of a
//!   standby is not waited for: it holds what it has needed against what may be gone, after the scan.
//! - Rows are walked backward, as a counter's newest bucket is changed all the time: an older snapshot would meet all
//!   of its later versions first.

use crate::pg::clock;
use crate::pg::error::{raise, report};
use crate::pg::ports;
use crate::pg::room;
use crate::pg::scan::Direction;
use crate::pg::snapshot::{self, LatestSnapshot};
use crate::pg::time::Calendar;
use crate::pg::varlena::NameText;
use crate::read::reader::{self, Lanes, Reader};
use crate::store::columns;
use crate::store::history::{self, Buckets, Series};
use crate::store::tables;
use crate::transaction::pending;
use counterx_core::buckets::{self, Pending, Place, Ranked};
use counterx_core::history::{Begin, Change, Class, HOUR, Kind, Stored, Sums, Unit, counted_at};
use counterx_core::lane::NameHash;
use counterx_core::names::NameRange;
use counterx_core::parts::type_of;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::cell::Cell;

/// The tables of buckets, as a snapshot sees them.
pub(super) struct Tables {
    snapshot: pg_sys::Snapshot,
    pub(super) expired: [Option<i64>; Class::FINITE],
    /// The oldest that was looked for, by class.
    needed: Cell<[i64; Class::FINITE]>,
}

impl Tables {
    /// The snapshot is active or registered, and stays so.
    pub(super) fn open(snapshot: pg_sys::Snapshot) -> Self {
        Self {
            snapshot,
            // SAFETY: the caller's promise.
            expired: unsafe { history::expired(snapshot) },
            needed: Cell::new([i64::MAX; Class::FINITE]),
        }
    }

    /// Notes that rows of a class are looked for from then on.
    pub(super) fn need(&self, class: Class, from: i64) {
        let mut needed = self.needed.get();
        if let Some(oldest) = needed.get_mut(class.number()) {
            *oldest = from.min(*oldest);
            self.needed.set(needed);
        }
    }

    /// To be called when all is read.
    ///
    /// # Errors
    /// Raises 40001 when rows may be gone that the snapshot needs.
    pub(super) fn check_nothing_was_emptied(&self) {
        // SAFETY: whoever has opened this keeps the snapshot.
        if !unsafe { (*self.snapshot).takenDuringRecovery } {
            return;
        }
        let needed = self.needed.get();
        if history::cut()
            .iter()
            .zip(needed)
            .any(|(&cut, oldest)| cut > oldest)
        {
            raise(
                report(
                    PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                    "history that this snapshot needs has been removed",
                )
                .set_hint("Retry the transaction. hot_standby_feedback keeps the primary from removing what a standby still reads."),
            );
        }
    }
}

/// From where on a series is shown: buckets that have ended before its keep are not, and none of which earlier ones may
/// be gone.
pub(super) fn first_of(
    series: &Series,
    tables: &Tables,
    calendar: &mut Calendar,
    sealed: Option<i64>,
) -> i64 {
    let complete = series.complete_from(&tables.expired);
    let (Some(keep), Some(sealed)) = (series.keep, sealed) else {
        return complete;
    };
    let before = keep.before(sealed);
    let kept = match series.unit {
        Unit::Event => before.saturating_add(1),
        _ => calendar.start_of(before),
    };
    kept.max(complete)
}

/// Where a series begins in a lane.
///
/// The snapshot is active or registered.
pub(super) fn begin_of(series: &Series, lane: usize, snapshot: pg_sys::Snapshot) -> Begin {
    // SAFETY: the caller's promise.
    unsafe { history::begin_in_lane(series, lane, snapshot) }
}

/// Is something that is not folded part of a history that begins then?
pub(super) fn is_included(begin: &Begin, pending: &Pending) -> bool {
    match pending.place {
        Place::Late => begin.includes(None),
        Place::Log(epoch) => begin.includes(Some(epoch)),
        // It gets a later epoch than any.
        Place::Own => true,
    }
}

/// What the running transaction has changed and not written.
fn own(change: &pending::Change, now: i64) -> Pending {
    let kind = match change.part.1 {
        _ if change.row.purges => Kind::Purge,
        pending::Kind::Increment => Kind::Increment,
        pending::Kind::Adjustment => Kind::Adjustment,
    };
    Pending {
        place: Place::Own,
        change: Change {
            at: now,
            delta: change.row.delta.into(),
            kind,
            // It may have none yet.
            xid: ports::full_xid_if_any(),
            is_of_transaction: true,
        },
    }
}

/// What is known of one counter's history. See [`of_counter`].
pub struct Counter<'a> {
    name: &'a [u8],
    text: NameText,
    reader: Reader,
    tables: Tables,
    pub(super) series: Vec<Series>,
    /// In the order of folds, without what a purge hides.
    pending: Vec<Pending>,
    /// A purge hides all stored rows.
    is_purged: bool,
    /// All that is pending of its value, hidden or not.
    unfolded: i128,
    now: i64,
    /// When what a restore has brought is an adjustment; None: it is none.
    restored_at: Option<i64>,
}

/// Reads a counter's history, by the running query's snapshot or the latest one: see [`reader::is_outrun`].
///
/// # Errors
/// Raises 40001 when something was removed meanwhile that the snapshot needs.
pub fn of_counter<R>(name: &[u8], read: impl FnOnce(&Counter) -> R) -> R {
    let current = snapshot::active_or_latest();
    let latest = reader::is_outrun(name, current.as_ptr()).then(LatestSnapshot::take);
    let snapshot = latest
        .as_ref()
        .map_or(current.as_ptr(), LatestSnapshot::as_ptr);
    let counter = Counter::open(name, snapshot);
    let result = read(&counter);
    counter.tables.check_nothing_was_emptied();
    counter.reader.finish();
    result
}

impl<'a> Counter<'a> {
    /// The snapshot is active or registered, and stays so.
    fn open(name: &'a [u8], snapshot: pg_sys::Snapshot) -> Self {
        let hash = NameHash::of(name);
        let text = NameText::new(name);
        let mut reader = Reader::open(Lanes::Of(&[hash]), snapshot);
        // What is counted now is not counted earlier than that, on whatever server it is read.
        let now = counted_at(clock::now(), reader.lanes[0].sealed);
        let series = match type_of(name) {
            // SAFETY: the caller's promise.
            Some(of) => unsafe { history::series(&reader.shared, Some(of), snapshot) },
            None => Vec::new(),
        };
        let mut pending = Vec::new();
        let logs_snapshot = reader.logs_snapshot.as_ptr();
        for lane in &reader.lanes {
            lane.each_of(&text, logs_snapshot, |row| {
                let place = Place::Log(row.int8(columns::log::EPOCH));
                let change = tables::log_change(row);
                room::push(&mut pending, Pending { place, change });
            });
        }
        reader::late_of(&reader.shared, &text, snapshot, |row| {
            let place = Place::Late;
            let change = tables::late_change(row);
            room::push(&mut pending, Pending { place, change });
        });
        pending::for_each_change_of(hash, name, |change| {
            room::push(&mut pending, own(change, now));
        });
        let unfolded = pending.iter().map(|pending| pending.change.delta).sum();
        let is_purged = buckets::without_purged(&mut pending);
        let mut counter = Self {
            name,
            text,
            tables: Tables::open(snapshot),
            reader,
            series,
            pending,
            is_purged,
            unfolded,
            now,
            restored_at: None,
        };
        counter.restored_at = counter.find_restored_at();
        counter
    }

    /// When a fold will count what a restore has brought, as an adjustment: where there are rows already.
    fn find_restored_at(&self) -> Option<i64> {
        self.pending
            .iter()
            .find(|pending| pending.change.kind == Kind::Restored)?;
        let unit = Unit::BUCKETS.into_iter().find_map(|unit| self.unit(unit))?;
        let newest = unit.newest_before(i64::MAX, From::Folds)?.start;
        Some(counted_at(newest, unit.sealed))
    }

    /// When it is read.
    pub fn now(&self) -> i64 {
        self.now
    }

    /// Has its type any history?
    pub fn has_history(&self) -> bool {
        !self.series.is_empty()
    }

    /// One of its series, or None where there is none of this unit.
    pub fn unit(&self, unit: Unit) -> Option<OfUnit<'_>> {
        let series = self.series.iter().find(|series| series.unit == unit)?;
        Some(OfUnit::open(self, series))
    }

    /// The finest unit that is kept for so long that `choose` finds what it wants in it. Events come last: their times
    /// are in the order of folds, so at a bucket's end they can differ from it by what was under way then.
    fn finest<R>(&self, choose: impl FnMut(OfUnit) -> Option<R>) -> Option<R> {
        Unit::BUCKETS
            .into_iter()
            .chain([Unit::Event])
            .filter_map(|unit| self.unit(unit))
            .find_map(choose)
    }

    /// The last boundary at `at` or before of which the value is known, and the value then.
    pub fn as_of(&self, at: i64) -> Option<(i64, i128)> {
        let at = at.min(self.now);
        self.finest(|mut unit| {
            let known = unit.known_from().filter(|&known| known <= at)?;
            let boundary = unit.calendar.start_of(at);
            (boundary >= known).then(|| (boundary, unit.value_before(boundary)))
        })
    }

    /// What was counted in the last whole buckets that make up an interval: of the finest unit that is known for so
    /// long, else of that which is known for longest. `earlier` says what is so much earlier than a time. None: there
    /// are no buckets.
    pub fn rate(&self, earlier: impl Fn(i64) -> i64) -> Option<Rate> {
        let mut longest: Option<(i64, Unit)> = None;
        let rate = self.finest(|mut unit| {
            if unit.series.unit == Unit::Event {
                return None;
            }
            let through = unit.calendar.start_of(self.now);
            let first = unit.first_boundary().unwrap_or(i64::MAX);
            if longest.is_none_or(|(known, _)| first < known) {
                longest = Some((first, unit.series.unit));
            }
            let from = earlier(through);
            if from < first {
                return None;
            }
            // An interval of months and days can be of no length, or lead forward.
            let from = unit.calendar.start_of(from).max(first).min(through);
            Some(unit.rate(from, through))
        });
        rate.or_else(|| {
            let (first, unit) = longest?;
            let mut unit = self.unit(unit)?;
            let through = unit.calendar.start_of(self.now);
            Some(unit.rate(first.min(through), through))
        })
    }

    /// Its value, without what is pending and shown in buckets.
    fn total(&self, pending: &[(i64, Sums)]) -> i128 {
        self.reader.totals().get(self.name).value + self.unfolded - buckets::net(pending)
    }
}

/// One unit of a counter's history.
pub struct OfUnit<'a> {
    counter: &'a Counter<'a>,
    pub(super) series: &'a Series,
    calendar: Calendar,
    /// Nothing that begins earlier is shown.
    first: i64,
    /// None: nothing is known yet.
    since: Option<i64>,
    begin: Begin,
    sealed: Option<i64>,
    /// What is pending, by the starts of its buckets.
    pending: Vec<(i64, Sums)>,
}

/// What has written rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Folds,
    /// Restores as well.
    All,
}

/// Some buckets.
pub struct Span {
    /// Those in which there is something, ascending.
    pub rows: Vec<Stored>,
    /// The value before all of them.
    pub before: i128,
}

/// What was counted in a time.
pub struct Rate {
    /// How much; None: not one bucket is over.
    pub delta: Option<i128>,
    /// When it begins.
    pub from: i64,
    /// When it ends.
    pub through: i64,
}

/// One transaction's change of a counter.
pub struct Event {
    /// When it was counted.
    pub at: i64,
    /// How much.
    pub delta: i128,
    /// Was it an increment?
    pub is_increment: bool,
    /// The transaction; None: not known.
    pub xid: Option<i64>,
    /// Nothing of it will change.
    pub is_folded: bool,
}

impl<'a> OfUnit<'a> {
    pub(super) fn open(counter: &'a Counter<'a>, series: &'a Series) -> Self {
        let mut calendar = Calendar::new(series.unit, &series.zone);
        let lane = &counter.reader.lanes[0];
        let sealed = lane.sealed;
        let first = first_of(series, &counter.tables, &mut calendar, sealed);
        let begin = begin_of(series, lane.lane, counter.reader.snapshot);
        let mut changes: Vec<Pending> = room::collect(
            (counter.pending.iter().copied()).filter(|pending| is_included(&begin, pending)),
        );
        if let Some(at) = counter.restored_at {
            for Pending { change, .. } in &mut changes {
                if change.kind == Kind::Restored {
                    (change.kind, change.at) = (Kind::Adjustment, at);
                }
            }
        }
        let pending = buckets::sums_by_start(&changes, |change| {
            calendar.start_of(counted_at(change.at, sealed))
        });
        let pending = room::granted(pending);
        Self {
            counter,
            series,
            calendar,
            first,
            since: begin.since,
            begin,
            sealed,
            pending,
        }
    }

    /// From when on everything is known.
    pub fn known_from(&self) -> Option<i64> {
        self.since.map(|since| since.max(self.first))
    }

    /// The first boundary that is known.
    fn first_boundary(&mut self) -> Option<i64> {
        let known = self.known_from()?;
        let start = self.calendar.start_of(known);
        Some(if start < known {
            self.next(start)
        } else {
            start
        })
    }

    /// What was counted between two boundaries.
    fn rate(&self, from: i64, through: i64) -> Rate {
        let span = self.between(from, through.saturating_sub(1));
        Rate {
            delta: (from < through).then(|| span.rows.iter().map(|row| row.sums.delta).sum()),
            from,
            through,
        }
    }

    /// Buckets that begin before this never change; None: all may.
    pub fn sealed_before(&mut self) -> Option<i64> {
        self.sealed.map(|sealed| self.calendar.start_of(sealed))
    }

    /// When the bucket begins that a time is in.
    pub fn start_of(&mut self, time: i64) -> i64 {
        self.calendar.start_of(time)
    }

    /// When the bucket begins that follows the one that begins then.
    pub fn next(&mut self, start: i64) -> i64 {
        let mut time = self.calendar.end_of(start);
        // Where clocks are set back by half an hour, an hour is longer.
        loop {
            let next = self.calendar.start_of(time);
            if next > start {
                return next;
            }
            time = time.saturating_add(HOUR / 4);
        }
    }

    /// The classes that may have rows, with their ranks, and from when on.
    fn classes(&self) -> impl Iterator<Item = (usize, Class, i64)> {
        let classes = if self.counter.is_purged {
            None
        } else {
            Some(self.series.classes_from(self.first))
        };
        classes
            .into_iter()
            .flatten()
            .enumerate()
            .map(|(rank, class)| (rank, class, self.first))
    }

    fn restored(&self) -> Option<(usize, Buckets)> {
        if self.counter.is_purged {
            return None;
        }
        Some((Class::ALL, Buckets::restored()?))
    }

    /// Visits the rows of a table that begin between two times, newest first, until told to stop.
    fn walk(
        &self,
        buckets: &Buckets,
        (from, through): (i64, i64),
        mut visit: impl FnMut(Stored) -> bool,
    ) {
        // SAFETY: whoever has opened the reader keeps the snapshot.
        let mut scan = unsafe { buckets.scan(self.counter.tables.snapshot, 4) };
        let [name, series] = history::keys_of(&self.counter.text, self.series.id);
        // All that meet the conditions on a page of the index are looked at before the first one is returned.
        scan.seek(&[name, series, history::from(from), history::through(through)]);
        while let Some(row) = scan.next(Direction::Backward) {
            pgrx::check_for_interrupts!();
            if !visit(history::stored(&row)) {
                break;
            }
        }
    }

    /// The newest row of a table that begins between two times.
    fn newest_in(&self, buckets: &Buckets, from: i64, through: i64) -> Option<Stored> {
        let mut newest = None;
        // Where there is something in each bucket, this is it: see above.
        let near = through
            .saturating_sub(self.series.unit.longest().saturating_mul(2))
            .max(from);
        for from in [near, from] {
            self.walk(buckets, (from, through), |row| {
                newest = Some(row);
                false
            });
            if newest.is_some() {
                break;
            }
        }
        newest
    }

    /// All stored rows that begin between two times, ascending.
    fn stored(&self, from: i64, through: i64) -> Vec<Ranked> {
        let mut rows = Vec::new();
        for (rank, class, first) in self.classes() {
            let from = from.max(first);
            if from > through {
                continue;
            }
            self.counter.tables.need(class, from);
            for (table, _) in buckets::tables_back(class, from, through) {
                let Some(buckets) = Buckets::numbered(class, table) else {
                    continue;
                };
                self.walk(&buckets, (from, through), |row| {
                    room::push(&mut rows, Ranked { rank, row });
                    true
                });
            }
        }
        if let Some((rank, buckets)) = self.restored() {
            self.walk(&buckets, (from.max(self.first), through), |row| {
                room::push(&mut rows, Ranked { rank, row });
                true
            });
        }
        buckets::merge(&mut rows);
        rows
    }

    /// The newest stored row that begins before a time.
    fn newest_before(&self, time: i64, of: From) -> Option<Stored> {
        let through = time.checked_sub(1)?;
        let mut newest: Option<Stored> = None;
        // Of the same bucket, the row of the lower rank comes first, and its value counts.
        let mut take = |row: Stored| {
            if newest.is_none_or(|newest| newest.start < row.start) {
                newest = Some(row);
            }
        };
        for (_, class, from) in self.classes() {
            if from > through {
                continue;
            }
            self.counter.tables.need(class, from);
            for (table, begin) in buckets::tables_back(class, from, through) {
                let Some(buckets) = Buckets::numbered(class, table) else {
                    continue;
                };
                let Some(row) = self.newest_in(&buckets, from, through) else {
                    continue;
                };
                take(row);
                if row.start >= begin {
                    break;
                }
            }
        }
        if of == From::All
            && let Some((_, buckets)) = self.restored()
        {
            let restored = self.newest_in(&buckets, self.first, through);
            restored.into_iter().for_each(take);
        }
        newest
    }

    /// The oldest stored row that begins at a time or after.
    fn oldest_from(&self, time: i64) -> Option<Stored> {
        let mut rows = Vec::new();
        let mut look = |rank, buckets: &Buckets, from| {
            // SAFETY: whoever has opened the reader keeps the snapshot.
            let mut scan = unsafe { buckets.scan(self.counter.tables.snapshot, 3) };
            let [name, series] = history::keys_of(&self.counter.text, self.series.id);
            scan.seek(&[name, series, history::from(from)]);
            if let Some(row) = scan.next(Direction::Forward) {
                let row = history::stored(&row);
                room::push(&mut rows, Ranked { rank, row });
            }
        };
        for (rank, class, first) in self.classes() {
            let from = time.max(first);
            self.counter.tables.need(class, from);
            for (table, _) in buckets::tables_back(class, from, i64::MAX) {
                if let Some(buckets) = Buckets::numbered(class, table) {
                    look(rank, &buckets, from);
                }
            }
        }
        if let Some((rank, buckets)) = self.restored() {
            look(rank, &buckets, time.max(self.first));
        }
        buckets::merge(&mut rows);
        rows.first().map(|oldest| oldest.row)
    }

    /// The stored value at a time: without what is pending.
    pub(super) fn stored_value_before(&self, time: i64) -> i128 {
        (self
            .newest_before(time, From::All)
            .map(|newest| newest.value))
        .or_else(|| Some(self.oldest_from(time)?.value_before()))
        .unwrap_or_else(|| self.counter.total(&self.pending))
    }

    /// What of the pending begins before a time: how many buckets.
    fn pending_before(&self, time: i64) -> usize {
        self.pending.partition_point(|(start, _)| *start < time)
    }

    /// The value at a boundary.
    pub fn value_before(&self, boundary: i64) -> i128 {
        let earlier = &self.pending[..self.pending_before(boundary)];
        self.stored_value_before(boundary) + buckets::net(earlier)
    }

    /// The buckets that begin between two times.
    pub fn between(&self, from: i64, through: i64) -> Span {
        let from = from.max(self.first);
        if from > through {
            return Span {
                rows: Vec::new(),
                before: 0,
            };
        }
        let stored = self.stored(from, through);
        let before = match stored.first() {
            Some(first) => first.row.value_before(),
            None => self.stored_value_before(from),
        };
        let first = self.pending_before(from);
        let end = through
            .checked_add(1)
            .map_or(self.pending.len(), |end| self.pending_before(end));
        let earlier = buckets::net(&self.pending[..first]);
        let rows = buckets::shown(before, earlier, &stored, &self.pending[first..end]);
        Span {
            rows: room::granted(rows),
            before: before + earlier,
        }
    }

    /// The first `limit` events after a time, ascending.
    pub fn events(&self, after: Option<i64>, limit: usize) -> Vec<Event> {
        let from = after.map_or(i64::MIN, |after| after.saturating_add(1));
        let mut rows: Vec<Stored> = Vec::new();
        let mut look = |buckets: &Buckets, from| {
            // SAFETY: whoever has opened the reader keeps the snapshot.
            let mut scan = unsafe { buckets.scan(self.counter.tables.snapshot, 3) };
            let [name, series] = history::keys_of(&self.counter.text, self.series.id);
            scan.seek(&[name, series, history::from(from)]);
            // Beyond, there are enough.
            let bound = rows.get(limit.wrapping_sub(1)).map(|last| last.start);
            let mut rest = limit;
            while rest > 0
                && let Some(row) = scan.next(Direction::Forward)
            {
                pgrx::check_for_interrupts!();
                let row = history::stored(&row);
                if bound.is_some_and(|bound| row.start > bound) {
                    break;
                }
                room::push(&mut rows, row);
                rest -= 1;
            }
            rows.sort_unstable_by_key(|row| row.start);
            rows.truncate(limit);
        };
        for (_, class, first) in self.classes() {
            let from = from.max(first);
            self.counter.tables.need(class, from);
            for (table, _) in buckets::tables_back(class, from, i64::MAX) {
                if let Some(buckets) = Buckets::numbered(class, table) {
                    look(&buckets, from);
                }
            }
        }
        if let Some((_, buckets)) = self.restored() {
            look(&buckets, from.max(self.first));
        }
        let mut events = room::collect(rows.iter().map(|row| Event {
            at: row.start,
            delta: row.sums.net(),
            is_increment: row.sums.adjusted == 0,
            xid: Some(row.sums.changes).filter(|&xid| xid != 0),
            is_folded: true,
        }));
        if events.len() < limit && !self.counter.pending.is_empty() {
            let newest = self
                .newest_before(i64::MAX, From::Folds)
                .map(|newest| newest.start);
            let included = |pending: &Pending| is_included(&self.begin, pending);
            let changes: Vec<Pending> =
                room::collect((self.counter.pending.iter().copied()).filter(included));
            let pending = buckets::events(newest, &changes, |change| {
                counted_at(change.at, self.sealed)
            });
            for (at, change) in room::granted(pending) {
                if at >= from && events.len() < limit {
                    let event = Event {
                        at,
                        delta: change.delta,
                        is_increment: change.kind == Kind::Increment,
                        xid: Some(change.transaction()).filter(|&xid| xid != 0),
                        is_folded: false,
                    };
                    room::push(&mut events, event);
                }
            }
        }
        events
    }
}

/// All that is pending of the names in a range, by name.
pub(super) fn pending_in(
    reader: &mut Reader,
    range: &NameRange,
    now: i64,
) -> Vec<(Box<[u8]>, Pending)> {
    let mut all: Vec<(Box<[u8]>, Pending)> = Vec::new();
    let logs_snapshot = reader.logs_snapshot.as_ptr();
    for lane in &reader.lanes {
        lane.for_each(range, logs_snapshot, |row| {
            let place = Place::Log(row.int8(columns::log::EPOCH));
            let change = tables::log_change(row);
            let name = row.text(columns::log::NAME).into();
            room::push(&mut all, (name, Pending { place, change }));
        });
    }
    tables::scan_late(&reader.shared, reader.snapshot, |row| {
        let name = row.text(columns::late::NAME);
        if range.contains(name) {
            let place = Place::Late;
            let change = tables::late_change(row);
            room::push(&mut all, (name.into(), Pending { place, change }));
        }
    });
    pending::for_each_change(|change| {
        let name = change.row.name;
        if range.contains(name) {
            room::push(&mut all, (name.into(), own(change, now)));
        }
    });
    // Stable: of one place, they stay in their order.
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    all
}
