//! What a fold tells streams: a row for each counter that it changes, and what alerts come to.
//!
//! # How it works
//! Before its first row, a fold looks by its snapshot which streams have a consumer that has missed nothing in this
//! lane: for those, and no others, changes are written. Prefixes are put together first, so that many streams on the
//! same counters cost what one does. When a total is written, so is what has changed of it, and each alert on the
//! counter is judged by the new total.
//!
//! # Invariants
//! - Changes, states of alerts and totals are committed together.
//! - Who starts a stream holds all leases until that is committed: the next fold sees the cursors.

use crate::fold::history_table::{self, Table};
use crate::fold::stream_upkeep;
use crate::fold::way;
use crate::pg::clock;
use crate::pg::insert::Inserter;
use crate::pg::memory::MemorySwitch;
use crate::pg::number;
use crate::pg::scan::{Direction, Key, TableScan};
use crate::pg::snapshot::LatestSnapshot;
use crate::pg::varlena::{NameText, text_datum};
use crate::settings;
use crate::store::catalog::{self, SharedRels};
use crate::store::columns::{self, alert_lane, alert_state, change};
use crate::store::stream::{self, Alert, Cursor, Segment, Stream, Why};
use crate::store::tables;
use counterx_core::alerts::Event;
use counterx_core::history;
use counterx_core::parts::type_of;
use counterx_core::streams::{self, Kind, Position, Prefixes, shown};
use counterx_core::tally::Tally;
use counterx_core::windows::Stored;
use pgrx::pg_sys;
use std::cell::{Cell, RefCell};

thread_local! {
    /// What streams are told is being written. When an error ends that, it stays so until [`take_failure`].
    static AT_IT: Cell<bool> = const { Cell::new(false) };
    /// What this process, a worker, has written for whom.
    static HINTS: RefCell<Hints> = RefCell::default();
}

/// Has an error ended a fold in the midst of what it tells streams?
pub fn take_failure() -> bool {
    AT_IT.take()
}

struct AtIt;

impl AtIt {
    fn begin() -> Self {
        AT_IT.set(true);
        Self
    }
}

impl Drop for AtIt {
    fn drop(&mut self) {
        // An error unwinds without a panic of ours, or is one.
        if !std::thread::panicking() {
            AT_IT.set(false);
        }
    }
}

/// Whom folds of this process have something for, since that was asked last.
#[derive(Default)]
pub struct Hints {
    /// Streams.
    pub streams: Vec<Box<[u8]>>,
    /// Alerts that have fired, and have no stream.
    pub alerts: Vec<Box<[u8]>>,
    /// The last fold of each lane.
    pub folds: Vec<(usize, i64)>,
}

/// Takes them.
pub fn take_hints() -> Hints {
    HINTS.take()
}

/// A fold of this number leaves out what it would tell streams, as that cannot be written: they are lost.
pub fn leave_out(lane: usize, number: i64) {
    let _at_it = AtIt::begin();
    if stream::are_any_streams(&catalog::shared()) {
        stream::note_gone(lane, number, Why::Failure);
    }
}

/// A stream whose consumer has missed nothing in the lane.
struct Live {
    stream: Stream,
    is_hinted: bool,
}

/// An alert, and how often it has fired in this fold.
struct Watching {
    alert: Alert,
    fired: i64,
}

/// What a fold writes.
pub struct Writer {
    lane: usize,
    /// The fold's number.
    number: i64,
    at: i64,
    seq: i64,
    live: Vec<Live>,
    /// What they want.
    covered: Prefixes,
    /// What is announced of that.
    published: Prefixes,
    /// Those of them that are to be told, and have nothing so far.
    unhinted: usize,
    alerts: Vec<Watching>,
    /// What these watch.
    watched: Prefixes,
    /// The types of tracked tables, of whose counters others are changed as well when they are counted anew.
    tracked: Vec<Box<[u8]>>,
    changes: Option<Inserter>,
    /// Whatever is written grows beyond all bounds.
    is_full: bool,
    states: Option<Table>,
    /// What the fold lives in.
    context: pg_sys::MemoryContext,
    run: Run,
}

/// What is known of the counter that deltas arrive for.
#[derive(Default)]
struct Run {
    is_covered: bool,
    is_watched: bool,
    is_adjusted: bool,
    is_restored: bool,
}

/// The size from which on a lane's table is left for its other one; and twice that, from which on nothing is written.
fn limit() -> u64 {
    settings::stream_max_size() / 32
}

impl Writer {
    /// What there is to be told by this snapshot. None: nobody wants to know anything.
    pub fn open(
        lane: usize,
        shared: &SharedRels,
        latest: &LatestSnapshot,
        number: i64,
    ) -> Option<Self> {
        if !stream::may_be_any(shared) {
            return None;
        }
        let _at_it = AtIt::begin();
        // SAFETY: the snapshot is active.
        let (streams, cursors, alerts) = unsafe {
            let snapshot = latest.as_ptr();
            (
                stream::streams(shared, snapshot),
                stream::cursors(Some(lane), snapshot),
                stream::alerts(shared, snapshot),
            )
        };
        let live = live(lane, number, streams, cursors);
        if live.is_empty() && alerts.is_empty() {
            return None;
        }
        let of = |wanted: fn(&Stream) -> bool| {
            let wanted = live.iter().filter(|live| wanted(&live.stream));
            Prefixes::new(wanted.map(|live| &*live.stream.prefix))
        };
        let (covered, published) = (of(|_| true), of(|stream| stream.publish));
        let watched = Prefixes::new(alerts.iter().map(|alert| &*alert.prefix));
        let tracked = if alerts.is_empty() {
            Vec::new()
        } else {
            // SAFETY: the snapshot is active.
            unsafe { tracked_types(shared, latest.as_ptr()) }
        };
        Some(Self {
            lane,
            number,
            at: clock::now(),
            seq: 0,
            unhinted: if way::is_worker() {
                live.iter().filter(|live| live.stream.notify).count()
            } else {
                0
            },
            live,
            covered,
            published,
            alerts: (alerts.into_iter())
                .map(|alert| Watching { alert, fired: 0 })
                .collect(),
            watched,
            tracked,
            changes: None,
            is_full: false,
            states: None,
            // SAFETY: reads a variable of the backend.
            context: unsafe { pg_sys::CurrentMemoryContext },
            run: Run::default(),
        })
    }

    /// Deltas of this counter are next.
    pub fn begin(&mut self, name: &[u8]) {
        let mut run = Run {
            is_covered: self.covered.cover(name),
            is_watched: self.watched.cover(name),
            ..Run::default()
        };
        // What is stored for a window is nobody's name.
        if (run.is_covered || run.is_watched) && Stored::of(name).is_some() {
            run = Run::default();
        }
        self.run = run;
    }

    /// Does anybody want to know of the counter?
    pub fn wants(&self) -> bool {
        self.run.is_covered || self.run.is_watched
    }

    /// A delta of the counter.
    pub fn add(&mut self, kind: history::Kind) {
        use history::Kind::{Increment, Restored};
        self.run.is_adjusted |= kind != Increment;
        self.run.is_restored |= kind == Restored;
    }

    /// The counter's total was `old`, and is `new`. In a memory context that goes before the next one.
    pub fn write(&mut self, name: &NameText, bytes: &[u8], old: Tally, new: Tally) {
        let _at_it = AtIt::begin();
        let Run {
            is_adjusted,
            is_restored,
            ..
        } = self.run;
        // There may be more of the same counter.
        self.run.is_adjusted = false;
        self.run.is_restored = false;
        if self.run.is_covered
            && let Some((kind, delta)) = streams::change(old, new, is_adjusted)
        {
            let value = shown(new).unwrap_or(0);
            let is_announced = self.published.cover(bytes);
            self.write_change(name, kind, (delta, value), None, None, is_announced);
            self.hint(|stream| bytes.starts_with(&stream.prefix));
        }
        if self.run.is_watched {
            let is_silent = is_restored
                || (is_adjusted
                    && type_of(bytes).is_some_and(|of| self.tracked.iter().any(|it| **it == *of)));
            for at in 0..self.alerts.len() {
                if bytes.starts_with(&self.alerts[at].alert.prefix) {
                    self.judge(at, name, bytes, shown(new), is_silent);
                }
            }
        }
    }

    fn judge(
        &mut self,
        at: usize,
        name: &NameText,
        bytes: &[u8],
        value: Option<i128>,
        is_silent: bool,
    ) {
        let Alert { id, threshold, .. } = self.alerts[at].alert;
        if value.is_some_and(|value| threshold.keeps(value)) {
            return;
        }
        let (lane, now) = (self.lane as i32, self.at);
        let states = self.states();
        states
            .scan
            .seek(&[Key::text_eq(1, name.datum()), Key::int8_eq(2, id)]);
        let mut known = (states.scan.next(Direction::Forward)).map(|row| row.tid());
        let (has_fired, event) = threshold.judge(known.is_some(), value, is_silent);
        match &mut known {
            None if has_fired => {
                let values = [
                    id.into(),
                    name.datum(),
                    lane.into(),
                    number::numeric(value.unwrap_or(0)),
                    now.into(),
                ];
                // SAFETY: the columns of alert_state; the indexes are those of this table.
                unsafe {
                    tables::write_row(&states.table, states.indexes, None, values.map(Some));
                }
            }
            // SAFETY: a visible row, which only the holder of this lane's lease changes.
            Some(tid) if !has_fired => unsafe {
                pg_sys::simple_heap_delete(states.table.as_ptr(), tid);
            },
            _ => {}
        }
        if let Some(event) = event {
            self.tell(at, name, bytes, event, value.unwrap_or(0));
        }
    }

    fn tell(&mut self, at: usize, name: &NameText, bytes: &[u8], event: Event, value: i128) {
        let kind = match event {
            Event::Fired => Kind::Fired,
            Event::Rearmed => Kind::Rearmed,
        };
        let watching = &mut self.alerts[at];
        watching.fired += i64::from(event == Event::Fired);
        let alert = watching.alert.name.clone();
        match watching.alert.stream.clone() {
            Some(stream) => {
                let of = self.live.iter().find(|live| live.stream.name == stream);
                if let Some(is_announced) = of.map(|live| live.stream.publish) {
                    let meant = (Some(&*alert), Some(&*stream));
                    self.write_change(name, kind, (0, value), meant.0, meant.1, is_announced);
                    self.hint(|live| live.name == stream);
                }
            }
            None if self.covered.cover(bytes) => {
                let is_announced = self.published.cover(bytes);
                self.write_change(name, kind, (0, value), Some(&alert), None, is_announced);
                self.hint(|stream| bytes.starts_with(&stream.prefix));
            }
            None => {}
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the columns of a row")]
    fn write_change(
        &mut self,
        name: &NameText,
        kind: Kind,
        (delta, value): (i128, i128),
        alert: Option<&[u8]>,
        stream: Option<&[u8]>,
        is_announced: bool,
    ) {
        /// So often it is looked whether there is room.
        const LOOK_EVERY: i64 = 4096;
        if self.is_full {
            return;
        }
        self.seq += 1;
        if self.seq % LOOK_EVERY == 0 && self.is_beyond_limit() {
            stream::note_gone(self.lane, self.number, Why::Size);
            self.is_full = true;
            return;
        }
        let values: [Option<pg_sys::Datum>; change::COLUMNS] = [
            Some(self.number.into()),
            Some(self.seq.into()),
            Some(self.at.into()),
            Some(name.datum()),
            Some(number::numeric(delta)),
            Some(number::numeric(value)),
            Some((kind.letter() as i8).into()),
            alert.map(text_datum),
            stream.map(text_datum),
        ];
        let changes = self.changes();
        // SAFETY: the columns of a table of changes; none is so long that it would be stored elsewhere.
        unsafe {
            if is_announced {
                changes.insert_announced(values);
            } else {
                changes.insert(values);
            }
        }
        failpoint!("stream.row_written");
    }

    fn changes(&mut self) -> &mut Inserter {
        let (lane, context) = (self.lane, self.context);
        self.changes.get_or_insert_with(|| {
            // SAFETY: the context outlives the fold, unlike that of the counter.
            let _switch = unsafe { MemorySwitch::to(context) };
            let oid = stream::changes_of(lane, stream::cell(lane).side);
            // Looks at it, and keeps it locked.
            drop(history_table::open_for_writing(oid));
            Inserter::open(oid).unwrap_or_else(|| catalog::gone())
        })
    }

    fn is_beyond_limit(&mut self) -> bool {
        let most = 2 * limit();
        stream::bytes(self.changes().table()) > most
    }

    fn states(&mut self) -> &mut Table {
        let context = self.context;
        self.states.get_or_insert_with(|| {
            // SAFETY: as above.
            let _switch = unsafe { MemorySwitch::to(context) };
            Table::open(catalog::relation_of("alert_state"), &alert_state::KEY, 2)
        })
    }

    fn hint(&mut self, is_meant: impl Fn(&Stream) -> bool) {
        if self.unhinted == 0 {
            return;
        }
        for live in &mut self.live {
            if live.stream.notify && !live.is_hinted && is_meant(&live.stream) {
                live.is_hinted = true;
                self.unhinted -= 1;
            }
        }
    }

    /// All is written.
    pub fn finish(self) {
        let _at_it = AtIt::begin();
        let fired = || self.alerts.iter().filter(|watching| watching.fired > 0);
        if fired().next().is_some() {
            let table = catalog::relation_of("alert_lane");
            let mut table = Table::open(table, &alert_lane::KEY, 2);
            for watching in fired() {
                write_fired(&mut table, self.lane, watching, self.at);
            }
        }
        if !way::is_worker() {
            return;
        }
        HINTS.with_borrow_mut(|hints| {
            let streams = self.live.iter().filter(|live| live.is_hinted);
            hints
                .streams
                .extend(streams.map(|live| live.stream.name.clone()));
            let alerts = fired().filter(|watching| watching.alert.stream.is_none());
            hints
                .alerts
                .extend(alerts.map(|watching| watching.alert.name.clone()));
            hints.folds.push((self.lane, self.number));
        });
    }
}

fn write_fired(table: &mut Table, lane: usize, watching: &Watching, at: i64) {
    let id = watching.alert.id;
    table
        .scan
        .seek(&[Key::int8_eq(1, id), Key::int4_eq(2, lane as i32)]);
    let known = table.scan.next(Direction::Forward);
    let before = known.as_ref().map_or(0, |row| row.int8(alert_lane::FIRED));
    let tid = known.map(|row| row.tid());
    let values = [
        id.into(),
        (lane as i32).into(),
        (before + watching.fired).into(),
        at.into(),
    ];
    // SAFETY: the columns of alert_lane; the indexes are those of this table.
    unsafe { tables::write_row(&table.table, table.indexes, tid, values.map(Some)) };
}

/// The streams whose consumers have missed nothing in a lane, when there is room for what a fold of this number writes.
fn live(lane: usize, number: i64, streams: Vec<Stream>, cursors: Vec<Cursor>) -> Vec<Live> {
    let mut cell = stream::cell(lane);
    let is_known = |cursor: &Cursor| streams.iter().any(|stream| stream.name == cursor.stream);
    let mut live: Vec<Cursor> = (cursors.into_iter())
        .filter(|cursor| cursor.is_live(cell) && is_known(cursor))
        .collect();
    if !live.is_empty() {
        make_room(lane, number, &mut live);
        cell = stream::cell(lane);
        live.retain(|cursor| cursor.is_live(cell));
    }
    let is_live = |stream: &Stream| live.iter().any(|cursor| cursor.stream == stream.name);
    (streams.into_iter())
        .filter(is_live)
        .map(|stream| Live {
            stream,
            is_hinted: false,
        })
        .collect()
}

/// Sees to it that a fold finds room. Nobody is waited for: consumers that are behind are lost, where there is none.
///
/// A consumer that is at work may read what is there, and come to stand before this very fold: whoever is left out by
/// it is locked, or stands behind what is gone by then.
fn make_room(lane: usize, number: i64, live: &mut Vec<Cursor>) {
    let side = stream::cell(lane).side;
    let Some(active) = Segment::open(lane, side) else {
        return;
    };
    if active.bytes() < limit() {
        return;
    }
    let Some(inactive) = Segment::open(lane, side.other()) else {
        stream::set_side(lane, side.other());
        failpoint!("stream.switched");
        return;
    };
    if active.bytes() > 2 * limit() {
        stream::note_gone(lane, number, Why::Size);
        return;
    }
    // It is emptied by upkeep when nobody needs it any more.
    if let Some(last) = inactive.last_fold() {
        live.retain(|cursor| {
            let is_behind = cursor.position < Position::end_of(last);
            !(is_behind && stream_upkeep::lose(cursor, Why::Size.reason()))
        });
    }
}

/// # Safety
/// The snapshot is active or registered.
unsafe fn tracked_types(shared: &SharedRels, snapshot: pg_sys::Snapshot) -> Vec<Box<[u8]>> {
    let table = tables::open(shared.types);
    let mut found = Vec::new();
    if table.blocks() == 0 {
        return found;
    }
    // SAFETY: the caller's promise.
    let mut scan = unsafe { TableScan::new(&table, snapshot) };
    while let Some(row) = scan.next() {
        let is_tracked = row.get(columns::types::TRACKED);
        if is_tracked.is_some_and(|datum| datum.value() != 0) {
            found.push(row.text(columns::types::NAME).into());
        }
    }
    found
}
