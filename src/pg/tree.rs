//! How many entries of a btree lie beyond a key, nearly, from a few of its pages.
//!
//! # How it works
//! From the root down to the leaf in which the key would be. What lies to the right of this way hangs on downlinks of
//! its pages. Where these lead to a few leaves, all of them are counted; where they lead to more, some are, at equal
//! distances, and stand for the others. So where the key is in one of the last leaves the number is exact, and before
//! them it is right by some in a hundred, mostly, for a few dozen pages in all.
//!
//! At equal distances, as leaves are not alike: one whose rows have the same key has ten times as many as one whose
//! rows have each their own, and those of a key lie together.
//!
//! Pages are locked one at a time, and others may split or remove them in between. Whatever is not as the way there
//! has promised ends the walk, and what was found so far has to do.

use super::raw;
use super::relation::Relation;
use pgrx::pg_sys;
use std::cell::Cell;

/// `access/nbtree.h`: what stands at the end of each page but the first.
#[repr(C)]
#[derive(Clone, Copy)]
struct Opaque {
    previous: pg_sys::BlockNumber,
    next: pg_sys::BlockNumber,
    level: u32,
    flags: u16,
    cycle: u16,
}

/// `access/nbtree.h`: what the first page begins with.
#[repr(C)]
#[derive(Clone, Copy)]
struct Meta {
    magic: u32,
    version: u32,
    root: pg_sys::BlockNumber,
    level: u32,
    fast_root: pg_sys::BlockNumber,
    fast_level: u32,
}

const MAGIC: u32 = 0x0005_3162;
const LEAF: u16 = 1;
/// Deleted, half dead.
const DEAD: u16 = 1 << 2 | 1 << 4;

/// `access/nbtree.h`, of `t_info` and of the number in `t_tid`.
const ALTERNATIVE_TID: u16 = 0x2000;
const IS_POSTING: u16 = 0x2000;
const NUMBER: u16 = 0x0fff;

/// What a page has of the entries that are asked for.
#[derive(Clone, Copy, Default)]
struct Look {
    /// So many downlinks, or entries, are beyond the key. A child in which some may be is not among them.
    beyond: u64,
    /// Downlinks before these.
    before: u64,
    /// The child in which the first of them may be.
    first: pg_sys::BlockNumber,
}

/// A tree has no more levels than this, and a walk no more pages.
const MOST_LEVELS: usize = 16;

/// So many leaves are looked at, of those that hang on one page of the way; where there are no more, all of them.
const SAMPLE: u64 = 32;

/// How many entries of an index there are, nearly, whose first column is greater than `key`, whatever became of
/// their rows.
///
/// The index is a btree, and its first column a bigint that is NOT NULL.
pub fn entries_beyond(index: &Relation, key: i64) -> u64 {
    let Some((mut block, height)) = root(index) else {
        return 0;
    };
    let height = height as usize;
    if height >= MOST_LEVELS {
        return 0;
    }
    let tree = Tree {
        index,
        blocks: Cell::new(index.blocks()),
    };
    let mut found = 0;
    for level in (0..=height).rev() {
        let Some(look) = tree.read(block, level, |items| items.look(key)) else {
            return found;
        };
        found += match level {
            0 => look.beyond,
            _ => tree.below(block, level, look),
        };
        block = look.first;
    }
    found
}

struct Tree<'a> {
    index: &'a Relation,
    /// Its pages, as far as they are known.
    blocks: Cell<pg_sys::BlockNumber>,
}

impl Tree<'_> {
    /// How many entries hang on those downlinks of a page that are beyond the key, nearly.
    fn below(&self, block: pg_sys::BlockNumber, level: usize, look: Look) -> u64 {
        let children = look.beyond as f64;
        // Of each leaf there is one number, and of other pages many.
        let looks = match level {
            1 => SAMPLE.min(look.beyond),
            _ => SAMPLE,
        };
        let (mut seen, mut sum) = (0.0, 0.0);
        for number in 0..looks {
            let place = (number as f64 + 0.5) / looks as f64 * children;
            let child = self.child(block, level, look.before + place as u64);
            if let Some(entries) = child.and_then(|child| self.sample(child, level - 1, place)) {
                seen += 1.0;
                sum += entries;
            }
        }
        match seen > 0.0 {
            true => (sum / seen * children).round() as u64,
            false => 0,
        }
    }

    /// How many entries there would be below a page, were all as those at one place of it. The fraction of `place` says
    /// at which.
    fn sample(&self, block: pg_sys::BlockNumber, level: usize, place: f64) -> Option<f64> {
        if level == 0 {
            return self.read(block, 0, Items::entries).map(|all| all as f64);
        }
        let children = self.read(block, level, Items::count)? as f64;
        let place = place.fract() * children;
        let child = self.child(block, level, place as u64)?;
        Some(children * self.sample(child, level - 1, place)?)
    }

    /// A page's child by its number.
    fn child(
        &self,
        block: pg_sys::BlockNumber,
        level: usize,
        number: u64,
    ) -> Option<pg_sys::BlockNumber> {
        self.read(block, level, |items| items.child(number))?
    }

    /// Looks at a page. None: it is not what the way there has promised.
    fn read<R>(
        &self,
        block: pg_sys::BlockNumber,
        level: usize,
        look: impl FnOnce(&Items) -> R,
    ) -> Option<R> {
        if block >= self.blocks.get() {
            // It may be new.
            self.blocks.set(self.index.blocks());
            if block >= self.blocks.get() {
                return None;
            }
        }
        let relation = self.index.as_ptr();
        // SAFETY: the index is open, and has this page. The share lock keeps it as it is. One guard for all: nothing
        // here has to be dropped.
        unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                let buffer = raw::ReadBuffer(relation, block);
                raw::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
                let items = Items::of(pg_sys::BufferGetPage(buffer), level);
                let found = items.map(|items| look(&items));
                raw::UnlockReleaseBuffer(buffer);
                found
            })
        }
    }
}

/// The root, and its level. None: there is none yet.
fn root(index: &Relation) -> Option<(pg_sys::BlockNumber, u32)> {
    let relation = index.as_ptr();
    // SAFETY: the index is open, and has a first page. One guard for all: nothing here has to be dropped.
    let meta = unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            let buffer = raw::ReadBuffer(relation, 0);
            raw::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
            let page = pg_sys::BufferGetPage(buffer);
            let meta = page
                .cast::<u8>()
                .add(pg_sys::MAXALIGN(PAGE_HEADER))
                .cast::<Meta>()
                .read();
            raw::UnlockReleaseBuffer(buffer);
            meta
        })
    };
    (meta.magic == MAGIC && meta.fast_root != 0).then_some((meta.fast_root, meta.fast_level))
}

/// `SizeOfPageHeaderData`
const PAGE_HEADER: usize = std::mem::offset_of!(pg_sys::PageHeaderData, pd_linp);

/// What lies on a page of a btree whose first column is a bigint: downlinks, or entries. The page is locked.
struct Items {
    page: pg_sys::Page,
    is_leaf: bool,
    first: u16,
    last: u16,
}

impl Items {
    /// None: it is no page of this level, or not in use.
    ///
    /// # Safety
    /// A page of such a tree, which is locked as long as this is used.
    unsafe fn of(page: pg_sys::Page, level: usize) -> Option<Self> {
        // SAFETY: the caller's promise.
        let (opaque, last) = unsafe {
            let special = usize::from((*page.cast::<pg_sys::PageHeaderData>()).pd_special);
            if special + size_of::<Opaque>() > pg_sys::BLCKSZ as usize {
                return None;
            }
            let opaque = page.cast::<u8>().add(special).cast::<Opaque>().read();
            (opaque, pg_sys::PageGetMaxOffsetNumber(page))
        };
        let is_leaf = opaque.flags & LEAF != 0;
        if opaque.level as usize != level || is_leaf != (level == 0) || opaque.flags & DEAD != 0 {
            return None;
        }
        // The first item of a page that has a right neighbour is its own upper bound.
        let first = if opaque.next == 0 { 1 } else { 2 };
        Some(Self {
            page,
            is_leaf,
            first,
            last,
        })
    }

    /// So many there are.
    fn count(&self) -> u64 {
        u64::from((self.last + 1).saturating_sub(self.first))
    }

    fn tuples(&self) -> impl Iterator<Item = Tuple> {
        (self.first..=self.last).map(|at| self.tuple(at))
    }

    fn tuple(&self, at: u16) -> Tuple {
        // SAFETY: one of the page's items, all of which are index tuples.
        Tuple(unsafe {
            pg_sys::PageGetItem(self.page, pg_sys::PageGetItemId(self.page, at)).cast()
        })
    }

    /// So many rows they lead to, on a leaf.
    fn entries(&self) -> u64 {
        self.tuples().map(|tuple| tuple.entries()).sum()
    }

    fn child(&self, number: u64) -> Option<pg_sys::BlockNumber> {
        (number < self.count()).then(|| self.tuple(self.first + number as u16).child())
    }

    /// On the way to the key.
    fn look(&self, key: i64) -> Look {
        let mut found = Look::default();
        if self.is_leaf {
            let beyond = self.tuples().filter(|tuple| tuple.key() > key);
            found.beyond = beyond.map(|tuple| tuple.entries()).sum();
            return found;
        }
        for (number, tuple) in self.tuples().enumerate() {
            // The first downlink has no key: it is less than all.
            if number > 0 && tuple.key() > key {
                found.beyond += 1;
            } else {
                found.before += 1;
                found.first = tuple.child();
            }
        }
        found
    }
}

/// A tuple of a page that is locked.
struct Tuple(*const pg_sys::IndexTupleData);

impl Tuple {
    fn header(&self) -> pg_sys::IndexTupleData {
        // SAFETY: it is one.
        unsafe { self.0.read_unaligned() }
    }

    /// The first column, which all but the first downlink of a page have, and which is a bigint and not null.
    fn key(&self) -> i64 {
        // SAFETY: it stands behind the header.
        unsafe {
            let header = pg_sys::MAXALIGN(size_of::<pg_sys::IndexTupleData>());
            (self.0.cast::<u8>().add(header).cast::<i64>()).read_unaligned()
        }
    }

    /// Where a downlink leads to.
    fn child(&self) -> pg_sys::BlockNumber {
        let child = self.header().t_tid.ip_blkid;
        u32::from(child.bi_hi) << 16 | u32::from(child.bi_lo)
    }

    /// How many rows one on a leaf leads to.
    fn entries(&self) -> u64 {
        let header = self.header();
        let number = header.t_tid.ip_posid;
        if header.t_info & ALTERNATIVE_TID != 0 && number & IS_POSTING != 0 {
            u64::from(number & NUMBER)
        } else {
            1
        }
    }
}
