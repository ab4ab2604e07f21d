//! Text datums without allocation.

use counterx_core::lane::MAX_NAME_BYTES;
use pgrx::pg_sys;

/// The longest content that a one-byte header can describe.
const SHORT_MAX: usize = pg_sys::VARATT_SHORT_MAX as usize - 1;

/// A text datum on the stack.
///
/// Rows get the short header where the length allows, since columns with STORAGE PLAIN are stored
/// as they are handed in.
#[repr(C, align(8))]
pub struct NameText {
    bytes: [u8; MAX_NAME_BYTES + 4],
}

impl NameText {
    /// # Panics
    /// When the name is longer than [`MAX_NAME_BYTES`].
    pub fn new(name: &[u8]) -> Self {
        let mut text = Self {
            bytes: [0; MAX_NAME_BYTES + 4],
        };
        let header = if name.len() <= SHORT_MAX { 1 } else { 4 };
        text.bytes[header..header + name.len()].copy_from_slice(name);
        let ptr = text.bytes.as_mut_ptr().cast::<pg_sys::varlena>();
        // SAFETY: the buffer is aligned and long enough for the header just chosen.
        unsafe {
            if header == 1 {
                pgrx::set_varsize_short(ptr, (name.len() + 1) as i32);
            } else {
                pgrx::set_varsize_4b(ptr, (name.len() + 4) as i32);
            }
        }
        text
    }

    /// The datum; valid as long as `self` stays where it is.
    pub fn datum(&self) -> pg_sys::Datum {
        pg_sys::Datum::from(self.bytes.as_ptr())
    }
}

/// A text of these bytes, in the current memory context.
pub fn text_datum(bytes: &[u8]) -> pg_sys::Datum {
    // SAFETY: copies so many bytes.
    unsafe { pg_sys::cstring_to_text_with_len(bytes.as_ptr().cast(), bytes.len() as i32) }.into()
}

/// The bytes of a text datum. Ours are stored in line and as they are. But who inserts a row by SQL, a name
/// out of another table, hands on what that table had compressed, and the server stores it so.
///
/// # Safety
/// The datum is a text, and lives as long as the result is used, as does the current memory context.
pub unsafe fn text_bytes<'a>(datum: pg_sys::Datum) -> &'a [u8] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut ptr = datum.cast_mut_ptr::<pg_sys::varlena>();
        if pgrx::varatt_is_4b_c(ptr) || pgrx::varatt_is_1b_e(ptr) {
            ptr = pg_sys::pg_detoast_datum_packed(ptr);
        }
        std::slice::from_raw_parts(pgrx::vardata_any(ptr).cast(), pgrx::varsize_any_exhdr(ptr))
    }
}
