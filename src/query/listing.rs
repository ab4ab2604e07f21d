//! Listing counters: every visible one of a set of names once, with its exact value.
//!
//! # How it works
//! First all that is pending of these names is summed up in memory; then their totals are visited
//! with the same snapshot, and each takes its pending sum along. What is left in memory at the end
//! are counters that were never folded. Dropped ones are left out.
//!
//! # Invariants
//! - Pending deltas come first: reading them locks the gates, which everybody does before anything
//!   else, and checks that nothing was truncated before it was read.
//! - A snapshot sees exactly one row of `total` per name, so that no name is met twice.
//! - The scan of the totals allocates in the arena; values are made in the caller's context.

use crate::pg::memory::{MemoryArena, MemorySwitch};
use crate::pg::number;
use crate::pg::relation::Relation;
use crate::pg::room;
use crate::pg::scan::{Direction, IndexScan, Key, Row, TableScan};
use crate::pg::varlena::{NameText, text_datum};
use crate::read::reader::{Lanes, Reader};
use crate::store::catalog;
use crate::store::columns;
use crate::store::tables;
use crate::store::totals::{self, Walk};
use counterx_core::lane::{MAX_NAME_BYTES, NameHash};
use counterx_core::names::NameRange;
use counterx_core::sums::Sums;
use counterx_core::tally::Tally;
use counterx_core::windows::Shown;
use pgrx::pg_sys;
use std::borrow::Cow;
use std::collections::hash_map;

/// The names to list.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None at all.
    Nothing,
    /// These, ascending, each once.
    Names(Vec<Vec<u8>>),
    /// Those in a range.
    Range(NameRange),
}

impl Wanted {
    /// The names that are in the range, and among `any_of` where that is given.
    pub fn new(range: NameRange, any_of: Option<Vec<Vec<u8>>>) -> Self {
        let mut names = match (any_of, range.only_name()) {
            (Some(names), _) => names,
            (None, Some(name)) => vec![name.to_vec()],
            (None, None) if range.is_past(range.from().unwrap_or_default()) => {
                return Self::Nothing;
            }
            (None, None) => return Self::Range(range),
        };
        // There is no counter with such a name.
        names.retain(|name| (1..=MAX_NAME_BYTES).contains(&name.len()) && range.contains(name));
        names.sort_unstable();
        names.dedup();
        if names.is_empty() {
            Self::Nothing
        } else {
            Self::Names(names)
        }
    }
}

/// A counter: its name, a text, and its value, a numeric.
pub struct Entry {
    /// The name.
    pub name: pg_sys::Datum,
    /// The value.
    pub value: pg_sys::Datum,
    /// How often it is in use: of a tracked table, rows.
    pub uses: i64,
}

/// A listing under way. To be dropped in the resource owner that it was started in, or to be
/// [abandoned](Self::abandon).
pub struct Listing {
    totals: Option<Totals>,
    course: Course,
    pending: Sums,
    never_folded: Option<hash_map::IntoIter<Box<[u8]>, Tally>>,
    shown: Shown,
}

impl Listing {
    /// Starts with all names as they are stored, also of windows that are not shown.
    ///
    /// # Safety
    /// As of [`Listing::start`].
    pub unsafe fn start_stored(
        wanted: Wanted,
        snapshot: pg_sys::Snapshot,
        arena: &MemoryArena,
    ) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::start(Shown::default(), wanted, snapshot, arena) }
    }

    /// Starts, with what is shown at some time.
    ///
    /// # Safety
    /// The snapshot and the arena live as long as the listing.
    pub unsafe fn start(
        shown: Shown,
        wanted: Wanted,
        snapshot: pg_sys::Snapshot,
        arena: &MemoryArena,
    ) -> Self {
        let wanted = Stored::new(wanted, &shown);
        let pending = pending_of(&wanted, snapshot);
        // SAFETY: the caller's promise.
        let _switch = unsafe { MemorySwitch::to(arena.as_ptr()) };
        let mut course = Course::new(wanted);
        // SAFETY: as above.
        let totals = unsafe { Totals::open(&mut course, snapshot) };
        Self {
            totals,
            course,
            pending,
            never_folded: None,
            shown,
        }
    }

    /// The next counter. The datums are valid until the next call.
    pub fn next(&mut self) -> Option<Entry> {
        while let Some(row) = self.next_total() {
            let pending = self.pending.take(row.text(columns::total::NAME));
            let uses = row.int8(columns::total::USES) + pending.uses;
            if uses <= 0 {
                continue;
            }
            let value = row
                .get(columns::total::VALUE)
                .expect("the column is NOT NULL");
            let value = match pending.value {
                0 => value,
                // SAFETY: both are numerics.
                sum => unsafe { number::add(value, number::numeric(sum)) },
            };
            let name = row
                .get(columns::total::NAME)
                .expect("the column is NOT NULL");
            let name = match self.shown.plain(row.text(columns::total::NAME)) {
                Some(Cow::Owned(plain)) => text_datum(&plain),
                Some(Cow::Borrowed(_)) | None => name,
            };
            return Some(Entry { name, value, uses });
        }
        let pending = &mut self.pending;
        let never_folded = self
            .never_folded
            .get_or_insert_with(|| std::mem::take(pending).into_iter());
        let shown = &self.shown;
        let (name, tally) =
            never_folded.find(|(name, tally)| tally.exists() && shown.shows(name))?;
        let name = shown.plain(&name)?;
        Some(Entry {
            name: text_datum(&name),
            value: number::numeric(tally.value),
            uses: tally.uses,
        })
    }

    fn next_total(&mut self) -> Option<Row> {
        let totals = self.totals.as_mut()?;
        let row = self.course.next(totals);
        if row.is_none() {
            self.totals = None;
        }
        row
    }

    /// Ends the listing after an error: the server has given back its resources already, so all
    /// that is left is our own memory.
    pub fn abandon(mut self) {
        // Nothing in there is on our heap.
        std::mem::forget(self.totals.take());
    }
}

/// The same as they are stored.
enum Stored {
    Nothing,
    Names(Vec<Vec<u8>>),
    /// A range that has all of them, and those that have them alone.
    Ranges(NameRange, Vec<NameRange>),
}

impl Stored {
    fn new(wanted: Wanted, shown: &Shown) -> Self {
        match wanted {
            Wanted::Nothing => Self::Nothing,
            Wanted::Names(names) if shown.is_plain() => Self::Names(names),
            // In the same order.
            Wanted::Names(names) => {
                let stored = names.iter().map(|name| shown.stored(name).into_owned());
                Self::Names(room::collect(
                    stored.filter(|name| name.len() <= MAX_NAME_BYTES),
                ))
            }
            Wanted::Range(range) => Self::Ranges(shown.hull(&range), shown.segments(&range)),
        }
    }
}

/// All that is pending of the wanted names, and of others in the same range.
fn pending_of(wanted: &Stored, snapshot: pg_sys::Snapshot) -> Sums {
    let (reader, sums) = match wanted {
        Stored::Nothing => return Sums::default(),
        Stored::Ranges(range, _) => {
            let mut reader = Reader::open(Lanes::All, snapshot);
            let sums = reader.pending_in(range);
            (reader, sums)
        }
        Stored::Names(names) => {
            let hashes = room::collect(names.iter().map(|name| NameHash::of(name)));
            let mut reader = Reader::open(Lanes::Of(&hashes), snapshot);
            let sums = reader.pending_of(names);
            (reader, sums)
        }
    };
    reader.finish();
    sums
}

/// The way through the totals; all of it on our heap.
enum Course {
    Nowhere,
    /// One after the other; the key is what the scan was sent to last.
    Names(std::vec::IntoIter<Vec<u8>>, Box<NameText>),
    Range(Ranges),
    Everywhere,
}

/// One range after the other.
struct Ranges {
    range: NameRange,
    walk: Walk,
    rest: std::vec::IntoIter<NameRange>,
}

impl Ranges {
    fn new(ranges: Vec<NameRange>) -> Option<Self> {
        let mut rest = ranges.into_iter();
        let range = rest.next()?;
        let walk = Walk::new(totals::first_bytes(&range));
        Some(Self { range, walk, rest })
    }

    /// All names.
    fn all() -> Self {
        Self {
            range: NameRange::all(),
            walk: Walk::new(b""),
            rest: Vec::new().into_iter(),
        }
    }

    /// The next row of the range.
    fn next_here(&mut self, scan: &mut IndexScan) -> Option<Row> {
        loop {
            let row = self.walk.next(scan)?;
            let name = row.text(columns::total::NAME);
            if self.range.contains(name) {
                return Some(row);
            }
            if self.range.is_past(name) {
                return None;
            }
        }
    }

    fn next(&mut self, scan: &mut IndexScan) -> Option<Row> {
        loop {
            if let Some(row) = self.next_here(scan) {
                return Some(row);
            }
            self.range = self.rest.next()?;
            self.walk = Walk::new(totals::first_bytes(&self.range));
            self.walk.start(scan);
        }
    }
}

impl Course {
    fn new(wanted: Stored) -> Self {
        match wanted {
            Stored::Nothing => Self::Nowhere,
            Stored::Names(names) => Self::Names(names.into_iter(), Box::new(NameText::new(b""))),
            Stored::Ranges(_, ranges) => match Ranges::new(ranges) {
                Some(ranges) if ranges.range.is_all() => Self::Everywhere,
                Some(ranges) => Self::Range(ranges),
                None => Self::Nowhere,
            },
        }
    }

    fn next(&mut self, totals: &mut Totals) -> Option<Row> {
        match (self, &mut totals.scan) {
            (Self::Names(names, key), Scan::Index(scan)) => names.find_map(|name| {
                // There may be many, and none of them exist.
                pgrx::check_for_interrupts!();
                **key = NameText::new(&name);
                scan.seek(&[Key::text_eq(1, key.datum())]);
                // Newest first: dead versions are older.
                scan.next(Direction::Backward)
            }),
            (Self::Range(ranges), Scan::Index(scan)) => ranges.next(scan),
            (Self::Everywhere, Scan::Table(scan)) => scan.next(),
            _ => None,
        }
    }
}

/// The totals, open. The server's resources, and nothing on our heap; ended in this order.
struct Totals {
    scan: Scan,
    _index: Option<Relation>,
    _table: Relation,
}

enum Scan {
    Index(IndexScan),
    Table(TableScan),
}

impl Totals {
    /// # Safety
    /// The snapshot and the course outlive the scan.
    unsafe fn open(course: &mut Course, snapshot: pg_sys::Snapshot) -> Option<Self> {
        if matches!(course, Course::Nowhere) {
            return None;
        }
        let shared = catalog::shared();
        let table = tables::open(shared.total);
        if matches!(course, Course::Everywhere) && totals::is_sparse(&table) {
            *course = Course::Range(Ranges::all());
        }
        if matches!(course, Course::Everywhere) {
            // SAFETY: the caller's promise.
            let scan = Scan::Table(unsafe { TableScan::new(&table, snapshot) });
            return Some(Self {
                scan,
                _index: None,
                _table: table,
            });
        }
        let index = tables::index_of(&table, &columns::total::KEY);
        // SAFETY: the caller's promise.
        let mut scan = unsafe { IndexScan::new(&table, &index, snapshot, 1) };
        if let Course::Range(ranges) = course {
            ranges.walk.start(&mut scan);
        }
        Some(Self {
            scan: Scan::Index(scan),
            _index: Some(index),
            _table: table,
        })
    }
}
