//! What was counted when, on disk: which types have a history, and the rows of their buckets.
//!
//! A *series* is one unit of one type. Its rows are in the tables of its class, by the starts of their buckets
//! (`crates/core/src/history.rs`), in those of the classes that it had before, and in the one that restores
//! fill. A series that is gone leaves rows that nobody looks for.
//!
//! # Invariants
//! - Rows of a counter are written by the holder of its lane's lease alone, and never in [`restored`].
//! - No row is older than `expired` for any snapshot that sees it, whatever is emptied: first that is committed, then
//!   all snapshots have to see it, then `cut` is written, and then a table is emptied.

use crate::pg::cell;
use crate::pg::error::{raise, report};
use crate::pg::number;
use crate::pg::relation::Relation;
use crate::pg::scan::{Direction, IndexScan, Key, Row, TableScan};
use crate::pg::snapshot;
use crate::pg::spot::SpotRow;
use crate::pg::time;
use crate::pg::varlena::{NameText, text_bytes};
use crate::store::catalog::{self, SharedRels};
use crate::store::columns::{self, bucket, history};
use crate::store::tables;
use counterx_core::history::{Begin, Class, Stored, Sums, Unit};
use pgrx::{PgSqlErrorCode, pg_sys};

/// One unit of a type's history.
#[derive(Clone, Debug)]
pub struct Series {
    /// What rows of its buckets refer to.
    pub id: i64,
    /// The type: what names begin with, before the colon.
    pub type_name: Box<[u8]>,
    /// The unit.
    pub unit: Unit,
    /// How long rows are shown; None: for ever.
    pub keep: Option<Interval>,
    /// Where rows are written.
    pub class: Class,
    /// Where they were written before, and which: those that begin before a time, or perhaps all.
    former: Vec<(Class, Option<i64>)>,
    /// The time zone.
    pub zone: Box<[u8]>,
    /// Since when it is known in all lanes, where a restore has brought it; None: `history_lane` says it.
    pub since: Option<i64>,
    /// Rows that begin earlier were hidden by a shorter time to keep; None: none were.
    complete: Option<i64>,
}

/// An interval, as the server has it.
#[derive(Clone, Copy, Debug)]
pub struct Interval(pg_sys::Interval);

impl Interval {
    /// A copy.
    ///
    /// # Safety
    /// The datum is an interval.
    pub unsafe fn of(datum: pg_sys::Datum) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { *datum.cast_mut_ptr::<pg_sys::Interval>() })
    }

    /// A time that is earlier by this.
    pub fn before(mut self, time: i64) -> i64 {
        let datum = pg_sys::Datum::from(&raw mut self.0);
        // SAFETY: an interval.
        unsafe { time::earlier_in_utc(time, datum) }
    }

    /// The datum; valid as long as `self` stays where it is.
    pub fn datum(&self) -> pg_sys::Datum {
        pg_sys::Datum::from(&raw const self.0)
    }
}

impl Series {
    fn read(row: &Row) -> Self {
        let text = |column| {
            // SAFETY: a text of a row that the scan stands on; what is longer than a row is unpacked in the current
            // memory context.
            unsafe { text_bytes(row.get(column).expect("the column is NOT NULL")) }
        };
        let number = |column| row.get(column).expect("the column is NOT NULL").value();
        let class = Class::of_number(number(history::CLASS));
        let unit = Unit::of_name(text(history::UNIT));
        let (Some(class), Some(unit)) = (class, unit) else {
            raise(
                report(
                    PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    "the table counterx.history has a unit or class that the extension counterx does not know",
                )
                .set_hint("Rows are made by counter_history(). Delete the one that is not."),
            )
        };
        Self {
            id: row.int8(history::ID),
            type_name: text(history::TYPE).into(),
            unit,
            // SAFETY: an interval of a row that the scan stands on.
            keep: row
                .get(history::KEEP)
                .map(|datum| unsafe { Interval(*datum.cast_mut_ptr::<pg_sys::Interval>()) }),
            class,
            former: Vec::new(),
            zone: text(history::ZONE).into(),
            since: row.get(history::SINCE).map(|datum| datum.value() as i64),
            complete: row.get(history::COMPLETE).map(|datum| datum.value() as i64),
        }
    }

    /// The classes whose tables may have rows of it, the one that is written to first.
    pub fn classes(&self) -> impl Iterator<Item = Class> {
        self.classes_from(i64::MIN)
    }

    /// Those whose tables may have rows of it that begin at this time or later.
    pub fn classes_from(&self, first: i64) -> impl Iterator<Item = Class> {
        let former = self.former.iter().filter(move |(class, until)| {
            *class != self.class && until.is_none_or(|until| until > first)
        });
        std::iter::once(self.class).chain(former.map(|(class, _)| *class))
    }

    /// From where on all of its rows are there still, and were all the time: in any class that it has had, those that
    /// have expired may be gone.
    pub fn complete_from(&self, expired: &[Option<i64>; Class::FINITE]) -> i64 {
        let expired = |class: Class| expired.get(class.number()).copied().flatten();
        let former = self.former.iter().filter_map(|(class, until)| {
            let expired = expired(*class)?;
            Some(until.map_or(expired, |until| until.min(expired)))
        });
        former
            .chain(expired(self.class))
            .chain(self.complete)
            .max()
            .unwrap_or(i64::MIN)
    }

    /// Are there rows among those that are kept for ever, though it is not any more?
    pub fn was_for_ever(&self) -> bool {
        self.class != Class::FOR_EVER
            && self
                .former
                .iter()
                .any(|(class, _)| *class == Class::FOR_EVER)
    }

    /// From where on they are all there, when they have another time to keep from now on, at which all is sealed
    /// through `sealed`.
    pub fn complete_at_change(&self, sealed: i64) -> Option<i64> {
        let hidden = self.keep.map(|keep| keep.before(sealed));
        hidden.max(self.complete)
    }

    /// Is there a class of which is not known yet what was written to it?
    pub fn has_open_class(&self) -> bool {
        let mut former = self.former.iter();
        former.any(|(class, until)| *class != self.class && until.is_none())
    }
}

/// All series that a snapshot sees, or those of one type. Nearly always there are few, or none.
///
/// # Safety
/// The snapshot is a static one, active or registered.
pub unsafe fn series(
    shared: &SharedRels,
    type_name: Option<&[u8]>,
    snapshot: pg_sys::Snapshot,
) -> Vec<Series> {
    let table = tables::open(shared.history);
    if table.blocks() == 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    // SAFETY: the caller's promise.
    let mut scan = unsafe { TableScan::new(&table, snapshot) };
    while let Some(row) = scan.next() {
        if type_name.is_none_or(|wanted| row.text(history::TYPE) == wanted) {
            found.push(Series::read(&row));
        }
    }
    if !found.is_empty() {
        // SAFETY: the caller's promise.
        unsafe { read_classes(&mut found, snapshot) };
    }
    found
}

/// # Safety
/// As of [`series`].
unsafe fn read_classes(all: &mut [Series], snapshot: pg_sys::Snapshot) {
    use columns::history_class::{CLASS, HISTORY, UNTIL};
    let table = tables::open(catalog::relation_of("history_class"));
    if table.blocks() == 0 {
        return;
    }
    // SAFETY: the caller's promise.
    let mut scan = unsafe { TableScan::new(&table, snapshot) };
    while let Some(row) = scan.next() {
        let id = row.int8(HISTORY);
        let class = row.get(CLASS).expect("the column is NOT NULL").value();
        let until = row.get(UNTIL).map(|datum| datum.value() as i64);
        if let Some(class) = Class::of_number(class)
            && let Some(series) = all.iter_mut().find(|series| series.id == id)
        {
            series.former.push((class, until));
        }
    }
}

/// Is there any series, for anybody? A look at the size of a table, as nearly always there is none.
pub fn may_be_any(shared: &SharedRels) -> bool {
    tables::open(shared.history).blocks() > 0
}

/// Where series begin in a lane, by their ids.
///
/// # Safety
/// As of [`series`].
pub unsafe fn begins_of_lane(lane: usize, snapshot: pg_sys::Snapshot) -> Vec<(i64, Begin)> {
    use columns::history_lane::{HISTORY, LANE};
    let table = tables::open(catalog::relation_of("history_lane"));
    let mut found = Vec::new();
    if table.blocks() == 0 {
        return found;
    }
    // SAFETY: the caller's promise.
    let mut scan = unsafe { TableScan::new(&table, snapshot) };
    while let Some(row) = scan.next() {
        let number = row.get(LANE).expect("the column is NOT NULL").value();
        if number as i32 == lane as i32 {
            found.push((row.int8(HISTORY), begin(&row)));
        }
    }
    found
}

/// Where a series begins in a lane. One that a restore has brought is there before any fold of the lane.
///
/// # Safety
/// As of [`series`].
pub unsafe fn begin_in_lane(series: &Series, lane: usize, snapshot: pg_sys::Snapshot) -> Begin {
    use columns::history_lane::KEY;
    let restored = Begin {
        epoch: 0,
        at: series.since.unwrap_or(i64::MIN),
        since: series.since,
    };
    if series.since.is_some() {
        return restored;
    }
    let table = tables::open(catalog::relation_of("history_lane"));
    let index = tables::index_of(&table, &KEY);
    // SAFETY: the caller's promise.
    let mut scan = unsafe { IndexScan::new(&table, &index, snapshot, 2) };
    scan.seek(&[Key::int8_eq(1, series.id), Key::int4_eq(2, lane as i32)]);
    let noted = scan.next(Direction::Forward).map(|row| begin(&row));
    noted.unwrap_or(restored)
}

/// Has any lane noted a series of this id?
pub fn is_noted(id: i64) -> bool {
    use columns::history_lane::KEY;
    let table = tables::open(catalog::relation_of("history_lane"));
    let index = tables::index_of(&table, &KEY);
    // SAFETY: the snapshot is a static.
    let mut scan = unsafe { IndexScan::new(&table, &index, snapshot::self_snapshot(), 1) };
    scan.seek(&[Key::int8_eq(1, id)]);
    scan.next(Direction::Forward).is_some()
}

fn begin(row: &Row) -> Begin {
    use columns::history_lane::{AT, EPOCH, SINCE};
    Begin {
        epoch: row.int8(EPOCH),
        at: row.int8(AT),
        since: row.get(SINCE).map(|datum| datum.value() as i64),
    }
}

/// The name of a table of buckets.
pub fn table_name(class: Class, table: usize) -> String {
    format!("bucket_{}_{table}", class.number())
}

/// A table of buckets, open for reading, and its index.
pub struct Buckets {
    // The index is closed first.
    index: Relation,
    /// The table.
    pub table: Relation,
}

impl Buckets {
    /// Opens one. None: it is empty.
    pub fn open(oid: pg_sys::Oid) -> Option<Self> {
        // Where there may be a TRUNCATE, as on logs.
        let table = tables::open_log_table(oid);
        (table.blocks() > 0).then(|| Self {
            index: tables::index_of(&table, &bucket::KEY),
            table,
        })
    }

    /// Opens one of a class.
    pub fn numbered(class: Class, table: usize) -> Option<Self> {
        Self::open(catalog::relation_of(&table_name(class, table)))
    }

    /// Opens the one that restores fill.
    pub fn restored() -> Option<Self> {
        Self::open(restored())
    }

    /// A scan of it, by `keys` conditions of which the first two are name and series.
    ///
    /// # Safety
    /// The snapshot is a static one, active or registered, and lives as long as the scan.
    pub unsafe fn scan(&self, snapshot: pg_sys::Snapshot, keys: usize) -> IndexScan {
        // SAFETY: the caller's promise.
        unsafe { IndexScan::new(&self.table, &self.index, snapshot, keys) }
    }
}

/// The conditions for the rows of a counter in a series.
pub fn keys_of(name: &NameText, series: i64) -> [Key; 2] {
    [Key::text_eq(1, name.datum()), Key::int8_eq(2, series)]
}

/// `start >= time`
pub fn from(time: i64) -> Key {
    Key::timestamptz_ge(3, time)
}

/// `start <= time`
pub fn through(time: i64) -> Key {
    Key::timestamptz_le(3, time)
}

/// The table that restores fill.
pub fn restored() -> pg_sys::Oid {
    catalog::relation_of("bucket_restored")
}

/// What a row of a bucket says.
pub fn stored(row: &Row) -> Stored {
    // The last column first: rows are taken apart from the left, and up to where somebody looks.
    let _ = row.get(bucket::DOWNS);
    read(|column| row.get(column).expect("the column is NOT NULL"))
}

/// What was counted in it, alone: for who looks at very many.
pub fn delta(row: &Row) -> i128 {
    let delta = row.get(bucket::DELTA).expect("the column is NOT NULL");
    // SAFETY: as of `read`.
    unsafe { number::total(delta) }
}

fn read(datum: impl Fn(usize) -> pg_sys::Datum) -> Stored {
    // SAFETY: a numeric; what we write is in line, and so short that nobody compresses it.
    let number = |column| unsafe { number::total(datum(column)) };
    Stored {
        start: datum(bucket::START).value() as i64,
        sums: Sums {
            delta: number(bucket::DELTA),
            adjusted: number(bucket::ADJUSTED),
            ups: number(bucket::UPS),
            downs: number(bucket::DOWNS),
            changes: datum(bucket::CHANGES).value() as i64,
        },
        value: number(bucket::VALUE),
    }
}

/// The same of one that was found at its spot.
pub fn stored_at_spot(row: &SpotRow<{ bucket::COLUMNS }>) -> Stored {
    let datum = |column| row.get(column).expect("the column is NOT NULL");
    read(datum)
}

/// The columns of a row of the counter whose name this text is, in the current memory context.
pub fn values_of(
    name: pg_sys::Datum,
    series: i64,
    row: &Stored,
) -> [Option<pg_sys::Datum>; bucket::COLUMNS] {
    let Sums {
        delta,
        adjusted,
        ups,
        downs,
        changes,
    } = row.sums;
    [
        series.into(),
        row.start.into(),
        changes.into(),
        name,
        number::numeric(row.value),
        number::numeric(delta),
        number::numeric(adjusted),
        number::numeric(ups),
        number::numeric(downs),
    ]
    .map(Some)
}

/// All that begins before this is not shown, by class, for a snapshot.
///
/// # Safety
/// As of [`series`].
pub unsafe fn expired(snapshot: pg_sys::Snapshot) -> [Option<i64>; Class::FINITE] {
    use columns::expired::{CLASS, THROUGH};
    let table = tables::open(catalog::relation_of("expired"));
    let mut through = [None; Class::FINITE];
    if table.blocks() == 0 {
        return through;
    }
    // SAFETY: the caller's promise.
    let mut scan = unsafe { TableScan::new(&table, snapshot) };
    while let Some(row) = scan.next() {
        let class = row.get(CLASS).expect("the column is NOT NULL").value();
        if let Some(place) = through.get_mut(class) {
            *place = Some(row.int8(THROUGH));
        }
    }
    through
}

/// All that begins before these times may be gone, by class, whatever a snapshot sees.
pub fn cut() -> [i64; Class::FINITE] {
    cell::read(&tables::open(catalog::relation_of("cut")))
}
