//! What happens where memory ends. With an allocator of its own, so it is a program of its own, and one
//! test: the allocator is for all threads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicIsize, Ordering};

use counterx_core::lane::NameHash;
use counterx_core::pending::{PendingMap, Refused, TOP_LEVEL};
use counterx_core::rank::{Best, End};
use counterx_core::room::{NoMemory, WithSpare, collect, copy, keep_spare, push};
use counterx_core::sums::Sums;
use counterx_core::tally::Tally;

/// The system's, as long as so many bytes are left.
struct Limited;

static LEFT: AtomicIsize = AtomicIsize::new(PLENTY);

impl Limited {
    fn take(bytes: usize) -> bool {
        let taken = LEFT.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| {
            left.checked_sub_unsigned(bytes).filter(|&left| left >= 0)
        });
        taken.is_ok()
    }

    fn give(bytes: usize) {
        LEFT.fetch_add(bytes as isize, Ordering::AcqRel);
    }
}

// SAFETY: the system's allocator, or nothing.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !Self::take(layout.size()) {
            return null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        Self::give(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: WithSpare<Limited> = WithSpare(Limited);

const PLENTY: isize = isize::MAX / 2;

/// Runs something with few bytes left, and with some more each time until it says that it was enough.
/// How often that was.
fn with_any_limit(step: usize, mut run: impl FnMut() -> bool) -> u32 {
    let mut tries = 0;
    for bytes in (0..).step_by(step) {
        keep_spare().expect("there is memory now");
        LEFT.store(bytes, Ordering::Release);
        let enough = run();
        LEFT.store(PLENTY, Ordering::Release);
        tries += 1;
        if enough {
            break;
        }
    }
    tries
}

fn name(number: u32) -> Vec<u8> {
    format!("name:{number}").into_bytes()
}

#[test]
fn what_grows_is_refused_and_stays_as_it_was() {
    // Small things live on the spare, and nothing grows meanwhile.
    keep_spare().unwrap();
    LEFT.store(0, Ordering::Release);
    let message = format!("what an error says: {}", 7);
    assert_eq!(keep_spare(), Err(NoMemory));
    assert_eq!(push(&mut Vec::new(), 1), Err(NoMemory));
    assert_eq!(copy(b"some"), Err(NoMemory));
    assert_eq!(collect([1, 2]), Err(NoMemory));
    drop(message);
    LEFT.store(PLENTY, Ordering::Release);
    assert_eq!(keep_spare(), Ok(()));

    // What does not fit is refused without touching the spare.
    LEFT.store(1000, Ordering::Release);
    assert_eq!(collect(0..1000u64), Err(NoMemory));
    assert_eq!(keep_spare(), Ok(()));
    LEFT.store(PLENTY, Ordering::Release);

    pending_map();
    sums_and_ranks();
}

/// At each moment at which memory can end: what is refused changes nothing, and what is rolled back is.
fn pending_map() {
    let hash = |name: &[u8]| NameHash::of(name);
    let names: Vec<Vec<u8>> = (0..200).map(name).collect();
    let tries = with_any_limit(97, || {
        let mut map = PendingMap::default();
        let mut all = true;
        for (number, name) in names.iter().enumerate() {
            // Each of the first half is added to again inside a subtransaction.
            let level = TOP_LEVEL + u32::from(number >= 100);
            let name = if number >= 150 {
                &names[number - 150]
            } else {
                name
            };
            let before = map.get(hash(name), name);
            match map.add(level, hash(name), name, 1) {
                Ok(()) => {}
                Err(Refused::NoMemory) => {
                    assert_eq!(map.get(hash(name), name), before);
                    all = false;
                    break;
                }
                Err(Refused::Overflow) => panic!("200 is a bigint"),
            }
        }
        let added = map.rows().count();
        let cleared = map.clear_written(TOP_LEVEL + 1);
        if cleared.is_err() {
            assert_eq!(map.rows().count(), added);
            all = false;
        } else {
            assert!(map.is_empty());
        }
        map.abort_subxact(TOP_LEVEL + 1);
        assert!(map.rows().count() <= 100);
        assert!(map.rows().all(|row| row.delta == 1));
        map.reset();
        assert!(map.is_empty());
        all
    });
    assert!(tries > 10, "memory ended {tries} times");
}

fn sums_and_ranks() {
    let names: Vec<Vec<u8>> = (0..200).map(name).collect();
    let tries = with_any_limit(97, || {
        let mut sums = Sums::default();
        let mut best = Best::new(End::Top, 150);
        for name in &names {
            if sums.add(name, Tally::of(1, 1)).is_err() || best.offer(name, 1).is_err() {
                return false;
            }
        }
        let mut taken = sums.to_take();
        for name in &names {
            if taken.take(name).is_err() {
                return false;
            }
        }
        assert_eq!(taken.rest().count(), 0);
        best.into_ranked().is_ok_and(|ranked| ranked.len() == 150)
    });
    assert!(tries > 10, "memory ended {tries} times");
}
