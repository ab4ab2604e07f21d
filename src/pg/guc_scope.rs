//! Settings that hold for the length of a call.

use pgrx::pg_sys;
use std::ffi::CStr;

/// Settings are these as long as this lives, as in a function with SET clauses. An abort of the
/// (sub)transaction sets them back as well.
pub struct GucScope(core::ffi::c_int);

impl GucScope {
    /// From now on.
    pub fn enter(settings: &[(&CStr, &CStr)]) -> Self {
        // SAFETY: plain calls of the settings' manager, in a transaction.
        unsafe {
            let scope = Self(pg_sys::NewGUCNestLevel());
            for (name, value) in settings {
                pg_sys::set_config_option(
                    name.as_ptr(),
                    value.as_ptr(),
                    pg_sys::GucContext::PGC_SUSET,
                    pg_sys::GucSource::PGC_S_SESSION,
                    pg_sys::GucAction::GUC_ACTION_SAVE,
                    true,
                    0,
                    false,
                );
            }
            scope
        }
    }
}

impl Drop for GucScope {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: what was opened by us, and nothing that was opened later is left.
            unsafe { pg_sys::AtEOXact_GUC(true, self.0) };
        }
    }
}
