//! Counter types: which bounds a counter has, by the part of its name before the first colon.
//!
//! # How it works
//! A type is a row of the table `counterx.type`. Each backend keeps the few types in memory, and
//! drops them when the relation cache says that the table has changed: a trigger on the table sends
//! that message for every change, also one that a restore makes. Without types, an increment looks
//! at one flag.
//!
//! # Invariant
//! What is committed obeys the bounds of the type as it is when it commits. Increments are checked
//! when they are called; a type may be created, or its bounds tightened, before they commit. So
//! whoever does that locks the table of types, which waits for those who have written early and keep
//! gates for long; then all gates, which waits for those who are committing and holds up others; and
//! checks the counters then. A transaction that gets to its gates after that has heard
//! of the change, by the lock, and is told to retry if it has changed a counter by other bounds
//! (`unchanged.rs`). The table of holds is locked likewise: a hold is checked against the bounds
//! as they are when it is there ([`check_same`]), and nobody tightens them before it is committed.

use crate::bounds::limits::Limits;
use crate::bounds::windowed::Windowed;
use crate::pg::error::{quoted, raise, report};
use crate::pg::lock::is_locked;
use crate::pg::relation::{ROW_EXCLUSIVE, Relation};
use crate::pg::room;
use crate::pg::scan::{Row, TableScan};
use crate::pg::snapshot::LatestSnapshot;
use crate::pg::time;
use crate::pg::varlena::text_bytes;
use crate::store::catalog;
use crate::store::columns;
use crate::store::gate;
use crate::store::tables;
use counterx_core::escrow::Bounds;
use counterx_core::lane::NameHash;
use counterx_core::parts::type_of;
use counterx_core::room::{NoMemory, keep_spare};
use counterx_core::windows::{Kind, Length, Prefix, Stored};
use hashbrown::HashTable;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::num::NonZeroU32;
use std::rc::Rc;

thread_local! {
    /// What is known is [`TYPES`]; and whether there are none, for the hot path.
    static KNOWN: Cell<bool> = const { Cell::new(false) };
    static NONE: Cell<bool> = const { Cell::new(false) };
    /// One of them has a window, for reads.
    static ANY_WINDOW: Cell<bool> = const { Cell::new(false) };
    static TYPES: RefCell<Types> = RefCell::default();
    /// How often the types have changed, as far as this backend has heard.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
    /// The table that the types were read from last.
    static TABLE: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::InvalidOid) };
    /// That number when the running transaction first changed a counter.
    static CHANGES_AT_START: Cell<Option<u64>> = const { Cell::new(None) };
    /// The running transaction has dropped counters without reserving anything: all, or those of some types.
    static BOUNDED_GONE: Cell<bool> = const { Cell::new(false) };
    static ALL_GONE: Cell<bool> = const { Cell::new(false) };
    static TYPES_GONE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Definitions of types have changed: what each session has in memory of them is outdated.
pub fn changed() {
    changed_in(catalog::shared().types);
}

/// The same, where this is the table of types.
pub fn changed_in(table: pg_sys::Oid) {
    // SAFETY: invalidates a relation that exists. The message is sent when the transaction commits.
    unsafe { pg_sys::CacheInvalidateRelcacheByRelid(table) };
}

/// The limits of a counter that is about to be changed; None: it has none. Notes that the running transaction
/// goes by them.
///
/// # Errors
/// Raises 42501 for the counter of a tracked table.
pub fn limits_of(name: &[u8]) -> Option<Limits> {
    let limits = known_limits_of(name);
    if limits.is_some_and(|limits| limits.tracked) {
        raise_tracked(name);
    }
    limits
}

/// The same of a counter that is looked at, or restored.
pub fn known_limits_of(name: &[u8]) -> Option<Limits> {
    let changes = know();
    if CHANGES_AT_START.get().is_none() {
        CHANGES_AT_START.set(Some(changes));
    }
    if NONE.get() {
        return None;
    }
    let limits = find(name);
    if let Some(limits) = limits
        && BOUNDED_GONE.get()
    {
        check_not_gone(name, limits);
    }
    limits
}

/// # Errors
/// Raises 25001 where the running transaction has dropped a counter without reserving that.
#[cold]
fn check_not_gone(name: &[u8], limits: Limits) {
    if limits.bounds == Bounds::default() {
        // Of a type that has a window alone: nothing is reserved.
        return;
    }
    let is_of_gone =
        || TYPES_GONE.with_borrow(|types| types.iter().any(|gone| Some(&**gone) == type_of(name)));
    let message = if is_of_gone() {
        "cannot change bounded counters of a type in a transaction that has dropped all of them with the type"
    } else if ALL_GONE.get() {
        "cannot change bounded counters in a transaction that has dropped all counters"
    } else {
        return;
    };
    raise(
        report(PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION, message).set_hint("Commit first."),
    );
}

/// Are the counters of a type those of a tracked table?
pub fn is_tracked(type_name: &[u8]) -> bool {
    know();
    TYPES.with_borrow(|types| types.find(type_name).is_some_and(|limits| limits.tracked))
}

/// How often the types have changed, as far as this backend has heard: what somebody knows of them is outdated
/// when it is another number.
pub fn number_of_changes() -> u64 {
    know();
    CHANGES.get()
}

/// Is a counter that of a tracked table?
pub fn is_of_tracked(name: &[u8]) -> bool {
    know();
    find(name).is_some_and(|limits| limits.tracked)
}

/// Is there any type that is that of a tracked table?
pub fn are_any_tracked() -> bool {
    know();
    TYPES.with_borrow(|types| types.all.iter().any(|(_, limits)| limits.tracked))
}

/// The window of a type, whose limits were found just now.
pub fn window(number: NonZeroU32) -> Rc<Windowed> {
    TYPES.with_borrow(|types| Rc::clone(&types.windows[number.get() as usize - 1]))
}

/// The windows of all types that have one.
pub fn all_windows() -> Vec<Rc<Windowed>> {
    know();
    TYPES.with_borrow(|types| types.windows.clone())
}

/// The window of a type, if it has one.
pub fn window_of_type(type_name: &[u8]) -> Option<Rc<Windowed>> {
    know();
    let limits = TYPES.with_borrow(|types| types.find(type_name))?;
    limits.window.map(window)
}

/// How a name is shown that is stored for a window.
pub fn plain(name: &[u8]) -> Cow<'_, [u8]> {
    // Of a type that has none any more as well. No other names look like these.
    Stored::of(name).map_or(Cow::Borrowed(name), |stored| Cow::Owned(stored.plain()))
}

/// The window of a counter's type, if it has one.
pub fn window_of(name: &[u8]) -> Option<Rc<Windowed>> {
    know();
    if !ANY_WINDOW.get() {
        return None;
    }
    find(name)?.window.map(window)
}

/// Makes sure that the types are known. Returns of which number of changes they are.
fn know() -> u64 {
    if KNOWN.get() {
        CHANGES.get()
    } else {
        load(read_all)
    }
}

/// Is this value beyond the bounds of the counter?
pub fn is_out_of_bounds(name: &[u8], value: i128) -> bool {
    known_limits_of(name).is_some_and(|limits| {
        !limits.bounds.contain(value)
            && !limits.window.is_some_and(|it| window(it).counts_refused())
    })
}

/// The running transaction has dropped all bounded counters without reserving anything. Nobody else knows
/// of that before it has committed, so it must not change any further: what is granted is granted by what
/// others see. (After a rollback to a savepoint neither, to keep it simple.)
pub fn bounded_counters_are_gone() {
    BOUNDED_GONE.set(true);
    ALL_GONE.set(true);
}

/// The same for the counters of a type that has a window, which go with it: there may be another one of its name by the
/// end of the transaction.
pub fn counters_of_type_are_gone(type_name: &[u8]) {
    BOUNDED_GONE.set(true);
    TYPES_GONE.with_borrow_mut(|types| room::push(types, room::copy(type_name).into()));
}

/// The limits of a counter, as far as they are known.
pub fn find(name: &[u8]) -> Option<Limits> {
    let type_name = type_of(name)?;
    let limits = TYPES.with_borrow(|types| types.find(type_name))?;
    (limits.tracked || limits.bounds != Bounds::default() || limits.window.is_some())
        .then_some(limits)
}

/// Something has changed. Neither allocates nor fails.
fn forget() {
    KNOWN.set(false);
    NONE.set(false);
    CHANGES.set(CHANGES.get().wrapping_add(1));
}

/// A relation has changed, or any of them. Others than the table of types say nothing about types, and are
/// altered by whoever analyzes them. Neither allocates nor fails.
pub fn relation_changed(oid: pg_sys::Oid) {
    if oid == pg_sys::InvalidOid || oid == TABLE.get() {
        forget();
    }
}

/// Have the types changed, as far as this backend has heard, since the running transaction first changed a
/// counter?
pub fn have_changed() -> bool {
    CHANGES_AT_START
        .get()
        .is_some_and(|at_start| at_start != CHANGES.get())
}

/// The transaction has ended.
pub fn after_end() {
    CHANGES_AT_START.set(None);
    if BOUNDED_GONE.replace(false) {
        ALL_GONE.set(false);
        TYPES_GONE.take();
    }
}

/// Reads the types, and says of which number of changes they are.
///
/// A change that is heard of meanwhile may be in there or not. So what was read serves the caller, who
/// goes by the number that it began with; the next one reads again. To read again at once would never
/// end where a backend hears of changes all the time: a server that is busy with DDL makes it forget
/// everything, and the look-ups of a reading are when it is told.
fn load(read: impl FnOnce() -> Types) -> u64 {
    let changes = CHANGES.get();
    let types = read();
    let unchanged = CHANGES.get() == changes;
    NONE.set(unchanged && types.all.is_empty());
    KNOWN.set(unchanged);
    ANY_WINDOW.set(!types.windows.is_empty());
    TYPES.set(types);
    changes
}

/// Looks at the types as they are now.
pub fn read_again() {
    load(read_all);
}

/// All types by name. Looked up by each increment whose name has a colon, so with a quick hash.
#[derive(Default)]
struct Types {
    all: HashTable<(Box<[u8]>, Limits)>,
    /// The windows of those that have one, from number 1 on.
    windows: Vec<Rc<Windowed>>,
}

impl Types {
    fn hash(name: &[u8]) -> u64 {
        NameHash::of(name).get()
    }

    fn insert(&mut self, name: &[u8], limits: Limits) {
        let hash = |(name, _): &(Box<[u8]>, Limits)| Self::hash(name);
        room::granted(keep_spare());
        room::granted(self.all.try_reserve(1, hash).map_err(NoMemory::from));
        self.all
            .insert_unique(Self::hash(name), (name.into(), limits), hash);
    }

    fn find(&self, name: &[u8]) -> Option<Limits> {
        let found = self
            .all
            .find(Self::hash(name), |(known, _)| **known == *name)?;
        Some(found.1)
    }

    /// Keeps the window of a type. No server has as many types as there are numbers.
    fn insert_window(&mut self, window: Windowed) -> Option<NonZeroU32> {
        room::push(&mut self.windows, Rc::new(window));
        NonZeroU32::new(u32::try_from(self.windows.len()).ok()?)
    }
}

/// The window that a row of the table says. What was restored has been looked at by then: a length that is none is left
/// out, as is what nobody else has.
fn window_in(row: &Row) -> Option<Windowed> {
    let per = row.get(columns::types::PER)?;
    // SAFETY: an interval.
    let (months, days, micros) = unsafe { time::parts(per) };
    let length = Length::of_interval(months, days, micros).ok()?;
    // SAFETY: a text; zones are short.
    let zone =
        (row.get(columns::types::ZONE)).map_or(&b"UTC"[..], |zone| unsafe { text_bytes(zone) });
    let kept = row
        .get(columns::types::KEPT)
        .map_or(0, |kept| kept.value() as u32);
    let name = row.text(columns::types::NAME);
    // One that is too long to be stored.
    Prefix::new(name, 0)?;
    let kind =
        match (row.get(columns::types::SLIDING)).is_some_and(|sliding| sliding.value() & 1 != 0) {
            true => Kind::Sliding,
            false => Kind::Fixed,
        };
    let counts_refused =
        (row.get(columns::types::COUNT_REFUSED)).is_some_and(|counts| counts.value() & 1 != 0);
    Some(Windowed::new(
        name,
        (length, kind),
        zone,
        kept,
        counts_refused,
    ))
}

fn read_all() -> Types {
    let oid = catalog::shared().types;
    // Before it is opened, so that no change of it is missed from here on.
    TABLE.set(oid);
    let table = tables::open(oid);
    let mut types = Types::default();
    if table.blocks() == 0 {
        return types;
    }
    let latest = LatestSnapshot::take();
    // SAFETY: the snapshot outlives the scan.
    let mut scan = unsafe { TableScan::new(&table, latest.as_ptr()) };
    while let Some(row) = scan.next() {
        let number = |column| row.get(column).map(|datum| datum.value() as i64);
        let limits = Limits {
            bounds: Bounds {
                min: number(columns::types::MIN),
                max: number(columns::types::MAX),
            },
            // With the table's own number: a dump takes the row to another table.
            generation: row.int8(columns::types::GENERATION) ^ (i64::from(oid.to_u32()) << 32),
            tracked: number(columns::types::TRACKED).is_some_and(|tracked| tracked & 1 != 0),
            window: window_in(&row).and_then(|window| types.insert_window(window)),
        };
        types.insert(row.text(columns::types::NAME), limits);
    }
    types
}

/// The bounds of a type as they are now; None: there is no such type.
pub fn latest_bounds(type_name: &[u8]) -> Option<Bounds> {
    read_all().find(type_name).map(|limits| limits.bounds)
}

/// The names of all types that there are now, ascending.
pub fn latest_names() -> Vec<String> {
    let types = read_all();
    // ASCII, so they are the same in every encoding.
    let names = types
        .all
        .iter()
        .map(|(name, _)| String::from_utf8_lossy(name));
    let mut names: Vec<String> = names.map(Into::into).collect();
    names.sort_unstable();
    names
}

/// The running (sub)transaction is about to write before its end, and to keep gates locked until then. Who
/// creates or tightens a type waits here for all such transactions, before keeping anybody else out; and
/// those that come meanwhile wait for the type.
///
/// Who has made or ended a hold already does not: the one who defines types has them locked, and waits for
/// him, with no gate locked yet.
pub fn announce_early_writing() {
    gate::enter(0);
    let shared = catalog::shared();
    if is_locked(shared.hold, ROW_EXCLUSIVE) {
        let _announced = Relation::open_if_free(shared.types, ROW_EXCLUSIVE);
    } else if Relation::open_until_commit(shared.types, ROW_EXCLUSIVE).is_none() {
        catalog::gone()
    }
}

/// Checks that a counter's limits are still these. To be called with the table of holds locked.
///
/// # Errors
/// Raises 40001 when they are not.
pub fn check_same(name: &[u8], limits: Limits) {
    let now = limits_of(name);
    if now.is_some_and(|now| now.generation != limits.generation) {
        raise_changed(name);
    }
}

/// A counter has got other bounds meanwhile.
///
/// # Errors
/// Raises 40001.
pub fn raise_changed(name: &[u8]) -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
            format!(
                "could not serialize access due to a change of the type of counter {}",
                quoted(&plain(name))
            ),
        )
        .set_hint("Retry the transaction."),
    )
}

/// Somebody changes the counter of a tracked table by a call.
///
/// # Errors
/// Raises 42501.
pub fn raise_tracked(name: &[u8]) -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("counter {} is that of a tracked table", quoted(name)),
        )
        .set_detail("It changes with the rows of the table, and by nothing else.")
        .set_hint("SELECT * FROM counter_tracks shows the table. Change its rows, or count under the name of another type."),
    )
}

/// A transaction that goes by one snapshot is about to change a type that the snapshot does not show.
///
/// # Errors
/// Raises 40001.
pub fn raise_changed_type(name: &str) -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
            format!(
                "could not serialize access due to a concurrent change of counter type \"{name}\""
            ),
        )
        .set_hint("Retry the transaction."),
    )
}

/// For tests inside the server: hears of a change in the midst of a reading. Does that end, is the
/// next reading due, and is the number that of before?
#[cfg(any(test, feature = "pg_test"))]
pub fn hears_of_a_change_while_reading() -> bool {
    let read_at = load(|| {
        let types = read_all();
        forget();
        types
    });
    !KNOWN.get() && !NONE.get() && read_at != CHANGES.get()
}
