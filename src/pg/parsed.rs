//! Conditions of triggers, parsed once in a session.
//!
//! The server keeps them as texts. What parsing makes of a text depends on nothing else, so it is right for as long
//! as the text is the same; and it takes as long as all else that a short statement has to do for a trigger.

use super::memory::MemorySwitch;
use pgrx::pg_sys;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char};

/// More triggers than a session fires again and again.
const MOST: usize = 256;

/// Text and tree live in the memory context.
struct Parsed {
    text: *const c_char,
    tree: *mut pg_sys::Node,
    memory: pg_sys::MemoryContext,
}

thread_local! {
    /// By the trigger's OID. Nothing of the server is called while it is borrowed but what frees memory.
    static PARSED: RefCell<HashMap<pg_sys::Oid, Parsed>> = RefCell::default();
}

/// The condition of a trigger, or null: a copy in the current memory context, and the caller's own.
///
/// # Safety
/// The trigger is a live one.
pub unsafe fn condition(trigger: &pg_sys::Trigger) -> *mut pg_sys::Node {
    if trigger.tgqual.is_null() {
        return std::ptr::null_mut();
    }
    // SAFETY: a text that ends with a zero, as is the one that was kept; a tree is kept until it is forgotten,
    // and nobody does that before it is copied.
    unsafe {
        let text = CStr::from_ptr(trigger.tgqual);
        let known = PARSED.with_borrow(|all| {
            let known = all.get(&trigger.tgoid);
            known
                .filter(|known| CStr::from_ptr(known.text) == text)
                .map(|known| known.tree)
        });
        let tree = known.unwrap_or_else(|| parse(trigger.tgoid, text));
        pg_sys::copyObjectImpl(tree.cast()).cast()
    }
}

/// # Safety
/// The text is that of an expression in the catalogs.
unsafe fn parse(trigger: pg_sys::Oid, text: &CStr) -> *mut pg_sys::Node {
    // SAFETY: after an error the new context goes with the current one; else with the session.
    let parsed = unsafe {
        let memory = pg_sys::AllocSetContextCreateInternal(
            pg_sys::CurrentMemoryContext,
            c"counterx condition of a trigger".as_ptr(),
            pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
            pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        );
        let (text, tree) = {
            let _switch = MemorySwitch::to(memory);
            let tree = pg_sys::stringToNode(text.as_ptr().cast_mut()).cast();
            (pg_sys::pstrdup(text.as_ptr()), tree)
        };
        pg_sys::MemoryContextSetParent(memory, pg_sys::CacheMemoryContext);
        Parsed { text, tree, memory }
    };
    let tree = parsed.tree;
    PARSED.with_borrow_mut(|all| {
        if all.len() >= MOST {
            all.drain().for_each(|(_, old)| old.forget());
        }
        if let Some(old) = all.insert(trigger, parsed) {
            old.forget();
        }
    });
    tree
}

impl Parsed {
    fn forget(self) {
        // SAFETY: nobody else knows of it: trees are copied before they are used.
        unsafe { pg_sys::MemoryContextDelete(self.memory) };
    }
}
