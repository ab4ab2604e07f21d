//! The check at the end of a transaction that its counters were changed by the bounds that they have.

use crate::bounds::reservations;
use crate::bounds::types;
use counterx_core::pending::Row;

/// Checks at the end of a transaction that the types are those by which its counters were changed.
/// To be called with the gates of all rows locked.
///
/// # Errors
/// Raises 40001 when a counter has got other bounds meanwhile.
pub fn check_unchanged(rows: &[Row]) {
    if !types::have_changed() {
        return;
    }
    types::read_again();
    for row in rows {
        let Some(limits) = types::find(row.name) else {
            continue;
        };
        if reservations::generation_of(row.hash, row.name) != Some(limits.generation) {
            types::raise_changed(row.name);
        }
    }
}
