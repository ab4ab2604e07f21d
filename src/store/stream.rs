//! Streams on disk: what was asked for, how far consumers have come, and the changes that wait for them.
//!
//! A lane has two tables of changes, which are used in turn, and its part of a cell: which of them is written to, and
//! through which fold changes may be gone. The cell is changed in place, before what it says becomes true.
//!
//! # Invariants
//! - Changes and the cell are written by the holder of the lane's lease alone. The numbers of folds ascend within a
//!   table, and those in the table that is written to are above those in the other: it is changed to the other one
//!   only when that is empty.
//! - A table is emptied with a lock that nobody gets who reads it, after the cell says so: whoever has read changes
//!   looks at the cell then.

use crate::pg::cell;
use crate::pg::number;
use crate::pg::relation::Relation;
use crate::pg::scan::{Direction, IndexScan, Key, Row, TableScan};
use crate::pg::snapshot;
use crate::pg::varlena::{NameText, text_bytes};
use crate::store::catalog::{self, SharedRels};
use crate::store::columns::{self, change};
use crate::store::history::Interval;
use crate::store::shape;
use crate::store::tables;
use counterx_core::alerts::Threshold;
use counterx_core::gate::Side;
use counterx_core::lane::LANES;
use counterx_core::streams::{Change, Kind, Position};
use pgrx::pg_sys;
use std::ops::ControlFlow;

/// What somebody has asked for.
pub struct Stream {
    /// Its name.
    pub name: Box<[u8]>,
    /// What the names of its counters begin with.
    pub prefix: Box<[u8]>,
    /// All changes of a counter are wanted, and not only what they come to.
    pub is_every: bool,
    /// How long changes wait.
    pub keep: Interval,
    /// Consumers are told that there are changes.
    pub notify: bool,
    /// Changes are announced to logical decoding.
    pub publish: bool,
    /// The role whose members may consume.
    pub consumer: Box<[u8]>,
}

/// How far a stream's consumer has come in a lane.
#[derive(Clone)]
pub struct Cursor {
    /// The stream.
    pub stream: Box<[u8]>,
    /// The lane.
    pub lane: usize,
    /// All through there is done.
    pub position: Position,
    /// Which life of which database that was said in.
    pub era: i64,
    /// Which start of the stream it is of.
    pub incarnation: [u8; 16],
    /// Why something is missing behind it.
    pub lost_reason: Option<Box<[u8]>>,
}

/// A threshold that counters are watched for.
pub struct Alert {
    /// What its states refer to.
    pub id: i64,
    /// Its name.
    pub name: Box<[u8]>,
    /// What the names of its counters begin with.
    pub prefix: Box<[u8]>,
    /// What it goes by.
    pub threshold: Threshold,
    /// The stream that is told; None: all that have the counter.
    pub stream: Option<Box<[u8]>>,
}

fn text(row: &Row, column: usize) -> Option<Box<[u8]>> {
    // SAFETY: a text of a row that the scan stands on; what is stored otherwise is unpacked in the current memory
    // context.
    row.get(column)
        .map(|datum| unsafe { text_bytes(datum) }.into())
}

fn some_text(row: &Row, column: usize) -> Box<[u8]> {
    text(row, column).expect("the column is NOT NULL")
}

fn boolean(row: &Row, column: usize) -> bool {
    row.get(column).is_some_and(|datum| datum.value() != 0)
}

/// Is there any stream or alert, for anybody? A look at the sizes of two tables.
pub fn may_be_any(shared: &SharedRels) -> bool {
    tables::open(shared.stream).blocks() > 0 || tables::open(shared.alert).blocks() > 0
}

/// All streams that a snapshot sees.
///
/// # Safety
/// The snapshot is a static one, active or registered.
pub unsafe fn streams(shared: &SharedRels, snapshot: pg_sys::Snapshot) -> Vec<Stream> {
    use columns::stream::{CONSUMER, KEEP, MODE, NAME, NOTIFY, PREFIX, PUBLISH};
    let table = tables::open(shared.stream);
    let mut found = Vec::new();
    if table.blocks() == 0 {
        return found;
    }
    // SAFETY: the caller's promise.
    let mut scan = unsafe { TableScan::new(&table, snapshot) };
    while let Some(row) = scan.next() {
        found.push(Stream {
            name: some_text(&row, NAME),
            prefix: some_text(&row, PREFIX),
            is_every: *some_text(&row, MODE) == *b"every",
            // SAFETY: an interval of a row that the scan stands on.
            keep: unsafe { Interval::of(row.get(KEEP).expect("the column is NOT NULL")) },
            notify: boolean(&row, NOTIFY),
            publish: boolean(&row, PUBLISH),
            consumer: some_text(&row, CONSUMER),
        });
    }
    found
}

/// The stream of this name, if the snapshot sees it.
///
/// # Safety
/// As of [`streams`].
pub unsafe fn stream(name: &[u8], snapshot: pg_sys::Snapshot) -> Option<Stream> {
    // SAFETY: the caller's promise.
    let all = unsafe { streams(&catalog::shared(), snapshot) };
    all.into_iter().find(|stream| *stream.name == *name)
}

/// All alerts that a snapshot sees. What somebody has made by force is left out.
///
/// # Safety
/// As of [`streams`].
pub unsafe fn alerts(shared: &SharedRels, snapshot: pg_sys::Snapshot) -> Vec<Alert> {
    use columns::alert::{ABOVE, BELOW, ID, NAME, PREFIX, REARM, STREAM};
    let table = tables::open(shared.alert);
    let mut found = Vec::new();
    if table.blocks() == 0 {
        return found;
    }
    // SAFETY: the caller's promise.
    let mut scan = unsafe { TableScan::new(&table, snapshot) };
    while let Some(row) = scan.next() {
        let number = |column| row.get(column).map(|datum| datum.value() as i64);
        let Ok(threshold) = Threshold::new(number(BELOW), number(ABOVE), number(REARM)) else {
            continue;
        };
        found.push(Alert {
            id: row.int8(ID),
            name: some_text(&row, NAME),
            prefix: some_text(&row, PREFIX),
            threshold,
            stream: text(&row, STREAM),
        });
    }
    found
}

/// How far the consumers of all streams have come.
///
/// # Safety
/// As of [`streams`].
pub unsafe fn cursors(snapshot: pg_sys::Snapshot) -> Vec<Cursor> {
    let table = tables::open(catalog::relation_of("cursor"));
    let mut found = Vec::new();
    if table.blocks() == 0 {
        return found;
    }
    // SAFETY: the caller's promise.
    let mut scan = unsafe { TableScan::new(&table, snapshot) };
    while let Some(row) = scan.next() {
        found.extend(cursor(&row));
    }
    found
}

/// How far those of these streams have come in a lane.
///
/// # Safety
/// As of [`streams`].
pub unsafe fn cursors_in(
    lane: usize,
    streams: &[Stream],
    snapshot: pg_sys::Snapshot,
) -> Vec<Cursor> {
    let table = tables::open(catalog::relation_of("cursor"));
    let mut found = Vec::new();
    if table.blocks() == 0 {
        return found;
    }
    let index = tables::index_of(&table, &columns::cursor::KEY);
    // By the key: beside an old snapshot the table has all versions of all cursors.
    // SAFETY: the caller's promise.
    let mut scan = unsafe { IndexScan::new(&table, &index, snapshot, 2) };
    for stream in streams {
        let name = NameText::new(&stream.name);
        scan.seek(&[Key::text_eq(1, name.datum()), Key::int4_eq(2, lane as i32)]);
        if let Some(row) = scan.next(Direction::Forward) {
            found.extend(cursor(&row));
        }
    }
    found
}

/// How far those of one stream have come, by lane.
///
/// # Safety
/// As of [`streams`].
pub unsafe fn cursors_of(name: &[u8], snapshot: pg_sys::Snapshot) -> Vec<Cursor> {
    let table = tables::open(catalog::relation_of("cursor"));
    let index = tables::index_of(&table, &columns::cursor::KEY);
    let name = NameText::new(name);
    // SAFETY: the caller's promise.
    let mut scan = unsafe { IndexScan::new(&table, &index, snapshot, 1) };
    scan.seek(&[Key::text_eq(1, name.datum())]);
    let mut found = Vec::new();
    while let Some(row) = scan.next(Direction::Forward) {
        found.extend(cursor(&row));
    }
    found
}

/// None: of a lane that there is not.
fn cursor(row: &Row) -> Option<Cursor> {
    use columns::cursor::{ERA, FOLD, INCARNATION, LANE, LOST_REASON, SEQ, STREAM};
    let lane = row.get(LANE).map_or(LANES, |datum| datum.value());
    let incarnation = row.get(INCARNATION).expect("the column is NOT NULL");
    (lane < LANES).then(|| Cursor {
        stream: some_text(row, STREAM),
        lane,
        position: Position {
            fold: row.int8(FOLD),
            seq: row.int8(SEQ),
        },
        era: row.int8(ERA),
        // SAFETY: a uuid of a row that the scan stands on.
        incarnation: unsafe { *incarnation.cast_mut_ptr::<[u8; 16]>() },
        lost_reason: text(row, LOST_REASON),
    })
}

impl Cursor {
    /// Is there nothing missing behind it?
    pub fn is_live(&self, cell: LaneCell) -> bool {
        self.lost_reason.is_none() && !self.position.is_lost(cell.gone)
    }
}

/// Why changes are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// All have read them.
    Read,
    /// There was no more room.
    Size,
    /// They could not be written.
    Failure,
}

impl Why {
    fn number(self) -> i64 {
        match self {
            Self::Read => 0,
            Self::Size => 1,
            Self::Failure => 2,
        }
    }

    fn of_number(number: i64) -> Self {
        match number {
            1 => Self::Size,
            2 => Self::Failure,
            _ => Self::Read,
        }
    }

    /// What a stream is told that has missed them.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Read => "changes were removed before they were read",
            Self::Size => "changes that were not read took more than counterx.stream_max_size",
            Self::Failure => "changes could not be written; the server's log says why",
        }
    }
}

/// A lane's part of the cell.
#[derive(Clone, Copy, Debug)]
pub struct LaneCell {
    /// The table that is written to.
    pub side: Side,
    /// Changes of folds through this one may be gone.
    pub gone: i64,
    /// Why.
    pub why: Why,
}

const NUMBERS: usize = 3 * LANES;

fn open_cell() -> Relation {
    tables::open(catalog::relation_of("stream_cell"))
}

/// Reads a lane's part of the cell.
pub fn cell(lane: usize) -> LaneCell {
    let numbers = cell::read::<NUMBERS>(&open_cell());
    LaneCell {
        side: if numbers[3 * lane] & 1 == 0 {
            Side::A
        } else {
            Side::B
        },
        gone: numbers[3 * lane + 1],
        why: Why::of_number(numbers[3 * lane + 2]),
    }
}

/// Changes of folds through this one may be gone from now on. The caller holds the lane's lease.
pub fn note_gone(lane: usize, through: i64, why: Why) {
    cell::update::<NUMBERS>(&open_cell(), |numbers| {
        with_gone(numbers, lane, through, why)
    });
}

fn with_gone(mut numbers: [i64; NUMBERS], lane: usize, through: i64, why: Why) -> [i64; NUMBERS] {
    if numbers[3 * lane + 1] < through {
        numbers[3 * lane + 1] = through;
        // Nobody misses what all have read: the reason stays that of who has missed something.
        if why != Why::Read {
            numbers[3 * lane + 2] = why.number();
        }
    }
    numbers
}

/// The same where the cell is as it should be. False: it is not, and whoever reads it finds that.
pub fn note_gone_if_possible(lane: usize, through: i64, why: Why) -> bool {
    let table = catalog::try_relation_of("stream_cell").and_then(Relation::open_for_read);
    let table = table.filter(|table| table.blocks() > 0 && shape::fits(table));
    table.is_some_and(|table| {
        cell::try_update::<NUMBERS>(&table, |numbers| with_gone(numbers, lane, through, why))
            .is_some()
    })
}

/// Another table is written to from now on. The caller holds the lane's lease, and the table is empty.
pub fn set_side(lane: usize, side: Side) {
    cell::update::<NUMBERS>(&open_cell(), |mut numbers| {
        numbers[3 * lane] = side.index() as i64;
        numbers
    });
}

/// A lane's table of changes.
pub fn changes_of(lane: usize, side: Side) -> pg_sys::Oid {
    let letter = ["a", "b"][side.index()];
    catalog::relation_of(&format!("change_{lane}_{letter}"))
}

/// A table of changes that is not empty, open for reading.
pub struct Segment {
    // The index is closed first.
    index: Relation,
    table: Relation,
}

impl Segment {
    /// Opens one. None: it is empty.
    pub fn open(lane: usize, side: Side) -> Option<Self> {
        let table = tables::open_log_table(changes_of(lane, side));
        (table.blocks() > 0).then(|| Self {
            index: tables::index_of(&table, &change::KEY),
            table,
        })
    }

    /// The number of the last fold of which it has a change, as far as that is committed. None: it has none.
    pub fn last_fold(&self) -> Option<i64> {
        // SAFETY: the snapshot is a static.
        let mut scan =
            unsafe { IndexScan::new(&self.table, &self.index, snapshot::self_snapshot(), 0) };
        scan.seek(&[]);
        scan.next(Direction::Backward)
            .map(|row| row.int8(change::FOLD))
    }

    /// When the first change was folded that it has, likewise.
    pub fn first_at(&self) -> Option<i64> {
        // SAFETY: the snapshot is a static.
        let mut scan =
            unsafe { IndexScan::new(&self.table, &self.index, snapshot::self_snapshot(), 0) };
        scan.seek(&[]);
        scan.next(Direction::Forward).map(|row| at(&row))
    }

    /// Its size in bytes, of which the index is a third.
    pub fn bytes(&self) -> u64 {
        bytes(&self.table)
    }
}

/// The size of a table of changes with its index, nearly.
pub fn bytes(table: &Relation) -> u64 {
    u64::from(table.blocks()) * u64::from(pg_sys::BLCKSZ) / 2 * 3
}

/// The tables of changes of a lane, open for reading: none is emptied meanwhile.
pub struct Changes {
    segments: Vec<Segment>,
}

impl Changes {
    /// Opens them.
    pub fn open(lane: usize) -> Self {
        let mut both = Side::BOTH.map(|side| Segment::open(lane, side));
        // Neither is emptied from here on, so where there are both, this stays as it is.
        if cell(lane).side == Side::A {
            both.reverse();
        }
        Self {
            segments: both.into_iter().flatten().collect(),
        }
    }

    /// Visits the changes behind a position, in their order, through this fold.
    ///
    /// # Safety
    /// The snapshot is an MVCC one, active or registered.
    pub unsafe fn visit_after(
        &self,
        after: Position,
        through: i64,
        snapshot: pg_sys::Snapshot,
        mut visit: impl FnMut(&Row) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let rest_of_fold = [Key::int8_eq(1, after.fold), Key::int8_gt(2, after.seq)];
        let later = [Key::int8_gt(1, after.fold), Key::int8_le(1, through)];
        let rest = (after.seq != i64::MAX).then_some(rest_of_fold);
        for keys in rest.into_iter().chain([later]) {
            for segment in &self.segments {
                // SAFETY: the caller's promise.
                let mut scan =
                    unsafe { IndexScan::new(&segment.table, &segment.index, snapshot, 2) };
                scan.seek(&keys);
                while let Some(row) = scan.next(Direction::Forward) {
                    pgrx::check_for_interrupts!();
                    visit(&row)?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// The size of what a consumer at this position has not passed, in bytes.
    pub fn bytes_after(&self, after: Position) -> u64 {
        let is_passed = |segment: &&Segment| {
            // SAFETY: the snapshot is a static.
            let mut scan = unsafe {
                IndexScan::new(&segment.table, &segment.index, snapshot::any_snapshot(), 0)
            };
            scan.seek(&[]);
            let last = scan.next(Direction::Backward);
            last.is_none_or(|row| position(&row) <= after)
        };
        (self.segments.iter())
            .filter(|segment| !is_passed(segment))
            .map(Segment::bytes)
            .sum()
    }
}

/// Where a change stands.
pub fn position(row: &Row) -> Position {
    Position {
        fold: row.int8(change::FOLD),
        seq: row.int8(change::SEQ),
    }
}

/// When a change was folded.
pub fn at(row: &Row) -> i64 {
    row.int8(change::AT)
}

/// Is a change one that a stream wants?
pub fn is_of(row: &Row, stream: &[u8], prefix: &[u8]) -> bool {
    // SAFETY: as of `text`.
    let meant = row
        .get(change::STREAM)
        .map(|datum| unsafe { text_bytes(datum) });
    match meant {
        Some(meant) => meant == stream,
        None => row.text(change::NAME).starts_with(prefix),
    }
}

/// What a row of changes says. None: a later version has written it.
pub fn read(row: &Row, lane: usize) -> Option<Change> {
    let letter = row.get(change::KIND).map_or(0, |datum| datum.value() as u8);
    // SAFETY: a numeric; it is too short to be stored out of line or compressed.
    let number =
        |column| unsafe { number::total(row.get(column).expect("the column is NOT NULL")) };
    Some(Change {
        name: row.text(change::NAME).into(),
        kind: Kind::of_letter(letter)?,
        delta: number(change::DELTA),
        value: number(change::VALUE),
        alert: text(row, change::ALERT),
        at: at(row),
        lane,
        position: position(row),
    })
}
