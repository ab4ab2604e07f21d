//! What a dump has of the history of all counters.

use crate::pg::memory::{MemoryArena, MemorySwitch};
use crate::pg::room;
use crate::pg::scan::{Direction, IndexScan, Key};
use crate::pg::snapshot;
use crate::pg::time::Calendar;
use crate::pg::varlena::NameText;
use crate::read::history::{self as counter_history, OfUnit, Tables};
use crate::read::lane::{self, LaneReader};
use crate::read::reader::{Lanes, Reader};
use crate::store::catalog;
use crate::store::columns;
use crate::store::history::{self, Buckets, Series};
use counterx_core::history::{Class, Kind, Stored, Sums, Unit};
use counterx_core::lane::LANES;
use counterx_core::names::NameRange;
use counterx_core::parts::type_of;
use pgrx::pg_sys;
/// Visits all series, and since when they are known of all counters of their type: with the rows that
/// [`for_each_row`] visits. None: not yet.
pub fn for_each_series(mut visit: impl FnMut(&Series, Option<i64>)) {
    let current = snapshot::active_or_latest();
    let snapshot = current.as_ptr();
    let shared = catalog::shared();
    let lanes = lane::open_lanes(0..LANES, &shared, snapshot);
    let tables = Tables::open(snapshot);
    // SAFETY: the snapshot is active as long as `current` lives.
    for series in unsafe { history::series(&shared, None, snapshot) } {
        let mut calendar = Calendar::new(series.unit, &series.zone);
        let mut known_from = |lane: &LaneReader| {
            let first = counter_history::first_of(&series, &tables, &mut calendar, lane.sealed);
            let begin = counter_history::begin_of(&series, lane.lane, snapshot);
            begin.since.map(|since| since.max(first))
        };
        let of_lanes: Option<Vec<i64>> = lanes.iter().map(&mut known_from).collect();
        let since = of_lanes.and_then(|times| times.into_iter().max());
        visit(&series, since);
    }
}

/// Visits all rows of all counters, as they are shown, in no particular order: a counter's name, the id of the series,
/// and the row. Of an event, the transaction's id is left out: it is one of this server.
///
/// # Errors
/// Raises 40001 when something was removed meanwhile that the snapshot needs.
pub fn for_each_row(mut visit: impl FnMut(&[u8], i64, &Stored)) {
    let current = snapshot::active_or_latest();
    let mut last: Option<Box<[u8]>> = None;
    // SAFETY: nothing is kept from one counter to the next.
    let arena = unsafe { MemoryArena::below(pg_sys::CurrentMemoryContext) };
    let mut names = Names::open(current.as_ptr());
    while let Some(name) = names.after(last.as_deref()) {
        // SAFETY: as above.
        let _switch = unsafe {
            arena.reset();
            MemorySwitch::to(arena.as_ptr())
        };
        counter_history::of_counter(&name, |counter| {
            for series in &counter.series {
                let unit = OfUnit::open(counter, series);
                unit.for_each_row(|row| visit(&name, series.id, row));
            }
        });
        last = Some(name);
    }
}

impl OfUnit<'_> {
    /// Visits all rows, ascending.
    fn for_each_row(&self, mut visit: impl FnMut(&Stored)) {
        if self.series.unit != Unit::Event {
            let span = self.between(i64::MIN, i64::MAX);
            return span.rows.iter().for_each(visit);
        }
        let mut value = self.stored_value_before(i64::MIN);
        for event in self.events(None, usize::MAX) {
            value += event.delta;
            let kind = match event.is_increment {
                true => Kind::Increment,
                false => Kind::Adjustment,
            };
            visit(&Stored {
                start: event.at,
                sums: Sums {
                    changes: 0,
                    ..Sums::of(kind, event.delta)
                },
                value,
            });
        }
    }
}

/// The names of all counters that have a history, ascending.
struct Names {
    // Ended before its relations are closed.
    scans: Vec<IndexScan>,
    _tables: Vec<Buckets>,
    /// Those of which something is pending, each once.
    pending: Vec<Box<[u8]>>,
}

impl Names {
    /// The snapshot is active or registered, and stays so.
    fn open(snapshot: pg_sys::Snapshot) -> Self {
        let mut reader = Reader::open(Lanes::All, snapshot);
        // SAFETY: the caller's promise.
        let all = unsafe { history::series(&reader.shared, None, snapshot) };
        let mut pending: Vec<Box<[u8]>> = Vec::new();
        if !all.is_empty() {
            let changes = counter_history::pending_in(&mut reader, &NameRange::all(), 0);
            let names = changes.into_iter().map(|(name, _)| name);
            pending = room::collect(names.filter(|name| {
                let of = type_of(name);
                all.iter().any(|series| Some(&*series.type_name) == of)
            }));
            pending.dedup();
        }
        reader.finish();
        let numbers = (0..Class::ALL).filter_map(Class::of_number);
        let has_rows = |class: &Class| {
            all.iter()
                .any(|series| series.classes().any(|of| of == *class))
        };
        let tables: Vec<Buckets> = numbers
            .filter(has_rows)
            .flat_map(|class| (0..class.tables()).map(move |table| (class, table)))
            .filter_map(|(class, table)| Buckets::numbered(class, table))
            .chain(Buckets::restored().filter(|_| !all.is_empty()))
            .collect();
        Self {
            // SAFETY: as above.
            scans: (tables.iter())
                .map(|table| unsafe { table.scan(snapshot, 1) })
                .collect(),
            _tables: tables,
            pending,
        }
    }

    /// The one that follows another one; the first.
    fn after(&mut self, last: Option<&[u8]>) -> Option<Box<[u8]>> {
        let last = last.unwrap_or_default();
        let at = self.pending.partition_point(|name| **name <= *last);
        let mut least: Option<Box<[u8]>> = self.pending.get(at).cloned();
        let last = NameText::new(last);
        for scan in &mut self.scans {
            scan.seek(&[Key::text_gt(1, last.datum())]);
            if let Some(row) = scan.next(Direction::Forward) {
                let name = row.text(columns::bucket::NAME);
                if least.as_deref().is_none_or(|least| name < least) {
                    least = Some(name.into());
                }
            }
        }
        least
    }
}
