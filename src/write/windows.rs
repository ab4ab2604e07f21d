//! Removing what is stored for windows that have ended: which ones have is known by `bounds`, and their totals are those
//! of `fold`.

use crate::bounds::windows::{self, Leaps};
use crate::fold::windows as totals;
pub use crate::fold::windows::Progress;
use crate::pg::room;
use crate::store::expired::Batch;

/// Removes some of it, in a READ COMMITTED transaction of its own, or the last thing in one that has folded; if that fails,
/// the caller forgets the progress.
///
/// # Errors
/// [`Leaps`] when the clock may be wrong.
pub fn remove_ended(clock_is_trusted: bool, progress: &mut Progress) -> Result<Batch, Leaps> {
    if !windows::are_any() {
        return Ok(Batch::Done);
    }
    if !totals::take_leases() {
        return Ok(Batch::Busy);
    }
    let ended = windows::ended(clock_is_trusted)?;
    let names = room::collect(ended.iter().map(|ended| ended.names.clone()));
    Ok(totals::remove(&names, progress, |number| {
        windows::note_removed(ended[number].before);
    }))
}
