//! Which of all stored names are shown, at this moment: see `counterx_core::windows`.
//!
//! It is known to those who keep the windows, on the same floor. They say so when the library is loaded.

use counterx_core::windows::Shown;
use std::sync::OnceLock;

static SHOWN: OnceLock<fn() -> Shown> = OnceLock::new();

/// To be called once, from `_PG_init`.
pub fn register(shown: fn() -> Shown) {
    // A second one would be the same.
    let _ = SHOWN.set(shown);
}

/// Those that are shown now.
pub fn now() -> Shown {
    SHOWN.get().map(|shown| shown()).unwrap_or_default()
}
