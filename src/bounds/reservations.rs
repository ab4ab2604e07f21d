//! What the running transaction has reserved of bounded counters. See `escrow.rs`.

use crate::bounds::accounts::Partition;
use crate::bounds::base::Base;
use crate::bounds::types;
use crate::pg::ports;
use crate::transaction::pending;
use counterx_core::escrow::{Amounts, End};
use counterx_core::lane::NameHash;
use counterx_core::path::{Path, Paths};
use counterx_core::room::{NoMemory, keep_spare};
use hashbrown::HashTable;
use pgrx::pg_sys;
use std::cell::RefCell;

/// What this transaction has to do with a counter. What it has done, and reserved for that, is the path
/// of the same number.
pub struct Own {
    /// Of the name.
    pub hash: NameHash,
    /// The counter.
    pub name: Box<[u8]>,
    /// The slot, once one was taken.
    pub slot: Option<usize>,
    /// Of the type by which all of this transaction's changes were checked. None: not all were.
    pub generation: Option<i64>,
    /// What the transaction's snapshot shows, once that was looked at.
    pub base: Option<Base>,
    /// What was granted at most by what one snapshot shows, rolled back or not.
    pub granted: Amounts,
    /// The command that has changed it last. Snapshots of later ones were taken after that.
    pub command: pg_sys::CommandId,
}

/// This transaction's reservations.
#[derive(Default)]
pub struct Reservations {
    /// The counters, in the order in which they came.
    pub owns: Vec<Own>,
    /// Their numbers, by name.
    pub index: HashTable<usize>,
    /// What was done to each.
    pub paths: Paths,
}

thread_local! {
    /// Those of the running transaction.
    pub static RESERVATIONS: RefCell<Reservations> = RefCell::default();
}

impl Reservations {
    /// The number of a counter.
    pub fn find(&self, hash: NameHash, name: &[u8]) -> Option<usize> {
        let is_it = |&at: &usize| *self.owns[at].name == *name;
        self.index.find(hash.get(), is_it).copied()
    }

    /// The entry of a counter; and room for its next step, as noting a reservation must not fail.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn prepare(
        &mut self,
        hash: NameHash,
        name: &[u8],
        generation: i64,
    ) -> Result<usize, NoMemory> {
        keep_spare()?;
        self.paths.prepare()?;
        if let Some(at) = self.find(hash, name) {
            let own = &mut self.owns[at];
            own.generation = own.generation.filter(|&known| known == generation);
            return Ok(at);
        }
        self.owns.try_reserve(1)?;
        let owns = &self.owns;
        self.index.try_reserve(1, |&at| owns[at].hash.get())?;
        // What was written early of it was checked as well, if it had these bounds then.
        let unchecked = pending::pending_tally(hash, name).is_some()
            || (pending::has_flushed_early() && types::have_changed());
        self.owns.push(Own {
            hash,
            name: name.into(),
            slot: None,
            generation: (!unchecked).then_some(generation),
            base: None,
            granted: Amounts::NONE,
            command: pg_sys::FirstCommandId,
        });
        let at = self.paths.push();
        let owns = &self.owns;
        self.index
            .insert_unique(hash.get(), at, |&at| owns[at].hash.get());
        Ok(at)
    }

    /// Does not allocate, and does not fail.
    fn abort_subxact(&mut self, level: u32) {
        let owns = &self.owns;
        self.paths.abort_subxact(level, |at, amounts| {
            owns[at].give_back(amounts, End::Aborted, false);
        });
    }

    /// Does not allocate, and does not fail.
    fn end(&mut self, end: End) {
        for (at, own) in self.owns.iter().enumerate() {
            own.give_back(self.paths.get(at).amounts(), end, true);
        }
        self.owns.clear();
        self.index.clear();
        self.paths.clear();
    }
}

impl Own {
    fn was_changed_since(&self, command: pg_sys::CommandId) -> bool {
        self.command >= command && !ports::isolation_uses_xact_snapshot()
    }

    fn give_back(&self, amounts: Amounts, end: End, leave: bool) {
        let (Some(partition), Some(slot)) = (Partition::of(self.hash.get()), self.slot) else {
            return;
        };
        {
            let mut guard = partition.lock();
            guard.slots()[slot].release(amounts, end);
            if leave {
                guard.leave(slot);
            }
        }
        partition.wake();
    }
}

/// Does the running transaction hold anything back from others?
pub fn has_reservations() -> bool {
    RESERVATIONS.with_borrow(|all| {
        let mut all = (0..all.owns.len()).map(|at| all.paths.get(at));
        all.any(|path| !path.amounts().is_zero())
    })
}

/// What the running transaction has done to a counter, as far as its bounds are concerned.
pub fn own_path(hash: NameHash, name: &[u8]) -> Path {
    RESERVATIONS.with_borrow(|all| {
        let known = all.find(hash, name);
        known.map_or(Path::NEW, |at| all.paths.get(at))
    })
}

/// The bounded counters that the running transaction has changed since a snapshot of this command was
/// taken. That may not show what they were changed on top of: see `read/reader.rs`.
///
/// None in a transaction that goes by one snapshot, as that bears what is granted: see `levels`.
pub fn changed_since(command: pg_sys::CommandId) -> Vec<Box<[u8]>> {
    RESERVATIONS.with_borrow(|all| {
        let since = all.owns.iter().filter(|own| own.was_changed_since(command));
        since.map(|own| own.name.clone()).collect()
    })
}

/// Is this counter one of them?
pub fn was_changed_since(name: &[u8], command: pg_sys::CommandId) -> bool {
    RESERVATIONS.with_borrow(|all| {
        !all.owns.is_empty()
            && (all.find(NameHash::of(name), name))
                .is_some_and(|at| all.owns[at].was_changed_since(command))
    })
}

/// The generation of the type by whose bounds all changes of a counter by the running transaction
/// were checked. None: there is no such one.
pub fn generation_of(hash: NameHash, name: &[u8]) -> Option<i64> {
    RESERVATIONS.with_borrow(|all| {
        let known = all.find(hash, name)?;
        all.owns[known].generation
    })
}

/// The transaction has ended; its changes, if it has committed, are visible. Neither allocates nor
/// fails.
pub fn after_end(end: End) {
    RESERVATIONS.with(|all| {
        // Borrowed only when the session ends in the middle of a call; see `write/writing.rs`.
        if let Ok(mut all) = all.try_borrow_mut() {
            all.end(end);
        }
    });
}

/// The subtransaction at this level was rolled back. Neither allocates nor fails.
pub fn abort_subxact(level: u32) {
    RESERVATIONS.with(|all| {
        if let Ok(mut all) = all.try_borrow_mut() {
            all.abort_subxact(level);
        }
    });
}

/// The subtransaction at this level was released.
pub fn release_subxact(level: u32) {
    RESERVATIONS.with_borrow_mut(|all| all.paths.release_subxact(level));
}
