//! Who gives back what: resource owners.
//!
//! The server gives back locks, pins and references with the resource owner that they were taken under.
//! A call of ours runs under that of its portal, and a portal is not a transaction: when a cursor's
//! FETCH fails in a subtransaction, the server gives back all that the cursor ever took, also what
//! earlier FETCHes took whose changes live on. So:
//!
//! - What protects changes lives as long as they do: it is taken as [`XactOwned`].
//! - What serves a call or a scan, and is given back by us at its end, is left to the current owner, so
//!   that an error gives it back too.

use pgrx::pg_sys;

/// What is taken as long as this lives belongs to the running (sub)transaction, as its changes do: an
/// abort gives it back, a release hands it up, and nothing else touches it.
pub struct XactOwned {
    before: pg_sys::ResourceOwner,
}

impl XactOwned {
    /// From now on.
    pub fn enter() -> Self {
        // SAFETY: variables of the process. We are in a transaction, so there is an owner.
        unsafe {
            let before = pg_sys::CurrentResourceOwner;
            pg_sys::CurrentResourceOwner = pg_sys::CurTransactionResourceOwner;
            Self { before }
        }
    }

    /// Runs `body` under the owner of before.
    pub fn outside<R>(&self, body: impl FnOnce() -> R) -> R {
        // SAFETY: as above. Should `body` raise an error, the drop sets the owner.
        unsafe {
            let ours = pg_sys::CurrentResourceOwner;
            pg_sys::CurrentResourceOwner = self.before;
            let result = body();
            pg_sys::CurrentResourceOwner = ours;
            result
        }
    }
}

impl Drop for XactOwned {
    /// Also on the way of an error: whoever catches it may go on without ending the transaction.
    fn drop(&mut self) {
        // SAFETY: the owner of a caller further up the stack.
        unsafe { pg_sys::CurrentResourceOwner = self.before };
    }
}
