//! Trying something that may fail, in a subtransaction.

use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgSqlErrorCode, PgTryBuilder, pg_sys};
use std::panic::AssertUnwindSafe;

/// Runs `body` in a subtransaction. None when it raises this error: then all that it did is rolled back, and its
/// locks are gone. Neither references nor memory of its own outlive it: only what it returns.
///
/// # Errors
/// All others.
pub fn unless_it_raises<R>(code: PgSqlErrorCode, body: impl FnOnce() -> R) -> Option<R> {
    let scope = Scope::begin();
    let mut body = Some(body);
    let run = AssertUnwindSafe(|| {
        let body = body.take().expect("runs once");
        Ok(body())
    });
    let result: Result<R, Box<CaughtError>> = PgTryBuilder::new(run)
        .catch_others(|error| Err(Box::new(error)))
        .execute();
    match result {
        Ok(result) => {
            scope.release();
            Some(result)
        }
        Err(error) => {
            let is_expected =
                super::error::caught(&error).sql_error_code() == code && !is_panic(&error);
            scope.roll_back();
            if !is_expected {
                error.rethrow()
            }
            None
        }
    }
}

fn is_panic(error: &CaughtError) -> bool {
    matches!(error, CaughtError::RustPanic { .. })
}

/// A subtransaction, as the server's own languages begin and end theirs.
struct Scope {
    context: pg_sys::MemoryContext,
    owner: pg_sys::ResourceOwner,
}

impl Scope {
    fn begin() -> Self {
        // SAFETY: in a transaction. The caller's memory context stays the current one.
        unsafe {
            let scope = Self {
                context: pg_sys::CurrentMemoryContext,
                owner: pg_sys::CurrentResourceOwner,
            };
            pg_sys::BeginInternalSubTransaction(std::ptr::null());
            pg_sys::MemoryContextSwitchTo(scope.context);
            scope
        }
    }

    fn release(self) {
        // SAFETY: ends what was begun; whatever was begun after it has ended.
        unsafe { pg_sys::ReleaseCurrentSubTransaction() };
        self.leave();
    }

    fn roll_back(self) {
        // SAFETY: likewise, and the error has been caught.
        unsafe { pg_sys::RollbackAndReleaseCurrentSubTransaction() };
        self.leave();
    }

    fn leave(self) {
        // SAFETY: those of before, which live longer than the subtransaction.
        unsafe {
            pg_sys::MemoryContextSwitchTo(self.context);
            pg_sys::CurrentResourceOwner = self.owner;
        }
    }
}
