//! The pending map: what one transaction has added to which counters and has not written yet.
//!
//! # How it works
//! One table holds each counter's net delta. Subtransactions are markers in an undo log, as in a
//! database's own: before a subtransaction first changes an entry, the entry's former content is
//! noted. ROLLBACK TO plays the notes back; RELEASE hands them to the parent. So a look-up, and
//! the overflow check, cost one probe at any depth, and a rolled back subtransaction costs
//! nothing to those that did not change anything.
//!
//! # Invariants
//! - Markers' levels and serials rise from the bottom of the stack to its top.
//! - An entry's `saved_at` is the serial of the topmost marker that has a note of it (or of one
//!   that is gone, which is always lower than any later marker's).
//! - [`PendingMap::abort_subxact`] and [`PendingMap::reset`] do not allocate: they run where an
//!   error would be fatal to the server.

use crate::lane::NameHash;
use crate::room::{self, NoMemory};
use crate::tally::Tally;
use hashbrown::HashTable;

/// Why a change is refused. Then nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The net delta of the counter would leave the range of a bigint.
    Overflow,
    /// There is no memory for it.
    NoMemory,
}

impl From<NoMemory> for Refused {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Content {
    delta: i64,
    /// The counter was incremented, since it was dropped if it was.
    used: bool,
    /// The uses that a drop takes back.
    dropped: i64,
    /// Those that rows of a tracked table are: more came than went.
    rows: i64,
    /// The counter's history goes.
    purges: bool,
}

impl Content {
    fn is_present(&self) -> bool {
        self.used || self.delta != 0 || self.dropped != 0 || self.rows != 0 || self.purges
    }

    fn uses(&self) -> i64 {
        i64::from(self.used) - self.dropped + self.rows
    }
}

#[derive(Debug)]
struct Entry {
    hash: NameHash,
    name: Box<[u8]>,
    content: Content,
    saved_at: u32,
}

#[derive(Clone, Copy, Debug)]
struct Note {
    entry: u32,
    saved_at: u32,
    content: Content,
}

#[derive(Clone, Copy, Debug)]
struct Marker {
    level: u32,
    serial: u32,
    notes_from: usize,
}

/// One counter's net delta, as [`PendingMap::rows`] yields it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// The name's hash.
    pub hash: NameHash,
    /// The counter's name.
    pub name: &'a [u8],
    /// Its net change. Zero is a row too: the counter exists from its first increment on.
    pub delta: i64,
    /// Its net change of uses: 1 as a rule, less when the counter was dropped; of a tracked table that of rows.
    pub uses: i64,
    /// The counter's history goes.
    pub purges: bool,
}

impl Row<'_> {
    /// Both changes.
    pub fn tally(&self) -> Tally {
        Tally::of(self.delta, self.uses)
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct PendingMap {
    entries: Vec<Entry>,
    index: HashTable<u32>,
    notes: Vec<Note>,
    markers: Vec<Marker>,
    last_serial: u32,
    present: usize,
    bytes: usize,
}

/// The nesting level of a transaction that has no subtransaction open.
pub const TOP_LEVEL: u32 = 1;

/// What is kept of the table's memory for the next transaction, in entries.
const KEPT_ENTRIES: usize = 1024;

impl PendingMap {
    /// Is nothing pending?
    pub fn is_empty(&self) -> bool {
        self.present == 0
    }

    /// The memory that [`PendingMap::clear_written`] can free, in bytes, nearly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds `delta` to a counter on behalf of the subtransaction at nesting level `level`.
    ///
    /// # Errors
    /// [`Refused::Overflow`] when the counter's net delta would not fit, or [`Refused::NoMemory`].
    pub fn add(
        &mut self,
        level: u32,
        hash: NameHash,
        name: &[u8],
        delta: i64,
    ) -> Result<(), Refused> {
        let at = self.find(hash, name);
        let before = at.map_or_else(Content::default, |at| self.entries[at].content);
        let after = Content {
            delta: before.delta.checked_add(delta).ok_or(Refused::Overflow)?,
            used: true,
            ..before
        };
        Ok(self.put(level, hash, name, at, after)?)
    }

    /// Adds `delta` to the counter of a group of a tracked table's rows, of which `rows` more came than
    /// went, on behalf of the subtransaction at nesting level `level`. Changes that cancel each other out
    /// leave nothing.
    ///
    /// # Errors
    /// As of [`PendingMap::add`].
    pub fn add_rows(
        &mut self,
        level: u32,
        hash: NameHash,
        name: &[u8],
        delta: i64,
        rows: i64,
    ) -> Result<(), Refused> {
        let at = self.find(hash, name);
        let before = at.map_or_else(Content::default, |at| self.entries[at].content);
        let after = Content {
            delta: before.delta.checked_add(delta).ok_or(Refused::Overflow)?,
            rows: before.rows.checked_add(rows).ok_or(Refused::Overflow)?,
            ..before
        };
        Ok(self.put(level, hash, name, at, after)?)
    }

    /// Drops a counter on behalf of the subtransaction at nesting level `level`: forgets what is
    /// pending of it, and takes back `written`, which is all that stands elsewhere.
    ///
    /// # Errors
    /// [`Refused::Overflow`] when that is more than one delta can take back, or [`Refused::NoMemory`].
    pub fn drop_counter(
        &mut self,
        level: u32,
        hash: NameHash,
        name: &[u8],
        written: Tally,
    ) -> Result<(), Refused> {
        let at = self.find(hash, name);
        let after = Content {
            delta: i64::try_from(-written.value).map_err(|_| Refused::Overflow)?,
            used: false,
            dropped: written.uses,
            rows: 0,
            purges: at.is_some_and(|at| self.entries[at].content.purges),
        };
        Ok(self.put(level, hash, name, at, after)?)
    }

    /// A counter's history goes, on behalf of the subtransaction at nesting level `level`. That is a row, whether
    /// anything else is changed or not.
    ///
    /// # Errors
    /// [`Refused::NoMemory`].
    pub fn purge(&mut self, level: u32, hash: NameHash, name: &[u8]) -> Result<(), Refused> {
        let at = self.find(hash, name);
        let before = at.map_or_else(Content::default, |at| self.entries[at].content);
        let after = Content {
            purges: true,
            ..before
        };
        Ok(self.put(level, hash, name, at, after)?)
    }

    fn put(
        &mut self,
        level: u32,
        hash: NameHash,
        name: &[u8],
        at: Option<usize>,
        content: Content,
    ) -> Result<(), NoMemory> {
        self.mark(level)?;
        // One that is new, and is not noted for want of memory, is absent.
        let at = match at {
            Some(at) => at,
            None => self.push_entry(hash, name)?,
        };
        self.ask_for_notes(1)?;
        self.note(at);
        self.set_content(at, content);
        Ok(())
    }

    fn set_content(&mut self, at: usize, content: Content) {
        let entry = &mut self.entries[at];
        match (entry.content.is_present(), content.is_present()) {
            (true, false) => {
                self.present -= 1;
                self.bytes -= Self::cost(entry);
            }
            (false, true) => {
                self.present += 1;
                self.bytes += Self::cost(entry);
            }
            _ => {}
        }
        entry.content = content;
    }

    /// What this transaction has changed of a counter, if it has.
    pub fn get(&self, hash: NameHash, name: &[u8]) -> Option<Tally> {
        let content = self.entries[self.find(hash, name)?].content;
        content
            .is_present()
            .then(|| Tally::of(content.delta, content.uses()))
    }

    /// The same as a row.
    pub fn row(&self, hash: NameHash, name: &[u8]) -> Option<Row<'_>> {
        let entry = &self.entries[self.find(hash, name)?];
        entry.content.is_present().then(|| Self::row_of(entry))
    }

    /// All that is pending, in no particular order.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.entries
            .iter()
            .filter(|entry| entry.content.is_present())
            .map(Self::row_of)
    }

    fn row_of(entry: &Entry) -> Row<'_> {
        Row {
            hash: entry.hash,
            name: &entry.name,
            delta: entry.content.delta,
            uses: entry.content.uses(),
            purges: entry.content.purges,
        }
    }

    /// All rows were written on behalf of the subtransaction at `level`: nothing is pending any
    /// more, until that subtransaction is rolled back, which takes the written rows with it and
    /// brings back what its parents had added.
    ///
    /// # Errors
    /// [`NoMemory`]; then all is pending still.
    pub fn clear_written(&mut self, level: u32) -> Result<(), NoMemory> {
        if level == TOP_LEVEL {
            self.reset();
            return Ok(());
        }
        self.mark(level)?;
        let keep = room::vector(self.entries.len())?;
        let moved_to = room::vector(self.entries.len())?;
        self.ask_for_notes(self.present)?;
        for at in 0..self.entries.len() {
            if self.entries[at].content.is_present() {
                self.note(at);
                self.entries[at].content = Content::default();
            }
        }
        self.present = 0;
        self.bytes = 0;
        self.forget_entries_without_past(keep, moved_to);
        Ok(())
    }

    /// The subtransaction at `level` was released into its parent.
    pub fn release_subxact(&mut self, level: u32) {
        let Some(top) = self
            .markers
            .last()
            .copied()
            .filter(|top| top.level == level)
        else {
            return;
        };
        if level - 1 == TOP_LEVEL {
            // What the top level does is undone by forgetting it all.
            self.markers.clear();
            self.notes.clear();
            return;
        }
        match self
            .markers
            .iter()
            .rev()
            .nth(1)
            .copied()
            .filter(|below| below.level == level - 1)
        {
            None => self.markers.last_mut().expect("just seen").level = level - 1,
            Some(parent) => {
                let mut kept = top.notes_from;
                for i in top.notes_from..self.notes.len() {
                    let note = self.notes[i];
                    let entry = &mut self.entries[note.entry as usize];
                    entry.saved_at = parent.serial;
                    if note.saved_at < parent.serial {
                        self.notes[kept] = note;
                        kept += 1;
                    }
                }
                self.notes.truncate(kept);
                self.markers.pop();
            }
        }
    }

    /// The subtransaction at `level`, and all inside it, were rolled back. Does not allocate.
    pub fn abort_subxact(&mut self, level: u32) {
        while let Some(top) = self
            .markers
            .last()
            .copied()
            .filter(|top| top.level >= level)
        {
            while self.notes.len() > top.notes_from {
                let Some(note) = self.notes.pop() else { break };
                let at = note.entry as usize;
                self.set_content(at, note.content);
                self.entries[at].saved_at = note.saved_at;
            }
            self.markers.pop();
        }
    }

    /// The transaction has ended. Does not allocate; gives back what a large one had taken.
    pub fn reset(&mut self) {
        if self.entries.is_empty() && self.last_serial == 0 {
            // As most maps are of most transactions.
            return;
        }
        if self.entries.capacity() > KEPT_ENTRIES {
            *self = Self::default();
            return;
        }
        self.entries.clear();
        self.index.clear();
        self.notes.clear();
        self.markers.clear();
        self.last_serial = 0;
        self.present = 0;
        self.bytes = 0;
    }

    fn cost(entry: &Entry) -> usize {
        size_of::<Entry>() + size_of::<u32>() + entry.name.len()
    }

    fn find(&self, hash: NameHash, name: &[u8]) -> Option<usize> {
        self.index
            .find(hash.get(), |&at| {
                let entry = &self.entries[at as usize];
                entry.hash == hash && *entry.name == *name
            })
            .map(|&at| at as usize)
    }

    fn push_entry(&mut self, hash: NameHash, name: &[u8]) -> Result<usize, NoMemory> {
        let at = self.entries.len();
        let key = u32::try_from(at).expect("the memory limit is far below 4 billion entries");
        let entries = &self.entries;
        let hash_of = |&at: &u32| entries[at as usize].hash.get();
        self.index.try_reserve(1, hash_of)?;
        room::push(
            &mut self.entries,
            Entry {
                hash,
                name: name.into(),
                content: Content::default(),
                saved_at: 0,
            },
        )?;
        let entries = &self.entries;
        let hash_of = |&at: &u32| entries[at as usize].hash.get();
        self.index.insert_unique(hash.get(), key, hash_of);
        Ok(at)
    }

    /// Makes sure that changes from now on are noted for the subtransaction at `level`.
    fn mark(&mut self, level: u32) -> Result<(), NoMemory> {
        let top = self.markers.last().map_or(TOP_LEVEL, |marker| marker.level);
        if level > top {
            let marker = Marker {
                level,
                serial: self.last_serial + 1,
                notes_from: self.notes.len(),
            };
            room::push(&mut self.markers, marker)?;
            self.last_serial += 1;
        }
        Ok(())
    }

    /// Room for so many more notes, where any are taken.
    fn ask_for_notes(&mut self, count: usize) -> Result<(), NoMemory> {
        if !self.markers.is_empty() {
            room::keep_spare()?;
            self.notes.try_reserve(count)?;
        }
        Ok(())
    }

    /// Notes what an entry was. There is room.
    fn note(&mut self, at: usize) {
        let Some(top) = self.markers.last() else {
            return;
        };
        let entry = &mut self.entries[at];
        if entry.saved_at < top.serial {
            self.notes.push(Note {
                entry: at as u32,
                saved_at: entry.saved_at,
                content: entry.content,
            });
            entry.saved_at = top.serial;
        }
    }

    /// After a write inside a subtransaction: an entry that is absent now and in every note needs
    /// no memory. Both vectors have room for all entries.
    fn forget_entries_without_past(&mut self, mut keep: Vec<bool>, mut moved_to: Vec<u32>) {
        keep.resize(self.entries.len(), false);
        for note in &self.notes {
            keep[note.entry as usize] |= note.content.is_present();
        }
        let mut next = 0u32;
        for &kept in &keep {
            moved_to.push(next);
            next += u32::from(kept);
        }
        let mut kept_notes = 0;
        let mut marker = 0;
        for i in 0..self.notes.len() {
            while marker < self.markers.len() && self.markers[marker].notes_from == i {
                self.markers[marker].notes_from = kept_notes;
                marker += 1;
            }
            let note = self.notes[i];
            if keep[note.entry as usize] {
                self.notes[kept_notes] = Note {
                    entry: moved_to[note.entry as usize],
                    ..note
                };
                kept_notes += 1;
            }
        }
        for rest in &mut self.markers[marker..] {
            rest.notes_from = kept_notes;
        }
        self.notes.truncate(kept_notes);
        let mut at = 0;
        self.entries.retain(|_| {
            at += 1;
            keep[at - 1]
        });
        self.index.clear();
        let entries = &self.entries;
        for (at, entry) in entries.iter().enumerate() {
            self.index
                .insert_unique(entry.hash.get(), at as u32, |&at| {
                    entries[at as usize].hash.get()
                });
        }
    }
}

#[cfg(test)]
mod tests;
