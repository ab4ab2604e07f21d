//! What the threads of a load know of each other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Result, ensure};
use counterx_harness::poll_to_end;

use crate::server::DEADLINE;

/// The threads' view of each other.
#[derive(Debug, Default)]
pub struct Control {
    finished: AtomicU64,
    total: u64,
    over: AtomicBool,
    aborted: AtomicBool,
}

impl Control {
    /// Of clients that have so many transactions to do.
    pub(crate) fn of(total: u64) -> Self {
        Self {
            total,
            ..Self::default()
        }
    }

    /// Somebody failed: the others need not go on.
    pub fn abort(&self) {
        self.aborted.store(true, Ordering::Relaxed);
    }

    /// A client has ended a transaction.
    pub fn count(&self) {
        self.finished.fetch_add(1, Ordering::Relaxed);
    }

    /// The clients have ended.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Has somebody failed?
    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Relaxed)
    }

    /// Have the clients ended?
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || self.aborted.load(Ordering::Relaxed)
    }

    /// Have the clients done all that they had to do?
    pub fn is_done(&self) -> bool {
        self.finished.load(Ordering::Relaxed) >= self.total || self.aborted.load(Ordering::Relaxed)
    }

    /// How many transactions clients have ended.
    pub fn finished(&self) -> u64 {
        self.finished.load(Ordering::Relaxed)
    }

    /// Waits until this share of the load is done, as long as it goes on: how long it takes is the machine's.
    ///
    /// # Errors
    /// When no transaction ends for longer than any should take, or the load has failed.
    pub fn wait_for_share(&self, share: f64) -> Result<()> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "a rough share of a small number"
        )]
        let enough = (self.total as f64 * share) as u64;
        poll_to_end("a share of the load", 2 * DEADLINE, || {
            ensure!(!self.is_aborted(), "the load has failed");
            Ok(enough.saturating_sub(self.finished()))
        })
    }

    /// Does something at a third of the load, and again at two thirds.
    ///
    /// # Errors
    /// Those of [`Control::wait_for_share`], and of what is done.
    pub fn at_each_third(&self, mut what: impl FnMut() -> Result<()>) -> Result<()> {
        for share in [0.33, 0.67] {
            self.wait_for_share(share)?;
            what()?;
        }
        Ok(())
    }
}
