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
use pgrx::pg_sys;
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
}

impl Listing {
    /// Starts.
    ///
    /// # Safety
    /// The snapshot and the arena live as long as the listing.
    pub unsafe fn start(wanted: Wanted, snapshot: pg_sys::Snapshot, arena: &MemoryArena) -> Self {
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
            return Some(Entry { name, value, uses });
        }
        let pending = &mut self.pending;
        let never_folded = self
            .never_folded
            .get_or_insert_with(|| std::mem::take(pending).into_iter());
        let (name, tally) = never_folded.find(|(_, tally)| tally.exists())?;
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

/// All that is pending of the wanted names.
fn pending_of(wanted: &Wanted, snapshot: pg_sys::Snapshot) -> Sums {
    let (reader, sums) = match wanted {
        Wanted::Nothing => return Sums::default(),
        Wanted::Range(range) => {
            let mut reader = Reader::open(Lanes::All, snapshot);
            let sums = reader.pending_in(range);
            (reader, sums)
        }
        Wanted::Names(names) => {
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
    Range(NameRange, Walk),
    Everywhere,
}

impl Course {
    fn new(wanted: Wanted) -> Self {
        match wanted {
            Wanted::Nothing => Self::Nowhere,
            Wanted::Names(names) => Self::Names(names.into_iter(), Box::new(NameText::new(b""))),
            Wanted::Range(range) if range.is_all() => Self::Everywhere,
            Wanted::Range(range) => {
                let walk = Walk::new(totals::first_bytes(&range));
                Self::Range(range, walk)
            }
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
            (Self::Range(range, walk), Scan::Index(scan)) => loop {
                let row = walk.next(scan)?;
                let name = row.text(columns::total::NAME);
                if range.contains(name) {
                    return Some(row);
                }
                if range.is_past(name) {
                    return None;
                }
            },
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
            *course = Course::Range(NameRange::all(), Walk::new(b""));
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
        if let Course::Range(_, walk) = course {
            walk.start(&mut scan);
        }
        Some(Self {
            scan: Scan::Index(scan),
            _index: Some(index),
            _table: table,
        })
    }
}
