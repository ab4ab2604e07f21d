//! Arguments that are `jsonb`.

use super::number;
use pgrx::pg_sys;

/// What stands behind a key of an object.
pub enum Member {
    /// A number without a fraction.
    Whole(i128),
    /// Anything else, by the name of its kind.
    Other(&'static str),
}

/// Calls `visit` with each key of an object and what stands behind it. `Err`: the kind of what is no
/// object.
///
/// Keys are in the database's encoding, each comes once, and none is compressed.
///
/// # Safety
/// The datum is a jsonb.
pub unsafe fn for_each_member(
    jsonb: pg_sys::Datum,
    mut visit: impl FnMut(&[u8], Member),
) -> Result<(), &'static str> {
    use pg_sys::JsonbIteratorToken::*;
    // SAFETY: the caller's promise; the iterator's memory is the current context's, and keys point
    // into the detoasted value.
    unsafe {
        let jsonb = pg_sys::pg_detoast_datum(jsonb.cast_mut_ptr()).cast::<pg_sys::Jsonb>();
        let mut iterator = pg_sys::JsonbIteratorInit(&raw mut (*jsonb).root);
        let mut value = std::mem::zeroed::<pg_sys::JsonbValue>();
        // Nested values are handed over whole.
        let mut next =
            |value: &mut pg_sys::JsonbValue| pg_sys::JsonbIteratorNext(&mut iterator, value, true);
        match next(&mut value) {
            WJB_BEGIN_OBJECT => {}
            _ if value.val.array.rawScalar => {
                next(&mut value);
                return Err(kind(&value));
            }
            _ => return Err("an array"),
        }
        while next(&mut value) == WJB_KEY {
            let text = value.val.string;
            let key = std::slice::from_raw_parts(text.val.cast::<u8>(), text.len as usize);
            next(&mut value);
            visit(key, member(&value));
        }
    }
    Ok(())
}

/// # Safety
/// A value that the iterator has set.
unsafe fn member(value: &pg_sys::JsonbValue) -> Member {
    if value.type_ != pg_sys::jbvType::jbvNumeric {
        return Member::Other(kind(value));
    }
    // SAFETY: the type says which member of the union is set.
    let numeric = pg_sys::Datum::from(unsafe { value.val.numeric });
    // SAFETY: a numeric.
    match unsafe { number::whole(numeric) } {
        Some(number) => Member::Whole(number),
        None => Member::Other("a number that is not a whole one, or is out of range"),
    }
}

fn kind(value: &pg_sys::JsonbValue) -> &'static str {
    match value.type_ {
        pg_sys::jbvType::jbvNull => "null",
        pg_sys::jbvType::jbvString => "a string",
        pg_sys::jbvType::jbvNumeric => "a number",
        pg_sys::jbvType::jbvBool => "a boolean",
        _ => "a nested object or array",
    }
}
