//! The clock that history, holds and windows go by.

use super::ports;

/// What it shows, in microseconds since 2000. In debug builds, tests set it ahead or back.
pub fn now() -> i64 {
    let now = ports::now();
    #[cfg(debug_assertions)]
    let now = now + ahead::microseconds();
    now
}

#[cfg(debug_assertions)]
pub use ahead::define;

#[cfg(debug_assertions)]
mod ahead {
    use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};

    static CLOCK_AHEAD: GucSetting<i32> = GucSetting::<i32>::new(0);

    /// Defines the setting. It is not listed: there is nothing to choose for users.
    pub fn define() {
        GucRegistry::define_int_guc(
            c"counterx.clock_ahead",
            c"Sets the clock that history goes by ahead of the server's.",
            c"For tests, in debug builds only.",
            &CLOCK_AHEAD,
            i32::MIN,
            i32::MAX,
            GucContext::Suset,
            GucFlags::NO_SHOW_ALL,
        );
    }

    pub fn microseconds() -> i64 {
        i64::from(CLOCK_AHEAD.get()) * 1_000_000
    }
}
