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

use crate::fold::at_it::AtIt;
use crate::fold::history_table::{self, Table};
use crate::fold::stream_upkeep;
use crate::fold::way;
use crate::pg::clock;
use crate::pg::error::log;
use crate::pg::insert::Inserter;
use crate::pg::memory::MemorySwitch;
use crate::pg::number;
use crate::pg::scan::{Direction, Key, TableScan};
use crate::pg::snapshot::LatestSnapshot;
use crate::pg::varlena::{NameText, text_datum};
use crate::store::catalog::{self, SharedRels};
use crate::store::columns::{self, alert_lane, alert_state, change};
use crate::store::stream::{self, Alert, Cursor, LaneCell, Stream, Why};
use crate::store::tables;
use counterx_core::alerts::Event;
use counterx_core::history;
use counterx_core::parts::type_of;
use counterx_core::streams::{self, Kind, Prefixes, shown};
use counterx_core::tally::Tally;
use counterx_core::windows::Stored;
use pgrx::pg_sys;
use std::cell::{Cell, RefCell};

thread_local! {
    /// What streams are told is being written. When an error ends that, it stays so until [`take_failure`].
    static AT_IT: Cell<bool> = const { Cell::new(false) };
    /// What this process, a worker, has written for whom.
    static HINTS: RefCell<Hints> = RefCell::default();
    /// The same of a fold that is not committed yet.
    static HELD: RefCell<Hints> = RefCell::default();
}

/// Has an error ended a fold in the midst of what it tells streams?
pub fn take_failure() -> bool {
    AT_IT.take()
}

/// Whom folds of this process have something for, since that was asked last.
#[derive(Default)]
pub struct Hints {
    /// Streams.
    pub streams: Vec<Box<[u8]>>,
    /// The last fold of each lane.
    pub folds: Vec<(usize, i64)>,
}

/// Takes them.
pub fn take_hints() -> Hints {
    HINTS.take()
}

/// The fold is committed whose hints were held back.
pub fn release_hints() {
    let held = HELD.take();
    HINTS.with_borrow_mut(|hints| {
        hints.streams.extend(held.streams);
        hints.folds.extend(held.folds);
    });
}

/// It has failed.
pub fn forget_hints() {
    drop(HELD.take());
}

/// A fold of this number leaves out what it would tell streams, as that cannot be written: they are lost. It uses
/// nothing that may be the reason, and does not fail.
pub fn leave_out(lane: usize, number: i64) {
    if !stream::note_gone_if_possible(lane, number, Why::Failure) {
        log(format!(
            "counterx: changes of lane {lane} are left out, and table counterx.stream_cell cannot say so; consumers of streams are refused as long as it is as it is"
        ));
    }
}

/// A stream that changes are written for.
struct Live {
    stream: Stream,
    /// Its consumer need not be told any more.
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
    /// It is one of a tracked table.
    is_tracked: bool,
    /// What is no change of the counter, but of what is known of it: a restore, and rows of a tracked table that were
    /// counted anew.
    silent: Option<Tally>,
}

impl Writer {
    /// What there is to be told by this snapshot. None: nobody wants to know anything.
    pub fn open(
        lane: usize,
        shared: &SharedRels,
        latest: &LatestSnapshot,
        number: i64,
    ) -> Option<Self> {
        let _at_it = AtIt::begin(&AT_IT);
        if !stream::may_be_any(shared) {
            return None;
        }
        // SAFETY: the snapshot is active.
        let streams = unsafe { stream::streams(shared, latest.as_ptr()) };
        let live = if stream_upkeep::has_room(lane) {
            live(lane, streams, latest)
        } else {
            live_in_full_lane(lane, number, streams, latest)
        };
        Self::with(live, lane, shared, latest, number)
    }

    /// The same where streams are left out: it needs none of their tables.
    pub fn of_alerts(
        lane: usize,
        shared: &SharedRels,
        latest: &LatestSnapshot,
        number: i64,
    ) -> Option<Self> {
        let _at_it = AtIt::begin(&AT_IT);
        Self::with(Vec::new(), lane, shared, latest, number)
    }

    fn with(
        live: Vec<Live>,
        lane: usize,
        shared: &SharedRels,
        latest: &LatestSnapshot,
        number: i64,
    ) -> Option<Self> {
        // SAFETY: the snapshot is active.
        let alerts = unsafe { stream::alerts(shared, latest.as_ptr()) };
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
                (live.iter())
                    .filter(|live| live.stream.notify && !live.is_hinted)
                    .count()
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
        run.is_tracked = run.is_watched
            && !self.tracked.is_empty()
            && type_of(name).is_some_and(|of| self.tracked.iter().any(|it| **it == *of));
        self.run = run;
    }

    /// Does anybody want to know of the counter?
    pub fn wants(&self) -> bool {
        self.run.is_covered || self.run.is_watched
    }

    /// A delta of the counter.
    pub fn add(&mut self, kind: history::Kind, tally: Tally) {
        use history::Kind::{Increment, Restored};
        self.run.is_adjusted |= kind != Increment;
        if kind == Restored || (kind != Increment && self.run.is_tracked) {
            self.run.silent = Some(self.run.silent.unwrap_or_default() + tally);
        }
    }

    /// The counter's total was `old`, and is `new`. In a memory context that goes before the next one.
    pub fn write(&mut self, name: &NameText, bytes: &[u8], old: Tally, new: Tally) {
        let _at_it = AtIt::begin(&AT_IT);
        // There may be more of the same counter.
        let is_adjusted = std::mem::take(&mut self.run.is_adjusted);
        let silent = self.run.silent.take();
        if self.run.is_covered
            && let Some((kind, delta)) = streams::change(old, new, is_adjusted)
        {
            let value = shown(new).unwrap_or(0);
            let is_announced = self.published.cover(bytes);
            self.write_change(name, kind, (delta, value), None, None, is_announced);
            self.hint(|stream| bytes.starts_with(&stream.prefix));
        }
        if self.run.is_watched {
            let silent = silent.map(|silent| shown(old + silent));
            for at in 0..self.alerts.len() {
                if bytes.starts_with(&self.alerts[at].alert.prefix) {
                    self.judge(at, name, bytes, silent, shown(new));
                }
            }
        }
    }

    /// Judges an alert by a counter's value. `silent`: what that would be by what nobody is to be told of.
    fn judge(
        &mut self,
        at: usize,
        name: &NameText,
        bytes: &[u8],
        silent: Option<Option<i128>>,
        value: Option<i128>,
    ) {
        let Alert { id, threshold, .. } = self.alerts[at].alert;
        if silent.is_none() && value.is_some_and(|value| threshold.keeps(value)) {
            return;
        }
        let (lane, now) = (self.lane as i32, self.at);
        let states = self.states();
        states
            .scan
            .seek(&[Key::text_eq(1, name.datum()), Key::int8_eq(2, id)]);
        let mut known = (states.scan.next(Direction::Forward)).map(|row| row.tid());
        let had_fired = match silent {
            Some(silent) => threshold.judge(known.is_some(), silent, true).0,
            None => known.is_some(),
        };
        let (has_fired, event) = threshold.judge(had_fired, value, false);
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
            stream_upkeep::leave_out(self.lane, self.number);
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
        stream_upkeep::is_beyond_limit(stream::bytes(self.changes().table()))
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
        let _at_it = AtIt::begin(&AT_IT);
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
        HELD.with_borrow_mut(|hints| {
            let streams = self.live.iter().filter(|live| live.is_hinted);
            hints
                .streams
                .extend(streams.map(|live| live.stream.name.clone()));
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

/// The streams that a fold writes for: those whose consumers may still get all, and those that are published, as who
/// follows them by logical decoding gets all, whatever becomes of the place. And those that get the same anyway: nobody
/// looks where these are, so that a hundred streams of one prefix cost a fold what one does.
///
/// Who has locked his cursor may be about to move it past what is gone by now. So that alone leaves no stream out: one
/// is left out when it is said to be lost, and nobody is at work who could say otherwise.
fn live(lane: usize, mut streams: Vec<Stream>, latest: &LatestSnapshot) -> Vec<Live> {
    let cell = stream::cell(lane);
    // A prefix comes before all that begin with it.
    streams.sort_by(|one, other| one.prefix.cmp(&other.prefix));
    let mut live: Vec<Live> = Vec::with_capacity(streams.len());
    let mut covered: Option<Box<[u8]>> = None;
    let mut announced: Option<Box<[u8]>> = None;
    for stream in streams {
        let is_in = |prefix: &Option<Box<[u8]>>| {
            (prefix.as_deref()).is_some_and(|prefix| stream.prefix.starts_with(prefix))
        };
        let is_told_anyway = is_in(&covered) && (!stream.publish || is_in(&announced));
        let is_live = is_told_anyway || {
            // SAFETY: the snapshot is active.
            let cursors =
                unsafe { stream::cursors_in(lane, std::slice::from_ref(&stream), latest.as_ptr()) };
            let Some(cursor) = cursors.first() else {
                continue;
            };
            may_get_all(cursor, cell)
        };
        if !is_live && !stream.publish {
            continue;
        }
        if !is_in(&covered) {
            covered = Some(stream.prefix.clone());
        }
        if stream.publish && !is_in(&announced) {
            announced = Some(stream.prefix.clone());
        }
        live.push(Live {
            stream,
            is_hinted: !is_live,
        });
    }
    live
}

/// Has a consumer missed nothing, or may he be about to say so?
fn may_get_all(cursor: &Cursor, cell: LaneCell) -> bool {
    cursor.lost_reason.is_none()
        && (cursor.is_live(cell) || !stream_upkeep::lose(cursor, cell.why.reason()))
}

/// The same where a fold of this number has to make room first. None where there is no room.
fn live_in_full_lane(
    lane: usize,
    number: i64,
    streams: Vec<Stream>,
    latest: &LatestSnapshot,
) -> Vec<Live> {
    // SAFETY: the snapshot is active.
    let mut cursors = unsafe { stream::cursors_in(lane, &streams, latest.as_ptr()) };
    let is_any_published = streams.iter().any(|stream| stream.publish);
    cursors.retain(|cursor| cursor.lost_reason.is_none());
    if cursors.is_empty() && !is_any_published {
        return Vec::new();
    }
    if !stream_upkeep::make_room(lane, number, &streams, &mut cursors, latest) {
        return Vec::new();
    }
    live(lane, streams, latest)
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
