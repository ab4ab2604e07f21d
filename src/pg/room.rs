//! Memory of ours that grows with data: asked for, and an error where there is none.
//!
//! What is small and bounded is allocated as usual: see `counterx_core::room` for what becomes of that
//! where nothing is left.

use super::error::{raise, report};
use counterx_core::room::{self, NoMemory, WithSpare};
use pgrx::PgSqlErrorCode;
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: WithSpare<System> = WithSpare(System);

/// What was asked for.
///
/// # Errors
/// Raises 53200 when there is no memory for it.
#[inline]
pub fn granted<T>(asked: Result<T, NoMemory>) -> T {
    match asked {
        Ok(got) => got,
        Err(NoMemory) => raise_no_memory(),
    }
}

/// # Errors
/// Raises 53200.
#[cold]
pub fn raise_no_memory() -> ! {
    // The server needs some as well to end what is under way.
    room::give_spare();
    raise(
        report(PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY, "out of memory")
            .set_detail("There is no memory for so many counters at a time.")
            .set_hint("Change or read fewer counters in one transaction, or lower counterx.pending_work_mem."),
    )
}

/// Appends.
///
/// # Errors
/// As of [`granted`].
pub fn push<T>(to: &mut Vec<T>, value: T) {
    granted(room::push(to, value));
}

/// All of them.
///
/// # Errors
/// As of [`granted`].
pub fn collect<T>(all: impl IntoIterator<Item = T>) -> Vec<T> {
    granted(room::collect(all))
}

/// A copy of what may be long.
///
/// # Errors
/// As of [`granted`].
pub fn copy(of: &[u8]) -> Vec<u8> {
    granted(room::copy(of))
}
