//! Without a launcher: locks by which workers take turns, and by which those who want one know of
//! each other. All are of the class that is reserved for user code, and are held by sessions, so that
//! the server releases them whatever happens to the holder.
//!
//! | lock | held by |
//! |---|---|
//! | turn, of a number | the worker whose turn it is |
//! | start, of a database or of a turn, and of a second | who has asked for a worker in this second |
//! | wait, of a database, since when, and of a second | who has found all turns taken in this second |
//! | hand-over | the worker that makes room for another database |
//!
//! Those of a second say nothing later on, so they need not be given back in time: sessions that are
//! idle keep the last that they took.

use super::compat;
use super::relation::LockMode;
use pgrx::pg_sys;
use std::cell::Cell;

const EXCLUSIVE: LockMode = pg_sys::ExclusiveLock as LockMode;
const SHARE: LockMode = pg_sys::ShareLock as LockMode;

/// `cntx`
const KEY: u32 = 0x636e_7478;

/// In microseconds.
const SECOND: i64 = 1_000_000;

/// Who waits says so anew with each commit; after so many seconds it counts no more.
const WAIT_LASTS: u32 = 5;

/// Who has asked for a worker keeps others from it for so many seconds more: on a machine that is busy
/// it takes its time to come.
const START_LASTS: u32 = 3;

/// [`super::lock`] has the numbers before.
mod class {
    pub const WORKER: u16 = 0;
    pub const TURN: u16 = 5;
    pub const START: u16 = 6;
    pub const START_IN_TURN: u16 = 7;
    pub const WAIT: u16 = 8;
    pub const HAND_OVER: u16 = 9;
}

#[derive(Clone, Copy)]
struct Tag(pg_sys::LOCKTAG);

impl Tag {
    fn new(class: u16, database: u32, first: u32, second: u32) -> Self {
        Self(pg_sys::LOCKTAG {
            locktag_field1: database,
            locktag_field2: first,
            locktag_field3: second,
            locktag_field4: class,
            locktag_type: pg_sys::LockTagType::LOCKTAG_USERLOCK as u8,
            locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
        })
    }

    fn turn(number: u32) -> Self {
        Self::new(class::TURN, 0, KEY, number)
    }

    /// Takes it for the session, without waiting. False when somebody has it.
    fn try_take(&self, mode: LockMode) -> bool {
        // SAFETY: takes any tag.
        let result = unsafe { pg_sys::LockAcquire(&self.0, mode, true, true) };
        result != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
    }

    fn release(&self, mode: LockMode) {
        // `DISCARD ALL` may have given it back, and then the user would be warned.
        if compat::holds_lock(&self.0, mode) {
            // SAFETY: held.
            unsafe { pg_sys::LockRelease(&self.0, mode, true) };
        }
    }

    /// Does somebody hold it exclusively? Those who ask do not disturb each other.
    fn is_taken(&self) -> bool {
        if compat::holds_lock(&self.0, EXCLUSIVE) {
            return true;
        }
        if self.try_take(SHARE) {
            self.release(SHARE);
            return false;
        }
        true
    }
}

thread_local! {
    /// What this session took last, to be given back with the next.
    static STARTED: Cell<[Option<Tag>; 2]> = const { Cell::new([None; 2]) };
    static WAITS: Cell<Option<Waiting>> = const { Cell::new(None) };
}

#[derive(Clone, Copy)]
struct Waiting {
    since: u32,
    tag: Tag,
}

fn second(now: i64) -> u32 {
    // Wraps after 136 years.
    (now / SECOND) as u32
}

/// The worker takes this turn, and keeps it.
pub fn try_take_turn(number: u32) -> bool {
    Tag::turn(number).try_take(EXCLUSIVE)
}

/// The same, and waits for it, in a transaction.
///
/// # Errors
/// That of `lock_timeout`.
pub fn take_turn(number: u32) {
    // SAFETY: takes any tag; interruptible, and seen by the deadlock detector.
    unsafe { pg_sys::LockAcquire(&Tag::turn(number).0, EXCLUSIVE, true, false) };
}

/// Does nobody have one of so many turns?
pub fn is_any_free(turns: u32) -> bool {
    (0..turns).any(|number| !Tag::turn(number).is_taken())
}

/// The locks of those who ask for a worker of this database, to work in this turn.
fn start_tags(database: u32, turn: u32, second: u32) -> [Tag; 2] {
    [
        Tag::new(class::START, database, KEY, second),
        Tag::new(class::START_IN_TURN, 0, turn, second),
    ]
}

/// May this session ask for a worker of the database, to work in this turn? At most one does in some
/// seconds, of each database and for each turn.
fn may_start(database: u32, turn: u32, now: i64) -> bool {
    for tag in STARTED.take().into_iter().flatten() {
        tag.release(EXCLUSIVE);
    }
    let now = second(now);
    let known = |ago| {
        let before = start_tags(database, turn, now.wrapping_sub(ago));
        before.iter().any(Tag::is_taken)
    };
    if (1..=START_LASTS).any(known) {
        return false;
    }
    let [of_database, of_turn] = start_tags(database, turn, now);
    if !of_turn.try_take(EXCLUSIVE) {
        return false;
    }
    STARTED.set([None, Some(of_turn)]);
    if !of_database.try_take(EXCLUSIVE) {
        return false;
    }
    STARTED.set([Some(of_database), Some(of_turn)]);
    true
}

/// A turn for a further worker of a database, which this session may ask for: one that is free, while no database waits
/// for one.
pub fn find_for_further(turns: u32, now: i64) -> Option<u32> {
    let free = (0..turns).filter(|&turn| !Tag::turn(turn).is_taken());
    let free: Vec<u32> = free.collect();
    if free.is_empty() || !waiting(now).is_empty() {
        return None;
    }
    for tag in STARTED.take().into_iter().flatten() {
        tag.release(EXCLUSIVE);
    }
    let now = second(now);
    free.into_iter().find(|&turn| {
        let [_, of_turn] = start_tags(0, turn, now);
        let known = |ago: u32| start_tags(0, turn, now.wrapping_sub(ago))[1].is_taken();
        if (1..=START_LASTS).any(known) || !of_turn.try_take(EXCLUSIVE) {
            return false;
        }
        STARTED.set([None, Some(of_turn)]);
        true
    })
}

/// May the worker that has this turn ask for one of the database, to be the next? Nobody else asks for
/// one in this turn then, also in the moment between the two.
pub fn may_start_next(database: u32, turn: u32, now: i64) -> bool {
    let now = second(now);
    let [of_database, of_turn] = start_tags(database, turn, now);
    let [before, _] = start_tags(database, turn, now.wrapping_sub(1));
    if before.is_taken() || !of_database.try_take(EXCLUSIVE) {
        return false;
    }
    // Somebody may have it still who has started this worker; that keeps others away as well.
    of_turn.try_take(EXCLUSIVE);
    true
}

/// What a session comes to that wants a worker for its database.
pub enum Chance {
    /// It may ask for one in this turn.
    Turn(u32),
    /// All are taken.
    NoTurn,
    /// Somebody has asked for one a moment ago.
    TooSoon,
}

/// Looks for a turn.
pub fn find(database: u32, turns: u32, now: i64) -> Chance {
    let mut any = false;
    for turn in 0..turns {
        if Tag::turn(turn).is_taken() {
            continue;
        }
        any = true;
        if may_start(database, turn, now) {
            return Chance::Turn(turn);
        }
    }
    if any { Chance::TooSoon } else { Chance::NoTurn }
}

/// The session lets others know that its database waits.
pub fn wait(database: u32, now: i64) {
    let now = second(now);
    let before = WAITS.take();
    // Who has not waited for long begins anew.
    let since = before
        .filter(|waiting| now.wrapping_sub(waiting.tag.0.locktag_field3) <= WAIT_LASTS)
        .map_or(now, |waiting| waiting.since);
    let tag = Tag::new(class::WAIT, database, since, now);
    if let Some(waiting) = before {
        waiting.tag.release(SHARE);
    }
    if tag.try_take(SHARE) {
        WAITS.set(Some(Waiting { since, tag }));
    }
}

/// Does this session wait?
pub fn waits() -> bool {
    WAITS.get().is_some()
}

/// It waits no more.
pub fn stop_waiting() {
    if let Some(waiting) = WAITS.take() {
        waiting.tag.release(SHARE);
    }
}

/// The databases that wait, those first that have waited longest.
pub fn waiting(now: i64) -> Vec<u32> {
    let now = second(now);
    let mut waiting: Vec<(u32, u32)> = Vec::new();
    let mut served = Vec::new();
    // SAFETY: a copy of the lock table; its parts are ours to free.
    unsafe {
        let data = pg_sys::GetLockStatusData();
        for at in 0..(*data).nelements.max(0) as usize {
            let lock = &*(*data).locks.add(at);
            let tag = &lock.locktag;
            if u32::from(tag.locktag_type) != pg_sys::LockTagType::LOCKTAG_USERLOCK
                || u32::from(tag.locktag_lockmethodid) != pg_sys::USER_LOCKMETHOD
                || lock.holdMask == 0
            {
                continue;
            }
            match tag.locktag_field4 {
                class::WAIT if now.wrapping_sub(tag.locktag_field3) <= WAIT_LASTS => {
                    let age = now.wrapping_sub(tag.locktag_field2);
                    waiting.push((age, tag.locktag_field1));
                }
                // The first one: others have another number, or another key.
                class::WORKER
                    if lock.holdMask & (1 << EXCLUSIVE) != 0
                        && (tag.locktag_field2, tag.locktag_field3) == (KEY, 0) =>
                {
                    served.push(tag.locktag_field1);
                }
                class::START if now.wrapping_sub(tag.locktag_field3) <= 1 => {
                    served.push(tag.locktag_field1);
                }
                _ => {}
            }
        }
        pg_sys::pfree((*data).locks.cast());
        pg_sys::pfree(data.cast());
    }
    // A session that was idle meanwhile may not have heard that its database was served.
    waiting.retain(|(_, database)| !served.contains(database));
    waiting.sort_unstable_by_key(|&(age, database)| (database, std::cmp::Reverse(age)));
    waiting.dedup_by_key(|&mut (_, database)| database);
    waiting.sort_unstable_by_key(|&(age, database)| (std::cmp::Reverse(age), database));
    waiting.into_iter().map(|(_, database)| database).collect()
}

/// This worker makes room for another database. One does at a time. It keeps the lock until it ends.
pub fn try_hand_over() -> bool {
    Tag::new(class::HAND_OVER, 0, KEY, 0).try_take(EXCLUSIVE)
}

/// It does not after all.
pub fn keep() {
    Tag::new(class::HAND_OVER, 0, KEY, 0).release(EXCLUSIVE);
}
