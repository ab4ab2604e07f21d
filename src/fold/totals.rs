//! Writing totals: the sums of a fold, one counter after the other.

use crate::fold::history;
use crate::fold::stream;
use crate::pg::memory::{MemoryArena, MemorySwitch};
use crate::pg::number;
use crate::pg::relation::{ROW_EXCLUSIVE, Relation};
use crate::pg::scan::{Direction, IndexScan, Key};
use crate::pg::snapshot;
use crate::pg::spot::Spot;
use crate::pg::varlena::NameText;
use crate::store::catalog::{self, SharedRels};
use crate::store::columns;
use crate::store::tables;
use crate::store::totals;
use counterx_core::history::Change;
use counterx_core::lane::NameHash;
use counterx_core::tally::Tally;
use pgrx::pg_sys;

/// The table of totals, open for changing, and the sum of the counter that deltas arrive for.
pub struct Totals {
    // Ended before its relations are closed.
    scan: IndexScan,
    table: Relation,
    _index: Relation,
    indexes: pg_sys::CatalogIndexState,
    generation: i64,
    name: Vec<u8>,
    sum: Option<Tally>,
    /// Deltas in that sum.
    run: u64,
    /// The most deltas that a sum had.
    pub busiest: u64,
    /// For what one counter takes.
    arena: MemoryArena,
    history: Option<history::Writer>,
    stream: Option<stream::Writer>,
    /// The counter's total of before, and what it is by now, where streams are to be told.
    told: Option<(Tally, Tally)>,
}

impl Totals {
    /// Opens the table; rows that are new get this `gen`, or more.
    pub fn open(
        shared: &SharedRels,
        generation: i64,
        history: Option<history::Writer>,
        stream: Option<stream::Writer>,
    ) -> Self {
        let Some(table) = Relation::open_until_commit(shared.total, ROW_EXCLUSIVE) else {
            catalog::gone()
        };
        let index = tables::index_of(&table, &columns::total::KEY);
        totals::remember_many();
        // SAFETY: an ordinary table, open; the snapshot is a static.
        unsafe {
            Self {
                scan: IndexScan::new(&table, &index, snapshot::self_snapshot(), 1),
                indexes: pg_sys::CatalogOpenIndexes(table.as_ptr()),
                table,
                _index: index,
                generation,
                name: Vec::new(),
                sum: None,
                run: 0,
                busiest: 0,
                arena: MemoryArena::below(pg_sys::CurrentMemoryContext),
                history,
                stream,
                told: None,
            }
        }
    }

    /// Adds to a counter. Those of one counter come one after the other. `change` says what it is for history, and
    /// of which epoch; None: it is late. True: the same one can come again only in a command of its own.
    pub fn add(
        &mut self,
        name: &[u8],
        tally: Tally,
        change: impl FnOnce() -> (Change, Option<i64>),
    ) -> bool {
        if self.name != name {
            self.flush();
            self.name.clear();
            self.name.extend_from_slice(name);
            if let Some(history) = &mut self.history {
                history.begin(name);
            }
            if let Some(stream) = &mut self.stream {
                stream.begin(name);
            }
        }
        self.sum = Some(self.sum.unwrap_or_default() + tally);
        self.run += 1;
        let history = self.history.as_mut().filter(|history| history.wants());
        let stream = self.stream.as_mut().filter(|stream| stream.wants());
        if history.is_none() && stream.is_none() {
            return false;
        }
        let (change, epoch) = change();
        if let Some(stream) = stream {
            stream.add(change.kind, tally);
        }
        let is_full = history.is_some_and(|history| {
            history.add(change, epoch);
            history.is_full()
        });
        if is_full {
            self.write();
        }
        is_full
    }

    /// All is written. Returns what is written besides.
    pub fn finish(mut self) -> (Option<history::Writer>, Option<stream::Writer>) {
        self.flush();
        (self.history.take(), self.stream.take())
    }

    /// Adds the sum that waits to its counter's total. A total that comes to nothing, as a dropped
    /// counter's does, is removed: having none means the same.
    pub fn flush(&mut self) {
        self.write();
        let Some((before, after)) = self.told.take() else {
            return;
        };
        // SAFETY: nothing is kept from one counter to the next.
        let _switch = unsafe {
            self.arena.reset();
            MemorySwitch::to(self.arena.as_ptr())
        };
        if let Some(stream) = &mut self.stream {
            stream.write(&NameText::new(&self.name), &self.name, before, after);
        }
    }

    /// The same of what streams are not told yet: there may be more of the counter.
    fn write(&mut self) {
        let Some(sum) = self.sum.take() else { return };
        self.busiest = self.busiest.max(std::mem::take(&mut self.run));
        let name = NameText::new(&self.name);
        // SAFETY: the scan has memory of its own, and nothing else is kept from one counter to the next.
        let _switch = unsafe {
            self.arena.reset();
            MemorySwitch::to(self.arena.as_ptr())
        };
        let hash = NameHash::of(&self.name);
        let old = self.find(hash, &name);
        let (mut tid, mut generation, mut tally) = (None, self.generation, sum);
        let mut before = Tally::default();
        if let Some(old) = old {
            before = old.tally;
            tid = Some(old.tid);
            generation = generation.max(old.generation);
            tally += old.tally;
        }
        if let Some(history) = &mut self.history
            && history.wants()
        {
            history.write(&name, hash, tally.value);
        }
        if self.stream.as_ref().is_some_and(stream::Writer::wants) {
            let (first, _) = self.told.unwrap_or((before, tally));
            self.told = Some((first, tally));
        }
        if tally.is_zero() {
            if let Some(mut tid) = tid {
                // SAFETY: a visible row, which only the holder of this lane's lease changes.
                unsafe { pg_sys::simple_heap_delete(self.table.as_ptr(), &mut tid) };
            }
            return;
        }
        let values = [
            name.datum(),
            generation.into(),
            number::numeric(tally.value),
            tally.uses.into(),
        ]
        .map(Some);
        // SAFETY: the indexes are those of this table.
        if let Some(address) = unsafe { tables::write_row(&self.table, self.indexes, tid, values) }
        {
            totals::remember(hash, Spot::of_new_row(&self.table, address));
        }
        failpoint!("fold.total_written");
    }

    fn find(&mut self, hash: NameHash, name: &NameText) -> Option<OldTotal> {
        let snapshot = snapshot::self_snapshot();
        // SAFETY: the snapshot is a static, and sees one version of a row.
        let known = unsafe { totals::find_at_spot(hash, &self.name, &self.table, snapshot) };
        if let Some(row) = known {
            let generation = row.get(columns::total::GEN)?.value() as i64;
            return Some(OldTotal {
                tid: row.tid(),
                generation,
                tally: totals::tally_at_spot(&row),
            });
        }
        self.scan.seek(&[Key::text_eq(1, name.datum())]);
        let (row, spot) = self.scan.next_with_spot(Direction::Backward)?;
        totals::remember(hash, spot);
        Some(OldTotal {
            tid: row.tid(),
            generation: row.int8(columns::total::GEN),
            tally: totals::tally(&row),
        })
    }
}

/// A counter's total before a fold.
struct OldTotal {
    tid: pg_sys::ItemPointerData,
    generation: i64,
    tally: Tally,
}

impl Drop for Totals {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened by us.
            unsafe { pg_sys::CatalogCloseIndexes(self.indexes) };
        }
    }
}
