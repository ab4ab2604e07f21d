//! The text of a value as a part of a counter's name.
//!
//! Such a text must be the same for ever: in every session, whatever its settings, and in every version of the
//! server. Output functions are not to be trusted with that, those that are marked as immutable included: what
//! bytea and floating-point numbers look like depends on settings. So there is a list of types here, and all
//! others are refused. Two values that are equal have one text, where the type's equality is that of bytes or
//! of numbers: `1.0` and `1.00` are one group.
//!
//! An enum is its label. That is what dumps have as well, and it changes only with ALTER TYPE ... RENAME VALUE.

use super::error::{report, unquoted};
use super::number;
use super::ports::{self, Digits};
use super::varlena::text_bytes;
use counterx_core::parts::NameBuilder;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgSqlErrorCode, direct_function_call_as_datum, pg_sys};
use std::ffi::CStr;
use std::fmt::Write as _;

/// How values of a type become a part of a name. It owns nothing, so it can be kept anywhere; and it is right
/// as long as the type exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyType(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    /// `"char"`
    Byte,
    Name,
    /// text, varchar
    Text,
    /// char(n)
    Padded,
    /// A literal that nobody has given a type.
    Unknown,
    Uuid,
    Lsn,
    Numeric,
    /// date, timestamp, timestamptz
    Time(pg_sys::Oid),
    /// By an output function that depends on nothing.
    Output(Output),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    Inet,
    Cidr,
    Macaddr,
    Macaddr8,
    Bit,
    Varbit,
    Enum,
}

const HINT: &str = "Give an expression of one of these types: boolean, an integer, numeric, text, uuid, date, timestamp, an enum, or a network address; such as x::numeric(12,2) of a floating-point number, encode(x, 'hex') of a bytea, or x ->> 'key' of a jsonb.";

impl KeyType {
    /// The type of this OID, or a domain over it.
    ///
    /// # Errors
    /// [`Refused`] is a type whose values cannot be parts of names. (Raises XX000 when there is no such type.)
    pub fn of(type_oid: pg_sys::Oid) -> Result<Self, Refused> {
        // SAFETY: looks the type up.
        let base = unsafe { pg_sys::getBaseType(type_oid) };
        let kind = match base {
            pg_sys::BOOLOID => Kind::Bool,
            pg_sys::INT2OID => Kind::Int2,
            pg_sys::INT4OID => Kind::Int4,
            pg_sys::INT8OID => Kind::Int8,
            pg_sys::OIDOID => Kind::Oid,
            pg_sys::CHAROID => Kind::Byte,
            pg_sys::NAMEOID => Kind::Name,
            pg_sys::TEXTOID | pg_sys::VARCHAROID => Kind::Text,
            pg_sys::BPCHAROID => Kind::Padded,
            pg_sys::UNKNOWNOID => Kind::Unknown,
            pg_sys::UUIDOID => Kind::Uuid,
            pg_sys::PG_LSNOID => Kind::Lsn,
            pg_sys::NUMERICOID => Kind::Numeric,
            pg_sys::DATEOID | pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID => Kind::Time(base),
            pg_sys::INETOID => Kind::Output(Output::Inet),
            pg_sys::CIDROID => Kind::Output(Output::Cidr),
            pg_sys::MACADDROID => Kind::Output(Output::Macaddr),
            pg_sys::MACADDR8OID => Kind::Output(Output::Macaddr8),
            pg_sys::BITOID => Kind::Output(Output::Bit),
            pg_sys::VARBITOID => Kind::Output(Output::Varbit),
            // SAFETY: looks the type up.
            other if unsafe { pg_sys::type_is_enum(other) } => Kind::Output(Output::Enum),
            _ => return Err(Refused(type_oid)),
        };
        Ok(Self(kind))
    }

    /// Adds the text of a value as the next part. What is stored out of line or compressed, and bits, leave a
    /// copy in the current memory context, which has to be one that is emptied between rows.
    ///
    /// # Errors
    /// Raises errors of the server's: 22008 for a time that is out of range, XX000 for a label that is gone.
    ///
    /// # Safety
    /// The datum is a value of the type, and not null.
    #[inline]
    pub unsafe fn append(&self, value: pg_sys::Datum, name: &mut NameBuilder) {
        // SAFETY: the caller's promise, here and below: the datum is of the kind.
        unsafe {
            match self.0 {
                Kind::Bool if value.value() & 0xFF != 0 => name.plain(b"true"),
                Kind::Bool => name.plain(b"false"),
                // Datums of these may have anything in their upper bytes.
                Kind::Int2 => whole((value.value() as i16).into(), name),
                Kind::Int4 => whole((value.value() as i32).into(), name),
                Kind::Int8 => whole(value.value() as i64, name),
                Kind::Oid => whole((value.value() as u32).into(), name),
                Kind::Byte => byte(value.value() as u8, name),
                Kind::Name | Kind::Unknown => {
                    name.text(CStr::from_ptr(value.cast_mut_ptr()).to_bytes());
                }
                Kind::Text => name.text(text_bytes(value)),
                Kind::Padded => name.text(without_blanks(text_bytes(value))),
                Kind::Uuid => uuid(&*value.cast_mut_ptr::<[u8; 16]>(), name),
                Kind::Lsn => lsn(value.value() as u64, name),
                Kind::Numeric => numeric(value, name),
                Kind::Time(type_oid) => time(value, type_oid, name),
                Kind::Output(output) => output.append(value, name),
            }
        }
    }
}

/// A type whose values cannot be parts of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pg_sys::Oid);

impl Refused {
    /// 42804, to be raised.
    pub fn report(self) -> ErrorReport {
        // SAFETY: the type exists; the result is a text of the server's in the current memory context.
        let of = unsafe { CStr::from_ptr(pg_sys::format_type_be(self.0)) };
        report(
            PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
            format!(
                "a value of type {} cannot be a part of a counter name",
                unquoted(of.to_bytes())
            ),
        )
        .set_detail(
            "A part of a name is the same text for equal values, in every session and for ever.",
        )
        .set_hint(HINT)
    }
}

/// Without the blanks at the end, as char(n) compares.
fn without_blanks(text: &[u8]) -> &[u8] {
    let last = text.iter().rposition(|&byte| byte != b' ');
    &text[..last.map_or(0, |last| last + 1)]
}

#[inline]
fn whole(value: i64, name: &mut NameBuilder) {
    name.plain(ports::decimal(value, &mut Digits::default()));
}

/// As PostgreSQL 16 and later write it; 15 makes of bytes that are not ASCII what may be no text.
fn byte(value: u8, name: &mut NameBuilder) {
    match value {
        0 => name.plain(b""),
        1..=0x7F => name.text(&[value]),
        _ => {
            let digit = |shift: u8| b'0' + (value >> shift & 7);
            name.plain(&[b'\\', digit(6), digit(3), digit(0)]);
        }
    }
}

fn uuid(bytes: &[u8; 16], name: &mut NameBuilder) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            at += 1;
        }
        text[at] = DIGITS[usize::from(byte >> 4)];
        text[at + 1] = DIGITS[usize::from(byte & 15)];
        at += 2;
    }
    name.plain(&text);
}

fn lsn(value: u64, name: &mut NameBuilder) {
    let mut text = String::with_capacity(17);
    let _ = write!(text, "{:X}/{:X}", value >> 32, value & 0xFFFF_FFFF);
    name.plain(text.as_bytes());
}

/// Without zeroes at the end.
///
/// # Safety
/// The datum is a numeric.
unsafe fn numeric(value: pg_sys::Datum, name: &mut NameBuilder) {
    // SAFETY: the caller's promise; number::whole() looks at plain and compressed ones alike. The text is in
    // the current memory context.
    unsafe {
        let plain = number::whole(value).and_then(|value| i64::try_from(value).ok());
        if let Some(plain) = plain {
            return whole(plain, name);
        }
        number::with_digits(value, |digits| name.plain(digits));
    }
}

/// ISO 8601; timestamptz in UTC.
///
/// # Safety
/// The datum is of this type, which is one of time.
unsafe fn time(value: pg_sys::Datum, type_oid: pg_sys::Oid, name: &mut NameBuilder) {
    const UTC: core::ffi::c_int = 0;
    let mut text = [0; pg_sys::MAXDATELEN as usize + 1];
    // SAFETY: the caller's promise; writes up to so many bytes, the last of them a zero. Only timestamptz
    // asks for the time zone.
    let text = unsafe {
        pg_sys::JsonEncodeDateTime(text.as_mut_ptr(), value, type_oid, &UTC);
        CStr::from_ptr(text.as_ptr())
    };
    name.text(text.to_bytes());
}

impl Output {
    /// # Safety
    /// The datum is of this type.
    unsafe fn append(self, value: pg_sys::Datum, name: &mut NameBuilder) {
        let function = match self {
            Self::Inet => pg_sys::inet_out,
            Self::Cidr => pg_sys::cidr_out,
            Self::Macaddr => pg_sys::macaddr_out,
            Self::Macaddr8 => pg_sys::macaddr8_out,
            Self::Bit => pg_sys::bit_out,
            Self::Varbit => pg_sys::varbit_out,
            Self::Enum => pg_sys::enum_out,
        };
        // SAFETY: the caller's promise; none of these looks at how it was called. The text is in the current
        // memory context.
        unsafe {
            if let Some(text) = direct_function_call_as_datum(function, &[Some(value)]) {
                let text = text.cast_mut_ptr::<core::ffi::c_char>();
                name.text(CStr::from_ptr(text).to_bytes());
                pg_sys::pfree(text.cast());
            }
        }
    }
}
