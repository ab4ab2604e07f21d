//! What the running transaction has to remember of its calls, besides what is pending: which counters
//! it has changed by their value.
//!
//! Like the pending map, this is kept up by the callbacks in `write/callbacks.rs`. What runs at the end of a
//! transaction or on the way back from a subtransaction neither allocates nor fails.

use crate::pg::ports;
use crate::pg::room;
use pgrx::pg_sys;
use std::cell::RefCell;

/// A counter that was changed by what its latest value was. A snapshot that was taken before does
/// not go with such a change: see `read/reader.rs`.
struct ByValue {
    level: u32,
    /// Snapshots of later commands were taken after the change.
    command: pg_sys::CommandId,
    name: Box<[u8]>,
}

thread_local! {
    static BY_VALUE: RefCell<Vec<ByValue>> = const { RefCell::new(Vec::new()) };
}

/// The running (sub)transaction changes a counter by what its latest value is.
pub fn note_change_by_value(name: &[u8]) {
    let noted = ByValue {
        level: ports::xact_nest_level(),
        // SAFETY: marks the command as one that writes, so that the next one has another number.
        command: unsafe { pg_sys::GetCurrentCommandId(true) },
        name: name.into(),
    };
    let room = BY_VALUE.with_borrow_mut(|all| counterx_core::room::push(all, noted));
    room::granted(room);
}

/// The counters that were changed by their value since a snapshot of this command was taken, each
/// once, ascending.
pub fn changed_by_value_since(command: pg_sys::CommandId) -> Vec<Box<[u8]>> {
    BY_VALUE.with_borrow(|all| {
        let mut names: Vec<Box<[u8]>> =
            room::collect(since(all, command).map(|change| change.name.clone()));
        names.sort_unstable();
        names.dedup();
        names
    })
}

/// Is this counter one of them?
pub fn was_changed_by_value_since(name: &[u8], command: pg_sys::CommandId) -> bool {
    BY_VALUE.with_borrow(|all| since(all, command).any(|change| *change.name == *name))
}

/// Noted last is changed last: there can be very many of earlier commands.
fn since(all: &[ByValue], command: pg_sys::CommandId) -> impl Iterator<Item = &ByValue> {
    all.iter()
        .rev()
        .take_while(move |change| change.command >= command)
}

/// The subtransaction at this level was released.
pub fn release_subxact(level: u32) {
    BY_VALUE.with_borrow_mut(|all| {
        for change in all.iter_mut().rev() {
            if change.level < level {
                break;
            }
            change.level = level - 1;
        }
    });
}

/// The subtransaction at this level was rolled back.
pub fn abort_subxact(level: u32) {
    BY_VALUE.with(|all| {
        // Borrowed only when the session ends in the middle of a call; see `write/writing.rs`.
        if let Ok(mut all) = all.try_borrow_mut() {
            while all.last().is_some_and(|change| change.level >= level) {
                all.pop();
            }
        }
    });
}

/// The transaction has ended.
pub fn after_end() {
    BY_VALUE.with(|all| {
        if let Ok(mut all) = all.try_borrow_mut() {
            all.clear();
        }
    });
}
