//! Arguments, as they come from SQL, and their checks.

use crate::pg::array;
use crate::pg::error::{beginning, quoted, raise, report};
use crate::pg::json::{self, Member};
use crate::pg::room;
use crate::pg::time;
use crate::pg::varlena::{text_bytes, text_datum};
use crate::store::catalog;
use counterx_core::lane::MAX_NAME_BYTES;
use counterx_core::names::NameRange;
use counterx_core::parts::is_type_name;
use pgrx::callconv::{Arg, ArgAbi, BoxRet, FcInfo};
use pgrx::datum::Datum;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::{IntoDatum, PgSqlErrorCode, direct_function_call_as_datum, pg_sys};
use std::marker::PhantomData;

/// A text: its bytes, in the database's encoding.
pub struct Text<'a>(pub &'a [u8]);

// SAFETY: the SQL type is text, and the datum is read as such.
unsafe impl SqlTranslatable for Text<'_> {
    const TYPE_IDENT: &'static str = "counterx::Text";
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal("TEXT"));
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> =
        Ok(ReturnsRef::One(SqlMappingRef::literal("TEXT")));
}

// SAFETY: detoasting yields a plain text, which lives as long as the function's memory context.
unsafe impl<'fcx> ArgAbi<'fcx> for Text<'fcx> {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: the argument is a text and not null, by the contract of the trait.
        Self(unsafe { arg.unbox_arg_using_from_datum::<&[u8]>() }.unwrap_or_default())
    }
}

/// No argument in SQL. Before those that follow it are read, it makes sure that the SQL objects are of the
/// library's version: for functions that an older version has with fewer arguments.
pub struct SameVersion;

// SAFETY: it is no part of the SQL.
unsafe impl SqlTranslatable for SameVersion {
    const TYPE_IDENT: &'static str = "counterx::SameVersion";
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::Skip);
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> = Ok(ReturnsRef::One(SqlMappingRef::Skip));
}

// SAFETY: takes nothing from the call.
unsafe impl<'fcx> ArgAbi<'fcx> for SameVersion {
    unsafe fn unbox_arg_unchecked(_: Arg<'_, 'fcx>) -> Self {
        catalog::shared();
        Self
    }

    fn is_virtual_arg() -> bool {
        true
    }
}

/// A text in a result, such as a name: its bytes, in the database's encoding.
pub struct NameOut(pub Box<[u8]>);

// SAFETY: the SQL type is text, and the datum made is one.
unsafe impl SqlTranslatable for NameOut {
    const TYPE_IDENT: &'static str = "counterx::NameOut";
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal("TEXT"));
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> =
        Ok(ReturnsRef::One(SqlMappingRef::literal("TEXT")));
}

impl IntoDatum for NameOut {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        Some(text_datum(&self.0))
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::TEXTOID
    }
}

// SAFETY: returns the datum that IntoDatum makes.
unsafe impl BoxRet for NameOut {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        match self.into_datum() {
            // SAFETY: a text, as the function is declared to return.
            Some(datum) => unsafe { fcinfo.return_raw_datum(datum) },
            None => fcinfo.return_null(),
        }
    }
}

/// One row of several columns, as a value. No set of rows: beside such a set, the server evaluates what else is in a SELECT
/// list once more than there are rows, so what counts there would count twice.
pub struct RecordOut(pg_sys::Datum);

impl RecordOut {
    /// Of the columns that the function is declared to return.
    pub fn new<const N: usize>(
        fcinfo: pg_sys::FunctionCallInfo,
        values: [Option<pg_sys::Datum>; N],
    ) -> Self {
        let mut nulls = values.map(|value| value.is_none());
        let mut datums = values.map(|value| value.unwrap_or(pg_sys::Datum::null()));
        // SAFETY: the running call, of a function that is declared with columns of these types; the row is made in the
        // memory of the call.
        unsafe {
            let mut columns = std::ptr::null_mut();
            pg_sys::get_call_result_type(fcinfo, std::ptr::null_mut(), &raw mut columns);
            if columns.is_null() || (*columns).natts as usize != N {
                raise(report(
                    PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                    "function is not declared as the extension declares it",
                ));
            }
            let columns = pg_sys::BlessTupleDesc(columns);
            let row = pg_sys::heap_form_tuple(columns, datums.as_mut_ptr(), nulls.as_mut_ptr());
            Self(pg_sys::HeapTupleHeaderGetDatum((*row).t_data))
        }
    }
}

// SAFETY: the SQL type is record, and the datum made is one.
unsafe impl SqlTranslatable for RecordOut {
    const TYPE_IDENT: &'static str = "counterx::RecordOut";
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal("record"));
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> =
        Ok(ReturnsRef::One(SqlMappingRef::literal("record")));
}

// SAFETY: returns the datum that was made.
unsafe impl BoxRet for RecordOut {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        // SAFETY: a row, as the function is declared to return.
        unsafe { fcinfo.return_raw_datum(self.0) }
    }
}

/// An argument that is taken as the server hands it over.
macro_rules! raw_argument {
    ($(#[$doc:meta])* $name:ident, $sql:literal) => {
        $(#[$doc])*
        pub struct $name<'a>(pg_sys::Datum, PhantomData<&'a ()>);

        // SAFETY: the SQL type is this one, and the datum is read as such.
        unsafe impl SqlTranslatable for $name<'_> {
            const TYPE_IDENT: &'static str = concat!("counterx::", stringify!($name));
            const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
            const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> =
                Ok(SqlMappingRef::literal($sql));
            const RETURN_SQL: Result<ReturnsRef, ReturnsError> =
                Ok(ReturnsRef::One(SqlMappingRef::literal($sql)));
        }

        // SAFETY: keeps the datum, which lives as long as the call.
        unsafe impl<'fcx> ArgAbi<'fcx> for $name<'fcx> {
            unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
                // SAFETY: takes any datum.
                let datum = unsafe { arg.unbox_arg_using_from_datum::<pg_sys::Datum>() };
                Self(datum.unwrap_or_else(|| null("argument")), PhantomData)
            }
        }
    };
}
raw_argument!(
    /// `text[]`
    TextArray,
    "TEXT[]"
);
raw_argument!(
    /// `bigint[]`
    BigintArray,
    "BIGINT[]"
);
raw_argument!(
    /// `jsonb`
    Jsonb,
    "JSONB"
);

impl Jsonb<'_> {
    /// Calls `visit` with each key and what stands behind it. `Err`: the kind of what is no object.
    pub fn for_each_member(
        &self,
        visit: impl FnMut(&[u8], Member<'_>),
    ) -> Result<(), &'static str> {
        // SAFETY: a jsonb argument.
        unsafe { json::for_each_member(self.0, visit) }
    }
}

raw_argument!(
    /// `interval`
    Interval,
    "INTERVAL"
);
raw_argument!(
    /// `timestamptz`
    Timestamptz,
    "TIMESTAMPTZ"
);

impl Timestamptz<'_> {
    /// Microseconds since 2000.
    pub fn time(&self) -> i64 {
        self.0.value() as i64
    }
}

impl Interval<'_> {
    /// Months, days, microseconds.
    pub fn parts(&self) -> (i32, i32, i64) {
        // SAFETY: an interval argument.
        unsafe { time::parts(self.0) }
    }

    /// The time that is so much later than another one, both in microseconds since 2000.
    ///
    /// # Errors
    /// Raises 22008 when there is no such time.
    pub fn after(&self, time: i64) -> i64 {
        // SAFETY: timestamptz_pl_interval(timestamptz, interval) -> timestamptz.
        let later = unsafe {
            direct_function_call_as_datum(
                pg_sys::timestamptz_pl_interval,
                &[Some(time.into()), Some(self.0)],
            )
        };
        later.map_or(time, |datum| datum.value() as i64)
    }
}

/// The arguments of a call.
pub struct Arguments<'a>(&'a [pg_sys::NullableDatum]);

impl<'a> Arguments<'a> {
    /// Those of a call by the server's own convention.
    ///
    /// # Safety
    /// `fcinfo` is what the server has called a function with, whose arguments live as long as the call.
    pub unsafe fn of(fcinfo: pg_sys::FunctionCallInfo) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe {
            let count = usize::try_from((*fcinfo).nargs).unwrap_or_default();
            (*fcinfo).args.as_slice(count)
        })
    }

    /// One of them, from 0 on; None: null.
    pub fn get(&self, at: usize) -> Option<pg_sys::Datum> {
        let argument = self.0.get(at)?;
        (!argument.isnull).then_some(argument.value)
    }

    /// The bytes of one.
    ///
    /// # Safety
    /// The argument is a text.
    pub unsafe fn text(&self, at: usize) -> Option<Text<'a>> {
        // SAFETY: the caller's promise.
        self.get(at).map(|datum| Text(unsafe { text_bytes(datum) }))
    }

    /// A bigint, or a time.
    pub fn number(&self, at: usize) -> Option<i64> {
        self.get(at).map(|datum| datum.value() as i64)
    }

    /// A name.
    ///
    /// # Safety
    /// The argument is one.
    pub unsafe fn name(&self, at: usize) -> Option<Vec<u8>> {
        let datum = self.get(at)?;
        // SAFETY: the caller's promise: it ends with a zero.
        let name = unsafe { core::ffi::CStr::from_ptr(datum.cast_mut_ptr()) };
        Some(name.to_bytes().to_vec())
    }

    /// A boolean.
    pub fn boolean(&self, at: usize) -> Option<bool> {
        self.get(at).map(|datum| datum.value() != 0)
    }
}

/// An interval out of its text, in the current memory context.
pub fn interval(text: &[u8]) -> pg_sys::Datum {
    let Ok(text) = std::ffi::CString::new(text) else {
        unreachable!("a text has no zero byte");
    };
    // SAFETY: interval_in(cstring, oid, integer) -> interval.
    let datum = unsafe {
        pgrx::direct_function_call_as_datum(
            pg_sys::interval_in,
            &[
                Some(pg_sys::Datum::from(text.as_ptr())),
                Some(pg_sys::INTERVALOID.into()),
                Some((-1_i32).into()),
            ],
        )
    };
    datum.expect("interval_in returns no null")
}

/// The name of a time zone that means the same in all sessions.
///
/// # Errors
/// Raises 22023 for another one.
pub fn zone(zone: &[u8]) -> &[u8] {
    if !time::is_known(zone) {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("time zone {} not recognized", quoted(zone)),
            )
            .set_hint("Use UTC, or a name with a slash, such as 'Europe/Berlin'; SELECT name FROM pg_timezone_names shows those that the server has. What abbreviations mean depends on settings."),
        );
    }
    zone
}

fn null(what: &str) -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            format!("{what} must not be null"),
        )
        .set_hint("Skip the call, or use COALESCE to give a value."),
    )
}

/// What is wrong with an argument; to be completed.
pub fn invalid(message: impl Into<String>) -> ErrorReport {
    report(
        PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        message.into(),
    )
}

/// A NOT NULL argument.
///
/// # Errors
/// Raises 22004 for NULL.
pub fn required<T>(what: &str, value: Option<T>) -> T {
    value.unwrap_or_else(|| null(what))
}

/// The bytes of a valid counter name.
///
/// # Errors
/// Raises 22004 for NULL, 22023 for an empty or too long one.
pub fn name<'a>(name: Option<Text<'a>>) -> &'a [u8] {
    valid_length("counter name", required("counter name", name).0)
}

/// The bytes of a valid name of a counter type: what stands before the colon in the names of its counters.
///
/// # Errors
/// As of [`name`], and 22023 for what no type can be called.
pub fn type_name<'a>(name: Option<Text<'a>>) -> &'a [u8] {
    let name = valid_length(
        "name of a counter type",
        required("name of a counter type", name).0,
    );
    if !is_type_name(name) {
        raise(
            invalid(format!("invalid name of a counter type: {}", quoted(name)))
                .set_detail("It may have ASCII letters, digits and signs other than the colon.")
                .set_hint(
                    "The counters of type \"stock\" are those whose names begin with \"stock:\".",
                ),
        );
    }
    name
}

/// The bytes of a valid token.
///
/// # Errors
/// As of [`name`].
pub fn token<'a>(token: Option<Text<'a>>) -> &'a [u8] {
    valid_length("token", required("token", token).0)
}

fn valid_length<'a>(what: &str, text: &'a [u8]) -> &'a [u8] {
    if text.is_empty() {
        raise(
            invalid(format!("{what} must not be empty"))
                .set_hint(format!("A {what} has 1 to {MAX_NAME_BYTES} bytes.")),
        );
    }
    if text.len() > MAX_NAME_BYTES {
        raise(
            invalid(format!("{what} is too long"))
                .set_detail(format!(
                    "The {what} has {} bytes, the maximum is {MAX_NAME_BYTES}. It begins with {}.",
                    text.len(),
                    quoted(beginning(text, 32))
                ))
                .set_hint(format!("Use a shorter {what}, or a hash of it.")),
        );
    }
    text
}

/// # Errors
/// Raises 22004 for NULL.
pub fn delta(delta: Option<i64>) -> i64 {
    delta.unwrap_or_else(|| {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
                "counter delta must not be null",
            )
            .set_hint("Use COALESCE(delta, 0) to count nothing."),
        )
    })
}

/// The names that begin with a prefix.
///
/// # Errors
/// Raises 22004 for NULL: a missing prefix must not select everything by accident.
pub fn prefix(prefix: Option<Text>) -> NameRange {
    let Some(Text(prefix)) = prefix else {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
                "prefix must not be null",
            )
            .set_hint("Use '' for all counters."),
        )
    };
    let mut range = NameRange::all();
    if !prefix.is_empty() {
        range.starting_with(prefix);
    }
    range
}

/// # Errors
/// Raises 22023 for a number that is not positive.
pub fn positive(what: &str, number: i64) {
    if number <= 0 {
        raise(
            invalid(format!("{what} must be positive"))
                .set_detail(format!("It is {number}."))
                .set_hint("Ask for 1 or more."),
        );
    }
}

/// # Errors
/// Raises 22023 for a negative number.
pub fn not_negative(what: &str, number: i64) {
    if number < 0 {
        raise(
            invalid(format!("{what} must not be negative"))
                .set_detail(format!("It is {number}."))
                .set_hint("Ask for 0 or more."),
        );
    }
}

/// How many rows are wanted.
///
/// # Errors
/// Raises 22004 for NULL, 2201W for a negative number.
pub fn row_count(what: &str, count: Option<i64>) -> usize {
    let count = required(what, count);
    usize::try_from(count).unwrap_or_else(|_| {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INVALID_ROW_COUNT_IN_LIMIT_CLAUSE,
                format!("{what} must not be negative"),
            )
            .set_hint("Ask for 0 rows or more."),
        )
    })
}

/// Valid names, in the order given. No array is none: it is what array_agg() makes of no rows.
///
/// # Errors
/// Raises 22004 for NULL names, 2202E for an array of several dimensions, 22023 for what is no name.
pub fn names<'a>(array: Option<TextArray<'a>>) -> Vec<&'a [u8]> {
    let Some(array) = array else {
        return Vec::new();
    };
    // SAFETY: a text[] argument.
    let elements = unsafe { array::texts::<'a>(array.0) };
    let elements =
        elements.unwrap_or_else(|dimensions| raise_dimensions("counter names", dimensions));
    room::collect(elements.into_iter().map(|element| name(element.map(Text))))
}

/// Texts, in the order given; no array is none.
///
/// # Errors
/// Raises 22004 for NULL among them, 2202E for an array of several dimensions.
pub fn texts<'a>(what: &'static str, array: Option<TextArray<'a>>) -> Vec<&'a [u8]> {
    let Some(array) = array else {
        return Vec::new();
    };
    // SAFETY: a text[] argument.
    let elements = unsafe { array::texts::<'a>(array.0) };
    let elements = elements.unwrap_or_else(|dimensions| raise_dimensions(what, dimensions));
    room::collect(elements.into_iter().map(|element| required(what, element)))
}

/// Deltas, in the order given; likewise.
///
/// # Errors
/// Raises 22004 for NULL deltas, 2202E for an array of several dimensions.
pub fn deltas(array: Option<BigintArray>) -> Vec<i64> {
    let Some(array) = array else {
        return Vec::new();
    };
    // SAFETY: a bigint[] argument.
    let elements = unsafe { array::bigints(array.0) };
    let elements =
        elements.unwrap_or_else(|dimensions| raise_dimensions("counter deltas", dimensions));
    room::collect(elements.into_iter().map(delta))
}

/// The members of an object of names and deltas; none of a missing one, which is what
/// jsonb_object_agg() makes of no rows.
///
/// # Errors
/// Raises 22023 for what is no object of whole numbers, 22003 for a number that is
/// out of range; each names the key.
pub fn members(object: Option<Jsonb>) -> Vec<(Vec<u8>, i64)> {
    let mut members = Vec::new();
    let mut add = |key: &[u8], member: Member| {
        let delta = match member {
            Member::Whole(delta) => delta,
            Member::TooLarge => raise(
                report(
                    PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
                    format!(
                        "delta of counter {} is out of range for type bigint",
                        quoted(key)
                    ),
                )
                .set_hint("Split it into several increments, in transactions of their own."),
            ),
            other => raise(
                invalid(format!(
                    "delta of counter {} must be a whole number",
                    quoted(key)
                ))
                .set_detail(format!("It is {}.", other.kind()))
                .set_hint("Give an object of names and numbers, such as {\"a\": 1, \"b\": -2}."),
            ),
        };
        room::push(&mut members, (name(Some(Text(key))).to_vec(), delta));
    };
    let Some(object) = object else {
        return members;
    };
    if let Err(kind) = object.for_each_member(&mut add) {
        raise(
            invalid("deltas must be a JSON object")
                .set_detail(format!("It is {kind}."))
                .set_hint("Give an object of names and numbers, such as {\"a\": 1, \"b\": -2}."),
        );
    }
    members
}

/// # Errors
/// Raises 2202E.
pub fn raise_dimensions(what: &str, dimensions: i32) -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_ARRAY_ELEMENT_ERROR,
            format!("array of {what} must have one dimension"),
        )
        .set_detail(format!("It has {dimensions}."))
        .set_hint("Use ARRAY['a', 'b'], or unnest the array and aggregate it again."),
    )
}

/// A value as a bigint.
///
/// # Errors
/// Raises 22003 when it does not fit.
pub fn bigint(name: &[u8], value: i128) -> i64 {
    i64::try_from(value).unwrap_or_else(|_| {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
                format!(
                    "value of counter {} is out of range for type bigint",
                    quoted(name)
                ),
            )
            .set_hint("The view counters shows it as numeric."),
        )
    })
}
