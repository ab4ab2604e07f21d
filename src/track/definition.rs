//! What `counter_track()` is asked for, and the conditions of the triggers that hold it.
//!
//! # Forms
//! The definition is `counter_key(weight, part, …)`, or `CASE WHEN filter THEN counter_key(weight, part, …) END`:
//! the filter comes first, as the parts of a row that it leaves out may not even be computable. On INSERT and DELETE nothing has to be
//! computed but the filter: `filter AND (true OR definition IS NULL)`, of which the planner leaves the filter.
//! On UPDATE it is `columns differ AND definition over OLD differs from that over NEW`; the columns are asked
//! first where all of them are of types whose equal values are the same bytes.

use crate::pg::compat;
use crate::pg::error::{quoted, raise, report};
use crate::pg::expression::{Condition, Expression, Of, Parts};
use crate::pg::key_text::KeyType;
use crate::pg::relation::Relation;
use crate::track::row::Sum;
use counterx_core::weight::MAX_SCALE;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::ffi::CStr;

/// How the rows of a table are to be counted.
pub struct Definition {
    /// The parts of a group's name.
    pub parts: Vec<Expression>,
    /// Which rows.
    pub filter: Option<Expression>,
    /// What is added up, and digits after the point.
    pub sum: Option<(Expression, u32)>,
}

/// When a trigger fires.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A row has come.
    Insert,
    /// A row has changed.
    Update,
    /// A row has gone.
    Delete,
}

impl Event {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Insert, Self::Update, Self::Delete];

    /// As names of triggers have it.
    pub fn keyword(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }

    /// As the server has it.
    pub fn number(self) -> u32 {
        match self {
            Self::Insert => pg_sys::TRIGGER_TYPE_INSERT,
            Self::Update => pg_sys::TRIGGER_TYPE_UPDATE,
            Self::Delete => pg_sys::TRIGGER_TYPE_DELETE,
        }
    }
}

impl Definition {
    /// Parses and checks what was asked for. The caller has become the table's owner.
    ///
    /// # Errors
    /// As of [`Expression::parse`]; 42804 for types that have no text of their own, or cannot be added up.
    pub fn parse(
        table: &Relation,
        parts: &[String],
        filter: Option<&str>,
        sum: Option<(&str, u32)>,
    ) -> Self {
        let parse = |text: &str| Expression::parse(table, &column_or_expression(table, text));
        let parts: Vec<Expression> = parts.iter().map(|part| parse(part)).collect();
        for part in &parts {
            if let Err(refused) = KeyType::of(part.type_oid()) {
                raise(refused.report())
            }
            if part.is_nondeterministic() {
                raise(
                    report(
                        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                        format!("cannot track rows by the expression {}", part.text()),
                    )
                    .set_detail("Its collation takes different texts for equal, and each of them would be a group.")
                    .set_hint("Give it another one: (name COLLATE \"C\"), or lower(name)."),
                )
            }
        }
        let filter = filter.map(|filter| {
            let filter = parse(filter);
            if filter.type_oid() != pg_sys::BOOLOID {
                raise(
                    report(
                        PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
                        format!("the filter {} is not of type boolean", filter.text()),
                    )
                    .set_hint("Write a condition, such as status = 'open'."),
                )
            }
            filter
        });
        let sum = sum.map(|(sum, scale)| {
            let sum = parse(sum);
            check_sum(&sum, scale);
            (sum, scale)
        });
        Self { parts, filter, sum }
    }

    /// The condition of a trigger. `key` is the function `counter_key`, with its schema.
    pub fn condition(&self, table: &Relation, event: Event, key: &str) -> Condition {
        let mut parts = Parts::default();
        let text = match event {
            Event::Insert => self.filter_and(Of::New, key, &mut parts),
            Event::Delete => self.filter_and(Of::Old, key, &mut parts),
            Event::Update => {
                let differ = self.columns_differ(table);
                let differ = differ
                    .map(|differ| format!("({differ}) AND "))
                    .unwrap_or_default();
                let [old, new] = [Of::Old, Of::New].map(|of| self.over(of, key, &mut parts));
                format!(
                    "{differ}(({old}) COLLATE pg_catalog.\"C\" IS DISTINCT FROM ({new}) COLLATE pg_catalog.\"C\")"
                )
            }
        };
        Condition::new(table, &text, parts)
    }

    fn filter_and(&self, of: Of, key: &str, parts: &mut Parts) -> String {
        let filter = self
            .filter
            .as_ref()
            .map(|filter| format!("{} AND ", parts.put(filter, of)));
        let definition = self.over(of, key, parts);
        format!(
            "{}(true OR ({definition}) IS NULL)",
            filter.unwrap_or_default()
        )
    }

    fn over(&self, of: Of, key: &str, parts: &mut Parts) -> String {
        let filter = self.filter.as_ref().map(|filter| parts.put(filter, of));
        let weight = self
            .sum
            .as_ref()
            .map_or("0".to_owned(), |(sum, _)| parts.put(sum, of));
        let arguments: String = self
            .parts
            .iter()
            .map(|part| format!(", {}", parts.put(part, of)))
            .collect();
        let key = format!("{key}({weight}{arguments})");
        match filter {
            // The server parses it for each statement: what is not needed is not there.
            None => key,
            Some(filter) => format!("CASE WHEN {filter} THEN {key} END"),
        }
    }

    /// None: that would say nothing, as there may be other bytes where there is no difference.
    fn columns_differ(&self, table: &Relation) -> Option<String> {
        let mut expressions: Vec<&Expression> = self.parts.iter().collect();
        expressions.extend(&self.filter);
        expressions.extend(self.sum.as_ref().map(|(sum, _)| sum));
        let mut columns: Vec<i16> = expressions
            .iter()
            .flat_map(|expression| expression.columns())
            .collect();
        columns.sort_unstable();
        columns.dedup();
        // SAFETY: the table is open.
        let attributes = unsafe { compat::attributes((*table.as_ptr()).rd_att) };
        let mut differ = Vec::new();
        for column in columns {
            let attribute = attributes[column as usize - 1];
            if !has_one_image(attribute) {
                return None;
            }
            // SAFETY: a name ends with a zero; the text lives in the current context.
            let name = unsafe {
                let name = pg_sys::quote_identifier(attribute.attname.data.as_ptr());
                CStr::from_ptr(name).to_string_lossy().into_owned()
            };
            differ.push(format!("old.{name} IS DISTINCT FROM new.{name}"));
        }
        (!differ.is_empty()).then(|| differ.join(" OR "))
    }
}

/// Are equal values of a column the same bytes?
fn has_one_image(attribute: &pg_sys::FormData_pg_attribute) -> bool {
    // SAFETY: looks into the catalogs.
    let (type_oid, is_enum, deterministic) = unsafe {
        let type_oid = pg_sys::getBaseType(attribute.atttypid);
        let collation = attribute.attcollation;
        let deterministic =
            collation == pg_sys::InvalidOid || pg_sys::get_collation_isdeterministic(collation);
        // A domain over an enum has no operators in all versions.
        (
            type_oid,
            pg_sys::type_is_enum(attribute.atttypid),
            deterministic,
        )
    };
    let plain = [
        pg_sys::BOOLOID,
        pg_sys::CHAROID,
        pg_sys::INT2OID,
        pg_sys::INT4OID,
        pg_sys::INT8OID,
        pg_sys::OIDOID,
        pg_sys::NAMEOID,
        pg_sys::TEXTOID,
        pg_sys::VARCHAROID,
        pg_sys::UUIDOID,
        pg_sys::DATEOID,
        pg_sys::TIMESTAMPOID,
        pg_sys::TIMESTAMPTZOID,
    ];
    (is_enum || plain.contains(&type_oid)) && deterministic
}

/// The name of a column is that column, however it is written; everything else is an expression.
fn column_or_expression(table: &Relation, text: &str) -> String {
    // SAFETY: the table is open; names end with a zero; the quoted one lives in the current context.
    unsafe {
        for attribute in compat::attributes((*table.as_ptr()).rd_att) {
            let name = CStr::from_ptr(attribute.attname.data.as_ptr());
            if !attribute.attisdropped && name.to_bytes() == text.as_bytes() {
                let quoted = pg_sys::quote_identifier(name.as_ptr());
                return CStr::from_ptr(quoted).to_string_lossy().into_owned();
            }
        }
    }
    text.to_owned()
}

fn check_sum(sum: &Expression, scale: u32) {
    // SAFETY: looks into the catalogs.
    let type_oid = unsafe { pg_sys::getBaseType(sum.type_oid()) };
    if !Sum::POSSIBLE.contains(&type_oid) {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
                format!("{} cannot be added up exactly", quoted(sum.text().as_bytes())),
            )
            .set_detail("Integers and numerics can.")
            .set_hint("Convert it, and say how many digits after the point count: sum => 'amount::numeric(12,2)', scale => 2."),
        )
    }
    if scale > MAX_SCALE {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("scale must be between 0 and {MAX_SCALE}"),
            )
            .set_hint("It is the number of digits after the point that count."),
        )
    }
}
