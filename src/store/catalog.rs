//! Where the extension's relations are, remembered per backend.
//!
//! OIDs of tables are looked up once and dropped by the relation cache's callback, so that an increment
//! costs no look-up, and DROP EXTENSION, here or in another session, is noticed. Indexes are found
//! through their open table: REINDEX CONCURRENTLY puts another one in an index's place.

use crate::pg::error::{raise, report};
use crate::store::shape;
use crate::store::since;
use counterx_core::gate::Side;
use counterx_core::installation::compare;
use counterx_core::lane::LANES;
use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::cell::Cell;
use std::ffi::CString;
use std::sync::OnceLock;

/// The relations of one lane.
#[derive(Clone, Copy)]
pub struct LaneRels {
    /// The gate.
    pub gate: pg_sys::Oid,
    logs: [pg_sys::Oid; 2],
}

impl LaneRels {
    /// One of the two logs.
    pub fn log(&self, side: Side) -> pg_sys::Oid {
        self.logs[side.index()]
    }
}

/// The relations that all lanes share.
#[derive(Clone, Copy)]
pub struct SharedRels {
    schema: pg_sys::Oid,
    /// Folded values.
    pub total: pg_sys::Oid,
    /// How far lanes are folded.
    pub state: pg_sys::Oid,
    /// Deltas of prepared transactions.
    pub late: pg_sys::Oid,
    /// What serializable transactions meet on.
    pub anchor: pg_sys::Oid,
    /// Tokens of idempotent increments.
    pub token: pg_sys::Oid,
    /// Counter types.
    pub types: pg_sys::Oid,
    /// Holds.
    pub hold: pg_sys::Oid,
    /// The ids of holds, a sequence.
    pub hold_id: pg_sys::Oid,
    /// Which types have a history.
    pub history: pg_sys::Oid,
    /// Streams.
    pub stream: pg_sys::Oid,
    /// Alerts.
    pub alert: pg_sys::Oid,
}

thread_local! {
    static SHARED: Cell<Option<SharedRels>> = const { Cell::new(None) };
    static LANE: [Cell<Option<LaneRels>>; LANES] = const { [const { Cell::new(None) }; LANES] };
    /// The gate was seen to be above all that is folded, since anything was last altered.
    static GATE_SEEN: [Cell<bool>; LANES] = const { [const { Cell::new(false) }; LANES] };
}

/// Why the extension cannot be used.
pub enum Unusable {
    /// There is no such extension in this database (any more).
    NotInstalled,
    /// It is there, but not this relation of it.
    Missing(String),
    /// The library and the SQL objects are of different versions.
    Version(String),
}

impl Unusable {
    /// Raises it as an error.
    pub fn raise(self) -> ! {
        let library = env!("CARGO_PKG_VERSION");
        let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
        raise(match self {
            Unusable::NotInstalled => report(
                PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                "extension \"counterx\" is not installed in this database",
            )
            .set_hint("Run CREATE EXTENSION counterx. If it was dropped in mid-transaction, its counters are gone: roll back."),
            Unusable::Missing(name) => report(
                code,
                format!("relation counterx.{name} of the extension \"counterx\" is missing"),
            )
            .set_hint("Where it was renamed, or moved to another schema, do the opposite. Else restore a backup."),
            Unusable::Version(installed) if compare(&installed, library).is_lt() => report(
                code,
                format!("extension \"counterx\" is version {installed}, but its library is version {library}"),
            )
            .set_hint("Run ALTER EXTENSION counterx UPDATE."),
            Unusable::Version(installed) => report(
                code,
                format!("extension \"counterx\" is version {installed}, but this session has loaded version {library} of its library"),
            )
            .set_hint("Install the newer library, reconnect, and restart the server if shared_preload_libraries names counterx."),
        })
    }
}

/// Has this backend found a usable extension, and heard nothing else since? One flag, for the
/// hot path.
pub fn is_known() -> bool {
    SHARED.get().is_some()
}

/// The shared relations; looks them up where needed.
///
/// # Errors
/// Raises an error when the extension cannot be used.
pub fn shared() -> SharedRels {
    try_shared().unwrap_or_else(|why| why.raise())
}

/// Are the SQL objects those of an older version than the library?
pub fn is_of_older_version() -> bool {
    match try_shared() {
        Err(Unusable::Version(installed)) => compare(&installed, env!("CARGO_PKG_VERSION")).is_lt(),
        _ => false,
    }
}

/// The relations of a lane; looks them up where needed.
///
/// # Errors
/// Raises an error when the extension cannot be used.
pub fn lane(lane: usize) -> LaneRels {
    try_lane(lane).unwrap_or_else(|why| why.raise())
}

/// As [`shared`], without raising.
pub fn try_shared() -> Result<SharedRels, Unusable> {
    if let Some(known) = SHARED.get() {
        return Ok(known);
    }
    let found = undisturbed(find_shared)?;
    SHARED.set(Some(found));
    Ok(found)
}

fn find_shared() -> Result<SharedRels, Unusable> {
    let installed = installed_version().ok_or(Unusable::NotInstalled)?;
    if installed != env!("CARGO_PKG_VERSION") {
        return Err(Unusable::Version(installed));
    }
    // SAFETY: a look-up in the system cache.
    let schema = unsafe { pg_sys::get_namespace_oid(c"counterx".as_ptr(), true) };
    let find =
        |name: &str| relation(schema, name).ok_or_else(|| Unusable::Missing(name.to_owned()));
    Ok(SharedRels {
        schema,
        total: find("total")?,
        state: find("state")?,
        late: find("late")?,
        anchor: find("anchor")?,
        token: find("token")?,
        types: find("type")?,
        hold: find("hold")?,
        hold_id: find("hold_id")?,
        history: find("history")?,
        stream: find("stream")?,
        alert: find("alert")?,
    })
}

/// As [`lane`], without raising.
pub fn try_lane(lane: usize) -> Result<LaneRels, Unusable> {
    if let Some(known) = LANE.with(|lanes| lanes[lane].get()) {
        return Ok(known);
    }
    let found = undisturbed(|| find_lane(lane))?;
    LANE.with(|lanes| lanes[lane].set(Some(found)));
    Ok(found)
}

/// Does this backend know already that a lane's gate is above all that is folded? See `gate.rs`.
pub fn gate_was_seen(lane: usize) -> bool {
    GATE_SEEN.with(|seen| seen[lane].get())
}

/// It does now.
pub fn note_gate_seen(lane: usize) {
    GATE_SEEN.with(|seen| seen[lane].set(true));
}

fn find_lane(lane: usize) -> Result<LaneRels, Unusable> {
    let schema = try_shared()?.schema;
    let find = |name: String| relation(schema, &name).ok_or(Unusable::Missing(name));
    let gate = find(format!("gate_{lane}"))?;
    failpoint!("catalog.gate_found");
    Ok(LaneRels {
        gate,
        logs: [
            find(format!("log_{lane}_a"))?,
            find(format!("log_{lane}_b"))?,
        ],
    })
}

/// Looks again when somebody has changed something in between, as `RangeVarGetRelidExtended()` does
/// it: [`relation_changed`] does not know what is about to be remembered.
fn undisturbed<T>(look_up: impl Fn() -> Result<T, Unusable>) -> Result<T, Unusable> {
    loop {
        // SAFETY: a counter of this process.
        let before = unsafe { pg_sys::SharedInvalidMessageCounter };
        let found = look_up();
        // SAFETY: as above.
        if unsafe { pg_sys::SharedInvalidMessageCounter } == before {
            return found;
        }
    }
}

/// Is there a relation of this name in the schema `counterx`?
pub fn has_relation(name: &str) -> bool {
    relation(shared().schema, name).is_some()
}

/// A relation of ours that is not wanted often enough to be remembered.
///
/// # Errors
/// As of [`shared`], and when it is missing.
pub fn relation_of(name: &str) -> pg_sys::Oid {
    relation(shared().schema, name).unwrap_or_else(|| Unusable::Missing(name.to_owned()).raise())
}

/// The same, or none.
pub fn try_relation_of(name: &str) -> Option<pg_sys::Oid> {
    relation(try_shared().ok()?.schema, name)
}

fn relation(schema: pg_sys::Oid, name: &str) -> Option<pg_sys::Oid> {
    let name = CString::new(name).ok()?;
    // SAFETY: a look-up in the system cache.
    let oid = unsafe { pg_sys::get_relname_relid(name.as_ptr(), schema) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// `extversion` of the extension in this database. There is no system cache for it.
fn installed_version() -> Option<String> {
    // SAFETY: a scan of a system catalog by its index, as get_extension_oid() does it; all is
    // closed before the function returns, and by the resource owner should an error unwind.
    unsafe {
        let table = pg_sys::table_open(pg_sys::ExtensionRelationId, pg_sys::AccessShareLock as _);
        let mut key = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyInit(
            &mut key,
            pg_sys::Anum_pg_extension_extname as _,
            pg_sys::BTEqualStrategyNumber as _,
            pg_sys::Oid::from(pg_sys::F_NAMEEQ),
            pg_sys::Datum::from(c"counterx".as_ptr()),
        );
        let scan = pg_sys::systable_beginscan(
            table,
            pg_sys::Oid::from(pg_sys::ExtensionNameIndexId),
            true,
            std::ptr::null_mut(),
            1,
            &mut key,
        );
        let tuple = pg_sys::systable_getnext(scan);
        let version = if tuple.is_null() {
            None
        } else {
            since::note(tuple);
            let mut isnull = false;
            let datum = pg_sys::heap_getattr(
                tuple,
                pg_sys::Anum_pg_extension_extversion as _,
                (*table).rd_att,
                &mut isnull,
            );
            String::from_datum(datum, isnull)
        };
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(table, pg_sys::AccessShareLock as _);
        version
    }
}

/// Registers the callback that forgets what has changed, and whom it tells: of a relation, or of all (OID
/// 0). The listener neither allocates nor fails.
pub fn register_callbacks(listener: fn(pg_sys::Oid)) {
    // A second one would be the same.
    let _ = LISTENER.set(listener);
    // SAFETY: called once, from _PG_init.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::from(0));
    }
}

/// Runs in the midst of anything, and must not fail: it compares numbers and clears flags.
#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_arg: pg_sys::Datum, oid: pg_sys::Oid) {
    shape::forget(oid);
    tell(oid);
    let all = oid == pg_sys::InvalidOid;
    let concerns_shared = SHARED.get().is_some_and(|rels| {
        let ours = [
            rels.total,
            rels.state,
            rels.late,
            rels.anchor,
            rels.token,
            rels.types,
            rels.hold,
            rels.hold_id,
            rels.history,
            rels.stream,
            rels.alert,
        ];
        all || ours.contains(&oid)
    });
    if concerns_shared {
        forget_relations();
        return;
    }
    LANE.with(|lanes| {
        for (number, lane) in lanes.iter().enumerate() {
            let concerned = lane
                .get()
                .is_some_and(|rels| all || oid == rels.gate || rels.logs.contains(&oid));
            if concerned {
                lane.set(None);
                GATE_SEEN.with(|seen| seen[number].set(false));
            }
        }
    });
}

/// Forgets all, so that the next use looks again.
pub fn forget() {
    tell(pg_sys::InvalidOid);
    forget_relations();
}

/// A relation that was known has gone: the extension was dropped, or it was updated while this transaction
/// had counted with the library of before.
///
/// # Errors
/// Raises 42704, or 55000 as of [`Unusable`].
pub fn gone() -> ! {
    forget();
    match try_shared() {
        Ok(_) => Unusable::NotInstalled.raise(),
        Err(why) => why.raise(),
    }
}

static LISTENER: OnceLock<fn(pg_sys::Oid)> = OnceLock::new();

fn tell(oid: pg_sys::Oid) {
    if let Some(listener) = LISTENER.get() {
        listener(oid);
    }
}

fn forget_relations() {
    SHARED.set(None);
    LANE.with(|lanes| lanes.iter().for_each(|lane| lane.set(None)));
    GATE_SEEN.with(|seen| seen.iter().for_each(|seen| seen.set(false)));
}
