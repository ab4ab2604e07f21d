//! Names that are made of parts.

use super::args::{self, NameOut, Text};
use crate::pg::array;
use crate::pg::error::{quoted, raise, report};
use crate::pg::function::version_1;
use crate::pg::key_text::KeyType;
use crate::pg::varlena::{text_bytes, text_datum};
use counterx_core::parts::{MAX_KEPT_BYTES, NameBuilder, Part, TypeName, split};
use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_guard, pg_sys};

version_1!(pg_finfo_counterx_name);

/// `counter_name(type text, VARIADIC parts "any")`, by the server's own calling convention: the bindings know no
/// arguments of any type.
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_name(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: what the server has called us with: a text, and one or more of any type.
    let (type_name, parts, function) = unsafe {
        let count = usize::try_from((*fcinfo).nargs).unwrap_or_default();
        let arguments = (*fcinfo).args.as_slice(count);
        let (first, parts) = arguments.split_first().unwrap_or_else(|| no_parts());
        let type_name = (!first.isnull).then(|| Text(text_bytes(first.value)));
        (args::type_name(type_name), parts, (*fcinfo).flinfo)
    };
    let mut name = NameBuilder::default();
    name.begin(of_parts(type_name));
    // SAFETY: the call's own arguments, and the function that it is of.
    unsafe { append_all(function, parts, &mut name) };
    text_datum(name.finish())
}

/// A type whose counters' names can be made of parts.
///
/// # Errors
/// Raises 22023 when its name is too long for that.
pub fn of_parts(type_name: &[u8]) -> TypeName<'_> {
    TypeName::new(type_name).unwrap_or_else(|| {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                "name of a counter type is too long for names that are made of parts",
            )
            .set_detail(format!(
                "It has {} bytes, the maximum is {MAX_KEPT_BYTES}.",
                type_name.len()
            ))
            .set_hint("Use a shorter name of a type."),
        )
    })
}

/// The same for a function that keeps something else from call to call.
///
/// # Safety
/// As of [`append_all`].
pub unsafe fn append_once(
    function: *mut pg_sys::FmgrInfo,
    parts: &[pg_sys::NullableDatum],
    name: &mut NameBuilder,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if pg_sys::get_fn_expr_variadic(function) {
            return append_elements(parts, name);
        }
        for (index, part) in parts.iter().enumerate() {
            match part.isnull {
                true => name.null(),
                false => key_type(function, index).append(part.value, name),
            }
        }
    }
}

/// Adds the arguments from the second one on, or the elements of the array that is in their place.
///
/// # Safety
/// The arguments are those of a call of the function, from the second one on.
unsafe fn append_all(
    function: *mut pg_sys::FmgrInfo,
    parts: &[pg_sys::NullableDatum],
    name: &mut NameBuilder,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if pg_sys::get_fn_expr_variadic(function) {
            append_elements(parts, name);
        } else {
            let keys = key_types(function, parts.len());
            for (part, key) in parts.iter().zip(keys) {
                match part.isnull {
                    true => name.null(),
                    false => key.append(part.value, name),
                }
            }
        }
    }
}

fn no_parts() -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "a counter name has one part or more",
        )
        .set_hint("A name of one empty part is what counter_name(type, '') makes."),
    )
}

/// `VARIADIC array`: each element is a part.
///
/// # Safety
/// The arguments of such a call.
unsafe fn append_elements(parts: &[pg_sys::NullableDatum], name: &mut NameBuilder) {
    let array = parts.first().filter(|array| !array.isnull);
    let array = args::required("array of parts", array);
    // SAFETY: the server has made sure that it is an array, and its elements are of the type that it says.
    unsafe {
        let (of, elements) = array::any(array.value)
            .unwrap_or_else(|dimensions| args::raise_dimensions("parts", dimensions));
        if elements.is_empty() {
            no_parts();
        }
        let key = KeyType::of(of).unwrap_or_else(|refused| raise(refused.report()));
        for element in elements {
            match element {
                None => name.null(),
                Some(value) => key.append(value, name),
            }
        }
    }
}

/// How the parts of a call become text: found out at its first row, and kept for the others.
///
/// # Safety
/// The function has this many arguments behind the first, and lives as long as the result is used.
unsafe fn key_types<'a>(function: *mut pg_sys::FmgrInfo, count: usize) -> &'a [KeyType] {
    if function.is_null() {
        raise_unknown_types();
    }
    // SAFETY: what is kept is an array of so many, in the context of the function, and nobody else's.
    unsafe {
        if (*function).fn_extra.is_null() {
            let size = size_of::<KeyType>() * count;
            let kept = pg_sys::MemoryContextAlloc((*function).fn_mcxt, size).cast::<KeyType>();
            for index in 0..count {
                kept.add(index).write(key_type(function, index));
            }
            (*function).fn_extra = kept.cast();
        }
        std::slice::from_raw_parts((*function).fn_extra.cast(), count)
    }
}

/// # Safety
/// The function has so many arguments behind the first one.
unsafe fn key_type(function: *mut pg_sys::FmgrInfo, index: usize) -> KeyType {
    // SAFETY: the caller's promise. The type comes first.
    let of = unsafe { pg_sys::get_fn_expr_argtype(function, index as i32 + 1) };
    if of == pg_sys::InvalidOid {
        raise_unknown_types();
    }
    KeyType::of(of).unwrap_or_else(|refused| raise(refused.report()))
}

/// Somebody has called the function past SQL.
fn raise_unknown_types() -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_INDETERMINATE_DATATYPE,
            "could not determine the types of the parts of a counter name",
        )
        .set_hint("Call counter_name() in SQL."),
    )
}

#[pg_extern(immutable, parallel_safe)]
fn counter_parts(name: Option<Text>) -> Vec<Option<NameOut>> {
    let name = args::name(name);
    let Some((_, parts)) = split(name) else {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("counter name {} is not made of parts", quoted(name)),
            )
            .set_detail("Such a name is a counter type and one part or more, each after a colon; % is only in %25, %3A and %NULL.")
            .set_hint("counter_name() makes such names."),
        )
    };
    texts(parts)
}

fn texts(parts: Vec<Part>) -> Vec<Option<NameOut>> {
    let parts = parts.into_iter().map(|part| match part {
        Part::Null => None,
        Part::Text(text) => Some(NameOut(text.into())),
        Part::Rest(rest) => Some(NameOut(rest.into())),
    });
    parts.collect()
}

/// The parts of a name that parts make; of another one, the name.
pub fn parts_of(name: &[u8]) -> Vec<Option<NameOut>> {
    match split(name) {
        Some((_, parts)) => texts(parts),
        None => vec![Some(NameOut(name.into()))],
    }
}
