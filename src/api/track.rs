//! Tracked tables: `counter_track()` and its relatives.

use super::args::{self, NameOut, Text, TextArray};
use crate::bounds::types;
use crate::pg::error::{quoted, raise, report};
use crate::pg::guc_scope::GucScope;
use crate::pg::number::numeric;
use crate::pg::ports;
use crate::pg::relation::{Relation, SHARE_ROW_EXCLUSIVE};
use crate::pg::snapshot::{self, CurrentSnapshot, LatestSnapshot};
use crate::pg::user::ActingAs;
use crate::track::compare::Difference;
use crate::track::definition::Definition;
use crate::track::fill::{self, Locked, NotNow};
use crate::track::tables::{self, Catalogs, Track};
use crate::write::{change, writing};
use pgrx::iter::TableIterator;
use pgrx::prelude::*;
use pgrx::{AnyNumeric, FromDatum, PgSqlErrorCode, pg_sys};

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

/// Locks a table against writers, so that all who write later see its triggers.
///
/// # Errors
/// Raises 55P03 when others keep it for too long, and names them.
fn lock_against_writers(table: &Relation) -> Relation {
    let oid = table.oid();
    if let Some(locked) = Relation::open_if_free(oid, SHARE_ROW_EXCLUSIVE) {
        return locked;
    }
    let holders = {
        let catalogs = Catalogs::enter();
        tables::holders(&catalogs, oid)
    };
    // The server asks an autovacuum to make room only when it looks for deadlocks.
    let _patience = GucScope::enter(&[(c"lock_timeout", c"500ms"), (c"deadlock_timeout", c"100ms")]);
    let name = tables::shown(table);
    let waited = PgTryBuilder::new(|| Relation::open_until_commit(oid, SHARE_ROW_EXCLUSIVE))
        .catch_when(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, move |_| {
            raise(
                report(
                    PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
                    format!("could not lock table {name} against writers in 500 ms"),
                )
                .set_detail(format!("It was in use by {holders}."))
                .set_hint("Nothing was changed. Try again, or end that transaction first."),
            )
        })
        .execute();
    waited.unwrap_or_else(|| {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
                "the table was dropped meanwhile",
            )
            .set_hint("Name a table."),
        )
    })
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
    let key = key_of(key);
    let (sum, filter) = (text(sum), text(filter));
    let scale = u32::try_from(scale.unwrap_or(0)).unwrap_or(u32::MAX);
    let table = {
        let table = owned(table);
        lock_against_writers(&table)
    };
    let definition = {
        let _owner = ActingAs::owner_of(&table);
        let sum = sum.as_deref().map(|sum| (sum, scale));
        Definition::parse(&table, &key, filter.as_deref(), sum)
    };
    let catalogs = Catalogs::enter();
    tables::check_table(&catalogs, &table);
    tables::take_type(&catalogs, &type_name, adopt.unwrap_or(false));
    types::changed();
    let conditions = tables::conditions(&catalogs, &table, &definition);
    // Nobody may have it open who makes a trigger on it; the lock stays.
    let table = {
        let oid = table.oid();
        drop(table);
        oid
    };
    let scale = definition.sum.as_ref().map(|(_, scale)| *scale);
    tables::make_triggers(&catalogs, table, &type_name, &conditions, scale);
    tables::add(&catalogs, table, &type_name, &key, &definition);
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
    let table = {
        let table = owned(table);
        lock_against_writers(&table)
    };
    let catalogs = Catalogs::enter();
    let tracks = tracks_of(&catalogs, &table, type_name);
    drop(table);
    for track in tracks {
        tables::drop_triggers(&catalogs, &track.type_name);
        if !keep.unwrap_or(false) {
            fill::forget(&track);
        }
        tables::remove(&catalogs, &track.type_name);
    }
    types::changed();
    true
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
            let locked = Locked::take(&catalogs, table.oid()).unwrap_or_else(|| raise_locked(&table));
            let snapshot = snapshot_of_comparison();
            let compared = locked.compare(&catalogs, &track.type_name, snapshot.as_ptr(), |_| {});
            let (differences, _) =
                compared.unwrap_or_else(|| raise_trouble(&table, "a trigger is missing"));
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
            match fill::fill(&catalogs, &track, table.oid()) {
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
