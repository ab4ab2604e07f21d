//! The rows of a table function that returns them all at once.

use super::memory::{MemoryArena, MemorySwitch};
use pgrx::pg_sys;

/// What such a function has returned so far.
pub struct Rows {
    result: *mut pg_sys::ReturnSetInfo,
    row: MemoryArena,
}

impl Rows {
    /// Begins.
    ///
    /// # Errors
    /// Raises 0A000 where no set of rows can be returned.
    ///
    /// # Safety
    /// `fcinfo` is what the server has called a table function with, which returns nothing else.
    pub unsafe fn begin(fcinfo: pg_sys::FunctionCallInfo) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            pg_sys::InitMaterializedSRF(fcinfo, 0);
            Self {
                result: (*fcinfo).resultinfo.cast(),
                row: MemoryArena::below(pg_sys::CurrentMemoryContext),
            }
        }
    }

    /// One more row, of the function's columns. What `make` allocates goes with the next one.
    pub fn put<const N: usize>(&mut self, make: impl FnOnce() -> [Option<pg_sys::Datum>; N]) {
        pgrx::check_for_interrupts!();
        // SAFETY: nothing is kept from one row to the next; the store copies it.
        unsafe {
            self.row.reset();
            let _switch = MemorySwitch::to(self.row.as_ptr());
            let values = make();
            let mut nulls = values.map(|value| value.is_none());
            let mut datums = values.map(|value| value.unwrap_or(pg_sys::Datum::null()));
            pg_sys::tuplestore_putvalues(
                (*self.result).setResult,
                (*self.result).setDesc,
                datums.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
        }
    }
}
