//! Tracked tables: `counter_track()` and its relatives.

use super::args::{self, NameOut, Text, TextArray};
use super::parts;
use crate::bounds::types;
use crate::pg::error::{quoted, raise, report};
use crate::pg::lock;
use crate::pg::number::numeric;
use crate::pg::ports;
use crate::pg::relation::{
    ACCESS_EXCLUSIVE, EXCLUSIVE, LockMode, ROW_EXCLUSIVE, Relation, SHARE_ROW_EXCLUSIVE,
    SHARE_UPDATE_EXCLUSIVE,
};
use crate::pg::snapshot::{self, CurrentSnapshot, LatestSnapshot};
use crate::pg::user::ActingAs;
use crate::track::compare::{self, Difference};
use crate::track::definition::Definition;
use crate::track::fill::{self, Locked, NotNow};
use crate::track::locking;
use crate::track::tables::{self, Catalogs, Patience, Track};
use crate::track::watch;
use crate::write::{change, writing};
use counterx_core::names::NameRange;
use counterx_core::parts::NameBuilder;
use pgrx::iter::TableIterator;
use pgrx::prelude::*;
use pgrx::{AnyNumeric, FromDatum, PgSqlErrorCode, pg_sys};
use std::time::Duration;

/// The table of an argument, by somebody who may say how it is counted.
///
/// # Errors
/// Raises 42P01 for what does not exist, 42501 for who is not its owner.
fn owned(table: Option<pg_sys::Oid>) -> Relation {
    let table = args::required("table", table);
    let Some(table) = Relation::open_for_read(table) else {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
                format!("relation with OID {table} does not exist"),
            )
            .set_hint("Name a table."),
        )
    };
    tables::check_is_owner(&table);
    table
}

/// # Errors
/// Raises 25001 in a transaction that goes by one snapshot.
fn check_isolation(function: &str) {
    if ports::isolation_uses_xact_snapshot() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
                format!("{function} cannot run in a REPEATABLE READ or SERIALIZABLE transaction"),
            )
            .set_detail("Its snapshot may be older than what the counters have to agree with.")
            .set_hint("Call it in a READ COMMITTED transaction."),
        )
    }
}

fn text(text: Option<Text>) -> Option<String> {
    text.map(|Text(bytes)| String::from_utf8_lossy(bytes).into_owned())
}

/// The same, locked together with its partitions, to the end of the transaction.
///
/// # Errors
/// As of [`owned`]; raises 55P03 when others keep it for too long.
fn locked(table: Option<pg_sys::Oid>, mode: LockMode) -> Relation {
    let (oid, name) = {
        let table = owned(table);
        (table.oid(), tables::shown(&table))
    };
    locking::lock_with_partitions(oid, &name, mode);
    // It may have another owner now.
    owned(Some(oid))
}

#[pg_extern(sql = "
CREATE FUNCTION counter_track(\"table\" regclass, type text, key text[], sum text DEFAULT NULL, scale integer DEFAULT 0, filter text DEFAULT NULL, adopt boolean DEFAULT false)
    RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
fn counter_track(
    table: Option<pg_sys::Oid>,
    type_name: Option<Text>,
    key: Option<TextArray>,
    sum: Option<Text>,
    scale: Option<i32>,
    filter: Option<Text>,
    adopt: Option<bool>,
) -> bool {
    change::check_may_write(c"counter_track()");
    check_isolation("counter_track()");
    let type_name = super::types::type_name(type_name);
    parts::of_parts(type_name.as_bytes());
    let key = key_of(key);
    let (sum, filter) = (text(sum), text(filter));
    let scale = u32::try_from(scale.unwrap_or(0)).unwrap_or(u32::MAX);
    let table = locked(table, SHARE_ROW_EXCLUSIVE);
    failpoint!("track.locked");
    let definition = {
        let _owner = ActingAs::owner_of(&table);
        let sum = sum.as_deref().map(|sum| (sum, scale));
        Definition::parse(&table, &key, filter.as_deref(), sum)
    };
    let catalogs = Catalogs::enter();
    tables::check_table(&catalogs, &table);
    if tables::hides_rows(&table) {
        notice!(
            "table {} has row security, and everybody who may read counters sees how many rows it has, and the keys of their groups",
            tables::shown(&table)
        );
    }
    tables::take_type(&catalogs, &type_name, adopt.unwrap_or(false));
    types::changed();
    let conditions = tables::conditions(&catalogs, &table, &definition);
    // Nobody may have it open who alters it; the lock stays.
    let table = {
        let oid = table.oid();
        drop(table);
        oid
    };
    let scale = definition.sum.as_ref().map(|(_, scale)| *scale);
    tables::make_triggers(&catalogs, table, &type_name, &conditions, scale);
    failpoint!("track.triggers_made");
    tables::add(&catalogs, table, &type_name, &key, &definition);
    watch::note(&catalogs, table, &type_name);
    failpoint!("track.noted");
    writing::wake_worker_at_commit();
    true
}

fn key_of(key: Option<TextArray>) -> Vec<String> {
    let parts = args::texts("part of a key", key);
    let owned = |part: &&[u8]| String::from_utf8_lossy(part).into_owned();
    parts.iter().map(owned).collect()
}

/// The tracks of a table, or that of one type.
///
/// # Errors
/// Raises 42704 when there is none.
fn tracks_of(catalogs: &Catalogs, table: &Relation, type_name: Option<Text>) -> Vec<Track> {
    let type_name = text(type_name);
    let tracks = tables::tracks(catalogs, Some(table.oid()), type_name.as_deref());
    if tracks.is_empty() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                match type_name {
                    None => format!("table {} is not tracked", tables::shown(table)),
                    Some(name) => format!(
                        "table {} is not tracked by type {}",
                        tables::shown(table),
                        quoted(name.as_bytes())
                    ),
                },
            )
            .set_hint("SELECT * FROM counter_tracks shows the tracks."),
        )
    }
    tracks
}

#[pg_extern(sql = "
CREATE FUNCTION counter_untrack(\"table\" regclass, type text DEFAULT NULL, keep boolean DEFAULT false)
    RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
fn counter_untrack(
    table: Option<pg_sys::Oid>,
    type_name: Option<Text>,
    keep: Option<bool>,
) -> bool {
    change::check_may_write(c"counter_untrack()");
    check_isolation("counter_untrack()");
    if table.is_none() {
        untrack_without_table(type_name, keep.unwrap_or(false));
        types::changed();
        return true;
    }
    // DROP TRIGGER keeps readers out as well.
    let table = locked(table, ACCESS_EXCLUSIVE);
    let catalogs = Catalogs::enter();
    let tracks = tracks_of(&catalogs, &table, type_name);
    // Nobody may have it open who alters it; the lock stays.
    let table = {
        let oid = table.oid();
        drop(table);
        oid
    };
    for track in tracks {
        for left in tables::drop_triggers(&catalogs, table, &track.type_name) {
            notice!(
                "triggers of type \"{}\" stay on {left}, which is in use; they count nothing there",
                track.type_name
            );
        }
        failpoint!("untrack.triggers_dropped");
        end(&catalogs, &track.type_name, keep.unwrap_or(false));
    }
    types::changed();
    true
}

/// Ends a track, whose triggers are gone. First of all its row goes: of two who do this at once, one waits for the
/// other there, and only one takes back what the counters say.
///
/// # Errors
/// Raises 42704 when somebody else has ended it.
fn end(catalogs: &Catalogs, type_name: &str, keep: bool) {
    if !tables::remove(catalogs, type_name) {
        raise_no_track(type_name)
    }
    failpoint!("untrack.removed");
    if !keep {
        fill::forget(type_name);
    }
    failpoint!("untrack.forgotten");
}

fn raise_no_track(type_name: &str) -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!(
                "no table is tracked by type {}",
                quoted(type_name.as_bytes())
            ),
        )
        .set_hint("SELECT * FROM counter_tracks shows the tracks."),
    )
}

/// What [`counter_drift`] goes by: a transaction's snapshot, where that is bound to one. Else the latest, as that
/// of the statement is older than the lock on the table, which may have been emptied before that was granted.
fn snapshot_of_comparison() -> CurrentSnapshot {
    if ports::isolation_uses_xact_snapshot() {
        snapshot::active_or_transactions()
    } else {
        CurrentSnapshot::Latest(LatestSnapshot::take())
    }
}

/// Ends a track whose triggers are not here: its table was dropped, a restore may have left it out, or somebody has
/// dropped them.
///
/// # Errors
/// Raises 42704 when there is no such track, 55000 when there are the triggers, 42501 when there is the table and it is
/// somebody else's.
fn untrack_without_table(type_name: Option<Text>, keep: bool) {
    let type_name = text(Some(args::required("table or type", type_name))).unwrap_or_default();
    let (tracked, before) = {
        let catalogs = Catalogs::enter();
        let tracks = tables::tracks(&catalogs, None, Some(&type_name));
        let Some(track) = tracks.first() else {
            raise_no_track(&type_name)
        };
        let before = tables::table_of_before(&catalogs, &type_name);
        (track.table.is_some(), before)
    };
    if tracked {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("the tracked table of type \"{type_name}\" is here"),
            )
            .set_hint("Name the table as well."),
        )
    }
    if let Some(before) = before.and_then(Relation::open_for_read) {
        tables::check_is_owner(&before);
    }
    let catalogs = Catalogs::enter();
    end(&catalogs, &type_name, keep);
}

type Row = (NameOut, AnyNumeric, AnyNumeric, i64, i64);

fn row(difference: Difference) -> Row {
    let number = |value| {
        // SAFETY: a numeric, in the current context.
        unsafe { AnyNumeric::from_datum(numeric(value), false) }.unwrap_or_default()
    };
    (
        NameOut(difference.name.into()),
        number(difference.counted.value),
        number(difference.recorded.value),
        difference.counted.uses,
        difference.recorded.uses,
    )
}

#[pg_extern(sql = "
CREATE FUNCTION counter_drift(\"table\" regclass, type text DEFAULT NULL)
    RETURNS TABLE (name text, counted numeric, recorded numeric, rows bigint, recorded_rows bigint)
    LANGUAGE c VOLATILE PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
fn counter_drift(
    table: Option<pg_sys::Oid>,
    type_name: Option<Text>,
) -> TableIterator<
    'static,
    (
        name!(name, NameOut),
        name!(counted, AnyNumeric),
        name!(recorded, AnyNumeric),
        name!(rows, i64),
        name!(recorded_rows, i64),
    ),
> {
    let table = owned(table);
    let mut rows = Vec::new();
    {
        let catalogs = Catalogs::enter();
        for track in tracks_of(&catalogs, &table, type_name) {
            let locked =
                Locked::take(&catalogs, table.oid(), false).unwrap_or_else(|| raise_locked(&table));
            let snapshot = snapshot_of_comparison();
            let compared = locked.compare(&catalogs, &track.type_name, snapshot.as_ptr(), |_| {});
            let (differences, _) =
                compared.unwrap_or_else(|| raise_trouble(&table, "a trigger is missing"));
            if !locked.is_all(&catalogs, table.oid()) {
                raise(
                    report(
                        PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                        format!(
                            "a partition was attached to table {} meanwhile",
                            tables::shown(&table)
                        ),
                    )
                    .set_hint("Try again."),
                )
            }
            rows.extend(differences);
        }
    }
    TableIterator::new(rows.into_iter().map(row))
}

#[pg_extern(sql = "
CREATE FUNCTION counter_recount(\"table\" regclass, type text DEFAULT NULL)
    RETURNS TABLE (name text, counted numeric, recorded numeric, rows bigint, recorded_rows bigint)
    LANGUAGE c VOLATILE PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
fn counter_recount(
    table: Option<pg_sys::Oid>,
    type_name: Option<Text>,
) -> TableIterator<
    'static,
    (
        name!(name, NameOut),
        name!(counted, AnyNumeric),
        name!(recorded, AnyNumeric),
        name!(rows, i64),
        name!(recorded_rows, i64),
    ),
> {
    change::check_may_write(c"counter_recount()");
    check_isolation("counter_recount()");
    let table = owned(table);
    let mut rows = Vec::new();
    {
        let catalogs = Catalogs::enter();
        for track in tracks_of(&catalogs, &table, type_name) {
            fill::Others::of(&catalogs, &track, table.oid()).wait();
            match fill::fill(&catalogs, &track, table.oid(), Patience::Waits) {
                Ok(differences) => rows.extend(differences),
                Err(NotNow::Locked) => raise_locked(&table),
                Err(NotNow::Trouble(trouble)) => raise_trouble(&table, &trouble),
            }
        }
    }
    TableIterator::new(rows.into_iter().map(row))
}

fn raise_locked(table: &Relation) -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
            format!("table {} is locked by somebody else", tables::shown(table)),
        )
        .set_hint("Try again."),
    )
}

fn raise_trouble(table: &Relation, trouble: &str) -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("the rows of table {} are not counted", tables::shown(table)),
        )
        .set_detail(format!("Because {trouble}."))
        .set_hint("ALTER TABLE ... ENABLE ALWAYS TRIGGER for a trigger that is there; else counter_untrack() and counter_track() again."),
    )
}

#[pg_extern(sql = "
CREATE FUNCTION counter_track_wait(\"table\" regclass, timeout interval DEFAULT NULL)
    RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
fn counter_track_wait(table: Option<pg_sys::Oid>, timeout: Option<args::Interval>) -> bool {
    const PAUSE: Duration = Duration::from_millis(20);
    let table = args::required("table", table);
    // SAFETY: reads the clock.
    let until = timeout.map(|timeout| timeout.after(ports::now()));
    if !tables::is_ours(&Catalogs::enter(), None) {
        check_writes_nothing_to(table);
    }
    loop {
        let unfinished = {
            let _latest = LatestSnapshot::take();
            let catalogs = Catalogs::enter();
            let tracks = tables::tracks(&catalogs, Some(table), None);
            if tracks.is_empty() {
                raise(
                    report(
                        PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                        "the table is not tracked",
                    )
                    .set_hint("SELECT * FROM counter_tracks shows the tracks."),
                )
            }
            tracks
                .iter()
                .any(|track| track.state != "exact")
                .then(|| tables::is_ours(&catalogs, None))
        };
        match unfinished {
            None => return true,
            Some(true) => raise(
                report(
                    PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
                    "cannot wait for a track in the transaction that has made it",
                )
                .set_hint("Commit first: nobody else sees it before."),
            ),
            Some(false) => {}
        }
        if until.is_some_and(|until| ports::now() >= until) {
            return false;
        }
        // One may have ended, as there was nothing to fold.
        writing::request_worker();
        ports::pause(PAUSE);
        pgrx::check_for_interrupts!();
    }
}

/// The locks of those who write to a table, or may.
const WRITERS: [LockMode; 5] = [
    ROW_EXCLUSIVE,
    SHARE_UPDATE_EXCLUSIVE,
    SHARE_ROW_EXCLUSIVE,
    EXCLUSIVE,
    ACCESS_EXCLUSIVE,
];

/// Whoever counts the rows waits for all who write to the table, or have it locked against that.
///
/// # Errors
/// Raises 25001 when the running transaction does.
fn check_writes_nothing_to(table: pg_sys::Oid) {
    let all = {
        let catalogs = Catalogs::enter();
        let mut all = tables::leaves(&catalogs, table);
        all.push(table);
        all
    };
    if all
        .into_iter()
        .any(|table| WRITERS.iter().any(|&mode| lock::is_locked(table, mode)))
    {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
                "cannot wait for a track in a transaction that writes to its table",
            )
            .set_detail("Whoever counts the rows waits for this transaction.")
            .set_hint("Commit first."),
        )
    }
}

/// `counter_groups(type, part, …)`. A function of any types, so it reads its arguments by itself.
#[pg_extern(sql = "
CREATE FUNCTION counter_groups(type text)
    RETURNS TABLE (key text[], value numeric, rows bigint, avg numeric)
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 10000 ROWS 100
    AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
CREATE FUNCTION counter_groups(type text, VARIADIC parts \"any\")
    RETURNS TABLE (key text[], value numeric, rows bigint, avg numeric)
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 10000 ROWS 100
    AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn counter_groups(
    type_name: Option<Text>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> TableIterator<
    'static,
    (
        name!(key, Vec<Option<NameOut>>),
        name!(value, AnyNumeric),
        name!(rows, i64),
        name!(avg, Option<AnyNumeric>),
    ),
> {
    let type_name = super::types::type_name(type_name);
    let scale = tables::scale_of(&Catalogs::enter(), &type_name).unwrap_or_else(|| {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                format!("no table is tracked by type \"{type_name}\""),
            )
            .set_hint("SELECT * FROM counter_tracks shows the tracks."),
        )
    });
    let mut prefix = NameBuilder::default();
    prefix.begin(parts::of_parts(type_name.as_bytes()));
    // SAFETY: the call's own arguments.
    let count = unsafe {
        let arguments = (*fcinfo)
            .args
            .as_slice(usize::from((*fcinfo).nargs.unsigned_abs()));
        parts::append_once((*fcinfo).flinfo, &arguments[1..], &mut prefix);
        arguments.len() - 1
    };
    let prefix: Vec<u8> = match count {
        0 => [type_name.as_bytes(), b":"].concat(),
        _ => prefix.finish().to_vec(),
    };
    let mut range = NameRange::all();
    range.starting_with(&prefix);
    let snapshot = snapshot::active_or_latest();
    let mut groups = compare::recorded_in(&range, snapshot.as_ptr());
    groups.retain(|(name, tally)| {
        tally.exists() && (count == 0 || matches!(name.get(prefix.len()), None | Some(b':')))
    });
    groups.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    TableIterator::new(groups.into_iter().map(move |(name, tally)| {
        let value = scaled(tally.value, scale.unwrap_or(0));
        let avg = scale.map(|_| value.clone() / AnyNumeric::from(tally.uses));
        (parts::parts_of(&name), value, tally.uses, avg)
    }))
}

/// A whole number of the smallest unit, with its point.
fn scaled(value: i128, scale: u32) -> AnyNumeric {
    let digits = format!(
        "{:0>width$}",
        value.unsigned_abs(),
        width = scale as usize + 1
    );
    let (whole, fraction) = digits.split_at(digits.len() - scale as usize);
    let sign = if value < 0 { "-" } else { "" };
    let point = if scale > 0 { "." } else { "" };
    AnyNumeric::try_from(format!("{sign}{whole}{point}{fraction}").as_str()).unwrap_or_default()
}
