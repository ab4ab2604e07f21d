//! Arguments that are arrays.

use super::room;
use super::varlena::text_bytes;
use pgrx::pg_sys;

/// The elements of a `text[]`, each None when it is null. `Err`: the number of its dimensions, which
/// are more than one.
///
/// # Safety
/// The datum is such an array, and the current memory context lives as long as the bytes are used.
pub unsafe fn texts<'a>(array: pg_sys::Datum) -> Result<Vec<Option<&'a [u8]>>, i32> {
    // SAFETY: the caller's promise; typlen, typbyval and typalign are those of text.
    let elements = unsafe { elements(array, pg_sys::TEXTOID, -1, false, b'i') }?;
    let bytes = elements.into_iter().map(|element| {
        // SAFETY: a text; elements may be compressed when they were stored so.
        element.map(|datum| unsafe {
            let plain = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
            text_bytes(pg_sys::Datum::from(plain))
        })
    });
    Ok(room::collect(bytes))
}

/// The elements of a `bigint[]`, likewise.
///
/// # Safety
/// The datum is such an array.
pub unsafe fn bigints(array: pg_sys::Datum) -> Result<Vec<Option<i64>>, i32> {
    // SAFETY: the caller's promise; typlen, typbyval and typalign are those of int8.
    let elements = unsafe { elements(array, pg_sys::INT8OID, 8, true, b'd') }?;
    let numbers = elements.into_iter();
    Ok(room::collect(
        numbers.map(|element| element.map(|datum| datum.value() as i64)),
    ))
}

/// The elements of an `integer[]`, likewise.
///
/// # Safety
/// The datum is such an array.
pub unsafe fn integers(array: pg_sys::Datum) -> Result<Vec<Option<i32>>, i32> {
    // SAFETY: the caller's promise; typlen, typbyval and typalign are those of int4.
    let elements = unsafe { elements(array, pg_sys::INT4OID, 4, true, b'i') }?;
    let numbers = elements.into_iter();
    Ok(room::collect(
        numbers.map(|element| element.map(|datum| datum.value() as i32)),
    ))
}

/// The type of an array's elements, and these, likewise.
///
/// # Safety
/// The datum is an array, and the current memory context lives as long as the elements are used.
pub unsafe fn any(array: pg_sys::Datum) -> Result<(pg_sys::Oid, Vec<Option<pg_sys::Datum>>), i32> {
    let (mut length, mut by_value, mut align) = (0, false, 0);
    // SAFETY: the caller's promise; the array knows its type, and that is asked how it is stored.
    unsafe {
        let array = pg_sys::pg_detoast_datum(array.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
        let of = (*array).elemtype;
        pg_sys::get_typlenbyvalalign(of, &mut length, &mut by_value, &mut align);
        let elements = elements(array.into(), of, length.into(), by_value, align as u8)?;
        Ok((of, elements))
    }
}

/// # Safety
/// The datum is an array of this type, which has this length, passing and alignment.
unsafe fn elements(
    array: pg_sys::Datum,
    of: pg_sys::Oid,
    length: i32,
    by_value: bool,
    align: u8,
) -> Result<Vec<Option<pg_sys::Datum>>, i32> {
    let (mut datums, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
    // SAFETY: the caller's promise; both results have `count` entries.
    unsafe {
        let array = pg_sys::pg_detoast_datum(array.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
        if (*array).ndim > 1 {
            return Err((*array).ndim);
        }
        pg_sys::deconstruct_array(
            array,
            of,
            length,
            by_value,
            align as core::ffi::c_char,
            &mut datums,
            &mut nulls,
            &mut count,
        );
        Ok(room::collect(
            (0..count as usize).map(|i| (!*nulls.add(i)).then(|| *datums.add(i))),
        ))
    }
}
