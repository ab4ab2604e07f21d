//! A memory context of one's own, for the places where the current one is somebody else's.

use pgrx::pg_sys;

/// Everything allocated while this lives is freed when it is dropped.
pub struct MemoryScope {
    context: pg_sys::MemoryContext,
    before: pg_sys::MemoryContext,
}

impl MemoryScope {
    /// Makes a context below `parent` and switches to it.
    ///
    /// # Safety
    /// `parent` is a live context that outlives the scope; no pointer into the scope leaves it.
    pub unsafe fn enter(parent: pg_sys::MemoryContext) -> Self {
        // SAFETY: plain calls of the memory manager; an out-of-memory error unwinds.
        unsafe {
            let context = pg_sys::AllocSetContextCreateInternal(
                parent,
                c"counterx".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            );
            let before = pg_sys::MemoryContextSwitchTo(context);
            Self { context, before }
        }
    }
}

impl Drop for MemoryScope {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The abort of the transaction frees the parent, and us with it.
            return;
        }
        // SAFETY: both contexts are live: `before` belongs to a caller further up the stack.
        unsafe {
            pg_sys::MemoryContextSwitchTo(self.before);
            pg_sys::MemoryContextDelete(self.context);
        }
    }
}
