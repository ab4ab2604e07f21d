//! Sums of deltas as the server's numeric.

use pgrx::{AnyNumeric, IntoDatum, direct_function_call_as_datum, pg_sys};

/// A numeric of this value, in the current memory context.
pub fn numeric(value: i128) -> pg_sys::Datum {
    match i64::try_from(value) {
        // SAFETY: allocates the result; takes any number.
        Ok(value) => pg_sys::Datum::from(unsafe { pg_sys::int64_to_numeric(value) }),
        Err(_) => AnyNumeric::from(value)
            .into_datum()
            .expect("a number is not null"),
    }
}

/// `numeric + numeric`
///
/// # Safety
/// Both datums are numerics.
pub unsafe fn add(a: pg_sys::Datum, b: pg_sys::Datum) -> pg_sys::Datum {
    // SAFETY: the function's signature is (numeric, numeric) -> numeric.
    unsafe { direct_function_call_as_datum(pg_sys::numeric_add, &[Some(a), Some(b)]) }
        .expect("numeric_add is strict and was given values")
}

/// As a bigint, or None when it does not fit.
///
/// # Safety
/// The datum is a numeric.
pub unsafe fn to_bigint(value: pg_sys::Datum) -> Option<i64> {
    // SAFETY: numeric_cmp(numeric, numeric) -> int4, numeric_int8(numeric) -> int8.
    unsafe {
        let cmp = |bound: i64| {
            let bound = pg_sys::Datum::from(pg_sys::int64_to_numeric(bound));
            direct_function_call_as_datum(pg_sys::numeric_cmp, &[Some(value), Some(bound)])
                .map(|datum| datum.value() as i32)
        };
        // Four base-10000 digits, the header and the weight: no need to compare.
        let small = pgrx::varsize_any_exhdr(value.cast_mut_ptr()) <= 10;
        if !small && (cmp(i64::MAX) > Some(0) || cmp(i64::MIN) < Some(0)) {
            return None;
        }
        direct_function_call_as_datum(pg_sys::numeric_int8, &[Some(value)])
            .map(|datum| datum.value() as i64)
    }
}
