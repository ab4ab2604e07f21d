//! Making a row trigger whose condition has been parsed before.
//!
//! The command that does it takes a text, and parses that as whoever runs it: see `expression.rs`.

use super::error::{raise, report};
use super::expression::Condition;
use super::relation::Relation;
use super::user::ActingAs;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::ffi::CString;

/// What a trigger is to be like. It fires after the event, for each row, in every session.
pub struct RowTrigger<'a> {
    /// Its name.
    pub name: &'a str,
    /// May there be one of that name, which goes?
    pub replaces: bool,
    /// When it fires: one of the server's `TRIGGER_TYPE_*`.
    pub event: u32,
    /// What it calls.
    pub function: pg_sys::Oid,
    /// With these arguments.
    pub arguments: &'a [&'a str],
    /// For which rows.
    pub condition: &'a Condition,
}

/// Has a partitioned table's description in the cache, with the expressions of its key, which are folded when that
/// is made: functions in them run as the table's owner. It stays as long as the table is open.
pub fn know_partitions(table: &Relation) {
    let _owner = ActingAs::owner_of(table);
    // SAFETY: the table is open and locked.
    unsafe { pg_sys::RelationGetPartitionDesc(table.as_ptr(), true) };
}

impl RowTrigger<'_> {
    /// Makes it, on a table and its partitions, as CREATE TRIGGER does. The table is locked for that.
    ///
    /// # Errors
    /// Those of CREATE TRIGGER.
    pub fn make(&self, table: pg_sys::Oid) {
        let (Ok(name), Ok(arguments)) = (
            CString::new(self.name),
            self.arguments
                .iter()
                .map(|&argument| CString::new(argument))
                .collect::<Result<Vec<_>, _>>(),
        ) else {
            // No text of the server's has one.
            raise(report(
                PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
                "a trigger's name or argument has a zero byte",
            ))
        };
        let none = pg_sys::InvalidOid;
        // SAFETY: a statement as the grammar makes it, whose parts live in the current context, and so does the
        // condition. What an expression over OLD and NEW depends on, the command notes only where it has parsed it.
        unsafe {
            let mut statement = pg_sys::CreateTrigStmt {
                type_: pg_sys::NodeTag::T_CreateTrigStmt,
                replace: self.replaces,
                trigname: pg_sys::pstrdup(name.as_ptr()),
                row: true,
                timing: pg_sys::TRIGGER_TYPE_AFTER as i16,
                events: self.event as i16,
                ..Default::default()
            };
            for argument in &arguments {
                let text = pg_sys::makeString(pg_sys::pstrdup(argument.as_ptr()));
                statement.args = pg_sys::lappend(statement.args, text.cast());
            }
            let made = pg_sys::CreateTriggerFiringOn(
                &mut statement,
                std::ptr::null(),
                table,
                none,
                none,
                none,
                self.function,
                none,
                self.condition.node,
                false,
                false,
                pg_sys::TRIGGER_FIRES_ALWAYS as core::ffi::c_char,
            );
            pg_sys::recordDependencyOnExpr(
                &made,
                self.condition.node,
                self.condition.tables,
                pg_sys::DependencyType::DEPENDENCY_NORMAL,
            );
            pg_sys::CommandCounterIncrement();
        }
    }
}
