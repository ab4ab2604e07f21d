//! Arguments that are `jsonb`.

use super::number;
use pgrx::pg_sys;

/// What stands behind a key of an object.
pub enum Member<'a> {
    /// A number without a fraction, in the range of a bigint.
    Whole(i64),
    /// A number beyond a bigint.
    TooLarge,
    /// A text, in the database's encoding.
    Text(&'a [u8]),
    /// JSON's `true` and `false`.
    Bool(bool),
    /// JSON's `null`.
    Null,
    /// Anything else, by the name of its kind.
    Other(&'static str),
}

impl Member<'_> {
    /// For a message: "It is ..."
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Whole(_) => "a number",
            Self::TooLarge => "a number that is out of range",
            Self::Text(_) => "a string",
            Self::Bool(_) => "a boolean",
            Self::Null => "null",
            Self::Other(kind) => kind,
        }
    }
}

/// Calls `visit` with each key of an object and what stands behind it. `Err`: the kind of what is no
/// object.
///
/// Keys and texts are in the database's encoding, each comes once, and none is compressed.
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
unsafe fn member(value: &pg_sys::JsonbValue) -> Member<'_> {
    match value.type_ {
        pg_sys::jbvType::jbvNumeric => {}
        pg_sys::jbvType::jbvNull => return Member::Null,
        // SAFETY: the type says which member of the union is set.
        pg_sys::jbvType::jbvBool => return Member::Bool(unsafe { value.val.boolean }),
        pg_sys::jbvType::jbvString => {
            // SAFETY: the type says which member of the union is set; its text is of that length.
            return Member::Text(unsafe {
                let text = value.val.string;
                std::slice::from_raw_parts(text.val.cast::<u8>(), text.len as usize)
            });
        }
        _ => return Member::Other(kind(value)),
    }
    // SAFETY: the type says which member of the union is set.
    let numeric = pg_sys::Datum::from(unsafe { value.val.numeric });
    // SAFETY: a numeric.
    match unsafe { (number::whole(numeric), number::is_beyond_bigint(numeric)) } {
        (Some(number), _) => i64::try_from(number).map_or(Member::TooLarge, Member::Whole),
        (None, true) => Member::TooLarge,
        (None, false) => Member::Other("a number that is not a whole one"),
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
