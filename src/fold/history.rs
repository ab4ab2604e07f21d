//! Writing history: what a fold has of a counter goes to the buckets of its type's units.
//!
//! # How it works
//! The deltas of one counter come one after the other, and are added up by the buckets of the finest unit, of
//! which there are one or two. When its total is written, so are they, in each unit: what is known of the total
//! says what the rows' values are. All rows from the first of these buckets on are looked at, and
//! nearly always there is one. That is known without a search, as the lane's state has the greatest time at
//! which anything was counted; and then it is found where it was last.
//!
//! # Invariants
//! - Whatever order rows are folded in, the value of a row is that before all rows, and the sum of those up to it;
//!   the newest one's is the total.
//! - A series begins with an epoch: what has an earlier one is before it, and is left out. Since when it is known is
//!   said by the first fold behind which there is nothing of that any more.

use crate::fold::beginnings::{Notes, at_it};
use crate::fold::history_table::Table;
use crate::fold::sealing::Seal;
use crate::fold::way;
use crate::pg::clock;
use crate::pg::memory::{MemoryArena, MemorySwitch};
use crate::pg::room;
use crate::pg::scan::{Direction, Row};
use crate::pg::snapshot::{self, LatestSnapshot};
use crate::pg::spot::{Spot, Spots};
use crate::pg::time::Calendar;
use crate::pg::varlena::{NameText, text_bytes};
use crate::store::catalog::{self, SharedRels};
use crate::store::columns::bucket;
use crate::store::history::{self, Series};
use crate::store::tables;
use counterx_core::history::{
    Begin, Change, Class, Kind, Placed, Stored, Sums, Unit, counted_at, place,
};
use counterx_core::lane::NameHash;
use counterx_core::parts::type_of;
use pgrx::pg_sys;
use std::cell::RefCell;
use std::collections::HashMap;

thread_local! {
    /// Where this backend has found rows last, by name and series. What is found there is held against both.
    static SPOTS: RefCell<Spots> = RefCell::new(Spots::with_room(1));
}

/// So many events of a counter are written at once.
const MANY_EVENTS: usize = 10_000;

/// What a lane's state says of history after a fold.
pub struct Written {
    /// The time through which it is sealed.
    pub sealed: i64,
    /// The greatest time at which anything was counted.
    pub counted: Option<i64>,
}

/// What a fold writes of history.
pub struct Writer {
    lane: usize,
    /// The time through which the lane was sealed before.
    sealed: Option<i64>,
    /// The greatest time at which anything was counted.
    counted: Option<i64>,
    types: Vec<Type>,
    /// Where those of a name are among them.
    by_name: HashMap<Box<[u8]>, Vec<usize>>,
    /// Series that a restore has brought, and that the lane has not noted yet.
    restored: Vec<Series>,
    tables: Vec<Table>,
    /// What is gathered of the counter that deltas arrive for.
    runs: Vec<Run>,
    name: Vec<u8>,
    /// Late deltas that this fold has moved.
    late: Vec<(Box<[u8]>, Change)>,
    /// For what one counter takes.
    arena: MemoryArena,
    /// What the fold lives in.
    context: pg_sys::MemoryContext,
    /// Those of the tables that were looked up.
    oids: [[pg_sys::Oid; Class::MOST_TABLES]; Class::ALL],
}

/// A type and its units, finest first: those that begin in this fold, or those that are there.
struct Type {
    begin: Option<Begin>,
    /// When the last of what comes before the beginning was written.
    left_out: Option<i64>,
    units: Vec<Kept>,
    events: Option<Series>,
}

/// One unit.
struct Kept {
    series: Series,
    calendar: Calendar,
}

/// What a fold has gathered of one counter.
#[derive(Default)]
struct Run {
    /// The counter's type.
    of: usize,
    /// By the start of the bucket of the finest unit, in no order.
    sums: Vec<(i64, Sums)>,
    events: Vec<Change>,
    /// What a restore has brought.
    restored: i128,
    /// Its history goes first. What others have counted in the same epoch goes with it.
    purged_by: Option<i64>,
    latest: Option<i64>,
}

/// A row, and where it is.
struct Found {
    row: Stored,
    table: pg_sys::Oid,
    tid: pg_sys::ItemPointerData,
}

impl Writer {
    /// What there is of histories by this snapshot. None: nobody has asked for any.
    pub fn open(
        lane: usize,
        shared: &SharedRels,
        latest: &LatestSnapshot,
        (sealed, counted): (Option<i64>, Option<i64>),
    ) -> Option<Self> {
        let _at_it = at_it();
        // SAFETY: the snapshot is active.
        let all = unsafe { history::series(shared, None, latest.as_ptr()) };
        if all.is_empty() {
            return None;
        }
        // SAFETY: as above.
        let begins = unsafe { history::begins_of_lane(lane, latest.as_ptr()) };
        let begins: HashMap<i64, Begin> = begins.into_iter().collect();
        let mut by_name: HashMap<Box<[u8]>, Vec<usize>> = HashMap::new();
        let mut types: Vec<Type> = Vec::new();
        let mut restored = Vec::new();
        for series in all {
            let begin = begins.get(&series.id).copied();
            if begin.is_none() {
                restored.push(series.clone());
            }
            let begin = begin.filter(|begin| begin.since.is_none());
            let places = by_name.entry(series.type_name.clone()).or_default();
            let known = places.iter().find(|&&place| types[place].begin == begin);
            let place = known.copied().unwrap_or_else(|| {
                places.push(types.len());
                types.push(Type {
                    begin,
                    left_out: None,
                    units: Vec::new(),
                    events: None,
                });
                types.len() - 1
            });
            if series.unit == Unit::Event {
                types[place].events = Some(series);
            } else {
                let calendar = Calendar::new(series.unit, &series.zone);
                types[place].units.push(Kept { series, calendar });
            }
        }
        for of in &mut types {
            of.units.sort_by_key(|kept| kept.series.unit);
        }
        SPOTS.with_borrow_mut(|spots| spots.grow_to(Spots::MANY));
        Some(Self {
            lane,
            sealed,
            counted,
            types,
            by_name,
            restored,
            tables: Vec::new(),
            runs: Vec::new(),
            name: Vec::new(),
            late: Vec::new(),
            // SAFETY: the context outlives the fold.
            arena: unsafe { MemoryArena::below(pg_sys::CurrentMemoryContext) },
            // SAFETY: reads a variable of the backend.
            context: unsafe { pg_sys::CurrentMemoryContext },
            oids: Default::default(),
        })
    }

    /// Deltas of this counter are next.
    pub fn begin(&mut self, name: &[u8]) {
        self.runs.clear();
        self.name.clear();
        self.name.extend_from_slice(name);
        let places = type_of(name).and_then(|wanted| self.by_name.get(wanted));
        for &of in places.into_iter().flatten() {
            self.runs.push(Run {
                of,
                ..Run::default()
            });
        }
    }

    /// Has the counter a history?
    pub fn wants(&self) -> bool {
        !self.runs.is_empty()
    }

    /// Is it time to write what is gathered?
    pub fn is_full(&self) -> bool {
        self.runs.iter().any(|run| run.events.len() >= MANY_EVENTS)
    }

    /// A delta of the counter, of this epoch, or late.
    pub fn add(&mut self, change: Change, epoch: Option<i64>) {
        let _at_it = at_it();
        // SAFETY: nothing that is allocated here is kept; see `write_run`.
        let _switch = unsafe { MemorySwitch::to(self.arena.as_ptr()) };
        let at = counted_at(change.at, self.sealed);
        for run in &mut self.runs {
            let of = &mut self.types[run.of];
            if of.begin.is_some_and(|begin| !begin.includes(epoch)) {
                // When a restored value was counted is nobody's to know here.
                if change.kind != Kind::Restored {
                    of.left_out = of.left_out.max(Some(change.at));
                }
                continue;
            }
            run.add(of, change, at);
            if change.kind == Kind::Purge {
                // What is late is folded before, and may have been written later.
                for (late, at) in late_of(&self.late, &self.name, (change.at, self.sealed)) {
                    run.gather(of, late, at);
                }
            }
        }
        if epoch.is_none() && !self.runs.is_empty() {
            room::push(&mut self.late, (self.name.clone().into(), change));
        }
    }

    /// Writes what was gathered of a counter, whose total is this with all of it.
    pub fn write(&mut self, name: &NameText, hash: NameHash, total: i128) {
        let _at_it = at_it();
        for at in 0..self.runs.len() {
            let run = self.runs[at].take();
            self.write_run(run, name, hash, total);
        }
        failpoint!("fold.history_written");
    }

    fn write_run(&mut self, run: Run, name: &NameText, hash: NameHash, total: i128) {
        let Run {
            of,
            mut sums,
            mut events,
            restored,
            purged_by,
            latest,
        } = run;
        // SAFETY: nothing is kept from one counter to the next; scans have memory of their own.
        let _switch = unsafe {
            self.arena.reset();
            MemorySwitch::to(self.arena.as_ptr())
        };
        if purged_by.is_some() {
            self.purge(of, name);
        }
        if restored != 0 {
            self.add_restored(of, name, restored, &mut sums);
        }
        // What is written may be later than what was.
        let known = self.counted;
        self.counted = self.counted.max(latest);
        if !sums.is_empty() {
            sums.sort_unstable_by_key(|(start, _)| *start);
            let mut units = std::mem::take(&mut self.types[of].units);
            for kept in &mut units {
                self.write_unit(kept, name, hash, total, &sums, known);
            }
            self.types[of].units = units;
        }
        if !events.is_empty() {
            events.sort_by_key(|event| event.at);
            self.write_events(of, name, total, &events);
        }
    }

    fn write_unit(
        &mut self,
        kept: &mut Kept,
        name: &NameText,
        hash: NameHash,
        total: i128,
        sums: &[(i64, Sums)],
        known: Option<i64>,
    ) {
        let mut new: Vec<(i64, Sums)> = Vec::with_capacity(sums.len());
        for (start, added) in sums {
            let start = kept.calendar.start_of(*start);
            match new.last_mut().filter(|(last, _)| *last == start) {
                Some((_, sum)) => *sum += *added,
                None => new.push((start, *added)),
            }
        }
        let (first, _) = new[0];
        let net: i128 = new.iter().map(|(_, sums)| sums.net()).sum();
        let newest = known.map_or(first, |known| kept.calendar.start_of(known));
        let key = hash.get() ^ spread(kept.series.id);
        let found = if newest <= first {
            self.find_one(&kept.series, name, first, key)
        } else {
            self.find_from(&kept.series, name, (first, newest))
        };
        let stored: Vec<Stored> = found.iter().map(|found| found.row).collect();
        // What a fold has left out that could not write history is an adjustment: nobody knows what it was.
        if let Some(last) = stored.last()
            && last.value + net != total
        {
            let left_out = Sums::of(Kind::Adjustment, total - net - last.value);
            match new.last_mut().filter(|(start, _)| *start >= last.start) {
                Some((_, sums)) => *sums += left_out,
                None => new.push((last.start, left_out)),
            }
        }
        let net: i128 = new.iter().map(|(_, sums)| sums.net()).sum();
        let class = kept.series.class;
        place(total - net, &stored, &new, |Placed { row, replaces }| {
            let oid = self.oid(class, class.table_of(row.start));
            let mut tid = replaces.map(|at| found[at].tid);
            // One of a former class goes with those that are kept as long as it from now on.
            if let Some(elsewhere) = replaces.map(|at| found[at].table)
                && elsewhere != oid
                && let Some(mut old) = tid.take()
            {
                let table = self.table(elsewhere);
                // SAFETY: a visible row, which only the holder of this lane's lease changes.
                unsafe { pg_sys::simple_heap_delete(table.table.as_ptr(), &mut old) };
            }
            let table = self.table(oid);
            let values = history::values_of(name.datum(), kept.series.id, &row);
            // SAFETY: the columns of a bucket; the indexes are those of this table.
            let address = unsafe { tables::write_row(&table.table, table.indexes, tid, values) };
            // Who looks there next looks for the newest one.
            let is_newest = stored.last().is_none_or(|last| last.start <= row.start);
            if let Some(address) = address.filter(|_| is_newest) {
                let spot = Spot::of_new_row(&table.table, address);
                SPOTS.with_borrow_mut(|spots| spots.set(key, spot));
            }
        });
    }

    /// The only row that can be: nothing later was ever written.
    fn find_one(&mut self, series: &Series, name: &NameText, start: i64, key: u64) -> Vec<Found> {
        let oid = self.oid(series.class, series.class.table_of(start));
        if let Some(found) = Self::find_in(self.table(oid), series, name, start, key) {
            // A later one all the same: the calendar was another one then, as before an update of the time zones.
            if found.row.start != start {
                return self.find_from(series, name, (start, found.row.start));
            }
            return vec![found];
        }
        if series.classes_from(start).nth(1).is_some() {
            return self.find_from(series, name, (start, start));
        }
        Vec::new()
    }

    fn find_in(
        table: &mut Table,
        series: &Series,
        name: &NameText,
        start: i64,
        key: u64,
    ) -> Option<Found> {
        let oid = table.oid;
        let spot = SPOTS.with_borrow(|spots| spots.get(key));
        // SAFETY: the snapshot is a static, and sees one version of a row.
        let known =
            unsafe { spot.find::<{ bucket::COLUMNS }>(&table.table, snapshot::self_snapshot()) };
        if let Some(row) = known {
            let datum = |column| row.get(column).expect("the column is NOT NULL");
            // SAFETY: names are stored in line.
            let is_it = datum(bucket::HISTORY).value() as i64 == series.id
                && datum(bucket::START).value() as i64 == start
                && unsafe { text_bytes(datum(bucket::NAME)) == text_bytes(name.datum()) };
            if is_it {
                return Some(Found {
                    row: history::stored_at_spot(&row),
                    table: oid,
                    tid: row.tid(),
                });
            }
        }
        let [by_name, by_series] = history::keys_of(name, series.id);
        table.scan.seek(&[by_name, by_series, history::from(start)]);
        let (row, spot) = table.scan.next_with_spot(Direction::Backward)?;
        SPOTS.with_borrow_mut(|spots| spots.set(key, spot));
        Some(Found {
            row: history::stored(&row),
            table: oid,
            tid: row.tid(),
        })
    }

    /// All rows of a counter from a time on, ascending.
    fn find_from(
        &mut self,
        series: &Series,
        name: &NameText,
        (first, newest): (i64, i64),
    ) -> Vec<Found> {
        let mut found = Vec::new();
        for class in series.classes_from(first) {
            for number in class.tables_between(first, newest.max(first)) {
                let oid = self.oid(class, number);
                self.each_row_from(oid, series, name, first, |row| {
                    found.push(Found {
                        row: history::stored(row),
                        table: oid,
                        tid: row.tid(),
                    });
                });
            }
        }
        found.sort_unstable_by_key(|found: &Found| found.row.start);
        found
    }

    /// Visits the rows of a counter in a table from a time on, ascending. What is in them is not looked at: a restore may
    /// have brought what is no number.
    fn each_row_from(
        &mut self,
        oid: pg_sys::Oid,
        series: &Series,
        name: &NameText,
        first: i64,
        mut visit: impl FnMut(&Row),
    ) {
        let table = self.table(oid);
        if table.table.blocks() == 0 {
            return;
        }
        let [by_name, by_series] = history::keys_of(name, series.id);
        table.scan.seek(&[by_name, by_series, history::from(first)]);
        while let Some(row) = table.scan.next(Direction::Forward) {
            way::make_way();
            pgrx::check_for_interrupts!();
            visit(&row);
        }
    }

    fn write_events(&mut self, of: usize, name: &NameText, total: i128, events: &[Change]) {
        let Some(series) = self.types[of].events.clone() else {
            return;
        };
        let earliest = events.first().map_or(0, |event| event.at);
        let newest = self.counted.unwrap_or(earliest);
        let last = self
            .find_from(&series, name, (earliest, newest))
            .last()
            .map(|found| found.row.start);
        let mut last = last.unwrap_or(i64::MIN);
        let net: i128 = events.iter().map(|event| event.delta).sum();
        let mut value = total - net;
        for event in events {
            value += event.delta;
            // Each has a time of its own, in the order of folds.
            last = event.at.max(last.saturating_add(1));
            let row = Stored {
                start: last,
                sums: Sums {
                    changes: event.transaction(),
                    ..Sums::of(event.kind, event.delta)
                },
                value,
            };
            let oid = self.oid(series.class, series.class.table_of(row.start));
            let table = self.table(oid);
            let values = history::values_of(name.datum(), series.id, &row);
            // SAFETY: as above.
            unsafe { tables::write_row(&table.table, table.indexes, None, values) };
            pgrx::check_for_interrupts!();
        }
        self.counted = self.counted.max(Some(last));
    }

    /// A restore has brought a counter that has a history here: nobody has counted that.
    fn add_restored(
        &mut self,
        of: usize,
        name: &NameText,
        restored: i128,
        sums: &mut Vec<(i64, Sums)>,
    ) {
        let Some(finest) = self.types[of].units.first() else {
            return;
        };
        let series = finest.series.clone();
        // Nearly always there is none.
        let mut newest = None;
        for class in series.classes() {
            for number in 0..class.tables() {
                let oid = self.oid(class, number);
                self.each_row_from(oid, &series, name, i64::MIN, |row| {
                    newest = newest.max(Some(row.int8(bucket::START)));
                });
            }
        }
        let Some(newest) = newest else { return };
        let at = counted_at(newest, self.sealed);
        let start = self.types[of].units[0].calendar.start_of(at);
        let adjusted = Sums::of(Kind::Adjustment, restored);
        match sums.iter_mut().find(|(known, _)| *known == start) {
            Some((_, known)) => *known += adjusted,
            None => room::push(sums, (start, adjusted)),
        }
    }

    /// Removes all rows of a counter.
    fn purge(&mut self, of: usize, name: &NameText) {
        let of = &self.types[of];
        let all: Vec<Series> = (of.units.iter().map(|kept| &kept.series))
            .chain(&of.events)
            .cloned()
            .collect();
        for series in all {
            let mut oids = vec![history::restored()];
            for class in series.classes() {
                oids.extend((0..class.tables()).map(|number| self.oid(class, number)));
            }
            for oid in oids {
                let mut tids = Vec::new();
                self.each_row_from(oid, &series, name, i64::MIN, |row| {
                    room::push(&mut tids, row.tid());
                });
                for mut tid in tids {
                    let table = self.table(oid);
                    // SAFETY: a visible row, which only the holder of this lane's lease changes.
                    unsafe { pg_sys::simple_heap_delete(table.table.as_ptr(), &mut tid) };
                }
            }
        }
    }

    fn oid(&mut self, class: Class, number: usize) -> pg_sys::Oid {
        let known = &mut self.oids[class.number()][number];
        if *known == pg_sys::InvalidOid {
            *known = catalog::relation_of(&history::table_name(class, number));
        }
        *known
    }

    fn table(&mut self, oid: pg_sys::Oid) -> &mut Table {
        let at = self.tables.iter().position(|table| table.oid == oid);
        let at = at.unwrap_or_else(|| {
            // SAFETY: the context outlives the fold, unlike that of the counter.
            let _switch = unsafe { MemorySwitch::to(self.context) };
            self.tables.push(Table::open(oid, &bucket::KEY, 3));
            self.tables.len() - 1
        });
        &mut self.tables[at]
    }

    /// All is written, through this epoch. Folds before have moved nothing that was written after `folded`.
    pub fn finish(self, seal: Seal, through: i64, folded: Option<i64>) -> Written {
        let _at_it = at_it();
        if !self.restored.is_empty() || self.types.iter().any(|of| of.begin.is_some()) {
            self.note_beginnings(through, folded);
        }
        // A clock that has leapt can spoil what there is, and nothing is there yet.
        let is_new = self.restored.is_empty() && self.types.iter().all(|of| of.begin.is_some());
        let seal = Seal {
            is_trusted: seal.is_trusted || is_new,
            ..seal
        };
        Written {
            sealed: seal.after(self.sealed),
            counted: self.counted,
        }
    }

    fn note_beginnings(&self, through: i64, folded: Option<i64>) {
        let mut notes = Notes::open(self.lane);
        for series in &self.restored {
            // What was counted here before it came would be part of it.
            let at = series.since.unwrap_or_else(clock::now);
            let begin = Begin {
                epoch: 0,
                at,
                since: Some(at),
            };
            notes.write(series, begin);
        }
        for of in &self.types {
            let Some(begin) = of.begin else { continue };
            let since = begin.known_since(through, folded, of.left_out);
            if since.is_none() {
                continue;
            }
            let units = of.units.iter().map(|kept| &kept.series);
            for series in units.chain(&of.events) {
                notes.write(series, Begin { since, ..begin });
            }
        }
    }
}

impl Run {
    /// What is gathered; nothing is from here on.
    fn take(&mut self) -> Self {
        let of = self.of;
        std::mem::replace(
            self,
            Self {
                of,
                ..Self::default()
            },
        )
    }

    fn add(&mut self, of: &mut Type, change: Change, at: i64) {
        match change.kind {
            Kind::Purge => {
                *self = Self {
                    of: self.of,
                    purged_by: Some(change.xid),
                    ..Self::default()
                };
                return;
            }
            Kind::Restored => {
                self.restored += change.delta;
                return;
            }
            Kind::Adjustment if change.delta == 0 => return,
            Kind::Increment | Kind::Adjustment => {}
        }
        if self.purged_by.is_none_or(|by| by == change.xid) {
            self.gather(of, change, at);
        }
    }

    fn gather(&mut self, of: &mut Type, change: Change, at: i64) {
        self.latest = self.latest.max(Some(at));
        if let Some(finest) = of.units.first_mut() {
            let start = finest.calendar.start_of(at);
            let sums = Sums::of(change.kind, change.delta);
            // The newest are last.
            match self
                .sums
                .iter_mut()
                .rev()
                .find(|(known, _)| *known == start)
            {
                Some((_, known)) => *known += sums,
                None => room::push(&mut self.sums, (start, sums)),
            }
        }
        if of.events.is_some() {
            room::push(&mut self.events, Change { at, ..change });
        }
    }
}

/// Late deltas of a counter that were written after a time, and when they count.
fn late_of(
    all: &[(Box<[u8]>, Change)],
    name: &[u8],
    (after, sealed): (i64, Option<i64>),
) -> impl Iterator<Item = (Change, i64)> {
    all.iter()
        .filter(move |(of, change)| **of == *name && change.at > after)
        .filter(|(_, change)| match change.kind {
            Kind::Increment => true,
            Kind::Adjustment => change.delta != 0,
            Kind::Purge | Kind::Restored => false,
        })
        .map(move |(_, change)| (*change, counted_at(change.at, sealed)))
}

/// Spreads a random number over the bits that spots are kept by.
fn spread(id: i64) -> u64 {
    id.cast_unsigned().wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
