//! What a fold is in the midst of when an error ends it.

use std::cell::Cell;
use std::thread::LocalKey;

/// A mark is set as long as this lives. When an error ends that, it stays set until somebody takes it.
pub struct AtIt(&'static LocalKey<Cell<bool>>);

impl AtIt {
    /// From now on.
    pub fn begin(mark: &'static LocalKey<Cell<bool>>) -> Self {
        mark.set(true);
        Self(mark)
    }
}

impl Drop for AtIt {
    fn drop(&mut self) {
        // An error unwinds without a panic of ours, or is one.
        if !std::thread::panicking() {
            self.0.set(false);
        }
    }
}
