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

/// The current memory context is another one as long as this lives.
pub struct MemorySwitch {
    before: pg_sys::MemoryContext,
}

impl MemorySwitch {
    /// Switches to `context`.
    ///
    /// # Safety
    /// The context is a live one, and so is the current one until the switch back.
    pub unsafe fn to(context: pg_sys::MemoryContext) -> Self {
        // SAFETY: the caller's promise.
        let before = unsafe { pg_sys::MemoryContextSwitchTo(context) };
        Self { before }
    }
}

impl Drop for MemorySwitch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Whoever catches the error sets the context.
            return;
        }
        // SAFETY: it belongs to a caller further up the stack.
        unsafe { pg_sys::MemoryContextSwitchTo(self.before) };
    }
}

/// A memory context that is emptied again and again, and goes with its parent.
pub struct MemoryArena(pg_sys::MemoryContext);

impl MemoryArena {
    /// Makes a context below `parent`.
    ///
    /// # Safety
    /// `parent` is a live context that outlives all use of the arena.
    pub unsafe fn below(parent: pg_sys::MemoryContext) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe {
            pg_sys::AllocSetContextCreateInternal(
                parent,
                c"counterx".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            )
        })
    }

    /// The context.
    pub fn as_ptr(&self) -> pg_sys::MemoryContext {
        self.0
    }

    /// Frees all that was allocated in it.
    ///
    /// # Safety
    /// Nobody uses it any more.
    pub unsafe fn reset(&self) {
        // SAFETY: the caller's promise.
        unsafe { pg_sys::MemoryContextReset(self.0) };
    }
}

/// What a function keeps from one call to the next ones in the same query. It goes with the memory context of
/// the query.
///
/// # Safety
/// `fcinfo` is what the server has called a function of ours with, which keeps nothing else.
pub unsafe fn kept_in_call<'a, T>(
    fcinfo: pg_sys::FunctionCallInfo,
    make: impl FnOnce(pg_sys::MemoryContext) -> T,
) -> &'a mut T {
    // SAFETY: the caller's promise: what stands there is of this type, and lives as long as `flinfo`.
    unsafe {
        let function = (*fcinfo).flinfo;
        if (*function).fn_extra.is_null() {
            let memory = (*function).fn_mcxt;
            let value = make(memory);
            let kept = pgrx::PgMemoryContexts::For(memory).leak_and_drop_on_delete(value);
            (*function).fn_extra = kept.cast();
        }
        &mut *(*function).fn_extra.cast()
    }
}
