//! Heavyweight locks other than those that come with opening a relation.

use super::compat;
use super::owner::XactOwned;
use super::relation::LockMode;
use super::waiting::{Locked, Waiting};
use counterx_core::lane::NameHash;
use pgrx::pg_sys;

/// A transaction as the lock manager names it, before it has an xid.
#[derive(Clone, Copy)]
pub struct VirtualXact(pg_sys::VirtualTransactionId);

impl VirtualXact {
    /// Has it ended? Its effects are then visible to any snapshot that is taken afterwards, since
    /// locks are released after a transaction has become visible.
    pub fn has_ended(&self) -> bool {
        // SAFETY: takes any id; does not wait.
        unsafe { pg_sys::VirtualXactLock(self.0, false) }
    }

    /// Waits until it has ended. Interruptible, and seen by the deadlock detector.
    pub fn wait(&self) {
        // SAFETY: takes any id.
        unsafe { pg_sys::VirtualXactLock(self.0, true) };
    }

    /// The backend, and the number of the transaction in it.
    pub fn parts(&self) -> (i32, u32) {
        compat::parts_of_virtual_xact(&self.0)
    }
}

fn relation_tag(oid: pg_sys::Oid) -> pg_sys::LOCKTAG {
    pg_sys::LOCKTAG {
        // SAFETY: set once when the backend connected.
        locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
        locktag_field2: oid.to_u32(),
        locktag_field3: 0,
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_RELATION as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    }
}

/// The running transaction has a relation locked in just this mode.
pub fn is_locked(relation: pg_sys::Oid, mode: LockMode) -> bool {
    compat::holds_lock(&relation_tag(relation), mode)
}

/// The running (sub)transaction keeps a lock that somebody in it has on a relation, to its end.
pub fn keep_locked(relation: pg_sys::Oid, mode: LockMode) {
    let _owner = XactOwned::enter();
    // SAFETY: takes any OID; it is locked, so nobody is waited for.
    unsafe { pg_sys::LockRelationOid(relation, mode) };
}

/// All transactions that hold a lock on the relation that conflicts with `mode`. The lock itself
/// is not taken, and nobody is driven off the fast path.
pub fn conflicting_xacts(relation: pg_sys::Oid, mode: LockMode) -> Vec<VirtualXact> {
    let tag = relation_tag(relation);
    let mut count = 0;
    // SAFETY: the result is an array of `count` ids, allocated in the current context.
    unsafe {
        let ids = pg_sys::GetLockConflicts(&tag, mode, &mut count);
        let xacts = (0..count as usize)
            .map(|i| VirtualXact(*ids.add(i)))
            .collect();
        pg_sys::pfree(ids.cast());
        xacts
    }
}

/// What is locked by a lock of the class that is reserved for user code, which no SQL function can
/// take.
#[derive(Clone, Copy)]
enum UserLock {
    /// There is a worker of this number.
    Worker(u8),
    /// A worker has this lane.
    Lane(u8),
    /// The further workers are to hold still.
    Stillness,
    /// There is a filler.
    Filler,
    /// Somebody waits for a fold of this lane.
    Fold(u8),
    /// The worker does not fold.
    Pause,
    /// A counter's name.
    Name(NameHash),
    /// A token.
    Token(NameHash),
    /// A bounded counter, where there is no shared memory.
    Bound(NameHash),
    /// A hold.
    Hold(i64),
}

const EXCLUSIVE: LockMode = pg_sys::ExclusiveLock as LockMode;
const SHARE: LockMode = pg_sys::ShareLock as LockMode;

/// Of a class that has few locks.
fn key_of(kind: &[u8; 4], number: u8) -> u64 {
    u64::from(u32::from_be_bytes(*kind)) << 32 | u64::from(number)
}

impl UserLock {
    // `turns` has the classes from 5 on.
    fn tag(self) -> pg_sys::LOCKTAG {
        let (key, class) = match self {
            Self::Worker(number) => (key_of(b"cntx", number), 0),
            Self::Lane(lane) => (key_of(b"cntl", lane), 0),
            Self::Stillness => (key_of(b"cnts", 0), 0),
            Self::Filler => (key_of(b"cntf", 0), 0),
            Self::Fold(lane) => (key_of(b"cntp", lane), 0),
            Self::Pause => (key_of(b"cnto", 0), 0),
            Self::Name(hash) => (hash.get(), 1),
            Self::Token(hash) => (hash.get(), 2),
            Self::Bound(hash) => (hash.get(), 3),
            Self::Hold(id) => (id.cast_unsigned(), 4),
        };
        pg_sys::LOCKTAG {
            // SAFETY: set once when the backend connected.
            locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
            locktag_field2: (key >> 32) as u32,
            locktag_field3: key as u32,
            locktag_field4: class,
            locktag_type: pg_sys::LockTagType::LOCKTAG_USERLOCK as u8,
            locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
        }
    }

    /// Takes it for the session, without waiting. False when somebody has it.
    fn try_acquire_for_session(self) -> bool {
        // SAFETY: a session lock, taken without waiting.
        let result = unsafe { pg_sys::LockAcquire(&self.tag(), EXCLUSIVE, true, true) };
        result != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
    }

    /// Gives it back, by a session that has it.
    fn release_of_session(self) {
        // SAFETY: only called by the holder.
        unsafe { pg_sys::LockRelease(&self.tag(), EXCLUSIVE, true) };
    }

    /// Does somebody have it? Those who ask at the same time do not disturb each other.
    fn is_taken(self) -> bool {
        // SAFETY: taken without waiting and given back at once.
        unsafe {
            let tag = self.tag();
            let result = pg_sys::LockAcquire(&tag, SHARE, false, true);
            if result == pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL {
                return true;
            }
            pg_sys::LockRelease(&tag, SHARE, false);
        }
        false
    }

    /// Waits for it. Whoever releases it does so under the same resource owner.
    fn acquire(self, locked: Locked) {
        let _waiting = Waiting::enter(locked);
        // SAFETY: takes any tag; interruptible, and seen by the deadlock detector.
        unsafe { pg_sys::LockAcquire(&self.tag(), EXCLUSIVE, false, false) };
    }

    /// Waits for it, and keeps it to the end of the (sub)transaction.
    fn acquire_until_commit(self, locked: Locked) {
        let _owner = XactOwned::enter();
        self.acquire(locked);
    }

    /// The same without waiting. False when somebody has it.
    fn try_acquire_until_commit(self) -> bool {
        let _owner = XactOwned::enter();
        // SAFETY: takes any tag, without waiting.
        let result = unsafe { pg_sys::LockAcquire(&self.tag(), EXCLUSIVE, false, true) };
        result != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
    }
}

/// The lock of those who change a counter by what its value is.
pub struct NameLock;

impl NameLock {
    /// Waits for it, and keeps it to the end of the (sub)transaction.
    pub fn take(name: &[u8]) {
        UserLock::Name(NameHash::of(name)).acquire_until_commit(Locked::Counter(name));
    }

    /// The same without waiting. False when somebody has it.
    pub fn try_take(name: &[u8]) -> bool {
        UserLock::Name(NameHash::of(name)).try_acquire_until_commit()
    }
}

/// The lock of those who change a bounded counter, where there is no shared memory.
pub struct BoundLock(NameHash);

impl BoundLock {
    /// Waits for it, and keeps it to the end of the (sub)transaction.
    pub fn take(name: &[u8]) -> Self {
        let hash = NameHash::of(name);
        UserLock::Bound(hash).acquire_until_commit(Locked::Counter(name));
        Self(hash)
    }

    /// Gives it back, as far as this call has taken it.
    pub fn release(self) {
        let _owner = XactOwned::enter();
        // SAFETY: held, and taken under the same owner.
        unsafe { pg_sys::LockRelease(&UserLock::Bound(self.0).tag(), EXCLUSIVE, false) };
    }
}

/// The lock of those who end a hold.
pub struct HoldLock;

impl HoldLock {
    /// Waits for it, and keeps it to the end of the (sub)transaction.
    pub fn take(id: i64) {
        UserLock::Hold(id).acquire_until_commit(Locked::Hold(id));
    }

    /// The same without waiting. False: somebody has it.
    pub fn try_take(id: i64) -> bool {
        let _owner = XactOwned::enter();
        // SAFETY: takes any tag.
        let result =
            unsafe { pg_sys::LockAcquire(&UserLock::Hold(id).tag(), EXCLUSIVE, false, true) };
        result != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
    }
}

/// The lock of who sets the sequence of ids of holds forward: that of a hold that there is not.
pub struct IdsLock;

impl IdsLock {
    const TAG: UserLock = UserLock::Hold(i64::MIN);

    /// Waits for it.
    pub fn take() -> Self {
        Self::TAG.acquire(Locked::HoldIds);
        Self
    }

    /// Gives it back.
    pub fn release(self) {
        // SAFETY: held.
        unsafe { pg_sys::LockRelease(&Self::TAG.tag(), EXCLUSIVE, false) };
    }
}

/// The lock of those who look for a token: for the length of a call, so it belongs to whatever runs the
/// call. An error gives it back as well.
pub struct TokenLock(NameHash);

impl TokenLock {
    /// Waits for it.
    pub fn take(token: &[u8]) -> Self {
        let hash = NameHash::of(token);
        UserLock::Token(hash).acquire(Locked::Token(token));
        Self(hash)
    }

    /// Gives it back.
    pub fn release(self) {
        // SAFETY: held.
        unsafe { pg_sys::LockRelease(&UserLock::Token(self.0).tag(), EXCLUSIVE, false) };
    }
}

/// The mark that a database has a worker of some number.
#[derive(Clone, Copy)]
pub struct WorkerMark(u8);

impl WorkerMark {
    /// That of the worker that is there while the database counts.
    pub const FIRST: Self = Self(0);

    /// That of this one.
    pub fn of(number: u8) -> Self {
        Self(number)
    }

    /// The worker takes the mark; it keeps it over its transactions. False when somebody has it.
    pub fn try_set(self) -> bool {
        UserLock::Worker(self.0).try_acquire_for_session()
    }

    /// The worker gives the mark back.
    pub fn clear(self) {
        UserLock::Worker(self.0).release_of_session();
    }

    /// Does a worker have the mark? Those who ask at the same time do not disturb each other.
    pub fn is_set(self) -> bool {
        UserLock::Worker(self.0).is_taken()
    }
}

/// The lock of the worker that has a lane: it alone publishes epochs of it and folds it unasked. It keeps the lock over
/// its transactions, each of which takes the lane's lease besides.
pub struct LaneLock;

impl LaneLock {
    /// By one that does not have it. False when another one has.
    pub fn try_take(lane: usize) -> bool {
        UserLock::Lane(lane as u8).try_acquire_for_session()
    }

    /// By the one that has it.
    pub fn release(lane: usize) {
        UserLock::Lane(lane as u8).release_of_session();
    }

    /// Has a worker the lane?
    pub fn is_taken(lane: usize) -> bool {
        UserLock::Lane(lane as u8).is_taken()
    }
}

/// The lock by which a database's first worker has the others hold still.
pub struct Stillness;

impl Stillness {
    /// Others finish what they are at, and begin nothing new, until it is dropped. None when somebody looks for it at
    /// this very moment.
    pub fn try_ask() -> Option<Self> {
        UserLock::Stillness
            .try_acquire_for_session()
            .then_some(Self)
    }

    /// Is it asked for?
    pub fn is_asked() -> bool {
        UserLock::Stillness.is_taken()
    }
}

impl Drop for Stillness {
    fn drop(&mut self) {
        UserLock::Stillness.release_of_session();
    }
}

/// The mark that somebody waits for a fold of a lane. Many can have it, and nobody waits for it.
pub struct FoldWanted(Option<u8>);

impl FoldWanted {
    /// Sets it. (Not while the worker looks for it, which is a moment.) An error takes it back as well.
    pub fn tell(lane: usize) -> Self {
        let lane = lane as u8;
        // SAFETY: takes any tag, without waiting.
        let result =
            unsafe { pg_sys::LockAcquire(&UserLock::Fold(lane).tag(), SHARE, false, true) };
        Self((result != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL).then_some(lane))
    }

    /// Takes it back.
    pub fn release(self) {
        if let Some(lane) = self.0 {
            // SAFETY: held, and taken under the same owner.
            unsafe { pg_sys::LockRelease(&UserLock::Fold(lane).tag(), SHARE, false) };
        }
    }

    /// Does somebody wait? In a transaction.
    pub fn is_set(lane: usize) -> bool {
        let tag = UserLock::Fold(lane as u8).tag();
        // SAFETY: taken without waiting and given back at once.
        unsafe {
            let result = pg_sys::LockAcquire(&tag, EXCLUSIVE, false, true);
            if result == pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL {
                return true;
            }
            pg_sys::LockRelease(&tag, EXCLUSIVE, false);
        }
        false
    }
}

/// The mark that the first worker of a database is there and does not fold, as its settings say. Those of other sessions
/// may say something else, as they are older.
pub struct FoldingPaused;

impl FoldingPaused {
    /// The worker sets it, and keeps it over its transactions. False: somebody looks for it at this very moment, or the
    /// worker before has it still.
    pub fn try_set() -> bool {
        UserLock::Pause.try_acquire_for_session()
    }

    /// By the worker that has it.
    pub fn clear() {
        UserLock::Pause.release_of_session();
    }

    /// Is it set?
    pub fn is_set() -> bool {
        UserLock::Pause.is_taken()
    }
}

/// The mark that somebody fills the tracks of a database.
pub struct FillerMark;

impl FillerMark {
    /// For the rest of the session. False when somebody has it.
    pub fn try_set() -> bool {
        UserLock::Filler.try_acquire_for_session()
    }

    /// Does somebody have it? In a transaction.
    pub fn is_set() -> bool {
        UserLock::Filler.is_taken()
    }
}

/// Does somebody drop, rename, move or copy this database, and wait for us to go?
pub fn database_is_wanted() -> bool {
    let tag = pg_sys::LOCKTAG {
        locktag_field1: 0,
        locktag_field2: pg_sys::DatabaseRelationId.to_u32(),
        // SAFETY: set once when the backend connected.
        locktag_field3: unsafe { pg_sys::MyDatabaseId }.to_u32(),
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    };
    let mode = super::relation::ROW_EXCLUSIVE;
    // SAFETY: the mode that a connecting backend takes; without waiting, and given back at once.
    unsafe {
        let result = pg_sys::LockAcquire(&tag, mode, false, true);
        if result == pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL {
            return true;
        }
        pg_sys::LockRelease(&tag, mode, false);
    }
    false
}

/// Does this database let anybody in, a worker too? In a transaction. Those who are in already may
/// find that it does not.
pub fn database_allows_connections() -> bool {
    // SAFETY: a row of pg_database is a FormData_pg_database, and is given back after it was read.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::DATABASEOID as i32,
            pg_sys::Datum::from(pg_sys::MyDatabaseId),
        );
        if tuple.is_null() {
            return false;
        }
        let header = (*tuple).t_data;
        let row = header.cast::<u8>().add(usize::from((*header).t_hoff));
        let allows = (*row.cast::<pg_sys::FormData_pg_database>()).datallowconn;
        pg_sys::ReleaseSysCache(tuple);
        allows
    }
}
