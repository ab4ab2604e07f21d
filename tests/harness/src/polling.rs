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

/// Asks how much is `left` until there is nothing, with a short pause in between. How long that takes is the machine's:
/// `deadline` is for as long as it does not become less.
///
/// # Errors
/// `left` failed, or nothing has become less for so long: the error then says that it waited for `what`.
pub fn poll_to_end(
    what: &str,
    deadline: Duration,
    mut left: impl FnMut() -> Result<u64>,
) -> Result<()> {
    let mut least = u64::MAX;
    let mut end = Instant::now() + deadline;
    loop {
        let now = left().with_context(|| format!("while waiting for {what}"))?;
        if now == 0 {
            return Ok(());
        }
        if now < least {
            least = now;
            end = Instant::now() + deadline;
        }
        ensure!(
            Instant::now() < end,
            "waited {deadline:?} for {what}: {now} are left"
        );
        thread::sleep(POLL_PAUSE);
    }
}
