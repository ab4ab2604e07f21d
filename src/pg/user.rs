//! Acting as another user.

use super::relation::Relation;
use pgrx::pg_sys;

/// What runs while this lives runs as the owner of a relation, as VACUUM does it.
pub struct ActingAs {
    user: pg_sys::Oid,
    context: core::ffi::c_int,
}

impl ActingAs {
    /// The relation's owner, to whom row security does not apply, forced or not. In a transaction.
    pub fn owner_of(relation: &Relation) -> Self {
        let mut before = Self {
            user: pg_sys::InvalidOid,
            context: 0,
        };
        let restricted = (pg_sys::SECURITY_LOCAL_USERID_CHANGE
            | pg_sys::SECURITY_RESTRICTED_OPERATION
            | pg_sys::SECURITY_NOFORCE_RLS) as i32;
        // SAFETY: sets variables of the process, which an abort of the transaction sets back.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&mut before.user, &mut before.context);
            pg_sys::SetUserIdAndSecContext(relation.owner(), before.context | restricted);
        }
        before
    }
}

impl Drop for ActingAs {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: what was read before.
            unsafe { pg_sys::SetUserIdAndSecContext(self.user, self.context) };
        }
    }
}
