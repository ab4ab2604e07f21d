//! The check at the end of a transaction that its counters were changed by the bounds that they have.

use crate::bounds::reservations;
use crate::bounds::types;
use crate::transaction::pending::{Change, Source};
use counterx_core::windows::Stored;

/// Checks at the end of a transaction that the types are those by which its counters were changed.
/// To be called with the gates of all
/// counters locked.
///
/// # Errors
/// Raises 40001 when a counter that was changed by calls has got other bounds meanwhile, 42501 when it is a
/// tracked table's now.
pub fn check_unchanged(changes: &[Change]) {
    if !types::have_changed() {
        return;
    }
    types::read_again();
    for Change { part, row } in changes {
        if part.0 == Source::Rows {
            continue;
        }
        let is_stored = Stored::of(row.name).is_some();
        let Some(limits) = types::find(row.name) else {
            // Its type had a window. (What only looks so is told to retry once.)
            if is_stored {
                types::raise_changed(row.name);
            }
            continue;
        };
        if limits.window.is_some() != is_stored {
            types::raise_changed(row.name);
        }
        if limits.tracked {
            types::raise_tracked(row.name);
        }
        if reservations::generation_of(row.hash, row.name) != Some(limits.generation) {
            types::raise_changed(row.name);
        }
    }
}
