//! From a row to the counter of its group.
//!
//! The definition is where the server keeps it right: in the WHEN condition of the table's own triggers.
//! It follows renames, is mapped to the columns of each partition, keeps columns from being dropped that
//! it needs, and is dumped and restored as a part of the table. Each of the triggers has all of it, in a
//! form in which the server need not compute it again.

use crate::pg::compiled::Compiled;
use crate::pg::error::{raise, report};
use crate::pg::key_text::KeyType;
use crate::pg::memory::MemorySwitch;
use crate::pg::number;
use crate::pg::parsed;
use crate::transaction::pending::Kind;
use crate::write::change;
use counterx_core::lane::NameHash;
use counterx_core::parts::{NameBuilder, TypeName};
use counterx_core::weight::{self, Unsuitable};
use pgrx::{PgSqlErrorCode, pg_sys};
use std::ffi::CStr;

/// How the rows of a table are counted.
pub struct Counting {
    type_name: Vec<u8>,
    sum: Option<Sum>,
    keys: Vec<KeyType>,
    /// Which rows, if not all; what is added up, if anything is; the keys.
    compiled: Compiled,
    has_filter: bool,
    /// One was begun.
    name: NameBuilder,
}

/// What is added up.
pub struct Sum {
    /// Digits after the point.
    scale: u32,
    /// What the numbers are.
    type_oid: pg_sys::Oid,
}

/// What a row is to its group.
pub struct Share<'a> {
    /// The counter of the group.
    pub name: &'a [u8],
    /// What the row adds to it: 1, or its part of a sum.
    pub value: i64,
}

/// What the name of the trigger's function and its arguments say.
struct Arguments {
    type_name: Vec<u8>,
    scale: Option<u32>,
}

impl Arguments {
    /// # Safety
    /// The trigger is a live one.
    unsafe fn of(trigger: &pg_sys::Trigger) -> Option<Self> {
        let text = |at: usize| {
            // SAFETY: so many texts that end with a zero.
            (at < usize::from(trigger.tgnargs.unsigned_abs()))
                .then(|| unsafe { CStr::from_ptr(*trigger.tgargs.add(at)).to_bytes().to_vec() })
        };
        let scale = match text(1) {
            None => None,
            Some(digits) => Some(String::from_utf8(digits).ok()?.parse().ok()?),
        };
        Some(Self {
            type_name: text(0)?,
            scale,
        })
    }
}

fn key_type(oid: pg_sys::Oid) -> KeyType {
    KeyType::of(oid).unwrap_or_else(|refused| raise(refused.report()))
}

/// The type of the counters that a trigger of ours counts in.
///
/// # Safety
/// The trigger is a live one.
pub unsafe fn type_of(trigger: &pg_sys::Trigger) -> Option<Vec<u8>> {
    // SAFETY: the caller's promise.
    unsafe { Arguments::of(trigger) }.map(|arguments| arguments.type_name)
}

/// The column that is the first part of the key, by number. None: the key has no parts, or begins with an expression.
///
/// # Safety
/// The trigger is a live one.
pub unsafe fn leading_column(trigger: &pg_sys::Trigger) -> Option<i16> {
    // SAFETY: the caller's promise; nodes are looked at as what their tags say.
    unsafe {
        let mut node = *definition(trigger)?.parts.first()?;
        if (*node).type_ == pg_sys::NodeTag::T_RelabelType {
            // A varchar is the text that it says; other types may have other texts.
            let relabelled = &*node.cast::<pg_sys::RelabelType>();
            let from = pg_sys::getBaseType(pg_sys::exprType(relabelled.arg.cast()));
            if relabelled.resulttype != pg_sys::TEXTOID || from != pg_sys::VARCHAROID {
                return None;
            }
            node = relabelled.arg.cast();
        }
        ((*node).type_ == pg_sys::NodeTag::T_Var).then(|| (*node.cast::<pg_sys::Var>()).varattno)
    }
}

impl Counting {
    /// By the trigger's condition. What is compiled stays in `memory`, and functions run as whoever is the
    /// current user now.
    ///
    /// # Errors
    /// Raises 55000 for a trigger that `counter_track()` has not made.
    ///
    /// # Safety
    /// The trigger is a live one; the context outlives this value.
    pub unsafe fn of_trigger(trigger: &pg_sys::Trigger, memory: pg_sys::MemoryContext) -> Self {
        // SAFETY: the caller's promise; the definition's nodes are copies in the context.
        unsafe {
            let found = {
                let _switch = MemorySwitch::to(memory);
                Arguments::of(trigger).zip(definition(trigger))
            };
            let is_sound = |(arguments, definition): &(Arguments, Definition)| {
                let type_oid = pg_sys::getBaseType(pg_sys::exprType(definition.weight));
                TypeName::new(&arguments.type_name).is_some()
                    && (arguments.scale.is_none() || Sum::POSSIBLE.contains(&type_oid))
            };
            let Some((arguments, definition)) = found.filter(is_sound) else {
                let name = CStr::from_ptr(trigger.tgname)
                    .to_string_lossy()
                    .into_owned();
                raise(
                    report(
                        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                        format!("trigger \"{name}\" is not one that counter_track() has made"),
                    )
                    .set_hint(
                        "Drop it, and call counter_track() to have the table's rows counted.",
                    ),
                )
            };
            let types: Vec<pg_sys::Oid> = definition
                .parts
                .iter()
                .map(|&part| pg_sys::exprType(part))
                .collect();
            let keys = types.iter().map(|&oid| key_type(oid)).collect();
            let weight_type = pg_sys::getBaseType(pg_sys::exprType(definition.weight));
            let has_filter = definition.filter.is_some();
            let mut nodes: Vec<*mut pg_sys::Node> = definition.filter.into_iter().collect();
            nodes.extend(arguments.scale.is_some().then_some(definition.weight));
            nodes.extend(definition.parts);
            let mut name = NameBuilder::default();
            if let Some(type_name) = TypeName::new(&arguments.type_name) {
                name.begin(type_name);
            }
            Self {
                type_name: arguments.type_name,
                sum: arguments.scale.map(|scale| Sum {
                    scale,
                    type_oid: weight_type,
                }),
                keys,
                compiled: Compiled::of(&nodes, memory),
                has_filter,
                name,
            }
        }
    }

    /// The type of the counters.
    pub fn type_name(&self) -> &[u8] {
        &self.type_name
    }

    /// A row's share. None: it does not count.
    ///
    /// # Errors
    /// Raises what the expressions raise, and 22003 for what cannot be a part of the sum.
    ///
    /// # Safety
    /// The slot has a row of the table.
    pub unsafe fn share(&mut self, slot: *mut pg_sys::TupleTableSlot) -> Option<Share<'_>> {
        let Self {
            type_name,
            sum,
            keys,
            compiled,
            has_filter,
            name,
        } = self;
        // SAFETY: the caller's promise.
        let values = unsafe { compiled.evaluate(slot, *has_filter) }?;
        let values = &values[usize::from(*has_filter)..];
        let (value, parts) = match sum {
            None => (1, values),
            Some(sum) => {
                // SAFETY: a datum of its type.
                let value = values[0].map_or(0, |datum| unsafe { sum.part(datum, type_name) });
                (value, &values[1..])
            }
        };
        name.begin_again();
        for (key, part) in keys.iter().zip(parts) {
            match part {
                None => name.null(),
                // SAFETY: a datum of the key's type.
                Some(datum) => unsafe { key.append(*datum, name) },
            }
        }
        Some(Share {
            name: name.finish(),
            value,
        })
    }

    /// Counts a row that has come, or one that has gone.
    ///
    /// # Errors
    /// As of [`Self::share`] and [`change::add_rows`].
    ///
    /// # Safety
    /// As of [`Self::share`].
    pub unsafe fn count(&mut self, slot: *mut pg_sys::TupleTableSlot, came: bool) {
        // SAFETY: the caller's promise.
        let Some(share) = (unsafe { self.share(slot) }) else {
            return;
        };
        let hash = NameHash::of(share.name);
        let (delta, rows) = if came {
            (share.value, 1)
        } else {
            (-share.value, -1)
        };
        change::add_rows(Kind::Increment, hash, share.name, delta, rows);
    }
}

impl Sum {
    /// What can be added up exactly.
    pub const POSSIBLE: [pg_sys::Oid; 4] = [
        pg_sys::INT2OID,
        pg_sys::INT4OID,
        pg_sys::INT8OID,
        pg_sys::NUMERICOID,
    ];

    /// # Safety
    /// The datum is of its type.
    unsafe fn part(&self, datum: pg_sys::Datum, type_name: &[u8]) -> i64 {
        let scale = self.scale;
        let scaled = match self.type_oid {
            pg_sys::INT2OID => weight::scaled_integer((datum.value() as i16).into(), scale),
            pg_sys::INT4OID => weight::scaled_integer((datum.value() as i32).into(), scale),
            pg_sys::INT8OID => weight::scaled_integer(datum.value() as i64, scale),
            // SAFETY: the caller's promise, and one of the possible types.
            _ => unsafe { number::with_digits(datum, |digits| weight::scaled(digits, scale)) },
        };
        // The least bigint has no opposite, and what is added has to be taken back when the row goes.
        let scaled = scaled.and_then(|value| match value {
            i64::MIN => Err(Unsuitable::OutOfRange),
            value => Ok(value),
        });
        scaled.unwrap_or_else(|why| {
        let why = match why {
            Unsuitable::NotFinite => "It is not a finite number.".to_owned(),
            Unsuitable::TooFine => {
                format!("It has more than {scale} digits after the point, which is the scale of the track.")
            }
            Unsuitable::OutOfRange => "It is out of range.".to_owned(),
        };
        raise(
            report(
                PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
                format!(
                    "a value cannot be added to the tracked sum {}",
                    crate::pg::error::quoted(type_name)
                ),
            )
            .set_detail(why)
            .set_hint("SELECT * FROM counter_tracks shows what is added up. A track cannot change its scale: counter_untrack() ends it, and counter_track() begins another."),
        )
    })
    }
}

/// The parts of a definition, in the condition of a trigger.
struct Definition {
    filter: Option<*mut pg_sys::Node>,
    weight: *mut pg_sys::Node,
    parts: Vec<*mut pg_sys::Node>,
}

/// `counter_key(weight, part, …)`, or `CASE WHEN filter THEN` that `END`: it stands last in the condition, in each
/// of the forms that `definition.rs` makes. What comes before it is somebody's filter.
///
/// # Safety
/// The trigger is a live one.
unsafe fn definition(trigger: &pg_sys::Trigger) -> Option<Definition> {
    // SAFETY: the caller's promise; nodes are looked at as what their tags say.
    unsafe { last_definition(parsed::condition(trigger)) }
}

/// # Safety
/// A live node, or null.
unsafe fn last_definition(node: *mut pg_sys::Node) -> Option<Definition> {
    if node.is_null() {
        return None;
    }
    // SAFETY: as above.
    unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_List => last_definition(members(node.cast()).last()?),
            pg_sys::NodeTag::T_BoolExpr => {
                last_definition((*node.cast::<pg_sys::BoolExpr>()).args.cast())
            }
            pg_sys::NodeTag::T_NullTest => {
                last_definition((*node.cast::<pg_sys::NullTest>()).arg.cast())
            }
            pg_sys::NodeTag::T_DistinctExpr => {
                last_definition((*node.cast::<pg_sys::DistinctExpr>()).args.cast())
            }
            pg_sys::NodeTag::T_CollateExpr => {
                last_definition((*node.cast::<pg_sys::CollateExpr>()).arg.cast())
            }
            pg_sys::NodeTag::T_CaseExpr => {
                let case = &*node.cast::<pg_sys::CaseExpr>();
                let when = members(case.args).next()?.cast::<pg_sys::CaseWhen>();
                let definition = last_definition((*when).result.cast())?;
                Some(Definition {
                    filter: Some((*when).expr.cast()),
                    ..definition
                })
            }
            pg_sys::NodeTag::T_FuncExpr => {
                let call = &*node.cast::<pg_sys::FuncExpr>();
                let name = pg_sys::get_func_name(call.funcid);
                if name.is_null() || CStr::from_ptr(name) != c"counter_key" {
                    return None;
                }
                let mut arguments = members(call.args);
                Some(Definition {
                    filter: None,
                    weight: arguments.next()?,
                    parts: arguments.collect(),
                })
            }
            _ => None,
        }
    }
}

/// # Safety
/// A live list of nodes, or null.
unsafe fn members(list: *mut pg_sys::List) -> impl Iterator<Item = *mut pg_sys::Node> {
    let count = if list.is_null() {
        0
    } else {
        // SAFETY: the caller's promise.
        unsafe { (*list).length as usize }
    };
    // SAFETY: so many members.
    (0..count).map(move |at| unsafe { (*(*list).elements.add(at)).ptr_value.cast() })
}
