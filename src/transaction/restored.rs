//! Which types the running transaction has restored values or holds of.
//!
//! What a transaction has restored is hidden from its own requests, like all that it has written: those of
//! its calls are in its reservations, but restored rows have gone past the accounts. So it changes no
//! counters of these types afterwards; before that, `counter_type_create()` and its kind see to it.
//!
//! Kept up by the callbacks in `write/callbacks.rs`, as `notes.rs` is.

use crate::pg::error::{quoted, raise, report};
use crate::pg::ports;
use pgrx::PgSqlErrorCode;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::mem;

struct Restored {
    level: u32,
    type_name: Box<[u8]>,
    /// The running command has brought rows of it, and has not been checked.
    unchecked: bool,
}

thread_local! {
    static RESTORED: RefCell<Vec<Restored>> = const { RefCell::new(Vec::new()) };
    /// There are some, for the hot path.
    static ANY: Cell<bool> = const { Cell::new(false) };
}

fn type_of(name: &[u8]) -> &[u8] {
    name.split(|&byte| byte == b':').next().unwrap_or_default()
}

/// The running (sub)transaction restores a value, or a hold, of this bounded counter.
pub fn note(name: &[u8]) {
    let type_name = type_of(name);
    RESTORED.with_borrow_mut(|all| {
        let level = ports::xact_nest_level();
        // One of an outer level stays when this one is rolled back; the mark on it would stay as well.
        let own =
            |restored: &&mut Restored| restored.level == level && *restored.type_name == *type_name;
        match all.iter_mut().rev().find(own) {
            Some(restored) => restored.unchecked = true,
            None => all.push(Restored {
                level,
                type_name: type_name.into(),
                unchecked: true,
            }),
        }
    });
    ANY.set(true);
}

/// The types of which a command has brought rows, to be checked now.
pub fn take_unchecked() -> BTreeSet<String> {
    RESTORED.with_borrow_mut(|all| {
        all.iter_mut()
            .filter_map(|restored| {
                mem::take(&mut restored.unchecked)
                    .then(|| String::from_utf8_lossy(&restored.type_name).into_owned())
            })
            .collect()
    })
}

/// Refuses to change a bounded counter of which the transaction may have restored rows.
///
/// # Errors
/// Raises 25001.
pub fn check(name: &[u8]) {
    if !ANY.get() {
        return;
    }
    let type_name = type_of(name);
    let restored =
        RESTORED.with_borrow(|all| all.iter().any(|restored| *restored.type_name == *type_name));
    if restored {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
                format!(
                    "cannot change bounded counter {} in a transaction that has restored counters or holds of type {}",
                    quoted(name),
                    quoted(type_name)
                ),
            )
            .set_hint("Commit what was restored first."),
        );
    }
}

/// The subtransaction at this level was released.
pub fn release_subxact(level: u32) {
    RESTORED.with_borrow_mut(|all| {
        for restored in all.iter_mut().rev() {
            if restored.level < level {
                break;
            }
            restored.level = level - 1;
        }
    });
}

/// The subtransaction at this level was rolled back. Neither allocates nor fails.
pub fn abort_subxact(level: u32) {
    RESTORED.with(|all| {
        // Borrowed only when the session ends in the middle of a call; see `write/writing.rs`.
        if let Ok(mut all) = all.try_borrow_mut() {
            while all.last().is_some_and(|restored| restored.level >= level) {
                all.pop();
            }
            ANY.set(!all.is_empty());
        }
    });
}

/// The transaction has ended. Neither allocates nor fails.
pub fn after_end() {
    RESTORED.with(|all| {
        if let Ok(mut all) = all.try_borrow_mut() {
            all.clear();
            ANY.set(false);
        }
    });
}
