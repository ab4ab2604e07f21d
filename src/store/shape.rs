//! What others have done to our tables by DDL.
//!
//! Rows are made and taken apart by column numbers, by code that calls the heap and its indexes
//! directly. So a table has to look as the install script has made it, and only the server's own DDL can
//! tell us that it does not. Whoever opens a table of ours, locked, calls [`check`] before anything else:
//! one comparison, unless something was said of the table since the last time. What does not fit is an
//! error that says how to mend it, and never a guess.
//!
//! # What is refused, and what is not
//! - Columns that are missing, renamed, of another type or collation, newly NOT NULL, or that were added.
//!   A column that was added and dropped again stays in the table for good, without a value: rows get a
//!   null for it.
//! - Tables that a crash empties (UNLOGGED), and those of another access method.
//! - Triggers of others where our writes would bypass them and somebody may count on them: tools that copy
//!   a table and apply what changes meanwhile, as pg_repack does. Folds leave lanes alone as long as there
//!   are any on `total` or `state` ([`check_foldable`]). On `token` and `hold`, AFTER ROW triggers are
//!   fired, others refused ([`fires_triggers`]). On logs and `late` they are bypassed: those tables have no
//!   key that such a tool could go by.
//! - Indexes that need the executor: partial, expression and exclusion ones.
//!
//! Everything else changes nothing for us: defaults, CHECK and foreign keys of logs are bypassed, as are
//! row security and rules; storage, statistics, tablespaces, inheritance and ownership are the server's.

use crate::pg::compat;
use crate::pg::error::{quoted, raise, report, sqlstate};
use crate::pg::insert;
use crate::pg::relation::{ACCESS_SHARE, Relation};
use pg_sys::{
    BOOLOID, CHAROID, INT4OID, INT8OID, INTERVALOID, NUMERICOID, TEXTOID, TIMESTAMPTZOID, UUIDOID,
};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::cell::Cell;

/// A column as `sql/tables.sql` has it.
struct Column {
    name: &'static str,
    type_: pg_sys::Oid,
    nullable: bool,
}

const fn column(name: &'static str, type_: pg_sys::Oid) -> Column {
    Column {
        name,
        type_,
        nullable: false,
    }
}

const fn nullable(name: &'static str, type_: pg_sys::Oid) -> Column {
    Column {
        name,
        type_,
        nullable: true,
    }
}

const LOG: &[Column] = &[
    column("epoch", INT8OID),
    column("at", TIMESTAMPTZOID),
    column("delta", INT8OID),
    column("name", TEXTOID),
    nullable("uses", INT8OID),
    nullable("kind", CHAROID),
];
const GATE: &[Column] = &[column("gate", INT8OID), column("truncated", INT8OID)];
const LATE: &[Column] = &[
    column("name", TEXTOID),
    column("delta", INT8OID),
    column("at", TIMESTAMPTZOID),
    nullable("uses", INT8OID),
    nullable("kind", CHAROID),
];
const TOKEN: &[Column] = &[
    column("token", TEXTOID),
    column("name", TEXTOID),
    column("delta", INT8OID),
    nullable("value", INT8OID),
    column("at", TIMESTAMPTZOID),
    nullable("hold", BOOLOID),
];
const TOTAL: &[Column] = &[
    column("name", TEXTOID),
    column("gen", INT8OID),
    column("value", NUMERICOID),
    column("uses", INT8OID),
];
const STATE: &[Column] = &[
    column("lane", INT4OID),
    column("gen", INT8OID),
    column("folded_epoch", INT8OID),
    column("folds", INT8OID),
    column("deltas_folded", INT8OID),
    nullable("last_fold_at", TIMESTAMPTZOID),
    nullable("last_fold_us", INT8OID),
    nullable("last_error", TEXTOID),
    nullable("last_error_at", TIMESTAMPTZOID),
    nullable("sealed_until", TIMESTAMPTZOID),
    nullable("counted_until", TIMESTAMPTZOID),
];
const TYPE: &[Column] = &[
    column("name", TEXTOID),
    nullable("min", INT8OID),
    nullable("max", INT8OID),
    nullable("description", TEXTOID),
    column("generation", INT8OID),
    column("tracked", BOOLOID),
    nullable("per", INTERVALOID),
    nullable("zone", TEXTOID),
    column("kept", INT4OID),
    column("sliding", BOOLOID),
    column("count_refused", BOOLOID),
    nullable("removed_until", TIMESTAMPTZOID),
];
const WINDOW_CLOCK: &[Column] = &[column("removed", INT8OID), column("looked", INT8OID)];
const HOLD: &[Column] = &[
    column("id", INT8OID),
    column("name", TEXTOID),
    column("amount", INT8OID),
    column("created_at", TIMESTAMPTZOID),
    column("expires_at", TIMESTAMPTZOID),
];
const HISTORY: &[Column] = &[
    column("id", INT8OID),
    column("type", TEXTOID),
    column("unit", TEXTOID),
    nullable("keep", INTERVALOID),
    column("class", INT4OID),
    column("zone", TEXTOID),
    nullable("since", TIMESTAMPTZOID),
    nullable("complete", TIMESTAMPTZOID),
];
const HISTORY_CLASS: &[Column] = &[
    column("history", INT8OID),
    column("class", INT4OID),
    nullable("until", TIMESTAMPTZOID),
];
const HISTORY_LANE: &[Column] = &[
    column("history", INT8OID),
    column("lane", INT4OID),
    column("epoch", INT8OID),
    column("at", TIMESTAMPTZOID),
    nullable("since", TIMESTAMPTZOID),
];
const EXPIRED: &[Column] = &[column("class", INT4OID), column("through", TIMESTAMPTZOID)];
const CUT: &[Column] = &[
    column("class_0", INT8OID),
    column("class_1", INT8OID),
    column("class_2", INT8OID),
    column("class_3", INT8OID),
];
const BUCKET: &[Column] = &[
    column("history", INT8OID),
    column("start", TIMESTAMPTZOID),
    column("changes", INT8OID),
    column("name", TEXTOID),
    column("value", NUMERICOID),
    column("delta", NUMERICOID),
    column("adjusted", NUMERICOID),
    column("ups", NUMERICOID),
    column("downs", NUMERICOID),
];

const STREAM: &[Column] = &[
    column("name", TEXTOID),
    column("prefix", TEXTOID),
    column("mode", TEXTOID),
    column("keep", INTERVALOID),
    column("notify", BOOLOID),
    column("publish", BOOLOID),
    column("consumer", TEXTOID),
    column("created_at", TIMESTAMPTZOID),
];
const ALERT: &[Column] = &[
    column("id", INT8OID),
    column("name", TEXTOID),
    column("prefix", TEXTOID),
    nullable("below", INT8OID),
    nullable("above", INT8OID),
    column("rearm", INT8OID),
    nullable("stream", TEXTOID),
    column("created_at", TIMESTAMPTZOID),
];
const CURSOR: &[Column] = &[
    column("stream", TEXTOID),
    column("lane", INT4OID),
    column("fold", INT8OID),
    column("seq", INT8OID),
    column("era", INT8OID),
    column("incarnation", UUIDOID),
    nullable("lost_reason", TEXTOID),
];
const ALERT_STATE: &[Column] = &[
    column("alert", INT8OID),
    column("name", TEXTOID),
    column("lane", INT4OID),
    column("value", NUMERICOID),
    column("since", TIMESTAMPTZOID),
];
const ALERT_LANE: &[Column] = &[
    column("alert", INT8OID),
    column("lane", INT4OID),
    column("fired", INT8OID),
    column("last_fired_at", TIMESTAMPTZOID),
];
const CHANGE: &[Column] = &[
    column("fold", INT8OID),
    column("seq", INT8OID),
    column("at", TIMESTAMPTZOID),
    column("name", TEXTOID),
    column("delta", NUMERICOID),
    column("value", NUMERICOID),
    column("kind", CHAROID),
    nullable("alert", TEXTOID),
    nullable("stream", TEXTOID),
];
const STREAM_CELL: &[Column] = &[
    column("side_0", INT8OID),
    column("gone_0", INT8OID),
    column("why_0", INT8OID),
    column("side_1", INT8OID),
    column("gone_1", INT8OID),
    column("why_1", INT8OID),
    column("side_2", INT8OID),
    column("gone_2", INT8OID),
    column("why_2", INT8OID),
    column("side_3", INT8OID),
    column("gone_3", INT8OID),
    column("why_3", INT8OID),
    column("side_4", INT8OID),
    column("gone_4", INT8OID),
    column("why_4", INT8OID),
    column("side_5", INT8OID),
    column("gone_5", INT8OID),
    column("why_5", INT8OID),
    column("side_6", INT8OID),
    column("gone_6", INT8OID),
    column("why_6", INT8OID),
    column("side_7", INT8OID),
    column("gone_7", INT8OID),
    column("why_7", INT8OID),
];

/// None: a relation of which nothing has to be known, such as the anchor.
fn columns_of(table: &[u8]) -> Option<&'static [Column]> {
    Some(match table {
        b"total" => TOTAL,
        b"state" => STATE,
        b"late" => LATE,
        b"token" => TOKEN,
        b"type" => TYPE,
        b"hold" => HOLD,
        b"history" => HISTORY,
        b"history_class" => HISTORY_CLASS,
        b"history_lane" => HISTORY_LANE,
        b"expired" => EXPIRED,
        b"cut" => CUT,
        b"window_clock" => WINDOW_CLOCK,
        b"stream" => STREAM,
        b"alert" => ALERT,
        b"cursor" => CURSOR,
        b"alert_state" => ALERT_STATE,
        b"alert_lane" => ALERT_LANE,
        b"stream_cell" => STREAM_CELL,
        change if change.starts_with(b"change_") => CHANGE,
        bucket if bucket.starts_with(b"bucket_") => BUCKET,
        log if log.starts_with(b"log_") => LOG,
        gate if gate.starts_with(b"gate_") => GATE,
        _ => return None,
    })
}

/// Tables that were checked, by the lowest bits of their OIDs, which an install script hands out one after
/// the other; and whether they have triggers of others: [`FIRES`] in the upper half.
const ROOM: usize = 256;

const FIRES: u64 = 1 << 32;

thread_local! {
    static CHECKED: [Cell<u64>; ROOM] = const { [const { Cell::new(0) }; ROOM] };
}

/// Something was said of this relation, or of all. Neither allocates nor fails.
pub fn forget(oid: pg_sys::Oid) {
    CHECKED.with(|checked| match oid {
        pg_sys::InvalidOid => checked.iter().for_each(|known| known.set(0)),
        oid => checked[slot(oid)].set(0),
    });
}

fn slot(oid: pg_sys::Oid) -> usize {
    oid.to_u32() as usize % ROOM
}

fn known(oid: pg_sys::Oid) -> Option<u64> {
    let known = CHECKED.with(|checked| checked[slot(oid)].get());
    (known as u32 == oid.to_u32()).then_some(known)
}

/// Checks an open relation of ours, if that was not done before. It is locked, in any mode.
///
/// # Errors
/// Raises 55000 when it is not as we need it.
pub fn check(table: &Relation) {
    if known(table.oid()).is_none() {
        check_anew(table);
    }
}

/// Is an open relation of ours as we need it?
pub fn fits(table: &Relation) -> bool {
    known(table.oid()).is_some()
        || columns_of(&table.name()).is_none_or(|columns| misfit(table, columns).is_none())
}

/// Does the table have triggers of others, which are to be fired for each row that we insert or delete?
/// It is locked for writing. [`check`] is part of it.
///
/// # Errors
/// As of [`check`], and 0A000 when there are triggers that cannot be fired.
pub fn fires_triggers(table: &Relation) -> bool {
    let known = known(table.oid()).unwrap_or_else(|| check_anew(table));
    if known & FIRES == 0 {
        return false;
    }
    let others = triggers_of_others(table);
    if let Some(trigger) = others.iter().find(|trigger| !trigger.is_after_row()) {
        let refusal = trigger.refusal(table).report();
        raise(refusal.set_detail("It is of another kind than AFTER ... FOR EACH ROW."));
    }
    true
}

#[cold]
#[inline(never)]
fn check_anew(table: &Relation) -> u64 {
    // What is heard of meanwhile may be about this table.
    let before = heard();
    let name = table.name();
    if let Some(columns) = columns_of(&name)
        && let Some(report) = misfit(table, columns)
    {
        raise(report);
    }
    let fires = matches!(&name[..], b"token" | b"hold") && !triggers_of_others(table).is_empty();
    let known = u64::from(table.oid().to_u32()) | if fires { FIRES } else { 0 };
    if heard() == before {
        CHECKED.with(|checked| checked[slot(table.oid())].set(known));
    }
    known
}

fn heard() -> u64 {
    // SAFETY: a counter of this process.
    unsafe { pg_sys::SharedInvalidMessageCounter }
}

fn qualified(table: &Relation) -> String {
    String::from_utf8_lossy(&table.name()).into_owned()
}

/// Something that others have put on a table, and that we would bypass.
pub struct Refusal {
    message: String,
    hint: String,
}

impl Refusal {
    fn new(table: &Relation, what: &str, hint: String) -> Self {
        let table = qualified(table);
        let message =
            format!("table counterx.{table} {what}, which the extension counterx cannot work with");
        Self { message, hint }
    }

    fn report(self) -> ErrorReport {
        report(Self::CODE, self.message).set_hint(self.hint)
    }

    const CODE: PgSqlErrorCode = PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED;

    /// Raises it as an error: 0A000.
    pub fn raise(self) -> ! {
        raise(self.report())
    }

    /// SQLSTATE and message.
    pub fn message(&self) -> String {
        format!("{}: {}", sqlstate(Self::CODE), self.message)
    }

    /// What to do.
    pub fn hint(&self) -> &str {
        &self.hint
    }
}

/// What is not as the install script made it.
fn misfit(table: &Relation, expected: &[Column]) -> Option<ErrorReport> {
    let name = qualified(table);
    let misfit = |detail: String, hint: String| {
        report(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("table counterx.{name} is not as the extension counterx has made it"),
        )
        .set_detail(detail)
        .set_hint(hint)
    };
    let alter = |action: String| format!("ALTER TABLE counterx.{name} {action} makes it so again.");
    // SAFETY: an open relation has its row of pg_class.
    let (persistence, method) = unsafe {
        let form = &*(*table.as_ptr()).rd_rel;
        (form.relpersistence as u8, form.relam)
    };
    if persistence != pg_sys::RELPERSISTENCE_PERMANENT {
        return Some(misfit(
            "It is unlogged: a crash would empty it.".to_owned(),
            alter("SET LOGGED".to_owned()),
        ));
    }
    if method != pg_sys::HEAP_TABLE_AM_OID {
        return Some(misfit(
            "Its access method is another one than heap.".to_owned(),
            alter("SET ACCESS METHOD heap".to_owned()),
        ));
    }
    // SAFETY: the relation is open as long as `table` lives, and locked: its columns stay.
    let attributes = unsafe { compat::attributes(table.tuple_desc()) };
    for (at, attribute) in attributes.iter().enumerate() {
        let found = attribute_name(attribute);
        let Some(wanted) = expected.get(at) else {
            // Of one that was dropped nothing is left but its place.
            if attribute.attisdropped {
                continue;
            }
            return Some(misfit(
                format!("Column {} was added.", quoted(&found)),
                alter(format!("DROP COLUMN {}", quoted(&found))),
            ));
        };
        let column = wanted.name;
        if attribute.attisdropped {
            return Some(misfit(
                format!("Column \"{column}\" was dropped, and its values with it."),
                "Restore a backup; or save what can be read, and drop and create the extension."
                    .to_owned(),
            ));
        }
        if found != column.as_bytes() {
            return Some(misfit(
                format!("Column \"{column}\" has got the name {}.", quoted(&found)),
                alter(format!("RENAME COLUMN {} TO \"{column}\"", quoted(&found))),
            ));
        }
        let is_text = wanted.type_ == TEXTOID;
        let collated = is_text
            && matches!(
                column,
                "name" | "token" | "type" | "unit" | "prefix" | "stream" | "alert"
            );
        if attribute.atttypid != wanted.type_
            || attribute.atttypmod != -1
            || (collated && attribute.attcollation != pg_sys::C_COLLATION_OID)
        {
            let collate = if collated { " COLLATE \"C\"" } else { "" };
            let type_ = type_name(wanted.type_);
            return Some(misfit(
                format!("Column \"{column}\" has got another type or collation."),
                alter(format!("ALTER COLUMN \"{column}\" TYPE {type_}{collate}")),
            ));
        }
        if attribute.attnotnull && wanted.nullable {
            return Some(misfit(
                format!("Column \"{column}\" has got a NOT NULL constraint."),
                alter(format!("ALTER COLUMN \"{column}\" DROP NOT NULL")),
            ));
        }
    }
    // Columns never go from the end.
    debug_assert!(attributes.len() >= expected.len());
    None
}

/// How to make the index of one of our tables again, for a hint.
pub fn index_definition(table: &Relation, key: &[i16]) -> String {
    let name = table.name();
    let columns = columns_of(&name).unwrap_or_default();
    let names: Vec<&str> = key
        .iter()
        .filter_map(|at| Some(columns.get(usize::from(at.unsigned_abs()) - 1)?.name))
        .collect();
    let unique = match (&name[..], &names[..]) {
        (
            b"total" | b"state" | b"expired" | b"history_lane" | b"alert_state" | b"alert_lane",
            _,
        )
        | (b"token", ["token"])
        | (b"hold", ["id"]) => "UNIQUE ",
        (bucket, _) if bucket.starts_with(b"bucket_") => "UNIQUE ",
        _ => "",
    };
    format!(
        "CREATE {unique}INDEX ON counterx.{} ({})",
        qualified(table),
        names.join(", ")
    )
}

fn type_name(type_: pg_sys::Oid) -> &'static str {
    match type_ {
        BOOLOID => "boolean",
        CHAROID => "\"char\"",
        INT4OID => "integer",
        INT8OID => "bigint",
        INTERVALOID => "interval",
        NUMERICOID => "numeric",
        TEXTOID => "text",
        UUIDOID => "uuid",
        _ => "timestamptz",
    }
}

fn attribute_name(attribute: &pg_sys::FormData_pg_attribute) -> Vec<u8> {
    // SAFETY: a name ends with a zero.
    let name = unsafe { core::ffi::CStr::from_ptr(attribute.attname.data.as_ptr()) };
    name.to_bytes().to_vec()
}

/// A trigger that somebody has put on a table of ours.
struct OthersTrigger {
    name: Vec<u8>,
    kind: u32,
    has_transition_table: bool,
    is_constraint: bool,
}

impl OthersTrigger {
    fn is_after_row(&self) -> bool {
        self.kind & pg_sys::TRIGGER_TYPE_ROW != 0
            && self.kind & pg_sys::TRIGGER_TYPE_BEFORE == 0
            && !self.has_transition_table
    }

    fn refusal(&self, table: &Relation) -> Refusal {
        let what = format!("has the trigger {}", quoted(&self.name));
        Refusal::new(table, &what, self.hint(table))
    }

    fn hint(&self, table: &Relation) -> String {
        let table = qualified(table);
        if self.is_constraint {
            return format!(
                "Drop the foreign key that belongs to it; \\d counterx.{table} shows it."
            );
        }
        format!(
            "DROP TRIGGER {} ON counterx.{table} removes it. One of a tool that is at work, such as pg_repack, goes when the tool has finished.",
            quoted(&self.name)
        )
    }
}

/// The triggers on rows that are not the extension's, and not disabled. Those on TRUNCATE do not count.
fn triggers_of_others(table: &Relation) -> Vec<OthersTrigger> {
    let mut found = Vec::new();
    // SAFETY: the relation is open. What its entry has of triggers goes when the entry is built anew, as it
    // may be by a look-up: so all is copied before there is any.
    unsafe {
        let all = (*table.as_ptr()).trigdesc;
        if all.is_null() {
            return Vec::new();
        }
        for at in 0..(*all).numtriggers as usize {
            let trigger = &*(*all).triggers.add(at);
            let kind = trigger.tgtype as u32;
            let changes = pg_sys::TRIGGER_TYPE_INSERT
                | pg_sys::TRIGGER_TYPE_UPDATE
                | pg_sys::TRIGGER_TYPE_DELETE;
            if trigger.tgenabled as u8 == pg_sys::TRIGGER_DISABLED || kind & changes == 0 {
                continue;
            }
            let other = OthersTrigger {
                name: core::ffi::CStr::from_ptr(trigger.tgname)
                    .to_bytes()
                    .to_vec(),
                kind,
                has_transition_table: !trigger.tgoldtable.is_null()
                    || !trigger.tgnewtable.is_null(),
                is_constraint: trigger.tgisinternal,
            };
            found.push((trigger.tgfoid, other));
        }
    }
    if found.is_empty() {
        return Vec::new();
    }
    // SAFETY: look-ups in system catalogs.
    let ours = unsafe { pg_sys::get_extension_oid(c"counterx".as_ptr(), true) };
    found.retain(|&(function, _)| {
        // SAFETY: as above.
        let owner = unsafe { pg_sys::getExtensionOfObject(pg_sys::ProcedureRelationId, function) };
        owner != ours
    });
    found.into_iter().map(|(_, other)| other).collect()
}

/// Checks that folds may write to this table, `total`, `state` or one of history: nobody's triggers would be bypassed, and
/// its indexes need no executor. It is locked for writing, so that stays so to the end of the transaction.
///
/// # Errors
/// What is in the way. Raises 55000 as of [`check`].
pub fn check_foldable(table: &Relation) -> Result<(), Refusal> {
    check(table);
    if let Some(trigger) = triggers_of_others(table).first() {
        return Err(trigger.refusal(table));
    }
    for index in table.index_oids() {
        if let Some(index) = Relation::open_until_commit(index, ACCESS_SHARE)
            && !insert::is_plain_index(&index)
        {
            let name = String::from_utf8_lossy(&index.name()).into_owned();
            let what = format!("has the index \"{name}\", a partial, expression or exclusion one");
            let hint = format!(
                "DROP INDEX counterx.\"{name}\" removes it; that of a constraint goes with the constraint."
            );
            return Err(Refusal::new(table, &what, hint));
        }
    }
    Ok(())
}
