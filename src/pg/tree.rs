//! How many entries of a btree lie beyond a key, nearly, from a few of its pages.
//!
//! # How it works
//! From the root down to the leaf in which the key would be, and from the root down to the last leaf. What lies to
//! the right of the first way is known from the downlinks of its pages; the pages between the two ways are taken to
//! have as many downlinks, and as many entries, as some of them. So where the key is in one of the last
//! leaves the number is exact, and before them it is right by some tens in a hundred, for a few pages in all.
//!
//! Pages are locked one at a time, and others may split or remove them in between. Whatever is not as the way there
//! has promised ends the walk, and what was found so far has to do.

use super::raw;
use super::relation::Relation;
use pgrx::pg_sys;

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
    /// Downlinks, or entries.
    all: u64,
    /// Of these, so many beyond the key. A child in which some may be is not among them.
    beyond: u64,
    /// The child in which the first of them may be.
    first: pg_sys::BlockNumber,
    /// The last child.
    last: pg_sys::BlockNumber,
    /// The page to the right of this one.
    next: pg_sys::BlockNumber,
}

/// A tree has no more levels than this, and a walk no more pages.
const MOST_LEVELS: usize = 16;

/// So many leaves are looked at to see how many entries one has; where there are no more, all of them.
const SAMPLE: u64 = 8;

/// How many entries of an index there are, nearly, whose first column is greater than `key`, whatever became of
/// their rows.
///
/// The index is a btree, and its first column a bigint that is NOT NULL.
pub fn entries_beyond(index: &Relation, key: i64) -> u64 {
    let Some((root, height)) = root(index) else {
        return 0;
    };
    let height = height as usize;
    let (mut left, mut right) = ([Look::default(); MOST_LEVELS], [None; MOST_LEVELS]);
    if height >= MOST_LEVELS {
        return 0;
    }
    // From the top down: on the way to the key, and from where that is not the last page, on the way to the end.
    let (mut block, mut end) = (root, None);
    for level in (0..=height).rev() {
        let Some(look) = read(index, block, level, key) else {
            return 0;
        };
        left[level] = look;
        right[level] = end.and_then(|end| read(index, end, level, key));
        end = match (look.beyond > 0, right[level]) {
            (_, Some(page)) => Some(page.last),
            (true, None) => Some(look.last),
            (false, None) => None,
        };
        block = look.first;
    }
    // From the top down again: the pages of each level that lie beyond that of the way to the key.
    let mut pages = 0;
    for level in (1..=height).rev() {
        let (look, of_end) = (left[level], right[level]);
        pages = look.beyond + all_of(pages, look.all, of_end);
    }
    let leaf = left[0];
    let (looked_at, sum) = following(index, leaf, key);
    if pages <= looked_at {
        return leaf.beyond + sum;
    }
    leaf.beyond + all_of(pages, sum / looked_at.max(1), right[0])
}

/// What so many pages have: the last of them what was found there, all others as much as is usual.
fn all_of(pages: u64, usual: u64, last: Option<Look>) -> u64 {
    match pages {
        0 => 0,
        _ => (pages - 1) * usual + last.map_or(usual, |last| last.all),
    }
}

/// Some of the leaves that follow one: how many, and how many entries they have.
fn following(index: &Relation, leaf: Look, key: i64) -> (u64, u64) {
    let (mut count, mut sum, mut next) = (0, 0, leaf.next);
    while count < SAMPLE
        && next != 0
        && let Some(look) = read(index, next, 0, key)
    {
        count += 1;
        sum += look.beyond;
        next = look.next;
    }
    (count, sum)
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

/// Looks at a page. None: it is not what the way there has promised.
fn read(index: &Relation, block: pg_sys::BlockNumber, level: usize, key: i64) -> Option<Look> {
    if block >= index.blocks() {
        return None;
    }
    let relation = index.as_ptr();
    // SAFETY: the index is open, and has this page. The share lock keeps it as it is. One guard for all: nothing
    // here has to be dropped.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            let buffer = raw::ReadBuffer(relation, block);
            raw::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
            let look = look(pg_sys::BufferGetPage(buffer), level, key);
            raw::UnlockReleaseBuffer(buffer);
            look
        })
    }
}

/// # Safety
/// A page of a btree, locked, whose first column is a bigint.
unsafe fn look(page: pg_sys::Page, level: usize, key: i64) -> Option<Look> {
    // SAFETY: the caller's promise: the items lie on the page, and are index tuples.
    unsafe {
        let special = (*page.cast::<pg_sys::PageHeaderData>()).pd_special;
        if usize::from(special) + size_of::<Opaque>() > pg_sys::BLCKSZ as usize {
            return None;
        }
        let opaque = page
            .cast::<u8>()
            .add(usize::from(special))
            .cast::<Opaque>()
            .read();
        let is_leaf = opaque.flags & LEAF != 0;
        if opaque.level as usize != level || is_leaf != (level == 0) || opaque.flags & DEAD != 0 {
            return None;
        }
        let mut found = Look {
            next: opaque.next,
            ..Look::default()
        };
        // The first item of a page that has a right neighbour is its own upper bound.
        let first = if opaque.next == 0 { 1 } else { 2 };
        for at in first..=pg_sys::PageGetMaxOffsetNumber(page) {
            let item = pg_sys::PageGetItemId(page, at);
            let tuple: *const pg_sys::IndexTupleData = pg_sys::PageGetItem(page, item).cast();
            let header = tuple.read_unaligned();
            if is_leaf {
                let tids = entries_of(&header);
                found.all += tids;
                if key_of(tuple) > key {
                    found.beyond += tids;
                }
                continue;
            }
            let child = header.t_tid.ip_blkid;
            let child = u32::from(child.bi_hi) << 16 | u32::from(child.bi_lo);
            found.all += 1;
            found.last = child;
            // The first downlink has no key: it is less than all.
            if at != first && key_of(tuple) > key {
                found.beyond += 1;
            } else {
                found.first = child;
            }
        }
        Some(found)
    }
}

/// The first column.
///
/// # Safety
/// An index tuple that has it, a bigint and not null.
unsafe fn key_of(tuple: *const pg_sys::IndexTupleData) -> i64 {
    // SAFETY: the caller's promise: it stands behind the header.
    unsafe {
        let header = pg_sys::MAXALIGN(size_of::<pg_sys::IndexTupleData>());
        tuple
            .cast::<u8>()
            .add(header)
            .cast::<i64>()
            .read_unaligned()
    }
}

/// How many rows a tuple on a leaf leads to.
fn entries_of(header: &pg_sys::IndexTupleData) -> u64 {
    let number = header.t_tid.ip_posid;
    if header.t_info & ALTERNATIVE_TID != 0 && number & IS_POSTING != 0 {
        u64::from(number & NUMBER)
    } else {
        1
    }
}
