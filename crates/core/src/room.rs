//! Memory that cannot be had, as an error of whoever asked for it.
//!
//! An allocation that fails ends a Rust program, and a server with all its sessions when it is part of
//! one. Two things together keep that from happening:
//!
//! - What grows with data asks for its room by the functions here, which say [`NoMemory`].
//! - All else is small, and most of it is needed when there is nothing left: an error has its message, and
//!   its way out of the calls that it ends. For that the process keeps a *spare*. When an allocation of
//!   that kind fails, [`WithSpare`] gives the spare back to the system and tries again. From then on
//!   whatever grows is refused, until there is memory enough for a new spare.
//!
//! The spare goes to the allocator of the C library, so the server's own allocations live on it as well.

use std::alloc::{GlobalAlloc, Layout};
use std::collections::BinaryHeap;
use std::collections::TryReserveError;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

/// There is no memory for what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

impl From<TryReserveError> for NoMemory {
    fn from(_: TryReserveError) -> Self {
        Self
    }
}

impl From<hashbrown::TryReserveError> for NoMemory {
    fn from(_: hashbrown::TryReserveError) -> Self {
        Self
    }
}

const SPARE: Layout = match Layout::from_size_align(512 * 1024, 16) {
    Ok(layout) => layout,
    Err(_) => panic!("a size and a power of two"),
};

/// Larger than this is nothing that has not asked before.
const SMALL: usize = 64 * 1024;

static SPARE_AT: AtomicPtr<u8> = AtomicPtr::new(null_mut());

/// Makes sure that there is a spare. To be called by whoever adds to what grows, at each step.
///
/// # Errors
/// [`NoMemory`] when there is none to be had: nothing may grow now.
pub fn keep_spare() -> Result<(), NoMemory> {
    if SPARE_AT.load(Ordering::Relaxed).is_null() {
        take_spare()
    } else {
        Ok(())
    }
}

#[cold]
fn take_spare() -> Result<(), NoMemory> {
    // SAFETY: the size is not zero.
    let spare = unsafe { std::alloc::alloc(SPARE) };
    if spare.is_null() {
        return Err(NoMemory);
    }
    let nobody = SPARE_AT.compare_exchange(null_mut(), spare, Ordering::AcqRel, Ordering::Relaxed);
    if nobody.is_err() {
        // SAFETY: ours, and another thread has taken one meanwhile.
        unsafe { std::alloc::dealloc(spare, SPARE) };
    }
    Ok(())
}

/// Gives the spare back: somebody is about to need memory without being able to ask.
pub fn give_spare() {
    let spare = SPARE_AT.swap(null_mut(), Ordering::AcqRel);
    if !spare.is_null() {
        // SAFETY: taken by take_spare(), and nobody else's any more.
        unsafe { std::alloc::dealloc(spare, SPARE) };
    }
}

/// An allocator that has the spare for small requests.
pub struct WithSpare<A>(pub A);

impl<A: GlobalAlloc> WithSpare<A> {
    #[inline]
    fn or_again(&self, size: usize, got: *mut u8, again: impl FnOnce() -> *mut u8) -> *mut u8 {
        if got.is_null() {
            Self::with_spare(size, again)
        } else {
            got
        }
    }

    #[cold]
    fn with_spare(size: usize, again: impl FnOnce() -> *mut u8) -> *mut u8 {
        if size > SMALL || SPARE_AT.load(Ordering::Relaxed).is_null() {
            return null_mut();
        }
        give_spare();
        again()
    }
}

// SAFETY: all is the other allocator's work, which is asked twice at most; nothing here unwinds.
unsafe impl<A: GlobalAlloc> GlobalAlloc for WithSpare<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let alloc = || unsafe { self.0.alloc(layout) };
        self.or_again(layout.size(), alloc(), alloc)
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let alloc = || unsafe { self.0.alloc_zeroed(layout) };
        self.or_again(layout.size(), alloc(), alloc)
    }

    #[inline]
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.0.dealloc(ptr, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise. One that fails leaves the old block as it is.
        let realloc = || unsafe { self.0.realloc(ptr, layout, size) };
        self.or_again(size, realloc(), realloc)
    }
}

/// Appends.
///
/// # Errors
/// [`NoMemory`]; then nothing has changed.
#[inline]
pub fn push<T>(to: &mut Vec<T>, value: T) -> Result<(), NoMemory> {
    keep_spare()?;
    to.try_reserve(1)?;
    to.push(value);
    Ok(())
}

/// Appends to a heap.
///
/// # Errors
/// [`NoMemory`]; then nothing has changed.
pub fn push_heap<T: Ord>(to: &mut BinaryHeap<T>, value: T) -> Result<(), NoMemory> {
    keep_spare()?;
    to.try_reserve(1)?;
    to.push(value);
    Ok(())
}

/// A vector with room for so many.
///
/// # Errors
/// [`NoMemory`].
pub fn vector<T>(length: usize) -> Result<Vec<T>, NoMemory> {
    keep_spare()?;
    let mut made = Vec::new();
    made.try_reserve_exact(length)?;
    Ok(made)
}

/// All of them.
///
/// # Errors
/// [`NoMemory`].
pub fn collect<T>(all: impl IntoIterator<Item = T>) -> Result<Vec<T>, NoMemory> {
    let all = all.into_iter();
    let mut made = vector(all.size_hint().0)?;
    for one in all {
        push(&mut made, one)?;
    }
    Ok(made)
}

/// A copy of what may be long.
///
/// # Errors
/// [`NoMemory`].
pub fn copy(of: &[u8]) -> Result<Vec<u8>, NoMemory> {
    let mut made = vector(of.len())?;
    made.extend_from_slice(of);
    Ok(made)
}
