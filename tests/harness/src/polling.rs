//! Waiting for something that must happen.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// How long a start, crash recovery included, or a stop may take before it counts as hung.
pub(crate) const START_STOP_DEADLINE: Duration = Duration::from_secs(120);

/// The pause inside a polling loop.
pub(crate) const POLL_PAUSE: Duration = Duration::from_millis(15);

/// Calls `f` until it says true, with a short pause in between.
///
/// # Errors
/// `f` failed, or `deadline` has passed: the error then says that it waited for `what`.
pub fn poll_until(
    what: &str,
    deadline: Duration,
    mut f: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let end = Instant::now() + deadline;
    loop {
        if f().with_context(|| format!("while waiting for {what}"))? {
            return Ok(());
        }
        ensure!(Instant::now() < end, "waited {deadline:?} for {what}");
        thread::sleep(POLL_PAUSE);
    }
}
